//! A restored folder in a private server: the only way by which drills and `restore --only` come to one.
//!
//! The server recovers on the host of whoever asks, which may be the source's own. A replay that creates a tablespace takes the folder that it had
//! there for its own, whoever uses it. So [`Private::prepare`] reads the log first, and nothing is started on one that does this.

use std::path::Path;
use std::time::Duration;

use crate::error::{Context, Error, Kind, Result};
use crate::source::SourceContext;
use crate::source::postgres::backup::Point;
use crate::source::postgres::instance::{Account, Instance, Launch, Tools};
use crate::source::postgres::recover::{self, Action, Ahead, Outcome, Recovery, Request, Target, Timeline};

/// A drill may have a limit of its own; this one only ends what hangs for ever.
const START_LIMIT: Duration = Duration::from_hours(12);

/// A folder that a private server may recover.
pub(super) struct Private<'a> {
    point: &'a Point,
    data: &'a Path,
    tools: &'a Tools,
    account: Account,
    asked: Option<Request>,
    without_files: Vec<String>,
}

/// A private server that was recovered and answers.
pub(super) struct Recovered {
    pub(super) instance: Instance,
    pub(super) outcome: Outcome,
    /// `shared_preload_libraries` of the source that are not on this host.
    pub(super) missing_libraries: Vec<String>,
    /// As [`Ahead::without_files`].
    pub(super) without_files: Vec<String>,
    /// Whether replay came as far as it had to.
    pub(super) reached: bool,
}

impl<'a> Private<'a> {
    /// Looks whether the folder can be recovered on this host without harm, and makes it ready for that.
    ///
    /// # Errors
    /// `Incomplete` when the log creates tablespaces, or is none to recover through: nothing was touched. `Damaged` when the log does not reach the snapshot's own moment, or the folder is
    /// no whole base backup. As the system says.
    pub(super) fn prepare(point: &'a Point, data: &'a Path, tools: &'a Tools, account: Account) -> Result<Self> {
        let asked = Request::read(data)?;
        let ahead = point.look_ahead(data, &point.recovery(asked.as_ref()).target)?;
        let (created, without_files) = (ahead.created(), ahead.without_files());
        if !created.is_empty() {
            return Err(Error::new(
                Kind::Incomplete,
                format!(
                    "tablespaces were created in the log that leads there ({}), and a replay of that would use these very folders",
                    created.join(", ")
                ),
            ));
        }
        if let Some(why) = ahead.impassable() {
            return Err(Error::new(Kind::Incomplete, why));
        }
        recover::prepare(data, account)?;
        Ok(Self { point, data, tools, account, asked, without_files })
    }

    /// Where it goes, in words.
    pub(super) fn goal(&self) -> String {
        self.asked.as_ref().map_or_else(|| self.point.position.lsn.to_string(), |asked| asked.target.to_string())
    }

    /// Whether that is another moment than the snapshot's own.
    pub(super) fn is_through_the_log(&self) -> bool {
        self.asked.is_some()
    }

    /// Starts the server and waits until it has recovered.
    ///
    /// # Errors
    /// As [`recover::recover`].
    pub(super) fn recover(self, context: &SourceContext) -> Result<Recovered> {
        let (preload, missing_libraries) = self.tools.libraries(&self.point.preload);
        let folder = context.scratch.join("server");
        let launch = Launch {
            tools: self.tools,
            account: self.account,
            data: self.data,
            folder: &folder,
            settings: &[],
            preload: &preload,
            limit: START_LIMIT,
        };
        let (instance, outcome) = recover::recover(&launch, &self.point.recovery(self.asked.as_ref()), &context.cancel)?;
        let reached = match &self.asked {
            None => self.point.is_reached(outcome.end),
            Some(asked) => asked.reaches.is_none_or(|end| outcome.end >= end),
        };
        Ok(Recovered { instance, outcome, missing_libraries, without_files: self.without_files, reached })
    }
}

impl Point {
    /// What a replay of the log in `data` to this target would do.
    ///
    /// # Errors
    /// `Damaged` when that log does not reach this point: what it would do is not known then.
    pub(super) fn look_ahead(&self, data: &Path, target: &Target) -> Result<Ahead> {
        let identifier = self.system_identifier.parse().context(Kind::Damaged, || "read the system identifier of the snapshot".into())?;
        let mut ahead = recover::look_ahead(data, identifier, self.timeline, self.start, target)?;
        if !self.is_reached(ahead.end) {
            let what = format!("the log in the snapshot ends at {}, it must reach {}", ahead.end, self.position.lsn);
            return Err(Error::new(Kind::Damaged, what));
        }
        // It may begin on an earlier timeline, and log that was brought for a later moment may go on along later ones.
        let first = self.start_timeline.unwrap_or(self.timeline);
        for timeline in recover::timelines_in_log(data)?.into_iter().filter(|timeline| *timeline != self.timeline && *timeline >= first) {
            let more = recover::look_ahead(data, identifier, timeline, self.start, target)?;
            ahead.tablespaces.extend(more.tablespaces);
            ahead.half_dropped.extend(more.half_dropped);
            ahead.minimal = ahead.minimal.or(more.minimal);
            ahead.room = ahead.room.with(more.room);
        }
        Ok(ahead)
    }

    /// To the snapshot's own moment, or to what was asked for.
    pub(super) fn recovery(&self, asked: Option<&Request>) -> Recovery {
        let (target, timeline) = match asked {
            // The control file may still be of the timeline that it begins on.
            None => (self.target(), self.start_timeline.map_or(Timeline::Current, |_| Timeline::Number(self.timeline))),
            Some(Request { stops_before: Some(lsn), timeline, .. }) => (Target::Lsn { lsn: *lsn, inclusive: false }, *timeline),
            Some(asked) => (asked.target.clone(), asked.timeline),
        };
        Recovery { target, timeline, restore_command: None, action: Action::Promote }
    }
}
