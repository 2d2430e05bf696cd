//! A new embedded journal in place of one that is damaged or gone, from what the repositories prove: a manifest is a backup that committed, a report a
//! drill or a verification that ended. What left nothing in a repository (failures, restores, the reasons of retries) is not known any more.
//!
//! The new file is made whole beside the old one; only then is the old one set aside, never removed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::daemon::job::{self, Job, Trigger};
use crate::daemon::journal::{self, Ending, Journal};
use crate::daemon::owner::{self, DaemonLock};
use crate::daemon::runner::{self, Outcome};
use crate::error::{Error, IoContext, Kind, Result};
use crate::id::{Name, RunId};
use crate::ops::drill::DrillReport;
use crate::ops::resolve::{self, Surroundings};
use crate::ops::verify::VerifyReport;
use crate::plan::Plans;
use crate::repo::{Manifest, RemovedSnapshot, ReportKind, ReportRecord};

/// `lifeboat.rebuild/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebuildReport {
    pub schema: String,
    /// The new journal.
    pub journal: PathBuf,
    /// Where the old one is now; `None`: there was none.
    pub aside: Option<PathBuf>,
    /// Runs in the new one, by job.
    pub runs: BTreeMap<String, u64>,
    /// Snapshots of these plans that retention has removed: their backups are not in the new journal, and nothing is lost.
    pub removed: u64,
    /// What could not be read and is missing in the new one; sentences.
    pub damaged: Vec<String>,
}

impl RebuildReport {
    /// How the process should end: `None` is exit 0.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        (!self.damaged.is_empty()).then_some(Kind::Incomplete)
    }
}

/// A run that the repository proves.
#[derive(Debug)]
struct Proven {
    plan: Name,
    job: Job,
    host: String,
    started: DateTime<Utc>,
    ended: DateTime<Utc>,
    ending: Ending,
}

/// Makes the journal anew.
///
/// # Errors
/// `Busy` while a daemon or a run is at work on this state folder; `Usage` when the journal is a shared one; what a repository says that cannot
/// be asked: nothing was changed then.
pub fn run(plans: &Plans, surroundings: &Surroundings) -> Result<RebuildReport> {
    if plans.journal.url.is_some() {
        return Err(Error::new(Kind::Usage, "rebuild the journal: it is in PostgreSQL ([journal] url), not in the state folder")
            .hint("restore that database from its own backup; an empty one works too: the nodes make the tables anew and snapshots are not touched"));
    }
    let (state, now) = (&surroundings.state, surroundings.clock.now());
    let _lock = DaemonLock::take(state)?;
    if let Some(alive) = owner::any_alive(state)? {
        return Err(Error::new(Kind::Busy, format!("rebuild the journal: a run is at work on it (lock file {})", alive.display()))
            .hint("wait until it has ended, then run the same command again"));
    }
    let Gathered { proven, removed, damaged } = gather(plans, surroundings)?;

    let fresh = state.join(format!("rebuild-{}", RunId::generate(now)));
    let filled = fill(plans, &proven, &fresh, now);
    let placed = filled.and_then(|()| put_in_place(state, &fresh, now));
    // Half a new journal is of no use to anybody.
    let _ = std::fs::remove_dir_all(&fresh);
    let aside = placed?;
    let mut runs = BTreeMap::new();
    for run in &proven {
        *runs.entry(run.job.word().to_owned()).or_default() += 1;
    }
    Ok(RebuildReport { schema: "lifeboat.rebuild/1".to_owned(), journal: state.join(journal::FILE), aside, runs, removed, damaged })
}

/// What all repositories of the plans prove.
#[derive(Default)]
struct Gathered {
    proven: Vec<Proven>,
    /// Snapshots that retention has removed.
    removed: u64,
    /// What cannot be read.
    damaged: Vec<String>,
}

fn gather(plans: &Plans, surroundings: &Surroundings) -> Result<Gathered> {
    let Gathered { mut proven, mut removed, mut damaged } = Gathered::default();
    for settings in plans.repositories.values() {
        let used: Vec<&Name> = plans.plans.values().filter(|plan| plan.repository.name == settings.name).map(|plan| &plan.name).collect();
        if used.is_empty() {
            continue;
        }
        let asked = |error: Error| error.within(format!("ask repository {} what it proves", settings.name));
        let repository = resolve::repository(settings).and_then(|open| open.open(surroundings)).map_err(asked)?;
        let (manifests, lost) = repository.sound_manifests(None).map_err(asked)?;
        damaged.extend(lost.iter().map(|lost| format!("{}: {:?}", settings.name, lost.error)));
        proven.extend(manifests.iter().filter(|manifest| used.contains(&&manifest.plan)).map(of_manifest));
        match repository.ledger() {
            Ok(ledger) => {
                let count = |snapshot: RemovedSnapshot| removed += u64::from(used.contains(&&snapshot.plan));
                if let Err(error) = repository.removals(&ledger, count) {
                    match error.kind() {
                        Kind::Damaged | Kind::NotFound => damaged.push(format!("{}: {error:?}", settings.name)),
                        _ => return Err(asked(error)),
                    }
                }
            }
            // Told with the manifests.
            Err(error) if error.kind() == Kind::Damaged => {}
            Err(error) => return Err(asked(error)),
        }
        let (reports, lost) = repository.sound_reports(None).map_err(asked)?;
        damaged.extend(lost.iter().map(|error| format!("{}: {error:?}", settings.name)));
        for report in &reports {
            match of_report(report) {
                Some(Ok(run)) if used.contains(&&run.plan) => proven.push(run),
                // Of a plan that is not here, or of the repository as a whole.
                Some(Ok(_)) | None => {}
                Some(Err(error)) => damaged.push(format!("{}: report {}: {error}", settings.name, report.id)),
            }
        }
    }
    proven.sort_by_key(|run| run.started);
    Ok(Gathered { proven, removed, damaged })
}

fn of_manifest(manifest: &Manifest) -> Proven {
    let story = "made anew from the snapshot's manifest; who started it and how long it took is not known any more";
    Proven {
        plan: manifest.plan.clone(),
        job: Job::Backup,
        host: manifest.host.clone(),
        started: manifest.started,
        ended: manifest.time.max(manifest.started),
        ending: Ending { story: Some(story.to_owned()), ..runner::ending_of_manifest(manifest) },
    }
}

/// `None`: not about a plan.
fn of_report(record: &ReportRecord) -> Option<std::result::Result<Proven, serde_json::Error>> {
    let plan = record.plan.as_ref().and_then(|plan| Name::new(plan.clone()).ok())?;
    let of = |job, host: String, took_ms: u64, ending: Ending| Proven {
        plan,
        job,
        host,
        started: record.time,
        ended: record.time + TimeDelta::milliseconds(i64::try_from(took_ms).unwrap_or(0)),
        ending: Ending { story: Some("made anew from its report".to_owned()), ..ending },
    };
    let document = record.document.clone();
    Some(match record.kind {
        ReportKind::Drill => serde_json::from_value::<DrillReport>(document)
            .map(|report| of(Job::Drill, report.host.clone(), report.duration_ms, report.ending())),
        ReportKind::Verify => serde_json::from_value::<VerifyReport>(document)
            .map(|report| of(Job::Verify, String::new(), report.duration_ms, report.ending())),
    })
}

/// Writes the new journal into a folder of its own.
fn fill(plans: &Plans, proven: &[Proven], folder: &Path, now: DateTime<Utc>) -> Result<()> {
    let journal = Journal::open(folder, now)?;
    for run in proven {
        journal.add_proven(&run.plan, run.job, Trigger::Rebuilt, (run.started, run.ended), &run.host, &run.ending)?;
    }
    // Schedules are followed since their last run that is known, so that what was due since then is caught up.
    for plan in plans.plans.values() {
        for (job, schedule) in job::schedules(plan) {
            let last = proven.iter().filter(|run| run.plan == plan.name && run.job == job).map(|run| run.started).max();
            journal.schedule_since(&plan.name, job, &job::expression(schedule), last.unwrap_or(now).min(now))?;
        }
    }
    Ok(())
}

/// Sets the old journal aside and puts the new one in its place. A crash in between leaves no journal, and the same command goes on from there.
fn put_in_place(state: &Path, fresh: &Path, now: DateTime<Utc>) -> Result<Option<PathBuf>> {
    let old = state.join(journal::FILE);
    let stamp = now.to_rfc3339_opts(SecondsFormat::Secs, true).replace(':', "");
    let mut aside = None;
    // The write-ahead log belongs to the file: it goes first, so that it is never found beside another one.
    for suffix in ["-shm", "-wal", ""] {
        let from = state.join(format!("{}{suffix}", journal::FILE));
        let to = state.join(format!("{}.aside-{stamp}{suffix}", journal::FILE));
        match std::fs::rename(&from, &to) {
            Ok(()) if suffix.is_empty() => aside = Some(to),
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(format!("set {} aside", from.display()), error)),
        }
    }
    std::fs::rename(fresh.join(journal::FILE), &old).io_context(|| format!("put the new journal at {}", old.display()))?;
    let folder = std::fs::File::open(state).io_context(|| format!("open {}", state.display()))?;
    folder.sync_all().io_context(|| format!("flush {}", state.display()))?;
    Ok(aside)
}
