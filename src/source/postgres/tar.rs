//! Archives as the server streams them: ustar, read front to back from something that cannot seek.
//!
//! Source: `src/port/tar.c` and POSIX `pax`, "ustar Interchange Format". Blocks of 512 bytes. A header: name at 0 (100), mode 100 (8), uid 108 (8), gid 116 (8), size 124
//! (12), mtime 136 (12), checksum 148 (8), kind 156 (1), link target 157 (100), `ustar` 257, prefix of the name 345 (155). Numbers are octal text or, with the
//! first byte 0x80, big-endian binary, which files from 8 GiB on need. Content is padded to whole blocks. Two blocks of zeros, or nothing at all (before 15), end it.

use std::io::{self, Read};

use crate::entry::{display_path, is_valid_path};
use crate::error::{Error, IoContext, Kind, Result};

const BLOCK: usize = 512;
/// No server has a larger file.
const SIZE_MAX: u64 = 1 << 62;

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberKind {
    File { size: u64 },
    Directory,
    Symlink { target: Vec<u8> },
}

/// A header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Valid as a tree path; empty for the root folder.
    pub path: Vec<u8>,
    pub kind: MemberKind,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u64,
}

/// Reads an archive member by member. As a [`Read`], it yields the present member's content.
pub struct TarReader<R> {
    inner: R,
    /// Of the present member's content.
    left: u64,
    padding: usize,
    ended: bool,
}

impl<R: Read> TarReader<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, left: 0, padding: 0, ended: false }
    }

    /// The next member; what was not read of the present one is passed over. `None`: the archive ended properly, and nothing follows.
    ///
    /// # Errors
    /// [`Kind::Damaged`] when it is cut off or is no archive of the kind that servers write, also for names that lead out of the tree; what the stream
    /// underneath says.
    pub fn next_member(&mut self) -> Result<Option<Member>> {
        io::copy(&mut *self, &mut io::sink()).io_context(|| "read the server's archive".into())?;
        if self.padding > 0 {
            let mut padding = [0; BLOCK];
            let padding = &mut padding[..std::mem::take(&mut self.padding)];
            self.inner.read_exact(padding).io_context(|| "read the server's archive".into())?;
        }
        if self.ended {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        if !self.read_block(&mut block)? {
            self.ended = true;
            return Ok(None);
        }
        if block == [0; BLOCK] {
            return self.expect_end();
        }
        let member = parse(&block)?;
        if let MemberKind::File { size } = member.kind {
            self.left = size;
            self.padding = (BLOCK - usize::try_from(size % BLOCK as u64).unwrap_or(0)) % BLOCK;
        }
        Ok(Some(member))
    }

    /// Zeros to the end of the stream.
    fn expect_end(&mut self) -> Result<Option<Member>> {
        self.ended = true;
        let mut block = [0; BLOCK];
        while self.read_block(&mut block)? {
            if block != [0; BLOCK] {
                return Err(Error::new(Kind::Damaged, "the server's archive goes on after its end"));
            }
        }
        Ok(None)
    }

    /// A whole block; false at the end of the stream.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        let mut have = 0;
        while have < BLOCK {
            match self.inner.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(false),
                Ok(0) => return Err(Error::new(Kind::Damaged, "the server's archive is cut off in a header")),
                Ok(read) => have += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read the server's archive", error)),
            }
        }
        Ok(true)
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if length == 0 {
            return Ok(0);
        }
        let read = self.inner.read(&mut buffer[..length])?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server's archive is cut off in a file"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

fn parse(block: &[u8; BLOCK]) -> Result<Member> {
    let damaged = |what: &str| Error::new(Kind::Damaged, format!("the server's archive has a header with {what}"));
    let sum: u64 = block.iter().enumerate().map(|(at, &byte)| if (148..156).contains(&at) { 32 } else { u64::from(byte) }).sum();
    if number(&block[148..156]) != Some(sum) {
        return Err(damaged("a wrong checksum"));
    }
    let mut path = text(&block[..100]).to_vec();
    if &block[257..262] == b"ustar" && block[263..265] == *b"00" && block[345] != 0 {
        path = [text(&block[345..500]), b"/", &path].concat();
    }
    let kind = block[156];
    let mut path = path.strip_prefix(b"./").unwrap_or(&path);
    if kind == b'5' {
        path = path.strip_suffix(b"/").unwrap_or(path);
    }
    if path == b"." {
        path = b"";
    }
    if !is_valid_path(path) || (path.is_empty() && kind != b'5') {
        return Err(damaged(&format!("the impossible name {:?}", display_path(path))));
    }
    let named = |what: &str| damaged(&format!("{what} for {}", display_path(path)));
    let small = |field: &[u8], what: &str| number(field).and_then(|value| u32::try_from(value).ok()).ok_or_else(|| named(what));
    let size = number(&block[124..136]).filter(|&size| size <= SIZE_MAX).ok_or_else(|| named("an impossible size"))?;
    let kind = match kind {
        b'0' | 0 => MemberKind::File { size },
        b'5' if size == 0 => MemberKind::Directory,
        b'2' if size == 0 => MemberKind::Symlink { target: text(&block[157..257]).to_vec() },
        other => return Err(named(&format!("the unexpected kind {:?}", char::from(other)))),
    };
    Ok(Member {
        path: path.to_vec(),
        kind,
        mode: small(&block[100..108], "an impossible mode")? & 0o7777,
        uid: small(&block[108..116], "an impossible user")?,
        gid: small(&block[116..124], "an impossible group")?,
        mtime: number(&block[136..148]).ok_or_else(|| named("an impossible time"))?,
    })
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&byte| byte == 0).unwrap_or(field.len())]
}

/// Octal text, or binary after 0x80.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        if field[0] != 0x80 {
            return None;
        }
        return field[1..].iter().try_fold(0u64, |value, &byte| value.checked_mul(256)?.checked_add(u64::from(byte)));
    }
    let digits = field.iter().copied().skip_while(|&byte| byte == b' ');
    let mut value = 0u64;
    let mut ended = false;
    for byte in digits {
        match byte {
            b'0'..=b'7' if !ended => value = value.checked_mul(8)?.checked_add(u64::from(byte - b'0'))?,
            b' ' | 0 => ended = true,
            _ => return None,
        }
    }
    Some(value)
}

#[cfg(test)]
pub(in crate::source::postgres) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(name: &[u8], kind: u8, size: &[u8; 12]) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[..name.len()].copy_from_slice(name);
        block[100..107].copy_from_slice(b"0000600");
        block[108..115].copy_from_slice(b"0000145");
        block[116..123].copy_from_slice(b"0000150");
        block[124..136].copy_from_slice(size);
        block[136..147].copy_from_slice(b"14000000000");
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum::<u32>() + 8 * 32;
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    /// A symbolic link.
    pub fn link_header(name: &[u8], target: &[u8]) -> [u8; BLOCK] {
        let mut block = header(name, b'2', &octal(0));
        block[157..157 + target.len()].copy_from_slice(target);
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    fn octal(size: u64) -> [u8; 12] {
        let mut field = [0; 12];
        field[..11].copy_from_slice(format!("{size:011o}").as_bytes());
        field
    }

    #[test]
    fn members_in_order_with_content() {
        let mut archive = Vec::new();
        archive.extend(header(b"base/", b'5', &octal(0)));
        archive.extend(header(b"./base/file", b'0', &octal(700)));
        archive.extend([7; 700]);
        archive.extend([0; 1024 - 700]);
        archive.extend(header(b"empty", b'0', &octal(0)));
        for with_end in [false, true] {
            let mut archive = archive.clone();
            archive.resize(archive.len() + if with_end { 1024 } else { 0 }, 0);
            let mut reader = TarReader::new(&archive[..]);
            assert_eq!(reader.next_member().unwrap().unwrap().path, b"base");
            let file = reader.next_member().unwrap().unwrap();
            assert_eq!((&file.path[..], &file.kind), (&b"base/file"[..], &MemberKind::File { size: 700 }));
            assert_eq!((file.mode, file.uid, file.gid, file.mtime), (0o600, 101, 104, 0o14_000_000_000));
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            assert_eq!(content, [7; 700]);
            assert_eq!(reader.next_member().unwrap().unwrap().path, b"empty");
            assert_eq!(reader.next_member().unwrap(), None);
            assert_eq!(reader.next_member().unwrap(), None);
        }
    }

    #[test]
    fn a_cut_is_noticed_wherever_it_is_but_between_members() {
        let mut archive = header(b"file", b'0', &octal(700)).to_vec();
        archive.resize(512 + 1024, 7);
        for cut in 1..archive.len() {
            let mut reader = TarReader::new(&archive[..cut]);
            let all = reader.next_member().and_then(|_| reader.next_member());
            assert!(all.is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn large_sizes_are_binary() {
        let mut size = [0; 12];
        size[0] = 0x80;
        size[4..].copy_from_slice(&(9u64 << 30).to_be_bytes());
        let block = header(b"large", b'0', &size);
        assert_eq!(TarReader::new(&block[..]).next_member().unwrap().unwrap().kind, MemberKind::File { size: 9 << 30 });
        size[1] = 1;
        assert!(TarReader::new(&header(b"x", b'0', &size)[..]).next_member().is_err());
        assert!(TarReader::new(&header(b"x", b'0', &[0xFF; 12])[..]).next_member().is_err());
    }

    #[test]
    fn hostile_and_strange_members_are_refused() {
        for name in [&b"../x"[..], b"/etc/passwd", b"a/../b", b"a//b", b"", b"a/./b", b"a/"] {
            assert_eq!(TarReader::new(&header(name, b'0', &octal(0))[..]).next_member().unwrap_err().kind(), Kind::Damaged);
        }
        for kind in *b"1346xgLKS7" {
            assert_eq!(TarReader::new(&header(b"a", kind, &octal(0))[..]).next_member().unwrap_err().kind(), Kind::Damaged);
        }
        let mut wrong = header(b"a", b'0', &octal(0));
        wrong[3] = b'b';
        assert!(TarReader::new(&wrong[..]).next_member().is_err());
        let mut after = header(b"a", b'0', &octal(0)).to_vec();
        after.resize(1024, 0);
        after.resize(1536, 1);
        let mut reader = TarReader::new(&after[..]);
        reader.next_member().unwrap();
        assert!(reader.next_member().is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2048), valid: bool, name in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut archive = if valid { header(&name, b'0', &octal(100)).to_vec() } else { Vec::new() };
            archive.extend(bytes);
            let mut reader = TarReader::new(&archive[..]);
            while let Ok(Some(member)) = reader.next_member() {
                prop_assert!(is_valid_path(&member.path));
            }
        }
    }
}
