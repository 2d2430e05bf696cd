//! The private folder in which a restore works, beside its target: owned by one process, continued by the next after a crash. Its name can
//! be guessed and its parent may be anybody's, so one that exists is used only when it is ours alone.
//!
//! ```text
//! <parent>/.<name>.lifeboat-partial/     0700
//!     owner          held (flock) while a restore works here
//!     restore.json   what is being restored; written before any content
//!     tree/<source>/ the content as it comes
//!     scratch/       the sources' own
//!     whole/         a set of sources, assembled
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, IoContext, Kind, Result};
use crate::id::{Name, SnapshotId};
use crate::ops::work::{FileLock, exists, make_private, movable, own_private, read_private, remove_tree, write_private};

/// What a partial folder is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// The repository's id, hex.
    pub(super) repository: String,
    pub(super) plan: Name,
    pub(super) snapshot: SnapshotId,
    pub(super) target: String,
    pub(super) only: Vec<String>,
    /// Names what is moved aside; kept over a crash, so that a database and its log get the same name.
    pub(super) id: String,
}

impl Identity {
    /// Whether both bring the same content to the same place.
    pub(super) fn same_content(&self, other: &Self) -> bool {
        (&self.repository, self.snapshot, &self.target, &self.only) == (&other.repository, other.snapshot, &other.target, &other.only)
    }
}

/// What an earlier restore left at a partial folder; `None` when nothing worth continuing is there.
///
/// # Errors
/// `Usage` when something is there that no restore of this program and user left.
pub(super) fn left_at(folder: &Path) -> Result<Option<Identity>> {
    if !exists(folder)? {
        return Ok(None);
    }
    own_private(folder)?;
    if !has_content(folder)? {
        return Ok(None);
    }
    let path = folder.join("restore.json");
    read_private(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).map(Some).ok_or_else(|| {
        Error::new(Kind::Usage, format!("{} is in the way and was not left by an interrupted restore", folder.display()))
            .hint("look at it, and remove or rename it")
    })
}

fn has_content(folder: &Path) -> Result<bool> {
    for part in ["tree", "whole"] {
        match fs::read_dir(folder.join(part)) {
            Ok(mut items) => {
                if items.next().is_some() {
                    return Ok(true);
                }
            }
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::io(format!("list {}", folder.display()), source)),
        }
    }
    Ok(false)
}

/// An owned partial folder.
#[derive(Debug)]
pub(super) struct Partial {
    folder: PathBuf,
    identity: Identity,
    /// Whether an earlier restore's content is continued.
    resumed: bool,
    _owner: FileLock,
}

impl Partial {
    /// Makes the folder, or continues one of the same content.
    ///
    /// # Errors
    /// `Busy` while another process restores there; `Usage` when it holds another restore.
    pub(super) fn own(folder: &Path, wanted: Identity, now: DateTime<Utc>) -> Result<Self> {
        make_private(folder)?;
        let owner = FileLock::try_take(&folder.join("owner"), now)?.map_err(|holder| {
            Error::new(Kind::Busy, format!("restore to {}: another restore to it is running here ({holder})", wanted.target))
                .hint("wait until it has ended")
        })?;
        let left = left_at(folder)?;
        if let Some(left) = &left
            && !left.same_content(&wanted)
        {
            return Err(in_the_way(folder, left));
        }
        let resumed = left.is_some();
        let identity = left.unwrap_or(wanted);
        let text = serde_json::to_vec_pretty(&identity).context(Kind::Bug, || "write restore.json".into())?;
        write_private(&folder.join("restore.json"), &text)?;
        // Only content is continued; what sources make of it is made again.
        for part in ["scratch", "whole"] {
            remove_tree(&folder.join(part))?;
        }
        make_private(&folder.join("tree"))?;
        Ok(Self { folder: folder.to_owned(), identity, resumed, _owner: owner })
    }

    pub(super) fn resumed(&self) -> bool {
        self.resumed
    }

    /// Names what is moved aside.
    pub(super) fn id(&self) -> &str {
        &self.identity.id
    }

    /// Where a source's content comes.
    pub(super) fn tree(&self, source: &Name) -> PathBuf {
        self.folder.join("tree").join(source.as_str())
    }

    /// A new private folder for a source's own use.
    pub(super) fn scratch(&self, source: &Name) -> Result<PathBuf> {
        let path = self.folder.join("scratch").join(source.as_str());
        make_private(&path)?;
        Ok(path)
    }

    /// One folder with one entry a source, each moved in under the source's name.
    pub(super) fn assemble(&self, usable: &[(Name, PathBuf)]) -> Result<PathBuf> {
        let whole = self.folder.join("whole");
        // The only folder here that will be seen by others: as the umask wants it, like any new folder.
        fs::create_dir(&whole).io_context(|| format!("make folder {}", whole.display()))?;
        for (name, path) in usable {
            let place = whole.join(name.as_str());
            movable(path, || fs::rename(path, &place)).io_context(|| format!("move {} to {}", path.display(), place.display()))?;
        }
        Ok(whole)
    }

    /// Removes the folder after its content went into place.
    pub(super) fn remove(self) -> Result<()> {
        remove_tree(&self.folder)
    }
}

/// The refusal to mix two restores.
pub(super) fn in_the_way(folder: &Path, left: &Identity) -> Error {
    Error::new(Kind::Usage, format!("an interrupted restore of snapshot {} to {} is in the way", left.snapshot, left.target))
        .hint(format!("finish it with --resume, or give it up by removing {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(snapshot: SnapshotId) -> Identity {
        Identity {
            repository: "00".into(),
            plan: Name::new("crm").unwrap(),
            snapshot,
            target: "/x/crm.db".into(),
            only: Vec::new(),
            id: SnapshotId::generate(now()).to_string(),
        }
    }

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000, 0).unwrap()
    }

    #[test]
    fn only_the_same_restore_continues() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join(".crm.db.lifeboat-partial");
        let first = identity(SnapshotId::generate(now()));
        let partial = Partial::own(&folder, first.clone(), now()).unwrap();
        assert!(!partial.resumed());
        assert_eq!(Partial::own(&folder, first.clone(), now()).unwrap_err().kind(), Kind::Busy);
        make_private(&partial.tree(&first.plan)).unwrap();
        drop(partial);
        let other = Partial::own(&folder, identity(SnapshotId::generate(now())), now()).unwrap_err();
        assert_eq!(other.kind(), Kind::Usage);
        assert!(other.hint_text().unwrap().contains("--resume"));
        let again = Partial::own(&folder, Identity { id: "new".into(), ..first.clone() }, now()).unwrap();
        assert!(again.resumed());
        assert_eq!(again.id(), first.id, "the name of what is moved aside outlives a crash");
        again.remove().unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn a_planted_link_is_refused_and_never_followed() {
        let parent = tempfile::tempdir().unwrap();
        let (folder, victim) = (parent.path().join(".crm.db.lifeboat-partial"), parent.path().join("victim"));
        fs::create_dir(&victim).unwrap();
        std::os::unix::fs::symlink(&victim, &folder).unwrap();
        let wanted = identity(SnapshotId::generate(now()));
        assert_eq!(Partial::own(&folder, wanted.clone(), now()).unwrap_err().kind(), Kind::Usage);
        assert_eq!(left_at(&folder).unwrap_err().kind(), Kind::Usage, "noticed when it is planned");
        fs::remove_file(&folder).unwrap();
        for inside in ["owner", "restore.new", "tree"] {
            fs::create_dir(&folder).unwrap();
            std::os::unix::fs::symlink(victim.join("new"), folder.join(inside)).unwrap();
            // What is only replaced may be a link; what is opened may not.
            assert_eq!(Partial::own(&folder, wanted.clone(), now()).is_ok(), inside == "restore.new", "{inside}");
            remove_tree(&folder).unwrap();
        }
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    }

    #[test]
    fn a_foreign_folder_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join(".x.lifeboat-partial");
        fs::create_dir_all(folder.join("tree/precious")).unwrap();
        assert_eq!(left_at(&folder).unwrap_err().kind(), Kind::Usage);
    }
}
