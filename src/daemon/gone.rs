//! Plans that are in no plan file any more, while the journal knows that they were followed and backed up: nobody backs them up now, and that must
//! not be silent. Each is an alarm until the plan is back, or the plan files name it in `retired`.

use std::collections::BTreeSet;
use std::path::Path;

use chrono::{DateTime, Utc};

use crate::daemon::alarms::{self, Alarm};
use crate::daemon::journal::{Journal, Newest};
use crate::daemon::status::last_backup;
use crate::error::Result;
use crate::id::Name;
use crate::ops::select;
use crate::plan::Plans;

/// The kind of the problem. It names a plan and is of none: there is nobody whom that plan would tell.
pub const GONE: &str = "plan-gone";

const KEY: &str = "plan-gone-";

/// Raises and ends the alarms, by the plans in force.
///
/// # Errors
/// When the journal cannot be read, or an alarm not be written.
pub fn look(plans: &Plans, journal: &Journal, state: &Path, now: DateTime<Utc>) -> Result<()> {
    let mut standing = BTreeSet::new();
    let known = journal.followed_plans()?;
    let gone: Vec<&Name> = known.iter().filter(|plan| !plans.plans.contains_key(*plan) && !plans.retired.contains(*plan)).collect();
    let newest = if gone.is_empty() { Newest::default() } else { journal.newest(&gone)? };
    let nodes = if gone.is_empty() || !journal.is_shared() { Vec::new() } else { journal.nodes(now)? };
    for plan in gone {
        let Some(last) = last_backup(&newest, plan) else { continue };
        // Other nodes may have other plan files: the one that backed it up last tells, and where that one is gone, all do.
        if journal.is_shared() && last.node != journal.node() && nodes.iter().any(|node| node.name == last.node) {
            continue;
        }
        let message = format!(
            "plan {plan} is in no plan file any more and nobody backs it up; its last backup was of {}. Put it back, or name it in `retired`",
            select::moment(last.started)
        );
        let key = format!("{KEY}{}", alarms::key_of(plan.as_str()));
        alarms::raise(state, &key, &Alarm { kind: GONE.to_owned(), plan: Some(plan.to_string()), message, since: now })?;
        standing.insert(key);
    }
    for key in alarms::keys(state)? {
        if key.starts_with(KEY) && !standing.contains(&key) {
            alarms::clear(state, &key)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::journal::{Ending, Job, NewRun, State};

    const FILE: &str = "version = 1\nRETIRED[repository.main]\nurl = \"file:///nowhere/r\"\npassphrase = { env = \"NONE\" }\n[source.a]\nkind = \"files\"\npath = \"/nowhere\"\n";

    #[test]
    fn a_plan_that_was_backed_up_and_is_gone_is_told_until_it_is_back_or_retired() {
        let folder = tempfile::tempdir().unwrap();
        let (state, now) = (folder.path(), "2026-11-20T03:00:00Z".parse().unwrap());
        let plans = |retired: &str, names: &[&str]| {
            let plan = |name: &&str| format!("[plan.{name}]\nsource = \"a\"\nrepository = \"main\"\n");
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
}
