//! A client that says exactly what a test wants, also what no client should; and the daemon that it talks to.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::workspace::Workspace;

/// Far beyond what anything here takes; a test that waits so long has failed.
pub const BOUND: Duration = Duration::from_mins(2);

pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(began.elapsed() < BOUND, "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// `lifeboat serve --listen 127.0.0.1:0`; killed when the test ends, however it ends.
pub struct Daemon<'a> {
    child: Child,
    workspace: &'a Workspace,
    pub address: SocketAddr,
}

impl<'a> Daemon<'a> {
    pub fn start(workspace: &'a Workspace) -> Self {
        Self::start_with(workspace, |_| {})
    }

    pub fn start_with(workspace: &'a Workspace, more: impl FnOnce(&mut std::process::Command)) -> Self {
        let log = std::fs::File::create(workspace.path("serve.log")).unwrap();
        let mut command = workspace.command(&["serve", "--log-format", "json", "--listen", "127.0.0.1:0"]);
        more(&mut command);
        let child = command.env("LIFEBOAT_LOG", "info,lifeboat=debug,hyper=debug").stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut daemon = Self { child, workspace, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        daemon.address = until("the API answers", || {
            assert!(daemon.child.try_wait().unwrap().is_none(), "{}", daemon.log());
            let lines = daemon.log();
            let line = lines.lines().find(|line| line.contains("the API answers") && line.ends_with('}'))?.to_owned();
            let line: Value = serde_json::from_str(&line).unwrap();
            Some(line["fields"]["address"].as_str().unwrap().parse().unwrap())
        });
        daemon
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.workspace.path("serve.log")).unwrap()
    }

    pub fn token(&self, file: &str) -> String {
        std::fs::read_to_string(self.workspace.path("state").join(file)).unwrap().trim().to_owned()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap()).unwrap()
    }

    /// Asks with the API's token.
    pub fn ask(&self, method: &str, target: &str, body: Option<&str>) -> Answer {
        let token = self.token("api.token");
        let body =
            body.map_or_else(String::new, |body| format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        let end = if body.is_empty() { "\r\n" } else { "" };
        self.send(
            format!("{method} {target} HTTP/1.1\r\nHost: lifeboat\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n{body}{end}")
                .as_bytes(),
        )
    }

    pub fn get(&self, target: &str) -> Value {
        let answer = self.ask("GET", target, None);
        assert_eq!(answer.status, 200, "{target}: {answer:?}");
        answer.json()
    }

    /// Sends these bytes and reads one answer.
    pub fn send(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect();
        // The other side may have answered and closed before it has read all.
        let _ = stream.write_all(request);
        Answer::read(&mut stream)
            .unwrap_or_else(|error| panic!("no answer to {:?}: {error}", String::from_utf8_lossy(&request[..request.len().min(300)])))
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        stream.set_write_timeout(Some(BOUND)).unwrap();
        stream
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// SIGTERM, and the exit code.
    pub fn stop(mut self) -> Option<i32> {
        kill_process(self.pid(), Signal::TERM).unwrap();
        until("the daemon ends", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// # Errors
    /// When the connection ends before a whole answer is there.
    pub fn read(stream: &mut TcpStream) -> Result<Self, String> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        let (head, status, mut body) = loop {
            let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
                match stream.read(&mut buffer) {
                    Ok(0) => return Err(format!("closed after {:?}", String::from_utf8_lossy(&bytes))),
                    Ok(read) => bytes.extend_from_slice(&buffer[..read]),
                    Err(error) => return Err(format!("{error} after {:?}", String::from_utf8_lossy(&bytes))),
                }
                continue;
            };
            let rest = bytes.split_off(end + 4);
            let head = String::from_utf8(std::mem::replace(&mut bytes, rest)).map_err(|error| error.to_string())?;
            let status: u16 = head.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(|| head.clone())?;
            // `100 Continue` goes before the answer.
            if status >= 200 {
                break (head, status, bytes);
            }
        };
        let length = header(&head, "content-length").and_then(|length| length.parse::<usize>().ok());
        while length.is_some_and(|length| body.len() < length) {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => body.extend_from_slice(&buffer[..read]),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(Self { status, head, body })
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<String> {
        header(&self.head, name)
    }

    /// `error.kind`
    pub fn kind(&self) -> String {
        self.json()["error"]["kind"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }
}

fn header(head: &str, name: &str) -> Option<String> {
    let line = head.lines().skip(1).find(|line| line.split(':').next().is_some_and(|given| given.eq_ignore_ascii_case(name)))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
