//! The little language of `expect` in a drill's check: a comparison with a number, a quoted text or a truth value.
//!
//! ```text
//! expectation = operator value | "between" value "and" value | "is" ["not"] "null"
//! operator    = "=" | "!=" | "<>" | "<" | "<=" | ">" | ">="
//! value       = number | 'text' ('' is one quote) | true | false
//! ```
//!
//! Where a comparison has no clear meaning (a missing value, a text where a number is asked for), it does not hold: a check that
//! cannot be answered must not pass.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

const HINT: &str = "write for example \">= 1000\", \"= 'ok'\", \"between 1 and 5\" or \"is not null\"";

/// A comparison that a check's value must satisfy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Expectation(Form);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    Compare(Operator, Value),
    Between(Value, Value),
    Null,
    NotNull,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Operator {
    /// Longest first, so that `<=` is not read as `<`.
    const ALL: [(&'static str, Self); 7] = [
        ("!=", Self::NotEqual),
        ("<>", Self::NotEqual),
        ("<=", Self::LessOrEqual),
        (">=", Self::GreaterOrEqual),
        ("=", Self::Equal),
        ("<", Self::Less),
        (">", Self::Greater),
    ];

    fn text(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }

    fn accepts(self, ordering: Ordering) -> bool {
        match self {
            Self::Equal => ordering.is_eq(),
            Self::NotEqual => ordering.is_ne(),
            Self::Less => ordering.is_lt(),
            Self::LessOrEqual => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::GreaterOrEqual => ordering.is_ge(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Number(Decimal),
    Text(String),
    Truth(bool),
}

impl Value {
    fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("true") {
            return Ok(Self::Truth(true));
        }
        if text.eq_ignore_ascii_case("false") {
            return Ok(Self::Truth(false));
        }
        if let Some(rest) = text.strip_prefix('\'') {
            return match quoted(rest) {
                Some((value, "")) => Ok(Self::Text(value)),
                Some((_, rest)) => Err(wrong(&format!("unexpected {:?} after the quoted text", rest.trim()))),
                None => Err(wrong("the quoted text has no closing quote")),
            };
        }
        match Decimal::parse(text) {
            Some(number) => Ok(Self::Number(number)),
            None if text.is_empty() => Err(wrong("there is nothing to compare with")),
            None => Err(wrong(&format!("{text:?} is not a number, a 'quoted text', true or false"))),
        }
    }

    /// How the answer of a database stands to this value; `None` where they cannot be compared.
    fn compare(&self, answer: &str) -> Option<Ordering> {
        match self {
            Self::Number(number) => Decimal::parse(answer.trim()).map(|answer| answer.compare(number)),
            Self::Text(text) => Some(answer.cmp(text.as_str())),
            Self::Truth(truth) => {
                let answer = match answer.trim().to_ascii_lowercase().as_str() {
                    "true" | "t" | "1" => true,
                    "false" | "f" | "0" => false,
                    _ => return None,
                };
                Some(answer.cmp(truth))
            }
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "'{}'", text.replace('\'', "''")),
            Self::Truth(truth) => write!(f, "{truth}"),
        }
    }
}

impl Expectation {
    /// Any value.
    #[must_use]
    pub fn not_null() -> Self {
        Self(Form::NotNull)
    }

    /// Reads the text of a plan's `expect`.
    ///
    /// # Errors
    /// [`Kind::Usage`]: what is wrong with the text, with examples as the hint.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        for (sign, operator) in Operator::ALL {
            if let Some(rest) = text.strip_prefix(sign) {
                let value = Value::parse(rest)?;
                if matches!(value, Value::Truth(_)) && !matches!(operator, Operator::Equal | Operator::NotEqual) {
                    return Err(wrong("true and false can only be compared with = or !="));
                }
                return Ok(Self(Form::Compare(operator, value)));
            }
        }
        let words = text.split_ascii_whitespace().map(str::to_ascii_lowercase).collect::<Vec<_>>();
        match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["is", "null"] => Ok(Self(Form::Null)),
            ["is", "not", "null"] => Ok(Self(Form::NotNull)),
            ["between", ..] => Self::parse_between(text["between".len()..].trim_start()),
            [] => Err(wrong("the expectation is empty")),
            _ => Err(wrong(&format!("{text:?} does not begin with a comparison"))),
        }
    }

    fn parse_between(text: &str) -> Result<Self> {
        let (low, rest) = if let Some(rest) = text.strip_prefix('\'') {
            let (low, rest) = quoted(rest).ok_or_else(|| wrong("the quoted text has no closing quote"))?;
            (Value::Text(low), rest)
        } else {
            let end = text.find(char::is_whitespace).unwrap_or(text.len());
            (Value::parse(&text[..end])?, &text[end..])
        };
        let rest = rest.trim_start();
        let high = match rest.get(..3) {
            Some(word) if word.eq_ignore_ascii_case("and") && rest[3..].starts_with(|c: char| c.is_whitespace() || c == '\'') => {
                Value::parse(&rest[3..])?
            }
            _ => return Err(wrong("between needs two values with \"and\" in the middle")),
        };
        let ordered = match (&low, &high) {
            (Value::Number(low), Value::Number(high)) => low.compare(high).is_le(),
            (Value::Text(low), Value::Text(high)) => low <= high,
            _ => return Err(wrong("between needs two numbers or two quoted texts")),
        };
        if ordered { Ok(Self(Form::Between(low, high))) } else { Err(wrong("the first value of between is greater than the second")) }
    }

    /// Whether a row of one or more values is as expected. Of several values, null is as in SQL: the row `is null` when all of them are and
    /// `is not null` when none is; a row with some of both is neither. For a comparison they are one text ([`row_text`]).
    #[must_use]
    pub fn holds_row(&self, row: &[Option<String>]) -> bool {
        match self.0 {
            Form::Null => row.iter().all(Option::is_none),
            Form::NotNull => row.iter().all(Option::is_some),
            Form::Compare(..) | Form::Between(..) => self.holds(row_text(row).as_deref()),
        }
    }

    /// Whether the value that a database answered (its text form; `None` is SQL's null) is as expected.
    #[must_use]
    pub fn holds(&self, value: Option<&str>) -> bool {
        match (&self.0, value) {
            (Form::Null, None) | (Form::NotNull, Some(_)) => true,
            (Form::Compare(operator, expected), Some(answer)) => expected.compare(answer).is_some_and(|o| operator.accepts(o)),
            (Form::Between(low, high), Some(answer)) => {
                low.compare(answer).is_some_and(Ordering::is_ge) && high.compare(answer).is_some_and(Ordering::is_le)
            }
            _ => false,
        }
    }
}

impl Expectation {
    /// Whether this very text stands in the expectation: showing it tells nothing that the plan does not.
    #[must_use]
    pub fn names(&self, answer: &str) -> bool {
        let is_it = |value: &Value| matches!(value, Value::Text(text) if text == answer);
        match &self.0 {
            Form::Compare(_, value) => is_it(value),
            Form::Between(low, high) => is_it(low) || is_it(high),
            Form::Null | Form::NotNull => false,
        }
    }
}

impl fmt::Display for Expectation {
    /// One canonical spelling; parsing it again yields the same expectation.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Form::Compare(operator, value) => write!(f, "{} {value}", operator.text()),
            Form::Between(low, high) => write!(f, "between {low} and {high}"),
            Form::Null => f.write_str("is null"),
            Form::NotNull => f.write_str("is not null"),
        }
    }
}

impl FromStr for Expectation {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Expectation {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl From<Expectation> for String {
    fn from(expectation: Expectation) -> Self {
        expectation.to_string()
    }
}

/// The text of a row: a lone value as it is, several joined by `|`, a null among them empty. `None`: nothing but nulls.
#[must_use]
pub fn row_text(row: &[Option<String>]) -> Option<String> {
    match row {
        [value] => value.clone(),
        row if row.iter().all(Option::is_none) => None,
        row => Some(row.iter().map(|value| value.as_deref().unwrap_or_default()).collect::<Vec<_>>().join("|")),
    }
}

fn wrong(what: &str) -> Error {
    Error::new(Kind::Usage, format!("not a valid expectation: {what}")).hint(HINT)
}

/// What follows an opening quote: the text up to its closing quote, and the rest.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('\'')?;
        value.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('\'') {
            Some(after) => {
                value.push('\'');
                rest = after;
            }
            None => return Some((value, rest)),
        }
    }
}

/// A decimal number of any length, compared exactly: counts and amounts of money must not pass through binary floating point.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Decimal {
    negative: bool,
    /// Without leading zeros.
    integer: String,
    /// Without trailing zeros.
    fraction: String,
}

impl Decimal {
    /// Exponents beyond any number a database prints are refused, so that a hostile answer cannot make us allocate.
    const MAX_EXPONENT: usize = 400;

    fn parse(text: &str) -> Option<Self> {
        let (negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let (mantissa, exponent) = match text.find(['e', 'E']) {
            Some(at) => (&text[..at], text[at + 1..].parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if (integer.is_empty() && fraction.is_empty()) || !digits(integer) || !digits(fraction) {
            return None;
        }
        let shift = usize::try_from(exponent.unsigned_abs()).ok().filter(|shift| *shift <= Self::MAX_EXPONENT)?;
        let (mut integer, mut fraction) = (integer.to_owned(), fraction.to_owned());
        if exponent >= 0 {
            let moved = shift.min(fraction.len());
            integer.push_str(&fraction[..moved]);
            integer.extend(std::iter::repeat_n('0', shift - moved));
            fraction.drain(..moved);
        } else {
            let moved = shift.min(integer.len());
            let tail = integer.split_off(integer.len() - moved);
            fraction = format!("{}{tail}{fraction}", "0".repeat(shift - moved));
        }
        let integer = integer.trim_start_matches('0').to_owned();
        let fraction = fraction.trim_end_matches('0').to_owned();
        let zero = integer.is_empty() && fraction.is_empty();
        Some(Self { negative: negative && !zero, integer, fraction })
    }

    fn compare(&self, other: &Self) -> Ordering {
        let magnitude = || {
            let by_length = self.integer.len().cmp(&other.integer.len());
            by_length.then_with(|| self.integer.cmp(&other.integer)).then_with(|| self.fraction.cmp(&other.fraction))
        };
        match (self.negative, other.negative) {
            (false, false) => magnitude(),
            (true, true) => magnitude().reverse(),
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
        }
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.negative { "-" } else { "" };
        let integer = if self.integer.is_empty() { "0" } else { &self.integer };
        write!(f, "{sign}{integer}")?;
        if self.fraction.is_empty() { Ok(()) } else { write!(f, ".{}", self.fraction) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(text: &str, value: &str) -> bool {
        Expectation::parse(text).unwrap().holds(Some(value))
    }

    #[test]
    fn numbers_compare_as_numbers_not_as_text() {
        assert!(holds("> 9", "10"));
        assert!(holds(">= 1000", "1000"));
        assert!(holds("= 1.50", "1.5"));
        assert!(holds("=0", "-0.0"));
        assert!(holds("< 0", "-0.001"));
        assert!(holds("> -10", "-9.99"));
        assert!(holds("= 9007199254740993", "9007199254740993"));
        assert!(!holds("= 9007199254740993", "9007199254740992"));
        assert!(holds("= 1200", "1.2e+3"));
        assert!(holds("= 0.0012", "1.2e-3"));
        assert!(!holds("> 0", "many"));
        assert!(!holds("!= 0", "many"), "an answer that is not a number proves nothing");
        assert!(!holds("> 0", "1e999999999"));
    }

    #[test]
    fn texts_and_truth_values() {
        assert!(holds("= 'ok'", "ok"));
        assert!(!holds("= 'ok'", "OK"));
        assert!(holds("!= 'it''s'", "its"));
        assert!(holds("= 'it''s'", "it's"));
        assert!(holds("<> ''", "x"));
        assert!(holds("= true", "1") && holds("= true", "t") && holds("!= true", "f") && holds("= FALSE", "0"));
        assert!(!holds("= true", "yes"));
    }

    #[test]
    fn ranges_and_null() {
        assert!(holds("between 1 and 5", "1") && holds("between 1 and 5", "5.0") && !holds("between 1 and 5", "5.01"));
        assert!(holds("BETWEEN 'a and b' AND 'c'", "b"));
        assert!(Expectation::parse("is null").unwrap().holds(None));
        assert!(!Expectation::parse("is  NOT null").unwrap().holds(None));
        assert!(holds("is not null", ""));
        assert!(!Expectation::parse("!= 1").unwrap().holds(None));
    }

    #[test]
    fn a_row_of_several_values_is_null_as_in_sql() {
        let row = |values: &[Option<&str>]| values.iter().map(|value| value.map(str::to_owned)).collect::<Vec<_>>();
        let holds = |text: &str, values: &[Option<&str>]| Expectation::parse(text).unwrap().holds_row(&row(values));
        let table: [(&[Option<&str>], bool, bool); 5] = [
            (&[None], true, false),
            (&[Some("")], false, true),
            (&[None, None, None], true, false),
            (&[Some("1"), None], false, false),
            (&[Some("1"), Some("")], false, true),
        ];
        for (values, null, not_null) in table {
            assert_eq!((holds("is null", values), holds("is not null", values)), (null, not_null), "{values:?}");
        }
        assert!(holds("= '1||a'", &[Some("1"), None, Some("a")]));
        assert!(!holds("!= 'x'", &[None, None]) && !holds("= '|'", &[None, None]), "nothing but nulls compares with nothing");
    }

    #[test]
    fn wrong_texts_are_refused() {
        for text in [
            "",
            "5",
            "> ",
            "> five",
            "= 'ok",
            "= 'ok' or",
            "between 5 and 1",
            "between 1 5",
            "between 1",
            "between 'a' and 5",
            "> true",
            "== 1",
            "is nothing",
            "=> 1",
            "= \"ok\"",
            "= 1 or 1",
            "between true and false",
            "< 1.2.3",
            "= .",
        ] {
            assert!(Expectation::parse(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn prints_what_it_parses() {
        for (text, printed) in [
            (">=1000", ">= 1000"),
            ("<> 'a''b'", "!= 'a''b'"),
            ("Between  1.50 And 2", "between 1.5 and 2"),
            ("IS NOT NULL", "is not null"),
            ("= -0.50", "= -0.5"),
            ("= TRUE", "= true"),
        ] {
            let expectation = Expectation::parse(text).unwrap();
            assert_eq!(expectation.to_string(), printed);
            assert_eq!(Expectation::parse(printed).unwrap(), expectation);
        }
    }
}
