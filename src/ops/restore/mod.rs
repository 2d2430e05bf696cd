//! Restore: plan first (nothing is touched), then apply. The drill uses the very same path with a private target.

mod apply;
mod doubt;
mod estimate;
pub mod fallback;
mod part;
mod partial;
mod place;
mod prepare;
mod server;

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext, Kind, Result};
use crate::event::Event;
use crate::id::SnapshotId;
use crate::ops::log::replay::{LogRecovery, SourceMoment};
use crate::ops::restore::fallback::Fallback;
use crate::ops::select::Choice;
use crate::ops::{Existing, Job, Missing, Phase, condemn, unless_removed};
use crate::repo::Manifest;
use crate::source::postgres::tablespaces;
use crate::source::{ExtractedTable, HandOver, Standby, TablespaceMapping};

pub(in crate::ops) use apply::{Done, Restored, Taker, bring_back};
pub(in crate::ops) use place::free_bytes;
pub(in crate::ops) use prepare::plan_of;

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreRequest {
    pub choice: Choice,
    /// A file for `sqlite` and `command`, a folder for `files` and for several sources. With `only` of a `postgres` source a file, or the URL of
    /// the database to load it into.
    pub to: PathBuf,
    /// Only these sources of the snapshot; empty: all. One alone is restored as if its plan had no other.
    pub sources: Vec<String>,
    /// Only these tables of one `sqlite` source, or `DATABASE[/[SCHEMA.]TABLE]` of one `postgres` source; empty: everything.
    pub only: Vec<String>,
    /// Continue the interrupted restore to this target, with its snapshot. What `choice` (but for the latest), `sources` and `only` name
    /// must be what was begun.
    pub resume: bool,
}

/// What of a snapshot is restored; empty: all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::ops) struct Part {
    pub(in crate::ops) sources: Vec<String>,
    pub(in crate::ops) only: Vec<String>,
    /// Of several sources that go to one moment, each.
    pub(in crate::ops) moments: Vec<SourceMoment>,
}

/// How long it may take, and how we know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    pub duration_ms: u64,
    /// In words, with what is in it besides fetching: `from the last drill of this plan, with the replay of its log, …`, `a guess at 100 MB/s: no drill …`.
    pub basis: String,
}

/// One source in a restore plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedSource {
    pub name: String,
    pub kind: String,
    pub bytes: u64,
    pub entries: u64,
    pub target: String,
}

/// `lifeboat.restore-plan/1`: what a restore will do. Nothing was touched yet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RestorePlan {
    pub schema: String,
    pub plan: String,
    pub snapshot: SnapshotId,
    /// The moment that the content is of.
    pub at: DateTime<Utc>,
    /// The moment asked for, when one was.
    pub asked: Option<DateTime<Utc>>,
    pub target: String,
    /// What is replayed on top of the snapshot. `None`: the snapshot's own moment.
    pub recovery: Option<LogRecovery>,
    /// Of several sources that go to one moment through their logs: where each goes. Else empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub moments: Vec<SourceMoment>,
    pub sources: Vec<PlannedSource>,
    /// Sources of the snapshot that were not asked for.
    pub sources_left_out: Vec<String>,
    pub bytes: u64,
    pub entries: u64,
    pub only: Vec<String>,
    pub estimate: Estimate,
    /// What stands at the target; not empty: [`apply`] needs `confirmed` to equal `confirmation`.
    pub overwrites: Vec<Existing>,
    /// The word that confirms the restore into place: the last part of the target's path. `None`: nothing to confirm.
    pub confirmation: Option<String>,
    /// The end of the log was asked for, and there is more behind a hole in it: the restore is whole, but not what was meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_hole: Option<String>,
    /// What stands at the target is changed into the snapshot instead of being moved aside: see [`RestorePlan::reuse_target`].
    pub delta: bool,
    /// What is wanted of the restored server: see [`RestorePlan::stand_by`] and [`RestorePlan::map_tablespaces`].
    #[serde(skip)]
    pub(crate) hand_over: HandOver,
    /// An interrupted restore of the same snapshot to the same target will be continued.
    pub resumes: bool,
    /// How the restore ended that is continued or replaced, when it could not be completed (damage): going on alone does not help.
    pub failed_before: Option<String>,
    /// Free on the target's file system now.
    pub bytes_free: u64,
    /// What the backup could not read: it will not be in the restored content.
    pub missing: Vec<Missing>,
    /// Snapshots newer than this one that were asked for rather than it and cannot be read.
    pub newer_unread: Vec<SnapshotId>,
    /// That it is from a copy. `None`: from the repository that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    pub warnings: Vec<String>,
    /// What is done, where that is not plain: sentences.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
    /// Of the warnings, those that say which content this is: the result repeats them.
    #[serde(skip)]
    pub(crate) told: Vec<String>,
    /// Holds only the sources to restore.
    #[serde(skip)]
    pub(crate) manifest: Manifest,
    #[serde(skip)]
    pub(crate) to: PathBuf,
    /// Names what is moved aside.
    #[serde(skip)]
    pub(crate) id: String,
    /// Going on was asked for by name.
    #[serde(skip)]
    pub(crate) resume: bool,
}

impl RestorePlan {
    /// On disk, the log to be replayed included.
    pub(in crate::ops) fn bytes_needed(&self) -> u64 {
        self.bytes + self.recoveries().map(|recovery| recovery.bytes).sum::<u64>()
    }

    /// What is replayed, of any source.
    pub(in crate::ops) fn recoveries(&self) -> impl Iterator<Item = &LogRecovery> {
        self.recovery.iter().chain(self.moments.iter().filter_map(|one| one.recovery.as_ref()))
    }

    /// Makes it a delta restore: the folder at the target becomes the snapshot, only what differs is fetched, and nothing of it is kept. Where
    /// nothing stands there, or an interrupted restore is continued, there is nothing to change.
    ///
    /// # Errors
    /// `Usage` when the target is not a folder of one source.
    pub fn reuse_target(&mut self) -> Result<()> {
        let is_folder = matches!(self.sources.as_slice(), [one] if matches!(one.kind.as_str(), "files" | "postgres"));
        if !is_folder || !self.only.is_empty() {
            return Err(Error::new(Kind::Usage, "a delta restore changes the folder of one files or postgres source")
                .hint("without --delta what is there is moved aside; name one source with --source"));
        }
        self.delta = !self.overwrites.is_empty() && !self.resumes;
        Ok(())
    }

    /// Leads tablespaces to other folders instead of keeping them in the restored one.
    ///
    /// # Errors
    /// `Usage` where that is not possible: not one whole `postgres` source, a tablespace that it does not have, a folder that cannot be one.
    pub fn map_tablespaces(&mut self, mappings: Vec<TablespaceMapping>) -> Result<()> {
        let one = match self.manifest.sources.as_slice() {
            [one] if one.kind == "postgres" && self.only.is_empty() => one,
            _ => {
                return Err(Error::new(Kind::Usage, "map tablespaces: this does not restore one whole PostgreSQL server")
                    .hint("name one source of kind postgres with --source, without --only"));
            }
        };
        let places = one.finish.pointer("/consistency/tablespaces").and_then(serde_json::Value::as_array);
        let known: Vec<String> =
            places.into_iter().flatten().filter_map(|place| place.get("location")?.as_str().map(str::to_owned)).collect();
        let target = std::path::absolute(&self.to).io_context(|| format!("make {} an absolute path", self.to.display()))?;
        tablespaces::check(&mappings, &known, &target)?;
        self.steps.extend(mappings.iter().map(|mapping| format!("puts the tablespace of {} into {}", mapping.from, mapping.to.display())));
        self.hand_over.tablespaces = mappings;
        Ok(())
    }

    /// Makes it a restore that leaves a standby.
    ///
    /// # Errors
    /// `Usage` where it could not follow anything: not one `postgres` source, or neither a log nor a primary.
    pub fn stand_by(&mut self, job: &Job, standby: Standby) -> Result<()> {
        let [one] = self.manifest.sources.as_slice() else {
            return Err(Error::new(Kind::Usage, "leave a standby: this would restore several sources").hint("name one with --source"));
        };
        if one.kind != "postgres" || !self.only.is_empty() {
            return Err(Error::new(Kind::Usage, format!("leave a standby: source {} is not a whole PostgreSQL server", one.name))
                .hint("only a source of kind postgres can be restored to a standby, without --only"));
        }
        if standby.primary.is_none() && job.repository.log(&self.manifest.plan, &one.name).pieces()?.is_empty() {
            return Err(Error::new(
                Kind::Usage,
                format!("leave a standby: there is nothing that it could follow: the repository has no log of source {}", one.name),
            )
            .hint("name the server to follow with --primary, or keep its log: `log = \"stream\"` in the plan and `lifeboat serve`"));
        }
        self.steps.push(format!(
            "leaves a standby, which follows {}the log in the repository with: {}",
            if standby.primary.is_some() { "the primary, and where that cannot give it " } else { "" },
            standby.restore_command
        ));
        self.hand_over.standby = Some(standby);
        Ok(())
    }

    /// Says that it is from a copy.
    pub fn fell_back(&mut self, fallback: Fallback) {
        self.tell(fallback.sentence());
        self.fallback = Some(fallback);
    }

    /// Says that newer snapshots than this one were committed and are not in the repository any more, so that this is not what was asked for.
    pub fn lacks_newer(&mut self, gone: &[SnapshotId]) {
        let Some(last) = gone.last() else { return };
        let more = if gone.len() == 1 { String::new() } else { format!(" (and {} more)", gone.len() - 1) };
        self.tell(format!(
            "snapshot {last}{more}, which a backup of this machine committed, is newer than this one and not in the repository any more: it was put back to an \
             older state, or somebody deleted what came later"
        ));
        self.newer_unread.extend(gone);
        self.newer_unread.sort_unstable();
        self.newer_unread.dedup();
    }

    /// Adds a warning about which content this is, which the result is to repeat.
    pub fn tell(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning.clone());
            self.told.push(warning);
        }
    }
}

/// `lifeboat.restore/1`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreReport {
    pub schema: String,
    pub plan: String,
    pub snapshot: SnapshotId,
    pub target: String,
    /// The moment that the content is of.
    pub at: DateTime<Utc>,
    /// What a server replays on top of the snapshot when it is started. `None`: the snapshot's own moment.
    #[serde(default)]
    pub recovery: Option<LogRecovery>,
    /// The moments of several sources that went to one moment through their logs. Else empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moments: Vec<SourceMoment>,
    /// Plain bytes now at the target, those that an interrupted restore had left included.
    pub bytes_restored: u64,
    /// Of those, bytes that were there already.
    pub bytes_resumed: u64,
    /// Sealed bytes read from the store.
    pub bytes_fetched: u64,
    pub entries_restored: u64,
    pub duration_ms: u64,
    pub phases: Vec<Phase>,
    /// What stood at the target and where it is now.
    pub moved_aside: Vec<Existing>,
    /// What the backup could not read and is therefore not here.
    pub missing: Vec<Missing>,
    /// Sources of the snapshot that were not asked for and are not here.
    #[serde(default)]
    pub sources_left_out: Vec<String>,
    /// How many owners and attributes could not be set although they are part of what was backed up: every attribute that somebody may have
    /// put there, and, for root, every owner. The warnings say which. An owner that only root may set is a warning and not counted.
    pub lost: u64,
    /// Snapshots newer than this one that were asked for rather than it and cannot be read, or are gone. The restore is whole, but not what was meant.
    #[serde(default)]
    pub newer_unread: Vec<SnapshotId>,
    /// That it is from a copy. `None`: from the repository that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// The end of the log was asked for, and there is more behind a hole in it, which could not be replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_hole: Option<String>,
    /// Something is missing or lost, there is a hole in the log, or what is there must not be started as it is (the first of the notes says why).
    pub incomplete: bool,
    pub warnings: Vec<String>,
    /// What to mind with what is there now.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Tables that were taken out of a server's backup, with their rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<ExtractedTable>,
}

impl RestoreReport {
    /// How the process should end: `None` is exit 0.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        (self.incomplete || !self.newer_unread.is_empty() || is_older(self.fallback.as_ref())).then_some(Kind::Incomplete)
    }
}

impl RestorePlan {
    /// How the restore will end, as far as is known before it: `None` is exit 0.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        let newer = !self.newer_unread.is_empty() || is_older(self.fallback.as_ref());
        (!self.missing.is_empty() || self.log_hole.is_some() || newer).then_some(Kind::Incomplete)
    }
}

fn is_older(fallback: Option<&Fallback>) -> bool {
    fallback.is_some_and(|fallback| fallback.older.is_some())
}

/// Says what a restore would do, without touching anything.
///
/// # Errors
/// `NoRecoveryPoint`, `Usage` (a target that cannot be one, an interrupted restore of another snapshot in the way), `WrongKey`.
pub fn plan(job: &Job, request: &RestoreRequest) -> Result<RestorePlan> {
    prepare::plan(job, request)
}

/// Does it. `confirmed` is what the operator typed (or `--yes` supplied) for [`RestorePlan::confirmation`].
///
/// # Errors
/// `Usage` when something stands at the target and was not confirmed; `NoSpace` before anything is written when there is no room;
/// `Damaged`, `Unavailable`, `Interrupted` leave the private partial folder, which a next call continues. The target appears whole or
/// not at all. `NoRecoveryPoint` when the snapshot was removed by retention meanwhile, or the key of its content was destroyed.
pub fn apply(job: &Job, plan: &RestorePlan, confirmed: Option<&str>) -> Result<RestoreReport> {
    apply_whole(job, plan, confirmed).map_err(|error| unless_removed(&job.repository, plan.manifest.id, error))
}

fn apply_whole(job: &Job, plan: &RestorePlan, confirmed: Option<&str>) -> Result<RestoreReport> {
    job.repository.require_reader("restore")?;
    let told = |_: &Error| {
        if let Some(message) = condemn(job) {
            job.progress.event(Event::Warning { message });
        }
    };
    if server::is_wanted(&plan.manifest, &plan.to) {
        return server::apply(job, plan).inspect_err(told);
    }
    if part::is_wanted(&plan.manifest, &plan.only) {
        return part::apply(job, plan).inspect_err(told);
    }
    let done = bring_back(job, plan, confirmed, Taker::Person).inspect_err(told)?;
    job.progress.event(Event::Phase { name: "clean up", detail: plan.target.clone() });
    Ok(done.conclude())
}

#[cfg(test)]
mod tests;
