//! Notifiers.

use std::ops::Range;
use std::time::Duration;

use url::Url;

use crate::error::{Error, Kind, Result};
use crate::id::Name;
use crate::plan::model::{Address, Environment, EnvironmentValue, HeartbeatStyle, Notifier, NotifierKind, Occasion, WebhookForm};
use crate::plan::raw::{
    Located, NOTIFIER_KEYS, Named, RawEnvironmentValue, RawHeartbeatJob, RawHeartbeatStyle, RawNotifier, RawNotifierKind, RawOccasion,
    RawWebhookFormat,
};
use crate::plan::structure::SECRET_HINT;
use crate::plan::units::parse_duration;
use crate::plan::validate::{Checker, Declared, names_a_secret};

const DEFAULT_DELIVERY: Duration = Duration::from_secs(20);
const DEFAULT_REMIND: Duration = Duration::from_hours(24);
const DEFAULT_ESCALATE_AFTER: Duration = Duration::from_mins(15);

impl Checker<'_> {
    pub(super) fn notifier(&mut self, name: &Name, at: &Range<usize>, raw: &RawNotifier) -> Option<Notifier> {
        let Some(kind) = &raw.kind else {
            self.missing(at, format!("notifier `{name}` needs `kind`"), "add kind = \"webhook\", \"email\", \"command\" or \"heartbeat\"");
            return None;
        };
        // A person is not told what goes as it should.
        let (word, default_on) = match kind.value {
            RawNotifierKind::Webhook => ("webhook", &Occasion::ALL[2..]),
            RawNotifierKind::Email => ("email", &Occasion::ALL[2..]),
            RawNotifierKind::Command => ("command", &Occasion::ALL[2..]),
            RawNotifierKind::Heartbeat => ("heartbeat", &Occasion::ALL[..]),
        };
        self.keys_of_kind("notifier", at, word, &raw.given(), &NOTIFIER_KEYS);
        let mut on = raw.on.as_ref().map_or_else(|| default_on.to_vec(), |on| on.value.iter().map(|on| occasion(on.value)).collect());
        on.sort_unstable();
        on.dedup();
        if let (true, Some(given)) = (on.is_empty(), &raw.on) {
            self.missing(&given.span, "this notifier would never be told anything", "name at least one occasion, or leave `on` out");
        }
        let timeout = self.some_time(&raw.timeout).unwrap_or(DEFAULT_DELIVERY);
        let remind = self.read(&raw.remind, parse_duration).unwrap_or(DEFAULT_REMIND);
        let escalate_after = self.some_time(&raw.escalate_after).unwrap_or(DEFAULT_ESCALATE_AFTER);
        // Whether it is there is asked when all are known.
        let escalate = raw.escalate.as_ref().and_then(|other| Name::new(&other.value).ok());
        let kind = match kind.value {
            RawNotifierKind::Webhook => {
                let (address, form) = (self.address(raw), self.webhook_form(raw));
                NotifierKind::Webhook { address: address?, form: form? }
            }
            RawNotifierKind::Heartbeat => self.heartbeat(raw)?,
            RawNotifierKind::Command => {
                let environment = self.environment(raw.environment.as_ref());
                NotifierKind::Command { run: self.words(&raw.run)?, environment }
            }
            RawNotifierKind::Email => self.email(raw)?,
        };
        let remind = Some(remind).filter(|remind| !remind.is_zero());
        Some(Notifier { name: name.clone(), kind, on, timeout, remind, escalate, escalate_after })
    }

    fn email(&mut self, raw: &RawNotifier) -> Option<NotifierKind> {
        let server = self.read(&raw.server, parse_mail_server);
        let from = self.read(&raw.from, mail_address);
        let to = raw.to.as_ref().map(|to| {
            if to.value.is_empty() {
                self.missing(&to.span, "this e-mail has no recipient", "name at least one address");
            }
            to.value.iter().filter_map(|address| self.read(&Some(address.clone()), mail_address)).collect()
        });
        let (username, password) = (self.non_empty(&raw.username), self.secret(raw.password.as_ref()));
        match (&raw.username, &raw.password) {
            (Some(user), None) => self.missing(&user.span, "`username` without `password`", "add password = { file = \"…\" }"),
            (None, Some(password)) => self.missing(&password.span, "`password` without `username`", "add username = \"…\""),
            _ => {}
        }
        let ca_file = self.path(&raw.ca_file);
        Some(NotifierKind::Email { server: server?, from: from?, to: to?, credentials: username.zip(password), ca_file })
    }

    fn address(&mut self, raw: &RawNotifier) -> Option<Address> {
        let url = self.secret(raw.url.as_ref());
        let (headers, ca_file) = (self.headers(raw.headers.as_ref()), self.path(&raw.ca_file));
        Some(Address { url: url?, headers, allow_http: raw.allow_http.as_ref().is_some_and(|allow| allow.value), ca_file })
    }

    fn headers(&mut self, raw: Option<&Located<Named<Located<RawEnvironmentValue>>>>) -> Environment {
        let mut headers = Environment::new();
        for (key, value) in raw.into_iter().flat_map(|raw| &raw.value) {
            let Some(name) = self.read(&Some(key.clone()), header_name) else { continue };
            let value_of = match &value.value {
                RawEnvironmentValue::Plain(_)
                    if name == "authorization" || names_a_secret(&name.to_ascii_uppercase().replace('-', "_")) =>
                {
                    let finding =
                        self.finding(&value.span, format!("the header `{name}` is a secret, and a secret never stands in a plan file"));
                    self.findings.push(finding.hint(SECRET_HINT).masked());
                    None
                }
                RawEnvironmentValue::Plain(text) if text.is_ascii() && !text.contains(|c: char| c.is_control()) => {
                    Some(EnvironmentValue::Plain(text.clone()))
                }
                RawEnvironmentValue::Plain(_) => {
                    self.report(&value.span, "the value of a header is printable ASCII", "write it on one line");
                    None
                }
                RawEnvironmentValue::Secret(secret) => self.secret_at(secret, &value.span).map(EnvironmentValue::Secret),
            };
            headers.extend(value_of.map(|value| (name, value)));
        }
        headers
    }

    fn webhook_form(&mut self, raw: &RawNotifier) -> Option<WebhookForm> {
        let secret = self.secret(raw.secret.as_ref());
        let format = raw.format.as_ref().map(|format| format.value);
        if let (Some(template), Some(_)) = (&raw.template, &raw.format) {
            self.report(&template.span, "this webhook has both `format` and `template`", "keep one of them");
        }
        if let (Some(at), false) = (&raw.secret, matches!(format, Some(RawWebhookFormat::DingTalk | RawWebhookFormat::Feishu))) {
            self.report(&at.span, "only the formats dingtalk and feishu are signed", "remove `secret`, or put a token into `headers`");
        }
        if let Some(template) = &raw.template {
            return self.read(&Some(template.clone()), json_template).map(WebhookForm::Template);
        }
        Some(match format.unwrap_or(RawWebhookFormat::Generic) {
            RawWebhookFormat::Generic => WebhookForm::Generic,
            RawWebhookFormat::Slack => WebhookForm::Slack,
            RawWebhookFormat::DingTalk => WebhookForm::DingTalk(secret),
            RawWebhookFormat::WeCom => WebhookForm::WeCom,
            RawWebhookFormat::Feishu => WebhookForm::Feishu(secret),
        })
    }

    fn heartbeat(&mut self, raw: &RawNotifier) -> Option<NotifierKind> {
        let address = self.address(raw);
        let style = match raw.style.as_ref().map(|style| style.value) {
            None | Some(RawHeartbeatStyle::Healthchecks) => HeartbeatStyle::Healthchecks,
            Some(RawHeartbeatStyle::Plain) => HeartbeatStyle::Plain,
        };
        let every = self.some_time(&raw.every);
        if let (Some(jobs), Some(_)) = (&raw.jobs, &raw.every) {
            self.report(
                &jobs.span,
                "this heartbeat has both `jobs` and `every`",
                "with `every` it tells that the daemon lives, and nothing of runs",
            );
        }
        let mut jobs: Vec<RawHeartbeatJob> = raw.jobs.as_ref().map_or_else(
            || vec![RawHeartbeatJob::Backup],
            |jobs| {
                if jobs.value.is_empty() {
                    self.missing(&jobs.span, "this heartbeat would hear of no run", "name at least one job, or leave `jobs` out");
                }
                jobs.value.iter().map(|job| job.value).collect()
            },
        );
        jobs.sort_unstable();
        jobs.dedup();
        let word = |job: &RawHeartbeatJob| match job {
            RawHeartbeatJob::Backup => "backup",
            RawHeartbeatJob::Drill => "drill",
            RawHeartbeatJob::Verify => "verify",
            RawHeartbeatJob::Prune => "prune",
            RawHeartbeatJob::Copy => "copy",
        };
        Some(NotifierKind::Heartbeat { address: address?, style, jobs: jobs.iter().map(word).collect(), every })
    }

    /// Whom the notifiers of the file at hand hand over to.
    pub(super) fn escalations(&mut self, raw: &Named<RawNotifier>, notifiers: &Declared<Notifier>) {
        for (name, notifier) in raw {
            let Some(other) = &notifier.escalate else { continue };
            if other.value == name.value {
                self.report(&other.span, format!("notifier `{}` cannot stand in for itself", name.value), "name another notifier");
            } else if let Some(found) = self.refer("notifier", notifiers, other)
                && matches!(found.kind, NotifierKind::Heartbeat { .. })
            {
                self.report(&other.span, "a heartbeat cannot say what is wrong", "name a webhook, an e-mail or a command");
            }
        }
    }
}

fn occasion(raw: RawOccasion) -> Occasion {
    match raw {
        RawOccasion::Start => Occasion::Start,
        RawOccasion::Success => Occasion::Success,
        RawOccasion::Failure => Occasion::Failure,
        RawOccasion::Incomplete => Occasion::Incomplete,
        RawOccasion::Recovered => Occasion::Recovered,
        RawOccasion::ObjectiveMissed => Occasion::ObjectiveMissed,
        RawOccasion::ObjectiveAtRisk => Occasion::ObjectiveAtRisk,
        RawOccasion::DrillFailed => Occasion::DrillFailed,
        RawOccasion::Damaged => Occasion::Damaged,
        RawOccasion::NeverProven => Occasion::NeverProven,
        RawOccasion::Overdue => Occasion::Overdue,
        RawOccasion::LogGap => Occasion::LogGap,
        RawOccasion::LogNotStreamed => Occasion::LogNotStreamed,
        RawOccasion::RetentionBlocked => Occasion::RetentionBlocked,
        RawOccasion::PlansBroken => Occasion::PlansBroken,
        RawOccasion::Expiring => Occasion::Expiring,
        RawOccasion::NotifierFailing => Occasion::NotifierFailing,
    }
}

fn header_name(text: &str) -> Result<String> {
    let valid = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
    let name = text.to_ascii_lowercase();
    if !valid {
        return Err(Error::new(Kind::Usage, format!("not a valid name of a header: {text:?}")));
    }
    if ["host", "content-length", "content-type", "transfer-encoding", "connection"].contains(&name.as_str()) {
        return Err(Error::new(Kind::Usage, format!("the header {name} is set by lifeboat itself")).hint("remove it"));
    }
    Ok(name)
}

/// Its syntax; what it yields is seen with the first event (`lifeboat notify test`).
fn json_template(text: &str) -> Result<String> {
    let mut environment = minijinja::Environment::new();
    match environment.add_template_owned("message.json", text.to_owned()) {
        Ok(()) => Ok(text.to_owned()),
        Err(error) => Err(Error::new(Kind::Usage, "not a valid template")
            .because(error)
            .hint("such as {\"text\": {{ title ~ \": \" ~ text }}}: each {{ value }} becomes JSON itself, with its quotes")),
    }
}

fn parse_mail_server(text: &str) -> Result<Url> {
    let wrong = || {
        Error::new(Kind::Usage, "not a valid mail server")
            .hint("write smtps://host or smtp://host, with :port where it is not the usual one")
    };
    let url = Url::parse(text).map_err(|_| wrong())?;
    let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
    let pathless = matches!(url.path(), "" | "/");
    if matches!(url.scheme(), "smtp" | "smtps") && url.host_str().is_some_and(|host| !host.is_empty()) && bare && pathless {
        Ok(url)
    } else {
        Err(wrong())
    }
}

fn mail_address(text: &str) -> Result<String> {
    let valid = text.split_once('@').is_some_and(|(local, domain)| !local.is_empty() && !domain.is_empty() && !domain.contains('@'))
        && !text.contains(|c: char| c.is_whitespace() || c.is_control() || "<>,;".contains(c));
    if valid {
        Ok(text.to_owned())
    } else {
        Err(Error::new(Kind::Usage, format!("not a valid e-mail address: {text:?}"))
            .hint("write a bare address such as \"dba@example.com\""))
    }
}
