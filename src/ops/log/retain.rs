//! Which pieces of a log no snapshot needs any more.
//!
//! Recovery from a base backup reads log from the segment on in which that backup began. So what lies before the first such segment of all
//! snapshots that need their log is of no use, on every timeline that they are of: a path from a snapshot only leads to later positions. Removing a
//! beginning makes no hole. A newer timeline than those stays whole until a snapshot is of it: nothing else holds what was written on it. Where no
//! snapshot begins a log any more, and none is to come, all of it is of no use.

use std::fmt::Write as _;

use serde::Deserialize;

use crate::error::{Kind, Result};
use crate::id::Name;
use crate::ops::backup::finish_of;
use crate::ops::log::replay::base_of;
use crate::ops::log::way::Needed;
use crate::ops::prune::LogFate;
use crate::repo::{Log, Manifest, PieceInfo, Repository};
use crate::source::Finish;
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::wal::PieceFacts;

/// Removes the pieces of a source's log of which `needed` (snapshots of the plan) need nothing. `stands_in_the_way` is asked once
/// the pieces were listed: a backup that begins after that needs none of them, and whatever is at work or was committed before has to be
/// among `needed`, or nothing may go. (After a recovery to the past the positions of a new timeline are lower than those of older snapshots.)
/// `orphaned`: no snapshot that is kept is of this source, and the plan keeps no log of it any more.
///
/// # Errors
/// When the store cannot be asked. What cannot be understood keeps the whole log.
pub fn prune(
    repository: &Repository,
    plan: &Name,
    source: &Name,
    needed: &[&Manifest],
    orphaned: bool,
    dry_run: bool,
    stands_in_the_way: &dyn Fn() -> Result<Option<&'static str>>,
) -> Result<LogFate> {
    let log = repository.log(plan, source);
    let pieces = log.pieces()?;
    let mut fate = LogFate::of(plan, source);
    if let Some(why) = stands_in_the_way()? {
        why.clone_into(&mut fate.reason);
        return Ok(fate);
    }
    if orphaned {
        "no snapshot is left that it continues, and the plan keeps no log of this source any more: all of it goes"
            .clone_into(&mut fate.reason);
        return remove(&log, &pieces, fate, dry_run);
    }
    let begins: Option<Vec<(u64, u32)>> = needed
        .iter()
        .filter_map(|manifest| manifest.sources.iter().find(|record| record.name == *source).map(|record| (manifest, record)))
        .map(|(manifest, record)| {
            let base = base_of(manifest, record)?;
            Some((start_of(record).unwrap_or(base.point).min(base.point).0, base.timeline))
        })
        .collect();
    let Some(begins) = begins else {
        "a snapshot does not tell where its log begins: all of it stays".clone_into(&mut fate.reason);
        return Ok(fate);
    };
    let (Some(first), Some(newest)) = (begins.iter().map(|(start, _)| *start).min(), pieces.last()) else {
        "no kept snapshot has a log: all of it stays".clone_into(&mut fate.reason);
        return Ok(fate);
    };
    let Some(segment) = segment_bytes(&log, newest)? else {
        "its pieces do not tell the size of a segment: all of it stays".clone_into(&mut fate.reason);
        return Ok(fate);
    };
    let timeline = begins.iter().map(|(_, timeline)| *timeline).max().unwrap_or(0);
    let needed = Needed { from: first - first % segment, newest: timeline };
    fate.before = Some(Lsn(needed.from).to_string());
    "the oldest snapshot that needs the log begins there".clone_into(&mut fate.reason);
    if pieces.iter().any(|piece| piece.end <= needed.from && needed.is_above(piece.stream)) {
        let _ = write!(fate.reason, "; log of timelines after {timeline} stays, because no snapshot is of them yet");
    }
    remove(&log, &superfluous(&pieces, needed), fate, dry_run)
}

/// Removes them, or says how many that would be.
fn remove(log: &Log, pieces: &[PieceInfo], mut fate: LogFate, dry_run: bool) -> Result<LogFate> {
    let (gone, refusal) = if dry_run { (pieces.to_vec(), None) } else { log.remove(pieces)? };
    fate.pieces = gone.len() as u64;
    fate.bytes = gone.iter().map(|piece| piece.size).sum();
    if let Some(refusal) = refusal {
        fate.refused = (pieces.len() - gone.len()) as u64;
        let causes: Vec<String> = std::iter::once(refusal.to_string()).chain(refusal.causes()).collect();
        fate.reason = format!("the store refused to remove {} more that nobody needs: {}", fate.refused, causes.join(": "));
    }
    Ok(fate)
}

/// Pieces of which nothing is needed. Pure.
fn superfluous(pieces: &[PieceInfo], needed: Needed) -> Vec<PieceInfo> {
    pieces.iter().filter(|piece| !needed.has(piece.stream, piece.end)).copied().collect()
}

fn start_of(record: &crate::repo::SourceRecord) -> Option<Lsn> {
    started_at(finish_of(record).ok()?)
}

/// Where a base backup began.
pub(crate) fn started_at(finish: Finish) -> Option<Lsn> {
    #[derive(Deserialize)]
    struct Started {
        start_lsn: Lsn,
    }
    Some(serde_json::from_value::<Started>(finish.consistency).ok()?.start_lsn)
}

fn segment_bytes(log: &Log, piece: &PieceInfo) -> Result<Option<u64>> {
    match log.facts(piece) {
        Ok(facts) => {
            Ok(serde_json::from_value::<PieceFacts>(facts).ok().map(|facts| u64::from(facts.segment_bytes)).filter(|size| *size > 0))
        }
        Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Damaged) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::runs;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_stays_is_all_from_the_position_on_and_no_hole_is_new(
            pieces in proptest::collection::vec((0u64..3, 0u64..60, 1u64..12), 0..30),
            before in 0u64..70,
            newest in 0u32..3,
        ) {
            let pieces: Vec<PieceInfo> = pieces.into_iter().map(|(stream, start, len)| PieceInfo { stream, start, end: start + len, size: 1 }).collect();
            let gone = superfluous(&pieces, Needed { from: before, newest });
            let left: Vec<PieceInfo> = pieces.iter().filter(|piece| !gone.contains(piece)).copied().collect();
            for stream in 0..3 {
                let covers = |pieces: &[PieceInfo], at: u64| pieces.iter().any(|p| p.stream == stream && p.start <= at && at < p.end);
                for at in if stream > u64::from(newest) { 0 } else { before }..80 {
                    prop_assert_eq!(covers(&pieces, at), covers(&left, at));
                }
                prop_assert!(stream > u64::from(newest) || left.iter().all(|p| p.stream != stream || p.end > before));
            }
            // Holes between runs that are left were there before.
            let holes = |pieces: &[PieceInfo]| {
                let runs = runs(pieces);
                runs.windows(2).filter(|w| w[0].stream == w[1].stream).map(|w| (w[0].stream, w[0].end, w[1].start)).collect::<Vec<_>>()
            };
            let earlier = holes(&pieces);
            prop_assert!(holes(&left).iter().all(|hole| earlier.contains(hole)));
        }
    }
}
