//! What is to be told and has not been, in a file of its own in the state folder: nothing is lost by a crash.
//!
//! Invariants:
//! - What was seen, what stands and the events that follow are written in one durable transaction, so that a crash before it sees the same
//!   again, and one after it delivers. An event leaves only in the transaction that notes its delivery: at least once, by its `id` the same.
//! - A notifier has at most [`MOST_WAITING`] events here; of more, the number is kept.
//! - No secret and no address of a target is ever written: errors are those of [`send`](crate::daemon::notify::send), without them.

use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, TransactionBehavior, params};

use crate::daemon::notify::event::Event;
use crate::daemon::notify::pace;
use crate::daemon::notify::step::Standing;
use crate::error::{Error, IoContext as _, Kind, Result};

/// Name of the file below the state folder.
pub const FILE: &str = "notify.sqlite";

/// Beyond this the oldest are only counted.
pub const MOST_WAITING: usize = 2000;

const BUSY_TIMEOUT: Duration = Duration::from_secs(15);

const VERSION: i64 = 1;

const TABLES: &str = r"
CREATE TABLE runs (
    run TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    closed INTEGER NOT NULL,
    started_ms INTEGER NOT NULL,
    PRIMARY KEY (run, attempt)
) STRICT;
CREATE TABLE standing (
    key TEXT PRIMARY KEY,
    plan TEXT,
    job TEXT,
    kind TEXT NOT NULL,
    run TEXT,
    message TEXT NOT NULL,
    since_ms INTEGER NOT NULL,
    told TEXT NOT NULL
) STRICT;
CREATE TABLE waiting (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    notifier TEXT NOT NULL,
    event TEXT NOT NULL,
    handed_over INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX waiting_by_notifier ON waiting (notifier, id);
CREATE TABLE notifiers (
    name TEXT PRIMARY KEY,
    delivered_ms INTEGER,
    failing_since_ms INTEGER,
    failures INTEGER NOT NULL DEFAULT 0,
    next_ms INTEGER,
    error TEXT,
    sent TEXT NOT NULL DEFAULT '[]',
    unlisted INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE marks (
    name TEXT PRIMARY KEY,
    value_ms INTEGER NOT NULL
) STRICT;
";

/// How deliveries of a notifier stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delivery {
    pub delivered: Option<DateTime<Utc>>,
    pub failing_since: Option<DateTime<Utc>>,
    /// In a row.
    pub failures: u64,
    /// Not before this.
    pub next: Option<DateTime<Utc>>,
    pub error: Option<String>,
    /// The last messages, oldest first.
    pub sent: Vec<DateTime<Utc>>,
    /// Events that were too many to keep.
    pub unlisted: u64,
    pub waiting: u64,
}

/// A run that was seen: its attempt, whether it had ended, and when it began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRun {
    pub run: String,
    pub attempt: u32,
    pub closed: bool,
    pub started: DateTime<Utc>,
}

/// An open outbox. Methods block for the time of one small transaction.
pub struct Outbox {
    connection: Mutex<Connection>,
    path: PathBuf,
}

impl Outbox {
    /// Opens it, making it when it is missing. One that is damaged is moved aside and begun anew: what stands is told again.
    ///
    /// # Errors
    /// When the file cannot be made, or is of a later version.
    pub fn open(state: &Path) -> Result<Self> {
        crate::daemon::private_folder(state)?;
        let path = state.join(FILE);
        match Self::open_at(&path) {
            Err(error) if error.kind() == Kind::Damaged => {
                let aside = state.join(format!("{FILE}.damaged"));
                tracing::error!(error = ?error, aside = %aside.display(), "the outbox of notifications is damaged and begun anew: what stands is told again");
                for suffix in ["-wal", "-shm"] {
                    let _ = std::fs::remove_file(state.join(format!("{FILE}{suffix}")));
                }
                std::fs::rename(&path, &aside).io_context(|| format!("move {} aside", path.display()))?;
                Self::open_at(&path)
            }
            other => other,
        }
    }

    /// Opens it only where it is.
    ///
    /// # Errors
    /// As [`Outbox::open`], but for a damaged one.
    pub fn open_existing(state: &Path) -> Result<Option<Self>> {
        let path = state.join(FILE);
        if path.exists() { Self::open_at(&path).map(Some) } else { Ok(None) }
    }

    fn open_at(path: &Path) -> Result<Self> {
        std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .io_context(|| format!("open the outbox {}", path.display()))?;
        let open = || -> rusqlite::Result<(Connection, i64)> {
            let mut connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "journal_mode", "wal")?;
            connection.pragma_update(None, "synchronous", "full")?;
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
            if version == 0 {
                transaction.execute_batch(TABLES)?;
                transaction.pragma_update(None, "user_version", VERSION)?;
                version = VERSION;
            }
            transaction.commit()?;
            Ok((connection, version))
        };
        let (connection, version) = open().map_err(|error| failure("open", path, error))?;
        if version > VERSION {
            return Err(Error::new(Kind::Failed, format!("open the outbox {}: it is of a later version of lifeboat", path.display()))
                .hint("use that version, or give this one a state folder of its own with --state DIR"));
        }
        Ok(Self { connection: Mutex::new(connection), path: path.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, operation: &'static str) -> impl Fn(rusqlite::Error) -> Error + '_ {
        move |error| failure(operation, &self.path, error)
    }

    /// The start of the newest run that was seen, and the moment of the first look: what ended before that is nobody's news. Both are `now`
    /// where there was none, which is noted; a clock that was set back takes the second along.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn looked_until(&self, now: DateTime<Utc>) -> Result<(DateTime<Utc>, DateTime<Utc>)> {
        let connection = self.lock();
        let query = || -> rusqlite::Result<(i64, i64)> {
            let now = now.timestamp_millis();
            let mark = |name: &str| connection.query_row("SELECT value_ms FROM marks WHERE name = ?1", [name], |row| row.get::<_, i64>(0));
            connection.execute("INSERT OR IGNORE INTO marks (name, value_ms) VALUES ('runs', ?1), ('first', ?1)", [now])?;
            let first = mark("first")?;
            if now < first {
                connection.execute("UPDATE marks SET value_ms = ?1 WHERE name = 'first'", [now])?;
            }
            Ok((mark("runs")?, first.min(now)))
        };
        query().map(|(until, first)| (time(until), time(first))).map_err(self.failed("read"))
    }

    /// The runs that were seen.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn runs(&self) -> Result<Vec<SeenRun>> {
        let connection = self.lock();
        let query = || -> rusqlite::Result<Vec<SeenRun>> {
            let mut statement = connection.prepare_cached("SELECT run, attempt, closed, started_ms FROM runs")?;
            let rows = statement.query_map([], |row| {
                Ok(SeenRun { run: row.get(0)?, attempt: row.get(1)?, closed: row.get(2)?, started: time(row.get(3)?) })
            })?;
            rows.collect()
        };
        query().map_err(self.failed("read"))
    }

    /// What stands, by key.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn standing(&self) -> Result<BTreeMap<String, Standing>> {
        let connection = self.lock();
        let query = || -> rusqlite::Result<BTreeMap<String, Standing>> {
            let mut statement = connection.prepare_cached("SELECT key, plan, job, kind, run, message, since_ms, told FROM standing")?;
            let rows = statement.query_map([], |row| {
                let told: BTreeMap<String, (DateTime<Utc>, String)> = serde_json::from_str(&row.get::<_, String>(7)?).unwrap_or_default();
                Ok((
                    row.get(0)?,
                    Standing {
                        plan: row.get(1)?,
                        job: row.get(2)?,
                        kind: row.get(3)?,
                        run: row.get(4)?,
                        message: row.get(5)?,
                        since: time(row.get(6)?),
                        told,
                    },
                ))
            })?;
            rows.collect()
        };
        query().map_err(self.failed("read"))
    }

    /// Writes what a look found: runs that were seen (those that began before `keep_from` and ended are forgotten), the newest start of one, what
    /// stands now (`before`: what stood), and the events for each notifier. All of it or nothing.
    ///
    /// # Errors
    /// When the file cannot be written; then nothing was.
    pub fn commit(&self, found: &Found<'_>) -> Result<()> {
        let mut connection = self.lock();
        let mut write = || -> rusqlite::Result<()> {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for run in found.runs {
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO runs (run, attempt, closed, started_ms) VALUES (?1, ?2, ?3, ?4)")?
                    .execute(params![run.run, run.attempt, run.closed, run.started.timestamp_millis()])?;
            }
            transaction.execute("DELETE FROM runs WHERE closed = 1 AND started_ms < ?1", [found.keep_from.timestamp_millis()])?;
            transaction.execute("UPDATE marks SET value_ms = ?1 WHERE name = 'runs'", [found.looked_until.timestamp_millis()])?;
            for key in found.before.keys().filter(|key| !found.standing.contains_key(*key)) {
                transaction.execute("DELETE FROM standing WHERE key = ?1", [key])?;
            }
            for (key, standing) in found.standing.iter().filter(|(key, standing)| found.before.get(*key) != Some(*standing)) {
                let told = text(&standing.told)?;
                transaction
                    .prepare_cached(
                        "INSERT OR REPLACE INTO standing (key, plan, job, kind, run, message, since_ms, told)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                    )?
                    .execute(params![
                        key,
                        standing.plan,
                        standing.job,
                        standing.kind,
                        standing.run,
                        standing.message,
                        standing.since.timestamp_millis(),
                        told
                    ])?;
            }
            put(&transaction, found.events)?;
            transaction.commit()
        };
        write().map_err(self.failed("write"))
    }

    /// The events that wait for a notifier, oldest first, with their numbers here; at most `limit`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn waiting(&self, notifier: &str, limit: usize) -> Result<Vec<(i64, Event)>> {
        let connection = self.lock();
        let query = || -> rusqlite::Result<Vec<(i64, String)>> {
            let mut statement = connection.prepare_cached("SELECT id, event FROM waiting WHERE notifier = ?1 ORDER BY id LIMIT ?2")?;
            let rows =
                statement.query_map(params![notifier, i64::try_from(limit).unwrap_or(i64::MAX)], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        };
        // An event of a later version that this one cannot read is none of its business.
        let read = |(id, text): (i64, String)| serde_json::from_str(&text).ok().map(|event| (id, event));
        query().map(|rows| rows.into_iter().filter_map(read).collect()).map_err(self.failed("read"))
    }

    /// How deliveries of a notifier stand.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn delivery(&self, notifier: &str) -> Result<Delivery> {
        let connection = self.lock();
        let query = || -> rusqlite::Result<Delivery> {
            let found = connection
                .query_row(
                    "SELECT delivered_ms, failing_since_ms, failures, next_ms, error, sent, unlisted FROM notifiers WHERE name = ?1",
                    [notifier],
                    |row| {
                        let sent: Vec<i64> = serde_json::from_str(&row.get::<_, String>(5)?).unwrap_or_default();
                        Ok(Delivery {
                            delivered: row.get::<_, Option<i64>>(0)?.map(time),
                            failing_since: row.get::<_, Option<i64>>(1)?.map(time),
                            failures: row.get::<_, i64>(2)?.unsigned_abs(),
                            next: row.get::<_, Option<i64>>(3)?.map(time),
                            error: row.get(4)?,
                            sent: sent.into_iter().map(time).collect(),
                            unlisted: row.get::<_, i64>(6)?.unsigned_abs(),
                            waiting: 0,
                        })
                    },
                )
                .optional()?;
            let waiting: i64 = connection.query_row("SELECT count(*) FROM waiting WHERE notifier = ?1", [notifier], |row| row.get(0))?;
            Ok(Delivery { waiting: waiting.unsigned_abs(), ..found.unwrap_or_default() })
        };
        query().map_err(self.failed("read"))
    }

    /// Notes that these events (by their numbers here) and `unlisted` more were delivered.
    ///
    /// # Errors
    /// When the file cannot be written: they will be delivered again.
    pub fn delivered(&self, notifier: &str, ids: &[i64], unlisted: u64, now: DateTime<Utc>) -> Result<()> {
        let before = self.delivery(notifier)?;
        let kept = before.sent.iter().copied().filter(|at| *at <= now).chain([now]);
        let sent: Vec<i64> = kept.map(|at| at.timestamp_millis()).collect();
        let sent = &sent[sent.len().saturating_sub(pace::SENDS_KEPT)..];
        let mut connection = self.lock();
        let mut write = || -> rusqlite::Result<()> {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for id in ids {
                transaction.prepare_cached("DELETE FROM waiting WHERE id = ?1")?.execute([id])?;
            }
            transaction.execute(
                "INSERT INTO notifiers (name, delivered_ms, sent) VALUES (?1, ?2, ?3)
                 ON CONFLICT (name) DO UPDATE SET delivered_ms = excluded.delivered_ms, failing_since_ms = NULL, failures = 0, next_ms = NULL,
                    error = NULL, sent = excluded.sent, unlisted = max(0, unlisted - ?4)",
                params![notifier, now.timestamp_millis(), text(&sent)?, signed(unlisted)],
            )?;
            transaction.commit()
        };
        write().map_err(self.failed("write"))
    }

    /// Notes that a delivery failed.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn not_delivered(&self, notifier: &str, why: &str, now: DateTime<Utc>) -> Result<Delivery> {
        let before = self.delivery(notifier)?;
        let failures = before.failures.saturating_add(1);
        let since = before.failing_since.map_or(now, |since| since.min(now));
        let next = pace::retry_at(failures, now);
        self.lock()
            .execute(
                "INSERT INTO notifiers (name, failing_since_ms, failures, next_ms, error) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (name) DO UPDATE SET failing_since_ms = excluded.failing_since_ms, failures = excluded.failures,
                    next_ms = excluded.next_ms, error = excluded.error",
                params![notifier, since.timestamp_millis(), signed(failures), next.timestamp_millis(), why],
            )
            .map_err(self.failed("write"))?;
        Ok(Delivery { failing_since: Some(since), failures, next: Some(next), error: Some(why.to_owned()), ..before })
    }

    /// Hands copies of what waits for one notifier to others, each event once; how many events that were.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn hand_over(&self, from: &str, to: &[String]) -> Result<usize> {
        let mut connection = self.lock();
        let mut write = || -> rusqlite::Result<usize> {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let events: Vec<String> = {
                let mut statement =
                    transaction.prepare_cached("SELECT event FROM waiting WHERE notifier = ?1 AND handed_over = 0 ORDER BY id")?;
                statement.query_map([from], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?
            };
            for notifier in to {
                for event in &events {
                    transaction
                        .prepare_cached("INSERT INTO waiting (notifier, event, handed_over) VALUES (?1, ?2, 1)")?
                        .execute(params![notifier, event])?;
                }
                bound(&transaction, notifier)?;
            }
            transaction.execute("UPDATE waiting SET handed_over = 1 WHERE notifier = ?1", [from])?;
            transaction.commit()?;
            Ok(events.len())
        };
        write().map_err(self.failed("write"))
    }

    /// Forgets notifiers that no plan file declares any more; their names.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn forget_others(&self, declared: &[&str]) -> Result<Vec<String>> {
        let mut connection = self.lock();
        let mut write = || -> rusqlite::Result<Vec<String>> {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let known: Vec<String> = {
                let mut statement = transaction.prepare("SELECT name FROM notifiers UNION SELECT notifier FROM waiting")?;
                statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?
            };
            let gone: Vec<String> = known.into_iter().filter(|name| !declared.contains(&name.as_str())).collect();
            for name in &gone {
                transaction.execute("DELETE FROM notifiers WHERE name = ?1", [name])?;
                transaction.execute("DELETE FROM waiting WHERE notifier = ?1", [name])?;
            }
            transaction.commit()?;
            Ok(gone)
        };
        write().map_err(self.failed("write"))
    }
}

/// What a look found; see [`Outbox::commit`].
pub struct Found<'a> {
    pub runs: &'a [SeenRun],
    pub keep_from: DateTime<Utc>,
    pub looked_until: DateTime<Utc>,
    pub before: &'a BTreeMap<String, Standing>,
    pub standing: &'a BTreeMap<String, Standing>,
    pub events: &'a [(String, Event)],
}

fn put(transaction: &rusqlite::Transaction<'_>, events: &[(String, Event)]) -> rusqlite::Result<()> {
    let mut notifiers: Vec<&str> = Vec::new();
    for (notifier, event) in events {
        transaction.prepare_cached("INSERT INTO waiting (notifier, event) VALUES (?1, ?2)")?.execute(params![notifier, text(event)?])?;
        if !notifiers.contains(&notifier.as_str()) {
            notifiers.push(notifier);
        }
    }
    notifiers.into_iter().try_for_each(|notifier| bound(transaction, notifier))
}

/// Counts the oldest instead of keeping them, where there are too many.
fn bound(transaction: &rusqlite::Transaction<'_>, notifier: &str) -> rusqlite::Result<()> {
    let most = i64::try_from(MOST_WAITING).unwrap_or(i64::MAX);
    let dropped = transaction.execute(
        "DELETE FROM waiting WHERE notifier = ?1 AND id <= (SELECT id FROM waiting WHERE notifier = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        params![notifier, most],
    )?;
    if dropped > 0 {
        transaction.execute(
            "INSERT INTO notifiers (name, unlisted) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET unlisted = unlisted + excluded.unlisted",
            params![notifier, i64::try_from(dropped).unwrap_or(i64::MAX)],
        )?;
    }
    Ok(())
}

fn text<T: serde::Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

fn time(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(ms).unwrap_or(DateTime::UNIX_EPOCH)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn failure(operation: &str, path: &Path, error: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode as Code;
    let message = format!("{operation} the outbox {}", path.display());
    let kind = match error.sqlite_error_code() {
        Some(Code::DatabaseCorrupt | Code::NotADatabase) => Kind::Damaged,
        Some(Code::DiskFull) => Kind::NoSpace,
        Some(Code::DatabaseBusy | Code::DatabaseLocked) => Kind::Busy,
        _ => Kind::Failed,
    };
    Error::new(kind, message).because(error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::daemon::notify::event::Change;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000 + second, 0).unwrap()
    }

    fn event(id: &str) -> Event {
        Event {
            id: id.into(),
            time: at(0),
            occasion: "failure".into(),
            change: Change::Raised,
            plan: Some("crm".into()),
            job: Some("backup".into()),
            problem: Some("failed".into()),
            since: Some(at(0)),
            run: None,
            message: "x".into(),
        }
    }

    fn commit(outbox: &Outbox, standing: &BTreeMap<String, Standing>, events: &[(String, Event)]) {
        let before = outbox.standing().unwrap();
        let found = Found { runs: &[], keep_from: at(0), looked_until: at(1), before: &before, standing, events };
        outbox.commit(&found).unwrap();
    }

    fn to(notifier: &str, id: &str) -> (String, Event) {
        (notifier.to_owned(), event(id))
    }

    fn ids(outbox: &Outbox, notifier: &str) -> Vec<String> {
        outbox.waiting(notifier, 10_000).unwrap().into_iter().map(|(_, event)| event.id).collect()
    }

    #[test]
    fn what_was_committed_is_there_after_a_crash_until_it_is_delivered() {
        let state = tempfile::tempdir().unwrap();
        let told = BTreeMap::from([("ops".to_owned(), (at(1), "failure".to_owned()))]);
        let stands =
            Standing { plan: Some("crm".into()), job: None, kind: "failed".into(), run: None, message: "m".into(), since: at(0), told };
        let standing = BTreeMap::from([("crm/run/backup".to_owned(), stands)]);
        {
            let outbox = Outbox::open(state.path()).unwrap();
            assert_eq!(outbox.looked_until(at(0)).unwrap(), (at(0), at(0)));
            commit(&outbox, &standing, &[to("ops", "1"), to("dba", "1"), to("ops", "2")]);
            // Killed here: nothing is closed in order.
            std::mem::forget(outbox);
        }
        let outbox = Outbox::open(state.path()).unwrap();
        assert_eq!((outbox.standing().unwrap(), outbox.looked_until(at(9)).unwrap()), (standing, (at(1), at(0))));
        assert_eq!(ids(&outbox, "ops"), ["1", "2"]);
        let first = outbox.waiting("ops", 1).unwrap()[0].0;
        outbox.delivered("ops", &[first], 0, at(2)).unwrap();
        assert_eq!((ids(&outbox, "ops"), ids(&outbox, "dba")), (vec!["2".to_owned()], vec!["1".to_owned()]));
        commit(&outbox, &BTreeMap::new(), &[]);
        assert!(outbox.standing().unwrap().is_empty());
    }

    #[test]
    fn failures_count_until_a_delivery_and_are_handed_over_once() {
        let state = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(state.path()).unwrap();
        outbox.looked_until(at(0)).unwrap();
        commit(&outbox, &BTreeMap::new(), &[to("ops", "1")]);
        outbox.not_delivered("ops", "HTTP 500", at(1)).unwrap();
        let failing = outbox.not_delivered("ops", "HTTP 502", at(20)).unwrap();
        assert_eq!((failing.failing_since, failing.failures, failing.next), (Some(at(1)), 2, Some(at(40))));
        assert_eq!(outbox.hand_over("ops", &["dba".into()]).unwrap(), 1);
        assert_eq!(outbox.hand_over("ops", &["dba".into()]).unwrap(), 0, "each event once");
        assert_eq!((ids(&outbox, "ops"), ids(&outbox, "dba")), (vec!["1".to_owned()], vec!["1".to_owned()]));
        assert_eq!(outbox.hand_over("dba", &["ops".into()]).unwrap(), 0, "what was handed over goes no further");
        outbox.delivered("ops", &[1], 0, at(60)).unwrap();
        let well = outbox.delivery("ops").unwrap();
        assert_eq!((well.failures, well.failing_since, well.error, well.sent), (0, None, None, vec![at(60)]));
        assert_eq!(outbox.forget_others(&["ops"]).unwrap(), ["dba"]);
        assert_eq!(ids(&outbox, "dba"), Vec::<String>::new());
    }

    #[test]
    fn too_many_events_are_counted() {
        let state = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(state.path()).unwrap();
        let many: Vec<(String, Event)> = (0..MOST_WAITING + 5).map(|i| to("ops", &i.to_string())).collect();
        commit(&outbox, &BTreeMap::new(), &many);
        let delivery = outbox.delivery("ops").unwrap();
        assert_eq!((delivery.waiting, delivery.unlisted), (MOST_WAITING as u64, 5));
        assert_eq!(ids(&outbox, "ops")[0], "5");
        outbox.delivered("ops", &[], 5, at(1)).unwrap();
        assert_eq!(outbox.delivery("ops").unwrap().unlisted, 0);
    }

    #[test]
    fn a_damaged_outbox_is_moved_aside_and_begun_anew() {
        let state = tempfile::tempdir().unwrap();
        std::fs::write(state.path().join(FILE), [b'x'; 4096]).unwrap();
        let outbox = Outbox::open(state.path()).unwrap();
        assert!(outbox.standing().unwrap().is_empty());
        assert!(state.path().join("notify.sqlite.damaged").exists());
        let mode = std::fs::metadata(state.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
