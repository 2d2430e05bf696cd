//! Logs: the continuous log of a source beside its snapshots, kept as pieces of streams. The repository does not know what is in them.
//!
//! A *piece* is a stretch `start .. end` of one stream (PostgreSQL: timeline and LSNs; MySQL: number of a binary log and offsets), one byte
//! a position. Pieces may overlap: small ones that were sent while a segment filled, and the whole segment after them. Everything here is
//! create-only; nothing refers to a piece but its name, so a listing shows what is there. What a piece covers can be read by whoever
//! lists the store; its bytes only by the reader role.
//!
//! Beside the pieces stand *side files* (timeline histories: sealed under the metadata key, so that the writer reads them back) and
//! *gap records* (what is known to be missing, and why).

mod known;
mod piece;
mod ranges;
mod verify;

pub use piece::PieceInfo;
pub use ranges::{LogRun, runs};

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::id::Name;
use crate::repo::format::{LOG_PIECE_MAX, ObjectKind};
use crate::repo::keys::Role;
use crate::repo::names::is_side_name;
use crate::repo::{Inner, Repository};
use crate::store::{ObjectInfo, Version};
use known::Known;
pub(super) use known::decode as decode_known;
pub(super) use piece::{Label, parse_name};
use piece::{OpenPiece, stretch_name};
pub(super) use verify::share_of_piece;

/// The log of one source of a plan.
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
    plan: Name,
    source: Name,
    /// `logs/CHAIN`
    folder: String,
}

/// How an append ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub piece: PieceInfo,
    /// `false`: the same content was there already, perhaps with other facts, which stay.
    pub new: bool,
}

/// A piece that is ready to be stored.
pub struct Sealed {
    key: String,
    piece: PieceInfo,
    content: blake3::Hash,
    bytes: Bytes,
}

/// A piece as a listing shows it, with what tells this object from another one that had its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    pub piece: PieceInfo,
    /// When it was stored, by the store's clock.
    pub modified: DateTime<Utc>,
}

/// What the tail of a piece says.
struct Said {
    facts: serde_json::Value,
    /// See [`OpenPiece::sealed_to`].
    sealed_to: u16,
}

/// A stretch of a stream that is known to be missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    pub stream: u64,
    pub from: u64,
    /// Exclusive.
    pub to: u64,
    /// For people.
    pub reason: String,
    pub noticed_at: DateTime<Utc>,
    /// The bytes are stored as they came, but the record at `from` is not one that a server can replay: recovery that comes there ends there. It explains no hole.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unreadable: bool,
}

/// Greatest JSON text of a piece's facts, in bytes.
const FACTS_MAX: usize = 64 << 10;
/// Pieces asked for at a time; the store's own limits bound what is really in flight.
const REQUESTS: usize = 256;
/// Whether this is the key of a piece of a log.
#[must_use]
pub fn is_piece_key(key: &str) -> bool {
    let parts: Vec<&str> = key.split('/').collect();
    matches!(parts.as_slice(), ["logs", _, "pieces", name] if parse_name(name).is_some())
}

/// Facts that are in memory as they were read.
const FACTS_BATCH: usize = 4096;
/// Removals at a time.
const REMOVALS: usize = 16;
/// How often pieces are listed again because they were replaced meanwhile.
const LISTINGS: u32 = 5;

impl Repository {
    /// Which of these pieces of logs (by their keys) are there. One listing for each log.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub fn pieces_there<'a>(&self, keys: &BTreeSet<&'a str>) -> Result<BTreeSet<&'a str>> {
        let folders: BTreeSet<&str> = keys.iter().filter_map(|key| Some(key.rsplit_once('/')?.0)).collect();
        let mut there = BTreeSet::new();
        for folder in folders {
            let listed = self.inner.block_on(self.inner.store.list(folder))?;
            there.extend(listed.iter().filter_map(|object| keys.get(object.key.as_str()).copied()));
        }
        Ok(there)
    }

    /// The log of a source. Asks nobody.
    #[must_use]
    pub fn log(&self, plan: &Name, source: &Name) -> Log {
        let chain = self.inner.keys.log_name(plan.as_str(), source.as_str());
        Log { inner: Arc::clone(&self.inner), plan: plan.clone(), source: source.clone(), folder: format!("logs/{chain}") }
    }
}

impl Log {
    /// Stores the piece `start .. end`; when this returns it is durable, and positions up to `end` may be confirmed to the server. `bytes`:
    /// exactly `end - start`, at most 128 MiB. `facts`: JSON that the writer role may read back with [`Log::facts`].
    ///
    /// # Errors
    /// [`Kind::SplitBrain`] when another content is there under the same stretch; `WrongKey` for the maintainer role; `Damaged` when what
    /// is there cannot be read; `Unavailable` and the like: the same call again is safe.
    pub fn append(&self, stream: u64, start: u64, end: u64, facts: &serde_json::Value, bytes: &[u8]) -> Result<Appended> {
        self.put(self.seal(stream, start, end, facts, bytes)?)
    }

    /// The first half of [`Log::append`], without the store: compresses and encrypts.
    ///
    /// # Errors
    /// `WrongKey` for the maintainer role.
    pub fn seal(&self, stream: u64, start: u64, end: u64, facts: &serde_json::Value, bytes: &[u8]) -> Result<Sealed> {
        if bytes.is_empty() || bytes.len() > LOG_PIECE_MAX || start.checked_add(bytes.len() as u64) != Some(end) {
            return Err(Error::new(Kind::Bug, format!("a log piece from {start:#x} to {end:#x} with {} bytes", bytes.len())));
        }
        let facts_len = facts.to_string().len();
        if facts_len > FACTS_MAX {
            return Err(Error::new(Kind::Bug, format!("a log piece with {facts_len} bytes of facts")));
        }
        let key = self.piece_key(stream, start, end);
        let content = self.inner.keys.log_content(bytes)?;
        let sealed = piece::seal(&self.inner, &key, &self.plan, &self.source, content, facts, bytes)?;
        let piece = PieceInfo { stream, start, end, size: sealed.len() as u64 };
        Ok(Sealed { key, piece, content, bytes: Bytes::from(sealed) })
    }

    /// The second half of [`Log::append`].
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn put(&self, Sealed { key, piece, content, bytes }: Sealed) -> Result<Appended> {
        match self.inner.block_on(self.inner.store.create(&key, bytes)) {
            Ok(_) => Ok(Appended { piece, new: true }),
            // Sealing is randomised, so the same content has other bytes: what was sealed decides.
            Err(e) if e.kind() == Kind::AlreadyExists => self.settle_existing(&key, piece, content),
            Err(e) => Err(e),
        }
    }

    fn settle_existing(&self, key: &str, piece: PieceInfo, content: blake3::Hash) -> Result<Appended> {
        let Some(there) = self.inner.block_on(self.inner.store.head(key))? else {
            return Err(Error::new(Kind::Unavailable, format!("object {key}: it was there and is gone again")).hint("try again"));
        };
        let piece = PieceInfo { size: there.size, ..piece };
        let open = self.inner.block_on(OpenPiece::fetch(&self.inner, key, &piece)).map_err(|e| {
            e.within(format!("compare with what is stored as {key}"))
                .hint("run `lifeboat verify`; a damaged piece must be removed before it can be stored again")
        })?;
        if open.label.content == content.to_hex().as_str() {
            return Ok(Appended { piece, new: false });
        }
        Err(Error::new(
            Kind::SplitBrain,
            format!(
                "another content is stored for positions {:#x} to {:#x} of stream {} of source {} (split brain)",
                piece.start, piece.end, piece.stream, self.source
            ),
        )
        .hint("two servers or two hosts write this log: stop the one that is wrong. Nothing that was stored has been changed"))
    }

    /// All pieces, by stream, start and end. One listing. Objects with other names are passed over (`verify` tells of them).
    ///
    /// # Errors
    /// `Unavailable` and the like.
    pub fn pieces(&self) -> Result<Vec<PieceInfo>> {
        Ok(self.listed()?.iter().map(|listed| listed.piece).collect())
    }

    /// The same, to ask for their facts.
    ///
    /// # Errors
    /// `Unavailable` and the like.
    pub fn listed(&self) -> Result<Vec<Listed>> {
        let folder = format!("{}/pieces/", self.folder);
        let listed = self.inner.block_on(self.inner.store.list(&folder))?;
        let piece = |object: &ObjectInfo| {
            let (stream, start, end) = parse_name(&object.key[folder.len()..])?;
            Some(Listed { piece: PieceInfo { stream, start, end, size: object.size }, modified: object.modified })
        };
        Ok(listed.iter().filter_map(piece).collect())
    }

    /// What was said of a piece when it was stored. One small request, no data. Every role.
    ///
    /// # Errors
    /// `NotFound` when it was removed since the listing: list again. `Damaged`.
    pub fn facts(&self, piece: &PieceInfo) -> Result<serde_json::Value> {
        Ok(self.inner.block_on(OpenPiece::fetch(&self.inner, &self.key(piece), piece))?.label.facts)
    }

    /// Whether exactly these bytes are stored as a piece. One small request, no data. Every role that may write.
    ///
    /// # Errors
    /// As [`Log::facts`]; `WrongKey` for the maintainer role.
    pub fn holds(&self, piece: &PieceInfo, bytes: &[u8]) -> Result<bool> {
        let content = self.inner.keys.log_content(bytes)?;
        let open = self.inner.block_on(OpenPiece::fetch(&self.inner, &self.key(piece), piece))?;
        Ok(open.label.content == content.to_hex().as_str())
    }

    /// Whether a piece holds what `bytes`, which begin at position `start`, have where both have any. One small request and no data: frames are
    /// compared, of 1 MiB each. Of one that goes beyond `bytes` only the reader role can tell, and others take it as the same.
    ///
    /// # Errors
    /// As [`Log::holds`].
    pub fn agrees(&self, piece: &PieceInfo, start: u64, bytes: &[u8]) -> Result<bool> {
        let open = self.inner.block_on(OpenPiece::fetch(&self.inner, &self.key(piece), piece))?;
        let end = start.saturating_add(bytes.len() as u64);
        let mut next = piece.start;
        for frame in &open.directory.frames {
            let frame_at = next;
            next += u64::from(frame.plain_len);
            let (from, to) = (frame_at.max(start), next.min(end));
            if from >= to {
                continue;
            }
            let part = &bytes[(from - start) as usize..(to - start) as usize];
            let is_same = if (from, to) == (frame_at, next) {
                let envelope = open.directory.envelopes[frame.envelope as usize].generation;
                self.inner.keys.chunk_has_id(envelope, part, frame.chunks[0].id)?
            } else {
                self.inner.keys.role != Role::Reader || self.read_range(piece, from..to)? == part
            };
            if !is_same {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What was said of many pieces, as [`Log::facts`]: `take` gets each with its number in the list, in their order. Many requests at a time; what this machine read
    /// before of the same objects is not asked for again. `false` from `take` ends it.
    pub fn facts_of(&self, listed: &[Listed], mut take: impl FnMut(usize, Result<serde_json::Value>) -> bool) {
        self.said_of(listed, |at, said| take(at, said.map(|said| said.facts)));
    }

    /// Those of these pieces whose bytes nobody can read any more, because the key that they are sealed to was destroyed. Asks nobody where no key of the
    /// plan was, else as [`Log::facts_of`]. Of one that is damaged or gone nothing is known here.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub fn destroyed(&self, listed: &[Listed]) -> Result<BTreeSet<PieceInfo>> {
        let keys = &self.inner.keys;
        if !keys.has_destroyed(self.plan.as_str()) {
            return Ok(BTreeSet::new());
        }
        let (mut destroyed, mut failed) = (BTreeSet::new(), None);
        self.said_of(listed, |at, said| {
            match said {
                Ok(said) if keys.is_erased(said.sealed_to) => drop(destroyed.insert(listed[at].piece)),
                Err(error) if !matches!(error.kind(), Kind::Damaged | Kind::NotFound) => failed = Some(error),
                Ok(_) | Err(_) => {}
            }
            failed.is_none()
        });
        failed.map_or(Ok(destroyed), Err)
    }

    fn said_of(&self, listed: &[Listed], mut take: impl FnMut(usize, Result<Said>) -> bool) {
        use futures::StreamExt as _;
        let inner = &self.inner;
        let mut known = Known::open(inner, &self.folder);
        'batches: for (batch, some) in listed.chunks(FACTS_BATCH).enumerate() {
            let mut found: Vec<Option<Said>> = some.iter().map(|listed| known.get(listed)).collect();
            let unknown: Vec<usize> = (0..some.len()).filter(|at| found[*at].is_none()).collect();
            let fetches = futures::stream::iter(&unknown).map(|at| {
                let piece = some[*at].piece;
                let key = self.key(&piece);
                async move {
                    let open = OpenPiece::fetch(inner, &key, &piece).await?;
                    Ok(Said { sealed_to: open.sealed_to(), facts: open.label.facts })
                }
            });
            let fetched: Vec<Result<Said>> = inner.block_on(fetches.buffered(REQUESTS).collect());
            for (at, said) in unknown.iter().zip(&fetched) {
                if let Ok(said) = said {
                    known.put(&some[*at], said);
                }
            }
            let mut fetched = fetched.into_iter();
            for (at, found) in found.iter_mut().enumerate() {
                let Some(said) = found.take().map(Ok).or_else(|| fetched.next()) else { break 'batches };
                if !take(batch * FACTS_BATCH + at, said) {
                    break 'batches;
                }
            }
        }
        known.save(inner, listed);
    }

    /// The bytes of a piece, every one checked. Needs the reader role.
    ///
    /// # Errors
    /// `WrongKey`, `Damaged`; `NotFound` when it was removed since the listing.
    pub fn read(&self, piece: &PieceInfo) -> Result<Vec<u8>> {
        self.inner.keys.require_reader("read a log")?;
        piece::read(&self.inner, &self.key(piece), piece)
    }

    /// The bytes at these positions of a piece: only the frames that hold them are fetched and checked. Needs the reader role.
    ///
    /// # Errors
    /// As [`Log::read`]; `Bug` for positions that the piece does not have.
    pub fn read_range(&self, piece: &PieceInfo, positions: Range<u64>) -> Result<Vec<u8>> {
        self.inner.keys.require_reader("read a log")?;
        piece::read_range(&self.inner, &self.key(piece), piece, positions)
    }

    /// The bytes at these positions of a stream, put together from `pieces` (as [`Log::pieces`] lists them). Where one is damaged or gone, or its key was
    /// destroyed, others that have the same positions are used, also those that came since the listing: a stream puts its pieces together into larger ones all
    /// the time. Needs the reader role.
    ///
    /// # Errors
    /// `NoRecoveryPoint` when the pieces do not have all positions, or only such whose key was destroyed; `Damaged` when only damaged ones do; `WrongKey`.
    pub fn read_span(&self, pieces: &[PieceInfo], stream: u64, positions: Range<u64>) -> Result<Vec<u8>> {
        let near = |p: &&PieceInfo| p.stream == stream && p.start < positions.end && positions.start < p.end;
        let mut usable: Vec<PieceInfo> = pieces.iter().filter(near).copied().collect();
        let (mut unusable, mut damage): (Vec<PieceInfo>, Option<Error>) = (Vec::new(), None);
        let (mut gone, mut is_outdated, mut listings): (Option<Error>, bool, u32) = (None, false, 0);
        'again: loop {
            let Some(parts) = runs(&usable).iter().find_map(|run| run.parts(positions.clone())) else {
                if is_outdated && listings < LISTINGS {
                    (is_outdated, listings) = (false, listings + 1);
                    usable = self.pieces()?.iter().filter(near).filter(|piece| !unusable.contains(piece)).copied().collect();
                    continue;
                }
                return Err(damage.unwrap_or_else(|| {
                    let what = format!(
                        "the log of source {} does not have positions {:#x} to {:#x} of stream {stream}",
                        self.source, positions.start, positions.end
                    );
                    let error = Error::new(Kind::NoRecoveryPoint, what);
                    gone.into_iter().fold(error, Error::because)
                }));
            };
            let mut bytes = Vec::new();
            for (piece, part) in parts {
                let whole = part == (piece.start..piece.end);
                match if whole { self.read(&piece) } else { self.read_range(&piece, part) } {
                    Ok(mut read) => bytes.append(&mut read),
                    Err(error) if matches!(error.kind(), Kind::Damaged | Kind::NotFound | Kind::NoRecoveryPoint) => {
                        tracing::warn!(piece = %self.key(&piece), error = ?error, "a log piece cannot be used; others are tried");
                        usable.retain(|other| *other != piece);
                        if error.kind() == Kind::NotFound {
                            (gone, is_outdated) = (Some(error), true);
                        } else {
                            unusable.push(piece);
                            damage.get_or_insert(error);
                        }
                        continue 'again;
                    }
                    Err(error) => return Err(error),
                }
            }
            return Ok(bytes);
        }
    }

    /// Copies a piece with its facts into the log of another repository, every byte checked. Needs the reader role here, the writer role there.
    ///
    /// # Errors
    /// As [`Log::read`] and [`Log::append`].
    pub fn copy_piece(&self, piece: &PieceInfo, to: &Self) -> Result<Appended> {
        self.inner.keys.require_reader("read a log")?;
        let (bytes, facts) = piece::read_with_facts(&self.inner, &self.key(piece), piece)?;
        to.append(piece.stream, piece.start, piece.end, &facts, &bytes)
    }

    /// Stream, start and end of the piece of this log that has this key.
    pub fn stretch_of(&self, key: &str) -> Option<(u64, u64, u64)> {
        parse_name(key.strip_prefix(&self.folder)?.strip_prefix("/pieces/")?)
    }

    /// The side file of this log that has this key.
    pub fn side_of(&self, key: &str) -> Option<Name> {
        Name::new(key.strip_prefix(&self.folder)?.strip_prefix("/history/")?).ok()
    }

    /// Puts the piece of the same log in another repository in the place of a damaged or missing one; a sound one stays. `false`: the other
    /// has none of this stretch. The damaged one is removed when the other was read whole and without a fault, not before.
    ///
    /// # Errors
    /// `Damaged` when the other is damaged too: nothing was changed. What the stores say: then the piece may be missing until this is done again.
    pub fn mend_piece(&self, stretch: (u64, u64, u64), from: &Self) -> Result<bool> {
        self.inner.keys.require_reader("read a log")?;
        let is_it = |piece: &PieceInfo| (piece.stream, piece.start, piece.end) == stretch;
        let Some(there) = from.pieces()?.into_iter().find(is_it) else { return Ok(false) };
        let (bytes, facts) = piece::read_with_facts(&from.inner, &from.key(&there), &there)?;
        if let Some(here) = self.pieces()?.into_iter().find(is_it) {
            match self.read(&here) {
                Ok(_) => return Ok(true),
                Err(error) if matches!(error.kind(), Kind::Damaged | Kind::NotFound) => {}
                Err(error) => return Err(error),
            }
            self.inner.block_on(self.inner.store.delete(&self.key(&here)))?;
        }
        self.append(there.stream, there.start, there.end, &facts, &bytes)?;
        Ok(true)
    }

    /// The same for a side file.
    ///
    /// # Errors
    /// As [`Log::mend_piece`].
    pub fn mend_side(&self, name: &Name, from: &Self) -> Result<bool> {
        let Some(content) = from.side(name)? else { return Ok(false) };
        match self.side(name) {
            Ok(Some(_)) => return Ok(true),
            Ok(None) => {}
            Err(error) if error.kind() == Kind::Damaged => self.inner.block_on(self.inner.store.delete(&self.side_key(name)))?,
            Err(error) => return Err(error),
        }
        self.put_side(name, &content)?;
        Ok(true)
    }

    /// Copies the pieces of the same log in another repository that lie in a hole. Whether the hole is closed now.
    ///
    /// # Errors
    /// As [`Log::copy_piece`].
    pub fn close_hole(&self, (stream, start, end): (u64, u64, u64), from: &Self) -> Result<bool> {
        for piece in from.pieces()? {
            if piece.stream == stream && piece.start < end && start < piece.end {
                from.copy_piece(&piece, self)?;
            }
        }
        Ok(ranges::covered(&runs(&self.pieces()?), stream, start, end))
    }

    /// Removes pieces that another one contains and that is really stored. Best effort: `false` when the store refused, which harms nothing.
    ///
    /// # Errors
    /// `Bug` when `by` does not contain one of them; `NotFound` when `by` is not there: nothing was removed then.
    pub fn remove_subsumed(&self, pieces: &[PieceInfo], by: &PieceInfo) -> Result<bool> {
        use futures::StreamExt as _;
        let contains = |piece: &PieceInfo| {
            by.stream == piece.stream && by.start <= piece.start && piece.end <= by.end && (by.start, by.end) != (piece.start, piece.end)
        };
        if !pieces.iter().all(contains) {
            return Err(Error::new(Kind::Bug, "a log piece would be removed that no other contains"));
        }
        let [first, rest @ ..] = pieces else { return Ok(true) };
        // Its label opens, so it is whole as far as can be told without reading it.
        self.facts(by)?;
        let remove = async |piece: &PieceInfo| {
            let key = self.key(piece);
            let removed = self.inner.store.delete(&key).await;
            if let Err(error) = &removed {
                tracing::debug!(piece = %key, ?error, "a log piece that a larger one contains could not be removed");
            }
            removed.is_ok()
        };
        // A store that refuses is not asked a hundred times.
        let inner = &self.inner;
        Ok(inner.block_on(async {
            remove(first).await && futures::stream::iter(rest).map(remove).buffer_unordered(REMOVALS).all(async |removed| removed).await
        }))
    }

    /// Removes pieces that nobody needs any more, oldest first, up to where the store refuses. Returns those that went, and its refusal; what is left
    /// is removed another time.
    ///
    /// # Errors
    /// `Unavailable` and the like.
    pub fn remove(&self, pieces: &[PieceInfo]) -> Result<(Vec<PieceInfo>, Option<Error>)> {
        use futures::StreamExt as _;
        let mut ordered = pieces.to_vec();
        ordered.sort_unstable_by_key(|piece| (piece.end, piece.start, piece.stream));
        let (mut gone, mut refusal) = (Vec::new(), None);
        let delete = async |piece: &PieceInfo| self.inner.store.delete(&self.key(piece)).await;
        for some in ordered.chunks(REMOVALS) {
            let removed: Vec<Result<()>> = self.inner.block_on(futures::stream::iter(some).map(delete).buffered(REMOVALS).collect());
            for (piece, removed) in some.iter().zip(removed) {
                match removed {
                    Ok(()) => gone.push(*piece),
                    Err(error) if error.kind() == Kind::Failed => refusal = refusal.or(Some(error)),
                    Err(error) => return Err(error),
                }
            }
            if refusal.is_some() {
                break;
            }
        }
        Ok((gone, refusal))
    }

    /// Keeps a side file. `false`: the same content was there already.
    ///
    /// # Errors
    /// [`Kind::SplitBrain`] when another content is there; `Damaged` when what is there cannot be read.
    pub fn put_side(&self, name: &Name, content: &[u8]) -> Result<bool> {
        if !is_side_name(name.as_str()) {
            return Err(Error::new(Kind::Bug, format!("store the side file {name} of a log: no listing would show it")));
        }
        let key = self.side_key(name);
        if self.create_sealed(ObjectKind::LogSide, &key, content)? {
            return Ok(true);
        }
        if self.inner.open_object(ObjectKind::LogSide, &key)? == content {
            return Ok(false);
        }
        Err(Error::new(Kind::SplitBrain, format!("another content is stored for {name} of source {} (split brain)", self.source))
            .hint("two servers write this log: stop the one that is wrong. Nothing that was stored has been changed"))
    }

    /// A side file. Every role.
    ///
    /// # Errors
    /// `Damaged`, `Unavailable`.
    pub fn side(&self, name: &Name) -> Result<Option<Vec<u8>>> {
        match self.inner.open_object(ObjectKind::LogSide, &self.side_key(name)) {
            Ok(content) => Ok(Some(content)),
            Err(e) if e.kind() == Kind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Names of the side files, sorted.
    ///
    /// # Errors
    /// `Unavailable` and the like.
    pub fn sides(&self) -> Result<Vec<Name>> {
        let folder = format!("{}/history/", self.folder);
        let listed = self.inner.block_on(self.inner.store.list(&folder))?;
        Ok(listed.iter().filter_map(|object| Name::new(&object.key[folder.len()..]).ok()).collect())
    }

    /// Records that a stretch is missing. A second record of the same stretch changes nothing.
    ///
    /// # Errors
    /// `Bug` for an empty stretch.
    pub fn record_gap(&self, gap: &Gap) -> Result<()> {
        if gap.from >= gap.to {
            return Err(Error::new(Kind::Bug, format!("a gap in a log from {:#x} to {:#x}", gap.from, gap.to)));
        }
        let key = format!("{}/gaps/{}", self.folder, stretch_name(gap.stream, gap.from, gap.to));
        let content = serde_json::to_vec(gap).map_err(|e| Error::new(Kind::Bug, "encode a gap").because(e))?;
        if !self.create_sealed(ObjectKind::LogGap, &key, &content)? {
            // What is there must say so, or the gap would not be on record.
            open_gap(&self.inner, &key)?;
        }
        Ok(())
    }

    /// All gaps on record, by stream and position, and an error for each record that is damaged. Pieces that came later may fill them.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub fn gaps(&self) -> Result<(Vec<Gap>, Vec<Error>)> {
        let (mut gaps, mut damaged) = (Vec::new(), Vec::new());
        for object in self.inner.block_on(self.inner.store.list(&format!("{}/gaps/", self.folder)))? {
            match open_gap(&self.inner, &object.key) {
                Ok(gap) => gaps.push(gap),
                Err(e) if matches!(e.kind(), Kind::Damaged | Kind::NotFound) => damaged.push(e),
                Err(e) => return Err(e),
            }
        }
        Ok((gaps, damaged))
    }

    pub(super) fn key(&self, piece: &PieceInfo) -> String {
        self.piece_key(piece.stream, piece.start, piece.end)
    }

    fn piece_key(&self, stream: u64, start: u64, end: u64) -> String {
        format!("{}/pieces/{}", self.folder, stretch_name(stream, start, end))
    }

    fn side_key(&self, name: &Name) -> String {
        format!("{}/history/{name}", self.folder)
    }

    /// `false`: something is there already.
    fn create_sealed(&self, kind: ObjectKind, key: &str, content: &[u8]) -> Result<bool> {
        let sealed = self.inner.seal_object(kind, key, content)?;
        match self.inner.block_on(self.inner.store.create(key, Bytes::from(sealed))) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == Kind::AlreadyExists => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// Whether these bytes are whole as what an object below `logs/` with this name holds.
///
/// # Errors
/// When that cannot be told: `WrongKey`.
pub(super) fn is_whole(inner: &Inner, key: &str, bytes: Bytes) -> Result<bool> {
    let open = |kind: ObjectKind| crate::repo::seal::open(&inner.keys, inner.id, kind, key, &bytes).map(drop);
    let opened = match key.split('/').collect::<Vec<_>>()[..] {
        ["logs", _, "pieces", name] => match parse_name(name) {
            Some((stream, start, end)) => {
                let piece = PieceInfo { stream, start, end, size: bytes.len() as u64 };
                piece::open_whole(inner, key, &piece, bytes.clone()).map(drop)
            }
            None => return Ok(false),
        },
        ["logs", _, "history", _] => open(ObjectKind::LogSide),
        ["logs", _, "gaps", _] => open(ObjectKind::LogGap),
        _ => return Ok(false),
    };
    match opened {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == Kind::Damaged => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a version of an object below `logs/` is a whole piece with the content that an earlier version has by its label. Reads the later one.
///
/// # Errors
/// When the store cannot be asked.
pub(super) async fn is_same_piece(inner: &Inner, earlier: &Version, later: &Version) -> Result<bool> {
    let ["logs", _, "pieces", name] = later.key.split('/').collect::<Vec<_>>()[..] else { return Ok(false) };
    let Some((stream, start, end)) = parse_name(name) else { return Ok(false) };
    match have_same_content(inner, earlier, later, (stream, start, end)).await {
        Err(error) if error.kind() == Kind::Damaged => Ok(false),
        result => result,
    }
}

async fn have_same_content(inner: &Inner, earlier: &Version, later: &Version, (stream, start, end): (u64, u64, u64)) -> Result<bool> {
    let piece = |version: &Version| PieceInfo { stream, start, end, size: version.size };
    let before = OpenPiece::fetch_version(inner, earlier, &piece(earlier)).await?;
    let bytes = inner.store.get_version(&later.key, &later.version).await?;
    let (after, _) = piece::open_whole(inner, &later.key, &piece(later), bytes)?;
    Ok(before.label.content == after.label.content)
}

/// Reads a piece without asking for the role first, for a test of what the keys allow.
#[cfg(test)]
pub(in crate::repo) fn read_piece_for_test(inner: &Inner, key: &str, piece: &PieceInfo) -> Result<Vec<u8>> {
    piece::read(inner, key, piece)
}

/// A gap record, which must be the one that its name says.
fn open_gap(inner: &Inner, key: &str) -> Result<Gap> {
    let content = inner.open_object(ObjectKind::LogGap, key)?;
    let damaged = |what: &str| Error::new(Kind::Damaged, format!("object {key}: {what}"));
    let gap: Gap = serde_json::from_slice(&content).map_err(|e| damaged("cannot be decoded").because(e))?;
    if gap.from < gap.to && key.ends_with(&format!("/gaps/{}", stretch_name(gap.stream, gap.from, gap.to))) {
        Ok(gap)
    } else {
        Err(damaged("holds another gap than its name says"))
    }
}
