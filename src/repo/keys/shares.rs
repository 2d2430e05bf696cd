//! A key file in shares: any `k` of `n` give it back, and `k − 1` tell nothing of it (Shamir, "How to share a secret", 1979).
//!
//! Arithmetic is in GF(2⁸) with the polynomial x⁸ + x⁴ + x³ + x + 1 (that of AES), every byte of the secret on its own; share `x` (1…255)
//! is the polynomial's value at `x`, the secret its value at 0. That is draft-mcgrew-tss-03, whose test vector is among the tests here.
//!
//! A share as text (`LBSH1-…`, see `text`) has 38 bytes: set 4 (random, the same in all shares of one key), threshold 1, index 1, value 32.
//! Its own check finds what was mistyped in it, and the set tells shares of another key apart. Whether the result is right the slot says: a
//! key that opens no slot is a wrong one. Multiplication uses no tables and no branches on secret values.

use std::collections::BTreeMap;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::{Context as _, Error, Kind, Result};
use crate::repo::keys::text::{self, Prefix};

/// Bytes of what is shared.
pub const SECRET_BYTES: usize = 32;
const SHARE_BYTES: usize = 4 + 1 + 1 + SECRET_BYTES;

/// One share. `Debug` shows no value.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Share {
    set: [u8; 4],
    threshold: u8,
    index: u8,
    value: [u8; SECRET_BYTES],
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Share({}, {} of threshold {})", self.set(), self.index, self.threshold)
    }
}

impl Share {
    /// Which key it is of: eight hexadecimal digits, not secret.
    #[must_use]
    pub fn set(&self) -> String {
        hex::encode(self.set)
    }

    /// From 1.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.index
    }

    /// How many of its set are needed.
    #[must_use]
    pub fn threshold(&self) -> u8 {
        self.threshold
    }

    /// The text to print.
    #[must_use]
    pub fn reveal(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(SHARE_BYTES));
        bytes.extend_from_slice(&self.set);
        bytes.extend_from_slice(&[self.threshold, self.index]);
        bytes.extend_from_slice(&self.value);
        text::encode(Prefix::Share, &bytes)
    }

    /// Reads a share as somebody typed it.
    ///
    /// # Errors
    /// `Usage`: what is wrong with it, without repeating it.
    pub fn read(text: &str) -> Result<Self> {
        let wrong = |what: &str| {
            Error::new(Kind::Usage, format!("read a share: {what}")).hint("compare it with the paper, group by group; it begins with LBSH1")
        };
        let bytes = text::decode(Prefix::Share, text, SHARE_BYTES).map_err(wrong)?;
        let mut share = Self { set: [0; 4], threshold: bytes[4], index: bytes[5], value: [0; SECRET_BYTES] };
        share.set.copy_from_slice(&bytes[..4]);
        share.value.copy_from_slice(&bytes[6..]);
        if share.threshold < 2 || share.index == 0 {
            return Err(wrong("it says something impossible of itself"));
        }
        Ok(share)
    }
}

impl Share {
    /// Whether a text holds a share.
    #[must_use]
    pub fn is_in(text: &str) -> bool {
        text::forgiven(text).contains(&*text::forgiven(&format!("{}-", Prefix::Share.word())))
    }

    /// All shares in a text, such as a printed page, or several: the letters of each are in groups of four, joined by dashes or line breaks.
    ///
    /// # Errors
    /// `Usage` when one that begins is not whole.
    pub fn find(text: &str) -> Result<Vec<Self>> {
        let letters = (SHARE_BYTES * 8).div_ceil(5) + 4;
        let mut shares = Vec::new();
        let meant = text::forgiven(text);
        for (at, word) in meant.match_indices(&*text::forgiven(Prefix::Share.word())) {
            let rest = &meant[at + word.len()..];
            // A page names what a share begins with in no other place; letters after the last group are not the share's.
            let mut one = Zeroizing::new(String::from(word));
            one.extend(rest.chars().filter(|c| !c.is_whitespace() && *c != '-').take(letters));
            shares.push(Self::read(&one)?);
        }
        Ok(shares)
    }
}

/// Cuts a secret into `count` shares of which `threshold` are needed.
///
/// # Errors
/// `Usage` unless `2 ≤ threshold ≤ count ≤ 255`.
pub fn split(secret: &[u8; SECRET_BYTES], threshold: u8, count: u8) -> Result<Vec<Share>> {
    if threshold < 2 || threshold > count {
        return Err(Error::new(Kind::Usage, format!("make {threshold}-of-{count} shares: that cannot be"))
            .hint("at least two must be needed, and no more than there are: for example 3-of-5"));
    }
    let mut set = [0; 4];
    let mut coefficients = Zeroizing::new(vec![[0u8; SECRET_BYTES]; usize::from(threshold) - 1]);
    getrandom::fill(&mut set).context(Kind::Bug, || "ask for random bytes".into())?;
    for coefficient in coefficients.iter_mut() {
        getrandom::fill(coefficient).context(Kind::Bug, || "ask for random bytes".into())?;
    }
    Ok((1..=count).map(|index| Share { set, threshold, index, value: evaluate(secret, &coefficients, index) }).collect())
}

/// `secret + c₁·x + c₂·x² + …`, each byte on its own.
fn evaluate(secret: &[u8; SECRET_BYTES], coefficients: &[[u8; SECRET_BYTES]], x: u8) -> [u8; SECRET_BYTES] {
    let mut value = [0; SECRET_BYTES];
    for coefficient in coefficients.iter().rev().chain([secret]) {
        for (byte, term) in value.iter_mut().zip(coefficient) {
            *byte = multiply(*byte, x) ^ term;
        }
    }
    value
}

/// The secret of shares that somebody gave in any order; more than are needed must agree.
///
/// # Errors
/// `Usage`: too few, of several sets (says which share is alone), or contradicting one another.
pub fn combine(shares: &[Share]) -> Result<Zeroizing<[u8; SECRET_BYTES]>> {
    let mut sets: BTreeMap<[u8; 4], Vec<u8>> = BTreeMap::new();
    for share in shares {
        sets.entry(share.set).or_default().push(share.index);
    }
    if sets.len() > 1 {
        let told: Vec<String> = sets
            .iter()
            .map(|(set, indexes)| {
                let indexes: Vec<String> = indexes.iter().map(ToString::to_string).collect();
                format!("share {} of set {}", indexes.join(", "), hex::encode(set))
            })
            .collect();
        return Err(Error::new(Kind::Usage, format!("combine shares: they are of different keys: {}", told.join("; ")))
            .hint("the set stands on every share; take shares of one set only"));
    }
    let mut by_index: BTreeMap<u8, &Share> = BTreeMap::new();
    for share in shares {
        if by_index.insert(share.index, share).is_some_and(|other| other != share) {
            return Err(Error::new(Kind::Usage, format!("combine shares: two different ones say that they are share {}", share.index)));
        }
    }
    let Some(first) = by_index.values().next() else {
        return Err(Error::new(Kind::Usage, "combine shares: there are none"));
    };
    let threshold = usize::from(first.threshold);
    if let Some(other) = by_index.values().find(|share| share.threshold != first.threshold) {
        return Err(Error::new(
            Kind::Usage,
            format!("combine shares: share {} says another threshold than share {}", other.index, first.index),
        ));
    }
    if by_index.len() < threshold {
        let have: Vec<String> = by_index.keys().map(ToString::to_string).collect();
        let missing = threshold - by_index.len();
        return Err(Error::new(
            Kind::Usage,
            format!("combine shares: {threshold} are needed and there are {} (share {})", by_index.len(), have.join(", ")),
        )
        .hint(format!("{missing} more of set {}", first.set())));
    }
    let points: Vec<&Share> = by_index.values().copied().collect();
    let (basis, rest) = points.split_at(threshold);
    for extra in rest {
        if interpolate(basis, extra.index).as_slice() != extra.value {
            return Err(Error::new(Kind::Usage, format!("combine shares: share {} does not fit the others", extra.index))
                .hint("leave one out at a time: one of them is wrong although its check fits"));
        }
    }
    Ok(interpolate(basis, 0))
}

/// The polynomial through the shares, at `x` (Lagrange).
fn interpolate(shares: &[&Share], x: u8) -> Zeroizing<[u8; SECRET_BYTES]> {
    let mut value = Zeroizing::new([0u8; SECRET_BYTES]);
    for share in shares {
        let mut weight = 1;
        for other in shares.iter().filter(|other| other.index != share.index) {
            weight = multiply(weight, multiply(x ^ other.index, invert(share.index ^ other.index)));
        }
        for (sum, byte) in value.iter_mut().zip(share.value) {
            *sum ^= multiply(byte, weight);
        }
    }
    value
}

/// Product in GF(2⁸).
fn multiply(mut a: u8, b: u8) -> u8 {
    let mut product = 0;
    for bit in 0..8 {
        product ^= a & 0u8.wrapping_sub((b >> bit) & 1);
        a = (a << 1) ^ (0x1b & 0u8.wrapping_sub(a >> 7));
    }
    product
}

/// a⁻¹ = a²⁵⁴.
fn invert(a: u8) -> u8 {
    let mut power = a;
    let mut result = 1;
    for _ in 0..7 {
        power = multiply(power, power);
        result = multiply(result, power);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn padded(text: &str) -> [u8; SECRET_BYTES] {
        let mut bytes = [0; SECRET_BYTES];
        hex::decode_to_slice(text, &mut bytes[..text.len() / 2]).unwrap();
        bytes
    }

    /// draft-mcgrew-tss-03, section 9: the secret 7465737400 in two shares of threshold two.
    #[test]
    fn the_published_vector_comes_back() {
        let share = |index, value| Share { set: [0; 4], threshold: 2, index, value: padded(value) };
        let secret = combine(&[share(1, "b9fa07e185"), share(2, "f5409b4511")]).unwrap();
        assert_eq!(*secret, padded("7465737400"));
        // The other way round: the slope is what both shares imply.
        let slope: Vec<u8> = padded("b9fa07e185").iter().zip(padded("7465737400")).map(|(a, b)| a ^ b).collect();
        let mut coefficient = [0; SECRET_BYTES];
        coefficient.copy_from_slice(&slope);
        assert_eq!(evaluate(&secret, &[coefficient], 2), padded("f5409b4511"));
    }

    /// FIPS 197, section 4.2: {57} • {83} = {c1}, {57} • {13} = {fe}; and every element times its inverse is one.
    #[test]
    fn the_field_is_that_of_aes() {
        assert_eq!((multiply(0x57, 0x83), multiply(0x57, 0x13)), (0xc1, 0xfe));
        assert!((1..=255).all(|a| multiply(a, invert(a)) == 1));
    }

    fn subsets(shares: &[Share], size: usize) -> Vec<Vec<Share>> {
        (0u32..1 << shares.len())
            .filter(|mask| mask.count_ones() as usize == size)
            .map(|mask| shares.iter().enumerate().filter(|(at, _)| mask >> at & 1 == 1).map(|(_, s)| s.clone()).collect())
            .collect()
    }

    #[test]
    fn any_k_give_the_secret_back_and_fewer_are_refused() {
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret).unwrap();
        for (threshold, count) in [(2, 2), (2, 3), (3, 5), (5, 5), (4, 7)] {
            let shares = split(&secret, threshold, count).unwrap();
            for size in usize::from(threshold)..=usize::from(count) {
                for mut some in subsets(&shares, size) {
                    some.reverse();
                    let typed: Vec<Share> = some.iter().map(|s| Share::read(&s.reveal().to_lowercase()).unwrap()).collect();
                    assert_eq!(*combine(&typed).unwrap(), secret, "{threshold} of {count}");
                }
            }
            for some in subsets(&shares, usize::from(threshold) - 1) {
                assert_eq!(combine(&some).unwrap_err().kind(), Kind::Usage);
            }
        }
        assert!(split(&secret, 1, 3).is_err() && split(&secret, 4, 3).is_err());
    }

    /// What k − 1 shares allow: for *every* secret there is a k-th share that makes it the result, so they tell nothing. Shown for a byte.
    #[test]
    fn fewer_shares_fit_every_secret_equally() {
        let shares = split(&[7; SECRET_BYTES], 3, 5).unwrap();
        let mut reached = std::collections::BTreeSet::new();
        for guess in 0..=255 {
            let mut third = shares[2].clone();
            third.value[0] = guess;
            reached.insert(combine(&[shares[0].clone(), shares[1].clone(), third]).unwrap()[0]);
        }
        assert_eq!(reached.len(), 256);
    }

    #[test]
    fn whoever_mixes_or_mistypes_is_told_which_share_it_is() {
        let (one, other) = (split(&[1; SECRET_BYTES], 3, 5).unwrap(), split(&[2; SECRET_BYTES], 3, 5).unwrap());
        let mixed = combine(&[one[0].clone(), one[1].clone(), other[3].clone()]).unwrap_err().to_string();
        assert!(
            mixed.contains(&format!("share 4 of set {}", other[3].set())) && mixed.contains(&format!("share 1, 2 of set {}", one[0].set())),
            "{mixed}"
        );
        let few = combine(&one[..2]).unwrap_err();
        assert!(few.to_string().contains("3 are needed and there are 2 (share 1, 2)"), "{few}");
        assert!(combine(&[one[0].clone(), one[0].clone(), one[0].clone()]).unwrap_err().to_string().contains("there are 1"));
        // A forged share with a right check among more than are needed.
        let mut forged = one[4].clone();
        forged.value[3] ^= 1;
        let told = combine(&[one[0].clone(), one[1].clone(), one[2].clone(), forged]).unwrap_err().to_string();
        assert!(told.contains("share 5 does not fit"), "{told}");
        let mut twice = one[1].clone();
        twice.value[0] ^= 1;
        assert!(combine(&[one[0].clone(), one[1].clone(), twice]).unwrap_err().to_string().contains("share 2"));
        // As typed from paper, each on a page with other text around it.
        let pages: String = one[..3]
            .iter()
            .map(|share| format!("SHARE of a key\n  {}\n", share.reveal().replace("LBSH1-", "lbshl-")))
            .collect::<Vec<_>>()
            .concat();
        assert!(Share::is_in(&pages));
        assert_eq!(Share::find(&pages).unwrap(), one[..3]);
        assert_eq!(Share::read(&one[0].reveal().replacen('1', "I", 1)).unwrap(), one[0]);
        let mut typo = one[0].reveal().to_string();
        let other = if typo[8..9] == *"Z" { "Y" } else { "Z" };
        typo.replace_range(8..9, other);
        let told = Share::read(&typo).unwrap_err().to_string();
        assert!(told.contains("check does not fit") && !told.contains("LBSH1-"), "{told}");
    }
}
