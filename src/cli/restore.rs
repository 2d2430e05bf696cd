//! `lifeboat restore`

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use crate::cli::args::RestoreArgs;
use crate::cli::context::shell_word;
use crate::cli::output::{ask, can_ask, note};
use crate::cli::{App, Exit, render, time};
use crate::daemon::journal::{Filter, Job as JobKind};
use crate::error::{Error, IoContext, Kind, Result};
use crate::event::Silent;
use crate::id::{Name, SnapshotId};
use crate::ops::log::replay::LogRecovery;
use crate::ops::resolve::{self, CopyPlace, RepositorySettings, Resolved};
use crate::ops::restore::fallback::{self, Fallback, Own};
use crate::ops::restore::{self, RestorePlan, RestoreReport, RestoreRequest};
use crate::ops::select::{Choice, Wanted};
use crate::ops::{damaged_warning, explain, select};
use crate::repo::Passphrase;
use crate::source::postgres::{check_primary, check_slot};
use crate::source::{Standby, TablespaceMapping};

/// In a standby's data folder, where no backup takes it.
const STANDBY_STATE: &str = "lifeboat_conf/standby";

pub(super) fn run(app: &App, args: &RestoreArgs) -> Result<Exit> {
    if args.dry_run {
        let requested = requested(app, args)?;
        let (_, plan, _) = looked_at(app, args, &requested)?;
        app.output.result(&plan, || plan_text(&plan, requested.zone))?;
        return Ok(plan.exit());
    }
    let report = make(app, args)?;
    app.output.result(&report, || text(&report))?;
    Ok(report.exit())
}

/// What is asked for, and where from.
struct Requested {
    resolved: Resolved,
    /// Whether `resolved` leads to the plan's own repository, of which the journal knows.
    is_own: bool,
    /// For its times.
    zone: Tz,
    request: RestoreRequest,
    /// A warning where manifests could not be read on the way.
    lost: Option<String>,
}

fn requested(app: &App, args: &RestoreArgs) -> Result<Requested> {
    let (resolved, is_own, zone, lost) = resolve_from(app, args)?;
    let choice = choice(args, zone)?;
    if let Choice::At(at) | Choice::Along { wanted: Wanted::Time(at), .. } = &choice {
        note(&format!("recovery point asked for: {}", render::time_in_both(*at, zone)));
    }
    let request =
        RestoreRequest { choice, to: args.to.clone(), sources: args.source.clone(), only: args.only.clone(), resume: args.resume };
    Ok(Requested { resolved, is_own, zone, request, lost })
}

/// One restore, without showing its result.
pub(super) fn make(app: &App, args: &RestoreArgs) -> Result<RestoreReport> {
    let requested = requested(app, args)?;
    // Look and ask first, with nothing recorded and no bar in the way; then do it.
    let (mut job, mut plan, mut ways) = looked_at(app, args, &requested)?;
    let name = requested.resolved.plan.clone();
    loop {
        let error = match carried_out(app, args, requested.zone, &name, job, &plan) {
            Err(error) if fallback::may_help_on_the_way(error.kind()) && !ways.left.is_empty() => error,
            done => return done,
        };
        note(&format!("warning: the restore failed: {}; what else may have it is tried", explain(&error)));
        ways.failed(&plan, error);
        (job, plan) = ways.next(app, args, &requested)?;
    }
}

/// Where what is asked for may be had from.
enum Way {
    Own,
    Copy(CopyPlace),
}

/// What is left to try, in this order, and what is known from what was tried.
struct Ways {
    left: VecDeque<Way>,
    own: Own,
    /// Why not from the plan's own repository.
    why: Error,
    /// How the first copy failed that a restore was begun from, and sentences of all those.
    of_copy: Option<Error>,
    told: Vec<String>,
}

impl Ways {
    fn new(app: &App, requested: &Requested, left: impl IntoIterator<Item = Way>, why: Error) -> Self {
        let own = Own { planned: None, backups: backups(app, &requested.resolved.plan).unwrap_or_default() };
        Self { left: left.into_iter().collect(), own, why, of_copy: None, told: Vec::new() }
    }

    /// Takes note of how a restore failed that was planned so.
    fn failed(&mut self, plan: &RestorePlan, error: Error) {
        if let Some(copy) = &plan.fallback {
            self.told.push(format!("it could not be restored from the copy {}: {}", copy.repository, explain(&error)));
            self.of_copy.get_or_insert(error);
        } else {
            (self.own.planned, self.why, self.of_copy) = (Some(plan.at), error, None);
        }
    }

    /// Plans it by the first way left that can be planned; where none can, the error is how it failed before.
    fn next(&mut self, app: &App, args: &RestoreArgs, requested: &Requested) -> Result<(crate::ops::Job, RestorePlan)> {
        while let Some(way) = self.left.pop_front() {
            let (what, planned) = match &way {
                Way::Own => ("the plan's own repository".to_owned(), from_own(app, args, requested)),
                Way::Copy(copy) => (format!("the copy {}", copy.name()), from_copy(app, args, requested, copy, &self.own, &self.why)),
            };
            match planned {
                Ok((job, mut plan)) => {
                    self.told.iter().for_each(|told| plan.tell(told.clone()));
                    return Ok((job, plan));
                }
                Err(error) if error.kind() == Kind::Interrupted => return Err(error),
                Err(error) => note(&format!("warning: {what} cannot be used either: {}", explain(&error))),
            }
        }
        let why = std::mem::replace(&mut self.why, Error::new(Kind::Bug, "every way was tried twice"));
        Err(self.of_copy.take().unwrap_or(why))
    }
}

/// Plans it from the plan's own repository, or from a copy where that cannot be used, or has newer snapshots that were meant. Also what is left to try.
fn looked_at(app: &App, args: &RestoreArgs, requested: &Requested) -> Result<(crate::ops::Job, RestorePlan, Ways)> {
    let Requested { resolved, request, .. } = requested;
    let copies = || resolved.copies.iter().cloned().map(Way::Copy);
    match from_own(app, args, requested) {
        Ok((job, plan)) if !plan.newer_unread.is_empty() && !request.resume && !resolved.copies.is_empty() => {
            newer_from_copies(app, args, requested, job, plan)
        }
        Ok((job, plan)) => {
            let why = Error::new(Kind::Bug, "no restore from the plan's own repository has failed");
            Ok((job, plan, Ways::new(app, requested, copies(), why)))
        }
        Err(error) if fallback::may_help(error.kind()) && !resolved.copies.is_empty() => {
            let mut ways = Ways::new(app, requested, copies(), error);
            let (job, plan) = ways.next(app, args, requested)?;
            Ok((job, plan, ways))
        }
        Err(error) => Err(error),
    }
}

/// Plans it from the repository that is asked for: the plan's own one, unless another was named.
fn from_own(app: &App, args: &RestoreArgs, requested: &Requested) -> Result<(crate::ops::Job, RestorePlan)> {
    let Requested { resolved, is_own, request, lost, .. } = requested;
    let quiet = app.surroundings(Arc::new(Silent))?;
    let job = resolved.open(&quiet)?;
    let mut plan = planned(app, args, &job, request, lost.clone())?;
    resolved.repository.changed(&job.repository, &quiet).into_iter().for_each(|changed| plan.tell(changed.message));
    // A copy has ids of its own, and may keep less.
    if *is_own {
        let until = match request.choice {
            Choice::Latest | Choice::Along { wanted: Wanted::Latest | Wanted::Immediate, .. } => Some(None),
            // Else the log led to that very moment.
            Choice::At(at) | Choice::Along { wanted: Wanted::Time(at), .. } if plan.recovery.is_none() && plan.moments.is_empty() => {
                Some(Some(at))
            }
            _ => None,
        };
        match (until, backups(app, &resolved.plan)) {
            (None, _) => {}
            (Some(until), Ok(backups)) => plan.lacks_newer(&gone(&job, &plan, &backups, until)?),
            (Some(_), Err(error)) => {
                plan.tell(format!("whether later backups are gone is not known, the journal cannot be read: {}", explain(&error)));
            }
        }
    }
    Ok((job, plan))
}

/// Plans it from one copy. `why`: not from the plan's own repository.
fn from_copy(
    app: &App,
    args: &RestoreArgs,
    requested: &Requested,
    copy: &CopyPlace,
    own: &Own,
    why: &Error,
) -> Result<(crate::ops::Job, RestorePlan)> {
    let quiet = app.surroundings(Arc::new(Silent))?;
    let settings = copy.settings()?;
    let job = requested.resolved.with(settings.clone()).open(&quiet)?;
    let args = &RestoreArgs { repository: Some(copy.name().to_string()), ..args.clone() };
    let mut plan = planned(app, args, &job, &requested.request, None)?;
    let mut fallback = Fallback::new(&job, copy.name().as_str(), why);
    fallback.older = fallback::older(&plan, &requested.request.choice, own);
    settings.changed(&job.repository, &quiet).into_iter().for_each(|changed| plan.tell(changed.message));
    plan.fell_back(fallback);
    Ok((job, plan))
}

/// Plans it from the copy that leads to the newest moment, where one leads further than the plan's own repository, which lacks snapshots that were meant. What
/// that one gives (`of_own`) is tried behind all copies that lead further, and told of as older than what is asked for.
fn newer_from_copies(
    app: &App,
    args: &RestoreArgs,
    requested: &Requested,
    job: crate::ops::Job,
    mut of_own: RestorePlan,
) -> Result<(crate::ops::Job, RestorePlan, Ways)> {
    let lacking = &of_own.newer_unread;
    let what = lacking.last().map_or_else(String::new, |last| format!("it cannot give snapshot {last}, only "));
    let error = Error::new(Kind::NoRecoveryPoint, format!("{what}{} of {}", of_own.snapshot, select::moment(of_own.at)));
    let mut ways = Ways::new(app, requested, [], error);
    let mut own = ways.own.clone();
    own.backups.extend(lacking);
    // Through the log it may be of a later moment than a snapshot that is missing.
    let by_log = of_own.recovery.is_some() || !of_own.moments.is_empty();
    let (mut newer, mut others) = (Vec::new(), Vec::new());
    for copy in &requested.resolved.copies {
        match from_copy(app, args, requested, copy, &own, &ways.why) {
            Ok((job, plan)) if plan.at > of_own.at || (!by_log && lacking.contains(&fallback::original(&plan.manifest))) => {
                newer.push((copy.clone(), job, plan));
            }
            Ok(_) => others.push(copy.clone()),
            Err(error) if error.kind() == Kind::Interrupted => return Err(error),
            Err(other) => {
                note(&format!("warning: the copy {} cannot be used: {}", copy.name(), explain(&other)));
                others.push(copy.clone());
            }
        }
    }
    // Of several that lead as far the first in the plan.
    newer.sort_by_key(|(_, _, plan)| std::cmp::Reverse(plan.at));
    let mut newer = newer.into_iter();
    let best = newer.next();
    ways.left.extend(newer.map(|(copy, ..)| Way::Copy(copy)));
    ways.left.extend(best.is_some().then_some(Way::Own));
    ways.left.extend(others.into_iter().map(Way::Copy));
    if let Some((_, job, plan)) = best {
        ways.own = own;
        return Ok((job, plan, ways));
    }
    let names: Vec<&str> = requested.resolved.copies.iter().map(|copy| copy.name().as_str()).collect();
    of_own.tell(format!("no copy has anything newer either ({})", names.join(", ")));
    Ok((job, of_own, ways))
}

/// Those of `committed` that are newer than all that the repository has of the plan and were begun before `until`, sorted. Nobody removes the newest one on purpose,
/// but who accepts that it is lost.
fn gone(job: &crate::ops::Job, plan: &RestorePlan, committed: &[SnapshotId], until: Option<DateTime<Utc>>) -> Result<Vec<SnapshotId>> {
    let before = |id: &SnapshotId| until.is_none_or(|until| id.generated().is_some_and(|begun| begun <= until));
    let mut newer: Vec<SnapshotId> = committed.iter().copied().filter(|id| *id > plan.manifest.id && before(id)).collect();
    if newer.is_empty() {
        return Ok(newer);
    }
    // One that cannot be read is there, and told of as such.
    let (manifests, lost) = job.repository.sound_manifests(Some(&job.plan))?;
    let newest = manifests.iter().map(|manifest| manifest.id).chain(lost.iter().filter_map(|lost| lost.id)).max();
    newer.retain(|id| newest.is_none_or(|newest| *id > newest));
    if !newer.is_empty() {
        let ledger = job.repository.ledger_or_none()?;
        newer.retain(|id| !ledger.is_removed(*id));
    }
    newer.sort_unstable();
    Ok(newer)
}

/// What backups told the journal of.
fn backups(app: &App, plan: &Name) -> Result<Vec<SnapshotId>> {
    let filter = Filter { plan: Some(plan.clone()), job: Some(JobKind::Backup), limit: 1000, ..Filter::default() };
    let Some(journal) = app.journal_to_read()? else { return Ok(Vec::new()) };
    Ok(journal.runs(&filter)?.into_iter().filter_map(|run| run.snapshot?.parse().ok()).collect())
}

/// Says what will be done, asks, and does it.
fn carried_out(app: &App, args: &RestoreArgs, zone: Tz, name: &Name, job: crate::ops::Job, plan: &RestorePlan) -> Result<RestoreReport> {
    if app.global.quiet {
        // Not what the operator may take for granted: an older snapshot, something that is not in it.
        for warning in &plan.warnings {
            note(&format!("warning: {warning}"));
        }
    } else {
        note(&plan_text(plan, zone));
    }
    let confirmed = confirm(app, args, plan)?;
    let surroundings = app.surroundings(app.progress("restore"))?;
    let report = app.manual(name, JobKind::Restore, &surroundings, |surroundings| {
        let job = crate::ops::Job { progress: Arc::clone(&surroundings.progress), ..job };
        restore::apply(&job, plan, confirmed.as_deref())
    });
    report.map_err(|error| kept(error, args))
}

/// `lost`: what could not be read on the way here.
fn planned(app: &App, args: &RestoreArgs, job: &crate::ops::Job, request: &RestoreRequest, lost: Option<String>) -> Result<RestorePlan> {
    let mut plan = restore::plan(job, request)?;
    if args.delta {
        plan.reuse_target()?;
    }
    if args.standby {
        let source = plan.sources.first().map_or("", |source| source.name.as_str());
        let standby = standby(app, args, &plan.plan, source, Path::new(&plan.target))?;
        plan.stand_by(job, standby)?;
    }
    if !args.tablespace_mapping.is_empty() {
        plan.map_tablespaces(args.tablespace_mapping.iter().map(|text| tablespace_mapping(text)).collect::<Result<_>>()?)?;
    }
    lost.into_iter().for_each(|warning| plan.tell(warning));
    Ok(plan)
}

/// Reads `OLDDIR=NEWDIR`; as with `pg_basebackup`, an equals sign that belongs to a path is written `\=`.
fn tablespace_mapping(text: &str) -> Result<TablespaceMapping> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' if letters.peek() == Some(&'=') => parts.last_mut().into_iter().for_each(|part| part.extend(letters.next())),
            '=' => parts.push(String::new()),
            letter => parts.last_mut().into_iter().for_each(|part| part.push(letter)),
        }
    }
    match parts.as_slice() {
        [from, to] if !from.is_empty() && !to.is_empty() => Ok(TablespaceMapping { from: from.clone(), to: PathBuf::from(to) }),
        _ => Err(Error::new(Kind::Usage, format!("--tablespace-mapping {text}: not OLDDIR=NEWDIR"))
            .hint("an equals sign that belongs to a path is written \\=")),
    }
}

/// How a server restored to `target` gets the log. Its state is a folder of its own in there: whoever runs the server owns it, and no other
/// recovery uses it.
fn standby(app: &App, args: &RestoreArgs, plan: &str, source: &str, target: &Path) -> Result<Standby> {
    if let Some(primary) = &args.primary {
        check_primary(primary)?;
    }
    args.slot.as_deref().map_or(Ok(()), check_slot)?;
    let absolute = |path: &Path| std::path::absolute(path).io_context(|| format!("find the folder {}", path.display()));
    let program = std::env::current_exe().io_context(|| "find this program".into())?;
    let mut words = vec![program];
    for folder in app.plan_folders()? {
        words.extend(["--plans".into(), absolute(&folder)?]);
    }
    words.extend(["--state".into(), target.join(STANDBY_STATE)]);
    words.extend(["log", "fetch", plan, "--source", source].map(PathBuf::from));
    if let Some(repository) = &args.repository {
        words.extend(["--repository", repository.as_str()].map(PathBuf::from));
    }
    let mut command = String::new();
    for word in &words {
        let text = word.to_str().filter(|text| !text.contains(['\n', '\r'])).ok_or_else(|| {
            Error::new(Kind::Usage, format!("write restore_command: {} cannot be written into the settings of a server", word.display()))
                .hint("restore to, and keep plans and program in, folders with plain names")
        })?;
        // The server knows %f and %p, and %% is a percent sign.
        command.push_str(&shell_word(Path::new(text)).replace('%', "%%"));
        command.push(' ');
    }
    command.push_str("%f %p");
    Ok(Standby { restore_command: command, primary: args.primary.clone(), slot: args.slot.clone() })
}

fn kept(error: Error, args: &RestoreArgs) -> Error {
    if error.kind() == Kind::Interrupted && error.hint_text().is_none() {
        error.hint(format!(
            "the target is untouched; what was restored so far is kept beside it: run the same command with --resume (--to {})",
            shell_word(&args.to)
        ))
    } else {
        error
    }
}

/// The plan to restore by, whether that is from its own repository, the zone for its times, and a warning where manifests could not be read.
fn resolve_from(app: &App, args: &RestoreArgs) -> Result<(Resolved, bool, Tz, Option<String>)> {
    let Some(url) = &args.from else {
        let name = args.plan.as_deref().ok_or_else(|| Error::new(Kind::Usage, "restore: no plan was named"))?;
        let plan = app.sound_plan(name)?;
        let resolved = resolve::to_restore(&plan)?;
        let resolved = match &args.repository {
            Some(name) => resolved.with(resolve::repository_of(&plan, name)?),
            None => resolved,
        };
        let is_own = args.repository.as_deref().is_none_or(|named| named == plan.repository.name.as_str());
        return Ok((resolved, is_own, plan.zone(), None));
    };
    let passphrase = std::env::var("LIFEBOAT_PASSPHRASE").ok().filter(|text| !text.is_empty()).ok_or_else(|| {
        Error::new(Kind::Usage, "restore by URL: the environment variable LIFEBOAT_PASSPHRASE is not set")
            .hint("set it to the repository's passphrase or recovery key for this command")
    })?;
    let settings = RepositorySettings::at(url, Passphrase::new(passphrase))?;
    let repository = settings.open(&app.surroundings(Arc::new(Silent))?)?;
    // Damage to any plan's manifest must not stand before the restore of another.
    let (manifests, damaged) = repository.sound_manifests(None)?;
    let lost = damaged_warning(&damaged);
    let inside: BTreeSet<Name> = manifests.into_iter().map(|manifest| manifest.plan).collect();
    let list = inside.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
    let hint = if inside.is_empty() { "the repository holds no snapshot".to_owned() } else { format!("plans in this repository: {list}") };
    let hint = lost.iter().fold(hint, |hint, lost| format!("{hint}; {lost}"));
    let Some(name) = &args.plan else {
        return Err(Error::new(Kind::Usage, "restore by URL: no plan was named").hint(hint));
    };
    let plan = inside.into_iter().find(|plan| plan.as_str() == name).ok_or_else(|| {
        Error::new(Kind::NoRecoveryPoint, format!("restore {name}: the repository holds no snapshot of that plan")).hint(hint)
    })?;
    Ok((Resolved::bare(plan, settings), false, Tz::UTC, lost))
}

fn choice(args: &RestoreArgs, zone: Tz) -> Result<Choice> {
    let point = &args.point;
    let timeline = args.timeline;
    let wanted = if let Some(lsn) = &point.lsn {
        Some(Wanted::Lsn(lsn.parse()?))
    } else if let Some(name) = &point.restore_point {
        Some(Wanted::RestorePoint(name.clone()))
    } else if let (Some(at), Some(_)) = (&point.at, timeline) {
        Some(Wanted::Time(time::parse(at, zone)?))
    } else if point.immediate {
        Some(Wanted::Immediate)
    } else {
        point.xid.map(Wanted::Xid).or_else(|| timeline.map(|_| Wanted::Latest))
    };
    Ok(if let Some(wanted) = wanted {
        Choice::Along { wanted, timeline }
    } else if let Some(at) = &point.at {
        Choice::At(time::parse(at, zone)?)
    } else if let Some(id) = &point.snapshot {
        Choice::Snapshot(id.clone())
    } else if point.latest_proven {
        Choice::LatestProven
    } else {
        Choice::Latest
    })
}

/// What confirms this restore. Overwriting needs the target's name, typed or passed; a new target at most a yes.
fn confirm(app: &App, args: &RestoreArgs, plan: &RestorePlan) -> Result<Option<String>> {
    let Some(name) = &plan.confirmation else {
        if args.yes || !can_ask() || app.output.is_json() {
            return Ok(None);
        }
        return if ["y", "yes"].contains(&ask("restore? [y/N]")?.to_ascii_lowercase().as_str()) { Ok(None) } else { Err(declined()) };
    };
    let flag = format!("--overwrite {}", shell_word(Path::new(name)));
    let given = match &args.overwrite {
        Some(given) => given.clone(),
        None if can_ask() && !app.output.is_json() => {
            let fate = if plan.delta {
                "change what is there into the snapshot (it is NOT kept)"
            } else {
                "replace what is there (it is moved aside, not deleted)"
            };
            ask(&format!("type {name} to {fate}:"))?
        }
        None => {
            let fate = if plan.delta { "what is there is changed and not kept" } else { "what is there is moved aside, not deleted" };
            return Err(Error::new(Kind::Usage, format!("restore to {}: something is there already", plan.target))
                .hint(format!("confirm it by name with {flag}: {fate}; --yes is not enough for that")));
        }
    };
    if given == *name {
        Ok(Some(given))
    } else if args.overwrite.is_some() {
        Err(Error::new(Kind::Usage, format!("restore to {}: the confirmation {given:?} is not the target's name", plan.target))
            .hint(format!("the exact flag is {flag}")))
    } else {
        Err(declined())
    }
}

fn declined() -> Error {
    Error::new(Kind::Usage, "restore was not confirmed: nothing was touched")
}

fn plan_text(plan: &RestorePlan, zone: Tz) -> String {
    let mut pairs =
        vec![("restore", format!("snapshot {} of plan {}", plan.snapshot, plan.plan)), ("content of", render::time_in_both(plan.at, zone))];
    if let Some(recovery) = &plan.recovery {
        pairs.push(("through the log", log_text(recovery)));
    }
    for one in &plan.moments {
        let log = one.recovery.as_ref().map_or_else(|| "nothing is replayed".to_owned(), log_text);
        pairs.push(("moment", format!("{}: {}: {log}", one.source, render::time_in_both(one.at, zone))));
    }
    for source in &plan.sources {
        pairs.push((
            "source",
            format!("{} ({}): {}, {} entries, to {}", source.name, source.kind, render::bytes(source.bytes), source.entries, source.target),
        ));
    }
    if !plan.sources_left_out.is_empty() {
        pairs.push(("left out", format!("source {}", plan.sources_left_out.join(", "))));
    }
    pairs.push(("target", plan.target.clone()));
    pairs.push(("size", render::bytes(plan.bytes)));
    pairs.push(("will take", format!("about {} ({})", render::duration_ms(plan.estimate.duration_ms), plan.estimate.basis)));
    if !plan.only.is_empty() {
        pairs.push(("only", plan.only.join(", ")));
    }
    if plan.resumes {
        let before = if plan.failed_before.is_some() {
            "a restore to this target that FAILED, see the warning"
        } else {
            "an interrupted restore to this target"
        };
        pairs.push(("continues", before.to_owned()));
    }
    if plan.overwrites.is_empty() {
        pairs.push(("overwrites", "nothing".to_owned()));
    }
    for existing in &plan.overwrites {
        let fate =
            if plan.delta { "CHANGED into the snapshot: nothing of it is kept".into() } else { format!("moved to {}", existing.moved_to) };
        pairs.push(("OVERWRITES", format!("{} ({}), {fate}", existing.path, existing.what)));
    }
    pairs.extend(plan.steps.iter().enumerate().map(|(at, step)| (if at == 0 { "does" } else { "then" }, step.clone())));
    let mut text = render::pairs(&pairs);
    for missing in &plan.missing {
        let _ = writeln!(text, "missing in the snapshot: {}: {}: {}", missing.source, missing.object, missing.message);
    }
    for warning in &plan.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

fn log_text(recovery: &LogRecovery) -> String {
    let (from, to) = (recovery.from, recovery.to);
    if recovery.bytes == 0 {
        return format!("none is needed, to {}", recovery.target);
    }
    format!("from {from} to {to} on timeline {} ({} of log), to {}", recovery.along, render::bytes(recovery.bytes), recovery.target)
}

pub(super) fn text(report: &RestoreReport) -> String {
    let mut text = render::pairs(&[
        ("restored", format!("snapshot {} of plan {}", report.snapshot, report.plan)),
        ("content of", render::time(report.at)),
        ("to", report.target.clone()),
        ("size", format!("{} in {} entries", render::bytes(report.bytes_restored), report.entries_restored)),
        ("took", render::duration_ms(report.duration_ms)),
    ]);
    if let Some(recovery) = &report.recovery {
        let replayed = if report.tables.is_empty() { "when its server is started it replays the log" } else { "recovered through the log" };
        let _ = writeln!(text, "{replayed}: {}", log_text(recovery));
    }
    for one in &report.moments {
        let log = one.recovery.as_ref().map_or_else(
            || "its snapshot's content".to_owned(),
            |log| format!("when its server is started it replays the log: {}", log_text(log)),
        );
        let _ = writeln!(text, "{} is as of {}: {log}", one.source, render::time(one.at));
    }
    if report.bytes_resumed > 0 {
        let _ = writeln!(
            text,
            "{} were there already, {} were fetched",
            render::bytes(report.bytes_resumed),
            render::bytes(report.bytes_fetched)
        );
    }
    for moved in &report.moved_aside {
        let _ = writeln!(text, "moved aside: {} is now {}", moved.path, moved.moved_to);
    }
    if !report.sources_left_out.is_empty() {
        let _ = writeln!(text, "left out, as asked: source {}", report.sources_left_out.join(", "));
    }
    for table in &report.tables {
        let _ = writeln!(text, "table {}: {} rows", table.table, table.rows);
    }
    for missing in &report.missing {
        let _ = writeln!(text, "missing: {}: {}: {} ({})", missing.source, missing.object, missing.message, missing.kind);
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    for note in &report.notes {
        let _ = writeln!(text, "note: {note}");
    }
    if !report.missing.is_empty() {
        text.push_str("INCOMPLETE: what is missing above was not in the snapshot\n");
    }
    if let Some(fallback) = &report.fallback {
        let _ = writeln!(text, "{}", fallback.sentence());
    }
    if let Some(hole) = &report.log_hole {
        let _ = writeln!(text, "INCOMPLETE: {hole}");
    }
    if report.lost > 0 {
        let _ = writeln!(text, "INCOMPLETE: {} owners or attributes could not be restored here, see the warnings", report.lost);
    }
    text
}
