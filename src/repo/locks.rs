//! Object Lock over the repository's life: what is kept stays locked, and what was hidden or overwritten is told.
//!
//! An object is locked by the request that writes it ([`crate::store::ObjectLock`]). Here the dates are moved on while it is needed, by whoever
//! works with the repository: everything that is there and was not given up, whether a snapshot leads to it or not, so that no marking is needed and
//! a pack that a new snapshot only refers to is extended before that snapshot commits.
//!
//! Each class of objects has a time of its own ([`object_lock`]): no piece of log is locked for longer than the snapshot that it goes on from, and no snapshot for
//! longer than the keys that open it. What a snapshot consists of is one class.
//!
//! Given up is what the ledger has removed, entries of the ledger before its newest base and volumes that this does not list, packs that have a tombstone and were deleted, and key slots
//! of whose removal there is a signed event. Versions are listed *before* these are read: whoever removes something says so first, so a delete marker on any
//! other pack, manifest, entry or key was made by somebody else.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Event, Progress};
use crate::repo::format::PackId;
use crate::repo::ledger::{Ledger, number_of};
use crate::repo::nodes::NodeReader;
use crate::repo::session::read_tombstones;
use crate::repo::snapshot::id_of;
use crate::repo::tree::{Content, Record};
use crate::repo::{FORMAT_KEY, Manifest, Repository, ledger, log, moved};
use crate::store::{LockClass, LockMode, ObjectLock, ObjectRetention, Version};

/// Objects that come and go with the work, and would only be in the way. Each with its slash.
pub const UNLOCKED: &[&str] = &["sessions/", "probe/", "gc/tombstones/", "gc/waits/"];
/// What a snapshot consists of.
const SNAPSHOTS: LockClass =
    LockClass { name: "snapshots", folders: &["snapshots/", "packs/", "index/", "gc/moved/"], retain: Duration::ZERO };
/// Continuous logs. No snapshot needs them: each holds the log that it needs.
const LOGS: LockClass = LockClass { name: "logs", folders: &["logs/"], retain: Duration::ZERO };

/// Requests at a time.
const REQUESTS: usize = 16;
/// Pieces of log that are in memory at a time.
const PIECES: usize = 4;
/// Most alarms that are told one by one.
const ALARMS: usize = 20;

/// How the objects of a repository are locked: `snapshots` is for snapshots and what they consist of, `logs` for continuous logs, `retain` for all that
/// these need besides (the format, keys, the retention ledger) and what tells of them (reports, key events). At least so long; `logs` ≤ `snapshots` ≤ `retain`.
#[must_use]
pub const fn object_lock(mode: LockMode, retain: Duration, snapshots: Duration, logs: Duration) -> ObjectLock {
    let classes = [LockClass { retain: snapshots, ..SNAPSHOTS }, LockClass { retain: logs, ..LOGS }];
    ObjectLock { mode, retain, classes, unlocked: UNLOCKED }
}

/// What was seen of the locks of a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locks {
    /// What is kept and locked.
    pub objects: u64,
    /// Whose date was moved on.
    pub extended: u64,
    /// How many were asked for their date.
    pub asked: u64,
    /// What somebody has done to committed objects, and what these credentials could do; sentences.
    pub alarms: Vec<String>,
}

/// What a few objects say of their dates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LockSample {
    /// How many were looked at.
    pub looked: usize,
    /// Those that are not locked any more or are about to be unlocked. Where a backup, copy or prune runs at least once in the time that is asked for, there
    /// is none.
    pub lapsed: Vec<Lapsed>,
    /// The earliest date of the others, by the key of a plan's `object_lock` that says for how long they are locked.
    pub until: BTreeMap<&'static str, DateTime<Utc>>,
}

/// An object whose lock is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lapsed {
    pub key: String,
    /// `None`: it has no lock, or none that can be seen.
    pub until: Option<DateTime<Utc>>,
    /// The key of a plan's `object_lock` that says for how long it is locked.
    pub class: &'static str,
}

impl LockSample {
    /// What is wrong, if anything is; a sentence.
    #[must_use]
    pub fn told(&self) -> Option<String> {
        let Lapsed { key, until, class } = self.lapsed.first()?;
        let all =
            if self.lapsed.len() == 1 { String::new() } else { format!(" ({} of {} that were looked at)", self.lapsed.len(), self.looked) };
        Some(match until {
            Some(until) => format!(
                "{key} is locked until {} only{all}: no backup, copy or prune has moved dates on for longer than `{class}`, and who may destroy versions can soon \
                 destroy what is needed",
                until.format("%Y-%m-%d %H:%M UTC")
            ),
            None => format!("{key} is not locked, or these credentials may not see it (s3:GetObjectRetention){all}"),
        })
    }

    /// Whether some date is known to be too near: where there is none, the credentials may not be allowed to see it.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.lapsed.iter().any(|lapsed| lapsed.until.is_some())
    }
}

/// What this machine knows of dates, so that it need not ask for each. Safe to lose.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Known {
    /// When everything was looked at and nothing was wrong.
    at: Option<DateTime<Utc>>,
    /// Of versions by name and version, but for objects that somebody had overwritten.
    dates: HashMap<(String, String), DateTime<Utc>>,
}

/// What a delete marker on an object means.
enum Hidden {
    /// Whoever may has deleted it.
    GivenUp,
    /// Nobody can tell: it stays locked.
    Kept,
    /// Nobody deletes it without saying so, and nobody said so.
    Stolen,
    /// The ledger knows.
    Entry,
    /// The keys know.
    Key,
}

impl Repository {
    /// Makes sure that the bucket enforces locks and that everything that is kept is locked for long enough. Without `always`, does nothing when
    /// that was done recently from this machine. `None`: nothing was done, or no lock is asked for.
    ///
    /// # Errors
    /// `Failed` when the bucket does not enforce what is asked for, or refuses to extend: what is written now would not be safe.
    pub fn keep_locked(&self, now: DateTime<Utc>, always: bool, progress: &dyn Progress, cancel: &Cancel) -> Result<Option<Locks>> {
        let inner = &self.inner;
        let Some(lock) = inner.store.object_lock().copied() else { return Ok(None) };
        let place = inner.cache.path.join("locks");
        let known = Known::read(&place, &lock);
        let recently = known.at.is_some_and(|at| at <= now && (now - at).to_std().unwrap_or_default() < lock.shortest().spare() / 8);
        if recently && !always {
            return Ok(None);
        }
        progress.event(Event::Phase { name: "lock", detail: String::new() });
        let mut locks = Locks::default();
        let probe = inner.block_on(inner.store.probe_lock())?;
        if !probe.enforces(LockMode::Compliance) {
            return Err(Error::new(Kind::Failed, format!("the plan asks for Object Lock, and {} does not enforce it: {probe}", inner.store.describe()))
                .hint("make the bucket with Object Lock and these credentials without rights to undo it (docs/guide.md, Immutability), or remove object_lock"));
        }
        if !probe.enforces(lock.mode) {
            locks.alarms.push(format!("whoever has these credentials can destroy everything: {probe}"));
        }
        let versions = inner.block_on(inner.store.versions(""))?;
        cancel.check()?;
        let (targets, overwritten) = self.to_lock(&versions, &lock, &known, &mut locks)?;
        progress.event(Event::Total { bytes: 0, items: targets.len() as u64 });
        let mut dates = HashMap::new();
        let one = async |(version, lock): (&Version, ObjectRetention)| -> Result<((String, String), DateTime<Utc>, bool, bool)> {
            cancel.check()?;
            let name = (version.key.clone(), version.version.clone());
            if let Some(until) = known.dates.get(&name).filter(|until| lock.is_held(Some((lock.mode, **until)), now)) {
                return Ok((name, *until, false, false));
            }
            let held = inner.store.lock_of(&version.key, &version.version).await?;
            if let Some((_, until)) = held.filter(|held| lock.is_held(Some(*held), now)) {
                return Ok((name, until, true, false));
            }
            inner.store.lock_until(&version.key, &version.version, lock.until_after(held, now)).await?;
            match inner.store.lock_of(&version.key, &version.version).await?.filter(|held| lock.is_held(Some(*held), now)) {
                Some((_, until)) => Ok((name, until, true, true)),
                None => Err(Error::new(Kind::Failed, format!("lock {}: the store acknowledged it and did not do it", version.key))),
            }
        };
        let done: Vec<_> = inner
            .block_on(futures::stream::iter(targets).map(one).buffer_unordered(REQUESTS).try_collect())
            .map_err(|error: Error| error.within("keep what is needed locked"))?;
        for (name, until, asked, extended) in done {
            locks.objects += 1;
            locks.asked += u64::from(asked);
            locks.extended += u64::from(extended);
            if !overwritten.contains(name.0.as_str()) {
                dates.insert(name, until);
            }
        }
        // What is wrong is looked at again by the next run, however soon.
        let at = locks.alarms.is_empty().then_some(now);
        if let Err(error) = (Known { at, dates }).write(&place, &lock) {
            tracing::debug!(?error, "the dates of locks are not remembered");
        }
        Ok(Some(locks))
    }

    /// The versions whose lock is to be kept up, and how: of each object the first, which is what was committed, and the one that is read. Of log, the first
    /// since it was last removed. Also the names of those that somebody has overwritten.
    fn to_lock<'a>(
        &self,
        versions: &'a [Version],
        lock: &ObjectLock,
        known: &Known,
        locks: &mut Locks,
    ) -> Result<(Vec<(&'a Version, ObjectRetention)>, HashSet<&'a str>)> {
        let tombstoned = read_tombstones(&self.inner)?;
        let ledger = match self.ledger() {
            Ok(ledger) => Some(ledger),
            // Then it is not known who removed a snapshot, and everything is kept.
            Err(error) if error.kind() == Kind::Damaged => {
                locks.alarms.push(format!("{error}: what was deleted on purpose is not known"));
                None
            }
            Err(error) => return Err(error),
        };
        let removed = |key: &str| id_of(key).is_some_and(|id| ledger.as_ref().is_some_and(|ledger| ledger.is_removed(id)));
        // Entries before the newest base are cleared away; where the ledger cannot be read, those before all that are there.
        let there = || versions.iter().filter(|version| version.latest && !version.marker).filter_map(|version| number_of(&version.key));
        let first_entry = ledger.as_ref().map_or_else(|| there().min(), Ledger::base).unwrap_or(1);
        let hidden = |key: &str| match PackId::from_key(key) {
            // One with a tombstone may turn out to live, and is locked until it is deleted.
            Some(pack) if tombstoned.contains(&pack) => Hidden::GivenUp,
            Some(_) => Hidden::Stolen,
            None if key == FORMAT_KEY => Hidden::Stolen,
            None if key.starts_with("snapshots/") && ledger.is_none() => Hidden::Kept,
            None if key.starts_with("snapshots/") => Hidden::Stolen,
            None if key.starts_with(ledger::FOLDER) => match number_of(key) {
                Some(number) if number >= first_entry => {
                    if ledger.is_some() {
                        Hidden::Entry
                    } else {
                        Hidden::Stolen
                    }
                }
                _ if ledger.is_none() => Hidden::Kept,
                // A volume of removed snapshots that a state still lists.
                None if ledger.as_ref().is_some_and(|ledger| ledger.lists(key)) => Hidden::Stolen,
                _ => Hidden::GivenUp,
            },
            // A collection removes a record that nothing leads through, and says so nowhere; `verify` and the next collection miss one that is needed.
            None if key.starts_with(moved::FOLDER) => Hidden::Kept,
            None if key.starts_with("keys/") => Hidden::Key,
            None => Hidden::GivenUp,
        };
        let mut targets = Vec::new();
        let (mut stolen, mut overwritten, mut entries, mut keys) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut made = None;
        let again = self.came_again(versions, known)?;
        for of_key in versions.chunk_by(|a, b| a.key == b.key) {
            let key = of_key[0].key.as_str();
            if lock.of(key).is_none() || key.starts_with("snapshots/") && removed(key) {
                continue;
            }
            let mut contents = of_key.iter().filter(|version| !version.marker);
            let Some(newest) = contents.next() else { continue };
            let first = contents.next_back().unwrap_or(newest);
            if key == FORMAT_KEY {
                made = Some(first.modified);
            }
            let read = of_key.iter().find(|version| version.latest).unwrap_or(&of_key[0]);
            if read.marker {
                match hidden(key) {
                    Hidden::GivenUp => {}
                    Hidden::Kept => targets.push(first),
                    Hidden::Stolen => {
                        stolen.push(key);
                        targets.push(first);
                    }
                    Hidden::Entry => entries.push(of_key),
                    Hidden::Key => keys.push((first, read.modified)),
                }
                continue;
            }
            // Whoever may removes log without saying so, and what comes into its place later is locked for itself.
            let is_log = key.starts_with(LOGS.folders[0]);
            let since = if is_log { since_removal(of_key) } else { first };
            targets.push(since);
            if since.version != newest.version {
                targets.push(newest);
            }
            let mut is_other = false;
            if !is_log || !known.found_right(newest) {
                let before_removal = Some(first).filter(|first| first.version != since.version && !again.contains(key));
                for before in std::iter::once(since).chain(before_removal).filter(|before| before.version != newest.version) {
                    is_other = is_other || !self.is_same(before, newest)? && !self.is_mended(before, newest)?;
                }
            }
            if is_other && ledger.as_ref().filter(|_| number_of(key).is_some()).map_or(Ok(true), |it| self.is_entry_replaced(it, of_key))? {
                overwritten.push(key);
                if first.version != since.version {
                    targets.push(first);
                }
            }
        }
        // What an `init` that was interrupted left is cleared away by the next one, before it makes the format object.
        keys.retain(|(_, deleted)| made.is_none_or(|made| *deleted >= made));
        let keys = self.stolen_keys(keys.into_iter().map(|(first, _)| first).collect())?;
        let entries = ledger.as_ref().map_or_else(|| Ok(Vec::new()), |ledger| self.stolen_entries(ledger, &entries))?;
        stolen.extend(keys.iter().chain(&entries).map(|version| version.key.as_str()));
        targets.extend(keys.into_iter().chain(entries));
        for (keys, what) in [(&stolen, "was deleted by somebody else"), (&overwritten, "was overwritten by somebody else")] {
            let told = keys.iter().take(ALARMS).map(|key| format!("{key} {what}: an earlier version of it is there"));
            locks.alarms.extend(told);
            if keys.len() > ALARMS {
                locks.alarms.push(format!("{} more objects: each {what}", keys.len() - ALARMS));
            }
        }
        if locks.alarms.iter().any(|alarm| alarm.contains("by somebody else")) {
            let hint = "find out who, change the store's credentials, then bring everything back: `lifeboat repo undelete` (docs/guide.md, Immutability)";
            locks.alarms.push(hint.to_owned());
        }
        let targets = targets.into_iter().filter_map(|version| Some((version, lock.of(&version.key)?))).collect();
        Ok((targets, overwritten.into_iter().collect()))
    }

    /// Names of pieces of log that were removed and are there again with the same content: a copy brings what its own prune removed where somebody asks for it,
    /// sealed anew. What was found right before is not read again.
    fn came_again<'a>(&self, versions: &'a [Version], known: &Known) -> Result<HashSet<&'a str>> {
        let inner = &self.inner;
        let pair = |of_key: &'a [Version]| {
            let first = of_key.iter().rfind(|version| !version.marker)?;
            let newest = of_key.iter().find(|version| version.latest && !version.marker)?;
            (first.key.starts_with(LOGS.folders[0]) && first.version != since_removal(of_key).version).then_some((first, newest))
        };
        let pairs = versions.chunk_by(|a, b| a.key == b.key).filter_map(pair).filter(|(_, newest)| !known.found_right(newest));
        let look = async |(first, newest): (&'a Version, &'a Version)| -> Result<Option<&'a str>> {
            Ok(log::is_same_piece(inner, first, newest).await?.then_some(first.key.as_str()))
        };
        let looked = futures::stream::iter(pairs).map(look).buffer_unordered(PIECES).try_collect::<Vec<_>>();
        Ok(inner.block_on(looked)?.into_iter().flatten().collect())
    }

    /// Whether two versions have the same bytes: an object that was brought back, or created again.
    fn is_same(&self, one: &Version, other: &Version) -> Result<bool> {
        let inner = &self.inner;
        if one.size != other.size {
            return Ok(false);
        }
        if !one.etag.is_empty() && one.etag == other.etag {
            return Ok(true);
        }
        let read = |version: &Version| inner.block_on(inner.store.get_version(&version.key, &version.version));
        Ok(read(one)? == read(other)?)
    }

    /// Whether what was committed in a log is not whole any more, and what is there now is: a repair puts a sound piece into the place of a damaged one, sealed anew.
    /// Whoever does not have the keys cannot make one.
    fn is_mended(&self, first: &Version, newest: &Version) -> Result<bool> {
        let inner = &self.inner;
        let is_whole = |version: &Version| {
            let bytes = inner.block_on(inner.store.get_version(&version.key, &version.version))?;
            log::is_whole(inner, &version.key, bytes)
        };
        Ok(first.key.starts_with("logs/") && !is_whole(first)? && is_whole(newest)?)
    }

    /// Asks a few objects for their dates: the manifests of these snapshots; where `deep`, the format and packs that the trees of the oldest and the newest
    /// of them lead to; where `deep` or logs have a time of their own, the first and the last piece of the log of each of their sources. Reads little,
    /// changes nothing. `None`: no lock is asked for.
    ///
    /// # Errors
    /// `Damaged` when a tree cannot be read; as the store says.
    pub fn sample_locks(&self, manifests: &[&Manifest], deep: bool, now: DateTime<Utc>) -> Result<Option<LockSample>> {
        let inner = &self.inner;
        let Some(lock) = inner.store.object_lock().copied() else { return Ok(None) };
        let mut keys: Vec<String> = manifests.iter().map(|manifest| self.manifest_key(manifest)).collect();
        if deep {
            keys.push(FORMAT_KEY.to_owned());
            inner.load_moved()?;
            let mut ends: Vec<&Manifest> = [manifests.first(), manifests.last()].into_iter().flatten().copied().collect();
            ends.dedup_by_key(|manifest| manifest.id);
            for manifest in ends {
                let packs = self.some_packs(manifest)?;
                keys.extend(packs.into_iter().map(|pack| pack.key()));
            }
        }
        // Dates of pieces come nearer than those of manifests, and are moved on no sooner.
        if deep || lock.of("logs/") != lock.of("snapshots/") {
            keys.extend(self.some_pieces(manifests)?);
        }
        keys.sort_unstable();
        keys.dedup();
        let look = async |key: String| (inner.store.lock_now(&key).await, key);
        let looked: Vec<_> = inner.block_on(futures::stream::iter(keys).map(look).buffered(REQUESTS).collect());
        let mut sample = LockSample::default();
        for (held, key) in looked {
            let Some(retention) = lock.of(&key) else { continue };
            let class = lock.name_of(retention);
            let least = now + TimeDelta::from_std(retention.spare() / 4).unwrap_or_default();
            let held = match held {
                Ok(held) => held,
                // What is not there is told by others.
                Err(error) if error.kind() == Kind::NotFound => continue,
                Err(error) => return Err(error),
            };
            sample.looked += 1;
            match held.filter(|(_, until)| *until > least) {
                Some((_, until)) => {
                    sample.until.entry(class).and_modify(|earliest| *earliest = until.min(*earliest)).or_insert(until);
                }
                None => sample.lapsed.push(Lapsed { key, until: held.map(|(_, until)| until), class }),
            }
        }
        Ok(Some(sample))
    }

    /// Names of the first and the last piece of the log of each source of these snapshots.
    fn some_pieces(&self, manifests: &[&Manifest]) -> Result<Vec<String>> {
        let sources = manifests.iter().flat_map(|manifest| manifest.sources.iter().map(|source| (&manifest.plan, &source.name)));
        let mut keys = Vec::new();
        for (plan, source) in sources.collect::<BTreeSet<_>>() {
            let log = self.log(plan, source);
            let pieces = log.pieces()?;
            keys.extend([pieces.first(), pieces.last()].into_iter().flatten().map(|piece| log.key(piece)));
        }
        Ok(keys)
    }

    /// Packs that hold the first and the last node of each tree of a snapshot, and something of the content that these name.
    fn some_packs(&self, manifest: &Manifest) -> Result<BTreeSet<PackId>> {
        let inner = &self.inner;
        let mut packs = BTreeSet::new();
        for source in &manifest.sources {
            let mut nodes = NodeReader::new(inner)?;
            let leaves = nodes.leaves(&source.tree.bytes()?, source.tree.depth)?;
            let mut ends: Vec<_> = [leaves.first(), leaves.last()].into_iter().flatten().collect();
            ends.dedup_by_key(|node| node.id);
            for node in ends {
                packs.insert(inner.packs.get(node.place.pack).id);
                let chunks = nodes.records(node)?.into_iter().find_map(|record| match record {
                    Record::Stretch(chunks) | Record::Entry { content: Content::Inline(chunks), .. } => {
                        chunks.iter().find_map(|chunk| chunk.stored.places().next())
                    }
                    Record::Entry { .. } => None,
                });
                packs.extend(chunks.map(|place| inner.packs.get(place.pack).id));
            }
        }
        Ok(packs)
    }
}

/// Of the versions of one object, the newest first: the first one that came after its last removal. Pure.
fn since_removal(of_key: &[Version]) -> &Version {
    of_key.iter().take_while(|version| !version.marker).last().unwrap_or(&of_key[0])
}

impl Known {
    /// Whether this version was looked at and nobody had overwritten the object by then. Versions do not change, and no earlier ones come.
    fn found_right(&self, version: &Version) -> bool {
        self.dates.contains_key(&(version.key.clone(), version.version.clone()))
    }

    fn head(lock: &ObjectLock) -> String {
        let mut head = format!("lifeboat locks 3 {} {}", lock.mode.word(), lock.retain.as_secs());
        for class in &lock.classes {
            let _ = write!(head, " {}", class.retain.as_secs());
        }
        head
    }

    /// Nothing, where it was made under other settings or cannot be read.
    fn read(place: &PathBuf, lock: &ObjectLock) -> Self {
        let text = fs::read_to_string(place).unwrap_or_default();
        Self::parse(&text, lock).unwrap_or_default()
    }

    pub(super) fn parse(text: &str, lock: &ObjectLock) -> Option<Self> {
        let mut lines = text.split_terminator('\n');
        if lines.next()? != Self::head(lock) {
            return None;
        }
        let date = |text: &str| text.parse().ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
        let at = match lines.next()? {
            "-" => None,
            at => Some(date(at)?),
        };
        let mut dates = HashMap::new();
        for line in lines {
            let mut words = line.split(' ');
            let (until, version, key) = (date(words.next()?)?, words.next()?, words.next()?);
            dates.insert((key.to_owned(), version.to_owned()), until);
        }
        Some(Self { at, dates })
    }

    pub(super) fn text(&self, lock: &ObjectLock) -> String {
        let mut text = Self::head(lock);
        let _ = write!(text, "\n{}\n", self.at.map_or_else(|| "-".to_owned(), |at| at.timestamp().to_string()));
        for ((key, version), until) in &self.dates {
            let _ = writeln!(text, "{} {version} {key}", until.timestamp());
        }
        text
    }

    fn write(&self, place: &PathBuf, lock: &ObjectLock) -> std::io::Result<()> {
        let new = place.with_extension("new");
        fs::write(&new, self.text(lock))?;
        fs::rename(&new, place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn days(days: u64) -> Duration {
        Duration::from_hours(24 * days)
    }

    const LOCK: ObjectLock = object_lock(LockMode::Governance, days(30), days(20), days(10));

    #[test]
    fn what_leans_on_something_is_locked_no_longer_than_that() {
        for (key, retain) in [
            ("format", Some(30)),
            ("keys/00", Some(30)),
            ("key-events/00", Some(30)),
            ("retention/00", Some(30)),
            ("reports/00", Some(30)),
            ("something new", Some(30)),
            ("gc/moved/00", Some(20)),
            ("snapshots/00/00", Some(20)),
            ("packs/00/00", Some(20)),
            ("index/00", Some(20)),
            ("logs/00/pieces/00", Some(10)),
            ("logs/00/history/00", Some(10)),
            ("logs/00/gaps/00", Some(10)),
            ("gc/tombstones/00", None),
            ("gc/waits/00", None),
            ("sessions/00", None),
            ("probe/00", None),
        ] {
            assert_eq!(LOCK.of(key).map(|lock| lock.retain), retain.map(days), "{key}");
        }
    }

    #[test]
    fn what_is_known_comes_back_under_the_same_settings_only() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("locks");
        let date = DateTime::from_timestamp(1_790_000_000, 0).unwrap();
        let name = ("packs/00/00ab".to_owned(), "v1".to_owned());
        Known { at: Some(date), dates: HashMap::from([(name.clone(), date)]) }.write(&place, &LOCK).unwrap();
        let known = Known::read(&place, &LOCK);
        assert_eq!((known.at, known.dates.get(&name)), (Some(date), Some(&date)));
        let with = |retain, snapshots, logs| object_lock(LockMode::Governance, days(retain), days(snapshots), days(logs));
        for other in [ObjectLock { mode: LockMode::Compliance, ..LOCK }, with(31, 20, 10), with(30, 21, 10), with(30, 20, 11)] {
            assert!(Known::read(&place, &other).at.is_none() && Known::read(&place, &other).dates.is_empty());
        }
        fs::write(&place, "lifeboat locks 3 governance 2592000 1728000 864000\nx\n").unwrap();
        assert!(Known::read(&place, &LOCK).at.is_none());
    }
}
