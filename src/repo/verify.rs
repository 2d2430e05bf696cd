//! Verification: is every committed snapshot whole? Findings are never a warning; the caller exits with them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Event, Progress};
use crate::id::{Name, SnapshotId};
use crate::repo::Repository;
use crate::repo::format::{ChunkId, ObjectKind, PackId, PackKind};
use crate::repo::keys::{OWN_FIRST, Role, key_of};
use crate::repo::ledger::{Ledger, RemovedSnapshot};
use crate::repo::log::{is_piece_key, share_of_piece};
use crate::repo::nodes::NodeReader;
use crate::repo::pack::ChunkEntry;
use crate::repo::packs::PackNo;
use crate::repo::read::{DecodeWorker, StoredContent};
use crate::repo::session::{condemn, read_tombstones};
use crate::repo::snapshot::{Manifest, Parent};
use crate::repo::tree::{Content, NodeRef, PackRef, Place, Record, Stored};

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyDepth {
    /// Every object's presence, seals, chain, index, trees and directories; no data of packs.
    Structure,
    /// Also every byte of this share of packs and of pieces of logs (1–100 percent); `run` is a counter: any ⌈100 / percent⌉ consecutive values cover
    /// all of them.
    Data { percent: u8, run: u64 },
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Key of the object.
    pub object: String,
    /// `missing`, `damaged`, `size`, `chain-broken`, `not-indexed`.
    pub kind: String,
    pub message: String,
    /// Snapshots that it harms.
    pub snapshots: Vec<SnapshotId>,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    pub findings: Vec<Finding>,
    pub objects_checked: u64,
    /// Stored bytes read and checked.
    pub bytes_checked: u64,
    /// Snapshots all of whose objects were looked at without a finding (at the depth asked for).
    pub snapshots_sound: Vec<SnapshotId>,
    /// What could not be checked with this key's role, in words.
    pub skipped: Vec<String>,
    /// Of these, what nobody can check any more, because the key was destroyed that it is sealed to.
    pub destroyed: Vec<String>,
    /// Packs that are there, and how many of them this run was to read; 0 at the depth of structure.
    pub packs: u64,
    pub packs_due: u64,
    /// Snapshots whose manifests are there and open, oldest first.
    pub snapshots: Vec<(Name, SnapshotId)>,
    /// Snapshots that say that they stand in the place of another one, which no reader has signed; and of which.
    pub unproven: Vec<(SnapshotId, SnapshotId)>,
    /// The earliest moment at which something sealed that is there, or that the ledger knows, says that it was made: the repository is as old as that,
    /// whatever its `format` object says, which nothing proves.
    pub earliest: Option<DateTime<Utc>>,
}

/// Gathers findings, one for each object and kind.
#[derive(Default)]
pub(super) struct Findings(HashMap<(String, String), (String, BTreeSet<SnapshotId>)>);

impl Findings {
    pub(super) fn add(&mut self, object: &str, kind: &str, message: impl Into<String>, snapshots: impl IntoIterator<Item = SnapshotId>) {
        let (_, harmed) = self.0.entry((object.to_owned(), kind.to_owned())).or_insert_with(|| (message.into(), BTreeSet::new()));
        harmed.extend(snapshots);
    }

    pub(super) fn add_error(&mut self, object: &str, error: &Error, snapshots: impl IntoIterator<Item = SnapshotId>) {
        let mut message = error.to_string();
        for cause in error.causes() {
            message.push_str(": ");
            message.push_str(&cause);
        }
        self.add(object, if error.kind() == Kind::NotFound { "missing" } else { "damaged" }, message, snapshots);
    }

    fn harmed(&self) -> HashSet<SnapshotId> {
        self.0.values().flat_map(|(_, snapshots)| snapshots.iter().copied()).collect()
    }

    /// A pack of another size cannot match its name either: that is one thing, told by its sizes.
    fn merge_sizes(&mut self) {
        let sized: Vec<String> = self.0.keys().filter(|(_, kind)| kind == "size").map(|(object, _)| object.clone()).collect();
        for object in sized {
            let damaged = self.0.remove(&(object.clone(), "damaged".to_owned()));
            if let (Some((_, harmed)), Some((_, snapshots))) = (damaged, self.0.get_mut(&(object, "size".to_owned()))) {
                snapshots.extend(harmed);
            }
        }
    }

    pub(super) fn into_sorted(self) -> Vec<Finding> {
        let mut findings: Vec<Finding> = self
            .0
            .into_iter()
            .map(|((object, kind), (message, snapshots))| Finding { object, kind, message, snapshots: snapshots.into_iter().collect() })
            .collect();
        findings.sort_by(|a, b| (&a.object, &a.kind).cmp(&(&b.object, &b.kind)));
        findings
    }
}

/// Numbers of plans' own keys that data is sealed to, each with packs that it is in: of logs, none.
#[derive(Default)]
pub(super) struct SealedTo(BTreeMap<u16, BTreeSet<PackId>>);

impl SealedTo {
    /// Takes note of a number, if it is that of a plan's own key.
    pub(super) fn note(&mut self, number: u16, pack: Option<PackId>) {
        if number >= OWN_FIRST {
            self.0.entry(number).or_default().extend(pack);
        }
    }
}

/// What the trees refer to in one pack.
#[derive(Default)]
struct PackUse {
    reference: Option<PackRef>,
    snapshots: HashSet<SnapshotId>,
}

impl Repository {
    /// Checks the repository: structure, or also stored bytes. Findings are in the result, not an error.
    ///
    /// # Errors
    /// Only when the store cannot be asked, or interrupted.
    pub fn verify(&self, depth: VerifyDepth, progress: &dyn Progress, cancel: &Cancel) -> Result<Verification> {
        let inner = &self.inner;
        let mut out = Verification::default();
        let mut findings = Findings::default();
        if let VerifyDepth::Data { percent, .. } = depth
            && !(1..=100).contains(&percent)
        {
            return Err(Error::new(Kind::Usage, format!("a share of {percent} percent cannot be verified")).hint("give 1 to 100"));
        }

        progress.event(Event::Phase { name: "structure", detail: "keys, manifests, reports, index".into() });
        let mut made: Vec<DateTime<Utc>> = Vec::new();
        for (key, report) in self.open_reports()? {
            out.objects_checked += 1;
            match report {
                Ok(report) => made.push(report.time),
                Err(error) => findings.add_error(&key, &tolerable(error)?, []),
            }
        }
        let mut events = Vec::new();
        for (key, event) in self.open_key_events()? {
            out.objects_checked += 1;
            match event {
                Ok(event) => {
                    made.push(event.time);
                    events.push(event);
                }
                Err(error) => findings.add_error(&key, &tolerable(error)?, []),
            }
        }
        let keys = self.verify_keys(&events, &mut out, &mut findings)?;
        for (folder, kind) in
            [("gc/tombstones/", ObjectKind::Tombstones), ("sessions/", ObjectKind::Session), ("gc/waits/", ObjectKind::Waits)]
        {
            for object in inner.block_on(inner.store.list(folder))? {
                out.objects_checked += 1;
                match inner.open_object(kind, &object.key) {
                    Ok(_) => {}
                    // A session that ended meanwhile.
                    Err(error) if error.kind() == Kind::NotFound => {}
                    Err(error) => findings.add_error(&object.key, &tolerable(error)?, []),
                }
            }
        }
        inner.load_moved()?;
        let moved_before: HashSet<String> = inner.moved().records.keys().cloned().collect();
        out.objects_checked += moved_before.len() as u64;
        for (key, error) in &inner.moved().damaged {
            findings.add(key, "damaged", error.clone(), []);
        }
        let manifests = self.verify_manifests(&mut out, &mut findings)?;

        // What is there, and what the index says is there.
        // Manifests were read before the index, and the index is before the packs: a backup that runs meanwhile writes them the other way round.
        let mut indexed: HashMap<PackId, u64> = HashMap::new();
        let mut replaced = false;
        for object in inner.block_on(inner.store.list("index/"))? {
            cancel.check()?;
            out.objects_checked += 1;
            match self.read_index_object(&object.key["index/".len()..]) {
                Ok(packs) => {
                    for pack in packs {
                        indexed.insert(pack.id, pack.len);
                    }
                }
                // A collector has put another one in its place, which may have come after this listing.
                Err(error) if error.kind() == Kind::NotFound => replaced = true,
                Err(error) => findings.add_error(&object.key, &tolerable(error)?, []),
            }
        }
        if replaced {
            for object in inner.block_on(inner.store.list("index/"))? {
                if let Ok(packs) = self.read_index_object(&object.key["index/".len()..]) {
                    indexed.extend(packs.into_iter().map(|pack| (pack.id, pack.len)));
                }
            }
        }
        let mut present: HashMap<PackId, u64> = HashMap::new();
        for object in inner.block_on(inner.store.list("packs/"))? {
            present.extend(PackId::from_key(&object.key).map(|id| (id, object.size)));
        }
        // A collector deletes what it has given up; one that was at work just now, or another index object, may still list it.
        let given_up = read_tombstones(inner).or_else(told)?;
        for (id, len) in &indexed {
            match present.get(id) {
                None if given_up.contains(id) => {}
                None => findings.add(&id.key(), "missing", "the index lists it and it is not there", []),
                Some(stored) if stored != len => {
                    findings.add(&id.key(), "size", format!("the index says {len} bytes, the store says {stored}"), []);
                }
                Some(_) => {}
            }
        }

        progress.event(Event::Phase { name: "trees", detail: format!("{} snapshots", manifests.len()) });
        progress.event(Event::Total { bytes: 0, items: manifests.len() as u64 });
        let mut sealed_to = SealedTo::default();
        let used = self.verify_trees(&manifests, &present, &mut sealed_to, &mut findings, progress, cancel)?;
        // These are reused by nobody, so nobody looks for them in the index.
        let tombstones = read_tombstones(inner).unwrap_or_default();
        for (id, pack) in &used {
            let key = id.key();
            match (present.get(id), pack.reference) {
                (None, _) => findings.add(&key, "missing", "snapshots need it and it is not there", pack.snapshots.iter().copied()),
                (Some(len), Some(reference)) if *len != reference.len => {
                    findings.add(
                        &key,
                        "size",
                        format!("snapshots say {} bytes, the store says {len}", reference.len),
                        pack.snapshots.iter().copied(),
                    );
                }
                _ => {}
            }
            if present.contains_key(id) && !indexed.contains_key(id) && !tombstones.contains(id) {
                findings.add(&key, "not-indexed", "no index object lists it; the next backup lists it again", []);
            }
        }
        out.objects_checked += used.len() as u64;

        if let VerifyDepth::Data { percent, run } = depth {
            self.verify_data(percent, run, &present, &used, keys.newest, &mut sealed_to, &mut out, &mut findings, progress, cancel)?;
        }

        self.verify_logs(depth, &mut sealed_to, &mut out, &mut findings, progress, cancel)?;
        for (number, packs) in sealed_to.0 {
            let harmed = packs.iter().filter_map(|pack| used.get(pack)).flat_map(|pack| pack.snapshots.iter().copied());
            match keys.trouble(number) {
                Some((key, kind, message)) => findings.add(&key, kind, message, harmed),
                // It came since the repository was opened here.
                None if inner.keys.lacks(number) && matches!(depth, VerifyDepth::Data { .. }) => out.skipped.push(format!(
                    "data that is sealed to the key {} was not opened: that key was made while this went on. Verify again",
                    key_of(number)
                )),
                None => {}
            }
        }

        findings.merge_sizes();
        let manifests = self.without_removed(manifests, &mut findings)?;
        self.without_moved(&moved_before, &mut findings)?;
        // Snapshots share packs: what is wrong with one harms all that use it.
        for ((object, _), (_, snapshots)) in &mut findings.0 {
            if let Some(pack) = PackId::from_key(object).and_then(|id| used.get(&id)).filter(|_| !snapshots.is_empty()) {
                snapshots.extend(pack.snapshots.iter().copied());
            }
        }
        out.unproven = manifests.iter().filter_map(|m| Some((m.id, m.copied_from.as_ref()?.unproven?))).collect();
        out.snapshots = manifests.iter().map(|m| (m.plan.clone(), m.id)).collect();
        made.extend(manifests.iter().filter_map(|m| m.id.generated()));
        out.earliest = made.into_iter().min();
        let harmed = findings.harmed();
        out.snapshots_sound = manifests.iter().map(|m| m.id).filter(|id| !harmed.contains(id)).collect();
        out.findings = findings.into_sorted();
        Ok(out)
    }

    /// Of snapshots that were committed by what is written elsewhere (the journal), those that are gone although nobody removed them. `verification`:
    /// of this repository, and begun after that was read.
    ///
    /// What is older than the first that is known here of a plan, or than the repository itself, may have been committed to another one before the plan was
    /// given this one, and is not looked for. But where the first one came after one that is gone, there was more, and all of it is looked for.
    ///
    /// # Errors
    /// When the store cannot be asked. A damaged ledger is told by `verification`, and explains nothing.
    pub fn vanished(&self, committed: &[(Name, SnapshotId)], verification: &Verification) -> Result<Vec<Finding>> {
        let inner = &self.inner;
        if committed.is_empty() {
            return Ok(Vec::new());
        }
        let ledger = self.ledger().or_else(told)?;
        // Nothing proves what `format` says: what is sealed was made since.
        let stated = crate::repo::read_format(&inner.store, &inner.runtime)?.created;
        let known = ledger.removed_ids().filter_map(SnapshotId::generated).chain(verification.earliest);
        let created = known.fold(stated, DateTime::min);
        let key = |plan: &Name, id: SnapshotId| self.snapshot_key(plan, id);
        let found: HashSet<&str> = verification.findings.iter().map(|finding| finding.object.as_str()).collect();
        let mut first: HashMap<Name, SnapshotId> = HashMap::new();
        let mut note = |plan: &Name, id: SnapshotId| match first.get_mut(plan) {
            Some(first) => *first = id.min(*first),
            None => drop(first.insert(plan.clone(), id)),
        };
        verification.snapshots.iter().for_each(|(plan, id)| note(plan, *id));
        self.removals(&ledger, |removed| note(&removed.plan, removed.id)).or_else(told)?;
        let known: HashSet<SnapshotId> = verification.snapshots.iter().map(|(_, id)| *id).collect();
        // Of a plan whose first one came after another one that is gone nobody knows what else is.
        let broken = verification.findings.iter().filter(|finding| finding.kind == "chain-broken");
        let torn: HashSet<&str> = broken
            .filter(|finding| finding.snapshots.iter().all(|id| !known.contains(id) && !ledger.is_removed(*id)))
            .filter_map(|finding| finding.object.rsplit_once('/'))
            .filter(|(folder, id)| {
                let of_plan = first.iter().find(|(plan, _)| self.manifest_prefix(Some(plan)).strip_suffix('/') == Some(folder));
                id.parse::<SnapshotId>().is_ok_and(|id| of_plan.is_none_or(|(_, first)| id < *first))
            })
            .map(|(folder, _)| folder)
            .collect();
        let is_torn = |plan: &Name| self.manifest_prefix(Some(plan)).strip_suffix('/').is_some_and(|folder| torn.contains(folder));
        let mut gone: Vec<&(Name, SnapshotId)> = committed
            .iter()
            .filter(|(plan, id)| {
                let is_later = first.get(plan).is_none_or(|first| id > first) || is_torn(plan);
                let belongs = id.generated().is_none_or(|at| at >= created) && is_later;
                // One that cannot be read is a finding of its own.
                belongs && !known.contains(id) && !ledger.is_removed(*id) && !found.contains(key(plan, *id).as_str())
            })
            .collect();
        gone.sort_unstable_by_key(|(_, id)| *id);
        gone.dedup_by_key(|(_, id)| *id);
        let told = |(plan, id): &(Name, SnapshotId)| Finding {
            object: key(plan, *id),
            kind: "missing".into(),
            message: format!("the journal says that a run of plan {plan} committed it, and it is gone although nobody removed it"),
            snapshots: vec![*id],
        };
        Ok(gone.into_iter().map(told).collect())
    }

    /// Forgets packs that were put together anew while this went on, and packs that came from that. `before`: the records that were known when this
    /// began. What a snapshot still needs of a pack in one of those was not kept by it, and is missing.
    fn without_moved(&self, before: &HashSet<String>, findings: &mut Findings) -> Result<()> {
        let inner = &self.inner;
        let packs: Vec<PackId> = findings.0.keys().filter_map(|(object, _)| PackId::from_key(object)).collect();
        if packs.is_empty() {
            return Ok(());
        }
        inner.load_moved()?;
        let moved = inner.moved();
        let fresh: HashSet<PackId> = moved.records.values().flat_map(|record| &record.targets).map(|(pack, _)| pack.id).collect();
        let since = moved.records.iter().filter(|(key, _)| !before.contains(*key));
        let since: HashSet<PackId> = since.flat_map(|(_, record)| &record.sources).map(|source| source.id).collect();
        for pack in packs {
            let there = || Ok::<_, Error>(inner.block_on(inner.store.head(&pack.key()))?.is_some());
            if moved.has(pack) && !there()? {
                findings.0.retain(|(object, _), (_, harmed)| *object != pack.key() || (!harmed.is_empty() && !since.contains(&pack)));
            } else if fresh.contains(&pack) && there()? {
                findings.0.remove(&(pack.key(), "missing".to_owned()));
            }
        }
        Ok(())
    }

    /// Forgets what was found of snapshots that were removed while this went on.
    fn without_removed(&self, mut manifests: Vec<Manifest>, findings: &mut Findings) -> Result<Vec<Manifest>> {
        let ledger = self.ledger().or_else(told)?;
        let removed: HashSet<SnapshotId> = manifests.iter().map(|m| m.id).filter(|id| ledger.is_removed(*id)).collect();
        if removed.is_empty() {
            return Ok(manifests);
        }
        manifests.retain(|manifest| !removed.contains(&manifest.id));
        findings.0.retain(|_, (_, harmed)| {
            let any = !harmed.is_empty();
            harmed.retain(|id| !removed.contains(id));
            !any || !harmed.is_empty()
        });
        Ok(manifests)
    }

    /// Opens every manifest and follows the chains, through what was removed on purpose.
    fn verify_manifests(&self, out: &mut Verification, findings: &mut Findings) -> Result<Vec<Manifest>> {
        let mut opened: HashMap<SnapshotId, (Name, String)> = HashMap::new();
        let mut manifests = Vec::new();
        let mut broken: HashSet<String> = HashSet::new();
        for (key, manifest) in self.open_manifests("snapshots/")? {
            out.objects_checked += 1;
            match manifest {
                Ok(Some((manifest, hash))) => {
                    opened.insert(manifest.id, (manifest.plan.clone(), hash));
                    manifests.push(manifest);
                }
                Ok(None) => {}
                Err(error) => {
                    let id = key.rsplit('/').next().and_then(|name| name.parse::<SnapshotId>().ok());
                    broken.insert(key.clone());
                    findings.add_error(&key, &tolerable(error)?, id);
                }
            }
        }
        manifests.sort_by_key(|m| m.id);
        // A damaged ledger is told by the manifests' reading.
        let ledger = self.ledger().or_else(told)?;
        let (removed, named) = self.verify_removed(&ledger, out, findings)?;
        let of_manifests = manifests.iter().flat_map(|m| m.parents.iter().map(move |parent| (m.id, &m.plan, parent)));
        for (id, plan, parent) in of_manifests.chain(named.iter().map(|(id, plan, parent)| (*id, plan, parent))) {
            let key = format!("snapshots/{}/{}", self.inner.keys.chain_name(plan.as_str()), parent.id);
            let there = opened.get(&parent.id).filter(|(of, _)| of == plan).map(|(_, hash)| hash.clone());
            match there.or_else(|| removed.hash(plan, parent.id)) {
                None if broken.contains(&key) => {}
                None => findings.add(
                    &key,
                    "chain-broken",
                    format!("snapshot {id} of plan {plan} came after it, and it is gone although nobody removed it"),
                    [parent.id],
                ),
                // An empty one was not known: of a damaged manifest, or of one that was removed when nobody could say what it had been.
                Some(hash) if hash != parent.hash && !parent.hash.is_empty() && !hash.is_empty() => {
                    findings.add(&key, "chain-broken", format!("it is not the one that snapshot {id} came after"), [parent.id]);
                }
                Some(_) => {}
            }
        }
        Ok(manifests)
    }

    /// Reads all volumes of the ledger as they are in the store now. Yields what is known of removed snapshots, and parents that these name (with who does,
    /// of which plan) and that are not known to be right by that alone.
    fn verify_removed(&self, ledger: &Ledger, out: &mut Verification, findings: &mut Findings) -> Result<(Removed, Vec<Named>)> {
        let mut removed = Removed::default();
        let mut named: Vec<Named> = Vec::new();
        let mut of_volume: Vec<RemovedSnapshot> = Vec::new();
        for volume in ledger.volumes() {
            out.objects_checked += volume.listed.keys().len() as u64;
            of_volume.clear();
            let is_known = if volume.listed.is_without_records() {
                false
            } else if let Err(error) = self.removals_in(ledger, volume, |snapshot| of_volume.push(snapshot)) {
                findings.add_error(&volume.listed.records_key(), &tolerable(error)?, []);
                false
            } else {
                true
            };
            // That they were removed is known all the same.
            if !is_known {
                removed.add_unknown(volume.ids().iter().copied());
            }
            match crate::repo::removed::check_ids(&self.inner, volume) {
                Ok(()) => {}
                // Put together with others meanwhile.
                Err(error) if error.kind() == Kind::NotFound && !self.ledger().or_else(told)?.lists(&volume.listed.ids_key()) => {}
                Err(error) => findings.add_error(&volume.listed.ids_key(), &tolerable(error)?, []),
            }
            removed.add(&of_volume);
            // Most came after one that was removed with them or before.
            for snapshot in of_volume.drain(..) {
                let unknown =
                    snapshot.parents.into_iter().filter(|parent| removed.hash(&snapshot.plan, parent.id).as_ref() != Some(&parent.hash));
                named.extend(unknown.map(|parent| (snapshot.id, snapshot.plan.clone(), parent)));
            }
        }
        let recent: Vec<RemovedSnapshot> = ledger.recent().cloned().collect();
        removed.add(&recent);
        for snapshot in recent {
            named.extend(snapshot.parents.into_iter().map(|parent| (snapshot.id, snapshot.plan.clone(), parent)));
        }
        Ok((removed, named))
    }

    /// Reads every node of every tree once and checks every reference against the directory of its pack.
    fn verify_trees(
        &self,
        manifests: &[Manifest],
        present: &HashMap<PackId, u64>,
        sealed_to: &mut SealedTo,
        findings: &mut Findings,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<HashMap<PackId, PackUse>> {
        let inner = &self.inner;
        let mut nodes = NodeReader::new(inner)?;
        let mut used: HashMap<PackId, PackUse> = HashMap::new();
        // A node that several snapshots share is read once; what it needs is remembered.
        let mut needs: HashMap<(PackNo, u32, u32), (Vec<PackNo>, u64)> = HashMap::new();
        let mut unreadable: HashMap<(PackNo, u32, u32), (String, String)> = HashMap::new();
        for manifest in manifests {
            for source in &manifest.sources {
                let mut refs = match source.tree.bytes().and_then(|root| nodes.list(&root)) {
                    Ok(refs) => refs,
                    Err(error) => {
                        let key = format!("snapshots/{}/{}", inner.keys.chain_name(manifest.plan.as_str()), manifest.id);
                        findings.add_error(&key, &tolerable(error)?, [manifest.id]);
                        continue;
                    }
                };
                // What one list cannot tell any more, others may.
                for _ in 0..source.tree.depth {
                    let mut below = Vec::new();
                    for node in &refs {
                        cancel.check()?;
                        let pack = inner.packs.get(node.place.pack);
                        note_use(&mut used, pack, manifest.id);
                        match nodes.read(node).and_then(|bytes| nodes.list(&bytes)) {
                            Ok(refs) => below.extend(refs),
                            // A pack that is not there is told once, by the caller.
                            Err(error) if !present.contains_key(&pack.id) => drop(tolerable(error)?),
                            Err(error) => findings.add_error(&pack.id.key(), &tolerable(error)?, [manifest.id]),
                        }
                    }
                    refs = below;
                }
                for node in &refs {
                    cancel.check()?;
                    let at = (node.place.pack, node.place.frame, node.place.slot);
                    let pack = inner.packs.get(node.place.pack);
                    note_use(&mut used, pack, manifest.id);
                    if let Some((object, message)) = unreadable.get(&at) {
                        findings.add(object, "damaged", message.clone(), [manifest.id]);
                        continue;
                    }
                    if let Some((packs, _)) = needs.get(&at) {
                        packs.iter().for_each(|pack| note_use(&mut used, inner.packs.get(*pack), manifest.id));
                        continue;
                    }
                    match self.verify_node(&mut nodes, node, manifest.id, present, sealed_to, findings) {
                        Ok((packs, bytes)) => {
                            packs.iter().for_each(|pack| note_use(&mut used, inner.packs.get(*pack), manifest.id));
                            needs.insert(at, (packs, bytes));
                        }
                        // A pack that is not there is told once, by the caller.
                        Err(error) if !present.contains_key(&pack.id) => {
                            tolerable(error)?;
                        }
                        Err(error) => {
                            let error = tolerable(error)?;
                            findings.add_error(&pack.id.key(), &error, [manifest.id]);
                            unreadable.insert(at, (pack.id.key(), error.to_string()));
                        }
                    }
                }
                // The entries, their order and sizes.
                match self.tree(source) {
                    Ok(tree) => {
                        let mut counts = (0u64, 0u64);
                        let mut failed = false;
                        for entry in tree {
                            match entry {
                                Ok(entry) => {
                                    if let StoredContent::Stretches(stretches) = &entry.content {
                                        let at = |n: &NodeRef<PackNo>| (n.place.pack, n.place.frame, n.place.slot);
                                        let known: Option<u64> = stretches.iter().map(|n| needs.get(&at(n)).map(|(_, bytes)| *bytes)).sum();
                                        if known.is_some_and(|bytes| bytes != entry.size()) {
                                            let key =
                                                format!("snapshots/{}/{}", inner.keys.chain_name(manifest.plan.as_str()), manifest.id);
                                            findings.add(
                                                &key,
                                                "damaged",
                                                format!("{}: its chunks do not add up to its size", entry.entry.display_path()),
                                                [manifest.id],
                                            );
                                        }
                                    }
                                    counts.0 += 1;
                                    counts.1 += entry.size();
                                }
                                Err(error) => {
                                    failed = true;
                                    let key = format!("snapshots/{}/{}", inner.keys.chain_name(manifest.plan.as_str()), manifest.id);
                                    findings.add_error(&key, &tolerable(error)?, [manifest.id]);
                                }
                            }
                        }
                        if !failed && counts != (source.entries, source.bytes) {
                            let key = format!("snapshots/{}/{}", inner.keys.chain_name(manifest.plan.as_str()), manifest.id);
                            let message = format!(
                                "source {} has {} entries and {} bytes, its manifest says {} and {}",
                                source.name, counts.0, counts.1, source.entries, source.bytes
                            );
                            findings.add(&key, "damaged", message, [manifest.id]);
                        }
                    }
                    Err(error) => {
                        let key = format!("snapshots/{}/{}", inner.keys.chain_name(manifest.plan.as_str()), manifest.id);
                        findings.add_error(&key, &tolerable(error)?, [manifest.id]);
                    }
                }
            }
            progress.event(Event::Advance { bytes: 0, items: 1 });
        }
        Ok(used)
    }

    /// Reads a node and checks what it refers to; returns the packs that it needs and the plain bytes of its chunks.
    fn verify_node(
        &self,
        nodes: &mut NodeReader,
        node: &NodeRef<PackNo>,
        snapshot: SnapshotId,
        present: &HashMap<PackId, u64>,
        sealed_to: &mut SealedTo,
        findings: &mut Findings,
    ) -> Result<(Vec<PackNo>, u64)> {
        let mut packs = BTreeSet::new();
        let mut bytes = 0;
        for record in nodes.records(node)? {
            let chunks = match record {
                Record::Stretch(chunks) | Record::Entry { content: Content::Inline(chunks), .. } => chunks,
                Record::Entry { .. } => continue,
            };
            for chunk in chunks {
                bytes += u64::from(chunk.len);
                // Of a patch: what it says of its base.
                let mut base = None;
                for (number, place) in chunk.stored.places().enumerate() {
                    packs.insert(place.pack);
                    let pack = self.inner.packs.get(place.pack);
                    if !present.contains_key(&pack.id) {
                        continue;
                    }
                    let expected = match chunk.stored {
                        Stored::Delta { .. } if number == 1 => base.map(|base| (base, None)),
                        _ => Some((chunk.id, Some(chunk.len))),
                    };
                    match self.verify_place(pack, place, expected, sealed_to) {
                        Ok(of_patch) => base = of_patch,
                        Err(error) => findings.add_error(&pack.id.key(), &tolerable(error)?, [snapshot]),
                    }
                }
            }
        }
        Ok((packs.into_iter().collect(), bytes))
    }

    /// Id and length that are expected there, where they are known. Returns the id of the base if what is there is a patch.
    fn verify_place(
        &self,
        pack: PackRef,
        place: Place<PackNo>,
        expected: Option<(ChunkId, Option<u32>)>,
        sealed_to: &mut SealedTo,
    ) -> Result<Option<ChunkId>> {
        let directory = self.inner.directory(pack)?;
        let frame = directory.frames.get(place.frame as usize);
        let entry = frame.and_then(|f| f.chunks.get(place.slot as usize));
        let fits = |e: &&ChunkEntry| expected.is_none_or(|(id, len)| e.id == id && len.is_none_or(|len| e.len == len));
        if let Some(entry) = entry.filter(fits)
            && directory.kind == PackKind::Data
        {
            let envelope = frame.and_then(|frame| directory.envelopes.get(frame.envelope as usize));
            envelope.into_iter().for_each(|envelope| sealed_to.note(envelope.generation, Some(pack.id)));
            Ok(entry.base.map(|(base, _)| base))
        } else {
            Err(Error::new(Kind::Damaged, format!("pack {}: does not hold what a snapshot says it holds", pack.id.key())))
        }
    }

    /// Reads the share's packs whole: the name is the hash, every frame opens, every chunk has its id. `newest`: the repository's generation now.
    #[expect(clippy::too_many_arguments, reason = "the surroundings of one call")]
    fn verify_data(
        &self,
        percent: u8,
        run: u64,
        present: &HashMap<PackId, u64>,
        used: &HashMap<PackId, PackUse>,
        newest: u16,
        sealed_to: &mut SealedTo,
        out: &mut Verification,
        findings: &mut Findings,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<()> {
        let inner = &self.inner;
        let reader = inner.keys.role == Role::Reader;
        if !reader {
            out.skipped.push(format!(
                "the content of data packs was not opened: the passphrase is a {} key; their bytes were compared with their names, which finds any change",
                inner.keys.role
            ));
        }
        let mut packs: Vec<(PackId, u64)> =
            present.iter().map(|(id, len)| (*id, *len)).filter(|(id, _)| in_share(*id, percent, run)).collect();
        packs.sort_unstable();
        (out.packs, out.packs_due) = (present.len() as u64, packs.len() as u64);
        progress.event(Event::Phase { name: "data", detail: format!("{} of {} packs", packs.len(), present.len()) });
        progress.event(Event::Total { bytes: packs.iter().map(|p| p.1).sum(), items: packs.len() as u64 });
        let queue = Mutex::new(packs.into_iter());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let unopened: Mutex<BTreeSet<u16>> = Mutex::default();
        let results: Vec<Result<(u64, Vec<(PackId, Error)>)>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..inner.workers)
                .map(|_| {
                    scope.spawn(|| {
                        let mut checked = 0;
                        let mut bad = Vec::new();
                        while let Some((id, len)) = next() {
                            cancel.check()?;
                            match self.verify_pack(id, len, reader, &unopened, cancel) {
                                Ok(()) => checked += len,
                                Err(error) => bad.push((id, tolerable(error)?)),
                            }
                            progress.event(Event::Advance { bytes: len, items: 1 });
                        }
                        Ok((checked, bad))
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(Error::new(Kind::Bug, "a verifying thread panicked")))).collect()
        });
        let unopened = unopened.into_inner().unwrap_or_else(PoisonError::into_inner);
        unopened.iter().filter(|number| inner.keys.lacks(**number)).for_each(|number| sealed_to.note(*number, None));
        let plans: BTreeSet<&str> =
            inner.keys.own_keys().into_iter().filter(|own| unopened.contains(&own.number)).map(|own| own.plan.as_str()).collect();
        for plan in plans {
            let destroyed = format!(
                "data of plan {plan} that is sealed to a key which was destroyed was not opened, and can never be: its bytes were compared with their names"
            );
            out.destroyed.push(destroyed.clone());
            out.skipped.push(destroyed);
        }
        let known = read_tombstones(inner).unwrap_or_default();
        let mut condemned = Vec::new();
        for result in results {
            let (checked, bad) = result?;
            out.bytes_checked += checked;
            for (id, error) in bad {
                // With the keys of before a rotation, what came after it cannot be told from damage.
                let is_rotated = newest > inner.keys.generation;
                if !known.contains(&id) && error.kind() == Kind::Damaged && !is_rotated {
                    condemned.push(id);
                }
                findings.add_error(&id.key(), &error, used.get(&id).into_iter().flat_map(|u| u.snapshots.iter().copied()));
            }
        }
        // The next backup must not lean on them: it stores their content again where the source still has it.
        if let Err(error) = condemn(inner, &condemned, chrono::Utc::now()) {
            out.skipped.push(format!("the damaged packs could not be marked, so backups may go on reusing them: {error}"));
        }
        Ok(())
    }

    /// `unopened`: takes the numbers of destroyed keys, and of keys that are gone, that something is sealed to.
    fn verify_pack(&self, id: PackId, len: u64, reader: bool, unopened: &Mutex<BTreeSet<u16>>, cancel: &Cancel) -> Result<()> {
        let inner = &self.inner;
        let key = id.key();
        let damaged = |what: &str| Error::new(Kind::Damaged, format!("pack {key}: {what}"));
        let bytes = inner.block_on(inner.store.get(&key))?;
        if *blake3::hash(&bytes).as_bytes() != id.0 {
            return Err(damaged("its bytes do not match its name (changed or truncated in the store)"));
        }
        if bytes.len() as u64 != len {
            return Err(damaged("has another size than the store lists"));
        }
        let (_, directory) = inner.directory_of_listed(id, len)?;
        if directory.kind == PackKind::Data && !reader {
            return Ok(());
        }
        let mut worker = DecodeWorker::new(inner)?;
        for frame in &directory.frames {
            cancel.check()?;
            let start = frame.offset as usize;
            let envelope = directory.envelopes[frame.envelope as usize].generation;
            if directory.kind == PackKind::Data && (inner.keys.is_erased(envelope) || inner.keys.lacks(envelope)) {
                unopened.lock().unwrap_or_else(PoisonError::into_inner).insert(envelope);
                continue;
            }
            worker.decode(&key, &directory, frame, &bytes[start..start + frame.sealed_len as usize])?;
            let mut at = 0;
            for chunk in &frame.chunks {
                // A patch is checked where its chunk is restored.
                let len = chunk.base.map_or(chunk.len, |(_, patch_len)| patch_len) as usize;
                let data = &worker.plain[at..at + len];
                let fits = || match directory.kind {
                    PackKind::Nodes => Ok(inner.keys.node_has_id(data, chunk.id)),
                    PackKind::Data | PackKind::Log => inner.keys.chunk_has_id(envelope, data, chunk.id),
                };
                if chunk.base.is_none() && !fits()? {
                    return Err(damaged("a chunk does not match its id"));
                }
                at += len;
            }
        }
        Ok(())
    }
}

fn note_use(used: &mut HashMap<PackId, PackUse>, pack: PackRef, snapshot: SnapshotId) {
    let entry = used.entry(pack.id).or_default();
    entry.reference = Some(pack);
    entry.snapshots.insert(snapshot);
}

/// Whether a verification of data by this share and run reads the object of this key. Packs and pieces of logs are shared out: all else is always read.
#[must_use]
pub fn share_covers(key: &str, percent: u8, run: u64) -> bool {
    let shared = PackId::from_key(key).or_else(|| is_piece_key(key).then(|| share_of_piece(key)));
    (1..=100).contains(&percent) && shared.is_none_or(|id| in_share(id, percent, run))
}

/// Whether a pack is verified in this run: its name puts it into one of 100 buckets, and runs go round the buckets.
pub(super) fn in_share(id: PackId, percent: u8, run: u64) -> bool {
    let bucket = u64::from(u16::from_le_bytes([id.0[0], id.0[1]]) % 100);
    let runs = 100u64.div_ceil(u64::from(percent));
    bucket / u64::from(percent) == run % runs
}

/// Nothing in place of what is damaged, which is told where it is looked at.
fn told<T: Default>(error: Error) -> Result<T> {
    if error.kind() == Kind::Damaged { Ok(T::default()) } else { Err(error) }
}

/// A snapshot that names another one as parent, its plan, and the parent.
type Named = (SnapshotId, Name, Parent);

/// Snapshots that were removed on purpose, and the hashes of their manifests: some 60 bytes each.
#[derive(Default)]
struct Removed {
    plans: Vec<Name>,
    /// Each ascending by id: number of the plan (`None`: any) and the hash, empty where it is not known.
    parts: Vec<Vec<(SnapshotId, Option<u32>, Hash)>>,
}

/// Of a manifest, in as few bytes as it takes.
enum Hash {
    Bytes([u8; 32]),
    Text(Box<str>),
}

impl Hash {
    fn of(text: &str) -> Self {
        let mut bytes = [0; 32];
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) if hex::encode(bytes) == text => Self::Bytes(bytes),
            _ => Self::Text(text.into()),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Bytes(bytes) => hex::encode(bytes),
            Self::Text(text) => text.to_string(),
        }
    }
}

impl Removed {
    fn add(&mut self, snapshots: &[RemovedSnapshot]) {
        let mut part = Vec::with_capacity(snapshots.len());
        for snapshot in snapshots {
            let plan = self.plans.iter().position(|plan| *plan == snapshot.plan).unwrap_or_else(|| {
                self.plans.push(snapshot.plan.clone());
                self.plans.len() - 1
            });
            part.push((snapshot.id, Some(plan as u32), Hash::of(&snapshot.hash)));
        }
        part.sort_unstable_by_key(|(id, ..)| *id);
        self.parts.push(part);
    }

    /// Of these nothing else is known. Ascending.
    fn add_unknown(&mut self, ids: impl Iterator<Item = SnapshotId>) {
        self.parts.push(ids.map(|id| (id, None, Hash::Text("".into()))).collect());
    }

    /// The hash of the manifest of a snapshot of this plan that was removed.
    fn hash(&self, plan: &Name, id: SnapshotId) -> Option<String> {
        let may_have = |part: &&Vec<(SnapshotId, _, _)>| part.first().is_some_and(|(first, ..)| *first <= id);
        self.parts.iter().filter(may_have).find_map(|part| {
            let (_, of, hash) = &part[part.binary_search_by_key(&id, |(id, ..)| *id).ok()?];
            of.is_none_or(|of| self.plans[of as usize] == *plan).then(|| hash.text())
        })
    }
}

/// Damage and absence become findings; a store that is away, or an interruption, ends the verification.
pub(super) fn tolerable(error: Error) -> Result<Error> {
    match error.kind() {
        Kind::Damaged | Kind::NotFound => Ok(error),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_runs_cover_every_pack() {
        for percent in 1..=100u8 {
            let runs = 100u64.div_ceil(u64::from(percent));
            for first in [0u64, 7, 1000] {
                for bucket in 0..=u16::MAX {
                    let mut id = PackId([0; 32]);
                    id.0[..2].copy_from_slice(&bucket.to_le_bytes());
                    if bucket < 200 {
                        assert!((first..first + runs).any(|run| in_share(id, percent, run)), "{percent}% bucket {bucket}");
                    }
                }
            }
        }
    }
}
