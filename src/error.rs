//! The one error type of the program, classified by how a caller or an operator can react.
//!
//! An error says operation + object in lower case without a full stop; the cause is kept as `source` and printed once, by the
//! edge. `hint` says what to do. Nothing secret ever goes into any of them.

use std::error::Error as StdError;
use std::fmt;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure: decides the exit code (`docs/reference/command-line.md`) and whether a retry makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Failed for a reason that a retry will not change. Exit 1.
    Failed,
    /// The store, a server or a child process is away or overloaded; the same call may work later. Exit 1.
    Unavailable,
    /// Disk full, memory limit, open files: the machine has no room. Exit 1.
    NoSpace,
    /// Usage, plan or configuration error; nothing was started. Exit 2.
    Usage,
    /// Finished, but something that was asked for is missing. Exit 3.
    Incomplete,
    /// An object that must not exist exists already. Exit 1.
    AlreadyExists,
    /// Two hosts wrote different content for the same stretch of a log: one of them is not what it believes to be. Exit 1.
    SplitBrain,
    /// A single object or file is not there. Exit 1.
    NotFound,
    /// There is no repository at this place. Exit 10.
    NoRepository,
    /// Somebody else holds it; safe to try again. Exit 11.
    Busy,
    /// Wrong key or passphrase, or a key whose role does not allow this. Exit 12.
    WrongKey,
    /// The recovery point does not exist. Exit 13.
    NoRecoveryPoint,
    /// Stored or restored bytes are damaged. Exit 20.
    Damaged,
    /// Restored content differs from what was backed up. Exit 21.
    Differs,
    /// Recovery worked but an objective was missed. Exit 22.
    ObjectiveMissed,
    /// Interrupted by a signal. Exit 130.
    Interrupted,
    /// An invariant of this program does not hold. Exit 1.
    Bug,
}

impl Kind {
    const ALL: [Self; 17] = [
        Self::Failed,
        Self::Unavailable,
        Self::NoSpace,
        Self::Usage,
        Self::Incomplete,
        Self::AlreadyExists,
        Self::SplitBrain,
        Self::NotFound,
        Self::NoRepository,
        Self::Busy,
        Self::WrongKey,
        Self::NoRecoveryPoint,
        Self::Damaged,
        Self::Differs,
        Self::ObjectiveMissed,
        Self::Interrupted,
        Self::Bug,
    ];

    /// The process exit code of the command-line contract.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed | Self::Unavailable | Self::NoSpace | Self::AlreadyExists | Self::SplitBrain | Self::NotFound | Self::Bug => 1,
            Self::Usage => 2,
            Self::Incomplete => 3,
            Self::NoRepository => 10,
            Self::Busy => 11,
            Self::WrongKey => 12,
            Self::NoRecoveryPoint => 13,
            Self::Damaged => 20,
            Self::Differs => 21,
            Self::ObjectiveMissed => 22,
            Self::Interrupted => 130,
        }
    }

    /// The stable word used for `error.kind` in JSON, in the journal and in metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Unavailable => "unavailable",
            Self::NoSpace => "no-space",
            Self::Usage => "usage",
            Self::Incomplete => "incomplete",
            Self::AlreadyExists => "already-exists",
            Self::SplitBrain => "split-brain",
            Self::NotFound => "not-found",
            Self::NoRepository => "no-repository",
            Self::Busy => "busy",
            Self::WrongKey => "wrong-key",
            Self::NoRecoveryPoint => "no-recovery-point",
            Self::Damaged => "damaged",
            Self::Differs => "differs",
            Self::ObjectiveMissed => "objective-missed",
            Self::Interrupted => "interrupted",
            Self::Bug => "bug",
        }
    }

    /// The kind with this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }

    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn may_pass(self) -> bool {
        matches!(self, Self::Unavailable | Self::Busy)
    }
}

/// An error with its kind, what was being done to what, what to do about it, and its cause.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    message: String,
    hint: Option<String>,
    said: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// `message`: operation + object, lower case, no full stop, nothing secret.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), hint: None, said: None, source: None }))
    }

    /// Adds the cause. Its text must not repeat in `message`.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Adds what the operator should do, as a sentence.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds what a program of the plan said, which may quote what it worked on. It is for the operator's eyes only: no message, cause,
    /// document, log or journal has it.
    #[must_use]
    pub fn saying(mut self, said: Option<String>) -> Self {
        self.0.said = said;
        self
    }

    /// What was given to [`Error::saying`], here or at a cause. To be shown on a terminal and kept nowhere.
    #[must_use]
    pub fn said(&self) -> Option<&str> {
        if let Some(said) = self.0.said.as_deref() {
            return Some(said);
        }
        self.0.source.as_deref().and_then(|s| s.downcast_ref::<Self>()).and_then(Self::said)
    }

    /// An I/O failure on a path: `message` names operation and path. A full disk is told apart.
    pub fn io(message: impl Into<String>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match source.kind() {
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => Kind::NoSpace,
            Io::NotFound => Kind::NotFound,
            _ => Kind::Failed,
        };
        let error = Self::new(kind, message).because(source);
        if kind == Kind::NoSpace { error.hint("free space on that file system, then run the same command again") } else { error }
    }

    /// How a caller can react.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// What the operator should do, when there is something to say.
    #[must_use]
    pub fn hint_text(&self) -> Option<&str> {
        if let Some(hint) = self.0.hint.as_deref() {
            return Some(hint);
        }
        self.0.source.as_deref().and_then(|s| s.downcast_ref::<Self>()).and_then(Self::hint_text)
    }

    /// The messages of the causes, outermost first, without this error's own.
    #[must_use]
    pub fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut next: Option<&(dyn StdError + 'static)> = self.0.source.as_deref().map(|s| s as _);
        while let Some(error) = next {
            let text = error.to_string();
            if causes.last() != Some(&text) {
                causes.push(text);
            }
            next = error.source();
        }
        causes
    }

    /// Wraps this error under a wider operation, keeping kind (and so the exit code) and hint.
    #[must_use]
    pub fn within(self, message: impl Into<String>) -> Self {
        let kind = self.kind();
        Self::new(kind, message).because(self)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.0.message, self.0.kind.word())?;
        for cause in self.causes() {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|s| s as _)
    }
}

/// Adds operation and object to a foreign error.
pub trait Context<T> {
    /// Turns any error into one of `kind`; `message` is only built on failure.
    ///
    /// # Errors
    /// The mapped error.
    fn context(self, kind: Kind, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Box<dyn StdError + Send + Sync>>> Context<T> for std::result::Result<T, E> {
    fn context(self, kind: Kind, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::new(kind, message()).because(source))
    }
}

/// Adds operation and path to an I/O error.
pub trait IoContext<T> {
    /// Like [`Error::io`]; `message` is only built on failure.
    ///
    /// # Errors
    /// The mapped error.
    fn io_context(self, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn io_context(self, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::io(message(), source))
    }
}
