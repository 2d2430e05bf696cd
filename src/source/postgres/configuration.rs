//! Where a server's configuration is: its three files, and what they include.
//!
//! The server tells of included files what the role may know: those that a setting in force is from (`pg_read_all_settings`), and all of them to a superuser. Who reads
//! its data folder on the same host reads the files themselves.
//!
//! Source: `guc-file.l` and `src/backend/libpq/hba.c`: `include`, `include_if_exists` and `include_dir` in `postgresql.conf` (`=` and quotes as with settings), from
//! version 16 on in `pg_hba.conf` and `pg_ident.conf` too (without `=`), where `@file` stands for names in a file. All paths are relative to the file that they are in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::error::Result;
use crate::source::postgres::client::{Connection, sqlstate};
use crate::source::postgres::layout::CONFIGURATION_FOLDER;
use crate::source::postgres::recover::without_blocks;

/// A server follows includes no deeper (`CONF_FILE_MAX_DEPTH`).
const MOST_DEPTH: usize = 10;
/// No configuration file is larger.
const MOST_BYTES: u64 = 4 << 20;

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
        Some(self.files.iter().map(|file| without_dots(file)).filter(|file| is_outside(file, data)).collect())
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

/// Whether a backup of the data folder lacks a file: also one that an earlier restore put there, which is left out with the rest of it.
#[must_use]
pub fn is_outside(file: &Path, data: &Path) -> bool {
    !file.starts_with(data) || file.starts_with(data.join(captured_folder()))
}

/// Where a restored folder has files that were outside the source's.
#[must_use]
pub fn captured_folder() -> &'static Path {
    use std::os::unix::ffi::OsStrExt as _;
    Path::new(std::ffi::OsStr::from_bytes(CONFIGURATION_FOLDER))
}

/// What the configuration of a restored folder says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Of the settings that were asked for, by name in small letters: the last value in the order in which the server reads them, unless that is empty.
    pub values: BTreeMap<String, PathBuf>,
    /// It goes on outside the folder, where anything may be said now or later.
    pub goes_on_outside: bool,
}

impl Said {
    /// A value as text, where it is a plain one.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name)?.to_str()
    }

    /// Whether a setting that is on or off was switched on (`parse_bool` in `bool.c`).
    #[must_use]
    pub fn is_on(&self, name: &str) -> bool {
        let text = self.text(name).unwrap_or_default().to_ascii_lowercase();
        !text.is_empty() && (text == "on" || text == "1" || "true".starts_with(&text) || "yes".starts_with(&text))
    }

    /// The items of a list.
    #[must_use]
    pub fn list(&self, name: &str) -> Vec<String> {
        let items = self.text(name).unwrap_or_default().split(',').map(|item| item.trim().trim_matches('"').to_owned());
        items.filter(|item| !item.is_empty()).collect()
    }
}

/// Reads these settings (names in small letters) as a server would that is started on the folder `data` once it is at `target` (absolute): its `postgresql.conf` with
/// all that it includes, then its `postgresql.auto.conf`. Of a file outside the folder the captured copy counts too.
#[must_use]
pub fn said(data: &Path, target: &Path, names: &[&str]) -> Said {
    read_all(Reader { data, target, names, is_restored: false, seen: BTreeSet::new(), said: Said::default() })
}

/// The same without what lifeboat wrote into `postgresql.auto.conf` when the source itself was restored: that goes with the next restore.
#[must_use]
pub fn said_by_the_source(data: &Path, target: &Path, names: &[&str]) -> Said {
    read_all(Reader { data, target, names, is_restored: true, seen: BTreeSet::new(), said: Said::default() })
}

fn read_all(mut reader: Reader<'_>) -> Said {
    let target = reader.target;
    reader.file(target.join("postgresql.conf"), MOST_DEPTH);
    // The server takes it from nowhere but the first one.
    let data_directory = reader.said.values.get("data_directory").cloned();
    reader.file(target.join("postgresql.auto.conf"), MOST_DEPTH);
    match data_directory {
        Some(place) => reader.said.values.insert("data_directory".into(), place),
        None => reader.said.values.remove("data_directory"),
    };
    reader.said
}

struct Reader<'a> {
    data: &'a Path,
    target: &'a Path,
    names: &'a [&'a str],
    /// What lifeboat wrote into it is passed over.
    is_restored: bool,
    /// As the server will name them.
    seen: BTreeSet<PathBuf>,
    said: Said,
}

impl Reader<'_> {
    /// Where to look now for what the server will find at `at`; the last one is what it would take.
    fn places(&self, at: &Path) -> Vec<PathBuf> {
        match at.strip_prefix(self.target) {
            Ok(inside) => vec![self.data.join(inside)],
            Err(_) => vec![captured(self.data, at), at.to_owned()],
        }
    }

    fn file(&mut self, at: PathBuf, depth: usize) {
        self.said.goes_on_outside |= !at.starts_with(self.target);
        if depth == 0 || !self.seen.insert(at.clone()) {
            return;
        }
        let folder = at.parent().unwrap_or(Path::new("/")).to_owned();
        for place in self.places(&at) {
            if let Ok(link) = fs::read_link(&place) {
                self.file(without_dots(&folder.join(link)), depth - 1);
                continue;
            }
            let Some(mut text) = read_plain(&place) else { continue };
            if self.is_restored && at.ends_with("postgresql.auto.conf") {
                text = without_blocks(&text);
            }
            for statement in String::from_utf8_lossy(&text).lines().filter_map(statement) {
                match statement {
                    Statement::Set(name, value) if self.names.contains(&name.as_str()) => {
                        if value.as_os_str().is_empty() {
                            self.said.values.remove(&name);
                        } else {
                            self.said.values.insert(name, value);
                        }
                    }
                    Statement::Set(..) => {}
                    Statement::Include(Include::File(path) | Include::IfExists(path)) => {
                        self.file(without_dots(&folder.join(path)), depth - 1);
                    }
                    Statement::Include(Include::Folder(path)) => self.folder(&without_dots(&folder.join(path)), depth - 1),
                }
            }
        }
    }

    fn folder(&mut self, at: &Path, depth: usize) {
        self.said.goes_on_outside |= !at.starts_with(self.target);
        let names: BTreeSet<_> = self
            .places(at)
            .iter()
            .filter_map(|place| fs::read_dir(place).ok())
            .flat_map(|items| items.flatten().map(|item| item.file_name()))
            .filter(|name| is_taken(Path::new(name)))
            .collect();
        for name in names {
            self.file(at.join(name), depth);
        }
    }
}

/// Where a restored folder has what was at `path` (absolute) outside of the source's.
#[must_use]
pub fn captured(data: &Path, path: &Path) -> PathBuf {
    data.join(captured_folder()).join(path.strip_prefix("/").unwrap_or(path))
}

/// A file as configuration is: what a link leads to as well, but nothing that could keep a reader waiting, or be endless.
pub(super) fn read_plain(path: &Path) -> Option<Vec<u8>> {
    fs::metadata(path).ok().filter(|found| found.is_file() && found.len() <= MOST_BYTES)?;
    fs::read(path).ok()
}

/// Whether `include_dir` takes a file with this name.
fn is_taken(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".conf") && !name.starts_with('.')
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
                let taken = items.into_iter().map(|item| item.path()).filter(|path| is_taken(path) && !path.is_dir());
                taken.for_each(|path| follow(path, depth - 1, found));
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

/// A line that is not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Statement {
    Include(Include),
    /// A name in small letters, and a value; or the first words of a line of the other two files.
    Set(String, PathBuf),
}

fn statement(line: &str) -> Option<Statement> {
    let line = line.trim_start();
    let end = line.find(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_')).unwrap_or(line.len());
    let (word, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let value = value(rest.strip_prefix('=').unwrap_or(rest).trim_start())?;
    let name = word.to_ascii_lowercase();
    Some(match name.as_str() {
        "" => return None,
        "include" | "include_if_exists" | "include_dir" if value.as_os_str().is_empty() => return None,
        "include" => Statement::Include(Include::File(value)),
        "include_if_exists" => Statement::Include(Include::IfExists(value)),
        "include_dir" => Statement::Include(Include::Folder(value)),
        _ => Statement::Set(name, value),
    })
}

/// What a file's lines include, as they say it.
fn includes(text: &str) -> Vec<Include> {
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(Statement::Include(include)) = statement(line) {
            found.push(include);
            continue;
        }
        if is_setting(line) {
            continue;
        }
        // Names of databases and users.
        let code = line.split('#').next().unwrap_or_default();
        let lists = code.split([' ', '\t', ',']).filter_map(|word| word.strip_prefix('@'));
        found.extend(lists.filter_map(value).filter(|path| !path.as_os_str().is_empty()).map(Include::File));
    }
    found
}

/// `name = …`, which no line of the other two files looks like.
fn is_setting(line: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '.'));
    line.split_once('=').is_some_and(|(name, _)| is_name(name.trim()))
}

/// A path in quotes of either kind, which may be empty, or up to the next space.
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
    (quote.is_some() || !path.is_empty()).then(|| PathBuf::from(path))
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
            ("log_line_prefix = '%m %u @%d '", vec![]),
            ("host all @users 10.0.0.0/8 ldap ldapserver=x", vec![file("users")]),
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
    fn what_a_restored_configuration_says_is_found_in_the_servers_order() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("partial/tree");
        let target = folder.path().join("place/restored");
        let put = |name: &str, text: &str| {
            let path = data.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let names = ["data_directory", "hba_file", "external_pid_file", "max_connections", "ssl"];
        let read = || said(&data, &target, &names);
        let value = |name: &str| read().values.get(name).map(|path| path.display().to_string());
        assert_eq!(read(), Said::default());

        put("postgresql.conf", "DATA_Directory '/old'\n#data_directory = '/no'\nhba_file = /old/hba # why\ninclude_dir = 'conf.d'\n");
        put("conf.d/2.conf", "data_directory = '/it''s'\ninclude '2.conf'\ninclude '../postgresql.conf'\n");
        put("conf.d/1.conf", "data_directory = '/first'\n");
        put("conf.d/.3.conf", "data_directory = '/hidden'\n");
        put("postgresql.auto.conf", "hba_file = '/auto'\ndata_directory = '/nobody-asks'\n");
        assert_eq!((value("data_directory").as_deref(), value("hba_file").as_deref()), (Some("/it's"), Some("/auto")));
        assert_eq!((value("external_pid_file"), read().goes_on_outside), (None, false));
        // What an earlier restore wrote is in force, and is not what the source said. The last one counts, also when it is empty.
        let blocks = "# lifeboat: recovery begins\nhba_file = ''\n# lifeboat: recovery ends\n\
                      # lifeboat: settings begin\nmax_connections = 200\n# lifeboat: settings end\n";
        put("postgresql.auto.conf", &format!("hba_file = '/auto'\nmax_connections = 7\nssl = TRUE\n{blocks}"));
        let source = said_by_the_source(&data, &target, &names);
        assert_eq!((source.text("max_connections"), source.text("hba_file"), source.is_on("ssl")), (Some("7"), Some("/auto"), true));
        assert_eq!((read().text("max_connections"), read().text("hba_file")), (Some("200"), None));
        put("postgresql.auto.conf", "hba_file = '/auto'\nssl = of\nmax_connections = 'x, \"y\",,'\n");
        assert!(!read().is_on("ssl") && !read().is_on("hba_file") && read().list("max_connections") == ["x", "y"]);

        // Relative to where it will be; and what a file elsewhere said at the source.
        put("postgresql.conf", "include_if_exists '../etc/main.conf'\ninclude '/etc/lifeboat-test/gone.conf'\n");
        assert!(read().goes_on_outside && value("data_directory").is_none());
        put("lifeboat_conf/etc/lifeboat-test/gone.conf", "external_pid_file = '/run/x.pid'\n");
        assert_eq!(value("external_pid_file").as_deref(), Some("/run/x.pid"));
        let etc = folder.path().join("place/etc");
        fs::create_dir_all(&etc).unwrap();
        fs::write(etc.join("main.conf"), "data_directory = '/there'\n").unwrap();
        assert_eq!(value("data_directory").as_deref(), Some("/there"));
        // Through a link too.
        fs::remove_file(data.join("postgresql.conf")).unwrap();
        std::os::unix::fs::symlink("../etc/main.conf", data.join("postgresql.conf")).unwrap();
        assert!(read().goes_on_outside);
        assert_eq!(value("data_directory").as_deref(), Some("/there"));
    }

    #[test]
    fn what_is_outside_is_told_where_the_data_folder_is_known() {
        let files = ["/data/postgresql.conf", "/etc/pg/extra.conf", "/data/../etc/more.conf", "/data/lifeboat_conf/etc/hba"]
            .map(PathBuf::from)
            .into();
        let known = Configuration { files, data_directory: Some("/data".into()) };
        let outside = ["/data/lifeboat_conf/etc/hba", "/etc/more.conf", "/etc/pg/extra.conf"].map(PathBuf::from).into();
        assert_eq!(known.outside().unwrap(), outside);
        assert_eq!(Configuration { data_directory: None, ..known }.outside(), None);
    }
}
