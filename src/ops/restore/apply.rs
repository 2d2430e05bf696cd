//! Doing what a restore plan says.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, IoContext, Kind, Result};
use crate::event::Event;
use crate::id::Name;
use crate::ops::document::Stopwatch;
use crate::ops::log::replay;
use crate::ops::restore::partial::{Partial, left_at};
use crate::ops::restore::place::{Place, free_bytes, sync_folder};
use crate::ops::restore::prepare::{identity, never_completed, restores_folder, shape};
use crate::ops::restore::{RestorePlan, RestoreReport};
use crate::ops::transfer::{Brought, Metadata, Transfer};
use crate::ops::work::{movable, remove_tree};
use crate::ops::{Job, context, explain, resolve};
use crate::repo::SourceRecord;
use crate::source::Source;
use crate::source::files::apply::Lost;

/// What became of one source.
#[derive(Clone)]
pub(in crate::ops) struct Restored {
    pub(in crate::ops) record: SourceRecord,
    pub(in crate::ops) source: Arc<dyn Source>,
    /// The usable thing, in its final place.
    pub(in crate::ops) usable: PathBuf,
    /// Where the content as it was stored is now: the same, or still in the partial folder when the source made something else of it.
    pub(in crate::ops) content: PathBuf,
    /// Metadata that could not be set.
    pub(in crate::ops) lost: Lost,
}

/// Who gets what is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Taker {
    /// It is made ready to be used (`Source::hand_over`).
    Person,
    /// It stays private and is proven as it was stored.
    Drill,
}

/// A restore that is done, but for removing its partial folder.
pub(in crate::ops) struct Done {
    pub(in crate::ops) report: RestoreReport,
    pub(in crate::ops) restored: Vec<Restored>,
    partial: Partial,
}

impl Done {
    /// Removes the partial folder. The target is whole already, so a failure is only told.
    pub(in crate::ops) fn conclude(mut self) -> RestoreReport {
        if let Err(error) = self.partial.remove() {
            self.report.warnings.push(format!("the restore is complete, but its private folder could not be removed: {error}"));
        }
        self.report
    }
}

/// The procedure, up to and including the moment that the target is whole.
pub(in crate::ops) fn bring_back(job: &Job, plan: &RestorePlan, confirmed: Option<&str>, taker: Taker) -> Result<Done> {
    let mut watch = Stopwatch::start();
    let sources = &plan.manifest.sources;
    let place = Place::new(&plan.to, shape(job, sources))?;
    let mut wanted = identity(job, &plan.manifest, &place, &plan.only, plan.recovery.as_ref());
    wanted.id.clone_from(&plan.id);
    wanted.log_hole.clone_from(&plan.log_hole);
    wanted.newer_unread.clone_from(&plan.newer_unread);
    wanted.moments.clone_from(&plan.moments);
    wanted.standby = plan.hand_over.standby.is_some();
    let left = left_at(&place.partial(), place.target())?.filter(|left| left.same_content(&wanted));
    if let Some(left) = left.as_ref().filter(|left| left.standby != wanted.standby) {
        let (begun, hint) = if left.standby { ("with", "give it again") } else { ("without", "leave it out") };
        return Err(Error::new(Kind::Usage, format!("restore to {}: the interrupted one was begun {begun} --standby", left.target))
            .hint(format!("to finish that one, {hint}; to begin anew, remove {}", place.partial().display())));
    }
    if left.is_some_and(|left| left.is_placed(place.target())) {
        return finish(job, plan, &place, Partial::own(&place, wanted, job.clock.now(), &|_| None)?, watch);
    }
    check_confirmed(&place, plan, confirmed)?;
    let mut partial = Partial::own(&place, wanted, job.clock.now(), &|left| never_completed(job, left))?;
    let reused = if plan.delta && !partial.resumed() { Some(place.target()) } else { None };
    if let Err(error) = check_space(&place, &partial, plan, reused) {
        // Nothing was written: nothing is worth keeping.
        return Err(if partial.resumed() { error } else { partial.remove().err().unwrap_or(error) });
    }

    if let Some(target) = reused {
        reuse(&mut partial, &sources[0].name, target)?;
    }
    watch.phase("fetch");
    job.progress.event(Event::Phase { name: "restore", detail: plan.target.clone() });
    job.progress.event(Event::Total { bytes: plan.bytes, items: plan.entries });
    let mut brought = Brought::default();
    let mut lost = Vec::new();
    for record in sources {
        let one = match fetch(job, record, &partial) {
            Ok(one) => one,
            Err(error) => return Err(stopped(error, None, record, plan, &place, &mut partial)),
        };
        lost.push(one.lost);
        brought.add(one);
    }

    watch.phase("adopt");
    job.progress.event(Event::Phase { name: "adopt", detail: plan.target.clone() });
    let mut restored = Vec::new();
    for (record, lost) in sources.iter().zip(lost) {
        let mut one = match adopt(job, record, &partial) {
            Ok(one) => Restored { lost, ..one },
            Err(error) => return Err(stopped(error, None, record, plan, &place, &mut partial)),
        };
        if let Some(recovery) = plan.recoveries().find(|recovery| recovery.source == record.name)
            && let Err(error) = replay::bring(job, &plan.manifest, recovery, &one.usable)
        {
            let instead = error.hint_text().map(str::to_owned);
            return Err(stopped(error, instead, record, plan, &place, &mut partial));
        }
        if !plan.only.is_empty() {
            match extract(&mut one, &plan.only, &partial) {
                Ok(warnings) => brought.warnings.extend(warnings),
                Err(error) if matches!(error.kind(), Kind::Usage | Kind::Failed) => return Err(inextricable(error, partial)),
                Err(error) => return Err(stopped(error, None, record, plan, &place, &mut partial)),
            }
        }
        restored.push(one);
    }

    let (mut dangers, mut next_steps) = (Vec::new(), Vec::new());
    if taker == Taker::Person {
        for one in &restored {
            let target = if restored.len() > 1 { place.target().join(one.record.name.as_str()) } else { place.target().to_owned() };
            let handed = match one.source.hand_over(&one.usable, &target, &plan.hand_over) {
                Ok(handed) => handed,
                Err(error) => return Err(stopped(error, None, &one.record, plan, &place, &mut partial)),
            };
            let named = |sentence: String| format!("{}: {sentence}", one.record.name);
            dangers.extend(handed.dangers.into_iter().map(named));
            next_steps.extend(handed.steps.into_iter().map(named));
        }
    }

    watch.phase("place");
    job.progress.event(Event::Phase { name: "place", detail: plan.target.clone() });
    job.cancel.check()?;
    let whole = assemble(&partial, &mut restored)?;
    flush(&whole)?;
    // With what an attempt before a crash has moved.
    let mut moved = partial.moved_aside();
    moved.extend(place.movable(partial.id(), &plan.overwrites)?);
    partial.place(&whole, moved.clone(), dangers.clone())?;
    place.put(&whole, partial.id(), &plan.overwrites)?;
    settle(&place, &mut restored);

    let mut report = account(plan, &brought, moved, watch);
    warn_of(&mut report, dangers);
    report.notes.extend(next_steps);
    Ok(Done { report, restored, partial })
}

/// Ends a restore that was interrupted after its content went into place. Whether that is still what the snapshot holds is looked at, not
/// believed: time has passed.
fn finish(job: &Job, plan: &RestorePlan, place: &Place, partial: Partial, mut watch: Stopwatch) -> Result<Done> {
    watch.phase("compare");
    job.progress.event(Event::Phase { name: "compare", detail: plan.target.clone() });
    let sources = &plan.manifest.sources;
    let transfer = Transfer { repository: &job.repository, progress: job.progress.as_ref(), cancel: &job.cancel };
    let again = format!(
        "to keep what is there, remove {}; to restore once more, remove that folder and run the same command without --resume",
        partial.folder().display()
    );
    // With a log beside it, a database is not what its file alone is.
    place.nothing_stale().map_err(|error| error.hint(again.clone()))?;
    let mut restored = Vec::new();
    let mut brought = Brought::default();
    for record in sources {
        let usable = if sources.len() > 1 { place.target().join(record.name.as_str()) } else { place.target().to_owned() };
        let source = resolve::restoring_source(job, record)?;
        if plan.only.is_empty() && !restores_folder(job, record) && source.keeps_content() {
            let compared = transfer.compare(record, &usable, 100, 0, Metadata::None)?;
            if compared.differences > 0 {
                let what = format!("restore to {}: an interrupted restore of this snapshot was complete there", place.target().display());
                let since = format!("{what}, and it has been changed since: {}", compared.described.join("; "));
                return Err(Error::new(Kind::Usage, since).hint(again));
            }
        } else if plan.resume {
            let what = "was complete at the target when the restore was interrupted, and cannot be compared with the snapshot again";
            brought.warnings.push(format!("source {}: {what}", record.name));
        } else {
            let what = format!("restore to {}: an interrupted restore of this snapshot was complete there", place.target().display());
            return Err(Error::new(Kind::Usage, what).hint(format!("end it with --resume; {again}")));
        }
        brought.add(Brought { entries: record.entries, bytes: record.bytes, bytes_existing: record.bytes, ..Brought::default() });
        restored.push(Restored { record: record.clone(), source, content: usable.clone(), usable, lost: Lost::default() });
    }
    brought.warnings.push(
        "the restore had been interrupted after its content was in place: whether owners and attributes could be set is not known any more"
            .into(),
    );
    let mut report = account(plan, &brought, partial.moved_aside(), watch);
    warn_of(&mut report, partial.dangers());
    Ok(Done { report, restored, partial })
}

/// Whoever only looks at the exit code must not start what is there.
fn warn_of(report: &mut RestoreReport, dangers: Vec<String>) {
    report.incomplete |= !dangers.is_empty();
    report.notes.splice(0..0, dangers);
}

fn check_confirmed(place: &Place, plan: &RestorePlan, confirmed: Option<&str>) -> Result<()> {
    let standing = place.standing(&plan.id)?;
    if standing.is_empty() || confirmed == Some(place.confirmation().as_str()) {
        return Ok(());
    }
    let what: Vec<String> = standing.iter().map(|s| format!("{} ({})", s.path, s.what)).collect();
    Err(Error::new(Kind::Usage, format!("restore to {}: something is there: {}", place.target().display(), what.join(", ")))
        .hint(format!("restore to another place, or confirm with {:?} to move it aside and restore into its place", place.confirmation())))
}

/// Told before anything is written. A continued restore needs only what is not there yet.
fn check_space(place: &Place, partial: &Partial, plan: &RestorePlan, reused: Option<&Path>) -> Result<()> {
    let sources = &plan.manifest.sources;
    let needed = plan.bytes_needed();
    let there = match reused {
        Some(target) => allocated(target),
        None if partial.resumed() => sources.iter().map(|s| allocated(&partial.tree(&s.name))).sum(),
        None => 0,
    };
    let free = free_bytes(place.parent())?;
    if needed.saturating_sub(there) <= free {
        return Ok(());
    }
    Err(Error::new(
        Kind::NoSpace,
        format!("restore to {}: {} bytes are needed there and {free} are free", place.target().display(), needed.saturating_sub(there)),
    )
    .hint("free space on that file system, or restore to another one"))
}

/// Takes the folder at the target as the beginning of the restored tree. From here on the target is not there until it is whole: nothing
/// half-restored can be started or read in its place, and a crash is continued with `--resume`.
fn reuse(partial: &mut Partial, source: &Name, target: &Path) -> Result<()> {
    let tree = partial.tree(source);
    let metadata = std::fs::symlink_metadata(target).io_context(|| format!("look at {}", target.display()))?;
    if !metadata.is_dir() {
        return Err(Error::new(Kind::Usage, format!("change {} into the snapshot: it is not a folder", target.display()))
            .hint("without --delta it is moved aside"));
    }
    movable(target, || std::fs::rename(target, &tree))
        .io_context(|| format!("take {} as the beginning of the restore", target.display()))?;
    sync_folder(target.parent().unwrap_or(target))?;
    partial.goes_on();
    Ok(())
}

/// Bytes on disk below a folder; what cannot be looked at counts nothing.
fn allocated(folder: &Path) -> u64 {
    let mut bytes = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for item in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(metadata) = item.metadata() else { continue };
            if metadata.is_dir() {
                folders.push(item.path());
            } else {
                bytes += metadata.blocks() * 512;
            }
        }
    }
    bytes
}

fn fetch(job: &Job, record: &SourceRecord, partial: &Partial) -> Result<Brought> {
    let folder = partial.tree(&record.name);
    if record.kind == "command" {
        // What an interrupted restore command left there is no content.
        remove_tree(&folder.join(crate::source::command::TARGET))?;
    }
    let transfer = Transfer { repository: &job.repository, progress: job.progress.as_ref(), cancel: &job.cancel };
    let resumed = partial.resumed() && crate::ops::work::exists(&folder)?;
    transfer.bring_back(record, &folder, resumed)
}

fn adopt(job: &Job, record: &SourceRecord, partial: &Partial) -> Result<Restored> {
    job.cancel.check()?;
    let folder = partial.tree(&record.name);
    let source = resolve::restoring_source(job, record)?;
    let scratch = partial.scratch(&record.name)?;
    let usable = source.adopt(&folder, &context(job, scratch))?;
    let content = if usable == folder || (usable.parent() == Some(&folder) && usable.is_file()) { usable.clone() } else { folder };
    Ok(Restored { record: record.clone(), source, usable, content, lost: Lost::default() })
}

/// Makes a database of these tables of a restored one, which is then the usable thing. Returns what to know about it.
fn extract(restored: &mut Restored, only: &[String], partial: &Partial) -> Result<Vec<String>> {
    let part = partial.scratch(&restored.record.name)?.join("tables.sqlite");
    // Private from its first moment; then what the whole database would have had.
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
    let file = file.io_context(|| format!("make {}", part.display()))?;
    let warnings = crate::source::sqlite::copy_tables(&restored.usable, &part, only)?;
    like(&file, &restored.usable).io_context(|| format!("give {} the owner and mode of the database", part.display()))?;
    // Not the content as it was stored.
    restored.content = partial.tree(&restored.record.name);
    restored.usable = part;
    Ok(warnings)
}

/// Tables that cannot be taken out (one is not there, one needs its application): the same command would end so again, so it leaves nothing
/// in the way of another; what an earlier attempt had brought is kept for that.
fn inextricable(error: Error, mut partial: Partial) -> Error {
    if !partial.resumed() {
        return partial.remove().err().unwrap_or(error);
    }
    match partial.fail(explain(&error)) {
        Ok(()) => {
            let hint = error.hint_text().unwrap_or("name other tables").to_owned();
            let kept = partial.folder().display().to_string();
            error.hint(format!("{hint}; what was fetched is kept in {kept}: another restore to the same target, without --resume, uses it"))
        }
        Err(unrecorded) => unrecorded,
    }
}

/// Gives a file the owner (where allowed) and the mode of another one.
fn like(file: &File, model: &Path) -> std::io::Result<()> {
    let model = std::fs::symlink_metadata(model)?;
    // Without the owner that it was meant for, nobody else gets in.
    let owned = std::os::unix::fs::fchown(file, Some(model.uid()), Some(model.gid())).is_ok();
    let mask = if owned { 0o777 } else { 0o700 };
    file.set_permissions(std::fs::Permissions::from_mode(model.mode() & mask))
}

/// The one thing that will be renamed into place. Several sources become one folder with one entry each.
fn assemble(partial: &Partial, restored: &mut [Restored]) -> Result<PathBuf> {
    if let [one] = restored {
        return Ok(one.usable.clone());
    }
    let usable: Vec<(Name, PathBuf)> = restored.iter().map(|r| (r.record.name.clone(), r.usable.clone())).collect();
    let whole = partial.assemble(&usable)?;
    for one in restored.iter_mut() {
        one.moved_to(whole.join(one.record.name.as_str()));
    }
    Ok(whole)
}

/// Everything below, whoever wrote it, is on disk before it may appear.
fn flush(whole: &Path) -> Result<()> {
    let file = File::open(whole).io_context(|| format!("open {}", whole.display()))?;
    rustix::fs::syncfs(&file).map_err(std::io::Error::from).io_context(|| format!("flush {} to disk", whole.display()))?;
    if let Some(parent) = whole.parent() {
        sync_folder(parent)?;
    }
    Ok(())
}

/// Follows the rename into place.
fn settle(place: &Place, restored: &mut [Restored]) {
    if let [one] = restored {
        one.moved_to(place.target().to_owned());
    } else {
        for one in restored.iter_mut() {
            let name = one.record.name.to_string();
            one.moved_to(place.target().join(name));
        }
    }
}

impl Restored {
    fn moved_to(&mut self, path: PathBuf) {
        if self.content == self.usable {
            self.content.clone_from(&path);
        }
        self.usable = path;
    }
}

fn account(plan: &RestorePlan, brought: &Brought, moved_aside: Vec<crate::ops::Existing>, watch: Stopwatch) -> RestoreReport {
    let mut warnings: Vec<String> = plan.told.iter().chain(&brought.warnings).cloned().collect();
    if !plan.missing.is_empty() {
        let first = &plan.missing[0];
        warnings.push(format!(
            "the backup itself could not read {} of the source (first: {} {}): not in what was restored, or not as they should be",
            plan.missing.len(),
            first.object,
            first.kind
        ));
    }
    let mut notes = Vec::new();
    if !plan.moments.is_empty() && plan.moments.iter().all(|one| one.exact) {
        notes.push(replay::set_text(&plan.moments));
    }
    if moved_aside.is_empty() && plan.sources.iter().any(|source| source.kind == "sqlite") {
        notes.push(
            "a database that is moved by hand to where another was: first move that one's -wal, -shm and -journal away too, or SQLite \
             replays the old log into it; `--to THERE --overwrite NAME` does this"
                .into(),
        );
    }
    let (phases, duration_ms) = watch.stop();
    RestoreReport {
        schema: "lifeboat.restore/1".into(),
        plan: plan.plan.clone(),
        snapshot: plan.snapshot,
        target: plan.target.clone(),
        at: plan.at,
        recovery: plan.recovery.clone(),
        moments: plan.moments.clone(),
        bytes_restored: brought.bytes,
        bytes_resumed: brought.bytes_existing,
        bytes_fetched: brought.bytes_fetched,
        entries_restored: brought.entries,
        duration_ms,
        phases,
        moved_aside,
        missing: plan.missing.clone(),
        sources_left_out: plan.sources_left_out.clone(),
        lost: brought.lost.content,
        newer_unread: plan.newer_unread.clone(),
        log_hole: plan.log_hole.clone(),
        fallback: plan.fallback.clone(),
        incomplete: !plan.missing.is_empty() || plan.log_hole.is_some() || brought.lost.content > 0,
        warnings,
        notes,
        tables: Vec::new(),
    }
}

/// A restore that stopped at a source: says what was kept and what to do. Where going on cannot help, that is recorded. `instead`: what can be had where
/// something cannot be read, if it is not another snapshot.
fn stopped(
    error: Error,
    instead: Option<String>,
    record: &SourceRecord,
    plan: &RestorePlan,
    place: &Place,
    partial: &mut Partial,
) -> Error {
    if matches!(error.kind(), Kind::Damaged | Kind::NoRecoveryPoint) {
        return unreadable(error, instead, record, plan, place, partial);
    }
    let error = error.within(format!("restore source {} to {}", record.name, place.target().display()));
    if error.hint_text().is_some() {
        return error;
    }
    let partial = place.partial();
    let partial = partial.display();
    error.hint(format!("what was restored so far is kept in {partial}; run the same command again with --resume to go on"))
}

/// What is damaged stays so until somebody mends it, and what is gone (its key was destroyed, log was removed) for ever: another snapshot, or the other sources
/// of this one, may take the place.
fn unreadable(
    error: Error,
    instead: Option<String>,
    record: &SourceRecord,
    plan: &RestorePlan,
    place: &Place,
    partial: &mut Partial,
) -> Error {
    let recorded = partial.fail(explain(&error));
    let error = error.within(format!("restore source {} to {}", record.name, place.target().display()));
    let others: Vec<String> =
        plan.manifest.sources.iter().filter(|s| s.name != record.name).map(|s| format!("--source {}", s.name)).collect();
    let mut hint = instead.unwrap_or_else(|| {
        let told =
            if error.kind() == Kind::Damaged { "`lifeboat verify` says which snapshots are harmed" } else { "nobody can read it any more" };
        format!("{told}: restore another one with --snapshot ID")
    });
    if !others.is_empty() {
        hint =
            format!("the other sources of this snapshot alone: {} (one source: TARGET is what that source is); {hint}", others.join(" "));
    }
    hint = match recorded {
        Ok(()) => format!("{hint}; to the same target too, without --resume: what this one left is replaced"),
        Err(unrecorded) => format!("{hint}, after removing {} ({unrecorded})", place.partial().display()),
    };
    error.hint(hint)
}
