//! Taking single tables out of a restored database.

use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{Batch, Connection, OpenFlags, OptionalExtension};

use crate::error::{Context, Error, Kind, Result};
use crate::source::sqlite::open::immutable_uri;

/// Makes a new database `to` that holds these tables of the database `from`, with their rows, indexes and triggers. Names compare as SQLite
/// compares them (ASCII case does not matter). `from` is not changed.
///
/// # Errors
/// `Usage` names the tables that are not there; `Failed` as SQLite says.
pub fn copy_tables(from: &Path, to: &Path, tables: &[String]) -> Result<()> {
    let failed = || format!("copy tables from {}", from.display());
    let mut database = Connection::open_with_flags(
        to,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .context(Kind::Failed, || format!("create database {}", to.display()))?;
    // `immutable`: a restored file is private, so no log or lock file is made beside it.
    database.execute("ATTACH DATABASE ?1 AS restored", [immutable_uri(from)]).context(Kind::Failed, failed)?;
    // From here on statements come from the snapshot, which may be hostile.
    database
        .set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)
        .and_then(|_| database.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true))
        .and_then(|_| database.authorizer(Some(authorize)))
        .context(Kind::Failed, failed)?;
    let transaction = database.transaction().context(Kind::Failed, failed)?;
    // Rows of tables that refer to one another come one table after the other.
    transaction.pragma_update(None, "defer_foreign_keys", true).context(Kind::Failed, failed)?;
    let mut unknown = Vec::new();
    for table in tables {
        if !copy_table(&transaction, table).context(Kind::Failed, || format!("copy table {table} from {}", from.display()))? {
            unknown.push(table.as_str());
        }
    }
    if !unknown.is_empty() {
        let there = names(&transaction).context(Kind::Failed, failed)?;
        return Err(Error::new(Kind::Usage, format!("restore only some tables: the snapshot has no table {}", unknown.join(", ")))
            .hint(format!("it has {}", there.join(", "))));
    }
    transaction.commit().context(Kind::Failed, failed)?;
    database.close().map_err(|(_, source)| Error::new(Kind::Failed, failed()).because(source))
}

/// Runs one statement of the snapshot's schema: exactly one, and one that creates.
fn create(database: &Connection, sql: &str) -> rusqlite::Result<()> {
    if !sql.get(..7).is_some_and(|word| word.eq_ignore_ascii_case("CREATE ")) {
        return Err(rusqlite::Error::InvalidQuery);
    }
    let mut statements = Batch::new(database, sql);
    let first = statements.next()?;
    if statements.next()?.is_some() {
        return Err(rusqlite::Error::MultipleStatement);
    }
    first.map_or(Ok(()), |mut statement| statement.raw_execute().map(drop))
}

/// No other file, no setting, no code: whatever a statement of the snapshot's schema asks for.
fn authorize(context: AuthContext<'_>) -> Authorization {
    match context.action {
        AuthAction::Attach { .. }
        | AuthAction::Detach { .. }
        | AuthAction::Function { function_name: "load_extension" | "fts3_tokenizer" } => Authorization::Deny,
        AuthAction::Pragma { pragma_name, pragma_value: Some(_) } => {
            let known = ["table_xinfo", "defer_foreign_keys"].iter().any(|known| pragma_name.eq_ignore_ascii_case(known));
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
    create(database, &sql)?;
    let columns = stored_columns(database, &name)?.join(", ");
    let quoted = quote(&name);
    database.execute_batch(&format!("INSERT INTO main.{quoted} ({columns}) SELECT {columns} FROM restored.{quoted}"))?;
    let rest =
        "SELECT sql FROM restored.sqlite_schema WHERE tbl_name = ?1 AND type IN ('index', 'trigger') AND sql IS NOT NULL ORDER BY type";
    let statements: Vec<String> = database.prepare(rest)?.query_map([&name], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    statements.iter().try_for_each(|statement| create(database, statement))?;
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
