//! Servers of one cluster that went different ways: the newest timeline is the way of the log, and what belongs to another way is refused or told.
//!
//! A failover makes a timeline that leaves the old one at a position. Whoever writes on the old one behind that position was left behind. Where that one
//! is meant after all, it begins a timeline of its own, which is then the newest.

use std::collections::BTreeSet;

use crate::error::{Error, Kind, Result};
use crate::id::Name;
use crate::ops::log::archive::{parse_any, stored_history};
use crate::ops::log::ranges::LONGEST_PAGE_HEADER;
use crate::repo::{Log, PieceInfo};
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::wal::{Parting, PieceFacts, TimelineHistory, WalName};

/// What an operator does about two servers.
const WAY_OUT: &str = "if the failover was meant: stop this server, it must not take writes any more, and make a standby of it. If this server is the one that is meant: let it \
     begin a timeline of its own (docs/postgresql.md, \"The old primary is the right one\")";

/// The newest timeline whose history is stored; `None`: no timeline but the first is known. One listing.
///
/// # Errors
/// When the store cannot be asked.
pub fn newest(log: &Log) -> Result<Option<u32>> {
    Ok(timelines(log)?.last().copied())
}

/// The timelines whose histories are stored. One listing.
///
/// # Errors
/// When the store cannot be asked.
pub fn timelines(log: &Log) -> Result<BTreeSet<u32>> {
    let number = |name: Name| match parse_any(name.as_str()) {
        Some(WalName::History { timeline }) => Some(timeline),
        _ => None,
    };
    Ok(log.sides()?.into_iter().filter_map(number).collect())
}

/// Refuses a server that was left behind; `what` is of it, and begins on `timeline` at `start`. Asks for nothing where no timeline is newer.
///
/// # Errors
/// `SplitBrain`; `Damaged` when the history of the newest timeline cannot be read; when the store cannot be asked.
pub fn left_behind(log: &Log, newest: Option<u32>, what: &str, timeline: u32, start: Lsn) -> Result<()> {
    let Some(newest) = newest.filter(|newest| *newest > timeline) else { return Ok(()) };
    let Some(text) = stored_history(log, newest)? else { return Ok(()) };
    refuse(what, timeline, start, &TimelineHistory::parse(newest, &text)?)
}

fn refuse(what: &str, timeline: u32, start: Lsn, newest: &TimelineHistory) -> Result<()> {
    let Some(Parting { from, at, to }) = newest.parted(timeline, start) else { return Ok(()) };
    let through = if from == timeline { String::new() } else { format!(" and does not go through timeline {timeline}") };
    Err(Error::new(
        Kind::SplitBrain,
        format!(
            "{what} is of timeline {timeline} at {start}, but the stored log goes on along timeline {to}, which branched off timeline {from} at {at}{through}: this server was left behind by a failover"
        ),
    )
    .hint(format!("nothing was stored; {WAY_OUT}")))
}

/// Log that is stored and is not on the way to the newest timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// The timeline that was left.
    pub timeline: u32,
    /// Where the way to the newest left it, or the one that it came from.
    pub left_at: Lsn,
    /// End of its last whole record.
    pub to: Lsn,
    /// The newest timeline.
    pub newest: u32,
}

/// All of it. A listing shows what is longer than the way to `newest`; one small request for each such timeline tells whether that is log, or only the rest of a segment.
///
/// # Errors
/// `Damaged` when what is said of a piece cannot be understood; when the store cannot be asked.
pub fn forks(log: &Log, pieces: &[PieceInfo], newest: &TimelineHistory) -> Result<Vec<Fork>> {
    let mut found = Vec::new();
    for (last, parting) in beyond(pieces, newest) {
        let facts = match log.facts(&last) {
            Ok(facts) => facts,
            // A larger one has taken its place: it will be seen there.
            Err(error) if error.kind() == Kind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let facts: PieceFacts = serde_json::from_value(facts)
            .map_err(|error| Error::new(Kind::Damaged, "facts of a log piece cannot be understood").because(error))?;
        let timeline = u32::try_from(last.stream).unwrap_or(u32::MAX);
        // Of a timeline that the way does not go through at all, everything.
        if timeline != parting.from || facts.valid_to.0 > parting.at.0 + LONGEST_PAGE_HEADER {
            found.push(Fork { timeline, left_at: parting.at, to: facts.valid_to, newest: newest.timeline() });
        }
    }
    Ok(found)
}

/// The last piece of each timeline that goes beyond the way to the newest, and where that went another way. Pure.
fn beyond(pieces: &[PieceInfo], newest: &TimelineHistory) -> Vec<(PieceInfo, Parting)> {
    let mut last: Vec<PieceInfo> = Vec::new();
    for piece in pieces {
        match last.iter_mut().find(|known| known.stream == piece.stream) {
            Some(known) if known.end < piece.end => *known = *piece,
            Some(_) => {}
            None => last.push(*piece),
        }
    }
    let parting = |piece: PieceInfo| {
        let timeline = u32::try_from(piece.stream).ok()?;
        Some((piece, newest.parted(timeline, Lsn(piece.end.saturating_sub(1)))?))
    };
    last.into_iter().filter_map(parting).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(timeline: u32, text: &str) -> TimelineHistory {
        TimelineHistory::parse(timeline, text).unwrap()
    }

    #[test]
    fn the_server_that_was_left_behind_is_refused_and_no_other() {
        let two = history(2, "1\t0/500\tx\n");
        let allowed = |timeline, start| refuse("it", timeline, Lsn(start), &two).is_ok();
        // What leads to the branching point, the segment that holds it, and everything of the new timeline.
        assert!(allowed(1, 0x400) && allowed(1, 0x4ff) && allowed(2, 0x400) && allowed(2, 0x500) && allowed(3, 0x600));
        let error = refuse("the segment", 1, Lsn(0x500), &two).unwrap_err();
        assert_eq!(error.kind(), Kind::SplitBrain);
        let said = error.to_string();
        assert!(
            said.contains("timeline 1 at 0/500") && said.contains("along timeline 2, which branched off timeline 1 at 0/500"),
            "{said}"
        );
        // The old primary was the right one and began timeline 3: the server of timeline 2 is the one that was left behind.
        let three = history(3, "1\t0/900\tx\n");
        assert!(refuse("it", 1, Lsn(0x800), &three).is_ok());
        let said = refuse("it", 2, Lsn(0x500), &three).unwrap_err().to_string();
        assert!(said.contains("branched off timeline 1 at 0/900 and does not go through timeline 2"), "{said}");
        // Nothing is said of what lies before all that a history knows.
        assert!(refuse("it", 1, Lsn(0x500), &history(3, "2\t0/900\tx\n")).is_ok());
    }

    #[test]
    fn what_goes_beyond_the_way_to_the_newest_timeline_is_found() {
        let piece = |stream, start, end| PieceInfo { stream, start, end, size: 1 };
        let pieces = [piece(1, 0, 0x100), piece(1, 0x100, 0x700), piece(1, 0x100, 0x600), piece(2, 0x500, 0x900), piece(4, 0x800, 0xa00)];
        let four = history(4, "1\t0/500\tx\n2\t0/900\tx\n");
        let at = |found: Vec<(PieceInfo, Parting)>| found.into_iter().map(|(piece, parting)| (piece.end, parting.at.0)).collect::<Vec<_>>();
        assert_eq!(at(beyond(&pieces, &four)), [(0x700, 0x500)]);
        assert_eq!(at(beyond(&pieces[..1], &four)), []);
        assert_eq!(at(beyond(&pieces, &history(4, "1\t0/800\tx\n"))), [(0x900, 0x800)], "a timeline that is on another way");
    }
}
