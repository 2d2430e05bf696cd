use std::os::unix::fs::MetadataExt;
use std::process::Command;

use super::*;
use crate::source::postgres::recover::Target;
use crate::source::postgres::test_restored::Archived;

/// Every process that works in this folder.
fn workers(data: &Path) -> Vec<i32> {
    let id = FolderId::of(data).unwrap();
    process::members(id, None).unwrap().iter().map(|member| member.pid).collect()
}

#[test]
fn it_is_private_and_leaves_nothing() {
    let source = Archived::start("shared_preload_libraries = 'pg_prewarm'");
    let is_worker = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("autoprewarm"));
    assert_eq!(workers(source.server.data()).into_iter().filter(|pid| is_worker(*pid)).count(), 1, "the source has one");
    source.sql("CREATE TABLE t(n int)");
    // What a hostile source would try.
    source.sql("ALTER SYSTEM SET listen_addresses = '*'");
    source.sql("ALTER SYSTEM SET archive_command = 'touch /tmp/lifeboat-test-archived'");
    source.sql("ALTER DATABASE postgres SET default_transaction_read_only = off");
    source.sql("ALTER ROLE postgres SET lc_messages = 'C.UTF-8'");
    for setting in
        ["timezone = 'Asia/Tokyo'", "datestyle = 'German'", "default_transaction_isolation = 'repeatable read'", "exit_on_error = on"]
    {
        source.sql(&format!("ALTER DATABASE postgres SET {setting}"));
    }
    source.sql("ALTER ROLE postgres IN DATABASE postgres SET bytea_output = 'escape'");
    source.sql("ALTER ROLE postgres SET session_preload_libraries = 'no_such_library'");
    let restored = source.base_backup("restored");
    crate::source::postgres::recover::prepare(&restored, Account::choose(&restored).unwrap()).unwrap();
    let (instance, _) = source.begin_with(&restored, Target::Immediate, &["pg_prewarm".to_owned()]).unwrap();
    let pid = instance.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    let owner = fs::metadata(&restored).unwrap();
    assert_eq!(field("Uid:"), format!("{0}\t{0}\t{0}\t{0}", owner.uid()));
    assert_ne!(owner.uid(), 0);
    if Account::own().uid == 0 {
        assert_eq!(field("Groups:"), "", "no group of root");
        let network = |of: &str| fs::read_link(format!("/proc/{of}/ns/net")).unwrap();
        assert!(instance.is_apart(), "root, and a container that may");
        assert_ne!(network(&pid.to_string()), network("self"));
        assert_eq!(network("thread-self"), network("self"), "of nobody else");
    }
    let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap_or_default();
    assert!(!environment.contains("CARGO"), "{environment}");
    let socket = instance.socket_folder().to_owned();
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o700);
    // No name of a listening address in the lock file: line 6.
    let lock = fs::read_to_string(restored.join("postmaster.pid")).unwrap();
    assert_eq!(lock.lines().nth(5), Some(""), "{lock}");
    let neutral = |statement: &str| {
        let mut command =
            source.server.command("psql", &["-X", "-A", "-t", "-h", socket.to_str().unwrap(), "-U", "postgres", "-d", "postgres"]);
        command.env("PGOPTIONS", instance.neutral_options()).args(["-c", statement]).output().unwrap()
    };
    let answer = neutral("SHOW session_preload_libraries");
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    for (name, value) in [
        ("search_path", "\"$user\",public"),
        ("zero_damaged_pages", "off"),
        ("role", "none"),
        ("lc_messages", "C"),
        ("timezone", "UTC"),
        ("datestyle", "ISO, MDY"),
        ("default_transaction_isolation", "read committed"),
        ("exit_on_error", "off"),
        ("bytea_output", "hex"),
    ] {
        let answer = neutral(&format!("SHOW {name}"));
        assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), value, "{}", String::from_utf8_lossy(&answer.stderr));
    }
    let refused = neutral("CREATE TABLE x(n int)");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("read-only"));

    let log = fs::read_to_string(instance.log()).unwrap();
    assert!(log.contains("too many background workers"), "the library would have started one: {log}");
    assert!(!workers(&restored).into_iter().any(is_worker), "{log}");

    let folder = instance.log().parent().unwrap().to_owned();
    instance.stop(Stop::Fast(Duration::from_secs(30))).unwrap();
    assert_eq!(workers(&restored), Vec::<i32>::new());
    assert!(!folder.exists() && !socket.exists() && !restored.join("postmaster.pid").exists());
    assert!(!Path::new("/tmp/lifeboat-test-archived").exists());
    let control = Tools::find(15, None).unwrap().control(&restored, Account::choose(&restored).unwrap()).unwrap();
    assert_eq!(control.state, "shut down");
}

#[test]
fn a_dropped_instance_is_gone() {
    let source = Archived::start("");
    let restored = source.base_backup("restored");
    let (instance, _) = source.recover(&restored, Target::Immediate).unwrap();
    let second = source.begin(&restored, Target::Immediate).unwrap_err();
    assert_eq!(second.kind(), Kind::Busy, "{second:?}");
    assert!(!workers(&restored).is_empty());
    drop(instance);
    assert_eq!(workers(&restored), Vec::<i32>::new());
    assert!(!restored.with_extension("instance").exists());
}

#[test]
fn a_server_that_does_not_start_says_why() {
    let source = Archived::start("");
    let restored = source.base_backup("restored");
    let account = Account::choose(&restored).unwrap();
    let tools = Tools::find(15, None).unwrap();
    let folder = restored.with_extension("instance");
    let launch = |settings, limit| Launch { tools: &tools, account, data: &restored, folder: &folder, settings, preload: &[], limit };
    let wrong = [("no_such_setting".into(), "1".into())];
    let error = Instance::start(&launch(&wrong, Duration::from_mins(1)), &Cancel::default()).unwrap_err();
    assert!(error.to_string().contains("no_such_setting"), "{error}");
    assert!(!folder.exists());
    let cancel = Cancel::default();
    cancel.cancel();
    let error = Instance::start(&launch(&[], Duration::from_mins(1)), &cancel).unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted);
    assert!(!folder.exists());
    assert_eq!(workers(&restored), Vec::<i32>::new());
    let error = Instance::start(&launch(&[], Duration::ZERO), &Cancel::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert_eq!(workers(&restored), Vec::<i32>::new());
    fs::write(restored.join("PG_VERSION"), "14\n").unwrap();
    let error = Instance::start(&launch(&[], Duration::from_mins(1)), &Cancel::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage, "{error}");
    assert!(!folder.exists());
}

/// Waits for a process of the server on this folder that is called so, and sends it a signal.
fn signal(data: &Path, title: &str, signal: &str) {
    let is_it = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(title));
    let deadline = Instant::now() + Duration::from_mins(1);
    let pid = loop {
        if let Some(pid) = workers(data).into_iter().find(is_it) {
            break pid;
        }
        assert!(Instant::now() < deadline, "no process is called {title}");
        std::thread::park_timeout(Duration::from_millis(5));
    };
    assert!(Command::new("kill").args(["-s", signal, &pid.to_string()]).status().unwrap().success());
}

#[test]
fn what_ends_a_recovery_from_outside_is_told_from_what_falls() {
    let source = Archived::start("");
    let restored = source.base_backup("restored");
    let account = Account::choose(&restored).unwrap();
    crate::source::postgres::recover::prepare(&restored, account).unwrap();
    let tools = Tools::find(15, None).unwrap();
    let folder = restored.with_extension("instance");
    let launch =
        Launch { tools: &tools, account, data: &restored, folder: &folder, settings: &[], preload: &[], limit: Duration::from_mins(1) };
    // It asks for a file of the log, and waits.
    let recovery =
        crate::source::postgres::recover::Recovery { restore_command: Some("sleep 2; false".into()), ..source.recovery(Target::Latest) };
    for (title, kind) in [("lifeboat: startup", "KILL"), ("config_file=", "KILL"), ("config_file=", "INT"), ("lifeboat: startup", "SEGV")] {
        let error = std::thread::scope(|scope| {
            let started = scope.spawn(|| crate::source::postgres::recover::recover(&launch, &recovery, &Cancel::default()));
            signal(&restored, title, kind);
            started.join().unwrap().unwrap_err()
        });
        let said = crate::source::postgres::told(&error);
        assert_eq!((is_lost(&error), error.kind()), (kind != "SEGV", Kind::Failed), "{title} {kind}: {said}");
        if kind == "SEGV" {
            assert!(said.contains("signal 11"), "{said}");
        } else {
            assert!(error.hint_text().unwrap().contains("memory"), "{error:?}");
            assert!(said.contains("signal 9") || said.contains("received fast shutdown request"), "{said}");
        }
        assert_eq!(workers(&restored), Vec::<i32>::new());
        assert!(!folder.exists());
    }
}

#[test]
fn only_a_control_file_that_is_not_whole_is_damaged() {
    let source = Archived::start("");
    let restored = source.base_backup("restored");
    let (account, tools) = (Account::choose(&restored).unwrap(), Tools::find(15, None).unwrap());
    let control = || tools.control(&restored, account);
    let path = restored.join("global/pg_control");
    let bytes = fs::read(&path).unwrap();
    assert!(control().unwrap().checksums);

    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    let kept_out = control().unwrap_err();
    assert_eq!(kept_out.kind(), Kind::Usage, "{kept_out:?}");
    assert!(kept_out.to_string().contains("Permission denied") && kept_out.hint_text().unwrap().contains("--state"), "{kept_out:?}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    if Account::own().uid == 0 {
        let folder = restored.with_extension("instance");
        let launch =
            Launch { tools: &tools, account, data: &restored, folder: &folder, settings: &[], preload: &[], limit: Duration::from_mins(1) };
        let above = restored.parent().unwrap();
        std::os::unix::fs::chown(above, Some(0), Some(0)).unwrap();
        fs::set_permissions(above, fs::Permissions::from_mode(0o700)).unwrap();
        let error = Instance::start(&launch, &Cancel::default()).unwrap_err();
        fs::set_permissions(above, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(error.kind(), Kind::Usage, "{error:?}");
        assert!(error.to_string().contains(above.to_str().unwrap()) && error.hint_text().unwrap().contains("chmod o+x"), "{error:?}");
        assert!(!folder.exists());
    }

    let mut wrong = bytes.clone();
    wrong[40] ^= 1;
    for damaged in [&wrong[..], &bytes[..100], b""] {
        fs::write(&path, damaged).unwrap();
        assert_eq!(control().unwrap_err().kind(), Kind::Damaged, "{} bytes", damaged.len());
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(control().unwrap_err().kind(), Kind::Damaged);
}

#[test]
fn a_long_path_gets_a_short_socket() {
    let folder = PathBuf::from("/var/lib").join("x".repeat(100));
    let socket = socket_folder(&folder).unwrap();
    assert!(fits(&socket) && !socket.starts_with(&folder), "{}", socket.display());
    assert_eq!(socket_folder(Path::new("/srv/a")).unwrap(), Path::new("/srv/a/s"));
    assert!(!socket_folder(Path::new("/srv/a,/b")).unwrap().starts_with("/srv"));
}

#[test]
fn settings_are_quoted() {
    assert_eq!(setting_line("a.b", "it's \\ here").unwrap(), "a.b = 'it''s \\\\ here'\n");
    assert!(setting_line("a", "x\nssl = on").is_err());
    assert!(setting_line("a = 'x' b", "x").is_err());
}

/// What [`a_kill_of_the_owner_is_swept`] runs in a process of its own.
#[test]
#[ignore = "started by another test"]
fn start_and_wait() {
    let data = PathBuf::from(std::env::var_os("LIFEBOAT_TEST_DATA").unwrap());
    let tools = Tools::find(15, None).unwrap();
    let account = Account::choose(&data).unwrap();
    let settings = [("restore_command".to_owned(), "false".to_owned())];
    let folder = data.with_extension("instance");
    let launch =
        Launch { tools: &tools, account, data: &data, folder: &folder, settings: &settings, preload: &[], limit: Duration::from_mins(1) };
    let instance = Instance::start(&launch, &Cancel::default()).unwrap();
    fs::write(data.with_extension("ready"), instance.socket_folder().to_str().unwrap()).unwrap();
    std::thread::park();
}

#[test]
fn a_kill_of_the_owner_is_swept() {
    let source = Archived::start("");
    // The same numbers and names elsewhere must not be touched.
    let bystander = workers(source.server.data());
    let restored = source.base_backup("restored");
    crate::source::postgres::recover::prepare(&restored, Account::choose(&restored).unwrap()).unwrap();
    let name = "source::postgres::instance::tests::start_and_wait";
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", name])
        .env("LIFEBOAT_TEST_DATA", &restored)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let ready = restored.with_extension("ready");
    let deadline = Instant::now() + Duration::from_mins(1);
    while fs::read_to_string(&ready).unwrap_or_default().is_empty() {
        assert!(Instant::now() < deadline && owner.try_wait().unwrap().is_none(), "the owner did not start its server");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(!workers(&restored).is_empty(), "it outlives its owner");

    // As the next run does: renamed first, then swept.
    let moved = restored.with_extension("moved");
    let folder = restored.with_extension("instance");
    let grave = restored.with_extension("dead");
    fs::rename(&restored, &moved).unwrap();
    fs::rename(&folder, &grave).unwrap();
    assert!(left_below(source.server.folder()).unwrap().contains(&grave));
    sweep(&grave).unwrap();
    assert_eq!(workers(&moved), Vec::<i32>::new());
    assert!(!grave.exists());
    assert!(!Path::new(&fs::read_to_string(&ready).unwrap()).exists(), "no socket is left");
    assert!(bystander.iter().all(|pid| workers(source.server.data()).contains(pid) || Identity::of(*pid).is_none()));
    assert_eq!(source.sql("SELECT 1"), "1");
    sweep(&grave).unwrap();
}

#[test]
fn a_number_that_somebody_else_has_now_is_left_alone() {
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut stale = Identity::of(i32::try_from(other.id()).unwrap()).unwrap();
    stale.start_ticks -= 1;
    let record = Record {
        data: folder.path().join("data"),
        data_id: FolderId { device: 0, inode: 0 },
        socket_folder: folder.path().join("i/s"),
        server: Some(stale),
    };
    let instance = folder.path().join("i");
    fs::create_dir(&instance).unwrap();
    write_record(&instance, &record).unwrap();
    sweep(&instance).unwrap();
    assert!(other.try_wait().unwrap().is_none(), "killed somebody else");
    other.kill().unwrap();
    other.wait().unwrap();
}
