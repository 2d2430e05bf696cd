//! Sealed objects: everything in the repository that is neither a pack, a key slot nor `format`.
//!
//! ```text
//! offset size
//!      0    4  magic "LBSO"
//!      4    1  format version (1)
//!      5    1  kind (see `ObjectKind`)
//!      6    2  key generation, little-endian
//!      8   16  repository id
//!     24   32  salt, random
//!     56    …  AES-256-GCM of one zstd frame, and its tag
//! ```
//! Key: `derive_key("lifeboat v1 sealed object", metadata key ‖ salt)`; nonce: zero (the key is used once). Associated data: the
//! 56 bytes of the header and the object's key; for index objects, which are named by their hash, the word `index`.

use crate::error::{Error, Kind, Result};
use crate::repo::format::{OBJECT_MAX, ObjectKind, RepositoryId, TAG_BYTES, VERSION};
use crate::repo::keys::Keys;

const MAGIC: &[u8; 4] = b"LBSO";
const HEADER_BYTES: usize = 56;
const PURPOSE: &str = "lifeboat v1 sealed object";

/// Seals `content` for the place `key`.
///
/// # Errors
/// `WrongKey` from a slot that a rotation left behind; else only when the operating system gives no random bytes or `content` is over the limit.
pub fn seal(keys: &Keys, repository: RepositoryId, kind: ObjectKind, key: &str, content: &[u8]) -> Result<Vec<u8>> {
    keys.require_current()?;
    if content.len() > OBJECT_MAX {
        return Err(Error::new(
            Kind::Failed,
            format!("the {} object would have {} bytes, over the limit of {OBJECT_MAX}", kind.word(), content.len()),
        ));
    }
    let mut salt = [0u8; 32];
    getrandom::fill(&mut salt).map_err(|e| Error::new(Kind::Bug, "ask for random bytes").because(e))?;
    let mut object = Vec::with_capacity(HEADER_BYTES + content.len() / 2 + 64);
    object.extend_from_slice(MAGIC);
    object.push(VERSION);
    object.push(kind as u8);
    object.extend_from_slice(&keys.generation.to_le_bytes());
    object.extend_from_slice(&repository.0);
    object.extend_from_slice(&salt);
    let associated = associated(&object, kind, key);
    let mut body = zstd::bulk::compress(content, 3).map_err(|e| Error::new(Kind::Bug, "compress an object").because(e))?;
    keys.metadata_cipher(PURPOSE, &salt).seal(&[0; 12], &associated, &mut body).map_err(|_| Error::new(Kind::Bug, "seal an object"))?;
    object.extend_from_slice(&body);
    Ok(object)
}

/// The kind that an object's header claims (unauthenticated), if it is a sealed object at all.
pub fn claimed_kind(object: &[u8]) -> Option<ObjectKind> {
    (object.len() >= HEADER_BYTES && &object[..4] == MAGIC).then(|| ObjectKind::from_byte(object[5])).flatten()
}

/// The kind byte and the repository that an object's header claims (unauthenticated), if it is a sealed object of this version at all.
pub fn claims(object: &[u8]) -> Option<(u8, RepositoryId)> {
    if object.len() < HEADER_BYTES + TAG_BYTES || &object[..4] != MAGIC || object[4] != VERSION {
        return None;
    }
    let mut id = [0; 16];
    id.copy_from_slice(&object[8..24]);
    Some((object[5], RepositoryId(id)))
}

/// The key generation that an object's header claims (unauthenticated), if it is a sealed object at all.
pub fn claimed_generation(object: &[u8]) -> Option<u16> {
    (object.len() >= HEADER_BYTES && &object[..4] == MAGIC).then(|| u16::from_le_bytes([object[6], object[7]]))
}

/// Opens what [`seal`] made for the same place and kind.
///
/// # Errors
/// `Damaged`, saying whether it is no object of ours, one of another repository, or changed; `WrongKey` when it is newer than what a slot
/// that was left behind by a rotation holds.
pub fn open(keys: &Keys, repository: RepositoryId, kind: ObjectKind, key: &str, object: &[u8]) -> Result<Vec<u8>> {
    let damaged = |what: &str| Error::new(Kind::Damaged, format!("object {key}: {what}"));
    if object.len() < HEADER_BYTES + TAG_BYTES || &object[..4] != MAGIC {
        return Err(damaged("not a sealed object (truncated or overwritten)"));
    }
    let (header, sealed) = object.split_at(HEADER_BYTES);
    if header[4] != VERSION {
        return Err(damaged("written by another format version").hint("use a newer version of lifeboat"));
    }
    if header[8..24] != repository.0 {
        return Err(damaged("belongs to another repository"));
    }
    if header[5] != kind as u8 {
        return Err(damaged("is of another kind than its name says"));
    }
    let mut salt = [0; 32];
    salt.copy_from_slice(&header[24..]);
    let mut body = sealed.to_vec();
    keys.metadata_cipher_of(&format!("object {key}"), u16::from_le_bytes([header[6], header[7]]), PURPOSE, &salt)?
        .open(&[0; 12], &associated(header, kind, key), &mut body)
        .map_err(|_| damaged("its seal is broken (changed, truncated or moved here from another place)"))?;
    let size = zstd::zstd_safe::get_frame_content_size(&body).ok().flatten().and_then(|s| usize::try_from(s).ok());
    let Some(size) = size.filter(|s| *s <= OBJECT_MAX) else { return Err(damaged("claims an impossible size")) };
    zstd::bulk::decompress(&body, size).map_err(|e| damaged("cannot be decompressed").because(e))
}

fn associated(header: &[u8], kind: ObjectKind, key: &str) -> Vec<u8> {
    let place = if kind == ObjectKind::Index { "index" } else { key };
    [header, place.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPOSITORY: RepositoryId = RepositoryId([7; 16]);

    #[test]
    fn an_object_opens_only_in_its_place_as_its_kind_and_unchanged() {
        let keys = Keys::generate();
        let sealed = seal(&keys, REPOSITORY, ObjectKind::Manifest, "snapshots/a/b", b"content").unwrap();
        assert_eq!(open(&keys, REPOSITORY, ObjectKind::Manifest, "snapshots/a/b", &sealed).unwrap(), b"content");
        for (repository, kind, key) in [
            (RepositoryId([8; 16]), ObjectKind::Manifest, "snapshots/a/b"),
            (REPOSITORY, ObjectKind::Report, "snapshots/a/b"),
            (REPOSITORY, ObjectKind::Manifest, "snapshots/a/c"),
        ] {
            assert_eq!(open(&keys, repository, kind, key, &sealed).unwrap_err().kind(), Kind::Damaged);
        }
        for at in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[at] ^= 1;
            assert!(open(&keys, REPOSITORY, ObjectKind::Manifest, "snapshots/a/b", &flipped).is_err(), "byte {at}");
            assert!(open(&keys, REPOSITORY, ObjectKind::Manifest, "snapshots/a/b", &sealed[..at]).is_err(), "cut at {at}");
        }
        assert!(open(&Keys::generate(), REPOSITORY, ObjectKind::Manifest, "snapshots/a/b", &sealed).is_err());
    }
}
