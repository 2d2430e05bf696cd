//! `restore --only` of a PostgreSQL source: a table or a database of a snapshot, into another running server or a file.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/postgres_world.rs"]
mod postgres_world;
mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt as _;

use lifeboat::event::Cancel;
use lifeboat::source::postgres::client::{Connection, Mode};
use postgres_world::{World, assert_nowhere};
use serde_json::Value;
use support::postgres::{Cluster, NEWEST, Options, PASSWORD, as_server_user, bin_directory, distribution_version};
use workspace::text;

const MARKER: &str = "planted-marker-93be11";

/// A server with two databases and a snapshot of it.
struct Dropped {
    cluster: Cluster,
    world: World,
}

impl Deref for Dropped {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Dropped {
    fn new(version: u32) -> Self {
        let mut options = Options::new(version).setting("max_replication_slots", "20");
        if version >= 18 {
            options = options.setting("max_active_replication_origins", "20");
        }
        let cluster = options.start();
        cluster.sql("CREATE ROLE clerk");
        // As a subscriber has them, more than a server has room for by itself.
        cluster.sql("SELECT pg_replication_origin_create('o' || n) FROM generate_series(1, 12) n");
        cluster.sql("SELECT pg_replication_origin_advance('o' || n, '0/1') FROM generate_series(1, 12) n");
        // No target has it.
        let space = cluster.folder().join("space");
        assert!(as_server_user("mkdir").args(["-m", "700"]).arg(&space).status().unwrap().success());
        cluster.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
        cluster.sql("CREATE DATABASE \"Mein CRM\"");
        cluster.sql("CREATE DATABASE empty");
        let fill = "CREATE TYPE mood AS ENUM ('good', 'bad');
             CREATE TABLE customer(id int PRIMARY KEY, name text);
             INSERT INTO customer SELECT n, 'customer ' || n FROM generate_series(1, 500) n;
             CREATE TABLE orders(id bigserial PRIMARY KEY, customer int REFERENCES customer, amount numeric(12,2));
             INSERT INTO orders(customer, amount) SELECT n % 500 + 1, n * 1.25 FROM generate_series(1, 3000) n;
             CREATE INDEX orders_by_customer ON orders(customer); ALTER TABLE orders OWNER TO clerk; ALTER TABLE orders SET TABLESPACE space;
             CREATE MATERIALIZED VIEW unfilled AS SELECT * FROM customer WITH NO DATA; CREATE MATERIALIZED VIEW filled AS SELECT * FROM customer;
             CREATE TABLE moods(m mood); INSERT INTO moods VALUES ('good');
             CREATE SCHEMA \"Füße\"; CREATE TABLE \"Füße\".\"A \"\"b\"\".*$é\"(v text);
             INSERT INTO \"Füße\".\"A \"\"b\"\".*$é\" VALUES ('ä'), (NULL), ('ß');
             CREATE TABLE \"Füße\".\"A x\"(v text);
             CREATE TABLE \"Füße\".customer(id int);
             CREATE TABLE parted(d int) PARTITION BY RANGE (d); CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
             CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20); INSERT INTO parted SELECT generate_series(0, 19);
             CREATE VIEW rich AS SELECT * FROM orders WHERE amount > 1000;
             SELECT lo_from_bytea(0, 'a large object')";
        let mut connection = connect(&cluster, "Mein CRM");
        connection.execute(fill).unwrap();
        connection.execute(&format!("UPDATE customer SET name = '{MARKER}' WHERE id = 7")).unwrap();
        drop(connection);
        let world = World::new(&cluster, "crm", "");
        world.json(&["backup", "crm"], 0);
        // What is restored is the snapshot's.
        connect(&cluster, "Mein CRM").execute("DELETE FROM orders; DROP TABLE orders CASCADE").unwrap();
        Self { cluster, world }
    }

    /// Restores these parts and proves that nothing private is left, whatever came of it.
    fn restore(&self, only: &[&str], to: &str, code: i32) -> Value {
        let mut words = vec!["restore", "crm", "--to", to, "--yes"];
        only.iter().for_each(|part| words.extend(["--only", part]));
        let answer = self.json(&words, code);
        let work = self.path("state/work/crm");
        let left: Vec<String> = fs::read_dir(&work)
            .map(|items| items.map(|item| item.unwrap().file_name().to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        assert!(left.iter().all(|name| !name.starts_with("run-") && !name.starts_with("dead-")), "{left:?}");
        let running = std::process::Command::new("sh").args(["-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]).output().unwrap();
        assert!(!text(&running.stdout).contains(work.to_str().unwrap()), "a private server is left");
        answer
    }

    /// A URL over TCP to a database of another server, its password in a file.
    fn url(&self, target: &Cluster, database: &str) -> String {
        let escaped = PASSWORD.replace('\\', "\\\\").replace(':', "\\:");
        self.say_secret("pgpass", &format!("*:*:*:postgres:{escaped}\n"));
        format!("postgresql://postgres@127.0.0.1:{}/{}", target.port, database.replace(' ', "%20"))
    }
}

fn connect(cluster: &Cluster, database: &str) -> Connection {
    Connection::connect(&cluster.socket_settings(), Mode::Sql { database: Some(database) }, &Cancel::default()).unwrap()
}

fn value_in(cluster: &Cluster, database: &str, sql: &str) -> String {
    connect(cluster, database).value(sql).unwrap().unwrap_or_default()
}

fn message(answer: &Value) -> String {
    answer["error"].to_string()
}

fn rows(answer: &Value, table: &str) -> u64 {
    let tables = answer["tables"].as_array().unwrap();
    tables.iter().find(|one| one["table"] == table).unwrap_or_else(|| panic!("{table}: {answer}"))["rows"].as_u64().unwrap()
}

#[test]
fn tables_go_into_a_running_server() {
    let world = Dropped::new(distribution_version());
    let target = Cluster::start(distribution_version());
    target.sql("CREATE DATABASE back");
    let url = world.url(&target, "back");

    // A dropped table, alone: its foreign key leads nowhere, its owner is not there.
    let answer = world.restore(&["Mein CRM/orders"], &url, 0);
    assert_eq!(rows(&answer, "public.orders"), 3000);
    let warnings = answer["warnings"].to_string();
    assert!(warnings.contains("orders_customer_fkey") && warnings.contains("no role clerk"), "{answer}");
    assert_eq!(value_in(&target, "back", "SELECT count(*) || ' ' || sum(amount) FROM orders"), "3000 5626875.00");
    assert_eq!(value_in(&target, "back", "SELECT nextval('orders_id_seq')"), "3001", "its sequence came with it");
    assert_eq!(value_in(&target, "back", "SELECT count(*) FROM pg_indexes WHERE tablename = 'orders'"), "2");

    // Once more: it is in the way, and what is there stays.
    let refused = message(&world.restore(&["Mein CRM/orders", "Mein CRM/public.customer"], &url, 2));
    assert!(refused.contains("public.orders already") && refused.contains("nothing was loaded"), "{refused}");
    assert_eq!(value_in(&target, "back", "SELECT count(*) FROM pg_class WHERE relname = 'customer'"), "0");

    // Names that need quoting, in a schema that is not there yet; not its neighbours, which an unquoted pattern would fit.
    let answer = world.restore(&["Mein CRM/Füße.\"A \"\"b\"\".*$é\""], &url, 0);
    assert_eq!(rows(&answer, "Füße.A \"b\".*$é"), 3);
    assert_eq!(value_in(&target, "back", "SELECT count(v) || '/' || count(*) FROM \"Füße\".\"A \"\"b\"\".*$é\""), "2/3");
    assert_eq!(
        value_in(&target, "back", "SELECT count(*) FROM pg_class WHERE relnamespace = '\"Füße\"'::regnamespace AND relkind = 'r'"),
        "1"
    );

    // A partitioned table comes with its partitions.
    let answer = world.restore(&["Mein CRM/parted"], &url, 0);
    assert_eq!((rows(&answer, "public.parted_1"), rows(&answer, "public.parted_2")), (10, 10));
    assert_eq!(value_in(&target, "back", "SELECT count(*) FROM parted"), "20");

    // With an owner that is there it keeps it, and back into the very server that lost it.
    let settings = world.cluster.socket_settings();
    let lifeboat::source::postgres::conninfo::Host::Socket(socket) = &settings.host else { panic!("no socket") };
    let own = format!("postgresql://postgres@/Mein%20CRM?host={}&port={}", socket.display(), settings.port);
    world.restore(&["Mein CRM/orders"], &own, 0);
    let back = "SELECT tableowner || ' ' || (SELECT count(*) FROM orders) || ' ' || (SELECT count(*) FROM pg_constraint WHERE conname = 'orders_customer_fkey') FROM pg_tables WHERE tablename = 'orders'";
    assert_eq!(value_in(&world.cluster, "Mein CRM", back), "clerk 3000 1");
}

#[test]
fn what_cannot_be_loaded_leaves_nothing() {
    let world = Dropped::new(distribution_version());
    let target = Cluster::start(distribution_version());
    target.sql("CREATE DATABASE back");
    let url = world.url(&target, "back");
    let tables = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE nspname IN ('public', 'Füße')";

    let mistyped = message(&world.restore(&["Mein CRM/ordrs"], &url, 2));
    assert!(mistyped.contains("no table ordrs") && mistyped.contains("did you mean public.orders?"), "{mistyped}");
    let mistyped = message(&world.restore(&["Mein CRN/orders"], &url, 2));
    assert!(mistyped.contains("no database") && mistyped.contains("did you mean Mein CRM?"), "{mistyped}");
    let vague = message(&world.restore(&["Mein CRM/customer"], &url, 2));
    assert!(vague.contains("several schemas") && vague.contains("public.customer"), "{vague}");
    // Its type is not in the target: one transaction, so the table before it is not there either, nor a schema that was made for it.
    let failed = message(&world.restore(&["Mein CRM/Füße.A x", "Mein CRM/moods"], &url, 1));
    assert!(failed.contains("mood") && failed.contains("does not exist"), "{failed}");
    assert_eq!(value_in(&target, "back", tables), "0");
    assert_eq!(value_in(&target, "back", "SELECT count(*) FROM pg_namespace WHERE nspname = 'Füße'"), "0");

    let nowhere = message(&world.restore(&["Mein CRM"], &world.url(&target, "nowhere"), 2));
    assert!(nowhere.contains("no such database"), "{nowhere}");
    let shown = world.run(&["restore", "crm", "--to", "postgresql://postgres:hush-hush@127.0.0.1/x", "--only", "Mein CRM", "--yes"]);
    assert_eq!(shown.status.code(), Some(2));
    assert!(!format!("{}{}", text(&shown.stdout), text(&shown.stderr)).contains("hush-hush"));
    let whole = message(&world.json(&["restore", "crm", "--to", &url, "--yes"], 2));
    assert!(whole.contains("--only DATABASE"), "{whole}");
    let dry = world.json(&["restore", "crm", "--to", &url, "--only", "Mein CRM/ordrs", "--dry-run"], 0);
    assert!(dry["steps"].to_string().contains("pg_dump") && dry["warnings"].to_string().contains("did you mean public.orders?"), "{dry}");
    assert_eq!(value_in(&target, "back", tables), "0");
    assert_nowhere(&world.path("state"), MARKER);
}

#[test]
fn a_database_goes_into_a_newer_server() {
    let world = Dropped::new(distribution_version());
    let target = Cluster::start(NEWEST);
    target.sql("CREATE DATABASE back");
    target.sql("CREATE DATABASE again");
    target.sql("CREATE ROLE clerk");
    let answer = world.restore(&["Mein CRM"], &world.url(&target, "back"), 0);
    assert_eq!((rows(&answer, "public.customer"), rows(&answer, "public.filled")), (500, 500));
    let views = "SELECT string_agg(matviewname || ' ' || ispopulated, ', ' ORDER BY matviewname) FROM pg_matviews";
    assert_eq!(value_in(&target, "back", views), "filled true, unfilled false");
    assert_eq!(answer["warnings"], serde_json::json!([]), "{answer}");
    assert_eq!(value_in(&target, "back", "SELECT tableowner FROM pg_tables WHERE tablename = 'orders'"), "clerk");
    assert_eq!(value_in(&target, "back", "SELECT count(*) FROM rich"), "2200");
    assert_eq!(value_in(&target, "back", "SELECT count(*) FROM pg_largeobject_metadata"), "1");
    let name = format!("SELECT count(*) FROM customer WHERE name = '{MARKER}'");
    assert_eq!(value_in(&target, "back", &name), "1");
    let refused = message(&world.restore(&["Mein CRM"], &world.url(&target, "back"), 2));
    assert!(refused.contains("already") && refused.contains("more"), "{refused}");

    // A dump of a newer version does not fit an older server.
    let newest = Dropped::new(NEWEST);
    let older = message(&newest.restore(&["Mein CRM/orders"], &newest.url(&world.cluster, "empty"), 2));
    assert!(older.contains(&format!("it is PostgreSQL {}", distribution_version())), "{older}");
    let answer = newest.restore(&["Mein CRM/orders"], &newest.url(&target, "again"), 0);
    assert_eq!(rows(&answer, "public.orders"), 3000);
}

#[test]
fn a_file_holds_the_dump() {
    let world = Dropped::new(distribution_version());
    let file = world.path("orders.dump");
    let answer = world.restore(&["Mein CRM/orders", "Mein CRM/moods"], file.to_str().unwrap(), 0);
    assert_eq!((rows(&answer, "public.orders"), rows(&answer, "public.moods")), (3000, 1));
    assert!(answer["notes"].to_string().contains("pg_restore --single-transaction"), "{answer}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let listed =
        std::process::Command::new(bin_directory(distribution_version()).join("pg_restore")).arg("--list").arg(&file).output().unwrap();
    let listed = text(&listed.stdout);
    assert!(
        listed.contains("TABLE DATA public orders")
            && listed.contains("TABLE DATA public moods")
            && !listed.contains("TABLE public customer"),
        "{listed}"
    );
    let refused = message(&world.restore(&["Mein CRM/orders"], file.to_str().unwrap(), 2));
    assert!(refused.contains("something is there"), "{refused}");
    let beside: Vec<_> = fs::read_dir(world.path("")).unwrap().map(|item| item.unwrap().file_name()).collect();
    assert!(beside.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{beside:?}");
}

#[test]
fn what_row_security_hides_is_loaded_and_told_as_not_counted() {
    let cluster = Cluster::start(distribution_version());
    cluster.sql("CREATE TABLE open AS SELECT n FROM generate_series(1, 30) n");
    cluster.sql("CREATE TABLE shut AS SELECT n FROM generate_series(1, 20) n; ALTER TABLE shut FORCE ROW LEVEL SECURITY");
    cluster.sql("CREATE POLICY few ON shut USING (n < 5); ALTER TABLE shut ENABLE ROW LEVEL SECURITY");
    let world = World::new(&cluster, "crm", "");
    world.json(&["backup", "crm"], 0);
    let target = Cluster::start(distribution_version());
    target.sql("CREATE ROLE plain LOGIN");
    target.sql("CREATE DATABASE back OWNER plain");
    let world = Dropped { cluster, world };
    let url = format!("postgresql://plain@/back?host={}&port={}", target.folder().display(), target.port);
    let answer = world.restore(&["postgres/open", "postgres/shut"], &url, 3);
    assert_eq!((rows(&answer, "public.open"), rows(&answer, "public.shut")), (30, 20), "{answer}");
    assert_eq!(answer["incomplete"], true, "{answer}");
    let warnings = answer["warnings"].to_string();
    assert!(warnings.contains("table public.shut was loaded and not counted") && warnings.contains("20 were taken out"), "{answer}");
    assert!(!warnings.contains("public.open"), "{answer}");
    assert_eq!(value_in(&target, "back", "SELECT (SELECT count(*) FROM open) || '/' || (SELECT count(*) FROM shut)"), "30/20");
    // Who sees all of them counts them.
    target.sql("ALTER ROLE plain BYPASSRLS");
    connect(&target, "back").execute("DROP TABLE open, shut").unwrap();
    let answer = world.restore(&["postgres/shut"], &url, 0);
    assert!(!answer["warnings"].to_string().contains("not counted"), "{answer}");
}
