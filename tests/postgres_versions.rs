//! The whole way of a PostgreSQL source, once on each major version that is supported.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/postgres_world.rs"]
mod postgres_world;
mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::fs;
use std::sync::Arc;

use postgres_world::{Load, NOW, Restored, World, checks, data_key, socket_url};
use serde_json::Value;
use support::postgres::{Cluster, Options, wait_until};

/// A row, and a moment at which it was there and the next was not.
fn commit(cluster: &Cluster, row: u32) -> String {
    cluster.sql(&format!("INSERT INTO ledger VALUES ({row}, repeat(md5('{row}'), 50))"));
    std::thread::sleep(std::time::Duration::from_millis(20));
    let moment = cluster.value(NOW);
    std::thread::sleep(std::time::Duration::from_millis(20));
    moment
}

fn rows(restored: &Restored) -> String {
    restored.value("SELECT string_agg(n::text, ',' ORDER BY n) FROM ledger")
}

/// A drill in which nothing is left out but what the server's programs lack.
fn proven(world: &World, words: &[&str]) -> Value {
    let drill = serde_json::from_slice(&world.run(&[&["drill", "run", "crm"], words].concat()).stdout).unwrap();
    let checks = checks(&drill);
    assert!(checks.iter().all(|(name, outcome)| outcome == "passed" || (name.starts_with("amcheck") && outcome == "skipped")), "{drill}");
    // At the end of a log there is nothing to compare with.
    if drill["recovery"].is_null() || !drill["compared_with"].is_null() {
        assert!(checks.contains(&("content of postgres.public.account".into(), "passed".into())), "{drill}");
    }
    assert!(checks.iter().filter(|(_, outcome)| outcome == "passed").count() >= 4, "{drill}");
    drill
}

fn wait_for_now(world: &World, cluster: &Cluster) {
    cluster.sql("SELECT pg_switch_wal()");
    world.wait_for_log(cluster.value(NOW).parse().unwrap());
}

fn backups_log_and_restores(cluster: &Arc<Cluster>) {
    let world = World::new(cluster, "crm", "log = \"stream\"");
    let doctor = world.json(&["doctor", "crm"], 0);
    assert_eq!(doctor["ok"], true, "{doctor}");
    world.json(&["backup", "crm"], 0);
    assert!(proven(&world, &[])["recovery"].is_null(), "the files come first");
    let streamer = world.stream();
    let moments = [1, 2, 3].map(|row| commit(cluster, row));
    wait_for_now(&world, cluster);
    let restored = world.restored("moment", &["--at", &moments[1]]);
    assert_eq!((rows(&restored), restored.value("SELECT count(*) FROM account")), ("1,2".into(), "20000".into()));
    drop(restored);
    proven(&world, &["--at", &moments[2]]);

    // The data folder, under load, and what came after it.
    world.say_plan("crm", &format!("log = \"stream\"\n{}", data_key(cluster, true)), "");
    let load = Load::start(cluster, |n| format!("UPDATE account SET balance = balance + 1 WHERE n = {}", n % 20_000 + 1));
    let made = world.json(&["backup", "crm"], 0);
    assert!(load.end() > 10);
    assert_eq!(made["consistency"]["crm"]["fingerprints"]["left_out"].as_array().map(Vec::len), Some(0), "{made}");
    commit(cluster, 4);
    cluster.sql("CREATE DATABASE back");
    wait_for_now(&world, cluster);
    let drills = [proven(&world, &[]), proven(&world, &[])];
    let files = drills.iter().find(|drill| drill["recovery"].is_null()).unwrap();
    assert_eq!(files["snapshot"], made["snapshot"], "{files}");
    let latest = world.restored("latest", &[]);
    assert_eq!(rows(&latest), "1,2,3,4");
    let (data, sums) = (latest.data.clone(), latest.value("SELECT sum(balance) FROM account"));
    assert_eq!(sums, cluster.value("SELECT sum(balance) FROM account"));
    latest.connect().execute("DELETE FROM account WHERE n > 10").unwrap();
    drop(latest);
    let words = ["restore", "crm", "--to", data.to_str().unwrap(), "--delta", "--overwrite", "latest"];
    world.json(&words, 0);
    assert_eq!(world.start("delta", &data).value("SELECT sum(balance) FROM account"), sums);

    // One table as it was, into the running server.
    let back = format!("postgresql://postgres@/back?host={}&port={}", cluster.folder().display(), cluster.port);
    let part = world.json(&["restore", "crm", "--yes", "--to", &back, "--only", "postgres/ledger", "--at", &moments[1]], 0);
    assert_eq!(part["tables"][0]["rows"], 2, "{part}");
    streamer.stop();
    world.json(&["verify", "main", "--data"], 0);
}

fn archived_and_fetched(cluster: &Cluster) {
    let world = World::of_the_server(cluster, "crm", "");
    cluster.sql(&format!("ALTER SYSTEM SET archive_command = '{}'", world.documented("archive_command")));
    cluster.sql("SELECT pg_reload_conf()");
    world.json(&["backup", "crm"], 0);
    commit(cluster, 5);
    let last = cluster.value("SELECT pg_walfile_name(pg_switch_wal())");
    wait_until("the segment to be archived", || cluster.value("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") >= last);
    let copy = world.path("copy");
    world.json(&["log", "fetch", "crm", &last, copy.to_str().unwrap()], 0);
    assert!(fs::read(&copy).unwrap() == fs::read(cluster.data().join("pg_wal").join(&last)).unwrap(), "{last} differs");
    // By the server itself, from the files of the snapshot alone.
    let snapshot = world.json(&["snapshots", "crm"], 0)["snapshots"][0]["id"].as_str().unwrap().to_owned();
    let target = world.path("fetched");
    world.json(&["restore", "crm", "--snapshot", &snapshot, "--to", target.to_str().unwrap(), "--yes"], 0);
    let settings = format!("restore_command = '{}'\n", world.documented("restore_command"));
    cluster.write(&target.join("postgresql.auto.conf"), &settings);
    let fetched = world.start("fetched", &target);
    assert_eq!(rows(&fetched), "1,2,3,4,5");
    assert!(fetched.log().contains("restored log file"), "{}", fetched.log());
}

/// A standby is backed up and streamed from, becomes the primary, and its log is followed.
fn a_standby(primary: &Arc<Cluster>) {
    let standby = Cluster::empty(primary.version);
    let to = [format!("--pgdata={}", standby.data().display()), "--checkpoint=fast".into(), format!("--dbname={}", socket_url(primary))];
    primary.run("pg_basebackup", to);
    // Not what pg_basebackup writes: a newer one's options are not known to an older server.
    standby.configure(&[("archive_mode".into(), "off".into()), ("primary_conninfo".into(), socket_url(primary))]);
    standby.write(&standby.data().join("standby.signal"), "");
    standby.start_server();
    let world = World::new(&standby, "crm", "log = \"stream\"");
    let streamer = world.stream();
    let load = Load::start(primary, |n| format!("INSERT INTO noise VALUES ({n}); SELECT pg_sleep(0.005)"));
    let made = world.json(&["backup", "crm"], 0);
    assert_eq!(made["consistency"]["crm"]["standby"], true, "{made}");
    world.say_plan("crm", &format!("log = \"stream\"\n{}", data_key(&standby, true)), "");
    world.json(&["backup", "crm"], 0);
    load.end();
    proven(&world, &[]);
    commit(primary, 6);
    let flushed = primary.value("SELECT pg_current_wal_flush_lsn()");
    wait_until("the standby to follow", || standby.value(&format!("SELECT pg_last_wal_replay_lsn() >= '{flushed}'")) == "t");
    standby.promote();
    commit(&standby, 7);
    wait_for_now(&world, &standby);
    streamer.stop();
    let promoted = world.restored("promoted", &[]);
    assert_eq!(rows(&promoted), "1,2,3,4,5,6,7");
    assert_eq!(promoted.value("SELECT timeline_id FROM pg_control_checkpoint()"), "3");
}

fn a_whole_story(version: u32) {
    let options = Options::new(version).setting("archive_mode", "on").setting("wal_keep_size", "512").setting("autovacuum", "off");
    let cluster = Arc::new(options.start());
    cluster.sql(
        "CREATE TABLE account AS SELECT n, n * 1.25 AS balance FROM generate_series(1, 20000) n; CREATE INDEX ON account(n);
         CREATE TABLE ledger(n int PRIMARY KEY, v text); CREATE TABLE noise(n bigint)",
    );
    backups_log_and_restores(&cluster);
    archived_and_fetched(&cluster);
    a_standby(&cluster);
}

#[test]
fn version_14() {
    a_whole_story(14);
}

#[test]
fn version_15() {
    a_whole_story(15);
}

#[test]
fn version_16() {
    a_whole_story(16);
}

#[test]
fn version_17() {
    a_whole_story(17);
}

#[test]
fn version_18() {
    a_whole_story(18);
}
