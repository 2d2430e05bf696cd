//! Versions and Object Lock of an S3 bucket, by signed calls of our own: `object_store` has no words for them.
//!
//! One call is one request, without retries: [`crate::store::Store`] repeats. Everything else goes through `object_store`.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use hyper::http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use object_store::ClientOptions;
use object_store::ObjectStore;
use object_store::aws::{AmazonS3Builder, AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpRequestBody, HttpResponse};
use object_store::path::Path;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Kind, Result};
use crate::store::backend::Want;
use crate::store::lock::{Held, LockMode, ObjectLock, ObjectRetention};
use crate::store::refusal::Refusals;

const MODE: HeaderName = HeaderName::from_static("x-amz-object-lock-mode");
const UNTIL: HeaderName = HeaderName::from_static("x-amz-object-lock-retain-until-date");
const VERSION: HeaderName = HeaderName::from_static("x-amz-version-id");
const BYPASS: HeaderName = HeaderName::from_static("x-amz-bypass-governance-retention");
const CHECKSUM: HeaderName = HeaderName::from_static("x-amz-checksum-sha256");
const COPY_SOURCE: HeaderName = HeaderName::from_static("x-amz-copy-source");

/// One version of an object, or a delete marker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Relative to the repository's root.
    pub key: String,
    /// The store's name for it.
    pub version: String,
    /// Whether a plain read sees it (or, for a marker, sees nothing).
    pub latest: bool,
    /// Whether it is the mark of a delete.
    pub marker: bool,
    /// Stored bytes; 0 for a marker.
    pub size: u64,
    /// The store's word for the content. Equal ones mean equal bytes.
    pub etag: String,
    /// By the store's clock.
    pub modified: DateTime<Utc>,
}

/// A bucket below the repository's prefix.
pub(crate) struct Bucket {
    pub client: HttpClient,
    pub credentials: AwsCredentialProvider,
    pub region: String,
    /// Up to and with the bucket, without a slash at the end.
    pub address: String,
    pub name: String,
    pub prefix: Path,
    pub refusals: Refusals,
    pub lock: Option<ObjectLock>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bucket({})", self.address)
    }
}

/// Headers that put an object under retention.
fn lock_headers(mode: LockMode, until: DateTime<Utc>) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert(MODE, HeaderValue::from_static(mode.s3()));
    headers.insert(UNTIL, value(&instant(until))?);
    Ok(headers)
}

fn value(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text).map_err(|error| Error::new(Kind::Bug, "not a value of a header").because(error))
}

fn instant(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// As S3 wants them in paths and queries.
fn encode(text: &str, also: &[u8]) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || also.contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

impl Bucket {
    /// The full key in the bucket.
    fn full(&self, key: &str) -> String {
        match (self.prefix.as_ref(), key) {
            ("", key) => key.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, key) => format!("{prefix}/{key}"),
        }
    }

    async fn call(
        &self,
        operation: &str,
        key: &str,
        method: Method,
        address: String,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<HttpResponse> {
        let refused = |source: Box<dyn std::error::Error + Send + Sync>| {
            self.refusals.error(operation, key, object_store::Error::Generic { store: "S3", source })
        };
        let credential = self.credentials.get_credential().await.map_err(|error| self.refusals.error(operation, key, error))?;
        let mut request = Request::new(HttpRequestBody::from(body.clone()));
        *request.method_mut() = method;
        *request.uri_mut() = address.parse().map_err(|error| Error::new(Kind::Bug, "not an address").because(error))?;
        *request.headers_mut() = headers;
        if !body.is_empty() {
            request.headers_mut().insert(CHECKSUM, value(&BASE64_STANDARD.encode(Sha256::digest(&body)))?);
        }
        AwsAuthorizer::new(&credential, "s3", &self.region)
            .try_authorize(&mut request, None)
            .map_err(|error| self.refusals.error(operation, key, error))?;
        let response = self.client.execute(request).await.map_err(|error| refused(error.into()))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = response.into_body().bytes().await.unwrap_or_default();
        // The same words as those of `object_store`, which are sorted by what can be done.
        let told = format!("Server returned non-2xx status code: {status}: {}", String::from_utf8_lossy(&text));
        if status.as_u16() == 404 && !told.contains("NoSuchBucket") {
            return Err(self.refusals.error(operation, key, object_store::Error::NotFound { path: key.to_owned(), source: told.into() }));
        }
        if status.as_u16() == 412 || status.as_u16() == 409 {
            return Err(self.refusals.error(
                operation,
                key,
                object_store::Error::AlreadyExists { path: key.to_owned(), source: told.into() },
            ));
        }
        Err(refused(told.into()))
    }

    fn object(&self, key: &str, query: &[(&str, Option<&str>)]) -> String {
        let query: Vec<String> = query
            .iter()
            .map(|(name, value)| value.map_or_else(|| format!("{name}="), |value| format!("{name}={}", encode(value, b""))))
            .collect();
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        format!("{}/{}{query}", self.address, encode(&self.full(key), b"/"))
    }

    /// Size, version and lock of an object, or of one version of it; `None`: there is none, or a delete marker.
    pub async fn look(&self, key: &str, version: Option<&str>) -> Result<Option<Held>> {
        let query: Vec<_> = version.iter().map(|version| ("versionId", Some(*version))).collect();
        let answer = self.call("look at", key, Method::HEAD, self.object(key, &query), HeaderMap::new(), Bytes::new()).await;
        let response = match answer {
            Ok(response) => response,
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let text = |name: HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let size = text(hyper::http::header::CONTENT_LENGTH).and_then(|size| size.parse().ok());
        let size =
            size.ok_or_else(|| Error::new(Kind::Failed, format!("{}: the answer has no size", self.refusals.message("look at", key))))?;
        let until = text(UNTIL).and_then(|until| DateTime::parse_from_rfc3339(&until).ok()).map(|until| until.to_utc());
        let mode = text(MODE).and_then(|mode| LockMode::of_s3(&mode));
        Ok(Some(Held { size, version: text(VERSION), lock: mode.zip(until) }))
    }

    /// Puts a version under retention, or longer than it was.
    pub async fn retain(&self, key: &str, version: Option<&str>, mode: LockMode, until: DateTime<Utc>) -> Result<()> {
        let mut query = vec![("retention", None)];
        query.extend(version.map(|version| ("versionId", Some(version))));
        let body = format!(
            "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>{}</Mode><RetainUntilDate>{}</RetainUntilDate></Retention>",
            mode.s3(),
            instant(until)
        );
        let mut headers = HeaderMap::new();
        headers.insert(hyper::http::header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        self.call("lock", key, Method::PUT, self.object(key, &query), headers, Bytes::from(body)).await.map(|_| ())
    }

    /// Writes an object of a probe under retention.
    pub async fn put_locked(&self, key: &str, bytes: Bytes, mode: LockMode, until: DateTime<Utc>) -> Result<()> {
        self.call("write", key, Method::PUT, self.object(key, &[]), lock_headers(mode, until)?, bytes).await.map(|_| ())
    }

    /// Makes a version the newest one again, within the store; under retention where it is asked for.
    pub async fn copy(&self, key: &str, version: &str, lock: Option<(LockMode, DateTime<Utc>)>) -> Result<()> {
        let mut headers = match lock {
            Some((mode, until)) => lock_headers(mode, until)?,
            None => HeaderMap::new(),
        };
        let source = format!("/{}/{}?versionId={}", self.name, encode(&self.full(key), b"/"), encode(version, b""));
        headers.insert(COPY_SOURCE, value(&source)?);
        let response = self.call("bring back", key, Method::PUT, self.object(key, &[]), headers, Bytes::new()).await?;
        let body = self.body("bring back", key, response).await?;
        // S3 may answer 200 and tell the error in the body.
        if body.contains("<Error>") {
            let source = format!("error response: {body}").into();
            return Err(self.refusals.error("bring back", key, object_store::Error::Generic { store: "S3", source }));
        }
        Ok(())
    }

    /// Destroys one version for good, where the store lets us; without a version: a plain delete.
    pub async fn destroy(&self, key: &str, version: Option<&str>, bypass: bool) -> Result<()> {
        let mut headers = HeaderMap::new();
        if bypass {
            headers.insert(BYPASS, HeaderValue::from_static("true"));
        }
        let query: Vec<_> = version.iter().map(|version| ("versionId", Some(*version))).collect();
        let address = self.object(key, &query);
        self.call("destroy a version of", key, Method::DELETE, address, headers, Bytes::new()).await.map(|_| ())
    }

    /// Whether the bucket keeps earlier versions. `None`: these credentials may not ask.
    pub async fn versioning(&self) -> Result<Option<bool>> {
        let address = format!("{}?versioning=", self.address);
        match self.call("look at the versioning of", "", Method::GET, address, HeaderMap::new(), Bytes::new()).await {
            Ok(response) => Ok(Some(self.body("look at", "", response).await?.contains("<Status>Enabled</Status>"))),
            Err(error) if error.kind() == Kind::Unavailable => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// All versions and markers below `prefix` (a folder; empty for all), by key, each key's newest first.
    pub async fn versions(&self, prefix: &str) -> Result<Vec<Version>> {
        let folder = match self.full(prefix) {
            full if full.is_empty() => full,
            full => full.trim_end_matches('/').to_owned() + "/",
        };
        let mut found = Vec::new();
        let mut from: Option<(String, String)> = None;
        loop {
            let mut address = format!("{}?versions=&prefix={}", self.address, encode(&folder, b""));
            if let Some((key, version)) = &from {
                let _ = write!(address, "&key-marker={}&version-id-marker={}", encode(key, b""), encode(version, b""));
            }
            let response = self.call("list versions of", prefix, Method::GET, address, HeaderMap::new(), Bytes::new()).await?;
            let text = self.body("list versions of", prefix, response).await?;
            let page: Page = quick_xml::de::from_str(&text).map_err(|error| {
                Error::new(Kind::Failed, format!("{}: the answer cannot be read", self.refusals.message("list versions of", prefix)))
                    .because(error)
            })?;
            for item in page.items {
                let (listed, marker) = match item {
                    Item::Version(listed) => (listed, false),
                    Item::DeleteMarker(listed) => (listed, true),
                    Item::Other => continue,
                };
                let key = match self.prefix.as_ref() {
                    "" => Some(listed.key.as_str()),
                    root => listed.key.strip_prefix(root).and_then(|rest| rest.strip_prefix('/')),
                };
                let Some(key) = key else { continue };
                found.push(Version {
                    key: key.to_owned(),
                    version: listed.version_id,
                    latest: listed.is_latest,
                    marker,
                    size: listed.size,
                    etag: listed.etag,
                    modified: listed.last_modified,
                });
            }
            if !page.is_truncated {
                break;
            }
            let next = page.next_key_marker.zip(page.next_version_id_marker);
            if next.is_none() || next == from {
                return Err(Error::new(
                    Kind::Failed,
                    format!("{}: the list is cut and does not say where it goes on", self.refusals.message("list versions of", prefix)),
                ));
            }
            from = next;
        }
        // The store's order within a key is the order of writing, and is kept.
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    /// A version's bytes.
    pub async fn read(&self, key: &str, version: &str, want: Want) -> Result<Bytes> {
        let address = self.object(key, &[("versionId", Some(version))]);
        let mut headers = HeaderMap::new();
        if let Want::Range(range) = &want {
            headers.insert(hyper::http::header::RANGE, value(&format!("bytes={}-{}", range.start, range.end.saturating_sub(1)))?);
        }
        let response = self.call("read", key, Method::GET, address, headers, Bytes::new()).await?;
        let bytes = self.bytes("read", key, response).await?;
        let fits = match want {
            Want::All { limit } => bytes.len() as u64 <= limit,
            Want::Range(range) => bytes.len() as u64 == range.end - range.start,
        };
        if fits {
            Ok(bytes)
        } else {
            Err(Error::new(Kind::Damaged, format!("{}: the answer has {} bytes", self.refusals.message("read", key), bytes.len())))
        }
    }

    async fn bytes(&self, operation: &str, key: &str, response: HttpResponse) -> Result<Bytes> {
        let read = response.into_body().bytes().await;
        read.map_err(|error| self.refusals.error(operation, key, object_store::Error::Generic { store: "S3", source: error.into() }))
    }

    async fn body(&self, operation: &str, key: &str, response: HttpResponse) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.bytes(operation, key, response).await?).into_owned())
    }
}

/// A page of `ListObjectVersions`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: Option<String>,
    #[serde(default)]
    next_version_id_marker: Option<String>,
    #[serde(default, rename = "$value")]
    items: Vec<Item>,
}

/// Whether this is a page of a list of versions that shows one. For fuzzing.
pub(crate) fn is_page(text: &str) -> bool {
    quick_xml::de::from_str::<Page>(text).is_ok_and(|page| page.items.iter().any(|item| !matches!(item, Item::Other)))
}

#[derive(Debug, Deserialize)]
enum Item {
    Version(Listed),
    DeleteMarker(Listed),
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    key: String,
    version_id: String,
    #[serde(default)]
    is_latest: bool,
    #[serde(default)]
    size: u64,
    #[serde(default, rename = "ETag")]
    etag: String,
    last_modified: DateTime<Utc>,
}

/// The client whose puts carry the lock in their own request, so that no object is ever there without it.
///
/// `object_store` has no attribute for it, but signs and sends the default headers of a client: so there is, for each time that objects are locked, one
/// client for a while, then a new one with a later date.
pub(crate) struct LockedWriter {
    pub lock: ObjectLock,
    pub builder: AmazonS3Builder,
    pub options: ClientOptions,
    /// By the time that its objects are locked.
    pub current: Mutex<HashMap<Duration, (DateTime<Utc>, Arc<dyn ObjectStore>)>>,
}

impl fmt::Debug for LockedWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LockedWriter({:?})", self.lock)
    }
}

impl LockedWriter {
    /// A client whose date is far enough away.
    pub fn client(&self, retention: ObjectRetention, now: DateTime<Utc>) -> Result<Arc<dyn ObjectStore>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((until, client)) = current.get(&retention.retain)
            && retention.is_fresh(*until, now)
        {
            return Ok(client.clone());
        }
        let until = retention.until(now);
        let options = self.options.clone().with_default_headers(lock_headers(retention.mode, until)?);
        let client = self.builder.clone().with_client_options(options).build();
        let client: Arc<dyn ObjectStore> =
            Arc::new(client.map_err(|error| Error::new(Kind::Usage, "make a client that locks objects").because(error))?);
        current.insert(retention.retain, (until, client.clone()));
        Ok(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in the documentation of S3, which mixes versions and markers and quotes its words.
    #[test]
    fn a_list_of_versions_as_s3_writes_it() {
        let text = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
  <Name>bucket</Name><Prefix>my</Prefix><KeyMarker/><VersionIdMarker/>
  <NextKeyMarker>my-third</NextKeyMarker><NextVersionIdMarker>QUpf</NextVersionIdMarker>
  <MaxKeys>3</MaxKeys><IsTruncated>true</IsTruncated>
  <Version><Key>my-image.jpg</Key><VersionId>3/L4</VersionId><IsLatest>true</IsLatest><LastModified>2009-10-12T17:50:30.000Z</LastModified>
    <ETag>&quot;fba9dede5f27731c9771645a39863328&quot;</ETag><Size>434234</Size><StorageClass>STANDARD</StorageClass>
    <Owner><ID>75aa</ID><DisplayName>mtd@amazon.com</DisplayName></Owner></Version>
  <DeleteMarker><Key>my-second-image.jpg</Key><VersionId>03jp</VersionId><IsLatest>true</IsLatest><LastModified>2009-11-12T17:50:30.000Z</LastModified>
    <Owner><ID>75aa</ID></Owner></DeleteMarker>
  <Version><Key>my-third</Key><VersionId>QUpf</VersionId><IsLatest>false</IsLatest><LastModified>2009-10-10T17:50:30Z</LastModified>
    <ETag>"9b2c"</ETag><Size>0</Size></Version>
  <CommonPrefixes><Prefix>my/</Prefix></CommonPrefixes>
</ListVersionsResult>"#;
        let page: Page = quick_xml::de::from_str(text).unwrap();
        assert!(page.is_truncated);
        assert_eq!((page.next_key_marker.as_deref(), page.next_version_id_marker.as_deref()), (Some("my-third"), Some("QUpf")));
        let seen: Vec<_> = page
            .items
            .iter()
            .filter_map(|item| match item {
                Item::Version(listed) => {
                    Some((listed.key.as_str(), listed.version_id.as_str(), listed.is_latest, listed.size, listed.etag.as_str()))
                }
                Item::DeleteMarker(listed) => Some((listed.key.as_str(), "marker", listed.is_latest, listed.size, listed.etag.as_str())),
                Item::Other => None,
            })
            .collect();
        let etag = "\"fba9dede5f27731c9771645a39863328\"";
        let expected = [
            ("my-image.jpg", "3/L4", true, 434_234, etag),
            ("my-second-image.jpg", "marker", true, 0, ""),
            ("my-third", "QUpf", false, 0, "\"9b2c\""),
        ];
        assert_eq!(seen, expected);
        let empty: Page =
            quick_xml::de::from_str("<ListVersionsResult><Name>b</Name><IsTruncated>false</IsTruncated></ListVersionsResult>").unwrap();
        assert!(!empty.is_truncated && empty.items.iter().all(|item| matches!(item, Item::Other)));
        assert!(quick_xml::de::from_str::<Page>("<ListVersionsResult><Version><Key>k</Key></Version></ListVersionsResult>").is_err());
    }

    #[test]
    fn addresses_are_encoded_as_they_are_signed() {
        assert_eq!(encode("a/b c+d=é~", b"/"), "a/b%20c%2Bd%3D%C3%A9~");
        assert_eq!(encode("a/b", b""), "a%2Fb");
    }
}
