//! Private PostgreSQL servers: the distribution's (15 on Debian 12) and the newer ones that `scripts/install-test-tools` brings.
//!
//! Each cluster has its own folder, socket and port on 127.0.0.1, runs as an unprivileged user, and ends with its test, also by a panic
//! or when the test process is killed. Trust on the socket, SCRAM over TCP; the superuser is `postgres` with [`PASSWORD`].

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lifeboat::event::Cancel;
use lifeboat::source::postgres::client::{Connection, Mode};
use lifeboat::source::postgres::conninfo::Settings;

/// The superuser's password.
pub const PASSWORD: &str = "TESTPASSWORD'with \\signs äß";
/// The newest major version that comes from `scripts/install-test-tools`.
pub const NEWEST: u32 = 18;

/// The distribution's newest major version; another one where `LIFEBOAT_TEST_POSTGRES` names it, so that the same tests run on that.
///
/// # Panics
/// When there is none: a test that could not run is not a test that passed.
pub fn distribution_version() -> u32 {
    if let Ok(version) = std::env::var("LIFEBOAT_TEST_POSTGRES") {
        return version.parse().expect("LIFEBOAT_TEST_POSTGRES is a major version, such as 17");
    }
    let installed =
        fs::read_dir("/usr/lib/postgresql").into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    installed.max().expect("PostgreSQL is missing: run scripts/test, which installs what tests need")
}

/// The folder with the programs of a major version.
///
/// # Panics
/// When it is not installed.
pub fn bin_directory(version: u32) -> PathBuf {
    let packaged = PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"));
    if packaged.join("initdb").exists() {
        return packaged;
    }
    let tools =
        std::env::var_os("LIFEBOAT_TEST_TOOLS").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/tools"), PathBuf::from);
    let installed = tools.join(format!("postgres-{version}/bin"));
    assert!(installed.join("initdb").exists(), "{} is missing: run scripts/install-test-tools", installed.display());
    installed
}

/// Who servers run as: `None` when the tests are not run by root.
pub fn server_user() -> Option<(u32, u32)> {
    if !rustix::process::getuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let postgres = users.lines().find(|line| line.starts_with("postgres:")).map(|line| {
        let mut fields = line.split(':').skip(2).map(|field| field.parse().unwrap());
        (fields.next().unwrap(), fields.next().unwrap())
    });
    Some(postgres.unwrap_or((65_534, 65_534)))
}

/// A command that runs as [`server_user`].
pub fn as_server_user(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    if let Some((user, group)) = server_user() {
        command.uid(user).gid(group);
    }
    command.current_dir("/").env("LC_ALL", "C.UTF-8").env("TZ", "UTC").stdin(Stdio::null());
    command
}

/// Waits until standard input, a pipe that only the test process holds, ends; then ends the server and removes the folder.
const GUARD: &str = r#"
folder=$1
cat >/dev/null
end() { for pid in $(sed -n 1p "$folder"/data*/postmaster.pid 2>/dev/null); do kill "-$1" "$pid" 2>/dev/null; done; }
end QUIT
for _ in 1 2 3 4 5 6 7 8 9 10; do ls "$folder"/data*/postmaster.pid >/dev/null 2>&1 || break; sleep 0.1; done
end KILL
rm -rf "$folder"
"#;

/// How a cluster is made.
pub struct Options {
    version: u32,
    programs: PathBuf,
    initdb: Vec<String>,
    settings: Vec<(String, String)>,
    hba: String,
    locales: Option<PathBuf>,
}

impl Options {
    /// For a major version.
    pub fn new(version: u32) -> Self {
        let hba = "local all all trust\nlocal replication all trust\nhost all all 127.0.0.1/32 scram-sha-256\n\
                   host replication all 127.0.0.1/32 scram-sha-256\n";
        let programs = bin_directory(version);
        Self { version, programs, initdb: vec!["--data-checksums".into()], settings: Vec::new(), hba: hba.into(), locales: None }
    }

    /// The programs in this folder, of the same version.
    #[must_use]
    pub fn programs(mut self, folder: &Path) -> Self {
        folder.clone_into(&mut self.programs);
        self
    }

    /// One more setting in `postgresql.conf`.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// One more argument of `initdb`.
    #[must_use]
    pub fn initdb(mut self, argument: &str) -> Self {
        self.initdb.push(argument.into());
        self
    }

    /// The locales in this folder (and `C`), in place of the system's.
    #[must_use]
    pub fn locales(mut self, folder: &Path) -> Self {
        self.locales = Some(folder.to_owned());
        self.initdb("--locale=C")
    }

    /// Pages without checksums, `initdb`'s default up to 17.
    #[must_use]
    pub fn without_checksums(mut self) -> Self {
        self.initdb.retain(|argument| argument != "--data-checksums");
        if self.version >= 18 { self.initdb("--no-data-checksums") } else { self }
    }

    /// In place of the usual `pg_hba.conf`. The socket must stay trusted.
    #[must_use]
    pub fn hba(mut self, text: &str) -> Self {
        self.hba = text.into();
        self
    }

    /// Makes it and starts it.
    pub fn start(self) -> Cluster {
        let cluster = self.create();
        cluster.start_server();
        cluster
    }

    /// Makes it without starting it.
    pub fn create(self) -> Cluster {
        let mut cluster = Cluster::empty(self.version);
        cluster.programs = self.programs;
        cluster.locales = self.locales;
        let password = cluster.folder.join("password");
        cluster.write(&password, PASSWORD);
        cluster.run(
            "initdb",
            ["--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", "--username=postgres", "--auth=trust"]
                .map(String::from)
                .into_iter()
                .chain([format!("--pwfile={}", password.display()), format!("--pgdata={}", cluster.data().display())])
                .chain(self.initdb),
        );
        cluster.configure(&self.settings);
        cluster.write(&cluster.data().join("pg_hba.conf"), &self.hba);
        cluster
    }
}

/// A cluster and, while it runs, its server.
pub struct Cluster {
    pub version: u32,
    pub port: u16,
    programs: PathBuf,
    locales: Option<PathBuf>,
    folder: PathBuf,
    data: PathBuf,
    guard: Child,
    alive: Option<ChildStdin>,
}

impl Cluster {
    /// A running cluster with the usual settings.
    pub fn start(version: u32) -> Self {
        Options::new(version).start()
    }

    /// A place for a cluster, without a data folder: for restoring into.
    pub fn empty(version: u32) -> Self {
        // Short: the path of a socket may have 107 bytes.
        let folder = tempfile::Builder::new().prefix("lbpg-").tempdir_in("/tmp").unwrap().keep();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        if let Some((user, group)) = server_user() {
            std::os::unix::fs::chown(&folder, Some(user), Some(group)).unwrap();
        }
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "sh"])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let alive = guard.stdin.take();
        Self {
            version,
            port: super::free_port(),
            programs: bin_directory(version),
            locales: None,
            data: folder.join("data"),
            folder,
            guard,
            alive,
        }
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.data.clone()
    }

    /// The folder that holds data and socket, and goes with the cluster.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Appends what the tests need, and `settings`, to `postgresql.conf`.
    pub fn configure(&self, settings: &[(String, String)]) {
        let mut text = format!(
            "\nport = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nwal_level = replica\nmax_wal_senders = 10\n\
             fsync = off\nshared_buffers = 16MB\nmax_connections = 30\nlog_min_messages = warning\npassword_encryption = scram-sha-256\n",
            self.port,
            self.folder.display()
        );
        for (name, value) in settings {
            writeln!(text, "{name} = '{}'", value.replace('\'', "''")).unwrap();
        }
        let path = self.data.join("postgresql.conf");
        let before = fs::read_to_string(&path).unwrap_or_default();
        self.write(&path, &(before + &text));
    }

    /// Writes a file that the server may read, and nobody else.
    #[expect(clippy::unused_self, reason = "reads as what it is: in the cluster's folder")]
    pub fn write(&self, path: &Path, text: &str) {
        let mut file = fs::File::create(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        if let Some((user, group)) = server_user() {
            std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
        }
    }

    /// Runs one of the version's programs to its end, as the server's user.
    ///
    /// # Panics
    /// With its output when it fails.
    pub fn run(&self, program: &str, arguments: impl IntoIterator<Item = String>) -> Output {
        let output = self.command(program).args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{program}: {}\n{}{}\n{}", output.status, text(&output.stdout), text(&output.stderr), self.log());
        output
    }

    fn command(&self, program: &str) -> Command {
        let mut command = as_server_user(self.programs.join(program));
        command.envs(self.locales.iter().map(|folder| ("LOCPATH", folder)));
        command
    }

    fn pg_ctl(&self, arguments: &[&str]) {
        self.pg_ctl_with(arguments, &[]);
    }

    fn pg_ctl_with(&self, arguments: &[&str], environment: &[(&str, &Path)]) {
        let all = arguments.iter().map(|&argument| argument.to_owned()).chain([format!("--pgdata={}", self.data.display())]);
        // Not to a pipe: the server would keep it open.
        let mut command = self.command("pg_ctl");
        command.envs(environment.iter().copied()).args(all).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status().unwrap();
        assert!(status.success(), "pg_ctl {arguments:?}: {status}\n{}", self.log());
    }

    /// Starts the server and waits until it takes connections.
    pub fn start_server(&self) {
        self.pg_ctl(&["start", "--wait", "--timeout=240", &format!("--log={}", self.folder.join("log").display())]);
    }

    /// Starts the server with more in its environment.
    pub fn start_server_with(&self, environment: &[(&str, &Path)]) {
        let arguments = ["start", "--wait", "--timeout=240", &format!("--log={}", self.folder.join("log").display())];
        self.pg_ctl_with(&arguments, environment);
    }

    /// Stops it in an orderly way; sessions are ended.
    pub fn stop_server(&self) {
        self.pg_ctl(&["stop", "--wait", "--mode=fast", "--timeout=240"]);
    }

    /// Ends it like a crash.
    pub fn kill_server(&self) {
        let pid = fs::read_to_string(self.data.join("postmaster.pid")).unwrap().lines().next().unwrap().parse().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        // Its own processes, which work in the data folder, end by themselves; until then no server starts there.
        let is_of_it = |process: fs::DirEntry| fs::read_link(process.path().join("cwd")).is_ok_and(|folder| folder == self.data);
        let is_gone = || rustix::process::test_kill_process(pid).is_err() && !fs::read_dir("/proc").unwrap().flatten().any(is_of_it);
        wait_until("the killed server to be gone", is_gone);
    }

    /// Makes a standby a primary and waits until it is one.
    pub fn promote(&self) {
        self.pg_ctl(&["promote", "--wait", "--timeout=240"]);
    }

    /// What the server wrote to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Settings for the socket, as the superuser.
    pub fn socket_settings(&self) -> Settings {
        Settings::parse(&format!("host={} port={} user=postgres dbname=postgres", self.folder.display(), self.port)).unwrap()
    }

    /// Settings for TCP, with the superuser's password.
    pub fn tcp_settings(&self) -> Settings {
        let text = format!("hostaddr=127.0.0.1 host=localhost port={} user=postgres dbname=postgres", self.port);
        let mut settings = Settings::parse(&text).unwrap();
        settings.set_password(PASSWORD.to_owned().into());
        settings
    }

    /// A session as the superuser.
    pub fn connect(&self) -> Connection {
        Connection::connect(&self.socket_settings(), Mode::Sql { database: None }, &Cancel::default()).unwrap()
    }

    /// A replication session as the superuser.
    pub fn connect_replication(&self) -> Connection {
        Connection::connect(&self.socket_settings(), Mode::Replication, &Cancel::default()).unwrap()
    }

    /// Runs SQL in a session of its own.
    pub fn sql(&self, sql: &str) {
        self.connect().execute(sql).unwrap();
    }

    /// One value, in a session of its own.
    pub fn value(&self, sql: &str) -> String {
        self.connect().value(sql).unwrap().unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.alive.take());
        let _ = self.guard.wait();
    }
}

/// Waits for a condition, with a bound that only a machine under heavy load comes near.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_mins(4), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A folder with the locale `comma`, which writes amounts as they are written in Argentina: `$ 12,34`, with a point between thousands.
///
/// # Panics
/// Where `localedef` makes none.
#[must_use]
pub fn locale_with_a_comma() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("lbloc-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Both by hand: a machine without the package `locales` has neither.
    let letters = "<code_set_name> ANSI_X3.4-1968\n<comment_char> %\n<escape_char> /\nCHARMAP\n<U0000>..<U007F> /x00 x\nEND CHARMAP\n";
    let money = "comment_char %\nescape_char /\nLC_MONETARY\nint_curr_symbol \"ARS \"\ncurrency_symbol \"$\"\nmon_decimal_point \",\"\nmon_thousands_sep \".\"\n\
        mon_grouping 3;3\npositive_sign \"\"\nnegative_sign \"-\"\nint_frac_digits 2\nfrac_digits 2\np_cs_precedes 1\np_sep_by_space 1\nn_cs_precedes 1\n\
        n_sep_by_space 1\np_sign_posn 1\nn_sign_posn 1\nEND LC_MONETARY\n";
    fs::write(folder.path().join("letters"), letters).unwrap();
    fs::write(folder.path().join("money"), money).unwrap();
    let made = std::process::Command::new("localedef")
        .current_dir(folder.path())
        .args(["-c", "--no-archive", "-f", "./letters", "-i", "./money", "./comma"])
        .output();
    let said = made.expect("localedef of libc-bin");
    // It ends with 1, because there is nothing but amounts in it.
    assert!(folder.path().join("comma/LC_MONETARY").is_file(), "{}", String::from_utf8_lossy(&said.stderr));
    folder
}
