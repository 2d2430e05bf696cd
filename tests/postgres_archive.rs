//! `archive_command` and `restore_command` as a server runs them: the program, a plan, real servers that archive, recover and refuse to.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/postgres_world.rs"]
mod postgres_world;
mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use lifeboat::source::postgres::client::Connection;
use lifeboat::source::postgres::lsn::Lsn;
use postgres_world::{Restored, World, data_key, give_to_server, socket_url};
use serde_json::Value;
use support::postgres::{Cluster, NEWEST, Options, distribution_version, wait_until};

/// A server that archives by the program; everything belongs to the server's user.
struct Archived {
    cluster: Cluster,
    world: World,
}

impl Deref for Archived {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Archived {
    fn new(options: Options) -> Self {
        Self::with(options, "")
    }

    /// With more lines of the source.
    fn with(options: Options, keys: &str) -> Self {
        let cluster = options.create();
        let world = World::of_the_server(&cluster, "crm", keys);
        let world = Self { cluster, world };
        let archive = world.documented("archive_command");
        world.cluster.configure(&[
            ("archive_mode".into(), "on".into()),
            ("archive_command".into(), archive),
            ("wal_keep_size".into(), "1GB".into()),
        ]);
        world.cluster.start_server();
        world.cluster.sql("CREATE TABLE ledger(id bigserial PRIMARY KEY, filler text)");
        world
    }

    fn push(&self, path: &Path, code: i32) -> Value {
        self.json(&["log", "push", "crm", path.to_str().unwrap()], code)
    }

    fn fetch(&self, name: &str, to: &str, code: i32) -> Value {
        self.json(&["log", "fetch", "crm", name, self.path(to).to_str().unwrap()], code)
    }

    fn write_more(&self) -> String {
        write_and_archive(&mut self.cluster.connect())
    }

    /// Segments that the server waits to archive, in order.
    fn ready(&self) -> Vec<String> {
        let names = fs::read_dir(self.cluster.data().join("pg_wal/archive_status")).unwrap();
        let names = names.map(|item| item.unwrap().file_name().into_string().unwrap());
        let mut ready: Vec<String> = names.filter_map(|name| Some(name.strip_suffix(".ready")?.to_owned())).collect();
        ready.sort();
        ready
    }

    /// Stored pieces, by name.
    fn pieces(&self) -> Vec<PathBuf> {
        let files = workspace::files(&self.path("repository"));
        files.into_iter().filter(|path| path.parent().unwrap().ends_with("pieces") || path.to_string_lossy().contains("/pieces/")).collect()
    }

    /// A standby that follows the server by streaming and archives by the same command once it is promoted.
    fn follower(&self, settings: &[(String, String)]) -> Cluster {
        let standby = Cluster::empty(self.cluster.version);
        self.cluster.run(
            "pg_basebackup",
            [
                format!("--pgdata={}", standby.data().display()),
                "--checkpoint=fast".into(),
                "--write-recovery-conf".into(),
                format!("--dbname=host={} port={} user=postgres", self.cluster.folder().display(), self.cluster.port),
            ],
        );
        standby.configure(settings);
        standby.start_server();
        standby
    }

    /// Promotes a standby that has everything; where its timeline leaves the first one, and the segment of that one that holds the position.
    fn fail_over(&self, standby: &Cluster) -> (Lsn, String) {
        // Not at the beginning of a segment.
        self.cluster.sql("INSERT INTO ledger(filler) VALUES ('before the failover')");
        let end = self.cluster.value("SELECT pg_current_wal_flush_lsn()");
        wait_until("the standby to have everything", || {
            standby.value(&format!("SELECT coalesce(pg_last_wal_replay_lsn() >= '{end}', false)")) == "t"
        });
        assert_eq!(standby.value("SELECT pg_promote()"), "t");
        let history = fs::read_to_string(standby.data().join("pg_wal/00000002.history")).unwrap();
        let at: Lsn = history.split_whitespace().nth(1).unwrap().parse().unwrap();
        (at, segment_of(1, at))
    }

    /// Whether `status` tells that two servers wrote.
    fn tells_fork(&self) -> bool {
        let status = self.json(&["status"], 0);
        let problems = status["plans"][0]["problems"].as_array().unwrap();
        problems.iter().any(|problem| problem["kind"] == "log-fork" && problem["message"].as_str().unwrap().contains("source crm "))
    }

    /// A restored folder that recovers from the log alone.
    fn restore(&self, name: &str) -> PathBuf {
        let data = self.path(name);
        // Without the log, which the server is to ask for itself.
        let list = self.json(&["snapshots", "crm"], 0);
        let newest = list["snapshots"].as_array().unwrap().last().unwrap()["id"].as_str().unwrap().to_owned();
        self.json(&["restore", "crm", "--snapshot", &newest, "--to", data.to_str().unwrap(), "--yes"], 0);
        let settings = format!("restore_command = '{}'\nrecovery_target_timeline = 'latest'\n", self.documented("restore_command"));
        self.cluster.write(&data.join("postgresql.auto.conf"), &settings);
        assert!(data.join("recovery.signal").exists());
        data
    }
}

/// Whether this program pushes log right now.
fn pushes_run(program: &Path) -> bool {
    let commands = fs::read_dir("/proc").unwrap().flatten().filter_map(|item| fs::read(item.path().join("cmdline")).ok());
    commands.into_iter().any(|words| {
        let words: Vec<&[u8]> = words.split(|&byte| byte == 0).collect();
        words[0] == program.as_os_str().as_encoded_bytes() && words.contains(&&b"push"[..])
    })
}

/// Some segments of log, all archived; the last one's name.
fn write_and_archive(connection: &mut Connection) -> String {
    for _ in 0..6 {
        connection.execute("INSERT INTO ledger(filler) SELECT repeat(md5(n::text), 8) FROM generate_series(1, 3000) n").unwrap();
    }
    let mut value = |sql: &str| connection.value(sql).unwrap().unwrap();
    let last = value("SELECT pg_walfile_name(pg_switch_wal())");
    wait_until("the segment to be archived", || value("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") >= last);
    last
}

/// Name of the segment of 1 MiB that holds a position.
fn segment_of(timeline: u32, at: Lsn) -> String {
    let number = at.0 >> 20;
    format!("{timeline:08X}{:08X}{:08X}", number / 4096, number % 4096)
}

/// A server that writes only what it is told to, in small segments.
fn quiet() -> Options {
    Options::new(NEWEST).initdb("--wal-segsize=1").setting("autovacuum", "off")
}

/// Fills segments without waiting for the archiver.
fn go_on(cluster: &Cluster) {
    for _ in 0..3 {
        cluster.sql("INSERT INTO ledger(filler) SELECT repeat(md5(n::text), 8) FROM generate_series(1, 3000) n; SELECT pg_switch_wal()");
    }
}

const STATE: &str = "SELECT count(*) || ' ' || coalesce(sum(hashtext(filler)::bigint + id), 0) FROM ledger";

fn a_story(options: Options) {
    let world = Archived::new(options);
    world.write_more();
    world.json(&["backup", "crm"], 0);
    world.write_more();
    let last = world.write_more();
    let written = world.cluster.value(STATE);
    assert!(!written.starts_with("0 "));

    // What comes back is what the server wrote, and its second push changes nothing.
    let original = fs::read(world.cluster.data().join("pg_wal").join(&last)).unwrap();
    let found = world.fetch(&last, "copy", 0);
    assert!(found["found"] == true && found["partial"] == false, "{found}");
    assert_eq!(fs::read(world.path("copy")).unwrap(), original);
    assert_eq!(fs::metadata(world.path("copy")).unwrap().permissions().mode() & 0o777, 0o600);
    let stored = world.pieces().len();
    let again = world.push(&world.cluster.data().join("pg_wal").join(&last), 0);
    assert_eq!(again["outcome"], "already-there");

    // Another content, another cluster, another place in the log: refused, and nothing is stored.
    let wrong = world.path("wrong");
    fs::create_dir(&wrong).unwrap();
    let refused = |name: &str, at: usize, expected: &str| {
        let mut bytes = original.clone();
        bytes[at] ^= 0x10;
        let path = wrong.join(name);
        world.cluster.write(&path, "");
        fs::write(&path, bytes).unwrap();
        let answer = world.push(&path, 1);
        assert_eq!(answer["error"]["kind"], expected, "{answer}");
    };
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o755)).unwrap();
    refused(&last, original.len() - 9, "split-brain");
    refused(&last, 25, "split-brain");
    refused(&last, 4, "failed");
    refused(&last, 11, "failed");
    refused(&last.replace("00000001000", "00000001001"), 0, "failed");
    // Of a timeline whose history nobody has.
    refused(&last.replacen('1', "2", 1), original.len() - 9, "failed");
    fs::write(wrong.join(&last), &original[..original.len() - 8192]).unwrap();
    assert_eq!(world.push(&wrong.join(&last), 1)["error"]["kind"], "failed");
    assert_eq!(world.pieces().len(), stored);
    assert_eq!(world.json(&["log", "push", "crm", "/nowhere/else"], 2)["error"]["kind"], "usage");

    // The end of the log is told apart from everything that is wrong.
    let next = format!("{}FF", &last[..22]);
    assert_eq!(world.fetch(&next, "none", 1)["found"], false);
    assert_eq!(world.fetch("00000002.history", "none", 1)["found"], false);
    assert_eq!(world.json(&["log", "fetch", "crn", &last, "/tmp/x"], 150)["error"]["kind"], "usage");
    assert_eq!(world.run(&["log", "fetch", "crm", "--jobs", "none"]).status.code(), Some(150));
    assert!(!world.path("none").exists());

    // Everything that was archived is recovered, and the new timeline is archived beside the old one.
    let first = world.start("first", &world.restore("first"));
    assert_eq!(first.value(STATE), written);
    assert_eq!(first.value("SELECT timeline_id FROM pg_control_checkpoint()"), "2");
    let last = write_and_archive(&mut first.connect());
    assert!(last.starts_with("00000002"), "{last}");
    let (log, later) = (first.log(), first.value(STATE));
    assert!(log.contains("restored log file"), "{log}");
    drop(first);
    world.fetch("00000002.history", "history", 0);
    assert_ne!(later, written);
    let ahead = world.path("state/work/crm/log/ahead");
    assert_eq!(fs::read_dir(&ahead).unwrap().count(), 0, "nothing that was fetched ahead stays");
    let second = world.start("second", &world.restore("second"));
    assert_eq!(second.value(STATE), later, "recovery follows the timelines");
    assert_eq!(second.value("SELECT timeline_id FROM pg_control_checkpoint()"), "3");
    drop(second);
    world.json(&["verify", "main", "--data"], 0);
}

#[test]
fn a_server_archives_and_recovers_from_its_log_over_two_timelines() {
    a_story(Options::new(NEWEST).initdb("--wal-segsize=1"));
}

#[test]
fn the_distributions_server_archives_and_recovers_too() {
    a_story(Options::new(distribution_version()));
}

#[test]
fn a_store_that_is_away_keeps_the_files_and_they_follow_later_several_at_a_time() {
    let world = Archived::new(Options::new(NEWEST).initdb("--wal-segsize=1"));
    world.write_more();
    fs::rename(world.path("repository"), world.path("away")).unwrap();
    for _ in 0..12 {
        world
            .cluster
            .sql("INSERT INTO ledger(filler) SELECT repeat(md5(n::text), 8) FROM generate_series(1, 1000) n; SELECT pg_switch_wal()");
    }
    wait_until("the server to notice", || world.cluster.value("SELECT failed_count > 0 FROM pg_stat_archiver") == "t");
    assert!(world.ready().len() >= 12 && !world.path("repository").exists(), "{:?}", world.ready());
    let command = world.cluster.value("SHOW archive_command");
    world.cluster.sql("ALTER SYSTEM SET archive_command = ''");
    world.cluster.sql("SELECT pg_reload_conf()");
    // Its last attempt may still run, and it pauses for a second between two.
    let mut idle = 0;
    wait_until("the archiver to be idle", || {
        idle = if pushes_run(&world.path("lifeboat")) { 0 } else { idle + 1 };
        idle > 75
    });
    let wal = world.cluster.data().join("pg_wal");
    assert_eq!(world.push(&wal.join(&world.ready()[0]), 10)["error"]["kind"], "no-repository");
    fs::rename(world.path("away"), world.path("repository")).unwrap();

    // By hand, so that each step can be seen.
    let waiting = world.ready();
    let push = |at: usize| world.push(&wal.join(&waiting[at]), 0);
    let first = push(0);
    assert!(first["outcome"] == "stored" && first["ahead"] == 8, "{first}");
    let acks = world.path("state/work/crm/log/acks");
    let acknowledged = || fs::read_dir(&acks).unwrap().count();
    assert_eq!(acknowledged(), 8);
    for item in fs::read_dir(&acks).unwrap() {
        assert_eq!(item.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    let second = push(1);
    assert!(second["outcome"] == "acknowledged" && acknowledged() == 7, "{second}");
    // One of another file, one that is torn: not believed.
    fs::copy(acks.join(&waiting[4]), acks.join(&waiting[2])).unwrap();
    assert_eq!(push(2)["outcome"], "already-there");
    fs::write(acks.join(&waiting[3]), b"{").unwrap();
    assert_eq!(push(3)["outcome"], "already-there");

    // What an unfinished segment has of log comes back, and no more.
    world.cluster.sql("INSERT INTO ledger(filler) VALUES ('the last one')");
    let unfinished = world.cluster.value("SELECT pg_walfile_name(pg_current_wal_flush_lsn())");
    let written: usize = world.cluster.value("SELECT (pg_walfile_name_offset(pg_current_wal_flush_lsn())).file_offset").parse().unwrap();
    let mut bytes = fs::read(wal.join(&unfinished)).unwrap();
    bytes[written + 64..].fill(0x5a);
    let partial = world.path(&format!("{unfinished}.partial"));
    fs::write(&partial, &bytes).unwrap();
    assert_eq!(world.push(&partial, 0)["outcome"], "stored");
    assert_eq!(world.push(&partial, 0)["outcome"], "already-there");
    let name = world.pieces().pop().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    assert!(!name.ends_with("00000"), "only a part of the segment: {name}");

    world.cluster.sql(&format!("ALTER SYSTEM SET archive_command = '{command}'"));
    world.cluster.sql("SELECT pg_reload_conf()");
    let last = waiting.last().unwrap();
    wait_until("everything to be archived", || {
        world.cluster.value("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver").as_str() >= last.as_str()
    });
    for name in &waiting {
        world.fetch(name, "copy", 0);
        assert_eq!(fs::read(world.path("copy")).unwrap(), fs::read(wal.join(name)).unwrap(), "{name}");
    }
    let found = world.fetch(&unfinished, "copy", 0);
    assert_eq!(found["partial"], true, "{found}");
    let copy = fs::read(world.path("copy")).unwrap();
    assert!(copy.len() == bytes.len() && copy[..written] == bytes[..written] && copy[written..].iter().all(|&byte| byte == 0));
}

#[test]
fn damage_and_holes_stop_a_recovery_and_never_open_the_server() {
    let world = Archived::new(Options::new(NEWEST).initdb("--wal-segsize=1"));
    world.json(&["backup", "crm"], 0);
    world.write_more();
    // A history does not say whose it is: the folder that it lies in does.
    let stranger = Options::new(NEWEST).create();
    let history = stranger.data().join("pg_wal/00000002.history");
    stranger.write(&history, "1\t0/300000\tno recovery target specified\n");
    assert_eq!(world.push(&history, 1)["error"]["kind"], "split-brain");
    assert_eq!(world.fetch("00000002.history", "none", 1)["found"], false);
    let pieces = world.pieces();
    let victim = &pieces[pieces.len() - 4];
    let whole = fs::read(victim).unwrap();
    let stopped = |name: &str, why: &str| {
        let data = world.restore(name);
        let (up, restored) = world.try_start(name, &data, &world.start_command(&data));
        // It may be open for reading while it recovers.
        let ended = || !data.join("postmaster.pid").exists();
        if up {
            wait_until("the server to stop", ended);
        }
        let log = restored.log();
        assert!(ended() && !log.contains("archive recovery complete"), "{log}");
        assert!(log.contains(why) && log.contains("could not restore file"), "{log}");
    };
    workspace::damage(victim);
    give_to_server(victim);
    let refused = world.path("refused");
    let error = world.json(&["restore", "crm", "--to", refused.to_str().unwrap(), "--yes"], 20);
    assert!(!refused.exists() && error["error"]["kind"] == "damaged", "{error}");
    let hint = error["error"]["hint"].as_str().unwrap();
    assert!(hint.contains("no snapshot is harmed by this: --"), "{hint}");
    stopped("damaged", "its bytes are not those that were stored");
    fs::remove_file(victim).unwrap();
    stopped("hole", "the log has a hole at");
    // Asked to end there, it does.
    let data = world.restore("short");
    let settings = data.join("postgresql.auto.conf");
    let said = fs::read_to_string(&settings).unwrap().replace("fetch crm", "fetch --end-at-gap crm");
    world.cluster.write(&settings, &said);
    let restored: Restored = world.start("short", &data);
    assert_ne!(restored.value(STATE), world.cluster.value(STATE));
    drop(restored);
    fs::write(victim, whole).unwrap();
    give_to_server(victim);
    // The wrong key is no end of the log either.
    world.cluster.write(&world.path("passphrase"), "another one altogether");
    let name = world.cluster.value("SELECT last_archived_wal FROM pg_stat_archiver");
    assert_eq!(world.fetch(&name, "copy", 150)["error"]["kind"], "wrong-key");
}

#[test]
fn the_primary_that_a_failover_left_behind_is_refused_and_the_new_one_never() {
    let world = Archived::with(quiet(), "log = \"push\"");
    world.json(&["backup", "crm"], 0);
    let early = world.write_more();
    let standby = world.follower(&[]);
    let (at, shared) = world.fail_over(&standby);
    let last = write_and_archive(&mut standby.connect());
    assert!(last.starts_with("00000002"), "{last}");
    world.fetch("00000002.history", "history", 0);

    // The old primary goes on: the segment that both have is taken, and nothing behind it.
    go_on(&world.cluster);
    wait_until("the old primary to be refused", || world.cluster.value("SELECT failed_count > 0 FROM pg_stat_archiver") == "t");
    assert_eq!(world.cluster.value("SELECT last_archived_wal FROM pg_stat_archiver"), shared);
    let wal = world.cluster.data().join("pg_wal");
    let ready = world.ready();
    assert!(ready.len() >= 2 && ready[0] > shared, "{ready:?}");
    for name in &ready[..2] {
        let refused = world.push(&wal.join(name), 1);
        let message = refused["error"]["causes"].to_string();
        assert_eq!(refused["error"]["kind"], "split-brain", "{refused}");
        assert!(message.contains("timeline 1") && message.contains("timeline 2") && message.contains(&at.to_string()), "{message}");
        assert!(refused["error"]["hint"].as_str().unwrap().contains("make a standby of it"), "{refused}");
        world.fetch(name, "none", 1);
    }
    // What leads to the branching point is taken as ever, and the new primary is not held up.
    assert_eq!(world.push(&wal.join(&early), 0)["outcome"], "already-there");
    assert_eq!(world.push(&wal.join(&shared), 0)["outcome"], "already-there");
    write_and_archive(&mut standby.connect());
    let written = standby.value(STATE);

    // Nor is there a backup of it, whichever way it is read.
    for keys in ["log = \"push\"".to_owned(), format!("log = \"push\"\n{}", data_key(&world.cluster, true))] {
        world.say_plan("crm", &keys, "");
        let refused = world.json(&["backup", "crm"], 1);
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(refused["error"]["kind"] == "split-brain" && message.contains("timeline 1") && message.contains("timeline 2"), "{refused}");
    }
    let timeline = |code: i32| {
        let doctor = world.json(&["doctor", "crm"], code);
        let is_it = |check: &&serde_json::Value| check["name"] == "source crm: timeline";
        let check = doctor["checks"].as_array().unwrap().iter().find(is_it).unwrap_or_else(|| panic!("{doctor}")).clone();
        (check, doctor["exit"].clone())
    };
    let (told, exit) = timeline(1);
    let message = told["message"].as_str().unwrap();
    assert!(exit == "split-brain" && told["ok"] == false && message.contains("left behind by a failover"), "{told}");
    assert_eq!(world.json(&["snapshots", "crm"], 0)["snapshots"].as_array().unwrap().len(), 1);

    // What it wrote into the shared segment is told until there is a backup of the new primary.
    world.say_plan("crm", "log = \"push\"", "");
    assert!(world.tells_fork());
    let restored = world.restored("restored", &["--latest"]);
    assert_eq!(restored.value(STATE), written, "the way of the new primary");
    drop(restored);
    world.say_url(&socket_url(&standby));
    give_to_server(&world.path("url"));
    let (told, _) = timeline(0);
    assert!(told["ok"] == true && told["message"].as_str().unwrap().contains("timeline 2"), "{told}");
    world.json(&["backup", "crm"], 0);
    assert!(!world.tells_fork());
}

#[test]
fn an_old_primary_that_archived_on_is_told_and_may_be_the_right_one() {
    let world = Archived::with(quiet(), "log = \"push\"");
    world.json(&["backup", "crm"], 0);
    let standby = world.follower(&[("archive_command".into(), "false".into())]);
    let (_, shared) = world.fail_over(&standby);
    // Nobody knows of the failover yet.
    let beyond = world.write_more();
    assert!(beyond > shared && !world.tells_fork());
    go_on(&standby);
    standby.sql(&format!("ALTER SYSTEM SET archive_command = '{}'", world.cluster.value("SHOW archive_command")));
    standby.sql("SELECT pg_reload_conf()");
    let last = write_and_archive(&mut standby.connect());
    assert!(last.starts_with("00000002"), "{last}");
    assert!(world.tells_fork(), "{}", world.json(&["status"], 0));
    go_on(&world.cluster);
    wait_until("the old primary to be refused", || world.cluster.value("SELECT failed_count > 0 FROM pg_stat_archiver") == "t");

    // The old primary is the right one: as documented, it begins a timeline of its own, of the next number.
    standby.stop_server();
    let old = &world.cluster;
    old.sql("ALTER SYSTEM SET restore_command = 'false'");
    old.sql("ALTER SYSTEM SET recovery_target_timeline = 'current'");
    old.stop_server();
    let known = old.data().join("pg_wal/00000002.history");
    world.json(&["log", "fetch", "crm", "00000002.history", known.to_str().unwrap()], 0);
    old.write(&old.data().join("recovery.signal"), "");
    old.start_server();
    wait_until("the old primary to be one again", || old.value("SELECT pg_is_in_recovery()") == "f");
    let last = write_and_archive(&mut old.connect());
    assert!(last.starts_with("00000003"), "{last}");
    let written = old.value(STATE);
    let waiting = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";
    wait_until("everything to be archived", || old.value(waiting) == "0");
    let restored = world.restored("restored", &["--latest"]);
    assert_eq!(restored.value(STATE), written, "the way of the old primary");
    drop(restored);
    assert!(world.tells_fork());
    world.json(&["backup", "crm"], 0);
    assert!(!world.tells_fork());

    // Now the other one was left behind.
    standby.start_server();
    standby.value("SELECT pg_stat_reset_shared('archiver')");
    go_on(&standby);
    wait_until("the other server to be refused", || standby.value("SELECT failed_count > 0 FROM pg_stat_archiver") == "t");
    let refused = world.push(&standby.data().join("pg_wal").join(standby.value("SELECT last_failed_wal FROM pg_stat_archiver")), 1);
    assert!(refused["error"]["causes"].to_string().contains("does not go through timeline 2"), "{refused}");

    // Two timelines left the first one: what is missing before the later of the two is no end of the log.
    let of_the_first = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(&format!("{:016x}-", 1));
    let mut theirs: Vec<PathBuf> = world.pieces().into_iter().filter(of_the_first).collect();
    theirs.sort_by_key(|path| path.file_name().unwrap().to_owned());
    // The last one is also the beginning of the third's.
    fs::remove_file(theirs.pop().unwrap()).unwrap();
    let last = theirs.pop().unwrap();
    let start = last.file_name().unwrap().to_str().unwrap().split('-').nth(1).unwrap().to_owned();
    let segment = segment_of(1, Lsn(u64::from_str_radix(&start, 16).unwrap()));
    fs::remove_file(&last).unwrap();
    let missing = world.fetch(&segment, "missing", 150);
    assert!(missing.to_string().contains("timeline 3 goes on from"), "{missing}");
}

#[test]
fn a_record_that_was_damaged_before_it_was_archived_is_told_and_the_server_goes_on() {
    let world = Archived::with(quiet(), "log = \"push\"");
    world.json(&["backup", "crm"], 0);
    world.write_more();
    let says = |command: &str| {
        world.cluster.sql(&format!("ALTER SYSTEM SET archive_command = '{command}'"));
        world.cluster.sql("SELECT pg_reload_conf()");
        wait_until("the server to take it", || world.cluster.value("SHOW archive_command") == command);
    };
    let command = world.cluster.value("SHOW archive_command");
    says("false");
    world.cluster.sql("INSERT INTO ledger(filler) SELECT repeat(md5(n::text), 8) FROM generate_series(1, 300) n");
    let file = world.cluster.data().join("pg_wal").join(world.cluster.value("SELECT pg_walfile_name(pg_switch_wal())"));
    let mut bytes = fs::read(&file).unwrap();
    bytes[20_000] ^= 0x55;
    fs::write(&file, bytes).unwrap();
    says(&command);
    world.write_more();
    let problems = || world.json(&["status"], 0)["plans"][0]["problems"].to_string();
    assert!(problems().contains("cannot be replayed past"), "{}", problems());
    // A server that asks for it must not end its recovery there unnoticed.
    let name = file.file_name().unwrap().to_str().unwrap();
    let refused = world.fetch(name, "copy", 150);
    assert!(refused.to_string().contains("cannot be replayed past"), "{refused}");
    world.json(&["log", "fetch", "crm", "--end-at-gap", name, world.path("copy").to_str().unwrap()], 0);
    let to = world.path("restored");
    let report = world.json(&["restore", "crm", "--latest", "--to", to.to_str().unwrap(), "--yes"], 3);
    assert!(report.to_string().contains("the log has a hole at"), "{report}");
    world.json(&["backup", "crm"], 0);
    assert!(!problems().contains("log-gap"), "{}", problems());
}

/// As for a bulk load: what is written then is in no log, and no server recovers through it.
#[test]
fn a_stay_in_wal_level_minimal_bounds_what_can_be_recovered() {
    let world = Archived::with(quiet(), "log = \"push\"");
    world.json(&["backup", "crm"], 0);
    world.write_more();
    let state = world.cluster.value(STATE);
    let setting = |level: &str, senders: &str, archives: &str| {
        world.cluster.stop_server();
        let settings = [("wal_level", level), ("max_wal_senders", senders), ("archive_mode", archives)];
        world.cluster.configure(&settings.map(|(name, value)| (name.into(), value.into())));
        world.cluster.start_server();
    };
    setting("minimal", "0", "off");
    world.cluster.sql("CREATE TABLE loaded AS SELECT generate_series(1, 1000) AS n");
    setting("replica", "10", "on");
    let segment = world.write_more();
    let problems = || world.json(&["status"], 0)["plans"][0]["problems"].to_string();
    assert!(problems().contains("log-gap") && problems().contains("wal_level = minimal"), "{}", problems());
    let to = world.path("restored");
    let restore = |code: i32| world.json(&["restore", "crm", "--latest", "--to", to.to_str().unwrap(), "--yes"], code);
    let report = restore(3);
    assert!(report.to_string().contains("the log has a hole at"), "{report}");
    let restored = world.start("bounded", &to);
    restored.wait_until_promoted();
    assert_eq!(restored.value(STATE), state);
    drop(restored);
    world.json(&["drill", "run", "crm", "--latest"], 3);

    // Log of before this was known: it is seen where it is to be replayed.
    let gaps: Vec<PathBuf> =
        workspace::files(&world.path("repository")).into_iter().filter(|path| path.to_string_lossy().contains("/gaps/")).collect();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    fs::remove_file(&gaps[0]).unwrap();
    fs::remove_dir_all(&to).unwrap();
    let report = restore(3);
    assert!(report["notes"][0].as_str().unwrap().contains("began to run with wal_level = minimal"), "{report}");
    let drill = world.json(&["drill", "run", "crm", "--latest"], 3);
    assert!(drill["checks"].to_string().contains("not started: at"), "{drill}");

    world.json(&["backup", "crm"], 0);
    world.write_more();
    assert!(!problems().contains("log-gap"), "{}", problems());
    fs::remove_dir_all(&to).unwrap();
    restore(0);
    assert!(segment < world.write_more());
}
