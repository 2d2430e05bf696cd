//! Plan files from the outside: what is refused, how it is said, and what the examples mean.

use std::fs;
use std::path::{Path, PathBuf};

use lifeboat::error::{Error, Kind};
use lifeboat::plan::{PlanErrors, Plans};

/// Writes the files into a folder and loads it; the folder's name is cut from what is shown.
fn load(files: &[(&str, &str)]) -> Result<Plans, String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    Plans::load(&[folder.path().to_owned()]).map_err(|errors| errors.to_string().replace(&format!("{}/", folder.path().display()), ""))
}

fn errors(text: &str) -> String {
    load(&[("a.toml", text)]).expect_err("the plan was accepted")
}

/// Only the first lines: `file:line:col: message`.
fn messages(text: &str) -> Vec<String> {
    errors(text).split("\n\n").map(|finding| finding.lines().next().unwrap().to_owned()).collect()
}

const BASE: &str = r#"version = 1
[repository.main]
url = "file:///var/backups/crm"
passphrase = { env = "LIFEBOAT_PASSPHRASE" }
[source.crm]
kind = "sqlite"
path = "/srv/crm.sqlite"
[source.attachments]
kind = "files"
path = "/srv/attachments"
[notify.oncall]
kind = "webhook"
url = { env = "ONCALL_URL" }
"#;

fn plan(keys: &str) -> String {
    format!("{BASE}[plan.crm]\n{keys}")
}

#[test]
fn the_base_of_these_tests_is_valid() {
    load(&[("a.toml", &plan("source = \"crm\"\nrepository = \"main\"\n"))]).unwrap();
}

#[test]
fn an_unknown_key_is_shown_with_its_line_and_the_nearest_key() {
    let text = plan("source = \"crm\"\nrepository = \"main\"\nshedule = \"15 2 * * *\"\n");
    insta::assert_snapshot!(errors(&text), @r#""#);
}

#[test]
fn all_errors_of_all_files_come_at_once() {
    let one = "version = 1\n[repository.main]\nurl = \"file:///var/backups/crm\"\npassphrase = \"hunter2\"\n[source.crm]\nkind = \"sqlit\"\npath = \"/srv/crm.sqlite\"\n";
    let two = "version = 1\n[plan.crm]\nsource = \"cmr\"\nrepository = \"main\"\nschedule = \"0 15 2 * * *\"\ntimezone = \"Asia/Shangai\"\nkeep = { daily = \"14\" }\n[source.crm]\nkind = \"files\"\n";
    let shown = load(&[("a.toml", one), ("b.toml", two)]).unwrap_err();
    assert!(!shown.contains("hunter2"), "a secret was shown");
    insta::assert_snapshot!(shown, @r#""#);
}
