//! What a killed base backup costs the next one: what it had stored is taken over, not sent again.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;
#[path = "support/resume_world.rs"]
mod world;

use std::process::Stdio;
use std::time::{Duration, Instant};

use support::postgres::{Cluster, Options, distribution_version, server_user};
use world::World;

/// About 200 MB, of which about 100 MB remain sealed.
const BULK: &str = "CREATE TABLE bulk AS SELECT n, (SELECT string_agg(md5(random()::text || n || i), '') FROM generate_series(1, 24) i) AS v FROM generate_series(1, 240000) n";

/// Starts a backup and kills it (SIGKILL) when the repository has so many bytes in packs.
fn killed_at(world: &World, bytes: u64) {
    let mut child = world.command(&["backup", "crm"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while world.packs() < bytes {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it had stored {bytes} bytes");
        assert!(start.elapsed() < Duration::from_mins(3), "waited too long for {bytes} bytes");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

fn resumed(local: bool) {
    // A VACUUM between the runs would change every page, and rightly be stored.
    let cluster = Options::new(distribution_version()).setting("autovacuum", "off").start();
    cluster.sql(BULK);
    cluster.sql("VACUUM (FREEZE, ANALYZE) bulk");
    cluster.sql("CHECKPOINT");
    let whole = World::new(&cluster, local);
    let first = whole.json(&["backup", "crm"], 0);
    assert_eq!(first["bytes_resumed"], 0, "{first}");
    let total = whole.packs();
    drop(whole);

    let world = World::new(&cluster, local);
    killed_at(&world, total * 6 / 10);
    let left = world.packs();
    assert!(left < total * 9 / 10, "it was nearly at its end: {left} of {total}");
    assert_eq!(world.json(&["snapshots", "crm"], 0)["snapshots"].as_array().unwrap().len(), 0);
    // The server goes on meanwhile.
    cluster.sql("CREATE TABLE later AS SELECT 1 AS n; UPDATE bulk SET v = 'changed' WHERE n <= 10");
    let second = world.json(&["backup", "crm"], 0);
    let stored = world.packs() - left;
    eprintln!("local {local}: {total} in all, {left} left by the killed run, {stored} stored by the next: {second}");
    assert!(stored < total - left + total / 10, "{stored} stored again, {left} of {total} were there");
    assert!(second["bytes_stored"].as_u64().unwrap() >= stored, "{second}");
    let resumed = second["bytes_resumed"].as_u64().unwrap();
    assert!(resumed > second["bytes_source"].as_u64().unwrap() / 2, "{second}");

    // The slot and backup of the killed run are gone from the server, what came together is whole, and starts.
    let verified = world.json(&["verify", "crm", "--data"], 0);
    assert_eq!(verified["findings"].as_array().unwrap().len(), 0, "{verified}");
    let drill = world.json(&["drill", "run", "crm"], 0);
    assert_eq!(drill["verdict"], "passed", "{drill}");
    let target = Cluster::empty(distribution_version());
    world.json(&["restore", "crm", "--to", &target.data().display().to_string()], 0);
    if let Some((user, group)) = server_user() {
        world::give(&target.data(), user, group);
    }
    target.configure(&[]);
    target.start_server();
    assert_eq!(target.value("SELECT count(*) FROM bulk"), "240000");
    assert_eq!(target.value("SELECT count(*) FROM bulk WHERE v = 'changed'"), "10");
    assert_eq!(target.value("SELECT n FROM later"), "1");
    let sum = "SELECT md5(string_agg(md5(v), '' ORDER BY n)) FROM bulk";
    assert_eq!(target.value(sum), cluster.value(sum));

    // Nothing is left to resume.
    let third = world.json(&["backup", "crm"], 0);
    assert_eq!(third["bytes_resumed"], 0, "{third}");
}

#[test]
fn a_killed_backup_over_the_network_costs_the_next_one_only_the_rest() {
    resumed(false);
}

#[test]
fn a_killed_backup_of_the_data_folder_costs_the_next_one_only_the_rest() {
    resumed(true);
}
