//! Fingerprints: order-independent digests of a table's content, the same for every engine.
//!
//! Owns the encoding of a row and the accumulator; does not know where rows come from. What stands here is part of
//! `docs/format.md`: a digest kept in a manifest is compared for years, so nothing of it may ever change.
//!
//! # Row encoding
//!
//! A row is a sequence of values. All integers are little endian.
//!
//! | part        | bytes                                  |
//! |-------------|----------------------------------------|
//! | value count | 4 (u32)                                |
//! | each value  | 1 tag, then the payload of that tag    |
//!
//! | tag  | value   | payload                                                              |
//! |------|---------|----------------------------------------------------------------------|
//! | 0x00 | NULL    | none                                                                 |
//! | 0x01 | integer | 8: two's complement i64                                              |
//! | 0x02 | real    | 8: IEEE 754 binary64 bits (so −0.0, 0.0 and each NaN are different)  |
//! | 0x03 | text    | 8 (u64): length in bytes; then the bytes, whether valid UTF-8 or not |
//! | 0x04 | bytes   | 8 (u64): length; then the bytes                                      |
//!
//! The encoding can be parsed back without ambiguity, so it is injective: two different rows (also rows that differ only in the
//! type of a value, or in where one value ends and the next begins) never have the same encoding.
//!
//! # Digest
//!
//! A row's digest is BLAKE3 in keyed mode (32-byte key) of its encoding, 32 bytes, read as a little-endian integer. The digest of a
//! table is the sum of the digests of all its rows modulo 2^256, written as 32 little-endian bytes in lower-case hex: a table of one row has
//! exactly that row's BLAKE3, an empty table has zeros. Addition commutes, so the order of rows does not matter and partial sums of
//! disjoint parts may be added; unlike exclusive or, equal rows do not cancel out. Without the key nobody can build two
//! tables with the same sum, nor test a guess of a row against a digest.

use std::collections::HashSet;

use blake3::hazmat::{ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::source::TableFingerprint;

const TAG_NULL: u8 = 0;
const TAG_INTEGER: u8 = 1;
const TAG_REAL: u8 = 2;
const TAG_TEXT: u8 = 3;
const TAG_BYTES: u8 = 4;
/// A long row is hashed in parts of this size: a power of two of BLAKE3's chunks, so that each is a subtree of its own.
const GRANULE: usize = 64 * 1024;

/// Encodes one row at a time (see the module documentation) in a buffer that is reused.
#[derive(Debug, Default, Clone)]
pub struct RowEncoder {
    buffer: Vec<u8>,
}

impl RowEncoder {
    /// Starts a row of exactly `values` values; the caller then adds each of them, left to right.
    pub fn start(&mut self, values: u32) {
        self.buffer.clear();
        self.buffer.extend_from_slice(&values.to_le_bytes());
    }

    /// Adds an SQL NULL.
    pub fn null(&mut self) {
        self.buffer.push(TAG_NULL);
    }

    /// Adds an integer.
    pub fn integer(&mut self, value: i64) {
        self.fixed(TAG_INTEGER, value.to_le_bytes());
    }

    /// Adds a floating-point number by its bits.
    pub fn real(&mut self, value: f64) {
        self.fixed(TAG_REAL, value.to_bits().to_le_bytes());
    }

    /// Adds text by its bytes, valid UTF-8 or not.
    pub fn text(&mut self, value: &[u8]) {
        self.sized(TAG_TEXT, value);
    }

    /// Adds bytes.
    pub fn bytes(&mut self, value: &[u8]) {
        self.sized(TAG_BYTES, value);
    }

    /// The encoding of the row so far.
    pub fn encoded(&self) -> &[u8] {
        &self.buffer
    }

    fn fixed(&mut self, tag: u8, payload: [u8; 8]) {
        let mut value = [tag; 9];
        value[1..].copy_from_slice(&payload);
        self.buffer.extend_from_slice(&value);
    }

    fn sized(&mut self, tag: u8, payload: &[u8]) {
        self.fixed(tag, (payload.len() as u64).to_le_bytes());
        self.buffer.extend_from_slice(payload);
    }
}

/// A row of nulls and texts that is encoded and hashed as it arrives: however wide it is, this needs about 32 bytes for each 64 KiB of it.
///
/// A text's length stands before it and is known only behind it. So the granule with the length waits; those behind it are hashed meanwhile, which
/// BLAKE3's tree allows.
pub struct LongRow {
    key: [u8; 32],
    /// Of the granules before `last`, in order; zeros in place of one that waits.
    hashed: Vec<ChainingValue>,
    /// Those with a length that is not known yet, by number: two at most.
    waiting: Vec<(usize, Vec<u8>)>,
    /// The last granule so far; full only until there is more.
    last: Vec<u8>,
    /// Of the text under way: where in the encoding its length stands, and how many bytes it has so far.
    text: Option<(usize, u64)>,
}

impl LongRow {
    /// A row of exactly `values` values; the caller then adds each of them, left to right.
    pub fn new(key: &[u8; 32], values: u32) -> Self {
        Self { key: *key, hashed: Vec::new(), waiting: Vec::new(), last: values.to_le_bytes().to_vec(), text: None }
    }

    /// Adds an SQL NULL.
    pub fn null(&mut self) {
        self.push(&[TAG_NULL]);
    }

    /// Begins a text, which [`Self::text`] is then called for and [`Self::end_text`] ends.
    pub fn begin_text(&mut self) {
        self.push(&[TAG_TEXT]);
        self.text = Some((self.hashed.len() * GRANULE + self.last.len(), 0));
        self.push(&[0; 8]);
    }

    /// Adds a part of the text.
    pub fn text(&mut self, part: &[u8]) {
        if let Some((_, length)) = &mut self.text {
            *length += part.len() as u64;
        }
        self.push(part);
    }

    /// Ends the text: now its length is known.
    pub fn end_text(&mut self) {
        let Some((at, length)) = self.text.take() else { return };
        for (position, byte) in (at..).zip(length.to_le_bytes()) {
            let (number, offset) = (position / GRANULE, position % GRANULE);
            let granule = self.waiting.iter_mut().find(|(waiting, _)| *waiting == number).map_or(&mut self.last, |(_, granule)| granule);
            granule[offset] = byte;
        }
        for (number, granule) in std::mem::take(&mut self.waiting) {
            self.hashed[number] = self.chaining_value(number, &granule);
        }
    }

    fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.last.len() == GRANULE {
                self.close();
            }
            let (now, later) = bytes.split_at(bytes.len().min(GRANULE - self.last.len()));
            self.last.extend_from_slice(now);
            bytes = later;
        }
    }

    /// Something follows the last granule: it is not the end of the tree.
    fn close(&mut self) {
        let number = self.hashed.len();
        let (begin, end) = (number * GRANULE, (number + 1) * GRANULE);
        if self.text.is_some_and(|(at, _)| at + 8 > begin && at < end) {
            self.waiting.push((number, std::mem::take(&mut self.last)));
            self.hashed.push(ChainingValue::default());
        } else {
            self.hashed.push(self.chaining_value(number, &self.last));
            self.last.clear();
        }
    }

    fn chaining_value(&self, number: usize, granule: &[u8]) -> ChainingValue {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.set_input_offset((number * GRANULE) as u64).update(granule).finalize_non_root()
    }

    /// The same as the keyed hash of the whole encoding.
    fn digest(mut self) -> blake3::Hash {
        if self.hashed.is_empty() {
            return blake3::keyed_hash(&self.key, &self.last);
        }
        let mode = Mode::KeyedHash(&self.key);
        let last = self.chaining_value(self.hashed.len(), &self.last);
        let mut level = std::mem::take(&mut self.hashed);
        level.push(last);
        loop {
            if let [left, right] = level.as_slice() {
                return merge_subtrees_root(left, right, mode);
            }
            let parent = |pair: &[ChainingValue]| match pair {
                [left, right] => merge_subtrees_non_root(left, right, mode),
                rest => rest.first().copied().unwrap_or_default(),
            };
            level = level.chunks(2).map(parent).collect();
        }
    }
}

/// Sums the digests of rows.
#[derive(Clone)]
pub struct Accumulator {
    key: [u8; 32],
    rows: u64,
    /// Little-endian limbs of the 256-bit sum.
    sum: [u64; 4],
}

impl Accumulator {
    /// An empty table under this key.
    pub fn new(key: &[u8; 32]) -> Self {
        Self { key: *key, rows: 0, sum: [0; 4] }
    }

    /// Adds one row.
    pub fn add(&mut self, row: &RowEncoder) {
        self.add_digest(blake3::keyed_hash(&self.key, row.encoded()));
    }

    /// Adds one row that was hashed as it came, under the same key.
    pub fn add_long(&mut self, row: LongRow) {
        self.add_digest(row.digest());
    }

    fn add_digest(&mut self, digest: blake3::Hash) {
        let mut limbs = [0; 4];
        for (limb, bytes) in limbs.iter_mut().zip(digest.as_bytes().as_chunks::<8>().0) {
            *limb = u64::from_le_bytes(*bytes);
        }
        self.add_sum(limbs);
        self.rows += 1;
    }

    /// Adds the rows of another part of the same table, summed under the same key.
    pub fn merge(&mut self, part: &Self) {
        self.add_sum(part.sum);
        self.rows += part.rows;
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The fingerprint of everything added, under this table name.
    pub fn finish(&self, table: impl Into<String>) -> TableFingerprint {
        let bytes: Vec<u8> = self.sum.iter().flat_map(|limb| limb.to_le_bytes()).collect();
        TableFingerprint { table: table.into(), rows: self.rows, digest: hex::encode(bytes) }
    }

    fn add_sum(&mut self, limbs: [u64; 4]) {
        let mut carry = false;
        for (sum, limb) in self.sum.iter_mut().zip(limbs) {
            let (partial, first) = sum.overflowing_add(limb);
            let (total, second) = partial.overflowing_add(u64::from(carry));
            *sum = total;
            carry = first || second;
        }
    }
}

/// Rows and digest of several parts of one table together, from those of each. `None`: one of them is no digest as [`Accumulator::finish`] makes it.
pub fn together<'a>(parts: impl IntoIterator<Item = (u64, &'a str)>) -> Option<(u64, String)> {
    let mut all = Accumulator::new(&[0; 32]);
    for (rows, digest) in parts {
        let bytes: [u8; 32] = hex::decode(digest).ok()?.try_into().ok()?;
        let mut limbs = [0; 4];
        for (limb, bytes) in limbs.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *limb = u64::from_le_bytes(*bytes);
        }
        all.add_sum(limbs);
        all.rows += rows;
    }
    let TableFingerprint { rows, digest, .. } = all.finish("");
    Some((rows, digest))
}

/// `percent` of the tables, rounded up, in the manifest's order; what is not a table (its name begins with a parenthesis) is not chosen.
/// Which ones depends on all digests together: the same for the same snapshot, another choice as soon as anything changed, so that every
/// table has its turn.
pub fn choose(fingerprints: &[TableFingerprint], percent: u8) -> Vec<&TableFingerprint> {
    let tables: Vec<&TableFingerprint> = fingerprints.iter().filter(|known| !known.table.starts_with('(')).collect();
    let count = (tables.len() * usize::from(percent.min(100))).div_ceil(100);
    if count == tables.len() {
        return tables;
    }
    let mut seed = blake3::Hasher::new_derive_key("lifeboat 2026 fingerprint sample");
    for known in fingerprints {
        seed.update(known.digest.as_bytes());
    }
    let seed = *seed.finalize().as_bytes();
    let rank = |known: &TableFingerprint| *blake3::keyed_hash(&seed, known.table.as_bytes()).as_bytes();
    let mut ranked = tables.clone();
    ranked.sort_by_cached_key(|known| rank(known));
    let taken: HashSet<&str> = ranked.iter().take(count).map(|known| known.table.as_str()).collect();
    tables.into_iter().filter(|known| taken.contains(known.table.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, PartialEq)]
    enum Value {
        Null,
        Integer(i64),
        Real(u64),
        Text(Vec<u8>),
        Bytes(Vec<u8>),
    }

    fn encode(row: &[Value]) -> RowEncoder {
        let mut encoder = RowEncoder::default();
        encoder.start(u32::try_from(row.len()).unwrap());
        for value in row {
            match value {
                Value::Null => encoder.null(),
                Value::Integer(value) => encoder.integer(*value),
                Value::Real(bits) => encoder.real(f64::from_bits(*bits)),
                Value::Text(bytes) => encoder.text(bytes),
                Value::Bytes(bytes) => encoder.bytes(bytes),
            }
        }
        encoder
    }

    /// The inverse of the encoder, written from the table in the module documentation: its existence is the proof of injectivity.
    fn decode(mut bytes: &[u8]) -> Vec<Value> {
        fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
            let (head, tail) = bytes.split_at(count);
            *bytes = tail;
            head
        }
        fn word(bytes: &mut &[u8]) -> u64 {
            u64::from_le_bytes(take(bytes, 8).try_into().unwrap())
        }
        let count = u32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap());
        let row = (0..count)
            .map(|_| match take(&mut bytes, 1)[0] {
                0 => Value::Null,
                1 => Value::Integer(word(&mut bytes).cast_signed()),
                2 => Value::Real(word(&mut bytes)),
                tag => {
                    let length = usize::try_from(word(&mut bytes)).unwrap();
                    let payload = take(&mut bytes, length).to_vec();
                    if tag == 3 { Value::Text(payload) } else { Value::Bytes(payload) }
                }
            })
            .collect();
        assert!(bytes.is_empty());
        row
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::Integer),
            any::<u64>().prop_map(Value::Real),
            proptest::collection::vec(any::<u8>(), 0..12).prop_map(Value::Text),
            proptest::collection::vec(any::<u8>(), 0..12).prop_map(Value::Bytes),
        ]
    }

    fn table_of(rows: &[Vec<Value>]) -> Accumulator {
        let mut sum = Accumulator::new(&[7; 32]);
        for row in rows {
            sum.add(&encode(row));
        }
        sum
    }

    proptest! {
        #[test]
        fn every_row_can_be_read_back(row in proptest::collection::vec(value(), 0..6)) {
            prop_assert_eq!(decode(encode(&row).encoded()), row);
        }

        #[test]
        fn order_and_partition_do_not_matter(rows in proptest::collection::vec(proptest::collection::vec(value(), 1..4), 0..20), cut in 0usize..20) {
            let whole = table_of(&rows).finish("t");
            let mut reversed = rows.clone();
            reversed.reverse();
            prop_assert_eq!(&table_of(&reversed).finish("t"), &whole);
            let (head, tail) = rows.split_at(cut.min(rows.len()));
            let mut parts = table_of(tail);
            parts.merge(&table_of(head));
            prop_assert_eq!(&parts.finish("t"), &whole);
            let (first, second) = (table_of(head).finish("a"), table_of(tail).finish("b"));
            let told = [(first.rows, first.digest.as_str()), (second.rows, second.digest.as_str())];
            prop_assert_eq!(together(told), Some((whole.rows, whole.digest)));
            prop_assert_eq!(together([(1, "abc")]), None);
        }
    }

    #[test]
    fn a_table_of_one_row_has_the_hash_of_that_row() {
        let row = encode(&[Value::Integer(1), Value::Text(b"a".to_vec()), Value::Null]);
        assert_eq!(hex::encode(row.encoded()), "0300000001010000000000000003010000000000000061".to_owned() + "00");
        let mut sum = Accumulator::new(&[7; 32]);
        sum.add(&row);
        assert_eq!(sum.finish("t").digest, blake3::keyed_hash(&[7; 32], row.encoded()).to_hex().to_string());
    }

    #[test]
    fn a_long_row_has_the_hash_of_the_whole_wherever_its_lengths_fall() {
        let key = [7; 32];
        let noise: Vec<u8> = (0..5 * GRANULE + 9).map(|n| u8::try_from(n * 31 % 251).unwrap()).collect();
        // The first text moves the second one's length across a boundary, byte by byte.
        let mut rows: Vec<Vec<Option<usize>>> =
            (GRANULE - 40..GRANULE + 4).map(|first| vec![Some(first), Some(GRANULE), None, Some(3)]).collect();
        for long in [0, 1, 1023, GRANULE - 14, GRANULE - 13, GRANULE - 12, GRANULE, 2 * GRANULE - 13, 3 * GRANULE, 5 * GRANULE + 9] {
            rows.extend([vec![Some(long)], vec![None, Some(long)], vec![Some(long), Some(0), Some(long)], vec![Some(3), Some(long), None]]);
        }
        for row in rows {
            let values = u32::try_from(row.len()).unwrap();
            let (mut whole, mut encoder) = (Accumulator::new(&key), RowEncoder::default());
            encoder.start(values);
            let mut long = LongRow::new(&key, values);
            for value in &row {
                match value {
                    None => {
                        encoder.null();
                        long.null();
                    }
                    Some(length) => {
                        encoder.text(&noise[..*length]);
                        long.begin_text();
                        noise[..*length].chunks(10_007).for_each(|part| long.text(part));
                        long.end_text();
                    }
                }
            }
            assert!(long.waiting.is_empty() && long.last.len() <= GRANULE);
            whole.add(&encoder);
            let mut parts = Accumulator::new(&key);
            parts.add_long(long);
            assert_eq!(parts.finish("t"), whole.finish("t"), "{row:?}");
        }
    }

    #[test]
    fn an_empty_table_is_zero() {
        let empty = Accumulator::new(&[0; 32]).finish("t");
        assert_eq!((empty.rows, empty.digest), (0, "0".repeat(64)));
    }

    #[test]
    fn equal_rows_do_not_cancel_out() {
        let row = vec![Value::Integer(5)];
        assert_ne!(table_of(&[row.clone(), row]).finish("t").digest, "0".repeat(64));
    }

    #[test]
    fn the_sum_carries_over_limbs_and_wraps() {
        let mut sum = Accumulator::new(&[0; 32]);
        sum.add_sum([u64::MAX; 4]);
        sum.add_sum([1, 0, 0, 0]);
        assert_eq!(sum.sum, [0; 4]);
        sum.add_sum([u64::MAX, 0, 0, 0]);
        sum.add_sum([1, 0, 0, 0]);
        assert_eq!(sum.sum, [0, 1, 0, 0]);
    }

    #[test]
    fn types_and_boundaries_tell_rows_apart() {
        let rows = [
            vec![Value::Text(b"1".to_vec())],
            vec![Value::Integer(1)],
            vec![Value::Bytes(b"1".to_vec())],
            vec![Value::Real(1f64.to_bits())],
            vec![Value::Real((-0f64).to_bits())],
            vec![Value::Real(0f64.to_bits())],
            vec![Value::Null],
            vec![Value::Null, Value::Null],
            vec![Value::Text(b"ab".to_vec()), Value::Text(b"c".to_vec())],
            vec![Value::Text(b"a".to_vec()), Value::Text(b"bc".to_vec())],
        ];
        let digests: std::collections::BTreeSet<_> =
            rows.iter().map(|row| table_of(std::slice::from_ref(row)).finish("t").digest).collect();
        assert_eq!(digests.len(), rows.len());
    }
}
