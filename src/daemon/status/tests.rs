use serde_json::json;

use super::gather;
use super::logs::{covered, stored_log_problems};
use super::*;
use crate::daemon::job::{expression, schedules};
use crate::daemon::journal::{Ending, ErrorRecord, Journal, NewRun, State, Trigger};
use crate::id::{ReportId, RunId, SnapshotId};
use crate::ops::log::fork::Fork;
use crate::ops::log::reach::Reach;
use crate::ops::log::stream::LogStatus;
use crate::ops::resolve::Changed;
use crate::plan::{Plan, Plans};
use crate::repo::{Decision, OpenOptions, Passphrase, ReportKind, Repository};
use crate::source::postgres::lsn::Lsn;
use crate::source::{Finish, Problem as Unread};
use crate::store::Store;

fn at(text: &str) -> DateTime<Utc> {
    format!("2026-11-20T{text}Z").parse().unwrap()
}

/// A plan with one source and objectives, as a file says it.
pub(super) fn plan() -> std::sync::Arc<Plan> {
    plan_of("kind = \"sqlite\"\npath = \"/nowhere/db.sqlite\"")
}

/// With this source.
fn plan_of(source: &str) -> std::sync::Arc<Plan> {
    let folder = tempfile::tempdir().unwrap();
    let text = r#"version = 1
[repository.main]
url = "file:///nowhere/repository"
passphrase = { env = "NONE" }
[source.db]
SOURCE
[plan.crm]
sources = ["db"]
repository = "main"
objectives = { data_loss = "1h" }
schedule = "0 * * * *"
timezone = "UTC"
"#
    .replace("SOURCE", source);
    std::fs::write(folder.path().join("crm.toml"), text).unwrap();
    let plans = Plans::load(&[folder.path().to_owned()]).unwrap();
    std::sync::Arc::clone(plans.plan("crm").unwrap())
}

pub(super) fn manifest(time: &str, source: &str, problems: &[&str]) -> Manifest {
    let problem = |object: &&str| Unread { object: (*object).to_owned(), kind: "unreadable".into(), message: "not permitted".into() };
    let finish = Finish { problems: problems.iter().map(problem).collect(), ..Finish::default() };
    let record =
        json!({ "name": source, "kind": "sqlite", "entries": 1, "bytes": 1, "finish": finish, "tree": { "depth": 0, "nodes": "" } });
    let stats = serde_json::to_value(crate::repo::Stats::default()).unwrap();
    let value = json!({
        "id": SnapshotId::generate(at(time)), "plan": "crm", "host": "elsewhere", "started": at(time), "time": at(time),
        "parents": [], "sources": [record], "stats": stats, "tags": [], "program": "test",
    });
    serde_json::from_value(value).unwrap()
}

pub(super) fn drill(time: &str, snapshot: SnapshotId, passed: bool) -> ReportRecord {
    let exit = (!passed).then_some("differs");
    ReportRecord {
        id: ReportId::generate(at(time)),
        kind: ReportKind::Drill,
        time: at(time),
        plan: Some("crm".into()),
        snapshots: vec![snapshot],
        passed,
        document: json!({ "exit": exit }),
    }
}

pub(super) fn verify(time: &str, percent: Option<u8>, harmed: &[SnapshotId]) -> ReportRecord {
    let id = ReportId::generate(at(time));
    let finding = json!({ "object": format!("packs/ab/ab{}", "00".repeat(31)), "kind": "damaged", "message": "bad", "snapshots": harmed });
    let findings = if harmed.is_empty() { json!([]) } else { json!([finding]) };
    let document = json!({
        "schema": "lifeboat.verify/1", "id": id, "plan": null, "time": at(time), "depth": "data", "percent": percent, "run": percent.map(|_| 0),
        "findings": findings, "bytes_checked": 0, "objects_checked": 0, "snapshots_sound": [], "skipped": [], "duration_ms": 0, "warnings": [],
    });
    ReportRecord { id, kind: ReportKind::Verify, time: at(time), plan: None, snapshots: vec![], passed: harmed.is_empty(), document }
}

fn facts(manifests: &[Manifest], reports: &[ReportRecord]) -> Facts {
    let existing = manifests.iter().map(|manifest| manifest.id).collect();
    let standing = Arc::new(crate::ops::damage::standing(reports, Some(&existing), at("12:00:00")));
    let reports = reports.iter().cloned().map(Arc::new).collect();
    let stored = Stored { manifests: manifests.to_vec(), reports, standing, ..Stored::default() };
    Facts { repository: Some(Ok(Arc::new(stored))), ..Facts::default() }
}

fn judged(facts: &Facts) -> PlanStatus {
    assess(&plan(), facts, at("12:00:00"))
}

fn kinds(status: &PlanStatus) -> Vec<&str> {
    status.problems.iter().map(|problem| problem.kind.as_str()).collect()
}

fn message<'a>(status: &'a PlanStatus, kind: &str) -> &'a str {
    &status.problems.iter().find(|problem| problem.kind == kind).unwrap_or_else(|| panic!("no {kind}: {status:?}")).message
}

fn journal_facts(plan: &Plan, journal: &Journal, now: DateTime<Utc>) -> Facts {
    gather::journal_facts(plan, &Heard::ask(&[plan], journal, now).unwrap(), None, now)
}

fn exit(status: &PlanStatus) -> Option<Kind> {
    Status { schema: String::new(), time: at("12:00:00"), daemon: false, plans: vec![status.clone()], notifiers: vec![], problems: vec![] }
        .check()
}

/// A journal with one run of this job that ended so.
fn ran(job: Job, started: &str, ending: Option<Ending>) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), at(started)).unwrap();
    let new = NewRun::manual(&Name::new("crm").unwrap(), job, "tester", at("00:00:00"));
    let claim = journal.begin(&new, at(started)).unwrap();
    if let Some(ending) = ending {
        journal.close(claim, &ending, at(started)).unwrap();
    }
    journal.run(claim.id).unwrap()
}

#[test]
fn no_problem_is_exit_0() {
    let made = manifest("11:30:00", "db", &[]);
    let status = judged(&facts(std::slice::from_ref(&made), &[drill("11:40:00", made.id, true)]));
    assert_eq!((kinds(&status), exit(&status)), (vec![], None), "{status:?}");
    assert_eq!((status.data_loss_ms, status.proven_at), (Some(1_800_000), Some(at("11:40:00"))));
}

#[test]
fn drills_to_moments_between_snapshots_prove_no_snapshot_and_are_not_called_missing() {
    let made = manifest("11:30:00", "db", &[]);
    let mut to_a_moment = drill("11:40:00", made.id, true);
    to_a_moment.snapshots.clear();
    let status = judged(&facts(std::slice::from_ref(&made), &[to_a_moment.clone()]));
    assert_eq!(kinds(&status), ["never-proven"]);
    assert!(message(&status, "never-proven").contains("moments between snapshots"), "{status:?}");
    to_a_moment.passed = false;
    let status = judged(&facts(std::slice::from_ref(&made), &[to_a_moment]));
    assert!(message(&status, "never-proven").contains("no drill has ever passed"), "{status:?}");
}

#[test]
fn damage_stands_after_a_shallower_verification_and_takes_proof_away() {
    let made = manifest("11:30:00", "db", &[]);
    let mut reports = vec![drill("11:40:00", made.id, true), verify("11:45:00", Some(100), &[made.id]), verify("11:50:00", None, &[])];
    let status = judged(&facts(std::slice::from_ref(&made), &reports));
    assert_eq!(kinds(&status), ["data-loss-objective", "never-proven", "damaged"], "{status:?}");
    assert!(message(&status, "damaged").contains("harmed snapshots of this plan: 1;"), "{status:?}");
    assert_eq!((status.proven_at, exit(&status)), (None, Some(Kind::Damaged)));
    reports.push(verify("11:55:00", Some(100), &[]));
    let status = judged(&facts(std::slice::from_ref(&made), &reports));
    assert_eq!(kinds(&status), ["never-proven"], "what is sound again is not proven again");
    let after = manifest("11:56:00", "db", &[]);
    let status = judged(&facts(std::slice::from_ref(&after), &reports[..2]));
    assert_eq!(kinds(&status), ["never-proven"], "what was harmed is gone: {status:?}");
}

#[test]
fn proven_is_what_a_restore_would_take() {
    let (old, new) = (manifest("10:00:00", "db", &[]), manifest("11:30:00", "db", &[]));
    let reports = [drill("10:30:00", old.id, true), drill("11:40:00", new.id, true), drill("11:45:00", new.id, false)];
    let status = judged(&facts(&[old.clone(), new.clone()], &reports));
    assert_eq!((status.proven_at, status.proven_point), (Some(at("10:30:00")), Some(old.time)), "{status:?}");
    assert_eq!(kinds(&status), ["data-loss-objective", "drill-failed"], "what differs is not whole");
    let status = judged(&facts(&[new], &reports));
    assert_eq!((status.proven_at, kinds(&status)), (None, vec!["data-loss-objective", "drill-failed", "never-proven"]));
    assert!(message(&status, "never-proven").contains("took it back"), "{status:?}");
}

#[test]
fn a_failed_drill_whose_report_was_not_stored_is_known_by_the_journal() {
    let made = manifest("11:30:00", "db", &[]);
    let report = ReportId::generate(at("11:50:00")).to_string();
    let error = ErrorRecord { kind: "differs".into(), message: "content differs".into(), causes: vec![], hint: None };
    let ending = Ending { error: Some(error), report: Some(report.clone()), ..Ending::new(State::Failed) };
    let run = ran(Job::Drill, "11:50:00", Some(ending));
    let mut known = facts(std::slice::from_ref(&made), &[drill("11:40:00", made.id, true)]);
    (known.last, known.failed_drill) = (vec![run.clone()], Some(run.clone()));
    let status = judged(&known);
    assert_eq!(kinds(&status), ["drill-failed"], "{status:?}");
    let text = message(&status, "drill-failed");
    assert!(text.contains("content differs") && text.contains("not in the repository") && text.contains(&run.id.to_string()), "{text}");
    // Told once where its report is there; and over when a later drill passed.
    let mut stored = drill("11:50:00", made.id, false);
    stored.id = report.parse().unwrap();
    let Some(Ok(repository)) = known.repository.as_mut() else { panic!() };
    Arc::make_mut(repository).reports.push(Arc::new(stored));
    assert_eq!(kinds(&judged(&known)), ["data-loss-objective", "drill-failed", "never-proven"]);
    let passed = facts(std::slice::from_ref(&made), &[drill("11:55:00", made.id, true)]);
    assert_eq!(kinds(&judged(&Facts { failed_drill: Some(run.clone()), ..passed })), Vec::<&str>::new());
    // Without the repository the journal is all there is.
    let away = Err(Unasked { kind: Kind::Unavailable, message: "away".into(), secret: false });
    let status = judged(&Facts { repository: Some(away), failed_drill: Some(run), ..Facts::default() });
    assert_eq!(kinds(&status), ["repository-unreachable", "drill-failed"]);
    // One that is there and does not open because it is damaged is not away.
    let damaged = Err(Unasked { kind: Kind::Damaged, message: "the format object cannot be decoded".into(), secret: false });
    let status = judged(&Facts { repository: Some(damaged), ..Facts::default() });
    assert_eq!((kinds(&status), exit(&status)), (vec!["damaged"], Some(Kind::Damaged)));
}

#[test]
fn an_incomplete_snapshot_is_no_full_success_also_without_a_journal() {
    let old = manifest("10:00:00", "db", &[]);
    let new = Manifest {
        parents: vec![crate::repo::Parent { id: old.id, hash: String::new() }],
        ..manifest("11:30:00", "db", &["a", "b", "c", "d"])
    };
    let proof = drill("11:40:00", old.id, true);
    let status = judged(&facts(&[old.clone(), new.clone()], std::slice::from_ref(&proof)));
    assert_eq!((kinds(&status), exit(&status)), (vec!["incomplete", "data-loss-objective"], Some(Kind::ObjectiveMissed)));
    assert_eq!((status.recovery_point, status.whole_point, status.last_success), (Some(new.time), Some(old.time), Some(old.time)));
    assert_eq!((status.whole_snapshot.clone(), status.data_loss_ms), (Some(old.id.to_string()), Some(7_200_000)));
    let text = message(&status, "incomplete");
    assert!(
        text.contains(&new.id.to_string()) && text.contains("db: a unreadable (not permitted)") && text.contains("and 1 more"),
        "{text}"
    );
    // The run that made it is not told a second time.
    let ending = Ending { snapshot: Some(new.id.to_string()), ..Ending::new(State::Incomplete) };
    let run = ran(Job::Backup, "11:30:00", Some(ending));
    let known = Facts { last: vec![run.clone()], last_backup: Some(run), ..facts(&[old.clone(), new], std::slice::from_ref(&proof)) };
    assert_eq!(kinds(&judged(&known)), ["incomplete", "data-loss-objective"]);
    assert_eq!(judged(&known).last_success, Some(old.time), "an incomplete run is none");
    // A source that the plan has and the snapshot has not.
    let other = manifest("11:30:00", "other", &[]);
    let status = judged(&facts(std::slice::from_ref(&other), &[drill("11:40:00", other.id, true)]));
    assert!(message(&status, "incomplete").contains("all of source db"), "{status:?}");
    assert!(message(&status, "data-loss-objective").contains("no snapshot is whole"), "{status:?}");
}

#[test]
fn a_repository_that_went_back_to_an_older_state_is_no_success() {
    let (old, new) = (manifest("10:00:00", "db", &[]), manifest("11:30:00", "db", &[]));
    let proof = drill("10:10:00", old.id, true);
    let run = ran(Job::Backup, "11:30:00", Some(Ending { snapshot: Some(new.id.to_string()), ..Ending::new(State::Succeeded) }));
    let judged_at = |asked: &str, manifests: &[Manifest], damaged: &[&str]| {
        let stored = Stored {
            asked: Some(at(asked)),
            manifests: manifests.to_vec(),
            reports: vec![Arc::new(proof.clone())],
            damaged: damaged.iter().map(|text| (*text).to_owned()).collect(),
            ..Stored::default()
        };
        let (last, whole) = (Some(run.clone()), Some(run.clone()));
        judged(&Facts { repository: Some(Ok(Arc::new(stored))), last_backup: last, last_whole_backup: whole, ..Facts::default() })
    };
    let only_old = std::slice::from_ref(&old);
    let status = judged_at("12:00:00", only_old, &[]);
    assert!(message(&status, "damaged").contains(&new.id.to_string()), "{status:?}");
    assert_eq!((status.last_success, exit(&status)), (Some(old.time), Some(Kind::Damaged)));
    // It was asked before the run committed; there is a newer one, so retention may have removed it; what is there cannot all be read.
    let later = manifest("11:45:00", "db", &[]);
    let calm = [
        judged_at("11:30:30", only_old, &[]),
        judged_at("12:00:00", &[old.clone(), later], &[]),
        judged_at("12:00:00", &[old.clone(), new], &[]),
    ];
    for status in &calm {
        assert!(!kinds(status).contains(&"damaged"), "{status:?}");
        assert!(status.last_success >= run.ended, "{status:?}");
    }
    let unread = judged_at("12:00:00", only_old, &["a manifest cannot be read"]);
    assert_eq!(kinds(&unread).iter().filter(|kind| **kind == "damaged").count(), 1, "told once: {unread:?}");
}

#[test]
fn an_answer_that_is_older_than_the_last_runs_is_made_up_by_what_the_journal_says() {
    let incomplete = manifest("10:00:00", "db", &["users"]);
    let failed = drill("10:10:00", incomplete.id, false);
    let new = manifest("11:30:00", "db", &[]);
    let ended = |job, time: &str, state, snapshot: Option<&Manifest>| {
        ran(job, time, Some(Ending { snapshot: snapshot.map(|made| made.id.to_string()), ..Ending::new(state) }))
    };
    let backup = ended(Job::Backup, "11:30:00", State::Succeeded, Some(&new));
    let passed = ended(Job::Drill, "11:40:00", State::Succeeded, None);
    let stored = |asked: &str, manifests: &[&Manifest]| {
        let mut facts = facts(&manifests.iter().map(|made| (*made).clone()).collect::<Vec<_>>(), std::slice::from_ref(&failed));
        let Some(Ok(stored)) = facts.repository.as_mut() else { panic!() };
        Arc::make_mut(stored).asked = Some(at(asked));
        let backup = Some(backup.clone());
        Facts { last: vec![backup.clone().unwrap(), passed.clone()], last_backup: backup.clone(), last_whole_backup: backup, ..facts }
    };
    // It was asked before both: neither the old gap nor the old drill is what stands, and nothing is lost that was backed up since.
    let status = judged(&stored("11:00:00", &[&incomplete]));
    assert_eq!(kinds(&status), ["never-proven"], "what proves it is only in the repository: {status:?}");
    assert_eq!((status.whole_point, status.recovery_point), (Some(at("11:30:00")), Some(at("11:30:00"))));
    assert_eq!((status.snapshot, status.whole_snapshot), (Some(new.id.to_string()), Some(new.id.to_string())));
    assert_eq!((status.data_loss_ms, status.repository_reachable), (Some(1_800_000), true));
    // Nothing was there at all.
    assert_eq!(kinds(&judged(&stored("11:00:00", &[]))), ["never-proven"]);
    // It was asked after both: what it says is how it is.
    let status = judged(&stored("11:50:00", &[&incomplete]));
    assert_eq!((status.recovery_point, status.snapshot.clone()), (Some(incomplete.time), Some(incomplete.id.to_string())));
    assert!(
        ["incomplete", "drill-failed", "data-loss-objective", "damaged"].iter().all(|kind| kinds(&status).contains(kind)),
        "{status:?}"
    );
    // The snapshot was committed before it was asked, and the run closed after: the repository knows best.
    let harmed = stored("11:00:00", &[&incomplete, &new]);
    let Some(Ok(repository)) = &harmed.repository else { panic!() };
    let damage = crate::ops::damage::standing(&[verify("10:50:00", Some(100), &[new.id])], None, at("12:00:00"));
    let repository = Stored { standing: Arc::new(damage), ..Stored::clone(repository) };
    let status = judged(&Facts { repository: Some(Ok(Arc::new(repository))), ..harmed });
    assert_ne!(status.whole_snapshot, Some(new.id.to_string()), "{status:?}");
    // A drill that failed later is told at once.
    let error = ErrorRecord { kind: "differs".into(), message: "content differs".into(), causes: vec![], hint: None };
    let ending = Ending { error: Some(error), report: Some(ReportId::generate(at("11:45:00")).to_string()), ..Ending::new(State::Failed) };
    let run = ran(Job::Drill, "11:45:00", Some(ending));
    let known = stored("11:00:00", &[&incomplete]);
    let status = judged(&Facts { last: vec![backup.clone(), run.clone()], failed_drill: Some(run), ..known });
    let told: Vec<&str> = status.problems.iter().filter(|one| one.kind == "drill-failed").map(|one| one.message.as_str()).collect();
    assert!(told.len() == 2 && told[1].contains("was not looked for yet"), "{told:?}");
}

#[test]
fn a_report_of_the_future_proves_nothing_and_is_told_until_there_is_another_one() {
    let made = manifest("10:30:00", "db", &[]);
    let ahead = |record: ReportRecord| ReportRecord { time: record.time + chrono::TimeDelta::days(3653), ..record };
    let clocks = |status: &PlanStatus| kinds(status).into_iter().filter(|kind| *kind == "clock").count();
    let mut reports =
        vec![verify("10:40:00", Some(100), &[made.id]), ahead(drill("10:50:00", made.id, true)), ahead(verify("10:51:00", Some(100), &[]))];
    let status = judged(&facts(std::slice::from_ref(&made), &reports));
    assert_eq!((status.proven_at, status.recovery_time_ms, clocks(&status)), (None, None, 2), "{status:?}");
    assert!(message(&status, "clock").contains("the last verify") && message(&status, "clock").contains("does not count"), "{status:?}");
    assert!(["never-proven", "damaged"].iter().all(|kind| kinds(&status).contains(kind)), "{status:?}");
    reports.extend([verify("11:00:00", Some(100), &[]), drill("11:10:00", made.id, true)]);
    let status = judged(&facts(std::slice::from_ref(&made), &reports));
    assert_eq!((status.proven_at, clocks(&status)), (Some(at("11:10:00")), 0), "{status:?}");
    assert!(!kinds(&status).contains(&"damaged"), "{status:?}");
}

#[test]
fn a_last_snapshot_by_a_clock_that_is_behind_is_told() {
    let first = manifest("10:30:00", "db", &[]);
    let mut last = manifest("10:40:00", "db", &[]);
    last.parents = vec![crate::repo::Parent { id: first.id, hash: String::new() }];
    let told = |last: &crate::repo::Manifest| judged(&facts(&[first.clone(), last.clone()], &[]));
    assert!(!kinds(&told(&last)).contains(&"clock"));
    last.time -= chrono::TimeDelta::days(2000);
    last.started = last.time;
    let status = told(&last);
    assert!(message(&status, "clock").contains("committed before it 2026-11-20T10:40:00Z"), "{status:?}");
}

#[test]
fn what_is_no_content_or_known_to_be_damaged_counts_accordingly() {
    let mut made = manifest("11:30:00", "db", &["a"]);
    made.sources[0].finish["problems"][0]["kind"] = json!("changed-while-read");
    let status = judged(&facts(std::slice::from_ref(&made), &[drill("11:40:00", made.id, true)]));
    assert_eq!((kinds(&status), status.whole_point), (vec!["incomplete"], Some(made.time)), "its content is there");
    assert_eq!(status.last_success, None);
    let (old, new) = (manifest("10:00:00", "db", &[]), manifest("11:30:00", "db", &[]));
    let status = judged(&facts(&[old.clone(), new.clone()], &[verify("11:40:00", Some(100), &[new.id])]));
    assert_eq!((status.recovery_point, status.whole_point), (Some(new.time), Some(old.time)));
    assert!(kinds(&status).contains(&"data-loss-objective"), "{status:?}");
}

#[test]
fn a_snapshot_of_the_future_is_a_problem_and_no_data_loss_of_0() {
    let made = manifest("13:00:00", "db", &[]);
    let status = judged(&facts(std::slice::from_ref(&made), &[drill("11:40:00", made.id, true)]));
    assert_eq!((kinds(&status), status.data_loss_ms), (vec!["clock"], None), "{status:?}");
    assert!(message(&status, "clock").contains("elsewhere"), "{status:?}");
    assert_eq!(exit(&status), Some(Kind::Failed));
    let near = manifest("12:00:01", "db", &[]);
    let status = judged(&facts(std::slice::from_ref(&near), &[drill("11:40:00", near.id, true)]));
    assert_eq!((kinds(&status), status.data_loss_ms), (vec![], Some(0)), "two hosts are never quite alike");
}

#[test]
fn a_backup_that_goes_on_far_longer_than_the_last_one_is_told_before_its_next_slot() {
    let running = ran(Job::Backup, "11:00:00", None);
    let with = |run: &Run, usual: &[(Job, i64)]| {
        let usual = usual.iter().map(|(job, minutes)| (*job, chrono::TimeDelta::minutes(*minutes))).collect();
        let facts = Facts { running: vec![run.clone()], usual, ..facts(&[manifest("11:30:00", "db", &[])], &[]) };
        judged(&facts)
    };
    let told = with(&running, &[(Job::Drill, 60), (Job::Backup, 1)]);
    let message = message(&told, "running-long");
    assert!(message.contains("backup") && message.contains("more than 15 minutes; the last one took 60 s"), "{message}");
    assert!(!kinds(&with(&running, &[(Job::Backup, 15)])).contains(&"running-long"), "four times as long is not over");
    assert!(!kinds(&with(&running, &[])).contains(&"running-long"), "nobody knows how long it takes");
    let verify = ran(Job::Verify, "11:00:00", None);
    assert!(!kinds(&with(&verify, &[(Job::Verify, 1)])).contains(&"running-long"), "it may be the turn of a deeper one");
}

#[test]
fn an_exchanged_repository_is_no_green_one() {
    let made = manifest("11:30:00", "db", &[]);
    let mut facts = facts(std::slice::from_ref(&made), &[drill("11:40:00", made.id, true)]);
    for (certain, kind, code) in [(true, "repository-changed", Kind::Damaged), (false, "repository-unknown", Kind::Failed)] {
        if let Some(Ok(stored)) = &mut facts.repository {
            Arc::make_mut(stored).changed = Some(Changed { certain, message: "what is there".to_owned() });
        }
        let status = judged(&facts);
        assert_eq!(message(&status, kind), "what is there");
        assert_eq!(exit(&status), Some(code));
    }
}

#[test]
fn locks_that_end_are_told() {
    let made = manifest("11:30:00", "db", &[]);
    let mut facts = facts(std::slice::from_ref(&made), &[drill("11:40:00", made.id, true)]);
    if let Some(Ok(stored)) = &mut facts.repository {
        Arc::make_mut(stored).lock = Some("what is needed is locked until today only".to_owned());
    }
    let status = judged(&facts);
    assert_eq!((message(&status, "lock-lapsed"), exit(&status)), ("what is needed is locked until today only", Some(Kind::Failed)));
}

#[test]
fn snapshots_whose_key_was_destroyed_are_there_and_promise_nothing() {
    let (first, second, third) = (manifest("09:00:00", "db", &[]), manifest("11:20:00", "db", &[]), manifest("11:50:00", "db", &[]));
    let judge = |readable: &[&Manifest], destroyed: &[&Manifest]| {
        let manifests = readable.iter().map(|m| (*m).clone()).collect();
        let destroyed = destroyed.iter().map(|m| ((*m).clone(), at("11:55:00"))).collect();
        let stored = Stored { asked: Some(at("12:00:00")), manifests, destroyed, ..Stored::default() };
        // What the journal knows to be committed is there.
        let ending = Ending { snapshot: Some(third.id.to_string()), ..Ending::new(State::Succeeded) };
        let last = ran(Job::Backup, "11:50:00", Some(ending));
        let facts = Facts {
            repository: Some(Ok(Arc::new(stored))),
            last_whole_backup: Some(last.clone()),
            last_backup: Some(last),
            ..Facts::default()
        };
        judged(&facts)
    };
    let status = judge(&[&first], &[&second, &third]);
    assert_eq!(kinds(&status), ["key-destroyed", "data-loss-objective", "never-proven"]);
    assert!(
        message(&status, "key-destroyed").starts_with("nothing newer than 2026-11-20T09:00:00Z can be restored: the key of 2 snapshots")
    );
    assert_eq!((status.restorable_to, status.whole_point, status.recovery_point), (Some(first.time), Some(first.time), Some(first.time)));
    assert_eq!((status.snapshots, status.data_loss_ms), (3, Some(3 * 3_600_000)));
    let status = judge(&[], &[&second, &third]);
    assert_eq!(kinds(&status), ["key-destroyed"], "it was backed up");
    assert!(message(&status, "key-destroyed").starts_with("nothing can be restored"), "{status:?}");
    assert_eq!((status.restorable_to, status.data_loss_ms, exit(&status)), (None, None, Some(Kind::ObjectiveMissed)));
    // A later backup has made up for it.
    assert_eq!(kinds(&judge(&[&third], &[&first, &second])), ["never-proven"]);
}

#[test]
fn a_newest_snapshot_that_is_gone_is_missed_until_its_loss_is_accepted() {
    let (first, second) = (manifest("09:00:00", "db", &[]), manifest("11:20:00", "db", &[]));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let passphrase = Passphrase::new("correct horse battery staple");
    let made = Repository::init(Store::in_memory(), runtime.handle().clone(), &passphrase, &OpenOptions::default(), at("08:00:00"));
    let (repository, _) = made.unwrap();
    let ending = Ending { snapshot: Some(second.id.to_string()), ..Ending::new(State::Succeeded) };
    let last = ran(Job::Backup, "11:20:00", Some(ending));
    let judge = || {
        let ledger = repository.ledger().unwrap();
        let stored = Stored { asked: Some(at("12:00:00")), manifests: vec![first.clone()], ledger, ..Stored::default() };
        judged(&Facts { repository: Some(Ok(Arc::new(stored))), last_backup: Some(last.clone()), ..Facts::default() })
    };
    assert!(message(&judge(), "damaged").contains(&format!("snapshot {}, which backup", second.id)));
    let removed = repository.removal_of_unread(&plan().name, second.id, std::iter::empty(), "lost, and that was accepted", at("11:59:00"));
    repository.amend_ledger(at("11:59:00"), |_| Ok(Some(Decision::Remove { snapshots: vec![removed.clone()] }))).unwrap();
    assert!(!kinds(&judge()).contains(&"damaged"), "{:?}", judge());
}

#[test]
fn a_run_that_goes_on_hides_no_overdue_slot() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan();
    let journal = Journal::open(folder.path(), at("05:00:00")).unwrap();
    let (job, schedule) = schedules(&plan)[0];
    journal.schedule_since(&plan.name, job, &expression(schedule), at("05:30:00")).unwrap();
    let slot = NewRun::of_slot(&plan.name, job, Trigger::Schedule, at("06:00:00"), RunId::generate(at("06:00:00")));
    journal.begin(&slot, at("06:00:00")).unwrap();
    let facts = journal_facts(&plan, &journal, at("06:50:00"));
    assert_eq!((facts.running.len(), facts.overdue.len()), (1, 0), "its own slot");
    let facts = journal_facts(&plan, &journal, at("12:00:00"));
    assert_eq!(facts.overdue, [(Job::Backup, at("07:00:00"))]);
    let status = judged(&facts);
    assert!(message(&status, "overdue").contains("a backup run has been going since 2026-11-20T06:00:00Z"), "{status:?}");
    assert_eq!(exit(&status), Some(Kind::ObjectiveMissed));
}

#[test]
fn where_no_journal_knows_of_a_backup_the_repository_says_since_when_one_waits() {
    let folder = tempfile::tempdir().unwrap();
    let (plan, new) = (plan(), Journal::open(folder.path(), at("11:59:00")).unwrap());
    let stored = |time| Stored { manifests: vec![manifest(time, "db", &[])], ..Stored::default() };
    for (time, overdue) in [("10:00:00", vec![(Job::Backup, at("11:00:00"))]), ("11:30:00", vec![])] {
        let stored = stored(time);
        assert_eq!(gather::without_journal(&plan, Some(&stored), at("12:00:00")).overdue, overdue, "{time}");
        let heard = Heard::ask(&[&*plan], &new, at("12:00:00")).unwrap();
        assert_eq!(gather::journal_facts(&plan, &heard, Some(&stored), at("12:00:00")).overdue, overdue, "{time}, an empty journal");
    }
    assert_eq!(gather::without_journal(&plan, None, at("12:00:00")).overdue, [], "nobody knows");
}

#[test]
fn a_prune_that_something_stands_in_the_way_of_is_told_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan();
    let journal = Journal::open(folder.path(), at("05:00:00")).unwrap();
    for (kind, told, time) in [(Kind::Unavailable, "failed", at("06:00:00")), (Kind::Damaged, "retention-blocked", at("06:10:00"))] {
        let claim = journal.begin(&NewRun::manual(&plan.name, Job::Prune, "t", time), time).unwrap();
        let error = ErrorRecord { kind: kind.word().into(), message: "nothing is deleted: x".into(), causes: vec![], hint: None };
        journal.close(claim, &Ending { error: Some(error), ..Ending::new(State::Failed) }, time).unwrap();
        let status = judged(&journal_facts(&plan, &journal, at("06:50:00")));
        assert!(message(&status, told).contains("nothing is deleted: x"), "{status:?}");
    }
}

#[test]
fn the_most_telling_problem_makes_the_exit() {
    let of = |problems: &[(&str, Option<Job>)]| {
        let made = |(kind, job): &(&str, Option<Job>)| {
            let job = job.map(|job| job.word().to_owned());
            Problem { kind: (*kind).to_owned(), job, message: String::new() }
        };
        exit(&PlanStatus { problems: problems.iter().map(made).collect(), ..judged(&Facts::default()) })
    };
    assert_eq!(of(&[("overdue", None), ("failed", Some(Job::Verify))]), Some(Kind::Damaged));
    assert_eq!(of(&[("incomplete", Some(Job::Backup)), ("failed", Some(Job::Backup)), ("missed", None)]), Some(Kind::ObjectiveMissed));
    assert_eq!(of(&[("incomplete", Some(Job::Backup)), ("wrong-key", None)]), Some(Kind::Failed));
    assert_eq!(of(&[("incomplete", Some(Job::Backup))]), Some(Kind::Incomplete));
    assert_eq!(of(&[("something-new", None)]), Some(Kind::Failed), "what is not known is not fine");
}

/// A drill that measured.
fn measured(day: &str, snapshot: SnapshotId, bytes: u64, ms: u64) -> ReportRecord {
    let time: DateTime<Utc> = format!("2026-11-{day}T05:00:00Z").parse().unwrap();
    let id = ReportId::generate(time);
    let document = json!({
        "schema": "lifeboat.drill/1", "id": id, "plan": "crm", "host": "h", "snapshot": snapshot, "snapshot_time": time, "snapshot_age_ms": 0,
        "time": time, "verdict": "passed", "reasons": [], "failure": null, "recovery_time_ms": ms, "data_loss_ms": 0, "duration_ms": ms,
        "bytes_restored": bytes, "entries_restored": 1, "phases": [], "checks": [], "objectives": [], "skipped": [], "missing": [],
        "warnings": [], "cleanup": { "removed": true, "kept": null, "kept_until": null, "message": "removed" }, "seed": null, "exit": null,
        "program": "test",
    });
    serde_json::from_value::<crate::ops::drill::DrillReport>(document.clone()).unwrap();
    ReportRecord { id, kind: ReportKind::Drill, time, plan: Some("crm".into()), snapshots: vec![snapshot], passed: true, document }
}

#[test]
fn a_recovery_that_will_be_too_slow_is_foretold_and_one_that_is_too_slow_is_told() {
    let grown = |day: u64| {
        let mut made = manifest("11:30:00", "db", &[]);
        made.time = format!("2026-11-{day:02}T11:30:00Z").parse().unwrap();
        made.sources[0].bytes = (100 + day) << 30;
        made
    };
    let manifests: Vec<Manifest> = (1..=20).map(grown).collect();
    let newest = manifests.last().unwrap().id;
    // 10 s for each GiB: 1,200 s now, and 10 s more each day.
    let reports: Vec<ReportRecord> = ["02", "06", "10", "14", "18"]
        .iter()
        .map(|day| measured(day, newest, (100 + day.parse::<u64>().unwrap()) << 30, (100 + day.parse::<u64>().unwrap()) * 10_000))
        .collect();
    let judge = |limit: u64| {
        let mut plan = Plan::clone(&plan());
        plan.objectives.recovery_time = Some(Duration::from_secs(limit));
        assess(&plan, &facts(&manifests, &reports), at("12:00:00"))
    };
    let far = judge(3600);
    assert_eq!(kinds(&far), Vec::<&str>::new(), "{far:?}");
    let forecast = far.forecast.unwrap();
    assert_eq!((forecast.drills, forecast.growth_bytes_per_day), (5, Some(1 << 30)), "{forecast:?}");
    let near = judge(1300);
    assert_eq!(kinds(&near), ["recovery-time-forecast"], "{near:?}");
    let text = message(&near, "recovery-time-forecast");
    assert!(text.contains("on 2026-11-30") && text.contains("1200 s are expected, 1300 s are allowed"), "{text}");
    assert_eq!(exit(&near), Some(Kind::Failed));
    assert_eq!(kinds(&judge(1000)), ["recovery-time-objective"], "it is missed already: not foretold as well");
}

#[test]
fn a_drill_that_did_not_wait_for_the_server_measures_nothing_of_it() {
    let mut made = manifest("11:30:00", "db", &[]);
    made.sources[0].kind = "postgres".into();
    let mut old = measured("18", made.id, 1 << 30, 10_000);
    let mut new = measured("19", made.id, 1 << 30, 90_000);
    old.document["phases"] = json!([{ "name": "fetch", "duration_ms": 10_000 }, { "name": "check", "duration_ms": 80_000 }]);
    new.document["phases"] = json!([{ "name": "fetch", "duration_ms": 10_000 }, { "name": "replay", "duration_ms": 80_000 }]);
    let measured_of = |plan: &Plan, reports: &[ReportRecord]| {
        let status = assess(plan, &facts(std::slice::from_ref(&made), reports), at("12:00:00"));
        (status.recovery_time_ms, status.forecast.unwrap().drills)
    };
    let server = plan_of("kind = \"postgres\"\nurl = { env = \"NONE\" }");
    assert_eq!(measured_of(&server, std::slice::from_ref(&old)), (None, 0));
    assert_eq!(measured_of(&server, &[old.clone(), new]), (Some(90_000), 1));
    assert_eq!(measured_of(&plan(), &[old]), (Some(10_000), 1), "what is no server was recovered then");
}

#[test]
fn a_backup_that_comes_too_late_is_told_before_the_objective_is_missed() {
    let made = manifest("11:05:00", "db", &[]);
    let judge = |next: Option<&str>, now: &str| {
        let mut known = facts(std::slice::from_ref(&made), &[drill("11:06:00", made.id, true)]);
        known.next = next.map(|next| (Job::Backup, at(next))).into_iter().collect();
        assess(&plan(), &known, at(now))
    };
    assert_eq!(kinds(&judge(Some("12:00:00"), "11:59:00")), Vec::<&str>::new(), "it comes in time");
    assert_eq!(kinds(&judge(Some("13:00:00"), "11:50:00")), Vec::<&str>::new(), "there is time");
    let late = judge(Some("13:00:00"), "11:59:00");
    assert_eq!(kinds(&late), ["data-loss-forecast"], "{late:?}");
    assert!(message(&late, "data-loss-forecast").contains("before 2026-11-20T12:05:00Z"), "{late:?}");
    assert_eq!(kinds(&judge(None, "11:59:00")), ["data-loss-forecast"]);
    assert_eq!(kinds(&judge(Some("13:00:00"), "12:06:00")), ["data-loss-objective"]);
}

fn log_status(durable_to: Lsn, clock: &str) -> LogStatus {
    let value = json!({
        "schema": "lifeboat.log/1", "plan": "crm", "source": "db", "time": at("12:00:00"), "connected": true, "timeline": 1,
        "durable_to": durable_to, "server_end": durable_to, "lag_bytes": 0, "newest_commit": null, "server_clock": at(clock),
        "held_bytes": null, "safe_bytes": null, "wal_status": null, "slot": "s", "gaps": [], "error": null,
    });
    serde_json::from_value(value).unwrap()
}

/// How much a disaster would lose, as the log makes it: of a plan whose only source is `db`.
fn lost_with(reach: Option<Reach>, log: Option<LogStatus>) -> Option<DateTime<Utc>> {
    let made = manifest("11:30:00", "db", &[]);
    let mut facts = facts(std::slice::from_ref(&made), &[]);
    let Some(Ok(stored)) = &mut facts.repository else { panic!("no repository") };
    Arc::make_mut(stored).reaches = reach.into_iter().map(|reach| (Name::new("db").unwrap(), reach)).collect();
    let mut status = judged(&facts);
    status.logs = log.into_iter().collect();
    let Some(Ok(stored)) = &facts.repository else { panic!("no repository") };
    covered(&plan(), stored, &status)
}

fn joined(end: u64) -> Reach {
    Reach {
        has_log: true,
        point: Lsn(100),
        end: Lsn(end),
        timeline: 1,
        moment: (end > 100).then(|| at("11:50:00")),
        destroyed: false,
        behind: None,
        short: None,
        forks: Vec::new(),
    }
}

#[test]
fn log_counts_only_where_it_goes_on_from_the_newest_whole_snapshot() {
    let streamed = || Some(log_status(Lsn(200), "11:59:59"));
    assert_eq!(lost_with(Some(joined(200)), streamed()), Some(at("11:59:59")));
    assert_eq!(lost_with(Some(joined(200)), None), Some(at("11:50:00")), "archived by the server");
    assert_eq!(lost_with(Some(joined(150)), streamed()), Some(at("11:50:00")), "the stream's end is not what the repository leads to");
    assert_eq!(lost_with(Some(Reach { timeline: 2, ..joined(200) }), streamed()), Some(at("11:50:00")));
    assert_eq!(lost_with(Some(joined(100)), streamed()), None, "nothing goes on from the snapshot");
    let holed = Reach { behind: Some(Lsn(300)), ..joined(200) };
    assert_eq!(lost_with(Some(holed), streamed()), Some(at("11:50:00")), "up to the hole, whatever a stream has behind it");
    assert_eq!(lost_with(Some(Reach { behind: Some(Lsn(300)), ..joined(100) }), streamed()), None, "a hole at the snapshot");
    assert_eq!(lost_with(None, streamed()), None);
}

#[test]
fn a_log_that_is_not_stored_or_has_a_hole_is_told() {
    let told = |reach: Reach| {
        let problems = stored_log_problems(&Name::new("db").unwrap(), Some(&reach), Some(at("11:44:59")), at("12:00:00"));
        problems.into_iter().map(|problem| (problem.kind, problem.message)).next()
    };
    assert_eq!(told(joined(200)), None);
    assert_eq!(told(joined(100)), None, "it has not come to the snapshot yet");
    let late = Reach { short: Some(Lsn(80)), ..joined(100) };
    let (kind, short) = told(late.clone()).unwrap();
    assert!(kind == "log-not-streamed" && short.contains("ends at 0/50, before the newest whole snapshot"), "{short}");
    let young = stored_log_problems(&Name::new("db").unwrap(), Some(&late), Some(at("11:46:00")), at("12:00:00"));
    assert!(young.is_empty(), "it may come yet: {young:?}");
    assert_eq!(told(Reach::default()).unwrap().0, "log-not-streamed");
    let (kind, hole) = told(Reach { behind: Some(Lsn(300)), ..joined(200) }).unwrap();
    assert!(kind == "log-gap" && hole.contains("from 0/C8 to 0/12C"), "{hole}");
    let (kind, apart) = told(Reach { behind: Some(Lsn(300)), ..joined(100) }).unwrap();
    assert!(kind == "log-gap" && apart.contains("does not go on from the newest whole snapshot"), "{apart}");
    let fork = Fork { timeline: 1, left_at: Lsn(120), to: Lsn(140), newest: 2 };
    let (kind, two) = told(Reach { forks: vec![fork], ..joined(200) }).unwrap();
    assert!(
        kind == "log-fork"
            && two.contains("timeline 1 up to 0/8C")
            && two.contains("timeline 2, which is followed, went another way at 0/78"),
        "{two}"
    );
}
