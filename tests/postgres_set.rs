//! Several sources to one moment: each PostgreSQL server through its own log, what has none from the snapshot.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;
#[path = "support/set_world.rs"]
mod world;

use std::time::Duration;

use serde_json::Value;
use support::postgres::{Cluster, Options, distribution_version};
use world::{World, started};

fn now(cluster: &Cluster) -> String {
    std::thread::sleep(Duration::from_millis(30));
    let now = cluster.value("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
    std::thread::sleep(Duration::from_millis(30));
    now
}

fn moment<'a>(document: &'a Value, source: &str) -> &'a Value {
    document["moments"].as_array().unwrap().iter().find(|one| one["source"] == source).unwrap_or_else(|| panic!("{source}: {document}"))
}

/// A server whose log is archived by hand, later: it must not forget it meanwhile.
fn keeping(version: u32) -> Cluster {
    Options::new(version).setting("wal_keep_size", "512").start()
}

#[test]
fn each_source_goes_to_the_moment_through_its_own_log_and_what_cannot_is_exit_13() {
    let version = distribution_version();
    let (crm, billing) = (keeping(version), keeping(version));
    for cluster in [&crm, &billing] {
        cluster.sql("CREATE TABLE ledger(id int PRIMARY KEY)");
    }
    let world = World::new(&[("crm", &crm), ("billing", &billing)]);
    std::fs::write(world.path("attachments/letter"), "before").unwrap();
    world.json(&["backup", "shop"], 0);
    billing.sql("CREATE TABLE early(n int)");
    world.archive("billing", &billing);
    for (cluster, rows) in [(&crm, 3), (&billing, 5)] {
        cluster.sql(&format!("INSERT INTO ledger SELECT generate_series(1, {rows})"));
    }
    let wanted = now(&crm);
    std::fs::write(world.path("attachments/letter"), "after").unwrap();
    for cluster in [&crm, &billing] {
        cluster.sql("INSERT INTO ledger SELECT generate_series(100, 110)");
    }
    world.archive("crm", &crm);

    // The other one's log does not come there yet: nothing is brought, and what each has is told.
    let target = world.path("target");
    let words = |at: &str| ["restore", "shop", "--to", target.to_str().unwrap(), "--yes", "--at", at].map(str::to_owned);
    let refused = world.json(&words(&wanted).each_ref().map(String::as_str), 13);
    let (message, hint) = (refused["error"]["message"].as_str().unwrap(), refused["error"]["hint"].as_str().unwrap());
    assert!(message.contains("billing") && !message.contains("crm"), "{refused}");
    assert!(hint.contains("--source") && hint.contains("--snapshot"), "{refused}");
    assert!(!target.exists());

    world.archive("billing", &billing);
    let refused = world.json(&words("2039-01-01T00:00:00Z").each_ref().map(String::as_str), 13);
    let hint = refused["error"]["hint"].as_str().unwrap();
    assert!(hint.contains("source crm: what can be recovered") && hint.contains("source billing: what can be recovered"), "{refused}");

    let planned = words(&wanted);
    let planned = [planned.each_ref().map(String::as_str).as_slice(), &["--dry-run"]].concat();
    let planned = world.json(&planned, 0);
    assert!(!target.exists());
    assert_eq!((&planned["recovery"], planned["moments"].as_array().unwrap().len()), (&Value::Null, 3), "{planned}");
    let report = world.json(&words(&wanted).each_ref().map(String::as_str), 0);
    for document in [&planned, &report] {
        for source in ["crm", "billing"] {
            let one = moment(document, source);
            assert_eq!((&one["exact"], &one["earlier_ms"]), (&true.into(), &0.into()), "{document}");
            assert_eq!(one["recovery"]["source"], source);
        }
        let files = moment(document, "attachments");
        assert_eq!((&files["exact"], &files["recovery"]), (&false.into(), &Value::Null), "{document}");
        assert!(files["earlier_ms"].as_u64().unwrap() > 0, "{document}");
        assert_eq!(document["at"], files["at"], "the set is of no later than its earliest");
        let said =
            document["warnings"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).find(|w| w.contains("not all of one moment"));
        let said = said.unwrap_or_else(|| panic!("{document}"));
        assert!(said.contains("crm, billing at exactly") && said.contains("attachments as of"), "{said}");
    }
    assert_eq!(std::fs::read_to_string(target.join("attachments/letter")).unwrap(), "before");
    for (name, cluster, rows) in [("crm", &crm, 3), ("billing", &billing, 5)] {
        assert_eq!(started(&target.join(name), cluster, "SELECT count(*) FROM ledger"), rows.to_string(), "{name}");
    }

    // Two servers alone are of one moment, and that is said.
    let both = world.path("both");
    let report =
        world.json(&["restore", "shop", "--to", both.to_str().unwrap(), "--at", &wanted, "--source", "crm", "--source", "billing"], 0);
    assert_eq!(report["moments"].as_array().unwrap().len(), 2, "{report}");
    assert!(report["notes"].as_array().unwrap().iter().any(|note| note.as_str().unwrap().contains("restored to one moment")), "{report}");
    assert!(report["warnings"].as_array().unwrap().iter().all(|w| !w.as_str().unwrap().contains("one moment")), "{report}");
    assert_ne!(report["at"], planned["at"]);
}

#[test]
fn a_moment_before_a_source_came_to_the_plan_or_after_one_went_is_recovered_through_the_log() {
    let crm = keeping(distribution_version());
    crm.sql("CREATE TABLE ledger(id int PRIMARY KEY)");
    let world = World::new(&[("crm", &crm)]);
    std::fs::write(world.path("attachments/letter"), "dear").unwrap();
    let file = world.path("plans/shop.toml");
    let both = std::fs::read_to_string(&file).unwrap();
    let alone = both.replace("sources = [\"crm\", \"attachments\"]", "sources = [\"crm\"]");
    assert_ne!(alone, both);
    let mut rows = 0;
    let mut commit = || {
        rows += 1;
        crm.sql(&format!("INSERT INTO ledger VALUES ({rows})"));
        (now(&crm), rows)
    };
    std::fs::write(&file, &alone).unwrap();
    world.json(&["backup", "shop"], 0);
    let (early, early_rows) = commit();
    commit();
    std::fs::write(&file, &both).unwrap();
    world.json(&["backup", "shop"], 0);
    let (between, between_rows) = commit();
    commit();
    // Under another name, as after an upgrade to the next major version.
    let renamed = alone.replace("source.crm]", "source.crm2]").replace("sources = [\"crm\"]", "sources = [\"crm2\"]");
    world.archive("crm", &crm);
    std::fs::write(&file, &renamed).unwrap();
    world.json(&["backup", "shop"], 0);

    let restored = |name: &str, words: &[&str]| {
        let target = world.path(name);
        let report = world.json(&[&["restore", "shop", "--to", target.to_str().unwrap()], words].concat(), 0);
        (target, report)
    };
    for (name, words) in [("early", &["--at", &early][..]), ("named", &["--at", &early, "--source", "crm"])] {
        let (target, report) = restored(name, words);
        assert_eq!((&report["recovery"]["source"], report["moments"].is_null()), (&"crm".into(), true), "{report}");
        assert_eq!(started(&target, &crm, "SELECT count(*) FROM ledger"), early_rows.to_string(), "{name}");
    }
    let (target, report) = restored("between", &["--at", &between]);
    assert_eq!((&moment(&report, "crm")["exact"], &moment(&report, "attachments")["exact"]), (&true.into(), &false.into()), "{report}");
    assert_eq!(started(&target.join("crm"), &crm, "SELECT count(*) FROM ledger"), between_rows.to_string());
    // Behind the end of its log there is nothing to take instead.
    let never = world.path("never");
    let words = ["restore", "shop", "--to", never.to_str().unwrap(), "--source", "crm", "--at", "2039-01-01T00:00:00Z"];
    let refused = world.json(&words, 13);
    assert!(refused["error"]["hint"].as_str().unwrap().contains("what can be recovered"), "{refused}");
    assert!(!never.exists());
}
