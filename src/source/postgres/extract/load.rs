//! The server that a part is loaded into: who may reach it, what stands in the way, and `pg_restore`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use zeroize::Zeroizing;

use crate::error::{Error, IoContext, Kind, Result};
use crate::event::Cancel;
use crate::source::postgres::client::{Connection, LONG_SILENCE, Mode, quote_identifier, session_options, sqlstate};
use crate::source::postgres::conninfo::{Host, RootCertificates, Settings, SslMode};
use crate::source::postgres::extract::around::{self, Around, Parent};
use crate::source::postgres::extract::names::Selection;
use crate::source::postgres::extract::{self, Relation, run};
use crate::source::postgres::instance::{Account, Tools};

/// The bundles of Debian, Fedora and SUSE: for versions whose libpq does not know the system's certificates.
const BUNDLES: [&str; 3] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];
/// So many names are told.
const TOLD: usize = 5;
/// In force in every session that loads a dump, as in the one that wrote it ([`crate::source::postgres::instance::Instance::neutral_options`]): without them a
/// server reads an amount of money or an array as another one than was written. What else changes how values look, the programs set themselves, or a server
/// reads whatever is set.
const SESSION: [(&str, &str); 2] = [("lc_monetary", "C"), ("array_nulls", "on")];

/// A database that takes a part.
#[derive(Debug, Clone)]
pub struct Target {
    /// With [`SESSION`].
    settings: Settings,
    /// As the operator gave them.
    options: Option<String>,
    database: String,
}

impl Target {
    /// Reads the URL of a target.
    ///
    /// # Errors
    /// `Usage` when it is not understood, and when it holds a password: everybody on the host could read it.
    pub fn parse(url: &str) -> Result<Self> {
        let mut settings = Settings::parse(url).map_err(|error| error.within("understand the target of the restore"))?;
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
        let options = settings.options.clone();
        let with_session = options.iter().cloned().chain([value_options()]).collect::<Vec<_>>().join(" ");
        settings.options = Some(with_session);
        Ok(Self { settings, options, database })
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
    /// `Usage` when there is no such database, or one that cannot take anything, or that would read values as others than they are.
    pub(super) fn connect(&self, cancel: &Cancel) -> Result<Connection> {
        let otherwise = || {
            let what = format!(
                "its sessions do not take the settings {}, so it may read amounts of money and arrays as others than they are; nothing was loaded",
                value_options()
            );
            self.refuse(what).hint("name the server itself: a pooler (PgBouncer) may keep such settings from it")
        };
        let mut connection =
            Connection::connect(&self.settings, Mode::Sql { database: None }, cancel).map_err(|error| match sqlstate(&error) {
                Some("3D000") => {
                    self.refuse("there is no such database").hint("make it first (createdb), or name another; lifeboat makes none")
                }
                // `unsupported startup parameter`
                Some("08P01") => otherwise().because(error),
                _ => self.within(error),
            })?;
        for (name, value) in SESSION {
            let there = connection.value(&format!("SELECT pg_catalog.current_setting('{name}')")).map_err(|error| self.within(error))?;
            if there.as_deref() != Some(value) {
                return Err(otherwise());
            }
        }
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
        let there = named_there(connection, "'r', 'p', 'v', 'm', 'S', 'f', 'i', 'I', 'c'").map_err(|error| self.within(error))?;
        let taken: Vec<String> = wanted.intersection(&there).map(|(schema, name)| format!("{schema}.{name}")).collect();
        if taken.is_empty() {
            return Ok(());
        }
        let more = if taken.len() > TOLD { format!(" and {} more", taken.len() - TOLD) } else { String::new() };
        let first = taken.iter().take(TOLD).cloned().collect::<Vec<_>>().join(", ");
        Err(self
            .refuse(format!("it has {first}{more} already; nothing was loaded"))
            .hint(
                "name a database without them (createdb), or put what is there aside first, which takes a table's indexes and sequences along: CREATE SCHEMA aside; \
                 ALTER TABLE … SET SCHEMA aside",
            ))
    }

    /// A child of a table is made from that, so it must be there.
    pub(super) fn check_parents<'a>(&self, connection: &mut Connection, mut parents: impl Iterator<Item = &'a Parent>) -> Result<()> {
        let there = relations_there(connection).map_err(|error| self.within(error))?;
        let Some(one) = parents.find(|one| !there.contains(&(one.schema.clone(), one.name.clone()))) else { return Ok(()) };
        Err(self
            .refuse(format!(
                "{} inherits from {}, which is neither there nor among what was asked for; nothing was loaded",
                one.child, one.sql
            ))
            .hint(format!("name {} too: all that inherits from it comes with it", one.sql)))
    }

    /// Whether this is the very database that was backed up.
    pub(super) fn is(&self, system_identifier: &str, database: &str, cancel: &Cancel) -> Result<bool> {
        if self.database != database {
            return Ok(false);
        }
        match self.connect(cancel)?.value("SELECT system_identifier FROM pg_catalog.pg_control_system()") {
            Ok(there) => Ok(there.as_deref() == Some(system_identifier)),
            // Rather something is told that was never there.
            Err(error) if sqlstate(&error) == Some("42501") => Ok(true),
            Err(error) => Err(self.within(error)),
        }
    }

    /// Makes extended statistics, and looks for what else surrounded the tables that were loaded. Yields what is not as it was; `own` as in
    /// [`around::lacking`].
    pub(super) fn surround(&self, around: &Around, own: bool, with_owners: bool, cancel: &Cancel) -> Result<Vec<String>> {
        let mut connection = self.connect(cancel)?;
        connection.set_timeout(LONG_SILENCE);
        surround_by(&mut connection, around, own, with_owners).map_err(|error| {
            self.within(error).hint(
                "the tables were loaded; what surrounded them at the source (foreign keys of others, views, publications) was not looked at to its end",
            )
        })
    }

    /// Materialized views were filled in a session that writes amounts as `C` has them. Yields those to be refreshed, where the target has it otherwise.
    pub(super) fn money_as_text(&self, views: &[String], cancel: &Cancel) -> Result<Vec<String>> {
        if views.is_empty() {
            return Ok(Vec::new());
        }
        let mut usual = self.settings.clone();
        usual.options.clone_from(&self.options);
        let setting = Connection::connect(&usual, Mode::Sql { database: None }, cancel)
            .and_then(|mut connection| connection.value("SELECT pg_catalog.current_setting('lc_monetary')"))
            .map_err(|error| self.within(error))?
            .unwrap_or_default();
        let told = |view: &String| {
            format!(
                "materialized view {view} reads amounts of money and was filled under lc_monetary = C, where the target has {setting}: REFRESH MATERIALIZED VIEW {view}"
            )
        };
        Ok(if matches!(setting.as_str(), "C" | "POSIX") { Vec::new() } else { views.iter().map(told).collect() })
    }

    /// Loads a dump in one transaction. Missing schemas of single tables are made, and removed again when that fails.
    pub(super) fn load(&self, load: &Load<'_>) -> Result<Loaded> {
        let mut connection = self.connect(load.cancel)?;
        let mut warnings = Vec::new();
        let left_out = self.left_out(&mut connection, load.roles)?;
        let excluded = self.excluded_keys(&mut connection, load, &mut warnings)?;
        let is_left_out = |line: &str| {
            excluded.iter().any(|key| is_entry(line, *key))
                || load.unattached.contains(line)
                || left_out.system_privileges.is_some() && is_system_privilege(line)
        };
        let list = load.scratch.join("list");
        write_private(&list, in_order(load.contents).into_iter().filter(|line| !is_left_out(line)))?;
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
        warnings.extend(made.iter().map(|schema| {
            format!("schema {schema} was made for it: it belongs to {}, and nobody has privileges on it", self.settings.user)
        }));
        let with_owners = left_out.owners.is_none();
        if let Some(why) = left_out.owners {
            command.args(["--no-owner", "--no-privileges"]);
            warnings.push(format!("owners and privileges were left out: {why}; all of it belongs to {}", self.settings.user));
        } else if let Some(why) = left_out.privileges {
            command.arg("--no-privileges");
            warnings.push(format!("privileges were left out: {why}; nobody but the owner of each has any"));
        } else if let Some(why) = left_out.system_privileges {
            warnings.push(format!("privileges on what belongs to PostgreSQL itself (pg_catalog) were left out: {why}"));
        }
        command.arg(format!("--dbname={}", conninfo(&self.settings, &self.database, load.tools.major(), connection.takes_options())?));
        command.arg(format!("--use-list={}", list.display())).arg(load.dump);
        let what = format!("load into database {} at {}", self.database, self.settings);
        match run(command, load.scratch, &what, load.cancel) {
            Ok(_) => Ok(Loaded { warnings, with_owners }),
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

    /// Which owners and privileges cannot be as they were, and why.
    fn left_out(&self, connection: &mut Connection, roles: &Roles) -> Result<LeftOut> {
        let failed = |error| self.within(error);
        let is_superuser = connection.value("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user").map_err(failed)?;
        if is_superuser.as_deref() != Some("t") {
            return Ok(LeftOut { owners: Some(format!("{} is no superuser", self.settings.user)), ..LeftOut::default() });
        }
        let rows = connection.query("SELECT rolname FROM pg_catalog.pg_roles").map_err(failed)?;
        let there: BTreeSet<String> = rows.iter().map(|row| row.required("rolname").map(str::to_owned)).collect::<Result<_>>()?;
        let missing = |roles: &BTreeSet<String>| {
            let missing: Vec<&str> = roles.difference(&there).map(String::as_str).collect();
            (!missing.is_empty()).then(|| format!("the target has no role {}", missing.join(", ")))
        };
        Ok(LeftOut {
            owners: missing(&roles.owners),
            privileges: missing(&roles.grantees),
            system_privileges: missing(&roles.system_grantees),
        })
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

fn surround_by(connection: &mut Connection, around: &Around, own: bool, with_owners: bool) -> Result<Vec<String>> {
    around::qualify(connection)?;
    let mut lacking = around.alone();
    for one in &around.statistics {
        let owner = format!("ALTER STATISTICS {} OWNER TO {}", one.name, quote_identifier(&one.owner));
        let made = connection.execute(&one.sql).and_then(|()| if with_owners { connection.execute(&owner) } else { Ok(()) });
        match made {
            Ok(()) => {}
            Err(error) if sqlstate(&error).is_some() => {
                lacking.push(format!("the extended statistics {} could not be made ({error}): {}", one.name, one.sql));
            }
            Err(error) => return Err(error),
        }
    }
    for one in &around.large_objects {
        let there = match connection.value(&one.sql) {
            Ok(count) => extract::number(&count.unwrap_or_default())?,
            // A table that may not be counted, either.
            Err(error) if sqlstate(&error) == Some("42501") => 0,
            Err(error) => return Err(error),
        };
        lacking.extend(one.missing(there));
    }
    let there: BTreeSet<_> = around::ties(connection)?.iter().map(around::Tie::key).collect();
    let bases = around::bases(connection)?;
    for what in around.ties.iter().filter(|tie| !there.contains(&tie.key())).filter_map(|tie| around::lacking(tie, &bases, own)) {
        // A view that reads several of the tables.
        if !lacking.contains(&what) {
            lacking.push(what);
        }
    }
    for one in around.dependents.iter().filter(|_| own) {
        let address = one.address.each_ref().map(|text| Some(text.as_str()));
        match connection.query_with("SELECT pg_get_object_address($1, $2::text[], $3::text[])", &address) {
            Ok(_) => {}
            Err(error) if sqlstate(&error).is_some_and(|state| state.starts_with("42")) => {
                lacking.push(format!("{} is not in the target; --only of the whole database to a file holds it", one.what));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(lacking)
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
    pub(super) roles: &'a Roles,
    /// Lines that would attach a partition, or an index of one, to what is not in the part.
    pub(super) unattached: &'a BTreeSet<&'a str>,
    /// To tables outside of the part.
    pub(super) foreign_keys: &'a [ForeignKey],
    pub(super) cancel: &'a Cancel,
}

/// How it went.
pub(super) struct Loaded {
    pub(super) warnings: Vec<String>,
    pub(super) with_owners: bool,
}

/// Whom what is loaded needs.
#[derive(Debug, Default)]
pub(super) struct Roles {
    pub(super) owners: BTreeSet<String>,
    /// Whoever gave or has privileges on what is loaded.
    pub(super) grantees: BTreeSet<String>,
    /// The same on what every database has of itself, which a dump of a whole one holds too.
    pub(super) system_grantees: BTreeSet<String>,
}

/// Why something of it is left out, for each.
#[derive(Debug, Default)]
struct LeftOut {
    owners: Option<String>,
    privileges: Option<String>,
    system_privileges: Option<String>,
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

/// Whether a line of a list gives privileges on what every database has of itself: `3367; 0 0 ACL pg_catalog FUNCTION …`.
fn is_system_privilege(line: &str) -> bool {
    line.split_once("; 0 0 ACL ").is_some_and(|(_, rest)| rest.starts_with("pg_catalog ") || rest.starts_with("information_schema "))
}

/// The entries of a list in the order in which they are loaded: event triggers (3466 is `pg_event_trigger`) and what is said about them come last, so that
/// none of them runs, and writes or forbids something, while materialized views are filled.
fn in_order(contents: &str) -> Vec<&str> {
    let is_last = |line: &&str| {
        line.split_once("; ").is_some_and(|(_, rest)| {
            ["3466 ", "0 0 COMMENT - EVENT TRIGGER ", "0 0 SECURITY LABEL - EVENT TRIGGER "].iter().any(|begin| rest.starts_with(begin))
        })
    };
    let (last, mut lines): (Vec<&str>, Vec<&str>) = contents.lines().filter(|line| !line.starts_with(';')).partition(is_last);
    lines.extend(last);
    lines
}

/// The lines of a list (`pg_restore --list --verbose`) that attach a partition, or an index of one, to what is not in it.
pub(super) fn unattached(contents: &str) -> BTreeSet<&str> {
    let entries = || contents.lines().filter_map(|line| line.split_once("; ").map(|(number, rest)| (line, number, rest)));
    let with = |is_one: &dyn Fn(&str) -> bool| -> BTreeSet<&str> {
        entries().filter(|(_, _, rest)| is_one(rest)).map(|(_, number, _)| number).collect()
    };
    // `1259 16389 TABLE public orders postgres`: the object's class and number, then what it is.
    let kind = |rest: &str| rest.splitn(3, ' ').nth(2).unwrap_or_default().to_owned();
    let tables = with(&|rest| rest.starts_with("1259 ") && ["TABLE ", "FOREIGN TABLE "].iter().any(|what| kind(rest).starts_with(what)));
    let indexes = with(&|rest| ["INDEX ", "CONSTRAINT "].iter().any(|what| kind(rest).starts_with(what)) && !rest.starts_with("0 0 "));
    let mut found = BTreeSet::new();
    let mut lines = contents.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((_, rest)) = line.split_once("; ") else { continue };
        let ends = match rest {
            _ if rest.starts_with("0 0 TABLE ATTACH ") => &tables,
            _ if rest.starts_with("0 0 INDEX ATTACH ") => &indexes,
            _ => continue,
        };
        let needs = lines.peek().and_then(|next| next.strip_prefix(";\tdepends on:")).unwrap_or_default();
        let both: BTreeSet<&str> = needs.split_whitespace().filter(|number| ends.contains(number)).collect();
        if both.len() < 2 {
            found.insert(line);
        }
    }
    found
}

/// Schema and name of everything that has rows or a name among tables.
fn relations_there(connection: &mut Connection) -> Result<BTreeSet<(String, String)>> {
    named_there(connection, "'r', 'p', 'v', 'm', 'S', 'f'")
}

/// The same of these kinds (`pg_class.relkind`): one name stands for one of any kind.
fn named_there(connection: &mut Connection, kinds: &str) -> Result<BTreeSet<(String, String)>> {
    let rows = connection.query(&format!(
        "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname <> 'pg_catalog' AND n.nspname <> 'information_schema' AND c.relkind IN ({kinds})"
    ))?;
    rows.iter().map(|row| Ok((row.required("nspname")?.to_owned(), row.required("relname")?.to_owned()))).collect()
}

/// [`SESSION`] as a session is told: libpq's `options`.
#[must_use]
pub fn value_options() -> String {
    SESSION.map(|(name, value)| format!("-c {name}={value}")).join(" ")
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

/// The same connection in libpq's words, without the password. What proves the server is not left to libpq's defaults. `takes_options`: the server takes what lifeboat's own
/// sessions say of themselves; then what a role or a database has as a setting does not change what the program sees.
pub(in crate::source::postgres) fn conninfo(settings: &Settings, database: &str, major: u32, takes_options: bool) -> Result<String> {
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
    let options = if takes_options { Some(session_options(settings.options.as_deref())) } else { settings.options.clone() };
    pairs.extend(options.map(|options| ("options", options)));
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
    fn every_session_reads_values_as_they_were_written() {
        let options = |url: &str| Target::parse(url).unwrap().settings.options.unwrap();
        assert_eq!(options("postgresql://me@db/crm"), "-c lc_monetary=C -c array_nulls=on");
        let own = "postgresql://me@db/crm?options=-c%20lc_monetary%3Des_AR%20-c%20work_mem%3D1GB";
        assert_eq!(options(own), "-c lc_monetary=es_AR -c work_mem=1GB -c lc_monetary=C -c array_nulls=on", "the last one holds");
        let told = conninfo(&Target::parse("postgresql://me@db/crm").unwrap().settings, "crm", 18, true).unwrap();
        assert!(told.contains(" -c lc_monetary=C -c array_nulls=on "), "{told}");
    }

    #[test]
    fn event_triggers_come_last() {
        let list = ";\n; Archive\n5; 3466 9 EVENT TRIGGER - et me\n;\tdepends on: 3\n6; 0 0 COMMENT - EVENT TRIGGER et me\n7; 0 0 COMMENT public TABLE t me\n\
                    8; 0 12 MATERIALIZED VIEW DATA public m me\n";
        let ordered = [
            "7; 0 0 COMMENT public TABLE t me",
            "8; 0 12 MATERIALIZED VIEW DATA public m me",
            "5; 3466 9 EVENT TRIGGER - et me",
            "6; 0 0 COMMENT - EVENT TRIGGER et me",
        ];
        assert_eq!(in_order(list), ordered);
    }

    #[test]
    fn what_is_attached_to_nothing_is_known() {
        // As pg_restore of 15 says it.
        let list = "217; 1259 16436 TABLE sales ev_26 postgres\n218; 1259 16441 TABLE sales ev 26 x postgres\n;\tdepends on: 217\n\
            3218; 0 0 TABLE ATTACH sales ev 26 x postgres\n;\tdepends on: 218 217\n3217; 0 0 TABLE ATTACH sales ev_26 postgres\n;\tdepends on: 217\n\
            3377; 0 16441 TABLE DATA sales ev 26 x postgres\n;\tdepends on: 218\n\
            3223; 2606 16440 CONSTRAINT sales ev_26 ev_26_pkey postgres\n;\tdepends on: 217 217 217 217\n\
            3226; 2606 16445 CONSTRAINT sales ev 26 x ev 26 x_pkey postgres\n;\tdepends on: 218 218 218 218 3223\n\
            3224; 1259 16450 INDEX sales ev_26_t_idx postgres\n;\tdepends on: 217 217\n3227; 1259 16451 INDEX sales ev 26 x_t_idx postgres\n;\tdepends on: 218 3224 218\n\
            3230; 0 0 INDEX ATTACH sales ev 26 x_pkey postgres\n;\tdepends on: 3226 218 3223 217 3223 217 218 217\n\
            3231; 0 0 INDEX ATTACH sales ev 26 x_t_idx postgres\n;\tdepends on: 3227 3224 218 217\n\
            3228; 0 0 INDEX ATTACH sales ev_26_pkey postgres\n;\tdepends on: 3223 217 217\n3229; 0 0 INDEX ATTACH sales ev_26_t_idx postgres\n;\tdepends on: 3224 217\n";
        let expected = [
            "3217; 0 0 TABLE ATTACH sales ev_26 postgres",
            "3228; 0 0 INDEX ATTACH sales ev_26_pkey postgres",
            "3229; 0 0 INDEX ATTACH sales ev_26_t_idx postgres",
        ];
        assert_eq!(unattached(list), BTreeSet::from(expected));
    }

    #[test]
    fn privileges_on_the_servers_own_objects_are_known() {
        assert!(is_system_privilege("3367; 0 0 ACL pg_catalog FUNCTION pg_switch_wal() postgres"));
        assert!(!is_system_privilege("3366; 0 0 ACL - SCHEMA public pg_database_owner"));
        assert!(!is_system_privilege("3366; 0 0 ACL public TABLE pg_catalog x"));
    }

    #[test]
    fn libpq_is_told_what_proves_the_server() {
        let settings = |text: &str| Settings::parse(text).unwrap();
        let far = conninfo(&settings("postgresql://me@db.example.com/x"), "it's \\ x", 18, true).unwrap();
        assert!(far.contains("sslmode='verify-full' sslrootcert='system'") && far.contains("dbname='it\\'s \\\\ x'"), "{far}");
        let near = conninfo(&settings("postgresql://me@localhost/x"), "x", 15, true).unwrap();
        assert!(near.contains("sslmode='prefer'"), "{near}");
        let alive = "keepalives_idle='30' keepalives_interval='10' keepalives_count='3' tcp_user_timeout='60000'";
        assert!(far.contains(alive) && near.contains(alive), "{far}");
        let own =
            conninfo(&settings("postgresql://me@db/x?tcp_user_timeout=5000&keepalives_count=9&sslmode=disable"), "x", 15, true).unwrap();
        assert!(own.contains("keepalives_count='9' tcp_user_timeout='5000'"), "{own}");
        let socket = conninfo(&settings("host=/run/pg user=me"), "x", 15, false).unwrap();
        assert!(
            socket.contains("host='/run/pg'")
                && !socket.contains("options")
                && far.contains("options='-c role=none ")
                && !socket.contains("sslmode")
                && !socket.contains("keepalives"),
            "{socket}"
        );
    }

    #[test]
    fn a_foreign_key_is_known_by_its_number() {
        let line = "3346; 2606 16401 FK CONSTRAINT public orders orders_customer_fkey postgres";
        assert!(is_entry(line, 16401) && !is_entry(line, 1640) && !is_entry(line, 6401));
        assert!(!is_entry("3346; 2606 16401 CONSTRAINT public orders x postgres", 16401));
    }
}
