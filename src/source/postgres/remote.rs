//! Reading archives of `BASE_BACKUP` as entries of a tree, in the order in which they arrive.
//!
//! Paths, layouts and page checks are those of [`local`](crate::source::postgres::local). Nothing can be read twice here; the server itself reads a page
//! again that fails (and fails the backup at its end). Whether the whole stream arrived is for the protocol to say: before PostgreSQL 15 an archive has no end mark.

use std::collections::BTreeSet;
use std::io::{self, Read};

use crate::entry::{Entry, EntryKind, display_path};
use crate::error::{Error, Kind, Result};
use crate::source::Problem;
use crate::source::postgres::client::Warnings;
use crate::source::postgres::findings::{Findings, Judge};
use crate::source::postgres::layout::{self, Keep, RelationFile, TABLESPACE_FOLDER, TABLESPACES_INSIDE};
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::tar::{Member, MemberKind, TarReader};

/// Files at the top that the server makes for this very backup.
const OF_THIS_BACKUP: [&[u8]; 2] = [b"backup_label", b"tablespace_map"];

/// The function of the server that warns of what it leaves out (`src/backend/backup/basebackup.c`), and those that warn of pages.
const SKIPS: &str = "sendDir";
const OF_PAGES: [&str; 3] = ["sendFile", "verify_page_checksum", "read_file_data_into_buffer"];

/// What an archive holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archive {
    /// The data folder. `mode`: its permission bits (`data_directory_mode`), which are not in the archive.
    Base { mode: u32 },
    /// The tablespace with this OID.
    Tablespace(u32),
}

/// A tablespace that the data folder links to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceLink {
    pub oid: u32,
    /// Absolute path on the server; `None`: a folder in `pg_tblspc` itself.
    pub location: Option<Vec<u8>>,
}

/// What is known of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster {
    pub block_bytes: u32,
    /// Blocks in one file of a relation (131072 by default).
    pub segment_blocks: u32,
    /// Where the backup began, when data checksums are on; `None`: pages are not checked.
    pub check_from: Option<Lsn>,
}

/// Reads one archive. As a [`Read`], it yields the content of the file entry that [`next_entry`](Self::next_entry) returned last, checking its pages.
pub struct ArchiveReader<R> {
    tar: TarReader<R>,
    archive: Archive,
    cluster: Cluster,
    /// A member whose header was read ahead.
    ahead: Option<Member>,
    began: bool,
    links: Vec<TablespaceLink>,
    /// Tablespaces that a restore has put into the data folder, behind relative links: a server looks for these in the wrong place and sends
    /// empty archives of them, and their content with the data folder. `arrived`: those whose content came.
    inside: BTreeSet<u32>,
    arrived: BTreeSet<u32>,
    pages: Option<Pages>,
    found: Vec<Findings>,
}

/// What a finished archive told beside its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Of the base archive.
    pub links: Vec<TablespaceLink>,
    found: Vec<Findings>,
}

impl Finished {
    /// What is wrong with pages, once the backup's last position is known.
    #[must_use]
    pub fn problems(&self, stop: Lsn) -> Vec<Problem> {
        self.found.iter().filter_map(|findings| findings.problem(stop)).collect()
    }
}

/// Checks pages of one file as they pass.
struct Pages {
    judge: Judge,
    next_block: u32,
    partial: Vec<u8>,
    findings: Findings,
}

impl Pages {
    fn push(&mut self, mut bytes: &[u8]) {
        let page_bytes = self.judge.block_bytes as usize;
        while !bytes.is_empty() {
            if self.partial.is_empty() && bytes.len() >= page_bytes {
                let (page, rest) = bytes.split_at(page_bytes);
                self.judge(page);
                bytes = rest;
                continue;
            }
            let (taken, rest) = bytes.split_at(bytes.len().min(page_bytes - self.partial.len()));
            self.partial.extend_from_slice(taken);
            bytes = rest;
            if self.partial.len() == page_bytes {
                let page = std::mem::take(&mut self.partial);
                self.judge(&page);
                self.partial = page;
                self.partial.clear();
            }
        }
    }

    fn judge(&mut self, page: &[u8]) {
        self.findings.add(self.next_block, self.judge.judge(page, self.next_block));
        self.next_block = self.next_block.wrapping_add(1);
    }
}

impl<R: Read> ArchiveReader<R> {
    pub fn new(inner: R, archive: Archive, cluster: Cluster) -> Self {
        let tar = TarReader::new(inner);
        Self {
            tar,
            archive,
            cluster,
            ahead: None,
            began: false,
            links: Vec::new(),
            inside: BTreeSet::new(),
            arrived: BTreeSet::new(),
            pages: None,
            found: Vec::new(),
        }
    }

    /// These tablespaces are to be found in the data folder, where a restore has put them: [`kept_inside`].
    #[must_use]
    pub fn with_inside(self, inside: BTreeSet<u32>) -> Self {
        Self { inside, ..self }
    }

    /// The next entry, folders before what is in them; `None` at the end. Content of the present one that was not read is not checked.
    ///
    /// # Errors
    /// As [`TarReader::next_member`]; [`Kind::Damaged`] for a member that no server sends.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.close_pages();
        loop {
            let member = match self.ahead.take() {
                Some(member) => member,
                None => match self.tar.next_member()? {
                    Some(member) => member,
                    None => return Ok(None),
                },
            };
            if !self.began {
                self.began = true;
                let entry = self.top(&member);
                // The archive may name its own root, too.
                self.ahead = Some(member).filter(|member| !member.path.is_empty());
                return Ok(Some(entry));
            }
            if let Some(entry) = self.entry(member)? {
                return Ok(Some(entry));
            }
        }
    }

    /// After `next_entry` returned `None`.
    ///
    /// # Errors
    /// [`Kind::Bug`] when it did not yet; [`Kind::Damaged`] when a tablespace is missing.
    pub fn finish(mut self) -> Result<Finished> {
        if self.next_entry()?.is_some() {
            return Err(Error::new(Kind::Bug, "an archive of the server was finished before its end"));
        }
        if let Some(oid) = self.inside.difference(&self.arrived).next() {
            let what =
                format!("the server's archive lacks tablespace {oid}, which should be in {TABLESPACES_INSIDE}/{oid} of its data folder");
            return Err(Error::new(Kind::Damaged, what));
        }
        Ok(Finished { links: self.links, found: self.found })
    }

    fn close_pages(&mut self) {
        if let Some(pages) = self.pages.take()
            && !pages.findings.is_empty()
        {
            self.found.push(pages.findings);
        }
    }

    /// The folder that everything of this archive is in; owner and time as of its first member.
    fn top(&self, first: &Member) -> Entry {
        let (path, mode) = match self.archive {
            Archive::Base { mode } => (Vec::new(), mode & 0o7777),
            Archive::Tablespace(oid) => (tablespace_path(oid), 0o700),
        };
        entry(path, EntryKind::Directory, mode, first)
    }

    /// What a restore has put into the data folder is in its place again.
    fn path_in_tree(&mut self, path: &[u8]) -> Vec<u8> {
        let below = path.strip_prefix(TABLESPACES_INSIDE.as_bytes()).and_then(|rest| rest.strip_prefix(b"/")).unwrap_or_default();
        let (number, rest) = below.split_at(below.iter().position(|&byte| byte == b'/').unwrap_or(below.len()));
        match layout::oid(number).filter(|oid| self.inside.contains(oid)) {
            Some(oid) => {
                if rest.starts_with(b"/PG_") {
                    self.arrived.insert(oid);
                }
                [&tablespace_path(oid), rest].concat()
            }
            None => path.to_vec(),
        }
    }

    /// `None`: left out.
    fn entry(&mut self, member: Member) -> Result<Option<Entry>> {
        let path = match self.archive {
            Archive::Base { .. } => self.path_in_tree(&member.path),
            Archive::Tablespace(oid) => [&tablespace_path(oid), &b"/"[..], &member.path].concat(),
        };
        if member.path.is_empty() {
            return Ok(None);
        }
        if !OF_THIS_BACKUP.contains(&&path[..]) && layout::keep(&path) == Keep::No {
            return Ok(None);
        }
        let kind = match &member.kind {
            MemberKind::Directory => EntryKind::Directory,
            MemberKind::File { size } => {
                let cut = layout::layout(&path, self.cluster.block_bytes);
                if let Some(start) = self.cluster.check_from
                    && let Some(file) = RelationFile::parse(&path)
                {
                    let Some(next_block) = file.first_block(self.cluster.segment_blocks) else { return Err(strange(&path)) };
                    let judge = Judge { block_bytes: self.cluster.block_bytes, start };
                    self.pages = Some(Pages { judge, next_block, partial: Vec::new(), findings: Findings::new(&path) });
                }
                EntryKind::File { size: Some(*size), layout: cut }
            }
            MemberKind::Symlink { target } => {
                let oid = path.strip_prefix(TABLESPACE_FOLDER).and_then(|rest| rest.strip_prefix(b"/")).and_then(layout::oid);
                // The tablespace has an archive of its own, which begins with this folder.
                self.links.push(TablespaceLink { oid: oid.ok_or_else(|| strange(&path))?, location: Some(target.clone()) });
                return Ok(None);
            }
        };
        Ok(Some(entry(path, kind, member.mode, &member)))
    }
}

impl<R: Read> Read for ArchiveReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ahead.is_some() {
            return Ok(0);
        }
        let read = self.tar.read(buffer)?;
        if let Some(pages) = &mut self.pages {
            pages.push(&buffer[..read]);
        }
        Ok(read)
    }
}

/// Whether a tablespace is where a restore puts it, from what the server says of its place. A server sends what an absolute path leads to, and what is
/// a folder in `pg_tblspc` itself; any other relative one it resolves from the wrong folder, and sends nothing.
///
/// # Errors
/// `Failed` for such a one.
pub fn kept_inside(oid: u32, location: &str) -> Result<bool> {
    if location == format!("../{TABLESPACES_INSIDE}/{oid}") {
        return Ok(true);
    }
    if location.starts_with('/') || location.starts_with("pg_tblspc/") {
        return Ok(false);
    }
    Err(Error::new(
        Kind::Failed,
        format!("the link pg_tblspc/{oid} of the server leads to {location}: it sends nothing of a tablespace behind a relative link"),
    )
    .hint("stop the server and make the link an absolute one, or give the source its data_directory, if it is on this host"))
}

/// Links at the top of the data folder that are no part of the server's own: its configuration is behind them, or what somebody put there. The server does not send them.
#[must_use]
pub fn links_left_out(warnings: &Warnings) -> Option<String> {
    let paths = warnings.first.iter().filter(|warning| warning.routine == SKIPS).map(|warning| skipped(&warning.message));
    let paths: Vec<String> = paths
        .filter(|path| !is_needless(path.as_bytes()) && !is_content(path.as_bytes()))
        .map(|path| display_path(path.as_bytes()))
        .collect();
    (!paths.is_empty()).then(|| {
        format!(
            "links in the data folder, which the server does not send, are not in this backup: {}; with data_directory in the source they are kept, and configuration behind them is captured",
            paths.join(", ")
        )
    })
}

/// What a backup lacks, and what else its server warned of. `pages_told`: damaged pages are known, so its words of these are not told again.
#[must_use]
pub fn warned_of(warnings: &Warnings, pages_told: bool) -> Vec<Problem> {
    let problem = |kind: &str, object: String, message: String| Problem { object, kind: kind.into(), message };
    let mut problems: Vec<Problem> = Vec::new();
    for warning in &warnings.first {
        if warning.routine != SKIPS {
            if !(pages_told && OF_PAGES.contains(&warning.routine.as_str())) {
                problems.push(problem("server-warning", "the base backup".into(), format!("the server warned: {}", warning.message)));
            }
            continue;
        }
        let path = skipped(&warning.message);
        if !is_needless(path.as_bytes()) && is_content(path.as_bytes()) {
            let message = format!(
                "is a symbolic link, a pipe or a device where no server makes one, and the server did not send it: what it leads to is not in this backup; \
                 with data_directory in the source a link is kept and configuration behind it is captured (the server: {})",
                warning.message
            );
            problems.push(problem("link-not-followed", display_path(path.as_bytes()), message));
        }
    }
    if warnings.more > 0 {
        let message = format!("the server warned of {} more things; its log has them", warnings.more);
        problems.push(problem("link-not-followed", "the base backup".into(), message));
    }
    problems
}

/// The path in a message about something skipped: `skipping special file "./base/5/1234"`, in whatever language. Below the data folder it is relative to it, in a tablespace absolute.
fn skipped(message: &str) -> &str {
    let path = message.find("./").map(|at| &message[at + 2..]).or_else(|| message.find('/').map(|at| &message[at..]));
    path.unwrap_or(message).split(['"', '»', '«', '”', '“', '」', '』']).next().unwrap_or(message)
}

/// Whether no server is whole without it: below a folder, one of the server's own folders, or its version.
fn is_content(path: &[u8]) -> bool {
    path.contains(&b'/') || layout::OWN_FOLDERS.contains(&path) || path == b"PG_VERSION"
}

/// What no restored server misses: sockets of whoever listens, what is left out anyway, and the folder of its own log, which it makes.
fn is_needless(path: &[u8]) -> bool {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
    name.starts_with(b".s.") || layout::keep(path) == Keep::No || path == b"log" || path.starts_with(b"log/")
}

fn entry(path: Vec<u8>, kind: EntryKind, mode: u32, member: &Member) -> Entry {
    let mtime_ns = i64::try_from(member.mtime).unwrap_or(i64::MAX).saturating_mul(1_000_000_000);
    let (uid, gid) = (member.uid, member.gid);
    Entry { path, kind, mode, uid, gid, mtime_ns, stamp: Vec::new(), xattrs: Vec::new() }
}

fn tablespace_path(oid: u32) -> Vec<u8> {
    [TABLESPACE_FOLDER, b"/", oid.to_string().as_bytes()].concat()
}

fn strange(path: &[u8]) -> Error {
    Error::new(Kind::Damaged, format!("the server's archive holds {}, which no server has", display_path(path)))
}

#[cfg(test)]
mod tests;
