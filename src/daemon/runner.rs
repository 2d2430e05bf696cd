//! One run with its journal entry: recorded before it starts, closed after, whoever starts it.
//!
//! The command line and the daemon both come through here, so that a manual backup is as well known as a scheduled one and the two
//! never run beside each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use crate::clock::Clock;
use crate::daemon::history;
use crate::daemon::job;
use crate::daemon::journal::{Claim, Ending, ErrorRecord, Filter, Job, Journal, LEASE, NewRun, Run, State};
use crate::daemon::recorder::Recorder;
use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Event};
use crate::id::{Name, RunId};
use crate::ops::backup::BackupReport;
use crate::ops::copy::{CopyReport, CopyRequest};
use crate::ops::drill::{DrillReport, DrillRequest};
use crate::ops::prune::{CopyError, CopyPruned, PlanRules, PruneReport};
use crate::ops::resolve::{self, Surroundings};
use crate::ops::restore::RestoreReport;
use crate::ops::verify::{Depth, VerifyReport};
use crate::ops::{Commit, CommitGate};
use crate::ops::{backup, copy, drill, explain, prune, verify};
use crate::plan::{Plan, PlannedCopy, Plans};
use crate::repo::{Decided, Manifest, Repository};

/// A backup, drill or verification that reports nothing (no phase, no bytes, no warning) for so long is taken to hang: it is
/// cancelled and fails as `unavailable`. Far above what one step of a sound run takes without a sign. Restores wait for persons
/// and are never cancelled.
pub const STALL: Duration = Duration::from_hours(2);

/// How soon a run learns that it should stop.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Heartbeats in one lease: some may be lost.
const HEARTBEATS: u32 = 4;

/// A commit waits so long for a journal that cannot be reached. Meanwhile nobody else can take the run over either.
const GATE_PATIENCE: Duration = Duration::from_mins(15);

/// The embedded journal has but this machine's runs, and its lock files tell who lives: a commit does not wait long for it.
const OWN_GATE_PATIENCE: Duration = Duration::from_secs(20);

/// Between two askings of a journal that cannot be reached.
const GATE_PAUSE: Duration = Duration::from_millis(500);

/// A result document that the journal can keep the essence of.
pub trait Outcome {
    /// State, ids and byte counts; phases and warnings are filled in by the runner.
    fn ending(&self) -> Ending;
}

fn ended(exit: Option<Kind>, message: impl FnOnce() -> String) -> Ending {
    let Some(kind) = exit else { return Ending::new(State::Succeeded) };
    let state = match kind {
        Kind::Incomplete => State::Incomplete,
        // The recovery worked: the error only says which promise it did not keep.
        Kind::ObjectiveMissed => State::Succeeded,
        _ => State::Failed,
    };
    let error = ErrorRecord { kind: kind.word().to_owned(), message: message(), causes: Vec::new(), hint: None };
    Ending { error: Some(error), ..Ending::new(state) }
}

impl Outcome for BackupReport {
    fn ending(&self) -> Ending {
        Ending {
            bytes_read: Some(self.bytes_read),
            bytes_stored: Some(self.bytes_stored),
            snapshot: Some(self.snapshot.to_string()),
            ..ended(self.exit(), || format!("{} objects of the source could not be backed up as they should", self.problems.len()))
        }
    }
}

impl Outcome for DrillReport {
    fn ending(&self) -> Ending {
        Ending {
            bytes_read: Some(self.bytes_restored),
            snapshot: Some(self.snapshot.to_string()),
            report: Some(self.id.to_string()),
            ..ended(self.exit(), || {
                if self.reasons.is_empty() { format!("the drill ended {}", self.verdict.word()) } else { self.reasons.join("; ") }
            })
        }
    }
}

impl Outcome for VerifyReport {
    fn ending(&self) -> Ending {
        Ending {
            bytes_read: Some(self.bytes_checked),
            report: Some(self.id.to_string()),
            ..ended(self.exit(), || format!("{} findings, {} things not checked", self.findings.len(), self.skipped.len()))
        }
    }
}

impl Outcome for PruneReport {
    fn ending(&self) -> Ending {
        ended(self.exit(), || self.failure().unwrap_or_default())
    }
}

impl Outcome for RestoreReport {
    fn ending(&self) -> Ending {
        Ending {
            bytes_read: Some(self.bytes_restored),
            snapshot: Some(self.snapshot.to_string()),
            ..ended(self.exit(), || {
                let missing = self.missing.len();
                let newer = self.newer_unread.len();
                let newer = if newer == 0 { String::new() } else { format!(", {newer} newer snapshots could not be read") };
                format!("{missing} objects were not in the snapshot, {} owners or attributes could not be set{newer}", self.lost)
            })
        }
    }
}

impl Outcome for CopyReport {
    fn ending(&self) -> Ending {
        Ending {
            bytes_read: Some(self.bytes_read),
            bytes_stored: Some(self.bytes_stored),
            snapshot: self.snapshots.last().map(|one| one.original.to_string()),
            ..ended(self.exit(), || {
                let first = self.findings.first().map_or_else(String::new, |finding| format!(": {}: {}", finding.object, finding.message));
                format!("{} damaged things were not copied to {}{first}", self.findings.len(), self.repository)
            })
        }
    }
}

/// All scheduled copies of a plan.
struct Copies(Vec<CopyReport>);

impl Outcome for Copies {
    fn ending(&self) -> Ending {
        let worst = self.0.iter().find(|report| report.exit().is_some()).or(self.0.last());
        let sum = |of: fn(&CopyReport) -> u64| Some(self.0.iter().map(of).sum());
        Ending {
            bytes_read: sum(|report| report.bytes_read),
            bytes_stored: sum(|report| report.bytes_stored),
            ..worst.map_or_else(|| Ending::new(State::Succeeded), CopyReport::ending)
        }
    }
}

/// One copy of a plan's snapshots to a further repository. `snapshot`: only this one; `all`: also what is older than the newest copy.
///
/// # Errors
/// As [`copy::run`].
pub fn copy_once(
    plan: &Plan,
    planned: &PlannedCopy,
    snapshot: Option<String>,
    all: bool,
    surroundings: &Surroundings,
) -> Result<CopyReport> {
    // No source is touched.
    let job = resolve::to_restore(plan)?.open(surroundings)?;
    let to = resolve::repository(&planned.to)?.open(surroundings).map_err(|e| e.within(format!("copy to {}", planned.to.name)))?;
    let request = CopyRequest {
        name: planned.to.name.clone(),
        to,
        last: planned.last,
        tags: planned.tags.clone(),
        snapshot,
        all,
        rules: resolve::copy_rules(plan, planned).rules,
    };
    copy::run(&job, &request)
}

/// Applies what a plan keeps to its own repository, and what its copies keep to theirs. A copy that fails does not keep the others from being
/// pruned; the report says why it failed.
///
/// # Errors
/// As [`prune::run`], of the plan's own repository.
pub fn prune_once(plan: &Plan, dry_run: bool, surroundings: &Surroundings) -> Result<PruneReport> {
    let repository = resolve::repository(&plan.repository)?.open(surroundings)?;
    let prune = |repository: &Repository, rules: PlanRules, copy: Option<&Name>| {
        let may = || surroundings.gate.ask(copy, Commit::Retention);
        prune::run(repository, &[rules], dry_run, &*surroundings.clock, &*surroundings.progress, &surroundings.cancel, &may)
    };
    let mut report = prune(&repository, resolve::rules(plan), None)?;
    for planned in plan.copies.iter().filter(|planned| !planned.keep.is_everything()) {
        surroundings.cancel.check()?;
        let pruned = resolve::repository(&planned.to)
            .and_then(|settings| settings.open(surroundings))
            .and_then(|repository| prune(&repository, resolve::copy_rules(plan, planned), Some(&planned.to.name)));
        let (pruned, error) = match pruned {
            Ok(pruned) => (Some(Box::new(pruned)), None),
            Err(error) if error.kind() == Kind::Interrupted => return Err(error),
            Err(error) => {
                tracing::warn!(plan = %plan.name, copy = %planned.to.name, error = ?error, "a copy could not be pruned");
                (None, Some(CopyError { kind: error.kind().word().to_owned(), message: explain(&error) }))
            }
        };
        report.copies.push(CopyPruned { name: planned.to.name.to_string(), report: pruned, error });
    }
    Ok(report)
}

/// The copies of a plan that are due at this slot (`None`: all that have a schedule), one after the other; one that fails does not keep the others from
/// being made.
fn scheduled_copies(journal: &Journal, plan: &Plan, slot: Option<DateTime<Utc>>, surroundings: &Surroundings) -> Result<Copies> {
    let (mut done, mut failed) = (Vec::new(), None);
    let since = match (slot, &plan.copy_schedule) {
        (Some(_), Some(all)) => Some(journal.schedule_since(&plan.name, Job::Copy, &job::expression(all), surroundings.clock.now())?),
        _ => None,
    };
    for planned in plan.copies.iter().filter(|planned| planned.schedule.is_some()) {
        surroundings.cancel.check()?;
        let due = slot.zip(since).map_or(Ok(true), |(slot, since)| is_due(plan, planned, slot, since, surroundings));
        match due.and_then(|due| due.then(|| copy_once(plan, planned, None, false, surroundings)).transpose()) {
            Ok(report) => done.extend(report),
            Err(error) => {
                tracing::warn!(plan = %plan.name, to = %planned.to.name, error = ?error, "a copy failed");
                failed.get_or_insert(error.within(format!("copy to {}", planned.to.name)));
            }
        }
    }
    failed.map_or(Ok(Copies(done)), Err)
}

/// Whether a copy is to be made at this slot of the plan's copies: it is one of its own, or the copy lacks what was there at its last own one since the
/// schedules are followed (which a run that failed or never was left undone).
fn is_due(plan: &Plan, planned: &PlannedCopy, slot: DateTime<Utc>, since: DateTime<Utc>, surroundings: &Surroundings) -> Result<bool> {
    let own = planned.schedule.as_ref().and_then(|schedule| schedule.previous_at_or_before(slot));
    let Some(own) = own.filter(|own| *own == slot || *own > since) else { return Ok(false) };
    if own == slot {
        return Ok(true);
    }
    // What nobody can read any more is not to be copied, and no copy.
    let of = |repository| -> Result<Vec<Manifest>> {
        let repository = resolve::repository(repository)?.open(surroundings)?;
        let (mut manifests, _) = repository.sound_manifests(Some(&plan.name))?;
        manifests.retain(|manifest| repository.destroyed_at(manifest).is_none());
        Ok(manifests)
    };
    let (originals, copied) = (of(&plan.repository)?, of(&planned.to)?);
    Ok(copy::lacks(&planned.tags, &originals, copied.iter().map(|manifest| manifest.time).max(), own).is_some())
}

/// Runs `work` as `run`. `work` gets surroundings whose progress is recorded.
///
/// # Errors
/// `Busy` when such a run is going on; what `work` says, after it was recorded; what the journal says.
pub fn journalled<T: Outcome>(
    journal: &Journal,
    run: &NewRun,
    surroundings: &Surroundings,
    work: impl FnOnce(&Surroundings) -> Result<T>,
) -> Result<(RunId, T)> {
    let stall = (run.job != Job::Restore).then_some(STALL);
    watched(journal, run, surroundings, stall, work)
}

fn watched<T: Outcome>(
    journal: &Journal,
    run: &NewRun,
    surroundings: &Surroundings,
    stall: Option<Duration>,
    work: impl FnOnce(&Surroundings) -> Result<T>,
) -> Result<(RunId, T)> {
    let claim = journal.begin(run, surroundings.clock.now())?;
    let span = span(run, claim);
    let _entered = span.enter();
    tracing::info!(trigger = run.trigger.word(), by = run.by, scheduled = run.scheduled.map(|slot| slot.to_rfc3339()), "run started");
    let (result, ending) = carry_out(journal, claim, run, surroundings, stall, work);
    let closed = close(journal, claim, &ending, surroundings.clock.now());
    // The result of the work is what counts; a journal that failed meanwhile is told when there is nothing worse.
    let outcome = result?;
    closed?;
    Ok((claim.id, outcome))
}

/// Like [`journalled`], but nothing that is wrong with the journal stops the work or makes it fail: `told` hears of it. For restores.
///
/// # Errors
/// What `work` says.
pub fn journalled_if_possible<T: Outcome>(
    journal: &Journal,
    run: &NewRun,
    surroundings: &Surroundings,
    told: impl Fn(&Error),
    work: impl FnOnce(&Surroundings) -> Result<T>,
) -> Result<T> {
    let claim = match journal.begin(run, surroundings.clock.now()) {
        Ok(claim) => claim,
        Err(error) => {
            told(&error);
            return work(surroundings);
        }
    };
    let span = span(run, claim);
    let _entered = span.enter();
    let (result, ending) = carry_out(journal, claim, run, surroundings, None, work);
    if let Err(error) = close(journal, claim, &ending, surroundings.clock.now()) {
        told(&error);
    }
    result
}

/// A run is a trace; its log lines carry these.
fn span(run: &NewRun, claim: Claim) -> tracing::Span {
    tracing::info_span!("run", id = %claim.id, plan = %run.plan, job = run.job.word(), attempt = claim.attempt)
}

/// Does the work under a watch, and says what the journal is to keep of it.
fn carry_out<T: Outcome>(
    journal: &Journal,
    claim: Claim,
    run: &NewRun,
    surroundings: &Surroundings,
    stall: Option<Duration>,
    work: impl FnOnce(&Surroundings) -> Result<T>,
) -> (Result<T>, Ending) {
    let recorder = Arc::new(Recorder::new(Arc::clone(&surroundings.progress)));
    let cancel = Cancel::default();
    let gate = gate(journal, claim, Arc::clone(&surroundings.clock), cancel.clone());
    let recorded = Surroundings { progress: recorder.clone(), cancel, gate, ..surroundings.clone() };
    let watch = Watch {
        journal,
        claim,
        surroundings,
        recorder: &recorder,
        own: &recorded.cancel,
        stall,
        stalled: AtomicBool::new(false),
        lost: AtomicBool::new(false),
    };
    // A panic is a bug in one run: it must not leave the row open while this process lives on.
    let result = std::thread::scope(|scope| {
        let (alive, over) = channel::<()>();
        let spawned = std::thread::Builder::new().name("watch".into()).spawn_scoped(scope, || watch.until(over));
        if let Err(error) = spawned {
            return Err(Error::io("start the thread that watches the run", error));
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&recorded))).unwrap_or_else(|_| {
            Err(Error::new(Kind::Bug, format!("{} of plan {} panicked", run.job.word(), run.plan))
                .hint("please report this, with the lines above"))
        });
        drop(alive);
        result
    });
    let result = match result {
        Err(error) if watch.stalled.load(Ordering::SeqCst) && error.kind() != Kind::Bug => Err(stalled(run, stall, &recorder, &error)),
        Err(error) if watch.lost.load(Ordering::SeqCst) && error.kind() == Kind::Interrupted => Err(lost(claim)),
        result => result,
    };
    let ending = match &result {
        Ok(outcome) => outcome.ending(),
        Err(error) => Ending::of_error(error),
    };
    if ending.state != State::Succeeded {
        recorder.failed(&ending.error.as_ref().map_or_else(|| ending.state.word().to_owned(), ErrorRecord::line));
    }
    let (phases, warnings) = recorder.finish();
    let mut ending = Ending { phases, warnings, ..ending };
    if let Some(why) = surroundings.cancel.reason().filter(|_| ending.state == State::Interrupted) {
        ending.story = Some(why.to_string());
        if let Some(error) = ending.error.as_mut() {
            why.word().clone_into(&mut error.kind);
        }
    }
    log(&ending);
    (result, ending)
}

/// Looks after one run while it works: passes a stop on, says that it lives, and cancels it when it hangs.
struct Watch<'a> {
    journal: &'a Journal,
    claim: Claim,
    surroundings: &'a Surroundings,
    recorder: &'a Recorder,
    /// The run's own cancel: a run that hangs takes no other one with it.
    own: &'a Cancel,
    stall: Option<Duration>,
    stalled: AtomicBool,
    /// The journal says that the run is no longer this process's.
    lost: AtomicBool,
}

impl Watch<'_> {
    /// Until the other end of `over` is gone.
    #[expect(clippy::needless_pass_by_value, reason = "the receiver belongs to this thread")]
    fn until(&self, over: Receiver<()>) {
        let mut beat: Option<Instant> = None;
        let every = self.journal.lease().to_std().unwrap_or_default() / HEARTBEATS;
        loop {
            if beat.is_none_or(|beat| beat.elapsed() >= every) {
                match self.journal.heartbeat(self.claim, self.surroundings.clock.now()) {
                    Ok(true) => {}
                    Ok(false) => {
                        tracing::error!(run = %self.claim.id, "the run was taken over by another process: it is cancelled here");
                        self.lost.store(true, Ordering::SeqCst);
                        self.own.cancel();
                    }
                    Err(error) => tracing::warn!(run = %self.claim.id, error = ?error, "the run's heartbeat could not be recorded"),
                }
                beat = Some(Instant::now());
            }
            if self.surroundings.cancel.is_cancelled() {
                match self.surroundings.cancel.reason() {
                    Some(why) => self.own.cancel_because(why.clone()),
                    None => self.own.cancel(),
                }
            }
            if !self.own.is_cancelled() && self.stall.is_some_and(|stall| self.recorder.silent_for() >= stall) {
                tracing::error!(run = %self.claim.id, "the run hangs: it is cancelled");
                self.stalled.store(true, Ordering::SeqCst);
                self.own.cancel();
            }
            if over.recv_timeout(WATCH_INTERVAL) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }
}

/// Asked right before the manifest, or an entry of the retention ledger, is created: the journal notes which one, under this claim's fence. From then on
/// whoever takes the run over finds that note and decides that key; whoever has taken it over before makes this fail. So one run commits, whatever any clock says.
fn gate(journal: &Journal, claim: Claim, clock: Arc<dyn Clock>, cancel: Cancel) -> CommitGate {
    let journal = journal.clone();
    CommitGate::new(move |repository, commit| {
        let announced = Announced { repository: repository.map(Name::to_string), commit }.to_string();
        let began = Instant::now();
        let patience = if journal.is_shared() { GATE_PATIENCE } else { OWN_GATE_PATIENCE };
        loop {
            match journal.announce(claim, &announced, clock.now()) {
                Ok(true) => return Ok(()),
                Ok(false) => return Err(lost(claim)),
                Err(error) if began.elapsed() < patience => {
                    tracing::warn!(run = %claim.id, error = ?error, "the commit waits for the journal");
                }
                // Nobody else can take it over while this process lives: a good backup is not thrown away for a full disk.
                Err(error) if !journal.is_shared() => {
                    tracing::error!(run = %claim.id, error = ?error, "the journal could not note what is committed");
                    return Ok(());
                }
                Err(error) => return Err(error.within("ask the journal whether this run may still commit: nothing was committed")),
            }
            cancel.check()?;
            std::thread::park_timeout(GATE_PAUSE);
        }
    })
}

/// What a run notes before it commits: the snapshot, or that it is the next entry of the retention ledger; and where that is not in the plan's
/// own repository, before it the name of the one (`REPOSITORY/SNAPSHOT`).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Announced {
    repository: Option<String>,
    commit: Commit,
}

/// Stands for the ledger in a note. No snapshot's id.
const LEDGER: &str = "retention";

impl std::fmt::Display for Announced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(repository) = &self.repository {
            write!(f, "{repository}/")?;
        }
        match self.commit {
            Commit::Snapshot(snapshot) => snapshot.fmt(f),
            Commit::Retention => f.write_str(LEDGER),
        }
    }
}

impl std::str::FromStr for Announced {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (repository, commit) = text.split_once('/').map_or((None, text), |(repository, commit)| (Some(repository.to_owned()), commit));
        let commit = if commit == LEDGER { Commit::Retention } else { Commit::Snapshot(commit.parse()?) };
        Ok(Self { repository, commit })
    }
}

fn lost(claim: Claim) -> Error {
    Error::new(Kind::Busy, format!("run {} was taken over by another process while this one was paused or cut off", claim.id))
        .hint("nothing was committed here; `lifeboat run show` tells what became of it")
}

fn stalled(run: &NewRun, stall: Option<Duration>, recorder: &Recorder, error: &Error) -> Error {
    let minutes = stall.unwrap_or_default().as_secs() / 60;
    let phase = recorder.current_phase().map_or_else(String::new, |phase| format!(" in the phase {phase:?}"));
    Error::new(
        Kind::Unavailable,
        format!("{} of plan {}: no progress for {minutes} minutes{phase}, so it was cancelled ({error})", run.job.word(), run.plan),
    )
    .hint("something that it waits for does not answer: look at the source, the store and the commands of the plan")
}

fn close(journal: &Journal, claim: Claim, ending: &Ending, now: DateTime<Utc>) -> Result<()> {
    if let Ok(false) = journal.heartbeat(claim, now) {
        // The row is somebody else's, and so is its ending.
        return journal.give_back(claim, now);
    }
    journal.close(claim, ending, now).inspect_err(|error| tracing::error!(error = ?error, "the end of the run could not be recorded"))
}

fn log(ending: &Ending) {
    let kind = ending.error.as_ref().map(|error| error.kind.as_str());
    let message = ending.error.as_ref().map(ErrorRecord::line);
    let (snapshot, report) = (ending.snapshot.as_deref(), ending.report.as_deref());
    if ending.state == State::Succeeded && kind.is_none() {
        tracing::info!(snapshot, report, bytes_read = ending.bytes_read, bytes_stored = ending.bytes_stored, "run succeeded");
    } else {
        tracing::error!(state = ending.state.word(), kind, message, snapshot, report, "run did not succeed");
    }
}

/// One job of a plan as the daemon runs it: everything as the plan says.
///
/// # Errors
/// As [`journalled`].
pub fn run_job(journal: &Journal, plans: &Plans, plan: &Plan, run: &NewRun, surroundings: &Surroundings) -> Result<RunId> {
    match run.job {
        Job::Backup => {
            let work = |surroundings: &Surroundings| backup::run(&resolve::plan(plan)?.open(surroundings)?);
            journalled(journal, run, surroundings, work).map(|(id, _)| id)
        }
        Job::Drill => {
            let work = |surroundings: &Surroundings| drill::run(&resolve::plan(plan)?.open(surroundings)?, &DrillRequest::default());
            journalled(journal, run, surroundings, work).map(|(id, _)| id)
        }
        Job::Copy => {
            let work = |surroundings: &Surroundings| scheduled_copies(journal, plan, run.scheduled, surroundings);
            journalled(journal, run, surroundings, work).map(|(id, _)| id)
        }
        Job::Prune => {
            let work = |surroundings: &Surroundings| prune_once(plan, false, surroundings);
            journalled(journal, run, surroundings, work).map(|(id, _)| id)
        }
        // Somebody who answers its questions asks for one, on the command line.
        Job::Restore => Err(Error::new(Kind::Bug, format!("start restore of plan {}: a daemon does not restore", plan.name))),
        Job::Verify => {
            let depth = match plan.verify.data.percent() {
                0 => Depth::Structure,
                percent => Depth::Data { percent },
            };
            let work = |surroundings: &Surroundings| {
                // No source is touched: a secret of one must not stand in the way.
                let settings = resolve::repository(&plan.repository)?;
                let repository = settings.open(surroundings)?;
                // Of all plans: the repository is verified whole, and often by the schedule of one of them.
                let committed = history::committed_to(journal, plans, &plan.repository.name)?;
                let (clock, progress) = (&*surroundings.clock, &*surroundings.progress);
                let report = verify::run_against(&repository, Some(&plan.name), depth, &committed, clock, progress, &surroundings.cancel)?;
                match settings.changed(&repository, surroundings) {
                    Some(changed) if changed.certain => Err(Error::new(Kind::Damaged, changed.message)),
                    // No damage: `status` tells it as what it is.
                    Some(changed) => {
                        surroundings.progress.event(Event::Warning { message: changed.message });
                        Ok(report)
                    }
                    None => Ok(report),
                }
            };
            journalled(journal, run, surroundings, work).map(|(id, _)| id)
        }
    }
}

/// Opens the repository that a run commits to, for [`settle`]: that of its plan, or the one with this name that a copy goes to. `None`: no plan file
/// here names it.
///
/// # Errors
/// When it cannot be opened.
pub fn open_for(plans: &Plans, run: &Run, copy: Option<&str>, surroundings: &Surroundings) -> Result<Option<Repository>> {
    let settings = match copy {
        None => plans.plans.get(&run.plan).map(|plan| &plan.repository),
        Some(name) => plans.repositories.iter().find(|(known, _)| known.as_str() == name).map(|(_, settings)| settings),
    };
    settings.map(|settings| resolve::repository(settings)?.open(surroundings)).transpose()
}

/// Finishes the story of runs whose process died. `open` opens the repository of a run, as [`open_for`] does, to see whether the snapshot was
/// committed after all; only runs of `wanted` are looked at. Returns what was settled.
///
/// Each is first taken over, so that nobody settles it twice; then the manifest that it was about to commit, if it came so far, is found or made
/// impossible for good; only then is its row closed and may be tried again.
///
/// # Errors
/// When the journal cannot be read or written. A run whose repository cannot be asked stays as it is, and is logged.
pub fn settle(
    journal: &Journal,
    wanted: impl Fn(&Run) -> bool,
    open: impl Fn(&Run, Option<&str>) -> Result<Option<Repository>>,
    now: DateTime<Utc>,
) -> Result<Vec<(Run, Ending)>> {
    let mut settled = Vec::new();
    for run in journal.broken()?.into_iter().filter(|run| wanted(run)) {
        let Some(claim) = journal.take_over(&run, now)? else { continue };
        let mut taken = TakenOver { journal, claim, now, is_closed: false };
        match epilogue(journal, &run, &open, now) {
            // It took longer than the lease, and is somebody else's by now: they come to the same end.
            Ok(_) if !journal.heartbeat(claim, now)? => {}
            Ok(ending) => {
                // An ending that cannot be written now is kept by the journal.
                taken.is_closed = true;
                journal.close(claim, &ending, now)?;
                tracing::warn!(run = %run.id, plan = %run.plan, job = run.job.word(), state = ending.state.word(), story = ending.story.as_deref(), "a broken run was settled");
                settled.push((run, ending));
            }
            Err(error) => {
                tracing::error!(run = %run.id, plan = %run.plan, error = ?error, "a broken run cannot be settled yet: whether it committed is not known");
            }
        }
    }
    Ok(settled)
}

/// A broken run that this process has taken over. What comes in between, an error or a panic, gives it back: else nobody would settle it.
struct TakenOver<'a> {
    journal: &'a Journal,
    claim: Claim,
    now: DateTime<Utc>,
    is_closed: bool,
}

impl Drop for TakenOver<'_> {
    fn drop(&mut self) {
        if self.is_closed {
            return;
        }
        if let Err(error) = self.journal.give_back(self.claim, self.now) {
            tracing::error!(run = %self.claim.id, error = ?error, "that a broken run is not settled yet could not be noted");
        }
    }
}

/// Whether the repository must be asked how a broken run ended; of the others the journal knows enough.
pub(super) fn asks_repository(journal: &Journal, run: &Run) -> bool {
    // On a shared journal nothing commits without a note.
    run.announced.is_some() || (run.job == Job::Backup && !journal.is_shared())
}

/// How a run ended whose process did not live to tell.
fn epilogue(
    journal: &Journal,
    run: &Run,
    open: impl Fn(&Run, Option<&str>) -> Result<Option<Repository>>,
    now: DateTime<Utc>,
) -> Result<Ending> {
    let died = format!("process {} on {} ended without closing this run", run.process.pid, run.process.host);
    if let Some(announced) = &run.announced {
        return decided(run, &announced.parse()?, open, &died, now);
    }
    Ok(match run.job {
        Job::Backup if !asks_repository(journal, run) => nothing_committed(&died),
        Job::Backup => match open(run, None)
            .and_then(|repository| repository.map(|repository| committed(journal, run, &repository, now)).transpose())
        {
            Ok(Some(Some(manifest))) => after_crash(&manifest, &died),
            Ok(Some(None)) => nothing_committed(&died),
            Ok(None) => interrupted(format!("{died}; whether its snapshot was committed could not be seen: no plan here says where")),
            Err(error) => interrupted(format!("{died}; whether its snapshot was committed could not be seen: {error:?}")),
        },
        Job::Restore => interrupted(format!("{died}; the target is untouched or whole, `lifeboat restore --resume` continues")),
        Job::Drill | Job::Verify => interrupted(format!("{died}; it left no report")),
        Job::Copy => copies_stay(&died),
        Job::Prune => prune_goes_on(&died),
    })
}

/// The same where it was about to commit: from here on that is done, or never will be.
fn decided(
    run: &Run,
    announced: &Announced,
    open: impl Fn(&Run, Option<&str>) -> Result<Option<Repository>>,
    died: &str,
    now: DateTime<Utc>,
) -> Result<Ending> {
    let Some(repository) = open(run, announced.repository.as_deref())? else {
        let what = match announced.commit {
            Commit::Snapshot(snapshot) => format!("commit snapshot {snapshot}"),
            Commit::Retention => "remove snapshots".to_owned(),
        };
        return Ok(interrupted(format!("{died}; it was about to {what}, and no plan here says where")));
    };
    let snapshot = match announced.commit {
        Commit::Snapshot(snapshot) => snapshot,
        // Whether it has removed them is in the ledger. If not, its view of things is of then, and it must look again before it does.
        Commit::Retention => {
            repository.pass_in_ledger(&format!("run {} was taken over: {died}", run.id), now)?;
            return Ok(prune_goes_on(died));
        }
    };
    Ok(match (repository.decide(&run.plan, snapshot)?, &announced.repository) {
        // What else there was to copy is not known.
        (_, Some(_)) => copies_stay(died),
        (Decided::Committed(manifest), None) => after_crash(&manifest, died),
        (Decided::Removed(removed), None) => {
            let story = format!("{died}, but its snapshot had been committed; retention has removed it since ({})", removed.reason);
            let unknown = || "whether its snapshot was complete is not known any more: retention has removed it".to_owned();
            Ending { story: Some(story), snapshot: Some(snapshot.to_string()), ..ended(Some(Kind::Incomplete), unknown) }
        }
        (Decided::Void, None) => interrupted(format!(
            "{died}; it was about to commit snapshot {snapshot} and now never will, and what was uploaded is used by the next run"
        )),
    })
}

fn prune_goes_on(died: &str) -> Ending {
    interrupted(format!("{died}; the next prune goes on where it was"))
}

fn copies_stay(died: &str) -> Ending {
    interrupted(format!("{died}; what was copied whole stays, and the next copy goes on from there"))
}

fn nothing_committed(died: &str) -> Ending {
    interrupted(format!("{died}; no snapshot was committed, and what was uploaded is used by the next run"))
}

fn interrupted(story: String) -> Ending {
    Ending { story: Some(story), ..Ending::new(State::Interrupted) }
}

/// The ending of a backup whose snapshot was committed before its process died: as complete as its manifest says.
fn after_crash(manifest: &Manifest, died: &str) -> Ending {
    let ending = ending_of_manifest(manifest);
    let how = if ending.state == State::Succeeded { "succeeded" } else { "incomplete" };
    Ending { story: Some(format!("{how} after a crash: {died}, but its snapshot had been committed")), ..ending }
}

/// The ending of the backup that committed this.
pub(super) fn ending_of_manifest(manifest: &Manifest) -> Ending {
    let problems = backup::missing(&manifest.sources).len();
    let exit = (problems > 0).then_some(Kind::Incomplete);
    Ending {
        snapshot: Some(manifest.id.to_string()),
        bytes_read: Some(manifest.stats.bytes_read),
        bytes_stored: Some(manifest.stats.bytes_stored),
        ..ended(exit, || format!("{problems} objects of the source could not be backed up as they should"))
    }
}

/// The snapshot that a broken backup committed: of the same plan and host, begun while the run was known to live, of no other run.
/// Where more than one could be it, none is taken: a run that is said to have failed is made again, a wrong success is not.
fn committed(journal: &Journal, run: &Run, repository: &Repository, now: DateTime<Utc>) -> Result<Option<Manifest>> {
    // Of a run that was over long before, the snapshot was begun before too.
    let since = Some(run.started - LEASE * 60);
    let known = journal.runs(&Filter { plan: Some(run.plan.clone()), job: Some(Job::Backup), since, ..Filter::default() })?;
    let mut own = repository.manifests(Some(&run.plan))?;
    own.retain(|manifest| may_be_of(&known, run, manifest, now));
    match own.len() {
        0 | 1 => Ok(own.pop()),
        count => Err(Error::new(Kind::Failed, format!("{count} snapshots were begun while it was on"))),
    }
}

/// Whether a snapshot can be the one of `run`. Pure.
fn may_be_of(known: &[Run], run: &Run, manifest: &Manifest, now: DateTime<Utc>) -> bool {
    let id = manifest.id.to_string();
    // The manifest's clock is the same machine's, read after the run's. A run without a heartbeat died early or is of an old version.
    let until = run.lease_until.unwrap_or(run.started + LEASE * 5).min(now);
    manifest.host == run.process.host
        && (run.started..=until).contains(&manifest.started)
        && known.iter().all(|other| {
            let began_between = other.id != run.id && other.started > run.started && other.started <= manifest.started;
            other.snapshot.as_deref() != Some(&id) && !began_between
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::SnapshotId;
    use crate::source::{Finish, Problem};
    use crate::{clock::SystemClock, event::Silent, repo::Stats};

    fn at(text: &str) -> DateTime<Utc> {
        format!("2026-11-20T{text}Z").parse().unwrap()
    }

    fn new_run() -> NewRun {
        NewRun::manual(&Name::new("crm").unwrap(), Job::Backup, "tester", at("02:00:00"))
    }

    fn manifest(started: &str, problems: usize) -> Manifest {
        let problem = Problem { object: "a".into(), kind: "unreadable".into(), message: "no".into() };
        let finish = Finish { problems: vec![problem; problems], ..Finish::default() };
        let host = crate::daemon::owner::host();
        let finish = serde_json::to_value(finish).unwrap();
        let tree = serde_json::json!({ "depth": 0, "nodes": "" });
        let record = serde_json::json!({ "name": "files", "kind": "files", "entries": 1, "bytes": 1, "finish": finish, "tree": tree });
        let stats = serde_json::to_value(Stats::default()).unwrap();
        let value = serde_json::json!({
            "id": SnapshotId::generate(at(started)), "plan": "crm", "host": host, "started": at(started), "time": at(started),
            "parents": [], "sources": [record], "stats": stats, "tags": [], "program": "test",
        });
        serde_json::from_value(value).unwrap()
    }

    fn dead_run(lease: Option<&str>) -> Run {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), at("02:00:00")).unwrap();
        let claim = journal.begin(&new_run(), at("02:00:00")).unwrap();
        if let Some(lease) = lease {
            journal.heartbeat(claim, at(lease)).unwrap();
        }
        journal.run(claim.id).unwrap()
    }

    #[test]
    fn an_error_or_a_panic_while_a_broken_run_is_settled_leaves_it_to_be_settled() {
        use crate::daemon::journal::faults::{Effect, Faults};

        let folder = tempfile::tempdir().unwrap();
        let now = at("02:10:00");
        {
            let dead = Journal::open(folder.path(), at("02:00:00")).unwrap();
            dead.begin(&new_run(), at("02:00:00")).unwrap();
        }
        let faults = Faults::default();
        let journal = Journal::with_faults(folder.path(), faults.clone(), now).unwrap();
        let unknown = |_: &Run, _: Option<&str>| Ok(None);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| settle(&journal, |_| true, |_, _| panic!("a bug"), now)));
        assert!(panicked.is_err());
        assert_eq!(journal.broken().unwrap().len(), 1);
        // It is taken over, and the next that is written fails.
        faults.at(faults.writes() + 2, Effect::Fail(Kind::NoSpace));
        assert_eq!(settle(&journal, |_| true, unknown, now).unwrap_err().kind(), Kind::NoSpace);
        faults.clear();
        assert_eq!(journal.broken().unwrap().len(), 1);
        assert_eq!(settle(&journal, |_| true, unknown, now).unwrap().len(), 1);
        assert!(journal.broken().unwrap().is_empty());
    }

    #[test]
    fn an_incomplete_snapshot_stays_incomplete_after_a_crash() {
        let ending = after_crash(&manifest("02:00:01", 2), "x");
        assert_eq!((ending.state, ending.error.unwrap().kind.as_str()), (State::Incomplete, "incomplete"));
        let ending = after_crash(&manifest("02:00:01", 0), "x");
        assert_eq!((ending.state, ending.error), (State::Succeeded, None));
    }

    #[test]
    fn a_missed_objective_is_no_failed_run() {
        let ending = ended(Some(Kind::ObjectiveMissed), || "slow".into());
        assert_eq!((ending.state, ending.error.unwrap().kind.as_str()), (State::Succeeded, "objective-missed"));
        assert_eq!(ended(Some(Kind::Damaged), || "bad".into()).state, State::Failed);
    }

    #[test]
    fn each_copy_is_made_when_it_is_due_and_what_one_lacks_is_made_up() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let secret = folder.path().join("passphrase");
        std::fs::write(&secret, "correct horse battery staple").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        let repository =
            |name: &str| format!("[repository.{name}]\nurl = \"file://{path}/{name}\"\npassphrase = {{ file = \"{path}/passphrase\" }}\n");
        // In twelve hours: none of its slots is near.
        let hour = chrono::Timelike::hour(&(Utc::now() + chrono::TimeDelta::hours(12)));
        let text = format!(
            "version = 1\n{}{}{}[source.dump]\nkind = \"command\"\ndump = [\"echo\", \"x\"]\n[plan.crm]\nsource = \"dump\"\nrepository = \"main\"\n\
             timezone = \"UTC\"\n[[plan.crm.copy]]\nto = \"near\"\nschedule = \"0 * * * *\"\n[[plan.crm.copy]]\nto = \"far\"\nschedule = \"30 {hour} * * *\"\n",
            repository("main"),
            repository("near"),
            repository("far")
        );
        std::fs::create_dir(folder.path().join("plans")).unwrap();
        std::fs::write(folder.path().join("plans/crm.toml"), text).unwrap();
        let plans = Plans::load(&[folder.path().join("plans")]).unwrap();
        let plan = plans.plan("crm").unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let surroundings = Surroundings {
            state: folder.path().join("state"),
            runtime: runtime.handle().clone(),
            clock: Arc::new(SystemClock),
            progress: Arc::new(Silent),
            cancel: Cancel::default(),
            gate: CommitGate::default(),
        };
        for planned in plans.repositories.values() {
            crate::ops::init::run(&resolve::repository(planned).unwrap(), &surroundings).unwrap();
        }
        let journal = Journal::open(&surroundings.state, Utc::now()).unwrap();
        let backup =
            || run_job(&journal, &plans, plan, &NewRun::manual(&plan.name, Job::Backup, "tester", Utc::now()), &surroundings).unwrap();
        let copy = |slot: DateTime<Utc>| {
            let run = NewRun::of_slot(&plan.name, Job::Copy, crate::daemon::job::Trigger::Schedule, slot, RunId::generate(Utc::now()));
            run_job(&journal, &plans, plan, &run, &surroundings).unwrap();
            plan.copies
                .iter()
                .map(|copy| resolve::repository(&copy.to).unwrap().open(&surroundings).unwrap().manifests(Some(&plan.name)).unwrap().len())
                .collect::<Vec<_>>()
        };
        let [near, far] = [0, 1].map(|n: usize| plan.copies[n].schedule.clone().unwrap());
        backup();
        assert_eq!(copy(near.next_after(Utc::now()).unwrap()), [1, 0]);
        let of_far = far.next_after(Utc::now()).unwrap();
        assert_eq!(copy(of_far), [1, 1]);
        backup();
        // As if the far one had failed at its slot: the next run of copies makes it up.
        assert_eq!(copy(near.next_after(of_far).unwrap()), [2, 2]);
    }

    #[test]
    fn what_was_announced_is_understood_by_whoever_takes_over() {
        for text in ["01arz3ndektsv4rrffq69g5fav", "second/01arz3ndektsv4rrffq69g5fav", "retention", "second/retention"] {
            assert_eq!(text.parse::<Announced>().unwrap().to_string(), text);
        }
        assert!("second/".parse::<Announced>().is_err() && "retentions".parse::<Announced>().is_err());
    }

    #[test]
    fn a_verification_needs_no_secret_of_a_source() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let secret = folder.path().join("passphrase");
        std::fs::write(&secret, "correct horse battery staple").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        let text = format!(
            r#"version = 1
[repository.main]
url = "file://{path}/repository"
passphrase = {{ file = "{path}/passphrase" }}
[source.dump]
kind = "command"
dump = ["true"]
environment = {{ PASSWORD = {{ env = "LIFEBOAT_TEST_NOT_SET" }} }}
[plan.crm]
sources = ["dump"]
repository = "main"
"#
        );
        std::fs::create_dir(folder.path().join("plans")).unwrap();
        std::fs::write(folder.path().join("plans/crm.toml"), text).unwrap();
        let plans = crate::plan::Plans::load(&[folder.path().join("plans")]).unwrap();
        let plan = plans.plan("crm").unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let surroundings = Surroundings {
            state: folder.path().join("state"),
            runtime: runtime.handle().clone(),
            clock: Arc::new(SystemClock),
            progress: Arc::new(Silent),
            cancel: Cancel::default(),
            gate: CommitGate::default(),
        };
        crate::ops::init::run(&resolve::repository(&plan.repository).unwrap(), &surroundings).unwrap();
        let journal = Journal::open(&surroundings.state, Utc::now()).unwrap();
        let verify = NewRun { job: Job::Verify, ..new_run() };
        run_job(&journal, &plans, plan, &verify, &surroundings).unwrap();
        assert_eq!(run_job(&journal, &plans, plan, &new_run(), &surroundings).unwrap_err().kind(), Kind::Usage);
    }

    #[test]
    fn only_a_snapshot_begun_while_the_run_lived_is_its_own() {
        let run = dead_run(Some("02:01:00"));
        let now = at("09:00:00");
        let known = [run.clone()];
        assert!(may_be_of(&known, &run, &manifest("02:00:01", 0), now));
        assert!(!may_be_of(&known, &run, &manifest("01:59:59", 0), now), "begun before it");
        assert!(!may_be_of(&known, &run, &manifest("04:00:00", 0), now), "begun when it was dead");
        let elsewhere = Manifest { host: "elsewhere".into(), ..manifest("02:00:01", 0) };
        assert!(!may_be_of(&known, &run, &elsewhere, now));
        let taken = manifest("02:00:01", 0);
        let other = Run { id: RunId::generate(now), snapshot: Some(taken.id.to_string()), ..run.clone() };
        assert!(!may_be_of(&[run.clone(), other], &run, &taken, now), "of another run");
        let later = Run { id: RunId::generate(now), started: at("02:00:30"), ..run.clone() };
        assert!(!may_be_of(&[run.clone(), later], &run, &manifest("02:00:40", 0), now), "a later run was nearer");
        let silent = dead_run(None);
        assert!(!may_be_of(std::slice::from_ref(&silent), &silent, &manifest("02:30:00", 0), now), "long after its only sign of life");
    }

    #[test]
    fn a_run_that_hangs_is_cancelled_alone_and_fails_as_unavailable() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let surroundings = Surroundings {
            state: folder.path().to_owned(),
            runtime: runtime.handle().clone(),
            clock: Arc::new(SystemClock),
            progress: Arc::new(Silent),
            cancel: Cancel::default(),
            gate: CommitGate::default(),
        };
        let journal = Journal::open(folder.path(), Utc::now()).unwrap();
        let hang = |surroundings: &Surroundings| -> Result<BackupReport> {
            loop {
                surroundings.cancel.check()?;
                std::thread::park_timeout(Duration::from_millis(10));
            }
        };
        let error = watched(&journal, &new_run(), &surroundings, Some(Duration::from_millis(300)), hang).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(!surroundings.cancel.is_cancelled(), "no other run is stopped");
        let runs = journal.runs(&Filter::default()).unwrap();
        assert_eq!((runs[0].state, runs[0].kind.as_deref()), (State::Failed, Some("unavailable")));
        assert!(runs[0].error.as_ref().unwrap().message.contains("no progress for"), "{runs:?}");
        assert!(runs[0].lease_until.is_some());
        surroundings.cancel.cancel();
        let error = watched(&journal, &new_run(), &surroundings, Some(STALL), hang).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::Interrupted, "a stop reaches the run");
    }
}
