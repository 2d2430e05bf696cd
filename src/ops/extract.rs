//! Everything out of a repository into the databases' own files: no daemon, no plan files, no program of a database.
//!
//! ```text
//! DIR/<plan>/<time>-<snapshot>/<source>/…    the tree as it was backed up
//! DIR/<plan>/log-<source>/<segment files>    the continuous log; histories beside them; one that is not all there is `.partial`, with zeros for the rest
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Event, Progress};
use crate::id::{Name, SnapshotId};
use crate::ops::log::replay;
use crate::ops::transfer::Transfer;
use crate::ops::work::{exists, make_missing, write_private};
use crate::ops::{explain, select};
use crate::repo::{Log, Manifest, Repository, runs};
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::wal::WalName;

/// What is taken out.
#[derive(Debug, Clone)]
pub struct ExtractRequest {
    pub to: PathBuf,
    /// Empty: all.
    pub plans: Vec<String>,
    /// Ids or unique beginnings; empty: all.
    pub snapshots: Vec<String>,
    /// Only the newest of each plan.
    pub latest: bool,
    pub logs: bool,
}

/// One snapshot that was taken out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtractedSnapshot {
    pub snapshot: SnapshotId,
    pub plan: String,
    pub folder: String,
    pub bytes: u64,
    pub entries: u64,
}

/// One log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtractedLog {
    pub plan: String,
    pub source: String,
    pub folder: String,
    pub segments: u64,
    pub bytes: u64,
}

/// `lifeboat.extract/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtractReport {
    pub schema: String,
    pub to: String,
    pub snapshots: Vec<ExtractedSnapshot>,
    pub logs: Vec<ExtractedLog>,
    /// Owners and attributes that could not be set; damaged snapshots whose content came whole as another one, which stands in their place.
    pub warnings: Vec<String>,
    /// What is not there and is not damaged either: holes in logs, and data whose key was destroyed.
    pub missing: Vec<String>,
    /// What is damaged and not there.
    pub failed: Vec<String>,
}

impl ExtractReport {
    /// How the process should end: `None` is exit 0.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        match (self.failed.is_empty(), self.missing.is_empty()) {
            (false, _) => Some(Kind::Damaged),
            (true, false) => Some(Kind::Incomplete),
            (true, true) => None,
        }
    }
}

/// Takes everything that is asked for out. What is damaged, or cannot be had any more, is told at the end and does not keep anything else.
///
/// # Errors
/// `WrongKey` without the reader role; `NoRecoveryPoint` when nothing fits; what the store or the disk says.
pub fn run(repository: &Repository, request: &ExtractRequest, progress: &dyn Progress, cancel: &Cancel) -> Result<ExtractReport> {
    repository.require_reader("extract")?;
    let (all, lost) = repository.sound_manifests(None)?;
    let destroyed_at = |manifest: &Manifest| repository.destroyed_at(manifest);
    let (chosen, passed_over) = choose(&all, request, &|manifest| destroyed_at(manifest).is_some())?;
    let destroyed = |manifest: &Manifest| {
        let at = destroyed_at(manifest).map_or_else(String::new, |at| format!(" at {}", select::moment(at)));
        format!("the key of {} was destroyed{at}; what came before it is extracted", select::describe(manifest))
    };
    let mut report = ExtractReport {
        schema: "lifeboat.extract/1".into(),
        to: request.to.display().to_string(),
        snapshots: Vec::new(),
        logs: Vec::new(),
        warnings: Vec::new(),
        missing: passed_over
            .iter()
            .map(|manifest| format!("a newer snapshot of plan {}: {}", manifest.plan, destroyed(manifest)))
            .collect(),
        failed: lost.iter().map(|lost| explain(&lost.error)).collect(),
    };
    let mut damaged: Vec<(&Manifest, String)> = Vec::new();
    for manifest in &chosen {
        cancel.check()?;
        match snapshot(repository, manifest, &request.to, progress, cancel, &mut report.warnings) {
            Ok(done) => report.snapshots.push(done),
            Err(error) if error.kind() == Kind::Damaged => damaged.push((manifest, explain(&error))),
            // The plan's key was destroyed on purpose.
            Err(error) if error.kind() == Kind::NoRecoveryPoint => {
                report.missing.push(format!("snapshot {} of plan {}: {}", manifest.id, manifest.plan, explain(&error)));
            }
            Err(error) => return Err(error.within(format!("extract snapshot {}", manifest.id))),
        }
    }
    for (manifest, why) in damaged {
        let (id, stand_for_it) = (manifest.id, in_place_of(&all, manifest.id));
        match (report.snapshots.iter().find(|done| stand_for_it.contains(&done.snapshot)), stand_for_it.last()) {
            (Some(whole), _) => report.warnings.push(format!(
                "snapshot {id} is damaged, and whole as snapshot {} in {}, which was brought back in its place; what there is of it in {} is not whole: {why}",
                whole.snapshot,
                whole.folder,
                folder_of(manifest, &request.to).display()
            )),
            (None, Some(other)) => report.failed.push(format!("snapshot {id}, in whose place snapshot {other} was brought back: {why}")),
            (None, None) => report.failed.push(format!("snapshot {id}: {why}")),
        }
    }
    let with_log =
        chosen.iter().flat_map(|m| m.sources.iter().filter(|r| replay::can_have_log(r)).map(|r| (m.plan.clone(), r.name.clone())));
    let logs: BTreeSet<(Name, Name)> = if request.logs { with_log.collect() } else { BTreeSet::new() };
    for (plan, source) in logs {
        progress.event(Event::Phase { name: "log", detail: format!("{plan} {source}") });
        let folder = request.to.join(plan.as_str()).join(format!("log-{source}"));
        let log = repository.log(&plan, &source);
        if let Some(done) = segments(&log, &plan, &source, &folder, cancel, &mut report)? {
            report.logs.push(done);
        }
    }
    Ok(report)
}

/// The snapshots that were brought back in the place of a damaged one, also of one that had been brought back itself.
fn in_place_of(all: &[Manifest], id: SnapshotId) -> BTreeSet<SnapshotId> {
    let mut reached = BTreeSet::from([id]);
    while all.iter().any(|manifest| manifest.replaces().is_some_and(|damaged| reached.contains(&damaged)) && reached.insert(manifest.id)) {}
    reached.remove(&id);
    reached
}

/// What is asked for; and where only the newest is, the newest of each plan of which an older one is taken, because nobody can read that one any more.
fn choose<'a>(
    all: &'a [Manifest],
    request: &ExtractRequest,
    is_destroyed: &dyn Fn(&Manifest) -> bool,
) -> Result<(Vec<&'a Manifest>, Vec<&'a Manifest>)> {
    let mut chosen: Vec<&Manifest> = if request.snapshots.is_empty() {
        all.iter().collect()
    } else {
        let one = |id: &String| select::choose(all, &[], &select::Choice::Snapshot(id.clone()), chrono::DateTime::<chrono::Utc>::MAX_UTC);
        request.snapshots.iter().map(one).collect::<Result<_>>()?
    };
    let names: BTreeSet<&str> = all.iter().map(|manifest| manifest.plan.as_str()).collect();
    if let Some(unknown) = request.plans.iter().find(|plan| !names.contains(plan.as_str())) {
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        return Err(Error::new(Kind::NoRecoveryPoint, format!("extract plan {unknown}: the repository holds no snapshot of it"))
            .hint(if names.is_empty() { "it holds no snapshot".to_owned() } else { format!("plans in this repository: {names}") }));
    }
    chosen.retain(|manifest| request.plans.is_empty() || request.plans.iter().any(|plan| plan == manifest.plan.as_str()));
    let mut passed_over = Vec::new();
    if request.latest {
        let (mut keep, mut passed) = (BTreeSet::new(), BTreeSet::new());
        for plan in &names {
            let own: Vec<Manifest> = chosen.iter().filter(|m| m.plan.as_str() == *plan).map(|m| (*m).clone()).collect();
            let readable: Vec<Manifest> = own.iter().filter(|manifest| !is_destroyed(manifest)).cloned().collect();
            let (newest, taken) = (select::latest(&own).map(|m| m.id), select::latest(&readable).map(|m| m.id));
            keep.extend(taken.or(newest));
            passed.extend(newest.filter(|newest| taken.is_some_and(|taken| taken != *newest)));
        }
        passed_over = chosen.iter().filter(|manifest| passed.contains(&manifest.id)).copied().collect();
        chosen.retain(|manifest| keep.contains(&manifest.id));
    }
    if chosen.is_empty() {
        return Err(Error::new(Kind::NoRecoveryPoint, "extract: there is no snapshot to extract").hint("see `lifeboat snapshots`"));
    }
    Ok((chosen, passed_over))
}

fn folder_of(manifest: &Manifest, to: &Path) -> PathBuf {
    to.join(manifest.plan.as_str()).join(format!("{}-{}", manifest.time.format("%Y-%m-%dT%H-%M-%SZ"), manifest.id))
}

fn snapshot(
    repository: &Repository,
    manifest: &Manifest,
    to: &Path,
    progress: &dyn Progress,
    cancel: &Cancel,
    warnings: &mut Vec<String>,
) -> Result<ExtractedSnapshot> {
    let folder = folder_of(manifest, to);
    progress.event(Event::Phase { name: "extract", detail: folder.display().to_string() });
    progress.event(Event::Total { bytes: manifest.stats.bytes_source, items: manifest.stats.entries });
    let (mut bytes, mut entries) = (0, 0);
    for record in &manifest.sources {
        let target = folder.join(record.name.as_str());
        make_missing(&folder)?;
        let resumed = exists(&target)?;
        let brought = Transfer { repository, progress, cancel }.bring_back(record, &target, resumed)?;
        bytes += brought.bytes;
        entries += brought.entries;
        warnings.extend(brought.warnings.into_iter().map(|warning| format!("{}: {warning}", target.display())));
    }
    Ok(ExtractedSnapshot { snapshot: manifest.id, plan: manifest.plan.to_string(), folder: folder.display().to_string(), bytes, entries })
}

/// Writes what there is of a log as a server's files.
fn segments(
    log: &Log,
    plan: &Name,
    source: &Name,
    folder: &Path,
    cancel: &Cancel,
    report: &mut ExtractReport,
) -> Result<Option<ExtractedLog>> {
    let pieces = log.pieces()?;
    let Some(size) = replay::segment_size(log, &pieces)? else {
        if !pieces.is_empty() {
            report.failed.push(format!("the log of {source}: no piece of it says how long its segments are, so none of it is taken out"));
        }
        return Ok(None);
    };
    make_missing(folder)?;
    let mut out =
        ExtractedLog { plan: plan.to_string(), source: source.to_string(), folder: folder.display().to_string(), segments: 0, bytes: 0 };
    for name in log.sides()? {
        match log.side(&name) {
            Ok(Some(content)) => write_private(&folder.join(name.as_str()), &content)?,
            Ok(None) => {}
            Err(error) if error.kind() == Kind::Damaged => {
                report.failed.push(format!("{name} of the log of {source}: {}", explain(&error)));
            }
            Err(error) => return Err(error),
        }
    }
    let found = runs(&pieces);
    for pair in found.windows(2).filter(|pair| pair[0].stream == pair[1].stream) {
        report
            .missing
            .push(format!("the log of {source} has a hole: {:x} to {:x} of timeline {}", pair[0].end, pair[1].start, pair[0].stream));
    }
    // Of a segment with a hole inside, what comes before it and what comes after.
    let mut parts: BTreeMap<(u32, u64), Vec<Range<u64>>> = BTreeMap::new();
    for run in &found {
        let Ok(timeline) = u32::try_from(run.stream) else { continue };
        for number in size.number(Lsn(run.start))..=size.number(Lsn(run.end - 1)) {
            let positions = run.start.max(size.start(number).0)..run.end.min(size.start(number + 1).0);
            parts.entry((timeline, number)).or_default().push(positions);
        }
    }
    for ((timeline, number), parts) in parts {
        cancel.check()?;
        let (start, end) = (size.start(number).0, size.start(number + 1).0);
        let name = WalName::Segment { timeline, number }.text(size);
        let mut whole = vec![0; usize::try_from(size.bytes()).unwrap_or(usize::MAX)];
        let mut read = 0;
        for positions in &parts {
            let bytes = match log.read_span(&pieces, u64::from(timeline), positions.clone()) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == Kind::Damaged => {
                    report.failed.push(format!("segment {name} of the log of {source}: {}", explain(&error)));
                    continue;
                }
                Err(error) if error.kind() == Kind::NoRecoveryPoint => {
                    report.missing.push(format!("segment {name} of the log of {source}: {}", explain(&error)));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let at = usize::try_from(positions.start - start).map_err(|_| Error::new(Kind::Bug, "a segment over memory"))?;
            whole[at..at + bytes.len()].copy_from_slice(&bytes);
            read += bytes.len() as u64;
        }
        if read == 0 {
            continue;
        }
        write_private(&folder.join(if read == end - start { name } else { format!("{name}.partial") }), &whole)?;
        out.segments += 1;
        out.bytes += read;
    }
    Ok(Some(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::{OpenOptions, Passphrase};
    use crate::store::Store;
    use crate::store::faults::truncate;

    /// Holes are told by the exit, and a history file or a piece that is damaged keeps no other from being taken out.
    #[test]
    fn a_log_is_taken_out_as_far_as_it_is_there() {
        const MIB: u64 = 1 << 20;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (store, options) = (Store::in_memory(), OpenOptions { cache: None, workers: 1 });
        let passphrase = Passphrase::new("correct horse battery staple");
        let (repository, _) = Repository::init(store.clone(), runtime.handle().clone(), &passphrase, &options, chrono::Utc::now()).unwrap();
        let (plan, source) = (Name::new("crm").unwrap(), Name::new("database").unwrap());
        let log = repository.log(&plan, &source);
        let facts = serde_json::json!({ "system_identifier": "1", "timeline": 1, "segment_bytes": MIB, "valid_to": Lsn(0) });
        let add = |number: u64| log.append(1, number * MIB, (number + 1) * MIB, &facts, &vec![7; 1 << 20]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let take = || {
            let mut report = ExtractReport {
                schema: String::new(),
                to: String::new(),
                snapshots: Vec::new(),
                logs: Vec::new(),
                warnings: Vec::new(),
                missing: Vec::new(),
                failed: Vec::new(),
            };
            let done = segments(&log, &plan, &source, folder.path(), &Cancel::default(), &mut report).unwrap();
            (done.map(|done| done.segments), report)
        };
        for number in [1, 2] {
            add(number);
        }
        log.put_side(&Name::new("00000002.history").unwrap(), b"1\t0/1\tpromoted\n").unwrap();
        let (done, report) = take();
        assert_eq!((done, report.exit()), (Some(2), None), "{report:?}");
        add(4);
        let (done, report) = take();
        assert_eq!((done, report.missing.len(), report.exit()), (Some(3), 1, Some(Kind::Incomplete)), "{report:?}");
        // A hole inside a segment: what comes before it leads on from the segment before, and is in the same file as what comes after.
        let part = |from: u64, to: u64, byte: u8| {
            let bytes = vec![byte; usize::try_from(to - from).unwrap()];
            log.append(1, 5 * MIB + from, 5 * MIB + to, &facts, &bytes).unwrap();
        };
        part(0, 300_000, 8);
        part(500_000, 600_000, 9);
        let (done, report) = take();
        assert_eq!((done, report.missing.len(), report.exit()), (Some(4), 2, Some(Kind::Incomplete)), "{report:?}");
        let file = std::fs::read(folder.path().join("000000010000000000000005.partial")).unwrap();
        let expected = [vec![8; 300_000], vec![0; 200_000], vec![9; 100_000], vec![0; (1 << 20) - 600_000]].concat();
        assert!(file == expected);
        let keys = |folder: &str| -> Vec<String> {
            let listed = runtime.block_on(store.list("logs/")).unwrap();
            listed.into_iter().map(|object| object.key).filter(|key| key.contains(folder)).collect()
        };
        runtime.block_on(truncate(&store, &keys("/history/")[0], 20)).unwrap();
        let (done, report) = take();
        assert_eq!((done, report.failed.len(), report.exit()), (Some(4), 1, Some(Kind::Damaged)), "{report:?}");
        // Nothing of it can be read: that is not the same as that there is none.
        keys("/pieces/").iter().for_each(|key| runtime.block_on(truncate(&store, key, 100)).unwrap());
        let (done, report) = take();
        assert_eq!((done, report.exit()), (None, Some(Kind::Damaged)), "{report:?}");
    }
}
