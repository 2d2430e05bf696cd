//! The little language of `expect` in a drill's check.

use serde::{Deserialize, Serialize};

/// A comparison that a check's value must satisfy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expectation(String);
