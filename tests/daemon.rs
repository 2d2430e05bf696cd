//! The daemon as a real process: what it missed, what kills it, what stops it, and that there is one only. Planning itself is
//! tested as a library with a clock moved by hand (`daemon::scheduler`).

#![expect(clippy::unwrap_used, reason = "a test fails by it; clippy knows only functions marked as tests")]

#[path = "support/simulation.rs"]
mod simulation;
#[path = "support/workspace.rs"]
mod workspace;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use lifeboat::daemon::journal::{Job, Journal, NewRun, Trigger};
use lifeboat::id::Name;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use workspace::{MARKER, PASSPHRASE, Workspace, files, text};

/// Far beyond what anything here takes; a test that waits so long has failed.
const BOUND: Duration = Duration::from_mins(2);

/// A daemon that is killed when the test ends, however it ends.
struct Daemon(Child);

impl Daemon {
    fn start(workspace: &Workspace) -> Self {
        let log = File::create(workspace.path("serve.log")).unwrap();
        Self(workspace.command(&["serve", "--log-format", "json"]).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.0.id().try_into().unwrap()).unwrap(), signal).unwrap();
    }

    fn ended(&mut self) -> Option<i32> {
        let status = until("the daemon ends", || self.0.try_wait().unwrap());
        status.code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(began.elapsed() < BOUND, "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

fn log(workspace: &Workspace) -> String {
    std::fs::read_to_string(workspace.path("serve.log")).unwrap()
}

fn serving(workspace: &Workspace) {
    until("the daemon serves", || log(workspace).contains("\"serving\"").then_some(()));
}

/// Makes the journal believe that this schedule has been followed for three days.
fn followed_for_days(workspace: &Workspace, plan: &str, job: Job, expression: &str) {
    let now = Utc::now();
    let journal = Journal::open(&workspace.path("state"), now).unwrap();
    journal.schedule_since(&Name::new(plan).unwrap(), job, expression, now - TimeDelta::days(3)).unwrap();
}

fn runs(workspace: &Workspace) -> Vec<Value> {
    workspace.json(&["run", "history"], 0)["runs"].as_array().unwrap().clone()
}

/// A schedule that has no slot within hours of now, so that nothing but a catch-up runs during a test.
fn quiet_schedule() -> String {
    let hour = chrono::Timelike::hour(&(Utc::now() + TimeDelta::hours(12)));
    format!("7 {hour} * * *")
}

#[test]
fn missed_runs_are_caught_up_once_at_the_start_and_sigterm_is_clean() {
    let schedule = quiet_schedule();
    let plan = format!("schedule = \"{schedule}\"\n[plan.crm.drill]\nschedule = \"{schedule}\"");
    let workspace = Workspace::ready(&plan);
    let expression = format!("{schedule} Asia/Shanghai");
    followed_for_days(&workspace, "crm", Job::Backup, &expression);
    followed_for_days(&workspace, "crm", Job::Drill, &expression);
    let mut daemon = Daemon::start(&workspace);
    let found = until("backup and drill are done", || {
        Some(runs(&workspace)).filter(|runs| runs.len() == 2 && runs.iter().all(|run| run["state"] == "succeeded"))
    });
    assert_eq!((found[1]["job"].as_str(), found[0]["job"].as_str()), (Some("backup"), Some("drill")), "the backup goes first");
    for run in &found {
        assert_eq!(run["trigger"], "catch-up");
        assert!(run["scheduled_at"].is_string());
        assert!(run["story"].as_str().unwrap().contains("stands for"), "{run}");
    }
    let status = workspace.json(&["status"], 0);
    assert_eq!(status["daemon"], true);
    assert!(status["plans"][0]["next_run"].is_string() && status["plans"][0]["proven_at"].is_string(), "{status}");
    assert_eq!(status["plans"][0]["problems"].as_array().unwrap().len(), 0, "{status}");

    let second = workspace.run(&["serve"]);
    assert_eq!(second.status.code(), Some(11), "{}", text(&second.stderr));
    assert!(text(&second.stderr).contains(&daemon.0.id().to_string()), "it says who holds it");

    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended(), Some(0), "{}", log(&workspace));
    assert_eq!(workspace.json(&["status"], 0)["daemon"], false);
    // Another start finds nothing to catch up.
    let mut again = Daemon::start(&workspace);
    serving(&workspace);
    again.signal(Signal::TERM);
    assert_eq!(again.ended(), Some(0));
    assert_eq!(runs(&workspace).len(), 2);
    for line in log(&workspace).lines().filter(|line| line.starts_with('{')) {
        serde_json::from_str::<Value>(line).unwrap();
    }
    let all = files(&workspace.path("state")).into_iter().chain([workspace.path("serve.log")]);
    for path in all {
        let bytes = std::fs::read(&path).unwrap();
        for secret in [PASSPHRASE, MARKER] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret} is in {}", path.display());
        }
    }
}

#[test]
fn a_kept_target_is_removed_when_its_time_is_over_whether_or_not_its_plan_is_there() {
    let workspace = Workspace::ready("");
    for (plan, until) in [("gone", "2020-01-01T00:00:00Z"), ("crm", "2999-01-01T00:00:00Z")] {
        let work = workspace.path("state/work").join(plan);
        std::fs::create_dir_all(work.join("kept-01x/restored-crm")).unwrap();
        std::fs::write(work.join("kept-01x.json"), format!(r#"{{"until":"{until}","drill":"01x","snapshot":"01"}}"#)).unwrap();
    }
    let mut daemon = Daemon::start(&workspace);
    until("the kept target is gone", || (!workspace.path("state/work/gone/kept-01x").exists()).then_some(()));
    serving(&workspace);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended(), Some(0));
    assert!(workspace.path("state/work/crm/kept-01x/restored-crm").exists(), "its time is not over");
}

#[test]
fn missed_runs_are_recorded_where_the_plan_says_skip() {
    let schedule = quiet_schedule();
    let workspace = Workspace::ready(&format!("schedule = \"{schedule}\"\nmissed = \"skip\""));
    followed_for_days(&workspace, "crm", Job::Backup, &format!("{schedule} Asia/Shanghai"));
    let mut daemon = Daemon::start(&workspace);
    let found = until("the gap is recorded", || Some(runs(&workspace)).filter(|runs| !runs.is_empty()));
    assert_eq!((found.len(), found[0]["state"].as_str()), (1, Some("missed")), "{found:?}");
    let status = workspace.json(&["status"], 0);
    assert!(status["plans"][0]["problems"].to_string().contains("missed"), "{status}");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended(), Some(0));
}

/// A plan whose backup reads from a pipe, so that a test decides how long it runs.
fn with_pipe() -> (Workspace, std::path::PathBuf) {
    let schedule = quiet_schedule();
    let workspace = Workspace::new("");
    let pipe = workspace.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    workspace.write_plan(&format!(
        "[source.slow]\nkind = \"command\"\ndump = [\"cat\", \"{}\"]\n[plan.slow]\nsource = \"slow\"\nrepository = \"main\"\nschedule = \"{schedule}\"\ntimezone = \"UTC\"",
        pipe.display()
    ));
    assert!(workspace.run(&["repo", "init", "main"]).status.success());
    followed_for_days(&workspace, "slow", Job::Backup, &format!("{schedule} UTC"));
    (workspace, pipe)
}

/// Opens the other end; returns once a backup reads from it.
fn feed(pipe: &std::path::Path) -> File {
    let mut writer = OpenOptions::new().write(true).open(pipe).unwrap();
    writer.write_all(b"half of a dump\n").unwrap();
    writer
}

#[test]
fn a_killed_daemon_leaves_a_run_that_the_next_start_settles_and_tries_again() {
    let (workspace, pipe) = with_pipe();
    let mut first = Daemon::start(&workspace);
    let writer = feed(&pipe);
    assert_eq!(runs(&workspace)[0]["state"], "running", "recorded before it starts");
    let busy = workspace.run(&["backup", "slow"]);
    assert_eq!(busy.status.code(), Some(11), "a manual run does not double it: {}", text(&busy.stderr));
    first.signal(Signal::KILL);
    first.ended();
    drop(writer);
    let status = workspace.json(&["status"], 0);
    assert!(status["plans"].to_string().contains("is gone"), "{status}");

    let mut second = Daemon::start(&workspace);
    let writer = feed(&pipe);
    drop(writer);
    let run = until("the second attempt succeeded", || {
        Some(runs(&workspace)).and_then(|runs| runs.into_iter().find(|run| run["state"] == "succeeded"))
    });
    assert_eq!((run["attempt"].as_u64(), run["trigger"].as_str()), (Some(2), Some("retry")));
    let shown = workspace.json(&["run", "show", run["id"].as_str().unwrap()], 0);
    let story = shown["earlier_attempts"][0]["story"].as_str().unwrap();
    assert!(story.contains("ended without closing this run") && story.contains("no snapshot was committed"), "{story}");
    assert_eq!(workspace.json(&["snapshots", "slow"], 0)["snapshots"].as_array().unwrap().len(), 1);
    second.signal(Signal::TERM);
    assert_eq!(second.ended(), Some(0));
}

/// A run of a process that is gone, and the snapshot that it was about to commit.
fn killed(workspace: &Workspace, run: &NewRun) {
    let now = Utc::now();
    let journal = Journal::open(&workspace.path("state"), now).unwrap();
    let claim = journal.begin(run, now).unwrap();
    assert!(journal.announce(claim, "01arz3ndektsv4rrffq69g5fav", now).unwrap());
}

#[test]
fn broken_runs_whose_store_hangs_hold_up_no_other_plan_and_take_no_place_for_good() {
    // It takes connections and never answers.
    let store = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let schedule = quiet_schedule();
    let workspace = Workspace::ready(&format!("schedule = \"{schedule}\"\n[serve]\nmax_runs = 1"));
    // Their slots are an hour earlier than the other plan's: they are first in line.
    let plans = ["a", "b"].map(|name| {
        format!("[plan.{name}]\nsource = \"attachments\"\nrepository = \"hanging\"\ntimezone = \"Asia/Tokyo\"\nschedule = \"{schedule}\"\n")
    });
    let hanging = format!(
        "version = 1\n[repository.hanging]\nurl = \"s3://nowhere/r\"\nendpoint = \"http://{}\"\nregion = \"us-east-1\"\nallow_http = true\n\
         access_key = {{ env = \"CRM_PASSPHRASE\" }}\nsecret_key = {{ env = \"CRM_PASSPHRASE\" }}\npassphrase = {{ env = \"CRM_PASSPHRASE\" }}\n{}",
        store.local_addr().unwrap(),
        plans.concat()
    );
    std::fs::write(workspace.path("plans/hanging.toml"), hanging).unwrap();
    for plan in ["a", "b"] {
        killed(&workspace, &NewRun::manual(&Name::new(plan).unwrap(), Job::Backup, "tester", Utc::now()));
        followed_for_days(&workspace, plan, Job::Backup, &format!("{schedule} Asia/Tokyo"));
    }
    followed_for_days(&workspace, "crm", Job::Backup, &format!("{schedule} Asia/Shanghai"));
    let state_of = |plan: &str| runs(&workspace).into_iter().find(|run| run["plan"] == plan).map(|run| run["state"].clone());
    let mut daemon = Daemon::start(&workspace);
    serving(&workspace);
    until("the other plan is backed up", || state_of("crm").filter(|state| state == "succeeded"));
    assert_eq!(workspace.run(&["status", "--daemon"]).status.code(), Some(0));
    assert_eq!((state_of("a").unwrap(), state_of("b").unwrap()), ("running".into(), "running".into()), "they are still being settled");
    let log = log(&workspace);
    assert!(log.contains("is being asked of its repository for 30 s, without an answer"), "{log}");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended(), Some(0), "what hangs does not keep the daemon from ending");
}

#[test]
fn what_could_not_be_settled_at_the_start_is_settled_when_the_store_is_back_and_its_slot_tried_again() {
    let schedule = quiet_schedule();
    let workspace = Workspace::ready(&format!("schedule = \"{schedule}\""));
    // After a loss of power in the last slot; nothing else of the plan is due for hours.
    let expression = format!("{schedule} Asia/Shanghai");
    followed_for_days(&workspace, "crm", Job::Backup, &expression);
    let plans = lifeboat::plan::Plans::load(&[workspace.path("plans")]).unwrap();
    let slot = plans.plan("crm").unwrap().schedule_of("backup").unwrap().previous_at_or_before(Utc::now()).unwrap();
    let id = lifeboat::id::RunId::generate(Utc::now());
    killed(&workspace, &NewRun::of_slot(&Name::new("crm").unwrap(), Job::Backup, Trigger::Schedule, slot, id));
    let (repository, aside) = (workspace.path("repository"), workspace.path("aside"));
    std::fs::rename(&repository, &aside).unwrap();
    let mut daemon = Daemon::start(&workspace);
    until("it cannot be settled", || log(&workspace).contains("a broken run cannot be settled yet").then_some(()));
    // Nobody is at it between two tries, and that is what people are told.
    let left = &runs(&workspace)[0];
    assert!(left["story"].as_str().unwrap().contains("is gone; the next run of the plan settles it"), "{left}");
    std::fs::rename(&aside, &repository).unwrap();
    let run = until("the slot is done", || runs(&workspace).into_iter().find(|run| run["state"] == "succeeded"));
    assert_eq!((run["attempt"].as_u64(), run["trigger"].as_str()), (Some(2), Some("retry")), "{run}");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended(), Some(0));
}

#[test]
fn a_killed_manual_run_is_settled_by_the_daemon_that_serves_meanwhile() {
    let (workspace, pipe) = with_pipe();
    let mut manual = workspace.command(&["backup", "slow"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let writer = feed(&pipe);
    let _daemon = Daemon::start(&workspace);
    until("the daemon finds the plan busy", || log(&workspace).contains("the run did not begin now").then_some(()));
    manual.kill().unwrap();
    manual.wait().unwrap();
    drop(writer);
    // The killed run's command lives on for a moment and may take a feed that was meant for the daemon's run: feed whoever reads.
    let run = until("the daemon's own run succeeded", || {
        let reader = File::options().write(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed()).open(&pipe);
        if let Ok(mut pipe) = reader {
            let _ = pipe.write_all(b"data");
        }
        runs(&workspace).into_iter().find(|run| run["state"] == "succeeded")
    });
    assert_eq!(run["trigger"], "catch-up");
    let dead = runs(&workspace).into_iter().find(|run| run["trigger"] == "manual").unwrap();
    assert_eq!(dead["state"], "interrupted", "{dead}");
    assert!(!log(&workspace).contains("was not settled"), "{}", log(&workspace));
}

#[test]
fn a_run_is_cancelled_by_a_command_whoever_runs_it() {
    let (workspace, pipe) = with_pipe();
    let daemon = Daemon::start(&workspace);
    let writer = feed(&pipe);
    let id = runs(&workspace)[0]["id"].as_str().unwrap().to_owned();
    let asked = workspace.json(&["run", "cancel", &id[..20]], 0);
    assert_eq!((&asked["schema"], &asked["id"]), (&"lifeboat.cancel-request/1".into(), &id.as_str().into()));
    let run = until("it ended", || Some(workspace.json(&["run", "show", &id], 0)).filter(|run| run["state"] != "running"));
    assert_eq!(run["state"], "interrupted", "{run}");
    assert!(run["story"].as_str().unwrap().contains("uid"), "who did it is told: {run}");
    drop(writer);
    assert_eq!(workspace.json(&["run", "cancel", &id], 11)["error"]["kind"], "busy", "it is over");
    assert_eq!(workspace.json(&["run", "cancel", "01jd0v7m4z5k3n8q2w6x9y1b7c"], 1)["error"]["kind"], "not-found");
    drop(daemon);

    let mut manual = Daemon(workspace.command(&["backup", "slow"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let writer = feed(&pipe);
    let id = runs(&workspace)[0]["id"].as_str().unwrap().to_owned();
    workspace.json(&["run", "cancel", &id], 0);
    assert_eq!(manual.ended(), Some(130));
    drop(writer);
    assert_eq!(runs(&workspace)[0]["state"], "interrupted");
}

/// The same command, started with SIGHUP as told, whatever these tests were started with.
fn with_hangup(command: &Command, option: &str) -> Command {
    let mut env = Command::new("env");
    env.arg(option).arg(command.get_program()).args(command.get_args()).stdout(Stdio::null()).stderr(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => env.env(name, value),
            None => env.env_remove(name),
        };
    }
    env
}

#[test]
fn a_hangup_stops_a_manual_run_cleanly_and_under_nohup_it_is_ignored() {
    for (option, code, state) in [("--default-signal=HUP", 130, "interrupted"), ("--ignore-signal=HUP", 0, "succeeded")] {
        let (workspace, pipe) = with_pipe();
        let mut manual = Daemon(with_hangup(&workspace.command(&["backup", "slow"]), option).spawn().unwrap());
        let writer = feed(&pipe);
        manual.signal(Signal::HUP);
        if code == 0 {
            drop(writer);
            assert_eq!(manual.ended(), Some(code));
        } else {
            assert_eq!(manual.ended(), Some(code));
            drop(writer);
        }
        assert_eq!(runs(&workspace)[0]["state"], state);
    }
}

#[test]
fn a_second_sigterm_cancels_what_runs_and_it_is_recorded() {
    let (workspace, pipe) = with_pipe();
    let mut daemon = Daemon::start(&workspace);
    let writer = feed(&pipe);
    daemon.signal(Signal::TERM);
    until("it drains", || log(&workspace).contains("nothing new starts").then_some(()));
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended(), Some(0), "{}", log(&workspace));
    drop(writer);
    let run = &runs(&workspace)[0];
    assert_eq!((run["state"].as_str(), run["error"]["kind"].as_str()), (Some("interrupted"), Some("interrupted")), "{run}");
    assert_eq!(run["by"], "daemon");
    let story = run["story"].as_str().unwrap();
    assert!(story.starts_with("stands for 2 slots missed since") && story.ends_with("; the daemon was told to stop"), "{story}");
    assert!(workspace.json(&["snapshots", "slow"], 0)["snapshots"].as_array().unwrap().is_empty());
    let lines = BufReader::new(File::open(workspace.path("serve.log")).unwrap()).lines();
    let spans = lines.map_while(Result::ok).filter(|line| line.contains(run["id"].as_str().unwrap())).count();
    assert!(spans >= 2, "log lines carry the run's id");
}

#[test]
fn a_run_that_ends_while_the_daemon_drains_is_a_success_and_no_drain_cancels_at_once() {
    let (workspace, pipe) = with_pipe();
    let mut daemon = Daemon::start(&workspace);
    let writer = feed(&pipe);
    daemon.signal(Signal::TERM);
    until("it drains", || log(&workspace).contains("nothing new starts").then_some(()));
    drop(writer);
    assert_eq!(daemon.ended(), Some(0), "{}", log(&workspace));
    assert_eq!(runs(&workspace)[0]["state"], "succeeded");

    let (workspace, pipe) = with_pipe();
    std::fs::write(workspace.path("plans/serve.toml"), "version = 1\n[serve]\ndrain = \"0s\"\n").unwrap();
    let mut daemon = Daemon::start(&workspace);
    let writer = feed(&pipe);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended(), Some(0), "{}", log(&workspace));
    drop(writer);
    assert_eq!(runs(&workspace)[0]["state"], "interrupted");
}

#[test]
fn changed_plan_files_are_followed_broken_ones_are_not_and_a_deleted_plan_ends_its_run() {
    let (workspace, pipe) = with_pipe();
    let file = std::fs::read_dir(workspace.path("plans")).unwrap().map(|entry| entry.unwrap().path());
    let file = file.into_iter().find(|path| std::fs::read_to_string(path).unwrap().contains("plan.slow")).unwrap();
    let good = std::fs::read_to_string(&file).unwrap();
    let mut daemon = Daemon::start(&workspace);
    let writer = feed(&pipe);
    // Broken: told, and what runs and what is planned stays.
    std::fs::write(&file, good.replace("schedule", "shedule")).unwrap();
    daemon.signal(Signal::HUP);
    until("the broken file is told", || log(&workspace).contains("the plan files are wrong").then_some(()));
    // Right again, with one change: noticed without a signal.
    std::fs::write(&file, format!("{good}\njitter = \"30s\"\n")).unwrap();
    until("the change is in force", || log(&workspace).contains("now [plan.slow] jitter").then_some(()));
    // The plan is gone while its run goes on.
    let (before, _) = good.split_once("[source.slow]").unwrap();
    std::fs::write(&file, before).unwrap();
    daemon.signal(Signal::HUP);
    until("the plan is gone", || log(&workspace).contains("plan slow is gone").then_some(()));
    drop(writer);
    let run = until("its run ended", || Some(runs(&workspace)).and_then(|runs| runs.into_iter().find(|run| run["state"] == "succeeded")));
    assert_eq!(run["plan"], "slow");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended(), Some(0), "{}", log(&workspace));
}

/// Plans for a simulation.
fn simulated(text: &str) -> lifeboat::plan::Plans {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("plans.toml"), text).unwrap();
    lifeboat::plan::Plans::load(&[folder.path().to_owned()]).unwrap()
}

fn moment(text: &str) -> chrono::DateTime<Utc> {
    text.parse().unwrap()
}

#[test]
fn a_simulated_quarter_of_fifty_plans_misses_and_doubles_no_slot() {
    // Over the change of the clocks in Europe and America.
    let (from, to) = (moment("2026-01-31T23:30:00Z"), moment("2026-04-30T23:30:00Z"));
    let mut simulation = simulation::Simulation::new(simulated(&simulation::plans(50, 3, 8)), from);
    simulation.takes = |job| if job == Job::Backup { TimeDelta::minutes(3) } else { TimeDelta::minutes(40) };
    simulation.run_until(from, to);
    let counts = &simulation.counts;
    assert_eq!((counts.doubled, counts.lost, counts.missed, counts.covered), (0, 0, 0, 0), "{counts:?}");
    // 89 days, 12 or 13 Sundays, three firsts of a month of which February's is passed by zones east of UTC at the start.
    assert!((50 * (88 + 12 + 2)..=50 * (90 + 13 + 3)).contains(&usize::try_from(counts.runs).unwrap()), "{counts:?}");
    assert!(counts.most_at_once <= 8, "{counts:?}");
    assert!(counts.questions <= counts.runs + 150, "the journal is asked once for each run, and at the start: {counts:?}");
}

#[test]
fn a_thousand_plans_due_in_the_same_second_run_once_each_within_the_limit() {
    let from = moment("2026-11-20T01:59:00Z");
    let text = simulation::plans(1000, 10, 16);
    let text = text.lines().map(|line| match line.split_once(" = ") {
        Some(("schedule", value)) if value.ends_with("* * *\"") => "schedule = \"0 2 * * *\"\n".to_owned(),
        Some(("jitter", _)) => String::new(),
        Some(("timezone", _)) => "timezone = \"UTC\"\n".to_owned(),
        _ => format!("{line}\n"),
    });
    let mut simulation = simulation::Simulation::new(simulated(&text.collect::<String>()), from);
    simulation.takes = |_| TimeDelta::seconds(30);
    simulation.run_until(from, moment("2026-11-20T03:30:00Z"));
    let counts = &simulation.counts;
    assert_eq!((counts.runs, counts.doubled, counts.lost, counts.missed, counts.most_at_once), (1000, 0, 0, 0, 16), "{counts:?}");
    assert_eq!(simulation.going_on(), 0);
}

#[test]
fn a_store_that_is_away_for_an_hour_costs_retries_and_no_slot() {
    let from = moment("2026-11-19T23:50:00Z");
    let text = simulation::plans(20, 2, 8).replace("jitter = \"5m\"", "retry = { attempts = 20, delay = \"1m\" }");
    let mut simulation = simulation::Simulation::new(simulated(&text), from);
    simulation.away_until = Some(moment("2026-11-20T01:00:00Z"));
    simulation.run_until(from, moment("2026-11-21T23:50:00Z"));
    let counts = &simulation.counts;
    assert_eq!((counts.doubled, counts.lost, counts.missed, counts.covered), (0, 0, 0, 0), "{counts:?}");
    assert!(counts.retries >= 5 && counts.runs - counts.retries >= 40, "{counts:?}");
    assert!(simulation.failed().is_empty(), "{:?}", simulation.failed());
}

#[test]
fn a_journal_that_is_removed_under_the_daemon_and_a_daemon_that_hangs_are_told() {
    let workspace = Workspace::ready("");
    workspace.backup();
    let mut daemon = Daemon::start(&workspace);
    serving(&workspace);
    let told = |kind: &str| {
        let status = workspace.json(&["status"], 0);
        status["problems"].as_array().unwrap().iter().find(|problem| problem["kind"] == kind).cloned()
    };

    let lock = workspace.path("state/serve.lock");
    daemon.signal(Signal::STOP);
    assert!(told("daemon-stuck").is_none());
    // As if it had been stopped five minutes ago, and a clock had been set back by an hour since.
    let text = std::fs::read_to_string(&lock).unwrap();
    let (head, seen) = text.trim_end().rsplit_once(' ').unwrap();
    let seen = seen.parse::<u64>().unwrap().checked_sub(300_000).expect("this machine runs for five minutes");
    let file = OpenOptions::new().write(true).open(&lock).unwrap();
    file.write_all_at(format!("{head} {seen:020}\n").as_bytes(), 0).unwrap();
    file.set_modified(std::time::SystemTime::now() + Duration::from_hours(1)).unwrap();
    let alive = workspace.json(&["status", "--daemon"], 1);
    assert_eq!((&alive["running"], &alive["alive"]), (&true.into(), &false.into()), "{alive}");
    let stuck = told("daemon-stuck").unwrap();
    assert!(stuck["message"].as_str().unwrap().contains("has not looked"), "{stuck}");
    daemon.signal(Signal::CONT);
    until("it looks again", || told("daemon-stuck").is_none().then_some(()));
    assert_eq!(workspace.json(&["status", "--daemon"], 0)["alive"], true);

    // What is written into a removed file nobody would ever see.
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(workspace.path(&format!("state/journal.sqlite{suffix}")));
    }
    let problem = until("it notices", || told("journal-unavailable"));
    assert!(problem["message"].as_str().unwrap().contains("removed or replaced"), "{problem}");
    daemon.signal(Signal::TERM);
    daemon.ended();
    let mut again = Daemon::start(&workspace);
    serving(&workspace);
    assert!(log(&workspace).contains("the journal is gone"), "{}", log(&workspace));
    again.signal(Signal::TERM);
    assert_eq!(again.ended(), Some(0));
}

#[test]
fn a_crash_after_the_commit_is_seen_as_success() {
    let workspace = Workspace::ready("");
    // A run of a process that is gone, and the snapshot that it committed before it died.
    let started = Utc::now();
    let claim = {
        let journal = Journal::open(&workspace.path("state"), started).unwrap();
        let run = NewRun::manual(&Name::new("crm").unwrap(), Job::Backup, "tester", started);
        journal.begin(&run, started).unwrap()
    };
    let mut command = workspace::bare(&["backup", "crm", "--json"]);
    command
        .arg("--plans")
        .arg(workspace.path("plans"))
        .arg("--state")
        .arg(workspace.path("state-of-the-dead"))
        .env("CRM_PASSPHRASE", PASSPHRASE);
    let output = command.output().unwrap();
    let snapshot = serde_json::from_slice::<Value>(&output.stdout).unwrap()["snapshot"].as_str().unwrap().to_owned();

    let next = workspace.backup();
    let shown = workspace.json(&["run", "show", &claim.id.to_string()], 0);
    assert_eq!((shown["state"].as_str(), shown["snapshot"].as_str()), (Some("succeeded"), Some(snapshot.as_str())), "{shown}");
    assert!(shown["story"].as_str().unwrap().contains("after a crash"));
    assert_ne!(next["snapshot"], snapshot.as_str());
}

#[test]
fn a_damaged_journal_is_rebuilt_from_the_repository_by_one_command_and_the_old_one_is_kept() {
    let schedule = quiet_schedule();
    let workspace = Workspace::ready(&format!("schedule = \"{schedule}\"\nkeep = {{ last = 1 }}"));
    let first = workspace.backup();
    workspace.json(&["drill", "run", "crm"], 0);
    workspace.json(&["verify", "crm"], 0);
    workspace.backup();
    workspace.backup();
    assert_eq!(workspace.json(&["prune", "crm"], 0)["snapshots_removed"], 1);
    let journal = workspace.path("state/journal.sqlite");
    let garbage = vec![b'x'; 8192];
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(workspace.path(&format!("state/journal.sqlite{suffix}")));
    }
    std::fs::write(&journal, &garbage).unwrap();
    let refused = workspace.run(&["backup", "crm"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("the file is damaged") && text(&refused.stderr).contains("lifeboat run rebuild"),
        "{}",
        text(&refused.stderr)
    );

    // Not while somebody is at work.
    let mut lock =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(workspace.path("state/serve.lock")).unwrap();
    lock.lock().unwrap();
    writeln!(lock, "1").unwrap();
    assert_eq!(workspace.json(&["run", "rebuild"], 11)["error"]["kind"], "busy");
    drop(lock);
    assert_eq!(std::fs::read(&journal).unwrap(), garbage, "nothing was changed");

    let rebuilt = workspace.json(&["run", "rebuild"], 0);
    assert_eq!(rebuilt["runs"], serde_json::json!({ "backup": 2, "drill": 1, "verify": 1 }), "{rebuilt}");
    assert_eq!(rebuilt["removed"], 1, "what retention has removed is not lost");
    assert_eq!(std::fs::read(rebuilt["aside"].as_str().unwrap()).unwrap(), garbage, "the old one is kept");
    let found = runs(&workspace);
    assert!(found.iter().all(|run| run["trigger"] == "rebuilt" && run["state"] == "succeeded"), "{found:?}");
    assert_eq!(found.last().unwrap()["snapshot"], first["snapshot"]);
    assert!(found.last().unwrap()["duration_ms"].is_null(), "how long a backup took is not known any more: {found:?}");
    let shown = text(&workspace.run(&["run", "show", found.last().unwrap()["id"].as_str().unwrap()]).stdout);
    assert!(shown.lines().any(|line| line.starts_with("took") && line.trim_end().ends_with('-')), "{shown}");
    let status = workspace.json(&["status"], 0);
    assert_eq!(status["plans"][0]["problems"].as_array().unwrap().len(), 0, "{status}");
    assert!(status["plans"][0]["proven_at"].is_string() && status["plans"][0]["next_run"].is_string());
    workspace.backup();
    assert_eq!(runs(&workspace).len(), 5);
    let left: Vec<_> =
        std::fs::read_dir(workspace.path("state")).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| !name.starts_with("rebuild-")), "{left:?}");
    assert_eq!(std::fs::metadata(&journal).unwrap().permissions().mode() & 0o777, 0o600);

    // One that is gone, and a manifest that cannot be read: told, and exit 3.
    for name in ["journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"] {
        let _ = std::fs::remove_file(workspace.path("state").join(name));
    }
    workspace::damage(&files(&workspace.path("repository/snapshots"))[0]);
    let rebuilt = workspace.json(&["run", "rebuild"], 3);
    assert!(rebuilt["aside"].is_null() && rebuilt["damaged"].as_array().unwrap().len() == 1, "{rebuilt}");
    assert_eq!(rebuilt["runs"]["backup"], 2);
    // A repository that is away: nothing is changed.
    std::fs::rename(workspace.path("repository"), workspace.path("elsewhere")).unwrap();
    let before = std::fs::read(&journal).unwrap();
    assert_eq!(workspace.run(&["run", "rebuild"]).status.code(), Some(10));
    assert_eq!(std::fs::read(&journal).unwrap(), before);
}

#[test]
fn a_restore_makes_a_drill_give_way_and_the_drill_is_made_when_it_is_over() {
    let schedule = quiet_schedule();
    let workspace = Workspace::new("");
    let gate = workspace.path("gate");
    assert!(Command::new("mkfifo").arg(&gate).status().unwrap().success());
    // A drill and a restore that wait where they bring the content back, until this test opens the gate.
    workspace.write_plan(&format!(
        "[source.gated]\nkind = \"command\"\ndump = [\"echo\", \"rows\"]\n\
         restore = [\"sh\", \"-c\", 'cat > \"$LIFEBOAT_TARGET/dump\"; cat {} > /dev/null']\n\
         [plan.gated]\nsource = \"gated\"\nrepository = \"main\"\ntimezone = \"UTC\"\n[plan.gated.drill]\nschedule = \"{schedule}\"",
        gate.display()
    ));
    workspace.json(&["repo", "init", "main"], 0);
    workspace.json(&["backup", "gated"], 0);
    followed_for_days(&workspace, "gated", Job::Drill, &format!("{schedule} UTC"));
    let mut daemon = Daemon::start(&workspace);
    let drill = || runs(&workspace).into_iter().find(|run| run["job"] == "drill");
    until("the drill goes on", || drill().filter(|run| run["state"] == "running"));
    let to = workspace.path("restored");
    let mut restore = workspace.command(&["restore", "gated", "--to", to.to_str().unwrap(), "--yes"]);
    let mut restore = restore.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let gave_way = until("the drill gave way", || drill().filter(|run| run["state"] != "running"));
    assert_eq!(gave_way["state"], "interrupted", "{gave_way}");
    assert!(gave_way.to_string().contains("gave way to a restore (run "), "{gave_way}");
    assert!(restore.try_wait().unwrap().is_none(), "the restore goes on");
    // Opens once the restore reads; whoever comes later finds a file and does not wait.
    let writer = OpenOptions::new().write(true).open(&gate).unwrap();
    assert_ne!(drill().unwrap()["state"], "running", "not beside the restore");
    std::fs::write(workspace.path("open"), "").unwrap();
    std::fs::rename(workspace.path("open"), &gate).unwrap();
    drop(writer);
    assert!(until("the restore ends", || restore.try_wait().unwrap()).success());
    assert_eq!(std::fs::read_to_string(to.join("dump")).unwrap(), "rows\n");
    let made = until("the drill is made", || drill().filter(|run| run["state"] == "succeeded"));
    assert_eq!((made["id"].as_str(), made["attempt"].as_u64()), (gave_way["id"].as_str(), Some(2)), "{made}");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended(), Some(0), "{}", log(&workspace));
    let left: Vec<_> = files(&workspace.path("state/work/gated"));
    assert!(left.iter().all(|path| path.extension().is_some_and(|extension| extension == "lock")), "{left:?}");
}

#[test]
fn a_run_that_fails_is_one_error_line() {
    let schedule = quiet_schedule();
    let plan =
        "[source.no]\nkind = \"command\"\ndump = [\"false\"]\n[plan.no]\nsource = \"no\"\nrepository = \"main\"\ntimezone = \"UTC\"\n";
    let workspace = Workspace::ready(&format!("{plan}schedule = \"{schedule}\""));
    followed_for_days(&workspace, "no", Job::Backup, &format!("{schedule} UTC"));
    let mut daemon = Daemon::start(&workspace);
    until("the run failed", || runs(&workspace).into_iter().find(|run| run["state"] == "failed"));
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended(), Some(0), "{}", log(&workspace));
    let errors: Vec<String> = log(&workspace).lines().filter(|line| line.contains("\"ERROR\"")).map(str::to_owned).collect();
    assert!(matches!(errors.as_slice(), [one] if one.contains("run did not succeed") && one.contains("\"no\"")), "{errors:?}");
}

/// Greatest number of these that went on at the same time.
fn at_once<'a>(runs: impl Iterator<Item = &'a Value>) -> i32 {
    let mut changes: Vec<(String, i32)> = Vec::new();
    for run in runs {
        let text = |key: &str| run[key].as_str().unwrap().to_owned();
        changes.extend([(text("started_at"), 1), (text("ended_at"), -1)]);
    }
    // What ends in the millisecond that another one begins in made room for it.
    changes.sort();
    let mut now = 0;
    changes
        .into_iter()
        .map(|(_, change)| {
            now += change;
            now
        })
        .max()
        .unwrap_or(0)
}

/// By hand with more: `LIFEBOAT_PLANS=1000 cargo test --test daemon -- --nocapture real_daemon`.
#[test]
fn many_plans_due_in_the_same_second_run_once_each_within_the_limits_of_a_real_daemon() {
    use std::fmt::Write as _;
    let count: usize = std::env::var("LIFEBOAT_PLANS").map_or(60, |count| count.parse().unwrap());
    let schedule = quiet_schedule();
    let workspace = Workspace::new("");
    let root = workspace.folder.path().display().to_string();
    let key = workspace.path("main.key");
    // No passphrase: nothing but the work itself is to take time.
    workspace.json(&["key", "generate", "--kind", "key-file", "--out", key.to_str().unwrap()], 0);
    let mut text = "version = 1\n[serve]\nmax_runs = 4\n".to_owned();
    for repository in ["main", "second"] {
        let limit = if repository == "second" { "max_runs = 1\n" } else { "" };
        let _ = writeln!(
            text,
            "[repository.{repository}]\nurl = \"file://{root}/{repository}\"\npassphrase = {{ file = \"{}\" }}\n{limit}",
            key.display()
        );
    }
    std::fs::create_dir(workspace.path("databases")).unwrap();
    for number in 0..count {
        let database = format!("{root}/databases/{number}.sqlite");
        let connection = rusqlite::Connection::open(&database).unwrap();
        connection.execute_batch(&format!("PRAGMA synchronous = off; CREATE TABLE t(n INTEGER); INSERT INTO t VALUES ({number})")).unwrap();
        let repository = if number % 4 == 0 { "second" } else { "main" };
        let _ = writeln!(
            text,
            "[source.s{number}]\nkind = \"sqlite\"\npath = \"{database}\"\n[plan.p{number}]\nsource = \"s{number}\"\nrepository = \"{repository}\"\n\
             schedule = \"{schedule}\"\ntimezone = \"UTC\""
        );
    }
    std::fs::write(workspace.path("plans/crm.toml"), text).unwrap();
    for repository in ["main", "second"] {
        workspace.json(&["repo", "init", repository], 0);
    }
    {
        let now = Utc::now();
        let journal = Journal::open(&workspace.path("state"), now).unwrap();
        for number in 0..count {
            let plan = Name::new(format!("p{number}")).unwrap();
            journal.schedule_since(&plan, Job::Backup, &format!("{schedule} UTC"), now - TimeDelta::days(3)).unwrap();
        }
    }
    let began = Instant::now();
    let mut daemon = Daemon::start(&workspace);
    let ended = || log(&workspace).matches("\"run succeeded\"").count() + log(&workspace).matches("\"run did not succeed\"").count();
    while ended() < count {
        assert!(began.elapsed() < BOUND * u32::try_from(count / 60 + 1).unwrap(), "{} of {count} ended: {}", ended(), log(&workspace));
        std::thread::park_timeout(Duration::from_millis(200));
    }
    let took = began.elapsed();
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.0.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB").parse::<u64>().unwrap();
    println!("{count} plans due at once: {took:?}, {} ms a run, peak memory {} MiB", took.as_millis() / count as u128, peak / 1024);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended(), Some(0), "{}", log(&workspace));
    let history = workspace.json(&["run", "history", "--limit", "0"], 0);
    let runs = history["runs"].as_array().unwrap();
    let mut plans: Vec<&str> = runs.iter().map(|run| run["plan"].as_str().unwrap()).collect();
    plans.sort_unstable();
    plans.dedup();
    assert_eq!((runs.len(), plans.len()), (count, count), "each plan once");
    assert!(runs.iter().all(|run| run["state"] == "succeeded" && run["attempt"] == 1 && run["trigger"] == "catch-up"), "{runs:?}");
    let of_second = |run: &&Value| run["plan"].as_str().unwrap()[1..].parse::<usize>().unwrap() % 4 == 0;
    assert!((2..=4).contains(&at_once(runs.iter())), "{} at once", at_once(runs.iter()));
    assert_eq!(at_once(runs.iter().filter(of_second)), 1);
    assert!(peak < 512 << 10, "{peak} KiB");
    let last = format!("p{}", count - 1);
    let to = workspace.path("restored.sqlite");
    workspace.json(&["restore", &last, "--to", to.to_str().unwrap()], 0);
    let found: i64 = rusqlite::Connection::open(&to).unwrap().query_row("SELECT n FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(usize::try_from(found).unwrap(), count - 1);
}
