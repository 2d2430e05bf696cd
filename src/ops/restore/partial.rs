//! The private folder in which a restore works, beside its target: owned by one process, continued by the next after a crash. Its name can
//! be guessed and its parent may be anybody's, so one that exists is used only when it is ours alone.
//!
//! ```text
//! <parent>/.<name>.lifeboat-partial/     0700
//!     owner          held (flock) while a restore works here
//!     restore.json   what is being restored; written before any content, again before the target is touched, and removed last
//!     tree/<source>/ the content as it comes
//!     scratch/       the sources' own
//!     whole/         a set of sources, assembled
//! ```

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, IoContext, Kind, Result};
use crate::id::{Name, SnapshotId};
use crate::ops::Existing;
use crate::ops::log::replay::{LogRecovery, SourceMoment};
use crate::ops::restore::place::{Place, sync_folder};
use crate::ops::work::{FileLock, exists, make_private, movable, own_private, read_private, remove_tree, write_private};

/// What a partial folder is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// The repository's id, hex.
    pub(super) repository: String,
    pub(super) plan: Name,
    pub(super) snapshot: SnapshotId,
    pub(super) target: String,
    /// The sources that are restored, in the snapshot's order.
    #[serde(default)]
    pub(super) sources: Vec<String>,
    pub(super) only: Vec<String>,
    /// What is replayed on top of the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) recovery: Option<LogRecovery>,
    /// What makes the result incomplete and cannot be seen in the content: whoever goes on with it must be told too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) log_hole: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) newer_unread: Vec<SnapshotId>,
    /// It is to leave a standby.
    #[serde(default)]
    pub(super) standby: bool,
    /// The same of each of several sources.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) moments: Vec<SourceMoment>,
    /// Names what is moved aside; kept over a crash, so that a database and its log get the same name, until that name is taken.
    pub(super) id: String,
    /// Written before anything moves at the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) placing: Option<Placing>,
    /// Why it could not be completed although nothing interrupted it: what it left may be replaced by another restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failed: Option<String>,
}

/// What is about to happen at the target, so that after a crash the next run knows its own result and what was moved aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Placing {
    /// Of what will appear there; a rename keeps it.
    pub(super) inode: u64,
    /// What this restore moves aside, earlier attempts included.
    pub(super) moved_aside: Vec<Existing>,
    /// Why it must not be used as it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) dangers: Vec<String>,
}

impl Identity {
    /// Whether both bring the same content to the same place.
    pub(super) fn same_content(&self, other: &Self) -> bool {
        self.same_snapshot(other)
            && self.moments == other.moments
            && (&self.target, &self.sources, &self.only, &self.recovery) == (&other.target, &other.sources, &other.only, &other.recovery)
    }

    fn same_snapshot(&self, other: &Self) -> bool {
        (&self.repository, self.snapshot) == (&other.repository, other.snapshot)
    }

    /// Whether the restored content went into place already: all that is missing is to clean up.
    pub(super) fn is_placed(&self, target: &Path) -> bool {
        let there = fs::symlink_metadata(target).ok().map(|metadata| metadata.ino());
        self.placing.as_ref().is_some_and(|placing| there == Some(placing.inode))
    }
}

/// What an earlier restore to `target` left at its partial folder; `None` when nothing worth continuing is there.
///
/// # Errors
/// `Usage` when something is there that no restore of this program and user left.
pub(super) fn left_at(folder: &Path, target: &Path) -> Result<Option<Identity>> {
    if !exists(folder)? {
        return Ok(None);
    }
    own_private(folder)?;
    let read = read_private(&folder.join("restore.json")).ok().and_then(|text| serde_json::from_slice::<Identity>(&text).ok());
    match (read, has_content(folder)?) {
        (Some(left), true) => Ok(Some(left)),
        // Its content may be at the target by now.
        (left, false) => Ok(left.filter(|left| left.is_placed(target))),
        (None, true) => {
            Err(Error::new(Kind::Usage, format!("{} is in the way and was not left by an interrupted restore", folder.display()))
                .hint("look at it, and remove or rename it"))
        }
    }
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
    /// Makes the folder, continues one of the same content, or replaces one of a restore that failed or, as `never_completed` says, always will: of that,
    /// sources of the same snapshot are continued.
    ///
    /// # Errors
    /// `Busy` while another process restores there; `Usage` when it holds another restore.
    pub(super) fn own(
        place: &Place,
        wanted: Identity,
        now: DateTime<Utc>,
        never_completed: &dyn Fn(&Identity) -> Option<String>,
    ) -> Result<Self> {
        let folder = place.partial();
        make_private(&folder)?;
        let owner = FileLock::try_take(&folder.join("owner"), now)?.map_err(|holder| {
            Error::new(Kind::Busy, format!("restore to {}: another restore to it is running here ({holder})", wanted.target))
                .hint("wait until it has ended")
        })?;
        let left = left_at(&folder, place.target())?;
        let mut resumed = left.is_some();
        let identity = match left {
            Some(left) if !left.same_content(&wanted) => {
                if left.failed.is_none() && never_completed(&left).is_none() {
                    return Err(in_the_way(&folder, &left));
                }
                let kept = if left.same_snapshot(&wanted) { wanted.sources.as_slice() } else { &[] };
                resumed = keep_trees(&folder.join("tree"), kept)?;
                // What it moved aside is still to be told; nothing of it is in place.
                let placing = left.placing.map(|placing| Placing { inode: 0, ..placing });
                Identity { placing, ..wanted }
            }
            Some(left) if place.is_spent(&left.id)? && !left.is_placed(place.target()) => Identity { id: wanted.id, ..left },
            Some(left) => left,
            None => wanted,
        };
        let partial = Self { folder, identity, resumed, _owner: owner };
        partial.record()?;
        // Only content is continued; what sources make of it is made again.
        for part in ["scratch", "whole"] {
            remove_tree(&partial.folder.join(part))?;
        }
        make_private(&partial.folder.join("tree"))?;
        Ok(partial)
    }

    fn record(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.identity).context(Kind::Bug, || "write restore.json".into())?;
        write_private(&self.folder.join("restore.json"), &text)?;
        sync_folder(&self.folder)
    }

    /// Records that `whole` is about to appear at the target, after `moved` was moved aside, and why it must not be used as it is.
    pub(super) fn place(&mut self, whole: &Path, moved: Vec<Existing>, dangers: Vec<String>) -> Result<()> {
        let metadata = fs::symlink_metadata(whole).io_context(|| format!("look at {}", whole.display()))?;
        self.identity.placing = Some(Placing { inode: metadata.ino(), moved_aside: moved, dangers });
        self.identity.failed = None;
        self.record()
    }

    /// Records that this restore cannot be completed as things are, so that another may replace it.
    pub(super) fn fail(&mut self, why: String) -> Result<()> {
        self.identity.failed = Some(why);
        self.record()
    }

    /// What this restore has moved aside so far, as recorded.
    pub(super) fn moved_aside(&self) -> Vec<Existing> {
        let recorded = self.identity.placing.as_ref().map_or(&[][..], |placing| &placing.moved_aside);
        // It was recorded before it was moved. A name that is no text cannot be looked for: better told in vain than not.
        let is_there =
            |existing: &&Existing| exists(Path::new(&existing.moved_to)).unwrap_or(true) || existing.moved_to.contains('\u{fffd}');
        recorded.iter().filter(is_there).cloned().collect()
    }

    /// Why what went into place must not be used as it is.
    pub(super) fn dangers(&self) -> Vec<String> {
        self.identity.placing.as_ref().map_or_else(Vec::new, |placing| placing.dangers.clone())
    }

    pub(super) fn resumed(&self) -> bool {
        self.resumed
    }

    /// Content was put there to go on from.
    pub(super) fn goes_on(&mut self) {
        self.resumed = true;
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
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

    /// Removes the folder, the record of what it was last: a crash meanwhile leaves something that is understood.
    pub(super) fn remove(self) -> Result<()> {
        for part in ["tree", "scratch", "whole"] {
            remove_tree(&self.folder.join(part))?;
        }
        remove_tree(&self.folder)
    }
}

/// Removes what is not the tree of one of these sources; whether any is left.
fn keep_trees(folder: &Path, sources: &[String]) -> Result<bool> {
    let listed = || format!("list {}", folder.display());
    let items = match fs::read_dir(folder) {
        Ok(items) => items,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(Error::io(listed(), source)),
    };
    let mut kept = false;
    for item in items {
        let item = item.io_context(listed)?;
        if sources.iter().any(|name| item.file_name() == name.as_str()) {
            kept = true;
        } else {
            remove_tree(&item.path())?;
        }
    }
    Ok(kept)
}

/// The refusal to mix two restores.
pub(super) fn in_the_way(folder: &Path, left: &Identity) -> Error {
    let part = match (left.sources.as_slice(), left.only.as_slice()) {
        (_, only @ [_, ..]) => format!(" (only {})", only.join(", ")),
        (sources @ [_, ..], []) => format!(" ({})", sources.join(", ")),
        ([], []) => String::new(),
    };
    let part = left.recovery.as_ref().map_or(part.clone(), |recovery| format!("{part}, through the log to {}", recovery.target));
    Error::new(Kind::Usage, format!("an interrupted restore of snapshot {}{part} to {} is in the way", left.snapshot, left.target))
        .hint(format!("finish it with --resume, or give it up by removing {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(snapshot: SnapshotId) -> Identity {
        Identity {
            log_hole: None,
            newer_unread: Vec::new(),
            repository: "00".into(),
            plan: Name::new("crm").unwrap(),
            snapshot,
            target: "/x/crm.db".into(),
            sources: vec!["crm".into()],
            only: Vec::new(),
            recovery: None,
            standby: false,
            moments: Vec::new(),
            id: SnapshotId::generate(now()).to_string(),
            placing: None,
            failed: None,
        }
    }

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000, 0).unwrap()
    }

    fn place(parent: &Path) -> Place {
        Place::new(&parent.join("crm.db"), crate::ops::restore::place::Shape::File { sqlite: true }).unwrap()
    }

    fn own(place: &Place, wanted: Identity) -> Result<Partial> {
        Partial::own(place, wanted, now(), &|_| None)
    }

    #[test]
    fn only_the_same_restore_continues() {
        let parent = tempfile::tempdir().unwrap();
        let place = place(parent.path());
        let folder = place.partial();
        let first = identity(SnapshotId::generate(now()));
        let partial = own(&place, first.clone()).unwrap();
        assert!(!partial.resumed());
        assert_eq!(own(&place, first.clone()).unwrap_err().kind(), Kind::Busy);
        make_private(&partial.tree(&first.plan)).unwrap();
        drop(partial);
        let other = own(&place, identity(SnapshotId::generate(now()))).unwrap_err();
        assert_eq!(other.kind(), Kind::Usage);
        assert!(other.hint_text().unwrap().contains("--resume"));
        let again = own(&place, Identity { id: "new".into(), ..first.clone() }).unwrap();
        assert!(again.resumed());
        assert_eq!(again.id(), first.id, "the name of what is moved aside outlives a crash");
        again.remove().unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn what_can_never_be_completed_is_replaced_by_another_restore() {
        let parent = tempfile::tempdir().unwrap();
        let place = place(parent.path());
        let first = identity(SnapshotId::generate(now()));
        let partial = own(&place, first.clone()).unwrap();
        make_private(&partial.tree(&first.plan)).unwrap();
        drop(partial);
        let other = identity(SnapshotId::generate(now()));
        assert_eq!(own(&place, other.clone()).unwrap_err().kind(), Kind::Usage);
        let gone = |left: &Identity| (left.snapshot == first.snapshot).then(|| "its key was destroyed".to_owned());
        let replaced = Partial::own(&place, other.clone(), now(), &gone).unwrap();
        assert_eq!((replaced.resumed(), replaced.identity.snapshot), (false, other.snapshot));
        assert!(!replaced.tree(&first.plan).exists());
    }

    #[test]
    fn what_must_not_be_used_is_told_after_a_crash_too() {
        let parent = tempfile::tempdir().unwrap();
        let place = place(parent.path());
        let wanted = identity(SnapshotId::generate(now()));
        let mut partial = own(&place, wanted.clone()).unwrap();
        assert_eq!(partial.dangers(), Vec::<String>::new());
        let whole = partial.tree(&wanted.plan);
        fs::write(&whole, "").unwrap();
        partial.place(&whole, Vec::new(), vec!["do not".into()]).unwrap();
        fs::rename(&whole, place.target()).unwrap();
        drop(partial);
        let again = own(&place, wanted).unwrap();
        assert_eq!(again.dangers(), ["do not"]);
    }

    #[test]
    fn a_planted_link_is_refused_and_never_followed() {
        let parent = tempfile::tempdir().unwrap();
        let place = place(parent.path());
        let (folder, victim) = (place.partial(), parent.path().join("victim"));
        fs::create_dir(&victim).unwrap();
        std::os::unix::fs::symlink(&victim, &folder).unwrap();
        let wanted = identity(SnapshotId::generate(now()));
        assert_eq!(own(&place, wanted.clone()).unwrap_err().kind(), Kind::Usage);
        assert_eq!(left_at(&folder, place.target()).unwrap_err().kind(), Kind::Usage, "noticed when it is planned");
        fs::remove_file(&folder).unwrap();
        for inside in ["owner", "restore.new", "tree"] {
            fs::create_dir(&folder).unwrap();
            std::os::unix::fs::symlink(victim.join("new"), folder.join(inside)).unwrap();
            // What is only replaced may be a link; what is opened may not.
            assert_eq!(own(&place, wanted.clone()).is_ok(), inside == "restore.new", "{inside}");
            remove_tree(&folder).unwrap();
        }
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    }

    #[test]
    fn a_foreign_folder_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let place = place(parent.path());
        let folder = place.partial();
        fs::create_dir_all(folder.join("tree/precious")).unwrap();
        assert_eq!(left_at(&folder, place.target()).unwrap_err().kind(), Kind::Usage);
    }
}
