//! Counts of runs, and the page of all metrics.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use crate::daemon::companion::Context;
use crate::daemon::journal::{self, Filter, Journal, Run, State};
use crate::daemon::status::PlanStatus;
use crate::error::{Kind, Result};
use crate::id::{Name, RunId};
use crate::store::{self, Verb};
use crate::web::metrics::look::Look;
use crate::web::metrics::{Labels, Page, RUN_BOUNDS, float, moment, of_plan, seconds, set};

/// Newest runs that are looked at for those of other processes; runs of this daemon are told by name.
const NEWEST: u32 = 100;

/// Endings that are remembered as counted; far more than [`NEWEST`].
const REMEMBERED: usize = 10_000;

type Counters = Family<Labels, Counter<u64, AtomicU64>>;
type FloatCounters = Family<Labels, Counter<f64, AtomicU64>>;

/// What was counted since the process began.
pub(in crate::web) struct Ledger {
    begun: bool,
    counted: BTreeSet<(RunId, u32)>,
    order: VecDeque<(RunId, u32)>,
    runs: Counters,
    bytes_read: Counters,
    bytes_stored: Counters,
    time: FloatCounters,
    durations: Family<Labels, Histogram, fn() -> Histogram>,
    /// The last ended run of each plan and job: whether it succeeded, and how long it took.
    last: BTreeMap<(Name, &'static str), (bool, Option<f64>)>,
}

fn run_histogram() -> Histogram {
    Histogram::new(RUN_BOUNDS)
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            begun: false,
            counted: BTreeSet::new(),
            order: VecDeque::new(),
            runs: Counters::default(),
            bytes_read: Counters::default(),
            bytes_stored: Counters::default(),
            time: FloatCounters::default(),
            durations: Family::new_with_constructor(run_histogram),
            last: BTreeMap::new(),
        }
    }
}

impl Ledger {
    /// Counts what ended since the last call: `ended` of this daemon, which is emptied as far as their rows are closed, and what the journal
    /// has of others. What was over before the first call is not counted, but is known as the last run of its job.
    ///
    /// # Errors
    /// When the journal cannot be asked.
    pub fn take_up(&mut self, journal: &Journal, ended: &mut Vec<RunId>) -> Result<()> {
        let mut runs = journal.runs(&Filter { limit: NEWEST, ..Filter::default() })?;
        for id in std::mem::take(ended) {
            if runs.iter().any(|run| run.id == id) {
                continue;
            }
            match journal.run(id) {
                // Its row could not be written yet.
                Ok(run) if run.state == State::Running => ended.push(id),
                Ok(run) => runs.push(run),
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        runs.sort_by_key(|run| (run.started, run.id));
        for run in runs.iter().filter(|run| run.state != State::Running) {
            self.count(run, journal.is_of_this_place(run));
        }
        self.begun = true;
        Ok(())
    }

    /// `own`: what other nodes ran they count themselves, so that a sum over all nodes is right.
    fn count(&mut self, run: &Run, own: bool) {
        let key = (run.id, run.attempt);
        if !self.counted.insert(key) {
            return;
        }
        self.order.push_back(key);
        while self.order.len() > REMEMBERED {
            self.order.pop_front().map(|oldest| self.counted.remove(&oldest));
        }
        let took = run.ended.and_then(|ended| (ended - run.started).to_std().ok()).filter(|_| run.state != State::Missed);
        let took = took.map(|took| took.as_secs_f64());
        self.last.insert((run.plan.clone(), run.job.word()), (run.state == State::Succeeded, took));
        if !self.begun || !own {
            return;
        }
        let labels = vec![("plan", run.plan.to_string()), ("work", run.job.word().to_owned())];
        let with_state = labels.iter().cloned().chain([("state", run.state.word().to_owned())]).collect();
        self.runs.get_or_create(&with_state).inc();
        self.bytes_read.get_or_create(&labels).inc_by(run.bytes_read.unwrap_or(0));
        self.bytes_stored.get_or_create(&labels).inc_by(run.bytes_stored.unwrap_or(0));
        if let Some(took) = took {
            self.time.get_or_create(&labels).inc_by(took);
            self.durations.get_or_create(&vec![("work", run.job.word().to_owned())]).observe(took);
        }
    }

    /// All metrics but those of requests.
    pub fn render(&self, context: &Context, look: Option<&Look>) -> String {
        let mut page = Page::default();
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        page.gauges("build_info", "1; the version is a label").get_or_create(&version).set(1.0);
        self.runs(&mut page);
        daemon(&mut page, context);
        store(&mut page);
        problems(&mut page, context, look);
        if let Some(look) = look {
            page.gauge("status_timestamp_seconds", "When the plans were last looked at", moment(look.status.time));
            jobs(&mut page, look);
            plans(&mut page, look, context);
            drills(&mut page, look);
            logs(&mut page, &look.status.plans);
        }
        page.text()
    }

    fn runs(&self, page: &mut Page) {
        page.register("runs", "Runs that ended since the daemon started, by how they ended", &self.runs);
        page.register("bytes_read", "Plain bytes that ended runs read", &self.bytes_read);
        page.register("bytes_stored", "Bytes that ended runs added to the repository", &self.bytes_stored);
        page.register("run_time_seconds", "Time that ended runs took together", &self.time);
        page.register("run_duration_seconds", "How long runs took", &self.durations);
        let success = page.gauges("last_run_success", "1: the last ended run of this job succeeded");
        let took = page.gauges("last_run_duration_seconds", "How long the last ended run of this job took");
        for ((plan, job), (succeeded, duration)) in &self.last {
            let labels = vec![("plan", plan.to_string()), ("work", (*job).to_owned())];
            set(&success, labels.clone(), Some(f64::from(u8::from(*succeeded))));
            set(&took, labels, *duration);
        }
    }
}

/// The daemon itself.
fn daemon(page: &mut Page, context: &Context) {
    page.gauge("plans", "Plans in force", float(context.control.plans().plans.len() as u64));
    page.gauge("loop_age_seconds", "How long ago the daemon last looked at what is due", context.control.loop_age().as_secs_f64());
    let running = page.gauges("running", "Runs of this daemon that go on");
    // What could run is there with 0, so that a graph has no holes.
    for plan in context.control.plans().plans.values() {
        for (job, _) in crate::daemon::job::schedules(plan) {
            let _ = running.get_or_create(&vec![("plan", plan.name.to_string()), ("work", job.word().to_owned())]);
        }
    }
    for run in context.control.running() {
        running.get_or_create(&vec![("plan", run.plan.to_string()), ("work", run.job.word().to_owned())]).inc();
    }
    if context.journal.is_shared() {
        return;
    }
    let file = context.surroundings.state.join(journal::FILE);
    let side = |ending: &str| std::fs::metadata(format!("{}{ending}", file.display())).map_or(0, |about| about.len());
    page.gauge("journal_bytes", "Size of the journal's files", float(side("") + side("-wal") + side("-shm")));
}

/// Everything that this process asked of stores.
fn store(page: &mut Page) {
    let totals = store::process_metrics();
    let (requests, errors, bytes) = (Counters::default(), Counters::default(), Counters::default());
    for verb in Verb::ALL {
        let labels = vec![("verb", verb.word().to_owned())];
        let of = totals.verb(verb);
        requests.get_or_create(&labels).inc_by(of.requests);
        errors.get_or_create(&labels).inc_by(of.errors);
        bytes.get_or_create(&labels).inc_by(of.bytes);
    }
    page.register("store_requests", "Requests to stores, repeated ones included", &requests);
    page.register("store_errors", "Requests that failed; neither `not found` nor `exists already` is one", &errors);
    page.register("store_bytes", "Bytes of objects sent or received", &bytes);
    let retries = Counters::default();
    retries.get_or_create(&Vec::new()).inc_by(totals.retries);
    page.register("store_retries", "Requests that were repeated", &retries);
}

fn jobs(page: &mut Page, look: &Look) {
    let success = page.gauges("last_success_timestamp_seconds", "End of the last run of this job that succeeded");
    let interval = page.gauges("expected_interval_seconds", "The longest that the schedule lets pass between two runs");
    let next = page.gauges("next_run_timestamp_seconds", "The next slot of the schedule");
    for facts in &look.jobs {
        let labels = vec![("plan", facts.plan.to_string()), ("work", facts.job.word().to_owned())];
        set(&success, labels.clone(), facts.last_success.map(moment));
        set(&interval, labels.clone(), facts.interval.map(|interval| interval.as_secs_f64()));
        set(&next, labels, facts.next_run.map(moment));
    }
}

fn plans(page: &mut Page, look: &Look, context: &Context) {
    let snapshots = page.gauges("snapshots", "Snapshots in the repository");
    let oldest = page.gauges("recoverable_oldest_timestamp_seconds", "The oldest moment that can be restored");
    let newest = page.gauges("recoverable_newest_timestamp_seconds", "The newest moment that can be restored");
    let loss = page.gauges("data_loss_seconds", "What a disaster now would lose");
    let loss_objective = page.gauges("data_loss_objective_seconds", "What the plan allows to be lost");
    let recovery = page.gauges("recovery_time_seconds", "How long a recovery took in the last drill that got so far");
    let recovery_objective = page.gauges("recovery_time_objective_seconds", "How long the plan allows a recovery to take");
    let proven = page.gauges("proven_timestamp_seconds", "When a drill last passed on the newest proven snapshot");
    let proven_point = page.gauges("proven_point_timestamp_seconds", "The moment that the newest proven snapshot is of");
    let reachable = page.gauges("repository_reachable", "1: the repository could be asked");
    // A loss grows while nobody looks; one of minutes ago is not the loss of now.
    let since = (context.surroundings.clock.now() - look.status.time).to_std().unwrap_or_default().as_secs_f64();
    for plan in &look.status.plans {
        let labels = of_plan(&plan.name);
        set(&snapshots, labels.clone(), Some(float(plan.snapshots)));
        set(&oldest, labels.clone(), plan.restorable_from.map(moment));
        set(&newest, labels.clone(), plan.restorable_to.map(moment));
        set(&loss, labels.clone(), plan.data_loss_ms.map(|ms| seconds(ms) + since));
        set(&loss_objective, labels.clone(), plan.data_loss_objective_ms.map(seconds));
        set(&recovery, labels.clone(), plan.recovery_time_ms.map(seconds));
        set(&recovery_objective, labels.clone(), plan.recovery_time_objective_ms.map(seconds));
        set(&proven, labels.clone(), plan.proven_at.map(moment));
        set(&proven_point, labels.clone(), plan.proven_point.map(moment));
        set(&reachable, labels, Some(f64::from(u8::from(plan.repository_reachable))));
    }
}

/// What is wrong with plans, as they were last looked at, and with the daemon now.
fn problems(page: &mut Page, context: &Context, look: Option<&Look>) {
    let problems = page.gauges("problems", "What is wrong, by kind");
    for plan in look.iter().flat_map(|look| &look.status.plans) {
        for problem in &plan.problems {
            problems.get_or_create(&vec![("plan", plan.name.clone()), ("kind", problem.kind.clone())]).inc();
        }
    }
    // Alarms and the daemon's own troubles, which the status has where they are not of a plan alone.
    let told = look.iter().flat_map(|look| &look.status.problems).map(|problem| problem.kind.clone());
    let own = context.control.problems().into_iter().map(|trouble| trouble.kind);
    let kinds: BTreeSet<String> = told.chain(own).collect();
    for kind in kinds {
        problems.get_or_create(&vec![("plan", String::new()), ("kind", kind)]).inc();
    }
}

fn drills(page: &mut Page, look: &Look) {
    let phases = page.gauges("drill_phase_duration_seconds", "Phases of the last drill of this host that succeeded");
    let times = page.gauges("drill_timestamp_seconds", "When the last drill of this host that succeeded began");
    for (plan, run) in &look.drills {
        set(&times, of_plan(plan.as_str()), Some(moment(run.started)));
        for phase in &run.phases {
            let labels = vec![("plan", plan.to_string()), ("phase", phase.name.clone())];
            phases.get_or_create(&labels).inc_by(seconds(phase.duration_ms));
        }
    }
}

fn logs(page: &mut Page, plans: &[PlanStatus]) {
    let connected = page.gauges("log_connected", "1: the stream of the log is connected");
    let lag = page.gauges("log_lag_bytes", "Log of the server that is not stored yet");
    let held = page.gauges("log_slot_held_bytes", "Log that the replication slot holds back on the server");
    let safe = page.gauges("log_slot_safe_bytes", "What the server may write before log of the slot may be lost");
    let newest = page.gauges("log_newest_timestamp_seconds", "Whatever was committed before this moment of the source's clock is stored");
    let noted = page.gauges("log_status_timestamp_seconds", "When the stream last said how it stands");
    let gaps = page.gauges("log_gaps", "Gaps that the stream knows of");
    for log in plans.iter().flat_map(|plan| &plan.logs) {
        let labels = vec![("plan", log.plan.clone()), ("source", log.source.clone())];
        set(&connected, labels.clone(), Some(f64::from(u8::from(log.connected))));
        set(&lag, labels.clone(), Some(float(log.lag_bytes)));
        set(&held, labels.clone(), log.held_bytes.map(float));
        set(&safe, labels.clone(), log.safe_bytes.map(float));
        set(&newest, labels.clone(), log.server_clock.or(log.newest_commit).map(moment));
        set(&noted, labels.clone(), Some(moment(log.time)));
        set(&gaps, labels, Some(float(log.gaps.len() as u64)));
    }
}
