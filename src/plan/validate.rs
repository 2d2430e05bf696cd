//! From what was written to what is meant: values, references and rules between keys, all errors at once.
//!
//! A declaration with an error yields nothing but keeps its name, so that references to it are not reported as well.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU16;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono_tz::Tz;
use url::Url;

use crate::error::{Error, Kind, Result};
use crate::id::Name;
use crate::plan::blackout::{Blackout, JOBS, Window};
use crate::plan::findings::{File, Finding, suggest};
use crate::plan::model::{
    Cache, Check, Credentials, DamagedPages, Drill, DrillAt, Environment, EnvironmentValue, JournalSettings, Keep, LockMode, LogMode,
    Method, Missed, Notifier, ObjectLock, Objectives, Plan, PlannedCopy, Plans, Prune, Repository, RepositoryUrl, Retry, Scheme, Serve,
    Server, Share, Source, SourceKind, Verify,
};
use crate::plan::raw::{
    Located, Named, RawCache, RawCheck, RawCopy, RawDamagedPages, RawDrill, RawDrillAt, RawEnvironmentValue, RawFile, RawKeep, RawLockMode,
    RawLogMode, RawMethod, RawMissed, RawObjectLock, RawPlan, RawRepository, RawSecret, RawSource, RawSourceKind, RawVerify, SOURCE_KEYS,
    Text, Words,
};
use crate::plan::schedule::{Schedule, parse_timezone};
use crate::plan::secret::SecretRef;
use crate::plan::spacing;
use crate::plan::structure::SECRET_HINT;
use crate::plan::units::{format_duration, parse_duration, parse_rate, parse_size};
use crate::source::Expectation;
use crate::source::postgres::fingerprint::Budget;

mod notifier;

const DEFAULT_MAX_REQUESTS: NonZeroU16 = NonZeroU16::new(16).unwrap();
/// Shorter ones end before anybody looks.
const LEAST_LOCK: Duration = Duration::from_hours(24);
/// Longer ones are typing errors that nobody can undo.
const GREATEST_LOCK: Duration = Duration::from_hours(3650 * 24);
const DEFAULT_RETRY: Retry = Retry { attempts: 3, delay: Duration::from_mins(1) };
const DEFAULT_WINDOW: Duration = Duration::from_hours(30 * 24);
const DEFAULT_CHECK_TIMEOUT: Duration = Duration::from_mins(5);
const DEFAULT_VERIFY_DATA: &str = "10%";

/// A file that could be read.
pub(super) struct Loaded {
    pub file: Arc<File>,
    pub raw: RawFile,
    /// Where the first look took something out.
    pub rejected: Vec<usize>,
}

/// What was declared, by name; `None` where the declaration has an error.
type Declared<T> = BTreeMap<Name, Option<Arc<T>>>;

/// Validates all files together. The result is only to be used when there is no finding. `complete`: all files could be read; else
/// an unknown reference may well be known in the missing one.
pub(super) fn validate(files: &[Loaded], complete: bool, findings: &mut Vec<Finding>) -> Plans {
    let mut checker = Checker { file: None, complete, findings, places: BTreeMap::new(), schedules: HashMap::new() };
    let mut repositories = Declared::new();
    let mut sources = Declared::new();
    let mut notifiers = Declared::new();
    let mut plans = Declared::new();
    let mut journal = None;
    let mut serve = None;
    for loaded in files {
        checker.file = Some(loaded);
        checker.version(&loaded.raw);
        checker.journal(loaded, &mut journal);
        checker.serve(loaded, &mut serve);
        checker.declare("repository", &loaded.raw.repository, &mut repositories, Checker::repository);
        checker.declare("source", &loaded.raw.source, &mut sources, Checker::source);
        checker.declare("notifier", &loaded.raw.notify, &mut notifiers, Checker::notifier);
    }
    for loaded in files {
        checker.file = Some(loaded);
        checker.escalations(&loaded.raw.notify, &notifiers);
        checker.declare("plan", &loaded.raw.plan, &mut plans, |checker, name, at, raw| {
            checker.plan(name, at, raw, &sources, &repositories, &notifiers)
        });
    }
    let mut retired = Retired::default();
    for loaded in files {
        checker.file = Some(loaded);
        checker.order(&loaded.raw.plan, &plans);
        checker.retired(&loaded.raw.retired, &plans, &mut retired);
    }
    Plans {
        plans: only_valid(plans),
        sources: only_valid(sources),
        repositories: only_valid(repositories),
        notifiers: only_valid(notifiers),
        journal: journal.map(|(_, journal)| journal).unwrap_or_default(),
        serve: serve.map(|(_, serve)| serve).unwrap_or_default(),
        retired: retired.plans,
        retired_schedules: retired.schedules,
        retired_copies: retired.copies,
        files: Vec::new(),
        is_partial: false,
    }
}

fn only_valid<T>(declared: Declared<T>) -> BTreeMap<Name, Arc<T>> {
    declared.into_iter().filter_map(|(name, value)| value.map(|value| (name, value))).collect()
}

/// What was taken out on purpose.
#[derive(Default)]
struct Retired {
    plans: BTreeSet<Name>,
    schedules: BTreeSet<(Name, &'static str)>,
    copies: BTreeSet<(Name, Name)>,
}

struct Checker<'a> {
    /// The file at hand.
    file: Option<&'a Loaded>,
    complete: bool,
    findings: &'a mut Vec<Finding>,
    /// Where each name was declared first.
    places: BTreeMap<(&'static str, Name), (&'a File, usize)>,
    /// Those read so far: thousands of plans share a few hundred.
    schedules: HashMap<(String, Tz), Schedule>,
}

impl<'a> Checker<'a> {
    fn fail(&mut self, span: &Range<usize>, error: &Error) {
        let mut finding = self.finding(span, error.to_string());
        finding.hint = error.hint_text().map(str::to_owned);
        self.findings.push(finding);
    }

    fn report(&mut self, span: &Range<usize>, message: impl Into<String>, hint: impl Into<String>) {
        let finding = self.finding(span, message.into()).hint(hint);
        self.findings.push(finding);
    }

    fn finding(&self, span: &Range<usize>, message: String) -> Finding {
        match self.file {
            Some(loaded) => Finding::at(&loaded.file, span.clone(), message),
            None => Finding::about(".", message),
        }
    }

    /// Reports a missing key of the table at `at`, unless something of that table was taken out: that may have been it.
    fn missing(&mut self, at: &Range<usize>, message: impl Into<String>, hint: impl Into<String>) {
        let Some(loaded) = self.file else { return };
        let end = loaded.file.text.get(at.end..).and_then(|rest| rest.find("\n[")).map_or(usize::MAX, |length| at.end + length);
        if !loaded.rejected.iter().any(|rejected| (at.start..end).contains(rejected)) {
            self.report(at, message, hint);
        }
    }

    fn version(&mut self, raw: &RawFile) {
        if raw.version.is_none() {
            let Some(loaded) = self.file else { return };
            // A version of another number was reported already.
            let rejected = loaded
                .rejected
                .iter()
                .any(|at| loaded.file.text[..*at].lines().last().is_some_and(|line| line.trim_start().starts_with("version")));
            if !rejected {
                self.report(&(0..0), "`version` is missing", "begin the file with: version = 1");
            }
        }
    }

    /// The journal's settings: one table for all files. `first`: where it was found, and what it says.
    fn journal(&mut self, loaded: &Loaded, first: &mut Option<(String, JournalSettings)>) {
        let Some(raw) = &loaded.raw.journal else { return };
        if let Some((place, _)) = first {
            let hint = format!("it is there already at {place}; keep one");
            self.report(&raw.span, "`[journal]` is there twice", hint);
            return;
        }
        let default = JournalSettings::default();
        let between = |least: Duration, most: Duration, says: &'static str| {
            move |text: &str| match parse_duration(text)? {
                duration if (least..=most).contains(&duration) => Ok(duration),
                _ => Err(Error::new(Kind::Usage, says)),
            }
        };
        let hours = Duration::from_hours;
        let lease = between(Duration::from_secs(5), hours(1), "a lease is from 5s to 1h");
        let history = between(hours(24), hours(24 * 366 * 100), "history is kept for 1d at least");
        let lease = self.read(&raw.value.lease, lease).unwrap_or(default.lease);
        let history = self.read(&raw.value.history, history).unwrap_or(default.history);
        let url = self.secret(raw.value.url.as_ref());
        *first = Some((loaded.file.place(raw.span.start), JournalSettings { url, lease, history }));
    }

    /// Labels of nodes.
    fn labels(&mut self, raw: &Words) -> Vec<String> {
        let Some(words) = raw else { return Vec::new() };
        if words.value.is_empty() {
            self.report(&words.span, "`run_on` names no label", "leave it out for every node, or name the labels: run_on = [\"db-host\"]");
        }
        let mut labels = Vec::new();
        for word in &words.value {
            match Name::new(word.value.clone()) {
                Ok(label) => labels.push(label.to_string()),
                Err(error) => self.fail(&word.span, &error),
            }
        }
        labels
    }

    /// The daemon's settings: one table for all files. `first`: where it was found, and what it says.
    fn serve(&mut self, loaded: &Loaded, first: &mut Option<(String, Serve)>) {
        let Some(raw) = &loaded.raw.serve else { return };
        if let Some((place, _)) = first {
            let hint = format!("it is there already at {place}; keep one");
            self.report(&raw.span, "`[serve]` is there twice", hint);
            return;
        }
        let default = Serve::default();
        let max_runs = raw.value.max_runs.as_ref().and_then(|max| NonZeroU16::new(max.value)).unwrap_or(default.max_runs);
        let drain = self.read(&raw.value.drain, parse_duration).unwrap_or(default.drain);
        *first = Some((loaded.file.place(raw.span.start), Serve { max_runs, drain }));
    }

    /// Validates one kind of declaration of the file at hand.
    fn declare<R, T>(
        &mut self,
        what: &'static str,
        raw: &'a Named<R>,
        into: &mut Declared<T>,
        mut build: impl FnMut(&mut Self, &Name, &Range<usize>, &'a R) -> Option<T>,
    ) {
        for (key, raw) in raw {
            let name = match Name::new(key.value.clone()) {
                Ok(name) => name,
                Err(error) => {
                    self.fail(&key.span, &error);
                    continue;
                }
            };
            if let Some((first, start)) = self.places.get(&(what, name.clone())) {
                let hint = format!("it is declared first at {}; names are unique across all plan files", first.place(*start));
                self.report(&key.span, format!("{what} `{name}` is declared twice"), hint);
            } else if let Some(loaded) = self.file {
                self.places.insert((what, name.clone()), (&loaded.file, key.span.start));
            }
            let built = build(self, &name, &key.span, raw).map(Arc::new);
            into.entry(name).or_insert(built);
        }
    }

    fn read<T>(&mut self, text: &Text, parse: impl FnOnce(&str) -> Result<T>) -> Option<T> {
        let text = text.as_ref()?;
        parse(&text.value).map_err(|error| self.fail(&text.span, &error)).ok()
    }

    /// A duration of more than nothing.
    fn some_time(&mut self, text: &Text) -> Option<Duration> {
        self.read(text, |text| match parse_duration(text)? {
            Duration::ZERO => Err(Error::new(Kind::Usage, "this must be more than nothing").hint("leave the key out instead")),
            duration => Ok(duration),
        })
    }

    fn non_empty(&mut self, text: &Text) -> Option<String> {
        self.read(text, |text| {
            if text.trim().is_empty() || text.contains('\0') {
                Err(Error::new(Kind::Usage, "this text must not be empty"))
            } else {
                Ok(text.to_owned())
            }
        })
    }

    fn words(&mut self, words: &Words) -> Option<Vec<String>> {
        let words = words.as_ref()?;
        let wrong = words.value.iter().find(|word| word.value.contains('\0'));
        match wrong.map(|word| &word.span).or_else(|| words.value.first().is_none_or(|first| first.value.is_empty()).then_some(&words.span))
        {
            Some(span) => {
                self.report(
                    span,
                    "a command needs a program and cannot hold NUL",
                    "write a list such as [\"pg_dump\", \"--format=custom\", \"crm\"]",
                );
                None
            }
            None => Some(words.value.iter().map(|word| word.value.clone()).collect()),
        }
    }

    /// An absolute path; a relative one is meant from the plan file's folder.
    fn path(&mut self, text: &Text) -> Option<PathBuf> {
        let folder = self.file.and_then(|loaded| loaded.file.path.parent().map(Path::to_owned)).unwrap_or_default();
        self.read(text, |text| {
            if text.is_empty() || text.contains('\0') {
                return Err(Error::new(Kind::Usage, "not a valid path"));
            }
            if text.starts_with('~') {
                return Err(Error::new(Kind::Usage, "`~` has no meaning in a plan file").hint("write the whole path"));
            }
            std::path::absolute(folder.join(text)).map_err(|error| Error::new(Kind::Usage, "not a valid path").because(error))
        })
    }

    fn secret(&mut self, secret: Option<&Located<RawSecret>>) -> Option<SecretRef> {
        let secret = secret?;
        self.secret_at(&secret.value, &secret.span)
    }

    fn secret_at(&mut self, raw: &RawSecret, at: &Range<usize>) -> Option<SecretRef> {
        let given = [raw.env.is_some(), raw.file.is_some(), raw.command.is_some(), raw.credential.is_some()];
        match given.into_iter().filter(|given| *given).count() {
            1 => {}
            0 => {
                self.missing(at, "this secret reference says nothing", SECRET_HINT);
                return None;
            }
            _ => {
                self.report(at, "a secret reference has exactly one of `env`, `file`, `command` and `credential`", SECRET_HINT);
                return None;
            }
        }
        if raw.env.is_some() {
            return self.read(&raw.env, variable_name).map(SecretRef::Env);
        }
        if raw.file.is_some() {
            return self.path(&raw.file).map(SecretRef::File);
        }
        if raw.command.is_some() {
            return self.words(&raw.command).map(SecretRef::Command);
        }
        let credential = self.read(&raw.credential, |name| {
            if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
                return Err(Error::new(Kind::Usage, "not a valid credential name").hint("write the name given in LoadCredential=NAME:PATH"));
            }
            Ok(name.to_owned())
        });
        credential.map(SecretRef::Credential)
    }

    fn environment(&mut self, raw: Option<&Located<Named<Located<RawEnvironmentValue>>>>) -> Environment {
        let mut environment = Environment::new();
        for (key, value) in raw.into_iter().flat_map(|raw| &raw.value) {
            let Some(name) = self.read(&Some(key.clone()), variable_name) else { continue };
            let value_of = match &value.value {
                RawEnvironmentValue::Plain(text) if text.contains('\0') => {
                    self.report(&value.span, "an environment variable cannot hold NUL", "remove it");
                    None
                }
                RawEnvironmentValue::Plain(_) if names_a_secret(&name) => {
                    let finding =
                        self.finding(&value.span, format!("by its name, `{name}` is a secret, and a secret never stands in a plan file"));
                    self.findings.push(finding.hint(SECRET_HINT).masked());
                    None
                }
                RawEnvironmentValue::Plain(text) => Some(EnvironmentValue::Plain(text.clone())),
                RawEnvironmentValue::Secret(raw) => self.secret_at(raw, &value.span).map(EnvironmentValue::Secret),
            };
            if let Some(value) = value_of {
                environment.insert(name, value);
            }
        }
        environment
    }

    /// Reports keys that the kind does not have, and those it needs and lacks.
    fn keys_of_kind(
        &mut self,
        what: &str,
        at: &Range<usize>,
        kind: &str,
        given: &[(&'static str, Range<usize>)],
        table: &[(&str, &'static [&'static str], &'static [&'static str])],
    ) {
        let Some((_, required, optional)) = table.iter().find(|(name, ..)| *name == kind) else { return };
        for (key, span) in given.iter().filter(|(key, _)| !required.contains(key) && !optional.contains(key)) {
            let known = required.iter().chain(*optional).map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
            self.report(span, format!("a {what} of kind {kind} has no key `{key}`"), format!("it has {known}"));
        }
        for key in required.iter().filter(|key| !given.iter().any(|(given, _)| given == *key)) {
            self.missing(at, format!("a {what} of kind {kind} needs `{key}`"), format!("add {key} = …"));
        }
    }

    fn repository(&mut self, name: &Name, at: &Range<usize>, raw: &RawRepository) -> Option<Repository> {
        let url = self.read(&raw.url, RepositoryUrl::parse);
        if raw.url.is_none() {
            self.missing(at, format!("repository `{name}` needs `url`"), "add url = \"file:///path\", \"s3://bucket/prefix\", …");
        }
        let passphrase = self.secret(raw.passphrase.as_ref());
        if raw.passphrase.is_none() {
            self.missing(at, format!("repository `{name}` needs `passphrase`"), "add passphrase = { env = \"LIFEBOAT_PASSPHRASE\" }");
        }
        let max_key_age = self.some_time(&raw.max_key_age);
        let allow_http = raw.allow_http.as_ref().is_some_and(|value| value.value);
        let endpoint = self.read(&raw.endpoint, |text| parse_endpoint(text, allow_http));
        let region = self.non_empty(&raw.region);
        let credentials = self.credentials(raw);
        if let Some(scheme) = url.as_ref().map(RepositoryUrl::scheme) {
            let only_s3 = [
                ("region", raw.region.as_ref().map(|v| &v.span)),
                ("path_style", raw.path_style.as_ref().map(|v| &v.span)),
                ("access_key", raw.access_key.as_ref().map(|v| &v.span)),
                ("secret_key", raw.secret_key.as_ref().map(|v| &v.span)),
                ("session_token", raw.session_token.as_ref().map(|v| &v.span)),
                ("object_lock", raw.object_lock.as_ref().map(|v| &v.span)),
            ];
            let not_file = [("endpoint", raw.endpoint.as_ref().map(|v| &v.span)), ("allow_http", raw.allow_http.as_ref().map(|v| &v.span))];
            let foreign = only_s3.iter().filter(|_| scheme != Scheme::S3).chain(not_file.iter().filter(|_| scheme == Scheme::File));
            for (key, span) in foreign.filter_map(|(key, span)| span.map(|span| (key, span))) {
                let hint = match scheme {
                    Scheme::Gs => "credentials come from the usual Google variables",
                    Scheme::Az => "credentials come from the usual Azure variables",
                    _ => "remove it",
                };
                self.report(span, format!("a repository at {}:// has no key `{key}`", scheme.word()), hint);
            }
        }
        let upload_limit_bytes_per_sec = self.read(&raw.upload_limit, parse_rate);
        let download_limit_bytes_per_sec = self.read(&raw.download_limit, parse_rate);
        let cache = match &raw.cache {
            None => Cache::Default,
            Some(Located { value: RawCache::Switch(on), .. }) => {
                if *on {
                    Cache::Default
                } else {
                    Cache::Off
                }
            }
            Some(Located { value: RawCache::Folder(folder), span }) => {
                self.path(&Some(Located { span: span.clone(), value: folder.clone() })).map_or(Cache::Default, Cache::Folder)
            }
        };
        let object_lock = raw.object_lock.as_ref().and_then(|lock| self.object_lock(lock));
        Some(Repository {
            name: name.clone(),
            url: url?,
            path_style: raw.path_style.as_ref().map_or(endpoint.is_some(), |value| value.value),
            endpoint,
            region,
            credentials,
            allow_http,
            passphrase: passphrase?,
            max_key_age,
            single_writer: raw.single_writer.as_ref().is_some_and(|value| value.value),
            upload_limit_bytes_per_sec,
            download_limit_bytes_per_sec,
            max_requests: raw.max_requests.as_ref().and_then(|value| NonZeroU16::new(value.value)).unwrap_or(DEFAULT_MAX_REQUESTS),
            max_runs: raw.max_runs.as_ref().and_then(|value| NonZeroU16::new(value.value)),
            cache,
            object_lock,
        })
    }

    fn object_lock(&mut self, raw: &Located<RawObjectLock>) -> Option<ObjectLock> {
        if raw.value.mode.is_none() {
            self.missing(
                &raw.span,
                "`object_lock` needs `mode`",
                "add mode = \"governance\" (a right can undo it) or \"compliance\" (nothing can)",
            );
        }
        if raw.value.retain.is_none() {
            self.missing(&raw.span, "`object_lock` needs `retain`", "add retain = \"30d\"");
        }
        let mut time = |text: &Text| {
            self.read(text, |text| match parse_duration(text)? {
                time if time < LEAST_LOCK => Err(Error::new(Kind::Usage, format!("{text} is too short for a lock"))
                    .hint("a lock is for the time until an attack is noticed: at least 1d")),
                time if time > GREATEST_LOCK => Err(Error::new(Kind::Usage, format!("{text} is too long for a lock"))
                    .hint("dates are moved on while data is needed: a few weeks are enough, 3650d is the most")),
                time => Ok(time),
            })
        };
        let (retain, snapshots, logs) = (time(&raw.value.retain), time(&raw.value.snapshots), time(&raw.value.logs));
        let mode = match raw.value.mode.as_ref()?.value {
            RawLockMode::Governance => LockMode::Governance,
            RawLockMode::Compliance => LockMode::Compliance,
        };
        let retain = retain?;
        // What is wrong in a value is told already.
        let held = snapshots.unwrap_or(retain);
        let logs_held = logs.unwrap_or(held);
        self.locked_as_long(
            "snapshots",
            &raw.value.snapshots,
            held,
            ("retain", retain),
            "snapshots need key slots and the retention ledger",
        );
        let snapshots_key = if raw.value.snapshots.is_some() { "snapshots" } else { "retain" };
        self.locked_as_long("logs", &raw.value.logs, logs_held, (snapshots_key, held), "log is replayed on a snapshot");
        Some(ObjectLock { mode, retain, snapshots: held, logs: logs_held })
    }

    /// Refuses locks that outlast those of what their objects need.
    fn locked_as_long(&mut self, key: &str, raw: &Text, time: Duration, (needed, least): (&str, Duration), why: &str) {
        if let Some(raw) = raw.as_ref().filter(|_| time > least) {
            self.report(
                &raw.span,
                format!("`{key}` of `object_lock` is longer than `{needed}`, which is {}", format_duration(least)),
                format!(
                    "{why}, so a longer lock is worth nothing once those end: raise `{needed}`, or give `{key}` at most {}",
                    format_duration(least)
                ),
            );
        }
    }

    fn credentials(&mut self, raw: &RawRepository) -> Option<Credentials> {
        let access_key = self.secret(raw.access_key.as_ref());
        let secret_key = self.secret(raw.secret_key.as_ref());
        let session_token = self.secret(raw.session_token.as_ref());
        let hint = "give both access_key and secret_key, or none to use the usual AWS credential chain";
        match (&raw.access_key, &raw.secret_key, &raw.session_token) {
            (Some(access), None, _) => self.missing(&access.span, "`access_key` without `secret_key`", hint),
            (None, Some(secret), _) => self.missing(&secret.span, "`secret_key` without `access_key`", hint),
            (None, None, Some(token)) => self.missing(&token.span, "`session_token` without `access_key` and `secret_key`", hint),
            _ => {}
        }
        Some(Credentials { access_key: access_key?, secret_key: secret_key?, session_token })
    }

    fn source(&mut self, name: &Name, at: &Range<usize>, raw: &RawSource) -> Option<Source> {
        let Some(kind) = &raw.kind else {
            self.missing(
                at,
                format!("source `{name}` needs `kind`"),
                "add kind = \"sqlite\", \"files\", \"command\", \"postgres\" or \"mysql\"",
            );
            return None;
        };
        let word = match kind.value {
            RawSourceKind::Sqlite => "sqlite",
            RawSourceKind::Files => "files",
            RawSourceKind::Command => "command",
            RawSourceKind::Postgres => "postgres",
            RawSourceKind::Mysql => "mysql",
        };
        self.keys_of_kind("source", at, word, &raw.given(), &SOURCE_KEYS);
        let path = self.path(&raw.path);
        let kind = match kind.value {
            RawSourceKind::Sqlite => SourceKind::Sqlite { path: path? },
            RawSourceKind::Files => {
                let exclude = self.globs(&raw.exclude);
                let page_size = raw.page_size.as_ref().map(|size| {
                    if !size.value.is_power_of_two() {
                        self.report(
                            &size.span,
                            "a page size is a power of two",
                            "PostgreSQL uses 8192, MySQL 16384, SQLite 4096 unless told otherwise",
                        );
                    }
                    size.value
                });
                SourceKind::Files { path: path?, exclude, page_size }
            }
            RawSourceKind::Command => {
                let environment = self.environment(raw.environment.as_ref());
                let (dump, restore) = (self.words(&raw.dump), self.words(&raw.restore));
                SourceKind::Command { dump: dump?, restore, environment }
            }
            RawSourceKind::Postgres => SourceKind::Postgres(self.server(raw)?),
            RawSourceKind::Mysql => SourceKind::Mysql(self.server(raw)?),
        };
        Some(Source { name: name.clone(), kind })
    }

    fn server(&mut self, raw: &RawSource) -> Option<Server> {
        let url = self.secret(raw.url.as_ref());
        let (data_directory, bin_directory) = (self.path(&raw.data_directory), self.path(&raw.bin_directory));
        let method = match raw.method.as_ref().map(|method| method.value) {
            None | Some(RawMethod::Physical) => Method::Physical,
            Some(RawMethod::Logical) => Method::Logical,
        };
        if let (Method::Logical, Some(folder)) = (method, &raw.data_directory) {
            self.report(&folder.span, "`data_directory` is only used by the physical method", "remove it, or set method = \"physical\"");
        }
        if let (None, Some(unchanged)) = (&data_directory, &raw.read_unchanged) {
            self.report(&unchanged.span, "`read_unchanged` is only for reading a data folder", "remove it, or set `data_directory`");
        }
        let read_unchanged = raw.read_unchanged.as_ref().is_some_and(|unchanged| unchanged.value);
        if let (Method::Logical, Some(given)) = (method, &raw.damaged_pages) {
            self.report(
                &given.span,
                "`damaged_pages` is only used by the physical method",
                "remove it: the logical method reads rows, not pages",
            );
        }
        let damaged_pages = match raw.damaged_pages.as_ref().map(|given| given.value) {
            Some(RawDamagedPages::Fail) => DamagedPages::Fail,
            // As pg_basebackup does; whoever reads the folder finds more than what the server would stop at.
            None if data_directory.is_none() => DamagedPages::Fail,
            Some(RawDamagedPages::Report) | None => DamagedPages::Report,
        };
        let read_limit_bytes_per_sec = self.read(&raw.read_limit, parse_rate);
        let fingerprint_budget = self
            .read(&raw.fingerprints, |text| match text {
                "auto" => Ok(Budget::Share),
                "all" => Ok(Budget::All),
                text => {
                    parse_size(text).map(Budget::Bytes).map_err(|error| error.hint("write \"auto\", \"all\", or a size such as \"256MiB\""))
                }
            })
            .unwrap_or_default();
        if let (Method::Logical, Some(given)) = (method, &raw.fingerprints) {
            self.report(
                &given.span,
                "`fingerprints` is only used by the physical method",
                "remove it: the logical method digests every row that it reads",
            );
        }
        let log = match raw.log.as_ref().map(|log| log.value) {
            None | Some(RawLogMode::Off) => LogMode::Off,
            Some(RawLogMode::Stream) => LogMode::Stream,
            Some(RawLogMode::Push) => LogMode::Push,
        };
        if let (Method::Logical, Some(given)) = (method, &raw.log)
            && log != LogMode::Off
        {
            self.report(&given.span, "`log` is only used by the physical method", "remove it, or set method = \"physical\"");
        }
        let canary =
            self.read(&raw.canary, |text| match parse_duration(text)? {
                every if (Duration::from_secs(1)..=Duration::from_mins(10)).contains(&every) => Ok(every),
                _ => Err(Error::new(Kind::Usage, "a canary row is written every 1 s to 10 min")
                    .hint("\"5s\" is usual; leave the key out for none")),
            });
        if let (LogMode::Off, Some(given)) = (log, &raw.canary) {
            self.report(
                &given.span,
                "`canary` measures what a continuous log would lose, and there is none",
                "remove it, or set log = \"stream\"",
            );
        }
        if let (Method::Physical, Some(given)) = (method, &raw.databases) {
            self.report(
                &given.span,
                "`databases` is only used by the logical method",
                "remove it, or set method = \"logical\": a physical backup is of the whole server",
            );
        }
        let databases: Vec<String> = raw.databases.iter().flat_map(|raw| &raw.value).map(|name| name.value.clone()).collect();
        if let Some(given) = raw.databases.as_ref().filter(|given| given.value.is_empty() || databases.iter().any(String::is_empty)) {
            self.report(&given.span, "a list of databases names at least one", "remove `databases` to back up all of them");
        }
        Some(Server {
            url: url?,
            data_directory,
            method,
            bin_directory,
            read_unchanged,
            read_limit_bytes_per_sec,
            damaged_pages,
            fingerprint_budget,
            log,
            canary,
            databases,
        })
    }

    fn globs(&mut self, raw: &Words) -> Vec<String> {
        let mut globs = Vec::new();
        for glob in raw.iter().flat_map(|raw| &raw.value) {
            if glob.value.is_empty() || glob.value.contains('\0') || glob.value.starts_with('/') {
                self.report(
                    &glob.span,
                    "not a valid pattern",
                    "patterns are matched against paths relative to `path`, such as \"cache/**\" or \"*.tmp\"",
                );
            }
            globs.push(glob.value.clone());
        }
        globs
    }

    /// What a name refers to.
    fn refer<T>(&mut self, what: &str, declared: &Declared<T>, name: &Located<String>) -> Option<Arc<T>> {
        if let Some(found) = declared.get(name.value.as_str()) {
            return found.clone();
        }
        if self.complete {
            let names = declared.keys().map(Name::as_str);
            let hint =
                if declared.is_empty() { format!("the plan files declare no {what}") } else { suggest(&name.value, "declared are", names) };
            self.report(&name.span, format!("unknown {what} `{}`", name.value), hint);
        }
        None
    }

    fn plan(
        &mut self,
        name: &Name,
        at: &Range<usize>,
        raw: &RawPlan,
        all_sources: &Declared<Source>,
        repositories: &Declared<Repository>,
        notifiers: &Declared<Notifier>,
    ) -> Option<Plan> {
        let sources = self.sources_of(name, at, raw, all_sources);
        let repository = raw.repository.as_ref().and_then(|repository| self.refer("repository", repositories, repository));
        if raw.repository.is_none() {
            self.missing(at, format!("plan `{name}` needs `repository`"), "add repository = \"NAME\"");
        }
        let notify = match &raw.notify {
            None => notifiers.values().flatten().cloned().collect(),
            Some(names) => names.value.iter().filter_map(|name| self.refer("notifier", notifiers, name)).collect(),
        };
        let run_on = self.labels(&raw.run_on);
        let timezone = self.read(&raw.timezone, parse_timezone);
        let schedule = self.schedule(&raw.schedule, raw, timezone);
        let jitter = self.read(&raw.jitter, parse_duration).unwrap_or_default();
        let blackout = self.blackout(raw, timezone);
        let after = raw.after.iter().flat_map(|after| &after.value).filter_map(|name| Name::new(name.value.clone()).ok()).collect();
        let missed = match raw.missed.as_ref().map(|missed| missed.value) {
            None | Some(RawMissed::RunOnce) => Missed::RunOnce,
            Some(RawMissed::Skip) => Missed::Skip,
        };
        let retry = raw.retry.as_ref().map_or(DEFAULT_RETRY, |retry| Retry {
            attempts: retry.attempts.as_ref().map_or(DEFAULT_RETRY.attempts, |attempts| attempts.value),
            delay: self.read(&retry.delay, parse_duration).unwrap_or(DEFAULT_RETRY.delay),
        });
        let objectives = raw.objectives.as_ref().map_or_else(Objectives::default, |objectives| Objectives {
            data_loss: self.some_time(&objectives.data_loss),
            recovery_time: self.some_time(&objectives.recovery_time),
        });
        let keep = raw.keep.as_ref().map(|keep| self.keep(&keep.value, &keep.span)).unwrap_or_default();
        let tags = self.tags(&raw.tags);
        let drill = self.drill(raw, timezone, &sources, all_sources);
        let verify = self.verify(raw.verify.as_ref(), raw, timezone);
        let copies = self.copies(raw, timezone, repositories);
        let prune = Prune { schedule: raw.prune.as_ref().and_then(|prune| self.schedule(&prune.schedule, raw, timezone)) };
        let copied = copies.iter().flatten().filter_map(|copy| copy.schedule.as_ref());
        self.jitter(raw, jitter, [&schedule, &drill.schedule, &verify.schedule, &prune.schedule].into_iter().flatten().chain(copied));
        let sources = sources.into_iter().map(|source| source.1).collect::<Option<Vec<_>>>().filter(|sources| !sources.is_empty());
        Some(Plan {
            name: name.clone(),
            description: raw.description.as_ref().map(|text| text.value.clone()),
            sources: sources?,
            repository: repository?,
            notify,
            run_on,
            schedule,
            timezone,
            jitter,
            blackout: blackout.unwrap_or_default(),
            after,
            missed,
            retry,
            objectives,
            keep,
            tags,
            drill,
            verify,
            copy_schedule: Schedule::any_of(copies.iter().flatten().filter_map(|copy| copy.schedule.as_ref())),
            copies: copies?,
            prune,
        })
    }

    /// Further repositories; `None` when one of them is not valid.
    fn copies(&mut self, plan: &RawPlan, zone: Option<Tz>, repositories: &Declared<Repository>) -> Option<Vec<PlannedCopy>> {
        let mut copies = Some(Vec::new());
        let mut named: Vec<&str> = Vec::new();
        for Located { value: raw, span } in &plan.copy {
            let copy = self.copy(raw, span, plan, zone, repositories);
            if let Some(to) = &raw.to {
                if plan.repository.as_ref().is_some_and(|own| own.value == to.value) {
                    self.report(
                        &to.span,
                        "this is the plan's own repository",
                        "a copy needs a repository of its own, best with another vendor",
                    );
                }
                if named.contains(&to.value.as_str()) {
                    self.report(&to.span, format!("two copies go to repository `{}`", to.value), "keep one of them");
                }
                named.push(&to.value);
            }
            match (&mut copies, copy) {
                (Some(copies), Some(copy)) => copies.push(copy),
                _ => copies = None,
            }
        }
        copies
    }

    fn copy(
        &mut self,
        raw: &RawCopy,
        at: &Range<usize>,
        plan: &RawPlan,
        zone: Option<Tz>,
        repositories: &Declared<Repository>,
    ) -> Option<PlannedCopy> {
        if raw.to.is_none() {
            self.missing(at, "a copy needs `to`", "add to = \"NAME\", the name of a repository");
        }
        let schedule = self.schedule(&raw.schedule, plan, zone);
        let keep = raw.keep.as_ref().map(|keep| self.keep(&keep.value, &keep.span)).unwrap_or_default();
        let tags = self.tags(&raw.tags);
        let to = raw.to.as_ref().and_then(|to| self.refer("repository", repositories, to));
        Some(PlannedCopy { to: to?, schedule, keep, last: raw.last.as_ref().map(|last| last.value), tags })
    }

    /// The plan's sources as named, each with what it refers to where that is valid.
    fn sources_of(&mut self, name: &Name, at: &Range<usize>, raw: &RawPlan, all: &Declared<Source>) -> Vec<(String, Option<Arc<Source>>)> {
        let named: Vec<&Located<String>> = match (&raw.source, &raw.sources) {
            (Some(one), None) => vec![one],
            (None, Some(several)) => {
                if several.value.is_empty() {
                    self.missing(&several.span, "`sources` is empty", "name at least one source");
                }
                several.value.iter().collect()
            }
            (Some(one), Some(several)) => {
                self.report(
                    &several.span,
                    format!("plan `{name}` has both `source` and `sources`"),
                    "keep `sources` and put all names there",
                );
                std::iter::once(one).chain(&several.value).collect()
            }
            (None, None) => {
                self.missing(at, format!("plan `{name}` needs `source` or `sources`"), "add source = \"NAME\"");
                Vec::new()
            }
        };
        let mut found: Vec<(String, Option<Arc<Source>>)> = Vec::new();
        for source in named {
            if found.iter().any(|(known, _)| *known == source.value) {
                if raw.source.is_none() {
                    self.report(&source.span, format!("source `{}` is named twice", source.value), "name it once");
                }
                continue;
            }
            let referred = self.refer("source", all, source);
            found.push((source.value.clone(), referred));
        }
        found
    }

    fn schedule(&mut self, text: &Text, raw: &RawPlan, zone: Option<Tz>) -> Option<Schedule> {
        if let (Some(text), None) = (text, &raw.timezone) {
            self.missing(
                &text.span,
                "a schedule needs the plan's `timezone`",
                "add timezone = \"Asia/Shanghai\" (or your zone) to the plan",
            );
        }
        let key = (text.as_ref()?.value.clone(), zone.unwrap_or(Tz::UTC));
        if let Some(known) = self.schedules.get(&key) {
            return Some(known.clone());
        }
        let schedule = self.read(text, |text| Schedule::parse(text, key.1))?;
        self.schedules.insert(key, schedule.clone());
        Some(schedule)
    }

    /// A slot whose successor is due before it starts is given up for that one: with a jitter as long as the way between them, runs are lost.
    fn jitter<'s>(&mut self, raw: &RawPlan, jitter: Duration, schedules: impl Iterator<Item = &'s Schedule>) {
        let Some(written) = raw.jitter.as_ref().filter(|_| !jitter.is_zero()) else { return };
        for schedule in schedules {
            if let Some(shortest) = spacing::shortest(schedule, jitter) {
                let apart = format_duration(shortest);
                self.report(
                    &written.span,
                    format!(
                        "a jitter of {} is not shorter than the {apart} between two slots of schedule {:?}",
                        format_duration(jitter),
                        schedule.text()
                    ),
                    format!("a slot would still be waiting when the next one comes: write less than {apart}"),
                );
                return;
            }
        }
    }

    /// `None` where there is none, or an error was reported.
    fn blackout(&mut self, raw: &RawPlan, zone: Option<Tz>) -> Option<Blackout> {
        let jobs = raw.blackout_jobs.as_ref().map(|jobs| {
            for job in jobs.value.iter().filter(|job| !JOBS.contains(&job.value.as_str())) {
                self.report(&job.span, format!("unknown job `{}`", job.value), suggest(&job.value, "it may be", JOBS));
            }
            jobs.value.iter().map(|job| job.value.clone()).collect()
        });
        let Some(written) = &raw.blackout else {
            if let Some(jobs) = &raw.blackout_jobs {
                self.report(&jobs.span, "`blackout_jobs` without `blackout`", "add blackout = [\"mon-fri 08:00-18:00\"], or remove it");
            }
            return None;
        };
        if raw.timezone.is_none() {
            self.missing(
                &written.span,
                "a blackout needs the plan's `timezone`",
                "add timezone = \"Asia/Shanghai\" (or your zone) to the plan",
            );
        }
        let windows: Vec<Window> = written.value.iter().filter_map(|text| self.read(&Some(text.clone()), Window::parse)).collect();
        Blackout::new(windows, zone.unwrap_or(Tz::UTC), jobs).map_err(|error| self.fail(&written.span, &error)).ok()
    }

    /// `after` of the plans of the file at hand: each name is that of a plan, and no plan comes after itself.
    fn order(&mut self, raw: &'a Named<RawPlan>, all: &Declared<Plan>) {
        for (name, plan) in raw {
            for named in plan.after.iter().flat_map(|after| &after.value) {
                if self.refer("plan", all, named).is_none() {
                    continue;
                }
                if let Some(circle) = circle(&name.value, &named.value, all) {
                    let message = format!("plan `{}` would have to wait for itself: {}", name.value, circle.join(" after "));
                    self.report(&named.span, message, "take one of these names out of its `after`");
                }
            }
        }
    }

    /// Names that no plan has any more, and schedules (`plan/job`) and copies (`plan/copy/repository`) that a plan has no more.
    fn retired(&mut self, raw: &Words, plans: &Declared<Plan>, retired: &mut Retired) {
        for word in raw.iter().flat_map(|raw| &raw.value) {
            let (name, job) = word.value.split_once('/').map_or((word.value.as_str(), None), |(name, job)| (name, Some(job)));
            let name = match Name::new(name) {
                Ok(name) => name,
                Err(error) => {
                    self.fail(&word.span, &error);
                    continue;
                }
            };
            let Some(job) = job else {
                if plans.contains_key(&name) {
                    self.report(
                        &word.span,
                        format!("plan `{name}` is retired and declared"),
                        "take its name out of `retired`, or the plan out of the file",
                    );
                } else {
                    retired.plans.insert(name);
                }
                continue;
            };
            if let Some(to) = job.strip_prefix("copy/") {
                self.retired_copy(word, name, to, plans, retired);
                continue;
            }
            let Some(known) = JOBS.into_iter().find(|known| *known == job) else {
                self.report(&word.span, format!("unknown job `{job}`"), suggest(job, "it may be", JOBS));
                continue;
            };
            if plans.get(&name).and_then(Option::as_ref).is_some_and(|plan| plan.schedule_of(known).is_some()) {
                self.report(
                    &word.span,
                    format!("plan `{name}` has a schedule for {known}, which is retired"),
                    format!("take `{name}/{known}` out of `retired`, or the schedule out of the plan"),
                );
            } else {
                retired.schedules.insert((name, known));
            }
        }
    }

    fn retired_copy(&mut self, word: &Located<String>, name: Name, to: &str, plans: &Declared<Plan>, retired: &mut Retired) {
        let to = match Name::new(to) {
            Ok(to) => to,
            Err(error) => {
                self.fail(&word.span, &error);
                return;
            }
        };
        let scheduled = |plan: &Arc<Plan>| plan.copies.iter().any(|copy| copy.to.name == to && copy.schedule.is_some());
        if plans.get(&name).and_then(Option::as_ref).is_some_and(scheduled) {
            self.report(
                &word.span,
                format!("plan `{name}` has a schedule for its copy to {to}, which is retired"),
                format!("take `{}` out of `retired`, or the copy out of the plan", word.value),
            );
        } else {
            retired.copies.insert((name, to));
        }
    }

    fn keep(&mut self, raw: &RawKeep, at: &Range<usize>) -> Keep {
        let count = |count: &Option<Located<u32>>| count.as_ref().map_or(0, |count| count.value);
        let keep = Keep {
            last: count(&raw.last),
            hourly: count(&raw.hourly),
            daily: count(&raw.daily),
            weekly: count(&raw.weekly),
            monthly: count(&raw.monthly),
            yearly: count(&raw.yearly),
            within: self.some_time(&raw.within),
            tags: self.tags(&raw.tags),
            log: self.some_time(&raw.log),
        };
        if keep.is_everything() && raw.within.is_none() && raw.log.is_none() {
            self.missing(
                at,
                "`keep` without a rule would keep nothing",
                "name a rule such as daily = 14, or leave `keep` out to keep everything",
            );
        }
        keep
    }

    fn tags(&mut self, raw: &Words) -> Vec<String> {
        let mut tags: Vec<String> = Vec::new();
        for tag in raw.iter().flat_map(|raw| &raw.value) {
            if Name::new(tag.value.clone()).is_err() {
                self.report(
                    &tag.span,
                    "not a valid tag",
                    "a tag is 1 to 64 letters, digits, '_', '-' or '.', and starts with a letter or digit",
                );
            } else if !tags.contains(&tag.value) {
                tags.push(tag.value.clone());
            }
        }
        tags
    }

    fn drill(&mut self, plan: &RawPlan, zone: Option<Tz>, sources: &[(String, Option<Arc<Source>>)], all: &Declared<Source>) -> Drill {
        let nothing = RawDrill::default();
        let raw = plan.drill.as_ref().unwrap_or(&nothing);
        let mut checks: Vec<Check> = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        for check in &raw.check {
            if let Some(name) = &check.value.name {
                if names.contains(&name.value.as_str()) {
                    self.report(&name.span, format!("two checks are called {:?}", name.value), "give each its own name");
                }
                names.push(&name.value);
            }
            checks.extend(self.check(&check.value, &check.span, sources, all));
        }
        let limits = raw.limits.as_ref();
        Drill {
            schedule: self.schedule(&raw.schedule, plan, zone),
            at: match raw.at.as_ref().map(|at| at.value) {
                None | Some(RawDrillAt::Latest) => DrillAt::Latest,
                Some(RawDrillAt::Random) => DrillAt::Random,
            },
            window: self.some_time(&raw.window).unwrap_or(DEFAULT_WINDOW),
            compare: self.read(&raw.compare, Share::parse).unwrap_or(Share::ALL),
            keep_target_on_failure: self.read(&raw.keep_target_on_failure, parse_duration).unwrap_or_default(),
            time_limit: limits.and_then(|limits| self.some_time(&limits.time)),
            disk_limit_bytes: limits.and_then(|limits| self.read(&limits.disk, parse_size)),
            checks,
        }
    }

    fn check(
        &mut self,
        raw: &RawCheck,
        at: &Range<usize>,
        sources: &[(String, Option<Arc<Source>>)],
        all: &Declared<Source>,
    ) -> Option<Check> {
        for (key, given) in [("name", raw.name.is_some()), ("sql", raw.sql.is_some()), ("expect", raw.expect.is_some())] {
            if !given {
                self.missing(at, format!("a check needs `{key}`"), "a check has name, sql and expect");
            }
        }
        let (name, sql) = (self.non_empty(&raw.name), self.non_empty(&raw.sql));
        let expect = self.read(&raw.expect, Expectation::parse);
        let database = self.non_empty(&raw.database);
        let timeout = self.some_time(&raw.timeout).unwrap_or(DEFAULT_CHECK_TIMEOUT);
        let place = raw.source.as_ref().or(raw.sql.as_ref()).map_or(at, |text| &text.span);
        let asked = match (&raw.source, sources) {
            (Some(source), _) => {
                let found = sources.iter().find(|(name, _)| *name == source.value);
                if found.is_none() && !sources.is_empty() {
                    if all.contains_key(source.value.as_str()) {
                        self.report(
                            &source.span,
                            format!("source `{}` is not one of this plan", source.value),
                            "name one of the plan's sources",
                        );
                    } else {
                        self.report(
                            &source.span,
                            format!("unknown source `{}`", source.value),
                            suggest(&source.value, "the plan has", sources.iter().map(|(name, _)| name.as_str())),
                        );
                    }
                }
                found
            }
            (None, [only]) => Some(only),
            (None, []) => None,
            (None, _) => {
                self.missing(at, "a check needs `source` where the plan has several sources", "add source = \"NAME\"");
                None
            }
        };
        let source = asked?.1.clone()?;
        if !source.kind.answers_sql() {
            let message = format!("source `{}` is of kind {} and cannot answer SQL", source.name, source.kind.word());
            self.report(place, message, "ask a database source, or remove the check");
        }
        if let (SourceKind::Sqlite { .. }, Some(database)) = (&source.kind, &raw.database) {
            self.report(&database.span, "a sqlite source has one database", "remove `database`");
        }
        Some(Check { name: name?, sql: sql?, expect: expect?, database, source: source.name.clone(), timeout })
    }

    fn verify(&mut self, raw: Option<&RawVerify>, plan: &RawPlan, zone: Option<Tz>) -> Verify {
        let nothing = RawVerify::default();
        let raw = raw.unwrap_or(&nothing);
        let schedule = self.schedule(&raw.schedule, plan, zone);
        let data = self.read(&raw.data, Share::parse).or_else(|| Share::parse(DEFAULT_VERIFY_DATA).ok()).unwrap_or(Share::ALL);
        Verify { schedule, data }
    }
}

/// The way by which `plan`, which comes after `next`, comes after itself.
fn circle(plan: &str, next: &str, all: &Declared<Plan>) -> Option<Vec<String>> {
    let after = |name: &str| {
        let plan = all.get(name).and_then(|plan| plan.as_ref());
        plan.map(|plan| plan.after.clone()).unwrap_or_default()
    };
    let mut ways = vec![vec![plan.to_owned(), next.to_owned()]];
    let mut seen = std::collections::BTreeSet::from([next.to_owned()]);
    while let Some(way) = ways.pop() {
        let here = way.last().cloned().unwrap_or_default();
        if here == plan {
            return Some(way);
        }
        for name in after(&here) {
            if name.as_str() == plan || seen.insert(name.to_string()) {
                ways.push(way.iter().cloned().chain([name.to_string()]).collect());
            }
        }
    }
    None
}

fn variable_name(text: &str) -> Result<String> {
    if text.is_empty() || text.contains(['=', '\0', '$']) || text.contains(char::is_whitespace) {
        return Err(Error::new(Kind::Usage, "not a valid name of an environment variable")
            .hint("write the bare name, such as \"LIFEBOAT_PASSPHRASE\""));
    }
    Ok(text.to_owned())
}

/// Whether an environment variable of this name usually holds a secret, as `PGPASSWORD`, `MYSQL_PWD` and `API_KEY` do.
fn names_a_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let within = ["PASSWORD", "PASSWD", "PASSPHRASE", "SECRET", "TOKEN"];
    within.iter().any(|word| name.contains(word)) || name.ends_with("_KEY") || name.ends_with("_PWD")
}

/// The text is not repeated in errors: somebody may have put a password there.
fn parse_endpoint(text: &str, allow_http: bool) -> Result<Url> {
    let wrong = |why: &str| Error::new(Kind::Usage, format!("not a valid endpoint: {why}")).hint("write https://host or https://host:port");
    let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("it is neither http nor https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("it holds credentials").hint("use access_key and secret_key, or the environment"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("it has a query or a fragment"));
    }
    if url.scheme() == "http" && !allow_http && !is_loopback(&url) {
        return Err(Error::new(Kind::Usage, "the endpoint is plain http to another machine")
            .hint("use https, or accept that credentials pass unencrypted with allow_http = true"));
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}
