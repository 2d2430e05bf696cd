//! Sealing to an X25519 public key: RFC 9180, single shot, base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.
//!
//! Base mode says nothing of who sealed: whatever gives keys to somebody is signed besides, or wrapped under a secret of theirs.

use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem as _, OpModeR, OpModeS, Serializable};
use zeroize::Zeroizing;

use crate::error::{Error, Kind, Result};

type Kem = X25519HkdfSha256;

/// A key pair; the private half stays in here.
pub struct KeyPair {
    private: <Kem as hpke::Kem>::PrivateKey,
    pub public: [u8; 32],
}

impl KeyPair {
    /// `DeriveKeyPair` of the RFC.
    pub fn derive(material: &[u8; 32]) -> Self {
        let (private, public) = Kem::derive_keypair(material);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(&public.to_bytes());
        Self { private, public: bytes }
    }
}

/// Seals; gives `enc` of the RFC and the ciphertext (16 bytes longer).
///
/// # Errors
/// `Bug` when `public` is no public key.
pub fn seal(public: &[u8; 32], info: &[u8], plain: &[u8], associated: &[u8]) -> Result<([u8; 32], Vec<u8>)> {
    let failed = |e| Error::new(Kind::Bug, format!("seal to a public key: {e}"));
    let public = <Kem as hpke::Kem>::PublicKey::from_bytes(public).map_err(failed)?;
    let (encapsulated, sealed) =
        hpke::single_shot_seal::<AesGcm256, HkdfSha256, Kem>(&OpModeS::Base, &public, info, plain, associated).map_err(failed)?;
    let mut bytes = [0; 32];
    bytes.copy_from_slice(&encapsulated.to_bytes());
    Ok((bytes, sealed))
}

/// Opens what [`seal`] made. `None`: not sealed to this key with these words, or changed.
pub fn open(pair: &KeyPair, encapsulated: &[u8], info: &[u8], sealed: &[u8], associated: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let encapsulated = <Kem as hpke::Kem>::EncappedKey::from_bytes(encapsulated).ok()?;
    hpke::single_shot_open::<AesGcm256, HkdfSha256, Kem>(&OpModeR::Base, &pair.private, &encapsulated, info, sealed, associated)
        .ok()
        .map(Zeroizing::new)
}
