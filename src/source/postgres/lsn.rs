//! Positions in the write-ahead log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind};

/// A position in the write-ahead log of one timeline: bytes since its beginning. As text two hexadecimal halves, `16/B374D848`. 0 is no position.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(pub u64);

impl Lsn {
    /// This many bytes further; stays at the greatest position.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// Bytes from `earlier` to here; 0 when it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let half = |part: &str| {
            let fits = (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            fits.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        let halves = text.split_once('/').and_then(|(high, low)| Some((half(high)?, half(low)?)));
        let Some((high, low)) = halves else {
            return Err(Error::new(Kind::Usage, format!("{text:?} is not a log position"))
                .hint("a position (LSN) looks like 16/B374D848, as pg_current_wal_lsn() prints it"));
        };
        Ok(Self(high << 32 | low))
    }
}

impl TryFrom<String> for Lsn {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> Self {
        lsn.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_is_the_servers() {
        for (text, value) in [("0/0", 0), ("0/16B3748", 0x16B_3748), ("16/B374D848", 0x16_B374_D848), ("FFFFFFFF/FFFFFFFF", u64::MAX)] {
            assert_eq!(text.parse::<Lsn>().unwrap(), Lsn(value));
            assert_eq!(Lsn(value).to_string(), text);
            assert_eq!(serde_json::from_value::<Lsn>(serde_json::to_value(Lsn(value)).unwrap()).unwrap(), Lsn(value));
        }
        assert_eq!("0/016b3748".parse::<Lsn>().unwrap(), Lsn(0x16B_3748));
        for text in ["", "/", "0", "0/", "/0", "0/+1", "0/123456789", "g/0", "0/0/0", " 0/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }
}
