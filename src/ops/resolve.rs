//! From a validated plan to what operations work with. The only module of `ops` that knows plan-file types, and the one place where a kind
//! of source becomes its driver.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock::Clock;
use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Event, Progress, Pulse};
use crate::id::Name;
use crate::ops::identity::{self, AcceptReport};
use crate::ops::log::canary;
use crate::ops::prune::PlanRules;
use crate::ops::retention::Rules;
use crate::ops::work::make_missing;
use crate::ops::{Canary, CommitGate, DrillSettings, Job, NamedSource, Objectives, PlannedCheck, explain};
use crate::plan::SecretRef;
use crate::plan::{self, Cache, DamagedPages, DrillAt, EnvironmentValue, LogMode, Method, SourceKind};
use crate::repo::{OpenOptions, Passphrase, Repository, SourceRecord, object_lock};
use crate::source::command::{CommandSource, SecretValue};
use crate::source::files::FilesSource;
use crate::source::postgres::PostgresSource;
use crate::source::postgres::conninfo::Settings;
use crate::source::postgres::logical::{self, LogicalSource};
use crate::source::postgres::stream::slot_name;
use crate::source::sqlite::SqliteSource;
use crate::source::{
    CheckResult, Diagnosis, ExtractRequest, Extracted, HandOver, HandedOver, ProveRequest, Source, SourceContext, SourceSnapshot,
};
use crate::store::{Credential, LockMode, Store, StoreConfig};

/// What the process around an operation gives it.
#[derive(Clone)]
pub struct Surroundings {
    /// `--state DIR`; made 0700 when missing.
    pub state: PathBuf,
    /// Drives the store's I/O; operations block on it from ordinary threads.
    pub runtime: tokio::runtime::Handle,
    pub clock: Arc<dyn Clock>,
    pub progress: Arc<dyn Progress>,
    pub cancel: Cancel,
    /// Of the run that this is for.
    pub gate: CommitGate,
}

/// A repository that is not open yet. `Debug` shows no secret.
#[derive(Debug, Clone)]
pub struct RepositorySettings {
    /// Its name in plan files; `None` when it was given by URL.
    pub name: Option<Name>,
    pub store: StoreConfig,
    pub passphrase: Passphrase,
    pub cache: Cache,
    /// Key slots older than this are told of; `None`: none is.
    pub max_key_age: Option<std::time::Duration>,
}

/// What is wrong with which repository is at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// Another one is there, or an older state of it; else nobody can say which belongs there.
    pub certain: bool,
    /// A sentence.
    pub message: String,
}

impl RepositorySettings {
    /// For `--from URL` on a machine without plans: everything but the place is at its default or from the environment.
    ///
    /// # Errors
    /// `Usage` when it is no repository URL.
    pub fn at(url: &str, passphrase: Passphrase) -> Result<Self> {
        let url = plan::RepositoryUrl::parse(url)?;
        let says_yes = |name: &str| std::env::var(name).is_ok_and(|value| matches!(value.trim(), "1" | "true"));
        let store = StoreConfig {
            // Without a plan the environment says what the plan would.
            path_style: says_yes("AWS_VIRTUAL_HOSTED_STYLE_REQUEST").then_some(false),
            allow_http: says_yes("LIFEBOAT_ALLOW_HTTP"),
            ..StoreConfig::at(url.as_str())
        };
        Ok(Self { name: None, store, passphrase, cache: Cache::Default, max_key_age: None })
    }

    /// Opens the store alone.
    ///
    /// # Errors
    /// `Usage` when it is configured wrong.
    pub fn open_store(&self) -> Result<Store> {
        Store::open(&self.store)
    }

    /// The same to write there: for `single_writer`, processes with this state folder wait for each other.
    ///
    /// # Errors
    /// As [`Self::open_store`].
    pub fn open_store_in(&self, surroundings: &Surroundings) -> Result<Store> {
        if !self.store.single_writer {
            return self.open_store();
        }
        Store::open(&StoreConfig { alone: Some(surroundings.state.join("single-writer")), ..self.store.clone() })
    }

    /// Opens it.
    ///
    /// # Errors
    /// `NoRepository`, `WrongKey`, `Unavailable`, `Usage`.
    pub fn open(&self, surroundings: &Surroundings) -> Result<Repository> {
        self.open_watched(surroundings, &Pulse::default())
    }

    /// The same for one who would take silence for hanging: the pulse beats as long as this goes on, and later with each answer of the store.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_watched(&self, surroundings: &Surroundings, pulse: &Pulse) -> Result<Repository> {
        let options = self.options(&surroundings.state)?;
        let store = self.open_store_in(surroundings)?.with_pulse(pulse);
        let opened = Repository::open(store, surroundings.runtime.clone(), &self.passphrase, &options);
        let repository = opened.map_err(|error| {
            match (&self.name, error.kind()) {
                (Some(name), Kind::NoRepository) => error
                    .hint(format!("check the url in the plan file; if the repository is new, make it with `lifeboat repo init {name}`")),
                // An address without a plan is for bringing data back: nothing is to be made there.
                (None, Kind::NoRepository) => error.hint("check the address letter by letter, the part after the bucket or folder too"),
                _ => error,
            }
        })?;
        // An address without a plan is looked at once, and nothing is backed up there.
        if self.name.is_some()
            && let Some(message) = self.note(&repository, surroundings)
        {
            surroundings.progress.event(Event::Warning { message });
        }
        Ok(repository)
    }

    /// Takes notice of the repository that is there; what [`RepositorySettings::changed`] says of it.
    pub(crate) fn note(&self, repository: &Repository, surroundings: &Surroundings) -> Option<String> {
        identity::note(&surroundings.state, &self.place(), repository.id(), surroundings.clock.now());
        self.changed(repository, surroundings).map(|changed| changed.message)
    }

    /// That another repository is there than belongs there, or one with keys from before those that this machine has seen, or that nobody can say which belongs
    /// there.
    #[must_use]
    pub fn changed(&self, repository: &Repository, surroundings: &Surroundings) -> Option<Changed> {
        let told = |error: Error, certain: bool| {
            let hint = error.hint_text().map_or_else(String::new, |hint| format!("; {hint}"));
            Changed { certain, message: format!("{}{hint}", explain(&error)) }
        };
        match self.must_belong(repository, surroundings) {
            Err(error) => {
                let certain = error.kind() == Kind::Damaged;
                Some(told(error, certain))
            }
            Ok(()) => repository.require_generation_seen().err().map(|error| told(error, true)),
        }
    }

    /// From now on the repository that is there belongs there, with its retention ledger and its keys as they are.
    ///
    /// # Errors
    /// As [`Self::open`]; when the state folder cannot be written.
    pub fn accept(&self, surroundings: &Surroundings) -> Result<AcceptReport> {
        let forget = || Repository::forget_generation(&self.open_store()?, &surroundings.runtime, &self.options(&surroundings.state)?);
        let (repository, generation_forgotten) = match self.open(surroundings) {
            Ok(repository) if repository.generation_seen().is_some() => (repository, forget()?),
            Ok(repository) => (repository, None),
            // It may be that a generation is another one than was seen: then it opens where nothing was. Else what was seen is not forgotten.
            Err(error) if error.kind() == Kind::Damaged => {
                let unseen = OpenOptions { cache: None, ..self.options(&surroundings.state)? };
                if Repository::open(self.open_store()?, surroundings.runtime.clone(), &self.passphrase, &unseen).is_err() {
                    return Err(error);
                }
                let seen = forget()?;
                (self.open(surroundings)?, seen)
            }
            Err(error) => return Err(error),
        };
        let report = identity::accept(&surroundings.state, &self.place(), repository.id(), surroundings.clock.now())?;
        Ok(AcceptReport { ledger_forgotten: repository.forget_ledger()?, generation_forgotten, ..report })
    }

    /// # Errors
    /// `Damaged` when another repository is there than belongs there: whatever it holds, what was backed up before is not in it; `Failed` when nobody can
    /// say which does.
    pub fn must_belong(&self, repository: &Repository, surroundings: &Surroundings) -> Result<()> {
        self.name.as_ref().map_or(Ok(()), |_| identity::check(&surroundings.state, &self.place(), repository.id()))
    }

    fn place(&self) -> String {
        identity::place(&self.store.url, self.store.endpoint.as_deref())
    }

    /// How to open it, its cache made.
    pub(super) fn options(&self, state: &Path) -> Result<OpenOptions> {
        let cache = match &self.cache {
            Cache::Off => None,
            Cache::Folder(folder) => Some(folder.clone()),
            // Named by place, not by name: two plan files may call different places the same.
            Cache::Default => {
                make_missing(state)?;
                let place = blake3::hash(self.store.url.as_bytes()).to_hex();
                Some(state.join("cache").join(&place[..16]))
            }
        };
        Ok(OpenOptions { cache, workers: 0 })
    }
}

/// A further repository of a plan. Its secrets are read when it is needed.
#[derive(Clone)]
pub struct CopyPlace(Arc<plan::Repository>);

impl CopyPlace {
    /// As in the plan files.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.0.name
    }

    /// Reads its secrets.
    ///
    /// # Errors
    /// As [`repository`].
    pub fn settings(&self) -> Result<RepositorySettings> {
        repository(&self.0)
    }
}

/// The further repositories of a plan, in its order.
#[must_use]
pub fn copies(plan: &plan::Plan) -> Vec<CopyPlace> {
    plan.copies.iter().map(|copy| CopyPlace(Arc::clone(&copy.to))).collect()
}

/// The repository of a plan that is called so: its own, or one of its copies.
///
/// # Errors
/// `Usage` when the plan has none of that name.
pub fn repository_of(plan: &plan::Plan, name: &str) -> Result<RepositorySettings> {
    let all = || std::iter::once(&plan.repository).chain(plan.copies.iter().map(|copy| &copy.to));
    let found = all().find(|repository| repository.name.as_str() == name).ok_or_else(|| {
        let names: Vec<&str> = all().map(|repository| repository.name.as_str()).collect();
        Error::new(Kind::Usage, format!("plan {} has no repository {name:?}", plan.name)).hint(format!("it has {}", names.join(", ")))
    })?;
    repository(found)
}

/// A plan with its sources built and its secrets read; nothing is opened yet.
#[derive(Clone)]
pub struct Resolved {
    pub plan: Name,
    pub tags: Vec<String>,
    pub sources: Vec<NamedSource>,
    pub repository: RepositorySettings,
    /// Where copies are.
    pub copies: Vec<CopyPlace>,
    pub objectives: Objectives,
    pub drill: DrillSettings,
}

impl Resolved {
    /// For a restore on a machine without plans: sources are taken from the manifest.
    #[must_use]
    pub fn bare(plan: Name, repository: RepositorySettings) -> Self {
        Self {
            plan,
            tags: Vec::new(),
            sources: Vec::new(),
            repository,
            copies: Vec::new(),
            objectives: Objectives::default(),
            drill: DrillSettings::default(),
        }
    }

    /// The same with another repository of the plan, and that one alone.
    #[must_use]
    pub fn with(&self, repository: RepositorySettings) -> Self {
        Self { repository, copies: Vec::new(), ..self.clone() }
    }

    /// Opens the repository.
    ///
    /// # Errors
    /// As [`RepositorySettings::open`], and when the state folder cannot be made.
    pub fn open(&self, surroundings: &Surroundings) -> Result<Job> {
        make_missing(&surroundings.state)?;
        Ok(Job {
            plan: self.plan.clone(),
            tags: self.tags.clone(),
            sources: self.sources.clone(),
            repository: self.repository.open(surroundings)?,
            // Made by who uses it: a restore does not, and whoever runs it need not be who backs up.
            work: self.work(surroundings),
            host: host(),
            objectives: self.objectives,
            drill: self.drill.clone(),
            clock: Arc::clone(&surroundings.clock),
            progress: Arc::clone(&surroundings.progress),
            cancel: surroundings.cancel.clone(),
            gate: surroundings.gate.clone(),
        })
    }

    /// The plan's private folder.
    #[must_use]
    pub fn work(&self, surroundings: &Surroundings) -> PathBuf {
        surroundings.state.join("work").join(self.plan.as_str())
    }
}

/// Builds the drivers of a plan's sources and reads its secrets.
///
/// # Errors
/// `Usage` when this build has no driver for a source, or a secret cannot be read.
pub fn plan(plan: &plan::Plan) -> Result<Resolved> {
    resolved(plan, plan.sources.iter().map(|s| source(&plan.name, s)).collect::<Result<_>>()?)
}

/// The same for a restore: a source's driver is built and its secrets are read only when the snapshot needs it for its way back. In an
/// incident, what a restore has no use for must not stand in its way.
///
/// # Errors
/// `Usage` when a secret of the repository cannot be read.
pub fn to_restore(plan: &plan::Plan) -> Result<Resolved> {
    let later = |source: &Arc<plan::Source>| NamedSource {
        name: source.name.clone(),
        restores_folder: matches!(source.kind, SourceKind::Command { restore: Some(_), .. }),
        source: Arc::new(Later(plan.name.clone(), Arc::clone(source))),
    };
    resolved(plan, plan.sources.iter().map(later).collect())
}

fn resolved(plan: &plan::Plan, sources: Vec<NamedSource>) -> Result<Resolved> {
    Ok(Resolved {
        plan: plan.name.clone(),
        tags: plan.tags.clone(),
        sources,
        repository: repository(&plan.repository)?,
        copies: copies(plan),
        objectives: Objectives { data_loss: plan.objectives.data_loss, recovery_time: plan.objectives.recovery_time },
        drill: drill(plan),
    })
}

/// A configured source whose driver is built when it is used.
struct Later(Name, Arc<plan::Source>);

impl Later {
    fn driver(&self) -> Result<Arc<dyn Source>> {
        match &self.1.kind {
            // Nothing is run on the way back.
            SourceKind::Command { restore: None, .. } => bare_source(self.kind()),
            // Nor is the source's server asked.
            SourceKind::Postgres(server) if server.method == Method::Logical => {
                Ok(Arc::new(LogicalSource { bin_directory: server.bin_directory.clone(), ..LogicalSource::default() }))
            }
            SourceKind::Postgres(server) => {
                Ok(Arc::new(PostgresSource { bin_directory: server.bin_directory.clone(), ..PostgresSource::default() }))
            }
            _ => Ok(source(&self.0, &self.1)?.source),
        }
    }
}

impl Source for Later {
    fn kind(&self) -> &'static str {
        match &self.1.kind {
            SourceKind::Postgres(server) if server.method == Method::Logical => logical::KIND,
            kind => kind.word(),
        }
    }

    fn diagnose(&self) -> Vec<Diagnosis> {
        match source(&self.0, &self.1) {
            Ok(named) => named.source.diagnose(),
            Err(error) => vec![Diagnosis { name: "configuration".into(), ok: false, message: explain(&error) }],
        }
    }

    fn ready(&self) -> Result<()> {
        self.driver()?.ready()
    }

    fn log_position(&self) -> Result<Option<(u32, u64)>> {
        source(&self.0, &self.1)?.source.log_position()
    }

    fn begin(&self, context: &SourceContext) -> Result<Box<dyn SourceSnapshot>> {
        source(&self.0, &self.1)?.source.begin(context)
    }

    fn adopt(&self, restored: &Path, context: &SourceContext) -> Result<PathBuf> {
        self.driver()?.adopt(restored, context)
    }

    fn hand_over(&self, usable: &Path, target: &Path, wanted: &HandOver) -> Result<HandedOver> {
        self.driver()?.hand_over(usable, target, wanted)
    }

    fn extract(&self, usable: &Path, request: &ExtractRequest, context: &SourceContext) -> Result<Extracted> {
        self.driver()?.extract(usable, request, context)
    }

    fn load(&self, usable: &Path, url: &str, context: &SourceContext) -> Result<logical::Loaded> {
        self.driver()?.load(usable, url, context)
    }

    fn keeps_content(&self) -> bool {
        !matches!(self.1.kind, SourceKind::Postgres(_))
    }

    fn unfinished(&self) -> Option<&'static str> {
        match &self.1.kind {
            SourceKind::Postgres(_) => self.driver().ok()?.unfinished(),
            _ => None,
        }
    }

    fn prove(
        &self,
        restored: &Path,
        request: &ProveRequest,
        context: &SourceContext,
        usable: &mut dyn FnMut(),
    ) -> Result<Vec<CheckResult>> {
        self.driver()?.prove(restored, request, context, usable)
    }
}

/// Reads the secrets of a repository.
///
/// # Errors
/// `Usage` when one cannot be read.
pub fn repository(repository: &plan::Repository) -> Result<RepositorySettings> {
    let named = |what: &str, secret: &SecretRef| {
        secret.resolve().map_err(|e| e.within(format!("read the {what} of repository {}", repository.name)))
    };
    let credential = |what: &str, secret: &SecretRef| named(what, secret).map(|s| Credential::new(s.expose()));
    let (access_key, secret_key, session_token) = match &repository.credentials {
        None => (None, None, None),
        Some(keys) => (
            Some(credential("access key", &keys.access_key)?),
            Some(credential("secret key", &keys.secret_key)?),
            keys.session_token.as_ref().map(|token| credential("session token", token)).transpose()?,
        ),
    };
    let store = StoreConfig {
        endpoint: repository.endpoint.as_ref().map(ToString::to_string),
        region: repository.region.clone(),
        path_style: Some(repository.path_style),
        access_key,
        secret_key,
        session_token,
        allow_http: repository.allow_http,
        single_writer: repository.single_writer,
        upload_bytes_per_sec: repository.upload_limit_bytes_per_sec,
        download_bytes_per_sec: repository.download_limit_bytes_per_sec,
        max_requests: usize::from(repository.max_requests.get()),
        object_lock: repository.object_lock.map(|lock| {
            let mode = match lock.mode {
                plan::LockMode::Governance => LockMode::Governance,
                plan::LockMode::Compliance => LockMode::Compliance,
            };
            object_lock(mode, lock.retain, lock.snapshots, lock.logs)
        }),
        ..StoreConfig::at(repository.url.as_str())
    };
    Ok(RepositorySettings {
        name: Some(repository.name.clone()),
        store,
        passphrase: Passphrase::new(named("passphrase", &repository.passphrase)?.expose()),
        cache: repository.cache.clone(),
        max_key_age: repository.max_key_age,
    })
}

/// By which rules the snapshots of a plan are kept.
#[must_use]
pub fn rules(plan: &plan::Plan) -> PlanRules {
    rules_of(plan, &plan.keep)
}

/// By which rules a plan's snapshots are kept in a copy.
#[must_use]
pub fn copy_rules(plan: &plan::Plan, copy: &plan::PlannedCopy) -> PlanRules {
    rules_of(plan, &copy.keep)
}

fn rules_of(plan: &plan::Plan, keep: &plan::Keep) -> PlanRules {
    let rules = Rules {
        last: keep.last,
        hourly: keep.hourly,
        daily: keep.daily,
        weekly: keep.weekly,
        monthly: keep.monthly,
        yearly: keep.yearly,
        within: keep.within,
        tags: keep.tags.clone(),
        log: keep.log,
    };
    let logs = plan.sources.iter().filter(|source| source.kind.keeps_log()).map(|source| source.name.clone()).collect();
    PlanRules { plan: plan.name.clone(), rules, zone: plan.zone(), logs }
}

/// The driver of a configured source.
fn source(plan: &Name, source: &plan::Source) -> Result<NamedSource> {
    let mut restores_folder = false;
    let driver: Arc<dyn Source> = match &source.kind {
        SourceKind::Sqlite { path } => Arc::new(SqliteSource { path: path.clone() }),
        SourceKind::Files { path, exclude, page_size } => {
            Arc::new(FilesSource { path: path.clone(), exclude: exclude.clone(), page_size: *page_size })
        }
        SourceKind::Command { dump, restore, environment } => {
            restores_folder = restore.is_some();
            let mut values = Vec::new();
            for (name, value) in environment {
                let value = match value {
                    EnvironmentValue::Plain(text) => SecretValue::new(text.clone()),
                    EnvironmentValue::Secret(secret) => SecretValue::new(
                        secret.resolve().map_err(|e| e.within(format!("read {name} for source {}", source.name)))?.expose(),
                    ),
                };
                values.push((name.clone(), value));
            }
            Arc::new(CommandSource { dump: dump.clone(), restore: restore.clone(), environment: values, allow_empty: false })
        }
        SourceKind::Postgres(server) if server.method == Method::Logical => {
            let settings = postgres_settings(source)?;
            Arc::new(LogicalSource {
                settings: Some(settings),
                bin_directory: server.bin_directory.clone(),
                databases: server.databases.clone(),
                read_limit_bytes_per_sec: server.read_limit_bytes_per_sec,
            })
        }
        SourceKind::Postgres(server) => {
            let settings = postgres_settings(source)?;
            let (data_directory, bin_directory) = (server.data_directory.clone(), server.bin_directory.clone());
            let log_slot = (server.log == LogMode::Stream).then(|| slot_name(plan.as_str(), source.name.as_str()));
            Arc::new(PostgresSource {
                settings: Some(settings),
                data_directory,
                bin_directory,
                log_slot,
                archives: server.log == LogMode::Push,
                canary: server.canary.map(|_| canary::row(plan, &source.name)),
                read_unchanged: server.read_unchanged,
                refuses_damaged_pages: server.damaged_pages == DamagedPages::Fail,
                fingerprint_budget: server.fingerprint_budget,
                read_limit_bytes_per_sec: server.read_limit_bytes_per_sec,
            })
        }
        SourceKind::Mysql(_) => return Err(no_driver(source.kind.word())),
    };
    Ok(NamedSource { name: source.name.clone(), source: driver, restores_folder })
}

/// How to connect to a PostgreSQL source.
///
/// # Errors
/// `Usage` when its secret cannot be read or understood.
pub(super) fn postgres_settings(source: &plan::Source) -> Result<Settings> {
    let SourceKind::Postgres(server) = &source.kind else {
        return Err(Error::new(Kind::Usage, format!("source {} is not PostgreSQL", source.name)));
    };
    let url = server.url.resolve().map_err(|e| e.within(format!("read the url of source {}", source.name)))?;
    Settings::parse(url.expose()).map_err(|e| e.within(format!("understand the url of source {}", source.name)))
}

fn drill(plan: &plan::Plan) -> DrillSettings {
    let drill = &plan.drill;
    let database = |source: &plan::Source| postgres_settings(source).ok().map(|settings| settings.database.unwrap_or(settings.user));
    let canary = |source: &Arc<plan::Source>| {
        let every = source.kind.canary()?;
        Some(Canary { source: source.name.clone(), every, database: database(source) })
    };
    // That of the URL; where it cannot be read, none, and then nothing is asked.
    let check = |check: &plan::Check| {
        let mut asked = check.to_sql_check();
        if asked.database.is_none() {
            asked.database = plan.sources.iter().find(|source| source.name == check.source).and_then(|source| database(source));
        }
        PlannedCheck { source: check.source.clone(), check: asked }
    };
    DrillSettings {
        canaries: plan.sources.iter().filter_map(canary).collect(),
        random: drill.at == DrillAt::Random,
        window: Some(drill.window),
        compare_percent: drill.compare.percent(),
        checks: drill.checks.iter().map(check).collect(),
        keep_on_failure: Some(drill.keep_target_on_failure).filter(|d| !d.is_zero()),
        time_limit: drill.time_limit,
        disk_limit_bytes: drill.disk_limit_bytes,
    }
}

/// The source that brings back what a manifest holds: the plan's, or, where the plan has none of this name and kind (any more), one that
/// only knows the way back.
///
/// # Errors
/// `Usage` when this build has no driver for the kind.
pub(super) fn restoring_source(job: &Job, record: &SourceRecord) -> Result<Arc<dyn Source>> {
    match job.sources.iter().find(|s| s.name == record.name && s.source.kind() == record.kind) {
        Some(found) => Ok(Arc::clone(&found.source)),
        None => bare_source(&record.kind),
    }
}

/// A source that only knows how to bring back what a manifest of this kind holds.
///
/// # Errors
/// `Usage` when this build has no driver for the kind.
pub fn bare_source(kind: &str) -> Result<Arc<dyn Source>> {
    let nowhere = || PathBuf::from("restored");
    match kind {
        "sqlite" => Ok(Arc::new(SqliteSource { path: nowhere() })),
        "postgres" => Ok(Arc::new(PostgresSource::default())),
        logical::KIND => Ok(Arc::new(LogicalSource::default())),
        "files" => Ok(Arc::new(FilesSource { path: nowhere(), exclude: Vec::new(), page_size: None })),
        "command" => Ok(Arc::new(CommandSource { dump: Vec::new(), restore: None, environment: Vec::new(), allow_empty: true })),
        other => Err(no_driver(other)),
    }
}

fn no_driver(kind: &str) -> Error {
    Error::new(Kind::Usage, format!("this build has no driver for {kind}"))
        .hint("sources can be postgres, sqlite, files or command; a dump program in a command source covers other databases")
}

/// This machine's name.
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
