//! Snapshot manifests: the commit. Chained per plan by the hashes of their sealed bytes, so one that disappears is noticed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::{self, Write as _};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::id::{Name, SnapshotId};
use crate::repo::format::{ObjectKind, RepositoryId};
use crate::repo::ledger::{Ledger, RemovedSnapshot};
use crate::repo::{Repository, beside, kept, keys, seal};

/// An earlier manifest of the same plan, by id and hash of its sealed bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    pub id: SnapshotId,
    /// Hex BLAKE3 of the stored object; empty when it was damaged already, so that only its presence can be checked.
    pub hash: String,
}

/// What one backup moved. Bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Plain bytes read from sources.
    pub bytes_read: u64,
    /// Plain bytes of all files in the snapshot.
    pub bytes_source: u64,
    /// Sealed bytes of packs and index objects that this backup added to the repository.
    pub bytes_stored: u64,
    pub entries: u64,
    pub chunks_new: u64,
    pub chunks_reused: u64,
    pub packs: u64,
}

/// Where a source's tree begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeRoot {
    /// How many levels of list nodes stand between `nodes` and the nodes of records.
    pub depth: u32,
    /// Hex of a list of node references (see `tree`).
    pub nodes: String,
    /// Which key the ids of its chunks were made with, see `Keys::ids_name`; absent: the repository's first. Chunks of a tree with another
    /// one are not named again.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ids: Option<String>,
}

impl TreeRoot {
    pub(super) fn bytes(&self) -> Result<Vec<u8>> {
        if self.depth > 8 {
            return Err(Error::new(Kind::Damaged, "a manifest's tree is impossibly deep"));
        }
        hex::decode(&self.nodes).map_err(|e| Error::new(Kind::Damaged, "a manifest's tree cannot be decoded").because(e))
    }
}

/// One source in a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceRecord {
    pub name: Name,
    /// `sqlite`, `files`, `command`, …
    pub kind: String,
    pub entries: u64,
    /// Plain bytes of all its files.
    pub bytes: u64,
    /// [`crate::source::Finish`] as JSON: consistency, fingerprints, problems. Opaque here.
    pub finish: serde_json::Value,
    pub tree: TreeRoot,
}

/// A committed snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub id: SnapshotId,
    pub plan: Name,
    pub host: String,
    /// When the run began.
    pub started: DateTime<Utc>,
    /// The moment that the content is of: what `--at` compares with.
    pub time: DateTime<Utc>,
    pub parents: Vec<Parent>,
    pub sources: Vec<SourceRecord>,
    pub stats: Stats,
    pub tags: Vec<String>,
    /// Version of the program that wrote it.
    pub program: String,
    /// Of a copy: which snapshot it is a copy of.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub copied_from: Option<CopiedFrom>,
}

/// The snapshot that a copy is of.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopiedFrom {
    /// Hex of the repository's id.
    pub repository: String,
    pub snapshot: SnapshotId,
    pub copied_at: DateTime<Utc>,
    /// Hex of the key that the fingerprints in `sources` were made with: that of the first repository, also of a copy of a copy.
    pub fingerprint_key: String,
    /// Of a copy of a snapshot that had been brought back there: the damaged one of that repository whose place it took, and whose place in the order it has.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stands_for: Option<SnapshotId>,
    /// Snapshots there that should have been copied by then and could not be, because they were damaged: a later copy tries them again.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub owed: Vec<SnapshotId>,
    /// Snapshots there, at the time of the copy, that others were begun beside before they were committed. One that is not among them came later, however old
    /// its id is.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub beside: Vec<SnapshotId>,
    /// When the snapshot had been proven by a drill there, at the time of the copy.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub proven_at: Option<DateTime<Utc>>,
    /// Of a snapshot that was brought back from a copy: the damaged one of this repository whose place it takes. When a manifest is opened, only what
    /// a reader signed stays here.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub replaces: Option<SnapshotId>,
    /// Hex Ed25519 signature of [`Manifest::replacement_text`], by a reader: who read the copy and compared.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub replaces_signature: Option<String>,
    /// What an opened manifest says that it replaces, and no reader has signed: believed by nobody.
    #[serde(skip)]
    pub unproven: Option<SnapshotId>,
}

impl fmt::Debug for CopiedFrom {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CopiedFrom({} of {} at {})", self.snapshot, self.repository, self.copied_at)
    }
}

impl CopiedFrom {
    /// Where it stands among the snapshots of that repository: that of the original, or that of the damaged one in whose place the original came.
    #[must_use]
    pub fn place(&self) -> SnapshotId {
        self.stands_for.unwrap_or(self.snapshot)
    }
}

impl Manifest {
    /// The damaged snapshot of the same repository whose place this one takes.
    #[must_use]
    pub fn replaces(&self) -> Option<SnapshotId> {
        self.copied_from.as_ref()?.replaces
    }

    /// What a reader signs who has brought a snapshot back: this very content, in this very place, for that one.
    pub(super) fn replacement_text(&self, repository: RepositoryId, replaces: SnapshotId) -> String {
        let mut text = format!("lifeboat v1 replacement\n{repository}\n{}\n{}\n{replaces}\n", self.plan, self.id);
        for source in &self.sources {
            let ids = source.tree.ids.as_deref().unwrap_or_default();
            let _ = writeln!(text, "{}\n{}\n{}\n{ids}", source.name, source.tree.depth, source.tree.nodes);
        }
        text
    }

    /// The key of its fingerprints where it is not the repository's own.
    ///
    /// # Errors
    /// `Damaged` when it is no key.
    pub fn foreign_fingerprint_key(&self) -> Result<Option<[u8; 32]>> {
        let Some(from) = &self.copied_from else { return Ok(None) };
        let mut key = [0; 32];
        hex::decode_to_slice(&from.fingerprint_key, &mut key)
            .map_err(|_| Error::new(Kind::Damaged, format!("snapshot {}: the key of its fingerprints cannot be decoded", self.id)))?;
        Ok(Some(key))
    }
}

/// A manifest that is there and cannot be read.
#[derive(Debug)]
pub struct LostManifest {
    /// Of its snapshot; `None`: its name is none that this program gives.
    pub id: Option<SnapshotId>,
    pub error: Error,
}

/// A key below `snapshots/` and what it holds: a manifest and the hash of its sealed bytes, or a void marker (`None`).
pub(super) type OpenedManifest = (String, Result<Option<(Manifest, String)>>);

/// Of so many plans all snapshots are listed in one go.
const LISTED_TOGETHER: usize = 16;

/// How many of the newest manifests are looked at for heads of the chain.
const HEADS_WINDOW: usize = 8;

impl Repository {
    /// Manifests of one plan, or of all, oldest first (by id, which is the order of commits).
    ///
    /// # Errors
    /// `Damaged` names the object when one cannot be opened.
    pub fn manifests(&self, plan: Option<&Name>) -> Result<Vec<Manifest>> {
        let prefix = self.manifest_prefix(plan);
        let (mut manifests, mut failed) = (Vec::new(), Vec::new());
        for (key, opened) in self.listed_manifests(&prefix, |_| true)? {
            match opened {
                Ok(found) => manifests.extend(found.map(|(manifest, _)| manifest)),
                Err(error) => failed.push((id_of(&key), error.within(format!("read the manifest {key}")))),
            }
        }
        let replaced: HashSet<SnapshotId> = manifests.iter().filter_map(Manifest::replaces).collect();
        let first = failed.into_iter().find(|(id, error)| error.kind() != Kind::Damaged || id.is_none_or(|id| !replaced.contains(&id)));
        if let Some((_, error)) = first {
            return Err(error.hint("run `lifeboat verify` to see what else is harmed"));
        }
        manifests.sort_by_key(|m| m.id);
        Ok(manifests)
    }

    /// Like [`Repository::manifests`], but what is damaged does not hide what is sound: each manifest that is comes apart, with its error, unless
    /// its snapshot was brought back from a copy.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub fn sound_manifests(&self, plan: Option<&Name>) -> Result<(Vec<Manifest>, Vec<LostManifest>)> {
        Self::sound(self.listed_manifests(&self.manifest_prefix(plan), |_| true)?)
    }

    /// The same of each of these plans, in their order; what of one plan cannot be had is an error of that plan alone. Of many plans all snapshots are
    /// listed at once: a listing of its own is a request for each.
    ///
    /// # Errors
    /// When what is there cannot be listed, which says something of all of them.
    pub fn sound_manifests_of(&self, plans: &[&Name]) -> Result<Vec<Result<(Vec<Manifest>, Vec<LostManifest>)>>> {
        if plans.len() < LISTED_TOGETHER {
            let one = |plan: &&Name| Ok(Self::sound(self.listed_manifests(&self.manifest_prefix(Some(plan)), |_| true)?));
            return plans.iter().map(one).collect();
        }
        let prefixes: Vec<String> = plans.iter().map(|plan| self.manifest_prefix(Some(plan))).collect();
        let places: HashMap<&str, usize> = prefixes.iter().enumerate().map(|(at, prefix)| (prefix.as_str(), at)).collect();
        let place = |key: &str| key.rfind('/').and_then(|end| places.get(&key[..=end])).copied();
        let mut of_plans: Vec<Vec<OpenedManifest>> = plans.iter().map(|_| Vec::new()).collect();
        let mut of_all = Vec::new();
        for (key, opened) in self.listed_manifests("snapshots/", |key| place(key).is_some())? {
            match (place(&key), opened) {
                (Some(at), opened) => of_plans[at].push((key, opened)),
                // The ledger, which says what is gone of every plan.
                (None, Err(error)) => of_all.push((key, error.kind(), format!("{error:?}"))),
                (None, Ok(_)) => {}
            }
        }
        let sound = |mut opened: Vec<OpenedManifest>| {
            opened.extend(of_all.iter().map(|(key, kind, message)| (key.clone(), Err(Error::new(*kind, message.clone())))));
            Self::sound(opened)
        };
        Ok(of_plans.into_iter().map(sound).collect())
    }

    pub(super) fn manifest_prefix(&self, plan: Option<&Name>) -> String {
        plan.map_or_else(|| "snapshots/".to_owned(), |plan| format!("snapshots/{}/", self.inner.keys.chain_name(plan.as_str())))
    }

    fn sound(all: Vec<OpenedManifest>) -> Result<(Vec<Manifest>, Vec<LostManifest>)> {
        let (mut manifests, mut damaged) = (Vec::new(), Vec::new());
        for (key, opened) in all {
            match opened {
                Ok(found) => manifests.extend(found.map(|(manifest, _)| manifest)),
                Err(e) if matches!(e.kind(), Kind::Damaged | Kind::NotFound) => {
                    damaged.push(LostManifest { id: id_of(&key), error: e.within(format!("read the manifest {key}")) });
                }
                Err(e) => return Err(e.within(format!("read the manifest {key}"))),
            }
        }
        // Of these another one stands in the place.
        let replaced: HashSet<SnapshotId> = manifests.iter().filter_map(Manifest::replaces).collect();
        damaged.retain(|lost| lost.id.is_none_or(|id| !replaced.contains(&id)));
        manifests.sort_by_key(|m| m.id);
        Ok((manifests, damaged))
    }

    /// One manifest.
    ///
    /// # Errors
    /// `NoRecoveryPoint` when there is no such snapshot.
    pub fn manifest(&self, id: SnapshotId) -> Result<Manifest> {
        let inner = &self.inner;
        if let Some(removed) = self.removed(id) {
            return Err(removed);
        }
        let listed = inner.block_on(inner.store.list("snapshots/"))?;
        let name = format!("/{id}");
        for object in listed.iter().filter(|o| o.key.ends_with(&name)) {
            if let Some((manifest, _)) = self.open_manifest(&object.key)? {
                return Ok(manifest);
            }
        }
        Err(Error::new(Kind::NoRecoveryPoint, format!("there is no snapshot {id}")).hint("see `lifeboat snapshots`"))
    }

    /// When the key was destroyed that the content of a snapshot is sealed to, so that nobody can restore it any more; `None`: it was not. Asks nobody: it is
    /// of when this repository was opened.
    #[must_use]
    pub fn destroyed_at(&self, manifest: &Manifest) -> Option<DateTime<Utc>> {
        // Names and the like are under the repository's own keys: where there is no content, nothing is lost.
        let with_content = manifest.sources.iter().filter(|record| record.bytes > 0);
        with_content.filter_map(|record| self.inner.keys.ids_destroyed_at(record.tree.ids.as_deref()?)).max()
    }

    /// # Errors
    /// `NoRecoveryPoint` where nobody can restore a snapshot any more, see [`Repository::destroyed_at`].
    pub fn require_content(&self, manifest: &Manifest) -> Result<()> {
        self.destroyed_at(manifest).map_or(Ok(()), |at| Err(keys::destroyed(manifest.plan.as_str(), at)))
    }

    /// The key of a manifest's object.
    #[must_use]
    pub fn manifest_key(&self, manifest: &Manifest) -> String {
        self.snapshot_key(&manifest.plan, manifest.id)
    }

    /// The key of the object that a snapshot's manifest has, or had.
    #[must_use]
    pub fn snapshot_key(&self, plan: &Name, id: SnapshotId) -> String {
        format!("{}{id}", self.manifest_prefix(Some(plan)))
    }

    /// What to say to who asks for a snapshot that was removed; `None`: it was not. A ledger that cannot be read says nothing: what is there may be restored.
    #[must_use]
    pub fn removed(&self, id: SnapshotId) -> Option<Error> {
        match self.ledger() {
            Ok(ledger) => ledger.is_removed(id).then(|| self.removed_error(&ledger, id)),
            Err(error) => {
                tracing::warn!(?error, "the retention ledger cannot be read; what was removed is not known");
                None
            }
        }
    }

    /// What to say to who asks for a snapshot that the ledger says was removed.
    #[must_use]
    pub fn removed_error(&self, ledger: &Ledger, id: SnapshotId) -> Error {
        match self.removal(ledger, id) {
            Ok(Some(removed)) => removed.error(),
            Ok(None) => Error::new(Kind::NoRecoveryPoint, format!("snapshot {id} was removed")).hint(LIST_HINT),
            Err(error) => {
                let message = format!("snapshot {id} was removed; when and why cannot be read");
                Error::new(Kind::NoRecoveryPoint, message).because(error).hint(LIST_HINT)
            }
        }
    }

    /// All manifests below a prefix whose keys are `wanted`; what this machine read before is not fetched again. A void marker is `None`. What was removed is not
    /// among them. A damaged ledger comes as an error under its own key.
    fn listed_manifests(&self, prefix: &str, wanted: impl Fn(&str) -> bool) -> Result<Vec<OpenedManifest>> {
        let listed = self.inner.block_on(self.inner.store.list(prefix))?;
        let opened = || kept::open_all(&self.inner, prefix, &listed, wanted, |key, bytes| self.decode_manifest(key, bytes));
        let (opened, ledger) = beside(|| self.ledger(), opened);
        // One that went away meanwhile was removed meanwhile.
        let is_gone = |(_, opened): &OpenedManifest| opened.as_ref().is_err_and(|error| error.kind() == Kind::NotFound);
        let ledger = if opened.iter().any(is_gone) { self.ledger() } else { ledger };
        Self::unless_removed(opened, ledger)
    }

    /// The same, each as it is in the store now.
    pub(super) fn open_manifests(&self, prefix: &str) -> Result<Vec<OpenedManifest>> {
        let inner = &self.inner;
        let listed = inner.block_on(inner.store.list(prefix))?;
        let opened = inner.get_all(listed.into_iter().map(|object| object.key)).into_iter().map(|(key, bytes)| {
            let opened = bytes.and_then(|bytes| self.decode_manifest(&key, &bytes));
            (key, opened)
        });
        Self::unless_removed(opened.collect(), self.ledger())
    }

    /// Leaves out what the ledger says was removed. It was read after the listing, and after an object was found to be gone: what was removed since
    /// is known.
    fn unless_removed(opened: Vec<OpenedManifest>, ledger: Result<Ledger>) -> Result<Vec<OpenedManifest>> {
        let (ledger, unread) = match ledger {
            Ok(ledger) => (ledger, None),
            Err(error) if error.kind() == Kind::Damaged => (Ledger::default(), Some(("retention/".to_owned(), Err(error)))),
            Err(error) => return Err(error),
        };
        let is_there = |key: &str| id_of(key).is_none_or(|id| !ledger.is_removed(id));
        Ok(opened.into_iter().filter(|(key, _)| is_there(key)).chain(unread).collect())
    }

    pub(super) fn open_manifest(&self, key: &str) -> Result<Option<(Manifest, String)>> {
        let bytes = self.inner.block_on(self.inner.store.get(key))?;
        self.decode_manifest(key, &bytes)
    }

    /// The manifest and the hash of its sealed bytes; `None` for a void marker.
    pub(super) fn decode_manifest(&self, key: &str, bytes: &[u8]) -> Result<Option<(Manifest, String)>> {
        let inner = &self.inner;
        if seal::claimed_kind(bytes) == Some(ObjectKind::Void) {
            seal::open(&inner.keys, inner.id, ObjectKind::Void, key, bytes)?;
            return Ok(None);
        }
        let content = seal::open(&inner.keys, inner.id, ObjectKind::Manifest, key, bytes)?;
        let damaged = |what: &str| Error::new(Kind::Damaged, format!("object {key}: {what}"));
        let mut manifest: Manifest = serde_json::from_slice(&content).map_err(|e| damaged("cannot be decoded").because(e))?;
        self.disbelieve_unsigned(&mut manifest);
        let expected = format!("snapshots/{}/{}", inner.keys.chain_name(manifest.plan.as_str()), manifest.id);
        if expected != key {
            return Err(damaged("holds another snapshot than its name says"));
        }
        Ok(Some((manifest, blake3::hash(bytes).to_hex().to_string())))
    }

    /// Every writer can say that its snapshot stands in the place of another one, so that damage there counts for less. Only a reader proves it.
    fn disbelieve_unsigned(&self, manifest: &mut Manifest) {
        let Some((claim, signature)) =
            manifest.copied_from.as_ref().and_then(|from| Some((from.replaces?, from.replaces_signature.clone())))
        else {
            return;
        };
        let text = manifest.replacement_text(self.inner.id, claim);
        let signature = signature.and_then(|signature| hex::decode(signature).ok());
        let signed = signature.is_some_and(|signature| self.inner.keys.is_signed(text.as_bytes(), &signature) == Some(true));
        if let Some(from) = manifest.copied_from.as_mut().filter(|_| !signed) {
            from.unproven = from.replaces.take();
        }
    }

    /// The newest manifests of a chain that no other names as parent, and the newest of all.
    pub(super) fn heads(&self, folder: &str, warnings: &mut Vec<String>) -> Result<(Vec<Parent>, Option<Manifest>)> {
        let listed = self.inner.block_on(self.inner.store.list(folder))?;
        let ledger = match self.ledger() {
            Ok(ledger) => ledger,
            Err(e) if e.kind() == Kind::Damaged => {
                warnings.push(format!("the retention ledger cannot be read: {e}. Run `lifeboat verify`"));
                Ledger::default()
            }
            Err(e) => return Err(e),
        };
        let mut newest = Vec::new();
        let mut unreadable = Vec::new();
        let there = listed.iter().rev().filter(|object| id_of(&object.key).is_none_or(|id| !ledger.is_removed(id)));
        for object in there.take(HEADS_WINDOW * 8) {
            if newest.len() == HEADS_WINDOW {
                break;
            }
            match self.open_manifest(&object.key) {
                Ok(Some(manifest)) => newest.push(manifest),
                Ok(None) => {}
                // Removed since the listing.
                Err(e) if e.kind() == Kind::NotFound => {}
                // `verify` reports it; the next backup must still be possible, and names it, so that it cannot vanish unnoticed.
                Err(e) if e.kind() == Kind::Damaged => {
                    warnings.push(format!("a damaged manifest was passed over: {e}. Run `lifeboat verify`"));
                    unreadable.extend(object.key[folder.len()..].parse::<SnapshotId>().ok());
                }
                Err(e) => return Err(e),
            }
        }
        let named: std::collections::HashSet<SnapshotId> = newest.iter().flat_map(|(m, _)| m.parents.iter().map(|p| p.id)).collect();
        let heads = newest.iter().map(|(m, hash)| Parent { id: m.id, hash: hash.clone() });
        let lost = unreadable.into_iter().map(|id| Parent { id, hash: String::new() });
        let parents = heads.chain(lost).filter(|parent| !named.contains(&parent.id)).collect();
        Ok((parents, newest.into_iter().next().map(|(m, _)| m)))
    }
}

/// Of these snapshots, each that was brought back, with the damaged one whose place it takes.
#[must_use]
pub fn replacements<'a>(manifests: impl IntoIterator<Item = &'a Manifest>) -> BTreeMap<SnapshotId, SnapshotId> {
    manifests.into_iter().filter_map(|manifest| Some((manifest.id, manifest.replaces()?))).collect()
}

/// The snapshot that a manifest's key names.
pub(super) fn id_of(key: &str) -> Option<SnapshotId> {
    key.rsplit('/').next().and_then(|name| name.parse().ok())
}

impl RemovedSnapshot {
    /// What to say to who asks for it.
    #[must_use]
    pub fn error(&self) -> Error {
        let message = format!(
            "snapshot {} of plan {} was removed on {} ({})",
            self.id,
            self.plan,
            self.removed_at.format("%Y-%m-%d %H:%M UTC"),
            self.reason
        );
        Error::new(Kind::NoRecoveryPoint, message).hint(LIST_HINT)
    }
}

const LIST_HINT: &str = "`lifeboat snapshots` lists what there is";

/// The machine's name, for manifests and messages.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
