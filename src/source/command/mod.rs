//! Any program's standard output: a dump of a database that has no driver yet.
//!
//! Owns: running the dump and the restore command, with nothing but what they need. The output counts only after the command
//! exited with 0; a command that said nothing at all is a failure too, since an empty "success" has cost people their backups.
//!
//! Invariants: a command runs in a process group of its own, which is killed as a whole when the snapshot is dropped, the run is
//! cancelled, or the command itself has exited; it is always reaped. It gets no descriptor that lifeboat opened but its three streams, and of
//! this process's environment only [`PASSED_ON`]: lifeboat's own secrets are not for it. Values of the plan's `environment` never appear in a message.
//! What a command says on standard error may quote rows: its end is shown to whoever started the run (`Error::saying`) and kept nowhere.

mod child;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::json;
use zeroize::Zeroizing;

use self::child::{Child, Output};
use crate::entry::{Entry, EntryKind, Layout};
use crate::error::{Error, IoContext, Kind, Result};
use crate::event::Event;
use crate::source::{CheckResult, Closed, Diagnosis, Finish, Outcome, ProveRequest, Source, SourceContext, SourceSnapshot};

/// The path of the one entry.
pub const OUTPUT: &str = "output";
/// The folder below the restored one that the restore command fills.
pub const TARGET: &str = "target";
/// What a command inherits of the environment, where set; also every `LC_…`.
pub const PASSED_ON: [&str; 11] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TERM", "XDG_RUNTIME_DIR"];

/// A value that is never shown and is wiped from memory when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(Zeroizing<String>);

impl SecretValue {
    /// Takes a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(Zeroizing::new(value.into()))
    }

    fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A dump command, and the way back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandSource {
    /// Program and arguments; no shell is involved.
    pub dump: Vec<String>,
    /// Gets the output on its standard input; `{target}` in an argument, and `LIFEBOAT_TARGET` in its environment, are a new private folder
    /// that it may fill. Without it the output itself is what a restore yields.
    pub restore: Option<Vec<String>>,
    /// Set for both commands.
    pub environment: Vec<(String, SecretValue)>,
    /// Whether an output of no bytes is a success.
    pub allow_empty: bool,
}

fn program<'a>(words: &'a [String], what: &str) -> Result<&'a str> {
    words.first().map(String::as_str).filter(|program| !program.is_empty()).ok_or_else(|| {
        Error::new(Kind::Usage, format!("the {what} command is empty")).hint("write the program and its arguments as a list")
    })
}

impl Source for CommandSource {
    fn kind(&self) -> &'static str {
        "command"
    }

    fn diagnose(&self) -> Vec<Diagnosis> {
        let look = |name: &str, words: &[String]| {
            let found = program(words, name).and_then(child::find_program);
            let (ok, message) = match found {
                Ok(path) => (true, path.display().to_string()),
                Err(error) => (false, format!("{error} ({})", error.hint_text().unwrap_or_default())),
            };
            Diagnosis { name: format!("{name} command"), ok, message }
        };
        let mut found = vec![look("dump", &self.dump)];
        found.extend(self.restore.as_deref().map(|restore| look("restore", restore)));
        found
    }

    fn begin(&self, context: &SourceContext) -> Result<Box<dyn SourceSnapshot>> {
        let program = program(&self.dump, "dump")?;
        context.progress.event(Event::Phase { name: "snapshot", detail: format!("run {program}") });
        let mut command = child::command(&self.dump, &self.environment);
        command.stdout(std::process::Stdio::piped());
        let mut child = Child::spawn(command, program, &self.environment)?;
        let output = child.take_output(context.cancel.clone())?;
        Ok(Box::new(CommandSnapshot {
            child,
            output: Some(output),
            listed: false,
            allow_empty: self.allow_empty,
            cancel: context.cancel.clone(),
            read: Arc::default(),
            ended: Arc::default(),
        }))
    }

    fn adopt(&self, restored: &Path, context: &SourceContext) -> Result<PathBuf> {
        let output = restored.join(OUTPUT);
        let metadata = std::fs::symlink_metadata(&output).io_context(|| format!("look at restored output {}", output.display()))?;
        if !metadata.is_file() {
            return Err(Error::new(Kind::Damaged, format!("restored output {} is not a regular file", output.display())));
        }
        let Some(restore) = &self.restore else { return Ok(output) };
        let program = program(restore, "restore")?;
        let target = std::path::absolute(restored.join(TARGET)).io_context(|| format!("find folder {}", restored.display()))?;
        std::fs::DirBuilder::new().mode(0o700).create(&target).io_context(|| format!("create folder {}", target.display()))?;
        let Some(target_text) = target.to_str() else {
            return Err(Error::new(Kind::Usage, format!("folder {} has a name that is not UTF-8", target.display()))
                .hint("restore to a folder whose name is text"));
        };
        let words: Vec<String> = restore.iter().map(|word| word.replace("{target}", target_text)).collect();
        let mut command = child::command(&words, &self.environment);
        let input = File::open(&output).io_context(|| format!("open restored output {}", output.display()))?;
        command.env("LIFEBOAT_TARGET", &target).stdin(input).stdout(std::process::Stdio::null());
        let mut child = Child::spawn(command, program, &self.environment)?;
        child.wait(&context.cancel)?;
        Ok(target)
    }

    fn prove(
        &self,
        restored: &Path,
        request: &ProveRequest,
        context: &SourceContext,
        _usable: &mut dyn FnMut(),
    ) -> Result<Vec<CheckResult>> {
        if self.restore.is_some() {
            return crate::source::files::prove_tree(restored, &request.checks, context);
        }
        let (outcome, actual) = match std::fs::metadata(restored) {
            Ok(metadata) if metadata.len() > 0 || self.allow_empty => (Outcome::Passed, format!("{} bytes", metadata.len())),
            Ok(_) => (Outcome::Failed, "0 bytes".into()),
            Err(error) => (Outcome::Failed, error.to_string()),
        };
        let mut results = vec![CheckResult { name: "output".into(), outcome, expected: "an output".into(), actual }];
        results.extend(request.checks.iter().map(|check| CheckResult {
            name: check.name.clone(),
            outcome: Outcome::Skipped,
            expected: check.expect.to_string(),
            actual: "the output of a command has no SQL".into(),
        }));
        Ok(results)
    }
}

/// A running dump.
struct CommandSnapshot {
    child: Child,
    output: Option<Output>,
    listed: bool,
    allow_empty: bool,
    cancel: crate::event::Cancel,
    read: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

/// Counts what is read, and knows whether the end was reached.
struct Counted {
    output: Output,
    read: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.output.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        if count == 0 && !buffer.is_empty() {
            self.ended.store(true, Ordering::Release);
        }
        Ok(count)
    }
}

impl SourceSnapshot for CommandSnapshot {
    fn estimate(&self) -> Option<(u64, u64)> {
        None
    }

    fn next_entry(&mut self) -> Result<Option<Entry>> {
        if std::mem::replace(&mut self.listed, true) {
            return Ok(None);
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Ok(Some(Entry {
            path: OUTPUT.into(),
            kind: EntryKind::File { size: None, layout: Layout::Content },
            mode: 0o600,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            mtime_ns: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
            stamp: Vec::new(),
            xattrs: Vec::new(),
        }))
    }

    fn open(&mut self, entry: &Entry) -> Result<Option<Box<dyn Read + Send>>> {
        match self.output.take() {
            Some(output) => Ok(Some(Box::new(Counted { output, read: Arc::clone(&self.read), ended: Arc::clone(&self.ended) }))),
            None => Err(Error::new(Kind::Bug, format!("{} was opened twice", entry.display_path()))),
        }
    }

    fn close(&mut self, _entry: &Entry, bytes_read: u64) -> Result<Closed> {
        let read = self.read.load(Ordering::Relaxed);
        if self.ended.load(Ordering::Acquire) && read == bytes_read {
            return Ok(Closed::SOUND);
        }
        Err(Error::new(
            Kind::Bug,
            format!("output closed after {bytes_read} bytes, but {read} were read and its end may not have been reached"),
        ))
    }

    fn unread(&mut self, _entry: &Entry, error: Error) -> Result<()> {
        Err(error)
    }

    fn finish(mut self: Box<Self>) -> Result<Finish> {
        if !self.ended.load(Ordering::Acquire) {
            return Err(Error::new(Kind::Bug, "the output of the dump command was not read to its end"));
        }
        self.child.wait(&self.cancel)?;
        let bytes = self.read.load(Ordering::Relaxed);
        if bytes == 0 && !self.allow_empty {
            return Err(Error::new(Kind::Failed, format!("dump command {} exited with 0 but wrote nothing", self.child.program()))
                .saying(self.child.said())
                .hint("run the command by hand; a dump is never empty"));
        }
        Ok(Finish { consistency: json!({ "exit_status": 0, "bytes": bytes }), ..Finish::default() })
    }
}

#[cfg(test)]
mod tests;
