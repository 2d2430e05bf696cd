//! Secrets as text that people can print, read aloud and type: a prefix that says what it is, Crockford's base 32 in groups of four, and a
//! check of 20 bits.
//!
//! | prefix | holds |
//! |---|---|
//! | `LBRK1-` | a recovery key: 32 letters, no check (as `repo init` has always printed it); taken as a passphrase |
//! | `LBKF1-` | a key file: 32 random bytes |
//! | `LBSK1-` | the private key of an X25519 recipient |
//! | `LBPK1-` | the public key of one |
//! | `LBSH1-` | a share of a key file, see `shares` |
//!
//! Reading forgives case, spaces, dashes, and O, I, L for 0, 1, 1, in the prefix too. The check finds a mistyped letter (all but one in 2²⁰ of any mistakes).

use zeroize::Zeroizing;

/// Crockford's base 32: no I, L, O, U.
pub const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Letters of the check: 20 bits.
const CHECK_LETTERS: usize = 4;

/// What a text begins with, and says by that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    Recovery,
    KeyFile,
    SecretKey,
    PublicKey,
    Share,
}

impl Prefix {
    const ALL: [Self; 5] = [Self::Recovery, Self::KeyFile, Self::SecretKey, Self::PublicKey, Self::Share];

    /// Without the dash.
    pub fn word(self) -> &'static str {
        match self {
            Self::Recovery => "LBRK1",
            Self::KeyFile => "LBKF1",
            Self::SecretKey => "LBSK1",
            Self::PublicKey => "LBPK1",
            Self::Share => "LBSH1",
        }
    }
}

/// As it was meant, each character in its place: in capitals, O as 0, I and L as 1. To be compared with what was read the same way.
pub fn forgiven(text: &str) -> Zeroizing<String> {
    Zeroizing::new(text.chars().map(forgive).collect())
}

/// The same without white space and dashes.
pub fn compact(text: &str) -> Zeroizing<String> {
    Zeroizing::new(text.chars().filter(|c| !c.is_whitespace() && *c != '-').map(forgive).collect())
}

/// What a text says it is.
pub fn prefix_of(text: &str) -> Option<Prefix> {
    let compact = compact(text);
    Prefix::ALL.into_iter().find(|prefix| compact.starts_with(&**forgiven(prefix.word())))
}

fn forgive(letter: char) -> char {
    match letter.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        letter => letter,
    }
}

/// The text of some bytes: prefix, letters, check.
pub fn encode(prefix: Prefix, bytes: &[u8]) -> Zeroizing<String> {
    let mut letters = to_letters(bytes);
    letters.push_str(&check(prefix, bytes));
    let mut text = Zeroizing::new(String::with_capacity(letters.len() * 5 / 4 + 8));
    text.push_str(prefix.word());
    for (at, letter) in letters.chars().enumerate() {
        if at % 4 == 0 {
            text.push('-');
        }
        text.push(letter);
    }
    text
}

/// The bytes of a text that [`encode`] made, and that somebody may have typed.
///
/// # Errors
/// What is wrong with it, without repeating it.
pub fn decode(prefix: Prefix, text: &str, len: usize) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    let compact = compact(text);
    let letters = compact.strip_prefix(&**forgiven(prefix.word())).ok_or("it does not begin as it should")?;
    let wanted = (len * 8).div_ceil(5) + CHECK_LETTERS;
    let mut bits = Zeroizing::new(Vec::with_capacity(wanted));
    for letter in letters.chars() {
        let value = ALPHABET.iter().position(|known| char::from(*known) == letter);
        bits.push(u8::try_from(value.ok_or("it has a character that does not occur in keys")?).unwrap_or(0));
    }
    if bits.len() != wanted {
        return Err(if bits.len() < wanted { "letters are missing" } else { "it has letters too many" });
    }
    let (body, told) = bits.split_at(wanted - CHECK_LETTERS);
    let mut bytes = Zeroizing::new(Vec::with_capacity(len));
    let (mut held, mut count) = (0u32, 0);
    for value in body {
        held = (held << 5) | u32::from(*value);
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push((held >> count) as u8);
            held &= (1 << count) - 1;
        }
    }
    let told: String = told.iter().map(|value| char::from(ALPHABET[usize::from(*value)])).collect();
    if bytes.len() != len || held != 0 || told != check(prefix, &bytes) {
        return Err("a letter is wrong (the check does not fit)");
    }
    Ok(bytes)
}

fn to_letters(bytes: &[u8]) -> Zeroizing<String> {
    let mut letters = Zeroizing::new(String::with_capacity(bytes.len() * 8 / 5 + 8));
    let (mut held, mut count) = (0u32, 0);
    for byte in bytes {
        held = (held << 8) | u32::from(*byte);
        count += 8;
        while count >= 5 {
            count -= 5;
            letters.push(char::from(ALPHABET[(held >> count) as usize & 31]));
        }
        held &= (1 << count) - 1;
    }
    if count > 0 {
        letters.push(char::from(ALPHABET[(held << (5 - count)) as usize & 31]));
    }
    letters
}

/// The first 20 bits of a keyed-by-purpose hash: of a secret of 256 random bits it tells nothing that could be used.
fn check(prefix: Prefix, bytes: &[u8]) -> String {
    let mut material = Zeroizing::new(prefix.word().as_bytes().to_vec());
    material.extend_from_slice(bytes);
    let hash = blake3::derive_key("lifeboat v1 text check", &material);
    to_letters(&hash[..3])[..CHECK_LETTERS].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_however_they_are_typed() {
        for len in [1, 2, 16, 32, 33, 40] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 37 + 5) as u8).collect();
            for prefix in Prefix::ALL {
                let text = encode(prefix, &bytes);
                assert_eq!(*decode(prefix, &text, len).unwrap(), bytes);
                for one in ["l", "I", "i", "L"] {
                    // The 1 of the prefix is the first that is mistyped.
                    let sloppy = text.to_lowercase().replace('-', " ").replace('0', "o").replace('1', one);
                    assert_eq!((prefix_of(&sloppy), &*decode(prefix, &sloppy, len).unwrap()), (Some(prefix), &bytes), "{sloppy}");
                }
            }
        }
    }

    #[test]
    fn every_single_wrong_letter_and_every_swap_of_neighbours_is_found() {
        let bytes: Vec<u8> = (0..32).map(|i| (i * 91 + 3) as u8).collect();
        let text = encode(Prefix::SecretKey, &bytes);
        let letters: Vec<char> = text.chars().collect();
        for at in 6..letters.len() {
            if letters[at] == '-' {
                continue;
            }
            for other in ALPHABET {
                let mut wrong = letters.clone();
                wrong[at] = char::from(*other);
                let wrong: String = wrong.into_iter().collect();
                assert_eq!(decode(Prefix::SecretKey, &wrong, 32).is_ok(), wrong == *text, "{at} {other}");
            }
            let mut swapped = letters.clone();
            if at + 1 < letters.len() && letters[at + 1] != '-' && letters[at] != letters[at + 1] {
                swapped.swap(at, at + 1);
                assert!(decode(Prefix::SecretKey, &swapped.into_iter().collect::<String>(), 32).is_err(), "{at}");
            }
        }
        assert!(decode(Prefix::KeyFile, &text, 32).is_err(), "another prefix");
        assert!(decode(Prefix::SecretKey, &text[..text.len() - 1], 32).is_err());
        assert!(decode(Prefix::SecretKey, &format!("{}0", *text), 32).is_err());
    }
}
