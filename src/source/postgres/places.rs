//! Places that the configuration of a restored folder names, and that are not in it: the source's own.
//!
//! A server that is started on a folder reads the `postgresql.conf` in it, and goes on in the folder that `data_directory` names there, whatever the folder was that it was
//! started on (`SelectConfigFiles` in `guc.c`): on the source's host it would open the source's data, and the recovery that was prepared would never begin. So
//! what a restored folder says is overridden where every start sees it: `data_directory` by the last lines of its `postgresql.conf`, because the server takes it from nowhere
//! else, the others in its `postgresql.auto.conf`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext, Kind, Result};
use crate::source::postgres::configuration::{captured, read_plain, said, said_by_the_source};
use crate::source::postgres::instance;
use crate::source::postgres::recover::{replace, with_block};

const MARKS: [&str; 2] = ["# lifeboat: place begins", "# lifeboat: place ends"];
const CONF: &str = "postgresql.conf";
const DATA: &str = "data_directory";
const PID: &str = "external_pid_file";
const FILES: [&str; 2] = ["hba_file", "ident_file"];
/// Folders that a server writes to, with what they are called within its own. The second one: before 15.
const WRITTEN: [(&str, &str); 2] = [("log_directory", "log"), ("stats_temp_directory", "pg_stat_tmp")];

/// What was done about them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    /// For `postgresql.auto.conf`.
    pub(super) settings: Vec<(String, String)>,
    /// What an operator should know.
    pub(super) told: Vec<String>,
}

/// Makes a restored folder, which will be at `target` (absolute), name itself where its configuration names the folder of its source (`source`, as far as that is
/// known). A folder that goes to where its source had it keeps what it says.
///
/// # Errors
/// `Usage` when `target` cannot stand in a configuration file; as the system says.
pub(super) fn keep_here(data: &Path, target: &Path, source: Option<&Path>) -> Result<Places> {
    let names = [&[DATA, PID, "logging_collector"][..], &FILES[..], &WRITTEN.map(|(name, _)| name)[..]].concat();
    let in_force = said(data, target, &names);
    // What an earlier restore wrote goes with this one.
    let left = said_by_the_source(data, target, &names);
    let named = in_force.values.get(DATA);
    let source = source.or(named.map(PathBuf::as_path)).filter(|place| place.is_absolute());
    let mut places = Places::default();
    // What is said outside may change, or come to be there, after this.
    if in_force.goes_on_outside || named.is_some_and(|place| place != target) {
        override_data_directory(data, target)?;
        let why = named.filter(|place| *place != target).map_or_else(
            || "includes what is not in it, which may name another data folder".to_owned(),
            |place| format!("names {} as the data folder, which a start here would have opened", place.display()),
        );
        places.told.push(format!(
            "its configuration {why}; the last lines of its {CONF} name {} instead: change them when you move the folder",
            target.display()
        ));
    }
    for name in FILES {
        let (now, later) = (in_force.values.get(name), left.values.get(name));
        let Some(place) = now.or(later) else { continue };
        let found = |place: &PathBuf| {
            let inside = source.and_then(|source| place.strip_prefix(source).ok());
            let here = inside.map(|rest| (data.join(rest), target.join(rest)));
            let kept = [here, Some((captured(data, place), captured(target, place)))].into_iter().flatten();
            kept.into_iter().find(|(now, _)| place.is_absolute() && read_plain(now).is_some()).map(|(_, then)| then)
        };
        match now.and_then(found).or_else(|| later.and_then(found)) {
            Some(then) if later == Some(&then) => {}
            Some(then) => {
                places.told.push(format!("its {name} was {}; it is {} now, by its postgresql.auto.conf", place.display(), then.display()));
                places.settings.push((name.to_owned(), text(&then)?.to_owned()));
            }
            None => places.told.extend(later.filter(|place| !place.starts_with(target)).map(|place| {
                format!(
                    "its {name} is {}, which is not in the folder: it is read from there, and without it the server does not start",
                    place.display()
                )
            })),
        }
    }
    for (name, own) in WRITTEN {
        let is_used = name != "log_directory" || left.is_on("logging_collector");
        let place =
            left.values.get(name).filter(|place| is_used && source != Some(target) && place.is_absolute() && !place.starts_with(target));
        if let Some(place) = place {
            // Where a server of the source, or another one, may write too; and a server does not start where it cannot.
            places.settings.push((name.to_owned(), own.to_owned()));
            places
                .told
                .push(format!("its {name} is {own} in the folder, by its postgresql.auto.conf ({} was the source's)", place.display()));
        }
    }
    if let Some(place) = left.values.get(PID).filter(|_| source != Some(target)) {
        // The server would write it, and remove it again, also over that of another one.
        places.settings.push((PID.to_owned(), String::new()));
        places.told.push(format!("it writes no {PID} ({} was the source's)", place.display()));
    }
    Ok(places)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().filter(|text| !text.contains(['\n', '\r'])).ok_or_else(|| {
        Error::new(Kind::Usage, format!("name {} in the restored configuration: it is not plain text", path.display()))
            .hint("restore to a folder whose path is plain text")
    })
}

fn override_data_directory(data: &Path, target: &Path) -> Result<()> {
    let path = data.join(CONF);
    let before = match fs::read_link(&path) {
        Err(_) => fs::read(&path).io_context(|| format!("read {}", path.display()))?,
        // What it leads to is not changed: it becomes a file with the same content.
        Ok(link) => {
            let link = target.join(link);
            match read_plain(&path).or_else(|| read_plain(&captured(data, &link))) {
                Some(text) => text,
                None => instance::setting_line("include", text(&link)?)?.into_bytes(),
            }
        }
    };
    let line = instance::setting_line(DATA, text(target)?)?;
    let lines = format!(
        "# The configuration above, or what it includes, names another data folder, which a server that is started on this one would open.\n{line}"
    );
    replace(data, CONF, &with_block(&before, MARKS, &lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restored(conf: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("partial");
        fs::create_dir_all(data.join("lifeboat_conf/etc/pg")).unwrap();
        fs::write(data.join(CONF), conf).unwrap();
        (folder, data)
    }

    #[test]
    fn a_folder_that_names_nobody_else_stays_as_it_is() {
        for (conf, target) in
            [("work_mem = '8MB'\n", "/new"), ("data_directory = '/old'\nhba_file = '/old/x'\nexternal_pid_file = '/run/x'\n", "/old")]
        {
            let (_folder, data) = restored(conf);
            fs::write(data.join("x"), "").unwrap();
            assert_eq!(keep_here(&data, Path::new(target), Some(Path::new("/old"))).unwrap(), Places::default());
            assert_eq!(fs::read_to_string(data.join(CONF)).unwrap(), conf);
        }
    }

    #[test]
    fn what_names_the_source_names_the_folder_afterwards() {
        let conf =
            b"# \xfc\ndata_directory = '/old'\nhba_file = '/old/hba.conf'\nident_file '/etc/pg/ident'\nexternal_pid_file='/run/x'".to_vec();
        let (_folder, data) = restored("");
        fs::write(data.join(CONF), &conf).unwrap();
        fs::write(data.join("hba.conf"), "").unwrap();
        fs::write(data.join("lifeboat_conf/etc/pg/ident"), "").unwrap();
        // Also when the folder is restored once more, to elsewhere.
        for target in ["/it's here", "/new"] {
            let places = keep_here(&data, Path::new(target), None).unwrap();
            let settings: Vec<(&str, &str)> = places.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            if target == "/new" {
                assert_eq!(settings[..2], [("ident_file", "/new/lifeboat_conf/etc/pg/ident"), ("external_pid_file", "")]);
            } else {
                let hba = ("hba_file", "/it's here/hba.conf");
                assert_eq!(settings, [hba, ("ident_file", "/it's here/lifeboat_conf/etc/pg/ident"), ("external_pid_file", "")]);
            }
            let text = fs::read(data.join(CONF)).unwrap();
            assert!(text.starts_with(&conf), "not a byte of it is changed");
            let block = String::from_utf8(text[conf.len()..].to_vec()).unwrap();
            assert_eq!(block.matches("data_directory = ").count(), 1, "{block}");
            assert!(block.contains(&format!("\ndata_directory = '{}'\n", target.replace('\'', "''"))), "{block}");
        }
    }

    #[test]
    fn what_is_said_elsewhere_is_never_believed() {
        let (folder, data) = restored("include '/etc/pg/more.conf'\n");
        let places = keep_here(&data, Path::new("/new"), None).unwrap();
        assert!(places.told[0].contains("includes what is not in it"), "{places:?}");
        assert!(fs::read_to_string(data.join(CONF)).unwrap().contains("\ndata_directory = '/new'\n"));

        // A link becomes a file, and what it leads to stays as it is.
        let theirs = folder.path().join("theirs.conf");
        fs::write(&theirs, "data_directory = '/old'\n").unwrap();
        fs::remove_file(data.join(CONF)).unwrap();
        std::os::unix::fs::symlink(&theirs, data.join(CONF)).unwrap();
        keep_here(&data, Path::new("/new"), None).unwrap();
        assert_eq!(fs::read_to_string(&theirs).unwrap(), "data_directory = '/old'\n");
        let text = fs::read_to_string(data.join(CONF)).unwrap();
        assert!(text.starts_with("data_directory = '/old'\n") && text.contains("\ndata_directory = '/new'\n"), "{text}");
        assert!(!data.join(CONF).is_symlink());
    }
}
