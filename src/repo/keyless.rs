//! The check that needs no key: for whoever runs the storage, or has only a bucket.
//!
//! Packs and index objects are named by the hash of their bytes, so every change of one is found. Of all else only the shape can be looked at. What is
//! missing cannot be known without a key, nor whether the names that are there are those that were written. What has another name than objects have is of
//! somebody else, and is passed over.

use futures::StreamExt as _;

use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Event, Progress};
use crate::repo::format::{FORMAT_KEY, ObjectKind, PackId, RepositoryId};
use crate::repo::keys::{KeyObject, Marker, StoredSlot, Update};
use crate::repo::pack::{TRAILER_BYTES, read_log_trailer, read_trailer};
use crate::repo::verify::{Findings, tolerable};
use crate::repo::{Finding, names, read_format, seal};
use crate::store::{ObjectInfo, Store};

/// Objects looked at at a time; packs are held whole.
const AT_A_TIME: usize = 4;

/// What was seen without a key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeylessCheck {
    /// By key; none names a snapshot.
    pub findings: Vec<Finding>,
    /// Packs and index objects: every byte was compared with their names.
    pub objects_compared: u64,
    pub bytes_compared: u64,
    /// Others: only their shape was looked at.
    pub objects_shaped: u64,
    /// Keys of what was passed over, because its name is none of an object; the first thousand, sorted.
    pub strange: Vec<String>,
}

/// Whether every byte was compared, and how many.
enum Seen {
    Compared(u64),
    Shape,
    /// Neither by its name nor by what it holds an object.
    Strange,
}

/// Checks the repository in a place, without a key.
///
/// # Errors
/// `NoRepository`; when the store cannot be asked; interrupted.
pub fn check_keyless(store: &Store, runtime: &tokio::runtime::Handle, progress: &dyn Progress, cancel: &Cancel) -> Result<KeylessCheck> {
    let mut findings = Findings::default();
    let id = match read_format(store, runtime) {
        Ok(format) => Some(format.id),
        Err(error) if error.kind() == Kind::Damaged => {
            findings.add_error(FORMAT_KEY, &error, []);
            None
        }
        Err(error) => return Err(error),
    };
    let mut out = KeylessCheck::default();
    let store = &store.with_names(names::is_object);
    let listed = runtime.block_on(store.list(""))?;
    progress.event(Event::Phase { name: "objects", detail: listed.len().to_string() });
    progress.event(Event::Total { bytes: listed.iter().map(|object| object.size).sum(), items: listed.len() as u64 });
    runtime.block_on(async {
        let mut looks = futures::stream::iter(listed.iter().filter(|object| object.key != FORMAT_KEY && !object.key.starts_with("probe/")))
            .map(|object| async move { (object, look(store, id, object).await) })
            .buffer_unordered(AT_A_TIME);
        while let Some((object, seen)) = looks.next().await {
            cancel.check()?;
            progress.event(Event::Advance { bytes: object.size, items: 1 });
            match seen {
                Ok(Seen::Compared(bytes)) => {
                    out.objects_compared += 1;
                    out.bytes_compared += bytes;
                }
                Ok(Seen::Shape) => out.objects_shaped += 1,
                Ok(Seen::Strange) => out.strange.push(object.key.clone()),
                // Listed, and ended or collected since.
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => findings.add_error(&object.key, &tolerable(error)?, []),
            }
        }
        Ok::<(), Error>(())
    })?;
    out.findings = findings.into_sorted();
    out.strange.extend(store.strange());
    out.strange.sort_unstable();
    Ok(out)
}

async fn look(store: &Store, id: Option<RepositoryId>, object: &ObjectInfo) -> Result<Seen> {
    let key = object.key.as_str();
    let damaged = |what: &str| Error::new(Kind::Damaged, format!("object {key}: {what}"));
    let folder = key.split('/').next().unwrap_or_default();
    match folder {
        "packs" => {
            let Some(pack) = PackId::from_key(key) else { return Ok(Seen::Strange) };
            let bytes = store.get(key).await?;
            if *blake3::hash(&bytes).as_bytes() != pack.0 {
                return Err(damaged("its bytes do not match its name (changed or truncated in the store)"));
            }
            let trailer = bytes.len().checked_sub(TRAILER_BYTES).ok_or_else(|| damaged("is too short for a pack"))?;
            if let Some(id) = id {
                read_trailer(id, key, &bytes[trailer..])?;
            }
            Ok(Seen::Compared(bytes.len() as u64))
        }
        "index" => {
            let bytes = store.get(key).await?;
            if key.strip_prefix("index/") != Some(blake3::hash(&bytes).to_hex().as_str()) {
                return Err(damaged("does not match its name"));
            }
            shape(id, key, &bytes, Some(&[ObjectKind::Index]))?;
            Ok(Seen::Compared(bytes.len() as u64))
        }
        "keys" => {
            let bytes = store.get(key).await?;
            let is_whole = match KeyObject::of(key) {
                KeyObject::Slot(_) if !KeyObject::is_slot_name(key) && StoredSlot::from_json(&bytes).is_err() => return Ok(Seen::Strange),
                KeyObject::Slot(_) => StoredSlot::from_json(&bytes).is_ok_and(|slot| slot.is_whole() && slot.key() == key),
                KeyObject::Marker(number) => serde_json::from_slice::<Marker>(&bytes).is_ok_and(|marker| marker.generation == number),
                KeyObject::Update { slot, generation, .. } => {
                    serde_json::from_slice::<Update>(&bytes).is_ok_and(|update| update.slot == slot && update.generation == generation)
                }
                KeyObject::PlanKey { .. } => return shape(id, key, &bytes, Some(&[ObjectKind::PlanKey])).map(|()| Seen::Shape),
                KeyObject::Other => return Ok(Seen::Strange),
            };
            if is_whole { Ok(Seen::Shape) } else { Err(damaged("is not as it was stored")) }
        }
        "logs" if key.contains("/pieces/") => {
            let start = object.size.saturating_sub(TRAILER_BYTES as u64);
            let trailer = store.get_range(key, start..object.size).await?;
            id.map_or(Ok(0), |id| read_log_trailer(id, key, &trailer)).map(|_| Seen::Shape)
        }
        "snapshots" => shape(id, key, &store.get(key).await?, Some(&[ObjectKind::Manifest, ObjectKind::Void])).map(|()| Seen::Shape),
        "logs" | "sessions" | "gc" | "reports" | "key-events" | "audit" | "retention" => {
            shape(id, key, &store.get(key).await?, None).map(|()| Seen::Shape)
        }
        _ => Ok(Seen::Strange),
    }
}

/// Whether it looks like a sealed object of this repository.
fn shape(id: Option<RepositoryId>, key: &str, bytes: &[u8], kinds: Option<&[ObjectKind]>) -> Result<()> {
    let damaged = |what: &str| Error::new(Kind::Damaged, format!("object {key}: {what}"));
    let (claimed, repository) = seal::claims(bytes).ok_or_else(|| damaged("not a sealed object (truncated or overwritten)"))?;
    if id.is_some_and(|id| id != repository) {
        return Err(damaged("belongs to another repository"));
    }
    match kinds {
        Some(kinds) if kinds.iter().all(|kind| *kind as u8 != claimed) => Err(damaged("is of another kind than its name says")),
        _ => Ok(()),
    }
}
