//! Keeps the canary row of a source young, and says how that stands.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Kind, Result};
use crate::id::Name;
use crate::ops::explain;
use crate::ops::resolve::{self, Surroundings};
use crate::ops::work::{make_private, read_private, write_private};
use crate::plan;
use crate::source::postgres::canary::{self, Written};
use crate::source::postgres::client::Connection;

/// A server that cannot be written to is not asked more often.
const PAUSE: Duration = Duration::from_secs(5);

/// How the row stood when its writer last said so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryStatus {
    pub time: DateTime<Utc>,
    /// By the server's clock.
    pub written_at: Option<DateTime<Utc>>,
    /// Since when it has been written without a pause, by the server's clock.
    pub since: Option<DateTime<Utc>>,
    /// The source is a standby: the row is for its primary to write.
    pub standby: bool,
    /// Why it could not be written.
    pub error: Option<String>,
}

/// The row's name.
#[must_use]
pub fn row(plan: &Name, source: &Name) -> String {
    format!("{plan}/{source}")
}

/// A row that is older was not being written.
#[must_use]
pub fn slack(every: Duration) -> TimeDelta {
    TimeDelta::from_std(every.saturating_mul(3).saturating_add(Duration::from_secs(10))).unwrap_or(TimeDelta::MAX)
}

fn note_path(work: &Path, source: &Name) -> PathBuf {
    work.join(format!("canary-{source}.json"))
}

/// How the writer on this host stands; `None`: there was never one.
///
/// # Errors
/// When there is a note that cannot be read.
pub fn status(work: &Path, source: &Name) -> Result<Option<CanaryStatus>> {
    let path = note_path(work, source);
    match read_private(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).context(Kind::Failed, || format!("understand {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("read {}", path.display()), error)),
    }
}

/// Writes until `surroundings.cancel` is set. What fails is noted, and tried again.
///
/// # Errors
/// When it cannot be noted.
pub fn run(plan: &plan::Plan, source: &plan::Source, surroundings: &Surroundings) -> Result<()> {
    let Some(every) = source.kind.canary() else { return Ok(()) };
    let work = surroundings.state.join("work").join(plan.name.as_str());
    make_private(&work)?;
    let name = row(&plan.name, &source.name);
    let mut connection: Option<Connection> = None;
    let mut status = CanaryStatus { time: surroundings.clock.now(), written_at: None, since: None, standby: false, error: None };
    while !surroundings.cancel.is_cancelled() {
        let began = Instant::now();
        let written = (|| {
            let session = match &mut connection {
                Some(session) => session,
                // Its address and password may have changed.
                None => connection.insert(canary::connect(&resolve::postgres_settings(source)?, &surroundings.cancel)?),
            };
            canary::write(session, &name)
        })();
        let failed_before = status.error.is_some();
        status.time = surroundings.clock.now();
        (status.standby, status.error) = (matches!(written, Ok(Written::Standby)), None);
        match written {
            Ok(Written::At(at)) => {
                let goes_on = !failed_before && status.written_at.is_some_and(|last| at - last <= slack(every));
                status.since = status.since.filter(|_| goes_on).or(Some(at));
                status.written_at = Some(at);
            }
            Ok(Written::Standby) => {}
            Err(error) => {
                connection = None;
                if surroundings.cancel.is_cancelled() {
                    break;
                }
                if !failed_before {
                    tracing::warn!(plan = %plan.name, source = %source.name, error = ?error, hint = error.hint_text(), "the canary row is not written");
                }
                status.error = Some(error.hint_text().map_or_else(|| explain(&error), |hint| format!("{} ({hint})", explain(&error))));
            }
        }
        let text = serde_json::to_vec_pretty(&status).context(Kind::Bug, || "write how the canary row stands".to_owned())?;
        write_private(&note_path(&work, &source.name), &text)?;
        let pause = if status.error.is_some() { every.max(PAUSE) } else { every };
        while began.elapsed() < pause && !surroundings.cancel.is_cancelled() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}
