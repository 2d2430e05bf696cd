//! What TLS must prove, and channel binding. The provider is the one that the object stores bring (aws-lc-rs).

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::Digest as _;

use crate::error::{Error, Kind, Result};
use crate::source::postgres::conninfo::{Host, RootCertificates, Settings, SslMode};

/// What is asked of the certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    Nothing,
    Authority,
    AuthorityAndName,
}

/// `None`: plain text. `required`: the server must have TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TlsPlan {
    pub(crate) proof: Proof,
    pub(crate) required: bool,
}

/// What to do for these settings and this peer.
///
/// # Errors
/// [`Kind::Usage`] for a mode that could fall back to plain text off loopback.
pub(crate) fn plan(settings: &Settings, is_unix: bool, is_local: bool) -> Result<Option<TlsPlan>> {
    // As in libpq: a socket is private already.
    if is_unix {
        return Ok(None);
    }
    let required = |proof| Ok(Some(TlsPlan { proof, required: true }));
    match settings.ssl_mode {
        Some(SslMode::Disable) => Ok(None),
        None if !is_local => required(Proof::AuthorityAndName),
        Some(SslMode::Prefer) if !is_local => {
            Err(Error::new(Kind::Usage, format!("sslmode=prefer could send everything in plain text to {settings}"))
                .hint("Leave sslmode out (it is verify-full then), or say sslmode=disable if the network is trusted."))
        }
        None | Some(SslMode::Prefer) => Ok(Some(TlsPlan { proof: Proof::Nothing, required: false })),
        Some(SslMode::Require) if settings.ssl_root_certificates.is_none() => required(Proof::Nothing),
        Some(SslMode::Require | SslMode::VerifyCa) => required(Proof::Authority),
        Some(SslMode::VerifyFull) => required(Proof::AuthorityAndName),
    }
}

/// rustls's configuration for these settings.
///
/// # Errors
/// [`Kind::Usage`] when a certificate or key file cannot be used.
pub(crate) fn config(settings: &Settings, proof: Proof) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match proof {
        Proof::Nothing => Arc::new(Anybody(provider.clone())),
        Proof::Authority | Proof::AuthorityAndName => {
            let roots = Arc::new(roots(settings)?);
            let webpki = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
                .build()
                .map_err(|error| Error::new(Kind::Usage, "use the root certificates").because(error))?;
            if proof == Proof::Authority { Arc::new(AnyName(webpki)) } else { webpki }
        }
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(Kind::Bug, "set up TLS").because(error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match (&settings.ssl_certificate, &settings.ssl_key) {
        (Some(certificate), Some(key)) => {
            Settings::check_key_file(key)?;
            let chain = certificates(certificate)?;
            let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| {
                Error::new(Kind::Usage, format!("read private key {}", key.display()))
                    .because(error.to_string())
                    .hint("It must be a PEM file without a passphrase.")
            })?;
            builder.with_client_auth_cert(chain, key_der).map_err(|error| {
                Error::new(Kind::Usage, format!("use client certificate {} with key {}", certificate.display(), key.display()))
                    .because(error)
            })?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// The name that the certificate must say.
///
/// # Errors
/// [`Kind::Usage`] for a host that no certificate can name.
pub(crate) fn server_name(settings: &Settings) -> Result<ServerName<'static>> {
    let name = match &settings.host {
        Host::Tcp { name, .. } => name.clone(),
        Host::Socket(_) => "localhost".to_owned(),
    };
    ServerName::try_from(name)
        .map_err(|error| Error::new(Kind::Usage, format!("no certificate can name the host of {settings}")).because(error))
}

fn certificates(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>> {
    let cannot = |error: rustls::pki_types::pem::Error| {
        Error::new(Kind::Usage, format!("read certificates from {}", path.display()))
            .because(error.to_string())
            .hint("It must be a PEM file.")
    };
    let all = CertificateDer::pem_file_iter(path).map_err(cannot)?.collect::<std::result::Result<Vec<_>, _>>().map_err(cannot)?;
    if all.is_empty() {
        return Err(Error::new(Kind::Usage, format!("{} holds no certificate", path.display())).hint("It must be a PEM file."));
    }
    Ok(all)
}

fn roots(settings: &Settings) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    if let Some(RootCertificates::File(path)) = &settings.ssl_root_certificates {
        for certificate in certificates(path)? {
            store
                .add(certificate)
                .map_err(|error| Error::new(Kind::Usage, format!("use a certificate of {} as a root", path.display())).because(error))?;
        }
        return Ok(store);
    }
    // One unreadable certificate of the system must not take away the others; too few of them fail the proof later.
    let (added, _) = store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added == 0 {
        return Err(Error::new(Kind::Usage, "this system has no root certificates to check the server's certificate with")
            .hint("Install ca-certificates, or give sslrootcert=FILE."));
    }
    Ok(store)
}

/// Accepts any certificate; the handshake's signatures are still checked.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Everything but the name. rustls looks at the name last, so that only the name can be what is wrong then.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        match self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. })) => {
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The hash of a certificate for `tls-server-end-point` (RFC 5929, section 4.1): by the hash of its signature, SHA-256 for older ones.
/// `None` where the signature names no such hash (Ed25519): no channel binding then.
pub(crate) fn end_point_hash(certificate: &[u8]) -> Option<Vec<u8>> {
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA_SHA2: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];
    // Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { OID, … }, … }
    let (outer, _) = der(certificate, 0x30)?;
    let (_, after) = der(outer, 0x30)?;
    let (algorithm, _) = der(after, 0x30)?;
    let (oid, _) = der(algorithm, 0x06)?;
    match (oid.strip_prefix(RSA), oid.strip_prefix(ECDSA_SHA2)) {
        (Some([4 | 5 | 11]), _) | (_, Some([2])) => Some(sha2::Sha256::digest(certificate).to_vec()),
        (Some([12]), _) | (_, Some([3])) => Some(sha2::Sha384::digest(certificate).to_vec()),
        (Some([13]), _) | (_, Some([4])) => Some(sha2::Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

/// One DER element with this tag: its content and what follows it.
fn der(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let (&length, rest) = rest.split_first()?;
    if first != tag {
        return None;
    }
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (digits.iter().fold(0, |sum, &digit| sum << 8 | usize::from(digit)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}
