//! The TOML dialect, as written: one struct a table, one field a key, before anything is checked beyond its type.
//!
//! These structs are the only list of keys there is. The JSON Schema is derived from them (doc comments become its descriptions),
//! and unknown keys and wrong types are found by walking a file along that schema, so the three cannot disagree. Every field is
//! optional here: what must be there is asked for in `validate`, where it can be said with its place.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A value with its byte range in the file.
#[derive(Debug, Clone)]
pub(super) struct Located<T> {
    pub span: Range<usize>,
    pub value: T,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Located<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = toml::Spanned::<T>::deserialize(deserializer)?;
        Ok(Self { span: spanned.span(), value: spanned.into_inner() })
    }
}

impl<T: JsonSchema> JsonSchema for Located<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

impl<T: PartialEq> PartialEq for Located<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}
impl<T: Eq> Eq for Located<T> {}
impl<T: Ord> PartialOrd for Located<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<T: Ord> Ord for Located<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.value.cmp(&other.value)
    }
}

pub(super) type Text = Option<Located<String>>;
pub(super) type Words = Option<Located<Vec<Located<String>>>>;
pub(super) type Named<T> = BTreeMap<Located<String>, T>;

/// A lifeboat plan file.
///
/// All files of a plans folder are read together; names are unique across them.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "PlanFile")]
pub(super) struct RawFile {
    /// The version of this dialect.
    #[schemars(extend("const" = 1))]
    pub version: Option<Located<i64>>,
    /// Names of plans that are there no more, on purpose: that nobody backs them up is then no alarm. `crm/drill`: only that schedule of the plan; `crm/copy/offsite`: only its copy to that repository.
    pub retired: Words,
    /// Where backups are stored, by name.
    pub repository: Named<RawRepository>,
    /// What is backed up, by name.
    pub source: Named<RawSource>,
    /// What is done with sources and repositories, when, and what must be proven, by name.
    pub plan: Named<RawPlan>,
    /// Who is told, by name.
    pub notify: Named<RawNotifier>,
    /// Where runs are recorded and for how long; in at most one of the files.
    pub journal: Option<Located<RawJournal>>,
    /// How the daemon works; in at most one of the files.
    pub serve: Option<Located<RawServe>>,
}

/// Where runs are recorded and for how long.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Journal")]
pub(super) struct RawJournal {
    /// A PostgreSQL database that several machines share, such as `postgresql://USER@HOST/DATABASE`. Default: a file in the state folder, for one machine.
    pub url: Option<Located<RawSecret>>,
    /// With `url`: a run whose node was not heard of for so long is taken over by another. Default: 2m.
    pub lease: Text,
    /// How long runs are remembered. What `lifeboat status` needs is never forgotten. Default: 400d.
    pub history: Text,
}

/// How the daemon works.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Serve")]
pub(super) struct RawServe {
    /// Greatest number of runs at the same time. Default: 4.
    #[schemars(range(min = 1, max = 1000))]
    pub max_runs: Option<Located<u16>>,
    /// How long a daemon that is told to stop lets its runs go on before it cancels them, such as `10m`. Default: 20s.
    pub drain: Text,
}

/// Where a secret is found; exactly one of the keys. A secret itself never stands in a plan file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "SecretRef", extend("minProperties" = 1, "maxProperties" = 1))]
pub(super) struct RawSecret {
    /// The name of an environment variable.
    pub env: Text,
    /// The path of a file that only its owner may read (mode 0600).
    pub file: Text,
    /// A program and its arguments, run without a shell; its standard output counts when it exits 0.
    pub command: Words,
    /// The name of a file in systemd's credentials folder (`LoadCredential=`).
    pub credential: Text,
}

/// Where backups are stored.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Repository")]
pub(super) struct RawRepository {
    /// `file:///path`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
    pub url: Text,
    /// The address of an S3-compatible server (or of an emulator of the other two), such as `https://s3.example.com`.
    pub endpoint: Text,
    /// The region of an S3 bucket. Default: what `AWS_REGION` says.
    pub region: Text,
    /// Whether the bucket stands in the path instead of the host name (s3 only). Default: true where `endpoint` is given.
    pub path_style: Option<Located<bool>>,
    /// S3 access key. Default: the usual AWS credential chain.
    pub access_key: Option<Located<RawSecret>>,
    /// S3 secret key; together with `access_key`.
    pub secret_key: Option<Located<RawSecret>>,
    /// S3 session token for temporary credentials.
    pub session_token: Option<Located<RawSecret>>,
    /// Whether `endpoint` may be plain http to another machine. Default: false (plain http to this machine is always allowed).
    pub allow_http: Option<Located<bool>>,
    /// The passphrase that opens a key slot of the repository.
    pub passphrase: Option<Located<RawSecret>>,
    /// A key slot older than this is told of, such as `365d`. Default: none is ever too old.
    pub max_key_age: Text,
    /// Whether to accept a store that ignores conditional create, promising that only one writer ever runs. Default: false.
    pub single_writer: Option<Located<bool>>,
    /// Greatest upload rate, such as `50MiB/s`. Default: no limit.
    pub upload_limit: Text,
    /// Greatest download rate, such as `50MiB/s`. Default: no limit.
    pub download_limit: Text,
    /// Greatest number of requests at the same time. Default: 16.
    #[schemars(range(min = 1, max = 1024))]
    pub max_requests: Option<Located<u16>>,
    /// Greatest number of runs of the daemon on this repository at the same time. Default: no limit but that of the daemon.
    #[schemars(range(min = 1, max = 1000))]
    pub max_runs: Option<Located<u16>>,
    /// Retention that the store enforces on what is written (s3 only; the bucket must have Object Lock). Default: none.
    pub object_lock: Option<Located<RawObjectLock>>,
    /// Whether to keep a local cache of the repository's index, or the folder to keep it in. Default: true.
    pub cache: Option<Located<RawCache>>,
}

/// Retention that the store enforces.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "ObjectLock")]
pub(super) struct RawObjectLock {
    /// `governance`: who has the right `s3:BypassGovernanceRetention` can undo it. `compliance`: nobody can, you neither. Required.
    pub mode: Option<Located<RawLockMode>>,
    /// How long what is kept cannot be destroyed, such as `30d`; at least a day. Moved on while it is needed. Required.
    pub retain: Text,
    /// The same of snapshots: manifests, their packs, indexes and records of moved packs. At most `retain`. Default: `retain`.
    pub snapshots: Text,
    /// The same of continuous log: its pieces and what stands beside them. At most `snapshots`. Default: `snapshots`.
    pub logs: Text,
}

/// Who may undo a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub(super) enum RawLockMode {
    Governance,
    Compliance,
}

/// `true`, `false`, or a folder.
#[derive(Debug, JsonSchema)]
#[schemars(untagged, inline)]
pub(super) enum RawCache {
    Switch(bool),
    Folder(String),
}

impl<'de> Deserialize<'de> for RawCache {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = RawCache;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or a folder")
            }
            fn visit_bool<E>(self, value: bool) -> Result<RawCache, E> {
                Ok(RawCache::Switch(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<RawCache, E> {
                Ok(RawCache::Folder(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// What kind of source it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum RawSourceKind {
    Sqlite,
    Files,
    Command,
    Postgres,
    Mysql,
}

/// How a database server is backed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum RawMethod {
    Physical,
    Logical,
}

/// What a backup of a database server makes of a damaged page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum RawDamagedPages {
    Report,
    Fail,
}

/// Who brings the continuous log of a database server into the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum RawLogMode {
    Off,
    Stream,
    Push,
}

/// What is backed up. Which keys belong to it depends on `kind`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Source")]
pub(super) struct RawSource {
    /// The kind of source; decides which other keys there are.
    pub kind: Option<Located<RawSourceKind>>,
    /// sqlite: the database file. files: the folder. Relative to the plan file's folder.
    pub path: Text,
    /// files: glob patterns of what is left out, matched against paths relative to `path`.
    pub exclude: Words,
    /// files: the page size of trees of page-structured files, such as a stopped database's folder. Default: cut by content.
    #[schemars(range(min = 512, max = 65536))]
    pub page_size: Option<Located<u32>>,
    /// command: the program (and its arguments) whose standard output is backed up; counts only when it exits 0.
    pub dump: Words,
    /// command: the program (and its arguments) that takes a restored dump on standard input.
    pub restore: Words,
    /// command: environment variables of both programs.
    pub environment: Option<Located<Named<Located<RawEnvironmentValue>>>>,
    /// postgres, mysql: the connection URL; it may hold a password, so it is a secret.
    pub url: Option<Located<RawSecret>>,
    /// postgres, mysql: the server's data folder on this machine, for reading files directly and in parallel.
    pub data_directory: Text,
    /// postgres, mysql: files and log, or statements. Default: physical.
    pub method: Option<Located<RawMethod>>,
    /// postgres, mysql: where the server's programs are, for private instances. Default: found by version.
    pub bin_directory: Text,
    /// postgres with `data_directory`: also read files that did not change since the last snapshot, so that all their pages are checked. Default: false.
    pub read_unchanged: Option<Located<bool>>,
    /// postgres, physical method: a page whose checksum is wrong. report: it is backed up as it is and told of, exit code 3; fail: the backup fails. Default: report with `data_directory`, fail without.
    pub damaged_pages: Option<Located<RawDamagedPages>>,
    /// postgres, physical method: how much of the tables a backup reads for fingerprints, such as `256MiB`: small tables whole, of larger ones a sample, or `all`. Default: `auto`, a 64th of what they hold, from 16 MiB to 256 MiB.
    pub fingerprints: Text,
    /// postgres, logical method: the databases to back up. Default: all that are no templates.
    pub databases: Words,
    /// postgres: the greatest rate of reading, such as `80MiB/s`. Default: no limit.
    pub read_limit: Text,
    /// postgres: the continuous log between backups. stream: `lifeboat serve` streams it; push: the server archives it. Default: off.
    pub log: Option<Located<RawLogMode>>,
    /// postgres with `log`: how often `lifeboat serve` writes a row of its own into the database of the url, so that drills measure data loss, such as `5s`. Default: never.
    pub canary: Text,
}

/// A plain text, or where a secret is found.
#[derive(Debug, JsonSchema)]
#[schemars(untagged, inline)]
pub(super) enum RawEnvironmentValue {
    Plain(String),
    Secret(RawSecret),
}

impl<'de> Deserialize<'de> for RawEnvironmentValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = RawEnvironmentValue;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a secret reference")
            }
            fn visit_str<E>(self, value: &str) -> Result<RawEnvironmentValue, E> {
                Ok(RawEnvironmentValue::Plain(value.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawEnvironmentValue, A::Error> {
                RawSecret::deserialize(MapAccessDeserializer::new(map)).map(RawEnvironmentValue::Secret).map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// What to do about a run whose time passed while the daemon was down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub(super) enum RawMissed {
    RunOnce,
    Skip,
}

/// What is done, when, and what must be proven.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Plan")]
pub(super) struct RawPlan {
    /// For people.
    pub description: Text,
    /// The name of the source; or use `sources`.
    pub source: Text,
    /// The names of several sources that make one application: snapshotted together and restored together.
    pub sources: Words,
    /// The name of the repository.
    pub repository: Text,
    /// Labels of nodes: its scheduled runs start only on a node that has one of them (a node's name is a label too). Default: on every node.
    pub run_on: Words,
    /// When to back up: five fields as in crontab(5). Default: only by hand.
    pub schedule: Text,
    /// The IANA time zone of all schedules of this plan; required where there is one.
    pub timezone: Text,
    /// Each run starts up to this much later than its schedule says, always the same for one run. Default: 0s.
    pub jitter: Text,
    /// Windows in which nothing of the plan starts by schedule, such as `mon-fri 08:00-18:00`, in the plan's zone; what is due inside one starts at its end. Default: none.
    pub blackout: Words,
    /// What the blackout holds back: of `backup`, `copy`, `drill`, `verify`. Default: all.
    pub blackout_jobs: Words,
    /// The names of plans whose backups go first: a backup of this one starts when theirs of the same time or before have ended. Default: none.
    pub after: Words,
    /// What to do about a run whose time passed while the daemon was down. Default: run-once.
    pub missed: Option<Located<RawMissed>>,
    /// How often and how soon a run is tried again after a failure that may pass.
    pub retry: Option<RawRetry>,
    /// What the business was promised.
    pub objectives: Option<RawObjectives>,
    /// Which snapshots are kept. Default: all.
    pub keep: Option<Located<RawKeep>>,
    /// Words stored with each snapshot.
    pub tags: Words,
    /// The names of the notifiers to tell. Default: all of them.
    pub notify: Words,
    /// How recovery is proven.
    pub drill: Option<RawDrill>,
    /// How the repository is checked.
    pub verify: Option<RawVerify>,
    /// When retention is applied and garbage collected.
    pub prune: Option<RawPrune>,
    /// Copies of the plan's snapshots in further repositories; a restore falls back to them in this order.
    pub copy: Vec<Located<RawCopy>>,
}

/// A copy of the plan's snapshots in a further repository.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Copy")]
pub(super) struct RawCopy {
    /// The name of the repository to copy to: best another vendor, with keys of its own.
    pub to: Text,
    /// When to copy: five fields as in crontab(5), in the plan's zone. Default: only by hand.
    pub schedule: Text,
    /// Which copies are kept there. Default: all.
    pub keep: Option<Located<RawKeep>>,
    /// Copy only the newest so many snapshots. Default: all.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub last: Option<Located<u32>>,
    /// Copy only snapshots with one of these tags. Default: all.
    pub tags: Words,
}

/// How often and how soon a run is tried again after a failure that may pass.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Retry")]
pub(super) struct RawRetry {
    /// Attempts in all, the first included. Default: 3.
    #[schemars(range(min = 1, max = 100))]
    pub attempts: Option<Located<u32>>,
    /// The wait before the second attempt; doubled after each. Default: 1m.
    pub delay: Text,
}

/// What the business was promised.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Objectives")]
pub(super) struct RawObjectives {
    /// The longest time whose changes may be lost (RPO).
    pub data_loss: Text,
    /// The longest time a recovery may take (RTO).
    pub recovery_time: Text,
}

/// Which snapshots are kept; one that any rule keeps stays.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Keep")]
pub(super) struct RawKeep {
    /// The newest so many.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub last: Option<Located<u32>>,
    /// The newest of each of the last so many hours that have one.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub hourly: Option<Located<u32>>,
    /// The newest of each of the last so many days that have one.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub daily: Option<Located<u32>>,
    /// The newest of each of the last so many weeks that have one.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weekly: Option<Located<u32>>,
    /// The newest of each of the last so many months that have one.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub monthly: Option<Located<u32>>,
    /// The newest of each of the last so many years that have one.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub yearly: Option<Located<u32>>,
    /// Everything younger than this, such as `30d`.
    pub within: Text,
    /// Everything with one of these tags.
    pub tags: Words,
    /// How far back every moment can be recovered, where there is a log, such as `14d`. Default: as far as the oldest snapshot that is kept.
    pub log: Text,
}

/// When the plan's snapshots are pruned.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Prune")]
pub(super) struct RawPrune {
    /// When to prune: five fields as in crontab(5), in the plan's zone. Default: only by hand.
    pub schedule: Text,
}

/// Which recovery point a drill restores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum RawDrillAt {
    Latest,
    Random,
}

/// How recovery is proven.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Drill")]
pub(super) struct RawDrill {
    /// When to drill: five fields as in crontab(5), in the plan's zone. Default: only by hand.
    pub schedule: Text,
    /// Which recovery point: the latest, or a random one of the window. Default: latest.
    pub at: Option<Located<RawDrillAt>>,
    /// How far back a random recovery point may lie. Default: 30d.
    pub window: Text,
    /// How much content is compared with the fingerprints taken at backup: `all`, `off`, or a share such as `10%`. Default: all.
    pub compare: Text,
    /// How long what was restored stays for inspection after a failed drill. Default: 0s, removed at once.
    pub keep_target_on_failure: Text,
    /// What a drill may use.
    pub limits: Option<RawLimits>,
    /// Questions to the recovered database, with the answers they must get.
    pub check: Vec<Located<RawCheck>>,
}

/// What a drill may use.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Limits")]
pub(super) struct RawLimits {
    /// The longest time. Default: no limit.
    pub time: Text,
    /// The most disk space, such as `200GiB`. Default: no limit.
    pub disk: Text,
}

/// A question to the recovered database, with the answer it must get.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Check")]
pub(super) struct RawCheck {
    /// For people; unique within the drill.
    pub name: Text,
    /// A query that yields one value. It can only read.
    pub sql: Text,
    /// A comparison: `>= 1000`, `= 'ok'`, `between 1 and 5`, `is not null`.
    pub expect: Text,
    /// postgres, mysql: the database to ask, where the server has several.
    pub database: Text,
    /// The source to ask; required where the plan has several sources.
    pub source: Text,
    /// The longest time for an answer. Default: 5m.
    pub timeout: Text,
}

/// How the repository is checked.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Verify")]
pub(super) struct RawVerify {
    /// When to verify: five fields as in crontab(5), in the plan's zone. Default: only by hand.
    pub schedule: Text,
    /// How much of the stored bytes is read: `all`, `off` (structure only), or a rotating share such as `10%`. Default: 10%.
    pub data: Text,
}

/// How somebody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum RawNotifierKind {
    Webhook,
    Email,
    Command,
    Heartbeat,
}

/// What somebody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub(super) enum RawOccasion {
    Start,
    Success,
    Failure,
    Incomplete,
    Recovered,
    ObjectiveMissed,
    ObjectiveAtRisk,
    DrillFailed,
    Damaged,
    NeverProven,
    Overdue,
    LogGap,
    LogNotStreamed,
    RetentionBlocked,
    PlansBroken,
    Expiring,
    NotifierFailing,
}

/// The form of what a webhook gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum RawWebhookFormat {
    Generic,
    Slack,
    DingTalk,
    WeCom,
    Feishu,
}

/// How an outside monitor wants its pings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum RawHeartbeatStyle {
    Healthchecks,
    Plain,
}

/// Which runs an outside monitor hears of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum RawHeartbeatJob {
    Backup,
    Drill,
    Verify,
    Prune,
    Copy,
}

/// Who is told. Which keys belong to it depends on `kind`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Notifier")]
pub(super) struct RawNotifier {
    /// How somebody is told; decides which other keys there are.
    pub kind: Option<Located<RawNotifierKind>>,
    /// On what. Default: all but start and success; a heartbeat: all.
    pub on: Option<Located<Vec<Located<RawOccasion>>>>,
    /// How long a delivery may take. Default: 20s.
    pub timeout: Text,
    /// webhook, email, command: what still stands is told again after this time; `0s`: never. Default: 1d.
    pub remind: Text,
    /// The name of another notifier that is told when this one cannot be. Default: all others that are told of it.
    pub escalate: Text,
    /// Deliveries fail for so long before that. Default: 15m.
    pub escalate_after: Text,
    /// webhook, heartbeat: the address; whoever knows it can call it, so it is a secret. heartbeat: `{plan}` and `{job}` in it are replaced.
    pub url: Option<Located<RawSecret>>,
    /// webhook: the form of what is sent. Default: generic.
    pub format: Option<Located<RawWebhookFormat>>,
    /// webhook: what is sent instead, a MiniJinja template that yields JSON; each `{{ value }}` becomes JSON itself.
    pub template: Text,
    /// webhook: the signing secret of a DingTalk or Feishu robot.
    pub secret: Option<Located<RawSecret>>,
    /// webhook, heartbeat: further headers of the request.
    pub headers: Option<Located<Named<Located<RawEnvironmentValue>>>>,
    /// webhook, heartbeat: allow plain http to other machines. Default: false.
    pub allow_http: Option<Located<bool>>,
    /// webhook, email, heartbeat: certificates (PEM) that are trusted besides the system's.
    pub ca_file: Text,
    /// heartbeat: `healthchecks` (the address with /start and /fail) or `plain` (the address itself, on success only). Default: healthchecks.
    pub style: Option<Located<RawHeartbeatStyle>>,
    /// heartbeat: the runs that it hears of. Default: backup.
    pub jobs: Option<Located<Vec<Located<RawHeartbeatJob>>>>,
    /// heartbeat: instead of runs, that the daemon itself is alive and watches, so often.
    pub every: Text,
    /// email: the mail server, `smtps://host` or `smtp://host` (then upgraded to TLS).
    pub server: Text,
    /// email: the sender's address.
    pub from: Text,
    /// email: the recipients' addresses.
    pub to: Words,
    /// email: the account on the mail server.
    pub username: Text,
    /// email: the password of that account.
    pub password: Option<Located<RawSecret>>,
    /// command: the program and its arguments; the event comes as JSON on its standard input.
    pub run: Words,
    /// command: environment variables of the program.
    pub environment: Option<Located<Named<Located<RawEnvironmentValue>>>>,
}

/// Which keys belong to which kind of source besides `kind`; the required ones first, then the optional ones.
pub(super) const SOURCE_KEYS: [(&str, &[&str], &[&str]); 5] = [
    ("sqlite", &["path"], &[]),
    ("files", &["path"], &["exclude", "page_size"]),
    ("command", &["dump"], &["restore", "environment"]),
    (
        "postgres",
        &["url"],
        &[
            "data_directory",
            "method",
            "bin_directory",
            "log",
            "canary",
            "read_unchanged",
            "read_limit",
            "damaged_pages",
            "fingerprints",
            "databases",
        ],
    ),
    ("mysql", &["url"], &["data_directory", "method", "bin_directory"]),
];

/// As [`SOURCE_KEYS`], for notifiers.
pub(super) const NOTIFIER_KEYS: [(&str, &[&str], &[&str]); 4] = [
    (
        "webhook",
        &["url"],
        &["on", "timeout", "remind", "escalate", "escalate_after", "format", "template", "secret", "headers", "allow_http", "ca_file"],
    ),
    ("email", &["server", "from", "to"], &["on", "timeout", "remind", "escalate", "escalate_after", "username", "password", "ca_file"]),
    ("command", &["run"], &["on", "timeout", "remind", "escalate", "escalate_after", "environment"]),
    ("heartbeat", &["url"], &["on", "timeout", "escalate", "escalate_after", "headers", "allow_http", "ca_file", "style", "jobs", "every"]),
];

impl RawSource {
    /// The keys besides `kind` that are given, with their places.
    pub fn given(&self) -> Vec<(&'static str, Range<usize>)> {
        let keys = [
            ("path", self.path.as_ref().map(|v| &v.span)),
            ("exclude", self.exclude.as_ref().map(|v| &v.span)),
            ("page_size", self.page_size.as_ref().map(|v| &v.span)),
            ("dump", self.dump.as_ref().map(|v| &v.span)),
            ("restore", self.restore.as_ref().map(|v| &v.span)),
            ("environment", self.environment.as_ref().map(|v| &v.span)),
            ("url", self.url.as_ref().map(|v| &v.span)),
            ("data_directory", self.data_directory.as_ref().map(|v| &v.span)),
            ("method", self.method.as_ref().map(|v| &v.span)),
            ("bin_directory", self.bin_directory.as_ref().map(|v| &v.span)),
            ("read_unchanged", self.read_unchanged.as_ref().map(|v| &v.span)),
            ("read_limit", self.read_limit.as_ref().map(|v| &v.span)),
            ("damaged_pages", self.damaged_pages.as_ref().map(|v| &v.span)),
            ("fingerprints", self.fingerprints.as_ref().map(|v| &v.span)),
            ("log", self.log.as_ref().map(|v| &v.span)),
            ("canary", self.canary.as_ref().map(|v| &v.span)),
            ("databases", self.databases.as_ref().map(|v| &v.span)),
        ];
        keys.into_iter().filter_map(|(key, span)| span.map(|span| (key, span.clone()))).collect()
    }
}

impl RawNotifier {
    /// The keys besides `kind` that are given, with their places.
    pub fn given(&self) -> Vec<(&'static str, Range<usize>)> {
        let keys = [
            ("on", self.on.as_ref().map(|v| &v.span)),
            ("timeout", self.timeout.as_ref().map(|v| &v.span)),
            ("remind", self.remind.as_ref().map(|v| &v.span)),
            ("escalate", self.escalate.as_ref().map(|v| &v.span)),
            ("escalate_after", self.escalate_after.as_ref().map(|v| &v.span)),
            ("format", self.format.as_ref().map(|v| &v.span)),
            ("template", self.template.as_ref().map(|v| &v.span)),
            ("secret", self.secret.as_ref().map(|v| &v.span)),
            ("headers", self.headers.as_ref().map(|v| &v.span)),
            ("allow_http", self.allow_http.as_ref().map(|v| &v.span)),
            ("ca_file", self.ca_file.as_ref().map(|v| &v.span)),
            ("style", self.style.as_ref().map(|v| &v.span)),
            ("jobs", self.jobs.as_ref().map(|v| &v.span)),
            ("every", self.every.as_ref().map(|v| &v.span)),
            ("url", self.url.as_ref().map(|v| &v.span)),
            ("server", self.server.as_ref().map(|v| &v.span)),
            ("from", self.from.as_ref().map(|v| &v.span)),
            ("to", self.to.as_ref().map(|v| &v.span)),
            ("username", self.username.as_ref().map(|v| &v.span)),
            ("password", self.password.as_ref().map(|v| &v.span)),
            ("run", self.run.as_ref().map(|v| &v.span)),
            ("environment", self.environment.as_ref().map(|v| &v.span)),
        ];
        keys.into_iter().filter_map(|(key, span)| span.map(|span| (key, span.clone()))).collect()
    }
}

/// What every table of a kind needs, by the name of its definition (empty: the file itself). Checked in `validate`.
pub(super) const REQUIRED_KEYS: [(&str, &[&str]); 6] = [
    ("", &["version"]),
    ("Repository", &["url", "passphrase"]),
    ("Source", &["kind"]),
    ("Plan", &["repository"]),
    ("Check", &["name", "sql", "expect"]),
    ("Notifier", &["kind"]),
];
