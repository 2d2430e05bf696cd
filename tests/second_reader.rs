//! `docs/format.md` is enough to read a repository: `scripts/extract.py`, which shares no code with the program, restores the same bytes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
             [plan.crm]\nsources = [\"database\", \"files\", \"pages\"]\nrepository = \"main\"\nkeep = {{ last = 1 }}\n"
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
    }
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
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let store = lifeboat::store::StoreConfig::at(format!("file://{}", story.at("repository").display()));
    let store = lifeboat::store::Store::open(&store).unwrap();
    let passphrase = lifeboat::repo::Passphrase::new(PASSPHRASE);
    let repository =
        lifeboat::repo::Repository::open(store, runtime.handle().clone(), &passphrase, &lifeboat::repo::OpenOptions::default());
    let repository = repository.unwrap();
    (0..64).for_each(|_| repository.pass_in_ledger("so that there is a state", chrono::Utc::now()).unwrap());
    let volume = story.at("repository/retention/ids").read_dir().unwrap().next().unwrap().unwrap().path();
    assert_eq!(manifests(&story).len(), 1);
    before.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    let listed = story.extract(PASSPHRASE, &["list"]);
    let listed = (String::from_utf8(listed.stdout).unwrap(), String::from_utf8(listed.stderr).unwrap());
    assert!(listed.0.lines().count() == 1 && !removed.contains(&listed.0[..26]), "{listed:?}");
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
