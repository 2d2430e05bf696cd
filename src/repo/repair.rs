//! Putting right what can be put right: the index from the packs themselves, tombstones that cannot be read, snapshots from another repository.
//!
//! Nothing is removed before what takes its place is stored, and nothing that anybody still needs is removed at all: a damaged pack or manifest
//! stays where it is. All of it may run beside backups: what they rely on is only added to (index), or replaced by more of the same (tombstones).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use chrono::{DateTime, Utc};

use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::repo::Repository;
use crate::repo::format::{ObjectKind, PackId};
use crate::repo::index::IndexedPack;
use crate::repo::nodes::NodeReader;
use crate::repo::packs::PackNo;
use crate::repo::pipeline::publish_index;
use crate::repo::read::StoredContent;
use crate::repo::session::{condemn, decode_tombstones};
use crate::repo::snapshot::Manifest;
use crate::repo::tree::Chunk;
use crate::repo::verify::tolerable;
use crate::repo::write::listing_of;

/// What is wrong with the index and with tombstones, and what would put it right.
#[derive(Debug, Default)]
pub struct IndexRepair {
    /// Packs that an index object must list: nothing does, or what does goes away.
    to_list: BTreeMap<PackId, IndexedPack>,
    /// Keys of index objects that are damaged or list packs that are not there.
    to_replace: Vec<String>,
    /// Keys of tombstones that cannot be read.
    unread_tombstones: Vec<String>,
    present: Vec<PackId>,
}

impl IndexRepair {
    #[must_use]
    pub fn is_needed(&self) -> bool {
        !self.to_list.is_empty() || !self.to_replace.is_empty()
    }

    /// How many packs would be listed anew.
    #[must_use]
    pub fn packs(&self) -> usize {
        self.to_list.len()
    }

    /// Keys of index objects that would be replaced.
    #[must_use]
    pub fn replaced(&self) -> &[String] {
        &self.to_replace
    }

    /// Keys of tombstones that would be replaced: by ones that name every pack there is.
    #[must_use]
    pub fn tombstones(&self) -> &[String] {
        &self.unread_tombstones
    }

    /// Packs that are there.
    #[must_use]
    pub fn present(&self) -> usize {
        self.present.len()
    }
}

/// What of a snapshot cannot be counted on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HarmedFiles {
    /// `source: path`, in the order of the trees, at most as many as were asked for.
    pub files: Vec<String>,
    /// How many there are in all.
    pub count: u64,
    /// Plain bytes of them.
    pub bytes: u64,
    /// Parts of trees that cannot be read, so that not even their names are known.
    pub unread: Vec<String>,
}

impl Repository {
    /// Compares the index with the packs that are there. Changes nothing.
    ///
    /// # Errors
    /// When the store cannot be asked; interrupted.
    pub fn plan_index_repair(&self, cancel: &Cancel) -> Result<IndexRepair> {
        let inner = &self.inner;
        let mut plan = IndexRepair::default();
        let mut tombstones = HashSet::new();
        for object in inner.block_on(inner.store.list("gc/tombstones/"))? {
            match inner.open_object(ObjectKind::Tombstones, &object.key) {
                Ok(content) => match decode_tombstones(&content) {
                    Some(packs) => tombstones.extend(packs),
                    None => plan.unread_tombstones.push(object.key),
                },
                // A collector's work that ended meanwhile.
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => {
                    tolerable(error)?;
                    plan.unread_tombstones.push(object.key);
                }
            }
        }
        // The index before the packs: a writer stores them the other way round, so what is listed was there.
        let mut objects = Vec::new();
        for object in inner.block_on(inner.store.list("index/"))? {
            cancel.check()?;
            match self.read_index_object(&object.key["index/".len()..]) {
                Ok(packs) => objects.push((object.key, packs)),
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => {
                    tolerable(error)?;
                    plan.to_replace.push(object.key);
                }
            }
        }
        let listed = inner.block_on(inner.store.list("packs/"))?;
        let present: HashMap<PackId, u64> = listed.iter().filter_map(|o| Some((PackId::from_key(&o.key)?, o.size))).collect();
        let mut indexed = HashSet::new();
        let mut kept = Vec::new();
        for (key, packs) in objects {
            let is_there = |pack: &IndexedPack| present.get(&pack.id) == Some(&pack.len);
            if packs.iter().all(is_there) {
                indexed.extend(packs.iter().map(|pack| pack.id));
            } else {
                plan.to_replace.push(key);
                kept.extend(packs.into_iter().filter(is_there));
            }
        }
        plan.to_list.extend(kept.into_iter().filter(|pack| !indexed.contains(&pack.id)).map(|pack| (pack.id, pack)));
        let unlisted: Vec<(PackId, u64)> = present
            .iter()
            .filter(|(id, _)| !indexed.contains(id) && !plan.to_list.contains_key(id) && !tombstones.contains(id))
            .map(|(id, len)| (*id, *len))
            .collect();
        for (id, len) in unlisted {
            cancel.check()?;
            match listing_of(inner, id, len) {
                Ok(pack) => drop(plan.to_list.insert(id, pack)),
                // `verify` tells of it.
                Err(error) => drop(tolerable(error)?),
            }
        }
        plan.present = present.into_keys().collect();
        Ok(plan)
    }

    /// Lists what is not listed, and then removes the index objects that this replaces. Returns those that the store refuses to delete, and why.
    ///
    /// # Errors
    /// What the store says otherwise; what was removed until then is replaced.
    pub fn repair_index(&self, plan: &IndexRepair) -> Result<Vec<(String, Error)>> {
        let inner = &self.inner;
        let index = self.refresh_index(&mut Vec::new())?;
        let packs: Vec<IndexedPack> = plan.to_list.values().cloned().collect();
        publish_index(inner, &index, &packs)?;
        self.delete_replaced(&plan.to_replace)
    }

    /// Deletes all of these that the store lets us; a store that refuses (no right, a lock) is told and not an error.
    fn delete_replaced(&self, keys: &[String]) -> Result<Vec<(String, Error)>> {
        let mut refused = Vec::new();
        for (key, answer) in keys.iter().zip(self.inner.block_on(self.inner.store.delete_all(keys))) {
            match answer {
                Ok(()) => {}
                Err(error) if error.kind() == Kind::Failed => refused.push((key.clone(), error)),
                Err(error) => return Err(error),
            }
        }
        Ok(refused)
    }

    /// Replaces tombstones that cannot be read. Which packs they name is not known, so their place is taken by ones that name every pack there
    /// is: none of them is reused by a later backup, so that no collector that is at work can remove what somebody begins to rely on. Returns those that
    /// the store refuses to delete, and why.
    ///
    /// # Errors
    /// What the store says otherwise.
    pub fn replace_tombstones(&self, plan: &IndexRepair, now: DateTime<Utc>) -> Result<Vec<(String, Error)>> {
        if plan.unread_tombstones.is_empty() {
            return Ok(Vec::new());
        }
        condemn(&self.inner, &plan.present, now)?;
        self.delete_replaced(&plan.unread_tombstones)
    }

    /// Which files of a snapshot need one of these objects (keys of packs), and what of its trees cannot be read.
    ///
    /// # Errors
    /// When the store cannot be asked; interrupted.
    pub fn harmed_files(&self, manifest: &Manifest, bad: &BTreeSet<String>, limit: usize, cancel: &Cancel) -> Result<HarmedFiles> {
        let inner = &self.inner;
        let mut nodes = NodeReader::new(inner)?;
        let mut harmed = HarmedFiles::default();
        let is_bad = |chunks: &[Chunk<PackNo>]| {
            chunks.iter().flat_map(|chunk| chunk.stored.places()).any(|place| bad.contains(&inner.packs.get(place.pack).id.key()))
        };
        for source in &manifest.sources {
            let unread = |error: Error| {
                let error = tolerable(error)?;
                Ok::<_, Error>(format!("{}: {error}", source.name))
            };
            let tree = match self.tree(source) {
                Ok(tree) => tree,
                Err(error) => {
                    harmed.unread.push(unread(error)?);
                    continue;
                }
            };
            for entry in tree {
                cancel.check()?;
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(error) => {
                        harmed.unread.push(unread(error)?);
                        continue;
                    }
                };
                let is_harmed = match &entry.content {
                    StoredContent::Inline(chunks) => is_bad(chunks),
                    StoredContent::Stretches(refs) => {
                        let mut any = false;
                        for node in refs {
                            any |= match nodes.stretch(node) {
                                Ok(chunks) => is_bad(&chunks),
                                Err(error) => tolerable(error).map(|_| true)?,
                            };
                        }
                        any
                    }
                };
                if is_harmed {
                    harmed.count += 1;
                    harmed.bytes += entry.size();
                    if harmed.files.len() < limit {
                        harmed.files.push(format!("{}: {}", source.name, entry.entry.display_path()));
                    }
                }
            }
        }
        Ok(harmed)
    }
}
