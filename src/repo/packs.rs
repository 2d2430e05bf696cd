//! Packs met by this process: numbers for their names, and their directories, kept as long as memory allows.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::repo::Inner;
use crate::repo::format::{PACK_MAX, PackId, PackKind};
use crate::repo::pack::{Directory, TRAILER_BYTES, open_directory, read_trailer};
use crate::repo::tree::PackRef;

/// A pack by number: 4 bytes instead of 44 wherever chunks are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackNo(pub u32);

#[derive(Default)]
pub struct PackTable(RwLock<Table>);

#[derive(Default)]
struct Table {
    packs: Vec<PackRef>,
    numbers: HashMap<PackRef, PackNo>,
}

impl PackTable {
    /// The number of a pack; the same name with other lengths is another pack (one of them is a lie that reading will find).
    pub fn intern(&self, pack: PackRef) -> PackNo {
        if let Some(number) = self.0.read().unwrap_or_else(PoisonError::into_inner).numbers.get(&pack) {
            return *number;
        }
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = table.numbers.get(&pack) {
            return *number;
        }
        let number = PackNo(table.packs.len() as u32);
        table.packs.push(pack);
        table.numbers.insert(pack, number);
        number
    }

    /// The pack with a number that `intern` gave.
    pub fn get(&self, number: PackNo) -> PackRef {
        self.0.read().unwrap_or_else(PoisonError::into_inner).packs[number.0 as usize]
    }
}

/// Memory for directories: 32 MiB, about 100 packs of database pages.
const DIRECTORIES_BYTES: usize = 32 << 20;

/// Directories asked for at a time.
const LOOKERS: usize = 16;

/// Directories last used.
#[derive(Default)]
pub struct Directories(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    by_pack: HashMap<PackId, Arc<Directory>>,
    order: VecDeque<PackId>,
    bytes: usize,
}

impl Directories {
    fn get(&self, pack: PackId) -> Option<Arc<Directory>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).by_pack.get(&pack).cloned()
    }

    /// Keeps a directory, dropping the oldest ones when there is no room.
    pub fn put(&self, pack: PackId, directory: Arc<Directory>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = directory.memory_bytes();
        if kept.by_pack.insert(pack, directory).is_none() {
            kept.order.push_back(pack);
            kept.bytes += bytes;
        }
        while kept.bytes > DIRECTORIES_BYTES && kept.order.len() > 1 {
            let Some(oldest) = kept.order.pop_front() else { break };
            if let Some(dropped) = kept.by_pack.remove(&oldest) {
                kept.bytes = kept.bytes.saturating_sub(dropped.memory_bytes());
            }
        }
    }
}

/// Packs that were found damaged while they were read; see [`crate::repo::Repository::condemn_found`].
#[derive(Default)]
pub struct Found(Mutex<HashSet<PackId>>);

impl Found {
    pub fn take(&self) -> HashSet<PackId> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Inner {
    /// Remembers that a pack was found damaged, if that is what the error says; hands the error on.
    pub(super) fn blame(&self, pack: PackId, error: Error) -> Error {
        // Nothing is wrong with one that is sealed to a key which is gone.
        let is_shut = || self.directories.get(pack).is_some_and(|directory| self.lacks_key_of(&directory));
        if error.kind() == Kind::Damaged && !is_shut() {
            self.found.0.lock().unwrap_or_else(PoisonError::into_inner).insert(pack);
        }
        error
    }

    /// Whether something in a pack is sealed to a plan's key that is not at hand although nobody destroyed it.
    pub(super) fn lacks_key_of(&self, directory: &Directory) -> bool {
        directory.kind != PackKind::Nodes && directory.envelopes.iter().any(|envelope| self.keys.lacks(envelope.generation))
    }

    /// The directory of a pack: from memory, or from the store in one request.
    ///
    /// # Errors
    /// `Damaged` when the pack is missing or not what its name and reference say.
    pub(super) fn directory(&self, pack: PackRef) -> Result<Arc<Directory>> {
        if let Some(directory) = self.directories.get(pack.id) {
            return Ok(directory);
        }
        let key = pack.id.key();
        let tail = u64::from(pack.directory_len) + TRAILER_BYTES as u64;
        if pack.len > PACK_MAX || tail > pack.len {
            return Err(Error::new(Kind::Damaged, format!("pack {key}: a reference to it has an impossible size")));
        }
        let bytes = self.block_on(self.store.get_range(&key, pack.len - tail..pack.len)).map_err(|e| missing_pack(e, &key))?;
        if bytes.len() as u64 != tail {
            return Err(Error::new(Kind::Damaged, format!("pack {key}: is truncated")));
        }
        let directory = Arc::new(open_directory(&self.keys, self.id, &key, pack.len, &bytes)?);
        self.directories.put(pack.id, Arc::clone(&directory));
        Ok(directory)
    }

    /// Looks at the directories of packs, several at a time: what comes of each, in their order.
    pub(super) fn each_directory<T: Send>(
        &self,
        packs: &[PackRef],
        cancel: &Cancel,
        look: impl Fn(usize, &Directory) -> T + Sync,
    ) -> Result<Vec<Result<T>>> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut found = Vec::new();
            while let Some((at, pack)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, packs.get(at)?))) {
                cancel.check()?;
                found.push((at, self.directory(*pack).map(|directory| look(at, &directory))));
            }
            Ok(found)
        };
        let found: Vec<Result<Vec<(usize, Result<T>)>>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..LOOKERS.min(packs.len())).map(|_| scope.spawn(work)).collect();
            let panicked = || Error::new(Kind::Bug, "a thread that looks at directories panicked");
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(panicked()))).collect()
        });
        let mut all = found.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect::<Vec<_>>();
        all.sort_unstable_by_key(|(at, _)| *at);
        Ok(all.into_iter().map(|(_, looked)| looked).collect())
    }

    /// The generation that a pack's directory is sealed under, by its trailer.
    ///
    /// # Errors
    /// `Damaged`, `Unavailable`.
    pub(super) fn pack_generation(&self, id: PackId, len: u64) -> Result<u16> {
        let key = id.key();
        let start = len.saturating_sub(TRAILER_BYTES as u64);
        let trailer = self.block_on(self.store.get_range(&key, start..len)).map_err(|e| missing_pack(e, &key))?;
        read_trailer(self.id, &key, &trailer)?;
        Ok(u16::from_le_bytes([trailer[58], trailer[59]]))
    }

    /// Reads a directory of a pack that nothing refers to: its length is known from a listing only.
    ///
    /// # Errors
    /// `Damaged` when it is not a pack of this repository.
    pub(super) fn directory_of_listed(&self, id: PackId, len: u64) -> Result<(PackRef, Arc<Directory>)> {
        let key = id.key();
        if len < TRAILER_BYTES as u64 || len > PACK_MAX {
            return Err(Error::new(Kind::Damaged, format!("pack {key}: has an impossible size")));
        }
        let trailer = self.block_on(self.store.get_range(&key, len - TRAILER_BYTES as u64..len)).map_err(|e| missing_pack(e, &key))?;
        let (_, directory_len) = read_trailer(self.id, &key, &trailer)?;
        let pack = PackRef { id, len, directory_len };
        Ok((pack, self.directory(pack)?))
    }
}

/// A pack that is referred to and not there is damage, not just a missing object.
pub fn missing_pack(error: Error, key: &str) -> Error {
    if error.kind() == Kind::NotFound {
        Error::new(Kind::Damaged, format!("pack {key}: is missing from the repository")).hint("run `lifeboat verify` to see what it harms")
    } else {
        error
    }
}
