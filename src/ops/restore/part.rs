//! Parts of a server's backup: a database or tables of one, into another server or a file.
//!
//! The whole snapshot comes back to a private folder of the state folder, as in a drill, because the parts can only be told apart by a server that
//! runs on it. Everything private is gone afterwards, also after a kill: the next run sweeps it, the server too.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
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
use crate::source::postgres::extract::{Selection, Target};
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
        estimate: estimate(needed, &measurements(reports, manifest.plan.as_str())),
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
        put(&request.dump, &plan.to, &plan_id(plan))?;
        report.notes.push(format!(
            "load it into a database that exists: pg_restore --single-transaction --exit-on-error --dbname=postgresql://USER@HOST/DATABASE {}",
            plan.target
        ));
    }
    fill(&mut report, plan, record, extracted);
    (report.phases, report.duration_ms) = watch.stop();
    Ok(report)
}

fn plan_id(plan: &RestorePlan) -> String {
    format!("{}-{}", plan.snapshot, std::process::id())
}

fn fill(report: &mut RestoreReport, plan: &RestorePlan, record: &SourceRecord, extracted: Extracted) {
    report.target.clone_from(&plan.target);
    report.sources_left_out.clone_from(&plan.sources_left_out);
    report.newer_unread.clone_from(&plan.newer_unread);
    report.log_hole.clone_from(&plan.log_hole);
    report.fallback.clone_from(&plan.fallback);
    // Owners and attributes of files that are gone again.
    report.lost = 0;
    report.incomplete = !report.missing.is_empty() || plan.log_hole.is_some();
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
fn put(dump: &Path, to: &Path, id: &str) -> Result<()> {
    let place = new_file(to)?;
    let target = place.target();
    let failed = || format!("put the dump at {}", target.display());
    let beside: PathBuf = place.parent().join(format!(".lifeboat-dump-{id}"));
    let copy = || -> io::Result<()> {
        // The state folder may be on another file system.
        let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        io::copy(&mut File::open(dump)?, &mut to)?;
        to.sync_all()?;
        rustix::fs::renameat_with(rustix::fs::CWD, &beside, rustix::fs::CWD, target, rustix::fs::RenameFlags::NOREPLACE)?;
        Ok(())
    };
    if let Err(error) = copy() {
        let error = Error::io(failed(), error);
        return Err(match fs::remove_file(&beside) {
            Err(left) if left.kind() != io::ErrorKind::NotFound => error.hint(format!("remove {}: {left}", beside.display())),
            _ => error,
        });
    }
    sync_folder(place.parent())
}
