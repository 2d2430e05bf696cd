//! A database, or tables of one, out of a restored cluster: recovered in a private server, taken out with the server's own `pg_dump`, and
//! loaded with `pg_restore` into another server in one transaction, rows counted on both sides.

mod around;
pub(super) mod load;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

pub use self::load::{Target, value_options};
pub use self::names::Selection;
use crate::error::{Error, IoContext, Kind, Result};
use crate::event::{Cancel, Event};
use crate::source::postgres::backup::Point;
use crate::source::postgres::client::{Connection, LONG_SILENCE, quote_identifier, sqlstate};
use crate::source::postgres::extract::around::Around;
use crate::source::postgres::extract::load::{ForeignKey, Load, Roles};
use crate::source::postgres::extract::names::{near, near_table};
use crate::source::postgres::instance::{Account, Instance, Stop, Tools, from_outside, lost, major_of};
use crate::source::postgres::private::{Private, Recovered};
use crate::source::postgres::{fingerprint, prove};
use crate::source::{ExtractRequest, Extracted, ExtractedTable, SourceContext};

const DUMP: &str = "pg_dump";
const RESTORE: &str = "pg_restore";
/// How often a child is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// So much of what a program said is kept for the operator.
const SAID_BYTES: usize = 4096;

/// Something with a name among tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Relation {
    oid: u32,
    schema: String,
    name: String,
    /// `pg_class.relkind`.
    kind: String,
    unlogged: bool,
    /// A materialized view that was never filled, or emptied, cannot be read.
    populated: bool,
}

impl Relation {
    fn has_rows(&self) -> bool {
        matches!(self.kind.as_str(), "r" | "m") && self.populated
    }

    fn is_table(&self) -> bool {
        matches!(self.kind.as_str(), "r" | "p")
    }

    fn sql(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.name))
    }

    fn shown(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

/// Finds the programs that this needs.
///
/// # Errors
/// `Usage` says what to install.
pub fn tools(major: u32, bin_directory: Option<&Path>) -> Result<Tools> {
    let tools = Tools::find(major, bin_directory)?;
    for name in [DUMP, RESTORE] {
        if tools.program(name).is_none() {
            return Err(Error::new(Kind::Usage, format!("find {name} of PostgreSQL {major}: it is not installed beside the server"))
                .hint(format!("install the client's programs of version {major} (postgresql-client-{major})")));
        }
    }
    Ok(tools)
}

/// Takes what is asked for out of a restored data folder. See [`crate::source::Source::extract`].
///
/// # Errors
/// As there.
pub fn extract(data: &Path, bin_directory: Option<&Path>, request: &ExtractRequest, context: &SourceContext) -> Result<Extracted> {
    let selection = Selection::parse(&request.only)?;
    let target = request.load_into.as_deref().map(Target::parse).transpose()?;
    let point = Point::read(data)?;
    let tools = tools(major_of(data)?, bin_directory)?;
    let account = Account::choose(data)?;
    let phase = |name| context.progress.event(Event::Phase { name, detail: request.only.join(", ") });

    phase("recover");
    let instance = start(data, &point, &tools, account, context)?;
    let extracted =
        take(&instance, &point, &tools, account, &selection, target.as_ref(), request, context).map_err(|error| instance.explain(error))?;
    instance.stop(Stop::Immediate)?;
    Ok(extracted)
}

/// What is asked for out of a server that was recovered.
#[expect(clippy::too_many_arguments, reason = "one call, each of another thing")]
fn take(
    instance: &Instance,
    point: &Point,
    tools: &Tools,
    account: Account,
    selection: &Selection,
    target: Option<&Target>,
    request: &ExtractRequest,
    context: &SourceContext,
) -> Result<Extracted> {
    let cancel = &context.cancel;
    let phase = |name| context.progress.event(Event::Phase { name, detail: request.only.join(", ") });
    let no_database = || {
        Error::new(Kind::Usage, format!("restore only {}: the snapshot has no database {:?}", request.only.join(", "), selection.database))
    };
    let known = BTreeSet::from([selection.database.clone()]);
    let settings = match prove::enter(instance, &point.superuser, &known, cancel) {
        Ok(settings) => settings,
        Err(error) if error.kind() == Kind::NotFound && sqlstate(&error).is_none() => {
            return Err(no_database().because(error).hint("name one that it has; by none of these others they can be listed"));
        }
        Err(error) => return Err(not_here(error)),
    };
    let databases = fingerprint::databases(&settings, cancel)?;
    if !databases.contains(&selection.database) {
        let names: Vec<&str> = databases.iter().map(String::as_str).collect();
        return Err(no_database().hint(near(&selection.database, &names)));
    }
    let mut sql = prove::connect(&settings, &selection.database, cancel).map_err(not_here)?;
    // Counting a large table says nothing for long.
    sql.set_timeout(LONG_SILENCE);
    let chosen = choose(&mut sql, selection, &request.only)?;
    // A whole database brings what surrounds its tables.
    let around = if selection.tables.is_empty() { None } else { Some(Around::read(&mut sql, &chosen)?) };
    if let Some(target) = target {
        let mut there = target.connect(cancel)?;
        target.check_version(&there, tools.major())?;
        target.check_free(&mut there, &chosen.iter().map(|one| (one.schema.clone(), one.name.clone())).collect())?;
        target.check_free(&mut there, &around.iter().flat_map(|around| around.names.iter().cloned()).collect())?;
        target.check_parents(&mut there, around.iter().flat_map(Around::inherited))?;
    }

    phase("dump");
    dump(tools, account, instance, point, selection, &chosen, &request.dump, &context.scratch, cancel)?;
    let contents = contents(tools, &request.dump, &context.scratch, cancel)?;
    is_whole(&contents, &chosen)?;
    let counted: Vec<&Relation> = chosen.iter().filter(|one| one.has_rows()).collect();
    let rows = count(&mut sql, &counted, cancel)?;
    let mut warnings: Vec<String> = chosen
        .iter()
        .filter(|one| one.unlogged)
        .map(|one| format!("table {} is unlogged: no backup holds its rows, it comes back empty", one.shown()))
        .collect();

    let mut incomplete = false;
    if let Some(target) = target {
        phase("load");
        let single = around.is_some();
        let unattached = if single { load::unattached(&contents) } else { BTreeSet::new() };
        let load = Load {
            tools,
            dump: &request.dump,
            contents: &contents,
            scratch: &context.scratch,
            schemas: &if single { chosen.iter().map(|one| one.schema.clone()).collect() } else { BTreeSet::new() },
            roles: &if single { roles_of(&mut sql, &chosen)? } else { roles(&mut sql)? },
            unattached: &unattached,
            foreign_keys: &if single { foreign_keys(&mut sql, &chosen)? } else { Vec::new() },
            cancel,
        };
        let done = target.load(&load)?;
        warnings.extend(done.warnings);
        let (loaded, hidden) = target.count(&counted, cancel)?;
        let countable: Vec<&Relation> = counted.iter().copied().filter(|one| !hidden.contains(&one.oid)).collect();
        compare(&countable, &rows, &loaded)?;
        warnings.extend(filled_otherwise(&countable, &rows, &loaded));
        incomplete = !hidden.is_empty();
        warnings.extend(counted.iter().filter(|one| hidden.contains(&one.oid)).map(|one| {
            let had = rows.get(&one.oid).copied().unwrap_or_default();
            format!(
                "table {} was loaded and not counted: the target's role may not see all of its rows (row security, privileges); {had} were taken out of the snapshot: \
                 compare with SELECT count(*) as a superuser or a role with BYPASSRLS",
                one.shown()
            )
        }));
        let lacking = if let Some(around) = &around {
            let own = target.is(&point.system_identifier, &selection.database, cancel)?;
            target.surround(around, own, done.with_owners, cancel)?
        } else {
            warnings.extend(subscriptions(&mut sql)?);
            target.money_as_text(&money_views(&mut sql)?, cancel)?
        };
        incomplete |= !lacking.is_empty();
        warnings.extend(lacking);
    } else if let Some(around) = &around {
        let lacking = in_a_file(around);
        incomplete = !lacking.is_empty();
        warnings.extend(lacking);
    }
    let tables =
        counted.iter().map(|one| ExtractedTable { table: one.shown(), rows: rows.get(&one.oid).copied().unwrap_or_default() }).collect();
    Ok(Extracted { tables, warnings, incomplete })
}

/// Where a part cannot be taken because of this host or by what the source has arranged, says what to do; otherwise the error as it is.
fn not_here(error: Error) -> Error {
    match prove::not_here(&error) {
        Some(why) => Error::new(Kind::Usage, format!("take a part out of a snapshot: {why}")),
        None if error.kind() == Kind::Incomplete => Error::new(Kind::Usage, "take a part out of a snapshot").because(error),
        None => error,
    }
}

/// Recovers the folder in a private server: to its own moment, or to what was asked for with it.
fn start(data: &Path, point: &Point, tools: &Tools, account: Account, context: &SourceContext) -> Result<Instance> {
    let private = Private::prepare(point, data, tools, account).map_err(|error| match error.kind() {
        Kind::Incomplete => Error::new(Kind::Usage, "take a part out of a snapshot: no server was started for it").because(error).hint(
            "take a moment before that, or a snapshot that was made after it; or restore everything to a folder on a host where those folders are not in use",
        ),
        _ => error,
    })?;
    let goal = private.goal();
    let Recovered { instance, outcome, reached, .. } = private.recover(context)?;
    if !reached {
        return Err(Error::new(Kind::Damaged, format!("recover to {goal}: the log ends at {} ({})", outcome.end, outcome.reason))
            .hint("restore another snapshot or another moment"));
    }
    Ok(instance)
}

/// What a dump of single tables in a file lacks, and what it needs.
fn in_a_file(around: &Around) -> Vec<String> {
    let mut lacking = around.alone();
    if !lacking.is_empty() {
        lacking.push(
            "what attaches such a partition is in the dump all the same: load it without (pg_restore --list FILE | grep -v ' ATTACH ' >LIST, then pg_restore --use-list=LIST …)".into(),
        );
    }
    lacking
        .extend(around.inherited().map(|one| format!("{} inherits from {}, which must be where the dump is loaded", one.child, one.sql)));
    lacking.extend(around.statistics.iter().map(|one| format!("the extended statistics {} are not in the dump: {}", one.name, one.sql)));
    lacking.extend(around.large_objects.iter().filter_map(|one| one.missing(0)));
    lacking
}

/// What is taken: everything in the database, or the tables named, partitions and all that inherits from them with them.
fn choose(sql: &mut Connection, selection: &Selection, only: &[String]) -> Result<Vec<Relation>> {
    let all = relations(sql)?;
    if selection.tables.is_empty() {
        return Ok(all);
    }
    let mut oids = BTreeSet::new();
    for wanted in &selection.tables {
        let fitting: Vec<&Relation> = all.iter().filter(|one| one.is_table() && wanted.fits(&one.schema, &one.name)).collect();
        let refuse = |why: String| Error::new(Kind::Usage, format!("restore only {}: {why}", only.join(", ")));
        match fitting.as_slice() {
            [one] => {
                let below = sql.query(&format!(
                    "WITH RECURSIVE below(oid) AS (SELECT {}::pg_catalog.oid UNION SELECT i.inhrelid FROM below JOIN pg_catalog.pg_inherits i ON i.inhparent = below.oid) \
                     SELECT c.oid, c.oid::pg_catalog.regclass AS name FROM below JOIN pg_catalog.pg_class c ON c.oid = below.oid WHERE c.relpersistence <> 't'",
                    one.oid
                ))?;
                for row in &below {
                    let oid: u32 = number(row.required("oid")?)?;
                    if all.iter().all(|one| one.oid != oid) {
                        let why = format!(
                            "{}, a child of {wanted}, belongs to an extension, and a dump of tables leaves it out",
                            row.required("name")?
                        );
                        return Err(refuse(why).hint(format!("take the whole database (--only {:?})", selection.database)));
                    }
                    oids.insert(oid);
                }
            }
            [] => {
                let names: Vec<String> = all.iter().filter(|one| one.is_table()).map(Relation::shown).collect();
                let what = format!("the snapshot has no table {wanted} in database {}", selection.database);
                return Err(refuse(what).hint(near_table(wanted, &names)));
            }
            several => {
                let names: Vec<String> = several.iter().map(|one| one.shown()).collect();
                return Err(
                    refuse(format!("several schemas have a table {wanted}")).hint(format!("name the schema: {}", names.join(" or ")))
                );
            }
        }
    }
    Ok(all.into_iter().filter(|one| oids.contains(&one.oid)).collect())
}

/// Everything in a database that has rows or a name among tables, but what extensions bring themselves.
fn relations(sql: &mut Connection) -> Result<Vec<Relation>> {
    let rows = sql.query(
        "SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, c.relispopulated FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND c.relpersistence <> 't' \
           AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') \
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
                           AND d.objid = c.oid AND d.deptype = 'e') \
         ORDER BY n.nspname, c.relname",
    )?;
    rows.iter()
        .map(|row| {
            Ok(Relation {
                oid: number(row.required("oid")?)?,
                schema: row.required("nspname")?.to_owned(),
                name: row.required("relname")?.to_owned(),
                kind: row.required("relkind")?.to_owned(),
                unlogged: row.required("relpersistence")? == "u" && row.required("relkind")? == "r",
                populated: row.required("relispopulated")? == "t",
            })
        })
        .collect()
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| Error::new(Kind::Failed, "understand a number that the server sent"))
}

/// Who owns something in this database or has privileges on it, by dependency; what belongs to the first superuser (10) has none.
fn roles(sql: &mut Connection) -> Result<Roles> {
    // Tables and functions with a number below the first that is given to users are the system's own.
    read_roles(
        sql,
        "SELECT r.rolname, CASE WHEN d.deptype = 'o' THEN 'owner' \
           WHEN d.objid < 16384 AND d.classid IN ('pg_catalog.pg_class'::pg_catalog.regclass, 'pg_catalog.pg_proc'::pg_catalog.regclass) THEN 'system' ELSE 'grantee' END AS why \
         FROM pg_catalog.pg_shdepend d JOIN pg_catalog.pg_roles r ON r.oid = d.refobjid \
         WHERE d.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass \
           AND d.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
         UNION SELECT rolname, 'owner' FROM pg_catalog.pg_roles WHERE oid = 10",
    )
}

/// The same of these tables, with their sequences and statistics.
fn roles_of(sql: &mut Connection, chosen: &[Relation]) -> Result<Roles> {
    let list = around::array(chosen);
    let sequences = around::sequences(&list);
    read_roles(
        sql,
        &format!(
            "WITH taken AS (SELECT oid, relowner, relacl FROM pg_catalog.pg_class WHERE oid = ANY ({list}) OR oid IN ({sequences})), \
               acls AS (SELECT relacl AS acl FROM taken UNION ALL SELECT a.attacl FROM pg_catalog.pg_attribute a JOIN taken ON taken.oid = a.attrelid), \
               given AS (SELECT x.grantor, x.grantee FROM acls CROSS JOIN LATERAL pg_catalog.aclexplode(acl) x), \
               needed(role, why) AS (SELECT relowner, 'owner' FROM taken UNION SELECT stxowner, 'owner' FROM pg_catalog.pg_statistic_ext WHERE stxrelid = ANY ({list}) \
                 UNION SELECT grantor, 'grantee' FROM given UNION SELECT grantee, 'grantee' FROM given) \
             SELECT r.rolname, n.why FROM needed n JOIN pg_catalog.pg_roles r ON r.oid = n.role"
        ),
    )
}

fn read_roles(sql: &mut Connection, query: &str) -> Result<Roles> {
    let mut roles = Roles::default();
    for row in &sql.query(query)? {
        let role = row.required("rolname")?.to_owned();
        match row.required("why")? {
            "owner" => roles.owners.insert(role),
            "system" => roles.system_grantees.insert(role),
            _ => roles.grantees.insert(role),
        };
    }
    Ok(roles)
}

/// What to know of subscriptions that came with a database.
fn subscriptions(sql: &mut Connection) -> Result<Vec<String>> {
    let rows = sql.query(
        "SELECT pg_catalog.quote_ident(s.subname) AS name, s.subslotname AS slot FROM pg_catalog.pg_subscription s \
         JOIN pg_catalog.pg_database d ON d.oid = s.subdbid WHERE d.datname = pg_catalog.current_database() AND s.subslotname IS NOT NULL ORDER BY 1",
    )?;
    rows.iter()
        .map(|row| {
            let (name, slot) = (row.required("name")?, row.required("slot")?);
            Ok(format!(
                "subscription {name} came disabled, and names the slot {slot} of its publisher, which is the source's own: only one of them may have it; where the source \
                 keeps it: ALTER SUBSCRIPTION {name} SET (slot_name = NONE), and only then drop it"
            ))
        })
        .collect()
}

/// Materialized views that read an amount of money, and were filled.
fn money_views(sql: &mut Connection) -> Result<Vec<String>> {
    let rows = sql.query(
        "SELECT DISTINCT pg_catalog.format('%I.%I', n.nspname, v.relname) AS name FROM pg_catalog.pg_class v JOIN pg_catalog.pg_namespace n ON n.oid = v.relnamespace \
           JOIN pg_catalog.pg_rewrite w ON w.ev_class = v.oid \
           JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = w.oid AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
           JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND (a.attnum = d.refobjsubid OR d.refobjsubid = 0) AND a.atttypid = 'pg_catalog.money'::pg_catalog.regtype \
         WHERE v.relkind = 'm' AND v.relispopulated ORDER BY 1",
    )?;
    rows.iter().map(|row| row.required("name").map(str::to_owned)).collect()
}

fn foreign_keys(sql: &mut Connection, chosen: &[Relation]) -> Result<Vec<ForeignKey>> {
    let rows = sql.query(
        "SELECT k.oid, k.conname, k.conrelid, k.confrelid, n.nspname, c.relname FROM pg_catalog.pg_constraint k \
         JOIN pg_catalog.pg_class c ON c.oid = k.confrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE k.contype = 'f' AND k.conparentid = 0",
    )?;
    let mut keys = Vec::new();
    for row in &rows {
        let (from, to): (u32, u32) = (number(row.required("conrelid")?)?, number(row.required("confrelid")?)?);
        let Some(table) = chosen.iter().find(|one| one.oid == from) else { continue };
        if chosen.iter().all(|one| one.oid != to) {
            keys.push(ForeignKey {
                oid: number(row.required("oid")?)?,
                name: row.required("conname")?.to_owned(),
                table: table.shown(),
                to: (row.required("nspname")?.to_owned(), row.required("relname")?.to_owned()),
            });
        }
    }
    Ok(keys)
}

/// Writes the dump, in PostgreSQL's custom format.
#[expect(clippy::too_many_arguments, reason = "one call, each of another thing")]
fn dump(
    tools: &Tools,
    account: Account,
    instance: &Instance,
    point: &Point,
    selection: &Selection,
    chosen: &[Relation],
    to: &Path,
    scratch: &Path,
    cancel: &Cancel,
) -> Result<()> {
    // Opened here: the server's user, who runs this, need not be let to where it lies.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).io_context(|| format!("make {}", to.display()))?;
    let mut command = tools.command(DUMP, account)?;
    command.env("PGOPTIONS", instance.neutral_options()).args(["--format=custom", "--no-password"]);
    command.arg(format!("--lock-wait-timeout={}", fingerprint::PREPARED_PATIENCE.as_millis()));
    if !selection.tables.is_empty() {
        // In double quotes nothing in a pattern is special.
        for one in chosen {
            command.arg(format!("--table={}", one.sql()));
        }
    }
    let settings = prove::settings(instance, &point.superuser);
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
    command.arg(format!(
        "--dbname=host='{}' port={} user='{}' dbname='{}'",
        quoted(&instance.socket_folder().display().to_string()),
        settings.port,
        quoted(&point.superuser),
        quoted(&selection.database)
    ));
    let copy = file.try_clone().io_context(|| format!("open {}", to.display()))?;
    command.stdout(copy);
    run_to(command, scratch, &format!("dump {}", selection.database), cancel).map_err(|error| {
        // By that time limit pg_dump waits for its locks.
        let waited = error.said().is_some_and(|said| said.contains("canceling statement due to statement timeout"));
        if !waited {
            return error;
        }
        let what = format!("dump {}: a transaction that was prepared at the source (PREPARE TRANSACTION) holds a table of it", selection.database);
        Error::new(Kind::Usage, what).because(error).hint(
            "restore everything to a folder, start it, look at pg_prepared_xacts there, COMMIT PREPARED or ROLLBACK PREPARED, and take from it what you need; or take another \
             moment, or tables that it does not hold",
        )
    })?;
    file.sync_all().io_context(|| format!("flush {}", to.display()))
}

/// The contents of a dump, as `pg_restore --list --verbose` says: with what each entry depends on.
fn contents(tools: &Tools, dump: &Path, scratch: &Path, cancel: &Cancel) -> Result<String> {
    let mut command = tools.command(RESTORE, Account::own())?;
    command.args(["--list", "--verbose"]).arg(dump);
    run(command, scratch, &format!("read the dump {}", dump.display()), cancel)
}

/// Whether everything that was chosen is in the dump: a pattern that fits nothing must not pass for a table.
fn is_whole(contents: &str, chosen: &[Relation]) -> Result<()> {
    // `215; 1259 16389 TABLE public orders postgres`, where 1259 is `pg_class`.
    let inside: BTreeSet<u32> = contents.lines().filter_map(|line| line.split_once("; 1259 ")?.1.split_once(' ')?.0.parse().ok()).collect();
    let missing: Vec<String> = chosen.iter().filter(|one| one.kind != "S" && !inside.contains(&one.oid)).map(Relation::shown).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(Kind::Failed, format!("dump {}: pg_dump left it out", missing.join(", ")))
        .hint("restore everything to another place, start it and take from there what you need"))
}

/// Rows of each table.
fn count(sql: &mut Connection, relations: &[&Relation], cancel: &Cancel) -> Result<BTreeMap<u32, u64>> {
    let mut counts = BTreeMap::new();
    for one in relations {
        cancel.check()?;
        counts.insert(one.oid, count_one(sql, one)?);
    }
    Ok(counts)
}

fn count_one(sql: &mut Connection, one: &Relation) -> Result<u64> {
    let rows = sql.value(&format!("SELECT pg_catalog.count(*) FROM ONLY {}", one.sql()))?;
    number(&rows.unwrap_or_default())
}

/// Tables with another number of rows than they had. Materialized views are none: they are filled anew from what was loaded.
fn compare(relations: &[&Relation], taken: &BTreeMap<u32, u64>, loaded: &BTreeMap<u32, u64>) -> Result<()> {
    let differing: Vec<String> = relations
        .iter()
        .filter(|one| one.kind != "m" && taken.get(&one.oid) != loaded.get(&one.oid))
        .map(|one| {
            let (there, had) = (loaded.get(&one.oid).copied().unwrap_or_default(), taken.get(&one.oid).copied().unwrap_or_default());
            format!("{} has {there} rows, {had} were taken out of the snapshot", one.shown())
        })
        .collect();
    if differing.is_empty() {
        return Ok(());
    }
    Err(Error::new(Kind::Differs, format!("compare what was loaded: {}", differing.join("; ")))
        .hint("what was loaded is in the target: see whether a program wrote to it, remove it and load again"))
}

/// Materialized views that had not been refreshed before the snapshot, and are now.
fn filled_otherwise(relations: &[&Relation], taken: &BTreeMap<u32, u64>, loaded: &BTreeMap<u32, u64>) -> Vec<String> {
    let differing = relations.iter().filter(|one| one.kind == "m" && taken.get(&one.oid) != loaded.get(&one.oid));
    let rows = |of: &BTreeMap<u32, u64>, one: &Relation| of.get(&one.oid).copied().unwrap_or_default();
    differing
        .map(|one| {
            format!(
                "materialized view {} was filled anew from what was loaded: it has {} rows, and had {} in the snapshot",
                one.shown(),
                rows(loaded, one),
                rows(taken, one)
            )
        })
        .collect()
}

/// Runs a program of the server to its end and yields what it wrote.
fn run(mut command: Command, scratch: &Path, what: &str, cancel: &Cancel) -> Result<String> {
    let path = scratch.join("output");
    command.stdout(private_file(&path)?);
    run_to(command, scratch, what, cancel)?;
    let text = fs::read(&path).io_context(|| format!("read {}", path.display()))?;
    fs::remove_file(&path).io_context(|| format!("remove {}", path.display()))?;
    // Names in the encoding of a database without one: only numbers of it are used.
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn private_file(path: &Path) -> Result<File> {
    let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    open.io_context(|| format!("make {}", path.display()))
}

/// The same with its output somewhere already. What it says when it fails may quote rows, so that is for the operator's eyes only.
fn run_to(mut command: Command, scratch: &Path, what: &str, cancel: &Cancel) -> Result<()> {
    cancel.check()?;
    let program = PathBuf::from(command.get_program());
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let path = scratch.join("said");
    command.stdin(Stdio::null()).stderr(private_file(&path)?);
    let mut child = command.spawn().io_context(|| format!("run {}", program.display()))?;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => {}
            Err(error) => return Err(Error::io(format!("wait for {name}"), error)),
        }
        if let Err(interrupted) = cancel.check() {
            // The server ends the transaction of a client that is gone.
            let killed = child.kill().and_then(|()| child.wait());
            killed.io_context(|| format!("end {name}"))?;
            return Err(interrupted);
        }
        std::thread::park_timeout(LOOK);
    };
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
    let why = said.lines().find_map(harmless).map_or_else(|| format!("{name} ended with {status}"), |line| format!("{name}: {line}"));
    let said: String = said.chars().take(SAID_BYTES).collect();
    let error = match from_outside(status) {
        Some(signal) => lost(what, format!("{name} was killed by signal {signal}")),
        None => Error::new(Kind::Failed, format!("{what}: {why}")),
    };
    Err(error.saying(Some(said)))
}

/// An error of the server about names, not rows.
pub(super) fn harmless(line: &str) -> Option<&str> {
    let (_, error) = line.split_once("ERROR:  ").or_else(|| line.split_once("FATAL:  "))?;
    let endings = ["does not exist", "already exists", "is not available"];
    (endings.iter().any(|ending| error.ends_with(ending)) || error.starts_with("permission denied") || error.starts_with("must be owner"))
        .then_some(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_are_told() {
        assert_eq!(
            harmless("pg_restore: error: could not execute query: ERROR:  type \"x\" does not exist"),
            Some("type \"x\" does not exist")
        );
        assert_eq!(harmless("pg_restore: error: ERROR:  invalid input syntax for type integer: \"secret\""), None);
        assert_eq!(harmless("DETAIL:  Key (id)=(secret) already exists"), None);
    }

    #[test]
    fn a_table_that_is_not_in_the_dump_is_missed() {
        let relation =
            |oid| Relation { oid, schema: "public".into(), name: format!("t{oid}"), kind: "r".into(), unlogged: false, populated: true };
        let list = ";\n; Archive created\n215; 1259 16389 TABLE public t16389 postgres\n3349; 0 16390 TABLE DATA public t16390 postgres\n";
        assert!(is_whole(list, &[relation(16389)]).is_ok());
        let error = is_whole(list, &[relation(16389), relation(16390)]).unwrap_err();
        assert!(error.to_string().contains("public.t16390"), "{error}");
    }

    #[test]
    fn another_number_of_rows_is_a_difference() {
        let one = Relation { oid: 1, schema: "s".into(), name: "t".into(), kind: "r".into(), unlogged: false, populated: true };
        assert!(compare(&[&one], &BTreeMap::from([(1, 5)]), &BTreeMap::from([(1, 5)])).is_ok());
        let error = compare(&[&one], &BTreeMap::from([(1, 5)]), &BTreeMap::from([(1, 6)])).unwrap_err();
        assert_eq!((error.kind(), error.kind().exit_code()), (Kind::Differs, 21));
        let view = Relation { kind: "m".into(), ..one };
        let (had, has) = (BTreeMap::from([(1, 5)]), BTreeMap::from([(1, 6)]));
        assert!(compare(&[&view], &had, &has).is_ok());
        assert!(
            filled_otherwise(&[&view], &had, &has)[0].contains("has 6 rows, and had 5")
                && filled_otherwise(&[&view], &had, &had).is_empty()
        );
    }
}
