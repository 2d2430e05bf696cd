//! What every command works with: where plans and state are, and how to open what a name means.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cli::args::Global;
use crate::cli::output::{Output, note};
use crate::cli::progress;
use crate::clock::{Clock, SystemClock};
use crate::daemon::control::Signals;
use crate::daemon::history;
use crate::daemon::journal::{Job, Journal, NewRun};
use crate::daemon::runner::{self, Outcome};
use crate::daemon::settler::Settler;
use crate::daemon::status;
use crate::error::{Error, IoContext, Kind, Result};
use crate::event::{Cancel, Progress};
use crate::id::{Name, SnapshotId};
use crate::ops::CommitGate;
use crate::ops::resolve::{self, RepositorySettings, Surroundings};
use crate::ops::select;
use crate::plan::{Plan, Plans, Sound};
use crate::repo::Passphrase;

/// The process as commands see it.
#[derive(Clone)]
pub struct App {
    pub output: Arc<Output>,
    pub global: Global,
    pub runtime: tokio::runtime::Handle,
    pub cancel: Cancel,
    /// For the daemon only.
    pub signals: Signals,
    pub clock: Arc<dyn Clock>,
}

impl App {
    /// For the machine's clock.
    #[must_use]
    pub fn new(global: Global, runtime: tokio::runtime::Handle, cancel: Cancel) -> Self {
        Self {
            output: Arc::new(Output::new(global.json)),
            global,
            runtime,
            cancel,
            signals: Signals::default(),
            clock: Arc::new(SystemClock),
        }
    }

    /// The folders that plan files are read from.
    ///
    /// # Errors
    /// `Usage` when none is given and none of the usual ones is there.
    pub fn plan_folders(&self) -> Result<Vec<PathBuf>> {
        if !self.global.plans.is_empty() {
            return Ok(self.global.plans.clone());
        }
        ["plans", "/etc/lifeboat/plans"].iter().map(PathBuf::from).find(|path| path.is_dir()).map(|path| vec![path]).ok_or_else(|| {
            Error::new(Kind::Usage, "find plan files: neither ./plans nor /etc/lifeboat/plans is there")
                .hint("say where they are with --plans DIR")
        })
    }

    /// All plans.
    ///
    /// # Errors
    /// `Usage` with everything that is wrong in the files.
    pub fn plans(&self) -> Result<Plans> {
        Ok(Plans::load(&self.plan_folders()?)?)
    }

    /// What is right in the plan files, for commands that an incident needs. What is wrong is told on standard error, once.
    ///
    /// # Errors
    /// `Usage` with everything that is wrong, when nothing is left.
    pub fn sound_plans(&self) -> Result<Sound> {
        let sound = Sound::load(&self.plan_folders()?)?;
        if let Some(errors) = &sound.errors {
            note(&format!("warning: these plan files are wrong, and this goes on without them:\n{errors}"));
        }
        Ok(sound)
    }

    /// One plan by name, also where other plan files are wrong.
    ///
    /// # Errors
    /// `Usage` when there is none, or it may be in a file that is wrong.
    pub fn sound_plan(&self, name: &str) -> Result<Arc<Plan>> {
        self.sound_plans()?.plan(name).map(Arc::clone).map_err(|error| self.of_a_plan_that_is_gone(name, error))
    }

    /// Why there is no plan of this name; of one that was backed up and is in no file any more, how to come by its snapshots.
    pub(super) fn of_a_plan_that_is_gone(&self, name: &str, error: Error) -> Error {
        // Wrong plan files are told as such: the plan may be in one of them.
        let plan = Name::new(name).ok().filter(|_| self.plan_folders().and_then(|paths| Ok(Plans::load(&paths)?)).is_ok());
        let journal = || self.journal_to_read().ok().flatten();
        let last = |plan: &Name| status::last_backup(&journal()?.newest(&[plan], self.clock.now()).ok()?, plan).map(|run| run.started);
        let Some(last) = plan.as_ref().and_then(last) else { return error };
        Error::new(Kind::Usage, format!("plan {name} is in no plan file any more; its last backup was of {}", select::moment(last)))
            .hint(format!(
                "its snapshots are still in its repository, as far as nobody removed them. Put the plan back, or without it, with the \
                 repository's passphrase in LIFEBOAT_PASSPHRASE: `lifeboat snapshots {name} --from URL`, `lifeboat restore {name} --from URL --to TARGET`{}",
                self.places()
            ))
    }

    /// The addresses that the plan files know.
    fn places(&self) -> String {
        let plans = self.plan_folders().and_then(|paths| Ok(Plans::load(&paths)?)).unwrap_or_default();
        let all: Vec<String> = plans.repositories.values().map(|one| format!("{} ({})", one.url.as_str(), one.name)).collect();
        if all.is_empty() { String::new() } else { format!("; the plan files know {}", all.join(", ")) }
    }

    /// One plan by name.
    ///
    /// # Errors
    /// `Usage` when there is none; the hint names the nearest.
    pub fn plan(&self, name: &str) -> Result<Arc<Plan>> {
        self.plans()?.plan(name).map(Arc::clone)
    }

    /// The state folder: the option, else systemd's, else the XDG one.
    ///
    /// # Errors
    /// `Usage` when the environment names no home.
    pub fn state(&self) -> Result<PathBuf> {
        if let Some(state) = &self.global.state {
            // Programs that work in it are started elsewhere.
            return std::path::absolute(state).io_context(|| format!("find the state folder {}", state.display()));
        }
        // systemd gives a colon-separated list; the first is ours (systemd.exec(5), StateDirectory=).
        let systemd = std::env::var("STATE_DIRECTORY")
            .ok()
            .and_then(|list| list.split(':').next().filter(|first| !first.is_empty()).map(PathBuf::from));
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        systemd
            .or_else(|| absolute("XDG_STATE_HOME").map(|path| path.join("lifeboat")))
            .or_else(|| absolute("HOME").map(|path| path.join(".local/state/lifeboat")))
            .ok_or_else(|| Error::new(Kind::Usage, "find the state folder: HOME is not set").hint("say where it is with --state DIR"))
    }

    /// A progress listener for an operation.
    #[must_use]
    pub fn progress(&self, operation: &str) -> Arc<dyn Progress> {
        progress::listener(self.global.progress, self.global.quiet, operation)
    }

    /// What an operation gets from this process.
    ///
    /// # Errors
    /// As [`App::state`].
    pub fn surroundings(&self, progress: Arc<dyn Progress>) -> Result<Surroundings> {
        Ok(Surroundings {
            state: self.state()?,
            runtime: self.runtime.clone(),
            clock: Arc::clone(&self.clock),
            progress,
            cancel: self.cancel.clone(),
            gate: CommitGate::default(),
        })
    }

    /// The journal that the plans name; without plans, that of the state folder.
    ///
    /// # Errors
    /// As [`Journal::of`].
    pub fn journal(&self) -> Result<Journal> {
        let (state, now) = (self.state()?, self.clock.now());
        match self.plan_folders() {
            Ok(folders) => Journal::of(&Sound::load(&folders)?.with_their_journal()?, &state, None, now),
            Err(_) => Journal::open(&state, now),
        }
    }

    /// The same to look into: `None` where nothing was ever run. Plan files that cannot be read do not hide what the state folder has.
    ///
    /// # Errors
    /// As [`Journal::of`].
    pub fn journal_to_read(&self) -> Result<Option<Journal>> {
        let sound = self.plan_folders().and_then(|folders| Ok(Sound::load(&folders)?));
        self.journal_of(sound.and_then(Sound::with_their_journal))
    }

    /// The same, of plan files that were read already.
    ///
    /// # Errors
    /// As [`Journal::of`].
    pub fn journal_of(&self, plans: Result<Plans>) -> Result<Option<Journal>> {
        let (state, now) = (self.state()?, self.clock.now());
        match plans {
            Ok(plans) if plans.journal.url.is_some() => Journal::of(&plans, &state, None, now).map(Some),
            Ok(_) => Journal::open_existing(&state, now),
            Err(error) => match Journal::open_existing(&state, now)? {
                Some(journal) => Ok(Some(journal)),
                None if error.kind() == Kind::Usage && self.plan_folders().is_err() => Ok(None),
                None => Err(error),
            },
        }
    }

    /// What the journal says was committed to a repository: see [`history::committed_to`]. Nothing where nothing was ever run.
    ///
    /// # Errors
    /// When the plan files or the journal cannot be read.
    pub fn committed_to(&self, repository: &Name) -> Result<Vec<(Name, SnapshotId)>> {
        self.journal_to_read()?.map_or_else(|| Ok(Vec::new()), |journal| history::committed_to(&journal, &self.plans()?, repository))
    }

    /// A repository's settings by its name, or by the name of a plan that uses it (the plan's name comes back too).
    ///
    /// # Errors
    /// `Usage` when no plan and no repository is called so.
    pub fn plan_or_repository(&self, name: &str) -> Result<(Option<Name>, RepositorySettings)> {
        let plans = self.plans()?;
        match (plans.plan(name), plans.repository(name)) {
            (Ok(plan), Ok(repository)) if plan.repository.name != repository.name => {
                Err(Error::new(Kind::Usage, format!("{name:?} is both a plan and another repository"))
                    .hint("rename one of them in the plan files"))
            }
            (Ok(plan), _) => Ok((Some(plan.name.clone()), resolve::repository(&plan.repository)?)),
            (Err(_), Ok(repository)) => Ok((None, resolve::repository(repository)?)),
            (Err(_), Err(_)) => {
                let list = |names: Vec<&str>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                Err(Error::new(Kind::Usage, format!("neither a plan nor a repository is called {name:?}")).hint(format!(
                    "plans: {}; repositories: {}",
                    list(plans.plans.keys().map(Name::as_str).collect()),
                    list(plans.repositories.keys().map(Name::as_str).collect())
                )))
            }
        }
    }

    /// A repository by its address, for a machine without plans; the passphrase is in `LIFEBOAT_PASSPHRASE`.
    ///
    /// # Errors
    /// `Usage` when it is no address, or there is no passphrase.
    pub fn repository_at(url: &str) -> Result<RepositorySettings> {
        let passphrase = std::env::var("LIFEBOAT_PASSPHRASE").ok().filter(|text| !text.is_empty()).ok_or_else(|| {
            Error::new(Kind::Usage, "open a repository by URL: the environment variable LIFEBOAT_PASSPHRASE is not set")
                .hint("set it to the repository's passphrase or recovery key for this command")
        })?;
        RepositorySettings::at(url, Passphrase::new(passphrase))
    }

    /// Runs one manual job with its journal entry, after settling what a killed run of the same job of the plan left. A restore waits for no repository but
    /// its own.
    ///
    /// # Errors
    /// As [`runner::journalled`] and [`Settler::make_way`].
    pub fn manual<T: Outcome>(
        &self,
        plan: &Name,
        job: Job,
        surroundings: &Surroundings,
        work: impl FnOnce(&Surroundings) -> Result<T>,
    ) -> Result<T> {
        let journal = match self.journal() {
            Ok(journal) => journal,
            // Nothing may stand in the way of an incident restore.
            Err(error) if job == Job::Restore => {
                not_recorded(&error);
                return work(surroundings);
            }
            Err(error) => return Err(error),
        };
        let app = self.clone();
        let settler = Settler::new(journal.clone(), surroundings.clone(), move || app.plans().map(Arc::new), |_| {});
        let settled = settler.make_way(plan, job, &surroundings.cancel, None);
        let run = NewRun::manual(plan, job, who(), self.clock.now());
        if job == Job::Restore {
            if let Err(error) = &settled {
                note(&format!("warning: what a crash left in the journal could not be settled: {error:?}"));
            }
            return runner::journalled_if_possible(&journal, &run, surroundings, not_recorded, work);
        }
        settled?;
        runner::journalled(&journal, &run, surroundings, work).map(|(_, outcome)| outcome)
    }
}

/// Who runs this process, for the journal and the repository: the system's word for the account, and whom sudo(8) says it was for.
pub(super) fn who() -> String {
    let uid = rustix::process::getuid();
    let name = |variable: &str| std::env::var(variable).ok().filter(|name| !name.is_empty() && name.len() <= 64);
    let account = name("USER").or_else(|| name("LOGNAME")).map_or_else(|| format!("uid {uid}"), |name| format!("{name} (uid {uid})"));
    name("SUDO_USER").map_or(account.clone(), |before| format!("{before}, as {account}"))
}

fn not_recorded(error: &Error) {
    note(&format!("warning: this restore is not recorded: {error:?}"));
}

/// A path as a person would type it to a shell.
#[must_use]
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(&b)) && !text.is_empty() {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
