//! S3 servers: SeaweedFS, which keeps the rules, and rclone, which ignores `If-None-Match`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lifeboat::store::{Credential, Store, StoreConfig};

use super::{Server, free_port, http, server_folder, tool};

/// A planted secret: tests may search output for it.
pub const SECRET_KEY: &str = "TESTSECRET0000000000000000000000";
const ACCESS_KEY: &str = "TESTKEY0000000000";
const BUCKET: &str = "lifeboat";
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
        let folder = server_folder("seaweedfs");
        std::fs::create_dir(folder.join("data")).unwrap();
        let identities = serde_json::json!({"identities": [{
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }]});
        std::fs::write(folder.join("s3.json"), identities.to_string()).unwrap();
        let [master, volume, filer, s3] = distinct_ports();
        let path = |name: &str| folder.join(name).display().to_string();
        let arguments: Vec<String> = [
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
