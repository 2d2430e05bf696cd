//! What is wrong with continuous logs and canary rows, and how far logs lead. Pure.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::daemon::status::{PlanStatus, Problem, ProblemKind, Stored};
use crate::error::Result;
use crate::id::Name;
use crate::ops::log::canary::{self, CanaryStatus};
use crate::ops::log::fork::Fork;
use crate::ops::log::reach::Reach;
use crate::ops::log::stream::LogStatus;
use crate::ops::{explain, select};
use crate::plan::{Plan, Source};
use crate::repo::Gap;

/// A stream that says nothing for so long does not run.
const LOG_SILENCE: chrono::TimeDelta = chrono::TimeDelta::minutes(1);

/// A server hands over the segment in which a backup ended within this, or something is wrong.
const HAND_OVER: chrono::TimeDelta = chrono::TimeDelta::minutes(15);

/// What is wrong with what is stored of a log. `None`: there is no whole snapshot that it could go on from; `whole_point` is that one's moment. Pure.
pub(in crate::daemon::status) fn stored_log_problems(
    source: &Name,
    reach: Option<&Reach>,
    whole_point: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Vec<Problem> {
    let forks = reach.iter().flat_map(|reach| &reach.forks).map(|fork| forked(source, fork)).collect();
    let short = reach.and_then(|reach| reach.short).filter(|_| whole_point.is_some_and(|point| now - point >= HAND_OVER));
    let short = short.map(|end| {
        let message = format!(
            "the stored log of source {source} ends at {end}, before the newest whole snapshot: the server does not hand it over any more. Look at archive_mode, archive_command \
             and pg_stat_archiver there, or at `lifeboat serve` where it is streamed"
        );
        Problem::new(ProblemKind::LogNotStreamed, message)
    });
    [forks, holes(source, reach), short.into_iter().collect()].concat()
}

/// A failover, and the old primary went on.
fn forked(source: &Name, Fork { timeline, left_at, to, newest }: &Fork) -> Problem {
    Problem::new(
        ProblemKind::LogFork,
        format!(
            "of source {source} log of timeline {timeline} up to {to} is stored, and timeline {newest}, which is followed, went another way at {left_at}: two servers wrote at a time. \
             What was committed on timeline {timeline} alone comes back only with `restore --timeline {timeline}`; stop the server that was left behind, and back up the other"
        ),
    )
}

fn holes(source: &Name, reach: Option<&Reach>) -> Vec<Problem> {
    match reach {
        None | Some(Reach { has_log: true, behind: None, .. }) => Vec::new(),
        Some(Reach { has_log: false, .. }) => {
            vec![Problem::new(
                ProblemKind::LogNotStreamed,
                format!("nothing of the log of source {source} is stored: only snapshots can be recovered"),
            )]
        }
        Some(Reach { destroyed: true, end, .. }) => vec![Problem::new(
            ProblemKind::LogGap,
            format!(
                "the log of source {source} cannot be replayed past {end}: the key of what follows was destroyed; nothing behind can be recovered before the next backup"
            ),
        )],
        Some(Reach { behind: Some(behind), end, .. }) if behind == end => vec![Problem::new(
            ProblemKind::LogGap,
            format!(
                "the log of source {source} cannot be replayed past {end}: the server's own record there was damaged when it came, or it ran with wal_level = minimal from there on; nothing behind can be recovered before the next backup"
            ),
        )],
        Some(Reach { behind: Some(behind), end, point, .. }) if end == point => vec![Problem::new(
            ProblemKind::LogGap,
            format!(
                "the log of source {source} does not go on from the newest whole snapshot, which ends at {point}: log from {behind} on is there and cannot be used before the next backup"
            ),
        )],
        Some(Reach { behind: Some(behind), end, .. }) => vec![Problem::new(
            ProblemKind::LogGap,
            format!("the log of source {source} has a hole from {end} to {behind}: nothing behind can be recovered before the next backup"),
        )],
    }
}

/// What is wrong with a stream. A gap is told until a snapshot is whole that was made after it, or begins behind it, by where the log of the repository goes on from that one (`reach`). Pure.
pub(in crate::daemon::status) fn stream_problems(
    source: &str,
    log: Result<Option<LogStatus>>,
    whole_point: Option<DateTime<Utc>>,
    reach: Option<&Reach>,
    now: DateTime<Utc>,
) -> (Option<LogStatus>, Vec<Problem>) {
    let log = match log {
        Ok(Some(log)) => log,
        Ok(None) => {
            let message = format!("the log of source {source} was never streamed here: `lifeboat serve` does it");
            return (None, vec![Problem::new(ProblemKind::LogNotStreamed, message)]);
        }
        Err(error) => {
            return (
                None,
                vec![Problem::new(ProblemKind::LogNotStreamed, format!("how the log of source {source} stands is not known: {error:?}"))],
            );
        }
    };
    let mut problems = Vec::new();
    // What another stream has stored counts as well.
    let until = log
        .server_clock
        .or(log.newest_commit)
        .max(reach.and_then(|reach| reach.moment))
        .map_or_else(|| "no known moment".to_owned(), select::moment);
    if now - log.time > LOG_SILENCE {
        let last = select::moment(log.time);
        problems.push(Problem::new(
            ProblemKind::LogNotStreamed,
            format!("the log of source {source} is not streamed since {last}; it is stored until {until}"),
        ));
    } else if !log.connected {
        let why = log.error.as_deref().unwrap_or("it connects");
        problems.push(Problem::new(
            ProblemKind::LogNotStreamed,
            format!("the log of source {source} does not come now: {why}; it is stored until {until}"),
        ));
    }
    if let Some(state @ ("lost" | "unreserved")) = log.wal_status.as_deref() {
        problems.push(Problem::new(
            ProblemKind::LogSlot,
            format!("the replication slot {} of source {source} is {state}: log is about to be missing", log.slot),
        ));
    }
    let is_ahead = |gap: &&Gap| reach.is_none_or(|reach| gap.to > reach.point.0) && whole_point.is_none_or(|whole| whole <= gap.noticed_at);
    let new = log.gaps.iter().filter(is_ahead).count();
    if new > 0 {
        let what = crate::ops::counted(new, "gap");
        problems.push(Problem::new(
            ProblemKind::LogGap,
            format!("the log of source {source} has {what} since the last whole snapshot: nothing behind can be recovered before the next backup"),
        ));
    }
    (Some(log), problems)
}

/// What is wrong with the writer of a canary row. Pure.
pub(in crate::daemon::status) fn canary_problem(
    source: &str,
    every: Duration,
    noted: Result<Option<CanaryStatus>>,
    now: DateTime<Utc>,
) -> Option<Problem> {
    let why = match noted {
        Ok(None) => "it was never written here: `lifeboat serve` does it".to_owned(),
        Ok(Some(CanaryStatus { error: Some(error), .. })) => error,
        Ok(Some(noted)) if now - noted.time > canary::slack(every) + LOG_SILENCE => {
            format!("its writer has said nothing since {}: is `lifeboat serve` running?", select::moment(noted.time))
        }
        Ok(Some(_)) => return None,
        Err(error) => explain(&error),
    };
    Some(Problem::new(
        ProblemKind::CanaryNotWritten,
        format!("the canary row of source {source} is not written, drills cannot measure data loss: {why}"),
    ))
}

/// The moment up to which everything is stored that goes on without a gap from the newest whole snapshot, in the logs of all sources: what a restore of the latest comes to.
pub(in crate::daemon::status) fn covered(plan: &Plan, stored: &Stored, status: &PlanStatus) -> Option<DateTime<Utc>> {
    let whole = status.whole_point?;
    let moment = |source: &Arc<Source>| {
        let reach = stored.reaches.get(&source.name)?;
        // A stream knows more than what it stored last: that nothing has been written since. What lies behind a hole leads nowhere.
        let log = status.logs.iter().find(|log| log.source == source.name.as_str() && reach.behind.is_none());
        let joined = log.filter(|log| reach.timeline == log.timeline && reach.end >= log.durable_to);
        joined.and_then(|log| log.server_clock).max(reach.moment)
    };
    let moments: Option<Vec<DateTime<Utc>>> = plan.sources.iter().map(moment).collect();
    moments?.into_iter().min().filter(|covered| *covered > whole)
}
