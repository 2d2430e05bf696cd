//! Times as an operator types them.

use chrono::{DateTime, MappedLocalTime, NaiveDate, NaiveDateTime, TimeZone, Utc};
use chrono_tz::Tz;

use crate::error::{Error, Kind, Result};

/// Reads RFC 3339, or a local time in `zone` (`2026-11-20 14:31`, seconds optional; a day alone is its midnight).
///
/// # Errors
/// `Usage` for anything else, and for a local time that does not exist or occurs twice there: the hint gives both readings.
pub fn parse(text: &str, zone: Tz) -> Result<DateTime<Utc>> {
    let text = text.trim();
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.with_timezone(&Utc));
    }
    let local = ["%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M"]
        .iter()
        .find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())
        .or_else(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0))
        .ok_or_else(|| {
            Error::new(Kind::Usage, format!("not a time: {text:?}"))
                .hint("write RFC 3339 such as 2026-11-20T06:31:00Z, or local time of the plan's `timezone` (UTC where the plan has none, and with --from) such as '2026-11-20 14:31'")
        })?;
    match zone.from_local_datetime(&local) {
        MappedLocalTime::Single(time) => Ok(time.with_timezone(&Utc)),
        MappedLocalTime::Ambiguous(first, second) => Err(Error::new(Kind::Usage, format!("the local time {text} occurs twice in {zone}"))
            .hint(format!("say which one: {} or {}", first.to_rfc3339(), second.to_rfc3339()))),
        MappedLocalTime::None => Err(Error::new(Kind::Usage, format!("the local time {text} does not exist in {zone}"))
            .hint("the clocks were set forward over it; name an earlier or a later time")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn both_forms_are_read() {
        let shanghai = chrono_tz::Asia::Shanghai;
        for text in ["2026-11-20T14:31:00+08:00", "2026-11-20T06:31:00Z", "2026-11-20 14:31", "2026-11-20 14:31:00", "2026-11-20T14:31"] {
            assert_eq!(parse(text, shanghai).unwrap(), utc("2026-11-20T06:31:00Z"), "{text}");
        }
        assert_eq!(parse("2026-11-20", shanghai).unwrap(), utc("2026-11-19T16:00:00Z"));
        assert_eq!(parse("yesterday", shanghai).unwrap_err().kind(), Kind::Usage);
    }

    #[test]
    fn a_local_time_that_occurs_twice_or_never_is_refused_with_a_way_out() {
        let berlin = chrono_tz::Europe::Berlin;
        let twice = parse("2026-10-25 02:30", berlin).unwrap_err();
        assert!(twice.hint_text().unwrap().contains("2026-10-25T02:30:00+02:00 or 2026-10-25T02:30:00+01:00"), "{twice:?}");
        assert_eq!(parse("2026-03-29 02:30", berlin).unwrap_err().kind(), Kind::Usage);
    }
}
