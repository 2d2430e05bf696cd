//! The log of a base backup, streamed while its files are read: however long that takes, the server has to keep little of it.
//!
//! A thread has the connection that the temporary slot belongs to and streams from it at once, because a slot that nobody streams from counts as idle. Until
//! the backup has begun nothing is kept of what comes. From then on it waits here, [`WAITING_BYTES`] of it at most, for whoever takes it segment by segment. While
//! nothing is taken the thread reads no more, but goes on to tell the server that it is there. It confirms what has come, not what is stored: the slot goes with the
//! connection, and a backup that ended early needs nothing of it.
//!
//! Where the server goes on to another timeline, so does the stream, from the beginning of the segment that holds the switch: the younger timeline's file has all of that
//! one. Whether this was the way that the backup takes is known, and judged, at its end.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use crossbeam_channel::{RecvTimeoutError, bounded};

use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::source::postgres::client::Connection;
use crate::source::postgres::fingerprint::Position;
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::replication::{LogPosition, WalEvent, start_replication};
use crate::source::postgres::wal::{Meaning, Record, SegmentSize, TimelineHistory, WalName, WalReader, Why};

/// Log that waits to be taken; one message of the server more at most.
const WAITING_BYTES: usize = 16 << 20;
/// It is kept in parts of this size, however little comes at a time.
const PART_BYTES: usize = 128 << 10;
/// The longest time until the thread hears of what it is to do.
const SLICE: Duration = Duration::from_millis(50);
/// How often the server hears that we are still there and how far its log has come; also while none of it is read.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// It is told at once when this much has come: a server that writes fast keeps no more than that for us.
const STATUS_BYTES: u64 = 1 << 20;
/// Bytes at the beginning of a segment's first page.
pub(super) const LONGEST_PAGE_HEADER: u64 = 40;

/// The log of one backup.
pub(super) struct BackupLog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    cancel: Cancel,
    segment: SegmentSize,
    /// The segment to be taken next, and the timeline that it is streamed of.
    next: u64,
    timeline: u32,
    /// What has come of it.
    bytes: Vec<u8>,
    /// Has come and is behind `bytes`.
    rest: Bytes,
    switches: Vec<Switch>,
    /// Timeline, first and last number of the segments that were taken.
    taken: Vec<(u32, u64, u64)>,
    check: Option<LogCheck>,
    goal: Option<Goal>,
}

/// The server went on to another timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Switch {
    from: u32,
    to: u32,
    at: Lsn,
}

/// Where a backup's log ends, and on which way it goes there.
struct Goal {
    way: TimelineHistory,
    end: Lsn,
}

/// What waiting brought.
pub(super) enum Waited {
    /// Some of the log.
    Log,
    /// Nothing in this time.
    Nothing,
    /// All that has come was taken, and no more will.
    Over(Error),
}

impl BackupLog {
    /// Streams through `slot`, which is this connection's, from `from` on and keeps nothing until [`Self::begin`]. `confirms`: the backup will not begin before
    /// `from`, so that the server may forget what is.
    pub(super) fn hold(
        connection: Connection,
        slot: String,
        from: LogPosition,
        confirms: bool,
        segment: SegmentSize,
        cancel: Cancel,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let worker = Worker { shared: Arc::clone(&shared), slot, segment };
        let work = move || {
            let _over = Over(&worker.shared);
            if let Err(error) = worker.stream(connection, from, confirms) {
                worker.shared.state().failed.get_or_insert(error);
            }
        };
        let thread = std::thread::Builder::new().name("backup-log".into()).spawn(work).map_err(|e| Error::io("start a thread", e))?;
        Ok(Self {
            shared,
            thread: Some(thread),
            cancel,
            segment,
            next: 0,
            timeline: 0,
            bytes: Vec::new(),
            rest: Bytes::new(),
            switches: Vec::new(),
            taken: Vec::new(),
            check: None,
            goal: None,
        })
    }

    /// From here on, and from the beginning of its segment, the log is kept. `label`: what the names of the backup's own restore points begin with.
    pub(super) fn begin(&mut self, from: LogPosition, system_identifier: u64, label: String) -> Result<()> {
        self.next = self.segment.number(from.lsn);
        self.timeline = from.timeline;
        self.check = Some(LogCheck::new(from.lsn, self.segment, system_identifier, label)?);
        let first = LogPosition { lsn: self.segment.start(self.next), timeline: from.timeline };
        self.shared.command(Command::Begin(first));
        Ok(())
    }

    /// Asks the server something on the log's own connection, for which the stream pauses.
    ///
    /// # Errors
    /// Those of `question`; what ended the stream.
    pub(super) fn ask<T: Send + 'static>(&mut self, question: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static) -> Result<T> {
        let (sender, answer) = bounded(1);
        // Nobody may be there to hear it any more.
        self.shared.command(Command::Ask(Box::new(move |connection| drop(sender.send(question(connection))))));
        loop {
            self.cancel.check()?;
            match answer.recv_timeout(Duration::from_millis(200)) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(self.failure().unwrap_or_else(over)),
            }
        }
    }

    /// What ended the stream, once.
    pub(super) fn failure(&self) -> Option<Error> {
        let mut state = self.shared.state();
        state.over.then(|| state.failed.take().unwrap_or_else(over))
    }

    /// Whether nothing comes any more.
    pub(super) fn is_over(&self) -> bool {
        self.shared.state().over
    }

    /// How far the log has come.
    pub(super) fn received(&self) -> Lsn {
        self.shared.state().received
    }

    /// Waits until there is something to take.
    pub(super) fn wait(&self, patience: Duration) -> Waited {
        let until = Instant::now() + patience;
        let mut state = self.shared.state();
        loop {
            if !state.waiting.is_empty() {
                return Waited::Log;
            }
            if state.over {
                return Waited::Over(state.failed.take().unwrap_or_else(over));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Waited::Nothing;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes what has come; where the next segment ends, once all of it has.
    ///
    /// # Errors
    /// When the server left the way; see [`Self::lead_to`].
    pub(super) fn whole(&mut self) -> Result<Option<Lsn>> {
        while self.bytes.len() < self.segment.bytes() as usize {
            if !self.arrive()? {
                return Ok(None);
            }
        }
        Ok(Some(self.next_end()))
    }

    /// Where the next segment ends.
    pub(super) fn next_end(&self) -> Lsn {
        self.segment.start(self.next + 1)
    }

    /// The log ends at `end`, and goes there along `way`.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] when what was streamed is not of this way; [`Kind::SplitBrain`] when more was taken.
    pub(super) fn lead_to(&mut self, way: TimelineHistory, end: Lsn) -> Result<()> {
        let goal = Goal { way, end };
        for switch in &self.switches {
            goal.takes(*switch)?;
        }
        for &(timeline, first, last) in &self.taken {
            let of = |number: u64| goal.way.timeline_at(Lsn(self.segment.start(number + 1).0.saturating_sub(1)));
            if of(first) != timeline || of(last) != timeline {
                let what = format!(
                    "log of timeline {timeline} was streamed, which is not on the way of timeline {} to {end}",
                    goal.way.timeline()
                );
                return Err(Error::new(Kind::Unavailable, what).hint("a failover during the backup: back up again"));
            }
        }
        let begin = self.segment.start(self.next);
        if !self.taken.is_empty() && begin > end {
            return Err(other_server(&format!("its log had come to {begin} before its tables were read at {end}")));
        }
        self.goal = Some(goal);
        Ok(())
    }

    /// Whether all of the log up to its end was taken.
    pub(super) fn is_complete(&self) -> bool {
        self.goal.as_ref().is_some_and(|goal| self.next > self.segment.number_before(goal.end))
    }

    /// Takes what has come; whether that is all which the backup needs of the next segment.
    ///
    /// # Errors
    /// As [`Self::whole`].
    pub(super) fn has_next(&mut self) -> Result<bool> {
        loop {
            let needed = self.needed();
            let is_of_the_way = self.goal.as_ref().is_none_or(|goal| {
                let last = Lsn(self.segment.start(self.next).0 + (needed as u64).saturating_sub(1));
                goal.way.timeline_at(last) == self.timeline
            });
            if is_of_the_way && self.bytes.len() >= needed {
                return Ok(true);
            }
            if !self.arrive()? {
                return Ok(false);
            }
        }
    }

    /// The next segment, which [`Self::whole`] or [`Self::has_next`] told of, and its bytes: behind the end of the log zeros.
    ///
    /// # Errors
    /// [`Kind::Bug`] when it has not come.
    pub(super) fn take(&mut self) -> Result<(WalName, Bytes)> {
        let needed = self.needed();
        let mut bytes = std::mem::take(&mut self.bytes);
        let Some(check) = self.check.as_mut().filter(|_| bytes.len() >= needed) else {
            return Err(Error::new(Kind::Bug, "a segment of the log was taken before it had come"));
        };
        // What comes after the end belongs to another moment.
        bytes.truncate(needed);
        check.pass(&bytes);
        bytes.resize(self.segment.bytes() as usize, 0);
        let (timeline, number) = (self.timeline, self.next);
        match self.taken.last_mut() {
            Some((of, _, last)) if *of == timeline => *last = number,
            _ => self.taken.push((timeline, number, number)),
        }
        self.next += 1;
        Ok((WalName::Segment { timeline, number }, bytes.into()))
    }

    /// Judges the log once all of it was taken; `position`: where the fingerprints are of. Tablespaces that its replay creates where the source has them: oid and
    /// place; and a database that it does not bring back.
    ///
    /// # Errors
    /// As [`LogCheck::finish`]; [`Kind::Bug`] before that.
    pub(super) fn finish(&self, position: &Position) -> Result<(&[(u32, String)], Option<Spoiled>)> {
        match (&self.check, &self.goal) {
            (Some(check), Some(goal)) if self.is_complete() => {
                check.finish(goal.end, position)?;
                Ok((&check.created, check.copies.spoiled()))
            }
            _ => Err(Error::new(Kind::Bug, "a base backup was finished without its log")),
        }
    }

    /// By the source's clock, when what the backup holds was committed at the latest. `None`: its log does not tell.
    pub(super) fn moment(&self) -> Option<DateTime<Utc>> {
        self.check.as_ref()?.newest
    }

    /// Bytes of the next segment that the backup needs.
    fn needed(&self) -> usize {
        let size = self.segment.bytes() as usize;
        let Some(goal) = &self.goal else { return size };
        usize::try_from(goal.end.since(self.segment.start(self.next))).unwrap_or(size).min(size)
    }

    /// Takes the next of what has come; false: nothing is there. Of a segment that is whole already, what follows it is passed over.
    fn arrive(&mut self) -> Result<bool> {
        if self.rest.is_empty() {
            match self.shared.next() {
                None => return Ok(false),
                Some(Arrived::Log(bytes)) => self.rest = bytes.into(),
                Some(Arrived::Switch(switch)) => {
                    self.switch(switch)?;
                    return Ok(true);
                }
            }
        }
        let size = self.segment.bytes() as usize;
        let room = size.saturating_sub(self.bytes.len());
        if room == 0 {
            self.rest.clear();
            return Ok(true);
        }
        if self.bytes.capacity() == 0 {
            self.bytes.reserve_exact(size);
        }
        let now = self.rest.split_to(room.min(self.rest.len()));
        self.bytes.extend_from_slice(&now);
        Ok(true)
    }

    /// The present segment comes again: it is another file on the next timeline, with the same beginning.
    fn switch(&mut self, switch: Switch) -> Result<()> {
        if self.segment.number(switch.at) != self.next || switch.from != self.timeline {
            return Err(switch.lost(None));
        }
        if let Some(goal) = &self.goal {
            goal.takes(switch)?;
        }
        self.bytes.clear();
        self.timeline = switch.to;
        self.switches.push(switch);
        Ok(())
    }
}

impl Drop for BackupLog {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Goal {
    /// Whether a switch is one of the way.
    fn takes(&self, switch: Switch) -> Result<()> {
        if self.way.left_at(switch.from) == Some(switch.at) { Ok(()) } else { Err(switch.lost(Some(self.end))) }
    }
}

impl Switch {
    fn lost(self, end: Option<Lsn>) -> Error {
        let Self { from, to, at } = self;
        let end = end.map_or_else(String::new, |end| format!("; this backup needs its log up to {end}"));
        Error::new(Kind::Unavailable, format!("the server left timeline {from} at {at} for timeline {to}{end}"))
            .hint("a failover during the backup: back up again")
    }
}

fn over() -> Error {
    Error::new(Kind::Bug, "the log of a base backup is not streamed any more")
}

/// Between the thread and whoever takes the log.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Arrived>,
    /// Bytes in `waiting`.
    held: usize,
    received: Lsn,
    command: Option<Command>,
    /// Nobody takes anything any more.
    closed: bool,
    /// The thread has ended.
    over: bool,
    failed: Option<Error>,
}

enum Arrived {
    Log(Vec<u8>),
    Switch(Switch),
}

type Question = Box<dyn FnOnce(&mut Connection) + Send>;

enum Command {
    Ask(Question),
    Begin(LogPosition),
}

/// What the thread is to do next.
enum Step {
    Read,
    /// There is no room for more.
    Wait,
    Do(Command),
    End,
}

/// Says that the thread has ended, whichever way it does.
struct Over<'a>(&'a Shared);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.over = true;
        // Whoever asked hears that nobody answers.
        state.command = None;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One at a time: the one before was done, or the thread has ended.
    fn command(&self, command: Command) {
        let mut state = self.state();
        while state.command.is_some() && !state.over {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if !state.over {
            state.command = Some(command);
        }
        self.changed.notify_all();
    }

    fn next(&self) -> Option<Arrived> {
        let mut state = self.state();
        let next = state.waiting.pop_front();
        if let Some(Arrived::Log(bytes)) = &next {
            state.held -= bytes.len();
        }
        self.changed.notify_all();
        next
    }

    /// Waits a moment while there is no room.
    fn step(&self) -> Step {
        let mut state = self.state();
        let until = Instant::now() + SLICE;
        loop {
            if state.closed {
                return Step::End;
            }
            if let Some(command) = state.command.take() {
                self.changed.notify_all();
                return Step::Do(command);
            }
            if state.held < WAITING_BYTES {
                return Step::Read;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Step::Wait;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn push(&self, mut bytes: &[u8], received: Lsn) {
        let mut state = self.state();
        state.received = received;
        state.held += bytes.len();
        while !bytes.is_empty() {
            if let Some(Arrived::Log(last)) = state.waiting.back_mut()
                && last.len() < PART_BYTES
            {
                let (now, later) = bytes.split_at(bytes.len().min(PART_BYTES - last.len()));
                last.extend_from_slice(now);
                bytes = later;
            } else {
                state.waiting.push_back(Arrived::Log(Vec::with_capacity(PART_BYTES)));
            }
        }
        self.changed.notify_all();
    }

    fn switched(&self, switch: Switch) {
        self.state().waiting.push_back(Arrived::Switch(switch));
        self.changed.notify_all();
    }
}

/// The thread's side.
struct Worker {
    shared: Arc<Shared>,
    slot: String,
    segment: SegmentSize,
}

impl Worker {
    /// Until nobody takes anything any more.
    fn stream(&self, connection: Connection, from: LogPosition, confirms: bool) -> Result<()> {
        let start = |connection, from: LogPosition| start_replication(connection, Some(&self.slot), from.lsn, from.timeline);
        let (mut stream, mut timeline) = (start(connection, from)?, from.timeline);
        // What the server may forget; 0: nothing is said of that.
        let mut confirmed = if confirms { from.lsn } else { Lsn(0) };
        let mut keeps = false;
        let mut told: Option<(Instant, Lsn)> = None;
        loop {
            let mut answer = false;
            match self.shared.step() {
                Step::End => return Ok(()),
                Step::Wait => {}
                Step::Do(command) => {
                    let mut from = LogPosition { lsn: stream.position(), timeline };
                    let mut connection = stream.stop()?;
                    match command {
                        Command::Ask(question) => question(&mut connection),
                        Command::Begin(first) => {
                            keeps = true;
                            confirmed = first.lsn;
                            from = first;
                        }
                    }
                    (stream, timeline) = (start(connection, from)?, from.timeline);
                }
                Step::Read => match stream.next(SLICE)? {
                    Some(WalEvent::Data { bytes, .. }) if keeps => {
                        confirmed = stream.position();
                        self.shared.push(&bytes, confirmed);
                    }
                    Some(WalEvent::Keepalive { reply, .. }) => answer = reply,
                    Some(WalEvent::TimelineEnd { next, at }) => {
                        let begin = if keeps { self.segment.start(self.segment.number(at)) } else { at };
                        if keeps {
                            self.shared.switched(Switch { from: timeline, to: next, at });
                        }
                        (stream, timeline) = (start(stream.stop()?, LogPosition { lsn: begin, timeline: next })?, next);
                    }
                    Some(WalEvent::End) => {
                        return Err(
                            Error::new(Kind::Unavailable, "the server stopped during the backup").hint("back up again when it runs")
                        );
                    }
                    Some(WalEvent::Data { .. }) | None => {}
                },
            }
            if answer || told.is_none_or(|(at, what)| at.elapsed() >= STATUS_EVERY || confirmed.since(what) >= STATUS_BYTES) {
                stream.status(confirmed, confirmed, Lsn(0))?;
                told = Some((Instant::now(), confirmed));
            }
        }
    }
}

/// Reads the log of a backup as it passes: it must lead to the position that the fingerprints are of, which other connections told.
struct LogCheck {
    reader: WalReader,
    label: String,
    /// Restore points of this backup: their names, and where their records end.
    points: Vec<(String, Lsn)>,
    /// Where replay begins.
    start: Lsn,
    /// Tablespaces outside the data folder whose creation is replayed: oid and place.
    created: Vec<(u32, String)>,
    copies: Copies,
    /// The newest time at which something in it was committed, or the checkpoint that it begins with was begun.
    newest: Option<DateTime<Utc>>,
}

/// What a replay copies from the files of another database, as the backup has them. The server copied them in a moment in which nothing changed them; they are
/// read before or after.
#[derive(Debug, Default)]
struct Copies {
    /// Copies and what they are of.
    made: BTreeSet<(u32, u32)>,
    /// Moved from one tablespace to another: the files are gone from where they are copied from.
    moved: BTreeSet<u32>,
    /// Changed or dropped after they were copied.
    changed: BTreeSet<u32>,
}

/// A database whose content a replay need not bring back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoiled {
    Moved { database: u32 },
    Copied { database: u32, source: u32 },
}

impl Copies {
    fn pass(&mut self, record: &Record) {
        let changed = match record.meaning {
            Meaning::CopyDatabase { database, source } if database == source => {
                self.moved.insert(database);
                None
            }
            Meaning::CopyDatabase { database, source } => {
                self.made.insert((database, source));
                None
            }
            Meaning::DropDatabase { database } => Some(database),
            _ => record.changes,
        };
        self.changed.extend(changed.filter(|changed| self.made.iter().any(|(_, source)| source == changed)));
    }

    fn spoiled(&self) -> Option<Spoiled> {
        let moved = self.moved.first().map(|database| Spoiled::Moved { database: *database });
        let copied = || self.made.iter().find(|(_, source)| self.changed.contains(source) || self.moved.contains(source));
        moved.or_else(|| copied().map(|(database, source)| Spoiled::Copied { database: *database, source: *source }))
    }
}

impl LogCheck {
    /// Of the log from the segment of `start` on.
    fn new(start: Lsn, segment: SegmentSize, system_identifier: u64, label: String) -> Result<Self> {
        let reader = WalReader::new(segment.start(segment.number(start)), segment, Some(system_identifier))?;
        Ok(Self { reader, label, points: Vec::new(), start, created: Vec::new(), copies: Copies::default(), newest: None })
    }

    /// The bytes that follow.
    fn pass(&mut self, bytes: &[u8]) {
        let Self { reader, label, points, start, created, copies, newest } = self;
        reader.push(bytes, |record| {
            if record.start >= *start {
                copies.pass(&record);
            }
            match record.meaning {
                Meaning::RestorePoint { name, .. } if name.starts_with(label.as_str()) => points.push((name, record.end)),
                Meaning::CreateTablespace { oid, location } if record.start >= *start && !location.is_empty() => {
                    created.push((oid, location));
                }
                Meaning::Commit { time, .. } | Meaning::Abort { time, .. } => *newest = (*newest).max(Some(time)),
                // In whole seconds, before the checkpoint chooses its position.
                Meaning::Checkpoint { time, .. } => *newest = (*newest).max(Some(time + TimeDelta::seconds(2))),
                _ => {}
            }
        });
    }

    /// When all of it up to `end` has passed.
    fn finish(&self, end: Lsn, position: &Position) -> Result<()> {
        match self.reader.end() {
            Some(end) if matches!(end.why, Why::OtherServer(_)) => {
                return Err(other_server(&format!("in its log at {}, {}", end.found_at, end.why)));
            }
            Some(end) => {
                let what = format!("the log that the server sent for this backup cannot be read at {}: {}", end.found_at, end.why);
                return Err(Error::new(Kind::Failed, what)
                    .hint("back up again; if that stays, look into the server's own log for what is wrong with its pg_wal"));
            }
            None => {}
        }
        let is_there = |name: &String| self.points.iter().any(|(known, at)| known == name && *at == position.lsn);
        if let Some(name) = position.restore_point.as_ref().filter(|name| !is_there(name)) {
            return Err(other_server(&format!("the restore point {name:?} that was made at {} is not in its log", position.lsn)));
        }
        // The position may be told behind the header of a page that no record has touched yet.
        if self.reader.valid_end().0 + LONGEST_PAGE_HEADER < end.0 {
            return Err(other_server(&format!(
                "no record of its log ends at {end}, where its tables were read; the last before that at {}",
                self.reader.valid_end()
            )));
        }
        Ok(())
    }
}

/// The address led to one server, and then to another one.
pub(super) fn other_server(what: &str) -> Error {
    Error::new(Kind::SplitBrain, format!("the connections of this backup led to different servers: {what}")).hint(
        "nothing was committed. Let the url lead to one server only: a name or address that moves to another one, as at a failover, must not move during a backup. Then back up again",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::test_server::TestServer;

    #[test]
    fn the_log_of_a_backup_must_lead_to_where_its_fingerprints_are_of() {
        let server = TestServer::start(&["--wal-segsize=1"], "autovacuum = off");
        let lsn = |sql: &str| server.sql(sql).parse::<Lsn>().unwrap();
        let start = lsn("SELECT pg_current_wal_insert_lsn()");
        server.sql("CREATE TABLE t AS SELECT g, repeat('x', 500) FROM generate_series(1, 4000) g");
        server.sql("SELECT pg_switch_wal()");
        server.sql("INSERT INTO t VALUES (1, 'x')");
        let point = lsn("SELECT pg_create_restore_point('lifeboat 1')");
        let insert = lsn("SELECT pg_current_wal_insert_lsn()");
        server.sql("INSERT INTO t VALUES (2, 'x')");
        server.sql("SELECT pg_switch_wal()");
        let identifier: u64 = server.sql("SELECT system_identifier FROM pg_control_system()").parse().unwrap();
        let segment = SegmentSize::new(1 << 20).unwrap();
        let read = |number: u64| {
            let name = WalName::Segment { timeline: 1, number }.text(segment);
            std::fs::read(server.data().join("pg_wal").join(name)).unwrap()
        };
        assert!(segment.number(point) > segment.number(start) + 1);
        let checked = |position: Position, end: Lsn, identifier, damaged: bool| {
            let mut check = LogCheck::new(start, segment, identifier, "lifeboat".into()).unwrap();
            for number in segment.number(start)..=segment.number_before(end) {
                let mut bytes = read(number);
                bytes.truncate(usize::try_from(end.since(segment.start(number))).unwrap().min(bytes.len()));
                if damaged && number == segment.number(start) + 1 {
                    bytes[5000..5016].iter_mut().for_each(|byte| *byte ^= 1);
                }
                // As it comes.
                bytes.chunks(7777).for_each(|some| check.pass(some));
            }
            check.finish(end, &position)
        };
        let named = |name: &str, lsn| Position { restore_point: Some(name.into()), lsn };
        let unnamed = |lsn| Position { restore_point: None, lsn };
        checked(named("lifeboat 1", point), point, identifier, false).unwrap();
        checked(unnamed(point), point, identifier, false).unwrap();
        checked(unnamed(insert), insert, identifier, false).unwrap();
        // A restore point of another server: not there, or not at this position.
        let kind = |position: Position, end, identifier, damaged| checked(position, end, identifier, damaged).unwrap_err().kind();
        assert_eq!(kind(named("lifeboat 2", point), point, identifier, false), Kind::SplitBrain);
        assert_eq!(kind(named("lifeboat 1", start), point, identifier, false), Kind::SplitBrain);
        let before = Lsn(point.0 - 8);
        assert_eq!(kind(named("lifeboat 1", point), before, identifier, false), Kind::SplitBrain);
        // In the middle of a record.
        assert_eq!(kind(unnamed(before), before, identifier, false), Kind::SplitBrain);
        assert_eq!(kind(unnamed(point), point, identifier + 1, false), Kind::SplitBrain);
        assert_eq!(kind(unnamed(point), point, identifier, true), Kind::Failed);
    }
}
