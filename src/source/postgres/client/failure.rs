//! What a server says went wrong, as this program's errors.

use std::error::Error as StdError;
use std::fmt;

use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::ErrorFields;

use crate::error::{Error, Kind};

/// So ends what is told of a server that says nothing.
pub(super) const SILENCE: &str = "does not answer in time";

/// A server's error, the cause of the [`Error`]s that [`crate::source::postgres::client`] returns for one; or its warning. DETAIL, CONTEXT and the
/// statement are not kept: they show rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL` or `PANIC`; `WARNING`, `NOTICE`, … of what is no error.
    pub severity: String,
    /// Five letters (PostgreSQL manual, appendix "Error Codes").
    pub sqlstate: String,
    pub message: String,
    pub hint: Option<String>,
    /// The function of the server's source that says so: what a message is about, in whatever language it comes.
    pub routine: String,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (SQLSTATE {})", self.severity, self.message, self.sqlstate)
    }
}

impl StdError for ServerError {}

impl ServerError {
    pub(crate) fn read(mut fields: ErrorFields<'_>) -> Self {
        let mut read =
            Self { severity: "ERROR".into(), sqlstate: String::new(), message: String::new(), hint: None, routine: String::new() };
        // A malformed rest changes nothing: it was said all the same.
        while let Ok(Some(field)) = fields.next() {
            let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                // `V` is never translated, `S` may be.
                b'V' => read.severity = text(),
                b'C' => read.sqlstate = text(),
                b'M' => read.message = text(),
                b'H' => read.hint = Some(text()),
                b'R' => read.routine = text(),
                _ => {}
            }
        }
        read
    }

    /// Whether the session is over.
    pub(crate) fn is_fatal(&self) -> bool {
        self.severity != "ERROR"
    }

    /// `doing`: what was being done to what.
    pub(crate) fn into_error(self, doing: String, at_login: bool) -> Error {
        let kind = kind(&self.sqlstate, at_login);
        let hint = self.hint.clone().or_else(|| usual_hint(&self.sqlstate, &self.routine).map(str::to_owned));
        let error = Error::new(kind, doing).because(self);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

fn kind(sqlstate: &str, at_login: bool) -> Kind {
    match sqlstate {
        "53100" => Kind::NoSpace,
        "57P01" | "57P02" | "57P03" | "57P05" => Kind::Unavailable,
        "55P03" | "55006" | "40001" | "40P01" => Kind::Busy,
        "XX001" | "XX002" => Kind::Damaged,
        "42704" | "58P01" => Kind::NotFound,
        "42710" => Kind::AlreadyExists,
        _ if sqlstate.starts_with("08") || sqlstate.starts_with("53") => Kind::Unavailable,
        _ if at_login => Kind::Usage,
        _ => Kind::Failed,
    }
}

fn usual_hint(sqlstate: &str, routine: &str) -> Option<&'static str> {
    Some(match sqlstate {
        "53300" if routine == "CheckMyDatabase" => {
            "All connections that this database may have are taken: ALTER DATABASE … CONNECTION LIMIT, or try later."
        }
        "53300" if routine == "InitializeSessionUserId" => {
            "All connections that this role may have are taken: ALTER ROLE … CONNECTION LIMIT, or try later."
        }
        "22P05" => {
            "A name, a comment or a value has a character without an equivalent in UTF-8, in which lifeboat asks; only rows are read in the database's own encoding."
        }
        "28P01" => "Is the password right? The server's log says more than it tells its clients.",
        "28000" => "The server refuses this login: look at pg_hba.conf and at the role (LOGIN, REPLICATION).",
        "3D000" => "Name a database that exists (dbname=…).",
        "42501" => "The role lacks a privilege; docs/guide.md lists those that a backup needs.",
        "53300" => "All connections are taken: raise max_connections or max_wal_senders, or try later.",
        "57P01" | "57P02" | "57P03" => "The server is starting or stopping; run the same command again when it is up.",
        _ => return None,
    })
}

/// The SQLSTATE of the server's error that caused `error`, if one did.
#[must_use]
pub fn sqlstate(error: &Error) -> Option<&str> {
    server_error(error).map(|cause| cause.sqlstate.as_str())
}

/// The server's error that caused `error`, if one did.
#[must_use]
pub fn server_error(error: &Error) -> Option<&ServerError> {
    let mut next: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<ServerError>() {
            return Some(found);
        }
        next = cause.source();
    }
    None
}

/// Whether the connection was lost, or there was nobody to connect to: not what a server said, nor that it says nothing.
#[must_use]
pub(in crate::source::postgres) fn is_broken(error: &Error) -> bool {
    let is_silence = |text: &str| text.ends_with(SILENCE);
    error.kind() == Kind::Unavailable
        && server_error(error).is_none()
        && !is_silence(&error.to_string())
        && !error.causes().iter().any(|cause| is_silence(cause))
}
