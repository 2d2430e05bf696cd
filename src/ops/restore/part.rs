//! Parts of a server's backup: a database or tables of one, into another server or a file.
//!
//! The whole snapshot comes back to a private folder of the state folder, as in a drill, because the parts can only be told apart by a server that
//! runs on it. Everything private is gone afterwards, also after a kill: the next run sweeps it, the server too.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::{Error, IoContext, Kind, Result};
use crate::event::Event;
use crate::ops::document::Stopwatch;
use crate::ops::drill::open_the_way;
use crate::ops::log::replay::LogRecovery;
use crate::ops::restore::apply::{Taker, bring_back};
use crate::ops::restore::estimate::{estimate, measurements};
use crate::ops::restore::place::{Place, Shape, free_bytes, sync_folder};
use crate::ops::restore::prepare::plan_of;
use crate::ops::restore::{Part, PlannedSource, RestorePlan, RestoreReport};
use crate::ops::select::{Choice, Wanted};
use crate::ops::work::{RunFolder, make_private};
use crate::ops::{Job, backup, context_of, resolve};
use crate::repo::{Manifest, ReportRecord, SourceRecord};
use crate::source::postgres::extract::{Selection, Target, value_options};
use crate::source::{ExtractRequest, Extracted, HandOver};

const SCHEMES: [&str; 2] = ["postgresql://", "postgres://"];

/// Whether this is a restore of parts of a server.
pub(super) fn is_wanted(manifest: &Manifest, only: &[String]) -> bool {
    !only.is_empty() && matches!(manifest.sources.as_slice(), [one] if one.kind == "postgres")
}

/// The URL of a server, if it is one.
pub(super) fn url(to: &Path) -> Option<&str> {
    to.to_str().filter(|text| SCHEMES.iter().any(|scheme| text.starts_with(scheme)))
}

/// Whole sources go to files and folders only.
pub(super) fn refuse_url(to: &Path) -> Result<()> {
    if url(to).is_none() {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, "restore to a database URL: what is restored is whole sources, which become files or a folder")
        .hint("name a new folder; take one database or table out of a postgres source with --only DATABASE[/[SCHEMA.]TABLE]; or name one source of method \"logical\" with --source"))
}

/// What would be done. Everything is looked at that can be without the snapshot's content.
#[expect(clippy::too_many_arguments, reason = "those of the plan of a whole restore, and what that has found out")]
pub(super) fn plan(
    job: &Job,
    manifest: Manifest,
    to: &Path,
    part: &Part,
    left_out: Vec<String>,
    choice: Option<&Choice>,
    recovery: Option<LogRecovery>,
    reports: &[ReportRecord],
) -> Result<RestorePlan> {
    let record = &manifest.sources[0];
    let only = part.only.as_slice();
    let source = resolve::restoring_source(job, record)?;
    source.ready()?;
    let selection = Selection::parse(only)?;
    let finish = backup::finish_of(record)?;
    let version = finish.consistency["server_version"].as_u64().and_then(|version| u32::try_from(version).ok());
    let (target, step) = if let Some(url) = url(to) {
        Target::parse(url)?.check(&selection, version, &job.cancel)?;
        (url.to_owned(), "loads that into the target in one transaction, and counts the rows on both sides".to_owned())
    } else {
        let place = new_file(to)?;
        let shown = place.target().display().to_string();
        (shown.clone(), format!("leaves the dump at {shown}"))
    };
    let missing = backup::missing(&manifest.sources);
    let mut warnings = selection.doubts(&finish.fingerprints);
    if !missing.is_empty() {
        let what = "this snapshot is incomplete: what could not be backed up may be missing in what is taken out";
        warnings.push(what.into());
    }
    let bytes = record.bytes;
    let free = free_bytes(existing(&job.work))?;
    let needed = bytes + recovery.as_ref().map_or(0, |recovery| recovery.bytes);
    if free < needed {
        warnings.push(format!("there is no room: {needed} bytes are needed at {}, {free} are free", job.work.display()));
    }
    Ok(RestorePlan {
        schema: "lifeboat.restore-plan/1".into(),
        plan: manifest.plan.to_string(),
        snapshot: manifest.id,
        at: recovery.as_ref().map_or(manifest.time, |recovery| recovery.at),
        asked: match choice {
            Some(Choice::At(moment) | Choice::Along { wanted: Wanted::Time(moment), .. }) => Some(*moment),
            _ => None,
        },
        sources: vec![PlannedSource {
            name: record.name.to_string(),
            kind: record.kind.clone(),
            bytes,
            entries: record.entries,
            target: target.clone(),
        }],
        target,
        sources_left_out: left_out,
        bytes,
        entries: record.entries,
        only: only.to_vec(),
        estimate: estimate(
            needed,
            &measurements(reports, manifest.plan.as_str(), &manifest.sources),
            Some("the replay of the log in a private server, but nothing that comes after"),
        ),
        overwrites: Vec::new(),
        delta: false,
        hand_over: HandOver::default(),
        log_hole: None,
        fallback: None,
        confirmation: None,
        recovery,
        moments: Vec::new(),
        resumes: false,
        failed_before: None,
        bytes_free: free,
        missing,
        newer_unread: Vec::new(),
        warnings,
        steps: vec![
            format!("brings the whole snapshot to a private folder in {}, recovers it in a private server there", job.work.display()),
            format!("takes {} out with pg_dump", only.join(", ")),
            step,
            "removes the private server and folder".into(),
        ],
        told: Vec::new(),
        to: to.to_owned(),
        id: String::new(),
        resume: false,
        manifest,
    })
}

/// The nearest folder that is there.
pub(super) fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"))
}

/// A place for the dump, at which nothing is.
fn new_file(to: &Path) -> Result<Place> {
    let place = Place::new(to, Shape::File { sqlite: false })?;
    let standing = place.standing("")?;
    match standing.first() {
        None => Ok(place),
        Some(one) => Err(Error::new(Kind::Usage, format!("restore to {}: something is there: {}", one.path, one.what))
            .hint("name a new file: a dump replaces nothing")),
    }
}

/// Does it.
pub(super) fn apply(job: &Job, plan: &RestorePlan) -> Result<RestoreReport> {
    let now = job.clock.now();
    let folder = RunFolder::create(&job.work, now)?;
    let done = bring(job, plan, &folder);
    let removed = folder.remove();
    let done = done.map_err(|error| {
        if error.hint_text().is_some() {
            return error;
        }
        match error.kind() {
            Kind::Interrupted => error.hint(
                "what was fetched was removed; a load is one transaction: look whether the tables are there, and run the command again",
            ),
            _ => error.hint("what was fetched was removed; run the command again"),
        }
    });
    let mut report = done?;
    if let Err(error) = removed {
        report.warnings.push(format!("the restore is complete, but its private folder could not be removed: {error}"));
    }
    Ok(report)
}

fn bring(job: &Job, plan: &RestorePlan, folder: &RunFolder) -> Result<RestoreReport> {
    let mut watch = Stopwatch::start();
    let record = &plan.manifest.sources[0];
    let whole = folder.path().join("restored");
    watch.phase("fetch");
    let inner = plan_of(job, plan.manifest.clone(), &whole, &Part::default(), None, plan.recovery.clone(), &[])?;
    let done = bring_back(job, &inner, None, Taker::Drill)?;
    let mut report = done.conclude();

    watch.split(&report.phases, "extract");
    let scratch = folder.path().join("extract");
    make_private(&scratch)?;
    open_the_way(job, folder, &scratch)?;
    let request = ExtractRequest { only: plan.only.clone(), dump: scratch.join("dump"), load_into: url(&plan.to).map(str::to_owned) };
    let source = resolve::restoring_source(job, record)?;
    let extracted = source
        .extract(&whole, &request, &context_of(job, scratch, &plan.manifest)?)
        .map_err(|error| error.within(format!("restore a part of source {} to {}", record.name, plan.target)))?;

    watch.phase("place");
    if request.load_into.is_none() {
        job.progress.event(Event::Phase { name: "place", detail: plan.target.clone() });
        job.cancel.check()?;
        put(&request.dump, &plan.to)?;
        report.notes.push(format!(
            "load it into a database that exists, with these settings, by which its values were written: PGOPTIONS='{}' pg_restore --single-transaction --exit-on-error \
             --dbname=postgresql://USER@HOST/DATABASE {}",
            value_options(),
            plan.target
        ));
    }
    fill(&mut report, plan, record, extracted);
    (report.phases, report.duration_ms) = watch.stop();
    Ok(report)
}

fn fill(report: &mut RestoreReport, plan: &RestorePlan, record: &SourceRecord, extracted: Extracted) {
    report.target.clone_from(&plan.target);
    report.sources_left_out.clone_from(&plan.sources_left_out);
    report.newer_unread.clone_from(&plan.newer_unread);
    report.log_hole.clone_from(&plan.log_hole);
    report.fallback.clone_from(&plan.fallback);
    // Owners and attributes of files that are gone again.
    report.lost = 0;
    report.incomplete = !report.missing.is_empty() || plan.log_hole.is_some() || extracted.incomplete;
    let told = plan.told.iter().filter(|warning| !report.warnings.contains(warning)).cloned().collect::<Vec<_>>();
    report.warnings.splice(0..0, told);
    report.warnings.extend(extracted.warnings);
    let rows: u64 = extracted.tables.iter().map(|table| table.rows).sum();
    report.notes.insert(
        0,
        format!("{}: {} with {rows} rows, as in what was recovered", record.name, crate::ops::counted(extracted.tables.len(), "table")),
    );
    report.tables = extracted.tables;
}

/// Lets the dump appear at its place, whole, private, and on disk.
fn put(dump: &Path, to: &Path) -> Result<()> {
    let place = new_file(to)?;
    let failed = || format!("put the dump at {}", place.target().display());
    let copy = match Copy::without_name(place.parent()).io_context(failed)? {
        Some(copy) => copy,
        None => Copy::with_name(&place)?,
    };
    let written = copy.fill(dump).and_then(|()| copy.appear(place.target()));
    if let Err(error) = written {
        let error = Error::io(failed(), error);
        return Err(match copy.remove() {
            Err(left) => error.hint(left),
            Ok(()) => error,
        });
    }
    sync_folder(place.parent())
}

/// A copy of a dump beside its place, under way. The state folder, where the dump is, may be on another file system.
struct Copy {
    file: File,
    /// Where the file system has no files without a name. The file is locked meanwhile: an unlocked one is what a killed run left.
    name: Option<PathBuf>,
}

impl Copy {
    /// In a file without a name, which is gone with the process, however that ends. `None` where there are none.
    fn without_name(folder: &Path) -> io::Result<Option<Self>> {
        match rustix::fs::open(folder, OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(Some(Self { file: file.into(), name: None })),
            // Of the file system, of the kernel; and of NFS.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// In a file whose name is always the same for one place, after removing what a killed run left of it.
    ///
    /// # Errors
    /// `Busy` when another run writes there.
    fn with_name(place: &Place) -> Result<Self> {
        let hash = blake3::hash(place.target().as_os_str().as_encoded_bytes());
        let name = place.parent().join(format!(".lifeboat-dump-{}", hex::encode(&hash.as_bytes()[..8])));
        let failed = || format!("make {}", name.display());
        let busy = || {
            Error::new(Kind::Busy, format!("{}: another restore to {} is running", failed(), place.target().display()))
                .hint("wait until it has ended")
        };
        match File::open(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(failed(), error)),
            Ok(left) => match left.try_lock() {
                Ok(()) => fs::remove_file(&name).io_context(failed)?,
                Err(TryLockError::WouldBlock) => return Err(busy()),
                Err(TryLockError::Error(error)) => return Err(Error::io(failed(), error)),
            },
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&name).io_context(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file, name: Some(name) }),
            Err(TryLockError::WouldBlock) => Err(busy()),
            Err(TryLockError::Error(error)) => Err(Error::io(failed(), error)),
        }
    }

    fn fill(&self, dump: &Path) -> io::Result<()> {
        io::copy(&mut File::open(dump)?, &mut &self.file)?;
        self.file.sync_all()
    }

    /// Gives it its name, at which nothing may be.
    fn appear(&self, target: &Path) -> io::Result<()> {
        let done = match &self.name {
            Some(name) => rustix::fs::renameat_with(CWD, name, CWD, target, RenameFlags::NOREPLACE),
            None => rustix::fs::linkat(CWD, format!("/proc/self/fd/{}", self.file.as_raw_fd()), CWD, target, AtFlags::SYMLINK_FOLLOW),
        };
        Ok(done?)
    }

    /// After a failure. Says what is left and why.
    fn remove(&self) -> std::result::Result<(), String> {
        let Some(name) = &self.name else { return Ok(()) };
        match fs::remove_file(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!("remove {}: {error}", name.display())),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_killed_run_leaves_no_copy_of_a_dump_beside_its_place() {
        let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (dump, to) = (scratch.path().join("dump"), folder.path().join("crm.dump"));
        fs::write(&dump, "rows").unwrap();
        let names = || -> Vec<String> {
            let mut names: Vec<_> =
                fs::read_dir(folder.path()).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        // As if killed between the copy and its name.
        let nameless = Copy::without_name(folder.path()).unwrap().expect("this test wants a file system with O_TMPFILE");
        nameless.fill(&dump).unwrap();
        drop(nameless);
        assert_eq!(names(), [""; 0]);
        put(&dump, &to).unwrap();
        assert_eq!(names(), ["crm.dump"]);
        let made = fs::metadata(&to).unwrap();
        assert_eq!((fs::read_to_string(&to).unwrap().as_str(), made.mode() & 0o777), ("rows", 0o600));
        // Nothing is replaced, also when it appears only at the end.
        let late = Copy::without_name(folder.path()).unwrap().unwrap();
        assert_eq!(late.appear(&to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        fs::remove_file(&to).unwrap();

        // Where there are no files without a name.
        let place = new_file(&to).unwrap();
        let killed = Copy::with_name(&place).unwrap();
        killed.fill(&dump).unwrap();
        assert_eq!(Copy::with_name(&place).map(drop).unwrap_err().kind(), Kind::Busy, "it lives");
        drop(killed);
        assert_eq!(names().len(), 1);
        let second = Copy::with_name(&place).unwrap();
        second.fill(&dump).unwrap();
        assert_eq!(names().len(), 1, "the next run to that place removes it");
        second.appear(&to).unwrap();
        assert_eq!((names(), fs::read_to_string(&to).unwrap().as_str()), (vec!["crm.dump".to_owned()], "rows"));
        let late = Copy::with_name(&place).unwrap();
        assert_eq!(late.appear(&to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        late.remove().unwrap();
        assert_eq!(names(), ["crm.dump"]);
    }
}
