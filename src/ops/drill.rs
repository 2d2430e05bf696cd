//! Drill: a restore into a private folder by the very code of an incident restore, then proof, verdict, report and clean-up.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Kind, Result};
use crate::event::{Cancel, Event};
use crate::id::{Name, ReportId, SnapshotId};
use crate::ops::document::Stopwatch;
use crate::ops::log::canary::{self, CanaryStatus};
use crate::ops::log::replay::{self, LogRecovery};
use crate::ops::restore::{self, Part, Restored, Taker};
use crate::ops::select::{self, Choice, Wanted};
use crate::ops::transfer::{Compared, Metadata, Transfer};
use crate::ops::verdict::{Facts, duration_text, judge, millis, objectives};
use crate::ops::work::{Kept, RunFolder, exists, keep, let_through, make_private};
use crate::ops::{
    Canary, CheckRecord, Job, Missing, Objective, Phase, PlannedCheck, Snapshots, Verdict, backup, condemn, context_of, damage,
    damaged_reports_warning, damaged_warning, explain, resolve, unless_removed,
};
use crate::repo::{Manifest, ReportKind, ReportRecord, Repository};
use crate::source::postgres::prove::COLLATIONS;
use crate::source::{CheckResult, Expectation, LOAD, Outcome, ProveRequest, REPLAY, SqlCheck};

/// What is asked for beyond the plan's drill settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DrillRequest {
    /// `None`: as the plan says (latest, or random with a fresh seed).
    pub choice: Option<Choice>,
    /// Keep the restored target this long, whatever the verdict.
    pub keep_target: Option<Duration>,
}

/// What became of the private target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleanup {
    /// The folder was looked for after removal and is gone.
    pub removed: bool,
    /// Where it is kept, and until when.
    pub kept: Option<String>,
    pub kept_until: Option<DateTime<Utc>>,
    pub message: String,
}

/// Why a recovery did not work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The error kind's word.
    pub kind: String,
    pub message: String,
}

/// `lifeboat.drill/1`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrillReport {
    pub schema: String,
    pub id: ReportId,
    pub plan: String,
    pub host: String,
    pub snapshot: SnapshotId,
    /// The moment that the snapshot is of.
    pub snapshot_time: DateTime<Utc>,
    /// What was replayed on top of the snapshot; its bytes are not among `bytes_restored`. `None`: it was recovered to its own moment.
    #[serde(default)]
    pub recovery: Option<LogRecovery>,
    /// The later snapshot whose content the log had to lead to: tables are compared with its fingerprints. `None`: with those of the drilled
    /// one, or, at another moment, with none.
    #[serde(default)]
    pub compared_with: Option<SnapshotId>,
    /// Start of the drill − `snapshot_time`.
    pub snapshot_age_ms: u64,
    /// When the drill began.
    pub time: DateTime<Utc>,
    pub verdict: Verdict,
    /// Why it is not `passed`; sentences.
    pub reasons: Vec<String>,
    /// What made the recovery itself fail.
    pub failure: Option<Failure>,
    /// From the choice of the snapshot until the content was usable, without checks and clean-up: a server answers at its target, a dump is loaded.
    /// `None`: never usable.
    pub recovery_time_ms: Option<u64>,
    /// What a disaster at the start of this drill would have lost: start of the drill − time of the newest snapshot. `None`: that
    /// moment has not been yet, a clock is wrong. The drilled snapshot may be an older one on purpose (`snapshot_age_ms`): then this supposes that the newest can be
    /// restored like it.
    pub data_loss_ms: Option<u64>,
    /// The same, measured by the canary row that came back with the end of the log. `None`: not measured, which is among `skipped` where it was meant.
    #[serde(default)]
    pub data_loss_measured_ms: Option<u64>,
    pub duration_ms: u64,
    pub bytes_restored: u64,
    pub entries_restored: u64,
    pub phases: Vec<Phase>,
    pub checks: Vec<CheckRecord>,
    pub objectives: Vec<Objective>,
    /// What was asked for and could not be checked; sentences.
    pub skipped: Vec<String>,
    /// What the backup itself could not read.
    pub missing: Vec<Missing>,
    pub warnings: Vec<String>,
    pub cleanup: Cleanup,
    /// The seed of a random choice of the snapshot or of what is compared, to repeat it.
    pub seed: Option<u64>,
    /// The exit kind's word (`damaged`, `differs`, `objective-missed`, …); `None` when the exit is 0.
    pub exit: Option<String>,
    /// Version of the program that drilled.
    pub program: String,
    /// What a command of the plan said when it failed: for the terminal of whoever started the drill, in no document.
    #[serde(skip)]
    pub said: Option<String>,
}

impl DrillReport {
    /// How the process should end: `None` is exit 0.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        self.exit.as_deref().map(kind_of)
    }

    /// The recovery time, where all that a recovery of sources of these kinds costs is in it. Where what a server does before it can be used is no
    /// phase of the report, as in old ones, it was left out: that measures nothing.
    #[must_use]
    pub fn measured_ms<'a>(&self, mut kinds: impl Iterator<Item = &'a str>) -> Option<u64> {
        let is_whole = self.phases.iter().any(|phase| [REPLAY, LOAD].contains(&phase.name.as_str()));
        let unfinished = |kind| resolve::bare_source(kind).is_ok_and(|source| source.unfinished().is_some());
        self.recovery_time_ms.filter(|_| is_whole || !kinds.any(unfinished))
    }

    /// All that was brought: the content, and the log that was replayed on top of it.
    #[must_use]
    pub fn bytes_brought(&self) -> u64 {
        self.bytes_restored.saturating_add(self.recovery.as_ref().map_or(0, |recovery| recovery.bytes))
    }
}

/// Every kind that a drill can end with.
const ALL_KINDS: [Kind; 12] = [
    Kind::Failed,
    Kind::Unavailable,
    Kind::NoSpace,
    Kind::Usage,
    Kind::Incomplete,
    Kind::NotFound,
    Kind::WrongKey,
    Kind::NoRecoveryPoint,
    Kind::Damaged,
    Kind::Differs,
    Kind::ObjectiveMissed,
    Kind::Bug,
];

/// Clean-up is waited for until the plan's time limit, but at least so long: a drill that was stopped at its limit must not leave data behind.
const CLEANUP_GRACE: Duration = Duration::from_mins(1);

/// One drill now. A drill that fails is a result (stored in the repository like one that passes), not an error. A report that could not be
/// stored makes the drill incomplete: nothing would remember the proof.
///
/// # Errors
/// `NoRecoveryPoint` without a snapshot, `WrongKey` without the reader role, `Interrupted` (cleaned up, no report).
pub fn run(job: &Job, request: &DrillRequest) -> Result<DrillReport> {
    job.repository.require_reader("drill")?;
    let time = job.clock.now();
    let id = job.repository.new_report_id(time)?;
    let folder = RunFolder::create(&job.work, time)?;
    let mut watch = Stopwatch::start();
    let began = Instant::now();

    watch.phase("select");
    job.progress.event(Event::Phase { name: "select", detail: job.plan.to_string() });
    let selected = select_snapshot(job, request, time)?;

    let limit = Limit::start(&job.cancel, began, job.drill.time_limit);
    let limited = Job { cancel: limit.cancel.clone(), ..job.clone() };
    let mut attempt = attempt(&limited, &selected, &folder, &mut watch);
    attempt.warnings.extend(condemn(job));
    let timed_out = limit.stop();
    job.cancel.check()?;

    watch.phase("cleanup");
    job.progress.event(Event::Phase { name: "cleanup", detail: job.plan.to_string() });
    let mut report = account(job, id, time, selected, attempt, timed_out);
    judge_into(&mut report, None);
    let patience = job.drill.time_limit.map(|limit| limit.saturating_sub(began.elapsed()).max(CLEANUP_GRACE));
    report.cleanup = clean_up(job, request, &report, folder, patience);
    let leftover = (!report.cleanup.removed).then(|| report.cleanup.message.clone());
    (report.phases, report.duration_ms) = watch.stop();
    report.warnings.extend(job.drill.time_limit.filter(|limit| !timed_out && report.duration_ms > millis(*limit)).map(|limit| {
        let (took, limit) = (duration_text(report.duration_ms), duration_text(millis(limit)));
        format!("with its clean-up the drill took {took}, the plan's time limit is {limit}")
    }));
    judge_into(&mut report, leftover);

    if let Err(error) = store(job, &report) {
        judge_into(&mut report, Some(format!("this report could not be stored in the repository: {}", explain(&error))));
    }
    Ok(report)
}

/// All the log there is.
pub const END: Choice = Choice::Along { wanted: Wanted::Latest, timeline: None };
/// The question after a canary row, among the checks.
const CANARY: &str = "lifeboat canary row";

/// The snapshot that is drilled.
struct Selected {
    manifest: Manifest,
    /// What is replayed on top of it. `None`: the snapshot's own moment.
    recovery: Option<LogRecovery>,
    /// The later snapshot whose own moment that is: its fingerprints are compared.
    compared: Option<Manifest>,
    /// What is replayed is all the log there is.
    to_the_end: bool,
    /// And there is log behind it that it does not come to.
    hole: Option<String>,
    /// What to know about the choice.
    told: Vec<String>,
    /// Of the newest snapshot there is.
    newest: DateTime<Utc>,
    reports: Vec<ReportRecord>,
    seed: Option<u64>,
    /// Some snapshots could not be looked at: perhaps the one that was meant.
    damaged: Option<String>,
    /// Some reports could not be, or newer snapshots restore nothing any more.
    warning: Vec<String>,
}

fn select_snapshot(job: &Job, request: &DrillRequest, now: DateTime<Utc>) -> Result<Selected> {
    let mut choice = match (&request.choice, job.drill.random) {
        (Some(choice), _) => choice.clone(),
        (None, true) => Choice::Random { seed: fresh_seed()?, window: job.drill.window },
        (None, false) => Choice::Latest,
    };
    let mut snapshots = job.snapshots()?;
    if !matches!(choice, Choice::Snapshot(_)) {
        snapshots.require_any(&job.repository)?;
    }
    let (reports, warning) = match job.repository.sound_reports(None) {
        Ok((reports, damaged)) => (reports, damaged_reports_warning(&damaged)),
        Err(error) => (Vec::new(), Some(format!("earlier reports could not be read: {}", explain(&error)))),
    };
    let turn = Turn::after(job, &reports);
    let drawn = if let Choice::Random { seed, .. } = choice { Some(seed) } else { None };
    if drawn.is_some() {
        without_accepted(job, &mut snapshots, &reports, now)?;
    }
    // Whose log a moment was drawn from.
    let mut drawn_from = Vec::new();
    // By hand always; on schedule when the content of snapshots was proven before, which no random moment can do.
    if (request.choice.is_some() || turn == Turn::Moment)
        && let Some((source, moment)) = moment_of(job, &snapshots.all, &choice, &reports, now)?
    {
        (choice, drawn_from) = (Choice::At(moment), vec![source.to_string()]);
    }
    // The same turn of the latest, where a row tells what its end has of the source.
    if choice == Choice::Latest && turn == Turn::Moment && !job.drill.canaries.is_empty() {
        choice = END;
    }
    let mut through = None;
    // The latest and a random snapshot: what they hold is compared with their fingerprints.
    if matches!(choice, Choice::Latest | Choice::Random { .. }) && turn != Turn::Files {
        let chosen = snapshots.choose(&job.repository, &reports, &choice, now)?;
        through = replay::towards(job, &snapshots.all, &reports, &chosen)?.map(|found| (found, chosen));
        // With one snapshot alone there is no log between two.
        if through.is_none()
            && let Some((source, moment)) = moment_of(job, &snapshots.all, &choice, &reports, now)?
        {
            (choice, drawn_from) = (Choice::At(moment), vec![source.to_string()]);
        }
        if through.is_none() && choice == Choice::Latest && !job.drill.canaries.is_empty() {
            choice = END;
        }
    }
    let located = if matches!(choice, Choice::At(_) | Choice::Along { .. }) {
        replay::locate(job, &mut snapshots, &choice, &drawn_from, &reports)?
    } else {
        None
    };
    let to_the_end = choice == END && located.as_ref().is_some_and(|found| found.recovery.is_some());
    let (hole, told) = located.as_ref().map(|found| (found.hole.clone(), found.told.clone())).unwrap_or_default();
    if choice == END && located.is_none() {
        choice = Choice::Latest;
    }
    let (manifest, recovery, compared) = match (through, located) {
        (Some(((older, recovery), compared)), _) => (older, Some(recovery), Some(compared)),
        (None, Some(found)) => (found.manifest, found.recovery, None),
        (None, None) => (snapshots.choose(&job.repository, &reports, &choice, now)?, None, None),
    };
    let newest = newest_moment(job, &mut snapshots, &reports).unwrap_or(manifest.time);
    let seed = match drawn {
        Some(seed) => Some(seed),
        // Another sample each time, so that everything has its turn.
        _ if (1..100).contains(&job.drill.compare_percent) => Some(fresh_seed()?),
        _ => None,
    };
    let damaged = damaged_warning(&snapshots.lost);
    let newer = snapshots.destroyed.iter().filter(|gone| gone.time > newest).max_by_key(|gone| (gone.time, gone.id));
    let destroyed =
        newer.map(|gone| format!("snapshot {} is newer, and nobody can restore it: its key was destroyed", select::describe(gone)));
    let warning = warning.into_iter().chain(destroyed).collect();
    Ok(Selected { manifest, recovery, compared, to_the_end, hole, told, newest, reports, seed, damaged, warning })
}

/// What is known to be lost, and accepted, need not be found out again by chance.
fn without_accepted(job: &Job, snapshots: &mut Snapshots, reports: &[ReportRecord], now: DateTime<Utc>) -> Result<()> {
    let standing = damage::standing(reports, None, now);
    if standing.is_empty() {
        return Ok(());
    }
    let ledger = job.repository.ledger_or_none()?;
    let known = |id| damage::of_snapshot(reports, &standing, id, now);
    let is_accepted =
        |manifest: &Manifest| known(manifest.id).is_some_and(|known| damage::accepted(&known, manifest.id, &standing, &ledger).is_some());
    if !snapshots.all.iter().all(is_accepted) {
        snapshots.all.retain(|manifest| !is_accepted(manifest));
    }
    Ok(())
}

/// A random moment of the log where a random choice is asked for and there is a log.
fn moment_of(
    job: &Job,
    all: &[Manifest],
    choice: &Choice,
    reports: &[ReportRecord],
    now: DateTime<Utc>,
) -> Result<Option<(Name, DateTime<Utc>)>> {
    let Choice::Random { seed, window } = choice else { return Ok(None) };
    let window = window.and_then(|window| chrono::Duration::from_std(window).ok());
    replay::random_moment(job, all, reports, *seed, window.and_then(|window| now.checked_sub_signed(window)))
}

/// What a disaster now would leave: the end of the log where there is one, else the newest snapshot. `None`: nothing.
fn newest_moment(job: &Job, snapshots: &mut Snapshots, reports: &[ReportRecord]) -> Option<DateTime<Utc>> {
    let end = match replay::locate(job, snapshots, &Choice::Latest, &[], reports) {
        Ok(found) => found.and_then(|found| found.recovery).map(|recovery| recovery.at),
        Err(error) => {
            tracing::warn!(error = ?error, "the end of the log is not known; data loss is measured by the newest snapshot");
            None
        }
    };
    end.max(select::latest(&snapshots.all).map(|manifest| manifest.time))
}

/// What a drill proves that is free to choose, each in its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The files of a snapshot.
    Files,
    /// The log between two snapshots.
    Log,
    /// A random moment of the log, where moments are chosen at random; else the log between two snapshots.
    Moment,
}

impl Turn {
    /// With no drill before, the files come first.
    fn after(job: &Job, reports: &[ReportRecord]) -> Self {
        let drills = reports.iter().filter(|report| report.kind == ReportKind::Drill && report.plan.as_deref() == Some(job.plan.as_str()));
        let mut drills: Vec<&ReportRecord> = drills.collect();
        drills.sort_by_key(|report| report.id);
        let has = |report: &ReportRecord, field: &str| report.document.get(field).is_some_and(|value| !value.is_null());
        match drills.pop() {
            Some(last) if !has(last, "recovery") => {
                let before = drills.iter().rev().find(|report| has(report, "recovery"));
                if before.is_some_and(|before| has(before, "compared_with")) { Self::Moment } else { Self::Log }
            }
            _ => Self::Files,
        }
    }
}

/// A seed for a random choice.
///
/// # Errors
/// When the operating system has no randomness.
pub fn fresh_seed() -> Result<u64> {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).map_err(|e| Error::new(Kind::Failed, "draw a random number").because(e.to_string()))?;
    // JSON numbers are exact up to 2^53.
    Ok(u64::from_le_bytes(bytes) >> 11)
}

/// What an attempt at a recovery found out, however far it came.
#[derive(Default)]
struct Attempt {
    failure: Option<Error>,
    recovery_time_ms: Option<u64>,
    bytes: u64,
    entries: u64,
    checks: Vec<CheckRecord>,
    /// When the canary row was written that came back, or why that is not known.
    canaries: Vec<(Canary, std::result::Result<DateTime<Utc>, String>)>,
    warnings: Vec<String>,
}

/// Takes the answers about canary rows out of the checks: that a row is not there is no damage.
fn read_canaries(
    job: &Job,
    selected: &Selected,
    checks: &mut Vec<CheckRecord>,
) -> Vec<(Canary, std::result::Result<DateTime<Utc>, String>)> {
    if !selected.to_the_end {
        return Vec::new();
    }
    let mut found = Vec::new();
    for canary in &job.drill.canaries {
        let is_it = |check: &CheckRecord| check.name == CANARY && check.source == canary.source.as_str();
        let record = checks.iter().position(is_it).map(|at| checks.remove(at));
        let millis = record.as_ref().filter(|record| record.outcome == Outcome::Passed).and_then(|record| record.actual.parse().ok());
        let written = millis.and_then(DateTime::from_timestamp_millis).ok_or_else(|| match record {
            _ if canary.database.is_none() => "the url of the source, which names the database of the row, cannot be read here".to_owned(),
            Some(record) => format!("the row is not in what was recovered: {}", record.actual),
            None => "the recovered server was not asked".to_owned(),
        });
        found.push((canary.clone(), written));
    }
    found
}

/// What a disaster at the start of the drill would have lost, by a canary row.
///
/// An old row alone says nothing: either what its writer wrote since is lost, or it did not run. It ran when the row is as young as the log that
/// was replayed, or when it says so itself.
fn measured_loss(
    every: Duration,
    written: DateTime<Utc>,
    end: DateTime<Utc>,
    writer: Option<&CanaryStatus>,
    time: DateTime<Utc>,
) -> std::result::Result<u64, String> {
    let slack = canary::slack(every);
    let young = written + slack >= end;
    let alive = writer.and_then(|writer| {
        let since = writer.since.filter(|since| time - *since >= slack)?;
        writer.written_at.filter(|last| writer.error.is_none() && !writer.standby && time - *last <= slack).map(|_| since)
    });
    let known = match alive {
        _ if young => written,
        // What came before it began is not known.
        Some(since) => written.max(since),
        None => {
            return Err(format!(
                "the canary row was last written at {}, and the log goes on to {}: its writer (`lifeboat serve`) did not run",
                select::moment(written),
                select::moment(end)
            ));
        }
    };
    select::age_ms(known, time)
        .ok_or_else(|| format!("the canary row is of {}, which has not been yet: a clock is wrong", select::moment(known)))
}

/// The worst of all canary rows that were looked for, and what could not be measured.
fn measure(job: &Job, selected: &Selected, attempt: &Attempt, time: DateTime<Utc>) -> (Option<u64>, Vec<String>) {
    let end = selected.recovery.as_ref().map_or(selected.newest, |recovery| recovery.at);
    let (mut worst, mut unmeasured) = (None, Vec::new());
    for (canary, written) in &attempt.canaries {
        let writer = canary::status(&job.work, &canary.source).ok().flatten();
        match written.clone().and_then(|written| measured_loss(canary.every, written, end, writer.as_ref(), time)) {
            Ok(loss) => worst = worst.max(Some(loss)),
            Err(why) => unmeasured.push(format!("data loss was not measured for source {}: {why}", canary.source)),
        }
    }
    // Half of a measurement is none.
    (worst.filter(|_| unmeasured.is_empty()), unmeasured)
}

/// Recovers and proves. Never returns early without saying why in the attempt.
fn attempt(job: &Job, selected: &Selected, folder: &RunFolder, watch: &mut Stopwatch) -> Attempt {
    let mut attempt = Attempt::default();
    let done = match recover(job, selected, folder, watch) {
        Ok(done) => done,
        Err(error) => return Attempt { failure: Some(error), ..attempt },
    };
    attempt.bytes = done.report.bytes_restored;
    attempt.entries = done.report.entries_restored;
    attempt.warnings.clone_from(&done.report.warnings);
    (attempt.checks, attempt.recovery_time_ms) = prove_all(job, &done, selected, folder, watch);
    attempt.canaries = read_canaries(job, selected, &mut attempt.checks);
    let collations = attempt.checks.iter().filter(|check| check.name == COLLATIONS && check.actual != check.expected);
    attempt.warnings.extend(collations.map(|check| format!("{}: {}: {}", check.source, check.name, check.actual)));
    attempt.checks.extend(unasked(job, &done.restored));

    watch.phase("compare");
    job.progress.event(Event::Phase { name: "compare", detail: job.plan.to_string() });
    if job.drill.compare_percent > 0 {
        // Last, so that a check which changed what it should only look at is found out too.
        let seed = selected.seed.unwrap_or_default();
        attempt.checks.extend(
            done.restored.iter().filter(|restored| restored.source.keeps_content()).flat_map(|restored| compare(job, restored, seed)),
        );
    }
    if let Err(error) = job.cancel.check() {
        attempt.failure = Some(error);
    }
    attempt
}

/// The same code path as a restore in an incident, to a private place.
fn recover(job: &Job, selected: &Selected, folder: &RunFolder, watch: &mut Stopwatch) -> Result<restore::Done> {
    let log = selected.recovery.as_ref().map_or(0, |recovery| recovery.bytes);
    let bytes: u64 = selected.manifest.sources.iter().map(|s| s.bytes).sum::<u64>() + log;
    if let Some(limit) = job.drill.disk_limit_bytes
        && bytes > limit
    {
        return Err(Error::new(
            Kind::NoSpace,
            format!("drill {}: {bytes} bytes would be restored, the plan's disk limit is {limit}", job.plan),
        )
        .hint("raise the limit in the plan's drill.limits"));
    }
    let target = target_in(folder, &job.plan);
    let plan =
        restore::plan_of(job, selected.manifest.clone(), &target, &Part::default(), None, selected.recovery.clone(), &selected.reports)?;
    watch.phase("fetch");
    restore::bring_back(job, &plan, None, Taker::Drill).map_err(|error| unless_removed(&job.repository, selected.manifest.id, error))
}

fn target_in(folder: &RunFolder, plan: &Name) -> PathBuf {
    folder.path().join(format!("restored-{plan}"))
}

/// What the sources prove, and how long the recovery took: time that passes before something can be used is the recovery's, that of checks is not.
/// `None`: something never became usable.
fn prove_all(
    job: &Job,
    done: &restore::Done,
    selected: &Selected,
    folder: &RunFolder,
    watch: &mut Stopwatch,
) -> (Vec<CheckRecord>, Option<u64>) {
    // What passes between two phases is the recovery's as well.
    let mut began_ms = watch.elapsed_ms();
    let (mut checks, mut recovery_ms) = (Vec::new(), Some(began_ms));
    let (mut fetched, mut phase) = (done.report.phases.as_slice(), "");
    let mut begin = |watch: &mut Stopwatch, name| {
        if phase != name {
            watch.split(std::mem::take(&mut fetched), name);
            job.progress.event(Event::Phase { name, detail: job.plan.to_string() });
            phase = name;
        }
    };
    let (unfinished, finished): (Vec<_>, Vec<_>) = done.restored.iter().partition(|restored| restored.source.unfinished().is_some());
    for restored in unfinished.into_iter().chain(finished) {
        let rest = restored.source.unfinished();
        begin(watch, rest.unwrap_or("check"));
        let mut usable_ms = None;
        checks.extend(prove(job, restored, selected, folder, &mut || {
            begin(watch, "check");
            usable_ms = Some(watch.elapsed_ms());
        }));
        if rest.is_some() {
            recovery_ms = recovery_ms.zip(usable_ms).map(|(before, usable)| before + (usable - began_ms));
        }
        began_ms = watch.elapsed_ms();
    }
    (checks, recovery_ms)
}

/// The source's own proof: engine checks, fingerprints, SQL.
fn prove(job: &Job, restored: &Restored, selected: &Selected, folder: &RunFolder, usable: &mut dyn FnMut()) -> Vec<CheckRecord> {
    let name = &restored.record.name;
    let later = selected.compared.as_ref().and_then(|later| later.sources.iter().find(|record| record.name == *name));
    let elsewhere = later.is_none() && selected.recovery.as_ref().is_some_and(|recovery| recovery.source == *name);
    let compare_percent = if elsewhere { 0 } else { job.drill.compare_percent };
    // Without what was recorded there is nothing to compare with, and the plan did not ask for that.
    let (fingerprints, unknown) = match backup::finish_of(later.unwrap_or(&restored.record)) {
        Ok(finish) => (finish.fingerprints, None),
        Err(error) => (Vec::new(), Some(skipped(name, "fingerprints", "what was recorded when it was backed up".into(), explain(&error)))),
    };
    let asked: Vec<&PlannedCheck> = job.drill.checks.iter().filter(|c| c.source == *name).collect();
    let canary = job.drill.canaries.iter().filter(|canary| selected.to_the_end && canary.source == *name).map(|canary| SqlCheck {
        name: CANARY.into(),
        sql: crate::source::postgres::canary::question(&canary::row(&job.plan, name)),
        expect: Expectation::not_null(),
        database: canary.database.clone(),
        timeout: Duration::from_secs(30),
    });
    let checks = asked.iter().map(|c| c.check.clone()).chain(canary).collect();
    let request = ProveRequest { fingerprints, compare_percent, checks };
    let scratch = folder.path().join(format!("prove-{name}"));
    let proved = make_private(&scratch)
        .and_then(|()| if restored.source.keeps_content() { Ok(()) } else { open_the_way(job, folder, &scratch) })
        .and_then(|()| context_of(job, scratch, selected.compared.as_ref().unwrap_or(&selected.manifest)))
        .and_then(|context| restored.source.prove(&restored.usable, &request, &context, usable));
    // PostgreSQL looks whether there was anything to have a fingerprint of.
    let unproved = restored.record.kind == "sqlite" && request.fingerprints.is_empty() && compare_percent > 0;
    let mut checks = match proved {
        Ok(results) => {
            let known: Vec<&str> = results.iter().map(|r| r.name.as_str()).collect();
            let silent: Vec<CheckRecord> = request
                .checks
                .iter()
                .filter(|c| !known.contains(&c.name.as_str()))
                .map(|c| skipped(name, &c.name, c.expect.to_string(), "the source has not answered".into()))
                .collect();
            results.into_iter().map(|r| record_of(name, r)).chain(silent).collect()
        }
        Err(error) => vec![skipped(name, "prove", "checks".into(), explain(&error))],
    };
    checks.extend(unknown);
    if unproved && checks.iter().all(|check| check.outcome == Outcome::Passed) {
        let why = "the snapshot has no fingerprints of this database";
        checks.push(skipped(name, "fingerprints", "tables as backed up".into(), why.into()));
    }
    checks
}

/// A server that must not run as root works in folders of root.
pub(in crate::ops) fn open_the_way(job: &Job, folder: &RunFolder, scratch: &Path) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let above = job.work.parent().into_iter().collect::<Vec<_>>();
    let_through(&[above.as_slice(), &[&job.work, folder.path(), scratch]].concat())
}

/// Checks of the plan whose source is not in this snapshot.
fn unasked(job: &Job, restored: &[Restored]) -> Vec<CheckRecord> {
    let there = |check: &&PlannedCheck| !restored.iter().any(|r| r.record.name == check.source);
    let checks = job.drill.checks.iter().filter(there);
    checks.map(|c| skipped(&c.source, &c.check.name, c.check.expect.to_string(), "this source is not in the snapshot".into())).collect()
}

/// Reads back from disk what was restored and compares it with what was backed up.
fn compare(job: &Job, restored: &Restored, seed: u64) -> Vec<CheckRecord> {
    let record = &restored.record;
    let transfer = Transfer { repository: &job.repository, progress: job.progress.as_ref(), cancel: &job.cancel };
    let percent = job.drill.compare_percent;
    let metadata = match record.kind.as_str() {
        "files" => Metadata::All,
        "sqlite" => Metadata::Rights,
        _ => Metadata::None,
    };
    let share = if percent < 100 { format!(" ({percent}% of the files)") } else { String::new() };
    let expected = format!("{} entries, {} bytes as backed up{share}", record.entries, record.bytes);
    let compared = transfer.compare(record, &restored.content, percent, seed, metadata);
    let rights = compared.as_ref().ok().filter(|_| metadata != Metadata::None).map(|found| compare_rights(restored, found));
    let (outcome, actual) = match compared {
        Ok(found) if found.differences == 0 => {
            (Outcome::Passed, format!("{} entries, {} bytes read in {} files and equal", found.entries, found.bytes, found.files))
        }
        Ok(found) => (Outcome::Differs, format!("{} differ: {}", found.differences, found.described.join("; "))),
        Err(error) if error.kind() == Kind::Damaged => (Outcome::Failed, explain(&error)),
        Err(error) => (Outcome::Skipped, explain(&error)),
    };
    let content = CheckRecord { source: record.name.to_string(), name: "content equal".into(), outcome, expected, actual };
    std::iter::once(content).chain(rights).collect()
}

/// What could not be restored cannot be compared either, and is not passed over: as many other owners and attributes as the restore had to
/// give up are skipped, more of them differ.
fn compare_rights(restored: &Restored, found: &Compared) -> CheckRecord {
    let (owners, attributes) = (&found.owners, &found.attributes);
    let first: Vec<&str> = [owners, attributes].into_iter().filter_map(|other| other.first.as_deref()).collect();
    let what = format!("{} owners, {} attributes are other ones: {}", owners.count, attributes.count, first.join("; "));
    let (outcome, actual) = if owners.count > restored.lost.owners || attributes.count > restored.lost.attributes {
        (Outcome::Differs, what)
    } else if restored.lost.owners + restored.lost.attributes > 0 {
        (Outcome::Skipped, format!("they could not be restored here, as this user or on this file system ({what})"))
    } else {
        (Outcome::Passed, format!("equal for {} entries", found.entries))
    };
    let expected = "owners and extended attributes as backed up".into();
    CheckRecord { source: restored.record.name.to_string(), name: "owners and attributes".into(), outcome, expected, actual }
}

fn record_of(source: &Name, result: CheckResult) -> CheckRecord {
    let CheckResult { name, outcome, expected, actual } = result;
    CheckRecord { source: source.to_string(), name, outcome, expected, actual }
}

fn skipped(source: &Name, name: &str, expected: String, why: String) -> CheckRecord {
    CheckRecord { source: source.to_string(), name: name.into(), outcome: Outcome::Skipped, expected, actual: why }
}

/// Puts the facts into a report; the verdict comes later.
fn account(job: &Job, id: ReportId, time: DateTime<Utc>, selected: Selected, attempt: Attempt, timed_out: bool) -> DrillReport {
    let age_ms = |moment: DateTime<Utc>| u64::try_from((time - moment).num_milliseconds()).unwrap_or(0);
    let data_loss_ms = select::age_ms(selected.newest, time);
    let clock = data_loss_ms.is_none().then(|| {
        let newest = select::moment(selected.newest);
        format!("data loss is not known: the newest snapshot is of {newest}, and it is {} now: a clock is wrong", select::moment(time))
    });
    // Not measured though asked for; otherwise only told.
    let (unmeasured, clock) = if job.objectives.data_loss.is_some() { (clock, None) } else { (None, clock) };
    let (measured, by_canary) = measure(job, &selected, &attempt, time);
    let worse = data_loss_ms.map(|estimated| measured.map_or(estimated, |measured| measured.max(estimated)));
    let missing = backup::missing(&selected.manifest.sources);
    let absent: Vec<String> = job
        .sources
        .iter()
        .filter(|s| selected.manifest.sources.iter().all(|record| record.name != s.name))
        .map(|s| format!("source {} of the plan is not in this snapshot and was not drilled", s.name))
        .collect();
    let said = attempt.failure.as_ref().and_then(Error::said).map(str::to_owned);
    let failure = attempt.failure.map(|error| match job.drill.time_limit {
        Some(limit) if timed_out && error.kind() == Kind::Interrupted => Failure {
            kind: Kind::Failed.word().into(),
            message: format!("stopped at the plan's time limit of {}", duration_text(millis(limit))),
        },
        _ => Failure { kind: error.kind().word().into(), message: explain(&error) },
    });
    let uncompared = selected.recovery.as_ref().filter(|_| selected.compared.is_none()).map(uncompared);
    DrillReport {
        schema: "lifeboat.drill/1".into(),
        id,
        plan: job.plan.to_string(),
        host: job.host.clone(),
        snapshot: selected.manifest.id,
        snapshot_time: selected.manifest.time,
        recovery: selected.recovery.clone(),
        compared_with: selected.compared.as_ref().map(|later| later.id),
        snapshot_age_ms: age_ms(selected.manifest.time),
        time,
        verdict: Verdict::Failed,
        reasons: Vec::new(),
        failure,
        recovery_time_ms: attempt.recovery_time_ms,
        data_loss_ms,
        data_loss_measured_ms: measured,
        duration_ms: 0,
        bytes_restored: attempt.bytes,
        entries_restored: attempt.entries,
        phases: Vec::new(),
        checks: attempt.checks,
        objectives: objectives(&job.objectives, attempt.recovery_time_ms, worse),
        skipped: missing
            .first()
            .map(|first| incomplete_backup(missing.len(), first))
            .into_iter()
            .chain(selected.damaged)
            .chain(selected.hole)
            .chain(absent)
            .chain(unmeasured)
            .chain(by_canary)
            .collect(),
        missing,
        warnings: selected.warning.into_iter().chain(selected.told).chain(uncompared).chain(clock).chain(attempt.warnings).collect(),
        cleanup: Cleanup { removed: false, kept: None, kept_until: None, message: String::new() },
        seed: selected.seed,
        exit: None,
        program: env!("CARGO_PKG_VERSION").into(),
        said,
    }
}

/// Fingerprints are of the moments of snapshots.
fn uncompared(recovery: &LogRecovery) -> String {
    format!(
        "source {} was recovered through the log to {}: every check ran there, but there are no fingerprints of that moment to compare its \
         tables with, so this proves the way there and not the content of the snapshot",
        recovery.source, recovery.target
    )
}

fn incomplete_backup(count: usize, first: &Missing) -> String {
    format!("the backup itself could not read {count} of the source (first: {}: {} {})", first.source, first.object, first.kind)
}

/// Judges what the report holds, with one more thing that could not be made sure.
fn judge_into(report: &mut DrillReport, unsure: Option<String>) {
    report.skipped.extend(unsure);
    let failure = report.failure.as_ref().map(|f| (kind_of(&f.kind), f.message.as_str()));
    let facts = Facts { failure, checks: &report.checks, objectives: &report.objectives, skipped: &report.skipped };
    let judgement = judge(&facts);
    report.verdict = judgement.verdict;
    report.exit = judgement.exit.map(|kind| kind.word().into());
    report.reasons = judgement.reasons;
}

fn kind_of(word: &str) -> Kind {
    ALL_KINDS.into_iter().find(|kind| kind.word() == word).unwrap_or(Kind::Failed)
}

/// Keeps the target where that was asked for, removes everything else, and looks whether it is gone.
fn clean_up(job: &Job, request: &DrillRequest, report: &DrillReport, folder: RunFolder, patience: Option<Duration>) -> Cleanup {
    let on_failure = job.drill.keep_on_failure.filter(|_| report.verdict == Verdict::Failed);
    let until = request.keep_target.or(on_failure).and_then(|d| chrono::Duration::from_std(d).ok()).map(|d| job.clock.now() + d);
    let target = target_in(&folder, &job.plan);
    let (kept, trouble) = match until {
        Some(until) if exists(&target).unwrap_or(false) => {
            let note = Kept { until, drill: report.id.to_string(), snapshot: report.snapshot.to_string() };
            match keep(&job.work, &target, &note) {
                Ok(place) => (Some((place.display().to_string(), until)), None),
                Err(error) => (None, Some(format!("the target could not be kept: {}; ", explain(&error)))),
            }
        }
        Some(_) => (None, Some("there was no target to keep; ".into())),
        None => (None, None),
    };
    let trouble = trouble.unwrap_or_default();
    let (removed, message) = match folder.remove_within(patience) {
        Ok(()) => match &kept {
            None => (true, format!("{trouble}the private folder was removed and is gone")),
            Some((place, until)) => {
                (true, format!("the target is kept in {place} until {}; everything else is gone", select::moment(*until)))
            }
        },
        Err(error) => (false, format!("{trouble}the private folder could not be removed: {}", explain(&error))),
    };
    let (kept, kept_until) = kept.unzip();
    Cleanup { removed, kept, kept_until, message }
}

fn store(job: &Job, report: &DrillReport) -> Result<()> {
    job.repository.put_report(&ReportRecord {
        id: report.id,
        kind: ReportKind::Drill,
        time: report.time,
        plan: Some(report.plan.clone()),
        // Through the log, a failure need not be the snapshot's fault, and without fingerprints its content is not proven.
        snapshots: match (&report.recovery, report.compared_with, report.verdict) {
            (None, _, _) | (_, Some(_), Verdict::Passed) => vec![report.snapshot],
            _ => Vec::new(),
        },
        passed: report.verdict == Verdict::Passed,
        document: serde_json::to_value(report).context(Kind::Bug, || "write the drill report".into())?,
    })
}

/// Cancels a drill at its time limit, or when the operation around it is cancelled.
struct Limit {
    cancel: Cancel,
    stop: crossbeam_channel::Sender<()>,
    thread: Option<std::thread::JoinHandle<bool>>,
}

impl Limit {
    fn start(outer: &Cancel, began: Instant, limit: Option<Duration>) -> Self {
        let cancel = Cancel::default();
        let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
        let (inner, outer) = (cancel.clone(), outer.clone());
        let deadline = limit.and_then(|limit| began.checked_add(limit));
        let watch = move || {
            // Ends when `stop` is dropped.
            while stopped.recv_timeout(Duration::from_millis(50)) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
                let over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
                if over || outer.is_cancelled() {
                    inner.cancel();
                    return over;
                }
            }
            false
        };
        Self { cancel, stop, thread: Some(std::thread::spawn(watch)) }
    }

    /// Whether the time limit was reached.
    fn stop(mut self) -> bool {
        drop(std::mem::replace(&mut self.stop, crossbeam_channel::bounded(0).0));
        self.thread.take().is_some_and(|thread| thread.join().unwrap_or(false))
    }
}

/// Past drills of one plan, or of all, oldest first, and an error for each report (of whatever kind and plan) that is damaged. Reports of
/// a later version of the document that this program cannot read are left out.
///
/// # Errors
/// When the store cannot be asked.
pub fn history(repository: &Repository, plan: Option<&Name>) -> Result<(Vec<DrillReport>, Vec<Error>)> {
    let (records, damaged) = repository.sound_reports(Some(ReportKind::Drill))?;
    let of_plan = |record: &ReportRecord| plan.is_none_or(|plan| record.plan.as_deref() == Some(plan.as_str()));
    Ok((records.into_iter().filter(of_plan).filter_map(|record| serde_json::from_value(record.document).ok()).collect(), damaged))
}

/// One past drill by id or a unique beginning of it.
///
/// # Errors
/// `NotFound`; `Damaged` when it is there and cannot be read; `Usage` when ambiguous.
pub fn find(repository: &Repository, id: &str) -> Result<DrillReport> {
    let wanted = id.to_ascii_lowercase();
    let (drills, damaged) = history(repository, None)?;
    let mut found: Vec<DrillReport> = drills.into_iter().filter(|report| report.id.to_string().starts_with(&wanted)).collect();
    match (found.pop(), found.len()) {
        (Some(report), 0) => Ok(report),
        (Some(_), _) => {
            Err(Error::new(Kind::Usage, format!("find drill report {id}: several begin with that")).hint("give more of the id"))
        }
        (None, _) => {
            if let Some(error) = damaged.into_iter().find(|error| error.to_string().contains(&format!("reports/{wanted}"))) {
                return Err(error);
            }
            Err(Error::new(Kind::NotFound, format!("find drill report {id}: there is none")).hint("`lifeboat drill history` lists them"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_canary_row_is_neither_a_loss_nor_a_success() {
        let at = |seconds: i64| DateTime::from_timestamp(1_790_000_000 + seconds, 0).unwrap();
        let writer = |since: i64, last: i64| CanaryStatus {
            time: at(last),
            written_at: Some(at(last)),
            since: Some(at(since)),
            standby: false,
            error: None,
        };
        let every = Duration::from_secs(5);
        let loss = |written, end, writer: Option<&CanaryStatus>| measured_loss(every, at(written), at(end), writer, at(1000));
        // As young as the log: what is missing since then is lost, whether the writer lives or not.
        assert_eq!(loss(998, 999, None), Ok(2_000));
        assert_eq!(loss(400, 404, None), Ok(600_000));
        assert_eq!(loss(400, 404, Some(&writer(0, 999))), Ok(600_000));
        // The log says that it is whole, and the writer has written since: that is lost.
        assert_eq!(loss(400, 999, Some(&writer(0, 999))), Ok(600_000));
        assert_eq!(loss(400, 999, Some(&writer(900, 999))), Ok(100_000), "before that it did not run");
        // It did not run, has only begun, has failed, or is not needed on a standby.
        let failed = CanaryStatus { error: Some("no".into()), ..writer(0, 999) };
        let standby = CanaryStatus { standby: true, ..writer(0, 999) };
        for other in [None, Some(&writer(0, 500)), Some(&writer(995, 999)), Some(&failed), Some(&standby)] {
            assert!(loss(400, 999, other).unwrap_err().contains("did not run"), "{other:?}");
        }
        assert!(loss(1100, 1000, None).unwrap_err().contains("clock"));
    }
}
