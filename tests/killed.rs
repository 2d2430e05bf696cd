//! The real program, killed (SIGKILL) at random moments of a backup, restore, drill or verification, beside an application that goes on
//! writing. After each kill: the next backup succeeds, the repository is whole to the last byte, every snapshot that was committed restores
//! to one moment of the application, a restore's target is whole or not there, and nothing is left behind.
//!
//! Prints its seed. By hand for longer: `LIFEBOAT_KILL_ROUNDS=500 cargo test --test killed -- --nocapture`, again with
//! `LIFEBOAT_KILL_SEED=…` (the same choices; the moments are as good as the clock).

#![expect(clippy::unwrap_used, reason = "a test fails by it; clippy knows only functions marked as tests")]

#[path = "support/workspace.rs"]
mod workspace;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use workspace::{Workspace, files, text};

/// Rounds in the suite, and when it stops early on a slow machine.
const ROUNDS: u64 = 16;
const SUITE_LIMIT: Duration = Duration::from_secs(30);
/// Far beyond what anything here takes.
const BOUND: Duration = Duration::from_mins(1);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}

/// An application that books every amount twice, in one transaction, until it is dropped.
struct Application {
    stop: Arc<AtomicBool>,
    booked: Arc<AtomicI64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Application {
    fn start(database: &Path) -> Self {
        let mut connection = Connection::open(database).unwrap();
        connection.busy_timeout(BOUND).unwrap();
        connection
            .execute_batch(
                "CREATE TABLE debit(n INTEGER PRIMARY KEY, amount INTEGER); CREATE TABLE credit(n INTEGER PRIMARY KEY, amount INTEGER)",
            )
            .unwrap();
        let (stop, booked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&booked));
        let work = move || {
            let mut random = Random(1);
            while !stopped.load(Ordering::SeqCst) {
                let amount = i64::try_from(random.below(1000)).unwrap();
                let transaction = connection.transaction().unwrap();
                transaction.execute("INSERT INTO debit(amount) VALUES (?1)", [amount]).unwrap();
                transaction.execute("UPDATE contacts SET id = id WHERE id = (SELECT min(id) FROM contacts)", []).unwrap();
                transaction.execute("INSERT INTO credit(amount) VALUES (?1)", [amount]).unwrap();
                transaction.commit().unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                std::thread::park_timeout(Duration::from_millis(3));
            }
        };
        Self { stop, booked, thread: Some(std::thread::spawn(work)) }
    }

    fn booked(&self) -> i64 {
        self.booked.load(Ordering::SeqCst)
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_some_and(|ended| ended.is_ok()), "the application could not write");
    }
}

/// What a backup that began now must hold at least.
#[derive(Clone)]
struct Least {
    booked: i64,
    attachments: BTreeMap<String, blake3::Hash>,
}

struct Bench {
    workspace: Workspace,
    application: Application,
    attachments: BTreeMap<String, blake3::Hash>,
    /// Snapshots that were restored and found whole.
    proven: BTreeSet<String>,
}

impl Bench {
    fn new() -> Self {
        let pieces = "for n in 1 2 3 4 5 6 7 8; do head -c 300000 /dev/urandom; sleep 0.04; done";
        let dump = format!(
            "[source.dump]\nkind = \"command\"\ndump = [\"sh\", \"-c\", \"{pieces}\"]\n[plan.dump]\nsource = \"dump\"\nrepository = \"main\""
        );
        let workspace = Workspace::ready(&dump);
        let application = Application::start(&workspace.made.database);
        let mut bench = Self { workspace, application, attachments: BTreeMap::new(), proven: BTreeSet::new() };
        for seed in 0..6 {
            bench.attach(seed, 1_500_000);
        }
        bench
    }

    /// A new attachment, whole from its first moment.
    fn attach(&mut self, seed: u64, len: usize) {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        let name = format!("scan-{seed:020}");
        let (new, place) = (self.workspace.path("new"), self.workspace.made.attachments.join(&name));
        fs::write(&new, &bytes).unwrap();
        fs::rename(new, place).unwrap();
        self.attachments.insert(name, blake3::hash(&bytes));
    }

    fn least(&self) -> Least {
        Least { booked: self.application.booked(), attachments: self.attachments.clone() }
    }

    /// One moment of the application, and files that are what they were.
    fn check_whole(&self, restored: &Path, least: Option<&Least>) {
        let shown = restored.display();
        let database = Connection::open_with_flags(restored.join("database"), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let one = |sql: &str| database.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
        assert_eq!(one("PRAGMA integrity_check"), "ok", "{shown}");
        let books = "SELECT count(*) || ' ' || coalesce(sum(amount), 0) FROM ";
        assert_eq!(one(&format!("{books} debit")), one(&format!("{books} credit")), "{shown}: not one moment");
        let booked: i64 = one("SELECT CAST(count(*) AS TEXT) FROM debit").parse().unwrap();
        let mut seen = BTreeMap::new();
        for path in files(&restored.join("attachments")) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let found = blake3::hash(&fs::read(&path).unwrap());
            if let Some(wanted) = self.attachments.get(&name) {
                assert_eq!(found, *wanted, "{}", path.display());
                seen.insert(name, found);
            }
        }
        if let Some(least) = least {
            assert!(booked >= least.booked, "{shown}: {booked} bookings, {} were committed before the backup", least.booked);
            for name in least.attachments.keys() {
                assert!(seen.contains_key(name), "{shown}: {name} is missing");
            }
        }
    }

    /// Every snapshot of the plan that was not restored yet comes back whole; the newest one holds at least `least`.
    fn check_snapshots(&mut self, newest: &str, least: &Least) {
        let list = self.workspace.json(&["snapshots", "crm"], 0);
        let ids: Vec<String> = list["snapshots"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect();
        assert!(ids.iter().any(|id| id == newest));
        for id in ids {
            if self.proven.contains(&id) {
                continue;
            }
            let to = self.workspace.path("restored");
            self.workspace.json(&["restore", "crm", "--snapshot", &id, "--to", to.to_str().unwrap()], 0);
            self.check_whole(&to, (id == newest).then_some(least));
            fs::remove_dir_all(to).unwrap();
            self.proven.insert(id);
        }
    }

    /// Nothing but locks in the plans' private folders, no run that seems to go on, no process.
    fn check_clean(&self) {
        for plan in fs::read_dir(self.workspace.path("state/work")).unwrap() {
            let left: Vec<String> = fs::read_dir(plan.unwrap().path())
                .unwrap()
                .map(|item| item.unwrap().file_name().into_string().unwrap())
                .filter(|name| Path::new(name).extension().is_none_or(|extension| extension != "lock"))
                .collect();
            assert!(left.is_empty(), "left over: {left:?}");
        }
        let history = self.workspace.json(&["run", "history", "--limit", "10"], 0);
        for run in history["runs"].as_array().unwrap() {
            assert_ne!(run["state"], "running", "{run}");
        }
        let began = Instant::now();
        while let Some(process) = still_running(self.workspace.folder.path()) {
            assert!(began.elapsed() < BOUND, "still runs: {process}");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

/// A process that works in this folder: named on its command line, or inherited as the folder of a dump command.
fn still_running(folder: &Path) -> Option<String> {
    let needle = folder.to_str().unwrap().as_bytes().to_vec();
    let own = std::process::id().to_string();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let pid = process.file_name().into_string().unwrap_or_default();
        if pid == own || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let read = |name: &str| fs::read(process.path().join(name)).unwrap_or_default();
        let (line, environment) = (read("cmdline"), read("environ"));
        if [&line, &environment].iter().any(|bytes| bytes.windows(needle.len()).any(|window| window == needle)) {
            return Some(format!("{pid}: {}", String::from_utf8_lossy(&line)));
        }
    }
    None
}

#[test]
fn whatever_is_killed_whenever_it_is_killed_nothing_is_lost_and_nothing_is_left() {
    let by_hand = std::env::var("LIFEBOAT_KILL_ROUNDS").ok().map(|rounds| rounds.parse::<u64>().unwrap());
    let seed: u64 = std::env::var("LIFEBOAT_KILL_SEED").map_or(1_795_469_610_714_063_170, |seed| seed.parse().unwrap());
    println!("LIFEBOAT_KILL_SEED={seed}");
    let mut random = Random(seed);
    let mut bench = Bench::new();
    let began = Instant::now();
    let mut usual: BTreeMap<&str, Duration> = BTreeMap::new();
    let mut told: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let target = bench.workspace.path("target");
    let words = |what: &str| -> Vec<String> {
        let words: &[&str] = match what {
            "backup" => &["backup", "crm"],
            "dump" => &["backup", "dump"],
            "drill" => &["drill", "run", "crm"],
            "verify" => &["verify", "main", "--data"],
            _ => &["restore", "crm", "--to", target.to_str().unwrap()],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    };
    let kinds = ["backup", "restore", "drill", "verify", "dump", "backup"];
    for what in kinds {
        let began = Instant::now();
        let output = bench.workspace.run(&words(what).iter().map(String::as_str).collect::<Vec<_>>());
        assert!(output.status.success(), "{what}: {}", text(&output.stderr));
        usual.insert(what, began.elapsed());
    }
    fs::remove_dir_all(&target).unwrap();
    let rounds = by_hand.unwrap_or(ROUNDS);
    let mut done = 0;
    while done == 0 || done < rounds && (by_hand.is_some() || began.elapsed() < SUITE_LIMIT) {
        done += 1;
        let what = kinds[usize::try_from(random.below(kinds.len() as u64)).unwrap()];
        let len = usize::try_from(random.below(400_000)).unwrap();
        bench.attach(random.next(), len);
        let micros = u64::try_from(usual[what].as_micros()).unwrap() * 11 / 10;
        let delay = Duration::from_micros(random.below(micros));
        let mut command = bench.workspace.command(&words(what).iter().map(String::as_str).collect::<Vec<_>>());
        // Inherited by commands of the plan, so that they can be found.
        command.env("TMPDIR", bench.workspace.folder.path());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(delay);
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ended.is_none_or(|status| status.success()), "seed {seed}, round {done}: {what} ended with {ended:?} before it was killed");
        *told.entry((what, if ended.is_some() { "ended before" } else { "killed" })).or_default() += 1;
        if by_hand.is_some() {
            println!(
                "round {done}: {what}, killed after {delay:?} of {:?}{}",
                usual[what],
                if ended.is_some() { ", had ended" } else { "" }
            );
        }

        if what == "restore" {
            let partial = bench.workspace.path(".target.lifeboat-partial");
            if target.exists() {
                bench.check_whole(&target, None);
                fs::remove_dir_all(&target).unwrap();
                let _ = fs::remove_dir_all(&partial);
            }
            if partial.join("restore.json").exists() {
                let mut words = words(what);
                // With nothing in it yet there is nothing to resume.
                if ["tree", "whole"].iter().any(|part| fs::read_dir(partial.join(part)).is_ok_and(|mut items| items.next().is_some())) {
                    words.push("--resume".into());
                }
                bench.workspace.json(&words.iter().map(String::as_str).collect::<Vec<_>>(), 0);
                bench.check_whole(&target, None);
                assert!(!partial.exists());
                fs::remove_dir_all(&target).unwrap();
            }
            let _ = fs::remove_dir_all(&partial);
        }
        let least = bench.least();
        let made = bench.workspace.backup();
        bench.workspace.json(&["backup", "dump"], 0);
        bench.workspace.json(&["verify", "main", "--data"], 0);
        bench.check_snapshots(made["snapshot"].as_str().unwrap(), &least);
        bench.check_clean();
    }
    println!("seed {seed}: {done} rounds in {:?}, {} snapshots restored: {told:?}", began.elapsed(), bench.proven.len());
}

/// Runs it until it tells of the `nth` phase, and kills it there; the phases that it told of. It may be through before the kill arrives.
fn killed_in_phase(workspace: &Workspace, words: &[&str], nth: usize) -> (Vec<String>, bool) {
    let mut command = workspace.command(words);
    command.args(["--progress", "json"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut phases = Vec::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok) {
        let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        if event["event"] == "phase" {
            phases.push(event["phase"].as_str().unwrap().to_owned());
            if phases.len() > nth {
                child.kill().unwrap();
                break;
            }
        }
    }
    let status = child.wait().unwrap();
    assert!(status.code().is_none_or(|code| code == 0), "{words:?} ended with {status}");
    (phases, status.code().is_none())
}

/// Nothing but locks where the plan works; no run that seems to go on.
fn nothing_left(workspace: &Workspace, after: &str) {
    let left: Vec<_> =
        files(&workspace.path("state/work")).into_iter().filter(|path| path.extension().is_none_or(|e| e != "lock")).collect();
    assert!(left.is_empty(), "{after}: {left:?}");
    let history = workspace.json(&["run", "history", "--limit", "0"], 0);
    assert!(history["runs"].as_array().unwrap().iter().all(|run| run["state"] != "running"), "{after}: {history}");
}

/// Backups are killed at random above, and in the repository's own tests at each request to the store.
#[test]
fn a_restore_a_drill_a_prune_and_a_copy_killed_in_each_phase_are_made_good_by_the_next() {
    let workspace = Workspace::new("keep = { last = 1 }\n[[plan.crm.copy]]\nto = \"second\"\n");
    let key = workspace.path("main.key");
    workspace.json(&["key", "generate", "--kind", "key-file", "--out", key.to_str().unwrap()], 0);
    let plan = fs::read_to_string(workspace.path("plans/crm.toml")).unwrap();
    let secret = format!("passphrase = {{ file = \"{}\" }}", key.display());
    let second = format!("[repository.second]\nurl = \"file://{}\"\n{secret}\n[source.database]", workspace.path("second").display());
    let plan = plan.replace("passphrase = { env = \"CRM_PASSPHRASE\" }", &secret).replace("[source.database]", &second);
    fs::write(workspace.path("plans/crm.toml"), plan).unwrap();
    for repository in ["main", "second"] {
        workspace.json(&["repo", "init", repository], 0);
    }
    let target = workspace.path("target");
    let whole = |target: &Path, after: &str| {
        assert_eq!(fs::read_to_string(target.join("attachments/marked.txt")).unwrap(), workspace::MARKER, "{after}");
        let database = Connection::open_with_flags(target.join("database"), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        assert_eq!(database.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)).unwrap(), "ok", "{after}");
    };
    let jobs: [(&str, &[&str]); 4] = [
        ("restore", &["restore", "crm", "--to", target.to_str().unwrap()]),
        ("drill", &["drill", "run", "crm"]),
        ("prune", &["prune", "crm"]),
        ("copy", &["copy", "crm", "--to", "second"]),
    ];
    for (job, words) in jobs {
        let mut seen: Vec<String> = Vec::new();
        for nth in 0.. {
            // Something to remove, and something to copy.
            let file = workspace.made.attachments.join("changing");
            fs::write(&file, format!("{job} {nth}").repeat(10_000)).unwrap();
            workspace.backup();
            let (phases, killed) = killed_in_phase(&workspace, words, nth);
            if phases.len() <= nth {
                assert!(!killed && nth > 0, "{job}: {phases:?}");
                let _ = fs::remove_dir_all(&target);
                break;
            }
            let at = phases[nth].clone();
            let after = format!("{job} killed in {at:?}");
            seen.push(at);
            if job == "restore" {
                let partial = workspace.path(".target.lifeboat-partial");
                assert!(
                    !target.exists() || {
                        whole(&target, &after);
                        true
                    }
                );
                if !target.exists() || partial.join("restore.json").exists() {
                    let mut words = words.to_vec();
                    if ["tree", "whole"].iter().any(|part| fs::read_dir(partial.join(part)).is_ok_and(|mut items| items.next().is_some())) {
                        words.push("--resume");
                    }
                    workspace.json(&words, 0);
                }
                whole(&target, &after);
                assert!(!partial.exists(), "{after}");
                fs::remove_dir_all(&target).unwrap();
            } else {
                let done = workspace.json(words, 0);
                assert!(job != "drill" || done["verdict"] == "passed", "{after}: {done}");
            }
            let history = workspace.json(&["run", "history", "--limit", "2"], 0);
            let runs: Vec<&serde_json::Value> = history["runs"].as_array().unwrap().iter().filter(|run| run["job"] == job).collect();
            if killed && runs.len() == 2 {
                let dead = workspace.json(&["run", "show", runs[1]["id"].as_str().unwrap()], 0);
                let told = dead["story"].as_str().is_some_and(|story| story.contains("ended without closing this run"));
                assert!(dead["state"] == "interrupted" && told || dead["state"] == "succeeded", "{after}: {dead}");
            }
            assert!(!killed || runs.len() == 2 || job == "restore", "{after}: the journal knows both: {history}");
            nothing_left(&workspace, &after);
        }
        println!("{job}: killed in {seen:?}");
        assert!(seen.len() >= 2, "{job} has phases: {seen:?}");
        for repository in ["main", "second"] {
            workspace.json(&["verify", repository, "--data"], 0);
        }
    }
    // Of the one snapshot that retention keeps there is a whole one in each place.
    for repository in ["main", "second"] {
        workspace.json(&["restore", "crm", "--repository", repository, "--to", target.to_str().unwrap()], 0);
        whole(&target, repository);
        fs::remove_dir_all(&target).unwrap();
    }
}
