//! Plans that are in no plan file any more, and schedules that their plans have no more, while the journal knows that they were followed and that runs
//! came of them: nobody starts these now, and that must not be silent. Each is an alarm until it is back, or the plan files name it in `retired`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::daemon::alarms::{self, Alarm};
use crate::daemon::journal::{Job, Journal, Newest, Run, ScheduleKey, Schedules};
use crate::daemon::status::{ProblemKind, last_backup};
use crate::error::Result;
use crate::id::Name;
use crate::ops::select;
use crate::plan::{JOBS, Plan, Plans};

/// The kind of the problem that a plan is. It names a plan and is of none: there is nobody whom that plan would tell.
pub const GONE: &str = ProblemKind::PlanGone.word();

/// The kind of the problem that a schedule is. It is of its plan.
pub const UNSCHEDULED: &str = ProblemKind::ScheduleGone.word();

/// A node that was heard of within so many leases has not gone: it is being started anew.
const RESTART: i32 = 5;

/// Whether what an alarm says is so by these plans: they may have been changed since a daemon looked.
#[must_use]
pub fn still_holds(plans: &Plans, key: &str, alarm: &Alarm) -> bool {
    let Some(name) = alarm.plan.as_deref().and_then(|plan| Name::new(plan).ok()) else { return true };
    match alarm.kind.as_str() {
        GONE => !plans.plans.contains_key(&name) && !plans.retired.contains(&name),
        UNSCHEDULED => {
            let Some(plan) = plans.plans.get(&name) else { return false };
            let is = |of: &str| key == unscheduled_key(&name, of);
            if let Some(job) = JOBS.into_iter().find(|job| is(job)) {
                return plan.schedule_of(job).is_none() && !plans.retired_schedules.contains(&(name, job));
            }
            // One of several copies.
            let is_to = |to: &Name| is(&copy_of(to));
            plan.copy_schedule.is_some()
                && !plan.copies.iter().any(|copy| copy.schedule.is_some() && is_to(&copy.to.name))
                && !plans.retired_copies.iter().any(|(plan, to)| *plan == name && is_to(to))
        }
        _ => true,
    }
}

fn unscheduled_key(plan: &Name, of: &str) -> String {
    format!("{UNSCHEDULED}-{}-{of}", alarms::key_of(plan.as_str()))
}

fn copy_of(to: &Name) -> String {
    format!("copy-{}", alarms::key_of(to.as_str()))
}

/// Copies that a plan which is there had on a schedule and has no more, while it goes on to copy elsewhere; those that are new are remembered.
fn copies_gone(
    plans: &Plans,
    known: BTreeMap<(Name, Name), DateTime<Utc>>,
    journal: &Journal,
    now: DateTime<Utc>,
) -> Result<Vec<(Name, Name, DateTime<Utc>)>> {
    let scheduled = |plan: &Plan, to: &Name| plan.copies.iter().any(|copy| copy.schedule.is_some() && copy.to.name == *to);
    let copies = plans.plans.values().flat_map(|plan| plan.copies.iter().map(move |copy| (&plan.name, copy)));
    let new = copies.filter(|(_, copy)| copy.schedule.is_some()).map(|(plan, copy)| (plan, &copy.to.name));
    let new: Vec<(&Name, &Name)> = new.filter(|(plan, to)| !known.contains_key(&((*plan).clone(), (*to).clone()))).collect();
    journal.note_copies(&new, now)?;
    let is_gone = |name: &Name, to: &Name| {
        let copies_elsewhere = |plan: &Arc<Plan>| plan.copy_schedule.is_some() && !scheduled(plan, to);
        plans.plans.get(name).is_some_and(copies_elsewhere) && !plans.retired_copies.contains(&(name.clone(), to.clone()))
    };
    Ok(known.into_iter().filter(|((name, to), _)| is_gone(name, to)).map(|((name, to), since)| (name, to, since)).collect())
}

/// Raises and ends the alarms, by the plans in force.
///
/// # Errors
/// When the journal cannot be read, or an alarm not be written.
pub fn look(plans: &Plans, journal: &Journal, state: &Path, now: DateTime<Utc>) -> Result<()> {
    // What is missing may be in a file that is wrong, which is told; what was told before is neither over nor certain.
    if plans.is_partial {
        return Ok(());
    }
    let mut standing = BTreeSet::new();
    let Schedules { jobs: followed, copies } = journal.followed()?;
    let copies = copies_gone(plans, copies, journal, now)?;
    let gone: BTreeSet<&Name> =
        followed.iter().map(|(plan, _)| plan).filter(|plan| !plans.plans.contains_key(*plan) && !plans.retired.contains(*plan)).collect();
    let mut unscheduled: BTreeMap<&Name, Vec<Job>> = BTreeMap::new();
    for (name, job) in &followed {
        let meant = || plans.retired_schedules.contains(&(name.clone(), job.word()));
        if plans.plans.get(name).is_some_and(|plan| job.schedule(plan).is_none()) && !meant() {
            unscheduled.entry(name).or_default().push(*job);
        }
    }
    // Only one that runs came of: what somebody ran by hand is nobody's schedule.
    let keys: Vec<ScheduleKey> = unscheduled
        .iter()
        .flat_map(|(plan, jobs)| jobs.iter().map(|job| ScheduleKey { plan: (*plan).clone(), job: *job, expression: String::new() }))
        .collect();
    for (key, known) in keys.iter().zip(journal.known(&keys, now)?) {
        if known.last.is_none()
            && let Some(jobs) = unscheduled.get_mut(&key.plan)
        {
            jobs.retain(|job| *job != key.job);
        }
    }
    let asked: BTreeSet<&Name> =
        gone.iter().copied().chain(unscheduled.keys().copied()).chain(copies.iter().map(|(plan, ..)| plan)).collect();
    let asked: Vec<&Name> = asked.into_iter().collect();
    let newest = if asked.is_empty() { Newest::default() } else { journal.newest(&asked, now)? };
    let nodes = if asked.is_empty() || !journal.is_shared() { Vec::new() } else { journal.nodes_within(RESTART, now)? };
    // Other nodes may have other plan files: the one that had the last run tells, and where that one is gone for good, all do.
    let told_elsewhere = |last: &Run| journal.is_shared() && last.node != journal.node() && nodes.iter().any(|node| node.name == last.node);
    let mut raise = |kind: &str, key: String, plan: &Name, message: String| {
        alarms::raise(state, &key, &Alarm { kind: kind.to_owned(), plan: Some(plan.to_string()), message, since: now })?;
        standing.insert(key);
        Ok::<(), crate::error::Error>(())
    };
    for plan in gone {
        let Some(last) = last_backup(&newest, plan).filter(|last| !told_elsewhere(last)) else { continue };
        let message = format!(
            "plan {plan} is in no plan file any more and nobody backs it up; its last backup was of {}. Put it back, or name it in `retired`",
            select::moment(last.started)
        );
        raise(GONE, format!("{GONE}-{}", alarms::key_of(plan.as_str())), plan, message)?;
    }
    for (plan, jobs) in unscheduled {
        for job in jobs {
            let Some(last) = newest.last(plan, job).filter(|last| !told_elsewhere(last)) else { continue };
            let word = job.word();
            let message = format!(
                "the schedule for {word} was taken out of the plan and nobody starts it any more; the last one began at {}. Put it back, or say that it is \
                 meant: retired = [\"{plan}/{word}\"]",
                select::moment(last.started)
            );
            raise(UNSCHEDULED, unscheduled_key(plan, word), plan, message)?;
        }
    }
    for (plan, to, since) in &copies {
        // Only one that was there when the plan copied.
        let last = newest.last(plan, Job::Copy).filter(|last| last.started >= *since);
        let Some(last) = last.filter(|last| !told_elsewhere(last)) else { continue };
        let message = format!(
            "the copy to {to}, or its schedule, was taken out of the plan and nobody makes it any more; the last run that copied began at {}. Put it back, or say that it is \
             meant: retired = [\"{plan}/copy/{to}\"]",
            select::moment(last.started)
        );
        raise(UNSCHEDULED, unscheduled_key(plan, &copy_of(to)), plan, message)?;
    }
    for key in alarms::keys(state)? {
        let is_own = [GONE, UNSCHEDULED].iter().any(|kind| key.strip_prefix(kind).is_some_and(|rest| rest.starts_with('-')));
        if is_own && !standing.contains(&key) {
            alarms::clear(state, &key)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::daemon::journal::{Ending, Job, NewRun, State};

    const FILE: &str = "version = 1\nRETIRED[repository.main]\nurl = \"file:///nowhere/r\"\npassphrase = { env = \"NONE\" }\n[source.a]\nkind = \"files\"\npath = \"/nowhere\"\n";

    #[test]
    fn a_plan_that_was_backed_up_and_is_gone_is_told_until_it_is_back_or_retired() {
        let folder = tempfile::tempdir().unwrap();
        let (state, now) = (folder.path(), "2026-11-20T03:00:00Z".parse().unwrap());
        let plans = |retired: &str, names: &[&str]| {
            let plan = |name: &&str| {
                format!("[plan.{name}]\nsource = \"a\"\nrepository = \"main\"\nschedule = \"0 2 * * *\"\ntimezone = \"UTC\"\n")
            };
            let text = FILE.replace("RETIRED", retired) + &names.iter().map(plan).collect::<String>();
            Plans::from_text(&text).unwrap()
        };
        let journal = Journal::open(state, now).unwrap();
        let (crm, idle) = (Name::new("Crm").unwrap(), Name::new("idle").unwrap());
        for plan in [&crm, &idle] {
            journal.schedule_since(plan, Job::Backup, "0 2 * * *", now).unwrap();
        }
        let told = |plans: &Plans| {
            look(plans, &journal, state, now).unwrap();
            alarms::standing(state).unwrap()
        };
        assert!(told(&plans("", &["b"])).is_empty(), "never backed up: there is nothing to lose");
        let run = journal.begin(&NewRun::manual(&crm, Job::Backup, "tester", now), now).unwrap();
        journal.close(run, &Ending::new(State::Incomplete), now).unwrap();
        let gone = told(&plans("", &["b"]));
        assert!(
            matches!(gone.as_slice(), [alarm] if alarm.kind == GONE && alarm.message.contains("plan Crm is in no plan file")),
            "{gone:?}"
        );
        assert!(told(&plans("", &["Crm"])).is_empty(), "it is back");
        assert_eq!(told(&plans("", &["b"])).len(), 1);
        assert!(told(&plans("retired = [\"Crm\"]\n", &["b"])).is_empty(), "somebody meant it");
    }

    #[test]
    fn one_of_several_copies_that_is_gone_is_told_until_it_is_back_or_retired() {
        let folder = tempfile::tempdir().unwrap();
        let (state, now) = (folder.path(), "2026-11-20T03:00:00Z".parse().unwrap());
        let plans = |retired: &str, copies: &[&str]| {
            let mut text = FILE.replace("RETIRED", retired);
            for to in ["off.site", "off-site"] {
                let _ = write!(text, "[repository.{to:?}]\nurl = \"file:///nowhere/{to}\"\npassphrase = {{ env = \"NONE\" }}\n");
            }
            text += "[plan.crm]\nsource = \"a\"\nrepository = \"main\"\nschedule = \"0 2 * * *\"\ntimezone = \"UTC\"\n";
            for to in copies {
                let _ = write!(text, "[[plan.crm.copy]]\nto = {to:?}\nschedule = \"0 4 * * *\"\n");
            }
            Plans::from_text(&text).unwrap()
        };
        let journal = Journal::open(state, now).unwrap();
        let crm = Name::new("crm").unwrap();
        journal.schedule_since(&crm, Job::Copy, "0 4 * * *", now).unwrap();
        let told = |plans: &Plans| {
            look(plans, &journal, state, now).unwrap();
            alarms::standing_by_key(state).unwrap()
        };
        let both = plans("", &["off.site", "off-site"]);
        assert!(told(&both).is_empty());
        assert!(told(&plans("", &["off.site"])).is_empty(), "nothing was copied yet");
        let slot = NewRun { scheduled: Some(now), ..NewRun::manual(&crm, Job::Copy, "schedule", now) };
        let run = journal.begin(&slot, now).unwrap();
        journal.close(run, &Ending::new(State::Succeeded), now).unwrap();
        for (gone, stays) in [("off.site", "off-site"), ("off-site", "off.site")] {
            let without = plans("", &[stays]);
            let all = told(&without);
            let [(key, alarm)] = all.as_slice() else { panic!("{all:?}") };
            let retired = format!("retired = [\"crm/copy/{gone}\"]\n");
            assert!(alarm.kind == UNSCHEDULED && alarm.message.contains(retired.trim()), "{alarm:?}");
            let meant = plans(&retired, &[stays]);
            assert!(still_holds(&without, key, alarm) && !still_holds(&both, key, alarm) && !still_holds(&meant, key, alarm));
            assert!(told(&meant).is_empty());
            assert!(told(&both).is_empty());
        }
        let none = told(&plans("", &[]));
        assert!(
            matches!(none.as_slice(), [(_, alarm)] if alarm.message.contains("retired = [\"crm/copy\"]")),
            "all of them are one: {none:?}"
        );
        let wrong = Plans::from_text(
            &(FILE.replace("RETIRED", "retired = [\"crm/copy/main\"]\n")
                + "[repository.two]\nurl = \"file:///nowhere/2\"\npassphrase = { env = \"NONE\" }\n\
               [plan.crm]\nsource = \"a\"\nrepository = \"two\"\ntimezone = \"UTC\"\n[[plan.crm.copy]]\nto = \"main\"\nschedule = \"0 4 * * *\"\n"),
        );
        let wrong = wrong.unwrap_err().to_string();
        assert!(wrong.contains("plan `crm` has a schedule for its copy to main, which is retired"), "{wrong}");
    }

    #[test]
    fn a_schedule_that_runs_came_of_and_is_gone_is_told_until_it_is_back_or_retired() {
        let folder = tempfile::tempdir().unwrap();
        let (state, now) = (folder.path(), "2026-11-20T03:00:00Z".parse().unwrap());
        let plans = |retired: &str, drill: &str| {
            let plan = format!("[plan.crm]\nsource = \"a\"\nrepository = \"main\"\nschedule = \"0 2 * * *\"\ntimezone = \"UTC\"\n{drill}");
            Plans::from_text(&(FILE.replace("RETIRED", retired) + &plan)).unwrap()
        };
        let scheduled = "[plan.crm.drill]\nschedule = \"0 5 * * 0\"\n";
        let journal = Journal::open(state, now).unwrap();
        let crm = Name::new("crm").unwrap();
        for job in [Job::Backup, Job::Drill] {
            journal.schedule_since(&crm, job, "0 2 * * *", now).unwrap();
        }
        let told = |plans: &Plans| {
            look(plans, &journal, state, now).unwrap();
            alarms::standing(state).unwrap()
        };
        assert!(told(&plans("", "")).is_empty(), "no drill ever began: it was taken back before it did anything");
        let by_hand = journal.begin(&NewRun::manual(&crm, Job::Drill, "tester", now), now).unwrap();
        journal.close(by_hand, &Ending::new(State::Failed), now).unwrap();
        assert!(told(&plans("", "")).is_empty(), "that one was by hand");
        let slot = NewRun { scheduled: Some(now), ..NewRun::manual(&crm, Job::Drill, "schedule", now) };
        let run = journal.begin(&NewRun { id: crate::id::RunId::generate(now), ..slot }, now).unwrap();
        journal.close(run, &Ending::new(State::Failed), now).unwrap();
        let gone = told(&plans("", ""));
        let (key, alarm) = alarms::standing_by_key(state).unwrap().remove(0);
        assert!(still_holds(&plans("", ""), &key, &alarm) && !still_holds(&plans("", scheduled), &key, &alarm));
        assert!(!still_holds(&plans("retired = [\"crm/drill\"]\n", ""), &key, &alarm));
        assert!(
            matches!(gone.as_slice(), [alarm] if alarm.kind == UNSCHEDULED && alarm.plan.as_deref() == Some("crm")
                && alarm.message.contains("retired = [\"crm/drill\"]")),
            "{gone:?}"
        );
        assert!(told(&plans("", scheduled)).is_empty(), "it is back");
        assert_eq!(told(&plans("", "")).len(), 1);
        assert!(told(&plans("retired = [\"crm/drill\"]\n", "")).is_empty(), "somebody meant it");
        let both = FILE.replace("RETIRED", "retired = [\"crm/backup\", \"crm/dril\"]\n")
            + "[plan.crm]\nsource = \"a\"\nrepository = \"main\"\nschedule = \"0 2 * * *\"\ntimezone = \"UTC\"\n";
        let wrong = Plans::from_text(&both).unwrap_err().to_string();
        assert!(wrong.contains("plan `crm` has a schedule for backup, which is retired"), "{wrong}");
        assert!(wrong.contains("unknown job `dril`") && wrong.contains("did you mean `drill`?"), "{wrong}");
    }
}
