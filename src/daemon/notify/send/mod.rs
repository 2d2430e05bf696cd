//! One delivery: what goes out, and what came back, without the address and the secrets of the target in any text.
//!
//! Every delivery ends within the notifier's time limit. Success is what the target itself says: a 2xx that its body does not deny, a mail
//! server's acceptance, exit 0.

mod command;
pub(in crate::daemon::notify) mod email;
mod http;
mod sign;

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::runtime::Handle;
use url::Url;
use zeroize::Zeroizing;

use crate::daemon::notify::event::{Event, Notice, one_line, shortened};
use crate::error::{Error, Kind, Result};
use crate::plan::{Address, EnvironmentValue, HeartbeatStyle, Notifier, NotifierKind, SecretRef, WebhookForm};

/// What is delivered.
#[derive(Debug, Clone)]
pub enum Parcel<'a> {
    Notice(&'a Notice),
    /// A ping of a heartbeat for one event.
    Ping(&'a Event),
    /// A ping that the daemon lives, or why it does not watch.
    Alive(Option<&'a str>),
}

/// Delivers. What the target said, in a few words.
///
/// # Errors
/// `Usage`: the address, a secret or a template cannot be used; `Unavailable`: it may pass; `Failed`: the target does not want it.
pub fn deliver(notifier: &Notifier, parcel: &Parcel<'_>, runtime: &Handle, now: DateTime<Utc>) -> Result<String> {
    match (&notifier.kind, parcel) {
        (NotifierKind::Webhook { address, form }, Parcel::Notice(notice)) => webhook(address, form, notice, notifier.timeout, runtime, now),
        (NotifierKind::Email { .. }, Parcel::Notice(notice)) => within(notifier, runtime, email::send(notifier, notice)),
        (NotifierKind::Command { run, environment }, Parcel::Notice(notice)) => command::run(run, environment, notice, notifier.timeout),
        (NotifierKind::Heartbeat { address, style, .. }, parcel) => heartbeat(address, *style, parcel, notifier.timeout, runtime),
        (_, Parcel::Ping(_) | Parcel::Alive(_)) => Err(Error::new(Kind::Bug, "only a heartbeat is pinged")),
    }
}

fn webhook(
    address: &Address,
    form: &WebhookForm,
    notice: &Notice,
    timeout: Duration,
    runtime: &Handle,
    now: DateTime<Utc>,
) -> Result<String> {
    let mut target = Target::of(address, &|text| text.to_owned())?;
    let mut body = crate::daemon::notify::message::body(form, notice)?;
    match form {
        WebhookForm::DingTalk(Some(secret)) => {
            let secret = target.secret(secret)?;
            let (time, query) = (now.timestamp_millis(), sign::dingtalk(&secret, now.timestamp_millis()));
            target.url.query_pairs_mut().append_pair("timestamp", &time.to_string()).append_pair("sign", &query);
        }
        WebhookForm::Feishu(Some(secret)) => {
            let secret = target.secret(secret)?;
            let signature = sign::feishu(&secret, now.timestamp());
            let mut value: serde_json::Value =
                serde_json::from_str(&body).map_err(|error| Error::new(Kind::Bug, "sign a message").because(error))?;
            value["timestamp"] = now.timestamp().to_string().into();
            value["sign"] = signature.into();
            body = value.to_string();
        }
        _ => {}
    }
    let json = Some(("application/json; charset=utf-8", body));
    let (status, answer) = http::request(&target, json, timeout, runtime)?;
    crate::daemon::notify::message::accepted(form, &answer).map_err(|error| {
        let text = target.redacted(&error.to_string());
        Error::new(error.kind(), text).hint("see the robot's security settings: keyword, signature, allowed addresses")
    })?;
    Ok(format!("HTTP {status}"))
}

fn heartbeat(address: &Address, style: HeartbeatStyle, parcel: &Parcel<'_>, timeout: Duration, runtime: &Handle) -> Result<String> {
    let (plan, job, run, message, end) = match parcel {
        Parcel::Ping(event) => {
            let end = match event.occasion.as_str() {
                "start" => Some("start"),
                "success" => None,
                // A test says that it is one, and is no success of anything.
                "test" => Some("log"),
                _ => Some("fail"),
            };
            (event.plan.clone(), event.job.clone(), event.run.clone(), event.line(), end)
        }
        Parcel::Alive(trouble) => (None, None, None, trouble.unwrap_or("the daemon watches").to_owned(), trouble.map(|_| "fail")),
        Parcel::Notice(notice) => (None, None, None, notice.title.clone(), Some("log")),
    };
    if style == HeartbeatStyle::Plain && end.is_some() {
        if end == Some("log") {
            return Err(Error::new(Kind::Usage, "a plain heartbeat cannot be tested: any ping says that all is well")
                .hint("run a backup with `lifeboat serve` running, and look at the monitor"));
        }
        return Err(Error::new(Kind::Bug, "a plain heartbeat hears of success only"));
    }
    let fill =
        |text: &str| text.replace("{plan}", plan.as_deref().unwrap_or("lifeboat")).replace("{job}", job.as_deref().unwrap_or("serve"));
    let mut target = Target::of(address, &fill)?;
    let mut body = None;
    if style == HeartbeatStyle::Healthchecks {
        if let Some(end) = end {
            let path = format!("{}/{end}", target.url.path().trim_end_matches('/'));
            target.url.set_path(&path);
        }
        // The run's id as a UUID, which pairs a start with its end.
        if let Some(run) = run.and_then(|run| ulid::Ulid::from_string(&run.to_ascii_uppercase()).ok()) {
            let hex = format!("{:032x}", u128::from(run));
            let uuid = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
            target.url.query_pairs_mut().append_pair("rid", &uuid);
        }
        body = Some(("text/plain; charset=utf-8", shortened(&one_line(&message), 1000)));
    }
    let (status, _) = http::request(&target, body, timeout, runtime)?;
    Ok(format!("HTTP {status}"))
}

/// An address with everything that is secret about it.
struct Target {
    url: Url,
    headers: Vec<(String, Zeroizing<String>)>,
    ca_file: Option<std::path::PathBuf>,
    secrets: Vec<Zeroizing<String>>,
}

impl Target {
    /// `fill`: what becomes of the address before it is read.
    fn of(address: &Address, fill: &dyn Fn(&str) -> String) -> Result<Self> {
        let text = address.url.resolve()?;
        // The parser's own errors name no part of the text.
        let url = Url::parse(fill(text.expose()).trim()).map_err(|error| {
            Error::new(Kind::Usage, format!("the address in {} is no URL: {error}", address.url))
                .hint("write the whole https://… address there")
        })?;
        let host = url.host().ok_or_else(|| Error::new(Kind::Usage, format!("the address in {} names no host", address.url)))?;
        let local = match host {
            url::Host::Domain(name) => name == "localhost",
            url::Host::Ipv4(ip) => ip.is_loopback(),
            url::Host::Ipv6(ip) => ip.is_loopback(),
        };
        match url.scheme() {
            "https" => {}
            "http" if local || address.allow_http => {}
            "http" => {
                return Err(Error::new(
                    Kind::Usage,
                    format!("the address in {} is plain http: whoever listens could read it", address.url),
                )
                .hint("use https, or say allow_http = true in the plan file"));
            }
            _ => return Err(Error::new(Kind::Usage, format!("the address in {} is neither http nor https", address.url))),
        }
        let mut secrets: Vec<Zeroizing<String>> = Vec::new();
        let mut keep = |part: &str| {
            if part.len() >= 6 {
                secrets.push(Zeroizing::new(part.to_owned()));
            }
        };
        keep(text.expose());
        keep(url.path());
        url.path_segments().into_iter().flatten().for_each(&mut keep);
        url.query_pairs().for_each(|(_, value)| keep(&value));
        url.query().into_iter().for_each(&mut keep);
        keep(url.username());
        url.password().into_iter().for_each(&mut keep);
        let mut target = Self { url, headers: Vec::new(), ca_file: address.ca_file.clone(), secrets };
        for (name, value) in &address.headers {
            let value = match value {
                EnvironmentValue::Plain(text) => Zeroizing::new(text.clone()),
                EnvironmentValue::Secret(reference) => target.secret(reference)?,
            };
            target.headers.push((name.clone(), value));
        }
        Ok(target)
    }

    fn secret(&mut self, reference: &SecretRef) -> Result<Zeroizing<String>> {
        let secret = Zeroizing::new(reference.resolve()?.expose().to_owned());
        self.secrets.push(secret.clone());
        Ok(secret)
    }

    /// A text of the target without what is secret about it, on one line and short.
    fn redacted(&self, text: &str) -> String {
        let mut secrets: Vec<&str> = self.secrets.iter().map(|secret| secret.as_str()).filter(|secret| !secret.is_empty()).collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        let clean = secrets.into_iter().fold(text.to_owned(), |text, secret| text.replace(secret, "***"));
        shortened(one_line(&clean).trim(), 200)
    }

    /// The host and port, which are not secret.
    fn host(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        self.url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }
}

/// Runs a delivery to its end, or to the notifier's limit.
fn within(notifier: &Notifier, runtime: &Handle, work: impl Future<Output = Result<String>>) -> Result<String> {
    runtime.block_on(async { tokio::time::timeout(notifier.timeout, work).await }).unwrap_or_else(|_| Err(too_slow(notifier.timeout)))
}

fn too_slow(timeout: Duration) -> Error {
    Error::new(Kind::Unavailable, format!("no answer within {} s", timeout.as_secs_f32()))
}
