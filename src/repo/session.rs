//! The writer's side of collection without locks: who may reuse what, and when.
//!
//! A writer (1) publishes a session that names the manifest key it will commit, (2) then reads tombstones, (3) then the index,
//! and reuses only packs that are listed, present and not tombstoned, (4) writes packs → index, (5) commits by *creating* the
//! manifest key, (6) removes its session. A collector waits for, or fences, every session that was there when it had published
//! its tombstones, so whatever a committed writer reused is still there. Expiry times play no part.

use std::collections::HashSet;
use std::path::Path;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::id::{Name, SessionId, SnapshotId};
use crate::repo::format::{ObjectKind, PackId};
use crate::repo::ledger::{Ledger, RemovedSnapshot};
use crate::repo::snapshot::{host_name, id_of};
use crate::repo::{Inner, Manifest, REQUESTS, Repository};

/// Content of a session object (JSON).
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SessionObject {
    /// Key of the manifest that the writer will create.
    manifest: String,
    host: String,
    process: u32,
    /// Where that number means something; absent in sessions of older versions.
    #[serde(flatten)]
    processes: Processes,
    started: DateTime<Utc>,
}

/// Whose list of processes it is: machines and containers may share a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processes {
    /// Of the machine's boot, proc(5); `None`: the system does not say.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub boot_id: Option<String>,
    /// Of namespaces of processes, `pid:[…]`, namespaces(7); `None`: the system does not say.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid_namespace: Option<String>,
}

impl Processes {
    /// Those of this process.
    pub fn here() -> Self {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|text| text.trim().to_owned());
        let pid_namespace = std::fs::read_link("/proc/self/ns/pid").ok().map(|link| link.to_string_lossy().into_owned());
        Self { boot_id: boot_id.filter(|id| !id.is_empty()), pid_namespace }
    }

    /// Whether the other's are the same, as far as the other says.
    pub fn are_those_of(&self, other: &Self) -> bool {
        let same = |own: Option<&str>, other: Option<&str>| other.is_none() || own == other;
        same(self.boot_id.as_deref(), other.boot_id.as_deref()) && same(self.pid_namespace.as_deref(), other.pid_namespace.as_deref())
    }

    /// Whether the other is of another boot: of another machine, or of this one before it was started anew.
    pub fn are_of_another_boot(&self, other: &Self) -> bool {
        other.boot_id.is_some() && other.boot_id != self.boot_id
    }

    /// Whether this process would see one with this number.
    pub fn has(process: u32) -> bool {
        Path::new("/proc").join(process.to_string()).exists()
    }
}

impl SessionObject {
    pub fn decode(content: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(content)
    }
}

/// A published session.
pub struct Session {
    key: String,
}

impl Session {
    /// Publishes a session: from now on no collector deletes what it may reuse.
    pub fn publish(inner: &Inner, manifest: &str, host: &str, now: DateTime<Utc>) -> Result<Self> {
        let key = format!("sessions/{}", SessionId::generate(now));
        let object = SessionObject {
            manifest: manifest.to_owned(),
            host: host.to_owned(),
            process: std::process::id(),
            processes: Processes::here(),
            started: now,
        };
        let content = serde_json::to_vec(&object).map_err(|e| Error::new(Kind::Bug, "encode a session").because(e))?;
        let sealed = inner.seal_object(ObjectKind::Session, &key, &content)?;
        inner.block_on(inner.store.create(&key, Bytes::from(sealed)))?;
        Ok(Self { key })
    }

    /// When this one began, and since when there may be packs of other writers of these manifests that did not end (killed, or at work): sessions
    /// that began after `last`, the newest commit. By the store's clock. What cannot be read counts as none: this is only told.
    pub fn beside(&self, inner: &Inner, manifests: &str, last: Option<DateTime<Utc>>) -> Result<(DateTime<Utc>, Option<DateTime<Utc>>)> {
        let (mut own, mut since) = (None, None);
        for object in inner.block_on(inner.store.list("sessions/"))? {
            if object.key == self.key {
                own = Some(object.modified);
                continue;
            }
            if last.is_some_and(|last| object.modified < last) || since.is_some_and(|since| since <= object.modified) {
                continue;
            }
            let session = inner.open_object(ObjectKind::Session, &object.key);
            let session = session.ok().and_then(|content| SessionObject::decode(&content).ok());
            if session.is_some_and(|session| session.manifest.starts_with(manifests)) {
                since = Some(object.modified);
            }
        }
        // One that is not shown was removed by somebody: nothing is left of it.
        Ok((own.unwrap_or(DateTime::<Utc>::MAX_UTC), since))
    }

    /// Gives the session up without removing it: whether its commit landed is not known.
    pub fn leave(self) {
        tracing::warn!(session = %self.key, "the session stays: whether its commit landed is not known");
    }

    /// Removes the session. A failure harms nothing: a collector treats a session whose manifest exists as ended.
    pub fn end(&self, inner: &Inner) {
        if let Err(error) = inner.block_on(inner.store.delete(&self.key)) {
            tracing::warn!(session = %self.key, error = ?error, "the session could not be removed; a collector will see that it has ended");
        }
    }
}

/// Says that these packs must not be reused any more: their content is damaged. A live pack stays where it is.
pub fn condemn(inner: &Inner, packs: &[PackId], now: DateTime<Utc>) -> Result<()> {
    if packs.is_empty() {
        return Ok(());
    }
    publish_tombstones(inner, packs, now).map(drop)
}

/// Publishes tombstones; returns the object's key.
pub fn publish_tombstones(inner: &Inner, packs: &[PackId], now: DateTime<Utc>) -> Result<String> {
    let key = format!("gc/tombstones/{}", SessionId::generate(now));
    let content: Vec<u8> = packs.iter().flat_map(|pack| pack.0).collect();
    let sealed = inner.seal_object(ObjectKind::Tombstones, &key, &content)?;
    inner.block_on(inner.store.create(&key, Bytes::from(sealed)))?;
    Ok(key)
}

impl Repository {
    /// Marks the packs that were found damaged while something was read, as a verification would: no later backup leans on them, and stores
    /// their content again where the source still has it. Returns how many are marked that were not before. One that is missing is reused by nobody, and needs
    /// no mark.
    ///
    /// # Errors
    /// When the store does not take the mark (a credential that only reads): backups may go on reusing them.
    pub fn condemn_found(&self, now: DateTime<Utc>) -> Result<usize> {
        let mut packs: Vec<PackId> = self.inner.found.take().into_iter().collect();
        if packs.is_empty() {
            return Ok(0);
        }
        let known = read_tombstones(&self.inner).unwrap_or_default();
        packs.retain(|pack| !known.contains(pack));
        let mut missing = HashSet::new();
        for pack in &packs {
            if self.inner.block_on(self.inner.store.head(&pack.key()))?.is_none() {
                missing.insert(*pack);
            }
        }
        packs.retain(|pack| !missing.contains(pack));
        condemn(&self.inner, &packs, now)?;
        Ok(packs.len())
    }
}

/// What is certain of a commit whose writer is gone.
#[derive(Debug, Clone, PartialEq)]
pub enum Decided {
    Committed(Box<Manifest>),
    /// It was committed, and retention has removed it since.
    Removed(Box<RemovedSnapshot>),
    /// It is not there and never will be.
    Void,
}

impl Repository {
    /// What the store's clock says, by a session that is made for that and removed. `None`: the store does not show it.
    ///
    /// # Errors
    /// When the store cannot be asked or takes no session.
    pub fn store_clock(&self, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>> {
        let inner = &self.inner;
        // To others it is a collection that is about to begin: one that was killed here is in nobody's way.
        let session = Session::publish(inner, &format!("{}{}", crate::repo::moved::FOLDER, SessionId::generate(now)), &host_name(), now)?;
        let listed = inner.block_on(inner.store.list("sessions/"));
        session.end(inner);
        Ok(listed?.into_iter().find(|object| object.key == session.key).map(|object| object.modified))
    }

    /// Decides for good whether this snapshot of a plan was committed: yields its manifest, or makes sure by a void marker at its name (create-only:
    /// exactly one of the two gets it) that it never will be, whoever still tries.
    ///
    /// # Errors
    /// When the store cannot be asked or does not take the marker: nothing is decided then.
    pub fn decide(&self, plan: &Name, id: SnapshotId) -> Result<Decided> {
        let inner = &self.inner;
        let key = format!("snapshots/{}/{id}", inner.keys.chain_name(plan.as_str()));
        let sealed = inner.seal_object(ObjectKind::Void, &key, b"")?;
        let mut gone = None;
        match inner.block_on(inner.store.create(&key, Bytes::from(sealed))) {
            Ok(_) => {}
            Err(error) if error.kind() == Kind::AlreadyExists => match self.open_manifest(&key) {
                Ok(Some((manifest, _))) => return Ok(Decided::Committed(Box::new(manifest))),
                Ok(None) => {}
                Err(error) if error.kind() == Kind::NotFound => gone = Some(error),
                Err(error) => return Err(error),
            },
            Err(error) => return Err(error.within("fence a run that is gone")),
        }
        // Asked last: the object of a manifest goes only after the ledger has removed its snapshot.
        match self.ledger() {
            Ok(ledger) => Ok(match (self.removal(&ledger, id)?, gone) {
                (Some(removed), _) => Decided::Removed(Box::new(removed)),
                (None, Some(error)) => return Err(error.within("fence a run that is gone")),
                (None, None) => Decided::Void,
            }),
            // Then nothing is removed either.
            Err(error) if error.kind() == Kind::Damaged && gone.is_none() => Ok(Decided::Void),
            Err(error) => Err(error),
        }
    }
}

/// A session as a collector sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenSession {
    pub key: String,
    /// Key of the object that it will commit.
    pub commits: String,
    pub host: String,
    pub process: u32,
    pub processes: Processes,
    /// By the store's clock.
    pub published: DateTime<Utc>,
}

impl SeenSession {
    /// All that are there.
    ///
    /// # Errors
    /// `Damaged` when one cannot be read: nobody knows then what it will commit.
    pub fn list(inner: &Inner) -> Result<Vec<Self>> {
        let mut sessions = Vec::new();
        let listed = inner.block_on(inner.store.list("sessions/"))?;
        let opened = inner.open_all(ObjectKind::Session, listed.iter().map(|object| object.key.clone()));
        for (object, (_, content)) in listed.iter().zip(opened) {
            let content = match content {
                Ok(content) => content,
                // It ended since the listing.
                Err(error) if error.kind() == Kind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let damaged = |e| Error::new(Kind::Damaged, format!("object {}: cannot be decoded", object.key)).because(e);
            let session = SessionObject::decode(&content).map_err(damaged)?;
            sessions.push(Self {
                key: object.key.clone(),
                commits: session.manifest,
                host: session.host,
                process: session.process,
                processes: session.processes,
                published: object.modified,
            });
        }
        Ok(sessions)
    }

    /// Of each, whether what it commits is there, or a void marker in its place, or was removed by retention: then it means nothing any more, also
    /// when its object is gone or comes again.
    pub fn are_decided(sessions: &[Self], repository: &Repository) -> Result<Vec<bool>> {
        use futures::{StreamExt as _, TryStreamExt as _};
        let inner = &repository.inner;
        let heads = futures::stream::iter(sessions).map(|session| inner.store.head(&session.commits)).buffered(REQUESTS);
        let there: Vec<bool> = inner.block_on(heads.map_ok(|object| object.is_some()).try_collect())?;
        if there.iter().all(|there| *there) {
            return Ok(there);
        }
        // Asked last: the object of a manifest goes only after the ledger has removed its snapshot.
        let ledger = match repository.ledger() {
            Ok(ledger) => ledger,
            Err(error) if error.kind() == Kind::Damaged => Ledger::default(),
            Err(error) => return Err(error),
        };
        let is_removed = |session: &Self| id_of(&session.commits).is_some_and(|id| ledger.is_removed(id));
        Ok(sessions.iter().zip(there).map(|(session, there)| there || is_removed(session)).collect())
    }

    /// Fences it: a void marker takes the name of what it would commit. Afterwards it is decided, one way or the other.
    pub fn fence(&self, inner: &Inner) -> Result<()> {
        let sealed = inner.seal_object(ObjectKind::Void, &self.commits, b"")?;
        match inner.block_on(inner.store.create(&self.commits, Bytes::from(sealed))) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == Kind::AlreadyExists => Ok(()),
            Err(error) => Err(error.within(format!("fence {}", self.key))),
        }
    }
}

/// How often a listing is made again because objects of it went away while they were read.
pub const LISTINGS: usize = 16;

/// Packs that must not be reused any more.
pub fn read_tombstones(inner: &Inner) -> Result<HashSet<PackId>> {
    Ok(read_tombstone_groups(inner)?.into_iter().flat_map(|(_, packs)| packs).collect())
}

/// Content of a tombstones object: 32-byte pack names, one after the other. `None`: it is cut.
pub fn decode_tombstones(content: &[u8]) -> Option<Vec<PackId>> {
    let (names, rest) = content.as_chunks::<32>();
    rest.is_empty().then(|| names.iter().map(|name| PackId(*name)).collect())
}

/// The same by object.
pub fn read_tombstone_groups(inner: &Inner) -> Result<Vec<(String, Vec<PackId>)>> {
    'again: for _ in 0..LISTINGS {
        let mut groups = Vec::new();
        let listed = inner.block_on(inner.store.list("gc/tombstones/"))?;
        for (key, content) in inner.open_all(ObjectKind::Tombstones, listed.into_iter().map(|object| object.key)) {
            let content = match content {
                Ok(content) => content,
                // A collector has put several into one, which is there already.
                Err(error) if error.kind() == Kind::NotFound => continue 'again,
                Err(error) => return Err(error),
            };
            match decode_tombstones(&content) {
                Some(packs) => groups.push((key, packs)),
                None => return Err(Error::new(Kind::Damaged, format!("object {key}: has a wrong length"))),
            }
        }
        return Ok(groups);
    }
    Err(Error::new(Kind::Unavailable, "read the tombstones: they go away while they are read").hint("try again"))
}
