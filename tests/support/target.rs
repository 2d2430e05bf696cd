//! A target of notifications: an HTTP server that answers as told (or never), over TLS where it gets a certificate, and remembers what it got.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// Path and query.
    pub path: String,
    /// `name: value`, names in small letters.
    pub headers: Vec<String>,
    pub body: String,
}

impl Request {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// How a request is answered.
#[derive(Debug, Clone)]
pub enum Answer {
    Status(u16, &'static str),
    /// The connection stays open and nothing comes.
    Never,
}

#[derive(Default)]
struct Programme {
    /// For the next requests; then `200 {}`.
    answers: Mutex<VecDeque<Answer>>,
    got: Mutex<Vec<Request>>,
    stop: AtomicBool,
}

/// A running server.
pub struct Target {
    pub port: u16,
    programme: Arc<Programme>,
}

impl Target {
    pub fn start() -> Self {
        Self::serve(None)
    }

    /// With a certificate and its key, PEM files.
    pub fn with_tls(certificate: &str, key: &str) -> Self {
        let certificates = CertificateDer::pem_file_iter(certificate).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Self::serve(Some(Arc::new(config.with_no_client_auth().with_single_cert(certificates, key).unwrap())))
    }

    fn serve(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let programme = Arc::new(Programme::default());
        let kept = Arc::clone(&programme);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if kept.stop.load(Ordering::SeqCst) {
                    return;
                }
                let (kept, tls) = (Arc::clone(&kept), tls.clone());
                std::thread::spawn(move || {
                    let Ok(stream) = stream else { return };
                    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
                    // A client that refuses the certificate, or goes away, is no concern of the server's.
                    let _ = match tls {
                        Some(config) => {
                            let connection = ServerConnection::new(config).unwrap();
                            exchange(StreamOwned::new(connection, stream), &kept)
                        }
                        None => exchange(stream, &kept),
                    };
                });
            }
        });
        Self { port, programme }
    }

    /// What the next requests get, in this order.
    pub fn answers(&self, answers: &[Answer]) {
        self.programme.answers.lock().unwrap().extend(answers.iter().cloned());
    }

    /// All that came so far.
    pub fn got(&self) -> Vec<Request> {
        self.programme.got.lock().unwrap().clone()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.programme.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn exchange(stream: impl Read + Write, programme: &Programme) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    if method.is_empty() {
        return Ok(());
    }
    let (mut headers, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        let name = name.to_ascii_lowercase();
        if name == "content-length" {
            length = value.parse().unwrap();
        }
        headers.push(format!("{name}: {value}"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let body = String::from_utf8(body).unwrap();
    programme.got.lock().unwrap().push(Request { method, path, headers, body });
    let answer = programme.answers.lock().unwrap().pop_front().unwrap_or(Answer::Status(200, "{}"));
    match answer {
        Answer::Never => {
            while !programme.stop.load(Ordering::SeqCst) {
                std::thread::park_timeout(Duration::from_millis(100));
            }
        }
        Answer::Status(status, body) => {
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            stream.get_mut().write_all(format!("{head}{body}").as_bytes())?;
            stream.get_mut().flush()?;
        }
    }
    Ok(())
}
