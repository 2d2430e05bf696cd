//! Recovery through the log: what there is, which snapshot and log lead to a moment, and bringing that log into a restored folder.

use std::collections::BTreeSet;
use std::path::Path as FilePath;

use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext, Kind, Result};
use crate::event::{Cancel, Event};
use crate::id::Name;
use crate::ops::log::ranges::{Base, Part, Path, Replay, Route, Unreached, View};
use crate::ops::log::way::Needed;
use crate::ops::select::{self, Choice, Wanted};
use crate::ops::verdict::duration_text;
use crate::ops::{Job, Snapshots, backup, damage, damaged_warning, explain};
use crate::repo::{Listed, Log, Manifest, PieceInfo, ReportRecord, SourceRecord};
use crate::source::Finish;
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::recover::{Request, Target, Timeline, place_log_file};
use crate::source::postgres::wal::reader::PAGE_BYTES;
use crate::source::postgres::wal::{End, Meaning, PieceFacts, Record, SegmentSize, TimelineHistory, WalName, WalReader};

/// The kind of source whose log this is.
const KIND: &str = "postgres";
/// How often a listing is taken again because pieces were replaced meanwhile.
const LISTINGS: u32 = 5;
/// Bytes of log that are looked at first, a frame of a piece, and at most at a time.
const READ_FIRST: u64 = 1 << 20;
const READ_BYTES: u64 = 16 << 20;

/// A recovery through the log, as documents tell it and a continued restore repeats it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecovery {
    pub source: Name,
    /// What the server recovers to.
    pub target: Target,
    pub timeline: Timeline,
    /// The timeline whose history is followed.
    pub along: u32,
    /// The snapshot's own point: the log goes on from there.
    pub from: Lsn,
    /// Where the log that is brought ends.
    pub to: Lsn,
    pub reaches: Option<Lsn>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stops_before: Option<Lsn>,
    /// Of log, in whole files.
    pub bytes: u64,
    /// The moment of the recovered content.
    pub at: DateTime<Utc>,
}

/// What was found to restore.
pub(in crate::ops) struct Located {
    /// The one that is meant, whatever else the snapshot has.
    pub(in crate::ops) source: Name,
    pub(in crate::ops) manifest: Manifest,
    /// `None`: the snapshot at its own moment.
    pub(in crate::ops) recovery: Option<LogRecovery>,
    /// What to know about the choice.
    pub(in crate::ops) told: Vec<String>,
    /// There is log behind a hole where the end of the log was asked for: it cannot be replayed.
    pub(in crate::ops) hole: Option<String>,
}

/// All that is known of a source's log. `None`: there is none. Also what cannot be read of it, which counts as missing.
///
/// # Errors
/// When the store cannot be asked.
pub fn view(log: &Log, manifests: &[&Manifest], source: &Name) -> Result<(Option<View>, Vec<String>)> {
    let mut damaged: Vec<(PieceInfo, String)> = Vec::new();
    let bases = manifests.iter().filter_map(|manifest| {
        let record = manifest.sources.iter().find(|record| record.name == *source && record.kind == KIND)?;
        base_of(manifest, record)
    });
    let bases: Vec<Base> = bases.collect();
    let mut listings = 0;
    let (pieces, spare, destroyed) = loop {
        listings += 1;
        let mut listed = log.listed()?;
        let destroyed = log.destroyed(&listed)?;
        listed.retain(|listed| !destroyed.contains(&listed.piece));
        match pieces_of(log, &listed, &bases, listings == LISTINGS, &mut damaged) {
            Ok((pieces, spare)) => break (pieces, spare, destroyed),
            // Replaced by a larger one since the listing.
            Err(error) if error.kind() == Kind::NotFound && listings < LISTINGS => damaged.clear(),
            Err(error) => return Err(error),
        }
    };
    let (unread, why): (Vec<PieceInfo>, Vec<String>) = damaged.into_iter().unzip();
    let is_empty = pieces.is_empty() && unread.is_empty() && destroyed.is_empty();
    let histories = if is_empty { Vec::new() } else { histories(log)?.into_iter().map(|(history, _)| history).collect() };
    // A record of one that cannot be read is told where the end of the log is asked for.
    let (gaps, _) = if is_empty { (Vec::new(), Vec::new()) } else { log.gaps()? };
    Ok((View::new(bases, pieces, spare, unread, destroyed.into_iter().collect(), histories, &gaps)?, why))
}

/// Pieces with their facts, and those that add nothing to what larger ones say. `last`: those that went away since the listing count as
/// damaged, instead of being the error.
fn pieces_of(
    log: &Log,
    listed: &[Listed],
    bases: &[Base],
    last: bool,
    damaged: &mut Vec<(PieceInfo, String)>,
) -> Result<(Vec<(PieceInfo, PieceFacts)>, Vec<PieceInfo>)> {
    let mut found = Vec::with_capacity(listed.len());
    let mut read = |some: &[Listed], found: &mut Vec<(PieceInfo, PieceFacts)>| {
        let mut stop = None;
        log.facts_of(some, |at, facts| {
            let understood = facts.and_then(|facts| {
                serde_json::from_value(facts)
                    .map_err(|error| Error::new(Kind::Damaged, "facts of a log piece cannot be understood").because(error))
            });
            match understood {
                Ok(facts) => found.push((some[at].piece, facts)),
                Err(error) if error.kind() == Kind::Damaged || (last && error.kind() == Kind::NotFound) => {
                    damaged.push((some[at].piece, explain(&error)));
                }
                Err(error) => stop = Some(error),
            }
            stop.is_none()
        });
        stop.map_or(Ok(()), Err)
    };
    let (first, inside) = by_containment(listed);
    read(&first, &mut found)?;
    let whole: BTreeSet<PieceInfo> = found.iter().filter(|(_, facts)| says_all(facts, bases)).map(|(piece, _)| *piece).collect();
    let (spare, needed): (Vec<_>, Vec<_>) = inside.into_iter().partition(|(_, by)| whole.contains(by));
    let needed: Vec<Listed> = needed.into_iter().map(|(listed, _)| listed).collect();
    read(&needed, &mut found)?;
    found.sort_by_key(|(piece, _)| *piece);
    Ok((found, spare.into_iter().map(|(listed, _)| listed.piece).collect()))
}

/// Pieces whose facts are needed, and pieces inside larger ones, with those. Only of the newest stream: of one that was left, the smaller
/// pieces say what belongs to its descendants.
fn by_containment(listed: &[Listed]) -> (Vec<Listed>, Vec<(Listed, PieceInfo)>) {
    let newest = listed.iter().map(|listed| listed.piece.stream).max();
    let mut sorted = listed.to_vec();
    sorted.sort_unstable_by_key(|listed| (listed.piece.stream, listed.piece.start, std::cmp::Reverse(listed.piece.end)));
    let (mut first, mut inside) = (Vec::new(), Vec::new());
    let mut cover: Option<PieceInfo> = None;
    for listed in sorted {
        match cover {
            Some(by) if Some(by.stream) == newest && by.stream == listed.piece.stream && listed.piece.end <= by.end => {
                inside.push((listed, by));
            }
            _ => {
                cover = Some(listed.piece);
                first.push(listed);
            }
        }
    }
    (first, inside)
}

/// Whether the facts of a piece tell all that those of pieces inside it would: as of one that the stream put in their place and removes them
/// for, where the store lets it. A file that was archived does not know the server's clock.
fn says_all(facts: &PieceFacts, bases: &[Base]) -> bool {
    let of_cluster = bases.is_empty() || bases.iter().any(|base| base.system_identifier == facts.system_identifier);
    of_cluster && facts.server_clock.is_some() && !facts.has_all_room_taken()
}

/// Histories of timelines, and the bytes of their files.
pub(in crate::ops::log) fn histories(log: &Log) -> Result<Vec<(TimelineHistory, (Name, Vec<u8>))>> {
    let mut found = Vec::new();
    for name in log.sides()? {
        let Some(number) = name.as_str().strip_suffix(".history").and_then(|stem| u32::from_str_radix(stem, 16).ok()) else { continue };
        let Some(content) = log.side(&name)? else { continue };
        found.push((TimelineHistory::parse(number, &String::from_utf8_lossy(&content))?, (name, content)));
    }
    Ok(found)
}

/// Whether sources of this kind have logs.
#[must_use]
pub fn can_have_log(record: &SourceRecord) -> bool {
    record.kind == KIND
}

/// What a base backup says of itself, as far as log goes on from it.
#[derive(Debug, Deserialize)]
pub(crate) struct Consistency {
    system_identifier: String,
    timeline: u32,
    start_timeline: Option<u32>,
    stop_lsn: Lsn,
    lsn: Lsn,
    restore_point: Option<String>,
    moment: Option<DateTime<Utc>>,
    #[serde(default)]
    standby: bool,
}

impl Consistency {
    pub(crate) fn of(finish: Finish) -> Option<Self> {
        serde_json::from_value(finish.consistency).ok()
    }

    /// Where the server began a new segment because the backup had ended, so that whoever hands over whole segments has no reason to wait. `None`: a standby
    /// cannot.
    pub(in crate::ops::log) fn switched_at(&self) -> Option<Lsn> {
        (!self.standby).then_some(self.stop_lsn)
    }

    /// Where log goes on.
    pub(crate) fn point(&self) -> Lsn {
        self.lsn.max(self.stop_lsn)
    }
}

/// What a source's record says that it is of: timeline and position. `None`: that is not understood.
pub(in crate::ops) fn moment_of(record: &SourceRecord) -> Option<(u32, Lsn)> {
    let known = Consistency::of(backup::finish_of(record).ok()?)?;
    Some((known.timeline, known.point()))
}

/// `None`: what it says of itself is not understood, so nothing can be told of where log would go on.
pub(in crate::ops::log) fn base_of(manifest: &Manifest, record: &SourceRecord) -> Option<Base> {
    let known = Consistency::of(backup::finish_of(record).ok()?)?;
    Some(Base {
        id: manifest.id,
        point: known.point(),
        system_identifier: known.system_identifier,
        timeline: known.timeline,
        start_timeline: known.start_timeline.unwrap_or(known.timeline),
        restore_point: known.restore_point,
        moment: known.moment,
        time: manifest.time,
    })
}

/// What of a log these snapshots need: all of it when one does not tell, or there is none.
///
/// # Errors
/// When the store cannot be asked.
pub(in crate::ops) fn needed(log: &Log, manifests: &[&Manifest], source: &Name) -> Result<Needed> {
    let (point, newest) = first_point(manifests, source);
    let from = segment_size(log, &log.pieces()?)?.map_or(0, |size| size.start(size.number(Lsn(point))).0);
    Ok(Needed { from, newest })
}

/// As the newest piece says that can be read. `None`: none says it.
///
/// # Errors
/// When the store cannot be asked.
pub(in crate::ops) fn segment_size(log: &Log, pieces: &[PieceInfo]) -> Result<Option<SegmentSize>> {
    for piece in pieces.iter().rev() {
        match log.facts(piece) {
            Ok(facts) => {
                let known = serde_json::from_value::<PieceFacts>(facts).ok();
                if let Some(size) = known.and_then(|facts| SegmentSize::new(u64::from(facts.segment_bytes)).ok()) {
                    return Ok(Some(size));
                }
            }
            Err(error) if matches!(error.kind(), Kind::Damaged | Kind::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The first point of theirs, and the greatest timeline that one is of.
fn first_point(manifests: &[&Manifest], source: &Name) -> (u64, u32) {
    let of = |manifest: &&Manifest| {
        let record = manifest.sources.iter().find(|record| record.name == *source && record.kind == KIND)?;
        Some(base_of(manifest, record).map_or((0, 0), |base| (base.point.0, base.timeline)))
    };
    let known: Vec<(u64, u32)> = manifests.iter().filter_map(of).collect();
    (known.iter().map(|(point, _)| *point).min().unwrap_or(0), known.iter().map(|(_, timeline)| *timeline).max().unwrap_or(0))
}

/// What of the log leads to a choice. `None`: the log has no part in it, and the choice is among snapshots, which are listed anew where something seems to
/// be missing.
///
/// # Errors
/// `NoRecoveryPoint` with what there is; `Damaged` where log that is stored and cannot be read may lead there.
pub(in crate::ops) fn locate(
    job: &Job,
    snapshots: &mut Snapshots,
    choice: &Choice,
    sources: &[String],
    reports: &[ReportRecord],
) -> Result<Option<Located>> {
    let located = look(job, snapshots, choice, sources, reports);
    let is_in_doubt = match &located {
        Ok(located) => located.as_ref().is_some_and(|located| located.hole.is_some()),
        Err(error) => error.kind() == Kind::Damaged,
    };
    // A listing is not of one moment: what seems to be missing must be missing in a second one.
    if is_in_doubt {
        *snapshots = job.snapshots()?;
        return look(job, snapshots, choice, sources, reports);
    }
    located
}

fn look(job: &Job, snapshots: &Snapshots, choice: &Choice, sources: &[String], reports: &[ReportRecord]) -> Result<Option<Located>> {
    let (wanted, timeline) = match choice {
        Choice::Latest => (Wanted::Latest, None),
        Choice::At(time) => (Wanted::Time(*time), None),
        Choice::Along { wanted, timeline } => (wanted.clone(), *timeline),
        _ => return Ok(None),
    };
    let Some(Survey { source, log, view, damaged }) = survey(job, &snapshots.all, &wanted, sources, reports)? else { return Ok(None) };
    let reading = Reading { log: &log, view: &view, pieces: view.pieces(), cancel: &job.cancel };
    let route = match &wanted {
        Wanted::Xid(xid) => reading.find_transaction(*xid, timeline),
        _ => view.route(&wanted, timeline).and_then(|route| reading.settle(route, &wanted)),
    };
    let route = route.and_then(|route| if wanted == Wanted::Latest { is_to_the_end(&view, route) } else { Ok(route) });
    let route = match route {
        Ok(route) => route,
        Err(error) => {
            let error = if error.kind() == Kind::NoRecoveryPoint && view.may_be_unread(&wanted, timeline) {
                unread(&format!("recover to {wanted}"), &view.available(timeline))
            } else {
                error
            };
            let lost = damaged_warning(&snapshots.lost).into_iter().chain(damaged);
            return Err(lost.fold(error, |error, lost| error.within(format!("recover source {source}: {lost}"))));
        }
    };
    let Some(manifest) = snapshots.all.iter().find(|m| m.id == route.base).cloned() else {
        return Err(Error::new(Kind::Bug, "a route begins with a snapshot that is not there"));
    };
    let mut told: Vec<String> = damaged.iter().map(|damaged| format!("a piece of the log cannot be used: {damaged}")).collect();
    let is_on_it = |newest: &&Manifest| {
        let record = newest.sources.iter().find(|record| record.name == source);
        record.and_then(|record| base_of(newest, record)).is_some_and(|newest| view.includes(&route, &newest))
    };
    let newest = select::latest(&snapshots.all).filter(|newest| !is_on_it(newest));
    if let (Wanted::Latest, Some(newest)) = (&wanted, newest) {
        told.push(format!("the newest snapshot {} is not on this way; --snapshot names it", select::describe(newest)));
    }
    if let Wanted::Time(time) = wanted {
        told.extend(was_set_back(&view, &source, &route, time));
        if timeline.is_none() {
            told.extend(reading.forked(&route, time, "")?);
        }
    }
    let mut hole = None;
    if wanted == Wanted::Latest {
        let (gaps, unread) = log.gaps()?;
        // Who cannot read what is missing does not know that nothing is.
        let unknown = || {
            let error = unread.first()?;
            Some(format!("what is on record as missing in the log cannot all be read, so this may not be all of it: {}", explain(error)))
        };
        hole = view.unreached(&route, timeline, &gaps).map(|unreached| before_the_end(&view, &route, unreached)).or_else(unknown);
    }
    let recovery = recovery_of(&view, &source, &manifest, route)?;
    Ok(Some(Located { source, manifest, recovery, told, hole }))
}

/// A way to the newest moment, unless it ends before log that is stored and cannot be read.
fn is_to_the_end(view: &View, route: Route) -> Result<Route> {
    let Some(base) = view.bases.iter().find(|base| base.id == route.base) else { return Ok(route) };
    let cut = view.path(base, route.along).and_then(|path| Some((path.end, view.cut(base, &path)?)));
    let Some((end, to)) = cut else { return Ok(route) };
    let before = if route.replay.is_some() {
        format!("--at {}", route.at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
    } else {
        format!("--snapshot {}", route.base)
    };
    let what = format!("recover to the newest moment: from {end} to {to}");
    Err(unread(&what, &format!("{before} restores what comes before it; {}", view.available(None))))
}

/// `instead`: what can be had.
fn unread(what: &str, instead: &str) -> Error {
    Error::new(Kind::Damaged, format!("{what}: log that is stored and may lead there cannot be read"))
        .hint(format!("run `lifeboat verify`; `lifeboat repair` brings it back from a copy; {instead}"))
}

/// All there is of the one source that can have a log.
struct Survey {
    source: Name,
    log: Log,
    view: View,
    damaged: Vec<String>,
}

/// `None`: there is no log, or not of one source alone. `all`: the plan's snapshots.
fn survey(job: &Job, all: &[Manifest], wanted: &Wanted, sources: &[String], reports: &[ReportRecord]) -> Result<Option<Survey>> {
    let Some(source) = telling(all, wanted, sources).and_then(|telling| one_source(telling, sources)) else { return Ok(None) };
    let log = job.repository.log(&job.plan, &source);
    let now = job.clock.now();
    let standing = damage::standing(reports, None, now);
    let sound: Vec<&Manifest> = all.iter().filter(|m| damage::of_snapshot(reports, &standing, m.id, now).is_none()).collect();
    let (view, damaged) = view(&log, &sound, &source)?;
    Ok(view.map(|view| Survey { source, log, view, damaged }))
}

/// A moment of the log, not before `earliest`, and the source whose log it is. `None`: there is no log that continues a snapshot there. `all`: the plan's
/// snapshots.
///
/// # Errors
/// When the store cannot be asked.
pub(in crate::ops) fn random_moment(
    job: &Job,
    all: &[Manifest],
    reports: &[ReportRecord],
    seed: u64,
    earliest: Option<DateTime<Utc>>,
) -> Result<Option<(Name, DateTime<Utc>)>> {
    let survey = survey(job, all, &Wanted::Latest, &[], reports)?;
    Ok(survey.and_then(|survey| Some((survey.source, survey.view.random_moment(seed, earliest)?))))
}

/// The moment that one of several sources is restored to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceMoment {
    pub source: Name,
    /// Of its content.
    pub at: DateTime<Utc>,
    /// It is the moment that was asked for, by the source's own clock.
    pub exact: bool,
    /// How much earlier it is.
    pub earlier_ms: u64,
    /// What of its log is replayed on top of the snapshot. `None`: nothing.
    pub recovery: Option<LogRecovery>,
}

/// How several sources come to a moment: all from one snapshot, those with a log through that.
pub(in crate::ops) struct LocatedSet {
    pub(in crate::ops) manifest: Manifest,
    pub(in crate::ops) moments: Vec<SourceMoment>,
    /// What to know about the choice.
    pub(in crate::ops) told: Vec<String>,
}

/// What leads several sources to a time. `None`: none of them has a log, or there is but one, or no snapshot.
///
/// # Errors
/// `NoRecoveryPoint` when a source with a log cannot come there, with what each has.
pub(in crate::ops) fn locate_set(
    job: &Job,
    Snapshots { all, lost, .. }: &Snapshots,
    choice: &Choice,
    sources: &[String],
    reports: &[ReportRecord],
) -> Result<Option<LocatedSet>> {
    let (Choice::At(time) | Choice::Along { wanted: Wanted::Time(time), timeline: None }) = choice else { return Ok(None) };
    let time = chrono::SubsecRound::trunc_subsecs(*time, 6);
    let Some(telling) = telling(all, &Wanted::Time(time), sources) else { return Ok(None) };
    let wanted: Vec<&SourceRecord> = telling.sources.iter().filter(|record| is_asked(record, sources)).collect();
    if wanted.len() < 2 {
        return Ok(None);
    }
    let now = job.clock.now();
    let standing = damage::standing(reports, None, now);
    let sound: Vec<&Manifest> = all.iter().filter(|m| damage::of_snapshot(reports, &standing, m.id, now).is_none()).collect();
    let has_all = |m: &&Manifest| wanted.iter().all(|want| m.sources.iter().any(|has| has.name == want.name && has.kind == want.kind));
    let mut before: Vec<&Manifest> = sound.iter().copied().filter(has_all).filter(|m| m.time <= time).collect();
    before.sort_by_key(|m| std::cmp::Reverse((m.time, m.id)));
    let (mut views, mut told) = (Vec::new(), Vec::new());
    for record in wanted.iter().filter(|record| can_have_log(record)) {
        let (view, damaged) = view(&job.repository.log(&job.plan, &record.name), &sound, &record.name)?;
        told.extend(damaged.iter().map(|damaged| format!("a piece of the log of source {} cannot be used: {damaged}", record.name)));
        views.extend(view.map(|view| (&record.name, view)));
    }
    let reaches = |view: &View| before.iter().any(|m| view.route_from(m.id, time).is_some());
    if sources.is_empty() {
        views.retain(|(name, view)| {
            let is_left = !reaches(view) && !view.may_be_unread(&Wanted::Time(time), None) && is_dropped(job, all, time, name);
            if is_left {
                told.push(format!(
                    "source {name} is not backed up any more after this snapshot, and its log does not lead to {}: it is restored as of the snapshot",
                    Wanted::Time(time)
                ));
            }
            !is_left
        });
    }
    if views.is_empty() {
        return Ok(None);
    }
    for manifest in &before {
        let routes = views.iter().map(|(name, view)| Some((*name, view, view.route_from(manifest.id, time)?)));
        let Some(mut routes) = routes.collect::<Option<Vec<_>>>() else { continue };
        for (name, view, route) in &mut routes {
            let log = job.repository.log(&job.plan, name);
            let reading = Reading { log: &log, view, pieces: view.pieces(), cancel: &job.cancel };
            *route = reading.settle(route.clone(), &Wanted::Time(time))?;
        }
        let mut moments = Vec::new();
        for record in &wanted {
            let through = routes.iter().find(|(name, ..)| **name == record.name);
            let recovery = through.map(|(_, view, route)| recovery_of(view, &record.name, manifest, route.clone())).transpose()?.flatten();
            told.extend(through.and_then(|(_, view, route)| was_set_back(view, &record.name, route, time)));
            if let Some((name, view, route)) = through {
                let log = job.repository.log(&job.plan, name);
                let reading = Reading { log: &log, view, pieces: view.pieces(), cancel: &job.cancel };
                told.extend(reading.forked(route, time, &format!("--source {name} "))?);
            }
            let at = if through.is_some() { time } else { manifest.time };
            let earlier_ms = u64::try_from((time - at).num_milliseconds()).unwrap_or(0);
            moments.push(SourceMoment { source: record.name.clone(), at, exact: at == time, earlier_ms, recovery });
        }
        if let Some(nearest) = before.first().filter(|nearest| nearest.id != manifest.id) {
            told.push(format!(
                "snapshot {} is nearer, but the logs do not lead from it to {}: all sources begin with snapshot {}",
                select::describe(nearest),
                Wanted::Time(time),
                select::describe(manifest)
            ));
        }
        let manifest = (*manifest).clone();
        return Ok(Some(LocatedSet { manifest, moments, told }));
    }
    // From no snapshot all of them come there: which do not come there at all is the first thing to know.
    let (able, unable): (Vec<_>, Vec<_>) = views.iter().partition(|(_, view)| reaches(view));
    let names = |some: &[&(&Name, View)]| some.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>().join(", ");
    let what = if unable.is_empty() {
        format!("recover sources {} to {}: there is no one snapshot from which all their logs lead there", names(&able), Wanted::Time(time))
    } else {
        format!("recover source {} to {}: no snapshot and log reach that", names(&unable), Wanted::Time(time))
    };
    let each: Vec<String> = views.iter().map(|(name, view)| format!("source {name}: {}", view.available(None))).collect();
    let whole = before.first().map_or_else(String::new, |m| format!("; --snapshot {} restores all as of its own moment", m.id));
    let hint = format!("{}. Sources can be recovered one by one with --source{whole}", each.join(". "));
    let is_unread = unable.iter().any(|(_, view)| view.may_be_unread(&Wanted::Time(time), None));
    let error = if is_unread { unread(&what, &hint) } else { Error::new(Kind::NoRecoveryPoint, what).hint(hint) };
    Err(damaged_warning(lost).into_iter().chain(told).fold(error, Error::within))
}

/// Of which moments the sources of a set are, in words.
#[must_use]
pub fn set_text(moments: &[SourceMoment]) -> String {
    let names = |some: &[&SourceMoment]| some.iter().map(|one| one.source.as_str()).collect::<Vec<_>>().join(", ");
    let (exact, earlier): (Vec<&SourceMoment>, Vec<&SourceMoment>) = moments.iter().partition(|one| one.exact);
    let asked = exact.first().map_or_else(String::new, |one| Wanted::Time(one.at).to_string());
    let through = format!("{} at exactly {asked}, each by its own server's clock and through its own log", names(&exact));
    if earlier.is_empty() {
        return format!("all sources are restored to one moment: {through}");
    }
    let earlier: Vec<String> = earlier
        .iter()
        .map(|one| format!("{} as of {}, {} earlier", one.source, Wanted::Time(one.at), duration_text(one.earlier_ms)))
        .collect();
    format!("the sources are not all of one moment: {through}; without a log: {}", earlier.join(", "))
}

/// What to say when a server stops at a time too early, because its clock was wrong once.
fn was_set_back(view: &View, source: &Name, route: &Route, time: DateTime<Utc>) -> Option<String> {
    let earlier = view.set_back(route, time)?;
    Some(format!(
        "the clock of source {source} was set back: a server stops at the first transaction that is later than {}, and others behind it in the log, the first of {}, are NOT included. --lsn and --xid do not depend on the clock",
        select::moment(time),
        select::moment(earlier)
    ))
}

/// What to say when a way to the newest moment does not come to log that is known of.
fn before_the_end(view: &View, route: &Route, unreached: Unreached) -> String {
    let end = view.end(route);
    let ends = format!("the log has a hole at {end}: what is recovered ends there, at {}", select::moment(route.at));
    match unreached {
        Unreached::Behind { to } => format!(
            "{ends}; log behind it, up to {to}, is missing or cannot be used. `lifeboat backup` makes a snapshot that goes on behind it"
        ),
        Unreached::Unrelated { timeline, to } => format!(
            "{ends}, on timeline {}; log of timeline {timeline}, up to {to}, cannot be used, because {timeline:08X}.history is not stored, which says where it \
             began: `lifeboat copy` brings it into a copy, `lifeboat log push` from a server that has it. `lifeboat backup` makes a snapshot of that timeline",
            route.along
        ),
    }
}

/// An older snapshot from which the log leads to exactly the moment of another one, so that its fingerprints prove the log. `None`: there is
/// no such way.
///
/// # Errors
/// When the store cannot be asked.
pub(in crate::ops) fn towards(
    job: &Job,
    manifests: &[Manifest],
    reports: &[ReportRecord],
    wanted: &Manifest,
) -> Result<Option<(Manifest, LogRecovery)>> {
    let [record] = wanted.sources.as_slice() else { return Ok(None) };
    let Some(base) = Some(record).filter(|record| can_have_log(record)).and_then(|record| base_of(wanted, record)) else { return Ok(None) };
    let Some(restore_point) = base.restore_point.clone() else { return Ok(None) };
    let now = job.clock.now();
    let standing = damage::standing(reports, None, now);
    let sound: Vec<&Manifest> = manifests.iter().filter(|m| damage::of_snapshot(reports, &standing, m.id, now).is_none()).collect();
    let (view, _) = view(&job.repository.log(&job.plan, &record.name), &sound, &record.name)?;
    let Some(view) = view else { return Ok(None) };
    // Where a table has no fingerprint, a comparison is not whole.
    let all_fingerprinted = |id| {
        let record = manifests.iter().find(|m| m.id == id).and_then(|m| m.sources.iter().find(|other| other.name == record.name));
        let finish = record.and_then(|record| backup::finish_of(record).ok());
        let left_out = finish.as_ref().and_then(|finish| finish.consistency.pointer("/fingerprints/left_out")?.as_array().map(Vec::len));
        left_out == Some(0)
    };
    if !all_fingerprinted(wanted.id) {
        return Ok(None);
    }
    let older = view.bases.iter().filter(|older| older.point < base.point && all_fingerprinted(older.id));
    let Some((older, path)) = older
        .filter_map(|older| Some((older, view.path(older, base.timeline)?)))
        .filter(|(_, path)| path.end >= base.point)
        .max_by_key(|(older, _)| older.point)
    else {
        return Ok(None);
    };
    let Some(manifest) = sound.into_iter().find(|manifest| manifest.id == older.id) else { return Ok(None) };
    let route = path.to_record(older, Target::Name(restore_point), base.point, wanted.time);
    let recovery = recovery_of(&view, &record.name, manifest, route)?;
    Ok(recovery.map(|recovery| (manifest.clone(), recovery)))
}

/// The snapshot that says which sources are meant: of a moment the nearest that is not later, or else the first; otherwise the newest. Unless the newest
/// moment is wanted, of those that have all sources that were named: what is not backed up any more can still be brought back.
fn telling<'a>(all: &'a [Manifest], wanted: &Wanted, asked: &[String]) -> Option<&'a Manifest> {
    let has_asked = |m: &&Manifest| asked.iter().all(|name| m.sources.iter().any(|record| record.name.as_str() == name));
    let having = || all.iter().filter(has_asked);
    let age = |m: &&Manifest| (m.time, m.id);
    match wanted {
        Wanted::Latest => select::latest(all),
        Wanted::Time(time) => having().filter(|m| m.time <= *time).max_by_key(age).or_else(|| having().min_by_key(age)),
        _ => select::latest(all).filter(has_asked).or_else(|| having().max_by_key(age)),
    }
}

fn is_asked(record: &SourceRecord, asked: &[String]) -> bool {
    asked.is_empty() || asked.iter().any(|name| name == record.name.as_str())
}

/// Whether a source was taken out of the plan: no snapshot after a moment has it, and the plan, where that is known, neither.
fn is_dropped(job: &Job, all: &[Manifest], time: DateTime<Utc>, source: &Name) -> bool {
    let mut later = all.iter().filter(|m| m.time > time).peekable();
    let is_out = if job.sources.is_empty() { later.peek().is_some() } else { job.sources.iter().all(|named| named.name != *source) };
    is_out && later.all(|m| m.sources.iter().all(|record| record.name != *source))
}

/// The only source that is restored, when it is one that can have a log. `telling`: see there.
fn one_source(telling: &Manifest, asked: &[String]) -> Option<Name> {
    let mut chosen = telling.sources.iter().filter(|record| is_asked(record, asked));
    match (chosen.next(), chosen.next()) {
        (Some(record), None) if record.kind == KIND => Some(record.name.clone()),
        _ => None,
    }
}

/// `None`: nothing is replayed.
fn recovery_of(view: &View, source: &Name, manifest: &Manifest, route: Route) -> Result<Option<LogRecovery>> {
    let Route { along, at, replay: Some(Replay { target, timeline, end, reaches, stops_before }), .. } = route else { return Ok(None) };
    let base = view.bases.iter().find(|base| base.id == manifest.id).ok_or_else(|| Error::new(Kind::Bug, "a snapshot is gone"))?;
    let segment = view.path(base, along).ok_or_else(|| Error::new(Kind::Bug, "the way to a snapshot is gone"))?.segment;
    let bytes =
        if end > base.point { (segment.number_before(end) + 1 - segment.number(base.point)) * u64::from(segment.bytes()) } else { 0 };
    Ok(Some(LogRecovery { source: source.clone(), target, timeline, along, from: base.point, to: end, reaches, stops_before, bytes, at }))
}

/// The log itself, read for what facts do not tell.
struct Reading<'a> {
    log: &'a Log,
    view: &'a View,
    pieces: Vec<PieceInfo>,
    cancel: &'a Cancel,
}

impl Reading<'_> {
    /// Hands out the records of a path from the page of a position on, in order, until `each` says that it is enough. Where and why the log could not be
    /// read on before it was, or before `to`.
    fn records(&self, (base, path): (&Base, &Path), from: Lsn, to: Lsn, mut each: impl FnMut(Record) -> bool) -> Result<Option<End>> {
        let page = u64::from(PAGE_BYTES);
        let mut at = Lsn(from.0 - from.0 % page);
        // The log before its first page is the snapshot's own.
        if let Some(first) = path.parts.first() {
            at = at.max(Lsn(first.from.0.next_multiple_of(page)));
        }
        let mut reader = WalReader::new(at, path.segment, base.system_identifier.parse().ok())?;
        let mut step = READ_FIRST;
        let mut is_enough = false;
        while let Some(part) = path.parts.iter().find(|part| part.from <= at && at < part.to.min(to)) {
            self.cancel.check()?;
            let end = part.to.min(to).min(at.plus(step));
            let bytes = self.log.read_span(&self.pieces, part.stream, at.0..end.0)?;
            reader.push(&bytes, |record| is_enough = is_enough || each(record));
            if is_enough {
                break;
            }
            if let Some(end) = reader.end() {
                return Ok(Some(end.clone()));
            }
            (at, step) = (end, (step * 2).min(READ_BYTES));
        }
        Ok(None)
    }

    /// A route as the log itself has it: facts of pieces tell where records end, and not every commit.
    fn settle(&self, route: Route, wanted: &Wanted) -> Result<Route> {
        match (wanted, route.replay.as_ref().map(|replay| &replay.target)) {
            (Wanted::Lsn(lsn), Some(Target::Lsn { .. })) => self.before_record(route, *lsn),
            (Wanted::Time(_), Some(Target::Latest)) => self.before_commit(route).and_then(|route| self.behind_commit(route)),
            (Wanted::Time(_), Some(Target::Time(_))) => self.behind_commit(route),
            _ => Ok(route),
        }
    }

    /// A server stops at a position before the first record that begins at or behind it, and ends with an error where there is none. All that there
    /// is was written before it then.
    fn before_record(&self, route: Route, lsn: Lsn) -> Result<Route> {
        let Some((base, path)) = self.view.way(&route) else { return Ok(route) };
        let along = path.history.timeline();
        let segment = path.segment;
        let number = segment.number(lsn);
        // What lies behind the record that ends a segment early is zeros, and only who reads that record passes over them. It may begin in the segment before.
        let mut last = None;
        for from in [lsn, segment.start(number), segment.start(number.saturating_sub(1))] {
            let mut first = None;
            let ended = self.records((base, &path), from, path.end, |record| {
                first = (record.start >= lsn).then_some(record.end);
                first.is_some()
            })?;
            match (first, ended) {
                (Some(end), _) => return Ok(path.to_record(base, Target::Lsn { lsn, inclusive: false }, end, route.at)),
                (None, None) => return Ok(Route { at: route.at, ..path.whole(base) }),
                (None, Some(end)) => last = Some(end),
            }
        }
        let why = last.map_or_else(String::new, |end| format!(" at {}: {}", end.found_at, end.why));
        Err(Error::new(Kind::Damaged, format!("recover to {lsn}: the log up to {} cannot be read on{why}", path.end))
            .hint(format!("run `lifeboat verify`; {}", self.view.available(Some(along)))))
    }

    /// A way to a time that leads to the end of the log, because facts tell of no later commit: there must be none.
    fn before_commit(&self, route: Route) -> Result<Route> {
        let Some((base, path)) = self.view.way(&route) else { return Ok(route) };
        let time = route.at;
        for start in self.view.unseen(base, &path, time) {
            let Some(record) = self.across((base, &path), start)? else { continue };
            if matches!(record.meaning, Meaning::Commit { time: at, .. } | Meaning::Abort { time: at, .. } if at > time) {
                return Ok(path.to_record(base, Target::Time(time), record.end, time));
            }
        }
        Ok(route)
    }

    /// A server that is to recover to a time replays everything before the first commit that is later. What takes effect without a commit is in that: `DROP
    /// DATABASE` removes the files, and commits afterwards. So it is told a position: behind the last record before that commit which is known to be of this time or earlier.
    fn behind_commit(&self, mut route: Route) -> Result<Route> {
        let (Some((base, path)), Some(Replay { target: Target::Time(time), .. })) = (self.view.way(&route), &route.replay) else {
            return Ok(route);
        };
        // As a server is told it, in microseconds.
        let time = time.trunc_subsecs(6);
        for from in path.before_later(base, time) {
            let (mut last, mut is_later) = (None, false);
            self.records((base, &path), from, path.end, |record| {
                match record.meaning {
                    Meaning::Commit { time: at, .. } | Meaning::Abort { time: at, .. } if at > time => is_later = true,
                    Meaning::Commit { .. } | Meaning::Abort { .. } => last = Some(record.end),
                    Meaning::Prepare { time: at } | Meaning::RestorePoint { time: at, .. } if at <= time => last = Some(record.end),
                    _ => {}
                }
                is_later
            })?;
            let is_all = from <= base.point;
            let behind = last.filter(|last| *last > base.point).or_else(|| is_all.then_some(base.point));
            if is_later && let (Some(lsn), Some(replay)) = (behind, &mut route.replay) {
                replay.stops_before = Some(lsn);
                return Ok(route);
            }
        }
        Ok(route)
    }

    /// What to say where a moment is one at which two servers wrote: commits of a timeline that is not followed, of that moment or earlier, unless the moment is behind all that is
    /// stored of it and the followed one had gone on by then. `words`: what names the source.
    fn forked(&self, route: &Route, time: DateTime<Utc>, words: &str) -> Result<Vec<String>> {
        let Some((base, followed)) = self.view.way(route) else { return Ok(Vec::new()) };
        let mut told = Vec::new();
        for (other, shared) in self.view.forks(route) {
            let Some(first) = self.first_commit((base, &other), shared)?.filter(|first| *first <= time) else { continue };
            if other.to < time && self.first_commit((base, &followed), shared)?.is_some_and(|first| first <= time) {
                continue;
            }
            let (timeline, exact) =
                (other.history.timeline(), |time: DateTime<Utc>| time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true));
            told.push(format!(
                "two servers wrote at this moment: what was committed on timeline {timeline} alone, from {} on, is NOT included; it is stored up to {} (log position {}). Timeline {}, which is followed, \
                 goes another way from {shared} on: `restore {words}--timeline {timeline}` follows the other",
                exact(first),
                exact(other.to),
                other.end,
                route.along
            ));
        }
        Ok(told)
    }

    /// When the first transaction committed behind a position. Where the log cannot be read up to it, when the way begins: it may have been any time later.
    fn first_commit(&self, (base, path): (&Base, &Path), behind: Lsn) -> Result<Option<DateTime<Utc>>> {
        let mut first = None;
        let read = self.records((base, path), behind, path.end, |record| {
            if let Meaning::Commit { time, .. } = record.meaning
                && record.start >= behind
            {
                first = Some(time);
            }
            first.is_some()
        });
        match read {
            Err(error) if error.kind() == Kind::Damaged => Ok(Some(path.from)),
            Err(error) => Err(error),
            Ok(_) => Ok(first),
        }
    }

    /// The record that lies across the start of a page.
    fn across(&self, (base, path): (&Base, &Path), page: Lsn) -> Result<Option<Record>> {
        let mut back = READ_FIRST;
        loop {
            let from = Lsn(page.0.saturating_sub(back)).max(base.point);
            let (mut is_anchored, mut found) = (false, None);
            self.records((base, path), from, path.end, |record| {
                let is_behind = record.start >= page;
                is_anchored |= !is_behind;
                let is_it = !is_behind && record.end > page;
                if is_it {
                    found = Some(record);
                }
                is_behind || is_it
            })?;
            // Otherwise the reader began within a record, which may be this one.
            if is_anchored || from <= base.point {
                return Ok(found);
            }
            back = back.saturating_mul(16);
        }
    }

    /// Looks for the end of a transaction in the log, from the newest snapshot backwards.
    fn find_transaction(&self, xid: u64, timeline: Option<u32>) -> Result<Route> {
        let view = self.view;
        // Says what there is where nothing can be found.
        let whole = view.route(&Wanted::Latest, timeline)?;
        let along = whole.replay.map_or(timeline, |_| Some(whole.along));
        let no_transaction = || {
            Error::new(Kind::NoRecoveryPoint, format!("recover to transaction {xid}: its end is not in the log that continues a snapshot"))
                .hint(format!("{}; a transaction that wrote nothing is not in the log, and of one with savepoints (PL/pgSQL: EXCEPTION) only the number of the whole is looked for, not one that `xmin` of a row may tell", view.available(timeline)))
        };
        let along = along.or_else(|| view.timelines().last().copied()).ok_or_else(no_transaction)?;
        let mut paths: Vec<(&Base, Path)> = view.bases.iter().filter_map(|base| Some((base, view.path(base, along)?))).collect();
        paths.sort_by_key(|(base, _)| std::cmp::Reverse((base.point, base.id)));
        let mut upper = Lsn(u64::MAX);
        let mut unread = Vec::new();
        for (base, path) in &paths {
            let mut found = None;
            let ended = self.records((base, path), Lsn(0), upper, |record| {
                if let Meaning::Commit { xid: number, time } | Meaning::Abort { xid: number, time } = record.meaning
                    && u64::from(number) == xid & 0xFFFF_FFFF
                    && record.end > base.point
                {
                    found = Some((record.end, time));
                }
                found.is_some()
            })?;
            if let Some((end, time)) = found {
                return Ok(path.to_record(base, Target::Xid { xid, inclusive: true }, end, time));
            }
            unread.extend(ended.map(|end| format!("the log cannot be read on at {}: {}", end.found_at, end.why)));
            upper = base.point;
        }
        Err(if unread.is_empty() { no_transaction() } else { no_transaction().because(unread.join("; ")) })
    }
}

/// Brings the log that a recovery needs into a restored folder, and says there what to recover to.
///
/// # Errors
/// `NoRecoveryPoint` when the log is not there any more; `Damaged`; as writing files.
pub(in crate::ops) fn bring(job: &Job, manifest: &Manifest, recovery: &LogRecovery, data: &FilePath) -> Result<()> {
    let log = job.repository.log(&manifest.plan, &recovery.source);
    if recovery.to > recovery.from {
        let (view, damaged) = view(&log, &[manifest], &recovery.source)?;
        let gone = || {
            let error = Error::new(Kind::NoRecoveryPoint, format!("the log up to {} is not in the repository any more", recovery.to));
            damaged.iter().fold(error, |error, damaged| error.within(damaged.clone()))
        };
        let view = view.ok_or_else(gone)?;
        let base = view.bases.first().ok_or_else(gone)?;
        let path = view.path(base, recovery.along).ok_or_else(gone)?;
        let parts = path.parts_to(recovery.to).ok_or_else(gone)?;
        write_segments(job, &log, &view, base, &path, &parts, recovery.to, data)?;
        // All of them: a server that is promoted takes a number that none of them has.
        for (_, (name, content)) in histories(&log)? {
            place_log_file(data, name.as_str(), &content)?;
        }
    }
    Request { target: recovery.target.clone(), timeline: recovery.timeline, reaches: recovery.reaches, stops_before: recovery.stops_before }
        .write(data)
}

/// What can be had where the log is damaged in the segment that begins here.
fn instead_of_damaged(base: &Base, path: &Path, from: Lsn) -> String {
    let before = path.known_before(from).map_or_else(
        || format!("--snapshot {} restores the moment of the snapshot that it goes on from", base.id),
        |time| {
            let time = time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
            format!("--at {time} restores what comes before the damaged log, --snapshot {} the moment of the snapshot", base.id)
        },
    );
    format!("no snapshot is harmed by this: {before}; `lifeboat repair` brings the log back from a copy")
}

/// One file at a time; what is behind the end of the log is zeros.
#[expect(clippy::too_many_arguments, reason = "one loop of `bring`")]
fn write_segments(job: &Job, log: &Log, view: &View, base: &Base, path: &Path, parts: &[Part], end: Lsn, data: &FilePath) -> Result<()> {
    let Some(first) = parts.first() else { return Err(Error::new(Kind::Bug, "a log without bytes was to be brought")) };
    let (segment, pieces) = (path.segment, view.pieces());
    let size = segment.bytes() as usize;
    for number in segment.number(first.from)..=segment.number_before(end) {
        job.cancel.check()?;
        let begin = segment.start(number);
        let close = segment.start(number + 1).min(end);
        let mut bytes = vec![0; size];
        if begin < first.from {
            // The snapshot has what comes before.
            let name = WalName::Segment { timeline: base.timeline, number }.text(segment);
            let file = data.join("pg_wal").join(&name);
            let there = std::fs::read(&file).io_context(|| format!("read {}", file.display()))?;
            let before = segment.offset(first.from) as usize;
            let kept = there.get(..before).ok_or_else(|| Error::new(Kind::Damaged, format!("{} is too short", file.display())))?;
            bytes[..before].copy_from_slice(kept);
        }
        for part in parts {
            let (from, to) = (part.from.max(begin), part.to.min(close));
            if from < to {
                let instead = |error: Error| match error.kind() {
                    Kind::Damaged => error.hint(instead_of_damaged(base, path, from)),
                    _ => error,
                };
                let read = log.read_span(&pieces, part.stream, from.0..to.0).map_err(instead)?;
                let at = segment.offset(from) as usize;
                bytes[at..at + read.len()].copy_from_slice(&read);
            }
        }
        let timeline = path.history.timeline_at(Lsn(close.0.saturating_sub(1)));
        place_log_file(data, &WalName::Segment { timeline, number }.text(segment), &bytes)?;
        job.progress.event(Event::Advance { bytes: u64::from(segment.bytes()), items: 1 });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
