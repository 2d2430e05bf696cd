//! What integration tests share: finding test tools and running real servers that never outlive the test process.
//!
//! A test names what it needs with `mod support;` and uses, for example, `support::s3::SeaweedFs::shared()`.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod azure;
pub mod certificates;
pub mod mail;
pub mod postgres;
pub mod proxy;
pub mod s3;
pub mod target;

use std::net::TcpListener;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The path of a tool that `scripts/install-test-tools` installs.
///
/// # Panics
/// When it is not installed: a test that could not run is not a test that passed.
pub fn tool(name: &str) -> PathBuf {
    let tools =
        std::env::var_os("LIFEBOAT_TEST_TOOLS").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/tools"), PathBuf::from);
    let path = tools.join("bin").join(name);
    assert!(
        path.exists(),
        "{} is missing: run scripts/test, which installs what tests need (or scripts/install-test-tools)",
        path.display()
    );
    path
}

/// A port on loopback that nobody listens on, and neither on the one 10,000 above it (SeaweedFS takes that for gRPC).
/// Outside the range from which the system itself picks. No other test gets it while this process lives: between now and the server that
/// listens there lies an initdb.
pub fn free_port() -> u16 {
    use std::os::linux::net::SocketAddrExt as _;
    static TAKEN: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    for _ in 0..1000 {
        let mut random = [0; 2];
        getrandom::fill(&mut random).unwrap();
        let port = 12_000 + u16::from_le_bytes(random) % 10_000;
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        let name = SocketAddr::from_abstract_name(format!("lifeboat-test-port-{port}")).unwrap();
        if let Ok(taken) = UnixListener::bind_addr(&name)
            && free(port)
            && free(port + 10_000)
        {
            TAKEN.lock().unwrap().push(taken);
            return port;
        }
    }
    panic!("no free port on loopback");
}

/// A server process with a folder of its own. It ends, and the folder goes, when this is dropped or when the test process ends in
/// whatever way: SIGTERM, then SIGKILL after two seconds.
pub struct Server {
    guard: Child,
    alive: Option<ChildStdin>,
    log: PathBuf,
    name: String,
}

/// Runs a server until standard input ends: a pipe that only the test process holds. Arguments: folder, command, its arguments. A file `elsewhere` in the
/// folder lists what the server makes outside of it.
const GUARD: &str = r#"
folder=$1; shift
"$@" >"$folder/server.log" 2>&1 </dev/null &
server=$!
cat >/dev/null
# The whole group, which is this shell's own: a server may have children.
trap '' TERM
kill -TERM -- -$$
for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$server" 2>/dev/null || break; sleep 0.2; done
kill -9 "$server" 2>/dev/null
wait "$server" 2>/dev/null
[ ! -e "$folder/elsewhere" ] || xargs rm -f <"$folder/elsewhere"
rm -rf "$folder"
kill -9 -- -$$
"#;

impl Server {
    /// Starts `command`; its output goes to a file. `folder` is removed in the end.
    pub fn start(folder: PathBuf, command: &Path, arguments: &[String]) -> Self {
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "sh"])
            .arg(&folder)
            .arg(command)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Not hit by a Ctrl-C at the terminal: it has to clean up.
            .process_group(0)
            .spawn()
            .unwrap();
        let alive = guard.stdin.take();
        let log = folder.join("server.log");
        Self { guard, alive, log, name: command.display().to_string() }
    }

    /// Waits until `ready` says so.
    ///
    /// # Panics
    /// With the end of the server's output when that takes longer than `bound`.
    pub fn wait_until(&self, what: &str, bound: Duration, mut ready: impl FnMut() -> Result<(), String>) {
        let start = Instant::now();
        while let Err(reason) = ready() {
            if start.elapsed() > bound {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(20).collect();
                let end: Vec<&str> = end.into_iter().rev().collect();
                panic!("{}: {what} not within {bound:?}: {reason}\n{}", self.name, end.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.alive.take());
        let _ = self.guard.wait();
    }
}

/// An empty folder that a [`Server`] will remove.
pub fn server_folder(name: &str) -> PathBuf {
    tempfile::Builder::new().prefix(&format!("lifeboat-{name}-")).tempdir().unwrap().keep()
}

/// One HTTP/1.0 request without a library; yields the status.
///
/// # Errors
/// A text when nothing answers.
pub fn http(port: u16, method: &str, path: &str) -> Result<u16, String> {
    use std::io::{Read as _, Write as _};
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let mut connection = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2)).map_err(|e| e.to_string())?;
    connection.set_read_timeout(Some(Duration::from_secs(5))).map_err(|e| e.to_string())?;
    let request = format!("{method} {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n");
    connection.write_all(request.as_bytes()).map_err(|e| e.to_string())?;
    let mut answer = [0; 12];
    connection.read_exact(&mut answer).map_err(|e| e.to_string())?;
    String::from_utf8_lossy(&answer[9..]).parse().map_err(|_| "no HTTP status".to_owned())
}
