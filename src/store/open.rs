//! From a [`StoreConfig`] to a place: one function a scheme. A new kind of store is one more match arm in [`open`].

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{HttpConnector as _, ReqwestConnector};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use crate::error::{Error, Kind, Result};
use crate::store::aws_profile;
use crate::store::backend::Backend;
use crate::store::bucket::{Bucket, LockedWriter};
use crate::store::limits::Limits;
use crate::store::local::Local;
use crate::store::objects::Objects;
use crate::store::refusal::Refusals;
use crate::store::{Credential, StoreConfig};

/// A place and what is known about it.
#[derive(Debug)]
pub(crate) struct Place {
    pub backend: Arc<dyn Backend>,
    pub describe: String,
    pub local: bool,
    pub limits: Limits,
    /// Versions and locks, where the store has them.
    pub bucket: Option<Arc<Bucket>>,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence between two reads of a body, or before an answer to a request without body.
const READ_TIMEOUT: Duration = Duration::from_mins(1);

/// Retries of single HTTP requests; the façade repeats whole operations above this.
fn http_retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(5), base: 2.0 },
        max_retries: 5,
        retry_timeout: Duration::from_mins(1),
    }
}

/// Opens without contacting anything.
pub(crate) fn open(config: &StoreConfig) -> Result<Place> {
    let url = parse(&config.url)?;
    if config.object_lock.is_some() && url.scheme() != "s3" {
        return Err(Error::new(Kind::Usage, format!("a store at {}:// has no Object Lock that lifeboat can ask for", url.scheme()))
            .hint("remove object_lock; set a retention policy in the provider's own settings instead"));
    }
    let limits = Limits::new(config.max_requests, config.upload_bytes_per_sec, config.download_bytes_per_sec);
    match url.scheme() {
        "file" => file(&url, limits),
        "s3" => s3(&url, config, limits),
        "gs" => google(&url, config, limits),
        "az" => azure(&url, config, limits),
        other => Err(usage(format!("cannot open a store of kind {other:?}"))),
    }
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(Kind::Usage, message).hint("a store is file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix")
}

fn parse(text: &str) -> Result<Url> {
    // The text is not repeated in these messages: it may hold a password.
    let url = Url::parse(text).map_err(|error| usage("the store's address is not a URL").because(error))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(usage("the store's address contains a user name or password").hint("give credentials by reference in the plan"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(usage("the store's address contains '?' or '#'").hint("give settings in the plan; write '%3F' or '%23' in a path"));
    }
    Ok(url)
}

fn file(url: &Url, limits: Limits) -> Result<Place> {
    let root = url.to_file_path().map_err(|()| usage(format!("not the path of a local folder: {url}")).hint("write file:///path"))?;
    let describe = format!("file://{}", root.display());
    let backend = Local::new(root, Refusals::new(&describe, Vec::new()), limits.download());
    Ok(Place { backend: Arc::new(backend), describe, local: true, limits, bucket: None })
}

/// Bucket and prefix of a URL of a bucket.
fn bucket(url: &Url) -> Result<(String, Path)> {
    let Some(bucket) = url.host_str().filter(|host| !host.is_empty()) else {
        return Err(usage(format!("the bucket is missing in {url}")));
    };
    if url.port().is_some() {
        return Err(usage(format!("a port cannot stand in {url}")).hint("give the server's address as endpoint"));
    }
    let prefix = url.path().trim_matches('/');
    let path = Path::parse(prefix).map_err(|error| usage(format!("not a usable prefix: {url}")).because(error))?;
    if !prefix.is_empty() && prefix.contains('%') {
        return Err(
            usage(format!("the prefix in {url} has characters that must be escaped")).hint("use letters, digits, '-', '_', '.' and '/'")
        );
    }
    Ok((bucket.to_owned(), path))
}

/// Refuses plain http to other machines, and answers whether plain http is wanted.
fn plain_http(endpoint: &str, config: &StoreConfig) -> Result<bool> {
    let url = Url::parse(endpoint).map_err(|error| usage("the endpoint is not a URL").because(error).hint("write https://host[:port]"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(usage("the endpoint contains a user name or password").hint("give credentials by reference in the plan"));
    }
    match url.scheme() {
        "https" => Ok(false),
        "http" if config.allow_http || is_loopback(&url) => Ok(true),
        "http" => Err(usage(format!("plain http to {} is refused", url.host_str().unwrap_or("another machine"))).hint(
            "use https, or set allow_http (with --from: LIFEBOAT_ALLOW_HTTP=true) if everybody on the way may read and change what is sent",
        )),
        other => Err(usage(format!("the endpoint's scheme is {other:?}")).hint("write https://host[:port]")),
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(url::Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    }
}

/// Client options for puts and for everything else.
fn clients(config: &StoreConfig, allow_http: bool) -> (ClientOptions, ClientOptions) {
    let both = ClientOptions::new().with_allow_http(allow_http).with_connect_timeout(CONNECT_TIMEOUT).with_timeout(config.request_timeout);
    let reader = both.clone().with_read_timeout(READ_TIMEOUT.min(config.request_timeout));
    (both.with_read_timeout(config.request_timeout), reader)
}

/// Settings of the environment that would undo what was decided here.
fn is_ours(key: ClientConfigKey) -> bool {
    use ClientConfigKey as Key;
    matches!(key, Key::AllowHttp | Key::AllowInvalidCertificates | Key::Timeout | Key::ConnectTimeout | Key::ReadTimeout)
}

fn refused(describe: &str, error: object_store::Error) -> Error {
    let secretless = Refusals::new(describe, Vec::new()).error("open", "", error);
    let hint = secretless.hint_text().map(str::to_owned);
    let error = Error::new(Kind::Usage, secretless.to_string()).because(secretless);
    if let Some(hint) = hint { error.hint(hint) } else { error.hint("check the store's settings and the provider's environment variables") }
}

fn remote(clients: [Arc<dyn ObjectStore>; 2], prefix: Path, describe: String, config: &StoreConfig, limits: Limits) -> Place {
    let [writer, reader] = clients;
    let refusals = Refusals::new(&describe, secrets(config));
    let backend = Objects { writer, locked: None, reader, prefix, refusals, download: limits.download() };
    Place { backend: Arc::new(backend), describe, local: false, limits, bucket: None }
}

fn s3(url: &Url, config: &StoreConfig, limits: Limits) -> Result<Place> {
    use AmazonS3ConfigKey as Key;
    let (bucket, prefix) = bucket(url)?;
    let keys = pair(config)?;
    let mut builder = AmazonS3Builder::new();
    // As `AmazonS3Builder::from_env`, but never half of somebody else's credentials beside ours.
    for (name, value) in std::env::vars_os() {
        let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
        let Some(key) = name.starts_with("AWS_").then(|| name.to_ascii_lowercase().parse::<Key>().ok()).flatten() else { continue };
        let credential = matches!(key, Key::AccessKeyId | Key::SecretAccessKey | Key::Token);
        if (keys.is_some() && credential) || matches!(key, Key::Client(key) if is_ours(key)) || matches!(key, Key::Bucket) {
            continue;
        }
        builder = builder.with_config(key, value);
    }
    if let Some((access, secret)) = keys {
        builder = builder.with_access_key_id(access.expose()).with_secret_access_key(secret.expose());
        if let Some(token) = &config.session_token {
            builder = builder.with_token(token.expose());
        }
    }
    builder = aws_profile::complete(builder)?;
    if let Some(region) = &config.region {
        builder = builder.with_region(region);
    }
    let endpoint =
        config.endpoint.clone().or_else(|| builder.get_config_value(&Key::S3Endpoint)).or_else(|| builder.get_config_value(&Key::Endpoint));
    let path_style = config.path_style.unwrap_or(endpoint.is_some() || bucket.contains('.'));
    let mut allow_http = false;
    if let Some(endpoint) = &endpoint {
        allow_http = plain_http(endpoint, config)?;
        let endpoint = endpoint.trim_end_matches('/');
        let address = match endpoint.split_once("://") {
            // object_store wants the bucket in the endpoint's host name itself.
            Some((scheme, host)) if !path_style => format!("{scheme}://{bucket}.{host}"),
            _ => endpoint.to_owned(),
        };
        builder = builder.with_config(Key::S3Endpoint, &address).with_endpoint(address);
    }
    let describe = match &endpoint {
        Some(endpoint) => format!("{} at {}", name_of(url), endpoint.trim_end_matches('/')),
        None => name_of(url),
    };
    let builder = builder
        .with_bucket_name(&bucket)
        .with_virtual_hosted_style_request(!path_style)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_checksum_algorithm(Checksum::SHA256)
        .with_disable_bulk_delete(true)
        .with_retry(http_retries());
    let (writer, reader) = clients(config, allow_http);
    let build = |options| builder.clone().with_client_options(options).build().map_err(|error| refused(&describe, error));
    let client = ReqwestConnector::default().connect(&reader).map_err(|error| refused(&describe, error))?;
    let region = builder.get_config_value(&Key::Region).unwrap_or_else(|| "us-east-1".to_owned());
    // As object_store puts it together.
    let address = match (builder.get_config_value(&Key::Endpoint), path_style) {
        (Some(endpoint), true) => format!("{endpoint}/{bucket}"),
        (Some(endpoint), false) => endpoint,
        (None, true) => format!("https://s3.{region}.amazonaws.com/{bucket}"),
        (None, false) => format!("https://{bucket}.s3.{region}.amazonaws.com"),
    };
    let reader = build(reader)?;
    let refusals = Refusals::new(&describe, secrets(config));
    let credentials = reader.credentials().clone();
    let lock = config.object_lock;
    let bucket = Bucket { client, credentials, region, address, name: bucket, prefix: prefix.clone(), refusals: refusals.clone(), lock };
    let locked = lock.map(|lock| LockedWriter { lock, builder: builder.clone(), options: writer.clone(), current: Mutex::default() });
    let (writer, reader): (Arc<dyn ObjectStore>, Arc<dyn ObjectStore>) = (Arc::new(build(writer)?), Arc::new(reader));
    let backend = Objects { writer, locked, reader, prefix, refusals, download: limits.download() };
    Ok(Place { backend: Arc::new(backend), describe, local: false, limits, bucket: Some(Arc::new(bucket)) })
}

/// What must not be in a message.
fn secrets(config: &StoreConfig) -> Vec<Credential> {
    [&config.access_key, &config.secret_key, &config.session_token].into_iter().flatten().cloned().collect()
}

/// Both keys or none.
fn pair(config: &StoreConfig) -> Result<Option<(&Credential, &Credential)>> {
    match (&config.access_key, &config.secret_key) {
        (Some(access), Some(secret)) => Ok(Some((access, secret))),
        (None, None) if config.session_token.is_some() => Err(Error::new(Kind::Usage, "a session token without its two keys")
            .hint("give access_key and secret_key too, or none of the three")),
        (None, None) => Ok(None),
        _ => Err(Error::new(Kind::Usage, "only one of access_key and secret_key is set").hint("give both, or neither")),
    }
}

/// Scheme, bucket and prefix.
fn name_of(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

fn google(url: &Url, config: &StoreConfig, limits: Limits) -> Result<Place> {
    let (bucket, prefix) = bucket(url)?;
    let describe = name_of(url);
    if config.secret_key.is_some() || config.session_token.is_some() {
        return Err(Error::new(Kind::Usage, "gs:// takes no secret_key or session_token")
            .hint("give the path of a service-account file as access_key, or use the application default credentials"));
    }
    let mut builder = GoogleCloudStorageBuilder::new();
    for (name, value) in std::env::vars_os() {
        let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
        let key = name.starts_with("GOOGLE_").then(|| name.to_ascii_lowercase().parse::<GoogleConfigKey>().ok()).flatten();
        match key {
            Some(GoogleConfigKey::Client(key)) if is_ours(key) => {}
            Some(GoogleConfigKey::Bucket) | None => {}
            Some(_) if config.access_key.is_some() => {}
            Some(key) => builder = builder.with_config(key, value),
        }
    }
    if let Some(path) = &config.access_key {
        builder = builder.with_service_account_path(path.expose());
    }
    let mut allow_http = false;
    if let Some(endpoint) = &config.endpoint {
        allow_http = plain_http(endpoint, config)?;
        builder = builder.with_base_url(endpoint);
    }
    let builder = builder.with_bucket_name(&bucket).with_retry(http_retries());
    let (writer, reader) = clients(config, allow_http);
    let build = |options| builder.clone().with_client_options(options).build().map_err(|error| refused(&describe, error));
    let clients: [Arc<dyn ObjectStore>; 2] = [Arc::new(build(writer)?), Arc::new(build(reader)?)];
    Ok(remote(clients, prefix, describe, config, limits))
}

fn azure(url: &Url, config: &StoreConfig, limits: Limits) -> Result<Place> {
    let (container, prefix) = bucket(url)?;
    let describe = name_of(url);
    let keys = pair(config)?;
    let mut builder = MicrosoftAzureBuilder::new();
    for (name, value) in std::env::vars_os() {
        let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
        let key = name.starts_with("AZURE_").then(|| name.to_ascii_lowercase().parse::<AzureConfigKey>().ok()).flatten();
        match key {
            Some(AzureConfigKey::Client(key)) if is_ours(key) => {}
            Some(AzureConfigKey::ContainerName | AzureConfigKey::UseEmulator) | None => {}
            Some(_) if keys.is_some() => {}
            Some(key) => builder = builder.with_config(key, value),
        }
    }
    if let Some((account, key)) = keys {
        builder = builder.with_account(account.expose()).with_access_key(key.expose());
    }
    let mut allow_http = false;
    let endpoint = config.endpoint.clone().or_else(|| builder.get_config_value(&AzureConfigKey::Endpoint));
    if let Some(endpoint) = endpoint {
        allow_http = plain_http(&endpoint, config)?;
        builder = builder.with_endpoint(endpoint);
    }
    let builder = builder.with_container_name(&container).with_retry(http_retries());
    let (writer, reader) = clients(config, allow_http);
    let build = |options| builder.clone().with_client_options(options).build().map_err(|error| refused(&describe, error));
    let clients: [Arc<dyn ObjectStore>; 2] = [Arc::new(build(writer)?), Arc::new(build(reader)?)];
    Ok(remote(clients, prefix, describe, config, limits))
}
