//! Marking: what the manifests of all snapshots lead to.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Event, Progress};
use crate::id::SnapshotId;
use crate::repo::collect::marks::Marks;
use crate::repo::format::PackId;
use crate::repo::nodes::NodeReader;
use crate::repo::packs::PackNo;
use crate::repo::snapshot::{Manifest, id_of};
use crate::repo::tree::{Content, NodeRef, Place, Record, decode_list};
use crate::repo::{Inner, Repository};

/// What could not be read below something, by the pack that should hold it (`None`: it stands in the manifest itself): why, of the first of each.
type Unread = BTreeMap<Option<PackId>, String>;

/// Why marking cannot say what is garbage, or the error that ended it.
pub enum Unmarked {
    /// Something that may lead to anything cannot be read; sentences.
    Blocked(Vec<String>),
    /// A snapshot went away while it was followed: mark anew.
    Again,
    Failed(Error),
}

/// How often marking begins anew.
const ATTEMPTS: usize = 8;

impl From<Error> for Unmarked {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Marks as manifests are read. What is marked stays marked: what has died since only lives on until the next collection.
pub struct Marker<'a> {
    repository: &'a Repository,
    nodes: NodeReader,
    pub marks: Marks,
    /// Keys of the manifests and void markers that were looked at.
    seen: HashSet<String>,
    /// Snapshots that count as removed.
    pub without: BTreeSet<SnapshotId>,
    /// Damaged snapshots in whose place another one stands: what cannot be read of them leads to nothing that anybody could miss.
    replaced: HashSet<SnapshotId>,
    /// Nodes that are marked and could not be followed to their end.
    unread: HashMap<Place<PackNo>, Unread>,
    /// Host and key of every manifest seen.
    pub commits: Vec<(String, String)>,
}

impl<'a> Marker<'a> {
    /// Marks from the beginning, without these snapshots.
    pub fn all(
        repository: &'a Repository,
        without: &BTreeSet<SnapshotId>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Self, Unmarked> {
        for _ in 0..ATTEMPTS {
            let mut marker = Self::new(repository)?;
            marker.without.clone_from(without);
            match marker.mark(progress, cancel) {
                Err(Unmarked::Again) => {}
                marked => return marked.map(|()| marker),
            }
        }
        Err(Error::new(Kind::Busy, "mark what snapshots need: they are removed while they are read").hint("try again").into())
    }

    fn new(repository: &'a Repository) -> Result<Self> {
        let nodes = NodeReader::new(&repository.inner)?;
        Ok(Self {
            repository,
            nodes,
            marks: Marks::default(),
            seen: HashSet::new(),
            without: BTreeSet::new(),
            replaced: HashSet::new(),
            unread: HashMap::new(),
            commits: Vec::new(),
        })
    }

    /// Marks what the manifests lead to that were not looked at before.
    pub fn mark(&mut self, progress: &dyn Progress, cancel: &Cancel) -> Result<(), Unmarked> {
        let inner = &self.repository.inner;
        let mut lost: Vec<(String, Error)> = Vec::new();
        let mut manifests: Vec<(String, Manifest)> = Vec::new();
        if self.seen.is_empty() {
            for (key, opened) in self.repository.open_manifests("snapshots/")? {
                match opened {
                    Ok(manifest) => manifests.extend(manifest.map(|(manifest, _)| (key.clone(), manifest))),
                    Err(_) if id_of(&key).is_some_and(|id| self.without.contains(&id)) => {}
                    Err(error) => lost.push((key.clone(), error)),
                }
                self.seen.insert(key);
            }
        } else {
            let listed = inner.block_on(inner.store.list("snapshots/"))?;
            let ledger = self.repository.ledger()?;
            for object in listed.iter().filter(|object| !self.seen.contains(&object.key)) {
                if id_of(&object.key).is_some_and(|id| ledger.is_removed(id)) {
                    continue;
                }
                match self.repository.open_manifest(&object.key) {
                    Ok(manifest) => manifests.extend(manifest.map(|(manifest, _)| (object.key.clone(), manifest))),
                    Err(error) => lost.push((object.key.clone(), error)),
                }
            }
            self.seen.extend(listed.into_iter().map(|object| object.key));
            if !lost.is_empty() {
                // Somebody else may have removed and deleted it since.
                let ledger = self.repository.ledger()?;
                lost.retain(|(key, _)| id_of(key).is_none_or(|id| !ledger.is_removed(id)));
            }
        }
        manifests.retain(|(_, manifest)| !self.without.contains(&manifest.id));
        self.replaced.extend(manifests.iter().filter_map(|(_, manifest)| manifest.replaces()));
        let mut blocked = Vec::new();
        for (key, error) in lost {
            let why = unreadable(&key, error)?;
            // All of its content is marked by way of the other one.
            if id_of(&key).is_none_or(|id| !self.replaced.contains(&id)) {
                blocked.push(why);
            }
        }
        for (key, error) in &inner.moved().damaged {
            blocked.push(format!("{key} cannot be read: {error}"));
        }
        if blocked.is_empty() {
            blocked.extend(self.stolen(&manifests)?);
        }
        if !blocked.is_empty() {
            return Err(Unmarked::Blocked(blocked));
        }
        progress.event(Event::Total { bytes: 0, items: manifests.len() as u64 });
        for (key, manifest) in manifests {
            for source in &manifest.sources {
                let mut unread = Unread::new();
                let followed = source.tree.bytes().and_then(|root| self.list(&root, source.tree.depth, &mut unread, cancel));
                followed.or_else(|error| note(&mut unread, None, error))?;
                let Some(why) = unread.values().next() else { continue };
                if self.repository.removed(manifest.id).is_some() {
                    // Removed meanwhile, and collected by somebody else.
                    return Err(Unmarked::Again);
                }
                // Nor does a loss that was accepted, and that alone (what is left of the snapshot is marked), nor what nobody can restore any more.
                let ledger = self.repository.ledger()?;
                let is_accepted = |pack: &Option<PackId>| pack.is_some_and(|pack| ledger.is_accepted(manifest.id, &pack.key()));
                let is_destroyed = self.repository.destroyed_at(&manifest).is_some();
                if !self.replaced.contains(&manifest.id) && !is_destroyed && !unread.keys().all(is_accepted) {
                    blocked.push(format!("the tree of {} of snapshot {} cannot be read: {why}", source.name, manifest.id));
                }
            }
            self.commits.push((manifest.host.clone(), key));
            progress.event(Event::Advance { bytes: 0, items: 1 });
        }
        if blocked.is_empty() { Ok(()) } else { Err(Unmarked::Blocked(blocked)) }
    }

    /// Snapshots that are gone although nobody removed them, as far as the ones that came after them say so, or their manifests stand there under names
    /// that are none: what they lead to is as unknown as that of a manifest that cannot be read.
    fn stolen(&self, manifests: &[(String, Manifest)]) -> Result<Vec<String>> {
        let inner = &self.repository.inner;
        let there: HashSet<SnapshotId> = self.seen.iter().filter_map(|key| id_of(key)).collect();
        let parents = manifests.iter().flat_map(|(_, manifest)| manifest.parents.iter().map(move |parent| (parent.id, manifest)));
        let mut gone: BTreeMap<SnapshotId, String> = parents
            .filter(|(id, _)| !there.contains(id))
            .map(|(id, after)| {
                let key = self.repository.snapshot_key(&after.plan, id);
                (id, format!("{key} is gone although nobody removed it: snapshot {} of plan {} came after it", after.id, after.plan))
            })
            .collect();
        for key in inner.store.strange().iter().filter(|key| key.starts_with("snapshots/")) {
            for id in ids_within(key).filter(|id| !there.contains(id)) {
                gone.insert(
                    id,
                    format!("{key} may be the manifest of snapshot {id}, which is not there: give it back its name, or move it away"),
                );
            }
        }
        // As it was read after the listing; and anew for what was removed since.
        if let Some(ledger) = self.repository.known_ledger() {
            gone.retain(|id, _| !ledger.is_removed(*id));
        }
        if gone.is_empty() {
            return Ok(Vec::new());
        }
        let ledger = self.repository.ledger()?;
        gone.retain(|id, _| !ledger.is_removed(*id));
        let hint = "bring it back (an earlier version of the object, another copy of the storage), or run `lifeboat repair`, which also says how a loss is accepted";
        Ok(gone.into_values().map(|why| format!("{why}. Nothing is deleted until then: {hint}")).collect())
    }

    /// Marks a chunk; `true` when it was not marked before. Numbers that would take much memory are believed only of a pack that has them.
    ///
    /// # Errors
    /// `Damaged` when it has not.
    fn set(&mut self, mut place: Place<PackNo>) -> Result<bool> {
        let inner = &self.repository.inner;
        while !self.marks.is_cheap(place) {
            let pack = inner.packs.get(place.pack);
            match inner.directory(pack) {
                Ok(directory) if directory.has(place.frame, place.slot) => break,
                Ok(_) => {
                    return Err(Error::new(Kind::Damaged, format!("pack {}: has fewer chunks than a reference to it says", pack.id.key())));
                }
                // It may have been put together anew since.
                Err(error) if error.kind() == Kind::Damaged => place = inner.moved_since(place)?.ok_or(error)?,
                Err(error) => return Err(error),
            }
        }
        Ok(self.marks.set(place))
    }

    /// Follows a list of nodes. A node that is marked already was followed already. Why something could not be read goes to `unread`, and all else is
    /// followed: a node that others share is marked with everything below it, or known as one that is not.
    fn list(&mut self, bytes: &[u8], depth: u32, unread: &mut Unread, cancel: &Cancel) -> Result<()> {
        let inner: &Inner = &self.repository.inner;
        let mut refs = decode_list(bytes, |pack| inner.packs.intern(pack))
            .map_err(|e| Error::new(Kind::Damaged, "a list of nodes cannot be decoded").because(e))?;
        inner.moved().resolve_refs(inner, &mut refs);
        for node in refs {
            cancel.check()?;
            let mut below = Unread::new();
            let followed = self.node(&node, depth, &mut below, cancel);
            followed.or_else(|error| note(&mut below, Some(inner.packs.get(node.place.pack).id), error))?;
            if !below.is_empty() {
                self.unread.insert(node.place, below.clone());
                unread.extend(below);
            }
        }
        Ok(())
    }

    fn node(&mut self, node: &NodeRef<PackNo>, depth: u32, unread: &mut Unread, cancel: &Cancel) -> Result<()> {
        if !self.set(node.place)? {
            unread.extend(self.unread.get(&node.place).cloned().unwrap_or_default());
            return Ok(());
        }
        if depth > 0 {
            let bytes = self.nodes.read(node)?;
            return self.list(&bytes, depth - 1, unread, cancel);
        }
        for record in self.nodes.records(node)? {
            if let Record::Stretch(chunks) | Record::Entry { content: Content::Inline(chunks), .. } = record {
                for place in chunks.iter().flat_map(|chunk| chunk.stored.places()) {
                    let set = self.set(place).map(drop);
                    set.or_else(|error| note(unread, Some(self.repository.inner.packs.get(place.pack).id), error))?;
                }
            }
        }
        Ok(())
    }
}

/// Ids of snapshots that the last part of a strange key holds, in whatever case.
fn ids_within(key: &str) -> impl Iterator<Item = SnapshotId> {
    const ID_CHARACTERS: usize = 26;
    let name = key.rsplit('/').next().unwrap_or_default();
    let words = name.split(|letter: char| !letter.is_ascii_alphanumeric());
    words.filter_map(|word| word.get(..ID_CHARACTERS)?.to_ascii_lowercase().parse().ok())
}

/// What cannot be read because it is damaged stands in the way; a store that is away ends everything.
fn unreadable(what: &str, error: Error) -> Result<String> {
    told(error).map(|why| format!("{what} cannot be read: {why}"))
}

/// Notes what cannot be read because it is damaged; any other error ends everything.
fn note(unread: &mut Unread, pack: Option<PackId>, error: Error) -> Result<()> {
    let why = told(error)?;
    unread.entry(pack).or_insert(why);
    Ok(())
}

/// Why something that is damaged cannot be read; any other error ends everything.
fn told(error: Error) -> Result<String> {
    match error.kind() {
        Kind::Damaged | Kind::NotFound => {
            let causes: Vec<String> = std::iter::once(error.to_string()).chain(error.causes()).collect();
            Ok(causes.join(": "))
        }
        _ => Err(error),
    }
}
