//! The journal that machines share, on a real PostgreSQL: claims, leases, fences, a server that goes away, and the embedded one killed at each of
//! its writes. Whole nodes are in `main`.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::support::postgres::{Cluster, distribution_version, wait_until};
use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::daemon::journal::faults::{Effect, Faults};
use lifeboat::daemon::journal::{Ending, Filter, Job, Journal, NewRun, State, Trigger};
use lifeboat::daemon::{alarms, gone};
use lifeboat::error::{Error, Kind};
use lifeboat::id::{Name, RunId};
use lifeboat::plan::Plans;

const LEASE: TimeDelta = TimeDelta::seconds(2);

fn node(cluster: &Cluster, folder: &Path, name: &str) -> Journal {
    Journal::shared(cluster.tcp_settings(), &folder.join(name), name.to_owned(), LEASE).unwrap()
}

fn plan() -> Name {
    Name::new("crm").unwrap()
}

fn slot(n: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000 + n * 60, 0).unwrap()
}

fn run_of(n: i64, trigger: Trigger) -> NewRun {
    NewRun::of_slot(&plan(), Job::Backup, trigger, slot(n), RunId::generate(Utc::now()))
}

fn broken(journal: &Journal) -> usize {
    journal.broken().unwrap().len()
}

/// A folder per node, so that no lock file tells one of another: as on machines of their own.
fn machines() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn of_many_nodes_that_claim_one_slot_one_gets_it() {
    let cluster = Cluster::start(distribution_version());
    let folder = machines();
    let nodes: Vec<Journal> = (0..4).map(|n| node(&cluster, folder.path(), &format!("n{n}"))).collect();
    for round in 0..25 {
        let won = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for journal in &nodes {
                scope.spawn(|| match journal.begin(&run_of(round, Trigger::Schedule), Utc::now()) {
                    Ok(claim) => {
                        won.fetch_add(1, Ordering::SeqCst);
                        assert!(journal.announce(claim, "01arz3ndektsv4rrffq69g5fav", Utc::now()).unwrap());
                        journal.close(claim, &Ending::new(State::Succeeded), Utc::now()).unwrap();
                    }
                    Err(error) => assert_eq!(error.kind(), Kind::Busy, "{error:?}"),
                });
            }
        });
        assert_eq!(won.load(Ordering::SeqCst), 1, "round {round}");
    }
    let runs = nodes[0].runs(&Filter::default()).unwrap();
    assert_eq!(runs.len(), 25);
    assert!(runs.iter().all(|run| run.state == State::Succeeded && run.attempt == 1 && run.by.as_deref() == Some("daemon")));
    // A named lease is on one of them.
    let holds = |journal: &Journal| journal.hold("alarms", LEASE, Utc::now()).unwrap();
    assert_eq!(nodes.iter().map(holds).collect::<Vec<_>>(), [true, false, false, false]);
    assert!(holds(&nodes[0]), "it is prolonged by who has it");
    wait_until("the lease to run out", || holds(&nodes[3]));
    assert!(!holds(&nodes[0]));
    nodes[3].let_go("alarms", Utc::now()).unwrap();
    assert!(holds(&nodes[1]));
    // Names of nodes are unique; labels are told.
    let labels = ["db-host".to_owned()];
    assert_eq!(nodes[0].check_in(&labels, Utc::now()).unwrap().len(), 1);
    let seen = nodes[1].check_in(&[], Utc::now()).unwrap();
    assert_eq!(seen.iter().map(|node| (node.name.as_str(), node.labels.len())).collect::<Vec<_>>(), [("n0", 1), ("n1", 0)]);
    let twin = Journal::shared(cluster.tcp_settings(), &folder.path().join("twin"), "n0".into(), LEASE).unwrap();
    assert_eq!(twin.check_in(&[], Utc::now()).unwrap_err().kind(), Kind::Busy);
    nodes[0].check_out(Utc::now()).unwrap();
    twin.check_in(&[], Utc::now()).unwrap();
}

#[test]
fn a_plan_of_a_node_that_is_started_anew_is_not_told_as_gone_by_another_one_that_does_not_have_it() {
    let cluster = Cluster::start(distribution_version());
    let folder = machines();
    let (own, other) = (node(&cluster, folder.path(), "own"), node(&cluster, folder.path(), "other"));
    let now = Utc::now();
    own.check_in(&[], now).unwrap();
    own.schedule_since(&plan(), Job::Backup, "0 2 * * * UTC", now).unwrap();
    let claim = own.begin(&run_of(1, Trigger::Schedule), now).unwrap();
    own.close(claim, &Ending::new(State::Succeeded), now).unwrap();
    let text = "version = 1\n[repository.main]\nurl = \"file:///nowhere/r\"\npassphrase = { env = \"NONE\" }\n[source.a]\nkind = \"files\"\npath = \"/nowhere\"\n\
                [plan.another]\nsource = \"a\"\nrepository = \"main\"\n";
    let plans = Plans::from_text(text).unwrap();
    let told = || {
        gone::look(&plans, &other, other.state_folder(), Utc::now()).unwrap();
        alarms::standing(other.state_folder()).unwrap().len()
    };
    assert_eq!(told(), 0);
    own.check_out(Utc::now()).unwrap();
    assert!(other.nodes(Utc::now()).unwrap().is_empty(), "it has ended");
    assert_eq!(told(), 0, "and may be back in a moment");
    own.check_in(&[], Utc::now()).unwrap();
    assert_eq!((told(), other.nodes(Utc::now()).unwrap().len()), (0, 1));
    own.check_out(Utc::now()).unwrap();
    wait_until("it has gone for good", || told() == 1);
    own.check_in(&[], Utc::now()).unwrap();
    assert_eq!(told(), 0);
}

#[test]
fn a_node_that_is_not_heard_of_loses_its_run_and_can_do_nothing_with_it_later() {
    let cluster = Cluster::start(distribution_version());
    let folder = machines();
    let (slow, quick) = (node(&cluster, folder.path(), "slow"), node(&cluster, folder.path(), "quick"));
    let first = slow.begin(&run_of(1, Trigger::Schedule), Utc::now()).unwrap();
    assert!(slow.announce(first, "01arz3ndektsv4rrffq69g5fav", Utc::now()).unwrap());
    assert_eq!(broken(&quick), 0, "its lease holds");
    let refused = quick.begin(&run_of(2, Trigger::Schedule), Utc::now()).unwrap_err();
    assert!(refused.kind() == Kind::Busy && refused.to_string().contains(&first.id.to_string()), "{refused:?}");
    wait_until("the lease to run out", || broken(&quick) == 1);
    // Somebody who looked before, but is late, takes nothing from a node that came back.
    let seen = quick.broken().unwrap().remove(0);
    assert!(slow.heartbeat(first, Utc::now()).unwrap());
    assert_eq!(quick.take_over(&seen, Utc::now()).unwrap(), None);
    wait_until("the lease to run out again", || broken(&quick) == 1);
    let seen = quick.broken().unwrap().remove(0);
    assert_eq!(seen.announced.as_deref(), Some("01arz3ndektsv4rrffq69g5fav"), "it knows where to look");
    let unsettled = quick.begin(&run_of(2, Trigger::Schedule), Utc::now()).unwrap_err();
    assert_eq!(unsettled.kind(), Kind::Unavailable, "{unsettled:?}");
    let taken = quick.take_over(&seen, Utc::now()).unwrap().unwrap();
    assert!(taken.fence > first.fence);
    assert_eq!(quick.take_over(&seen, Utc::now()).unwrap(), None, "once");
    // The slow one wakes up: every way to go on is closed.
    assert!(!slow.heartbeat(first, Utc::now()).unwrap());
    assert!(!slow.announce(first, "01arz3ndektsv4rrffq69g5faw", Utc::now()).unwrap());
    assert_eq!(slow.close(first, &Ending::new(State::Succeeded), Utc::now()).unwrap_err().kind(), Kind::Bug);
    assert_eq!(quick.run(first.id).unwrap().announced, seen.announced, "nothing was changed by that");
    quick.close(taken, &Ending::new(State::Interrupted), Utc::now()).unwrap();
    let second = quick.begin(&NewRun { id: first.id, ..run_of(1, Trigger::Retry) }, Utc::now()).unwrap();
    assert_eq!((second.id, second.attempt), (first.id, 2));
    assert!(second.fence > taken.fence);
    assert_eq!(quick.run(first.id).unwrap().announced, None, "a further attempt has announced nothing yet");
    quick.close(second, &Ending::new(State::Succeeded), Utc::now()).unwrap();
    assert_eq!(quick.attempts(first.id).unwrap().len(), 1);
    // A clock of a node plays no part: claims an hour ahead and behind are worth the same.
    let hour = TimeDelta::hours(1);
    let ahead = slow.begin(&run_of(3, Trigger::Schedule), Utc::now() + hour).unwrap();
    wait_until("its lease to run out all the same", || broken(&quick) == 1);
    assert!(!slow.close(ahead, &Ending::new(State::Succeeded), Utc::now() - hour).is_err_and(|error| error.kind() != Kind::Bug));
}

#[test]
fn a_database_that_is_away_holds_up_claims_and_loses_no_end() {
    let cluster = Cluster::start(distribution_version());
    let folder = machines();
    let (one, two) = (node(&cluster, folder.path(), "one"), node(&cluster, folder.path(), "two"));
    let claim = one.begin(&run_of(1, Trigger::Schedule), Utc::now()).unwrap();
    cluster.kill_server();
    assert_eq!(one.heartbeat(claim, Utc::now()).unwrap_err().kind(), Kind::Unavailable);
    let ending = Ending { snapshot: Some("s".into()), ..Ending::new(State::Succeeded) };
    assert_eq!(one.close(claim, &ending, Utc::now()).unwrap_err().kind(), Kind::Unavailable);
    let refused = two.begin(&run_of(2, Trigger::Schedule), Utc::now()).unwrap_err();
    assert_eq!(refused.kind(), Kind::Unavailable, "{refused:?}");
    assert!(!format!("{refused:?}").contains(crate::support::postgres::PASSWORD));
    // Longer than the lease.
    let down = Instant::now();
    wait_until("a lease to pass", || down.elapsed() > LEASE.to_std().unwrap());
    cluster.start_server();
    wait_until("the end to be recorded", || one.finish_unfinished().is_ok_and(|finished| finished == 1));
    let run = two.run(claim.id);
    let run = run.or_else(|_| two.run(claim.id)).unwrap();
    assert_eq!((run.state, run.snapshot.as_deref(), run.attempt), (State::Succeeded, Some("s"), 1));
    assert_eq!(broken(&two), 0);
    // A connection that was cut while nothing was asked is made again without a word.
    let claim = two.begin(&run_of(2, Trigger::Schedule), Utc::now()).unwrap();
    cluster.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lifeboat' AND pid <> pg_backend_pid()");
    assert!(two.heartbeat(claim, Utc::now()).unwrap());
    // Nobody is held to have been silent while the server was down.
    cluster.stop_server();
    let down = Instant::now();
    wait_until("a lease to pass", || down.elapsed() > LEASE.to_std().unwrap());
    cluster.start_server();
    wait_until("the connection", || one.broken().is_ok());
    assert_eq!(broken(&one), 0, "it gets a moment to say that it lives");
    wait_until("the heartbeat", || two.heartbeat(claim, Utc::now()).is_ok_and(|own| own));
    two.close(claim, &Ending::of_error(&Error::new(Kind::Unavailable, "x")), Utc::now()).unwrap();
}

const CHILD: &str = "LIFEBOAT_TEST_JOURNAL_CHILD";

/// What the child of the next test does: one run with all that a run writes. Killed at its n-th write, before or after it.
#[test]
fn child_that_is_killed_at_a_write() {
    let Ok(text) = std::env::var(CHILD) else { return };
    let mut words = text.split(' ');
    let (state, n, after) = (words.next().unwrap(), words.next().unwrap().parse().unwrap(), words.next() == Some("after"));
    let faults = Faults::default();
    let journal = Journal::with_faults(Path::new(state), faults.clone(), Utc::now()).unwrap();
    faults.at(n, if after { Effect::KillAfter } else { Effect::Kill });
    let claim = journal.begin(&run_of(1, Trigger::Schedule), Utc::now()).unwrap();
    assert!(journal.heartbeat(claim, Utc::now()).unwrap());
    assert!(journal.announce(claim, "01arz3ndektsv4rrffq69g5fav", Utc::now()).unwrap());
    journal.close(claim, &Ending::new(State::Succeeded), Utc::now()).unwrap();
    journal.hold("x", LEASE, Utc::now()).unwrap();
    std::fs::write(Path::new(state).join("writes"), faults.writes().to_string()).unwrap();
}

fn child(state: &Path, n: u64, when: &str) -> Option<i32> {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    command
        .args(["--exact", "journal::child_that_is_killed_at_a_write", "--nocapture"])
        .env(CHILD, format!("{} {n} {when}", state.display()));
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    command.status().unwrap().code()
}

#[test]
fn a_process_killed_at_any_write_of_the_journal_leaves_a_run_that_can_be_settled_and_run_again() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(child(folder.path(), 1000, "before"), Some(0));
    let writes: u64 = std::fs::read_to_string(folder.path().join("writes")).unwrap().parse().unwrap();
    assert!(writes >= 5, "{writes}");
    for n in 1..=writes {
        for when in ["before", "after"] {
            let folder = tempfile::tempdir().unwrap();
            assert_eq!(child(folder.path(), n, when), None, "write {n} {when}: killed by a signal");
            let journal = Journal::open(folder.path(), Utc::now()).unwrap();
            let seen = journal.runs(&Filter::default()).unwrap();
            // Before the first write nothing is known of the run; from then on there is one row, running or closed.
            let begun = n > 1 || when == "after";
            assert_eq!(seen.len(), usize::from(begun), "write {n} {when}");
            let closed = n > 4 || (n == 4 && when == "after");
            let broken = journal.broken().unwrap();
            assert_eq!(broken.len(), usize::from(begun && !closed), "write {n} {when}: {seen:?}");
            for run in broken {
                assert_eq!(run.announced.is_some(), n > 3 || (n == 3 && when == "after"), "write {n} {when}");
                let taken = journal.take_over(&run, Utc::now()).unwrap().unwrap();
                journal.close(taken, &Ending::new(State::Interrupted), Utc::now()).unwrap();
            }
            let again = journal.begin(&run_of(1, Trigger::Retry), Utc::now());
            if closed {
                assert_eq!(again.unwrap_err().kind(), Kind::Busy, "write {n} {when}: the slot is done");
            } else {
                let claim = again.unwrap();
                assert_eq!(claim.attempt, if begun { 2 } else { 1 });
                journal.close(claim, &Ending::new(State::Succeeded), Utc::now()).unwrap();
            }
        }
    }
}
