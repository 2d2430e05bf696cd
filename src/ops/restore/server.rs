//! A logical backup into a server: the tree comes to a private folder of the state folder, and is loaded from there.
//!
//! What the server makes of it appears under its name when it is complete. Everything private is gone afterwards, also after a kill.

use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::ops::document::Stopwatch;
use crate::ops::log::replay::LogRecovery;
use crate::ops::restore::apply::{Taker, bring_back};
use crate::ops::restore::estimate::{estimate, measurements};
use crate::ops::restore::part;
use crate::ops::restore::place::free_bytes;
use crate::ops::restore::prepare::plan_of;
use crate::ops::restore::{Part, PlannedSource, RestorePlan, RestoreReport};
use crate::ops::select::{Choice, Wanted};
use crate::ops::work::{RunFolder, make_private};
use crate::ops::{Job, backup, context_of, counted, resolve};
use crate::repo::{Manifest, ReportRecord};
use crate::source::HandOver;
use crate::source::postgres::logical::{KIND, Target};

/// Whether this is a restore of one logical backup into a server.
pub(super) fn is_wanted(manifest: &Manifest, to: &Path) -> bool {
    part::url(to).is_some() && matches!(manifest.sources.as_slice(), [one] if one.kind == KIND)
}

/// What would be done. The server is asked whether it can take it; nothing is touched.
pub(super) fn plan(
    job: &Job,
    manifest: Manifest,
    to: &Path,
    left_out: Vec<String>,
    choice: Option<&Choice>,
    reports: &[ReportRecord],
) -> Result<RestorePlan> {
    let record = &manifest.sources[0];
    resolve::restoring_source(job, record)?.ready()?;
    let finish = backup::finish_of(record)?;
    let unknown = || Error::new(Kind::Damaged, format!("what source {} said when it was backed up is not understood", record.name));
    let databases = finish.consistency["databases"].as_object().ok_or_else(unknown)?;
    let databases: Vec<String> = databases.keys().cloned().collect();
    let version = finish.consistency["server_version"].as_u64().and_then(|version| u32::try_from(version).ok()).ok_or_else(unknown)?;
    let target = Target::parse(part::url(to).unwrap_or_default())?;
    let preview = target.check(&databases, version, &job.cancel)?;
    let mut warnings = preview.warnings;
    let missing = backup::missing(&manifest.sources);
    let bytes = record.bytes;
    let free = free_bytes(part::existing(&job.work))?;
    if free < bytes {
        warnings.push(format!("there is no room: {bytes} bytes are needed at {}, {free} are free", job.work.display()));
    }
    let mut steps = vec![format!("brings the snapshot to a private folder in {}", job.work.display())];
    steps.extend(preview.steps);
    steps.push("counts the rows of every table, builds indexes and constraints, and removes the private folder".into());
    let shown = to.display().to_string();
    Ok(RestorePlan {
        schema: "lifeboat.restore-plan/1".into(),
        plan: manifest.plan.to_string(),
        snapshot: manifest.id,
        at: manifest.time,
        asked: match choice {
            Some(Choice::At(moment) | Choice::Along { wanted: Wanted::Time(moment), .. }) => Some(*moment),
            _ => None,
        },
        sources: vec![PlannedSource {
            name: record.name.to_string(),
            kind: record.kind.clone(),
            bytes,
            entries: record.entries,
            target: shown.clone(),
        }],
        target: shown,
        sources_left_out: left_out,
        bytes,
        entries: record.entries,
        only: Vec::new(),
        estimate: estimate(bytes, &measurements(reports, manifest.plan.as_str(), &manifest.sources), Some("loading and indexing")),
        overwrites: Vec::new(),
        delta: false,
        log_hole: None,
        fallback: None,
        confirmation: None,
        recovery: None::<LogRecovery>,
        moments: Vec::new(),
        hand_over: HandOver::default(),
        resumes: false,
        failed_before: None,
        bytes_free: free,
        missing,
        newer_unread: Vec::new(),
        warnings,
        steps,
        told: Vec::new(),
        to: to.to_owned(),
        id: String::new(),
        resume: false,
        manifest,
    })
}

/// Does it.
pub(super) fn apply(job: &Job, plan: &RestorePlan) -> Result<RestoreReport> {
    let folder = RunFolder::create(&job.work, job.clock.now())?;
    let done = bring(job, plan, &folder);
    let removed = folder.remove();
    let mut report = done.map_err(|error| {
        if error.hint_text().is_some() { error } else { error.hint("nothing has appeared on the server; run the command again") }
    })?;
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
    let inner = plan_of(job, plan.manifest.clone(), &whole, &Part::default(), None, None, &[])?;
    let mut report = bring_back(job, &inner, None, Taker::Drill)?.conclude();

    watch.split(&report.phases, "load");
    let scratch = folder.path().join("load");
    make_private(&scratch)?;
    let source = resolve::restoring_source(job, record)?;
    let loaded = source
        .load(&whole, part::url(&plan.to).unwrap_or_default(), &context_of(job, scratch, &plan.manifest)?)
        .map_err(|error| error.within(format!("restore source {} to {}", record.name, plan.target)))?;

    report.target.clone_from(&plan.target);
    report.sources_left_out.clone_from(&plan.sources_left_out);
    report.newer_unread.clone_from(&plan.newer_unread);
    report.fallback.clone_from(&plan.fallback);
    // Owners of files that are gone again.
    report.lost = 0;
    report.incomplete = !report.missing.is_empty() || !loaded.lacking.is_empty();
    let told = plan.told.iter().filter(|warning| !report.warnings.contains(warning)).cloned().collect::<Vec<_>>();
    report.warnings.splice(0..0, told);
    report.warnings.extend(loaded.warnings);
    report.warnings.extend(loaded.lacking);
    let rows: u64 = loaded.tables.iter().map(|table| table.rows).sum();
    let (databases, tables) = (loaded.databases.join(", "), counted(loaded.tables.len(), "table"));
    report.notes.insert(0, format!("{}: {databases} with {tables} and {rows} rows, as backed up", record.name));
    report.tables = loaded.tables;
    (report.phases, report.duration_ms) = watch.stop();
    Ok(report)
}
