//! The little language of `expect` in a drill's check. (Stub: replaced when the real one is merged.)

use serde::{Deserialize, Serialize};

use crate::error::Result;

/// A comparison that a check's value must satisfy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expectation(String);

impl Expectation {
    /// # Errors
    /// Never, in this stub.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(Self(text.to_owned()))
    }

    /// Whether a value (NULL is `None`) satisfies it; this stub knows `= value` and `>= integer`.
    pub fn holds(&self, value: Option<&str>) -> bool {
        let Some(value) = value else { return false };
        match self.0.split_once(' ') {
            Some(("=", wanted)) => wanted.trim_matches('\'') == value,
            Some((">=", wanted)) => matches!((value.parse::<i64>(), wanted.parse::<i64>()), (Ok(value), Ok(wanted)) if value >= wanted),
            _ => false,
        }
    }
}

impl std::fmt::Display for Expectation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
