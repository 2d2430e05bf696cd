//! Numbers, times and tables for people. Pure.

use std::fmt::Display;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use comfy_table::{CellAlignment, ContentArrangement, Table, TableStyle};

/// Bytes with a binary unit and three significant digits: `0 B`, `1.50 MiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// A duration with its two greatest units: `340 ms`, `2.1 s`, `4 min 10 s`, `3 d 2 h`.
#[must_use]
pub fn duration_ms(ms: u64) -> String {
    let seconds = ms / 1000;
    let pair = |great: u64, great_unit: &str, small: u64, small_unit: &str| {
        if small == 0 { format!("{great} {great_unit}") } else { format!("{great} {great_unit} {small} {small_unit}") }
    };
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{}.{} s", seconds, ms % 1000 / 100),
        60..3600 => pair(seconds / 60, "min", seconds % 60, "s"),
        3600..86_400 => pair(seconds / 3600, "h", seconds % 3600 / 60, "min"),
        _ => pair(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

/// How long a time is gone (or ahead): `4 min 10 s ago`, `in 3 h`, `now`.
#[must_use]
pub fn ago(then: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let gone = now - then;
    let text = duration_ms(u64::try_from(gone.abs().num_seconds()).unwrap_or(0) * 1000).replace(".0 s", " s");
    if gone.num_seconds() == 0 {
        "now".to_owned()
    } else if gone > TimeDelta::zero() {
        format!("{text} ago")
    } else {
        format!("in {text}")
    }
}

/// A time for people: in UTC, to the second.
#[must_use]
pub fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// A time in a zone and in UTC: `2026-11-20 14:31:00 +08:00 (2026-11-20T06:31:00Z)`. Where the zone is UTC, that word stands for the offset.
#[must_use]
pub fn time_in_both(at: DateTime<Utc>, zone: Tz) -> String {
    let form = if zone == Tz::UTC { "%Y-%m-%d %H:%M:%S UTC" } else { "%Y-%m-%d %H:%M:%S %:z" };
    format!("{} ({})", at.with_timezone(&zone).format(form), at.format("%Y-%m-%dT%H:%M:%SZ"))
}

/// An optional value, `-` when there is none.
#[must_use]
pub fn or_dash<T: Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A plain table: header, rows, the named columns (by number) to the right. Ends with a line break.
#[must_use]
pub fn table(header: &[&str], rows: &[Vec<String>], right: &[usize]) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled).force_no_tty();
    table.set_header(header.to_vec());
    table.add_rows(rows.to_vec());
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for index in 0..header.len() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
        }
    }
    table.lines().fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

/// Aligned `name  value` lines.
#[must_use]
pub fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    pairs.iter().fold(String::new(), |text, (name, value)| text + &format!("{name:width$}  {value}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.50 KiB"),
            (1024 * 1024 * 20, "20.0 MiB"),
            (1024 * 1024 * 999, "999 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn a_time_says_the_zone_that_it_was_read_in() {
        let at = "2026-11-20T06:31:00Z".parse().unwrap();
        assert_eq!(time_in_both(at, chrono_tz::Asia::Shanghai), "2026-11-20 14:31:00 +08:00 (2026-11-20T06:31:00Z)");
        assert_eq!(time_in_both(at, Tz::UTC), "2026-11-20 06:31:00 UTC (2026-11-20T06:31:00Z)");
    }

    #[test]
    fn durations_have_two_units() {
        for (ms, text) in
            [(0, "0 ms"), (999, "999 ms"), (2150, "2.1 s"), (250_000, "4 min 10 s"), (3_600_000, "1 h"), (90_000_000, "1 d 1 h")]
        {
            assert_eq!(duration_ms(ms), text);
        }
    }

    #[test]
    fn a_table_has_aligned_columns_and_no_frame() {
        let text = table(&["id", "size"], &[vec!["a".into(), "1 B".into()], vec!["bcd".into(), "100 KiB".into()]], &[1]);
        assert_eq!(text, "id      size\na        1 B\nbcd  100 KiB\n");
    }
}
