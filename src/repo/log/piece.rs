//! Pieces of logs as objects: a pack of kind 3 (see `pack`), one frame a MiB of the log, with a label in front of its directory.
//!
//! Key: `logs/CHAIN/pieces/STREAM-START-END`, 16 hexadecimal digits each. The directory's seal is bound to the key, and the frames to
//! the directory, so no piece can stand for another. The label and the directory are at the tail: a small request reads them.

use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::id::Name;
use crate::repo::Inner;
use crate::repo::format::{LOG_FRAME, LOG_PIECE_MAX, PACK_MAX, PackKind};
use crate::repo::frame::{Encoder, Encoding, Profile, prove};
use crate::repo::nodes::chunk_id;
use crate::repo::pack::{
    ChunkEntry, Directory, FrameEntry, HEADER_BYTES, PackBuilder, TRAILER_BYTES, open_log_directory, read_log_trailer,
};
use crate::repo::read::DecodeWorker;
use crate::store::Version;

/// A piece of a log, as a listing shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PieceInfo {
    /// What positions belong to: a timeline, the number of a binary log.
    pub stream: u64,
    /// Position of the first byte.
    pub start: u64,
    /// Exclusive.
    pub end: u64,
    /// Stored bytes.
    pub size: u64,
}

/// JSON before the directory's content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Label {
    pub plan: Name,
    pub source: Name,
    /// Hex of the keyed hash of the plain bytes.
    pub content: String,
    /// Hex of the hash of the object's bytes before the directory.
    pub sealed: String,
    pub facts: serde_json::Value,
}

/// Bytes asked for at the tail at first, beside those of the frames: enough for a label with little facts.
const TAIL_BYTES: u64 = 2 << 10;
/// Bytes of a frame in the directory, at most.
const TAIL_FRAME_BYTES: u64 = 64;

/// The last part of the names of pieces and gaps.
pub fn stretch_name(stream: u64, start: u64, end: u64) -> String {
    format!("{stream:016x}-{start:016x}-{end:016x}")
}

/// Stream, start and end of a name that [`stretch_name`] made.
pub fn parse_name(name: &str) -> Option<(u64, u64, u64)> {
    let mut parts = name.split('-').map(|part| u64::from_str_radix(part, 16).ok());
    let (stream, start, end) = (parts.next()??, parts.next()??, parts.next()??);
    (start < end && stretch_name(stream, start, end) == name).then_some((stream, start, end))
}

/// Seals a piece for its place.
pub fn seal(
    inner: &Inner,
    key: &str,
    plan: &Name,
    source: &Name,
    content: blake3::Hash,
    facts: &serde_json::Value,
    bytes: &[u8],
) -> Result<Vec<u8>> {
    let failed = |e: std::io::Error| Error::new(Kind::Failed, "compress a frame").because(e);
    let keys = inner.keys.for_plan(plan.as_str())?;
    let mut pack = PackBuilder::new(&keys, inner.id, PackKind::Log, Vec::with_capacity(bytes.len() / 2 + 4096))?;
    let mut encoder = Encoder::new(Profile::General).map_err(failed)?;
    for (number, plain) in bytes.chunks(LOG_FRAME).enumerate() {
        let (encoding, encoded) = encoder.encode(plain).map_err(failed)?;
        if number == 0 {
            prove(encoding, encoded, plain)?;
        }
        let id = chunk_id(keys.chunk_id_key()?, plain);
        pack.push(encoding, encoded, vec![ChunkEntry { id, len: plain.len() as u32, base: None }])?;
    }
    pack.finish_log(&keys, key, |sealed| {
        let label = Label {
            plan: plan.clone(),
            source: source.clone(),
            content: content.to_hex().to_string(),
            sealed: sealed.to_hex().to_string(),
            facts: facts.clone(),
        };
        serde_json::to_vec(&label).map_err(|e| Error::new(Kind::Bug, "encode a label").because(e))
    })
}

/// A piece's label and directory.
pub struct OpenPiece {
    pub label: Label,
    pub directory: Directory,
    /// Where the frames end.
    pub frames_end: u64,
}

impl OpenPiece {
    /// The generation, or the number of a plan's own key, that its bytes are sealed to: they have one envelope.
    pub fn sealed_to(&self) -> u16 {
        self.directory.envelopes.iter().map(|envelope| envelope.generation).max().unwrap_or_default()
    }

    /// Reads them from the store: one small request, two for a large label.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, `Unavailable`.
    pub async fn fetch(inner: &Inner, key: &str, piece: &PieceInfo) -> Result<Self> {
        Self::fetch_with(inner, key, piece, async |range| inner.store.get_small(key, range).await).await
    }

    /// The same of one version of it, in a versioned bucket.
    ///
    /// # Errors
    /// As [`OpenPiece::fetch`].
    pub async fn fetch_version(inner: &Inner, version: &Version, piece: &PieceInfo) -> Result<Self> {
        let key = version.key.as_str();
        Self::fetch_with(inner, key, piece, async |range| inner.store.get_version_range(key, &version.version, range).await).await
    }

    async fn fetch_with(inner: &Inner, key: &str, piece: &PieceInfo, get: impl AsyncFn(Range<u64>) -> Result<Bytes>) -> Result<Self> {
        check_size(key, piece)?;
        let size = piece.size;
        let frames = (piece.end - piece.start).div_ceil(LOG_FRAME as u64);
        let take = size.min(TAIL_BYTES + frames * TAIL_FRAME_BYTES);
        let mut tail = get(size - take..size).await?;
        let need = tail_len(inner, key, size, &tail)?;
        if need <= take {
            tail = tail.slice((take - need) as usize..);
        } else {
            tail = get(size - need..size).await?;
        }
        Self::open(inner, key, piece, &tail)
    }

    /// Opens them from exactly the bytes of directory and trailer, and checks that they belong to this place.
    fn open(inner: &Inner, key: &str, piece: &PieceInfo, tail: &[u8]) -> Result<Self> {
        let damaged = |what: &str| Error::new(Kind::Damaged, format!("object {key}: {what}"));
        let (label, directory) = open_log_directory(&inner.keys, inner.id, key, piece.size, tail)?;
        let label: Label = serde_json::from_slice(&label).map_err(|e| damaged("its label cannot be decoded").because(e))?;
        let chain = inner.keys.log_name(label.plan.as_str(), label.source.as_str());
        if !key.starts_with(&format!("logs/{chain}/")) {
            return Err(damaged("holds another log than its name says"));
        }
        let frames_fit = directory.frames.iter().all(|f| f.encoding != Encoding::Delta && f.chunks.len() == 1);
        let plain: u64 = directory.frames.iter().map(|f| u64::from(f.plain_len)).sum();
        if !frames_fit || plain != piece.end - piece.start {
            return Err(damaged("does not hold as many bytes as its name says"));
        }
        Ok(Self { label, directory, frames_end: piece.size - tail.len() as u64 })
    }

    /// Decodes frames, whose sealed bytes begin with those of the first one, and checks each.
    fn decode(&self, inner: &Inner, key: &str, frames: &[FrameEntry], bytes: &[u8]) -> Result<Vec<u8>> {
        let damaged = |what: &str| Error::new(Kind::Damaged, format!("object {key}: {what}"));
        let mut worker = DecodeWorker::new(inner)?;
        let mut plain = Vec::with_capacity(frames.iter().map(|f| f.plain_len as usize).sum());
        let first = frames.first().map_or(0, |f| f.offset);
        for frame in frames {
            let at = (frame.offset - first) as usize;
            let sealed = bytes.get(at..at + frame.sealed_len as usize).ok_or_else(|| damaged("is truncated"))?;
            worker.decode(key, &self.directory, frame, sealed)?;
            let envelope = self.directory.envelopes[frame.envelope as usize].generation;
            if !inner.keys.chunk_has_id(envelope, &worker.plain, frame.chunks[0].id)? {
                return Err(damaged("a frame does not hold what it should"));
            }
            plain.extend_from_slice(&worker.plain);
        }
        Ok(plain)
    }
}

fn check_size(key: &str, piece: &PieceInfo) -> Result<()> {
    if piece.size > PACK_MAX || piece.size < (HEADER_BYTES + TRAILER_BYTES) as u64 || piece.end - piece.start > LOG_PIECE_MAX as u64 {
        return Err(Error::new(Kind::Damaged, format!("object {key}: has an impossible size")));
    }
    Ok(())
}

/// Bytes of directory and trailer, by the trailer at the end of `tail`.
fn tail_len(inner: &Inner, key: &str, size: u64, tail: &[u8]) -> Result<u64> {
    let trailer = &tail[tail.len().saturating_sub(TRAILER_BYTES)..];
    let need = u64::from(read_log_trailer(inner.id, key, trailer)?) + TRAILER_BYTES as u64;
    if need + HEADER_BYTES as u64 > size {
        return Err(Error::new(Kind::Damaged, format!("object {key}: its directory has an impossible size")));
    }
    Ok(need)
}

/// A whole piece as it is stored, compared with the hash that its label has: finds any change, without reading data.
pub fn fetch_whole(inner: &Inner, key: &str, piece: &PieceInfo) -> Result<(OpenPiece, Bytes)> {
    check_size(key, piece)?;
    open_whole(inner, key, piece, inner.block_on(inner.store.get(key))?)
}

/// The same of bytes that are at hand.
pub fn open_whole(inner: &Inner, key: &str, piece: &PieceInfo, bytes: Bytes) -> Result<(OpenPiece, Bytes)> {
    check_size(key, piece)?;
    let damaged = |what: &str| Error::new(Kind::Damaged, format!("object {key}: {what}"));
    if bytes.len() as u64 != piece.size {
        return Err(damaged("has another size than the store lists"));
    }
    let need = tail_len(inner, key, piece.size, &bytes)?;
    let open = OpenPiece::open(inner, key, piece, &bytes[(piece.size - need) as usize..])?;
    if blake3::hash(&bytes[..open.frames_end as usize]).to_hex().as_str() != open.label.sealed {
        return Err(damaged("its bytes are not those that were stored"));
    }
    Ok((open, bytes))
}

/// The plain bytes of a piece.
pub fn read(inner: &Inner, key: &str, piece: &PieceInfo) -> Result<Vec<u8>> {
    read_with_facts(inner, key, piece).map(|(bytes, _)| bytes)
}

/// The same, and what was said of it.
pub fn read_with_facts(inner: &Inner, key: &str, piece: &PieceInfo) -> Result<(Vec<u8>, serde_json::Value)> {
    let (open, bytes) = fetch_whole(inner, key, piece)?;
    let plain = open.decode(inner, key, &open.directory.frames, &bytes[HEADER_BYTES..open.frames_end as usize])?;
    if inner.keys.log_content(&plain)?.to_hex().as_str() == open.label.content {
        Ok((plain, open.label.facts))
    } else {
        Err(Error::new(Kind::Damaged, format!("object {key}: its content is not what was stored")))
    }
}

/// The plain bytes at some positions of a piece.
pub fn read_range(inner: &Inner, key: &str, piece: &PieceInfo, positions: Range<u64>) -> Result<Vec<u8>> {
    if positions.start < piece.start || positions.end > piece.end || positions.start > positions.end {
        let message = format!("positions {:#x} to {:#x} of {key}, which does not have them", positions.start, positions.end);
        return Err(Error::new(Kind::Bug, message));
    }
    let open = inner.block_on(OpenPiece::fetch(inner, key, piece))?;
    let frames = &open.directory.frames;
    // Position at which each frame ends.
    let ends: Vec<u64> = frames
        .iter()
        .scan(piece.start, |at, frame| {
            *at += u64::from(frame.plain_len);
            Some(*at)
        })
        .collect();
    let first = ends.partition_point(|end| *end <= positions.start);
    let last = ends.partition_point(|end| *end < positions.end);
    let Some(wanted) = frames.get(first..=last).filter(|_| !positions.is_empty()) else { return Ok(Vec::new()) };
    let (front, back) = (&wanted[0], &wanted[wanted.len() - 1]);
    let bytes = inner.block_on(inner.store.get_range(key, front.offset..back.offset + u64::from(back.sealed_len)))?;
    let plain = open.decode(inner, key, wanted, &bytes)?;
    let skip = (positions.start - (ends[first] - u64::from(front.plain_len))) as usize;
    Ok(plain[skip..skip + (positions.end - positions.start) as usize].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_sort_by_position_and_others_are_refused() {
        let name = stretch_name(3, 0x16_b374_d848, 0x16_b400_0000);
        assert_eq!(name, "0000000000000003-00000016b374d848-00000016b4000000");
        assert_eq!(parse_name(&name), Some((3, 0x16_b374_d848, 0x16_b400_0000)));
        assert!(
            stretch_name(3, 0xff, 0x100) < stretch_name(3, 0x100, 0x101) && stretch_name(3, u64::MAX - 1, u64::MAX) < stretch_name(4, 0, 1)
        );
        for bad in [
            name.to_uppercase(),
            name[1..].to_owned(),
            format!("{name}-0"),
            stretch_name(1, 5, 5),
            stretch_name(1, 6, 5),
            name.replace("16b3", "+6b3"),
        ] {
            assert_eq!(parse_name(&bad), None, "{bad}");
        }
    }
}
