//! An HTTP proxy in front of a store that misbehaves at random, by a seed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{Method, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// 503, not carried out.
    Refuse,
    /// The connection breaks, not carried out.
    Reset,
    /// Carried out; the connection breaks before the answer.
    Lose,
    /// Carried out; the answer is held back, so that a listing is older than what was written since.
    Late,
    /// Half of the answer's body, then the connection breaks.
    Cut,
    /// A byte of what is read is wrong.
    Wrong,
}

const FAULTS: [Fault; 6] = [Fault::Refuse, Fault::Reset, Fault::Lose, Fault::Late, Fault::Cut, Fault::Wrong];

struct Programme {
    upstream: String,
    client: reqwest::Client,
    /// One request of so many goes wrong; 0: none.
    one_of: AtomicU64,
    random: Mutex<u64>,
    faults: AtomicU64,
}

/// Forwards to one server for as long as the runtime lives.
pub struct ChaosProxy {
    port: u16,
    programme: Arc<Programme>,
}

impl ChaosProxy {
    /// In front of `endpoint` (`http://host:port`); behaves until told otherwise.
    pub async fn start(endpoint: &str, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let programme = Arc::new(Programme {
            upstream: endpoint.to_owned(),
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            one_of: AtomicU64::new(0),
            random: Mutex::new(seed),
            faults: AtomicU64::new(0),
        });
        let shared = programme.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                        let shared = shared.clone();
                        async move { answer(&shared, request.map(Body::new)).await }
                    });
                    // A connection that breaks is what this is for.
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), service).await;
                });
            }
        });
        Self { port, programme }
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on one request of so many goes wrong.
    pub fn misbehave(&self, one_of: u64) {
        self.programme.one_of.store(one_of, Ordering::SeqCst);
    }

    pub fn behave(&self) {
        self.misbehave(0);
    }

    /// How many requests went wrong so far.
    pub fn faults(&self) -> u64 {
        self.programme.faults.load(Ordering::SeqCst)
    }
}

impl Programme {
    /// SplitMix64.
    fn random(&self) -> u64 {
        let mut state = self.random.lock().unwrap();
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn fault(&self) -> Option<Fault> {
        let one_of = self.one_of.load(Ordering::SeqCst);
        if one_of == 0 || !self.random().is_multiple_of(one_of) {
            return None;
        }
        self.faults.fetch_add(1, Ordering::SeqCst);
        Some(FAULTS[usize::try_from(self.random() % FAULTS.len() as u64).unwrap()])
    }
}

/// An error here closes the connection without an answer.
async fn answer(programme: &Programme, request: Request) -> Result<Response<Body>, std::io::Error> {
    let broken = || std::io::Error::other("broken on purpose");
    let fault = programme.fault();
    match fault {
        Some(Fault::Refuse) => {
            return Ok(Response::builder().status(StatusCode::SERVICE_UNAVAILABLE).body(Body::from("slow down")).unwrap());
        }
        Some(Fault::Reset) => return Err(broken()),
        _ => {}
    }
    let (head, body) = request.into_parts();
    let body = to_bytes(body, 256 << 20).await.map_err(|_| broken())?;
    let url = format!("{}{}", programme.upstream, head.uri);
    // The host stays as it was signed.
    let forwarded = programme.client.request(head.method.clone(), url).headers(head.headers).body(body).send().await;
    let answered = forwarded.map_err(|_| broken())?;
    let (status, headers) = (answered.status(), answered.headers().clone());
    let mut body = answered.bytes().await.map_err(|_| broken())?;
    let reads = head.method == Method::GET && !body.is_empty();
    match fault {
        Some(Fault::Lose) => return Err(broken()),
        Some(Fault::Late) => tokio::time::sleep(Duration::from_millis(150)).await,
        Some(Fault::Wrong) if reads => {
            let mut wrong = body.to_vec();
            let at = usize::try_from(programme.random() % wrong.len() as u64).unwrap();
            wrong[at] ^= 0x10;
            body = wrong.into();
        }
        _ => {}
    }
    let cut = fault == Some(Fault::Cut) && reads;
    let mut response = Response::builder().status(status);
    for (name, value) in &headers {
        if *name != header::TRANSFER_ENCODING && *name != header::CONNECTION && *name != header::CONTENT_LENGTH {
            response = response.header(name, value);
        }
    }
    if head.method == Method::HEAD {
        let length = headers.get(header::CONTENT_LENGTH).cloned();
        if let Some(length) = length {
            response = response.header(header::CONTENT_LENGTH, length);
        }
        return Ok(response.body(Body::empty()).unwrap());
    }
    response = response.header(header::CONTENT_LENGTH, body.len());
    let body = if cut {
        let half: Result<Bytes, std::io::Error> = Ok(body.slice(..body.len() / 2));
        Body::from_stream(futures::stream::iter([half, Err(broken())]))
    } else {
        Body::from(body)
    };
    Ok(response.body(body).unwrap())
}
