//! Where a server is and how to log in: settings from a URL (`postgresql://…`) or from `key=value` text, and `.pgpass`.
//!
//! The names and the quoting are libpq's (PostgreSQL manual, "Connection Strings"). Left out on purpose: service files, several
//! hosts, and the `PG…` environment variables other than `PGPASSFILE`: a backup must not go elsewhere because a variable was set.

use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::error::{Error, IoContext as _, Kind, Result};

/// The port that PostgreSQL listens on unless told otherwise; also the number in a socket's name.
pub const DEFAULT_PORT: u16 = 5432;

const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(5);

const KEYS: [&str; 18] = [
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "passfile",
    "connect_timeout",
    "application_name",
    "options",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
];

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A folder with the socket `.s.PGSQL.PORT`.
    Socket(PathBuf),
    /// A name or address; `address` saves looking the name up, the name is still what a certificate must say.
    Tcp { name: String, address: Option<IpAddr> },
}

/// What TLS must prove; libpq's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// No TLS, even off loopback: only because the settings say so.
    Disable,
    /// TLS without proof where the server has it, else none. On loopback only.
    Prefer,
    /// TLS; who answers is not proven, unless root certificates are given (then as `VerifyCa`, like libpq).
    Require,
    /// A certificate from a known authority, whatever name it says.
    VerifyCa,
    /// A certificate from a known authority for this host.
    VerifyFull,
}

/// Whose signature under a server's certificate counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootCertificates {
    /// Those of the operating system (also `SSL_CERT_FILE`).
    System,
    /// A PEM file.
    File(PathBuf),
}

/// When a silent TCP connection counts as dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalives {
    /// Silence before the first probe.
    pub idle: Duration,
    pub interval: Duration,
    /// Probes without an answer.
    pub count: u32,
    /// Sent data without an acknowledgement.
    pub user_timeout: Duration,
}

impl Default for Keepalives {
    fn default() -> Self {
        Self { idle: Duration::from_secs(30), interval: Duration::from_secs(10), count: 3, user_timeout: Duration::from_mins(1) }
    }
}

/// How to reach one server. Cheap to clone; nothing is opened by building it.
#[derive(Clone)]
pub struct Settings {
    pub host: Host,
    pub port: u16,
    pub user: String,
    /// The server takes the user's name when there is none.
    pub database: Option<String>,
    /// Instead of `$PGPASSFILE` or `~/.pgpass`.
    pub password_file: Option<PathBuf>,
    /// `None`: `VerifyFull` off loopback, `Prefer` on it.
    pub ssl_mode: Option<SslMode>,
    pub ssl_root_certificates: Option<RootCertificates>,
    /// PEM files of the client's certificate chain and key; both or neither.
    pub ssl_certificate: Option<PathBuf>,
    pub ssl_key: Option<PathBuf>,
    /// Limit for everything until the server is ready for the first query.
    pub connect_timeout: Duration,
    /// How long a server may be silent in the middle of an answer; [`crate::source::postgres::client::Connection::set_timeout`] changes it.
    pub timeout: Duration,
    pub keepalives: Keepalives,
    pub application_name: String,
    /// Command-line options for the session, such as `-c statement_timeout=0`.
    pub options: Option<String>,
    password: Option<Zeroizing<String>>,
}

/// Without the password, which may be in no log.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("database", &self.database)
            .field("password", &self.password.as_ref().map(|_| "[hidden]"))
            .field("ssl_mode", &self.ssl_mode)
            .finish_non_exhaustive()
    }
}

/// `host:port` or the socket, as messages name it.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Socket(folder) => write!(f, "{}", folder.join(format!(".s.PGSQL.{}", self.port)).display()),
            Host::Tcp { name, .. } if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Host::Tcp { name, .. } => write!(f, "{name}:{}", self.port),
        }
    }
}

impl Settings {
    /// Settings for a server at `host` with defaults for the rest.
    #[must_use]
    pub fn new(host: Host, port: u16, user: &str) -> Self {
        Self {
            host,
            port,
            user: user.to_owned(),
            database: None,
            password_file: None,
            ssl_mode: None,
            ssl_root_certificates: None,
            ssl_certificate: None,
            ssl_key: None,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            timeout: DEFAULT_TIMEOUT,
            keepalives: Keepalives::default(),
            application_name: "lifeboat".to_owned(),
            options: None,
            password: None,
        }
    }

    /// Reads `postgresql://user@host:port/database?key=value` or `host=… user=…`.
    ///
    /// # Errors
    /// [`Kind::Usage`] for what cannot be read, is unknown, or is missing (the user). Never shows the text itself: it may hold a password.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let pairs = match text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
            Some(rest) => pairs_of_url(rest)?,
            None if text.contains("://") => {
                return Err(usage("a database address that is not postgresql://").hint("Write postgresql://USER@HOST:PORT/DATABASE."));
            }
            None => pairs_of_text(text)?,
        };
        Self::from_pairs(pairs)
    }

    fn from_pairs(pairs: Vec<(String, Zeroizing<String>)>) -> Result<Self> {
        let mut settings = Self::new(Host::Socket(PathBuf::new()), DEFAULT_PORT, "");
        let (mut host, mut address) = (None, None);
        // As in libpq, a later value of a key replaces an earlier one.
        for (key, value) in pairs {
            let value_text = value.as_str();
            let given = || (!value_text.is_empty()).then(|| value_text.to_owned());
            match key.as_str() {
                "host" => host = given(),
                "hostaddr" => address = given(),
                "port" => settings.port = port(value_text)?,
                "dbname" => settings.database = given(),
                "user" => value_text.clone_into(&mut settings.user),
                "password" => settings.password = (!value.is_empty()).then_some(value),
                "passfile" => settings.password_file = given().map(PathBuf::from),
                "connect_timeout" => {
                    // libpq: 0 and less wait for ever; here every wait has a limit.
                    let secs = whole_number(&key, value_text)?;
                    settings.connect_timeout = if secs == 0 { DEFAULT_CONNECT_TIMEOUT } else { Duration::from_secs(secs) };
                }
                "application_name" => value_text.clone_into(&mut settings.application_name),
                "options" => settings.options = given(),
                "sslmode" => settings.ssl_mode = Some(ssl_mode(value_text)?),
                "sslrootcert" => {
                    settings.ssl_root_certificates = given().map(|name| match name.as_str() {
                        "system" => RootCertificates::System,
                        _ => RootCertificates::File(PathBuf::from(name)),
                    });
                }
                "sslcert" => settings.ssl_certificate = given().map(PathBuf::from),
                "sslkey" => settings.ssl_key = given().map(PathBuf::from),
                "keepalives_idle" => settings.keepalives.idle = positive_seconds(&key, value_text)?,
                "keepalives_interval" => settings.keepalives.interval = positive_seconds(&key, value_text)?,
                "keepalives_count" => {
                    settings.keepalives.count = u32::try_from(whole_number(&key, value_text)?)
                        .map_err(|_| usage(format!("connection setting {key} is too large")))?;
                }
                "tcp_user_timeout" => settings.keepalives.user_timeout = Duration::from_millis(whole_number(&key, value_text)?),
                _ => return Err(unknown_key(&key)),
            }
        }
        settings.host = host_of(host, address)?;
        if settings.user.is_empty() {
            return Err(usage("the connection settings name no user").hint("Add user=… (or USER@ in the address)."));
        }
        if settings.ssl_certificate.is_some() != settings.ssl_key.is_some() {
            return Err(usage("sslcert and sslkey go together").hint("Give both files, or neither."));
        }
        let texts = [&settings.user, &settings.application_name];
        let optional = [settings.database.as_ref(), settings.options.as_ref()];
        if texts.into_iter().chain(optional.into_iter().flatten()).any(|text| text.contains('\0')) {
            return Err(usage("a connection setting contains a NUL character"));
        }
        Ok(settings)
    }

    /// Whether the text had a password.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.password.is_some()
    }

    /// Sets the password, in place of one in the text or in `.pgpass`.
    pub fn set_password(&mut self, password: Zeroizing<String>) {
        self.password = Some(password);
    }

    /// The password to use: that of the settings, else that of the password file, read anew each time. `database` is what the file's
    /// third column must say (`replication` for a replication connection).
    ///
    /// # Errors
    /// [`Kind::Usage`] when the file may be read by others, or was named and is not there.
    pub fn password(&self, database: &str) -> Result<Option<Zeroizing<String>>> {
        if let Some(password) = &self.password {
            return Ok(Some(password.clone()));
        }
        let named = self.password_file.clone();
        let usual = || {
            let variable = std::env::var_os("PGPASSFILE").map(PathBuf::from);
            variable.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".pgpass")))
        };
        let must_exist = named.is_some();
        let Some(path) = named.or_else(usual) else { return Ok(None) };
        let metadata = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => return Ok(None),
            other => other.io_context(|| format!("look at password file {}", path.display()))?,
        };
        if metadata.is_file() && metadata.permissions().mode() & 0o077 != 0 {
            return Err(usage(format!("password file {} may be read by others", path.display()))
                .hint(format!("Run chmod 600 {} as its owner.", path.display())));
        }
        let text = fs::read(&path).map(Zeroizing::new).io_context(|| format!("read password file {}", path.display()))?;
        let (host, port) = (self.password_file_host(), self.port.to_string());
        Ok(find_password(&String::from_utf8_lossy(&text), [&host, &port, database, &self.user]))
    }

    /// libpq's rule: a socket in the usual folder is `localhost`, one elsewhere is its folder.
    fn password_file_host(&self) -> String {
        match &self.host {
            Host::Socket(folder) if SOCKET_FOLDERS.iter().any(|usual| folder == Path::new(usual)) => "localhost".to_owned(),
            Host::Socket(folder) => folder.display().to_string(),
            Host::Tcp { name, .. } => name.clone(),
        }
    }

    /// Refuses a private key file that others may read: 0600, or 0640 where root owns it (libpq's rule).
    pub(crate) fn check_key_file(path: &Path) -> Result<()> {
        let metadata = fs::metadata(path).io_context(|| format!("look at key file {}", path.display()))?;
        let forbidden = if metadata.uid() == 0 { 0o027 } else { 0o077 };
        if metadata.permissions().mode() & forbidden != 0 {
            return Err(usage(format!("private key file {} may be read by others", path.display()))
                .hint(format!("Run chmod 600 {} as its owner.", path.display())));
        }
        Ok(())
    }
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(Kind::Usage, message)
}

fn unknown_key(key: &str) -> Error {
    let error = usage(format!("unknown connection setting `{}`", printable(key)));
    if key == "service" {
        return error.hint("Service files are not read: write host, port, user and dbname here.");
    }
    let near = KEYS.iter().map(|known| (strsim::damerau_levenshtein(key, known), known)).min();
    match near {
        Some((distance, known)) if distance <= 2 => error.hint(format!("Did you mean `{known}`?")),
        _ => error.hint(format!("Known: {}.", KEYS.join(", "))),
    }
}

/// A key as typed, without anything that a terminal would act on, and short: it may be half of a password with a `=`.
fn printable(text: &str) -> String {
    text.chars().filter(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-')).take(24).collect()
}

fn port(text: &str) -> Result<u16> {
    match text.parse() {
        Ok(0) | Err(_) if text.contains(',') => Err(several_hosts()),
        Ok(0) | Err(_) => Err(usage("the port of the connection settings is no number from 1 to 65535")),
        Ok(port) => Ok(port),
    }
}

fn several_hosts() -> Error {
    usage("the connection settings name several hosts").hint("Name the one server to back up; after a failover, change the plan.")
}

fn whole_number(key: &str, text: &str) -> Result<u64> {
    text.parse().map_err(|_| usage(format!("connection setting {key} is no whole number")))
}

fn positive_seconds(key: &str, text: &str) -> Result<Duration> {
    match whole_number(key, text)? {
        0 => Err(usage(format!("connection setting {key} must be at least 1"))),
        secs => Ok(Duration::from_secs(secs)),
    }
}

fn ssl_mode(text: &str) -> Result<SslMode> {
    Ok(match text {
        "disable" => SslMode::Disable,
        "allow" | "prefer" => SslMode::Prefer,
        "require" => SslMode::Require,
        "verify-ca" => SslMode::VerifyCa,
        "verify-full" => SslMode::VerifyFull,
        _ => return Err(usage("unknown sslmode").hint("One of: disable, prefer (on loopback), require, verify-ca, verify-full.")),
    })
}

fn host_of(host: Option<String>, address: Option<String>) -> Result<Host> {
    if [&host, &address].into_iter().flatten().any(|text| text.contains(',')) {
        return Err(several_hosts());
    }
    let address = match address {
        None => None,
        Some(text) => Some(text.parse::<IpAddr>().map_err(|_| usage("hostaddr is no IP address"))?),
    };
    match (host, address) {
        (Some(host), None) if host.starts_with('/') => Ok(Host::Socket(PathBuf::from(host))),
        (Some(host), _) if host.starts_with(['/', '@']) => {
            Err(usage("the host is a socket that cannot be used").hint("Name a folder (host=/run/postgresql), without hostaddr."))
        }
        (Some(name), address) => Ok(Host::Tcp { name, address }),
        (None, Some(address)) => Ok(Host::Tcp { name: address.to_string(), address: Some(address) }),
        (None, None) => {
            let usual = SOCKET_FOLDERS.iter().map(PathBuf::from).find(|folder| folder.is_dir());
            Ok(Host::Socket(usual.unwrap_or_else(|| PathBuf::from(SOCKET_FOLDERS[0]))))
        }
    }
}

/// What follows `postgresql://`: `[user[:password]@][host][:port][/database][?key=value&…]`, each part percent-encoded.
fn pairs_of_url(rest: &str) -> Result<Vec<(String, Zeroizing<String>)>> {
    let mut pairs = Vec::new();
    let mut add = |key: &str, value: &str| -> Result<()> {
        pairs.push((key.to_owned(), decoded(value)?));
        Ok(())
    };
    let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
    let (authority, database) = place.split_once('/').map_or((place, ""), |(authority, path)| (authority, path));
    let (login, host) = authority.rsplit_once('@').map_or((None, authority), |(login, host)| (Some(login), host));
    if let Some(login) = login {
        let (user, password) = login.split_once(':').map_or((login, None), |(user, password)| (user, Some(password)));
        add("user", user)?;
        if let Some(password) = password {
            add("password", password)?;
        }
    }
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let (name, after) = rest.split_once(']').ok_or_else(|| usage("the address has `[` without `]`"))?;
        let port = match after.strip_prefix(':') {
            Some(port) => port,
            None if after.is_empty() => "",
            None => return Err(usage("the address has something other than a port after `]`")),
        };
        (name, port)
    } else {
        host.rsplit_once(':').unwrap_or((host, ""))
    };
    if name.contains(',') || port.contains(',') {
        return Err(several_hosts());
    }
    if !name.is_empty() {
        add("host", name)?;
    }
    if !port.is_empty() {
        add("port", port)?;
    }
    if !database.is_empty() {
        add("dbname", database)?;
    }
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| usage("the address has a parameter without `=`"))?;
        // JDBC's way, which libpq takes too.
        if (key, value) == ("ssl", "true") {
            add("sslmode", "require")?;
        } else {
            let key = decoded(key)?;
            add(&key, value)?;
        }
    }
    Ok(pairs)
}

fn decoded(text: &str) -> Result<Zeroizing<String>> {
    let malformed = || usage("the address has a malformed percent sign").hint("Write a percent sign itself as %25.");
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'%' {
            let digits = after.get(..2).ok_or_else(malformed)?;
            let mut value = [0];
            hex::decode_to_slice(digits, &mut value).map_err(|_| malformed())?;
            bytes.push(value[0]);
            rest = &after[2..];
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    if bytes.contains(&0) {
        return Err(usage("the address contains a NUL character"));
    }
    String::from_utf8(bytes.to_vec()).map(Zeroizing::new).map_err(|_| usage("the address is not UTF-8 after decoding"))
}

/// `key = value key2='with space'`; `\` escapes a quote or itself.
fn pairs_of_text(text: &str) -> Result<Vec<(String, Zeroizing<String>)>> {
    let mut pairs = Vec::new();
    let mut letters = text.chars().peekable();
    loop {
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        if letters.peek().is_none() {
            return Ok(pairs);
        }
        let mut key = String::new();
        while let Some(letter) = letters.next_if(|&letter| letter != '=' && !letter.is_whitespace()) {
            key.push(letter);
        }
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        if letters.next() != Some('=') {
            return Err(usage("the connection settings have a word without `=`")
                .hint("Write postgresql://USER@HOST:PORT/DATABASE, or host=… port=… user=… dbname=…"));
        }
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        let quoted = letters.next_if_eq(&'\'').is_some();
        let mut value = Zeroizing::new(String::new());
        loop {
            match letters.next() {
                Some('\\') => value.extend(letters.next()),
                Some('\'') if quoted => break,
                Some(letter) if quoted || !letter.is_whitespace() => value.push(letter),
                None if quoted => return Err(usage("the connection settings have a quote that is not closed")),
                _ => break,
            }
        }
        pairs.push((key, value));
    }
}

/// The first line of a password file that fits host, port, database and user; `*` fits anything.
fn find_password(text: &str, wanted: [&str; 4]) -> Option<Zeroizing<String>> {
    for line in text.lines().map(|line| line.trim_end_matches('\r')).filter(|line| !line.starts_with('#')) {
        let mut fields = vec![Zeroizing::new(String::new())];
        let mut letters = line.chars();
        while let Some(letter) = letters.next() {
            // The password is what remains: an unescaped colon in it stays a colon.
            if letter == ':' && fields.len() < 5 {
                fields.push(Zeroizing::new(String::new()));
                continue;
            }
            let letter = if letter == '\\' { letters.next().unwrap_or('\\') } else { letter };
            if let Some(field) = fields.last_mut() {
                field.push(letter);
            }
        }
        let fits = fields.iter().zip(wanted).all(|(field, wanted)| field.as_str() == "*" || field.as_str() == wanted);
        if fields.len() == 5 && fits {
            return fields.pop();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Settings {
        Settings::parse(text).unwrap()
    }

    fn password(settings: &Settings) -> Option<String> {
        settings.password("any").unwrap().map(|password| password.to_string())
    }

    #[test]
    fn an_address_says_everything() {
        let all = parse("postgresql://us%40er:p%3Aw@db.example.org:6543/my%20db?sslmode=verify-ca&application_name=x&connect_timeout=3");
        assert_eq!(all.host, Host::Tcp { name: "db.example.org".into(), address: None });
        assert_eq!((all.port, all.user.as_str(), all.database.as_deref()), (6543, "us@er", Some("my db")));
        assert_eq!(password(&all).as_deref(), Some("p:w"));
        assert_eq!((all.ssl_mode, all.connect_timeout), (Some(SslMode::VerifyCa), Duration::from_secs(3)));
        assert_eq!(all.to_string(), "db.example.org:6543");
        assert!(!format!("{all:?}").contains("p:w"), "{all:?}");

        let six = parse("postgres://u@[::1]:1/");
        assert_eq!((six.host.clone(), six.port), (Host::Tcp { name: "::1".into(), address: None }, 1));
        assert_eq!(six.to_string(), "[::1]:1");
        assert_eq!(parse("postgresql://u@%2Ftmp%2Fs/d").host, Host::Socket("/tmp/s".into()));
        assert_eq!(parse("postgresql:///d?host=/tmp/s&user=u").host, Host::Socket("/tmp/s".into()));
        assert!(matches!(parse("postgresql://u@/d").host, Host::Socket(_)));
    }

    #[test]
    fn key_value_text_with_quotes() {
        let settings = parse(r"host = localhost  port=1 user='a b' password='it\'s \\' dbname='größe'");
        assert_eq!((settings.user.as_str(), settings.database.as_deref()), ("a b", Some("größe")));
        assert_eq!(password(&settings).as_deref(), Some(r"it's \"));
        assert_eq!(parse("hostaddr=10.0.0.1 user=u").host, Host::Tcp { name: "10.0.0.1".into(), address: "10.0.0.1".parse().ok() });
        assert_eq!(parse("user=u sslrootcert=system").ssl_root_certificates, Some(RootCertificates::System));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_text() {
        for (text, says) in [
            ("postgresql://u:hunter2@h:99999/d", "port"),
            ("postgresql://u:hunter2@a,b/d", "several hosts"),
            ("postgresql://u:hunter2@h/d?sslmod=disable", "unknown connection setting `sslmod`"),
            ("postgresql://u:hunter2@h/d?service=x", "service"),
            ("postgresql://u:hunter2%@h/d", "percent"),
            ("postgresql://u:hunter2@h/d?x", "without `=`"),
            ("mysql://u:hunter2@h/d", "not postgresql://"),
            ("host=h password=hunter2", "no user"),
            ("user=u password='hunter2", "not closed"),
            ("hunter2", "without `=`"),
            ("user=u password=hunter2 sslmode=on", "sslmode"),
            ("user=u password=hunter2 sslcert=/c", "go together"),
            ("user=u host=/tmp hostaddr=::1 password=hunter2", "socket"),
            ("postgresql://u:hunter2@h/%00", "NUL"),
        ] {
            let error = Settings::parse(text).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{text}");
            let shown = format!("{error:?} {:?}", error.hint_text());
            assert!(shown.contains(says) && !shown.contains("hunter2"), "{text}: {shown}");
        }
        assert_eq!(Settings::parse("user=u sslmod=x").unwrap_err().hint_text(), Some("Did you mean `sslmode`?"));
    }

    #[test]
    fn a_password_file_is_read_as_libpq_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pass");
        fs::write(&path, "# comment\nother:*:*:u:no\ndb:5432:replication:u:r:ep\\\\l\n*:*:*:*:rest\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let settings = parse(&format!("host=db user=u passfile={}", path.display()));
        assert_eq!(settings.password("replication").unwrap().unwrap().as_str(), "r:ep\\l");
        assert_eq!(settings.password("d").unwrap().unwrap().as_str(), "rest");
        assert_eq!(password(&parse(&format!("host=db user=u password=own passfile={}", path.display()))).as_deref(), Some("own"));
        assert_eq!(find_password("/s:1:d:u:p", ["/s", "1", "d", "v"]), None);
        assert_eq!(find_password(r"a\:b:1:d:u:p", ["a:b", "1", "d", "u"]).unwrap().as_str(), "p");

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = settings.password("d").unwrap_err();
        assert!(error.kind() == Kind::Usage && error.hint_text().unwrap().contains("chmod 600"), "{error:?}");
        fs::remove_file(&path).unwrap();
        assert_eq!(settings.password("d").unwrap_err().kind(), Kind::NotFound, "a file that was named must be there");
    }
}
