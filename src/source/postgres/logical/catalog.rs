//! What there is in a server's databases, as one transaction sees it.

use std::collections::BTreeSet;

use crate::error::{Error, Kind, Result};
use crate::source::Problem;
use crate::source::postgres::client::{Connection, Row, quote_identifier, quote_literal};
use crate::source::postgres::fingerprint::opening;
use crate::source::postgres::logical::contents::{Database, Grant, LargeObject, Membership, Role, Sequence, Setting, Table, file_name};

/// So many names are told.
const TOLD: usize = 5;
/// So many sequences are asked for at once.
const SEQUENCES: usize = 500;
/// Those of every server.
const TEMPLATES: [&str; 2] = ["template0", "template1"];
/// Databases that managed servers keep for themselves.
const OF_PROVIDERS: [&str; 4] = ["rdsadmin", "cloudsqladmin", "azure_maintenance", "azure_sys"];

/// Names as SQL.
pub(super) fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quote_identifier(schema), quote_identifier(name))
}

/// A few names, and how many more.
pub(super) fn told(names: &[String]) -> String {
    let more = names.len().saturating_sub(TOLD);
    let first = names.iter().take(TOLD).cloned().collect::<Vec<_>>().join(", ");
    if more == 0 { first } else { format!("{first} and {more} more") }
}

pub(super) fn number<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| Error::new(Kind::Failed, "understand a number that the server sent"))
}

fn is(row: &Row, column: &str) -> bool {
    row.named(column) == Some("t")
}

fn own(text: Option<&str>) -> Option<String> {
    text.map(str::to_owned)
}

/// The databases of a backup.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    pub(super) names: Vec<String>,
    pub(super) warnings: Vec<String>,
    /// Those that should be backed up and cannot.
    pub(super) problems: Vec<Problem>,
}

/// Which databases are backed up: those that are wanted, else all that are no templates.
///
/// # Errors
/// `Usage` for one that is not there, or may not be connected to.
pub(super) fn choose_databases(sql: &mut Connection, wanted: &[String]) -> Result<Chosen> {
    let rows = sql.query(
        "SELECT datname, datistemplate AS template, datallowconn AS open, pg_catalog.has_database_privilege(oid, 'CONNECT') AS may \
         FROM pg_catalog.pg_database WHERE datconnlimit <> -2 ORDER BY datname",
    )?;
    let named = |row: &Row| Ok((row.required("datname")?.to_owned(), is(row, "may")));
    let (templates, rows): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| is(row, "template"));
    let templates: Vec<String> = templates.into_iter().map(|row| Ok(named(row)?.0)).collect::<Result<_>>()?;
    let (open, closed): (Vec<&Row>, Vec<&Row>) = rows.into_iter().partition(|row| is(row, "open"));
    let there: Vec<(String, bool)> = open.into_iter().map(named).collect::<Result<_>>()?;
    let closed: Vec<(String, bool)> = closed.into_iter().map(named).collect::<Result<_>>()?;
    let mut chosen = Chosen::default();
    let found: Vec<(String, bool)> = if wanted.is_empty() {
        let is_of_provider = |name: &String| OF_PROVIDERS.contains(&name.as_str());
        let (left, found): (Vec<_>, Vec<_>) = there.into_iter().partition(|(name, may)| !may && is_of_provider(name));
        let (closed_left, closed): (Vec<_>, Vec<_>) = closed.into_iter().partition(|(name, _)| is_of_provider(name));
        let left = left.iter().chain(&closed_left);
        let own = templates.iter().filter(|name| !TEMPLATES.contains(&name.as_str()));
        chosen.warnings.extend(own.map(|name| format!("database {name} is a template (IS_TEMPLATE) and is not backed up")));
        chosen.warnings.extend(left.map(|(name, _)| format!("database {name} belongs to the server's provider and is not backed up")));
        chosen.problems.extend(closed.into_iter().map(|(name, _)| {
            let message = format!(
                "it is not in the backup, because it takes no connections: {}, or name the databases to back up with `databases` in the plan",
                opening(&name)
            );
            Problem { object: format!("database {name}"), kind: "database-closed".into(), message }
        }));
        found
    } else {
        let find = |name: &String| {
            there.iter().find(|(known, _)| known == name).cloned().ok_or_else(|| {
                if closed.iter().any(|(known, _)| known == name) {
                    return Error::new(Kind::Usage, format!("back up database {name:?}: it takes no connections")).hint(opening(name));
                }
                if templates.contains(name) {
                    let hint = format!("ALTER DATABASE {} IS_TEMPLATE false, or mend `databases` in the plan", quote_identifier(name));
                    return Error::new(Kind::Usage, format!("back up database {name:?}: it is a template, which is not backed up"))
                        .hint(hint);
                }
                let known: Vec<String> = there.iter().map(|(name, _)| name.clone()).collect();
                Error::new(Kind::Usage, format!("back up database {name:?}: the server has none of that name to connect to"))
                    .hint(format!("it has {}; mend `databases` in the plan", told(&known)))
            })
        };
        wanted.iter().map(find).collect::<Result<_>>()?
    };
    let forbidden: Vec<String> = found.iter().filter(|(_, may)| !may).map(|(name, _)| name.clone()).collect();
    if !forbidden.is_empty() {
        return Err(Error::new(Kind::Usage, format!("back up {}: the role may not connect there", told(&forbidden)))
            .hint("GRANT CONNECT ON DATABASE … TO its role, or name the databases to back up with `databases = [\"…\"]` in the plan"));
    }
    if found.is_empty() {
        return Err(Error::new(Kind::Usage, "back up PostgreSQL: there is no database to back up"));
    }
    chosen.names = found.into_iter().map(|(name, _)| name).collect();
    Ok(chosen)
}

/// A table to be read.
pub(super) struct Found {
    pub(super) oid: u32,
    pub(super) bytes: u64,
    pub(super) table: Table,
}

impl Found {
    pub(super) fn sql(&self) -> String {
        qualified(&self.table.schema, &self.table.name)
    }
}

/// Tables with rows of their own: not what partitions, views and foreign servers hold, and of extensions only what they name as the user's.
pub(super) fn tables(sql: &mut Connection, folder: &str) -> Result<(Vec<Found>, Vec<String>)> {
    let standby = sql.value("SELECT pg_catalog.pg_is_in_recovery()")?.as_deref() == Some("t");
    let rows = sql.query(
        "SELECT c.oid, n.nspname, c.relname, c.relpersistence, coalesce(pg_catalog.pg_table_size(c.oid), 0) AS bytes, \
           x.condition, x.condition IS NOT NULL AS of_extension, r.root_schema, r.root_name, \
           (SELECT pg_catalog.json_agg(a.attname ORDER BY a.attnum) FROM pg_catalog.pg_attribute a \
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '') AS columns \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN LATERAL (SELECT coalesce(e.extcondition[k.position], '') AS condition FROM pg_catalog.pg_extension e, \
             LATERAL pg_catalog.unnest(e.extconfig) WITH ORDINALITY AS k(oid, position) WHERE k.oid = c.oid) x ON true \
         LEFT JOIN LATERAL (SELECT rn.nspname AS root_schema, rc.relname AS root_name FROM pg_catalog.pg_class rc \
             JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace WHERE c.relispartition \
             AND rc.oid = pg_catalog.pg_partition_root(c.oid) \
             AND EXISTS (SELECT FROM pg_catalog.pg_partition_ancestors(c.oid) a JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = a.relid \
                         WHERE p.partstrat = 'h')) r ON true \
         WHERE c.relkind = 'r' AND c.relpersistence <> 't' \
           AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND n.nspname !~ '^pg_(toast_)?temp_' \
           AND (x.condition IS NOT NULL OR NOT EXISTS (SELECT FROM pg_catalog.pg_depend d \
                WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e')) \
         ORDER BY bytes DESC, n.nspname, c.relname",
    )?;
    let (mut found, mut warnings) = (Vec::new(), Vec::new());
    for row in &rows {
        let (schema, name) = (row.required("nspname")?.to_owned(), row.required("relname")?.to_owned());
        if standby && row.named("relpersistence") == Some("u") {
            warnings.push(format!("table {schema}.{name} is unlogged: a standby has no rows of it, it comes back empty"));
            continue;
        }
        let columns = row.named("columns").map_or_else(|| Ok(Vec::new()), serde_json::from_str);
        let columns = columns.map_err(|error| Error::new(Kind::Failed, "understand the columns of a table").because(error))?;
        let root = row.named("root_schema").zip(row.named("root_name")).map(|(schema, name)| (schema.to_owned(), name.to_owned()));
        found.push(Found {
            oid: number(row.required("oid")?)?,
            bytes: number(row.required("bytes")?)?,
            table: Table {
                path: format!("{folder}/data/{}.copy", file_name(&[&schema, &name])),
                schema,
                name,
                columns,
                extension_condition: if is(row, "of_extension") { own(row.named("condition")) } else { None },
                root,
                rows: 0,
                bytes: 0,
                digest: String::new(),
            },
        });
    }
    Ok((found, warnings))
}

/// Tables and sequences that the role may not read (of those that were dropped since the snapshot nothing is known), and tables whose row security would hide
/// rows from it.
pub(super) fn forbidden(sql: &mut Connection) -> Result<(Vec<String>, Vec<String>)> {
    let rows = sql.query(
        "SELECT n.nspname || '.' || c.relname AS name, \
           coalesce(pg_catalog.has_table_privilege(c.oid, 'SELECT') AND pg_catalog.has_schema_privilege(n.oid, 'USAGE'), true) AS may, \
           c.relkind = 'r' AND pg_catalog.row_security_active(c.oid) AS hidden \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't' \
           AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND n.nspname !~ '^pg_(toast_)?temp_' \
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
             AND d.objid = c.oid AND d.deptype = 'e' AND c.oid <> ALL (SELECT pg_catalog.unnest(extconfig) FROM pg_catalog.pg_extension)) \
         ORDER BY 1",
    )?;
    let named = |row: &Row| row.required("name").map(str::to_owned);
    let closed = rows.iter().filter(|row| !is(row, "may")).map(named).collect::<Result<_>>()?;
    Ok((closed, rows.iter().filter(|row| is(row, "hidden")).map(named).collect::<Result<_>>()?))
}

/// Fails when something could not be read whole.
///
/// # Errors
/// `Usage` names it.
pub(super) fn must_be_readable(sql: &mut Connection, database: &str) -> Result<()> {
    let (closed, hidden) = forbidden(sql)?;
    if !closed.is_empty() {
        return Err(Error::new(Kind::Usage, format!("read database {database}: the role may not read {}", told(&closed)))
            .hint("GRANT pg_read_all_data TO its role (or USAGE on the schemas, and SELECT on these tables and sequences)"));
    }
    if !hidden.is_empty() {
        return Err(Error::new(Kind::Usage, format!("read database {database}: row security would hide rows of {}", told(&hidden)))
            .hint("ALTER ROLE … BYPASSRLS for its role, or let the tables' owner back them up"));
    }
    Ok(())
}

/// What `pg_dump` leaves out of the definitions, or out of one of them, because it is hidden from a role that is no superuser.
pub(super) fn hidden(sql: &mut Connection, database: &str) -> Result<Vec<Problem>> {
    if sql.value("SELECT pg_catalog.current_setting('is_superuser')")?.as_deref() == Some("on") {
        return Ok(Vec::new());
    }
    let subscriptions = sql.query(
        "SELECT s.subname FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid \
         WHERE d.datname = pg_catalog.current_database() ORDER BY 1",
    )?;
    // As the view does it: the options of others are NULL, like those of a mapping that has none.
    let mappings = sql.query(
        "SELECT m.usename, m.srvname FROM pg_catalog.pg_user_mappings m JOIN pg_catalog.pg_foreign_server s ON s.oid = m.srvid \
         WHERE m.umoptions IS NULL AND NOT CASE WHEN m.umuser = 0 THEN pg_catalog.pg_has_role(s.srvowner, 'USAGE') \
           ELSE m.usename = current_user AND (pg_catalog.pg_has_role(s.srvowner, 'USAGE') OR pg_catalog.has_server_privilege(s.oid, 'USAGE')) END \
         ORDER BY 2, 1",
    )?;
    let problem = |object: String, message: &str| Problem { object, kind: "hidden-definition".into(), message: message.into() };
    let mut found = Vec::new();
    for row in &subscriptions {
        let object = format!("subscription {} of database {database}", row.required("subname")?);
        found.push(problem(
            object,
            "it is not in the backup: pg_dump shows it to superusers only; keep its CREATE SUBSCRIPTION, or back up as a superuser",
        ));
    }
    for row in &mappings {
        let object = format!("user mapping of {} for server {} of database {database}", row.required("usename")?, row.required("srvname")?);
        found.push(problem(object, "its options (a password, if it has one) are not in the backup: they are shown to superusers only; keep them, or back up as a superuser"));
    }
    Ok(found)
}

/// How a database is made again.
pub(super) fn database(sql: &mut Connection, name: &str) -> Result<Database> {
    let version = sql.server_version();
    let (provider, locale, rules) = match version / 10_000 {
        ..15 => ("'c'", "NULL", "NULL"),
        15 => ("datlocprovider", "daticulocale", "NULL"),
        16 => ("datlocprovider", "daticulocale", "daticurules"),
        _ => ("datlocprovider", "datlocale", "daticurules"),
    };
    let rows = sql.query(&format!(
        "SELECT d.oid, r.rolname, pg_catalog.pg_encoding_to_char(encoding) AS encoding, datcollate, datctype, {provider} AS provider, \
           {locale} AS locale, {rules} AS rules, datconnlimit, t.spcname, datacl IS NOT NULL AS has_acl, \
           pg_catalog.shobj_description(d.oid, 'pg_database') AS comment, pg_catalog.pg_current_snapshot() AS snapshot, \
           pg_catalog.now() AS time \
         FROM pg_catalog.pg_database d JOIN pg_catalog.pg_roles r ON r.oid = d.datdba JOIN pg_catalog.pg_tablespace t ON t.oid = d.dattablespace \
         WHERE datname = pg_catalog.current_database()"
    ))?;
    let row = rows.first().ok_or_else(|| Error::new(Kind::Failed, format!("read database {name}: it is not in the catalogue")))?;
    let oid: u32 = number(row.required("oid")?)?;
    let grants =
        if is(row, "has_acl") { Some(grants(sql, &format!("SELECT datacl FROM pg_catalog.pg_database WHERE oid = {oid}"))?) } else { None };
    let lsn = "CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END";
    sql.execute("SAVEPOINT lsn")?;
    let lsn = match sql.value(&format!("SELECT {lsn}")) {
        Ok(lsn) => lsn,
        // Not permitted, on some managed servers.
        Err(error) if crate::source::postgres::client::sqlstate(&error).is_some() => {
            sql.execute("ROLLBACK TO SAVEPOINT lsn")?;
            None
        }
        Err(error) => return Err(error),
    };
    let settings = settings(sql, oid)?;
    let views = sql.query(
        "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind = 'm' AND c.relispopulated AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d \
           WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e') ORDER BY c.oid",
    )?;
    let view = |row: &Row| Ok((row.required("nspname")?.to_owned(), row.required("relname")?.to_owned()));
    Ok(Database {
        name: name.to_owned(),
        folder: file_name(&[name]),
        owner: row.required("rolname")?.to_owned(),
        encoding: row.required("encoding")?.to_owned(),
        rows_encoding: sql.other_encoding().map(str::to_owned),
        collate: row.required("datcollate")?.to_owned(),
        ctype: row.required("datctype")?.to_owned(),
        provider: row.required("provider")?.to_owned(),
        locale: own(row.named("locale")),
        icu_rules: own(row.named("rules")),
        connection_limit: number(row.required("datconnlimit")?)?,
        comment: own(row.named("comment")),
        tablespace: row.required("spcname")?.to_owned(),
        grants,
        settings,
        snapshot: row.required("snapshot")?.to_owned(),
        lsn,
        time: row.required("time")?.to_owned(),
        tables: Vec::new(),
        sequences: Vec::new(),
        large_objects: Vec::new(),
        materialized_views: views.iter().map(view).collect::<Result<_>>()?,
        lc_monetary: None,
    })
}

/// The `lc_monetary` of a session that said nothing of it.
pub(super) fn lc_monetary(sql: &mut Connection) -> Result<String> {
    Ok(sql.value("SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'lc_monetary'")?.unwrap_or_default())
}

/// Why the role cannot have so many sessions in this database at a time, or (`everywhere`) in the whole server.
pub(super) fn too_few_sessions(sql: &mut Connection, database: &str, sessions: usize, everywhere: usize) -> Result<Option<String>> {
    let rows = sql.query(
        "SELECT r.rolname, r.rolconnlimit, d.datconnlimit FROM pg_catalog.pg_roles r, pg_catalog.pg_database d \
         WHERE r.rolname = session_user AND NOT r.rolsuper AND d.datname = pg_catalog.current_database()",
    )?;
    // A superuser has no limits.
    let Some(row) = rows.first() else { return Ok(None) };
    let (of_role, of_database): (i64, i64) = (number(row.required("rolconnlimit")?)?, number(row.required("datconnlimit")?)?);
    let is_less = |limit: i64, wanted: usize| usize::try_from(limit).is_ok_and(|limit| limit < wanted);
    Ok(if is_less(of_database, sessions) {
        let name = quote_identifier(database);
        Some(format!(
            "a backup has up to {sessions} sessions in database {database}, whose limit is {of_database}: ALTER DATABASE {name} CONNECTION LIMIT …"
        ))
    } else if is_less(of_role, everywhere) {
        let role = row.required("rolname")?;
        let name = quote_identifier(role);
        Some(format!(
            "a backup has up to {everywhere} sessions, and the limit of role {role} is {of_role}: ALTER ROLE {name} CONNECTION LIMIT …"
        ))
    } else {
        None
    })
}

/// Privileges, of an SQL expression that yields one `aclitem[]`.
fn grants(sql: &mut Connection, expression: &str) -> Result<Vec<Grant>> {
    let rows = sql.query(&format!(
        "SELECT r.rolname, a.privilege_type, a.is_grantable FROM pg_catalog.aclexplode(({expression})) a \
         LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee WHERE a.grantee = 0 OR r.oid IS NOT NULL"
    ))?;
    let grant = |row: &Row| {
        Ok(Grant {
            grantee: own(row.named("rolname")),
            privilege: row.required("privilege_type")?.to_owned(),
            grantable: is(row, "is_grantable"),
        })
    };
    rows.iter().map(grant).collect()
}

/// Settings of a database, or, with 0, of roles everywhere.
pub(super) fn settings(sql: &mut Connection, database: u32) -> Result<Vec<Setting>> {
    let rows = sql.query(&format!(
        "SELECT r.rolname, pg_catalog.split_part(line, '=', 1) AS name, \
           pg_catalog.substr(line, pg_catalog.strpos(line, '=') + 1) AS value \
         FROM pg_catalog.pg_db_role_setting s CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) AS line \
         LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole \
         WHERE s.setdatabase = {database} AND (s.setrole = 0) = (r.oid IS NULL) AND (s.setdatabase <> 0 OR s.setrole <> 0) ORDER BY 1, 2"
    ))?;
    let setting = |row: &Row| {
        Ok(Setting { role: own(row.named("rolname")), name: row.required("name")?.to_owned(), value: row.required("value")?.to_owned() })
    };
    rows.iter().map(setting).collect()
}

/// Names of the settings of all roles in all databases (`ALTER ROLE ALL SET`).
pub(super) fn settings_of_everybody(sql: &mut Connection) -> Result<Vec<String>> {
    let rows = sql.query(
        "SELECT pg_catalog.split_part(line, '=', 1) AS name FROM pg_catalog.pg_db_role_setting s \
         CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) AS line WHERE s.setdatabase = 0 AND s.setrole = 0 ORDER BY 1",
    )?;
    rows.iter().map(|row| row.required("name").map(str::to_owned)).collect()
}

/// All roles but the server's own; with passwords where they may be read. Second: whether they could.
pub(super) fn roles(sql: &mut Connection) -> Result<(Vec<Role>, bool)> {
    let with = sql.value("SELECT pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT')")?.as_deref() == Some("t");
    let (from, password) = if with { ("pg_authid", "rolpassword") } else { ("pg_roles", "NULL") };
    let rows = sql.query(&format!(
        "SELECT rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls, rolconnlimit, \
           rolvaliduntil, pg_catalog.shobj_description(oid, 'pg_authid') AS comment, {password} AS password \
         FROM pg_catalog.{from} WHERE rolname !~ '^pg_' ORDER BY rolname"
    ))?;
    let role = |row: &Row| {
        Ok(Role {
            name: row.required("rolname")?.to_owned(),
            superuser: is(row, "rolsuper"),
            inherit: is(row, "rolinherit"),
            create_role: is(row, "rolcreaterole"),
            create_database: is(row, "rolcreatedb"),
            login: is(row, "rolcanlogin"),
            replication: is(row, "rolreplication"),
            bypass_row_security: is(row, "rolbypassrls"),
            connection_limit: number(row.required("rolconnlimit")?)?,
            valid_until: own(row.named("rolvaliduntil")),
            comment: own(row.named("comment")),
            password: own(row.named("password")),
        })
    };
    Ok((rows.iter().map(role).collect::<Result<_>>()?, with))
}

pub(super) fn memberships(sql: &mut Connection) -> Result<Vec<Membership>> {
    let options =
        if sql.server_version() >= 160_000 { "m.inherit_option, m.set_option" } else { "NULL AS inherit_option, NULL AS set_option" };
    let rows = sql.query(&format!(
        "SELECT r.rolname AS role, u.rolname AS member, m.admin_option, {options} FROM pg_catalog.pg_auth_members m \
         JOIN pg_catalog.pg_roles r ON r.oid = m.roleid JOIN pg_catalog.pg_roles u ON u.oid = m.member WHERE u.rolname !~ '^pg_' ORDER BY 1, 2"
    ))?;
    let membership = |row: &Row| {
        Ok(Membership {
            role: row.required("role")?.to_owned(),
            member: row.required("member")?.to_owned(),
            admin: is(row, "admin_option"),
            inherit: row.named("inherit_option").map(|text| text == "t"),
            set: row.named("set_option").map(|text| text == "t"),
        })
    };
    rows.iter().map(membership).collect()
}

/// Large objects, without their bytes.
pub(super) fn large_objects(sql: &mut Connection, folder: &str) -> Result<Vec<LargeObject>> {
    let rows = sql.query(
        "SELECT m.oid, r.rolname, m.lomacl IS NOT NULL AS has_acl, pg_catalog.obj_description(m.oid, 'pg_largeobject') AS comment \
         FROM pg_catalog.pg_largeobject_metadata m JOIN pg_catalog.pg_roles r ON r.oid = m.lomowner ORDER BY m.oid",
    )?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let oid: u32 = number(row.required("oid")?)?;
        let grants = if is(row, "has_acl") {
            Some(grants(sql, &format!("SELECT lomacl FROM pg_catalog.pg_largeobject_metadata WHERE oid = {oid}"))?)
        } else {
            None
        };
        found.push(LargeObject {
            oid,
            path: format!("{folder}/large-objects/{oid}"),
            owner: row.required("rolname")?.to_owned(),
            grants,
            comment: own(row.named("comment")),
            bytes: 0,
            digest: String::new(),
        });
    }
    Ok(found)
}

/// Sequences as they are now: later than the snapshot, so that no value is given twice. Second: warnings of those that cannot be read here.
pub(super) fn sequences(sql: &mut Connection) -> Result<(Vec<Sequence>, Vec<String>)> {
    // Since version 15 those of unlogged tables are unlogged too, and no standby lets anybody read them.
    let unreadable = "c.relpersistence = 'u' AND pg_catalog.pg_is_in_recovery()";
    let rows = sql.query(&format!(
        "SELECT n.nspname, c.relname, {unreadable} AS unreadable FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
           AND (NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
                  AND d.objid = c.oid AND d.deptype = 'e') \
                OR c.oid IN (SELECT pg_catalog.unnest(extconfig) FROM pg_catalog.pg_extension)) ORDER BY 1, 2"
    ))?;
    let (mut names, mut warnings) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in &rows {
        let (schema, name) = (row.required("nspname")?.to_owned(), row.required("relname")?.to_owned());
        if is(row, "unreadable") {
            warnings.push(format!("sequence {schema}.{name} is unlogged: a standby has no value of it, it begins anew"));
        } else {
            names.push((schema, name));
        }
    }
    let mut found = Vec::with_capacity(names.len());
    for part in names.chunks(SEQUENCES) {
        let of = |(number, (schema, name)): (usize, &(String, String))| {
            format!("SELECT {number} AS number, last_value, is_called FROM {}", qualified(schema, name))
        };
        let query = part.iter().enumerate().map(of).collect::<Vec<_>>().join(" UNION ALL ");
        let values = sql.query(&format!("{query} ORDER BY 1"))?;
        if values.len() != part.len() {
            return Err(Error::new(Kind::Failed, "read the sequences: one did not answer"));
        }
        for ((schema, name), row) in part.iter().zip(&values) {
            found.push(Sequence {
                schema: schema.clone(),
                name: name.clone(),
                value: number(row.required("last_value")?)?,
                is_called: is(row, "is_called"),
            });
        }
    }
    Ok((found, warnings))
}

/// Tables of the snapshot that are not what the leading transaction has locked by their names, or whose rows were replaced before it had (`TRUNCATE`, a rewrite: the
/// snapshot does not see the former ones); and sequences that were begun anew. A table that is locked is neither renamed, nor dropped, nor rewritten any more.
pub(super) fn replaced(sql: &mut Connection, tables: &[Found]) -> Result<Vec<String>> {
    let oids = tables.iter().map(|found| found.oid.to_string()).collect::<Vec<_>>().join(",");
    let rows = sql.query(&format!(
        "SELECT n.nspname || '.' || c.relname AS name FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.oid = ANY ({0}::pg_catalog.oid[]) AND c.oid NOT IN (SELECT l.relation FROM pg_catalog.pg_locks l \
             WHERE l.pid = pg_catalog.pg_backend_pid() AND l.locktype = 'relation' AND l.granted AND l.database = \
               (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())) \
           OR (c.oid = ANY ({0}::pg_catalog.oid[]) OR c.relkind = 'S' AND c.relpersistence <> 't') AND c.relfilenode <> 0 \
             AND pg_catalog.pg_relation_filenode(c.oid) IS DISTINCT FROM c.relfilenode ORDER BY 1",
        quote_literal(&format!("{{{oids}}}"))
    ))?;
    rows.iter().map(|row| row.required("name").map(str::to_owned)).collect()
}

/// SQL that yields the oid of the table that has this name now, as [`is_named`] takes it.
pub(super) fn who_is(found: &Found) -> String {
    format!("SELECT pg_catalog.to_regclass({})::pg_catalog.oid AS oid", quote_literal(&found.sql()))
}

/// Fails when a table's name led to another one: its schema was renamed, which no lock of a table keeps anybody from.
///
/// # Errors
/// `Busy`.
pub(super) fn is_named(found: &Found, answer: &[Row]) -> Result<()> {
    if answer.first().and_then(|row| row.named("oid")) == Some(found.oid.to_string().as_str()) {
        return Ok(());
    }
    let what = format!("{} is another table now: its schema was renamed while the backup was made", found.sql());
    Err(Error::new(Kind::Busy, what).hint("run it again when nobody renames schemas"))
}

/// What is looked at for changes since a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watch {
    /// Names and definitions that the server tells `pg_dump` as they are now, whatever its snapshot: what refers to them would be of another moment than they are.
    Definitions,
    /// What the text of rows depends on beside them.
    Rows,
}

/// Rows of a catalogue.
struct Watched {
    catalog: &'static str,
    /// Of the object, an oid.
    key: &'static str,
    /// SQL for people.
    name: &'static str,
    /// What may not change, as columns.
    content: &'static str,
    /// Which of them.
    only: &'static str,
    /// Whether it is a table, whose rows say that there is a later version of them.
    has_versions: bool,
}

const fn watched(catalog: &'static str, key: &'static str, name: &'static str, content: &'static str, only: &'static str) -> Watched {
    Watched { catalog, key, name, content, only, has_versions: true }
}

const RELATION: &str = "(SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ";
/// Not of a session's own schema, which goes with it.
const LASTING: &str = "(SELECT oid FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_(toast$|toast_temp_|temp_)')";

impl Watch {
    fn all(self) -> Vec<Watched> {
        let labels = watched(
            "pg_enum",
            "enumtypid",
            "'labels of type ' || (SELECT typname FROM pg_catalog.pg_type t WHERE t.oid = enumtypid)",
            "oid, enumlabel",
            "true",
        );
        match self {
            Self::Definitions => vec![
                watched("pg_namespace", "oid", "'schema ' || nspname", "nspname", "nspname !~ '^pg_(toast$|toast_temp_|temp_)'"),
                watched(
                    "pg_class",
                    "oid",
                    "{oid}",
                    "relname, relnamespace, relkind, relispartition, reloftype, CASE WHEN relkind = 'c' THEN relnatts END",
                    "relnamespace IN {lasting}",
                ),
                watched(
                    "pg_attribute",
                    "attrelid",
                    "'columns of ' || {attrelid}",
                    "attnum, attname, atttypid, atttypmod, attcollation, attisdropped",
                    "attnum > 0 AND attrelid IN (SELECT oid FROM pg_catalog.pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'c') AND relnamespace IN {lasting})",
                ),
                watched(
                    "pg_type",
                    "oid",
                    "'type ' || typname",
                    "typname, typnamespace, typbasetype, typtypmod",
                    "typnamespace IN {lasting}",
                ),
                labels,
                watched(
                    "pg_proc",
                    "oid",
                    "'function ' || proname",
                    "proname, pronamespace, prokind, prorettype, proargtypes, proallargtypes, proargmodes, proargnames, proargdefaults, prosqlbody",
                    "pronamespace IN {lasting}",
                ),
                watched("pg_operator", "oid", "'operator ' || oprname", "oprname, oprnamespace", "true"),
                watched("pg_opclass", "oid", "'operator class ' || opcname", "opcname, opcnamespace", "true"),
                watched("pg_collation", "oid", "'collation ' || collname", "collname, collnamespace", "true"),
                watched("pg_ts_config", "oid", "'text search configuration ' || cfgname", "cfgname, cfgnamespace", "true"),
                watched("pg_ts_dict", "oid", "'text search dictionary ' || dictname", "dictname, dictnamespace", "true"),
                watched(
                    "pg_trigger",
                    "oid",
                    "'trigger ' || tgname",
                    "tgrelid, tgname, tgfoid, tgtype, tgdeferrable, tginitdeferred, tgattr, tgargs, tgqual, tgoldtable, tgnewtable",
                    "NOT tgisinternal AND tgrelid IN (SELECT oid FROM pg_catalog.pg_class WHERE relnamespace IN {lasting})",
                ),
                watched(
                    "pg_statistic_ext",
                    "oid",
                    "'statistics ' || stxname",
                    "stxname, stxnamespace, stxkeys, stxkind, stxexprs",
                    "stxnamespace IN {lasting}",
                ),
                Watched {
                    has_versions: false,
                    ..watched(
                        "pg_roles",
                        "oid",
                        "'role ' || rolname",
                        "rolname",
                        "oid IN (SELECT s.refobjid FROM pg_catalog.pg_shdepend s WHERE s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass \
                         AND s.dbid = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()))",
                    )
                },
            ],
            Self::Rows => vec![
                watched("pg_class", "oid", "'attributes of type ' || {oid}", "relnatts", "relkind = 'c' AND relnamespace IN {lasting}"),
                labels,
                watched(
                    "pg_attribute",
                    "attrelid",
                    "'attributes of type ' || {attrelid}",
                    "attnum, atttypid, atttypmod, attisdropped",
                    "attnum > 0 AND attrelid IN (SELECT oid FROM pg_catalog.pg_class WHERE relkind = 'c' AND relnamespace IN {lasting})",
                ),
            ],
        }
    }
}

impl Watched {
    /// As rows of `catalog`, `key`, `name`, `content`.
    fn sql(&self, only: &str) -> String {
        let relation = |key: &str| format!("{RELATION}{key})");
        let name = self.name.replace("{oid}", &relation("pg_class.oid")).replace("{attrelid}", &relation("attrelid"));
        format!(
            "SELECT '{0}' AS catalog, {1}::pg_catalog.text AS key, {name} AS name, ROW({2})::pg_catalog.text AS content FROM pg_catalog.{0} WHERE {only}",
            self.catalog, self.key, self.content
        )
    }
}

/// What a transaction's snapshot sees and what has changed since, by name. `now`: a session without a transaction, for where there may be something.
pub(super) fn altered(sql: &mut Connection, watch: Watch, now: impl FnOnce() -> Result<Connection>) -> Result<Vec<String>> {
    // A row that the snapshot sees has an `xmax` when somebody made a later version of it, or tried to.
    let only = |watched: &Watched| {
        let only = watched.only.replace("{lasting}", LASTING);
        if watched.has_versions { format!("xmax <> '0'::pg_catalog.xid AND {only}") } else { only }
    };
    let watched = watch.all();
    let query = watched.iter().map(|watched| watched.sql(&only(watched))).collect::<Vec<_>>().join(" UNION ALL ");
    let before = sql.query(&query)?;
    if before.is_empty() {
        return Ok(Vec::new());
    }
    let keyed = |watched: &Watched| {
        let keys = before.iter().filter(|row| row.named("catalog") == Some(watched.catalog)).filter_map(|row| row.named("key"));
        let keys: BTreeSet<&str> = keys.collect();
        let keys = keys.into_iter().collect::<Vec<_>>().join(",");
        watched.sql(&format!("{} = ANY ({}::pg_catalog.oid[])", watched.key, quote_literal(&format!("{{{keys}}}"))))
    };
    let query = watched.iter().map(keyed).collect::<Vec<_>>().join(" UNION ALL ");
    let after = now()?.query(&query)?;
    let content = |row: &Row| -> Result<(String, String, String)> {
        Ok((row.required("catalog")?.to_owned(), row.required("key")?.to_owned(), row.named("content").unwrap_or_default().to_owned()))
    };
    let after: BTreeSet<(String, String, String)> = after.iter().map(content).collect::<Result<_>>()?;
    let mut changed = BTreeSet::new();
    for row in &before {
        if !after.contains(&content(row)?) {
            changed.insert(row.named("name").unwrap_or("an object").to_owned());
        }
    }
    Ok(changed.into_iter().collect())
}
