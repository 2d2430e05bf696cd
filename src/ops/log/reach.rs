//! How far the stored log leads from a snapshot, without reading what is said of every piece: for whoever asks often.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use crate::error::{Kind, Result};
use crate::id::Name;
use crate::ops::backup::finish_of;
use crate::ops::log::fork::{Fork, forks};
use crate::ops::log::ranges::{Unreadable, continuation, unreadable};
use crate::ops::log::replay::{Consistency, base_of, histories};
use crate::repo::{Log, LogRun, Manifest, PieceInfo, runs};
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::wal::{PieceFacts, TimelineHistory};

/// Of a source's log, seen from a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// Whether any of the log is stored.
    pub has_log: bool,
    /// The snapshot's own point.
    pub point: Lsn,
    /// Where what goes on from it without a hole ends; `point` when nothing does.
    pub end: Lsn,
    /// The newest timeline.
    pub timeline: u32,
    /// Everything committed before this moment of the source's clock is there. `None`: the log on the way to `end` tells no time.
    pub moment: Option<DateTime<Utc>>,
    /// Where log begins again behind a hole after `end`: it cannot be replayed. The end itself: the record there is none that can be.
    pub behind: Option<Lsn>,
    /// What follows `end` is stored, and its key was destroyed; then `behind` is where that begins.
    pub destroyed: bool,
    /// Where all log that is stored ends, which is before the end of the snapshot's own backup, although the server had no reason to keep it longer.
    pub short: Option<Lsn>,
    /// Log that is not on the way to the newest timeline, unless the snapshot is of a moment after it was left.
    pub forks: Vec<Fork>,
}

/// Pieces that are asked for a time, from the newest back.
const ASKED: usize = 64;

/// One listing.
struct Pieces {
    all: Vec<PieceInfo>,
    /// Those that a recovery may use.
    readable: Vec<PieceInfo>,
    /// Those whose key was destroyed.
    destroyed: BTreeSet<PieceInfo>,
}

impl Pieces {
    fn of(log: &Log) -> Result<Self> {
        let listed = log.listed()?;
        let destroyed = log.destroyed(&listed)?;
        let all: Vec<PieceInfo> = listed.into_iter().map(|listed| listed.piece).collect();
        let readable = all.iter().copied().filter(|piece| !destroyed.contains(piece)).collect();
        Ok(Self { all, readable, destroyed })
    }
}

impl Reach {
    /// Ends it where log comes next whose key was destroyed. Pure.
    fn up_to<'a>(&mut self, destroyed: impl IntoIterator<Item = &'a PieceInfo>) {
        let comes_next = destroyed.into_iter().filter(|piece| piece.stream == u64::from(self.timeline) && piece.end > self.end.0);
        let Some(at) = comes_next.map(|piece| Lsn(piece.start).max(self.end)).min() else { return };
        self.has_log = true;
        if self.behind.is_none_or(|behind| at <= behind) {
            (self.behind, self.destroyed) = (Some(at), true);
        }
    }
}

/// Looks at the log of a source from a snapshot of it. Two listings, or three where there is a hole, and a few small requests.
///
/// # Errors
/// When the store cannot be asked, or what it says is damaged.
pub fn reach(log: &Log, source: &Name, snapshot: &Manifest) -> Result<Option<Reach>> {
    let record = snapshot.sources.iter().find(|record| record.name == *source);
    let Some(base) = record.and_then(|record| base_of(snapshot, record)) else { return Ok(None) };
    let switched_at = record.and_then(|record| Consistency::of(finish_of(record).ok()?)?.switched_at());
    let mut found = Pieces::of(log)?;
    let pieces = &found.all;
    let histories: Vec<TimelineHistory> =
        if pieces.is_empty() { Vec::new() } else { histories(log)?.into_iter().map(|(history, _)| history).collect() };
    let (gaps, damaged) = if pieces.is_empty() { (Vec::new(), Vec::new()) } else { log.gaps()? };
    // Whoever cannot read what is missing does not know that nothing is.
    if let Some(error) = damaged.into_iter().find(|error| error.kind() == Kind::Damaged) {
        return Err(error);
    }
    let unreadable = unreadable(&gaps);
    let mut reach = along(&runs(&found.readable), &histories, base.timeline, base.point, &unreadable);
    if reach.behind.is_some() {
        // A listing is not of one moment: what seems to be missing must be missing in a second one.
        found = Pieces::of(log)?;
        reach = along(&runs(&found.readable), &histories, base.timeline, base.point, &unreadable);
    }
    reach.up_to(&found.destroyed);
    let Pieces { all: pieces, readable, .. } = found;
    let last = pieces.iter().map(|piece| Lsn(piece.end)).max();
    reach.short = last.filter(|last| switched_at.is_some_and(|at| *last < at));
    reach.moment = moment(log, &on_the_way(&readable, &histories, base.timeline, &reach))?;
    if let Some(newest) = histories.iter().max_by_key(|history| history.timeline()) {
        let is_behind = |fork: &Fork| newest.contains(base.timeline, base.point) && base.point >= fork.left_at;
        reach.forks = forks(log, &pieces, newest)?.into_iter().filter(|fork| !is_behind(fork)).collect();
    }
    Ok(Some(reach))
}

/// All but the moment. Pure.
fn along(runs: &[LogRun], histories: &[TimelineHistory], timeline: u32, point: Lsn, unreadable: &[Unreadable]) -> Reach {
    let known = runs.iter().filter_map(|run| u32::try_from(run.stream).ok()).chain(histories.iter().map(TimelineHistory::timeline));
    let newest = known.max().unwrap_or(timeline).max(timeline);
    let history = histories.iter().find(|history| history.timeline() == newest).cloned().unwrap_or_else(|| TimelineHistory::first(newest));
    let parts = if history.contains(timeline, point) { continuation(runs, &history, point, unreadable) } else { Vec::new() };
    let end = parts.last().map_or(point, |part| part.to);
    let stops = |run: &LogRun| run.start <= end.0 && end.0 < run.end && unreadable.contains(&(run.stream, end));
    let stop = runs.iter().any(stops).then_some(end);
    let behind = runs.iter().filter(|run| run.stream == u64::from(newest) && run.start > end.0).map(|run| Lsn(run.start)).min();
    // Log of the newest timeline that does not come from the snapshot cannot be replayed on it, wherever it begins.
    let foreign = || runs.iter().find(|run| run.stream == u64::from(newest) && end == point && run.end > point.0).map(|run| Lsn(run.start));
    Reach {
        has_log: !runs.is_empty(),
        point,
        end,
        timeline: newest,
        moment: None,
        behind: stop.or(behind).or_else(foreign),
        destroyed: false,
        short: None,
        forks: Vec::new(),
    }
}

/// Pieces of the way through the snapshot to the end, from the newest back. Log that ends before the snapshot's own point tells what is in that. Pure.
fn on_the_way(pieces: &[PieceInfo], histories: &[TimelineHistory], timeline: u32, reach: &Reach) -> Vec<PieceInfo> {
    let of = |timeline: u32| histories.iter().find(|history| history.timeline() == timeline).cloned();
    // Where the newest timeline does not go through the snapshot, its own does.
    let newest = of(reach.timeline).filter(|newest| newest.contains(timeline, reach.point));
    let way = newest.or_else(|| of(timeline)).unwrap_or_else(|| TimelineHistory::first(timeline));
    let is_on_it = |piece: &&PieceInfo| {
        let stream = u32::try_from(piece.stream);
        piece.end <= reach.end.0 && stream.is_ok_and(|stream| way.contains(stream, Lsn(piece.end)))
    };
    let mut on_it: Vec<PieceInfo> = pieces.iter().filter(is_on_it).copied().collect();
    on_it.sort_unstable_by_key(|piece| std::cmp::Reverse((piece.end, piece.stream)));
    on_it
}

/// The newest moment that some of these tell.
fn moment(log: &Log, on_it: &[PieceInfo]) -> Result<Option<DateTime<Utc>>> {
    for piece in on_it.iter().take(ASKED) {
        let facts = match log.facts(piece) {
            Ok(facts) => facts,
            // A larger one has taken its place since; one that is a little older will do.
            Err(error) if error.kind() == Kind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let Ok(facts) = serde_json::from_value::<PieceFacts>(facts) else { continue };
        if let Some(moment) = facts.server_clock.max(facts.last_commit) {
            return Ok(Some(moment));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stream: u64, start: u64, end: u64) -> LogRun {
        LogRun { stream, start, end, pieces: Vec::new() }
    }

    const PAGE: u64 = 8192;

    #[test]
    fn log_that_goes_on_from_the_snapshot_leads_to_its_end() {
        let reach = along(&[run(1, 0, 100 * PAGE)], &[], 1, Lsn(5 * PAGE + 17), &[]);
        assert_eq!((reach.end, reach.behind, reach.has_log), (Lsn(100 * PAGE), None, true));
    }

    #[test]
    fn log_that_has_not_come_to_the_snapshot_yet_is_no_hole() {
        let reach = along(&[run(1, 0, 5 * PAGE)], &[], 1, Lsn(5 * PAGE + 17), &[]);
        assert_eq!((reach.end, reach.behind), (reach.point, None));
        assert!(!along(&[], &[], 1, Lsn(17), &[]).has_log);
    }

    #[test]
    fn log_whose_key_was_destroyed_ends_the_way_before_it() {
        let piece = |stream, from: u64, to: u64| PieceInfo { stream, start: from * PAGE, end: to * PAGE, size: 1 };
        let reach = |runs: &[LogRun], destroyed: &[PieceInfo]| {
            let mut reach = along(runs, &[], 1, Lsn(5 * PAGE + 17), &[]);
            reach.up_to(destroyed);
            (reach.end.0 / PAGE, reach.behind.map(|behind| behind.0 / PAGE), reach.destroyed)
        };
        let lost = [piece(1, 10, 12), piece(1, 12, 20)];
        assert_eq!(reach(&[run(1, 0, 10 * PAGE)], &lost), (10, Some(10), true), "nothing has come since");
        assert_eq!(reach(&[run(1, 0, 10 * PAGE), run(1, 20 * PAGE, 30 * PAGE)], &lost), (10, Some(10), true));
        assert_eq!(reach(&[run(1, 0, 8 * PAGE), run(1, 9 * PAGE, 10 * PAGE)], &lost), (8, Some(9), false), "the hole comes first");
        assert_eq!(reach(&[], &lost), (5, Some(10), true));
        // What larger pieces under another key have, and what comes before the snapshot, harms nothing.
        assert_eq!(reach(&[run(1, 0, 20 * PAGE)], &lost), (20, None, false));
        assert_eq!(reach(&[run(1, 5 * PAGE, 20 * PAGE)], &[piece(1, 0, 5), piece(2, 30, 40)]), (20, None, false));
    }

    #[test]
    fn log_that_begins_behind_the_snapshot_leads_nowhere() {
        let reach = along(&[run(1, 6 * PAGE, 100 * PAGE)], &[], 1, Lsn(5 * PAGE + 17), &[]);
        assert_eq!((reach.end, reach.behind), (reach.point, Some(Lsn(6 * PAGE))));
        let reach = along(&[run(1, 0, 10 * PAGE), run(1, 11 * PAGE, 12 * PAGE)], &[], 1, Lsn(5 * PAGE + 17), &[]);
        assert_eq!((reach.end, reach.behind), (Lsn(10 * PAGE), Some(Lsn(11 * PAGE))));
    }

    #[test]
    fn log_that_cannot_be_replayed_ends_the_way_there_and_no_way_that_begins_behind_it() {
        let runs = [run(1, 0, 100 * PAGE)];
        let bad = Lsn(7 * PAGE + 80);
        let from = |point: u64| along(&runs, &[], 1, Lsn(point), &[(1, bad), (2, Lsn(6 * PAGE))]);
        let reach = from(5 * PAGE + 17);
        assert_eq!((reach.end, reach.behind), (bad, Some(bad)));
        // The snapshot has what comes before it, and nothing of what follows is of use.
        assert_eq!((from(bad.0).end, from(bad.0).behind), (bad, Some(bad)));
        let reach = from(bad.0 + 8);
        assert_eq!((reach.end, reach.behind), (Lsn(100 * PAGE), None));
    }

    #[test]
    fn what_the_old_primary_wrote_after_the_failover_tells_no_moment_of_the_way() {
        let history = TimelineHistory::parse(2, &format!("1\t{}\tpromoted\n", Lsn(8 * PAGE))).unwrap();
        let piece = |stream, from: u64, to: u64| PieceInfo { stream, start: from * PAGE, end: to * PAGE, size: 1 };
        let pieces = [piece(1, 0, 6), piece(1, 6, 8), piece(1, 8, 12), piece(2, 8, 10), piece(2, 10, 20), piece(3, 8, 9)];
        let told = |timeline, point: u64, end: u64| {
            let reach = Reach { point: Lsn(point * PAGE), end: Lsn(end * PAGE), timeline: 2, ..Reach::default() };
            let on_it = on_the_way(&pieces, std::slice::from_ref(&history), timeline, &reach);
            on_it.into_iter().map(|piece| (piece.stream, piece.end / PAGE)).collect::<Vec<_>>()
        };
        assert_eq!(told(1, 5, 15), [(2, 10), (1, 8), (1, 6)]);
        // The log ends before the snapshot's own point: what it tells is in the snapshot.
        assert_eq!(told(2, 15, 15), [(2, 10), (1, 8), (1, 6)]);
        // A snapshot of the old primary, made after it was left.
        assert_eq!(told(1, 12, 12), [(1, 12), (1, 8), (1, 6)]);
    }

    #[test]
    fn a_timeline_is_followed_only_where_it_goes_through_the_snapshot() {
        let history = TimelineHistory::parse(2, &format!("1\t{}\tpromoted\n", Lsn(8 * PAGE))).unwrap();
        let runs = [run(1, 0, 9 * PAGE), run(2, 8 * PAGE, 20 * PAGE)];
        let reach = along(&runs, std::slice::from_ref(&history), 1, Lsn(5 * PAGE + 17), &[]);
        assert_eq!((reach.end, reach.timeline, reach.behind), (Lsn(20 * PAGE), 2, None));
        // The snapshot was made where the timeline had been left.
        let reach = along(&runs, &[history], 1, Lsn(8 * PAGE + 17), &[]);
        assert_eq!((reach.end, reach.timeline, reach.behind), (reach.point, 2, Some(Lsn(8 * PAGE))));
        // What it came from is not known.
        let reach = along(&runs, &[], 1, Lsn(5 * PAGE + 17), &[]);
        assert_eq!((reach.end, reach.behind), (reach.point, Some(Lsn(8 * PAGE))));
    }
}
