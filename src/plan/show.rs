//! A plan with everything resolved: what was left out is filled in, paths are whole, secrets stay references.
//!
//! Text and JSON come from one list of sections, so they cannot disagree.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::plan::explain::{lock_lapses, not_applied};
use crate::plan::model::{
    Address, Cache, Check, Drill, Environment, EnvironmentValue, Keep, Method, Notifier, NotifierKind, Occasion, Plan, PlannedCopy, Plans,
    Repository, Server, Source, SourceKind, Verify, WebhookForm,
};
use crate::plan::schedule::Schedule;
use crate::plan::secret::SecretRef;
use crate::plan::units::{format_duration, format_size};
use crate::source::postgres::fingerprint::Budget;

/// One table of the resolved settings, its keys in the order of the documentation. Keys without a value are left out.
struct Section {
    /// TOML path, such as `plan.crm.drill`.
    header: String,
    /// `[[header]]` instead of `[header]`.
    repeated: bool,
    entries: Vec<(&'static str, Value)>,
}

impl Section {
    fn new(header: String, entries: Vec<(&'static str, Value)>) -> Self {
        Self { header, repeated: false, entries: entries.into_iter().filter(|(_, value)| !value.is_null()).collect() }
    }

    fn object(&self) -> Map<String, Value> {
        self.entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
    }
}

/// The resolved settings of a plan as TOML: its repository, sources, notifiers and itself. No secret is in it.
#[must_use]
pub fn show_text(plan: &Plan) -> String {
    let mut sections = vec![repository_section(&plan.repository)];
    sections.extend(plan.copies.iter().map(|copy| repository_section(&copy.to)));
    sections.extend(plan.sources.iter().map(|source| source_section(source)));
    sections.push(plan_section(plan));
    sections.extend(plan_subsections(plan));
    sections.extend(plan.notify.iter().map(|notifier| notifier_section(notifier)));
    let mut text = "version = 1\n".to_owned();
    for what in not_applied(plan) {
        let _ = writeln!(text, "# {what}");
    }
    for section in sections {
        let (open, close) = if section.repeated { ("[[", "]]") } else { ("[", "]") };
        let _ = write!(text, "\n{open}{}{close}\n", section.header);
        for (key, value) in &section.entries {
            let _ = writeln!(text, "{key} = {}", toml_value(value));
        }
    }
    text
}

/// All settings that what is done with this source of a plan depends on, as TOML; for telling whether they changed.
#[must_use]
pub fn source_text(plan: &Plan, source: &Source) -> String {
    let sections = [repository_section(&plan.repository), source_section(source)];
    let lines = sections.iter().flat_map(|section| {
        let header = format!("[{}]", section.header);
        std::iter::once(header).chain(section.entries.iter().map(|(key, value)| format!("{key} = {}", toml_value(value))))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// `None` (left out) where it is empty.
fn some_list(list: Vec<String>) -> Value {
    if list.is_empty() { Value::Null } else { json!(list) }
}

/// `lifeboat.plan/1`: `name`, the keys of the plan file (durations and sizes in its spelling), `sources`, `repository` and `notify`
/// as whole objects with their `name`; `warnings`: what it asks for and will not get.
#[must_use]
pub fn show_json(plan: &Plan) -> Value {
    let named = |name: &str, section: &Section| {
        let mut object = section.object();
        object.insert("name".to_owned(), json!(name));
        Value::Object(object)
    };
    let mut object = plan_section(plan).object();
    object.remove("source");
    object.insert("schema".to_owned(), json!("lifeboat.plan/1"));
    object.insert("name".to_owned(), json!(plan.name.as_str()));
    object.insert("warnings".to_owned(), json!(not_applied(plan)));
    object.insert("repository".to_owned(), named(plan.repository.name.as_str(), &repository_section(&plan.repository)));
    let sources = plan.sources.iter().map(|source| named(source.name.as_str(), &source_section(source)));
    object.insert("sources".to_owned(), sources.collect());
    let notifiers = plan.notify.iter().map(|notifier| named(notifier.name.as_str(), &notifier_section(notifier)));
    object.insert("notify".to_owned(), notifiers.collect());
    let mut drill = drill_section(plan, &plan.drill).object();
    drill.insert("check".to_owned(), plan.drill.checks.iter().map(|check| Value::Object(check_section(plan, check).object())).collect());
    object.insert("drill".to_owned(), Value::Object(drill));
    object.insert("verify".to_owned(), Value::Object(verify_section(plan, &plan.verify).object()));
    object.insert("prune".to_owned(), Value::Object(prune_section(plan).object()));
    if plan.copies.is_empty() {
        return Value::Object(object);
    }
    object.insert("copy".to_owned(), plan.copies.iter().map(|copy| Value::Object(copy_section(plan, copy).object())).collect());
    Value::Object(object)
}

/// What `plan check` says of valid plans, for people.
#[must_use]
pub fn check_text(plans: &Plans) -> String {
    let mut text = String::new();
    let files = plans.files.len();
    let _ = writeln!(text, "{files} plan file{} valid", if files == 1 { " is" } else { "s are" });
    let mut list = |what: &str, names: Vec<&str>| {
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let _ = writeln!(text, "{what:<14}{names}");
    };
    list("plans", plans.plans.keys().map(crate::id::Name::as_str).collect());
    list("sources", plans.sources.keys().map(crate::id::Name::as_str).collect());
    list("repositories", plans.repositories.keys().map(crate::id::Name::as_str).collect());
    list("notifiers", plans.notifiers.keys().map(crate::id::Name::as_str).collect());
    for warning in warnings(plans) {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

/// What the plans ask for and will not get.
fn warnings(plans: &Plans) -> Vec<String> {
    let of_plans = plans.plans.values().flat_map(|plan| not_applied(plan).into_iter().map(|what| format!("plan {}: {what}", plan.name)));
    of_plans.chain(plans.repositories.values().filter_map(|repository| lock_lapses(plans, repository))).collect()
}

/// `lifeboat.plan-check/1`: `files`, `plans`, `sources`, `repositories`, `notifiers`, each a sorted list of names; `warnings`, sentences.
#[must_use]
pub fn check_json(plans: &Plans) -> Value {
    json!({
        "schema": "lifeboat.plan-check/1",
        "files": plans.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>(),
        "plans": plans.plans.keys().collect::<Vec<_>>(),
        "sources": plans.sources.keys().collect::<Vec<_>>(),
        "repositories": plans.repositories.keys().collect::<Vec<_>>(),
        "notifiers": plans.notifiers.keys().collect::<Vec<_>>(),
        "warnings": warnings(plans),
    })
}

fn duration(value: Duration) -> Value {
    json!(format_duration(value))
}

fn optional<T>(value: Option<T>, render: impl FnOnce(T) -> Value) -> Value {
    value.map_or(Value::Null, render)
}

fn schedule(value: Option<&Schedule>) -> Value {
    optional(value, |schedule| json!(schedule.text()))
}

/// A bare key where TOML allows one.
fn key(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { name.to_owned() } else { toml_value(&json!(name)) }
}

fn toml_value(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(toml_value).collect::<Vec<_>>().join(", ")),
        Value::Object(object) if object.is_empty() => "{}".to_owned(),
        Value::Object(object) => {
            format!(
                "{{ {} }}",
                object.iter().map(|(name, value)| format!("{} = {}", key(name), toml_value(value))).collect::<Vec<_>>().join(", ")
            )
        }
        Value::String(text) => toml::Value::String(text.clone()).to_string(),
        other => other.to_string(),
    }
}

fn repository_section(repository: &Repository) -> Section {
    let rate = |bytes: u64| json!(format!("{}/s", format_size(bytes)));
    let credentials = repository.credentials.as_ref();
    Section::new(
        format!("repository.{}", key(repository.name.as_str())),
        vec![
            ("url", json!(repository.url.as_str())),
            ("endpoint", optional(repository.endpoint.as_ref(), |endpoint| json!(endpoint.as_str()))),
            ("region", optional(repository.region.as_deref(), |region| json!(region))),
            ("path_style", if repository.url.scheme() == crate::plan::Scheme::S3 { json!(repository.path_style) } else { Value::Null }),
            ("access_key", optional(credentials, |keys| keys.access_key.to_json())),
            ("secret_key", optional(credentials, |keys| keys.secret_key.to_json())),
            ("session_token", optional(credentials.and_then(|keys| keys.session_token.as_ref()), SecretRef::to_json)),
            ("allow_http", if repository.allow_http { json!(true) } else { Value::Null }),
            ("passphrase", repository.passphrase.to_json()),
            ("max_key_age", optional(repository.max_key_age, duration)),
            ("single_writer", json!(repository.single_writer)),
            ("upload_limit", optional(repository.upload_limit_bytes_per_sec, rate)),
            ("download_limit", optional(repository.download_limit_bytes_per_sec, rate)),
            ("max_requests", json!(repository.max_requests.get())),
            ("max_runs", json!(repository.max_runs.map(std::num::NonZeroU16::get))),
            (
                "object_lock",
                optional(repository.object_lock, |lock| {
                    let [retain, snapshots, logs] = [lock.retain, lock.snapshots, lock.logs].map(format_duration);
                    json!({ "mode": lock.mode.word(), "retain": retain, "snapshots": snapshots, "logs": logs })
                }),
            ),
            (
                "cache",
                match &repository.cache {
                    Cache::Default => json!(true),
                    Cache::Off => json!(false),
                    Cache::Folder(folder) => json!(folder.display().to_string()),
                },
            ),
        ],
    )
}

fn budget(budget: Budget) -> String {
    match budget {
        Budget::Share => "auto".into(),
        Budget::Bytes(bytes) => format_size(bytes),
        Budget::All => "all".into(),
    }
}

fn environment_value(environment: &Environment) -> Value {
    if environment.is_empty() {
        return Value::Null;
    }
    let value = |value: &EnvironmentValue| match value {
        EnvironmentValue::Plain(text) => json!(text),
        EnvironmentValue::Secret(reference) => reference.to_json(),
    };
    Value::Object(environment.iter().map(|(name, entry)| (name.clone(), value(entry))).collect())
}

fn source_section(source: &Source) -> Section {
    let path = |path: &std::path::Path| json!(path.display().to_string());
    let server = |server: &Server| {
        vec![
            ("url", server.url.to_json()),
            ("data_directory", optional(server.data_directory.as_deref(), path)),
            ("method", json!(server.method.word())),
            ("bin_directory", optional(server.bin_directory.as_deref(), path)),
            // A key of those that read a folder.
            ("read_unchanged", optional(server.data_directory.as_deref(), |_| json!(server.read_unchanged))),
            ("read_limit", optional(server.read_limit_bytes_per_sec, |bytes| json!(format!("{}/s", format_size(bytes))))),
        ]
    };
    let mut entries = vec![("kind", json!(source.kind.word()))];
    entries.extend(match &source.kind {
        SourceKind::Sqlite { path: file } => vec![("path", path(file))],
        SourceKind::Files { path: folder, exclude, page_size } => {
            vec![("path", path(folder)), ("exclude", json!(exclude)), ("page_size", optional(*page_size, |size| json!(size)))]
        }
        SourceKind::Command { dump, restore, environment } => vec![
            ("dump", json!(dump)),
            ("restore", optional(restore.as_ref(), |restore| json!(restore))),
            ("environment", environment_value(environment)),
        ],
        SourceKind::Postgres(settings) => {
            let mut entries = server(settings);
            if settings.method == Method::Physical {
                entries.push(("damaged_pages", json!(settings.damaged_pages.word())));
                entries.push(("fingerprints", json!(budget(settings.fingerprint_budget))));
            }
            entries.push(("log", json!(settings.log.word())));
            entries.push(("canary", optional(settings.canary, |every| json!(format_duration(every)))));
            if !settings.databases.is_empty() {
                entries.push(("databases", json!(settings.databases)));
            }
            entries
        }
        SourceKind::Mysql(settings) => server(settings),
    });
    Section::new(format!("source.{}", key(source.name.as_str())), entries)
}

fn notifier_section(notifier: &Notifier) -> Section {
    let path = |path: &std::path::Path| json!(path.display().to_string());
    let address = |address: &Address| {
        vec![
            ("url", address.url.to_json()),
            ("headers", environment_value(&address.headers)),
            ("allow_http", if address.allow_http { json!(true) } else { Value::Null }),
            ("ca_file", optional(address.ca_file.as_deref(), path)),
        ]
    };
    let mut entries = vec![("kind", json!(notifier.kind.word()))];
    entries.extend(match &notifier.kind {
        NotifierKind::Webhook { address: to, form } => {
            let mut entries = address(to);
            entries.push(("format", optional(form.word(), |word| json!(word))));
            entries.push(("secret", optional(form.secret(), SecretRef::to_json)));
            entries.push(("template", if let WebhookForm::Template(text) = form { json!(text) } else { Value::Null }));
            entries
        }
        NotifierKind::Heartbeat { address: to, style, jobs, every } => {
            let mut entries = address(to);
            entries.push(("style", json!(style.word())));
            entries.push(("jobs", if every.is_none() { json!(jobs) } else { Value::Null }));
            entries.push(("every", optional(*every, duration)));
            entries
        }
        NotifierKind::Email { server, from, to, credentials, ca_file } => vec![
            ("server", json!(server.as_str())),
            ("from", json!(from)),
            ("to", json!(to)),
            ("username", optional(credentials.as_ref(), |(username, _)| json!(username))),
            ("password", optional(credentials.as_ref(), |(_, password)| password.to_json())),
            ("ca_file", optional(ca_file.as_deref(), path)),
        ],
        NotifierKind::Command { run, environment } => vec![("run", json!(run)), ("environment", environment_value(environment))],
    });
    entries.push(("on", notifier.on.iter().map(|on| Occasion::word(*on)).collect()));
    entries.push(("timeout", duration(notifier.timeout)));
    if !matches!(notifier.kind, NotifierKind::Heartbeat { .. }) {
        entries.push(("remind", duration(notifier.remind.unwrap_or_default())));
    }
    entries.push(("escalate", optional(notifier.escalate.as_ref(), |name| json!(name.as_str()))));
    entries.push(("escalate_after", duration(notifier.escalate_after)));
    Section::new(format!("notify.{}", key(notifier.name.as_str())), entries)
}

fn plan_section(plan: &Plan) -> Section {
    let names = plan.sources.iter().map(|source| source.name.as_str()).collect::<Vec<_>>();
    let (one, several) = if let [one] = names.as_slice() { (json!(one), Value::Null) } else { (Value::Null, json!(names)) };
    let objectives = [("data_loss", plan.objectives.data_loss), ("recovery_time", plan.objectives.recovery_time)];
    let objectives = objectives.into_iter().filter_map(|(name, limit)| Some((name.to_owned(), duration(limit?)))).collect::<Map<_, _>>();
    Section::new(
        format!("plan.{}", key(plan.name.as_str())),
        vec![
            ("description", optional(plan.description.as_deref(), |text| json!(text))),
            ("source", one),
            ("sources", several),
            ("repository", json!(plan.repository.name.as_str())),
            ("run_on", if plan.run_on.is_empty() { Value::Null } else { json!(plan.run_on) }),
            ("schedule", schedule(plan.schedule.as_ref())),
            ("timezone", optional(plan.timezone, |zone| json!(zone.name()))),
            ("jitter", duration(plan.jitter)),
            ("blackout", some_list(plan.blackout.windows().iter().map(ToString::to_string).collect())),
            ("blackout_jobs", some_list(if plan.blackout.windows().is_empty() { Vec::new() } else { plan.blackout.jobs().to_vec() })),
            ("after", some_list(plan.after.iter().map(ToString::to_string).collect())),
            ("missed", json!(plan.missed.word())),
            ("retry", json!({ "attempts": plan.retry.attempts, "delay": format_duration(plan.retry.delay) })),
            ("objectives", if objectives.is_empty() { Value::Null } else { Value::Object(objectives) }),
            ("keep", keep_value(&plan.keep)),
            ("tags", if plan.tags.is_empty() { Value::Null } else { json!(plan.tags) }),
            ("notify", plan.notify.iter().map(|notifier| notifier.name.as_str()).collect()),
        ],
    )
}

/// Null for "everything".
fn keep_value(keep: &Keep) -> Value {
    let counts = [
        ("last", keep.last),
        ("hourly", keep.hourly),
        ("daily", keep.daily),
        ("weekly", keep.weekly),
        ("monthly", keep.monthly),
        ("yearly", keep.yearly),
    ];
    let mut rules =
        counts.into_iter().filter(|(_, count)| *count > 0).map(|(name, count)| (name.to_owned(), json!(count))).collect::<Map<_, _>>();
    rules.extend(keep.within.map(|within| ("within".to_owned(), duration(within))));
    if !keep.tags.is_empty() {
        rules.insert("tags".to_owned(), json!(keep.tags));
    }
    rules.extend(keep.log.map(|log| ("log".to_owned(), duration(log))));
    if rules.is_empty() { Value::Null } else { Value::Object(rules) }
}

fn plan_subsections(plan: &Plan) -> Vec<Section> {
    let mut sections = vec![drill_section(plan, &plan.drill)];
    sections.extend(plan.drill.checks.iter().map(|check| check_section(plan, check)));
    sections.push(verify_section(plan, &plan.verify));
    sections.push(prune_section(plan));
    sections.extend(plan.copies.iter().map(|copy| copy_section(plan, copy)));
    sections
}

fn copy_section(plan: &Plan, copy: &PlannedCopy) -> Section {
    let entries = vec![
        ("to", json!(copy.to.name.as_str())),
        ("schedule", schedule(copy.schedule.as_ref())),
        ("keep", keep_value(&copy.keep)),
        ("last", json!(copy.last)),
        ("tags", if copy.tags.is_empty() { Value::Null } else { json!(copy.tags) }),
    ];
    Section { repeated: true, ..Section::new(format!("plan.{}.copy", key(plan.name.as_str())), entries) }
}

fn drill_section(plan: &Plan, drill: &Drill) -> Section {
    let limits = [("time", drill.time_limit.map(duration)), ("disk", drill.disk_limit_bytes.map(|bytes| json!(format_size(bytes))))];
    let limits = limits.into_iter().filter_map(|(name, limit)| Some((name.to_owned(), limit?))).collect::<Map<_, _>>();
    Section::new(
        format!("plan.{}.drill", key(plan.name.as_str())),
        vec![
            ("schedule", schedule(drill.schedule.as_ref())),
            ("at", json!(drill.at.word())),
            ("window", duration(drill.window)),
            ("compare", json!(drill.compare.to_string())),
            ("keep_target_on_failure", duration(drill.keep_target_on_failure)),
            ("limits", if limits.is_empty() { Value::Null } else { Value::Object(limits) }),
        ],
    )
}

fn check_section(plan: &Plan, check: &Check) -> Section {
    let entries = vec![
        ("name", json!(check.name)),
        ("source", json!(check.source.as_str())),
        ("database", optional(check.database.as_deref(), |database| json!(database))),
        ("sql", json!(check.sql)),
        ("expect", json!(check.expect.to_string())),
        ("timeout", duration(check.timeout)),
    ];
    Section { repeated: true, ..Section::new(format!("plan.{}.drill.check", key(plan.name.as_str())), entries) }
}

fn prune_section(plan: &Plan) -> Section {
    Section::new(format!("plan.{}.prune", key(plan.name.as_str())), vec![("schedule", schedule(plan.prune.schedule.as_ref()))])
}

fn verify_section(plan: &Plan, verify: &Verify) -> Section {
    let entries = vec![("schedule", schedule(verify.schedule.as_ref())), ("data", json!(verify.data.to_string()))];
    Section::new(format!("plan.{}.verify", key(plan.name.as_str())), entries)
}
