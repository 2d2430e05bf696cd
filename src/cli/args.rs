//! The words of the command line: what is accepted, and the help that explains it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// A backup and disaster-recovery orchestrator that keeps proving that recovery works.
#[derive(Debug, Parser)]
#[command(
    name = "lifeboat",
    version,
    about,
    arg_required_else_help = true,
    propagate_version = false,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  lifeboat demo                      the whole story on a made-up CRM, in under a minute
  lifeboat backup crm                one backup now
  lifeboat restore crm --latest --to /srv/crm/restored.db
  lifeboat drill run crm             restore it somewhere private and prove that it works

Exit codes: 0 worked, 1 failed, 2 usage or plan error, 3 finished incomplete, 10 no repository, 11 busy, 12 wrong key,
13 no such recovery point, 20 damage found, 21 content differs, 22 objective missed, 130 interrupted."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Folder with plan files (repeatable; default: ./plans, then /etc/lifeboat/plans)
    #[arg(long, global = true, value_name = "DIR")]
    pub plans: Vec<PathBuf>,
    /// Folder for the journal, locks and caches (default: $STATE_DIRECTORY, else the XDG state folder)
    #[arg(long, global = true, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Print the result as one JSON document
    #[arg(long, global = true)]
    pub json: bool,
    /// How progress is shown on stderr
    #[arg(long, global = true, value_enum, default_value_t = ProgressMode::Auto, value_name = "MODE")]
    pub progress: ProgressMode,
    /// Log more (-v: steps, -vv: details)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Log errors only, and show no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Form of log lines on stderr
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProgressMode {
    /// A bar on a terminal, otherwise one line per phase
    Auto,
    /// A bar
    Tty,
    /// One JSON object a line
    Json,
    /// Nothing
    None,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the whole story on a made-up CRM: back up, drill, damage, and the damage is caught
    #[command(after_help = "Example:\n  lifeboat demo\n  lifeboat demo --keep /tmp/lifeboat-demo    keep everything to look around")]
    Demo(DemoArgs),
    /// Look at plan files
    #[command(subcommand, arg_required_else_help = true, after_help = "Example:\n  lifeboat plan check plans/")]
    Plan(PlanCommand),
    /// Check everything a run needs, before it runs
    #[command(after_help = "Example:\n  lifeboat doctor crm")]
    Doctor(DoctorArgs),
    /// Make a repository
    #[command(subcommand, arg_required_else_help = true, after_help = "Example:\n  lifeboat repo init main")]
    Repo(RepoCommand),
    /// Make one backup now
    #[command(after_help = "Example:\n  lifeboat backup crm\n  lifeboat backup crm --json | jq .snapshot")]
    Backup(BackupArgs),
    /// List what can be restored
    #[command(after_help = "\
Examples:
  lifeboat snapshots crm
  LIFEBOAT_PASSPHRASE=… lifeboat snapshots --from s3://crm-dr/main    a machine without plans
  lifeboat snapshots hold 01kb3v7m --until 2027-01-31 --reason 'audit 2026'")]
    Snapshots(SnapshotsArgs),
    /// Bring data back
    #[command(after_help = "\
Examples:
  lifeboat restore crm --latest --to /srv/crm/restored.db
  lifeboat restore crm --at '2026-11-20 14:31' --to /srv/crm/restored.db     local time of the plan's zone
  lifeboat restore crm --latest-proven --to /srv/crm/crm.db --overwrite crm.db    in place: what is there is moved aside
  lifeboat restore crm --to /srv/pg --delta --overwrite pg                   a folder is changed into the snapshot: quick, and nothing of it is kept
  lifeboat restore crm --standby --to /srv/pg                                a PostgreSQL server that follows
  lifeboat restore crm --source db --to /srv/crm/restored.db                 one of several sources, to a place of its own
  LIFEBOAT_PASSPHRASE=… lifeboat restore crm --from s3://crm-dr/main --to ./restored.db    a machine without plans")]
    Restore(Box<RestoreArgs>),
    /// Copy a plan's snapshots and logs to a further repository, verified
    ///
    /// Only what that repository lacks is sent. It goes on where the last copy ended: what is older than the newest copy is not copied again.
    #[command(after_help = "\
Examples:
  lifeboat copy crm --to offsite
  lifeboat copy crm --to offsite --last 7           only the newest seven
  lifeboat copy crm --to offsite --snapshot 01jd0v7m    this one, however old it is")]
    Copy(CopyArgs),
    /// Apply retention and collect garbage
    #[command(after_help = "\
Examples:
  lifeboat prune crm --dry-run    says of each snapshot why it stays or goes, and does nothing
  lifeboat prune crm              the same, and does it
  lifeboat prune main             for all plans of a repository")]
    Prune(PruneArgs),
    /// Check a repository; a finding is never exit 0
    #[command(
        after_help = "Examples:\n  lifeboat verify crm\n  lifeboat verify main --data        every stored byte\n  lifeboat verify main --data 10     a tenth, a different one each time\n  lifeboat verify --keyless s3://crm-dr/main    without a key: what whoever runs the storage can check"
    )]
    Verify(VerifyArgs),
    /// Put right what can be put right in a damaged repository, and say what is lost
    ///
    /// Reads every stored byte first. The index is made anew from the packs; snapshots and log that are harmed are brought back from the repositories
    /// that the plans copy this one to (or copy to it). Nothing is removed but what was replaced. A dry run writes only what a verification does.
    /// What no repository has is LOST; with --accept-loss that is put on record, and no longer told as damage or in the way of a prune.
    #[command(
        after_help = "Examples:\n  lifeboat repair main --dry-run\n  lifeboat repair main --yes\n  lifeboat repair main --from offsite --yes\n  lifeboat repair main --accept-loss 01kb3v7m --reason 'disk of June, no copy yet' --yes"
    )]
    Repair(RepairArgs),
    /// Prove that recovery works
    #[command(subcommand, arg_required_else_help = true, after_help = "Example:\n  lifeboat drill run crm")]
    Drill(DrillCommand),
    /// The continuous log of a database beside its backups
    #[command(subcommand, arg_required_else_help = true, after_help = "Example:\n  lifeboat log stream crm")]
    Log(LogCommand),
    /// Who can open a repository
    #[command(subcommand, arg_required_else_help = true, after_help = "Example:\n  lifeboat key list main")]
    Key(KeyCommand),
    /// Run backups, drills and verifications on their schedules
    #[command(
        after_help = "Examples:\n  lifeboat serve --plans /etc/lifeboat/plans --log-format json\n  lifeboat serve --listen 127.0.0.1:9847        with the API and metrics\n  curl -H \"Authorization: Bearer $(cat ~/.local/state/lifeboat/api.token)\" http://127.0.0.1:9847/api/v1/status"
    )]
    Serve(ServeArgs),
    /// What can be restored, how old it is, when that was last proven, and what is wrong
    ///
    /// Without --check the exit code is 0 also with problems: status has then done what it was asked for.
    #[command(
        after_help = "Example:\n  lifeboat status\n  lifeboat status --check --quiet || page-somebody\n  lifeboat status --json | jq '.plans[].problems'"
    )]
    Status(StatusArgs),
    /// Tell somebody
    #[command(subcommand, arg_required_else_help = true, after_help = "Example:\n  lifeboat notify test oncall")]
    Notify(NotifyCommand),
    /// Look at past runs
    #[command(subcommand, arg_required_else_help = true, after_help = "Example:\n  lifeboat run history --plan crm")]
    Run(RunCommand),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  lifeboat completions bash > /etc/bash_completion.d/lifeboat")]
    Completions(CompletionsArgs),
    /// Print the manual page, or write all of them to a folder
    #[command(after_help = "Example:\n  lifeboat man | man -l -\n  lifeboat man --dir /usr/local/share/man/man1")]
    Man(ManArgs),
}

/// `lifeboat demo`
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Keep everything in this folder (new or empty); removed at the end otherwise
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

/// `lifeboat plan …`
#[derive(Debug, Subcommand)]
pub enum PlanCommand {
    /// Validate plan files and show every error with its place
    #[command(after_help = "Example:\n  lifeboat plan check plans/ /etc/lifeboat/plans/crm.toml")]
    Check {
        /// Plan files or folders of them (default: the plans folders)
        #[arg(value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// Show a plan with all defaults filled in, secrets redacted
    #[command(after_help = "Example:\n  lifeboat plan show crm")]
    Show {
        /// Name of the plan
        name: String,
    },
    /// Say what a plan will do and when
    #[command(after_help = "Example:\n  lifeboat plan explain crm")]
    Explain {
        /// Name of the plan
        name: String,
    },
    /// Print the JSON Schema of plan files
    #[command(after_help = "Example:\n  lifeboat plan schema > lifeboat-plan.schema.json")]
    Schema,
}

/// `lifeboat doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Name of the plan (default: all)
    pub plan: Option<String>,
}

/// `lifeboat repo …`
#[derive(Debug, Subcommand)]
pub enum RepoCommand {
    /// Create a repository and print its recovery key once
    #[command(after_help = "Example:\n  lifeboat repo init main")]
    Init {
        /// Name of the repository in the plan files
        name: String,
    },
    /// Count objects, bytes, deduplication, compression, and the requests of a month
    #[command(
        after_help = "Example:\n  lifeboat repo stats main\n  lifeboat repo stats main --json | jq .monthly    to multiply by the store's prices"
    )]
    Stats(RepoPlaceArgs),
    /// Take everything out into the databases' own files, without a daemon or plan files
    ///
    /// Each snapshot becomes a folder with one tree a source, exactly as it was backed up; each continuous log becomes segment files.
    #[command(after_help = "\
Examples:
  lifeboat repo extract main --to /srv/everything
  lifeboat repo extract main --plan crm --latest --to /srv/crm
  LIFEBOAT_PASSPHRASE=… lifeboat repo extract --from s3://crm-dr/main --to ./everything    a machine without plans")]
    Extract(ExtractArgs),
    /// Bring back what was deleted or overwritten in a versioned bucket, as it was at a moment
    ///
    /// After an attack or a mistake. Objects are copied within the store to be the newest version again; nothing is removed, what came later
    /// stays. Needs the store's credentials, no key of the repository. Prove the result with `lifeboat verify --data`.
    ///
    /// What retention decided since (a prune that removed snapshots, holds that were released) is told where the repository opens, and stays, with exit 3, unless
    /// `--with-decisions` takes it back: for when it was decided by somebody with a stolen key.
    #[command(after_help = "\
Examples:
  lifeboat repo undelete main --at '2026-11-20 02:00' --dry-run
  lifeboat repo undelete main --at 2026-11-20T02:00:00Z --with-decisions
  LIFEBOAT_PASSPHRASE=… lifeboat repo undelete --from s3://crm-dr/main --at 2026-11-20T02:00:00Z    a machine without plans")]
    Undelete(UndeleteArgs),
    /// Say that the repository which is at a place now is the one that belongs there
    ///
    /// lifeboat remembers which repository it saw first at each place. Another one there (deleted and made anew, a bucket that was exchanged) opens with
    /// the same passphrase and takes the next backup, and what was backed up before is not in it: `status` tells it as `repository-changed` until
    /// the first one is back, or this command says that the new one is meant. The same for a retention ledger that was put back to an older state than this
    /// machine has seen (`the retention ledger: this machine has seen its entry …`), and for keys from before a rotation that it has seen: they are believed
    /// as they are now. On each machine.
    #[command(after_help = "Example:\n  lifeboat repo accept main")]
    Accept {
        /// Name of the repository, or of a plan that uses it
        #[arg(value_name = "REPO|PLAN")]
        name: String,
    },
}

/// `lifeboat repo undelete`
#[derive(Debug, Args)]
pub struct UndeleteArgs {
    #[command(flatten)]
    pub place: RepoPlaceArgs,
    /// The moment, by the store's clock: before the harm was done (RFC 3339, or local time of the plan)
    #[arg(long, value_name = "TIME")]
    pub at: String,
    /// Only say what would be brought back
    #[arg(long)]
    pub dry_run: bool,
    /// Also take back what the retention ledger decided since: removed snapshots count again, ended holds hold (needs a key of the repository)
    #[arg(long)]
    pub with_decisions: bool,
}

/// Which repository.
#[derive(Debug, Args)]
pub struct RepoPlaceArgs {
    /// Name of the repository, or of a plan that uses it
    #[arg(value_name = "REPO|PLAN", required_unless_present = "from")]
    pub name: Option<String>,
    /// A repository by URL, on a machine without plans; the passphrase comes from LIFEBOAT_PASSPHRASE
    #[arg(long, value_name = "URL", conflicts_with = "name")]
    pub from: Option<String>,
}

/// `lifeboat repo extract`
#[derive(Debug, Args)]
pub struct ExtractArgs {
    #[command(flatten)]
    pub place: RepoPlaceArgs,
    /// Where to: a new folder, or one that an earlier extraction began
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Only this plan (repeatable)
    #[arg(long, value_name = "NAME")]
    pub plan: Vec<String>,
    /// Only this snapshot, by id or a unique beginning of it (repeatable)
    #[arg(long, value_name = "ID")]
    pub snapshot: Vec<String>,
    /// Only the newest snapshot of each plan
    #[arg(long, conflicts_with = "snapshot")]
    pub latest: bool,
    /// Leave continuous logs out
    #[arg(long)]
    pub no_logs: bool,
}

/// `lifeboat backup`
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Name of the plan
    pub plan: String,
}

/// `lifeboat copy`
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// Name of the plan
    pub plan: String,
    /// Name of the repository to copy to
    #[arg(long, value_name = "REPO")]
    pub to: String,
    /// Only the newest so many snapshots (default: what the plan says for this copy, else all)
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub last: Option<u32>,
    /// Only snapshots with this tag (repeatable; default: what the plan says for this copy, else all)
    #[arg(long, value_name = "TAG")]
    pub tag: Vec<String>,
    /// Only this snapshot, by id or a unique beginning of it
    #[arg(long, value_name = "ID", conflicts_with_all = ["last", "tag", "all"])]
    pub snapshot: Option<String>,
    /// Also snapshots that are older than the newest copy
    #[arg(long)]
    pub all: bool,
}

/// `lifeboat snapshots`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct SnapshotsArgs {
    #[command(subcommand)]
    pub command: Option<SnapshotsCommand>,
    /// Name of the plan (default: all); with --from, its name inside the repository
    pub plan: Option<String>,
    /// A repository by URL, on a machine without plans; the passphrase comes from LIFEBOAT_PASSPHRASE
    #[arg(long, value_name = "URL")]
    pub from: Option<String>,
    /// A copy instead of the plan's own repository, by name
    #[arg(long, value_name = "NAME", conflicts_with = "from", requires = "plan")]
    pub repository: Option<String>,
}

/// `lifeboat snapshots …`
#[derive(Debug, Subcommand)]
pub enum SnapshotsCommand {
    /// Hold a snapshot: no retention removes it
    #[command(after_help = "Example:\n  lifeboat snapshots hold 01kb3v7m --until 2027-01-31 --reason 'audit 2026'")]
    Hold {
        /// Id of the snapshot, or a unique beginning of it
        id: String,
        /// Until then: RFC 3339, or local time of the plan's timezone (default: until it is released)
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
        /// Why; shown wherever the hold is
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Release a snapshot that is held
    #[command(after_help = "Example:\n  lifeboat snapshots release 01kb3v7m --reason 'audit is over'")]
    Release {
        /// Id of the snapshot, or a unique beginning of it
        id: String,
        /// Why
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
}

/// `lifeboat prune`
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Name of a plan, or of a repository: then of all its plans
    #[arg(value_name = "PLAN|REPO")]
    pub name: String,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `lifeboat restore`
#[derive(Debug, Clone, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct RestoreArgs {
    /// Name of the plan; with --from, its name inside the repository
    #[arg(required_unless_present = "from")]
    pub plan: Option<String>,
    /// Where to: a file for a database, a folder for files, for a server and for several sources; with --only of a server a new file for the
    /// dump, or the database to load it into (postgresql://USER@HOST/DATABASE, the password in ~/.pgpass)
    #[arg(long, value_name = "TARGET")]
    pub to: PathBuf,
    #[command(flatten)]
    pub point: PointArgs,
    /// Follow this timeline of the log instead of the newest
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["snapshot", "latest_proven", "immediate"])]
    pub timeline: Option<u32>,
    /// Only this source of several (repeatable); one alone is restored to a target of its own kind
    #[arg(long, value_name = "NAME")]
    pub source: Vec<String>,
    /// Only this table (repeatable); of a PostgreSQL source DATABASE, DATABASE/TABLE or DATABASE/SCHEMA.TABLE
    #[arg(long, value_name = "TABLE")]
    pub only: Vec<String>,
    /// A repository by URL, on a machine without plans; the passphrase comes from LIFEBOAT_PASSPHRASE
    #[arg(long, value_name = "URL")]
    pub from: Option<String>,
    /// Only this repository of the plan, by name: its own, or a copy (default: its own, and where that cannot be used, its copies)
    #[arg(long, value_name = "NAME", conflicts_with = "from")]
    pub repository: Option<String>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask; enough only where nothing is overwritten
    #[arg(long, short)]
    pub yes: bool,
    /// Confirm by name that what stands at the target is replaced (it is moved aside)
    #[arg(long, value_name = "NAME")]
    pub overwrite: Option<String>,
    /// Change what stands at the target (a folder of one source) into the snapshot, fetching only what differs; nothing of it is kept
    #[arg(long, conflicts_with_all = ["only", "resume"])]
    pub delta: bool,
    /// Continue an interrupted restore to the same target
    #[arg(long)]
    pub resume: bool,
    /// Put the tablespace of this folder of the source into this new or empty folder (repeatable; one PostgreSQL source); others stay in the restored folder
    #[arg(long, value_name = "OLDDIR=NEWDIR", conflicts_with = "only")]
    pub tablespace_mapping: Vec<String>,
    /// Leave a standby: a server that follows the log in the repository until it is promoted (one PostgreSQL source)
    #[arg(long, conflicts_with_all = ["at", "snapshot", "latest_proven", "lsn", "xid", "restore_point", "immediate", "timeline", "only", "from"])]
    pub standby: bool,
    /// The server that the standby is to follow, postgresql://USER@HOST or host=… user=…, the password in ~/.pgpass of who runs the standby
    #[arg(long, value_name = "CONNECTION", requires = "standby")]
    pub primary: Option<String>,
    /// A physical replication slot on that server, which must be there
    #[arg(long, value_name = "NAME", requires = "primary")]
    pub slot: Option<String>,
}

/// Which recovery point.
#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
pub struct PointArgs {
    /// The newest moment: of the log where there is one, otherwise of the snapshots (the default)
    #[arg(long)]
    pub latest: bool,
    /// This moment of the log, or the newest snapshot not later than it: RFC 3339, or local time of the plan's timezone (UTC where it has none, and with --from) such as '2026-11-20 14:31'
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    /// This snapshot, by id or a unique beginning of it
    #[arg(long, value_name = "ID")]
    pub snapshot: Option<String>,
    /// The newest snapshot that a drill has proven
    #[arg(long)]
    pub latest_proven: bool,
    /// What was written before this position of the log, such as 16/B374D848
    #[arg(long, value_name = "LSN")]
    pub lsn: Option<String>,
    /// This transaction, and what was committed before it
    #[arg(long, value_name = "NUMBER")]
    pub xid: Option<u64>,
    /// A restore point of the server, by name
    #[arg(long, value_name = "NAME")]
    pub restore_point: Option<String>,
    /// The end of the newest base backup, as soon as it is consistent
    #[arg(long)]
    pub immediate: bool,
}

/// `lifeboat verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Name of a plan or of a repository
    #[arg(value_name = "PLAN|REPO", required_unless_present = "keyless")]
    pub name: Option<String>,
    /// Check the repository at this address without any key: bytes of packs and index against their names, the rest by its shape
    #[arg(long, value_name = "URL", conflicts_with_all = ["name", "data"])]
    pub keyless: Option<String>,
    /// Also read stored bytes: all of them, or a rotating share
    #[arg(long, value_name = "PERCENT", num_args = 0..=1, default_missing_value = "100", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub data: Option<u8>,
}

/// `lifeboat repair`
#[derive(Debug, Args)]
pub struct RepairArgs {
    /// Name of a repository, or of a plan that uses it
    #[arg(value_name = "REPO|PLAN")]
    pub name: String,
    /// Bring back only from this repository (repeatable; default: all that the plans know to have copies)
    #[arg(long, value_name = "REPO")]
    pub from: Vec<String>,
    /// Accept, on record, that this snapshot is lost or lost a part of itself, as the repair says (repeatable; a unique beginning is enough)
    #[arg(long, value_name = "ID", requires = "reason", conflicts_with = "from")]
    pub accept_loss: Vec<String>,
    /// With --accept-loss: why; kept with who accepted it
    #[arg(long, value_name = "TEXT", requires = "accept_loss")]
    pub reason: Option<String>,
    /// Only say what would be done
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// Do it without asking
    #[arg(long)]
    pub yes: bool,
}

/// `lifeboat drill …`
#[derive(Debug, Subcommand)]
pub enum DrillCommand {
    /// Restore into a private folder and prove it, now
    #[command(after_help = "Example:\n  lifeboat drill run crm --random --keep-target 4h")]
    Run(DrillRunArgs),
    /// List past drills
    #[command(after_help = "Example:\n  lifeboat drill history crm")]
    History {
        /// Name of the plan (default: all)
        plan: Option<String>,
    },
    /// Show one drill's report
    #[command(after_help = "Example:\n  lifeboat drill report 01jd0v7m --html report.html")]
    Report {
        /// Id of the report, or a unique beginning of it
        id: String,
        /// Also write it to this file as one page without external parts
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
    },
}

/// `lifeboat drill run`
#[derive(Debug, Args)]
pub struct DrillRunArgs {
    /// Name of the plan
    pub plan: String,
    /// The newest snapshot not later than this: RFC 3339, or local time of the plan's timezone (UTC where it has none)
    #[arg(long, value_name = "TIME", conflicts_with_all = ["random", "latest"])]
    pub at: Option<String>,
    /// What was written before this position of the log, such as 16/B374D848
    #[arg(long, value_name = "LSN", conflicts_with_all = ["at", "random", "latest"])]
    pub lsn: Option<String>,
    /// The end of the continuous log where there is one, else the newest snapshot
    #[arg(long, conflicts_with = "random")]
    pub latest: bool,
    /// A random moment of the plan's window where there is a continuous log, else a random snapshot
    #[arg(long)]
    pub random: bool,
    /// Keep what was restored for so long, such as 4h
    #[arg(long, value_name = "DURATION")]
    pub keep_target: Option<String>,
    /// A copy instead of the plan's own repository, by name
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
}

/// `lifeboat log …`
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Stream the log of a PostgreSQL source into the repository until stopped
    #[command(after_help = "Example:\n  lifeboat log stream crm\n  lifeboat log stream crm --source db")]
    Stream {
        /// Name of the plan
        plan: String,
        /// Which source of several
        #[arg(long, value_name = "NAME")]
        source: Option<String>,
    },
    /// Store a file of pg_wal: the server's archive_command
    ///
    /// Exit 0 only when it is stored for good; with any other the server keeps the file and tries again.
    #[command(after_help = "Example (postgresql.conf):\n  archive_command = 'lifeboat log push crm %p'")]
    Push(LogPushArgs),
    /// Bring a file of pg_wal back: the server's restore_command
    ///
    /// Exit 1: the log ends before it. Exit 150: anything else that is wrong; a server then stops instead of opening with a part of the log.
    #[command(after_help = "Example (postgresql.conf):\n  restore_command = 'lifeboat log fetch crm %f %p'")]
    Fetch(LogFetchArgs),
}

/// `lifeboat log push`
#[derive(Debug, Args)]
pub struct LogPushArgs {
    /// Name of the plan
    pub plan: String,
    /// The file, as the server's %p says it; its name says what it is
    pub path: PathBuf,
    /// The source, where the plan has several of PostgreSQL
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// Segments sent at a time: those that wait behind this one are sent beside it
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub jobs: u8,
}

/// `lifeboat log fetch`
#[derive(Debug, Args)]
pub struct LogFetchArgs {
    /// Name of the plan
    pub plan: String,
    /// Name of the file, the server's %f
    pub name: String,
    /// Where to, the server's %p
    pub destination: PathBuf,
    /// The source, where the plan has several of PostgreSQL
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// Segments brought at a time: those that are asked for next are brought beside this one
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub jobs: u8,
    /// Take a hole in the log for its end, so that a server opens with what lies before it
    #[arg(long)]
    pub end_at_gap: bool,
    /// Only this repository of the plan, by name: its own, or a copy (default: its own, and where that cannot be used, its copies)
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
}

/// `lifeboat key …`
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// List the key slots of a repository, and the keys of plans
    #[command(after_help = "Example:\n  lifeboat key list main")]
    List {
        /// Name of the repository
        repo: String,
        /// Also what was done with keys, as the repository remembers it
        #[arg(long)]
        events: bool,
    },
    /// Make a key file, or the key pair of a recipient, on this machine
    ///
    /// A key file stands in for a passphrase: `passphrase = { file = "…" }` in the plan. Of a recipient the public key is printed; whoever
    /// holds a reader key adds a slot for it, and no secret travels.
    #[command(after_help = "Example:\n  lifeboat key generate --kind recipient --out /etc/lifeboat/main.key")]
    Generate {
        /// What to make
        #[arg(long, value_enum, default_value = "recipient")]
        kind: GenerateArg,
        /// The file to make, readable by its owner only
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Add a key slot: for a passphrase, a key file or a recipient
    #[command(
        after_help = "Example:\n  NEW_PASSPHRASE=… lifeboat key add main --label backup-host --role writer --passphrase-env NEW_PASSPHRASE\n  lifeboat key add main --label web1 --role writer --recipient LBPK1-…"
    )]
    Add {
        /// Name of the repository
        repo: String,
        /// What to call it
        #[arg(long)]
        label: String,
        /// What its holder can do
        #[arg(long, value_enum)]
        role: RoleArg,
        /// The environment variable that holds the new passphrase
        #[arg(long, value_name = "VARIABLE", default_value = "LIFEBOAT_NEW_PASSPHRASE")]
        passphrase_env: String,
        #[command(flatten)]
        lock: LockArgs,
    },
    /// Remove a key slot
    ///
    /// Takes the passphrase away, not what its holder has copied: after somebody left, rotate.
    #[command(after_help = "Example:\n  lifeboat key remove main 3f9a1c")]
    Remove {
        /// Name of the repository
        repo: String,
        /// Id of the slot, or a unique beginning of it
        id: String,
        /// The whole id again: asked for when it is the slot in use, or the last one that can read data
        #[arg(long, value_name = "ID")]
        confirm: Option<String>,
    },
    /// Begin a new key generation, for what is stored from now on
    ///
    /// All other slots get it without their passphrases, but those that are shut out. What is stored already stays under its old keys
    /// until it expires or --repack stores it anew: --status shows how much that is.
    #[command(
        after_help = "Example:\n  lifeboat key rotate main --without 3f9a1c\n  lifeboat key rotate main --repack\n  lifeboat key rotate main --status"
    )]
    Rotate {
        /// Name of the repository
        repo: String,
        /// A slot to shut out and remove, by id or a unique beginning of it (repeatable)
        #[arg(long, value_name = "ID")]
        without: Vec<String>,
        /// Begin chunk ids anew: nothing that is stored is reused, the next backup of every plan stores all of it again. For after a host
        /// with the writer role was taken over
        #[arg(long)]
        new_ids: bool,
        /// Rotate nothing: show how many stored bytes are under which generation
        #[arg(long, conflicts_with_all = ["without", "new_ids", "repack"])]
        status: bool,
        /// Rotate nothing: store what is under older generations anew under the newest, and remove the old
        #[arg(long, conflicts_with_all = ["without", "new_ids"])]
        repack: bool,
    },
    /// Write keys out: as shares or a recovery key on paper, or as a file that a recipient, passphrase or key file opens
    ///
    /// What goes on paper is of a new key slot, which can be removed again. A file holds the keys themselves: whoever can open it keeps them, also when
    /// all slots are gone. The repository remembers each export (key list --events).
    #[command(
        after_help = "Example:\n  lifeboat key export main --shares 3-of-5 --out shares/\n  lifeboat key export main --recipient LBPK1-… --label escrow --out escrow.json"
    )]
    Export {
        /// Name of the repository
        repo: String,
        /// So many shares of which so many are needed, such as 3-of-5
        #[arg(long, value_name = "K-of-N", conflicts_with_all = ["recipient", "key_file", "passphrase_env", "paper"])]
        shares: Option<String>,
        /// A page with a new recovery key, which opens a new slot
        #[arg(long, conflicts_with_all = ["recipient", "key_file", "passphrase_env"])]
        paper: bool,
        /// The environment variable that holds the passphrase that opens the file
        #[arg(long, value_name = "VARIABLE", required_unless_present_any = ["shares", "paper", "recipient", "key_file"])]
        passphrase_env: Option<String>,
        #[command(flatten)]
        lock: LockArgs,
        /// What the keys allow
        #[arg(long, value_enum, default_value = "reader")]
        role: RoleArg,
        /// What to call it
        #[arg(long, default_value = "export")]
        label: String,
        /// The file to make; with --shares a folder that gets a file for each. Without it, shares and pages are printed
        #[arg(long, value_name = "PATH", required_unless_present_any = ["shares", "paper"])]
        out: Option<PathBuf>,
    },
    /// Put an exported file back as a key slot; the plan's passphrase must be what opens it
    #[command(after_help = "Example:\n  LIFEBOAT_PASSPHRASE=\"$(cat escrow.key)\" lifeboat key import main escrow.json")]
    Import {
        /// Name of the repository, or its URL on a machine without plans (then LIFEBOAT_PASSPHRASE opens the file)
        repo: String,
        /// The file
        file: PathBuf,
    },
    /// Put shares together to the key file that they are of; needs no repository
    ///
    /// Without files it asks for one share after the other and says which is mistyped.
    #[command(
        after_help = "Example:\n  lifeboat key combine --out recovered.key\n  lifeboat key combine share-1.txt share-4.txt share-5.txt --out recovered.key"
    )]
    Combine {
        /// Files with one share each, or several
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The file to make, readable by its owner only
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Give a plan a key of its own, so that its data can be destroyed alone
    #[command(after_help = "Example:\n  lifeboat key own main --plan crm")]
    Own {
        /// Name of the repository
        repo: String,
        /// Name of the plan
        #[arg(long, value_name = "NAME")]
        plan: String,
    },
    /// Destroy a plan's own key: nobody can ever read its data again
    #[command(after_help = "Example:\n  lifeboat key erase main --plan crm --confirm crm")]
    Erase {
        /// Name of the repository
        repo: String,
        /// Name of the plan
        #[arg(long, value_name = "NAME")]
        plan: String,
        /// The plan's name again; asked for on a terminal
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
    },
}

/// What opens a slot, other than a passphrase.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct LockArgs {
    /// The public key of a recipient (LBPK1-…), as `key generate` printed it
    #[arg(long, value_name = "KEY")]
    pub recipient: Option<String>,
    /// A key file that `key generate --kind key-file` made
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

/// What `key generate` makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GenerateArg {
    /// 32 random bytes in place of a passphrase
    KeyFile,
    /// An X25519 key pair: slots are added with its public key
    Recipient,
}

/// What a key holder can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// Verifies and prunes; cannot read data
    Maintainer,
    /// Backs up; cannot read data
    Writer,
    /// Restores, drills, manages keys
    Reader,
}

/// `lifeboat serve`
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Answer the API and /metrics there: IP:PORT of this machine, or unix:/PATH. Requests need the token in api.token of the state folder
    #[arg(long, value_name = "ADDR", env = "LIFEBOAT_LISTEN")]
    pub listen: Option<String>,
    /// Let --listen be an address that other machines can reach. It is plain HTTP: who hears the network has the token
    #[arg(long, requires = "listen")]
    pub listen_remote: bool,
    /// A file with the API's token, instead of api.token in the state folder
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub token_file: Option<PathBuf>,
    /// The name of this node, where machines share a journal (`[journal] url`). Default: the machine's name
    #[arg(long, value_name = "NAME", env = "LIFEBOAT_NODE")]
    pub node: Option<String>,
    /// What this node is, for plans that say `run_on`; may be given several times
    #[arg(long = "label", value_name = "LABEL", env = "LIFEBOAT_LABELS", value_delimiter = ',')]
    pub labels: Vec<String>,
}

/// `lifeboat status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only this plan (default: all)
    pub plan: Option<String>,
    /// For monitoring: exit 0 only when there is no problem; 20 damage, or recovery failed or is not proven; 22 overdue, missed or
    /// beyond an objective; 1 anything else; 3 only that the newest snapshot is incomplete
    #[arg(long)]
    pub check: bool,
    /// List every plan and problem, however many
    #[arg(long)]
    pub all: bool,
    /// For liveness probes: only whether a daemon is on this state folder and looks at what is due (exit 0; else 1). Asks no plan, no repository and no journal
    #[arg(long, conflicts_with_all = ["plan", "check", "all"])]
    pub daemon: bool,
}

/// `lifeboat notify …`
#[derive(Debug, Subcommand)]
pub enum NotifyCommand {
    /// Send a real event that says it is a test, and say what came back
    #[command(after_help = "Example:\n  lifeboat notify test oncall")]
    Test {
        /// Name of the notifier in the plan files
        name: String,
    },
}

/// `lifeboat run …`
#[derive(Debug, Subcommand)]
pub enum RunCommand {
    /// List past runs, newest first
    #[command(after_help = "Example:\n  lifeboat run history --plan crm --limit 50")]
    History {
        /// Only of this plan
        #[arg(long, value_name = "PLAN")]
        plan: Option<String>,
        /// At most so many; 0 means all
        #[arg(long, value_name = "COUNT", default_value_t = 20)]
        limit: u32,
    },
    /// Show one run
    #[command(after_help = "Example:\n  lifeboat run show 01jd0v7m4z5k3n8q2w6x9y1b7c")]
    Show {
        /// Id of the run, or a unique beginning of it
        id: String,
    },
    /// Ask a run to end, or take back one that waits for its turn; it ends as `interrupted` at its next check
    #[command(after_help = "Example:\n  lifeboat run cancel 01jd0v7m4z5k3n8q2w6x9y1b7c")]
    Cancel {
        /// Id of the run, or a unique beginning of it
        id: String,
    },
    /// Make the journal anew from what the repositories prove, when it is damaged or gone; the old file is kept aside
    #[command(after_help = "Example:\n  lifeboat run rebuild")]
    Rebuild,
}

/// `lifeboat completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// `lifeboat man`
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write one page a command to this folder
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    fn examine(command: &clap::Command, path: &str) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains("Example"), "no example in the help of {path}");
        for sub in command.get_subcommands() {
            examine(sub, &format!("{path} {}", sub.get_name()));
        }
    }

    #[test]
    fn every_command_has_an_example() {
        examine(&Cli::command(), "lifeboat");
    }

    #[test]
    fn data_takes_an_optional_share() {
        for (words, percent) in [(vec!["--data"], Some(100)), (vec!["--data", "10"], Some(10)), (vec![], None)] {
            let cli = Cli::try_parse_from(["lifeboat", "verify", "main"].into_iter().chain(words)).unwrap();
            let Command::Verify(verify) = cli.command else { panic!() };
            assert_eq!(verify.data, percent);
        }
        assert!(Cli::try_parse_from(["lifeboat", "verify", "main", "--data", "0"]).is_err());
    }
}
