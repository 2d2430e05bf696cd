//! Every parser of bytes that come from a store, a server or a file, under a name: for fuzzing, and for the test below, which reads
//! again what fuzzing collected.
//!
//! A parser takes any bytes and must not panic; what must hold of bytes that it accepts is asserted.

use std::io::Read as _;

use crate::ops::log::replay::Consistency;
use crate::ops::log::retain::started_at;
use crate::plan::Plans;
pub use crate::repo::parsers::Parser;
use crate::source::Finish;
use crate::source::postgres::control::Control;
use crate::source::postgres::layout::RelationFile;
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::page::{Damage, PageState, check_page, checksum, page_lsn};
use crate::source::postgres::tar::TarReader;
use crate::source::postgres::wal::{FactsReader, PieceFacts, SegmentHeader, SegmentSize, TimelineHistory, WalName, WalReader};
use crate::store::is_versions_page;

/// Those of other things than repositories.
const OTHERS: [Parser; 9] = [
    ("plan", plan),
    ("wal_reader", wal_reader),
    ("wal_names", wal_names),
    ("page", page),
    ("control", control),
    ("history", history),
    ("tar", tar),
    ("facts", facts),
    ("versions", versions),
];

/// All of them, each name once.
pub fn all() -> impl Iterator<Item = Parser> {
    crate::repo::parsers::PARSERS.into_iter().chain(OTHERS)
}

/// Reads bytes with the parser of this name: whether it accepted them. `None`: there is none.
#[must_use]
pub fn run(name: &str, bytes: &[u8]) -> Option<bool> {
    all().find(|(known, _)| *known == name).map(|(_, parser)| parser(bytes))
}

fn plan(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    match Plans::from_text(text) {
        Ok(_) => true,
        Err(errors) => {
            // With the places of what is wrong.
            assert!(!errors.to_string().is_empty());
            false
        }
    }
}

/// Segment size u8, start u8 and step u8, then log: read at once, and in pieces.
fn wal_reader(bytes: &[u8]) -> bool {
    let Some(([size, start, step], log)) = bytes.split_first_chunk::<3>() else { return false };
    let Ok(segment) = SegmentSize::new(1 << (20 + u64::from(size % 11))) else { return false };
    let start = Lsn(u64::from(*start) * 8192 * 17);
    let read = |step: usize| {
        let Ok(mut reader) = WalReader::new(start, segment, None) else { return (Vec::new(), String::new()) };
        let mut records = Vec::new();
        for piece in log.chunks(step) {
            reader.push(piece, |record| records.push(format!("{record:?}")));
        }
        (records, format!("{:?} {:?} {:?}", reader.valid_end(), reader.timeline(), reader.end()))
    };
    let whole = read(log.len().max(1));
    assert_eq!(whole, read(1 + usize::from(*step) * 3), "the same whatever the pieces are");
    if let Ok(mut facts) = FactsReader::new(start, segment, 7) {
        let facts = facts.take(1, log);
        assert!(facts.valid_to >= start);
    }
    let _ = SegmentHeader::read(log);
    !whole.0.is_empty()
}

/// Names of files, paths and positions.
fn wal_names(bytes: &[u8]) -> bool {
    let relation = RelationFile::parse(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return relation.is_some() };
    let position = text.parse::<Lsn>().ok();
    if let Some(position) = position {
        assert_eq!(position.to_string().parse::<Lsn>().ok(), Some(position));
    }
    let names = [1u64 << 20, 16 << 20, 1 << 30].into_iter().filter_map(|bytes| SegmentSize::new(bytes).ok()).filter(|size| {
        let name = WalName::parse(text, *size);
        if let Some(name) = &name {
            assert_eq!(WalName::parse(&name.text(*size), *size).as_ref(), Some(name));
        }
        name.is_some()
    });
    names.count() > 0 || position.is_some() || relation.is_some()
}

/// Block number u32, then a page.
fn page(bytes: &[u8]) -> bool {
    let Some((block, page)) = bytes.split_first_chunk::<4>() else { return false };
    let Some(page) = page.first_chunk::<8192>() else { return false };
    let block = u32::from_le_bytes(*block);
    let _ = page_lsn(page);
    let state = check_page(page, block);
    // With the checksum that it must have, only its header can be wrong.
    let mut right = *page;
    right[8..10].copy_from_slice(&checksum(page, block).to_le_bytes());
    assert!(!matches!(check_page(&right, block), PageState::Bad(Damage::Checksum { .. })));
    state == PageState::Valid
}

fn control(bytes: &[u8]) -> bool {
    let as_it_is = Control::parse(bytes).is_ok();
    // What is behind the CRC.
    let mut right = bytes.to_vec();
    for at in [288, 292] {
        if right.len() >= at + 4 {
            let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &right[..at]);
            let crc = u32::try_from(crc).unwrap_or_default();
            right[at..at + 4].copy_from_slice(&crc.to_le_bytes());
            let _ = Control::parse(&right);
            right[at..at + 4].copy_from_slice(&bytes[at..at + 4]);
        }
    }
    as_it_is
}

/// Timeline u32, then a history file.
fn history(bytes: &[u8]) -> bool {
    let Some((timeline, text)) = bytes.split_first_chunk::<4>() else { return false };
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let timeline = u32::from_le_bytes(*timeline);
    let Ok(history) = TimelineHistory::parse(timeline, text) else { return false };
    assert!(history.ancestors().is_sorted_by(|a, b| a.timeline < b.timeline && a.left_at <= b.left_at));
    for ancestor in history.ancestors() {
        assert_eq!(history.left_at(ancestor.timeline), Some(ancestor.left_at));
        let _ = (history.timeline_at(ancestor.left_at), history.contains(ancestor.timeline, ancestor.left_at));
    }
    history.timeline_at(Lsn(u64::MAX)) == timeline
}

/// An archive; the checksums of its headers are made right, so that what is behind them is reached.
fn tar(bytes: &[u8]) -> bool {
    let whole = |bytes: &[u8]| {
        let mut reader = TarReader::new(bytes);
        let (mut members, mut content) = (0usize, Vec::new());
        loop {
            match reader.next_member() {
                Ok(Some(_)) => members += 1,
                Ok(None) => return members > 0,
                Err(_) => return false,
            }
            content.clear();
            if members % 2 == 0 && (&mut reader).take(4096).read_to_end(&mut content).is_err() {
                return false;
            }
        }
    };
    let as_it_is = whole(bytes);
    let mut right = bytes.to_vec();
    for block in right.as_chunks_mut::<512>().0 {
        if &block[257..262] == b"ustar" {
            block[148..156].copy_from_slice(b"        ");
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    whole(&right) || as_it_is
}

/// What sources say of a backup and of a piece of log, in JSON.
fn facts(bytes: &[u8]) -> bool {
    let piece = serde_json::from_slice::<PieceFacts>(bytes);
    if let Ok(facts) = &piece {
        let again = serde_json::to_vec(facts).ok().and_then(|json| serde_json::from_slice::<PieceFacts>(&json).ok());
        assert_eq!(again.as_ref(), Some(facts));
    }
    let Ok(finish) = serde_json::from_slice::<Finish>(bytes) else { return piece.is_ok() };
    let again = serde_json::to_vec(&finish).map(|json| serde_json::from_slice::<Finish>(&json).is_ok());
    assert!(again.is_ok_and(|readable| readable), "what was read can be written and read again");
    let point = Consistency::of(finish.clone()).map(|known| known.point());
    let _ = (point, started_at(finish));
    true
}

/// An answer of S3 to a request for versions.
fn versions(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(is_versions_page)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// Inputs that fuzzing began with (`good-…`: they are accepted), and what it found worth keeping.
    #[test]
    fn what_fuzzing_collected_is_read_without_a_fault() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let folders: BTreeSet<String> =
            std::fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let names: BTreeSet<String> = all().map(|(name, _)| name.to_owned()).collect();
        assert_eq!(folders, names, "each parser has a corpus, and each corpus a parser");
        for (name, parser) in all() {
            let mut good = 0;
            for entry in std::fs::read_dir(corpus.join(name)).unwrap() {
                let path = entry.unwrap().path();
                let bytes = std::fs::read(&path).unwrap();
                let accepted = parser(&bytes);
                if path.file_name().unwrap().to_string_lossy().starts_with("good-") {
                    good += 1;
                    assert!(accepted, "{}: is refused, and was good once", path.display());
                }
                // Also cut, and with each of some bytes changed.
                parser(&bytes[..bytes.len() / 2]);
                for at in (0..bytes.len()).step_by((bytes.len() / 16).max(1)) {
                    let mut changed = bytes.clone();
                    changed[at] ^= 0x55;
                    parser(&changed);
                }
            }
            assert!(good > 0, "{name}: no input that is accepted");
        }
        assert_eq!(run("nothing", b""), None);
    }
}
