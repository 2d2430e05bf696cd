//! What the OpenAPI document says of the answers. The answers themselves are made where the command line takes them from; a test holds each
//! real one against what is said here.

#![expect(dead_code, clippy::struct_field_names, reason = "described, never built: the documents come from below, their names too")]

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

/// The kinds of work.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Job {
    Backup,
    Drill,
    Verify,
    Restore,
    Copy,
    Prune,
}

impl Job {
    pub fn word(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Drill => "drill",
            Self::Verify => "verify",
            Self::Restore => "restore",
            Self::Copy => "copy",
            Self::Prune => "prune",
        }
    }
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    Running,
    Succeeded,
    Incomplete,
    Failed,
    Interrupted,
    Missed,
}

impl State {
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::Missed => "missed",
        }
    }
}

/// `lifeboat.status/1`.
#[derive(ToSchema)]
pub(super) struct Status {
    schema: String,
    /// The moment that all of this is of.
    #[schema(format = DateTime)]
    time: String,
    daemon: bool,
    plans: Vec<PlanStatus>,
}

#[derive(ToSchema)]
struct PlanStatus {
    name: String,
    #[schema(format = DateTime)]
    last_success: Option<String>,
    /// The moment that the newest snapshot is of.
    #[schema(format = DateTime)]
    recovery_point: Option<String>,
    snapshots: u64,
    /// What a disaster now would lose.
    data_loss_ms: Option<u64>,
    data_loss_objective_ms: Option<u64>,
    /// As the last drill measured it.
    recovery_time_ms: Option<u64>,
    recovery_time_objective_ms: Option<u64>,
    #[schema(format = DateTime)]
    proven_at: Option<String>,
    #[schema(format = DateTime)]
    next_run: Option<String>,
    next_job: Option<String>,
    /// Ids of runs that go on.
    running: Vec<String>,
    repository_reachable: bool,
    problems: Vec<Problem>,
}

#[derive(ToSchema)]
struct Problem {
    kind: String,
    job: Option<String>,
    message: String,
}

/// `lifeboat.plans/1`.
#[derive(ToSchema)]
pub(super) struct Plans {
    schema: String,
    plans: Vec<ListedPlan>,
}

#[derive(ToSchema)]
struct ListedPlan {
    name: String,
    description: Option<String>,
    sources: Vec<PlanSource>,
    repository: String,
    schedule: Option<String>,
    timezone: Option<String>,
    objectives: Option<Value>,
    tags: Value,
}

#[derive(ToSchema)]
struct PlanSource {
    name: String,
    kind: String,
}

/// `lifeboat.plan/1`: the keys of a plan file, with what was left out filled in.
#[derive(ToSchema)]
pub(super) struct Plan {
    schema: String,
    name: String,
    sources: Vec<Value>,
    repository: Value,
    notify: Vec<Value>,
    drill: Value,
    verify: Value,
}

/// `lifeboat.runs/1`.
#[derive(ToSchema)]
pub(super) struct Runs {
    schema: String,
    runs: Vec<ListedRun>,
}

#[derive(ToSchema)]
struct ListedRun {
    id: String,
    plan: String,
    job: Job,
    trigger: String,
    by: Option<String>,
    #[schema(format = DateTime)]
    scheduled_at: Option<String>,
    attempt: u32,
    state: State,
    #[schema(format = DateTime)]
    started_at: String,
    #[schema(format = DateTime)]
    ended_at: Option<String>,
    duration_ms: Option<u64>,
    error: Option<RunError>,
    story: Option<String>,
    phases: Vec<Phase>,
    warnings: Vec<String>,
    bytes_read: Option<u64>,
    bytes_stored: Option<u64>,
    snapshot: Option<String>,
    report: Option<String>,
    /// The name of the node that had it, where machines share a journal; else the host's.
    node: String,
    host: String,
    pid: u32,
    earlier_attempts: Vec<Value>,
}

/// `lifeboat.run/1`.
#[derive(ToSchema)]
pub(super) struct Run {
    schema: String,
    #[serde(flatten)]
    run: ListedRun,
    /// While it goes on in this daemon.
    #[schema(required = false)]
    now: Option<RunNow>,
}

#[derive(ToSchema)]
struct RunNow {
    phase: Option<String>,
    /// Plain bytes moved so far.
    bytes: u64,
    /// Why it was asked to stop.
    stopping: Option<String>,
}

#[derive(ToSchema)]
struct RunError {
    kind: String,
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
}

#[derive(ToSchema)]
struct Phase {
    name: String,
    duration_ms: u64,
    bytes: u64,
}

/// `lifeboat.run-request/1`.
#[derive(ToSchema)]
pub(super) struct RunRequest {
    schema: String,
    /// The id under which the run is, or will be, in the journal.
    id: String,
    plan: String,
    job: Job,
    /// What it waits for; null: it has started.
    waits_for: Option<String>,
}

/// `lifeboat.cancel-request/1`.
#[derive(ToSchema)]
pub(super) struct CancelRequest {
    schema: String,
    id: String,
}

/// `lifeboat.snapshots/1`.
#[derive(ToSchema)]
pub(super) struct Snapshots {
    schema: String,
    snapshots: Vec<Snapshot>,
    recovery_ranges: Vec<RecoveryRange>,
    /// What cannot be read.
    damaged: Vec<String>,
}

#[derive(ToSchema)]
struct Snapshot {
    id: String,
    #[schema(format = DateTime)]
    time: String,
    plan: String,
    host: String,
    sources: Vec<Value>,
    bytes_source: u64,
    bytes_read: u64,
    bytes_stored: u64,
    problems: u64,
    #[schema(format = DateTime)]
    verified_at: Option<String>,
    #[schema(format = DateTime)]
    proven_at: Option<String>,
}

#[derive(ToSchema)]
struct RecoveryRange {
    plan: String,
    source: String,
    #[schema(format = DateTime)]
    from: String,
    #[schema(format = DateTime)]
    to: String,
    /// Any moment between the two, not only those of snapshots.
    continuous: bool,
    points: u64,
}

/// `lifeboat.drills/1`.
#[derive(ToSchema)]
pub(super) struct Drills {
    schema: String,
    drills: Vec<Drill>,
    damaged: Vec<String>,
}

/// `lifeboat.drill/1`.
#[derive(ToSchema)]
pub(super) struct Drill {
    schema: String,
    id: String,
    plan: String,
    host: String,
    snapshot: String,
    #[schema(format = DateTime)]
    time: String,
    /// `passed`, `failed` or `incomplete`.
    verdict: String,
    reasons: Vec<String>,
    recovery_time_ms: Option<u64>,
    data_loss_ms: Option<u64>,
    phases: Vec<Value>,
    checks: Vec<Value>,
    objectives: Vec<Value>,
    skipped: Vec<String>,
    cleanup: Value,
}
