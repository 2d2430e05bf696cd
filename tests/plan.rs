//! Plan files from the outside: what is refused, how it is said, and what the examples mean.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use lifeboat::error::{Error, Kind};
use lifeboat::plan::{
    self, Cache, DrillAt, EnvironmentValue, Missed, NotifierKind, Occasion, Plans, Scheme, SecretRef, Share, SourceKind, WebhookForm,
};

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
    insta::assert_snapshot!(errors(&text));
}

#[test]
fn all_errors_of_all_files_come_at_once() {
    let one = "version = 1\n[repository.main]\nurl = \"file:///var/backups/crm\"\npassphrase = \"hunter2\"\n[source.crm]\nkind = \"sqlit\"\npath = \"/srv/crm.sqlite\"\n";
    let two = "version = 1\n[plan.crm]\nsource = \"cmr\"\nrepository = \"main\"\nschedule = \"0 15 2 * * *\"\ntimezone = \"Asia/Shangai\"\nkeep = { daily = \"14\" }\n[source.crm]\nkind = \"files\"\n";
    let shown = load(&[("a.toml", one), ("b.toml", two)]).unwrap_err();
    assert!(!shown.contains("hunter2"), "a secret was shown");
    insta::assert_snapshot!(shown);
}

/// The keys of a plan, and what must be said about them.
#[test]
fn what_is_wrong_with_a_plan_is_said_at_its_place() {
    let good = "source = \"crm\"\nrepository = \"main\"\n";
    let table: &[(&str, &str, &str)] = &[
        ("schedule = \"15 2 * * *\"", "17:12: a schedule needs the plan's `timezone`", "timezone = "),
        ("drill = { schedule = \"15 2 * * *\" }", "17:22: a schedule needs the plan's `timezone`", ""),
        ("timezone = \"Berlin\"", "17:12: unknown time zone \"Berlin\"", "Europe/Berlin"),
        (
            "schedule = \"0 15 2 * * *\"\ntimezone = \"UTC\"",
            "17:12: not a valid schedule \"0 15 2 * * *\": it has 6 fields",
            "write five fields",
        ),
        ("schedule = \"0 0 31 2 *\"\ntimezone = \"UTC\"", "17:12: schedule \"0 0 31 2 *\" never runs", ""),
        ("sources = [\"crm\", \"attachments\"]", "17:11: plan `crm` has both `source` and `sources`", "keep `sources`"),
        ("jitter = \"10 minutes\"", "17:10: not a valid duration", "5m"),
        ("jitter = 10", "17:10: expected a text in quotes, found a whole number", ""),
        (
            "jitter = \"60m\"\nschedule = \"30 * * * *\"\ntimezone = \"UTC\"",
            "17:10: a jitter of 1h is not shorter than the 1h between two slots of schedule \"30 * * * *\"",
            "write less than 1h",
        ),
        (
            "jitter = \"2h\"\nschedule = \"0 3 * * *\"\ntimezone = \"UTC\"\nverify = { schedule = \"0 22,23 1 * *\" }",
            "17:10: a jitter of 2h is not shorter than the 1h between",
            "",
        ),
        ("missed = \"run_once\"", "17:10: unknown value \"run_once\"", "did you mean `run-once`?"),
        ("retry = { attempts = 0 }", "17:22: this must be from 1 to 100", ""),
        ("retry = { attempt = 3 }", "17:11: unknown key `attempt`", "did you mean `attempts`?"),
        ("objectives = { data_loss = \"0s\" }", "17:28: this must be more than nothing", ""),
        ("objectives = { rpo = \"5m\" }", "17:16: unknown key `rpo`", "keys here: `data_loss`, `recovery_time`"),
        ("keep = { daily = -1 }", "17:18: this must be from 0 to 1000000", ""),
        ("keep = { daily = 0 }", "17:8: `keep` without a rule would keep nothing", ""),
        ("keep = { daily = 99999999999 }", "17:18: this ", ""),
        ("keep = { tags = [\"a b\"] }", "17:18: not a valid tag", ""),
        ("prune = { schedul = \"0 3 * * *\" }", "17:11: unknown key `schedul`", "`schedule`"),
        ("keep = { within = \"30\" }", "17:19: not a valid duration: \"30\" has no unit", ""),
        ("tags = [\"a b\"]", "17:9: not a valid tag", ""),
        ("notify = [\"oncal\"]", "17:11: unknown notifier `oncal`", "did you mean `oncall`?"),
        ("drill = { compare = \"half\" }", "17:21: not a valid share", "\"all\""),
        ("drill = { at = \"newest\" }", "17:16: unknown value \"newest\"", "`latest`"),
        ("drill = { limits = { disk = \"200\" } }", "17:29: not a valid size: \"200\" has no unit", "200GiB"),
        ("verify = { data = \"200%\" }", "17:19: not a valid share", ""),
        ("drill.check = [{ name = \"n\", sql = \"select 1\" }]", "a check needs `expect`", ""),
        ("drill.check = [{ name = \"n\", sql = \"select 1\", expect = \"> many\" }]", "17:57: not a valid expectation", "between 1 and 5"),
        (
            "drill.check = [{ name = \"n\", sql = \"select 1\", expect = \"= 1\", database = \"x\" }]",
            "a sqlite source has one database",
            "",
        ),
        ("drill.check = [{ name = \"n\", sql = \" \", expect = \"= 1\", timeout = \"0s\" }]", "this text must not be empty", ""),
        (
            "drill.check = [{ name = \"n\", sql = \"s\", expect = \"= 1\", source = \"attachments\" }]",
            "source `attachments` is not one of this plan",
            "",
        ),
        (
            "drill.check = [{ name = \"n\", sql = \"s\", expect = \"= 1\", source = \"crn\" }]",
            "unknown source `crn`",
            "did you mean `crm`?",
        ),
        (
            "drill.check = [{ name = \"n\", sql = \"s\", expect = \"= 1\" }, { name = \"n\", sql = \"s\", expect = \"= 1\" }]",
            "two checks are called \"n\"",
            "",
        ),
        ("description = 2026-01-01", "17:15: expected a text in quotes, found a date or time", ""),
    ];
    for (keys, message, hint) in table {
        let shown = errors(&plan(&format!("{good}{keys}\n")));
        assert!(shown.starts_with("a.toml:17:") && shown.contains(message) && shown.contains(hint), "{keys}\n{shown}");
    }
}

#[test]
fn what_a_plan_lacks_or_refers_to_wrongly() {
    assert_eq!(messages(&plan("")), ["a.toml:14:7: plan `crm` needs `source` or `sources`", "a.toml:14:7: plan `crm` needs `repository`"]);
    assert_eq!(
        messages(&plan("source = \"cmr\"\nrepository = \"mian\"")),
        ["a.toml:15:10: unknown source `cmr`", "a.toml:16:14: unknown repository `mian`"]
    );
    // A misspelled required key is one error, not two.
    assert_eq!(messages(&plan("sorce = \"crm\"\nrepository = \"main\"")), ["a.toml:15:1: unknown key `sorce`"]);
    assert_eq!(messages(&plan("sources = []\nrepository = \"main\"")), ["a.toml:15:11: `sources` is empty"]);
    assert_eq!(messages(&plan("sources = [\"crm\", \"crm\"]\nrepository = \"main\"")), ["a.toml:15:19: source `crm` is named twice"]);
    let several = "sources = [\"crm\", \"attachments\"]\nrepository = \"main\"\n[[plan.crm.drill.check]]\nname = \"n\"\nsql = \"select 1\"\nexpect = \"= 1\"\n";
    assert_eq!(messages(&plan(several)), ["a.toml:17:1: a check needs `source` where the plan has several sources"]);
    assert_eq!(
        messages(&plan(&format!("{several}source = \"attachments\"\n"))),
        ["a.toml:21:10: source `attachments` is of kind files and cannot answer SQL"]
    );
    load(&[("a.toml", &plan(&format!("{several}source = \"crm\"\n")))]).unwrap();
}

#[test]
fn what_is_wrong_with_a_repository() {
    let table: &[(&str, &str)] = &[
        ("url = \"s3://b/p\"\npassphrase = \"hunter2\"", "4:14: a secret never stands in a plan file"),
        ("url = \"s3://b/p\"\npassphrase = [\"hunter2\"]", "4:14: a secret never stands in a plan file"),
        ("url = \"s3://b/p\"\npassphrase = {}", "4:14: this secret reference says nothing"),
        ("url = \"s3://b/p\"\npassphrase = { env = \"A\", file = \"b\" }", "4:14: a secret reference has exactly one"),
        ("url = \"s3://b/p\"\npassphrase = { env = \"$A\" }", "4:22: not a valid name of an environment variable"),
        ("url = \"s3://b/p\"\npassphrase = { credential = \"../x\" }", "4:29: not a valid credential name"),
        ("url = \"s3://b/p\"\npassphrase = { command = [] }", "4:26: a command needs a program"),
        ("url = \"s3://b/p\"\npassphrase = { file = \"~/x\" }", "4:23: `~` has no meaning"),
        ("url = \"s3://b/p\"\npassphrase = { literal = \"hunter2\" }", "4:16: unknown key `literal`"),
        ("url = \"s3://b/p\"", "2:13: repository `r` needs `passphrase`"),
        ("passphrase = { env = \"A\" }", "2:13: repository `r` needs `url`"),
        ("url = \"/var/backups\"\npassphrase = { env = \"A\" }", "3:7: not a valid repository URL"),
        ("url = \"s3://k:hunter2@b/p\"\npassphrase = { env = \"A\" }", "3:7: not a valid repository URL: it holds credentials"),
        (
            "url = \"s3://b\"\nendpoint = \"http://s3.example.com\"\npassphrase = { env = \"A\" }",
            "4:12: the endpoint is plain http to another machine",
        ),
        ("url = \"s3://b\"\nendpoint = \"s3.example.com\"\npassphrase = { env = \"A\" }", "4:12: not a valid endpoint"),
        (
            "url = \"file:///b\"\nendpoint = \"https://x\"\npassphrase = { env = \"A\" }",
            "4:12: a repository at file:// has no key `endpoint`",
        ),
        ("url = \"gs://b\"\nregion = \"x\"\npassphrase = { env = \"A\" }", "4:10: a repository at gs:// has no key `region`"),
        ("url = \"s3://b\"\naccess_key = { env = \"X\" }\npassphrase = { env = \"A\" }", "4:14: `access_key` without `secret_key`"),
        ("url = \"s3://b\"\nupload_limit = \"50Mbit\"\npassphrase = { env = \"A\" }", "4:16: not a valid rate"),
        ("url = \"s3://b\"\nmax_requests = 0\npassphrase = { env = \"A\" }", "4:16: this must be from 1 to 1024"),
        (
            "url = \"s3://b\"\ncache = 3\npassphrase = { env = \"A\" }",
            "4:9: expected true or false or a text in quotes, found a whole number",
        ),
    ];
    for (keys, message) in table {
        let shown = errors(&format!("version = 1\n[repository.r]\n{keys}\n"));
        assert!(shown.contains(&format!("a.toml:{message}")), "{keys}\n{shown}");
        assert!(!shown.contains("hunter2"), "a secret was shown:\n{shown}");
        assert_eq!(shown.matches("a.toml:").count(), 1, "one mistake is one error:\n{shown}");
    }
}

#[test]
fn what_is_wrong_with_a_source_or_a_notifier() {
    let table: &[(&str, &str)] = &[
        ("[source.s]\npath = \"x\"", "2:9: source `s` needs `kind`"),
        ("[source.s]\nkind = \"sqlite\"", "2:9: a source of kind sqlite needs `path`"),
        ("[source.s]\nkind = \"sqlite\"\npath = \"x\"\npage_size = 8192", "5:13: a source of kind sqlite has no key `page_size`"),
        ("[source.s]\nkind = \"files\"\npath = \"x\"\npage_size = 8000", "5:13: a page size is a power of two"),
        ("[source.s]\nkind = \"files\"\npath = \"x\"\nexclude = [\"/etc\"]", "5:12: not a valid pattern"),
        ("[source.s]\nkind = \"command\"\ndump = \"pg_dump crm\"", "4:8: expected a list, found a text"),
        (
            "[source.s]\nkind = \"command\"\ndump = [\"a\"]\nenvironment = { \"A=B\" = \"x\" }",
            "5:17: not a valid name of an environment variable",
        ),
        ("[source.s]\nkind = \"command\"\ndump = [\"a\"]\nenvironment = { A = { envv = \"x\" } }", "5:23: unknown key `envv`"),
        (
            "[source.s]\nkind = \"command\"\ndump = [\"a\"]\nenvironment = { PGPASSWORD = \"hunter2\" }",
            "5:30: by its name, `PGPASSWORD` is a secret",
        ),
        ("[source.s]\nkind = \"postgres\"\nurl = \"postgres://u:hunter2@h/d\"", "4:7: a secret never stands in a plan file"),
        ("[source.s]\nkind = \"mysql\"\nurl = { env = \"U\" }\nmethod = \"fast\"", "5:10: unknown value \"fast\""),
        (
            "[source.s]\nkind = \"mysql\"\nurl = { env = \"U\" }\nmethod = \"logical\"\ndata_directory = \"/d\"",
            "6:18: `data_directory` is only used",
        ),
        ("[source.s]\nkind = \"oracle\"", "3:8: unknown value \"oracle\""),
        ("[source.\"a b\"]\nkind = \"sqlite\"\npath = \"x\"", "2:9: not a valid name: \"a b\""),
        ("[notify.n]\nkind = \"webhook\"\nurl = \"https://hooks.example.com/hunter2\"", "4:7: a secret never stands in a plan file"),
        ("[notify.n]\nkind = \"webhook\"\nurl = { env = \"U\" }\non = [\"failed\"]", "5:7: unknown value \"failed\""),
        ("[notify.n]\nkind = \"webhook\"\nurl = { env = \"U\" }\non = []", "5:6: this notifier would never be told"),
        ("[notify.n]\nkind = \"email\"\nserver = \"smtps://m\"\nfrom = \"a@b\"", "2:9: a notifier of kind email needs `to`"),
        ("[notify.n]\nkind = \"email\"\nserver = \"m\"\nfrom = \"a@b\"\nto = [\"c@d\"]", "4:10: not a valid mail server"),
        ("[notify.n]\nkind = \"email\"\nserver = \"smtp://m\"\nfrom = \"a@b\"\nto = [\"c\"]", "6:7: not a valid e-mail address"),
        (
            "[notify.n]\nkind = \"email\"\nserver = \"smtp://m\"\nfrom = \"a@b\"\nto = [\"c@d\"]\nusername = \"u\"",
            "7:12: `username` without `password`",
        ),
        ("[notify.n]\nkind = \"command\"", "2:9: a notifier of kind command needs `run`"),
        ("[notify.n]\nkind = \"webhook\"\nurl = { env = \"U\" }\nformat = \"irc\"", "5:10: unknown value \"irc\""),
        (
            "[notify.n]\nkind = \"webhook\"\nurl = { env = \"U\" }\nformat = \"slack\"\nsecret = { env = \"S\" }",
            "6:10: only the formats dingtalk and feishu are signed",
        ),
        (
            "[notify.n]\nkind = \"webhook\"\nurl = { env = \"U\" }\nheaders = { Authorization = \"Bearer hunter2\" }",
            "5:29: the header `authorization` is a secret",
        ),
        ("[notify.n]\nkind = \"webhook\"\nurl = { env = \"U\" }\nheaders = { \"a b\" = \"x\" }", "5:13: not a valid name of a header"),
        ("[notify.n]\nkind = \"webhook\"\nurl = { env = \"U\" }\ntemplate = \"{{ title\"", "5:12: not a valid template"),
        ("[notify.n]\nkind = \"command\"\nrun = [\"a\"]\nescalate = \"n\"", "5:12: notifier `n` cannot stand in for itself"),
        ("[notify.n]\nkind = \"command\"\nrun = [\"a\"]\nescalate = \"m\"", "5:12: unknown notifier `m`"),
        (
            "[notify.n]\nkind = \"command\"\nrun = [\"a\"]\nescalate = \"h\"\n[notify.h]\nkind = \"heartbeat\"\nurl = { env = \"U\" }",
            "5:12: a heartbeat cannot say what is wrong",
        ),
        (
            "[notify.h]\nkind = \"heartbeat\"\nurl = { env = \"U\" }\njobs = [\"drill\"]\nevery = \"5m\"",
            "5:8: this heartbeat has both `jobs` and `every`",
        ),
        (
            "[notify.h]\nkind = \"heartbeat\"\nurl = { env = \"U\" }\nremind = \"1d\"",
            "5:10: a notifier of kind heartbeat has no key `remind`",
        ),
        ("[repositry.r]\nurl = \"x\"", "2:2: unknown key `repositry`"),
        ("plan = 3", "2:8: expected a table, found a whole number"),
    ];
    for (text, message) in table {
        let shown = errors(&format!("version = 1\n{text}\n"));
        assert!(shown.contains(&format!("a.toml:{message}")), "{text}\n{shown}");
        assert!(!shown.contains("hunter2"), "a secret was shown:\n{shown}");
        assert_eq!(shown.matches("a.toml:").count(), 1, "one mistake is one error:\n{shown}");
    }
}

#[test]
fn files_that_cannot_be_read_as_plans() {
    assert!(messages("")[0].starts_with("a.toml:1:1: `version` is missing"));
    assert_eq!(messages("version = 2\n"), ["a.toml:1:11: this must be 1"]);
    assert_eq!(messages("version = \"1\"\n"), ["a.toml:1:11: expected a whole number, found a text"]);
    assert!(messages("version = 1\n[plan.crm\n")[0].starts_with("a.toml:2:10: not valid TOML: "));
    assert!(messages("version = 1\nversion = 1\n")[0].starts_with("a.toml:2:1: not valid TOML: duplicate key"));
    assert!(!errors("version = 1\n[repository.r]\npassphrase = \"hunter2\n").contains("hunter2"));

    let folder = tempfile::tempdir().unwrap();
    let load = |path: &Path| Plans::load(&[path.to_owned()]).unwrap_err().to_string();
    assert!(load(&folder.path().join("none")).contains("there is no such plan file or folder"));
    assert!(load(folder.path()).contains("the plans folder has no *.toml file"));
    assert!(Plans::load(&[]).unwrap_err().to_string().contains("no plan file or folder was given"));
    let file = folder.path().join("a.toml");
    fs::write(&file, b"version = 1\n# caf\xe9\n").unwrap();
    assert!(load(&file).contains("a.toml:2:6: the plan file is not UTF-8 text"));
    fs::write(&file, "#".repeat(2 << 20)).unwrap();
    assert!(load(folder.path()).contains("longer than 1 MiB"));
}

#[test]
fn a_broken_file_does_not_make_the_references_to_it_wrong() {
    let shown = load(&[
        ("a.toml", "version = 1\n[repository.main\n"),
        ("b.toml", "version = 1\n[plan.crm]\nsource = \"crm\"\nrepository = \"main\"\n"),
    ])
    .unwrap_err();
    assert!(shown.starts_with("a.toml:2:17: not valid TOML") && !shown.contains("b.toml"), "{shown}");
}

#[test]
fn declarations_are_shared_across_files_and_other_files_are_left_alone() {
    let plans = load(&[
        ("shared.toml", BASE),
        ("plan.toml", "version = 1\n[plan.crm]\nsource = \"crm\"\nrepository = \"main\"\n"),
        (".#plan.toml", "an editor's lock file"),
        ("notes.txt", "not a plan"),
    ])
    .unwrap();
    assert_eq!(plans.files.len(), 2);
    assert_eq!(plans.plan("crm").unwrap().sources[0].name.as_str(), "crm");
    // The same file by two ways is read once.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.toml"), BASE).unwrap();
    assert_eq!(Plans::load(&[folder.path().to_owned(), folder.path().join("a.toml")]).unwrap().files.len(), 1);
}

#[test]
fn plan_errors_are_usage_errors_with_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.toml");
    fs::write(&file, "version = 1\nplans = 1\nsauce = 2\n").unwrap();
    let errors = Plans::load(std::slice::from_ref(&file)).unwrap_err();
    let json = errors.to_json();
    assert_eq!((&json["errors"][0]["line"], &json["errors"][0]["column"]), (&serde_json::json!(2), &serde_json::json!(1)));
    assert_eq!(json["errors"][0]["hint"], "did you mean `plan`?");
    let error = Error::from(errors);
    assert_eq!((error.kind(), error.kind().exit_code()), (Kind::Usage, 2));
    assert_eq!(error.to_string(), "2 errors in the plan files");
    assert!(error.causes()[0].contains(&format!("{}:2:1: unknown key `plans`", file.display())));
}

#[test]
fn what_is_left_out_has_its_documented_default() {
    let plans = load(&[("a.toml", &plan("source = \"crm\"\nrepository = \"main\"\n"))]).unwrap();
    let plan = plans.plan("crm").unwrap();
    assert!(plan.schedule.is_none() && plan.timezone.is_none() && plan.tags.is_empty() && plan.keep.is_everything());
    assert_eq!(
        (plan.jitter, plan.missed, plan.retry.attempts, plan.retry.delay),
        (Duration::ZERO, Missed::RunOnce, 3, Duration::from_mins(1))
    );
    assert_eq!((plan.drill.at, plan.drill.window, plan.drill.compare), (DrillAt::Latest, Duration::from_hours(30 * 24), Share::ALL));
    assert_eq!((plan.drill.keep_target_on_failure, plan.drill.time_limit, plan.drill.disk_limit_bytes), (Duration::ZERO, None, None));
    assert_eq!((plan.verify.data.percent(), plan.verify.schedule.is_none()), (10, true));
    assert_eq!(plan.notify[0].name.as_str(), "oncall");
    assert_eq!(plan.notify[0].on, Occasion::ALL[2..]);
    let notifier = &plan.notify[0];
    assert_eq!((notifier.timeout, notifier.remind), (Duration::from_secs(20), Some(Duration::from_hours(24))));
    assert_eq!((&notifier.escalate, notifier.escalate_after), (&None, Duration::from_mins(15)));
    let repository = &plan.repository;
    assert_eq!(
        (repository.max_requests.get(), &repository.cache, repository.path_style, repository.single_writer),
        (16, &Cache::Default, false, false)
    );
    assert_eq!(repository.passphrase, SecretRef::Env("LIFEBOAT_PASSPHRASE".to_owned()));
    let error = plans.plan("cmr").unwrap_err();
    assert_eq!((error.kind(), error.hint_text()), (Kind::Usage, Some("did you mean `crm`?")));
}

#[test]
fn object_lock_is_for_s3_and_for_a_sensible_time() {
    let with = |url: &str, lock: &str| {
        let text = format!(
            "version = 1\n[repository.r]\nurl = \"{url}\"\npassphrase = {{ env = \"P\" }}\nobject_lock = {lock}\n\
             [source.s]\nkind = \"command\"\ndump = [\"true\"]\n[plan.p]\nsource = \"s\"\nrepository = \"r\"\n"
        );
        load(&[("a.toml", &text)])
    };
    let plans = with("s3://b/p", r#"{ mode = "compliance", retain = "30d" }"#).unwrap();
    let lock = plans.repository("r").unwrap().object_lock.unwrap();
    let days = |days: u64| Duration::from_hours(days * 24);
    assert_eq!(lock, plan::ObjectLock { mode: plan::LockMode::Compliance, retain: days(30), snapshots: days(30), logs: days(30) });
    for (more, snapshots, logs) in [
        ("snapshots = \"20d\"", 20, 20),
        ("logs = \"10d\"", 30, 10),
        ("snapshots = \"20d\", logs = \"10d\"", 20, 10),
        ("snapshots = \"30d\", logs = \"30d\"", 30, 30),
    ] {
        let plans = with("s3://b/p", &format!("{{ mode = \"governance\", retain = \"30d\", {more} }}")).unwrap();
        let lock = plans.repository("r").unwrap().object_lock.unwrap();
        assert_eq!((lock.retain, lock.snapshots, lock.logs), (days(30), days(snapshots), days(logs)), "{more}");
        let shown = plan::show_text(plans.plan("p").unwrap());
        let again = load(&[("a.toml", &shown)]).unwrap_or_else(|errors| panic!("{shown}\n{errors}"));
        assert_eq!(again.repository("r").unwrap().object_lock, Some(lock), "{shown}");
    }
    for (url, lock, why) in [
        ("file:///r", r#"{ mode = "governance", retain = "30d" }"#, "has no key `object_lock`"),
        ("s3://b/p", r#"{ mode = "governance", retain = "23h" }"#, "too short for a lock"),
        ("s3://b/p", r#"{ mode = "governance", retain = "4000d" }"#, "too long for a lock"),
        ("s3://b/p", r#"{ mode = "governance" }"#, "needs `retain`"),
        ("s3://b/p", r#"{ retain = "30d" }"#, "needs `mode`"),
        ("s3://b/p", r#"{ mode = "legal", retain = "30d" }"#, "legal"),
        ("s3://b/p", r#"{ mode = "governance", retain = "30d", logs = "12h" }"#, "too short for a lock"),
        ("s3://b/p", r#"{ mode = "governance", retain = "30d", snapshots = "4000d" }"#, "too long for a lock"),
        ("s3://b/p", r#"{ mode = "governance", snapshots = "30d", logs = "7d" }"#, "needs `retain`"),
        // What leans on something cannot outlast it.
        (
            "s3://b/p",
            r#"{ mode = "governance", retain = "7d", snapshots = "30d" }"#,
            "`snapshots` of `object_lock` is longer than `retain`, which is 7d",
        ),
        (
            "s3://b/p",
            r#"{ mode = "governance", retain = "7d", logs = "30d" }"#,
            "`logs` of `object_lock` is longer than `retain`, which is 7d",
        ),
        (
            "s3://b/p",
            r#"{ mode = "governance", retain = "90d", snapshots = "7d", logs = "30d" }"#,
            "`logs` of `object_lock` is longer than `snapshots`, which is 7d",
        ),
        ("s3://b/p", r#"{ mode = "governance", retain = "30d", packs = "7d" }"#, "packs"),
        ("s3://b/p", r#"{ mode = "governance", retain = "30d", manifests = "7d" }"#, "manifests"),
    ] {
        let errors = with(url, lock).unwrap_err();
        assert!(errors.contains(why), "{lock}: {errors}");
    }
}

#[test]
fn relative_paths_are_meant_from_the_plan_files_folder() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.toml"), "version = 1\n[source.s]\nkind = \"sqlite\"\npath = \"data/crm.sqlite\"\n").unwrap();
    let plans = Plans::load(&[folder.path().to_owned()]).unwrap();
    let SourceKind::Sqlite { path } = &plans.sources.values().next().unwrap().kind else { panic!("not sqlite") };
    assert_eq!(*path, folder.path().join("data/crm.sqlite"));
}

fn example(name: &str) -> Plans {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("plans").join(name);
    Plans::load(&[path]).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn every_example_is_a_valid_plan() {
    let mut count = 0;
    for entry in fs::read_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("plans")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let plans = example(&name);
        assert!(!plans.plans.is_empty(), "{name} has no plan");
        for plan in plans.plans.values() {
            assert_eq!(plan.repository.passphrase, SecretRef::Env("LIFEBOAT_PASSPHRASE".to_owned()));
        }
        count += 1;
    }
    assert!(count >= 4);
}

#[test]
fn the_examples_mean_what_their_comments_say() {
    let plans = example("s3.toml");
    let repository = plans.repository("offsite").unwrap();
    assert_eq!((repository.url.scheme(), repository.url.bucket(), repository.url.path()), (Scheme::S3, Some("crm-dr"), "main"));
    assert_eq!((repository.upload_limit_bytes_per_sec, repository.max_requests.get(), repository.path_style), (Some(50 << 20), 8, true));
    assert_eq!(repository.credentials.as_ref().unwrap().secret_key, SecretRef::Credential("crm-dr-secret-key".to_owned()));
    let NotifierKind::Email { credentials, .. } = &plans.notifier("dba").unwrap().kind else { panic!("not an e-mail") };
    assert_eq!(credentials.as_ref().unwrap().0, "lifeboat");
    assert_eq!(plans.notifier("dead-man").unwrap().on, Occasion::ALL);

    // In a folder of its own: `./plans` as it is must not need a server for its journal.
    let plans = example("several-machines");
    assert_eq!(plans.journal.url, Some(SecretRef::Credential("journal-url".to_owned())));
    assert_eq!((plans.journal.lease, plans.serve.max_runs.get()), (Duration::from_mins(2), 4));
    assert_eq!(
        (plans.plan("billing").unwrap().run_on.as_slice(), plans.plan("handbook").unwrap().run_on.len()),
        (["billing-db".to_owned()].as_slice(), 0)
    );

    let plans = example("notify.toml");
    let form = |name: &str| match &plans.notifier(name).unwrap().kind {
        NotifierKind::Webhook { form, .. } => form.clone(),
        other => panic!("not a webhook: {other:?}"),
    };
    assert_eq!((form("slack"), form("wecom")), (WebhookForm::Slack, WebhookForm::WeCom));
    assert_eq!(form("dingtalk"), WebhookForm::DingTalk(Some(SecretRef::Env("DINGTALK_SECRET".to_owned()))));
    assert_eq!(form("feishu"), WebhookForm::Feishu(Some(SecretRef::Env("FEISHU_SECRET".to_owned()))));
    assert_eq!(plans.notifier("slack").unwrap().escalate.as_ref().map(lifeboat::id::Name::as_str), Some("mail"));
    let NotifierKind::Heartbeat { every, .. } = &plans.notifier("daemon-alive").unwrap().kind else { panic!("not a heartbeat") };
    assert_eq!(*every, Some(Duration::from_mins(5)));

    let plans = example("application-set.toml");
    let plan = plans.plan("crm-all").unwrap();
    let SourceKind::Command { environment, .. } = &plan.sources[2].kind else { panic!("not a command") };
    assert_eq!(environment["LANG"], EnvironmentValue::Plain("C.UTF-8".to_owned()));
    assert_eq!(plan.drill.checks[0].to_sql_check().expect.to_string(), "> 0");
    assert_eq!(plan.drill.disk_limit_bytes, Some(200 << 30));
}

fn noon() -> DateTime<Utc> {
    DateTime::parse_from_rfc3339("2026-03-26T12:00:00Z").unwrap().with_timezone(&Utc)
}

#[test]
fn show_and_explain_and_check() {
    let plans = example("application-set.toml");
    let plan = plans.plan("crm-all").unwrap();
    insta::assert_snapshot!("show", plan::show_text(plan));
    insta::assert_snapshot!("show_json", format!("{:#}", plan::show_json(plan)));
    insta::assert_snapshot!("explain", plan::explain_text(plan, noon()));
    insta::assert_snapshot!("explain_json", format!("{:#}", plan::explain_json(plan, noon())));
    let check = plan::check_text(&plans);
    assert_eq!(
        check,
        "1 plan file is valid\nplans         crm-all\nsources       attachments, crm, directory\nrepositories  local\nnotifiers     none\n"
    );
    assert_eq!(plan::check_json(&plans)["warnings"].as_array().unwrap().len(), 0);
    assert_eq!(plan::check_json(&plans)["plans"], serde_json::json!(["crm-all"]));
}

#[test]
fn copies_go_to_other_repositories_together() {
    let plan = |copies: &str| {
        let text = format!(
            "version = 1\n[repository.a]\nurl = \"file:///a\"\npassphrase = {{ env = \"A\" }}\n[repository.b]\nurl = \"file:///b\"\npassphrase = {{ env = \"A\" }}\n\
             [repository.c]\nurl = \"file:///c\"\npassphrase = {{ env = \"A\" }}\n[source.s]\nkind = \"sqlite\"\npath = \"/s\"\n\
             [plan.p]\nsource = \"s\"\nrepository = \"a\"\ntimezone = \"UTC\"\n{copies}"
        );
        load(&[("a.toml", &text)])
    };
    let copy = |to: &str, more: &str| format!("[[plan.p.copy]]\nto = \"{to}\"\n{more}\n");
    let good = plan(&(copy("b", "schedule = \"0 5 * * *\"\nlast = 7\nkeep = { daily = 3 }\ntags = [\"x\"]") + &copy("c", ""))).unwrap();
    let copies = &good.plan("p").unwrap().copies;
    assert_eq!((copies.len(), copies[0].last, copies[0].keep.daily, copies[0].tags.as_slice()), (2, Some(7), 3, &["x".to_owned()][..]));
    let wrong = |copies: &str, needle: &str| {
        let said = plan(copies).unwrap_err();
        assert!(said.contains(needle), "{said}");
    };
    wrong(&copy("a", ""), "the plan's own repository");
    wrong(&copy("nowhere", ""), "unknown repository");
    wrong(&(copy("b", "") + &copy("b", "")), "two copies go to repository");
    wrong("[[plan.p.copy]]\nlast = 1\n", "a copy needs `to`");
    wrong(&copy("b", "last = 0"), "from 1 to");
    let two = copy("b", "schedule = \"0 5 * * *\"") + &copy("c", "schedule = \"0 6 * * *\"");
    let schedule = plan(&two).unwrap().plan("p").unwrap().copy_schedule.clone().unwrap();
    let from = "2026-11-20T04:00:00Z".parse().unwrap();
    let next: Vec<String> = schedule.upcoming(from, 3).iter().map(|slot| slot.format("%d %H:%M").to_string()).collect();
    assert_eq!((schedule.text(), next.len()), ("0 5 * * * | 0 6 * * *", 3));
    assert_eq!(next[1][..2], next[0][..2], "one of each a day: {next:?}");
}

/// What `plan show` prints is a plan file that means the same.
#[test]
fn what_is_shown_can_be_loaded_again() {
    for name in [
        "sqlite-crm.toml",
        "application-set.toml",
        "s3.toml",
        "postgres.toml",
        "postgres-managed.toml",
        "postgres-archive.toml",
        "copies.toml",
    ] {
        for plan in example(name).plans.values() {
            let shown = plan::show_text(plan);
            let again = load(&[("a.toml", &shown)]).unwrap_or_else(|errors| panic!("{shown}\n{errors}"));
            assert_eq!(plan::show_text(again.plan(plan.name.as_str()).unwrap()), shown);
            assert_eq!(plan::show_json(again.plan(plan.name.as_str()).unwrap()), plan::show_json(plan));
        }
    }
}

/// Regenerate with `LIFEBOAT_UPDATE_GOLDEN=1 cargo test --test plan`.
#[test]
fn the_published_schema_is_the_one_we_check_by() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/reference/plan.schema.json");
    if std::env::var_os("LIFEBOAT_UPDATE_GOLDEN").is_some() {
        fs::write(&path, plan::schema_text()).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), plan::schema_text(), "docs/reference/plan.schema.json is out of date");
}

/// Every key of the schema has its row in the reference.
#[test]
fn the_reference_knows_every_key() {
    let reference = fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/reference/plan-file.md")).unwrap();
    let schema = plan::schema();
    let tables = std::iter::once(&schema).chain(schema["$defs"].as_object().unwrap().values());
    for key in tables.flat_map(|table| table["properties"].as_object().unwrap().keys()) {
        assert!(
            reference.contains(&format!("`{key}`")) || reference.contains(&format!("`{key} = ")),
            "docs/reference/plan-file.md does not know `{key}`"
        );
    }
}

/// Whatever a file holds, loading it ends with plans or with errors that have a place.
#[test]
fn damaged_examples_never_make_the_loader_panic() {
    let text = fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("plans/application-set.toml")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.toml");
    for at in (0..text.len()).step_by(7).filter(|at| text.is_char_boundary(*at)) {
        for damaged in [text[..at].to_owned(), format!("{}\"{}", &text[..at], &text[at..]), format!("{}x{}", &text[..at], &text[at..])] {
            fs::write(&file, damaged).unwrap();
            if let Err(errors) = Plans::load(std::slice::from_ref(&file)) {
                assert!(errors.to_string().contains("a.toml:"), "{errors}");
            }
        }
    }
}

#[test]
fn escape_sequences_of_a_file_do_not_reach_the_terminal() {
    let shown = errors("version = 1\n\"\\u001b[31mred\" = 1\n# \u{1f600}\n");
    assert!(shown.contains("unknown key") && !shown.contains('\u{1b}'), "{shown:?}");
}

/// Three plans of one source; `%` is put into each by name.
fn ordered(a: &str, b: &str, c: &str) -> String {
    let head =
        "version = 1\n[repository.main]\nurl = \"file:///r\"\npassphrase = { env = \"P\" }\n[source.s]\nkind = \"files\"\npath = \"/s\"\n";
    let plan = |name: &str, more: &str| format!("[plan.{name}]\nsource = \"s\"\nrepository = \"main\"\ntimezone = \"UTC\"\n{more}\n");
    format!("{head}{}{}{}", plan("a", a), plan("b", b), plan("c", c))
}

#[test]
fn plans_that_would_wait_for_themselves_are_errors() {
    load(&[("a.toml", &ordered("after = [\"b\", \"c\"]", "after = [\"c\"]", ""))]).unwrap();
    let circle = messages(&ordered("after = [\"b\"]", "after = [\"c\"]", "after = [\"a\"]"));
    assert!(circle.len() == 3 && circle[0].contains("plan `a` would have to wait for itself: a after b after c after a"), "{circle:?}");
    let itself = messages(&ordered("after = [\"a\"]", "", ""));
    assert!(itself.len() == 1 && itself[0].contains("a after a"), "{itself:?}");
    let unknown = errors(&ordered("after = [\"bb\"]", "", ""));
    assert!(unknown.contains("unknown plan `bb`") && unknown.contains("did you mean `b`"), "{unknown}");
}

#[test]
fn blackouts_are_checked_and_explained() {
    let text = ordered("schedule = \"0 9 * * *\"\nblackout = [\"mon-fri 08:00-18:00\"]\nblackout_jobs = [\"backup\"]", "", "");
    let plans = load(&[("a.toml", &text)]).unwrap();
    let explained = plan::explain_text(plans.plan("a").unwrap(), "2026-11-20T00:00:00Z".parse().unwrap());
    assert!(explained.contains("held back until") && explained.contains("blackout: mon-fri 08:00-18:00 in UTC"), "{explained}");
    let json = plan::explain_json(plans.plan("a").unwrap(), "2026-11-20T00:00:00Z".parse().unwrap());
    assert_eq!(json["jobs"][0]["next"][0]["held_until"], "2026-11-20T18:00:00Z");
    assert_eq!(json["jobs"][0]["next"][1]["held_until"], serde_json::Value::Null, "a Saturday");
    for (keys, expected) in [
        ("blackout = [\"8-18\"]", "not a valid window"),
        ("blackout = [\"mon-sun\"]", "covers the whole week"),
        ("blackout_jobs = [\"drill\"]", "`blackout_jobs` without `blackout`"),
        ("blackout = [\"sat\"]\nblackout_jobs = [\"drills\"]", "unknown job `drills`"),
    ] {
        let found = messages(&ordered(keys, "", ""));
        assert!(found.len() == 1 && found[0].contains(expected), "{keys}: {found:?}");
    }
}

#[test]
fn the_daemons_settings_are_there_once() {
    let serve = "version = 1\n[serve]\nmax_runs = 2\n";
    let plans = load(&[("a.toml", &ordered("", "", "")), ("b.toml", serve)]).unwrap();
    assert_eq!((plans.serve.max_runs.get(), plans.serve.drain.as_secs()), (2, 20));
    let twice = load(&[("a.toml", &ordered("", "", "")), ("b.toml", serve), ("c.toml", serve)]).unwrap_err();
    assert!(twice.contains("`[serve]` is there twice") && twice.contains("b.toml:2"), "{twice}");
    assert!(errors(&format!("{}[serve]\nmax_runs = 0\n", ordered("", "", ""))).contains("from 1 to 1000"));
}

#[test]
fn the_journal_and_the_labels_of_nodes_are_checked() {
    let journal = "version = 1\n[journal]\nurl = { env = \"JOURNAL\" }\nlease = \"30s\"\n";
    let plan = |keys: &str| plan(&format!("source = \"crm\"\nrepository = \"main\"\n{keys}"));
    let labelled = plan("run_on = [\"db-host\", \"ssd\"]\n");
    let plans = load(&[("a.toml", &labelled), ("b.toml", journal)]).unwrap();
    assert_eq!((plans.journal.url.is_some(), plans.journal.lease.as_secs(), plans.journal.history.as_secs()), (true, 30, 400 * 86400));
    assert_eq!(plans.plans.values().next().unwrap().run_on, ["db-host", "ssd"]);
    let plain = load(&[("a.toml", &plan(""))]).unwrap();
    assert_eq!((plain.journal.url.is_some(), plain.journal.lease.as_secs()), (false, 120));
    assert!(plain.plans.values().all(|plan| plan.run_on.is_empty()));
    let twice = load(&[("a.toml", &plan("")), ("b.toml", journal), ("c.toml", journal)]).unwrap_err();
    assert!(twice.contains("`[journal]` is there twice") && twice.contains("b.toml:2"), "{twice}");
    for (keys, says) in [
        ("lease = \"1s\"", "a lease is from 5s to 1h"),
        ("lease = \"2h\"", "a lease is from 5s to 1h"),
        ("history = \"1h\"", "history is kept for 1d at least"),
        ("leese = \"1m\"", "lease"),
    ] {
        let found = errors(&format!("{}[journal]\n{keys}\n", plan("")));
        assert!(found.contains(says), "{keys}: {found}");
    }
    assert!(errors(&plan("run_on = []\n")).contains("`run_on` names no label"));
    assert!(errors(&plan("run_on = [\"a b\"]\n")).contains("run_on"));
}

/// What is valid and cannot be kept is a warning of `plan check`.
#[test]
fn schedules_that_break_what_the_plan_promises_are_warned_of() {
    let warnings = |keys: &str| {
        let text = plan(&format!("source = \"crm\"\nrepository = \"main\"\ntimezone = \"Asia/Shanghai\"\n{keys}"));
        let plans = load(&[("a.toml", &text)]).unwrap();
        let checked = plan::check_json(&plans);
        checked["warnings"].as_array().unwrap().iter().map(|warning| warning.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let told = |keys: &str, what: &str| {
        let found = warnings(keys);
        assert!(matches!(found.as_slice(), [one] if one.starts_with("plan crm: ") && one.contains(what)), "{keys}: {found:?}");
    };
    told("schedule = \"15 2 * * *\"\nobjectives = { data_loss = \"24h\" }", "start up to 1d apart, each takes some time as well");
    told("schedule = \"0 * * * *\"\njitter = \"30m\"\nobjectives = { data_loss = \"90m\" }", "start up to 1h30m apart");
    told(
        "schedule = \"0 * * * *\"\nblackout = [\"08:00-18:00\"]\nobjectives = { data_loss = \"2h\" }",
        "start up to 11h apart, blackout included",
    );
    told("schedule = \"0 3 29 2 sun\"\nobjectives = { data_loss = \"7d\" }", "apart");
    told("schedule = \"0 3 * * *\"\nblackout = [\"00:00-06:00\"]", "every slot of the backup schedule \"0 3 * * *\" falls in the blackout");
    told("drill = { schedule = \"0 3 * * sun\" }\nblackout = [\"sun\"]\nblackout_jobs = [\"drill\"]", "every slot of the drill schedule");
    for quiet in [
        "schedule = \"15 2 * * *\"\nobjectives = { data_loss = \"26h\" }",
        "objectives = { data_loss = \"1h\" }",
        "schedule = \"0 * * * *\"\nblackout = [\"08:00-18:00\"]\nblackout_jobs = [\"drill\"]\nobjectives = { data_loss = \"2h\" }",
        "schedule = \"0 3 * * *\"\njitter = \"59m\"\ndrill = { schedule = \"0 4 * * sun\" }\nblackout = [\"08:00-18:00\"]",
    ] {
        assert_eq!(warnings(quiet), Vec::<String>::new(), "{quiet}");
    }
    // Dates of Object Lock are moved on by what writes, and by nothing else.
    let locked = |retain: &str, more: &str| {
        let place = "[repository.vault]\nurl = \"s3://bucket/vault\"\npassphrase = { env = \"P\" }\n";
        let lock = format!("object_lock = {{ mode = \"governance\", {retain} }}\n");
        let head = format!("{BASE}{place}{lock}[plan.crm]\nsource = \"crm\"\ntimezone = \"UTC\"\n");
        let checked = plan::check_json(&load(&[("a.toml", &format!("{head}{more}\n"))]).unwrap());
        checked["warnings"].as_array().unwrap().iter().map(|warning| warning.as_str().unwrap().to_owned()).collect::<Vec<_>>().join("\n")
    };
    let vault = "repository = \"vault\"\n";
    let copied = "repository = \"main\"\nschedule = \"0 2 * * *\"\n[[plan.crm.copy]]\nto = \"vault\"\n";
    for (retain, more, what) in [
        ("retain = \"7d\"", format!("{vault}schedule = \"0 2 1 * *\""), "its backups, copies and prunes start up to 31d apart"),
        ("retain = \"7d\"", format!("{vault}schedule = \"0 2 * * sun\"\njitter = \"1h\""), "start up to 7d1h apart"),
        ("retain = \"30d\"", vault.to_owned(), "no backup, copy or prune of it has a schedule"),
        ("retain = \"30d\"", "repository = \"main\"\nschedule = \"0 2 * * *\"".to_owned(), "no plan backs up, copies to or prunes it"),
        ("retain = \"30d\"", copied.to_owned(), "no backup, copy or prune of it has a schedule"),
        ("retain = \"7d\"", format!("{copied}schedule = \"0 3 1,15 * *\""), "start up to 17d apart"),
        // The class whose dates are the nearest says how often.
        (
            "retain = \"60d\", logs = \"7d\"",
            format!("{vault}schedule = \"0 2 1 * *\""),
            "start up to 31d apart, and `object_lock` asks for logs = 7d",
        ),
        ("retain = \"60d\", snapshots = \"7d\"", format!("{vault}schedule = \"0 2 1 * *\""), "`object_lock` asks for snapshots = 7d"),
    ] {
        let found = locked(retain, &more);
        let is_told =
            found.starts_with("repository vault: ") && found.contains(what) && found.contains("only they move the dates of locks on");
        assert!(is_told, "{more}: {found}");
    }
    for (retain, more) in [
        ("retain = \"7d\"", format!("{vault}schedule = \"0 2 * * sun\"")),
        ("retain = \"31d\"", format!("{vault}schedule = \"0 2 1 * *\"")),
        ("retain = \"90d\", snapshots = \"60d\", logs = \"31d\"", format!("{vault}schedule = \"0 2 1 * *\"")),
        ("retain = \"20d\"", format!("{vault}schedule = \"0 2 1 * *\"\n[plan.crm.prune]\nschedule = \"0 2 15 * *\"")),
        ("retain = \"7d\"", format!("{copied}schedule = \"0 3 * * sat\"")),
        ("retain = \"7d\"", format!("{copied}keep = {{ last = 3 }}\n[plan.crm.prune]\nschedule = \"0 3 * * sat\"")),
    ] {
        assert_eq!(locked(retain, &more), "", "{retain} {more}");
    }
    // A log fills the time between two backups.
    let log = format!(
        "{BASE}[source.db]\nkind = \"postgres\"\nurl = {{ env = \"DB\" }}\nlog = \"stream\"\n[plan.db]\nsource = \"db\"\nrepository = \"main\"\ntimezone = \"UTC\"\n\
         schedule = \"0 3 * * *\"\nobjectives = {{ data_loss = \"5m\" }}\n"
    );
    assert_eq!(plan::check_json(&load(&[("a.toml", &log)]).unwrap())["warnings"].as_array().unwrap().len(), 0);
}
