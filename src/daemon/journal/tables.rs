//! The journal's tables and the statements on them, the same for all databases; those about many plans at once are in `bulk`.
//!
//! Each public method is one transaction. A run's row is changed only by who names its current fence: [`Tables::take_over`] raises it,
//! so that whatever the earlier holder still sends changes nothing.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::daemon::job::{Job, Trigger};
use crate::daemon::journal::bulk::mistyped;
use crate::daemon::journal::database::{Database, Purpose, Row, Statement, Value};
use crate::daemon::journal::model::{Attempt, Claim, Ending, Filter, NewRun, Run, Schedules, State};
use crate::daemon::owner::Process;
use crate::error::{Kind, Result};
use crate::id::{Name, RunId};

pub(super) const COLUMNS: &str = "id, plan, job, trigger, scheduled_ms, attempt, state, started_ms, ended_ms, kind, error, story, phases, warnings, bytes_read, bytes_stored, snapshot, report, owner, host, pid, boot_id, start_ticks, fence, lease_until_ms, node, started_by, announced, place";

/// Begins the job of a row of `schedules` that stands for one of a plan's copies; the repository follows.
pub(super) const COPY_TO: &str = "copy/";

/// What [`Tables::begin`] came to.
pub(super) enum Begun {
    Claimed(Claim),
    /// The slot has an attempt that succeeded, was missed, or goes on.
    SlotTaken,
    /// Another run of the plan and job is live.
    Live,
}

/// Who claims.
pub(super) struct Claimant<'a> {
    pub(super) owner: &'a str,
    pub(super) node: &'a str,
    pub(super) place: &'a str,
    pub(super) process: &'a Process,
    pub(super) lease: TimeDelta,
}

/// A node that is at work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub labels: Vec<String>,
    pub host: String,
    /// When it was last heard of, by the journal's clock.
    pub seen: DateTime<Utc>,
}

pub(super) struct Tables(pub(super) Box<dyn Database>);

impl Tables {
    pub(super) fn one(&self, purpose: Purpose, sql: impl Into<String>, values: Vec<Value>) -> Result<Vec<Row>> {
        self.0.run(purpose, &[Statement::new(sql, values)])
    }

    fn claim(&self, statement: Statement) -> Result<Vec<Row>> {
        let statements: Vec<Statement> = self.0.before_fence().into_iter().chain([statement]).collect();
        self.0.run(Purpose::WriteOnce, &statements)
    }

    /// Records a run before it starts, or a further attempt of its slot; the earlier attempt is kept beside it.
    pub(super) fn begin(&self, run: &NewRun, who: &Claimant<'_>, now: DateTime<Utc>) -> Result<Begun> {
        let scheduled = run.scheduled.map(|slot| slot.timestamp_millis());
        let again = "state IN ('failed', 'interrupted')";
        let mut statements: Vec<Statement> = self.0.before_fence().into_iter().collect();
        if scheduled.is_some() {
            statements.push(Statement::new(
                format!(
                    "INSERT INTO attempts (run, attempt, started_ms, ended_ms, state, kind, error, story)
                     SELECT id, attempt, started_ms, coalesce(ended_ms, started_ms), state, kind, error, story FROM runs
                     WHERE plan = $1 AND job = $2 AND scheduled_ms = $3 AND {again} ON CONFLICT DO NOTHING"
                ),
                vec![run.plan.as_str().into(), run.job.word().into(), scheduled.into()],
            ));
        }
        let (clock, fence) = (self.0.clock(now.timestamp_millis()), self.0.fence());
        let lease_ms = who.lease.num_milliseconds();
        let values = vec![
            run.id.to_string().into(),
            run.plan.as_str().into(),
            run.job.word().into(),
            run.trigger.word().into(),
            scheduled.into(),
            i64::from(run.job.is_exclusive()).into(),
            now.timestamp_millis().into(),
            who.node.into(),
            who.owner.into(),
            who.process.host.as_str().into(),
            i64::from(who.process.pid).into(),
            who.process.boot_id.as_str().into(),
            signed(who.process.start_ticks).into(),
            run.by.as_str().into(),
            who.place.into(),
            run.story.as_deref().into(),
        ];
        // Whoever tries a slot again names it by the id of its row, too.
        let further = |target: &&str| {
            format!(
                "ON CONFLICT ({target}) DO UPDATE SET trigger = excluded.trigger, attempt = runs.attempt + 1, state = 'running',
                    started_ms = excluded.started_ms, ended_ms = NULL, kind = NULL, error = NULL, story = excluded.story, phases = NULL, warnings = NULL,
                    bytes_read = NULL, bytes_stored = NULL, snapshot = NULL, report = NULL, announced = NULL, node = excluded.node,
                    owner = excluded.owner, host = excluded.host, pid = excluded.pid, boot_id = excluded.boot_id,
                    start_ticks = excluded.start_ticks, fence = {fence}, started_by = excluded.started_by, place = excluded.place,
                    lease_until_ms = {clock} + {lease_ms}
                 WHERE runs.{again}"
            )
        };
        let further: String = self.0.slot_conflicts().iter().map(further).collect::<Vec<String>>().join(" ");
        statements.push(Statement::new(
            format!(
                "INSERT INTO runs (id, plan, job, trigger, scheduled_ms, attempt, exclusive, state, started_ms, node, owner, host, pid,
                    boot_id, start_ticks, fence, started_by, place, story, lease_until_ms)
                 VALUES ($1, $2, $3, $4, $5, 1, $6, 'running', $7, $8, $9, $10, $11, $12, $13, {fence}, $14, $15, $16, {clock} + {lease_ms})
                 {further}
                 RETURNING id, attempt, fence"
            ),
            values,
        ));
        match self.0.run(Purpose::WriteOnce, &statements) {
            Ok(rows) => Ok(claim_of(rows)?.map_or(Begun::SlotTaken, Begun::Claimed)),
            Err(error) if error.kind() == Kind::AlreadyExists => Ok(Begun::Live),
            Err(error) => Err(error),
        }
    }

    /// Makes a broken run this process's, with a fence of its own; `None` when somebody else was quicker or it is no longer broken.
    pub(super) fn take_over(&self, run: &Run, who: &Claimant<'_>, now: DateTime<Utc>) -> Result<Option<Claim>> {
        let (clock, fence) = (self.0.clock(now.timestamp_millis()), self.0.fence());
        // On a shared database two nodes find it at once: the second passes by instead of waiting. And its holder may have come back.
        let shared = format!("AND (place = $2 OR {} = 1) FOR UPDATE SKIP LOCKED", self.0.lease_is_over());
        let shared = if self.0.is_shared() { shared.as_str() } else { "" };
        let rows = self.claim(Statement::new(
            format!(
                "UPDATE runs SET fence = {fence}, owner = $1, place = $2, lease_until_ms = {clock} + {}
                 WHERE id IN (SELECT id FROM runs WHERE id = $3 AND fence = $4 AND state = 'running' AND owner = $5 {shared})
                 RETURNING id, attempt, fence",
                who.lease.num_milliseconds()
            ),
            vec![who.owner.into(), who.place.into(), run.id.to_string().into(), signed(run.fence).into(), run.owner.as_str().into()],
        ))?;
        claim_of(rows)
    }

    /// Prolongs the lease; `false` when the claim is no longer the current one.
    pub(super) fn renew(&self, claim: Claim, lease: TimeDelta, now: DateTime<Utc>) -> Result<bool> {
        let clock = self.0.clock(now.timestamp_millis());
        let rows = self.one(
            Purpose::WriteAgain,
            format!(
                "UPDATE runs SET lease_until_ms = {clock} + {} WHERE id = $1 AND fence = $2 AND state = 'running' RETURNING id",
                lease.num_milliseconds()
            ),
            vec![claim.id.to_string().into(), signed(claim.fence).into()],
        )?;
        Ok(!rows.is_empty())
    }

    /// Lets the lease run out now, and the run be nobody's, so that others may take it over.
    pub(super) fn give_back(&self, claim: Claim, now: DateTime<Utc>) -> Result<()> {
        let clock = self.0.clock(now.timestamp_millis());
        self.one(
            Purpose::WriteAgain,
            format!("UPDATE runs SET lease_until_ms = {clock} - 1, owner = '' WHERE id = $1 AND fence = $2 AND state = 'running'"),
            vec![claim.id.to_string().into(), signed(claim.fence).into()],
        )
        .map(drop)
    }

    /// Notes the snapshot that the run is about to commit; `false` when the claim is no longer the current one.
    pub(super) fn announce(&self, claim: Claim, snapshot: &str, lease: TimeDelta, now: DateTime<Utc>) -> Result<bool> {
        let clock = self.0.clock(now.timestamp_millis());
        let rows = self.one(
            Purpose::WriteAgain,
            format!(
                "UPDATE runs SET announced = $1, lease_until_ms = {clock} + {}
                 WHERE id = $2 AND fence = $3 AND state = 'running' RETURNING id",
                lease.num_milliseconds()
            ),
            vec![snapshot.into(), claim.id.to_string().into(), signed(claim.fence).into()],
        )?;
        Ok(!rows.is_empty())
    }

    /// Closes a run; `false` when the claim is no longer the current one.
    pub(super) fn end(&self, id: RunId, fence: u64, ending: &Ending, now: DateTime<Utc>) -> Result<bool> {
        let greatest = self.0.greatest();
        let rows = self.one(
            Purpose::WriteAgain,
            format!(
                "UPDATE runs SET state = $1, ended_ms = {greatest}($2, started_ms), kind = $3, error = $4,
                    story = coalesce(story || '; ' || CAST($5 AS text), CAST($5 AS text), story), phases = $6, warnings = $7,
                    bytes_read = $8, bytes_stored = $9, snapshot = $10, report = $11
                 WHERE id = $12 AND fence = $13 AND state = 'running' RETURNING id"
            ),
            vec![
                ending.state.word().into(),
                now.timestamp_millis().into(),
                ending.error.as_ref().map(|error| error.kind.as_str()).into(),
                ending.error.as_ref().map(json).into(),
                ending.story.as_deref().into(),
                json(&ending.phases).into(),
                json(&ending.warnings).into(),
                ending.bytes_read.map(signed).into(),
                ending.bytes_stored.map(signed).into(),
                ending.snapshot.as_deref().into(),
                ending.report.as_deref().into(),
                id.to_string().into(),
                signed(fence).into(),
            ],
        )?;
        Ok(!rows.is_empty())
    }

    /// Has a slot whose last attempt failed be tried no more; `false`: it has no row, or one that is not so.
    pub(super) fn cancel_retries(&self, id: RunId, kind: &str, story: &str) -> Result<bool> {
        let rows = self.one(
            Purpose::WriteAgain,
            "UPDATE runs SET kind = $1, story = coalesce(story || '; ' || CAST($2 AS text), CAST($2 AS text))
             WHERE id = $3 AND state IN ('failed', 'interrupted') AND coalesce(kind, '') <> $1 RETURNING id",
            vec![kind.into(), story.into(), id.to_string().into()],
        )?;
        Ok(!rows.is_empty())
    }

    /// Adds a row that is closed already; one of the same slot or id stays as it is.
    pub(super) fn add_closed(&self, closed: &Closed<'_>, who: &Claimant<'_>) -> Result<()> {
        let ending = closed.ending;
        self.one(
            Purpose::WriteAgain,
            "INSERT INTO runs (id, plan, job, trigger, scheduled_ms, attempt, exclusive, state, started_ms, ended_ms, kind, error, story,
                bytes_read, bytes_stored, snapshot, report, node, owner, host, pid, boot_id, start_ticks, fence, started_by, place)
             VALUES ($1, $2, $3, $4, $5, $6, 0, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, '', $18, $19, $20, 0, 0, $21, $22)
             ON CONFLICT DO NOTHING",
            vec![
                closed.id.to_string().into(),
                closed.plan.as_str().into(),
                closed.job.word().into(),
                closed.trigger.word().into(),
                closed.scheduled.map(|slot| slot.timestamp_millis()).into(),
                i64::from(closed.attempt).into(),
                ending.state.word().into(),
                closed.started.timestamp_millis().into(),
                closed.ended.timestamp_millis().into(),
                ending.error.as_ref().map(|error| error.kind.as_str()).into(),
                ending.error.as_ref().map(json).into(),
                ending.story.as_deref().into(),
                ending.bytes_read.map(signed).into(),
                ending.bytes_stored.map(signed).into(),
                ending.snapshot.as_deref().into(),
                ending.report.as_deref().into(),
                who.node.into(),
                closed.host.into(),
                i64::from(who.process.pid).into(),
                who.process.boot_id.as_str().into(),
                closed.started_by.into(),
                who.place.into(),
            ],
        )
        .map(drop)
    }

    /// Runs that match, newest first.
    pub(super) fn runs(&self, filter: &Filter) -> Result<Vec<Run>> {
        if filter.plan.is_some() && filter.job.is_none() && filter.state.is_some_and(|state| state != State::Running) {
            // No index is of plan and state alone: each job is asked for by itself, else all runs of the plan are read to find a few.
            let of_jobs = Job::ALL.into_iter().map(|job| self.runs(&Filter { job: Some(job), ..filter.clone() }));
            let mut runs = of_jobs.collect::<Result<Vec<_>>>()?.concat();
            runs.sort_by_key(|run| std::cmp::Reverse((run.started, run.id)));
            if filter.limit > 0 {
                runs.truncate(usize::try_from(filter.limit).unwrap_or(usize::MAX));
            }
            return Ok(runs);
        }
        // Only what is asked for is in the statement: an index serves each form.
        let mut conditions = Vec::new();
        let mut values: Vec<Value> = Vec::new();
        let mut say = |condition: &str, value: Value| {
            values.push(value);
            conditions.push(condition.replace('?', &format!("${}", values.len())));
        };
        if let Some(plan) = &filter.plan {
            say("plan = ?", plan.as_str().into());
        }
        if let Some(job) = filter.job {
            say("job = ?", job.word().into());
        }
        if let Some(since) = filter.since {
            say("started_ms >= ?", since.timestamp_millis().into());
        }
        if let Some(before) = filter.before {
            say("started_ms < ?", before.timestamp_millis().into());
        }
        if let Some(state) = filter.state {
            // Written out: only so does the small index of what runs serve it.
            conditions.push(format!("state = '{}'", state.word()));
        }
        let conditions = if conditions.is_empty() { String::new() } else { format!("WHERE {}", conditions.join(" AND ")) };
        let limit = if filter.limit == 0 { String::new() } else { format!("LIMIT {}", filter.limit) };
        self.select(&format!("{conditions} ORDER BY started_ms DESC, id DESC {limit}"), values)
    }

    /// Runs whose id begins so, at most `limit`.
    pub(super) fn beginning(&self, prefix: &str, limit: u32) -> Result<Vec<Run>> {
        // Ids are lower-case letters and digits; `~` comes after all of them.
        let rest = format!("WHERE id >= $1 AND id < $2 ORDER BY id LIMIT {limit}");
        self.select(&rest, vec![prefix.into(), format!("{prefix}~").into()])
    }

    /// One run.
    pub(super) fn run(&self, id: RunId) -> Result<Option<Run>> {
        Ok(self.select("WHERE id = $1", vec![id.to_string().into()])?.into_iter().next())
    }

    /// The live run of a plan and exclusive job.
    pub(super) fn live(&self, plan: &Name, job: Job) -> Result<Option<Run>> {
        let found = self.select(
            "WHERE plan = $1 AND job = $2 AND state = 'running' AND exclusive = 1",
            vec![plan.as_str().into(), job.word().into()],
        )?;
        Ok(found.into_iter().next())
    }

    fn select(&self, rest: &str, values: Vec<Value>) -> Result<Vec<Run>> {
        let sql = format!("SELECT {COLUMNS}, {} FROM runs {rest}", self.0.lease_is_over());
        let rows = self.one(Purpose::Read, sql, values)?;
        // A row that this version cannot read (a job of a later release) is none of its business.
        rows.iter().filter_map(|row| read_run(row).transpose()).collect()
    }

    /// Earlier attempts of a run, oldest first.
    pub(super) fn attempts(&self, id: RunId) -> Result<Vec<Attempt>> {
        let rows = self.one(
            Purpose::Read,
            "SELECT attempt, started_ms, ended_ms, state, error, story FROM attempts WHERE run = $1 ORDER BY attempt",
            vec![id.to_string().into()],
        )?;
        let read = |row: &Row| {
            Ok(Attempt {
                attempt: count(row.int(0)?),
                started: time(row.int(1)?),
                ended: time(row.int(2)?),
                state: State::from_word(&row.text(3)?).unwrap_or(State::Failed),
                error: parsed(row.optional_text(4)?),
                story: row.optional_text(5)?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// Since when a schedule is followed, from now on when it is new or has changed.
    pub(super) fn schedule_since(&self, plan: &Name, job: Job, expression: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
        let rows = self.one(
            Purpose::WriteAgain,
            "INSERT INTO schedules (plan, job, expression, since_ms) VALUES ($1, $2, $3, $4)
             ON CONFLICT (plan, job) DO UPDATE SET
                since_ms = CASE WHEN schedules.expression = excluded.expression THEN schedules.since_ms ELSE excluded.since_ms END,
                expression = excluded.expression
             RETURNING since_ms",
            vec![plan.as_str().into(), job.word().into(), expression.into(), now.timestamp_millis().into()],
        )?;
        rows.first().map_or(Ok(now), |row| row.int(0).map(time))
    }

    /// The schedules that have a row.
    pub(super) fn followed(&self) -> Result<Schedules> {
        let rows = self.one(Purpose::Read, "SELECT plan, job, since_ms FROM schedules", Vec::new())?;
        let mut all = Schedules::default();
        for row in &rows {
            // A name or a job that this version does not take is of none of its plans.
            let (Ok(plan), job) = (Name::new(row.text(0)?), row.text(1)?) else { continue };
            if let Some(job) = Job::from_word(&job) {
                all.jobs.insert((plan, job));
            } else if let Some(to) = job.strip_prefix(COPY_TO).and_then(|to| Name::new(to).ok()) {
                all.copies.insert((plan, to), time(row.int(2)?));
            }
        }
        Ok(all)
    }

    /// How many runs of an owner are open.
    pub(super) fn running_of(&self, owner: &str) -> Result<i64> {
        let rows = self.one(Purpose::Read, "SELECT count(*) FROM runs WHERE state = 'running' AND owner = $1", vec![owner.into()])?;
        rows.first().map_or(Ok(0), |row| row.int(0))
    }

    /// Takes or prolongs a named lease; `false`: somebody else has it.
    pub(super) fn hold(&self, name: &str, holder: &str, ttl: TimeDelta, now: DateTime<Utc>) -> Result<bool> {
        let clock = self.0.clock(now.timestamp_millis());
        let ttl_ms = ttl.num_milliseconds();
        let rows = self.one(
            Purpose::WriteAgain,
            format!(
                "INSERT INTO leases (name, holder, until_ms) VALUES ($1, $2, {clock} + {ttl_ms})
                 ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until_ms = excluded.until_ms
                 WHERE leases.holder = excluded.holder OR leases.until_ms < {clock}
                 RETURNING name"
            ),
            vec![name.into(), holder.into()],
        )?;
        Ok(!rows.is_empty())
    }

    /// Gives a named lease back, if it is this holder's.
    pub(super) fn let_go(&self, name: &str, holder: &str) -> Result<()> {
        let values = vec![name.into(), holder.into()];
        self.one(Purpose::WriteAgain, "DELETE FROM leases WHERE name = $1 AND holder = $2", values).map(drop)
    }

    /// Says that a node is at work, and yields all that are; `None`: another one has its name. Of one state folder there is one daemon only, so that
    /// one of the same place is what a killed one left.
    pub(super) fn check_in(&self, labels: &[String], who: &Claimant<'_>, now: DateTime<Utc>) -> Result<Option<Vec<Node>>> {
        let clock = self.0.clock(now.timestamp_millis());
        let lease_ms = who.lease.num_milliseconds();
        let own = self.one(
            Purpose::WriteAgain,
            format!(
                "INSERT INTO nodes (name, owner, place, labels, host, seen_ms) VALUES ($1, $2, $3, $4, $5, {clock})
                 ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, place = excluded.place, labels = excluded.labels, host = excluded.host,
                    seen_ms = excluded.seen_ms
                 WHERE nodes.owner = excluded.owner OR nodes.place = excluded.place OR nodes.seen_ms + {lease_ms} < {clock}
                 RETURNING name"
            ),
            vec![who.node.into(), who.owner.into(), who.place.into(), json(&labels).into(), who.process.host.as_str().into()],
        )?;
        if own.is_empty() {
            return Ok(None);
        }
        self.nodes(who.lease, now).map(Some)
    }

    /// All nodes that were heard of within `lease`, by name.
    pub(super) fn nodes(&self, lease: TimeDelta, now: DateTime<Utc>) -> Result<Vec<Node>> {
        let (clock, lease_ms) = (self.0.clock(now.timestamp_millis()), lease.num_milliseconds());
        let rows = self.one(
            Purpose::Read,
            format!("SELECT name, labels, host, seen_ms FROM nodes WHERE seen_ms + {lease_ms} >= {clock} ORDER BY name"),
            Vec::new(),
        )?;
        let read = |row: &Row| {
            let labels = parsed(row.optional_text(1)?).unwrap_or_default();
            Ok(Node { name: row.text(0)?, labels, host: row.text(2)?, seen: time(row.int(3)?) })
        };
        rows.iter().map(read).collect()
    }

    /// A node of this owner ends in order: its name is free. When that was is remembered.
    pub(super) fn check_out(&self, owner: &str, lease: TimeDelta, now: DateTime<Utc>) -> Result<()> {
        let clock = self.0.clock(now.timestamp_millis());
        let over = format!("UPDATE nodes SET seen_ms = {clock} - {} WHERE owner = $1", lease.num_milliseconds() + 1);
        self.one(Purpose::WriteAgain, over, vec![owner.into()]).map(drop)
    }

    /// Removes nodes that were last heard of before this moment.
    pub(super) fn forget_nodes(&self, before: DateTime<Utc>) -> Result<()> {
        self.one(Purpose::WriteAgain, "DELETE FROM nodes WHERE seen_ms < $1", vec![before.timestamp_millis().into()]).map(drop)
    }

    /// Removes at most `limit` closed runs that started in `[from, before)`, oldest first, except what status needs: the newest of each plan,
    /// job and state, and the newest slot of each schedule. Says how many went and where to go on; `None`: nothing is left to look at.
    pub(super) fn forget(&self, from: i64, before: DateTime<Utc>, limit: u32) -> Result<(u64, Option<i64>)> {
        let page = self.one(
            Purpose::Read,
            format!("SELECT started_ms FROM runs WHERE started_ms >= $1 AND started_ms < $2 ORDER BY started_ms LIMIT {limit}"),
            vec![from.into(), before.timestamp_millis().into()],
        )?;
        let Some(last) = page.last().map(|row| row.int(0)).transpose()? else { return Ok((0, None)) };
        // What somebody mistyped does not stand for a run that failed (`Tables::newest`).
        let (newer_mistyped, own_mistyped) = (mistyped("newer"), mistyped("runs"));
        let newer = "SELECT 1 FROM runs newer WHERE newer.plan = runs.plan AND newer.job = runs.job";
        let gone = self.one(
            Purpose::WriteAgain,
            format!(
                "DELETE FROM runs WHERE started_ms >= $1 AND started_ms <= $2 AND started_ms < $3 AND state <> 'running'
                 AND EXISTS ({newer} AND newer.state = runs.state AND newer.started_ms > runs.started_ms
                    AND (NOT {newer_mistyped} OR {own_mistyped}))
                 AND (scheduled_ms IS NULL OR EXISTS ({newer} AND newer.scheduled_ms > runs.scheduled_ms))
                 RETURNING id"
            ),
            vec![from.into(), last.into(), before.timestamp_millis().into()],
        )?;
        let full = u32::try_from(page.len()).is_ok_and(|rows| rows == limit);
        Ok((u64::try_from(gone.len()).unwrap_or(u64::MAX), full.then_some(last + 1)))
    }
}

/// A run that is over before it is recorded.
pub(super) struct Closed<'a> {
    pub(super) id: RunId,
    pub(super) plan: &'a Name,
    pub(super) job: Job,
    pub(super) trigger: Trigger,
    pub(super) scheduled: Option<DateTime<Utc>>,
    pub(super) attempt: u32,
    pub(super) started: DateTime<Utc>,
    pub(super) ended: DateTime<Utc>,
    pub(super) host: &'a str,
    pub(super) started_by: &'a str,
    pub(super) ending: &'a Ending,
}

fn claim_of(rows: Vec<Row>) -> Result<Option<Claim>> {
    let read = |row: &Row| Ok(Claim { id: row.text(0)?.parse()?, attempt: count(row.int(1)?), fence: row.int(2)?.unsigned_abs() });
    rows.first().map(read).transpose()
}

pub(super) fn read_run(row: &Row) -> Result<Option<Run>> {
    let id = row.text(0)?.parse::<RunId>();
    let plan = Name::new(row.text(1)?);
    let job = Job::from_word(&row.text(2)?);
    let trigger = Trigger::from_word(&row.text(3)?);
    let state = State::from_word(&row.text(6)?);
    let (Ok(id), Ok(plan), Some(job), Some(trigger), Some(state)) = (id, plan, job, trigger, state) else { return Ok(None) };
    Ok(Some(Run {
        id,
        plan,
        job,
        trigger,
        scheduled: row.optional_int(4)?.map(time),
        attempt: count(row.int(5)?),
        state,
        started: time(row.int(7)?),
        ended: row.optional_int(8)?.map(time),
        kind: row.optional_text(9)?,
        error: parsed(row.optional_text(10)?),
        story: row.optional_text(11)?,
        phases: parsed(row.optional_text(12)?).unwrap_or_default(),
        warnings: parsed(row.optional_text(13)?).unwrap_or_default(),
        bytes_read: row.optional_int(14)?.map(i64::unsigned_abs),
        bytes_stored: row.optional_int(15)?.map(i64::unsigned_abs),
        snapshot: row.optional_text(16)?,
        report: row.optional_text(17)?,
        owner: row.text(18)?,
        process: Process {
            host: row.text(19)?,
            pid: count(row.int(20)?),
            boot_id: row.text(21)?,
            start_ticks: row.int(22)?.unsigned_abs(),
        },
        fence: row.int(23)?.unsigned_abs(),
        lease_until: row.optional_int(24)?.map(time),
        node: row.text(25)?,
        by: row.optional_text(26)?,
        announced: row.optional_text(27)?,
        place: row.optional_text(28)?,
        expired: row.int(29)? == 1,
    }))
}

/// Milliseconds since the Unix epoch, as kept in the tables, back to a time. What is out of range becomes the epoch.
pub(super) fn time(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(ms).unwrap_or_default()
}

pub(super) fn count(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn parsed<T: for<'de> Deserialize<'de>>(text: Option<String>) -> Option<T> {
    text.and_then(|text| serde_json::from_str(&text).ok())
}
