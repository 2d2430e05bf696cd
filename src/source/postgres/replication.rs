//! Physical replication: who the server is, slots, timelines, base backups and the log as a stream
//! (PostgreSQL manual, "Streaming Replication Protocol").
//!
//! A base backup has no end position before *every* answer after its bytes was read: a server that found a bad checksum, or was told to
//! stop, says so only there.

use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::{DataRowBody, Message, RowDescriptionBody};
use postgres_protocol::message::frontend;

use crate::error::{Error, Kind, Result};
use crate::source::postgres::client::{Connection, Incoming, Row, Warnings, quote_identifier, quote_literal, sqlstate};
use crate::source::postgres::lsn::Lsn;

/// Seconds from 1970 to 2000, where PostgreSQL's clock begins.
const EPOCH_2000: i64 = 946_684_800;
/// From this version on a base backup is one COPY with typed messages.
const SINGLE_COPY: u32 = 150_000;
/// A spread checkpoint may take its time before the first byte of a backup.
const CHECKPOINT_LIMIT: Duration = Duration::from_hours(2);

/// What `IDENTIFY_SYSTEM` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Of the cluster, the same on all its standbys.
    pub system_identifier: u64,
    pub timeline: u32,
    /// How far the log is flushed (on a standby: replayed).
    pub position: Lsn,
}

/// Asks who the server is.
///
/// # Errors
/// As [`Connection::query`].
pub fn identify_system(connection: &mut Connection) -> Result<SystemIdentity> {
    let rows = connection.query("IDENTIFY_SYSTEM")?;
    let row = only(&rows)?;
    Ok(SystemIdentity {
        system_identifier: number(row.required("systemid")?)?,
        timeline: number(row.required("timeline")?)?,
        position: row.required("xlogpos")?.parse()?,
    })
}

/// One setting, as a walsender shows it too (`wal_segment_size`, `data_directory_mode`, …).
///
/// # Errors
/// As [`Connection::value`].
pub fn show(connection: &mut Connection, setting: &str) -> Result<String> {
    connection.value(&format!("SHOW {}", quote_identifier(setting)))?.ok_or_else(|| malformed("a setting without a value"))
}

/// A history file as the server sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    /// `00000002.history`.
    pub file_name: String,
    pub content: Bytes,
}

/// The history file of a timeline after the first.
///
/// # Errors
/// As [`Connection::query`]; the server's error where it has no such file.
pub fn timeline_history(connection: &mut Connection, timeline: u32) -> Result<TimelineHistory> {
    let rows = connection.query(&format!("TIMELINE_HISTORY {timeline}"))?;
    let row = only(&rows)?;
    let content = row.required("content")?;
    Ok(TimelineHistory { file_name: row.required("filename")?.to_owned(), content: Bytes::copy_from_slice(content.as_bytes()) })
}

/// A physical slot as the server sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    /// From here on the log is kept; `None` when it never reserved any, or lost it.
    pub restart: Option<Lsn>,
    /// The timeline of `restart`.
    pub timeline: Option<u32>,
}

/// Creates a physical slot that keeps the log from now on. A temporary one goes with the session.
///
/// # Errors
/// [`Kind::AlreadyExists`] when there is one of this name; otherwise as [`Connection::query`].
pub fn create_physical_slot(connection: &mut Connection, name: &str, temporary: bool) -> Result<()> {
    let temporary = if temporary { "TEMPORARY " } else { "" };
    // The older form, which all versions take.
    connection
        .execute(&format!("CREATE_REPLICATION_SLOT {} {temporary}PHYSICAL RESERVE_WAL", quote_identifier(name)))
        .map_err(|error| error.within(format!("create replication slot {name}")))
}

/// Drops a slot. `wait`: until nobody uses it any more.
///
/// # Errors
/// [`Kind::NotFound`] when there is none; [`Kind::Busy`] when it is in use; otherwise as [`Connection::query`].
pub fn drop_slot(connection: &mut Connection, name: &str, wait: bool) -> Result<()> {
    let wait = if wait { " WAIT" } else { "" };
    connection
        .execute(&format!("DROP_REPLICATION_SLOT {}{wait}", quote_identifier(name)))
        .map_err(|error| error.within(format!("drop replication slot {name}")))
}

/// Looks at a physical slot; `None` when there is none. Works on a replication connection from version 15 on; on older ones, and for
/// more (`wal_status`, `safe_wal_size`), query `pg_replication_slots` in a session for SQL: see [`slot_by_sql`].
///
/// # Errors
/// As [`Connection::query`]; for a logical slot the server's error.
pub fn read_slot(connection: &mut Connection, name: &str) -> Result<Option<SlotState>> {
    if connection.server_version() < SINGLE_COPY {
        return Err(Error::new(Kind::Bug, "PostgreSQL before 15 cannot read a slot over the replication protocol"));
    }
    let rows = connection.query(&format!("READ_REPLICATION_SLOT {}", quote_identifier(name)))?;
    let row = only(&rows)?;
    if row.named("slot_type").is_none() {
        return Ok(None);
    }
    Ok(Some(SlotState {
        restart: row.named("restart_lsn").map(str::parse).transpose()?,
        timeline: row.named("restart_tli").map(number).transpose()?,
    }))
}

/// A slot in `pg_replication_slots`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotStatus {
    pub is_physical: bool,
    pub is_temporary: bool,
    pub is_active: bool,
    pub restart: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`; `None` while it never reserved any log.
    pub wal_status: Option<String>,
    /// Bytes that may still be written before the slot may be lost; `None`: no limit is set.
    pub safe_bytes: Option<i64>,
    /// Bytes of log that it holds back on the server.
    pub held_bytes: Option<u64>,
}

/// Looks at a slot by SQL (not on a replication connection); `None` when there is none.
///
/// # Errors
/// As [`Connection::query`].
pub fn slot_by_sql(connection: &mut Connection, name: &str) -> Result<Option<SlotStatus>> {
    let rows = connection.query(&format!(
        "SELECT slot_type, temporary, active, restart_lsn, wal_status, safe_wal_size, pg_catalog.pg_wal_lsn_diff(CASE WHEN \
         pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_receive_lsn() ELSE pg_catalog.pg_current_wal_lsn() END, restart_lsn) \
         AS held FROM pg_catalog.pg_replication_slots WHERE slot_name = {}",
        quote_literal(name)
    ))?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(SlotStatus {
        is_physical: row.required("slot_type")? == "physical",
        is_temporary: row.required("temporary")? == "t",
        is_active: row.required("active")? == "t",
        restart: row.named("restart_lsn").map(str::parse).transpose()?,
        wal_status: row.named("wal_status").map(str::to_owned),
        safe_bytes: row.named("safe_wal_size").map(number).transpose()?,
        // Below zero when the slot is ahead of what a standby has received.
        held_bytes: row.named("held").map(number::<i64>).transpose()?.map(|held| u64::try_from(held).unwrap_or(0)),
    }))
}

/// What a base backup is asked for.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "the server's own switches")]
pub struct BaseBackupOptions {
    pub label: String,
    /// A checkpoint at once instead of one that is spread over minutes.
    pub fast_checkpoint: bool,
    /// Without it the server does not look at page checksums.
    pub verify_checksums: bool,
    /// The server's own manifest of all files, with a checksum each.
    pub manifest: bool,
    /// Progress messages and an estimate of the size, which costs the server a walk over its files.
    pub progress: bool,
    /// Limit for the server's reading, in KiB a second (32 to 1,048,576).
    pub max_rate_kib: Option<u32>,
}

impl BaseBackupOptions {
    /// A quick checkpoint, checksums verified, progress, no manifest.
    #[must_use]
    pub fn new(label: &str) -> Self {
        Self { label: label.to_owned(), fast_checkpoint: true, verify_checksums: true, manifest: false, progress: true, max_rate_kib: None }
    }

    fn sql(&self, version: u32) -> String {
        let mut options = vec![format!("LABEL {}", quote_label(&self.label))];
        if version >= SINGLE_COPY {
            let checkpoint = if self.fast_checkpoint { "'fast'" } else { "'spread'" };
            options.push(format!("PROGRESS {}", self.progress));
            options.push(format!("CHECKPOINT {checkpoint}"));
            options.push("WAIT false".to_owned());
            options.push("TABLESPACE_MAP true".to_owned());
            options.push(format!("VERIFY_CHECKSUMS {}", self.verify_checksums));
            options.push(format!("MANIFEST {}", if self.manifest { "'yes'" } else { "'no'" }));
            options.extend(self.max_rate_kib.map(|rate| format!("MAX_RATE {rate}")));
            return format!("BASE_BACKUP ({})", options.join(", "));
        }
        options.extend(self.progress.then(|| "PROGRESS".to_owned()));
        options.extend(self.fast_checkpoint.then(|| "FAST".to_owned()));
        options.push("NOWAIT".to_owned());
        options.push("TABLESPACE_MAP".to_owned());
        options.extend((!self.verify_checksums).then(|| "NOVERIFY_CHECKSUMS".to_owned()));
        options.extend(self.manifest.then(|| "MANIFEST 'yes'".to_owned()));
        options.extend(self.max_rate_kib.map(|rate| format!("MAX_RATE {rate}")));
        format!("BASE_BACKUP {}", options.join(" "))
    }
}

/// A tablespace, or with neither oid nor location the data folder itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    pub oid: Option<u32>,
    /// Where it is on the server.
    pub location: Option<String>,
    /// Estimate; only with `progress`.
    pub bytes: Option<u64>,
}

/// A part of a base backup, in the order of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupPart {
    /// A tar archive begins: of the data folder (always the last) or of a tablespace. Until the next `Archive` or `Manifest`, `Data` is its bytes.
    Archive(Tablespace),
    /// The server's manifest begins; `Data` is its bytes.
    Manifest,
    Data(Bytes),
    /// How far the server is within the archive, in bytes of files.
    Progress(u64),
}

/// A position with its timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPosition {
    pub lsn: Lsn,
    pub timeline: u32,
}

/// A base backup being received. Only [`BaseBackup::finish`] says that it is whole.
#[derive(Debug)]
pub struct BaseBackup<'a> {
    connection: &'a mut Connection,
    start: LogPosition,
    tablespaces: Vec<Tablespace>,
    failed: Option<Error>,
    /// Before version 15: archives that have not begun.
    waiting: std::vec::IntoIter<Tablespace>,
    manifest_follows: bool,
    in_copy: bool,
    /// The end position has been announced: no more copies.
    end: Option<LogPosition>,
    damaged_pages: Option<Error>,
    ended: bool,
}

/// How a base backup ended.
#[derive(Debug)]
#[must_use]
pub struct BackupEnd {
    /// Where the log that it needs ends.
    pub position: LogPosition,
    /// The server found pages whose checksums are wrong ([`Kind::Damaged`]): the backup is no good one.
    pub damaged_pages: Option<Error>,
    /// What it warned of meanwhile, such as files that it left out.
    pub warnings: Warnings,
}

/// `ERRCODE_DATA_CORRUPTED`.
const DATA_CORRUPTED: &str = "XX001";

/// Starts a base backup. The log from [`BaseBackup::start`] to the end position is needed with it: create a slot before.
///
/// # Errors
/// As [`Connection::query`].
pub fn base_backup<'a>(connection: &'a mut Connection, options: &BaseBackupOptions) -> Result<BaseBackup<'a>> {
    let version = connection.server_version();
    let usual = connection.timeout();
    connection.set_timeout(usual.max(CHECKPOINT_LIMIT));
    connection.keep_warnings();
    let begun = begin_backup(connection, options, version);
    connection.set_timeout(usual);
    let (start, tablespaces) = begun?;
    // The data folder comes last, in the list as in the stream.
    let waiting = if version >= SINGLE_COPY { Vec::new() } else { tablespaces.clone() };
    Ok(BaseBackup {
        connection,
        start,
        tablespaces,
        failed: None,
        waiting: waiting.into_iter(),
        manifest_follows: options.manifest,
        in_copy: false,
        end: None,
        damaged_pages: None,
        ended: false,
    })
}

fn begin_backup(connection: &mut Connection, options: &BaseBackupOptions, version: u32) -> Result<(LogPosition, Vec<Tablespace>)> {
    connection.begin(&options.sql(version))?;
    let mut failed = None;
    let rows = raw_rows(connection, &mut failed)?;
    let start = position_of(connection, &rows)?;
    let rows = raw_rows(connection, &mut failed)?;
    let mut tablespaces = Vec::with_capacity(rows.len());
    for row in rows {
        let [oid, location, size] = row.as_slice() else { return Err(connection.confused("a list of tablespaces with other columns")) };
        tablespaces.push(Tablespace {
            oid: oid.as_deref().map(number).transpose()?,
            location: location.clone(),
            // In KiB.
            bytes: size.as_deref().map(number::<u64>).transpose()?.map(|kib| kib.saturating_mul(1024)),
        });
    }
    Ok((start, tablespaces))
}

impl BaseBackup<'_> {
    /// Where the backup's own log begins.
    #[must_use]
    pub fn start(&self) -> LogPosition {
        self.start
    }

    /// What will come, with estimates; the data folder is the one without an oid.
    #[must_use]
    pub fn tablespaces(&self) -> &[Tablespace] {
        &self.tablespaces
    }

    /// The next part; `None` after the last one, when the server has said that all went well, or that it found damaged pages:
    /// [`BaseBackup::finish`] tells.
    ///
    /// # Errors
    /// The server's error, also one that comes after the last byte. What was read before is worth nothing then.
    #[expect(clippy::should_implement_trait, reason = "as an Iterator, its errors would be too easy to skip")]
    pub fn next(&mut self) -> Result<Option<BackupPart>> {
        if self.ended {
            return Ok(None);
        }
        loop {
            if !self.in_copy && self.end.is_some() {
                // CommandComplete, and whatever the server has to say before it is ready again.
                return match self.connection.next_of_answer(&mut self.failed) {
                    Ok(Some(Incoming::Message(Message::CommandComplete(_)))) => continue,
                    Ok(Some(_)) => Err(self.connection.confused("something after the end of a base backup")),
                    Ok(None) => {
                        self.ended = true;
                        Ok(None)
                    }
                    // It has sent everything by then, the damaged pages as they are.
                    Err(error) if sqlstate(&error) == Some(DATA_CORRUPTED) => {
                        self.damaged_pages = Some(error);
                        self.ended = true;
                        Ok(None)
                    }
                    Err(error) => Err(error),
                };
            }
            let incoming = self.connection.next_of_answer(&mut self.failed)?;
            match incoming {
                Some(Incoming::Message(Message::CopyOutResponse(_))) if !self.in_copy => {
                    self.in_copy = true;
                    if self.connection.server_version() < SINGLE_COPY {
                        match self.waiting.next() {
                            Some(tablespace) => return Ok(Some(BackupPart::Archive(tablespace))),
                            None if self.manifest_follows => {
                                self.manifest_follows = false;
                                return Ok(Some(BackupPart::Manifest));
                            }
                            None => return Err(self.connection.confused("more archives than tablespaces")),
                        }
                    }
                }
                Some(Incoming::Message(Message::CopyData(body))) if self.in_copy => {
                    let bytes = body.into_bytes();
                    if self.connection.server_version() < SINGLE_COPY {
                        return Ok(Some(BackupPart::Data(bytes)));
                    }
                    return self.typed(bytes).map(Some);
                }
                Some(Incoming::Message(Message::CopyDone)) if self.in_copy => self.in_copy = false,
                Some(Incoming::Message(Message::RowDescription(body))) if !self.in_copy => {
                    let rows = rows_after(self.connection, &body, &mut self.failed)?;
                    self.end = Some(position_of(self.connection, &rows)?);
                    if self.waiting.len() > 0 {
                        return Err(self.connection.confused("fewer archives than tablespaces"));
                    }
                }
                // After an error that the answer still had to be read for.
                Some(Incoming::Message(Message::CommandComplete(_))) if !self.in_copy => {}
                Some(_) => return Err(self.connection.confused("something other than a base backup")),
                None => return Err(self.connection.confused("a base backup without its end")),
            }
        }
    }

    fn typed(&mut self, mut bytes: Bytes) -> Result<BackupPart> {
        if bytes.is_empty() {
            return Err(self.connection.confused("an empty message in a base backup"));
        }
        match bytes.get_u8() {
            b'd' => Ok(BackupPart::Data(bytes)),
            b'm' => Ok(BackupPart::Manifest),
            b'p' if bytes.len() == 8 => Ok(BackupPart::Progress(bytes.get_u64())),
            b'n' => {
                let mut parts = bytes.split(|&byte| byte == 0);
                let (Some(name), Some(location)) = (parts.next(), parts.next()) else {
                    return Err(self.connection.confused("a base backup's archive without a name"));
                };
                let (name, location) = (String::from_utf8_lossy(name), String::from_utf8_lossy(location).into_owned());
                // `base.tar`, or OID.tar for a tablespace.
                let oid = if location.is_empty() { None } else { Some(number(name.trim_end_matches(".tar"))?) };
                let known = self.tablespaces.iter().find(|tablespace| tablespace.oid == oid).cloned();
                let known = known.ok_or_else(|| self.connection.confused("an archive of an unknown tablespace"))?;
                Ok(BackupPart::Archive(known))
            }
            _ => Err(self.connection.confused("a message of an unknown kind in a base backup")),
        }
    }

    /// Where the log that the backup needs ends, after everything was read.
    ///
    /// # Errors
    /// [`Kind::Bug`] when [`BaseBackup::next`] has not said `None` yet.
    pub fn finish(self) -> Result<BackupEnd> {
        match self.end {
            Some(position) if self.ended => {
                Ok(BackupEnd { position, damaged_pages: self.damaged_pages, warnings: self.connection.take_warnings() })
            }
            _ => Err(Error::new(Kind::Bug, "the base backup was not read to its end")),
        }
    }
}

/// What comes out of a log stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalEvent {
    /// Bytes of the log from `start` on, without a gap after those before.
    Data { start: Lsn, server_end: Lsn, server_clock: chrono::DateTime<chrono::Utc>, bytes: Bytes },
    /// The server is there. `reply`: it wants a status soon, or it will end the connection.
    Keepalive { end: Lsn, server_clock: chrono::DateTime<chrono::Utc>, reply: bool },
    /// This timeline ends at `at`; `next` goes on from there. The connection can start the next stream. A standby may have sent more than that: what it had
    /// received and not replayed when it went on.
    TimelineEnd { next: u32, at: Lsn },
    /// The server ends the stream in an orderly way, as it does when it stops; everything sent has come.
    End,
}

/// The log of one timeline as it is written.
pub struct WalStream {
    connection: Connection,
    position: Lsn,
    /// An end that is known before anything was streamed.
    pending_end: Option<WalEvent>,
    over: bool,
}

/// Starts streaming the log of `timeline` from `start` (at the beginning of a segment, so that whole segments come). With a slot, the
/// server keeps what [`WalStream::status`] has not confirmed as flushed.
///
/// # Errors
/// [`Kind::NotFound`] when the server has no such slot or no longer that part of the log; [`Kind::Busy`] when the slot is in use.
pub fn start_replication(mut connection: Connection, slot: Option<&str>, start: Lsn, timeline: u32) -> Result<WalStream> {
    let slot_sql = slot.map(|name| format!("SLOT {} ", quote_identifier(name))).unwrap_or_default();
    let begun = (|| {
        connection.begin(&format!("START_REPLICATION {slot_sql}PHYSICAL {start} TIMELINE {timeline}"))?;
        let mut failed = None;
        match connection.next_of_answer(&mut failed)? {
            Some(Incoming::CopyBoth) => Ok(None),
            // The timeline ended exactly here: the server answers with the next one at once.
            Some(Incoming::Message(Message::RowDescription(body))) => {
                let rows = rows_after(&mut connection, &body, &mut failed)?;
                let next = next_timeline(&mut connection, &rows)?;
                while connection.next_of_answer(&mut failed)?.is_some() {}
                Ok(Some(next))
            }
            _ => Err(connection.confused("something other than a stream of the log")),
        }
    })();
    let ended = begun.map_err(|error: Error| match sqlstate(&error) {
        Some("58P01") => error.within(format!("stream the log of timeline {timeline} from {start}, which the server no longer has")),
        _ => error.within(format!("stream the log of timeline {timeline} from {start}")),
    })?;
    let pending_end = ended.map(|(next, at)| WalEvent::TimelineEnd { next, at });
    let over = pending_end.is_some();
    Ok(WalStream { connection, position: start, pending_end, over })
}

impl WalStream {
    /// The end of what has come so far.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// The next event; `None` when `timeout` passed without one. After `TimelineEnd` or `End` nothing comes.
    ///
    /// # Errors
    /// The server's error; [`Kind::Damaged`] for bytes that do not follow those before; a lost connection.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<WalEvent>> {
        if let Some(end) = self.pending_end.take() {
            return Ok(Some(end));
        }
        if self.over {
            return Err(Error::new(Kind::Bug, "the log stream has ended already"));
        }
        let until = Instant::now() + timeout;
        match self.connection.next_until(until)? {
            None => Ok(None),
            Some(Incoming::Message(Message::CopyData(body))) => self.event(body.into_bytes()).map(Some),
            Some(Incoming::Message(Message::CopyDone)) => self.finish_copy().map(Some),
            // How a server that stops takes its leave.
            Some(Incoming::Message(Message::CommandComplete(_))) => {
                self.over = true;
                self.connection.end();
                Ok(Some(WalEvent::End))
            }
            Some(incoming) => {
                // An error without CopyDone: keep what the server said.
                self.over = true;
                let Incoming::Message(Message::ErrorResponse(body)) = incoming else {
                    return Err(self.connection.confused("something other than the log in its stream"));
                };
                Err(self.connection.server_error(&body).within(format!("stream the log after {}", self.position)))
            }
        }
    }

    /// Tells the server how far the log is durable here, so that it may forget what is before `flushed`; also the answer to a
    /// keepalive that wants one.
    ///
    /// # Errors
    /// A lost connection.
    pub fn status(&mut self, written: Lsn, flushed: Lsn, applied: Lsn) -> Result<()> {
        self.send_status(written, flushed, applied, false)
    }

    /// Like [`Self::status`] and asks for a keepalive at once: so silence can be told from idleness.
    ///
    /// # Errors
    /// A lost connection.
    pub fn ping(&mut self, written: Lsn, flushed: Lsn, applied: Lsn) -> Result<()> {
        self.send_status(written, flushed, applied, true)
    }

    fn send_status(&mut self, written: Lsn, flushed: Lsn, applied: Lsn, reply: bool) -> Result<()> {
        if self.over {
            return Err(Error::new(Kind::Bug, "the log stream has ended already"));
        }
        let mut body = BytesMut::with_capacity(34);
        body.put_u8(b'r');
        for lsn in [written, flushed, applied] {
            body.put_u64(lsn.0);
        }
        body.put_i64(chrono::Utc::now().timestamp_micros() - EPOCH_2000 * 1_000_000);
        body.put_u8(u8::from(reply));
        self.connection.send_copy_data(body.freeze())
    }

    /// Ends the stream, wherever it is, and gives the connection back for the next command.
    ///
    /// # Errors
    /// The server's error; a lost connection.
    pub fn stop(mut self) -> Result<Connection> {
        if !self.over {
            let mut out = BytesMut::new();
            frontend::copy_done(&mut out);
            self.connection.send(&out)?;
            let mut failed = None;
            // What was still on the way is left; rows come when the timeline ended meanwhile.
            while self.connection.next_of_answer(&mut failed)?.is_some() {}
        }
        Ok(self.connection)
    }

    fn event(&mut self, mut bytes: Bytes) -> Result<WalEvent> {
        match bytes.first() {
            Some(b'w') if bytes.len() >= 25 => {
                bytes.advance(1);
                let (start, server_end, clock) = (Lsn(bytes.get_u64()), Lsn(bytes.get_u64()), bytes.get_i64());
                if start != self.position {
                    self.over = true;
                    return Err(Error::new(
                        Kind::Damaged,
                        format!("the log stream has a gap: {start} came where {} was to come", self.position),
                    ));
                }
                self.position = start.plus(bytes.len() as u64);
                Ok(WalEvent::Data { start, server_end, server_clock: self.clock(clock)?, bytes })
            }
            Some(b'k') if bytes.len() == 18 => {
                bytes.advance(1);
                let (end, clock, reply) = (Lsn(bytes.get_u64()), bytes.get_i64(), bytes.get_u8() != 0);
                Ok(WalEvent::Keepalive { end, server_clock: self.clock(clock)?, reply })
            }
            _ => Err(self.connection.confused("a message of an unknown kind in the log stream")),
        }
    }

    fn clock(&mut self, microseconds: i64) -> Result<chrono::DateTime<chrono::Utc>> {
        let since_1970 = microseconds.checked_add(EPOCH_2000 * 1_000_000);
        since_1970
            .and_then(chrono::DateTime::from_timestamp_micros)
            .ok_or_else(|| self.connection.confused("an impossible time of the server"))
    }

    /// The server sends no more of this timeline: answer, and read what follows.
    fn finish_copy(&mut self) -> Result<WalEvent> {
        self.over = true;
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        self.connection.send(&out)?;
        let mut failed = None;
        let mut event = WalEvent::End;
        while let Some(incoming) = self.connection.next_of_answer(&mut failed)? {
            match incoming {
                Incoming::Message(Message::RowDescription(body)) => {
                    let rows = rows_after(&mut self.connection, &body, &mut failed)?;
                    let (next, at) = next_timeline(&mut self.connection, &rows)?;
                    if at > self.position {
                        return Err(Error::new(
                            Kind::Damaged,
                            format!("the timeline ends at {at}, but its stream ended at {}", self.position),
                        ));
                    }
                    event = WalEvent::TimelineEnd { next, at };
                }
                Incoming::Message(Message::CommandComplete(_)) => {}
                _ => return Err(self.connection.confused("something other than the end of a log stream")),
            }
        }
        Ok(event)
    }
}

/// The replication grammar has no escapes but the doubled quote.
fn quote_label(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

type RawRow = Vec<Option<String>>;

fn only(rows: &[Row]) -> Result<&Row> {
    match rows {
        [row] => Ok(row),
        rows => Err(malformed(&format!("{} rows where one was expected", rows.len()))),
    }
}

fn malformed(what: &str) -> Error {
    Error::new(Kind::Failed, "understand an answer of PostgreSQL").because(what.to_owned())
}

fn number<N: std::str::FromStr>(text: &str) -> Result<N> {
    text.parse().map_err(|_| malformed("something other than a number"))
}

/// The rows of the result that begins now.
fn raw_rows(connection: &mut Connection, failed: &mut Option<Error>) -> Result<Vec<RawRow>> {
    match connection.next_of_answer(failed)? {
        Some(Incoming::Message(Message::RowDescription(body))) => rows_after(connection, &body, failed),
        _ => Err(connection.confused("something other than rows")),
    }
}

/// The rows after their description, with the CommandComplete that ends them.
fn rows_after(connection: &mut Connection, description: &RowDescriptionBody, failed: &mut Option<Error>) -> Result<Vec<RawRow>> {
    let columns = description.fields().count().map_err(|error| connection.confused(error))?;
    let mut rows = Vec::new();
    loop {
        match connection.next_of_answer(failed)? {
            Some(Incoming::Message(Message::DataRow(body))) => {
                let row = raw_row(&body).filter(|row| row.len() == columns);
                rows.push(row.ok_or_else(|| connection.confused("a malformed row"))?);
            }
            Some(Incoming::Message(Message::CommandComplete(_))) => return Ok(rows),
            _ => return Err(connection.confused("rows without their end")),
        }
    }
}

fn raw_row(body: &DataRowBody) -> Option<RawRow> {
    let text = |range: std::ops::Range<usize>| String::from_utf8(body.buffer()[range].to_vec()).ok();
    let ranges: Vec<_> = body.ranges().collect().ok()?;
    ranges.into_iter().map(|range| range.map_or(Some(None), |range| text(range).map(Some))).collect()
}

fn position_of(connection: &mut Connection, rows: &[RawRow]) -> Result<LogPosition> {
    match rows {
        [row] => match row.as_slice() {
            [Some(lsn), Some(timeline)] => Ok(LogPosition { lsn: lsn.parse()?, timeline: number(timeline)? }),
            _ => Err(connection.confused("a position with other columns")),
        },
        _ => Err(connection.confused("not one position")),
    }
}

fn next_timeline(connection: &mut Connection, rows: &[RawRow]) -> Result<(u32, Lsn)> {
    match rows {
        [row] => match row.as_slice() {
            [Some(timeline), Some(lsn)] => Ok((number(timeline)?, lsn.parse()?)),
            _ => Err(connection.confused("a next timeline with other columns")),
        },
        _ => Err(connection.confused("not one next timeline")),
    }
}
