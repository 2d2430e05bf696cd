//! What the journal needs of a database: statements with parameters, all or nothing, durable when they return.
//!
//! The statements are the same for every database (`tables`); a driver says how it writes what is not standard SQL.

use crate::error::{Error, Kind, Result};

/// One value of a row or parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    Int(i64),
    Text(String),
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// One row of an answer.
#[derive(Debug)]
pub(super) struct Row(pub(super) Vec<Value>);

impl Row {
    /// A number that must be there.
    pub(super) fn int(&self, column: usize) -> Result<i64> {
        self.optional_int(column)?.ok_or_else(|| odd(column))
    }

    /// A number or nothing.
    pub(super) fn optional_int(&self, column: usize) -> Result<Option<i64>> {
        match self.0.get(column) {
            Some(Value::Int(number)) => Ok(Some(*number)),
            Some(Value::Null) => Ok(None),
            // PostgreSQL's answers are all text.
            Some(Value::Text(text)) => text.parse().map(Some).map_err(|_| odd(column)),
            None => Err(odd(column)),
        }
    }

    /// A text that must be there.
    pub(super) fn text(&self, column: usize) -> Result<String> {
        self.optional_text(column)?.ok_or_else(|| odd(column))
    }

    /// A text or nothing.
    pub(super) fn optional_text(&self, column: usize) -> Result<Option<String>> {
        match self.0.get(column) {
            Some(Value::Text(text)) => Ok(Some(text.clone())),
            Some(Value::Null) => Ok(None),
            Some(Value::Int(_)) | None => Err(odd(column)),
        }
    }
}

fn odd(column: usize) -> Error {
    Error::new(Kind::Failed, format!("read the journal: column {column} of an answer is not what it must be"))
        .hint("something else than lifeboat has written to it; `lifeboat run rebuild` makes it anew from the repositories")
}

/// A statement and its parameters, `$1`, `$2`, … in the order of their first appearance.
#[derive(Debug, Clone)]
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) values: Vec<Value>,
}

impl Statement {
    pub(super) fn new(sql: impl Into<String>, values: Vec<Value>) -> Self {
        Self { sql: sql.into(), values }
    }
}

/// What the statements are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Changes nothing.
    Read,
    /// Doing it twice is the same as doing it once.
    WriteAgain,
    /// Must not be repeated when its answer is lost.
    WriteOnce,
}

impl Purpose {
    /// For messages.
    pub(super) fn word(self) -> &'static str {
        if self == Self::Read { "read" } else { "write" }
    }
}

/// One kind of database.
pub(super) trait Database: Send + Sync {
    /// Runs the statements in one transaction and yields the rows of the last one.
    ///
    /// # Errors
    /// `AlreadyExists` when a unique index refuses; `Unavailable` when the database cannot be reached; `NoSpace`, `Busy`, `Failed`.
    fn run(&self, purpose: Purpose, statements: &[Statement]) -> Result<Vec<Row>>;

    /// SQL for the milliseconds of the clock that leases are measured by.
    fn clock(&self, now_ms: i64) -> String;

    /// What must run before [`Database::fence`] in the same transaction.
    fn before_fence(&self) -> Option<Statement>;

    /// SQL for the next fencing number: greater than every earlier one of the same row.
    fn fence(&self) -> &'static str;

    /// Columns of the unique indexes at which a further attempt of a slot is noticed; a database that looks at another index first must have it here.
    fn slot_conflicts(&self) -> &'static [&'static str];

    /// SQL table function over the parameter `$1`, a JSON array, with a column `value` for each element.
    fn each(&self) -> &'static str;

    /// SQL function for the greater of two values.
    fn greatest(&self) -> &'static str;

    /// Whether nodes on other machines may use it: then a lease decides who is alive, and not only a lock file on this machine.
    fn is_shared(&self) -> bool;

    /// SQL that is 1 when the lease of a row of `runs` is over and 0 when it is not, or cannot be told.
    fn lease_is_over(&self) -> &'static str;

    /// Whether this process itself could have heard of renewals for a while.
    fn has_settled(&self) -> bool;

    /// How messages name it.
    fn place(&self) -> String;

    /// Sets a pragma of the embedded one.
    #[cfg(test)]
    fn pragma(&self, name: &str, value: i64);
}
