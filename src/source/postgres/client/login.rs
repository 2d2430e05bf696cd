//! From a socket to a session: TLS, start-up, authentication; and cancel requests.

use std::time::Instant;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use zeroize::Zeroizing;

use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::source::postgres::client::tls::{self, Proof};
use crate::source::postgres::client::transport::Transport;
use crate::source::postgres::client::{Connection, Greeting, Incoming, Mode, ServerError};
use crate::source::postgres::conninfo::{Settings, SslMode};

/// Opens the socket, with TLS as the settings say; yields what TLS proved, `None` without TLS.
pub(crate) fn open(settings: &Settings, cancel: &Cancel, until: Instant) -> Result<(Transport, Option<Proof>)> {
    let mut transport = Transport::open(settings, cancel, until)?;
    let Some(plan) = tls::plan(settings, transport.is_unix(), transport.is_local())? else { return Ok((transport, None)) };
    // Before anything is said, so that a missing file is told even where the server has no TLS.
    let config = tls::config(settings, plan.proof)?;
    let mut out = BytesMut::new();
    frontend::ssl_request(&mut out);
    transport.send(&out, until)?;
    match transport.read_byte(until)? {
        b'S' => {
            transport.start_tls(config, tls::server_name(settings)?, until)?;
            Ok((transport, Some(plan.proof)))
        }
        b'N' if !plan.required => Ok((transport, None)),
        b'N' => Err(Error::new(Kind::Usage, format!("PostgreSQL at {settings} has no TLS"))
            .hint("Set up `ssl = on` there; on a network that nobody else can listen to, say sslmode=disable.")),
        _ => Err(Error::new(Kind::Usage, format!("what answers at {settings} is not PostgreSQL")).hint("Are host and port right?")),
    }
}

/// The certificate (DER) that a server shows, whoever signed it; nobody logs in. `None`: the settings lead to no TLS.
///
/// # Errors
/// [`Kind::Unavailable`] when nobody answers in time, [`Kind::Usage`] when what answers has no TLS.
pub fn server_certificate(settings: &Settings, cancel: &Cancel) -> Result<Option<Vec<u8>>> {
    if settings.ssl_mode == Some(SslMode::Disable) {
        return Ok(None);
    }
    let mut anyone = settings.clone();
    (anyone.ssl_mode, anyone.ssl_root_certificates) = (Some(SslMode::Require), None);
    let (transport, _) = open(&anyone, cancel, Instant::now() + settings.connect_timeout)?;
    Ok(transport.peer_certificate().map(<[u8]>::to_vec))
}

/// What a server of version 14 or later lets a session say of its limits before it begins, and that it wants to be warned.
const PATIENT: &str = "-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0 \
                       -c client_min_messages=warning";

/// Before what the address asks for: a role that a database or user has as a setting is for its applications, and may do less than this one.
const AS_ITSELF: &str = "-c role=none";

/// What such a session says of itself before it begins, with what its address asks for (`own`): it wins over what a role or a database has as a setting.
pub(in crate::source::postgres) fn session_options(own: Option<&str>) -> String {
    format!("{AS_ITSELF} {} {PATIENT}", own.unwrap_or_default())
}

/// Sends the start-up message and does everything until the server is ready.
pub(crate) fn log_in(
    connection: &mut Connection,
    mode: Mode<'_>,
    proof: Option<Proof>,
    until: Instant,
    Greeting { patient, encoding }: Greeting,
) -> Result<()> {
    let settings = connection.settings.clone();
    let database = match mode {
        Mode::Sql { database } => database.map(str::to_owned).or_else(|| settings.database.clone()),
        Mode::Replication => None,
    };
    if database.as_ref().is_some_and(|name| name.contains('\0')) {
        return Err(Error::new(Kind::Usage, "the name of a database contains a NUL character"));
    }
    let mut parameters = vec![("user", settings.user.as_str()), ("client_encoding", encoding)];
    parameters.push(("application_name", &settings.application_name));
    // A limit of a millisecond is over before a session could say SET, which one that replicates cannot say at all.
    let own = settings.options.as_deref();
    let options = if patient { session_options(own) } else { own.unwrap_or_default().to_owned() };
    if !options.is_empty() {
        parameters.push(("options", &options));
    }
    connection.takes_options = patient;
    match mode {
        Mode::Sql { .. } => parameters.extend(database.as_deref().map(|name| ("database", name))),
        Mode::Replication => parameters.push(("replication", "true")),
    }
    let mut out = BytesMut::new();
    frontend::startup_message(parameters, &mut out).map_err(|error| connection.confused(error))?;
    connection.transport.send(&out, until)?;

    let file_database = if mode == Mode::Replication { "replication" } else { database.as_deref().unwrap_or(&settings.user) };
    let mut login = Login { connection, settings: &settings, proof, file_database, until, scram: None, proven: true };
    while !login.step()? {}
    Ok(())
}

struct Login<'a> {
    connection: &'a mut Connection,
    settings: &'a Settings,
    proof: Option<Proof>,
    /// What the password file must say in its third column.
    file_database: &'a str,
    until: Instant,
    scram: Option<ScramSha256>,
    /// False while SCRAM is under way: the server has not proven yet that it knows the password.
    proven: bool,
}

impl Login<'_> {
    /// Takes one message; true when the server is ready.
    fn step(&mut self) -> Result<bool> {
        let message = match self.connection.next_until(self.until)? {
            None => return Err(self.connection.transport.silent()),
            Some(Incoming::CopyBoth | Incoming::Piece(_)) => return Err(self.connection.confused("a copy before the login")),
            Some(Incoming::Message(message)) => message,
        };
        let mut out = BytesMut::new();
        match message {
            Message::AuthenticationOk if self.proven => {}
            Message::AuthenticationOk => return Err(self.connection.confused("a login without the server's proof of the password")),
            Message::AuthenticationCleartextPassword => {
                let private = self.connection.transport.is_unix()
                    || (self.connection.transport.has_tls()
                        && (self.proof != Some(Proof::Nothing) || self.connection.transport.is_local()));
                if !private {
                    return Err(Error::new(Kind::Usage, format!("PostgreSQL at {} wants the password in clear text", self.settings))
                        .hint("Use sslmode=verify-full, or set scram-sha-256 in pg_hba.conf; the password was not sent."));
                }
                let password = self.password()?;
                Self::password_message(password.as_bytes(), &mut out)?;
            }
            Message::AuthenticationMd5Password(body) => {
                let password = self.password()?;
                let hash = Zeroizing::new(md5_hash(self.settings.user.as_bytes(), password.as_bytes(), body.salt()));
                Self::password_message(hash.as_bytes(), &mut out)?;
            }
            Message::AuthenticationSasl(body) => self.begin_scram(&body, &mut out)?,
            Message::AuthenticationSaslContinue(body) => {
                let Some(scram) = &mut self.scram else { return Err(self.connection.confused("SCRAM out of order")) };
                if let Err(error) = scram.update(body.data()) {
                    return Err(self.connection.confused(error));
                }
                frontend::sasl_response(scram.message(), &mut out).map_err(|error| self.connection.confused(error))?;
            }
            Message::AuthenticationSaslFinal(body) => {
                let Some(mut scram) = self.scram.take() else { return Err(self.connection.confused("SCRAM out of order")) };
                if let Err(error) = scram.finish(body.data()) {
                    return Err(Error::new(Kind::Usage, format!("what answers at {} does not know the password", self.settings))
                        .because(error)
                        .hint("Somebody else may be answering in the server's place."));
                }
                self.proven = true;
            }
            Message::BackendKeyData(body) => self.connection.backend = (body.process_id(), body.secret_key()),
            Message::ReadyForQuery(_) => return Ok(true),
            Message::ErrorResponse(body) => {
                let doing = format!("log in to PostgreSQL at {} as {}", self.settings, self.settings.user);
                return Err(ServerError::read(body.fields()).into_error(doing, true));
            }
            Message::AuthenticationGss
            | Message::AuthenticationSspi
            | Message::AuthenticationKerberosV5
            | Message::AuthenticationScmCredential
            | Message::AuthenticationGssContinue(_) => {
                return Err(Error::new(
                    Kind::Usage,
                    format!("PostgreSQL at {} wants a way to log in that lifeboat does not have", self.settings),
                )
                .hint("In pg_hba.conf, let this role in by scram-sha-256, a certificate, or peer."));
            }
            _ => return Err(self.connection.confused("an unexpected message before the login")),
        }
        if !out.is_empty() {
            self.connection.transport.send(&out, self.until)?;
        }
        Ok(false)
    }

    fn password(&self) -> Result<Zeroizing<String>> {
        self.settings.password(self.file_database)?.ok_or_else(|| {
            Error::new(Kind::Usage, format!("PostgreSQL at {} wants a password for {}", self.settings, self.settings.user))
                .hint("Give one in the plan's secret, or in ~/.pgpass.")
        })
    }

    fn password_message(password: &[u8], out: &mut BytesMut) -> Result<()> {
        frontend::password_message(password, out).map_err(|error| Error::new(Kind::Usage, "use the password for PostgreSQL").because(error))
    }

    fn begin_scram(&mut self, body: &AuthenticationSaslBody, out: &mut BytesMut) -> Result<()> {
        let offered: Vec<String> =
            body.mechanisms().map(|name| Ok(name.to_owned())).collect().map_err(|error| self.connection.confused(error))?;
        let offers = |name: &str| offered.iter().any(|offered| offered == name);
        let hash = self.connection.transport.peer_certificate().and_then(tls::end_point_hash);
        let (mechanism, binding) = match hash {
            Some(hash) if offers(SCRAM_SHA_256_PLUS) => (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash)),
            // Says that we could have: a server that offered it knows then that somebody took the offer away.
            Some(_) if offers(SCRAM_SHA_256) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            None if offers(SCRAM_SHA_256) => (SCRAM_SHA_256, ChannelBinding::unsupported()),
            _ => {
                return Err(Error::new(Kind::Usage, format!("PostgreSQL at {} offers no known kind of SCRAM", self.settings))
                    .because(format!("it offers {}", offered.join(", "))));
            }
        };
        let password = self.password()?;
        let scram = ScramSha256::new(password.as_bytes(), binding);
        frontend::sasl_initial_response(mechanism, scram.message(), out).map_err(|error| self.connection.confused(error))?;
        self.scram = Some(scram);
        self.proven = false;
        Ok(())
    }
}

/// Asks the server to cancel what a session is doing; whether it did, only that session's answer tells.
pub(crate) fn request_cancel(settings: &Settings, backend: (i32, i32), until: Instant) -> Result<()> {
    let (mut transport, _) = open(settings, &Cancel::default(), until)?;
    let mut out = BytesMut::new();
    frontend::cancel_request(backend.0, backend.1, &mut out);
    transport.send(&out, until)?;
    // The server closes when it has handled the request.
    while transport.fill(until)? {}
    Ok(())
}
