//! What is asked of all plans at once: one statement each, however many they are.
//!
//! What is asked for goes in as one parameter, a JSON array of arrays of text, so that the statement stays the same. Each element costs a few
//! look-ups in an index, and none reads more rows as the history grows.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::daemon::job::Job;
use crate::daemon::journal::database::{Purpose, Value};
use crate::daemon::journal::model::{Followed, Known, Newest, ScheduleKey, State};
use crate::daemon::journal::tables::{COLUMNS, COPY_TO, Tables, count, json, read_run, time};
use crate::daemon::scheduler::PastSlot;
use crate::error::{Kind, Result};
use crate::id::{Name, RunId};

/// SQL that is true of a run which failed by how somebody asked for it: a command typed by hand that named no recovery point, did not open with
/// its passphrase, or was not a right one. A backup is asked for in one way only, so that its `usage` is the plan's.
pub(super) fn mistyped(run: &str) -> String {
    let (no_point, wrong_key, usage) = (Kind::NoRecoveryPoint.word(), Kind::WrongKey.word(), Kind::Usage.word());
    format!(
        "({run}.state = 'failed' AND {run}.trigger = 'manual' AND (coalesce({run}.kind, '') IN ('{no_point}', '{wrong_key}')
            OR (coalesce({run}.kind, '') = '{usage}' AND {run}.job <> '{}')))",
        Job::Backup.word()
    )
}

impl Tables {
    /// The newest run of each job and state of these plans that began by `until`, without what was mistyped. One that goes on counts whatever its clock says.
    pub(super) fn newest(&self, plans: &[&Name], until: DateTime<Utc>) -> Result<Newest> {
        // From the end of the index over (plan, job, state, started_ms): the last row of a plan is the newest of its last job and state, and what comes
        // before all rows of that job and state is the newest of the next. Two comparisons, since SQLite serves none of a pair of columns by the index.
        // A run that a clock dated in the future would hide all later ones.
        let last = |condition: &str| {
            format!(
                "(SELECT run.id FROM runs run WHERE {condition} AND NOT {}
                    AND (CASE WHEN run.state = 'running' THEN 0 ELSE run.started_ms END) <= CAST($2 AS bigint)
                    ORDER BY run.job DESC, run.state DESC, run.started_ms DESC, run.id DESC LIMIT 1)",
                mistyped("run")
            )
        };
        let sql = format!(
            "WITH RECURSIVE wanted (plan) AS (SELECT value ->> 0 FROM {}),
             newest (id) AS (
                SELECT {} FROM wanted
                UNION ALL
                SELECT coalesce({}, {}) FROM newest JOIN runs found ON found.id = newest.id)
             SELECT {COLUMNS}, {} FROM newest JOIN runs USING (id)",
            self.0.each(),
            last("run.plan = wanted.plan"),
            last("run.plan = found.plan AND run.job = found.job AND run.state < found.state"),
            last("run.plan = found.plan AND run.job < found.job"),
            self.0.lease_is_over()
        );
        let rows = self.one(Purpose::Read, sql, vec![wanted(plans.iter().map(|plan| [plan.as_str()])), until.timestamp_millis().into()])?;
        // A row that this version cannot read (a job of a later release) is none of its business.
        rows.iter().filter_map(|row| read_run(row).transpose()).collect()
    }

    /// What is known of these schedules at `now`, in their order.
    pub(super) fn known(&self, schedules: &[ScheduleKey], now: DateTime<Utc>) -> Result<Vec<Known>> {
        let keys = || wanted(schedules.iter().map(|schedule| [schedule.plan.as_str(), schedule.job.word()]));
        let each = format!("(SELECT value ->> 0 AS plan, value ->> 1 AS job FROM {}) wanted", self.0.each());
        let followed = self.one(
            Purpose::Read,
            format!(
                "SELECT schedules.plan, schedules.job, schedules.expression, schedules.since_ms
                 FROM {each} JOIN schedules ON schedules.plan = wanted.plan AND schedules.job = wanted.job"
            ),
            vec![keys()],
        )?;
        let mut since: BTreeMap<(String, String), (String, DateTime<Utc>)> = BTreeMap::new();
        for row in &followed {
            since.insert((row.text(0)?, row.text(1)?), (row.text(2)?, time(row.int(3)?)));
        }
        let newest = self.one(
            Purpose::Read,
            format!(
                "SELECT runs.plan, runs.job, runs.id, runs.scheduled_ms, runs.state, runs.attempt, runs.ended_ms, runs.kind
                 FROM {each} JOIN runs ON runs.id = (SELECT newest.id FROM runs newest WHERE newest.plan = wanted.plan
                    AND newest.job = wanted.job AND newest.scheduled_ms <= $2 ORDER BY newest.scheduled_ms DESC LIMIT 1)"
            ),
            vec![keys(), now.timestamp_millis().into()],
        )?;
        let mut last: BTreeMap<(String, String), PastSlot> = BTreeMap::new();
        for row in &newest {
            // A row that this version cannot read is none of its business.
            let (Ok(run), Some(state)) = (row.text(2)?.parse::<RunId>(), State::from_word(&row.text(4)?)) else { continue };
            let (ended, kind) = (row.optional_int(6)?.map(time), row.optional_text(7)?);
            let slot = PastSlot::new(run, time(row.int(3)?), state, count(row.int(5)?), ended, kind.as_deref());
            last.insert((row.text(0)?, row.text(1)?), slot);
        }
        let known = |schedule: &ScheduleKey| {
            let key = (schedule.plan.to_string(), schedule.job.word().to_owned());
            let since = since.get(&key).filter(|(expression, _)| *expression == schedule.expression).map(|(_, since)| *since);
            Known { since, last: last.get(&key).copied() }
        };
        Ok(schedules.iter().map(known).collect())
    }

    /// The same; new and changed schedules are followed from now on.
    pub(super) fn follow(&self, schedules: &[ScheduleKey], now: DateTime<Utc>) -> Result<Vec<Followed>> {
        let known = self.known(schedules, now)?;
        let new: Vec<&ScheduleKey> = schedules.iter().zip(&known).filter(|(_, known)| known.since.is_none()).map(|(key, _)| key).collect();
        let rows = new.iter().map(|schedule| [schedule.plan.as_str(), schedule.job.word(), schedule.expression.as_str()]);
        self.note_schedules(rows.collect(), now)?;
        Ok(known.into_iter().map(|known| Followed { since: known.since.unwrap_or(now), last: known.last }).collect())
    }

    /// Remembers that these plans copy to these repositories on a schedule.
    pub(super) fn note_copies(&self, copies: &[(&Name, &Name)], now: DateTime<Utc>) -> Result<()> {
        let rows = copies.iter().map(|(plan, to)| [plan.to_string(), format!("{COPY_TO}{to}"), String::new()]);
        self.note_schedules(rows.collect(), now)
    }

    /// Follows new and changed schedules (plan, job, expression) from now on. Another node may have noted the same one a moment ago: then since then.
    fn note_schedules(&self, rows: Vec<[impl AsRef<str>; 3]>, now: DateTime<Utc>) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        // Parameters are numbered in the order in which they appear. `WHERE true`: else SQLite reads what follows as a join.
        let sql = format!(
            "WITH wanted AS (SELECT value ->> 0 AS plan, value ->> 1 AS job, value ->> 2 AS expression FROM {})
             INSERT INTO schedules (plan, job, expression, since_ms) SELECT plan, job, expression, CAST($2 AS bigint) FROM wanted WHERE true
             ON CONFLICT (plan, job) DO UPDATE SET
                since_ms = CASE WHEN schedules.expression = excluded.expression THEN schedules.since_ms ELSE excluded.since_ms END,
                expression = excluded.expression",
            self.0.each()
        );
        self.one(Purpose::WriteAgain, sql, vec![wanted(rows.into_iter()), now.timestamp_millis().into()]).map(drop)
    }

    /// Who has these named leases now; without those that nobody has.
    pub(super) fn holders(&self, names: &[String], now: DateTime<Utc>) -> Result<BTreeMap<String, String>> {
        let clock = self.0.clock(now.timestamp_millis());
        let rows = self.one(
            Purpose::Read,
            format!(
                "SELECT leases.name, leases.holder FROM (SELECT value ->> 0 AS name FROM {}) wanted JOIN leases ON leases.name = wanted.name
                 WHERE leases.until_ms >= {clock}",
                self.0.each()
            ),
            vec![wanted(names.iter().map(|name| [name.as_str()]))],
        )?;
        rows.iter().map(|row| Ok((row.text(0)?, row.text(1)?))).collect()
    }
}

/// The parameter that [`crate::daemon::journal::database::Database::each`] reads.
fn wanted<const N: usize>(rows: impl Iterator<Item = [impl AsRef<str>; N]>) -> Value {
    let rows: Vec<Vec<String>> = rows.map(|row| row.iter().map(|text| text.as_ref().to_owned()).collect()).collect();
    Value::Text(json(&rows))
}
