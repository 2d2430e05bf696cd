//! Databases of a logical snapshot into a server: each under a temporary name that says what it is, renamed when everything is in it.
//!
//! So a restore that failed or was killed never looks like one that is complete. What is left of it is known by its name, and removed by the
//! next restore of the same database.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, IoContext, Kind, Result};
use crate::event::{Cancel, Event};
use crate::source::postgres::client::{Connection, LONG_SILENCE, Mode, quote_identifier, quote_literal, sqlstate};
use crate::source::postgres::conninfo::Settings;
use crate::source::postgres::fingerprint::in_encoding;
use crate::source::postgres::instance::Tools;
use crate::source::postgres::logical::catalog::{self, number, qualified, told};
use crate::source::postgres::logical::contents::{Contents, Database, Grant, LargeObject, Membership, Role, Setting, Table};
use crate::source::postgres::logical::programs::{self, Section};
use crate::source::postgres::logical::rows;
use crate::source::{ExtractedTable, SourceContext};

/// Begins the name of a database that is not complete: [`unfinished`] goes on.
const UNFINISHED: &str = "lifeboat_restore_";
/// Begins its comment, for people; the name that it will have follows.
const COMMENT: &str = "lifeboat: unfinished restore of ";
/// Streams at a time.
const STREAMS: usize = 4;
/// What a row or large object is sent in.
const PIECE: usize = 256 * 1024;
/// Sessions that were ended may need so long to be gone.
const PATIENCE: Duration = Duration::from_secs(15);
/// Settings whose value is a list of names.
const LISTS: [&str; 5] =
    ["search_path", "local_preload_libraries", "session_preload_libraries", "shared_preload_libraries", "temp_tablespaces"];

/// A server that takes databases.
#[derive(Debug, Clone)]
pub struct Target {
    settings: Settings,
}

/// What was loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    pub databases: Vec<String>,
    pub tables: Vec<ExtractedTable>,
    pub warnings: Vec<String>,
    /// Sentences on what is not as it was: the restore is incomplete.
    pub lacking: Vec<String>,
}

/// What would be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preview {
    pub steps: Vec<String>,
    pub warnings: Vec<String>,
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
                "leave it out and put it into ~/.pgpass or the file that PGPASSFILE names (HOST:PORT:DATABASE:USER:PASSWORD, mode 0600; \
                 DATABASE is *)",
            ));
        }
        Ok(Self { settings })
    }

    pub(super) fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// Where to, without a password.
    #[must_use]
    pub fn shown(&self) -> String {
        self.settings.to_string()
    }

    fn refuse(&self, why: impl std::fmt::Display) -> Error {
        Error::new(Kind::Usage, format!("restore into {}: {why}", self.settings))
    }

    /// A session beside the databases that are made.
    fn admin(&self, targets: &[String], cancel: &Cancel) -> Result<Connection> {
        let first = if targets.iter().any(|name| name == "postgres") { "template1" } else { "postgres" };
        let connect = |name| Connection::connect(&self.settings, Mode::Sql { database: Some(name) }, cancel);
        let other = if first == "postgres" { "template1" } else { "postgres" };
        let connection = connect(first).or_else(|error| if sqlstate(&error) == Some("3D000") { connect(other) } else { Err(error) });
        let mut connection = connection.map_err(|error| error.within(format!("restore into {}", self.settings)))?;
        if connection.value("SELECT pg_catalog.pg_is_in_recovery()")?.as_deref() == Some("t") {
            return Err(self.refuse("it is a standby, which takes nothing").hint("name the primary"));
        }
        connection.execute("SET statement_timeout = 0; SET lock_timeout = 0; SET search_path = pg_catalog")?;
        Ok(connection)
    }

    /// What the databases of a snapshot will be called there.
    ///
    /// # Errors
    /// `Usage` when the URL names a database for several.
    pub fn names(&self, databases: &[String]) -> Result<Vec<String>> {
        match (self.settings.database.as_deref(), databases) {
            // Everybody writes it to say "any".
            (None | Some("postgres"), _) => Ok(databases.to_vec()),
            (Some(name), [_]) => Ok(vec![name.to_owned()]),
            (Some(name), _) => Err(self
                .refuse(format!("the URL names the database {name}, and the snapshot has {}: {}", databases.len(), told(databases)))
                .hint("leave the database out of the URL: they come back under their own names")),
        }
    }

    /// Looks whether it can take these databases.
    ///
    /// # Errors
    /// `Usage` says what is in the way.
    pub fn check(&self, databases: &[String], server_version: u32, cancel: &Cancel) -> Result<Preview> {
        let names = self.names(databases)?;
        let mut admin = self.admin(&names, cancel)?;
        let mut preview = self.look(&mut admin, &names, server_version, cancel)?;
        for (from, to) in databases.iter().zip(&names) {
            preview.steps.push(if from == to {
                format!("restores database {from} under a temporary name and renames it when everything is in it")
            } else {
                format!("restores database {from} under a temporary name and calls it {to} when everything is in it")
            });
        }
        Ok(preview)
    }

    fn look(&self, admin: &mut Connection, names: &[String], server_version: u32, cancel: &Cancel) -> Result<Preview> {
        let (there, had) = (admin.server_version() / 10_000, server_version / 10_000);
        if there < had {
            return Err(self
                .refuse(format!("it is PostgreSQL {there}, and the snapshot is of {had}"))
                .hint("name a server of the same or a newer major version"));
        }
        let rows =
            admin.query("SELECT r.rolsuper, r.rolcreatedb, r.rolcreaterole FROM pg_catalog.pg_roles r WHERE r.rolname = current_user")?;
        let may = |index: usize| rows.first().and_then(|row| row.get(index)) == Some("t");
        if !may(0) && !may(1) {
            return Err(self.refuse("the role may not make databases").hint("ALTER ROLE … CREATEDB, or name a superuser in the URL"));
        }
        let mut preview = Preview::default();
        if !may(0) {
            preview.warnings.push("the role is no superuser: owners and privileges are left out, everything belongs to it".into());
        }
        for name in names {
            match self.state(admin, name, cancel)? {
                State::Absent => {}
                State::Empty => preview.steps.push(format!("replaces the empty database {name}")),
                State::Full(what) => {
                    return Err(self.refuse(format!("it has a database {name} that is not empty ({what}); nothing was touched")).hint(
                        format!(
                            "move it aside first (ALTER DATABASE {0} RENAME TO …), drop it (DROP DATABASE {0}), or name another server",
                            quote_identifier(name)
                        ),
                    ));
                }
            }
        }
        let left = left(admin, names)?;
        if !left.is_empty() {
            preview.steps.push(format!("removes {}, left by a restore that did not end", told(&left)));
        }
        Ok(preview)
    }

    fn state(&self, admin: &mut Connection, name: &str, cancel: &Cancel) -> Result<State> {
        let known = admin.query(&format!("SELECT datallowconn FROM pg_catalog.pg_database WHERE datname = {}", quote_literal(name)))?;
        match known.first() {
            None => return Ok(State::Absent),
            Some(row) if row.get(0) != Some("t") => return Ok(State::Full("it takes no connections".into())),
            Some(_) => {}
        }
        let mut sql = Connection::connect(&self.settings, Mode::Sql { database: Some(name) }, cancel)
            .map_err(|error| error.within(format!("look whether database {name} is empty")))?;
        let extension = |class: &str, id: &str| {
            format!(
                "NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.{class}'::pg_catalog.regclass \
                 AND d.objid = {id} AND d.deptype = 'e')"
            )
        };
        let places = "n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND n.nspname !~ '^pg_(toast_)?temp_'";
        let query = format!(
            "(SELECT 'table or view ' || n.nspname || '.' || c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n \
               ON n.oid = c.relnamespace WHERE {places} AND {} LIMIT 1) UNION ALL \
             (SELECT 'function ' || n.nspname || '.' || p.proname FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n \
               ON n.oid = p.pronamespace WHERE {places} AND {} LIMIT 1) UNION ALL \
             (SELECT 'type ' || n.nspname || '.' || t.typname FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n \
               ON n.oid = t.typnamespace WHERE {places} AND {} LIMIT 1) UNION ALL \
             (SELECT 'schema ' || n.nspname FROM pg_catalog.pg_namespace n WHERE {places} AND n.nspname <> 'public' AND {} LIMIT 1) UNION ALL \
             (SELECT 'large object ' || oid FROM pg_catalog.pg_largeobject_metadata LIMIT 1)",
            extension("pg_class", "c.oid"),
            extension("pg_proc", "p.oid"),
            extension("pg_type", "t.oid"),
            extension("pg_namespace", "n.oid"),
        );
        let found = sql.query(&query)?;
        Ok(found.first().map_or(State::Empty, |row| State::Full(row.get(0).unwrap_or_default().to_owned())))
    }
}

enum State {
    Absent,
    Empty,
    /// The first thing in it.
    Full(String),
}

/// Databases that restores of these names left. Told by the name, which is there from the first moment on.
fn left(admin: &mut Connection, names: &[String]) -> Result<Vec<String>> {
    let rows = admin.query(&format!(
        "SELECT datname FROM pg_catalog.pg_database WHERE pg_catalog.starts_with(datname, {})",
        quote_literal(UNFINISHED)
    ))?;
    let ours: Vec<String> = names.iter().map(|name| unfinished(name)).collect();
    let mut left = Vec::new();
    for row in &rows {
        let name = row.required("datname")?;
        if ours.iter().any(|ours| name.starts_with(ours)) {
            left.push(name.to_owned());
        }
    }
    Ok(left)
}

/// A load under way.
struct Load<'a> {
    target: &'a Target,
    tree: &'a Path,
    contents: &'a Contents,
    tools: Tools,
    context: &'a SourceContext,
    superuser: bool,
    /// Of the target: who may own things.
    roles: BTreeSet<String>,
    loaded: Loaded,
}

/// Loads everything in a restored tree.
///
/// # Errors
/// `Usage` says what is in the way: nothing was touched then. Otherwise what had been loaded is removed again, as far as that is possible.
pub fn load(tree: &Path, target: &Target, bin_directory: Option<&Path>, context: &SourceContext) -> Result<Loaded> {
    let (cancel, contents) = (&context.cancel, Contents::read(tree)?);
    let databases: Vec<String> = contents.databases.iter().map(|database| database.name.clone()).collect();
    let names = target.names(&databases)?;
    let mut admin = target.admin(&names, cancel)?;
    target.look(&mut admin, &names, contents.server_version, cancel)?;
    let tools = programs::find(contents.dump_major, admin.server_version() / 10_000, bin_directory)?;
    let superuser = admin.value("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user")?.as_deref() == Some("t");
    let mut load = Load { target, tree, contents: &contents, tools, context, superuser, roles: BTreeSet::new(), loaded: Loaded::default() };
    for name in left(&mut admin, &names)? {
        admin.execute(&format!("DROP DATABASE {}", quote_identifier(&name))).map_err(|error| match sqlstate(&error) {
            Some("55006") => {
                Error::new(Kind::Busy, format!("restore into {}: another restore of the same database works there", target.settings))
                    .because(error)
                    .hint(format!("wait for it; if there is none, DROP DATABASE {} WITH (FORCE)", quote_identifier(&name)))
            }
            _ => error.within(format!("remove {name}, left by a restore that did not end")),
        })?;
        load.loaded.warnings.push(format!("removed {name}, left by a restore that did not end"));
    }
    load.make_roles(&mut admin)?;
    let mut made = Vec::new();
    match load.all(&mut admin, &names, &mut made) {
        Ok(()) => Ok(load.loaded),
        Err(error) => Err(give_up(target, &made, &load.loaded.databases, error)),
    }
}

/// Removes what is not complete. `made` are temporary names; the first of these databases were renamed, or about to be, to `placed`.
fn give_up(target: &Target, made: &[String], placed: &[String], error: Error) -> Error {
    // Also after an interruption, which the run's token would end at once.
    let remove = || -> Result<Vec<&str>> {
        let mut admin = target.admin(&["postgres".to_owned()], &Cancel::default())?;
        let rows = admin.query(&format!(
            "SELECT datname FROM pg_catalog.pg_database WHERE pg_catalog.starts_with(datname, {})",
            quote_literal(UNFINISHED)
        ))?;
        let there: BTreeSet<&str> = rows.iter().map(|row| row.required("datname")).collect::<Result<_>>()?;
        let kept = placed.iter().zip(made).filter(|(_, temporary)| !there.contains(temporary.as_str()));
        let kept = kept.map(|(name, _)| name.as_str()).collect();
        for name in made {
            admin.execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote_identifier(name)))?;
        }
        Ok(kept)
    };
    let earlier = error.hint_text().map(|hint| format!("{hint}; ")).unwrap_or_default();
    match remove() {
        Ok(kept) if kept.is_empty() => error.hint(format!("{earlier}what was loaded was removed again")),
        Ok(kept) => {
            let all = kept.join(", ");
            let drops = kept.iter().map(|name| format!("DROP DATABASE {}", quote_identifier(name))).collect::<Vec<_>>().join("; ");
            error.hint(format!(
                "{earlier}complete and kept: {all}; the others were removed again. Before the next restore of all of them: {drops}"
            ))
        }
        Err(left) => error.hint(format!("{earlier}{} could not be removed ({left}): the next restore removes it", told(made))),
    }
}

impl Load<'_> {
    fn all(&mut self, admin: &mut Connection, names: &[String], made: &mut Vec<String>) -> Result<()> {
        let contents = self.contents;
        let mut holders = Vec::new();
        for (database, name) in contents.databases.iter().zip(names) {
            let temporary = temporary_name(name)?;
            made.push(temporary.clone());
            self.progress("load", name);
            Self::create(admin, database, name, &temporary).map_err(|error| error.within(format!("make database {name}")))?;
            holders.push(self.fill(database, &temporary).map_err(|error| error.within(format!("load database {name}")))?);
            self.dress(admin, database, name, &temporary)?;
        }
        for (((database, name), temporary), holder) in contents.databases.iter().zip(names).zip(made.iter()).zip(holders) {
            self.context.cancel.check()?;
            drop(holder);
            self.place(admin, database, name, temporary)?;
        }
        Ok(())
    }

    fn progress(&self, name: &'static str, detail: &str) {
        self.context.progress.event(Event::Phase { name, detail: detail.to_owned() });
    }

    /// All of them or, when it is killed, none: the next restore leaves those that are there as they are.
    fn make_roles(&mut self, admin: &mut Connection) -> Result<()> {
        admin.execute("BEGIN")?;
        let (mut kept, mut new) = (Vec::new(), BTreeSet::new());
        self.roles = role_names(admin)?;
        for role in &self.contents.roles {
            if self.roles.contains(&role.name) {
                kept.push(role.name.clone());
                continue;
            }
            match part(admin, &create_role(role, self.superuser))? {
                None => {
                    new.insert(role.name.as_str());
                }
                Some(error) => self.loaded.lacking.push(format!("role {} could not be made: {}", role.name, server_words(&error))),
            }
        }
        self.roles = role_names(admin)?;
        let others: Vec<String> = kept.into_iter().filter(|name| *name != self.contents.superuser).collect();
        if !others.is_empty() {
            self.loaded.warnings.push(format!("roles that exist were left as they are: {}", told(&others)));
        }
        let (mut statements, mut left) = (Vec::new(), Vec::new());
        let there = membership_names(admin)?;
        for membership in in_one_grant(&self.contents.memberships) {
            let pair = (membership.role.clone(), membership.member.clone());
            // Nothing that exists is changed by a new role's members.
            if [&pair.0, &pair.1].iter().any(|name| new.contains(name.as_str())) {
                statements.push(grant_role(&membership, admin.server_version() >= 160_000));
            } else if !there.contains(&pair) && pair.1 != self.contents.superuser {
                left.push(format!("{} in {}", pair.1, pair.0));
            }
        }
        if !left.is_empty() {
            self.loaded.lacking.push(format!("memberships of roles that exist were left as they are, without: {}", told(&left)));
        }
        for setting in &self.contents.settings {
            if let Some(role) = setting.role.as_deref().filter(|role| new.contains(role)) {
                statements.push(format!("ALTER ROLE {} SET {}", quote_identifier(role), assignment(setting)));
            }
        }
        for role in self.contents.roles.iter().filter(|role| new.contains(role.name.as_str())) {
            if let Some(comment) = &role.comment {
                statements.push(format!("COMMENT ON ROLE {} IS {}", quote_identifier(&role.name), quote_literal(comment)));
            }
        }
        self.try_each(admin, statements, part)?;
        admin.execute("COMMIT")
    }

    /// Statements without which the data is whole all the same: what fails is told.
    fn try_all(&mut self, sql: &mut Connection, statements: Vec<String>) -> Result<()> {
        self.try_each(sql, statements, attempt)
    }

    fn try_each(
        &mut self,
        sql: &mut Connection,
        statements: Vec<String>,
        run: fn(&mut Connection, &str) -> Result<Option<Error>>,
    ) -> Result<()> {
        for statement in statements {
            if let Some(error) = run(sql, &statement)? {
                // A value or a comment is nobody's business.
                let shown = [" TO '", " TO  E'", " IS '", " IS  E'"]
                    .iter()
                    .fold(statement.as_str(), |text, end| text.split(end).next().unwrap_or(text));
                self.loaded.lacking.push(format!("{shown}: {}", server_words(&error)));
            }
        }
        Ok(())
    }

    fn create(admin: &mut Connection, database: &Database, name: &str, temporary: &str) -> Result<()> {
        let version = admin.server_version();
        let mut words = vec![format!(
            "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}",
            quote_identifier(temporary),
            quote_literal(&database.encoding),
            quote_literal(&database.collate),
            quote_literal(&database.ctype)
        )];
        if version >= 150_000 {
            words.push(match (database.provider.as_str(), &database.locale) {
                ("i", Some(locale)) => format!("LOCALE_PROVIDER icu ICU_LOCALE {}", quote_literal(locale)),
                ("b", Some(locale)) => format!("LOCALE_PROVIDER builtin BUILTIN_LOCALE {}", quote_literal(locale)),
                _ => "LOCALE_PROVIDER libc".to_owned(),
            });
        }
        if let Some(rules) = database.icu_rules.as_ref().filter(|_| version >= 160_000) {
            words.push(format!("ICU_RULES {}", quote_literal(rules)));
        }
        // Making one copies a template, which may take a while.
        let patience = admin.timeout();
        admin.set_timeout(Duration::from_mins(30));
        admin.execute(&words.join(" ")).map_err(|error| match sqlstate(&error) {
            Some("0A000" | "22023" | "42704" | "42809") => {
                error.hint("the locale of the source must be installed on the target's host (locale -a)")
            }
            _ => error,
        })?;
        admin.set_timeout(patience);
        admin.execute(&format!("COMMENT ON DATABASE {} IS {}", quote_identifier(temporary), quote_literal(&format!("{COMMENT}{name}"))))
    }

    /// Everything inside. Yields a session in it, which keeps another restore from taking it for one that was left.
    fn fill(&mut self, database: &Database, temporary: &str) -> Result<Connection> {
        let cancel = &self.context.cancel;
        let mut holder = rows::open(&self.target.settings, temporary, cancel)?;
        self.definitions(database, temporary, Section::Before, &mut holder)?;
        holder.set_timeout(LONG_SILENCE);
        self.rows(database, temporary)?;
        self.large_objects(database, &mut holder)?;
        self.progress("index", &database.name);
        self.definitions(database, temporary, Section::After, &mut holder)?;
        self.refresh(database, &mut holder)?;
        // Behind all that could draw from them.
        for sequence in &database.sequences {
            let name = quote_literal(&qualified(&sequence.schema, &sequence.name));
            holder
                .execute(&format!("SELECT pg_catalog.setval({name}::pg_catalog.regclass, {}, {})", sequence.value, sequence.is_called))?;
        }
        self.progress("analyze", &database.name);
        holder.execute("ANALYZE")?;
        Ok(holder)
    }

    /// `holder` is asked meanwhile whether the server still answers: building an index says nothing for hours.
    fn definitions(&mut self, database: &Database, temporary: &str, section: Section, holder: &mut Connection) -> Result<()> {
        let dump = self.tree.join(&database.folder).join(format!("{}.dump", section.word()));
        self.is_money_read_right(database, section, &dump, holder)?;
        let said = self.context.scratch.join("said");
        let usual = holder.timeout();
        holder.set_timeout(self.target.settings.timeout);
        let cancel = &self.context.cancel;
        let major = holder.server_version() / 10_000;
        let takes_options = holder.takes_options();
        let mut alive = || holder.execute("SELECT 1");
        let (tools, settings) = (&self.tools, &self.target.settings);
        let money = database.lc_monetary.as_deref();
        let told =
            programs::restore(tools, settings, major, temporary, takes_options, money, &dump, self.superuser, &said, cancel, &mut alive);
        holder.set_timeout(usual);
        let told = told.map_err(|error| {
            if error.hint_text().is_some() {
                return error;
            }
            error.hint("extensions, languages and roles that it needs must be on the target: what the server said is shown above")
        })?;
        self.loaded.warnings.extend(told.into_iter().map(|line| format!("pg_restore of database {}: {line}", database.name)));
        Ok(())
    }

    /// An amount that was written under one `lc_monetary` may be another one, a hundred times as much, under another.
    fn is_money_read_right(&mut self, database: &Database, section: Section, dump: &Path, holder: &mut Connection) -> Result<()> {
        let Some(written) = &database.lc_monetary else {
            // Format 3 says where there is some.
            if self.contents.format < 3 && section == Section::Before && programs::may_hold_money(dump)? {
                self.loaded.lacking.push(format!(
                    "definitions of database {} speak of type money, and this older snapshot does not say how its amounts are written: compare defaults, checks and \
                     bounds of partitions with the source, or back up again",
                    database.name
                ));
            }
            return Ok(());
        };
        if holder.takes_options() {
            return Ok(());
        }
        let there = catalog::lc_monetary(holder)?;
        if there == *written {
            return Ok(());
        }
        Err(self
            .target
            .refuse(format!("its lc_monetary is {there:?}, and amounts of money in the definitions are written under {written:?}"))
            .hint("it takes no start-up options: name the server itself, not a pooler before it"))
    }

    /// All tables, side by side.
    fn rows(&mut self, database: &Database, temporary: &str) -> Result<()> {
        let (next, cancel) = (AtomicUsize::new(0), &self.context.cancel);
        let failed: Mutex<Option<Error>> = Mutex::new(None);
        let loaded: Mutex<Vec<ExtractedTable>> = Mutex::default();
        let work = || -> Result<()> {
            let mut connection = rows::open(&self.target.settings, temporary, cancel)?;
            connection.set_timeout(Duration::from_hours(6));
            if self.superuser {
                // Tables of extensions have their triggers and foreign keys already, and every row is of one moment: none is changed or refused.
                connection.execute("SET session_replication_role = replica")?;
            }
            while let Some(table) = database.tables.get(next.fetch_add(1, Ordering::Relaxed)) {
                if failed.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
                    return Ok(());
                }
                let rows = self.copy(&mut connection, database, table)?;
                let table = format!("{}.{}.{}", database.name, table.schema, table.name);
                loaded.lock().unwrap_or_else(PoisonError::into_inner).push(ExtractedTable { table, rows });
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            for _ in 0..STREAMS.min(database.tables.len()) {
                scope.spawn(|| {
                    if let Err(error) = work() {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                });
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let mut loaded = loaded.into_inner().unwrap_or_else(PoisonError::into_inner);
        if loaded.len() != database.tables.len() {
            return Err(Error::new(Kind::Bug, "a table was forgotten"));
        }
        loaded.sort_by(|one, other| one.table.cmp(&other.table));
        self.loaded.tables.extend(loaded);
        Ok(())
    }

    fn copy(&self, connection: &mut Connection, database: &Database, table: &Table) -> Result<u64> {
        let what = || format!("load table {}.{}", table.schema, table.name);
        let (schema, name) = table.root.as_ref().map_or((&table.schema, &table.name), |(schema, name)| (schema, name));
        let in_encoding = in_encoding(database.rows_encoding.as_deref());
        let statement = format!("COPY {}{} FROM STDIN{in_encoding}", qualified(schema, name), rows::columns(table));
        let mut copy = connection.copy_in(&statement).map_err(|error| error.within(what()))?;
        let sent = self.each_piece(&table.path, table.bytes, &mut |piece| copy.write(piece));
        let rows = match sent {
            Ok(()) => copy.finish().map_err(|error| refused_row(error).within(what()))?,
            Err(error) => {
                // The connection ends with the worker: the server forgets the rows.
                return Err(error.within(what()));
            }
        };
        if rows == table.rows {
            return Ok(rows);
        }
        Err(Error::new(Kind::Differs, format!("{}: {rows} rows were taken, {} were backed up", what(), table.rows))
            .hint("run `lifeboat verify`, and restore another snapshot meanwhile"))
    }

    /// Reads a file of the tree, which must be as long as it was.
    fn each_piece(&self, path: &str, bytes: u64, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let place = self.tree.join(path);
        let failed = || format!("read {}", place.display());
        let mut file = File::open(&place).io_context(failed)?;
        let (mut buffer, mut seen) = (vec![0; PIECE], 0);
        loop {
            self.context.cancel.check()?;
            let count = file.read(&mut buffer).io_context(failed)?;
            if count == 0 {
                break;
            }
            seen += count as u64;
            take(&buffer[..count])?;
            self.context.progress.event(Event::Advance { bytes: count as u64, items: 0 });
        }
        if seen == bytes {
            return Ok(());
        }
        Err(Error::new(Kind::Damaged, format!("{}: it has {seen} bytes, {bytes} were backed up", failed()))
            .hint("run `lifeboat verify`, and restore another snapshot meanwhile"))
    }

    fn large_objects(&mut self, database: &Database, sql: &mut Connection) -> Result<()> {
        let mut statements = Vec::new();
        for object in &database.large_objects {
            let oid = object.oid;
            let mut hasher = blake3::Hasher::new_keyed(&self.context.fingerprint_key);
            sql.execute(&format!("BEGIN; SELECT pg_catalog.lo_create({oid})"))?;
            let mut at = 0_u64;
            self.each_piece(&object.path, object.bytes, &mut |piece| {
                hasher.update(piece);
                sql.execute(&format!("SELECT pg_catalog.lo_put({oid}, {at}, '\\x{}'::pg_catalog.bytea)", hex::encode(piece)))?;
                at += piece.len() as u64;
                Ok(())
            })?;
            sql.execute("COMMIT")?;
            statements.extend(dress_object(object, self.superuser, &self.roles));
        }
        let count = sql.value("SELECT count(*) FROM pg_catalog.pg_largeobject_metadata")?.unwrap_or_default();
        if number::<usize>(&count)? != database.large_objects.len() {
            let what = format!("count the large objects: {count} are there, {} were backed up", database.large_objects.len());
            return Err(Error::new(Kind::Differs, what));
        }
        self.try_all(sql, statements)
    }

    /// Fills materialized views, of which no event trigger of the source hears.
    fn refresh(&mut self, database: &Database, sql: &mut Connection) -> Result<()> {
        if database.materialized_views.is_empty() {
            return Ok(());
        }
        // Those of extensions stay as these made them. A setting would not silence those that are ENABLE ALWAYS before 17, and is for superusers.
        let rows = sql.query(
            "SELECT t.evtname, t.evtenabled FROM pg_catalog.pg_event_trigger t WHERE t.evtenabled <> 'D' AND t.evtevent <> 'login' \
             AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_event_trigger'::pg_catalog.regclass \
               AND d.objid = t.oid AND d.deptype = 'e') ORDER BY 1",
        )?;
        let mut enable = Vec::new();
        for row in &rows {
            let name = row.required("evtname")?;
            let trigger = format!("ALTER EVENT TRIGGER {}", quote_identifier(name));
            match sql.execute(&format!("{trigger} DISABLE")) {
                Ok(()) => {}
                Err(error) if sqlstate(&error).is_some() => {
                    let why = server_words(&error);
                    self.loaded.lacking.push(format!("event trigger {name} may have run when materialized views were refreshed: {why}"));
                    continue;
                }
                Err(error) => return Err(error),
            }
            enable.push(match row.required("evtenabled")? {
                "R" => format!("{trigger} ENABLE REPLICA"),
                "A" => format!("{trigger} ENABLE ALWAYS"),
                _ => format!("{trigger} ENABLE"),
            });
        }
        self.refresh_all(database, sql)?;
        self.try_all(sql, enable)
    }

    /// One that another one reads must come first, which their first failure tells.
    fn refresh_all(&mut self, database: &Database, sql: &mut Connection) -> Result<()> {
        let mut waiting: Vec<&(String, String)> = database.materialized_views.iter().collect();
        loop {
            let (before, mut failed) = (waiting.len(), Vec::new());
            for view in std::mem::take(&mut waiting) {
                self.context.cancel.check()?;
                match sql.execute(&format!("REFRESH MATERIALIZED VIEW {}", qualified(&view.0, &view.1))) {
                    Ok(()) => {}
                    Err(error) if sqlstate(&error).is_some() => failed.push((view, error)),
                    Err(error) => return Err(error),
                }
            }
            if failed.len() == before {
                for ((schema, name), error) in failed {
                    let why = server_words(&error);
                    self.loaded.lacking.push(format!("materialized view {schema}.{name} is empty, it could not be refreshed: {why}"));
                }
                break;
            }
            waiting = failed.into_iter().map(|(view, _)| view).collect();
        }
        Ok(())
    }

    /// Owner, privileges, settings.
    fn dress(&mut self, admin: &mut Connection, database: &Database, name: &str, temporary: &str) -> Result<()> {
        let quoted = quote_identifier(temporary);
        let mut statements = Vec::new();
        if database.connection_limit != -1 {
            statements.push(format!("ALTER DATABASE {quoted} CONNECTION LIMIT {}", database.connection_limit));
        }
        if self.superuser {
            statements.push(format!("ALTER DATABASE {quoted} OWNER TO {}", quote_identifier(&database.owner)));
            if let Some(grants) = &database.grants {
                // What the owner has of it is among the grants.
                for role in ["PUBLIC".to_owned(), quote_identifier(&database.owner)] {
                    statements.push(format!("REVOKE ALL ON DATABASE {quoted} FROM {role}"));
                }
                statements.extend(grants.iter().map(|grant| granted(grant, &format!("DATABASE {quoted}"))));
            }
        }
        for setting in &database.settings {
            statements.push(match &setting.role {
                None => format!("ALTER DATABASE {quoted} SET {}", assignment(setting)),
                Some(role) => format!("ALTER ROLE {} IN DATABASE {quoted} SET {}", quote_identifier(role), assignment(setting)),
            });
        }
        let before = self.loaded.lacking.len();
        self.try_all(admin, statements)?;
        // By the name that people know.
        for told in &mut self.loaded.lacking[before..] {
            *told = told.replace(&quoted, &quote_identifier(name));
        }
        Ok(())
    }

    /// Now it is complete: it gets its name, last of all. A database with its name lacks nothing.
    fn place(&mut self, admin: &mut Connection, database: &Database, name: &str, temporary: &str) -> Result<()> {
        let what = || format!("give the restored database its name {name}");
        let (from, to) = (quote_identifier(temporary), quote_identifier(name));
        let comment = database.comment.as_deref().map_or_else(|| "NULL".to_owned(), quote_literal);
        admin.execute(&format!("COMMENT ON DATABASE {from} IS {comment}")).map_err(|error| error.within(what()))?;
        match self.target.state(admin, name, &self.context.cancel)? {
            State::Absent => {}
            State::Empty => self
                .patiently(admin, &format!("DROP DATABASE {to}"))
                .map_err(|error| error.within(what()).hint("sessions are connected to the empty database of that name: end them"))?,
            State::Full(found) => {
                return Err(self.target.refuse(format!("a database {name} that is not empty has appeared meanwhile ({found})")));
            }
        }
        // Before it is asked for: an answer that is lost leaves it renamed.
        self.loaded.databases.push(name.to_owned());
        self.patiently(admin, &format!("ALTER DATABASE {from} RENAME TO {to}")).map_err(|error| error.within(what()))
    }

    /// Sessions of our own may not be gone yet.
    fn patiently(&self, admin: &mut Connection, statement: &str) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            match admin.execute(statement) {
                Err(error) if sqlstate(&error) == Some("55006") && Instant::now() < until => {
                    self.context.cancel.check()?;
                    std::thread::park_timeout(Duration::from_millis(100));
                }
                other => return other,
            }
        }
    }
}

/// What a server says of a row quotes it.
fn refused_row(error: Error) -> Error {
    match sqlstate(&error) {
        Some(state) if state.starts_with("22") || state.starts_with("23") => {
            Error::new(Kind::Failed, format!("the server refuses a row: SQLSTATE {state}"))
                .hint("its log tells which; restore to a server of the source's own version, or another snapshot")
        }
        // Only a function in its definition speaks of other things than the table.
        Some(state) if state.starts_with("42") => error.hint(
            "a function of the table's definition (a check, a default, a generated column) fails here: one that names things without their schema needs ALTER FUNCTION … SET \
             search_path at the source, and a new backup; the rows themselves are had with a folder as --to",
        ),
        _ => error,
    }
}

/// Begins the names of the databases that become this one and are not complete.
fn unfinished(name: &str) -> String {
    format!("{UNFINISHED}{}_", hex::encode(&blake3::hash(name.as_bytes()).as_bytes()[..8]))
}

fn temporary_name(name: &str) -> Result<String> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| Error::new(Kind::Failed, "draw a random number").because(error.to_string()))?;
    Ok(format!("{}{}", unfinished(name), hex::encode(random)))
}

/// What the server said, without the context and without values of rows: of statements on roles, databases and views.
fn server_words(error: &Error) -> String {
    match sqlstate(error) {
        // Only these are about names.
        Some(state) if state.starts_with("42") || state.starts_with("55") || state.starts_with("0L") || state.starts_with("0P") => {
            crate::source::postgres::fingerprint::described(error)
        }
        Some(state) => format!("SQLSTATE {state}"),
        None => error.to_string(),
    }
}

/// Begins a part of a transaction, which goes on whatever the server says against it.
fn part(sql: &mut Connection, statement: &str) -> Result<Option<Error>> {
    match sql.execute(&format!("SAVEPOINT part; {statement}; RELEASE SAVEPOINT part")) {
        Err(error) if sqlstate(&error).is_some() => sql.execute("ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part").map(|()| Some(error)),
        done => done.map(|()| None),
    }
}

/// What the server says against a statement.
fn attempt(sql: &mut Connection, statement: &str) -> Result<Option<Error>> {
    match sql.execute(statement) {
        Err(error) if sqlstate(&error).is_some() => Ok(Some(error)),
        done => done.map(|()| None),
    }
}

/// Of roles, with their members.
fn membership_names(sql: &mut Connection) -> Result<BTreeSet<(String, String)>> {
    let rows = sql.query(
        "SELECT r.rolname AS role, u.rolname AS member FROM pg_catalog.pg_auth_members m \
         JOIN pg_catalog.pg_roles r ON r.oid = m.roleid JOIN pg_catalog.pg_roles u ON u.oid = m.member",
    )?;
    rows.iter().map(|row| Ok((row.required("role")?.to_owned(), row.required("member")?.to_owned()))).collect()
}

fn role_names(sql: &mut Connection) -> Result<BTreeSet<String>> {
    let rows = sql.query("SELECT rolname FROM pg_catalog.pg_roles")?;
    rows.iter().map(|row| row.required("rolname").map(str::to_owned)).collect()
}

fn create_role(role: &Role, superuser: bool) -> String {
    let flag = |is: bool, word: &str| format!("{}{word}", if is { "" } else { "NO" });
    let mut words = vec![
        format!("CREATE ROLE {} WITH", quote_identifier(&role.name)),
        flag(role.inherit, "INHERIT"),
        flag(role.create_role, "CREATEROLE"),
        flag(role.create_database, "CREATEDB"),
        flag(role.login, "LOGIN"),
    ];
    // Only a superuser may name these, even to deny them.
    if superuser || role.superuser || role.replication || role.bypass_row_security {
        words.extend([
            flag(role.superuser, "SUPERUSER"),
            flag(role.replication, "REPLICATION"),
            flag(role.bypass_row_security, "BYPASSRLS"),
        ]);
    }
    if role.connection_limit != -1 {
        words.push(format!("CONNECTION LIMIT {}", role.connection_limit));
    }
    words.extend(role.password.iter().map(|password| format!("PASSWORD {}", quote_literal(password))));
    words.extend(role.valid_until.iter().map(|until| format!("VALID UNTIL {}", quote_literal(until))));
    words.join(" ")
}

/// Each member once, with all that its grants allow together. Since version 16 a role may be granted by several, each with options of its own; a restore
/// grants everything itself, and a second grant by the same one takes the place of the first.
fn in_one_grant(memberships: &[Membership]) -> Vec<Membership> {
    let either = |one: Option<bool>, other: Option<bool>| one.zip(other).map_or(one.or(other), |(one, other)| Some(one || other));
    let mut merged: Vec<Membership> = Vec::new();
    let mut places = BTreeMap::new();
    for membership in memberships {
        let place = *places.entry((&membership.role, &membership.member)).or_insert(merged.len());
        let Some(known) = merged.get_mut(place) else {
            merged.push(membership.clone());
            continue;
        };
        known.admin |= membership.admin;
        known.inherit = either(known.inherit, membership.inherit);
        known.set = either(known.set, membership.set);
    }
    merged
}

fn grant_role(membership: &Membership, options: bool) -> String {
    let text = format!("GRANT {} TO {}", quote_identifier(&membership.role), quote_identifier(&membership.member));
    match (membership.inherit, membership.set) {
        (Some(inherit), Some(set)) if options => format!("{text} WITH ADMIN {}, INHERIT {inherit}, SET {set}", membership.admin),
        _ if membership.admin => format!("{text} WITH ADMIN OPTION"),
        _ => text,
    }
}

fn granted(grant: &Grant, on: &str) -> String {
    let to = grant.grantee.as_deref().map_or_else(|| "PUBLIC".to_owned(), quote_identifier);
    let option = if grant.grantable { " WITH GRANT OPTION" } else { "" };
    format!("GRANT {} ON {on} TO {to}{option}", grant.privilege)
}

fn dress_object(object: &LargeObject, superuser: bool, roles: &BTreeSet<String>) -> Vec<String> {
    let mut statements = Vec::new();
    let name = format!("LARGE OBJECT {}", object.oid);
    if superuser && roles.contains(&object.owner) {
        statements.push(format!("ALTER {name} OWNER TO {}", quote_identifier(&object.owner)));
        if let Some(grants) = &object.grants {
            statements.push(format!("REVOKE ALL ON {name} FROM {}", quote_identifier(&object.owner)));
            statements.extend(grants.iter().map(|grant| granted(grant, &name)));
        }
    }
    statements.extend(object.comment.iter().map(|comment| format!("COMMENT ON {name} IS {}", quote_literal(comment))));
    statements
}

/// `name TO value`, as SQL.
fn assignment(setting: &Setting) -> String {
    let name = setting.name.split('.').map(quote_identifier).collect::<Vec<_>>().join(".");
    let value = if LISTS.contains(&setting.name.as_str()) {
        setting_list(&setting.value).iter().map(|item| quote_literal(item)).collect::<Vec<_>>().join(", ")
    } else {
        quote_literal(&setting.value)
    };
    format!("{name} TO {}", if value.is_empty() { "''".to_owned() } else { value })
}

/// The items of a list of names, each maybe in double quotes.
fn setting_list(text: &str) -> Vec<String> {
    let (mut items, mut item, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                item.push('"');
                letters.next();
            }
            '"' => {
                quoted = !quoted;
                any = true;
            }
            ',' if !quoted => {
                items.push(std::mem::take(&mut item));
                any = false;
            }
            ' ' if !quoted => {}
            other => {
                item.push(other);
                any = true;
            }
        }
    }
    if any {
        items.push(item);
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(name: &str, value: &str) -> Setting {
        Setting { role: None, name: name.into(), value: value.into() }
    }

    #[test]
    fn grants_by_several_are_granted_together() {
        let grant = |member: &str, admin, options: Option<(bool, bool)>| Membership {
            role: "r".into(),
            member: member.into(),
            admin,
            inherit: options.map(|(inherit, _)| inherit),
            set: options.map(|(_, set)| set),
        };
        // As the server that made the role for somebody has it, and as that one then granted it to itself.
        let granted = [
            grant("a", true, Some((false, false))),
            grant("b", false, Some((true, false))),
            grant("a", false, Some((true, true))),
            grant("c", true, None),
        ];
        let together = [grant("a", true, Some((true, true))), grant("b", false, Some((true, false))), grant("c", true, None)];
        assert_eq!(in_one_grant(&granted), together);
        assert_eq!(grant_role(&together[0], true), "GRANT \"r\" TO \"a\" WITH ADMIN true, INHERIT true, SET true");
    }

    #[test]
    fn settings_are_written_as_they_were() {
        assert_eq!(
            assignment(&setting("search_path", "\"$user\", \"My \"\"schema\", public")),
            "\"search_path\" TO '$user', 'My \"schema', 'public'"
        );
        assert_eq!(assignment(&setting("search_path", "")), "\"search_path\" TO ''");
        assert_eq!(assignment(&setting("my.value", "it's")), "\"my\".\"value\" TO 'it''s'");
    }

    #[test]
    fn a_target_holds_no_password_and_names_one_database_at_most() {
        assert_eq!(Target::parse("postgresql://me:secret@db/").unwrap_err().kind(), Kind::Usage);
        let names = |url: &str, databases: &[&str]| {
            let databases: Vec<String> = databases.iter().map(|name| (*name).to_owned()).collect();
            Target::parse(url).unwrap().names(&databases)
        };
        assert_eq!(names("postgresql://me@db", &["crm", "b"]).unwrap(), ["crm", "b"]);
        assert_eq!(names("postgresql://me@db/postgres", &["crm"]).unwrap(), ["crm"]);
        assert_eq!(names("postgresql://me@db/crm2", &["crm"]).unwrap(), ["crm2"]);
        assert_eq!(names("postgresql://me@db/crm2", &["crm", "b"]).unwrap_err().kind(), Kind::Usage);
    }
}
