//! `lifeboat repo …`

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use crate::cli::args::{ExtractArgs, RepoCommand, RepoPlaceArgs, UndeleteArgs};
use crate::cli::context::{shell_word, who};
use crate::cli::{App, Exit, render};
use crate::error::{Error, Kind, Result};
use crate::event::Silent;
use crate::ops::extract::{ExtractReport, ExtractRequest, run as take_out};
use crate::ops::init::{InitReport, run as create};
use crate::ops::resolve::{self, RepositorySettings};
use crate::ops::stats::{StatsReport, run as count};
use crate::ops::undelete::{Decisions, UndeleteReport, UndeleteRequest, run as bring_back};
use crate::plan::Plan;
use crate::repo::RecoveryKey;

pub(super) fn run(app: &App, command: &RepoCommand) -> Result<Exit> {
    let name = match command {
        RepoCommand::Init { name } => name,
        RepoCommand::Stats(args) => return stats(app, args),
        RepoCommand::Extract(args) => return extract(app, args),
        RepoCommand::Undelete(args) => return undelete(app, args),
        RepoCommand::Accept { name } => return accept(app, name),
    };
    let (report, key) = init(app, name)?;
    if app.output.is_json() {
        let mut document =
            serde_json::to_value(&report).map_err(|error| Error::new(Kind::Bug, "write the result as JSON").because(error))?;
        document["recovery_key"] = json!(key.reveal());
        app.output.document(&document)?;
    } else {
        app.output.text(&text(&report, &key))?;
    }
    Ok(None)
}

/// Makes the repository, without showing its recovery key.
pub(super) fn init(app: &App, name: &str) -> Result<(InitReport, RecoveryKey)> {
    let plans = app.plans()?;
    let settings = resolve::repository(plans.repository(name)?)?;
    create(&settings, &app.surroundings(Arc::new(Silent))?)
}

/// The repository that is asked for.
fn settings(app: &App, args: &RepoPlaceArgs) -> Result<RepositorySettings> {
    match (&args.from, &args.name) {
        (Some(url), _) => App::repository_at(url),
        (None, Some(name)) => Ok(app.plan_or_repository(name)?.1),
        (None, None) => Err(Error::new(Kind::Usage, "no repository was named").hint("name it, or give its address with --from")),
    }
}

fn stats(app: &App, args: &RepoPlaceArgs) -> Result<Exit> {
    let settings = settings(app, args)?;
    let surroundings = app.surroundings(app.progress("stats"))?;
    let repository = settings.open(&surroundings)?;
    let plans = if args.from.is_some() { None } else { Some(app.plans()?) };
    let own = |plan: &&Arc<Plan>| Some(&plan.repository.name) == settings.name.as_ref();
    let plans: Vec<&Plan> = plans.iter().flat_map(|plans| plans.plans.values()).filter(own).map(AsRef::as_ref).collect();
    let report = count(&repository, &plans, app.clock.now(), &*surroundings.progress, &surroundings.cancel)?;
    app.output.result(&report, || stats_text(&report))?;
    Ok(report.exit())
}

fn stats_text(report: &StatsReport) -> String {
    let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2} : 1"));
    let mut text = render::pairs(&[
        ("repository", report.url.clone()),
        ("objects", format!("{} ({})", report.objects, render::bytes(report.bytes))),
        ("all snapshots", render::bytes(report.bytes_source)),
        ("each content once", format!("{}, deduplicated {}", render::bytes(report.bytes_unique), ratio(report.deduplication_ratio))),
        ("stored data", format!("{}, compressed {}", render::bytes(report.bytes_data), ratio(report.compression_ratio))),
    ]);
    text.push('\n');
    let rows: Vec<Vec<String>> =
        report.classes.iter().map(|(name, class)| vec![name.clone(), class.objects.to_string(), render::bytes(class.bytes)]).collect();
    text += &render::table(&["class", "objects", "bytes"], &rows, &[1, 2]);
    if !report.plans.is_empty() {
        let rows: Vec<Vec<String>> = report
            .plans
            .iter()
            .map(|plan| {
                vec![
                    plan.plan.clone(),
                    plan.snapshots.to_string(),
                    render::bytes(plan.bytes_newest),
                    render::bytes(plan.bytes_stored),
                    plan.log_pieces.to_string(),
                    render::bytes(plan.log_bytes),
                ]
            })
            .collect();
        text.push('\n');
        text += &render::table(&["plan", "snapshots", "newest", "added by all", "log pieces", "log"], &rows, &[1, 2, 3, 4, 5]);
    }
    if !report.runs.is_empty() {
        let rows: Vec<Vec<String>> = report
            .runs
            .iter()
            .map(|run| {
                let numbers = [run.runs, run.writes, run.lists, run.reads, run.deletes].map(|number| number.to_string());
                let plan = run.plan.clone().unwrap_or_else(|| "(all)".to_owned());
                [vec![plan, run.job.clone()], numbers.to_vec(), vec![render::bytes(run.bytes_read)]].concat()
            })
            .collect();
        text.push('\n');
        let head = ["plan", "job", "runs in 30 days", "writes each", "lists", "reads", "deletes", "read"];
        text += &render::table(&head, &rows, &[2, 3, 4, 5, 6, 7]);
        let monthly = report.monthly;
        let _ = writeln!(
            text,
            "about {} writes, {} lists, {} reads and {} deletes in 30 days, {} out of the store",
            monthly.writes,
            monthly.lists,
            monthly.reads,
            monthly.deletes,
            render::bytes(monthly.bytes_read)
        );
    }
    for unread in &report.unread {
        let _ = writeln!(text, "NOT COUNTED: {unread}");
    }
    text
}

fn extract(app: &App, args: &ExtractArgs) -> Result<Exit> {
    let surroundings = app.surroundings(app.progress("extract"))?;
    let repository = settings(app, &args.place)?.open(&surroundings)?;
    let request = ExtractRequest {
        to: args.to.clone(),
        plans: args.plan.clone(),
        snapshots: args.snapshot.clone(),
        latest: args.latest,
        logs: !args.no_logs,
    };
    let report = take_out(&repository, &request, &*surroundings.progress, &surroundings.cancel)?;
    app.output.result(&report, || extract_text(&report))?;
    Ok(report.exit())
}

fn extract_text(report: &ExtractReport) -> String {
    let mut text = String::new();
    for one in &report.snapshots {
        let _ = writeln!(text, "{}: {} in {} entries", one.folder, render::bytes(one.bytes), one.entries);
    }
    for log in &report.logs {
        let _ = writeln!(text, "{}: {} segments, {}", log.folder, log.segments, render::bytes(log.bytes));
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    for missing in &report.missing {
        let _ = writeln!(text, "MISSING: {missing}");
    }
    for failed in &report.failed {
        let _ = writeln!(text, "NOT EXTRACTED: {failed}");
    }
    let _ = writeln!(text, "{} snapshots and {} logs are in {}", report.snapshots.len(), report.logs.len(), report.to);
    text
}

fn accept(app: &App, name: &str) -> Result<Exit> {
    let settings = app.plan_or_repository(name)?.1;
    let surroundings = app.surroundings(Arc::new(Silent))?;
    let report = settings.accept(&surroundings)?;
    app.output.result(&report, || {
        let before = report.before.map_or_else(String::new, |before| format!(" instead of {before}"));
        let ledger = report.ledger_forgotten.map_or_else(String::new, |entry| {
            format!("its retention ledger is believed as it is now (this machine had seen {entry} entries)\n")
        });
        let keys = report.generation_forgotten.map_or_else(String::new, |generation| {
            format!("its keys are believed as they are now (this machine had seen another generation {generation})\n")
        });
        format!("repository {} belongs at {} from now on{before}\n{ledger}{keys}", report.repository, report.url)
    })?;
    Ok(None)
}

fn undelete(app: &App, args: &UndeleteArgs) -> Result<Exit> {
    let surroundings = app.surroundings(app.progress("undelete"))?;
    let (plan, settings) = match (&args.place.from, &args.place.name) {
        (None, Some(name)) => app.plan_or_repository(name)?,
        _ => (None, settings(app, &args.place)?),
    };
    let zone = plan.map(|plan| app.plan(plan.as_str())).transpose()?.and_then(|plan| plan.timezone).unwrap_or(chrono_tz::UTC);
    let at = crate::cli::time::parse(&args.at, zone)?;
    if at > surroundings.clock.now() {
        return Err(Error::new(Kind::Usage, format!("{} is yet to come", render::time(at)))
            .hint("name a moment before objects were deleted or overwritten; without a zone it is read in the plan's, else as UTC"));
    }
    let request = UndeleteRequest { at, dry_run: args.dry_run, with_decisions: args.with_decisions, by: who() };
    let report = bring_back(&settings, &request, &surroundings)?;
    app.output.result(&report, || undelete_text(&report))?;
    Ok(report.exit())
}

fn undelete_text(report: &UndeleteReport) -> String {
    let mut text = String::new();
    for (keys, what) in [(&report.deleted, "deleted"), (&report.overwritten, "overwritten")] {
        for key in keys {
            let _ = writeln!(text, "{what} since: {key}");
        }
    }
    for failed in &report.failed {
        let _ = writeln!(text, "NOT BROUGHT BACK: {failed}");
    }
    let (of, at) = (report.deleted.len() + report.overwritten.len(), render::time(report.at));
    let _ =
        writeln!(text, "{of} of {} objects that were there at {at} are not as they were ({})", report.objects, render::bytes(report.bytes));
    if report.dry_run {
        text.push_str("nothing was done (--dry-run)\n");
    } else {
        let _ = writeln!(text, "{} were brought back; run `lifeboat verify --data` now", report.brought_back);
    }
    report.decisions.iter().for_each(|decisions| decisions_text(decisions, report.dry_run, &mut text));
    text
}

fn decisions_text(decisions: &Decisions, dry_run: bool, text: &mut String) {
    for one in &decisions.decided {
        let _ = writeln!(text, "decided since: {} by {} ({}): {}", render::time(one.time), one.host, one.key, one.what);
    }
    if let Some(failed) = &decisions.failed {
        let entries = decisions.entries.len();
        let _ =
            writeln!(text, "NOT TAKEN BACK: {entries} entries of the retention ledger came since, which may remove snapshots: {failed}");
        return;
    }
    let of = format!("the removal of {} snapshots and the end of {} holds", decisions.removed.len(), decisions.unheld.len());
    if decisions.taken_back {
        let _ = writeln!(text, "{of} were taken back");
    } else if decisions.stand() {
        let again = if dry_run { "" } else { " again" };
        let _ = writeln!(
            text,
            "STILL DECIDED: {of}. The next prune deletes what only they need; if that was not rightly decided, run this{again} with --with-decisions"
        );
    }
}

fn text(report: &InitReport, key: &RecoveryKey) -> String {
    let head = render::pairs(&[
        ("repository", report.name.clone().unwrap_or_default()),
        ("url", report.url.clone()),
        ("id", report.repository.clone()),
    ]);
    let warnings = report.warnings.iter().fold(String::new(), |text, warning| text + "\nwarning: " + warning + "\n");
    let variables =
        report.environment.iter().fold(String::new(), |text, (name, value)| text + name + "=" + &shell_word(Path::new(value)) + " ");
    let credentials = match report.url.split(':').next() {
        Some("s3") => "The store's credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.\n",
        Some("gs" | "az") => "The store's credentials come from the provider's variables.\n",
        _ => "",
    };
    format!(
        "{head}\nRECOVERY KEY (shown once, kept nowhere):\n\n    {}\n\n\
         Write it down or print it, and keep it away from the machines that are backed up. It opens the repository like the\n\
         passphrase does, also when the passphrase is lost:\n\n\
         \x20   {variables}LIFEBOAT_PASSPHRASE='…the key…' lifeboat restore PLAN --from {} --to TARGET\n{credentials}{warnings}",
        key.reveal(),
        shell_word(Path::new(&report.url))
    )
}
