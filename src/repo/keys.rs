//! Keys and roles.
use serde::{Deserialize, Serialize};

/// What a key holder can do. Ordered: a later role can do what an earlier one can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees metadata, verifies objects, prunes; cannot read data.
    Maintainer,
    /// Backs up; cannot read data.
    Writer,
    /// Restores, drills, manages keys.
    Reader,
}

/// A passphrase or recovery key as typed. Zeroized; `Debug` shows nothing.
#[derive(Clone)]
pub struct Passphrase(zeroize::Zeroizing<String>);

impl Passphrase {
    pub fn new(text: impl Into<String>) -> Self {
        Self(zeroize::Zeroizing::new(text.into()))
    }
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// The key printed once at `repo init`; usable wherever a passphrase is.
pub struct RecoveryKey(Passphrase);

impl RecoveryKey {
    /// The text to show once: groups of letters and digits.
    pub fn reveal(&self) -> &str {
        self.0.expose()
    }
}

/// The public part of a key slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySlot {
    pub id: String,
    pub label: String,
    pub role: Role,
    pub created: chrono::DateTime<chrono::Utc>,
    /// Whether this is the slot that the repository was opened with.
    pub current: bool,
}
