//! Copy: snapshots of a plan, and the logs of its sources, to a second repository with other keys. Oldest first, so that each leans on
//! the one before.
//!
//! Going on where the last copy ended is the rule: what is older than the newest copy is not copied again, because it is missing there by
//! the copy's own retention or by choice; but for what could not be read then, and for what was committed since by a backup that had begun before: of these
//! each copy keeps a list. What was brought back in the place of a damaged snapshot is copied in that one's place, and only where that one is not. Logs go before snapshots: a snapshot that is there has the log that it needs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::event::{Event, Progress};
use crate::id::{Name, SnapshotId};
use crate::ops::log::replay;
use crate::ops::log::way::{Needed, Way};
use crate::ops::retention::Rules;
use crate::ops::verdict::millis;
use crate::ops::work::lock_copy;
use crate::ops::{Commit, Job, condemn, counted, damage, damaged_warning, explain, prune, select};
use crate::repo::{CopyNotes, Gap, Log, Manifest, PieceInfo, Predecessor, ReportRecord, Repository, Role, runs};

/// What is copied, and where to.
#[derive(Clone)]
pub struct CopyRequest {
    /// Name of the second repository in the plan files.
    pub name: Name,
    pub to: Repository,
    /// Only the newest so many of the plan's snapshots.
    pub last: Option<u32>,
    /// Only snapshots with one of these tags; empty: all.
    pub tags: Vec<String>,
    /// Only this one, however old it is.
    pub snapshot: Option<String>,
    /// Also what is older than the newest copy.
    pub all: bool,
    /// What the copy keeps: log that a prune of it would remove again is not copied.
    pub rules: Rules,
}

/// One snapshot that was copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopiedSnapshot {
    /// In the repository that is copied from.
    pub original: SnapshotId,
    /// In the other one.
    pub copy: SnapshotId,
    pub time: DateTime<Utc>,
    /// Plain bytes of all its files.
    pub bytes_source: u64,
    /// Plain bytes read: what the other repository was not known to have.
    pub bytes_read: u64,
    /// Sealed bytes read for that.
    pub bytes_fetched: u64,
    /// Sealed bytes added to the other repository.
    pub bytes_stored: u64,
    pub duration_ms: u64,
}

/// The log of one source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopiedLog {
    pub source: String,
    pub pieces: u64,
    /// Plain bytes of those.
    pub bytes: u64,
    /// Pieces that were there already.
    pub already: u64,
    /// Gap records that were copied or made.
    pub gaps: u64,
}

/// What could not be copied because it is damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyFinding {
    /// A snapshot's id, or where in the log.
    pub object: String,
    pub message: String,
}

/// `lifeboat.copy/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    pub schema: String,
    pub plan: String,
    /// Where it was copied from: URL.
    pub from: String,
    /// Name of the second repository, and its URL.
    pub repository: String,
    pub to: String,
    /// Oldest first.
    pub snapshots: Vec<CopiedSnapshot>,
    /// Snapshots that had been copied before.
    pub already: u64,
    /// Snapshots that were not asked for: by `last`, by tags, or older than the newest copy.
    pub left_out: u64,
    pub logs: Vec<CopiedLog>,
    /// What is damaged and therefore not in the copy, and what is wrong with its locks.
    pub findings: Vec<CopyFinding>,
    /// The moment of the newest snapshot that the copy has now.
    pub newest: Option<DateTime<Utc>>,
    /// How much newer the plan's newest snapshot is. 0: the copy has it. `None`: the copy has none.
    pub behind_ms: Option<u64>,
    pub bytes_read: u64,
    pub bytes_stored: u64,
    pub duration_ms: u64,
    pub warnings: Vec<String>,
}

impl CopyReport {
    /// How the process should end: `None` is exit 0.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        (!self.findings.is_empty()).then_some(Kind::Damaged)
    }
}

/// Pieces of logs that are on their way at a time, at most 16 MiB each as servers write them.
const PIECES_AT_A_TIME: usize = 4;
/// A piece that goes away while it is copied was replaced by a larger one: listed again so often.
const LISTINGS: usize = 4;

/// One copy now.
///
/// # Errors
/// `Usage` when both are the same repository; `WrongKey` without the reader role there and the writer role here; `Busy` when this copy is
/// running on this host already; what the stores say: what was copied until then is committed and stays.
pub fn run(job: &Job, request: &CopyRequest) -> Result<CopyReport> {
    let (clock, started) = (Instant::now(), job.clock.now());
    let (from, to) = (&job.repository, &request.to);
    from.require_reader("read the snapshots to copy")?;
    if to.role() == Role::Maintainer {
        return Err(Error::new(Kind::WrongKey, format!("copy to {}: this passphrase opens a maintainer key slot", request.name))
            .hint("copy with the passphrase of a writer or reader key slot of that repository (`lifeboat key list`)"));
    }
    if from.id() == to.id() {
        return Err(Error::new(Kind::Usage, format!("copy plan {} to {}: that is the plan's own repository", job.plan, request.name))
            .hint("a copy needs a repository of its own, best with another vendor: `lifeboat repo init NAME`"));
    }
    let _lock = lock_copy(&job.work, &request.name, started)?;
    let mut warnings = Vec::new();
    let (known, lost) = from.sound_manifests(Some(&job.plan))?;
    warnings.extend(damaged_warning(&lost).map(|lost| format!("in the repository that is copied from, {lost}")));
    let (known_copies, lost_copies) = to.sound_manifests(Some(&job.plan))?;
    warnings.extend(damaged_warning(&lost_copies).map(|lost| format!("in the copy, {lost}")));
    // What nobody can read any more cannot be copied, and is no copy of anything.
    let (destroyed, originals): (Vec<Manifest>, Vec<Manifest>) =
        known.into_iter().partition(|manifest| from.destroyed_at(manifest).is_some());
    let mut copies: Vec<Manifest> = known_copies.into_iter().filter(|copy| to.destroyed_at(copy).is_none()).collect();
    if let Some(last) = destroyed.last() {
        warnings.push(format!(
            "{} cannot be copied, nobody can read them any more: the key of their content was destroyed (the last is {})",
            counted(destroyed.len(), "snapshot"),
            select::describe(last)
        ));
    }
    if let Some(id) = &request.snapshot {
        let named = select::choose(&destroyed, &[], &select::Choice::Snapshot(id.clone()), DateTime::<Utc>::MAX_UTC);
        named.map_or(Ok(()), |named| from.require_content(named))?;
    }
    let reports = match from.sound_reports(None) {
        Ok((reports, _)) => reports,
        Err(error) => {
            warnings.push(format!("what was proven is not known and does not go with the copies: {}", explain(&error)));
            Vec::new()
        }
    };
    // What was brought back from there is there, and what that replaces is copied by nobody.
    let there: BTreeSet<SnapshotId> =
        originals.iter().filter(|manifest| came_from(manifest, to)).flat_map(|m| [Some(m.id), m.replaces()]).flatten().collect();
    let mut originals_to_copy: Vec<Manifest> = originals.iter().filter(|manifest| !there.contains(&manifest.id)).cloned().collect();
    let standing = damage::standing(&reports, None, started);
    if request.snapshot.is_none() && !standing.is_empty() {
        // What is known to be lost in part, and accepted, would be damaged each time.
        let ledger = from.ledger_or_none()?;
        let loss_of = |id| damage::accepted(&damage::of_snapshot(&reports, &standing, id, started)?, id, &standing, &ledger);
        originals_to_copy.retain(|original| {
            let Some(loss) = loss_of(original.id) else { return true };
            if !copies.iter().any(|copy| copy.copied_from.as_ref().is_some_and(|from| from.snapshot == original.id)) {
                let why = format!("a part of it is lost, and that was accepted: {} (by {})", loss.reason, loss.by);
                warnings.push(format!("snapshot {} is not copied: {why}", select::describe(original)));
            }
            false
        });
    }
    let unread: Vec<SnapshotId> = lost.iter().filter_map(|lost| lost.id).collect();
    let mut chosen = choose(&originals_to_copy, &unread, &copies, &from.id().to_string(), request)?;
    let mut report = CopyReport {
        schema: "lifeboat.copy/1".into(),
        plan: job.plan.to_string(),
        from: from.store().describe().to_owned(),
        repository: request.name.to_string(),
        to: to.store().describe().to_owned(),
        snapshots: Vec::new(),
        already: chosen.already,
        left_out: chosen.left_out,
        logs: Vec::new(),
        findings: lost
            .iter()
            .map(|lost| CopyFinding {
                object: lost.id.map_or_else(|| "a manifest".to_owned(), |id| id.to_string()),
                message: explain(&lost.error),
            })
            .collect(),
        newest: None,
        behind_ms: None,
        bytes_read: 0,
        bytes_stored: 0,
        duration_ms: 0,
        warnings,
    };
    // What the copies will lean on is locked first.
    if let Some(locks) = to.keep_locked(started, false, job.progress.as_ref(), &job.cancel)? {
        report.findings.extend(locks.alarms.into_iter().map(|message| CopyFinding { object: "object lock".to_owned(), message }));
    }
    copy_logs(job, request, &originals, &copies, &chosen.wanted, &mut report)?;
    copy_snapshots(job, request, &originals, &mut copies, &mut chosen, &reports, &mut report)?;
    if request.all || request.snapshot.is_some() {
        // A prune of the copy may have taken log of an older snapshot that it did not know yet.
        let before = std::mem::take(&mut report.logs);
        copy_logs(job, request, &originals, &copies, &[], &mut report)?;
        report.logs = add_up(before, std::mem::take(&mut report.logs));
        let mut told = Vec::new();
        report.findings.retain(|finding| !told.contains(finding) && (told.push(finding.clone()), true).1);
    }
    report.warnings.extend(condemn(job));
    let newest = select::latest(&copies).map(|manifest| manifest.time);
    report.newest = newest;
    report.behind_ms = newest.zip(select::latest(&originals)).map(|(copy, original)| behind(copy, original.time));
    report.bytes_read =
        report.snapshots.iter().map(|one| one.bytes_read).sum::<u64>() + report.logs.iter().map(|log| log.bytes).sum::<u64>();
    report.bytes_stored = report.snapshots.iter().map(|one| one.bytes_stored).sum();
    report.duration_ms = millis(clock.elapsed());
    for message in &report.warnings {
        job.progress.event(Event::Warning { message: message.clone() });
    }
    Ok(report)
}

/// What was brought back from there is there.
fn came_from(manifest: &Manifest, to: &Repository) -> bool {
    manifest.replaces().is_some() && manifest.copied_from.as_ref().is_some_and(|from| from.repository == to.id().to_string())
}

/// What two copies of the same logs did.
fn add_up(first: Vec<CopiedLog>, second: Vec<CopiedLog>) -> Vec<CopiedLog> {
    let mut logs = first;
    for log in second {
        match logs.iter_mut().find(|known| known.source == log.source) {
            Some(known) => {
                known.pieces += log.pieces;
                known.bytes += log.bytes;
                known.gaps += log.gaps;
            }
            None => logs.push(log),
        }
    }
    logs
}

/// How much older a copy's newest moment is than the original's; ms.
#[must_use]
pub fn behind(copy: DateTime<Utc>, original: DateTime<Utc>) -> u64 {
    u64::try_from((original - copy).num_milliseconds()).unwrap_or(0)
}

/// The moment of the newest snapshot from before `due` with one of these tags (of any, where there are none), where a copy whose newest is of `newest`
/// does not have it. Pure.
#[must_use]
pub fn lacks(tags: &[String], originals: &[Manifest], newest: Option<DateTime<Utc>>, due: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let tagged = |manifest: &&Manifest| tags.is_empty() || manifest.tags.iter().any(|tag| tags.contains(tag));
    let wanted = originals.iter().filter(tagged).map(|manifest| manifest.time).filter(|time| *time < due).max()?;
    newest.is_none_or(|newest| newest < wanted).then_some(wanted)
}

/// What a copy would take.
#[derive(Debug, PartialEq)]
struct Chosen<'a> {
    /// In the order of their places.
    wanted: Vec<&'a Manifest>,
    already: u64,
    left_out: u64,
    /// What the copy should have and does not, although it is older than the newest that it has.
    owed: BTreeSet<SnapshotId>,
    /// See [`beside`].
    beside: Vec<SnapshotId>,
}

/// Originals, each with those in whose place it came: itself, the damaged one that it replaces, and so on.
struct Places(BTreeMap<SnapshotId, SnapshotId>);

impl Places {
    fn new(originals: &[Manifest]) -> Self {
        Self(originals.iter().filter_map(|manifest| Some((manifest.id, manifest.replaces()?))).collect())
    }

    fn chain(&self, id: SnapshotId) -> Vec<SnapshotId> {
        let mut chain = vec![id];
        while let Some(next) = chain.last().and_then(|last| self.0.get(last)).filter(|next| !chain.contains(next)) {
            chain.push(*next);
        }
        chain
    }

    /// Where it stands in the order.
    fn of(&self, id: SnapshotId) -> SnapshotId {
        self.chain(id).pop().unwrap_or(id)
    }
}

/// Snapshots that another one with a later id does not go on from: it was begun before they were committed, so they may have come after it was copied.
/// Pure.
fn beside(originals: &[Manifest]) -> Vec<SnapshotId> {
    let mut ordered: Vec<&Manifest> = originals.iter().collect();
    ordered.sort_by_key(|manifest| manifest.id);
    // Of all that were begun later, the one that knew least: the newest that it goes on from.
    let mut least: Option<Option<SnapshotId>> = None;
    let mut beside = Vec::new();
    for manifest in ordered.into_iter().rev() {
        if least.is_some_and(|least| least < Some(manifest.id)) {
            beside.push(manifest.id);
        }
        let known = manifest.parents.iter().map(|parent| parent.id).max();
        least = Some(least.map_or(known, |least| least.min(known)));
    }
    beside.reverse();
    beside
}

/// Chooses what to copy. `unread`: originals whose manifests are damaged. Pure.
fn choose<'a>(
    originals: &'a [Manifest],
    unread: &[SnapshotId],
    copies: &[Manifest],
    repository: &str,
    request: &CopyRequest,
) -> Result<Chosen<'a>> {
    let origins =
        || copies.iter().filter_map(|copy| Some((copy.id, copy.copied_from.as_ref().filter(|from| from.repository == repository)?)));
    let copied: BTreeSet<SnapshotId> = origins().flat_map(|(_, from)| [from.snapshot, from.place()]).collect();
    let places = Places::new(originals);
    let is_copied = |id: SnapshotId| places.chain(id).iter().any(|id| copied.contains(id));
    // Instead of these, what replaces them is copied.
    let replaced: BTreeSet<SnapshotId> = places.0.values().copied().collect();
    let mut ordered: Vec<&Manifest> = originals.iter().filter(|manifest| !replaced.contains(&manifest.id)).collect();
    ordered.sort_by_key(|manifest| (places.of(manifest.id), manifest.id));
    // What the last copy left to do: what it could not read, and what was not there yet.
    let newest = origins().map(|(_, from)| from.place()).max();
    // A repair there brings back what is in one snapshot, and knows nothing of that.
    let last = origins().filter(|(_, from)| from.replaces.is_none()).max_by_key(|(copy, _)| *copy).map(|(_, from)| from);
    let was_owed = |id: SnapshotId| last.is_some_and(|last| places.chain(id).iter().any(|id| last.owed.contains(id)));
    let beside = beside(originals);
    let came_later = |id: SnapshotId| last.is_some_and(|last| !last.beside.contains(&id)) && beside.contains(&id);
    let is_older = |id: SnapshotId| newest.is_some_and(|newest| places.of(id) < newest);
    let there = ordered.iter().map(|manifest| manifest.id).filter(|id| is_older(*id) && (was_owed(*id) || came_later(*id)));
    let damaged = unread.iter().copied().filter(|id| newest.is_none_or(|newest| newest < *id) || was_owed(*id));
    let owed: BTreeSet<SnapshotId> = there.chain(damaged).filter(|id| !is_copied(*id)).collect();
    if let Some(id) = &request.snapshot {
        let one = select::choose(originals, &[], &select::Choice::Snapshot(id.clone()), DateTime::<Utc>::MAX_UTC)?;
        let is_there = is_copied(one.id);
        let wanted = if is_there { Vec::new() } else { vec![one] };
        return Ok(Chosen { already: u64::from(is_there), left_out: originals.len() as u64 - 1, wanted, owed, beside });
    }
    let tagged = |manifest: &Manifest| request.tags.is_empty() || manifest.tags.iter().any(|tag| request.tags.contains(tag));
    let mut asked: Vec<&Manifest> = ordered.iter().copied().filter(|manifest| tagged(manifest)).collect();
    if let Some(last) = request.last {
        let skip = asked.len().saturating_sub(last as usize);
        asked.drain(..skip);
    }
    let already = asked.iter().filter(|manifest| is_copied(manifest.id)).count() as u64;
    let is_wanted = |manifest: &&Manifest| {
        let id = manifest.id;
        !is_copied(id) && (request.all || newest.is_none_or(|newest| newest < places.of(id)) || owed.contains(&id))
    };
    let wanted: Vec<&Manifest> = asked.into_iter().filter(is_wanted).collect();
    Ok(Chosen { already, left_out: ordered.len() as u64 - already - wanted.len() as u64, wanted, owed, beside })
}

/// Copies by the ids of their originals in that repository.
fn originals_of<'a>(copies: &'a [Manifest], repository: &str) -> BTreeMap<SnapshotId, &'a Manifest> {
    let origin =
        |copy: &'a Manifest| copy.copied_from.as_ref().filter(|from| from.repository == repository).map(|from| (from.snapshot, copy));
    copies.iter().filter_map(origin).collect()
}

/// The snapshot to lean on: the newest copy of an older snapshot, else the oldest of a newer one, whose original is still there.
fn predecessor<'a>(originals: &'a [Manifest], copies: &'a [Manifest], repository: &str, id: SnapshotId) -> Option<Predecessor<'a>> {
    let copied = originals_of(copies, repository);
    let pair = |(original, copy): (&SnapshotId, &&'a Manifest)| {
        let original = originals.iter().find(|manifest| manifest.id == *original)?;
        Some(Predecessor { original, copy })
    };
    copied.range(..id).rev().find_map(pair).or_else(|| copied.range(id..).find_map(pair))
}

fn copy_snapshots(
    job: &Job,
    request: &CopyRequest,
    originals: &[Manifest],
    copies: &mut Vec<Manifest>,
    chosen: &mut Chosen<'_>,
    reports: &[ReportRecord],
    report: &mut CopyReport,
) -> Result<()> {
    let repository = job.repository.id().to_string();
    let places = Places::new(originals);
    for manifest in &chosen.wanted {
        job.cancel.check()?;
        let began = Instant::now();
        job.progress.event(Event::Phase { name: "snapshot", detail: manifest.id.to_string() });
        job.progress.event(Event::Total { bytes: manifest.stats.bytes_source, items: manifest.stats.entries });
        let before = predecessor(originals, copies, &repository, manifest.id);
        chosen.owed.remove(&manifest.id);
        let place = places.of(manifest.id);
        let notes = CopyNotes {
            proven_at: select::proven(reports, manifest, job.clock.now()),
            stands_for: (place != manifest.id).then_some(place),
            owed: chosen.owed.iter().copied().collect(),
            beside: chosen.beside.clone(),
        };
        let progress: &dyn Progress = job.progress.as_ref();
        let may = |id| job.gate.ask(Some(&request.name), Commit::Snapshot(id));
        match request.to.copy_from(&job.repository, manifest, before, notes, job.clock.now(), progress, &job.cancel, may) {
            Ok((committed, stats)) => {
                report.warnings.extend(committed.warnings);
                report.snapshots.push(CopiedSnapshot {
                    original: manifest.id,
                    copy: committed.manifest.id,
                    time: manifest.time,
                    bytes_source: manifest.stats.bytes_source,
                    bytes_read: stats.bytes_read,
                    bytes_fetched: stats.bytes_fetched,
                    bytes_stored: committed.manifest.stats.bytes_stored,
                    duration_ms: millis(began.elapsed()),
                });
                copies.push(committed.manifest);
            }
            // Others may be whole. What is copied after it says that it is still to come.
            Err(error) if error.kind() == Kind::Damaged => {
                chosen.owed.insert(manifest.id);
                report.findings.push(CopyFinding { object: manifest.id.to_string(), message: explain(&error) });
            }
            Err(error) => return Err(error.within(format!("copy snapshot {}", select::describe(manifest)))),
        }
    }
    Ok(())
}

fn copy_logs(
    job: &Job,
    request: &CopyRequest,
    originals: &[Manifest],
    copies: &[Manifest],
    wanted: &[&Manifest],
    report: &mut CopyReport,
) -> Result<()> {
    // Snapshots that are asked for by themselves come with their log.
    let all_of_it = request.all || request.snapshot.is_some();
    let there: Vec<&Manifest> = copies.iter().chain(wanted.iter().copied()).collect();
    let retained = if all_of_it { None } else { prune::Retained::read(&request.to, &request.rules, &there, job.clock.now())? };
    let all = originals.iter().chain(copies).flat_map(|manifest| &manifest.sources);
    let sources: BTreeSet<&Name> = all.filter(|record| replay::can_have_log(record)).map(|record| &record.name).collect();
    for source in sources {
        let (from, to) = (job.repository.log(&job.plan, source), request.to.log(&job.plan, source));
        // What comes before the end of the oldest snapshot there leads from nothing to nothing.
        let needing = match &retained {
            Some(retained) => retained.needing_log(Way::of(&from, source)?.as_ref()),
            None => there.clone(),
        };
        let needed = replay::needed(&from, &needing, source)?;
        let mut log = CopiedLog { source: source.to_string(), ..CopiedLog::default() };
        job.progress.event(Event::Phase { name: "log", detail: source.to_string() });
        copy_log(job, &from, &to, needed, &mut log, &mut report.findings)
            .map_err(|e| e.within(format!("copy the log of source {source}")))?;
        report.logs.push(log);
    }
    report.logs.retain(|log| log.pieces + log.already + log.gaps > 0);
    Ok(())
}

fn copy_log(job: &Job, from: &Log, to: &Log, needed: Needed, out: &mut CopiedLog, findings: &mut Vec<CopyFinding>) -> Result<()> {
    let mut damaged: Vec<(PieceInfo, String)> = Vec::new();
    let mut destroyed: BTreeSet<PieceInfo> = BTreeSet::new();
    for listing in 1..=LISTINGS {
        let there: BTreeSet<(u64, u64, u64)> = to.pieces()?.iter().map(stretch).collect();
        let listed = from.listed()?;
        destroyed = from.destroyed(&listed)?;
        let listed: Vec<PieceInfo> = listed.into_iter().map(|listed| listed.piece).filter(|piece| !destroyed.contains(piece)).collect();
        let missing: VecDeque<PieceInfo> = listed
            .iter()
            .filter(|piece| needed.has(piece.stream, piece.end) && !there.contains(&stretch(piece)))
            .filter(|piece| damaged.iter().all(|(bad, _)| bad != *piece))
            .copied()
            .collect();
        if listing == 1 {
            out.already = listed.iter().filter(|piece| there.contains(&stretch(piece))).count() as u64;
            job.progress.event(Event::Total { bytes: missing.iter().map(|p| p.end - p.start).sum(), items: missing.len() as u64 });
        }
        if missing.is_empty() {
            break;
        }
        let mut gone = false;
        for (piece, result) in copy_pieces(job, from, to, missing)? {
            match result {
                Ok(()) => {
                    out.pieces += 1;
                    out.bytes += piece.end - piece.start;
                }
                Err(error) if error.kind() == Kind::NotFound && listing < LISTINGS => gone = true,
                Err(error) => damaged.push((piece, explain(&error))),
            }
        }
        if !gone {
            break;
        }
    }
    // Histories after the pieces that they speak of, gaps last: a hole in what was copied is explained by them.
    for name in from.sides()? {
        if let Some(content) = from.side(&name)? {
            to.put_side(&name, &content)?;
        }
    }
    tidy(from, to)?;
    let covered = runs(&to.pieces()?);
    let is_covered =
        |stream: u64, start: u64, end: u64| covered.iter().any(|run| run.stream == stream && run.start <= start && end <= run.end);
    let (mut gaps, unread) = from.gaps()?;
    findings.extend(unread.iter().map(|error| CopyFinding { object: format!("log of {}", out.source), message: explain(error) }));
    for (piece, message) in damaged {
        findings.push(CopyFinding {
            object: format!("log of {}, {:x} to {:x} of stream {}", out.source, piece.start, piece.end, piece.stream),
            message: message.clone(),
        });
        gaps.push(missing(&piece, format!("damaged in the repository that it was to be copied from: {message}"), job.clock.now()));
    }
    // Done on purpose: no finding. That it is missing must be known there all the same.
    let reason = "its key was destroyed in the repository that it was to be copied from";
    gaps.extend(destroyed.iter().map(|piece| missing(piece, reason.to_owned(), job.clock.now())));
    let (known, _) = to.gaps()?;
    for gap in gaps.iter().filter(|gap| needed.has(gap.stream, gap.to) && (gap.unreadable || !is_covered(gap.stream, gap.from, gap.to))) {
        if known.iter().all(|other| (other.stream, other.from, other.to) != (gap.stream, gap.from, gap.to)) {
            to.record_gap(gap)?;
            out.gaps += 1;
        }
    }
    Ok(())
}

/// The record of a piece that a copy does not get.
fn missing(piece: &PieceInfo, reason: String, now: DateTime<Utc>) -> Gap {
    Gap { stream: piece.stream, from: piece.start, to: piece.end, reason, noticed_at: now, unreadable: false }
}

fn stretch(piece: &PieceInfo) -> (u64, u64, u64) {
    (piece.stream, piece.start, piece.end)
}

/// Copies pieces, several at a time and oldest first. What is damaged or gone comes back as its error; anything else ends it.
fn copy_pieces(job: &Job, from: &Log, to: &Log, missing: VecDeque<PieceInfo>) -> Result<Vec<(PieceInfo, Result<()>)>> {
    let waiting = Mutex::new(missing);
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || -> Result<Vec<(PieceInfo, Result<()>)>> {
        let mut done = Vec::new();
        while let Some(piece) = next() {
            let copied = job.cancel.check().and_then(|()| from.copy_piece(&piece, to));
            match copied {
                Ok(_) => done.push((piece, Ok(()))),
                Err(error) if matches!(error.kind(), Kind::Damaged | Kind::NotFound) => done.push((piece, Err(error))),
                Err(error) => {
                    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    return Err(error);
                }
            }
            job.progress.event(Event::Advance { bytes: piece.end - piece.start, items: 1 });
        }
        Ok(done)
    };
    let results: Vec<Result<Vec<_>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..PIECES_AT_A_TIME).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(Error::new(Kind::Bug, "a copying thread panicked")))).collect()
    });
    let mut all = Vec::new();
    for result in results {
        all.extend(result?);
    }
    Ok(all)
}

/// Removes small pieces that a larger one contains and that are gone in the original, too. Best effort.
fn tidy(from: &Log, to: &Log) -> Result<()> {
    let kept: BTreeSet<(u64, u64, u64)> = from.pieces()?.iter().map(stretch).collect();
    let (there, gone): (Vec<PieceInfo>, Vec<PieceInfo>) = to.pieces()?.into_iter().partition(|piece| kept.contains(&stretch(piece)));
    let mut spare: BTreeMap<PieceInfo, Vec<PieceInfo>> = BTreeMap::new();
    for piece in gone {
        let holds = |by: &&PieceInfo| by.stream == piece.stream && by.start <= piece.start && piece.end <= by.end;
        if let Some(by) = there.iter().find(holds) {
            spare.entry(*by).or_default().push(piece);
        }
    }
    spare.iter().try_for_each(|(by, pieces)| to.remove_subsumed(pieces, by).map(drop))
}
