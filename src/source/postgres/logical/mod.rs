//! The logical method: rows and definitions of a server's databases, for servers that allow no replication, and the way to a newer version.
//!
//! ```text
//! manifest.json                       roles, databases, tables with rows and digests: the last file
//! DATABASE/pre-data.dump              definitions, by pg_dump, in its custom format
//! DATABASE/data/SCHEMA.TABLE.copy     rows, as COPY writes them under fixed settings
//! DATABASE/large-objects/OID
//! DATABASE/post-data.dump             indexes, constraints, triggers
//! ```
//!
//! Invariants: rows, large objects and definitions of one database are of one snapshot (what could not be is found, and fails the backup); several databases are each of their own, a moment apart. A
//! table that cannot be read whole fails the backup. A restore makes each database under another name and renames it when it is complete.
//!
//! | module | owns |
//! |---|---|
//! | [`contents`] | the manifest, names of files |
//! | [`catalog`] | what there is, as a transaction sees it |
//! | [`rows`] | rows and bytes, digested on the way |
//! | [`programs`] | `pg_dump` and `pg_restore`, for definitions |
//! | [`snapshot`] | the backup |
//! | [`load`] | the restore |
//! | [`drill`] | the proof |

mod catalog;
pub mod contents;
mod drill;
mod load;
mod programs;
mod rows;
mod snapshot;

use std::path::{Path, PathBuf};

pub use self::load::{Loaded, Preview, Target, load};
use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::source::postgres::client::{Connection, Mode};
use crate::source::postgres::conninfo::Settings;
use crate::source::postgres::diagnosis;
use crate::source::postgres::instance::Tools;
use crate::source::postgres::logical::snapshot::{LogicalSnapshot, SYSTEM_IDENTIFIER, system_identifier};
use crate::source::{CheckResult, Diagnosis, HandOver, HandedOver, LOAD, Problem, ProveRequest, Source, SourceContext, SourceSnapshot};

/// In manifests: another kind than a physical backup, which comes back another way.
pub const KIND: &str = "postgres-logical";

/// Databases of a server, backed up by what is in them.
#[derive(Default)]
pub struct LogicalSource {
    /// `None`: only to bring back.
    pub settings: Option<Settings>,
    /// Of the server's programs.
    pub bin_directory: Option<PathBuf>,
    /// Empty: all that can be connected to and are no templates.
    pub databases: Vec<String>,
    /// Limit for reading, in bytes a second.
    pub read_limit_bytes_per_sec: Option<u64>,
}

impl LogicalSource {
    fn settings(&self) -> Result<&Settings> {
        self.settings.as_ref().ok_or_else(|| Error::new(Kind::Bug, "a source that only brings back was asked for its server"))
    }

    fn look(&self) -> Result<Vec<Diagnosis>> {
        let (settings, cancel) = (self.settings()?, Cancel::default());
        let mut sql = Connection::connect(settings, Mode::Sql { database: None }, &cancel)?;
        let version = snapshot::supported(&sql)?;
        let major = version / 10_000;
        let mut found = vec![diagnosis("server", Ok(format!("PostgreSQL {major} ({version}), the logical method")))];
        let programs = programs::find(major, major, self.bin_directory.as_deref());
        let newer = |tools: &Tools| if tools.major() > major { format!(", newer than the server ({major})") } else { String::new() };
        found.push(diagnosis("pg_dump", programs.map(|tools| tools.version().to_owned() + &newer(&tools))));
        let refuse = |problem: Problem| Err(Error::new(Kind::Usage, format!("{}: {}", problem.object, problem.message)));
        let catalog::Chosen { names: databases, warnings: told, problems } = match catalog::choose_databases(&mut sql, &self.databases) {
            Ok(chosen) => chosen,
            Err(error) => {
                found.push(diagnosis("databases", Err(error)));
                return Ok(found);
            }
        };
        found.push(diagnosis("databases", Ok(databases.iter().chain(&told).cloned().collect::<Vec<_>>().join(", "))));
        found.extend(problems.into_iter().map(|problem| diagnosis("databases", refuse(problem))));
        let everywhere = databases.len() + snapshot::SESSIONS - 1;
        for name in &databases {
            let sessions = rows::open(settings, name, &cancel)
                .and_then(|mut sql| catalog::too_few_sessions(&mut sql, name, snapshot::SESSIONS, everywhere));
            match sessions {
                Ok(None) => {}
                Ok(Some(why)) => found.push(diagnosis("connections", Err(Error::new(Kind::Usage, why)))),
                Err(error) => found.push(diagnosis("connections", Err(error))),
            }
            let readable = rows::open(settings, name, &cancel).and_then(|mut sql| {
                catalog::must_be_readable(&mut sql, name)?;
                let (tables, _) = catalog::tables(&mut sql, "")?;
                Ok(format!("all {} tables of {name}", tables.len()))
            });
            found.push(diagnosis("privileges", readable));
            let hidden = rows::open(settings, name, &cancel).and_then(|mut sql| catalog::hidden(&mut sql, name));
            match hidden {
                Ok(hidden) => found.extend(hidden.into_iter().map(|problem| diagnosis("definitions", refuse(problem)))),
                Err(error) => found.push(diagnosis("definitions", Err(error))),
            }
        }
        let roles = catalog::roles(&mut sql).map(|(roles, with_passwords)| {
            let without = if with_passwords { "" } else { ", without their passwords: its role may not read pg_authid" };
            format!("{} roles{without}", roles.len())
        });
        found.push(diagnosis("roles", roles));
        let server = drill::server(major, self.bin_directory.as_deref());
        found.push(diagnosis("programs for drills", server.map(|tools| format!("PostgreSQL {}{}", tools.version(), newer(&tools)))));
        Ok(found)
    }
}

impl Source for LogicalSource {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn diagnose(&self) -> Vec<Diagnosis> {
        self.look().unwrap_or_else(|error| vec![diagnosis("server", Err(error))])
    }

    fn belongs(&self) -> Result<Option<(&'static str, String)>> {
        let mut sql = Connection::connect(self.settings()?, Mode::Sql { database: None }, &Cancel::default())?;
        Ok(system_identifier(&mut sql).map(|identifier| (SYSTEM_IDENTIFIER, identifier)))
    }

    fn begin(&self, context: &SourceContext) -> Result<Box<dyn SourceSnapshot>> {
        Ok(Box::new(LogicalSnapshot::begin(self, context)?))
    }

    fn adopt(&self, restored: &Path, _context: &SourceContext) -> Result<PathBuf> {
        contents::Contents::read(restored)?;
        Ok(restored.to_owned())
    }

    fn hand_over(&self, _usable: &Path, target: &Path, _wanted: &HandOver) -> Result<HandedOver> {
        let step = format!(
            "{} holds the databases as files: to load them into a server, restore with --to postgresql://USER@HOST/ instead",
            target.display()
        );
        Ok(HandedOver { steps: vec![step], ..HandedOver::default() })
    }

    /// A private server is started for it, in folders that its user must reach.
    fn keeps_content(&self) -> bool {
        false
    }

    fn load(&self, restored: &Path, url: &str, context: &SourceContext) -> Result<Loaded> {
        load::load(restored, &Target::parse(url)?, self.bin_directory.as_deref(), context)
    }

    fn unfinished(&self) -> Option<&'static str> {
        Some(LOAD)
    }

    fn prove(
        &self,
        restored: &Path,
        request: &ProveRequest,
        context: &SourceContext,
        usable: &mut dyn FnMut(),
    ) -> Result<Vec<CheckResult>> {
        drill::prove(restored, self.bin_directory.as_deref(), request, context, usable)
    }
}
