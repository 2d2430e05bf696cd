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
use support::postgres::{Cluster, NEWEST, Options, PASSWORD, as_server_user, bin_directory, distribution_version, locale_with_a_comma};
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

    /// A server with a database `crm` in which this was done, and a snapshot of it.
    fn filled(options: Options, fill: &str) -> Self {
        let cluster = options.start();
        cluster.sql("CREATE DATABASE crm");
        connect(&cluster, "crm").execute(fill).unwrap();
        let world = World::new(&cluster, "crm", "");
        world.json(&["backup", "crm"], 0);
        Self { cluster, world }
    }

    /// A URL of a database of the very server that was backed up.
    fn own(&self, database: &str) -> String {
        format!(
            "postgresql://postgres@/{}?host={}&port={}",
            database.replace(' ', "%20"),
            self.cluster.folder().display(),
            self.cluster.port
        )
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
    let answer = world.restore(&["Mein CRM/orders"], &world.own("Mein CRM"), 3);
    assert!(
        answer["warnings"].to_string().contains("view public.rich, which read what was loaded, is not in the target: CREATE VIEW"),
        "{answer}"
    );
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

#[test]
fn amounts_of_money_and_arrays_come_back_as_they_were() {
    let locales = locale_with_a_comma();
    let options = Options::new(distribution_version()).locales(locales.path()).setting("lc_monetary", "comma");
    let fill = "CREATE TABLE pay(id int, amount money DEFAULT '12,34', words text[]);
        INSERT INTO pay VALUES (1, 12.34::numeric::money, ARRAY[NULL, 'NULL', 'x']), (2, 99.50::numeric::money, '{}');
        CREATE TABLE plain(id int); INSERT INTO plain VALUES (1)";
    let world = Dropped::filled(options, fill);
    assert_eq!(value_in(&world.cluster, "crm", "SELECT amount FROM pay WHERE id = 1"), "$ 12,34", "the locale is not in force");
    for database in ["single", "whole", "hand"] {
        world.cluster.sql(&format!("CREATE DATABASE {database}"));
        world.cluster.sql(&format!("ALTER DATABASE {database} SET array_nulls = off"));
    }
    let right = |database: &str| {
        let amounts = "SELECT string_agg(amount::numeric::text, ' ' ORDER BY id) || ' ' || count(*) FILTER (WHERE words[1] IS NULL AND words[2] = 'NULL') FROM pay";
        assert_eq!(value_in(&world.cluster, database, amounts), "12.34 99.50 1", "{database}");
        connect(&world.cluster, database).execute("INSERT INTO pay(id) VALUES (3)").unwrap();
        assert_eq!(value_in(&world.cluster, database, "SELECT amount::numeric FROM pay WHERE id = 3"), "12.34", "{database}");
    };
    world.restore(&["crm/pay"], &world.own("single"), 0);
    right("single");
    world.restore(&["crm"], &world.own("whole"), 0);
    right("whole");

    // By hand, with the settings that the note names.
    let file = world.path("pay.dump");
    let answer = world.restore(&["crm/pay"], file.to_str().unwrap(), 0);
    let notes = answer["notes"].to_string();
    let (_, options) = notes.split_once("PGOPTIONS='").unwrap_or_else(|| panic!("{answer}"));
    let load = std::process::Command::new(bin_directory(distribution_version()).join("pg_restore"))
        .env("PGOPTIONS", options.split_once('\'').unwrap().0)
        .args(["--single-transaction", "--exit-on-error", "-U", "postgres", "-d", "hand", "-h"])
        .arg(world.cluster.folder())
        .args(["-p", &world.cluster.port.to_string()])
        .arg(&file)
        .output()
        .unwrap();
    assert!(load.status.success(), "{}", text(&load.stderr));
    right("hand");

    // What reads an amount while a view is filled, reads it as C writes it.
    connect(&world.cluster, "crm").execute("CREATE MATERIALIZED VIEW said AS SELECT amount::text FROM pay").unwrap();
    world.json(&["backup", "crm"], 0);
    world.cluster.sql("CREATE DATABASE viewed");
    let answer = world.restore(&["crm"], &world.own("viewed"), 3);
    assert!(answer["warnings"].to_string().contains("REFRESH MATERIALIZED VIEW public.said"), "{answer}");

    // A session that does not take the settings, as behind a pooler.
    let target = Cluster::start(NEWEST);
    target.sql("CREATE DATABASE back");
    let otherwise = "CREATE FUNCTION otherwise() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM set_config(''array_nulls'', ''off'', false); END';
        CREATE EVENT TRIGGER otherwise ON login EXECUTE FUNCTION otherwise()";
    connect(&target, "back").execute(otherwise).unwrap();
    let refused = message(&world.restore(&["crm/plain"], &world.url(&target, "back"), 2));
    assert!(refused.contains("do not take the settings") && refused.contains("pooler"), "{refused}");
    assert_eq!(value_in(&target, "back", "SELECT count(*) FROM pg_class WHERE relname = 'plain'"), "0");
}

#[test]
fn what_inherits_comes_with_its_table() {
    let fill = "CREATE TABLE log(id int); CREATE TABLE log_2025() INHERITS (log); CREATE TABLE log_2026() INHERITS (log); CREATE TABLE log_2026_a() INHERITS (log_2026);
        INSERT INTO log_2025 SELECT generate_series(1, 400); INSERT INTO log_2026 SELECT generate_series(1, 300); INSERT INTO log_2026_a SELECT generate_series(1, 200);
        CREATE TABLE one(a int); CREATE TABLE other(b int); CREATE TABLE of_both() INHERITS (one, other); INSERT INTO of_both VALUES (1, 2)";
    let world = Dropped::filled(Options::new(distribution_version()), fill);
    let target = Cluster::start(distribution_version());
    target.sql("CREATE DATABASE back");
    target.sql("CREATE DATABASE empty");
    let url = world.url(&target, "back");
    let answer = world.restore(&["crm/log"], &url, 0);
    assert_eq!(value_in(&target, "back", "SELECT count(*) FROM log"), "900");
    assert_eq!((rows(&answer, "public.log"), rows(&answer, "public.log_2025"), rows(&answer, "public.log_2026_a")), (0, 400, 200));
    world.restore(&["crm/one", "crm/other"], &url, 0);
    assert_eq!(value_in(&target, "back", "SELECT a || ' ' || (SELECT b FROM other) FROM one"), "1 2");

    // Alone it would be made from what is not there.
    let empty = world.url(&target, "empty");
    let refused = message(&world.restore(&["crm/log_2025"], &empty, 2));
    assert!(refused.contains("public.log_2025 inherits from public.log") && refused.contains("name public.log too"), "{refused}");
    let refused = message(&world.restore(&["crm/one"], &empty, 2));
    assert!(refused.contains("public.of_both inherits from public.other"), "{refused}");
    assert_eq!(value_in(&target, "empty", "SELECT count(*) FROM pg_class WHERE relname IN ('log_2025', 'one')"), "0");
    let file = world.path("log.dump");
    let told = world.restore(&["crm/log_2025"], file.to_str().unwrap(), 3);
    assert!(told["warnings"].to_string().contains("inherits from public.log, which must be where"), "{told}");
}

#[test]
fn a_partition_comes_alone_with_what_attaches_it() {
    let fill = "CREATE SCHEMA sales; CREATE TABLE sales.ev(d int PRIMARY KEY, t text) PARTITION BY RANGE (d); CREATE INDEX ON sales.ev(t);
        CREATE TABLE sales.ev_25 PARTITION OF sales.ev FOR VALUES FROM (0) TO (10);
        CREATE TABLE sales.ev_26 PARTITION OF sales.ev FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (d);
        CREATE TABLE sales.\"ev 26 a\" PARTITION OF sales.ev_26 FOR VALUES FROM (10) TO (15);
        CREATE TABLE sales.\"ev 26\" PARTITION OF sales.ev_26 FOR VALUES FROM (15) TO (20); INSERT INTO sales.ev SELECT generate_series(0, 19)";
    let world = Dropped::filled(Options::new(distribution_version()), fill);
    let target = Cluster::start(distribution_version());
    target.sql("CREATE DATABASE back");
    let url = world.url(&target, "back");
    let answer = world.restore(&["crm/sales.ev_26"], &url, 3);
    assert_eq!((rows(&answer, "sales.ev 26 a"), rows(&answer, "sales.ev 26")), (5, 5), "{answer}");
    connect(&target, "back").execute("DROP TABLE sales.ev_26").unwrap();

    // A partition into its own database, where the spoilt one stands aside.
    let spoil = "CREATE SCHEMA aside; DELETE FROM sales.ev_26; ALTER TABLE sales.ev_26 SET SCHEMA aside; ALTER TABLE sales.\"ev 26 a\" SET SCHEMA aside";
    connect(&world.cluster, "crm").execute(spoil).unwrap();
    let refused = message(&world.restore(&["crm/sales.ev_26"], &world.own("crm"), 2));
    assert!(refused.contains("sales.ev 26 already") && refused.contains("SET SCHEMA aside"), "{refused}");
    connect(&world.cluster, "crm").execute("ALTER TABLE sales.\"ev 26\" RENAME TO spoilt").unwrap();
    let refused = message(&world.restore(&["crm/sales.ev_26"], &world.own("crm"), 2));
    assert!(refused.contains("sales.ev 26_pkey"), "its index is in the way, too: {refused}");
    connect(&world.cluster, "crm").execute("ALTER TABLE sales.spoilt SET SCHEMA aside").unwrap();
    let answer = world.restore(&["crm/sales.ev_26"], &world.own("crm"), 3);
    assert_eq!((rows(&answer, "sales.ev 26 a"), rows(&answer, "sales.ev 26")), (5, 5), "{answer}");
    let warnings = answer["warnings"].as_array().unwrap();
    let attach = warnings.iter().find_map(|one| Some(one.as_str()?.split_once("to attach it: ")?.1)).unwrap_or_else(|| panic!("{answer}"));
    assert_eq!(attach, "ALTER TABLE sales.ev ATTACH PARTITION sales.ev_26 FOR VALUES FROM (10) TO (20)");
    assert_eq!(value_in(&world.cluster, "crm", "SELECT count(*) FROM sales.ev"), "10");
    let attach = format!("ALTER TABLE sales.ev DETACH PARTITION aside.ev_26; {attach}");
    connect(&world.cluster, "crm").execute(&attach).unwrap();
    assert_eq!(value_in(&world.cluster, "crm", "SELECT count(*) FROM sales.ev"), "20");
    let whole = "SELECT bool_and(indisvalid) FROM pg_index WHERE indrelid = 'sales.ev'::regclass";
    assert_eq!(value_in(&world.cluster, "crm", whole), "t");
    // A partitioned table has no fingerprint and is none the worse for it.
    let dry = world.json(&["restore", "crm", "--to", &url, "--only", "crm/sales.ev", "--dry-run"], 0);
    assert!(!dry["warnings"].to_string().contains("did you mean"), "{dry}");
    let answer = world.restore(&["crm/sales.ev"], &url, 0);
    assert!(!answer["warnings"].to_string().contains("ATTACH"), "{answer}");
    assert_eq!(value_in(&target, "back", "SELECT count(*) FROM sales.ev"), "20");
}

#[test]
fn roles_that_a_part_does_not_need_are_not_missed() {
    let fill = "CREATE ROLE clerk; CREATE ROLE app; CREATE ROLE reader; CREATE ROLE backup;
        GRANT EXECUTE ON FUNCTION pg_switch_wal() TO backup; GRANT SELECT ON pg_authid TO backup; GRANT USAGE ON SCHEMA public TO app;
        CREATE TABLE t AS SELECT n FROM generate_series(1, 30) n; ALTER TABLE t OWNER TO clerk; GRANT SELECT ON t TO app;
        CREATE TABLE shown(n int, secret int); ALTER TABLE shown OWNER TO clerk; GRANT SELECT (n) ON shown TO reader";
    let world = Dropped::filled(Options::new(distribution_version()), fill);
    let target = Cluster::start(NEWEST);
    for sql in ["CREATE DATABASE whole", "CREATE DATABASE single", "CREATE ROLE clerk", "CREATE ROLE app"] {
        target.sql(sql);
    }
    let single = world.url(&target, "single");
    let answer = world.restore(&["crm/t"], &single, 0);
    assert_eq!(answer["warnings"], serde_json::json!([]), "it needs neither reader nor backup: {answer}");
    let kept = "SELECT tableowner || ' ' || has_table_privilege('app', 't', 'SELECT') FROM pg_tables WHERE tablename = 't'";
    assert_eq!(value_in(&target, "single", kept), "clerk true");
    let answer = world.restore(&["crm/shown"], &single, 0);
    let warnings = answer["warnings"].to_string();
    assert!(warnings.contains("privileges were left out: the target has no role reader") && !warnings.contains("owners"), "{answer}");
    assert_eq!(value_in(&target, "single", "SELECT tableowner FROM pg_tables WHERE tablename = 'shown'"), "clerk");

    target.sql("CREATE ROLE reader");
    let answer = world.restore(&["crm"], &world.url(&target, "whole"), 0);
    let warnings = answer["warnings"].to_string();
    assert!(warnings.contains("pg_catalog") && warnings.contains("no role backup") && !warnings.contains("owners"), "{answer}");
    assert_eq!(value_in(&target, "whole", kept), "clerk true");
}

#[test]
fn a_database_comes_back_beside_its_own_event_triggers() {
    let fill = "CREATE TABLE t AS SELECT n FROM generate_series(1, 30) n; CREATE MATERIALIZED VIEW first AS SELECT * FROM t; CREATE MATERIALIZED VIEW second AS SELECT * FROM first;
        CREATE SCHEMA audit; CREATE TABLE audit.log(what text);
        CREATE FUNCTION audit.write() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO audit.log VALUES (tg_tag); END';
        CREATE FUNCTION audit.forbid() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN IF tg_tag LIKE ''REFRESH%'' THEN RAISE EXCEPTION ''no %'', tg_tag; END IF; END';
        CREATE EVENT TRIGGER written ON ddl_command_end EXECUTE FUNCTION audit.write(); COMMENT ON EVENT TRIGGER written IS 'all of it';
        CREATE SUBSCRIPTION sub CONNECTION 'host=127.0.0.1 port=1 dbname=x' PUBLICATION pub WITH (connect = false, slot_name = 'live')";
    let world = Dropped::filled(Options::new(distribution_version()), fill);
    let target = Cluster::start(NEWEST);
    target.sql("CREATE DATABASE back");
    target.sql("CREATE DATABASE again");
    let answer = world.restore(&["crm"], &world.url(&target, "back"), 0);
    assert!(answer["warnings"].to_string().contains("ALTER SUBSCRIPTION sub SET (slot_name = NONE)"), "{answer}");
    let logged = value_in(&world.cluster, "crm", "SELECT count(*) FROM audit.log");
    assert_eq!(value_in(&target, "back", "SELECT count(*) FROM audit.log"), logged);

    // One that would forbid it, and a view that was not fresh.
    let more = "CREATE EVENT TRIGGER forbidden ON ddl_command_start EXECUTE FUNCTION audit.forbid(); INSERT INTO t VALUES (31)";
    connect(&world.cluster, "crm").execute(more).unwrap();
    world.json(&["backup", "crm"], 0);
    let answer = world.restore(&["crm"], &world.url(&target, "again"), 0);
    let warnings = answer["warnings"].to_string();
    assert!(
        warnings.contains("materialized view public.first was filled anew") && warnings.contains("has 31 rows, and had 30"),
        "{answer}"
    );
    let triggers = "SELECT string_agg(evtname || coalesce(' ' || obj_description(oid), ''), ', ' ORDER BY evtname) FROM pg_event_trigger";
    assert_eq!(value_in(&target, "again", triggers), "forbidden, written all of it");
}

const STATISTICS: &str = "SELECT stxname || ' ' || pg_get_userbyid(stxowner) || ' ' || stxrelid::regclass FROM pg_statistic_ext";
const HELD: &str = "CREATE ROLE clerk; CREATE TABLE customer(id serial PRIMARY KEY, a int, b int); INSERT INTO customer(a, b) SELECT n, n FROM generate_series(1, 50) n;
        CREATE TABLE orders(id int, customer int CONSTRAINT to_customer REFERENCES customer ON DELETE CASCADE, number int DEFAULT nextval('customer_id_seq'));
        CREATE VIEW known WITH (security_barrier) AS SELECT * FROM customer WHERE a > 10; CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM known;
        CREATE VIEW aside_of_it AS SELECT * FROM orders; CREATE PUBLICATION pub FOR TABLE ONLY customer, orders;
        CREATE FUNCTION shown(c customer) RETURNS text LANGUAGE sql AS 'SELECT c.a::text';
        CREATE STATISTICS both_ab (dependencies) ON a, b FROM customer; ALTER TABLE customer OWNER TO clerk; ALTER STATISTICS both_ab OWNER TO clerk;
        CREATE TABLE letter(id int, body oid, sender oid); INSERT INTO letter VALUES (1, lo_from_bytea(0, 'a large object'), 1)";

#[test]
fn elsewhere_only_what_could_be_there_is_missed() {
    let world = Dropped::filled(Options::new(distribution_version()), HELD);
    let target = Cluster::start(distribution_version());
    target.sql("CREATE DATABASE back");
    target.sql("CREATE ROLE clerk");
    let url = world.url(&target, "back");

    // Elsewhere nothing of it could be missed, and statistics come along.
    let answer = world.restore(&["crm/customer"], &url, 0);
    assert_eq!(answer["warnings"], serde_json::json!([]), "{answer}");
    assert_eq!(value_in(&target, "back", STATISTICS), "both_ab clerk customer");
    let letters = world.restore(&["crm/letter"], &url, 3);
    let warnings = letters["warnings"].to_string();
    assert!(warnings.contains("public.letter.body names 1 large objects, of which 0") && !warnings.contains("sender"), "{letters}");
    // Only what is there without the table is told.
    connect(&target, "back").execute("DROP TABLE customer").unwrap();
    connect(&target, "back").execute("CREATE TABLE orders(id int, customer int); CREATE PUBLICATION pub").unwrap();
    let answer = world.restore(&["crm/customer"], &url, 3);
    assert_eq!(answer["warnings"].as_array().unwrap().len(), 2, "{answer}");
}

#[test]
fn what_went_with_a_dropped_table_is_told_with_what_makes_it_anew() {
    let world = Dropped::filled(Options::new(distribution_version()), HELD);
    // In its own database, where it was put aside: what held on to it went along.
    let mut own = connect(&world.cluster, "crm");
    own.execute("CREATE SCHEMA aside; ALTER TABLE customer SET SCHEMA aside").unwrap();
    // The statistics stay behind, with their name.
    own.execute("ALTER STATISTICS both_ab SET SCHEMA aside").unwrap();
    let answer = world.restore(&["crm/customer"], &world.own("crm"), 3);
    let warnings = answer["warnings"].to_string();
    for lost in [
        "foreign key to_customer",
        "publication pub in the target is without public.customer",
        "view public.known in the target does not read public.customer",
    ] {
        assert!(warnings.contains(lost), "{lost}: {answer}");
    }
    assert!(!warnings.contains("aside_of_it"), "{answer}");

    // Dropped with all of it.
    own.execute("DROP TABLE aside.customer, customer CASCADE").unwrap();
    let answer = world.restore(&["crm/customer"], &world.own("crm"), 3);
    let warnings: Vec<&str> = answer["warnings"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
    for lost in ["function public.shown(public.customer)", "default value for column number of table public.orders"] {
        assert!(warnings.iter().any(|one| one.starts_with(lost)), "{lost}: {answer}");
    }
    let makes: Vec<&str> = warnings
        .iter()
        .filter_map(|one| Some(one.split_once("is not in the target: ").or_else(|| one.split_once("is without public.customer: "))?.1))
        .collect();
    assert_eq!(makes.len(), 4, "the key, the publication and two views: {answer}");
    for sql in makes {
        own.execute(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    let key = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'to_customer'";
    assert_eq!(value_in(&world.cluster, "crm", key), "FOREIGN KEY (customer) REFERENCES customer(id) ON DELETE CASCADE");
    assert_eq!(value_in(&world.cluster, "crm", "SELECT count(*) FROM pg_publication_tables"), "2");
    assert_eq!(
        value_in(&world.cluster, "crm", "SELECT count || ' ' || reloptions[1] FROM counted, pg_class WHERE relname = 'known'"),
        "40 security_barrier=true"
    );
    assert_eq!(value_in(&world.cluster, "crm", STATISTICS), "both_ab clerk customer");
}
