//! AES-256-GCM with 12-byte nonces and 16-byte tags (NIST SP 800-38D), by the `aes-gcm` crate.
//!
//! A crate of its own for one reason: `aes-gcm` is generic, so its code is compiled where it is used, and lifeboat itself is built without
//! optimisation in tests. Here it is compiled as a dependency is, optimised always: sealing is 50 times as fast in a development build.
//! Nonces and associated data are the caller's business: one nonce is never used twice with a key.

use std::fmt;

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 12;
/// Bytes of a tag.
pub const TAG_BYTES: usize = 16;

/// What was sealed is not what is there, or was sealed under another key, nonce or associated data; or there is more to seal than a nonce can
/// cover (64 GiB).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the seal is refused")
    }
}

impl std::error::Error for Refused {}

/// A key, expanded.
pub struct Cipher(Aes256Gcm);

/// Shows nothing of the key.
impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher")
    }
}

impl Cipher {
    #[must_use]
    pub fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self(Aes256Gcm::new(key.into()))
    }

    /// Encrypts `bytes` where they are; returns their tag.
    ///
    /// # Errors
    /// [`Refused`] for more than 64 GiB.
    pub fn seal_detached(&self, nonce: &[u8; NONCE_BYTES], associated: &[u8], bytes: &mut [u8]) -> Result<[u8; TAG_BYTES], Refused> {
        self.0.encrypt_inout_detached(nonce.into(), associated, InOutBuf::from(bytes)).map(Into::into).map_err(|_| Refused)
    }

    /// Encrypts `bytes` where they are, and adds their tag.
    ///
    /// # Errors
    /// [`Refused`] for more than 64 GiB.
    pub fn seal(&self, nonce: &[u8; NONCE_BYTES], associated: &[u8], bytes: &mut Vec<u8>) -> Result<(), Refused> {
        let tag = self.seal_detached(nonce, associated, bytes)?;
        bytes.extend_from_slice(&tag);
        Ok(())
    }

    /// Decrypts `sealed`, whose tag stands apart, into `plain`, which has the same length.
    ///
    /// # Errors
    /// [`Refused`]; `plain` then holds nothing of use.
    pub fn open_detached(
        &self,
        nonce: &[u8; NONCE_BYTES],
        associated: &[u8],
        sealed: &[u8],
        tag: &[u8; TAG_BYTES],
        plain: &mut [u8],
    ) -> Result<(), Refused> {
        let buffer = InOutBuf::new(sealed, plain).map_err(|_| Refused)?;
        self.0.decrypt_inout_detached(nonce.into(), associated, buffer, tag.into()).map_err(|_| Refused)
    }

    /// Decrypts `bytes`, which end with their tag, where they are; the tag is taken off.
    ///
    /// # Errors
    /// [`Refused`]; `bytes` are then as they were.
    pub fn open(&self, nonce: &[u8; NONCE_BYTES], associated: &[u8], bytes: &mut Vec<u8>) -> Result<(), Refused> {
        self.0.decrypt_in_place(nonce.into(), associated, bytes).map_err(|_| Refused)
    }
}
