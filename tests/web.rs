//! The HTTP service of a real daemon: what it answers and to whom, what hostile clients get, metrics in a real Prometheus, traces in a
//! collector that reads them, and what the service manager is told.

#![expect(clippy::unwrap_used, reason = "a test fails by it; clippy knows only functions marked as tests")]
#![expect(clippy::format_push_string, clippy::format_collect, reason = "texts of a test, made once")]
#![expect(clippy::print_stdout, reason = "a random test says its seed")]

#[path = "support/http.rs"]
mod http;
mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use http::{Answer, Daemon, until};
use lifeboat::daemon::journal::{Job, Journal, NewRun};
use lifeboat::id::Name;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as OtlpValue;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use support::postgres::{Cluster, Options, distribution_version};
use support::target::Target;
use support::{free_port, tool};
use workspace::{MARKER, PASSPHRASE, Workspace, text};

/// A plan beside `crm` whose backup takes until the file `go` is there.
fn slow_plan(workspace: &Workspace) {
    let folder = workspace.folder.path().display();
    let plan = format!(
        r#"version = 1
[source.slow]
kind = "command"
dump = ["sh", "-c", "echo begun; touch {folder}/begun; while [ ! -e {folder}/go ]; do sleep 0.05; done # planted-argument-secret"]
environment = {{ PLAIN = "planted-plain-secret" }}
[plan.slow]
source = "slow"
repository = "main"
"#
    );
    std::fs::write(workspace.path("plans/slow.toml"), plan).unwrap();
}

fn started(daemon: &Daemon, plan: &str, job: &str) -> String {
    let answer = daemon.ask("POST", "/api/v1/runs", Some(&json!({ "plan": plan, "job": job }).to_string()));
    assert_eq!(answer.status, 202, "{answer:?}");
    let document = answer.json();
    let id = document["id"].as_str().unwrap().to_owned();
    assert_eq!(answer.header("location").unwrap(), format!("/api/v1/runs/{id}"));
    conforms(daemon, "/api/v1/runs", "post", "202", &document);
    id
}

/// The run once it is over.
fn ended(daemon: &Daemon, id: &str) -> Value {
    until("the run is over", || {
        let answer = daemon.ask("GET", &format!("/api/v1/runs/{id}"), None);
        // Asked for and not yet in the journal.
        if answer.status == 202 {
            conforms(daemon, "/api/v1/runs/{id}", "get", "202", &answer.json());
            return None;
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        Some(answer.json()).filter(|run| run["state"] != "running")
    })
}

fn conforms(daemon: &Daemon, path: &str, method: &str, status: &str, document: &Value) {
    let api = daemon.get("/openapi.json");
    let schema = &api["paths"][path][method]["responses"][status]["content"]["application/json"]["schema"];
    assert!(schema.is_object(), "{method} {path} {status} is not described");
    fits(&api, schema, document, path);
}

/// Whether a document is what a schema says; only the words of schemas that ours use.
fn fits(api: &Value, schema: &Value, document: &Value, at: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let schema = api.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("{at}: {reference} is not there"));
        return fits(api, schema, document, at);
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        fits(api, part, document, at);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let null = json!({ "type": "null" });
        let wanted = if document.is_null() { Some(&null) } else { choices.iter().find(|choice| **choice != null) };
        assert!(!document.is_null() || choices.contains(&null), "{at}: null");
        return fits(api, wanted.unwrap(), document, at);
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().map(|kind| kind.as_str().unwrap()).collect(),
        _ => Vec::new(),
    };
    let kind = match document {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    assert!(kinds.is_empty() || kinds.contains(&kind), "{at}: {document} is {kind}, not {kinds:?}");
    if let (Some(words), Some(word)) = (schema["enum"].as_array(), document.as_str()) {
        assert!(words.iter().any(|known| known == word), "{at}: {word} is not one of {words:?}");
    }
    if let Some(object) = document.as_object() {
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            assert!(object.contains_key(name), "{at}: {name} is missing in {document}");
        }
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            if let Some(value) = object.get(name) {
                fits(api, schema, value, &format!("{at}.{name}"));
            }
        }
    }
    for item in document.as_array().into_iter().flatten() {
        fits(api, &schema["items"], item, &format!("{at}[]"));
    }
}

#[test]
fn what_is_answered_is_as_described_as_the_command_line_says_it_and_without_secrets() {
    let workspace = Workspace::ready("schedule = \"7 3 * * *\"\n[plan.crm.drill]\nschedule = \"7 5 * * sun\"");
    slow_plan(&workspace);
    let mut daemon = Daemon::start(&workspace);
    let backup = started(&daemon, "crm", "backup");
    let run = ended(&daemon, &backup);
    assert_eq!((run["state"].as_str(), run["by"].as_str()), (Some("succeeded"), Some("api token")), "{run}");
    conforms(&daemon, "/api/v1/runs/{id}", "get", "200", &run);
    assert_eq!(run, workspace.json(&["run", "show", &backup], 0));
    let drill = ended(&daemon, &started(&daemon, "crm", "drill"));
    assert_eq!(drill["state"], "succeeded", "{drill}");

    let runs = daemon.get("/api/v1/runs?plan=crm&limit=1000");
    assert_eq!(runs, workspace.json(&["run", "history", "--plan", "crm", "--limit", "0"], 0));
    conforms(&daemon, "/api/v1/runs", "get", "200", &runs);
    assert_eq!(daemon.get("/api/v1/runs?job=drill&state=succeeded")["runs"].as_array().unwrap().len(), 1);
    assert_eq!(daemon.get("/api/v1/runs?limit=1")["runs"].as_array().unwrap().len(), 1);

    let snapshots = daemon.get("/api/v1/snapshots?plan=crm");
    conforms(&daemon, "/api/v1/snapshots", "get", "200", &snapshots);
    assert_eq!(snapshots, workspace.json(&["snapshots", "crm"], 0));
    let drills = daemon.get("/api/v1/drills?plan=crm");
    conforms(&daemon, "/api/v1/drills", "get", "200", &drills);
    let report = drill["report"].as_str().unwrap();
    let one = daemon.get(&format!("/api/v1/drills/{report}"));
    conforms(&daemon, "/api/v1/drills/{id}", "get", "200", &one);
    assert_eq!(one, workspace.json(&["drill", "report", report], 0));
    assert_eq!(one, drills["drills"][0]);

    let status = until("the status knows of the drill", || {
        // Until all plans were judged once, there is none.
        let answer = daemon.ask("GET", "/api/v1/status", None);
        let status = (answer.status == 200).then(|| answer.json())?;
        let crm = status["plans"].as_array().unwrap().iter().find(|plan| plan["name"] == "crm")?;
        crm["proven_at"].is_string().then(|| status.clone())
    });
    conforms(&daemon, "/api/v1/status", "get", "200", &status);
    assert_eq!(status["daemon"], true);
    let plans = daemon.get("/api/v1/plans");
    conforms(&daemon, "/api/v1/plans", "get", "200", &plans);
    assert_eq!(plans["plans"].as_array().unwrap().len(), 2);
    for name in ["crm", "slow"] {
        let plan = daemon.get(&format!("/api/v1/plans/{name}"));
        conforms(&daemon, "/api/v1/plans/{name}", "get", "200", &plan);
        for answer in [&plan, &plans] {
            let shown = answer.to_string();
            assert!(!shown.contains("planted-"), "{shown}");
        }
    }

    // One of a kind at a time, whoever asks; cancelled by whoever may.
    let slow = started(&daemon, "slow", "backup");
    until("it has begun", || workspace.path("begun").exists().then_some(()));
    let again = daemon.ask("POST", "/api/v1/runs", Some(r#"{"plan":"slow","job":"backup"}"#));
    assert_eq!((again.status, again.kind().as_str()), (409, "busy"), "{again:?}");
    let now = daemon.get(&format!("/api/v1/runs/{slow}"));
    conforms(&daemon, "/api/v1/runs/{id}", "get", "200", &now);
    assert!(now["now"]["phase"].is_string() && now["now"]["stopping"].is_null(), "{now}");
    let cancelled = daemon.ask("POST", &format!("/api/v1/runs/{slow}/cancel"), None);
    assert_eq!(cancelled.status, 202, "{cancelled:?}");
    conforms(&daemon, "/api/v1/runs/{id}/cancel", "post", "202", &cancelled.json());
    let run = ended(&daemon, &slow);
    assert_eq!(run["state"], "interrupted", "{run}");
    assert!(run["story"].as_str().unwrap().contains("api token"), "{run}");
    let over = daemon.ask("POST", &format!("/api/v1/runs/{slow}/cancel"), None);
    assert_eq!((over.status, over.kind().as_str()), (409, "busy"), "{over:?}");

    for (method, target, body, status, kind) in [
        ("GET", "/api/v1/runs/01jd0v7m4z5k3n8q2w6x9y1b7c", None, 404, "not-found"),
        ("POST", "/api/v1/runs/01jd0v7m4z5k3n8q2w6x9y1b7c/cancel", None, 404, "not-found"),
        ("GET", "/api/v1/drills/01jd0v7m4z5k3n8q2w6x9y1b7c", None, 404, "not-found"),
        ("GET", "/api/v1/plans/nosuch", None, 404, "not-found"),
        ("GET", "/api/v1/nosuch", None, 404, "not-found"),
        ("GET", "/", None, 404, "not-found"),
        ("GET", "/api/v1/snapshots?plan=nosuch", None, 400, "usage"),
        ("GET", "/api/v1/snapshots", None, 400, "usage"),
        ("GET", "/api/v1/runs?limit=0", None, 400, "usage"),
        ("GET", "/api/v1/runs?limit=1001", None, 400, "usage"),
        ("GET", "/api/v1/runs?plna=crm", None, 400, "usage"),
        ("GET", "/api/v1/runs?state=sideways", None, 400, "usage"),
        ("GET", "/api/v1/runs/x", None, 400, "usage"),
        ("DELETE", "/api/v1/runs", None, 405, "method-not-allowed"),
        ("POST", "/api/v1/runs", Some(r#"{"plan":"nosuch","job":"backup"}"#), 400, "usage"),
        ("POST", "/api/v1/runs", Some(r#"{"plan":"crm","job":"restore"}"#), 400, "usage"),
        ("POST", "/api/v1/runs", Some(r#"{"plan":"crm","job":"backup","force":true}"#), 400, "usage"),
        ("POST", "/api/v1/runs", Some(r#"{"plan":"crm""#), 400, "usage"),
    ] {
        let answer = daemon.ask(method, target, body);
        assert_eq!((answer.status, answer.kind().as_str()), (status, kind), "{method} {target}: {answer:?}");
        assert_eq!(answer.header("cache-control").as_deref(), Some("no-store"));
    }
    let untyped = format!(
        "POST /api/v1/runs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 32\r\nConnection: close\r\n\r\n{}",
        daemon.token("api.token"),
        r#"{"plan":"crm","job":"backup"}   "#
    );
    assert_eq!(daemon.send(untyped.as_bytes()).status, 415);

    assert!(daemon.is_alive());
    let tokens = [daemon.token("api.token"), daemon.token("metrics.token")];
    assert!(
        workspace.json(&["run", "history", "--limit", "0"], 0)["runs"].as_array().unwrap().len() == 3,
        "refused requests start nothing"
    );
    assert_eq!(daemon.stop(), Some(0));
    let log = std::fs::read_to_string(workspace.path("serve.log")).unwrap();
    for secret in [PASSPHRASE, MARKER, "planted-argument-secret", "planted-plain-secret", &tokens[0], &tokens[1]] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    // A line of a run says which.
    let line = log.lines().find(|line| line.contains("run succeeded")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((line["span"]["id"].as_str(), line["span"]["plan"].as_str()), (Some(backup.as_str()), Some("crm")), "{line}");
}

#[test]
fn nothing_is_answered_without_a_token_and_a_metrics_token_reads_metrics_only() {
    let workspace = Workspace::ready("");
    let mut daemon = Daemon::start(&workspace);
    let api = daemon.get("/openapi.json");
    let (token, scraper) = (daemon.token("api.token"), daemon.token("metrics.token"));
    let mut targets: BTreeSet<(String, String)> = BTreeSet::new();
    for (path, methods) in api["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            targets.insert((method.to_uppercase(), path.replace("{id}", "01jd0v7m4z5k3n8q2w6x9y1b7c").replace("{name}", "crm")));
        }
    }
    assert!(targets.len() >= 11, "{targets:?}");
    for (method, path) in
        [("GET", "/openapi.json"), ("GET", "/"), ("GET", "/nosuch"), ("OPTIONS", "/api/v1/runs"), ("TRACE", "/metrics"), ("GET", "//")]
    {
        targets.insert((method.to_owned(), path.to_owned()));
    }
    let ask = |method: &str, path: &str, headers: &str| {
        daemon.send(format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").as_bytes())
    };
    let wrong = [
        String::new(),
        "Authorization: Bearer\r\n".to_owned(),
        "Authorization: Bearer \r\n".to_owned(),
        format!("Authorization: Basic {token}\r\n"),
        format!("Authorization: {token}\r\n"),
        format!("Authorization: Bearer {}\r\n", &token[1..]),
        format!("Authorization: Bearer {token}0\r\n"),
        format!("Authorization: Bearer {}\r\n", token.to_uppercase()),
        format!("Authorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n"),
        format!("X-Authorization: Bearer {token}\r\nCookie: token={token}\r\n"),
        "Authorization: Bearer \u{feff}\u{202e}💥\r\n".to_owned(),
    ];
    for (method, path) in &targets {
        for headers in &wrong {
            let answer = ask(method, path, headers);
            assert_eq!(answer.status, 401, "{method} {path} {headers:?}: {answer:?}");
            assert_eq!(answer.kind(), "unauthorized");
            assert_eq!(answer.header("www-authenticate").as_deref(), Some("Bearer realm=\"lifeboat\""));
        }
        let answer = ask(method, path, &format!("Authorization: Bearer {scraper}\r\n"));
        if (method.as_str(), path.as_str()) == ("GET", "/metrics") {
            assert_eq!(answer.status, 200, "{answer:?}");
        } else {
            assert_eq!((answer.status, answer.kind().as_str()), (403, "forbidden"), "{method} {path}: {answer:?}");
        }
    }
    assert_eq!(ask("GET", &format!("/metrics?token={token}"), "").status, 401, "no token in an address");
    assert!(daemon.is_alive());
    assert_eq!(workspace.json(&["run", "history"], 0)["runs"], json!([]));
    // What others can reach is refused before anything is served, and so is a token that others can read.
    let refused = workspace.run(&["serve", "--listen", "0.0.0.0:0"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        text(&refused.stderr).contains("other machines can reach it") && text(&refused.stderr).contains("--listen-remote"),
        "{}",
        text(&refused.stderr)
    );
    assert_eq!(daemon.stop(), Some(0));
    std::fs::set_permissions(workspace.path("state/api.token"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = workspace.run(&["serve", "--listen", "127.0.0.1:0"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("others may read"), "{}", text(&refused.stderr));
}

#[test]
fn broken_plan_files_are_told_and_change_nothing_and_a_request_that_waits_outlives_the_daemon() {
    let ops = Target::start();
    let workspace = Workspace::ready("[notify.ops]\nkind = \"webhook\"\nurl = { env = \"OPS\" }\n[serve]\nmax_runs = 1\n");
    slow_plan(&workspace);
    let url = format!("http://127.0.0.1:{}/", ops.port);
    let start = || {
        Daemon::start_with(&workspace, |command| {
            command.env("OPS", &url);
        })
    };
    let daemon = start();
    let slow = started(&daemon, "slow", "backup");
    until("it goes on", || workspace.path("begun").exists().then_some(()));
    let answer = daemon.ask("POST", "/api/v1/runs", Some(r#"{"plan": "crm", "job": "backup"}"#)).json();
    assert!(answer["waits_for"].is_string(), "{answer}");
    let waiting = answer["id"].as_str().unwrap().to_owned();
    let seen = daemon.ask("GET", &format!("/api/v1/runs/{waiting}"), None);
    assert_eq!((seen.status, &seen.json()["waits_for"]), (202, &answer["waits_for"]), "{seen:?}");

    let good = std::fs::read_to_string(workspace.path("plans/crm.toml")).unwrap();
    std::fs::write(workspace.path("plans/crm.toml"), good.replace("repository = \"main\"\ntimezone", "repository = \"mian\"\ntimezone"))
        .unwrap();
    let told = |words: [&str; 2]| ops.got().iter().any(|request| words.iter().all(|word| request.body.contains(word))).then_some(());
    until("the webhook hears of it", || told(["plans-broken", "mian"]));
    let plans = daemon.get("/api/v1/plans")["plans"].as_array().unwrap().clone();
    let crm = plans.iter().find(|plan| plan["name"] == "crm").unwrap();
    assert_eq!(crm["repository"], "main", "the old plans are in force");
    assert!(daemon.log().contains("the plans read before stay in force"));

    // Killed: with the slow run in the journal, and the other one nowhere but in its request.
    drop(daemon);
    std::fs::write(workspace.path("plans/crm.toml"), good).unwrap();
    std::fs::write(workspace.path("go"), "").unwrap();
    let daemon = start();
    let run = ended(&daemon, &waiting);
    assert_eq!(
        (run["state"].as_str(), run["by"].as_str(), run["trigger"].as_str()),
        (Some("succeeded"), Some("api token"), Some("manual")),
        "{run}"
    );
    assert_eq!(ended(&daemon, &slow)["state"], "interrupted", "what had begun is not begun again");
    until("the end is told", || told(["recovered", "mian"]));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_request_that_waits_until_a_killed_run_is_settled_can_be_taken_back() {
    // It takes connections and never answers.
    let store = TcpListener::bind("127.0.0.1:0").unwrap();
    let workspace = Workspace::ready("");
    let plan = format!(
        "version = 1\n[repository.hanging]\nurl = \"s3://nowhere/r\"\nendpoint = \"http://{}\"\nregion = \"us-east-1\"\nallow_http = true\n\
         access_key = {{ env = \"CRM_PASSPHRASE\" }}\nsecret_key = {{ env = \"CRM_PASSPHRASE\" }}\npassphrase = {{ env = \"CRM_PASSPHRASE\" }}\n\
         [plan.first]\nsource = \"attachments\"\nrepository = \"hanging\"\n[plan.hanging]\nsource = \"attachments\"\nrepository = \"hanging\"\n",
        store.local_addr().unwrap()
    );
    std::fs::write(workspace.path("plans/hanging.toml"), plan).unwrap();
    for plan in ["first", "hanging"] {
        let now = chrono::Utc::now();
        let journal = Journal::open(&workspace.path("state"), now).unwrap();
        let killed = journal.begin(&NewRun::manual(&Name::new(plan).unwrap(), Job::Backup, "tester", now), now).unwrap();
        assert!(journal.announce(killed, "01arz3ndektsv4rrffq69g5fav", now).unwrap());
    }
    let daemon = Daemon::start(&workspace);
    let id = started(&daemon, "hanging", "backup");
    workspace.json(&["run", "cancel", &id], 0);
    let run = ended(&daemon, &id);
    assert_eq!(run["state"], "interrupted", "{run}");
    assert!(run["story"].as_str().unwrap().contains("took it back before it began"), "{run}");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_unix_socket_serves_alike_and_goes_with_the_daemon() {
    let workspace = Workspace::ready("");
    let socket = workspace.path("api.sock");
    let listen = format!("unix:{}", socket.display());
    let mut child = workspace.command(&["serve", "--listen", &listen]).spawn().unwrap();
    let mut stream = until("the socket is there", || std::os::unix::net::UnixStream::connect(&socket).ok());
    let token = std::fs::read_to_string(workspace.path("state/api.token")).unwrap();
    write!(stream, "GET /api/v1/plans HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n", token.trim()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("lifeboat.plans/1"), "{answer}");
    kill_process(rustix::process::Pid::from_raw(child.id().try_into().unwrap()).unwrap(), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!socket.exists());
}

/// Numbers from a seed that is printed, the same ones each time unless `LIFEBOAT_TEST_SEED` is another: xorshift64*.
struct Chance(u64);

impl Chance {
    fn new(what: &str) -> Self {
        let seed: u64 = std::env::var("LIFEBOAT_TEST_SEED").map_or(0x006c_6966_6562_6f61, |seed| seed.parse().unwrap());
        assert_ne!(seed, 0, "xorshift stays at 0");
        println!("{what}: LIFEBOAT_TEST_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next()).unwrap() % bound
    }

    fn of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// A word as nobody should send it; for a path or a query it is encoded or not, as chance has it.
    fn word(&mut self) -> String {
        const WORDS: [&str; 30] = [
            "",
            "crm",
            "CRM",
            "..",
            "../..",
            "../../etc/passwd",
            "..%2f..%2fetc%2fpasswd",
            "%2e%2e%2f",
            ".",
            "%00",
            "%ff%fe",
            "%",
            "%zz",
            "null",
            "true",
            "-1",
            "0",
            "1e309",
            "18446744073709551616",
            "99999999999999999999999999",
            "NaN",
            "'; DROP TABLE runs; --",
            "<script>",
            "${jndi:ldap://x}",
            "\u{202e}\u{feff}",
            "💥",
            "a\u{0}b",
            "🏳️‍🌈",
            "01jd0v7m4z5k3n8q2w6x9y1b7c",
            "01JD0V7M4Z5K3N8Q2W6X9Y1B7C",
        ];
        match self.below(8) {
            0 => "A".repeat(1 + self.below(9000)),
            1 => (0..=self.below(40)).map(|_| char::from_u32(u32::try_from(self.below(0xd7ff)).unwrap()).unwrap_or('x')).collect(),
            _ => (*self.of(&WORDS)).to_owned(),
        }
    }

    fn encoded(&mut self) -> String {
        let word = self.word();
        let raw = self.below(3) == 0 && word.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'#' | b'?'));
        if raw { word } else { word.bytes().map(|byte| format!("%{byte:02x}")).collect() }
    }

    /// Any JSON, or something like it.
    fn value(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 6 } else { 9 }) {
            0 => Value::Null,
            1 => json!(self.below(2) == 0),
            2 => json!(i64::try_from(self.next()).unwrap() - 1),
            3 => json!(1e300),
            4 | 5 => json!(self.word()),
            6 | 7 => (0..self.below(4)).map(|_| self.value(depth - 1)).collect(),
            _ => Value::Object((0..self.below(4)).map(|_| (self.word(), self.value(depth - 1))).collect()),
        }
    }

    /// A body for a request whose schema has these properties.
    fn body(&mut self, properties: &[String]) -> Vec<u8> {
        match self.below(10) {
            0 => Vec::new(),
            1 => "[".repeat(1 + self.below(60_000)).into_bytes(),
            2 => vec![b' '; 65_537 + self.below(200_000)],
            3 => (0..self.below(2000)).map(|_| u8::try_from(self.below(256)).unwrap()).collect(),
            4 => self.value(3).to_string().into_bytes(),
            5 => {
                // The right words twice: which one counts?
                let twice: Vec<String> = properties.iter().chain(properties).map(|name| format!("{name:?}:{}", self.value(1))).collect();
                format!("{{{}}}", twice.join(",")).into_bytes()
            }
            _ => {
                let mut object = serde_json::Map::new();
                for name in properties {
                    if self.below(5) > 0 {
                        object.insert(name.clone(), self.value(2));
                    }
                }
                if self.below(4) == 0 {
                    object.insert(self.word(), self.value(2));
                }
                Value::Object(object).to_string().into_bytes()
            }
        }
    }
}

/// An operation of the OpenAPI document, as far as the generator needs it.
struct Operation {
    path: String,
    method: String,
    queries: Vec<String>,
    properties: Vec<String>,
    statuses: Vec<u16>,
}

fn operations(api: &Value) -> Vec<Operation> {
    let mut all = Vec::new();
    for (path, methods) in api["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let queries = parameters.iter().filter(|of| of["in"] == "query").map(|of| of["name"].as_str().unwrap().to_owned()).collect();
            let reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].as_str();
            let schema = reference.map(|reference| api.pointer(reference.trim_start_matches('#')).unwrap());
            let properties = schema.map(|schema| schema["properties"].as_object().unwrap().keys().cloned().collect()).unwrap_or_default();
            let statuses = operation["responses"].as_object().unwrap().keys().map(|status| status.parse().unwrap()).collect();
            all.push(Operation { path: path.clone(), method: method.to_uppercase(), queries, properties, statuses });
        }
    }
    all
}

/// What HTTP itself answers before anybody is asked.
const OF_HTTP: [u16; 4] = [400, 408, 414, 431];

#[test]
fn hostile_requests_made_from_the_openapi_document_never_break_it() {
    let workspace = Workspace::ready("");
    workspace.backup();
    let mut daemon = Daemon::start(&workspace);
    let api = daemon.get("/openapi.json");
    let operations = operations(&api);
    assert!(
        operations.iter().any(|operation| !operation.properties.is_empty())
            && operations.iter().any(|operation| !operation.queries.is_empty())
    );
    let token = daemon.token("api.token");
    until("the plans were looked at", || (daemon.ask("GET", "/api/v1/status", None).status == 200).then_some(()));
    let mut chance = Chance::new("hostile requests");
    let mut seen: BTreeSet<u16> = BTreeSet::new();
    for _ in 0..700 {
        let operation = chance.of(&operations);
        let method = if chance.below(6) == 0 {
            (*chance.of(&["PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW", "get", "POST"])).to_owned()
        } else {
            operation.method.clone()
        };
        let mut path = String::new();
        for part in operation.path.split('/').skip(1) {
            path.push('/');
            path.push_str(&if part.starts_with('{') || chance.below(12) == 0 { chance.encoded() } else { part.to_owned() });
        }
        for (index, name) in operation.queries.iter().enumerate() {
            if chance.below(3) > 0 {
                let value = if chance.below(4) == 0 { "crm".to_owned() } else { chance.encoded() };
                path.push_str(&format!("{}{name}={value}", if index == 0 { '?' } else { '&' }));
            }
        }
        let body = if operation.properties.is_empty() && chance.below(4) > 0 { Vec::new() } else { chance.body(&operation.properties) };
        let kind = *chance.of(&[
            "application/json",
            "application/json",
            "application/json; charset=utf-16",
            "text/plain",
            "multipart/form-data; boundary=x",
            "💥",
        ]);
        let length = match chance.below(12) {
            0 => "Transfer-Encoding: chunked\r\n".to_owned(),
            1 => format!("Content-Length: {0}\r\nContent-Length: {0}1\r\n", body.len()),
            2 => "Content-Length: -5\r\n".to_owned(),
            _ => format!("Content-Length: {}\r\n", body.len()),
        };
        let chunked = length.starts_with("Transfer");
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Type: {kind}\r\n{length}"
        );
        match chance.below(20) {
            0 => request.push_str(&format!("X-Long: {}\r\n", "y".repeat(40_000))),
            1 => request.push_str(&"X-Many: 1\r\n".repeat(300)),
            2 => request.push_str("Expect: 100-continue\r\nUpgrade: h2c\r\nRange: bytes=0-1,3-\r\n"),
            _ => {}
        }
        request.push_str("\r\n");
        let mut bytes = request.into_bytes();
        if chunked {
            bytes.extend(if chance.below(2) == 0 {
                b"zz\r\nnot a chunk\r\n".to_vec()
            } else {
                format!("{:x}\r\n", body.len()).into_bytes()
            });
            bytes.extend(&body);
            bytes.extend(b"\r\n0\r\n\r\n");
        } else {
            bytes.extend(&body);
        }
        let answer = daemon.send(&bytes);
        seen.insert(answer.status);
        let what = || format!("{} -> {answer:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(400)]));
        assert!(answer.status < 500, "{}", what());
        let routed = operation.path.split('/').count() == path.split('?').next().unwrap().split('/').count();
        if method == operation.method && routed && answer.status != 404 && answer.status != 405 {
            assert!(operation.statuses.contains(&answer.status) || OF_HTTP.contains(&answer.status), "not described: {}", what());
        }
        // HTTP's own refusals have no body; all others say what is wrong, and repeat no secret.
        if answer.status >= 400 && !answer.body.is_empty() {
            let error = &answer.json()["error"];
            assert!(error["kind"].is_string() && error["message"].is_string(), "{}", what());
        }
        let answered = String::from_utf8_lossy(&answer.body);
        assert!(!answered.contains(&token) && !answered.contains(PASSPHRASE) && !answered.contains("root:"), "{}", what());
    }
    // What the generator reaches by chance alone does not depend on chance: each of these once more, as it should be answered.
    let too_long = vec![b' '; 100_000];
    let head = |kind: &str, length: usize| {
        format!(
            "POST /api/v1/runs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    for (status, kind, body) in [
        (413, "application/json", too_long.as_slice()),
        (415, "text/plain", b"{}"),
        (400, "application/json", b"{"),
        (400, "application/json", b""),
    ] {
        let answer = daemon.send(&[head(kind, body.len()).as_bytes(), body].concat());
        assert_eq!(answer.status, status, "{answer:?}");
    }
    assert!(seen.is_superset(&BTreeSet::from([200, 400, 404, 405])), "the generator reached too little: {seen:?}");

    // Many requests at once on one connection are answered in order.
    let mut stream = daemon.connect();
    for target in ["/api/v1/plans", "/nosuch", "/api/v1/runs", "/api/v1/runs/x"] {
        write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n").unwrap();
    }
    let statuses: Vec<u16> = pipelined(&mut stream, 4);
    assert_eq!(statuses, [200, 404, 200, 400]);
    // A second request hidden in the body of the first one is a body.
    let hidden = format!("GET /api/v1/plans HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
    let answer = daemon.send(
        format!("POST /api/v1/runs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\nContent-Type: application/json\r\n\r\n{hidden}", hidden.len()).as_bytes(),
    );
    assert_eq!(answer.status, 401);
    assert!(daemon.is_alive());
    assert_eq!(daemon.stop(), Some(0));
    let log = std::fs::read_to_string(workspace.path("serve.log")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
    assert!(!log.contains(&token), "the token is in the log");
}

/// Statuses of so many answers on one connection.
fn pipelined(stream: &mut TcpStream, count: usize) -> Vec<u16> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 65536];
    until("all are answered", || {
        let read = stream.read(&mut buffer).unwrap();
        bytes.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&bytes);
        let statuses: Vec<u16> = text.match_indices("HTTP/1.1 ").map(|(at, _)| text[at + 9..at + 12].parse().unwrap()).collect();
        (statuses.len() >= count).then_some(statuses)
    })
}

#[test]
fn clients_that_are_slow_on_purpose_keep_nobody_out() {
    let workspace = Workspace::ready("");
    let mut daemon = Daemon::start(&workspace);
    let token = daemon.token("api.token");
    // One that is let in and never sends its body.
    let mut bodyless = daemon.connect();
    write!(bodyless, "POST /api/v1/runs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: 30\r\n\r\n{{").unwrap();
    // More than there are places, each with half a request.
    let crowd: Vec<TcpStream> = (0..80)
        .map(|_| {
            let mut stream = daemon.connect();
            stream.write_all(b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\nX-Slow: ").unwrap();
            stream
        })
        .collect();
    let begun = Instant::now();
    let answer = daemon.ask("GET", "/api/v1/plans", None);
    assert_eq!(answer.status, 200);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    let answer = Answer::read(&mut bodyless).unwrap();
    assert_eq!((answer.status, answer.kind().as_str()), (408, "timeout"), "{answer:?}");
    for mut stream in crowd {
        let mut rest = Vec::new();
        // Closed, with or without a word; never kept.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&rest));
    }
    assert!(daemon.is_alive());
    assert_eq!(daemon.stop(), Some(0));
}

/// A server whose log is streamed, as plan `pg`.
fn postgres_plan(workspace: &Workspace) -> Cluster {
    let cluster = Options::new(distribution_version()).setting("wal_level", "logical").setting("max_slot_wal_keep_size", "1GB").start();
    let url = format!("host={} port={} user=postgres dbname=postgres", cluster.folder().display(), cluster.port);
    std::fs::write(workspace.path("url"), url).unwrap();
    std::fs::set_permissions(workspace.path("url"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let plan = format!(
        r#"version = 1
[source.server]
kind = "postgres"
url = {{ file = "{}/url" }}
log = "stream"
[plan.pg]
source = "server"
repository = "main"
"#,
        workspace.folder.path().display()
    );
    std::fs::write(workspace.path("plans/pg.toml"), plan).unwrap();
    cluster
}

fn scrape(daemon: &Daemon) -> String {
    let token = daemon.token("metrics.token");
    let answer =
        daemon.send(format!("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n").as_bytes());
    assert_eq!(
        (answer.status, answer.header("content-type").as_deref()),
        (200, Some("text/plain; version=0.0.4; charset=utf-8")),
        "{answer:?}"
    );
    answer.text()
}

/// The value of the series that begins so.
fn sample(scraped: &str, series: &str) -> Option<f64> {
    scraped.lines().find(|line| line.starts_with(series))?.rsplit(' ').next()?.parse().ok()
}

/// Names of our metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let found = text.match_indices("lifeboat_").filter(|(at, _)| !text[..*at].ends_with(letter));
    found.map(|(at, _)| text[at..].chars().take_while(|c| letter(*c)).collect()).collect()
}

fn packaged(path: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_metric_of_rules_dashboard_and_reference_is_in_a_scrape_that_prometheus_reads() {
    let workspace = Workspace::ready(
        "schedule = \"7 3 * * *\"\nobjectives = { data_loss = \"26h\", recovery_time = \"45m\" }\n[plan.crm.drill]\nschedule = \"7 5 * * sun\"",
    );
    let _cluster = postgres_plan(&workspace);
    workspace.backup();
    let daemon = Daemon::start(&workspace);
    let first = scrape(&daemon);
    assert!(first.is_empty() || first.contains("lifeboat_build_info{version="), "{first}");
    assert!(sample(&first, "lifeboat_runs_total{").unwrap_or(0.0) < 1.0, "what was over before is not counted");
    for (plan, job) in [("crm", "backup"), ("crm", "drill"), ("pg", "backup")] {
        let run = ended(&daemon, &started(&daemon, plan, job));
        assert_eq!(run["state"], "succeeded", "{run}");
    }
    let expected: BTreeSet<String> = ["packaging/prometheus/alerts.yml", "packaging/grafana/lifeboat.json", "docs/reference/metrics.md"]
        .iter()
        .flat_map(|path| names(&packaged(path)))
        .collect();
    assert!(expected.len() > 35, "{expected:?}");
    let mut missing = BTreeSet::new();
    let scraped = until("every name is there", || {
        let scraped = scrape(&daemon);
        let given = names(&scraped);
        let now: BTreeSet<String> = expected.difference(&given).cloned().collect();
        if now != missing {
            println!("missing: {now:?}");
        }
        missing = now;
        missing.is_empty().then_some(scraped)
    });
    let given: BTreeSet<String> =
        scraped.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned)).collect();
    let told = names(&packaged("docs/reference/metrics.md"));
    assert_eq!(given.difference(&told).collect::<Vec<_>>(), Vec::<&String>::new(), "not in docs/reference/metrics.md");

    let scraped = until("the drill is counted", || {
        let scraped = scrape(&daemon);
        sample(&scraped, "lifeboat_runs_total{plan=\"crm\",work=\"drill\",state=\"succeeded\"}")
            .filter(|count| *count >= 1.0)
            .map(|_| scraped)
    });
    assert_eq!(sample(&scraped, "lifeboat_runs_total{plan=\"crm\",work=\"backup\",state=\"succeeded\"}"), Some(1.0));
    assert_eq!(sample(&scraped, "lifeboat_last_run_success{plan=\"crm\",work=\"backup\"}"), Some(1.0));
    assert_eq!(sample(&scraped, "lifeboat_expected_interval_seconds{plan=\"crm\",work=\"backup\"}"), Some(86400.0));
    assert_eq!(sample(&scraped, "lifeboat_data_loss_objective_seconds{plan=\"crm\"}"), Some(93600.0));
    assert_eq!(sample(&scraped, "lifeboat_repository_reachable{plan=\"crm\"}"), Some(1.0));
    let loss = sample(&scraped, "lifeboat_data_loss_seconds{plan=\"crm\"}").unwrap();
    assert!(loss > 0.0 && loss < 120.0, "{loss}");
    assert!(sample(&scraped, "lifeboat_store_requests_total{verb=\"create\"}").unwrap() > 3.0);
    let newest = sample(&scraped, "lifeboat_recoverable_newest_timestamp_seconds{plan=\"crm\"}").unwrap();
    #[expect(clippy::cast_precision_loss, reason = "seconds")]
    let now = chrono::Utc::now().timestamp() as f64;
    assert!((now - newest).abs() < 120.0, "{newest}");

    // The field's own tools: its linter, and a server that scrapes with the shipped configuration.
    let mut lint = std::process::Command::new(tool("promtool"))
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    lint.stdin.take().unwrap().write_all(scraped.as_bytes()).unwrap();
    let lint = lint.wait_with_output().unwrap();
    assert!(lint.status.success(), "{}", text(&lint.stderr));
    let server = Prometheus::start(&workspace, &daemon);
    let up = until("Prometheus has scraped", || {
        let answer = server.query("up{job=\"lifeboat\"}");
        answer["data"]["result"][0]["value"][1].as_str().map(str::to_owned).filter(|up| up == "1")
    });
    assert_eq!(up, "1");
    let found = server.query("lifeboat_expected_interval_seconds{plan=\"crm\",work=\"backup\"}");
    assert_eq!(found["data"]["result"][0]["value"][1], "86400", "{found}");
    drop(server);

    // A scrape costs no look and no wait: a hundred of them within moments.
    let begun = Instant::now();
    for _ in 0..100 {
        scrape(&daemon);
    }
    println!("100 scrapes took {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(daemon.stop(), Some(0));
}

/// A real server with the shipped scrape configuration.
struct Prometheus {
    child: std::process::Child,
    port: u16,
}

impl Prometheus {
    fn start(workspace: &Workspace, daemon: &Daemon) -> Self {
        let port = free_port();
        let config = packaged("packaging/prometheus/scrape.yml")
            .replace("127.0.0.1:9847", &daemon.address.to_string())
            .replace("/etc/prometheus/lifeboat.token", workspace.path("state/metrics.token").to_str().unwrap())
            .replace("30s", "1s");
        std::fs::write(workspace.path("prometheus.yml"), config).unwrap();
        let child = std::process::Command::new(tool("prometheus"))
            .arg(format!("--config.file={}", workspace.path("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", workspace.path("tsdb").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(std::process::Stdio::null())
            .stderr(std::fs::File::create(workspace.path("prometheus.log")).unwrap())
            .spawn()
            .unwrap();
        Self { child, port }
    }

    /// Null while it is not there yet.
    fn query(&self, query: &str) -> Value {
        let query: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return Value::Null };
        write!(stream, "GET /api/v1/query?query={query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        match Answer::read(&mut stream) {
            Ok(answer) if answer.status == 200 => answer.json(),
            _ => Value::Null,
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A collector of this process: hands on the spans that it is sent.
fn collector() -> (u16, Receiver<Vec<Span>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            while let Ok((head, body)) = request(&mut stream) {
                assert!(head.starts_with("POST /v1/traces HTTP/1.1") && head.to_lowercase().contains("application/x-protobuf"), "{head}");
                let batch = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
                let resource = batch.resource_spans[0].resource.as_ref().unwrap();
                let name = resource.attributes.iter().find(|attribute| attribute.key == "service.name").unwrap();
                assert_eq!(name.value.as_ref().unwrap().value, Some(OtlpValue::StringValue("lifeboat".into())));
                let spans = batch.resource_spans.into_iter().flat_map(|of| of.scope_spans).flat_map(|of| of.spans).collect();
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n").unwrap();
                if sender.send(spans).is_err() {
                    return;
                }
            }
        }
    });
    (port, receiver)
}

fn request(stream: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut byte = [0; 1];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).unwrap();
    let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(|length| length.parse().unwrap()));
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body)?;
    Ok((head, body))
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let value = span.attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()?;
    match value {
        OtlpValue::StringValue(text) => Some(text.clone()),
        OtlpValue::IntValue(number) => Some(number.to_string()),
        other => panic!("{key}: {other:?}"),
    }
}

#[test]
fn a_run_is_a_trace_a_phase_is_a_span_and_a_collector_that_is_away_costs_nothing() {
    let workspace = Workspace::ready("");
    let (port, spans) = collector();
    let traced = |words: &[&str], port: u16| {
        workspace.command(words).arg("--json").env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}")).output().unwrap()
    };
    let output = traced(&["backup", "crm"], port);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let all: Vec<Span> = spans.try_iter().flatten().collect();
    let run = all.iter().find(|span| span.name == "run").unwrap_or_else(|| panic!("{all:?}"));
    let journal = workspace.json(&["run", "history"], 0)["runs"][0].clone();
    assert_eq!(attribute(run, "id").as_deref(), journal["id"].as_str());
    assert_eq!((attribute(run, "plan").as_deref(), attribute(run, "job").as_deref()), (Some("crm"), Some("backup")));
    assert!(run.parent_span_id.is_empty() && run.status.as_ref().is_none_or(|status| status.code != 2), "{run:?}");
    let mut phases: Vec<&Span> = all.iter().filter(|span| span.parent_span_id == run.span_id).collect();
    phases.sort_by_key(|span| span.start_time_unix_nano);
    let named: Vec<&str> = phases.iter().map(|span| span.name.as_str()).collect();
    let expected: Vec<&str> = journal["phases"].as_array().unwrap().iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    assert_eq!(named, expected, "one span for each phase of the journal");
    for (span, phase) in phases.iter().zip(journal["phases"].as_array().unwrap()) {
        assert_eq!(span.trace_id, run.trace_id);
        assert_eq!(attribute(span, "bytes").unwrap(), phase["bytes"].to_string());
        assert!(span.start_time_unix_nano >= run.start_time_unix_nano && span.end_time_unix_nano <= run.end_time_unix_nano);
    }
    let sent = format!("{all:?}");
    assert!(!sent.contains(PASSPHRASE) && !sent.contains(MARKER));

    // Where and why a run failed.
    std::fs::rename(&workspace.made.database, workspace.path("away")).unwrap();
    assert_eq!(traced(&["backup", "crm"], port).status.code(), Some(1));
    let all: Vec<Span> = spans.try_iter().flatten().collect();
    let run = all.iter().find(|span| span.name == "run").unwrap_or_else(|| panic!("{all:?}"));
    let status = run.status.as_ref().unwrap();
    assert!(status.code == 2 && status.message.contains("crm.sqlite"), "{status:?}");
    std::fs::rename(workspace.path("away"), &workspace.made.database).unwrap();

    // Nobody there, and somebody who takes everything and never answers.
    let nobody = free_port();
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    for port in [nobody, hanging.local_addr().unwrap().port()] {
        let begun = Instant::now();
        let output = traced(&["backup", "crm"], port);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    }
    let output = workspace.command(&["backup", "crm"]).env("OTEL_EXPORTER_OTLP_ENDPOINT", "not an address").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("there are no traces"), "{}", text(&output.stderr));
}

#[test]
fn the_service_manager_is_told_ready_alive_and_stopping() {
    let workspace = Workspace::ready("");
    slow_plan(&workspace);
    let socket = UnixDatagram::bind(workspace.path("notify")).unwrap();
    socket.set_read_timeout(Some(http::BOUND)).unwrap();
    let path = workspace.path("notify");
    let daemon = Daemon::start_with(&workspace, |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "3000000");
    });
    let mut told = Vec::new();
    let mut wait_for = |what: &str| {
        until(what, || {
            let mut buffer = [0; 4096];
            let read = socket.recv(&mut buffer).unwrap();
            let message = String::from_utf8(buffer[..read].to_vec()).unwrap();
            let found = message.contains(what);
            told.push(message);
            found.then_some(())
        });
    };
    wait_for("READY=1");
    wait_for("WATCHDOG=1");
    let begun = Instant::now();
    wait_for("WATCHDOG=1");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    started(&daemon, "slow", "backup");
    wait_for("running: backup of slow");
    assert_eq!(daemon.stop(), Some(0));
    wait_for("STOPPING=1");
    assert!(told.iter().filter(|message| message.contains("READY=1")).count() == 1, "{told:?}");
}
