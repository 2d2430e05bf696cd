use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use super::*;
use crate::source::postgres::conninfo::Host;
use crate::source::postgres::instance::PORT;
use crate::source::postgres::page::checksum;
use crate::source::postgres::test_server::TestServer;

const BLOCK: usize = 8192;

fn catalogue(server: &TestServer) -> Catalogue {
    let settings = Settings::new(Host::Socket(server.folder().to_owned()), PORT, "postgres");
    Catalogue::read(&settings, &Cancel::default()).unwrap()
}

fn checked(server: &TestServer, catalogue: &Catalogue) -> Vec<CheckResult> {
    check(server.data(), catalogue, &Cancel::default()).unwrap()
}

fn of<'a>(results: &'a [CheckResult], name: &str) -> &'a CheckResult {
    results.iter().find(|result| result.name == name).unwrap_or_else(|| panic!("no {name} in {results:#?}"))
}

/// Whether the cluster has checksums, in the name of its check.
fn name_of(results: &[CheckResult]) -> &str {
    &results[0].name
}

fn assert_sound(results: &[CheckResult]) {
    assert_eq!(results.len(), 4, "{results:#?}");
    assert!(results.iter().all(|result| result.outcome == Outcome::Passed), "{results:#?}");
}

/// With and without checksums, as far as this version's `initdb` can be asked.
fn both() -> [TestServer; 2] {
    let has_them = TestServer::empty().tool("postgres", &["--version"]).contains(" 18");
    let none: &[&str] = if has_them { &["--no-data-checksums"] } else { &[] };
    let settings = "autovacuum = off\nshared_buffers = 1MB";
    [TestServer::start(none, settings), TestServer::start(&["-k"], settings)]
}

/// Tables with an index of every access method. `t` was vacuumed; `fresh` was not, and has a B-tree; `bare` neither. Of `half` only the first half is visible to all.
const TABLES: &str = "CREATE TABLE t(n int PRIMARY KEY, v text, a int[], p point, k int);
    INSERT INTO t SELECT n, md5(n::text), ARRAY[n, n + 1, n % 500], point(n % 977, n), n % 10 FROM generate_series(1, 20000) n;
    CREATE INDEX t_k ON t(k); CREATE INDEX t_hash ON t USING hash(v); CREATE INDEX t_gin ON t USING gin(a); CREATE INDEX t_gist ON t USING gist(p);
    CREATE INDEX t_spgist ON t USING spgist(p); CREATE INDEX t_brin ON t USING brin(n) WITH (pages_per_range = 1);
    CREATE TABLE fresh AS SELECT n, md5(n::text) AS v FROM generate_series(1, 5000) n; CREATE INDEX fresh_n ON fresh(n);
    CREATE TABLE bare AS SELECT n, md5(n::text) AS v FROM generate_series(1, 5000) n; ANALYZE bare;
    CREATE TABLE half AS SELECT n, md5(n::text) AS v FROM generate_series(1, 5000) n;
    CREATE MATERIALIZED VIEW m AS SELECT * FROM t; CREATE UNLOGGED TABLE u AS SELECT n FROM generate_series(1, 1000) n; CREATE INDEX ON u(n);
    CREATE SEQUENCE s; SELECT nextval('s')";

/// A stopped cluster with these tables, and what its catalogues said.
struct Tampered {
    server: TestServer,
    catalogue: Catalogue,
    paths: BTreeMap<&'static str, String>,
}

impl Tampered {
    const NAMES: [&str; 13] = ["t", "t_pkey", "t_k", "t_hash", "t_gin", "t_gist", "t_brin", "fresh", "bare", "half", "m", "s", "pg_proc"];

    fn new(mut server: TestServer) -> Self {
        server.sql(TABLES);
        for statement in ["VACUUM t", "VACUUM half", "VACUUM m", "UPDATE half SET v = 'x' WHERE n > 2500", "CHECKPOINT"] {
            server.sql(statement);
        }
        let paths = Self::NAMES.map(|name| (name, server.sql(&format!("SELECT pg_relation_filepath('{name}')")))).into();
        let catalogue = catalogue(&server);
        server.stop("fast");
        Self { server, catalogue, paths }
    }

    fn path(&self, name: &str) -> PathBuf {
        let (name, suffix) = name.split_once('+').unwrap_or((name, ""));
        self.server.data().join(format!("{}{suffix}", self.paths[name]))
    }

    fn blocks(&self, name: &str) -> usize {
        fs::read(self.path(name)).unwrap().len() / BLOCK
    }

    fn check(&self) -> Vec<CheckResult> {
        checked(&self.server, &self.catalogue)
    }

    /// What is found when a file is changed, which is then as before.
    fn with(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Vec<CheckResult> {
        let path = self.path(name);
        let before = fs::read(&path).ok();
        let mut bytes = before.clone().unwrap_or_default();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let results = self.check();
        match before {
            Some(before) => fs::write(&path, before).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        results
    }

    /// Only this check fails, and says all of this.
    fn fails(&self, name: &str, change: impl FnOnce(&mut Vec<u8>), check: &str, words: &[&str]) {
        let results = self.with(name, change);
        let found = of(&results, check);
        assert_eq!(found.outcome, Outcome::Failed, "{name}: {results:#?}");
        assert!(words.iter().all(|word| found.actual.contains(word)), "{name}: {words:?}: {found:?}");
        let others: Vec<_> = results.iter().filter(|result| result.name != check && result.outcome == Outcome::Failed).collect();
        assert!(others.is_empty(), "{name}: {others:#?}");
    }
}

fn zero(block: usize) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| bytes[block * BLOCK..(block + 1) * BLOCK].fill(0)
}

fn cut(blocks: usize) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| bytes.truncate(blocks * BLOCK)
}

fn rubbish(block: usize) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| {
        let mut state = 0x9E37_79B9_u32;
        for byte in &mut bytes[block * BLOCK..(block + 1) * BLOCK] {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = state.to_be_bytes()[0];
        }
    }
}

/// The checksum that a page must have.
fn seal(bytes: &mut [u8], block: u32) {
    let page = &mut bytes[block as usize * BLOCK..(block as usize + 1) * BLOCK];
    let sum = checksum(page, block).to_le_bytes();
    page[8..10].copy_from_slice(&sum);
}

#[test]
fn pages_that_are_gone_are_found_by_what_leads_to_them() {
    for server in both() {
        let world = Tampered::new(server);
        assert_sound(&world.check());
        let (blocks, half) = (world.blocks("t"), world.blocks("half"));
        assert!(blocks > 100 && half > 40);
        // By the map and by indexes.
        world.fails(
            "t",
            zero(5),
            LEADS,
            &["postgres.public.t: block 5, ", "visibility map", "is all zeros", "its index postgres.public.t_"],
        );
        let end = format!("behind the end: there are {} blocks", blocks / 2);
        world.fails("t", cut(blocks / 2), LEADS, &[&format!("postgres.public.t: block {}, ", blocks / 2), &end, "more)"]);
        world.fails("t", cut(0), LEADS, &["postgres.public.t: block 0, ", "behind the end: there are 0 blocks"]);
        world.fails(
            "m",
            zero(7),
            LEADS,
            &["postgres.public.m: block 7, whose rows are visible to all by the visibility map, is all zeros"],
        );
        world.fails("pg_proc", zero(1), LEADS, &["postgres.pg_catalog.pg_proc: block 1, "]);
        // By the index alone.
        for (change, words) in [
            (
                Box::new(zero(3)) as Box<dyn FnOnce(&mut Vec<u8>)>,
                "postgres.public.fresh: block 3, which its index postgres.public.fresh_n leads to, is all zeros",
            ),
            (Box::new(cut(0)), "postgres.public.fresh: block 0, which its index postgres.public.fresh_n leads to, is behind the end"),
        ] {
            world.fails("fresh", change, LEADS, &[words]);
        }
        // Within an index.
        for index in ["t_hash", "t_gin", "t_gist", "t_brin"] {
            let name = format!("postgres.public.{index}: block ");
            let blocks = world.blocks(index);
            assert!(blocks >= 3, "{index}: {blocks}");
            world.fails(index, cut(blocks / 3), LEADS, &[&name, "which the index needs", "behind the end"]);
            world.fails(index, cut(0), LEADS, &[&name, "block 0, which the index needs"]);
            world.fails(index, zero(0), LEADS, &[&name, "block 0, which the index needs, is all zeros"]);
            world.fails(index, zero(1), LEADS, &[&name, "block 1, which the index needs, is all zeros"]);
        }
        world.fails("t_pkey", cut(0), LEADS, &["postgres.public.t_pkey: block 0, which the index needs"]);
        // The map alone is wrong: behind the table's end, and for pages that say otherwise.
        let name = |first: usize| format!("postgres.public.half: block {first}, whose rows are visible to all by the visibility map, ");
        let set = |bytes: &mut Vec<u8>, from: usize, to: usize| {
            (from..to).for_each(|block| bytes[24 + block / 4] |= 1 << (2 * (block % 4)));
            seal(bytes, 0);
        };
        world.fails("half+_vm", |bytes| set(bytes, half, half + 9), LEADS, &[&name(half), "is behind the end", "(and 8 more)"]);
        world.fails("half+_vm", |bytes| set(bytes, half - 1, half), LEADS, &[&name(half - 1), "says itself that some may not see them"]);
        // Without rows that anything leads to it is a guess.
        let results = world.with("bare", cut(0));
        let sizes = of(&results, SIZES);
        assert_eq!(sizes.outcome, Outcome::Skipped, "{results:#?}");
        assert!(sizes.actual.contains("postgres.public.bare has 0 pages") && sizes.actual.contains("VACUUM"), "{sizes:?}");
        assert_eq!(of(&results, LEADS).outcome, Outcome::Passed, "{results:#?}");
        assert_sound(&world.check());
    }
}

#[test]
fn pages_of_rubbish_are_found_in_every_file() {
    for server in both() {
        let world = Tampered::new(server);
        let results = world.check();
        assert_sound(&results);
        let check = name_of(&results).to_owned();
        for (name, block) in [
            ("t", 3),
            ("t_pkey", 2),
            ("t_hash", 2),
            ("t_gin", 2),
            ("t_gist", 2),
            ("t_brin", 2),
            ("m", 1),
            ("s", 0),
            ("half+_vm", 0),
            ("t+_fsm", 1),
        ] {
            let path = world.path(name);
            let place = format!("{}, block {block}", path.strip_prefix(world.server.data()).unwrap().display());
            world.fails(name, rubbish(block), &check, &[&place, "postgres.public."]);
        }
        // A page without a header that is not empty, of a relation that is in no catalogue that can be read too.
        world.fails("t", |bytes| bytes[4 * BLOCK..4 * BLOCK + 24].fill(0), &check, &["block 4", "its header is empty"]);
        // The page of another access method, as it should be for itself.
        let gist = fs::read(world.path("t_gist")).unwrap();
        let foreign = |bytes: &mut Vec<u8>| {
            bytes[2 * BLOCK..3 * BLOCK].copy_from_slice(&gist[2 * BLOCK..3 * BLOCK]);
            seal(bytes, 2);
        };
        for name in ["fresh", "t_gin"] {
            world.fails(name, foreign, &check, &["block 2 of postgres.public.", "a page of something else"]);
        }
    }
}

#[test]
fn what_a_healthy_server_may_leave_is_no_mistake() {
    for server in both() {
        let world = Tampered::new(server);
        let appended = |count: usize| move |bytes: &mut Vec<u8>| bytes.resize(bytes.len() + count, 0);
        for name in ["t", "t_pkey", "t_k", "t_hash", "t_gin", "t_gist", "t_brin", "fresh", "m", "half+_vm", "t+_fsm"] {
            assert_sound(&world.with(name, appended(3 * BLOCK)));
            assert_sound(&world.with(name, |bytes| bytes.extend_from_slice(&[7; 1000])));
        }
        // Maps that are empty, or say less; files behind the last one; files of nobody.
        assert_sound(&world.with("half+_vm", cut(0)));
        assert_sound(&world.with("half+_vm", |bytes| {
            bytes[24..BLOCK].fill(0);
            seal(bytes, 0);
        }));
        assert_sound(&world.with("t+_fsm", cut(1)));
        assert_sound(&world.with("t+.1", |_| {}));
        let orphan = world.server.data().join("base/1/4000000");
        fs::write(&orphan, fs::read(world.path("t")).unwrap()).unwrap();
        assert_sound(&world.check());
        // A page of the map of free space of which only the second half came.
        let results = world.with("t+_fsm", |bytes| {
            bytes[BLOCK..BLOCK + 4096].fill(0);
            bytes[BLOCK + 5000] = 9;
        });
        let expected = if name_of(&results) == HEADERS { Outcome::Passed } else { Outcome::Failed };
        assert_eq!(results[0].outcome, expected, "{results:#?}");
        // A file between others is lost.
        world.fails("t+.2", |bytes| bytes.resize(BLOCK, 0), SIZES, &["postgres.public.t: ", "is not there or not full", ".2 has pages"]);
    }
}

#[test]
fn folders_of_databases_that_nobody_asks_are_looked_at() {
    let mut server = TestServer::start(&[], "allow_in_place_tablespaces = on");
    server.sql("CREATE TABLESPACE inside LOCATION ''");
    server.sql("CREATE DATABASE other TABLESPACE inside");
    server.sql("CREATE TABLE t TABLESPACE inside AS SELECT generate_series(1, 5000) n; CREATE INDEX t_n ON t(n)");
    let table = server.data().join(server.sql("SELECT pg_relation_filepath('t')"));
    let other = server.sql("SELECT pg_tablespace_location(dattablespace) || '/PG_', oid FROM pg_database WHERE datname = 'other'");
    let catalogue = catalogue(&server);
    let oid = server.sql("SELECT oid FROM pg_database WHERE datname = 'template0'");
    server.stop("fast");
    assert_sound(&checked(&server, &catalogue));
    let bytes = fs::read(&table).unwrap();
    fs::write(&table, &bytes[..2 * BLOCK]).unwrap();
    let results = checked(&server, &catalogue);
    assert!(
        of(&results, LEADS).actual.contains("postgres.public.t: block 2, which its index postgres.public.t_n leads to"),
        "{results:#?}"
    );
    fs::write(&table, bytes).unwrap();
    let folder = server.data().join("base").join(&oid);
    let fails = |words: &[&str]| {
        let results = checked(&server, &catalogue);
        let found = of(&results, FOLDERS);
        assert_eq!(found.outcome, Outcome::Failed, "{found:?}");
        assert!(words.iter().all(|word| found.actual.contains(word)), "{words:?}: {found:?}");
    };
    let place = format!("base/{oid} of database template0");
    let away = server.folder().join("away");
    let (tablespace, other) = other.split_once("/PG_|").unwrap();
    let version = table.parent().unwrap().parent().unwrap();
    assert!(version.starts_with(server.data().join(tablespace)), "{}", version.display());
    fs::rename(version.join(other), &away).unwrap();
    fails(&[tablespace, "of database other: the folder is missing"]);
    fs::rename(&away, version.join(other)).unwrap();
    fs::rename(&folder, &away).unwrap();
    fails(&[&place, "the folder is missing"]);
    fs::rename(&away, &folder).unwrap();
    let map = fs::read(folder.join("pg_filenode.map")).unwrap();
    let names = filenodes(&folder.join("pg_filenode.map")).unwrap();
    assert!(names.len() > 10 && names.contains(&1259), "{names:?}");
    for (name, words) in
        [("PG_VERSION", "PG_VERSION is missing"), ("pg_filenode.map", "pg_filenode.map cannot be read"), ("1259", "file 1259")]
    {
        fs::rename(folder.join(name), &away).unwrap();
        fails(&[&place, words]);
        fs::rename(&away, folder.join(name)).unwrap();
    }
    let mut bad = map.clone();
    bad[13] ^= 1;
    fs::write(folder.join("pg_filenode.map"), bad).unwrap();
    fails(&[&place, "pg_filenode.map is damaged"]);
    fs::write(folder.join("pg_filenode.map"), map).unwrap();
    assert_sound(&checked(&server, &catalogue));
}

#[test]
fn a_busy_server_that_crashes_again_and_again_is_sound() {
    const WRITES: &str = "INSERT INTO t SELECT n, md5(random()::text), ARRAY[n % 500, n % 77], point(random() * 1000, n), n % 10 FROM generate_series(1, 1500) n;
        UPDATE t SET v = md5(random()::text) WHERE n % 7 = 3; UPDATE t SET k = k + 1 WHERE n % 11 = 3; DELETE FROM t WHERE ctid IN (SELECT ctid FROM t LIMIT 900 OFFSET 200);
        INSERT INTO tail SELECT n, repeat('x', 300) FROM generate_series(1, 3000) n; DELETE FROM tail; VACUUM tail; DELETE FROM t WHERE n > 700; VACUUM t; INSERT INTO u VALUES (1);";
    const SCHEMA: &str = "BEGIN; TRUNCATE w; COPY w FROM STDIN (FREEZE);
1
2
\\.
        INSERT INTO w SELECT generate_series(1, 3000); COMMIT; VACUUM w;
        BEGIN; CREATE TABLE x(n int PRIMARY KEY, v text); INSERT INTO x SELECT n, md5(n::text) FROM generate_series(1, 4000) n; CREATE INDEX ON x(v); ANALYZE x; TRUNCATE x;
        INSERT INTO x SELECT n, 'x' FROM generate_series(1, 500) n; COMMIT; DROP TABLE x;
        BEGIN; CREATE TABLE y AS SELECT * FROM t; CREATE INDEX ON y USING gin(a); REINDEX TABLE w; ROLLBACK; BEGIN; TRUNCATE t2; ROLLBACK;
        INSERT INTO t2 SELECT n, md5(random()::text) FROM generate_series(1, 2000) n ON CONFLICT (n) DO UPDATE SET v = excluded.v; CREATE INDEX CONCURRENTLY t2_v ON t2(v);
        REINDEX INDEX CONCURRENTLY t2_v; VACUUM (ANALYZE) t2; DROP INDEX CONCURRENTLY t2_v; VACUUM FULL t2; CLUSTER t2 USING t2_pkey; ALTER TABLE t2 SET UNLOGGED; ALTER TABLE t2 SET LOGGED;
        REFRESH MATERIALIZED VIEW m; VACUUM m; SELECT nextval('s') FROM generate_series(1, 100); INSERT INTO big SELECT (SELECT string_agg(md5((i * n)::text), '') FROM generate_series(1, 200) i) \
        FROM generate_series(1, 50) n; DELETE FROM big WHERE random() < 0.7; VACUUM big; CREATE DATABASE d; DROP DATABASE d;";
    for mut server in both() {
        server.configure("autovacuum = on\nautovacuum_naptime = 1s\nshared_buffers = 1MB\nmax_wal_size = 32MB\ncheckpoint_timeout = 30s\nfull_page_writes = on");
        server.stop("fast");
        server.resume();
        server.sql(
            "CREATE TABLE t(n int, v text, a int[], p point, k int); CREATE INDEX ON t(n); CREATE INDEX ON t(k); CREATE INDEX ON t USING hash(v); CREATE INDEX ON t USING gin(a);
             CREATE INDEX ON t USING gist(p); CREATE INDEX ON t USING spgist(p); CREATE INDEX ON t USING brin(n) WITH (pages_per_range = 4); CREATE TABLE w(n int); CREATE INDEX ON w(n);
             CREATE TABLE tail(n int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, k int, v text); CREATE TABLE t2(n int PRIMARY KEY, v text); CREATE TABLE big(v text);
             CREATE UNLOGGED TABLE u(n int); CREATE INDEX ON u(n); CREATE MATERIALIZED VIEW m AS SELECT n, v FROM t; CREATE INDEX ON m(n); CREATE SEQUENCE s",
        );
        for (name, text) in [("writes", WRITES.replace("INTO tail SELECT", "INTO tail(k, v) SELECT")), ("schema", SCHEMA.to_owned())] {
            fs::write(server.folder().join(name), text.repeat(500)).unwrap();
        }
        for round in 0..4 {
            let socket = server.folder().to_str().unwrap().to_owned();
            let load = |name: &str| {
                let file = server.folder().join(name);
                let words = ["-X", "-q", "-h", &socket, "-U", "postgres", "-d", "postgres", "-f", file.to_str().unwrap()];
                server.command("psql", &words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
            };
            let loads = [load("writes"), load("schema")];
            std::thread::sleep(Duration::from_millis(2500 + 700 * round));
            server.stop("immediate");
            for mut load in loads {
                load.wait().unwrap();
            }
            server.resume();
            assert!(server.sql("SELECT count(*) FROM t").parse::<u64>().unwrap() > 0, "otherwise this tests nothing");
            let catalogue = catalogue(&server);
            server.stop("fast");
            let results = checked(&server, &catalogue);
            assert_sound(&results);
            server.resume();
        }
    }
}

#[test]
fn phases_of_a_hash_index_are_as_the_server_counts_them() {
    // hash/hashutil.c: up to 2^9 buckets a phase for each doubling, then four.
    let phases = [
        (1, 0),
        (2, 1),
        (3, 2),
        (4, 2),
        (5, 3),
        (512, 9),
        (513, 10),
        (640, 10),
        (641, 11),
        (768, 11),
        (1024, 13),
        (1025, 14),
        (1280, 14),
        (1281, 15),
    ];
    for (buckets, phase) in phases {
        assert_eq!(splitpoint(buckets), phase, "{buckets}");
    }
}

#[test]
fn an_interruption_ends_it() {
    let mut server = TestServer::start(&[], "");
    let catalogue = catalogue(&server);
    server.stop("fast");
    let cancel = Cancel::default();
    cancel.cancel();
    assert_eq!(check(server.data(), &catalogue, &cancel).unwrap_err().kind(), Kind::Interrupted);
}
