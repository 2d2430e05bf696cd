//! Resident memory and look-up time of the local index with 10 and 100 million synthetic chunks.
//!
//!     cargo bench --bench index [-- MILLIONS…]

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a measuring program")]

use std::time::Instant;

use lifeboat::repo::{ChunkId, IndexedPack, LocalIndex, PackId, PackKind};

/// 32 MiB packs of 8 KiB pages at 2:1.
const CHUNKS_PER_PACK: u64 = 8192;

fn main() {
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let mut sizes: Vec<u64> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![10, 100];
    }
    println!("| chunks | build s | on disk MB | resident MiB | present µs | absent µs |");
    println!("|---|---|---|---|---|---|");
    for millions in sizes {
        measure(millions * 1_000_000);
    }
}

fn prefix(number: u64) -> u64 {
    let hash = blake3::hash(&number.to_le_bytes());
    u64::from_be_bytes(hash.as_bytes()[..8].try_into().unwrap())
}

fn chunk(prefix: u64) -> ChunkId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&prefix.to_be_bytes());
    ChunkId(id)
}

fn measure(chunks: u64) {
    let folder = std::env::temp_dir().join(format!("lifeboat-index-bench-{}", std::process::id()));
    let index = LocalIndex::open(&folder).unwrap();
    let start = Instant::now();
    let packs = chunks.div_ceil(CHUNKS_PER_PACK);
    // One index object lists 16 packs, as the backup writes them.
    for object in 0..packs.div_ceil(16) {
        let listed: Vec<IndexedPack> = (object * 16..((object + 1) * 16).min(packs))
            .map(|pack| {
                let mut id = [0; 32];
                id[..8].copy_from_slice(&pack.to_le_bytes());
                let prefixes = (pack * CHUNKS_PER_PACK..(pack + 1) * CHUNKS_PER_PACK).map(prefix).collect();
                IndexedPack { id: PackId(id), kind: PackKind::Data, len: 33_000_000, directory_len: 150_000, prefixes }
            })
            .collect();
        index.cover(&format!("{object:064x}"), &listed).unwrap();
    }
    let built = start.elapsed().as_secs_f64();
    let probes = 200_000u64;
    let time = |from: u64, found: usize| {
        let start = Instant::now();
        for number in 0..probes {
            let number = from + number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % chunks;
            assert_eq!(index.candidates(chunk(prefix(number))).unwrap().len(), found);
        }
        start.elapsed().as_secs_f64() * 1e6 / probes as f64
    };
    let (present, absent) = (time(0, 1), time(packs * CHUNKS_PER_PACK, 0));
    let disk: u64 = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    println!("| {chunks} | {built:.1} | {:.0} | {} | {present:.2} | {absent:.2} |", disk as f64 / 1e6, resident_mib());
    std::fs::remove_dir_all(&folder).unwrap();
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}
