//! The end of a collection: dead packs leave the index and then the store, and what earlier collections needed is cleared away.

use std::collections::{BTreeSet, HashMap, HashSet};

use chrono::{DateTime, Utc};

use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Event, Progress};
use crate::repo::Repository;
use crate::repo::collect::{Collection, DECIDED_SESSION_AGE, Found, TOMBSTONES_MAX, by_size, read_waits};
use crate::repo::format::PackId;
use crate::repo::index::IndexedPack;
use crate::repo::pipeline::write_index_objects;
use crate::repo::session::{SeenSession, publish_tombstones};
use crate::repo::snapshot::id_of;

/// Deletes between two looks at whether to go on.
const DELETES: usize = 256;
/// Chunks gathered for one new index object.
const INDEX_CHUNKS: usize = 1 << 20;

impl Repository {
    /// (E) Unlists and deletes.
    pub(super) fn sweep(
        &self,
        dead: &[PackId],
        found: &Found,
        tombstoned: &HashSet<PackId>,
        progress: &dyn Progress,
        cancel: &Cancel,
        out: &mut Collection,
    ) -> Result<()> {
        if dead.is_empty() && !found.index.heads.keys().any(|pack| found.is_stale(*pack, tombstoned)) {
            return Ok(());
        }
        progress.event(Event::Phase { name: "delete", detail: format!("{} packs", dead.len()) });
        progress.event(Event::Total { bytes: 0, items: dead.len() as u64 });
        let gone: HashSet<PackId> = dead.iter().copied().collect();
        // Also what an earlier collection has deleted and somebody listed again.
        let is_gone = |pack| gone.contains(&pack) || found.is_stale(pack, tombstoned);
        self.unlist(&is_gone, &found.index.objects, cancel, out)?;
        let keys: Vec<String> = dead.iter().map(PackId::key).collect();
        let mut deleted = self.delete_all(&keys, cancel, out)?.into_iter();
        for pack in dead {
            if deleted.next() == Some(true) {
                out.packs_deleted += 1;
                out.bytes_deleted += found.present.get(pack).map_or(0, |(len, _)| *len);
            }
            progress.event(Event::Advance { bytes: 0, items: 1 });
        }
        Ok(())
    }

    /// Puts new index objects without these packs in the place of those that list them: new ones first.
    /// `known`: what objects list that were read before.
    fn unlist(
        &self,
        gone: &dyn Fn(PackId) -> bool,
        known: &HashMap<String, Vec<PackId>>,
        cancel: &Cancel,
        out: &mut Collection,
    ) -> Result<()> {
        let inner = &self.inner;
        let mut kept: Vec<IndexedPack> = Vec::new();
        let mut replaced: Vec<String> = Vec::new();
        let mut listed = inner.block_on(inner.store.list("index/"))?;
        listed.retain(|object| known.get(&object.key).is_none_or(|packs| packs.iter().any(|pack| gone(*pack))));
        for some in by_size(listed) {
            cancel.check()?;
            for (key, bytes) in inner.get_all(some) {
                let mut packs = match bytes.and_then(|bytes| self.decode_index_object(&key, &bytes)) {
                    Ok(packs) => packs,
                    // Somebody else's collection has replaced it; a damaged one lists what nobody believes.
                    Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Damaged) => continue,
                    Err(error) => return Err(error),
                };
                let before = packs.len();
                packs.retain(|pack| !gone(pack.id));
                if packs.len() == before {
                    continue;
                }
                kept.append(&mut packs);
                replaced.push(key);
                if kept.iter().map(|pack| pack.prefixes.len()).sum::<usize>() >= INDEX_CHUNKS {
                    self.replace_index(&mut kept, &mut replaced, cancel, out)?;
                }
            }
        }
        self.replace_index(&mut kept, &mut replaced, cancel, out)
    }

    fn replace_index(&self, kept: &mut Vec<IndexedPack>, replaced: &mut Vec<String>, cancel: &Cancel, out: &mut Collection) -> Result<()> {
        let mut seen = HashSet::new();
        kept.retain(|pack| seen.insert(pack.id));
        write_index_objects(&self.inner, kept, |_, _| Ok(()))?;
        self.delete_all(replaced, cancel, out)?;
        kept.clear();
        replaced.clear();
        Ok(())
    }

    /// Deletes objects. By key: whether it went; a store that refuses is told and not an error.
    fn delete_all(&self, keys: &[String], cancel: &Cancel, out: &mut Collection) -> Result<Vec<bool>> {
        let inner = &self.inner;
        let mut deleted = Vec::with_capacity(keys.len());
        let mut first: Option<Error> = None;
        for some in keys.chunks(DELETES) {
            cancel.check()?;
            for answer in inner.block_on(inner.store.delete_all(some)) {
                deleted.push(answer.is_ok());
                match answer {
                    Ok(()) => {}
                    Err(error) if error.kind() == Kind::Failed => {
                        out.refused += 1;
                        first.get_or_insert(error);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        if let Some(error) = first {
            let causes: Vec<String> = std::iter::once(error.to_string()).chain(error.causes()).collect();
            out.warnings.push(format!("the store refused to delete; the next collection tries again: {}", causes.join(": ")));
        }
        Ok(deleted)
    }

    /// Clears away what nobody needs any more. None of it takes part in what is safe.
    pub(super) fn tidy(
        &self,
        groups: &[(String, Vec<PackId>)],
        open: &[SeenSession],
        moved_before: &BTreeSet<String>,
        now: DateTime<Utc>,
        out: &mut Collection,
    ) -> Result<()> {
        let inner = &self.inner;
        let cancel = Cancel::default();
        let mut gone: Vec<String> = Vec::new();
        // Manifests that the ledger has removed, also one that a writer created again which had not heard of its commit.
        let ledger = self.ledger()?;
        let manifests = inner.block_on(inner.store.list("snapshots/"))?;
        gone.extend(manifests.into_iter().map(|object| object.key).filter(|key| id_of(key).is_some_and(|id| ledger.is_removed(id))));
        // Sessions of what is decided: its void marker stays, and of a manifest the ledger knows more.
        let open: HashSet<&str> = open.iter().map(|session| session.key.as_str()).collect();
        let mut sessions = SeenSession::list(inner)?;
        sessions.retain(|session| !open.contains(session.key.as_str()) && now - session.published > DECIDED_SESSION_AGE);
        let decided = SeenSession::are_decided(&sessions, self)?;
        gone.extend(sessions.into_iter().zip(decided).filter(|(_, decided)| *decided).map(|(session, _)| session.key));
        let waits = read_waits(inner)?;
        gone.extend(waits.into_iter().filter(|(_, waits)| !waits.sessions.iter().any(|s| open.contains(s.as_str()))).map(|(key, _)| key));
        // Records of moved packs that no tree led through.
        let moved = inner.moved();
        let records = moved.records.iter().filter(|(key, _)| moved_before.contains(*key));
        gone.extend(records.filter(|(_, record)| record.is_unused()).map(|(key, _)| key.clone()));
        self.delete_all(&gone, &cancel, out)?;
        // Many tombstones into one, which is there before they go.
        if open.is_empty() && groups.len() > TOMBSTONES_MAX {
            let all: BTreeSet<PackId> = groups.iter().flat_map(|(_, packs)| packs).copied().collect();
            publish_tombstones(inner, &all.into_iter().collect::<Vec<_>>(), now)?;
            let keys: Vec<String> = groups.iter().map(|(key, _)| key.clone()).collect();
            self.delete_all(&keys, &cancel, out)?;
        }
        Ok(())
    }
}
