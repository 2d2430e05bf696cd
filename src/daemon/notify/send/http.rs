//! One request.

use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue};
use reqwest::{Certificate, Client, Method, redirect};
use tokio::runtime::Handle;

use crate::daemon::notify::send::{Target, too_slow};
use crate::error::{Error, IoContext as _, Kind, Result};

/// More of an answer is not read.
const MOST_ANSWER_BYTES: usize = 64 * 1024;

/// Posts the body (or gets, where there is none); the status, a success, and the beginning of the answer.
///
/// # Errors
/// As [`deliver`](crate::daemon::notify::send::deliver).
pub(super) fn request(target: &Target, body: Option<(&str, String)>, timeout: Duration, runtime: &Handle) -> Result<(u16, String)> {
    let client = client(target, timeout)?;
    let method = if body.is_some() { Method::POST } else { Method::GET };
    let mut request = client.request(method, target.url.clone());
    for (name, value) in &target.headers {
        let name = HeaderName::try_from(name).map_err(|error| Error::new(Kind::Usage, "use a header of the notifier").because(error))?;
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| Error::new(Kind::Usage, format!("the value of the header {name} is not printable ASCII")))?;
        value.set_sensitive(true);
        request = request.header(name, value);
    }
    if let Some((kind, body)) = body {
        request = request.header("content-type", kind).body(body);
    }
    let exchange = async {
        let mut response = request.send().await?;
        let status = response.status();
        let mut answer = Vec::new();
        while answer.len() < MOST_ANSWER_BYTES {
            let Some(piece) = response.chunk().await? else { break };
            answer.extend_from_slice(&piece);
        }
        Ok::<_, reqwest::Error>((status, answer))
    };
    // The client has the same limit; name resolution is not always under it.
    let done = runtime.block_on(async { tokio::time::timeout(timeout, exchange).await });
    let (status, answer) = match done {
        Err(_) => return Err(too_slow(timeout)),
        Ok(Err(error)) if error.is_timeout() => return Err(too_slow(timeout)),
        Ok(Err(error)) => return Err(failed(target, error)),
        Ok(Ok(answered)) => answered,
    };
    let answer = String::from_utf8_lossy(&answer).into_owned();
    if status.is_success() {
        return Ok((status.as_u16(), answer));
    }
    let said = target.redacted(&answer);
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    let kind = if status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429) { Kind::Unavailable } else { Kind::Failed };
    let error = Error::new(kind, format!("{} answered HTTP {}{said}", target.host(), status.as_u16()));
    Err(if status.is_redirection() {
        error.hint("it redirects, which is not followed, since the message is for this address alone: refer to the address that it names")
    } else {
        error
    })
}

fn client(target: &Target, timeout: Duration) -> Result<Client> {
    let mut builder = Client::builder()
        .user_agent(concat!("lifeboat/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .timeout(timeout)
        // A target that is asked once a day gains nothing by an open connection.
        .pool_max_idle_per_host(0);
    if target.host().starts_with("127.") || target.host().starts_with("localhost") {
        builder = builder.no_proxy();
    }
    if let Some(path) = &target.ca_file {
        let pem = std::fs::read(path)
            .io_context(|| format!("read the certificates {}", path.display()))
            .map_err(|error| Error::new(Kind::Usage, "use `ca_file` of the notifier").because(error))?;
        let certificates = Certificate::from_pem_bundle(&pem)
            .map_err(|error| Error::new(Kind::Usage, format!("read the certificates {}", path.display())).because(error))?;
        if certificates.is_empty() {
            return Err(Error::new(Kind::Usage, format!("there is no certificate in {}", path.display())));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|error| Error::new(Kind::Failed, "start an HTTP client").because(error.without_url()))
}

/// What reqwest says, without the address.
fn failed(target: &Target, error: reqwest::Error) -> Error {
    let kind = if error.is_builder() { Kind::Usage } else { Kind::Unavailable };
    let what = if error.is_connect() { "connect to" } else { "send to" };
    // Flattened, so that no cause carries more than its text.
    let mut causes = Vec::new();
    let error = error.without_url();
    let mut next: Option<&dyn std::error::Error> = std::error::Error::source(&error);
    while let Some(cause) = next {
        let text = target.redacted(&cause.to_string());
        if causes.last() != Some(&text) {
            causes.push(text);
        }
        next = cause.source();
    }
    if causes.is_empty() {
        causes.push(target.redacted(&error.to_string()));
    }
    Error::new(kind, format!("{what} {}: {}", target.host(), causes.join(": ")))
}
