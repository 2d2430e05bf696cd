//! Collection of garbage, without locks and without clocks, beside writers, readers and other collectors.
//!
//! The steps, by the letters of `docs/format.md`; `tests/model.rs` is a model of exactly these, explored exhaustively, and every rule in it is
//! needed:
//!
//! - (A) list packs, *then* manifests and the records of moved packs; mark.
//! - (B) publish tombstones for what is dead or is to be rewritten; never withdraw one. A later collection goes on with those of an earlier one.
//! - (C) *then* list sessions. Each must be gone, or decided, or is fenced by a void marker. While one is open, what was given up before it
//!   was seen to begin stays; the next collection looks again.
//! - (D) mark a second time: manifests, and records of moved packs, that came since. What such a record leads to is neither dead nor rewritten.
//! - (R) rewrite partly dead packs as a writer would: session → pack → index → record (the commit, created only if absent).
//! - (E) take dead packs out of the index, then delete them.
//!
//! What is damaged stands in the way of everything: garbage is only what no snapshot leads to, and that is known only when all can be read.

mod mark;
mod marks;
mod rewrite;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Context as _, Error, Kind, Result};
use crate::event::{Cancel, Event, Progress};
use crate::id::{SessionId, SnapshotId};
use crate::repo::format::{ObjectKind, PackId, PackKind};
use crate::repo::index::{IndexedPack, PackHead, decode_heads};
use crate::repo::moved::FOLDER;
use crate::repo::pack::Directory;
use crate::repo::packs::PackNo;
use crate::repo::session::{LISTINGS, Processes, SeenSession, publish_tombstones, read_tombstone_groups};
use crate::repo::snapshot::{host_name, id_of};
use crate::repo::tree::PackRef;
use crate::repo::{Inner, Repository, beside};
use crate::store::ObjectInfo;
use mark::{Marker, Unmarked};

/// What is known of a pack when it is chosen for rewriting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackState {
    pub id: PackId,
    pub kind: PackKind,
    /// Stored bytes.
    pub bytes: u64,
    pub chunks: u32,
    /// How many of them would move: those that a snapshot leads to (never none), and with them, where chunks cannot be taken out of a frame,
    /// the dead ones beside them.
    pub live_chunks: u32,
}

impl PackState {
    /// Share of chunks that rewriting would free in percent, rounded down.
    #[must_use]
    pub fn dead_percent(&self) -> u32 {
        let dead = u64::from(self.chunks.saturating_sub(self.live_chunks));
        u32::try_from(dead * 100 / u64::from(self.chunks.max(1))).unwrap_or(100)
    }
}

/// Partly dead packs are rewritten from this share of dead chunks on: at most one byte is moved for each that becomes free.
pub const REWRITE_PERCENT: u32 = 50;

/// How to collect.
pub struct CollectOptions<'a> {
    /// Only say what would be done: nothing is written.
    pub dry_run: bool,
    /// Snapshots that count as removed although the ledger does not say so: with `dry_run` only.
    pub without: BTreeSet<SnapshotId>,
    /// Which packs in which something is alive are put together anew; asked of those, too, in which nothing is dead.
    pub rewrite: &'a dyn Fn(&PackState) -> bool,
    /// A session that did not end after so long is fenced, however alive its writer may be.
    pub fence_after: Duration,
    /// The same for one whose process is gone from this machine, or whose host has committed a later snapshot of the plan.
    pub fence_gone_after: Duration,
}

impl Default for CollectOptions<'_> {
    fn default() -> Self {
        Self {
            dry_run: false,
            without: BTreeSet::new(),
            rewrite: &|pack| pack.dead_percent() >= REWRITE_PERCENT,
            fence_after: Duration::from_hours(7 * 24),
            fence_gone_after: Duration::from_hours(1),
        }
    }
}

/// What a collection found and did. Bytes are stored ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collection {
    /// Before.
    pub packs: u64,
    pub bytes: u64,
    /// In which nothing is alive.
    pub packs_dead: u64,
    pub bytes_dead: u64,
    /// In which something is dead, and something alive.
    pub packs_partly_dead: u64,
    /// What is chosen for rewriting.
    pub packs_to_rewrite: u64,
    pub bytes_to_rewrite: u64,
    /// About how much of that would be free then.
    pub bytes_to_free: u64,
    /// Given up, and a backup at work may still lean on it: the next collection looks again.
    pub packs_waiting: u64,
    pub bytes_waiting: u64,
    /// Dead, but a backup that is at work may have stored it just now.
    pub packs_young: u64,
    pub packs_deleted: u64,
    pub bytes_deleted: u64,
    pub packs_rewritten: u64,
    /// Written for them.
    pub bytes_moved: u64,
    /// Sessions that something of this waits for: whose they are, and until when they are waited for.
    pub waiting_for: Vec<String>,
    /// Sessions that were fenced: their backups, if they still run, will fail at their end.
    pub fenced: Vec<String>,
    /// Deletes that the store refused (no right, object lock).
    pub refused: u64,
    /// Why nothing could be deleted; sentences. Empty: nothing stood in the way.
    pub blocked: Vec<String>,
    pub warnings: Vec<String>,
}

/// Content of a `gc/waits/` object (JSON): tombstones, and the sessions that were open in a listing after they had been published. A session
/// that is not among them began later, and knows the tombstones.
#[derive(Debug, Serialize, Deserialize)]
struct Waits {
    tombstones: Vec<String>,
    sessions: Vec<String>,
}

/// Sessions of decided commits go after this time; their writers remove them themselves within moments.
const DECIDED_SESSION_AGE: chrono::TimeDelta = chrono::TimeDelta::hours(24);
/// Tombstone objects from which on they are put into one.
const TOMBSTONES_MAX: usize = 32;

/// What the store holds, as the first listing showed it.
struct Found {
    present: HashMap<PackId, (u64, DateTime<Utc>)>,
    index: IndexHeads,
    /// Given up, needed by a snapshot, listed and not there.
    lost: HashSet<PackId>,
}

/// What the index says of packs.
#[derive(Default)]
struct IndexHeads {
    heads: HashMap<PackId, PackHead>,
    /// The packs that each index object lists. An object never changes: its name is its hash.
    objects: HashMap<String, Vec<PackId>>,
}

impl Found {
    fn new(listed: Vec<ObjectInfo>, index: IndexHeads) -> Self {
        let present: HashMap<PackId, (u64, DateTime<Utc>)> =
            listed.into_iter().filter_map(|object| Some((PackId::from_key(&object.key)?, (object.size, object.modified)))).collect();
        Self { present, index, lost: HashSet::new() }
    }

    /// Whether an index object must not list a pack: it was deleted, and is needed by nobody.
    fn is_stale(&self, pack: PackId, tombstoned: &HashSet<PackId>) -> bool {
        tombstoned.contains(&pack) && !self.present.contains_key(&pack) && !self.lost.contains(&pack)
    }
}

/// Bytes of index objects held at a time, but for a larger one.
const INDEX_BYTES: u64 = 16 << 20;

/// Keys in groups that are not too large to be held at the same time.
fn by_size(listed: Vec<ObjectInfo>) -> Vec<Vec<String>> {
    let mut groups: Vec<Vec<String>> = Vec::new();
    let mut bytes = u64::MAX;
    for object in listed {
        bytes = bytes.saturating_add(object.size);
        match groups.last_mut() {
            Some(group) if bytes <= INDEX_BYTES => group.push(object.key),
            _ => {
                bytes = object.size;
                groups.push(vec![object.key]);
            }
        }
    }
    groups
}

impl Repository {
    /// Collects garbage. May be interrupted at any point and called again; several may run at once. Every role that is not shut out by the
    /// store's own rights may: to move chunks of data out of frames that are partly dead needs the reader role, others move whole frames.
    ///
    /// # Errors
    /// `Unavailable` and the like, `Interrupted`. What is damaged is told in `blocked`.
    pub fn collect(
        &self,
        options: &CollectOptions<'_>,
        now: DateTime<Utc>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Collection> {
        let mut out = Collection::default();
        match self.collect_into(options, now, progress, cancel, &mut out) {
            Ok(()) => Ok(out),
            Err(Unmarked::Blocked(why)) => {
                out.blocked.extend(why);
                Ok(out)
            }
            Err(Unmarked::Again) => Err(Error::new(Kind::Bug, "marking ended in the middle")),
            Err(Unmarked::Failed(error)) => Err(error),
        }
    }

    fn collect_into(
        &self,
        options: &CollectOptions<'_>,
        now: DateTime<Utc>,
        progress: &dyn Progress,
        cancel: &Cancel,
        out: &mut Collection,
    ) -> Result<(), Unmarked> {
        let inner = &self.inner;
        progress.event(Event::Phase { name: "mark", detail: "what snapshots need".into() });
        // A: packs, then what leads to them. Beside the packs, what is over already and stands in nobody's way: to fence is safe at any time.
        let packs_and_tombstones = || {
            let (groups, listed) = beside(|| inner.block_on(inner.store.list("packs/")), || read_tombstone_groups(inner));
            Ok((listed?, groups))
        };
        let (open, listed) = beside(packs_and_tombstones, || {
            if options.dry_run { self.open_sessions() } else { self.outlive_or_fence(options, &[], now, out) }
        });
        let (open, (listed, groups)) = (open?, listed?);
        let groups = groups.map_err(blocked_by)?;
        let tombstoned: HashSet<PackId> = groups.iter().flat_map(|(_, packs)| packs).copied().collect();
        let (marked, index) = beside(
            || self.read_index_heads(),
            || {
                inner.load_moved()?;
                let moved_before: BTreeSet<String> = inner.moved().records.keys().cloned().collect();
                Ok::<_, Unmarked>((moved_before, Marker::all(self, &options.without, progress, cancel)?))
            },
        );
        let ((moved_before, mut marker), (index, warnings)) = (marked?, index?);
        out.warnings.extend(warnings);
        let mut found = Found::new(listed, index);
        found.lost = lost_packs(inner, &marker, &found, &tombstoned)?;
        out.packs = found.present.len() as u64;
        out.bytes = found.present.values().map(|(len, _)| len).sum();

        // What is dead, and what is worth rewriting.
        let young = open.iter().map(|session| session.published).min();
        let mut choice = choose(inner, &found, &marker, &tombstoned, young, options, cancel, out)?;
        self.spare_what_was_lost(&found, &mut choice, out)?;
        let waits = |open: &[SeenSession]| open.iter().map(|session| session.told(options, &marker.commits, now)).collect::<Vec<_>>();
        let is_held_up = !open.is_empty() && !choice.rewrite.is_empty();
        if is_held_up {
            out.warnings.push(format!(
                "{} packs are not rewritten yet: that waits for {}",
                choice.rewrite.len(),
                waits(&open).join("; and for ")
            ));
            choice.rewrite.clear();
        }
        if options.dry_run || is_held_up || out.packs_young > 0 {
            out.waiting_for = waits(&open);
        }
        if options.dry_run {
            return Ok(());
        }

        // B: give up, for ever.
        let give_up: Vec<PackId> = choice.dead.iter().chain(&choice.rewrite).filter(|pack| !tombstoned.contains(pack)).copied().collect();
        let mut groups: Vec<(String, Vec<PackId>)> = groups;
        if !give_up.is_empty() {
            let key = publish_tombstones(inner, &give_up, now)?;
            groups.push((key, give_up));
        }

        // C: whoever may not know of it.
        progress.event(Event::Phase { name: "sessions", detail: String::new() });
        let open = self.outlive_or_fence(options, &marker.commits, now, out)?;
        let settled = self.settled_packs(&groups, &open, now)?;

        // D: what was committed meanwhile.
        let (marked, moved) = beside(|| inner.load_moved(), || marker.mark(progress, cancel));
        match marked {
            Err(Unmarked::Again) => marker = Marker::all(self, &options.without, progress, cancel)?,
            marked => marked?,
        }
        moved?;
        let moved = inner.moved();
        // Where new records lead: perhaps only some of the ways through them were marked there, or none.
        let new_records = moved.records.iter().filter(|(key, _)| !moved_before.contains(*key));
        let new_targets: HashSet<PackId> = new_records.flat_map(|(_, record)| &record.targets).map(|(pack, _)| pack.id).collect();
        let mut kept = new_targets.clone();
        kept.extend(marker.marks.packs().map(|pack| inner.packs.get(pack).id));
        let (mut dead, waiting): (Vec<PackId>, Vec<PackId>) =
            choice.dead.iter().copied().filter(|pack| !kept.contains(pack)).partition(|pack| settled.contains(pack));
        out.packs_waiting = waiting.len() as u64;
        out.bytes_waiting = waiting.iter().filter_map(|pack| found.present.get(pack)).map(|(len, _)| len).sum();
        if !waiting.is_empty() || choice.rewrite.iter().any(|pack| !settled.contains(pack)) {
            out.waiting_for = open.iter().map(|session| session.told(options, &marker.commits, now)).collect();
        }

        // R: rewrite.
        let is_whole = |pack: &&PackId| settled.contains(*pack) && !moved.has(**pack) && !new_targets.contains(*pack);
        let rewrite = choice.rewrite.iter().filter(is_whole);
        let rewrite: Vec<PackHead> = rewrite.filter_map(|pack| found.index.heads.get(pack)).copied().collect();
        dead.extend(self.rewrite(&rewrite, &marker.marks, now, progress, cancel, out)?);

        // E: unlist, then delete.
        self.sweep(&dead, &found, &tombstoned, progress, cancel, out)?;
        self.tidy(&groups, &open, &moved_before, now, out)?;
        Ok(())
    }

    /// Sessions that have not come to an end.
    fn open_sessions(&self) -> Result<Vec<SeenSession>, Unmarked> {
        let sessions = SeenSession::list(&self.inner).map_err(blocked_by)?;
        let decided = SeenSession::are_decided(&sessions, self)?;
        Ok(sessions.into_iter().zip(decided).filter(|(_, decided)| !decided).map(|(session, _)| session).collect())
    }

    /// Reads what the index says of packs. Returns warnings, too.
    fn read_index_heads(&self) -> Result<(IndexHeads, Vec<String>)> {
        for listing in 1..=LISTINGS {
            match self.read_heads_once() {
                Err(error) if error.kind() == Kind::NotFound && listing < LISTINGS => {}
                heads => return heads,
            }
        }
        Err(Error::new(Kind::Unavailable, "read the index: it changes while it is read").hint("try again"))
    }

    fn read_heads_once(&self) -> Result<(IndexHeads, Vec<String>)> {
        let inner = &self.inner;
        let (mut index, mut warnings) = (IndexHeads::default(), Vec::new());
        for some in by_size(inner.block_on(inner.store.list("index/"))?) {
            for (key, bytes) in inner.get_all(some) {
                let decoded = bytes.and_then(|bytes| self.open_index_bytes(&key, &bytes)).and_then(|content| {
                    decode_heads(&content).map_err(|e| Error::new(Kind::Damaged, format!("object {key}: cannot be decoded")).because(e))
                });
                match decoded {
                    Ok(packs) => {
                        index.objects.insert(key, packs.iter().map(|head| head.id).collect());
                        index.heads.extend(packs.into_iter().map(|head| (head.id, head)));
                    }
                    // What it lists is looked at when it is listed again.
                    Err(error) if error.kind() == Kind::Damaged => {
                        warnings.push(format!("an index object is damaged and was not used: {error}. Run `lifeboat verify`"));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok((index, warnings))
    }

    /// (C) Fences what is taken for dead; returns the sessions that are still open.
    fn outlive_or_fence(
        &self,
        options: &CollectOptions<'_>,
        commits: &[(String, String)],
        now: DateTime<Utc>,
        out: &mut Collection,
    ) -> Result<Vec<SeenSession>, Unmarked> {
        let mut open = Vec::new();
        for session in self.open_sessions()? {
            if now >= session.ends(options, commits) {
                session.fence(&self.inner)?;
                out.fenced.push(session.described());
            } else {
                open.push(session);
            }
        }
        Ok(open)
    }

    /// Takes out of what is dead whatever may hold what lost packs held: should one have been put together anew, and the record be lost, it is there.
    fn spare_what_was_lost(&self, found: &Found, choice: &mut Choice, out: &mut Collection) -> Result<(), Unmarked> {
        let Some(first) = found.lost.iter().min() else { return Ok(()) };
        let dead: HashSet<PackId> = choice.dead.iter().copied().collect();
        let (mut held, mut spared) = (HashSet::new(), HashSet::new());
        self.each_listed(found, &|pack| found.lost.contains(pack), &mut |pack| held.extend(pack.prefixes))?;
        self.each_listed(found, &|pack| dead.contains(pack), &mut |pack| {
            if pack.prefixes.iter().any(|id| held.contains(id)) {
                spared.insert(pack.id);
            }
        })?;
        choice.dead.retain(|pack| !spared.contains(pack));
        out.warnings.push(format!(
            "{} ({} in all) is needed by a snapshot and is lost: {} dead packs that may hold the same are kept, as long as the snapshot is there. `lifeboat verify` says what is              harmed, `lifeboat repair` brings it back from a copy",
            first.key(),
            found.lost.len(),
            spared.len()
        ));
        Ok(())
    }

    /// What index objects say of some packs.
    fn each_listed(&self, found: &Found, wanted: &dyn Fn(&PackId) -> bool, take: &mut dyn FnMut(IndexedPack)) -> Result<(), Unmarked> {
        let inner = &self.inner;
        let keys = found.index.objects.iter().filter(|(_, packs)| packs.iter().any(wanted)).map(|(key, _)| key);
        for key in keys {
            let packs = inner.block_on(inner.store.get(key)).and_then(|bytes| self.decode_index_object(key, &bytes));
            // Somebody else's collection has replaced it.
            let packs = packs.map_err(|error| match error.kind() {
                Kind::NotFound => Error::new(Kind::Unavailable, "read the index: it changes while it is read").hint("try again"),
                _ => error,
            })?;
            packs.into_iter().filter(|pack| wanted(&pack.id)).for_each(&mut *take);
        }
        Ok(())
    }

    /// Packs that no open session can lean on. For the others it is written down whom they wait for.
    fn settled_packs(
        &self,
        groups: &[(String, Vec<PackId>)],
        open: &[SeenSession],
        now: DateTime<Utc>,
    ) -> Result<HashSet<PackId>, Unmarked> {
        if open.is_empty() {
            return Ok(groups.iter().flat_map(|(_, packs)| packs).copied().collect());
        }
        let inner = &self.inner;
        let open: BTreeSet<&str> = open.iter().map(|session| session.key.as_str()).collect();
        let mut blockers: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let waits = read_waits(inner)?;
        for waits in waits.values() {
            for group in &waits.tombstones {
                let of_group = blockers.entry(group).or_insert_with(|| open.clone());
                of_group.retain(|session| waits.sessions.iter().any(|known| known == session));
            }
        }
        let unknown: Vec<String> = groups.iter().map(|(key, _)| key.clone()).filter(|key| !blockers.contains_key(key.as_str())).collect();
        if !unknown.is_empty() {
            let key = format!("gc/waits/{}", SessionId::generate(now));
            let waits = Waits { tombstones: unknown, sessions: open.iter().map(|key| (*key).to_owned()).collect() };
            let content = serde_json::to_vec(&waits).context(Kind::Bug, || "encode whom packs wait for".into())?;
            let sealed = inner.seal_object(ObjectKind::Waits, &key, &content)?;
            inner.block_on(inner.store.create(&key, Bytes::from(sealed)))?;
        }
        let settled = groups.iter().filter(|(key, _)| blockers.get(key.as_str()).is_some_and(BTreeSet::is_empty));
        Ok(settled.flat_map(|(_, packs)| packs).copied().collect())
    }
}

/// What is to go.
struct Choice {
    dead: Vec<PackId>,
    rewrite: Vec<PackId>,
}

/// What a snapshot needs, is not there and was given up. It was damaged, and then lost; or it was put together anew, and the record of where it is now is gone:
/// nothing else leads to that, so it would be taken for garbage, and be lost for good. A collection takes a pack out of the index before it deletes it, so of one
/// that is still listed it is known what it held, see [`Repository::spare_what_was_lost`].
fn lost_packs(inner: &Inner, marker: &Marker<'_>, found: &Found, tombstoned: &HashSet<PackId>) -> Result<HashSet<PackId>, Unmarked> {
    let needed = marker.marks.packs().map(|pack| inner.packs.get(pack).id);
    let lost: BTreeSet<PackId> = needed.filter(|pack| tombstoned.contains(pack) && !found.present.contains_key(pack)).collect();
    let (listed, unlisted): (BTreeSet<PackId>, BTreeSet<PackId>) = lost.into_iter().partition(|pack| found.index.heads.contains_key(pack));
    let Some(first) = unlisted.first() else { return Ok(listed.into_iter().collect()) };
    Err(Unmarked::Blocked(vec![format!(
        "{} ({} in all) is needed by a snapshot and was given up by an earlier prune: its content was moved, and the record below {FOLDER} that says where \
         to is gone. Bring that record back (an earlier version of the object, another copy of the storage) or, from another repository, the snapshots: \
         `lifeboat verify` names them. Nothing is deleted until then",
        first.key(),
        unlisted.len()
    )]))
}

#[expect(clippy::too_many_arguments, reason = "all of what a collection has found so far")]
fn choose(
    inner: &Inner,
    found: &Found,
    marker: &Marker<'_>,
    tombstoned: &HashSet<PackId>,
    young: Option<DateTime<Utc>>,
    options: &CollectOptions<'_>,
    cancel: &Cancel,
    out: &mut Collection,
) -> Result<Choice> {
    let marked: HashMap<PackId, PackNo> = marker.marks.packs().map(|pack| (inner.packs.get(pack).id, pack)).collect();
    let (mut dead, mut rewrite) = (Vec::new(), Vec::new());
    let mut take = |state: PackState| {
        out.packs_to_rewrite += 1;
        out.bytes_to_rewrite += state.bytes;
        out.bytes_to_free += state.bytes * u64::from(state.chunks.saturating_sub(state.live_chunks)) / u64::from(state.chunks.max(1));
        rewrite.push(state.id);
    };
    let mut of_data = Vec::new();
    for (id, (len, modified)) in &found.present {
        let Some(marks) = marked.get(id).and_then(|pack| marker.marks.pack(*pack)) else {
            out.packs_dead += 1;
            out.bytes_dead += len;
            if young.is_some_and(|young| *modified >= young) && !tombstoned.contains(id) {
                out.packs_young += 1;
            } else {
                dead.push(*id);
            }
            continue;
        };
        let Some(head) = found.index.heads.get(id).filter(|head| head.len == *len) else { continue };
        out.packs_partly_dead += u64::from(marks.chunks < head.chunks);
        let state = PackState { id: *id, kind: head.kind, bytes: *len, chunks: head.chunks, live_chunks: marks.chunks };
        match head.kind {
            _ if !(options.rewrite)(&state) => {}
            PackKind::Data => of_data.push((state, head, marks)),
            PackKind::Nodes | PackKind::Log => take(state),
        }
    }
    // By what would really be free then: else a pack out of whose frames nothing can be taken would be moved at every collection.
    let packs: Vec<PackRef> =
        of_data.iter().map(|(_, head, _)| PackRef { id: head.id, len: head.len, directory_len: head.directory_len }).collect();
    let to_move = |at: usize, directory: &Directory| rewrite::chunks_to_move(inner.keys.role, directory, of_data[at].2);
    for ((state, ..), live_chunks) in of_data.iter().zip(inner.each_directory(&packs, cancel, to_move)?) {
        let state = match live_chunks {
            Ok(live_chunks) => PackState { live_chunks, ..*state },
            Err(error) if error.kind() == Kind::Damaged => {
                out.warnings.push(format!("{} is not rewritten: {error}. Run `lifeboat verify`", state.id.key()));
                continue;
            }
            Err(error) => return Err(error),
        };
        if (options.rewrite)(&state) {
            take(state);
        }
    }
    dead.sort_unstable();
    rewrite.sort_unstable();
    Ok(Choice { dead, rewrite })
}

/// Waits by their objects; one that cannot be read says nothing, and then every open session counts.
fn read_waits(inner: &Inner) -> Result<BTreeMap<String, Waits>> {
    let mut all = BTreeMap::new();
    let listed = inner.block_on(inner.store.list("gc/waits/"))?;
    for (key, content) in inner.open_all(ObjectKind::Waits, listed.into_iter().map(|object| object.key)) {
        match content {
            Ok(content) => {
                if let Ok(waits) = serde_json::from_slice(&content) {
                    all.insert(key, waits);
                }
            }
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Damaged) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// Damage where what is known of others' work should be: nothing may be deleted.
fn blocked_by(error: Error) -> Unmarked {
    match error.kind() {
        Kind::Damaged => Unmarked::Blocked(vec![format!("{error}. When no backup is running, remove that object and collect again")]),
        _ => Unmarked::Failed(error),
    }
}

impl SeenSession {
    /// Whether it is of a collection that puts packs together anew.
    fn is_collection(&self) -> bool {
        self.commits.starts_with(FOLDER)
    }

    /// Whether its process was one of those that are seen here, and is gone. Who has another boot or another namespace under the same name cannot be seen.
    fn is_gone_here(&self) -> bool {
        let here = self.host == host_name() && std::path::Path::new("/proc/self").exists();
        here && Processes::here().are_those_of(&self.processes) && !Processes::has(self.process)
    }

    /// Whether it is of a machine of this one's name before a start: of this one, most likely.
    fn is_of_earlier_boot(&self) -> bool {
        self.host == host_name() && Processes::here().are_of_another_boot(&self.processes)
    }

    /// Whether its host has committed a later snapshot of the plan: `commits` are hosts and keys.
    fn is_superseded(&self, commits: &[(String, String)]) -> bool {
        let folder = |key: &str| key.rsplit_once('/').map(|(folder, _)| folder.to_owned());
        commits.iter().any(|(host, key)| *host == self.host && folder(key) == folder(&self.commits) && id_of(key) > id_of(&self.commits))
    }

    /// When it is taken for dead. A mistake costs its writer the work and nothing else; of a collection that is little, so that
    /// a killed one holds nothing up.
    fn ends(&self, options: &CollectOptions<'_>, commits: &[(String, String)]) -> DateTime<Utc> {
        let after = match self.is_gone_here() {
            true if self.is_collection() => Duration::ZERO,
            false if self.is_collection() && self.is_of_earlier_boot() => options.fence_gone_after.min(options.fence_after),
            gone if gone || self.is_superseded(commits) => options.fence_gone_after.min(options.fence_after),
            _ => options.fence_after,
        };
        TimeDelta::from_std(after).ok().and_then(|after| self.published.checked_add_signed(after)).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }

    /// In words.
    fn described(&self) -> String {
        let what = if self.is_collection() { "a prune that was putting packs together anew" } else { "a backup" };
        format!("{what} ({}, process {} on {}, since {})", self.key, self.process, self.host, moment(self.published))
    }

    /// The same, and until when it is waited for.
    fn told(&self, options: &CollectOptions<'_>, commits: &[(String, String)], now: DateTime<Utc>) -> String {
        let why = if self.is_gone_here() {
            "its process is gone: "
        } else if self.is_superseded(commits) {
            "its host has made a later backup of the plan since: "
        } else {
            "it ends by itself, or "
        };
        let until = self.ends(options, commits);
        let until =
            if until <= now { "the next prune gives it up".to_owned() } else { format!("a prune after {} gives it up", moment(until)) };
        format!("{}; {why}{until}", self.described())
    }
}

fn moment(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M UTC").to_string()
}
