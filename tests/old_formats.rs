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
    assert_eq!(there, VERSIONS.map(|(version, _)| version));
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
