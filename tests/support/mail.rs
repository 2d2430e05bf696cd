//! aiosmtpd, a mail server for tests: with TLS from the start or by STARTTLS, never without, and with an account.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::{Server, free_port, server_folder, tool};

/// The account that it knows.
pub const USER: &str = "lifeboat";
pub const PASSWORD: &str = "planted-mail-password";

/// Arguments: port, mode, certificate, key, folder for the mails, user, password.
const PROGRAM: &str = r"
import asyncio, json, ssl, sys
from aiosmtpd.smtp import SMTP, AuthResult
port, mode, certificate, key, folder, user, password = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
count = 0
class Handler:
    async def handle_DATA(self, server, session, envelope):
        global count
        count += 1
        mail = {'from': envelope.mail_from, 'to': envelope.rcpt_tos, 'tls': session.ssl is not None or mode == 'smtps',
                'user': session.auth_data, 'text': envelope.content.decode('utf-8', 'replace')}
        with open(f'{folder}/{count:04}.new', 'w') as out:
            json.dump(mail, out)
        import os
        os.rename(f'{folder}/{count:04}.new', f'{folder}/{count:04}.json')
        return '250 2.0.0 taken'
def authenticate(server, session, envelope, mechanism, data):
    good = data.login.decode() == user and data.password.decode() == password
    return AuthResult(success=good, auth_data=user if good else None, handled=good or False)
def make():
    implicit = mode == 'smtps'
    return SMTP(Handler(), authenticator=authenticate, auth_required=True, auth_require_tls=not implicit,
                tls_context=None if implicit else context, require_starttls=not implicit)
async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(make, '127.0.0.1', int(port), ssl=context if mode == 'smtps' else None)
    await server.serve_forever()
asyncio.run(main())
";

/// A running server.
pub struct MailServer {
    _server: Server,
    pub port: u16,
    mails: PathBuf,
}

impl MailServer {
    /// `mode`: `smtps` or `smtp`.
    pub fn start(mode: &str, certificate: &str, key: &str) -> Self {
        let (port, folder) = (free_port(), server_folder("mail"));
        let mails = folder.join("mails");
        std::fs::create_dir(&mails).unwrap();
        let python = tool("reader-python");
        let packages = python.parent().unwrap().join("../aiosmtpd");
        assert!(packages.exists(), "aiosmtpd is missing: run scripts/install-test-tools");
        let words = ["PYTHONPATH=".to_owned() + &packages.display().to_string(), python.display().to_string(), "-c".into(), PROGRAM.into()];
        let rest =
            [port.to_string(), mode.into(), certificate.into(), key.into(), mails.display().to_string(), USER.into(), PASSWORD.into()];
        let arguments: Vec<String> = words.into_iter().chain(rest).collect();
        let server = Server::start(folder, std::path::Path::new("/usr/bin/env"), &arguments);
        server.wait_until("a port", Duration::from_secs(30), || {
            std::net::TcpStream::connect(("127.0.0.1", port)).map(|_| ()).map_err(|error| error.to_string())
        });
        Self { _server: server, port, mails }
    }

    /// The mails that came, in order.
    pub fn mails(&self) -> Vec<Value> {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(&self.mails).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort();
        paths.iter().map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()).collect()
    }
}
