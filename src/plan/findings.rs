//! What is wrong with plan files: every finding with its place, all at once.
//!
//! A finding shows the line it is about. A line may hold a secret that somebody wrote where a reference belongs, so values of
//! secret keys are masked before anything is shown.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::error::{Error, Kind};

/// Longer lines are cut in the display.
const MAX_LINE_CHARS: usize = 160;
/// A literal after one of these keys is never shown.
const SECRET_KEYS: [&str; 6] = ["passphrase", "password", "secret_key", "access_key", "session_token", "token"];

/// A plan file in memory.
#[derive(Debug)]
pub(super) struct File {
    /// As given on the command line, joined with the file's name: what is shown.
    pub path: PathBuf,
    pub text: String,
}

impl File {
    /// Line and column of a byte, both from 1; columns count characters.
    fn position(&self, byte: usize) -> (usize, usize) {
        let byte = self.text.floor_char_boundary(byte);
        let before = &self.text[..byte];
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[start..].chars().count() + 1)
    }

    /// `file:line:col` of a byte.
    pub fn place(&self, byte: usize) -> String {
        let (line, column) = self.position(byte);
        format!("{}:{line}:{column}", self.path.display())
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone)]
pub(super) struct Finding {
    /// `None` when it concerns no file that could be read; then `path` says which.
    pub place: Option<(Arc<File>, Range<usize>)>,
    pub path: PathBuf,
    pub message: String,
    pub hint: Option<String>,
    /// The spanned text is a secret.
    pub masked: bool,
}

impl Finding {
    pub fn at(file: &Arc<File>, span: Range<usize>, message: impl Into<String>) -> Self {
        Self { place: Some((Arc::clone(file), span)), path: file.path.clone(), message: message.into(), hint: None, masked: false }
    }

    pub fn about(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self { place: None, path: path.into(), message: message.into(), hint: None, masked: false }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn masked(mut self) -> Self {
        self.masked = true;
        self
    }

    fn to_json(&self) -> Value {
        let (line, column) = self.place.as_ref().map(|(file, span)| file.position(span.start)).unzip();
        json!({ "file": self.path.display().to_string(), "line": line, "column": column, "message": self.message, "hint": self.hint })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((file, span)) = &self.place else {
            write!(f, "{}: {}", self.path.display(), printable(&self.message))?;
            return self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\n  = help: {}", printable(hint)));
        };
        let (line_number, column) = file.position(span.start);
        writeln!(f, "{}: {}", file.place(span.start), printable(&self.message))?;
        let start = file.text[..file.text.floor_char_boundary(span.start)].rfind('\n').map_or(0, |newline| newline + 1);
        let line = file.text[start..].lines().next().unwrap_or_default();
        let mut carets = file.text.get(span.clone()).map_or(1, |text| text.lines().next().unwrap_or_default().chars().count());
        let shown = if self.masked {
            carets = 1;
            let hidden = line.char_indices().nth(column - 1).map_or(line, |(at, _)| &line[..at]);
            format!("{}\"…\"", mask_secrets(hidden))
        } else {
            mask_secrets(line)
        };
        // Tabs stay tabs above the caret; other control characters must not reach a terminal.
        let shown =
            shown.chars().take(MAX_LINE_CHARS).map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect::<String>();
        let gutter = line_number.to_string().len();
        let padding = shown.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect::<String>();
        carets = carets.min(shown.chars().count().saturating_sub(column - 1)).max(1);
        writeln!(f, "{:gutter$} |", "")?;
        writeln!(f, "{line_number} | {shown}")?;
        write!(f, "{:gutter$} | {padding}{}", "", "^".repeat(carets))?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\n{:gutter$} = help: {}", "", printable(hint)))
    }
}

/// A key may hold an escape sequence; it must not reach a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Hides what follows `passphrase = "` and the like, and credentials within a URL.
fn mask_secrets(line: &str) -> String {
    let mut line = line.to_owned();
    for key in SECRET_KEYS {
        let mut from = 0;
        while let Some(found) = line[from..].find(key) {
            let after = from + found + key.len();
            from = after;
            let rest = &line[after..];
            let value = rest.trim_start_matches(['"', '\'']).trim_start();
            let Some(value) = value.strip_prefix('=').map(str::trim_start) else { continue };
            let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\'')) else { continue };
            let start = line.len() - value.len() + 1;
            let end = line[start..].find(quote).map_or(line.len(), |end| start + end);
            line.replace_range(start..end, "…");
            from = start;
        }
    }
    let mut from = 0;
    while let Some(found) = line[from..].find("://") {
        let start = from + found + 3;
        let end = line[start..].find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'')).map_or(line.len(), |end| start + end);
        if let Some(at) = line[start..end].rfind('@') {
            line.replace_range(start..start + at, "…");
        }
        from = start;
    }
    line
}

/// All that is wrong with a set of plan files, in the order of files and lines. Never empty.
#[derive(Debug, Clone)]
pub struct PlanErrors(Vec<Finding>);

impl PlanErrors {
    pub(super) fn new(mut findings: Vec<Finding>) -> Self {
        findings.sort_by(|a, b| {
            let key = |finding: &Finding| (finding.path.clone(), finding.place.as_ref().map(|(_, span)| span.start));
            key(a).cmp(&key(b))
        });
        Self(findings)
    }

    /// The files that something is wrong in.
    pub(super) fn paths(&self) -> impl Iterator<Item = &std::path::Path> {
        self.0.iter().map(|finding| finding.path.as_path())
    }

    /// Adds what else is wrong.
    pub(super) fn extend(&mut self, more: Self) {
        let all = std::mem::take(&mut self.0).into_iter().chain(more.0).collect();
        *self = Self::new(all);
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// `lifeboat.plan-errors/1`: `errors`, each with `file`, `line`, `column` (from 1; null where no place is known), `message`, `hint`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({ "schema": "lifeboat.plan-errors/1", "errors": self.0.iter().map(Finding::to_json).collect::<Vec<_>>() })
    }
}

impl fmt::Display for PlanErrors {
    /// Every finding as `file:line:col: message`, the line, a caret and a hint; an empty line in between.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "{finding}")?;
        }
        Ok(())
    }
}

impl std::error::Error for PlanErrors {}

impl From<PlanErrors> for Error {
    fn from(errors: PlanErrors) -> Self {
        let count = match errors.count() {
            1 => "1 error".to_owned(),
            count => format!("{count} errors"),
        };
        Self::new(Kind::Usage, format!("{count} in the plan files")).because(errors)
    }
}

/// The candidate that was probably meant, if any is near enough.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| {
            let other = candidate.to_lowercase();
            (strsim::damerau_levenshtein(&folded, &other), strsim::jaro_winkler(&folded, &other), candidate)
        })
        .filter(|(distance, likeness, candidate)| *distance <= 1 + candidate.len() / 5 || *likeness >= 0.88)
        .max_by(|a, b| b.0.cmp(&a.0).then(a.1.total_cmp(&b.1)))
        .map(|(_, _, candidate)| candidate)
}

/// "did you mean …?" or the list of what there is.
pub(super) fn suggest<'a>(word: &str, what: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    let candidates = candidates.into_iter().collect::<Vec<_>>();
    match nearest(word, candidates.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if candidates.is_empty() => format!("there is no {what}"),
        None => format!("{what}: {}", candidates.iter().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_wherever_a_line_is_shown() {
        assert_eq!(mask_secrets(r#"passphrase = "hunter2""#), r#"passphrase = "…""#);
        assert_eq!(mask_secrets(r#"{ password='a', "secret_key" = "b", n = 1 }"#), r#"{ password='…', "secret_key" = "…", n = 1 }"#);
        assert_eq!(mask_secrets(r#"a = "s3://k:p/w@b/p", b = "s3://c/p""#), r#"a = "s3://…@b/p", b = "s3://c/p""#);
        assert_eq!(mask_secrets(r#"passphrase = "no end"#), r#"passphrase = "…"#);
        assert_eq!(mask_secrets(r#"passphrase = { env = "X" }"#), r#"passphrase = { env = "X" }"#);
    }

    #[test]
    fn columns_count_characters_and_control_characters_do_not_pass() {
        let file = Arc::new(File { path: "a.toml".into(), text: "x\n\tü = \u{1b}[31m\n".to_owned() });
        let finding = Finding::at(&file, 8..13, "wrong");
        assert_eq!(finding.to_string(), "a.toml:2:6: wrong\n  |\n2 | \tü = \u{fffd}[31m\n  | \t    ^^^^^");
        let beyond = Finding::at(&file, 900..901, "wrong").to_string();
        assert!(beyond.starts_with("a.toml:3:1"));
    }

    #[test]
    fn nearest_is_near() {
        let keys = ["schedule", "source", "sources", "repository"];
        assert_eq!(nearest("shedule", keys), Some("schedule"));
        assert_eq!(nearest("Source", keys), Some("source"));
        assert_eq!(nearest("repo", keys), Some("repository"));
        assert_eq!(nearest("cron", keys), None);
    }
}
