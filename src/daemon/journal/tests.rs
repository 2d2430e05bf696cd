//! The journal's rules on its embedded form; those of several machines are in `tests/`.

use super::*;
use std::os::unix::fs::PermissionsExt;

fn now() -> DateTime<Utc> {
    "2026-11-20T02:15:00Z".parse().unwrap()
}

fn later(seconds: i64) -> DateTime<Utc> {
    now() + chrono::TimeDelta::seconds(seconds)
}

fn slot_run(trigger: Trigger) -> NewRun {
    NewRun::of_slot(&Name::new("crm").unwrap(), Job::Backup, trigger, now(), RunId::generate(now()))
}

fn manual(job: Job) -> NewRun {
    NewRun::manual(&Name::new("crm").unwrap(), job, "tester", now())
}

#[test]
fn a_run_is_there_before_it_ends_and_complete_after() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), now()).unwrap();
    let claim = journal.begin(&manual(Job::Backup), now()).unwrap();
    let other = Journal::open(folder.path(), now()).unwrap();
    assert_eq!(other.run(claim.id).unwrap().state, State::Running);
    let ending = Ending {
        phases: vec![Phase { name: "read".into(), duration_ms: 5, bytes: 7 }],
        warnings: vec!["w".into()],
        bytes_read: Some(10),
        bytes_stored: Some(3),
        snapshot: Some("s".into()),
        ..Ending::new(State::Succeeded)
    };
    journal.close(claim, &ending, later(3)).unwrap();
    let run = other.run(claim.id).unwrap();
    assert_eq!((run.state, run.ended, run.bytes_read, run.bytes_stored), (State::Succeeded, Some(later(3)), Some(10), Some(3)));
    assert_eq!((run.phases, run.warnings, run.snapshot.as_deref()), (ending.phases, ending.warnings, Some("s")));
    assert_eq!(run.process, Process::this());
    assert_eq!(journal.close(claim, &Ending::new(State::Failed), later(4)).unwrap_err().kind(), Kind::Bug);
}

#[test]
fn files_are_private() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("a/b");
    let journal = Journal::open(&state, now()).unwrap();
    journal.begin(&manual(Job::Backup), now()).unwrap();
    assert_eq!(std::fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
    for file in std::fs::read_dir(&state).unwrap().map(|entry| entry.unwrap()) {
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{} is {mode:o}", file.path().display());
    }
}

#[test]
fn what_was_mistyped_is_in_the_history_and_no_failure_of_the_plan() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), now()).unwrap();
    let mut second = 0;
    let mut failed = |new: &NewRun, kind| {
        second += 1;
        let claim = journal.begin(new, later(second)).unwrap();
        journal.close(claim, &Ending::of_error(&Error::new(kind, "x")), later(second)).unwrap();
        claim.id
    };
    let last = |job| journal.last_failed(&Name::new("crm").unwrap(), job).unwrap().map(|run| run.id);
    let real = failed(&manual(Job::Drill), Kind::Damaged);
    for kind in [Kind::Usage, Kind::NoRecoveryPoint, Kind::WrongKey] {
        failed(&manual(Job::Drill), kind);
        assert_eq!(last(Job::Drill), Some(real), "what failed before is not hidden either: {kind:?}");
    }
    let wrong = failed(&slot_run(Trigger::Schedule), Kind::WrongKey);
    assert_eq!(last(Job::Backup), Some(wrong), "nobody typed that");
    let usage = failed(&manual(Job::Backup), Kind::Usage);
    assert_eq!(last(Job::Backup), Some(usage), "a backup's usage is the plan's");
    assert_eq!(journal.runs(&Filter::default()).unwrap().len(), 6);
}

#[test]
fn two_backups_of_a_plan_at_once_are_refused_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let first = Journal::open(folder.path(), now()).unwrap();
    let second = Journal::open(folder.path(), now()).unwrap();
    let claim = first.begin(&manual(Job::Backup), now()).unwrap();
    let refused = second.begin(&slot_run(Trigger::Schedule), now()).unwrap_err();
    assert_eq!(refused.kind(), Kind::Busy);
    assert!(refused.to_string().contains(&claim.id.to_string()), "{refused}");
    second.begin(&manual(Job::Drill), now()).unwrap();
    second.begin(&manual(Job::Restore), now()).unwrap();
    second.begin(&manual(Job::Restore), now()).unwrap();
    first.close(claim, &Ending::new(State::Succeeded), now()).unwrap();
    second.begin(&slot_run(Trigger::Schedule), now()).unwrap();
}

#[test]
fn a_dead_owner_leaves_a_broken_run_that_can_be_settled_once() {
    let folder = tempfile::tempdir().unwrap();
    let dead = Journal::open(folder.path(), now()).unwrap();
    let claim = dead.begin(&slot_run(Trigger::Schedule), now()).unwrap();
    let journal = Journal::open(folder.path(), later(60)).unwrap();
    assert!(journal.broken().unwrap().is_empty(), "its owner still lives");
    drop(dead);
    let broken = journal.broken().unwrap();
    assert_eq!(broken.len(), 1);
    let taken = journal.take_over(&broken[0], later(60)).unwrap().unwrap();
    assert!(taken.fence > claim.fence);
    assert_eq!(journal.take_over(&broken[0], later(60)).unwrap(), None, "once");
    assert!(journal.broken().unwrap().is_empty(), "somebody settles it");
    journal.settle(taken, &broken[0], &Ending { story: Some("gone".into()), ..Ending::new(State::Interrupted) }, later(60)).unwrap();
    assert_eq!(journal.run(claim.id).unwrap().story.as_deref(), Some("gone"));
    assert!(journal.broken().unwrap().is_empty());
}

#[test]
fn an_ending_that_could_not_be_written_is_written_later() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), now()).unwrap();
    let claim = journal.begin(&manual(Job::Backup), now()).unwrap();
    journal.0.tables.0.pragma("query_only", 1);
    let ending = Ending { snapshot: Some("s".into()), ..Ending::new(State::Succeeded) };
    journal.close(claim, &ending, later(1)).unwrap_err();
    journal.finish_unfinished().unwrap_err();
    assert!(journal.broken().unwrap().is_empty(), "its ending is known: nothing is to be guessed");
    journal.0.tables.0.pragma("query_only", 0);
    assert_eq!(journal.finish_unfinished().unwrap(), 1);
    let run = journal.run(claim.id).unwrap();
    assert_eq!((run.state, run.ended, run.snapshot.as_deref()), (State::Succeeded, Some(later(1)), Some("s")));
    assert_eq!(journal.finish_unfinished().unwrap(), 0);
    journal.begin(&manual(Job::Backup), later(2)).unwrap();
}

#[test]
fn a_row_of_this_process_that_it_does_not_work_on_is_broken() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), now()).unwrap();
    let claim = journal.begin(&manual(Job::Backup), now()).unwrap();
    assert!(journal.broken().unwrap().is_empty());
    guard(&journal.0.held).clear();
    let broken = journal.broken().unwrap();
    assert_eq!(broken.iter().map(|run| run.id).collect::<Vec<_>>(), [claim.id]);
    let taken = journal.take_over(&broken[0], later(1)).unwrap().unwrap();
    journal.settle(taken, &broken[0], &Ending::new(State::Interrupted), later(1)).unwrap();
    assert!(owner::is_alive(folder.path(), &broken[0].owner).unwrap(), "this process keeps its own lock file");
    journal.begin(&manual(Job::Backup), later(2)).unwrap();
}

#[test]
fn a_retry_is_a_further_attempt_of_the_same_row_and_keeps_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), now()).unwrap();
    let first = journal.begin(&slot_run(Trigger::Schedule), now()).unwrap();
    let error = Error::new(Kind::Unavailable, "reach the store").hint("wait");
    journal.close(first, &Ending::of_error(&error), later(1)).unwrap();
    let second = journal.begin(&slot_run(Trigger::Retry), later(61)).unwrap();
    assert_eq!((second.id, second.attempt), (first.id, 2));
    assert!(second.fence > first.fence);
    assert_eq!(
        journal.close(first, &Ending::new(State::Succeeded), later(62)).unwrap_err().kind(),
        Kind::Bug,
        "a stale claim cannot close"
    );
    journal.close(second, &Ending::new(State::Succeeded), later(62)).unwrap();
    let attempts = journal.attempts(first.id).unwrap();
    assert_eq!(attempts.len(), 1);
    assert_eq!(attempts[0].error.as_ref().unwrap().kind, "unavailable");
    assert_eq!(journal.begin(&slot_run(Trigger::Retry), later(70)).unwrap_err().kind(), Kind::Busy, "a slot that succeeded is done");
}

#[test]
fn a_missed_slot_is_recorded_once_and_never_run() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), now()).unwrap();
    let plan = Name::new("crm").unwrap();
    journal.missed(&plan, Job::Backup, now(), "3 slots", later(9)).unwrap();
    journal.missed(&plan, Job::Backup, now(), "again", later(10)).unwrap();
    let slot = journal.last_slot(&plan, Job::Backup, later(9)).unwrap().unwrap();
    assert_eq!((slot.state, slot.story.as_deref(), slot.scheduled), (State::Missed, Some("3 slots"), Some(now())));
    assert_eq!(journal.begin(&slot_run(Trigger::CatchUp), later(11)).unwrap_err().kind(), Kind::Busy);
}

#[test]
fn a_schedule_is_followed_since_it_was_first_seen_or_changed() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), now()).unwrap();
    let plan = Name::new("crm").unwrap();
    assert_eq!(journal.schedule_since(&plan, Job::Backup, "0 2 * * * UTC", now()).unwrap(), now());
    assert_eq!(journal.schedule_since(&plan, Job::Backup, "0 2 * * * UTC", later(9)).unwrap(), now());
    assert_eq!(journal.schedule_since(&plan, Job::Backup, "0 3 * * * UTC", later(9)).unwrap(), later(9));
}

#[test]
fn a_damaged_journal_says_to_move_it_aside() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILE), vec![b'x'; 8192]).unwrap();
    let error = Journal::open(folder.path(), now()).err().unwrap();
    assert_eq!(error.kind(), Kind::Failed);
    assert!(error.hint_text().unwrap().contains("move it aside"), "{error:?}");
}

#[test]
fn damage_inside_the_journal_is_told_too() {
    let folder = tempfile::tempdir().unwrap();
    drop(Journal::open(folder.path(), now()).unwrap());
    let path = folder.path().join(FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    let error = Journal::open(folder.path(), now()).and_then(|journal| journal.begin(&manual(Job::Backup), now())).unwrap_err();
    assert!(error.hint_text().unwrap().contains("move it aside"), "{error:?}");
}

#[test]
fn a_full_disk_is_no_space() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), now()).unwrap();
    journal.0.tables.0.pragma("max_page_count", 1);
    let error = (0..200)
        .map(|i| journal.missed(&Name::new("crm").unwrap(), Job::Backup, later(i), &"x".repeat(500), now()))
        .find_map(Result::err);
    assert_eq!(error.unwrap().kind(), Kind::NoSpace);
}

#[test]
fn a_journal_of_a_later_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    Journal::open(folder.path(), now()).unwrap().0.tables.0.pragma("user_version", 99);
    let error = Journal::open(folder.path(), now()).err().unwrap();
    assert!(error.to_string().contains("version 99"), "{error}");
}
