//! Signatures of robots. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// DingTalk, 自定义机器人安全设置 (加签): HMAC-SHA256 with the secret over `timestamp\nsecret`, in Base64; the timestamp in milliseconds.
/// Both go into the query.
#[must_use]
pub(super) fn dingtalk(secret: &str, timestamp_ms: i64) -> String {
    hmac(secret.as_bytes(), format!("{timestamp_ms}\n{secret}").as_bytes())
}

/// Feishu, 自定义机器人签名校验: HMAC-SHA256 with `timestamp\nsecret` as the key over nothing, in Base64; the timestamp in seconds. Both
/// go into the body.
#[must_use]
pub(super) fn feishu(secret: &str, timestamp_secs: i64) -> String {
    hmac(format!("{timestamp_secs}\n{secret}").as_bytes(), b"")
}

fn hmac(key: &[u8], message: &[u8]) -> String {
    // A key of any length is one (RFC 2104).
    let Ok(mut hmac) = Hmac::<Sha256>::new_from_slice(key) else { return String::new() };
    hmac.update(message);
    STANDARD.encode(hmac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Test case 2 of RFC 4231.
    #[test]
    fn hmac_is_that_of_the_standard() {
        let expected = STANDARD.encode(hex::decode("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843").unwrap());
        assert_eq!(hmac(b"Jefe", b"what do ya want for nothing?"), expected);
    }

    /// Computed with Python's hmac module from the services' own example code.
    #[test]
    fn signatures_are_those_of_the_services_examples() {
        assert_eq!(dingtalk("this is secret", 1_577_262_236_757), "hmPWwU+7lVdm3ZZz0r9tSfx0L4Q26jWOZr9+Gs6EZQM=");
        assert_eq!(feishu("demo", 1_599_360_473), "l1N0gAcBjdwBvGm1xMjOF0XSyaLRpR7tuO5dHfhAYc8=");
    }
}
