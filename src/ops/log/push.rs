//! `archive_command`: one file of `pg_wal` into the log, and those that wait behind it beside.
//!
//! It returns only when the file is durable. Segments that the server has marked as ready are sent in the same run and acknowledged in the state
//! folder, so that the server's next calls return at once. Several at a time are read, compared and sealed; they are stored one after the other: nobody
//! sees a hole in the log because a later one was quicker, and nothing is stored behind one that was refused or failed.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext, Kind, Result};
use crate::ops::backup::finish_of;
use crate::ops::log::archive::{AHEAD, Archive, Shelf, history_name, parse_any, stored_history, workers};
use crate::ops::log::fork;
use crate::ops::log::ranges::unreadable_gap;
use crate::ops::resolve::Surroundings;
use crate::repo::{Gap, Log, PieceInfo, Repository, Sealed, runs};
use crate::source::postgres::control::Control;
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::wal::{FactsReader, SegmentHeader, TimelineHistory, WalName, Why};

/// Greatest piece of the repository.
const PIECE_MAX: usize = 128 << 20;
/// What to do about a timeline that another server began under the same number.
const TAKEN: &str = "another server began a timeline of this number: stop the one of the two that is wrong. Nothing that was stored has been changed. If this server is the right one, \
     let it begin one of the next number: `lifeboat log fetch` brings the stored history into its pg_wal (docs/postgresql.md, \"The old primary is the right one\")";
/// How often a listing is taken again because pieces were replaced meanwhile.
const LISTINGS: u32 = 5;
/// Greatest segment that a server can have.
const SEGMENT_MAX: u64 = 1 << 30;

/// `lifeboat.log-push/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushReport {
    pub schema: String,
    pub plan: String,
    pub source: String,
    pub name: String,
    pub outcome: Outcome,
    /// Further segments that were stored and acknowledged beside it.
    pub ahead: u64,
}

/// What became of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Stored,
    /// The same content was stored before.
    AlreadyThere,
    /// An earlier push stored it ahead of its turn.
    Acknowledged,
    /// Recovery never asks for it: the label of a base backup.
    NotNeeded,
}

/// A segment that was stored before its turn.
#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct Ack {
    place: String,
    name: String,
    system_identifier: String,
    /// BLAKE3 of the file.
    content: String,
}

/// Stores the file at `path`; its name says what it is.
///
/// # Errors
/// `Failed` for a file that is not what its name says, `SplitBrain` for one of another cluster, with other content than what is stored, or of a server that
/// was left behind by a failover; as the store says. Nothing was stored then, and the server must keep the file.
pub fn run(archive: &Archive, path: &Path, jobs: usize, surroundings: &Surroundings) -> Result<PushReport> {
    let within = |error: Error| error.within(format!("archive {}", path.display()));
    let report = |outcome, ahead| PushReport {
        schema: "lifeboat.log-push/1".into(),
        plan: archive.plan.to_string(),
        source: archive.source.to_string(),
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        outcome,
        ahead,
    };
    let item = Item::read(path).map_err(within)?;
    if let Content::Label = item.content {
        return Ok(report(Outcome::NotNeeded, 0));
    }
    let acks = archive.folder("acks")?;
    if let Content::Segment { .. } = item.content {
        let acknowledged = acks.get(&item.name).and_then(|bytes| serde_json::from_slice::<Ack>(&bytes).ok());
        // Used or wrong, it has served.
        acks.remove(&item.name);
        if acknowledged.is_some_and(|ack| item.ack(archive).is_some_and(|own| ack == own)) {
            return Ok(report(Outcome::Acknowledged, 0));
        }
    }
    acks.clear(false);
    let repository = archive.repository.open(surroundings)?;
    let log = repository.log(&archive.plan, &archive.source);
    let pieces = log.pieces()?;
    let target = Target {
        archive,
        cluster: known_cluster(&repository, archive, &log, &pieces)?,
        log: &log,
        pieces: &pieces,
        newest: fork::newest(&log)?,
        now: surroundings.clock.now(),
    };
    let Content::Segment { header, .. } = &item.content else {
        let new = target.store(&item).map_err(within)?;
        return Ok(report(if new { Outcome::Stored } else { Outcome::AlreadyThere }, 0));
    };
    let behind: VecDeque<PathBuf> = ready_behind(path, &item.name).into_iter().take(AHEAD).collect();
    let workers = workers(jobs, header.segment).min(behind.len() + 1);
    let turns = Turns::default();
    let own = turns.next();
    let waiting = Mutex::new(behind);
    let (new, ahead) = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..workers).map(|_| scope.spawn(|| target.store_ahead(&waiting, &turns, &acks, surroundings))).collect();
        let prepared = target.prepare(&item);
        let new = own.take(|| target.commit(prepared?));
        let mut ahead = target.store_ahead(&waiting, &turns, &acks, surroundings);
        for helper in helpers {
            ahead += helper.join().unwrap_or(0);
        }
        (new, ahead)
    });
    let new = new.unwrap_or_else(|| Err(Error::new(Kind::Bug, "the first turn was not taken"))).map_err(within)?;
    Ok(report(if new { Outcome::Stored } else { Outcome::AlreadyThere }, ahead))
}

/// Who may store next. One that fails, or gives up its turn, ends it for all that come after it.
#[derive(Default)]
struct Turns {
    state: Mutex<TurnState>,
    changed: Condvar,
}

#[derive(Default)]
struct TurnState {
    given: usize,
    done: usize,
    /// The first that failed or was given up.
    ended: Option<usize>,
}

impl TurnState {
    fn end(&mut self, number: usize) {
        self.ended = Some(self.ended.map_or(number, |ended| ended.min(number)));
    }

    fn is_void(&self, number: usize) -> bool {
        self.ended.is_some_and(|ended| ended < number)
    }
}

/// One's place in the order.
struct Turn<'a> {
    turns: &'a Turns,
    number: usize,
    taken: bool,
}

impl Turns {
    /// The turn after those that were given before.
    fn next(&self) -> Turn<'_> {
        let mut state = self.lock();
        state.given += 1;
        Turn { turns: self, number: state.given - 1, taken: false }
    }

    fn have_ended(&self) -> bool {
        self.lock().ended.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, TurnState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Does it when all before are done. `None`: one before ended it.
    fn take<T>(mut self, work: impl FnOnce() -> Result<T>) -> Option<Result<T>> {
        let waits = |state: &mut TurnState| state.done < self.number && !state.is_void(self.number);
        let state = self.turns.changed.wait_while(self.turns.lock(), waits).unwrap_or_else(PoisonError::into_inner);
        if state.is_void(self.number) {
            return None;
        }
        // Nobody else has this turn.
        drop(state);
        let result = work();
        let mut state = self.turns.lock();
        state.done += 1;
        if result.is_err() {
            state.end(self.number);
        }
        drop(state);
        self.taken = true;
        self.turns.changed.notify_all();
        Some(result)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.taken {
            self.turns.lock().end(self.number);
            self.turns.changed.notify_all();
        }
    }
}

/// A file, read and found to be what its name says.
struct Item {
    name: String,
    path: PathBuf,
    bytes: Vec<u8>,
    content: Content,
}

enum Content {
    Segment {
        timeline: u32,
        header: SegmentHeader,
    },
    /// Only the valid part of it is log.
    Partial {
        timeline: u32,
        header: SegmentHeader,
    },
    History {
        history: TimelineHistory,
    },
    Label,
}

impl Item {
    fn read(path: &Path) -> Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let Some(parsed) = parse_any(&name) else {
            return Err(Error::new(Kind::Usage, format!("{name:?} is no name of a file of the log"))
                .hint("archive_command is to give the server's %p"));
        };
        let io = || format!("read {}", path.display());
        let size = fs::metadata(path).io_context(io)?.len();
        if size > SEGMENT_MAX {
            return Err(Error::new(Kind::Failed, format!("it has {size} bytes, more than any segment")));
        }
        let bytes = fs::read(path).io_context(io)?;
        let content = match parsed {
            WalName::Backup { .. } => Content::Label,
            WalName::History { timeline } => {
                let text = str::from_utf8(&bytes).map_err(|_| Error::new(Kind::Failed, "it is no text"))?;
                let history = TimelineHistory::parse(timeline, text)
                    .map_err(|e| Error::new(Kind::Failed, "it is no history of a timeline").because(e))?;
                Content::History { history }
            }
            WalName::Segment { .. } | WalName::Partial { .. } => segment(&name, &bytes)?,
        };
        Ok(Self { name, path: path.to_owned(), bytes, content })
    }

    /// What is to be on record when a whole segment is stored.
    fn ack(&self, archive: &Archive) -> Option<Ack> {
        let Content::Segment { header, .. } = &self.content else { return None };
        Some(Ack {
            place: archive.place(),
            name: self.name.clone(),
            system_identifier: header.system_identifier.to_string(),
            content: blake3::hash(&self.bytes).to_hex().to_string(),
        })
    }
}

fn segment(name: &str, bytes: &[u8]) -> Result<Content> {
    let header = SegmentHeader::read(bytes)?;
    let size = header.segment.bytes();
    if bytes.len() as u64 != u64::from(size) {
        return Err(Error::new(Kind::Failed, format!("it has {} bytes, and says that a segment has {size}", bytes.len())));
    }
    let (timeline, number, is_partial) = match WalName::parse(name, header.segment) {
        Some(WalName::Segment { timeline, number }) => (timeline, number, false),
        Some(WalName::Partial { timeline, number }) => (timeline, number, true),
        _ => return Err(Error::new(Kind::Failed, format!("a cluster with segments of {size} bytes has none of this name"))),
    };
    let start = header.segment.start(number);
    if header.position != start {
        return Err(Error::new(Kind::Failed, format!("it begins at {}, and its name says {start}", header.position)));
    }
    if header.timeline > timeline || header.timeline == 0 {
        return Err(Error::new(Kind::Failed, format!("it is of timeline {}, and its name says {timeline}", header.timeline)));
    }
    Ok(if is_partial { Content::Partial { timeline, header } } else { Content::Segment { timeline, header } })
}

/// What is ready to be stored of a file.
#[derive(Default)]
struct Prepared {
    pieces: Vec<Sealed>,
    /// The file cannot be replayed to its end.
    unreadable: Option<Gap>,
}

/// The log that things are stored in.
struct Target<'a> {
    archive: &'a Archive,
    log: &'a Log,
    /// The cluster that it is of, where that is known.
    cluster: Option<String>,
    pieces: &'a [PieceInfo],
    /// The newest timeline whose history is stored.
    newest: Option<u32>,
    now: DateTime<Utc>,
}

impl Target<'_> {
    /// `false`: it was there.
    fn store(&self, item: &Item) -> Result<bool> {
        match &item.content {
            Content::Label => Ok(false),
            Content::History { history } => {
                if let Some(found) = cluster_beside(&item.path)? {
                    self.is_of(&found)?;
                }
                self.store_ancestors(item, history)?;
                let new = self
                    .log
                    .put_side(&history_name(history.timeline())?, &item.bytes)
                    .map_err(|error| if error.kind() == Kind::SplitBrain { error.hint(TAKEN) } else { error })?;
                if new {
                    self.tell_forks(history);
                }
                Ok(new)
            }
            Content::Segment { .. } | Content::Partial { .. } => self.commit(self.prepare(item)?),
        }
    }

    /// Stores the histories of a timeline's ancestors that are not stored and lie beside its own: a server that was promoted archives those that it has come by only where it
    /// archived then.
    fn store_ancestors(&self, item: &Item, history: &TimelineHistory) -> Result<()> {
        for (before, ancestor) in history.ancestors().iter().enumerate().filter(|(_, ancestor)| ancestor.timeline > 1) {
            let name = history_name(ancestor.timeline)?;
            let beside = item.path.with_file_name(name.as_str());
            if stored_history(self.log, ancestor.timeline)?.is_some() || !beside.is_file() {
                continue;
            }
            match Item::read(&beside) {
                Ok(Item { content: Content::History { history: own }, bytes, .. }) if own.ancestors() == &history.ancestors()[..before] => {
                    self.log.put_side(&name, &bytes)?;
                }
                // What the younger one says of it is given to whoever asks.
                Ok(_) => tracing::warn!("{} is not on the way to {}: it is not stored", beside.display(), item.name),
                Err(error) => tracing::warn!(?error, "{} cannot be read: it is not stored", beside.display()),
            }
        }
        Ok(())
    }

    /// Everything but storing it: whether it may be stored, and its pieces. Other files have none.
    fn prepare(&self, item: &Item) -> Result<Prepared> {
        let (Content::Segment { timeline, header } | Content::Partial { timeline, header }) = &item.content else {
            return Ok(Prepared::default());
        };
        self.may_be_stored(item, *timeline, header)?;
        let reader = || FactsReader::new(header.position, header.segment, header.system_identifier);
        let mut bytes = item.bytes.as_slice();
        if let Content::Partial { .. } = item.content {
            // What lies behind its last record was never part of this timeline.
            let valid = reader()?.take(*timeline, bytes).valid_to.since(header.position);
            bytes = &bytes[..usize::try_from(valid).unwrap_or(usize::MAX).min(bytes.len())];
        }
        self.compare(*timeline, header.position, bytes)?;
        let mut reader = reader()?;
        let seal = |part: &[u8]| {
            let start = reader.position();
            let facts = serde_json::to_value(reader.take(*timeline, part))
                .map_err(|error| Error::new(Kind::Bug, "encode the facts of a piece of log").because(error))?;
            self.log.seal(u64::from(*timeline), start.0, start.0 + part.len() as u64, &facts, part)
        };
        let pieces = bytes.chunks(PIECE_MAX).map(seal).collect::<Result<_>>()?;
        let end = header.position.plus(bytes.len() as u64);
        // A partial segment ends where it can be read.
        let stops = reader.end().filter(|end| end.why == Why::Minimal || matches!(item.content, Content::Segment { .. }));
        Ok(Prepared { pieces, unreadable: stops.map(|stop| unreadable_gap(*timeline, stop, end, self.now)) })
    }

    /// `false`: it was there. Streamed pieces of it stay: they know the server's clock, which a file does not.
    fn commit(&self, prepared: Prepared) -> Result<bool> {
        let mut is_new = false;
        for sealed in prepared.pieces {
            is_new |= self.log.put(sealed)?.new;
        }
        if let Some(gap) = prepared.unreadable {
            self.log.record_gap(&gap)?;
            tracing::error!(source = %self.archive.source, "{}", gap.reason);
        }
        Ok(is_new)
    }

    /// Whether other pieces that have some of this stretch have the same: a server that was set back by an old copy of its disk goes another way on
    /// the same timeline. One of exactly this stretch is compared when it is stored. Asks for nothing where nothing else is stored of it.
    fn compare(&self, timeline: u32, start: Lsn, bytes: &[u8]) -> Result<()> {
        let end = start.0.saturating_add(bytes.len() as u64);
        let overlaps = |piece: &PieceInfo| piece.stream == u64::from(timeline) && piece.start < end && start.0 < piece.end;
        let mut pieces: Vec<PieceInfo> = self.pieces.iter().copied().filter(overlaps).collect();
        let mut listings = 1;
        'again: loop {
            let found = runs(&pieces);
            for piece in found.iter().flat_map(|run| &run.pieces).filter(|piece| (piece.start, piece.end) != (start.0, end)) {
                match self.log.agrees(piece, start.0, bytes) {
                    Ok(true) => {}
                    Ok(false) => return Err(went_another_way(timeline, piece)),
                    // A larger one has taken its place.
                    Err(error) if error.kind() == Kind::NotFound && listings < LISTINGS => {
                        listings += 1;
                        pieces = self.log.pieces()?.into_iter().filter(overlaps).collect();
                        continue 'again;
                    }
                    // This one has what it had.
                    Err(error) if error.kind() == Kind::Damaged => tracing::warn!(?error, "a stored piece of the log cannot be compared"),
                    Err(error) => return Err(error),
                }
            }
            return Ok(());
        }
    }

    fn is_of(&self, found: &str) -> Result<()> {
        match &self.cluster {
            Some(known) if known != found => Err(Error::new(
                Kind::SplitBrain,
                format!("it is of the cluster with system identifier {found}; source {} is of {known}", self.archive.source),
            )
            .hint(
                "another server archives under this plan, or the cluster was made anew: give each a source of its own. Nothing was stored",
            )),
            _ => Ok(()),
        }
    }

    /// Whether its cluster and timelines are right. The history of its timeline is stored before it.
    fn may_be_stored(&self, item: &Item, timeline: u32, header: &SegmentHeader) -> Result<()> {
        self.is_of(&header.system_identifier.to_string())?;
        fork::left_behind(self.log, self.newest, "it", timeline, header.position)?;
        let history = self.history(item, timeline)?;
        let expected = history.timeline_at(header.position);
        if header.timeline != expected {
            return Err(Error::new(
                Kind::Failed,
                format!("it begins on timeline {}; by the history of timeline {timeline} that must be {expected}", header.timeline),
            ));
        }
        Ok(())
    }

    /// A failover whose old primary went on: `status` tells it until there is a backup behind it, and the server's own log does now. Nothing of this may
    /// hold up the new primary.
    fn tell_forks(&self, history: &TimelineHistory) {
        match fork::forks(self.log, self.pieces, history) {
            Ok(forks) => {
                for fork::Fork { timeline, left_at, to, newest } in forks {
                    tracing::warn!(
                        "timeline {newest} left the way of timeline {timeline} at {left_at}, and log of that one is stored up to {to}: the old primary went on after the failover"
                    );
                }
            }
            Err(error) => tracing::warn!(?error, "whether the old primary went on after this failover is not known"),
        }
    }

    fn history(&self, item: &Item, timeline: u32) -> Result<TimelineHistory> {
        if timeline == 1 {
            return Ok(TimelineHistory::first(1));
        }
        if let Some(text) = stored_history(self.log, timeline)? {
            return TimelineHistory::parse(timeline, &text);
        }
        let name = history_name(timeline)?;
        let beside = item.path.with_file_name(name.as_str());
        let history = Item::read(&beside).map_err(|error| {
            Error::new(Kind::Failed, format!("the history of its timeline {timeline} is not stored, and not beside it"))
                .because(error)
                .hint(format!("push {name} first: without it nobody can recover onto this timeline"))
        })?;
        self.store(&history)?;
        match history.content {
            Content::History { history } => Ok(history),
            _ => Err(Error::new(Kind::Bug, "a history file was read as something else")),
        }
    }

    /// Stores and acknowledges what waits; what fails, and what waits behind it, is left for its call.
    fn store_ahead(&self, waiting: &Mutex<VecDeque<PathBuf>>, turns: &Turns, acks: &Shelf, surroundings: &Surroundings) -> u64 {
        let next = || {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            // Both at once: turns are in the order of the files.
            waiting.pop_front().map(|path| (path, turns.next()))
        };
        let mut stored = 0;
        while !surroundings.cancel.is_cancelled()
            && !turns.have_ended()
            && let Some((path, turn)) = next()
        {
            let prepared = Item::read(&path).and_then(|item| {
                let ack = item.ack(self.archive).ok_or_else(|| Error::new(Kind::Bug, "only whole segments are sent ahead"))?;
                let ack = serde_json::to_vec(&ack).map_err(|error| Error::new(Kind::Bug, "encode an acknowledgement").because(error))?;
                Ok((item.name.clone(), ack, self.prepare(&item)?))
            });
            let done = turn.take(|| {
                let (name, ack, prepared) = prepared?;
                self.commit(prepared)?;
                acks.put(&name, &ack)
            });
            match done {
                Some(Ok(())) => stored += 1,
                Some(Err(error)) => {
                    tracing::warn!(path = %path.display(), ?error, "a segment that waits could not be sent ahead of its turn");
                }
                None => break,
            }
        }
        stored
    }
}

/// What is stored of a timeline and what a server has of it differ.
fn went_another_way(timeline: u32, stored: &PieceInfo) -> Error {
    Error::new(
        Kind::SplitBrain,
        format!(
            "another content is stored of it, from {} to {} of timeline {timeline} (split brain): this server was set back, as by an old copy of its disk, or two servers write this log",
            Lsn(stored.start),
            Lsn(stored.end)
        ),
    )
    .hint(
        "stop the server that is wrong. Nothing was stored and nothing was changed. If this one is the right one now, recover it so that it begins a timeline of its own \
         (docs/postgresql.md, \"The old primary is the right one\"), or give the source a new name",
    )
}

/// Whole segments behind this one that the server has marked as ready, in order.
fn ready_behind(path: &Path, name: &str) -> Vec<PathBuf> {
    let ready = |item: fs::DirEntry| {
        let file = item.file_name().to_str()?.strip_suffix(".ready")?.to_owned();
        let is_whole = matches!(parse_any(&file), Some(WalName::Segment { .. }));
        (is_whole && file.as_str() > name).then(|| path.with_file_name(file))
    };
    let status = path.with_file_name("archive_status");
    let mut found: Vec<PathBuf> = fs::read_dir(status).into_iter().flatten().flatten().filter_map(ready).collect();
    found.sort();
    found
}

/// The cluster whose data folder the file lies in; `None` where it lies elsewhere.
fn cluster_beside(path: &Path) -> Result<Option<String>> {
    // By the words of the path: pg_wal may be a link.
    let Some(data) = path.parent().and_then(Path::parent) else { return Ok(None) };
    let control = data.join("global/pg_control");
    let mut tries = 0;
    loop {
        let bytes = match fs::read(&control) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("read {}", control.display()), error)),
        };
        match Control::parse(&bytes) {
            Ok(control) => return Ok(Some(control.system_identifier.to_string())),
            // The server was writing it.
            Err(error) if error.kind() == Kind::Damaged && tries < 20 => tries += 1,
            Err(error) => return Err(error),
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// The cluster that the log is of: of its newest piece, else of the newest snapshot.
fn known_cluster(repository: &Repository, archive: &Archive, log: &Log, pieces: &[PieceInfo]) -> Result<Option<String>> {
    let identifier = |value: &serde_json::Value| value.get("system_identifier").and_then(|id| id.as_str()).map(str::to_owned);
    for piece in pieces.iter().rev() {
        match log.facts(piece) {
            Ok(facts) => match identifier(&facts) {
                Some(found) => return Ok(Some(found)),
                None => {
                    return Err(Error::new(Kind::Damaged, "a stored piece of log does not say which cluster it is of")
                        .hint("run `lifeboat verify`"));
                }
            },
            Err(error) if matches!(error.kind(), Kind::Damaged | Kind::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    let (manifests, _) = repository.sound_manifests(Some(&archive.plan))?;
    let of = |record: &crate::repo::SourceRecord| {
        (record.name == archive.source).then(|| finish_of(record).ok()).flatten().and_then(|finish| identifier(&finish.consistency))
    };
    Ok(manifests.iter().rev().flat_map(|manifest| &manifest.sources).find_map(of))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    /// Who did what in turn, when these are ready in the opposite order, and number `wrong` fails or gives up.
    fn in_turn(count: usize, wrong: Option<(usize, bool)>) -> Vec<usize> {
        let (turns, done, at_once) = (Turns::default(), Mutex::new(Vec::new()), AtomicUsize::new(0));
        let given: Vec<Turn> = (0..count).map(|_| turns.next()).collect();
        std::thread::scope(|scope| {
            for turn in given {
                scope.spawn(|| {
                    let turn = turn;
                    let number = turn.number;
                    std::thread::sleep(Duration::from_millis(5 * (count - number) as u64));
                    if wrong == Some((number, false)) {
                        return;
                    }
                    let result = turn.take(|| {
                        assert_eq!(at_once.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::sleep(Duration::from_millis(1));
                        at_once.fetch_sub(1, Ordering::SeqCst);
                        done.lock().unwrap().push(number);
                        if wrong == Some((number, true)) { Err(Error::new(Kind::Unavailable, "the store is away")) } else { Ok(()) }
                    });
                    assert_eq!(result.is_none(), wrong.is_some_and(|(wrong, _)| wrong < number), "{number}");
                });
            }
        });
        done.into_inner().unwrap()
    }

    #[test]
    fn segments_are_stored_in_their_order_and_none_behind_one_that_was_not() {
        assert_eq!(in_turn(6, None), [0, 1, 2, 3, 4, 5]);
        assert_eq!(in_turn(6, Some((2, true))), [0, 1, 2]);
        assert_eq!(in_turn(6, Some((4, false))), [0, 1, 2, 3]);
        assert!(in_turn(3, Some((0, false))).is_empty());
    }
}
