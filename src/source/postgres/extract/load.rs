//! The server that a part is loaded into: who may reach it, what stands in the way, and `pg_restore`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use zeroize::Zeroizing;

use crate::error::{Error, IoContext, Kind, Result};
use crate::event::Cancel;
use crate::source::postgres::client::{Connection, LONG_SILENCE, Mode, quote_identifier, sqlstate};
use crate::source::postgres::conninfo::{Host, RootCertificates, Settings, SslMode};
use crate::source::postgres::extract::names::Selection;
use crate::source::postgres::extract::{self, Relation, run};
use crate::source::postgres::instance::{Account, Tools};

/// The bundles of Debian, Fedora and SUSE: for versions whose libpq does not know the system's certificates.
const BUNDLES: [&str; 3] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];
/// So many names are told.
const TOLD: usize = 5;

/// A database that takes a part.
#[derive(Debug, Clone)]
pub struct Target {
    settings: Settings,
    database: String,
}

impl Target {
    /// Reads the URL of a target.
    ///
    /// # Errors
    /// `Usage` when it is not understood, and when it holds a password: everybody on the host could read it.
    pub fn parse(url: &str) -> Result<Self> {
        let settings = Settings::parse(url).map_err(|error| error.within("understand the target of the restore"))?;
        if settings.has_password() {
            return Err(Error::new(
                Kind::Usage,
                format!("restore into {settings}: the target holds a password, which other users of this host can see"),
            )
            .hint(
                "leave it out and put it into ~/.pgpass or the file that PGPASSFILE names (HOST:PORT:DATABASE:USER:PASSWORD, mode 0600)",
            ));
        }
        let Some(database) = settings.database.clone() else {
            return Err(Error::new(Kind::Usage, format!("restore into {settings}: the target names no database"))
                .hint("write postgresql://USER@HOST:PORT/DATABASE; the database must exist"));
        };
        Ok(Self { settings, database })
    }

    fn within(&self, error: Error) -> Error {
        error.within(format!("restore into database {} at {}", self.database, self.settings))
    }

    fn refuse(&self, why: impl std::fmt::Display) -> Error {
        Error::new(Kind::Usage, format!("restore into database {} at {}: {why}", self.database, self.settings))
    }

    /// Opens it.
    ///
    /// # Errors
    /// `Usage` when there is no such database, or one that cannot take anything.
    pub(super) fn connect(&self, cancel: &Cancel) -> Result<Connection> {
        let mut connection = Connection::connect(&self.settings, Mode::Sql { database: None }, cancel).map_err(|error| {
            if sqlstate(&error) == Some("3D000") {
                return self.refuse("there is no such database").hint("make it first (createdb), or name another; lifeboat makes none");
            }
            self.within(error)
        })?;
        if connection.value("SELECT pg_catalog.pg_is_in_recovery()").map_err(|error| self.within(error))?.as_deref() == Some("t") {
            return Err(self.refuse("it is a standby, which takes nothing").hint("name the primary"));
        }
        Ok(connection)
    }

    /// Whether it can take a dump of this version. Tables of the selection that can be known by their names alone must not be there.
    ///
    /// # Errors
    /// As [`Target::connect`]; `Usage` when it is older than the dump, or names what is in the way.
    pub fn check(&self, selection: &Selection, version: Option<u32>, cancel: &Cancel) -> Result<()> {
        let mut connection = self.connect(cancel)?;
        if let Some(major) = version.map(|version| version / 10_000) {
            self.check_version(&connection, major)?;
        }
        let named = selection.tables.iter().filter_map(|wanted| Some((wanted.schema.clone()?, wanted.table.clone()))).collect();
        self.check_free(&mut connection, &named)
    }

    pub(super) fn check_version(&self, connection: &Connection, major: u32) -> Result<()> {
        let there = connection.server_version() / 10_000;
        if there >= major {
            return Ok(());
        }
        Err(self
            .refuse(format!("it is PostgreSQL {there}, and what is restored is of {major}"))
            .hint("name a server of the same or a newer major version"))
    }

    /// What has these names in the target stays as it is, so nothing is loaded over it.
    pub(super) fn check_free(&self, connection: &mut Connection, wanted: &BTreeSet<(String, String)>) -> Result<()> {
        let there = relations_there(connection).map_err(|error| self.within(error))?;
        let taken: Vec<String> = wanted.intersection(&there).map(|(schema, name)| format!("{schema}.{name}")).collect();
        if taken.is_empty() {
            return Ok(());
        }
        let more = if taken.len() > TOLD { format!(" and {} more", taken.len() - TOLD) } else { String::new() };
        let first = taken.iter().take(TOLD).cloned().collect::<Vec<_>>().join(", ");
        Err(self
            .refuse(format!("it has {first}{more} already; nothing was loaded"))
            .hint("name a database without them (createdb), or rename what is there first (ALTER TABLE … RENAME TO …)"))
    }

    /// Loads a dump in one transaction. Missing schemas of single tables are made, and removed again when that fails.
    pub(super) fn load(&self, load: &Load<'_>) -> Result<Vec<String>> {
        let mut connection = self.connect(load.cancel)?;
        let mut warnings = Vec::new();
        let missing_roles = self.missing_roles(&mut connection, load.roles)?;
        let excluded = self.excluded_keys(&mut connection, load, &mut warnings)?;
        let list = load.scratch.join("list");
        write_private(&list, load.contents.lines().filter(|line| !excluded.iter().any(|key| is_entry(line, *key))))?;
        let made = self.make_schemas(&mut connection, load.schemas)?;

        let mut command = load.tools.command("pg_restore", Account::own())?;
        let password = self.settings.password(&self.database)?;
        if let Some(password) = password {
            let file = load.scratch.join("pgpass");
            let escaped = Zeroizing::new(password.replace('\\', "\\\\").replace(':', "\\:"));
            let line = Zeroizing::new(format!("*:*:*:*:{}", escaped.as_str()));
            write_private(&file, std::iter::once(line.as_str()))?;
            command.env("PGPASSFILE", file);
        } else {
            command.env("PGPASSFILE", load.scratch.join("none"));
        }
        command.args(["--single-transaction", "--exit-on-error", "--no-tablespaces", "--no-password"]);
        if let Some(why) = missing_roles {
            command.args(["--no-owner", "--no-privileges"]);
            warnings.push(format!("owners and privileges were left out: {why}; all of it belongs to {}", self.settings.user));
        }
        command.arg(format!("--dbname={}", conninfo(&self.settings, &self.database, load.tools.major())?));
        command.arg(format!("--use-list={}", list.display())).arg(load.dump);
        let what = format!("load into database {} at {}", self.database, self.settings);
        match run(command, load.scratch, &what, load.cancel) {
            Ok(_) => Ok(warnings),
            Err(error) => {
                let left = self.unmake_schemas(&made);
                let hint = error.hint_text().unwrap_or(
                    "nothing was loaded; what a table needs beside itself (types, functions, extensions, roles) must be there before: restore the whole database into an \
                     empty one, or to a file (--to FILE) and load from it by hand",
                );
                let hint = format!("{hint}{left}");
                Err(error.hint(hint))
            }
        }
    }

    /// Why owners and privileges cannot be as they were.
    fn missing_roles(&self, connection: &mut Connection, roles: &BTreeSet<String>) -> Result<Option<String>> {
        let failed = |error| self.within(error);
        let is_superuser = connection.value("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user").map_err(failed)?;
        if is_superuser.as_deref() != Some("t") {
            return Ok(Some(format!("{} is no superuser", self.settings.user)));
        }
        let rows = connection.query("SELECT rolname FROM pg_catalog.pg_roles").map_err(failed)?;
        let there: BTreeSet<String> = rows.iter().map(|row| row.required("rolname").map(str::to_owned)).collect::<Result<_>>()?;
        let missing: Vec<&str> = roles.difference(&there).map(String::as_str).collect();
        Ok((!missing.is_empty()).then(|| format!("the target has no role {}", missing.join(", "))))
    }

    /// Foreign keys to tables that are neither in the part nor in the target.
    fn excluded_keys(&self, connection: &mut Connection, load: &Load<'_>, warnings: &mut Vec<String>) -> Result<Vec<u32>> {
        let there = relations_there(connection).map_err(|error| self.within(error))?;
        let mut excluded = Vec::new();
        for key in load.foreign_keys.iter().filter(|key| !there.contains(&key.to)) {
            excluded.push(key.oid);
            warnings
                .push(format!("foreign key {} of {} was left out: {}.{} is not in the target", key.name, key.table, key.to.0, key.to.1));
        }
        Ok(excluded)
    }

    fn make_schemas(&self, connection: &mut Connection, wanted: &BTreeSet<String>) -> Result<Vec<String>> {
        let rows = connection.query("SELECT nspname FROM pg_catalog.pg_namespace").map_err(|error| self.within(error))?;
        let there: BTreeSet<&str> = rows.iter().filter_map(|row| row.get(0)).collect();
        let mut made = Vec::new();
        for schema in wanted.iter().filter(|schema| !there.contains(schema.as_str())) {
            if let Err(error) = connection.execute(&format!("CREATE SCHEMA {}", quote_identifier(schema))) {
                let left = self.unmake_schemas(&made);
                let error = self.within(error);
                return Err(if left.is_empty() { error } else { error.hint(left) });
            }
            made.push(schema.clone());
        }
        Ok(made)
    }

    /// Removes schemas that were made for what was not loaded. Says what is left.
    fn unmake_schemas(&self, made: &[String]) -> String {
        if made.is_empty() {
            return String::new();
        }
        // Also after an interruption, which the caller's token would end at once.
        let removed = self.connect(&Cancel::default()).and_then(|mut connection| {
            made.iter().try_for_each(|schema| connection.execute(&format!("DROP SCHEMA {}", quote_identifier(schema))))
        });
        match removed {
            Ok(()) => String::new(),
            Err(error) => format!("; the schemas {} were made for it and could not be removed ({error})", made.join(", ")),
        }
    }

    /// Rows of tables that were loaded, and those tables that the role may not count: where row security hides rows from it, it sees none of them.
    pub(super) fn count(&self, relations: &[&Relation], cancel: &Cancel) -> Result<(BTreeMap<u32, u64>, BTreeSet<u32>)> {
        let mut connection = self.connect(cancel)?;
        connection.set_timeout(LONG_SILENCE);
        let (mut counts, mut hidden) = (BTreeMap::new(), BTreeSet::new());
        for one in relations {
            cancel.check()?;
            match extract::count_one(&mut connection, one) {
                Ok(rows) => drop(counts.insert(one.oid, rows)),
                Err(error) if sqlstate(&error) == Some("42501") => drop(hidden.insert(one.oid)),
                Err(error) => return Err(self.within(error)),
            }
        }
        Ok((counts, hidden))
    }
}

/// What is loaded, and with what.
pub(super) struct Load<'a> {
    pub(super) tools: &'a Tools,
    pub(super) dump: &'a Path,
    /// As `pg_restore --list` says.
    pub(super) contents: &'a str,
    pub(super) scratch: &'a Path,
    /// Of single tables; a whole database brings its own.
    pub(super) schemas: &'a BTreeSet<String>,
    /// Owners and whoever has privileges.
    pub(super) roles: &'a BTreeSet<String>,
    /// To tables outside of the part.
    pub(super) foreign_keys: &'a [ForeignKey],
    pub(super) cancel: &'a Cancel,
}

/// A foreign key of a table in the part to one that is not.
pub(super) struct ForeignKey {
    pub(super) oid: u32,
    pub(super) name: String,
    pub(super) table: String,
    pub(super) to: (String, String),
}

/// Whether a line of a list is of this constraint: `3346; 2606 16401 FK CONSTRAINT …`, where 2606 is `pg_constraint`.
fn is_entry(line: &str, constraint: u32) -> bool {
    line.split_once("; ").is_some_and(|(_, rest)| rest.starts_with(&format!("2606 {constraint} FK CONSTRAINT ")))
}

fn relations_there(connection: &mut Connection) -> Result<BTreeSet<(String, String)>> {
    let rows = connection.query(
        "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname <> 'pg_catalog' AND n.nspname <> 'information_schema' AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')",
    )?;
    rows.iter().map(|row| Ok((row.required("nspname")?.to_owned(), row.required("relname")?.to_owned()))).collect()
}

fn write_private<'a>(path: &Path, lines: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut text = Zeroizing::new(String::new());
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    let write = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes());
    write().io_context(|| format!("write {}", path.display()))
}

/// The same connection in libpq's words, without the password. What proves the server is not left to libpq's defaults.
pub(in crate::source::postgres) fn conninfo(settings: &Settings, database: &str, major: u32) -> Result<String> {
    let mut pairs: Vec<(&str, String)> = Vec::new();
    let mut mode = settings.ssl_mode;
    match &settings.host {
        Host::Socket(folder) => pairs.push(("host", folder.display().to_string())),
        Host::Tcp { name, address } => {
            pairs.push(("host", name.clone()));
            pairs.extend(address.map(|address| ("hostaddr", address.to_string())));
            let is_local =
                address.map_or_else(|| matches!(name.as_str(), "localhost" | "127.0.0.1" | "::1"), |address| address.is_loopback());
            mode = mode.or(Some(if is_local { SslMode::Prefer } else { SslMode::VerifyFull }));
            // A host that is gone without a word would be waited for for ever.
            let alive = &settings.keepalives;
            pairs.extend([
                ("keepalives_idle", alive.idle.as_secs().to_string()),
                ("keepalives_interval", alive.interval.as_secs().to_string()),
                ("keepalives_count", alive.count.to_string()),
                ("tcp_user_timeout", alive.user_timeout.as_millis().to_string()),
            ]);
        }
    }
    pairs.extend([("port", settings.port.to_string()), ("user", settings.user.clone()), ("dbname", database.to_owned())]);
    pairs.push(("connect_timeout", settings.connect_timeout.as_secs().max(2).to_string()));
    pairs.push(("application_name", settings.application_name.clone()));
    pairs.extend(settings.options.clone().map(|options| ("options", options)));
    if let Some(mode) = mode {
        let word = match mode {
            SslMode::Disable => "disable",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        };
        pairs.push(("sslmode", word.to_owned()));
        let file = match (&settings.ssl_root_certificates, mode) {
            (Some(RootCertificates::File(path)), _) => Some(path.display().to_string()),
            (Some(RootCertificates::System), _) | (None, SslMode::VerifyCa | SslMode::VerifyFull) => Some(system_roots(mode, major)?),
            // Otherwise libpq would look for a file of its own.
            (None, _) => Some("/dev/null/none".to_owned()),
        };
        pairs.extend(file.map(|file| ("sslrootcert", file)));
    }
    for (key, path) in [("sslcert", &settings.ssl_certificate), ("sslkey", &settings.ssl_key)] {
        pairs.extend(path.iter().map(|path| (key, path.display().to_string())));
    }
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
    Ok(pairs.iter().map(|(key, value)| format!("{key}='{}'", quoted(value))).collect::<Vec<_>>().join(" "))
}

fn system_roots(mode: SslMode, major: u32) -> Result<String> {
    if major >= 16 && mode == SslMode::VerifyFull {
        return Ok("system".into());
    }
    BUNDLES.iter().find(|path| Path::new(path).is_file()).map(|path| (*path).to_owned()).ok_or_else(|| {
        Error::new(Kind::Usage, "find the root certificates of this system for pg_restore")
            .hint("name a file with sslrootcert=FILE in the target")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_a_database_and_no_password() {
        let error = Target::parse("postgresql://me:secret-word@db/crm").unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(!format!("{error:?}").contains("secret-word") && error.hint_text().unwrap().contains("pgpass"));
        assert!(Target::parse("postgresql://me@db").unwrap_err().to_string().contains("names no database"));
        assert_eq!(Target::parse("postgresql://me@db/cr%20m").unwrap().database, "cr m");
    }

    #[test]
    fn libpq_is_told_what_proves_the_server() {
        let settings = |text: &str| Settings::parse(text).unwrap();
        let far = conninfo(&settings("postgresql://me@db.example.com/x"), "it's \\ x", 18).unwrap();
        assert!(far.contains("sslmode='verify-full' sslrootcert='system'") && far.contains("dbname='it\\'s \\\\ x'"), "{far}");
        let near = conninfo(&settings("postgresql://me@localhost/x"), "x", 15).unwrap();
        assert!(near.contains("sslmode='prefer'"), "{near}");
        let alive = "keepalives_idle='30' keepalives_interval='10' keepalives_count='3' tcp_user_timeout='60000'";
        assert!(far.contains(alive) && near.contains(alive), "{far}");
        let own = conninfo(&settings("postgresql://me@db/x?tcp_user_timeout=5000&keepalives_count=9&sslmode=disable"), "x", 15).unwrap();
        assert!(own.contains("keepalives_count='9' tcp_user_timeout='5000'"), "{own}");
        let socket = conninfo(&settings("host=/run/pg user=me"), "x", 15).unwrap();
        assert!(socket.contains("host='/run/pg'") && !socket.contains("sslmode") && !socket.contains("keepalives"), "{socket}");
    }

    #[test]
    fn a_foreign_key_is_known_by_its_number() {
        let line = "3346; 2606 16401 FK CONSTRAINT public orders orders_customer_fkey postgres";
        assert!(is_entry(line, 16401) && !is_entry(line, 1640) && !is_entry(line, 6401));
        assert!(!is_entry("3346; 2606 16401 CONSTRAINT public orders x postgres", 16401));
    }
}
