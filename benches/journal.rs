//! The journal at scale: how long it takes to open, and to answer what `run history` and `status` ask, at millions of runs; and how evenly and how
//! quickly four nodes share the slots of thousands of plans on one PostgreSQL.
//!
//! ```text
//! cargo bench --bench journal -- runs 10000000
//! cargo bench --bench journal -- nodes 2000
//! ```

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark fails by it and prints what it measures")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::clock::ManualClock;
use lifeboat::daemon::gone;
use lifeboat::daemon::journal::{Ending, FILE, Filter, Job, Journal, NewRun, ScheduleKey, State, Trigger};
use lifeboat::daemon::status::{self, Heard};
use lifeboat::error::Kind;
use lifeboat::event::{Cancel, Silent};
use lifeboat::id::{Name, RunId};
use lifeboat::ops::CommitGate;
use lifeboat::ops::resolve::Surroundings;
use lifeboat::plan::{Plan, Plans};
use support::postgres::{Cluster, distribution_version};

const PLANS: u32 = 2000;

fn main() {
    // The test suite starts benchmarks too.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let number = |default| words.get(1).and_then(|text| text.parse().ok()).unwrap_or(default);
    match words.first().map(String::as_str) {
        Some("runs") => runs(number(1_000_000)),
        Some("nodes") => nodes(number(2000)),
        // Small, to see that it works.
        _ => {
            runs(10_000);
            nodes(40);
        }
    }
}

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000, 0).unwrap()
}

/// Rows as the journal writes them, without a transaction for each.
fn fill(folder: &Path, count: u32) -> DateTime<Utc> {
    drop(Journal::open(folder, start()).unwrap());
    let mut connection = rusqlite::Connection::open(folder.join(FILE)).unwrap();
    connection.execute_batch("PRAGMA synchronous = off; PRAGMA cache_size = -400000").unwrap();
    // Made at the end: each row in its place of every index takes several times as long.
    let indexes: Vec<(String, String)> = {
        let mut all =
            connection.prepare("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'runs' AND sql > ''").unwrap();
        all.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
    };
    indexes.iter().for_each(|(name, _)| connection.execute_batch(&format!("DROP INDEX {name}")).unwrap());
    let every = TimeDelta::milliseconds(i64::from(86_400_000 / 2000));
    let mut last = start();
    let mut from = 0;
    while from < count {
        let transaction = connection.transaction().unwrap();
        {
            let mut insert = transaction
                .prepare_cached(
                    "INSERT INTO runs (id, plan, job, trigger, scheduled_ms, attempt, exclusive, state, started_ms, ended_ms, kind, error, story,
                        phases, warnings, bytes_read, bytes_stored, snapshot, report, node, owner, host, pid, boot_id, start_ticks,
                        lease_until_ms, fence, started_by, announced, place)
                     VALUES (?1, ?2, ?3, 'schedule', ?4, 1, 1, ?5, ?4, ?4 + 60000, ?6, ?7, NULL, ?8, '[]', 1000000, 1000, ?1, NULL, 'node-1',
                        '01arz3ndektsv4rrffq69g5fav', 'host-1', 4711, '8a0c7a2e-0000-4000-8000-000000000000', 12345, ?4, ?9, 'daemon', ?1, 'p')",
                )
                .unwrap();
            for n in from..(from + 200_000).min(count) {
                let at = start() + every * i32::try_from(n).unwrap();
                last = at;
                // Not by the same numbers as the plan: each plan has runs of each job and state.
                let turn = n / PLANS + n % PLANS;
                let job = if turn.is_multiple_of(16) { "drill" } else { "backup" };
                let failed = turn % 50 < 2;
                insert
                    .execute(rusqlite::params![
                        RunId::generate(at).to_string(),
                        format!("plan-{}", n % PLANS),
                        job,
                        at.timestamp_millis(),
                        if failed { "failed" } else { "succeeded" },
                        failed.then_some("unavailable"),
                        failed.then_some(r#"{"kind":"unavailable","message":"reach the store","causes":[],"hint":null}"#),
                        r#"[{"name":"snapshot","duration_ms":5,"bytes":0},{"name":"read","duration_ms":50000,"bytes":1000000},{"name":"commit","duration_ms":500,"bytes":0}]"#,
                        n,
                    ])
                    .unwrap();
            }
        }
        transaction.commit().unwrap();
        from += 200_000;
    }
    indexes.iter().for_each(|(_, sql)| connection.execute_batch(sql).unwrap());
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    last
}

fn timed<T>(what: &str, mut work: impl FnMut() -> T) -> T {
    let began = Instant::now();
    let first = work();
    let cold = began.elapsed();
    let mut times: Vec<Duration> = (0..20)
        .map(|_| {
            let began = Instant::now();
            work();
            began.elapsed()
        })
        .collect();
    times.sort();
    println!("{what:58} first {cold:>10.2?}  median {:>10.2?}  worst {:>10.2?}", times[10], times[19]);
    first
}

/// So many of the plans whose runs are in the journal, on repositories that nobody can open.
fn plans(count: u32) -> Plans {
    use std::fmt::Write as _;
    let mut text = "version = 1\n[source.a]\nkind = \"files\"\npath = \"/nowhere\"\n".to_owned();
    for number in 0..count.min(20) {
        let _ = writeln!(text, "[repository.r{number}]\nurl = \"file:///nowhere/{number}\"\npassphrase = {{ env = \"LIFEBOAT_NONE\" }}");
    }
    for number in 0..count {
        let _ = writeln!(
            text,
            "[plan.plan-{number}]\nsource = \"a\"\nrepository = \"r{}\"\nschedule = \"{} 2 * * *\"\ntimezone = \"UTC\"\n[plan.plan-{number}.drill]\nschedule = \"0 4 * * sun\"",
            number % 20,
            number % 60
        );
    }
    Plans::from_text(&text).unwrap()
}

fn runs(count: u32) {
    let folder = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let now = fill(folder.path(), count) + TimeDelta::minutes(5);
    let bytes = std::fs::metadata(folder.path().join(FILE)).unwrap().len();
    println!("{count} runs of {PLANS} plans made in {:.1?}, {} MB", began.elapsed(), bytes / 1_000_000);
    timed("open", || Journal::open(folder.path(), now).unwrap());
    let journal = Journal::open(folder.path(), now).unwrap();
    let plan = Name::new("plan-7").unwrap();
    let filter = |plan: Option<&Name>, state| Filter { plan: plan.cloned(), state, limit: 20, ..Filter::default() };
    assert_eq!(timed("run history", || journal.runs(&filter(None, None)).unwrap()).len(), 20);
    timed("run history --plan", || journal.runs(&filter(Some(&plan), None)).unwrap());
    timed("run history, failed ones of a plan", || journal.runs(&filter(Some(&plan), Some(State::Failed))).unwrap());
    let id = journal.runs(&filter(Some(&plan), None)).unwrap()[0].id.to_string();
    timed("run show", || journal.find(&id).map(|run| journal.attempts(run.id)).unwrap().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let surroundings = Surroundings {
        state: folder.path().to_owned(),
        runtime: runtime.handle().clone(),
        clock: Arc::new(ManualClock::new(now)),
        progress: Arc::new(Silent),
        cancel: Cancel::default(),
        gate: CommitGate::default(),
    };
    for (what, count) in [("one plan", 1), ("ten plans", 10), ("all plans", PLANS)] {
        let plans = plans(count);
        let all: Vec<&Plan> = plans.plans.values().map(AsRef::as_ref).collect();
        timed(&format!("what the journal is asked for status, {what}"), || Heard::ask(&all, &journal, now).unwrap());
        let status = timed(&format!("status, {what}"), || status::gather(&plans, Some(&journal), &surroundings, false).unwrap());
        assert!(status.plans.len() == count as usize && status.plans.iter().all(|plan| plan.last_success.is_some()));
    }
    let plans = plans(PLANS);
    let all: Vec<&Plan> = plans.plans.values().map(AsRef::as_ref).collect();
    timed("the daemon's look at all plans", || {
        gone::look(&plans, &journal, folder.path(), now).unwrap();
        let heard = Heard::ask(&all, &journal, now).unwrap();
        all.iter().map(|plan| status::view(plan, Some(&heard), None, &surroundings, now).problems.len()).sum::<usize>()
    });
    let key = |n| ScheduleKey { plan: Name::new(format!("plan-{n}")).unwrap(), job: Job::Backup, expression: "0 2 * * * UTC".into() };
    let keys: Vec<ScheduleKey> = (0..PLANS).map(key).collect();
    timed("start-up: all schedules of 2,000 plans", || journal.follow(&keys, now).unwrap());
    let mut n = 0;
    timed("a run: begin, heartbeat, announce, close", || {
        n += 1;
        let run = NewRun::of_slot(&plan, Job::Backup, Trigger::Schedule, now + TimeDelta::minutes(n), RunId::generate(now));
        let claim = journal.begin(&run, now).unwrap();
        assert!(journal.heartbeat(claim, now).unwrap() && journal.announce(claim, "s", now).unwrap());
        journal.close(claim, &Ending::new(State::Succeeded), now).unwrap();
    });
    let began = Instant::now();
    let before = start() + TimeDelta::days(1);
    let gone = journal.forget(before).unwrap();
    println!("{:58} {gone} runs in {:.2?}", "forget the oldest day", began.elapsed());
}

/// What one node did.
#[derive(Default)]
struct Share {
    runs: u32,
    claims: Vec<Duration>,
    refused: u32,
}

/// All slots are due in the same second. Each node takes what nobody has yet, four at a time; a run takes 20 ms.
fn nodes(plans: u32) {
    let cluster = Cluster::start(distribution_version());
    let folder = tempfile::tempdir().unwrap();
    let slot = Utc::now();
    let shares: Arc<Mutex<BTreeMap<String, Share>>> = Arc::default();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for node in 0..4u32 {
            let journal = Journal::shared(
                cluster.tcp_settings(),
                &folder.path().join(node.to_string()),
                format!("node-{node}"),
                TimeDelta::minutes(2),
            )
            .unwrap();
            // Its own first, then what the others left: as a node's turns make it.
            let order: Vec<u32> = (0..plans).filter(|n| n % 4 == node).chain((0..plans).filter(|n| n % 4 != node)).collect();
            let queue = Arc::new(Mutex::new(order.into_iter()));
            for _ in 0..4 {
                let (journal, queue, shares) = (journal.clone(), Arc::clone(&queue), Arc::clone(&shares));
                scope.spawn(move || {
                    let mut share = Share::default();
                    loop {
                        let Some(n) = queue.lock().unwrap().next() else { break };
                        let plan = Name::new(format!("plan-{n}")).unwrap();
                        let run = NewRun::of_slot(&plan, Job::Backup, Trigger::Schedule, slot, RunId::generate(slot));
                        let asked = Instant::now();
                        match journal.begin(&run, slot) {
                            Ok(claim) => {
                                share.claims.push(asked.elapsed());
                                share.runs += 1;
                                std::thread::sleep(Duration::from_millis(20));
                                assert!(journal.announce(claim, "s", slot).unwrap());
                                journal.close(claim, &Ending::new(State::Succeeded), slot).unwrap();
                            }
                            Err(error) if error.kind() == Kind::Busy => share.refused += 1,
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                    let mut all = shares.lock().unwrap();
                    let own = all.entry(journal.node().to_owned()).or_default();
                    own.runs += share.runs;
                    own.refused += share.refused;
                    own.claims.append(&mut share.claims);
                });
            }
        }
    });
    let took = began.elapsed();
    let shares = shares.lock().unwrap();
    let total: u32 = shares.values().map(|share| share.runs).sum();
    assert_eq!(total, plans, "each slot once");
    let mut claims: Vec<Duration> = shares.values().flat_map(|share| share.claims.iter().copied()).collect();
    claims.sort();
    let at = |percent: usize| claims[(claims.len() * percent / 100).min(claims.len() - 1)];
    println!("{plans} plans due at once, 4 nodes of 4 runs: done in {took:.1?}");
    for (node, share) in shares.iter() {
        println!("  {node}: {} runs, {} claims that another node had won", share.runs, share.refused);
    }
    println!("  claim: median {:.2?}, 99% {:.2?}, worst {:.2?}", at(50), at(99), at(100));
}
