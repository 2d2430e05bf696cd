//! `restore_command`: one file of the log to where the server wants it, and those that it will ask for next beside.
//!
//! A server that is told "it is not there" believes that the log ends and opens for writing. So that is said only where the log does end;
//! damage, a hole with later log behind it, and everything that fails is an error, which must reach the server as an exit code over 125.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext, Kind, Result};
use crate::ops::explain;
use crate::ops::log::archive::{AHEAD, Archive, Shelf, history_of, parse_any, stored_history, workers};
use crate::ops::log::ranges::unreadable;
use crate::ops::resolve::{RepositorySettings, Surroundings};
use crate::ops::restore::fallback::may_help;
use crate::repo::{Gap, Log, PieceInfo, runs};
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::wal::{PieceFacts, SegmentHeader, SegmentSize, TimelineHistory, WalName, WalReader};

/// Bytes of the hash before what was fetched ahead.
const HASH: usize = 32;
/// What to do where recovery would end before the log does.
const ENDS_UNNOTICED: &str = "recovery cannot pass it, and must not end there unnoticed. To recover only up to there, add --end-at-gap to restore_command; else begin with \
     a snapshot from behind it";

/// `lifeboat.log-fetch/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchReport {
    pub schema: String,
    pub plan: String,
    pub source: String,
    pub name: String,
    /// `false`: the log ends before it.
    pub found: bool,
    /// The log ends inside it; zeros follow.
    pub partial: bool,
    /// An earlier fetch had brought it.
    pub cached: bool,
    /// Further segments that were brought for the next fetches.
    pub ahead: u64,
    /// Name of the copy that it is from, and why. `None`: from the plan's own repository.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub copy: Option<(String, String)>,
}

impl FetchReport {
    /// How the process should end: exit 1 is the end of the log to a server.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        (!self.found).then_some(Kind::NotFound)
    }
}

/// Brings the file `name` to `destination`, whole or not at all.
///
/// # Errors
/// `NoRecoveryPoint` for a hole in the log (unless `end_at_gap`), `Damaged`, `WrongKey`, `Unavailable` and so on: none of them is the end of the log.
pub fn run(
    archive: &Archive,
    name: &str,
    destination: &Path,
    jobs: usize,
    end_at_gap: bool,
    surroundings: &Surroundings,
) -> Result<FetchReport> {
    let mut report = FetchReport {
        schema: "lifeboat.log-fetch/1".into(),
        plan: archive.plan.to_string(),
        source: archive.source.to_string(),
        name: name.to_owned(),
        found: true,
        partial: false,
        cached: false,
        ahead: 0,
        copy: None,
    };
    let Some(parsed) = parse_any(name) else {
        return Err(Error::new(Kind::Usage, format!("{name:?} is no name of a file of the log"))
            .hint("restore_command is to give the server's %f and %p"));
    };
    let shelf = archive.folder("ahead")?;
    if let WalName::Segment { .. } = parsed
        && let Some(bytes) = take_cached(archive, &shelf, name)
    {
        write_whole(destination, &bytes)?;
        shelf.remove(name);
        report.cached = true;
        return Ok(report);
    }
    // A recovery asks for histories when it begins and when it has ended: what was fetched ahead of its target has no use any more.
    shelf.clear(!matches!(parsed, WalName::Segment { .. }));
    let place = Place { archive, name, destination, jobs, end_at_gap, surroundings };
    let own = place.bring(&archive.repository, &parsed, &shelf, &mut report);
    let error = match own {
        Err(error) if may_help(error.kind()) => error,
        own => return own.map(|()| report),
    };
    for copy in &archive.copies {
        let mut from_copy = report.clone();
        from_copy.copy = Some((copy.name().to_string(), explain(&error)));
        let brought = copy.settings().and_then(|settings| place.bring(&settings, &parsed, &shelf, &mut from_copy));
        match brought {
            // Where the copy ends, the log need not, and a timeline that it has not heard of may be there: only the plan's own repository can say so.
            Ok(()) if is_kept(&parsed) && (!from_copy.found || from_copy.partial) => {
                tracing::warn!(copy = %copy.name(), name, "the copy of the log ends before this");
            }
            Ok(()) => return Ok(from_copy),
            Err(other) => tracing::warn!(copy = %copy.name(), name, error = ?other, "the copy cannot be used either"),
        }
    }
    Err(error)
}

/// Whether such a file is looked for at all.
fn is_kept(name: &WalName) -> bool {
    matches!(name, WalName::Segment { .. } | WalName::History { .. })
}

/// One file of the log, wherever it comes from.
struct Place<'a> {
    archive: &'a Archive,
    name: &'a str,
    destination: &'a Path,
    jobs: usize,
    end_at_gap: bool,
    surroundings: &'a Surroundings,
}

impl Place<'_> {
    fn bring(&self, from: &RepositorySettings, parsed: &WalName, shelf: &Shelf, report: &mut FetchReport) -> Result<()> {
        let Self { archive, name, destination, jobs, end_at_gap, surroundings } = *self;
        let within = |error: Error| error.within(format!("fetch {name}"));
        let repository = from.open(surroundings)?;
        // In another one that is in its place, the log would seem to end before it begins.
        if let Err(error) = from.must_belong(&repository, surroundings)
            && error.kind() == Kind::Damaged
        {
            return Err(within(error));
        }
        repository.require_reader("fetch a log")?;
        let log = repository.log(&archive.plan, &archive.source);
        match *parsed {
            WalName::History { timeline } => {
                let stored = history_of(&log, timeline).map_err(within)?;
                match stored {
                    Some(text) => write_whole(destination, text.as_bytes())?,
                    None if timeline > 1 && log.pieces()?.iter().any(|piece| piece.stream == u64::from(timeline)) => {
                        return Err(within(
                            Error::new(Kind::Damaged, format!("there is log of timeline {timeline}, and its history is missing")).hint(
                                "run `lifeboat verify`; copy the file from the pg_wal of a server that has it, with `lifeboat log push`",
                            ),
                        ));
                    }
                    None => report.found = false,
                }
                Ok(())
            }
            // No recovery needs these.
            WalName::Partial { .. } | WalName::Backup { .. } => {
                report.found = false;
                Ok(())
            }
            WalName::Segment { .. } => {
                let request = Request { archive, log: &log, name, destination, jobs, end_at_gap, surroundings };
                let mut tried = request.bring(shelf, report);
                // A piece that a larger one replaced since the listing; or a hole: a listing is not of one moment, so it must be there in a second one.
                if tried.as_ref().is_err_and(|error| matches!(error.kind(), Kind::NotFound | Kind::NoRecoveryPoint)) {
                    tried = request.bring(shelf, report);
                }
                if !report.found {
                    shelf.clear(true);
                }
                tried.map_err(within)?;
                Ok(())
            }
        }
    }
}

struct Request<'a> {
    archive: &'a Archive,
    log: &'a Log,
    name: &'a str,
    destination: &'a Path,
    jobs: usize,
    end_at_gap: bool,
    surroundings: &'a Surroundings,
}

impl Request<'_> {
    fn bring(&self, shelf: &Shelf, report: &mut FetchReport) -> Result<()> {
        let listed = self.log.listed()?;
        let destroyed = self.log.destroyed(&listed)?;
        let all: Vec<PieceInfo> = listed.into_iter().map(|listed| listed.piece).collect();
        let pieces: Vec<PieceInfo> = all.iter().copied().filter(|piece| !destroyed.contains(piece)).collect();
        let Some(size) = self.segment_size(&all)? else {
            report.found = false;
            return Ok(());
        };
        let Some(WalName::Segment { timeline, number }) = WalName::parse(self.name, size) else {
            return Err(Error::new(Kind::Usage, format!("a cluster with segments of {} bytes has none of this name", size.bytes())));
        };
        let (start, end) = (size.start(number).0, size.start(number + 1).0);
        let unreadable = if self.end_at_gap { Vec::new() } else { self.unreadable(timeline)? };
        let stops_in = |start: u64, end: u64| unreadable.iter().find(|at| (start..end).contains(&at.0));
        if let Some(at) = stops_in(start, end) {
            return Err(Error::new(
                Kind::NoRecoveryPoint,
                format!("the log of timeline {timeline} cannot be replayed past {at}: it came damaged from its server, or that one ran with wal_level = minimal from there on"),
            )
            .hint(ENDS_UNNOTICED));
        }
        let stretches = self.stretches(&pieces, timeline, start, end)?;
        let reached = stretches.last().map_or(start, |stretch| stretch.2);
        if reached < end
            && !self.end_at_gap
            && let Some(why) = self.hole(&pieces, &destroyed, timeline, reached)?
        {
            if reached == start && self.is_whole_here(size, start)? {
                // From the base backup: the server takes its own.
                report.found = false;
                return Ok(());
            }
            return Err(Error::new(Kind::NoRecoveryPoint, format!("the log has a hole at {} of timeline {timeline}: {why}", Lsn(reached)))
                .hint(ENDS_UNNOTICED));
        }
        if reached == start {
            report.found = false;
            return Ok(());
        }
        report.partial = reached < end;
        let mut next: VecDeque<(String, u64)> = if report.partial { VecDeque::new() } else { following(&pieces, size, timeline, number) };
        next.retain(|(_, start)| stops_in(*start, start + u64::from(size.bytes())).is_none());
        let waiting = Mutex::new(next);
        let ahead = || self.fetch_ahead(&pieces, timeline, size, &waiting, shelf);
        let (main, ahead) = std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..workers(self.jobs, size)).map(|_| scope.spawn(ahead)).collect();
            let main = self.segment(&pieces, &stretches, size, start);
            if main.is_err() {
                waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
            let mut brought = ahead();
            for helper in helpers {
                brought += helper.join().unwrap_or(0);
            }
            (main, brought)
        });
        report.ahead = ahead;
        write_whole(self.destination, &main?)
    }

    /// Where a record of a timeline's log is none that can be replayed.
    fn unreadable(&self, timeline: u32) -> Result<Vec<Lsn>> {
        let (gaps, damaged) = self.log.gaps()?;
        for error in damaged {
            // It need not be of this kind, and the pieces are there: no reason to stop a recovery.
            tracing::warn!(?error, "a gap on record cannot be read");
        }
        Ok(unreadable(&gaps).into_iter().filter(|(stream, _)| *stream == u64::from(timeline)).map(|(_, at)| at).collect())
    }

    /// As the pieces say; `None` when there is no log at all.
    fn segment_size(&self, pieces: &[PieceInfo]) -> Result<Option<SegmentSize>> {
        let mut failed = None;
        for piece in pieces.iter().rev() {
            match self.log.facts(piece) {
                Ok(facts) => {
                    let facts: PieceFacts = serde_json::from_value(facts).map_err(|error| {
                        Error::new(Kind::Damaged, "what is said of a piece of log cannot be read by this version").because(error)
                    })?;
                    return SegmentSize::new(u64::from(facts.segment_bytes)).map(Some);
                }
                Err(error) if matches!(error.kind(), Kind::Damaged | Kind::NotFound) => failed = Some(error),
                Err(error) => return Err(error),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// From where the positions of a segment come, in order, as far as they are there without a hole: stream, from, to.
    fn stretches(&self, pieces: &[PieceInfo], timeline: u32, start: u64, end: u64) -> Result<Vec<(u64, u64, u64)>> {
        let own = cover(pieces, &[(u64::from(timeline), u64::MAX)], start, end);
        if own.last().is_some_and(|last| last.2 == end) {
            return Ok(own);
        }
        // The segment in which a timeline was left begins the same on both sides.
        let mut streams = vec![(u64::from(timeline), u64::MAX)];
        for history in self.histories()? {
            if history.timeline() == timeline {
                streams.extend(history.ancestors().iter().map(|ancestor| (u64::from(ancestor.timeline), ancestor.left_at.0)));
            } else if let Some(left_at) = history.left_at(timeline) {
                streams.push((u64::from(history.timeline()), left_at.0));
            }
        }
        Ok(cover(pieces, &streams, start, end))
    }

    fn histories(&self) -> Result<Vec<TimelineHistory>> {
        let mut histories = Vec::new();
        for name in self.log.sides()? {
            if let Some(WalName::History { timeline }) = parse_any(name.as_str())
                && let Some(text) = stored_history(self.log, timeline)?
            {
                histories.push(TimelineHistory::parse(timeline, &text)?);
            }
        }
        Ok(histories)
    }

    /// Why the log does not end at this position although nothing follows it. `destroyed`: stored, and nobody can read them any more.
    fn hole(&self, pieces: &[PieceInfo], destroyed: &BTreeSet<PieceInfo>, timeline: u32, reached: u64) -> Result<Option<String>> {
        let stream = u64::from(timeline);
        if destroyed.iter().any(|piece| piece.stream == stream && piece.start <= reached && reached < piece.end) {
            return Ok(Some("the key of what follows was destroyed".to_owned()));
        }
        let mut stored = pieces.iter().chain(destroyed);
        if let Some(later) = stored.find(|piece| piece.stream == stream && piece.end > reached) {
            return Ok(Some(format!("it goes on at {}", Lsn(later.start))));
        }
        let (gaps, damaged) = self.log.gaps()?;
        if let Some(error) = damaged.into_iter().next() {
            return Err(error);
        }
        if let Some(Gap { from, to, .. }) = gaps.iter().find(|gap| !gap.unreadable && gap.stream == stream && gap.to > reached) {
            return Ok(Some(format!("{} to {} is on record as missing", Lsn(*from), Lsn(*to))));
        }
        // Several may have left it. Records end at multiples of 8; a position of a server may be rounded up.
        let left = self.histories()?.into_iter().filter_map(|history| Some((history.timeline(), history.left_at(timeline)?)));
        let later = left.filter(|(_, at)| at.0 > reached.next_multiple_of(8)).max_by_key(|(younger, _)| *younger);
        Ok(later.map(|(younger, at)| format!("timeline {younger} goes on from {at}")))
    }

    /// Whether the server has this segment itself, with log up to its end.
    fn is_whole_here(&self, size: SegmentSize, start: u64) -> Result<bool> {
        let bytes = match fs::read(self.destination.with_file_name(self.name)) {
            Ok(bytes) if bytes.len() as u64 == u64::from(size.bytes()) => bytes,
            _ => return Ok(false),
        };
        let mut reader = WalReader::new(Lsn(start), size, None)?;
        reader.push(&bytes, |_| {});
        Ok(reader.end().is_none())
    }

    fn segment(&self, pieces: &[PieceInfo], stretches: &[(u64, u64, u64)], size: SegmentSize, start: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for &(stream, from, to) in stretches {
            bytes.append(&mut self.log.read_span(pieces, stream, from..to)?);
        }
        let header =
            SegmentHeader::read(&bytes).map_err(|error| Error::new(Kind::Damaged, "what is stored is no segment").because(error))?;
        if header.position.0 != start || header.segment != size {
            return Err(Error::new(Kind::Damaged, format!("what is stored as the segment at {} is of {}", Lsn(start), header.position)));
        }
        bytes.resize(usize::try_from(size.bytes()).unwrap_or(usize::MAX), 0);
        Ok(bytes)
    }

    /// Brings what waits to the shelf; what fails is left for its turn.
    fn fetch_ahead(
        &self,
        pieces: &[PieceInfo],
        timeline: u32,
        size: SegmentSize,
        waiting: &Mutex<VecDeque<(String, u64)>>,
        shelf: &Shelf,
    ) -> u64 {
        let mut brought = 0;
        while !self.surroundings.cancel.is_cancelled() {
            let Some((name, start)) = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else { break };
            let stretch = (u64::from(timeline), start, start + u64::from(size.bytes()));
            let done = self.segment(pieces, &[stretch], size, start).and_then(|bytes| {
                let mut kept = cache_hash(self.archive, &name, &bytes).as_bytes().to_vec();
                kept.extend_from_slice(&bytes);
                shelf.put(&name, &kept)
            });
            match done {
                Ok(()) => brought += 1,
                Err(error) => tracing::warn!(name, ?error, "a segment could not be fetched ahead of its turn"),
            }
        }
        brought
    }
}

/// What streams have of `start .. end` from its start on without a hole; each stream counts up to its limit, the first that has a position gives it.
fn cover(pieces: &[PieceInfo], streams: &[(u64, u64)], start: u64, end: u64) -> Vec<(u64, u64, u64)> {
    let found = runs(pieces);
    let mut stretches = Vec::new();
    let mut at = start;
    while at < end {
        let next = streams.iter().find_map(|&(stream, limit)| {
            let run = found.iter().find(|run| run.stream == stream && run.start <= at && at < run.end.min(limit))?;
            Some((stream, at, run.end.min(limit).min(end)))
        });
        let Some(next) = next else { break };
        at = next.2;
        stretches.push(next);
    }
    stretches
}

/// The whole segments of the same timeline that a recovery will ask for next.
fn following(pieces: &[PieceInfo], size: SegmentSize, timeline: u32, number: u64) -> VecDeque<(String, u64)> {
    let found = runs(pieces);
    let is_there = |&number: &u64| {
        let (start, end) = (size.start(number).0, size.start(number + 1).0);
        found.iter().any(|run| run.stream == u64::from(timeline) && run.start <= start && end <= run.end)
    };
    let next = (number + 1..).take(AHEAD).take_while(is_there);
    next.map(|number| (WalName::Segment { timeline, number }.text(size), size.start(number).0)).collect()
}

fn cache_hash(archive: &Archive, name: &str, bytes: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(archive.place().as_bytes()).update(name.as_bytes()).update(bytes);
    hasher.finalize()
}

fn take_cached(archive: &Archive, shelf: &Shelf, name: &str) -> Option<Vec<u8>> {
    let mut kept = shelf.get(name)?;
    let bytes = kept.split_off(HASH.min(kept.len()));
    (cache_hash(archive, name, &bytes).as_bytes().as_slice() == kept).then_some(bytes)
}

/// Writes a private file whole or not at all, in place of what stands there.
fn write_whole(destination: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = destination.as_os_str().to_owned();
    temporary.push(".lifeboat");
    let temporary = PathBuf::from(temporary);
    let folder = destination.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, destination)?;
        File::open(folder)?.sync_all()
    };
    write().io_context(|| format!("write {}", destination.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(stream: u64, start: u64, end: u64) -> PieceInfo {
        PieceInfo { stream, start, end, size: 1 }
    }

    #[test]
    fn a_segment_is_put_together_from_the_timelines_that_share_it() {
        let pieces = [piece(1, 0, 16), piece(1, 16, 21), piece(2, 20, 32), piece(2, 33, 48)];
        assert_eq!(cover(&pieces, &[(1, u64::MAX)], 0, 16), [(1, 0, 16)]);
        // Streamed on timeline 2 from where it left timeline 1, at 20.
        assert_eq!(cover(&pieces, &[(2, u64::MAX), (1, 20)], 16, 32), [(1, 16, 20), (2, 20, 32)]);
        // Timeline 1 ends where it was left, however much was written behind that.
        assert_eq!(cover(&pieces, &[(1, u64::MAX), (2, 20)], 16, 32), [(1, 16, 21)]);
        assert_eq!(cover(&pieces, &[(2, u64::MAX), (1, 20)], 32, 48), []);
        assert_eq!(cover(&pieces, &[(2, u64::MAX)], 34, 48), [(2, 34, 48)]);
    }

    #[test]
    fn what_is_fetched_ahead_ends_at_a_hole() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let at = |number: u64| size.start(number).0;
        let pieces = [piece(1, at(0), at(1)), piece(1, at(1), at(3)), piece(1, at(3), at(3) + 5), piece(2, at(3), at(9))];
        let names: Vec<String> = following(&pieces, size, 1, 0).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["000000010000000000000001", "000000010000000000000002"]);
        assert_eq!(following(&pieces, size, 2, 3).len(), 5);
    }
}
