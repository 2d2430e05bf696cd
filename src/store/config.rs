//! Where a store is and how to talk to it, as given by a plan or the command line. Pure data; nothing is opened here.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::store::lock::ObjectLock;

/// A secret for a store: redacted in `Debug`, without `Display`, overwritten in memory when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential(Zeroizing<String>);

impl Credential {
    /// Takes the secret text as it is.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(Zeroizing::new(secret.into()))
    }

    /// The secret text. Only for handing it to a client; never for messages.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Where objects are, and how to talk to the place. Secrets inside are redacted in `Debug`.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// `file:///path`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`. The path is the repository's root.
    pub url: String,
    /// The server's address (`https://host[:port]`) where it is not the provider's own. Without it the environment decides
    /// (`AWS_ENDPOINT_URL_S3`, …), and then the provider's public endpoint.
    pub endpoint: Option<String>,
    /// S3 region. Without it: `AWS_REGION`, `AWS_DEFAULT_REGION`, the AWS profile, `us-east-1`.
    pub region: Option<String>,
    /// S3: bucket in the path (`true`) or in the host name. Without it: path style where an endpoint is set.
    pub path_style: Option<bool>,
    /// S3: access key id. gs: path of a service-account file. az: storage account name.
    pub access_key: Option<Credential>,
    /// S3: secret access key. az: account key. Without it, the provider's usual credential chain.
    pub secret_key: Option<Credential>,
    /// S3: session token that belongs to the two keys.
    pub session_token: Option<Credential>,
    /// Allows plain http to another host than this one.
    pub allow_http: bool,
    /// The operator's word that nobody else writes to this repository: create is emulated by looking first. For stores without
    /// conditional create.
    pub single_writer: bool,
    /// Where processes of this host lock each other out for that, a folder; `None`: nowhere.
    pub alone: Option<PathBuf>,
    /// Average upload rate in bytes per second; a single object leaves as fast as the line allows, then the next one waits.
    pub upload_bytes_per_sec: Option<u64>,
    /// Average download rate in bytes per second, held within an object too.
    pub download_bytes_per_sec: Option<u64>,
    /// Most requests in flight at once; at least 1. Besides, sixteen times as many reads of a few KiB.
    pub max_requests: usize,
    /// Longest time for one try of one request, body included.
    pub request_timeout: Duration,
    /// S3: objects are written under retention, and a bucket that does not keep it is an error.
    pub object_lock: Option<ObjectLock>,
}

/// 64 MiB at 75 kB/s, a bad uplink.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(15);

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            endpoint: None,
            region: None,
            path_style: None,
            access_key: None,
            secret_key: None,
            session_token: None,
            allow_http: false,
            single_writer: false,
            alone: None,
            upload_bytes_per_sec: None,
            download_bytes_per_sec: None,
            max_requests: 16,
            request_timeout: REQUEST_TIMEOUT,
            object_lock: None,
        }
    }
}

impl StoreConfig {
    /// Everything at its default but the place.
    pub fn at(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_redacted_in_debug() {
        let config = StoreConfig {
            access_key: Some(Credential::new("AKIAVISIBLE")),
            secret_key: Some(Credential::new("topsecret")),
            session_token: Some(Credential::new("tokentext")),
            ..StoreConfig::at("s3://bucket")
        };
        let text = format!("{config:?}");
        for secret in ["AKIAVISIBLE", "topsecret", "tokentext"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}
