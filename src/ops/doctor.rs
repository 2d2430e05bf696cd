//! Doctor: looks at everything a run needs before it runs, and changes nothing (but for probe objects it removes again).

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::id::Name;
use crate::ops::log::fork;
use crate::ops::resolve::{CopyPlace, RepositorySettings, Resolved, Surroundings};
use crate::ops::restore::free_bytes;
use crate::ops::work::{make_missing, make_private, remove_tree, write_private};
use crate::ops::{NamedSource, backup, counted, explain, key_age, select};
use crate::repo::{Manifest, Repository, Role};
use crate::source::Diagnosis;
use crate::source::postgres::instance::Account;
use crate::source::postgres::lsn::Lsn;
use crate::store::{Probe, Store, is_for_want_of_rights};

/// `lifeboat.doctor/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorReport {
    pub schema: String,
    pub plan: String,
    pub checks: Vec<Diagnosis>,
    pub ok: bool,
    /// The word of the most telling failure's kind (`no-repository`, `wrong-key`, …).
    pub exit: Option<String>,
}

impl DoctorReport {
    /// How the process should end: `None` is exit 0.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        let word = self.exit.as_deref()?;
        Some(
            [Kind::NoRepository, Kind::WrongKey, Kind::Unavailable, Kind::NoSpace, Kind::Damaged, Kind::SplitBrain, Kind::Usage]
                .into_iter()
                .find(|k| k.word() == word)
                .unwrap_or(Kind::Failed),
        )
    }
}

/// How far a clock may be from the store's before it is told.
const CLOCK_TOLERANCE_SECS: i64 = 300;

/// Examines one plan, whose jobs that begin by themselves are `scheduled` (words of [`JOBS`](crate::plan::JOBS)). Never fails as such:
/// what is wrong is in the report.
#[must_use]
pub fn run(resolved: &Resolved, scheduled: &[&str], surroundings: &Surroundings) -> DoctorReport {
    let mut findings = Findings::default();
    state_folder(&mut findings, resolved, surroundings);
    if store(&mut findings, resolved, scheduled, surroundings) {
        object_lock(&mut findings, "object lock", &resolved.repository, surroundings);
    }
    let repository = repository(&mut findings, resolved, surroundings);
    for source in &resolved.sources {
        for mut diagnosis in source.source.diagnose() {
            diagnosis.name = format!("source {}: {}", source.name, diagnosis.name);
            findings.add(diagnosis, Kind::Usage);
        }
        if !source.source.keeps_content() {
            way_for_servers(&mut findings, &source.name, &resolved.work(surroundings));
        }
    }
    for place in &resolved.copies {
        copy(&mut findings, place, (&resolved.plan, scheduled), repository.as_ref(), surroundings);
    }
    if let Some(repository) = repository {
        keys(&mut findings, &repository, resolved, surroundings);
        let manifests = snapshots(&mut findings, &repository, resolved, surroundings);
        locked(&mut findings, "locked objects", &repository, &resolved.plan, surroundings);
        for source in &resolved.sources {
            same_as_before(&mut findings, source, &manifests);
            timeline(&mut findings, &repository, &resolved.plan, source);
        }
    }
    findings.report(resolved.plan.to_string())
}

/// What was found, and the kind of each thing that is wrong.
#[derive(Default)]
struct Findings {
    checks: Vec<Diagnosis>,
    kinds: Vec<Kind>,
}

impl Findings {
    fn add(&mut self, diagnosis: Diagnosis, kind_if_wrong: Kind) {
        if !diagnosis.ok {
            self.kinds.push(kind_if_wrong);
        }
        self.checks.push(diagnosis);
    }

    fn good(&mut self, name: &str, message: impl Into<String>) {
        self.checks.push(Diagnosis { name: name.into(), ok: true, message: message.into() });
    }

    fn wrong(&mut self, name: &str, kind: Kind, message: impl Into<String>) {
        self.add(Diagnosis { name: name.into(), ok: false, message: message.into() }, kind);
    }

    fn error(&mut self, name: &str, error: &Error) {
        let hint = error.hint_text().map(|hint| format!(" ({hint})")).unwrap_or_default();
        self.wrong(name, error.kind(), format!("{}{hint}", explain(error)));
    }

    /// The kind that tells an operator most comes first.
    fn report(self, plan: String) -> DoctorReport {
        let rank = |kind: &Kind| match kind {
            Kind::NoRepository => 0,
            Kind::WrongKey => 1,
            Kind::Damaged => 2,
            Kind::Unavailable => 3,
            Kind::NoSpace => 4,
            Kind::SplitBrain => 5,
            Kind::Usage => 6,
            _ => 7,
        };
        let exit = self.kinds.into_iter().min_by_key(rank).map(|kind| kind.word().to_owned());
        DoctorReport { schema: "lifeboat.doctor/1".into(), plan, ok: exit.is_none(), checks: self.checks, exit }
    }
}

fn state_folder(findings: &mut Findings, resolved: &Resolved, surroundings: &Surroundings) {
    let work = resolved.work(surroundings);
    let probe = work.join("doctor");
    let tried = make_missing(&surroundings.state)
        .and_then(|()| make_private(&work))
        .and_then(|()| write_private(&probe, b"x"))
        .and_then(|()| remove_tree(&probe));
    match tried {
        Ok(()) => findings.good("state folder", format!("{} is writable", surroundings.state.display())),
        Err(error) => findings.error("state folder", &error),
    }
}

/// Whether what is there now is what the snapshots are of: a backup of anything else is refused.
fn same_as_before(findings: &mut Findings, source: &NamedSource, manifests: &[Manifest]) {
    let name = format!("source {}: same as before", source.name);
    let (field, now) = match source.source.belongs() {
        Ok(Some(told)) => told,
        Ok(None) => return,
        Err(error) => return findings.error(&name, &error),
    };
    match backup::same_as_before(&source.name, (field, &now), manifests) {
        Ok(()) => findings.good(&name, format!("{} {now}", field.replace('_', " "))),
        Err(error) => findings.error(&name, &error),
    }
}

/// Whether the server is on the way that the stored log goes on: backups and the log of one that a failover left behind are refused.
fn timeline(findings: &mut Findings, repository: &Repository, plan: &Name, source: &NamedSource) {
    let name = format!("source {}: timeline", source.name);
    let (timeline, position) = match source.source.log_position() {
        Ok(Some(position)) => position,
        Ok(None) => return,
        Err(error) => return findings.error(&name, &error),
    };
    let log = repository.log(plan, &source.name);
    match fork::newest(&log).and_then(|newest| fork::left_behind(&log, newest, "the server", timeline, Lsn(position))) {
        Ok(()) => findings.good(&name, format!("timeline {timeline} leads on from the stored log")),
        Err(error) => findings.error(&name, &error),
    }
}

/// Whether the user that a private server runs as can come to where drills and `restore --only` work.
fn way_for_servers(findings: &mut Findings, source: &Name, work: &Path) {
    let name = format!("source {source}: way for drills");
    // What is below `work` is opened when a server is to be started there.
    let works = work.parent().unwrap_or(work);
    match Account::choose(works).and_then(|account| account.can_reach(works).map(|()| account)) {
        Ok(account) => findings.good(&name, format!("user {} may enter the state folder", account.uid)),
        Err(error) => findings.error(&name, &error),
    }
}

/// Whether copies can be made there, and used.
fn copy(
    findings: &mut Findings,
    place: &CopyPlace,
    (plan, scheduled): (&Name, &[&str]),
    own: Option<&Repository>,
    surroundings: &Surroundings,
) {
    let name = format!("copy to {}", place.name());
    let tried = place.settings().and_then(|settings| Ok((tried(&settings.open_store()?, surroundings)?, settings)));
    if let Ok((Some(_), settings)) = &tried {
        object_lock(findings, &format!("{name}: object lock"), settings, surroundings);
    }
    let opened = tried.and_then(|(probe, settings)| {
        let repository = settings.open(surroundings)?;
        settings.must_belong(&repository, surroundings)?;
        Ok((repository, probe, settings.store.single_writer))
    });
    let (repository, probe, single_writer) = match opened {
        Ok(opened) => opened,
        Err(error) => return findings.error(&name, &error),
    };
    let may_write = probe.is_some();
    if let Some(probe) = probe.filter(|probe| !probe.is_safe() && !single_writer) {
        let what = format!("the store does not do what a repository needs: {}", probe.to_string().replace('\n', "; "));
        return findings.wrong(&name, Kind::Usage, what);
    }
    if own.is_some_and(|own| own.id() == repository.id()) {
        return findings.wrong(
            &name,
            Kind::Usage,
            "it is the plan's own repository under another address: a loss of it would be a loss of both",
        );
    }
    locked(findings, &format!("{name}: locked objects"), &repository, plan, surroundings);
    if !may_write {
        return read_only(findings, &name, place_of(&repository), &["copy"], scheduled);
    }
    match (repository.role(), own.map(Repository::role)) {
        (Role::Maintainer, _) => {
            findings.wrong(&name, Kind::WrongKey, "the passphrase opens a maintainer key slot: nothing can be copied with it");
        }
        (_, Some(Role::Writer | Role::Maintainer)) => findings.wrong(
            &name,
            Kind::WrongKey,
            "a copy reads the plan's own repository, and the passphrase of that one is no reader's: copy on a machine that has a reader's",
        ),
        (Role::Writer, _) => findings
            .good(&name, format!("{} opens; the key is a writer's: copies are made, a restore needs a reader's", place_of(&repository))),
        (Role::Reader, _) => findings.good(&name, format!("{} opens", place_of(&repository))),
    }
}

fn place_of(repository: &Repository) -> &str {
    repository.store().describe()
}

/// What the place does; `None`: these credentials may read and not write there, as those of a machine that only restores.
fn tried(store: &Store, surroundings: &Surroundings) -> Result<Option<Probe>> {
    match surroundings.runtime.block_on(store.probe()) {
        // Wrong credentials may not read either.
        Err(error) if is_for_want_of_rights(&error) && surroundings.runtime.block_on(store.list("keys")).is_ok() => Ok(None),
        probe => probe.map(Some),
    }
}

/// A machine whose credentials may only read is in order, unless one of the `jobs` that write begins there by itself.
fn read_only(findings: &mut Findings, name: &str, place: &str, jobs: &[&str], scheduled: &[&str]) {
    let told = format!(
        "{place} can be read, and these credentials may not write there: fit for restores, and for drills and verifications where they may \
         write reports. What the store does with what is written was not tried"
    );
    let needed: Vec<&str> = jobs.iter().copied().filter(|job| scheduled.contains(job)).collect();
    if needed.is_empty() {
        findings.good(name, told);
    } else {
        findings.wrong(name, Kind::Failed, format!("{told}; but the plan has a schedule for what must write ({})", needed.join(", ")));
    }
}

/// `false`: nothing more is to be tried by writing.
fn store(findings: &mut Findings, resolved: &Resolved, scheduled: &[&str], surroundings: &Surroundings) -> bool {
    let store = match resolved.repository.open_store() {
        Ok(store) => store,
        Err(error) => {
            findings.error("store", &error);
            return true;
        }
    };
    let single_writer = resolved.repository.store.single_writer;
    match tried(&store, surroundings) {
        Ok(None) => {
            read_only(findings, "store", store.describe(), &["backup", "prune"], scheduled);
            return false;
        }
        Ok(Some(probe)) if probe.is_safe() => {
            findings.good(
                "store",
                format!("{} keeps its promises (a small create took {} ms)", store.describe(), probe.create_took.as_millis()),
            );
        }
        Ok(Some(probe)) if single_writer && probe.read_after_write && probe.list_after_write && probe.range_reads => {
            findings.good("store", format!("{} ignores conditional create; the plan says there is a single writer", store.describe()));
        }
        Ok(Some(probe)) => findings.wrong(
            "store",
            Kind::Usage,
            format!("{} does not do what a repository needs: {}", store.describe(), probe.to_string().replace('\n', "; ")),
        ),
        Err(error) => findings.error("store", &error),
    }
    true
}

/// What the bucket does about locks, where the plan asks for them.
fn object_lock(findings: &mut Findings, name: &str, settings: &RepositorySettings, surroundings: &Surroundings) {
    let Some(lock) = &settings.store.object_lock else { return };
    match settings.open_store().and_then(|store| surroundings.runtime.block_on(store.probe_lock())) {
        Ok(probe) if probe.enforces(lock.mode) => findings.good(name, probe.to_string()),
        Ok(probe) => findings.wrong(
            name,
            Kind::Usage,
            format!("the plan asks for locks in {} mode, and the bucket does not enforce it: {probe}", lock.mode.word()),
        ),
        Err(error) => findings.error(name, &error),
    }
}

/// Whether what the plan's snapshots need is locked now, by a few objects of the oldest, the newest and one between.
fn locked(findings: &mut Findings, name: &str, repository: &Repository, plan: &Name, surroundings: &Surroundings) {
    if repository.store().object_lock().is_none() {
        return;
    }
    let sample = repository.sound_manifests(Some(plan)).and_then(|(manifests, _)| {
        let mut some: Vec<&Manifest> =
            [0, manifests.len() / 2, manifests.len().saturating_sub(1)].iter().filter_map(|at| manifests.get(*at)).collect();
        some.dedup_by_key(|manifest| manifest.id);
        repository.sample_locks(&some, true, surroundings.clock.now())
    });
    match sample {
        Ok(Some(sample)) => match sample.told() {
            Some(told) => findings.wrong(
                name,
                Kind::Failed,
                format!("{told} (`lifeboat prune` or a backup moves them on now; see to it that one runs in time)"),
            ),
            None if sample.until.is_empty() => {}
            None => {
                let dates: Vec<String> =
                    sample.until.iter().map(|(class, until)| format!("{} ({class})", select::moment(*until))).collect();
                findings.good(name, format!("{}, locked until {} at least", counted(sample.looked, "object"), dates.join(", ")));
            }
        },
        Ok(None) => {}
        Err(error) => findings.error(name, &error),
    }
}

fn repository(findings: &mut Findings, resolved: &Resolved, surroundings: &Surroundings) -> Option<Repository> {
    match resolved.repository.open(surroundings) {
        Ok(repository) => {
            let role = match repository.role() {
                Role::Reader => "reader: backs up, restores and drills",
                Role::Writer => "writer: backs up; cannot restore or drill, keep a reader's key elsewhere",
                Role::Maintainer => "maintainer: verifies and prunes; cannot back up or restore",
            };
            match resolved.repository.must_belong(&repository, surroundings) {
                Ok(()) => findings.good("repository", format!("{} opens", hex::encode(repository.id().0))),
                Err(error) => findings.error("repository", &error),
            }
            match repository.may_write(&resolved.plan) {
                _ if repository.role() == Role::Maintainer => findings.wrong("key", Kind::WrongKey, role),
                // The next backup would be refused.
                Err(error) => findings.error("key", &error),
                Ok(()) => findings.good("key", role),
            }
            Some(repository)
        }
        Err(error) => {
            findings.error("repository", &error);
            None
        }
    }
}

/// Whether key slots are older than the plan files want them.
fn keys(findings: &mut Findings, repository: &Repository, resolved: &Resolved, surroundings: &Surroundings) {
    let Some(most) = resolved.repository.max_key_age else { return };
    let name = resolved.repository.name.as_ref().map_or_else(String::new, ToString::to_string);
    match repository.key_slots() {
        Ok(slots) => {
            let aged = key_age::aged(&name, &slots, most, surroundings.clock.now());
            if aged.is_empty() {
                findings.good("key age", format!("none of {} is too old", counted(slots.len(), "key slot")));
            }
            for aged in aged {
                findings.add(Diagnosis { name: "key age".into(), ok: !aged.over, message: aged.message }, Kind::Failed);
            }
        }
        Err(error) => findings.error("key age", &error),
    }
}

/// Those whose manifests can be read.
fn snapshots(findings: &mut Findings, repository: &Repository, resolved: &Resolved, surroundings: &Surroundings) -> Vec<Manifest> {
    match repository.sound_manifests(Some(&resolved.plan)) {
        Ok((manifests, damaged)) => {
            for lost in &damaged {
                findings.error("manifest", &lost.error);
            }
            let readable: Vec<Manifest> =
                manifests.iter().filter(|manifest| repository.destroyed_at(manifest).is_none()).cloned().collect();
            if readable.len() < manifests.len() {
                let destroyed = counted(manifests.len() - readable.len(), "snapshot");
                findings.good("destroyed", format!("the key of {destroyed} was destroyed: nobody can restore them"));
            }
            clock_and_room(findings, repository, &readable, surroundings);
            manifests
        }
        Err(error) => {
            findings.error("snapshots", &error);
            Vec::new()
        }
    }
}

/// What the snapshots say about clock and room.
fn clock_and_room(findings: &mut Findings, repository: &Repository, manifests: &[Manifest], surroundings: &Surroundings) {
    let now = surroundings.clock.now();
    let Some(latest) = select::latest(manifests) else {
        return findings.good("snapshots", "none yet: run `lifeboat backup`");
    };
    findings.good("snapshots", format!("{}, the latest is {}", manifests.len(), select::describe(latest)));
    match manifests.iter().map(|m| m.time).max().filter(|newest| (*newest - now).num_seconds() > CLOCK_TOLERANCE_SECS) {
        Some(newest) => findings.wrong(
            "clock",
            Kind::Failed,
            format!(
                "it says {}, but a snapshot is of {}: set this host's clock (NTP), or find the host whose clock was wrong",
                select::moment(now),
                select::moment(newest)
            ),
        ),
        None => findings.good("clock", select::moment(now)),
    }
    if repository.require_reader("drill").is_err() {
        return findings.good("room for a drill", "not looked at: this key cannot drill");
    }
    let needed: u64 = latest.sources.iter().map(|s| s.bytes).sum();
    match free_bytes(&surroundings.state) {
        Ok(free) if free > needed => findings.good("room for a drill", format!("{needed} bytes are needed, {free} are free")),
        Ok(free) => findings.wrong(
            "room for a drill",
            Kind::NoSpace,
            format!(
                "{needed} bytes are needed at {}, {free} are free: free some, or use --state on a larger file system",
                surroundings.state.display()
            ),
        ),
        Err(error) => findings.error("room for a drill", &error),
    }
}
