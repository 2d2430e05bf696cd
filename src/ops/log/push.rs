//! `archive_command`: one file of `pg_wal` into the log, and those that wait behind it beside.
//!
//! It returns only when the file is durable. Segments that the server has marked as ready are sent in the same run, several at a time, and
//! acknowledged in the state folder, so that the server's next calls return at once.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext, Kind, Result};
use crate::ops::backup::finish_of;
use crate::ops::log::archive::{AHEAD, Archive, Shelf, history_name, parse_any, stored_history, workers};
use crate::ops::log::fork;
use crate::ops::resolve::Surroundings;
use crate::repo::{Log, PieceInfo, Repository};
use crate::source::postgres::control::Control;
use crate::source::postgres::wal::{FactsReader, SegmentHeader, TimelineHistory, WalName};

/// Greatest piece of the repository.
const PIECE_MAX: usize = 128 << 20;
/// What to do about a timeline that another server began under the same number.
const TAKEN: &str = "another server began a timeline of this number: stop the one of the two that is wrong. Nothing that was stored has been changed. If this server is the right one, \
     let it begin one of the next number: `lifeboat log fetch` brings the stored history into its pg_wal (docs/postgresql.md, \"The old primary is the right one\")";
/// Greatest segment that a server can have.
const SEGMENT_MAX: u64 = 1 << 30;

/// `lifeboat.log-push/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushReport {
    pub schema: String,
    pub plan: String,
    pub source: String,
    pub name: String,
    pub outcome: Outcome,
    /// Further segments that were stored and acknowledged beside it.
    pub ahead: u64,
}

/// What became of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Stored,
    /// The same content was stored before.
    AlreadyThere,
    /// An earlier push stored it ahead of its turn.
    Acknowledged,
    /// Recovery never asks for it: the label of a base backup.
    NotNeeded,
}

/// A segment that was stored before its turn.
#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct Ack {
    place: String,
    name: String,
    system_identifier: String,
    /// BLAKE3 of the file.
    content: String,
}

/// Stores the file at `path`; its name says what it is.
///
/// # Errors
/// `Failed` for a file that is not what its name says, `SplitBrain` for one of another cluster, with other content than what is stored, or of a server that
/// was left behind by a failover; as the store says. Nothing was stored then, and the server must keep the file.
pub fn run(archive: &Archive, path: &Path, jobs: usize, surroundings: &Surroundings) -> Result<PushReport> {
    let within = |error: Error| error.within(format!("archive {}", path.display()));
    let report = |outcome, ahead| PushReport {
        schema: "lifeboat.log-push/1".into(),
        plan: archive.plan.to_string(),
        source: archive.source.to_string(),
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        outcome,
        ahead,
    };
    let item = Item::read(path).map_err(within)?;
    if let Content::Label = item.content {
        return Ok(report(Outcome::NotNeeded, 0));
    }
    let acks = archive.folder("acks")?;
    if let Content::Segment { .. } = item.content {
        let acknowledged = acks.get(&item.name).and_then(|bytes| serde_json::from_slice::<Ack>(&bytes).ok());
        // Used or wrong, it has served.
        acks.remove(&item.name);
        if acknowledged.is_some_and(|ack| item.ack(archive).is_some_and(|own| ack == own)) {
            return Ok(report(Outcome::Acknowledged, 0));
        }
    }
    acks.clear(false);
    let repository = archive.repository.open(surroundings)?;
    let log = repository.log(&archive.plan, &archive.source);
    let pieces = log.pieces()?;
    let target = Target {
        archive,
        cluster: known_cluster(&repository, archive, &log, &pieces)?,
        log: &log,
        pieces: &pieces,
        newest: fork::newest(&log)?,
    };
    let Content::Segment { header, .. } = &item.content else {
        let new = target.store(&item).map_err(within)?;
        return Ok(report(if new { Outcome::Stored } else { Outcome::AlreadyThere }, 0));
    };
    let workers = workers(jobs, header.segment);
    let waiting = Mutex::new(ready_behind(path, &item.name).into_iter().take(AHEAD).collect());
    let (new, ahead) = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..workers).map(|_| scope.spawn(|| target.store_ahead(&waiting, &acks, surroundings))).collect();
        let new = target.store(&item);
        if new.is_err() {
            // What waits behind it will be asked for again.
            waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        let mut ahead = target.store_ahead(&waiting, &acks, surroundings);
        for helper in helpers {
            ahead += helper.join().unwrap_or(0);
        }
        (new, ahead)
    });
    let new = new.map_err(within)?;
    Ok(report(if new { Outcome::Stored } else { Outcome::AlreadyThere }, ahead))
}

/// A file, read and found to be what its name says.
struct Item {
    name: String,
    path: PathBuf,
    bytes: Vec<u8>,
    content: Content,
}

enum Content {
    Segment {
        timeline: u32,
        header: SegmentHeader,
    },
    /// Only the valid part of it is log.
    Partial {
        timeline: u32,
        header: SegmentHeader,
    },
    History {
        history: TimelineHistory,
    },
    Label,
}

impl Item {
    fn read(path: &Path) -> Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let Some(parsed) = parse_any(&name) else {
            return Err(Error::new(Kind::Usage, format!("{name:?} is no name of a file of the log"))
                .hint("archive_command is to give the server's %p"));
        };
        let io = || format!("read {}", path.display());
        let size = fs::metadata(path).io_context(io)?.len();
        if size > SEGMENT_MAX {
            return Err(Error::new(Kind::Failed, format!("it has {size} bytes, more than any segment")));
        }
        let bytes = fs::read(path).io_context(io)?;
        let content = match parsed {
            WalName::Backup { .. } => Content::Label,
            WalName::History { timeline } => {
                let text = str::from_utf8(&bytes).map_err(|_| Error::new(Kind::Failed, "it is no text"))?;
                let history = TimelineHistory::parse(timeline, text)
                    .map_err(|e| Error::new(Kind::Failed, "it is no history of a timeline").because(e))?;
                Content::History { history }
            }
            WalName::Segment { .. } | WalName::Partial { .. } => segment(&name, &bytes)?,
        };
        Ok(Self { name, path: path.to_owned(), bytes, content })
    }

    /// What is to be on record when a whole segment is stored.
    fn ack(&self, archive: &Archive) -> Option<Ack> {
        let Content::Segment { header, .. } = &self.content else { return None };
        Some(Ack {
            place: archive.place(),
            name: self.name.clone(),
            system_identifier: header.system_identifier.to_string(),
            content: blake3::hash(&self.bytes).to_hex().to_string(),
        })
    }
}

fn segment(name: &str, bytes: &[u8]) -> Result<Content> {
    let header = SegmentHeader::read(bytes)?;
    let size = header.segment.bytes();
    if bytes.len() as u64 != u64::from(size) {
        return Err(Error::new(Kind::Failed, format!("it has {} bytes, and says that a segment has {size}", bytes.len())));
    }
    let (timeline, number, is_partial) = match WalName::parse(name, header.segment) {
        Some(WalName::Segment { timeline, number }) => (timeline, number, false),
        Some(WalName::Partial { timeline, number }) => (timeline, number, true),
        _ => return Err(Error::new(Kind::Failed, format!("a cluster with segments of {size} bytes has none of this name"))),
    };
    let start = header.segment.start(number);
    if header.position != start {
        return Err(Error::new(Kind::Failed, format!("it begins at {}, and its name says {start}", header.position)));
    }
    if header.timeline > timeline || header.timeline == 0 {
        return Err(Error::new(Kind::Failed, format!("it is of timeline {}, and its name says {timeline}", header.timeline)));
    }
    Ok(if is_partial { Content::Partial { timeline, header } } else { Content::Segment { timeline, header } })
}

/// The log that things are stored in.
struct Target<'a> {
    archive: &'a Archive,
    log: &'a Log,
    /// The cluster that it is of, where that is known.
    cluster: Option<String>,
    pieces: &'a [PieceInfo],
    /// The newest timeline whose history is stored.
    newest: Option<u32>,
}

impl Target<'_> {
    /// `false`: it was there.
    fn store(&self, item: &Item) -> Result<bool> {
        match &item.content {
            Content::Label => Ok(false),
            Content::History { history } => {
                if let Some(found) = cluster_beside(&item.path)? {
                    self.is_of(&found)?;
                }
                let new = self
                    .log
                    .put_side(&history_name(history.timeline())?, &item.bytes)
                    .map_err(|error| if error.kind() == Kind::SplitBrain { error.hint(TAKEN) } else { error })?;
                if new {
                    self.tell_forks(history);
                }
                Ok(new)
            }
            Content::Segment { timeline, header } => {
                self.may_be_stored(item, *timeline, header)?;
                let mut facts = FactsReader::new(header.position, header.segment, header.system_identifier)?;
                self.append(*timeline, &mut facts, &item.bytes)
            }
            Content::Partial { timeline, header } => {
                self.may_be_stored(item, *timeline, header)?;
                let reader = || FactsReader::new(header.position, header.segment, header.system_identifier);
                // What lies behind its last record was never part of this timeline.
                let valid = reader()?.take(*timeline, &item.bytes).valid_to.since(header.position);
                let valid = usize::try_from(valid).unwrap_or(usize::MAX).min(item.bytes.len());
                if valid == 0 {
                    return Ok(false);
                }
                self.append(*timeline, &mut reader()?, &item.bytes[..valid])
            }
        }
    }

    fn append(&self, timeline: u32, reader: &mut FactsReader, bytes: &[u8]) -> Result<bool> {
        let mut is_new = false;
        for part in bytes.chunks(PIECE_MAX) {
            let start = reader.position();
            let facts = reader.take(timeline, part);
            let facts =
                serde_json::to_value(facts).map_err(|error| Error::new(Kind::Bug, "encode the facts of a piece of log").because(error))?;
            // Streamed pieces of it stay: they know the server's clock, which a file does not.
            is_new |= self.log.append(u64::from(timeline), start.0, start.0 + part.len() as u64, &facts, part)?.new;
        }
        Ok(is_new)
    }

    fn is_of(&self, found: &str) -> Result<()> {
        match &self.cluster {
            Some(known) if known != found => Err(Error::new(
                Kind::SplitBrain,
                format!("it is of the cluster with system identifier {found}; source {} is of {known}", self.archive.source),
            )
            .hint(
                "another server archives under this plan, or the cluster was made anew: give each a source of its own. Nothing was stored",
            )),
            _ => Ok(()),
        }
    }

    /// Whether its cluster and timelines are right. The history of its timeline is stored before it.
    fn may_be_stored(&self, item: &Item, timeline: u32, header: &SegmentHeader) -> Result<()> {
        self.is_of(&header.system_identifier.to_string())?;
        fork::left_behind(self.log, self.newest, "it", timeline, header.position)?;
        let history = self.history(item, timeline)?;
        let expected = history.timeline_at(header.position);
        if header.timeline != expected {
            return Err(Error::new(
                Kind::Failed,
                format!("it begins on timeline {}; by the history of timeline {timeline} that must be {expected}", header.timeline),
            ));
        }
        Ok(())
    }

    /// A failover whose old primary went on: `status` tells it until there is a backup behind it, and the server's own log does now. Nothing of this may
    /// hold up the new primary.
    fn tell_forks(&self, history: &TimelineHistory) {
        match fork::forks(self.log, self.pieces, history) {
            Ok(forks) => {
                for fork::Fork { timeline, left_at, to, newest } in forks {
                    tracing::warn!(
                        "timeline {newest} left the way of timeline {timeline} at {left_at}, and log of that one is stored up to {to}: the old primary went on after the failover"
                    );
                }
            }
            Err(error) => tracing::warn!(?error, "whether the old primary went on after this failover is not known"),
        }
    }

    fn history(&self, item: &Item, timeline: u32) -> Result<TimelineHistory> {
        if timeline == 1 {
            return Ok(TimelineHistory::first(1));
        }
        if let Some(text) = stored_history(self.log, timeline)? {
            return TimelineHistory::parse(timeline, &text);
        }
        let name = history_name(timeline)?;
        let beside = item.path.with_file_name(name.as_str());
        let history = Item::read(&beside).map_err(|error| {
            Error::new(Kind::Failed, format!("the history of its timeline {timeline} is not stored, and not beside it"))
                .because(error)
                .hint(format!("push {name} first: without it nobody can recover onto this timeline"))
        })?;
        self.store(&history)?;
        match history.content {
            Content::History { history } => Ok(history),
            _ => Err(Error::new(Kind::Bug, "a history file was read as something else")),
        }
    }

    /// Stores and acknowledges what waits; what fails is left for its turn.
    fn store_ahead(&self, waiting: &Mutex<VecDeque<PathBuf>>, acks: &Shelf, surroundings: &Surroundings) -> u64 {
        let mut stored = 0;
        while !surroundings.cancel.is_cancelled() {
            let Some(path) = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else { break };
            let done = Item::read(&path).and_then(|item| {
                self.store(&item)?;
                let ack = item.ack(self.archive).ok_or_else(|| Error::new(Kind::Bug, "only whole segments are sent ahead"))?;
                let bytes = serde_json::to_vec(&ack).map_err(|error| Error::new(Kind::Bug, "encode an acknowledgement").because(error))?;
                acks.put(&item.name, &bytes)
            });
            match done {
                Ok(()) => stored += 1,
                Err(error) => tracing::warn!(path = %path.display(), ?error, "a segment that waits could not be sent ahead of its turn"),
            }
        }
        stored
    }
}

/// Whole segments behind this one that the server has marked as ready, in order.
fn ready_behind(path: &Path, name: &str) -> Vec<PathBuf> {
    let ready = |item: fs::DirEntry| {
        let file = item.file_name().to_str()?.strip_suffix(".ready")?.to_owned();
        let is_whole = matches!(parse_any(&file), Some(WalName::Segment { .. }));
        (is_whole && file.as_str() > name).then(|| path.with_file_name(file))
    };
    let status = path.with_file_name("archive_status");
    let mut found: Vec<PathBuf> = fs::read_dir(status).into_iter().flatten().flatten().filter_map(ready).collect();
    found.sort();
    found
}

/// The cluster whose data folder the file lies in; `None` where it lies elsewhere.
fn cluster_beside(path: &Path) -> Result<Option<String>> {
    // By the words of the path: pg_wal may be a link.
    let Some(data) = path.parent().and_then(Path::parent) else { return Ok(None) };
    let control = data.join("global/pg_control");
    let mut tries = 0;
    loop {
        let bytes = match fs::read(&control) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("read {}", control.display()), error)),
        };
        match Control::parse(&bytes) {
            Ok(control) => return Ok(Some(control.system_identifier.to_string())),
            // The server was writing it.
            Err(error) if error.kind() == Kind::Damaged && tries < 20 => tries += 1,
            Err(error) => return Err(error),
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// The cluster that the log is of: of its newest piece, else of the newest snapshot.
fn known_cluster(repository: &Repository, archive: &Archive, log: &Log, pieces: &[PieceInfo]) -> Result<Option<String>> {
    let identifier = |value: &serde_json::Value| value.get("system_identifier").and_then(|id| id.as_str()).map(str::to_owned);
    for piece in pieces.iter().rev() {
        match log.facts(piece) {
            Ok(facts) => match identifier(&facts) {
                Some(found) => return Ok(Some(found)),
                None => {
                    return Err(Error::new(Kind::Damaged, "a stored piece of log does not say which cluster it is of")
                        .hint("run `lifeboat verify`"));
                }
            },
            Err(error) if matches!(error.kind(), Kind::Damaged | Kind::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    let (manifests, _) = repository.sound_manifests(Some(&archive.plan))?;
    let of = |record: &crate::repo::SourceRecord| {
        (record.name == archive.source).then(|| finish_of(record).ok()).flatten().and_then(|finish| identifier(&finish.consistency))
    };
    Ok(manifests.iter().rev().flat_map(|manifest| &manifest.sources).find_map(of))
}
