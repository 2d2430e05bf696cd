//! Repair: finds everything that is wrong, puts right what can be, and says what is lost by snapshot and file.
//!
//! First every stored byte is read (`verify`, with its stored report and its marks on damaged packs). Then: the index is made anew from the packs;
//! tombstones that cannot be read are replaced; so is a half of a volume of the retention ledger; snapshots that are harmed are brought back from another repository that has them, as new
//! snapshots in their place; log is fetched from there. Nothing damaged is removed unless what replaces it was read whole before, so a repair
//! never makes anything worse, may be interrupted anywhere, and is run again to go on. It runs beside backups as a backup does.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Event, Progress};
use crate::id::{Name, ReportId, SnapshotId};
use crate::ops::damage::Excused;
use crate::ops::verdict::millis;
use crate::ops::verify::{self, Depth};
use crate::ops::{Commit, CommitGate, counted, explain};
use crate::repo::{AcceptedLoss, Decision, Finding, HarmedVolume, IndexRepair, Log, Manifest, Parent, Repository};

/// A repository that may have what this one lost: a copy of it, or what it is a copy of.
#[derive(Clone)]
pub struct Other {
    /// In the plan files.
    pub name: Name,
    pub repository: Repository,
}

/// What to repair, and by what.
pub struct RepairRequest {
    pub repository: Repository,
    /// Asked in this order.
    pub others: Vec<Other>,
    /// Repositories that could not be asked: name and why. What they have is taken for unknown, not for lost.
    pub unreachable: Vec<(Name, String)>,
    /// Snapshots that were committed by what the journal says: see [`verify::run_against`].
    pub committed: Vec<(Name, SnapshotId)>,
    pub dry_run: bool,
    pub gate: CommitGate,
    /// Losses to accept, where they cannot be repaired.
    pub accept: Option<Acceptance>,
}

/// That a person accepts what is lost for good.
#[derive(Debug, Clone)]
pub struct Acceptance {
    /// Ids of the snapshots, or unique beginnings.
    pub snapshots: Vec<String>,
    pub reason: String,
    /// Who accepts it: user and host.
    pub by: String,
    /// The plans that may have made them: of what cannot be read only the name of its object tells.
    pub plans: Vec<Name>,
}

impl Acceptance {
    /// Whether one of the ids or beginnings of ids may be that of this snapshot.
    fn may_mean(&self, id: SnapshotId) -> bool {
        self.snapshots.iter().any(|text| is_begun_by(&text.to_ascii_lowercase(), &id.to_string()))
    }
}

/// Whether what somebody typed, in lower case, is an id or a beginning of it.
fn is_begun_by(wanted: &str, id: &str) -> bool {
    !wanted.is_empty() && id.starts_with(wanted)
}

/// One thing that is put right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// `index`, `tombstones`, `ledger`, `snapshot`, `log`, `moved` or `accept`.
    pub what: String,
    /// A key, or the id of the damaged snapshot.
    pub object: String,
    /// In words: what is done about it.
    pub detail: String,
    /// `false` in a dry run, and when it failed.
    pub done: bool,
    pub error: Option<String>,
    /// Of a snapshot: the one that stands in its place now.
    pub snapshot: Option<SnapshotId>,
    /// Sealed bytes read from the other repository.
    pub bytes_fetched: u64,
}

/// What cannot be brought back of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostSnapshot {
    pub snapshot: SnapshotId,
    /// `None`: its manifest cannot be read or is gone, so all of it is lost.
    pub plan: Option<String>,
    pub time: Option<DateTime<Utc>>,
    /// `source: path`, the first thousand of them. Of each at least a part is in damaged objects.
    pub files: Vec<String>,
    pub files_count: u64,
    /// Plain bytes of those files.
    pub bytes: u64,
    /// Parts of trees that cannot be read: what is in them is not even known by name.
    pub unread: Vec<String>,
    /// Why it may not be lost at all: another repository may have it, and nobody can tell as what.
    #[serde(default)]
    pub unknown: Option<String>,
}

/// What is wrong and was left as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    pub object: String,
    pub message: String,
    /// What to do about it.
    pub advice: String,
}

/// `lifeboat.repair/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairReport {
    pub schema: String,
    /// URL.
    pub repository: String,
    pub time: DateTime<Utc>,
    pub dry_run: bool,
    /// The verification that it began with: all stored bytes.
    pub verification: ReportId,
    pub findings: Vec<Finding>,
    pub actions: Vec<Action>,
    pub lost: Vec<LostSnapshot>,
    pub left: Vec<Left>,
    /// Repositories that could not be asked for what is lost: names.
    #[serde(default)]
    pub unasked: Vec<String>,
    /// What a verification of the structure still found afterwards; empty in a dry run.
    pub remaining: Vec<Finding>,
    pub duration_ms: u64,
    pub warnings: Vec<String>,
}

impl RepairReport {
    /// Whether there is anything to do.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.actions.is_empty()
    }

    /// How the process should end: `None` is exit 0. A dry run that finds anything is no success.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        let undone = self.actions.iter().any(|action| !action.done);
        let accepted = |lost: &LostSnapshot| self.actions.iter().any(|it| it.what == "accept" && it.object == lost.snapshot.to_string());
        let wrong = undone || !self.lost.iter().all(accepted) || !self.left.is_empty() || !self.remaining.is_empty();
        wrong.then_some(Kind::Damaged)
    }
}

/// Files that are named of each lost snapshot.
const FILES_NAMED: usize = 1000;

/// What would be done, before anything is.
pub struct Planned {
    index: IndexRepair,
    /// Snapshots to bring back, oldest first.
    snapshots: Vec<Harmed>,
    logs: Vec<HarmedLog>,
    /// Records of moved packs that cannot be read and are not needed.
    moved: Vec<String>,
    accepted: Vec<Loss>,
    /// Snapshots that there were.
    known: BTreeSet<SnapshotId>,
    /// Its actions are in the order of the steps above.
    pub report: RepairReport,
}

struct Harmed {
    id: SnapshotId,
    manifest: Option<Manifest>,
    /// Which of the others have it, and as what.
    sources: Vec<(usize, Manifest)>,
}

/// A loss that is to be accepted.
struct Loss {
    id: SnapshotId,
    what: LossOf,
}

enum LossOf {
    /// Nothing of it can be reached: its manifest, of this plan, cannot be read or is gone.
    All(Name),
    /// What these objects held.
    Part(BTreeSet<String>),
}

struct HarmedLog {
    key: String,
    plan: Name,
    source: Name,
    missing: bool,
}

/// Looks at everything and says what would be done.
///
/// # Errors
/// `WrongKey` without the reader role; when the store cannot be asked.
pub fn plan(request: &RepairRequest, clock: &dyn Clock, progress: &dyn Progress, cancel: &Cancel) -> Result<Planned> {
    let (began, repository) = (Instant::now(), &request.repository);
    repository.require_reader("repair")?;
    let verified = verify::run_against(repository, None, Depth::Data { percent: 100 }, &request.committed, clock, progress, cancel)?;
    let index = repository.plan_index_repair(cancel)?;
    let (manifests, _) = repository.sound_manifests(None)?;
    let mut report = RepairReport {
        schema: "lifeboat.repair/1".into(),
        repository: repository.store().describe().to_owned(),
        time: clock.now(),
        dry_run: request.dry_run,
        verification: verified.id,
        findings: verified.findings.clone(),
        actions: index_actions(&index),
        lost: Vec::new(),
        left: Vec::new(),
        unasked: Vec::new(),
        remaining: Vec::new(),
        duration_ms: 0,
        warnings: verified.warnings.clone(),
    };
    // Nobody has a key for it.
    report.warnings.extend(verified.destroyed.iter().map(|destroyed| format!("not checked: {destroyed}")));
    for skipped in verified.unchecked() {
        report.left.push(Left {
            object: String::new(),
            message: format!("not checked: {skipped}"),
            advice: "run the repair with a reader key that opens it".into(),
        });
    }
    for (name, why) in &request.unreachable {
        report.warnings.push(format!("repository {name} was not asked for what is missing here: {why}"));
        report.unasked.push(name.to_string());
    }
    plan_volumes(repository, &mut report)?;
    let have = ask_others(request, &mut report);
    report.findings.extend(forgotten(request, &have, &report.findings)?);
    let excused = Excused::of(repository, &manifests)?;
    let snapshots = plan_snapshots(request, &manifests, &have, &verified.accepted, &excused, &mut report, cancel)?;
    let logs = plan_logs(request, &manifests, &mut report);
    let moved = plan_moved(repository, &mut report)?;
    leave_rest(&index, &mut report);
    let accepted = plan_acceptance(request, &manifests, &mut report)?;
    report.duration_ms = millis(began.elapsed());
    let known = manifests.iter().map(|manifest| manifest.id).collect();
    Ok(Planned { index, snapshots, logs, moved, accepted, known, report })
}

fn action(what: &str, object: &str, detail: String) -> Action {
    Action { what: what.into(), object: object.into(), detail, done: false, error: None, snapshot: None, bytes_fetched: 0 }
}

fn index_actions(index: &IndexRepair) -> Vec<Action> {
    let mut actions = Vec::new();
    if index.is_needed() {
        let replaced = match index.replaced() {
            [] => String::new(),
            keys => format!(
                ", and remove {} that {} damaged or list packs that are not there",
                counted(keys.len(), "index object"),
                if keys.len() == 1 { "is" } else { "are" }
            ),
        };
        actions.push(action(
            "index",
            "index/",
            format!("list {} anew from the packs themselves{replaced}", counted(index.packs(), "pack")),
        ));
    }
    if !index.tombstones().is_empty() {
        let detail = format!(
            "replace {} that cannot be read by one that names all {}: what is stored now stays, but the next backup of each plan stores its content again",
            counted(index.tombstones().len(), "tombstones object"),
            counted(index.present(), "pack")
        );
        actions.push(action("tombstones", "gc/tombstones/", detail));
    }
    actions
}

/// Objects of volumes of the retention ledger that cannot be read, where the other half of the volume can.
fn plan_volumes(repository: &Repository, report: &mut RepairReport) -> Result<()> {
    if !report.findings.iter().any(|finding| finding.object.starts_with("retention/")) {
        return Ok(());
    }
    let harmed = match repository.harmed_volumes() {
        Ok(harmed) => harmed,
        // More of it is damaged: it is left as it is, and said.
        Err(error) if error.kind() == Kind::Damaged => return Ok(()),
        Err(error) => return Err(error),
    };
    let keys =
        |harm: HarmedVolume| harmed.iter().filter(move |(_, of)| **of == harm).map(|(key, _)| key.as_str()).collect::<Vec<_>>().join(", ");
    let (ids, records) = (keys(HarmedVolume::Ids), keys(HarmedVolume::Records));
    let mut details = Vec::new();
    if !ids.is_empty() {
        details.push(format!("make {ids} anew from the records of the same removed snapshots"));
    }
    if !records.is_empty() {
        details.push(format!(
            "give up {records}: what was known of snapshots removed long ago (plan, time, reason, hash), so that retention goes on. That they were removed stays known. \
             Where the store keeps versions, or there is a copy of the bucket, bring it back from there instead (`lifeboat repo undelete`)"
        ));
    }
    if !details.is_empty() {
        report.actions.push(action("ledger", "retention/", details.join("; ")));
    }
    Ok(())
}

/// The sound snapshots of each of the others; none, and a warning, of one that cannot be asked.
fn ask_others(request: &RepairRequest, report: &mut RepairReport) -> Vec<Vec<Manifest>> {
    let mut have = Vec::new();
    for other in &request.others {
        match other.repository.sound_manifests(None) {
            Ok((manifests, _)) => have.push(manifests),
            Err(error) => {
                report.warnings.push(format!("repository {} was not asked for what is missing here: {}", other.name, explain(&error)));
                report.unasked.push(other.name.to_string());
                have.push(Vec::new());
            }
        }
    }
    have
}

/// Snapshots of this repository that others have copies of, and that are gone although nobody removed them: the chain tells of the newest of several that
/// were taken away one after the other, and of none behind the newest that is there. `findings`: what is known already.
fn forgotten(request: &RepairRequest, have: &[Vec<Manifest>], findings: &[Finding]) -> Result<Vec<Finding>> {
    let repository = &request.repository;
    if findings.iter().any(|finding| finding.object.starts_with("retention/")) {
        // What was removed on purpose is not known; that is a finding of its own.
        return Ok(Vec::new());
    }
    let own = repository.id().to_string();
    let told: BTreeSet<SnapshotId> = findings.iter().flat_map(|finding| finding.snapshots.iter().copied()).collect();
    let mut copied: BTreeMap<SnapshotId, (&Name, &Name)> = BTreeMap::new();
    for (other, theirs) in request.others.iter().zip(have) {
        for manifest in theirs {
            if let Some(from) = manifest.copied_from.as_ref().filter(|from| from.repository == own && !told.contains(&from.snapshot)) {
                copied.entry(from.snapshot).or_insert((&manifest.plan, &other.name));
            }
        }
    }
    // After the copies: what was committed and copied meanwhile is there, and what was removed meanwhile is in the ledger.
    let (manifests, unread) = repository.sound_manifests(None)?;
    for id in manifests.iter().flat_map(|manifest| [Some(manifest.id), manifest.replaces()]).chain(unread.iter().map(|lost| lost.id)) {
        id.map(|id| copied.remove(&id));
    }
    if copied.is_empty() {
        return Ok(Vec::new());
    }
    let ledger = repository.ledger()?;
    copied.retain(|id, _| !ledger.is_removed(*id));
    let missing = |(id, (plan, other)): (SnapshotId, (&Name, &Name))| Finding {
        object: repository.snapshot_key(plan, id),
        kind: "missing".into(),
        message: format!("repository {other} has a copy of it, and it is gone although nobody removed it"),
        snapshots: vec![id],
    };
    Ok(copied.into_iter().map(missing).collect())
}

/// Which snapshots are harmed, and who has them. `have`: what each of the others has. `accepted`: findings that harm only what nobody waits for; if
/// another repository has it by now, it comes back all the same. What was destroyed on purpose does not.
fn plan_snapshots(
    request: &RepairRequest,
    manifests: &[Manifest],
    have: &[Vec<Manifest>],
    accepted: &[Finding],
    excused: &Excused,
    report: &mut RepairReport,
    cancel: &Cancel,
) -> Result<Vec<Harmed>> {
    let mut harmed: BTreeSet<SnapshotId> = report.findings.iter().flat_map(|finding| finding.snapshots.iter().copied()).collect();
    if report.findings.iter().any(|finding| finding.object.starts_with("retention/")) {
        // Without the ledger nobody can tell whether a snapshot that is gone was removed on purpose: then it must not come back.
        let gone = report
            .findings
            .iter()
            .filter(|finding| finding.object.starts_with("snapshots/") && matches!(finding.kind.as_str(), "chain-broken" | "missing"));
        for finding in gone.filter(|finding| !manifests.iter().any(|manifest| finding.snapshots.contains(&manifest.id))) {
            harmed.retain(|id| !finding.snapshots.contains(id));
            report.left.push(Left {
                object: finding.object.clone(),
                message: finding.message.clone(),
                advice: "whether it was removed on purpose stands in the retention ledger: bring that back first, then repair again".into(),
            });
        }
    }
    let replaced: BTreeSet<SnapshotId> = manifests.iter().filter_map(Manifest::replaces).collect();
    let of_accepted = accepted.iter().flat_map(|finding| finding.snapshots.iter().copied());
    let accepted_alone: BTreeSet<SnapshotId> = of_accepted.filter(|id| !harmed.contains(id) && !replaced.contains(id)).collect();
    harmed.extend(&accepted_alone);
    harmed.retain(|id| !excused.is_destroyed(*id));
    if harmed.is_empty() {
        return Ok(Vec::new());
    }
    let found = report.findings.clone();
    let bad: BTreeSet<String> = found.iter().chain(accepted).map(|finding| finding.object.clone()).collect();
    let known: HashMap<SnapshotId, &Manifest> = manifests.iter().map(|manifest| (manifest.id, manifest)).collect();
    let unread: Vec<SnapshotId> = harmed.iter().copied().filter(|id| !known.contains_key(id)).collect();
    let (pairs, unknown) = copies_that_are_lost(request, manifests, have, &unread, &found)?;
    // It shares what it lost with others whose loss was not accepted.
    let is_accepted =
        |id: SnapshotId| found.iter().filter(|finding| finding.snapshots.contains(&id)).all(|finding| excused.has(id, &finding.object));
    let mut planned = Vec::new();
    for id in harmed {
        let manifest = known.get(&id).copied();
        let mut sources: Vec<(usize, Manifest)> = pairs.get(&id).cloned().into_iter().collect();
        for (number, (other, theirs)) in request.others.iter().zip(have).enumerate() {
            let found = theirs
                .iter()
                .find(|theirs| is_same(id, manifest, &request.repository.id().to_string(), theirs, &other.repository.id().to_string()));
            sources.extend(found.map(|found| (number, found.clone())));
        }
        sources.retain(|(number, theirs)| request.others[*number].repository.destroyed_at(theirs).is_none());
        // Of what was given up, and of what is to be, nothing is promised that is not there.
        let is_to_be_accepted = request.accept.as_ref().is_some_and(|acceptance| acceptance.may_mean(id));
        if is_to_be_accepted || accepted_alone.contains(&id) || is_accepted(id) {
            sources = give_all(request, sources, cancel)?;
        }
        if let Some((number, theirs)) = sources.first() {
            let detail = format!(
                "bring its content back from {} (snapshot {} there) as a new snapshot in its place",
                request.others[*number].name, theirs.id
            );
            report.actions.push(action("snapshot", &id.to_string(), detail));
            planned.push(Harmed { id, manifest: manifest.cloned(), sources });
        } else if !accepted_alone.contains(&id) && !is_accepted(id) {
            let lost = lost(&request.repository, id, manifest, &bad, cancel)?;
            report.lost.push(LostSnapshot { unknown: unknown.get(&id).cloned(), ..lost });
        }
    }
    Ok(planned)
}

/// Of repositories that have a snapshot, those that give all of it, or cannot say whether they do now. The others have lost of it too.
fn give_all(request: &RepairRequest, sources: Vec<(usize, Manifest)>, cancel: &Cancel) -> Result<Vec<(usize, Manifest)>> {
    let mut giving = Vec::new();
    for (number, theirs) in sources {
        match request.others[number].repository.read_whole(&theirs, cancel) {
            Err(error) if error.kind() == Kind::Interrupted => return Err(error),
            Err(error) if is_lost_there(error.kind()) => {}
            _ => giving.push((number, theirs)),
        }
    }
    Ok(giving)
}

/// Whether what could not be read so is not there to be read.
fn is_lost_there(kind: Kind) -> bool {
    matches!(kind, Kind::Damaged | Kind::NotFound | Kind::NoRecoveryPoint)
}

/// By snapshots that were copies and whose manifests are gone: the original that each is brought back from.
type Originals = BTreeMap<SnapshotId, (usize, Manifest)>;

/// Of a copy whose manifest cannot be read nobody knows what it was a copy of. Where the other repository has, or had, just as many snapshots of the plan
/// from before them that are copied nowhere here, those are the ones. Where it has more, that is not known, and said: in words, by snapshot.
fn copies_that_are_lost(
    request: &RepairRequest,
    manifests: &[Manifest],
    have: &[Vec<Manifest>],
    unread: &[SnapshotId],
    findings: &[Finding],
) -> Result<(Originals, BTreeMap<SnapshotId, String>)> {
    let (mut pairs, mut unknown) = (Originals::new(), BTreeMap::new());
    let objects: BTreeSet<&str> = findings.iter().map(|finding| finding.object.as_str()).collect();
    for (number, (other, theirs)) in request.others.iter().zip(have).enumerate() {
        let their_id = other.repository.id().to_string();
        let origin = |manifest: &'_ Manifest| manifest.copied_from.clone().filter(|from| from.repository == their_id);
        // What was brought back from there alone makes no copy.
        if unread.is_empty() || !manifests.iter().any(|manifest| manifest.replaces().is_none() && origin(manifest).is_some()) {
            continue;
        }
        let copied: BTreeSet<SnapshotId> = manifests.iter().filter_map(origin).flat_map(|from| [from.snapshot, from.place()]).collect();
        let plans: BTreeSet<&Name> = theirs.iter().map(|manifest| &manifest.plan).collect();
        let mut removed: BTreeMap<Name, Vec<SnapshotId>> = BTreeMap::new();
        let ledger = other.repository.ledger()?;
        // Of those whose records cannot be read it is not known of which plan they were.
        let mut of_any_plan: BTreeSet<SnapshotId> = ledger.removed_ids().collect();
        let read = other.repository.removals(&ledger, |snapshot| {
            of_any_plan.remove(&snapshot.id);
            if plans.contains(&snapshot.plan) {
                removed.entry(snapshot.plan).or_default().push(snapshot.id);
            }
        });
        if let Err(error) = read
            && error.kind() != Kind::Damaged
        {
            return Err(error);
        }
        for plan in plans {
            let is_of_plan = |id: &&SnapshotId| objects.contains(request.repository.snapshot_key(plan, **id).as_str());
            let lost: Vec<SnapshotId> = unread.iter().filter(is_of_plan).filter(|id| !pairs.contains_key(*id)).copied().collect();
            let Some(last) = lost.last().and_then(|id| id.generated()) else { continue };
            let (of_plan, unreadable) = other.repository.sound_manifests(Some(plan))?;
            let replaced: BTreeSet<SnapshotId> = of_plan.iter().filter_map(Manifest::replaces).collect();
            let may_be = |id: SnapshotId| !copied.contains(&id) && id.generated().is_none_or(|generated| generated <= last);
            let own = request.repository.id().to_string();
            let is_own = |m: &Manifest| m.copied_from.as_ref().is_some_and(|from| from.repository == own);
            let there: Vec<&Manifest> = of_plan.iter().filter(|m| may_be(m.id) && !replaced.contains(&m.id) && !is_own(m)).collect();
            let was_there = removed.get(plan).into_iter().flatten().chain(&of_any_plan).copied().map(Some);
            let gone = was_there.chain(unreadable.iter().map(|lost| lost.id)).filter(|id| id.is_none_or(may_be)).count();
            let in_order = there.iter().zip(&lost).all(|(original, copy)| original.id.generated() <= copy.generated());
            if gone == 0 && there.len() == lost.len() && in_order {
                pairs.extend(lost.into_iter().zip(there).map(|(copy, original)| (copy, (number, original.clone()))));
            } else if !there.is_empty() {
                let why = format!(
                    "repository {} has {} of plan {plan} that may be the original of it, and its manifest alone said which: `lifeboat copy {plan} --all` to this \
                     repository copies what it does not have",
                    other.name,
                    counted(there.len(), "snapshot")
                );
                unknown.extend(lost.into_iter().map(|id| (id, why.clone())));
            }
        }
    }
    unknown.retain(|id, _| !pairs.contains_key(id));
    Ok((pairs, unknown))
}

/// Whether a snapshot of another repository has the content of one of ours: one is a copy of the other, or both are of the same. Pure.
fn is_same(id: SnapshotId, ours: Option<&Manifest>, our_repository: &str, theirs: &Manifest, their_repository: &str) -> bool {
    let of = |manifest: &Manifest| manifest.copied_from.as_ref().map(|from| (from.repository.clone(), from.snapshot));
    let their_origin = of(theirs);
    let our_origin = ours.and_then(of);
    // Brought back there in the place of what ours is a copy of.
    let stands_for_our_origin =
        || our_origin.as_ref().is_some_and(|(repository, snapshot)| repository == their_repository && theirs.replaces() == Some(*snapshot));
    their_origin.as_ref().is_some_and(|(repository, snapshot)| repository == our_repository && *snapshot == id)
        || our_origin.as_ref().is_some_and(|(repository, snapshot)| repository == their_repository && *snapshot == theirs.id)
        || (our_origin.is_some() && our_origin == their_origin)
        || stands_for_our_origin()
}

fn lost(
    repository: &Repository,
    id: SnapshotId,
    manifest: Option<&Manifest>,
    bad: &BTreeSet<String>,
    cancel: &Cancel,
) -> Result<LostSnapshot> {
    let harmed = match manifest {
        Some(manifest) => repository.harmed_files(manifest, bad, FILES_NAMED, cancel)?,
        None => crate::repo::HarmedFiles::default(),
    };
    Ok(LostSnapshot {
        snapshot: id,
        plan: manifest.map(|manifest| manifest.plan.to_string()),
        time: manifest.map(|manifest| manifest.time),
        files: harmed.files,
        files_count: harmed.count,
        bytes: harmed.bytes,
        unread: harmed.unread,
        unknown: None,
    })
}

/// Which parts of logs are harmed, and whose they are.
fn plan_logs(request: &RepairRequest, manifests: &[Manifest], report: &mut RepairReport) -> Vec<HarmedLog> {
    let findings: Vec<Finding> = report.findings.iter().filter(|finding| finding.object.starts_with("logs/")).cloned().collect();
    if findings.is_empty() {
        return Vec::new();
    }
    let mut sources: BTreeSet<(Name, Name)> = BTreeSet::new();
    let mut note = |manifests: &[Manifest]| {
        for manifest in manifests {
            sources.extend(manifest.sources.iter().map(|source| (manifest.plan.clone(), source.name.clone())));
        }
    };
    note(manifests);
    for other in &request.others {
        if let Ok((theirs, _)) = other.repository.sound_manifests(None) {
            note(&theirs);
        }
    }
    let mut planned = Vec::new();
    for finding in findings {
        let whose = sources.iter().find(|(plan, source)| {
            let log = request.repository.log(plan, source);
            log.stretch_of(&finding.object).is_some() || log.side_of(&finding.object).is_some()
        });
        let found = match whose {
            Some((plan, source)) if !request.others.is_empty() => {
                let theirs = request.others.iter().map(|other| other.repository.log(plan, source));
                let ours = request.repository.log(plan, source);
                theirs.map(|theirs| can_mend(&ours, &theirs, &finding.object)).find(|can| !matches!(can, Ok(false))).map(|_| (plan, source))
            }
            _ => None,
        };
        if let Some((plan, source)) = found {
            let detail = format!("fetch it from another repository's log of source {source}");
            report.actions.push(action("log", &finding.object, detail));
            let missing = finding.kind == "missing";
            planned.push(HarmedLog { key: finding.object, plan: plan.clone(), source: source.clone(), missing });
        } else {
            report.left.push(Left {
                object: finding.object,
                message: finding.message,
                advice: "no other repository has this part of the log: moments after it cannot be reached from what comes before it. Back up now, so that recovery begins anew".into(),
            });
        }
    }
    planned
}

/// Whether the other log has anything of it. What cannot be asked may have it.
fn can_mend(ours: &Log, theirs: &Log, key: &str) -> Result<bool> {
    if let Some((stream, start, end)) = ours.stretch_of(key) {
        return Ok(theirs.pieces()?.iter().any(|piece| piece.stream == stream && piece.start < end && start < piece.end));
    }
    Ok(ours.side_of(key).is_some_and(|name| theirs.sides().is_ok_and(|sides| sides.contains(&name))))
}

/// A collection that has read a record before it rotted may be paused, and may delete by it when it goes on. As long as a backup may be paused.
const RECORD_AGE: TimeDelta = TimeDelta::days(7);

/// Records of moved packs that cannot be read, and through which nothing leads: all of every snapshot was found without them.
fn plan_moved(repository: &Repository, report: &mut RepairReport) -> Result<Vec<String>> {
    let damaged = repository.damaged_records()?;
    let is_harm = |finding: &Finding| {
        !finding.snapshots.is_empty() || finding.object.starts_with("snapshots/") || finding.object.starts_with("retention/")
    };
    if damaged.is_empty() || report.findings.iter().any(is_harm) {
        return Ok(Vec::new());
    }
    let mut unneeded = Vec::new();
    for (key, since) in damaged {
        if report.time - since < RECORD_AGE {
            continue;
        }
        let detail = "remove this record of where rewritten packs have gone: it cannot be read, and every snapshot is whole without it";
        report.actions.push(action("moved", &key, detail.into()));
        unneeded.push(key);
    }
    Ok(unneeded)
}

/// What is neither put right nor a snapshot's loss, with advice.
fn leave_rest(index: &IndexRepair, report: &mut RepairReport) {
    let moved = report.actions.iter().filter(|action| action.what == "moved").map(|action| &action.object);
    let handled: BTreeSet<String> = index.replaced().iter().chain(index.tombstones()).chain(moved).cloned().collect();
    let is_ledger_mended = report.actions.iter().any(|action| action.what == "ledger");
    for finding in &report.findings {
        let folder = finding.object.split('/').next().unwrap_or_default();
        let advice = match (folder, finding.kind.as_str()) {
            // Otherwise it could be read.
            ("retention", _) if is_ledger_mended => continue,
            _ if handled.contains(finding.object.as_str()) || finding.kind == "not-indexed" => continue,
            ("logs", _) => continue,
            ("keys", _) if finding.object.starts_with("keys/plan-") => {
                "bring it back from the store's versions (`lifeboat repo undelete`) or a copy of the bucket: without it this plan's data cannot be read. The plan is \
                 not backed up until it is back, or the plan has another key of its own (`lifeboat key own`)"
            }
            _ if !finding.snapshots.is_empty() => continue,
            // Only the index named it.
            ("packs", "missing") => continue,
            ("packs", _) => "no snapshot needs it and no backup will use it: it is left for the collection of garbage",
            ("keys", _) if finding.object.starts_with("keys/generation-") => {
                "it is the mark of a key generation: bring it back from the store's versions (`lifeboat repo undelete`) or a copy of the bucket; if no reader of yours \
                 rotated the keys, somebody put it there: delete it"
            }
            ("keys", _) if finding.object.contains('.') => {
                "it gave the newest keys to one key slot: bring it back from the store's versions (`lifeboat repo undelete`) or a copy of the bucket, or add a new \
                 slot for its holder (`lifeboat key add`), then remove that one (`lifeboat key remove`)"
            }
            ("keys", _) => {
                "open the repository by another key slot, add a new one for its holder (`lifeboat key add`), then remove this one (`lifeboat key remove`)"
            }
            ("sessions", _) => {
                "a backup that is at work may have written it, so it stays; when no host backs up to this repository it may be deleted by hand"
            }
            ("gc", _) if finding.object.starts_with("gc/moved/") => {
                "it says where rewritten packs have gone, and until it is gone itself nothing is collected. A repair removes it when every snapshot is whole without it \
                 (those named above were brought back and then removed by `lifeboat prune`, or given up) and it is seven days old; sooner it may be deleted by hand, if then no prune is at work"
            }
            ("gc", _) if finding.object.starts_with("gc/waits/") => {
                "it says which backups a collection waited for, so that a later one need not: nothing depends on it, and it may be deleted by hand"
            }
            ("reports", _) => "what it said is lost; drill and verify again, then it may be deleted by hand",
            ("retention", _) => {
                "it says what was removed on purpose and what is held, and until it is whole again nothing is removed, held or collected. Backups and restores go on. Bring \
                 the entries back from the store's versions (`lifeboat repo undelete`) or a copy of the bucket; if the repository was put back to an older state on \
                 purpose, `lifeboat repo accept` says so on each machine"
            }
            ("key-events", _) => "what it said was done with keys is lost; nothing else depends on it, and it may be deleted by hand",
            _ => "it is nothing that this program knows how to replace",
        };
        report.left.push(Left { object: finding.object.clone(), message: finding.message.clone(), advice: advice.into() });
    }
}

/// Does what was planned, and looks again. What fails is recorded with its action, and the rest is done all the same.
///
/// # Errors
/// Interrupted; when the repository cannot be looked at afterwards.
pub fn apply(
    planned: Planned,
    request: &RepairRequest,
    clock: &dyn Clock,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<RepairReport> {
    let began = Instant::now();
    let Planned { index, snapshots, logs, moved, accepted, known, mut report } = planned;
    let mut outcomes: BTreeMap<(String, String), Result<(Option<SnapshotId>, u64)>> = BTreeMap::new();
    let key = |what: &str, object: &str| (what.to_owned(), object.to_owned());
    // Objects that were replaced and that the store refuses to delete.
    let mut refused: Vec<(String, Error)> = Vec::new();
    if index.is_needed() {
        progress.event(Event::Phase { name: "index", detail: counted(index.packs(), "pack") });
        let done = request.repository.repair_index(&index).map(|some| refused.extend(some));
        outcomes.insert(key("index", "index/"), done.map(|()| (None, 0)));
    }
    let done = request.repository.replace_tombstones(&index, clock.now()).map(|some| refused.extend(some));
    outcomes.insert(key("tombstones", "gc/tombstones/"), done.map(|()| (None, 0)));
    if report.actions.iter().any(|action| action.what == "ledger") {
        progress.event(Event::Phase { name: "ledger", detail: String::new() });
        let done = request.repository.mend_volumes("a repair made parts of its state anew", clock.now());
        outcomes.insert(key("ledger", "retention/"), done.map(|_| (None, 0)));
    }
    for harmed in &snapshots {
        cancel.check()?;
        progress.event(Event::Phase { name: "snapshot", detail: harmed.id.to_string() });
        let outcome = bring_back(request, harmed, clock, progress, cancel);
        if outcome.as_ref().is_err_and(|error| is_lost_there(error.kind())) && give_all(request, harmed.sources.clone(), cancel)?.is_empty()
        {
            let bad = report.findings.iter().map(|finding| finding.object.clone()).collect();
            report.lost.push(lost(&request.repository, harmed.id, harmed.manifest.as_ref(), &bad, cancel)?);
        }
        outcomes.insert(key("snapshot", &harmed.id.to_string()), outcome);
    }
    for log in &logs {
        cancel.check()?;
        progress.event(Event::Phase { name: "log", detail: log.source.to_string() });
        outcomes.insert(key("log", &log.key), mend_log(request, log).map(|()| (None, 0)));
    }
    for record in &moved {
        outcomes.insert(key("moved", record), request.repository.remove_damaged_record(record).map(|()| (None, 0)));
    }
    for loss in &accepted {
        outcomes.insert(key("accept", &loss.id.to_string()), accept(request, loss, clock.now()).map(|()| (None, 0)));
    }
    cancel.check()?;
    for action in &mut report.actions {
        match outcomes.remove(&(action.what.clone(), action.object.clone())) {
            Some(Ok((snapshot, bytes))) => (action.done, action.snapshot, action.bytes_fetched) = (true, snapshot, bytes),
            Some(Err(error)) => action.error = Some(explain(&error)),
            None => {}
        }
    }
    let after = verify::run_against(&request.repository, None, Depth::Structure, &request.committed, clock, progress, cancel)?;
    let told: BTreeSet<SnapshotId> = report.lost.iter().map(|lost| lost.snapshot).collect();
    let left: BTreeSet<&str> = report.left.iter().map(|left| left.object.as_str()).collect();
    // An index object that stays although what it lists is listed anew harms nothing; tombstones that cannot be read fail every backup.
    let stays: BTreeSet<&str> = refused.iter().map(|(key, _)| key.as_str()).filter(|key| key.starts_with("index/")).collect();
    let excused = Excused::of(&request.repository, &request.repository.sound_manifests(None)?.0)?;
    let only_listed = |finding: &Finding| finding.object.starts_with("packs/") && finding.kind == "missing" && finding.snapshots.is_empty();
    let is_told = |finding: &Finding| {
        left.contains(finding.object.as_str())
            || stays.contains(finding.object.as_str())
            || !stays.is_empty() && only_listed(finding)
            || (!finding.snapshots.is_empty() && finding.snapshots.iter().all(|id| told.contains(id) || excused.has(*id, &finding.object)))
    };
    report.remaining = after.findings.into_iter().filter(|finding| !is_told(finding)).collect();
    report.warnings.extend(after.warnings);
    for (key, error) in &refused {
        report
            .warnings
            .push(format!("{key} was replaced, and the store refuses to delete it; the next repair tries again: {}", explain(error)));
    }
    lean_on_damage(request, &known, &mut report, cancel)?;
    report.duration_ms += millis(began.elapsed());
    Ok(report)
}

/// Of the losses that are to be accepted, what each is. Nothing is accepted that is not lost, or of which nobody can say that it is.
fn plan_acceptance(request: &RepairRequest, manifests: &[Manifest], report: &mut RepairReport) -> Result<Vec<Loss>> {
    let Some(acceptance) = &request.accept else { return Ok(Vec::new()) };
    let usage = |message: String, hint: String| Err(Error::new(Kind::Usage, message).hint(hint));
    if !report.unasked.is_empty() {
        let who = report.unasked.join(", ");
        return Err(Error::new(Kind::Unavailable, format!("accept a loss: repository {who} could not be asked, and may have what is lost"))
            .hint("nothing was accepted. Run it again when that repository can be read; if it is gone for good, take it out of the plan files first"));
    }
    let (ledger, open) = (request.repository.ledger()?, request.repository.open_commits()?);
    let mut losses: Vec<Loss> = Vec::new();
    for text in &acceptance.snapshots {
        let wanted = text.to_ascii_lowercase();
        let found: Vec<&LostSnapshot> = report.lost.iter().filter(|lost| is_begun_by(&wanted, &lost.snapshot.to_string())).collect();
        let lost = match found.as_slice() {
            [one] => *one,
            [] if report.actions.iter().any(|action| action.what == "snapshot" && is_begun_by(&wanted, &action.object)) => {
                return usage(
                    format!("accept the loss of snapshot {text}: it is not lost, another repository has it"),
                    "run the repair without --accept-loss: it brings it back".to_owned(),
                );
            }
            [] => {
                let ids: Vec<String> = report.lost.iter().map(|lost| lost.snapshot.to_string()).collect();
                let hint = if ids.is_empty() { "nothing is lost".to_owned() } else { format!("lost are: {}", ids.join(", ")) };
                return usage(format!("accept the loss of snapshot {text}: no snapshot that is lost is called so"), hint);
            }
            several => {
                return usage(
                    format!("accept the loss of snapshot {text}: {} begin with that", several.len()),
                    "give more of the id".into(),
                );
            }
        };
        let id = lost.snapshot;
        if let Some(why) = &lost.unknown {
            return usage(format!("accept the loss of snapshot {id}: that it is lost is not certain: {why}"), "do that first".to_owned());
        }
        if losses.iter().any(|loss| loss.id == id) {
            continue;
        }
        let harming = report.findings.iter().filter(|finding| finding.snapshots.contains(&id));
        let objects: BTreeSet<String> = harming.map(|finding| finding.object.clone()).collect();
        let (what, detail) = if manifests.iter().any(|manifest| manifest.id == id) {
            let detail = format!(
                "accept that it lost what {} held ({}): what is left of it stays until no rule of its plan keeps it, and can be restored until then",
                counted(objects.len(), "object"),
                acceptance.reason
            );
            (LossOf::Part(objects), detail)
        } else {
            if let Some(hold) = ledger.hold(id, report.time) {
                return usage(
                    format!("accept the loss of snapshot {id}: it is held ({}, by {})", hold.reason, hold.by),
                    format!("whoever holds it has to know: `lifeboat snapshots release {id}`, then run it again"),
                );
            }
            if open.contains(&id) {
                return Err(Error::new(Kind::Busy, format!("accept the loss of snapshot {id}: its backup has not ended yet"))
                    .hint("run it again when that backup has ended, or was given up by a prune"));
            }
            let of_journal = request.committed.iter().map(|(plan, _)| plan);
            let mut plans = manifests.iter().map(|manifest| &manifest.plan).chain(&acceptance.plans).chain(of_journal);
            let Some(plan) = plans.find(|plan| objects.contains(&request.repository.snapshot_key(plan, id))) else {
                return usage(
                    format!("accept the loss of snapshot {id}: which plan made it is not known"),
                    "only the plan's name tells: run it where a plan file with that name is".to_owned(),
                );
            };
            let detail = format!(
                "accept that all of it is lost ({}): it counts as removed from plan {plan} on purpose, and what nothing else needs goes with the next prune",
                acceptance.reason
            );
            (LossOf::All(plan.clone()), detail)
        };
        report.actions.push(action("accept", &id.to_string(), detail));
        losses.push(Loss { id, what });
    }
    Ok(losses)
}

/// Puts on record, in the retention ledger, that a loss is accepted.
fn accept(request: &RepairRequest, loss: &Loss, now: DateTime<Utc>) -> Result<()> {
    let Some(Acceptance { reason, by, .. }) = &request.accept else { return Ok(()) };
    let (repository, id) = (&request.repository, loss.id);
    repository.amend_ledger(now, |ledger| {
        // After the ledger: what it says of these is known.
        let (manifests, _) = repository.sound_manifests(None)?;
        let is_read = manifests.iter().any(|manifest| manifest.id == id);
        if ledger.is_removed(id) {
            return Ok(None);
        }
        let decision = match &loss.what {
            LossOf::Part(_) if !is_read => Err("its manifest cannot be read any more"),
            LossOf::All(_) if is_read => Err("its manifest can be read now"),
            LossOf::All(_) if ledger.hold(id, now).is_some() => Err("it is held now"),
            LossOf::Part(objects) => {
                let (objects, reason, by) = (objects.clone(), reason.clone(), by.clone());
                Ok(Decision::Accept { losses: vec![AcceptedLoss { snapshot: id, objects, reason, by, accepted_at: now }] })
            }
            LossOf::All(plan) => {
                let reason = format!("lost, and that was accepted: {reason} (by {by})");
                let mut removed = repository.removal_of_unread(plan, id, manifests.iter(), &reason, now);
                // Nothing but it said that this one was there.
                let of_plan = || manifests.iter().filter(|manifest| manifest.plan == *plan);
                let named: BTreeSet<SnapshotId> = of_plan().flat_map(|manifest| manifest.parents.iter().map(|parent| parent.id)).collect();
                if let Some(before) = of_plan().filter(|manifest| manifest.id < id && !named.contains(&manifest.id)).max_by_key(|m| m.id) {
                    let known = repository.removals_of(&[(before, "")], now)?;
                    removed.parents.extend(known.into_iter().map(|known| Parent { id: known.id, hash: known.hash }));
                }
                Ok(Decision::Remove { snapshots: vec![removed] })
            }
        };
        let decision =
            decision.map_err(|why| Error::new(Kind::Busy, format!("accept the loss of snapshot {id}: {why}")).hint("run it again"))?;
        // Right before the entry, as for every other removal.
        request.gate.ask(None, Commit::Retention)?;
        Ok(Some(decision))
    })?;
    Ok(())
}

/// Backups that began before the damaged packs were marked may lean on them, which the check of the structure does not see.
fn lean_on_damage(request: &RepairRequest, known: &BTreeSet<SnapshotId>, report: &mut RepairReport, cancel: &Cancel) -> Result<()> {
    let bad: BTreeSet<String> = report
        .findings
        .iter()
        .filter(|finding| finding.object.starts_with("packs/") && finding.kind != "not-indexed")
        .map(|f| f.object.clone())
        .collect();
    if bad.is_empty() {
        return Ok(());
    }
    let repository = &request.repository;
    let at_work = repository.open_commits().is_ok_and(|open| open.iter().any(|id| !known.contains(id)));
    for manifest in repository.sound_manifests(None)?.0.iter().filter(|manifest| !known.contains(&manifest.id)) {
        let harmed = repository.harmed_files(manifest, &bad, 1, cancel)?;
        if harmed.count > 0 || !harmed.unread.is_empty() {
            report.remaining.push(Finding {
                object: repository.manifest_key(manifest),
                kind: "damaged".into(),
                message: format!(
                    "it was committed meanwhile by a backup that had begun before, and {} of its files lean on what is damaged: repair again",
                    harmed.count
                ),
                snapshots: vec![manifest.id],
            });
        }
    }
    if at_work {
        report.warnings.push(
            "a backup is at work, or was killed, that had begun before the damaged packs were marked and may lean on them: when it has ended, \
             `lifeboat verify --data` tells"
                .into(),
        );
    }
    Ok(())
}

/// From the first of the others that gives it whole.
fn bring_back(
    request: &RepairRequest,
    harmed: &Harmed,
    clock: &dyn Clock,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<(Option<SnapshotId>, u64)> {
    let mut last = Error::new(Kind::Bug, "a snapshot that nobody has was to be brought back");
    for (number, theirs) in &harmed.sources {
        let other = &request.others[*number];
        let may = |id| request.gate.ask(None, Commit::Snapshot(id));
        let ours = harmed.manifest.as_ref();
        match request.repository.bring_back(&other.repository, theirs, harmed.id, ours, clock.now(), progress, cancel, may) {
            Ok((committed, stats)) => return Ok((Some(committed.manifest.id), stats.bytes_fetched)),
            Err(error) if matches!(error.kind(), Kind::Interrupted | Kind::Busy) => return Err(error),
            Err(error) => last = error.within(format!("bring snapshot {} back from {}", harmed.id, other.name)),
        }
    }
    Err(last)
}

fn mend_log(request: &RepairRequest, harmed: &HarmedLog) -> Result<()> {
    let ours = request.repository.log(&harmed.plan, &harmed.source);
    let mut last = Error::new(Kind::Damaged, format!("no other repository has all of {}", harmed.key));
    for other in &request.others {
        let theirs = other.repository.log(&harmed.plan, &harmed.source);
        let mended = match (ours.stretch_of(&harmed.key), ours.side_of(&harmed.key)) {
            (Some(stretch), _) if harmed.missing => ours.close_hole(stretch, &theirs),
            (Some(stretch), _) => ours.mend_piece(stretch, &theirs),
            (None, Some(name)) => ours.mend_side(&name, &theirs),
            (None, None) => Ok(false),
        };
        match mended {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => last = error.within(format!("fetch {} from {}", harmed.key, other.name)),
        }
    }
    Err(last)
}
