//! Backup: one snapshot of all sources of a plan, taken together and committed as a whole or not at all.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};
use std::time::Instant;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::entry::{EntryKind, display_path};
use crate::error::{Context, Error, Kind, Result};
use crate::event::{Event, Progress};
use crate::id::{Name, SnapshotId};
use crate::ops::log::fork;
use crate::ops::log::replay::moment_of;
use crate::ops::verdict::millis;
use crate::ops::work::{RunFolder, lock_backup, make_private};
use crate::ops::{Commit, Job, Missing, NamedSource, context, damaged_warning, explain, select};
use crate::repo::{Added, BackupWriter, Committed, Locks, Manifest, Role, SourceRecord};
use crate::source::postgres::lsn::Lsn;
use crate::source::{Finish, Problem, SourceSnapshot};

/// `lifeboat.backup/1`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupReport {
    pub schema: String,
    pub plan: String,
    pub snapshot: SnapshotId,
    /// The moment that the content is of.
    pub time: DateTime<Utc>,
    /// Plain bytes read from the sources.
    pub bytes_read: u64,
    /// Plain bytes of all files in the snapshot.
    pub bytes_source: u64,
    /// Sealed bytes that this backup added to the repository.
    pub bytes_stored: u64,
    /// Plain bytes that were read and not stored again because an earlier run, which did not finish, had stored them.
    #[serde(default)]
    pub bytes_resumed: u64,
    pub entries: u64,
    pub duration_ms: u64,
    /// By source name: the consistency point as the source tells it.
    pub consistency: BTreeMap<String, serde_json::Value>,
    /// Sentences for the operator.
    pub warnings: Vec<String>,
    /// What the sources could not read; not empty means incomplete.
    pub problems: Vec<Missing>,
    /// What was seen of Object Lock, where the plan asks for it and it was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locks: Option<Locks>,
    /// Whether the snapshot lacks something, or locks were tampered with or can be (it was committed all the same, and its manifest records what).
    pub incomplete: bool,
}

impl BackupReport {
    /// How the process should end: `None` is exit 0.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        self.incomplete.then_some(Kind::Incomplete)
    }
}

/// One backup now.
///
/// # Errors
/// `Busy` when another backup of this plan runs on this host; whatever a source or the store says: nothing was committed then.
///
/// # Cancellation
/// By `job.cancel`: `Interrupted`, nothing committed, what was uploaded is reused by the next run.
pub fn run(job: &Job) -> Result<BackupReport> {
    let clock = Instant::now();
    let started = job.clock.now();
    if job.sources.is_empty() {
        return Err(Error::new(Kind::Usage, format!("back up {}: the plan has no sources", job.plan)));
    }
    // Before any source is touched: dump commands may take hours.
    if job.repository.role() == Role::Maintainer {
        return Err(Error::new(Kind::WrongKey, format!("back up {}: this passphrase opens a maintainer key slot", job.plan))
            .hint("back up with the passphrase of a writer or reader key slot (`lifeboat key list`)"));
    }
    let _lock = lock_backup(&job.work, job.plan.as_str(), started)?;
    let folder = RunFolder::create(&job.work, started)?;
    // What this snapshot will lean on is locked first, and nothing is read for a bucket that does not keep its word.
    let mut locks = keep_locked(job, started)?;
    let (earlier, mut warnings) = look_back(job, started);

    // All sources first: an application set is of one moment. What happens while they begin may be in it or not, so the snapshot never
    // claims to be of later than when the first one began.
    let time = job.clock.now();
    let mut snapshots = begin_all(job, &folder)?;
    for (source, snapshot) in &snapshots {
        if let Some((field, now)) = snapshot.belongs() {
            same_as_before(&source.name, (field, &now), &earlier).map_err(|e| e.within("back up"))?;
        }
        not_left_behind(job, &source.name, snapshot.as_ref())?;
    }
    // A dump waits, perhaps with a transaction open, until its output is read.
    snapshots.sort_by_key(|(source, _)| source.source.kind() != "command");

    job.progress.event(Event::Phase { name: "read", detail: job.plan.to_string() });
    job.progress.event(total(&snapshots));
    let mut writer = job.repository.begin(&job.plan, started, &job.cancel)?;
    let (mut records, mut with_log) = (Vec::new(), Vec::new());
    for (source, snapshot) in snapshots {
        if snapshot.log_position().is_some() {
            with_log.push(&source.name);
        }
        let record = store_source(job, &mut writer, source, snapshot).map_err(|e| e.within(format!("back up source {}", source.name)))?;
        records.push(record);
    }
    records.sort_by_key(|record: &SourceRecord| job.sources.iter().position(|s| s.name == record.name));
    job.cancel.check()?;
    // Once more where the backup took so long that dates have come nearer.
    locks = keep_locked(job, job.clock.now())?.or(locks);
    for record in records.iter().filter(|record| with_log.contains(&&record.name)) {
        still_not_left_behind(job, record)?;
    }
    job.progress.event(Event::Phase { name: "commit", detail: job.plan.to_string() });
    let committed =
        writer.commit_if(records, time, job.tags.clone(), job.progress.as_ref(), |id| job.gate.ask(None, Commit::Snapshot(id)))?;

    // Committed: what goes wrong from here on is only told.
    if let Err(error) = folder.remove() {
        warnings.push(format!("the scratch folder could not be removed: {error}"));
    }
    warnings.extend(emptied(&earlier, &missing(&committed.manifest.sources)));
    warnings.extend(locks.iter().flat_map(|locks| locks.alarms.iter().cloned()));
    let mut report = account(committed, warnings, millis(clock.elapsed()), job.progress.as_ref());
    report.incomplete |= locks.as_ref().is_some_and(|locks| !locks.alarms.is_empty());
    report.locks = locks;
    Ok(report)
}

/// Keeps what is there under Object Lock, where the plan asks for it.
fn keep_locked(job: &Job, now: DateTime<Utc>) -> Result<Option<Locks>> {
    let locks = job.repository.keep_locked(now, false, job.progress.as_ref(), &job.cancel);
    locks.map_err(|e| e.within(format!("back up {}", job.plan)))
}

/// Begins the snapshots of all sources, each with a scratch folder of its own.
fn begin_all<'a>(job: &'a Job, folder: &RunFolder) -> Result<Vec<(&'a NamedSource, Box<dyn SourceSnapshot>)>> {
    job.progress.event(Event::Phase { name: "snapshot", detail: job.plan.to_string() });
    let mut snapshots = Vec::new();
    let is_command = |source: &&NamedSource| source.source.kind() == "command";
    let others = job.sources.iter().filter(|source| !is_command(source));
    for source in others.chain(job.sources.iter().filter(is_command)) {
        job.cancel.check()?;
        let scratch = folder.path().join(format!("scratch-{}", source.name));
        make_private(&scratch)?;
        let begun =
            source.source.begin(&context(job, scratch)).map_err(|e| e.within(format!("begin a snapshot of source {}", source.name)))?;
        snapshots.push((source, begun));
    }
    Ok(snapshots)
}

/// Snapshots under one name are states of one thing. Of another cluster behind the same URL they would look like its next state: `--latest`
/// would bring back the wrong one, and the retention of the right one would be counted by it. `field` and `now` as [`SourceSnapshot::belongs`] tells.
///
/// # Errors
/// `Usage`.
pub(crate) fn same_as_before(name: &Name, (field, now): (&str, &str), earlier: &[Manifest]) -> Result<()> {
    let of = |manifest: &Manifest| {
        let record = manifest.sources.iter().find(|record| record.name == *name)?;
        Some(finish_of(record).ok()?.consistency.get(field)?.as_str()?.to_owned())
    };
    let told = earlier.iter().filter_map(|manifest| Some((manifest, of(manifest)?)));
    let Some((manifest, before)) = told.max_by_key(|(manifest, _)| (manifest.time, manifest.id)) else { return Ok(()) };
    if before == now {
        return Ok(());
    }
    let what = field.replace('_', " ");
    Err(Error::new(
        Kind::Usage,
        format!("source {name}: this is another one than before: its {what} is {now}, that of snapshot {} is {before}", manifest.id),
    )
    .hint(format!(
        "if the URL or folder in the plan is wrong, correct it; if this one replaces the other for good (a new cluster, a major upgrade), give \
         it a new source name in the plan: snapshots of {name} stay and can still be restored"
    )))
}

/// A server that a failover left behind has a state that nothing of the log leads to. Nothing was read yet.
fn not_left_behind(job: &Job, name: &Name, snapshot: &dyn SourceSnapshot) -> Result<()> {
    let Some((timeline, start)) = snapshot.log_position() else { return Ok(()) };
    let log = job.repository.log(&job.plan, name);
    fork::left_behind(&log, fork::newest(&log)?, &format!("back up source {name}: the server"), timeline, Lsn(start))
}

/// The same of where it ended: it may have begun before the failover, and that may be known only now.
fn still_not_left_behind(job: &Job, record: &SourceRecord) -> Result<()> {
    let what = format!("back up source {}: the server", record.name);
    let (timeline, point) =
        moment_of(record).ok_or_else(|| Error::new(Kind::Bug, format!("{what} does not tell where its snapshot ends in its log")))?;
    let log = job.repository.log(&job.plan, &record.name);
    fork::left_behind(&log, fork::newest(&log)?, &what, timeline, Lsn(point.0.saturating_sub(1)))
}

/// Feeds one source's tree to the repository.
fn store_source(job: &Job, writer: &mut BackupWriter, source: &NamedSource, mut snapshot: Box<dyn SourceSnapshot>) -> Result<SourceRecord> {
    let mut tree = writer.tree(&source.name, source.source.kind(), snapshot.order())?;
    let mut left_out: HashSet<Vec<u8>> = HashSet::new();
    let mut lost_links = Vec::new();
    while let Some(entry) = snapshot.next_entry()? {
        job.cancel.check()?;
        if let EntryKind::Hardlink { target } = &entry.kind
            && left_out.contains(target)
        {
            // Another name of bytes that are not in the snapshot cannot be restored.
            let message = format!("another name of {}, which could not be read", display_path(target));
            lost_links.push(Problem { object: entry.display_path(), kind: "unreadable".into(), message });
            continue;
        }
        let size = if let EntryKind::File { size, .. } = &entry.kind { size.unwrap_or(0) } else { 0 };
        match tree.add(entry.clone())? {
            Added::Complete => job.progress.event(Event::Advance { bytes: size, items: 1 }),
            Added::NeedsContent => {
                if let Some(reader) = snapshot.open(&entry)? {
                    let mut reader = Watched { reader, job, unsaid: 0, failed: false };
                    let read = tree.content(&mut reader);
                    reader.say();
                    match read {
                        Ok(read) => {
                            if !snapshot.close(&entry, read)?.stamp_holds {
                                tree.forget_stamp();
                            }
                        }
                        Err(error) => {
                            job.cancel.check()?;
                            if !reader.failed {
                                return Err(error);
                            }
                            // One file on a bad sector must not cost all others their backup.
                            snapshot.unread(&entry, error)?;
                            left_out.insert(entry.path);
                        }
                    }
                } else {
                    tree.leave_out();
                    left_out.insert(entry.path);
                }
                job.progress.event(Event::Advance { bytes: 0, items: 1 });
            }
        }
    }
    let mut finish = snapshot.finish()?;
    finish.problems.append(&mut lost_links);
    let finish = serde_json::to_value(&finish).context(Kind::Bug, || "write the source's account".into())?;
    tree.finish(finish)
}

/// The result document of what was committed.
fn account(committed: Committed, mut warnings: Vec<String>, duration_ms: u64, progress: &dyn Progress) -> BackupReport {
    warnings.extend(committed.warnings);
    let bytes_resumed = committed.bytes_resumed;
    let Manifest { id, plan, time, sources, stats, .. } = committed.manifest;
    let problems = missing(&sources);
    if !problems.is_empty() {
        let (first, more) = (&problems[0], problems.len() - 1);
        let others = if more == 0 { String::new() } else { format!(", and {more} more") };
        // "." is the source's own folder: its name alone says which.
        let object = if first.object == "." { String::new() } else { format!(", {}", first.object) };
        warnings.push(format!("not everything could be read: source {}{object}: {} ({}){others}", first.source, first.message, first.kind));
    }
    warnings.extend(sources.iter().flat_map(told));
    for message in &warnings {
        progress.event(Event::Warning { message: message.clone() });
    }
    let consistency = sources.iter().map(|s| (s.name.to_string(), finish_of(s).unwrap_or_default().consistency)).collect();
    BackupReport {
        schema: "lifeboat.backup/1".into(),
        plan: plan.to_string(),
        snapshot: id,
        time,
        bytes_read: stats.bytes_read,
        bytes_source: stats.bytes_source,
        bytes_stored: stats.bytes_stored,
        bytes_resumed,
        entries: stats.entries,
        duration_ms,
        consistency,
        warnings,
        locks: None,
        incomplete: !problems.is_empty(),
        problems,
    }
}

/// What a source wants an operator to know although nothing is wrong.
fn told(record: &SourceRecord) -> Vec<String> {
    let consistency = finish_of(record).unwrap_or_default().consistency;
    let told = consistency["warnings"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_str);
    told.map(|warning| format!("source {}: {warning}", record.name)).collect()
}

/// What a source said when it was backed up.
///
/// # Errors
/// When this version cannot read it: nothing is known then, neither that all was backed up nor what it was.
pub(super) fn finish_of(record: &SourceRecord) -> Result<Finish> {
    serde_json::from_value(record.finish.clone()).map_err(|error| {
        Error::new(Kind::Damaged, format!("what source {} said when it was backed up cannot be read by this version", record.name))
            .because(error)
    })
}

/// What the sources of a snapshot could not read. A record that says nothing is not one that says "nothing is missing".
pub(crate) fn missing(sources: &[SourceRecord]) -> Vec<Missing> {
    let of = |record: &SourceRecord| {
        let source = record.name.to_string();
        let problems = finish_of(record).map_or_else(
            |error| vec![Problem { object: "the record of this backup".into(), kind: "unknown".into(), message: explain(&error) }],
            |finish| finish.problems,
        );
        let problems = problems.into_iter();
        problems.map(move |Problem { object, kind, message }| Missing { source: source.clone(), object, kind, message })
    };
    sources.iter().flat_map(of).collect()
}

/// Whether content is missing from a snapshot of these sources, so that it does not count against the data-loss objective. A file that was
/// written to or removed while it was read, attributes, sockets, fingerprints and definitions that could not be had are gaps too, but the snapshot has
/// what there was to have of the rest.
pub(crate) fn lacks_content(sources: &[SourceRecord]) -> bool {
    const BESIDE: [&str; 6] =
        ["changed-while-read", "vanished", "unreadable-attribute", "skipped-special", "no-fingerprint", "hidden-definition"];
    missing(sources).iter().any(|missing| !BESIDE.contains(&missing.kind.as_str()))
}

/// That a database which had content has none now: most likely something made a new file in its place. Pure.
fn emptied(earlier: &[Manifest], problems: &[Missing]) -> Vec<String> {
    let empty = problems.iter().filter(|problem| problem.kind == "empty-database");
    let of = |problem: &Missing| {
        let had = |manifest: &&Manifest| {
            let empty = missing(&manifest.sources).iter().any(|old| old.source == problem.source && old.kind == problem.kind);
            !empty && manifest.sources.iter().any(|record| record.name.as_str() == problem.source && record.bytes > 0)
        };
        let last = earlier.iter().filter(had).max_by_key(|manifest| (manifest.time, manifest.id))?;
        Some(format!(
            "source {}: {} is empty now and had content in snapshot {}: it was emptied or replaced, restore it from there",
            problem.source,
            problem.object,
            select::describe(last)
        ))
    };
    empty.filter_map(of).collect()
}

/// A clock that went backwards harms nothing here, but makes "latest by time" a question. Pure.
fn clock_warning(manifests: &[Manifest], now: DateTime<Utc>) -> Option<String> {
    let newest = manifests.iter().max_by_key(|m| m.time).filter(|m| m.time > now)?;
    Some(format!(
        "the clock says {} but snapshot {} is later than that: this host's clock, or that of the host that made it ({}), is wrong",
        select::moment(now),
        select::describe(newest),
        newest.host
    ))
}

/// Earlier snapshots of the plan, and what is worth a warning before anything is read. Damage to an old snapshot must not keep a new one from being made.
fn look_back(job: &Job, now: DateTime<Utc>) -> (Vec<Manifest>, Vec<String>) {
    match job.repository.sound_manifests(Some(&job.plan)) {
        Ok((manifests, damaged)) => {
            let warnings = damaged_warning(&damaged).into_iter().chain(clock_warning(&manifests, now)).collect();
            (manifests, warnings)
        }
        Err(error) => (Vec::new(), vec![format!("earlier snapshots could not be listed: {}", explain(&error))]),
    }
}

fn total(snapshots: &[(&NamedSource, Box<dyn SourceSnapshot>)]) -> Event {
    let (bytes, items) = snapshots.iter().filter_map(|(_, s)| s.estimate()).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    Event::Total { bytes, items }
}

/// Passes bytes on, says how many, and stops when asked to.
struct Watched<'a> {
    reader: Box<dyn Read + Send>,
    job: &'a Job,
    unsaid: u64,
    /// Whether the source could not give its bytes.
    failed: bool,
}

impl Watched<'_> {
    fn say(&mut self) {
        if self.unsaid > 0 {
            self.job.progress.event(Event::Advance { bytes: self.unsaid, items: 0 });
            self.unsaid = 0;
        }
    }
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.job.cancel.is_cancelled() {
            // Not `io::ErrorKind::Interrupted`, which readers retry for ever.
            return Err(io::Error::other("interrupted"));
        }
        let read = self.reader.read(buffer).inspect_err(|error| self.failed = error.kind() != io::ErrorKind::Interrupted)?;
        self.unsaid += read as u64;
        if self.unsaid >= 1 << 20 || read == 0 {
            self.say();
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
