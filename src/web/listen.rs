//! Where the API listens: an address of this machine, or a unix socket. Anything that other machines can reach must be allowed by name.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, IoContext, Kind, Result};

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// `127.0.0.1:9847`, `[::1]:9847`.
    Tcp(SocketAddr),
    /// `unix:/run/lifeboat/api.sock`.
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.starts_with('/') || path.ends_with('/') {
                return Err(refused(text, "the path of a unix socket must be whole"));
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let text_of_port = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
        let address = text_of_port.as_deref().unwrap_or(text);
        address.parse().map(Self::Tcp).map_err(|_| refused(text, "it is neither IP:PORT nor unix:/PATH"))
    }
}

fn refused(text: &str, why: &str) -> Error {
    Error::new(Kind::Usage, format!("listen on {text:?}: {why}"))
        .hint("for example --listen 127.0.0.1:9847, or --listen unix:/run/lifeboat/api.sock")
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Listen {
    /// # Errors
    /// `Usage` when other machines could reach it and nobody said that they may.
    pub fn check(&self, remote_allowed: bool) -> Result<()> {
        match self {
            Self::Tcp(address) if !is_loopback(address.ip()) && !remote_allowed => Err(Error::new(
                Kind::Usage,
                format!("listen on {address}: other machines can reach it, and the API speaks plain HTTP: whoever hears the network would have its token"),
            )
            .hint("listen on 127.0.0.1 or a unix socket and put a proxy with TLS before it; where the network is yours alone, say --listen-remote")),
            Self::Tcp(_) | Self::Unix(_) => Ok(()),
        }
    }
}

/// Also an IPv4 loopback address that is written as IPv6.
fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// An open listener.
pub(super) enum Listener {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener, #[cfg_attr(not(test), expect(dead_code, reason = "held, read by tests alone"))] SocketFile),
}

/// Removes the socket's name when the service ends.
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Opens it; called within the I/O runtime. Returns what was opened, with the port that the system chose for port 0.
    ///
    /// # Errors
    /// `Busy` when somebody listens there already; `Usage` when something else than a socket is in the way.
    pub async fn open(listen: &Listen) -> Result<(Self, Listen)> {
        match listen {
            Listen::Tcp(address) => {
                let listener = tokio::net::TcpListener::bind(address).await.map_err(|error| in_the_way(listen, error))?;
                let bound = listener.local_addr().io_context(|| format!("listen on {listen}"))?;
                Ok((Self::Tcp(listener), Listen::Tcp(bound)))
            }
            Listen::Unix(path) => {
                make_way(path)?;
                let (listener, file) = bind_private(path).map_err(|error| in_the_way(listen, error))?;
                Ok((Self::Unix(listener, file), listen.clone()))
            }
        }
    }
}

fn in_the_way(listen: &Listen, error: std::io::Error) -> Error {
    let busy = error.kind() == std::io::ErrorKind::AddrInUse;
    let error = Error::new(if busy { Kind::Busy } else { Kind::Failed }, format!("listen on {listen}")).because(error);
    if busy { error.hint("another program listens there: stop it, or choose another --listen") } else { error }
}

/// Removes the socket that a daemon left which was killed. Nothing else is ever removed.
fn make_way(path: &Path) -> Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(Error::new(Kind::Usage, format!("listen on unix:{}: something that is no socket is there", path.display()))
            .hint("remove it, or choose another path"));
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(Error::new(Kind::Busy, format!("listen on unix:{}: another program listens there", path.display()))
            .hint("stop it, or choose another --listen"));
    }
    std::fs::remove_file(path).io_context(|| format!("remove the socket that a killed daemon left, {}", path.display()))
}

/// Bound under another name first, so that nobody can connect before it is private.
fn bind_private(path: &Path) -> std::io::Result<(tokio::net::UnixListener, SocketFile)> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let unready = SocketFile(PathBuf::from(name));
    let _ = std::fs::remove_file(&unready.0);
    let listener = tokio::net::UnixListener::bind(&unready.0)?;
    std::fs::set_permissions(&unready.0, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&unready.0, path)?;
    Ok((listener, SocketFile(path.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_others_refused() {
        for text in ["127.0.0.1:9847", "[::1]:9847", "unix:/run/lifeboat/api.sock"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        assert_eq!("localhost:80".parse::<Listen>().unwrap().to_string(), "127.0.0.1:80");
        for text in ["", "9847", ":9847", "example.com:80", "unix:api.sock", "unix:", "unix:/run/", "127.0.0.1:99999", "http://127.0.0.1:1"]
        {
            assert_eq!(text.parse::<Listen>().unwrap_err().kind(), Kind::Usage, "{text}");
        }
    }

    #[test]
    fn what_others_can_reach_must_be_allowed() {
        for (text, private) in [
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("unix:/s", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("192.168.1.5:1", false),
            ("[::ffff:10.0.0.1]:1", false),
        ] {
            let listen: Listen = text.parse().unwrap();
            assert_eq!(listen.check(false).is_ok(), private, "{text}");
            listen.check(true).unwrap();
        }
        let error = "0.0.0.0:1".parse::<Listen>().unwrap().check(false).unwrap_err();
        assert!(error.to_string().contains("plain HTTP") && error.hint_text().unwrap().contains("--listen-remote"), "{error:?}");
    }

    #[tokio::test]
    async fn a_socket_is_private_takes_the_place_of_a_dead_one_and_of_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let listen = Listen::Unix(path.clone());
        let first = Listener::open(&listen).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(Listener::open(&listen).await.map(|_| ()).unwrap_err().kind(), Kind::Busy);
        // As a process that was killed leaves it.
        let (Listener::Unix(socket, file), _) = first else { panic!("a unix socket") };
        std::mem::forget(file);
        drop(socket);
        let second = Listener::open(&listen).await.unwrap();
        drop(second);
        assert!(!path.exists(), "its name goes with it");
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(Listener::open(&listen).await.map(|_| ()).unwrap_err().kind(), Kind::Usage);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn an_address_in_use_is_busy() {
        let (first, bound) = Listener::open(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        assert_eq!(Listener::open(&bound).await.map(|_| ()).unwrap_err().kind(), Kind::Busy);
        drop(first);
    }
}
