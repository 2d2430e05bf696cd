//! `lifeboat demo`: the main job on a made-up CRM, from nothing to a proven recovery, and what happens when somebody damages it.
//!
//! Everything goes through the functions of the real commands; only generating the CRM, planting damage and the last comparison by
//! hand are the demo's own. The demo fails when planted damage is not caught.

pub mod crm;
mod plant;

use std::fmt::Display;
use std::fmt::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use crate::cli::args::{BackupArgs, DemoArgs, DrillRunArgs, Global, PointArgs, ProgressMode, RestoreArgs, VerifyArgs};
use crate::cli::context::shell_word;
use crate::cli::{App, Exit, backup, drill, render, repo, restore, verify};
use crate::daemon::private_folder;
use crate::error::{Context, Error, IoContext, Kind, Result};
use crate::id::RunId;
use crate::ops::Verdict;
use crate::ops::backup::BackupReport;
use crate::ops::drill::DrillReport;
use crate::ops::report;

/// The same CRM every time.
const SEED: u64 = 20_261_120;

/// About 40 MB of database and 300 attachments.
const SCALE: f64 = 1.0;

const PLAN: &str = "crm";

pub(super) fn run(app: &App, args: &DemoArgs) -> Result<Exit> {
    let place = Place::make(app, args)?;
    let mut story = Story { app, json: app.output.is_json(), steps: Vec::new(), began: Instant::now(), step_began: Instant::now() };
    let result = tell(app, &place, &mut story, args.keep.is_some());
    // Tidy before success is said; an error of the story wins over one of tidying.
    let tidied = place.tidy(args.keep.is_some());
    let mut document = result?;
    tidied?;
    // With what tidying took: it is what the person before the terminal waited for.
    let duration_ms = u64::try_from(story.began.elapsed().as_millis()).unwrap_or(u64::MAX);
    document["duration_ms"] = json!(duration_ms);
    story.say(format_args!("All of it took {}.", render::duration_ms(duration_ms)))?;
    if args.keep.is_none() {
        story.say("Everything was removed again; `lifeboat demo --keep DIR` keeps it.")?;
    }
    if app.output.is_json() {
        app.output.document(&document)?;
    }
    Ok(None)
}

/// The demo's folders.
struct Place {
    root: PathBuf,
}

impl Place {
    fn make(app: &App, args: &DemoArgs) -> Result<Self> {
        let root = match &args.keep {
            Some(keep) => {
                let keep = std::path::absolute(keep).io_context(|| format!("find {}", keep.display()))?;
                if std::fs::read_dir(&keep).is_ok_and(|mut entries| entries.next().is_some()) {
                    return Err(Error::new(Kind::Usage, format!("keep the demo in {}: the folder is not empty", keep.display()))
                        .hint("name a new or an empty folder"));
                }
                keep
            }
            None => std::env::temp_dir().join(format!("lifeboat-demo-{}", RunId::generate(app.clock.now()))),
        };
        private_folder(&root)?;
        Ok(Self { root })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn tidy(&self, keep: bool) -> Result<()> {
        if keep { Ok(()) } else { std::fs::remove_dir_all(&self.root).io_context(|| format!("remove {}", self.root.display())) }
    }
}

/// What was told, and how long each step took.
struct Story<'a> {
    app: &'a App,
    json: bool,
    steps: Vec<Value>,
    began: Instant,
    step_began: Instant,
}

impl Story<'_> {
    fn say(&self, text: impl Display) -> Result<()> {
        if self.json { Ok(()) } else { self.app.output.text(&text.to_string()) }
    }

    /// The heading of a step; the one before has ended.
    fn step(&mut self, name: &str, heading: &str) -> Result<()> {
        self.app.cancel.check()?;
        self.end_step();
        self.step_began = Instant::now();
        self.steps.push(json!({ "name": name }));
        let number = self.steps.len();
        self.say(format_args!("\n{number}. {heading}"))
    }

    fn end_step(&mut self) {
        let duration_ms = u64::try_from(self.step_began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Some(step) = self.steps.last_mut() {
            step["duration_ms"] = json!(duration_ms);
        }
    }
}

fn tell(app: &App, place: &Place, story: &mut Story<'_>, keep: bool) -> Result<Value> {
    let demo = inner(app, place, "plans", "state");
    story.say("lifeboat demo: a CRM is backed up, changed, backed up again, recovered, damaged, and the damage is caught.")?;

    story.step("generate", "A CRM to protect")?;
    let made = crm::generate(&place.path("crm"), SEED, SCALE)?;
    story.say(format_args!(
        "   {} accounts, {} contacts, {} activities, {} orders, {} call records in SQLite; {} attachments beside it",
        made.accounts, made.contacts, made.activities, made.orders, made.call_records, made.files
    ))?;

    story.step("init", "A plan and an encrypted repository")?;
    write_plan(place, "plans", "repository", &made)?;
    let (init, _recovery_key) = repo::init(&demo, "main")?;
    story.say(format_args!(
        "   plan {}; repository {} made, its recovery key is shown once (not in a demo)",
        shell_word(&place.path("plans/crm.toml")),
        init.repository
    ))?;

    story.step("backup", "The first backup")?;
    let first = make_backup(&demo)?;
    story.say(format_args!("   {}", backup_line(&first)))?;

    story.step("work", "A day of work")?;
    let day = crm::a_day_of_work(&made.database, SEED)?;
    plant::work_on_attachments(&made.attachments)?;
    story.say(format_args!("   {} rows changed, {} rows added, one attachment changed and one added", day.rows_updated, day.rows_added))?;

    story.step("backup-again", "The second backup stores only what changed")?;
    let second = make_backup(&demo)?;
    story.say(format_args!("   {}", backup_line(&second)))?;

    story.step("drill", "A drill: restored somewhere private, checked, compared with fingerprints taken during the backup")?;
    let drilled = make_drill(&demo)?;
    if drilled.verdict != Verdict::Passed || drilled.exit().is_some() {
        return Err(Error::new(Kind::Failed, format!("drill a sound repository: the verdict is {}", drilled.verdict.word()))
            .because(report::text(&drilled)));
    }
    story.say(format_args!(
        "   passed: {} checks, recovered in {}",
        drilled.checks.len(),
        render::duration_ms(drilled.recovery_time_ms.unwrap_or_default())
    ))?;

    let caught = vec![damage_repository(app, place, story, &made)?, damage_restored(&demo, place, story)?];

    story.step("restore", "The incident: restore by hand, and compare with the living CRM, row by row and byte by byte")?;
    let by_hand = make_restore(&demo, &place.path("restored"))?;
    let compared = plant::compare(&made, &by_hand)?;
    story.say(format_args!("   {} tables with {} rows and {} files are equal", compared.tables, compared.rows, compared.files))?;
    story.end_step();

    story.say(format_args!("\n{:-<78}\n{}{:-<78}", "-- recovery report ", report::text(&drilled), ""))?;
    story.say(sizes(&first, &second, &drilled))?;
    story.say(commands(place, keep))?;
    Ok(json!({
        "schema": "lifeboat.demo/1", "folder": keep.then(|| place.root.display().to_string()), "duration_ms": 0, "steps": story.steps,
        "backups": [first, second], "drill": drilled, "caught": caught,
        "compared": { "tables": compared.tables, "rows": compared.rows, "files": compared.files },
    }))
}

/// This process with the demo's folders, quiet but for what the demo says itself.
fn inner(app: &App, place: &Place, plans: &str, state: &str) -> App {
    let global = Global {
        plans: vec![place.path(plans)],
        state: Some(place.path(state)),
        json: false,
        progress: ProgressMode::None,
        quiet: true,
        ..app.global.clone()
    };
    App { global, output: Arc::clone(&app.output), ..app.clone() }
}

fn write_plan(place: &Place, plans: &str, repository: &str, made: &crm::CrmSummary) -> Result<()> {
    let secret = place.path("passphrase");
    if !secret.exists() {
        let mut random = [0; 24];
        getrandom::fill(&mut random).context(Kind::Failed, || "make a passphrase".to_owned())?;
        let mut file = std::fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&secret)
            .io_context(|| format!("create {}", secret.display()))?;
        std::io::Write::write_all(&mut file, hex::encode(random).as_bytes()).io_context(|| format!("write {}", secret.display()))?;
    }
    let url =
        url::Url::from_file_path(place.path(repository)).map_err(|()| Error::new(Kind::Usage, "the demo's folder has no absolute path"))?;
    let text = |path: &Path| toml::Value::String(path.display().to_string()).to_string();
    let plan = format!(
        r#"version = 1

[repository.main]
url = "{url}"
passphrase = {{ file = {} }}

[source.database]
kind = "sqlite"
path = {}

[source.attachments]
kind = "files"
path = {}

[plan.{PLAN}]
description = "the demo's CRM: database and attachments, together"
sources = ["database", "attachments"]
repository = "main"
schedule = "15 2 * * *"
timezone = "UTC"
objectives = {{ data_loss = "1d", recovery_time = "15m" }}

[plan.{PLAN}.drill]
schedule = "0 5 * * sun"
compare = "all"

[[plan.{PLAN}.drill.check]]
name = "customers are there"
source = "database"
sql = "select count(*) from accounts"
expect = ">= {}"

[[plan.{PLAN}.drill.check]]
name = "no order without its account"
source = "database"
sql = "select count(*) from orders left join accounts on accounts.id = orders.account_id where accounts.id is null"
expect = "= 0"
"#,
        text(&secret),
        text(&made.database),
        text(&made.attachments),
        made.accounts
    );
    let folder = place.path(plans);
    private_folder(&folder)?;
    std::fs::write(folder.join("crm.toml"), plan).io_context(|| format!("write {}", folder.join("crm.toml").display()))
}

fn make_backup(demo: &App) -> Result<BackupReport> {
    let args = BackupArgs { plan: PLAN.to_owned() };
    let report = backup::make(demo, &args.plan)?;
    match report.exit() {
        None => Ok(report),
        Some(kind) => Err(Error::new(kind, "back up the demo's CRM: something is missing").because(backup::text(&report))),
    }
}

fn make_drill(demo: &App) -> Result<DrillReport> {
    drill::make(
        demo,
        &DrillRunArgs { plan: PLAN.to_owned(), at: None, lsn: None, latest: false, random: false, keep_target: None, repository: None },
    )
}

fn make_restore(demo: &App, to: &Path) -> Result<PathBuf> {
    let args = RestoreArgs {
        plan: Some(PLAN.to_owned()),
        to: to.to_owned(),
        point: PointArgs {
            latest: true,
            at: None,
            snapshot: None,
            latest_proven: false,
            lsn: None,
            xid: None,
            restore_point: None,
            immediate: false,
        },
        timeline: None,
        source: Vec::new(),
        only: Vec::new(),
        repository: None,
        from: None,
        dry_run: false,
        yes: true,
        overwrite: None,
        resume: false,
        tablespace_mapping: Vec::new(),
        standby: false,
        primary: None,
        slot: None,
        delta: false,
    };
    let report = restore::make(demo, &args)?;
    match report.exit() {
        None => Ok(to.to_owned()),
        Some(kind) => Err(Error::new(kind, "restore the demo's CRM: something is missing").because(restore::text(&report))),
    }
}

/// A flipped byte in a copy of the repository: verify and drill must both exit 20.
fn damage_repository(app: &App, place: &Place, story: &mut Story<'_>, made: &crm::CrmSummary) -> Result<Value> {
    story.step("damage-repository", "Somebody flips one bit in a copy of the repository")?;
    plant::copy_tree(&place.path("repository"), &place.path("damaged-repository"))?;
    let planted = plant::flip_a_byte_of_a_pack(&place.path("damaged-repository"))?;
    write_plan(place, "damaged-plans", "damaged-repository", made)?;
    let damaged = inner(app, place, "damaged-plans", "damaged-state");
    story.say(format_args!("   planted: {planted}"))?;
    let verified =
        verify::make(&damaged, &VerifyArgs { name: Some("main".to_owned()), keyless: None, data: Some(100) }).map(|report| report.exit());
    let by_verify = expect("verify", verified, &[Kind::Damaged])?;
    story.say(format_args!("   lifeboat verify main --data: exit {}, {}", by_verify.exit_code(), by_verify.word()))?;
    let drilled = make_drill(&damaged).map(|report| report.exit());
    let by_drill = expect("drill", drilled, &[Kind::Damaged, Kind::Differs])?;
    story.say(format_args!("   lifeboat drill run {PLAN}: exit {}, {}", by_drill.exit_code(), by_drill.word()))?;
    Ok(
        json!({ "planted": planted, "caught_by": [{ "check": "verify", "kind": by_verify.word() }, { "check": "drill", "kind": by_drill.word() }] }),
    )
}

/// A changed row in restored content: the proof that a drill asks for must say that it differs.
fn damage_restored(demo: &App, place: &Place, story: &mut Story<'_>) -> Result<Value> {
    story.step(
        "damage-restored",
        "Somebody changes one amount in a restored database: valid SQLite, every checksum right, the content wrong",
    )?;
    let target = place.path("tampered");
    make_restore(demo, &target)?;
    let database = plant::database_in(&target)?;
    let planted = plant::change_a_row(&database)?;
    story.say(format_args!("   planted: {planted}"))?;
    let (results, kind) = plant::prove(demo, PLAN, &database)?;
    let kind = expect("the drill's comparison", Ok(kind), &[Kind::Differs])?;
    for check in results {
        story.say(format_args!("   {check}"))?;
    }
    story.say(format_args!("   the drill's comparison: exit {}, {}", kind.exit_code(), kind.word()))?;
    std::fs::remove_dir_all(&target).io_context(|| format!("remove {}", target.display()))?;
    Ok(json!({ "planted": planted, "caught_by": [{ "check": "fingerprints", "kind": kind.word() }] }))
}

/// The kind that a check ended by, which must be one of these.
fn expect(check: &str, ended: Result<Option<Kind>>, wanted: &[Kind]) -> Result<Kind> {
    let kind = match ended {
        Ok(Some(kind)) => kind,
        Ok(None) => return Err(Error::new(Kind::Bug, format!("{check} did not catch the planted damage"))),
        Err(error) if wanted.contains(&error.kind()) => error.kind(),
        Err(error) => return Err(error.within(format!("{check} of planted damage"))),
    };
    if wanted.contains(&kind) { Ok(kind) } else { Err(Error::new(Kind::Bug, format!("{check} told planted damage as {}", kind.word()))) }
}

fn backup_line(report: &BackupReport) -> String {
    format!(
        "snapshot {}: {} read, {} stored, in {}",
        report.snapshot,
        render::bytes(report.bytes_read),
        render::bytes(report.bytes_stored),
        render::duration_ms(report.duration_ms)
    )
}

fn sizes(first: &BackupReport, second: &BackupReport, drill: &DrillReport) -> String {
    let stored = first.bytes_stored + second.bytes_stored;
    let plain = first.bytes_source + second.bytes_source;
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let ratio = plain as f64 / stored.max(1) as f64;
    render::pairs(&[
        ("recovery time (RTO)", format!("{} measured, 15 min allowed", render::or_dash(drill.recovery_time_ms.map(render::duration_ms)))),
        ("data loss (RPO)", format!("{} measured, 1 d allowed", render::or_dash(drill.data_loss_ms.map(render::duration_ms)))),
        ("first backup", format!("{} of content, {} stored", render::bytes(first.bytes_source), render::bytes(first.bytes_stored))),
        ("second backup", format!("{} of content, {} stored", render::bytes(second.bytes_source), render::bytes(second.bytes_stored))),
        (
            "both",
            format!("{} of content in {}: {ratio:.1} to 1 by deduplication and compression", render::bytes(plain), render::bytes(stored)),
        ),
    ])
}

fn commands(place: &Place, keep: bool) -> String {
    let options = if keep {
        format!(" --plans {} --state {}", shell_word(&place.path("plans")), shell_word(&place.path("state")))
    } else {
        " --state state".to_owned()
    };
    let target = if keep { shell_word(&place.path("restored-again")) } else { "restored-again".to_owned() };
    let mut text = if keep { "\nThe same by hand:\n".to_owned() } else { "\nThe same by hand, in what --keep leaves:\n".to_owned() };
    if !keep {
        text.push_str("    lifeboat demo --keep DIR && cd DIR\n");
    }
    for command in ["backup crm", "snapshots crm", "drill run crm", "verify main --data", "status"] {
        let _ = writeln!(text, "    lifeboat {command}{options}");
    }
    let _ = writeln!(text, "    lifeboat restore crm --latest --to {target}{options}");
    text
}
