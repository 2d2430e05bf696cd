//! What a repository holds, counted: for an operator's bill.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Event, Progress};
use crate::repo::format::PackKind;
use crate::repo::tree::PackRef;
use crate::repo::{LocalIndex, PackId, Repository};

/// Objects of one class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ObjectTotals {
    pub objects: u64,
    /// As stored.
    pub bytes: u64,
}

/// All of a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// By the first part of their names: `packs`, `index`, `snapshots`, …
    pub objects: BTreeMap<String, ObjectTotals>,
    /// How many are locked by the store, by the time that they are.
    pub locked: BTreeMap<Duration, u64>,
    /// Data packs that were looked into, and nodes.
    pub data_packs: ObjectTotals,
    pub node_packs: ObjectTotals,
    /// Chunks in data packs, and their plain bytes: each content once, but for what was stored twice.
    pub chunks: u64,
    pub bytes_plain: u64,
    /// Packs whose directory could not be read.
    pub unread: Vec<String>,
}

/// Directories read at a time.
const READERS: usize = 16;

impl Repository {
    /// Lists everything, and reads the directory of every pack: one small request each.
    ///
    /// # Errors
    /// When the store cannot be asked; a damaged pack is named in the result.
    pub fn totals(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<Totals> {
        let inner = &self.inner;
        let mut totals = Totals::default();
        let mut present: Vec<(PackId, u64)> = Vec::new();
        for object in inner.block_on(inner.store.list(""))? {
            let class = object.key.split('/').next().unwrap_or_default().to_owned();
            let of_class = totals.objects.entry(class).or_default();
            of_class.objects += 1;
            of_class.bytes += object.size;
            if let Some(retention) = inner.store.object_lock().and_then(|lock| lock.of(&object.key)) {
                *totals.locked.entry(retention.retain).or_default() += 1;
            }
            present.extend(PackId::from_key(&object.key).map(|id| (id, object.size)));
        }
        let index: LocalIndex = self.refresh_index(&mut Vec::new())?;
        let known: HashMap<PackId, (u64, u32)> = index.packs().into_iter().map(|(id, len, directory)| (id, (len, directory))).collect();
        progress.event(Event::Phase { name: "packs", detail: format!("{} directories", present.len()) });
        progress.event(Event::Total { bytes: 0, items: present.len() as u64 });
        let (waiting, found) = (Mutex::new(present.into_iter()), Mutex::new(totals));
        let look = || -> Result<()> {
            loop {
                let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((id, len)) = next else { return Ok(()) };
                cancel.check()?;
                let directory = match known.get(&id) {
                    Some((listed, directory_len)) if *listed == len => inner.directory(PackRef { id, len, directory_len: *directory_len }),
                    _ => inner.directory_of_listed(id, len).map(|(_, directory)| directory),
                };
                let mut totals = found.lock().unwrap_or_else(PoisonError::into_inner);
                match directory {
                    Ok(directory) => {
                        let of_kind = if directory.kind == PackKind::Data { &mut totals.data_packs } else { &mut totals.node_packs };
                        of_kind.objects += 1;
                        of_kind.bytes += len;
                        if directory.kind == PackKind::Data {
                            let lens: u64 = directory.chunks().map(|chunk| u64::from(chunk.len)).sum();
                            totals.chunks += directory.chunks().count() as u64;
                            totals.bytes_plain += lens;
                        }
                    }
                    // Removed since the listing, or damaged.
                    Err(error) if matches!(error.kind(), Kind::Damaged | Kind::NotFound) => totals.unread.push(error.to_string()),
                    Err(error) => return Err(error),
                }
                progress.event(Event::Advance { bytes: 0, items: 1 });
            }
        };
        let looked: Vec<Result<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..READERS).map(|_| scope.spawn(look)).collect();
            threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(Error::new(Kind::Bug, "a counting thread panicked")))).collect()
        });
        looked.into_iter().collect::<Result<()>>()?;
        Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}
