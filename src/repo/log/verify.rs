//! Verification of logs: every piece opens and has the size that its name says, side files and gaps open, and no hole is unexplained.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Event, Progress};
use crate::repo::Repository;
use crate::repo::format::{ObjectKind, PackId};
use crate::repo::keys::Role;
use crate::repo::log::piece::{OpenPiece, PieceInfo, fetch_whole, parse_name, read, stretch_name};
use crate::repo::log::ranges::{covered, holes, runs};
use crate::repo::log::{REQUESTS, open_gap};
use crate::repo::verify::{Findings, SealedTo, Verification, VerifyDepth, in_share, tolerable};

/// Stream, start and end.
type Stretch = (u64, u64, u64);

/// What a listing shows of one log.
#[derive(Default)]
struct Listed {
    pieces: Vec<PieceInfo>,
    /// Keys.
    sides: Vec<String>,
    gaps: Vec<String>,
}

impl Repository {
    /// Checks all logs.
    pub(in crate::repo) fn verify_logs(
        &self,
        depth: VerifyDepth,
        sealed_to: &mut SealedTo,
        out: &mut Verification,
        findings: &mut Findings,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<()> {
        let logs = self.list_logs()?;
        let count = logs.values().map(|log| log.pieces.len() as u64).sum();
        if !logs.is_empty() {
            progress.event(Event::Phase { name: "logs", detail: format!("{count} pieces") });
            progress.event(Event::Total { bytes: 0, items: count });
        }
        let mut gone = Vec::new();
        let mut shut = HashSet::new();
        let mut unexplained = Vec::new();
        for (chain, log) in &logs {
            self.verify_pieces(chain, &log.pieces, sealed_to, &mut shut, out, findings, &mut gone, progress, cancel)?;
            for key in &log.sides {
                out.objects_checked += 1;
                if let Err(error) = self.inner.open_object(ObjectKind::LogSide, key) {
                    findings.add_error(key, &tolerable(error)?, []);
                }
            }
            // Gaps are stretches too.
            let mut gaps = Vec::new();
            for key in &log.gaps {
                out.objects_checked += 1;
                match open_gap(&self.inner, key) {
                    Ok(gap) if gap.unreadable => {}
                    Ok(gap) => gaps.push(PieceInfo { stream: gap.stream, start: gap.from, end: gap.to, size: 0 }),
                    Err(error) => findings.add_error(key, &tolerable(error)?, []),
                }
            }
            let gaps = runs(&gaps);
            let holes = holes(&runs(&log.pieces)).into_iter();
            unexplained.extend(holes.filter(|(stream, from, to)| !covered(&gaps, *stream, *from, *to)).map(|hole| (chain, hole)));
        }
        // A writer at work stores segments and removes the small pieces that they contain, a prune removes the beginning, and a listing is not of one moment:
        // what seems to be missing must be missing in two more.
        for _ in 0..2 {
            if gone.is_empty() && unexplained.is_empty() {
                break;
            }
            let again = self.list_logs()?;
            let missing = |chain: &str, stretch: &Stretch| again.get(chain).is_some_and(|log| is_missing(&log.pieces, *stretch));
            gone.retain(|(_, chain, stretch)| missing(chain, stretch));
            unexplained.retain(|(chain, stretch)| missing(chain, stretch));
        }
        for (key, _, _) in gone {
            findings.add(&key, "missing", "it was listed and is not there", []);
        }
        for (chain, (stream, from, to)) in unexplained {
            let key = format!("logs/{chain}/pieces/{}", stretch_name(stream, from, to));
            findings.add(&key, "missing", "the log has a hole here that no gap record explains: pieces of it were removed", []);
        }
        if let VerifyDepth::Data { percent, run } = depth {
            self.verify_log_data(&logs, &shut, percent, run, out, findings, progress, cancel)?;
        }
        Ok(())
    }

    /// By chain.
    fn list_logs(&self) -> Result<BTreeMap<String, Listed>> {
        let mut logs: BTreeMap<String, Listed> = BTreeMap::new();
        for object in self.inner.block_on(self.inner.store.list("logs/"))? {
            let parts: Vec<&str> = object.key.split('/').collect();
            match parts.as_slice() {
                ["logs", chain, "pieces", name] if let Some((stream, start, end)) = parse_name(name) => {
                    let piece = PieceInfo { stream, start, end, size: object.size };
                    logs.entry((*chain).to_owned()).or_default().pieces.push(piece);
                }
                ["logs", chain, "history", _] => logs.entry((*chain).to_owned()).or_default().sides.push(object.key.clone()),
                ["logs", chain, "gaps", _] => logs.entry((*chain).to_owned()).or_default().gaps.push(object.key.clone()),
                // Of no other name is an object of a repository.
                _ => {}
            }
        }
        Ok(logs)
    }

    /// Opens every label and directory. `shut`: keys of pieces that are sealed to a plan's key which is not at hand; `gone`: pieces that are not there any
    /// more, with their chain and stretch.
    #[expect(clippy::too_many_arguments, reason = "the surroundings of one call")]
    fn verify_pieces(
        &self,
        chain: &str,
        pieces: &[PieceInfo],
        sealed_to: &mut SealedTo,
        shut: &mut HashSet<String>,
        out: &mut Verification,
        findings: &mut Findings,
        gone: &mut Vec<(String, String, Stretch)>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<()> {
        use futures::StreamExt as _;
        let inner = &self.inner;
        for batch in pieces.chunks(1024) {
            cancel.check()?;
            let opened: Vec<(String, Result<OpenPiece>)> = inner.block_on(
                futures::stream::iter(batch)
                    .map(|piece| async move {
                        let key = piece_key(chain, piece);
                        let opened = OpenPiece::fetch(inner, &key, piece).await;
                        (key, opened)
                    })
                    .buffered(REQUESTS)
                    .collect(),
            );
            for (piece, (key, opened)) in batch.iter().zip(opened) {
                out.objects_checked += 1;
                match opened {
                    Ok(piece) => {
                        piece.directory.envelopes.iter().for_each(|envelope| sealed_to.note(envelope.generation, None));
                        if inner.lacks_key_of(&piece.directory) {
                            shut.insert(key);
                        }
                    }
                    Err(error) if error.kind() == Kind::NotFound => {
                        gone.push((key, chain.to_owned(), (piece.stream, piece.start, piece.end)));
                    }
                    Err(error) => findings.add_error(&key, &tolerable(error)?, []),
                }
                progress.event(Event::Advance { bytes: 0, items: 1 });
            }
        }
        Ok(())
    }

    /// Reads the share's pieces whole: every byte is as it was stored and, with the reader role, every frame opens and holds what it should.
    #[expect(clippy::too_many_arguments, reason = "the surroundings of one call")]
    fn verify_log_data(
        &self,
        logs: &BTreeMap<String, Listed>,
        shut: &HashSet<String>,
        percent: u8,
        run: u64,
        out: &mut Verification,
        findings: &mut Findings,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<()> {
        let inner = &self.inner;
        let reader = inner.keys.role == Role::Reader;
        let mut pieces = Vec::new();
        for (chain, log) in logs {
            for piece in &log.pieces {
                let key = piece_key(chain, piece);
                if in_share(share_of_piece(&key), percent, run) {
                    pieces.push((key, *piece));
                }
            }
        }
        if pieces.is_empty() {
            return Ok(());
        }
        if !reader {
            out.skipped.push(format!(
                "the content of log pieces was not opened: the passphrase is a {} key; their bytes were compared with the hashes kept beside them, which finds any change",
                inner.keys.role
            ));
        }
        progress.event(Event::Phase { name: "log data", detail: format!("{} pieces", pieces.len()) });
        progress.event(Event::Total { bytes: pieces.iter().map(|(_, p)| p.size).sum(), items: pieces.len() as u64 });
        let queue = Mutex::new(pieces.into_iter());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let results: Vec<Result<(u64, Vec<(String, Error)>)>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..inner.workers)
                .map(|_| {
                    scope.spawn(|| {
                        let mut checked = 0;
                        let mut bad = Vec::new();
                        while let Some((key, piece)) = next() {
                            cancel.check()?;
                            let read = if reader && !shut.contains(&key) {
                                read(inner, &key, &piece).map(drop)
                            } else {
                                fetch_whole(inner, &key, &piece).map(drop)
                            };
                            match read {
                                Ok(()) => checked += piece.size,
                                // Told, or found to be contained in another one, by now.
                                Err(error) if error.kind() == Kind::NotFound => {}
                                // Of a plan whose key was destroyed: what can be compared without it is.
                                Err(error) if error.kind() == Kind::NoRecoveryPoint => match fetch_whole(inner, &key, &piece) {
                                    Ok(_) => checked += piece.size,
                                    Err(error) => bad.push((key, tolerable(error)?)),
                                },
                                Err(error) => bad.push((key, tolerable(error)?)),
                            }
                            progress.event(Event::Advance { bytes: piece.size, items: 1 });
                        }
                        Ok((checked, bad))
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(Error::new(Kind::Bug, "a verifying thread panicked")))).collect()
        });
        for result in results {
            let (checked, bad) = result?;
            out.bytes_checked += checked;
            for (key, error) in bad {
                findings.add_error(&key, &error, []);
            }
        }
        Ok(())
    }
}

/// Whether a stretch that was there is missing, by what is there now. A prune removes the beginning of a stream, by the ends of its pieces: where no piece is
/// left that ends before this one did, nobody can tell that from it. Pure.
fn is_missing(there: &[PieceInfo], (stream, from, to): Stretch) -> bool {
    !covered(&runs(there), stream, from, to) && there.iter().any(|piece| piece.stream == stream && piece.end < to)
}

/// What decides in which share a piece is read: its name says where it is, not what is in it, so the hash of its key.
pub fn share_of_piece(key: &str) -> PackId {
    PackId(*blake3::hash(key.as_bytes()).as_bytes())
}

fn piece_key(chain: &str, piece: &PieceInfo) -> String {
    format!("logs/{chain}/pieces/{}", stretch_name(piece.stream, piece.start, piece.end))
}
