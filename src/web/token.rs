//! Who may ask: two tokens in files that only this user can read.
//!
//! `api.token` may everything that the API offers; `metrics.token` may read `/metrics` and nothing else, so that a monitoring server
//! which is broken into cannot start runs. Both are made at the first start; a token is changed by removing its file and starting again.
//! Only digests are kept in memory, and comparing them takes the same time whatever differs. Accounts, when they come, are a further way
//! to become a [`Caller`].

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::error::{Error, IoContext, Kind, Result};

/// Names below the state folder.
pub const API_FILE: &str = "api.token";
pub const METRICS_FILE: &str = "metrics.token";

/// Random bytes of a token; it is written in hexadecimal.
const TOKEN_BYTES: usize = 32;

/// A token that somebody else made must have at least so many letters.
const SHORTEST: usize = 32;
/// And no more than so many: an `Authorization` header must hold it.
const LONGEST: u64 = 1024;

/// Who sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// Holds the API token.
    Operator,
    /// Holds the metrics token.
    Scraper,
}

impl Caller {
    /// Whether the request may be answered.
    pub fn may(self, path: &str, reads_only: bool) -> bool {
        match self {
            Self::Operator => true,
            Self::Scraper => reads_only && path == crate::web::METRICS_PATH,
        }
    }
}

/// The digests of both tokens.
pub(super) struct Tokens {
    api: blake3::Hash,
    metrics: blake3::Hash,
}

impl Tokens {
    /// Reads both, making those of the state folder that are not there.
    ///
    /// # Errors
    /// `Usage` when a file can be read by others, or holds no token. Nothing is served then.
    pub fn open(state: &Path, api: Option<&Path>) -> Result<Self> {
        let api = match api {
            Some(given) => read(given)?,
            None => ensure(&state.join(API_FILE))?,
        };
        let metrics = ensure(&state.join(METRICS_FILE))?;
        if api == metrics {
            return Err(Error::new(
                Kind::Usage,
                "read the tokens of the API: both are the same, so whoever reads metrics could start runs",
            )
            .hint(format!("remove {}: the next start makes another", state.join(METRICS_FILE).display())));
        }
        Ok(Self { api, metrics })
    }

    /// Who holds the token of an `Authorization` header.
    pub fn caller(&self, header: &[u8]) -> Option<Caller> {
        let (scheme, token) = header.split_at_checked("Bearer ".len())?;
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return None;
        }
        // Comparing digests of this type takes constant time, and both are compared whatever the first says.
        let given = blake3::hash(token);
        let (is_api, is_metrics) = (given == self.api, given == self.metrics);
        if is_api {
            Some(Caller::Operator)
        } else if is_metrics {
            Some(Caller::Scraper)
        } else {
            None
        }
    }
}

fn ensure(path: &Path) -> Result<blake3::Hash> {
    if !path.exists() {
        make(path)?;
    }
    read(path)
}

/// Written and flushed under another name first: a token file is whole or not there.
fn make(path: &Path) -> Result<()> {
    let mut random = Zeroizing::new([0; TOKEN_BYTES]);
    getrandom::fill(random.as_mut()).map_err(|error| Error::new(Kind::Failed, "make a token for the API").because(error))?;
    let text = Zeroizing::new(hex::encode(random.as_ref()));
    let unready = PathBuf::from(format!("{}.{}", path.display(), std::process::id()));
    let _ = std::fs::remove_file(&unready);
    let write = || -> std::io::Result<()> {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&unready)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&unready, path)
    };
    write().io_context(|| format!("write {}", path.display()))
}

fn read(path: &Path) -> Result<blake3::Hash> {
    let shown = path.display();
    let file = File::open(path).io_context(|| format!("open the token file {shown}"))?;
    let about = file.metadata().io_context(|| format!("look at the token file {shown}"))?;
    let wrong = |why: &str, hint: String| Err(Error::new(Kind::Usage, format!("read the token file {shown}: {why}")).hint(hint));
    if !about.is_file() {
        return wrong("it is no file", "name a file that holds a token alone".to_owned());
    }
    // Its owner's group may read it: that is how credentials are mounted into containers.
    if about.mode() & 0o027 != 0 {
        return wrong(
            "others may read or change it",
            format!("chmod 600 {shown}; somebody may know the token: remove the file to have a new one made"),
        );
    }
    let mut text = Zeroizing::new(String::new());
    file.take(LONGEST + 1).read_to_string(&mut text).io_context(|| format!("read the token file {shown}"))?;
    let token = text.trim();
    let fits = text.len() as u64 <= LONGEST && token.len() >= SHORTEST && token.bytes().all(|b| b.is_ascii_graphic());
    if !fits {
        return wrong(
            "it holds no token",
            format!("it must hold one word of {SHORTEST} to {LONGEST} letters and digits, such as `openssl rand -hex 32` makes"),
        );
    }
    Ok(blake3::hash(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn text(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap().trim().to_owned()
    }

    #[test]
    fn tokens_are_made_once_private_and_mean_what_they_say() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(folder.path(), None).unwrap();
        let (api, metrics) = (folder.path().join(API_FILE), folder.path().join(METRICS_FILE));
        for path in [&api, &metrics] {
            assert_eq!(std::fs::metadata(path).unwrap().mode() & 0o777, 0o600);
            assert_eq!(text(path).len(), 64);
        }
        let bearer = |token: &str| format!("Bearer {token}");
        assert_eq!(tokens.caller(bearer(&text(&api)).as_bytes()), Some(Caller::Operator));
        assert_eq!(tokens.caller(bearer(&text(&metrics)).as_bytes()), Some(Caller::Scraper));
        for wrong in ["", "Bearer", "Bearer ", "Basic abc", &text(&api), &bearer(&text(&api)[..63]), &format!("{} ", bearer(&text(&api)))] {
            assert_eq!(tokens.caller(wrong.as_bytes()), None, "{wrong}");
        }
        let again = Tokens::open(folder.path(), None).unwrap();
        assert_eq!(again.caller(bearer(&text(&api)).as_bytes()), Some(Caller::Operator), "the next start has the same");
        assert!(
            Caller::Scraper.may("/metrics", true) && !Caller::Scraper.may("/metrics", false) && !Caller::Scraper.may("/api/v1/runs", true)
        );
    }

    #[test]
    fn a_token_that_others_know_or_that_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        Tokens::open(folder.path(), None).unwrap();
        let api = folder.path().join(API_FILE);
        let refused = |what: &str| {
            let error = Tokens::open(folder.path(), None).map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{what}");
            assert!(error.hint_text().is_some());
        };
        for mode in [0o604, 0o602, 0o620, 0o644] {
            std::fs::set_permissions(&api, std::fs::Permissions::from_mode(mode)).unwrap();
            refused("mode");
        }
        std::fs::set_permissions(&api, std::fs::Permissions::from_mode(0o600)).unwrap();
        for wrong in ["", "\n", "short", &"x".repeat(2000), &"two words ".repeat(8)] {
            std::fs::write(&api, wrong).unwrap();
            refused(wrong);
        }
        std::fs::copy(folder.path().join(METRICS_FILE), &api).unwrap();
        refused("both the same");
    }
}
