//! The continuous log of a server: reserved by a slot, streamed, cut into pieces and handed to a [`LogSink`].
//!
//! What is confirmed to the server is what the sink took, never more: so whatever ends here (this process, the connection, the store), the
//! server still has what is not stored. A stream begins at the start of a unit (a segment), also where some of it is stored already: then the
//! rest follows it, and the whole of it is known when it ends. What the server sends again is compared with what is stored: a primary that
//! was set back (an old copy of its disk) and has written past our end since, on the same timeline, sends something else. Where hardly anything
//! of the unit is stored the stream begins one unit earlier for that, if the server still has it.
//!
//! The source's clock comes from SQL: the clock is asked before the position, so whatever was committed before is in the log up to there. What a
//! stream's own messages say is the other way round.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::source::postgres::backup::Facts;
use crate::source::postgres::client::{Connection, Mode, sqlstate};
use crate::source::postgres::conninfo::Settings;
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::replication::{self, SlotStatus, WalEvent, WalStream};
use crate::source::postgres::wal::history::TimelineHistory;
use crate::source::postgres::wal::{End, FactsReader, PieceFacts, SegmentSize};

/// Small pieces come at most this often, and so long after the first byte of one.
const PIECE_EVERY: Duration = Duration::from_secs(1);
const GATHER: Duration = Duration::from_millis(250);
/// So many small pieces are put together to a larger one, and so many of those again.
const PUT_TOGETHER: usize = 32;
/// A segment is one piece, unless it is larger than this.
pub const UNIT_BYTES_MAX: u64 = 64 << 20;
/// How often the server is asked for a sign of life, and how long it may be silent.
const PING_EVERY: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_mins(1);
/// How often clock and position are asked for, more often while log waits to be stored (how far back what is recoverable ends is known so exactly), and how
/// the slot is.
const CLOCK_EVERY: Duration = Duration::from_secs(1);
const BUSY_CLOCK_EVERY: Duration = Duration::from_millis(250);
const SLOT_EVERY: Duration = Duration::from_secs(10);
/// A question on the side that is not answered in time must not hold up the log.
const ASIDE_LIMIT: Duration = Duration::from_secs(5);
const ASIDE_PAUSE: Duration = Duration::from_secs(10);
/// Pauses before a stream is started again.
const BACKOFF: Range<Duration> = Duration::from_secs(1)..Duration::from_mins(1);
/// A slot that another run has just begun to make reserves its log within this.
const SLOT_PATIENCE: Duration = Duration::from_secs(5);
/// Restore points that are told of one piece.
const RESTORE_POINTS_MAX: usize = 256;
/// So much of what is stored must be sent again for it to tell two logs apart: there is a record in it for sure.
const OVERLAP_LEAST: u64 = 2 * PAGE;
/// What to do about a server that a failover left behind.
const NOT_THE_PRIMARY: &str = "let the url lead to the server that was promoted; if this one was brought back on purpose, recover it so that it begins a timeline of its own";
/// A position that is told behind the header of a page on which nothing was written yet.
const PAGE: u64 = 8192;
const PAGE_HEADERS: [u64; 2] = [24, 40];

/// A piece of log to be stored.
#[derive(Debug)]
pub struct LogPiece<'a> {
    pub timeline: u32,
    pub start: Lsn,
    pub end: Lsn,
    pub bytes: &'a [u8],
    pub facts: &'a PieceFacts,
    /// It has all that was stored of this stretch before: smaller pieces inside may go.
    pub replaces: bool,
}

/// What is stored already.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Of the cluster that the log is of.
    pub system_identifier: Option<u64>,
    /// Timeline, start and end of stretches without a hole, by timeline and start.
    pub stretches: Vec<(u32, Lsn, Lsn)>,
    /// The newest timeline whose history is stored, also where nothing of that one's own log is.
    pub newest: Option<TimelineHistory>,
    /// All whose history is stored.
    pub histories: BTreeSet<u32>,
}

impl Known {
    /// The history of a timeline is stored now: if it is the newest, the log goes on along it.
    fn goes_on(&mut self, history: &TimelineHistory) {
        let is_newer = self.newest.as_ref().is_none_or(|newest| newest.timeline() < history.timeline());
        if is_newer && !history.ancestors().is_empty() {
            self.newest = Some(history.clone());
        }
    }

    /// Refuses what a server wrote on a timeline up to `end`, where the way to the newest one left it before that.
    fn not_left_behind(&self, timeline: u32, end: Lsn) -> Result<()> {
        let last = Lsn(end.0.saturating_sub(1));
        let Some((newest, parting)) = self.newest.as_ref().and_then(|newest| Some((newest, newest.parted(timeline, last)?))) else {
            return Ok(());
        };
        Err(Error::new(
            Kind::SplitBrain,
            format!(
                "the server is on timeline {timeline} at {end}, but the stored log goes on along timeline {}, which left timeline {} at {}: this is not the primary any more",
                newest.timeline(),
                parting.from,
                parting.at
            ),
        )
        .hint(NOT_THE_PRIMARY))
    }
}

/// Where the log goes. What returns `Ok` is durable.
pub trait LogSink {
    /// What is there: asked whenever a stream begins.
    ///
    /// # Errors
    /// When that is not known: then nothing is streamed.
    fn known(&mut self) -> Result<Known>;

    /// Stores a piece.
    ///
    /// # Errors
    /// The stream begins again later and brings the piece again.
    fn piece(&mut self, piece: &LogPiece<'_>) -> Result<()>;

    /// Compares what the server sends once more from here on with the pieces that are stored of it.
    ///
    /// # Errors
    /// [`Kind::SplitBrain`] where something else is stored; when that cannot be found out.
    fn same(&mut self, timeline: u32, start: Lsn, bytes: &[u8]) -> Result<()>;

    /// Stores a history file. One with another content under the same name must be refused.
    ///
    /// # Errors
    /// As [`LogSink::piece`].
    fn history(&mut self, name: &str, content: &[u8]) -> Result<()>;

    /// Records that a stretch cannot be had from the server any more.
    ///
    /// # Errors
    /// As [`LogSink::piece`].
    fn gap(&mut self, timeline: u32, from: Lsn, to: Lsn, reason: &str) -> Result<()>;

    /// Records that the log, which is stored as it came up to `to`, cannot be replayed behind this end. Called again and again for the same one.
    ///
    /// # Errors
    /// As [`LogSink::piece`].
    fn unreadable(&mut self, timeline: u32, end: &End, to: Lsn) -> Result<()>;

    /// How it stands. Called often; must be quick and must not fail the stream.
    fn state(&mut self, state: &StreamState);
}

/// How a stream stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamState {
    pub connected: bool,
    pub timeline: u32,
    /// What is stored ends here.
    pub durable_to: Lsn,
    /// What the server has written, as far as is known.
    pub server_end: Lsn,
    /// Whatever was committed before this moment of the source's clock is stored.
    pub server_clock: Option<DateTime<Utc>>,
    /// Newest commit in what was stored since the stream began.
    pub newest_commit: Option<DateTime<Utc>>,
    /// What the slot holds back on the server.
    pub held_bytes: Option<u64>,
    /// What may still be written before the slot may be lost; `None`: no limit is set, or not known.
    pub safe_bytes: Option<u64>,
    pub wal_status: Option<String>,
    /// Why it does not stream now.
    pub error: Option<String>,
}

/// What to do about an error before the stream is started again.
pub enum Again {
    /// After this pause.
    After(Duration),
    /// Not at all.
    Never,
}

/// The log of one server.
pub struct LogStream {
    pub settings: Settings,
    /// Name of the permanent physical slot.
    pub slot: String,
    pub cancel: Cancel,
}

/// The name of the slot of a plan's source: what a server allows, and never that of another plan or source.
#[must_use]
pub fn slot_name(plan: &str, source: &str) -> String {
    let plain =
        |text: &str| -> String { text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect() };
    let (is_plain, name) = (
        |text: &str| !text.is_empty() && !text.contains('_') && plain(text) == text,
        format!("lifeboat_{}_{}", plain(plan), plain(source)),
    );
    if name.len() <= 63 && is_plain(plan) && is_plain(source) {
        return name;
    }
    // Letters were changed or cut: two names could have become one.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in plan.bytes().chain([0]).chain(source.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{}_{:08x}", &name[..name.len().min(54)], (hash >> 32) ^ (hash & 0xffff_ffff))
}

/// Creates the permanent slot where it is missing or has lost its log: from then on the server keeps it. `true`: it was created.
///
/// # Errors
/// What the server says, as when all slots are taken; [`Kind::Usage`] when there is another kind of slot under the name.
pub fn ensure_slot(settings: &Settings, slot: &str, cancel: &Cancel) -> Result<bool> {
    let mut sql = Connection::connect(settings, Mode::Sql { database: None }, cancel)?;
    let found = replication::slot_by_sql(&mut sql, slot)?;
    if let Some(status) = &found {
        check_slot(status, slot)?;
        // A stream that uses it makes it again itself.
        if status.is_active || !is_lost(status) {
            return Ok(false);
        }
    }
    let mut connection = Connection::connect(settings, Mode::Replication, cancel)?;
    if found.is_some() {
        match replication::drop_slot(&mut connection, slot, false) {
            // A stream was quicker.
            Err(error) if !matches!(error.kind(), Kind::NotFound | Kind::Busy) => return Err(error),
            _ => {}
        }
    }
    let (created, _) = make_slot(&mut connection, &mut sql, slot, cancel)?;
    Ok(created)
}

/// Creates the permanent slot, unless another run makes it in the same moment: a first backup and a stream that begins both miss it.
/// Whether this one did, and from where on the server keeps the log.
fn make_slot(connection: &mut Connection, sql: &mut Connection, slot: &str, cancel: &Cancel) -> Result<(bool, Lsn)> {
    let created = match replication::create_physical_slot(connection, slot, false) {
        Ok(()) => true,
        Err(error) if error.kind() == Kind::AlreadyExists => false,
        Err(error) => return Err(no_slot(error)),
    };
    let until = Instant::now() + SLOT_PATIENCE;
    loop {
        if let Some(status) = replication::slot_by_sql(sql, slot)? {
            check_slot(&status, slot)?;
            if let Some(restart) = status.restart {
                return Ok((created, restart));
            }
        }
        // The other one's shows before it reserves any log.
        if created || Instant::now() >= until {
            return Err(Error::new(Kind::Failed, format!("the new replication slot {slot} reserves no log")));
        }
        cancel.check()?;
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

fn no_slot(error: Error) -> Error {
    if error.hint_text().is_some() {
        return error;
    }
    error.hint("the server needs a free one of max_replication_slots, and the role REPLICATION")
}

fn check_slot(status: &SlotStatus, slot: &str) -> Result<()> {
    if status.is_physical && !status.is_temporary {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, format!("stream the log: the server has a slot {slot} of another kind"))
        .hint("it is not lifeboat's: see pg_replication_slots; drop it if nothing uses it"))
}

fn is_lost(status: &SlotStatus) -> bool {
    status.restart.is_none() || status.wal_status.as_deref() == Some("lost")
}

/// The server no longer had what was to come next.
struct Recycled {
    said: String,
    /// In a row.
    times: u32,
}

fn is_recycled(error: &Error) -> bool {
    sqlstate(error) == Some("58P01")
}

/// How a session ended without an error.
enum Ended {
    Stopped,
    /// The server takes its leave.
    ServerStops,
    /// The server no longer has what comes next.
    Recycled(Error),
}

impl LogStream {
    /// Streams until cancelled. `failed` hears of every error and decides.
    ///
    /// # Errors
    /// The one after which `failed` said [`Again::Never`].
    pub fn run(&self, sink: &mut dyn LogSink, mut failed: impl FnMut(&Error, Again) -> Again) -> Result<()> {
        let mut pause = BACKOFF.start;
        let mut state = StreamState::default();
        let mut recycled: Option<Recycled> = None;
        let mut look_back = true;
        loop {
            let stored = state.durable_to;
            let mut looks_back = look_back;
            let ended = match Session::begin(self, sink, &mut state, recycled.as_ref(), &mut looks_back) {
                Ok(mut session) => session.run(),
                Err(error) if is_recycled(&error) => Ok(Ended::Recycled(error)),
                Err(error) => Err(error),
            };
            if looks_back && matches!(ended, Ok(Ended::Recycled(_))) {
                // It lacks what is stored, and not necessarily what comes next.
                look_back = false;
                continue;
            }
            let progressed = state.connected && state.durable_to != stored;
            if state.connected && progressed {
                recycled = None;
                look_back = true;
            }
            state.connected = false;
            let error = match ended {
                _ if self.cancel.is_cancelled() => {
                    sink.state(&state);
                    return Ok(());
                }
                Ok(Ended::Stopped) => return Ok(()),
                Ok(Ended::Recycled(error)) => {
                    // Looked into at once, with what the server still has.
                    let times = recycled.as_ref().map_or(1, |before| before.times + 1);
                    recycled = Some(Recycled { said: told(&error), times });
                    if times <= 2 {
                        continue;
                    }
                    error
                }
                Ok(Ended::ServerStops) => Error::new(Kind::Unavailable, "the server stops and has ended the stream of its log"),
                Err(error) => error,
            };
            if progressed {
                pause = BACKOFF.start;
            }
            let permanent = matches!(error.kind(), Kind::SplitBrain | Kind::WrongKey | Kind::Bug);
            state.error = Some(told(&error));
            sink.state(&state);
            match failed(&error, if permanent { Again::Never } else { Again::After(pause) }) {
                Again::Never => return Err(error),
                Again::After(pause) => {
                    let until = Instant::now() + pause;
                    while Instant::now() < until && !self.cancel.is_cancelled() {
                        std::thread::sleep(Duration::from_millis(100).min(until.saturating_duration_since(Instant::now())));
                    }
                }
            }
            pause = (pause * 2).min(BACKOFF.end);
        }
    }
}

/// An error with its causes, in a line.
fn told(error: &Error) -> String {
    std::iter::once(error.to_string()).chain(error.causes()).collect::<Vec<_>>().join(": ")
}

/// Where a stream begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    timeline: u32,
    /// Start of a unit.
    start: Lsn,
    /// Stored without a hole from `start` (or before) to here.
    durable: Lsn,
}

impl Position {
    /// Where what is missing begins, also where the unit that it is in was stored from within only: segments may have got another size.
    fn behind_what_is_stored(self, known: &Known) -> Self {
        let later = known.stretches.iter().filter(|(timeline, start, _)| *timeline == self.timeline && *start >= self.durable);
        Self { durable: later.map(|(_, _, end)| *end).fold(self.durable, Lsn::max), ..self }
    }
}

/// Where the stored log goes on, on the way to the server's timeline. `None`: none of it is on that way. Pure.
fn resume(known: &Known, history: &TimelineHistory, unit: u64) -> Result<Option<Position>> {
    if let Some((newest, ..)) = known.stretches.last()
        && *newest > history.timeline()
    {
        return Err(Error::new(
            Kind::SplitBrain,
            format!(
                "the server is on timeline {}, but the log is on timeline {newest} already: this is not the primary any more",
                history.timeline()
            ),
        )
        .hint(NOT_THE_PRIMARY));
    }
    let mut way: Vec<u32> = history.ancestors().iter().map(|ancestor| ancestor.timeline).collect();
    way.push(history.timeline());
    for (index, timeline) in way.iter().copied().enumerate().rev() {
        let left_at = history.left_at(timeline);
        // What was written behind the switch, by an old primary, is on no way to here.
        let counts = |start: Lsn| left_at.is_none_or(|left_at| start < left_at);
        let stretch = known.stretches.iter().rev().find(|(stored, start, _)| *stored == timeline && counts(*start));
        let Some((_, start, end)) = stretch.copied() else { continue };
        let Some(left_at) = left_at.filter(|left_at| end >= *left_at) else {
            let begin = Lsn(end.0 - end.0 % unit);
            return Ok(Some(Position { timeline, start: begin, durable: if start <= begin { end } else { begin } }));
        };
        // All of this timeline that counts is there: on with the next, from the unit in which it was left.
        let begin = Lsn(left_at.0 - left_at.0 % unit);
        return Ok(Some(Position { timeline: way[index + 1], start: begin, durable: begin }));
    }
    Ok(None)
}

/// Where to begin so that the server sends enough of what is stored again: one unit earlier where hardly anything of the unit is. Pure.
fn with_overlap(known: &Known, from: Position, unit: u64) -> Position {
    let earlier = from.start.0.saturating_sub(unit);
    let stored =
        known.stretches.iter().any(|(timeline, start, end)| *timeline == from.timeline && start.0 <= earlier && *end >= from.durable);
    if from.durable.since(from.start) < OVERLAP_LEAST && earlier < from.start.0 && stored {
        return Position { start: Lsn(earlier), ..from };
    }
    from
}

/// What is missing between two positions, timeline by timeline. Pure.
fn missing(history: &TimelineHistory, from: Position, to: Lsn) -> Vec<(u32, Lsn, Lsn)> {
    let mut found = Vec::new();
    let mut at = from.durable;
    let later = history.ancestors().iter().filter(|ancestor| ancestor.timeline >= from.timeline);
    for (timeline, end) in later.map(|ancestor| (ancestor.timeline, ancestor.left_at)).chain([(history.timeline(), Lsn(u64::MAX))]) {
        let end = end.min(to);
        if at < end {
            found.push((timeline, at, end));
            at = end;
        }
    }
    found
}

/// Questions on the side.
struct Aside {
    connection: Option<Connection>,
    tried: Instant,
}

impl Aside {
    /// A position of the primary and the moment before it was asked for; `None` on a standby, which cannot tell.
    fn clock(&mut self, stream: &LogStream) -> Option<(DateTime<Utc>, Lsn)> {
        const SQL: &str = "SELECT floor(extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint, \
                           CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL ELSE pg_catalog.pg_current_wal_insert_lsn() END";
        let rows = self.ask(stream, |connection| connection.query(SQL))?;
        let row = rows.first()?;
        let clock = DateTime::from_timestamp_micros(row.get(0)?.parse().ok()?)?;
        Some((clock, without_page_header(row.get(1)?.parse().ok()?)))
    }

    fn slot(&mut self, stream: &LogStream) -> Option<SlotStatus> {
        self.ask(stream, |connection| replication::slot_by_sql(connection, &stream.slot)).flatten()
    }

    fn ask<T>(&mut self, stream: &LogStream, question: impl Fn(&mut Connection) -> Result<T>) -> Option<T> {
        if self.connection.is_none() {
            if self.tried.elapsed() < ASIDE_PAUSE {
                return None;
            }
            self.tried = Instant::now();
            let mut settings = stream.settings.clone();
            settings.connect_timeout = settings.connect_timeout.min(ASIDE_LIMIT);
            self.connection = Connection::connect(&settings, Mode::Sql { database: None }, &stream.cancel).ok();
            if let Some(connection) = &mut self.connection {
                connection.set_timeout(ASIDE_LIMIT);
            }
        }
        match question(self.connection.as_mut()?) {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::warn!(error = ?error, "the server did not say how far its log is");
                (self.connection, self.tried) = (None, Instant::now());
                None
            }
        }
    }
}

/// Nothing was written behind the header of a page: the log ends before it.
pub(super) fn without_page_header(lsn: Lsn) -> Lsn {
    if PAGE_HEADERS.contains(&(lsn.0 % PAGE)) { Lsn(lsn.0 - lsn.0 % PAGE) } else { lsn }
}

/// A small piece of the unit that is stored.
struct Small {
    start: Lsn,
    level: u32,
    facts: PieceFacts,
}

/// One connection's worth of streaming.
struct Session<'a> {
    stream: &'a LogStream,
    sink: &'a mut dyn LogSink,
    state: &'a mut StreamState,
    known: Known,
    segment: SegmentSize,
    unit: u64,
    system_identifier: u64,
    wal: Option<WalStream>,
    aside: Aside,
    timeline: u32,
    /// Of the unit that fills.
    start: Lsn,
    bytes: Vec<u8>,
    durable: Lsn,
    /// What was stored up to here is sent again and not compared yet.
    unchecked: Option<Lsn>,
    facts: FactsReader,
    /// Of all that `facts` was fed with of this unit.
    unit_facts: Option<PieceFacts>,
    smalls: Vec<Small>,
    /// Clock and position that were asked for and are not stored up to yet, oldest first.
    clocks: Vec<(DateTime<Utc>, Lsn)>,
    pending_since: Option<Instant>,
    stored_at: Instant,
}

impl<'a> Session<'a> {
    /// Connects, and starts where the log ends; with `recycled`, where what the server still has begins. `look_back`: whether it may begin
    /// a unit earlier, and then whether it does.
    fn begin(
        stream: &'a LogStream,
        sink: &'a mut dyn LogSink,
        state: &'a mut StreamState,
        recycled: Option<&Recycled>,
        look_back: &mut bool,
    ) -> Result<Self> {
        let may_look_back = std::mem::replace(look_back, false) && recycled.is_none();
        let mut sql = Connection::connect(&stream.settings, Mode::Sql { database: None }, &stream.cancel)?;
        sql.set_timeout(SILENCE);
        let facts = Facts::read(&mut sql)?;
        if facts.wal_level == "minimal" {
            return Err(Error::new(Kind::Usage, "stream the log: wal_level is minimal, this log does not make a copy whole")
                .hint("set wal_level = replica in postgresql.conf and restart the server"));
        }
        let mut connection = Connection::connect(&stream.settings, Mode::Replication, &stream.cancel)?;
        let identity = replication::identify_system(&mut connection)?;
        let mut known = sink.known()?;
        if let Some(ours) = known.system_identifier
            && ours != identity.system_identifier
        {
            return Err(Error::new(
                Kind::SplitBrain,
                format!(
                    "the server is of another cluster (system identifier {}) than the log and the backups (system identifier {ours})",
                    identity.system_identifier
                ),
            )
            .hint("nothing was stored. Let the url lead to the right server; a new cluster needs a plan or a source of another name"));
        }
        known.not_left_behind(identity.timeline, without_page_header(identity.position))?;
        let unit = u64::from(facts.segment.bytes()).min(UNIT_BYTES_MAX);
        let history = history(&mut connection, sink, &known.histories, identity.timeline)?;
        known.goes_on(&history);
        let mut from = resume(&known, &history, unit)?;
        if let Some(from) = &from
            && from.timeline == identity.timeline
            && identity.position < from.durable
        {
            let behind = format!(
                "the server's log ends at {}, before what is stored of timeline {}, which ends at {}",
                identity.position, from.timeline, from.durable
            );
            return Err(if facts.in_recovery {
                Error::new(Kind::Unavailable, behind).hint("a standby that is behind: the stream goes on when it has caught up")
            } else {
                Error::new(Kind::SplitBrain, behind)
                    .hint("the server was set back, as by an old copy of its disk. Recover it so that it begins a timeline of its own; nothing that was stored has been changed")
            });
        }
        let slot = replication::slot_by_sql(&mut sql, &stream.slot)?;
        if let Some(slot) = &slot {
            check_slot(slot, &stream.slot)?;
        }
        let usable = slot.as_ref().filter(|slot| !is_lost(slot));
        // A slot that holds no more than what the server said it lacks is of no use.
        let too_old = |restart: Lsn| recycled.is_some_and(|recycled| recycled.times > 1 || from.is_none_or(|from| restart <= from.durable));
        let restart = if let Some(restart) = usable.and_then(|slot| slot.restart).filter(|restart| !too_old(*restart)) {
            restart
        } else {
            if from.is_some() {
                let what = if slot.is_some() { "lost its log" } else { "is gone" };
                tracing::warn!(slot = stream.slot, "the replication slot {what}: it is made again");
            }
            if slot.is_some() {
                replication::drop_slot(&mut connection, &stream.slot, false)?;
            }
            make_slot(&mut connection, &mut sql, &stream.slot, &stream.cancel)?.1
        };
        let oldest = Lsn(restart.0 - restart.0 % u64::from(facts.segment.bytes()));
        let at_oldest = Position { timeline: history.timeline_at(restart), start: oldest, durable: oldest };
        if let (Some(before), Some(recycled)) = (from, recycled) {
            let before = before.behind_what_is_stored(&known);
            let reason = format!("the server no longer had it: {}", recycled.said);
            for (timeline, start, end) in missing(&history, before, oldest) {
                sink.gap(timeline, start, end, &reason)?;
            }
            from = Some(at_oldest);
        }
        let mut from = from.unwrap_or(at_oldest);
        if may_look_back {
            let earlier = with_overlap(&known, from, unit);
            *look_back = earlier != from;
            from = earlier;
        }
        // A server that was recovered to an earlier position in its place does not have what it had in an earlier session.
        state.server_end = without_page_header(identity.position);
        // What is asked from here on must not hold up the log, nor hide that the server is silent.
        sql.set_timeout(ASIDE_LIMIT);
        let aside = Aside { connection: Some(sql), tried: Instant::now() };
        let mut session = Self {
            stream,
            known,
            segment: facts.segment,
            unit,
            system_identifier: identity.system_identifier,
            wal: None,
            aside,
            timeline: from.timeline,
            start: from.start,
            bytes: Vec::new(),
            durable: from.durable,
            unchecked: (from.durable > from.start).then_some(from.durable),
            facts: FactsReader::new(from.start, facts.segment, identity.system_identifier)?,
            unit_facts: None,
            smalls: Vec::new(),
            clocks: Vec::new(),
            pending_since: None,
            stored_at: Instant::now(),
            sink,
            state,
        };
        session.connect(connection)?;
        Ok(session)
    }

    fn connect(&mut self, connection: Connection) -> Result<()> {
        let started = replication::start_replication(connection, Some(&self.stream.slot), self.start, self.timeline);
        self.wal = Some(started.map_err(|error| self.explain_busy(error))?);
        self.state.connected = true;
        self.state.error = None;
        self.state.timeline = self.timeline;
        self.state.durable_to = self.durable;
        self.state.server_end = self.state.server_end.max(self.durable);
        self.sink.state(self.state);
        Ok(())
    }

    /// Where the slot is in use, who that may be. How far the log is stored is known all the same.
    fn explain_busy(&mut self, error: Error) -> Error {
        if sqlstate(&error) != Some("55006") {
            return error;
        }
        let error = Error::new(
            Kind::Busy,
            format!(
                "another `lifeboat serve` or `log stream` streams this log (from another state folder or host), or another program does, or the server takes an earlier session of \
                 this one for alive: the replication slot {} is in use",
                self.stream.slot
            ),
        )
        .because(error)
        .hint("one stream of a source is enough: end this one or the other; SELECT * FROM pg_stat_replication on the server tells who it is (a session that is gone ends after wal_sender_timeout)");
        self.state.error = Some(told(&error));
        (self.state.timeline, self.state.durable_to) = (self.timeline, self.durable);
        error
    }

    fn wal(&mut self) -> Result<&mut WalStream> {
        self.wal.as_mut().ok_or_else(|| Error::new(Kind::Bug, "the log stream has ended already"))
    }

    fn received(&self) -> Lsn {
        self.start.plus(self.bytes.len() as u64)
    }

    fn run(&mut self) -> Result<Ended> {
        let ended = self.stream_on();
        // What has come is kept, whoever ended it: it may be all that is left of a server.
        let kept = self.store_new();
        self.sink.state(self.state);
        match ended {
            Err(error) if self.stream.cancel.is_cancelled() && error.kind() == Kind::Interrupted => kept.map(|()| Ended::Stopped),
            Err(error) if is_recycled(&error) => Ok(Ended::Recycled(error)),
            Err(error) => Err(error),
            Ok(ended) => kept.map(|()| ended),
        }
    }

    fn stream_on(&mut self) -> Result<Ended> {
        let (mut heard, mut pinged) = (Instant::now(), Instant::now());
        let (mut asked_clock, mut asked_slot) = (None::<Instant>, None::<Instant>);
        loop {
            if self.stream.cancel.is_cancelled() {
                return Ok(Ended::Stopped);
            }
            match self.wal()?.next(GATHER)? {
                Some(event) => {
                    heard = Instant::now();
                    match event {
                        WalEvent::Data { server_end, bytes, .. } => {
                            self.state.server_end = self.state.server_end.max(server_end);
                            self.take(&bytes)?;
                        }
                        WalEvent::Keepalive { end, reply, .. } => {
                            self.state.server_end = self.state.server_end.max(end);
                            if reply {
                                self.confirm(false)?;
                            }
                        }
                        WalEvent::TimelineEnd { next, at } => {
                            self.next_timeline(next, at)?;
                            pinged = Instant::now();
                        }
                        WalEvent::End => return Ok(Ended::ServerStops),
                    }
                }
                None if heard.elapsed() > SILENCE => {
                    return Err(Error::new(Kind::Unavailable, format!("the server has been silent for {} s", SILENCE.as_secs())));
                }
                None => {}
            }
            if self.pending_since.is_some_and(|since| since.elapsed() >= GATHER) && self.stored_at.elapsed() >= PIECE_EVERY {
                self.store_new()?;
                self.confirm(false)?;
                self.sink.state(self.state);
                // A store that takes its time is not the server's silence.
                heard = Instant::now();
            }
            let clock_every = if self.pending_since.is_some() { BUSY_CLOCK_EVERY } else { CLOCK_EVERY };
            if asked_clock.is_none_or(|asked| asked.elapsed() >= clock_every) {
                asked_clock = Some(Instant::now());
                if let Some((clock, end)) = self.aside.clock(self.stream) {
                    self.state.server_end = self.state.server_end.max(end);
                    self.clocks.push((clock, end));
                }
                if asked_slot.is_none_or(|asked| asked.elapsed() >= SLOT_EVERY) {
                    asked_slot = Some(Instant::now());
                    if let Some(slot) = self.aside.slot(self.stream) {
                        self.state.held_bytes = slot.held_bytes;
                        self.state.safe_bytes = slot.safe_bytes.map(|bytes| u64::try_from(bytes).unwrap_or(0));
                        self.state.wal_status = slot.wal_status;
                    }
                }
                self.settle_clocks();
                self.sink.state(self.state);
            }
            if pinged.elapsed() >= PING_EVERY {
                pinged = Instant::now();
                self.confirm(true)?;
            }
        }
    }

    /// Which moments are stored completely now.
    fn settle_clocks(&mut self) -> Option<DateTime<Utc>> {
        let durable = self.durable;
        let settled = self.clocks.iter().filter(|(_, end)| *end <= durable).map(|(clock, _)| *clock).max();
        self.clocks.retain(|(_, end)| *end > durable);
        // The newest moments of a server that is far ahead say enough.
        let surplus = self.clocks.len().saturating_sub(4096);
        self.clocks.drain(..surplus);
        self.state.server_clock = self.state.server_clock.max(settled);
        settled
    }

    fn confirm(&mut self, ping: bool) -> Result<()> {
        let (received, durable) = (self.received().max(self.durable), self.durable);
        let wal = self.wal()?;
        if ping { wal.ping(received, durable, durable) } else { wal.status(received, durable, durable) }
    }

    /// Bytes that have come.
    fn take(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = usize::try_from(self.unit).unwrap_or(usize::MAX) - self.bytes.len();
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.bytes.extend_from_slice(now);
            bytes = rest;
            if self.unchecked.is_some() && (self.bytes.len() as u64 == self.unit || self.unchecked.is_some_and(|to| self.received() >= to))
            {
                self.compare()?;
            }
            if self.received() > self.durable {
                self.pending_since.get_or_insert_with(Instant::now);
            }
            if self.bytes.len() as u64 == self.unit {
                self.store_unit()?;
                self.confirm(false)?;
                self.start = self.received();
                self.bytes.clear();
                self.begin_unit()?;
            }
        }
        Ok(())
    }

    /// What came again is what is stored: before anything is stored or confirmed behind it.
    fn compare(&mut self) -> Result<()> {
        let Some(to) = self.unchecked else { return Ok(()) };
        let end = to.min(self.received());
        let length = usize::try_from(end.since(self.start)).unwrap_or(usize::MAX).min(self.bytes.len());
        self.sink.same(self.timeline, self.start, &self.bytes[..length])?;
        if end >= to {
            self.unchecked = None;
        }
        Ok(())
    }

    fn begin_unit(&mut self) -> Result<()> {
        self.unit_facts = None;
        self.smalls.clear();
        if self.facts.end().is_some() || self.facts.position() != self.start {
            self.facts = FactsReader::new(self.start, self.segment, self.system_identifier)?;
        }
        Ok(())
    }

    /// Reads on up to a position and yields the facts of what is new.
    fn read_facts(&mut self, to: Lsn) -> PieceFacts {
        let span = |from: Lsn| usize::try_from(from.since(self.start)).unwrap_or(usize::MAX);
        let range = span(self.facts.position()).min(span(to))..span(to);
        let facts = self.facts.take(self.timeline, &self.bytes[range]);
        match &mut self.unit_facts {
            Some(all) => join(all, &facts),
            None => self.unit_facts = Some(facts.clone()),
        }
        facts
    }

    /// The moment that everything up to the piece's end is of.
    fn stored(&mut self, end: Lsn, last_commit: Option<DateTime<Utc>>) {
        self.durable = self.durable.max(end);
        self.pending_since = None;
        self.stored_at = Instant::now();
        self.state.durable_to = self.durable;
        self.state.server_end = self.state.server_end.max(self.durable);
        self.state.newest_commit = last_commit.or(self.state.newest_commit);
        self.settle_clocks();
    }

    /// The newest moment at which no more than this was written.
    fn clock_at(&self, end: Lsn) -> Option<DateTime<Utc>> {
        self.clocks.iter().filter(|(_, at)| *at <= end).map(|(clock, _)| *clock).max().max(self.state.server_clock)
    }

    /// What is new since the last piece, as a small one.
    fn store_new(&mut self) -> Result<()> {
        let (from, end) = (self.durable, self.received());
        // Nothing is stored behind what has not been compared, or is not the same.
        if end <= from || self.unchecked.is_some() {
            return Ok(());
        }
        if self.facts.position() < from {
            self.read_facts(from);
        }
        let mut facts = self.read_facts(end);
        facts.server_clock = self.clock_at(end);
        self.put(from, end, &facts, false)?;
        self.tell_unreadable(end)?;
        self.stored(end, facts.last_commit);
        self.smalls.push(Small { start: from, level: 0, facts });
        self.put_together(end)
    }

    /// Many small pieces become a larger one, so that a log that fills slowly does not become countless objects.
    fn put_together(&mut self, end: Lsn) -> Result<()> {
        while let Some(level) = self.smalls.last().map(|small| small.level) {
            let count = self.smalls.iter().rev().take_while(|small| small.level == level).count();
            if count < PUT_TOGETHER {
                break;
            }
            let parts = self.smalls.split_off(self.smalls.len() - count);
            let mut parts = parts.into_iter();
            let Some(first) = parts.next() else { break };
            let mut facts = first.facts;
            parts.for_each(|part| join(&mut facts, &part.facts));
            self.put(first.start, end, &facts, true)?;
            self.smalls.push(Small { start: first.start, level: level + 1, facts });
        }
        Ok(())
    }

    /// All that has come of this unit, as one piece.
    fn store_unit(&mut self) -> Result<()> {
        let end = self.received();
        if end <= self.start {
            return Ok(());
        }
        if self.facts.position() < end {
            self.read_facts(end);
        }
        let Some(mut facts) = self.unit_facts.clone() else { return Ok(()) };
        facts.server_clock = self.clock_at(end);
        self.put(self.start, end, &facts, true)?;
        self.tell_unreadable(end)?;
        self.stored(end, facts.last_commit);
        Ok(())
    }

    /// Before it is confirmed: the server would send it again.
    fn tell_unreadable(&mut self, to: Lsn) -> Result<()> {
        self.facts.end().map_or(Ok(()), |end| self.sink.unreadable(self.timeline, end, to))
    }

    fn put(&mut self, start: Lsn, end: Lsn, facts: &PieceFacts, replaces: bool) -> Result<()> {
        // It may have stood exactly where it was left when the stream began.
        self.known.not_left_behind(self.timeline, end)?;
        let at = |lsn: Lsn| usize::try_from(lsn.since(self.start)).unwrap_or(usize::MAX);
        let bytes = &self.bytes[at(start)..at(end)];
        self.sink.piece(&LogPiece { timeline: self.timeline, start, end, bytes, facts, replaces })
    }

    /// The server went on with another timeline: its history, the exact end of this one, then the next from the start of that unit.
    fn next_timeline(&mut self, next: u32, at: Lsn) -> Result<()> {
        tracing::info!(timeline = self.timeline, next, at = %at, "the server's timeline ends");
        if at != self.received() {
            return Err(Error::new(Kind::Damaged, format!("the timeline ends at {at}, but its stream ended at {}", self.received())));
        }
        let wal = self.wal.take().ok_or_else(|| Error::new(Kind::Bug, "the log stream has ended already"))?;
        let mut connection = wal.stop()?;
        let history = history(&mut connection, self.sink, &self.known.histories, next)?;
        self.known.goes_on(&history);
        self.compare()?;
        self.unchecked = None;
        self.store_unit()?;
        self.timeline = next;
        self.start = Lsn(at.0 - at.0 % self.unit);
        self.durable = self.start;
        self.bytes.clear();
        self.facts = FactsReader::new(self.start, self.segment, self.system_identifier)?;
        self.pending_since = None;
        self.clocks.clear();
        self.begin_unit()?;
        self.connect(connection)
    }
}

/// Fetches and stores the history of a timeline, before anything of it is stored; and those of its ancestors that are not `stored`, as where several failovers came while nobody
/// streamed.
fn history(connection: &mut Connection, sink: &mut dyn LogSink, stored: &BTreeSet<u32>, timeline: u32) -> Result<TimelineHistory> {
    if timeline == 1 {
        return Ok(TimelineHistory::first(1));
    }
    let file = match replication::timeline_history(connection, timeline) {
        Ok(file) => file,
        // A log that was begun anew by hand has none.
        Err(error) if sqlstate(&error) == Some("58P01") => return Ok(TimelineHistory::first(timeline)),
        Err(error) => return Err(error),
    };
    let history = TimelineHistory::parse(timeline, &String::from_utf8_lossy(&file.content))?;
    for ancestor in history.ancestors().iter().map(|ancestor| ancestor.timeline).filter(|one| *one > 1 && !stored.contains(one)) {
        match replication::timeline_history(connection, ancestor) {
            Ok(file) => {
                TimelineHistory::parse(ancestor, &String::from_utf8_lossy(&file.content))?;
                sink.history(&file.file_name, &file.content)?;
            }
            // Who asks for it gets what that of its descendant says.
            Err(error) if sqlstate(&error) == Some("58P01") => {
                tracing::info!(timeline = ancestor, "the server has no history of this timeline any more");
            }
            Err(error) => return Err(error),
        }
    }
    sink.history(&file.file_name, &file.content)?;
    Ok(history)
}

/// Facts of a piece and the one that follows it.
fn join(all: &mut PieceFacts, next: &PieceFacts) {
    all.first_commit = all.first_commit.or(next.first_commit);
    all.last_commit = next.last_commit.or(all.last_commit);
    let room = RESTORE_POINTS_MAX.saturating_sub(all.restore_points.len());
    all.restore_points.extend(next.restore_points.iter().take(room).cloned());
    all.server_clock = all.server_clock.max(next.server_clock);
    all.valid_to = all.valid_to.max(next.valid_to);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(stretches: &[(u32, u64, u64)]) -> Known {
        Known {
            system_identifier: None,
            stretches: stretches.iter().map(|&(timeline, start, end)| (timeline, Lsn(start), Lsn(end))).collect(),
            newest: None,
            histories: BTreeSet::new(),
        }
    }

    fn position(timeline: u32, start: u64, durable: u64) -> Position {
        Position { timeline, start: Lsn(start), durable: Lsn(durable) }
    }

    #[test]
    fn a_stream_goes_on_where_the_log_ends_on_the_servers_way() {
        let first = TimelineHistory::first(1);
        let resumed = |stretches: &[(u32, u64, u64)], history: &TimelineHistory| resume(&known(stretches), history, 16).unwrap();
        assert_eq!(resumed(&[], &first), None);
        assert_eq!(resumed(&[(1, 0, 16), (1, 32, 53)], &first), Some(position(1, 48, 53)));
        assert_eq!(resumed(&[(1, 32, 48)], &first), Some(position(1, 48, 48)));
        assert_eq!(resumed(&[(1, 50, 53)], &first), Some(position(1, 48, 48)), "what is before 50 in the segment is not there");
        let third = TimelineHistory::parse(3, "1\t0/40\tx\n2\t0/65\tx\n").unwrap();
        assert_eq!(resumed(&[(1, 32, 53)], &third), Some(position(1, 48, 53)));
        assert_eq!(resumed(&[(1, 32, 64)], &third), Some(position(2, 64, 64)));
        assert_eq!(
            resumed(&[(1, 32, 99)], &third),
            Some(position(2, 64, 64)),
            "what the old primary wrote behind the switch is not on the way"
        );
        assert_eq!(resumed(&[(1, 32, 64), (2, 64, 101)], &third), Some(position(3, 96, 96)));
        assert_eq!(resumed(&[(1, 32, 64), (2, 64, 101), (3, 96, 97)], &third), Some(position(3, 96, 97)));
        assert_eq!(resume(&known(&[(2, 64, 80)]), &first, 16).unwrap_err().kind(), Kind::SplitBrain);
    }

    #[test]
    fn a_server_that_the_newest_timeline_left_behind_is_refused_before_anything_of_that_one_is_stored() {
        let two = Known { newest: Some(TimelineHistory::parse(2, "1\t0/500\tx\n").unwrap()), ..known(&[(1, 0, 0x400)]) };
        for (timeline, end) in [(1, 0x400), (1, 0x500), (2, 0x500), (2, 0x900), (3, 0x900)] {
            two.not_left_behind(timeline, Lsn(end)).unwrap();
        }
        let error = two.not_left_behind(1, Lsn(0x501)).unwrap_err();
        assert_eq!(error.kind(), Kind::SplitBrain);
        assert!(error.to_string().contains("along timeline 2, which left timeline 1 at 0/500"), "{error}");
        // Until it begins a timeline of its own.
        let mut own = two;
        own.goes_on(&TimelineHistory::first(3));
        own.not_left_behind(1, Lsn(0x501)).unwrap_err();
        own.goes_on(&TimelineHistory::parse(3, "1\t0/700\tx\n").unwrap());
        own.not_left_behind(1, Lsn(0x700)).unwrap();
        own.not_left_behind(1, Lsn(0x701)).unwrap_err();
        known(&[(1, 0, 0x400)]).not_left_behind(1, Lsn(0x501)).unwrap();
    }

    #[test]
    fn a_stream_begins_earlier_where_too_little_would_come_again_to_compare() {
        let unit = 1 << 20;
        let begin =
            |stretches: &[(u32, u64, u64)], start, durable| with_overlap(&known(stretches), position(1, start, durable), unit).start.0;
        let two = 2 * unit;
        assert_eq!(begin(&[(1, 0, two)], two, two), unit);
        assert_eq!(begin(&[(1, 0, two + 100)], two, two + 100), unit);
        assert_eq!(begin(&[(1, 0, two + (1 << 16))], two, two + (1 << 16)), two);
        assert_eq!(begin(&[(1, unit + 1, two)], two, two), two, "not all of the unit before is stored");
        assert_eq!(begin(&[(2, 0, two)], two, two), two, "it is of another timeline");
        assert_eq!(begin(&[(1, 0, 7)], 0, 7), 0);
    }

    #[test]
    fn what_is_missing_is_told_timeline_by_timeline() {
        let third = TimelineHistory::parse(3, "1\t0/40\tx\n2\t0/65\tx\n").unwrap();
        let gaps = |from, to: u64| missing(&third, from, Lsn(to)).into_iter().map(|(t, a, b)| (t, a.0, b.0)).collect::<Vec<_>>();
        assert_eq!(gaps(position(1, 48, 53), 112), [(1, 53, 64), (2, 64, 101), (3, 101, 112)]);
        assert_eq!(gaps(position(3, 96, 97), 112), [(3, 97, 112)]);
        assert_eq!(gaps(position(1, 48, 53), 60), [(1, 53, 60)]);
        assert_eq!(gaps(position(1, 48, 53), 53), []);
        // Stored with smaller segments: from within the unit on.
        let stored = known(&[(1, 20, 30), (1, 50, 60)]);
        assert_eq!(position(1, 48, 48).behind_what_is_stored(&stored), position(1, 48, 60));
        assert_eq!(position(1, 48, 60).behind_what_is_stored(&stored), position(1, 48, 60));
        assert_eq!(position(2, 48, 48).behind_what_is_stored(&stored), position(2, 48, 48));
    }

    #[test]
    fn names_of_slots_are_the_servers_and_differ() {
        assert_eq!(slot_name("crm", "db"), "lifeboat_crm_db");
        let long = "x".repeat(64);
        let pairs =
            [("crm.a", "db"), ("crm-a", "db"), ("crm_a", "db"), ("crm", "a_db"), ("CRM", "db"), (&long, "a"), (&long, "b"), ("crm", "db")];
        let names: std::collections::BTreeSet<String> = pairs.iter().map(|(plan, source)| slot_name(plan, source)).collect();
        assert_eq!(names.len(), pairs.len(), "{names:?}");
        for name in names {
            assert!(name.len() <= 63 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{name}");
        }
    }

    #[test]
    fn an_untouched_page_is_no_log() {
        assert_eq!(without_page_header(Lsn(8192 + 24)), Lsn(8192));
        assert_eq!(without_page_header(Lsn((16 << 20) + 40)), Lsn(16 << 20));
        assert_eq!(without_page_header(Lsn(8192 + 32)), Lsn(8192 + 32));
    }
}
