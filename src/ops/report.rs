//! A drill report as text for people. Pure.

use super::drill::DrillReport;

/// The recovery report: verdict first, then what was restored, checked, measured and skipped. Lines end with `\n`; no colours.
#[must_use]
pub fn text(_report: &DrillReport) -> String {
    todo!()
}
