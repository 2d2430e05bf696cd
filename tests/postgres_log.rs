//! The continuous log as a user has it: the program streams from a real server, and what is stored is byte for byte what the server wrote.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/postgres_world.rs"]
mod postgres_world;
mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use lifeboat::id::Name;
use lifeboat::repo::{Gap, Log, LogRun, OpenOptions, Passphrase, PieceInfo, Repository, runs};
use lifeboat::source::postgres::lsn::Lsn;
use lifeboat::store::{Store, StoreConfig};
use postgres_world::{PASSPHRASE, World, socket_url};
use serde_json::Value;
use support::postgres::{Cluster, NEWEST, Options, as_server_user, distribution_version, wait_until};

const SEGMENT: u64 = 1 << 20;

struct Logged {
    world: World,
    runtime: tokio::runtime::Runtime,
}

fn server(version: u32) -> Options {
    Options::new(version).initdb("--wal-segsize=1").setting("max_wal_size", "64MB").setting("min_wal_size", "2MB")
}

impl Deref for Logged {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Logged {
    fn new(cluster: &Cluster) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { world: World::new(cluster, "db", "log = \"stream\""), runtime }
    }

    fn lead_to(&self, cluster: &Cluster) {
        self.say_url(&socket_url(cluster));
    }

    fn log(&self) -> Log {
        self.log_in("repository", PASSPHRASE)
    }

    fn log_in(&self, folder: &str, passphrase: &str) -> Log {
        let store = Store::open(&StoreConfig::at(format!("file://{}", self.path(folder).display()))).unwrap();
        let repository =
            Repository::open(store, self.runtime.handle().clone(), &Passphrase::new(passphrase), &OpenOptions::default()).unwrap();
        repository.log(&Name::new("crm").unwrap(), &Name::new("db").unwrap())
    }

    fn runs(&self) -> Vec<LogRun> {
        runs(&self.log().pieces().unwrap())
    }

    fn gaps(&self) -> Vec<Gap> {
        let (gaps, damaged) = self.log().gaps().unwrap();
        assert!(damaged.is_empty());
        gaps
    }

    /// Waits until the log of a timeline has what the server has flushed.
    fn wait_for(&self, timeline: u64, flushed: Lsn) -> LogRun {
        let find = || self.runs().into_iter().find(|run| run.stream == timeline && run.start <= flushed.0 && flushed.0 <= run.end);
        wait_until(&format!("the log up to {flushed}; {:?}", self.runs()), || find().is_some());
        find().unwrap()
    }

    /// Every stored byte of the run up to `to` is in the server's own files.
    fn assert_same(&self, run: &LogRun, to: Lsn, server: &Cluster) {
        let log = self.log();
        let pieces = log.pieces().unwrap();
        assert_eq!(run.start % SEGMENT, 0);
        let mut at = run.start;
        while at < to.0 {
            let end = (at + SEGMENT).min(to.0);
            let (number, per_log) = (at / SEGMENT, (1 << 32) / SEGMENT);
            let name = format!("{:08X}{:08X}{:08X}", run.stream, number / per_log, number % per_log);
            let file = fs::read(server.data().join("pg_wal").join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            let stored = log.read_span(&pieces, run.stream, at..end).unwrap();
            let length = usize::try_from(end - at).unwrap();
            assert!(stored == file[..length], "{name} differs");
            at = end;
        }
    }

    fn status(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("state/work/crm/log-db.json")).unwrap_or_default()).unwrap_or_default()
    }
}

/// As if the server archived, and this segment waited for its turn.
fn wait_to_archive(cluster: &Cluster, number: u64) {
    let path = segment_file(cluster, number);
    assert!(path.exists(), "{}", path.display());
    let name = path.file_name().unwrap().to_str().unwrap();
    cluster.write(&path.with_file_name("archive_status").join(format!("{name}.ready")), "");
}

/// A segment of the first timeline in the server's `pg_wal`.
fn segment_file(cluster: &Cluster, number: u64) -> PathBuf {
    let per_log = (1 << 32) / SEGMENT;
    cluster.data().join("pg_wal").join(format!("{:08X}{:08X}{:08X}", 1, number / per_log, number % per_log))
}

fn flushed(cluster: &Cluster) -> Lsn {
    cluster.value("SELECT pg_current_wal_flush_lsn()").parse().unwrap()
}

fn write(cluster: &Cluster, rows: u32) {
    cluster.sql(&format!("INSERT INTO t SELECT g, repeat(md5(g::text), 20) FROM generate_series(1, {rows}) g"));
}

#[test]
fn what_is_stored_is_what_the_server_wrote() {
    for version in [distribution_version(), NEWEST] {
        let cluster = server(version).setting("wal_keep_size", "512").start();
        cluster.sql("CREATE TABLE t(g int, v text)");
        let world = Logged::new(&cluster);
        let streamer = world.stream();
        for rows in [10, 3000, 1, 5000, 700] {
            write(&cluster, rows);
            std::thread::sleep(std::time::Duration::from_millis(600));
        }
        cluster.sql("SELECT pg_switch_wal()");
        write(&cluster, 1);
        let committed = chrono::Utc::now();
        let end = flushed(&cluster);
        let run = world.wait_for(1, end);
        world.assert_same(&run, end, &cluster);
        // One at a time: a second one would only be in the way.
        let second = world.json(&["log", "stream", "crm"], 11);
        assert_eq!(second["error"]["kind"], "busy", "{second}");
        // An idle server's log is known to be whole all the same.
        wait_until("the newest moment", || {
            let clock = world.status()["server_clock"].as_str().and_then(|text| text.parse::<chrono::DateTime<chrono::Utc>>().ok());
            clock.is_some_and(|clock| clock > committed)
        });
        // The server writes a little by itself now and then, which is on its way for a moment.
        wait_until("a stream without lag", || {
            let status = world.status();
            status["connected"] == true && status["lag_bytes"] == 0
        });
        let mode = fs::metadata(world.path("state/work/crm/log-db.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        streamer.stop();
        // Whole segments are one piece each.
        let pieces = world.log().pieces().unwrap();
        let whole = pieces.iter().filter(|piece| piece.start % SEGMENT == 0 && piece.end == piece.start + SEGMENT).count() as u64;
        assert_eq!(whole, (end.0 - end.0 % SEGMENT - run.start) / SEGMENT, "{pieces:?}");
        assert!(pieces.iter().all(|piece| piece.end - piece.start == SEGMENT || piece.start >= end.0 / SEGMENT * SEGMENT), "{pieces:?}");
        // What is said of the pieces: commits, and moments that follow each other.
        let log = world.log();
        let facts: Vec<Value> = pieces.iter().map(|piece| log.facts(piece).unwrap()).collect();
        assert!(facts.iter().any(|facts| facts["last_commit"].is_string()) && facts.iter().any(|facts| facts["server_clock"].is_string()));
        let held: Lsn = cluster.value("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'lifeboat_crm_db'").parse().unwrap();
        assert!(held <= Lsn(run.end), "the server may forget only what is stored");
        assert!(world.gaps().is_empty());
    }
}

#[test]
fn a_killed_stream_loses_nothing() {
    let cluster = server(distribution_version()).setting("wal_keep_size", "512").start();
    cluster.sql("CREATE TABLE t(g int, v text)");
    let world = Logged::new(&cluster);
    for rows in [400, 2500, 300, 4000, 50] {
        let streamer = world.stream();
        wait_until("the stream", || world.status()["connected"] == true || streamer.told().contains("streamed already"));
        write(&cluster, rows);
        std::thread::sleep(std::time::Duration::from_millis(u64::from(rows) % 1700));
        streamer.kill();
        fs::remove_file(world.path("state/work/crm/log-db.json")).unwrap();
        write(&cluster, 100);
    }
    let _streamer = world.stream();
    let end = flushed(&cluster);
    let run = world.wait_for(1, end);
    assert_eq!(world.runs().len(), 1, "{:?}", world.runs());
    world.assert_same(&run, end, &cluster);
    assert!(world.gaps().is_empty());
}

#[test]
fn what_the_server_forgot_is_a_gap_on_record_and_the_rest_goes_on() {
    let cluster = server(distribution_version()).start();
    cluster.sql("CREATE TABLE t(g int, v text)");
    let world = Logged::new(&cluster);
    let streamer = world.stream();
    write(&cluster, 100);
    world.wait_for(1, flushed(&cluster));
    streamer.stop();
    let before = world.runs().pop().unwrap();
    wait_until("the slot is free", || {
        cluster.value("SELECT count(*) FROM pg_replication_slots WHERE NOT active AND slot_name = 'lifeboat_crm_db'") == "1"
    });
    cluster.sql("SELECT pg_drop_replication_slot('lifeboat_crm_db')");
    let first = format!("{:08X}{:016X}", 1, before.end / SEGMENT);
    wait_until("the server forgets", || {
        for _ in 0..3 {
            write(&cluster, 500);
            cluster.sql("SELECT pg_switch_wal()");
        }
        cluster.sql("CHECKPOINT");
        !cluster.data().join("pg_wal").join(&first).exists()
    });
    let streamer = world.stream();
    write(&cluster, 100);
    let end = flushed(&cluster);
    let run = world.wait_for(1, end);
    let gaps = world.gaps();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!((gaps[0].stream, gaps[0].from, gaps[0].to), (1, before.end, run.start), "{gaps:?}");
    world.assert_same(&run, end, &cluster);
    assert!(streamer.told().contains("has a gap"), "{}", streamer.told());
    assert_eq!(world.status()["gaps"].as_array().unwrap().len(), 1);
    streamer.stop_with(3);
    // It is told once, and the stream goes on behind it.
    let streamer = world.stream();
    write(&cluster, 100);
    world.wait_for(1, flushed(&cluster));
    streamer.stop();
    assert_eq!((world.gaps().len(), world.runs().len()), (1, 2));
}

#[test]
fn a_slot_that_was_lost_is_made_again() {
    let cluster = server(distribution_version()).setting("max_slot_wal_keep_size", "3MB").start();
    cluster.sql("CREATE TABLE t(g int, v text)");
    let world = Logged::new(&cluster);
    let streamer = world.stream();
    write(&cluster, 100);
    world.wait_for(1, flushed(&cluster));
    streamer.stop();
    wait_until("the slot is lost", || {
        write(&cluster, 3000);
        cluster.sql("SELECT pg_switch_wal(); CHECKPOINT");
        cluster.value("SELECT coalesce(wal_status, '') FROM pg_replication_slots") == "lost"
    });
    let _streamer = world.stream();
    write(&cluster, 100);
    world.wait_for(1, flushed(&cluster));
    assert_eq!((world.gaps().len(), world.runs().len()), (1, 2), "{:?}", world.gaps());
}

#[test]
fn a_backup_makes_a_lost_slot_again_so_that_log_goes_on_from_it() {
    let cluster = server(distribution_version()).setting("max_slot_wal_keep_size", "16MB").start();
    cluster.sql("CREATE TABLE t(g int, v text)");
    let world = Logged::new(&cluster);
    let streamer = world.stream();
    write(&cluster, 100);
    world.wait_for(1, flushed(&cluster));
    streamer.stop();
    let go_on = |rows: u32| {
        write(&cluster, rows);
        cluster.sql("SELECT pg_switch_wal(); CHECKPOINT");
    };
    wait_until("the slot is lost", || {
        go_on(3000);
        cluster.value("SELECT coalesce(wal_status, '') FROM pg_replication_slots") == "lost"
    });
    world.json(&["backup", "crm"], 0);
    assert_ne!(cluster.value("SELECT coalesce(wal_status, '') FROM pg_replication_slots"), "lost");
    go_on(100);
    let streamer = world.stream();
    write(&cluster, 100);
    world.wait_for(1, flushed(&cluster));
    let count = cluster.value("SELECT count(*) FROM t");
    let restored = world.restored("restored", &["--latest"]);
    assert_eq!(restored.value("SELECT count(*) FROM t"), count);
    // The gap lies before the snapshot: nothing is to be done about it.
    assert_eq!(world.gaps().len(), 1);
    let problems = world.json(&["status", "crm"], 0)["plans"][0]["problems"].to_string();
    assert!(!problems.contains("log-gap"), "{problems}");
    streamer.stop_with(3);
}

#[test]
fn a_promotion_is_followed_to_the_next_timeline() {
    for version in [distribution_version(), NEWEST] {
        let primary = server(version).setting("wal_keep_size", "512").start();
        primary.sql("CREATE TABLE t(g int, v text)");
        let standby = Cluster::empty(version);
        let words = ["-U", "postgres", "-c", "fast", "-X", "stream", "-h"].map(String::from).into_iter();
        standby.run(
            "pg_basebackup",
            words.chain([
                primary.folder().display().to_string(),
                "-p".into(),
                primary.port.to_string(),
                "-D".into(),
                standby.data().display().to_string(),
            ]),
        );
        let source = format!("host={} port={} user=postgres", primary.folder().display(), primary.port);
        standby.configure(&[("primary_conninfo".into(), source)]);
        standby.write(&standby.data().join("standby.signal"), "");
        standby.start_server();
        let world = Logged::new(&standby);
        let streamer = world.stream();
        write(&primary, 2000);
        let before = flushed(&primary);
        world.wait_for(1, before);
        // One moment of a standby is not one of the source.
        assert!(world.status()["server_clock"].is_null(), "{}", world.status());
        standby.promote();
        write(&standby, 2000);
        let end = flushed(&standby);
        let run = world.wait_for(2, end);
        world.assert_same(&run, end, &standby);
        let history = fs::read(standby.data().join("pg_wal/00000002.history")).unwrap();
        assert_eq!(world.log().side(&Name::new("00000002.history").unwrap()).unwrap().unwrap(), history);
        let history = String::from_utf8(history).unwrap();
        let left_at: Lsn = history.split_whitespace().nth(1).unwrap().parse().unwrap();
        let first = world.runs().into_iter().find(|run| run.stream == 1).unwrap();
        assert_eq!((first.end, run.start), (left_at.0, left_at.0 / SEGMENT * SEGMENT));
        // Restarted, it goes on there; the old primary is refused.
        streamer.stop();
        write(&standby, 100);
        let streamer = world.stream();
        world.wait_for(2, flushed(&standby));
        streamer.stop();
        assert_eq!(world.runs().len(), 2);
        let pieces = world.log().pieces().unwrap();
        world.lead_to(&primary);
        let refused = world.json(&["log", "stream", "crm"], 1);
        assert_eq!(refused["error"]["kind"], "split-brain", "{refused}");
        assert_eq!(world.log().pieces().unwrap(), pieces);
    }
}

/// A server that recovers looks for timelines one by one, and takes the first number without a history for the last.
#[test]
fn histories_of_timelines_that_nobody_streamed_are_stored_too() {
    let cluster = server(distribution_version()).setting("wal_keep_size", "512").start();
    cluster.sql("CREATE TABLE t(g int, v text)");
    for _ in 0..2 {
        cluster.stop_server();
        cluster.write(&cluster.data().join("standby.signal"), "");
        cluster.start_server();
        cluster.promote();
        write(&cluster, 10);
    }
    // It begins on the last one.
    let world = Logged::new(&cluster);
    let streamer = world.stream();
    wait_until("the stream", || world.status()["connected"] == true);
    write(&cluster, 10);
    let end = flushed(&cluster);
    world.wait_for(3, end);
    streamer.stop();
    let stored = |name: &str| world.log().side(&Name::new(name).unwrap()).unwrap();
    for name in ["00000002.history", "00000003.history"] {
        assert_eq!(stored(name), Some(fs::read(cluster.data().join("pg_wal").join(name)).unwrap()), "{name}");
    }
    // What is pushed brings those beside it, but none of another way.
    let text = |lines: &[(u32, u64)]| -> String {
        let known = String::from_utf8(stored("00000003.history").unwrap()).unwrap();
        lines.iter().fold(known, |text, (timeline, at)| format!("{text}{timeline}\t{}\tx\n", Lsn(*at)))
    };
    let folder = world.path("pg_wal");
    fs::create_dir(&folder).unwrap();
    let four = text(&[(3, end.0)]);
    for (name, content) in [
        ("00000004.history", four.clone()),
        ("00000005.history", text(&[(3, end.0 + 8)])),
        ("00000006.history", text(&[(3, end.0), (4, end.0 + 64), (5, end.0 + 128)])),
    ] {
        fs::write(folder.join(name), content).unwrap();
    }
    world.json(&["log", "push", "crm", folder.join("00000006.history").to_str().unwrap()], 0);
    assert_eq!((stored("00000004.history"), stored("00000005.history")), (Some(four.into_bytes()), None));
    assert!(stored("00000006.history").is_some());
}

/// By mistake: with a state folder of its own nothing on this host keeps it from starting.
#[test]
fn a_second_stream_says_who_has_the_slot_and_how_far_the_log_is_stored() {
    let cluster = server(distribution_version()).setting("wal_keep_size", "512").start();
    cluster.sql("CREATE TABLE t(g int, v text)");
    let world = Logged::new(&cluster);
    world.json(&["backup", "crm"], 0);
    let streamer = world.stream();
    write(&cluster, 3000);
    let end = flushed(&cluster);
    world.wait_for(1, end);
    fs::create_dir(world.path("other")).unwrap();
    let other = |words: &[&str]| {
        let mut command = workspace::bare(words);
        command.current_dir(world.path("")).arg("--plans").arg(world.path("plans")).args(["--state", "other", "--json"]);
        command
    };
    let mut second =
        other(&["log", "stream", "crm"]).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let noted =
        || -> Value { serde_json::from_slice(&fs::read(world.path("other/work/crm/log-db.json")).unwrap_or_default()).unwrap_or_default() };
    wait_until("the second one to tell it", || noted()["error"].is_string());
    let note = noted();
    let error = note["error"].as_str().unwrap();
    assert!(error.contains("another `lifeboat serve` or `log stream` streams this log") && error.contains("is active for PID"), "{note}");
    assert!(note["durable_to"].as_str().unwrap().parse::<Lsn>().unwrap() >= end, "{end} {note}");
    assert!(note["lag_bytes"].as_u64().unwrap() < SEGMENT, "{note}");
    let status = other(&["status", "crm"]).output().unwrap();
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let problems = status["plans"][0]["problems"].as_array().unwrap();
    let told = problems.iter().find(|problem| problem["kind"] == "log-not-streamed").unwrap()["message"].as_str().unwrap();
    assert!(told.contains("another `lifeboat serve`") && told.contains("it is stored until 20"), "{told}");
    second.kill().unwrap();
    second.wait().unwrap();
    streamer.stop();
}

/// What is stored of timeline 1 ends in the middle of a segment, or with one.
fn set_back(at_a_boundary: bool) {
    let cluster = server(distribution_version()).start();
    cluster.sql("CREATE TABLE t(g int, v text)");
    let world = Logged::new(&cluster);
    let streamer = world.stream();
    write(&cluster, 2000);
    world.wait_for(1, flushed(&cluster));
    streamer.stop();
    cluster.stop_server();
    let (data, kept) = (cluster.data(), cluster.folder().join("kept"));
    let copy =
        |from: &std::path::Path, to: &std::path::Path| assert!(as_server_user("cp").arg("-a").args([from, to]).status().unwrap().success());
    copy(&data, &kept);
    cluster.start_server();
    let streamer = world.stream();
    write(&cluster, 3000);
    if at_a_boundary {
        cluster.sql("SELECT pg_switch_wal()");
    }
    world.wait_for(1, flushed(&cluster));
    streamer.stop();
    // The disk as it was once, and more work on it than was stored of the first life.
    cluster.stop_server();
    fs::remove_dir_all(&data).unwrap();
    copy(&kept, &data);
    cluster.start_server();
    let stored = world.runs().pop().unwrap();
    assert_eq!(at_a_boundary, stored.end.is_multiple_of(SEGMENT), "{stored:?}");
    write(&cluster, 9000);
    assert!(flushed(&cluster).0 > stored.end + SEGMENT);
    let pieces = world.log().pieces().unwrap();
    let refused = world.json(&["log", "stream", "crm"], 1);
    assert_eq!(refused["error"]["kind"], "split-brain", "{refused}");
    assert!(refused["error"]["message"].as_str().unwrap().contains("was set back"), "{refused}");
    // Nor is the segment archived in which the stored log ends, or what waits behind it.
    let segment = (stored.end - 1) / SEGMENT;
    wait_to_archive(&cluster, segment + 1);
    let refused = world.json(&["log", "push", "crm", segment_file(&cluster, segment).to_str().unwrap()], 1);
    assert_eq!(refused["error"]["kind"], "split-brain", "{refused}");
    assert!(refused["error"].to_string().contains("another content is stored"), "{refused}");
    assert_eq!(world.log().pieces().unwrap(), pieces, "nothing was stored and nothing replaced");
}

#[test]
fn a_segment_that_the_stream_has_in_part_is_archived_beside_it() {
    let cluster = server(distribution_version()).start();
    cluster.sql("CREATE TABLE t(g int, v text)");
    let world = Logged::new(&cluster);
    let streamer = world.stream();
    for _ in 0..2 {
        write(&cluster, 100);
        world.wait_for(1, flushed(&cluster));
    }
    streamer.stop();
    let stored = world.runs().pop().unwrap();
    assert!(!stored.end.is_multiple_of(SEGMENT), "{stored:?}");
    let segment = stored.end / SEGMENT;
    cluster.sql("SELECT pg_switch_wal()");
    write(&cluster, 3000);
    wait_to_archive(&cluster, segment + 1);
    let push = || world.json(&["log", "push", "crm", segment_file(&cluster, segment).to_str().unwrap()], 0);
    let pushed = push();
    assert!(pushed["outcome"] == "stored" && pushed["ahead"] == 1, "{pushed}");
    assert_eq!(push()["outcome"], "already-there");
    let run = world.runs().pop().unwrap();
    assert_eq!((run.start, run.end), (stored.start, (segment + 2) * SEGMENT));
    world.assert_same(&run, Lsn(run.end), &cluster);
}

#[test]
fn a_primary_that_was_set_back_is_refused_also_when_it_has_written_past_the_end_of_the_log() {
    set_back(false);
    set_back(true);
}

#[test]
fn another_cluster_behind_the_url_is_refused() {
    let (cluster, other) = (server(distribution_version()).start(), server(distribution_version()).start());
    for cluster in [&cluster, &other] {
        cluster.sql("CREATE TABLE t(g int, v text)");
    }
    let world = Logged::new(&cluster);
    let streamer = world.stream();
    write(&cluster, 10);
    world.wait_for(1, flushed(&cluster));
    streamer.stop();
    let pieces = world.log().pieces().unwrap();
    world.lead_to(&other);
    let refused = world.json(&["log", "stream", "crm"], 1);
    assert_eq!(refused["error"]["kind"], "split-brain", "{refused}");
    assert!(refused["error"]["message"].as_str().unwrap().contains("another cluster"), "{refused}");
    assert_eq!(world.log().pieces().unwrap(), pieces);
    assert_eq!(other.value("SELECT count(*) FROM pg_replication_slots"), "0", "it would fill the wrong server's disk");
}

#[test]
fn an_old_primary_is_refused_as_soon_as_the_history_of_the_new_timeline_is_stored() {
    let cluster = server(distribution_version()).start();
    cluster.sql("CREATE TABLE t(g int, v text)");
    let world = Logged::new(&cluster);
    let streamer = world.stream();
    write(&cluster, 100);
    let left_at = flushed(&cluster);
    world.wait_for(1, left_at);
    streamer.stop();
    let stored = world.log().pieces().unwrap();
    write(&cluster, 100);
    world.log().put_side(&Name::new("00000002.history").unwrap(), format!("1\t{left_at}\tx\n").as_bytes()).unwrap();
    let refused = world.json(&["log", "stream", "crm"], 1);
    assert_eq!(refused["error"]["kind"], "split-brain", "{refused}");
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains(&format!("which left timeline 1 at {left_at}")), "{message}");
    assert_eq!(world.log().pieces().unwrap(), stored);

    // It is the right one all the same, and begins a timeline of its own, as the guide says: the log goes on along that from the first moment on.
    cluster.sql("ALTER SYSTEM SET restore_command = 'false'");
    cluster.sql("ALTER SYSTEM SET recovery_target_timeline = 'current'");
    cluster.stop_server();
    cluster.write(&cluster.data().join("pg_wal/00000002.history"), &format!("1\t{left_at}\tx\n"));
    cluster.write(&cluster.data().join("recovery.signal"), "");
    cluster.start_server();
    let _streamer = world.stream();
    write(&cluster, 100);
    world.wait_for(3, flushed(&cluster));
    let told = fs::read_to_string(world.path("spawned.log")).unwrap();
    assert!(!told.contains("not the primary any more"), "{told}");
}

#[test]
fn a_server_of_another_way_gets_no_slot() {
    let cluster = server(distribution_version()).start();
    cluster.sql("CREATE TABLE t(g int, v text)");
    let world = Logged::new(&cluster);
    let left_at = flushed(&cluster);
    write(&cluster, 100);
    world.log().put_side(&Name::new("00000002.history").unwrap(), format!("1\t{left_at}\tx\n").as_bytes()).unwrap();
    let refused = world.json(&["log", "stream", "crm"], 1);
    assert_eq!(refused["error"]["kind"], "split-brain", "{refused}");
    assert!(world.log().pieces().unwrap().is_empty());
    assert_eq!(cluster.value("SELECT count(*) FROM pg_replication_slots"), "0", "it would fill the old server's disk");
}

#[test]
fn a_damaged_piece_is_told_and_keeps_no_new_log_from_being_stored() {
    let cluster = server(distribution_version()).setting("wal_keep_size", "64").start();
    cluster.sql("CREATE TABLE t(g int, v text)");
    let world = Logged::new(&cluster);
    let streamer = world.stream();
    write(&cluster, 3000);
    world.wait_for(1, flushed(&cluster));
    streamer.stop();
    let damage = |piece: &PieceInfo| {
        let name = format!("{:016x}-{:016x}-{:016x}", piece.stream, piece.start, piece.end);
        let found = workspace::files(&world.path("repository")).into_iter().find(|path| path.to_str().unwrap().ends_with(&name)).unwrap();
        let mut bytes = fs::read(&found).unwrap();
        bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
        fs::remove_file(&found).unwrap();
        fs::write(&found, bytes).unwrap();
    };
    damage(&world.log().pieces().unwrap().pop().unwrap());
    let streamer = world.stream();
    write(&cluster, 3000);
    let end = flushed(&cluster);
    world.wait_for(1, end);
    let told = fs::read_to_string(world.path("spawned.log")).unwrap();
    assert!(told.contains("is damaged (`lifeboat verify`), new log is stored all the same"), "{told}");
    let facts = |piece| world.log().facts(piece).is_ok();
    assert!(world.log().pieces().unwrap().iter().any(|piece| piece.end >= end.0 && facts(piece)));

    // The same of the last whole segment, which a stream that stopped right behind it compares with what is sent again.
    cluster.sql("SELECT pg_switch_wal()");
    world.wait_for(1, flushed(&cluster));
    drop(streamer);
    let segment: u64 = cluster.value("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'").parse().unwrap();
    let is_whole = |piece: &&PieceInfo| piece.end - piece.start == segment;
    damage(world.log().pieces().unwrap().iter().rev().find(is_whole).unwrap());
    let streamer = world.stream();
    write(&cluster, 500);
    let end = flushed(&cluster);
    world.wait_for(1, end);
    let told = fs::read_to_string(world.path("spawned.log")).unwrap();
    assert!(told.contains("new log is stored all the same: compare with what is stored as"), "{told}");
    let noted = world.status();
    assert!(noted["damaged"][0].as_str().unwrap().contains("`lifeboat verify`") && noted["connected"] == true, "{noted}");
    streamer.stop_with(20);
}

/// The server's disk lost some of its log before it was sent: nothing can bring it back, and everybody must hear of it before it is needed.
#[test]
fn log_that_came_damaged_is_on_record_and_bounds_what_can_be_recovered() {
    let cluster = server(distribution_version()).setting("wal_keep_size", "64").start();
    cluster.sql("CREATE TABLE t(g int, v text)");
    let world = Logged::new(&cluster);
    let streamer = world.stream();
    world.json(&["backup", "crm"], 0);
    write(&cluster, 100);
    world.wait_for(1, flushed(&cluster));
    streamer.stop();
    cluster.sql("SELECT pg_switch_wal()");
    let number = flushed(&cluster).0 / SEGMENT + 1;
    write(&cluster, 3000);
    cluster.sql("CHECKPOINT");
    cluster.stop_server();
    let path = segment_file(&cluster, number);
    let mut bytes = fs::read(&path).unwrap();
    bytes[512 * 1024 + 4000] ^= 0x55;
    fs::write(&path, bytes).unwrap();
    cluster.start_server();
    let streamer = world.stream();
    write(&cluster, 100);
    world.wait_for(1, flushed(&cluster));
    let gaps = world.gaps();
    assert!(matches!(gaps[..], [Gap { stream: 1, from, unreadable: true, .. }] if from / SEGMENT == number), "{gaps:?}");
    assert!(streamer.told().contains("cannot be replayed, as it came from the server"), "{}", streamer.told());
    streamer.stop_with(3);
    // What is sent once more says nothing new.
    let streamer = world.stream();
    write(&cluster, 100);
    world.wait_for(1, flushed(&cluster));
    streamer.stop();
    assert_eq!(world.gaps(), gaps);
    world.json(&["verify", "crm"], 0);

    let problems = || world.json(&["status", "crm"], 0)["plans"][0]["problems"].to_string();
    let told = problems();
    assert!(told.contains("log-gap"), "{told}");
    // Up to there everything can be had, which is what all of them say.
    let range = world.continuous().unwrap().1;
    let status = world.json(&["status", "crm"], 0);
    let told_to = status["plans"][0]["restorable_to"].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    assert_eq!(told_to, range, "{status}");
    let at = Lsn(gaps[0].from).to_string();
    let restore = |name: &str, choice: &[&str], code: i32| {
        let to = world.path(name);
        world.json(&[&["restore", "crm", "--to", to.to_str().unwrap(), "--yes"], choice].concat(), code)
    };
    let before = restore("before", &["--latest"], 3);
    assert!(before.to_string().contains(&format!("the log has a hole at {at}")), "{before}");
    let behind = Lsn(gaps[0].from + 8).to_string();
    assert_eq!(restore("behind", &["--lsn", &behind], 13)["error"]["kind"], "no-recovery-point");
    // A snapshot that is made behind it goes on from there.
    let streamer = world.stream();
    world.json(&["backup", "crm"], 0);
    write(&cluster, 100);
    world.wait_for(1, flushed(&cluster));
    restore("after", &["--latest"], 0);
    let told = problems();
    assert!(!told.contains("log-gap"), "{told}");
    streamer.stop();
}

#[test]
fn segments_of_another_size_are_a_hole_and_both_logs_can_be_recovered() {
    let cluster = server(distribution_version()).start();
    cluster.sql("CREATE TABLE t(g int, v text)");
    let world = Logged::new(&cluster);
    let streamer = world.stream();
    world.json(&["backup", "crm"], 0);
    write(&cluster, 3000);
    let small = flushed(&cluster);
    world.wait_for(1, small);
    streamer.stop();
    cluster.stop_server();
    let before = world.runs().pop().unwrap();
    cluster.run("pg_resetwal", ["--wal-segsize=16".into(), "-D".into(), cluster.data().display().to_string()]);
    cluster.configure(&[("min_wal_size".into(), "64MB".into()), ("max_wal_size".into(), "256MB".into())]);
    cluster.start_server();
    let streamer = world.stream();
    write(&cluster, 100);
    let after = world.wait_for(1, flushed(&cluster));
    assert!(after.start.is_multiple_of(16 * SEGMENT) && before.start > 0 && before.end < after.start, "{before:?} {after:?}");
    let gaps = world.gaps();
    assert!(
        matches!(gaps[..], [Gap { stream: 1, from, to, .. }] if (from, to) == (before.end, after.start)),
        "{before:?}, {after:?}: {gaps:?}"
    );
    world.json(&["backup", "crm"], 0);
    write(&cluster, 200);
    world.wait_for(1, flushed(&cluster));
    streamer.stop_with(3);
    let restored = world.restored("latest", &["--latest"]);
    assert_eq!(restored.value("SELECT count(*) FROM t"), "3300");
    drop(restored);
    let drill = world.json(&["drill", "run", "crm", "--latest"], 0);
    assert_eq!(drill["verdict"], "passed", "{drill}");
    // What was written before is there with the segments that it had.
    let restored = world.restored("small", &["--lsn", &Lsn(before.start.max(small.0 - 100_000)).to_string()]);
    let rows: u32 = restored.value("SELECT count(*) FROM t").parse().unwrap();
    assert!(rows == 0 || rows == 3000, "{rows}");
    assert_eq!(restored.value("SHOW wal_segment_size"), "1MB");
}

#[test]
fn a_recovery_in_place_ends_how_far_the_log_was_behind() {
    let cluster = server(distribution_version()).start();
    cluster.sql("CREATE TABLE t(g int, v text)");
    let (data, kept) = (cluster.data(), cluster.folder().join("kept"));
    let copy =
        |from: &std::path::Path, to: &std::path::Path| assert!(as_server_user("cp").arg("-a").args([from, to]).status().unwrap().success());
    let world = Logged::new(&cluster);
    // The same stream all the while.
    let streamer = world.stream();
    write(&cluster, 1000);
    world.wait_for(1, flushed(&cluster));
    cluster.stop_server();
    copy(&data, &kept);
    cluster.start_server();
    write(&cluster, 9000);
    let far = flushed(&cluster);
    world.wait_for(1, far);
    cluster.stop_server();
    fs::remove_dir_all(&data).unwrap();
    copy(&kept, &data);
    cluster.write(&data.join("standby.signal"), "");
    cluster.start_server();
    cluster.promote();
    write(&cluster, 10);
    let end = flushed(&cluster);
    world.wait_for(2, end);
    assert!(end.0 + 2 * SEGMENT < far.0, "{end} {far}");
    let status = || world.status();
    wait_until("the log to be all there", || status()["timeline"] == 2 && status()["connected"] == true && status()["lag_bytes"] == 0);
    streamer.stop();
}

/// Damage was found late: the server goes back to a snapshot that is older than the window, and the positions of its new timeline are lower than those of all
/// snapshots of the window.
#[test]
fn after_a_recovery_in_place_to_an_old_snapshot_no_prune_takes_the_new_timeline_and_copies_have_it() {
    let cluster = server(distribution_version()).setting("wal_keep_size", "512").start();
    cluster.sql("CREATE TABLE t(g int, v text)");
    let world = Logged::new(&cluster);
    world.say_secret("other", "another passphrase");
    let keep = "keep = { last = 1, log = \"1s\" }\n";
    let folder = world.path("").display().to_string();
    let copy = format!(
        "[[plan.crm.copy]]\nto = \"offsite\"\n{keep}[repository.offsite]\nurl = \"file://{folder}/offsite\"\npassphrase = {{ file = \"{folder}/other\" }}\n"
    );
    world.say_plan("db", "log = \"stream\"", &format!("{keep}{copy}"));
    world.json(&["repo", "init", "offsite"], 0);
    let streamer = world.stream();
    let mut snapshots = Vec::new();
    for _ in 0..3 {
        let report = world.json(&["backup", "crm"], 0);
        snapshots.push(report["snapshot"].as_str().unwrap().to_owned());
        write(&cluster, 9000);
        world.wait_for(1, flushed(&cluster));
    }
    streamer.stop();
    let far = flushed(&cluster);
    cluster.stop_server();
    // The server is what was restored from now on.
    let restored = world.restored("back", &["--snapshot", &snapshots[0]]);
    world.say_url(&restored.url());
    let streamer = world.stream();
    restored.connect().execute("CREATE TABLE since(id int); INSERT INTO since SELECT generate_series(1, 77)").unwrap();
    let end: Lsn = restored.value("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    let run = world.wait_for(2, end);
    streamer.stop();
    assert!(run.end + 8 * SEGMENT < far.0, "{run:?} {far}");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    // A copy of the newest snapshot alone does not have what the timeline goes on from.
    world.json(&["copy", "crm", "--to", "offsite", "--last", "1"], 0);
    let copied = || runs(&world.log_in("offsite", "another passphrase").pieces().unwrap());
    assert!(copied().iter().any(|run| run.stream == 2 && run.start <= end.0 && end.0 <= run.end), "{:?}", copied());
    let pruned = world.json(&["prune", "crm"], 0);
    let fates = pruned["snapshots"].as_array().unwrap().iter();
    let kept: Vec<&str> = fates.filter(|fate| fate["kept"] == true).map(|fate| fate["id"].as_str().unwrap()).collect();
    assert_eq!(kept, [&*snapshots[0], &*snapshots[2]], "{pruned:#}");
    assert!(pruned["snapshots"][0]["reasons"].to_string().contains("recovery along timeline 2 begins with it"), "{pruned:#}");
    assert!(world.runs().iter().any(|run| run.stream == 2 && run.start <= end.0 && end.0 <= run.end), "{:?}", world.runs());
    assert!(copied().iter().any(|run| run.stream == 2 && run.start <= end.0 && end.0 <= run.end), "{:?}", copied());
    // What was written since comes back, here and from a copy that has the snapshot.
    assert_eq!(world.restored("again", &["--latest"]).value("SELECT count(*) FROM since"), "77");
    world.json(&["copy", "crm", "--to", "offsite", "--snapshot", &snapshots[0]], 0);
    world.json(&["prune", "crm"], 0);
    assert_eq!(world.restored("copy", &["--latest", "--repository", "offsite"]).value("SELECT count(*) FROM since"), "77");
}

/// A plan's key is destroyed to have its log destroyed: a stream must neither go on beside a new key, nor seal to one that is gone and stay green.
#[test]
fn a_stream_follows_what_is_done_with_the_plans_key() {
    let cluster = server(distribution_version()).setting("wal_keep_size", "512").start();
    cluster.sql("CREATE TABLE t(g int, v text)");
    let world = Logged::new(&cluster);
    let streamer = world.stream();
    write(&cluster, 100);
    world.wait_for(1, flushed(&cluster));
    let of_slot = |what: &str| {
        cluster.value(&format!("SELECT coalesce(max(({what})::text), '') FROM pg_replication_slots WHERE slot_name = 'lifeboat_crm_db'"))
    };
    // It looks whenever it connects, else once a minute.
    let end_session = || of_slot("pg_terminate_backend(active_pid)");
    let reads = |from: Lsn| {
        let (log, pieces) = (world.log(), world.log().pieces().unwrap());
        let later: Vec<_> = pieces.into_iter().filter(|piece| piece.start >= from.0).collect();
        assert!(!later.is_empty());
        later.iter().map(|piece| log.read(piece).map(|_| ()).map_err(|error| error.kind())).collect::<Vec<_>>()
    };
    world.json(&["key", "own", "main", "--plan", "crm"], 0);
    let first = of_slot("active_pid");
    end_session();
    wait_until("the next session", || ![first.as_str(), ""].contains(&of_slot("active_pid").as_str()));
    cluster.sql("SELECT pg_switch_wal()");
    write(&cluster, 100);
    let owned = flushed(&cluster);
    let owned = Lsn(owned.0 - owned.0 % SEGMENT);
    write(&cluster, 3000);
    world.wait_for(1, flushed(&cluster));
    assert!(reads(owned).iter().all(Result::is_ok));
    // Destroyed, with all that was stored since; and nothing more is stored.
    world.json(&["key", "erase", "main", "--plan", "crm", "--confirm", "crm"], 0);
    end_session();
    wait_until("the stream to end", || world.status()["error"].to_string().contains("its own key was destroyed"));
    streamer.stop_with(12);
    assert!(reads(owned).iter().all(|read| *read == Err(lifeboat::error::Kind::NoRecoveryPoint)), "{:?}", reads(owned));
    let before = world.runs();
    write(&cluster, 100);
    let refused = world.json(&["log", "stream", "crm"], 12);
    assert!(refused.to_string().contains("lifeboat key own REPO --plan crm"), "{refused}");
    assert_eq!(world.runs(), before);
    // Until somebody decides.
    world.json(&["key", "own", "main", "--plan", "crm"], 0);
    let streamer = world.stream();
    let after = flushed(&cluster);
    write(&cluster, 6000);
    world.wait_for(1, flushed(&cluster));
    assert!(reads(Lsn(after.0 + SEGMENT)).iter().all(Result::is_ok));
    streamer.stop();
}

#[test]
fn a_stream_comes_back_by_itself() {
    let cluster = server(distribution_version()).setting("wal_keep_size", "512").start();
    cluster.sql("CREATE TABLE t(g int, v text)");
    let world = Logged::new(&cluster);
    let streamer = world.stream();
    write(&cluster, 500);
    world.wait_for(1, flushed(&cluster));
    // The server's process is ended, then the whole server.
    cluster.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
    write(&cluster, 500);
    world.wait_for(1, flushed(&cluster));
    cluster.kill_server();
    cluster.start_server();
    write(&cluster, 500);
    let end = flushed(&cluster);
    let run = world.wait_for(1, end);
    world.assert_same(&run, end, &cluster);
    assert_eq!(world.runs().len(), 1);
    assert!(streamer.told().contains("does not stream"), "{}", streamer.told());
    streamer.stop();
}

#[test]
fn what_cannot_begin_is_told_at_once() {
    let cluster = server(distribution_version()).start();
    let world = Logged::new(&cluster);
    world.say_url(&format!(
        "hostaddr=127.0.0.1 host=localhost port={} user=postgres password=wrong dbname=postgres sslmode=disable",
        cluster.port
    ));
    let refused = world.json(&["log", "stream", "crm"], 2);
    assert!(!refused.to_string().contains("wrong\""), "{refused}");
    let unknown = world.json(&["log", "stream", "crm", "--source", "nothing"], 2);
    assert_eq!(unknown["error"]["kind"], "usage", "{unknown}");
}

#[test]
fn the_daemon_streams_and_status_and_doctor_say_how_it_stands() {
    let cluster = server(NEWEST).setting("wal_keep_size", "512").start();
    cluster.sql("CREATE TABLE t(g int, v text)");
    let world = Logged::new(&cluster);
    let problems = |status: &Value| -> Vec<String> {
        status["plans"][0]["problems"].as_array().unwrap().iter().map(|problem| problem["kind"].as_str().unwrap().to_owned()).collect()
    };
    let is_told = |status: &Value| problems(status).iter().any(|kind| kind == "log-not-streamed");
    assert!(is_told(&world.json(&["status"], 0)));
    // The log is held from before the first backup on.
    let backup = world.json(&["backup", "crm"], 0);
    let restart: Lsn = cluster.value("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'lifeboat_crm_db'").parse().unwrap();
    let start: Lsn = backup["consistency"]["db"]["start_lsn"].as_str().unwrap().parse().unwrap();
    assert!(restart <= start, "{restart} {backup}");
    write(&cluster, 3000);

    let daemon = world.spawn(&["serve"]);
    write(&cluster, 500);
    let end = flushed(&cluster);
    let run = world.wait_for(1, end);
    assert!(run.start <= start.0);
    world.assert_same(&run, end, &cluster);
    wait_until("status is content with the log", || {
        let status = world.json(&["status"], 0);
        !is_told(&status) && status["plans"][0]["logs"][0]["server_clock"].is_string()
            // Not the distance of two backups any more.
            && status["plans"][0]["data_loss_ms"].as_u64().is_some_and(|loss| loss < 10_000)
    });
    let doctor = world.json(&["doctor", "crm"], 0);
    let check = doctor["checks"].as_array().unwrap().iter().find(|check| check["name"] == "source db: continuous log").unwrap().to_string();
    assert!(check.contains("in use") && check.contains("summarize_wal = off"), "{check}");
    // Gone for a while, it comes back by itself.
    cluster.stop_server();
    wait_until("status tells that nothing comes", || is_told(&world.json(&["status"], 0)));
    cluster.start_server();
    write(&cluster, 100);
    world.wait_for(1, flushed(&cluster));
    daemon.stop();
    assert!(world.json(&["status"], 0)["plans"][0]["logs"][0]["durable_to"].is_string());
}

/// A file system that is not mounted any more is away, not empty.
#[test]
fn a_local_repository_that_goes_away_keeps_the_log_waiting_and_a_backup_from_committing() {
    let cluster = server(distribution_version()).start();
    cluster.sql("CREATE TABLE t(g int, v text)");
    let world = Logged::new(&cluster);
    let streamer = world.stream();
    world.json(&["backup", "crm"], 0);
    write(&cluster, 100);
    world.wait_for(1, flushed(&cluster));
    let (place, aside) = (world.path("repository"), world.path("aside"));
    fs::rename(&place, &aside).unwrap();
    write(&cluster, 500);
    wait_until("the stream tells it", || world.status()["error"].as_str().is_some_and(|error| error.contains("the folder is gone")));
    assert_eq!(world.json(&["backup", "crm"], 10)["error"]["kind"], "no-repository");
    assert!(!place.exists());
    fs::rename(&aside, &place).unwrap();
    world.wait_for(1, flushed(&cluster));
    assert!(world.gaps().is_empty() && world.runs().len() == 1, "{:?}", world.runs());
    streamer.stop();
    let restored = world.restored("restored", &["--latest"]);
    assert_eq!(restored.value("SELECT count(*) FROM t"), "600");
}
