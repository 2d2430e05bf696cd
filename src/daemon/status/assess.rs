//! Judges a plan by what is known of it. Pure.

use chrono::{DateTime, TimeDelta, Utc};

use crate::daemon::journal::{ErrorRecord, Job, Run, State};
use crate::daemon::status::forecast::{Forecast, Measured, Size, forecast};
use crate::daemon::status::{Facts, OVERDUE, PlanStatus, Problem, ProblemKind, Stored, ms};
use crate::error::Kind;
use crate::id::{Name, SnapshotId};
use crate::ops::damage::{self, Damage};
use crate::ops::drill::DrillReport;
use crate::ops::{Missing, backup, select};
use crate::plan::Plan;
use crate::repo::{Manifest, ReportKind, ReportRecord};

/// Clocks of machines that share a journal differ by less than this.
const CLOCKS: TimeDelta = TimeDelta::minutes(1);

/// Judges one plan.
#[must_use]
pub fn assess(plan: &Plan, facts: &Facts, now: DateTime<Utc>) -> PlanStatus {
    let mut problems = Vec::new();
    let stored = match &facts.repository {
        Some(Ok(stored)) => Some(&**stored),
        Some(Err(why)) => {
            problems.push(match why.kind {
                _ if why.secret => Problem::new(
                    ProblemKind::SecretUnavailable,
                    format!("the repository was not asked, a secret cannot be had: {}", why.message),
                ),
                Kind::Damaged => {
                    Problem::new(ProblemKind::Damaged, format!("the repository is damaged, and could not be asked: {}", why.message))
                }
                Kind::WrongKey => {
                    Problem::new(ProblemKind::WrongKey, format!("the passphrase does not open the repository: {}", why.message))
                }
                _ => Problem::new(ProblemKind::RepositoryUnreachable, format!("the repository could not be asked: {}", why.message)),
            });
            None
        }
        None => None,
    };
    let newest = stored.and_then(|stored| select::latest(&stored.manifests));
    let journal_backup = facts.last_backup.as_ref();
    let whole_run = facts.last_whole_backup.as_ref();
    // What the repository cannot have told, because it was not asked or not asked since, the journal tells.
    let untold = |run: &&Run| stored.is_none_or(|stored| ended_later(run, stored) && !has_snapshot_of(stored, run));
    let (backup_later, whole_later) = (journal_backup.filter(untold), whole_run.filter(untold));
    let recovery_point = newest.map(|manifest| manifest.time).max(backup_later.map(|run| run.started));
    let without_gap = stored.and_then(|stored| stored.manifests.iter().filter(|m| gaps(plan, m).is_empty()).map(|m| m.time).max());
    let gone_back = stored.and_then(|stored| gone_back(stored, journal_backup?));
    let last_success = without_gap.max(whole_run.filter(|_| gone_back.is_none()).and_then(|run| run.ended));
    let whole = stored.and_then(|stored| newest_whole(plan, stored, now));
    let whole_point = whole.map(|manifest| manifest.time).max(whole_later.map(|run| run.started));
    let data_loss_ms = whole_point.and_then(|point| select::age_ms(point, now));
    let drills = stored.map(|stored| drills(plan, stored, now)).unwrap_or_default();
    let recovery_time_ms = drills.iter().rev().find_map(|(_, drill)| measured_ms(plan, drill.as_ref()?));
    let proven = stored.and_then(|stored| select::latest_proven(&stored.manifests, &stored.reports, now));

    let destroyed = stored.and_then(|stored| newest_destroyed(stored, recovery_point));
    if recovery_point.is_none() && destroyed.is_none() && stored.is_some() {
        problems.push(Problem::new(ProblemKind::NeverBackedUp, "there is no snapshot: nothing can be restored"));
    }
    problems.extend(destroyed);
    // A later one that is incomplete says so by its run.
    problems.extend(newest.filter(|_| backup_later.is_none()).and_then(|newest| incomplete(plan, newest)));
    problems.extend(clock(stored.map_or(&[], |stored| &stored.manifests), recovery_point, now));
    problems.extend(newest.and_then(|newest| clock_behind(newest, now)));
    problems.extend(stored.into_iter().flat_map(|stored| misdated(plan, stored, now)));
    problems.extend(facts.overdue.iter().map(|(job, due)| overdue(*job, *due, &facts.running)));
    problems.extend(facts.running.iter().filter_map(|run| too_long(run, &facts.usual, now)));
    // The newest snapshot says itself what it lacks.
    let told = newest.map(|newest| newest.id.to_string());
    problems.extend(facts.last.iter().filter_map(|run| of_run(run, told.as_deref())));
    problems.extend(objectives(plan, data_loss_ms, recovery_time_ms));
    let forecast = stored.map(|stored| expected(plan, stored, &drills, now));
    problems.extend(forecast.as_ref().and_then(|forecast| too_slow_soon(plan, forecast, recovery_time_ms, now)));
    problems.extend(too_old_soon(plan, whole_point, facts, now));
    if let (Some(_), None, Some(limit)) = (recovery_point, whole_point, plan.objectives.data_loss) {
        let limit = limit.as_secs();
        problems.push(Problem::new(
            ProblemKind::DataLossObjective,
            format!("no snapshot is whole: a disaster now would lose what each of them lacks, {limit} s of work are allowed"),
        ));
    }
    problems.extend(drill_problems(facts, stored, &drills));
    if stored.is_some() && proven.is_none() && recovery_point.is_some() {
        let passed = drills.iter().map(|(record, _)| record).filter(|record| record.passed);
        let of_snapshots: Vec<bool> = passed.map(|record| !record.snapshots.is_empty()).collect();
        problems.push(Problem::new(
            ProblemKind::NeverProven,
            match of_snapshots.contains(&true) {
                true => "no snapshot that is there is proven: what drills proved is gone, or a later drill or verification took it back",
                false if of_snapshots.is_empty() => "no drill has ever passed: recovery is not proven",
                false => {
                    "drills recovered moments between snapshots, where there is nothing to compare content with: no snapshot is proven (`lifeboat drill`)"
                }
            },
        ));
    }
    problems.extend(stored.and_then(|stored| stored.changed.clone()).map(Problem::from));
    problems.extend(gone_back);
    problems.extend(stored.and_then(|stored| stored.lock.clone()).map(|told| Problem::new(ProblemKind::LockLapsed, told)));
    problems.extend(stored.and_then(standing_damage));
    problems.extend(stored.into_iter().flat_map(|stored| &stored.damaged).map(|lost| Problem::new(ProblemKind::Damaged, lost.clone())));
    let next = facts.next.iter().min_by_key(|(_, at)| *at);
    PlanStatus {
        name: plan.name.to_string(),
        last_success,
        snapshot: backup_later.and_then(|run| run.snapshot.clone()).or_else(|| newest.map(|manifest| manifest.id.to_string())),
        recovery_point,
        whole_snapshot: whole_later.and_then(|run| run.snapshot.clone()).or_else(|| whole.map(|manifest| manifest.id.to_string())),
        whole_point,
        snapshots: stored.map_or(0, |stored| u64::try_from(stored.there().count()).unwrap_or(u64::MAX)),
        restorable_from: stored.and_then(|stored| oldest_whole(plan, stored, now)).or(whole_point),
        restorable_to: whole_point,
        bytes_source: whole.map(bytes),
        data_loss_ms,
        data_loss_objective_ms: plan.objectives.data_loss.map(ms),
        recovery_time_ms,
        recovery_time_objective_ms: plan.objectives.recovery_time.map(ms),
        forecast,
        proven_at: proven.map(|(_, at)| at),
        proven_point: proven.map(|(manifest, _)| manifest.time),
        next_run: next.map(|(_, at)| *at),
        next_job: next.map(|(job, _)| job.word().to_owned()),
        running: facts.running.iter().map(|run| run.id.to_string()).collect(),
        repository_reachable: stored.is_some(),
        logs: Vec::new(),
        copies: Vec::new(),
        problems,
    }
}

/// Whether the repository was asked before the run ended: what it did need not be in the answer.
fn ended_later(run: &Run, stored: &Stored) -> bool {
    run.ended.zip(stored.asked).is_some_and(|(ended, asked)| ended > asked)
}

fn has_snapshot_of(stored: &Stored, run: &Run) -> bool {
    let id = run.snapshot.as_deref().and_then(|id| id.parse::<SnapshotId>().ok());
    id.is_some_and(|id| stored.there().any(|manifest| manifest.id == id))
}

/// The last backup's snapshot is not there, and none that is newer: nobody removes the newest on purpose. `None` where the plan has no snapshot at all (that is told
/// otherwise), or what is there cannot all be read.
fn gone_back(stored: &Stored, last: &Run) -> Option<Problem> {
    let id: SnapshotId = last.snapshot.as_deref()?.parse().ok()?;
    let is_newer = last.ended? + CLOCKS > stored.asked?;
    let newest = stored.there().map(|manifest| manifest.id).max()?;
    // Somebody has accepted that it is lost.
    let is_removed = stored.ledger.is_removed(id);
    if is_newer || newest >= id || is_removed || !stored.damaged.is_empty() {
        return None;
    }
    let message = format!(
        "snapshot {id}, which backup {} committed, is not in the repository, and {newest} is the newest there: it was put back to an older state, or somebody deleted \
         what came later; `lifeboat verify` names all that is missing",
        last.id
    );
    Some(Problem::of(ProblemKind::Damaged, Job::Backup, message))
}

/// That the newest snapshots restore nothing, whatever was backed up: until the next backup, only what is of `recovery_point` does.
fn newest_destroyed(stored: &Stored, recovery_point: Option<DateTime<Utc>>) -> Option<Problem> {
    let newer: Vec<_> = stored.destroyed.iter().filter(|(manifest, _)| recovery_point.is_none_or(|point| manifest.time > point)).collect();
    let (last, at) = newer.iter().max_by_key(|(manifest, _)| (manifest.time, manifest.id))?;
    let left = recovery_point.map_or_else(|| "nothing".to_owned(), |point| format!("nothing newer than {}", select::moment(point)));
    let message = format!(
        "{left} can be restored: the key of {} (the last is {}) was destroyed at {}. Make a new key with `lifeboat key own` and a backup, or take the plan out",
        crate::ops::counted(newer.len(), "snapshot"),
        select::describe(last),
        select::moment(*at)
    );
    Some(Problem::new(ProblemKind::KeyDestroyed, message))
}

/// A backup or a drill that goes on for so many times as long as the last one took is told of, long before its next slot comes; never before
/// [`OVERDUE`]. What other jobs have to do varies far more.
const LONG: i32 = 4;

fn too_long(run: &Run, usual: &[(Job, TimeDelta)], now: DateTime<Utc>) -> Option<Problem> {
    let (_, usual) = usual.iter().find(|(job, _)| *job == run.job && matches!(job, Job::Backup | Job::Drill))?;
    let limit = (*usual * LONG).max(OVERDUE);
    if now - run.started <= limit {
        return None;
    }
    // Nothing that changes with every look.
    let message = format!(
        "{} {} goes on since {}, more than {} minutes; the last one took {} s: `lifeboat run show {}` tells where it is",
        run.job.word(),
        run.id,
        select::moment(run.started),
        limit.num_minutes(),
        usual.num_seconds(),
        run.id
    );
    Some(Problem::of(ProblemKind::RunningLong, run.job, message))
}

/// Content of a snapshot.
fn bytes(manifest: &Manifest) -> u64 {
    manifest.sources.iter().map(|source| source.bytes).sum()
}

/// What a drill measured of the recovery of this plan.
fn measured_ms(plan: &Plan, drill: &DrillReport) -> Option<u64> {
    drill.measured_ms(plan.sources.iter().map(|source| source.kind.word()))
}

/// What the next recovery is expected to take. Log that a drill went through has its time in it, and is not content.
fn expected(plan: &Plan, stored: &Stored, drills: &[(&ReportRecord, Option<DrillReport>)], now: DateTime<Utc>) -> Forecast {
    let measured = drills.iter().filter_map(|(record, drill)| {
        let drill = drill.as_ref()?;
        Some(Measured { time: record.time, bytes: drill.bytes_restored, ms: measured_ms(plan, drill)? })
    });
    // Of snapshots that lack something the size is no size.
    let whole = stored.manifests.iter().filter(|manifest| manifest.time <= now && gaps(plan, manifest).is_empty());
    let sizes: Vec<Size> = whole.map(|manifest| Size { time: manifest.time, bytes: bytes(manifest) }).collect();
    forecast(&measured.collect::<Vec<_>>(), &sizes, plan.objectives.recovery_time.map(ms), now)
}

/// So long before its objective breaks a plan says so.
const WARNING: TimeDelta = TimeDelta::days(30);

/// The objective holds, and at this growth will not for long.
fn too_slow_soon(plan: &Plan, forecast: &Forecast, measured: Option<u64>, now: DateTime<Utc>) -> Option<Problem> {
    let limit = plan.objectives.recovery_time.map(ms)?;
    let at = forecast.breaks_at.filter(|at| *at - now <= WARNING && measured.is_some_and(|time| time <= limit))?;
    let grows = forecast.growth_bytes_per_day.unwrap_or(0);
    let when = if at <= now { "now".to_owned() } else { format!("on {}", at.format("%Y-%m-%d")) };
    let message = format!(
        "the recovery time objective breaks {when} at this growth ({grows} bytes a day): {} s are expected, {} s are allowed ({})",
        forecast.recovery_time_ms.unwrap_or(0) / 1000,
        limit / 1000,
        forecast.note
    );
    Some(Problem::new(ProblemKind::RecoveryTimeForecast, message))
}

/// More than four fifths of the time are over, nothing is at work, and the next backup comes too late.
fn too_old_soon(plan: &Plan, whole_point: Option<DateTime<Utc>>, facts: &Facts, now: DateTime<Utc>) -> Option<Problem> {
    let limit = TimeDelta::from_std(plan.objectives.data_loss?).ok()?;
    let breaks = whole_point? + limit;
    let next = facts.next.iter().filter(|(job, _)| *job == Job::Backup).map(|(_, at)| *at).min();
    let at_work = facts.running.iter().any(|run| run.job == Job::Backup);
    let near = now < breaks && breaks - now < limit / 5;
    if !near || at_work || next.is_some_and(|next| next < breaks) {
        return None;
    }
    let then = next.map_or_else(|| "none is scheduled".to_owned(), |next| format!("the next is due at {}", select::moment(next)));
    Some(Problem::new(
        ProblemKind::DataLossForecast,
        format!("without a backup before {} the data loss objective is missed: {then}", select::moment(breaks)),
    ))
}

/// The drills of the plan, oldest first, without those that passed at a moment that has not been yet; the document is `None` where it is of a later version than
/// this program can read.
fn drills<'a>(plan: &Plan, stored: &'a Stored, now: DateTime<Utc>) -> Vec<(&'a ReportRecord, Option<DrillReport>)> {
    let own = |record: &&ReportRecord| {
        record.kind == ReportKind::Drill
            && record.plan.as_deref() == Some(plan.name.as_str())
            && !(record.passed && select::is_misdated(record.id, record.time, now))
    };
    stored
        .reports
        .iter()
        .map(AsRef::as_ref)
        .filter(own)
        .map(|record| (record, serde_json::from_value(record.document.clone()).ok()))
        .collect()
}

/// Sources of the plan that a snapshot has nothing of.
fn without<'a>(plan: &'a Plan, manifest: &'a Manifest) -> impl Iterator<Item = &'a Name> {
    plan.sources.iter().map(|source| &source.name).filter(|name| manifest.sources.iter().all(|record| record.name != **name))
}

/// What a snapshot lacks, as its own manifest tells: known on every machine, without the journal of the one that made it.
fn gaps(plan: &Plan, manifest: &Manifest) -> Vec<String> {
    let say = |missing: Missing| format!("{}: {} {} ({})", missing.source, missing.object, missing.kind, missing.message);
    let absent = without(plan, manifest).map(|name| format!("all of source {name}"));
    absent.chain(backup::missing(&manifest.sources).into_iter().map(say)).collect()
}

/// The newest that lacks no content and is not known to be damaged. A source that the plan got after the last whole one counts: there is no
/// snapshot that has it.
pub(in crate::daemon::status) fn newest_whole<'a>(plan: &Plan, stored: &'a Stored, now: DateTime<Utc>) -> Option<&'a Manifest> {
    let whole = |manifest: &&Manifest| {
        !backup::lacks_content(&manifest.sources)
            && without(plan, manifest).next().is_none()
            && damage::of_snapshot(&stored.reports, &stored.standing, manifest.id, now).is_none()
    };
    let newest = select::latest(&stored.manifests).filter(whole);
    newest.or_else(|| stored.manifests.iter().filter(whole).max_by_key(|manifest| (manifest.time, manifest.id)))
}

/// The moment of the oldest that is whole in this sense.
fn oldest_whole(plan: &Plan, stored: &Stored, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let whole = |manifest: &&Manifest| {
        !backup::lacks_content(&manifest.sources)
            && without(plan, manifest).next().is_none()
            && damage::of_snapshot(&stored.reports, &stored.standing, manifest.id, now).is_none()
    };
    stored.manifests.iter().filter(whole).map(|manifest| manifest.time).min()
}

fn incomplete(plan: &Plan, newest: &Manifest) -> Option<Problem> {
    const NAMED: usize = 3;
    let mut lacks = gaps(plan, newest);
    let more = lacks.len().saturating_sub(NAMED);
    lacks.truncate(NAMED);
    let others = if more == 0 { String::new() } else { format!("; and {more} more") };
    let message = format!("the newest snapshot ({}) is incomplete, it lacks: {}{others}", newest.id, lacks.join("; "));
    (!lacks.is_empty()).then(|| Problem::of(ProblemKind::Incomplete, Job::Backup, message))
}

/// A snapshot of a moment that has not been yet.
fn clock(manifests: &[Manifest], recovery_point: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Option<Problem> {
    let latest = manifests.iter().max_by_key(|manifest| manifest.time);
    let moment = latest.map(|manifest| manifest.time).max(recovery_point).filter(|moment| select::age_ms(*moment, now).is_none())?;
    let whose =
        latest.map_or_else(|| "this host's clock was".to_owned(), |m| format!("this host's clock, or that of {} that made it,", m.host));
    let loss = recovery_point.is_some_and(|point| select::age_ms(point, now).is_none());
    let unknown = if loss { "; what would be lost now is not known" } else { "" };
    Some(Problem::new(
        ProblemKind::Clock,
        format!("a snapshot is of {}, and now is {}: {whose} wrong{unknown}", select::moment(moment), select::moment(now)),
    ))
}

/// The last snapshot was made while the clock of its host was behind: what the plan has is newer than it looks.
fn clock_behind(newest: &Manifest, now: DateTime<Utc>) -> Option<Problem> {
    let at_least = select::clock_was_behind(newest, now)?;
    Some(Problem::new(
        ProblemKind::Clock,
        format!(
            "the last snapshot ({}) is dated {}, and one that was committed before it {}: the clock of {} that made it is behind, or that of the other one was ahead",
            newest.id,
            select::moment(newest.time),
            select::moment(at_least),
            newest.host
        ),
    ))
}

/// The last verification, or drill of the plan, is of a moment that has not been yet: what it found sound does not count, until then or until there is another one.
fn misdated(plan: &Plan, stored: &Stored, now: DateTime<Utc>) -> Vec<Problem> {
    let is_own = |record: &&ReportRecord| record.kind == ReportKind::Verify || record.plan.as_deref() == Some(plan.name.as_str());
    let told = |(kind, job): (ReportKind, Job)| {
        let of_kind = stored.reports.iter().map(AsRef::as_ref).filter(is_own).filter(|record| record.kind == kind);
        let last = of_kind.max_by_key(|record| record.id).filter(|record| select::is_misdated(record.id, record.time, now))?;
        let message = format!(
            "the last {} (report {}) is dated {}, and now is {}: the clock of the host that ran it was wrong; what it found sound does not count, run another one",
            job.word(),
            last.id,
            select::moment(last.time),
            select::moment(now)
        );
        Some(Problem::of(ProblemKind::Clock, job, message))
    };
    [(ReportKind::Verify, Job::Verify), (ReportKind::Drill, Job::Drill)].into_iter().filter_map(told).collect()
}

/// A run in the way does not excuse what did not start: it may hang.
fn overdue(job: Job, due: DateTime<Utc>, running: &[Run]) -> Problem {
    let in_the_way = running.iter().find(|run| run.job == job).or_else(|| running.first());
    let why = in_the_way.map_or_else(String::new, |run| {
        format!("; a {} run has been going since {} (run {})", run.job.word(), select::moment(run.started), run.id)
    });
    Problem::of(
        ProblemKind::Overdue,
        job,
        format!("a {} was due at {} and did not start{why}", job.word(), due.format("%Y-%m-%d %H:%M:%S UTC")),
    )
}

fn why(run: &Run) -> String {
    run.error.as_ref().map(ErrorRecord::line).or_else(|| run.story.clone()).unwrap_or_default()
}

/// What the newest run of a job says. `told`: a snapshot whose gaps are told already.
fn of_run(run: &Run, told: Option<&str>) -> Option<Problem> {
    let (job, id, why) = (run.job.word(), run.id, why(run));
    match run.state {
        // Told by the drill's report, or where that is not to be had as a drill without one.
        State::Failed | State::Incomplete if run.job == Job::Drill && run.report.is_some() => None,
        State::Failed if run.job == Job::Drill => {
            Some(Problem::of(ProblemKind::Failed, run.job, format!("the last drill could not be done: {why} (run {id})")))
        }
        // What will not pass by itself, and nothing else of the plan may show: the repository only grows.
        State::Failed if run.job == Job::Prune && run.error.as_ref().is_some_and(|error| error.kind == Kind::Damaged.word()) => {
            Some(Problem::of(
                ProblemKind::RetentionBlocked,
                run.job,
                format!("the last prune could not do what the plan says: {why} (run {id})"),
            ))
        }
        State::Failed => Some(Problem::of(ProblemKind::Failed, run.job, format!("the last {job} failed: {why} (run {id})"))),
        State::Incomplete if told.is_some() && run.snapshot.as_deref() == told => None,
        State::Incomplete => {
            Some(Problem::of(ProblemKind::Incomplete, run.job, format!("the last {job} was incomplete: {why} (run {id})")))
        }
        State::Interrupted => {
            Some(Problem::of(ProblemKind::Interrupted, run.job, format!("the last {job} was interrupted: {why} (run {id})")))
        }
        State::Missed => Some(Problem::of(ProblemKind::Missed, run.job, format!("the last {job} was not run: {why}"))),
        State::Running | State::Succeeded => None,
    }
}

pub(in crate::daemon::status) fn objectives(plan: &Plan, data_loss_ms: Option<u64>, recovery_time_ms: Option<u64>) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let (Some(loss), Some(limit)) = (data_loss_ms, plan.objectives.data_loss.map(ms))
        && loss > limit
    {
        problems.push(Problem::new(
            ProblemKind::DataLossObjective,
            format!("a disaster now would lose {} s of work, {} s are allowed", loss / 1000, limit / 1000),
        ));
    }
    if let (Some(time), Some(limit)) = (recovery_time_ms, plan.objectives.recovery_time.map(ms))
        && time > limit
    {
        problems.push(Problem::new(
            ProblemKind::RecoveryTimeObjective,
            format!("the last measured recovery took {} s, {} s are allowed", time / 1000, limit / 1000),
        ));
    }
    problems
}

/// The last stored drill, and a later one of this host whose report is not in the repository: nothing but the journal knows of it.
fn drill_problems(facts: &Facts, stored: Option<&Stored>, drills: &[(&ReportRecord, Option<DrillReport>)]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let later = |run: &Run| stored.is_some_and(|stored| ended_later(run, stored));
    let passed_later = facts.last.iter().any(|run| run.job == Job::Drill && run.state == State::Succeeded && later(run));
    if let Some((record, drill)) = drills.last().filter(|(record, _)| !record.passed && !passed_later) {
        let (verdict, why) = match drill {
            Some(drill) => (drill.verdict.word(), drill.reasons.first().cloned().unwrap_or_default()),
            None => ("not passed", "its report is of a later version of the program".to_owned()),
        };
        problems.push(Problem::of(
            ProblemKind::DrillFailed,
            Job::Drill,
            format!("the last drill ended {verdict}: {why} (report {})", record.id),
        ));
    }
    if let Some(run) = &facts.failed_drill
        && let Some(report) = &run.report
        && drills.iter().all(|(record, _)| record.id.to_string() != *report && !(record.passed && record.time > run.started))
    {
        let where_ = match stored {
            Some(_) if later(run) => "its report was not looked for yet",
            Some(_) => "its report is not in the repository, or cannot be read there",
            None => "its report could not be looked for",
        };
        problems.push(Problem::of(
            ProblemKind::DrillFailed,
            Job::Drill,
            format!("a drill here ended {} and {where_}: {} (run {})", run.state.word(), why(run), run.id),
        ));
    }
    problems
}

fn standing_damage(stored: &Stored) -> Option<Problem> {
    let standing: Vec<&Damage> = stored.standing.iter().filter(|damage| !stored.settled.contains(damage)).collect();
    let last = standing.iter().max_by_key(|damage| damage.report)?;
    let own = stored.manifests.iter().filter(|m| standing.iter().any(|damage| damage.finding.snapshots.contains(&m.id))).count();
    let message = format!(
        "verification found damage in {} that none as deep has found sound since; harmed snapshots of this plan: {own}; {} is {} (report {} of {})",
        crate::ops::counted(standing.len(), "place"),
        last.finding.object,
        last.finding.kind,
        last.report,
        select::moment(last.time)
    );
    Some(Problem::of(ProblemKind::Damaged, Job::Verify, message))
}
