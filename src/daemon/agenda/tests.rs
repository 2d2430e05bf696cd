//! The rules of the agenda, one by one, with a clock and a journal moved by hand.

use std::collections::HashMap;

use super::*;
use crate::daemon::journal::Node;
use crate::plan::Plans;

/// An agenda with a journal that keeps the newest slot of each schedule.
struct World {
    agenda: Agenda,
    rows: HashMap<(String, Job), PastSlot>,
    since: DateTime<Utc>,
    folder: tempfile::TempDir,
}

fn at(text: &str) -> DateTime<Utc> {
    format!("2026-11-20T{text}Z").parse().unwrap()
}

fn load(folder: &std::path::Path, text: &str) -> Arc<Plans> {
    let head = "version = 1\n[repository.main]\nurl = \"file:///nowhere/r\"\npassphrase = { env = \"NONE\" }\n[repository.one]\nurl = \"file:///nowhere/o\"\npassphrase = { env = \"NONE\" }\nmax_runs = 1\n[source.a]\nkind = \"files\"\npath = \"/nowhere/a\"\n[source.b]\nkind = \"files\"\npath = \"/nowhere/b\"\n";
    std::fs::write(folder.join("plans.toml"), format!("{head}{text}")).unwrap();
    Arc::new(Plans::load(&[folder.to_owned()]).unwrap())
}

/// A plan of this name with an hourly backup of a source, and more keys.
fn plan(name: &str, source: &str, more: &str) -> String {
    format!("[plan.{name}]\nsource = \"{source}\"\nrepository = \"main\"\ntimezone = \"UTC\"\n{more}\n")
}

const HOURLY: &str = "schedule = \"0 * * * *\"";

impl World {
    fn new(text: &str) -> Self {
        Self::of(text, Membership::new("", &[], false))
    }

    /// The node `here`, of these labels, on a journal that other nodes share.
    fn shared(text: &str, labels: &[&str], others: &[(&str, &[&str])]) -> Self {
        let owned = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>();
        let membership = Membership::new("here", &owned(labels), true);
        let node = |(name, labels): &(&str, &[&str])| Node {
            name: (*name).to_owned(),
            labels: owned(labels),
            host: "host".to_owned(),
            seen: at("00:30:00"),
        };
        membership.see(others.iter().map(node).collect());
        Self::of(text, membership)
    }

    fn of(text: &str, membership: Membership) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let since = at("00:30:00");
        let agenda = Agenda::of_node(load(folder.path(), text), membership, since);
        Self { agenda, rows: HashMap::new(), since, folder }
    }

    /// Another process has a slot of this plan's backup, in this state.
    fn elsewhere(&mut self, plan: &str, slot: &str, state: State, ended: Option<&str>) {
        let id = RunId::generate(at(slot));
        self.rows.insert((plan.to_owned(), Job::Backup), PastSlot::new(id, at(slot), state, 1, ended.map(at), None));
    }

    fn learn(&mut self, now: DateTime<Utc>) {
        let (entries, keys) = self.agenda.to_ask();
        for (entry, key) in entries.into_iter().zip(keys) {
            let last = self.rows.get(&(key.plan.to_string(), key.job)).copied().filter(|last| last.slot <= now);
            self.agenda.learn(entry, Followed { since: self.since, last });
        }
    }

    /// One turn of the loop: what starts, as `plan job trigger`.
    fn turn(&mut self, now: &str) -> Vec<String> {
        let now = at(now);
        self.agenda.advance(now);
        self.learn(now);
        for passed in self.agenda.take_passed() {
            let row = PastSlot::new(RunId::generate(now), passed.slot, State::Missed, 0, Some(now), None);
            self.rows.insert((passed.plan.to_string(), passed.job), row);
            self.agenda.recorded(&passed, true);
        }
        self.learn(now);
        let mut started = Vec::new();
        while let Some(start) = self.agenda.next_start() {
            let key = (start.run.plan.to_string(), start.run.job);
            if let Some(slot) = start.run.scheduled {
                let attempt = self.rows.get(&key).filter(|row| row.slot == slot).map_or(1, |row| row.attempt + 1);
                self.rows.insert(key.clone(), PastSlot::new(start.run.id, slot, State::Running, attempt, None, None));
            }
            started.push(format!("{} {} {}", key.0, start.run.job.word(), start.run.trigger.word()));
        }
        started
    }

    fn running(&self, plan: &str, job: Job) -> RunId {
        self.agenda.same(&Name::new(plan).unwrap(), job).unwrap()
    }

    /// A run ends so.
    fn end(&mut self, plan: &str, job: Job, now: &str, state: State, kind: Option<&str>) {
        let id = self.running(plan, job);
        if let Some(row) = self.rows.get_mut(&(plan.to_owned(), job)).filter(|row| row.run == id) {
            *row = PastSlot::new(id, row.slot, state, row.attempt, Some(at(now)), kind);
        }
        self.agenda.ended(id);
    }

    fn done(&mut self, plan: &str, job: Job, now: &str) {
        self.end(plan, job, now, State::Succeeded, None);
    }

    fn request(&mut self, name: &str, job: Job, now: &str) -> (RunId, Option<String>) {
        let plan = Arc::clone(&self.agenda.plans.plans[&Name::new(name).unwrap()]);
        let run = NewRun::manual(&plan.name, job, "tester", at(now));
        (run.id, self.agenda.request(&plan, run))
    }
}

#[test]
fn a_slot_starts_once_and_the_loop_sleeps_until_the_next() {
    let mut world = World::new(&plan("crm", "a", HOURLY));
    assert!(world.turn("00:30:00").is_empty());
    assert_eq!(world.agenda.wake(), Some(at("01:00:00")));
    assert_eq!(world.turn("01:00:00"), ["crm backup schedule"]);
    assert!(world.turn("01:00:01").is_empty());
    world.done("crm", Job::Backup, "01:00:10");
    assert!(world.turn("01:00:10").is_empty());
    assert_eq!(world.agenda.wake(), Some(at("02:00:00")));
}

#[test]
fn two_plans_with_one_source_do_not_back_it_up_at_once() {
    let mut world = World::new(&[plan("crm", "a", HOURLY), plan("erp", "a", HOURLY), plan("web", "b", HOURLY)].concat());
    world.turn("00:30:00");
    assert_eq!(world.turn("01:00:00"), ["crm backup schedule", "web backup schedule"]);
    world.done("crm", Job::Backup, "01:30:00");
    assert_eq!(world.turn("01:30:00"), ["erp backup schedule"], "it waited and is not late");
}

#[test]
fn a_plans_backup_goes_before_its_drill_and_a_drill_leaves_a_place_free() {
    let drilled = format!("{HOURLY}\n[plan.NAME.drill]\nschedule = \"0 * * * *\"");
    let text = [plan("crm", "a", &drilled.replace("NAME", "crm")), plan("erp", "b", &drilled.replace("NAME", "erp"))].concat();
    let mut world = World::new(&format!("{text}[serve]\nmax_runs = 2\n"));
    world.turn("00:30:00");
    assert_eq!(world.turn("01:00:00"), ["crm backup schedule", "erp backup schedule"]);
    world.done("crm", Job::Backup, "01:05:00");
    world.done("erp", Job::Backup, "01:05:00");
    assert_eq!(world.turn("01:05:00"), ["crm drill schedule"], "the second place stays free for a backup");
    assert_eq!(world.turn("02:00:00"), ["crm backup schedule"], "beside the drill, which is never in its way");
    assert!(world.agenda.yields().is_empty());
}

#[test]
fn where_there_is_one_place_a_drill_gives_it_up_for_a_backup_and_is_taken_up_again() {
    let drilled = "[plan.crm.drill]\nschedule = \"30 * * * *\"".to_owned();
    let text = [plan("crm", "a", &drilled), plan("erp", "b", HOURLY)].concat().replace("repository = \"main\"", "repository = \"one\"");
    let mut world = World::new(&text);
    world.turn("00:30:00");
    world.turn("01:00:00");
    world.done("erp", Job::Backup, "01:10:00");
    assert_eq!(world.turn("01:30:00"), ["crm drill schedule"]);
    for hour in ["02", "03", "04", "05"] {
        assert!(world.turn(&format!("{hour}:00:00")).is_empty());
        let drill = world.running("crm", Job::Drill);
        assert_eq!(world.agenda.yields(), [(drill, "the backup of plan erp".to_owned())]);
        assert!(world.agenda.yields().is_empty(), "asked once");
        world.end("crm", Job::Drill, &format!("{hour}:00:05"), State::Interrupted, Some("gave-way"));
        assert_eq!(world.turn(&format!("{hour}:00:05")), ["erp backup schedule"]);
        world.done("erp", Job::Backup, &format!("{hour}:20:00"));
        let again = world.turn(&format!("{hour}:25:00"));
        assert_eq!(again, ["crm drill retry"], "{hour}: attempts that gave way do not count");
        if hour != "05" {
            world.done("crm", Job::Drill, &format!("{hour}:26:00"));
            assert_eq!(world.turn(&format!("{hour}:30:00")), ["crm drill schedule"]);
        }
    }
}

#[test]
fn in_a_repository_of_a_single_writer_one_run_goes_on_at_a_time() {
    let alone = "[repository.alone]\nurl = \"file:///nowhere/alone\"\npassphrase = { env = \"NONE\" }\nsingle_writer = true\n";
    let drilled = format!("{HOURLY}\n[plan.crm.drill]\nschedule = \"30 * * * *\"");
    let in_it = [plan("crm", "a", &drilled), plan("erp", "b", HOURLY)].concat().replace("repository = \"main\"", "repository = \"alone\"");
    let copied = "[[plan.web.copy]]\nto = \"alone\"\nschedule = \"15 * * * *\"";
    let web = "[source.c]\nkind = \"files\"\npath = \"/nowhere/c\"\n".to_owned() + &plan("web", "c", &format!("{HOURLY}\n{copied}"));
    let mut world = World::new(&[alone, &in_it, &web].concat());
    world.turn("00:30:00");
    assert_eq!(world.turn("01:00:00"), ["crm backup schedule", "web backup schedule"]);
    assert!(world.turn("01:10:00").is_empty());
    world.done("web", Job::Backup, "01:10:00");
    assert!(world.turn("01:15:00").is_empty(), "a copy to it waits as well");
    world.done("crm", Job::Backup, "01:16:00");
    assert_eq!(world.turn("01:16:00"), ["erp backup schedule"]);
    world.done("erp", Job::Backup, "01:17:00");
    assert_eq!(world.turn("01:17:00"), ["web copy schedule"]);
    let (_, waits) = world.request("crm", Job::Prune, "01:18:00");
    assert!(waits.unwrap().contains("goes on in repository alone, in which there is one at a time (single_writer)"));
    world.done("web", Job::Copy, "01:19:00");
    assert_eq!(world.turn("01:19:00"), ["crm prune manual"]);
    world.done("crm", Job::Prune, "01:20:00");
    assert_eq!(world.turn("01:30:00"), ["crm drill schedule"]);
    // A drill is in nobody's way for long.
    assert_eq!(world.turn("02:00:00"), ["web backup schedule"]);
    let drill = world.running("crm", Job::Drill);
    assert_eq!(world.agenda.yields().iter().map(|(run, _)| *run).collect::<Vec<_>>(), [drill]);
}

#[test]
fn a_restore_holds_drills_back_and_has_them_give_way() {
    let drill = format!("{HOURLY}\n[plan.crm.drill]\nschedule = \"30 * * * *\"");
    let mut world = World::new(&plan("crm", "a", &drill));
    world.turn("00:30:00");
    world.turn("01:00:00");
    world.done("crm", Job::Backup, "01:01:00");
    assert_eq!(world.turn("01:30:00"), ["crm drill schedule"]);
    assert!(world.agenda.minds_restores());
    let restore = Restore { run: RunId::generate(at("01:31:00")), plan: Name::new("other").unwrap(), here: true };
    world.agenda.set_restores(vec![restore.clone()]);
    let drill = world.running("crm", Job::Drill);
    assert_eq!(world.agenda.yields(), [(drill, format!("a restore (run {})", restore.run))]);
    world.end("crm", Job::Drill, "01:32:00", State::Interrupted, Some("gave-way"));
    assert!(world.turn("01:32:00").is_empty());
    assert_eq!(world.turn("02:00:00"), ["crm backup schedule"], "backups go on");
    world.done("crm", Job::Backup, "02:01:00");
    let (_, waits) = world.request("crm", Job::Drill, "02:02:00");
    assert!(waits.unwrap().contains("a restore goes on"));
    world.agenda.set_restores(vec![Restore { here: false, ..restore.clone() }]);
    assert_eq!(world.turn("02:02:00"), ["crm drill manual"], "one elsewhere, of another repository, is not in the way");
    world.agenda.set_restores(vec![Restore { here: false, plan: Name::new("crm").unwrap(), ..restore }]);
    assert_eq!(world.agenda.yields().len(), 1, "one of the same repository is");
}

#[test]
fn what_is_due_in_a_blackout_starts_at_its_end_and_is_not_late() {
    let text = plan("crm", "a", &format!("{HOURLY}\nmissed = \"skip\"\nblackout = [\"02:30-05:15\"]"));
    let mut world = World::new(&text);
    world.turn("00:30:00");
    world.turn("01:00:00");
    world.done("crm", Job::Backup, "01:00:10");
    world.turn("01:00:10");
    assert_eq!(world.turn("02:00:00"), ["crm backup schedule"]);
    world.done("crm", Job::Backup, "02:00:10");
    assert!(world.turn("03:00:00").is_empty());
    assert_eq!(world.agenda.wake(), Some(at("05:15:00")));
    assert!(world.turn("04:00:00").is_empty());
    let (_, waits) = world.request("crm", Job::Backup, "04:10:00");
    assert_eq!(waits, None);
    assert_eq!(world.turn("04:10:00"), ["crm backup manual"], "a person may");
    world.done("crm", Job::Backup, "04:11:00");
    let mut started = world.turn("05:15:00");
    started.extend(world.turn("05:15:00"));
    assert_eq!(started, ["crm backup schedule"], "the slots before the newest are recorded as missed, as the plan says");
    assert_eq!(world.rows[&("crm".to_owned(), Job::Backup)].slot, at("05:00:00"));
}

#[test]
fn a_plan_that_comes_after_another_waits_for_its_slot_and_its_retries() {
    let text = [plan("app", "a", &format!("{HOURLY}\nafter = [\"db\"]")), plan("db", "b", &format!("{HOURLY}\njitter = \"10m\""))].concat();
    let mut world = World::new(&text);
    world.turn("00:30:00");
    let mut started = world.turn("01:00:00");
    for minute in 1..=10 {
        assert!(started.iter().all(|run| !run.starts_with("app")), "{started:?}");
        if !started.is_empty() {
            break;
        }
        started = world.turn(&format!("01:{minute:02}:00"));
    }
    assert_eq!(started, ["db backup schedule"]);
    world.end("db", Job::Backup, "01:12:00", State::Failed, Some("unavailable"));
    assert!(world.turn("01:12:00").is_empty(), "it is tried again first");
    assert_eq!(world.turn("01:13:00"), ["db backup retry"]);
    world.end("db", Job::Backup, "01:14:00", State::Failed, Some("damaged"));
    assert_eq!(world.turn("01:14:00"), ["app backup schedule"], "however it ended");
}

#[test]
fn a_request_never_doubles_a_scheduled_run_and_can_be_taken_back() {
    let mut world = World::new(&plan("crm", "a", HOURLY));
    world.turn("00:30:00");
    let (id, waits) = world.request("crm", Job::Backup, "00:59:00");
    assert_eq!(waits, None);
    assert_eq!(world.turn("00:59:00"), ["crm backup manual"]);
    assert_eq!(world.running("crm", Job::Backup), id);
    assert!(world.turn("01:00:00").is_empty(), "the slot waits for it");
    world.done("crm", Job::Backup, "01:20:00");
    assert_eq!(world.turn("01:20:00"), ["crm backup schedule"]);
    let (id, waits) = world.request("crm", Job::Drill, "01:21:00");
    assert!(waits.unwrap().contains("goes on"));
    assert!(world.agenda.withdraw(id).is_some() && world.agenda.withdraw(id).is_none());
    world.done("crm", Job::Backup, "01:22:00");
    assert!(world.turn("01:22:00").is_empty());
}

#[test]
fn a_cancelled_run_is_not_tried_again_and_one_that_the_daemon_stopped_is() {
    let mut world = World::new(&plan("crm", "a", HOURLY));
    world.turn("00:30:00");
    world.turn("01:00:00");
    world.end("crm", Job::Backup, "01:01:00", State::Interrupted, Some("cancelled"));
    assert!(world.turn("01:30:00").is_empty());
    assert_eq!(world.turn("02:00:00"), ["crm backup schedule"]);
    world.end("crm", Job::Backup, "02:01:00", State::Interrupted, Some("interrupted"));
    assert_eq!(world.turn("02:01:00"), ["crm backup retry"]);
}

#[test]
fn a_run_that_could_not_be_recorded_is_looked_at_again_later_and_later() {
    let mut world = World::new(&plan("crm", "a", HOURLY));
    world.turn("00:30:00");
    assert_eq!(world.turn("01:00:00"), ["crm backup schedule"]);
    // A manual run of another process was quicker: there is no row.
    for (ended, again) in [("01:00:00", "01:00:10"), ("01:00:10", "01:00:30"), ("01:00:30", "01:01:10"), ("01:01:10", "01:02:10")] {
        world.rows.clear();
        let id = world.running("crm", Job::Backup);
        world.agenda.ended(id);
        assert!(world.turn(ended).is_empty());
        assert_eq!(world.agenda.wake(), Some(at(again)));
        assert_eq!(world.turn(again), ["crm backup schedule"], "it waited, it is not late");
    }
}

#[test]
fn a_slot_that_another_process_took_is_learnt_and_watched() {
    let mut world = World::new(&plan("crm", "a", HOURLY));
    world.turn("00:30:00");
    world.turn("01:00:00");
    let id = world.running("crm", Job::Backup);
    let theirs = PastSlot::new(RunId::generate(at("01:00:00")), at("01:00:00"), State::Running, 1, None, None);
    world.rows.insert(("crm".into(), Job::Backup), theirs);
    world.agenda.ended(id);
    assert!(world.turn("01:00:01").is_empty());
    assert_eq!(world.agenda.wake(), Some(at("01:01:01")), "it may die");
    let died = PastSlot::new(theirs.run, theirs.slot, State::Interrupted, 1, Some(at("01:00:40")), None);
    world.rows.insert(("crm".into(), Job::Backup), died);
    assert_eq!(world.turn("01:01:01"), ["crm backup retry"]);
}

#[test]
fn a_clock_that_jumps_repeats_no_slot_and_silences_no_schedule() {
    let mut world = World::new(&plan("crm", "a", HOURLY));
    world.turn("00:30:00");
    world.turn("01:00:00");
    world.done("crm", Job::Backup, "01:00:10");
    world.turn("01:00:10");
    // Far ahead by mistake: one run for what seems to have passed.
    assert_eq!(world.turn("20:10:00"), ["crm backup catch-up"]);
    let ahead = world.running("crm", Job::Backup);
    world.done("crm", Job::Backup, "20:10:10");
    world.turn("20:10:10");
    // Set right: the row of 20:00 is of the future and does not count; the simulated journal keeps one row, so that of 01:00 is put back.
    world.rows.insert(("crm".into(), Job::Backup), PastSlot::new(ahead, at("01:00:00"), State::Succeeded, 1, Some(at("01:00:10")), None));
    assert!(world.turn("01:30:00").is_empty());
    assert_eq!(world.turn("02:00:00"), ["crm backup schedule"]);
    world.done("crm", Job::Backup, "02:00:10");
    world.turn("02:00:10");
    // The same for the row of 02:00 while it is of the future.
    let key = ("crm".to_owned(), Job::Backup);
    let ran = world.rows[&key];
    world.rows.insert(key.clone(), PastSlot { slot: at("01:00:00"), ..ran });
    assert!(world.turn("01:59:00").is_empty(), "set back over a slot that was run");
    world.rows.insert(key, ran);
    assert!(world.turn("02:00:00").is_empty());
    assert_eq!(world.turn("03:00:00"), ["crm backup schedule"]);
}

#[test]
fn a_plan_that_is_gone_while_it_runs_ends_in_peace_and_one_that_changed_follows_its_new_schedule() {
    let mut world = World::new(&[plan("crm", "a", HOURLY), plan("erp", "b", HOURLY)].concat());
    world.turn("00:30:00");
    assert_eq!(world.turn("01:00:00").len(), 2);
    world.request("erp", Job::Drill, "01:00:30");
    let new = load(world.folder.path(), &plan("erp", "b", "schedule = \"30 * * * *\""));
    assert!(world.agenda.reload(Arc::clone(&new)).is_empty(), "the request stays");
    world.done("crm", Job::Backup, "01:05:00");
    world.done("erp", Job::Backup, "01:05:00");
    assert_eq!(world.turn("01:05:00"), ["erp drill manual"]);
    assert_eq!(world.agenda.wake(), Some(at("01:30:00")));
    assert_eq!(world.turn("01:30:00"), ["erp backup schedule"]);
    let (waiting, _) = world.request("erp", Job::Verify, "01:31:00");
    let gone = load(world.folder.path(), &plan("crm", "a", ""));
    assert_eq!(world.agenda.reload(gone).iter().map(|run| run.id).collect::<Vec<_>>(), [waiting]);
    world.done("erp", Job::Backup, "01:32:00");
    assert!(world.turn("02:30:00").is_empty() && world.agenda.is_empty());
}

#[test]
fn a_journal_that_is_away_is_asked_again() {
    let mut world = World::new(&plan("crm", "a", HOURLY));
    world.agenda.advance(at("00:30:00"));
    assert_eq!(world.agenda.to_ask().0.len(), 1);
    world.agenda.not_learnt();
    assert_eq!(world.agenda.wake(), Some(at("00:30:10")));
    assert!(world.turn("00:30:10").is_empty());
    assert_eq!(world.agenda.wake(), Some(at("01:00:00")));
}

/// Hourly plans for which the node `here` comes second and first, beside `there`.
fn second_and_first() -> (String, String) {
    let membership = Membership::new("here", &[], true);
    membership.see(vec![Node { name: "there".to_owned(), labels: Vec::new(), host: "host".to_owned(), seen: at("00:30:00") }]);
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..20).map(|n| format!("plan-{n}")).collect();
    let text: String = names.iter().map(|name| plan(name, "a", HOURLY)).collect();
    let plans = load(folder.path(), &text);
    let find = |is_first: bool| {
        let fits = |plan: &&Arc<Plan>| membership.turn(plan, at("01:00:00")).is_zero() == is_first;
        plans.plans.values().find(fits).unwrap().name.to_string()
    };
    (find(false), find(true))
}

#[test]
fn a_node_lets_those_go_first_that_the_slot_would_rather_have_and_takes_what_they_leave() {
    let (second, first) = second_and_first();
    let mut world = World::shared(&[plan(&second, "a", HOURLY), plan(&first, "b", HOURLY)].concat(), &[], &[("there", &[])]);
    assert!(world.turn("00:30:00").is_empty());
    assert_eq!(world.turn("01:00:00"), [format!("{first} backup schedule")]);
    world.done(&first, Job::Backup, "01:00:01");
    assert!(world.turn("01:00:01").is_empty(), "the other one is first in line");
    assert_eq!(world.agenda.wake().map(|wake| (wake - at("01:00:00")).num_milliseconds()), Some(1500));
    assert_eq!(world.turn("01:00:02"), [format!("{second} backup schedule")], "it did not come");
    world.done(&second, Job::Backup, "01:00:03");

    // The other one comes in time: learnt, and not started again.
    let mut world = World::shared(&plan(&second, "a", HOURLY), &[], &[("there", &[])]);
    world.turn("00:30:00");
    world.turn("01:00:00");
    world.elsewhere(&second, "01:00:00", State::Running, None);
    assert!(world.turn("01:00:02").is_empty());
    assert_eq!(world.agenda.wake(), Some(at("01:01:02")), "it is asked about again: that node may die");
    world.elsewhere(&second, "01:00:00", State::Succeeded, Some("01:00:30"));
    assert!(world.turn("01:01:02").is_empty());
    assert_eq!(world.agenda.wake(), Some(at("02:00:00")));
}

#[test]
fn what_another_node_left_is_tried_again_here_at_once_when_it_is_told() {
    let text = plan("crm", "a", &format!("{HOURLY}\nretry = {{ attempts = 3, delay = \"1m\" }}"));
    let mut world = World::shared(&text, &[], &[("there", &[])]);
    world.turn("00:30:00");
    world.elsewhere("crm", "01:00:00", State::Running, None);
    world.turn("01:00:02");
    world.elsewhere("crm", "01:00:00", State::Interrupted, Some("01:00:05"));
    assert!(world.turn("01:00:10").is_empty(), "nobody has told it");
    world.agenda.look(&Name::new("crm").unwrap());
    // The other one may go first.
    assert_eq!([world.turn("01:00:11"), world.turn("01:00:13")].concat(), ["crm backup retry"]);
}

#[test]
fn every_slot_is_asked_about_when_it_is_due_on_a_journal_that_others_use() {
    let mut world = World::shared(&plan("crm", "a", HOURLY), &[], &[]);
    world.turn("00:30:00");
    world.elsewhere("crm", "01:00:00", State::Succeeded, Some("01:00:01"));
    assert!(world.turn("01:00:02").is_empty(), "somebody who was not seen has done it");
    assert_eq!(world.turn("02:00:00"), ["crm backup schedule"]);
}

#[test]
fn what_comes_after_a_backup_that_cannot_be_settled_does_not_wait_for_it() {
    let text = [plan("base", "a", HOURLY), plan("next", "b", &format!("{HOURLY}\nafter = [\"base\"]"))].concat();
    let mut world = World::shared(&text, &[], &[]);
    world.turn("00:30:00");
    world.elsewhere("base", "01:00:00", State::Running, None);
    assert!(world.turn("01:01:00").is_empty());
    world.agenda.set_unsettled(BTreeSet::from([Name::new("base").unwrap()]));
    assert_eq!(world.turn("01:01:30"), ["next backup schedule"]);
}

#[test]
fn a_plan_runs_only_where_its_labels_say_and_what_comes_after_it_waits_for_it_elsewhere() {
    let text =
        [plan("base", "a", &format!("{HOURLY}\nrun_on = [\"db\"]")), plan("next", "b", &format!("{HOURLY}\nafter = [\"base\"]"))].concat();
    let mut world = World::shared(&text, &["other"], &[("there", &["db"])]);
    assert_eq!(world.agenda.len(), 1, "one is run here");
    world.turn("00:30:00");
    assert!(world.turn("01:00:30").is_empty(), "the other one has not even begun");
    world.elsewhere("base", "01:00:00", State::Running, None);
    assert!(world.turn("01:01:30").is_empty(), "it goes on elsewhere");
    world.elsewhere("base", "01:00:00", State::Succeeded, Some("01:01:40"));
    assert_eq!(world.turn("01:02:30"), ["next backup schedule"]);

    // No node that is at work has the label: nothing waits for what nobody does.
    let mut world = World::shared(&text, &["other"], &[("there", &["other"])]);
    world.turn("00:30:00");
    assert_eq!([world.turn("01:00:00"), world.turn("01:00:10")].concat(), ["next backup schedule"]);
    // Alone, such a plan is not looked at at all.
    let mut alone = World::new(&text);
    alone.turn("00:30:00");
    assert_eq!(alone.turn("01:00:00"), ["next backup schedule"]);
    let mut labelled = World::shared(&text, &["db"], &[]);
    labelled.turn("00:30:00");
    assert_eq!(labelled.turn("01:00:00"), ["base backup schedule"]);
}
