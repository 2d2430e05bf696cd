//! Certificates that end soon: those that servers show (repositories' endpoints, webhooks, heartbeats, mail servers, PostgreSQL sources) and those in
//! files (PostgreSQL client certificates and authorities, `ca_file`s). What ends within [`WARNING`] is an alarm, until it was exchanged. So is a key slot that
//! is older than the plan files want it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use lettre::transport::smtp::client::{SmtpConnection, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::daemon::alarms::{self, Alarm, key_of as key};
use crate::daemon::notify::send::email::{IMPLICIT_PORT, STARTTLS_PORT};
use crate::daemon::status::{News, Pace, ProblemKind, Unanswered, hear};
use crate::error::{Error, Kind, Result};
use crate::event::Pulse;
use crate::ops::resolve::{self, Surroundings};
use crate::ops::{explain, key_age, select};
use crate::plan::{NotifierKind, Plans, Repository, SourceKind};
use crate::repo::KeySlot;
use crate::source::postgres::{client, conninfo};

/// So long before its end a certificate is told of: what renews by itself does so at 30 days.
const WARNING: TimeDelta = TimeDelta::days(21);

/// How often it is looked.
pub(super) const EVERY: Duration = Duration::from_hours(6);

/// What alarms of keys begin with. No name of a repository has a `-` in a key.
const KEYS: &str = "expiring-key-";

/// For one server.
const PATIENCE: Duration = Duration::from_secs(20);

/// Something that has an end.
struct Watched {
    /// Of the alarm.
    key: String,
    plan: Option<String>,
    what: String,
    place: Place,
}

enum Place {
    /// `https://host[:port]/`, without anything secret.
    Server(String),
    /// `smtps://host[:port]` or `smtp://host[:port]`.
    Mail(url::Url),
    Postgres(Box<conninfo::Settings>),
    File(PathBuf),
}

/// Looks at all keys and certificates of the plans once, raises and ends alarms. What cannot be read is left as it stands: other alarms tell of that.
/// `unanswered` is of those who look at these plans: they look one after the other.
///
/// # Errors
/// When alarms cannot be written, and `Interrupted`.
pub(super) fn look(plans: &Plans, unanswered: &Unanswered, surroundings: &Surroundings) -> Result<()> {
    keys(plans, unanswered, Pace::STATUS, surroundings)?;
    let now = surroundings.clock.now();
    let (all, unknown) = watched(plans);
    for watched in &all {
        surroundings.cancel.check()?;
        let end = match &watched.place {
            Place::Server(url) => of_server(url, surroundings).map(Some),
            Place::Mail(server) => of_mail(server).map(Some),
            Place::Postgres(settings) => of_postgres(settings, surroundings),
            Place::File(path) => of_file(path).map(Some),
        };
        match end {
            Ok(end) => match end.and_then(|end| message(&watched.what, end, now)) {
                Some(message) => {
                    let alarm = Alarm { kind: ProblemKind::Expiring.word().to_owned(), plan: watched.plan.clone(), message, since: now };
                    alarms::raise(&surroundings.state, &watched.key, &alarm)?;
                }
                None => {
                    alarms::clear(&surroundings.state, &watched.key)?;
                }
            },
            Err(error) => tracing::debug!(what = watched.what, error = ?error, "when a certificate ends could not be read"),
        }
    }
    // Of what the plans know no more.
    for key in alarms::keys(&surroundings.state)? {
        let is_unknown = || unknown.iter().any(|end| key.ends_with(end));
        if key.starts_with("expiring-tls-") && all.iter().all(|watched| watched.key != key) && !is_unknown() {
            alarms::clear(&surroundings.state, &key)?;
        }
    }
    Ok(())
}

/// Key slots of repositories that say how old one may be. Each answer counts when it comes: one that hangs keeps no other from being told of, and what
/// stands of it goes on to stand.
fn keys(plans: &Plans, unanswered: &Unanswered, pace: Pace, surroundings: &Surroundings) -> Result<()> {
    let state = &surroundings.state;
    let aging: Vec<(Arc<Repository>, Duration)> =
        plans.repositories.values().filter_map(|repository| Some((Arc::clone(repository), repository.max_key_age?))).collect();
    // Of what the plans ask no more.
    for key in alarms::keys(state)?.iter().filter(|key| key.starts_with(KEYS)) {
        if aging.iter().all(|(repository, _)| !key.starts_with(&prefix(repository))) {
            alarms::clear(state, key)?;
        }
    }
    let asked: Vec<_> = aging.into_iter().filter(|(repository, _)| !unanswered.has(&repository.name)).collect();
    let (of_thread, begun) = (surroundings.clone(), unanswered.clone());
    let ask = move |(repository, _): &(Arc<Repository>, Duration), pulse: &Pulse, tell: &dyn Fn(Result<Vec<KeySlot>>)| {
        let _until_it_ends = begun.begin(&repository.name);
        tell(resolve::repository(repository).and_then(|settings| settings.open_watched(&of_thread, pulse)?.key_slots()));
    };
    hear(asked.clone(), pace, &Pulse::default(), &surroundings.cancel, ask, |at, news| {
        let (repository, most) = &asked[at];
        let why = match news {
            News::Answer(Ok(slots)) => return judge_keys(repository, &slots, *most, surroundings),
            News::Answer(Err(error)) => explain(&error),
            News::NoMore(why) => why.message,
        };
        tracing::debug!(repository = %repository.name, why, "how old its keys are could not be read");
        Ok(())
    })
}

/// What alarms of a repository's keys begin with.
fn prefix(repository: &Repository) -> String {
    format!("{KEYS}{}-", key(repository.name.as_str()))
}

/// Raises and ends the alarms of one repository.
fn judge_keys(repository: &Repository, slots: &[KeySlot], most: Duration, surroundings: &Surroundings) -> Result<()> {
    let (state, now, prefix) = (&surroundings.state, surroundings.clock.now(), prefix(repository));
    let aged = key_age::aged(repository.name.as_str(), slots, most, now);
    let keys: Vec<String> = aged.iter().map(|aged| format!("{prefix}{}", key(&aged.id))).collect();
    for (key, aged) in keys.iter().zip(aged) {
        alarms::raise(state, key, &Alarm { kind: ProblemKind::Expiring.word().to_owned(), plan: None, message: aged.message, since: now })?;
    }
    for gone in alarms::keys(state)?.iter().filter(|known| known.starts_with(&prefix) && !keys.contains(known)) {
        alarms::clear(state, gone)?;
    }
    Ok(())
}

/// `None`: there is time.
fn message(what: &str, end: DateTime<Utc>, now: DateTime<Utc>) -> Option<String> {
    if end <= now {
        Some(format!("{what} ended at {}", select::moment(end)))
    } else if end - now < WARNING {
        Some(format!("{what} ends at {}, in {} days", select::moment(end), (end - now).num_days()))
    } else {
        None
    }
}

/// Also how the keys end of what the plans name and whose address cannot be had just now, as without its secret: what is known of that stands.
fn watched(plans: &Plans) -> (Vec<Watched>, Vec<String>) {
    let (mut all, mut unknown) = (Vec::new(), Vec::new());
    for repository in plans.repositories.values() {
        if let Some(endpoint) = repository.endpoint.as_ref().filter(|endpoint| endpoint.scheme() == "https") {
            let host = endpoint.host_str().unwrap_or_default();
            all.push(Watched {
                key: format!("expiring-tls-repository-{}", key(repository.name.as_str())),
                plan: None,
                what: format!("the certificate of {host} (repository {})", repository.name),
                place: Place::Server(origin(endpoint)),
            });
        }
    }
    for notifier in plans.notifiers.values() {
        let (address, ca_file) = match &notifier.kind {
            NotifierKind::Webhook { address, .. } | NotifierKind::Heartbeat { address, .. } => (Some(address), address.ca_file.as_ref()),
            NotifierKind::Email { ca_file, .. } => (None, ca_file.as_ref()),
            NotifierKind::Command { .. } => (None, None),
        };
        let name = key(notifier.name.as_str());
        if let NotifierKind::Email { server, .. } = &notifier.kind {
            all.push(Watched {
                key: format!("expiring-tls-notifier-{name}"),
                plan: None,
                what: format!("the certificate of {} (notifier {})", server.host_str().unwrap_or_default(), notifier.name),
                place: Place::Mail(server.clone()),
            });
        }
        let url = address.and_then(|address| address.url.resolve().ok()).and_then(|text| url::Url::parse(text.expose().trim()).ok());
        if address.is_some() && url.is_none() {
            unknown.push(format!("-notifier-{name}"));
        }
        if let Some(url) = url.filter(|url| url.scheme() == "https") {
            all.push(Watched {
                key: format!("expiring-tls-notifier-{name}"),
                plan: None,
                what: format!("the certificate of {} (notifier {})", url.host_str().unwrap_or_default(), notifier.name),
                place: Place::Server(origin(&url)),
            });
        }
        if let Some(path) = ca_file {
            all.push(Watched {
                key: format!("expiring-tls-ca-{name}"),
                plan: None,
                what: format!("the certificate in {} (ca_file of notifier {})", path.display(), notifier.name),
                place: Place::File(path.clone()),
            });
        }
    }
    for plan in plans.plans.values() {
        for source in &plan.sources {
            let SourceKind::Postgres(server) = &source.kind else { continue };
            let settings = server.url.resolve().ok().and_then(|text| conninfo::Settings::parse(text.expose()).ok());
            let Some(settings) = settings else {
                unknown.push(format!("-{}-{}", key(plan.name.as_str()), key(source.name.as_str())));
                continue;
            };
            let mut push = |kind: &str, what: String, place: Place| {
                let key = format!("expiring-tls-{kind}-{}-{}", key(plan.name.as_str()), key(source.name.as_str()));
                all.push(Watched { key, plan: Some(plan.name.to_string()), what, place });
            };
            if let Some(path) = settings.ssl_certificate.clone() {
                push("source", format!("the client certificate of source {} ({})", source.name, path.display()), Place::File(path));
            }
            if let Some(conninfo::RootCertificates::File(path)) = settings.ssl_root_certificates.clone() {
                push("root", format!("a certificate in {} (sslrootcert of source {})", path.display(), source.name), Place::File(path));
            }
            let what = format!("the certificate that the server of source {} shows", source.name);
            push("server", what, Place::Postgres(Box::new(settings)));
        }
    }
    (all, unknown)
}

fn origin(url: &url::Url) -> String {
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    format!("https://{}{port}/", url.host_str().unwrap_or_default())
}

/// The end of the certificate that a server shows. Nothing is asked of it but that: whom it trusts is for those who use it.
fn of_server(url: &str, surroundings: &Surroundings) -> Result<DateTime<Utc>> {
    let failed = |why: String| Error::new(Kind::Unavailable, format!("look at the certificate of {url}: {why}"));
    let client = reqwest::Client::builder()
        .tls_info(true)
        .tls_danger_accept_invalid_certs(true)
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE)
        .build()
        .map_err(|error| failed(error.to_string()))?;
    // Without path, query, headers and body: whoever answers learns nothing.
    let exchange = async { tokio::time::timeout(PATIENCE, client.head(url).send()).await };
    let response = surroundings
        .runtime
        .block_on(exchange)
        .map_err(|_| failed("no answer".to_owned()))?
        .map_err(|error| failed(error.without_url().to_string()))?;
    let info = response.extensions().get::<reqwest::tls::TlsInfo>();
    let certificate = info.and_then(reqwest::tls::TlsInfo::peer_certificate).ok_or_else(|| failed("it shows none".to_owned()))?;
    not_after(certificate).ok_or_else(|| failed("it cannot be read".to_owned()))
}

/// The end of the certificate of a mail server, which is told nothing but a greeting.
fn of_mail(server: &url::Url) -> Result<DateTime<Utc>> {
    let host = server.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let failed = |why: &dyn std::fmt::Display| Error::new(Kind::Unavailable, format!("look at the certificate of {host}: {why}"));
    let tls = TlsParameters::builder(host.clone()).dangerous_accept_invalid_certs(true).build().map_err(|error| failed(&error))?;
    let at_once = server.scheme() == "smtps";
    let port = server.port().unwrap_or(if at_once { IMPLICIT_PORT } else { STARTTLS_PORT });
    let hello = ClientId::default();
    let connected = SmtpConnection::connect((host.as_str(), port), Some(PATIENCE), &hello, at_once.then_some(&tls), None);
    let mut connection = connected.map_err(|error| failed(&error))?;
    let certificate = if at_once { Ok(()) } else { connection.starttls(&tls, &hello) }.and_then(|()| connection.peer_certificate());
    connection.abort();
    certificate.map_err(|error| failed(&error)).and_then(|bytes| not_after(&bytes).ok_or_else(|| failed(&"it cannot be read")))
}

/// `None`: no TLS there.
fn of_postgres(settings: &conninfo::Settings, surroundings: &Surroundings) -> Result<Option<DateTime<Utc>>> {
    let unreadable = || Error::new(Kind::Failed, format!("look at the certificate of {settings}: it cannot be read"));
    let shown = client::server_certificate(settings, &surroundings.cancel)?;
    shown.map(|bytes| not_after(&bytes).ok_or_else(unreadable)).transpose()
}

/// The earliest end of the certificates in a file.
fn of_file(path: &Path) -> Result<DateTime<Utc>> {
    let failed = |why: &str| Error::new(Kind::Failed, format!("look at the certificates in {}: {why}", path.display()));
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| failed(&error.to_string()))?;
    let mut ends = Vec::new();
    for certificate in certificates {
        let certificate = certificate.map_err(|error| failed(&error.to_string()))?;
        ends.push(not_after(&certificate).ok_or_else(|| failed("one cannot be read"))?);
    }
    ends.into_iter().min().ok_or_else(|| failed("there is none"))
}

/// `notAfter` of an X.509 certificate in DER (RFC 5280, section 4.1): `SEQUENCE { tbsCertificate SEQUENCE { [0] version OPTIONAL, serialNumber
/// INTEGER, signature SEQUENCE, issuer SEQUENCE, validity SEQUENCE { notBefore, notAfter }, … }, … }`.
fn not_after(certificate: &[u8]) -> Option<DateTime<Utc>> {
    let (_, outer, _) = element(certificate)?;
    let (_, mut rest, _) = element(outer)?;
    if let (0xa0, _, after) = element(rest)? {
        rest = after;
    }
    for tag in [0x02, 0x30, 0x30] {
        let (found, _, after) = element(rest)?;
        if found != tag {
            return None;
        }
        rest = after;
    }
    let (0x30, validity, _) = element(rest)? else { return None };
    let (_, _, rest) = element(validity)?;
    let (tag, text, _) = element(rest)?;
    let text = std::str::from_utf8(text).ok()?;
    let text = match tag {
        // UTCTime has two digits of the year: 50 to 99 are of the last century.
        0x17 => format!("{}{text}", if text.get(..2)?.parse::<u32>().ok()? >= 50 { "19" } else { "20" }),
        0x18 => text.to_owned(),
        _ => return None,
    };
    NaiveDateTime::parse_from_str(&text, "%Y%m%d%H%M%SZ").ok().map(|time| time.and_utc())
}

/// One DER element: its tag, its content and what follows it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (digits.iter().fold(0, |sum, &digit| sum << 8 | usize::from(digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;
    use crate::clock::SystemClock;
    use crate::event::{Cancel, Silent};
    use crate::ops::CommitGate;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    /// For ten days.
    fn certificate(folder: &Path) -> PathBuf {
        let path = folder.join("c.pem");
        let made = std::process::Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "10", "-subj", "/CN=x"])
            .arg("-keyout")
            .arg(folder.join("k.pem"))
            .arg("-out")
            .arg(&path)
            .output()
            .unwrap();
        assert!(made.status.success());
        path
    }

    #[test]
    fn what_a_secret_hides_that_cannot_be_had_stands_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let private = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
            std::fs::set_permissions(folder.path().join(name), std::fs::Permissions::from_mode(0o600)).unwrap();
        };
        let certificate = certificate(folder.path());
        let url = format!("host=127.0.0.1 port=1 user=x sslmode=disable sslcert={} sslkey={path}/k.pem", certificate.display());
        private("url", &url);
        private(
            "p.toml",
            &format!(
                "version = 1\n[repository.main]\nurl = \"file://{path}/main\"\npassphrase = {{ env = \"LIFEBOAT_NONE\" }}\n\
             [source.db]\nkind = \"postgres\"\nurl = {{ file = \"{path}/url\" }}\n[plan.p]\nsource = \"db\"\nrepository = \"main\"\n"
            ),
        );
        let plans = Plans::load(&[folder.path().join("p.toml")]).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let surroundings = Surroundings {
            state: folder.path().join("state"),
            runtime: runtime.handle().clone(),
            clock: Arc::new(SystemClock),
            progress: Arc::new(Silent),
            cancel: Cancel::default(),
            gate: CommitGate::default(),
        };
        let told = || {
            look(&plans, &Unanswered::default(), &surroundings).unwrap();
            alarms::keys(&surroundings.state).unwrap()
        };
        let stands = told();
        assert_eq!(stands, ["expiring-tls-source-p-db"]);
        std::fs::remove_file(folder.path().join("url")).unwrap();
        assert_eq!(told(), stands);
        private("url", "host=127.0.0.1 port=1 user=x sslmode=disable");
        assert!(told().is_empty(), "it has no certificate any more");
    }

    #[test]
    fn the_end_of_a_certificate_is_read_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = certificate(folder.path());
        let end = of_file(&path).unwrap();
        let left = end - Utc::now();
        assert!(left > TimeDelta::days(9) && left <= TimeDelta::days(10), "{end}");
        assert!(of_file(&folder.path().join("k.pem")).is_err(), "a key is no certificate");
        let bytes = CertificateDer::from_pem_file(&path).unwrap();
        for end in 0..bytes.len() {
            let _ = not_after(&bytes[..end]);
        }
    }

    #[test]
    fn a_repository_that_hangs_hides_no_key_of_another_and_keeps_what_stands_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let secret = folder.path().join("passphrase");
        std::fs::write(&secret, "correct horse battery staple").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        // It takes connections and never answers.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let secret = format!("{{ file = \"{path}/passphrase\" }}");
        let text = format!(
            "version = 1\n[repository.hangs]\nurl = \"s3://nowhere/r\"\nendpoint = \"http://{}\"\nregion = \"us-east-1\"\n\
             access_key = {secret}\nsecret_key = {secret}\npassphrase = {secret}\nmax_key_age = \"1d\"\n\
             [repository.main]\nurl = \"file://{path}/main\"\npassphrase = {secret}\nmax_key_age = \"1d\"\n\
             [repository.off]\nurl = \"file://{path}/off\"\npassphrase = {secret}\n\
             [source.a]\nkind = \"files\"\npath = \"/nowhere\"\n[plan.p]\nsource = \"a\"\nrepository = \"main\"\n",
            silent.local_addr().unwrap()
        );
        std::fs::create_dir(folder.path().join("plans")).unwrap();
        std::fs::write(folder.path().join("plans/p.toml"), text).unwrap();
        let plans = Plans::load(&[folder.path().join("plans")]).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let surroundings = Surroundings {
            state: folder.path().join("state"),
            runtime: runtime.handle().clone(),
            clock: Arc::new(SystemClock),
            progress: Arc::new(Silent),
            cancel: Cancel::default(),
            gate: CommitGate::default(),
        };
        let main = plans.repositories.values().find(|repository| repository.name.as_str() == "main").unwrap();
        crate::ops::init::run(&resolve::repository(main).unwrap(), &surroundings).unwrap();
        let stands =
            || -> Vec<String> { alarms::keys(&surroundings.state).unwrap().into_iter().filter(|key| key.starts_with(KEYS)).collect() };
        let old = Alarm { kind: "expiring".to_owned(), plan: None, message: "old".to_owned(), since: at("2026-11-28T12:00:00Z") };
        for key in ["hangs-a", "main-gone", "off-a", "other-a"] {
            alarms::raise(&surroundings.state, &format!("{KEYS}{key}"), &old).unwrap();
        }
        let pace = Pace { patience: Duration::from_secs(2), stalled: Duration::from_millis(100) };
        let unanswered = Unanswered::default();
        keys(&plans, &unanswered, pace, &surroundings).unwrap();
        let told = stands();
        let of = |name: &str| told.iter().filter(|key| key.starts_with(&format!("{KEYS}{name}-"))).count();
        // The passphrase's slot and the recovery key's, which are of one day at once; of the one that hangs what stood before.
        assert_eq!((of("main"), of("hangs"), told.len()), (2, 1, 3), "{told:?}");
        assert!(!told.contains(&format!("{KEYS}main-gone")), "{told:?}");
        // It is not asked again while it hangs, so nobody waits for it.
        let hangs = plans.repositories.values().find(|repository| repository.name.as_str() == "hangs").unwrap();
        assert!(unanswered.has(&hangs.name));
        let patient = Pace { patience: Duration::from_hours(1), ..pace };
        let began = std::time::Instant::now();
        keys(&plans, &unanswered, patient, &surroundings).unwrap();
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        assert_eq!(stands(), told);
        runtime.shutdown_background();
    }

    #[test]
    fn what_ends_soon_is_told_with_its_day() {
        let now = at("2026-11-28T12:00:00Z");
        assert_eq!(message("it", at("2027-06-01T00:00:00Z"), now), None);
        assert_eq!(message("it", at("2026-12-10T12:00:00Z"), now).unwrap(), "it ends at 2026-12-10T12:00:00Z, in 12 days");
        assert_eq!(message("it", at("2026-11-28T12:00:00Z"), now).unwrap(), "it ended at 2026-11-28T12:00:00Z");
        assert_ne!(key("A.b"), key("a.b"));
    }
}
