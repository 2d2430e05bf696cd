//! Every repository that an older version wrote can still be read: verified whole, and every snapshot restored to what it was made from.
//!
//! The repositories stand in `tests/frozen`; see `scripts/freeze-format` for how one is made.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lifeboat::event::{Cancel, Silent};
use lifeboat::id::Name;
use lifeboat::repo::{Gap, Log, OpenOptions, Passphrase, Repository, VerifyDepth};
use lifeboat::store::{Store, StoreConfig};
use rusqlite::types::ValueRef;

/// Versions that this program must read, with the passphrases of their frozen repositories.
const VERSIONS: [(&str, &str); 1] = [("v1", "frozen format version 1")];

fn frozen(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/frozen").join(version)
}

#[test]
fn every_frozen_repository_has_a_test() {
    let mut there: Vec<String> = std::fs::read_dir(frozen("."))
        .unwrap()
        .map(|item| item.unwrap())
        .filter(|item| item.file_type().unwrap().is_dir())
        .map(|item| item.file_name().into_string().unwrap())
        .collect();
    there.sort();
    // Journals of older versions have their test beside the journal.
    assert_eq!(there, ["journal", VERSIONS[0].0, LEDGER, LOGS]);
}

/// So did the retention ledger; programs before its volumes wrote all that was removed into one entry.
const LEDGER: &str = "v1-ledger";
const LEDGER_PASSPHRASE: &str = "frozen format version 1 with a ledger";

#[test]
fn a_frozen_ledger_is_sound_and_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    copy(&frozen(LEDGER).join("repository"), &temp.path().join("repository"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let open = || {
        let store = Store::open(&StoreConfig::at(format!("file://{}", temp.path().join("repository").display()))).unwrap();
        Repository::open(store, runtime.handle().clone(), &Passphrase::new(LEDGER_PASSPHRASE), &OpenOptions::default()).unwrap()
    };
    let expected = std::fs::read_to_string(frozen(LEDGER).join("expected")).unwrap();
    let told = |repository: &Repository| {
        let ledger = repository.ledger().unwrap();
        let mut removed = Vec::new();
        repository.removals(&ledger, |snapshot| removed.push(snapshot)).unwrap();
        assert!(removed.iter().all(|removed| removed.plan.as_str() == "crm" && removed.hash.len() == 64));
        let there = repository.manifests(None).unwrap().into_iter().map(|manifest| (manifest.id, "there"));
        let mut all: Vec<_> = there.chain(removed.into_iter().map(|removed| (removed.id, "removed"))).collect();
        all.sort_unstable();
        let held = ledger.holds().keys().map(|id| format!("held {id}\n"));
        all.into_iter().map(|(id, what)| format!("{what} {id}\n")).chain(held).collect::<String>()
    };
    let sound = || {
        let verified = open().verify(VerifyDepth::Data { percent: 100, run: 0 }, &Silent, &Cancel::default()).unwrap();
        assert_eq!(verified.findings, []);
    };
    assert_eq!(told(&open()), expected);
    sound();
    // And on into a state of this version.
    let repository = open();
    (0..64).for_each(|_| repository.pass_in_ledger("a test", chrono::Utc::now()).unwrap());
    assert!(temp.path().join("repository/retention/ids").exists() && !temp.path().join("repository/retention/0000000000000043").exists());
    assert_eq!(told(&open()), expected);
    sound();
}

/// Logs came to version 1 later: a repository of their own.
const LOGS: &str = "v1-logs";
const LOGS_PASSPHRASE: &str = "frozen format version 1 with logs";

fn open_logs(folder: &Path, runtime: &tokio::runtime::Runtime) -> Repository {
    let store = Store::open(&StoreConfig::at(format!("file://{}", folder.display()))).unwrap();
    Repository::open(store, runtime.handle().clone(), &Passphrase::new(LOGS_PASSPHRASE), &OpenOptions::default()).unwrap()
}

/// What a log holds, in the words of `expected`.
fn told_log(log: &Log) -> Vec<String> {
    let mut lines = Vec::new();
    for piece in log.pieces().unwrap() {
        let content = blake3::hash(&log.read(&piece).unwrap()).to_hex();
        lines.push(format!("piece {} {} {} {content} {}", piece.stream, piece.start, piece.end, log.facts(&piece).unwrap()));
    }
    for name in log.sides().unwrap() {
        lines.push(format!("side {name} {}", blake3::hash(&log.side(&name).unwrap().unwrap()).to_hex()));
    }
    lines.extend(log.gaps().unwrap().0.iter().map(|gap| format!("gap {} {} {} {}", gap.stream, gap.from, gap.to, gap.reason)));
    lines
}

#[test]
fn frozen_logs_are_sound_and_hold_what_they_were_made_from() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let repository = open_logs(&frozen(LOGS).join("repository"), &runtime);
    let verified = repository.verify(VerifyDepth::Data { percent: 100, run: 0 }, &Silent, &Cancel::default()).unwrap();
    assert_eq!(verified.findings, []);
    let log = repository.log(&Name::new("crm").unwrap(), &Name::new("database").unwrap());
    let expected = std::fs::read_to_string(frozen(LOGS).join("expected")).unwrap();
    assert_eq!(told_log(&log), expected.lines().collect::<Vec<_>>());
    assert_eq!(expected.lines().count(), 9);
}

/// Makes `tests/frozen/v1-logs`, once: a frozen repository that is made anew proves nothing.
#[test]
#[ignore = "makes what the test above reads"]
fn freeze_logs() {
    let folder = frozen(LOGS);
    assert!(!folder.exists(), "it is there already");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let now = chrono::DateTime::from_timestamp(1_790_000_000, 0).unwrap();
    let store = Store::open(&StoreConfig::at(format!("file://{}", folder.join("repository").display()))).unwrap();
    Repository::init(store, runtime.handle().clone(), &Passphrase::new(LOGS_PASSPHRASE), &OpenOptions::default(), now).unwrap();
    let log = open_logs(&folder.join("repository"), &runtime).log(&Name::new("crm").unwrap(), &Name::new("database").unwrap());
    let segment = 16u64 << 20;
    let content = |seed: &str, len: usize| {
        let mut bytes = blake3::hash(seed.as_bytes()).as_bytes().repeat(len / 32 + 1);
        bytes.truncate(len);
        bytes
    };
    let mut expected = String::new();
    let mut append = |stream: u64, start: u64, bytes: &[u8], facts: serde_json::Value| {
        let end = start + bytes.len() as u64;
        log.append(stream, start, end, &facts, bytes).unwrap();
        writeln!(expected, "piece {stream} {start} {end} {} {facts}", blake3::hash(bytes).to_hex()).unwrap();
    };
    // A whole segment and small pieces of it, incompressible bytes, one byte more than a frame holds, a second timeline.
    let mut noise = vec![0; 5000];
    blake3::Hasher::new().update(b"log").finalize_xof().fill(&mut noise);
    let whole = content("segment", 16 << 20);
    append(1, segment, &whole[..1000], serde_json::json!({ "server_clock": "2026-11-23T18:00:00Z" }));
    append(1, segment, &whole, serde_json::json!({ "restore_points": ["before the upgrade"], "system": 7_000_000_000_000_000_001_u64 }));
    append(1, segment + 1000, &whole[1000..9192], serde_json::json!(null));
    append(1, segment * 4, &noise, serde_json::json!({}));
    append(2, segment * 4, &content("two frames", (1 << 20) + 1), serde_json::json!({ "text": "株式会社" }));
    append(2, u64::MAX - 2, b"ab", serde_json::json!([1, 2.5]));
    let history = b"1\t0/4000000\tno recovery target specified\n";
    log.put_side(&Name::new("00000002.history").unwrap(), history).unwrap();
    writeln!(expected, "side 00000002.history {}", blake3::hash(history).to_hex()).unwrap();
    for (stream, from, to, reason) in
        [(1, segment * 2, segment * 4, "the slot was lost"), (2, segment * 4 + (1 << 20) + 1, u64::MAX - 2, "removed before it was sent")]
    {
        log.record_gap(&Gap { stream, from, to, reason: reason.into(), noticed_at: now, unreadable: false }).unwrap();
        writeln!(expected, "gap {stream} {from} {to} {reason}").unwrap();
    }
    std::fs::write(folder.join("expected"), expected).unwrap();
}

#[test]
fn frozen_repositories_are_sound_and_restore_to_what_they_were_made_from() {
    for (version, passphrase) in VERSIONS {
        let temp = tempfile::tempdir().unwrap();
        // A verification writes a report: not into the frozen one.
        copy(&frozen(version).join("repository"), &temp.path().join("repository"));
        let url = format!("file://{}", temp.path().join("repository").display());
        std::fs::create_dir(temp.path().join("plans")).unwrap();
        let plan = format!(
            "version = 1\n[repository.main]\nurl = \"{url}\"\npassphrase = {{ env = \"LIFEBOAT_PASSPHRASE\" }}\n\
             [source.database]\nkind = \"sqlite\"\npath = \"/nowhere.sqlite\"\n[plan.crm]\nsource = \"database\"\nrepository = \"main\"\n"
        );
        std::fs::write(temp.path().join("plans/crm.toml"), plan).unwrap();
        let lifeboat = |words: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
            command.args(words).arg("--plans").arg(temp.path().join("plans")).arg("--state").arg(temp.path().join("state"));
            command.env("LIFEBOAT_PASSPHRASE", passphrase).output().unwrap()
        };

        let verified = json(&lifeboat(&["verify", "main", "--data", "--json"]));
        assert_eq!(verified["findings"], serde_json::json!([]), "{version}");
        let drills = json(&lifeboat(&["drill", "history", "crm", "--json"]));
        assert_eq!(drills["drills"][0]["verdict"], "passed", "{version}: the signed report of its drill can be read");

        let expected = std::fs::read_to_string(frozen(version).join("expected")).unwrap();
        let expected: Vec<&str> = expected.lines().filter(|line| !line.starts_with('#')).collect();
        let mut by_snapshot: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for line in expected {
            let (snapshot, rest) = line.split_once(' ').unwrap();
            by_snapshot.entry(snapshot).or_default().push(rest.to_owned());
        }
        let listed = json(&lifeboat(&["snapshots", "crm", "--json"]));
        let listed: Vec<&str> = listed["snapshots"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
        assert_eq!(listed, by_snapshot.keys().copied().collect::<Vec<_>>(), "{version}");
        for (snapshot, mut expected) in by_snapshot {
            let target = temp.path().join(snapshot);
            let to = target.to_str().unwrap();
            json(&lifeboat(&["restore", "crm", "--from", &url, "--snapshot", snapshot, "--to", to, "--json"]));
            let mut found = told(&target);
            expected.sort();
            found.sort();
            assert_eq!(found, expected, "{version}, snapshot {snapshot}");
        }
    }
}

fn json(output: &Output) -> serde_json::Value {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let place = to.join(item.file_name());
        if item.file_type().unwrap().is_dir() {
            copy(&item.path(), &place);
        } else {
            std::fs::copy(item.path(), place).unwrap();
        }
    }
}

/// A restored snapshot in the words of `expected`.
fn told(target: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for source in ["attachments", "pages"] {
        let mut left = vec![target.join(source)];
        while let Some(path) = left.pop() {
            lines.push(told_entry(source, &target.join(source), &path));
            if path.symlink_metadata().unwrap().is_dir() {
                left.extend(path.read_dir().unwrap().map(|item| item.unwrap().path()));
            }
        }
    }
    lines.push(format!("dump - {} - -", told_file(&target.join("dump"))));
    for (table, columns, order) in [("account", "id, name, revenue, logo, note", "id"), ("contact", "account, email", "email")] {
        lines.push(format!("database {table} {} - -", told_table(&target.join("database"), table, columns, order)));
    }
    lines
}

fn told_entry(source: &str, top: &Path, path: &Path) -> String {
    let found = path.symlink_metadata().unwrap();
    let kind = found.file_type();
    // Only root may give files away, and set-id bits do not go to another owner.
    let bits = if rustix::process::geteuid().is_root() { 0o7777 } else { 0o1777 };
    let mut mode = found.permissions().mode() & bits;
    let what = if kind.is_dir() {
        "folder".to_owned()
    } else if kind.is_symlink() {
        mode = 0;
        format!("link:{}", text(path.read_link().unwrap().as_os_str().as_bytes()))
    } else if kind.is_fifo() {
        "pipe".to_owned()
    } else {
        told_file(path)
    };
    let name = text(path.strip_prefix(top).unwrap().as_os_str().as_bytes());
    let name = if name.is_empty() { ".".to_owned() } else { name };
    format!("{source} {name} {what} {mode:o} {}", found.mtime() * 1_000_000_000 + found.mtime_nsec())
}

fn told_file(path: &Path) -> String {
    let content = std::fs::read(path).unwrap();
    format!("file:{}:{}", content.len(), blake3::hash(&content).to_hex())
}

fn told_table(database: &Path, table: &str, columns: &str, order: &str) -> String {
    let database = rusqlite::Connection::open(database).unwrap();
    let mut statement = database.prepare(&format!("SELECT {columns} FROM {table} ORDER BY {order}")).unwrap();
    let count = statement.column_count();
    let mut rows = statement.query([]).unwrap();
    let (mut digest, mut number) = (blake3::Hasher::new(), 0);
    while let Some(row) = rows.next().unwrap() {
        for column in 0..count {
            let (kind, bytes) = match row.get_ref(column).unwrap() {
                ValueRef::Null => ('n', b"None".to_vec()),
                ValueRef::Integer(value) => ('i', value.to_string().into_bytes()),
                ValueRef::Real(value) => ('r', format!("{value:.6}").into_bytes()),
                ValueRef::Text(value) => ('t', value.to_vec()),
                ValueRef::Blob(value) => ('b', value.to_vec()),
            };
            digest.update(format!("{kind}{}:", bytes.len()).as_bytes());
            digest.update(&bytes);
        }
        number += 1;
    }
    format!("rows:{number}:{}", digest.finalize().to_hex())
}

fn text(bytes: &[u8]) -> String {
    let mut out = String::new();
    for &byte in bytes {
        if byte.is_ascii_graphic() && !b"\\'\"".contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "\\x{byte:02x}").unwrap();
        }
    }
    out
}
