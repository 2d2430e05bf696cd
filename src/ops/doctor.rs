//! Doctor: looks at everything a run needs before it runs, and changes nothing (but for probe objects it removes again).

use serde::{Deserialize, Serialize};

use super::resolve::{Resolved, Surroundings};
use crate::error::Kind;
use crate::source::Diagnosis;

/// `lifeboat.doctor/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorReport {
    pub schema: String,
    pub plan: String,
    pub checks: Vec<Diagnosis>,
    pub ok: bool,
    /// The word of the most telling failure's kind (`no-repository`, `wrong-key`, …).
    pub exit: Option<String>,
}

impl DoctorReport {
    /// How the process should end: `None` is exit 0.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        todo!()
    }
}

/// Examines one plan. Never fails as such: what is wrong is in the report.
#[must_use]
pub fn run(_resolved: &Resolved, _surroundings: &Surroundings) -> DoctorReport {
    todo!()
}
