//! `docs/format.md` is enough to read a repository: `scripts/extract.py`, which shares no code with the program, restores the same bytes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/postgres_world.rs"]
mod postgres_world;
mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::collections::BTreeSet;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lifeboat::event::Cancel;
use lifeboat::repo::{AcceptedLoss, Decision, Manifest, OpenOptions, Passphrase, Repository};
use lifeboat::source::Problem;
use lifeboat::source::postgres::backup::{Point, TablespacePlace};
use lifeboat::source::postgres::client::{Connection, Mode};
use lifeboat::source::postgres::conninfo::Settings;
use lifeboat::source::postgres::fingerprint::Position;
use lifeboat::source::postgres::logical::contents::{Contents, Database, Grant, LargeObject, Membership, Role, Sequence, Setting, Table};
use lifeboat::source::postgres::lsn::Lsn;
use lifeboat::source::postgres::wal::facts::{PieceFacts, RestorePoint};
use lifeboat::store::{Store, StoreConfig};
use postgres_world::{World, data_key, give_to_server};
use serde_json::Value;
use support::postgres::{Cluster, distribution_version};

const PASSPHRASE: &str = "a passphrase for the second reader";
const WRITER: &str = "a writer's own passphrase";

struct Story {
    temp: tempfile::TempDir,
}

impl Story {
    /// A repository with two snapshots of a database and of files.
    fn new() -> Self {
        let story = Self { temp: tempfile::tempdir().unwrap() };
        let files = story.at("files");
        std::fs::create_dir_all(files.join("folder/empty")).unwrap();
        std::fs::write(files.join("folder/note.txt"), "kept\n").unwrap();
        std::fs::hard_link(files.join("folder/note.txt"), files.join("other name")).unwrap();
        std::os::unix::fs::symlink("../away", files.join("link")).unwrap();
        std::fs::write(files.join(std::ffi::OsString::from_vec(b"bytes \xff".to_vec())), b"").unwrap();
        let mut noise = vec![0; 3 << 20];
        blake3::Hasher::new().update(b"second reader").finalize_xof().fill(&mut noise);
        std::fs::write(files.join("large"), &noise).unwrap();
        let sparse = std::fs::File::create(files.join("sparse")).unwrap();
        sparse.write_all_at(b"end", 5 << 20).unwrap();
        story.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB)");
        story.sql("INSERT INTO t WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 3000) SELECT i, randomblob(200) FROM n");
        std::fs::create_dir(story.at("pages")).unwrap();
        let pages: Vec<u8> = (0..300).flat_map(|number| page(number, number % 3 != 0)).chain(noise[..20_000].iter().copied()).collect();
        std::fs::write(story.at("pages/16384"), pages).unwrap();
        std::fs::create_dir(story.at("plans")).unwrap();
        let here = story.temp.path().display();
        let plan = format!(
            "version = 1\n[repository.main]\nurl = \"file://{here}/repository\"\npassphrase = {{ env = \"LIFEBOAT_PASSPHRASE\" }}\n\
             [source.database]\nkind = \"sqlite\"\npath = \"{here}/crm.sqlite\"\n[source.files]\nkind = \"files\"\npath = \"{here}/files\"\n\
             [source.pages]\nkind = \"files\"\npath = \"{here}/pages\"\npage_size = 8192\n\
             [source.entries]\nkind = \"command\"\ndump = [\"echo\", \"kept\"]\n\
             [plan.crm]\nsources = [\"database\", \"files\", \"pages\", \"entries\"]\nrepository = \"main\"\nkeep = {{ last = 1 }}\n"
        );
        std::fs::write(story.at("plans/crm.toml"), plan).unwrap();
        story.lifeboat(&["repo", "init", "main"]);
        story.lifeboat(&["key", "add", "main", "--label", "host", "--role", "writer"]);
        story.lifeboat(&["backup", "crm"]);
        story.sql("UPDATE t SET x = randomblob(200) WHERE id % 100 = 0");
        std::fs::File::options().write(true).open(files.join("large")).unwrap().write_all_at(b"changed", 1 << 20).unwrap();
        story.lifeboat(&["backup", "crm"]);
        story
    }

    fn at(&self, path: &str) -> PathBuf {
        self.temp.path().join(path)
    }

    fn sql(&self, statement: &str) {
        rusqlite::Connection::open(self.at("crm.sqlite")).unwrap().execute_batch(statement).unwrap();
    }

    fn lifeboat(&self, words: &[&str]) -> serde_json::Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.args(words).args(["--json", "--quiet", "--plans"]).arg(self.at("plans")).arg("--state").arg(self.at("state"));
        let output = command.env("LIFEBOAT_PASSPHRASE", PASSPHRASE).env("LIFEBOAT_NEW_PASSPHRASE", WRITER).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn extract(&self, passphrase: &str, words: &[&str]) -> Output {
        extract(&self.at("repository"), passphrase, words)
    }
}

/// A page as PostgreSQL has it, of a heap or of an index, with dead and repeated line pointers; the rows say something that can be compressed.
#[expect(clippy::cast_possible_truncation, reason = "places in a page are small")]
fn page(block: u32, heap: bool) -> Vec<u8> {
    let mut page = vec![0_u8; 8192];
    let special = if heap { 8192 } else { 8176 };
    let mut upper = special;
    let rows = 40 + block as usize % 30;
    for row in 0..rows {
        let text = format!("customer {} of block {block}", row * 7);
        let len = 24 + text.len();
        upper -= len.next_multiple_of(8);
        let state = if row % 11 == 5 { 3 } else { 1 };
        let offset = if row % 13 == 12 { special - 64 } else { upper };
        page[24 + 4 * row..][..4].copy_from_slice(&(offset as u32 | (state << 15) | ((len as u32) << 17)).to_le_bytes());
        let place = upper + if heap { 12 } else { 0 };
        page[place..place + 2].copy_from_slice(&((block >> 16) as u16).to_le_bytes());
        page[place + 2..place + 4].copy_from_slice(&(block as u16).to_le_bytes());
        page[place + 4..place + 6].copy_from_slice(&(row as u16 + 1).to_le_bytes());
        page[upper + 24..upper + len].copy_from_slice(text.as_bytes());
    }
    for (at, value) in [(12, 24 + 4 * rows), (14, upper), (16, special), (18, 8192 | 4)] {
        page[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
    }
    page
}

fn extract(repository: &Path, passphrase: &str, words: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/extract.py");
    Command::new(support::tool("reader-python"))
        .arg(script)
        .arg(repository)
        .args(words)
        .env("LIFEBOAT_PASSPHRASE", passphrase)
        .output()
        .unwrap()
}

/// Every entry below a folder: path, kind, mode, time, content.
fn tree(top: &Path) -> Vec<String> {
    let (mut found, mut left) = (Vec::new(), vec![top.to_owned()]);
    while let Some(path) = left.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let content = if metadata.is_dir() {
            left.extend(path.read_dir().unwrap().map(|item| item.unwrap().path()));
            "folder".to_owned()
        } else if metadata.is_symlink() {
            format!("link {}", path.read_link().unwrap().display())
        } else {
            format!("{} bytes {}", metadata.len(), blake3::hash(&std::fs::read(&path).unwrap()))
        };
        let name = path.strip_prefix(top).unwrap().as_os_str().as_bytes().escape_ascii().to_string();
        found.push(format!("{name} {:o} {}.{} {content}", metadata.mode(), metadata.mtime(), metadata.mtime_nsec()));
    }
    found.sort();
    found
}

#[test]
fn the_second_reader_restores_what_the_program_restores() {
    let story = Story::new();
    let listed = story.extract(PASSPHRASE, &["list"]);
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let snapshots = story.lifeboat(&["snapshots", "crm"]);
    let ids: Vec<&str> = snapshots["snapshots"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.lines().map(|line| &line[..26]).collect::<Vec<_>>(), ids);
    for (number, id) in ids.into_iter().enumerate() {
        let (theirs, ours) = (story.at(&format!("theirs-{number}")), story.at(&format!("ours-{number}")));
        let output = story.extract(PASSPHRASE, &["restore", id, theirs.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        story.lifeboat(&["restore", "crm", "--snapshot", id, "--to", ours.to_str().unwrap()]);
        assert_eq!(tree(&theirs.join("files")), tree(&ours.join("files")));
        assert!(std::fs::read(theirs.join("database/crm.sqlite")).unwrap() == std::fs::read(ours.join("database")).unwrap());
        assert_eq!(std::fs::read_to_string(theirs.join("entries/output")).unwrap(), "kept\n");
    }
    let kinds: Vec<String> = manifests(&story.at("repository"), PASSPHRASE).iter().flat_map(assert_sources_told).collect();
    assert_eq!(kinds, ["sqlite", "files", "files", "command", "sqlite", "files", "files", "command"]);
}

#[test]
fn the_second_reader_follows_rotations_shares_and_keys_of_plans() {
    let story = Story::new();
    let generate = |kind: &str, name: &str| story.lifeboat(&["key", "generate", "--kind", kind, "--out", story.at(name).to_str().unwrap()]);
    generate("key-file", "file.key");
    let recipient = generate("recipient", "recipient.key")["recipient"].as_str().unwrap().to_owned();
    story.lifeboat(&["key", "add", "main", "--label", "file", "--role", "reader", "--key-file", story.at("file.key").to_str().unwrap()]);
    story.lifeboat(&["key", "rotate", "main", "--new-ids"]);
    story.lifeboat(&["backup", "crm"]);
    story.lifeboat(&["key", "add", "main", "--label", "escrow", "--role", "reader", "--recipient", &recipient]);
    let shares = story.lifeboat(&["key", "export", "main", "--shares", "3-of-4"]);
    story.lifeboat(&["key", "own", "main", "--plan", "crm"]);
    story.lifeboat(&["backup", "crm"]);
    story.lifeboat(&["key", "rotate", "main"]);
    story.sql("UPDATE t SET x = randomblob(200) WHERE id % 50 = 0");
    story.lifeboat(&["backup", "crm"]);
    let share = |at: usize| shares["shares"][at].as_str().unwrap();
    let read = |name: &str| std::fs::read_to_string(story.at(name)).unwrap();
    let keys = [PASSPHRASE.to_owned(), read("file.key"), read("recipient.key"), [share(3), share(0), share(2)].join("\n")];
    let snapshots = story.lifeboat(&["snapshots", "crm"]);
    let ids: Vec<&str> = snapshots["snapshots"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 5);
    for (number, id) in ids.iter().enumerate() {
        let (theirs, ours) = (story.at(&format!("theirs-{number}")), story.at(&format!("ours-{number}")));
        let output = story.extract(&keys[number % keys.len()], &["restore", id, theirs.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        story.lifeboat(&["restore", "crm", "--snapshot", id, "--to", ours.to_str().unwrap()]);
        assert_eq!(tree(&theirs.join("files")), tree(&ours.join("files")));
        assert!(std::fs::read(theirs.join("database/crm.sqlite")).unwrap() == std::fs::read(ours.join("database")).unwrap());
    }
    let few = story.extract(&[share(3), share(0)].join("\n"), &["list"]);
    assert!(few.status.code() == Some(1) && String::from_utf8_lossy(&few.stderr).contains("3 shares are needed"));
    story.lifeboat(&["key", "erase", "main", "--plan", "crm", "--confirm", "crm"]);
    let gone = story.extract(PASSPHRASE, &["restore", ids[4], story.at("gone").to_str().unwrap()]);
    assert!(gone.status.code() == Some(1) && String::from_utf8_lossy(&gone.stderr).contains("was destroyed"));
    assert!(story.extract(PASSPHRASE, &["restore", ids[0], story.at("first").to_str().unwrap()]).status.success());
}

#[test]
fn the_second_reader_follows_what_was_removed_and_moved() {
    let story = Story::new();
    let mut noise = vec![0; 2 << 20];
    blake3::Hasher::new().update(b"something else").finalize_xof().fill(&mut noise);
    std::fs::File::options().write(true).open(story.at("files/large")).unwrap().write_all_at(&noise, 0).unwrap();
    story.sql("UPDATE t SET x = randomblob(200) WHERE id % 3 > 0");
    let last = story.lifeboat(&["backup", "crm"]);
    let pruned = story.lifeboat(&["prune", "crm"]);
    assert!(pruned["collection"]["packs_rewritten"].as_u64().unwrap() > 0, "{pruned}");
    let listed = String::from_utf8(story.extract(PASSPHRASE, &["list"]).stdout).unwrap();
    assert_eq!(listed.lines().map(|line| &line[..26]).collect::<Vec<_>>(), [last["snapshot"].as_str().unwrap()]);
    let (theirs, ours) = (story.at("theirs"), story.at("ours"));
    let output = story.extract(PASSPHRASE, &["restore", last["snapshot"].as_str().unwrap(), theirs.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    story.lifeboat(&["restore", "crm", "--to", ours.to_str().unwrap()]);
    assert_eq!(tree(&theirs.join("files")), tree(&ours.join("files")));
    assert!(std::fs::read(theirs.join("database/crm.sqlite")).unwrap() == std::fs::read(ours.join("database")).unwrap());

    // The same from a state of the ledger, in volumes: also where the manifests of what was removed are there again.
    let removed = String::from_utf8(story.extract(PASSPHRASE, &["list"]).stdout).unwrap();
    let manifests = |story: &Story| {
        let chain = story.at("repository/snapshots").read_dir().unwrap().next().unwrap().unwrap().path();
        chain.read_dir().unwrap().map(|item| item.unwrap().path()).collect::<Vec<_>>()
    };
    let before: Vec<(PathBuf, Vec<u8>)> = manifests(&story).into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    story.lifeboat(&["backup", "crm"]);
    story.lifeboat(&["prune", "crm"]);
    let (repository, _runtime) = open(&story.at("repository"), PASSPHRASE);
    (0..64).for_each(|_| repository.pass_in_ledger("so that there is a state", chrono::Utc::now()).unwrap());
    assert_eq!(manifests(&story).len(), 1);
    before.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    let list = || {
        let listed = story.extract(PASSPHRASE, &["list"]);
        (String::from_utf8(listed.stdout).unwrap(), String::from_utf8(listed.stderr).unwrap())
    };
    let listed = list();
    assert!(listed.0.lines().count() == 1 && !removed.contains(&listed.0[..26]), "{listed:?}");
    // And from one of a ledger with an accepted loss; files of others are passed over.
    let loss = AcceptedLoss {
        snapshot: listed.0[..26].parse().unwrap(),
        objects: [format!("packs/00/{}", "00".repeat(32))].into(),
        reason: "a disk".into(),
        by: "t".into(),
        accepted_at: chrono::Utc::now(),
    };
    repository.amend_ledger(chrono::Utc::now(), |_| Ok(Some(Decision::Accept { losses: vec![loss.clone()] }))).unwrap();
    (0..64).for_each(|_| repository.pass_in_ledger("so that there is a state", chrono::Utc::now()).unwrap());
    assert!(story.at("repository/retention").read_dir().unwrap().count() < 70, "a state was written, and the entry is gone");
    let mut folders = vec![story.at("repository")];
    while let Some(folder) = folders.pop() {
        folders.extend(folder.read_dir().unwrap().map(|item| item.unwrap().path()).filter(|path| path.is_dir()));
        std::fs::write(folder.join("Thumbs.db"), "not an object").unwrap();
    }
    assert_eq!(list(), listed);
    let volume = story
        .at("repository/retention/ids")
        .read_dir()
        .unwrap()
        .map(|item| item.unwrap().path())
        .find(|path| !path.ends_with("Thumbs.db"))
        .unwrap();
    // A damaged one is told.
    let whole = std::fs::read(&volume).unwrap();
    std::fs::write(&volume, &whole[..whole.len() - 1]).unwrap();
    let output = story.extract(PASSPHRASE, &["list"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("the retention ledger: "), "{output:?}");
}

/// As an older program wrote it.
#[test]
fn the_second_reader_reads_an_old_ledger() {
    let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/frozen/v1-ledger");
    let output = extract(&frozen.join("repository"), "frozen format version 1 with a ledger", &["list"]);
    let expected = std::fs::read_to_string(frozen.join("expected")).unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    let there: Vec<&str> = expected.lines().filter_map(|line| line.strip_prefix("there ")).collect();
    assert_eq!(listed.lines().map(|line| &line[..26]).collect::<Vec<_>>(), there, "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_second_reader_notices_what_is_wrong() {
    let story = Story::new();
    let refused = |passphrase: &str, words: &[&str], why: &str| {
        let output = story.extract(passphrase, words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(why), "{said}");
    };
    refused("another passphrase", &["list"], "no key slot opens");
    refused(WRITER, &["list"], "opens a writer key slot");
    let to = story.at("to");
    let restore = ["restore", "0", to.to_str().unwrap()];
    refused(PASSPHRASE, &restore, "2 snapshots begin with");

    // The largest pack holds the large file, near its front.
    let mut packs = Vec::new();
    for folder in story.at("repository/packs").read_dir().unwrap() {
        packs.extend(folder.unwrap().path().read_dir().unwrap().map(|pack| pack.unwrap().path()));
    }
    let largest = packs.into_iter().max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&largest, bytes).unwrap();
    let snapshots = story.lifeboat(&["snapshots", "crm"]);
    let id = snapshots["snapshots"][0]["id"].as_str().unwrap();
    refused(PASSPHRASE, &["restore", id, to.to_str().unwrap()], "the seal is broken");
}

#[test]
fn the_second_reader_reads_the_frozen_repositories() {
    let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/frozen/v1");
    let temp = tempfile::tempdir().unwrap();
    let expected = std::fs::read_to_string(frozen.join("expected")).unwrap();
    for id in expected.lines().filter_map(|line| line.strip_prefix("# ")) {
        let to = temp.path().join(id);
        let output = extract(&frozen.join("repository"), "frozen format version 1", &["restore", id, to.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let base = std::fs::read(to.join("pages/base.dat")).unwrap();
        let told = format!("{id} pages base.dat file:{}:{} ", base.len(), blake3::hash(&base));
        assert!(expected.contains(&told), "{told}");
    }
}

#[test]
fn the_second_reader_reads_the_frozen_logs() {
    let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/frozen/v1-logs");
    let (repository, passphrase) = (frozen.join("repository"), "frozen format version 1 with logs");
    let expected = std::fs::read_to_string(frozen.join("expected")).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let to = temp.path().join("to");
    let output = extract(&repository, passphrase, &["log", "crm/database", to.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("gap: stream 1") && said.contains("extracted 6 pieces and 1 side files"), "{said}");
    let hash = |name: String| blake3::hash(&std::fs::read(to.join(name)).unwrap()).to_hex();
    for line in expected.lines() {
        let words: Vec<&str> = line.splitn(6, ' ').collect();
        match words[..] {
            ["piece", stream, start, end, content, _] => {
                let number = |text: &str| text.parse::<u64>().unwrap();
                let name = format!("{:016x}-{:016x}-{:016x}", number(stream), number(start), number(end));
                assert_eq!(hash(name).as_str(), content, "{line}");
            }
            ["side", name, content] => assert_eq!(hash(format!("history/{name}")).as_str(), content, "{line}"),
            _ => assert_eq!(words[0], "gap", "{line}"),
        }
    }
    let listed = extract(&repository, passphrase, &["logs"]);
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    assert_eq!(String::from_utf8(listed.stdout).unwrap().lines().filter(|line| line.starts_with("crm/database ")).count(), 6);
    let refused = extract(&repository, passphrase, &["log", "crm/other", temp.path().join("none").to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
}

/// A repository in a folder. The runtime must stay as long as it is used.
fn open(folder: &Path, passphrase: &str) -> (Repository, tokio::runtime::Runtime) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let store = Store::open(&StoreConfig::at(format!("file://{}", folder.display()))).unwrap();
    let repository = Repository::open(store, runtime.handle().clone(), &Passphrase::new(passphrase), &OpenOptions::default());
    (repository.unwrap(), runtime)
}

fn manifests(folder: &Path, passphrase: &str) -> Vec<Manifest> {
    let (repository, _runtime) = open(folder, passphrase);
    repository.manifests(None).unwrap()
}

const PAGE: &str = include_str!("../docs/format.md");
const MANIFESTS: &str = "## Manifests";
const PHYSICAL: &str = "### A data folder: `postgres`";
const LOGICAL: &str = "### Databases as rows: `postgres-logical`";
const LOG: &str = "### The log: `postgres`";

/// What the page says below a heading, up to the next one.
fn section(heading: &str) -> &'static str {
    let (_, rest) = PAGE.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("the page has no {heading}"));
    let end = rest.find("\n## ").into_iter().chain(rest.find("\n### ")).min();
    &rest[..end.unwrap_or(rest.len())]
}

/// The names of all fields, those of objects in it too.
fn fields(value: &Value) -> BTreeSet<String> {
    match value {
        Value::Object(object) => object.iter().flat_map(|(name, value)| fields(value).into_iter().chain([name.clone()])).collect(),
        Value::Array(items) => items.iter().flat_map(fields).collect(),
        _ => BTreeSet::new(),
    }
}

/// Every field is named in a section: as one, or within an object.
fn assert_told(heading: &str, names: &BTreeSet<String>) {
    let text = section(heading);
    let untold: Vec<&String> =
        names.iter().filter(|name| !text.contains(&format!("`{name}`")) && !text.contains(&format!("\"{name}\""))).collect();
    assert!(!names.is_empty() && untold.is_empty(), "{heading} says nothing of {untold:?}");
}

/// The kinds of a snapshot's sources. Each is in the list of kinds and in both tables, and the page names all that its account says.
fn assert_sources_told(manifest: &Manifest) -> Vec<String> {
    let text = section(MANIFESTS);
    let told = |record: &lifeboat::repo::SourceRecord| {
        let kind = &record.kind;
        let list = text.lines().find(|line| line.starts_with("| `name`, `kind` |")).unwrap();
        let rows = |table: &str| {
            let (_, rest) = text.split_once(table).unwrap();
            rest.lines().take_while(|line| line.starts_with('|')).filter(|line| line.contains(&format!("`{kind}`"))).count()
        };
        assert!(list.contains(&format!("`{kind}`")), "{kind} is not in the list of kinds");
        assert_eq!((rows("| kind | its tree | a restore yields |\n"), rows("| kind | fields |\n")), (1, 1), "{kind}");
        let mut account = record.finish.clone();
        if let Some(databases) = account.pointer_mut("/consistency/databases").and_then(Value::as_object_mut) {
            // By name.
            let all: Value = databases.values().cloned().collect();
            account["consistency"]["databases"] = all;
        }
        let heading = match kind.as_str() {
            "postgres" => PHYSICAL,
            "postgres-logical" => LOGICAL,
            _ => MANIFESTS,
        };
        assert_told(heading, &fields(&account["consistency"]));
        assert_told(MANIFESTS, &["consistency", "fingerprints", "problems"].map(str::to_owned).into());
        kind.clone()
    };
    manifest.sources.iter().map(told).collect()
}

/// Also those that are there only now and then. Whoever adds a field adds it here, and to the page.
#[test]
fn the_page_names_every_field_of_postgresql() {
    let told = |heading: &str, value: Result<Value, serde_json::Error>| assert_told(heading, &fields(&value.unwrap()));
    let (text, some) = (|| "x".to_owned(), || Some("x".to_owned()));
    let point = Point {
        system_identifier: text(),
        server_version: 180_001,
        timeline: 2,
        start_timeline: Some(1),
        start: Lsn(1),
        stop: Lsn(2),
        position: Position { restore_point: some(), lsn: Lsn(3) },
        superuser: text(),
        preload: vec![text()],
        data_directory: Some("/".into()),
        tablespaces: vec![TablespacePlace { oid: 1, location: some() }],
        left_out: vec![Problem { object: text(), kind: text(), message: text() }],
    };
    let names = fields(&serde_json::to_value(point).unwrap());
    // As `problems` of manifests, which the page says.
    let of_problems: BTreeSet<String> = ["object", "kind", "message"].map(str::to_owned).into();
    assert_told(MANIFESTS, &of_problems);
    assert_told(PHYSICAL, &names.difference(&of_problems).cloned().collect());
    let time = chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap();
    let facts = PieceFacts {
        system_identifier: text(),
        timeline: 1,
        segment_bytes: 1 << 24,
        first_commit: Some(time),
        last_commit: Some(time),
        restore_points: vec![RestorePoint { name: text(), lsn: Lsn(1), time }],
        server_clock: Some(time),
        valid_to: Lsn(1),
    };
    told(LOG, serde_json::to_value(facts));
    let setting = || Setting { role: some(), name: text(), value: text() };
    let grants = || Some(vec![Grant { grantee: some(), privilege: text(), grantable: true }]);
    let contents = Contents {
        format: 3,
        server_version: 180_001,
        dump_major: 18,
        superuser: text(),
        roles: vec![Role {
            name: text(),
            superuser: true,
            inherit: true,
            create_role: true,
            create_database: true,
            login: true,
            replication: true,
            bypass_row_security: true,
            connection_limit: 1,
            valid_until: some(),
            comment: some(),
            password: some(),
        }],
        memberships: vec![Membership { role: text(), member: text(), admin: true, inherit: Some(true), set: Some(true) }],
        settings: vec![setting()],
        databases: vec![Database {
            name: text(),
            folder: text(),
            owner: text(),
            encoding: text(),
            rows_encoding: some(),
            collate: text(),
            ctype: text(),
            provider: text(),
            locale: some(),
            icu_rules: some(),
            connection_limit: 1,
            comment: some(),
            tablespace: text(),
            grants: grants(),
            settings: vec![setting()],
            snapshot: text(),
            lsn: some(),
            time: text(),
            tables: vec![Table {
                schema: text(),
                name: text(),
                path: text(),
                columns: vec![text()],
                extension_condition: some(),
                root: Some((text(), text())),
                rows: 1,
                bytes: 1,
                digest: text(),
            }],
            sequences: vec![Sequence { schema: text(), name: text(), value: 1, is_called: true }],
            large_objects: vec![LargeObject {
                oid: 1,
                path: text(),
                owner: text(),
                grants: grants(),
                comment: some(),
                bytes: 1,
                digest: text(),
            }],
            materialized_views: vec![(text(), text())],
            lc_monetary: some(),
        }],
    };
    told(LOGICAL, serde_json::to_value(contents));
}

/// What is restored by the second reader, for the server's user. Returns the folder that it is in.
fn taken_out(world: &World, name: &str) -> PathBuf {
    let to = world.path(name);
    let id = world.json(&["snapshots", "crm"], 0)["snapshots"][0]["id"].as_str().unwrap().to_owned();
    let output = extract(&world.path("repository"), postgres_world::PASSPHRASE, &["restore", &id, to.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o711)).unwrap();
    to
}

fn append(path: &Path, lines: &str) {
    use std::io::Write as _;
    std::fs::File::options().append(true).open(path).unwrap().write_all(format!("\n{lines}").as_bytes()).unwrap();
}

/// By the page alone: the tree and the log by the second reader, and then PostgreSQL's own programs.
#[test]
fn a_stranger_starts_a_data_folder_and_replays_its_log() {
    let cluster = Cluster::start(distribution_version());
    let world = World::new(&cluster, "db", &format!("{}\nlog = \"stream\"", data_key(&cluster, true)));
    let space = cluster.folder().join("space");
    std::fs::create_dir(&space).unwrap();
    give_to_server(&space);
    cluster.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
    cluster.sql("CREATE TABLE ledger(id int) TABLESPACE space; INSERT INTO ledger SELECT generate_series(1, 100)");
    let stream = world.stream();
    world.json(&["backup", "crm"], 0);
    cluster.sql("INSERT INTO ledger SELECT generate_series(101, 200)");
    let moment: chrono::DateTime<chrono::Utc> = cluster.value(postgres_world::NOW).parse().unwrap();
    cluster.sql("INSERT INTO ledger SELECT generate_series(201, 300)");
    let end = cluster.value(postgres_world::NOW).parse().unwrap();
    world.wait_for_log(end);
    stream.stop();

    let repository = world.path("repository");
    assert_eq!(manifests(&repository, postgres_world::PASSPHRASE).iter().flat_map(assert_sources_told).collect::<Vec<_>>(), ["postgres"]);
    // Its log as files: those that the program makes.
    let wal = world.path("wal");
    let output = extract(&repository, postgres_world::PASSPHRASE, &["wal", "crm/db", wal.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let ours = world.json(&["repo", "extract", "main", "--to", world.path("ours").to_str().unwrap()], 0);
    let ours = PathBuf::from(ours["logs"][0]["folder"].as_str().unwrap());
    let content = |folder: &Path| {
        let files = folder.read_dir().unwrap().map(|item| item.unwrap().path());
        files
            .map(|path| (path.file_name().unwrap().to_owned(), std::fs::read(&path).unwrap()))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let (theirs, ours) = (content(&wal), content(&ours));
    assert!(theirs == ours && !ours.is_empty(), "{:?} {:?}", theirs.keys(), ours.keys());
    let logs = String::from_utf8(extract(&repository, postgres_world::PASSPHRASE, &["logs"]).stdout).unwrap();
    for line in logs.lines() {
        assert_told(LOG, &fields(&serde_json::from_str(line.splitn(5, ' ').last().unwrap()).unwrap()));
    }
    // A server asks for the last one as for the others.
    for path in wal.read_dir().unwrap().map(|item| item.unwrap().path()) {
        let name = path.to_str().unwrap().trim_end_matches(".partial").to_owned();
        std::fs::rename(&path, &name).unwrap();
        give_to_server(Path::new(&name));
    }
    give_to_server(&wal);

    // Steps 2 to 4, for a moment of the tree, or of the log.
    let prepared = |name: &str, lines: &dyn Fn(&Value) -> String| {
        let to = taken_out(&world, name);
        let data = to.join("db");
        let point: Value = serde_json::from_slice(&std::fs::read(data.join("lifeboat_conf/recovery-point.json")).unwrap()).unwrap();
        assert_told(PHYSICAL, &fields(&point));
        std::fs::remove_file(data.join("tablespace_map")).unwrap();
        let oid = point["tablespaces"][0]["oid"].to_string();
        let place = to.join("space");
        std::fs::rename(data.join("pg_tblspc").join(&oid), &place).unwrap();
        std::os::unix::fs::symlink(&place, data.join("pg_tblspc").join(&oid)).unwrap();
        append(&data.join("postgresql.conf"), "archive_mode = off\nmax_logical_replication_workers = 0\nsynchronous_standby_names = ''\n");
        append(&data.join("postgresql.auto.conf"), &lines(&point));
        std::fs::write(data.join("recovery.signal"), "").unwrap();
        give_to_server(&data.join("recovery.signal"));
        data
    };
    let own = prepared("own", &|point| {
        let name = point["position"]["restore_point"].as_str().unwrap();
        format!(
            "restore_command = 'false'\nrecovery_target_name = '{name}'\nrecovery_target_timeline = 'current'\nrecovery_target_action = 'promote'\n"
        )
    });
    let count = "SELECT count(*) || '/' || max(id) FROM ledger";
    assert_eq!(world.start("own", &own).value(count), "100/100");
    let through_the_log = |target: &str| {
        format!(
            "restore_command = 'cp {}/%f %p'\nrecovery_target_timeline = 'latest'\n{target}recovery_target_action = 'promote'\n",
            wal.display()
        )
    };
    let at = prepared("at", &|_| through_the_log(&format!("recovery_target_time = '{}'\n", moment.format("%Y-%m-%d %H:%M:%S%.6f+00"))));
    assert_eq!(world.start("at", &at).value(count), "200/200");
    let last = prepared("last", &|_| through_the_log(""));
    assert_eq!(world.start("last", &last).value(count), "300/300");
}

/// What is hard to bring back of a database.
const SHOP: &str = "
    CREATE TABLE customer(id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text, born date, twice int GENERATED ALWAYS AS (length(name)) STORED);
    INSERT INTO customer(name, born) SELECT 'customer ' || n, date '1970-01-01' + n FROM generate_series(1, 500) n;
    CREATE TABLE orders(id bigserial PRIMARY KEY, customer int REFERENCES customer, paid interval, price money);
    INSERT INTO orders(customer, paid, price) SELECT n % 500 + 1, n * interval '-1 day 2 hours', n FROM generate_series(1, 1000) n;
    CREATE SCHEMA \"Sché.ma\"; CREATE TABLE \"Sché.ma\".\"%/.. \"\"q\"\"\"(\"a \"\"b\" text, x xml);
    INSERT INTO \"Sché.ma\".\"%/.. \"\"q\"\"\" VALUES (E'tab\\there\\nline\\\\back', '<a/>text'), ('\\N', NULL), (NULL, ''), ('\\.', NULL), ('', '<b/>');
    CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE TABLE hashed(m mood) PARTITION BY HASH (m);
    CREATE TABLE hashed_0 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    INSERT INTO hashed VALUES ('good'), ('bad'), ('bad'); CREATE TABLE nothing(); INSERT INTO nothing DEFAULT VALUES;
    CREATE MATERIALIZED VIEW zz AS SELECT customer, count(*) AS orders FROM orders GROUP BY 1; CREATE MATERIALIZED VIEW aa AS SELECT max(orders) AS most FROM zz;
    CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.name := 'touched'; RETURN NEW; END $$;
    CREATE TRIGGER touch BEFORE INSERT ON customer FOR EACH ROW EXECUTE FUNCTION touch();
    SELECT lo_from_bytea(4711, '\\x00ff5c0a'); SELECT lo_create(4712); ALTER TABLE orders OWNER TO clerk";

const SHOP_QUESTIONS: [&str; 7] = [
    "SELECT count(*) || md5(string_agg(c::text, '' ORDER BY id)) FROM customer c",
    "SELECT count(*) || md5(string_agg(o::text, '' ORDER BY id)) FROM orders o",
    "SELECT md5(string_agg(q::text, '' ORDER BY q::text)) FROM \"Sché.ma\".\"%/.. \"\"q\"\"\" q",
    "SELECT string_agg(m::text, ',' ORDER BY m) || (SELECT count(*) FROM nothing) FROM hashed",
    "SELECT most || '/' || (SELECT count(*) FROM zz) FROM aa",
    "SELECT encode(lo_get(4711), 'hex') || length(lo_get(4712)) || (SELECT relowner::regrole FROM pg_class WHERE relname = 'orders')",
    "SELECT nextval(pg_get_serial_sequence('orders', 'id')) || '/' || nextval(pg_get_serial_sequence('customer', 'id'))",
];

/// By the page alone: the files by the second reader, and then `pg_restore` and `psql`.
#[test]
fn a_stranger_loads_databases_as_rows() {
    let cluster = Cluster::start(distribution_version());
    let world = World::new(&cluster, "db", "method = \"logical\"\ndatabases = [\"Shop é\"]");
    let session = |cluster: &Cluster| {
        let text = format!("host={} port={} user=postgres dbname='Shop é'", cluster.folder().display(), cluster.port);
        Connection::connect(&Settings::parse(&text).unwrap(), Mode::Sql { database: None }, &Cancel::default()).unwrap()
    };
    cluster.sql("CREATE ROLE clerk LOGIN");
    cluster.sql("CREATE DATABASE \"Shop é\"");
    session(&cluster).execute(SHOP).unwrap();
    world.json(&["backup", "crm"], 0);
    let told = manifests(&world.path("repository"), postgres_world::PASSPHRASE);
    assert_eq!(told.iter().flat_map(assert_sources_told).collect::<Vec<_>>(), ["postgres-logical"]);

    let tree = taken_out(&world, "taken").join("db");
    for path in workspace::files(&tree).into_iter().flat_map(|path| path.ancestors().map(Path::to_owned).collect::<Vec<_>>()) {
        if path.starts_with(&tree) {
            give_to_server(&path);
        }
    }
    let contents: Value = serde_json::from_slice(&std::fs::read(tree.join("manifest.json")).unwrap()).unwrap();
    assert_told(LOGICAL, &fields(&contents));
    let database = &contents["databases"][0];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let list = |value: &Value| value.as_array().unwrap().clone();
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let qualified = |one: &Value| format!("{}.{}", quoted(&text(&one["schema"])), quoted(&text(&one["name"])));
    let target = Cluster::start(cluster.version);
    let psql = |database: &str, commands: &[String]| {
        let place = [format!("--host={}", target.folder().display()), format!("--port={}", target.port), "--username=postgres".into()];
        let all = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"].map(str::to_owned).into_iter().chain(place);
        let commands = commands.iter().map(|command| format!("--command={command}"));
        target.run("psql", all.chain([format!("--dbname={database}")]).chain(commands));
    };
    let definitions = |section: &str| {
        let dump = tree.join(text(&database["folder"])).join(format!("{section}.dump"));
        let place = [format!("--host={}", target.folder().display()), format!("--port={}", target.port), "--username=postgres".into()];
        let all = ["--no-tablespaces", "--exit-on-error", "--dbname=Shop é"].map(str::to_owned).into_iter().chain(place);
        target.run("pg_restore", all.chain([dump.display().to_string()]));
    };
    for role in list(&contents["roles"]) {
        if role["name"] != contents["superuser"] {
            psql("postgres", &[format!("CREATE ROLE {}", quoted(&text(&role["name"])))]);
        }
    }
    assert_eq!(database["provider"], "c");
    psql(
        "postgres",
        &[format!(
            "CREATE DATABASE {} TEMPLATE template0 ENCODING '{}' LC_COLLATE '{}' LC_CTYPE '{}'",
            quoted(&text(&database["name"])),
            text(&database["encoding"]),
            text(&database["collate"]),
            text(&database["ctype"])
        )],
    );
    definitions("pre-data");
    // As it stands on the page.
    let (_, rest) = section("## Fingerprints").split_once("```sql\n").unwrap();
    let settings = rest.split_once("```").unwrap().0.to_owned();
    let tables = list(&database["tables"]);
    assert!(tables.iter().any(|table| table["root"].is_array()) && tables.iter().any(|table| list(&table["columns"]).is_empty()));
    for table in &tables {
        let columns: Vec<String> = list(&table["columns"]).iter().map(|name| quoted(&text(name))).collect();
        let columns = if columns.is_empty() { String::new() } else { format!(" ({})", columns.join(", ")) };
        let name = match table["root"].as_array() {
            Some(root) => format!("{}.{}", quoted(&text(&root[0])), quoted(&text(&root[1]))),
            None => qualified(table),
        };
        let file = tree.join(text(&table["path"]));
        assert_eq!(file.metadata().unwrap().len(), table["bytes"].as_u64().unwrap());
        let lines = std::fs::read(&file).unwrap().split(|byte| *byte == b'\n').count() as u64 - 1;
        assert_eq!(lines, table["rows"].as_u64().unwrap(), "{name}");
        let copy = format!("\\copy {name}{columns} FROM '{}' (ENCODING 'UTF8')", file.display());
        let session = [settings.clone(), "SET xmloption = content; SET session_replication_role = replica".into(), copy];
        psql("Shop é", &session);
    }
    for object in list(&database["large_objects"]) {
        let bytes = std::fs::read(tree.join(text(&object["path"]))).unwrap();
        let put = format!("SELECT lo_put({}, 0, '\\x{}')", object["oid"], hex::encode(bytes));
        psql("Shop é", &[format!("SELECT lo_create({})", object["oid"]), put]);
    }
    definitions("post-data");
    // `aa` reads `zz`.
    let mut views: Vec<String> = list(&database["materialized_views"]).iter().map(|view| text(&view[1])).collect();
    views.sort_by(|one, other| other.cmp(one));
    assert_eq!(views, ["zz", "aa"]);
    psql("Shop é", &views.iter().map(|view| format!("REFRESH MATERIALIZED VIEW {view}")).collect::<Vec<_>>());
    for sequence in list(&database["sequences"]) {
        let (value, is_called) = (&sequence["value"], &sequence["is_called"]);
        psql("Shop é", &[format!("SELECT setval('{}', {value}, {is_called})", qualified(&sequence))]);
    }
    let (mut source, mut loaded) = (session(&cluster), session(&target));
    for question in SHOP_QUESTIONS {
        assert_eq!(loaded.value(question).unwrap(), source.value(question).unwrap(), "{question}");
    }
}
