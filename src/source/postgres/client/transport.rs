//! Bytes to and from one server: a TCP or Unix socket, with TLS or without. Every wait has a limit and looks at [`Cancel`].

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::source::postgres::client::failure::SILENCE;
use crate::source::postgres::conninfo::{Host, Keepalives, Settings};

/// The longest wait before looking at the cancel flag again.
const SLICE: Duration = Duration::from_millis(100);
const READ_BYTES: usize = 128 * 1024;
/// TLS records carry this much.
const RECORD_BYTES: usize = 16 * 1024;

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl io::Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl io::Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Socket {
    fn set_read_timeout(&self, limit: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(limit)),
            Self::Unix(stream) => stream.set_read_timeout(Some(limit)),
        }
    }

    fn set_write_timeout(&self, limit: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_write_timeout(Some(limit)),
            Self::Unix(stream) => stream.set_write_timeout(Some(limit)),
        }
    }
}

/// An open connection below the protocol.
pub(crate) struct Transport {
    socket: Socket,
    tls: Option<Box<ClientConnection>>,
    /// What was read and not yet taken.
    pub(crate) input: BytesMut,
    scratch: Box<[u8]>,
    read_timeout: Duration,
    cancel: Cancel,
    /// `host:port` or socket, for messages.
    server: String,
}

impl Transport {
    /// Opens the socket; nothing is said yet.
    pub(crate) fn open(settings: &Settings, cancel: &Cancel, until: Instant) -> Result<Self> {
        let server = settings.to_string();
        let socket = match &settings.host {
            Host::Socket(folder) => {
                let path = folder.join(format!(".s.PGSQL.{}", settings.port));
                let connect = move || UnixStream::connect(path);
                Socket::Unix(in_time(cancel, until, &server, connect)?.map_err(|error| cannot_connect(&server, error))?)
            }
            Host::Tcp { name, address } => Socket::Tcp(open_tcp(&server, name, *address, settings, cancel, until)?),
        };
        let lost = |error| cannot_connect(&server, error);
        socket.set_read_timeout(SLICE).map_err(lost)?;
        socket.set_write_timeout(SLICE).map_err(lost)?;
        Ok(Self {
            socket,
            tls: None,
            input: BytesMut::with_capacity(READ_BYTES),
            scratch: vec![0; READ_BYTES].into_boxed_slice(),
            read_timeout: SLICE,
            cancel: cancel.clone(),
            server,
        })
    }

    /// Whether nobody between can listen: a socket, or TCP to this machine.
    pub(crate) fn is_local(&self) -> bool {
        match &self.socket {
            Socket::Unix(_) => true,
            Socket::Tcp(stream) => stream.peer_addr().is_ok_and(|peer| peer.ip().to_canonical().is_loopback()),
        }
    }

    pub(crate) fn is_unix(&self) -> bool {
        matches!(self.socket, Socket::Unix(_))
    }

    /// Takes over the connection with TLS and finishes its handshake.
    pub(crate) fn start_tls(&mut self, config: Arc<ClientConfig>, name: ServerName<'static>, until: Instant) -> Result<()> {
        let failed = |server: &str, error: rustls::Error| tls_failed(server, error);
        let mut tls = Box::new(ClientConnection::new(config, name).map_err(|error| failed(&self.server, error))?);
        while tls.is_handshaking() {
            while tls.wants_write() {
                self.wait_write(until, |socket| tls.write_tls(socket))?;
            }
            if !tls.is_handshaking() {
                break;
            }
            self.cancel.check()?;
            match tls.read_tls(&mut self.socket) {
                Ok(0) => return Err(self.lost(None)),
                Ok(_) => {
                    if let Err(error) = tls.process_new_packets() {
                        // The alert tells the server why; whether it arrives changes nothing.
                        let _ = tls.write_tls(&mut self.socket);
                        return Err(failed(&self.server, error));
                    }
                }
                Err(error) if is_pause(&error) => {
                    if Instant::now() >= until {
                        return Err(self.silent());
                    }
                }
                Err(error) => return Err(self.lost(Some(error))),
            }
        }
        while tls.wants_write() {
            self.wait_write(until, |socket| tls.write_tls(socket))?;
        }
        self.tls = Some(tls);
        Ok(())
    }

    /// The server's own certificate in DER, where TLS is on.
    pub(crate) fn peer_certificate(&self) -> Option<&[u8]> {
        self.tls.as_ref()?.peer_certificates()?.first().map(AsRef::as_ref)
    }

    pub(crate) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Reads what is there into `input`, waiting for it; false when `until` passed first.
    pub(crate) fn fill(&mut self, until: Instant) -> Result<bool> {
        loop {
            self.cancel.check()?;
            if let Some(tls) = &mut self.tls {
                match tls.reader().read(&mut self.scratch) {
                    Ok(0) => return Err(self.lost(None)),
                    Ok(count) => {
                        self.input.extend_from_slice(&self.scratch[..count]);
                        return Ok(true);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(self.lost(Some(error))),
                }
            }
            self.set_slice(until)?;
            let read = match &mut self.tls {
                Some(tls) => tls.read_tls(&mut self.socket),
                None => self.socket.read(&mut self.scratch),
            };
            match (read, &mut self.tls) {
                (Ok(0), None) => return Err(self.lost(None)),
                (Ok(count), None) => {
                    self.input.extend_from_slice(&self.scratch[..count]);
                    return Ok(true);
                }
                // Zero bytes: the reader above says how the connection ended.
                (Ok(_), Some(tls)) => {
                    tls.process_new_packets().map_err(|error| tls_failed(&self.server, error))?;
                }
                (Err(error), _) if is_pause(&error) => {
                    if Instant::now() >= until {
                        return Ok(false);
                    }
                }
                (Err(error), _) => return Err(self.lost(Some(error))),
            }
        }
    }

    /// Reads one byte and nothing after it: what follows belongs to TLS.
    pub(crate) fn read_byte(&mut self, until: Instant) -> Result<u8> {
        let mut byte = [0];
        loop {
            self.cancel.check()?;
            self.set_slice(until)?;
            match self.socket.read(&mut byte) {
                Ok(0) => return Err(self.lost(None)),
                Ok(_) => return Ok(byte[0]),
                Err(error) if is_pause(&error) && Instant::now() < until => {}
                Err(error) if is_pause(&error) => return Err(self.silent()),
                Err(error) => return Err(self.lost(Some(error))),
            }
        }
    }

    /// Sends all of `bytes`.
    pub(crate) fn send(&mut self, bytes: &[u8], until: Instant) -> Result<()> {
        let Some(mut tls) = self.tls.take() else {
            let mut rest = bytes;
            while !rest.is_empty() {
                let count = self.wait_write(until, |socket| socket.write(rest))?;
                rest = &rest[count..];
            }
            return Ok(());
        };
        let result = (|| {
            for record in bytes.chunks(RECORD_BYTES) {
                tls.writer().write_all(record).map_err(|error| self.lost(Some(error)))?;
                while tls.wants_write() {
                    self.wait_write(until, |socket| tls.write_tls(socket))?;
                }
            }
            Ok(())
        })();
        self.tls = Some(tls);
        result
    }

    /// Says goodbye at the TLS level, without waiting.
    pub(crate) fn close_notify(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            // Nobody waits for it.
            let _ = tls.write_tls(&mut self.socket);
        }
    }

    fn wait_write(&mut self, until: Instant, mut write: impl FnMut(&mut Socket) -> io::Result<usize>) -> Result<usize> {
        loop {
            self.cancel.check()?;
            match write(&mut self.socket) {
                Ok(0) => return Err(self.lost(None)),
                Ok(count) => return Ok(count),
                Err(error) if is_pause(&error) && Instant::now() < until => {}
                Err(error) if is_pause(&error) => return Err(self.silent()),
                Err(error) => return Err(self.lost(Some(error))),
            }
        }
    }

    fn set_slice(&mut self, until: Instant) -> Result<()> {
        let slice = until.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), SLICE);
        if slice != self.read_timeout {
            self.socket.set_read_timeout(slice).map_err(|error| self.lost(Some(error)))?;
            self.read_timeout = slice;
        }
        Ok(())
    }

    pub(crate) fn silent(&self) -> Error {
        Error::new(Kind::Unavailable, format!("PostgreSQL at {} {SILENCE}", self.server))
            .hint("Is it overloaded, waiting for a lock, or is something between dropping packets? Try again, or raise the time limit.")
    }

    fn lost(&self, cause: Option<io::Error>) -> Error {
        let error = Error::new(Kind::Unavailable, format!("the connection to PostgreSQL at {} was lost", self.server))
            .hint("Its log says whether it stopped, crashed, or ended the session; then run the same command again.");
        match cause {
            Some(cause) => error.because(cause),
            None => error.because("the server closed it"),
        }
    }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

fn tls_failed(server: &str, error: rustls::Error) -> Error {
    let hint = match &error {
        rustls::Error::InvalidCertificate(_) => {
            "Give the authority's certificate as sslrootcert=FILE, and use the host name that the server's certificate says."
        }
        rustls::Error::AlertReceived(_) => "The server refused: its log says why; a client certificate (sslcert, sslkey) may be missing.",
        _ => "The server's log says more; is `ssl` set up there?",
    };
    Error::new(Kind::Usage, format!("TLS with PostgreSQL at {server} failed")).because(error).hint(hint)
}

fn cannot_connect(server: &str, error: io::Error) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "No socket is there: is the server running, and are folder and port right?",
        io::ErrorKind::PermissionDenied => "This user may not use that socket.",
        _ => "Is the server running, and does it listen there (listen_addresses, port, firewall)?",
    };
    Error::new(Kind::Unavailable, format!("connect to PostgreSQL at {server}")).because(error).hint(hint)
}

fn open_tcp(server: &str, name: &str, address: Option<IpAddr>, settings: &Settings, cancel: &Cancel, until: Instant) -> Result<TcpStream> {
    let port = settings.port;
    let addresses: Vec<SocketAddr> = if let Some(address) = address {
        vec![(address, port).into()]
    } else {
        let wanted = name.to_owned();
        let look_up = move || (wanted.as_str(), port).to_socket_addrs().map(Iterator::collect);
        in_time(cancel, until, server, look_up)?.map_err(|error| {
            Error::new(Kind::Unavailable, format!("look up the address of host {name}")).because(error).hint("Is the host's name right?")
        })?
    };
    let stream = connect_one(server, &addresses, cancel, until)?.map_err(|error| cannot_connect(server, error))?;
    set_options(&stream, settings.keepalives).map_err(|error| cannot_connect(server, error))?;
    Ok(stream)
}

/// Connects to the first of the addresses of a name that answers. Each gets its share of the time that is left, so that one that says nothing leaves some
/// to those after it.
fn connect_one(server: &str, addresses: &[SocketAddr], cancel: &Cancel, until: Instant) -> Result<io::Result<TcpStream>> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let shares = (1..=u32::try_from(addresses.len()).unwrap_or(u32::MAX)).rev();
    for (address, shares) in addresses.iter().copied().zip(shares) {
        let share = (until.saturating_duration_since(Instant::now()) / shares).max(Duration::from_millis(1));
        match in_time(cancel, Instant::now() + share, server, move || TcpStream::connect_timeout(&address, share))? {
            Ok(stream) => return Ok(Ok(stream)),
            Err(error) => last = error,
        }
    }
    Ok(Err(last))
}

fn set_options(stream: &TcpStream, keepalives: Keepalives) -> io::Result<()> {
    let socket = stream.as_fd();
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    #[cfg(target_os = "linux")]
    {
        sockopt::set_tcp_keepidle(socket, keepalives.idle)?;
        let milliseconds = u32::try_from(keepalives.user_timeout.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(socket, milliseconds)?;
    }
    sockopt::set_tcp_keepintvl(socket, keepalives.interval)?;
    sockopt::set_tcp_keepcnt(socket, keepalives.count)?;
    Ok(())
}

/// Runs what has no limit of its own (name look-up, connecting) in a thread that is left behind when it takes too long.
fn in_time<T: Send + 'static>(
    cancel: &Cancel,
    until: Instant,
    server: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<io::Result<T>> {
    let (sender, receiver) = sync_channel(1);
    std::thread::Builder::new()
        .name("postgres-connect".to_owned())
        .spawn(move || {
            // Nobody may be waiting any more.
            let _ = sender.send(work());
        })
        .map_err(|error| Error::io("start a thread for connecting", error))?;
    loop {
        match receiver.recv_timeout(SLICE) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Timeout) => cancel.check()?,
            Err(RecvTimeoutError::Disconnected) => return Err(Error::new(Kind::Bug, "the thread that connects ended without a result")),
        }
        if Instant::now() >= until {
            return Ok(Err(io::Error::new(io::ErrorKind::TimedOut, format!("{server} {SILENCE}"))));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::OwnedFd;

    use rustix::net::{AddressFamily, SocketType, bind, listen, socket};

    use super::*;

    /// Answers nobody: its queue is full.
    fn silent() -> (OwnedFd, SocketAddr, Vec<TcpStream>) {
        let listener = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&listener, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        listen(&listener, 0).unwrap();
        let listener = TcpListener::from(listener);
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            waiting.push(stream);
        }
        (listener.into(), address, waiting)
    }

    #[test]
    fn an_address_that_says_nothing_leaves_time_for_the_next_one() {
        let (_listener, silent, _waiting) = silent();
        let refusing = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let good = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = |addresses: &[SocketAddr]| {
            let begun = Instant::now();
            (connect_one("x", addresses, &Cancel::default(), begun + Duration::from_secs(3)).unwrap(), begun.elapsed())
        };
        let (stream, waited) = connect(&[silent, silent, refusing, good.local_addr().unwrap()]);
        assert_eq!(stream.unwrap().peer_addr().unwrap(), good.local_addr().unwrap());
        assert!(waited < Duration::from_secs(3), "{waited:?}");
        // Nobody waits longer than that altogether, and the last one has all that is left.
        let (stream, waited) = connect(&[refusing, silent]);
        assert_eq!(stream.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(waited >= Duration::from_millis(2900) && waited < Duration::from_secs(5), "{waited:?}");
    }
}
