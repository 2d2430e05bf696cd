//! A cluster that archives its log, base backups of it, and private instances on them, for the tests of this module.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Result;
use crate::event::Cancel;
use crate::source::postgres::instance::{Account, Instance, Launch, Tools, major_of};
use crate::source::postgres::recover::{self, Action, Outcome, Recovery, Target, Timeline};
use crate::source::postgres::test_server::TestServer;

/// A running server whose log goes to `archive()` whenever a segment is full or switched.
pub struct Archived {
    pub server: TestServer,
}

impl Archived {
    pub fn start(configuration: &str) -> Self {
        let mut server = TestServer::create(&["-k"], "");
        let archive = server.folder().join("archive");
        std::fs::create_dir(&archive).unwrap();
        TestServer::own(&archive);
        let command = format!("cp %p {}/%f", archive.display());
        server.configure(&format!("archive_mode = on\narchive_command = '{command}'\n{configuration}"));
        server.resume();
        Self { server }
    }

    pub fn sql(&self, statements: &str) -> String {
        self.server.sql(statements)
    }

    /// A base backup with the log that it needs, as a restore would leave it.
    pub fn base_backup(&self, name: &str) -> PathBuf {
        let folder = self.server.folder().join(name);
        let (host, path) = (self.server.folder().to_str().unwrap(), folder.to_str().unwrap());
        self.server.tool("pg_basebackup", &["-h", host, "-U", "postgres", "-D", path, "-X", "fetch", "-c", "fast", "-N"]);
        folder
    }

    /// Everything written so far is in the archive afterwards.
    pub fn archive_all(&self) {
        let last = self.sql("SELECT pg_walfile_name(pg_switch_wal())");
        let path = self.server.folder().join("archive").join(last);
        for _ in 0..600 {
            if path.exists() {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        panic!("{} was not archived", path.display());
    }

    pub fn recovery(&self, target: Target) -> Recovery {
        Recovery {
            target,
            timeline: Timeline::Latest,
            restore_command: Some(format!("cp {}/archive/%f %p", self.server.folder().display())),
            action: Action::Promote,
        }
    }

    /// Prepares and recovers a base backup.
    pub fn recover(&self, restored: &Path, target: Target) -> Result<(Instance, Outcome)> {
        let account = Account::choose(restored).unwrap();
        recover::prepare(restored, account)?;
        self.begin(restored, target)
    }

    pub fn begin(&self, restored: &Path, target: Target) -> Result<(Instance, Outcome)> {
        self.begin_with(restored, target, &[])
    }

    pub fn begin_with(&self, restored: &Path, target: Target, preload: &[String]) -> Result<(Instance, Outcome)> {
        let tools = Tools::find(major_of(restored).unwrap(), None).unwrap();
        let launch = Launch {
            tools: &tools,
            account: Account::choose(restored).unwrap(),
            data: restored,
            folder: &restored.with_extension("instance"),
            settings: &[],
            preload,
            limit: Duration::from_mins(1),
        };
        recover::recover(&launch, &self.recovery(target), &Cancel::default())
    }

    /// Asks a private instance.
    pub fn ask(&self, instance: &Instance, statement: &str) -> String {
        let socket = instance.socket_folder().to_str().unwrap();
        let arguments =
            ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", socket, "-U", "postgres", "-d", "postgres", "-c", statement];
        self.server.tool("psql", &arguments).trim_end().to_owned()
    }
}
