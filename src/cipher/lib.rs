//! AES-256-GCM with 12-byte nonces and 16-byte tags (NIST SP 800-38D), by aws-lc: it encrypts and authenticates in one pass, several times as fast on a frame of a
//! pack as two passes are.
//!
//! A crate of its own so that nothing else knows whose code this is. Nonces and associated data are the caller's business: one nonce is never used twice with a key.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

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

/// A key, expanded; none where the library did not take it, which it does for every key of this length: then everything is refused.
pub struct Cipher(Option<LessSafeKey>);

/// Shows nothing of the key.
impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher")
    }
}

impl Cipher {
    #[must_use]
    pub fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self(UnboundKey::new(&AES_256_GCM, key).ok().map(LessSafeKey::new))
    }

    /// Encrypts `bytes` where they are; returns their tag.
    ///
    /// # Errors
    /// [`Refused`] for more than 64 GiB.
    pub fn seal_detached(&self, nonce: &[u8; NONCE_BYTES], associated: &[u8], bytes: &mut [u8]) -> Result<[u8; TAG_BYTES], Refused> {
        let tag = self.key()?.seal_in_place_separate_tag(Nonce::assume_unique_for_key(*nonce), Aad::from(associated), bytes);
        tag.map_err(|_| Refused)?.as_ref().try_into().map_err(|_| Refused)
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
        let nonce = Nonce::assume_unique_for_key(*nonce);
        self.key()?.open_separate_gather(nonce, Aad::from(associated), sealed, tag, plain).map_err(|_| Refused)
    }

    /// Decrypts `bytes`, which end with their tag; the tag is taken off.
    ///
    /// # Errors
    /// [`Refused`]; `bytes` are then as they were.
    pub fn open(&self, nonce: &[u8; NONCE_BYTES], associated: &[u8], bytes: &mut Vec<u8>) -> Result<(), Refused> {
        // Not in place: where a seal is broken, the library clears what it wrote.
        let (sealed, tag) = bytes.split_last_chunk::<TAG_BYTES>().ok_or(Refused)?;
        let mut plain = vec![0; sealed.len()];
        self.open_detached(nonce, associated, sealed, tag, &mut plain)?;
        *bytes = plain;
        Ok(())
    }

    fn key(&self) -> Result<&LessSafeKey, Refused> {
        self.0.as_ref().ok_or(Refused)
    }
}
