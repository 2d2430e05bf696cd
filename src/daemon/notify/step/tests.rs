use super::*;
use crate::daemon::journal::{Ending, ErrorRecord, Journal, NewRun};
use crate::daemon::status::ProblemKind;
use crate::id::Name;
use crate::plan::{Plans, Retry};

fn at(minute: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000 + minute * 60, 0).unwrap()
}

/// A plan with what is said of its notifiers.
fn plans(notifiers: &str) -> Plans {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        r#"version = 1
[repository.main]
url = "file:///nowhere/repository"
passphrase = {{ env = "NONE" }}
[source.db]
kind = "sqlite"
path = "/nowhere/db.sqlite"
[plan.crm]
source = "db"
repository = "main"
schedule = "0 * * * *"
timezone = "UTC"
{notifiers}
"#
    );
    std::fs::write(folder.path().join("crm.toml"), text).unwrap();
    Plans::load(&[folder.path().to_owned()]).unwrap()
}

const OPS: &str = "[notify.ops]\nkind = \"command\"\nrun = [\"true\"]\n";
const ALL: &str = "[notify.all]\nkind = \"command\"\nrun = [\"true\"]\non = [\"start\", \"success\", \"failure\", \"recovered\"]\n";
const BEAT: &str = "[notify.beat]\nkind = \"heartbeat\"\nurl = { env = \"NONE\" }\n";

struct World {
    plans: Plans,
    standing: BTreeMap<String, Standing>,
}

impl World {
    fn new(notifiers: &str) -> Self {
        Self { plans: plans(notifiers), standing: BTreeMap::new() }
    }

    /// One look; `notifier occasion change` of each event.
    fn look(&mut self, minute: i64, runs: &[Run], problems: &[Problem]) -> Vec<String> {
        let seen = problems.iter().map(|problem| seen_of_problem(Some("crm"), problem, &BTreeSet::new())).collect();
        let runs = runs.iter().map(|run| Noticed { run: run.clone(), retried: false }).collect();
        self.observe(minute, &Observed { runs, problems: seen, judged: BTreeSet::from([Some("crm".into())]), plans: BTreeSet::new() })
    }

    fn observe(&mut self, minute: i64, observed: &Observed) -> Vec<String> {
        let observed = Observed { plans: BTreeSet::from(["crm".to_owned()]), ..observed.clone() };
        let plans = &self.plans;
        let audience = |_: Option<&str>| plans.notifiers.values().map(AsRef::as_ref).collect();
        let events = step(&mut self.standing, &observed, &audience, at(minute));
        let word = |change: Change| serde_json::to_value(change).unwrap().as_str().unwrap().to_owned();
        events.iter().map(|(to, event)| format!("{to} {} {}", event.occasion, word(event.change))).collect()
    }
}

fn failed(job: &str) -> Problem {
    Problem { kind: "failed".into(), job: Some(job.into()), message: "the last one failed".into() }
}

fn run(job: Job, minute: i64, ending: Option<Ending>) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), at(0)).unwrap();
    let new = NewRun::manual(&Name::new("crm").unwrap(), job, "tester", at(minute));
    let claim = journal.begin(&new, at(minute)).unwrap();
    if let Some(ending) = ending {
        journal.close(claim, &ending, at(minute)).unwrap();
    }
    journal.run(claim.id).unwrap()
}

#[expect(clippy::unnecessary_wraps, reason = "it stands where an option is expected")]
fn ending(state: State, kind: Kind) -> Option<Ending> {
    let error = ErrorRecord { kind: kind.word().into(), message: "no".into(), causes: vec![], hint: None };
    Some(Ending { error: (state != State::Succeeded).then_some(error), ..Ending::new(state) })
}

#[test]
fn a_problem_that_stays_is_told_once_reminded_of_and_its_end_is_told() {
    let mut world = World::new(OPS);
    assert_eq!(world.look(0, &[], &[failed("backup")]), ["ops failure raised"]);
    assert_eq!(world.look(1, &[], &[failed("backup")]), [""; 0]);
    assert_eq!(world.look(24 * 60 - 1, &[], &[failed("backup")]), [""; 0]);
    assert_eq!(world.look(24 * 60, &[], &[failed("backup")]), ["ops failure reminded"]);
    assert_eq!(world.look(24 * 60 + 1, &[], &[failed("backup")]), [""; 0]);
    assert_eq!(world.look(25 * 60, &[], &[]), ["ops recovered over"]);
    assert_eq!(world.look(26 * 60, &[], &[]), [""; 0]);
}

#[test]
fn what_a_run_and_the_status_say_is_one_message() {
    let mut world = World::new(OPS);
    let bad = run(Job::Backup, 0, ending(State::Failed, Kind::Failed));
    assert_eq!(world.look(1, std::slice::from_ref(&bad), &[failed("backup")]), ["ops failure raised"]);
    assert_eq!(world.standing["crm/run/backup"].run, Some(bad.id.to_string()));
    let good = run(Job::Backup, 2, ending(State::Succeeded, Kind::Failed));
    assert_eq!(world.look(3, &[good], &[]), ["ops recovered over"]);
    // Both between two looks.
    let good = run(Job::Backup, 5, ending(State::Succeeded, Kind::Failed));
    assert_eq!(world.look(6, &[bad, good], &[]), ["ops failure raised", "ops recovered over"]);
    // A drill that failed is told by its run and by its report.
    let drilled = run(Job::Drill, 7, ending(State::Failed, Kind::Differs));
    let report = Problem { kind: "drill-failed".into(), job: Some("drill".into()), message: "content differs".into() };
    assert_eq!(world.look(8, &[drilled], &[report]), ["ops drill-failed raised"]);
}

#[test]
fn a_plan_that_was_not_judged_keeps_what_stands() {
    let mut world = World::new(OPS);
    world.look(0, &[], &[failed("backup")]);
    assert_eq!(world.observe(1, &Observed::default()), [""; 0]);
    assert_eq!(world.look(2, &[], &[failed("backup")]), [""; 0], "not told again");
}

#[test]
fn what_comes_and_goes_by_itself_is_told_only_when_it_stays() {
    let mut world = World::new(OPS);
    let away = Problem::new(ProblemKind::RepositoryUnreachable, "no route");
    assert_eq!(world.look(0, &[], std::slice::from_ref(&away)), [""; 0]);
    assert_eq!(world.look(1, &[], &[]), [""; 0], "nobody was told, so nobody is told of its end");
    assert_eq!(world.look(2, &[], std::slice::from_ref(&away)), [""; 0]);
    assert_eq!(world.look(4, &[], &[away]), ["ops failure raised"]);
}

#[test]
fn a_failure_that_is_tried_again_is_told_only_after_the_last_attempt() {
    let mut world = World::new(OPS);
    let mut bad = run(Job::Backup, 0, ending(State::Failed, Kind::Unavailable));
    (bad.scheduled, bad.trigger) = (Some(at(0)), Trigger::Schedule);
    let plan = std::sync::Arc::clone(world.plans.plan("crm").unwrap());
    assert_eq!(plan.retry, Retry { attempts: 3, delay: std::time::Duration::from_mins(1) });
    let is_retried = |run: &Run, now| PastSlot::of_run(run).is_some_and(|slot| is_retried(&plan, &slot, now));
    assert!(is_retried(&bad, at(1)));
    assert!(!is_retried(&bad, at(30)), "it did not come");
    assert!(!is_retried(&Run { attempt: 3, ..bad.clone() }, at(1)), "the last one");
    assert!(!is_retried(&Run { scheduled: None, ..bad.clone() }, at(1)), "by hand");
    assert!(!is_retried(&Run { kind: Some("failed".into()), ..bad.clone() }, at(1)), "it will not pass");
    let retried = seen_of_problem(Some("crm"), &failed("backup"), &BTreeSet::from(["backup".to_owned()]));
    let judged = BTreeSet::from([Some("crm".to_owned())]);
    let look = |problems| Observed {
        runs: vec![Noticed { run: bad.clone(), retried: true }],
        problems,
        judged: judged.clone(),
        ..Observed::default()
    };
    assert_eq!(world.observe(1, &look(vec![retried])), [""; 0]);
    let last = seen_of_problem(Some("crm"), &failed("backup"), &BTreeSet::new());
    assert_eq!(world.observe(2, &Observed { runs: vec![], ..look(vec![last]) }), ["ops failure raised"]);
}

#[test]
fn a_mistyped_command_is_nobodys_news() {
    let mut world = World::new(OPS);
    let mistakes = [(Job::Drill, Kind::Usage), (Job::Restore, Kind::NoRecoveryPoint), (Job::Backup, Kind::WrongKey)];
    let runs: Vec<Run> = mistakes.into_iter().map(|(job, kind)| run(job, 0, ending(State::Failed, kind))).collect();
    assert_eq!(world.look(1, &runs, &[]), [""; 0]);
    let own = run(Job::Backup, 1, ending(State::Failed, Kind::Usage));
    assert_eq!(world.look(2, &[own], &[failed("backup")]), ["ops failure raised"]);
}

#[test]
fn each_notifier_hears_what_it_asked_for_and_a_later_one_what_stands() {
    let mut world = World::new(&format!("{OPS}{ALL}"));
    assert_eq!(world.look(0, &[run(Job::Backup, 0, None)], &[]), ["all start happened"]);
    let good = run(Job::Backup, 1, ending(State::Succeeded, Kind::Failed));
    assert_eq!(world.look(2, &[good], &[]), ["all success happened"]);
    let slow = Problem::new(ProblemKind::RecoveryTimeObjective, "too slow");
    assert_eq!(world.look(3, &[], std::slice::from_ref(&slow)), ["ops objective-missed raised"]);
    assert_eq!(world.look(4, &[], &[]), ["ops recovered over"], "only who was told");
    world.look(5, &[], std::slice::from_ref(&slow));
    world.plans = plans(&format!("{OPS}[notify.new]\nkind = \"command\"\nrun = [\"true\"]\n"));
    assert_eq!(world.look(6, &[], &[slow]), ["new objective-missed raised"]);
}

#[test]
fn a_heartbeat_hears_of_its_jobs_runs_only() {
    let mut world = World::new(BEAT);
    assert_eq!(world.look(0, &[run(Job::Backup, 0, None), run(Job::Drill, 0, None)], &[]), ["beat start happened"]);
    let bad = run(Job::Backup, 1, ending(State::Failed, Kind::Failed));
    assert_eq!(world.look(1, &[bad], &[failed("backup"), Problem::new(ProblemKind::Clock, "x")]), ["beat failure raised"]);
    assert_eq!(world.look(2 * 24 * 60, &[], &[failed("backup")]), [""; 0], "it is not reminded");
    let good = run(Job::Backup, 2, ending(State::Succeeded, Kind::Failed));
    assert_eq!(world.look(2 * 24 * 60 + 1, &[good], &[]), ["beat success happened"]);
}

#[test]
fn a_notifier_that_fails_is_told_through_the_one_that_stands_in_for_it() {
    let mut world = World::new(&format!("{OPS}{ALL}"));
    let problem = Problem::new(ProblemKind::NotifierFailing, "notifier ops has reached nobody");
    let seen = |only: Option<&str>| Seen {
        key: "/notifier-failing/ops".into(),
        only: only.map(str::to_owned),
        ..seen_of_problem(None, &problem, &BTreeSet::new())
    };
    let look = |only| Observed { problems: vec![seen(only)], judged: BTreeSet::from([None]), ..Observed::default() };
    assert_eq!(world.observe(0, &look(None)), [""; 0], "`all` does not ask for it, and `ops` is the one that fails");
    assert_eq!(world.observe(1, &look(Some("all"))), ["all notifier-failing raised"], "named, so it is told whatever it asks for");
    assert_eq!(world.observe(2, &Observed { problems: vec![], ..look(None) }), ["all recovered over"]);
}

#[test]
fn a_clock_that_was_set_back_silences_nothing() {
    let mut world = World::new(OPS);
    assert_eq!(world.look(100, &[], &[Problem::new(ProblemKind::RepositoryUnreachable, "x")]), [""; 0]);
    assert_eq!(world.look(10, &[], &[Problem::new(ProblemKind::RepositoryUnreachable, "x")]), [""; 0]);
    assert_eq!(world.look(12, &[], &[Problem::new(ProblemKind::RepositoryUnreachable, "x")]), ["ops failure raised"]);
    assert_eq!(world.look(-3000, &[], &[Problem::new(ProblemKind::RepositoryUnreachable, "x")]), ["ops failure reminded"]);
}

#[test]
fn several_problems_under_one_key_are_one_and_the_worst_names_it() {
    let mut status = PlanStatus { problems: vec![], ..serde_json::from_str(PLAN).unwrap() };
    let of = |kind: &str| Problem { kind: kind.into(), job: Some("backup".into()), message: kind.into() };
    status.problems = vec![
        of("incomplete"),
        of("failed"),
        Problem::new(ProblemKind::LogNotStreamed, "a"),
        Problem::new(ProblemKind::LogNotStreamed, "b"),
    ];
    let seen = seen_of_status(&status, &BTreeSet::new());
    let all: Vec<(&str, &str, &str)> = seen.iter().map(|s| (s.key.as_str(), s.kind.as_str(), s.message.as_str())).collect();
    assert_eq!(all, [("crm/log-not-streamed", "log-not-streamed", "a; b"), ("crm/run/backup", "failed", "incomplete; failed")]);
}

const PLAN: &str = r#"{"name": "crm", "last_success": null, "snapshot": null, "recovery_point": null, "snapshots": 0, "data_loss_ms": null,
 "data_loss_objective_ms": null, "recovery_time_ms": null, "recovery_time_objective_ms": null, "proven_at": null, "proven_point": null,
 "next_run": null, "next_job": null, "running": [], "repository_reachable": true, "problems": []}"#;
