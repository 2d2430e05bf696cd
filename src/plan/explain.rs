//! What a plan will do and when, in words: the next runs of each schedule in the plan's zone with UTC beside.

use std::fmt::Write as _;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use crate::plan::model::{DrillAt, Keep, Missed, Plan, PlannedCopy, Plans, Repository, Share, SourceKind};
use crate::plan::schedule::{Schedule, in_both};
use crate::plan::spacing;
use crate::plan::units::{format_duration, format_size};

/// How many runs are shown of each schedule.
const RUNS: usize = 5;

/// One kind of work of a plan.
struct Job<'a> {
    name: &'static str,
    schedule: Option<&'a Schedule>,
    command: String,
    does: String,
}

/// `lifeboat.explain/1` for people.
#[must_use]
pub fn explain_text(plan: &Plan, now: DateTime<Utc>) -> String {
    let zone = plan.zone();
    let mut text = format!("plan {}", plan.name);
    if let Some(description) = &plan.description {
        let _ = write!(text, ": {description}");
    }
    let _ = writeln!(text, "\nnow {}", in_both(now, zone));
    for job in jobs(plan) {
        let _ = writeln!(text, "\n{}: {}", job.name, job.does);
        match job.schedule {
            None => {
                let _ = writeln!(text, "  no schedule: only by hand, with `{}`", job.command);
            }
            Some(schedule) => {
                let _ = writeln!(text, "  schedule {:?} in {}{}; next runs:", schedule.text(), schedule.zone(), lateness(plan));
                for slot in schedule.upcoming(now, RUNS) {
                    let free = plan.blackout.free_at(job.name, slot);
                    let held = if free == slot { String::new() } else { format!(", held back until {}", in_both(free, schedule.zone())) };
                    let _ = writeln!(text, "    {}{held}", in_both(slot, schedule.zone()));
                }
            }
        }
    }
    let _ = writeln!(text, "\n{}", promises(plan).join("\n"));
    text
}

/// `lifeboat.explain/1`: `plan`, `timezone`, `now`, `jobs` (each `name`, `schedule`, `does`, `next` with `time` in UTC and `local`, and `held_until` where a blackout holds it back),
/// `notes`.
#[must_use]
pub fn explain_json(plan: &Plan, now: DateTime<Utc>) -> Value {
    let run = |slot: DateTime<Utc>, schedule: &Schedule, job: &str| {
        let free = plan.blackout.free_at(job, slot);
        let mut shown = json!({
            "time": slot.to_rfc3339_opts(SecondsFormat::Secs, true),
            "local": slot.with_timezone(&schedule.zone()).to_rfc3339_opts(SecondsFormat::Secs, false),
        });
        if free != slot {
            shown["held_until"] = json!(free.to_rfc3339_opts(SecondsFormat::Secs, true));
        }
        shown
    };
    let jobs = jobs(plan).into_iter().map(|job| {
        let next = job
            .schedule
            .map(|schedule| schedule.upcoming(now, RUNS).into_iter().map(|slot| run(slot, schedule, job.name)).collect::<Vec<_>>());
        json!({ "name": job.name, "schedule": job.schedule.map(Schedule::text), "does": job.does, "next": next.unwrap_or_default() })
    });
    json!({
        "schema": "lifeboat.explain/1",
        "plan": plan.name,
        "timezone": plan.timezone.map(chrono_tz::Tz::name),
        "now": now.to_rfc3339_opts(SecondsFormat::Secs, true),
        "jobs": jobs.collect::<Vec<_>>(),
        "notes": promises(plan),
    })
}

fn jobs(plan: &Plan) -> Vec<Job<'_>> {
    let name = &plan.name;
    let mut jobs = vec![
        Job { name: "backup", schedule: plan.schedule.as_ref(), command: format!("lifeboat backup {name}"), does: backup(plan) },
        Job { name: "drill", schedule: plan.drill.schedule.as_ref(), command: format!("lifeboat drill run {name}"), does: drill(plan) },
        Job { name: "verify", schedule: plan.verify.schedule.as_ref(), command: format!("lifeboat verify {name}"), does: verify(plan) },
        Job { name: "prune", schedule: plan.prune.schedule.as_ref(), command: format!("lifeboat prune {name}"), does: prune(plan) },
    ];
    jobs.extend(plan.copies.iter().map(|planned| Job {
        name: "copy",
        schedule: planned.schedule.as_ref(),
        command: format!("lifeboat copy {name} --to {}", planned.to.name),
        does: copy(plan, planned),
    }));
    jobs
}

fn copy(plan: &Plan, copy: &PlannedCopy) -> String {
    let newest = copy.last.map_or_else(String::new, |last| format!(" the newest {last}"));
    let tagged = if copy.tags.is_empty() { String::new() } else { format!(" tagged {}", copy.tags.join(" or ")) };
    let to = format!("repository {} at {}", copy.to.name, copy.to.url.as_str());
    format!("copies{newest} snapshots{tagged} from repository {} to {to}, verified", plan.repository.name)
}

fn lateness(plan: &Plan) -> String {
    if plan.jitter.is_zero() { String::new() } else { format!(", each up to {} later", format_duration(plan.jitter)) }
}

fn backup(plan: &Plan) -> String {
    let sources = plan.sources.iter().map(|source| format!("{} ({})", source.name, source.kind.word())).collect::<Vec<_>>();
    let what = if let [one] = sources.as_slice() { one.clone() } else { format!("{}, all together,", sources.join(", ")) };
    format!("backs up {what} to repository {} at {}", plan.repository.name, plan.repository.url.as_str())
}

fn drill(plan: &Plan) -> String {
    let drill = &plan.drill;
    let point = match drill.at {
        DrillAt::Latest => "the latest snapshot".to_owned(),
        DrillAt::Random => {
            let log = plan.sources.len() == 1 && plan.sources[0].kind.streams_log();
            let what = if log { "a random snapshot, or moment of the log," } else { "a random snapshot" };
            format!("{what} of the last {}", format_duration(drill.window))
        }
    };
    let compared = match drill.compare {
        Share::OFF => "compares no content".to_owned(),
        Share::ALL => "compares all content with its fingerprints".to_owned(),
        share => format!("compares {share} of the content with its fingerprints"),
    };
    let checks = match drill.checks.len() {
        0 => "asks no SQL".to_owned(),
        1 => "makes 1 SQL check".to_owned(),
        count => format!("makes {count} SQL checks"),
    };
    let kept = if drill.keep_target_on_failure.is_zero() {
        "removes what it restored".to_owned()
    } else {
        format!("removes what it restored ({} later when it failed)", format_duration(drill.keep_target_on_failure))
    };
    let mut limits = Vec::new();
    limits.extend(drill.time_limit.map(|time| format!("at most {}", format_duration(time))));
    limits.extend(drill.disk_limit_bytes.map(|bytes| format!("at most {} of disk", format_size(bytes))));
    let limits = if limits.is_empty() { String::new() } else { format!("; takes {}", limits.join(" and ")) };
    format!("restores {point} into a private place, runs the engine's own checks, {compared}, {checks}, and {kept}{limits}")
}

fn verify(plan: &Plan) -> String {
    let structure = format!("checks the structure of repository {}", plan.repository.name);
    match plan.verify.data {
        Share::OFF => format!("{structure}; reads no stored bytes"),
        Share::ALL => format!("{structure} and reads every stored byte"),
        share => format!("{structure} and reads a rotating {share} of the stored bytes"),
    }
}

fn prune(plan: &Plan) -> String {
    let removes = if plan.keep == Keep::default() {
        "removes no snapshot and no log (the plan has no `keep`)".to_owned()
    } else {
        format!(
            "removes the snapshots of the plan that no rule keeps{}",
            if plan.keep.is_everything() { " (all are kept), and log before the window" } else { "" }
        )
    };
    format!("{removes}, then collects the garbage of repository {}", plan.repository.name)
}

/// What holds for all runs, one sentence each.
fn promises(plan: &Plan) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(limit) = plan.objectives.data_loss {
        notes.push(format!("objective: at most {} of changes may be lost", format_duration(limit)));
    }
    if let Some(limit) = plan.objectives.recovery_time {
        notes.push(format!("objective: a recovery may take at most {}", format_duration(limit)));
    }
    if !plan.blackout.windows().is_empty() {
        let windows = plan.blackout.windows().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let what = plan.blackout.jobs().join(", ");
        notes.push(format!("blackout: {windows} in {}: what is due then ({what}) starts at the end; by hand everything runs", plan.zone()));
    }
    if !plan.after.is_empty() {
        let names = plan.after.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        notes.push(format!("after: a backup waits for those of {names} of the same time or before to have ended, however they ended"));
    }
    notes.push(match plan.missed {
        Missed::RunOnce => "missed: runs whose time passed while the daemon was down are caught up by one run".to_owned(),
        Missed::Skip => "missed: runs whose time passed while the daemon was down are skipped".to_owned(),
    });
    notes.push(match plan.retry.attempts {
        1 => "retry: a run that fails is not tried again".to_owned(),
        attempts => {
            format!("retry: a failure that may pass is tried {attempts} times in all, first after {}", format_duration(plan.retry.delay))
        }
    });
    notes.push(if plan.keep.is_everything() {
        "keep: every snapshot, for ever".to_owned()
    } else {
        let by_hand = if plan.prune.schedule.is_none() { "; applied by `lifeboat prune` only, there is no schedule for it" } else { "" };
        format!("keep: {}; never removed: the newest, the newest whole one, the newest proven, and what is held{by_hand}", keep(plan))
    });
    notes.extend(not_applied(plan));
    let told = plan.notify.iter().map(|notifier| notifier.name.as_str()).collect::<Vec<_>>();
    notes.push(if told.is_empty() { "notify: nobody is told".to_owned() } else { format!("notify: {}", told.join(", ")) });
    notes
}

/// What a plan asks for and will not get: of this release, or by its own schedules; sentences. A plan is valid all the same.
pub(super) fn not_applied(plan: &Plan) -> Vec<String> {
    let mut all = without_driver(plan);
    all.extend(held_for_ever(plan));
    all.extend(too_seldom(plan));
    all
}

/// Schedules none of whose slots is outside the blackout.
fn held_for_ever(plan: &Plan) -> Vec<String> {
    let held = jobs(plan).into_iter().filter_map(|job| {
        let schedule = job.schedule.filter(|schedule| spacing::is_always_held(schedule, &plan.blackout, job.name))?;
        Some(format!(
            "every slot of the {} schedule {:?} falls in the blackout: none starts when it is due, each waits for the end of a window",
            job.name,
            schedule.text()
        ))
    });
    held.collect()
}

/// Backups so far apart that what the plan promises cannot be kept by them, where no log fills the time between.
fn too_seldom(plan: &Plan) -> Option<String> {
    let (schedule, limit) = (plan.schedule.as_ref()?, plan.objectives.data_loss?);
    let without_log = plan.sources.iter().find(|source| !source.kind.keeps_log())?;
    let longest = spacing::longest(schedule, &plan.blackout, "backup").unwrap_or(Duration::MAX).saturating_add(plan.jitter);
    (longest >= limit).then(|| {
        let held = if plan.blackout.holds("backup") { ", blackout included" } else { "" };
        let apart = if longest == Duration::MAX { "years".to_owned() } else { format_duration(longest) };
        format!(
            "the data loss objective of {} cannot be kept: backups start up to {apart} apart{held}, each takes some time as well, and source {} has \
             no log in between",
            format_duration(limit),
            without_log.name
        )
    })
}

/// Dates of Object Lock that nothing moves on in time: what works with a repository moves them on, and nothing else does.
pub(super) fn lock_lapses(plans: &Plans, repository: &Repository) -> Option<String> {
    let (key, retain) = repository.object_lock?.shortest();
    let name = &repository.name;
    let (mut jobs, mut jitter, mut is_used) = (Vec::new(), Duration::ZERO, false);
    for plan in plans.plans.values() {
        let own = plan.repository.name == *name;
        let copies = || plan.copies.iter().filter(|copy| copy.to.name == *name);
        is_used |= own || copies().next().is_some();
        let prunes = own || copies().any(|copy| !copy.keep.is_everything());
        let backup = plan.schedule.as_ref().filter(|_| own).map(|schedule| ("backup", schedule));
        let prune = plan.prune.schedule.as_ref().filter(|_| prunes).map(|schedule| ("prune", schedule));
        let copied = copies().filter_map(|copy| copy.schedule.as_ref()).map(|schedule| ("copy", schedule));
        for (job, schedule) in backup.into_iter().chain(prune).chain(copied) {
            jobs.push((schedule, &plan.blackout, job));
            jitter = jitter.max(plan.jitter);
        }
    }
    let why = match spacing::longest_of(&jobs, retain.saturating_sub(jitter))? {
        _ if !is_used => "no plan backs up, copies to or prunes it".to_owned(),
        _ if jobs.is_empty() => "no backup, copy or prune of it has a schedule".to_owned(),
        Duration::MAX => "its backups, copies and prunes start years apart".to_owned(),
        longest => format!("its backups, copies and prunes start up to {} apart", format_duration(longest + jitter)),
    };
    Some(format!(
        "repository {name}: {why}, and `object_lock` asks for {key} = {}: only they move the dates of locks on, so locks of what is needed end unless somebody runs one in time",
        format_duration(retain)
    ))
}

/// Sources that plan files know and this release has no driver for.
fn without_driver(plan: &Plan) -> Vec<String> {
    let lacks = |kind: &SourceKind| match kind {
        SourceKind::Mysql(_) => Some("has no driver for mysql"),
        _ => None,
    };
    let lacking = plan.sources.iter().filter_map(|source| Some((&source.name, lacks(&source.kind)?)));
    lacking.map(|(name, what)| format!("source {name}: this release {what}: every backup fails")).collect()
}

fn keep(plan: &Plan) -> String {
    let keep = &plan.keep;
    let counts = [
        (keep.last, "the newest", ""),
        (keep.hourly, "one of each of the last", " hours"),
        (keep.daily, "one of each of the last", " days"),
        (keep.weekly, "one of each of the last", " weeks"),
        (keep.monthly, "one of each of the last", " months"),
        (keep.yearly, "one of each of the last", " years"),
    ];
    let mut rules = counts
        .into_iter()
        .filter(|(count, ..)| *count > 0)
        .map(|(count, before, after)| format!("{before} {count}{after}"))
        .collect::<Vec<_>>();
    rules.extend(keep.within.map(|within| format!("everything younger than {}", format_duration(within))));
    if !keep.tags.is_empty() {
        rules.push(format!("everything tagged {}", keep.tags.join(" or ")));
    }
    rules.extend(keep.log.map(|log| format!("log for every moment of the last {}", format_duration(log))));
    rules.join("; ")
}
