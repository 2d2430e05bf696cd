//! Canary rows: written by the daemon with the least privileges, and read by drills that recover to the end of the log.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/follow.rs"]
mod follow;
mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::time::Duration;

use follow::World;
use serde_json::Value;
use support::postgres::{Cluster, NEWEST, Options, distribution_version, wait_until};

const PAGE: &str = include_str!("../docs/postgresql.md");

/// The statements that the page gives behind a heading.
fn documented(heading: &str) -> &'static str {
    let (_, behind) = PAGE.split_once(heading).unwrap();
    behind.split_once("```sql\n").unwrap().1.split_once("```").unwrap().0
}

/// With the role that the page says.
fn server(version: u32) -> Cluster {
    let cluster = Options::new(version).initdb("--wal-segsize=1").setting("wal_keep_size", "512").start();
    let role = documented("## Set-up");
    let newer = role.replace("GRANT pg_write_all_data", "-- ").replace("-- GRANT pg_maintain", "GRANT pg_maintain");
    cluster.sql(if version >= 17 { &newer } else { role });
    cluster.sql("CREATE TABLE ledger(id bigserial PRIMARY KEY, filler text)");
    cluster
}

fn told(world: &World) -> Option<String> {
    let status = world.json(&["status"], 0);
    let problems = status["plans"][0]["problems"].as_array().unwrap();
    problems.iter().find(|problem| problem["kind"] == "canary-not-written").map(Value::to_string)
}

/// What `doctor` says of the row, and that it ends with this code.
fn canary_of(world: &World, code: i32) -> Value {
    let doctor = world.json(&["doctor", "crm"], code);
    let is_it = |check: &&Value| check["name"] == "source db: canary row";
    doctor["checks"].as_array().unwrap().iter().find(is_it).unwrap_or_else(|| panic!("{doctor}")).clone()
}

#[test]
fn doctor_tries_the_row_and_leaves_nothing() {
    let cluster = server(distribution_version());
    let world = World::new(&cluster, "log = \"stream\"\ncanary = \"1s\"", "");
    world.lead_to(&cluster, "lifeboat");
    canary_of(&world, 2);
    // A role that may make the table needs none.
    cluster.sql(&format!("GRANT CREATE ON DATABASE {} TO lifeboat", cluster.value("SELECT current_database()")));
    assert_eq!(canary_of(&world, 0)["ok"], true);
    assert_eq!(cluster.value("SELECT count(*) FROM pg_namespace WHERE nspname = 'lifeboat'"), "0");
    cluster.sql(documented("### Canary row"));
    assert_eq!(canary_of(&world, 0)["ok"], true);
    assert_eq!(cluster.value("SELECT count(*) FROM lifeboat.lifeboat_canary"), "0");
    cluster.sql("REVOKE UPDATE ON lifeboat.lifeboat_canary FROM lifeboat");
    assert_eq!(canary_of(&world, 2)["ok"], false);
}

#[test]
fn a_drill_measures_what_would_be_lost_and_says_when_it_cannot() {
    let cluster = server(distribution_version());
    let world = World::new(&cluster, "log = \"stream\"\ncanary = \"1s\"", "");
    world.lead_to(&cluster, "lifeboat");
    assert!(told(&world).unwrap().contains("lifeboat serve"));
    // What the daemon will be refused is known before.
    let row = canary_of(&world, 2);
    assert!(
        row["ok"] == false && row["message"].as_str().unwrap().contains("GRANT SELECT, INSERT, UPDATE ON lifeboat.lifeboat_canary"),
        "{row}"
    );
    let serve = world.spawn(&["serve"]);
    // The role may not make the table, and the message has all that is needed.
    wait_until("the refusal", || {
        told(&world).is_some_and(|told| told.contains("GRANT SELECT, INSERT, UPDATE ON lifeboat.lifeboat_canary"))
    });
    cluster.sql(documented("### Canary row"));
    wait_until("the row", || told(&world).is_none());
    assert_eq!(canary_of(&world, 0)["ok"], true);
    world.json(&["backup", "crm"], 0);
    let first = cluster.value("SELECT written_at FROM lifeboat.lifeboat_canary WHERE name = 'crm/db'");
    wait_until("another write", || cluster.value("SELECT written_at FROM lifeboat.lifeboat_canary") != first);
    assert_eq!(cluster.value("SELECT count(*) FROM lifeboat.lifeboat_canary"), "1");
    cluster.sql("INSERT INTO ledger(filler) VALUES ('x')");
    world.wait_for_log(&cluster.value("SELECT pg_current_wal_flush_lsn()"));

    let drill = world.json(&["drill", "run", "crm", "--latest"], 0);
    assert_eq!((&drill["verdict"], &drill["recovery"]["target"]), (&Value::from("passed"), &Value::from("latest")), "{drill}");
    let measured = drill["data_loss_measured_ms"].as_u64().unwrap();
    assert!(measured < 15_000, "{drill}");
    assert!(!drill["checks"].to_string().contains("canary"), "{drill}");

    // The log ends, and what is written since is not in it.
    serve.stop();
    cluster.sql("UPDATE lifeboat.lifeboat_canary SET written_at = clock_timestamp()");
    std::thread::sleep(Duration::from_secs(4));
    let drill = world.json(&["drill", "run", "crm", "--latest"], 0);
    assert!(drill["data_loss_measured_ms"].as_u64().unwrap() >= 4_000, "{drill}");

    // The log goes on without the writer: an old row is no loss, and no success.
    let stream = world.spawn(&["log", "stream", "crm", "-v"]);
    std::thread::sleep(Duration::from_secs(14));
    cluster.sql("INSERT INTO ledger(filler) VALUES ('y')");
    world.wait_for_log(&cluster.value("SELECT pg_current_wal_flush_lsn()"));
    let drill = world.json(&["drill", "run", "crm", "--latest"], 3);
    assert_eq!((&drill["verdict"], &drill["data_loss_measured_ms"]), (&Value::from("incomplete"), &Value::Null), "{drill}");
    assert!(drill["skipped"].to_string().contains("did not run"), "{drill}");
    stream.stop();

    // Nor is one that is not there.
    let serve = world.spawn(&["log", "stream", "crm", "-v"]);
    cluster.sql("DROP TABLE lifeboat.lifeboat_canary");
    world.wait_for_log(&cluster.value("SELECT pg_current_wal_flush_lsn()"));
    let drill = world.json(&["drill", "run", "crm", "--latest"], 3);
    assert!(drill["verdict"] == "incomplete" && drill["skipped"].to_string().contains("was not measured"), "{drill}");
    serve.stop();
}

#[test]
fn a_writer_waits_for_nobody_and_comes_back() {
    let cluster = server(NEWEST);
    let world = World::new(&cluster, "log = \"stream\"\ncanary = \"1s\"", "");
    world.lead_to(&cluster, "lifeboat");
    cluster.sql(documented("### Canary row"));
    let serve = world.spawn(&["serve"]);
    wait_until("the row", || told(&world).is_none());
    let mut session = cluster.connect();
    session.execute("BEGIN; LOCK TABLE lifeboat.lifeboat_canary IN ACCESS EXCLUSIVE MODE").unwrap();
    wait_until("the lock is told", || told(&world).is_some());
    session.execute("COMMIT").unwrap();
    wait_until("the row is written again", || told(&world).is_none());
    cluster.kill_server();
    wait_until("the server's end is told", || told(&world).is_some());
    cluster.start_server();
    wait_until("the row is written once more", || told(&world).is_none());
    assert_eq!(cluster.value("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"), "0");
    serve.stop();
}
