//! Taking single tables out of a restored database.

use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{Batch, Connection, ErrorCode, OpenFlags, OptionalExtension};

use crate::error::{Context, Error, Kind, Result};
use crate::source::sqlite::open::immutable_uri;

/// Modules whose virtual tables keep their content in the database itself.
const MODULES: [&str; 6] = ["fts3", "fts4", "fts5", "rtree", "rtree_i32", "geopoly"];
const HINT: &str = "restore the whole database to another place and take from it what you need";

/// Makes a new database `to` that holds these tables of the database `from`, with their rows, indexes and triggers. Names compare as SQLite
/// SQLite compares them (ASCII case does not matter), in any order; one named twice comes once. Rows come as they are: foreign keys are not
/// enforced and no trigger fires. `from` is not changed. Returns what to know about the copy: tables that its tables refer to and that are
/// not in it.
///
/// # Errors
/// `Usage` names the tables that are not there, and tables that are not made by a plain statement; `NoSpace`; `Failed` as SQLite says.
pub fn copy_tables(from: &Path, to: &Path, tables: &[String]) -> Result<Vec<String>> {
    let failed = || format!("copy tables from {}", from.display());
    let mut database = Connection::open_with_flags(
        to,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .context(Kind::Failed, || format!("create database {}", to.display()))?;
    let refused = |source: rusqlite::Error| said(failed(), source);
    // `immutable`: a restored file is private, so no log or lock file is made beside it.
    database.execute("ATTACH DATABASE ?1 AS restored", [immutable_uri(from)]).map_err(refused)?;
    // From here on statements come from the snapshot, which may be hostile.
    database
        .set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)
        .and_then(|_| database.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true))
        // Enforced, rows could come only after those that they refer to, which may not have been asked for.
        .and_then(|_| database.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false))
        .and_then(|_| database.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false))
        .and_then(|_| database.authorizer(Some(authorize)))
        .map_err(refused)?;
    let transaction = database.transaction().map_err(refused)?;
    let mut unknown = Vec::new();
    for (at, table) in tables.iter().enumerate() {
        if tables[..at].iter().any(|earlier| earlier.eq_ignore_ascii_case(table)) {
            continue;
        }
        let what = || format!("copy table {table} from {}", from.display());
        match copy_table(&transaction, table) {
            Ok(true) => {}
            Ok(false) => unknown.push(table.as_str()),
            // Refused here, whatever SQLite would have said.
            Err(rusqlite::Error::InvalidQuery) => {
                let why =
                    format!("{}: the snapshot's schema does not make it, its indexes or its triggers by a plain CREATE statement", what());
                return Err(Error::new(Kind::Usage, why).hint(HINT));
            }
            Err(source) => return Err(said(what(), source)),
        }
    }
    if !unknown.is_empty() {
        let there = names(&transaction).context(Kind::Failed, failed)?;
        return Err(Error::new(Kind::Usage, format!("restore only some tables: the snapshot has no table {}", unknown.join(", ")))
            .hint(format!("it has {}", there.join(", "))));
    }
    let absent = absent_parents(&transaction).map_err(refused)?;
    transaction.commit().map_err(refused)?;
    database.close().map_err(|(_, source)| said(failed(), source))?;
    Ok(absent)
}

/// What SQLite said. What the content of the snapshot causes will be the same next time; a disk may be better by then.
fn said(what: String, source: rusqlite::Error) -> Error {
    match source.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Error::new(Kind::NoSpace, what).because(source),
        Some(ErrorCode::SystemIoFailure) => Error::new(Kind::Unavailable, what).because(source),
        _ => Error::new(Kind::Failed, what).because(source).hint(HINT),
    }
}

/// Tables that foreign keys of the copied ones refer to and that were not copied, in words.
fn absent_parents(database: &Connection) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT child.name, group_concat(DISTINCT parent.\"table\") FROM main.sqlite_schema AS child,
         pragma_foreign_key_list(child.name, 'main') AS parent
         WHERE child.type = 'table' AND NOT EXISTS (SELECT 1 FROM main.sqlite_schema AS there
             WHERE there.type = 'table' AND there.name = parent.\"table\" COLLATE NOCASE)
         GROUP BY child.name ORDER BY child.name";
    let told = |row: &rusqlite::Row<'_>| {
        let (child, parents): (String, String) = (row.get(0)?, row.get(1)?);
        let why = "not in the new database: where foreign keys are enforced, rows of it cannot be added or changed there";
        Ok(format!("table {child} refers to {parents}, {why}"))
    };
    database.prepare(sql)?.query_map([], told)?.collect()
}

/// Runs one statement of the snapshot's schema: exactly one, and one that creates what the schema says it does.
fn create(database: &Connection, kind: &str, sql: &str) -> rusqlite::Result<()> {
    let words = words(sql, 3);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let plain = matches!(
        (kind, words.as_slice()),
        ("table", ["CREATE", "TABLE", ..] | ["CREATE", "VIRTUAL", "TABLE"])
            | ("index", ["CREATE", "INDEX", ..] | ["CREATE", "UNIQUE", "INDEX"])
            | ("trigger", ["CREATE", "TRIGGER", ..])
    );
    if !plain {
        return Err(rusqlite::Error::InvalidQuery);
    }
    let mut statements = Batch::new(database, sql);
    let first = statements.next()?;
    if statements.next()?.is_some() {
        return Err(rusqlite::Error::MultipleStatement);
    }
    first.map_or(Ok(()), |mut statement| statement.raw_execute().map(drop))
}

/// The first words of a statement in capitals, at most so many, as SQLite reads it: white space and comments separate. Ends at what is no
/// word. SQLite itself always writes `CREATE TABLE` and the like; other programs may write anything that means the same.
fn words(sql: &str, most: usize) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = sql;
    while words.len() < most {
        rest = rest.trim_start_matches([' ', '\t', '\n', '\x0c', '\r']);
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, after)| after);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, after)| after);
        } else {
            let end = rest.find(|letter: char| !letter.is_ascii_alphabetic()).unwrap_or(rest.len());
            // `CREATEd`, `CREATE_x`, `CREATEé` are other words.
            if end == 0 || rest[end..].starts_with(|letter: char| letter.is_alphanumeric() || letter == '_' || letter == '$') {
                break;
            }
            words.push(rest[..end].to_ascii_uppercase());
            rest = &rest[end..];
        }
    }
    words
}

/// No other file, no setting, no code: whatever a statement of the snapshot's schema asks for.
fn authorize(context: AuthContext<'_>) -> Authorization {
    match context.action {
        AuthAction::Attach { .. }
        | AuthAction::Detach { .. }
        | AuthAction::CreateTempTable { .. }
        | AuthAction::CreateTempTrigger { .. }
        | AuthAction::Function { function_name: "load_extension" | "fts3_tokenizer" } => Authorization::Deny,
        // Some modules reach beyond the database, or show what is in its memory.
        AuthAction::CreateVtable { module_name, .. } if MODULES.iter().all(|known| !module_name.eq_ignore_ascii_case(known)) => {
            Authorization::Deny
        }
        AuthAction::Pragma { pragma_name, pragma_value: Some(_) } => {
            let known = ["table_xinfo", "foreign_key_list"].iter().any(|known| pragma_name.eq_ignore_ascii_case(known));
            if known { Authorization::Allow } else { Authorization::Deny }
        }
        _ => Authorization::Allow,
    }
}

/// Whether there is such a table.
fn copy_table(database: &Connection, table: &str) -> rusqlite::Result<bool> {
    let wanted = "SELECT name, sql FROM restored.sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
    let found: Option<(String, String)> = database.query_row(wanted, [table], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((name, sql)) = found else { return Ok(false) };
    // Statements of the schema name their table without a database, so they make it in the new one.
    create(database, "table", &sql)?;
    let columns = stored_columns(database, &name)?.join(", ");
    let quoted = quote(&name);
    database.execute_batch(&format!("INSERT INTO main.{quoted} ({columns}) SELECT {columns} FROM restored.{quoted}"))?;
    let rest = "SELECT type, sql FROM restored.sqlite_schema WHERE tbl_name = ?1 AND type IN ('index', 'trigger') AND sql IS NOT NULL ORDER BY type";
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let statements: Vec<(String, String)> = database.prepare(rest)?.query_map([&name], read)?.collect::<rusqlite::Result<_>>()?;
    statements.iter().try_for_each(|(kind, statement)| create(database, kind, statement))?;
    Ok(true)
}

/// Columns with values of their own: generated ones cannot be written.
fn stored_columns(database: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = database.prepare("SELECT name FROM pragma_table_xinfo(?1, 'restored') WHERE hidden = 0")?;
    statement.query_map([table], |row| Ok(quote(&row.get::<_, String>(0)?)))?.collect()
}

fn names(database: &Connection) -> rusqlite::Result<Vec<String>> {
    let all = "SELECT name FROM restored.sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name";
    database.prepare(all)?.query_map([], |row| row.get(0))?.collect()
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_schema_reaches_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let foreign = folder.path().join("foreign");
        let tail = format!("; ATTACH '{}' AS f; CREATE TABLE f.x(y)", foreign.display());
        for (kind, name) in [("table", "t"), ("index", "i"), ("trigger", "g")] {
            let from = folder.path().join(format!("{kind}.db"));
            let database = Connection::open(&from).unwrap();
            database
                .execute_batch(
                    "CREATE TABLE t(a); CREATE INDEX i ON t(a);
                     CREATE TRIGGER g AFTER INSERT ON t BEGIN SELECT 1; END; PRAGMA writable_schema = ON",
                )
                .unwrap();
            database.execute("UPDATE sqlite_schema SET sql = sql || ?1 WHERE name = ?2", [tail.as_str(), name]).unwrap();
            drop(database);
            let to = folder.path().join(format!("{kind}.out"));
            assert!(copy_tables(&from, &to, &["t".into()]).is_err(), "{kind}");
            assert!(!foreign.exists(), "{kind}");
        }
    }

    /// A database whose schema says `sql` for the table `t` or what belongs to it.
    fn planted(folder: &Path, kind: &str, sql: &str) -> std::path::PathBuf {
        let from = folder.join("planted.db");
        drop(std::fs::remove_file(&from));
        let database = Connection::open(&from).unwrap();
        let made =
            "CREATE TABLE t(a); CREATE INDEX i ON t(a); CREATE TRIGGER g AFTER INSERT ON t BEGIN SELECT 1; END; INSERT INTO t VALUES (7)";
        database.execute_batch(made).unwrap();
        database.execute_batch("PRAGMA writable_schema = ON").unwrap();
        assert_eq!(database.execute("UPDATE sqlite_schema SET sql = ?1 WHERE type = ?2", [sql, kind]).unwrap(), 1);
        from
    }

    #[test]
    fn any_spelling_of_create_is_accepted() {
        let folder = tempfile::tempdir().unwrap();
        for (number, (kind, sql)) in [
            ("table", "CREATE\nTABLE t(a)"),
            ("table", "create\ttable t(a)"),
            ("table", "Create -- made by hand\n/* so */ Table--\nt(a)"),
            ("table", "CREATE TABLE\"t\"(a)"),
            ("index", "CREATE\n  unique\nINDEX i ON t(a)"),
            ("trigger", "create trigger g AFTER INSERT ON t BEGIN SELECT 1; END"),
        ]
        .into_iter()
        .enumerate()
        {
            let to = folder.path().join(format!("{number}.db"));
            copy_tables(&planted(folder.path(), kind, sql), &to, &["t".into()]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
            let copy = Connection::open(&to).unwrap();
            assert_eq!(copy.query_row("SELECT a FROM t", [], |row| row.get::<_, i64>(0)).unwrap(), 7, "{sql}");
            assert_eq!(copy.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)).unwrap(), 3, "{sql}");
        }
    }

    #[test]
    fn what_is_no_plain_create_is_refused_with_a_hint() {
        let folder = tempfile::tempdir().unwrap();
        let foreign = folder.path().join("foreign");
        let attach = format!("ATTACH '{}' AS f", foreign.display());
        for (kind, sql) in [
            ("table", attach.as_str()),
            ("table", "CREATE VIEW t AS SELECT 7 AS a"),
            ("table", "CREATE TEMP TABLE t(a)"),
            ("table", "/* CREATE TABLE t(a) */ DROP TABLE t"),
            ("table", "CREATEd TABLE t(a)"),
            ("table", "CREATE VIRTUAL TABLE t USING dbstat"),
            ("index", "CREATE TRIGGER i AFTER INSERT ON t BEGIN SELECT 1; END"),
            ("trigger", "CREATE TEMP TRIGGER g AFTER INSERT ON t BEGIN SELECT 1; END"),
            ("trigger", "DELETE FROM t"),
        ] {
            let from = planted(folder.path(), kind, sql);
            let to = folder.path().join("to.db");
            drop(std::fs::remove_file(&to));
            let error = copy_tables(&from, &to, &["t".into()]).expect_err(sql);
            assert!(error.hint_text().is_some_and(|hint| hint.contains("whole database")), "{sql}: {error:?}");
            assert!(!error.to_string().contains(sql), "{error}");
            assert!(!foreign.exists());
        }
    }

    #[test]
    fn virtual_tables_that_keep_their_content_come_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from.db"), folder.path().join("to.db"));
        let made = "CREATE VIRTUAL TABLE words USING fts5(body); INSERT INTO words VALUES ('alpha beta'), ('gamma');
             CREATE VIRTUAL TABLE places USING rtree(id, x0, x1); INSERT INTO places VALUES (1, 2, 3);
             CREATE VIRTUAL TABLE pages USING dbstat(main)";
        Connection::open(&from).unwrap().execute_batch(made).unwrap();
        copy_tables(&from, &to, &["words".into(), "places".into()]).unwrap();
        let copy = Connection::open(&to).unwrap();
        let count = |sql: &str| copy.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(count("SELECT count(*) FROM words WHERE words MATCH 'beta'"), 1);
        assert_eq!(count("SELECT count(*) FROM places WHERE x0 < 3"), 1);
        let refused = copy_tables(&from, &folder.path().join("no.db"), &["pages".into()]).unwrap_err();
        assert!(refused.causes().join(" ").contains("not authorized") && refused.hint_text().is_some(), "{refused:?}");
    }

    #[test]
    fn foreign_keys_and_their_order_do_not_stand_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from.db");
        let source = Connection::open(&from).unwrap();
        source
            .execute_batch(
                "PRAGMA foreign_keys = OFF;
                 CREATE TABLE account(id INTEGER PRIMARY KEY, boss REFERENCES account(id));
                 CREATE TABLE orders(id INTEGER PRIMARY KEY, account REFERENCES Account(id) ON DELETE CASCADE);
                 CREATE TABLE line(orders REFERENCES orders(id), account NOT NULL REFERENCES account, gone REFERENCES elsewhere(x));
                 CREATE TABLE log(x);
                 CREATE TRIGGER t AFTER INSERT ON orders BEGIN INSERT INTO log VALUES (new.id); END;
                 INSERT INTO account VALUES (1, 2), (2, 1); INSERT INTO orders VALUES (10, 1), (11, 99);
                 INSERT INTO line VALUES (10, 1, 5); DELETE FROM log",
            )
            .unwrap();
        let count = |database: &Connection, table: &str| -> i64 {
            database.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
        };
        let all = ["account", "orders", "line", "log"];
        let mut wanted: Vec<Vec<&str>> = all.iter().map(|table| vec![*table]).collect();
        wanted.extend([
            vec!["line", "orders"],
            vec!["line", "orders", "account", "log"],
            vec!["account", "orders", "ORDERS"],
            all.to_vec(),
        ]);
        for (number, tables) in wanted.into_iter().enumerate() {
            let to = folder.path().join(format!("{number}.db"));
            let asked: Vec<String> = tables.iter().map(|&table| table.into()).collect();
            let warnings = copy_tables(&from, &to, &asked).unwrap_or_else(|error| panic!("{tables:?}: {error:?}"));
            let copy = Connection::open(&to).unwrap();
            for table in &tables {
                assert_eq!(count(&copy, table), count(&source, table), "{tables:?}: {table}");
            }
            let told = warnings.join("; ");
            assert_eq!(told.contains("table line refers to"), tables.contains(&"line"), "{tables:?}: {told}");
            let alone = tables.contains(&"orders") && !tables.contains(&"account");
            assert_eq!(told.contains("table orders refers to Account,"), alone, "{tables:?}: {told}");
            assert!(!told.contains("table account") && !told.contains("table log"), "{tables:?}: {told}");
        }
    }

    #[test]
    fn tables_come_with_rows_indexes_and_triggers_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from ?#.db"), folder.path().join("to.db"));
        Connection::open(&from)
            .unwrap()
            .execute_batch(
                "CREATE TABLE \"odd \"\"name\"(id INTEGER PRIMARY KEY, b BLOB, twice AS (id * 2));
                 INSERT INTO \"odd \"\"name\"(id, b) VALUES (1, x'00ff'), (7, NULL);
                 CREATE INDEX by_b ON \"odd \"\"name\"(b);
                 CREATE TABLE log(x);
                 CREATE TRIGGER t AFTER INSERT ON \"odd \"\"name\" BEGIN INSERT INTO log VALUES (new.id); END;
                 CREATE TABLE other(x)",
            )
            .unwrap();
        copy_tables(&from, &to, &["ODD \"name".into(), "log".into()]).unwrap();
        let copy = Connection::open(&to).unwrap();
        let count = |sql: &str| copy.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(count("SELECT sum(id * 100 + twice) FROM \"odd \"\"name\""), 816);
        assert_eq!(count("SELECT count(*) FROM sqlite_schema"), 4);
        assert_eq!(count("SELECT count(*) FROM log"), 0, "triggers come after rows");
        let unknown = copy_tables(&from, &folder.path().join("no.db"), &["nope".into()]).unwrap_err();
        assert_eq!(unknown.kind(), Kind::Usage);
        assert!(unknown.hint_text().unwrap().contains("other"));
    }
}
