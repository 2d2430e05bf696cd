//! What a restore would do: everything is looked at, nothing is touched.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use crate::error::{Error, Kind, Result};
use crate::id::{RunId, SnapshotId};
use crate::ops::log::replay::{self, LogRecovery, SourceMoment};
use crate::ops::restore::doubt::{self, Doubts};
use crate::ops::restore::estimate::{estimate, measurements};
use crate::ops::restore::fallback::original;
use crate::ops::restore::part;
use crate::ops::restore::partial::{Identity, in_the_way, left_at};
use crate::ops::restore::place::{Place, Shape, free_bytes};
use crate::ops::restore::server;
use crate::ops::restore::{Part, PlannedSource, RestorePlan, RestoreRequest};
use crate::ops::select::{self, Choice, Wanted};
use crate::ops::{Job, Snapshots, backup, damaged_reports_warning, damaged_warning, explain, resolve};
use crate::repo::{Manifest, ReportRecord, SourceRecord};
use crate::source::HandOver;
use crate::source::postgres::logical;

/// Plans what an operator asked for.
pub(super) fn plan(job: &Job, request: &RestoreRequest) -> Result<RestorePlan> {
    job.repository.require_reader("restore")?;
    // A report that cannot be read must not stand between an operator and a restore.
    let reports = job.repository.sound_reports(None);
    if request.resume {
        let left = left_beside(&request.to)?.ok_or_else(|| {
            Error::new(Kind::Usage, format!("resume the restore to {}: none was interrupted there", request.to.display()))
                .hint("run it without --resume")
        })?;
        let manifest = resumed_manifest(job, &left)?;
        check_resumed(job, request, &left, &reports)?;
        let (sound, _) = reports.unwrap_or_default();
        let doubts = Doubts::of(&manifest, &[], &[], &sound, &Choice::Snapshot(manifest.id.to_string()), job.clock.now());
        let part = Part { sources: left.sources, only: left.only, moments: left.moments };
        let mut plan = plan_of(job, manifest, &request.to, &part, None, left.recovery, &sound).map_err(|error| {
            let given_up = format!("what the interrupted restore left is replaced by another one to {}, without --resume", left.target);
            if error.kind() == Kind::NoRecoveryPoint { error.hint(given_up) } else { error }
        })?;
        plan.log_hole = left.log_hole;
        plan.newer_unread = left.newer_unread;
        doubts.sentences.into_iter().chain(plan.log_hole.clone()).for_each(|warning| plan.tell(warning));
        return Ok(RestorePlan { resume: true, ..plan });
    }
    let known = reports.as_ref().map_or(&[][..], |(sound, _)| sound.as_slice());
    let mut moments = Vec::new();
    let mut snapshots = listed_for(job, &request.choice)?;
    if !matches!(request.choice, Choice::Snapshot(_)) {
        snapshots.require_any(&job.repository)?;
    }
    let located = replay::locate(job, &mut snapshots, &request.choice, &request.sources, known)?;
    let set = if located.is_none() { replay::locate_set(job, &snapshots, &request.choice, &request.sources, known)? } else { None };
    // What else that snapshot has is not brought back at another moment than was asked for.
    let mut sources = request.sources.clone();
    let (manifest, recovery, told, hole) = match (located, set) {
        (Some(found), _) => {
            sources = vec![found.source.to_string()];
            (found.manifest, found.recovery, found.told, found.hole)
        }
        (None, Some(set)) => {
            sources = set.moments.iter().map(|one| one.source.to_string()).collect();
            moments = set.moments;
            (set.manifest, None, set.told, None)
        }
        (None, None) => (chosen(job, &snapshots, &request.choice, &reports)?, None, Vec::new(), None),
    };
    let Snapshots { all, destroyed, lost } = snapshots;
    let (sound, damaged_reports) = reports.unwrap_or_default();
    // Which other one to restore is told of one that is known to be damaged alone.
    let unlisted = all.is_empty() && doubt::is_damaged(&manifest, &sound, job.clock.now());
    let all = if unlisted { job.snapshots().map_or_else(|_| Vec::new(), |snapshots| snapshots.all) } else { all };
    let doubts = Doubts::of(&manifest, &all, &lost, &sound, &request.choice, job.clock.now());
    let part = Part { sources, only: request.only.clone(), moments };
    let mut plan = plan_of(job, manifest, &request.to, &part, Some(&request.choice), recovery, &sound)?;
    told.into_iter().chain(hole.clone()).for_each(|warning| plan.tell(warning));
    plan.log_hole = hole;
    if plan.moments.iter().any(|one| !one.exact) {
        plan.tell(replay::set_text(&plan.moments));
    } else if !plan.moments.is_empty() {
        plan.steps.push(replay::set_text(&plan.moments));
    }
    plan.newer_unread = doubts.newer_unread;
    let gone = destroyed_instead(&plan, &destroyed, &sound, &request.choice, job.clock.now());
    if let Some((newest, at)) = gone.iter().filter_map(|m| Some((*m, job.repository.destroyed_at(m)?))).max_by_key(|(m, _)| (m.time, m.id))
    {
        plan.newer_unread.extend(gone.iter().map(|manifest| manifest.id));
        plan.newer_unread.sort_unstable();
        plan.tell(format!(
            "newer snapshots ({}, the last is {}) cannot be restored by anybody: their key was destroyed at {}",
            gone.len(),
            select::describe(newest),
            select::moment(at)
        ));
    }
    let unread = if request.choice == Choice::LatestProven { damaged_reports_warning(&damaged_reports) } else { None };
    doubts.sentences.into_iter().chain(damaged_warning(&lost)).chain(unread).for_each(|warning| plan.tell(warning));
    if let (Choice::Latest, None, Some(newest)) = (&request.choice, &plan.recovery, all.iter().max_by_key(|m| m.time))
        && newest.time > plan.at
    {
        plan.tell(format!(
            "snapshot {} has a later time but was committed before this one: a clock was wrong; name it with --snapshot if you want it",
            select::describe(newest)
        ));
    }
    if plan.moments.is_empty() && !matches!(request.choice, Choice::Snapshot(_) | Choice::LatestProven) {
        passed_over(job, &plan)?.into_iter().for_each(|warning| plan.tell(warning));
    }
    Ok(plan)
}

/// Logs that could bring more than the snapshot of several sources, which are restored to one moment together.
fn passed_over(job: &Job, plan: &RestorePlan) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let several = plan.manifest.sources.len() > 1;
    for record in plan.manifest.sources.iter().filter(|record| several && replay::can_have_log(record)) {
        if !job.repository.log(&job.plan, &record.name).pieces()?.is_empty() {
            warnings.push(format!(
                "source {0} has a continuous log, which is not used where several sources are restored together: --source {0} alone goes on to any moment of it",
                record.name
            ));
        }
    }
    Ok(warnings)
}

/// What was asked for by name must be what was begun; to go on with plain `--resume` is always right.
fn check_resumed(job: &Job, request: &RestoreRequest, left: &Identity, reports: &Result<(Vec<ReportRecord>, Vec<Error>)>) -> Result<()> {
    let begun = |what: String, asked: String| {
        let error =
            Error::new(Kind::Usage, format!("resume the restore to {}: it was begun with {what}, and {asked} is asked for", left.target));
        if left.failed.is_some() {
            return error.hint("it failed and need not be finished: without --resume, what it left is replaced");
        }
        error.hint(format!(
            "finish it with --resume alone, or give it up by removing {} and restore without --resume",
            Place::partial_beside(Path::new(&left.target)).unwrap_or_default().display()
        ))
    };
    if request.choice != Choice::Latest {
        let known = reports.as_ref().map_or(&[][..], |(sound, _)| sound.as_slice());
        let mut snapshots = listed_for(job, &request.choice)?;
        let located = replay::locate(job, &mut snapshots, &request.choice, &left.sources, known)?;
        let set = if located.is_none() { replay::locate_set(job, &snapshots, &request.choice, &left.sources, known)? } else { None };
        let mut moments = Vec::new();
        let (asked, recovery) = match (located, set) {
            (Some(found), _) => (original(&found.manifest), found.recovery),
            (None, Some(set)) => {
                moments = set.moments;
                (original(&set.manifest), None)
            }
            (None, None) => (original(&chosen(job, &snapshots, &request.choice, reports)?), None),
        };
        let set_of = |moments: &[SourceMoment]| {
            if moments.is_empty() { "each source at the snapshot's moment".into() } else { replay::set_text(moments) }
        };
        if asked == left.snapshot && set_of(&moments) != set_of(&left.moments) {
            return Err(begun(set_of(&left.moments), set_of(&moments)));
        }
        let target = |recovery: &Option<LogRecovery>| recovery.as_ref().map_or("its own moment".into(), |r| r.target.to_string());
        if asked == left.snapshot && target(&recovery) != target(&left.recovery) {
            return Err(begun(target(&left.recovery), target(&recovery)));
        }
        if asked != left.snapshot {
            return Err(begun(format!("snapshot {}", left.snapshot), format!("snapshot {asked}")));
        }
    }
    let named = |sources: &[String]| -> BTreeSet<String> { sources.iter().cloned().collect() };
    if !request.sources.is_empty() && named(&request.sources) != named(&left.sources) {
        return Err(begun(format!("source {}", left.sources.join(", ")), format!("source {}", request.sources.join(", "))));
    }
    if !request.only.is_empty() && request.only != left.only {
        let had = if left.only.is_empty() { "everything".to_owned() } else { format!("only {}", left.only.join(", ")) };
        return Err(begun(had, format!("only {}", request.only.join(", "))));
    }
    Ok(())
}

/// What there is to choose from. Nothing, where one is named: damage to others must not keep that one from being restored.
fn listed_for(job: &Job, choice: &Choice) -> Result<Snapshots> {
    if full_id(choice).is_some() { Ok(Snapshots::default()) } else { job.snapshots() }
}

/// The snapshot asked for. `snapshots`: see [`listed_for`].
fn chosen(job: &Job, snapshots: &Snapshots, choice: &Choice, reports: &Result<(Vec<ReportRecord>, Vec<Error>)>) -> Result<Manifest> {
    if let Some(id) = full_id(choice) {
        return one_of_plan(job, id);
    }
    let proofs = match (reports, choice) {
        (Err(error), Choice::LatestProven) => {
            return Err(Error::new(error.kind(), format!("find a proven snapshot: {}", explain(error))).hint("name one with --snapshot"));
        }
        (Ok((sound, _)), _) => sound.as_slice(),
        (Err(_), _) => &[],
    };
    snapshots.choose(&job.repository, proofs, choice, job.clock.now()).map_err(|error| {
        let unread = reports.as_ref().ok().filter(|_| *choice == Choice::LatestProven).and_then(|(_, lost)| damaged_reports_warning(lost));
        let lost = damaged_warning(&snapshots.lost).into_iter().chain(unread);
        lost.fold(error, |error, lost| error.within(format!("choose a snapshot: {lost}")))
    })
}

/// Plans the restore of one snapshot.
pub(in crate::ops) fn plan_of(
    job: &Job,
    mut manifest: Manifest,
    to: &Path,
    part: &Part,
    choice: Option<&Choice>,
    recovery: Option<LogRecovery>,
    reports: &[ReportRecord],
) -> Result<RestorePlan> {
    if manifest.sources.is_empty() {
        return Err(Error::new(Kind::Damaged, format!("snapshot {} holds no source", manifest.id)).hint("restore another snapshot"));
    }
    let left_out = keep_sources(&mut manifest, &part.sources)?;
    job.repository.require_content(&manifest).map_err(|error| error.within(format!("restore snapshot {}", select::describe(&manifest))))?;
    let only = part.only.as_slice();
    if part::is_wanted(&manifest, only) {
        return part::plan(job, manifest, to, part, left_out, choice, recovery, reports);
    }
    check_only(&manifest, only)?;
    if server::is_wanted(&manifest, to) {
        return server::plan(job, manifest, to, left_out, choice, reports);
    }
    part::refuse_url(to)?;
    for record in &manifest.sources {
        resolve::restoring_source(job, record)?.ready()?;
    }
    let place = Place::new(to, shape(job, &manifest.sources))?;
    let mut identity = identity(job, &manifest, &place, only, recovery.as_ref());
    identity.moments.clone_from(&part.moments);
    let mut left = left_at(&place.partial(), place.target())?;
    if let Some(left) = left.as_mut().filter(|left| left.failed.is_none() && !left.same_content(&identity)) {
        left.failed = never_completed(job, left);
    }
    let continued = left.as_ref().filter(|left| left.same_content(&identity));
    if let Some(left) = left.as_ref().filter(|left| continued.is_none() && left.failed.is_none()) {
        return Err(in_the_way(&place.partial(), left));
    }
    let id = match continued {
        Some(left) if !place.is_spent(&left.id)? => left.id.clone(),
        _ => identity.id.clone(),
    };
    let placed = continued.is_some_and(|left| left.is_placed(place.target()));
    let overwrites = if placed { Vec::new() } else { place.standing(&id)? };
    let bytes = manifest.sources.iter().map(|s| s.bytes).sum();
    let missing = backup::missing(&manifest.sources);
    let mut warnings = Vec::new();
    if !missing.is_empty() {
        warnings.push(format!(
            "this snapshot is incomplete: {} could not be backed up and will not be in the restored content",
            count(missing.len(), "object")
        ));
    }
    if placed {
        warnings.push(
            "an interrupted restore has put this snapshot there already: it is only looked at, and what is left beside it is removed"
                .into(),
        );
    }
    let failed_before = left.as_ref().and_then(|left| left.failed.clone());
    if let (Some(failed), Some(left)) = (&failed_before, &left) {
        warnings.push(if continued.is_some() {
            format!(
                "this restore was tried before and failed ({failed}): it will fail again if that was not mended; another snapshot, or \
                 other sources with --source, can be restored to the same target, which replaces what it left"
            )
        } else {
            format!("a restore of snapshot {} to this target failed ({failed}): what it left beside the target is replaced", left.snapshot)
        });
    }
    if !overwrites.is_empty() && manifest.sources.len() > 1 {
        let names: Vec<&str> = manifest.sources.iter().map(|s| s.name.as_str()).collect();
        warnings.push(format!(
            "all that is in {} now goes aside with it, also what is in no backup; the new folder holds only {}: to put each source into \
             its own place, restore them one by one with --source",
            place.target().display(),
            names.join(", ")
        ));
    }
    if !overwrites.is_empty() {
        warnings.push("stop every program that uses what stands at the target before restoring into its place".into());
    }
    let free = free_bytes(place.parent())?;
    let logs = recovery.iter().chain(part.moments.iter().filter_map(|one| one.recovery.as_ref()));
    let needed = bytes + logs.map(|recovery| recovery.bytes).sum::<u64>();
    if free < needed && left.is_none() {
        warnings.push(format!("there is no room: {needed} bytes are needed at {}, {free} are free", place.parent().display()));
    }
    Ok(RestorePlan {
        schema: "lifeboat.restore-plan/1".into(),
        plan: manifest.plan.to_string(),
        snapshot: manifest.id,
        at: part.moments.iter().map(|one| one.at).min().or(recovery.as_ref().map(|recovery| recovery.at)).unwrap_or(manifest.time),
        asked: match choice {
            Some(Choice::At(moment) | Choice::Along { wanted: Wanted::Time(moment), .. }) => Some(*moment),
            _ => None,
        },
        target: place.target().display().to_string(),
        sources: manifest.sources.iter().map(|s| planned(s, &place, manifest.sources.len() > 1)).collect(),
        sources_left_out: left_out,
        bytes,
        entries: manifest.sources.iter().map(|s| s.entries).sum(),
        only: only.to_vec(),
        estimate: estimate(needed, &measurements(reports, manifest.plan.as_str(), &manifest.sources), rest(&manifest)),
        confirmation: (!overwrites.is_empty()).then(|| place.confirmation()),
        overwrites,
        delta: false,
        hand_over: HandOver::default(),
        log_hole: None,
        recovery,
        moments: part.moments.clone(),
        resumes: continued.is_some(),
        failed_before,
        bytes_free: free,
        missing,
        warnings,
        steps: Vec::new(),
        told: Vec::new(),
        to: place.target().to_owned(),
        newer_unread: Vec::new(),
        fallback: None,
        manifest,
        id,
        resume: false,
    })
}

/// What a drill does before it calls this recovered, and a restore to files does not.
fn rest(manifest: &Manifest) -> Option<&'static str> {
    let has = |kind: &str| manifest.sources.iter().any(|source| source.kind == kind);
    match (has("postgres"), has(logical::KIND)) {
        (true, false) => Some("the replay of the log, which the server does when you start it"),
        (false, true) => Some("loading it into a server, which is left to you"),
        (true, true) => Some("the replay of the log and loading into a server, which are left to you"),
        (false, false) => None,
    }
}

/// What names the content and the place of a restore. The manifest holds only the sources to restore.
pub(super) fn identity(job: &Job, manifest: &Manifest, place: &Place, only: &[String], recovery: Option<&LogRecovery>) -> Identity {
    Identity {
        // A copy is the same content: a restore that was begun from the one goes on from the other.
        repository: manifest.copied_from.as_ref().map_or_else(|| hex::encode(job.repository.id().0), |from| from.repository.clone()),
        plan: manifest.plan.clone(),
        snapshot: original(manifest),
        target: place.target().display().to_string(),
        sources: manifest.sources.iter().map(|s| s.name.to_string()).collect(),
        only: only.to_vec(),
        recovery: recovery.cloned(),
        log_hole: None,
        newer_unread: Vec::new(),
        standby: false,
        moments: Vec::new(),
        id: RunId::generate(job.clock.now()).to_string(),
        placing: None,
        failed: None,
    }
}

/// What a snapshot of these sources is restored to.
pub(super) fn shape(job: &Job, sources: &[SourceRecord]) -> Shape {
    match sources {
        [one] => match one.kind.as_str() {
            "sqlite" => Shape::File { sqlite: true },
            // A restore command fills a folder; without one its output is a file.
            "command" if !restores_folder(job, one) => Shape::File { sqlite: false },
            _ => Shape::Folder,
        },
        _ => Shape::Folder,
    }
}

pub(super) fn restores_folder(job: &Job, record: &SourceRecord) -> bool {
    job.sources.iter().any(|s| s.name == record.name && s.source.kind() == record.kind && s.restores_folder)
}

fn planned(record: &SourceRecord, place: &Place, several: bool) -> PlannedSource {
    let target = if several { place.target().join(record.name.as_str()) } else { place.target().to_owned() };
    PlannedSource {
        name: record.name.to_string(),
        kind: record.kind.clone(),
        bytes: record.bytes,
        entries: record.entries,
        target: target.display().to_string(),
    }
}

/// Leaves only the sources asked for in a manifest and returns the names of the others.
fn keep_sources(manifest: &mut Manifest, asked: &[String]) -> Result<Vec<String>> {
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<String> = manifest.sources.iter().map(|s| s.name.to_string()).collect();
    let unknown: Vec<&str> = asked.iter().filter(|name| !names.contains(name)).map(String::as_str).collect();
    if !unknown.is_empty() {
        let what = format!("restore only some sources: snapshot {} has no source {}", manifest.id, unknown.join(", "));
        return Err(Error::new(Kind::Usage, what).hint(format!("it has {}", names.join(", "))));
    }
    manifest.sources.retain(|source| asked.iter().any(|name| name == source.name.as_str()));
    Ok(names.into_iter().filter(|name| !asked.contains(name)).collect())
}

fn check_only(manifest: &Manifest, only: &[String]) -> Result<()> {
    let kinds: Vec<&str> = manifest.sources.iter().map(|s| s.kind.as_str()).collect();
    if only.is_empty() || kinds == ["sqlite"] {
        return Ok(());
    }
    let error = Error::new(Kind::Usage, format!("restore only some tables: this would restore {}", kinds.join(", ")));
    let databases: Vec<String> = manifest
        .sources
        .iter()
        .filter(|s| matches!(s.kind.as_str(), "sqlite" | "postgres"))
        .map(|s| format!("`--source {} --only {}`", s.name, only.join(" --only ")))
        .collect();
    Err(if databases.is_empty() {
        error
            .hint("tables can be taken out of SQLite and PostgreSQL sources only; restore everything to another place and take from there what you need")
    } else {
        error.hint(format!("tables come out of one database source, named: {}", databases.join(" or ")))
    })
}

/// Snapshots newer than what a plan leads to that its choice would have preferred, were their key still there.
fn destroyed_instead<'a>(
    plan: &RestorePlan,
    destroyed: &'a [Manifest],
    reports: &[ReportRecord],
    choice: &Choice,
    now: DateTime<Utc>,
) -> Vec<&'a Manifest> {
    let meant = |manifest: &Manifest| match choice {
        Choice::Latest | Choice::Along { wanted: Wanted::Latest | Wanted::Immediate, .. } => true,
        Choice::At(wanted) | Choice::Along { wanted: Wanted::Time(wanted), .. } => manifest.time <= *wanted,
        Choice::LatestProven => select::proven(reports, manifest, now).is_some(),
        Choice::Snapshot(_) | Choice::Random { .. } | Choice::Along { .. } => false,
    };
    destroyed.iter().filter(|manifest| manifest.time > plan.at && meant(manifest)).collect()
}

/// Why what an interrupted restore left can never be completed, whoever goes on with it: its snapshot was removed, or nobody can read it any more.
pub(super) fn never_completed(job: &Job, left: &Identity) -> Option<String> {
    // Of another repository nothing is known here.
    if left.repository != hex::encode(job.repository.id().0) {
        return None;
    }
    let known = job.repository.manifest(left.snapshot).and_then(|mut manifest| {
        manifest.sources.retain(|record| left.sources.iter().any(|name| *name == record.name.as_str()));
        job.repository.require_content(&manifest)
    });
    known.err().filter(|error| error.kind() == Kind::NoRecoveryPoint).map(|error| explain(&error))
}

/// What an interrupted restore to this target left beside it.
fn left_beside(to: &Path) -> Result<Option<Identity>> {
    // The partial folder's name depends on the target's name alone; the shape is not known before the snapshot is.
    let target: PathBuf = std::path::absolute(to).unwrap_or_else(|_| to.to_owned());
    left_at(&Place::partial_beside(&target)?, &target)
}

fn resumed_manifest(job: &Job, left: &Identity) -> Result<Manifest> {
    if left.repository != hex::encode(job.repository.id().0) {
        let is_copy =
            |m: &Manifest| m.copied_from.as_ref().is_some_and(|from| from.repository == left.repository && from.snapshot == left.snapshot);
        if let Some(copy) = job.snapshots()?.into_known().find(is_copy) {
            return Ok(copy);
        }
        return Err(Error::new(Kind::Usage, format!("resume the restore to {}: it was from another repository", left.target))
            .hint("use the plan or URL it was begun with"));
    }
    one_of_plan(job, left.snapshot)
}

/// One manifest without looking at the others: damage to those must not keep this one from being restored.
fn one_of_plan(job: &Job, id: SnapshotId) -> Result<Manifest> {
    let manifest = match job.repository.manifest(id) {
        // By the name that it has where it was backed up to.
        Err(error) if error.kind() == Kind::NoRecoveryPoint => {
            let known = job.snapshots()?;
            let error = naming_what_stands_for(id, &known.all, error);
            return known.into_known().find(|manifest| original(manifest) == id).ok_or(error);
        }
        Err(error) if error.kind() == Kind::Damaged => {
            return Err(match job.snapshots() {
                Ok(snapshots) => naming_what_stands_for(id, &snapshots.all, error),
                Err(_) => error,
            });
        }
        found => found?,
    };
    if manifest.plan == job.plan {
        return Ok(manifest);
    }
    Err(Error::new(Kind::NoRecoveryPoint, format!("snapshot {id} is not of plan {} but of {}", job.plan, manifest.plan))
        .hint(format!("use `lifeboat restore {}`", manifest.plan)))
}

/// The same error, which says where the content is now, if it was brought back.
fn naming_what_stands_for(id: SnapshotId, all: &[Manifest], error: Error) -> Error {
    match all.iter().find(|manifest| manifest.replaces() == Some(id)) {
        Some(back) => error.hint(format!("its content was brought back and stands in its place as snapshot {}", select::describe(back))),
        None => error,
    }
}

fn full_id(choice: &Choice) -> Option<SnapshotId> {
    if let Choice::Snapshot(text) = choice { text.parse().ok() } else { None }
}

fn count(number: usize, of: &str) -> String {
    format!("{number} {of}{}", if number == 1 { "" } else { "s" })
}
