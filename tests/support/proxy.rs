//! A TCP proxy that can lose answers: the request arrives and is carried out, and the connection breaks before the answer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

#[derive(Default)]
struct Programme {
    /// What a request must start with, and how many answers are still to be cut off.
    cut: Mutex<(String, usize)>,
    cuts: AtomicUsize,
    /// All connections break when the server has sent so many more bytes.
    bytes_left: Mutex<Option<usize>>,
    /// Nothing comes through any more, and nobody is told.
    silent: AtomicBool,
}

impl Programme {
    /// While the network swallows everything.
    async fn while_silent(&self) {
        while self.silent.load(Ordering::SeqCst) {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Whether the connection goes on after these bytes.
    fn lets_through(&self, size: usize) -> bool {
        let mut left = self.bytes_left.lock().unwrap();
        let goes_on = left.is_none_or(|left| left > size);
        if let Some(left) = left.as_mut() {
            *left = left.saturating_sub(size);
        }
        goes_on
    }
}

/// Forwards to one server for as long as the runtime lives.
pub struct Proxy {
    port: u16,
    programme: Arc<Programme>,
}

impl Proxy {
    /// In front of `endpoint` (`http://host:port`).
    pub async fn start(endpoint: &str) -> Self {
        let upstream = endpoint.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let programme = Arc::new(Programme::default());
        let shared = programme.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // A connection that breaks is what this is for.
                tokio::spawn(forward(client, upstream.clone(), shared.clone()));
            }
        });
        Self { port, programme }
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The next `count` requests that start with `method` reach the server; their answers do not come back.
    pub fn cut_answers(&self, method: &str, count: usize) {
        *self.programme.cut.lock().unwrap() = (method.to_owned(), count);
    }

    /// All connections break once the server has sent so many more bytes, and new ones at their first; `None`: no more.
    pub fn break_after(&self, bytes: Option<usize>) {
        *self.programme.bytes_left.lock().unwrap() = bytes;
    }

    /// Swallows what either side sends; connections stay open. Afterwards it arrives.
    pub fn silence(&self, silent: bool) {
        self.programme.silent.store(silent, Ordering::SeqCst);
    }

    /// Where it listens on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Answers cut off so far.
    pub fn cuts(&self) -> usize {
        self.programme.cuts.load(Ordering::SeqCst)
    }
}

async fn forward(client: TcpStream, upstream: String, programme: Arc<Programme>) -> std::io::Result<()> {
    let server = TcpStream::connect(upstream).await?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let lose = Arc::new(AtomicUsize::new(0));
    let lose_next = lose.clone();
    let shared = programme.clone();
    let up = tokio::spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let size = from_client.read(&mut buffer).await?;
            if size == 0 {
                return to_server.shutdown().await;
            }
            {
                let mut cut = shared.cut.lock().unwrap();
                if cut.1 > 0 && buffer[..size].starts_with(cut.0.as_bytes()) {
                    cut.1 -= 1;
                    lose_next.fetch_add(1, Ordering::SeqCst);
                }
            }
            shared.while_silent().await;
            to_server.write_all(&buffer[..size]).await?;
        }
    });
    let mut buffer = vec![0; 64 << 10];
    loop {
        let size = from_server.read(&mut buffer).await?;
        if !programme.lets_through(size) {
            programme.cuts.fetch_add(1, Ordering::SeqCst);
            up.abort();
            return Ok(());
        }
        // The server has answered, so it has done what was asked.
        if lose.load(Ordering::SeqCst) > 0 {
            programme.cuts.fetch_add(1, Ordering::SeqCst);
            up.abort();
            return Ok(());
        }
        if size == 0 {
            return Ok(());
        }
        programme.while_silent().await;
        to_client.write_all(&buffer[..size]).await?;
    }
}
