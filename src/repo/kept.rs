//! Small sealed objects that this machine read before, kept as they are in the cache folder: an object never changes, so a listing of a
//! thousand snapshots need not fetch a thousand manifests twice.
//!
//! Never a witness of existence: only what a listing shows is looked up, and only by name, size and time of what is listed. Never a witness
//! of content either: what is kept is the sealed object, opened and checked like the one in the store, and fetched again where it does not
//! open. Verification does not come here. The folder is safe to delete.

use std::collections::HashSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use bytes::Bytes;
use futures::StreamExt as _;

use crate::error::Result;
use crate::repo::{Inner, make_private_folder};
use crate::store::{ObjectInfo, Store};

/// Larger ones are fetched each time.
const KEPT_BYTES: u64 = 1 << 20;
/// Objects that wait to be kept.
const WAITING: usize = 64;
/// Asked for at a time; the store's own limits bound what is really in flight.
const REQUESTS: usize = 256;

/// Opens the objects whose keys are `wanted` of those that are `there`, which are all that are below `prefix`, in the order of the listing.
pub fn open_all<T>(
    inner: &Inner,
    prefix: &str,
    there: &[ObjectInfo],
    wanted: impl Fn(&str) -> bool,
    open: impl Fn(&str, &[u8]) -> Result<T>,
) -> Vec<(String, Result<T>)> {
    let listed: Vec<&ObjectInfo> = there.iter().filter(|object| wanted(&object.key)).collect();
    let folder = inner.cache.path.join("objects");
    // Objects of this machine are as near as what would be kept of them.
    let keeps = !inner.store.is_local() && make_private_folder(&folder).is_ok();
    let read = |object: &ObjectInfo| {
        // A sign of life, as each answer of the store is one.
        inner.store.pulse().beat();
        let bytes = keeps.then(|| fs::read(place(&folder, object)).ok()).flatten()?;
        (bytes.len() as u64 == object.size).then(|| open(&object.key, &bytes).ok()).flatten()
    };
    let mut opened: Vec<(String, Option<Result<T>>)> = listed.iter().map(|object| (object.key.clone(), read(object).map(Ok))).collect();
    let missing: Vec<usize> = (0..listed.len()).filter(|at| opened[*at].1.is_none()).collect();
    let (store, asked) = (&inner.store, &listed);
    let fetches = futures::stream::iter(&missing).map(|at| async move { (*at, fetch(store, asked[*at]).await) });
    // Files are made beside: the answers that are on their way do not wait for them.
    let (to_keep, kept) = mpsc::sync_channel::<(PathBuf, Bytes)>(WAITING);
    thread::scope(|scope| {
        // Only what would be fetched again.
        let keeping = move || kept.into_iter().for_each(|(place, bytes)| drop(keep(&place, &bytes)));
        // Without a thread nothing is kept.
        let _ = thread::Builder::new().spawn_scoped(scope, keeping);
        let sender = to_keep;
        inner.block_on(async {
            let mut fetches = fetches.buffer_unordered(REQUESTS);
            // Opened while others are on their way.
            while let Some((at, bytes)) = fetches.next().await {
                let object = listed[at];
                let result = bytes.and_then(|bytes| {
                    let result = open(&object.key, &bytes)?;
                    if keeps && object.size <= KEPT_BYTES && bytes.len() as u64 == object.size {
                        // An error: the other thread is gone, and nothing is kept.
                        let _ = sender.send((place(&folder, object), bytes));
                    }
                    Ok(result)
                });
                opened[at].1 = Some(result);
            }
        });
    });
    if keeps && !missing.is_empty() {
        sweep(&folder, prefix, there);
    }
    opened.into_iter().filter_map(|(key, result)| Some((key, result?))).collect()
}

async fn fetch(store: &Store, object: &ObjectInfo) -> Result<Bytes> {
    match object.size {
        // As many as fit on the line at a time.
        1..=SMALL_BYTES => store.get_small(&object.key, 0..object.size).await,
        _ => store.get(&object.key).await,
    }
}

/// What counts as small.
const SMALL_BYTES: u64 = 64 << 10;

fn place(folder: &Path, object: &ObjectInfo) -> PathBuf {
    let time = object.modified.timestamp_nanos_opt().unwrap_or_default();
    folder.join(format!("{}#{}#{time}", object.key.replace('/', "+"), object.size))
}

/// Private from its first moment, whole or not there.
fn keep(place: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let beside = place.with_file_name(format!("{}.new", ulid::Ulid::generate()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let written = file.write_all(bytes).and_then(|()| fs::rename(&beside, place));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

/// Removes what is kept of objects that are not there any more. Best effort.
fn sweep(folder: &Path, prefix: &str, listed: &[ObjectInfo]) {
    let there: HashSet<PathBuf> = listed.iter().map(|object| place(folder, object)).collect();
    let prefix = prefix.replace('/', "+");
    for item in fs::read_dir(folder).into_iter().flatten().flatten() {
        if item.file_name().to_string_lossy().starts_with(&prefix) && !there.contains(&item.path()) {
            let _ = fs::remove_file(item.path());
        }
    }
}
