//! Base backups while the server goes on: whose folder is read, and the log that comes meanwhile.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/postgres_world.rs"]
mod postgres_world;
mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lifeboat::source::postgres::lsn::Lsn;
use postgres_world::{Load, World, checks, data_key};
use serde_json::Value;
use support::postgres::{Cluster, NEWEST, Options, as_server_user, distribution_version, wait_until};
use workspace::text;

const SEGMENT: u64 = 1 << 20;
/// Slow enough that the files of an empty cluster take some seconds.
const SLOW: &str = "read_limit = \"4MiB/s\"";

fn copy(from: &Path, to: &Path) {
    assert!(as_server_user("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

fn standby_of(primary: &Cluster, settings: &[(&str, &str)]) -> Cluster {
    let standby = Cluster::empty(primary.version);
    primary.run(
        "pg_basebackup",
        [
            format!("--pgdata={}", standby.data().display()),
            "--checkpoint=fast".into(),
            "--write-recovery-conf".into(),
            format!("--dbname=host={} port={} user=postgres", primary.folder().display(), primary.port),
        ],
    );
    standby.configure(&settings.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect::<Vec<_>>());
    standby.start_server();
    standby
}

fn wait_for_replay(standby: &Cluster, lsn: &str) {
    wait_until("the standby to have everything", || {
        standby.value(&format!("SELECT coalesce(pg_last_wal_replay_lsn() >= '{lsn}', false)")) == "t"
    });
}

fn at(folder: &Path) -> String {
    format!("data_directory = \"{}\"", folder.display())
}

/// Neither slot nor backup nor session of lifeboat is left, soon after it ended.
fn assert_server_is_free(cluster: &Cluster) {
    wait_until("slots, base backups and sessions of lifeboat to be gone", || {
        cluster.value(
            "SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'lifeboat%') + (SELECT count(*) FROM pg_stat_progress_basebackup) \
             + (SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'lifeboat%' AND pid <> pg_backend_pid())",
        ) == "0"
    });
}

fn about_the_folder(doctor: &Value) -> (bool, String) {
    let checks = doctor["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"].as_str().unwrap().contains("data folder")).unwrap();
    (check["ok"].as_bool().unwrap(), check["message"].as_str().unwrap().to_owned())
}

/// Doctor and backup refuse the folder, and nothing is stored or left on the server.
fn refuses(world: &World, cluster: &Cluster, folder: &Path) {
    world.say_plan("crm", &at(folder), "");
    let (ok, message) = about_the_folder(&world.json(&["doctor", "crm"], 2));
    assert!(!ok && message.contains(folder.to_str().unwrap()) && message.contains("SHOW data_directory"), "{message}");
    let refused = world.json(&["backup", "crm"], 2);
    let said = refused["error"].to_string();
    assert!(said.contains(folder.to_str().unwrap()) && said.contains("not the folder in which the server works"), "{said}");
    assert_eq!(world.json(&["snapshots", "crm"], 0)["snapshots"].as_array().unwrap().len(), 0);
    assert_server_is_free(cluster);
}

fn accepts(world: &World, folder: &Path) {
    world.say_plan("crm", &at(folder), "");
    let (ok, message) = about_the_folder(&world.json(&["doctor", "crm"], 0));
    assert!(ok, "{message}");
    world.json(&["backup", "crm"], 0);
}

#[test]
fn a_folder_that_is_another_copy_of_the_cluster_is_refused() {
    for version in [distribution_version(), NEWEST] {
        let cluster = Cluster::start(version);
        cluster.sql("CREATE TABLE account AS SELECT n FROM generate_series(1, 1000) n");
        let world = World::new(&cluster, "crm", "");
        // Left behind when the cluster moved to a new disk; and copied from under a running server, as a snapshot of its volume is.
        let (left, snapshot) = (cluster.folder().join("left"), cluster.folder().join("snapshot"));
        cluster.stop_server();
        copy(&cluster.data(), &left);
        cluster.start_server();
        cluster.sql("CHECKPOINT");
        copy(&cluster.data(), &snapshot);
        cluster.sql("CREATE TABLE later AS SELECT n FROM generate_series(1, 50000) n");
        cluster.sql("CHECKPOINT");
        for folder in [&left, &snapshot] {
            refuses(&world, &cluster, folder);
        }
        // The very folder, by another path.
        let (link, plain) = (cluster.folder().join("by another path"), cluster.data());
        std::os::unix::fs::symlink(&plain, &link).unwrap();
        for folder in [&link, &plain] {
            accepts(&world, folder);
        }
    }
}

#[test]
fn a_standbys_folder_is_not_its_primarys_nor_the_other_way_round() {
    let primary = Cluster::start(distribution_version());
    primary.sql("CREATE TABLE account AS SELECT n FROM generate_series(1, 1000) n");
    let (standby, second) = (standby_of(&primary, &[]), standby_of(&primary, &[]));
    // As near to each other as they can be.
    primary.sql("CHECKPOINT");
    for standby in [&standby, &second] {
        wait_for_replay(standby, &primary.value("SELECT pg_current_wal_flush_lsn()"));
        standby.sql("CHECKPOINT");
    }
    let worlds = [&primary, &standby].map(|cluster| World::new(cluster, "crm", ""));
    refuses(&worlds[0], &primary, &standby.data());
    refuses(&worlds[1], &standby, &primary.data());
    refuses(&worlds[1], &standby, &second.data());
    accepts(&worlds[0], &primary.data());
    let primary = Arc::new(primary);
    let load = Load::start(&primary, |n| format!("INSERT INTO account VALUES ({n}); SELECT pg_sleep(0.005)"));
    accepts(&worlds[1], &standby.data());
    load.end();
}

#[test]
fn the_servers_own_folder_is_never_refused() {
    for version in [distribution_version(), 16, 17, NEWEST] {
        let options = Options::new(version).setting("checkpoint_completion_target", "0.9").setting("checkpoint_timeout", "30s");
        let cluster = Arc::new(options.start());
        let world = World::new(&cluster, "crm", &data_key(&cluster, true));
        // Just made, just restarted, just recovered from a crash.
        accepts(&world, &cluster.data());
        cluster.stop_server();
        cluster.start_server();
        accepts(&world, &cluster.data());
        cluster.sql("CREATE TABLE account AS SELECT n FROM generate_series(1, 100000) n");
        cluster.kill_server();
        cluster.start_server();
        accepts(&world, &cluster.data());
        // One checkpoint after the other.
        let load = Load::start(&cluster, |n| format!("UPDATE account SET n = -n WHERE n % 50 = {}; CHECKPOINT", n % 50));
        for _ in 0..3 {
            accepts(&world, &cluster.data());
        }
        assert!(load.end() > 3);
    }
}

/// A backup in the background, and what it wrote.
struct Running(Option<std::process::Child>, Instant);

impl Running {
    fn start(world: &World) -> Self {
        let child = world.command(&["backup", "crm"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self(Some(child), Instant::now())
    }

    fn is_running(&mut self) -> bool {
        self.0.as_mut().unwrap().try_wait().unwrap().is_none()
    }

    fn interrupt(&self) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.0.as_ref().unwrap().id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    }

    /// Must exit with `code`.
    fn end(mut self, code: i32) -> (Value, Duration) {
        let output: Output = self.0.take().unwrap().wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}\n{}", text(&output.stdout), text(&output.stderr));
        (serde_json::from_slice(&output.stdout).unwrap(), self.1.elapsed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'lifeboat%' AND active_pid IS NOT NULL";

/// Writes log, and checkpoints it, while a backup runs; the bytes of it. `ahead`: never more than this before what the backup's slot holds back is less.
fn busy_backup(world: &World, cluster: &Cluster, pause: Duration, ahead: u64) -> (Value, Duration, u64) {
    const HELD: &str = "SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0)::bigint FROM pg_replication_slots WHERE slot_name LIKE 'lifeboat%'";
    let position = || cluster.value("SELECT pg_current_wal_flush_lsn()").parse::<Lsn>().unwrap();
    let before = position();
    let mut running = Running::start(world);
    while running.is_running() {
        if cluster.value(HELD).parse::<u64>().unwrap() > ahead {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        }
        cluster.sql("INSERT INTO ledger SELECT repeat(md5(random()::text), 30) FROM generate_series(1, 800) n");
        cluster.sql("CHECKPOINT");
        std::thread::sleep(pause);
    }
    let written = position().since(before);
    let (made, took) = running.end(0);
    (made, took, written)
}

/// The log in a restored folder is that from the backup's start to its end: no segment is missing, and none is beyond.
fn assert_log_is_exact(data: &Path, made: &Value) {
    let consistency = &made["consistency"]["crm"];
    let lsn = |key: &str| consistency[key].as_str().unwrap().parse::<Lsn>().unwrap();
    let (start, end) = (lsn("start_lsn"), lsn("stop_lsn").max(lsn("lsn")));
    let names = fs::read_dir(data.join("pg_wal")).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap());
    let mut numbers: Vec<u64> = names
        .filter(|name| name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .map(|name| {
            u64::from_str_radix(&name[8..16], 16).unwrap() * (0x1_0000_0000 / SEGMENT) + u64::from_str_radix(&name[16..], 16).unwrap()
        })
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (start.0 / SEGMENT..=(end.0 - 1) / SEGMENT).collect::<Vec<_>>(), "{made}");
}

/// Restores, looks at the log, starts it, and looks at the rows that were there before the backup began.
fn assert_restores(world: &World, name: &str, made: &Value) {
    let target = world.path(&format!("{name}-look"));
    world.json(&["restore", "crm", "--to", target.to_str().unwrap(), "--yes"], 0);
    assert_log_is_exact(&target, made);
    fs::remove_dir_all(&target).unwrap();
    assert_eq!(world.restored(name, &[]).value("SELECT count(*) FROM account"), "20000");
}

const TABLES: &str =
    "CREATE TABLE account AS SELECT n, 'account ' || n AS name FROM generate_series(1, 20000) n; CREATE TABLE ledger(v text)";

#[test]
fn a_backup_that_takes_longer_than_slots_may_be_idle_succeeds() {
    for local in [true, false] {
        let options = Options::new(NEWEST).initdb("--wal-segsize=1").setting("idle_replication_slot_timeout", "1s");
        let cluster = options.start();
        cluster.sql(TABLES);
        let world = World::new(&cluster, "crm", "");
        world.say_plan("crm", &format!("{}\n{SLOW}", data_key(&cluster, local)), "");
        cluster.sql("SELECT pg_create_physical_replication_slot('witness', true)");
        let (made, took, _) = busy_backup(&world, &cluster, Duration::from_millis(300), u64::MAX);
        assert!(took > Duration::from_secs(4), "{took:?} is too short for this test");
        let witness = cluster.value("SELECT invalidation_reason FROM pg_replication_slots WHERE slot_name = 'witness'");
        assert_eq!(witness, "idle_timeout", "the limit is in force");
        assert_server_is_free(&cluster);
        assert_restores(&world, "restored", &made);
    }
}

#[test]
fn a_backup_during_which_more_log_is_written_than_slots_may_keep_succeeds() {
    for (version, local) in [(distribution_version(), true), (distribution_version(), false), (NEWEST, true), (NEWEST, false)] {
        let limits = [("max_slot_wal_keep_size", "12MB"), ("max_wal_size", "8MB"), ("min_wal_size", "2MB"), ("autovacuum", "off")];
        let options = limits.iter().fold(Options::new(version), |options, (name, value)| options.setting(name, value));
        let cluster = options.initdb("--wal-segsize=1").start();
        cluster.sql(TABLES);
        let world = World::new(&cluster, "crm", "");
        world.say_plan("crm", &format!("{}\n{SLOW}", data_key(&cluster, local)), "");
        cluster.sql("SELECT pg_create_physical_replication_slot('witness', true)");
        let (made, _, written) = busy_backup(&world, &cluster, Duration::ZERO, 5 << 20);
        assert!(written > 16 << 20, "{written} bytes of log are too few for this test");
        assert_eq!(
            cluster.value("SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'witness'"),
            "lost",
            "the limit is in force"
        );
        assert_server_is_free(&cluster);
        assert_restores(&world, "restored", &made);
        if version == distribution_version() {
            let drill = world.json(&["drill", "run", "crm"], 0);
            let is_ledger =
                |(name, outcome): &(String, String)| name.starts_with("content of postgres.public.ledger") && outcome == "passed";
            assert!(checks(&drill).iter().any(is_ledger), "{drill}");
        }
    }
}

/// The server is waited for until it streams to the backup, for which `meanwhile` is done then.
fn with_backup(world: &World, cluster: &Cluster, meanwhile: impl FnOnce()) -> Running {
    let running = Running::start(world);
    wait_until("the log to be streamed", || cluster.value(SLOTS) == "1");
    std::thread::sleep(Duration::from_secs(1));
    meanwhile();
    running
}

#[test]
fn a_standby_that_replays_behind_what_it_received_is_backed_up() {
    for local in [true, false] {
        let primary = Arc::new(Options::new(distribution_version()).initdb("--wal-segsize=1").setting("wal_keep_size", "1GB").start());
        primary.sql(TABLES);
        let standby = standby_of(&primary, &[("recovery_min_apply_delay", "2s")]);
        wait_for_replay(&standby, &primary.value("SELECT pg_current_wal_flush_lsn()"));
        let world = World::new(&standby, "crm", "");
        world.say_plan("crm", &format!("{}\n{SLOW}", data_key(&standby, local)), "");
        let load = Load::start(&primary, |n| {
            let rows = if n % 20 == 0 { 2000 } else { 1 };
            format!("INSERT INTO ledger SELECT repeat(md5(random()::text), 30) FROM generate_series(1, {rows}) n; SELECT pg_sleep(0.01)")
        });
        let (made, _) = with_backup(&world, &standby, || ()).end(0);
        let behind = "SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) > 1048576";
        assert_eq!(standby.value(behind), "t", "it replays at least a segment behind");
        load.end();
        assert_server_is_free(&standby);
        assert_restores(&world, "restored", &made);
        assert_eq!(world.json(&["drill", "run", "crm"], 0)["verdict"], "passed");
    }
}

#[test]
fn a_standby_that_follows_a_failover_meanwhile_is_backed_up() {
    for local in [true, false] {
        let primary = Options::new(distribution_version()).initdb("--wal-segsize=1").setting("checkpoint_timeout", "1h").start();
        primary.sql(TABLES);
        let next = Arc::new(standby_of(&primary, &[]));
        let second = standby_of(&next, &[]);
        let end = primary.value("SELECT pg_current_wal_flush_lsn()");
        for standby in [&*next, &second] {
            wait_for_replay(standby, &end);
        }
        let world = World::new(&second, "crm", "");
        world.say_plan("crm", &format!("{}\n{SLOW}", data_key(&second, local)), "");
        let more = "INSERT INTO ledger SELECT repeat(md5(random()::text), 30) FROM generate_series(1, 4000) n";
        let running = with_backup(&world, &second, || {
            primary.sql(more);
            wait_for_replay(&second, &primary.value("SELECT pg_current_wal_flush_lsn()"));
            primary.stop_server();
            next.promote();
        });
        let load = Load::start(&next, |_| {
            "INSERT INTO ledger SELECT repeat(md5(random()::text), 30) FROM generate_series(1, 50) n; SELECT pg_sleep(0.005)".into()
        });
        let (made, _) = running.end(0);
        load.end();
        let consistency = &made["consistency"]["crm"];
        assert_eq!((&consistency["start_timeline"], &consistency["timeline"]), (&Value::from(1), &Value::from(2)), "{made}");
        assert_server_is_free(&second);
        assert_restores(&world, "restored", &made);
        assert_eq!(world.json(&["drill", "run", "crm"], 0)["verdict"], "passed");
    }
}

#[test]
fn a_stream_of_the_log_that_is_ended_ends_the_backup_soon_and_says_why() {
    for (local, limit) in [(true, None), (false, Some("100MB"))] {
        let options = Options::new(distribution_version());
        let cluster = limit.iter().fold(options, |options, limit| options.setting("max_slot_wal_keep_size", limit)).start();
        cluster.sql(TABLES);
        let world = World::new(&cluster, "crm", "");
        // As a whole it would take a minute or so.
        world.say_plan("crm", &format!("{}\nread_limit = \"512KiB/s\"", data_key(&cluster, local)), "");
        let ended = Instant::now();
        let running = with_backup(&world, &cluster, || {
            let end = "SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots WHERE slot_name LIKE 'lifeboat%'";
            assert_eq!(cluster.value(end), "1");
        });
        let (failed, _) = running.end(1);
        assert!(ended.elapsed() < Duration::from_secs(20), "{:?}", ended.elapsed());
        let said = failed["error"].to_string();
        assert!(said.contains("ended the stream of this backup's log") && said.contains("replication slot lifeboat_"), "{said}");
        assert!(!said.contains("starting or stopping") && said.contains("57P01"), "{said}");
        assert_eq!(said.contains("max_slot_wal_keep_size = 100MB"), limit.is_some(), "{said}");
        assert_eq!(said.contains("pg_terminate_backend"), limit.is_none(), "{said}");
        assert_server_is_free(&cluster);
        assert_eq!(world.json(&["snapshots", "crm"], 0)["snapshots"].as_array().unwrap().len(), 0);
    }
}

/// One file of a table, as large as it takes some time to read.
const LARGE: &str = "CREATE TABLE large AS SELECT n, (SELECT string_agg(md5(random()::text || n || i), '') FROM generate_series(1, 24) i) AS v FROM generate_series(1, 24000) n";
const MUCH_LOG: &str = "INSERT INTO ledger SELECT repeat(md5(random()::text), 30) FROM generate_series(1, 60000) n";

#[test]
fn more_log_during_one_file_than_may_wait_ends_the_backup_and_the_limit_is_named() {
    let options = Options::new(distribution_version()).initdb("--wal-segsize=1").setting("max_slot_wal_keep_size", "2MB");
    let cluster = options.setting("max_wal_size", "8MB").setting("min_wal_size", "2MB").setting("autovacuum", "off").start();
    cluster.sql(TABLES);
    cluster.sql(LARGE);
    let world = World::new(&cluster, "crm", "");
    // 24 s for the one file.
    world.say_plan("crm", &format!("{}\nread_limit = \"1MiB/s\"", data_key(&cluster, true)), "");
    let is_at_it = || {
        let large = cluster.data().join(cluster.value("SELECT pg_relation_filepath('large')"));
        let links =
            fs::read_dir("/proc").unwrap().flatten().flat_map(|process| fs::read_dir(process.path().join("fd")).into_iter().flatten());
        links.flatten().any(|link| fs::read_link(link.path()).is_ok_and(|path| path == large) && is_lifeboat(&link.path()))
    };
    let running = Running::start(&world);
    wait_until("the large file to be read", is_at_it);
    cluster.sql(MUCH_LOG);
    cluster.sql("CHECKPOINT");
    let (failed, _) = running.end(1);
    let said = failed["error"].to_string();
    assert!(
        said.contains("max_slot_wal_keep_size = 2MB") && said.contains("reads one file") && !said.contains("starting or stopping"),
        "{said}"
    );
    assert_server_is_free(&cluster);
}

/// Whether an open file is one of our own program.
fn is_lifeboat(link: &Path) -> bool {
    let process = link.parent().and_then(Path::parent).unwrap();
    fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim_end() == "lifeboat")
}

#[test]
fn a_backup_that_is_interrupted_while_much_log_waits_ends_at_once() {
    for local in [true, false] {
        let cluster = Options::new(distribution_version()).initdb("--wal-segsize=1").start();
        cluster.sql(TABLES);
        cluster.sql(LARGE);
        let world = World::new(&cluster, "crm", "");
        world.say_plan("crm", &format!("{}\nread_limit = \"512KiB/s\"", data_key(&cluster, local)), "");
        let running = with_backup(&world, &cluster, || cluster.sql(MUCH_LOG));
        // More than fits.
        std::thread::sleep(Duration::from_secs(3));
        running.interrupt();
        let interrupted = Instant::now();
        running.end(130);
        assert!(interrupted.elapsed() < Duration::from_secs(10), "{:?}", interrupted.elapsed());
        assert_server_is_free(&cluster);
    }
}

/// Wherever the walk over the folder is, and also where it is gone again at the end: replaying this log makes it where the source has it.
#[test]
fn a_tablespace_that_was_created_meanwhile_makes_a_backup_incomplete() {
    for local in [true, false] {
        let cluster = Options::new(distribution_version()).start();
        cluster.sql(TABLES);
        let places = ["stays", "goes"].map(|name| cluster.folder().join(name));
        for place in &places {
            assert!(as_server_user("mkdir").args(["-m", "700"]).arg(place).status().unwrap().success());
        }
        let world = World::new(&cluster, "crm", "");
        world.say_plan("crm", &format!("{}\n{SLOW}", data_key(&cluster, local)), "");
        let running = with_backup(&world, &cluster, || {
            cluster.sql(&format!("CREATE TABLESPACE stays LOCATION '{}'", places[0].display()));
            cluster.sql(&format!("CREATE TABLESPACE goes LOCATION '{}'", places[1].display()));
            cluster.sql("DROP TABLESPACE goes");
        });
        let (made, _) = running.end(3);
        let told: Vec<&Value> =
            made["problems"].as_array().unwrap().iter().filter(|problem| problem["kind"] == "tablespace-created").collect();
        assert_eq!(told.len(), 2, "{made}");
        assert_eq!(told[0]["object"], "tablespace stays", "{made}");
        assert!(told.iter().zip(&places).all(|(problem, place)| problem["message"].as_str().unwrap().contains(place.to_str().unwrap())));
    }
}

/// A file, or the folder of a database, that somebody moved to another disk: a restored server that followed the link would write into the source's own files.
#[test]
fn a_link_in_the_data_folder_leads_no_restored_server_into_the_sources_files() {
    let cluster = Options::new(distribution_version()).start();
    cluster.sql(TABLES);
    let table = cluster.data().join(cluster.value("SELECT pg_relation_filepath('ledger')"));
    let database = cluster.data().join(format!("base/{}", cluster.value("SELECT oid FROM pg_database WHERE datname = 'template1'")));
    let elsewhere = cluster.folder().join("disk2");
    assert!(as_server_user("mkdir").args(["-m", "700"]).arg(&elsewhere).status().unwrap().success());
    cluster.stop_server();
    for moved in [&table, &database] {
        let place = elsewhere.join(moved.file_name().unwrap());
        assert!(as_server_user("mv").arg(moved).arg(&place).status().unwrap().success());
        assert!(as_server_user("ln").arg("-s").arg(&place).arg(moved).status().unwrap().success());
    }
    cluster.start_server();
    let world = World::new(&cluster, "crm", "");
    world.say_plan("crm", &data_key(&cluster, true), "");
    let made = world.json(&["backup", "crm"], 3);
    let told = made["problems"].as_array().unwrap().iter().filter(|problem| problem["kind"] == "link-not-followed").count();
    assert_eq!(told, 2, "{made}");
    let target = world.path("restored");
    let restored = world.json(&["restore", "crm", "--to", target.to_str().unwrap(), "--yes"], 3);
    let first = restored["notes"][0].as_str().unwrap();
    assert!(first.contains("DO NOT START IT"), "{restored}");
    for moved in [&table, &database] {
        let inside = moved.strip_prefix(cluster.data()).unwrap();
        assert!(first.contains(&format!("{} (to {}", inside.display(), elsewhere.display())), "{restored}");
        assert!(target.join(inside).symlink_metadata().is_err(), "{} is there", inside.display());
    }
}

/// A replay copies the files of a database as the backup has them, and need not bring back what the server had. A copy whose original stays as it is is one.
#[test]
fn a_database_that_was_moved_or_copied_by_its_files_meanwhile_is_restored_or_the_backup_fails() {
    let run = |cluster: &Cluster, database: &str, sql: &str| {
        let to = format!("host={} port={} user=postgres dbname={database}", cluster.folder().display(), cluster.port);
        cluster.run("psql", ["-qX".into(), "-v".into(), "ON_ERROR_STOP=1".into(), "-d".into(), to, "-c".into(), sql.into()]);
    };
    let rows = "CREATE TABLE t AS SELECT g, repeat('x', 100) AS v FROM generate_series(1, 3000) g";
    let copied = "CREATE DATABASE NAME TEMPLATE original STRATEGY file_copy";
    for local in [true, false] {
        let cluster = Options::new(distribution_version()).start();
        cluster.sql(TABLES);
        for database in ["moved", "original"] {
            cluster.sql(&format!("CREATE DATABASE {database}"));
            run(&cluster, database, rows);
        }
        let place = cluster.folder().join("space");
        assert!(as_server_user("mkdir").args(["-m", "700"]).arg(&place).status().unwrap().success());
        cluster.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", place.display()));
        let world = World::new(&cluster, "crm", "");
        world.say_plan("crm", &format!("{}\n{SLOW}", data_key(&cluster, local)), "");

        let (failed, _) = with_backup(&world, &cluster, || cluster.sql("ALTER DATABASE moved SET TABLESPACE space")).end(1);
        let said = failed["error"].to_string();
        assert!(said.contains("database moved was moved to another tablespace") && said.contains("back up again"), "{said}");
        let (failed, _) = with_backup(&world, &cluster, || {
            cluster.sql(&copied.replace("NAME", "early"));
            run(&cluster, "original", "UPDATE t SET v = 'later' WHERE g % 10 = 0; INSERT INTO t VALUES (0, 'later')");
        })
        .end(1);
        let said = failed["error"].to_string();
        assert!(said.contains("database early was created as a copy of the files of original"), "{said}");
        let (failed, _) = with_backup(&world, &cluster, || {
            cluster.sql("CREATE DATABASE third TEMPLATE early STRATEGY file_copy");
            cluster.sql("DROP DATABASE early");
        })
        .end(1);
        let said = failed["error"].to_string();
        assert!(said.contains("database third was created as a copy of the files of"), "{said}");
        assert_server_is_free(&cluster);
        assert_eq!(world.json(&["snapshots", "crm"], 0)["snapshots"], Value::Array(Vec::new()));

        with_backup(&world, &cluster, || cluster.sql(&copied.replace("NAME", "copy"))).end(0);
        let restored = world.restored("restored", &[]);
        for (database, later) in [("moved", "0"), ("original", "301"), ("third", "0"), ("copy", "301")] {
            let rows = restored.connect_to(database).value("SELECT count(*) FROM t WHERE v = 'later'").unwrap();
            assert_eq!(rows.as_deref(), Some(later), "{database}");
        }
        assert_eq!(world.json(&["drill", "run", "crm"], 0)["verdict"], "passed");
    }
}
