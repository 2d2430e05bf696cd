//! The logical method as a user has it: real servers, the program, a plan; backup, restore to another version, drill, and what must fail.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lifeboat::event::Cancel;
use lifeboat::source::postgres::client::{Connection, Mode};
use lifeboat::source::postgres::conninfo::Host;
use serde_json::Value;
use support::postgres::{
    Cluster, NEWEST, Options, PASSWORD, as_server_user, bin_directory, distribution_version, locale_with_a_comma, wait_until,
};
use tempfile::TempDir;
use workspace::{bare, text};

const MARKER: &str = "planted-marker-71d0aa";
const DATABASE: &str = "Mein CRM é";

/// What a CRM has, and what is hard to bring back.
const FILL: &str = "
    CREATE TYPE mood AS ENUM ('good', 'bad');
    CREATE TABLE customer(id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text, born date, paid numeric(12,2), seen timestamptz, f float8);
    INSERT INTO customer(name, born, paid, seen, f) SELECT 'customer ' || n, date '1970-01-01' + n, n * 1.25, timestamptz '2026-03-29 01:30:00+02' + n * interval '1 hour', n / 3.0::float8
      FROM generate_series(1, 5000) n;
    CREATE TABLE orders(id bigserial PRIMARY KEY, customer int REFERENCES customer, amount numeric(12,2), twice numeric GENERATED ALWAYS AS (amount * 2) STORED);
    INSERT INTO orders(customer, amount) SELECT n % 5000 + 1, n * 1.25 FROM generate_series(1, 20000) n;
    CREATE INDEX orders_by_customer ON orders(customer);
    CREATE TABLE \"Füße \"\"x\"\".y\"(v text, b bytea, a int[], j jsonb, m mood, t text[]);
    INSERT INTO \"Füße \"\"x\"\".y\" VALUES (E'tab\\there\\nline\\\\back\\\\N', '\\x00ff5c0a'::bytea, '{1,NULL,3}', '{\"a\": \"ü\\\\n\"}', 'bad', ARRAY['a,b', NULL, '\"q\"', '\\']),
      (NULL, NULL, NULL, NULL, NULL, NULL), ('\\N', '', '{}', '[]', 'good', '{}'), ('', NULL, NULL, 'null', NULL, NULL), ('\\.', NULL, NULL, NULL, NULL, NULL);
    CREATE SCHEMA \"Sché.ma\"; CREATE TABLE \"Sché.ma\".\"%/..\"(\"a \"\"b\" text, \"c,d\" int); INSERT INTO \"Sché.ma\".\"%/..\" VALUES ('x', 1);
    CREATE TABLE empty(id int); CREATE TABLE nothing(); INSERT INTO nothing DEFAULT VALUES; INSERT INTO nothing DEFAULT VALUES;
    CREATE TABLE nokey(v text); INSERT INTO nokey SELECT 'same' FROM generate_series(1, 100);
    CREATE TABLE parted(d int, v text) PARTITION BY RANGE (d); CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
    CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20) PARTITION BY LIST (v);
    CREATE TABLE parted_2a PARTITION OF parted_2 FOR VALUES IN ('a'); CREATE TABLE parted_2x PARTITION OF parted_2 DEFAULT;
    INSERT INTO parted SELECT n % 20, CASE WHEN n % 3 = 0 THEN 'a' ELSE 'b' END FROM generate_series(1, 1000) n;
    CREATE TABLE hashed(m mood) PARTITION BY HASH (m); CREATE TABLE hashed_0 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1); INSERT INTO hashed VALUES ('good'), ('bad'), ('bad');
    CREATE TABLE parent(a int); CREATE TABLE child(b int) INHERITS (parent); ALTER TABLE parent ADD COLUMN late text;
    INSERT INTO parent VALUES (1, 'p'); INSERT INTO child VALUES (2, 3, 'c');
    CREATE UNLOGGED TABLE scratch(n int); INSERT INTO scratch VALUES (1);
    CREATE MATERIALIZED VIEW zz_sums AS SELECT customer, sum(amount) AS sum FROM orders GROUP BY 1;
    CREATE MATERIALIZED VIEW aa_top AS SELECT max(sum) AS top FROM zz_sums; CREATE UNIQUE INDEX ON zz_sums(customer);
    CREATE VIEW rich AS SELECT * FROM orders WHERE amount > 1000;
    CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.name := 'touched'; RETURN NEW; END $$;
    CREATE TRIGGER touch BEFORE INSERT ON customer FOR EACH ROW EXECUTE FUNCTION touch();
    CREATE SEQUENCE \"Zähler\" START 7; SELECT nextval('\"Zähler\"'), nextval('\"Zähler\"'); CREATE SEQUENCE unused START 5;
    SELECT lo_from_bytea(4711, 'a large object'); SELECT lo_from_bytea(4712, convert_to(repeat('0123456789', 150000), 'UTF8')); SELECT lo_create(4713);
    ALTER TABLE orders OWNER TO clerk; GRANT SELECT ON customer TO clerk; ALTER LARGE OBJECT 4711 OWNER TO clerk; GRANT SELECT ON LARGE OBJECT 4712 TO clerk;
    CREATE TABLE left_account(id int PRIMARY KEY, balance int); CREATE TABLE right_account(id int PRIMARY KEY, balance int);
    INSERT INTO left_account SELECT n, 1000 FROM generate_series(1, 500) n; INSERT INTO right_account SELECT n, 1000 FROM generate_series(1, 500) n;";

/// What tells whether it came back.
const QUESTIONS: [&str; 16] = [
    "SELECT count(*) || md5(string_agg(c::text, '' ORDER BY id)) FROM customer c",
    "SELECT count(*) || md5(string_agg(o::text, '' ORDER BY id)) FROM orders o",
    "SELECT md5(string_agg(coalesce(y::text, '-'), '' ORDER BY y::text)) FROM \"Füße \"\"x\"\".y\" y",
    "SELECT \"a \"\"b\" || \"c,d\" FROM \"Sché.ma\".\"%/..\"",
    "SELECT (SELECT count(*) FROM empty) || '/' || (SELECT count(*) FROM nothing) || '/' || (SELECT count(*) FROM nokey)",
    "SELECT count(*) || md5(string_agg(tableoid::regclass::text || d || v, ',' ORDER BY d, v)) FROM parted",
    "SELECT string_agg(m::text, ',' ORDER BY m) FROM hashed",
    "SELECT string_agg(a || late, ',' ORDER BY a) || (SELECT b FROM child) FROM parent",
    "SELECT count(*) FROM scratch",
    "SELECT top || '/' || (SELECT count(*) FROM zz_sums) FROM aa_top",
    "SELECT nextval('\"Zähler\"') || '/' || nextval('unused') || '/' || nextval(pg_get_serial_sequence('orders', 'id')) || '/' || nextval(pg_get_serial_sequence('customer', 'id'))",
    "SELECT md5(lo_get(4711)) || md5(lo_get(4712)) || length(lo_get(4713))",
    "SELECT string_agg(oid || lomowner::regrole::text || coalesce(lomacl::text, '-'), ',' ORDER BY oid) FROM pg_largeobject_metadata",
    "SELECT relowner::regrole || (SELECT replace(relacl::text, 'arwdDxtm', 'arwdDxt') FROM pg_class WHERE relname = 'customer') FROM pg_class WHERE relname = 'orders'",
    "SELECT count(*) || '/' || (SELECT count(*) FROM pg_constraint WHERE contype = 'f') FROM pg_indexes WHERE schemaname = 'public'",
    "SELECT current_setting('my.setting') || current_setting('search_path') || current_setting('work_mem')",
];

struct World {
    cluster: Arc<Cluster>,
    folder: TempDir,
}

impl World {
    /// A server with a CRM and a repository; `more` stands in the source's section.
    fn new(version: u32, user: &str, more: &str) -> Self {
        Self::with(version, &bin_directory(version), user, more)
    }

    /// `programs`: the folder that the server's are in.
    fn with(version: u32, programs: &Path, user: &str, more: &str) -> Self {
        let cluster = Options::new(version).programs(programs).start();
        cluster.sql(
            "CREATE ROLE clerk LOGIN PASSWORD 'TESTPASSWORD-clerk' VALID UNTIL '2038-01-01'; CREATE ROLE staff; GRANT staff TO clerk; \
            ALTER ROLE clerk SET work_mem = '7MB'; CREATE ROLE keeper LOGIN",
        );
        if version >= 16 {
            // Two grants: by the server, and by the one that it was made for.
            cluster.sql("CREATE ROLE maker CREATEROLE; SET ROLE maker; CREATE ROLE made; GRANT made TO maker");
        }
        cluster.sql(&format!("CREATE DATABASE \"{DATABASE}\""));
        // No target has it.
        let space = cluster.folder().join("space");
        assert!(as_server_user("mkdir").args(["-m", "700"]).arg(&space).status().unwrap().success());
        cluster.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
        cluster.sql(&format!("COMMENT ON DATABASE \"{DATABASE}\" IS 'it''s ours'"));
        cluster.sql(&format!("ALTER DATABASE \"{DATABASE}\" SET my.setting = 'a\\b'' c'; ALTER DATABASE \"{DATABASE}\" SET search_path = \"$user\", public, \"Sché.ma\""));
        cluster.sql("CREATE DATABASE second");
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
        for (name, mode) in [("plans", 0o755), ("state", 0o711)] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let world = Self { cluster: Arc::new(cluster), folder };
        world.sql(DATABASE, FILL);
        world.sql(DATABASE, "ALTER TABLE nokey SET TABLESPACE space; ALTER INDEX orders_by_customer SET TABLESPACE space");
        world.sql(DATABASE, &format!("UPDATE nokey SET v = '{MARKER}' WHERE ctid = '(0,1)'"));
        world.sql("second", "CREATE TABLE t(n int); INSERT INTO t VALUES (1), (2)");
        let plan = format!(
            r#"version = 1
[repository.main]
url = "file://{0}/repository"
passphrase = {{ env = "CRM_PASSPHRASE" }}
[source.crm]
kind = "postgres"
method = "logical"
url = {{ file = "{0}/url" }}
bin_directory = "{1}"
{more}
[plan.crm]
source = "crm"
repository = "main"
[[plan.crm.drill.check]]
name = "customers are there"
sql = "select count(*) from customer"
expect = "= 5000"
database = "{DATABASE}"
"#,
            world.folder.path().display(),
            programs.display(),
        );
        fs::write(world.path("plans/crm.toml"), plan).unwrap();
        let settings = world.cluster.socket_settings();
        let Host::Socket(socket) = &settings.host else { panic!("no socket") };
        fs::write(world.path("url"), format!("host={} port={} user={user} dbname=postgres", socket.display(), settings.port)).unwrap();
        fs::set_permissions(world.path("url"), fs::Permissions::from_mode(0o600)).unwrap();
        world.json(&["repo", "init", "main"], 0);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// With a folder of its own, for one that is loaded without the program.
    fn context(&self) -> lifeboat::source::SourceContext {
        let scratch = self.path("scratch");
        fs::create_dir(&scratch).unwrap();
        lifeboat::source::SourceContext {
            scratch,
            fingerprint_key: [0; 32],
            progress: Arc::new(lifeboat::event::Silent),
            cancel: Cancel::default(),
        }
    }

    fn connect(cluster: &Cluster, database: &str) -> Connection {
        Connection::connect(&cluster.socket_settings(), Mode::Sql { database: Some(database) }, &Cancel::default()).unwrap()
    }

    fn sql(&self, database: &str, sql: &str) {
        Self::connect(&self.cluster, database).execute(sql).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = bare(words);
        command.arg("--plans").arg(self.path("plans")).arg("--state").arg(self.path("state")).arg("--json");
        command.env("PGPASSFILE", self.path("pgpass")).env("CRM_PASSPHRASE", "correct horse battery staple");
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn json(&self, words: &[&str], code: i32) -> Value {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}\n{}", text(&output.stdout), text(&output.stderr));
        assert!(!text(&output.stdout).contains(MARKER) && !text(&output.stderr).contains(MARKER), "rows are told");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{words:?}: {error}: {}", text(&output.stdout)))
    }

    /// For backups without the database that the plan's check asks.
    fn without_check(self) -> Self {
        let plan = fs::read_to_string(self.path("plans/crm.toml")).unwrap();
        fs::write(self.path("plans/crm.toml"), plan.split("[[plan.crm.drill.check]]").next().unwrap()).unwrap();
        self
    }

    /// A URL over TCP, its password in a file.
    fn url(&self, target: &Cluster, database: &str) -> String {
        let escaped = PASSWORD.replace('\\', "\\\\").replace(':', "\\:");
        fs::write(self.path("pgpass"), format!("*:*:*:postgres:{escaped}\n")).unwrap();
        fs::set_permissions(self.path("pgpass"), fs::Permissions::from_mode(0o600)).unwrap();
        format!("postgresql://postgres@127.0.0.1:{}/{database}", target.port)
    }

    /// Money from one table to the other and back, until it is dropped.
    fn writer(&self) -> Writer {
        let (cluster, stop) = (Arc::clone(&self.cluster), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let work = move || {
            let mut sql = Self::connect(&cluster, DATABASE);
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                number += 1;
                let (from, to) = (number % 500 + 1, number * 7 % 500 + 1);
                sql.execute(&format!(
                    "BEGIN; UPDATE left_account SET balance = balance - 10 WHERE id = {from}; UPDATE right_account SET balance = balance + 10 WHERE id = {to}; \
                     INSERT INTO orders(customer, amount) VALUES ({from}, 10); COMMIT"
                ))
                .unwrap();
            }
            number
        };
        Writer { stop, thread: Some(std::thread::spawn(work)) }
    }

    /// Nothing private is left.
    fn is_clean(&self) {
        let left: Vec<String> = fs::read_dir(self.path("state/work/crm"))
            .map(|items| items.map(|item| item.unwrap().file_name().to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        assert!(left.iter().all(|name| !name.starts_with("run-") && !name.starts_with("dead-")), "{left:?}");
    }
}

struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<i32>>,
}

impl Writer {
    fn end(mut self) -> i32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

fn answers(cluster: &Cluster, database: &str) -> Vec<String> {
    let mut sql = World::connect(cluster, database);
    QUESTIONS
        .iter()
        .map(|question| sql.value(question).unwrap_or_else(|error| panic!("{question}: {error:?}")).unwrap_or_default())
        .collect()
}

fn databases(cluster: &Cluster) -> Vec<String> {
    let rows = cluster.connect().query("SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1").unwrap();
    rows.iter().map(|row| row.get(0).unwrap().to_owned()).collect()
}

fn message(answer: &Value) -> String {
    answer["error"].to_string()
}

fn a_story(from: u32, to: u32) {
    let world = World::new(from, "postgres", "");
    let backup = world.json(&["backup", "crm"], 0);
    assert_eq!(backup["consistency"]["crm"]["databases"][DATABASE]["tables"], 17, "{backup}");
    let target = Cluster::start(to);
    let url = world.url(&target, "");
    let report = world.json(&["restore", "crm", "--to", &url, "--yes"], 0);
    assert!(report["notes"].to_string().contains("as backed up"), "{report}");
    assert_eq!(databases(&target), [DATABASE, "postgres", "second"]);
    assert_eq!(answers(&target, DATABASE), answers(&world.cluster, DATABASE));
    let mut sql = World::connect(&target, "postgres");
    let asked = format!("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = '{DATABASE}'");
    assert_eq!(sql.value(&asked).unwrap().unwrap(), "it's ours");
    let role = "SELECT rolpassword || rolvaliduntil::text || pg_has_role('clerk', 'staff', 'member') || (SELECT setconfig::text FROM pg_db_role_setting WHERE setrole = 'clerk'::regrole) FROM pg_authid WHERE rolname = 'clerk'";
    assert_eq!(sql.value(role).unwrap(), world.cluster.connect().value(role).unwrap());
    if from >= 16 {
        let grants = "SELECT string_agg(pg_has_role('maker', 'made', kind)::text, '/') FROM unnest(ARRAY['MEMBER WITH ADMIN OPTION', 'USAGE', 'SET']) kind";
        for cluster in [&*world.cluster, &target] {
            assert_eq!(cluster.value(grants), "true/true/true");
        }
    }
    let mut inside = World::connect(&target, DATABASE);
    inside.execute("INSERT INTO customer(name) VALUES ('x'); INSERT INTO orders(customer, amount) VALUES (5001, 1)").unwrap_err();
    assert_eq!(inside.value("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal").unwrap().unwrap(), "1");
    // What is there is never overwritten.
    let again = world.json(&["restore", "crm", "--to", &url, "--yes"], 2);
    assert!(message(&again).contains("not empty") && message(&again).contains("RENAME"), "{again}");
    world.is_clean();
}

#[test]
fn databases_come_back_in_a_newer_version() {
    a_story(distribution_version(), NEWEST);
}

#[test]
fn databases_come_back_in_their_own_version() {
    a_story(NEWEST, NEWEST);
}

/// On a host without programs of the server's own version.
#[test]
fn definitions_by_newer_programs_come_back_in_the_servers_own_version() {
    let world = World::new(16, "postgres", "");
    let plan = fs::read_to_string(world.path("plans/crm.toml")).unwrap();
    let programs = |version| bin_directory(version).display().to_string();
    fs::write(world.path("plans/crm.toml"), plan.replace(&programs(16), &programs(NEWEST))).unwrap();
    let doctor = world.run(&["doctor", "crm"]);
    assert_eq!(text(&doctor.stdout).matches("newer than the server (16)").count(), 2, "for dumps and drills: {}", text(&doctor.stdout));
    world.json(&["backup", "crm"], 0);
    let target = Cluster::start(16);
    world.json(&["restore", "crm", "--to", &world.url(&target, ""), "--yes"], 0);
    assert_eq!(answers(&target, DATABASE), answers(&world.cluster, DATABASE));
    // What else is refused is not passed over.
    world.sql(DATABASE, "CREATE FUNCTION length_of(text) RETURNS int LANGUAGE internal AS 'textlen'");
    world.json(&["backup", "crm"], 0);
    let target = Cluster::start(16);
    target.sql("CREATE ROLE keeper LOGIN CREATEDB");
    let url = format!("postgresql://keeper@/?host={}&port={}", target.folder().display(), target.port);
    let refused = world.json(&["restore", "crm", "--to", &url, "--yes"], 1);
    assert!(message(&refused).contains("permission denied for language internal"), "{refused}");
    assert_eq!(databases(&target), ["postgres"], "nothing is left");
    world.is_clean();
}

#[test]
fn a_standby_is_backed_up_without_what_is_unlogged() {
    let world = World::new(distribution_version(), "postgres", "databases = [\"second\"]").without_check();
    world.sql(
        "second",
        "CREATE UNLOGGED TABLE jotted(id serial, n int); INSERT INTO jotted(n) VALUES (1), (2); CREATE SEQUENCE kept; SELECT nextval('kept')",
    );
    let standby = Cluster::empty(world.cluster.version);
    let space = |cluster: &Cluster| cluster.folder().join("space").display().to_string();
    world.cluster.run(
        "pg_basebackup",
        [
            format!("--pgdata={}", standby.data().display()),
            format!("--tablespace-mapping={}={}", space(&world.cluster), space(&standby)),
            "--checkpoint=fast".into(),
            "--write-recovery-conf".into(),
            format!("--dbname=host={} port={} user=postgres", world.cluster.folder().display(), world.cluster.port),
        ],
    );
    standby.configure(&[]);
    standby.start_server();
    fs::write(world.path("url"), format!("host={} port={} user=postgres dbname=postgres", standby.folder().display(), standby.port))
        .unwrap();
    let backup = world.json(&["backup", "crm"], 0);
    let warnings = backup["warnings"].to_string();
    for told in ["table public.jotted is unlogged", "sequence public.jotted_id_seq is unlogged"] {
        assert_eq!(warnings.matches(told).count(), 1, "{warnings}");
    }
    let target = Cluster::start(distribution_version());
    world.json(&["restore", "crm", "--to", &world.url(&target, ""), "--yes"], 0);
    let mut sql = World::connect(&target, "second");
    let found = "SELECT (SELECT count(*) FROM t) || '/' || (SELECT count(*) FROM jotted) || '/' || nextval('kept') || '/' || nextval('jotted_id_seq')";
    assert_eq!(sql.value(found).unwrap().unwrap(), "2/0/2/1");
    world.is_clean();
}

#[test]
fn a_drill_loads_and_compares_every_row() {
    let world = World::new(distribution_version(), "postgres", "");
    world.json(&["backup", "crm"], 0);
    let drill = world.json(&["drill", "run", "crm"], 0);
    let load = drill["phases"].as_array().unwrap().iter().find(|phase| phase["name"] == "load").unwrap()["duration_ms"].as_u64().unwrap();
    assert!(load > 0 && drill["recovery_time_ms"].as_u64().unwrap() >= load, "{drill}");
    let plan = world.json(&["restore", "crm", "--to", world.path("files").to_str().unwrap(), "--dry-run"], 0);
    assert!(plan["estimate"]["basis"].as_str().unwrap().contains("with loading it into a server, which is left to you"), "{plan}");
    let checks = drill["checks"].as_array().unwrap();
    let of = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}: {drill}"))["outcome"].clone();
    assert!(checks.iter().all(|check| check["outcome"] == "passed"), "{drill}");
    for name in [
        "everything loaded",
        "customers are there",
        "content of \"Mein CRM é\".public.orders",
        "content of second.public.t",
        "large objects of Mein CRM é",
    ] {
        assert_eq!(of(name), "passed", "{name}");
    }
    world.is_clean();
}

#[test]
fn a_backup_under_load_is_of_one_moment() {
    let world = World::new(distribution_version(), "postgres", "databases = [\"Mein CRM é\"]");
    let writer = world.writer();
    let target = Cluster::start(distribution_version());
    let url = world.url(&target, "back");
    for _ in 0..3 {
        world.json(&["backup", "crm"], 0);
        world.json(&["restore", "crm", "--to", &url, "--yes"], 0);
        let mut sql = World::connect(&target, "back");
        let sums = "SELECT (SELECT sum(balance) FROM left_account) + (SELECT sum(balance) FROM right_account)";
        assert_eq!(sql.value(sums).unwrap().unwrap(), "1000000");
        let orders = "SELECT count(*) - 20000 - (SELECT 500 * 1000 - sum(balance) FROM left_account) / 10 FROM orders";
        assert_eq!(sql.value(orders).unwrap().unwrap(), "0");
        assert_eq!(sql.value("SELECT (nextval('orders_id_seq') > (SELECT max(id) FROM orders))::text").unwrap().unwrap(), "true");
        drop(sql);
        wait_until("sessions to end", || target.connect().execute("DROP DATABASE back").is_ok());
    }
    assert!(writer.end() > 100);
    assert_eq!(databases(&target), ["postgres"], "only what the plan names");
}

#[test]
fn what_may_not_be_read_is_named_and_fails() {
    let world = World::new(distribution_version(), "keeper", "databases = [\"Mein CRM é\"]");
    let refused = world.json(&["backup", "crm"], 2);
    assert!(message(&refused).contains("may not read") && message(&refused).contains("pg_read_all_data"), "{refused}");
    let doctor = world.run(&["doctor", "crm"]);
    assert!(text(&doctor.stdout).contains("may not read"), "{}", text(&doctor.stdout));
    world.sql(DATABASE, "GRANT USAGE ON SCHEMA \"Sché.ma\" TO keeper; GRANT SELECT ON ALL TABLES IN SCHEMA public, \"Sché.ma\" TO keeper; GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO keeper; ALTER TABLE nokey ENABLE ROW LEVEL SECURITY");
    let refused = world.json(&["backup", "crm"], 2);
    assert!(message(&refused).contains("row security would hide rows of public.nokey"), "{refused}");
    world.sql(DATABASE, "ALTER TABLE nokey DISABLE ROW LEVEL SECURITY; GRANT SELECT ON LARGE OBJECT 4711, 4712 TO keeper");
    let refused = world.json(&["backup", "crm"], 1);
    assert!(message(&refused).contains("large-objects/4713"), "{refused}");
    assert!(world.json(&["snapshots", "crm"], 0)["snapshots"].as_array().unwrap().is_empty());
    world.sql(DATABASE, "GRANT SELECT ON LARGE OBJECT 4713 TO keeper");
    // What pg_dump does not show to this role.
    world.sql(DATABASE, "CREATE SUBSCRIPTION far CONNECTION 'dbname=x' PUBLICATION p WITH (connect = false); CREATE FOREIGN DATA WRAPPER w; \
        CREATE SERVER far FOREIGN DATA WRAPPER w; CREATE USER MAPPING FOR clerk SERVER far OPTIONS (password 'x'); CREATE USER MAPPING FOR keeper SERVER far; \
        GRANT USAGE ON FOREIGN SERVER far TO keeper");
    let backup = world.json(&["backup", "crm"], 3);
    let lacking = |report: &Value| -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        report["problems"].as_array().unwrap().iter().map(|problem| (text(&problem["kind"]), text(&problem["object"]))).collect()
    };
    let expected = ["subscription far of database Mein CRM é", "user mapping of clerk for server far of database Mein CRM é"];
    assert_eq!(lacking(&backup), expected.map(|object| ("hidden-definition".to_owned(), object.to_owned())), "{backup}");
    let told = backup["warnings"].to_string();
    assert_eq!(told.matches("pg_dump of database Mein CRM é: subscriptions not dumped").count(), 1, "{told}");
    assert!(told.contains("passwords of roles"), "{told}");
    let doctor = world.run(&["doctor", "crm"]);
    let doctor = text(&doctor.stdout);
    assert!(expected.iter().all(|object| doctor.contains(object)), "{doctor}");
    world.sql(DATABASE, "ALTER SUBSCRIPTION far SET (slot_name = NONE)");
    world.sql(DATABASE, "DROP SUBSCRIPTION far");
    world.sql(DATABASE, "DROP USER MAPPING FOR clerk SERVER far");
    let backup = world.json(&["backup", "crm"], 0);
    assert!(backup["warnings"].to_string().contains("passwords of roles"), "{backup}");
    let target = Cluster::start(distribution_version());
    let url = world.url(&target, "");
    world.json(&["restore", "crm", "--to", &url, "--yes"], 0);
    assert_eq!(answers(&target, DATABASE)[..10], answers(&world.cluster, DATABASE)[..10]);
    world.is_clean();
}

/// `pg_dump` is told what the sessions of the program itself are.
#[test]
fn settings_of_roles_and_databases_change_nothing_of_what_is_backed_up() {
    let world = World::new(distribution_version(), "postgres", "databases = [\"second\"]").without_check();
    world.cluster.sql("CREATE ROLE app");
    world.sql(
        "second",
        "CREATE TABLE kept(id int PRIMARY KEY, owner text); INSERT INTO kept SELECT n, 'owner ' || n FROM generate_series(1, 100) n; \
         ALTER TABLE kept ENABLE ROW LEVEL SECURITY; ALTER TABLE kept FORCE ROW LEVEL SECURITY; CREATE POLICY few ON kept USING (id < 10); \
         CREATE TABLE odd(b bytea DEFAULT '\\x00ff5c'::bytea, f float8 DEFAULT (0.1::float8 + 0.2::float8), g float8 DEFAULT 0.30000000000000004, \
           i interval DEFAULT '-1 day 2 hours 3.5 seconds', t timestamptz DEFAULT '2026-03-04 05:06:07+00'); COMMENT ON TABLE odd IS 'twenty €'; \
         GRANT SELECT ON ALL TABLES IN SCHEMA public TO app; CREATE FOREIGN DATA WRAPPER w; CREATE SERVER far FOREIGN DATA WRAPPER w; \
         CREATE USER MAPPING FOR postgres SERVER far OPTIONS (password 'kept too'); \
         CREATE SUBSCRIPTION s CONNECTION 'dbname=x' PUBLICATION p WITH (connect = false)",
    );
    // Together with what an application may be given.
    for setting in [
        "role = 'app'",
        "row_security = on",
        "default_transaction_read_only = on",
        "statement_timeout = '1ms'",
        "lock_timeout = '1ms'",
        "search_path = nowhere",
        "\"DateStyle\" = 'German'",
        "\"IntervalStyle\" = 'sql_standard'",
        "extra_float_digits = -10",
        "bytea_output = 'escape'",
        "quote_all_identifiers = on",
        "client_min_messages = error",
    ] {
        world.cluster.sql(&format!("ALTER DATABASE second SET {setting}"));
    }
    world.cluster.sql("ALTER ROLE postgres SET client_encoding = 'LATIN1'");
    let backup = world.json(&["backup", "crm"], 0);
    assert!(!backup["warnings"].to_string().contains("not dumped"), "{backup}");
    let target = Cluster::start(distribution_version());
    let url = world.url(&target, "");
    world.json(&["restore", "crm", "--to", &url, "--yes"], 0);
    let questions = [
        "SELECT count(*)::text || md5(string_agg(k::text, '' ORDER BY id)) FROM kept k",
        "SELECT string_agg(umoptions::text, ',') FROM pg_user_mappings",
        "SELECT string_agg(subname || subconninfo, ',') FROM pg_subscription",
        "SELECT string_agg(pg_get_expr(adbin, adrelid), '; ' ORDER BY adnum) FROM pg_attrdef",
        "SELECT obj_description('public.odd'::regclass) || polname FROM pg_policy",
    ];
    let ask = |cluster: &Cluster| {
        let mut sql = World::connect(cluster, "second");
        sql.execute("SET search_path = public; SET bytea_output = hex; SET extra_float_digits = 3; SET DateStyle = ISO; SET IntervalStyle = postgres").unwrap();
        questions.map(|question| sql.value(question).unwrap().unwrap_or_else(|| panic!("nothing: {question}")))
    };
    assert_eq!(ask(&target), ask(&world.cluster));
    assert!(ask(&target)[1].contains("kept too"));
    let drill = world.json(&["drill", "run", "crm"], 0);
    assert_eq!(drill["verdict"], "passed", "{drill}");
    world.is_clean();
}

#[test]
fn a_drill_whose_server_is_killed_is_incomplete() {
    let world = World::new(distribution_version(), "postgres", "databases = [\"second\"]").without_check();
    world.json(&["backup", "crm"], 0);
    let state = world.path("state").display().to_string();
    let is_it = |line: &str| line.contains(&state) && line.contains("config_file=");
    std::thread::scope(|scope| {
        let drill = scope.spawn(|| world.json(&["drill", "run", "crm"], 3));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(100);
        let pid = loop {
            assert!(std::time::Instant::now() < deadline, "no server");
            let all = fs::read_dir("/proc").unwrap().filter_map(|item| item.ok()?.file_name().to_str()?.parse::<i32>().ok());
            let mut found = all.filter(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| is_it(&line)));
            if let Some(pid) = found.next() {
                break pid;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        };
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
        let drill = drill.join().unwrap();
        let told = drill["reasons"].to_string();
        assert!(drill["verdict"] == "incomplete" && told.contains("signal 9") && told.contains("memory"), "{drill}");
    });
    assert_eq!(world.json(&["drill", "run", "crm"], 0)["verdict"], "passed");
    world.is_clean();
}

#[test]
fn a_killed_restore_never_looks_finished() {
    let world = World::new(distribution_version(), "postgres", "databases = [\"Mein CRM é\"]");
    world.sql(DATABASE, "INSERT INTO nokey SELECT repeat('x', 500) FROM generate_series(1, 60000)");
    world.json(&["backup", "crm"], 0);
    let target = Cluster::start(distribution_version());
    let url = world.url(&target, "");
    let mut child = world.command(&["restore", "crm", "--to", &url, "--yes"]).spawn().unwrap();
    wait_until("the load to begin", || databases(&target).iter().any(|name| name.starts_with("lifeboat_restore_")));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(databases(&target).iter().all(|name| name != DATABASE));
    // Killed before it could say more than the name; and one that is another restore's.
    let of = |name: &str| format!("lifeboat_restore_{}_0", &blake3::hash(name.as_bytes()).to_hex()[..16]);
    target.sql(&format!("CREATE DATABASE {}", of(DATABASE)));
    target.sql(&format!("CREATE DATABASE {}", of("another")));
    // Its sessions end by themselves.
    wait_until("sessions to end", || target.value("SELECT count(*) FROM pg_stat_activity WHERE datname LIKE 'lifeboat_restore_%'") == "0");
    let report = world.json(&["restore", "crm", "--to", &url, "--yes"], 0);
    assert!(report["warnings"].to_string().contains("left by a restore that did not end"), "{report}");
    assert_eq!(databases(&target), [DATABASE, &of("another"), "postgres"]);
    assert_eq!(answers(&target, DATABASE), answers(&world.cluster, DATABASE));
    world.is_clean();
}

#[test]
fn a_restore_that_fails_in_the_middle_says_what_is_complete_and_kept() {
    let world = World::new(distribution_version(), "postgres", "databases = [\"one\", \"two\"]").without_check();
    for name in ["one", "two"] {
        world.cluster.sql(&format!("CREATE DATABASE {name}"));
        world.cluster.sql(&format!("COMMENT ON DATABASE {name} IS 'of {name}'"));
        world.sql(name, "CREATE TABLE t(n int); INSERT INTO t VALUES (1)");
    }
    world.json(&["backup", "crm"], 0);
    let target = Cluster::start(distribution_version());
    let url = world.url(&target, "");
    target.sql("CREATE DATABASE two");
    let session = World::connect(&target, "two");
    let restore = ["restore", "crm", "--to", &url, "--yes"];
    let child = world.command(&restore).stdout(std::process::Stdio::piped()).spawn().unwrap();
    // What waits for its name lacks nothing but that.
    let comments = "SELECT coalesce(string_agg(pg_catalog.shobj_description(oid, 'pg_database'), ','), '') FROM pg_database WHERE datname ~ '^(one|lifeboat_restore_.*)$'";
    wait_until("the second database to wait for its name", || matches!(target.value(comments).as_str(), "of one,of two" | "of two,of one"));
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let hint = told["error"]["hint"].as_str().unwrap();
    assert!(
        hint.contains("complete and kept: one;") && hint.contains("DROP DATABASE \"one\"") && !hint.contains("was loaded was removed"),
        "{told}"
    );
    assert_eq!(target.value("SELECT count(*) FROM pg_database WHERE datname ~ '^lifeboat'"), "0");
    assert_eq!(World::connect(&target, "one").value("SELECT count(*) FROM t").unwrap().as_deref(), Some("1"));
    drop(session);
    target.sql("DROP DATABASE \"one\"");
    world.json(&restore, 0);
    assert_eq!(target.value("SELECT count(*) FROM pg_database WHERE datname IN ('one', 'two')"), "2");
}

#[test]
fn a_database_that_takes_no_connections_makes_a_backup_incomplete() {
    let world = World::new(distribution_version(), "postgres", "").without_check();
    world.json(&["backup", "crm"], 0);
    world.cluster.sql("CREATE DATABASE shut");
    world.cluster.sql("ALTER DATABASE shut ALLOW_CONNECTIONS false");
    let backup = world.json(&["backup", "crm"], 3);
    let missing = backup["problems"].as_array().unwrap();
    assert_eq!(missing.len(), 1, "{backup}");
    assert_eq!((missing[0]["object"].as_str(), missing[0]["kind"].as_str()), (Some("database shut"), Some("database-closed")), "{backup}");
    assert!(text(&world.run(&["doctor", "crm"]).stdout).contains("database shut: it is not in the backup"));
    let plan = fs::read_to_string(world.path("plans/crm.toml")).unwrap();
    let with = |databases: &str| {
        fs::write(
            world.path("plans/crm.toml"),
            plan.replace("method = \"logical\"", &format!("method = \"logical\"\ndatabases = {databases}")),
        )
        .unwrap();
    };
    with("[\"postgres\"]");
    world.json(&["backup", "crm"], 0);
    with("[\"shut\"]");
    let refused = world.json(&["backup", "crm"], 2);
    assert!(refused["error"]["hint"].as_str().unwrap().contains("ALLOW_CONNECTIONS true"), "{refused}");
}

#[test]
fn a_lost_session_or_a_killed_run_leaves_no_snapshot() {
    let world = World::new(distribution_version(), "postgres", "read_limit = \"2MiB/s\"");
    world.sql(DATABASE, "INSERT INTO nokey SELECT repeat('x', 500) FROM generate_series(1, 60000)");
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^COPY' AND state = 'active'";
    for kill in [true, false] {
        let mut child =
            world.command(&["backup", "crm"]).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        wait_until("rows to be read", || world.cluster.value(sessions) != "0");
        if kill {
            child.kill().unwrap();
        } else {
            // The leading session waits for the end: without it nothing keeps tables from being altered.
            world.cluster.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'");
        }
        assert_ne!(child.wait().unwrap().code(), Some(0));
        assert!(world.json(&["snapshots", "crm"], 0)["snapshots"].as_array().unwrap().is_empty());
        wait_until("sessions to end", || world.cluster.value(sessions) == "0");
    }
    world.json(&["backup", "crm"], 0);
    world.is_clean();
}

#[test]
fn rows_that_are_not_those_of_the_backup_are_refused() {
    let world = World::new(distribution_version(), "postgres", "databases = [\"Mein CRM é\"]");
    world.json(&["backup", "crm"], 0);
    let tree = world.path("tree");
    world.json(&["restore", "crm", "--to", tree.to_str().unwrap(), "--yes"], 0);
    let target = Cluster::start(distribution_version());
    let context = |name: &str| {
        let scratch = world.path(name);
        fs::create_dir(&scratch).unwrap();
        lifeboat::source::SourceContext {
            scratch,
            fingerprint_key: [0; 32],
            progress: Arc::new(lifeboat::event::Silent),
            cancel: Cancel::default(),
        }
    };
    let settings = target.socket_settings();
    let Host::Socket(socket) = &settings.host else { panic!("no socket") };
    let url = format!("host={} port={} user=postgres", socket.display(), settings.port);
    let load = |name: &str| {
        let target = lifeboat::source::postgres::logical::Target::parse(&url).unwrap();
        lifeboat::source::postgres::logical::load(&tree, &target, Some(&bin_directory(distribution_version())), &context(name))
    };
    let file = tree.join("Mein%20CRM%20%C3%A9/data/public.nokey.copy");
    let whole = fs::read(&file).unwrap();
    // One row less in as many bytes, then fewer bytes.
    let end = whole.iter().position(|byte| *byte == b'\n').unwrap();
    for (name, damaged) in [("one", [&whole[..end], b"x", &whole[end + 1..]].concat()), ("two", whole[end + 1..].to_vec())] {
        fs::write(&file, damaged).unwrap();
        let error = load(name).unwrap_err();
        assert!(matches!(error.kind(), lifeboat::error::Kind::Differs | lifeboat::error::Kind::Damaged), "{error:?}");
        assert_eq!(databases(&target), ["postgres"], "nothing is left");
    }
    fs::write(&file, &whole).unwrap();
    let loaded = load("three").unwrap();
    assert_eq!(loaded.databases, [DATABASE]);
}

/// Rows that are not as UTF-8 has them: an encoding, and the bytes of a text in it.
const ENCODED: [(&str, &str); 4] =
    [("LATIN1", "\\xe9"), ("WIN1252", "\\xe9\\x81"), ("SQL_ASCII", "\\xff\\xe9"), ("MULE_INTERNAL", "\\x81\\xe9")];

#[test]
fn every_encoding_comes_back_byte_for_byte() {
    let world = World::new(distribution_version(), "postgres", "databases = [\"latin1\", \"win1252\", \"sql_ascii\", \"mule_internal\"]")
        .without_check();
    let names = ENCODED.map(|(encoding, _)| encoding.to_lowercase());
    for ((encoding, bytes), name) in ENCODED.iter().zip(&names) {
        world.cluster.sql(&format!("CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"));
        world.sql(name, &format!("CREATE TABLE t(v text DEFAULT E'{bytes}'); INSERT INTO t VALUES (E'{bytes}'), ('a')"));
    }
    world.json(&["backup", "crm"], 0);
    let drill = world.json(&["drill", "run", "crm"], 0);
    let outcome =
        |name: &str| drill["checks"].as_array().unwrap().iter().find(|check| check["name"] == name).map(|check| check["outcome"].clone());
    assert_eq!(outcome("everything loaded").unwrap(), "passed", "{drill}");
    for name in &names {
        assert_eq!(outcome(&format!("content of {name}.public.t")).unwrap(), "passed", "{drill}");
    }
    let target = Cluster::start(distribution_version());
    let url = world.url(&target, "");
    world.json(&["restore", "crm", "--to", &url, "--yes"], 0);
    let asked = "SELECT string_agg(md5(v), ',' ORDER BY md5(v)) || (SELECT md5(pg_get_expr(adbin, adrelid)) FROM pg_attrdef) FROM t";
    let of = |cluster: &Cluster, name: &str| World::connect(cluster, name).value(asked).unwrap().unwrap();
    for name in &names {
        assert_eq!(of(&target, name), of(&world.cluster, name), "{name}");
    }
    // As backups were before rows kept their encoding: in UTF-8.
    let tree = world.path("tree");
    world.json(&["restore", "crm", "--to", tree.to_str().unwrap(), "--yes"], 0);
    let mut contents: Value = serde_json::from_slice(&fs::read(tree.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(contents["format"], 2);
    contents["format"] = 1.into();
    let latin1 = contents["databases"].as_array_mut().unwrap().iter().find(|database| database["name"] == "latin1").unwrap().clone();
    let mut latin1 = latin1;
    assert_eq!(latin1.as_object_mut().unwrap().remove("rows_encoding").unwrap(), "LATIN1");
    fs::write(tree.join("latin1/data/public.t.copy"), "é\na\n").unwrap();
    latin1["tables"][0]["bytes"] = 5.into();
    contents["databases"] = serde_json::json!([latin1]);
    fs::write(tree.join("manifest.json"), contents.to_string()).unwrap();
    target.sql("DROP DATABASE latin1");
    let context = world.context();
    let settings = target.socket_settings();
    let Host::Socket(socket) = &settings.host else { panic!("no socket") };
    let place =
        lifeboat::source::postgres::logical::Target::parse(&format!("host={} port={} user=postgres", socket.display(), settings.port))
            .unwrap();
    lifeboat::source::postgres::logical::load(&tree, &place, Some(&bin_directory(distribution_version())), &context).unwrap();
    assert_eq!(of(&target, "latin1"), of(&world.cluster, "latin1"));
    world.is_clean();
}

/// A copy of a server's programs (its folder with them is second) with an extension that keeps rows of the user beside its own.
fn programs_with_extension(version: u32) -> (TempDir, PathBuf) {
    let programs = fs::canonicalize(bin_directory(version)).unwrap();
    let ancestors: Vec<&Path> = programs.ancestors().skip(1).take(3).collect();
    let [installed, package, shelf] = ancestors.as_slice() else { panic!("{}", programs.display()) };
    let copy = tempfile::tempdir().unwrap();
    fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The programs look for their libraries beside the package.
    for beside in fs::read_dir(shelf).unwrap().map(|beside| beside.unwrap()) {
        if beside.path() != *package {
            std::os::unix::fs::symlink(beside.path(), copy.path().join(beside.file_name())).unwrap();
        }
    }
    let mine = copy.path().join(installed.strip_prefix(shelf).unwrap());
    fs::create_dir_all(&mine).unwrap();
    for part in ["bin", "lib", "share"] {
        assert!(Command::new("cp").arg("-r").arg(installed.join(part)).arg(&mine).status().unwrap().success());
    }
    let folder = mine.join("share/postgresql/extension");
    fs::write(folder.join("settings.control"), "default_version = '1.0'\nrelocatable = true\n").unwrap();
    let script = "CREATE TABLE setting(name text PRIMARY KEY, value text, own bool NOT NULL DEFAULT false); INSERT INTO setting VALUES ('depth', '3', true);\n\
        CREATE TABLE journal(n int);\n\
        CREATE TABLE whole(id int PRIMARY KEY); CREATE TABLE part(id int REFERENCES whole, v text);\n\
        CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.v := 'stamped'; RETURN NEW; END $$;\n\
        CREATE TRIGGER stamp BEFORE INSERT ON part FOR EACH ROW EXECUTE FUNCTION stamp();\n\
        SELECT pg_extension_config_dump('whole', ''); SELECT pg_extension_config_dump('part', '');\n\
        SELECT pg_extension_config_dump('setting', 'WHERE NOT own'); SELECT pg_extension_config_dump('journal', '');\n";
    fs::write(folder.join("settings--1.0.sql"), script).unwrap();
    (copy, mine.join("bin"))
}

#[test]
fn rows_of_the_user_in_tables_of_extensions_are_proven() {
    let (_copy, programs) = programs_with_extension(NEWEST);
    let world = World::with(NEWEST, &programs, "postgres", "databases = [\"second\"]").without_check();
    world.sql(
        "second",
        "CREATE EXTENSION settings; INSERT INTO setting VALUES ('width', 'ours'); INSERT INTO journal SELECT generate_series(1, 10); \
         INSERT INTO whole SELECT generate_series(1, 100000); INSERT INTO part VALUES (100000, 'x'); UPDATE part SET v = 'ours'",
    );
    world.json(&["backup", "crm"], 0);
    let drill = world.json(&["drill", "run", "crm"], 0);
    let check = |name: &str| {
        let checks = drill["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}: {drill}")).clone()
    };
    for (name, rows) in [("setting", "1 rows"), ("journal", "10 rows"), ("whole", "100000 rows"), ("part", "1 rows"), ("t", "2 rows")] {
        let check = check(&format!("content of second.public.{name}"));
        assert!(check["outcome"] == "passed" && check["actual"].as_str().unwrap().starts_with(rows), "{check}");
    }
}

/// What a source runs by itself: event triggers of every kind, on views that read each other or draw from a sequence.
const BY_ITSELF: &str = "
    CREATE TABLE ddl_log(name text, tag text, place text DEFAULT current_database());
    CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.ddl_log VALUES ('note', tg_tag); END $$;
    CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no DDL here'; END $$;
    CREATE MATERIALIZED VIEW zz_count AS SELECT count(*) AS n FROM t;
    CREATE MATERIALIZED VIEW mm_count AS SELECT n + 1 AS n FROM zz_count; CREATE MATERIALIZED VIEW aa_count AS SELECT n + 1 AS n FROM mm_count;
    CREATE MATERIALIZED VIEW unfilled AS SELECT n FROM t WITH NO DATA;
    CREATE SEQUENCE drawn; CREATE MATERIALIZED VIEW numbered AS SELECT nextval('drawn') AS id, n FROM t;
    CREATE EVENT TRIGGER \"Nöte\" ON ddl_command_end EXECUTE FUNCTION note();
    CREATE EVENT TRIGGER note_always ON ddl_command_end EXECUTE FUNCTION note(); ALTER EVENT TRIGGER note_always ENABLE ALWAYS;
    CREATE EVENT TRIGGER note_replica ON ddl_command_start EXECUTE FUNCTION note(); ALTER EVENT TRIGGER note_replica ENABLE REPLICA;
    CREATE EVENT TRIGGER asleep ON ddl_command_start EXECUTE FUNCTION refuse(); ALTER EVENT TRIGGER asleep DISABLE;
    CREATE TABLE noted(n int);";

#[test]
fn what_a_source_runs_by_itself_runs_neither_in_a_restore_nor_in_a_drill() {
    let version = distribution_version();
    let world = World::new(version, "postgres", "databases = [\"second\"]").without_check();
    world.sql("second", BY_ITSELF);
    let has_login_triggers = version >= 17;
    if has_login_triggers {
        let login = "CREATE FUNCTION come() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.ddl_log VALUES ('come', tg_event); END $$; \
            CREATE EVENT TRIGGER come ON login EXECUTE FUNCTION come()";
        world.sql("second", login);
    }
    world.sql(
        "second",
        "CREATE EVENT TRIGGER refuse ON ddl_command_start EXECUTE FUNCTION refuse(); ALTER EVENT TRIGGER refuse ENABLE ALWAYS",
    );
    world.json(&["backup", "crm"], 0);
    let target = Cluster::start(version);
    let url = world.url(&target, "");
    world.json(&["restore", "crm", "--to", &url, "--yes"], 0);
    let open = |cluster: &Cluster| {
        let mut settings = cluster.socket_settings();
        settings.options = has_login_triggers.then(|| "-c event_triggers=off".to_owned());
        Connection::connect(&settings, Mode::Sql { database: Some("second") }, &Cancel::default()).unwrap()
    };
    for asked in [
        "SELECT count(*) || '/' || count(*) FILTER (WHERE name = 'note') FROM ddl_log WHERE name <> 'come'",
        "SELECT string_agg(evtname::text || evtenabled::text, ',' ORDER BY evtname) FROM pg_event_trigger",
        "SELECT aa_count.n || '/' || zz_count.n FROM aa_count, zz_count",
        "SELECT string_agg(relname::text || relispopulated::text, ',' ORDER BY relname) FROM pg_class WHERE relkind = 'm'",
        "SELECT nextval('drawn')",
    ] {
        let [source, restored] = [&*world.cluster, &target].map(|cluster| open(cluster).value(asked).unwrap());
        assert!(source.is_some() && source == restored, "{asked}: {source:?}, {restored:?}");
    }
    let elsewhere = "SELECT count(*) FROM ddl_log WHERE place <> 'second'";
    assert_eq!(open(&target).value(elsewhere).unwrap().unwrap(), "0", "nothing ran before the database had its name");
    let drill = world.json(&["drill", "run", "crm"], 0);
    assert!(drill["checks"].as_array().unwrap().iter().all(|check| check["outcome"] == "passed"), "{drill}");
    world.is_clean();
}

#[test]
fn what_the_host_of_a_drill_lacks_is_no_damage() {
    let (_copy, programs) = programs_with_extension(NEWEST);
    let world = World::with(NEWEST, &programs, "postgres", "databases = [\"second\"]").without_check();
    let loaded = |code: i32, told: &str| {
        world.json(&["backup", "crm"], 0);
        let drill = world.json(&["drill", "run", "crm"], code);
        let check = drill["checks"].as_array().unwrap().iter().find(|check| check["name"] == "everything loaded").unwrap();
        assert_eq!(check["outcome"], if code == 0 { "passed" } else { "skipped" }, "{drill}");
        assert!(check["actual"].as_str().unwrap().contains(told), "{drill}");
    };
    // What cannot be filled anew, as a view over another server: a restore is incomplete too.
    world.sql("second", "CREATE MATERIALIZED VIEW broken AS SELECT 1 / n AS n FROM t; INSERT INTO t VALUES (0)");
    loaded(3, "materialized view public.broken is empty");
    let target = Cluster::start(NEWEST);
    let url = world.url(&target, "");
    world.json(&["restore", "crm", "--to", &url, "--yes"], 3);
    world.sql("second", "DROP MATERIALIZED VIEW broken");
    // As a locale that the operating system of the source had.
    world.sql("second", "SET allow_system_table_mods = on; CREATE COLLATION pg_catalog.\"de_XX\" (locale = 'C'); CREATE TABLE german(v text COLLATE pg_catalog.\"de_XX\")");
    loaded(3, "collation \"pg_catalog.de_XX\" for encoding \"UTF8\" does not exist");
    world.sql("second", "DROP TABLE german");
    // An extension.
    world.sql("second", "CREATE EXTENSION settings");
    loaded(0, "");
    let plan = fs::read_to_string(world.path("plans/crm.toml")).unwrap();
    let plain = bin_directory(NEWEST).display().to_string();
    fs::write(world.path("plans/crm.toml"), plan.replace(&programs.display().to_string(), &plain)).unwrap();
    loaded(3, "extension \"settings\" is not available");
    let snapshots = world.json(&["snapshots", "crm"], 0);
    let is_sound = |snapshot: &Value| snapshot["damaged"].is_null();
    assert!(snapshots["snapshots"].as_array().unwrap().iter().all(is_sound), "{snapshots}");
    target.sql("DROP DATABASE second");
    let refused = world.json(&["restore", "crm", "--to", &url, "--yes"], 1);
    assert!(message(&refused).contains("extension \\\"settings\\\" is not available"), "{refused}");
    assert_eq!(databases(&target), ["postgres"], "nothing is left");
    world.is_clean();
}

#[test]
fn a_locale_that_a_target_lacks_is_named() {
    let world = World::new(distribution_version(), "postgres", "databases = [\"second\"]").without_check();
    world.json(&["backup", "crm"], 0);
    let tree = world.path("tree");
    world.json(&["restore", "crm", "--to", tree.to_str().unwrap(), "--yes"], 0);
    let mut contents: Value = serde_json::from_slice(&fs::read(tree.join("manifest.json")).unwrap()).unwrap();
    contents["databases"][0]["collate"] = "de_XX.UTF-8".into();
    fs::write(tree.join("manifest.json"), contents.to_string()).unwrap();
    let target = Cluster::start(distribution_version());
    let place = format!("host={} port={} user=postgres", target.folder().display(), target.port);
    let place = lifeboat::source::postgres::logical::Target::parse(&place).unwrap();
    let context = world.context();
    let error =
        lifeboat::source::postgres::logical::load(&tree, &place, Some(&bin_directory(distribution_version())), &context).unwrap_err();
    assert!(format!("{error:?}").contains("de_XX.UTF-8") && error.hint_text().unwrap().contains("locale -a"), "{error:?}");
    assert_eq!(databases(&target), ["postgres"], "nothing is left");
}

/// The most memory that a program needed, in MiB, and how it ended.
fn peak_mib(command: &mut Command) -> (u64, Output) {
    let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = 0;
            while !ended.load(Ordering::Relaxed) {
                let text = fs::read_to_string(&status).unwrap_or_default();
                let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.parse::<u64>().ok());
                peak = peak.max(kib.unwrap_or(0) / 1024);
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            peak
        });
        let output = child.wait_with_output().unwrap();
        ended.store(true, Ordering::Relaxed);
        (watch.join().unwrap(), output)
    })
}

#[test]
fn memory_does_not_follow_the_widest_row() {
    let mib = std::env::var("LIFEBOAT_TEST_WIDE_MIB").map_or(96, |text| text.parse().unwrap());
    let world = World::new(distribution_version(), "postgres", "databases = [\"second\"]").without_check();
    world.sql("second", "CREATE TABLE wide(b bytea)");
    world.json(&["backup", "crm"], 0);
    let (without, _) = peak_mib(&mut world.command(&["backup", "crm"]));
    world.sql("second", &format!("INSERT INTO wide SELECT convert_to(repeat('0123456789abcde ', {mib} * 65536), 'UTF8')"));
    let target = Cluster::start(distribution_version());
    let url = world.url(&target, "");
    for words in [&["backup", "crm"][..], &["restore", "crm", "--to", &url, "--yes"], &["drill", "run", "crm"]] {
        let (peak, output) = peak_mib(&mut world.command(words));
        eprintln!("{}: {peak} MiB, {without} MiB without the row", words[0]);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}\n{}", text(&output.stdout), text(&output.stderr));
        assert!(words[0] != "drill" || text(&output.stdout).contains("content of second.public.wide"), "{}", text(&output.stdout));
        // The row is of twice as many MiB as text.
        assert!(peak > 0 && peak < without + mib, "{words:?}: {peak} MiB, {without} MiB without a row of {mib} MiB");
    }
    let asked = "SELECT md5(b) FROM wide";
    assert_eq!(World::connect(&target, "second").value(asked).unwrap(), World::connect(&world.cluster, "second").value(asked).unwrap());
}

/// What one transaction does while a backup waits for a table that it has locked: what must be there before, the transaction, and what tells whether a restore has
/// all of it from one moment.
const MEANWHILE: [[&str; 3]; 8] = [
    [
        "CREATE TABLE orders(id int); INSERT INTO orders SELECT generate_series(1, 1000)",
        "CREATE TABLE orders_new(id int); INSERT INTO orders_new SELECT id FROM orders; ALTER TABLE orders RENAME TO orders_old; ALTER TABLE orders_new RENAME TO orders",
        "SELECT (SELECT count(*) FROM orders) || '/' || (SELECT count(*) FROM orders_old)",
    ],
    [
        "CREATE TABLE a(v text); INSERT INTO a VALUES ('a'); COMMENT ON TABLE a IS 'a'; CREATE TABLE b(v text); INSERT INTO b VALUES ('b'); COMMENT ON TABLE b IS 'b'",
        "ALTER TABLE a RENAME TO c; ALTER TABLE b RENAME TO a; ALTER TABLE c RENAME TO b",
        "SELECT (SELECT v FROM a) || obj_description('a'::regclass) || (SELECT v FROM b) || obj_description('b'::regclass)",
    ],
    [
        "CREATE SCHEMA aside; CREATE TABLE moved(n int); INSERT INTO moved SELECT generate_series(1, 10)",
        "CREATE TABLE aside.next AS SELECT n FROM moved; ALTER TABLE moved SET SCHEMA aside; ALTER TABLE aside.next RENAME TO mov; ALTER TABLE aside.mov SET SCHEMA public; \
         ALTER TABLE mov RENAME TO moved",
        "SELECT (SELECT count(*) FROM moved) || '/' || (SELECT count(*) FROM aside.moved)",
    ],
    [
        "CREATE TABLE again(n int); INSERT INTO again SELECT generate_series(1, 10)",
        "CREATE TABLE again_2 AS SELECT n FROM again; DROP TABLE again; ALTER TABLE again_2 RENAME TO again",
        "SELECT count(*)::text FROM again",
    ],
    // Of what no lock keeps anybody from, while a table holds the backup up.
    [
        "CREATE TABLE held(n int); CREATE FUNCTION number() RETURNS int LANGUAGE sql AS 'SELECT 7'; CREATE TABLE numbered(n int DEFAULT number())",
        "LOCK TABLE held; ALTER FUNCTION number() RENAME TO number_since",
        "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 'numbered'::regclass",
    ],
    [
        "CREATE TYPE state AS ENUM ('new', 'done'); CREATE TABLE task(s state DEFAULT 'new'); INSERT INTO task DEFAULT VALUES",
        "LOCK TABLE held; ALTER TYPE state RENAME VALUE 'new' TO 'open'",
        "SELECT s || pg_get_expr(adbin, adrelid) FROM task, pg_attrdef WHERE adrelid = 'task'::regclass",
    ],
    [
        "CREATE TABLE emptied(n int); INSERT INTO emptied VALUES (1)",
        "TRUNCATE emptied; CREATE ROLE late; CREATE TABLE of_late(n int); ALTER TABLE of_late OWNER TO late; GRANT late TO clerk",
        "SELECT relowner::regrole || pg_has_role('clerk', 'late', 'member')::text FROM pg_class WHERE relname = 'of_late'",
    ],
    [
        "CREATE ROLE passing; GRANT SELECT ON held TO passing",
        "LOCK TABLE held; REVOKE ALL ON held FROM passing; DROP ROLE passing",
        "SELECT count(*)::text FROM pg_class, aclexplode(coalesce(relacl, acldefault('r', relowner))) WHERE relname = 'held'",
    ],
];

#[test]
fn what_gets_another_name_while_a_backup_begins_is_of_one_moment() {
    let world = World::new(distribution_version(), "postgres", "databases = [\"second\"]").without_check();
    let target = Cluster::start(distribution_version());
    let url = world.url(&target, "");
    for [before, meanwhile, question] in MEANWHILE {
        world.sql("second", before);
        let mut other = World::connect(&world.cluster, "second");
        other.execute(&format!("BEGIN; {meanwhile}")).unwrap();
        let backup = world.command(&["backup", "crm"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'second' AND wait_event_type = 'Lock'";
        wait_until("the backup to wait", || world.cluster.value(waiting) != "0");
        other.execute("COMMIT").unwrap();
        let backup = backup.wait_with_output().unwrap();
        assert_eq!(backup.status.code(), Some(0), "{meanwhile}: {}", text(&backup.stdout));
        world.json(&["restore", "crm", "--to", &url, "--yes"], 0);
        let [source, restored] = [&*world.cluster, &target].map(|cluster| World::connect(cluster, "second").value(question).unwrap());
        assert!(source.is_some() && source == restored, "{meanwhile}: {source:?}, {restored:?}");
        wait_until("sessions to end", || target.connect().execute("DROP DATABASE second").is_ok());
    }
    world.is_clean();
}

#[test]
fn what_is_altered_while_rows_are_read_is_of_one_moment_or_fails() {
    let world = World::new(distribution_version(), "postgres", "databases = [\"second\"]\nread_limit = \"2MiB/s\"").without_check();
    let mut fill = "CREATE TABLE big(v text); INSERT INTO big SELECT repeat('x', 1000) FROM generate_series(1, 24000); \
        CREATE SEQUENCE loose START 5; CREATE SEQUENCE counted; SELECT setval('counted', 100); \
        CREATE TYPE state AS ENUM ('new', 'done'); CREATE TYPE pair AS (a int, b int); CREATE SCHEMA blue; CREATE SCHEMA green"
        .to_owned();
    for number in 10..40 {
        for schema in ["blue", "green"] {
            fill = format!(
                "{fill}; CREATE TABLE {schema}.t{number}(v text, s state DEFAULT 'new', p pair DEFAULT '(1,2)'); INSERT INTO {schema}.t{number} VALUES ('{schema}')"
            );
        }
    }
    world.sql("second", &fill);
    // While the large table is read, and behind the definitions, of which the leading session has asked whether they changed; most small tables come behind the large one.
    let read = "SELECT EXISTS (SELECT FROM pg_stat_progress_copy WHERE datname = 'second') AND EXISTS (SELECT FROM pg_stat_activity \
        WHERE datname = 'second' AND state = 'idle in transaction' AND query ~ 'xmax' AND state_change < now() - interval '1 second')";
    let backup_while = |alter: &dyn Fn()| -> Output {
        let child =
            world.command(&["backup", "crm"]).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        let (process, mut ended) = (child.id().to_string(), false);
        let dumps = || Command::new("pgrep").args(["-P", &process, "pg_dump"]).output().unwrap().status.success();
        wait_until("rows to be read", || {
            ended = !PathBuf::from(format!("/proc/{process}/exe")).exists();
            ended || !dumps() && world.cluster.value(read) == "t"
        });
        if !ended {
            alter();
        }
        let output = child.wait_with_output().unwrap();
        assert!(!ended, "the backup ended early: {}\n{}", text(&output.stdout), text(&output.stderr));
        output
    };
    // Somebody who waits for a table is behind the backup, whose streams are not behind him.
    let waiting = std::cell::Cell::new(None);
    let output = backup_while(&|| {
        world.sql("second", "DROP SEQUENCE loose; ALTER SEQUENCE counted RESTART WITH 1");
        let cluster = Arc::clone(&world.cluster);
        waiting.set(Some(std::thread::spawn(move || World::connect(&cluster, "second").execute("TRUNCATE green.t39, green.t38").unwrap())));
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^TRUNCATE' AND wait_event_type = 'Lock'";
        wait_until("somebody to wait", || world.cluster.value(waits) == "1");
    });
    assert_eq!(output.status.code(), Some(0), "{}\n{}", text(&output.stdout), text(&output.stderr));
    waiting.take().unwrap().join().unwrap();
    assert_eq!(World::connect(&world.cluster, "second").value("SELECT count(*) FROM green.t39").unwrap().unwrap(), "0");
    let target = Cluster::start(distribution_version());
    world.json(&["restore", "crm", "--to", &world.url(&target, ""), "--yes"], 0);
    let asked = "SELECT (SELECT v FROM green.t39) || (SELECT v FROM green.t38) || nextval('loose') || '/' || nextval('counted')";
    assert_eq!(World::connect(&target, "second").value(asked).unwrap().unwrap(), "greengreen5/101");
    // What cannot be of one moment any more.
    for (alter, told) in [
        (
            "BEGIN; ALTER SCHEMA blue RENAME TO red; ALTER SCHEMA green RENAME TO blue; ALTER SCHEMA red RENAME TO green; COMMIT",
            "its schema was renamed",
        ),
        ("ALTER TYPE state RENAME VALUE 'new' TO 'open'", "labels of type state changed"),
        ("ALTER TYPE pair ADD ATTRIBUTE c int", "attributes of type public.pair changed"),
    ] {
        let output = backup_while(&|| world.sql("second", alter));
        assert_eq!(output.status.code(), Some(11), "{alter}: {}\n{}", text(&output.stdout), text(&output.stderr));
        assert!(text(&output.stdout).contains(told), "{alter}: {}", text(&output.stdout));
    }
    world.is_clean();
}

#[test]
fn amounts_of_money_in_definitions_are_what_they_were() {
    let world = World::new(distribution_version(), "postgres", "databases = [\"second\"]").without_check();
    let locales = locale_with_a_comma();
    world.cluster.stop_server();
    world.cluster.start_server_with(&[("LOCPATH", locales.path())]);
    world.cluster.sql("ALTER SYSTEM SET lc_monetary = 'comma'");
    world.cluster.sql("SELECT pg_reload_conf()");
    wait_until("the setting to be in force", || world.cluster.value("SHOW lc_monetary") == "comma");
    world.sql(
        "second",
        "CREATE TABLE pay(amount money DEFAULT '12,34', CHECK (amount < '99,50'::money)); INSERT INTO pay DEFAULT VALUES; \
         CREATE TABLE part(amount money) PARTITION BY RANGE (amount); CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM ('0') TO ('99,50'); \
         INSERT INTO part VALUES ('98,76')",
    );
    let amounts = |cluster: &Cluster, database: &str| {
        let mut sql = World::connect(cluster, database);
        sql.execute("SET lc_monetary = 'C'").unwrap();
        let asked = "SELECT (SELECT amount FROM pay)::text || pg_get_expr(adbin, adrelid) || (SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'pay'::regclass) \
            || (SELECT pg_get_expr(relpartbound, oid) || amount FROM pg_class, part WHERE relname = 'part_1') FROM pg_attrdef";
        sql.value(asked).unwrap().unwrap()
    };
    let right = amounts(&world.cluster, "second");
    assert!(right.contains("$12.34'") && right.contains("'$99.50'"), "{right}");
    world.json(&["backup", "crm"], 0);
    // Into a server that writes them otherwise, and into one that writes them as the source.
    let target = Cluster::start(distribution_version());
    let url = world.url(&target, "");
    world.json(&["restore", "crm", "--to", &url, "--yes"], 0);
    assert_eq!(amounts(&target, "second"), right);
    let own = world.url(&world.cluster, "copy");
    world.json(&["restore", "crm", "--to", &own, "--yes"], 0);
    assert_eq!(amounts(&world.cluster, "copy"), right);
    let drill = world.json(&["drill", "run", "crm"], 0);
    assert_eq!(drill["verdict"], "passed", "{drill}");
    // As snapshots were that did not say it.
    let tree = world.path("tree");
    world.json(&["restore", "crm", "--to", tree.to_str().unwrap(), "--yes"], 0);
    let mut contents: Value = serde_json::from_slice(&fs::read(tree.join("manifest.json")).unwrap()).unwrap();
    assert_eq!((contents["format"].as_u64(), contents["databases"][0]["lc_monetary"].as_str()), (Some(3), Some("C")));
    contents["format"] = 1.into();
    contents["databases"][0].as_object_mut().unwrap().remove("lc_monetary");
    fs::write(tree.join("manifest.json"), contents.to_string()).unwrap();
    wait_until("sessions to end", || target.connect().execute("DROP DATABASE second").is_ok());
    let context = world.context();
    let place = format!("host={} port={} user=postgres", target.folder().display(), target.port);
    let place = lifeboat::source::postgres::logical::Target::parse(&place).unwrap();
    let loaded = lifeboat::source::postgres::logical::load(&tree, &place, Some(&bin_directory(distribution_version())), &context).unwrap();
    assert!(loaded.lacking.iter().any(|told| told.contains("type money")), "{:?}", loaded.lacking);
    // Where there is none, older programs read the snapshot too.
    world.sql("second", "DROP TABLE pay, part");
    world.json(&["backup", "crm"], 0);
    let plain = world.path("plain");
    world.json(&["restore", "crm", "--to", plain.to_str().unwrap(), "--yes"], 0);
    let contents: Value = serde_json::from_slice(&fs::read(plain.join("manifest.json")).unwrap()).unwrap();
    assert_eq!((contents["format"].as_u64(), contents["databases"][0].get("lc_monetary")), (Some(1), None));
}

#[test]
fn privileges_and_memberships_come_back_or_are_told() {
    let world = World::new(distribution_version(), "postgres", "").without_check();
    world.cluster.sql("CREATE ROLE app LOGIN; CREATE ROLE app_ro; GRANT app_ro TO app; CREATE ROLE app_admin; GRANT app_admin TO app");
    world
        .cluster
        .sql("REVOKE ALL ON DATABASE second FROM postgres; GRANT CONNECT ON DATABASE second TO app; ALTER ROLE ALL SET my.everybody = '1'");
    world.cluster.sql("CREATE DATABASE shelf IS_TEMPLATE true");
    world.sql(
        "second",
        "SELECT lo_create(99); REVOKE ALL ON LARGE OBJECT 99 FROM postgres; GRANT SELECT ON LARGE OBJECT 99 TO app; SELECT lo_create(100); ALTER LARGE OBJECT 100 OWNER TO app; \
         REVOKE UPDATE ON LARGE OBJECT 100 FROM app",
    );
    let backup = world.json(&["backup", "crm"], 0);
    let warnings = backup["warnings"].to_string();
    for told in ["database shelf is a template", "ALTER ROLE ALL SET) are not in the backup: my.everybody"] {
        assert_eq!(warnings.matches(told).count(), 1, "{warnings}");
    }
    let target = Cluster::start(distribution_version());
    let url = world.url(&target, "");
    // As a managed server has the one that logs in before there is anything for it.
    target.sql("CREATE ROLE app LOGIN");
    world.json(&["restore", "crm", "--to", &url, "--yes"], 0);
    assert_eq!(
        target.value("SELECT pg_has_role('app', 'app_ro', 'member')::text || pg_has_role('app', 'app_admin', 'member')"),
        "truetrue"
    );
    for asked in [
        "SELECT datacl::text FROM pg_database WHERE datname = 'second'",
        "SELECT string_agg(oid || coalesce(lomacl::text, '-'), ',' ORDER BY oid) FROM pg_largeobject_metadata",
    ] {
        let [source, restored] = [&*world.cluster, &target].map(|cluster| World::connect(cluster, "second").value(asked).unwrap());
        assert!(source.is_some() && source == restored, "{asked}: {source:?}, {restored:?}");
    }
    let drill = world.json(&["drill", "run", "crm"], 0);
    assert_eq!(drill["verdict"], "passed", "{drill}");
    target.sql("REVOKE app_admin FROM app");
    wait_until("sessions to end", || target.connect().execute("DROP DATABASE second").is_ok());
    target.sql(&format!("DROP DATABASE \"{DATABASE}\""));
    let report = world.json(&["restore", "crm", "--to", &url, "--yes"], 3);
    assert!(report.to_string().contains("without: app in app_admin"), "{report}");
    // A function that finds nothing without the source's search_path.
    world.sql(
        "second",
        "CREATE TABLE allowed(v int); INSERT INTO allowed VALUES (1); CREATE FUNCTION is_allowed(int) RETURNS bool LANGUAGE plpgsql AS \
         $$ BEGIN RETURN EXISTS (SELECT FROM allowed WHERE v = $1); END $$; CREATE TABLE checked(v int CHECK (is_allowed(v))); INSERT INTO checked VALUES (1)",
    );
    let plan = fs::read_to_string(world.path("plans/crm.toml")).unwrap();
    let with = |database: &str| {
        let plan = plan.replace("method = \"logical\"", &format!("method = \"logical\"\ndatabases = [\"{database}\"]"));
        fs::write(world.path("plans/crm.toml"), plan).unwrap();
    };
    with("second");
    world.json(&["backup", "crm"], 0);
    let url = world.url(&target, "another");
    let refused = world.json(&["restore", "crm", "--to", &url, "--yes"], 1);
    assert!(refused["error"]["hint"].as_str().unwrap().contains("search_path"), "{refused}");
    with("shelf");
    let refused = world.json(&["backup", "crm"], 2);
    assert!(refused["error"]["hint"].as_str().unwrap().contains("IS_TEMPLATE false"), "{refused}");
}

#[test]
fn a_limit_of_connections_is_told_before_it_is_met() {
    let world = World::new(distribution_version(), "keeper", "databases = [\"second\"]").without_check();
    world.cluster.sql("GRANT pg_read_all_data TO keeper");
    let fill = |number: i32| {
        format!("CREATE TABLE t{number}(v text); INSERT INTO t{number} SELECT repeat('x', 1000) FROM generate_series(1, 500)")
    };
    world.sql("second", &(0..40).map(fill).collect::<Vec<_>>().join("; "));
    let doctor = || text(&world.run(&["doctor", "crm"]).stdout);
    for (limited, told) in [
        ("ALTER DATABASE second CONNECTION LIMIT", "sessions in database second, whose limit is 3"),
        ("ALTER ROLE keeper CONNECTION LIMIT", "the limit of role keeper is 3"),
    ] {
        world.cluster.sql(&format!("{limited} 3"));
        assert!(doctor().contains(told), "{}", doctor());
        let refused = world.run(&["backup", "crm"]);
        assert_ne!(refused.status.code(), Some(0));
        assert!(text(&refused.stdout).contains("may have are taken: ALTER"), "{}", text(&refused.stdout));
        // As many as it says.
        world.cluster.sql(&format!("{limited} 6"));
        assert!(!doctor().contains("whose limit is") && !doctor().contains("the limit of role"), "{}", doctor());
        wait_until("sessions to end", || world.cluster.value("SELECT count(*) FROM pg_stat_activity WHERE datname = 'second'") == "0");
        world.json(&["backup", "crm"], 0);
        world.cluster.sql(&format!("{limited} -1"));
    }
}
