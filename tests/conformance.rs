//! What every source must do, whatever its kind: a snapshot that does not move, entries in order and once, bytes that come back, nothing left
//! behind, and a proof that passes on a faithful copy and fails on a damaged one.
//!
//! A new kind joins by one `Case`: how to make a source, how to change it while it is read, and (where it has an engine) how to damage
//! what was restored.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lifeboat::cli::demo::crm;
use lifeboat::entry::{Entry, EntryKind, is_valid_path, tree_order};
use lifeboat::event::{Cancel, Silent};
use lifeboat::source::command::CommandSource;
use lifeboat::source::files::FilesSource;
use lifeboat::source::files::apply::TreeTarget;
use lifeboat::source::sqlite::SqliteSource;
use lifeboat::source::{CheckResult, Expectation, Finish, Outcome, ProveRequest, Source, SourceContext, SqlCheck};
use rusqlite::Connection;

/// A source under test, with its surroundings.
struct Case {
    folder: tempfile::TempDir,
    source: Box<dyn Source>,
    /// Changes the source after a snapshot was begun; what was begun must not show it.
    change: fn(&Path),
    /// Whether the snapshot is one moment (a tree of files has none).
    frozen: bool,
    /// Whether the plan's SQL can be asked.
    sql: bool,
}

impl Case {
    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }
}

fn sqlite() -> Case {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let crm = crm::generate(&home, 1, 0.05).unwrap();
    let change = |home: &Path| {
        crm::a_day_of_work(&home.join("crm.sqlite"), 2).unwrap();
    };
    Case { folder, source: Box::new(SqliteSource { path: crm.database }), change, frozen: true, sql: true }
}

fn files() -> Case {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let crm = crm::generate(&home, 1, 0.05).unwrap();
    let source = FilesSource { path: crm.attachments, exclude: Vec::new(), page_size: None };
    Case { folder, source: Box::new(source), change: |_| {}, frozen: false, sql: false }
}

fn command() -> Case {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("data"), "row\n".repeat(50_000)).unwrap();
    // The dump keeps its own open file, as a dump keeps its own snapshot.
    let dump = ["/bin/sh", "-c", "exec cat \"$1\"", "sh"].map(str::to_owned).into_iter().chain([home.join("data").display().to_string()]);
    let restore = ["/bin/sh", "-c", "exec cat > {target}/data"].map(str::to_owned).to_vec();
    let source = CommandSource { dump: dump.collect(), restore: Some(restore), environment: Vec::new(), allow_empty: false };
    Case { folder, source: Box::new(source), change: |_| {}, frozen: true, sql: false }
}

fn cases() -> Vec<Case> {
    vec![sqlite(), files(), command()]
}

fn context(case: &Case) -> SourceContext {
    let scratch = case.folder.path().join("scratch");
    fs::create_dir_all(&scratch).unwrap();
    SourceContext { scratch, fingerprint_key: [9; 32], progress: Arc::new(Silent), cancel: Cancel::default() }
}

type Read1 = (Entry, Option<Vec<u8>>);

/// Reads a whole snapshot as a backup does, holding to its contract at each step.
fn read_all(case: &Case, context: &SourceContext) -> (Vec<Read1>, Finish) {
    let mut snapshot = case.source.begin(context).unwrap();
    if case.frozen {
        (case.change)(&case.home());
    }
    let mut read: Vec<Read1> = Vec::new();
    while let Some(entry) = snapshot.next_entry().unwrap() {
        assert!(is_valid_path(&entry.path));
        if let Some((before, _)) = read.last() {
            assert!(tree_order(&before.path, &entry.path).is_lt(), "{} then {}", before.display_path(), entry.display_path());
        }
        assert!(entry.xattrs.is_sorted());
        let bytes = if let EntryKind::File { size, .. } = &entry.kind {
            let mut bytes = Vec::new();
            snapshot.open(&entry).unwrap().unwrap().read_to_end(&mut bytes).unwrap();
            snapshot.close(&entry, bytes.len() as u64).unwrap();
            assert!(size.is_none_or(|size| size == bytes.len() as u64));
            Some(bytes)
        } else {
            None
        };
        read.push((entry, bytes));
    }
    assert!(snapshot.next_entry().unwrap().is_none(), "the end stays the end");
    let finish = snapshot.finish().unwrap();
    assert!(finish.problems.is_empty(), "{:?}", finish.problems);
    assert_eq!(fs::read_dir(&context.scratch).unwrap().count(), 0, "nothing stays in scratch");
    (read, finish)
}

fn restore(read: &[Read1], to: &Path) {
    let tree = TreeTarget::create(to).unwrap();
    for (entry, bytes) in read {
        if let (Some(file), Some(bytes)) = (tree.make(entry).unwrap(), bytes) {
            std::io::Write::write_all(&mut &file, bytes).unwrap();
            tree.seal(entry, &file).unwrap();
        }
    }
    assert!(tree.finish().unwrap().warnings.is_empty());
}

fn request(finish: &Finish, checks: Vec<SqlCheck>) -> ProveRequest {
    ProveRequest { fingerprints: finish.fingerprints.clone(), compare_percent: 100, checks }
}

fn sql_check(sql: &str, expect: &str) -> SqlCheck {
    SqlCheck {
        name: "asked".into(),
        sql: sql.into(),
        expect: Expectation::parse(expect).unwrap(),
        database: None,
        timeout: Duration::from_secs(10),
    }
}

fn tree_of(folder: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![folder.to_owned()];
    while let Some(at) = left.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_dir() {
                left.push(path.clone());
                Vec::new()
            } else if metadata.is_symlink() {
                fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
            } else {
                fs::read(&path).unwrap()
            };
            found.insert(path.strip_prefix(folder).unwrap().as_os_str().as_bytes().to_vec(), content);
        }
    }
    found
}

#[test]
fn a_faithful_copy_is_proved_and_proving_changes_nothing() {
    for case in cases() {
        let context = context(&case);
        let (read, finish) = read_all(&case, &context);
        assert!(read.iter().any(|(_, bytes)| bytes.as_ref().is_some_and(|bytes| !bytes.is_empty())));
        let restored = case.folder.path().join("restored");
        restore(&read, &restored);
        let usable = case.source.adopt(&restored, &context).unwrap();
        assert!(usable.starts_with(&restored));
        let before = tree_of(&restored);
        let checks = case.source.prove(&usable, &request(&finish, vec![sql_check("SELECT 1", "= 1")]), &context, &mut || {}).unwrap();
        assert!(tree_of(&restored) == before, "{}: proving changes nothing", case.source.kind());
        let asked: Vec<&CheckResult> = checks.iter().filter(|check| check.name == "asked").collect();
        assert_eq!(asked.len(), 1, "every check asked for has one result");
        assert_eq!(asked[0].outcome, if case.sql { Outcome::Passed } else { Outcome::Skipped });
        let others: Vec<&CheckResult> = checks.iter().filter(|check| check.name != "asked").collect();
        assert!(!others.is_empty() && others.iter().all(|check| check.outcome == Outcome::Passed), "{}: {checks:#?}", case.source.kind());
    }
}

#[test]
fn restored_bytes_are_the_bytes_of_the_source() {
    let case = files();
    let context = context(&case);
    let (read, _) = read_all(&case, &context);
    restore(&read, &case.folder.path().join("restored"));
    assert!(tree_of(&case.folder.path().join("restored")) == tree_of(&case.home().join("attachments")));
    let (again, _) = read_all(&case, &context);
    assert!(again == read, "a second snapshot of the same tree is the same");
}

#[test]
fn a_snapshot_that_is_dropped_leaves_nothing_behind() {
    for case in cases() {
        let context = context(&case);
        let home = tree_of(&case.home());
        let mut snapshot = case.source.begin(&context).unwrap();
        let entry = snapshot.next_entry().unwrap().unwrap();
        if matches!(entry.kind, EntryKind::File { .. }) {
            let mut reader = snapshot.open(&entry).unwrap().unwrap();
            reader.read_exact(&mut [0; 16]).unwrap();
        }
        drop(snapshot);
        assert_eq!(fs::read_dir(&context.scratch).unwrap().count(), 0, "{}", case.source.kind());
        assert!(tree_of(&case.home()) == home, "{}: the source is as it was", case.source.kind());
    }
}

#[test]
fn diagnose_is_fine_with_a_good_source_and_changes_nothing() {
    for case in cases() {
        let home = tree_of(&case.home());
        let found = case.source.diagnose();
        assert!(!found.is_empty() && found.iter().all(|found| found.ok), "{found:?}");
        assert!(tree_of(&case.home()) == home);
    }
}

#[test]
fn a_cancelled_run_does_not_begin_or_does_not_end() {
    for case in cases() {
        let context = context(&case);
        context.cancel.cancel();
        let ended = case.source.begin(&context).and_then(|mut snapshot| {
            while let Some(entry) = snapshot.next_entry()? {
                if matches!(entry.kind, EntryKind::File { .. })
                    && let Some(mut reader) = snapshot.open(&entry)?
                    && reader.read_to_end(&mut Vec::new()).is_err()
                {
                    break;
                }
            }
            snapshot.finish()
        });
        assert!(ended.is_err(), "{}", case.source.kind());
        assert_eq!(fs::read_dir(&context.scratch).unwrap().count(), 0);
    }
}

/// Four threads write in WAL mode while snapshots are taken. Each transaction keeps an invariant over two tables, so a snapshot that is not one
/// moment is found out.
#[test]
fn writers_at_work_never_tear_a_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("busy.db");
    let setup = Connection::open(&path).unwrap();
    setup
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 50;
             CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, pad BLOB);
             CREATE TABLE moved (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL);
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) INSERT INTO account SELECT i, 1000, randomblob(600) FROM n;",
        )
        .unwrap();
    let case = Case { source: Box::new(SqliteSource { path: path.clone() }), folder, change: |_| {}, frozen: true, sql: true };
    let context = context(&case);
    let (stop, commits) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for writer in 0..4u64 {
            let (path, stop, commits) = (&path, &stop, &commits);
            scope.spawn(move || {
                let connection = Connection::open(path).unwrap();
                connection.busy_timeout(Duration::from_secs(30)).unwrap();
                let mut state = writer + 1;
                while !stop.load(Ordering::Relaxed) {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let (from, to) = (state >> 33, state >> 45);
                    let work = format!(
                        "BEGIN IMMEDIATE; UPDATE account SET balance = balance - 7, pad = randomblob(600) WHERE id = {} ;
                         UPDATE account SET balance = balance + 7 WHERE id = {}; INSERT INTO moved (amount) VALUES (7); COMMIT",
                        from % 2000 + 1,
                        to % 2000 + 1
                    );
                    connection.execute_batch(&work).unwrap();
                    commits.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..5 {
            let deadline = Instant::now() + Duration::from_secs(30);
            let seen = commits.load(Ordering::Relaxed);
            while commits.load(Ordering::Relaxed) < seen + 20 && Instant::now() < deadline {
                std::thread::yield_now();
            }
            let (read, finish) = read_all(&case, &context);
            let restored = case.folder.path().join(format!("restored-{round}"));
            restore(&read, &restored);
            let usable = case.source.adopt(&restored, &context).unwrap();
            let checks =
                vec![sql_check("SELECT sum(balance) FROM account", "= 2000000"), sql_check("SELECT count(*) FROM account", "= 2000")];
            let checks = case.source.prove(&usable, &request(&finish, checks), &context, &mut || {}).unwrap();
            assert!(checks.iter().all(|check| check.outcome == Outcome::Passed), "{checks:#?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(commits.load(Ordering::Relaxed) > 100, "the writers really were at work");
    let integrity: String = setup.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(integrity, "ok", "the live database is unharmed");
}

/// What is done to a restored database, and which check must say so, and how.
type Damage = (&'static str, Box<dyn Fn(&Path)>, Outcome, Option<&'static str>);

#[test]
fn planted_damage_is_found_and_named() {
    let case = sqlite();
    let context = context(&case);
    let (read, finish) = read_all(&case, &context);
    let restored = case.folder.path().join("restored");
    restore(&read, &restored);
    let usable = case.source.adopt(&restored, &context).unwrap();
    let faithful = fs::read(&usable).unwrap();

    let sql = |sql: &'static str| -> Box<dyn Fn(&Path)> {
        Box::new(move |path| {
            // In rollback mode, so that the damage is in the one file that is proved.
            let connection = Connection::open(path).unwrap();
            let _: String = connection.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0)).unwrap();
            connection.execute_batch(sql).unwrap();
            let _: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).unwrap();
        })
    };
    let bytes = |change: fn(&mut Vec<u8>)| -> Box<dyn Fn(&Path)> {
        Box::new(move |path| {
            let mut bytes = fs::read(path).unwrap();
            change(&mut bytes);
            fs::write(path, bytes).unwrap();
        })
    };
    let damages: Vec<Damage> = vec![
        ("a deleted row", sql("DELETE FROM call_records WHERE id = 17"), Outcome::Differs, Some("content of call_records")),
        (
            "an added row",
            sql("INSERT INTO accounts SELECT NULL, name, country, city, industry, 1, custom, 0, 0 FROM accounts LIMIT 1"),
            Outcome::Differs,
            Some("content of accounts"),
        ),
        ("a changed value", sql("UPDATE contacts SET title = title || ' ' WHERE id = 3"), Outcome::Differs, Some("content of contacts")),
        (
            "a changed number",
            sql("UPDATE order_lines SET quantity = quantity + 1 WHERE order_id = 5 AND line = 1"),
            Outcome::Differs,
            Some("content of order_lines"),
        ),
        (
            "an exchanged pair",
            sql(
                "UPDATE contacts SET name = (SELECT c.name FROM contacts c WHERE c.id = CASE contacts.id WHEN 1 THEN 2 ELSE 1 END) WHERE id IN (1, 2)",
            ),
            Outcome::Differs,
            Some("content of contacts"),
        ),
        ("an emptied table", sql("DELETE FROM activities"), Outcome::Differs, Some("content of activities")),
        ("a dropped table", sql("PRAGMA foreign_keys = OFF; DROP TABLE activities"), Outcome::Differs, Some("content of activities")),
        ("a dropped index", sql("DROP INDEX calls_by_contact"), Outcome::Differs, Some("schema")),
        (
            "an orphaned row",
            sql("PRAGMA foreign_keys = OFF; UPDATE orders SET account_id = 99999999 WHERE id = 1"),
            Outcome::Failed,
            Some("foreign_key_check"),
        ),
        ("an unreadable header", bytes(|bytes| bytes[..16].fill(0)), Outcome::Failed, Some("database file")),
        ("a page of rubbish", bytes(|bytes| bytes[40_960..45_056].fill(0xa5)), Outcome::Failed, Some("integrity_check")),
        ("a page of zeros", bytes(|bytes| bytes[40_960..45_056].fill(0)), Outcome::Failed, Some("integrity_check")),
        (
            "exchanged pages",
            bytes(|bytes| {
                let (a, b) = bytes.split_at_mut(81_920);
                a[40_960..45_056].swap_with_slice(&mut b[..4096]);
            }),
            Outcome::Failed,
            Some("integrity_check"),
        ),
        // All of them: a copy may lie in unused space of a page, which nobody reads and only the hash of the chunk protects.
        (
            "flipped letters in rows",
            bytes(|bytes| {
                for at in 0..bytes.len() - 12 {
                    if bytes[at..].starts_with(b"Hand scanner") {
                        bytes[at] ^= 0x20;
                    }
                }
            }),
            Outcome::Differs,
            Some("content of order_lines"),
        ),
        ("a truncated file", bytes(|bytes| bytes.truncate(bytes.len() / 2)), Outcome::Failed, Some("database file")),
        ("a file short of one page", bytes(|bytes| bytes.truncate(bytes.len() - 4096)), Outcome::Failed, Some("database file")),
        ("an empty file", bytes(Vec::clear), Outcome::Failed, Some("database file")),
        ("trailing rubbish", bytes(|bytes| bytes.extend_from_slice(&[1; 4096])), Outcome::Failed, Some("database file")),
        (
            "another database",
            Box::new(|path| {
                fs::remove_file(path).unwrap();
                Connection::open(path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
            }),
            Outcome::Differs,
            Some("schema"),
        ),
    ];
    for (what, plant, outcome, named) in damages {
        fs::write(&usable, &faithful).unwrap();
        plant(&usable);
        let checks = case.source.prove(&usable, &request(&finish, vec![sql_check("SELECT 1", "= 1")]), &context, &mut || {}).unwrap();
        let found = checks.iter().any(|check| check.outcome == outcome && named.is_none_or(|name| check.name == name));
        assert!(found, "{what}: {checks:#?}");
        assert!(checks.iter().any(|check| check.name == "asked"), "{what}: every check has a result");
    }
    fs::write(&usable, &faithful).unwrap();
    let checks = case.source.prove(&usable, &request(&finish, Vec::new()), &context, &mut || {}).unwrap();
    assert!(checks.iter().all(|check| check.outcome == Outcome::Passed), "and the faithful copy passes again");
}
