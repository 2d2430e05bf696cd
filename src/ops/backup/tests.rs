use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::clock::SystemClock;
use crate::entry::Entry;
use crate::event::{Cancel, Silent};
use crate::ops::{CommitGate, DrillSettings, Objectives};
use crate::repo::{Log, OpenOptions, Passphrase, Repository};
use crate::source::{CheckResult, Closed, Diagnosis, ProveRequest, Source, SourceContext};
use crate::store::Store;

/// A server whose snapshot is an empty folder, with a log that begins and ends at these timelines and positions.
struct Server {
    start: (u32, u64),
    end: (u32, u64),
    /// While it is read.
    meanwhile: Arc<dyn Fn() + Send + Sync>,
}

impl Source for Server {
    fn kind(&self) -> &'static str {
        "postgres"
    }
    fn diagnose(&self) -> Vec<Diagnosis> {
        Vec::new()
    }
    fn begin(&self, _context: &SourceContext) -> Result<Box<dyn SourceSnapshot>> {
        Ok(Box::new(Reading { start: self.start, end: self.end, meanwhile: Arc::clone(&self.meanwhile), read: false }))
    }
    fn adopt(&self, _restored: &Path, _context: &SourceContext) -> Result<PathBuf> {
        Err(Error::new(Kind::Bug, "not restored"))
    }
    fn prove(
        &self,
        _restored: &Path,
        _request: &ProveRequest,
        _context: &SourceContext,
        _usable: &mut dyn FnMut(),
    ) -> Result<Vec<CheckResult>> {
        Err(Error::new(Kind::Bug, "not proven"))
    }
}

struct Reading {
    start: (u32, u64),
    end: (u32, u64),
    meanwhile: Arc<dyn Fn() + Send + Sync>,
    read: bool,
}

impl SourceSnapshot for Reading {
    fn estimate(&self) -> Option<(u64, u64)> {
        None
    }
    fn log_position(&self) -> Option<(u32, u64)> {
        Some(self.start)
    }
    fn next_entry(&mut self) -> Result<Option<Entry>> {
        if std::mem::replace(&mut self.read, true) {
            return Ok(None);
        }
        (self.meanwhile)();
        let (path, stamp, xattrs) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Some(Entry { path, kind: EntryKind::Directory, mode: 0o700, uid: 0, gid: 0, mtime_ns: 0, stamp, xattrs }))
    }
    fn open(&mut self, _entry: &Entry) -> Result<Option<Box<dyn Read + Send>>> {
        Ok(None)
    }
    fn close(&mut self, _entry: &Entry, _bytes_read: u64) -> Result<Closed> {
        Ok(Closed::SOUND)
    }
    fn unread(&mut self, _entry: &Entry, error: Error) -> Result<()> {
        Err(error)
    }
    fn finish(self: Box<Self>) -> Result<Finish> {
        let (timeline, end) = self.end;
        let consistency = json!({
            "system_identifier": "7", "timeline": timeline, "start_timeline": self.start.0, "start_lsn": Lsn(self.start.1),
            "stop_lsn": Lsn(end - 0x10), "lsn": Lsn(end), "restore_point": null,
        });
        Ok(Finish { consistency, ..Finish::default() })
    }
}

fn backed_up(start: (u32, u64), end: (u32, u64), history: Option<&'static [u8]>, stored_before: bool) -> (Result<BackupReport>, usize) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (store, passphrase) = (Store::in_memory(), Passphrase::new("correct horse battery staple"));
    let options = OpenOptions { cache: None, workers: 1 };
    Repository::init(store.clone(), runtime.handle().clone(), &passphrase, &options, Utc::now()).unwrap();
    let repository = Repository::open(store, runtime.handle().clone(), &passphrase, &options).unwrap();
    let (plan, source) = (Name::new("crm").unwrap(), Name::new("database").unwrap());
    let log = repository.log(&plan, &source);
    let store_history = move |log: &Log| {
        if let Some(history) = history {
            log.put_side(&Name::new("00000002.history").unwrap(), history).unwrap();
        }
    };
    let meanwhile: Arc<dyn Fn() + Send + Sync> = if stored_before {
        store_history(&log);
        Arc::new(|| {})
    } else {
        Arc::new(move || store_history(&log))
    };
    let job = Job {
        plan: plan.clone(),
        tags: Vec::new(),
        sources: vec![NamedSource { name: source, source: Arc::new(Server { start, end, meanwhile }), restores_folder: false }],
        repository: repository.clone(),
        work: folder.path().join("work"),
        host: "test".into(),
        objectives: Objectives::default(),
        drill: DrillSettings::default(),
        clock: Arc::new(SystemClock),
        progress: Arc::new(Silent),
        cancel: Cancel::default(),
        gate: CommitGate::default(),
    };
    let report = run(&job);
    (report, repository.manifests(Some(&plan)).unwrap().len())
}

#[test]
fn a_server_that_is_left_behind_while_it_is_backed_up_has_no_snapshot() {
    let two: Option<&'static [u8]> = Some(b"1\t0/500\tx\n");
    // The failover happens, or is heard of, during the backup; or it begins before where it was left, as on a standby of the old primary.
    for (start, stored_before) in [(0x300, false), (0x300, true), (0x510, false)] {
        let (report, snapshots) = backed_up((1, start), (1, 0x600), two, stored_before);
        let error = report.unwrap_err();
        assert_eq!((error.kind(), snapshots), (Kind::SplitBrain, 0), "{error:?}");
        assert!(error.to_string().contains("branched off timeline 1 at 0/500"), "{error}");
    }
    // Up to there it is what both have, and on the new timeline it is the way.
    for (start, end) in [((1, 0x300), (1, 0x500)), ((1, 0x300), (2, 0x600)), ((2, 0x510), (2, 0x600))] {
        for stored_before in [false, true] {
            let (report, snapshots) = backed_up(start, end, two, stored_before);
            assert_eq!(snapshots, 1, "{:?}", report.unwrap());
        }
    }
    assert_eq!(backed_up((1, 0x300), (1, 0x600), None, false).1, 1);
}
