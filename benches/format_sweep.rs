//! Sweep over chunk × frame × zstd level on real pages: what decided the sizes in `src/repo/format.rs`.
//!
//!     cargo bench --bench format_sweep -- BASE_FOLDER CHANGED_FOLDER
//!
//! Both folders hold page-structured files (a stopped PostgreSQL data folder before and after a day of changes). Every file is cut
//! into fixed units, units not seen before are gathered into frames, compressed and sealed on two threads, as the backup does. Prints one
//! row a configuration: bytes after the first backup, added by the second, metadata (16-byte ids in directories and trees, 8 in the
//! index), and the speed of the first in memory. Last, what the second would add if every changed page were a delta against the page
//! that stood at its place.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::type_complexity,
    clippy::large_stack_arrays,
    reason = "a measuring program"
)]

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

const ID_KEY: [u8; 32] = [7; 32];
const THREADS: usize = 2;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let asked = std::env::args().any(|a| a == "--bench");
    let [base, changed] = args.as_slice() else {
        if asked {
            println!("usage: cargo bench --bench format_sweep -- BASE_FOLDER CHANGED_FOLDER");
        }
        return;
    };
    let base = read(Path::new(base));
    let changed = read(Path::new(changed));
    let total: usize = base.iter().map(|(_, bytes)| bytes.len()).sum();
    println!("first: {:.0} MB in {} files", megabytes(total), base.len());
    println!("| unit KiB | frame KiB | level | first MB | second adds MB | metadata first MB | metadata second MB | first MB/s |");
    println!("|---|---|---|---|---|---|---|---|");
    let kib = 1024;
    for (unit, frame, level) in [
        (8, 64, 3),
        (8, 256, 3),
        (8, 512, 3),
        (8, 1024, 3),
        (8, 2048, 3),
        (8, 4096, 3),
        (8, 1024, 1),
        (8, 1024, 2),
        (8, 1024, 4),
        (8, 1024, 6),
        (16, 1024, 3),
        (32, 1024, 3),
        (64, 1024, 3),
        (128, 1024, 3),
    ] {
        let mut seen = HashSet::new();
        let start = Instant::now();
        let (first, first_units) = store(&base, unit * kib, frame * kib, level, &mut seen);
        let seconds = start.elapsed().as_secs_f64();
        let (second, second_units) = store(&changed, unit * kib, frame * kib, level, &mut seen);
        println!(
            "| {unit} | {frame} | {level} | {:.0} | {:.0} | {:.1} | {:.1} | {:.0} |",
            megabytes(first),
            megabytes(second),
            megabytes(first_units * 40),
            megabytes(second_units * 40),
            megabytes(total) / seconds
        );
    }
    deltas(&base, &changed);
}

fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

type Files = Vec<(PathBuf, Vec<u8>)>;

fn read(root: &Path) -> Files {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if entry.file_type().unwrap().is_file() {
                files.push((entry.path().strip_prefix(root).unwrap().to_owned(), std::fs::read(entry.path()).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// Sealed bytes of all units not in `seen`, and how many they are.
fn store(files: &Files, unit: usize, frame: usize, level: i32, seen: &mut HashSet<[u8; 16]>) -> (usize, usize) {
    let seen = Mutex::new(seen);
    let pieces: Vec<&[u8]> = files.iter().flat_map(|(_, bytes)| bytes.chunks(1 << 20)).collect();
    let queue = Mutex::new(pieces.into_iter());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let cipher = lifeboat_cipher::Cipher::new(&[1u8; 32]);
                    let mut compressor = zstd::bulk::Compressor::new(level).unwrap();
                    let (mut plain, mut sealed, mut bytes, mut units) = (Vec::new(), Vec::new(), 0, 0);
                    let mut close = |plain: &mut Vec<u8>, bytes: &mut usize| {
                        sealed.clear();
                        sealed.reserve(zstd::zstd_safe::compress_bound(plain.len()));
                        compressor.compress_to_buffer(plain.as_slice(), &mut sealed).unwrap();
                        let tag = cipher.seal_detached(&[0u8; 12], b"", &mut sealed).unwrap();
                        *bytes += sealed.len() + tag.len();
                        plain.clear();
                    };
                    loop {
                        let Some(piece) = queue.lock().unwrap().next() else { break };
                        for data in piece.chunks(unit) {
                            if data.iter().all(|b| *b == 0) {
                                continue;
                            }
                            let mut id = [0; 16];
                            id.copy_from_slice(&blake3::keyed_hash(&ID_KEY, data).as_bytes()[..16]);
                            if seen.lock().unwrap().insert(id) {
                                plain.extend_from_slice(data);
                                units += 1;
                                if plain.len() >= frame {
                                    close(&mut plain, &mut bytes);
                                }
                            }
                        }
                    }
                    close(&mut plain, &mut bytes);
                    (bytes, units)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    })
}

/// Changed pages as deltas against the pages at their places, new pages whole.
fn deltas(base: &Files, changed: &Files) {
    let (mut delta_bytes, mut delta_pages, mut whole) = (Vec::new(), 0usize, Vec::new());
    for (path, bytes) in changed {
        let before = base.binary_search_by(|(p, _)| p.cmp(path)).map_or(&[][..], |i| &base[i].1);
        for (number, page) in bytes.chunks(8192).enumerate() {
            match before.get(number * 8192..number * 8192 + page.len()) {
                Some(old) if old == page => {}
                Some(old) if old.iter().any(|b| *b != 0) => {
                    delta_pages += 1;
                    delta_bytes.extend(zstd::bulk::Compressor::with_dictionary(3, old).unwrap().compress(page).unwrap());
                }
                _ => whole.extend_from_slice(page),
            }
        }
    }
    let frames: usize = whole.chunks(1 << 20).map(|f| zstd::bulk::compress(f, 3).unwrap().len()).sum();
    println!(
        "deltas: {delta_pages} changed pages in {:.1} MB of patches ({:.1} MB compressed again), {} new pages in {:.1} MB",
        megabytes(delta_bytes.len()),
        megabytes(delta_bytes.chunks(1 << 20).map(|f| zstd::bulk::compress(f, 3).unwrap().len()).sum()),
        whole.len() / 8192,
        megabytes(frames)
    );
}
