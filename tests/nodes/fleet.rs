//! What the journal is asked for thousands of plans, on both kinds of it: as many questions as for one plan, and the answers that its rows give.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::daemon::journal::faults::Faults;
use lifeboat::daemon::journal::{Ending, ErrorRecord, Filter, Job, Journal, Known, NewRun, Run, ScheduleKey, State, Trigger};
use lifeboat::daemon::scheduler::PastSlot;
use lifeboat::daemon::status;
use lifeboat::error::Kind;
use lifeboat::event::{Cancel, Silent};
use lifeboat::id::{Name, RunId};
use lifeboat::ops::CommitGate;
use lifeboat::ops::resolve::Surroundings;
use lifeboat::plan::Plans;

use crate::support::postgres::{Cluster, distribution_version};

const LEASE: TimeDelta = TimeDelta::minutes(2);

/// Numbers that a seed decides (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }

    fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}

fn at(minute: usize) -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000 + i64::try_from(minute).unwrap() * 60, 0).unwrap()
}

/// Runs of all kinds and endings, some at the same moment, some that go on.
fn play(journal: &Journal, plans: &[Name], dice: &mut Dice) {
    let kinds = [Kind::Usage, Kind::WrongKey, Kind::NoRecoveryPoint, Kind::Unavailable, Kind::Damaged];
    for _ in 0..150 {
        let (plan, job, minute) = (dice.one_of(plans), dice.one_of(&Job::ALL), dice.below(60));
        if dice.below(12) == 0 {
            journal.missed(&plan, job, at(minute), "x", at(minute)).unwrap();
            continue;
        }
        let run = if dice.below(2) == 0 {
            NewRun::manual(&plan, job, "t", at(minute))
        } else {
            NewRun::of_slot(&plan, job, Trigger::Schedule, at(dice.below(60)), RunId::generate(at(minute)))
        };
        let claim = match journal.begin(&run, at(minute)) {
            Ok(claim) => claim,
            Err(error) => {
                assert_eq!(error.kind(), Kind::Busy, "{error:?}");
                continue;
            }
        };
        let state = dice.one_of(&[State::Succeeded, State::Incomplete, State::Failed, State::Failed, State::Interrupted, State::Running]);
        let kind = dice.one_of(&kinds);
        let error = ErrorRecord { kind: kind.word().into(), message: "x".into(), causes: Vec::new(), hint: None };
        let error = (state == State::Failed).then_some(error);
        if state != State::Running || dice.below(4) > 0 {
            let state = if state == State::Running { State::Succeeded } else { state };
            journal.close(claim, &Ending { error, ..Ending::new(state) }, at(minute)).unwrap();
        }
    }
}

/// What a person who reads all rows would say.
fn newest(rows: &[Run], plan: &Name, job: Job, state: State) -> Option<RunId> {
    let mistyped = |run: &Run| {
        let usage = job != Job::Backup && run.kind.as_deref() == Some("usage");
        let other = matches!(run.kind.as_deref(), Some("wrong-key" | "no-recovery-point"));
        run.state == State::Failed && run.trigger == Trigger::Manual && (usage || other)
    };
    rows.iter().find(|run| run.plan == *plan && run.job == job && run.state == state && !mistyped(run)).map(|run| run.id)
}

fn bulk_answers_are_what_the_rows_say(journal: &Journal, seed: u64) {
    let mut dice = Dice(seed);
    let plans: Vec<Name> = ["a", "b", "B", "b-1", "nothing"].iter().map(|name| Name::new(*name).unwrap()).collect();
    play(journal, &plans[..4], &mut dice);
    let rows = journal.runs(&Filter::default()).unwrap();
    let asked: Vec<&Name> = plans.iter().filter(|name| name.as_str() != "a").collect();
    let later = DateTime::from_timestamp(4_000_000_000, 0).unwrap();
    let found = journal.newest(&asked, later).unwrap();
    let each = journal.newest(&[&plans[1]], later).unwrap();
    let mut answers = 0;
    for job in Job::ALL {
        for state in [State::Running, State::Succeeded, State::Incomplete, State::Failed, State::Interrupted, State::Missed] {
            for plan in &asked {
                let expected = newest(&rows, plan, job, state);
                assert_eq!(found.of(plan, job, state).map(|run| run.id), expected, "seed {seed}: {plan} {job:?} {state:?}");
                let whole = expected.map(|id| journal.run(id).unwrap());
                assert_eq!(found.of(plan, job, state), whole.as_ref(), "seed {seed}: all of the row");
                answers += usize::from(expected.is_some());
            }
            assert_eq!(each.of(&plans[1], job, state), found.of(&plans[1], job, state), "seed {seed}: alone or with others");
            assert!(found.of(&plans[0], job, state).is_none(), "not asked about");
        }
    }
    assert!(answers > 40, "seed {seed}: {answers}");
    let key = |plan: &Name, job, text: &str| ScheduleKey { plan: plan.clone(), job, expression: text.into() };
    let followed: Vec<ScheduleKey> = plans[1..3].iter().flat_map(|plan| Job::ALL.map(|job| key(plan, job, "then"))).collect();
    journal.follow(&followed, at(5)).unwrap();
    for minute in [0, 20, 90] {
        let keys: Vec<ScheduleKey> = plans.iter().flat_map(|plan| [key(plan, Job::Backup, "then"), key(plan, Job::Drill, "now")]).collect();
        let known = journal.known(&keys, at(minute)).unwrap();
        for (key, known) in keys.iter().zip(&known) {
            let slots = rows.iter().filter(|run| run.plan == key.plan && run.job == key.job);
            let last = slots.filter(|run| run.scheduled.is_some_and(|slot| slot <= at(minute))).max_by_key(|run| run.scheduled);
            let since = (plans[1..3].contains(&key.plan) && key.expression == "then").then(|| at(5));
            assert_eq!(*known, Known { since, last: last.and_then(PastSlot::of_run) }, "seed {seed}: {key:?} at {minute}");
        }
    }
}

/// How many questions the status of so many plans is.
fn questions(journal: &Journal, faults: &Faults, count: usize) -> u64 {
    let mut text = "version = 1\n[repository.main]\nurl = \"file:///nowhere/r\"\npassphrase = { env = \"LIFEBOAT_NONE\" }\n[source.a]\nkind = \"files\"\npath = \"/nowhere\"\n".to_owned();
    for number in 0..count {
        let _ = writeln!(
            text,
            "[plan.p{number}]\nsource = \"a\"\nrepository = \"main\"\nschedule = \"0 2 * * *\"\ntimezone = \"UTC\"\n[plan.p{number}.drill]\nschedule = \"0 3 * * *\""
        );
    }
    let plans = Plans::from_text(&text).unwrap();
    for plan in plans.plans.keys().take(3) {
        let claim = journal.begin(&NewRun::manual(plan, Job::Backup, "t", at(0)), at(0)).unwrap();
        journal.close(claim, &Ending::new(State::Succeeded), at(1)).unwrap();
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let surroundings = Surroundings {
        state: journal.state_folder().to_owned(),
        runtime: runtime.handle().clone(),
        clock: Arc::new(lifeboat::clock::SystemClock),
        progress: Arc::new(Silent),
        cancel: Cancel::default(),
        gate: CommitGate::default(),
    };
    let before = faults.reads();
    let status = status::gather(&plans, Some(journal), &surroundings, false).unwrap();
    let asked = faults.reads() - before;
    assert_eq!(status.plans.len(), count);
    let backed_up: BTreeMap<&str, bool> = status.plans.iter().map(|plan| (plan.name.as_str(), plan.last_success.is_some())).collect();
    assert!(backed_up["p0"] && backed_up.values().filter(|known| **known).count() >= count.min(3));
    assert!(status.plans.iter().all(|plan| plan.next_run.is_some()));
    asked
}

#[test]
fn a_question_is_of_all_plans_at_once_and_its_answer_is_what_the_rows_say() {
    let seed = std::env::var("LIFEBOAT_SEED").map_or_else(|_| u64::from(std::process::id()), |text| text.parse().unwrap());
    println!("LIFEBOAT_SEED={seed}");
    let cluster = Cluster::start(distribution_version());
    let folder = tempfile::tempdir().unwrap();
    for round in 0..2 {
        let embedded = Journal::open(&folder.path().join(format!("embedded-{round}")), at(0)).unwrap();
        bulk_answers_are_what_the_rows_say(&embedded, seed + round);
    }
    let shared = Journal::shared(cluster.tcp_settings(), &folder.path().join("shared"), "n".into(), LEASE).unwrap();
    bulk_answers_are_what_the_rows_say(&shared, seed + 2);

    let faults = Faults::default();
    let embedded = Journal::with_faults(&folder.path().join("counted"), faults.clone(), at(0)).unwrap();
    let (one, many) = (questions(&embedded, &faults, 1), questions(&embedded, &faults, 700));
    assert!(one == many && one < 8, "{one} and {many} questions to the embedded journal");
    let faults = Faults::default();
    let place = folder.path().join("counted-shared");
    let shared = Journal::shared_with_faults(cluster.tcp_settings(), &place, "m".into(), LEASE, faults.clone()).unwrap();
    let (one, many) = (questions(&shared, &faults, 1), questions(&shared, &faults, 700));
    assert!(one == many && one < 8, "{one} and {many} questions to the shared journal");
}
