//! What goes wrong around base backups, restores and drills of PostgreSQL: each told clearly, nothing half committed, nothing left behind.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/postgres_world.rs"]
mod postgres_world;
mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::fs;
use std::io::Write as _;
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use lifeboat::event::Cancel;
use lifeboat::source::postgres::client::{Connection, Mode};
use postgres_world::{Load, NOW, World, assert_nowhere, checks, data_key, socket_url};
use serde_json::Value;
use support::certificates::Authority;
use support::postgres::{Cluster, NEWEST, Options, PASSWORD, as_server_user, bin_directory, distribution_version, server_user, wait_until};
use support::proxy::Proxy;
use workspace::text;

const BULK: &str = "CREATE TABLE bulk AS SELECT n, repeat(md5(n::text), 40) AS v FROM generate_series(1, 60000) n";

struct Faulty(World);

impl Deref for Faulty {
    type Target = World;

    fn deref(&self) -> &World {
        &self.0
    }
}

impl Faulty {
    fn new(cluster: &Cluster, local: bool) -> Self {
        Self(World::new(cluster, "crm", &data_key(cluster, local)))
    }

    fn snapshots(&self) -> usize {
        self.json(&["snapshots", "crm"], 0)["snapshots"].as_array().unwrap().len()
    }

    /// A drill that is passed, and what it checked.
    fn proven(&self) -> Vec<String> {
        let drill = self.json(&["drill", "run", "crm"], 0);
        assert_eq!(drill["verdict"], "passed", "{drill}");
        passed(&drill)
    }
}

fn passed(drill: &Value) -> Vec<String> {
    checks(drill).into_iter().filter(|(_, outcome)| outcome == "passed").map(|(name, _)| name).collect()
}

fn tcp_url(port: u16, password: &str) -> String {
    let quoted = password.replace('\\', "\\\\").replace('\'', "\\'");
    format!("host=127.0.0.1 port={port} user=postgres dbname=postgres password='{quoted}'")
}

/// Neither slot nor backup nor session of lifeboat is left, soon after it ended.
fn assert_server_is_free(cluster: &Cluster) {
    wait_until("slots, base backups and sessions of lifeboat to be gone", || {
        cluster.value(
            "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_stat_progress_basebackup) \
             + (SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('client backend', 'walsender') AND pid <> pg_backend_pid())",
        ) == "0"
    });
}

#[test]
fn a_connection_that_breaks_leaves_nothing() {
    let cluster = Cluster::start(distribution_version());
    cluster.sql(BULK);
    let world = Faulty::new(&cluster, false);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let proxy = runtime.block_on(Proxy::start(&format!("http://127.0.0.1:{}", cluster.port)));
    world.say_url(&tcp_url(proxy.port(), PASSWORD));
    // At the very beginning, among the files, near their end.
    for bytes in [3_000, 5_000_000, 60_000_000] {
        proxy.break_after(Some(bytes));
        let failed = world.json(&["backup", "crm"], 1);
        assert!(["unavailable", "failed"].contains(&failed["error"]["kind"].as_str().unwrap()), "{failed}");
        assert!(!failed.to_string().contains("TESTPASSWORD"), "{failed}");
        assert!(proxy.cuts() > 0);
        proxy.break_after(None);
        assert_server_is_free(&cluster);
        assert_eq!(world.snapshots(), 0, "after {bytes} bytes");
    }
    world.json(&["backup", "crm"], 0);
    assert_server_is_free(&cluster);
    world.proven();
}

#[test]
fn a_walsender_that_is_ended_leaves_nothing() {
    let cluster = Arc::new(Cluster::start(distribution_version()));
    cluster.sql(BULK);
    let world = Faulty::new(&cluster, false);
    let ender = Arc::clone(&cluster);
    let thread = std::thread::spawn(move || {
        wait_until("a base backup to be ended", || {
            ender.value("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_progress_basebackup WHERE backup_streamed > 1000000") != "0"
        });
    });
    let failed = world.json(&["backup", "crm"], 1);
    thread.join().unwrap();
    // Its last word does not always arrive between the files.
    let said = failed["error"].to_string();
    assert!(said.contains("terminat") || said.contains("the server closed it"), "{said}");
    assert_server_is_free(&cluster);
    assert_eq!(world.snapshots(), 0);
    world.json(&["backup", "crm"], 0);
    world.proven();
}

#[test]
fn another_cluster_behind_the_url_is_refused() {
    for local in [false, true] {
        let (first, second) = (Cluster::start(distribution_version()), Cluster::start(distribution_version()));
        let identifier = |cluster: &Cluster| cluster.value("SELECT system_identifier FROM pg_control_system()");
        let world = Faulty::new(&first, local);
        world.json(&["backup", "crm"], 0);
        world.say_url(&socket_url(&second));
        if local {
            world.say_plan("crm", &data_key(&second, local), "");
        }
        let refused = world.json(&["backup", "crm"], 2);
        let said = refused["error"].to_string();
        assert!(said.contains(&identifier(&first)) && said.contains(&identifier(&second)) && said.contains("new source name"), "{said}");
        assert_eq!(world.snapshots(), 1);
        assert_server_is_free(&second);
        let doctor = world.json(&["doctor", "crm"], 2);
        let check = doctor["checks"].as_array().unwrap().iter().find(|check| check["name"] == "source crm: same as before").unwrap();
        assert!(check["ok"] == false && check["message"].as_str().unwrap().contains(&identifier(&second)), "{doctor}");
        // As it says: under a new name, and the old one can still be brought back.
        world.say_plan("crm2", &data_key(&second, local), "");
        let made = world.json(&["backup", "crm"], 0);
        assert_eq!(made["consistency"]["crm2"]["system_identifier"], Value::String(identifier(&second)));
        let old = world.json(&["snapshots", "crm"], 0)["snapshots"]
            .as_array()
            .unwrap()
            .iter()
            .find(|snapshot| snapshot["sources"][0]["name"] == "crm")
            .unwrap()["id"]
            .as_str()
            .unwrap()
            .to_owned();
        world.json(&["restore", "crm", "--snapshot", &old, "--to", world.path("old").to_str().unwrap(), "--yes"], 0);
        // And the first one again under its own name.
        world.say_url(&socket_url(&first));
        world.say_plan("crm", &data_key(&first, local), "");
        world.json(&["backup", "crm"], 0);
    }
}

#[test]
fn a_password_that_was_changed_is_told_and_never_shown() {
    let cluster = Cluster::start(distribution_version());
    let world = Faulty::new(&cluster, false);
    world.say_url(&tcp_url(cluster.port, PASSWORD));
    world.json(&["backup", "crm"], 0);
    cluster.sql("ALTER ROLE postgres PASSWORD 'changed-meanwhile'");
    let output = world.command(&["backup", "crm"]).env("LIFEBOAT_LOG", "lifeboat=trace").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stdout));
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(said.contains("password") && !said.contains("TESTPASSWORD") && !said.contains("changed-meanwhile"), "{said}");
    assert_eq!(world.snapshots(), 1);
    world.say_url(&tcp_url(cluster.port, "changed-meanwhile"));
    world.json(&["backup", "crm"], 0);
    assert_nowhere(&world.path("state"), "TESTPASSWORD");
}

#[test]
fn nothing_is_restored_into_the_folder_of_a_server_that_runs() {
    let cluster = Cluster::start(distribution_version());
    cluster.sql("CREATE TABLE kept AS SELECT 1 AS n");
    let world = Faulty::new(&cluster, false);
    world.json(&["backup", "crm"], 0);
    let inode = fs::metadata(cluster.data()).unwrap().ino();
    let to = |target: &Path| -> Vec<String> {
        let name = target.file_name().unwrap().to_str().unwrap().to_owned();
        ["restore", "crm", "--to", target.to_str().unwrap(), "--overwrite", &name].map(String::from).to_vec()
    };
    let space = cluster.folder().join("elsewhere/space");
    assert!(as_server_user("mkdir").args(["-p", "-m", "700"]).arg(&space).status().unwrap().success());
    cluster.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
    // The folder itself, one that holds it, parts of it, and the place of a tablespace.
    let in_space = fs::read_dir(&space).unwrap().next().unwrap().unwrap().path();
    for target in [
        cluster.data(),
        cluster.folder().to_owned(),
        cluster.data().join("base/1"),
        cluster.data().join("pg_wal"),
        space.parent().unwrap().to_owned(),
        space.clone(),
        in_space,
    ] {
        let before = fs::read_dir(cluster.folder()).unwrap().count();
        let words = to(&target);
        let refused = world.json(&words.iter().map(String::as_str).collect::<Vec<_>>(), 2);
        assert!(refused["error"]["message"].as_str().unwrap().contains("server runs there"), "{refused}");
        assert_eq!(fs::read_dir(cluster.folder()).unwrap().count(), before, "nothing was made beside it");
        assert_eq!(fs::metadata(cluster.data()).unwrap().ino(), inode);
        assert_eq!(cluster.value("SELECT n FROM kept"), "1");
    }
    // Nor a single file into it, whether it is there or not.
    for target in
        [cluster.data().join("new.dump"), cluster.data().join("base/1/new.dump"), cluster.data().join("PG_VERSION"), space.join("new.dump")]
    {
        let refused = world.json(&["restore", "crm", "--only", "postgres/kept", "--to", target.to_str().unwrap(), "--yes"], 2);
        assert!(refused["error"]["message"].as_str().unwrap().contains("server runs there"), "{refused}");
        assert!(target.ends_with("PG_VERSION") || !target.exists());
    }
    let beside = cluster.folder().join("beside.dump");
    world.json(&["restore", "crm", "--only", "postgres/kept", "--to", beside.to_str().unwrap(), "--yes"], 0);
    assert!(beside.exists(), "beside the data folder is another place");
    // What a crash leaves does not stand in the way.
    cluster.kill_server();
    wait_until("its processes to be gone", || {
        !fs::read_dir("/proc").unwrap().flatten().any(|item| {
            fs::metadata(item.path().join("cwd")).is_ok_and(|cwd| cwd.ino() == inode)
                && fs::read_to_string(item.path().join("comm")).is_ok_and(|name| name.trim_end() == "postgres")
        })
    });
    assert!(cluster.data().join("postmaster.pid").exists());
    let within = to(&cluster.data().join("base/1"));
    let refused = world.json(&within.iter().map(String::as_str).collect::<Vec<_>>(), 2);
    assert!(refused["error"]["message"].as_str().unwrap().contains("the data folder of a PostgreSQL"), "{refused}");
    let words = to(&cluster.data());
    let report = world.json(&words.iter().map(String::as_str).collect::<Vec<_>>(), 0);
    assert_eq!(report["moved_aside"].as_array().unwrap().len(), 1, "{report}");
    cluster.start_server();
    wait_until("the restored server to be promoted", || cluster.value("SELECT pg_is_in_recovery()") == "f");
    assert_eq!(cluster.value("SELECT n FROM kept"), "1");
}

#[test]
fn a_killed_backup_leaves_nothing_on_the_server() {
    for local in [false, true] {
        let cluster = Cluster::start(distribution_version());
        cluster.sql(BULK);
        let world = Faulty::new(&cluster, local);
        for milliseconds in [80, 200, 500, 900, 1500] {
            let mut child = world.command(&["backup", "crm"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(milliseconds));
            child.kill().unwrap();
            child.wait().unwrap();
            assert_server_is_free(&cluster);
        }
        assert!(!cluster.data().join("backup_label").exists());
        world.json(&["backup", "crm"], 0);
        world.proven();
        let work = world.path("state/work/crm");
        let left = fs::read_dir(&work).unwrap().flatten().filter(|item| item.file_name().to_string_lossy().starts_with("run-")).count();
        assert_eq!(left, 0, "scratch folders in {}", work.display());
    }
}

/// Servers that work in a folder below this one.
fn servers_below(folder: &Path) -> Vec<i32> {
    let folder = fs::canonicalize(folder).unwrap();
    let mut found = Vec::new();
    for item in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = item.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let is_server = fs::read_to_string(item.path().join("comm")).is_ok_and(|name| name.trim_end() == "postgres");
        if is_server && fs::read_link(item.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&folder)) {
            found.push(pid);
        }
    }
    found
}

#[test]
fn the_server_of_a_killed_drill_is_ended_by_the_next_run() {
    let cluster = Cluster::start(distribution_version());
    cluster.sql(BULK);
    let world = Faulty::new(&cluster, false);
    world.json(&["backup", "crm"], 0);
    let mut child = world.command(&["drill", "run", "crm"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("a private server", || !servers_below(&world.path("state")).is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!servers_below(&world.path("state")).is_empty(), "otherwise this tests nothing");
    world.json(&["backup", "crm"], 0);
    assert_eq!(servers_below(&world.path("state")), Vec::<i32>::new());
    world.proven();
    assert_eq!(servers_below(&world.path("state")), Vec::<i32>::new());
}

#[test]
fn ten_thousand_tables_are_fingerprinted_as_far_as_there_are_locks() {
    const TABLES: u64 = 10_000;
    let make = "DO $$ BEGIN FOR n IN 1..10000 LOOP EXECUTE format('CREATE TABLE %I (n int)', 'tab ' || n); \
                EXECUTE format('INSERT INTO %I VALUES (%s)', 'tab ' || n, n); \
                IF n % 500 = 0 THEN COMMIT; END IF; END LOOP; END $$";
    let cluster = Arc::new(Options::new(distribution_version()).setting("max_connections", "100").start());
    cluster.sql(make);
    let world = Faulty::new(&cluster, false);
    // The default: 64 places for each of 100 connections, and lifeboat takes a quarter. An application never lacks any.
    let load = Load::start(&cluster, |n| format!("INSERT INTO \"tab {}\" VALUES (0)", n % 10_000 + 1));
    let made = world.json(&["backup", "crm"], 0);
    assert!(load.end() > 100);
    let fingerprints = &made["consistency"]["crm"]["fingerprints"];
    let taken = fingerprints["tables"].as_u64().unwrap();
    let left_out = fingerprints["left_out"].as_array().unwrap();
    let told = left_out.iter().find(|problem| problem["message"].to_string().contains("max_locks_per_transaction")).unwrap();
    assert_eq!(told["object"], "8400 of 10000 tables of database postgres");
    assert_eq!(taken + 8_400 + left_out.len() as u64 - 1, TABLES, "each is fingerprinted, named or counted: {left_out:?}");
    assert!(taken > 1_500, "{fingerprints}");
    assert_server_is_free(&cluster);

    // With what it asks for, all of them.
    cluster.sql("ALTER SYSTEM SET max_locks_per_transaction = 512");
    cluster.stop_server();
    cluster.start_server();
    let made = world.json(&["backup", "crm"], 0);
    assert_eq!(made["consistency"]["crm"]["fingerprints"]["tables"], TABLES);
    assert_eq!(made["consistency"]["crm"]["fingerprints"]["left_out"].as_array().unwrap().len(), 0);
}

/// Writers wait for a moment while fingerprints are taken: never for a program that stands still in that moment.
#[test]
fn a_backup_that_stands_still_does_not_hold_up_writers() {
    let cluster = Arc::new(Cluster::start(distribution_version()));
    cluster.sql("CREATE TABLE a(n int); CREATE TABLE z(n int)");
    let world = Faulty::new(&cluster, false);
    world.json(&["backup", "crm"], 0);
    // Somebody writes to `z`, so that locks are waited for.
    let mut busy = cluster.connect();
    busy.execute("BEGIN; INSERT INTO z VALUES (1)").unwrap();
    let mut backup = world.command(&["backup", "crm"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let process = rustix::process::Pid::from_child(&backup);
    let mut looks = cluster.connect();
    let held = "SELECT count(*) FROM pg_locks WHERE relation = 'a'::regclass AND mode = 'ShareLock' AND granted";
    wait_until("the lock is held", || looks.value(held).unwrap().as_deref() == Some("1"));
    rustix::process::kill_process(process, rustix::process::Signal::STOP).unwrap();
    // It may have let go between the two.
    if looks.value(held).unwrap().as_deref() == Some("1") {
        cluster.sql("SET statement_timeout = '15s'; INSERT INTO a VALUES (1)");
    }
    rustix::process::kill_process(process, rustix::process::Signal::CONT).unwrap();
    busy.execute("ROLLBACK").unwrap();
    drop((busy, looks));
    assert_eq!(backup.wait().unwrap().code(), Some(0), "it tries again");
    assert_server_is_free(&cluster);
    let again = world.json(&["drill", "run", "crm"], 0);
    assert_eq!(again["verdict"], "passed", "{again}");
}

#[test]
fn an_empty_cluster_is_backed_up_and_proven() {
    let cluster = Cluster::start(distribution_version());
    for local in [false, true] {
        let world = Faulty::new(&cluster, local);
        let made = world.json(&["backup", "crm"], 0);
        assert_eq!(made["consistency"]["crm"]["fingerprints"]["tables"], 0, "{made}");
        assert!(world.proven().contains(&"databases".to_owned()));
    }
}

#[test]
fn a_drill_that_did_not_ask_the_plans_sql_proves_nothing() {
    // A version whose programs are where the plan says, and nowhere else.
    let cluster = Cluster::start(NEWEST);
    cluster.sql("CREATE TABLE account AS SELECT n FROM generate_series(1, 100) n");
    let world = Faulty::new(&cluster, false);
    let check = |count: u32| {
        format!("[[plan.crm.drill.check]]\nname = \"accounts\"\nsql = \"SELECT count(*) FROM account\"\nexpect = \"= {count}\"")
    };
    world.say_plan("crm", "", &check(100));
    world.json(&["backup", "crm"], 0);
    let plan = world.path("plans/crm.toml");
    let text = fs::read_to_string(&plan).unwrap();
    let lines = text.lines().map(|line| if line.starts_with("bin_directory") { "bin_directory = \"/nowhere\"" } else { line });
    fs::write(&plan, lines.collect::<Vec<_>>().join("\n")).unwrap();
    // Without a server nobody could be asked: no check failed, and that is no proof.
    let drill = world.json(&["drill", "run", "crm"], 3);
    assert_eq!(drill["verdict"], "incomplete", "{drill}");
    let done = checks(&drill);
    assert!(done.contains(&("accounts".into(), "skipped".into())), "{drill}");
    assert!(done.iter().all(|(_, outcome)| outcome == "passed" || outcome == "skipped"), "{drill}");
    let proven = |code| world.json(&["snapshots", "crm"], code)["snapshots"][0]["proven_at"].clone();
    assert!(proven(0).is_null());
    let target = world.path("r");
    let refused = world.json(&["restore", "crm", "--latest-proven", "--dry-run", "--to", target.to_str().unwrap()], 13);
    assert_eq!(refused["error"]["kind"], "no-recovery-point", "{refused}");
    // An answer that is not what the plan expects is no proof either.
    world.say_plan("crm", "", &check(101));
    let failed = world.run(&["drill", "run", "crm"]);
    let failed: Value = serde_json::from_slice(&failed.stdout).unwrap();
    assert_eq!(failed["verdict"], "failed", "{failed}");
    assert!(checks(&failed).contains(&("accounts".into(), "failed".into())) && proven(20).is_null(), "{failed}");
    // Asked, and answered as expected; its programs come without amcheck, so that the drill as a whole may say more.
    world.say_plan("crm", "", &check(100));
    let asked: Value = serde_json::from_slice(&world.run(&["drill", "run", "crm"]).stdout).unwrap();
    assert!(checks(&asked).contains(&("accounts".into(), "passed".into())), "{asked}");
}

#[test]
fn rows_that_row_security_hides_are_never_taken_for_the_whole() {
    let cluster = Cluster::start(distribution_version());
    cluster.sql(
        "CREATE TABLE open AS SELECT n FROM generate_series(1, 100) n; CREATE TABLE private AS SELECT n FROM generate_series(1, 100) n;
         ALTER TABLE private ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON private USING (n < 10);
         CREATE ROLE lifeboat LOGIN REPLICATION; GRANT pg_read_all_data, pg_read_all_settings, pg_write_all_data TO lifeboat;
         GRANT EXECUTE ON FUNCTION pg_create_restore_point(text), pg_switch_wal() TO lifeboat;",
    );
    if cluster.version >= 17 {
        cluster.sql("GRANT pg_maintain TO lifeboat");
    }
    let world = Faulty::new(&cluster, false);
    world.say_url(&socket_url(&cluster).replace("user=postgres", "user=lifeboat"));
    let told = |doctor: &Value| {
        let check = doctor["checks"]
            .as_array()
            .unwrap()
            .iter()
            .find(|check| check["name"].as_str().unwrap().contains("row security"))
            .unwrap()
            .clone();
        (check["ok"].as_bool().unwrap(), check["message"].as_str().unwrap().to_owned())
    };
    let (ok, message) = told(&world.json(&["doctor", "crm"], 2));
    assert!(!ok && message.contains("postgres.public.private") && !message.contains("open") && message.contains("BYPASSRLS"), "{message}");
    let made = world.json(&["backup", "crm"], 0);
    let left_out = made["consistency"]["crm"]["fingerprints"]["left_out"].to_string();
    assert!(
        left_out.contains("postgres.public.private") && left_out.contains("row-level security") && !left_out.contains("public.open"),
        "{made}"
    );
    assert_eq!(world.json(&["drill", "run", "crm"], 3)["verdict"], "incomplete");
    cluster.sql("ALTER ROLE lifeboat BYPASSRLS");
    assert!(told(&world.json(&["doctor", "crm"], 0)).0);
    world.json(&["backup", "crm"], 0);
    assert!(world.proven().contains(&"content of postgres.public.private".to_owned()));
}

#[test]
fn configuration_that_is_included_from_elsewhere_is_captured_or_told() {
    let cluster = Cluster::start(distribution_version());
    let etc = cluster.folder().join("etc");
    assert!(as_server_user("mkdir").args(["-p", "-m", "700"]).arg(etc.join("conf.d")).status().unwrap().success());
    cluster.write(&etc.join("main.conf"), "work_mem = '5MB'\ninclude_if_exists = 'not-there.conf'\n");
    cluster.write(&etc.join("conf.d/10.conf"), "maintenance_work_mem = '77MB'\n");
    // Nothing of it is in force: the server itself does not say where it is from, but to a superuser.
    cluster.write(&etc.join("conf.d/20.conf"), "maintenance_work_mem = '78MB'\n");
    cluster.write(&etc.join("conf.d/30.conf"), "maintenance_work_mem = '79MB'\n");
    let conf = cluster.data().join("postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap();
    cluster.write(&conf, &format!("{text}\ninclude '{0}/main.conf'\ninclude_dir = '../etc/conf.d'\n", etc.display()));
    cluster.sql("SELECT pg_reload_conf()");
    wait_until("the included settings to be in force", || cluster.value("SHOW maintenance_work_mem") == "79MB");
    let about = |doctor: &Value| {
        let checks = doctor["checks"].as_array().unwrap().clone();
        checks.into_iter().find(|check| check["name"].as_str().unwrap().contains("configuration")).unwrap()["message"]
            .as_str()
            .unwrap()
            .to_owned()
    };

    // Many installations have such a one, and no private server follows it.
    std::os::unix::fs::symlink(etc.join("main.conf"), cluster.data().join("server.crt")).unwrap();
    let world = Faulty::new(&cluster, true);
    assert!(about(&world.json(&["doctor", "crm"], 0)).contains("4 of them from outside"));
    world.json(&["backup", "crm"], 0);
    let target = world.path("restored");
    let report = world.json(&["restore", "crm", "--to", target.to_str().unwrap(), "--yes"], 0);
    for name in ["main.conf", "conf.d/10.conf", "conf.d/20.conf", "conf.d/30.conf"] {
        let captured = target.join("lifeboat_conf").join(etc.strip_prefix("/").unwrap()).join(name);
        assert_eq!(fs::read(&captured).unwrap(), fs::read(etc.join(name)).unwrap(), "{name}");
    }
    let notes = report["notes"].to_string();
    assert!(notes.contains("includes what is not in the folder") && notes.contains(&format!("{}/main.conf", etc.display())), "{report}");
    assert!(world.proven().contains(&"server".to_owned()));

    // Streamed by the server it cannot be had: the run says so, and so does doctor.
    let streamed = Faulty::new(&cluster, false);
    let made = streamed.json(&["backup", "crm"], 0);
    let warned = made["warnings"].to_string();
    assert!(warned.contains("not in this backup") && warned.contains("conf.d/20.conf") && warned.contains("main.conf"), "{made}");
    assert!(about(&streamed.json(&["doctor", "crm"], 0)).contains("conf.d/30.conf"));

    // A folder without configuration gets one with room for what its log may say.
    fs::rename(&conf, etc.join("away.conf")).unwrap();
    streamed.json(&["backup", "crm"], 0);
    let bare = streamed.path("bare");
    let report = streamed.json(&["restore", "crm", "--to", bare.to_str().unwrap(), "--yes"], 0);
    assert!(report["notes"].to_string().contains("a minimal one was written"), "{report}");
    let settings = fs::read_to_string(bare.join("postgresql.auto.conf")).unwrap();
    let origins = if distribution_version() >= 18 { "max_active_replication_origins" } else { "max_replication_slots" };
    assert!(settings.contains(&format!("{origins} = '10000'\n")), "{settings}");
}

#[test]
fn tables_that_come_and_go_meanwhile_are_no_failure() {
    for local in [false, true] {
        let cluster = Arc::new(Cluster::start(distribution_version()));
        cluster.sql(BULK);
        cluster.sql("CREATE TABLE emptied(n int); CREATE TABLE \"Straße; DROP TABLE bulk; --\"(\"sp alte\" text); CREATE TABLE rewritten AS SELECT n FROM generate_series(1, 1000) n");
        cluster.sql("INSERT INTO \"Straße; DROP TABLE bulk; --\" VALUES ('ü'), (NULL)");
        let world = Faulty::new(&cluster, local);
        let load = Load::start(&cluster, |n| {
            format!(
                "CREATE TABLE come_{n} AS SELECT g FROM generate_series(1, 500) g; TRUNCATE emptied; INSERT INTO emptied VALUES ({n}); \
                 DROP TABLE IF EXISTS come_{}; ALTER TABLE rewritten ALTER n TYPE {}",
                n.wrapping_sub(3),
                if n % 2 == 0 { "bigint" } else { "int" }
            )
        });
        let made = world.json(&["backup", "crm"], 0);
        assert!(load.end() > 10);
        // Tables that are rewritten all the time may not be had; then each is named, and nothing else is missing.
        let left_out = made["consistency"]["crm"]["fingerprints"]["left_out"].as_array().unwrap();
        for problem in left_out {
            let object = problem["object"].as_str().unwrap();
            assert!(["come_", "emptied", "rewritten"].iter().any(|name| object.contains(name)), "{problem}");
            assert!(!problem["message"].to_string().contains("does not exist"), "{problem}");
        }
        let drill = world.json(&["drill", "run", "crm"], if left_out.is_empty() { 0 } else { 3 });
        let checks = drill["checks"].as_array().unwrap();
        assert!(checks.iter().all(|check| check["outcome"] == "passed" || check["outcome"] == "skipped"), "{drill}");
        for table in ["bulk", "\"Straße; DROP TABLE bulk; --\""] {
            // Of the large one it is a sample.
            let name = format!("content of postgres.public.{table}");
            assert!(passed(&drill).iter().any(|check| *check == name || check.starts_with(&format!("{name} ["))), "{table}: {drill}");
        }
        assert_server_is_free(&cluster);
    }
}

/// A standby of `primary` that follows it.
fn standby_of(primary: &Cluster) -> Cluster {
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
    standby.configure(&[]);
    standby.start_server();
    standby
}

#[test]
fn a_standby_is_backed_up_and_proven() {
    for local in [false, true] {
        let primary = Arc::new(Cluster::start(distribution_version()));
        primary.sql(
            "CREATE TABLE account AS SELECT n, 'account ' || n AS name FROM generate_series(1, 20000) n; CREATE TABLE ledger(n bigint)",
        );
        let standby = standby_of(&primary);
        let world = Faulty::new(&standby, local);
        // Log must flow: a standby cannot end its own segment.
        let load = Load::start(&primary, |n| format!("INSERT INTO ledger VALUES ({n}); SELECT pg_sleep(0.005)"));
        let output = world.run(&["backup", "crm"]);
        load.end();
        assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
        let made: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(made["consistency"]["crm"]["standby"], true, "{made}");
        assert_server_is_free(&standby);
        assert_eq!(standby.value("SELECT pg_is_wal_replay_paused()"), "f", "replay goes on");
        let passed = world.proven();
        assert!(
            passed.contains(&"content of postgres.public.account".to_owned())
                && passed.contains(&"content of postgres.public.ledger".to_owned()),
            "{passed:?}"
        );
    }
}

#[test]
fn a_standby_is_backed_up_right_after_a_failover_that_it_followed() {
    for local in [false, true] {
        // Its checkpoints take an hour, also the one after a promotion: until then nobody has a restart point on the new timeline.
        let primary = Options::new(distribution_version()).setting("checkpoint_timeout", "1h").start();
        let (next, second) = {
            let next = standby_of(&primary);
            let second = standby_of(&next);
            (Arc::new(next), second)
        };
        primary.sql(BULK);
        primary.sql(
            "CREATE TABLE account AS SELECT n, 'account ' || n AS name FROM generate_series(1, 20000) n; CREATE TABLE ledger(n bigint)",
        );
        primary.sql("SELECT pg_switch_wal()");
        let end = primary.value("SELECT pg_current_wal_flush_lsn()");
        for standby in [&*next, &second] {
            wait_until("the standbys to have everything", || {
                standby.value(&format!("SELECT coalesce(pg_last_wal_replay_lsn() >= '{end}', false)")) == "t"
            });
        }
        primary.stop_server();
        next.promote();
        next.sql("DELETE FROM account WHERE n > 15000");
        wait_until("the second standby to follow", || second.value("SELECT count(*) FROM account") == "15000");
        let world = Faulty::new(&second, local);
        let load = Load::start(&next, |n| format!("INSERT INTO ledger VALUES ({n}); SELECT pg_sleep(0.005)"));
        let output = world.run(&["backup", "crm"]);
        load.end();
        assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
        let made: Value = serde_json::from_slice(&output.stdout).unwrap();
        let consistency = &made["consistency"]["crm"];
        assert_eq!((&consistency["start_timeline"], &consistency["timeline"]), (&Value::from(1), &Value::from(2)), "{made}");
        assert_server_is_free(&second);
        let passed = world.proven();
        assert!(
            passed.contains(&"content of postgres.public.account".to_owned())
                && passed.contains(&"content of postgres.public.ledger".to_owned()),
            "{passed:?}"
        );
        // As an operator has it: a server of its own, which goes on from the second timeline.
        let restored = world.restored("restored", &["--latest"]);
        let state = "SELECT count(*) || ' ' || (SELECT timeline_id FROM pg_control_checkpoint()) FROM account";
        assert_eq!(restored.value(state), "15000 3");
    }
}

#[test]
fn a_tablespace_that_is_created_meanwhile_is_never_replayed_here() {
    let cluster = Arc::new(Cluster::start(distribution_version()));
    cluster.sql(BULK);
    let world = Faulty::new(&cluster, false);
    let place = cluster.folder().join("space");
    assert!(as_server_user("mkdir").args(["-m", "700"]).arg(&place).status().unwrap().success());
    let (creator, location) = (Arc::clone(&cluster), place.display().to_string());
    let thread = std::thread::spawn(move || {
        let mut connection = creator.connect();
        wait_until("a base backup to run", || {
            creator.value("SELECT count(*) FROM pg_stat_progress_basebackup WHERE backup_streamed > 1000000") == "1"
        });
        connection.execute(&format!("CREATE TABLESPACE space LOCATION '{location}'")).unwrap();
        connection.execute("CREATE TABLE moved TABLESPACE space AS SELECT n FROM generate_series(1, 1000) n").unwrap();
        connection.execute("CHECKPOINT").unwrap();
    });
    let made = world.json(&["backup", "crm"], 3);
    thread.join().unwrap();
    assert!(made["problems"].to_string().contains("tablespace space"), "{made}");
    let state = |place: &Path| {
        let mut all: Vec<(PathBuf, u64, Vec<u8>)> = workspace::files(place)
            .into_iter()
            .map(|path| (path.clone(), fs::metadata(&path).unwrap().ino(), fs::read(&path).unwrap()))
            .collect();
        all.sort();
        all
    };
    // The source's own server is through with writing there: what readers noted on the pages is on disk.
    cluster.sql("VACUUM moved");
    cluster.sql("CHECKPOINT");
    let before = state(&place);
    assert!(!before.is_empty());
    let drill = world.json(&["drill", "run", "crm"], 3);
    assert_eq!(drill["verdict"], "incomplete", "{drill}");
    assert!(drill["checks"].to_string().contains(place.to_str().unwrap()), "{drill}");
    assert_eq!(passed(&drill), Vec::<String>::new(), "nothing was started");
    assert!(drill["recovery_time_ms"].is_null(), "what was not started cannot be used: {drill}");
    let report = world.json(&["restore", "crm", "--to", world.path("restored").to_str().unwrap(), "--yes"], 3);
    assert!(report["notes"].to_string().contains("DO NOT START IT"), "{report}");
    let part = world.path("part");
    let only = |words: &[&str], code: i32| {
        let words = [&["restore", "crm", "--only", "postgres/moved", "--to", part.to_str().unwrap(), "--yes"], words].concat();
        world.json(&words, code)
    };
    let refused = only(&[], 2);
    assert!(refused["error"].to_string().contains(place.to_str().unwrap()) && !part.exists(), "{refused}");
    assert_eq!(state(&place), before, "what the source has there was not touched");
    assert_eq!(cluster.value("SELECT count(*) FROM moved"), "1000");
    // The next backup has it as any other.
    world.say_plan("crm", "log = \"stream\"", "");
    world.json(&["backup", "crm"], 0);
    assert!(world.proven().contains(&"content of postgres.public.moved".to_owned()));
    assert_eq!(cluster.value("SELECT count(*) FROM moved"), "1000");

    // One that is created behind a snapshot: what leads past that is not replayed here, what ends before it is.
    let streamer = world.stream();
    let place = cluster.folder().join("later");
    assert!(as_server_user("mkdir").args(["-m", "700"]).arg(&place).status().unwrap().success());
    cluster.sql("DELETE FROM moved WHERE n > 900");
    std::thread::sleep(Duration::from_millis(20));
    let moment = cluster.value(NOW);
    std::thread::sleep(Duration::from_millis(20));
    // A server stops only before a commit, which a tablespace's own comes behind its creation.
    cluster.sql("INSERT INTO moved VALUES (0)");
    let lsn = cluster.value("SELECT pg_current_wal_insert_lsn()");
    cluster.sql(&format!("CREATE TABLESPACE later LOCATION '{}'", place.display()));
    cluster.sql("CREATE TABLE new TABLESPACE later AS SELECT n FROM generate_series(1, 1000) n");
    cluster.sql("VACUUM new");
    cluster.sql("CHECKPOINT");
    wait_for_now(&world, &cluster);
    streamer.stop();
    let before = state(&place);
    assert!(!before.is_empty());
    let refused = only(&[], 2);
    assert!(refused["error"].to_string().contains(place.to_str().unwrap()) && !part.exists(), "{refused}");
    // Whoever only looks at the exit code does not start it.
    for (words, code) in [(["--latest", "--yes"], 3), (["--lsn", &lsn], 0)] {
        let target = world.path(&format!("server-{code}"));
        let report = world.json(&[&["restore", "crm", "--to", target.to_str().unwrap()], &words[..]].concat(), code);
        let first = report["notes"][0].as_str().unwrap();
        assert_eq!(report["incomplete"], code == 3, "{report}");
        assert_eq!(first.contains("DO NOT START IT") && first.contains(place.to_str().unwrap()), code == 3, "{report}");
    }
    for (words, rows) in [(["--at", &moment], 900), (["--lsn", &lsn], 901)] {
        assert_eq!(only(&words, 0)["tables"][0]["rows"], rows, "{words:?}");
        fs::remove_file(&part).unwrap();
    }
    assert_eq!(state(&place), before, "what the source has there was not touched");
    assert_eq!(cluster.value("SELECT count(*) FROM new"), "1000");
}

/// A small file system in memory, gone with the test.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, mib: u64) -> Self {
        fs::create_dir_all(at).unwrap();
        let options = format!("size={mib}m,mode=0711");
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).output().unwrap();
        assert!(output.status.success(), "mount a small file system (root, and a container that may): {}", text(&output.stderr));
        Self(at.to_owned())
    }

    /// Leaves room for so many bytes.
    fn fill(&self, but: u64) {
        let found = rustix::fs::statvfs(&self.0).unwrap();
        let length = (found.f_bavail * found.f_frsize).saturating_sub(but);
        fs::write(self.0.join("filler"), vec![1; usize::try_from(length).unwrap()]).unwrap();
    }

    fn free(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[test]
fn a_full_disk_is_told_as_such_and_never_as_a_bad_backup() {
    let cluster = Cluster::start(distribution_version());
    cluster.sql("CREATE TABLE bulk AS SELECT n, md5(n::text) AS v FROM generate_series(1, 20000) n");
    let world = Faulty::new(&cluster, false);
    let bytes = world.json(&["backup", "crm"], 0)["bytes_source"].as_u64().unwrap();
    let small = Small::mount(&world.path("small"), (bytes >> 20) + 200);
    let target = small.0.join("restored");
    let words = ["restore", "crm", "--to", target.to_str().unwrap(), "--yes"];
    // Not enough from the beginning.
    small.fill(bytes / 2);
    let refused = world.json(&words, 1);
    assert_eq!(refused["error"]["kind"], "no-space", "{refused}");
    assert!(!target.exists());
    small.free();
    world.json(&words, 0);
    drop(small);

    // A drill: not enough at all; then enough for the content, and none left when the server is to recover.
    fs::rename(world.path("state"), world.path("state-before")).unwrap();
    let small = Small::mount(&world.path("state"), (bytes >> 20) + 100);
    for later in [false, true] {
        small.fill(if later { bytes + (1 << 20) } else { bytes / 2 });
        let mut child = world.command(&["drill", "run", "crm"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        if later {
            let work = world.path("state/work/crm");
            wait_until("the content to be there", || {
                let runs = fs::read_dir(&work).into_iter().flatten().flatten();
                runs.into_iter().any(|item| item.path().join("prove-crm").exists()) || child.try_wait().unwrap().is_some()
            });
            let mut rest = fs::File::create(small.0.join("rest")).unwrap();
            while child.try_wait().unwrap().is_none() {
                if rest.write_all(&[1; 4096]).is_err() {
                    std::thread::yield_now();
                }
            }
            drop(rest);
            fs::remove_file(small.0.join("rest")).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stdout);
        assert!(
            said.contains("no-space") || said.contains("No space left") || said.contains("bytes are free") || said.contains("disk is full"),
            "{said}"
        );
        // Without room for its journal the run fails; with it the drill is incomplete. Damage (20) is never said.
        assert!(output.status.code() == Some(1) || (later && output.status.code() == Some(3)), "{said}");
        assert_eq!(servers_below(&world.path("state")), Vec::<i32>::new());
        small.free();
        let work = fs::read_dir(world.path("state/work/crm")).into_iter().flatten().flatten();
        assert_eq!(work.filter(|item| item.path().is_dir()).count(), 0);
        let listed = world.json(&["snapshots", "crm"], 0);
        assert!(listed["snapshots"][0]["damaged"].is_null(), "{listed}");
    }
    world.proven();
}

fn commit(cluster: &Cluster, row: u64) -> String {
    cluster.sql(&format!("INSERT INTO ledger VALUES ({row})"));
    std::thread::sleep(Duration::from_millis(20));
    let moment = cluster.value(NOW);
    std::thread::sleep(Duration::from_millis(20));
    moment
}

fn wait_for_now(world: &World, cluster: &Cluster) {
    world.wait_for_log(cluster.value(NOW).parse().unwrap());
}

const ROWS: &str = "SELECT string_agg(n::text, ',' ORDER BY n) FROM ledger";

#[test]
fn a_server_that_falls_silent_is_told_and_its_log_has_no_hole() {
    let cluster = Cluster::start(distribution_version());
    cluster.sql("CREATE TABLE ledger(n int)");
    let world = World::new(&cluster, "crm", "log = \"stream\"");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let proxy = runtime.block_on(Proxy::start(&format!("http://127.0.0.1:{}", cluster.port)));
    world.say_url(&tcp_url(proxy.port(), PASSWORD));
    world.json(&["backup", "crm"], 0);
    let streamer = world.stream();
    commit(&cluster, 1);
    wait_for_now(&world, &cluster);
    proxy.silence(true);
    let silent_since: DateTime<Utc> = cluster.value(NOW).parse().unwrap();
    let unheard = commit(&cluster, 2);
    let begun = Instant::now();
    while !streamer.told().contains("silent") {
        assert!(begun.elapsed() < Duration::from_mins(2), "never told: {}", streamer.told());
        std::thread::sleep(Duration::from_millis(500));
    }
    // What nobody heard of is not promised.
    assert!(world.continuous().unwrap().1 <= silent_since, "{:?}", world.continuous());
    let target = world.path("never");
    let refused = world.json(&["restore", "crm", "--at", &unheard, "--to", target.to_str().unwrap(), "--yes"], 13);
    assert!(!target.exists(), "{refused}");
    proxy.silence(false);
    commit(&cluster, 3);
    let begun = Instant::now();
    let newest: DateTime<Utc> = cluster.value(NOW).parse().unwrap();
    while world.continuous().unwrap().1 < newest {
        assert!(begun.elapsed() < Duration::from_mins(2), "{:?}: {}", world.continuous(), streamer.told());
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(world.restored("unheard", &["--at", &unheard]).value(ROWS), "1,2");
    assert_eq!(world.restored("all", &[]).value(ROWS), "1,2,3");
}

#[test]
fn client_certificates_serve_for_backup_log_and_drill() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "root");
    let ec = ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    authority.issue("server", "localhost", "DNS:localhost", &ec);
    authority.issue("user", "certified", "DNS:unused", &ec);
    authority.issue("other", "somebody", "DNS:unused", &ec);
    let hba = "local all all trust\nhostssl all certified 127.0.0.1/32 cert\nhostssl replication certified 127.0.0.1/32 cert\n";
    let cluster = Options::new(distribution_version()).setting("ssl", "on").setting("ssl_ca_file", "root.crt").hba(hba).create();
    for name in ["server.crt", "server.key", "root.crt"] {
        cluster.write(&cluster.data().join(name), &fs::read_to_string(authority.path(name)).unwrap());
    }
    cluster.start_server();
    cluster.sql("CREATE ROLE certified LOGIN SUPERUSER; CREATE TABLE ledger(n int)");
    let world = World::new(&cluster, "crm", "log = \"stream\"");
    let url = |user: &str, mode: &str| {
        let path = |name: &str| authority.path(name);
        format!(
            "host=localhost hostaddr=127.0.0.1 port={} user=certified dbname=postgres sslmode={mode} sslrootcert={} sslcert={} sslkey={}",
            cluster.port,
            path("root.crt"),
            path(&format!("{user}.crt")),
            path(&format!("{user}.key"))
        )
    };
    // Another's certificate, and none at all.
    for wrong in [url("other", "verify-full"), url("user", "disable")] {
        world.say_url(&wrong);
        world.json(&["backup", "crm"], 2);
        assert_server_is_free(&cluster);
    }
    world.say_url(&url("user", "verify-full"));
    assert_eq!(world.json(&["doctor", "crm"], 0)["ok"], true);
    world.json(&["backup", "crm"], 0);
    let streamer = world.stream();
    let moment = commit(&cluster, 1);
    commit(&cluster, 2);
    wait_for_now(&world, &cluster);
    let in_use = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_replication USING (pid) WHERE ssl AND client_dn = '/CN=certified'";
    assert_eq!(cluster.value(in_use), "1");
    streamer.stop();
    assert_eq!(world.json(&["drill", "run", "crm"], 0)["verdict"], "passed");
    assert_eq!(world.restored("restored", &["--at", &moment]).value(ROWS), "1");
}

#[test]
fn log_segments_larger_than_a_piece_come_back_whole() {
    let cluster = Options::new(distribution_version()).initdb("--wal-segsize=128").setting("wal_keep_size", "1GB").start();
    cluster.sql("CREATE TABLE ledger(n int)");
    let world = World::new(&cluster, "crm", "log = \"stream\"");
    world.json(&["backup", "crm"], 0);
    let streamer = world.stream();
    let first = commit(&cluster, 1);
    // Written to its middle, so that a whole piece, a part of one and the zeros behind them are all there.
    cluster.sql("CREATE TABLE bulk AS SELECT n, repeat(md5(n::text), 40) AS v FROM generate_series(1, 55000) n");
    let segment = cluster.value("SELECT pg_walfile_name(pg_switch_wal())");
    let second = commit(&cluster, 2);
    commit(&cluster, 3);
    wait_for_now(&world, &cluster);
    let original = cluster.data().join("pg_wal").join(&segment);
    assert_eq!(fs::metadata(&original).unwrap().len(), 128 << 20);
    let copy = world.path("copy");
    world.json(&["log", "fetch", "crm", &segment, copy.to_str().unwrap()], 0);
    assert!(fs::read(&copy).unwrap() == fs::read(&original).unwrap(), "{segment} differs");
    streamer.stop();
    assert_eq!(world.restored("first", &["--at", &first]).value(ROWS), "1");
    let restored = world.restored("second", &["--at", &second]);
    assert_eq!((restored.value(ROWS), restored.value("SELECT count(*) FROM bulk")), ("1,2".into(), "55000".into()));
    drop(restored);
    // And pushed, into another repository.
    let pushed = World::new(&cluster, "crm", "");
    for outcome in ["stored", "already-there"] {
        assert_eq!(pushed.json(&["log", "push", "crm", original.to_str().unwrap()], 0)["outcome"], outcome);
    }
    let copy = pushed.path("copy");
    pushed.json(&["log", "fetch", "crm", &segment, copy.to_str().unwrap()], 0);
    assert!(fs::read(&copy).unwrap() == fs::read(&original).unwrap(), "{segment} differs");
}

/// Whether the newest snapshot is on record as damaged.
fn is_known_damaged(world: &World) -> bool {
    // Exits 20 where any is.
    let list: Value = serde_json::from_slice(&world.run(&["snapshots", "crm"]).stdout).unwrap();
    let snapshots = list["snapshots"].as_array().unwrap();
    let newest = snapshots.iter().max_by_key(|snapshot| snapshot["time"].as_str().unwrap().to_owned()).unwrap();
    !newest["damaged"].is_null()
}

/// A drill that found something which is no damage, and says this; no damage is on record.
fn incomplete(world: &World, reasons: &[&str]) -> Value {
    let drill = world.json(&["drill", "run", "crm"], 3);
    assert_eq!(drill["verdict"], "incomplete", "{drill}");
    let told = drill["reasons"].to_string();
    assert!(reasons.iter().all(|reason| told.contains(reason)), "{reasons:?}: {drill}");
    assert!(!is_known_damaged(world), "{drill}");
    drill
}

/// Waits for a process of a private server of this world that is called so for so long, and kills it.
fn kill_one(world: &World, title: &str, stays: Duration) {
    let is_it = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(title));
    let mut found = None;
    wait_until(title, || {
        found = servers_below(&world.path("state")).into_iter().find(is_it);
        if found.is_some() {
            std::thread::sleep(stays);
        }
        found.as_ref().is_some_and(is_it)
    });
    let pid = rustix::process::Pid::from_raw(found.unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_private_server_that_is_killed_is_no_damage() {
    let cluster = Cluster::start(distribution_version());
    cluster.sql("CREATE TABLE ledger AS SELECT 1 AS n");
    let world = Faulty::new(&cluster, false);
    let check = |sql: &str| format!("[[plan.crm.drill.check]]\nname = \"slow\"\nsql = \"{sql}\"\nexpect = \"= 1\"\ntimeout = \"60s\"");
    world.say_plan("crm", "", &check("SELECT 1 FROM pg_sleep(40)"));
    world.json(&["backup", "crm"], 0);
    // One of its sessions, and the whole of it before it answers.
    for title in ["[local] SELECT", "config_file="] {
        std::thread::scope(|scope| {
            let drill = scope.spawn(|| incomplete(&world, &["signal 9", "memory"]));
            // The plan's SQL, and none of what is asked before it.
            kill_one(&world, title, if title == "[local] SELECT" { Duration::from_secs(1) } else { Duration::ZERO });
            let drill = drill.join().unwrap();
            assert!(checks(&drill).iter().all(|(_, outcome)| outcome != "failed" && outcome != "differs"), "{drill}");
        });
    }
    let file = world.path("part");
    let words = ["restore", "crm", "--only", "postgres/ledger", "--to", file.to_str().unwrap(), "--yes"];
    std::thread::scope(|scope| {
        let restore = scope.spawn(|| world.json(&words, 1));
        kill_one(&world, "config_file=", Duration::ZERO);
        let failed = restore.join().unwrap();
        assert!(failed["error"]["kind"] == "failed" && failed.to_string().contains("memory"), "{failed}");
    });
    assert!(!file.exists() && !is_known_damaged(&world));
    assert_eq!(servers_below(&world.path("state")), Vec::<i32>::new());
    world.say_plan("crm", "", &check("SELECT 1"));
    world.proven();
    world.json(&words, 0);
}

fn connect_as(cluster: &Cluster, user: &str, database: &str) -> Connection {
    let mut settings = cluster.socket_settings();
    user.clone_into(&mut settings.user);
    Connection::connect(&settings, Mode::Sql { database: Some(database) }, &Cancel::default()).unwrap()
}

#[test]
fn a_state_folder_that_keeps_the_servers_user_out_is_no_damage() {
    assert!(server_user().is_some(), "only root starts servers as another user");
    let cluster = Cluster::start(distribution_version());
    cluster.sql("CREATE TABLE ledger AS SELECT 1 AS n");
    let world = Faulty::new(&cluster, false);
    world.json(&["backup", "crm"], 0);
    assert_eq!(world.json(&["doctor", "crm"], 0)["ok"], true);
    let mode = |mode| fs::set_permissions(world.path("state"), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o700);
    let doctor = world.json(&["doctor", "crm"], 2).to_string();
    assert!(doctor.contains("way for drills") && doctor.contains("chmod o+x"), "{doctor}");
    incomplete(&world, &[world.path("state").to_str().unwrap(), "may not be entered", "chmod o+x"]);
    let file = world.path("part");
    let words = ["restore", "crm", "--only", "postgres/ledger", "--to", file.to_str().unwrap(), "--yes"];
    let refused = world.json(&words, 2).to_string();
    assert!(refused.contains("may not be entered") && refused.contains("chmod o+x"), "{refused}");
    mode(0o711);
    world.proven();
    world.json(&words, 0);
}

#[test]
fn a_cluster_without_the_usual_database_and_superuser_is_drilled_as_it_is() {
    let version = distribution_version();
    let cluster = Cluster::start(version);
    cluster.sql("CREATE DATABASE crm");
    cluster.sql("CREATE ROLE boss SUPERUSER LOGIN; CREATE ROLE lifeboat LOGIN REPLICATION");
    let own = if version >= 17 { "pg_maintain" } else { "pg_write_all_data" };
    cluster.sql(&format!("GRANT pg_read_all_data, pg_read_all_settings, {own} TO lifeboat"));
    let mut boss = connect_as(&cluster, "boss", "crm");
    boss.execute("CREATE TABLE ledger AS SELECT n FROM generate_series(1, 100) n; ALTER TABLE ledger OWNER TO lifeboat").unwrap();
    boss.execute("GRANT EXECUTE ON FUNCTION pg_create_restore_point(text), pg_switch_wal() TO lifeboat").unwrap();
    let world = Faulty::new(&cluster, false);
    let url = |user: &str| format!("host={} port={} user={user} dbname=crm", cluster.folder().display(), cluster.port);
    boss.execute("DROP DATABASE postgres").unwrap();
    boss.execute("ALTER ROLE postgres NOLOGIN").unwrap();
    world.say_url(&url("boss"));
    assert!(world.json(&["doctor", "crm"], 0).to_string().contains("superuser for drills"));
    world.json(&["backup", "crm"], 0);
    assert!(world.proven().contains(&"content of crm.public.ledger".to_owned()));
    let part = |name: &str, code| {
        let file = world.path(name);
        world.json(&["restore", "crm", "--only", "crm/ledger", "--to", file.to_str().unwrap(), "--yes"], code)
    };
    assert_eq!(part("first", 0)["tables"][0]["rows"], 100);
    // The owner of the catalogue, who owns the database's own things, is still that one.
    let target = Cluster::start(version);
    target.sql("CREATE DATABASE back");
    target.sql("CREATE ROLE lifeboat");
    let back = format!("postgresql://postgres@/back?host={}&port={}", target.folder().display(), target.port);
    let whole = world.json(&["restore", "crm", "--only", "crm", "--to", &back, "--yes"], 0);
    assert_eq!(whole["warnings"], serde_json::json!([]), "{whole}");

    boss.execute("ALTER ROLE boss NOLOGIN").unwrap();
    world.say_url(&url("lifeboat"));
    let doctor = world.json(&["doctor", "crm"], 2).to_string();
    assert!(doctor.contains("no superuser may log in"), "{doctor}");
    world.json(&["backup", "crm"], 0);
    incomplete(&world, &["not permitted to log in", "ALTER ROLE … LOGIN"]);
    let refused = part("second", 2).to_string();
    assert!(refused.contains("not permitted to log in") && refused.contains("ALTER ROLE … LOGIN"), "{refused}");
    boss.execute("ALTER ROLE postgres LOGIN").unwrap();
    world.json(&["backup", "crm"], 0);
    world.proven();
}

#[test]
fn what_a_prepared_transaction_holds_is_passed_over_soon() {
    let cluster = Options::new(distribution_version()).setting("max_prepared_transactions", "5").start();
    cluster.sql("CREATE TABLE u(n int PRIMARY KEY, v text); INSERT INTO u SELECT n, 'v' || n FROM generate_series(1, 500) n");
    cluster.sql("CREATE TABLE ledger AS SELECT 1 AS n");
    let world = Faulty::new(&cluster, false);
    let check =
        "[[plan.crm.drill.check]]\nname = \"all of u\"\nsql = \"select count(*) from u\"\nexpect = \"= 500\"\ndatabase = \"postgres\"";
    world.say_plan("crm", "", check);
    cluster.sql("BEGIN; ALTER TABLE u ADD COLUMN x int; PREPARE TRANSACTION 'forgotten'");
    world.json(&["backup", "crm"], 0);
    let begun = Instant::now();
    let drill = incomplete(&world, &["pg_prepared_xacts", "ROLLBACK PREPARED"]);
    assert!(begun.elapsed() < Duration::from_mins(2), "{:?}", begun.elapsed());
    let found = |name: &str| drill["checks"].as_array().unwrap().iter().find(|check| check["name"] == name).unwrap().clone();
    for name in ["amcheck of postgres", "all of u"] {
        let check = found(name);
        assert_eq!(check["outcome"], "skipped", "{check}");
        assert!(check["actual"].as_str().unwrap().contains("pg_prepared_xacts"), "{check}");
    }
    assert_eq!(found("content of postgres.public.ledger")["outcome"], "passed");
    let part = |table: &str, code| {
        let file = world.path(&format!("part-of-{table}"));
        world.json(&["restore", "crm", "--only", &format!("postgres/{table}"), "--to", file.to_str().unwrap(), "--yes"], code)
    };
    let refused = part("u", 2).to_string();
    assert!(refused.contains("prepared at the source") && refused.contains("ROLLBACK PREPARED"), "{refused}");
    assert_eq!(part("ledger", 0)["tables"][0]["rows"], 1);
    cluster.sql("ROLLBACK PREPARED 'forgotten'");
    world.json(&["backup", "crm"], 0);
    world.proven();
}

#[test]
fn collations_and_locales_that_a_host_has_otherwise_are_no_damage() {
    let cluster = Cluster::start(distribution_version());
    cluster.sql("CREATE TABLE t(n int PRIMARY KEY, v text); INSERT INTO t SELECT n, 'v' || n FROM generate_series(1, 2000) n");
    cluster.sql("CREATE INDEX t_v ON t(v)");
    cluster.sql("CREATE DATABASE other");
    let world = Faulty::new(&cluster, false);
    let backup = || world.json(&["backup", "crm"], 0);
    // As if the entries had been put in another order.
    let turn = |index: &str, option: u32| {
        cluster.sql(&format!("UPDATE pg_index SET indoption = '{option}' WHERE indexrelid = '{index}'::regclass"));
    };
    cluster.sql("UPDATE pg_database SET datcollversion = '1.0' WHERE datname = 'postgres'");
    backup();
    let drill = world.json(&["drill", "run", "crm"], 0);
    let warnings = drill["warnings"].to_string();
    assert!(warnings.contains("database postgres, its own: version 1.0 at the source") && warnings.contains("REINDEX"), "{drill}");
    assert!(!warnings.contains("database other"), "{drill}");
    turn("t_v", 3);
    backup();
    incomplete(&world, &["public.t_v", "another version"]);
    turn("t_v", 0);
    turn("t_pkey", 3);
    backup();
    let drill = world.json(&["drill", "run", "crm"], 20);
    let reasons = drill["reasons"].to_string();
    assert!(reasons.contains("public.t_pkey") && !reasons.contains("t_v"), "{drill}");
    assert!(is_known_damaged(&world));
    turn("t_pkey", 0);
    cluster.sql("UPDATE pg_database SET datcollversion = NULL WHERE datname = 'postgres'");
    backup();
    assert_eq!(world.json(&["drill", "run", "crm"], 0)["warnings"], serde_json::json!([]));

    cluster.sql("UPDATE pg_database SET datcollate = 'xx_XX.UTF-8' WHERE datname = 'other'");
    let doctor = world.json(&["doctor", "crm"], 2).to_string();
    assert!(doctor.contains("not installed on this host: xx_XX.UTF-8 (of database other)"), "{doctor}");
    backup();
    incomplete(&world, &["amcheck of other", "install the locale"]);
    let file = world.path("part");
    let refused = world.json(&["restore", "crm", "--only", "other", "--to", file.to_str().unwrap(), "--yes"], 2).to_string();
    assert!(refused.contains("install the locale"), "{refused}");
}

/// A change of one file of a server that stands still for it.
fn tamper(cluster: &Cluster, file: &str, change: impl FnOnce(&fs::File)) {
    cluster.sql("CHECKPOINT");
    cluster.stop_server();
    change(&fs::OpenOptions::new().write(true).open(cluster.data().join(file)).unwrap());
    cluster.start_server();
}

#[test]
fn damage_that_no_query_meets_fails_the_drill() {
    use std::os::unix::fs::FileExt as _;
    let distribution = distribution_version();
    for (options, local) in [(Options::new(distribution).without_checksums(), true), (Options::new(17), false)] {
        let cluster = options.setting("autovacuum", "off").start();
        let is_bare = cluster.value("SHOW data_checksums") == "off";
        let make = |table: &str| {
            cluster.sql(&format!(
                "CREATE TABLE {table}(n int PRIMARY KEY, v text, a int[]); INSERT INTO {table} SELECT n, md5(n::text), ARRAY[n, n % 100] FROM generate_series(1, 8000) n"
            ));
        };
        for table in ["first", "second", "third"] {
            make(table);
        }
        cluster.sql("CREATE INDEX third_a ON third USING gin(a); CREATE SEQUENCE s; CREATE TABLE bare AS SELECT n FROM generate_series(1, 90000) n; ANALYZE bare");
        cluster.connect().execute("VACUUM first").unwrap();
        let path = |name: &str| cluster.value(&format!("SELECT pg_relation_filepath('{name}')"));
        let world = Faulty::new(&cluster, local);
        world.json(&["backup", "crm"], 0);
        // All is looked at by lifeboat itself, and what was found does not depend on a program.
        let (programs, bin) = (bin_directory(cluster.version), world.path("bin"));
        fs::create_dir(&bin).unwrap();
        for program in fs::read_dir(&programs).unwrap().flatten().filter(|program| program.file_name() != "pg_checksums") {
            std::os::unix::fs::symlink(program.path(), bin.join(program.file_name())).unwrap();
        }
        let plan = fs::read_to_string(world.path("plans/crm.toml")).unwrap();
        fs::write(world.path("plans/crm.toml"), plan.replace(programs.to_str().unwrap(), bin.to_str().unwrap())).unwrap();
        let proven = world.proven();
        let pages = if is_bare { "page headers" } else { "page checksums" };
        for name in ["sequences", pages, "pages that maps and indexes lead to", "sizes of tables", "folders of databases"] {
            assert!(proven.contains(&name.to_owned()), "{name}: {proven:?}");
        }
        // Each is told by name, and held against the snapshot; then it is made good.
        let fails = |words: &[&str], mend: &str| {
            let made = world.run(&["backup", "crm"]);
            assert_eq!(made.status.code(), Some(0), "{words:?}: {}", text(&made.stdout));
            let drill = world.json(&["drill", "run", "crm"], 20);
            let told = drill["reasons"].to_string();
            assert!(words.iter().all(|word| told.contains(word)), "{words:?}: {drill}");
            assert!(is_known_damaged(&world), "{drill}");
            cluster.sql(mend);
        };
        let zero = |file: &fs::File| file.write_all_at(&[0; 8192], 3 * 8192).unwrap();
        tamper(&cluster, &path("first"), zero);
        fails(&["postgres.public.first: block 3, ", "visibility map", "is all zeros"], "DROP TABLE first");
        tamper(&cluster, &path("second"), |file| file.set_len(5 * 8192).unwrap());
        fails(
            &["postgres.public.second: block 5, which its index postgres.public.second_pkey leads to", "there are 5 blocks"],
            "DROP TABLE second",
        );
        tamper(&cluster, &path("third_a"), zero);
        fails(&["postgres.public.third_a: block 3, which the index needs"], "REINDEX INDEX third_a");
        tamper(&cluster, &path("s"), |file| file.set_len(0).unwrap());
        fails(&["postgres: public.s: it has 0 rows"], "DROP SEQUENCE s");
        if is_bare {
            tamper(&cluster, &path("third_a"), |file| file.write_all_at(&[0xA5; 8192], 4 * 8192).unwrap());
            let place = format!("{}, block 4 of postgres.public.third_a", path("third_a"));
            fails(&[&place, "its header makes no sense"], "REINDEX INDEX third_a");
        }
        let template = cluster.data().join("base").join(cluster.value("SELECT oid FROM pg_database WHERE datname = 'template0'"));
        let away = cluster.folder().join("away");
        fs::rename(&template, &away).unwrap();
        fails(&["of database template0: the folder is missing"], "SELECT 1");
        fs::rename(&away, &template).unwrap();
        // What nothing leads to is no proof, and no damage.
        tamper(&cluster, &path("bare"), |file| file.set_len(0).unwrap());
        world.json(&["backup", "crm"], 0);
        incomplete(&world, &["postgres.public.bare has 0 pages", "VACUUM it there"]);
        cluster.connect().execute("VACUUM bare").unwrap();
        world.json(&["backup", "crm"], 0);
        world.proven();
    }
}

#[test]
fn a_busy_server_is_proven_while_its_tables_shrink_and_grow() {
    let versions = [Options::new(distribution_version()).without_checksums(), Options::new(17)];
    for (options, local) in versions.into_iter().zip([true, false]) {
        let cluster = Arc::new(options.setting("autovacuum_naptime", "1s").setting("max_wal_size", "64MB").start());
        cluster.sql(
            "CREATE TABLE t(n int, v text, a int[]); CREATE INDEX ON t(n); CREATE INDEX ON t USING hash(v); CREATE INDEX ON t USING gin(a); CREATE INDEX ON t USING brin(n);
             CREATE TABLE w(n int PRIMARY KEY); CREATE UNLOGGED TABLE u(n serial PRIMARY KEY); CREATE SEQUENCE s",
        );
        let statements = [
            "INSERT INTO t SELECT n, md5(random()::text), ARRAY[n % 500, n] FROM generate_series(1, 600) n",
            "UPDATE t SET v = md5(random()::text) WHERE n % 7 = 3",
            "DELETE FROM t WHERE n > 200",
            "VACUUM t",
            "BEGIN; TRUNCATE w; INSERT INTO w SELECT generate_series(1, 2000); COMMIT",
            "DELETE FROM w",
            "VACUUM w",
            "INSERT INTO u DEFAULT VALUES",
            "CREATE INDEX IF NOT EXISTS again ON t(v)",
            "SELECT nextval('s')",
            "DROP INDEX IF EXISTS again",
            "REINDEX TABLE w",
        ];
        let world = Faulty::new(&cluster, local);
        for _ in 0..2 {
            let load = Load::start(&cluster, move |number| statements[usize::try_from(number).unwrap() % statements.len()].to_owned());
            wait_until("some writes", || cluster.value("SELECT last_value FROM s").parse::<u64>().unwrap() > 3);
            for _ in 0..2 {
                world.json(&["backup", "crm"], 0);
                world.proven();
            }
            load.end();
            cluster.kill_server();
            cluster.start_server();
            world.json(&["backup", "crm"], 0);
            world.proven();
        }
    }
}
