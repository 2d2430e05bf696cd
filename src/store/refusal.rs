//! Foreign errors sorted by what a caller can do, and stripped of everything that could be secret.
//!
//! `object_store` keeps status codes in private types, so they are read from its text
//! (`client/retry.rs`: "Server returned non-2xx status code: {status}: {body}").

use std::error::Error as StdError;
use std::fmt;
use std::io;

use object_store::client::HttpError;
use rustix::io::Errno;

use crate::error::{Error, Kind};
use crate::store::Credential;

/// Most characters of a server's free text that are kept.
const MOST_TEXT: usize = 300;

/// Knows how a store is called in messages and which texts must never appear in them.
#[derive(Debug, Clone)]
pub(crate) struct Refusals {
    store: String,
    secrets: Vec<Credential>,
}

impl Refusals {
    pub fn new(store: impl Into<String>, secrets: Vec<Credential>) -> Self {
        Self { store: store.into(), secrets }
    }

    /// Operation + key + store.
    pub fn message(&self, operation: &str, key: &str) -> String {
        if key.is_empty() { format!("cannot {operation} {}", self.store) } else { format!("cannot {operation} {key} in {}", self.store) }
    }

    /// Sorts and strips `error`.
    pub fn error(&self, operation: &str, key: &str, error: object_store::Error) -> Error {
        let facts = Facts::of(&error);
        let (kind, hint) = if facts.unreadable && operation == READ { (Kind::Damaged, Some(MEDIUM)) } else { sort(&error, &facts) };
        let mut mapped = Error::new(kind, self.message(operation, key)).because(Cause(self.strip(&facts.summary())));
        if let Some(hint) = hint {
            mapped = mapped.hint(hint);
        }
        mapped
    }

    /// Cuts query strings (signatures, tokens) off addresses and takes known secrets out.
    fn strip(&self, text: &str) -> String {
        let mut clean = String::with_capacity(text.len());
        for word in text.split_inclusive(char::is_whitespace) {
            match (word.contains("://"), word.find('?')) {
                (true, Some(at)) => {
                    clean.push_str(&word[..at]);
                    clean.push_str(if word.ends_with(char::is_whitespace) { "?… " } else { "?…" });
                }
                _ => clean.push_str(word),
            }
        }
        for secret in self.secrets.iter().filter(|secret| !secret.expose().is_empty()) {
            clean = clean.replace(secret.expose(), "[redacted]");
        }
        clean
    }
}

/// The part of a foreign error that may be shown.
#[derive(Debug)]
struct Cause(String);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Cause {}

/// What can be known about a foreign error.
#[derive(Debug, Default)]
struct Facts {
    status: Option<u16>,
    /// The provider's own word (`NoSuchBucket`).
    code: Option<String>,
    message: Option<String>,
    io: Option<io::ErrorKind>,
    /// The disk or its file system could not give the bytes.
    unreadable: bool,
    transport: bool,
    text: String,
}

impl Facts {
    fn of(error: &object_store::Error) -> Self {
        let mut facts = Self::default();
        let mut texts: Vec<String> = Vec::new();
        let mut next: Option<&(dyn StdError + 'static)> = Some(error);
        while let Some(error) = next {
            if let Some(io) = error.downcast_ref::<io::Error>() {
                facts.io = Some(io.kind());
                facts.unreadable |= Errno::from_io_error(io).is_some_and(|errno| UNREADABLE.contains(&errno));
            }
            facts.transport |= error.is::<HttpError>();
            texts.push(error.to_string());
            next = error.source();
        }
        let all = &texts[0];
        facts.status = number_after(all, "status code: ").or_else(|| number_after(all, "error response: "));
        facts.code = between(all, "<Code>", "</Code>").or_else(|| between(all, "\"reason\": \"", "\""));
        facts.message = between(all, "<Message>", "</Message>").or_else(|| between(all, "\"message\": \"", "\""));
        // The outer texts of object_store repeat the inner ones; the innermost ones are exact.
        texts.reverse();
        let mut text: Vec<String> = Vec::new();
        for candidate in texts {
            let told = text.iter().any(|inner| candidate.contains(inner.as_str()));
            if !told && !candidate.is_empty() {
                text.push(candidate);
            }
        }
        text.reverse();
        facts.text = text.join(": ");
        facts
    }

    fn code_is(&self, codes: &[&str]) -> bool {
        self.code.as_deref().is_some_and(|code| codes.contains(&code))
    }

    fn says(&self, words: &[&str]) -> bool {
        let text = self.text.to_ascii_lowercase();
        words.iter().any(|word| text.contains(word))
    }

    fn summary(&self) -> String {
        let parts: Vec<String> = [self.status.map(|s| format!("the server answered {s}")), self.code.clone(), self.message.clone()]
            .into_iter()
            .flatten()
            .collect();
        let text = if self.code.is_some() || self.message.is_some() { parts.join(": ") } else { self.text.clone() };
        match text.char_indices().nth(MOST_TEXT) {
            Some((at, _)) => format!("{}…", &text[..at]),
            None => text,
        }
    }
}

/// The operation of reading an object's bytes, as it stands in messages.
pub(crate) const READ: &str = "read";
/// What a disk answers for a block that it cannot read, and a file system for one that is not what it wrote.
const UNREADABLE: [Errno; 3] = [Errno::IO, Errno::UCLEAN, Errno::BADMSG];

const MEDIUM: &str = "the disk or file system below the repository cannot read it: look at the kernel's log, and run `lifeboat verify` to see what is harmed";
const CREDENTIALS: &str = "check the access key, its secret and its rights on this bucket";
const NO_CREDENTIALS: &str =
    "no credentials were found: name them in the plan, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE";

/// Whether a store refused because of who asked.
pub fn is_for_want_of_rights(error: &Error) -> bool {
    error.hint_text() == Some(CREDENTIALS)
}
const CLOCK: &str = "the clocks of this machine and of the server differ too much: set this machine's clock";
const BUCKET: &str = "create the bucket or container first, or correct its name";
const ROOM: &str = "free space in the store, then run the same command again";
const RIGHTS: &str = "give the user that runs lifeboat the right to read and write there";
const CERTIFICATE: &str = "install the server's certificate authority on this machine, or correct the endpoint";
const SERVER: &str = "check the endpoint and the network; the same command can be run again";
const REGION: &str = "set the region and the endpoint that belong to this bucket";

/// What a caller can do about it.
fn sort(error: &object_store::Error, facts: &Facts) -> (Kind, Option<&'static str>) {
    use object_store::Error as Foreign;
    if let Some(io) = facts.io.filter(|_| !facts.transport) {
        return match io {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => (Kind::NoSpace, Some(ROOM)),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => (Kind::Failed, Some(RIGHTS)),
            io::ErrorKind::NotFound => (Kind::NotFound, None),
            io::ErrorKind::AlreadyExists => (Kind::AlreadyExists, None),
            _ => (Kind::Failed, None),
        };
    }
    if facts.code_is(&["RequestTimeTooSkewed"]) {
        return (Kind::Failed, Some(CLOCK));
    }
    if facts.code_is(&["NoSuchBucket", "ContainerNotFound"]) || facts.says(&["bucket does not exist"]) {
        return (Kind::Failed, Some(BUCKET));
    }
    if facts.code_is(&["SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "ServerBusy", "OperationTimedOut"]) {
        return (Kind::Unavailable, Some(SERVER));
    }
    if facts.code_is(&["XMinioStorageFull", "QuotaExceeded", "InsufficientCapacity"]) {
        return (Kind::NoSpace, Some(ROOM));
    }
    // Before the transport's kinds: metadata services are what is asked when no credentials were given.
    if facts.says(&["169.254.169.254", "169.254.170.2", "metadata.google.internal", "instance credential"]) {
        return (Kind::Failed, Some(NO_CREDENTIALS));
    }
    match error {
        Foreign::NotFound { .. } => return (Kind::NotFound, None),
        Foreign::AlreadyExists { .. } | Foreign::Precondition { .. } | Foreign::NotModified { .. } => return (Kind::AlreadyExists, None),
        Foreign::PermissionDenied { .. } | Foreign::Unauthenticated { .. } => return (Kind::Failed, Some(CREDENTIALS)),
        _ => {}
    }
    match facts.status {
        Some(401 | 403) => (Kind::Failed, Some(CREDENTIALS)),
        Some(507) => (Kind::NoSpace, Some(ROOM)),
        // 501: the server does not know the request at all.
        Some(408 | 429 | 500 | 502..=599) => (Kind::Unavailable, Some(SERVER)),
        Some(300..=399) => (Kind::Failed, Some(REGION)),
        None if facts.says(&["without location"]) => (Kind::Failed, Some(REGION)),
        None if facts.says(&["certificate", "unknownissuer"]) => (Kind::Failed, Some(CERTIFICATE)),
        None if facts.says(&["scheme is not allowed", "builder error", "invalid url"]) => (Kind::Failed, None),
        None if facts.transport || facts.says(&["error decoding response body"]) => (Kind::Unavailable, Some(SERVER)),
        _ => (Kind::Failed, None),
    }
}

fn number_after(text: &str, mark: &str) -> Option<u16> {
    text.split_once(mark)?.1.get(..3)?.parse().ok()
}

fn between(text: &str, open: &str, close: &str) -> Option<String> {
    let inner = text.split_once(open)?.1.split_once(close)?.0.trim();
    (!inner.is_empty()).then(|| inner.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::client::HttpErrorKind;

    fn generic(text: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: text.to_owned().into() }
    }

    fn map(error: object_store::Error) -> Error {
        let secrets = vec![Credential::new("sEcReT"), Credential::new("")];
        Refusals::new("s3://bucket/root", secrets).error("read", "packs/ab/cd", error)
    }

    #[test]
    fn kinds_follow_what_can_be_done() {
        let io = |kind| object_store::Error::Generic { store: "L", source: Box::new(io::Error::from(kind)) };
        let http = |kind| {
            let error = HttpError::new(kind, io::Error::from(io::ErrorKind::ConnectionReset));
            object_store::Error::Generic { store: "S3", source: Box::new(error) }
        };
        let status = |code: &str| generic(&format!("Server returned non-2xx status code: {code} Words: body"));
        let cases = [
            (io(io::ErrorKind::StorageFull), Kind::NoSpace),
            (io(io::ErrorKind::QuotaExceeded), Kind::NoSpace),
            (io(io::ErrorKind::PermissionDenied), Kind::Failed),
            (http(HttpErrorKind::Connect), Kind::Unavailable),
            (http(HttpErrorKind::Timeout), Kind::Unavailable),
            (http(HttpErrorKind::Unknown), Kind::Unavailable),
            (status("503"), Kind::Unavailable),
            (status("429"), Kind::Unavailable),
            (status("400"), Kind::Failed),
            (status("301"), Kind::Failed),
            (status("507"), Kind::NoSpace),
            (status("400 Bad: <Code>RequestTimeout</Code>"), Kind::Unavailable),
            (status("404 Not Found: <Error><Code>NoSuchBucket</Code>"), Kind::Failed),
            (object_store::Error::NotFound { path: "x".into(), source: "404".into() }, Kind::NotFound),
            (object_store::Error::Precondition { path: "x".into(), source: "412".into() }, Kind::AlreadyExists),
            (object_store::Error::PermissionDenied { path: "x".into(), source: "403".into() }, Kind::Failed),
            (generic("GET http://169.254.169.254/latest/meta-data timed out"), Kind::Failed),
        ];
        for (error, kind) in cases {
            let text = error.to_string();
            assert_eq!(map(error).kind(), kind, "{text}");
        }
    }

    #[test]
    fn bytes_that_the_disk_cannot_read_are_damage_and_nothing_else_of_the_disk_is() {
        let refusals = Refusals::new("file:///r", Vec::new());
        let disk = |errno: Errno| object_store::Error::Generic { store: "L", source: Box::new(io::Error::from(errno)) };
        for errno in UNREADABLE {
            assert_eq!(refusals.error(READ, "packs/ab/cd", disk(errno)).kind(), Kind::Damaged, "{errno:?}");
            assert_eq!(refusals.error("list", "packs", disk(errno)).kind(), Kind::Failed, "a listing that fails tells nothing of objects");
        }
        assert_eq!(refusals.error(READ, "packs/ab/cd", disk(Errno::ACCESS)).kind(), Kind::Failed);
    }

    #[test]
    fn messages_name_operation_key_and_store_and_nothing_secret() {
        let url = "https://a.blob/c/packs?sv=1&sig=abc%3D";
        let error = map(generic(&format!("GET {url} failed: key sEcReT was bad")));
        assert_eq!(error.to_string(), "cannot read packs/ab/cd in s3://bucket/root");
        let all = format!("{error:?} {:?} {:?}", error.causes(), error.hint_text());
        assert!(!all.contains("sig=") && !all.contains("sEcReT"), "{all}");
        assert!(all.contains("https://a.blob/c/packs?…"), "{all}");
    }

    #[test]
    fn refused_credentials_come_with_advice_and_the_provider_s_words() {
        let body = "<Error><Code>SignatureDoesNotMatch</Code><Message>Bad signature</Message><AWSAccessKeyId>AK</AWSAccessKeyId></Error>";
        let source = format!("Server returned non-2xx status code: 403 Forbidden: {body}");
        let error = map(object_store::Error::PermissionDenied { path: "p".into(), source: source.into() });
        assert_eq!(error.causes(), ["the server answered 403: SignatureDoesNotMatch: Bad signature"]);
        assert!(error.hint_text().unwrap().contains("access key"));
    }
}
