//! Taking single tables out of a restored database.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension};

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
    database.execute_batch("DETACH DATABASE restored").context(Kind::Failed, failed)?;
    database.close().map_err(|(_, source)| Error::new(Kind::Failed, failed()).because(source))
}

/// Whether there is such a table.
fn copy_table(database: &Connection, table: &str) -> rusqlite::Result<bool> {
    let wanted = "SELECT name, sql FROM restored.sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
    let found: Option<(String, String)> = database.query_row(wanted, [table], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((name, sql)) = found else { return Ok(false) };
    // Statements of the schema name their table without a database, so they make it in the new one.
    database.execute_batch(&sql)?;
    let columns = stored_columns(database, &name)?.join(", ");
    let quoted = quote(&name);
    database.execute_batch(&format!("INSERT INTO main.{quoted} ({columns}) SELECT {columns} FROM restored.{quoted}"))?;
    let rest =
        "SELECT sql FROM restored.sqlite_schema WHERE tbl_name = ?1 AND type IN ('index', 'trigger') AND sql IS NOT NULL ORDER BY type";
    let statements: Vec<String> = database.prepare(rest)?.query_map([&name], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    statements.iter().try_for_each(|statement| database.execute_batch(statement))?;
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
