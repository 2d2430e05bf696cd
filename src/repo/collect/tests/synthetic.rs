//! A repository as large as one of 800 GB, without its data: trees, index and manifests are whole, packs of data are holes of the right names and
//! sizes. What plans a collection, unlists and deletes does the same work on it as on a real one; nothing can be restored from it.

use std::path::PathBuf;

use super::*;
use crate::id::Name;
use crate::repo::OpenOptions;
use crate::repo::format::{ChunkId, NODE_FRAME_TARGET, NODE_PACK_TARGET, PACK_TARGET, STRETCH_CHUNKS};
use crate::repo::frame::{Encoder, Profile};
use crate::repo::index::IndexedPack;
use crate::repo::pack::{ChunkEntry, PackBuilder};
use crate::repo::pipeline::write_index_objects;
use crate::repo::snapshot::TreeRoot;
use crate::repo::tree::{Chunk, NodeEncoder, NodeRef, PackRef, Place, Record, Stored, encode_list};
use crate::store::StoreConfig;

/// Of pages of 8 KiB in frames of 2 MiB: 256 a frame, 40 frames a pack of 32 MiB.
const SLOTS: u32 = 256;
const FRAMES: u32 = 40;

/// Nodes on their way into packs.
struct Nodes<'a> {
    repository: &'a Repository,
    encoder: Encoder,
    pack: Option<PackBuilder>,
    frame: Vec<u8>,
    entries: Vec<ChunkEntry>,
    /// Of the open frame: id and whether it is a stretch.
    open: Vec<(ChunkId, bool)>,
    /// Of the open pack: the same with frame and slot.
    placed: Vec<(ChunkId, bool, u32, u32)>,
    done: Vec<NodeRef<PackRef>>,
    indexed: Vec<IndexedPack>,
}

impl<'a> Nodes<'a> {
    fn new(repository: &'a Repository) -> Self {
        let encoder = Encoder::new(Profile::Nodes).unwrap();
        Self {
            repository,
            encoder,
            pack: None,
            frame: Vec::new(),
            entries: Vec::new(),
            open: Vec::new(),
            placed: Vec::new(),
            done: Vec::new(),
            indexed: Vec::new(),
        }
    }

    fn push(&mut self, bytes: &[u8], stretch: bool) {
        if self.frame.len() + bytes.len() > NODE_FRAME_TARGET {
            self.close_frame();
        }
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::keyed_hash(&self.repository.inner.keys.node_id_key(), bytes).as_bytes()[..16]);
        self.frame.extend_from_slice(bytes);
        self.entries.push(ChunkEntry { id: ChunkId(id), len: bytes.len() as u32, base: None });
        self.open.push((ChunkId(id), stretch));
    }

    fn close_frame(&mut self) {
        if self.frame.is_empty() {
            return;
        }
        let inner = &self.repository.inner;
        let plain = std::mem::take(&mut self.frame);
        let (encoding, encoded) = self.encoder.encode(&plain).unwrap();
        let encoded = encoded.to_vec();
        let pack = self.pack.get_or_insert_with(|| PackBuilder::new(&inner.keys, inner.id, PackKind::Nodes, Vec::new()).unwrap());
        let frame = pack.push(encoding, &encoded, std::mem::take(&mut self.entries)).unwrap();
        let full = pack.len() >= NODE_PACK_TARGET;
        self.placed.extend(self.open.drain(..).enumerate().map(|(slot, (id, stretch))| (id, stretch, frame, slot as u32)));
        if full {
            self.close_pack();
        }
    }

    fn close_pack(&mut self) {
        self.close_frame();
        let Some(pack) = self.pack.take() else { return };
        let inner = &self.repository.inner;
        let finished = pack.finish(&inner.keys).unwrap();
        let pack = PackRef { id: finished.id, len: finished.bytes.len() as u64, directory_len: finished.directory_len };
        inner.block_on(inner.store.create(&finished.id.key(), Bytes::from(finished.bytes))).unwrap();
        let prefixes = self.placed.iter().map(|(id, ..)| id.prefix()).collect();
        self.indexed.push(IndexedPack { id: pack.id, kind: PackKind::Nodes, len: pack.len, directory_len: pack.directory_len, prefixes });
        let refs = self.placed.drain(..).map(|(id, stretch, frame, slot)| NodeRef { id, stretch, place: Place { pack, frame, slot } });
        self.done.extend(refs);
    }

    /// Puts lists of these nodes into nodes, until few are left; they and the depth.
    fn tree(&mut self, leaves: Vec<NodeRef<PackRef>>) -> TreeRoot {
        let (mut refs, mut depth) = (leaves, 0);
        while refs.len() > 1024 {
            for some in refs.chunks(1024) {
                let bytes = encode_list(some, |pack| pack);
                self.push(&bytes, false);
            }
            self.close_pack();
            (refs, depth) = (std::mem::take(&mut self.done), depth + 1);
        }
        TreeRoot { depth, nodes: hex::encode(encode_list(&refs, |pack| pack)), ids: None }
    }
}

/// `LIFEBOAT_SYNTHETIC=FOLDER` (new, 3 GB for 100 million chunks, `LIFEBOAT_CHUNKS`), then what it prints. One snapshot has the first 70 % of all chunks, a
/// later one the last 70 %.
#[test]
#[ignore = "makes gigabytes; for docs/measurements.md"]
fn a_repository_of_a_hundred_million_chunks() {
    let folder = PathBuf::from(std::env::var("LIFEBOAT_SYNTHETIC").expect("LIFEBOAT_SYNTHETIC: where to make it"));
    let chunks: u32 = std::env::var("LIFEBOAT_CHUNKS").map_or(100_000_000, |chunks| chunks.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    std::fs::create_dir_all(folder.join("repo")).unwrap();
    let url = format!("file://{}", folder.join("repo").display());
    let store = Store::open(&StoreConfig::at(url.clone())).unwrap();
    let options = OpenOptions { cache: Some(folder.join("cache")), workers: 2 };
    let (repository, _) = Repository::init(store, runtime.handle().clone(), &passphrase(), &options, Utc::now()).unwrap();
    let inner = &repository.inner;
    let packs = chunks.div_ceil(SLOTS * FRAMES);
    let mut random = blake3::Hasher::new().finalize_xof();
    let mut nodes = Nodes::new(&repository);
    let mut indexed: Vec<IndexedPack> = Vec::new();
    let size = PACK_TARGET as u64 + 300_000;
    let stretch = |frame, first| {
        let pack = PackRef { id: PackId([0; 32]), len: size, directory_len: 200_000 };
        let chunk = |slot| Chunk { id: ChunkId([7; 16]), len: 8192, stored: Stored::Full(Place { pack, frame, slot }) };
        let mut encoder = NodeEncoder::new();
        encoder.record(&Record::Stretch((first..first + STRETCH_CHUNKS as u32).map(chunk).collect()));
        encoder.finish(|pack| pack)
    };
    let templates: Vec<Vec<u8>> =
        (0..FRAMES).flat_map(|frame| (0..SLOTS).step_by(STRETCH_CHUNKS).map(move |first| stretch(frame, first))).collect();
    assert!(templates.iter().all(|node| node[2..34] == [0; 32] && node.ends_with(&[7; STRETCH_CHUNKS * 16])));
    for number in 0..packs {
        let mut id = [0; 32];
        random.fill(&mut id);
        let pack = PackRef { id: PackId(id), len: size, directory_len: 200_000 };
        let path = folder.join("repo").join(pack.id.key());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::File::create(path).unwrap().set_len(pack.len).unwrap();
        let mut prefixes = Vec::with_capacity((SLOTS * FRAMES) as usize);
        for template in &templates {
            // The pack's name is the first thing in the table, the ids of the one run are the last.
            let mut node = template.clone();
            node[2..34].copy_from_slice(&pack.id.0);
            let ids = node.len() - STRETCH_CHUNKS * 16;
            random.fill(&mut node[ids..]);
            prefixes.extend(node[ids..].as_chunks::<16>().0.iter().map(|id| ChunkId(*id).prefix()));
            nodes.push(&node, true);
        }
        indexed.push(IndexedPack { id: pack.id, kind: PackKind::Data, len: pack.len, directory_len: pack.directory_len, prefixes });
        if indexed.len() == 100 || number + 1 == packs {
            // As large as any that is written.
            write_index_objects(inner, &indexed, |_, _| Ok(())).unwrap();
            indexed.clear();
        }
    }
    nodes.close_pack();
    let leaves = std::mem::take(&mut nodes.done);
    let share = leaves.len() * 7 / 10;
    let name = Name::new("big").unwrap();
    for part in [&leaves[..share], &leaves[leaves.len() - share..]] {
        let mut manifest = backup_as(&repository, &name, &[("f", Layout::Content, b"", noise(part.len() as u64, 1000))]).unwrap();
        manifest.id = SnapshotId::generate(Utc::now());
        manifest.sources[0].tree = nodes.tree(part.to_vec());
        let key = repository.manifest_key(&manifest);
        let sealed = inner.seal_object(ObjectKind::Manifest, &key, &serde_json::to_vec(&manifest).unwrap()).unwrap();
        inner.block_on(inner.store.create(&key, Bytes::from(sealed))).unwrap();
    }
    write_index_objects(inner, &nodes.indexed, |_, _| Ok(())).unwrap();
    std::fs::create_dir_all(folder.join("plans")).unwrap();
    let plan = |keep: &str| {
        let source = "[source.files]\nkind = \"files\"\npath = \"/nowhere\"\n";
        format!(
            "version = 1\n[repository.main]\nurl = \"{url}\"\npassphrase = {{ env = \"LIFEBOAT_PASSPHRASE\" }}\n{source}[plan.big]\nsource = \"files\"\nrepository = \"main\"\nkeep = {{ last = {keep} }}\n"
        )
    };
    std::fs::write(folder.join("plans/big.toml"), plan("1")).unwrap();
    println!("{chunks} chunks in {packs} packs. Then, with `last = 9` in the plan first, so that all is alive:");
    println!(
        "LIFEBOAT_PASSPHRASE=… benches/peers/measure.py lifeboat --plans {0}/plans --state {0}/state prune big 3>&1",
        folder.display()
    );
}
