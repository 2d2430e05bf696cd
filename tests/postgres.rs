//! PostgreSQL as a user has it: the program, a plan, a real server with a writer; backups both ways, drills, restores that start.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/postgres_world.rs"]
mod postgres_world;
mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lifeboat::source::postgres::client::{Connection, Mode};
use lifeboat::source::postgres::conninfo::Settings;
use postgres_world::{Load, Restored, World, assert_nowhere, checks, data_key};
use serde_json::Value;
use support::certificates::Authority;
use support::postgres::{Cluster, NEWEST, Options, as_server_user, bin_directory, distribution_version, server_user, wait_until};
use workspace::text;

const MARKER: &str = "planted-marker-5d1c0e";

/// Longer than what a file must have been left alone before its stamp counts.
const SETTLED: Duration = Duration::from_millis(3500);

/// A server with a CRM and a plan.
struct Crm {
    cluster: Arc<Cluster>,
    world: World,
}

impl Deref for Crm {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Crm {
    fn new(version: u32, local: bool) -> Self {
        let cluster = Options::new(version).setting("archive_mode", "on").setting("archive_command", "true").start();
        cluster.sql(
            "CREATE TABLE account(id int PRIMARY KEY, name text, balance numeric(12,2));
             INSERT INTO account SELECT n, 'account ' || n, n * 1.25 FROM generate_series(1, 20000) n;
             CREATE TABLE ledger(id bigserial PRIMARY KEY, account int, amount int, at timestamptz DEFAULT now());
             CREATE SCHEMA \"Füße\"; CREATE TABLE \"Füße\".\"a\"\"b\"(v text); INSERT INTO \"Füße\".\"a\"\"b\" VALUES ('ä'), (NULL);
             CREATE UNLOGGED TABLE scratch(n int); INSERT INTO scratch VALUES (1);
             SELECT lo_from_bytea(0, 'a large object');",
        );
        cluster.sql(&format!("UPDATE account SET name = '{MARKER}' WHERE id = 7"));
        cluster.sql("CREATE DATABASE other");
        let world = World::new(&cluster, "crm", "");
        let check = r#"[[plan.crm.drill.check]]
name = "accounts are there"
sql = "select count(*) from account"
expect = "= 20000"
database = "postgres""#;
        world.say_plan("crm", &data_key(&cluster, local), check);
        Self { cluster: Arc::new(cluster), world }
    }

    /// Transactions until it is dropped.
    fn writer(&self) -> Load {
        Load::start(&self.cluster, |number| {
            let account = number % 20_000 + 1;
            format!(
                "BEGIN; UPDATE account SET balance = balance + 1 WHERE id = {account}; \
                 INSERT INTO ledger(account, amount) VALUES ({account}, 1); COMMIT"
            )
        })
    }

    /// Restores to a new folder and starts a server there as the notes say.
    fn start_restored(&self, name: &str) -> Restored {
        let restored = self.restored(name, &[]);
        assert!(restored.report["notes"].to_string().contains("start it as the user that owns the folder"), "{}", restored.report);
        restored
    }
}

fn a_story(version: u32, local: bool) {
    /// Fingerprints of a table that autovacuum works on at the moment are not to be had.
    const UNDISTURBED: &str = "ALTER TABLE account SET (autovacuum_enabled = off); ALTER TABLE ledger SET (autovacuum_enabled = off)";
    let world = Crm::new(version, local);
    let doctor = world.json(&["doctor", "crm"], 0);
    assert_eq!(doctor["ok"], true, "{doctor}");
    world.cluster.sql(UNDISTURBED);
    let writer = world.writer();
    let first = world.json(&["backup", "crm"], 0);
    std::thread::sleep(Duration::from_millis(300));
    drop(writer);
    let second = world.json(&["backup", "crm"], 0);
    assert!(second["bytes_stored"].as_u64().unwrap() * 2 < first["bytes_stored"].as_u64().unwrap(), "{first}\n{second}");
    let slots = world.cluster.value("SELECT count(*) FROM pg_replication_slots");
    assert_eq!(slots, "0", "a slot would fill the server's disk");

    let drill = world.json(&["drill", "run", "crm"], 0);
    assert_eq!(drill["verdict"], "passed", "{drill}");
    let checks = checks(&drill);
    for name in ["server", "databases", "accounts are there", "content of postgres.public.account", "content of postgres.public.ledger"] {
        assert!(checks.contains(&(name.into(), "passed".into())), "{name}: {checks:#?}");
    }
    assert!(checks.iter().any(|(name, _)| name.contains("Füße")), "{checks:#?}");

    let restored = world.start_restored("restored");
    assert!(restored.report["notes"].to_string().contains("ALTER SYSTEM SET archive_mode = on"), "{}", restored.report);
    assert_eq!(restored.value("SHOW archive_mode"), "off", "a copy leaves the log of its source alone");
    assert_eq!(restored.value("SELECT count(*) FROM account"), "20000");
    let (ledger, balances) = (restored.value("SELECT count(*) FROM ledger"), "SELECT (sum(balance) - sum(id * 1.25))::bigint FROM account");
    assert_eq!(restored.value(balances), ledger, "every transaction is there whole or not at all");
    assert_eq!(restored.value("SELECT count(*) FROM scratch"), "0", "unlogged tables come back empty");
    drop(restored);
    assert_nowhere(&world.path("repository"), MARKER);
    assert_nowhere(&world.path("state"), MARKER);
}

#[test]
fn streamed_backups_are_drilled_and_start() {
    a_story(distribution_version(), false);
}

#[test]
fn backups_of_the_data_folder_are_drilled_and_start() {
    a_story(distribution_version(), true);
}

#[test]
fn the_newest_version_is_backed_up_and_starts() {
    // These programs come without contrib, so nothing can be checked by amcheck: the drill says so and is not a pass.
    let world = Crm::new(NEWEST, false);
    world.json(&["backup", "crm"], 0);
    let drill = world.json(&["drill", "run", "crm"], 3);
    let all = checks(&drill);
    assert!(all.iter().all(|(name, outcome)| outcome == "passed" || (name.starts_with("amcheck") && outcome == "skipped")), "{drill}");
    assert!(all.contains(&("content of postgres.public.account".into(), "passed".into())), "{all:#?}");
    assert_eq!(world.start_restored("restored").value("SELECT count(*) FROM account"), "20000");
}

#[test]
fn checks_ask_the_database_of_the_url() {
    let world = Crm::new(distribution_version(), false);
    world.cluster.sql("DROP DATABASE other");
    world.cluster.sql("CREATE DATABASE shop TEMPLATE postgres");
    world.cluster.sql("DROP TABLE account, ledger");
    // What the roles of the source set is not what is asked for.
    world.cluster.sql("ALTER ROLE postgres SET search_path = nowhere; ALTER ROLE postgres SET zero_damaged_pages = on");
    let asked = |url: &str| {
        world.say_url(url);
        let check = "[[plan.crm.drill.check]]\nname = \"rows\"\nsql = \"select count(*) from account\"\nexpect = \"= 20000\"";
        let place = "[[plan.crm.drill.check]]\nname = \"place\"\nsql = \"select current_database()\"\nexpect = \"= 'shop'\"";
        let settings = "[[plan.crm.drill.check]]\nname = \"zero\"\nsql = \"show zero_damaged_pages\"\nexpect = \"= 'off'\"";
        world.say_plan("crm", "", &format!("{check}\n{place}\n{settings}"));
    };
    let url = postgres_world::socket_url(&world.cluster);
    asked(&url.replace("dbname=postgres", "dbname=shop"));
    world.json(&["backup", "crm"], 0);
    let drill = world.json(&["drill", "run", "crm"], 0);
    for name in ["rows", "place", "zero"] {
        assert!(checks(&drill).contains(&(name.into(), "passed".into())), "{drill}");
    }
    // As libpq has it: without a name, that of the user.
    asked(&url.replace("dbname=postgres", ""));
    let drill = world.json(&["drill", "run", "crm"], 20);
    assert!(checks(&drill).contains(&("rows".into(), "failed".into())), "{drill}");
}

#[test]
fn the_folder_that_was_restored_is_the_one_that_starts() {
    let cluster = Options::new(distribution_version()).create();
    let etc = cluster.folder().join("etc");
    assert!(as_server_user("mkdir").args(["-m", "700"]).arg(&etc).status().unwrap().success());
    cluster.write(&etc.join("ident.conf"), "crm root clerk\n");
    let (data, pid_file) = (cluster.data(), cluster.folder().join("external.pid"));
    let text = fs::read_to_string(data.join("postgresql.conf")).unwrap();
    let places = format!(
        "data_directory = '{0}'\nhba_file = '{0}/pg_hba.conf'\nident_file = '{1}/ident.conf'\nexternal_pid_file = '{2}'\n",
        data.display(),
        etc.display(),
        pid_file.display()
    );
    cluster.write(&data.join("postgresql.conf"), &(text + &places));
    cluster.start_server();
    assert!(pid_file.exists());
    cluster.sql("CREATE TABLE crm AS SELECT n FROM generate_series(1, 100) n");
    let world = World::new(&cluster, "crm", &data_key(&cluster, true));
    world.json(&["backup", "crm"], 0);
    cluster.sql("DELETE FROM crm WHERE n > 50");
    cluster.stop_server();

    let said = "SELECT setting FROM pg_file_settings WHERE name = 'hba_file' ORDER BY seqno DESC LIMIT 1";
    let starts_itself = |restored: &Restored, captured: &Path| {
        let place = |name: &str| restored.data.join(name).display().to_string();
        assert_eq!(restored.value("SHOW data_directory"), restored.data.to_str().unwrap());
        assert_eq!(restored.value("SELECT count(*) FROM crm"), "100");
        assert_eq!(restored.value(said), place("pg_hba.conf"));
        let ident = Path::new(&place("lifeboat_conf")).join(captured.strip_prefix("/").unwrap()).join("ident.conf");
        assert_eq!(restored.value("SHOW ident_file"), ident.display().to_string());
        assert_eq!(fs::read_to_string(ident).unwrap(), "crm root clerk\n");
        assert!(!pid_file.exists() && !data.join("postmaster.pid").exists(), "the source's folder is left alone");
        let notes = restored.report["notes"].to_string();
        assert!(notes.contains("change them when you move the folder") && notes.contains("writes no external_pid_file"), "{notes}");
    };
    let restored = world.restored("restored", &[]);
    starts_itself(&restored, &etc);

    // A backup of that has all of it too, and what is restored of it starts itself.
    world.say_url(&format!("host={} port=5432 user=postgres dbname=postgres", world.path("s-restored").display()));
    world.say_plan("again", &format!("data_directory = \"{}\"", restored.data.display()), "");
    assert_eq!(world.json(&["backup", "crm"], 0)["problems"], serde_json::json!([]));
    let again = world.restored("again", &[]);
    starts_itself(&again, &restored.data.join("lifeboat_conf").join(etc.strip_prefix("/").unwrap()));
}

#[test]
fn a_copy_starts_whatever_its_source_had_in_force_and_leaves_others_alone() {
    const ROOM: [(&str, &str); 5] = [
        ("max_connections", "60"),
        ("max_worker_processes", "13"),
        ("max_wal_senders", "14"),
        ("max_prepared_transactions", "5"),
        ("max_locks_per_transaction", "80"),
    ];
    let publisher = Options::new(distribution_version()).setting("wal_level", "logical").start();
    publisher.sql("CREATE TABLE item(id int PRIMARY KEY); INSERT INTO item VALUES (1); CREATE PUBLICATION p FOR TABLE item");
    let cluster = ROOM.iter().fold(Options::new(distribution_version()), |options, (name, value)| options.setting(name, value)).start();
    cluster.sql("CREATE TABLE item(id int PRIMARY KEY); CREATE TABLE other(id int)");
    let conninfo = postgres_world::socket_url(&publisher);
    cluster.sql(&format!("CREATE SUBSCRIPTION s CONNECTION '{conninfo}' PUBLICATION p"));
    let items = "SELECT coalesce(string_agg(id::text, ',' ORDER BY id), '') FROM item";
    wait_until("the subscription's first rows", || {
        cluster.value(items) == "1" && cluster.value("SELECT count(*) FROM pg_subscription_rel WHERE srsubstate = 'r'") == "1"
    });
    cluster.sql("BEGIN; INSERT INTO other VALUES (1); PREPARE TRANSACTION 'left'");
    // What its files say from now on is less, as where the rest is on a command line.
    for (name, value) in
        [("max_connections", "40"), ("max_worker_processes", "2"), ("max_wal_senders", "3"), ("max_locks_per_transaction", "32")]
    {
        cluster.sql(&format!("ALTER SYSTEM SET {name} = {value}"));
    }
    cluster.sql("ALTER SYSTEM SET max_prepared_transactions = 0");
    cluster.sql("ALTER SYSTEM SET synchronous_standby_names = 'away'");
    let world = World::new(&cluster, "crm", "");
    world.json(&["backup", "crm"], 0);
    cluster.stop_server();

    let copy = world.restored("copy", &[]);
    let notes = copy.report["notes"].to_string();
    for (name, value) in ROOM {
        assert_eq!(copy.value(&format!("SHOW {name}")), value);
        assert!(notes.contains(&format!("{name} = {value}")), "{name}: {notes}");
    }
    assert_eq!(copy.value("SELECT count(*) FROM pg_prepared_xacts WHERE gid = 'left'"), "1");
    assert_eq!(copy.value("SHOW synchronous_standby_names"), "");
    copy.connect().execute("INSERT INTO other VALUES (2)").unwrap();
    for told in [
        "SET synchronous_standby_names = 'away'",
        "ALTER SYSTEM RESET max_logical_replication_workers",
        "ALTER SYSTEM SET archive_mode = on",
    ] {
        assert!(notes.contains(told), "{told}: {notes}");
    }
    // Production's subscriber is down for a moment, and rows come meanwhile.
    publisher.sql("INSERT INTO item VALUES (2)");
    let subscribes = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'logical replication%'";
    assert_eq!((copy.value(subscribes).as_str(), copy.value(items).as_str()), ("0", "1"));
    publisher.sql("INSERT INTO item VALUES (3)");
    assert_eq!(publisher.value("SELECT active FROM pg_replication_slots WHERE slot_name = 's'"), "f");
    // It comes back with what it had.
    let auto = cluster.data().join("postgresql.auto.conf");
    let room = ROOM.map(|(name, value)| format!("{name} = {value}\n")).concat();
    cluster.write(&auto, &(fs::read_to_string(&auto).unwrap() + &room));
    cluster.start_server();
    wait_until("the subscriber has every row", || cluster.value(items) == "1,2,3");
    assert_eq!(copy.value(items), "1");
}

#[test]
fn what_the_configuration_names_elsewhere_is_told_and_a_copy_writes_its_own_log() {
    let certificates = tempfile::tempdir().unwrap();
    let authority = Authority::new(certificates.path(), "server");
    let cluster = Options::new(distribution_version()).create();
    let (etc, logs) = (cluster.folder().join("etc"), cluster.folder().join("logs"));
    assert!(as_server_user("mkdir").args(["-m", "700"]).arg(&etc).status().unwrap().success());
    for name in ["server.crt", "server.key"] {
        cluster.write(&etc.join(name), &fs::read_to_string(authority.path(name)).unwrap());
    }
    let setting = |name: &str, value: &Path| (name.to_owned(), value.display().to_string());
    cluster.configure(&[
        setting("ssl", Path::new("on")),
        setting("ssl_cert_file", &etc.join("server.crt")),
        setting("ssl_key_file", &etc.join("server.key")),
        setting("logging_collector", Path::new("on")),
        setting("log_directory", &logs),
    ]);
    cluster.start_server();
    let world = World::new(&cluster, "crm", "");
    let doctor = world.json(&["doctor", "crm"], 0).to_string();
    let key = format!("ssl_key_file = {}", etc.join("server.key").display());
    assert!(doctor.contains("not in a backup") && doctor.contains(&key), "{doctor}");
    world.json(&["backup", "crm"], 0);
    cluster.stop_server();

    let before: BTreeSet<_> = workspace::files(&logs).into_iter().collect();
    assert!(!before.is_empty());
    let beside = world.restored("beside", &[]);
    assert_eq!((beside.value("SHOW log_directory").as_str(), beside.value("SHOW ssl").as_str()), ("log", "on"));
    assert!(fs::read_dir(beside.data.join("log")).unwrap().next().is_some());
    assert_eq!(workspace::files(&logs).into_iter().collect::<BTreeSet<_>>(), before);
    let notes = beside.report["notes"].to_string();
    assert!(
        notes.contains(&key) && !notes.contains("not on this host") && notes.contains("its log_directory is log in the folder"),
        "{notes}"
    );
    drop(beside);

    // On another host it does not start, and what is told makes it start.
    fs::rename(&etc, cluster.folder().join("gone")).unwrap();
    let alone = world.path("alone");
    let report = world.json(&["restore", "crm", "--to", alone.to_str().unwrap(), "--yes"], 0);
    let notes = report["notes"].to_string();
    assert!(notes.contains(&format!("{key} (not on this host)")) && notes.contains("ssl = off"), "{notes}");
    let command = world.start_command(&alone);
    assert!(!world.try_start("without", &alone, &command).0);
    fs::OpenOptions::new().append(true).open(alone.join("postgresql.auto.conf")).unwrap().write_all(b"ssl = off\n").unwrap();
    let started = world.start("alone", &alone);
    assert_eq!(started.value("SHOW ssl"), "off");
}

#[test]
fn a_delta_restore_takes_a_server_back_and_fetches_little() {
    let world = Crm::new(distribution_version(), false);
    world.cluster.sql("CREATE TABLE bulk AS SELECT n, repeat(md5(n::text), 20) AS v FROM generate_series(1, 60000) n");
    world.json(&["backup", "crm"], 0);
    let restored = world.start_restored("restored");
    restored.value("UPDATE account SET balance = -1 WHERE id = 9 RETURNING 1");
    restored.value("CREATE TABLE made_later(n int); SELECT 1");
    let target = restored.data.clone();
    drop(restored);
    let words = ["restore", "crm", "--to", target.to_str().unwrap(), "--delta", "--overwrite", "restored"];
    let report = world.json(&words, 0);
    let of = |field: &str| report[field].as_u64().unwrap();
    assert!(of("bytes_resumed") > of("bytes_restored") / 2 && report["moved_aside"] == serde_json::json!([]), "{report}");
    fs::rename(&target, world.path("again")).unwrap();
    let again = world.start("again", &world.path("again"));
    assert_eq!(again.value("SELECT count(*) FROM account WHERE balance = -1"), "0");
    assert_eq!(again.value("SELECT to_regclass('made_later') IS NULL"), "t");
    assert_eq!(again.value("SELECT count(*) FROM bulk"), "60000");
}

#[test]
fn a_tablespace_comes_back_inside_the_restored_folder() {
    for local in [false, true] {
        let world = Crm::new(distribution_version(), local);
        let place = world.cluster.folder().join("space");
        assert!(as_server_user("mkdir").args(["-m", "700"]).arg(&place).status().unwrap().success());
        world.cluster.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", place.display()));
        world.cluster.sql("CREATE TABLE moved(n int) TABLESPACE space; INSERT INTO moved SELECT generate_series(1, 1000)");
        // A drill proves the very placement that a restore leaves.
        let placed = "SELECT count(*) FROM pg_tablespace WHERE spcname = 'space' AND pg_tablespace_location(oid) = '../lifeboat_tablespaces/' || oid";
        let check = format!("[[plan.crm.drill.check]]\nname = \"placed\"\nsql = \"{placed}\"\nexpect = \"= 1\"\ndatabase = \"postgres\"");
        world.say_plan("crm", &data_key(&world.cluster, local), &check);
        world.json(&["backup", "crm"], 0);
        let drill = world.json(&["drill", "run", "crm"], 0);
        for name in ["content of postgres.public.moved", "placed", "amcheck of postgres", "page checksums"] {
            assert!(checks(&drill).contains(&(name.into(), "passed".into())), "{name}: {drill}");
        }
        let restored = world.start_restored("restored");
        assert_eq!(restored.value(placed), "1");
        assert_eq!(restored.value("SELECT count(*) FROM moved"), "1000");
        let held = fs::canonicalize(fs::read_dir(restored.data.join("pg_tblspc")).unwrap().next().unwrap().unwrap().path()).unwrap();
        assert!(held.starts_with(&restored.data), "not where the source has it: {}", held.display());
    }
}

#[test]
fn a_restored_server_with_a_tablespace_is_backed_up_and_restored_again() {
    let world = Crm::new(distribution_version(), false);
    let place = world.cluster.folder().join("space");
    assert!(as_server_user("mkdir").args(["-m", "700"]).arg(&place).status().unwrap().success());
    world.cluster.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", place.display()));
    world.cluster.sql("CREATE TABLE moved(n int) TABLESPACE space; INSERT INTO moved SELECT generate_series(1, 1000)");
    world.json(&["backup", "crm"], 0);
    let restored = world.start_restored("restored");
    // Another place that its data folder has for a tablespace.
    let within = restored.data.join("within");
    assert!(as_server_user("mkdir").args(["-m", "700"]).arg(&within).status().unwrap().success());
    restored.connect().execute("SET client_min_messages = error").unwrap();
    restored.connect().execute(&format!("CREATE TABLESPACE within LOCATION '{}'", within.display())).unwrap();
    restored.connect().execute("CREATE TABLE inside(n int) TABLESPACE within; INSERT INTO inside SELECT generate_series(1, 500)").unwrap();

    for local in [true, false] {
        let name = if local { "local" } else { "streamed" };
        world.say_url(&format!("host={} port=5432 user=postgres dbname=postgres", world.path("s-restored").display()));
        let data = if local { format!("data_directory = \"{}\"", restored.data.display()) } else { String::new() };
        world.say_plan(name, &data, "");
        restored.connect().execute("INSERT INTO moved SELECT 1 FROM generate_series(1, 7)").unwrap();
        let made = world.json(&["backup", "crm"], 0);
        assert_eq!(made["problems"], serde_json::json!([]), "{made}");
        let again = world.restored(name, &[]);
        for sql in ["SELECT count(*) FROM moved", "SELECT sum(n) FROM moved", "SELECT count(*) FROM inside", "SELECT count(*) FROM account"]
        {
            assert_eq!(again.value(sql), restored.value(sql), "{name}: {sql}");
        }
        let held = again.data.join("lifeboat_tablespaces");
        assert_eq!(fs::read_dir(&held).unwrap().count(), 2, "{name}: each tablespace once");
        let twice = again.data.join("within");
        assert!(!twice.exists() || fs::read_dir(twice).unwrap().next().is_none(), "{name}: each tablespace once");
    }
}

#[test]
fn tablespaces_go_where_the_operator_says() {
    let world = Crm::new(distribution_version(), false);
    // Another file system, so that one is copied and the other one renamed.
    let elsewhere = tempfile::Builder::new().prefix("lifeboat-").tempdir_in("/dev/shm").unwrap();
    fs::set_permissions(elsewhere.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["near", "far"] {
        let place = world.cluster.folder().join(name);
        assert!(as_server_user("mkdir").args(["-m", "700"]).arg(&place).status().unwrap().success());
        world.cluster.sql(&format!("CREATE TABLESPACE {name} LOCATION '{}'", place.display()));
        world
            .cluster
            .sql(&format!("CREATE TABLE in_{name}(n int) TABLESPACE {name}; INSERT INTO in_{name} SELECT generate_series(1, 1000)"));
    }
    world.json(&["backup", "crm"], 0);
    let (near, far) = (world.path("near"), elsewhere.path().join("far"));
    let mapping = |name: &str, to: &Path| format!("{}={}", world.cluster.folder().join(name).display(), to.display());
    let refused = |mappings: &[&str]| {
        let target = world.path("refused");
        let mut words = vec!["restore", "crm", "--to", target.to_str().unwrap(), "--yes"];
        mappings.iter().for_each(|mapping| words.extend(["--tablespace-mapping", mapping]));
        let output = world.run(&words);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
        assert!(!target.exists());
        text(&output.stderr)
    };
    assert!(refused(&["/nowhere=/tmp/x"]).contains("its tablespaces are: "));
    assert!(refused(&["/nowhere"]).contains("not OLDDIR=NEWDIR"));
    assert!(refused(&[&mapping("near", Path::new("relative"))]).contains("absolute"));
    assert!(refused(&[&mapping("near", &world.path("refused/in"))]).contains("in one another"));
    assert!(refused(&[&mapping("near", &world.path("missing/near"))]).contains("is not there"));
    assert!(refused(&[&mapping("near", &near), &mapping("far", &near)]).contains("another tablespace goes there"));
    fs::create_dir(&far).unwrap();
    fs::write(far.join("somebody's"), "file").unwrap();
    assert!(refused(&[&mapping("far", &far)]).contains("not empty"));
    fs::remove_file(far.join("somebody's")).unwrap();

    let restored =
        world.restored("restored", &["--tablespace-mapping", &mapping("near", &near), "--tablespace-mapping", &mapping("far", &far)]);
    for (name, place) in [("near", &near), ("far", &far)] {
        assert_eq!(restored.value(&format!("SELECT sum(n) FROM in_{name}")), "500500");
        let location = restored.value(&format!("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = '{name}'"));
        assert_eq!(Path::new(&location), place);
        let items: Vec<_> = fs::read_dir(place).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
        assert!(items.len() == 1 && items[0].starts_with("PG_"), "{items:?}");
    }
    assert!(!restored.data.join("lifeboat_tablespaces").exists(), "nothing is left behind");
}

#[test]
fn a_bad_page_is_never_a_good_backup() {
    for local in [false, true] {
        let world = Crm::new(distribution_version(), local);
        let path = world.cluster.value("SELECT pg_relation_filepath('account')");
        world.cluster.sql("CHECKPOINT");
        world.cluster.stop_server();
        let mut file = fs::OpenOptions::new().write(true).open(world.cluster.data().join(path)).unwrap();
        file.seek(SeekFrom::Start(8192 * 3 + 4000)).unwrap();
        file.write_all(b"rotten").unwrap();
        drop(file);
        world.cluster.start_server();
        // Without a word in the plan, as the tools of each way do; then as the plan says.
        let plan = fs::read_to_string(world.path("plans/crm.toml")).unwrap();
        let snapshots = || {
            let folder = world.path("repository/snapshots");
            if folder.exists() { workspace::files(&folder).len() } else { 0 }
        };
        let backup = |policy: &str, fails: bool| {
            let policy = if policy.is_empty() { String::new() } else { format!("\ndamaged_pages = \"{policy}\"") };
            fs::write(world.path("plans/crm.toml"), plan.replace("kind = \"postgres\"", &format!("kind = \"postgres\"{policy}"))).unwrap();
            let before = snapshots();
            let report = world.json(&["backup", "crm"], if fails { 1 } else { 3 });
            let said = report.to_string();
            assert!(said.contains("postgres.public.account: 1 damaged page(s) on the server: block 3: "), "{said}");
            assert_eq!(said.contains("bad-page"), !fails, "{said}");
            assert_eq!(snapshots(), before + usize::from(!fails));
        };
        backup("fail", true);
        backup("", !local);
        backup("report", false);
        if local {
            // The file does not change any more, and is told of again all the same.
            std::thread::sleep(SETTLED);
            for _ in 0..2 {
                let again = world.json(&["backup", "crm"], 3);
                assert!(again["problems"].to_string().contains("bad-page"), "{again}");
            }
        }
    }
}

#[test]
fn what_the_server_does_not_send_is_no_good_backup() {
    for version in [distribution_version(), NEWEST] {
        let world = Crm::new(version, false);
        world.json(&["backup", "crm"], 0);
        let (data, outside) = (world.cluster.data(), world.path("outside"));
        fs::create_dir(&outside).unwrap();
        let table = world.cluster.value("SELECT pg_relation_filepath('ledger')");
        // As `cp -a` and a link leave it: the server goes on as if nothing had been.
        world.cluster.stop_server();
        for (name, to) in [(table.as_str(), "table"), ("pg_hba.conf", "hba")] {
            fs::rename(data.join(name), outside.join(to)).unwrap();
            std::os::unix::fs::symlink(outside.join(to), data.join(name)).unwrap();
        }
        if let Some((uid, gid)) = server_user() {
            std::os::unix::fs::chown(&outside, Some(uid), Some(gid)).unwrap();
        }
        let socket = std::os::unix::net::UnixListener::bind(data.join(".s.PGSQL.1")).unwrap();
        world.cluster.start_server();
        let report = world.json(&["backup", "crm"], 3);
        let told: BTreeSet<_> = report["problems"].as_array().unwrap().iter().map(|problem| problem["object"].as_str().unwrap()).collect();
        assert_eq!(told, BTreeSet::from([table.as_str()]), "{report}");
        assert!(report["warnings"].to_string().contains("are not in this backup: pg_hba.conf"), "{report}");
        assert!(report["problems"].to_string().contains("the server did not send it"), "{report}");
        let status = world.json(&["status", "crm"], 0);
        assert_ne!(status["plans"][0]["snapshot"], status["plans"][0]["whole_snapshot"], "{status}");
        drop(socket);
    }
}

#[test]
fn a_table_that_the_server_cannot_read_is_told_by_the_backup() {
    for local in [false, true] {
        let world = Crm::new(distribution_version(), local);
        world.json(&["backup", "crm"], 0);
        let path = world.cluster.value("SELECT pg_relation_filepath('ledger')");
        world.cluster.sql("INSERT INTO ledger(account, amount) VALUES (1, 1); CHECKPOINT");
        world.cluster.stop_server();
        fs::remove_file(world.cluster.data().join(path)).unwrap();
        world.cluster.start_server();
        let report = world.json(&["backup", "crm"], 3);
        let told = report["problems"].to_string();
        assert!(told.contains("postgres.public.ledger") && told.contains("the server cannot read it"), "{report}");
        let status = world.json(&["status", "crm"], 0);
        assert_ne!(status["plans"][0]["snapshot"], status["plans"][0]["whole_snapshot"], "{status}");
    }
}

#[test]
fn files_that_did_not_change_are_not_read_unless_asked_for() {
    let world = Crm::new(distribution_version(), true);
    world.cluster.sql("CREATE TABLE still AS SELECT n, repeat(md5(n::text), 30) AS v FROM generate_series(1, 90000) n");
    world.cluster.sql("VACUUM");
    world.cluster.sql("CHECKPOINT");
    std::thread::sleep(SETTLED);
    let bytes = |report: &Value| report["bytes_read"].as_u64().unwrap();
    let first = bytes(&world.json(&["backup", "crm"], 0));
    world.cluster.sql("UPDATE account SET balance = 5 WHERE id = 9");
    let second = world.json(&["backup", "crm"], 0);
    let still: u64 = world.cluster.value("SELECT pg_relation_size('still')").parse().unwrap();
    assert!(bytes(&second) + still / 2 <= first, "{first} {second}");
    assert_eq!(world.json(&["drill", "run", "crm"], 0)["verdict"], "passed");
    let restored = world.start_restored("restored");
    assert_eq!(restored.value("SELECT balance FROM account WHERE id = 9"), "5.00");
    assert_eq!(restored.value("SELECT concat_ws('|', count(*), sum(n), min(length(v))) FROM still"), "90000|4050045000|960");
    drop(restored);

    let plan = fs::read_to_string(world.path("plans/crm.toml")).unwrap();
    fs::write(
        world.path("plans/crm.toml"),
        plan.replace("kind = \"postgres\"", "kind = \"postgres\"\nread_unchanged = true\nread_limit = \"100MiB/s\""),
    )
    .unwrap();
    let third = bytes(&world.json(&["backup", "crm"], 0));
    assert!(third > still && third > bytes(&second) + still / 2, "{first} {second} {third}");
}

#[test]
fn a_wrong_password_and_a_wrong_data_folder_are_told() {
    let world = Crm::new(distribution_version(), false);
    let settings = world.cluster.tcp_settings();
    world.say_url(&format!("postgresql://postgres:wrong@127.0.0.1:{}/postgres", settings.port));
    let output = world.run(&["backup", "crm"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    assert!(said.contains("password") && !said.contains("wrong@"), "{said}");
    assert!(!world.path("repository/snapshots").exists() || workspace::files(&world.path("repository/snapshots")).is_empty());
}

#[test]
fn a_server_that_stops_meanwhile_leaves_no_snapshot() {
    let world = Crm::new(distribution_version(), false);
    world.cluster.sql("CREATE TABLE bulk AS SELECT n, repeat(md5(n::text), 40) AS v FROM generate_series(1, 60000) n");
    let cluster = Arc::clone(&world.cluster);
    let stopper = std::thread::spawn(move || {
        wait_until("a base backup runs", || cluster.value("SELECT count(*) FROM pg_stat_progress_basebackup") == "1");
        cluster.kill_server();
    });
    let output = world.run(&["backup", "crm"]);
    stopper.join().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}\n{}", text(&output.stdout), text(&output.stderr));
    assert!(workspace::files(&world.path("repository")).iter().all(|path| !path.to_string_lossy().contains("/snapshots/")));
    world.cluster.start_server();
    world.json(&["backup", "crm"], 0);
    assert_eq!(world.json(&["drill", "run", "crm"], 0)["verdict"], "passed");
}

#[test]
fn the_documented_role_is_enough() {
    for local in [false, true] {
        let world = Crm::new(distribution_version(), local);
        let guide = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/postgresql.md")).unwrap();
        let statements = guide.split("```sql").nth(1).unwrap().split("```").next().unwrap();
        let statements = statements.replace("PASSWORD '…'", "PASSWORD 'lifeboat-role'");
        world.cluster.sql(&statements);
        // Only a superuser may lock the catalogue of large objects.
        world.cluster.sql("SELECT lo_unlink(oid) FROM pg_largeobject_metadata");
        world.cluster.sql("VACUUM FULL pg_largeobject");
        let port = world.cluster.tcp_settings().port;
        world.say_url(&format!("postgresql://lifeboat:lifeboat-role@127.0.0.1:{port}/postgres"));
        assert_eq!(world.json(&["doctor", "crm"], 0)["ok"], true);
        world.json(&["backup", "crm"], 0);
        assert_eq!(world.json(&["drill", "run", "crm"], 0)["verdict"], "passed");
    }
}

/// The plans that are shipped for PostgreSQL, on a server of a test and a local repository instead of the store of the example.
#[test]
fn the_example_plans_run() {
    // The doctor looks for the words; the test hands the log over itself.
    let archives = [("archive_mode", "on"), ("archive_command", "true lifeboat log push crm-archive %p"), ("wal_keep_size", "1GB")];
    let options = archives.iter().fold(Options::new(distribution_version()), |options, (name, value)| options.setting(name, value));
    let cluster = options.start();
    cluster.sql("CREATE DATABASE crm");
    let url = format!("host={} port={} user=postgres dbname=crm", cluster.folder().display(), cluster.port);
    let settings = Settings::parse(&url).unwrap();
    let mut connection = Connection::connect(&settings, Mode::Sql { database: None }, &lifeboat::event::Cancel::default()).unwrap();
    connection.execute("CREATE TABLE customer(id int PRIMARY KEY, created_at timestamptz DEFAULT now())").unwrap();
    connection.execute("INSERT INTO customer SELECT generate_series(1, 500)").unwrap();
    let world = World::new(&cluster, "crm", "");
    let run = |words: &[&str], code: i32| {
        let url = format!("host={} port={} user=postgres dbname=crm", cluster.folder().display(), cluster.port);
        let output =
            world.command(words).env("CRM_DATABASE_URL", url).env("LIFEBOAT_PASSPHRASE", "a passphrase of this test").output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}{}", text(&output.stdout), text(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    for (example, repository, plan) in [
        ("postgres.toml", "postgres", "crm-postgres"),
        ("postgres-managed.toml", "managed", "crm-managed"),
        ("postgres-archive.toml", "archive", "crm-archive"),
    ] {
        let shipped = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("plans").join(example)).unwrap();
        let local = shipped
            .replace(&format!("s3://crm-dr/{repository}"), &format!("file://{}", world.path(repository).display()))
            .replace("endpoint = \"https://s3.example.com\"\n", "")
            .replace("/var/lib/postgresql/17/main", cluster.data().to_str().unwrap())
            // Those of a test are where nobody looks.
            .replace(
                "kind = \"postgres\"",
                &format!("kind = \"postgres\"\nbin_directory = \"{}\"", bin_directory(cluster.version).display()),
            );
        fs::write(world.path("plans/crm.toml"), local).unwrap();
        run(&["repo", "init", repository], 0);
        let doctor = run(&["doctor", plan], 0);
        assert_eq!(doctor["ok"], true, "{example}: {doctor}");
        run(&["backup", plan], 0);
        if example == "postgres-archive.toml" {
            let segment = connection.value("SELECT pg_walfile_name(pg_current_wal_lsn())").unwrap().unwrap();
            connection.execute("INSERT INTO customer VALUES (501)").unwrap();
            connection.execute("SELECT pg_switch_wal()").unwrap();
            run(&["log", "push", plan, cluster.data().join("pg_wal").join(segment).to_str().unwrap()], 0);
        }
        let drill = run(&["drill", "run", plan], 0);
        assert_eq!(drill["verdict"], "passed", "{example}: {drill}");
        let asked = checks(&drill).contains(&("recent customers are there".to_owned(), "passed".to_owned()));
        assert_eq!(asked, shipped.contains("recent customers"), "{example}: {drill}");
    }
}
