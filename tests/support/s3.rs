//! S3 servers: SeaweedFS, which keeps the rules, and rclone, which ignores `If-None-Match`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use lifeboat::store::{Credential, Store, StoreConfig};

use super::{Server, free_port, http, server_folder, tool};

/// A planted secret: tests may search output for it.
pub const SECRET_KEY: &str = "TESTSECRET0000000000000000000000";
const ACCESS_KEY: &str = "TESTKEY0000000000";
const BUCKET: &str = "lifeboat";
/// The bucket with Object Lock.
pub const LOCKED: &str = "locked";
/// Starting takes about three seconds on an idle machine.
const START: Duration = Duration::from_secs(90);

/// Access to one bucket of a running server.
#[derive(Clone, Debug)]
pub struct Bucket {
    port: u16,
}

impl Bucket {
    /// A store at a prefix that nobody else got.
    pub fn fresh(&self) -> StoreConfig {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        self.at(&format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// A store at this prefix.
    pub fn at(&self, prefix: &str) -> StoreConfig {
        StoreConfig {
            endpoint: Some(self.endpoint()),
            region: Some("us-east-1".to_owned()),
            access_key: Some(Credential::new(ACCESS_KEY)),
            secret_key: Some(Credential::new(SECRET_KEY)),
            ..StoreConfig::at(format!("s3://{BUCKET}/{prefix}"))
        }
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Access key id and secret, for programs that get them through their environment.
    pub fn keys() -> (&'static str, &'static str) {
        (ACCESS_KEY, SECRET_KEY)
    }

    /// The secret of an identity of [`SeaweedFs::start_locked`].
    pub fn secret_of(name: &str) -> String {
        format!("{SECRET_KEY}{name}")
    }

    /// A call of S3's own, as anybody with these keys can make it: status and body. `what`: method, path with the bucket, query.
    pub fn signed(&self, what: (&str, &str, &str), headers: &[(&str, &str)], body: &str, keys: (&str, &str)) -> (u16, String) {
        use object_store::aws::{AwsAuthorizer, AwsCredential};
        use object_store::client::{HttpConnector as _, HttpRequestBody, ReqwestConnector};
        let (method, path, query) = what;
        let mut request = Request::new(HttpRequestBody::from(body.to_owned()));
        *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
        let query = if query.is_empty() { String::new() } else { format!("?{query}") };
        *request.uri_mut() = format!("{}/{path}{query}", self.endpoint()).parse().unwrap();
        let all: HeaderMap = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect();
        *request.headers_mut() = all;
        let credential = AwsCredential { key_id: keys.0.to_owned(), secret_key: keys.1.to_owned(), token: None };
        AwsAuthorizer::new(&credential, "s3", "us-east-1").try_authorize(&mut request, None).unwrap();
        // A thread of its own: the caller may be inside a runtime.
        std::thread::scope(|scope| {
            let call = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let options = object_store::ClientOptions::new().with_allow_http(true);
                let client = ReqwestConnector::default().connect(&options).unwrap();
                runtime.block_on(async {
                    let response = client.execute(request).await.unwrap();
                    let status = response.status().as_u16();
                    (status, String::from_utf8_lossy(&response.into_body().bytes().await.unwrap()).into_owned())
                })
            });
            call.join().unwrap()
        })
    }

    /// Until a small object can be written.
    fn wait_until_writable(&self, server: &Server) {
        let config = self.fresh();
        // A thread of its own: the caller may be inside a runtime.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let store = Store::open(&config).unwrap();
                server.wait_until("a first object", START, || {
                    runtime.block_on(store.create("ready", "x".into())).map(|_| ()).map_err(|error| format!("{error:?}"))
                });
            });
        });
    }
}

/// SeaweedFS: master, volume, filer and S3 in one process.
pub struct SeaweedFs {
    _server: Server,
    bucket: Bucket,
}

impl SeaweedFs {
    /// Starts one with an empty bucket and waits until it can be written.
    pub fn start() -> Self {
        let identities = serde_json::json!({"identities": [{
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }]});
        Self::start_with(&identities)
    }

    /// One with a bucket `locked` that has Object Lock, and an identity for each policy of the documentation, for a repository at `main…`
    /// in it; and `careless`, who may do all to objects but bypass locks.
    pub fn start_locked() -> Self {
        let roles = ["writer", "reader", "maintainer", "auditor"];
        let mut policies: Vec<(String, String)> = roles
            .iter()
            .map(|role| {
                let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/reference/bucket-policies/{role}.json"));
                let policy = std::fs::read_to_string(path).unwrap();
                assert!(policy.contains("crm-dr/main/"), "{policy}");
                (
                    (*role).to_owned(),
                    policy
                        .replace("crm-dr/main/", "locked/main*/")
                        .replace(":crm-dr\"", &format!(":{LOCKED}\""))
                        .replace("crm-dr/", "locked/"),
                )
            })
            .collect();
        let careless = serde_json::json!({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow",
            "Action": ["s3:GetObject", "s3:PutObject", "s3:PutObjectRetention", "s3:ListBucket", "s3:ListBucketVersions", "s3:GetObjectVersion",
                "s3:DeleteObject", "s3:DeleteObjectVersion"],
            "Resource": [format!("arn:aws:s3:::{LOCKED}"), format!("arn:aws:s3:::{LOCKED}/*")],
        }]});
        policies.push(("careless".to_owned(), careless.to_string()));
        // A maintainer to whom the store refuses deletes.
        let mut keeper: serde_json::Value = serde_json::from_str(&policies[2].1).unwrap();
        keeper["Statement"].as_array_mut().unwrap().retain(|statement| statement["Sid"] != "Hide");
        policies.push(("keeper".to_owned(), keeper.to_string()));
        let mut identities = vec![serde_json::json!({
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        })];
        identities.extend(policies.iter().map(|(name, _)| {
            let keys = serde_json::json!([{"accessKey": name, "secretKey": format!("{SECRET_KEY}{name}")}]);
            serde_json::json!({"name": name, "credentials": keys, "actions": [], "policyNames": [name]})
        }));
        let policies: Vec<_> = policies.iter().map(|(name, content)| serde_json::json!({"name": name, "content": content})).collect();
        let server = Self::start_with(&serde_json::json!({"identities": identities, "policies": policies}));
        let lock = [("x-amz-bucket-object-lock-enabled", "true")];
        let (status, body) = server.bucket.signed(("PUT", LOCKED, ""), &lock, "", Bucket::keys());
        assert_eq!(status, 200, "{body}");
        server
    }

    fn start_with(identities: &serde_json::Value) -> Self {
        let folder = server_folder("seaweedfs");
        std::fs::create_dir(folder.join("data")).unwrap();
        std::fs::write(folder.join("s3.json"), identities.to_string()).unwrap();
        let [master, volume, filer, s3] = distinct_ports();
        // Sockets whose place nobody can choose.
        let names = [("master", master), ("volume", volume), ("filer", filer), ("s3", s3)];
        let sockets =
            names.map(|(name, port)| format!("/tmp/seaweedfs-{name}-{port}.sock\n/tmp/seaweedfs-{name}-grpc-{}.sock\n", port + 10_000));
        std::fs::write(folder.join("elsewhere"), sockets.concat()).unwrap();
        let path = |name: &str| folder.join(name).display().to_string();
        // Else its logs are in the machine's folder for temporary files, and stay there.
        let logs = format!("-logdir={}", path(""));
        let arguments: Vec<String> = [
            logs.as_str(),
            "server",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-volume.max=40",
            "-master.volumeSizeLimitMB=256",
            "-master.electionTimeout=1s",
            "-master.heartbeatInterval=200ms",
        ]
        .into_iter()
        .map(str::to_owned)
        .chain([
            format!("-dir={}", path("data")),
            format!("-master.port={master}"),
            format!("-volume.port={volume}"),
            format!("-filer.port={filer}"),
            format!("-s3.port={s3}"),
            format!("-s3.config={}", path("s3.json")),
        ])
        .collect();
        let server = Server::start(folder, &tool("weed"), &arguments);
        // Buckets are folders of the filer.
        server.wait_until("a bucket", START, || match http(filer, "POST", &format!("/buckets/{BUCKET}/")) {
            Ok(200..=299) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        let bucket = Bucket { port: s3 };
        bucket.wait_until_writable(&server);
        Self { _server: server, bucket }
    }

    /// One for the whole test process, started by whoever asks first.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<SeaweedFs> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Its bucket.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }
}

/// `rclone serve s3`: an S3 server that overwrites although it was asked not to.
pub struct Rclone {
    _server: Server,
    bucket: Bucket,
}

impl Rclone {
    /// Starts one over an empty folder and waits until it can be written.
    pub fn start() -> Self {
        let folder = server_folder("rclone");
        std::fs::create_dir_all(folder.join("data").join(BUCKET)).unwrap();
        let port = free_port();
        let arguments: Vec<String> = vec![
            "serve".into(),
            "s3".into(),
            folder.join("data").display().to_string(),
            format!("--addr=127.0.0.1:{port}"),
            format!("--auth-key={ACCESS_KEY},{SECRET_KEY}"),
            "--config=/dev/null".into(),
        ];
        let server = Server::start(folder, &tool("rclone"), &arguments);
        let bucket = Bucket { port };
        bucket.wait_until_writable(&server);
        Self { _server: server, bucket }
    }

    /// Its bucket.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }
}

fn distinct_ports() -> [u16; 4] {
    let mut ports = [0; 4];
    for at in 0..ports.len() {
        ports[at] = loop {
            let port = free_port();
            if !ports.contains(&port) {
                break port;
            }
        };
    }
    ports
}
