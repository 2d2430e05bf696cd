//! What goes to stdout and how errors look. A reader that goes away (`| head`) ends output quietly, never the operation.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde_json::json;

use crate::daemon::journal::ErrorRecord;
use crate::error::{Error, IoContext, Result};

/// Results on stdout: text for people, or one JSON document.
#[derive(Debug)]
pub struct Output {
    json: bool,
    /// The reader of stdout has gone; nothing more is written.
    gone: AtomicBool,
}

impl Output {
    /// `json`: results are JSON documents, and text is dropped.
    #[must_use]
    pub fn new(json: bool) -> Self {
        Self { json, gone: AtomicBool::new(false) }
    }

    /// Whether results are JSON documents.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints the result in the form asked for. The text may or may not end with a line break.
    ///
    /// # Errors
    /// When stdout cannot be written (a full disk behind a redirection).
    pub fn result<T: Serialize>(&self, document: &T, text: impl FnOnce() -> String) -> Result<()> {
        if self.json { self.document(document) } else { self.text(&text()) }
    }

    /// Prints a document whatever the form asked for.
    ///
    /// # Errors
    /// As [`Output::result`].
    pub fn document<T: Serialize>(&self, document: &T) -> Result<()> {
        let text = serde_json::to_string_pretty(document)
            .map_err(|error| Error::new(crate::error::Kind::Bug, "write the result as JSON").because(error))?;
        self.raw(format!("{text}\n").as_bytes())
    }

    /// Prints text for people, with a line break at its end.
    ///
    /// # Errors
    /// As [`Output::result`].
    pub fn text(&self, text: &str) -> Result<()> {
        let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        self.raw(format!("{text}{end}").as_bytes())
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// As [`Output::result`].
    pub fn raw(&self, bytes: &[u8]) -> Result<()> {
        if self.gone.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.gone.store(true, Ordering::Relaxed);
                Ok(())
            }
            other => other.io_context(|| "write to stdout".to_owned()),
        }
    }
}

/// One line for the operator on stderr, above any progress bar's line.
pub fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

static ASKING: AtomicBool = AtomicBool::new(false);

/// Whether a question waits for its answer: nothing has begun then, and a signal may end the process at once.
#[must_use]
pub fn is_asking() -> bool {
    ASKING.load(Ordering::SeqCst)
}

/// Whether somebody can be asked.
#[must_use]
pub fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks a question on stderr and reads one line from the terminal.
///
/// # Errors
/// When the terminal cannot be read.
pub fn ask(question: &str) -> Result<String> {
    let mut stderr = io::stderr().lock();
    let _ = write!(stderr, "{question} ");
    let _ = stderr.flush();
    drop(stderr);
    let mut line = String::new();
    ASKING.store(true, Ordering::SeqCst);
    let read = io::stdin().read_line(&mut line);
    ASKING.store(false, Ordering::SeqCst);
    read.io_context(|| "read the answer".to_owned())?;
    Ok(line.trim().to_owned())
}

/// An error as text: message, causes indented, hint.
#[must_use]
pub fn error_text(error: &Error) -> String {
    let mut text = format!("error: {error}\n");
    for cause in error.causes() {
        // A cause of several lines (all errors of a plan file with their places) stands as it is.
        if cause.contains('\n') {
            text.push_str(cause.trim_end());
        } else {
            text.push_str("  because: ");
            text.push_str(&cause);
        }
        text.push('\n');
    }
    text.extend(error.said().map(said_text));
    if let Some(hint) = error.hint_text() {
        text.push_str("hint: ");
        text.push_str(hint);
        text.push('\n');
    }
    text
}

/// What a program of the plan said, for stderr only: it may quote rows. Without what would move a terminal's cursor.
#[must_use]
pub fn said_text(said: &str) -> String {
    let plain = |line: &str| line.chars().filter(|c| *c == '\t' || !c.is_control()).collect::<String>();
    said.lines().fold(String::new(), |text, line| text + "  it said: " + &plain(line) + "\n")
}

/// An error as its document, `lifeboat.error/1`.
#[must_use]
pub fn error_document(error: &Error) -> serde_json::Value {
    json!({ "schema": "lifeboat.error/1", "error": ErrorRecord::from(error) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn what_a_program_said_is_shown_and_in_no_document() {
        let error = Error::new(Kind::Failed, "dump exited with 1").saying(Some("row 7\u{1b}[2J\nthe end".into())).within("back up crm");
        assert_eq!(error_text(&error), "error: back up crm\n  because: dump exited with 1\n  it said: row 7[2J\n  it said: the end\n");
        assert!(!error_document(&error).to_string().contains("row 7"));
        assert!(!format!("{error:?} {error} {:?}", error.causes()).contains("row 7"));
    }

    #[test]
    fn an_error_shows_message_causes_and_hint_once_each() {
        let error = Error::new(Kind::Unavailable, "list objects")
            .because(io::Error::other("refused"))
            .hint("start the server")
            .within("back up crm");
        assert_eq!(error_text(&error), "error: back up crm\n  because: list objects\n  because: refused\nhint: start the server\n");
        assert_eq!(
            error_document(&error),
            json!({"schema": "lifeboat.error/1", "error": {"kind": "unavailable", "message": "back up crm", "causes": ["list objects", "refused"], "hint": "start the server"}})
        );
    }
}
