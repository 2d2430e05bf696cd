//! Which moments can be recovered: a snapshot and the log that goes on from it without a hole, along a timeline. Pure.
//!
//! A snapshot holds the log that it needs up to its own point. The repository's log continues it when it has every byte from the page of
//! that point on; it follows histories of timelines, and what a timeline wrote after it was left belongs to no path of its descendants.
//!
//! Times are the source's clock where the log tells them: of commits, of restore points, and `server_clock`, up to which everything
//! that was committed is in the log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};

use crate::error::{Error, Kind, Result};
use crate::id::SnapshotId;
use crate::ops::select::{Wanted, moment};
use crate::repo::{Gap, LogRun, PieceInfo, runs};
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::recover::{Target, Timeline};
use crate::source::postgres::stream::UNIT_BYTES_MAX;
use crate::source::postgres::wal::reader::PAGE_BYTES;
use crate::source::postgres::wal::{End, PieceFacts, RestorePoint, SegmentSize, TimelineHistory};

/// A position may be told behind the header of a page that no record has touched yet.
pub const LONGEST_PAGE_HEADER: u64 = 40;

/// A server notes the time of a transaction before it writes it to the log.
const DISORDER: chrono::TimeDelta = chrono::TimeDelta::seconds(1);

/// A snapshot that recovery can begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    pub id: SnapshotId,
    pub system_identifier: String,
    /// Of its own moment.
    pub timeline: u32,
    /// That its own log begins on.
    pub start_timeline: u32,
    /// End of the log that it holds itself: its own moment.
    pub point: Lsn,
    pub restore_point: Option<String>,
    /// When what it holds was committed at the latest, by the source's clock. `None`: not known, as of older snapshots.
    pub moment: Option<DateTime<Utc>>,
    /// As its manifest says, by the clock of who backed up.
    pub time: DateTime<Utc>,
}

impl Base {
    /// How a server that begins with it is told to go to a timeline. Its control file knows its own, unless its log goes through several.
    fn to(&self, timeline: u32) -> Timeline {
        if timeline == self.timeline && timeline == self.start_timeline { Timeline::Current } else { Timeline::Number(timeline) }
    }
}

/// What is known of a source's log and snapshots.
#[derive(Debug, Clone)]
pub struct View {
    pub bases: Vec<Base>,
    /// Of the newest piece, for a path without any.
    segment: SegmentSize,
    pieces: Vec<(PieceInfo, Arc<PieceFacts>)>,
    /// Inside of others; only their bytes are of use, where those are damaged.
    spare: Vec<PieceInfo>,
    /// Stored, and what is said of them cannot be read: no way goes through them.
    unread: Vec<PieceInfo>,
    /// Stored, and nobody can read their bytes any more, because their key was destroyed: no way goes through them, ever.
    destroyed: Vec<PieceInfo>,
    runs: Vec<LogRun>,
    /// No way goes on behind these.
    unreadable: Vec<Unreadable>,
    histories: BTreeMap<u32, TimelineHistory>,
}

/// Where a record of the stored log is none that can be replayed: the stream, and the end of the last one before it.
pub type Unreadable = (u64, Lsn);

/// What is put on record where a server's own log, stored as it came up to `to`, cannot be replayed behind `end`.
#[must_use]
pub fn unreadable_gap(timeline: u32, end: &End, to: Lsn, now: DateTime<Utc>) -> Gap {
    let reason = format!(
        "the record at {} of timeline {timeline} cannot be replayed, as it came from the server ({}): recovery ends there. A backup that is made now goes on behind it",
        end.at, end.why
    );
    let to = to.0.max(end.at.0 + 1);
    Gap { stream: u64::from(timeline), from: end.at.0, to, reason, noticed_at: now, unreadable: true }
}

/// What of the gaps on record is such a place. Pure.
#[must_use]
pub fn unreadable(gaps: &[Gap]) -> Vec<Unreadable> {
    gaps.iter().filter(|gap| gap.unreadable).map(|gap| (gap.stream, Lsn(gap.from))).collect()
}

/// Bytes of one stream on a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub stream: u64,
    pub from: Lsn,
    /// Exclusive.
    pub to: Lsn,
}

/// The log that continues a snapshot.
#[derive(Debug, Clone)]
pub struct Path {
    pub history: TimelineHistory,
    /// In order, each beginning where the one before ends. Empty: the repository has nothing to add to the snapshot.
    pub parts: Vec<Part>,
    /// Size of its segment files. `pg_resetwal` gives a cluster another one, and leaves a hole.
    pub segment: SegmentSize,
    /// Facts of the pieces on it, by their ends.
    seen: Vec<(Lsn, Arc<PieceFacts>)>,
    /// Where the log of the path ends.
    pub end: Lsn,
    /// When the snapshot is of, by the source's clock where that is known: not before its point.
    pub from: DateTime<Utc>,
    /// The newest moment that is known to be on it.
    pub to: DateTime<Utc>,
}

/// Moments between two, all of which can be recovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The one that is followed.
    pub timeline: u32,
    pub from: DateTime<Utc>,
    pub from_lsn: Lsn,
    pub to: DateTime<Utc>,
    pub to_lsn: Lsn,
    /// Snapshots in it, oldest first. Recovery needs the first; the others make it quicker.
    pub snapshots: Vec<SnapshotId>,
    /// `false`: the moment of one snapshot, without log behind it.
    pub continuous: bool,
}

/// How to come to a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub base: SnapshotId,
    /// The timeline whose history is followed.
    pub along: u32,
    /// `None`: the snapshot alone, at its own moment.
    pub replay: Option<Replay>,
    /// Of the recovered content.
    pub at: DateTime<Utc>,
}

/// What is replayed on top of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    pub target: Target,
    /// As the server is to be told.
    pub timeline: Timeline,
    /// Where the log that is needed ends.
    pub end: Lsn,
    /// With no other target than the end of the log: how far replay must come to be what was asked for.
    pub reaches: Option<Lsn>,
    /// As [`Request::stops_before`](crate::source::postgres::recover::Request::stops_before).
    pub stops_before: Option<Lsn>,
}

/// Log that is known of, and that the way to the newest moment does not come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreached {
    /// Of the timelines of the way: it lies behind a hole, or is on record as missing.
    Behind { to: Lsn },
    /// Of a newer timeline, of which it is not known where it began.
    Unrelated { timeline: u32, to: Lsn },
}

/// What the segment files of a log have in which no piece can be read, so that none is written: the server's default.
const SEGMENT_UNKNOWN: u64 = 16 << 20;

impl View {
    /// Of snapshots, and pieces with their facts. `None` without a piece. Pieces of another cluster than the snapshots' do not count. `spare`:
    /// pieces inside of others. `unread`: pieces whose facts cannot be read. `destroyed`: pieces whose key was destroyed. `gaps`: what is on record as missing or
    /// not to be replayed.
    ///
    /// # Errors
    /// `Damaged` when the facts say what no server says.
    pub fn new(
        bases: Vec<Base>,
        pieces: Vec<(PieceInfo, PieceFacts)>,
        spare: Vec<PieceInfo>,
        unread: Vec<PieceInfo>,
        destroyed: Vec<PieceInfo>,
        histories: Vec<TimelineHistory>,
        gaps: &[Gap],
    ) -> Result<Option<Self>> {
        let clusters: BTreeSet<&str> = bases.iter().map(|base| base.system_identifier.as_str()).collect();
        let of_cluster = |piece: &(PieceInfo, PieceFacts)| clusters.is_empty() || clusters.contains(piece.1.system_identifier.as_str());
        let counted = |piece: &(PieceInfo, PieceFacts)| of_cluster(piece);
        let pieces: Vec<(PieceInfo, Arc<PieceFacts>)> =
            pieces.into_iter().filter(counted).map(|(info, facts)| (info, Arc::new(facts))).collect();
        if pieces.is_empty() && unread.is_empty() && destroyed.is_empty() {
            return Ok(None);
        }
        let segment = SegmentSize::new(pieces.last().map_or(SEGMENT_UNKNOWN, |(_, newest)| u64::from(newest.segment_bytes)))?;
        let infos: Vec<PieceInfo> = pieces.iter().map(|(info, _)| *info).collect();
        let histories = histories.into_iter().map(|history| (history.timeline(), history)).collect();
        Ok(Some(Self { segment, runs: runs(&infos), pieces, spare, unread, destroyed, unreadable: unreadable(gaps), histories, bases }))
    }

    /// Size of the segment files that parts of a path are of, as their newest piece says.
    fn segment_of(&self, parts: &[Part]) -> SegmentSize {
        let newest = parts.last().and_then(|part| {
            let is_on_it = |info: &PieceInfo| info.stream == part.stream && info.start < part.to.0 && info.end > part.from.0;
            self.pieces.iter().rev().find(|(info, _)| is_on_it(info))
        });
        newest.and_then(|(_, facts)| SegmentSize::new(u64::from(facts.segment_bytes)).ok()).unwrap_or(self.segment)
    }

    /// The pieces, without their facts.
    #[must_use]
    pub fn pieces(&self) -> Vec<PieceInfo> {
        self.pieces.iter().map(|(info, _)| info).chain(&self.spare).copied().collect()
    }

    /// Timelines that anything is known of.
    #[must_use]
    pub fn timelines(&self) -> BTreeSet<u32> {
        let unread = self.unread.iter().chain(&self.destroyed).map(|piece| piece.stream);
        let streams = self.runs.iter().map(|run| run.stream).chain(unread).filter_map(|stream| u32::try_from(stream).ok());
        self.bases.iter().map(|base| base.timeline).chain(streams).chain(self.histories.keys().copied()).collect()
    }

    /// The timelines to follow unless one is named: the newest; where it is not known what that one came from, older ones too.
    fn followed(&self) -> Vec<u32> {
        let mut followed = Vec::new();
        for timeline in self.timelines().into_iter().rev() {
            followed.push(timeline);
            if self.histories.contains_key(&timeline) || timeline == 1 {
                break;
            }
        }
        followed
    }

    fn history(&self, timeline: u32) -> TimelineHistory {
        self.histories.get(&timeline).cloned().unwrap_or_else(|| TimelineHistory::first(timeline))
    }

    /// The log that continues a snapshot towards a timeline. `None`: that timeline does not go through the snapshot.
    #[must_use]
    pub fn path(&self, base: &Base, timeline: u32) -> Option<Path> {
        let history = self.history(timeline);
        if !history.contains(base.timeline, base.point) {
            return None;
        }
        let mut parts = continuation(&self.runs, &history, base.point, &self.unreadable);
        let segment = self.segment_of(&parts);
        if let Some(first) = parts.first_mut() {
            let start = self.runs.iter().filter(|run| run.stream == first.stream && run.start <= first.from.0).map(|run| run.start).max();
            first.from = segment.start(segment.number(base.point)).max(start.map_or(first.from, Lsn));
        }
        let mut seen: Vec<_> = parts.iter().flat_map(|part| self.facts_of(base, part)).collect();
        let at = parts.last().map_or(base.point, |part| part.to);
        seen.sort_by_key(|(end, _)| *end);
        let from = self.moment_of(base, &seen);
        let to = seen.iter().flat_map(|(_, facts)| [facts.last_commit, facts.server_clock]).flatten().fold(from, DateTime::max);
        Some(Path { history, end: at, parts, segment, seen, from, to })
    }

    /// Facts of the pieces that lie in a part and go beyond the snapshot. One that goes beyond the part tells of what does not belong to it.
    fn facts_of<'a>(&'a self, base: &'a Base, part: &'a Part) -> impl Iterator<Item = (Lsn, Arc<PieceFacts>)> + 'a {
        self.pieces_of(base, part).map(|(info, facts)| (Lsn(info.end), Arc::clone(facts)))
    }

    fn pieces_of<'a>(&'a self, base: &'a Base, part: &'a Part) -> impl Iterator<Item = &'a (PieceInfo, Arc<PieceFacts>)> + 'a {
        let inside = move |info: &PieceInfo| {
            info.stream == part.stream && info.end > part.from.0 && info.end <= part.to.0 && info.end > base.point.0
        };
        self.pieces.iter().filter(move |(info, facts)| inside(info) && facts.system_identifier == base.system_identifier)
    }

    /// When a snapshot is of. Its manifest tells when the backup began, by another clock; its restore point in the log is better, or what it says itself of its
    /// log, and otherwise nothing that the log around its point tells may be later.
    fn moment_of(&self, base: &Base, seen: &[(Lsn, Arc<PieceFacts>)]) -> DateTime<Utc> {
        let points = self.pieces.iter().flat_map(|(_, facts)| &facts.restore_points);
        let own = |point: &&RestorePoint| Some(&point.name) == base.restore_point.as_ref() && point.lsn <= base.point;
        points.filter(own).map(|point| point.time).max().or(base.moment).unwrap_or_else(|| {
            let around = seen.first().and_then(|(_, facts)| facts.server_clock.max(facts.last_commit));
            around.map_or(base.time, |time| time.max(base.time))
        })
    }

    /// All that can be recovered along the newest timeline, oldest first.
    #[must_use]
    pub fn ranges(&self) -> Vec<Range> {
        self.ranges_along(&self.followed())
    }

    /// A moment of the continuous ranges, not before `earliest`: each microsecond is as likely as every other, and the same seed chooses the same of
    /// the same ranges.
    #[must_use]
    pub fn random_moment(&self, seed: u64, earliest: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
        let micros = |time: DateTime<Utc>| time.timestamp_micros();
        let begin = |range: &Range| {
            // Not before the snapshot is whole, which may be within a microsecond.
            let from = micros(range.from) + i64::from(!range.from.timestamp_subsec_nanos().is_multiple_of(1000));
            earliest.map_or(from, |earliest| from.max(micros(earliest)))
        };
        // By themselves, because ranges of two timelines may overlap.
        let mut stretches: Vec<(i64, i64)> =
            self.ranges().iter().filter(|range| range.continuous).map(|range| (begin(range), micros(range.to))).collect();
        stretches.sort_unstable();
        let mut last = i64::MIN;
        for (from, to) in &mut stretches {
            *from = last.max(*from);
            last = last.max(*to);
        }
        let lengths = || stretches.iter().map(|(from, to)| (*from, u64::try_from(to - from).unwrap_or(0)));
        let total: u64 = lengths().map(|(_, length)| length).sum();
        if total == 0 {
            return None;
        }
        let mut first = [0u8; 8];
        first.copy_from_slice(&blake3::hash(&seed.to_le_bytes()).as_bytes()[..8]);
        let mut at = u64::from_le_bytes(first) % total;
        for (from, length) in lengths() {
            if at < length {
                return DateTime::from_timestamp_micros(from + i64::try_from(at).ok()?);
            }
            at -= length;
        }
        None
    }

    fn ranges_along(&self, timelines: &[u32]) -> Vec<Range> {
        let mut ranges: Vec<Range> = Vec::new();
        let mut done = BTreeSet::new();
        for &timeline in timelines {
            let mut bases: Vec<(&Base, Path)> = self
                .bases
                .iter()
                .filter(|base| !done.contains(&base.id))
                .filter_map(|base| Some((base, self.path(base, timeline)?)))
                .collect();
            bases.sort_by_key(|(base, _)| (base.point, base.id));
            let mut own: Vec<Range> = Vec::new();
            for (base, path) in bases {
                done.insert(base.id);
                if let Some(range) = own.last_mut().filter(|range| range.continuous && range.to_lsn >= base.point) {
                    range.snapshots.push(base.id);
                    range.to = range.to.max(path.to);
                    continue;
                }
                own.push(Range {
                    timeline,
                    from: path.from,
                    from_lsn: base.point,
                    to: path.to,
                    to_lsn: path.end,
                    snapshots: vec![base.id],
                    continuous: !path.parts.is_empty() && path.to > path.from,
                });
            }
            ranges.extend(own);
        }
        ranges.sort_by_key(|range| (range.from, range.to));
        ranges
    }

    /// The way to what is wanted.
    ///
    /// # Errors
    /// `NoRecoveryPoint`, with what there is; `Usage` for a name that is ambiguous.
    pub fn route(&self, wanted: &Wanted, timeline: Option<u32>) -> Result<Route> {
        let known = self.timelines();
        let followed = match timeline {
            None => self.followed(),
            Some(number) if known.contains(&number) => vec![number],
            Some(number) => {
                let known: Vec<String> = known.iter().map(ToString::to_string).collect();
                return Err(Error::new(Kind::NoRecoveryPoint, format!("recover along timeline {number}: nothing is known of it"))
                    .hint(format!("known are the timelines {}; {}", known.join(", "), self.available(None))));
            }
        };
        for &along in &followed {
            let mut paths: Vec<(&Base, Path)> = self.bases.iter().filter_map(|base| Some((base, self.path(base, along)?))).collect();
            paths.sort_by_key(|(base, _)| std::cmp::Reverse((base.point, base.id)));
            if let Some(route) = find(wanted, &paths)? {
                return Ok(if *wanted == Wanted::Latest { self.as_late_as_told(route, &paths) } else { route });
            }
        }
        Err(Error::new(Kind::NoRecoveryPoint, format!("recover to {wanted}: no snapshot and log reach that")).hint(self.told(&followed)))
    }

    /// A way to all there is, whose moment is not before what the log on it tells, also where that ends before the snapshot's own point.
    fn as_late_as_told(&self, route: Route, paths: &[(&Base, Path)]) -> Route {
        let Some((base, path)) = paths.iter().find(|(base, _)| base.id == route.base) else { return route };
        let is_on_it = |info: &PieceInfo, facts: &PieceFacts| {
            let timeline = u32::try_from(info.stream);
            facts.system_identifier == base.system_identifier
                && info.end <= path.end.0
                && timeline.is_ok_and(|timeline| path.history.contains(timeline, Lsn(info.end)))
        };
        let on_it = self.pieces.iter().filter(|(info, facts)| is_on_it(info, facts));
        let told = on_it.flat_map(|(_, facts)| [facts.last_commit, facts.server_clock]).flatten();
        Route { at: told.fold(route.at, DateTime::max), ..route }
    }

    /// Where the log ends that a route goes through, or its snapshot's own.
    #[must_use]
    pub fn end(&self, route: &Route) -> Lsn {
        let base = || self.bases.iter().find(|base| base.id == route.base).map_or(Lsn(0), |base| base.point);
        route.replay.as_ref().map_or_else(base, |replay| replay.end)
    }

    /// Whether what a snapshot is of is part of what a way to the end of the log leads to.
    #[must_use]
    pub fn includes(&self, route: &Route, snapshot: &Base) -> bool {
        let Some(base) = self.bases.iter().find(|base| base.id == route.base) else { return false };
        let end = self.end(route);
        snapshot.system_identifier == base.system_identifier && snapshot.point <= end && self.path(snapshot, route.along).is_some()
    }

    /// Of a way to the newest moment: log that is known of and that it does not come to. `timeline`: the one that was named; `gaps`: what is on record
    /// as missing. A newer timeline than the one that was named does not count.
    #[must_use]
    pub fn unreached(&self, route: &Route, timeline: Option<u32>, gaps: &[Gap]) -> Option<Unreached> {
        let base = self.bases.iter().find(|base| base.id == route.base)?;
        let of_cluster = self.pieces.iter().filter(|(_, facts)| facts.system_identifier == base.system_identifier);
        let stored = of_cluster.map(|(info, _)| info).chain(&self.unread).chain(&self.destroyed).map(|piece| (piece.stream, piece.end));
        let all = stored.chain(gaps.iter().map(|gap| (gap.stream, gap.to)));
        let known: Vec<(u32, Lsn)> = all.filter_map(|(stream, to)| Some((u32::try_from(stream).ok()?, Lsn(to)))).collect();
        // Every timeline between is one whose history is not there.
        let unrelated = known.iter().filter(|(newer, _)| timeline.is_none() && *newer > route.along).max();
        if let Some(&(timeline, to)) = unrelated {
            return Some(Unreached::Unrelated { timeline, to });
        }
        let (history, end) = (self.history(route.along), self.end(route));
        let on_the_way = known.iter().filter_map(|&(timeline, to)| {
            if timeline == route.along { Some(to) } else { history.left_at(timeline).map(|left_at| to.min(left_at)) }
        });
        // Where a timeline was left, its log was written up to there.
        let left_at = history.ancestors().last().map(|ancestor| ancestor.left_at);
        let behind = on_the_way.chain(left_at).filter(|to| !comes_to(end, *to)).max();
        behind.map(|to| Unreached::Behind { to })
    }

    /// How far a way would lead if all that is stored could be read. `None`: not further than it does.
    #[must_use]
    pub fn cut(&self, base: &Base, path: &Path) -> Option<Lsn> {
        let of_cluster = self.pieces.iter().filter(|(_, facts)| facts.system_identifier == base.system_identifier);
        let all: Vec<PieceInfo> = of_cluster.map(|(info, _)| info).chain(&self.unread).copied().collect();
        continuation(&runs(&all), &path.history, base.point, &self.unreadable).last().map(|part| part.to).filter(|to| *to > path.end)
    }

    /// Whether what is wanted and was not found may be in log that is stored and cannot be read.
    #[must_use]
    pub fn may_be_unread(&self, wanted: &Wanted, timeline: Option<u32>) -> bool {
        let followed = timeline.map_or_else(|| self.followed(), |timeline| vec![timeline]);
        let paths = followed.into_iter().flat_map(|along| self.bases.iter().filter_map(move |base| Some((base, self.path(base, along)?))));
        let is_cut = |(base, path): (&Base, Path)| self.cut(base, &path).is_some();
        let newest = |(base, _): &(&Base, Path)| (base.point, base.id);
        match wanted {
            Wanted::Time(time) => paths.filter(|(_, path)| path.from <= *time).max_by_key(newest).is_some_and(is_cut),
            Wanted::Lsn(lsn) => paths.filter(|(base, _)| base.point <= *lsn).max_by_key(newest).is_some_and(is_cut),
            _ => paths.into_iter().any(is_cut),
        }
    }

    /// When recovery to a moment stops before transactions that have an earlier time, because the source's clock was set back: the first such
    /// time. Times of transactions that end together are not in order by less than `DISORDER`.
    #[must_use]
    pub fn set_back(&self, route: &Route, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let (base, path) = self.way(route)?;
        let mut pieces: Vec<_> = path.parts.iter().flat_map(|part| self.pieces_of(base, part)).collect();
        pieces.sort_by_key(|(info, _)| (info.end, info.start));
        let mut seen_to = 0;
        let in_order = pieces.iter().flat_map(|(info, facts)| {
            // Where it begins was gone through already, as of a whole segment after the small pieces of it: that is no step back.
            let first = facts.first_commit.filter(|_| info.start >= seen_to);
            seen_to = info.end;
            [first, facts.last_commit]
        });
        let commits = in_order.flatten();
        commits.skip_while(|commit| *commit <= time).find(|commit| *commit + DISORDER < time)
    }

    /// The way from this very snapshot to a time. `None`: the log does not lead there from it.
    #[must_use]
    pub fn route_from(&self, base: SnapshotId, time: DateTime<Utc>) -> Option<Route> {
        let base = self.bases.iter().find(|known| known.id == base)?;
        let time = chrono::SubsecRound::trunc_subsecs(time, 6);
        let paths = self.followed().into_iter().filter_map(|along| self.path(base, along));
        let mut reaching = paths.filter(|path| path.from <= time && time <= path.to);
        reaching.next().map(|path| path.to_time(base, time))
    }

    /// What can be recovered, along the newest timeline unless one is named; for a message.
    #[must_use]
    pub fn available(&self, timeline: Option<u32>) -> String {
        self.told(&timeline.map_or_else(|| self.followed(), |timeline| vec![timeline]))
    }

    /// Log on the way of other timelines, from the snapshot of a route on, that has commits where that way and the one that is followed are not one any more; each with where that
    /// begins.
    #[must_use]
    pub fn forks(&self, route: &Route) -> Vec<(Path, Lsn)> {
        let Some((base, followed)) = self.way(route) else { return Vec::new() };
        let others = self.timelines().into_iter().filter(|timeline| *timeline != route.along);
        let forked = others.filter_map(|timeline| {
            let other = self.path(base, timeline)?;
            let shared = other.history.shared_with(&followed.history);
            let has_commits = other.seen.iter().any(|(end, facts)| *end > shared && facts.last_commit.is_some());
            (has_commits && shared.0 + LONGEST_PAGE_HEADER < other.end.0).then_some((other, shared))
        });
        forked.collect()
    }

    /// The snapshot and the log that a route goes through. `None`: it goes through no log, or is of another view.
    #[must_use]
    pub fn way(&self, route: &Route) -> Option<(&Base, Path)> {
        let base = self.bases.iter().find(|base| base.id == route.base)?;
        route.replay.as_ref()?;
        Some((base, self.path(base, route.along)?))
    }

    /// Where a commit later than `time` may lie across that no facts tell, on a path whose facts tell of none: whoever stores log begins to read it at the
    /// start of a unit, and does not know a record that began before. Of transactions that are out of order by less than `DISORDER`, those behind one
    /// that is earlier than `time` by more are not later. In order, behind the snapshot's point.
    #[must_use]
    pub fn unseen(&self, base: &Base, path: &Path, time: DateTime<Utc>) -> Vec<Lsn> {
        let unit = u64::from(path.segment.bytes()).min(UNIT_BYTES_MAX);
        let pieces: Vec<_> = path.parts.iter().flat_map(|part| self.pieces_of(base, part)).collect();
        let is_before = |facts: &PieceFacts| facts.last_commit.is_some_and(|commit| commit + DISORDER < time);
        let from = pieces.iter().filter(|(_, facts)| is_before(facts)).map(|(info, _)| info.start).fold(base.point.0, u64::max);
        // Of a piece in which no record ends, its start is told.
        let ended: BTreeSet<Lsn> =
            pieces.iter().filter(|(info, facts)| info.start < facts.valid_to.0).map(|(_, facts)| facts.valid_to).collect();
        let starts = (from / unit + 1..).map(|number| Lsn(number.saturating_mul(unit))).take_while(|start| *start < path.end);
        starts.filter(|start| !ended.contains(start)).collect()
    }

    /// What there is, for a message.
    fn told(&self, followed: &[u32]) -> String {
        let ranges = self.ranges_along(followed);
        let exact = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Millis, true);
        let tell = |range: &Range| {
            if range.continuous {
                format!(
                    "{} to {} (log positions {} to {}, timeline {})",
                    exact(range.from),
                    exact(range.to),
                    range.from_lsn,
                    range.to_lsn,
                    range.timeline
                )
            } else {
                let snapshots: Vec<String> = range.snapshots.iter().map(ToString::to_string).collect();
                format!("snapshot {} of {} alone", snapshots.join(", "), moment(range.from))
            }
        };
        let mut said = format!("what can be recovered: {}", ranges.iter().map(tell).collect::<Vec<_>>().join("; "));
        if ranges.is_empty() {
            "no snapshot is there that log could continue".clone_into(&mut said);
        }
        let others: Vec<String> = self.timelines().iter().filter(|number| !followed.contains(number)).map(ToString::to_string).collect();
        if !others.is_empty() {
            said = format!("{said}; --timeline {} may have more", others.join(" or "));
        }
        said
    }
}

/// Whether log that ends at `end` has all that was written before a position. Records end at multiples of 8, and a server may tell a position behind
/// the header of a page that no record has touched yet.
fn comes_to(end: Lsn, position: Lsn) -> bool {
    let header = if end.0.is_multiple_of(u64::from(PAGE_BYTES)) { LONGEST_PAGE_HEADER } else { 0 };
    position.0 <= end.0.next_multiple_of(8) + header
}

/// What of the runs goes on from a point without a hole, in order, along a timeline that goes through the point; from the page on that it lies
/// in. Empty when nothing goes beyond it. It ends where the log cannot be replayed, unless that is before the point.
#[must_use]
pub fn continuation(runs: &[LogRun], history: &TimelineHistory, point: Lsn, unreadable: &[Unreadable]) -> Vec<Part> {
    let page = u64::from(PAGE_BYTES);
    let mut at = Lsn(point.0 / page * page);
    let mut parts: Vec<Part> = Vec::new();
    loop {
        // What a timeline shares with its descendant is in the descendant's file too: the server copies it.
        let here = history.timeline_at(at);
        let usable = runs.iter().filter_map(|run| {
            let stream = u32::try_from(run.stream).ok().filter(|stream| *stream >= here)?;
            let limit = if stream == history.timeline() { Lsn(u64::MAX) } else { history.left_at(stream)? };
            let end = Lsn(run.end).min(limit);
            (run.start <= at.0 && at < end).then_some((run.stream, end))
        });
        let Some((stream, end)) = usable.max_by_key(|(stream, end)| (*end, *stream)) else { break };
        let stops = unreadable.iter().filter(|(of, lsn)| *of == stream && *lsn >= at.max(point) && *lsn < end).map(|(_, lsn)| *lsn);
        if let Some(stop) = stops.min() {
            if stop > at {
                parts.push(Part { stream, from: at, to: stop });
                at = stop;
            }
            break;
        }
        parts.push(Part { stream, from: at, to: end });
        at = end;
    }
    if at > point { parts } else { Vec::new() }
}

/// `paths`: newest first.
fn find(wanted: &Wanted, paths: &[(&Base, Path)]) -> Result<Option<Route>> {
    match wanted {
        // All are of one history: what ends later has what the others have.
        Wanted::Latest => Ok(paths.iter().max_by_key(|(base, path)| (path.end, base.point)).map(|(base, path)| path.whole(base))),
        Wanted::Time(time) => {
            let time = chrono::SubsecRound::trunc_subsecs(*time, 6);
            let reaching = |(_, path): &&(&Base, Path)| path.from <= time && time <= path.to;
            // Of a snapshot behind the end of the log only the beginning is known.
            let through_log = paths.iter().filter(|(_, path)| !path.parts.is_empty()).find(reaching);
            Ok(through_log.or_else(|| paths.iter().find(reaching)).map(|(base, path)| path.to_time(base, time)))
        }
        Wanted::Lsn(lsn) => Ok(paths.iter().filter(|(base, _)| base.point <= *lsn).find_map(|(base, path)| path.to_lsn(base, *lsn))),
        Wanted::RestorePoint(name) => to_name(name, paths),
        Wanted::Immediate => Ok(paths.first().map(|(base, path)| Route {
            base: base.id,
            along: base.timeline,
            at: path.from,
            replay: Some(Replay {
                target: Target::Immediate,
                timeline: base.to(base.timeline),
                end: base.point,
                reaches: None,
                stops_before: None,
            }),
        })),
        Wanted::Xid(_) => Err(Error::new(Kind::Bug, "a transaction was looked for without reading the log")),
    }
}

/// A restore point, the only one of its name on any of the paths. `paths`: newest first.
fn to_name(name: &str, paths: &[(&Base, Path)]) -> Result<Option<Route>> {
    let mut found: BTreeMap<Lsn, DateTime<Utc>> = BTreeMap::new();
    for (base, path) in paths {
        if base.restore_point.as_deref() == Some(name) {
            found.insert(base.point, path.from);
        }
        found.extend(path.named(base, name).into_iter().map(|(_, point)| (point.lsn, point.time)));
    }
    if found.len() > 1 {
        let list: Vec<String> = found.iter().map(|(lsn, time)| format!("{lsn} at {}", moment(*time))).collect();
        return Err(Error::new(Kind::Usage, format!("recover to the restore point {name:?}: {} have that name", found.len()))
            .hint(format!("name one by its position with --lsn: {}", list.join(", "))));
    }
    for (base, path) in paths {
        if base.restore_point.as_deref() == Some(name) {
            return Ok(Some(path.own(base)));
        }
        if let Some((end, point)) = path.named(base, name).into_iter().next() {
            return Ok(Some(path.stopping(base, Target::Name(name.to_owned()), end, point.time)));
        }
    }
    Ok(None)
}

impl Path {
    fn own(&self, base: &Base) -> Route {
        Route { base: base.id, along: self.history.timeline(), replay: None, at: self.from }
    }

    /// End of the last whole record.
    fn valid_to(&self, base: &Base) -> Lsn {
        self.seen.iter().map(|(_, facts)| facts.valid_to).fold(base.point, Lsn::max)
    }

    /// With no other target than the end of the log, `reaches` says how far that must be.
    fn through(&self, base: &Base, target: Target, end: Lsn, reaches: Option<Lsn>, at: DateTime<Utc>) -> Route {
        // Of a timeline whose log is not there yet, a server could not find its way.
        let last = self.history.timeline_at(Lsn(end.0.saturating_sub(1)));
        let replay = Replay { target, timeline: base.to(last), end, reaches, stops_before: None };
        Route { base: base.id, along: self.history.timeline(), replay: Some(replay), at }
    }

    fn stopping(&self, base: &Base, target: Target, end: Lsn, at: DateTime<Utc>) -> Route {
        self.through(base, target, end, None, at)
    }

    /// The newest moment that is known to lie before a position on it; `None`: nothing behind the snapshot's own does.
    #[must_use]
    pub fn known_before(&self, lsn: Lsn) -> Option<DateTime<Utc>> {
        let before = self.seen.iter().filter(|(end, _)| *end <= lsn);
        before.flat_map(|(_, facts)| [facts.last_commit, facts.server_clock]).flatten().filter(|time| *time > self.from).max()
    }

    /// All there is.
    #[must_use]
    pub fn whole(&self, base: &Base) -> Route {
        if self.parts.is_empty() {
            return self.own(base);
        }
        self.through(base, Target::Latest, self.end, Some(self.valid_to(base)), self.to)
    }

    /// As far as facts tell; [`View::unseen`] says where they do not.
    fn to_time(&self, base: &Base, time: DateTime<Utc>) -> Route {
        // A server stops at a time only before a commit that is later; without one, the log ends with what was committed by then.
        let later = |facts: &PieceFacts| [facts.first_commit, facts.last_commit].into_iter().flatten().any(|commit| commit > time);
        match self.seen.iter().find(|(_, facts)| later(facts)) {
            Some((end, _)) => self.stopping(base, Target::Time(time), *end, time),
            None => Route { at: time, ..self.whole(base) },
        }
    }

    /// As far as facts tell, which is where records end, not where they begin.
    fn to_lsn(&self, base: &Base, lsn: Lsn) -> Option<Route> {
        let at =
            self.seen.iter().take_while(|(end, _)| *end <= lsn).filter_map(|(_, facts)| facts.last_commit).fold(self.from, DateTime::max);
        if let Some((end, _)) = self.seen.iter().find(|(_, facts)| facts.valid_to > lsn) {
            return Some(self.stopping(base, Target::Lsn { lsn, inclusive: false }, *end, at));
        }
        let valid_to = self.valid_to(base);
        (lsn.0 <= valid_to.0 + LONGEST_PAGE_HEADER).then(|| Route { at, ..self.whole(base) })
    }

    /// Restore points of a name behind the snapshot, each with the end of a piece that has it.
    fn named(&self, base: &Base, name: &str) -> Vec<(Lsn, RestorePoint)> {
        let of = |(end, facts): &(Lsn, Arc<PieceFacts>)| {
            let is_it = |point: &&RestorePoint| point.name == name && point.lsn > base.point;
            facts.restore_points.iter().filter(is_it).map(|point| (*end, point.clone())).collect::<Vec<_>>()
        };
        self.seen.iter().flat_map(of).collect()
    }

    /// The way to a record, which `target` stops at.
    #[must_use]
    pub fn to_record(&self, base: &Base, target: Target, end: Lsn, at: DateTime<Utc>) -> Route {
        let end = self.seen.iter().map(|(piece, _)| *piece).find(|piece| *piece >= end).unwrap_or(self.end);
        self.stopping(base, target, end, at)
    }

    /// Where to begin to look for the last commit before those that are later than `time`, as facts tell: the nearest place first, and each farther than the one before.
    #[must_use]
    pub fn before_later(&self, base: &Base, time: DateTime<Utc>) -> Vec<Lsn> {
        let is_later = |facts: &PieceFacts| [facts.first_commit, facts.last_commit].into_iter().flatten().any(|commit| commit > time);
        let first = self.seen.iter().position(|(_, facts)| is_later(facts)).unwrap_or(self.seen.len());
        let with_commits = (0..first).rev().filter(|at| self.seen[*at].1.last_commit.is_some());
        // Each piece begins where the one before it ends, or earlier.
        let starts = with_commits.filter_map(|at| Some(self.seen[at.checked_sub(1)?].0)).filter(|start| *start > base.point);
        starts.chain([base.point]).collect()
    }

    /// The parts up to a position. `None` when they do not get there.
    #[must_use]
    pub fn parts_to(&self, end: Lsn) -> Option<Vec<Part>> {
        if end > self.end {
            return None;
        }
        let cut = |part: &Part| Part { to: part.to.min(end), ..*part };
        Some(self.parts.iter().map(cut).filter(|part| part.from < part.to).collect())
    }
}

#[cfg(test)]
mod tests;
