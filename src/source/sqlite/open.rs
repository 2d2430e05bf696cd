//! Opening databases, the live one and private copies, and saying clearly why one cannot be opened.

use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::Access;

use crate::error::{Error, IoContext, Kind, Result};
use crate::source::Diagnosis;
use crate::source::sqlite::content::{findings, needs_application};

/// SQLite's own wait for a lock, one attempt; [`super::snapshot`] repeats it, so that cancelling is noticed.
const ONE_WAIT: Duration = Duration::from_millis(100);

/// What the first 100 bytes of a database say (<https://www.sqlite.org/fileformat2.html#the_database_header>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub page_size: u32,
    pub wal: bool,
    pub page_count: u32,
    pub encoding: u32,
    pub auto_vacuum: bool,
    pub user_version: u32,
    pub application_id: u32,
}

impl Header {
    /// Reads the header of a private copy. Never call this for a live database (see the module documentation of `sqlite`).
    pub fn read(copy: &Path) -> Result<Self> {
        let mut bytes = [0; 100];
        let mut file = std::fs::File::open(copy).io_context(|| format!("open {}", copy.display()))?;
        file.read_exact(&mut bytes).io_context(|| format!("read the header of {}", copy.display()))?;
        Self::parse(&bytes).ok_or_else(|| Error::new(Kind::Damaged, format!("{} has no SQLite header", copy.display())))
    }

    fn parse(bytes: &[u8; 100]) -> Option<Self> {
        if !bytes.starts_with(b"SQLite format 3\0") {
            return None;
        }
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let page_size = match u16::from_be_bytes([bytes[16], bytes[17]]) {
            1 => 65536,
            size if size >= 512 && size.is_power_of_two() => u32::from(size),
            _ => return None,
        };
        Some(Self {
            page_size,
            wal: bytes[18] == 2,
            page_count: word(28),
            encoding: word(56),
            auto_vacuum: word(52) != 0,
            user_version: word(60),
            application_id: word(68),
        })
    }

    /// The name of the text encoding, as `PRAGMA encoding` says it.
    pub fn encoding_name(&self) -> &'static str {
        match self.encoding {
            2 => "UTF-16le",
            3 => "UTF-16be",
            _ => "UTF-8",
        }
    }
}

/// Looks at the path of a live database without opening it.
pub fn look(path: &Path) -> Result<std::fs::Metadata> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).map_err(|source| {
        let error = Error::io(format!("look at database {shown}"), source);
        match error.kind() {
            Kind::NotFound => error.hint("check `path` in the plan: there is no such file"),
            _ => error.hint("let the user that runs lifeboat enter the folder and read the file"),
        }
    })?;
    if metadata.is_dir() {
        return Err(Error::new(Kind::Usage, format!("database {shown} is a folder"))
            .hint("name the database file in `path`, or use a `files` source for the folder"));
    }
    if !metadata.is_file() {
        return Err(Error::new(Kind::Usage, format!("database {shown} is not a regular file")).hint("name the database file in `path`"));
    }
    rustix::fs::access(path, Access::READ_OK)
        .map_err(|errno| Error::io(format!("read database {shown}"), errno.into()).hint("let the user that runs lifeboat read the file"))?;
    Ok(metadata)
}

/// Opens a live database such that reading works in every journal mode and nothing is left behind or changed.
///
/// Reading a log needs write access to its shared memory, so the connection is writable where permitted (SQLite itself falls back to
/// reading only) and then told to refuse writes.
pub fn open_live(path: &Path) -> Result<Connection> {
    look(path)?;
    // When the last connection closes, SQLite copies the log into the database and deletes it. Where the log is somebody
    // else's (a crashed application's), that is not for a backup to do; where there was none, it cleans up ours.
    let had_log = log_bytes(path) > 0;
    let open = || -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(ONE_WAIT)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, had_log)?;
        connection.execute_batch("PRAGMA query_only = ON")?;
        Ok(connection)
    };
    open().map_err(|source| classify(source, format!("open database {}", path.display())))
}

/// Opens a private copy that nobody else writes to, strictly for reading: no lock, no log, no shared memory, no journal is made or
/// looked at, and the schema is not trusted to call anything dangerous.
pub fn open_copy(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(immutable_uri(path), flags)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.execute_batch("PRAGMA query_only = ON; PRAGMA cell_size_check = ON")?;
    Ok(connection)
}

/// The path of a database's companion file.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// How long the log of a live database is; it lies beside the file itself, not beside a link to it.
fn log_bytes(path: &Path) -> u64 {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    std::fs::metadata(beside(&real, "-wal")).map_or(0, |log| log.len())
}

/// Names a private copy so that SQLite neither locks it nor looks for a log beside it.
pub fn immutable_uri(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut uri = String::from("file://");
    for &byte in absolute.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri + "?immutable=1"
}

/// Whether a WAL's shared-memory file found no room: SQLite calls that an I/O error.
pub fn no_room_for_index(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE)
}

/// Turns an SQLite error on the live database into one that says how to react.
pub fn classify(source: rusqlite::Error, message: String) -> Error {
    let (kind, hint) = match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            (Kind::Busy, "another process holds an exclusive lock on the database; try again, or find out who holds it for so long")
        }
        Some(ErrorCode::NotADatabase) => {
            (Kind::Failed, "the file is not an SQLite database, or it is encrypted: check `path`, or dump it with a `command` source")
        }
        Some(ErrorCode::DatabaseCorrupt) => (
            Kind::Damaged,
            "the live database is damaged: save the raw file with a `files` source before repairing it with `.recover` of sqlite3",
        ),
        _ if no_room_for_index(&source) => (Kind::NoSpace, "free space on the file system of the database"),
        Some(ErrorCode::DiskFull) => (Kind::NoSpace, "free space for a copy of the database in the state folder"),
        Some(ErrorCode::CannotOpen) => (
            Kind::Failed,
            "SQLite must read the file, and for a database in WAL mode write to its folder: run lifeboat as the user that owns the database",
        ),
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            (Kind::Failed, "run lifeboat as the user that owns the database: its journal has to be rolled back or its log recovered first")
        }
        Some(ErrorCode::OutOfMemory) => (Kind::NoSpace, "SQLite ran out of memory"),
        Some(ErrorCode::OperationInterrupted) => (Kind::Interrupted, "run the same command again"),
        _ => (Kind::Failed, "look at the cause; `lifeboat doctor` checks what a backup of this database needs"),
    };
    Error::new(kind, message).because(source).hint(hint)
}

/// Everything that a backup needs, looked at without changing anything.
pub fn diagnose(path: &Path) -> Vec<Diagnosis> {
    let mut found = vec![Diagnosis { name: "sqlite version".into(), ok: true, message: rusqlite::version().to_owned() }];
    let mut say = |name: &str, ok: bool, message: String| found.push(Diagnosis { name: name.into(), ok, message });
    let size_bytes = match look(path) {
        Ok(metadata) => {
            // An empty one is told once, below.
            if metadata.len() > 0 {
                say("database file", true, format!("{}, {} bytes", path.display(), metadata.len()));
            }
            metadata.len()
        }
        Err(error) => {
            say("database file", false, explain(&error));
            return found;
        }
    };
    if size_bytes == 0 {
        say("database content", false, format!("{} is empty: check that this is the file the application uses", path.display()));
        return found;
    }
    let read = || -> Result<(String, u32, u32)> {
        let connection = open_live(path)?;
        let ask = || -> rusqlite::Result<_> {
            Ok((
                connection.query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0))?,
                connection.query_row("PRAGMA page_size", [], |row| row.get(0))?,
                connection.query_row("PRAGMA page_count", [], |row| row.get(0))?,
            ))
        };
        ask().map_err(|source| classify(source, format!("read database {}", path.display())))
    };
    match read() {
        Ok((mode, page_size, pages)) => {
            let (sound, found) = match check_live(path) {
                Ok(found) => found,
                Err(error) => (false, explain(&error)),
            };
            say("database content", sound, format!("SQLite, {pages} pages of {page_size} bytes; {found}"));
            let wal = mode == "wal";
            let note = if wal { "" } else { ": writers wait while the copy is made; WAL mode avoids that" };
            say("journal mode", true, format!("{mode}{note}"));
        }
        Err(error) => say("database content", false, explain(&error)),
    }
    found
}

/// How long doctor may look into a live database: while it does, writers wait in rollback-journal mode.
const CHECK_LIMIT: Duration = Duration::from_secs(2);
/// SQLite's steps between two looks at the clock: well below a millisecond.
const STEPS_PER_LOOK: i32 = 1000;

/// `quick_check` on the live database as far as it comes in [`CHECK_LIMIT`]: whether nothing was found, and in words what was looked at.
fn check_live(path: &Path) -> Result<(bool, String)> {
    let mut connection = open_live(path)?;
    let deadline = std::time::Instant::now() + CHECK_LIMIT;
    let failed = |source| classify(source, format!("check database {}", path.display()));
    connection.progress_handler(STEPS_PER_LOOK, Some(move || std::time::Instant::now() > deadline)).map_err(failed)?;
    let tables = || -> rusqlite::Result<i64> { connection.query_row("SELECT count(*) FROM main.sqlite_schema", [], |row| row.get(0)) };
    match tables().and_then(|_| findings(&connection, "quick_check")) {
        Ok(found) => Ok(match found.first() {
            None => (true, "quick_check found nothing".to_owned()),
            Some(first) => {
                let more = if found.len() > 1 { format!(" and {} more", found.len() - 1) } else { String::new() };
                (false, format!("quick_check: {}{more}: a backup of it is incomplete or fails", first.trim()))
            }
        }),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
            Ok((true, format!("quick_check found nothing in {} s and was cut short; a backup checks all of it", CHECK_LIMIT.as_secs())))
        }
        Err(error) if needs_application(&error) => Ok((true, format!("quick_check is not possible without its application: {error}"))),
        Err(error) => Err(failed(error)),
    }
}

/// Whether the folder for staging copies has room for a copy of the database.
///
/// # Errors
/// [`Kind::NoSpace`] when it has not.
pub fn check_room(path: &Path, scratch: &Path) -> Result<()> {
    // Pages of the log may replace pages of the database or come after them: the sum is the most that the copy can take.
    let needed = std::fs::metadata(path).map_or(0, |metadata| metadata.len()) + log_bytes(path);
    let Ok(room) = rustix::fs::statvfs(scratch) else { return Ok(()) };
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    if free >= needed {
        return Ok(());
    }
    let message = format!("no room for a copy of {} in {}: needs {needed} bytes, {free} are free", path.display(), scratch.display());
    Err(Error::new(Kind::NoSpace, message).hint("free space there, or choose another state folder with --state"))
}

fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    for cause in error.causes() {
        text = text + ": " + &cause;
    }
    match error.hint_text() {
        Some(hint) => text + " (" + hint + ")",
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uri_escapes_everything_that_could_be_read_as_syntax() {
        let uri = immutable_uri(Path::new(std::ffi::OsStr::from_bytes(b"/a b/\xff?mode=rw#%41.db")));
        assert_eq!(uri, "file:///a%20b/%FF%3Fmode%3Drw%23%2541.db?immutable=1");
    }

    #[test]
    fn header_of_something_else_is_refused() {
        assert_eq!(Header::parse(&[0; 100]), None);
        let mut bytes = [0; 100];
        bytes[..16].copy_from_slice(b"SQLite format 3\0");
        assert_eq!(Header::parse(&bytes), None, "page size 0");
        bytes[17] = 1;
        assert_eq!(Header::parse(&bytes).map(|header| header.page_size), Some(65536));
    }
}
