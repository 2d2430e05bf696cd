//! Validated plans: what the rest of the program works with. Everything here is consistent; nothing was opened or asked yet.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono_tz::Tz;
use url::Url;

use crate::error::{Error, Kind, Result};
use crate::id::Name;
use crate::plan::blackout::Blackout;
use crate::plan::findings::suggest;
use crate::plan::schedule::Schedule;
use crate::plan::secret::SecretRef;
use crate::source::postgres::fingerprint::Budget;
use crate::source::{Expectation, SqlCheck};

/// Everything that a set of plan files declares, by name.
#[derive(Debug, Clone, Default)]
pub struct Plans {
    pub plans: BTreeMap<Name, Arc<Plan>>,
    pub sources: BTreeMap<Name, Arc<Source>>,
    pub repositories: BTreeMap<Name, Arc<Repository>>,
    pub notifiers: BTreeMap<Name, Arc<Notifier>>,
    pub journal: JournalSettings,
    pub serve: Serve,
    /// Plans that were taken out on purpose.
    pub retired: BTreeSet<Name>,
    /// Schedules that plans lost on purpose: plan, and word of [`JOBS`](crate::plan::JOBS).
    pub retired_schedules: BTreeSet<(Name, &'static str)>,
    /// Copies that plans lost on purpose: plan and repository.
    pub retired_copies: BTreeSet<(Name, Name)>,
    /// The files read, sorted.
    pub files: Vec<PathBuf>,
    /// Files that are wrong were left out: what is not here may be in one of them.
    pub is_partial: bool,
}

impl Plans {
    /// A plan by name.
    ///
    /// # Errors
    /// [`Kind::Usage`] with the nearest name, or the names there are, as the hint.
    pub fn plan(&self, name: &str) -> Result<&Arc<Plan>> {
        find(&self.plans, "plan", name)
    }

    /// A repository by name.
    ///
    /// # Errors
    /// As [`Plans::plan`].
    pub fn repository(&self, name: &str) -> Result<&Arc<Repository>> {
        find(&self.repositories, "repository", name)
    }

    /// A notifier by name.
    ///
    /// # Errors
    /// As [`Plans::plan`].
    pub fn notifier(&self, name: &str) -> Result<&Arc<Notifier>> {
        find(&self.notifiers, "notifier", name)
    }
}

fn find<'a, T>(all: &'a BTreeMap<Name, T>, what: &str, name: &str) -> Result<&'a T> {
    all.iter().find(|(known, _)| known.as_str() == name).map(|(_, found)| found).ok_or_else(|| {
        let names = all.keys().map(Name::as_str);
        let hint = if all.is_empty() {
            format!("the plan files declare no {what}")
        } else {
            suggest(name, &format!("each {what} there is"), names)
        };
        Error::new(Kind::Usage, format!("unknown {what} {name:?}")).hint(hint)
    })
}

/// Where runs are recorded and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalSettings {
    /// Of a PostgreSQL database that several machines share; `None`: a file in the state folder.
    pub url: Option<SecretRef>,
    /// A run whose node was not heard of for so long is taken over by another.
    pub lease: Duration,
    /// How long runs are remembered.
    pub history: Duration,
}

impl Default for JournalSettings {
    fn default() -> Self {
        Self { url: None, lease: Duration::from_mins(2), history: Duration::from_hours(400 * 24) }
    }
}

/// How the daemon works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serve {
    /// Greatest number of runs at the same time.
    pub max_runs: NonZeroU16,
    /// How long a daemon that is told to stop lets its runs go on before it cancels them.
    pub drain: Duration,
}

impl Default for Serve {
    fn default() -> Self {
        const MAX_RUNS: NonZeroU16 = NonZeroU16::new(4).unwrap();
        Self { max_runs: MAX_RUNS, drain: Duration::from_secs(20) }
    }
}

/// What is done, when, and what must be proven.
#[derive(Debug, Clone)]
pub struct Plan {
    pub name: Name,
    pub description: Option<String>,
    /// One or more, each once; snapshotted together and restored together.
    pub sources: Vec<Arc<Source>>,
    pub repository: Arc<Repository>,
    pub notify: Vec<Arc<Notifier>>,
    /// Labels of which a node needs one to run its slots; empty: every node may.
    pub run_on: Vec<String>,
    /// Of backups; `None`: only by hand.
    pub schedule: Option<Schedule>,
    /// Always there when any schedule of the plan is.
    pub timezone: Option<Tz>,
    pub jitter: Duration,
    /// When nothing starts by schedule.
    pub blackout: Blackout,
    /// Plans whose backups of the same time or before go first. No cycle leads back here.
    pub after: Vec<Name>,
    pub missed: Missed,
    pub retry: Retry,
    pub objectives: Objectives,
    pub keep: Keep,
    pub tags: Vec<String>,
    pub drill: Drill,
    pub verify: Verify,
    pub prune: Prune,
    /// To further repositories, none twice; a restore that cannot use the plan's own falls back to them in this order.
    pub copies: Vec<PlannedCopy>,
    /// When any of them is due.
    pub copy_schedule: Option<Schedule>,
}

/// A copy of the plan's snapshots in a further repository.
#[derive(Debug, Clone)]
pub struct PlannedCopy {
    pub to: Arc<Repository>,
    /// `None`: only by hand.
    pub schedule: Option<Schedule>,
    /// Which copies stay there.
    pub keep: Keep,
    /// Only the newest so many snapshots.
    pub last: Option<u32>,
    /// Only snapshots with one of these tags; empty: all.
    pub tags: Vec<String>,
}

impl Plan {
    /// The zone for times that people read or write: the plan's, else UTC.
    #[must_use]
    pub fn zone(&self) -> Tz {
        self.timezone.unwrap_or(Tz::UTC)
    }

    /// The schedule that it has for a job, a word of [`JOBS`](crate::plan::JOBS).
    #[must_use]
    pub fn schedule_of(&self, job: &str) -> Option<&Schedule> {
        match job {
            "backup" => self.schedule.as_ref(),
            "drill" => self.drill.schedule.as_ref(),
            "verify" => self.verify.schedule.as_ref(),
            "copy" => self.copy_schedule.as_ref(),
            "prune" => self.prune.schedule.as_ref(),
            _ => None,
        }
    }
}

/// What to do about a run whose time passed while the daemon was down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// One run for all that were missed.
    RunOnce,
    Skip,
}

impl Missed {
    /// As in the plan file.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::RunOnce => "run-once",
            Self::Skip => "skip",
        }
    }
}

/// How often and how soon a run is tried again after a failure that may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// In all, the first included: 1 to 100.
    pub attempts: u32,
    /// Before the second attempt; doubles after each.
    pub delay: Duration,
}

/// What the business was promised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Objectives {
    /// RPO.
    pub data_loss: Option<Duration>,
    /// RTO.
    pub recovery_time: Option<Duration>,
}

/// Which snapshots retention keeps: one that any rule keeps stays. The input of the pure retention plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keep {
    pub last: u32,
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
    /// Everything younger than this.
    pub within: Option<Duration>,
    /// Everything with one of these tags.
    pub tags: Vec<String>,
    /// How far back every moment can be recovered, where there is a log.
    pub log: Option<Duration>,
}

/// When retention is applied and garbage collected.
#[derive(Debug, Clone, Default)]
pub struct Prune {
    pub schedule: Option<Schedule>,
}

impl Keep {
    /// Whether no rule is given: then nothing is ever removed.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }
}

/// How recovery is proven. There for every plan, since a drill may always be run by hand.
#[derive(Debug, Clone)]
pub struct Drill {
    pub schedule: Option<Schedule>,
    pub at: DrillAt,
    /// How far back a random recovery point may lie.
    pub window: Duration,
    pub compare: Share,
    /// Zero: removed at once.
    pub keep_target_on_failure: Duration,
    pub time_limit: Option<Duration>,
    pub disk_limit_bytes: Option<u64>,
    pub checks: Vec<Check>,
}

/// Which recovery point a drill restores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrillAt {
    Latest,
    Random,
}

impl DrillAt {
    /// As in the plan file.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Latest => "latest",
            Self::Random => "random",
        }
    }
}

/// How much of something: `off`, a percentage, or `all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u8);

impl Share {
    pub const ALL: Self = Self(100);
    pub const OFF: Self = Self(0);

    /// Reads `all`, `off` or `10%`.
    ///
    /// # Errors
    /// [`Kind::Usage`] with the forms as the hint.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "all" => Ok(Self::ALL),
            "off" => Ok(Self::OFF),
            _ => crate::plan::units::parse_percent(text).map(Self).map_err(|_| {
                Error::new(Kind::Usage, format!("not a valid share: {text:?}"))
                    .hint("write \"all\", \"off\" or a percentage such as \"10%\"")
            }),
        }
    }

    /// 0 to 100.
    #[must_use]
    pub fn percent(self) -> u8 {
        self.0
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::ALL => f.write_str("all"),
            Self::OFF => f.write_str("off"),
            Self(percent) => write!(f, "{percent}%"),
        }
    }
}

/// A question to the recovered database, with the answer it must get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Unique within the plan.
    pub name: String,
    pub sql: String,
    pub expect: Expectation,
    pub database: Option<String>,
    /// One of the plan's sources, of a kind that answers SQL.
    pub source: Name,
    pub timeout: Duration,
}

impl Check {
    /// As a source wants it.
    #[must_use]
    pub fn to_sql_check(&self) -> SqlCheck {
        SqlCheck {
            name: self.name.clone(),
            sql: self.sql.clone(),
            expect: self.expect.clone(),
            database: self.database.clone(),
            timeout: self.timeout,
        }
    }
}

/// How the repository is checked.
#[derive(Debug, Clone)]
pub struct Verify {
    pub schedule: Option<Schedule>,
    /// How much of the stored bytes a run reads; off: structure only.
    pub data: Share,
}

/// A configured source; its driver is built from this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub name: Name,
    pub kind: SourceKind,
}

/// What each kind of source is configured by. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceKind {
    Sqlite {
        path: PathBuf,
    },
    Files {
        path: PathBuf,
        /// Glob patterns against paths relative to `path`.
        exclude: Vec<String>,
        /// A power of two, 512 to 65536; `None`: cut by content.
        page_size: Option<u32>,
    },
    Command {
        /// Program and arguments, never empty.
        dump: Vec<String>,
        /// Program and arguments, never empty; without it a restore yields the dump itself.
        restore: Option<Vec<String>>,
        environment: Environment,
    },
    Postgres(Server),
    Mysql(Server),
}

impl SourceKind {
    /// As in the plan file.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "sqlite",
            Self::Files { .. } => "files",
            Self::Command { .. } => "command",
            Self::Postgres(_) => "postgres",
            Self::Mysql(_) => "mysql",
        }
    }

    /// Whether its log is kept in the repository, whoever brings it there.
    #[must_use]
    pub fn keeps_log(&self) -> bool {
        matches!(self, Self::Postgres(server) if server.log != LogMode::Off)
    }

    /// Whether `lifeboat serve` streams its log.
    #[must_use]
    pub fn streams_log(&self) -> bool {
        matches!(self, Self::Postgres(server) if server.log == LogMode::Stream)
    }

    /// How often `lifeboat serve` writes its canary row.
    #[must_use]
    pub fn canary(&self) -> Option<Duration> {
        if let Self::Postgres(server) = self { server.canary } else { None }
    }

    /// Whether what is recovered can answer a drill's SQL.
    #[must_use]
    pub fn answers_sql(&self) -> bool {
        matches!(self, Self::Sqlite { .. } | Self::Postgres(_) | Self::Mysql(_))
    }
}

/// A database server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub url: SecretRef,
    /// For reading files directly and in parallel.
    pub data_directory: Option<PathBuf>,
    pub method: Method,
    pub bin_directory: Option<PathBuf>,
    /// Files of the data folder that did not change are read too.
    pub read_unchanged: bool,
    /// Limit for reading, in bytes a second.
    pub read_limit_bytes_per_sec: Option<u64>,
    /// PostgreSQL's physical method only.
    pub damaged_pages: DamagedPages,
    /// How much of the tables a backup reads for fingerprints. PostgreSQL's physical method only.
    pub fingerprint_budget: Budget,
    /// PostgreSQL only.
    pub log: LogMode,
    /// How often a row is written that tells how much is lost. PostgreSQL only.
    pub canary: Option<Duration>,
    /// Of the logical method; empty: all.
    pub databases: Vec<String>,
}

/// What a backup makes of a page whose checksum is wrong on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DamagedPages {
    /// It is backed up as it is, and a problem of the run.
    Report,
    /// The backup fails, and no snapshot is committed.
    Fail,
}

impl DamagedPages {
    /// As in the plan file.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Fail => "fail",
        }
    }
}

/// Who brings the continuous log of a database server into the repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogMode {
    /// There is none.
    #[default]
    Off,
    /// `lifeboat serve` streams it.
    Stream,
    /// The server archives it.
    Push,
}

impl LogMode {
    /// As in the plan file.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Stream => "stream",
            Self::Push => "push",
        }
    }
}

/// How a database server is backed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Physical,
    Logical,
}

impl Method {
    /// As in the plan file.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Physical => "physical",
            Self::Logical => "logical",
        }
    }
}

/// Environment variables of a child process, by name.
pub type Environment = BTreeMap<String, EnvironmentValue>;

/// The value of an environment variable of a child process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvironmentValue {
    Plain(String),
    Secret(SecretRef),
}

/// Where backups are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    pub name: Name,
    pub url: RepositoryUrl,
    /// http or https, without credentials, query and fragment; plain http only to loopback unless `allow_http`.
    pub endpoint: Option<Url>,
    pub region: Option<String>,
    pub path_style: bool,
    /// `None`: the usual credential chain of the scheme.
    pub credentials: Option<Credentials>,
    pub allow_http: bool,
    pub passphrase: SecretRef,
    /// Key slots older than this are told of; `None`: none is.
    pub max_key_age: Option<Duration>,
    pub single_writer: bool,
    pub upload_limit_bytes_per_sec: Option<u64>,
    pub download_limit_bytes_per_sec: Option<u64>,
    /// At the same time.
    pub max_requests: NonZeroU16,
    /// Greatest number of runs of a daemon on it at the same time; `None`: what the daemon allows.
    pub max_runs: Option<NonZeroU16>,
    pub cache: Cache,
    /// How its objects are kept from being destroyed; s3 only.
    pub object_lock: Option<ObjectLock>,
}

/// Retention in the store itself. What leans on something is locked no longer than that: `logs` ≤ `snapshots` ≤ `retain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectLock {
    pub mode: LockMode,
    /// What is kept is locked for at least so long; at least a day.
    pub retain: Duration,
    /// The same of snapshots, with all that they consist of.
    pub snapshots: Duration,
    /// The same of continuous log.
    pub logs: Duration,
}

impl ObjectLock {
    /// The shortest time, and the key that says so.
    #[must_use]
    pub fn shortest(&self) -> (&'static str, Duration) {
        // What is not given is as the one before.
        let keys = [("retain", self.retain), ("snapshots", self.snapshots), ("logs", self.logs)];
        keys.into_iter().find(|(_, time)| *time == self.logs).unwrap_or(("logs", self.logs))
    }
}

/// Who may undo a lock before its date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Who has a right to.
    Governance,
    /// Nobody.
    Compliance,
}

impl LockMode {
    /// As in a plan file.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Governance => "governance",
            Self::Compliance => "compliance",
        }
    }
}

/// Keys of an S3 account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub access_key: SecretRef,
    pub secret_key: SecretRef,
    pub session_token: Option<SecretRef>,
}

/// Where the repository's index is cached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cache {
    /// In the state folder.
    Default,
    Off,
    Folder(PathBuf),
}

/// The kind of store behind a repository's URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    File,
    S3,
    Gs,
    Az,
}

impl Scheme {
    /// As in the URL.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::S3 => "s3",
            Self::Gs => "gs",
            Self::Az => "az",
        }
    }
}

/// A repository's URL, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryUrl {
    text: String,
    scheme: Scheme,
    bucket: Option<String>,
    path: String,
}

impl RepositoryUrl {
    /// Reads `file:///path`, `s3://bucket/prefix`, `gs://…` or `az://…`.
    ///
    /// # Errors
    /// [`Kind::Usage`]; a URL with credentials, query or fragment is one. The text is not repeated, since it may hold a password.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| Error::new(Kind::Usage, format!("not a valid repository URL: {why}"));
        let forms = "write file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix";
        let url = Url::parse(text).map_err(|error| wrong(&error.to_string()).hint(forms))?;
        let scheme = match url.scheme() {
            "file" => Scheme::File,
            "s3" => Scheme::S3,
            "gs" => Scheme::Gs,
            "az" => Scheme::Az,
            other => return Err(wrong(&format!("unknown scheme {other:?}")).hint(forms)),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("it holds credentials").hint("use access_key and secret_key, or the environment"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it has a query or a fragment").hint(forms));
        }
        if url.port().is_some() {
            return Err(wrong("it has a port").hint("write the server's address into `endpoint`"));
        }
        if scheme == Scheme::File {
            if !text.starts_with("file:///") {
                return Err(wrong("the path is not absolute").hint("write file:///path with three slashes"));
            }
            let path = url.to_file_path().map_err(|()| wrong("it has no path").hint(forms))?;
            let path = path.into_os_string().into_string().map_err(|_| wrong("the path is not UTF-8"))?;
            if path == "/" {
                return Err(wrong("it names the root of the file system"));
            }
            return Ok(Self { text: text.to_owned(), scheme, bucket: None, path });
        }
        let bucket = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| wrong("it names no bucket").hint(forms))?;
        let path = url.path().trim_matches('/');
        if path.contains("//") || path.contains('%') {
            return Err(wrong("the prefix has an empty part or a % sign"));
        }
        Ok(Self { text: text.to_owned(), scheme, bucket: Some(bucket.to_owned()), path: path.to_owned() })
    }

    /// As written in the plan.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The bucket or container; `None` for `file`.
    #[must_use]
    pub fn bucket(&self) -> Option<&str> {
        self.bucket.as_deref()
    }

    /// For `file` the absolute path, else the prefix without slashes at its ends (may be empty).
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// Who is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notifier {
    pub name: Name,
    pub kind: NotifierKind,
    /// Each once, never empty.
    pub on: Vec<Occasion>,
    /// For one delivery.
    pub timeout: Duration,
    /// What still stands is told again after this; `None`: never.
    pub remind: Option<Duration>,
    /// Who is told when this one cannot be; `None`: all others that are told of it. Never itself and no heartbeat.
    pub escalate: Option<Name>,
    /// Deliveries fail for so long before that.
    pub escalate_after: Duration,
}

/// How somebody is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotifierKind {
    Webhook {
        address: Address,
        form: WebhookForm,
    },
    Email {
        /// `smtps://host[:port]`, or `smtp://host[:port]` (upgraded to TLS).
        server: Url,
        from: String,
        /// Never empty.
        to: Vec<String>,
        credentials: Option<(String, SecretRef)>,
        /// Trusted besides the system's certificates.
        ca_file: Option<PathBuf>,
    },
    Command {
        /// Program and arguments, never empty.
        run: Vec<String>,
        environment: Environment,
    },
    Heartbeat {
        address: Address,
        style: HeartbeatStyle,
        /// Words of jobs, each once, never empty.
        jobs: Vec<&'static str>,
        /// That the daemon lives, instead of its runs.
        every: Option<Duration>,
    },
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub url: SecretRef,
    /// Further headers by name.
    pub headers: Environment,
    /// Plain http to other machines too.
    pub allow_http: bool,
    /// Trusted besides the system's certificates.
    pub ca_file: Option<PathBuf>,
}

/// What a webhook gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebhookForm {
    /// `lifeboat.notice/1`.
    Generic,
    Slack,
    /// With the robot's signing secret, where it has one.
    DingTalk(Option<SecretRef>),
    WeCom,
    /// As [`WebhookForm::DingTalk`].
    Feishu(Option<SecretRef>),
    /// The text of a template that yields JSON; its syntax was checked.
    Template(String),
}

impl WebhookForm {
    /// As in the plan file; `None` for a template.
    #[must_use]
    pub fn word(&self) -> Option<&'static str> {
        match self {
            Self::Generic => Some("generic"),
            Self::Slack => Some("slack"),
            Self::DingTalk(_) => Some("dingtalk"),
            Self::WeCom => Some("wecom"),
            Self::Feishu(_) => Some("feishu"),
            Self::Template(_) => None,
        }
    }

    /// The reference to the signing secret.
    #[must_use]
    pub fn secret(&self) -> Option<&SecretRef> {
        if let Self::DingTalk(secret) | Self::Feishu(secret) = self { secret.as_ref() } else { None }
    }
}

/// How an outside monitor wants its pings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeartbeatStyle {
    /// `URL/start`, `URL`, `URL/fail`, as healthchecks.io and its kin.
    Healthchecks,
    /// The address itself, on success only.
    Plain,
}

impl HeartbeatStyle {
    /// As in the plan file.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Healthchecks => "healthchecks",
            Self::Plain => "plain",
        }
    }
}

impl NotifierKind {
    /// As in the plan file.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Webhook { .. } => "webhook",
            Self::Email { .. } => "email",
            Self::Command { .. } => "command",
            Self::Heartbeat { .. } => "heartbeat",
        }
    }
}

/// What somebody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Occasion {
    /// A run begins.
    Start,
    Success,
    Failure,
    Incomplete,
    /// What was told is over.
    Recovered,
    ObjectiveMissed,
    /// An objective will be missed if nothing changes.
    ObjectiveAtRisk,
    DrillFailed,
    /// A verification, drill or restore found damage that stands.
    Damaged,
    NeverProven,
    Overdue,
    LogGap,
    LogNotStreamed,
    RetentionBlocked,
    PlansBroken,
    /// A certificate or key.
    Expiring,
    /// Another notifier reaches nobody.
    NotifierFailing,
}

impl Occasion {
    /// In the order of the documentation.
    pub const ALL: [Self; 17] = [
        Self::Start,
        Self::Success,
        Self::Failure,
        Self::Incomplete,
        Self::Recovered,
        Self::ObjectiveMissed,
        Self::ObjectiveAtRisk,
        Self::DrillFailed,
        Self::Damaged,
        Self::NeverProven,
        Self::Overdue,
        Self::LogGap,
        Self::LogNotStreamed,
        Self::RetentionBlocked,
        Self::PlansBroken,
        Self::Expiring,
        Self::NotifierFailing,
    ];

    /// As in the plan file.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Incomplete => "incomplete",
            Self::Recovered => "recovered",
            Self::ObjectiveMissed => "objective-missed",
            Self::ObjectiveAtRisk => "objective-at-risk",
            Self::DrillFailed => "drill-failed",
            Self::Damaged => "damaged",
            Self::NeverProven => "never-proven",
            Self::Overdue => "overdue",
            Self::LogGap => "log-gap",
            Self::LogNotStreamed => "log-not-streamed",
            Self::RetentionBlocked => "retention-blocked",
            Self::PlansBroken => "plans-broken",
            Self::Expiring => "expiring",
            Self::NotifierFailing => "notifier-failing",
        }
    }

    /// The one with this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|occasion| occasion.word() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_urls() {
        let parts = |text: &str| {
            let url = RepositoryUrl::parse(text).unwrap();
            (url.scheme(), url.bucket().map(str::to_owned), url.path().to_owned())
        };
        assert_eq!(parts("file:///var/my%20backups"), (Scheme::File, None, "/var/my backups".to_owned()));
        assert_eq!(parts("s3://crm-dr/main/"), (Scheme::S3, Some("crm-dr".to_owned()), "main".to_owned()));
        assert_eq!(parts("s3://My_Bucket"), (Scheme::S3, Some("My_Bucket".to_owned()), String::new()));
        assert_eq!(parts("az://box/a/b"), (Scheme::Az, Some("box".to_owned()), "a/b".to_owned()));
        for (text, why) in [
            ("/var/backups", "relative URL"),
            ("file://var/backups", "not absolute"),
            ("file:///", "root"),
            ("s3:///main", "bucket"),
            ("s3:main", "bucket"),
            ("http://x/y", "unknown scheme"),
            ("s3://key:s3cret@bucket/main", "credentials"),
            ("s3://bucket/main?x=1", "query"),
            ("s3://bucket:9000/main", "port"),
            ("s3://bucket/a//b", "empty part"),
        ] {
            let error = RepositoryUrl::parse(text).unwrap_err();
            assert!(error.to_string().contains(why), "{text}: {error}");
            assert!(!error.to_string().contains("s3cret"));
        }
    }
}
