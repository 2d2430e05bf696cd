//! Durations, sizes, rates and percentages as operators write them. Pure.
//!
//! Every reader here names the wrong text and shows a right one; every writer yields text that its reader accepts.

use std::fmt::Write as _;
use std::time::Duration;

use crate::error::{Error, Kind, Result};

const DURATION_HINT: &str = "write a number and a unit (s, m, h, d or w), such as \"90s\", \"5m\", \"1h30m\" or \"30d\"";
const SIZE_HINT: &str = "write a number and a unit (B, KiB, MiB, GiB, TiB, or KB, MB, GB, TB), such as \"200GiB\"";

const DURATION_UNITS: [(&str, u64); 5] = [("w", 7 * 86_400), ("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
/// A century: longer than anything sensible, far below where time arithmetic overflows.
const MAX_DURATION_SECS: u64 = 100 * 366 * 86_400;

const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Reads `"5m"`, `"2h"`, `"1d12h"`: whole seconds, at most a century. Units go from great to small, each at most once.
///
/// # Errors
/// [`Kind::Usage`] with examples as the hint.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let wrong = |why: &str| Error::new(Kind::Usage, format!("not a valid duration: {text:?}{why}")).hint(DURATION_HINT);
    let mut rest = text.trim();
    let mut total = 0_u64;
    let mut units = DURATION_UNITS.iter();
    if rest.is_empty() {
        return Err(wrong(""));
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number = rest[..digits].parse::<u64>().map_err(|_| wrong(""))?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let word = &rest[..letters];
        rest = rest[letters..].trim_start();
        if word.is_empty() {
            return Err(wrong(" has no unit"));
        }
        let (_, secs) = units.by_ref().find(|(unit, _)| *unit == word).ok_or_else(|| {
            if DURATION_UNITS.iter().any(|(unit, _)| *unit == word) {
                wrong(" (units go from great to small, each once)")
            } else {
                wrong(&format!(" (unknown unit {word:?})"))
            }
        })?;
        total = number
            .checked_mul(*secs)
            .and_then(|part| total.checked_add(part))
            .filter(|t| *t <= MAX_DURATION_SECS)
            .ok_or_else(|| wrong(" is too long"))?;
    }
    Ok(Duration::from_secs(total))
}

/// Writes a duration so that [`parse_duration`] reads it back: `"1d12h"`, `"0s"`. Fractions of a second are dropped.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let mut secs = duration.as_secs();
    let mut text = String::new();
    // Weeks are read but not written: "30d" is easier to check than "4w2d".
    for (unit, unit_secs) in &DURATION_UNITS[1..] {
        let count = secs / unit_secs;
        secs %= unit_secs;
        if count > 0 {
            let _ = write!(text, "{count}{unit}");
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Reads `"200GiB"`, `"1.5 GB"`: bytes, more than nothing.
///
/// # Errors
/// [`Kind::Usage`] with examples as the hint.
pub fn parse_size(text: &str) -> Result<u64> {
    let wrong = |why: &str| Error::new(Kind::Usage, format!("not a valid size: {text:?}{why}")).hint(SIZE_HINT);
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = (&trimmed[..digits], trimmed[digits..].trim());
    if number.is_empty() {
        return Err(wrong(""));
    }
    if unit.is_empty() {
        return Err(wrong(" has no unit"));
    }
    let (_, factor) =
        SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(|| wrong(&format!(" (unknown unit {unit:?})")))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole = whole.parse::<u64>().map_err(|_| wrong(""))?;
    if fraction.len() > 6 {
        return Err(wrong(" has too many decimals"));
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(6));
    let fraction = fraction.parse::<u64>().map_err(|_| wrong(""))?;
    let bytes = u128::from(whole) * u128::from(*factor) + u128::from(fraction) * u128::from(*factor) / scale;
    match u64::try_from(bytes) {
        Ok(0) => Err(wrong(" is nothing")),
        Ok(bytes) if i64::try_from(bytes).is_ok() => Ok(bytes),
        _ => Err(wrong(" is too large")),
    }
}

/// Writes a size so that [`parse_size`] reads the same bytes back: the greatest unit that divides it.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    for (unit, factor) in SIZE_UNITS {
        if bytes >= factor && bytes.is_multiple_of(factor) && (unit.len() == 3 || unit == "B" || !bytes.is_multiple_of(1024)) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    format!("{bytes}B")
}

/// Reads `"50MiB/s"`: bytes a second.
///
/// # Errors
/// [`Kind::Usage`] with an example as the hint.
pub fn parse_rate(text: &str) -> Result<u64> {
    let wrong = || Error::new(Kind::Usage, format!("not a valid rate: {text:?}")).hint("write bytes a second, such as \"50MiB/s\"");
    let size = text.trim().strip_suffix("/s").ok_or_else(wrong)?;
    parse_size(size).map_err(|_| wrong())
}

/// Reads `"10%"`: 1 to 100, whole.
///
/// # Errors
/// [`Kind::Usage`] with an example as the hint.
pub fn parse_percent(text: &str) -> Result<u8> {
    text.trim()
        .strip_suffix('%')
        .and_then(|number| number.trim().parse::<u8>().ok())
        .filter(|percent| (1..=100).contains(percent))
        .ok_or_else(|| {
            Error::new(Kind::Usage, format!("not a valid percentage: {text:?}")).hint("write a whole percentage from \"1%\" to \"100%\"")
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        for (text, secs) in [("5m", 300), ("2h", 7_200), ("1d12h", 129_600), ("1h 30m", 5_400), ("0s", 0), ("2w", 1_209_600), ("90s", 90)] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_secs(secs), "{text}");
        }
        for text in ["", "5", "m", "5 m", "5min", "5m1h", "5m5m", "-5m", "1.5h", "5M", "99999999999999999999s", "9999999999s", "5m 3"] {
            assert!(parse_duration(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn sizes_and_rates_and_percentages() {
        for (text, bytes) in [("200GiB", 200 << 30), ("1.5 KiB", 1_536), ("50MB", 50_000_000), ("7b", 7), ("1.25GB", 1_250_000_000)] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "5", "GiB", "5Gi", "5 bits", "-1MB", "0B", "99999999999TiB", "1..5GB", ".5GB", "1.0000001GB"] {
            assert!(parse_size(text).is_err(), "{text:?} was accepted");
        }
        assert_eq!(parse_rate("50MiB/s").unwrap(), 50 << 20);
        assert!(parse_rate("50MiB").is_err() && parse_rate("50Mbit/s").is_err());
        assert_eq!(parse_percent("10%").unwrap(), 10);
        assert!(
            parse_percent("0%").is_err()
                && parse_percent("101%").is_err()
                && parse_percent("10").is_err()
                && parse_percent("1.5%").is_err()
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(secs in 0_u64..MAX_DURATION_SECS, bytes in 1_u64..1 << 60) {
            prop_assert_eq!(parse_duration(&format_duration(Duration::from_secs(secs))).unwrap(), Duration::from_secs(secs));
            prop_assert_eq!(parse_size(&format_size(bytes)).unwrap(), bytes);
        }

        #[test]
        fn no_text_makes_a_reader_panic(text in ".{0,24}") {
            let _ = (parse_duration(&text), parse_size(&text), parse_rate(&text), parse_percent(&text));
        }
    }
}
