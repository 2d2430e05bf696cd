//! Reading and writing the binary encodings of `docs/format.md`: little-endian integers, LEB128 varints, bounded counts.
//!
//! A reader never trusts a length: everything is checked against what is left before anything is allocated.

/// Why bytes could not be decoded; the caller adds which object they are from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("ends too early")]
    Truncated,
    #[error("has {0} bytes too many")]
    Trailing(usize),
    #[error("{0}")]
    Invalid(&'static str),
}

pub type WireResult<T> = Result<T, WireError>;

/// Takes values off the front of a slice.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn bytes(&mut self, count: usize) -> WireResult<&'a [u8]> {
        let (head, tail) = self.rest.split_at_checked(count).ok_or(WireError::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self) -> WireResult<[u8; N]> {
        let (head, tail) = self.rest.split_first_chunk::<N>().ok_or(WireError::Truncated)?;
        self.rest = tail;
        Ok(*head)
    }

    pub fn u8(&mut self) -> WireResult<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> WireResult<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// Unsigned LEB128, at most ten bytes, shortest form only.
    pub fn varint(&mut self) -> WireResult<u64> {
        let mut value = 0u64;
        for shift in (0..).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 || shift > 63 {
                return Err(WireError::Invalid("varint does not fit 64 bits"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(WireError::Invalid("varint is not in its shortest form"));
                }
                return Ok(value);
            }
        }
        Err(WireError::Truncated)
    }

    pub fn varint32(&mut self) -> WireResult<u32> {
        u32::try_from(self.varint()?).map_err(|_| WireError::Invalid("number does not fit 32 bits"))
    }

    /// A count of items of at least `least_bytes` bytes each: refused when what is left cannot hold them.
    pub fn count(&mut self, least_bytes: usize) -> WireResult<usize> {
        let count = usize::try_from(self.varint()?).map_err(|_| WireError::Truncated)?;
        if count.checked_mul(least_bytes).is_none_or(|need| need > self.rest.len()) {
            return Err(WireError::Truncated);
        }
        Ok(count)
    }

    /// A varint length and that many bytes.
    pub fn blob(&mut self) -> WireResult<&'a [u8]> {
        let count = self.count(1)?;
        self.bytes(count)
    }

    /// All that is left.
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub fn finish(self) -> WireResult<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(WireError::Trailing(self.rest.len())) }
    }
}

/// Appends an unsigned LEB128 varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a varint length and the bytes.
pub fn put_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Maps a signed number to an unsigned one with small magnitudes first.
pub fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// The inverse of [`zigzag`].
pub fn unzigzag(value: u64) -> i64 {
    ((value >> 1) as i64) ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_come_back(value: u64) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.varint(), Ok(value));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn zigzags_come_back(value: i64) {
            prop_assert_eq!(unzigzag(zigzag(value)), value);
        }
    }

    #[test]
    fn overlong_and_oversized_numbers_are_refused() {
        assert!(Reader::new(&[0x80, 0x00]).varint().is_err());
        assert!(Reader::new(&[0xff; 11]).varint().is_err());
        assert_eq!(Reader::new(&[0xff]).varint(), Err(WireError::Truncated));
        assert_eq!(Reader::new(&[0xff, 0xff, 0x7f, 1]).count(1), Err(WireError::Truncated));
    }
}
