//! `restore --standby`: servers that follow the log in the repository or a primary, and the failover to one of them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/follow.rs"]
mod follow;
mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::fs;

use follow::{Restored, World};
use support::postgres::{Cluster, NEWEST, Options, PASSWORD, distribution_version, wait_until};

const ROWS: &str = "SELECT count(*) FROM ledger";

fn primary(version: u32) -> Cluster {
    let cluster = Options::new(version).initdb("--wal-segsize=1").setting("wal_keep_size", "512").start();
    cluster.sql("CREATE TABLE ledger(id bigserial PRIMARY KEY, filler text)");
    cluster
}

fn write(cluster: &Cluster, rows: u32) {
    cluster.sql(&format!("INSERT INTO ledger(filler) SELECT repeat(md5(n::text), 8) FROM generate_series(1, {rows}) n"));
}

fn wait_for_rows(standby: &Restored, rows: &str) {
    wait_until(&format!("{rows} rows on the standby"), || standby.value(ROWS) == rows);
    assert_eq!(standby.value("SELECT pg_is_in_recovery()"), "t");
}

#[test]
fn a_standby_follows_the_log_alone_and_takes_over() {
    for version in [distribution_version(), NEWEST] {
        let primary = primary(version);
        let world = World::new(&primary, "log = \"stream\"", "");
        // A shell and a server read this path.
        let target = world.path("it's a 100% copy");
        world.json(&["backup", "crm"], 0);
        let stream = world.spawn(&["log", "stream", "crm", "-v"]);
        write(&primary, 500);
        world.wait_for_log(&primary.value("SELECT pg_current_wal_flush_lsn()"));
        let target_text = target.to_str().unwrap();
        let dry = world.json(&["restore", "crm", "--standby", "--to", target_text, "--dry-run"], 0);
        assert!(dry["steps"][0].as_str().unwrap().contains("log fetch crm --source db %f %p"), "{dry}");
        let report = world.json(&["restore", "crm", "--standby", "--to", target_text, "--yes"], 0);
        assert!(target.join("standby.signal").exists() && !target.join("recovery.signal").exists());
        // The printed command is for a person's shell; this test splits it at blanks.
        let plain = world.path("standby");
        fs::rename(&target, &plain).unwrap();
        let settings = fs::read_to_string(plain.join("postgresql.auto.conf")).unwrap();
        assert!(settings.contains("100%% copy/lifeboat_conf/standby"), "{settings}");
        std::os::unix::fs::symlink(&plain, &target).unwrap();
        let report = serde_json::from_str(&report.to_string().replace(target_text, plain.to_str().unwrap())).unwrap();
        let standby = world.start(&plain, &report);
        wait_for_rows(&standby, "500");

        // What is committed from now on comes by the log, in part of a segment, over several, and in part again.
        for rows in [1, 9000, 3, 40] {
            write(&primary, rows);
            wait_for_rows(&standby, &primary.value(ROWS));
        }
        assert_eq!(standby.value("SELECT count(*) FROM pg_stat_wal_receiver"), "0");

        // The primary is gone; what was streamed is on the standby.
        let rows = primary.value(ROWS);
        primary.kill_server();
        // Once it has noticed, a stop says that it did not stream any more.
        wait_until("the stream notices", || stream.told().contains("does not stream"));
        stream.stop_with(1);
        standby.promote();
        assert_eq!((standby.value("SELECT pg_is_in_recovery()"), standby.value(ROWS)), ("f".into(), rows.clone()));
        primary.write(&world.path("url"), &format!("host={} user=postgres dbname=postgres", standby.socket.display()));
        let stream = world.spawn(&["log", "stream", "crm", "-v"]);
        standby.connect().execute("INSERT INTO ledger(filler) SELECT 'after' FROM generate_series(1, 77)").unwrap();
        wait_until("the stream of timeline 2", || world.streamed()["timeline"] == 2);
        world.wait_for_log(&standby.value("SELECT pg_current_wal_flush_lsn()"));
        let after = standby.value(ROWS);
        assert_eq!(after.parse::<u64>().unwrap(), rows.parse::<u64>().unwrap() + 77);
        stream.stop();
        drop(standby);

        // Recovered from the first server's snapshot, through both timelines.
        let third = world.path("third");
        let report = world.json(&["restore", "crm", "--latest", "--to", third.to_str().unwrap(), "--yes"], 0);
        let third = world.start(&third, &report);
        wait_until("the restored server is promoted", || third.value("SELECT pg_is_in_recovery()") == "f");
        assert_eq!(third.value(ROWS), after);

        // The old primary's folder follows the new one.
        let old = primary.data();
        let words = ["restore", "crm", "--standby", "--delta", "--to", old.to_str().unwrap(), "--overwrite", "data", "--yes"];
        let report = world.json(&words, 0);
        let old = world.start(&old, &report);
        wait_for_rows(&old, &after);
    }
}

#[test]
fn a_standby_follows_its_primary() {
    let primary = primary(NEWEST);
    primary.sql("SELECT pg_create_physical_replication_slot('follower')");
    let world = World::new(&primary, "", "");
    // Its files say less than what is in force.
    primary.sql("ALTER SYSTEM SET max_connections = 20");
    world.json(&["backup", "crm"], 0);
    let target = world.path("standby");
    let passfile = world.path("pgpass");
    primary.write(&passfile, &format!("*:*:*:postgres:{}", PASSWORD.replace('\\', "\\\\").replace(':', "\\:")));
    let url = format!("postgresql://postgres@localhost:{}/?hostaddr=127.0.0.1&passfile={}", primary.port, passfile.display());
    let words = ["restore", "crm", "--standby", "--to", target.to_str().unwrap(), "--yes", "--primary", &url, "--slot", "follower"];
    let report = world.json(&words, 0);
    let standby = world.start(&target, &report);
    write(&primary, 321);
    wait_for_rows(&standby, "321");
    assert_eq!(standby.value("SELECT status || ' ' || slot_name FROM pg_stat_wal_receiver"), "streaming follower");
    assert_eq!(primary.value("SELECT active FROM pg_replication_slots WHERE slot_name = 'follower'"), "t");
    assert_eq!(standby.value("SHOW max_connections"), "30");
    assert!(report["notes"].to_string().contains("max_connections = 30"), "{report}");
}

#[test]
fn what_could_not_follow_is_refused() {
    let primary = primary(distribution_version());
    let world = World::new(&primary, "log = \"stream\"", "");
    world.json(&["backup", "crm"], 0);
    let target = world.path("standby");
    let refused = |more: &[&str]| {
        let words = [&["restore", "crm", "--standby", "--to", target.to_str().unwrap(), "--yes"], more].concat();
        let output = world.command(&words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{more:?}");
        assert!(!target.exists());
        workspace::text(&output.stdout) + &workspace::text(&output.stderr)
    };
    // No log yet.
    assert!(refused(&[]).contains("nothing that it could follow"));
    for password in ["postgresql://postgres:planted-word@localhost/", "host=localhost user=postgres password=planted-word"] {
        let said = refused(&["--primary", password]);
        assert!(said.contains(".pgpass") && !said.contains("planted-word"), "{said}");
    }
    assert!(refused(&["--primary", "host=localhost"]).contains("no user"));
    assert!(refused(&["--primary", "host=localhost user=x", "--slot", "Not-One"]).contains("Not-One"));
    for point in [["--at", "2026-01-01"], ["--lsn", "0/1"], ["--restore-point", "x"], ["--snapshot", "x"], ["--only", "postgres"]] {
        assert!(refused(&point).contains("--standby"), "{point:?}");
    }
    for alone in [["--primary", "host=localhost user=x"], ["--slot", "x"]] {
        let words = [&["restore", "crm", "--to", target.to_str().unwrap(), "--yes"], &alone[..]].concat();
        assert_eq!(world.command(&words).output().unwrap().status.code(), Some(2), "{alone:?}");
    }
}

#[test]
fn an_interrupted_standby_does_not_become_a_server_of_its_own() {
    let primary = primary(distribution_version());
    let world = World::new(&primary, "log = \"stream\"", "");
    world.json(&["backup", "crm"], 0);
    let stream = world.spawn(&["log", "stream", "crm", "-v"]);
    world.wait_for_log(&primary.value("SELECT pg_current_wal_flush_lsn()"));
    let target = world.path("standby");
    let words = ["restore", "crm", "--to", target.to_str().unwrap(), "--yes"];
    // Ended by the system at the first larger file.
    let command = world.command(&[&words, &["--standby"][..]].concat());
    let mut limited = support::postgres::as_server_user("sh");
    limited.args(["-c", "ulimit -c 0; ulimit -f 1000; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    assert!(!limited.output().unwrap().status.success());
    assert!(!target.exists());
    let refused = world.json(&[&words, &["--resume"][..]].concat(), 2);
    assert!(refused["error"]["message"].as_str().unwrap().contains("begun with --standby"), "{refused}");
    assert!(!target.exists());
    world.json(&[&words, &["--resume", "--standby"][..]].concat(), 0);
    assert!(target.join("standby.signal").exists());
    stream.stop();
}
