//! A place that ignores conditions, and several processes of one host that write there: whoever looks whether an object is there and then writes it is alone
//! with its name meanwhile.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::error::{Context as _, Error, IoContext as _, Kind, Result};

/// Names of one place share so many locks.
const LOCKS: u8 = 16;

/// Waits until nobody else on this host, in this process or another one that uses `folder`, writes what has this lock; until the file is dropped nobody
/// does. A process that ends lets go.
///
/// # Errors
/// When the folder or the file cannot be made.
pub(crate) async fn wait(folder: &Path, place: &str, key: &str) -> Result<File> {
    let hash = |text: &str| blake3::hash(text.as_bytes());
    let name = format!("{}-{:x}", &hash(place).to_hex()[..16], hash(key).as_bytes()[0] % LOCKS);
    let (folder, path) = (folder.to_owned(), folder.join(name));
    tokio::task::spawn_blocking(move || lock(&folder, &path)).await.context(Kind::Bug, || "wait for a lock".to_owned())?
}

fn lock(folder: &Path, path: &Path) -> Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).io_context(|| format!("make folder {}", folder.display()))?;
    let no_link = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).custom_flags(no_link).open(path);
    let file = file.map_err(|error| Error::io(format!("open lock file {}", path.display()), error))?;
    file.lock().io_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}
