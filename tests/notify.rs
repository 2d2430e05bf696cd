//! Who is told, by the real program: targets that work, that hang, that fail and come back, that show a wrong certificate; a daemon that is
//! killed between what it saw and what it told; a thousand events at once. What is to be told when is tested as a library (`daemon::notify`).

#![expect(clippy::unwrap_used, reason = "a test fails by it; clippy knows only functions marked as tests")]

mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::fs::File;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use chrono::Utc;
use lifeboat::daemon::alarms::{self, Alarm};
use lifeboat::daemon::journal::{Ending, Job, Journal, NewRun, State};
use lifeboat::id::Name;
use serde_json::{Value, json};
use support::certificates::Authority;
use support::mail::{self, MailServer};
use support::target::{Answer, Request, Target};
use workspace::{MARKER, PASSPHRASE, Workspace, files, text};

/// Far beyond what anything here takes; a test that waits so long has failed.
const BOUND: Duration = Duration::from_mins(2);
/// Stands in addresses and headers: must never be seen in what the program writes.
const TOKEN: &str = "planted-token-5b1d0c";

/// A daemon that is killed when the test ends, however it ends.
struct Daemon(Child);

impl Daemon {
    fn start(workspace: &Workspace, variables: &[(&str, &str)]) -> Self {
        let log = File::options().create(true).append(true).open(workspace.path("serve.log")).unwrap();
        let mut command = workspace.command(&["serve", "--log-format", "json"]);
        command.envs(variables.iter().copied()).stdout(Stdio::null()).stderr(log);
        Self(command.spawn().unwrap())
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(began.elapsed() < BOUND, "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

fn log(workspace: &Workspace) -> String {
    std::fs::read_to_string(workspace.path("serve.log")).unwrap_or_default()
}

/// Neither the state folder nor the log nor these texts hold a secret.
fn no_secret(workspace: &Workspace, texts: &[String]) {
    let state = Some(workspace.path("state")).filter(|state| state.exists());
    let all = state.iter().flat_map(|state| files(state)).chain([workspace.path("serve.log")]).filter(|path| path.exists());
    let read = all.map(|path| (path.display().to_string(), std::fs::read(&path).unwrap()));
    let given = texts.iter().enumerate().map(|(i, text)| (format!("text {i}"), text.clone().into_bytes()));
    for (name, bytes) in read.chain(given) {
        for secret in [PASSPHRASE, MARKER, TOKEN, mail::PASSWORD] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret} is in {name}");
        }
    }
}

/// Everything that targets were told.
fn bodies(targets: &[&Target]) -> String {
    targets.iter().flat_map(|target| target.got()).map(|request| request.body).collect::<Vec<_>>().join("\n")
}

fn events(request: &Request) -> Vec<(String, String)> {
    let words = |event: &Value| (event["occasion"].as_str().unwrap().to_owned(), event["change"].as_str().unwrap().to_owned());
    request.json()["events"].as_array().unwrap().iter().map(words).collect()
}

/// All events that a target of the generic form got, in order.
fn all_events(target: &Target) -> Vec<(String, String)> {
    target.got().iter().flat_map(events).collect()
}

fn has(target: &Target, occasion: &str, change: &str) -> bool {
    all_events(target).contains(&(occasion.to_owned(), change.to_owned()))
}

fn webhook(name: &str, more: &str) -> String {
    format!("\n[notify.{name}]\nkind = \"webhook\"\nurl = {{ env = \"{}\" }}\n{more}\n", name.to_uppercase())
}

fn address(target: &Target) -> String {
    format!("http://127.0.0.1:{}/hooks/{TOKEN}?key={TOKEN}", target.port)
}

/// The source is not there, so that a backup fails.
fn break_source(workspace: &Workspace) {
    std::fs::rename(workspace.path("crm/crm.sqlite"), workspace.path("crm/away")).unwrap();
}

fn mend_source(workspace: &Workspace) {
    std::fs::rename(workspace.path("crm/away"), workspace.path("crm/crm.sqlite")).unwrap();
}

#[test]
fn a_failed_backup_by_hand_is_told_once_and_so_is_its_end_while_another_target_hangs() {
    let (ops, slow, beat) = (Target::start(), Target::start(), Target::start());
    slow.answers(&vec![Answer::Never; 50]);
    let heartbeat = "\n[notify.beat]\nkind = \"heartbeat\"\nurl = { env = \"BEAT\" }\n";
    let signed = "timeout = \"2s\"\nformat = \"slack\"\nheaders = { Authorization = { env = \"HEADER\" } }";
    let workspace = Workspace::ready(&format!(
        "{}{}{heartbeat}",
        webhook("ops", "headers = { X-Token = { env = \"HEADER\" } }"),
        webhook("slow", signed)
    ));
    let beat_url = format!("http://127.0.0.1:{}/ping/{TOKEN}/{{plan}}", beat.port);
    let variables = [("OPS", address(&ops)), ("SLOW", address(&slow)), ("BEAT", beat_url), ("HEADER", TOKEN.to_owned())];
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let daemon = Daemon::start(&workspace, &variables);
    until("the daemon serves", || log(&workspace).contains("\"serving\"").then_some(()));

    break_source(&workspace);
    workspace.json(&["backup", "crm"], 1);
    until("the failure is told", || has(&ops, "failure", "raised").then_some(()));
    let first = &ops.got()[0];
    assert!(first.headers.contains(&format!("x-token: {TOKEN}")), "{first:?}");
    assert_eq!(first.json()["schema"], "lifeboat.notice/1");
    let told = first.json()["events"].as_array().unwrap().iter().find(|event| event["occasion"] == "failure").cloned().unwrap();
    assert_eq!((told["plan"].as_str(), told["job"].as_str()), (Some("crm"), Some("backup")), "{told}");
    assert!(told["message"].as_str().unwrap().contains("crm.sqlite"), "{told}");

    mend_source(&workspace);
    workspace.backup();
    until("the end is told", || has(&ops, "recovered", "over").then_some(()));
    let failures = all_events(&ops).into_iter().filter(|event| event.0 == "failure").count();
    assert_eq!(failures, 1, "{:?}", all_events(&ops));
    let pings = until("both runs are pinged", || {
        Some(beat.got()).filter(|got| got.iter().any(|ping| !ping.path.contains("fail") && !ping.path.contains("start")))
    });
    assert!(pings.iter().any(|ping| ping.path.starts_with(&format!("/ping/{TOKEN}/crm/fail?rid="))), "{pings:?}");
    let success = pings.last().unwrap();
    assert!(success.path.starts_with(&format!("/ping/{TOKEN}/crm?rid=")) && success.body.contains("the backup succeeded"), "{success:?}");

    // The one that hangs has held up nobody, is told of through the others in time, and status says it.
    let status = until("the target that hangs is known", || {
        Some(workspace.json(&["status"], 0))
            .filter(|status| status["notifiers"].as_array().unwrap().iter().any(|one| one["failures"].as_u64() >= Some(2)))
    });
    let failing = status["problems"].as_array().unwrap().iter().find(|problem| problem["kind"] == "notifier-failing").cloned().unwrap();
    assert!(failing["message"].as_str().unwrap().contains("notifier slow has reached nobody"), "{failing}");
    assert!(failing["message"].as_str().unwrap().contains("no answer within 2 s"), "{failing}");
    assert_eq!(workspace.run(&["status", "--check"]).status.code().map(|code| code != 0), Some(true));
    drop(daemon);
    let shown = workspace.run(&["status"]);
    no_secret(&workspace, &[text(&shown.stdout), text(&shown.stderr), status.to_string(), bodies(&[&ops, &slow, &beat])]);
}

#[test]
fn what_was_seen_before_a_crash_is_told_after_it_and_a_target_that_comes_back_gets_all() {
    let ops = Target::start();
    ops.answers(&vec![Answer::Status(500, "planted-token-5b1d0c is busy"); 1]);
    let dead = Target::start();
    let unreachable = format!("http://127.0.0.1:{}/x", dead.port);
    let workspace = Workspace::ready(&webhook("ops", "on = [\"failure\", \"success\", \"plans-broken\"]"));
    // Nobody is there: the event is seen and cannot be brought.
    dead.answers(&vec![Answer::Never; 20]);
    let daemon = Daemon::start(&workspace, &[("OPS", &unreachable)]);
    until("the daemon serves", || log(&workspace).contains("\"serving\"").then_some(()));
    break_source(&workspace);
    workspace.json(&["backup", "crm"], 1);
    mend_source(&workspace);
    until("the event is in the outbox", || {
        let status = workspace.json(&["status"], 0);
        (status["notifiers"][0]["waiting"].as_u64() >= Some(1)).then_some(())
    });
    daemon.kill();
    // While no daemon is there: known by the journal when there is one again.
    workspace.backup();
    let _daemon = Daemon::start(&workspace, &[("OPS", &address(&ops))]);
    // The first is answered with 500, and both may be in one notice.
    until("both are told", || (has(&ops, "failure", "raised") && has(&ops, "success", "happened") && ops.got().len() >= 2).then_some(()));
    assert_eq!(ops.got()[0].json()["id"], ops.got()[1].json()["id"], "the same notice again");
    let said = log(&workspace);
    assert!(said.contains("answered HTTP 500: *** is busy"), "{said}");
    let status =
        until("it is well again", || Some(workspace.json(&["status"], 0)).filter(|status| status["notifiers"][0]["failures"] == 0));
    assert!(status["notifiers"][0]["last_delivered"].is_string(), "{status}");
    // Once, but for the same notice again.
    let of_success = |request: &Request| events(request).iter().any(|event| event.0 == "success");
    let notices: std::collections::BTreeSet<String> =
        ops.got().iter().filter(|request| of_success(request)).map(|request| request.json()["id"].to_string()).collect();
    assert_eq!(notices.len(), 1, "{:?}", all_events(&ops));
    no_secret(&workspace, &[status.to_string(), bodies(&[&ops, &dead])]);
}

#[test]
fn a_thousand_events_at_once_are_few_messages_and_alarms_of_other_processes_are_told() {
    let ops = Target::start();
    let workspace = Workspace::ready(&webhook("ops", "on = [\"success\", \"plans-broken\", \"recovered\"]"));
    let state = workspace.path("state");
    let url = address(&ops);
    let daemon = Daemon::start(&workspace, &[("OPS", &url)]);
    until("the daemon serves", || log(&workspace).contains("\"serving\"").then_some(()));
    daemon.kill();
    // A thousand runs that another process made meanwhile, and what it found.
    let journal = Journal::open(&state, Utc::now()).unwrap();
    for _ in 0..1000 {
        let run = NewRun::manual(&Name::new("crm").unwrap(), Job::Restore, "tester", Utc::now());
        let claim = journal.begin(&run, Utc::now()).unwrap();
        journal.close(claim, &Ending::new(State::Succeeded), Utc::now()).unwrap();
    }
    let alarm = Alarm { kind: "plans-broken".into(), plan: None, message: "crm.toml:3: unknown key".into(), since: Utc::now() };
    alarms::raise(&state, "plan-files", &alarm).unwrap();
    let _daemon = Daemon::start(&workspace, &[("OPS", &url)]);
    let told = |ops: &Target| ops.got().iter().map(|request| request.json()["count"].as_u64().unwrap()).sum::<u64>();
    until("all is told", || (told(&ops) >= 1001).then_some(()));
    let got = ops.got();
    assert!(got.len() <= 3, "{} messages", got.len());
    let largest = got.iter().max_by_key(|request| request.json()["count"].as_u64()).unwrap().json();
    assert_eq!(largest["events"].as_array().unwrap().len(), 50);
    assert!(largest["text"].as_str().unwrap().contains("more; `lifeboat status` shows"), "{largest}");
    assert!(got.iter().any(|request| request.body.contains("crm.toml:3: unknown key")), "the worst is listed first");
    let status = workspace.json(&["status"], 0);
    assert_eq!(status["problems"][0]["kind"], "plans-broken", "{status}");
    alarms::clear(&state, "plan-files").unwrap();
    until("its end is told", || has(&ops, "recovered", "over").then_some(()));
}

#[test]
fn mail_goes_over_tls_only_to_whom_it_should_and_nobody_reads_the_password() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new(folder.path(), "ours"), Authority::new(folder.path(), "other"));
    let key = ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    ours.issue("mail", "mail", "DNS:localhost", &key);
    other.issue("wrong", "wrong", "DNS:localhost", &key);
    let implicit = MailServer::start("smtps", &ours.path("mail.crt"), &ours.path("mail.key"));
    let starttls = MailServer::start("smtp", &ours.path("mail.crt"), &ours.path("mail.key"));
    let wrong = MailServer::start("smtps", &other.path("wrong.crt"), &other.path("wrong.key"));
    let mail = |name: &str, scheme: &str, port: u16, more: &str| {
        format!(
            "\n[notify.{name}]\nkind = \"email\"\nserver = \"{scheme}://localhost:{port}\"\nfrom = \"lifeboat@example.com\"\n\
             to = [\"dba@example.com\", \"运维@example.com\"]\nca_file = \"{}\"\n{more}",
            ours.path("ours.crt")
        )
    };
    let account = format!("username = \"{}\"\npassword = {{ env = \"MAIL\" }}\n", mail::USER);
    let plan = [
        mail("implicit", "smtps", implicit.port, &account).replace("运维", "ops"),
        mail("starttls", "smtp", starttls.port, &account).replace("运维", "ops"),
        mail("stranger", "smtps", wrong.port, &account).replace("运维", "ops"),
        mail("nobody", "smtps", implicit.port, "").replace("运维", "ops"),
        mail("unready", "smtp", implicit.port, "timeout = \"3s\"\n").replace("运维", "ops"),
    ]
    .concat();
    let workspace = Workspace::new(&plan);
    let test = |name: &str, password: &str| -> (Option<i32>, Value) {
        let output = workspace.command(&["notify", "test", name, "--json"]).env("MAIL", password).output().unwrap();
        assert!(!text(&output.stderr).contains(password) && !text(&output.stdout).contains(password), "{}", text(&output.stderr));
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
    };
    for (name, server) in [("implicit", &implicit), ("starttls", &starttls)] {
        let (code, report) = test(name, mail::PASSWORD);
        assert_eq!((code, report["schema"].as_str()), (Some(0), Some("lifeboat.notify-test/1")), "{report}");
        assert!(report["answer"].as_str().unwrap().contains("250"), "{report}");
        let mails = server.mails();
        assert_eq!(mails.len(), 1);
        assert_eq!((&mails[0]["tls"], &mails[0]["user"]), (&json!(true), &json!(mail::USER)));
        assert_eq!(mails[0]["to"], json!(["dba@example.com", "ops@example.com"]));
        assert!(mails[0]["text"].as_str().unwrap().contains("Auto-Submitted: auto-generated"), "{}", mails[0]);
    }
    let (code, report) = test("stranger", mail::PASSWORD);
    let why = report["error"]["causes"].to_string();
    assert!(code == Some(1) && why.contains("certificate"), "{report}");
    assert_eq!(wrong.mails().len(), 0);
    let (code, report) = test("implicit", "a-wrong-password");
    assert!(code == Some(1) && report["error"]["causes"].to_string().contains("535"), "{report}");
    let (code, report) = test("nobody", mail::PASSWORD);
    assert!(code == Some(1), "{report}");
    // STARTTLS asked of a server that begins with TLS: nothing in clear, and an end.
    let (code, report) = test("unready", mail::PASSWORD);
    assert_eq!(code, Some(1), "{report}");
    assert_eq!(implicit.mails().len(), 1);
    // Their certificates are of two days.
    let _daemon = Daemon::start(&workspace, &[("MAIL", mail::PASSWORD)]);
    until("the ends of their certificates are told", || {
        let said = workspace.json(&["status"], 0)["problems"].to_string();
        ["implicit", "starttls"]
            .iter()
            .all(|name| said.contains(&format!("the certificate of localhost (notifier {name}) ends at")))
            .then_some(())
    });
    no_secret(&workspace, &[]);
}

#[test]
fn a_test_says_precisely_what_happened() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new(folder.path(), "ours"), Authority::new(folder.path(), "other"));
    let key = ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    ours.issue("hook", "hook", "DNS:localhost", &key);
    other.issue("elsewhere", "elsewhere", "DNS:elsewhere.example.com", &key);
    let (good, named) = (
        Target::with_tls(&ours.path("hook.crt"), &ours.path("hook.key")),
        Target::with_tls(&other.path("elsewhere.crt"), &other.path("elsewhere.key")),
    );
    let plain = Target::start();
    let ca = |name: &str| format!("ca_file = \"{}\"", folder.path().join(name).display());
    let out = folder.path().join("told.json");
    let command = format!(
        "\n[notify.command]\nkind = \"command\"\nrun = [\"sh\", \"-c\", \"cat > $0; echo $SAID; test -z $PASSPHRASE\", \"{}\"]\nenvironment = {{ SAID = {{ env = \"HOOK\" }} }}\n",
        out.display()
    );
    let asleep = "\n[notify.asleep]\nkind = \"command\"\nrun = [\"sleep\", \"600\"]\ntimeout = \"1s\"\n";
    let template = "template = '{\"body\": {{ title }}, \"n\": {{ count }}}'";
    let workspace = Workspace::new(
        &[
            webhook("good", &ca("ours.crt")).replace("GOOD", "HOOK"),
            webhook("unknown", "").replace("UNKNOWN", "HOOK"),
            webhook("named", &ca("other.crt")),
            webhook("ding", "format = \"dingtalk\"\nsecret = { env = \"SECRET\" }").replace("DING", "PLAIN"),
            webhook("templated", template).replace("TEMPLATED", "PLAIN"),
            webhook("remote", ""),
            "\n[notify.beat]\nkind = \"heartbeat\"\nurl = { env = \"PLAIN\" }\n".to_owned(),
            command,
            asleep.to_owned(),
        ]
        .concat(),
    );
    let test = |name: &str| -> (Option<i32>, Value) {
        let mut command = workspace.command(&["notify", "test", name, "--json"]);
        command
            .env("HOOK", format!("https://localhost:{}/{TOKEN}", good.port))
            .env("NAMED", format!("https://localhost:{}/{TOKEN}", named.port));
        command.env("PLAIN", address(&plain)).env("SECRET", TOKEN).env("REMOTE", format!("http://192.0.2.1/{TOKEN}"));
        let output = command.output().unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(!out.contains(TOKEN) && !err.contains(TOKEN), "{out}{err}");
        (output.status.code(), serde_json::from_str(&out).unwrap())
    };
    let said = |report: &Value| report["error"]["causes"].to_string();
    let (code, report) = test("good");
    assert_eq!((code, report["answer"].as_str()), (Some(0), Some("HTTP 200")), "{report}");
    assert_eq!(good.got().len(), 1);
    assert_eq!(good.got()[0].json()["events"][0]["occasion"], "test");
    let (code, report) = test("unknown");
    assert!(code == Some(1) && said(&report).contains("certificate"), "{report}");
    let (code, report) = test("named");
    assert!(code == Some(1) && said(&report).contains("certificate"), "{report}");
    assert_eq!((good.got().len(), named.got().len()), (1, 0), "nothing was sent to whom it could not trust");
    let (code, report) = test("remote");
    assert!(code == Some(2) && said(&report).contains("plain http"), "{report}");

    plain.answers(&[
        Answer::Status(200, "{\"errcode\":310000,\"errmsg\":\"keywords not in content\"}"),
        Answer::Status(200, "{\"errcode\":0}"),
    ]);
    let (code, report) = test("ding");
    assert!(code == Some(1) && said(&report).contains("310000: keywords not in content"), "{report}");
    assert_eq!(test("ding").0, Some(0));
    let path = plain.got()[1].path.clone();
    assert!(path.contains("&timestamp=") && path.contains("&sign="), "{path}");
    assert_eq!(test("templated").0, Some(0));
    let filled = plain.got()[2].json();
    assert!(filled["n"] == 1 && filled["body"].as_str().unwrap().starts_with("lifeboat: test"), "{filled}");
    plain.answers(&[Answer::Status(302, ""), Answer::Status(404, "no such hook: /hooks/planted-token-5b1d0c")]);
    let (code, report) = test("templated");
    assert!(code == Some(1) && said(&report).contains("HTTP 302"), "{report}");
    let (code, report) = test("templated");
    assert!(code == Some(1) && said(&report).contains("HTTP 404: no such hook: ***"), "{report}");
    assert_eq!(test("beat").0, Some(0));
    assert!(plain.got().last().unwrap().path.starts_with(&format!("/hooks/{TOKEN}/log")), "a test is no success");

    let (code, report) = test("command");
    assert_eq!(code, Some(0), "{report}");
    let told: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    assert_eq!(told["schema"], "lifeboat.notice/1");
    let began = Instant::now();
    let (code, report) = test("asleep");
    assert!(code == Some(1) && said(&report).contains("no answer within 1 s") && began.elapsed() < Duration::from_secs(30), "{report}");
    let (code, report) = test("nobody-knows");
    assert_eq!((code, report["error"]["kind"].as_str()), (Some(2), Some("usage")), "{report}");
    no_secret(&workspace, &[]);
}

#[test]
fn a_daemon_that_lives_pings_and_says_what_ends_soon() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours");
    ours.issue("alive", "alive", "DNS:localhost", &["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    let alive = Target::with_tls(&ours.path("alive.crt"), &ours.path("alive.key"));
    let more = format!("every = \"1s\"\nca_file = \"{}\"\n", ours.path("ours.crt"));
    let workspace = Workspace::ready(&format!("\n[notify.alive]\nkind = \"heartbeat\"\nurl = {{ env = \"ALIVE\" }}\n{more}"));
    let url = format!("https://localhost:{}/{TOKEN}", alive.port);
    let _daemon = Daemon::start(&workspace, &[("ALIVE", &url)]);
    let pings = || alive.got().into_iter().filter(|request| request.method == "POST").collect::<Vec<_>>();
    until("it pings", || (pings().len() >= 3).then_some(()));
    assert!(pings().iter().all(|ping| ping.path == format!("/{TOKEN}")), "{:?}", alive.got());
    // Both certificates are of two days.
    let told = until("the ends are told", || {
        let problems = workspace.json(&["status"], 0)["problems"].as_array().unwrap().clone();
        let ends: Vec<Value> = problems.into_iter().filter(|problem| problem["kind"] == "expiring").collect();
        (ends.len() == 2).then_some(ends)
    });
    let messages = told.iter().map(|problem| problem["message"].as_str().unwrap()).collect::<Vec<_>>().join("\n");
    assert!(messages.contains("the certificate of localhost (notifier alive) ends at"), "{messages}");
    assert!(messages.contains("ca_file of notifier alive"), "{messages}");
    no_secret(&workspace, &[messages]);
}

/// What no run of a plan tells: that it is gone, that its secret is not there, that a key is old.
#[test]
fn a_plan_that_is_gone_a_secret_that_is_not_set_and_an_old_key_are_told_as_what_they_are() {
    let ops = Target::start();
    let workspace = Workspace::ready("schedule = \"7 3 29 2 *\"\n");
    workspace.backup();
    let crm = workspace.path("plans/crm.toml");
    let good = std::fs::read_to_string(&crm).unwrap();
    // Three weeks before a key is too old it is told of: of one day it is at once.
    let good = good.replace("passphrase =", "max_key_age = \"1d\"\npassphrase =");
    std::fs::write(&crm, &good).unwrap();
    let other = format!(
        "version = 1\n{}[repository.closed]\nurl = \"file://{}/closed\"\npassphrase = {{ env = \"NOT_SET_PASSPHRASE\" }}\n\
         [plan.closed]\nsource = \"attachments\"\nrepository = \"closed\"\n",
        webhook("ops", ""),
        workspace.folder.path().display()
    );
    std::fs::write(workspace.path("plans/other.toml"), &other).unwrap();
    let listed = workspace.json(&["key", "list", "main"], 0);
    let warnings = listed["warnings"].as_array().unwrap();
    assert!(!warnings.is_empty() && warnings[0].as_str().unwrap().contains("1 days of `max_key_age`"), "{listed}");
    let examined = workspace.json(&["doctor", "crm"], 0);
    assert!(examined["checks"].to_string().contains("will soon be older"), "{examined}");

    // A plan that a daemon followed is gone when the next one starts.
    let without = good.replace("[plan.crm]\nsources = [\"database\", \"attachments\"]\n", "[plan.successor]\nsource = \"database\"\n");
    assert_ne!(good, without);
    std::fs::write(&crm, &without).unwrap();
    let journal = Journal::open(&workspace.path("state"), Utc::now()).unwrap();
    journal.schedule_since(&Name::new("crm").unwrap(), Job::Backup, "7 3 29 2 * Asia/Shanghai", Utc::now()).unwrap();
    drop(journal);

    let url = address(&ops);
    let _daemon = Daemon::start(&workspace, &[("OPS", &url)]);
    let told = |words: &str| {
        let all = ops.got().iter().flat_map(|request| request.json()["events"].as_array().unwrap().clone()).collect::<Vec<_>>();
        all.into_iter().find(|event| event["message"].as_str().unwrap().contains(words))
    };
    let key = until("the key is told of", || told("of repository main, made at"));
    assert_eq!((key["occasion"].as_str(), key["problem"].as_str()), (Some("expiring"), Some("expiring")), "{key}");
    let secret = until("the secret is told of", || told("NOT_SET_PASSPHRASE"));
    assert_eq!((secret["problem"].as_str(), secret["plan"].as_str()), (Some("secret-unavailable"), Some("closed")), "{secret}");
    let status = workspace.json(&["status", "closed"], 0);
    let kinds: Vec<&str> = status["plans"][0]["problems"].as_array().unwrap().iter().map(|one| one["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"secret-unavailable") && !kinds.contains(&"repository-unreachable"), "{status}");

    let gone = until("that the plan is gone is told", || told("plan crm is in no plan file any more"));
    assert_eq!((gone["occasion"].as_str(), gone["problem"].as_str()), (Some("overdue"), Some("plan-gone")), "{gone}");
    assert!(gone["plan"].is_null(), "{gone}");
    let stands = || workspace.json(&["status"], 0)["problems"].as_array().unwrap().iter().any(|one| one["kind"] == "plan-gone");
    assert!(stands());
    std::fs::write(&crm, without.replace("version = 1\n", "version = 1\nretired = [\"crm\"]\n")).unwrap();
    until("somebody meant it", || (!stands()).then_some(()));
    no_secret(&workspace, &[bodies(&[&ops])]);
}

#[test]
fn stores_that_hang_keep_no_objective_of_another_plan_from_being_watched() {
    let ops = Target::start();
    let workspace = Workspace::ready(&format!("objectives = {{ data_loss = \"1s\" }}\n{}", webhook("ops", "")));
    workspace.backup();
    // It takes connections and never answers. More than are asked at a time, and all before the sound one.
    let store = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let hanging = |number: usize| {
        format!(
            "[repository.a{number}]\nurl = \"s3://nowhere/r\"\nendpoint = \"http://{}\"\nregion = \"us-east-1\"\nallow_http = true\n\
             access_key = {{ env = \"CRM_PASSPHRASE\" }}\nsecret_key = {{ env = \"CRM_PASSPHRASE\" }}\npassphrase = {{ env = \"CRM_PASSPHRASE\" }}\n\
             [plan.a{number}]\nsource = \"attachments\"\nrepository = \"a{number}\"\n",
            store.local_addr().unwrap()
        )
    };
    let all: String = (0..7).map(hanging).collect();
    std::fs::write(workspace.path("plans/hanging.toml"), format!("version = 1\n{all}")).unwrap();
    let url = address(&ops);
    let _daemon = Daemon::start(&workspace, &[("OPS", &url)]);
    until("the missed objective is told", || has(&ops, "objective-missed", "raised").then_some(()));
    let told = bodies(&[&ops]);
    assert!(told.contains("a disaster now would lose"), "{told}");
    no_secret(&workspace, &[told]);
}

#[test]
fn a_plan_file_that_is_wrong_at_the_start_is_told_and_the_others_run() {
    let ops = Target::start();
    let workspace = Workspace::ready(&webhook("ops", ""));
    let wrong = workspace.path("plans/wrong.toml");
    std::fs::write(&wrong, "version = 1\n[plan.wrong]\nsource = \"attachments\"\nrepository = \"mian\"\n").unwrap();
    let url = address(&ops);
    let _daemon = Daemon::start(&workspace, &[("OPS", &url)]);
    until("the daemon serves", || log(&workspace).contains("\"serving\"").then_some(()));
    until("that a file is wrong is told", || has(&ops, "plans-broken", "raised").then_some(()));
    assert!(bodies(&[&ops]).contains("left out at the start") && bodies(&[&ops]).contains("mian"), "{}", bodies(&[&ops]));
    let alive = workspace.json(&["status", "--daemon"], 0);
    assert_eq!((&alive["running"], &alive["alive"]), (&serde_json::Value::Bool(true), &serde_json::Value::Bool(true)), "{alive}");
    std::fs::remove_file(&wrong).unwrap();
    until("it is right again", || has(&ops, "recovered", "over").then_some(()));
    no_secret(&workspace, &[bodies(&[&ops])]);
}

#[test]
fn when_one_target_fails_the_one_that_stands_in_for_it_gets_what_waits_and_is_told_why() {
    let (ops, dba) = (Target::start(), Target::start());
    ops.answers(&vec![Answer::Status(503, "in repair"); 200]);
    let escalating = "escalate = \"dba\"\nescalate_after = \"1s\"\ntimeout = \"5s\"";
    // By itself it is told of nothing that happens here.
    let workspace = Workspace::ready(&format!("{}{}", webhook("ops", escalating), webhook("dba", "on = [\"log-gap\"]")));
    let (ops_url, dba_url) = (address(&ops), address(&dba));
    let _daemon = Daemon::start(&workspace, &[("OPS", &ops_url), ("DBA", &dba_url)]);
    until("the daemon serves", || log(&workspace).contains("\"serving\"").then_some(()));
    break_source(&workspace);
    workspace.json(&["backup", "crm"], 1);
    until("the failure is handed over", || has(&dba, "failure", "raised").then_some(()));
    let told = |problem: &str| {
        let all = dba.got().iter().flat_map(|request| request.json()["events"].as_array().unwrap().clone()).collect::<Vec<_>>();
        all.into_iter().find(|event| event["problem"] == problem)
    };
    let failure = told("failed").unwrap();
    assert_eq!((failure["plan"].as_str(), failure["job"].as_str()), (Some("crm"), Some("backup")), "{failure}");
    let failing = until("that the other one fails is told", || told("notifier-failing"));
    let message = failing["message"].as_str().unwrap();
    assert!(message.contains("notifier ops has reached nobody since") && message.contains("HTTP 503"), "{message}");
    assert!(ops.got().len() >= 2, "it was tried again itself");
    assert!(ops.got().iter().flat_map(events).all(|event| event.0 != "notifier-failing"), "{:?}", all_events(&ops));
    let times = dba.got().iter().map(|request| request.body.matches("\"problem\":\"failed\"").count()).sum::<usize>();
    assert_eq!(times, 1, "once: {:?}", bodies(&[&dba]));
    no_secret(&workspace, &[bodies(&[&ops, &dba])]);
}

#[test]
fn a_second_certificate_of_a_plan_that_ends_is_told_while_the_first_one_stands() {
    let ops = Target::start();
    let workspace = Workspace::ready(&webhook("ops", "on = [\"expiring\", \"recovered\"]"));
    let (state, url) = (workspace.path("state"), address(&ops));
    let raise = |key: &str, message: &str| {
        let alarm = Alarm { kind: "expiring".into(), plan: Some("crm".into()), message: message.into(), since: Utc::now() };
        alarms::raise(&state, key, &alarm).unwrap();
    };
    raise("expiring-test-client", "the client certificate ends");
    let _daemon = Daemon::start(&workspace, &[("OPS", &url)]);
    let events = || ops.got().iter().flat_map(|request| request.json()["events"].as_array().unwrap().clone()).collect::<Vec<_>>();
    let told = |change: &str, words: &str| {
        let is_it = |event: &Value| event["change"] == change && event["message"].as_str().unwrap().contains(words);
        events().into_iter().filter(is_it).count()
    };
    until("the first is told", || (told("raised", "the client certificate ends") == 1).then_some(()));
    raise("expiring-test-server", "the certificate of the server ends");
    until("the second is told", || (told("raised", "the certificate of the server ends") == 1).then_some(()));
    assert_eq!((told("raised", "the client certificate ends"), told("over", "")), (1, 0), "{:?}", events());
    let status = workspace.json(&["status", "crm"], 0);
    let problems = status["plans"][0]["problems"].as_array().unwrap();
    assert_eq!(problems.iter().filter(|problem| problem["kind"] == "expiring").count(), 2, "{status}");
    alarms::clear(&state, "expiring-test-client").unwrap();
    until("the end of the first is told", || (told("over", "the client certificate ends") == 1).then_some(()));
    assert_eq!(told("over", "the certificate of the server ends"), 0, "{:?}", events());
}
