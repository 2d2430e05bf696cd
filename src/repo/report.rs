//! Reports kept in the repository, sealed: drills and verifications. Drill reports are also signed by the reader role.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Context as _, Error, Kind, Result};
use crate::event::Cancel;
use crate::id::{ReportId, SnapshotId};
use crate::repo::Repository;
use crate::repo::format::ObjectKind;
use crate::repo::keys::{Keys, Role};

/// In the cache folder: the last run of each share of the data that was verified here (JSON, by percent).
const RUNS: &str = "runs.json";

/// Reports that are deleted at a time.
const DELETES: usize = 500;

/// What a report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReportKind {
    Drill,
    Verify,
}

/// A stored report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReportRecord {
    pub id: ReportId,
    pub kind: ReportKind,
    pub time: DateTime<Utc>,
    pub plan: Option<String>,
    /// Snapshots it speaks of.
    pub snapshots: Vec<SnapshotId>,
    pub passed: bool,
    /// The full document (`lifeboat.drill/1`, `lifeboat.verify/1`).
    pub document: serde_json::Value,
}

/// Content of a report object (JSON): the record as text, so that the signed bytes are these very bytes.
#[derive(Serialize, Deserialize)]
struct ReportObject {
    record: String,
    /// Hex Ed25519 signature of `record`; absent when the writer was no reader.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    signature: Option<String>,
}

impl Repository {
    /// The id of a report on what is looked at from now on: greater than that of each one that is there, whatever a clock says or said. So ids tell in
    /// which order reports were begun.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub fn new_report_id(&self, now: DateTime<Utc>) -> Result<ReportId> {
        let listed = self.inner.block_on(self.inner.store.list("reports/"))?;
        let ids = listed.iter().filter_map(|object| object.key["reports/".len()..].parse::<ReportId>().ok());
        Ok(ReportId::generate_after(now, ids.filter(|id| id.is_of_a_clock()).max()))
    }

    /// Stores a report, sealed, and signed when the role allows.
    ///
    /// # Errors
    /// `Unavailable` and the like.
    pub fn put_report(&self, report: &ReportRecord) -> Result<()> {
        let key = format!("reports/{}", report.id);
        let content = encode(&self.inner.keys, report)?;
        let sealed = self.inner.seal_object(ObjectKind::Report, &key, &content)?;
        self.inner.block_on(self.inner.store.create(&key, Bytes::from(sealed)))?;
        Ok(())
    }

    /// All reports of a kind, oldest first (by id).
    ///
    /// # Errors
    /// `Damaged` names the object that cannot be opened.
    pub fn reports(&self, kind: Option<ReportKind>) -> Result<Vec<ReportRecord>> {
        let mut reports: Vec<ReportRecord> = Vec::new();
        for (_, report) in self.listed_reports(&|report, _| kind.is_none_or(|kind| report.kind == kind).then_some(report))? {
            reports.extend(report?);
        }
        reports.sort_by_key(|r| r.id);
        Ok(reports)
    }

    /// Like [`Repository::reports`], but what is damaged does not hide what is sound: an error for each report that is.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub fn sound_reports(&self, kind: Option<ReportKind>) -> Result<(Vec<ReportRecord>, Vec<Error>)> {
        self.reports_where(|report, _| kind.is_none_or(|kind| report.kind == kind))
    }

    /// The same of all kinds, each as what `digest` makes of it as soon as it was read (in no order): so that memory does not follow what is not needed.
    ///
    /// # Errors
    /// As [`Repository::sound_reports`].
    pub fn sound_reports_as<T>(&self, digest: &dyn Fn(ReportRecord) -> T) -> Result<(Vec<T>, Vec<Error>)> {
        Self::sound_of(self.listed_reports(&|report, _| Some(digest(report)))?)
    }

    /// The same, but only what a reader has signed: whoever only writes cannot make these.
    ///
    /// # Errors
    /// As [`Repository::sound_reports`].
    pub fn signed_reports(&self, kind: ReportKind) -> Result<(Vec<ReportRecord>, Vec<Error>)> {
        self.reports_where(|report, is_signed| is_signed && report.kind == kind)
    }

    fn reports_where(&self, wanted: impl Fn(&ReportRecord, bool) -> bool) -> Result<(Vec<ReportRecord>, Vec<Error>)> {
        let (mut reports, damaged) =
            Self::sound_of(self.listed_reports(&|report, is_signed| wanted(&report, is_signed).then_some(report))?)?;
        reports.sort_by_key(|r| r.id);
        Ok((reports, damaged))
    }

    fn sound_of<T>(all: Vec<(String, Result<Option<T>>)>) -> Result<(Vec<T>, Vec<Error>)> {
        let (mut reports, mut damaged) = (Vec::new(), Vec::new());
        for (key, report) in all {
            match report {
                Ok(report) => reports.extend(report),
                Err(e) if matches!(e.kind(), Kind::Damaged | Kind::NotFound) => damaged.push(e.within(format!("read the report {key}"))),
                Err(e) => return Err(e.within(format!("read the report {key}"))),
            }
        }
        Ok((reports, damaged))
    }

    /// Each as what is made of it, and of whether a reader has signed it, as soon as it was read.
    fn listed_reports<T>(&self, take: &dyn Fn(ReportRecord, bool) -> Option<T>) -> Result<Vec<(String, Result<Option<T>>)>> {
        let listed = self.inner.block_on(self.inner.store.list("reports/"))?;
        let open = |key: &str, bytes: &[u8]| self.decode_report(key, bytes).map(|(report, is_signed)| take(report, is_signed));
        Ok(crate::repo::kept::open_all(&self.inner, "reports/", &listed, |_| true, open))
    }

    /// Deletes reports. Yields how many are gone, and of those that the store refused to delete how many and the first reason.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub fn delete_reports(&self, reports: &[ReportId], cancel: &Cancel) -> Result<(u64, u64, Option<Error>)> {
        let keys: Vec<String> = reports.iter().map(|id| format!("reports/{id}")).collect();
        let (mut deleted, mut refused, mut first) = (0, 0, None);
        for some in keys.chunks(DELETES) {
            cancel.check()?;
            for answer in self.inner.block_on(self.inner.store.delete_all(some)) {
                match answer {
                    Ok(()) => deleted += 1,
                    Err(error) if error.kind() == Kind::Failed => {
                        refused += 1;
                        first.get_or_insert(error);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok((deleted, refused, first))
    }

    /// Each as it is in the store now.
    pub(super) fn open_reports(&self) -> Result<Vec<(String, Result<ReportRecord>)>> {
        let inner = &self.inner;
        let listed = inner.block_on(inner.store.list("reports/"))?;
        let fetched = inner.get_all(listed.into_iter().map(|object| object.key));
        Ok(fetched
            .into_iter()
            .map(|(key, bytes)| {
                let report = bytes.and_then(|bytes| self.decode_report(&key, &bytes));
                (key, report.map(|(report, _)| report))
            })
            .collect())
    }

    fn decode_report(&self, key: &str, bytes: &[u8]) -> Result<(ReportRecord, bool)> {
        let inner = &self.inner;
        let content = crate::repo::seal::open(&inner.keys, inner.id, ObjectKind::Report, key, bytes)?;
        decode(&inner.keys, key, &content)
    }

    /// The last run of a share of the data that this machine has verified; `None`: none that it remembers.
    #[must_use]
    pub fn remembered_run(&self, percent: u8) -> Option<u64> {
        self.remembered_runs().get(&percent).copied()
    }

    fn remembered_runs(&self) -> BTreeMap<u8, u64> {
        std::fs::read(self.inner.cache.path.join(RUNS)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Remembers it; `false` when that is forgotten with this process.
    #[must_use]
    pub fn remember_run(&self, percent: u8, run: u64) -> bool {
        let folder = &self.inner.cache.path;
        let mut runs = self.remembered_runs();
        runs.insert(percent, run);
        // Whole or not at all: two processes may do this at once.
        let new = folder.join(format!("runs.{}", ulid::Ulid::generate()));
        let json = serde_json::to_vec(&runs).unwrap_or_default();
        let kept = std::fs::write(&new, json).and_then(|()| std::fs::rename(&new, folder.join(RUNS)));
        if let Err(error) = &kept {
            tracing::debug!(%error, "which share of the data was verified last was not remembered");
        }
        kept.is_ok() && !self.inner.cache.temporary
    }
}

/// The report of the object `key`, and whether a reader has signed it.
pub(super) fn decode(keys: &Keys, key: &str, content: &[u8]) -> Result<(ReportRecord, bool)> {
    let damaged = |what: &str| Error::new(Kind::Damaged, format!("object {key}: {what}"));
    let object: ReportObject = serde_json::from_slice(content).map_err(|e| damaged("cannot be decoded").because(e))?;
    let record: ReportRecord = serde_json::from_str(&object.record).map_err(|e| damaged("cannot be decoded").because(e))?;
    if key != format!("reports/{}", record.id) {
        return Err(damaged("holds another report than its name says"));
    }
    if let Some(signature) = &object.signature
        && keys.is_signed(object.record.as_bytes(), &hex::decode(signature).unwrap_or_default()) == Some(false)
    {
        return Err(damaged("its signature is not valid"));
    }
    if record.kind == ReportKind::Drill && object.signature.is_none() {
        return Err(damaged("is a drill report without a signature"));
    }
    Ok((record, object.signature.is_some()))
}

/// The content of the object of a report.
pub(super) fn encode(keys: &Keys, report: &ReportRecord) -> Result<Vec<u8>> {
    let record = serde_json::to_string(report).context(Kind::Bug, || "encode a report".into())?;
    let signature = match keys.role {
        Role::Reader => Some(keys.sign(record.as_bytes())?),
        Role::Writer | Role::Maintainer => None,
    };
    serde_json::to_vec(&ReportObject { record, signature }).context(Kind::Bug, || "encode a report".into())
}
