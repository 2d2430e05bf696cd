//! Streams the log of a PostgreSQL source into the repository, and keeps a note of how it stands where `status` finds it.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::error::{Context, Error, Kind, Result};
use crate::event::{Event, Progress};
use crate::id::Name;
use crate::ops::explain;
use crate::ops::log::archive::stored_history;
use crate::ops::log::fork;
use crate::ops::log::ranges::unreadable_gap;
use crate::ops::resolve::{self, RepositorySettings, Surroundings};
use crate::ops::work::{FileLock, make_private, read_private, write_private};
use crate::plan::{self, SourceKind};
use crate::repo::{Gap, Log, PieceInfo, Repository, Role, runs};
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::stream::{Again, Known, LogPiece, LogSink, LogStream, StreamState, UNIT_BYTES_MAX, slot_name};
use crate::source::postgres::wal::{End, PieceFacts, TimelineHistory};

/// How often the note is written.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// A piece is sealed to keys that were looked at so long ago at most.
const KEYS_EVERY: Duration = Duration::from_mins(1);

/// How the log of a source stands: `lifeboat.log/1`, kept in the plan's work folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStatus {
    pub schema: String,
    pub plan: String,
    pub source: String,
    /// The moment that this is of; a note that is old is of a stream that does not run.
    pub time: DateTime<Utc>,
    pub connected: bool,
    pub timeline: u32,
    /// What is stored ends here.
    pub durable_to: Lsn,
    pub server_end: Lsn,
    pub lag_bytes: u64,
    /// Of the log that was stored since the stream began.
    pub newest_commit: Option<DateTime<Utc>>,
    /// Whatever was committed before this moment of the source's clock is stored.
    pub server_clock: Option<DateTime<Utc>>,
    /// What the slot holds back on the server, and what may be written before it may be lost.
    pub held_bytes: Option<u64>,
    pub safe_bytes: Option<u64>,
    pub wal_status: Option<String>,
    pub slot: String,
    pub gaps: Vec<Gap>,
    /// What is stored and was found damaged by this stream, which stored new log all the same; sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<String>,
    pub error: Option<String>,
}

impl LogStatus {
    /// How a stream that was stopped ends, which had begun at this moment: `None` (exit 0) only when it was streaming, missed nothing, and found nothing damaged.
    #[must_use]
    pub fn exit(&self, begun: DateTime<Utc>) -> Option<Kind> {
        if !self.damaged.is_empty() {
            return Some(Kind::Damaged);
        }
        if self.error.is_some() || self.durable_to == Lsn(0) {
            return Some(Kind::Failed);
        }
        self.gaps.iter().any(|gap| gap.noticed_at >= begun).then_some(Kind::Incomplete)
    }
}

/// Where the note about a source's stream is.
fn note_path(work: &Path, source: &Name) -> PathBuf {
    work.join(format!("log-{source}.json"))
}

/// How the stream of a source stood when it last said so; `None`: it never did.
///
/// # Errors
/// When there is a note that cannot be read.
pub fn status(work: &Path, source: &Name) -> Result<Option<LogStatus>> {
    let path = note_path(work, source);
    match read_private(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).context(Kind::Failed, || format!("understand {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("read {}", path.display()), error)),
    }
}

/// The source of a plan whose log is meant: the one that is named, or the only one that has a log.
///
/// # Errors
/// `Usage` when there is none, or not one only.
pub fn choose<'a>(plan: &'a plan::Plan, name: Option<&str>) -> Result<&'a Arc<plan::Source>> {
    let mut candidates = plan.sources.iter().filter(|source| matches!(source.kind, SourceKind::Postgres(_)));
    if let Some(name) = name {
        return candidates.find(|source| source.name.as_str() == name).ok_or_else(|| {
            Error::new(Kind::Usage, format!("plan {} has no PostgreSQL source {name:?}", plan.name))
                .hint("`lifeboat plan show` shows its sources; only PostgreSQL has a log that is streamed")
        });
    }
    match (candidates.next(), candidates.next()) {
        (Some(source), None) => Ok(source),
        (None, _) => Err(Error::new(Kind::Usage, format!("plan {} has no PostgreSQL source", plan.name))
            .hint("only PostgreSQL has a log that is streamed")),
        (Some(_), Some(_)) => {
            Err(Error::new(Kind::Usage, format!("plan {} has several PostgreSQL sources", plan.name))
                .hint("say which one with --source NAME"))
        }
    }
}

/// Whether what fails is tried again however it looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// A wrong plan is told to whoever typed the command.
    Foreground,
    /// Somebody may repair it while the daemon runs.
    Daemon,
}

/// A daemon looks after a permanent error again, but not often.
const LONG_PAUSE: Duration = Duration::from_mins(5);

/// Streams the log of a source until `surroundings.cancel` is set; returns how it stood then. Holds the lock that makes it the only
/// stream of this source on this host.
///
/// # Errors
/// `Busy` when one runs; `SplitBrain` when the server is not the one that the log is of; in the foreground also what is wrong with the
/// plan or the server before the first piece.
pub fn run(plan: &plan::Plan, source: &plan::Source, persistence: Persistence, surroundings: &Surroundings) -> Result<LogStatus> {
    let settings = resolve::postgres_settings(source)?;
    let place = resolve::repository(&plan.repository)?;
    let repository = place.open(surroundings)?;
    must_write(&repository, &plan.name)?;
    let work = surroundings.state.join("work").join(plan.name.as_str());
    make_private(&work)?;
    let lock = work.join(format!("log-{}.lock", source.name));
    let _lock = FileLock::try_take(&lock, surroundings.clock.now())?.map_err(|holder| {
        Error::new(Kind::Busy, format!("stream the log of source {} of plan {}: it is streamed already ({holder})", source.name, plan.name))
            .hint("`lifeboat serve` streams the logs of its plans; one stream is enough")
    })?;
    let slot = slot_name(plan.name.as_str(), source.name.as_str());
    let connected = Cell::new(false);
    let mut sink = Sink::new(plan, source, (place, repository), &slot, &work, surroundings, &connected)?;
    let stream = LogStream { settings, slot, cancel: surroundings.cancel.clone() };
    let progress = Arc::clone(&surroundings.progress);
    progress.event(Event::Phase { name: "stream", detail: format!("{} of {}", source.name, plan.name) });
    stream.run(&mut sink, |error, again| {
        let again = match (persistence, again) {
            (Persistence::Daemon, Again::Never) => Again::After(LONG_PAUSE),
            (Persistence::Foreground, Again::After(_)) if error.kind() == Kind::Usage && !connected.get() => Again::Never,
            (_, again) => again,
        };
        if let Again::After(pause) = again {
            let message =
                format!("the log of source {} does not stream, next try in {} s: {}", source.name, pause.as_secs(), explain(error));
            tracing::warn!(plan = %plan.name, source = %source.name, hint = error.hint_text(), "{message}");
            progress.event(Event::Warning { message });
        }
        again
    })?;
    sink.note(true);
    Ok(sink.status)
}

fn must_write(repository: &Repository, plan: &Name) -> Result<()> {
    if repository.role() == Role::Maintainer {
        return Err(Error::new(Kind::WrongKey, format!("stream the log of {plan}: this passphrase opens a maintainer key slot"))
            .hint("use the passphrase of a writer or reader key slot (`lifeboat key list`)"));
    }
    Ok(())
}

/// The repository's log as a stream's sink.
struct Sink<'a> {
    log: Log,
    repository: Repository,
    /// To open it anew when its keys have changed.
    place: RepositorySettings,
    keys_at: Option<Instant>,
    surroundings: &'a Surroundings,
    plan: Name,
    source: Name,
    /// What the stream found stored when it began: stream, start, end.
    known: BTreeSet<(u64, u64, u64)>,
    /// Pieces inside the unit that fills, which go when it is whole.
    small: Vec<PieceInfo>,
    /// The store does not let pieces be removed.
    keeps_all: bool,
    looked_for_left: bool,
    status: LogStatus,
    path: PathBuf,
    noted_at: Option<Instant>,
    clock: Arc<dyn Clock>,
    progress: Arc<dyn Progress>,
    connected: &'a Cell<bool>,
}

impl<'a> Sink<'a> {
    fn new(
        plan: &plan::Plan,
        source: &plan::Source,
        (place, repository): (RepositorySettings, Repository),
        slot: &str,
        work: &Path,
        surroundings: &'a Surroundings,
        connected: &'a Cell<bool>,
    ) -> Result<Self> {
        let log = repository.log(&plan.name, &source.name);
        let (gaps, damaged) = log.gaps()?;
        for error in damaged {
            tracing::warn!(error = ?error, "a gap on record cannot be read");
        }
        let status = LogStatus {
            schema: "lifeboat.log/1".into(),
            plan: plan.name.to_string(),
            source: source.name.to_string(),
            time: surroundings.clock.now(),
            connected: false,
            timeline: 0,
            durable_to: Lsn(0),
            server_end: Lsn(0),
            lag_bytes: 0,
            newest_commit: None,
            server_clock: None,
            held_bytes: None,
            safe_bytes: None,
            wal_status: None,
            slot: slot.to_owned(),
            gaps,
            damaged: Vec::new(),
            error: None,
        };
        Ok(Self {
            log,
            repository,
            place,
            keys_at: None,
            surroundings,
            plan: plan.name.clone(),
            source: source.name.clone(),
            known: BTreeSet::new(),
            small: Vec::new(),
            keeps_all: false,
            looked_for_left: false,
            status,
            path: note_path(work, &source.name),
            noted_at: None,
            clock: Arc::clone(&surroundings.clock),
            progress: Arc::clone(&surroundings.progress),
            connected,
        })
    }

    /// Makes sure that what is stored now is sealed to the keys that are in use. Where something was done with them since they were read, the repository
    /// is opened anew. Without `always`, nobody is asked when that was done a moment ago.
    ///
    /// # Errors
    /// `WrongKey` when the plan's own key was destroyed and it has no other one, or a rotation left the key slot behind; as opening says.
    fn follow_keys(&mut self, always: bool) -> Result<()> {
        if !always && self.keys_at.is_some_and(|at| at.elapsed() < KEYS_EVERY) {
            return Ok(());
        }
        self.keys_at = None;
        match self.repository.keys_changed(&self.plan) {
            Ok(None) => {}
            Err(error) if !matches!(error.kind(), Kind::WrongKey | Kind::Damaged) => return Err(error),
            changed => {
                tracing::info!(plan = %self.plan, source = %self.source, ?changed, "something was done with the keys: they are read anew");
                let repository = self.place.open(self.surroundings)?;
                if repository.id() != self.repository.id() {
                    return Err(Error::new(
                        Kind::Damaged,
                        format!("stream the log of {}: another repository is there than before", self.plan),
                    )
                    .hint("`lifeboat repo accept` says that it is meant; then start the stream anew"));
                }
                must_write(&repository, &self.plan)?;
                self.log = repository.log(&self.plan, &self.source);
                self.repository = repository;
            }
        }
        self.repository.may_write(&self.plan).map_err(|error| error.within(format!("stream the log of {}", self.plan)))?;
        self.keys_at = Some(Instant::now());
        Ok(())
    }

    /// Writes the note, not too often.
    fn record(&mut self, gap: Gap, message: String) -> Result<()> {
        self.log.record_gap(&gap)?;
        tracing::error!(plan = %self.plan, source = %self.source, "{message}");
        self.progress.event(Event::Warning { message });
        self.status.gaps.push(gap);
        self.note(true);
        Ok(())
    }

    fn note(&mut self, now: bool) {
        if !now && self.noted_at.is_some_and(|at| at.elapsed() < NOTE_EVERY) {
            return;
        }
        self.noted_at = Some(Instant::now());
        self.status.time = self.clock.now();
        let written = serde_json::to_vec_pretty(&self.status)
            .context(Kind::Bug, || "write how the log stands".to_owned())
            .and_then(|text| write_private(&self.path, &text));
        if let Err(error) = written {
            // The log itself matters more.
            tracing::warn!(error = ?error, "how the log stands could not be noted");
        }
    }

    /// Of the cluster whose log or backups are stored: of the newest piece that can be read, else of the newest snapshot. What is damaged is told, and must
    /// not keep new log from being stored.
    fn system_identifier(&mut self, pieces: &[PieceInfo]) -> Result<Option<u64>> {
        for piece in pieces.iter().rev() {
            let facts = self.log.facts(piece).and_then(|facts| {
                let facts: PieceFacts = serde_json::from_value(facts).context(Kind::Damaged, || "understand what is said of it".into())?;
                identifier(&facts.system_identifier)
            });
            match facts {
                Ok(found) => return Ok(Some(found)),
                // A larger one has taken its place.
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) if error.kind() == Kind::Damaged => {
                    let what = format!("piece from {} to {} of timeline {}", Lsn(piece.start), Lsn(piece.end), piece.stream);
                    self.tell_damage(&what, &error);
                }
                Err(error) => return Err(error),
            }
        }
        let (manifests, _) = self.repository.sound_manifests(Some(&self.plan))?;
        let newest = manifests.iter().rev().flat_map(|manifest| &manifest.sources).find(|record| record.name == self.source);
        let text = newest.and_then(|record| record.finish["consistency"]["system_identifier"].as_str());
        text.map(identifier).transpose()
    }

    /// Of the newest of these timelines. A damaged one is told; what is stored of its log refuses a server that was left behind all the same.
    fn newest_history(&mut self, stored: &BTreeSet<u32>) -> Result<Option<TimelineHistory>> {
        let Some(newest) = stored.last().copied() else { return Ok(None) };
        match stored_history(&self.log, newest).and_then(|text| text.map(|text| TimelineHistory::parse(newest, &text)).transpose()) {
            Err(error) if error.kind() == Kind::Damaged => {
                self.tell_damage(&format!("history of timeline {newest}"), &error);
                Ok(None)
            }
            other => other,
        }
    }

    /// What must not keep new log from being stored.
    fn tell_damage(&mut self, what: &str, error: &Error) {
        let message = format!(
            "the {what} in the log of source {} is damaged (`lifeboat verify`), new log is stored all the same: {}",
            self.source,
            explain(error)
        );
        tracing::error!(plan = %self.plan, source = %self.source, "{message}");
        // Found again whenever the stream begins anew.
        if !self.status.damaged.contains(&message) {
            self.status.damaged.push(message.clone());
        }
        self.progress.event(Event::Warning { message });
    }

    /// Removes what a larger piece has.
    fn remove(&mut self, pieces: &[PieceInfo], by: &PieceInfo) {
        if self.keeps_all {
            return;
        }
        match self.log.remove_subsumed(pieces, by) {
            Ok(true) => {}
            Ok(false) => {
                self.keeps_all = true;
                tracing::info!("small pieces of the log stay: the store does not let them be removed");
            }
            Err(error) => tracing::warn!(error = ?error, "small pieces of the log stay for now"),
        }
    }
}

fn identifier(text: &str) -> Result<u64> {
    text.parse().context(Kind::Damaged, || "understand a system identifier".to_owned())
}

impl LogSink for Sink<'_> {
    fn known(&mut self) -> Result<Known> {
        self.follow_keys(true)?;
        let pieces = self.log.pieces()?;
        let system_identifier = self.system_identifier(&pieces)?;
        let timeline = |stream: u64| u32::try_from(stream).context(Kind::Damaged, || format!("a log of timeline {stream}"));
        let stretches =
            runs(&pieces).iter().map(|run| Ok((timeline(run.stream)?, Lsn(run.start), Lsn(run.end)))).collect::<Result<Vec<_>>>()?;
        if !std::mem::replace(&mut self.looked_for_left, true) {
            for some in subsumed(&pieces).chunk_by(|(_, one), (_, other)| one == other) {
                let left: Vec<PieceInfo> = some.iter().map(|(piece, _)| *piece).collect();
                self.remove(&left, &some[0].1);
            }
        }
        let near = pieces.last().map_or(0, |newest| newest.end.saturating_sub(2 * UNIT_BYTES_MAX));
        self.known = pieces.iter().filter(|piece| piece.end > near).map(|piece| (piece.stream, piece.start, piece.end)).collect();
        // What is small is not told apart here: all that a later piece covers goes.
        if let Some(newest) = pieces.last() {
            let near = newest.end.saturating_sub(UNIT_BYTES_MAX);
            self.small = pieces.iter().filter(|piece| piece.stream == newest.stream && piece.start >= near).copied().collect();
        }
        let histories = fork::timelines(&self.log)?;
        Ok(Known { system_identifier, stretches, newest: self.newest_history(&histories)?, histories })
    }

    fn piece(&mut self, piece: &LogPiece<'_>) -> Result<()> {
        self.follow_keys(false)?;
        let facts = serde_json::to_value(piece.facts).context(Kind::Bug, || "write what is said of a piece of log".to_owned())?;
        let stretch = (u64::from(piece.timeline), piece.start.0, piece.end.0);
        let there = self.small.iter().find(|other| (other.stream, other.start, other.end) == stretch).copied();
        let stored = match there {
            // Sent again, as at the beginning of a stream: not stored twice.
            Some(there) if self.log.holds(&there, piece.bytes).is_ok_and(|same| same) => there,
            _ => match self.log.append(stretch.0, stretch.1, stretch.2, &facts, piece.bytes) {
                Ok(appended) => appended.piece,
                // It was confirmed to the server long ago, and to stay here would lose what comes behind it too.
                Err(error) if error.kind() == Kind::Damaged && self.known.contains(&stretch) => {
                    self.tell_damage(&format!("piece from {} to {} of timeline {}", piece.start, piece.end, piece.timeline), &error);
                    return Ok(());
                }
                Err(error) => return Err(error),
            },
        };
        self.progress.event(Event::Advance { bytes: piece.bytes.len() as u64, items: 1 });
        if piece.replaces {
            let inside = |other: &PieceInfo| {
                other.stream == stored.stream
                    && stored.start <= other.start
                    && other.end <= stored.end
                    && (other.start, other.end) != (stored.start, stored.end)
            };
            let gone: Vec<PieceInfo> = self.small.iter().filter(|other| inside(other)).copied().collect();
            self.small.retain(|other| !inside(other) && other.stream == stored.stream && other.end > stored.start);
            self.remove(&gone, &stored);
        }
        if there.is_none() {
            self.small.push(stored);
        }
        Ok(())
    }

    fn same(&mut self, timeline: u32, start: Lsn, bytes: &[u8]) -> Result<()> {
        let end = start.plus(bytes.len() as u64);
        let inside = |piece: &&PieceInfo| piece.stream == u64::from(timeline) && start.0 <= piece.start && piece.end <= end.0;
        let pieces: Vec<PieceInfo> = self.small.iter().filter(inside).copied().collect();
        for piece in runs(&pieces).iter().flat_map(|run| &run.pieces) {
            let at = |position: u64| usize::try_from(position - start.0).unwrap_or(usize::MAX);
            match self.log.holds(piece, &bytes[at(piece.start)..at(piece.end)]) {
                Ok(true) => {}
                Ok(false) => {
                    let message = format!(
                        "the server's log from {} to {} of timeline {timeline} is not what is stored: it was set back and has gone another way since",
                        Lsn(piece.start),
                        Lsn(piece.end)
                    );
                    return Err(Error::new(Kind::SplitBrain, message).hint(
                        "nothing was stored and nothing was changed. If this server is the right one now, recover it so that it begins a timeline of its own, or give the source a new name; else let the url lead to the right one",
                    ));
                }
                // The whole unit will take its place.
                Err(error) if error.kind() == Kind::Damaged => tracing::warn!(error = ?error, "a piece of the log cannot be compared"),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn history(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.log.put_side(&Name::new(name)?, content).map(|_| ())
    }

    fn gap(&mut self, timeline: u32, from: Lsn, to: Lsn, reason: &str) -> Result<()> {
        let message = format!(
            "the log of source {} has a gap from {from} to {to} of timeline {timeline}: moments in it cannot be recovered. {reason}",
            self.source
        );
        let (stream, reason) = (u64::from(timeline), reason.to_owned());
        self.record(Gap { stream, from: from.0, to: to.0, reason, noticed_at: self.clock.now(), unreadable: false }, message)
    }

    fn unreadable(&mut self, timeline: u32, end: &End, to: Lsn) -> Result<()> {
        let gap = unreadable_gap(timeline, end, to, self.clock.now());
        if self.status.gaps.iter().any(|known| known.unreadable && (known.stream, known.from) == (gap.stream, gap.from)) {
            return Ok(());
        }
        let message = format!("the log of source {}: {}", self.source, gap.reason);
        self.record(gap, message)
    }

    fn state(&mut self, state: &StreamState) {
        let changed = self.status.connected != state.connected
            || self.status.error != state.error
            // Which happens as often as pieces are stored.
            || self.status.server_clock != state.server_clock;
        if state.connected {
            self.connected.set(true);
        }
        let status = &mut self.status;
        status.connected = state.connected;
        status.timeline = state.timeline;
        status.durable_to = state.durable_to;
        status.server_end = state.server_end;
        status.lag_bytes = state.server_end.since(state.durable_to);
        status.newest_commit = state.newest_commit;
        status.server_clock = state.server_clock;
        status.held_bytes = state.held_bytes;
        status.safe_bytes = state.safe_bytes;
        status.wal_status.clone_from(&state.wal_status);
        status.error.clone_from(&state.error);
        self.note(changed);
    }
}

/// Pieces that another one contains, with that one. Pure.
fn subsumed(pieces: &[PieceInfo]) -> Vec<(PieceInfo, PieceInfo)> {
    let mut sorted = pieces.to_vec();
    sorted.sort_unstable_by_key(|piece| (piece.stream, piece.start, std::cmp::Reverse(piece.end)));
    let mut cover: Option<PieceInfo> = None;
    let mut found = Vec::new();
    for piece in sorted {
        match cover {
            Some(by) if by.stream == piece.stream && piece.end <= by.end => found.push((piece, by)),
            _ => cover = Some(piece),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_looked_at_while_it_streams() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let secret = folder.path().join("passphrase");
        std::fs::write(&secret, "correct horse battery staple").unwrap();
        std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let text = format!(
            "version = 1\n[repository.main]\nurl = \"file://{path}/main\"\npassphrase = {{ file = \"{path}/passphrase\" }}\n\
             [source.db]\nkind = \"postgres\"\nurl = {{ env = \"URL\" }}\nlog = \"stream\"\n[plan.crm]\nsource = \"db\"\nrepository = \"main\"\n"
        );
        let plans = plan::Plans::from_text(&text).unwrap_or_else(|errors| panic!("{errors}"));
        let plan = plans.plans.values().next().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let surroundings = Surroundings {
            state: folder.path().join("state"),
            runtime: runtime.handle().clone(),
            clock: Arc::new(crate::clock::SystemClock),
            progress: Arc::new(crate::event::Silent),
            cancel: crate::event::Cancel::default(),
            gate: crate::ops::CommitGate::default(),
        };
        let place = || resolve::repository(&plan.repository).unwrap();
        crate::ops::init::run(&place(), &surroundings).unwrap();
        let open = || place().open(&surroundings).unwrap();
        let connected = Cell::new(true);
        let mut sink = Sink::new(plan, &plan.sources[0], (place(), open()), "slot", folder.path(), &surroundings, &connected).unwrap();
        sink.known().unwrap();
        let mut at = 0;
        let mut store = |sink: &mut Sink<'_>, minutes: u64| {
            sink.keys_at = sink.keys_at.and_then(|at| at.checked_sub(Duration::from_mins(minutes)));
            let (start, end) = (Lsn(at), Lsn(at + 4));
            at += 4;
            let facts = PieceFacts {
                system_identifier: "1".into(),
                timeline: 1,
                segment_bytes: 1 << 20,
                first_commit: None,
                last_commit: None,
                restore_points: Vec::new(),
                server_clock: None,
                valid_to: end,
            };
            sink.piece(&LogPiece { timeline: 1, start, end, bytes: b"wals", facts: &facts, replaces: false })
        };
        store(&mut sink, 0).unwrap();
        open().make_plan_key(&plan.name, Utc::now()).unwrap();
        store(&mut sink, 0).unwrap();
        store(&mut sink, 1).unwrap();
        store(&mut sink, 0).unwrap();
        open().erase_plan(&plan.name, Utc::now()).unwrap();
        let error = store(&mut sink, 1).unwrap_err();
        assert_eq!(error.kind(), Kind::WrongKey, "{error:?}");
        assert_eq!(store(&mut sink, 0).unwrap_err().kind(), Kind::WrongKey, "until somebody decides");
        assert_eq!(sink.known().unwrap_err().kind(), Kind::WrongKey);
        // What was sealed before the key was there stays readable, what came after went with it.
        let log = open().log(&plan.name, &plan.sources[0].name);
        let read: Vec<bool> = log.pieces().unwrap().iter().map(|piece| log.read(piece).is_ok()).collect();
        assert_eq!(read, [true, true, false, false]);
        open().make_plan_key(&plan.name, Utc::now()).unwrap();
        store(&mut sink, 0).unwrap();
        let log = open().log(&plan.name, &plan.sources[0].name);
        assert!(log.read(log.pieces().unwrap().last().unwrap()).is_ok());
    }

    #[test]
    fn what_a_larger_piece_contains_is_found() {
        let piece = |stream, start, end| PieceInfo { stream, start, end, size: 1 };
        let pieces = [piece(1, 0, 16), piece(1, 16, 20), piece(1, 16, 32), piece(1, 20, 25), piece(1, 30, 33), piece(2, 16, 20)];
        assert_eq!(subsumed(&pieces), [(piece(1, 16, 20), piece(1, 16, 32)), (piece(1, 20, 25), piece(1, 16, 32))]);
    }
}
