//! Identifiers as types that can only be built valid, also through serde.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::error::{Error, Kind, Result};

/// The name of a plan, source, repository or notifier in plan files: 1–64 of `a-z A-Z 0-9 _ - .`, starting with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// # Errors
    /// [`Kind::Usage`] when the text is not a valid name.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let valid = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
            && text.as_bytes()[0].is_ascii_alphanumeric();
        if valid {
            Ok(Self(text))
        } else {
            Err(Error::new(Kind::Usage, format!("not a valid name: {text:?}"))
                .hint("a name is 1 to 64 letters, digits, '_', '-' or '.', and starts with a letter or digit"))
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        Self::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl FromStr for Name {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::new(text)
    }
}

/// Maps by name are searched by text.
impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The year 2200 in milliseconds since 1970: a name a century ahead is no clock's.
const CENTURY_AHEAD: u64 = 7_258_118_400_000;

macro_rules! ulid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Ulid);

        impl $name {
            /// A new identifier whose first 48 bits are `unix_ms` (for sorting only, never for safety) and the rest is random.
            #[must_use]
            pub fn generate(now: chrono::DateTime<chrono::Utc>) -> Self {
                let mut random = [0u8; 16];
                getrandom::fill(&mut random[..10]).expect("the operating system's random source works");
                let ms = u64::try_from(now.timestamp_millis()).unwrap_or(0);
                Self(Ulid::from_parts(ms, u128::from_le_bytes(random)))
            }
        }

        impl $name {
            /// Like `generate`, but sorts after `newest` even when the clock went backwards.
            #[must_use]
            pub fn generate_after(now: chrono::DateTime<chrono::Utc>, newest: Option<Self>) -> Self {
                let id = Self::generate(now);
                match newest {
                    Some(newest) if id.0.timestamp_ms() <= newest.0.timestamp_ms() && newest.0.timestamp_ms() + 1 < CENTURY_AHEAD => {
                        let random = id.0.random();
                        Self(Ulid::from_parts(newest.0.timestamp_ms() + 1, random))
                    }
                    _ => id,
                }
            }

            /// Whether a clock can have said the moment in it.
            #[must_use]
            pub fn is_of_a_clock(self) -> bool {
                self.0.timestamp_ms() < CENTURY_AHEAD
            }
        }

        impl $name {
            /// When it was generated, by the clock of who did; `None` where that is no moment.
            #[must_use]
            pub fn generated(self) -> Option<chrono::DateTime<chrono::Utc>> {
                chrono::DateTime::from_timestamp_millis(i64::try_from(self.0.timestamp_ms()).ok()?)
            }
        }

        impl $name {
            /// As it is stored in binary: sorts like the text.
            #[must_use]
            pub fn to_bytes(self) -> [u8; 16] {
                self.0.to_bytes()
            }

            /// The inverse of `to_bytes`.
            #[must_use]
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Ulid::from_bytes(bytes))
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl FromStr for $name {
            type Err = Error;
            /// Accepts upper and lower case.
            fn from_str(text: &str) -> Result<Self> {
                Ulid::from_string(&text.to_ascii_uppercase())
                    .map(Self)
                    .map_err(|_| Error::new(Kind::Usage, format!("not a valid id: {text:?}")).hint("an id is 26 letters and digits, as printed by `lifeboat snapshots`"))
            }
        }

        impl fmt::Display for $name {
            /// Lower case, 26 characters.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0.to_string().to_ascii_lowercase())
            }
        }
    };
}

ulid_id!(
    /// Identifies a snapshot; sorts by the committing host's clock.
    SnapshotId
);
ulid_id!(
    /// Identifies a run in the journal.
    RunId
);
ulid_id!(
    /// Identifies a report (drill, verify) in the repository; sorts by the order in which they were begun.
    ReportId
);
ulid_id!(
    /// Identifies a writer's session in the repository.
    SessionId
);
