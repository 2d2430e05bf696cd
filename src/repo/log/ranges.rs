//! Which stretches of a log pieces make up together. Pure.

use std::cmp::Reverse;
use std::ops::Range;

use crate::repo::log::piece::PieceInfo;

/// A stretch of one stream without a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRun {
    pub stream: u64,
    pub start: u64,
    /// Exclusive.
    pub end: u64,
    /// As few pieces as cover it, in order; each begins before or where the one before ends.
    pub pieces: Vec<PieceInfo>,
}

/// The runs that pieces in any order make up, by stream and start. Where pieces overlap, the longest wins.
#[must_use]
pub fn runs(pieces: &[PieceInfo]) -> Vec<LogRun> {
    let mut sorted = pieces.to_vec();
    sorted.sort_unstable_by_key(|p| (p.stream, p.start, Reverse(p.end)));
    let mut runs: Vec<LogRun> = Vec::new();
    for piece in sorted.into_iter().filter(|p| p.start < p.end) {
        match runs.last_mut() {
            Some(run) if run.stream == piece.stream && piece.start <= run.end => {
                if piece.end <= run.end {
                    continue;
                }
                // The last one goes when the one before it meets the new one.
                if run.pieces.len() >= 2 && piece.start <= run.pieces[run.pieces.len() - 2].end {
                    run.pieces.pop();
                }
                run.pieces.push(piece);
                run.end = piece.end;
            }
            _ => runs.push(LogRun { stream: piece.stream, start: piece.start, end: piece.end, pieces: vec![piece] }),
        }
    }
    runs
}

impl LogRun {
    /// Which positions of which pieces make up `positions`, in order; `None` when the run does not have them.
    #[must_use]
    pub fn parts(&self, positions: Range<u64>) -> Option<Vec<(PieceInfo, Range<u64>)>> {
        if positions.start < self.start || positions.end > self.end || positions.start > positions.end {
            return None;
        }
        let mut at = positions.start;
        let mut parts = Vec::new();
        for piece in self.pieces.iter().skip(self.pieces.partition_point(|p| p.end <= at)) {
            if at >= positions.end {
                break;
            }
            let end = piece.end.min(positions.end);
            parts.push((*piece, at..end));
            at = end;
        }
        Some(parts)
    }
}

/// The holes between runs of the same stream: stream, from, to (exclusive).
pub fn holes(runs: &[LogRun]) -> Vec<(u64, u64, u64)> {
    runs.windows(2).filter(|pair| pair[0].stream == pair[1].stream).map(|pair| (pair[0].stream, pair[0].end, pair[1].start)).collect()
}

/// Whether one of the runs has all of a stretch.
pub fn covered(runs: &[LogRun], stream: u64, from: u64, to: u64) -> bool {
    runs.iter().any(|run| run.stream == stream && run.start <= from && to <= run.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece(stream: u64, start: u64, end: u64) -> PieceInfo {
        PieceInfo { stream, start, end, size: 1 }
    }

    #[test]
    fn a_whole_segment_wins_over_the_pieces_it_was_sent_in() {
        let pieces = [piece(1, 0, 16), piece(1, 16, 20), piece(1, 20, 25), piece(1, 16, 32), piece(1, 40, 48), piece(2, 32, 40)];
        let found = runs(&pieces);
        let told: Vec<_> = found.iter().map(|r| (r.stream, r.start, r.end, r.pieces.len())).collect();
        assert_eq!(told, [(1, 0, 32, 2), (1, 40, 48, 1), (2, 32, 40, 1)]);
        assert_eq!(holes(&found), [(1, 32, 40)]);
        assert_eq!(found[0].parts(10..20).unwrap(), [(piece(1, 0, 16), 10..16), (piece(1, 16, 32), 16..20)]);
        assert_eq!(found[0].parts(16..16).unwrap(), []);
        assert_eq!(found[0].parts(30..33), None);
        assert!(covered(&found, 1, 5, 32) && !covered(&found, 1, 31, 41) && !covered(&found, 2, 0, 5));
    }

    proptest! {
        #[test]
        fn runs_hold_exactly_the_positions_of_the_pieces(pieces in proptest::collection::vec((0u64..2, 0u64..40, 1u64..9), 0..16)) {
            let pieces: Vec<PieceInfo> = pieces.into_iter().map(|(stream, start, len)| piece(stream, start, start + len)).collect();
            let found = runs(&pieces);
            for stream in 0..2 {
                for at in 0..50 {
                    let there = pieces.iter().any(|p| p.stream == stream && (p.start..p.end).contains(&at));
                    prop_assert_eq!(covered(&found, stream, at, at + 1), there);
                }
            }
            for run in &found {
                let parts = run.parts(run.start..run.end).unwrap();
                prop_assert_eq!(parts.len(), run.pieces.len(), "none is superfluous");
                let mut at = run.start;
                for (piece, part) in parts {
                    prop_assert!(part.start == at && piece.start <= at && part.end <= piece.end && !part.is_empty());
                    at = part.end;
                }
                prop_assert_eq!(at, run.end);
                for pair in run.pieces.windows(3) {
                    prop_assert!(pair[0].end < pair[2].start, "the one in the middle is needed");
                }
            }
        }
    }
}
