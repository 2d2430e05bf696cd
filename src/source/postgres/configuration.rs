//! Where a server's configuration is: its three files, and what they include.
//!
//! The server tells of included files what the role may know: those that a setting in force is from (`pg_read_all_settings`), and all of them to a superuser. Who reads
//! its data folder on the same host reads the files themselves.
//!
//! Source: `guc-file.l` and `src/backend/libpq/hba.c`: `include`, `include_if_exists` and `include_dir` in `postgresql.conf` (`=` and quotes as with settings), from
//! version 16 on in `pg_hba.conf` and `pg_ident.conf` too (without `=`), where `@file` stands for names in a file. All paths are relative to the file that they are in.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::error::Result;
use crate::source::postgres::client::{Connection, sqlstate};

/// A server follows includes no deeper (`CONF_FILE_MAX_DEPTH`).
const MOST_DEPTH: usize = 10;

/// As the server says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Absolute paths.
    pub files: BTreeSet<PathBuf>,
    /// `None`: the role may not know.
    pub data_directory: Option<PathBuf>,
}

impl Configuration {
    /// # Errors
    /// As the server says, but for what the role may not ask.
    pub fn read(sql: &mut Connection) -> Result<Self> {
        let mut queries = vec![
            "SELECT setting FROM pg_catalog.pg_settings WHERE name IN ('config_file', 'hba_file', 'ident_file') \
             UNION SELECT sourcefile FROM pg_catalog.pg_settings",
            "SELECT sourcefile FROM pg_catalog.pg_file_settings",
        ];
        if sql.server_version() >= 160_000 {
            queries
                .push("SELECT file_name FROM pg_catalog.pg_hba_file_rules UNION SELECT file_name FROM pg_catalog.pg_ident_file_mappings");
        }
        let mut files = BTreeSet::new();
        for query in queries {
            match sql.query(query) {
                Ok(rows) => files.extend(rows.iter().filter_map(|row| row.get(0)).filter(|path| path.starts_with('/')).map(PathBuf::from)),
                Err(error) if sqlstate(&error) == Some("42501") => {}
                Err(error) => return Err(error),
            }
        }
        let data_directory = sql.query("SELECT setting FROM pg_catalog.pg_settings WHERE name = 'data_directory'")?;
        Ok(Self { files, data_directory: data_directory.first().and_then(|row| row.get(0)).map(PathBuf::from) })
    }

    /// What lies outside the data folder, as far as the server tells. `None`: the role may not know where that is.
    #[must_use]
    pub fn outside(&self) -> Option<BTreeSet<PathBuf>> {
        let data = self.data_directory.as_deref()?;
        Some(self.files.iter().map(|file| without_dots(file)).filter(|file| !file.starts_with(data)).collect())
    }

    /// All files, with what they include, read on this host.
    #[must_use]
    pub fn with_included(&self, data_directory: &Path) -> Vec<PathBuf> {
        let usual = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"].map(|name| data_directory.join(name));
        // Where the role may not know, they are most likely in their usual places.
        let usual = usual.into_iter().filter(|file| file.exists());
        let mut found = BTreeSet::new();
        for file in self.files.iter().cloned().chain(usual) {
            follow(file, MOST_DEPTH, &mut found);
        }
        found.into_iter().collect()
    }
}

/// By its words: the file may be on another host.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir {
            plain.pop();
        } else {
            plain.push(part);
        }
    }
    plain
}

/// What cannot be read is in it, and told by whoever reads it.
fn follow(file: PathBuf, depth: usize, found: &mut BTreeSet<PathBuf>) {
    let is_plain = file.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let file = if is_plain { file } else { fs::canonicalize(&file).unwrap_or(file) };
    if depth == 0 || found.contains(&file) {
        return;
    }
    let text = fs::read(&file).unwrap_or_default();
    let folder = file.parent().unwrap_or(Path::new("/")).to_owned();
    found.insert(file);
    for include in includes(&String::from_utf8_lossy(&text)) {
        match include {
            Include::File(path) => follow(folder.join(path), depth - 1, found),
            Include::IfExists(path) if folder.join(&path).exists() => follow(folder.join(path), depth - 1, found),
            Include::IfExists(_) => {}
            Include::Folder(path) => {
                let path = folder.join(path);
                let Ok(items) = fs::read_dir(&path).and_then(Iterator::collect::<std::io::Result<Vec<_>>>) else {
                    found.insert(path);
                    continue;
                };
                let is_taken = |path: &PathBuf| {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    name.ends_with(".conf") && !name.starts_with('.') && !path.is_dir()
                };
                items.into_iter().map(|item| item.path()).filter(is_taken).for_each(|path| follow(path, depth - 1, found));
            }
        }
    }
}

/// Absolute paths that a restored folder's `postgresql.conf` includes: they lead out of the folder, perhaps to nothing.
#[must_use]
pub fn includes_elsewhere(data: &Path) -> Vec<PathBuf> {
    let text = fs::read(data.join("postgresql.conf")).unwrap_or_default();
    let paths = includes(&String::from_utf8_lossy(&text)).into_iter().map(|include| match include {
        Include::File(path) | Include::IfExists(path) | Include::Folder(path) => path,
    });
    paths.filter(|path| !data.join(path).starts_with(data) || path.starts_with("..")).collect()
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Include {
    File(PathBuf),
    IfExists(PathBuf),
    Folder(PathBuf),
}

/// What a file's lines include, as they say it.
fn includes(text: &str) -> Vec<Include> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.trim_start();
        let end = line.find(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_')).unwrap_or(line.len());
        let (word, rest) = line.split_at(end);
        let rest = rest.trim_start();
        let path = || value(rest.strip_prefix('=').unwrap_or(rest).trim_start());
        match word.to_ascii_lowercase().as_str() {
            "include" => found.extend(path().map(Include::File)),
            "include_if_exists" => found.extend(path().map(Include::IfExists)),
            "include_dir" => found.extend(path().map(Include::Folder)),
            // Names of databases and users.
            _ => {
                let code = line.split('#').next().unwrap_or_default();
                let lists = code.split([' ', '\t', ',']).filter_map(|word| word.strip_prefix('@'));
                found.extend(lists.filter_map(value).map(Include::File));
            }
        }
    }
    found
}

/// A path in quotes of either kind, or up to the next space.
fn value(text: &str) -> Option<PathBuf> {
    let mut letters = text.chars().peekable();
    let quote = letters.next_if(|letter| matches!(letter, '\'' | '"'));
    let mut path = String::new();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            // Doubled, it is one.
            (letter, Some(quote)) if letter == quote => match letters.next_if_eq(&quote) {
                Some(letter) => path.push(letter),
                None => break,
            },
            ('\\', Some('\'')) => path.extend(letters.next()),
            (letter, None) if letter.is_whitespace() || letter == '#' => break,
            (letter, _) => path.push(letter),
        }
    }
    (!path.is_empty()).then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn includes_are_read_as_the_server_reads_them() {
        let file = |path: &str| Include::File(path.into());
        for (line, expected) in [
            ("include 'a.conf'", vec![file("a.conf")]),
            ("  INCLUDE = '/x/it''s.conf' # why", vec![file("/x/it's.conf")]),
            ("include_if_exists='b c.conf'", vec![Include::IfExists("b c.conf".into())]),
            ("include_dir 'conf.d'", vec![Include::Folder("conf.d".into())]),
            ("include_dir conf.d # all", vec![Include::Folder("conf.d".into())]),
            ("include \"hba part\"", vec![file("hba part")]),
            ("host @dbs,crm @users 10.0.0.0/8 md5 # @not", vec![file("dbs"), file("users")]),
            ("#include 'a.conf'", vec![]),
            ("included = 'x'", vec![]),
            ("search_path = 'include x'", vec![]),
            ("include ''", vec![]),
        ] {
            assert_eq!(includes(line), expected, "{line}");
        }
    }

    #[test]
    fn what_is_included_is_followed_and_a_circle_ends() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir_all(folder.path().join("etc/conf.d")).unwrap();
        fs::create_dir(&data).unwrap();
        let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        put("data/postgresql.conf", "include '../etc/main.conf'\ninclude_if_exists '/not/there.conf'\n");
        put("data/pg_hba.conf", "local all @names trust\n");
        put("data/names", "crm\n");
        put("etc/main.conf", "include_dir = 'conf.d'\ninclude 'gone.conf'\ninclude_dir 'no-such.d'\n");
        put("etc/conf.d/1.conf", "include '../main.conf'\n");
        put("etc/conf.d/.hidden.conf", "");
        put("etc/conf.d/readme", "");
        let found = Configuration::default().with_included(&data);
        let mut names: Vec<String> = found.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names, ["1.conf", "gone.conf", "main.conf", "names", "no-such.d", "pg_hba.conf", "postgresql.conf"]);
        assert_eq!(includes_elsewhere(&data), [Path::new("../etc/main.conf"), Path::new("/not/there.conf")]);
    }

    #[test]
    fn what_is_outside_is_told_where_the_data_folder_is_known() {
        let files = ["/data/postgresql.conf", "/etc/pg/extra.conf", "/data/../etc/more.conf"].map(PathBuf::from).into();
        let known = Configuration { files, data_directory: Some("/data".into()) };
        assert_eq!(known.outside().unwrap(), ["/etc/more.conf", "/etc/pg/extra.conf"].map(PathBuf::from).into());
        assert_eq!(Configuration { data_directory: None, ..known }.outside(), None);
    }
}
