use std::fs;
use std::time::{Duration, Instant};

use super::*;
use crate::event::{Cancel, Silent};

struct Fixture {
    folder: tempfile::TempDir,
    context: SourceContext,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let context = SourceContext {
        scratch: folder.path().to_owned(),
        fingerprint_key: [0; 32],
        progress: Arc::new(Silent),
        cancel: Cancel::default(),
    };
    Fixture { folder, context }
}

fn shell(script: &str) -> CommandSource {
    let dump = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    CommandSource { dump, restore: None, environment: Vec::new(), allow_empty: false }
}

impl Fixture {
    fn dump(&self, source: &CommandSource) -> Result<(Vec<u8>, Finish)> {
        let mut snapshot = source.begin(&self.context)?;
        let entry = snapshot.next_entry()?.unwrap();
        assert!(snapshot.next_entry()?.is_none());
        let mut bytes = Vec::new();
        snapshot.open(&entry)?.unwrap().read_to_end(&mut bytes).unwrap();
        snapshot.close(&entry, bytes.len() as u64)?;
        Ok((bytes, snapshot.finish()?))
    }

    fn failure(&self, source: &CommandSource) -> Error {
        self.dump(source).unwrap_err()
    }
}

/// Waits, with a bound, until something holds.
fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::yield_now();
    }
}

fn runs(pid: &str) -> bool {
    // A zombie that waits for init to reap it does not run.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn output_counts_after_exit_0() {
    let (bytes, finish) = fixture().dump(&shell("head -c 300000 /dev/zero; echo done")).unwrap();
    assert_eq!((bytes.len(), &finish.consistency["bytes"]), (300_005, &json!(300_005)));
}

#[test]
fn a_failing_command_is_an_error_with_its_last_words() {
    let error = fixture().failure(&shell("echo partial; echo 'no such database' >&2; exit 7"));
    assert_eq!(error.kind(), Kind::Failed);
    assert!(error.to_string().ends_with("exited with 7"), "{error}");
    assert_eq!(error.said(), Some("no such database"));
    assert!(!format!("{error:?}").contains("no such database"), "it may quote rows, and this is what is logged");
    let error = fixture().failure(&shell("echo partial; kill -9 $$"));
    assert!(error.to_string().contains("killed by signal 9"), "{error}");
    let error = fixture().failure(&shell("echo x; for i in $(seq 20000); do echo \"line $i\" >&2; done; exit 1"));
    assert!(error.said().is_some_and(|said| said.len() <= 2048 && said.ends_with("line 20000")), "{:?}", error.said());
}

#[test]
fn an_empty_success_is_a_failure_unless_allowed() {
    let error = fixture().failure(&shell("true"));
    assert!(error.to_string().contains("wrote nothing"), "{error}");
    let error = fixture().failure(&shell("echo 'nothing to dump' >&2"));
    assert_eq!(error.said(), Some("nothing to dump"));
    assert!(fixture().dump(&CommandSource { allow_empty: true, ..shell("true") }).is_ok());
}

#[test]
fn a_program_that_is_not_there_is_a_usage_error() {
    let source = CommandSource { dump: vec!["no-such-program-xyz".into()], ..shell("") };
    assert_eq!(source.begin(&fixture().context).err().unwrap().kind(), Kind::Usage);
    assert!(!source.diagnose()[0].ok);
    assert!(shell("").diagnose()[0].ok);
    let source = CommandSource { dump: Vec::new(), ..shell("") };
    assert_eq!(source.begin(&fixture().context).err().unwrap().kind(), Kind::Usage);
}

#[test]
fn secrets_reach_the_command_and_no_message() {
    let source = CommandSource {
        environment: vec![("DB_PASSWORD".into(), SecretValue::new("correct horse"))],
        ..shell("echo \"login with $DB_PASSWORD failed\" >&2; exit 1")
    };
    let error = fixture().failure(&source);
    assert_eq!(error.said(), Some("login with *** failed"));
    assert!(!format!("{source:?}").contains("horse"));
}

#[test]
fn only_what_is_listed_is_inherited() {
    let fixture = fixture();
    let _open = fs::File::create(fixture.folder.path().join("an-open-file")).unwrap();
    let (bytes, _) = fixture.dump(&shell("env; ls -l /proc/self/fd")).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains("PATH="));
    assert!(!text.contains("CARGO_MANIFEST_DIR"), "{text}");
    assert!(!text.contains("an-open-file"), "{text}");
}

#[test]
fn dropping_kills_the_whole_group() {
    let fixture = fixture();
    let pids = fixture.folder.path().join("pids");
    let script = format!("sleep 1000 & echo $! $$ > {0}.new; mv {0}.new {0}; wait", pids.display());
    let snapshot = shell(&script).begin(&fixture.context).unwrap();
    until("the command is up", || pids.exists());
    let pids = fs::read_to_string(pids).unwrap();
    assert!(pids.split_whitespace().all(runs));
    drop(snapshot);
    for pid in pids.split_whitespace() {
        until("the process is gone", || !runs(pid));
    }
}

#[test]
fn cancelling_ends_a_read_that_waits() {
    let fixture = fixture();
    let mut snapshot = shell("sleep 1000").begin(&fixture.context).unwrap();
    let entry = snapshot.next_entry().unwrap().unwrap();
    let mut reader = snapshot.open(&entry).unwrap().unwrap();
    let waiting = std::thread::spawn(move || reader.read(&mut [0; 10]));
    fixture.context.cancel.cancel();
    assert!(waiting.join().unwrap().is_err());
    assert!(snapshot.finish().is_err());
}

#[test]
fn what_a_command_leaves_running_does_not_hold_the_run_up() {
    let (bytes, _) = fixture().dump(&shell("echo data; sleep 1000 >/dev/null & exit 0")).unwrap();
    assert_eq!(bytes, b"data\n");
}

#[test]
fn output_that_was_not_read_to_its_end_is_not_a_backup() {
    let fixture = fixture();
    let mut snapshot = shell("echo data").begin(&fixture.context).unwrap();
    let entry = snapshot.next_entry().unwrap().unwrap();
    let mut reader = snapshot.open(&entry).unwrap().unwrap();
    reader.read_exact(&mut [0; 2]).unwrap();
    assert!(snapshot.close(&entry, 2).is_err());
    assert!(snapshot.finish().is_err());
}

#[test]
fn the_restore_command_gets_the_output_and_a_folder() {
    let fixture = fixture();
    let restored = fixture.folder.path().join("restored");
    fs::create_dir(&restored).unwrap();
    fs::write(restored.join(OUTPUT), "content").unwrap();
    let with = |script: &str| CommandSource {
        restore: Some(["/bin/sh", "-c", script, "sh", "{target}/named"].map(str::to_owned).to_vec()),
        ..shell("")
    };
    let usable = with("cat > \"$1\"; cp \"$1\" $LIFEBOAT_TARGET/copy; echo chatter").adopt(&restored, &fixture.context).unwrap();
    assert_eq!(usable, restored.join(TARGET));
    for name in ["named", "copy"] {
        assert_eq!(fs::read(usable.join(name)).unwrap(), b"content");
    }
    fs::remove_dir_all(&usable).unwrap();
    let error = with("echo broken >&2; exit 3").adopt(&restored, &fixture.context).unwrap_err();
    assert!(error.to_string().ends_with("exited with 3") && error.said() == Some("broken"), "{error} {:?}", error.said());
    assert_eq!(shell("").adopt(&restored, &fixture.context).unwrap(), restored.join(OUTPUT));
}
