//! A model test of the continuous log: transactions with a ledger and pgbench under load; a streamer, backups and a server that are killed at random, promotions, failovers that
//! lose commits which the log has already, segments that are pushed while nobody streams; then restores to random moments, whole and by `--delta`. After each, the ledger must hold exactly what had committed at that moment,
//! and pgbench's sums must agree.
//!
//! Small here. By hand for hours: `LIFEBOAT_MODEL_SECONDS=7200 cargo test --release --test postgres_model -- --nocapture`; `LIFEBOAT_MODEL_SEED` repeats a run's choices.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/postgres_world.rs"]
mod postgres_world;
mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::fs;
use std::ops::Deref;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use lifeboat::event::Cancel;
use lifeboat::source::postgres::client::{Connection, Mode};
use lifeboat::source::postgres::conninfo::Settings;
use postgres_world::{Restored, World};
use support::postgres::{Cluster, Options, as_server_user, bin_directory, distribution_version};

/// How long the load runs unless the environment says otherwise.
const SECONDS: u64 = 20;
/// Restores afterwards, for each 20 seconds of load.
const RESTORES: u64 = 3;
/// Commits of one ledger are so far apart at least that a moment between two is no other's by the clock's grain.
const APART: Duration = Duration::from_millis(4);

/// Small numbers from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed ^ (mixed >> 27)) % bound
    }
}

struct Model {
    cluster: Cluster,
    world: World,
}

impl Deref for Model {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Model {
    fn new() -> Self {
        let cluster = Options::new(distribution_version())
            .setting("track_commit_timestamp", "on")
            .setting("fsync", "on")
            .setting("checkpoint_timeout", "30s")
            .start();
        cluster
            .sql("CREATE TABLE ledger(n bigint PRIMARY KEY, amount int); CREATE TABLE noise(n bigint, v text); CREATE INDEX ON noise(n)");
        let words = ["-i", "-q", "-U", "postgres", "-h"].map(String::from).into_iter();
        cluster.run(
            "pgbench",
            words.chain([cluster.folder().display().to_string(), "-p".into(), cluster.port.to_string(), "postgres".into()]),
        );
        let world = World::new(&cluster, "crm", "log = \"stream\"");
        Self { cluster, world }
    }

    fn stop_at_once(&self) {
        let data = format!("--pgdata={}", self.cluster.data().display());
        self.cluster.run("pg_ctl", ["stop".into(), "--mode=immediate".into(), "--wait".into(), data]);
    }

    /// A crash, then a promotion in place: what had committed goes on along a new timeline.
    fn switch_timeline(&self) {
        self.stop_at_once();
        self.cluster.write(&self.cluster.data().join("standby.signal"), "");
        self.cluster.start_server();
        self.cluster.promote();
    }

    /// A failover to a copy that is behind: what was committed since is lost, though the log of the old timeline has it.
    fn fail_over_and_lose(&self, lost: Duration) {
        self.stop_at_once();
        let (data, behind) = (self.cluster.data(), self.cluster.folder().join("behind"));
        assert!(as_server_user("cp").arg("-a").args([&data, &behind]).status().unwrap().success());
        self.cluster.start_server();
        std::thread::sleep(lost);
        self.stop_at_once();
        fs::remove_dir_all(&data).unwrap();
        fs::rename(&behind, &data).unwrap();
        self.cluster.write(&data.join("standby.signal"), "");
        self.cluster.start_server();
        self.cluster.promote();
    }

    /// Pushes the newest segments that are complete, as `archive_command` would.
    fn push(&self) {
        self.cluster.sql("SELECT pg_switch_wal()");
        let current = self.cluster.value("SELECT pg_walfile_name(pg_current_wal_lsn())");
        let wal = self.cluster.data().join("pg_wal");
        let mut names: Vec<String> = fs::read_dir(&wal).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name.len() == 24 && name[..8] == current[..8] && *name < current);
        names.sort();
        for name in names.iter().rev().take(2).rev() {
            let stored = self.json(&["log", "push", "crm", wal.join(name).to_str().unwrap()], 0);
            assert!(["stored", "already-there"].contains(&stored["outcome"].as_str().unwrap()), "{name}: {stored}");
        }
    }

    /// Ledger rows with the commit time that the server noted, by time.
    fn committed(&self) -> Vec<(DateTime<Utc>, i64)> {
        let rows = self
            .cluster
            .connect()
            .query("SELECT n, to_char(pg_xact_commit_timestamp(xmin) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM ledger ORDER BY 2, 1")
            .unwrap();
        rows.iter().map(|row| (row.get(1).unwrap().parse().unwrap(), row.get(0).unwrap().parse().unwrap())).collect()
    }
}

/// Writes until told to stop; what cannot be written while the server is away is tried again.
fn ledger_writer(settings: &Settings, stop: &AtomicBool, mut dice: Dice) {
    let mut next = 1i64;
    let connect = || Connection::connect(settings, Mode::Sql { database: None }, &Cancel::default());
    let mut connection = connect().ok();
    while !stop.load(Ordering::Relaxed) {
        let Some(open) = &mut connection else {
            std::thread::sleep(Duration::from_millis(100));
            connection = connect().ok();
            continue;
        };
        // Sometimes a transaction that is given up: its rows must be in no restore.
        let abort = dice.below(7) == 0;
        let end = if abort { "ROLLBACK" } else { "COMMIT" };
        // A commit whose answer was lost may have happened: numbers are never used twice, so the server's list says what did.
        match open.execute(&format!("BEGIN; INSERT INTO ledger VALUES ({next}, {}); {end}", dice.below(1000))) {
            Ok(()) => {}
            Err(_) => connection = None,
        }
        next += 1;
        std::thread::sleep(APART + Duration::from_millis(dice.below(12)));
    }
}

fn noise_writer(settings: &Settings, stop: &AtomicBool) {
    let mut connection = None;
    let mut number = 0u64;
    while !stop.load(Ordering::Relaxed) {
        if connection.is_none() {
            connection = Connection::connect(settings, Mode::Sql { database: None }, &Cancel::default()).ok();
        }
        number += 1;
        let sql = format!(
            "INSERT INTO noise SELECT {number}, repeat(md5(random()::text), 20) FROM generate_series(1, 40); DELETE FROM noise WHERE n = {}",
            number / 2
        );
        if connection.as_mut().is_none_or(|open| open.execute(&sql).is_err()) {
            connection = None;
            std::thread::sleep(Duration::from_millis(100));
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// pgbench again and again; it ends with the server.
fn bench(cluster: &Cluster, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let words = ["-n", "-c", "2", "-T", "3", "-R", "60", "-U", "postgres", "-h"];
        let mut command = as_server_user(bin_directory(cluster.version).join("pgbench"));
        command.args(words).arg(cluster.folder()).args(["-p", &cluster.port.to_string(), "postgres"]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Threads that wait for the word must have it when the test fails too.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const SUMS: &str = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = coalesce((SELECT sum(delta) FROM pgbench_history), 0)
    AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(abalance) FROM pgbench_accounts)
    AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(abalance) FROM pgbench_accounts)";

fn ledger_of(restored: &Restored) -> Vec<i64> {
    let rows = restored.connect().query("SELECT n FROM ledger ORDER BY n").unwrap();
    rows.iter().map(|row| row.get(0).unwrap().parse().unwrap()).collect()
}

#[test]
fn every_moment_that_is_restored_is_the_ledger_of_that_moment() {
    let seconds: u64 = std::env::var("LIFEBOAT_MODEL_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    let seed: u64 = std::env::var("LIFEBOAT_MODEL_SEED").map_or(4101, |text| text.parse().unwrap());
    println!("LIFEBOAT_MODEL_SEED={seed} LIFEBOAT_MODEL_SECONDS={seconds}");
    let mut dice = Dice(seed);
    let world = Model::new();
    let settings = world.cluster.socket_settings();
    let stop = AtomicBool::new(false);
    let mut streamer = Some(world.stream());
    let (mut kills, mut crashes, mut backups, mut promotions, mut pushes, mut killed_backups, mut lossy) = (0, 0, 1, 0, 0, 0, 0);
    world.json(&["backup", "crm"], 0);
    std::thread::scope(|scope| {
        let writer_dice = Dice(dice.below(u64::MAX));
        scope.spawn(|| ledger_writer(&settings, &stop, writer_dice));
        scope.spawn(|| noise_writer(&settings, &stop));
        scope.spawn(|| bench(&world.cluster, &stop));
        let _stop = Stop(&stop);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(seconds) {
            std::thread::sleep(Duration::from_millis(300 + dice.below(2500)));
            match dice.below(13) {
                0..=3 => {
                    streamer.take().unwrap().kill();
                    std::thread::sleep(Duration::from_millis(dice.below(400)));
                    streamer = Some(world.stream());
                    kills += 1;
                }
                4 => {
                    world.stop_at_once();
                    std::thread::sleep(Duration::from_millis(dice.below(600)));
                    world.cluster.start_server();
                    crashes += 1;
                }
                5 => {
                    world.cluster.sql("SELECT pg_switch_wal()");
                }
                6 => {
                    world.switch_timeline();
                    promotions += 1;
                }
                7 => {
                    // Nobody streams meanwhile.
                    streamer.take().unwrap().kill();
                    world.push();
                    streamer = Some(world.stream());
                    pushes += 1;
                }
                8 => {
                    world.push();
                    pushes += 1;
                }
                9 => {
                    let backup = world.spawn(&["backup", "crm"]);
                    std::thread::sleep(Duration::from_millis(dice.below(2500)));
                    backup.kill();
                    killed_backups += 1;
                }
                10 => {
                    world.fail_over_and_lose(Duration::from_millis(500 + dice.below(2500)));
                    lossy += 1;
                }
                _ => {
                    // Under this load a table may be in use each time that it is to be fingerprinted: still a whole backup.
                    world.json(&["backup", "crm"], 0);
                    backups += 1;
                }
            }
        }
    });
    let committed = world.committed();
    let last = committed.last().unwrap().0;
    // The streamer that a kill left running or not: one more, until the log has everything.
    streamer.take().unwrap().kill();
    let streamer = world.stream();
    world.cluster.sql("SELECT pg_switch_wal()");
    world.wait_for_log(last);
    let (from, to) = world.continuous().unwrap();
    drop(streamer);

    let mut checked = 0;
    for round in 0..RESTORES * seconds.div_ceil(SECONDS) {
        let window = u64::try_from((last - from).num_microseconds().unwrap()).unwrap();
        let near = from + TimeDelta::microseconds(dice.below(window).cast_signed());
        // Between two commits, not at one: the times of concurrent commits do not order their records.
        let after = committed.partition_point(|(time, _)| *time <= near);
        let at = if after == 0 || after == committed.len() {
            near
        } else {
            committed[after - 1].0 + (committed[after].0 - committed[after - 1].0) / 2
        };
        let at = at.max(from).min(to);
        let name = format!("r{round}");
        let asked = at.to_rfc3339_opts(SecondsFormat::Micros, true);
        // Each second one over what the one before it left.
        let target = world.path("moment");
        let mut words = vec!["restore", "crm", "--at", &asked, "--to", target.to_str().unwrap(), "--yes"];
        if target.exists() {
            words.extend(["--delta", "--overwrite", "moment"]);
        }
        world.json(&words, 0);
        let restored = world.start(&name, &target);
        let mut wanted: Vec<i64> = committed.iter().filter(|(time, _)| *time <= at).map(|(_, n)| *n).collect();
        wanted.sort_unstable();
        let found = ledger_of(&restored);
        assert_eq!(found.len(), wanted.len(), "seed {seed}: restored to {asked}");
        assert_eq!(found, wanted, "seed {seed}: restored to {asked}");
        assert_eq!(restored.value(SUMS), "t", "seed {seed}: restored to {asked}");
        checked += 1;
        drop(restored);
        if round % 2 == 1 {
            fs::remove_dir_all(&target).unwrap();
        }
    }
    // All of it, to the last commit.
    let mut wanted: Vec<i64> = committed.iter().map(|(_, n)| *n).collect();
    wanted.sort_unstable();
    let all = world.restored("all", &["--latest"]);
    assert_eq!(ledger_of(&all), wanted, "seed {seed}: the end of the log");
    assert_eq!(all.value(SUMS), "t", "seed {seed}: the end of the log");
    println!(
        "{} commits, {kills} kills of the streamer, {crashes} of the server, {promotions} promotions, {lossy} failovers that lost commits, {pushes} pushes, {backups} backups, \
         {killed_backups} more were killed, {checked} moments and the end compared",
        committed.len()
    );
    assert!(checked > 0 && committed.len() > 50);
}
