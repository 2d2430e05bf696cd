//! Azurite, Microsoft's own Azure Blob server for tests.

use std::process::Command;
use std::time::Duration;

use lifeboat::store::{Credential, StoreConfig};

use super::{Server, free_port, server_folder, tool};

/// The well-known account of every Azurite.
pub const ACCOUNT: &str = "devstoreaccount1";
pub const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
const CONTAINER: &str = "lifeboat";

/// `object_store` cannot make containers. Signed as in "Authorize with Shared Key", Azure Storage REST reference.
const MAKE_CONTAINER: &str = r"
const [port, name, account, key] = process.argv.slice(1);
const date = new Date().toUTCString(), version = '2021-08-06';
const text = ['PUT', ...Array(11).fill(''), `x-ms-date:${date}`, `x-ms-version:${version}`, `/${account}/${account}/${name}`,
  'restype:container'].join('\n');
const mac = require('crypto').createHmac('sha256', Buffer.from(key, 'base64')).update(text, 'utf8').digest('base64');
const headers = { 'x-ms-date': date, 'x-ms-version': version, Authorization: `SharedKey ${account}:${mac}` };
require('http').request({ host: '127.0.0.1', port, method: 'PUT', path: `/${account}/${name}?restype=container`, headers },
  (answer) => process.exit([201, 409].includes(answer.statusCode) ? 0 : 1)).on('error', () => process.exit(1)).end();
";

/// A running Azurite with an empty container.
pub struct Azurite {
    _server: Server,
    port: u16,
}

impl Azurite {
    /// Starts one and waits until its container is there.
    pub fn start() -> Self {
        let port = free_port();
        let arguments = [
            "--blobHost=127.0.0.1",
            &format!("--blobPort={port}"),
            "--inMemoryPersistence",
            "--skipApiVersionCheck",
            "--disableTelemetry",
            "--silent",
        ]
        .map(str::to_owned);
        let server = Server::start(server_folder("azurite"), &tool("azurite-blob"), &arguments);
        server.wait_until("a container", Duration::from_mins(1), || {
            let made = Command::new(tool("node"))
                .args(["-e", MAKE_CONTAINER, "--", &port.to_string(), CONTAINER, ACCOUNT, KEY])
                .status()
                .map_err(|error| error.to_string())?;
            if made.success() { Ok(()) } else { Err(made.to_string()) }
        });
        Self { _server: server, port }
    }

    /// A store at this prefix.
    pub fn at(&self, prefix: &str) -> StoreConfig {
        StoreConfig {
            endpoint: Some(format!("http://127.0.0.1:{}/{ACCOUNT}", self.port)),
            access_key: Some(Credential::new(ACCOUNT)),
            secret_key: Some(Credential::new(KEY)),
            ..StoreConfig::at(format!("az://{CONTAINER}/{prefix}"))
        }
    }
}
