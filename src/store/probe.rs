//! What a place is really able to do, found out by doing it: at `repo init` and in `doctor`.

use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ulid::Ulid;

use crate::error::{Error, Kind, Result};
use crate::store::Store;
use crate::store::backend::PutMode;

/// How many creates race for one key. SeaweedFS, MinIO and AWS let exactly one win; a store that looks and then writes does not.
const RACERS: usize = 8;

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent findings, not a state")]
pub struct Probe {
    /// A create of an object that is there is refused and changes nothing, and of several creates at once exactly one wins. Without
    /// it only a single writer is safe.
    pub conditional_create: bool,
    /// An object can be read, whole and right, as soon as its create returned.
    pub read_after_write: bool,
    /// A listing shows an object as soon as its create returned.
    pub list_after_write: bool,
    /// A range yields exactly the bytes asked for.
    pub range_reads: bool,
    /// A delete is accepted and the object is gone at once.
    pub delete: bool,
    /// Why a delete was refused. Not a fault: a store of a write-only host should refuse.
    pub delete_refusal: Option<String>,
    /// How long the first small create took.
    pub create_took: Duration,
}

impl Probe {
    /// Whether a repository may be kept there by several writers.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        self.conditional_create && self.read_after_write && self.list_after_write && self.range_reads
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |holds: bool| if holds { "yes" } else { "NO" };
        writeln!(f, "create only if absent: {}", word(self.conditional_create))?;
        writeln!(f, "read after write:      {}", word(self.read_after_write))?;
        writeln!(f, "list after write:      {}", word(self.list_after_write))?;
        writeln!(f, "exact range reads:     {}", word(self.range_reads))?;
        match &self.delete_refusal {
            Some(refusal) => writeln!(f, "delete:                refused ({refusal})")?,
            None => writeln!(f, "delete:                {}", word(self.delete))?,
        }
        write!(f, "small create took:     {} ms", self.create_took.as_millis())
    }
}

/// Runs the probe. Its objects are removed again where the store lets us.
pub(crate) async fn probe(store: &Store) -> Result<Probe> {
    let key = format!("probe/{}", Ulid::generate().to_string().to_lowercase());
    let race_key = format!("{key}-race");
    let first = Bytes::from_static(b"lifeboat probe: first content");
    let second = Bytes::from_static(b"lifeboat probe: other content, longer");

    let started = Instant::now();
    let mut conditional = write_first(store, &key, &first).await?;
    let create_took = started.elapsed();
    let mut expected = &first;
    if conditional {
        match store.retrying(|| store.put_once(&key, &second, PutMode::Create)).await {
            Ok(()) => (conditional, expected) = (false, &second),
            Err(error) if error.kind() == Kind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    let read = missing_is_none(store.get(&key).await)?;
    // Refused and yet written: the condition is worth nothing.
    conditional &= read.as_ref() != Some(&second);
    let read_after_write = read.as_ref() == Some(expected);
    let list_after_write = store.list("probe").await?.iter().any(|object| object.key == key && object.size == expected.len() as u64);
    let range_reads = range_is_exact(store, &key, expected).await?;
    if conditional {
        conditional = one_wins(store, &race_key).await?;
    }
    let refusal = remove(store, &[&key, &race_key]).await?;
    let gone = store.head(&key).await?.is_none();
    Ok(Probe {
        conditional_create: conditional,
        read_after_write,
        list_after_write,
        range_reads,
        delete: refusal.is_none() && gone,
        delete_refusal: refusal,
        create_took,
    })
}

/// `false` when the store knows no conditional create at all and a plain write was needed.
async fn write_first(store: &Store, key: &str, bytes: &Bytes) -> Result<bool> {
    match store.retrying(|| store.put_once(key, bytes, PutMode::Create)).await {
        Ok(()) => Ok(true),
        // Nobody else can have this key, so it is our own write whose answer got lost.
        Err(error) if error.kind() == Kind::AlreadyExists => Ok(true),
        Err(error) if error.kind() == Kind::Failed => match store.put_once(key, bytes, PutMode::Overwrite).await {
            Ok(()) => Ok(false),
            Err(_) => Err(error),
        },
        Err(error) => Err(error),
    }
}

async fn range_is_exact(store: &Store, key: &str, content: &Bytes) -> Result<bool> {
    let end = content.len() as u64;
    for range in [0..1, 9..15, end - 1..end] {
        match store.get_range(key, range.clone()).await {
            #[expect(clippy::cast_possible_truncation, reason = "within a short constant")]
            Ok(bytes) if bytes == content.slice(range.start as usize..range.end as usize) => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == Kind::Unavailable => return Err(error),
            // Reading as a whole was allowed, so this is about the range.
            Err(error) => {
                tracing::debug!(error = ?error, ?range, "a range read was refused");
                return Ok(false);
            }
        }
    }
    // And past the end: refused, not filled up.
    match store.get_range(key, end - 1..end + 1).await {
        Err(error) if error.kind() == Kind::Unavailable => Err(error),
        result => Ok(result.is_err()),
    }
}

async fn one_wins(store: &Store, key: &str) -> Result<bool> {
    let contents: Vec<Bytes> = (0..RACERS).map(|racer| Bytes::from(format!("lifeboat probe: racer {racer}"))).collect();
    let results = futures::future::join_all(contents.iter().map(|bytes| store.put_once(key, bytes, PutMode::Create))).await;
    let Some(there) = missing_is_none(store.get(key).await)? else { return Ok(false) };
    let mut lost_answer = false;
    let mut winners = Vec::new();
    for (result, bytes) in results.into_iter().zip(&contents) {
        match result {
            Ok(()) => winners.push(bytes),
            Err(error) => lost_answer |= error.kind() == Kind::Unavailable,
        }
    }
    Ok(match winners.as_slice() {
        [winner] => **winner == there,
        // The winner may be the one whose answer got lost below us.
        [] => lost_answer || contents.contains(&there),
        _ => false,
    })
}

/// Why the first refused delete was refused.
async fn remove(store: &Store, keys: &[&str]) -> Result<Option<String>> {
    let mut refusal = None;
    for key in keys {
        match store.delete(key).await {
            Err(error) if error.kind() == Kind::Unavailable => return Err(error),
            Err(error) => refusal = refusal.or_else(|| Some(reason(&error))),
            Ok(()) => {}
        }
    }
    Ok(refusal)
}

fn reason(error: &Error) -> String {
    error.causes().into_iter().next().unwrap_or_else(|| error.to_string())
}

fn missing_is_none(result: Result<Bytes>) -> Result<Option<Bytes>> {
    match result {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
