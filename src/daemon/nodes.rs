//! What a node does beside its runs: says that it is at work, and has settled what nodes left that are not heard of any more. On the embedded
//! journal there is only this machine, and what its own processes left. Nothing here waits for a repository.
//!
//! Who runs what: every node follows every schedule of the plans that its labels allow, and whoever claims a slot first has it. So that not the
//! quickest one has all, each slot has a node of its own choice (by a hash of plan, slot and node), and the others let it go first for a moment.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};

use crate::clock::Clock;
use crate::daemon::companion::Context;
use crate::daemon::job::Job;
use crate::daemon::journal::{Journal, Node};
use crate::daemon::settler::Settler;
use crate::daemon::status::ProblemKind;
use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::id::Name;
use crate::plan::Plan;

/// So long the others wait for the node that a slot chose, and again for the second choice, and so on.
const TURN: TimeDelta = TimeDelta::milliseconds(1500);

/// No slot waits longer than this for nodes that may be busy.
const LONGEST_TURN: TimeDelta = TimeDelta::seconds(6);

/// Old runs are forgotten so often, by one node.
const FORGET_EVERY: Duration = Duration::from_hours(1);

/// The kind of the problem that a journal is that cannot be used.
const AWAY: ProblemKind = ProblemKind::JournalUnavailable;

/// How soon the end of the daemon is noticed.
const STEP: Duration = Duration::from_millis(200);

/// The lease on endless work of a source, of which there is one at a time.
#[must_use]
pub fn stream_lease(kind: &str, plan: &Name, source: &Name) -> String {
    format!("{kind}/{plan}/{source}")
}

/// Does `work`, a run of this job, while no other node backs a source of the plan up. Within one daemon the agenda sees to that.
///
/// # Errors
/// `Busy` when another node does; when the journal cannot be written; what `work` says.
pub(super) fn alone_with_sources<T>(
    journal: &Journal,
    plan: &Plan,
    job: Job,
    clock: &dyn Clock,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    if !journal.is_shared() || job != Job::Backup {
        return work();
    }
    let hold = |source: &Name| journal.hold(&format!("source/{source}"), journal.lease(), clock.now());
    let mut held = Vec::new();
    let let_go = |held: &[&Name]| {
        for source in held {
            // Where the journal is away it runs out by itself.
            let _ = journal.let_go(&format!("source/{source}"), clock.now());
        }
    };
    for source in plan.sources.iter().map(|source| &source.name) {
        match hold(source) {
            Ok(true) => held.push(source),
            outcome => {
                let_go(&held);
                let busy = || Error::new(Kind::Busy, format!("start backup of plan {}: another node backs source {source} up", plan.name));
                return Err(outcome.map_or_else(|error| error, |_| busy()));
            }
        }
    }
    let every = journal.lease().to_std().unwrap_or_default() / 4;
    let result = std::thread::scope(|scope| {
        let (alive, over) = channel::<()>();
        let renewing = std::thread::Builder::new().name("sources".to_owned()).spawn_scoped(scope, || {
            let over = over;
            while over.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                for source in &held {
                    if !matches!(hold(source), Ok(true)) {
                        tracing::warn!(plan = %plan.name, %source, "other nodes could not be told that the source is being backed up");
                    }
                }
            }
        });
        let renewing = renewing.map_err(|error| Error::io("start the thread that tells other nodes of a backup", error));
        let result = renewing.and_then(|_| work());
        drop(alive);
        result
    });
    let_go(&held);
    result
}

/// Who this node is and who else is there.
#[derive(Clone)]
pub struct Membership {
    name: String,
    labels: Arc<[String]>,
    /// Whether there can be others.
    shared: bool,
    others: Arc<Mutex<Vec<Node>>>,
}

impl Membership {
    /// A node by its name and labels, on a journal that is `shared` or its own; of others nothing is known yet.
    #[must_use]
    pub fn new(name: &str, labels: &[String], shared: bool) -> Self {
        Self { name: name.to_owned(), labels: labels.into(), shared, others: Arc::default() }
    }

    /// Whether there can be other nodes.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// Whether another node that is at work may run the slots of a plan.
    #[must_use]
    pub fn another_may_run(&self, plan: &Plan) -> bool {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        others.iter().any(|node| node.name != self.name && allowed(&plan.run_on, &node.name, &node.labels))
    }

    /// Whether this node may run the slots of a plan.
    #[must_use]
    pub fn may_run(&self, plan: &Plan) -> bool {
        allowed(&plan.run_on, &self.name, &self.labels)
    }

    /// How long this node waits with a slot that is due, for those that the slot would rather have.
    #[must_use]
    pub fn turn(&self, plan: &Plan, slot: DateTime<Utc>) -> TimeDelta {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let candidates = others.iter().filter(|node| allowed(&plan.run_on, &node.name, &node.labels)).map(|node| node.name.as_str());
        turn(&self.name, candidates, &plan.name, slot)
    }

    /// Takes notice of the nodes that are at work.
    pub(super) fn see(&self, nodes: Vec<Node>) {
        *self.others.lock().unwrap_or_else(PoisonError::into_inner) = nodes;
    }
}

fn allowed(run_on: &[String], name: &str, labels: &[String]) -> bool {
    run_on.is_empty() || run_on.iter().any(|label| label == name || labels.contains(label))
}

/// The place of `own` among those that may run a slot, as a wait. Pure. Each node has the first place for an even share of slots.
fn turn<'a>(own: &str, candidates: impl Iterator<Item = &'a str>, plan: &Name, slot: DateTime<Utc>) -> TimeDelta {
    let score = |node: &str| {
        let mut hasher = blake3::Hasher::new();
        for part in [plan.as_str().as_bytes(), &slot.timestamp_millis().to_le_bytes(), node.as_bytes()] {
            hasher.update(part).update(&[0]);
        }
        *hasher.finalize().as_bytes()
    };
    let mine = score(own);
    let before = candidates.filter(|node| *node != own && score(node) > mine).count();
    (TURN * i32::try_from(before).unwrap_or(i32::MAX).min(100)).min(LONGEST_TURN)
}

/// The companion's work, until it is told to stop.
pub(super) fn run(context: &Context, membership: &Membership, settler: &Settler) {
    let (journal, cancel) = (&context.journal, &context.surroundings.cancel);
    let every = (journal.lease().to_std().unwrap_or_default() / 4).clamp(Duration::from_millis(500), Duration::from_secs(15));
    let mut forgotten: Option<Instant> = None;
    let mut away = false;
    while !cancel.is_cancelled() {
        match once(context, membership) {
            Ok(()) => {
                context.control.set_problem(AWAY, None);
                if std::mem::take(&mut away) {
                    tracing::info!(journal = journal.place(), "the journal is back");
                }
                // The next look at a plan of which something was settled finds it interrupted, and tries it again.
                if let Err(error) = settler.look() {
                    tracing::error!(error = ?error, hint = error.hint_text(), "what killed runs left could not be looked for");
                }
                if forgotten.is_none_or(|when| when.elapsed() >= FORGET_EVERY) {
                    forgotten = Some(Instant::now());
                    if let Err(error) = forget(context) {
                        tracing::warn!(error = ?error, "old runs could not be forgotten");
                    }
                }
            }
            Err(error) => {
                context.control.set_problem(AWAY, Some(journal_away(&crate::ops::explain(&error))));
                // Logged once, and again when it is back.
                if error.kind() == Kind::Unavailable && std::mem::replace(&mut away, true) {
                    continue_after(every, cancel);
                    continue;
                }
                tracing::error!(error = ?error, hint = error.hint_text(), "this node cannot do its part on the journal");
            }
        }
        continue_after(every, cancel);
    }
    if let Err(error) = journal.check_out(context.surroundings.clock.now()) {
        tracing::warn!(error = ?error, "this node could not say that it ends; the others notice");
    }
}

/// What a journal that cannot be used means.
fn journal_away(why: &str) -> String {
    format!("the journal of runs cannot be used, so nothing new starts, and runs that end wait with their commit and their record: {why}")
}

fn continue_after(pause: Duration, cancel: &Cancel) {
    let until = Instant::now() + pause;
    while Instant::now() < until && !cancel.is_cancelled() {
        std::thread::sleep(STEP.min(pause));
    }
}

fn once(context: &Context, membership: &Membership) -> Result<()> {
    let (journal, now) = (&context.journal, context.surroundings.clock.now());
    journal.finish_unfinished()?;
    membership.see(journal.check_in(&membership.labels, now)?);
    Ok(())
}

fn forget(context: &Context) -> Result<()> {
    let (journal, now) = (&context.journal, context.surroundings.clock.now());
    let history = TimeDelta::from_std(context.control.plans().journal.history).unwrap_or(TimeDelta::MAX);
    let Some(before) = now.checked_sub_signed(history) else { return Ok(()) };
    if !journal.hold("forget", TimeDelta::from_std(FORGET_EVERY).unwrap_or_default(), now)? {
        return Ok(());
    }
    let runs = journal.forget(before)?;
    if runs > 0 {
        tracing::info!(runs, before = %before, "old runs are forgotten");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(n: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000 + n * 3600, 0).unwrap()
    }

    #[test]
    fn slots_spread_evenly_and_every_node_has_a_place_of_its_own() {
        let nodes = ["a", "b", "c", "d"];
        let mut first = std::collections::BTreeMap::<&str, u32>::new();
        for n in 0..2000 {
            let plan = Name::new(format!("plan-{n}")).unwrap();
            let waits: Vec<TimeDelta> = nodes.iter().map(|own| turn(own, nodes.iter().copied(), &plan, slot(n))).collect();
            let mut sorted = waits.clone();
            sorted.sort();
            assert_eq!(sorted, [TimeDelta::zero(), TURN, TURN * 2, TURN * 3], "one of each");
            let own = waits.iter().position(TimeDelta::is_zero).unwrap();
            *first.entry(nodes[own]).or_default() += 1;
        }
        assert!(first.len() == 4 && first.values().all(|count| (430..570).contains(count)), "{first:?}");
        let plan = Name::new("crm").unwrap();
        assert_eq!(turn("a", ["a"].into_iter(), &plan, slot(1)), TimeDelta::zero(), "nobody waits for nobody");
        assert_eq!(turn("a", std::iter::empty(), &plan, slot(1)), TimeDelta::zero());
        let many: Vec<String> = (0..50).map(|n| format!("n{n}")).collect();
        assert!(many.iter().all(|own| turn(own, many.iter().map(String::as_str), &plan, slot(1)) <= LONGEST_TURN));
    }

    #[test]
    fn a_plan_runs_where_a_label_says_so() {
        let labels = ["db-host".to_owned(), "ssd".to_owned()];
        let on = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert!(allowed(&[], "a", &[]));
        assert!(allowed(&on(&["db-host"]), "a", &labels));
        assert!(allowed(&on(&["x", "a"]), "a", &[]), "a node's name is a label");
        assert!(!allowed(&on(&["x"]), "a", &labels));
    }
}
