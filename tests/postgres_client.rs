//! The PostgreSQL client against real servers: logging in every way, and every way that goes wrong.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use lifeboat::error::{Error, Kind};
use lifeboat::event::Cancel;
use lifeboat::source::postgres::client::{Connection, Mode, quote_identifier, quote_literal, server_certificate, server_error, sqlstate};
use lifeboat::source::postgres::conninfo::Settings;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use support::certificates::Authority;
use support::postgres::{Cluster, NEWEST, Options, PASSWORD, distribution_version, wait_until};

const SQL: Mode<'_> = Mode::Sql { database: None };

fn connect(settings: &Settings) -> Result<Connection, Error> {
    Connection::connect(settings, SQL, &Cancel::default())
}

/// An error says what happened and what to do, and never the password.
fn shown(error: &Error) -> String {
    let text = format!("{error:?} {}", error.hint_text().unwrap_or_default());
    assert!(!text.contains(PASSWORD), "{text}");
    text
}

#[test]
fn socket_and_scram_on_both_versions() {
    for version in [distribution_version(), NEWEST] {
        let cluster = Cluster::start(version);
        for settings in [cluster.socket_settings(), cluster.tcp_settings()] {
            let mut connection = connect(&settings).unwrap();
            assert_eq!(connection.server_version() / 10_000, version);
            assert_eq!(connection.value("SHOW server_version_num").unwrap().unwrap(), connection.server_version().to_string());
            assert_eq!(connection.value("SELECT pg_backend_pid()").unwrap().unwrap(), connection.backend_process().to_string());
            assert_eq!(connection.parameter("client_encoding"), Some("UTF8"));
            let mut other = Connection::connect(&settings, Mode::Sql { database: Some("template1") }, &Cancel::default()).unwrap();
            assert_eq!(other.value("SELECT current_database()").unwrap().unwrap(), "template1");
            let mut replication = Connection::connect(&settings, Mode::Replication, &Cancel::default()).unwrap();
            assert_eq!(replication.query("IDENTIFY_SYSTEM").unwrap()[0].named("timeline"), Some("1"));
        }
        let cluster_log = cluster.log();
        drop(cluster);
        assert!(!cluster_log.contains("unexpected EOF"), "sessions end in order: {cluster_log}");
    }
}

#[test]
fn limits_of_a_millisecond_end_no_session() {
    for version in [distribution_version(), NEWEST] {
        let cluster = Cluster::start(version);
        let limits = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"];
        let mut admin = cluster.connect();
        for limit in limits {
            admin.execute(&format!("ALTER ROLE postgres SET {limit} = '1ms'; ALTER DATABASE postgres SET {limit} = '1ms'")).unwrap();
        }
        let pause = || std::thread::sleep(Duration::from_millis(15));
        for _ in 0..10 {
            let mut connection = connect(&cluster.socket_settings()).unwrap();
            pause();
            // As whoever exports a snapshot, and holds it.
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_sleep(0.01)").unwrap();
            let exported = connection.value("SELECT pg_export_snapshot()").unwrap().unwrap();
            pause();
            let mut other = connect(&cluster.socket_settings()).unwrap();
            other.execute(&format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{exported}'")).unwrap();
            pause();
            for connection in [&mut connection, &mut other] {
                connection.execute("COMMIT").unwrap();
                assert_eq!(connection.value("SHOW statement_timeout").unwrap().unwrap(), "0");
            }
            let mut replication = Connection::connect(&cluster.socket_settings(), Mode::Replication, &Cancel::default()).unwrap();
            pause();
            replication.query("IDENTIFY_SYSTEM").unwrap();
        }
    }
}

/// It is for the applications of that database, and may do less than who backs up. Unless the address itself asks for one.
#[test]
fn a_role_that_a_database_has_as_a_setting_is_not_taken() {
    let cluster = Cluster::start(distribution_version());
    let mut admin = cluster.connect();
    admin
        .execute("CREATE ROLE application; ALTER DATABASE postgres SET role = application; ALTER ROLE ALL SET role = application")
        .unwrap();
    let value = |settings: &Settings| connect(settings).unwrap().value("SELECT current_user").unwrap().unwrap();
    let mut settings = cluster.socket_settings();
    assert_eq!(value(&settings), "postgres");
    settings.options = Some("-c role=application".into());
    assert_eq!(value(&settings), "application");
}

/// Something that speaks as a server, refuses what it is told of limits, as an older server or a pooler does, and lets in whoever does not say it.
#[test]
fn a_server_that_does_not_know_a_limit_is_asked_without_it() {
    use std::io::{Read as _, Write as _};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let message = |kind: u8, body: &[u8]| {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[kind][..], &length, body].concat()
    };
    let server = std::thread::spawn(move || {
        let mut asked = Vec::new();
        while let Ok((mut stream, _)) = listener.accept() {
            let mut length = [0; 4];
            stream.read_exact(&mut length).unwrap();
            let mut startup = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap() - 4];
            stream.read_exact(&mut startup).unwrap();
            let says = String::from_utf8_lossy(&startup).into_owned();
            let knows_it_all = !says.contains("idle_session_timeout");
            asked.push(says);
            if knows_it_all {
                let parts = [message(b'R', &[0; 4]), message(b'S', b"server_version\x0013.9\0"), message(b'Z', b"I")];
                stream.write_all(&parts.concat()).unwrap();
                // The settings that this version knows too, by SET.
                let mut set = [0; 512];
                let read = stream.read(&mut set).unwrap();
                asked.push(String::from_utf8_lossy(&set[..read]).into_owned());
                return asked;
            }
            stream.write_all(&message(b'E', b"SFATAL\0C42704\0Munrecognized configuration parameter\0\0")).unwrap();
        }
        asked
    });
    let settings = Settings::parse(&format!("host=127.0.0.1 port={port} user=u dbname=d sslmode=disable connect_timeout=20")).unwrap();
    // It hangs up at the first statement.
    connect(&settings).unwrap_err();
    let asked = server.join().unwrap();
    assert!(asked[0].contains("idle_session_timeout=0") && !asked[1].contains("timeout"), "{asked:?}");
    assert!(asked[2].contains("SET statement_timeout = 0") && !asked[2].contains("idle_session_timeout"), "{asked:?}");
}

#[test]
fn rows_names_errors_and_copies() {
    let cluster = Cluster::start(distribution_version());
    let mut connection = cluster.connect();
    let name = "Größe \"in\" 表';--\\";
    let table = quote_identifier(name);
    connection.execute(&format!("CREATE TABLE {table} (id int PRIMARY KEY, {table} text)")).unwrap();
    for value in ["plain", "it's \\ \"x\"", "日本\n\t", ""] {
        let count = connection.value(&format!("SELECT count(*) FROM {table}")).unwrap().unwrap();
        connection.execute(&format!("INSERT INTO {table} VALUES ({count}, {})", quote_literal(value))).unwrap();
        let read = connection.value(&format!("SELECT {table} FROM {table} WHERE id = {count}")).unwrap();
        assert_eq!(read.as_deref(), Some(value));
    }
    connection.execute("SET standard_conforming_strings = off").unwrap();
    assert_eq!(connection.value(&format!("SELECT {}", quote_literal("a\\n'b"))).unwrap().unwrap(), "a\\n'b");
    connection.execute("RESET standard_conforming_strings").unwrap();

    let rows = connection.query(&format!("SELECT id, {table}, NULL AS nothing FROM {table} ORDER BY id")).unwrap();
    assert_eq!((rows.len(), rows[0].len(), rows[1].named(name), rows[0].get(2)), (4, 3, Some("it's \\ \"x\""), None));
    assert!(rows[0].required("nothing").is_err() && rows[0].names()[1] == name);
    assert!(!format!("{:?}", rows[0]).contains("plain"));
    assert_eq!(connection.query("SELECT 1; SELECT 2 AS two; ").unwrap()[0].named("two"), Some("2"));
    assert_eq!(connection.query("").unwrap().len(), 0);
    assert_eq!(connection.value("SELECT 1 WHERE false").unwrap_err().kind(), Kind::Failed);

    // The duplicate's value is in DETAIL, which is not shown; the connection goes on.
    let error = connection.execute(&format!("INSERT INTO {table} VALUES (3)")).unwrap_err();
    assert_eq!((sqlstate(&error), error.kind()), (Some("23505"), Kind::Failed));
    assert!(!shown(&error).contains("(3)") && !format!("{:?}", server_error(&error)).contains("(3)"), "{}", shown(&error));
    assert_eq!(sqlstate(&connection.query("SELECT 1/(g-3) FROM generate_series(1,5) g").unwrap_err()), Some("22012"), "after two rows");
    assert_eq!(sqlstate(&connection.execute("SELECT 1; SELECT nonsense").unwrap_err()), Some("42703"));

    // COPY out: all lines, then an error in the middle.
    let mut copy = connection.copy_out("COPY (SELECT g FROM generate_series(1, 100000) g) TO STDOUT").unwrap();
    let mut lines = 0;
    while let Some(line) = copy.next().unwrap() {
        lines += 1;
        assert!(line.ends && line.bytes == format!("{lines}\n"));
    }
    assert!(copy.next().unwrap().is_none());
    assert_eq!(lines, 100_000);
    let mut copy = connection.copy_out("COPY (SELECT 1/(50000-g) FROM generate_series(1, 100000) g) TO STDOUT").unwrap();
    let error = loop {
        match copy.next() {
            Ok(line) => assert!(line.is_some(), "an error inside COPY is not the end of it"),
            Err(error) => break error,
        }
    };
    assert_eq!(sqlstate(&error), Some("22012"));
    assert_eq!(connection.value("SELECT 1").unwrap().unwrap(), "1");
    // A wide row comes in pieces, between others and at the end.
    for (width, more) in [(262_138, 3), (262_200, 3), (3_000_000, 1)] {
        let query = format!("SELECT CASE WHEN g = 1 THEN repeat('x', {width}) ELSE g::text END FROM generate_series(1, {more}) g");
        let mut copy = connection.copy_out(&format!("COPY ({query}) TO STDOUT")).unwrap();
        let (mut rows, mut row, mut pieces) = (Vec::new(), Vec::new(), 0);
        while let Some(piece) = copy.next().unwrap() {
            assert!(!piece.bytes.is_empty() && piece.bytes.len() <= 256 * 1024);
            row.extend_from_slice(&piece.bytes);
            pieces += 1;
            if piece.ends {
                rows.push(std::mem::take(&mut row));
            }
        }
        assert_eq!((rows.len(), rows[0].len(), row.len()), (more, width + 1, 0));
        assert!(rows.iter().all(|row| row.iter().position(|byte| *byte == b'\n') == Some(row.len() - 1)));
        assert_eq!(pieces > more, width > 262_138, "{pieces} pieces");
    }
    assert_eq!(connection.value("SELECT length(repeat('x', 1000000))").unwrap().unwrap(), "1000000");

    assert!(connection.query("COPY (SELECT 1) TO STDOUT").is_err() && connection.query(&format!("COPY {table} FROM STDIN")).is_err());
    assert!(connection.copy_out("SELECT 1").is_err());

    // COPY in, bad rows, giving up.
    let mut connection = cluster.connect();
    connection.execute("CREATE TABLE loaded (n int CHECK (n <> 7777))").unwrap();
    let mut copy = connection.copy_in("COPY loaded FROM STDIN").unwrap();
    for n in 10_000..60_000 {
        copy.write(format!("{n}\n").as_bytes()).unwrap();
    }
    assert_eq!(copy.finish().unwrap(), 50_000);
    let mut copy = connection.copy_in("COPY loaded FROM STDIN").unwrap();
    for n in 0..200_000 {
        copy.write(format!("{n}\n").as_bytes()).unwrap();
    }
    assert_eq!(sqlstate(&copy.finish().unwrap_err()), Some("23514"));
    let mut copy = connection.copy_in("COPY loaded FROM STDIN").unwrap();
    copy.write(b"1\n").unwrap();
    copy.abandon().unwrap();
    assert_eq!(connection.value("SELECT count(*) FROM loaded").unwrap().unwrap(), "50000");

    // Half read: no second answer from that connection.
    let mut copy = connection.copy_out("COPY loaded TO STDOUT").unwrap();
    copy.next().unwrap();
    drop(copy);
    assert_eq!(connection.query("SELECT 1").unwrap_err().kind(), Kind::Bug);
}

#[test]
fn a_login_that_fails_says_why() {
    let cluster = Options::new(distribution_version())
        .hba(
            "local all all trust\nhost all clear 127.0.0.1/32 password\nhost all old 127.0.0.1/32 md5\n\
             host all nobody 127.0.0.1/32 reject\nhost all all 127.0.0.1/32 scram-sha-256\n",
        )
        .start();
    cluster.sql("CREATE ROLE clear LOGIN PASSWORD 'secret-1'; CREATE ROLE nobody LOGIN; SET password_encryption = md5");
    let mut connection = cluster.connect();
    connection.execute("SET password_encryption = md5; CREATE ROLE old LOGIN PASSWORD 'secret-2'").unwrap();
    let with = |user: &str, password: Option<&str>| {
        let mut settings = cluster.tcp_settings();
        user.clone_into(&mut settings.user);
        settings.set_password(password.unwrap_or_default().to_owned().into());
        settings
    };

    connect(&with("old", Some("secret-2"))).unwrap();
    for (user, password, state) in
        [("postgres", "wrong", "28P01"), ("old", "wrong", "28P01"), ("nobody", "x", "28000"), ("ghost", "x", "28P01")]
    {
        let error = connect(&with(user, Some(password))).unwrap_err();
        assert_eq!((sqlstate(&error), error.kind()), (Some(state), Kind::Usage), "{user}: {}", shown(&error));
        assert!(shown(&error).contains(user) && error.hint_text().is_some());
    }
    let error = connect(&with("clear", Some("secret-1"))).unwrap_err();
    assert!(error.kind() == Kind::Usage && shown(&error).contains("clear text"), "{}", shown(&error));

    let mut none = cluster.tcp_settings();
    let missing = Settings::parse(&format!("hostaddr=127.0.0.1 port={} user=postgres passfile=/dev/null", cluster.port)).unwrap();
    let error = connect(&missing).unwrap_err();
    assert!(error.kind() == Kind::Usage && shown(&error).contains("wants a password"), "{}", shown(&error));
    none.database = Some("no such".into());
    assert_eq!(sqlstate(&connect(&none).unwrap_err()), Some("3D000"));

    // A changed password works from the next connection on, by way of the file.
    let file = cluster.folder().join("pgpass");
    let settings =
        Settings::parse(&format!("hostaddr=127.0.0.1 port={} user=old dbname=postgres passfile={}", cluster.port, file.display()));
    let settings = settings.unwrap();
    for password in ["secret:2", "secret\\3"] {
        connection.execute(&format!("ALTER ROLE old PASSWORD {}", quote_literal(password))).unwrap();
        cluster.write(&file, &format!("127.0.0.1:*:postgres:old:{}\n", password.replace('\\', "\\\\").replace(':', "\\:")));
        connect(&settings).unwrap();
    }
}

#[test]
fn no_server_a_silent_one_and_one_that_is_something_else() {
    let nobody = Settings::parse(&format!("host=127.0.0.1 port={} user=u", support::free_port())).unwrap();
    let error = connect(&nobody).unwrap_err();
    assert!(error.kind() == Kind::Unavailable && error.hint_text().is_some(), "{}", shown(&error));
    let error = connect(&Settings::parse("host=/nonexistent user=u").unwrap()).unwrap_err();
    assert!(error.kind() == Kind::Unavailable && shown(&error).contains("/nonexistent/.s.PGSQL.5432"), "{}", shown(&error));

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let silent = Settings::parse(&format!("host=127.0.0.1 port={port} user=u connect_timeout=1")).unwrap();
    let start = Instant::now();
    let error = connect(&silent).unwrap_err();
    assert!(error.kind() == Kind::Unavailable && shown(&error).contains("in time"), "{}", shown(&error));
    // Not the minutes that the system itself would take.
    assert!(start.elapsed() < Duration::from_secs(30));

    // Interrupted long before the limit.
    let cancel = Cancel::default();
    let mut slow = silent.clone();
    slow.connect_timeout = Duration::from_mins(1);
    let waiting = std::thread::spawn({
        let cancel = cancel.clone();
        move || Connection::connect(&slow, SQL, &cancel).unwrap_err()
    });
    cancel.cancel();
    assert_eq!(waiting.join().unwrap().kind(), Kind::Interrupted);
    assert!(start.elapsed() < Duration::from_secs(50));

    // Something that talks another protocol.
    let http = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = http.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for connection in http.incoming() {
            let _ = std::io::Write::write_all(&mut connection.unwrap(), b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    for mode in ["disable", "require"] {
        let error = connect(&Settings::parse(&format!("host=127.0.0.1 port={port} user=u sslmode={mode}")).unwrap()).unwrap_err();
        assert!(matches!(error.kind(), Kind::Usage | Kind::Failed | Kind::Unavailable) && error.hint_text().is_some(), "{}", shown(&error));
    }
}

#[test]
fn a_query_that_never_ends_and_a_server_that_does() {
    let cluster = Cluster::start(distribution_version());
    let running = || cluster.value("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'");

    let mut connection = cluster.connect();
    connection.set_timeout(Duration::from_millis(500));
    let error = connection.query("SELECT pg_sleep(600)").unwrap_err();
    assert!(error.kind() == Kind::Unavailable && shown(&error).contains("in time"), "{}", shown(&error));
    assert_eq!(connection.query("SELECT 1").unwrap_err().kind(), Kind::Unavailable, "no answer of an earlier question");
    wait_until("the query to be cancelled on the server", || running() == "0");

    let cancel = Cancel::default();
    let mut connection = Connection::connect(&cluster.socket_settings(), SQL, &cancel).unwrap();
    let waiting = std::thread::spawn(move || connection.query("SELECT pg_sleep(600)").unwrap_err());
    wait_until("the query to run", || running() == "1");
    cancel.cancel();
    assert_eq!(waiting.join().unwrap().kind(), Kind::Interrupted);
    wait_until("the query to be cancelled on the server", || running() == "0");

    let mut connection = cluster.connect();
    let process = connection.backend_process();
    let waiting = std::thread::spawn(move || connection.query("SELECT pg_sleep(600)").unwrap_err());
    wait_until("the query to run", || running() == "1");
    cluster.sql(&format!("SELECT pg_terminate_backend({process})"));
    let error = waiting.join().unwrap();
    assert_eq!((sqlstate(&error), error.kind()), (Some("57P01"), Kind::Unavailable), "{}", shown(&error));

    let mut connection = cluster.connect();
    let waiting = std::thread::spawn(move || connection.query("SELECT pg_sleep(600)").unwrap_err());
    wait_until("the query to run", || running() == "1");
    cluster.kill_server();
    let error = waiting.join().unwrap();
    assert!(error.kind() == Kind::Unavailable, "{}", shown(&error));
}

#[test]
fn tls_proves_what_it_was_asked_to_prove() {
    let folder = tempfile::tempdir().unwrap();
    let ec = ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    let authority = Authority::new(folder.path(), "root");
    authority.issue("server", "localhost", "DNS:localhost", &ec);
    authority.issue("user", "certified", "DNS:unused", &["rsa:2048"]);
    let stranger = Authority::new(folder.path(), "stranger");
    stranger.issue("fake", "certified", "DNS:unused", &ec);

    let cluster = Options::new(distribution_version())
        .setting("ssl", "on")
        .setting("ssl_ca_file", "root.crt")
        .hba(
            "local all all trust\nhostssl all certified 127.0.0.1/32 cert\nhostssl all clear 127.0.0.1/32 password\n\
             hostssl all all 127.0.0.1/32 scram-sha-256\n",
        )
        .create();
    for name in ["server.crt", "server.key", "root.crt"] {
        cluster.write(&cluster.data().join(name), &fs::read_to_string(folder.path().join(name)).unwrap());
    }
    cluster.start_server();
    let der = CertificateDer::from_pem_file(folder.path().join("server.crt")).unwrap();
    let shown_by = |settings| server_certificate(&settings, &Cancel::default()).unwrap();
    assert_eq!(shown_by(cluster.tcp_settings()).as_deref(), Some(der.as_ref()), "whoever signed it, and without a login");
    assert_eq!(shown_by(cluster.socket_settings()), None);
    cluster.sql("CREATE ROLE certified LOGIN; CREATE ROLE clear LOGIN PASSWORD 'secret'");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let with = |host: &str, user: &str, more: &str| {
        let text = format!("host={host} hostaddr=127.0.0.1 port={} user={user} dbname=postgres {more}", cluster.port);
        let mut settings = Settings::parse(&text).unwrap();
        settings.set_password(if user == "clear" { "secret".to_owned() } else { PASSWORD.to_owned() }.into());
        connect(&settings)
    };
    let in_use = "SELECT ssl::text || ' ' || coalesce(client_dn, '') FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let root = path("root.crt");

    for (host, more) in [
        ("localhost", format!("sslmode=verify-full sslrootcert={root}")),
        ("other.example", format!("sslmode=verify-ca sslrootcert={root}")),
        ("other.example", "sslmode=require".to_owned()),
        ("localhost", String::new()),
    ] {
        let mut connection = with(host, "postgres", &more).unwrap_or_else(|error| panic!("{host} {more}: {}", shown(&error)));
        assert_eq!(connection.value(in_use).unwrap().unwrap(), "true ", "{more}");
        // More than one TLS record both ways.
        let long = "x".repeat(300_000);
        assert_eq!(connection.value(&format!("SELECT '{long}'")).unwrap().unwrap(), long);
    }
    for (host, more, says) in [
        ("other.example", format!("sslmode=verify-full sslrootcert={root}"), "not valid for name"),
        ("localhost", format!("sslmode=verify-full sslrootcert={}", path("stranger.crt")), "UnknownIssuer"),
        ("localhost", format!("sslmode=verify-ca sslrootcert={}", path("stranger.crt")), "UnknownIssuer"),
        ("localhost", format!("sslmode=require sslrootcert={}", path("stranger.crt")), "UnknownIssuer"),
        ("localhost", "sslmode=verify-full".to_owned(), "UnknownIssuer"),
        ("localhost", format!("sslmode=verify-full sslrootcert={}", path("user.key")), "no certificate"),
        ("localhost", "sslmode=verify-full sslrootcert=/nonexistent".to_owned(), "/nonexistent"),
    ] {
        let error = with(host, "postgres", &more).err().unwrap_or_else(|| panic!("{host} {more} was accepted"));
        assert!(error.kind() == Kind::Usage && shown(&error).contains(says), "{more}: {}", shown(&error));
    }
    let error = with("localhost", "postgres", "sslmode=disable").unwrap_err();
    assert_eq!((sqlstate(&error), error.kind()), (Some("28000"), Kind::Usage), "the server wants TLS");
    with("localhost", "clear", &format!("sslmode=verify-full sslrootcert={root}")).unwrap();

    // Client certificates.
    let certificate = |name: &str| {
        format!("sslrootcert={root} sslmode=verify-full sslcert={} sslkey={}", path(&format!("{name}.crt")), path(&format!("{name}.key")))
    };
    let mut connection = with("localhost", "certified", &certificate("user")).unwrap();
    assert_eq!(connection.value(in_use).unwrap().unwrap(), "true /CN=certified");
    let replication =
        Settings::parse(&format!("host=localhost hostaddr=127.0.0.1 port={} user=certified {}", cluster.port, certificate("user")));
    assert_eq!(
        sqlstate(&Connection::connect(&replication.unwrap(), Mode::Replication, &Cancel::default()).unwrap_err()),
        Some("28000"),
        "no line for replication in pg_hba.conf"
    );
    for more in [certificate("fake"), format!("sslrootcert={root} sslmode=verify-full")] {
        let error = with("localhost", "certified", &more).unwrap_err();
        assert!(matches!(error.kind(), Kind::Usage | Kind::Unavailable), "{}", shown(&error));
    }
    fs::set_permissions(folder.path().join("user.key"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let error = with("localhost", "certified", &certificate("user")).unwrap_err();
    assert!(shown(&error).contains("read by others"), "{}", shown(&error));

    // A query's cancel request goes through TLS too.
    let mut settings = cluster.tcp_settings();
    settings.timeout = Duration::from_millis(500);
    let error = connect(&settings).unwrap().query("SELECT pg_sleep(600)").unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    wait_until("the cancel", || {
        cluster.value("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'") == "0"
    });
}

#[test]
fn a_server_without_tls_gets_no_password() {
    let cluster = Cluster::start(NEWEST);
    for mode in ["require", "verify-ca", "verify-full"] {
        let text =
            format!("host=localhost hostaddr=127.0.0.1 port={} user=postgres password=x sslmode={mode} sslrootcert=system", cluster.port);
        let error = connect(&Settings::parse(&text).unwrap()).unwrap_err();
        assert!(error.kind() == Kind::Usage && shown(&error).contains("has no TLS"), "{}", shown(&error));
    }
}
