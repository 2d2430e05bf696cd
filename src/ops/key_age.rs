//! Key slots that are older than the plan files want them to be. Such a slot opens as ever: no incident fails by a date. Pure.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::ops::select;
use crate::repo::KeySlot;

/// So long before it is too old a slot is told of: time to make another one and to hand it out.
pub const WARNING: TimeDelta = TimeDelta::days(21);

/// A slot to be exchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aged {
    /// Of the slot.
    pub id: String,
    /// Whether it is too old already.
    pub over: bool,
    /// A sentence.
    pub message: String,
}

/// The slots that are too old, or will be within [`WARNING`], in the order given.
#[must_use]
pub fn aged(repository: &str, slots: &[KeySlot], max_age: Duration, now: DateTime<Utc>) -> Vec<Aged> {
    let max_age = TimeDelta::from_std(max_age).unwrap_or(TimeDelta::MAX);
    let days = max_age.num_days();
    let judge = |slot: &KeySlot| {
        let until = slot.created.checked_add_signed(max_age).filter(|until| *until - now < WARNING)?;
        let over = until <= now;
        let what = if over { "is older than" } else { "will soon be older than" };
        let message = format!(
            "key {} ({}, {}, {}) of repository {repository}, made at {}, {what} the {days} days of `max_key_age` ({}): add another with \
             `lifeboat key add {repository}`, hand it out, then `lifeboat key remove {repository} {}`",
            slot.id,
            slot.label,
            slot.role,
            slot.kind,
            select::moment(slot.created),
            select::moment(until),
            slot.id
        );
        Some(Aged { id: slot.id.clone(), over, message })
    };
    slots.iter().filter_map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::Role;

    #[test]
    fn a_slot_is_told_of_three_weeks_before_it_is_too_old_and_from_then_on() {
        let slot = |id: &str, created: &str| KeySlot {
            id: id.into(),
            label: "ops".into(),
            role: Role::Reader,
            kind: "passphrase".into(),
            created: format!("{created}T00:00:00Z").parse().unwrap(),
            generation: 1,
            current: true,
        };
        let slots = [slot("a", "2025-11-20"), slot("b", "2025-12-05"), slot("c", "2026-10-01")];
        let now = "2026-11-20T12:00:00Z".parse().unwrap();
        let found = aged("main", &slots, Duration::from_hours(365 * 24), now);
        let short: Vec<(&str, bool)> = found.iter().map(|aged| (aged.id.as_str(), aged.over)).collect();
        assert_eq!(short, [("a", true), ("b", false)], "{found:?}");
        assert!(found[0].message.contains("is older than the 365 days") && found[1].message.contains("will soon be"), "{found:?}");
        assert!(aged("main", &slots, Duration::MAX, now).is_empty());
    }
}
