//! The journal's rules on its embedded form; those of several machines are in `tests/`.

use super::*;
use crate::daemon::scheduler::PastSlot;
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
    let plan = Name::new("crm").unwrap();
    let last = |job| journal.newest(&[&plan], later(100)).unwrap().of(&plan, job, State::Failed).map(|run| run.id);
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

/// A run that a clock dated ten years ahead hides no later one, and one that goes on is never hidden.
#[test]
fn what_ended_in_the_future_is_the_newest_of_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), now()).unwrap();
    let plan = Name::new("crm").unwrap();
    let years = chrono::TimeDelta::days(3653);
    let run = |time: DateTime<Utc>, ending: Option<Ending>| {
        let claim = journal.begin(&manual(Job::Verify), time).unwrap();
        let id = claim.id;
        if let Some(ending) = ending {
            journal.close(claim, &ending, time).unwrap();
        }
        id
    };
    let newest = |state, now| journal.newest(&[&plan], now).unwrap().of(&plan, Job::Verify, state).map(|run| run.id);
    let real = run(later(1), Some(Ending::new(State::Succeeded)));
    let ahead = run(now() + years, Some(Ending::new(State::Succeeded)));
    let failed = run(later(2), Some(Ending::of_error(&Error::new(Kind::Damaged, "x"))));
    assert_eq!((newest(State::Succeeded, later(3)), newest(State::Failed, later(3))), (Some(real), Some(failed)));
    assert_eq!(newest(State::Succeeded, now() + years), Some(ahead), "at its time it is like any other");
    let running = run(now() + years, None);
    assert_eq!(newest(State::Running, later(3)), Some(running));
}

#[test]
fn the_failed_runs_of_a_plan_are_those_of_all_its_jobs_newest_first() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), now()).unwrap();
    let mut failed = Vec::new();
    for second in 0..8 {
        let job = [Job::Drill, Job::Backup, Job::Verify][usize::try_from(second).unwrap() % 3];
        let claim = journal.begin(&manual(job), later(second)).unwrap();
        let ending = if second == 5 { Ending::new(State::Succeeded) } else { Ending::of_error(&Error::new(Kind::Damaged, "x")) };
        journal.close(claim, &ending, later(second)).unwrap();
        failed.extend((second != 5).then_some(claim.id));
    }
    failed.reverse();
    let asked = |limit, before| {
        let plan = Some(Name::new("crm").unwrap());
        let filter = Filter { plan, state: Some(State::Failed), limit, before, ..Filter::default() };
        journal.runs(&filter).unwrap().iter().map(|run| run.id).collect::<Vec<_>>()
    };
    assert_eq!(asked(0, None), failed);
    assert_eq!(asked(4, None), failed[..4]);
    assert_eq!(asked(2, Some(later(4))), failed[3..5], "a page further on");
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
    let claim = dead.begin(&NewRun { story: Some("stands for a slot".into()), ..slot_run(Trigger::CatchUp) }, now()).unwrap();
    let journal = Journal::open(folder.path(), later(60)).unwrap();
    assert!(journal.broken().unwrap().is_empty(), "its owner still lives");
    drop(dead);
    let broken = journal.broken().unwrap();
    assert_eq!(broken.len(), 1);
    let taken = journal.take_over(&broken[0], later(60)).unwrap().unwrap();
    assert!(taken.fence > claim.fence);
    assert_eq!(journal.take_over(&broken[0], later(60)).unwrap(), None, "once");
    assert!(journal.broken().unwrap().is_empty(), "somebody settles it");
    journal.close(taken, &Ending { story: Some("gone".into()), ..Ending::new(State::Interrupted) }, later(60)).unwrap();
    assert_eq!(journal.run(claim.id).unwrap().story.as_deref(), Some("stands for a slot; gone"), "what it stood for is not lost with it");
    let again = journal.begin(&NewRun { id: claim.id, ..slot_run(Trigger::Retry) }, later(61)).unwrap();
    journal.close(again, &Ending::new(State::Succeeded), later(62)).unwrap();
    assert_eq!(journal.run(claim.id).unwrap().story, None);
    assert_eq!(journal.attempts(claim.id).unwrap()[0].story.as_deref(), Some("stands for a slot; gone"));
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
    journal.close(taken, &Ending::new(State::Interrupted), later(1)).unwrap();
    assert!(owner::is_alive(folder.path(), &broken[0].owner).unwrap(), "this process keeps its own lock file");
    journal.begin(&manual(Job::Backup), later(2)).unwrap();
}

#[test]
fn a_run_that_was_given_back_is_nobodys_for_every_process() {
    let folder = tempfile::tempdir().unwrap();
    let id = {
        let dead = Journal::open(folder.path(), now()).unwrap();
        dead.begin(&slot_run(Trigger::Schedule), now()).unwrap().id
    };
    let (first, second) = (Journal::open(folder.path(), now()).unwrap(), Journal::open(folder.path(), now()).unwrap());
    let of = |journal: &Journal| journal.broken().unwrap().into_iter().next();
    // What cannot be tidied up hides no claim.
    let run = of(&first).unwrap();
    let lock = folder.path().join("owners").join(&run.owner);
    std::os::unix::fs::symlink(&lock, &lock).unwrap();
    let taken = first.take_over(&run, now()).unwrap().unwrap();
    std::fs::remove_file(&lock).unwrap();
    assert!(of(&second).is_none(), "the first one is at it");
    first.give_back(taken, now()).unwrap();
    assert_eq!(of(&second).map(|run| run.id), Some(id));
    assert_eq!(of(&first).map(|run| run.id), Some(id));
    let again = second.take_over(&of(&second).unwrap(), later(1)).unwrap().unwrap();
    assert!(of(&first).is_none() && again.fence > taken.fence);
    second.close(again, &Ending::new(State::Interrupted), later(2)).unwrap();
    assert!(of(&first).is_none() && of(&second).is_none());
}

#[test]
fn a_slot_that_was_cancelled_before_it_began_is_not_tried_again_and_keeps_why_it_failed_before() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), now()).unwrap();
    let fresh = slot_run(Trigger::Schedule);
    journal.slot_cancelled(&fresh, "ann", later(1)).unwrap();
    let run = journal.run(fresh.id).unwrap();
    assert_eq!((run.state, run.story.as_deref()), (State::Interrupted, Some("cancelled by ann before it began")));
    assert!(PastSlot::of_run(&run).unwrap().cancelled);
    let drill = NewRun::of_slot(&Name::new("crm").unwrap(), Job::Drill, Trigger::Schedule, now(), RunId::generate(now()));
    let claim = journal.begin(&drill, now()).unwrap();
    journal.close(claim, &Ending::of_error(&Error::new(Kind::Unavailable, "reach the store")), later(1)).unwrap();
    journal.slot_cancelled(&NewRun { trigger: Trigger::Retry, ..drill }, "ann", later(2)).unwrap();
    let run = journal.run(claim.id).unwrap();
    assert!(PastSlot::of_run(&run).unwrap().cancelled);
    assert_eq!((run.state, run.error.map(|error| error.message)), (State::Failed, Some("reach the store".to_owned())));
}

#[test]
fn a_retry_is_a_further_attempt_of_the_same_row_and_keeps_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), now()).unwrap();
    let first = journal.begin(&slot_run(Trigger::Schedule), now()).unwrap();
    let error = Error::new(Kind::Unavailable, "reach the store").hint("wait");
    journal.close(first, &Ending::of_error(&error), later(1)).unwrap();
    // By the id of its row, as the daemon does it, and by another one.
    let second = journal.begin(&NewRun { id: first.id, ..slot_run(Trigger::Retry) }, later(61)).unwrap();
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
    let slots = journal.runs(&Filter { plan: Some(plan), ..Filter::default() }).unwrap();
    let slots: Vec<_> = slots.iter().map(|slot| (slot.state, slot.story.as_deref(), slot.scheduled)).collect();
    assert_eq!(slots, [(State::Missed, Some("3 slots"), Some(now()))]);
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
fn a_damaged_journal_says_to_rebuild_it() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILE), vec![b'x'; 8192]).unwrap();
    let error = Journal::open(folder.path(), now()).err().unwrap();
    assert_eq!(error.kind(), Kind::Failed);
    assert!(error.hint_text().unwrap().contains("lifeboat run rebuild"), "{error:?}");
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
    assert!(error.hint_text().unwrap().contains("lifeboat run rebuild"), "{error:?}");
}

#[test]
fn a_full_disk_is_no_space() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), now()).unwrap();
    journal.0.tables.0.pragma("max_page_count", 1);
    let error =
        (0..200).map(|i| journal.missed(&Name::new("crm").unwrap(), Job::Backup, later(i), &"x".repeat(500), now())).find_map(Result::err);
    assert_eq!(error.unwrap().kind(), Kind::NoSpace);
}

#[test]
fn a_locked_journal_is_busy_and_an_end_is_recorded_when_it_is_free_again() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), now()).unwrap();
    let claim = journal.begin(&manual(Job::Backup), now()).unwrap();
    journal.0.tables.0.pragma("busy_timeout", 50);
    let other = rusqlite::Connection::open(folder.path().join(FILE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = journal.begin(&manual(Job::Drill), now()).unwrap_err();
    assert!(refused.kind() == Kind::Busy && refused.hint_text().unwrap().contains("another process"), "{refused:?}");
    assert_eq!(journal.heartbeat(claim, now()).unwrap_err().kind(), Kind::Busy);
    assert_eq!(journal.close(claim, &Ending::new(State::Succeeded), later(5)).unwrap_err().kind(), Kind::Busy);
    assert_eq!(journal.run(claim.id).unwrap().state, State::Running, "it can be read all the same");
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(journal.finish_unfinished().unwrap(), 1);
    let run = journal.run(claim.id).unwrap();
    assert_eq!((run.state, run.ended), (State::Succeeded, Some(later(5))));
}

#[test]
fn a_journal_of_a_later_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    Journal::open(folder.path(), now()).unwrap().0.tables.0.pragma("user_version", 99);
    let error = Journal::open(folder.path(), now()).err().unwrap();
    assert!(error.to_string().contains("version 99"), "{error}");
}

#[test]
fn journals_of_every_earlier_version_are_opened_with_all_that_is_in_them() {
    for version in 1..=3 {
        let folder = tempfile::tempdir().unwrap();
        let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/frozen/journal/v{version}.sqlite"));
        std::fs::copy(frozen, folder.path().join(FILE)).unwrap();
        let journal = Journal::open(folder.path(), now()).unwrap();
        let runs = journal.runs(&Filter::default()).unwrap();
        let found: Vec<(&str, Job, State)> = runs.iter().rev().map(|run| (run.plan.as_str(), run.job, run.state)).collect();
        assert_eq!(
            found,
            [
                ("crm", Job::Backup, State::Succeeded),
                ("bad", Job::Backup, State::Failed),
                ("crm", Job::Drill, State::Succeeded),
                ("crm", Job::Verify, State::Succeeded),
                ("slow", Job::Backup, State::Interrupted),
                ("slow", Job::Backup, State::Running),
            ]
        );
        assert!(runs.iter().all(|run| run.announced.is_none()));
        let by = runs.iter().filter_map(|run| run.by.as_deref().map(|by| (run.plan.as_str(), by)));
        assert_eq!(by.collect::<Vec<_>>(), if version == 1 { vec![] } else { vec![("bad", "uid 0")] });
        assert_eq!(journal.nodes(DateTime::from_timestamp_millis(1_795_800_000_000).unwrap()).unwrap().len(), usize::from(version == 3));
        assert_eq!(runs[5].snapshot.as_deref(), Some("01m8hqv1sj58nx2s24pjarvs8n"));
        assert!(runs[4].error.as_ref().unwrap().message.contains("back up source bad"));
        // The killed one is settled, and everything goes on.
        let broken = journal.broken().unwrap();
        assert_eq!(broken.iter().map(|run| run.id).collect::<Vec<_>>(), [runs[0].id]);
        let taken = journal.take_over(&broken[0], now()).unwrap().unwrap();
        assert!(taken.fence > runs[0].fence);
        journal.close(taken, &Ending::new(State::Interrupted), now()).unwrap();
        let claim = journal.begin(&manual(Job::Backup), now()).unwrap();
        journal.close(claim, &Ending::new(State::Succeeded), later(1)).unwrap();
        assert!(claim.fence > taken.fence);
    }
}

#[test]
fn old_runs_are_forgotten_but_not_what_status_needs() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), now()).unwrap();
    let day = |n: i64| now() + TimeDelta::days(n);
    let ended = |new: &NewRun, at: DateTime<Utc>, ending: &Ending| {
        let claim = journal.begin(new, at).unwrap();
        journal.close(claim, ending, at).unwrap();
        claim.id
    };
    let slot = |n| NewRun::of_slot(&Name::new("crm").unwrap(), Job::Backup, Trigger::Schedule, day(n), RunId::generate(day(n)));
    let typed = |n| NewRun::manual(&Name::new("crm").unwrap(), Job::Drill, "tester", day(n));
    let failed = |kind| Ending::of_error(&Error::new(kind, "x"));
    let first_failure = ended(&slot(0), day(0), &failed(Kind::Unavailable));
    ended(&NewRun { trigger: Trigger::Retry, ..slot(0) }, day(0), &failed(Kind::Unavailable));
    assert_eq!(journal.attempts(first_failure).unwrap().len(), 1);
    let last_failure = ended(&slot(1), day(1), &failed(Kind::Damaged));
    for n in 2..40 {
        ended(&slot(n), day(n), &Ending::new(State::Succeeded));
    }
    journal.missed(&Name::new("crm").unwrap(), Job::Backup, day(40), "x", day(41)).unwrap();
    let real = ended(&typed(3), day(3), &failed(Kind::Damaged));
    for n in 4..8 {
        ended(&typed(n), day(n), &failed(Kind::NoRecoveryPoint));
    }
    let live = journal.begin(&NewRun::manual(&Name::new("other").unwrap(), Job::Backup, "tester", day(0)), day(0)).unwrap();
    let all = journal.runs(&Filter::default()).unwrap().len();
    assert_eq!(journal.forget(day(-1)).unwrap(), 0);
    // Ten days of history: what is left of the rest is what status asks for.
    let gone = journal.forget(day(30)).unwrap();
    let left = journal.runs(&Filter { before: Some(day(30)), ..Filter::default() }).unwrap();
    assert_eq!(usize::try_from(gone).unwrap() + journal.runs(&Filter::default()).unwrap().len(), all);
    let kept: BTreeSet<RunId> = left.iter().map(|run| run.id).collect();
    let last_typed = left.iter().filter(|run| run.job == Job::Drill).map(|run| run.started).max();
    assert_eq!(last_typed, Some(day(7)));
    assert_eq!(kept, BTreeSet::from([last_failure, real, live.id, left.iter().find(|run| run.started == day(7)).unwrap().id]));
    assert!(journal.attempts(first_failure).unwrap().is_empty(), "attempts go with their run");
    let crm = Name::new("crm").unwrap();
    let key = ScheduleKey { plan: crm.clone(), job: Job::Backup, expression: "x".into() };
    let last_slot = || journal.known(std::slice::from_ref(&key), day(99)).unwrap()[0].last.unwrap();
    assert_eq!(journal.newest(&[&crm], day(99)).unwrap().of(&crm, Job::Drill, State::Failed).unwrap().id, real);
    assert_eq!(last_slot().state, State::Missed);
    // Even if all is old.
    journal.forget(day(9999)).unwrap();
    assert_eq!(journal.newest(&[&crm], day(99)).unwrap().of(&crm, Job::Backup, State::Succeeded).unwrap().started, day(39));
    assert_eq!(last_slot().slot, day(40));
    assert_eq!(journal.run(live.id).unwrap().state, State::Running);
}

#[test]
fn a_named_lease_is_held_by_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (Journal::open(folder.path(), now()).unwrap(), Journal::open(folder.path(), now()).unwrap());
    let ttl = TimeDelta::seconds(30);
    assert!(one.hold("alarms", ttl, now()).unwrap());
    assert!(!two.hold("alarms", ttl, later(29)).unwrap());
    assert!(one.hold("alarms", ttl, later(29)).unwrap(), "prolonged");
    assert!(!two.hold("alarms", ttl, later(31)).unwrap());
    assert!(two.hold("other", ttl, later(31)).unwrap());
    assert!(two.hold("alarms", ttl, later(60)).unwrap(), "it ran out");
    one.let_go("alarms", later(60)).unwrap();
    assert!(!one.hold("alarms", ttl, later(61)).unwrap(), "not its own any more");
}

#[test]
fn a_run_is_found_by_the_beginning_of_its_id() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), now()).unwrap();
    let first = journal.begin(&manual(Job::Restore), now()).unwrap().id.to_string();
    assert_eq!(journal.find(&first[..12].to_uppercase()).unwrap().id.to_string(), first);
    journal.begin(&manual(Job::Restore), now()).unwrap();
    assert_eq!(journal.find(&first[..6]).unwrap_err().kind(), Kind::Usage, "two begin so");
    for odd in ["", "zz", "%", "a~", "'"] {
        assert_eq!(journal.find(odd).unwrap_err().kind(), Kind::NotFound, "{odd:?}");
    }
}

#[test]
fn an_answer_that_was_lost_leaves_nothing_in_between() {
    use crate::daemon::journal::faults::{Effect, Faults};
    let folder = tempfile::tempdir().unwrap();
    let faults = Faults::default();
    let journal = Journal::with_faults(folder.path(), faults.clone(), now()).unwrap();
    faults.at(1, Effect::FailAfter(Kind::Unavailable));
    assert_eq!(journal.begin(&slot_run(Trigger::Schedule), now()).unwrap_err().kind(), Kind::Unavailable);
    let broken = journal.broken().unwrap();
    assert_eq!(broken.len(), 1, "a claim that nobody heard of is in no one's hands");
    let taken = journal.take_over(&broken[0], now()).unwrap().unwrap();
    journal.close(taken, &Ending::new(State::Interrupted), now()).unwrap();
    let claim = journal.begin(&slot_run(Trigger::Retry), later(1)).unwrap();
    faults.always(Effect::FailAfter(Kind::Unavailable));
    assert!(journal.close(claim, &Ending::new(State::Succeeded), later(2)).is_err());
    faults.clear();
    assert_eq!(journal.finish_unfinished().unwrap(), 1);
    assert_eq!(journal.run(claim.id).unwrap().state, State::Succeeded);
    assert!(journal.broken().unwrap().is_empty());
}

#[test]
fn schedules_are_followed_all_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), now()).unwrap();
    let plan = Name::new("crm").unwrap();
    let key = |job, expression: &str| ScheduleKey { plan: plan.clone(), job, expression: expression.into() };
    let keys = [key(Job::Backup, "0 2 * * * UTC"), key(Job::Drill, "0 3 * * * UTC")];
    assert_eq!(journal.follow(&keys, now()).unwrap(), [Followed { since: now(), last: None }; 2]);
    let claim = journal.begin(&slot_run(Trigger::Schedule), later(1)).unwrap();
    journal.close(claim, &Ending::of_error(&Error::new(Kind::Unavailable, "away")), later(2)).unwrap();
    let changed = [key(Job::Backup, "0 2 * * * UTC"), key(Job::Drill, "0 4 * * * UTC")];
    let found = journal.follow(&changed, later(9)).unwrap();
    let last = PastSlot::new(claim.id, now(), State::Failed, 1, Some(later(2)), Some("unavailable"));
    assert_eq!(found, [Followed { since: now(), last: Some(last) }, Followed { since: later(9), last: None }]);
    let before = journal.follow(&keys[..1], now() - TimeDelta::seconds(1)).unwrap();
    assert_eq!(before[0].last, None, "a slot of the future does not count");
    // Many at once.
    let many: Vec<ScheduleKey> =
        (0..1234).map(|n| ScheduleKey { plan: Name::new(format!("p{n}")).unwrap(), job: Job::Backup, expression: "x".into() }).collect();
    assert_eq!(journal.follow(&many, later(20)).unwrap().len(), 1234);
    assert!(journal.follow(&many, later(30)).unwrap().iter().all(|followed| followed.since == later(20)));
}
