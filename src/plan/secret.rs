//! Secrets, and where plan files say to find them. A plan never holds a secret itself.
//!
//! A [`SecretRef`] may be printed; the [`Secret`] it resolves to never is: it has a redacted `Debug`, no `Display`, no serde, is
//! not `Copy`, and its memory is wiped. Errors name the reference, never the value.

use std::ffi::OsString;
use std::fmt;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use zeroize::{Zeroize as _, Zeroizing};

use crate::error::{Error, IoContext as _, Kind, Result};

/// Longer than any passphrase, key or token; a mistaken path must not be read into memory whole.
const MAX_SECRET_BYTES: u64 = 64 * 1024;
/// Time for a secret command, which may ask a person or a slow vault.
const COMMAND_LIMIT: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(10);

/// A secret text in memory. Wiped when dropped; cloning is deliberate and its copy is wiped too.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The secret itself. Whoever calls this must not log, print or store it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// Where a secret is found. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SecretRef {
    /// An environment variable of this process.
    Env(String),
    /// A file that only its owner may read.
    File(PathBuf),
    /// The standard output of a program; counts only when it exits 0. Never passed to a shell.
    Command(Vec<String>),
    /// A file of this name in systemd's credentials folder (`$CREDENTIALS_DIRECTORY`; systemd.exec(5), `LoadCredential=`).
    Credential(String),
}

impl fmt::Display for SecretRef {
    /// As a plan file writes it: `{ env = "LIFEBOAT_PASSPHRASE" }`. Of a command only the program: its arguments may be nobody else's business, and this
    /// stands in errors that are stored and sent.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "{{ env = {name:?} }}"),
            Self::File(path) => write!(f, "{{ file = {:?} }}", path.display().to_string()),
            Self::Command(words) => match &words[..] {
                [program, _, ..] => write!(f, "{{ command = [{program:?}, …] }}"),
                _ => write!(f, "{{ command = {words:?} }}"),
            },
            Self::Credential(name) => write!(f, "{{ credential = {name:?} }}"),
        }
    }
}

impl SecretRef {
    /// The reference for JSON documents: `{"env": "LIFEBOAT_PASSPHRASE"}`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Env(name) => json!({ "env": name }),
            Self::File(path) => json!({ "file": path.display().to_string() }),
            Self::Command(words) => json!({ "command": words }),
            Self::Credential(name) => json!({ "credential": name }),
        }
    }

    /// Fetches the secret: reads the variable or file, or runs the command (which may take up to two minutes). One trailing
    /// newline is not part of it. Blocking; call it once, shortly before the secret is needed.
    ///
    /// # Errors
    /// [`Kind::Usage`] when there is no usable secret at that place: missing, empty, not UTF-8, readable by others, or a command
    /// that failed. The hint says what to change.
    pub fn resolve(&self) -> Result<Secret> {
        self.resolve_with(&|name| std::env::var_os(name))
    }

    /// Like [`SecretRef::resolve`] with another environment.
    ///
    /// # Errors
    /// As [`SecretRef::resolve`].
    pub fn resolve_with(&self, environment: &dyn Fn(&str) -> Option<OsString>) -> Result<Secret> {
        let bytes = match self {
            Self::Env(name) => {
                use std::os::unix::ffi::OsStringExt as _;
                let value = environment(name).ok_or_else(|| {
                    self.error("the environment variable is not set")
                        .hint(format!("set {name} for this program, or refer to a file: {{ file = \"…\" }}"))
                })?;
                Zeroizing::new(value.into_vec())
            }
            Self::File(path) => self.read_file(path, environment)?,
            Self::Credential(name) => {
                let folder = environment("CREDENTIALS_DIRECTORY").filter(|folder| !folder.is_empty()).ok_or_else(|| {
                    self.error("CREDENTIALS_DIRECTORY is not set").hint(format!(
                        "run under systemd with LoadCredential={name}:/path/to/the/secret, or refer to an environment variable or a file"
                    ))
                })?;
                self.read_file(&PathBuf::from(folder).join(name), environment)?
            }
            Self::Command(words) => self.run(words)?,
        };
        self.accept(bytes)
    }

    fn error(&self, why: &str) -> Error {
        Error::new(Kind::Usage, format!("get the secret {self}: {why}"))
    }

    fn accept(&self, mut bytes: Zeroizing<Vec<u8>>) -> Result<Secret> {
        if bytes.ends_with(b"\n") {
            bytes.pop();
            if bytes.ends_with(b"\r") {
                bytes.pop();
            }
        }
        if bytes.is_empty() {
            return Err(self.error("it is empty").hint(match self {
                Self::Env(name) => format!("set {name} to the secret itself: it is set, and to nothing"),
                Self::File(path) => format!("write the secret into {}", path.display()),
                Self::Credential(name) => format!("write the secret into the file that LoadCredential={name}:… names"),
                Self::Command(_) => "the command must print the secret on its standard output".to_owned(),
            }));
        }
        match String::from_utf8(std::mem::take(&mut *bytes)) {
            Ok(text) => Ok(Secret::new(text)),
            Err(error) => {
                error.into_bytes().zeroize();
                Err(self.error("it is not UTF-8 text"))
            }
        }
    }

    fn read_file(&self, path: &Path, environment: &dyn Fn(&str) -> Option<OsString>) -> Result<Zeroizing<Vec<u8>>> {
        let operation = || format!("get the secret {self}");
        let usage = |error: Error| Error::new(Kind::Usage, operation()).because(error);
        let file = std::fs::File::open(path).io_context(|| format!("open {}", path.display())).map_err(usage)?;
        // Asked of the open file, not of its name: nobody can exchange it in between.
        let metadata = file.metadata().io_context(|| format!("look at {}", path.display())).map_err(usage)?;
        if !metadata.is_file() {
            return Err(self.error("it is not a regular file"));
        }
        if metadata.permissions().mode() & 0o077 != 0 && !is_credential(path, environment) {
            return Err(self
                .error(&format!("the file may be read by others (mode {:o})", metadata.mode() & 0o777))
                .hint(format!("run: chmod 600 {}", path.display())));
        }
        self.read_bounded(file).map_err(usage)
    }

    /// Reads into memory that is wiped, without ever growing (growing would leave copies behind).
    fn read_bounded(&self, reader: impl std::io::Read) -> Result<Zeroizing<Vec<u8>>> {
        let limit = usize::try_from(MAX_SECRET_BYTES).unwrap_or(usize::MAX);
        let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 1));
        reader.take(MAX_SECRET_BYTES + 1).read_to_end(&mut bytes).io_context(|| "read the secret".to_owned())?;
        if bytes.len() > limit { Err(self.error("it is longer than 64 KiB")) } else { Ok(bytes) }
    }

    fn run(&self, words: &[String]) -> Result<Zeroizing<Vec<u8>>> {
        let (program, arguments) = words.split_first().ok_or_else(|| self.error("the command is empty"))?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| self.error(&format!("start {program:?}")).because(error))?;
        let deadline = Instant::now() + COMMAND_LIMIT;
        let output = self.output_of(&mut child, deadline);
        if output.is_err() {
            // It may have ended already; then there is nothing to end.
            let _ = child.kill();
            let _ = child.wait();
        }
        output
    }

    fn output_of(&self, child: &mut Child, deadline: Instant) -> Result<Zeroizing<Vec<u8>>> {
        let stdout = child.stdout.take().ok_or_else(|| self.error("the command has no output"))?;
        let (sender, receiver) = mpsc::channel();
        let this = self.clone();
        // Not joined: a grandchild may hold the pipe open for ever.
        std::thread::spawn(move || sender.send(this.read_bounded(stdout)));
        let too_slow = || self.error(&format!("the command did not end within {} seconds", COMMAND_LIMIT.as_secs()));
        let output = receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())).map_err(|_| too_slow())??;
        loop {
            match child.try_wait().map_err(|error| self.error("wait for the command").because(error))? {
                Some(status) if status.success() => return Ok(output),
                Some(status) => return Err(self.error(&format!("the command failed ({status})"))),
                None if Instant::now() >= deadline => return Err(too_slow()),
                None => std::thread::sleep(POLL),
            }
        }
    }
}

/// systemd guards its credentials folder itself; on some versions the files in it are readable by group.
fn is_credential(path: &Path, environment: &dyn Fn(&str) -> Option<OsString>) -> bool {
    let Some(folder) = environment("CREDENTIALS_DIRECTORY").filter(|folder| !folder.is_empty()) else { return false };
    match (Path::new(&folder).canonicalize(), path.canonicalize()) {
        (Ok(folder), Ok(path)) => path.starts_with(folder),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const VALUE: &str = "correct horse battery staple";

    fn none(_: &str) -> Option<OsString> {
        None
    }

    fn file(mode: u32, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    fn message(error: &Error) -> String {
        format!("{error:?} {:?}", error.hint_text())
    }

    #[test]
    fn environment() {
        let reference = SecretRef::Env("PASS".into());
        let set = |value: &'static str| move |name: &str| (name == "PASS").then(|| OsString::from(value));
        assert_eq!(reference.resolve_with(&set("correct horse")).unwrap().expose(), "correct horse");
        assert!(message(&reference.resolve_with(&none).unwrap_err()).contains("{ env = \"PASS\" }: the environment variable is not set"));
        assert!(message(&reference.resolve_with(&set("")).unwrap_err()).contains("it is empty"));
    }

    #[test]
    fn files_must_be_private() {
        let (_folder, path) = file(0o600, format!("{VALUE}\r\n").as_bytes());
        assert_eq!(SecretRef::File(path).resolve_with(&none).unwrap().expose(), VALUE);

        for mode in [0o640, 0o604, 0o660] {
            let (_folder, path) = file(mode, VALUE.as_bytes());
            let error = SecretRef::File(path.clone()).resolve_with(&none).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage);
            assert!(message(&error).contains(&format!("chmod 600 {}", path.display())) && !message(&error).contains(VALUE));
        }
        assert!(SecretRef::File("/nowhere/at/all".into()).resolve_with(&none).is_err());
        assert!(message(&SecretRef::File("/dev/null".into()).resolve_with(&none).unwrap_err()).contains("not a regular file"));
        let (_folder, path) = file(0o600, &vec![b'a'; 70_000]);
        assert!(message(&SecretRef::File(path).resolve_with(&none).unwrap_err()).contains("64 KiB"));
        let (_folder, path) = file(0o600, b"\xff\xfe");
        assert!(message(&SecretRef::File(path).resolve_with(&none).unwrap_err()).contains("UTF-8"));
    }

    #[test]
    fn credentials_may_be_group_readable() {
        let (folder, path) = file(0o440, VALUE.as_bytes());
        let environment = |name: &str| (name == "CREDENTIALS_DIRECTORY").then(|| folder.path().as_os_str().to_owned());
        assert_eq!(SecretRef::Credential("secret".into()).resolve_with(&environment).unwrap().expose(), VALUE);
        assert_eq!(SecretRef::File(path).resolve_with(&environment).unwrap().expose(), VALUE);
        assert!(SecretRef::Credential("secret".into()).resolve_with(&none).is_err());
    }

    #[test]
    fn a_command_counts_only_after_exit_0() {
        let shell = |script: &str| SecretRef::Command(vec!["sh".into(), "-c".into(), script.into()]);
        assert_eq!(shell("echo s3cret").resolve_with(&none).unwrap().expose(), "s3cret");
        let error = shell("echo s3cr''et; exit 3").resolve_with(&none).unwrap_err();
        assert!(message(&error).contains("exit status: 3") && !message(&error).contains("s3cret"));
        assert!(message(&shell("true").resolve_with(&none).unwrap_err()).contains("it is empty"));
        assert!(SecretRef::Command(vec!["/nowhere/program".into()]).resolve_with(&none).is_err());
    }

    #[test]
    fn a_secret_is_never_printed() {
        assert_eq!(format!("{:?}", Secret::new(VALUE.into())), "Secret(redacted)");
        assert_eq!(SecretRef::Command(vec!["pass".into(), "show x".into()]).to_string(), "{ command = [\"pass\", …] }");
    }
}
