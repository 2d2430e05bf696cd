//! What repositories say of the plans that keep their snapshots there, and of those that copy there: each is opened once for all of them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

use crate::daemon::status::assess::newest_whole;
use crate::daemon::status::beside::{self, Pace, Said};
use crate::daemon::status::copies::{self, Held};
use crate::daemon::status::reports::Reports;
use crate::daemon::status::{CopyStatus, Problem, Stored, Unasked};
use crate::error::{Error, Kind, Result};
use crate::event::Pulse;
use crate::id::Name;
use crate::ops::log::reach::reach;
use crate::ops::resolve::{self, Surroundings};
use crate::ops::{damaged_warning, explain, select};
use crate::plan::{self, Plan};
use crate::repo::{LockSample, LostManifest, Manifest, Repository};

/// What a repository said of one plan.
pub type Asked = std::result::Result<Arc<Stored>, Unasked>;

/// What one repository is asked.
struct Question {
    repository: Arc<plan::Repository>,
    /// About plans that keep their snapshots there.
    own: Vec<Arc<Plan>>,
    /// About plans that copy there.
    copied: Vec<Arc<Plan>>,
}

enum Answer {
    Own(Name, Box<std::result::Result<Stored, Unasked>>),
    Copy(Name, std::result::Result<Held, Unasked>),
}

/// All that was said.
#[derive(Default)]
pub(super) struct Answers {
    own: BTreeMap<Name, std::result::Result<Stored, Unasked>>,
    /// By repository and plan.
    copies: BTreeMap<(Name, Name), std::result::Result<Held, Unasked>>,
}

impl Answers {
    /// Every question has an answer afterwards.
    fn take(&mut self, question: &Question, said: Said<Answer>) {
        let repository = &question.repository.name;
        for answer in said.answers {
            match answer {
                Answer::Own(plan, asked) => drop(self.own.insert(plan, *asked)),
                Answer::Copy(plan, held) => drop(self.copies.insert((repository.clone(), plan), held)),
            }
        }
        let why = said.why.unwrap_or_else(nobody);
        for plan in &question.own {
            self.own.entry(plan.name.clone()).or_insert_with(|| Err(why.clone()));
        }
        for plan in &question.copied {
            self.copies.entry((repository.clone(), plan.name.clone())).or_insert_with(|| Err(why.clone()));
        }
    }

    /// What is known of a plan's copies. `originals`: what is in its own repository, where it could be asked.
    pub fn copies(&self, plan: &Plan, originals: Option<&[Manifest]>, surroundings: &Surroundings) -> (Vec<CopyStatus>, Vec<Problem>) {
        let held = |to: &Name| self.copies.get(&(to.clone(), plan.name.clone())).cloned().unwrap_or_else(|| Err(nobody()));
        copies::of(plan, originals, held, surroundings.clock.now())
    }

    /// What is known of a plan.
    pub fn of(&mut self, plan: &Plan, surroundings: &Surroundings) -> Asked {
        let stored = self.own.remove(&plan.name).unwrap_or_else(|| Err(nobody()))?;
        let (copies, copy_problems) = self.copies(plan, Some(&stored.manifests), surroundings);
        Ok(Arc::new(Stored { copies, copy_problems, ..stored }))
    }
}

fn nobody() -> Unasked {
    Unasked { kind: Kind::Bug, message: "asking it came to nothing; please report this".to_owned(), secret: false }
}

/// What is to be asked: first those that have snapshots of their own plans.
fn questions(own: &[Arc<Plan>], copied: &[Arc<Plan>]) -> Vec<Question> {
    let mut all: BTreeMap<&Name, Question> = BTreeMap::new();
    let fresh = |repository: &Arc<plan::Repository>| Question { repository: Arc::clone(repository), own: Vec::new(), copied: Vec::new() };
    for plan in own {
        let repository = &plan.repository;
        all.entry(&repository.name).or_insert_with(|| fresh(repository)).own.push(Arc::clone(plan));
    }
    for plan in copied {
        for copy in &plan.copies {
            all.entry(&copy.to.name).or_insert_with(|| fresh(&copy.to)).copied.push(Arc::clone(plan));
        }
    }
    let mut all: Vec<Question> = all.into_values().collect();
    all.sort_by_key(|question| question.own.is_empty());
    all
}

/// Asks the repositories of these plans and of their copies, beside each other. Of one that gives no sign the rest is not waited for, and only what
/// it would have said is missing.
///
/// # Errors
/// `Interrupted`.
pub(super) fn ask_all(plans: &[Arc<Plan>], surroundings: &Surroundings) -> Result<Answers> {
    ask_beside(questions(plans, plans), &Pulse::default(), surroundings, |_| ())
}

/// The same; what `begun` makes is dropped when a repository has said everything, however long that takes.
///
/// # Errors
/// `Interrupted`, and nothing else.
fn ask_beside<G>(
    questions: Vec<Question>,
    pulse: &Pulse,
    surroundings: &Surroundings,
    begun: impl Fn(&Question) -> G + Clone + Send + 'static,
) -> Result<Answers> {
    let questions: Vec<Arc<Question>> = questions.into_iter().map(Arc::new).collect();
    let of_thread = surroundings.clone();
    let ask = move |question: &Arc<Question>, pulse: &Pulse, tell: &dyn Fn(Answer)| {
        let _until_it_ends = begun(question);
        put(question, pulse, &of_thread, tell);
    };
    let said = beside::ask(questions.clone(), Pace::STATUS, pulse, &surroundings.cancel, ask)?;
    let mut answers = Answers::default();
    for (question, said) in questions.iter().zip(said) {
        answers.take(question, said);
    }
    Ok(answers)
}

/// Repositories that were asked and have not answered yet, though nobody waits for them any more: one that hangs for good is not asked again.
#[derive(Debug, Clone, Default)]
pub struct Unanswered(Arc<Mutex<BTreeSet<Name>>>);

/// Until it is dropped a repository has not answered.
pub(in crate::daemon) struct Begun(Unanswered, Name);

impl Unanswered {
    fn names(&self) -> MutexGuard<'_, BTreeSet<Name>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::daemon) fn has(&self, name: &Name) -> bool {
        self.names().contains(name)
    }

    pub(in crate::daemon) fn begin(&self, name: &Name) -> Begun {
        self.names().insert(name.clone());
        Begun(self.clone(), name.clone())
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.names().remove(&self.1);
    }
}

/// Asks the one repository of all these plans, for as long as that takes, then their copies, of which one that hangs is not waited for. `unanswered`
/// is of those who ask about these plans: they ask one after the other. The pulse beats unless the repository hangs. Without an answer when it was
/// interrupted.
#[must_use]
pub fn ask(plans: &[Arc<Plan>], unanswered: &Unanswered, pulse: &Pulse, surroundings: &Surroundings) -> Vec<(Name, Asked)> {
    let mut answers = Answers::default();
    for question in questions(plans, &[]) {
        let told = RefCell::new(Vec::new());
        put(&question, pulse, surroundings, &|answer| told.borrow_mut().push(answer));
        answers.take(&question, Said { answers: told.into_inner(), why: None });
    }
    // Of what could not be asked nobody looks at the copies.
    let copied: Vec<Arc<Plan>> =
        plans.iter().filter(|plan| answers.own.get(&plan.name).is_some_and(std::result::Result::is_ok)).cloned().collect();
    let (hang, free): (Vec<_>, Vec<_>) =
        questions(&[], &copied).into_iter().partition(|question| unanswered.has(&question.repository.name));
    for question in hang {
        let message = "it was asked before and has still not answered".to_owned();
        answers.take(&question, Said { answers: Vec::new(), why: Some(Unasked { kind: Kind::Unavailable, message, secret: false }) });
    }
    let unanswered = unanswered.clone();
    match ask_beside(free, pulse, surroundings, move |question| unanswered.begin(&question.repository.name)) {
        Ok(more) => answers.copies.extend(more.copies),
        // It was interrupted.
        Err(_) => return Vec::new(),
    }
    plans.iter().map(|plan| (plan.name.clone(), answers.of(plan, surroundings))).collect()
}

/// Asks one repository all of it; each answer as it comes. The pulse beats as long as it goes on.
fn put(question: &Question, pulse: &Pulse, surroundings: &Surroundings, tell: &dyn Fn(Answer)) {
    let asked = surroundings.clock.now();
    let refuse_own = |error: &Error, secret| {
        let why = Unasked { kind: error.kind(), message: format!("{error:?}"), secret };
        question.own.iter().for_each(|plan| tell(Answer::Own(plan.name.clone(), Box::new(Err(why.clone())))));
    };
    let refuse_copied = |error: &Error, secret| {
        let why = Unasked { kind: error.kind(), message: explain(error), secret };
        question.copied.iter().for_each(|plan| tell(Answer::Copy(plan.name.clone(), Err(why.clone()))));
    };
    let refuse = |error: &Error, secret| {
        refuse_own(error, secret);
        refuse_copied(error, secret);
    };
    let settings = match resolve::repository(&question.repository) {
        Ok(settings) => settings,
        // All that it does is to get secrets.
        Err(error) => return refuse(&error, true),
    };
    let repository = match settings.open_watched(surroundings, pulse) {
        Ok(repository) => repository,
        Err(error) => return refuse(&error, false),
    };
    let changed = settings.changed(&repository, surroundings);
    let names = |plans: &[Arc<Plan>]| plans.iter().map(|plan| plan.name.clone()).collect::<Vec<Name>>();
    if !question.own.is_empty() {
        let names = names(&question.own);
        let found = Reports::read(&repository, asked).and_then(|reports| {
            Ok((repository.sound_manifests_of(&names.iter().collect::<Vec<_>>())?, reports, repository.ledger_or_none()?))
        });
        match found {
            Ok((found, reports, ledger)) => {
                for (plan, found) in question.own.iter().zip(found) {
                    let stored = found.and_then(|found| {
                        let lock = lapsed_lock(&repository, &found.0, asked)?;
                        Ok(Stored { lock, ..stored(plan, found, &repository, &reports, asked)? })
                    });
                    let stored =
                        stored.map(|stored| Stored { asked: Some(asked), changed: changed.clone(), ledger: ledger.clone(), ..stored });
                    let unasked = |error: Error| Unasked { kind: error.kind(), message: format!("{error:?}"), secret: false };
                    tell(Answer::Own(plan.name.clone(), Box::new(stored.map_err(unasked))));
                }
            }
            Err(error) => refuse_own(&error, false),
        }
    }
    if !question.copied.is_empty() {
        let names = names(&question.copied);
        match repository.sound_manifests_of(&names.iter().collect::<Vec<_>>()) {
            Ok(found) => {
                for (name, found) in names.into_iter().zip(found) {
                    let held = found.and_then(|(mut manifests, lost)| {
                        // What nobody can read any more is no copy.
                        manifests.retain(|manifest| repository.destroyed_at(manifest).is_none());
                        Ok(Held::of(&manifests, &lost, changed.clone(), lapsed_lock(&repository, &manifests, asked)?))
                    });
                    let unasked = |error: Error| Unasked { kind: error.kind(), message: explain(&error), secret: false };
                    tell(Answer::Copy(name, held.map_err(unasked)));
                }
            }
            Err(error) => refuse_copied(&error, false),
        }
    }
}

/// By the date of the newest snapshot's manifest, which no other one outlasts by much, and where logs are locked for a shorter time by those of pieces of its
/// sources' logs: whether Object Lock ends because nothing has moved dates on. One request, and with such logs a list and two of each, where locks are asked for.
fn lapsed_lock(repository: &Repository, manifests: &[Manifest], now: DateTime<Utc>) -> Result<Option<String>> {
    let Some(newest) = select::latest(manifests) else { return Ok(None) };
    match repository.sample_locks(&[newest], false, now) {
        Ok(sample) => Ok(sample.filter(LockSample::is_certain).and_then(|sample| sample.told())),
        Err(error) if error.kind() == Kind::Unavailable => Err(error),
        // Credentials that may not ask say nothing; `doctor` tells of them.
        Err(error) => {
            tracing::warn!(error = ?error, "until when snapshots are locked cannot be seen");
            Ok(None)
        }
    }
}

fn stored(
    plan: &Plan,
    (manifests, damaged): (Vec<Manifest>, Vec<LostManifest>),
    repository: &Repository,
    reports: &Reports,
    asked: DateTime<Utc>,
) -> Result<Stored> {
    let damaged = damaged_warning(&damaged).into_iter().chain(reports.damaged.clone()).collect();
    let about = reports.about(&plan.name, &manifests);
    let (mut destroyed, mut readable) = (Vec::new(), Vec::new());
    for manifest in manifests {
        match repository.destroyed_at(&manifest) {
            Some(at) => destroyed.push((manifest, at)),
            None => readable.push(manifest),
        }
    }
    let mut stored = Stored {
        manifests: readable,
        destroyed,
        reports: about,
        standing: Arc::clone(&reports.standing),
        settled: Arc::clone(&reports.settled),
        damaged,
        ..Stored::default()
    };
    for source in plan.sources.iter().filter(|source| source.kind.keeps_log()) {
        let Some(whole) = newest_whole(plan, &stored, asked) else { break };
        match reach(&repository.log(&plan.name, &source.name), &source.name, whole) {
            Ok(found) => stored.reaches.extend(found.map(|reach| (source.name.clone(), reach))),
            Err(error) if error.kind() == Kind::Damaged => stored.damaged.push(format!("the log of source {}: {error:?}", source.name)),
            Err(error) => return Err(error),
        }
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::event::{Cancel, Silent};
    use crate::ops::CommitGate;
    use crate::plan::Plans;

    #[test]
    fn a_copy_that_hangs_says_nothing_of_the_plans_own_repository_and_is_not_asked_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let secret = folder.path().join("passphrase");
        std::fs::write(&secret, "correct horse battery staple").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        let repository =
            |name: &str| format!("[repository.{name}]\nurl = \"file://{path}/{name}\"\npassphrase = {{ file = \"{path}/passphrase\" }}\n");
        let text = format!(
            "version = 1\n{}{}[source.dump]\nkind = \"command\"\ndump = [\"true\"]\n[plan.crm]\nsource = \"dump\"\nrepository = \"main\"\n\
             [[plan.crm.copy]]\nto = \"far\"\n[plan.plain]\nsource = \"dump\"\nrepository = \"main\"\n",
            repository("main"),
            repository("far"),
        );
        std::fs::create_dir(folder.path().join("plans")).unwrap();
        std::fs::write(folder.path().join("plans/crm.toml"), text).unwrap();
        let plans = Plans::load(&[folder.path().join("plans")]).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let surroundings = Surroundings {
            state: folder.path().join("state"),
            runtime: runtime.handle().clone(),
            clock: Arc::new(crate::clock::SystemClock),
            progress: Arc::new(Silent),
            cancel: Cancel::default(),
            gate: CommitGate::default(),
        };
        for planned in plans.repositories.values() {
            crate::ops::init::run(&resolve::repository(planned).unwrap(), &surroundings).unwrap();
        }
        let plans: Vec<Arc<Plan>> = plans.plans.values().cloned().collect();
        let (crm, plain) = (&plans[0], &plans[1]);
        let (unanswered, pulse) = (Unanswered::default(), Pulse::default());
        let asked = || -> BTreeMap<Name, Arc<Stored>> {
            ask(&plans, &unanswered, &pulse, &surroundings).into_iter().map(|(name, asked)| (name, asked.unwrap())).collect()
        };
        let hangs = unanswered.begin(&crm.copies[0].to.name);
        let told = asked();
        let of_crm = &told[&crm.name];
        assert_eq!((of_crm.copies[0].reachable, of_crm.copy_problems[0].kind.as_str()), (false, "copy-unreachable"));
        assert!(of_crm.copy_problems[0].message.contains("has still not answered"));
        assert_eq!((&told[&plain.name].copies, &told[&plain.name].copy_problems), (&vec![], &vec![]));
        drop(hangs);
        let told = asked();
        // Whoever asks is told that it goes on, by each answer of the store.
        let pulse = Pulse::default();
        assert!(ask(&plans[1..], &unanswered, &pulse, &surroundings)[0].1.is_ok());
        assert!(pulse.beats() > 5, "{}", pulse.beats());
        assert_eq!((told[&crm.name].copies[0].reachable, &told[&crm.name].copy_problems), (true, &vec![]));
        // One whose repository is not there is told by the copy, where somebody asks about both.
        std::fs::rename(folder.path().join("main"), folder.path().join("away")).unwrap();
        let mut answers = ask_all(&plans, &surroundings).unwrap();
        assert!(answers.of(crm, &surroundings).is_err());
        assert!(answers.copies(crm, None, &surroundings).0[0].reachable);
        surroundings.cancel.cancel();
        assert_eq!(ask_all(&plans, &surroundings).err().unwrap().kind(), Kind::Interrupted);
    }
}
