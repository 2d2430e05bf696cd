//! Extended attributes by path, without following a link in the last place.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{lgetxattr, llistxattr};
use rustix::io::{Errno, Result};

/// Linux: the names of one file together take at most 64 KiB, a value too (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const MOST_BYTES: usize = 65_536;

/// All attributes that may be read, sorted by name. A file system without any has none.
///
/// # Errors
/// When the file is gone or an attribute that is listed cannot be read.
pub fn read_all(path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut small = [0; 512];
    let mut large = Vec::new();
    let names: &[u8] = match llistxattr(path, &mut small) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(length) => &small[..length],
        Err(Errno::RANGE) => {
            large.resize(MOST_BYTES, 0);
            let length = llistxattr(path, &mut large[..])?;
            &large[..length]
        }
        Err(errno) => return Err(errno),
    };
    let mut found = Vec::new();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; MOST_BYTES];
        match lgetxattr(path, OsStr::from_bytes(name), &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                value.shrink_to_fit();
                found.push((name.to_vec(), value));
            }
            // Removed since it was listed, or a name space that only the kernel may read.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    found.sort();
    Ok(found)
}
