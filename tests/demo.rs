//! The demo is the main job from end to end: it must pass, catch what it plants, and leave nothing behind.

use std::process::Command;

fn lifeboat() -> Command {
    Command::new(env!("CARGO_BIN_EXE_lifeboat"))
}

#[test]
fn the_demo_tells_the_whole_story_and_removes_everything() {
    let temp = tempfile::tempdir().unwrap();
    let output = lifeboat().arg("demo").env("TMPDIR", temp.path()).env("HOME", temp.path()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    for part in ["exit 20, damaged", "exit 21, differs", "are equal", "recovery report", "lifeboat restore crm --latest"] {
        assert!(stdout.contains(part), "no {part:?} in\n{stdout}");
    }
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0, "the demo left something behind");
}

#[test]
fn a_kept_demo_can_be_used_by_the_commands_it_prints() {
    let temp = tempfile::tempdir().unwrap();
    let keep = temp.path().join("kept");
    let output = lifeboat().args(["demo", "--json", "--keep"]).arg(&keep).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["schema"], "lifeboat.demo/1");
    assert_eq!(document["drill"]["verdict"], "passed");
    assert_eq!(document["caught"][0]["caught_by"][0]["kind"], "damaged");
    assert_eq!(document["caught"][1]["caught_by"][0]["kind"], "differs");
    let first = document["backups"][0]["bytes_stored"].as_u64().unwrap();
    let second = document["backups"][1]["bytes_stored"].as_u64().unwrap();
    assert!(second < first, "a day of work stored {second} after {first}");

    let with = |words: &[&str]| {
        let mut command = lifeboat();
        command.args(words).arg("--plans").arg(keep.join("plans")).arg("--state").arg(keep.join("state"));
        command
    };
    let status = with(&["status", "--json"]).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert!(status["plans"][0]["proven_at"].is_string(), "{status}");
    assert!(with(&["verify", "main", "--data"]).output().unwrap().status.success());
    let to = keep.join("restored-again");
    let restored = with(&["restore", "crm", "--latest-proven", "--to", to.to_str().unwrap()]).output().unwrap();
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    assert!(to.read_dir().unwrap().count() >= 2);

    let again = lifeboat().args(["demo", "--keep"]).arg(&keep).output().unwrap();
    assert_eq!(again.status.code(), Some(2), "a folder with something in it is refused");
}
