//! Recovery to any moment: snapshots and a log, put into the repository by the library, and servers that start and hold exactly what had
//! been committed by then.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/postgres_world.rs"]
mod postgres_world;
mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use lifeboat::clock::SystemClock;
use lifeboat::event::{Cancel, Silent};
use lifeboat::id::Name;
use lifeboat::ops::CommitGate;
use lifeboat::ops::resolve::{RepositorySettings, Surroundings};
use lifeboat::repo::{Log, Passphrase};
use lifeboat::source::postgres::conninfo::Host;
use lifeboat::source::postgres::lsn::Lsn;
use lifeboat::source::postgres::wal::{FactsReader, SegmentSize, WalName};
use postgres_world::{NOW, PASSPHRASE, Restored, World, give_to_server, socket_url};
use serde_json::Value;
use support::postgres::{Cluster, Options, as_server_user, bin_directory, distribution_version, wait_until};
use workspace::text;

struct Ledger {
    cluster: Cluster,
    world: World,
}

impl Deref for Ledger {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

/// What was committed, when, and where the log was then.
#[derive(Debug, Clone)]
struct Moment {
    rows: u64,
    time: String,
    lsn: Lsn,
    xid: String,
}

impl Ledger {
    fn new(version: u32) -> Self {
        Self::of(Options::new(version))
    }

    fn of(options: Options) -> Self {
        let cluster = options.setting("wal_keep_size", "1GB").start();
        cluster.sql("CREATE TABLE ledger(id int PRIMARY KEY); ALTER TABLE ledger SET (autovacuum_enabled = off)");
        let world = World::new(&cluster, "crm", "");
        Self { cluster, world }
    }

    /// One more row, committed; then a pause, so that its moment is before the next.
    fn commit(&self, rows: u64) -> Moment {
        let value = |sql: &str| self.cluster.value(sql);
        let xid = value(&format!("INSERT INTO ledger VALUES ({rows}) RETURNING pg_current_xact_id()"));
        std::thread::sleep(Duration::from_millis(20));
        let time = value(NOW);
        let lsn = value("SELECT pg_current_wal_insert_lsn()").parse().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        Moment { rows, time, lsn, xid }
    }

    /// One more row, committed by a record that lies across the end of a segment of 1 MiB; the name of that segment.
    fn commit_across(&self, row: u64) -> String {
        let mut session = self.cluster.connect();
        loop {
            session.execute(&format!("BEGIN; INSERT INTO ledger VALUES ({row})")).unwrap();
            let mut at = || session.value("SELECT pg_current_wal_insert_lsn()").unwrap().unwrap().parse::<Lsn>().unwrap().0;
            let end = (at() + (1 << 16)).next_multiple_of(1 << 20);
            // To the last page, where no page header comes between.
            while end - at() > 8000 {
                let bytes = (end - at()).min(1 << 16) / 2;
                self.cluster.sql(&format!("SELECT pg_logical_emit_message(false, 'x', repeat('x', {bytes}))"));
            }
            let before = at();
            self.cluster.sql("SELECT pg_logical_emit_message(false, 'x', repeat('x', 256))");
            let overhead = (at() - before).saturating_sub(256);
            if let Some(bytes) = (end - 16).checked_sub(at() + overhead) {
                self.cluster.sql(&format!("SELECT pg_logical_emit_message(false, 'x', repeat('x', {bytes}))"));
            }
            // Unless the server wrote something of its own.
            if at() == end - 16 {
                let name = session.value(&format!("SELECT pg_walfile_name('{}')", Lsn(end - 1))).unwrap().unwrap();
                session.execute("COMMIT").unwrap();
                return name;
            }
            session.execute("ROLLBACK").unwrap();
        }
    }

    fn assert_restores(&self, name: &str, words: &[&str], rows: u64) {
        let restored = self.restored(name, words);
        assert_eq!(rows_of(&restored), (1..=rows).map(|row| row.to_string()).collect::<Vec<_>>().join(","), "{words:?}");
    }

    /// Refused, with what there is.
    fn assert_unavailable(&self, words: &[&str]) -> String {
        let target = self.path("never");
        let output = self.run(&[&["restore", "crm", "--to", target.to_str().unwrap(), "--yes"], words].concat());
        let said = text(&output.stdout);
        assert_eq!(output.status.code(), Some(13), "{words:?}: {said}");
        assert!(!target.exists());
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        said["error"]["hint"].as_str().unwrap_or_default().to_owned()
    }

    fn ranges(&self) -> Vec<Value> {
        self.json(&["snapshots", "crm"], 0)["recovery_ranges"].as_array().unwrap().clone()
    }
}

fn rows_of(restored: &Restored) -> String {
    restored.value("SELECT string_agg(id::text, ',' ORDER BY id) FROM ledger")
}

/// Puts what a server wrote into the repository, as a stream of it would: small pieces, and whole segments where one ended meanwhile.
struct Capture {
    log: Log,
    reader: FactsReader,
    segment: SegmentSize,
    timeline: u32,
    _runtime: tokio::runtime::Runtime,
}

impl Capture {
    fn begin(world: &Ledger, timeline: u32, value: impl Fn(&str) -> String, at: Lsn) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let url = format!("file://{}", world.path("repository").display());
        let surroundings = Surroundings {
            state: world.path("state"),
            runtime: runtime.handle().clone(),
            clock: Arc::new(SystemClock),
            progress: Arc::new(Silent),
            cancel: Cancel::default(),
            gate: CommitGate::default(),
        };
        let repository = RepositorySettings::at(&url, Passphrase::new(PASSPHRASE.to_owned())).unwrap().open(&surroundings).unwrap();
        let name = Name::new("crm").unwrap();
        let segment = SegmentSize::new(value("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'").parse().unwrap()).unwrap();
        let identifier = value("SELECT system_identifier FROM pg_control_system()").parse().unwrap();
        let reader = FactsReader::new(segment.start(segment.number(at)), segment, identifier).unwrap();
        Self { log: repository.log(&name, &name), reader, segment, timeline, _runtime: runtime }
    }

    /// Everything that there is. Returns the clock that it vouches for.
    fn take(&mut self, data: &Path, value: impl Fn(&str) -> String) -> DateTime<Utc> {
        let clock: DateTime<Utc> = value(NOW).parse().unwrap();
        let newest: Lsn = value("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
        while self.reader.position() < newest {
            let at = self.reader.position();
            let number = self.segment.number(at);
            let end = self.segment.start(number + 1).min(newest);
            let name = WalName::Segment { timeline: self.timeline, number }.text(self.segment);
            let file = fs::read(data.join("pg_wal").join(name)).unwrap();
            let from = self.segment.offset(at) as usize;
            let bytes = &file[from..from + usize::try_from(end.since(at)).unwrap()];
            let mut facts = self.reader.take(self.timeline, bytes);
            facts.server_clock = (end == newest).then_some(clock);
            self.log.append(u64::from(self.timeline), at.0, end.0, &serde_json::to_value(facts).unwrap(), bytes).unwrap();
        }
        clock
    }
}

impl Ledger {
    fn capture(&self) -> Capture {
        let at = self.cluster.value("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
        Capture::begin(self, 1, |sql| self.cluster.value(sql), at)
    }

    fn take(&self, capture: &mut Capture) -> DateTime<Utc> {
        capture.take(&self.cluster.data(), |sql| self.cluster.value(sql))
    }
}

#[test]
fn every_kind_of_target_gives_exactly_what_had_committed() {
    let world = Ledger::new(distribution_version());
    let mut capture = world.capture();
    let before = world.commit(1);
    world.json(&["backup", "crm"], 0);
    let mut moments = vec![before];
    for row in 2..=6 {
        moments.push(world.commit(row));
        if row == 4 {
            world.cluster.sql("SELECT pg_create_restore_point('before the mistake')");
            world.take(&mut capture);
            world.cluster.sql("SELECT pg_switch_wal()");
        }
        if row == 5 {
            // What is stored ends with this commit's record.
            world.take(&mut capture);
        }
    }
    let clock = world.take(&mut capture);
    let [_, second, third, _, fifth, last] = &moments[..] else { panic!() };

    world.assert_restores("time", &["--at", &third.time], third.rows);
    world.assert_restores("lsn", &["--lsn", &second.lsn.to_string()], second.rows);
    world.assert_restores("last-lsn", &["--lsn", &last.lsn.to_string()], last.rows);
    world.assert_restores("inside-lsn", &["--lsn", &Lsn(fifth.lsn.0 - 8).to_string()], fifth.rows);
    world.assert_restores("name", &["--restore-point", "before the mistake"], 4);
    world.assert_restores("xid", &["--xid", &fifth.xid], fifth.rows);
    world.assert_restores("immediate", &["--immediate"], 1);
    // Behind the last commit, within what the stream vouches for.
    world.assert_restores("end", &["--at", &last.time], last.rows);
    let latest = world.restored("latest", &[]);
    assert_eq!(rows_of(&latest), "1,2,3,4,5,6");
    assert_eq!(latest.report["recovery"]["target"], "latest", "{}", latest.report);
    assert_eq!(latest.report["at"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap(), clock);
    drop(latest);

    let ranges = world.ranges();
    assert_eq!((ranges.len(), &ranges[0]["continuous"], &ranges[0]["points"]), (1, &Value::Bool(true), &Value::from(1)), "{ranges:?}");
    assert_eq!(ranges[0]["to"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap(), clock);
    for words in [
        ["--at", &(clock + Duration::from_millis(1)).to_rfc3339()],
        ["--at", &moments[0].time],
        ["--lsn", &last.lsn.plus(1 << 20).to_string()],
        ["--restore-point", "another"],
        ["--xid", "4000000"],
        ["--timeline", "2"],
    ] {
        let hint = world.assert_unavailable(&words);
        assert!(hint.contains("what can be recovered: 2"), "{words:?}: {hint}");
    }
    let drill = world.json(&["drill", "run", "crm", "--at", &third.time], 0);
    assert_eq!((&drill["verdict"], drill["recovery"]["target"]["time"].is_string()), (&Value::from("passed"), true), "{drill}");
}

#[test]
fn a_commit_that_no_file_has_whole_is_not_replayed_before_its_time() {
    let world = Ledger::of(Options::new(distribution_version()).initdb("--wal-segsize=1").setting("autovacuum", "off"));
    world.commit(1);
    world.json(&["backup", "crm"], 0);
    let first = world.cluster.value("SELECT pg_walfile_name(lsn) FROM (SELECT redo_lsn AS lsn FROM pg_control_checkpoint()) AS c");
    let second = world.commit(2);
    let across = world.commit_across(3);
    let third = world.cluster.value(NOW);
    let last = world.cluster.value("SELECT pg_walfile_name(pg_switch_wal())");
    assert!(across < last);
    // As archive_command does: nobody reads one segment and the next.
    let mut names: Vec<String> = fs::read_dir(world.cluster.data().join("pg_wal"))
        .unwrap()
        .map(|item| item.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.len() == 24 && *name >= first && *name <= last)
        .collect();
    names.sort();
    for name in &names {
        world.json(&["log", "push", "crm", world.cluster.data().join("pg_wal").join(name).to_str().unwrap()], 0);
    }
    // And time goes on, without another commit.
    world.cluster.sql("CHECKPOINT");
    let clock = world.take(&mut world.capture());
    assert!(clock > third.parse::<DateTime<Utc>>().unwrap());
    world.assert_restores("before", &["--at", &second.time], second.rows);
    world.assert_restores("after", &["--at", &third], 3);
}

#[test]
fn a_standby_of_a_recovered_server_follows_it() {
    let world = Ledger::new(distribution_version());
    let mut capture = world.capture();
    world.commit(1);
    world.json(&["backup", "crm"], 0);
    let second = world.commit(2);
    world.commit(3);
    world.take(&mut capture);
    let restored = world.restored("restored", &["--at", &second.time]);
    assert_eq!(rows_of(&restored), "1,2");
    assert!(restored.report["notes"].to_string().contains("grep recovery_target"), "{}", restored.report);
    let settings = fs::read_to_string(restored.data.join("postgresql.auto.conf")).unwrap();
    assert!(!settings.contains("recovery") && settings.contains("archive_mode = 'off'\n"), "{settings}");

    let follower = world.path("follower");
    fs::create_dir(&follower).unwrap();
    fs::set_permissions(&follower, fs::Permissions::from_mode(0o700)).unwrap();
    give_to_server(&follower);
    let copied = as_server_user(bin_directory(distribution_version()).join("pg_basebackup"))
        .args(["-R", "-c", "fast", "-U", "postgres", "-h"])
        .arg(world.path("s-restored"))
        .arg("-D")
        .arg(&follower)
        .output()
        .unwrap();
    assert!(copied.status.success(), "{}", text(&copied.stderr));
    let (up, standby) = world.try_start("follower", &follower, &world.start_command(&follower));
    assert!(up, "{}", standby.log());
    restored.connect().execute("INSERT INTO ledger VALUES (99)").unwrap();
    wait_until("the row on the standby", || rows_of(&standby) == "1,2,99");
    assert_eq!(standby.value("SELECT pg_is_in_recovery()"), "t", "one primary");
    drop(standby);

    // And it starts again as what it is.
    let data = restored.data.clone();
    drop(restored);
    let again = world.start("again", &data);
    assert_eq!((rows_of(&again).as_str(), again.value("SHOW archive_mode").as_str()), ("1,2,99", "off"));
    assert_eq!(again.value("SHOW recovery_target_time"), "");
}

#[test]
fn what_the_source_raised_later_and_a_delay_of_its_standbys_keep_no_copy_from_its_moment() {
    let world = Ledger::of(Options::new(distribution_version()).setting("recovery_min_apply_delay", "2h"));
    let mut capture = world.capture();
    world.commit(1);
    world.json(&["backup", "crm"], 0);
    let second = world.commit(2);
    world.cluster.sql("ALTER SYSTEM SET max_connections = 77");
    world.cluster.stop_server();
    world.cluster.start_server();
    world.commit(3);
    world.take(&mut capture);
    let latest = world.restored("latest", &[]);
    assert_eq!((rows_of(&latest).as_str(), latest.value("SHOW max_connections").as_str()), ("1,2,3", "77"));
    // It is the source's again for standbys of this server.
    let settings = fs::read_to_string(latest.data.join("postgresql.auto.conf")).unwrap();
    assert!(!settings.contains("recovery_min_apply_delay"), "{settings}");
    let before = world.restored("before", &["--lsn", &second.lsn.to_string()]);
    assert_eq!((rows_of(&before).as_str(), before.value("SHOW max_connections").as_str()), ("1,2", "30"));
}

#[test]
fn one_table_comes_back_as_it_was_at_a_moment() {
    let world = Ledger::new(distribution_version());
    let mut capture = world.capture();
    world.commit(1);
    world.json(&["backup", "crm"], 0);
    let third = [2, 3].map(|row| world.commit(row))[1].clone();
    world.commit(4);
    // Made after the snapshot: only its log knows it.
    world.cluster.sql("CREATE TABLE young AS SELECT generate_series(1, 9) AS n");
    world.cluster.sql("SELECT pg_create_restore_point('before the mistake')");
    world.cluster.sql("DROP TABLE ledger");
    world.take(&mut capture);
    world.cluster.sql("CREATE DATABASE back");
    let settings = world.cluster.socket_settings();
    let Host::Socket(socket) = &settings.host else { panic!("no socket") };
    let url = |database: &str| format!("postgresql://postgres@/{database}?host={}&port={}", socket.display(), settings.port);
    let only = |to: &str, words: &[&str], code: i32| world.json(&[&["restore", "crm", "--yes", "--to", to], words].concat(), code);

    let report = only(&url("back"), &["--only", "postgres/ledger", "--at", &third.time], 0);
    assert_eq!((&report["tables"][0]["rows"], report["recovery"]["target"]["time"].is_string()), (&Value::from(3), true), "{report}");
    // Back into the server that lost it, and a table that no snapshot holds.
    let words = ["--only", "postgres/ledger", "--restore-point", "before the mistake"];
    assert_eq!(only(&url("postgres"), &words, 0)["tables"][0]["rows"], 4);
    assert_eq!(world.cluster.value("SELECT string_agg(id::text, ',' ORDER BY id) FROM ledger"), "1,2,3,4");
    assert_eq!(only(&url("back"), &["--only", "postgres/young"], 0)["tables"][0]["rows"], 9);
    let gone = only(&url("back"), &["--only", "postgres/young", "--immediate"], 2);
    assert!(gone["error"].to_string().contains("no table young"), "{gone}");
}

/// It is gone before its removal is committed, which is all that a server looks at that is to recover to a time.
#[test]
fn a_database_that_was_dropped_is_whole_at_the_moment_before() {
    let world = Ledger::of(Options::new(distribution_version()).setting("max_prepared_transactions", "5"));
    let mut capture = world.capture();
    world.cluster.sql("CREATE DATABASE customers");
    let settings = world.cluster.socket_settings();
    let Host::Socket(socket) = &settings.host else { panic!("no socket") };
    let (host, port) = (socket.display(), settings.port);
    let in_customers = |sql: &str| {
        let to = format!("host={host} port={port} user=postgres dbname=customers");
        world.cluster.run("psql", ["-qX".into(), "-d".into(), to, "-c".into(), sql.into()]);
    };
    in_customers("CREATE TABLE t AS SELECT generate_series(1, 2000) AS n");
    world.commit(1);
    world.json(&["backup", "crm"], 0);
    in_customers("INSERT INTO t SELECT generate_series(1, 1001)");
    world.commit(2);
    world.cluster.sql("BEGIN; INSERT INTO ledger VALUES (100); PREPARE TRANSACTION 'open'");
    let before: Lsn = world.cluster.value("SELECT pg_current_wal_insert_lsn()").parse().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let whole = world.cluster.value(NOW);
    std::thread::sleep(Duration::from_millis(20));
    world.cluster.sql("DROP DATABASE customers");
    world.commit(3);
    world.take(&mut capture);

    let restored = world.restored("whole", &["--at", &whole]);
    assert_eq!(rows_of(&restored), "1,2");
    assert_eq!(restored.connect_to("customers").value("SELECT count(*) FROM t").unwrap().as_deref(), Some("3001"));
    assert_eq!(restored.value("SELECT string_agg(gid, ',') FROM pg_prepared_xacts"), "open");
    drop(restored);
    assert_eq!(world.json(&["drill", "run", "crm", "--at", &whole], 0)["verdict"], "passed");
    world.cluster.sql("CREATE DATABASE back");
    let back = format!("postgresql://postgres@/back?host={host}&port={port}");
    let report = world.json(&["restore", "crm", "--yes", "--to", &back, "--only", "customers/t", "--at", &whole], 0);
    assert_eq!(report["tables"][0]["rows"], 3001, "{report}");

    // Right between.
    let end = world.cluster.value("SELECT pg_current_wal_insert_lsn()");
    let log = world.cluster.data().join("pg_wal");
    let dumped =
        world.cluster.run("pg_waldump", ["-p".into(), log.to_str().unwrap().into(), "-s".into(), before.to_string(), "-e".into(), end]);
    let lines = text(&dumped.stdout);
    let commit =
        lines.lines().skip_while(|line| !line.starts_with("rmgr: Database")).find(|line| line.starts_with("rmgr: Transaction")).unwrap();
    let between = commit.split("lsn: ").nth(1).unwrap().split(',').next().unwrap();
    let target = world.path("between");
    let report = world.json(&["restore", "crm", "--to", target.to_str().unwrap(), "--yes", "--lsn", between], 3);
    assert!(report["notes"][0].as_str().unwrap().contains("was being dropped at this moment: its files are gone"), "{report}");
    let drill = world.json(&["drill", "run", "crm", "--lsn", between], 3);
    assert_eq!(drill["verdict"], "incomplete", "{drill}");
    let check = drill["checks"].as_array().unwrap().iter().find(|check| check["name"] == "databases being dropped").unwrap();
    assert!(check["outcome"] == "skipped" && check["actual"].as_str().unwrap().contains("its files are gone"), "{drill}");
    // Nothing of the moment before it.
    assert_eq!(world.json(&["drill", "run", "crm", "--lsn", &before.to_string()], 0)["verdict"], "passed");
    world.json(&["drill", "run", "crm", "--lsn", "FF/0"], 13);
    world.json(&["drill", "run", "crm", "--lsn", "nonsense"], 2);
}

/// It has no restore point of its own, and the piece of log that goes on from it may be a whole segment.
#[test]
fn moments_right_behind_a_snapshot_of_a_standby_can_be_recovered() {
    let world = Ledger::new(distribution_version());
    world.commit(1);
    let standby = Cluster::empty(world.cluster.version);
    world.cluster.run(
        "pg_basebackup",
        [
            format!("--pgdata={}", standby.data().display()),
            "--checkpoint=fast".into(),
            "--write-recovery-conf".into(),
            format!("--dbname=host={} port={} user=postgres", world.cluster.folder().display(), world.cluster.port),
        ],
    );
    standby.configure(&[]);
    standby.start_server();
    let mut capture = world.capture();
    world.commit(2);
    wait_until("the standby to have everything", || standby.value("SELECT count(*) FROM ledger") == "2");
    world.say_url(&socket_url(&standby));
    world.json(&["backup", "crm"], 0);
    // What a checkpoint says of its time is in seconds.
    std::thread::sleep(Duration::from_secs(3));
    let third = world.commit(3);
    world.commit(4);
    world.cluster.sql("SELECT pg_switch_wal()");
    world.commit(5);
    world.take(&mut capture);
    let from = world.ranges()[0]["from"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap();
    assert!(from < third.time.parse::<DateTime<Utc>>().unwrap(), "{from} {third:?}");
    world.assert_restores("third", &["--at", &third.time], 3);
}

#[test]
fn a_hole_bounds_what_can_be_recovered_and_a_later_snapshot_goes_on_behind_it() {
    let world = Ledger::new(distribution_version());
    let mut capture = world.capture();
    world.json(&["backup", "crm"], 0);
    let first = world.commit(1);
    let second = world.commit(2);
    world.take(&mut capture);
    drop(capture);
    // Nobody streams this.
    world.cluster.sql("SELECT pg_switch_wal()");
    let lost = world.commit(3);
    world.cluster.sql("SELECT pg_switch_wal()");
    let mut capture = world.capture();
    let unreachable = world.commit(4);
    world.take(&mut capture);
    // The end of the log was asked for, and this is not it.
    let cut = world.path("cut");
    let report = world.json(&["restore", "crm", "--to", cut.to_str().unwrap(), "--yes"], 3);
    assert!(report["warnings"].to_string().contains("the log has a hole at"), "{report}");
    let drill = world.json(&["drill", "run", "crm", "--latest"], 3);
    assert!(drill["verdict"] == "incomplete" && drill["reasons"].to_string().contains("the log has a hole at"), "{drill}");
    let again = world.path("again");
    let words = ["restore", "crm", "--to", again.to_str().unwrap(), "--yes"];
    world.json(&[&words[..], &["--dry-run"]].concat(), 3);
    // Whoever goes on with it later is told too.
    let begun = world.spawn(&words);
    let tree = world.path(".again.lifeboat-partial/tree/crm");
    wait_until("some of it is restored", || fs::read_dir(&tree).is_ok_and(|mut items| items.next().is_some()));
    begun.kill();
    let report = world.json(&[&words[..], &["--resume"]].concat(), 3);
    assert!(report["log_hole"].as_str().unwrap().contains("the log has a hole at"), "{report}");
    world.json(&["backup", "crm"], 0);
    let after = world.commit(5);
    let last = world.commit(6);
    world.take(&mut capture);

    let ranges = world.ranges();
    assert_eq!((ranges.len(), ranges.iter().all(|range| range["continuous"] == true)), (2, true), "{ranges:?}");
    for moment in [&lost, &unreachable] {
        let hint = world.assert_unavailable(&["--at", &moment.time]);
        assert_eq!(hint.matches("timeline 1").count(), 2, "both ranges: {hint}");
        world.assert_unavailable(&["--lsn", &moment.lsn.to_string()]);
    }
    world.assert_restores("before", &["--at", &first.time], first.rows);
    world.assert_restores("edge", &["--at", &second.time], second.rows);
    world.assert_restores("behind", &["--at", &after.time], after.rows);
    world.assert_restores("newest", &[], last.rows);
}

#[test]
fn a_promoted_server_is_followed_and_the_old_timeline_only_when_it_is_named() {
    let world = Ledger::new(distribution_version());
    let mut capture = world.capture();
    world.json(&["backup", "crm"], 0);
    let first = world.commit(1);
    let abandoned = world.commit(2);
    world.take(&mut capture);

    // A failover to what had been committed by the first moment.
    let promoted = world.restored("promoted", &["--at", &first.time]);
    assert_eq!(rows_of(&promoted), "1");
    promoted.value("INSERT INTO ledger VALUES (10) RETURNING id");
    std::thread::sleep(Duration::from_millis(20));
    let later = promoted.value(NOW);
    let history = fs::read(promoted.data.join("pg_wal/00000002.history")).unwrap();
    let text = String::from_utf8(history.clone()).unwrap();
    let switch: Lsn = text.split('\t').nth(1).unwrap().parse().unwrap();
    capture.log.put_side(&Name::new("00000002.history").unwrap(), &history).unwrap();
    let mut second = Capture::begin(&world, 2, |sql| promoted.value(sql), switch);
    second.take(&promoted.data, |sql| promoted.value(sql));
    drop(promoted);

    let new = world.restored("new", &[]);
    assert_eq!(rows_of(&new), "1,10");
    assert_eq!(new.value("SELECT timeline_id FROM pg_control_checkpoint()"), "3");
    drop(new);
    // Both wrote then: whoever asks for that moment must hear of the other one.
    let told = |report: &Value| {
        report["warnings"].as_array().unwrap().iter().any(|warning| {
            let text = warning.as_str().unwrap();
            text.contains("committed on timeline 1 alone") && text.contains("--timeline 1")
        })
    };
    let target = world.path("dry");
    let plan = |words: &[&str]| world.json(&[&["restore", "crm", "--to", target.to_str().unwrap(), "--dry-run"], words].concat(), 0);
    assert!(told(&plan(&["--at", &abandoned.time])), "{}", plan(&["--at", &abandoned.time]));
    for words in [&["--at", &first.time][..], &["--at", &later], &["--latest"], &["--timeline", "1", "--at", &abandoned.time]] {
        assert!(!told(&plan(words)), "{words:?}: {}", plan(words));
    }
    let forked = world.restored("forked", &["--at", &abandoned.time]);
    assert!(told(&forked.report), "{}", forked.report);
    assert_eq!(rows_of(&forked), "1");
    drop(forked);
    let drill = world.json(&["drill", "run", "crm", "--at", &abandoned.time], 0);
    assert!(drill["verdict"] == "passed" && told(&drill), "{drill}");
    let file = world.path("part");
    let part =
        world.json(&["restore", "crm", "--only", "postgres/ledger", "--to", file.to_str().unwrap(), "--yes", "--at", &abandoned.time], 0);
    assert!(told(&part), "{part}");
    world.assert_restores("old", &["--timeline", "1"], abandoned.rows);
    world.assert_restores("old-time", &["--timeline", "1", "--at", &abandoned.time], abandoned.rows);
    world.assert_unavailable(&["--timeline", "4"]);
}

#[test]
fn drills_prove_the_files_and_then_the_log_between_two_snapshots() {
    let world = Ledger::new(distribution_version());
    let mut capture = world.capture();
    world.json(&["backup", "crm"], 0);
    world.commit(1);
    world.json(&["backup", "crm"], 0);
    world.take(&mut capture);
    let files = world.json(&["drill", "run", "crm"], 0);
    assert!(files["recovery"].is_null(), "{files}");
    let log = world.json(&["drill", "run", "crm"], 0);
    assert_eq!((&log["verdict"], &log["compared_with"]), (&Value::from("passed"), &files["snapshot"]), "{log}");
    assert_ne!(log["snapshot"], files["snapshot"]);
    for drill in [&files, &log] {
        let of = |name: &str| {
            drill["phases"].as_array().unwrap().iter().find(|phase| phase["name"] == name).unwrap()["duration_ms"].as_u64().unwrap()
        };
        let recovery = drill["recovery_time_ms"].as_u64().unwrap();
        let sum: u64 = ["select", "fetch", "adopt", "place", "replay"].map(of).iter().sum();
        assert!(of("replay") > 0 && sum <= recovery && recovery - sum <= 100, "{drill}");
        assert!(recovery + of("check") <= drill["duration_ms"].as_u64().unwrap(), "{drill}");
    }
    // By that drill, a restore of as many bytes with as many of log takes as long.
    let report = text(&world.run(&["drill", "report", log["id"].as_str().unwrap()]).stdout);
    let number = |value: &Value| value.as_u64().unwrap();
    let brought = |drill: &Value| number(&drill["bytes_restored"]) + drill["recovery"]["bytes"].as_u64().unwrap_or(0);
    assert!(number(&log["recovery"]["bytes"]) > 0 && report.contains("recovery_time_ms"), "{report}");
    let plan = world.json(&["restore", "crm", "--latest", "--dry-run", "--to", world.path("there").to_str().unwrap()], 0);
    let needed = number(&plan["bytes"]) + plan["recovery"]["bytes"].as_u64().unwrap_or(0);
    let slowest = [&files, &log].map(|drill| number(&drill["recovery_time_ms"]) * needed / brought(drill)).into_iter().max().unwrap();
    let floor = [&files, &log].map(|drill| number(&drill["recovery_time_ms"])).into_iter().min().unwrap().min(1000);
    assert_eq!(number(&plan["estimate"]["duration_ms"]), slowest.max(floor), "{plan}");
    assert!(
        plan["estimate"]["basis"].as_str().unwrap().ends_with("with the replay of the log, which the server does when you start it"),
        "{plan}"
    );
    let compared = |check: &&Value| check["name"] == "content of postgres.public.ledger" && check["outcome"] == "passed";
    let ledger = log["checks"].as_array().unwrap().iter().find(compared).unwrap();
    assert!(ledger["actual"].as_str().unwrap().starts_with("1 rows"), "the row came by the log: {ledger}");
    assert!(world.json(&["drill", "run", "crm"], 0)["recovery"].is_null(), "the files again");
}

#[test]
fn a_drill_of_a_random_moment_recovers_there_and_says_what_it_could_not_compare() {
    let world = Ledger::new(distribution_version());
    let mut capture = world.capture();
    world.json(&["backup", "crm"], 0);
    for row in 1..=6 {
        world.commit(row);
        std::thread::sleep(Duration::from_millis(300));
    }
    world.take(&mut capture);
    let moment = |value: &Value| value.as_str().unwrap().parse::<DateTime<Utc>>().unwrap();
    let ranges = world.ranges();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let drill = world.json(&["drill", "run", "crm", "--random"], 0);
        assert!(drill["verdict"] == "passed" && drill["seed"].is_u64() && drill["compared_with"].is_null(), "{drill}");
        let at = moment(&drill["recovery"]["at"]);
        assert!(ranges.iter().any(|range| moment(&range["from"]) <= at && at <= moment(&range["to"])), "{at} {ranges:?}");
        assert!(drill["warnings"].to_string().contains("there are no fingerprints of that moment"), "{drill}");
        let names: Vec<&str> = drill["checks"].as_array().unwrap().iter().map(|check| check["name"].as_str().unwrap()).collect();
        for wanted in ["server", "databases", "extensions", "amcheck of postgres", "page checksums"] {
            assert!(names.contains(&wanted), "{wanted}: {names:?}");
        }
        assert!(!names.iter().any(|name| name.starts_with("content of")), "{names:?}");
        // Again, by what the report says.
        let report = text(&world.run(&["drill", "report", drill["id"].as_str().unwrap()]).stdout);
        assert!(report.contains("\"seed\""), "{report}");
        let exact = at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        let again = world.json(&["drill", "run", "crm", "--at", &exact], 0);
        assert_eq!((&again["recovery"], &again["seed"]), (&drill["recovery"], &Value::Null));
        seen.push(at);
    }
    assert_ne!(seen[0], seen[1]);
    // It is no proof of the snapshot.
    let snapshots = world.json(&["snapshots", "crm"], 0);
    assert!(snapshots["snapshots"][0]["proven_at"].is_null(), "{snapshots}");
}

#[test]
fn random_drills_on_schedule_take_turns_so_that_snapshots_are_proven_too() {
    let world = Ledger::new(distribution_version());
    let plan = world.path("plans/crm.toml");
    fs::write(&plan, fs::read_to_string(&plan).unwrap() + "[plan.crm.drill]\nat = \"random\"\n").unwrap();
    let mut capture = world.capture();
    world.json(&["backup", "crm"], 0);
    world.commit(1);
    world.commit(2);
    world.take(&mut capture);
    let kinds: Vec<(bool, bool)> = (0..3)
        .map(|_| {
            let drill = world.json(&["drill", "run", "crm"], 0);
            assert!(drill["seed"].is_u64(), "{drill}");
            (drill["recovery"].is_null(), drill["compared_with"].is_null())
        })
        .collect();
    assert_eq!(kinds, [(true, true), (false, true), (true, true)], "files, a moment, files");
}
