//! A thin blocking client for PostgreSQL's protocol: log in, simple queries, COPY both ways, and nothing lost on the way.
//!
//! *Every* answer is read up to `ReadyForQuery` before something counts as done: an error after the last row or the last byte of a
//! COPY is an error. Whoever leaves an answer half read gets no second one from that connection.

mod failure;
mod login;
mod tls;
mod transport;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::IsNull;
use postgres_protocol::message::backend::{DataRowBody, ErrorResponseBody, Header, Message, RowDescriptionBody};
use postgres_protocol::message::frontend::{self, BindError};

use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::source::postgres::client::transport::Transport;
use crate::source::postgres::conninfo::Settings;

pub(in crate::source::postgres) use failure::is_broken;
pub use failure::{ServerError, server_error, sqlstate};
pub use login::server_certificate;
pub(in crate::source::postgres) use login::session_options;

/// The server's own limit for one message.
const MESSAGE_BYTES: usize = 1 << 30;
/// Waiting for the answer to a cancel request, which is only sent as a courtesy.
const CANCEL_LIMIT: Duration = Duration::from_secs(3);
/// COPY data is sent in messages of about this size.
const COPY_BYTES: usize = 64 * 1024;
/// A longer message of COPY data, which is one wide row, is handed out in pieces as it arrives.
const WHOLE_BYTES: usize = 256 * 1024;
/// For statements that may say nothing for long although all is well (counting rows, checking or building an index): so a server that hangs ends the run at
/// last.
pub(in crate::source::postgres) const LONG_SILENCE: Duration = Duration::from_hours(24);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode<'a> {
    /// SQL in this database, else in that of the settings, else in the one named like the user.
    Sql { database: Option<&'a str> },
    /// Physical replication: the commands of the manual's "Streaming Replication Protocol".
    Replication,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// Answers of a command are still to be read.
    Busy,
    /// Nothing more can be said.
    Broken,
}

/// A session of one server. Dropping it ends the session.
pub struct Connection {
    transport: Transport,
    settings: Settings,
    parameters: BTreeMap<String, String>,
    version: u32,
    /// Process id and secret, for cancel requests.
    backend: (i32, i32),
    replication: bool,
    timeout: Duration,
    state: State,
    /// In a COPY from the server: bytes that are still to come of a message that is handed out in pieces.
    rest: Option<usize>,
    /// Warnings of the server, since somebody wants them.
    warnings: Option<Warnings>,
    takes_options: bool,
}

/// What a server warned of while it did something.
#[derive(Debug, Default)]
pub struct Warnings {
    /// The first [`MOST_WARNINGS`] of them.
    pub first: Vec<ServerError>,
    /// How many more there were.
    pub more: u64,
}

/// More are counted only.
const MOST_WARNINGS: usize = 1000;

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("settings", &self.settings).field("state", &self.state).finish_non_exhaustive()
    }
}

/// What a server sends in the course of a command.
pub(crate) enum Incoming {
    Message(Message),
    /// `CopyBothResponse`, which `postgres_protocol` does not know.
    CopyBoth,
    /// A part of a long message of COPY data, only after [`Connection::copy_out`].
    Piece(Piece),
}

/// COPY data as it arrives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// 256 KiB at most.
    pub bytes: Bytes,
    /// Whether the server's message ends with it (for text and CSV: the line).
    pub ends: bool,
}

/// The same as in the start-up message, for what did not take that or did not pass it on (a pooler), each with the version that it came with; what limits the transaction
/// that says so comes first. And what row security would hide is an error: content that is only a part must not pass for the whole.
const UNLIMITED_SINCE: [(u32, &str); 6] = [
    (170_000, "SET transaction_timeout = 0"),
    (0, "SET statement_timeout = 0"),
    (140_000, "SET idle_session_timeout = 0"),
    (0, "SET idle_in_transaction_session_timeout = 0"),
    (0, "SET lock_timeout = 0"),
    (0, "SET row_security = off"),
];

/// Text is sent and taken as UTF-8.
const TEXT: &str = "UTF8";
/// Bytes are not converted on the way.
const RAW: &str = "SQL_ASCII";

impl Warnings {
    fn add(&mut self, said: ServerError) {
        if said.severity != "WARNING" {
            return;
        }
        if self.first.len() == MOST_WARNINGS {
            self.more += 1;
        } else {
            self.first.push(said);
        }
    }
}

/// What is said at the beginning of a session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Greeting {
    /// That nothing limits this session.
    patient: bool,
    /// `client_encoding`.
    encoding: &'static str,
}

impl Connection {
    /// Connects and logs in. `cancel` interrupts this and everything that is done with the connection later.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] when nobody answers in time; [`Kind::Usage`] when TLS, certificate, login or database are not as they
    /// must be; [`Kind::Interrupted`].
    pub fn connect(settings: &Settings, mode: Mode<'_>, cancel: &Cancel) -> Result<Self> {
        let until = Instant::now() + settings.connect_timeout;
        let mut greeting = Greeting { patient: true, encoding: TEXT };
        let mut connection = loop {
            match Self::logged_in(settings, mode, cancel, until, greeting) {
                // An older server, or a pooler, that does not know what it is told at the beginning.
                Err(error) if greeting.patient && matches!(sqlstate(&error), Some("42704" | "08P01")) => greeting.patient = false,
                // A database whose encoding (MULE_INTERNAL) is not converted to UTF-8.
                Err(error) if greeting.encoding == TEXT && sqlstate(&error) == Some("0A000") => greeting.encoding = RAW,
                other => break other?,
            }
        };
        connection.version = version_number(connection.parameter("server_version").unwrap_or_default()).ok_or_else(|| {
            Error::new(Kind::Failed, format!("what answers at {settings} does not say its version"))
                .hint("Is it PostgreSQL, without a pooler?")
        })?;
        connection.state = State::Ready;
        if let Mode::Sql { .. } = mode {
            // What the server, the database or the role say of statements is meant for applications; the time-outs here are our own.
            let known = UNLIMITED_SINCE.iter().filter(|(since, _)| connection.version >= *since).map(|(_, setting)| *setting);
            let encoding = if connection.is_raw() { RAW } else { TEXT };
            connection.execute(&format!("{}; SET client_encoding = '{encoding}'", known.collect::<Vec<_>>().join("; ")))?;
        }
        Ok(connection)
    }

    fn logged_in(settings: &Settings, mode: Mode<'_>, cancel: &Cancel, until: Instant, greeting: Greeting) -> Result<Self> {
        let (transport, proof) = login::open(settings, cancel, until)?;
        let mut connection = Self {
            transport,
            settings: settings.clone(),
            parameters: BTreeMap::new(),
            version: 0,
            backend: (0, 0),
            replication: mode == Mode::Replication,
            timeout: settings.timeout,
            state: State::Broken,
            rest: None,
            warnings: None,
            takes_options: false,
        };
        login::log_in(&mut connection, mode, proof, until, greeting)?;
        Ok(connection)
    }

    /// As the server's `server_version_num`: 150020 for 15.20.
    #[must_use]
    pub fn server_version(&self) -> u32 {
        self.version
    }

    /// Whether the database says nothing of its encoding (`SQL_ASCII`), or it is none that UTF-8 is made of (`MULE_INTERNAL`): rows are shown as well as they
    /// can be, `COPY` yields the bytes as they are.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        matches!(self.parameter("server_encoding"), Some("SQL_ASCII" | "MULE_INTERNAL"))
    }

    /// The encoding that the database's text is kept in, where it is another one than UTF-8: for `COPY … (ENCODING …)`, because some of its characters may
    /// have no equivalent in UTF-8. `None`: UTF-8, or `SQL_ASCII`, whose bytes are sent as they are.
    #[must_use]
    pub(in crate::source::postgres) fn other_encoding(&self) -> Option<&str> {
        self.parameter("server_encoding").filter(|name| !matches!(*name, "UTF8" | "SQL_ASCII"))
    }

    /// What the server reports of itself without being asked (`server_version`, `in_hot_standby`, `client_encoding`, …).
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// From now on the server's warnings are kept.
    pub(crate) fn keep_warnings(&mut self) {
        self.warnings = Some(Warnings::default());
    }

    /// What the server warned of since [`Self::keep_warnings`]; they are not kept any more.
    pub(crate) fn take_warnings(&mut self) -> Warnings {
        self.warnings.take().unwrap_or_default()
    }

    /// Where it is connected to.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The server's process for this session (`pg_stat_activity.pid`).
    #[must_use]
    pub fn backend_process(&self) -> i32 {
        self.backend.0
    }

    /// How long the server may be silent in the middle of an answer.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Runs SQL by the simple protocol and yields the rows, as text. Of several statements, the rows of the last one that has any.
    ///
    /// # Errors
    /// The server's error ([`sqlstate`] tells which), also when it comes after rows; text that is not UTF-8, unless the database is
    /// [raw](Self::is_raw); a lost connection.
    pub fn query(&mut self, sql: &str) -> Result<Vec<Row>> {
        self.query_at_most(sql, usize::MAX).map(|(rows, _)| rows)
    }

    /// As [`Self::query`], but keeps no more than the first `most` rows, whatever the server sends; and says how many there were.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub fn query_at_most(&mut self, sql: &str, most: usize) -> Result<(Vec<Row>, u64)> {
        self.begin(sql)?;
        let raw = self.is_raw();
        let (mut rows, mut count) = (Vec::new(), 0);
        let mut names: Arc<[String]> = Arc::from([]);
        let mut failed = None;
        while let Some(incoming) = self.next_of_answer(&mut failed)? {
            match incoming {
                Incoming::Message(Message::RowDescription(body)) => {
                    rows.clear();
                    count = 0;
                    names = column_names(&body).map_err(|error| self.confused(error))?;
                }
                Incoming::Message(Message::DataRow(_)) if rows.len() == most => count += 1,
                Incoming::Message(Message::DataRow(body)) => match Row::new(names.clone(), &body, raw) {
                    Ok(row) => {
                        rows.push(row);
                        count += 1;
                    }
                    Err(error) => {
                        failed.get_or_insert(error);
                    }
                },
                Incoming::Message(Message::CommandComplete(_) | Message::EmptyQueryResponse) => {}
                Incoming::Message(Message::CopyInResponse(_)) => {
                    self.refuse_copy(&mut failed)?;
                }
                Incoming::Message(Message::CopyOutResponse(_)) => {
                    failed.get_or_insert_with(|| Error::new(Kind::Bug, "a query turned out to be a COPY"));
                }
                Incoming::Message(Message::CopyData(_) | Message::CopyDone) if failed.is_some() => {}
                _ => return Err(self.confused("an answer to something that was not asked")),
            }
        }
        Ok((rows, count))
    }

    /// Whether SQL, which must be one statement, yields rows. It is not run.
    ///
    /// # Errors
    /// As [`Self::query`]; the server's, too, where it is several.
    pub fn is_query(&mut self, sql: &str) -> Result<bool> {
        let refused = |error| Error::new(Kind::Usage, "send SQL to PostgreSQL").because(error);
        let mut out = BytesMut::new();
        frontend::parse("", sql, [], &mut out).map_err(refused)?;
        frontend::describe(b'S', "", &mut out).map_err(refused)?;
        frontend::sync(&mut out);
        self.start(&out)?;
        let (mut yields_rows, mut failed) = (false, None);
        while let Some(incoming) = self.next_of_answer(&mut failed)? {
            match incoming {
                Incoming::Message(Message::RowDescription(_)) => yields_rows = true,
                Incoming::Message(Message::ParseComplete | Message::ParameterDescription(_) | Message::NoData) => {}
                _ => return Err(self.confused("an answer to something that was not asked")),
            }
        }
        Ok(yields_rows)
    }

    /// Runs one statement with parameters (`$1`, `$2`, …; as text, of the types that the server infers) by the extended protocol, and
    /// yields the rows, as text.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub fn query_with(&mut self, sql: &str, parameters: &[Option<&str>]) -> Result<Vec<Row>> {
        let refused = |error| Error::new(Kind::Usage, "send SQL to PostgreSQL").because(error);
        let mut out = BytesMut::new();
        frontend::parse("", sql, [], &mut out).map_err(refused)?;
        let write = |parameter: Option<&str>, out: &mut BytesMut| match parameter {
            Some(text) => {
                out.extend_from_slice(text.as_bytes());
                Ok(IsNull::No)
            }
            None => Ok(IsNull::Yes),
        };
        frontend::bind("", "", [], parameters.iter().copied(), write, [], &mut out).map_err(|error| match error {
            BindError::Conversion(error) => Error::new(Kind::Bug, "bind a parameter").because(error),
            BindError::Serialization(error) => refused(error),
        })?;
        frontend::describe(b'P', "", &mut out).map_err(refused)?;
        frontend::execute("", 0, &mut out).map_err(refused)?;
        frontend::sync(&mut out);
        self.start(&out)?;
        let raw = self.is_raw();
        let mut rows = Vec::new();
        let mut names: Arc<[String]> = Arc::from([]);
        let mut failed = None;
        while let Some(incoming) = self.next_of_answer(&mut failed)? {
            match incoming {
                Incoming::Message(Message::RowDescription(body)) => names = column_names(&body).map_err(|error| self.confused(error))?,
                Incoming::Message(Message::DataRow(body)) => match Row::new(names.clone(), &body, raw) {
                    Ok(row) => rows.push(row),
                    Err(error) => {
                        failed.get_or_insert(error);
                    }
                },
                Incoming::Message(
                    Message::ParseComplete
                    | Message::BindComplete
                    | Message::NoData
                    | Message::CommandComplete(_)
                    | Message::EmptyQueryResponse,
                ) => {}
                _ => return Err(self.confused("an answer to something that was not asked")),
            }
        }
        Ok(rows)
    }

    /// The first column of the only row; `None` for SQL's null.
    ///
    /// # Errors
    /// As [`Self::query`]; [`Kind::Failed`] when there is not exactly one row.
    pub fn value(&mut self, sql: &str) -> Result<Option<String>> {
        let rows = self.query(sql)?;
        match rows.as_slice() {
            [row] if !row.is_empty() => Ok(row.get(0).map(str::to_owned)),
            rows => Err(Error::new(
                Kind::Failed,
                format!("PostgreSQL at {} answered {} rows where one was expected", self.settings, rows.len()),
            )),
        }
    }

    /// Runs SQL whose rows do not matter.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub fn execute(&mut self, sql: &str) -> Result<()> {
        self.query(sql).map(drop)
    }

    /// Begins `COPY … TO STDOUT`.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub fn copy_out(&mut self, sql: &str) -> Result<CopyOut<'_>> {
        self.begin(sql)?;
        let mut failed = None;
        match self.next_of_answer(&mut failed)? {
            Some(Incoming::Message(Message::CopyOutResponse(_))) => {
                self.rest = Some(0);
                Ok(CopyOut { connection: self, failed, ended: false })
            }
            Some(_) => Err(self.confused("something other than COPY data")),
            None => Err(Error::new(Kind::Bug, "COPY TO turned out to be something else")),
        }
    }

    /// Begins `COPY … FROM STDIN`.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub fn copy_in(&mut self, sql: &str) -> Result<CopyIn<'_>> {
        self.begin(sql)?;
        let mut failed = None;
        match self.next_of_answer(&mut failed)? {
            Some(Incoming::Message(Message::CopyInResponse(_))) => {
                Ok(CopyIn { connection: self, pending: BytesMut::with_capacity(COPY_BYTES + 8), failed })
            }
            Some(_) => Err(self.confused("something other than readiness for COPY data")),
            None => Err(Error::new(Kind::Bug, "COPY FROM turned out to be something else")),
        }
    }

    /// Whether what this session said of itself before it began ([`session_options`]) was taken: an older server, or a pooler, may not know it.
    #[must_use]
    pub(in crate::source::postgres) fn takes_options(&self) -> bool {
        self.takes_options
    }

    /// The limit set by [`Self::set_timeout`].
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sends a command; its answers are read by [`Self::next_of_answer`] until that says `None`.
    pub(crate) fn begin(&mut self, sql: &str) -> Result<()> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out).map_err(|error| Error::new(Kind::Usage, "send SQL to PostgreSQL").because(error))?;
        self.start(&out)
    }

    /// Sends the messages of one command.
    fn start(&mut self, messages: &[u8]) -> Result<()> {
        match self.state {
            State::Ready => {}
            State::Busy => return Err(Error::new(Kind::Bug, "the answer to an earlier command was not read to its end")),
            State::Broken => {
                return Err(Error::new(Kind::Unavailable, format!("the connection to PostgreSQL at {} broke earlier", self.settings)));
            }
        }
        self.state = State::Busy;
        self.send(messages)
    }

    /// The next part of a command's answer; `None` at `ReadyForQuery`. An error of the server is kept in `failed`, and returned once
    /// the answer is complete: what comes after it must be read too.
    pub(crate) fn next_of_answer(&mut self, failed: &mut Option<Error>) -> Result<Option<Incoming>> {
        loop {
            // The server's own words say more than the loss of the connection that follows them.
            let incoming = match self.next() {
                Ok(incoming) => incoming,
                Err(error) => return Err(failed.take().unwrap_or(error)),
            };
            match incoming {
                Incoming::Message(Message::ErrorResponse(body)) => {
                    let read = ServerError::read(body.fields());
                    let is_fatal = read.is_fatal();
                    let error = read.into_error(format!("run a command on PostgreSQL at {}", self.settings), false);
                    let first = failed.take().unwrap_or(error);
                    if is_fatal {
                        self.state = State::Broken;
                        return Err(first);
                    }
                    *failed = Some(first);
                }
                Incoming::Message(Message::ReadyForQuery(_)) => {
                    self.state = State::Ready;
                    return failed.take().map_or(Ok(None), Err);
                }
                other => return Ok(Some(other)),
            }
        }
    }

    /// The next message, within the time limit for silence.
    pub(crate) fn next(&mut self) -> Result<Incoming> {
        match self.next_until(Instant::now() + self.timeout) {
            Ok(Some(incoming)) => Ok(incoming),
            Ok(None) => {
                let error = self.transport.silent();
                self.give_up();
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// The next message; `None` when `until` passed first.
    pub(crate) fn next_until(&mut self, until: Instant) -> Result<Option<Incoming>> {
        loop {
            match self.parse() {
                Ok(Some(Incoming::Message(Message::NoticeResponse(body)))) => {
                    if let Some(warnings) = &mut self.warnings {
                        warnings.add(ServerError::read(body.fields()));
                    }
                }
                Ok(Some(Incoming::Message(Message::NotificationResponse(_)))) => {}
                Ok(Some(Incoming::Message(Message::ParameterStatus(body)))) => {
                    if let (Ok(name), Ok(value)) = (body.name(), body.value()) {
                        self.parameters.insert(name.to_owned(), value.to_owned());
                    }
                }
                Ok(Some(incoming)) => return Ok(Some(incoming)),
                Ok(None) => match self.transport.fill(until) {
                    Ok(true) => {}
                    Ok(false) => return Ok(None),
                    Err(error) => {
                        if error.kind() == Kind::Interrupted {
                            self.give_up();
                        }
                        self.state = State::Broken;
                        return Err(error);
                    }
                },
                Err(error) => return Err(error),
            }
        }
    }

    fn parse(&mut self) -> Result<Option<Incoming>> {
        let input = &mut self.transport.input;
        if let Some(rest @ 1..) = self.rest {
            return Ok(piece(input, rest).map(|piece| {
                self.rest = Some(rest - piece.bytes.len());
                Incoming::Piece(piece)
            }));
        }
        let header = match Header::parse(input) {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(None),
            Err(error) => return Err(self.confused(error)),
        };
        // Not negative: `Header` checks that it is at least 4.
        let length = usize::try_from(header.len()).unwrap_or(usize::MAX);
        if length > MESSAGE_BYTES {
            return Err(self.confused("a message of more than 1 GiB"));
        }
        if header.tag() == b'd' && length > WHOLE_BYTES && self.rest.is_some() {
            // The tag, and the length with itself in it.
            input.advance(5);
            self.rest = Some(length - 4);
            return self.parse();
        }
        if header.tag() == b'W' {
            if input.len() <= length {
                return Ok(None);
            }
            input.advance(1 + length);
            return Ok(Some(Incoming::CopyBoth));
        }
        match Message::parse(input) {
            Ok(message) => Ok(message.map(Incoming::Message)),
            Err(error) => Err(self.confused(error)),
        }
    }

    /// Sends bytes of the protocol. When that fails, the server's last words tell why, if it left any.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let until = Instant::now() + self.timeout;
        let Err(error) = self.transport.send(bytes, until) else { return Ok(()) };
        self.state = State::Broken;
        if error.kind() == Kind::Interrupted {
            return Err(error);
        }
        let soon = Instant::now() + Duration::from_millis(200);
        while let Ok(Some(incoming)) = self.next_until(soon) {
            if let Incoming::Message(Message::ErrorResponse(body)) = incoming {
                return Err(ServerError::read(body.fields()).into_error(format!("run a command on PostgreSQL at {}", self.settings), false));
            }
        }
        Err(error)
    }

    /// The server has ended the session.
    pub(crate) fn end(&mut self) {
        self.state = State::Broken;
    }

    /// One message of COPY data.
    pub(crate) fn send_copy_data(&mut self, bytes: Bytes) -> Result<()> {
        let mut out = BytesMut::with_capacity(bytes.len() + 5);
        let message = frontend::CopyData::new(bytes).map_err(|error| self.confused(error))?;
        message.write(&mut out);
        self.send(&out)
    }

    /// The error that the server sent; the session is of no use any more.
    pub(crate) fn server_error(&mut self, body: &ErrorResponseBody) -> Error {
        self.state = State::Broken;
        ServerError::read(body.fields()).into_error(format!("run a command on PostgreSQL at {}", self.settings), false)
    }

    /// Something that this protocol does not have at this place.
    pub(crate) fn confused(&mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        self.state = State::Broken;
        Error::new(Kind::Failed, format!("what answers at {} does not keep to PostgreSQL's protocol", self.settings))
            .because(cause)
            .hint("Is it PostgreSQL 14 or later, without a pooler between?")
    }

    fn refuse_copy(&mut self, failed: &mut Option<Error>) -> Result<()> {
        failed.get_or_insert_with(|| Error::new(Kind::Bug, "a query turned out to be a COPY"));
        let mut out = BytesMut::new();
        frontend::copy_fail("not expected", &mut out).map_err(|error| self.confused(error))?;
        self.send(&out)
    }

    /// The command is left alone: the server is asked to stop it too, as far as that is quickly possible.
    fn give_up(&mut self) {
        let running = self.state == State::Busy;
        self.state = State::Broken;
        // A walsender notices the closed connection by itself.
        if running && !self.replication {
            let until = Instant::now() + CANCEL_LIMIT;
            // A courtesy: the error that led here is the one to tell.
            let _ = login::request_cancel(&self.settings, self.backend, until);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.state == State::Ready {
            let mut out = BytesMut::new();
            frontend::terminate(&mut out);
            // The server notices the closed socket too.
            let _ = self.transport.send(&out, Instant::now() + Duration::from_secs(1));
        }
        self.transport.close_notify();
    }
}

/// What is there of the `rest` of a long message, once something is.
fn piece(input: &mut BytesMut, rest: usize) -> Option<Piece> {
    let count = input.len().min(rest).min(WHOLE_BYTES);
    (count > 0).then(|| Piece { bytes: input.split_to(count).freeze(), ends: count == rest })
}

/// `15.20 (Debian …)` is 150020, `18beta1` is 180000, `9.6.3` is 90603.
fn version_number(text: &str) -> Option<u32> {
    let numbers = text.split([' ', '-']).next()?;
    let leading = |part: &str| part.split(|letter: char| !letter.is_ascii_digit()).next().and_then(|digits| digits.parse::<u32>().ok());
    let mut parts = numbers.split('.').map(leading);
    let major = parts.next()??;
    let minor = parts.next().flatten().unwrap_or(0);
    let patch = parts.next().flatten().unwrap_or(0);
    Some(if major >= 10 { major * 10_000 + minor } else { major * 10_000 + minor * 100 + patch })
}

fn column_names(body: &RowDescriptionBody) -> std::io::Result<Arc<[String]>> {
    let mut names = Vec::new();
    let mut fields = body.fields();
    while let Some(field) = fields.next()? {
        names.push(field.name().to_owned());
    }
    Ok(names.into())
}

/// One row of an answer, as text.
#[derive(Clone)]
pub struct Row {
    names: Arc<[String]>,
    bytes: Bytes,
    columns: Vec<Option<Range<usize>>>,
}

/// Without the values, which may be in no log.
impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Row").field("columns", &self.names).finish_non_exhaustive()
    }
}

impl Row {
    fn new(names: Arc<[String]>, body: &DataRowBody, raw: bool) -> Result<Self> {
        let malformed = |cause: &'static str| Error::new(Kind::Failed, "read a row of PostgreSQL").because(cause);
        let columns: Vec<_> = body.ranges().collect().map_err(|_| malformed("its columns are malformed"))?;
        if columns.len() != names.len() {
            return Err(malformed("it has another number of columns than announced"));
        }
        let bytes = body.buffer_bytes().clone();
        if columns.iter().flatten().any(|range| std::str::from_utf8(&bytes[range.clone()]).is_err()) {
            if raw {
                return Ok(Self::shown(names, &bytes, columns));
            }
            return Err(malformed("a value is not UTF-8").hint("Databases in SQL_ASCII may hold such names; COPY reads them."));
        }
        Ok(Self { names, bytes, columns })
    }

    /// With a mark in place of what is no text.
    fn shown(names: Arc<[String]>, bytes: &[u8], columns: Vec<Option<Range<usize>>>) -> Self {
        let mut text = String::new();
        let mut show = |range: Range<usize>| {
            let start = text.len();
            text.push_str(&String::from_utf8_lossy(&bytes[range]));
            start..text.len()
        };
        let columns = columns.into_iter().map(|range| range.map(&mut show)).collect();
        Self { names, bytes: text.into(), columns }
    }

    /// The number of columns.
    #[must_use]
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// A column from 0; `None` for null or where there is no such column.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&str> {
        let range = self.columns.get(index)?.clone()?;
        std::str::from_utf8(&self.bytes[range]).ok()
    }

    /// A column by its name; `None` for null or where there is no such column.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&str> {
        self.get(self.names.iter().position(|known| known == name)?)
    }

    /// A column that must be there and not null.
    ///
    /// # Errors
    /// [`Kind::Failed`] that names the column.
    pub fn required(&self, name: &str) -> Result<&str> {
        self.named(name).ok_or_else(|| Error::new(Kind::Failed, format!("PostgreSQL's answer has nothing in column {name}")))
    }

    /// The names of the columns, in order.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

/// A running `COPY … TO STDOUT`. Left before its end, the connection is of no use any more.
pub struct CopyOut<'a> {
    connection: &'a mut Connection,
    failed: Option<Error>,
    ended: bool,
}

impl CopyOut<'_> {
    /// What arrives next: a message (for text and CSV, a line), or a part of a long one; `None` when the copy and everything after it went well.
    ///
    /// # Errors
    /// The server's error, whenever it comes: what was read before is not the whole then.
    #[expect(clippy::should_implement_trait, reason = "as an Iterator, its errors would be too easy to skip")]
    pub fn next(&mut self) -> Result<Option<Piece>> {
        if self.ended {
            return Ok(None);
        }
        let mut done = false;
        loop {
            let piece = match self.connection.next_of_answer(&mut self.failed)? {
                Some(Incoming::Message(Message::CopyData(body))) if !done => Piece { bytes: body.into_bytes(), ends: true },
                Some(Incoming::Piece(piece)) if !done => piece,
                Some(Incoming::Message(Message::CopyDone)) => {
                    done = true;
                    continue;
                }
                Some(Incoming::Message(Message::CommandComplete(_))) => continue,
                Some(_) => return Err(self.connection.confused("something other than COPY data")),
                None if !done => return Err(self.connection.confused("a COPY without its end")),
                None => {
                    (self.ended, self.connection.rest) = (true, None);
                    return Ok(None);
                }
            };
            if self.failed.is_none() {
                return Ok(Some(piece));
            }
        }
    }
}

/// A running `COPY … FROM STDIN`. Only [`CopyIn::finish`] makes its rows stay.
pub struct CopyIn<'a> {
    connection: &'a mut Connection,
    pending: BytesMut,
    failed: Option<Error>,
}

impl CopyIn<'_> {
    /// Sends bytes; they need not end where a row does.
    ///
    /// # Errors
    /// A lost connection. What the server dislikes about the rows, [`Self::finish`] says.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = COPY_BYTES - self.pending.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == COPY_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Ends the copy; yields how many rows the server took.
    ///
    /// # Errors
    /// The server's error: then it took none.
    pub fn finish(mut self) -> Result<u64> {
        self.flush()?;
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        self.connection.send(&out)?;
        let mut rows = None;
        while let Some(incoming) = self.connection.next_of_answer(&mut self.failed)? {
            match incoming {
                Incoming::Message(Message::CommandComplete(body)) => {
                    let tag = body.tag().map_err(|error| self.connection.confused(error))?.to_owned();
                    rows = tag.strip_prefix("COPY ").and_then(|count| count.parse().ok());
                }
                _ => return Err(self.connection.confused("an answer to something that was not asked")),
            }
        }
        rows.ok_or_else(|| self.connection.confused("a COPY without a count of its rows"))
    }

    /// Ends the copy without any of its rows; the connection stays usable.
    ///
    /// # Errors
    /// A lost connection.
    pub fn abandon(mut self) -> Result<()> {
        let mut out = BytesMut::new();
        frontend::copy_fail("abandoned", &mut out).map_err(|error| self.connection.confused(error))?;
        self.connection.send(&out)?;
        while self.connection.state == State::Busy {
            match self.connection.next_of_answer(&mut self.failed) {
                // The server repeats that the copy failed.
                Err(_) if self.connection.state == State::Ready => break,
                other => drop(other?),
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let bytes = self.pending.split().freeze();
        self.connection.send_copy_data(bytes)
    }
}

/// A name as SQL text, whatever is in it.
#[must_use]
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string as SQL text, whatever is in it and whatever `standard_conforming_strings` says.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') { format!(" E'{}'", doubled.replace('\\', "\\\\")) } else { format!("'{doubled}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        for (text, number) in [("15.20 (Debian 15.20-0+deb12u1)", 150_020), ("18beta1", 180_000), ("9.6.3", 90_603), ("14.0", 140_000)] {
            assert_eq!(version_number(text), Some(number), "{text}");
        }
        assert_eq!(version_number("unknown"), None);
    }

    #[test]
    fn quoting() {
        assert_eq!(quote_identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'"), " E'a\\\\'''");
    }
}
