//! Several machines on one journal: real nodes (`lifeboat serve`) on a real PostgreSQL, killed, paused past their lease, and cut off. Whatever happens to
//! them, each slot is committed once and none is lost. And one process killed at every phase of a run and every write of its journal.

#![expect(clippy::unwrap_used, reason = "a test fails by it; clippy knows only functions marked as tests")]

mod fleet;
mod journal;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/workspace.rs"]
mod workspace;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::clock::SystemClock;
use lifeboat::daemon::journal::faults::{Effect, Faults};
use lifeboat::daemon::journal::{Ending, Filter, Job, Journal, NewRun, Run, State, Trigger};
use lifeboat::daemon::runner;
use lifeboat::error::Kind;
use lifeboat::event::{Cancel, Event, Progress, Silent};
use lifeboat::id::{Name, RunId};
use lifeboat::ops::copy::CopyRequest;
use lifeboat::ops::prune::{self, PlanRules};
use lifeboat::ops::resolve::{self, RepositorySettings, Surroundings};
use lifeboat::ops::retention::Rules;
use lifeboat::ops::{Commit, CommitGate};
use lifeboat::plan::Plans;
use lifeboat::repo::{CopyNotes, Passphrase, Repository};
use rustix::process::{Pid, Signal, kill_process};
use support::postgres::{Cluster, PASSWORD, distribution_version, wait_until};
use support::proxy::Proxy;
use workspace::{PASSPHRASE, Workspace, bare, text};

const LEASE_SECS: i64 = 5;

/// A plan of a dump that waits for the file `go`, with a schedule whose last slot nobody ran.
fn world(cluster: &Cluster) -> Workspace {
    let hour = chrono::Timelike::hour(&(Utc::now() + TimeDelta::hours(12)));
    let workspace = Workspace::ready("");
    let folder = workspace.folder.path().display().to_string();
    let more = format!(
        r#"
[source.dump]
kind = "command"
dump = ["sh", "-c", "i=0; while [ ! -e {folder}/go ] && [ $i -lt 1200 ]; do sleep 0.1; i=$((i+1)); done; echo content"]
[plan.slow]
source = "dump"
repository = "main"
timezone = "UTC"
schedule = "7 {hour} * * *"
[journal]
url = {{ env = "JOURNAL_URL" }}
lease = "{LEASE_SECS}s"
"#
    );
    workspace.write_plan(&more);
    let journal = observer(cluster, &workspace);
    let since = Utc::now() - TimeDelta::days(3);
    journal.schedule_since(&Name::new("slow").unwrap(), Job::Backup, &format!("7 {hour} * * * UTC"), since).unwrap();
    workspace
}

/// Looks into the journal without being a node.
fn observer(cluster: &Cluster, workspace: &Workspace) -> Journal {
    Journal::shared(cluster.tcp_settings(), &workspace.path("observer"), "observer".into(), TimeDelta::seconds(LEASE_SECS)).unwrap()
}

fn newest_of(journal: &Journal, plan: &Name, job: Job) -> Run {
    journal.runs(&Filter { plan: Some(plan.clone()), job: Some(job), limit: 1, ..Filter::default() }).unwrap().remove(0)
}

/// A node of its own machine: with a state folder of its own.
struct Node {
    child: Child,
    name: &'static str,
    log: PathBuf,
}

fn serve(workspace: &Workspace, name: &str, state: &str) -> Command {
    let mut command = bare(&["serve", "--node", name]);
    command.arg("--plans").arg(workspace.path("plans")).arg("--state").arg(workspace.path(state));
    command.env("CRM_PASSPHRASE", PASSPHRASE);
    command
}

fn url(port: u16) -> String {
    format!(
        "host=localhost hostaddr=127.0.0.1 port={port} user=postgres dbname=postgres password='{}'",
        PASSWORD.replace('\\', "\\\\").replace('\'', "\\'")
    )
}

impl Node {
    fn start(workspace: &Workspace, name: &'static str, port: u16) -> Self {
        Self::labelled(workspace, name, "", port)
    }

    fn labelled(workspace: &Workspace, name: &'static str, labels: &str, port: u16) -> Self {
        let log = workspace.path(&format!("{name}.log"));
        let state = format!("state-{name}");
        let child = serve(workspace, name, &state)
            .arg("--listen")
            .arg(format!("unix:{}", workspace.path(&format!("{name}.sock")).display()))
            .env("JOURNAL_URL", url(port))
            .env("LIFEBOAT_LABELS", labels)
            .env("NODE_NAME", name)
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let node = Self { child, name, log };
        wait_until("the node serves", || node.log().contains(" serving"));
        node
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A scrape.
    fn metrics(&self) -> String {
        let folder = self.log.parent().unwrap();
        let token = std::fs::read_to_string(folder.join(format!("state-{}/api.token", self.name))).unwrap();
        let mut stream = UnixStream::connect(folder.join(format!("{}.sock", self.name))).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n", token.trim()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().try_into().unwrap()).unwrap(), signal).unwrap();
    }

    fn stop(mut self) {
        self.signal(Signal::TERM);
        wait_until("the node ends", || self.child.try_wait().unwrap().is_some());
        assert!(self.child.wait().unwrap().success(), "{}", self.log());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.name, self.log());
        }
    }
}

fn the_run(journal: &Journal) -> Option<Run> {
    let runs = journal.runs(&Filter { plan: Some(Name::new("slow").unwrap()), ..Filter::default() }).ok()?;
    assert!(runs.len() <= 1, "one slot, one row: {runs:?}");
    runs.into_iter().next()
}

fn snapshots(workspace: &Workspace, port: u16) -> usize {
    let output = workspace.command(&["snapshots", "slow", "--json"]).env("JOURNAL_URL", url(port)).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    document["snapshots"].as_array().unwrap().len()
}

fn which<'a>(nodes: &'a [Node], run: &Run) -> &'a Node {
    nodes.iter().find(|node| node.name == run.node).unwrap()
}

/// The slot is done by another node than the first, with one snapshot.
fn done_elsewhere(journal: &Journal, first: &Run) {
    wait_until("another node did it", || the_run(journal).is_some_and(|run| run.state == State::Succeeded));
    let run = the_run(journal).unwrap();
    assert_ne!(run.node, first.node, "{run:?}");
    assert!(run.attempt >= 2 && run.fence > first.fence && run.snapshot.is_some(), "{run:?}");
    let earlier = journal.attempts(run.id).unwrap();
    assert!(earlier[0].story.as_ref().unwrap().contains("ended without closing this run"), "{earlier:?}");
}

#[test]
fn a_node_that_is_killed_and_one_that_wakes_up_late_do_not_double_a_slot() {
    for paused in [false, true] {
        let cluster = Cluster::start(distribution_version());
        let workspace = world(&cluster);
        let journal = observer(&cluster, &workspace);
        let nodes = [Node::start(&workspace, "one", cluster.port), Node::start(&workspace, "two", cluster.port)];
        wait_until("the slot runs", || the_run(&journal).is_some_and(|run| run.state == State::Running));
        let first = the_run(&journal).unwrap();
        let victim = which(&nodes, &first);
        victim.signal(if paused { Signal::STOP } else { Signal::KILL });
        // Its dump ends while it cannot look.
        std::fs::write(workspace.path("go"), "").unwrap();
        done_elsewhere(&journal, &first);
        if paused {
            victim.signal(Signal::CONT);
            wait_until("the late one learns of it", || victim.log().contains("was taken over by another process"));
        }
        assert_eq!(snapshots(&workspace, cluster.port), 1);
        assert_eq!(journal.broken().unwrap().len(), 0);
        for node in nodes {
            if paused || node.name != first.node {
                node.stop();
            }
        }
        assert_eq!(the_run(&journal).unwrap().state, State::Succeeded, "and so it stays");
    }
}

#[test]
fn a_node_that_is_cut_off_from_the_journal_cannot_commit() {
    let cluster = Cluster::start(distribution_version());
    let workspace = world(&cluster);
    let journal = observer(&cluster, &workspace);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let proxy = runtime.block_on(Proxy::start(&format!("http://127.0.0.1:{}", cluster.port)));
    let cut_off = Node::start(&workspace, "one", proxy.port());
    wait_until("the slot runs", || the_run(&journal).is_some_and(|run| run.state == State::Running));
    let first = the_run(&journal).unwrap();
    let second = Node::start(&workspace, "two", cluster.port);
    proxy.break_after(Some(0));
    std::fs::write(workspace.path("go"), "").unwrap();
    done_elsewhere(&journal, &first);
    assert_eq!(snapshots(&workspace, cluster.port), 1);
    proxy.break_after(None);
    wait_until("it learns of it", || cut_off.log().contains("was taken over by another process"));
    assert_eq!(snapshots(&workspace, cluster.port), 1);
    cut_off.stop();
    second.stop();
}

#[test]
fn the_journal_goes_away_and_comes_back_while_a_run_goes_on_and_nothing_doubles() {
    let cluster = Cluster::start(distribution_version());
    let workspace = world(&cluster);
    let journal = observer(&cluster, &workspace);
    std::fs::create_dir(workspace.path("told")).unwrap();
    let told = workspace.path("told");
    let notifier = format!("version = 1\n[notify.file]\nkind = \"command\"\nrun = [\"sh\", \"-c\", \"cat > {}/$$\"]\n", told.display());
    std::fs::write(workspace.path("plans/notify.toml"), notifier).unwrap();
    let was_told = |words: &str| workspace::files(&told).iter().any(|file| std::fs::read_to_string(file).unwrap().contains(words));
    let nodes = [Node::start(&workspace, "one", cluster.port), Node::start(&workspace, "two", cluster.port)];
    // A name can be had once.
    let twin = serve(&workspace, "one", "state-twin").env("JOURNAL_URL", url(cluster.port)).output().unwrap();
    assert_eq!(twin.status.code(), Some(11), "{}", text(&twin.stderr));
    wait_until("the slot runs", || the_run(&journal).is_some_and(|run| run.state == State::Running));
    let first = the_run(&journal).unwrap();
    cluster.kill_server();
    let away = Instant::now();
    std::fs::write(workspace.path("go"), "").unwrap();
    wait_until("the commit waits for the journal", || which(&nodes, &first).log().contains("the commit waits for the journal"));
    wait_until("somebody is told, though nothing can be read", || was_told("the journal of runs cannot be used"));
    let trouble = "lifeboat_problems{plan=\"\",kind=\"journal-unavailable\"} 1";
    wait_until("a scrape tells it too", || nodes.iter().all(|node| node.metrics().contains(trouble)));
    // Twelve leases.
    wait_until("a minute is over", || away.elapsed() >= Duration::from_mins(1));
    cluster.start_server();
    wait_until("the end is recorded", || the_run(&journal).is_some_and(|run| run.state == State::Succeeded));
    let run = the_run(&journal).unwrap();
    assert_eq!((run.attempt, run.node.as_str(), run.fence), (1, first.node.as_str(), first.fence), "the same run went on");
    assert_eq!(snapshots(&workspace, cluster.port), 1);
    wait_until("that it is back is told", || was_told("over: the journal of runs cannot be used"));
    wait_until("and scraped", || nodes.iter().all(|node| !node.metrics().contains("journal-unavailable")));
    for node in nodes {
        assert!(!node.log().contains(PASSWORD) && !node.log().contains(PASSPHRASE));
        node.stop();
    }
}

/// Two plans with one source, each on a node of its own, both due.
#[test]
fn two_nodes_do_not_back_one_source_up_at_once() {
    let cluster = Cluster::start(distribution_version());
    let workspace = Workspace::ready("");
    let folder = workspace.folder.path().display().to_string();
    let hour = chrono::Timelike::hour(&(Utc::now() + TimeDelta::hours(12)));
    let plan = |name: &str, node: &str| {
        format!(
            "[plan.{name}]\nsource = \"dump\"\nrepository = \"main\"\ntimezone = \"UTC\"\nschedule = \"7 {hour} * * *\"\nrun_on = [\"{node}\"]\n"
        )
    };
    let more = format!(
        r#"
[source.dump]
kind = "command"
dump = ["sh", "-c", "mkdir {folder}/busy || touch {folder}/both; while [ ! -e {folder}/go ]; do sleep 0.1; done; rmdir {folder}/busy; echo x"]
{}{}[journal]
url = {{ env = "JOURNAL_URL" }}
lease = "{LEASE_SECS}s"
"#,
        plan("first", "one"),
        plan("second", "two")
    );
    workspace.write_plan(&more);
    let journal = observer(&cluster, &workspace);
    for name in ["first", "second"] {
        let since = Utc::now() - TimeDelta::days(3);
        journal.schedule_since(&Name::new(name).unwrap(), Job::Backup, &format!("7 {hour} * * * UTC"), since).unwrap();
    }
    let nodes = [Node::start(&workspace, "one", cluster.port), Node::start(&workspace, "two", cluster.port)];
    wait_until("one waits for the other", || nodes.iter().any(|node| node.log().contains("another node backs source dump up")));
    std::fs::write(workspace.path("go"), "").unwrap();
    let succeeded = || journal.runs(&Filter { state: Some(State::Succeeded), ..Filter::default() }).unwrap();
    wait_until("both are done", || succeeded().len() == 2);
    assert!(!workspace.path("both").exists(), "{:?}", succeeded());
    assert!(succeeded().iter().all(|run| run.attempt == 1), "waiting is no failed attempt: {:?}", succeeded());
    for node in nodes {
        node.stop();
    }
}

/// A backup of a plan that only one node may run fails. Who tells of it is one node, and when that is gone the other.
#[test]
fn labels_say_where_a_plan_runs_and_of_what_both_nodes_see_one_tells() {
    let cluster = Cluster::start(distribution_version());
    let workspace = Workspace::ready("");
    let folder = workspace.folder.path().display().to_string();
    let hour = chrono::Timelike::hour(&(Utc::now() + TimeDelta::hours(12)));
    std::fs::create_dir(workspace.path("told")).unwrap();
    let more = format!(
        r#"notify = []
[source.dump]
kind = "command"
dump = ["false"]
[plan.bad]
source = "dump"
repository = "main"
timezone = "UTC"
schedule = "7 {hour} * * *"
retry = {{ attempts = 1, delay = "1m" }}
run_on = ["db-host"]
[notify.file]
kind = "command"
run = ["sh", "-c", "cat > {folder}/told/$NODE.$$"]
environment = {{ NODE = {{ env = "NODE_NAME" }} }}
[journal]
url = {{ env = "JOURNAL_URL" }}
lease = "{LEASE_SECS}s"
"#
    );
    workspace.write_plan(&more);
    let journal = observer(&cluster, &workspace);
    let bad = Name::new("bad").unwrap();
    journal.schedule_since(&bad, Job::Backup, &format!("7 {hour} * * * UTC"), Utc::now() - TimeDelta::days(3)).unwrap();
    let of_bad = || journal.runs(&Filter { plan: Some(bad.clone()), ..Filter::default() }).unwrap();

    let other = Node::labelled(&workspace, "two", "ssd", cluster.port);
    wait_until("it is known to the journal", || journal.nodes(Utc::now()).is_ok_and(|nodes| nodes.len() == 1));
    let labelled = Node::labelled(&workspace, "one", "ssd,db-host", cluster.port);
    wait_until("it has failed", || of_bad().iter().any(|run| run.state == State::Failed));
    assert_eq!(of_bad().iter().map(|run| (run.node.as_str(), run.attempt)).collect::<Vec<_>>(), [("one", 1)]);

    let told = || -> Vec<String> {
        let files = workspace::files(&workspace.path("told")).into_iter();
        let of_backup = files.filter(|file| std::fs::read_to_string(file).unwrap().contains("\"bad\""));
        of_backup.map(|file| file.file_name().unwrap().to_str().unwrap().split('.').next().unwrap().to_owned()).collect()
    };
    wait_until("somebody is told", || !told().is_empty());
    let teller = told().remove(0);
    let (teller, heir) = if teller == "one" { (labelled, other) } else { (other, labelled) };
    // A message is gathered for some seconds; by now the other node would have noted what it has to tell.
    let outbox =
        lifeboat::daemon::notify::outbox::Outbox::open_existing(&workspace.path(&format!("state-{}", heir.name))).unwrap().unwrap();
    assert!(outbox.standing().unwrap().is_empty(), "{:?}", outbox.standing());
    assert!(told().iter().all(|node| node == teller.name), "{:?}", told());
    teller.signal(Signal::KILL);
    wait_until("the other one tells", || told().iter().any(|node| node == heir.name));
    heir.stop();
    drop(teller);
}

/// A run of a machine that is gone, right before its commit, in a store that takes connections and never answers.
#[test]
fn a_node_that_settles_a_run_whose_store_hangs_is_a_node_all_the_while() {
    let cluster = Cluster::start(distribution_version());
    let store = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let workspace = Workspace::ready("");
    let more = format!(
        r#"
[repository.hanging]
url = "s3://nowhere/r"
endpoint = "http://{}"
region = "us-east-1"
allow_http = true
access_key = {{ env = "CRM_PASSPHRASE" }}
secret_key = {{ env = "CRM_PASSPHRASE" }}
passphrase = {{ env = "CRM_PASSPHRASE" }}
[plan.hanging]
source = "attachments"
repository = "hanging"
[journal]
url = {{ env = "JOURNAL_URL" }}
lease = "{LEASE_SECS}s"
"#,
        store.local_addr().unwrap()
    );
    workspace.write_plan(&more);
    let journal = observer(&cluster, &workspace);
    let claim = journal.begin(&NewRun::manual(&Name::new("hanging").unwrap(), Job::Backup, "tester", Utc::now()), Utc::now()).unwrap();
    assert!(journal.announce(claim, "01arz3ndektsv4rrffq69g5fav", Utc::now()).unwrap());
    let node = Node::start(&workspace, "one", cluster.port);
    wait_until("it takes the run over", || journal.run(claim.id).unwrap().fence > claim.fence);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(LEASE_SECS.unsigned_abs() * 3) {
        assert!(journal.nodes(Utc::now()).unwrap().iter().any(|node| node.name == "one"), "after {:?}", began.elapsed());
        std::thread::park_timeout(Duration::from_millis(200));
    }
    assert_eq!(journal.run(claim.id).unwrap().state, State::Running, "it is still being settled");
    node.stop();
}

/// Only the state folder of one node knows which repository was there before; another node tells of the plans.
#[test]
fn an_exchanged_repository_is_told_by_the_node_that_knows_of_it() {
    let cluster = Cluster::start(distribution_version());
    let workspace = Workspace::ready("");
    let folder = workspace.folder.path().display().to_string();
    std::fs::create_dir(workspace.path("told")).unwrap();
    let more = format!(
        r#"
[notify.file]
kind = "command"
run = ["sh", "-c", "cat > {folder}/told/$NODE.$$"]
environment = {{ NODE = {{ env = "NODE_NAME" }} }}
[journal]
url = {{ env = "JOURNAL_URL" }}
lease = "10m"
"#
    );
    workspace.write_plan(&more);
    let run = |state: &str, words: &[&str]| {
        let mut command = bare(words);
        command.arg("--plans").arg(workspace.path("plans")).arg("--state").arg(workspace.path(state));
        let output = command.env("CRM_PASSPHRASE", PASSPHRASE).env("JOURNAL_URL", url(cluster.port)).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
    };
    run("state-one", &["snapshots", "crm"]);
    std::fs::rename(workspace.path("repository"), workspace.path("aside")).unwrap();
    run("elsewhere", &["repo", "init", "main"]);
    // For longer than this takes nobody else tells of the plans.
    let teller = Node::labelled(&workspace, "two", "", cluster.port);
    wait_until("it tells", || cluster.value("SELECT count(*) FROM lifeboat.leases WHERE name = 'tell'") == "1");
    let knowing = Node::labelled(&workspace, "one", "", cluster.port);
    let told_by = |node: &str| {
        let of_node = |file: &PathBuf| file.file_name().unwrap().to_str().unwrap().starts_with(&format!("{node}."));
        let files = workspace::files(&workspace.path("told")).into_iter().filter(of_node);
        files.filter(|file| std::fs::read_to_string(file).unwrap().contains("another repository is at")).count()
    };
    wait_until("somebody is told", || told_by("one") == 1);
    assert_eq!(told_by("two"), 0);
    knowing.stop();
    teller.stop();
}

/// A repository in a folder, to be opened again and again.
fn repository(folder: &Path, runtime: &tokio::runtime::Runtime) -> (Repository, Surroundings) {
    let surroundings = Surroundings {
        state: folder.join("state"),
        runtime: runtime.handle().clone(),
        clock: Arc::new(SystemClock),
        progress: Arc::new(Silent),
        cancel: Cancel::default(),
        gate: CommitGate::default(),
    };
    let settings =
        RepositorySettings::at(&format!("file://{}/repository", folder.display()), Passphrase::new(PASSPHRASE.to_owned())).unwrap();
    let opened = settings.open(&surroundings).or_else(|error| {
        assert_eq!(error.kind(), Kind::NoRepository);
        lifeboat::ops::init::run(&settings, &surroundings)?;
        settings.open(&surroundings)
    });
    (opened.unwrap(), surroundings)
}

/// The narrowest window there is: a writer is paused *between* its last look at the journal and the creation of its manifest.
#[test]
fn a_writer_paused_between_its_last_look_and_its_commit_is_fenced() {
    let cluster = Cluster::start(distribution_version());
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (repository, _) = repository(folder.path(), &runtime);
    let node =
        |name: &str| Journal::shared(cluster.tcp_settings(), &folder.path().join(name), name.to_owned(), TimeDelta::seconds(1)).unwrap();
    let (slow, quick) = (node("slow"), node("quick"));
    let plan = Name::new("crm").unwrap();
    let slot = DateTime::from_timestamp(1_790_000_000, 0).unwrap();
    let run = |trigger| NewRun::of_slot(&plan, Job::Backup, trigger, slot, RunId::generate(Utc::now()));
    let write = |gate: &dyn Fn(lifeboat::id::SnapshotId) -> lifeboat::error::Result<()>| {
        let writer = repository.begin(&plan, Utc::now(), &Cancel::default()).unwrap();
        writer.commit_if(Vec::new(), Utc::now(), Vec::new(), &Silent, gate)
    };
    let claim = slow.begin(&run(Trigger::Schedule), Utc::now()).unwrap();
    let paused = write(&|id| {
        assert!(slow.announce(claim, &id.to_string(), Utc::now())?, "its claim holds");
        // Here it sleeps past its lease, and another one does all that it can.
        wait_until("the lease to run out", || quick.broken().unwrap().len() == 1);
        let settled = runner::settle(&quick, |_| true, |_, _| Ok(Some(repository_again(folder.path(), &runtime))), Utc::now())?;
        assert_eq!(settled[0].1.state, State::Interrupted);
        assert!(settled[0].1.story.as_ref().unwrap().contains("now never will"), "{settled:?}");
        let again = quick.begin(&run(Trigger::Retry), Utc::now())?;
        let committed = write(&|id| {
            assert!(quick.announce(again, &id.to_string(), Utc::now())?);
            Ok(())
        })?;
        let ending = Ending { snapshot: Some(committed.manifest.id.to_string()), ..Ending::new(State::Succeeded) };
        quick.close(again, &ending, Utc::now())?;
        // It wakes up and goes on as if nothing had happened.
        Ok(())
    });
    let error = paused.map(|committed| committed.manifest.id).unwrap_err();
    assert!(error.kind() == Kind::Busy && error.to_string().contains("fenced"), "{error:?}");
    let manifests = repository.manifests(Some(&plan)).unwrap();
    let row = quick.run(claim.id).unwrap();
    assert_eq!(manifests.iter().map(|manifest| manifest.id.to_string()).collect::<Vec<_>>(), [row.snapshot.unwrap()]);

    // The other way round: it committed and could not tell. Whoever takes over finds it, and runs nothing again.
    let next = NewRun::of_slot(&plan, Job::Backup, Trigger::Schedule, slot + TimeDelta::hours(1), RunId::generate(Utc::now()));
    let claim = slow.begin(&next, Utc::now()).unwrap();
    let committed = write(&|id| slow.announce(claim, &id.to_string(), Utc::now()).map(drop)).unwrap().manifest.id.to_string();
    wait_until("the lease to run out", || quick.broken().unwrap().len() == 1);
    let settled = runner::settle(&quick, |_| true, |_, _| Ok(Some(repository_again(folder.path(), &runtime))), Utc::now()).unwrap();
    assert_eq!((settled[0].1.state, settled[0].1.snapshot.as_ref()), (State::Succeeded, Some(&committed)));
    assert_eq!(slow.close(claim, &Ending::new(State::Failed), Utc::now()).unwrap_err().kind(), Kind::Bug);
    assert_eq!(quick.run(claim.id).unwrap().state, State::Succeeded);

    // A repository that cannot be asked: the run stays as it is, and no other one of the slot starts.
    let next = NewRun::of_slot(&plan, Job::Backup, Trigger::Schedule, slot + TimeDelta::hours(2), RunId::generate(Utc::now()));
    let claim = slow.begin(&next, Utc::now()).unwrap();
    assert!(slow.announce(claim, "01arz3ndektsv4rrffq69g5fav", Utc::now()).unwrap());
    wait_until("the lease to run out", || quick.broken().unwrap().len() == 1);
    let away = |_: &Run, _: Option<&str>| Err(lifeboat::error::Error::new(Kind::Unavailable, "away"));
    assert!(runner::settle(&quick, |_| true, away, Utc::now()).unwrap().is_empty());
    assert_eq!(quick.run(claim.id).unwrap().state, State::Running);
    assert_eq!(quick.begin(&NewRun { trigger: Trigger::Retry, ..next }, Utc::now()).unwrap_err().kind(), Kind::Unavailable);
}

/// A copy notes the repository that it goes to, and is fenced there: its own repository has nothing to do with it.
#[test]
fn a_copy_that_was_taken_over_does_not_commit_and_the_next_one_does() {
    let cluster = Cluster::start(distribution_version());
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (own, surroundings) = repository(folder.path(), &runtime);
    let (second, _) = repository(&folder.path().join("second"), &runtime);
    let plan = Name::new("crm").unwrap();
    let original = own.begin(&plan, Utc::now(), &Cancel::default()).unwrap().commit(Vec::new(), Utc::now(), Vec::new(), &Silent).unwrap();
    let node =
        |name: &str| Journal::shared(cluster.tcp_settings(), &folder.path().join(name), name.to_owned(), TimeDelta::seconds(1)).unwrap();
    let (slow, quick) = (node("slow"), node("quick"));
    let request = CopyRequest {
        name: Name::new("second").unwrap(),
        to: second.clone(),
        last: None,
        tags: Vec::new(),
        snapshot: None,
        all: false,
        rules: Rules::default(),
    };
    let slot = DateTime::from_timestamp(1_790_000_000, 0).unwrap();
    let run = |trigger| NewRun::of_slot(&plan, Job::Copy, trigger, slot, RunId::generate(Utc::now()));
    let copy = |surroundings: &Surroundings| {
        let settings =
            RepositorySettings::at(&format!("file://{}/repository", folder.path().display()), Passphrase::new(PASSPHRASE.to_owned()))?;
        lifeboat::ops::copy::run(&resolve::Resolved::bare(plan.clone(), settings).open(surroundings)?, &request)
    };
    let copies = || second.manifests(Some(&plan)).unwrap();

    // Paused between its note and its commit.
    let claim = slow.begin(&run(Trigger::Schedule), Utc::now()).unwrap();
    let fenced = second.copy_from(&own, &original.manifest, None, CopyNotes::default(), Utc::now(), &Silent, &Cancel::default(), |id| {
        assert!(slow.announce(claim, &format!("second/{id}"), Utc::now())?);
        wait_until("the lease to run out", || quick.broken().unwrap().len() == 1);
        let open = |_: &Run, copy: Option<&str>| {
            assert_eq!(copy, Some("second"));
            Ok(Some(repository_again(&folder.path().join("second"), &runtime)))
        };
        let settled = runner::settle(&quick, |_| true, open, Utc::now())?;
        assert_eq!(settled[0].1.state, State::Interrupted, "{settled:?}");
        Ok(())
    });
    assert_eq!(fenced.map(|_| ()).unwrap_err().kind(), Kind::Busy);
    assert!(copies().is_empty());
    // Taken over before its note: the gate of the run itself says no.
    let lost = runner::journalled(&slow, &run(Trigger::Retry), &surroundings, |surroundings| {
        let row = newest_of(&slow, &plan, Job::Copy);
        // It lives and says so all the time: until the other one is quicker.
        wait_until("somebody takes it over", || {
            cluster.sql("UPDATE lifeboat.runs SET lease_until_ms = 0");
            quick.take_over(&row, Utc::now()).unwrap().is_some()
        });
        copy(surroundings)
    });
    assert_eq!(lost.map(|_| ()).unwrap_err().kind(), Kind::Busy);
    assert!(copies().is_empty());
    let row = newest_of(&quick, &plan, Job::Copy);
    assert_eq!((row.state, row.announced), (State::Running, None), "it is the other one's");

    let next = NewRun::of_slot(&plan, Job::Copy, Trigger::Schedule, slot + TimeDelta::hours(1), RunId::generate(Utc::now()));
    wait_until("the lease to run out", || {
        runner::settle(&slow, |_| true, |_, _| panic!("nothing was announced"), Utc::now()).unwrap();
        newest_of(&slow, &plan, Job::Copy).state == State::Interrupted
    });
    let (id, report) = runner::journalled(&slow, &next, &surroundings, copy).unwrap();
    assert_eq!(report.snapshots.len(), 1);
    let announced = slow.run(id).unwrap().announced;
    assert_eq!(announced, Some(format!("second/{}", copies()[0].id)));
}

/// A machine that prunes is paused right before it removes snapshots, and its run is taken over. When it wakes up, what it decided upon is long past.
#[test]
fn a_prune_that_was_taken_over_removes_nothing_when_it_wakes_up() {
    let cluster = Cluster::start(distribution_version());
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (repository, surroundings) = repository(folder.path(), &runtime);
    let plan = Name::new("crm").unwrap();
    for _ in 0..3 {
        let writer = repository.begin(&plan, Utc::now(), &Cancel::default()).unwrap();
        writer.commit(Vec::new(), Utc::now(), Vec::new(), &Silent).unwrap();
    }
    let node =
        |name: &str| Journal::shared(cluster.tcp_settings(), &folder.path().join(name), name.to_owned(), TimeDelta::seconds(1)).unwrap();
    let (slow, quick) = (node("slow"), node("quick"));
    let slot = DateTime::from_timestamp(1_790_000_000, 0).unwrap();
    let run = |trigger| NewRun::of_slot(&plan, Job::Prune, trigger, slot, RunId::generate(Utc::now()));
    let rules =
        [PlanRules { plan: plan.clone(), rules: Rules { last: 1, ..Rules::default() }, zone: chrono_tz::Tz::UTC, logs: Vec::new() }];
    let prune = |surroundings: &Surroundings, pause: &dyn Fn()| {
        let may = || {
            surroundings.gate.ask(None, Commit::Retention)?;
            pause();
            Ok(())
        };
        prune::run(&repository, &rules, false, &SystemClock, &Silent, &Cancel::default(), &may)
    };
    let pauses = AtomicU64::new(0);
    let lost = runner::journalled(&slow, &run(Trigger::Schedule), &surroundings, |surroundings| {
        prune(surroundings, &|| {
            pauses.fetch_add(1, Ordering::SeqCst);
            let mut settled = Vec::new();
            // It lives and says so all the time: until the other one is quicker.
            wait_until("somebody settles it", || {
                cluster.sql("UPDATE lifeboat.runs SET lease_until_ms = 0");
                settled = runner::settle(&quick, |_| true, |_, _| Ok(Some(repository_again(folder.path(), &runtime))), Utc::now()).unwrap();
                !settled.is_empty()
            });
            assert_eq!(settled[0].1.state, State::Interrupted, "{settled:?}");
        })
    });
    assert_eq!(lost.map(|_| ()).unwrap_err().kind(), Kind::Busy);
    assert_eq!(pauses.load(Ordering::SeqCst), 1, "its number was taken, and then it was not its run any more");
    assert_eq!(repository.manifests(Some(&plan)).unwrap().len(), 3);
    let (id, done) = runner::journalled(&quick, &run(Trigger::Retry), &surroundings, |surroundings| prune(surroundings, &|| ())).unwrap();
    assert_eq!((done.snapshots_removed, repository.manifests(Some(&plan)).unwrap().len()), (2, 1));
    let row = quick.run(id).unwrap();
    assert_eq!((row.state, row.announced.as_deref()), (State::Succeeded, Some("retention")));
}

fn repository_again(folder: &Path, runtime: &tokio::runtime::Runtime) -> Repository {
    repository(folder, runtime).0
}

const CHILD: &str = "LIFEBOAT_TEST_RUN_CHILD";

/// Kills its process at the n-th thing that a run tells.
struct Killer {
    at: u64,
    seen: AtomicU64,
}

impl Progress for Killer {
    fn event(&self, event: Event) {
        if matches!(event, Event::Phase { .. }) && self.seen.fetch_add(1, Ordering::SeqCst) + 1 == self.at {
            kill_process(rustix::process::getpid(), Signal::KILL).unwrap();
        }
    }
}

fn slot_of_child() -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000, 0).unwrap()
}

/// One run of a slot in the folder of the next test, killed at a phase or at a write of the journal.
#[test]
fn child_that_is_killed_in_a_run() {
    let Ok(words) = std::env::var(CHILD) else { return };
    let words: Vec<&str> = words.split(' ').collect();
    let (folder, kind, at) = (Path::new(words[0]), words[1], words[2].parse::<u64>().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (_, surroundings) = repository(folder, &runtime);
    let faults = Faults::default();
    let journal = Journal::with_faults(&surroundings.state, faults.clone(), Utc::now()).unwrap();
    let killer = Arc::new(Killer { at: if kind == "phase" { at } else { u64::MAX }, seen: AtomicU64::new(0) });
    match kind {
        "before" => faults.at(at, Effect::Kill),
        "after" => faults.at(at, Effect::KillAfter),
        _ => {}
    }
    let surroundings = Surroundings { progress: killer.clone(), ..surroundings };
    let plans = Plans::load(&[folder.join("plans")]).unwrap();
    let run = NewRun::of_slot(&Name::new("crm").unwrap(), Job::Backup, Trigger::Schedule, slot_of_child(), RunId::generate(Utc::now()));
    runner::run_job(&journal, &plans, plans.plan("crm").unwrap(), &run, &surroundings).unwrap();
    std::fs::write(folder.join("counts"), format!("{} {}", killer.seen.load(Ordering::SeqCst), faults.writes())).unwrap();
}

fn small_world() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::fs::write(folder.path().join("data/a"), vec![7; 100_000]).unwrap();
    std::fs::create_dir(folder.path().join("plans")).unwrap();
    let plan = format!(
        "version = 1\n[repository.main]\nurl = \"file://{path}/repository\"\npassphrase = {{ env = \"CHILD_PASSPHRASE\" }}\n\
         [source.files]\nkind = \"files\"\npath = \"{path}/data\"\n[plan.crm]\nsource = \"files\"\nrepository = \"main\"\n"
    );
    std::fs::write(folder.path().join("plans/crm.toml"), plan).unwrap();
    folder
}

fn child(folder: &Path, kind: &str, at: u64) -> Option<i32> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child_that_is_killed_in_a_run", "--nocapture"]).env(CHILD, format!("{} {kind} {at}", folder.display()));
    command.env("CHILD_PASSPHRASE", PASSPHRASE).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().unwrap().code()
}

#[test]
fn killed_at_every_phase_and_every_write_of_the_journal_a_slot_is_committed_once() {
    let folder = small_world();
    assert_eq!(child(folder.path(), "none", 0), Some(0));
    let counts = std::fs::read_to_string(folder.path().join("counts")).unwrap();
    let mut counts = counts.split(' ').map(|count| count.parse::<u64>().unwrap());
    let (phases, writes) = (counts.next().unwrap(), counts.next().unwrap());
    assert!(phases >= 3 && writes >= 4, "{phases} phases, {writes} writes");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let moments = (1..=phases).map(|n| ("phase", n)).chain((1..=writes).flat_map(|n| [("before", n), ("after", n)]));
    for (kind, at) in moments {
        let folder = small_world();
        assert_eq!(child(folder.path(), kind, at), None, "{kind} {at}: killed by a signal");
        let (repository, surroundings) = repository(folder.path(), &runtime);
        let journal = Journal::open(&surroundings.state, Utc::now()).unwrap();
        runner::settle(&journal, |_| true, |_, _| Ok(Some(repository_again(folder.path(), &runtime))), Utc::now()).unwrap();
        assert!(journal.broken().unwrap().is_empty(), "{kind} {at}");
        let run = NewRun::of_slot(&Name::new("crm").unwrap(), Job::Backup, Trigger::Retry, slot_of_child(), RunId::generate(Utc::now()));
        let plain = Surroundings { progress: Arc::new(Silent), ..surroundings };
        let source = lifeboat::source::files::FilesSource { path: folder.path().join("data"), exclude: Vec::new(), page_size: None };
        let again = runner::journalled(&journal, &run, &plain, |surroundings| {
            let settings =
                RepositorySettings::at(&format!("file://{}/repository", folder.path().display()), Passphrase::new(PASSPHRASE.to_owned()))?;
            let mut job = resolve::Resolved::bare(run.plan.clone(), settings);
            job.sources = vec![lifeboat::ops::NamedSource { name: Name::new("files")?, source: Arc::new(source), restores_folder: false }];
            lifeboat::ops::backup::run(&job.open(surroundings)?)
        });
        let row = newest_of(&journal, &run.plan, Job::Backup);
        let manifests = repository.manifests(None).unwrap();
        if let Err(error) = again {
            assert_eq!(error.kind(), Kind::Busy, "{kind} {at}: {error:?}");
        }
        assert_eq!(row.state, State::Succeeded, "{kind} {at}: {row:?}");
        let committed: Vec<String> = manifests.iter().map(|manifest| manifest.id.to_string()).collect();
        assert_eq!(committed, [row.snapshot.unwrap()], "{kind} {at}: the journal and the repository agree");
    }
}
