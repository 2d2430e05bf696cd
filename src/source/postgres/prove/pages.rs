//! Every page of a cluster that was shut down cleanly, read once: no server looks at most of them, and few of the mistakes that a disk makes are noticed by one.
//!
//! What is told is what PostgreSQL itself never leaves behind, however its server ended:
//!
//! - A page whose checksum is wrong; without checksums one whose header the server would refuse (`PageIsVerified`), or that is of another access method.
//! - A page of a table that is all zeros or behind the table's end, though the visibility map calls its rows visible to all (the map is set for pages with a header only,
//!   and cut with the table), or an index entry leads to it (the entry is written after its row, and removed before the row's page can be cut off).
//! - A page of an index that is all zeros or behind the index's end, though another page of the index leads to it: an index never shrinks. B-trees are left to `amcheck`.
//! - A relation without one of its files between others.
//! - A database without its folder, or without the files that its map names (`pg_filenode.map`).
//!
//! No mistake: pages of zeros that nothing leads to (a server adds pages before it writes them), half a page at the end of a file (`mdnblocks` passes over it), empty files behind
//! the last one, files that no catalogue knows (of a transaction that a crash ended), and in clusters without checksums a page of the free space map of which only the
//! second half was written (the server makes it anew). Relations that are unlogged, or of an access method that is not PostgreSQL's own, and databases that take no connections are judged page by page only.
//!
//! Sources: `bufpage.h`, `visibilitymap.c`, `md.c`, `relmapper.c`, `nbtree.h`, `gist_private.h`, `hash.h`, `ginblock.h`, `brin_page.h`, the same from 14 to 18 but where it is said. Memory: two
//! bits for each page of one table at a time, 4 bytes for each page of an index that its own pages lead to, and the names of one database's files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::entry::display_path;
use crate::error::{Context, Error, IoContext, Kind, Result};
use crate::event::Cancel;
use crate::source::postgres::client::Row;
use crate::source::postgres::conninfo::Settings;
use crate::source::postgres::control::{self, Control};
use crate::source::postgres::fingerprint::{self, TableName};
use crate::source::postgres::instance::major_of;
use crate::source::postgres::layout::{self, Fork, RelationFile, TABLESPACE_FOLDER};
use crate::source::postgres::page::{self, Damage, PageState, check_header, check_page, special_at, u16_at, u32_at};
use crate::source::postgres::prove::{Found, TOLD, connect, result, told};
use crate::source::{CheckResult, Outcome};

/// The checks of pages, where the cluster has checksums and where not.
pub(super) const CHECKSUMS: &str = "page checksums";
const HEADERS: &str = "page headers";
pub(super) const LEADS: &str = "pages that maps and indexes lead to";
pub(super) const SIZES: &str = "sizes of tables";
pub(super) const FOLDERS: &str = "folders of databases";
/// So many pages are read at a time.
const RUN_PAGES: usize = 32;
/// A table that has lost so many pages is told; fewer may be for other reasons.
const MANY_PAGES: u32 = 128;
/// `InvalidBlockNumber`.
const NO_BLOCK: u32 = u32::MAX;
/// `DEFAULTTABLESPACE_OID`.
const DEFAULT_TABLESPACE: u32 = 1663;

/// What the catalogues say of the files in a data folder. Taken while the server runs.
#[derive(Default)]
pub(super) struct Catalogue {
    databases: Vec<Database>,
    /// By the path of their first file.
    relations: BTreeMap<String, Relation>,
    /// Valid indexes of tables of PostgreSQL's own access method, by the path of the table.
    indexes: BTreeMap<String, Vec<String>>,
    /// Databases whose catalogue cannot be read.
    found: Found,
}

struct Database {
    name: String,
    oid: u32,
    tablespace: u32,
}

struct Relation {
    /// As fingerprints name tables.
    name: String,
    kind: RelationKind,
    /// That the catalogue thinks it has; only of a table that has rows, is no TOAST table, and has no B-tree of all its rows.
    pages: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RelationKind {
    /// Permanent, of the access method `heap`.
    Table,
    /// Permanent and valid.
    Index(Access),
    Other,
}

impl Catalogue {
    /// Reads the catalogues of a running server. A database that cannot be read is told by the checks.
    ///
    /// # Errors
    /// `Interrupted`.
    pub(super) fn read(settings: &Settings, cancel: &Cancel) -> Result<Self> {
        let mut catalogue = Self::default();
        let database = settings.database.as_deref().unwrap_or("postgres");
        let known = match catalogue.read_databases(settings, database, cancel).and_then(|()| fingerprint::databases(settings, cancel)) {
            Ok(known) => known,
            Err(error) => {
                catalogue.found.add(database, &error);
                Vec::new()
            }
        };
        for database in known {
            cancel.check()?;
            if let Err(error) = catalogue.read_relations(settings, &database, cancel) {
                catalogue.found.add(&database, &error);
            }
        }
        cancel.check()?;
        Ok(catalogue)
    }

    /// That of a server in which no catalogue can be read, as has been told: pages are judged one by one.
    pub(super) fn unknown() -> Self {
        let why = "not looked for, as no database can be looked into".to_owned();
        Self { found: Found { skipped: vec![why], ..Found::default() }, ..Self::default() }
    }

    fn read_databases(&mut self, settings: &Settings, database: &str, cancel: &Cancel) -> Result<()> {
        // −2 marks one whose removal was interrupted: its files may be gone.
        let rows = connect(settings, database, cancel)?
            .query("SELECT oid, datname, dattablespace FROM pg_catalog.pg_database WHERE datconnlimit <> -2 ORDER BY oid")?;
        for row in &rows {
            let name = row.required("datname")?.to_owned();
            self.databases.push(Database { name, oid: number(row, "oid")?, tablespace: number(row, "dattablespace")? });
        }
        Ok(())
    }

    fn read_relations(&mut self, settings: &Settings, database: &str, cancel: &Cancel) -> Result<()> {
        const RELATIONS: &str = "SELECT n.nspname, c.relname, pg_catalog.pg_relation_filepath(c.oid) AS path, c.relam, \
            c.relpersistence = 'p' AND c.relkind IN ('r', 'm', 't') AND c.relam = 2 AS heap, \
            CASE WHEN c.relpersistence = 'p' AND i.indisvalid AND i.indisready AND i.indislive AND t.relam = 2 \
              THEN pg_catalog.pg_relation_filepath(t.oid) END AS of, \
            CASE WHEN c.relkind IN ('r', 'm') AND c.reltuples > 0 AND NOT EXISTS (SELECT FROM pg_catalog.pg_index b \
                JOIN pg_catalog.pg_class k ON k.oid = b.indexrelid AND k.relam = 403 \
                WHERE b.indrelid = c.oid AND b.indisvalid AND b.indisready AND b.indislive AND b.indpred IS NULL) \
              THEN greatest(c.relpages, 0) ELSE 0 END AS pages \
            FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
            LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid LEFT JOIN pg_catalog.pg_class t ON t.oid = i.indrelid \
            WHERE c.relpersistence <> 't' AND pg_catalog.pg_relation_filepath(c.oid) IS NOT NULL ORDER BY c.oid";
        for row in connect(settings, database, cancel)?.query(RELATIONS)? {
            let path = row.required("path")?.to_owned();
            let (schema, table) = (row.required("nspname")?.to_owned(), row.required("relname")?.to_owned());
            let name = TableName { database: database.to_owned(), schema, table, encoding: None, sample: None }.to_string();
            let access = Access::of(number(&row, "relam")?);
            let kind = match (row.named("of"), access) {
                _ if row.named("heap") == Some("t") => RelationKind::Table,
                (Some(_), Some(access)) => RelationKind::Index(access),
                _ => RelationKind::Other,
            };
            // What all databases share is in the catalogue of each.
            if self.relations.insert(path.clone(), Relation { name, kind, pages: number(&row, "pages")? }).is_none()
                && let (Some(table), RelationKind::Index(_)) = (row.named("of"), kind)
            {
                self.indexes.entry(table.to_owned()).or_default().push(path);
            }
        }
        Ok(())
    }
}

fn number(row: &Row, name: &str) -> Result<u32> {
    let text = row.required(name)?;
    text.parse().context(Kind::Failed, || format!("understand {name} = {text} in PostgreSQL's catalogue"))
}

/// The lengths of a fork's files in bytes, by their numbers.
type Files = BTreeMap<u32, u64>;
type Forks = BTreeMap<Fork, Files>;

/// Goes through the pages and files of a cluster that was shut down cleanly.
///
/// # Errors
/// `Interrupted`; when the control file cannot be read.
pub(super) fn check(data: &Path, catalogue: &Catalogue, cancel: &Cancel) -> Result<Vec<CheckResult>> {
    let path = data.join(display_path(control::PATH));
    let control = Control::parse(&fs::read(&path).io_context(|| format!("read {}", path.display()))?)?;
    let version_folder = format!("PG_{}_{}", major_of(data)?, control.catalog_version);
    let mut pass = Pass {
        data,
        catalogue,
        cancel,
        buffer: vec![0; RUN_PAGES * control.block_bytes as usize],
        control,
        pages: 0,
        files: 0,
        maps: 0,
        indexes: 0,
        tables: 0,
        bad: Tally::default(),
        unread: Vec::new(),
        lost: Vec::new(),
        sizes: Found::default(),
    };
    let folders = check_folders(data, &version_folder, catalogue);
    match folders_of(data, &version_folder) {
        Ok(databases) => databases.values().try_for_each(|folders| pass.database(folders))?,
        Err(error) => pass.unread.push(fingerprint::described(&error)),
    }
    let mut results = pass.results();
    results.extend(folders);
    Ok(results)
}

/// Opens a file of the server, and nothing that was put in its place.
fn open(path: &Path) -> Result<File> {
    let failed = || format!("read {}", path.display());
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from).io_context(failed)?);
    if file.metadata().io_context(failed)?.is_file() {
        Ok(file)
    } else {
        Err(Error::new(Kind::Failed, format!("{}: it is no file", failed())))
    }
}

/// The folders in which each database has files, in the data folder; `global` is that of number 0.
fn folders_of(data: &Path, version_folder: &str) -> Result<BTreeMap<u32, Vec<String>>> {
    let mut folders = BTreeMap::from([(0, vec!["global".to_owned()])]);
    let mut places = vec!["base".to_owned()];
    let tablespaces = display_path(TABLESPACE_FOLDER);
    for oid in numbers_in(&data.join(&tablespaces))? {
        let place = format!("{tablespaces}/{oid}/{version_folder}");
        // A tablespace in which nothing was ever made.
        if data.join(&place).is_dir() {
            places.push(place);
        }
    }
    for place in places {
        for oid in numbers_in(&data.join(&place))? {
            folders.entry(oid).or_default().push(format!("{place}/{oid}"));
        }
    }
    Ok(folders)
}

fn numbers_in(folder: &Path) -> Result<Vec<u32>> {
    let failed = || format!("list {}", folder.display());
    let mut numbers = Vec::new();
    for item in fs::read_dir(folder).io_context(failed)? {
        numbers.extend(layout::oid(item.io_context(failed)?.file_name().as_encoded_bytes()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Every database has its folder, and what its map names; also those that nobody can look into.
fn check_folders(data: &Path, version_folder: &str, catalogue: &Catalogue) -> Option<CheckResult> {
    if catalogue.databases.is_empty() {
        // Nobody could be asked, as is told.
        return None;
    }
    let mut missing = Vec::new();
    let folder_of = |database: &Database| match database.tablespace {
        DEFAULT_TABLESPACE => format!("base/{}", database.oid),
        tablespace => format!("{}/{tablespace}/{version_folder}/{}", display_path(TABLESPACE_FOLDER), database.oid),
    };
    let of_databases = catalogue.databases.iter().map(|database| (format!("database {}", database.name), folder_of(database)));
    for (whose, folder) in of_databases.chain([("all databases".to_owned(), "global".to_owned())]) {
        let place = data.join(&folder);
        let mut lacks = |what: String| missing.push(format!("{folder} of {whose}: {what}"));
        if !place.is_dir() {
            lacks("the folder is missing".into());
            continue;
        }
        if folder != "global" && major_of(&place).ok() != major_of(data).ok() {
            lacks("PG_VERSION is missing, or of another version".into());
        }
        match filenodes(&place.join("pg_filenode.map")) {
            Ok(filenodes) => {
                for filenode in filenodes.iter().filter(|filenode| !place.join(filenode.to_string()).is_file()) {
                    lacks(format!("file {filenode}, which its pg_filenode.map names, is missing"));
                }
            }
            Err(why) => lacks(format!("pg_filenode.map {why}")),
        }
    }
    let expected = format!("{} databases with PG_VERSION, pg_filenode.map and the files that it names", catalogue.databases.len());
    let (outcome, actual) = match missing.as_slice() {
        [] => (Outcome::Passed, expected.clone()),
        missing => (Outcome::Failed, told(missing)),
    };
    Some(result(FOLDERS, outcome, expected, actual))
}

/// The first files of the catalogues that a map names. An error says what is wrong with it.
///
/// `RelMapFile` of `relmapper.c`: magic, how many, pairs of catalogue and file (62 of them up to version 15, then 64), CRC-32C of all before.
fn filenodes(path: &Path) -> std::result::Result<Vec<u32>, String> {
    const MAGIC: u32 = 0x0059_2717;
    let mut bytes = Vec::new();
    let file = open(path).map_err(|error| format!("cannot be read: {}", fingerprint::described(&error)))?;
    file.take(1024).read_to_end(&mut bytes).map_err(|error| format!("cannot be read: {error}"))?;
    let crc_at = match bytes.len() {
        512 => 504,
        524 => 520,
        length => return Err(format!("has {length} bytes")),
    };
    let computed = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes[..crc_at]);
    let count = u32_at(&bytes, 4) as usize;
    if u32_at(&bytes, 0) != MAGIC || count > (crc_at - 8) / 8 || computed != u64::from(u32_at(&bytes, crc_at)) {
        return Err("is damaged".into());
    }
    Ok((0..count).map(|pair| u32_at(&bytes, 12 + 8 * pair)).collect())
}

/// Findings of which the first ones are told.
#[derive(Default)]
struct Tally {
    first: Vec<String>,
    count: usize,
}

impl Tally {
    fn add(&mut self, finding: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < TOLD {
            self.first.push(finding());
        }
    }

    fn told(&self) -> String {
        let more = self.count - self.first.len();
        let first = self.first.join("; ");
        if more == 0 { first } else { format!("{first}; and {more} more") }
    }
}

/// A bit for each page of a fork.
#[derive(Default)]
struct Bits(Vec<u8>);

impl Bits {
    fn set(&mut self, block: u32) {
        let at = block as usize / 8;
        if self.0.len() <= at {
            self.0.resize(at + 1, 0);
        }
        self.0[at] |= 1 << (block % 8);
    }

    fn has(&self, block: u32) -> bool {
        self.0.get(block as usize / 8).is_some_and(|byte| byte & (1 << (block % 8)) != 0)
    }
}

/// What is known of the main fork of a table or an index.
#[derive(Default)]
struct Pages {
    blocks: u32,
    /// All zeros.
    new: Bits,
}

impl Pages {
    /// Why nothing can be on a page that is said to hold something.
    fn lacks(&self, block: u32) -> Option<String> {
        if block >= self.blocks {
            Some(format!("is behind the end: there are {} blocks", self.blocks))
        } else {
            self.new.has(block).then(|| "is all zeros".to_owned())
        }
    }
}

/// Pages of one relation that are not there, though something leads to them.
#[derive(Default)]
struct Lost {
    first: Option<(u32, String)>,
    count: u64,
}

impl Lost {
    fn add(&mut self, block: u32, why: Option<String>) {
        if let Some(why) = why {
            self.count += 1;
            self.first.get_or_insert((block, why));
        }
    }

    /// `leads`: what leads there, as part of a sentence.
    fn finding(&self, name: &str, leads: &str) -> Option<String> {
        let (block, why) = self.first.as_ref()?;
        let more = if self.count > 1 { format!(" (and {} more)", self.count - 1) } else { String::new() };
        Some(format!("{name}: block {block}, {leads}, {why}{more}"))
    }
}

struct Pass<'a> {
    data: &'a Path,
    catalogue: &'a Catalogue,
    cancel: &'a Cancel,
    control: Control,
    buffer: Vec<u8>,
    pages: u64,
    files: u64,
    tables: u64,
    maps: u64,
    indexes: u64,
    bad: Tally,
    unread: Vec<String>,
    lost: Vec<String>,
    sizes: Found,
}

impl Pass<'_> {
    /// All files of one database: tables with their indexes, then the rest.
    fn database(&mut self, folders: &[String]) -> Result<()> {
        let catalogue = self.catalogue;
        let mut files = BTreeMap::new();
        for folder in folders {
            if let Err(error) = self.list(folder, &mut files) {
                self.unread.push(fingerprint::described(&error));
            }
        }
        let is_table = |base: &&String| catalogue.relations.get(*base).is_some_and(|relation| relation.kind == RelationKind::Table);
        let tables: Vec<String> = files.keys().filter(is_table).cloned().collect();
        for base in tables {
            let (Some(forks), Some(relation)) = (files.remove(&base), catalogue.relations.get(&base)) else { continue };
            let table = self.table(&base, relation, &forks)?;
            for index in catalogue.indexes.get(&base).into_iter().flatten() {
                if let Some(forks) = files.remove(index)
                    && let Some(Relation { name, kind: RelationKind::Index(access), .. }) = catalogue.relations.get(index)
                {
                    self.index(index, name, *access, &forks, &relation.name, &table)?;
                }
            }
        }
        for (base, forks) in &files {
            if let (Some(relation), Some(main)) = (catalogue.relations.get(base), forks.get(&Fork::Main)) {
                self.blocks(base, &relation.name, main);
            }
            for (fork, files) in forks {
                self.read(base, *fork, files, &mut |_, _, _| true)?;
            }
        }
        Ok(())
    }

    fn list(&self, folder: &str, found: &mut BTreeMap<String, Forks>) -> Result<()> {
        let failed = || format!("list {}", self.data.join(folder).display());
        for item in fs::read_dir(self.data.join(folder)).io_context(failed)? {
            let item = item.io_context(failed)?;
            let name = item.file_name();
            let path = [folder.as_bytes(), b"/", name.as_encoded_bytes()].concat();
            let Some(file) = RelationFile::parse(&path) else { continue };
            let bytes = item.metadata().io_context(failed)?.len();
            let forks = found.entry(format!("{folder}/{}", file.filenode)).or_default();
            forks.entry(file.fork).or_default().insert(file.segment, bytes);
        }
        Ok(())
    }

    /// How many blocks a server finds in a relation, which ends with the first file that is not full. What lies behind that is told.
    fn blocks(&mut self, base: &str, name: &str, main: &Files) -> u32 {
        let full = self.control.segment_blocks;
        let in_file = |bytes: u64| u32::try_from(bytes / u64::from(self.control.block_bytes)).unwrap_or(u32::MAX).min(full);
        let (mut blocks, mut last) = (0_u32, 0);
        for segment in 0.. {
            last = segment;
            let here = main.get(&segment).map_or(0, |bytes| in_file(*bytes));
            blocks = blocks.saturating_add(here);
            if here < full {
                break;
            }
        }
        let behind = main.range(last + 1..).find(|(_, bytes)| in_file(**bytes) > 0);
        if let Some((segment, _)) = behind {
            let short = file_path(base, Fork::Main, last);
            self.sizes.failed.push(format!(
                "{name}: {short} is not there or not full, though {} has pages: blocks from {blocks} on are lost",
                file_path(base, Fork::Main, *segment)
            ));
        }
        blocks
    }

    /// Judges the pages of a fork, in their order. Those that are not bad are handed over, with their numbers in the fork; `false`: it is of no such fork.
    fn read(&mut self, base: &str, fork: Fork, files: &Files, each: &mut dyn FnMut(u32, &[u8], bool) -> bool) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        for (segment, bytes) in files {
            let path = file_path(base, fork, *segment);
            if let Err(error) = self.read_file(&path, *segment, *bytes, fork, base, &mut buffer, each) {
                self.cancel.check()?;
                self.unread.push(fingerprint::described(&error));
            }
        }
        self.buffer = buffer;
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "one file of a fork, in the words of the fork")]
    fn read_file(
        &mut self,
        path: &str,
        segment: u32,
        bytes: u64,
        fork: Fork,
        base: &str,
        buffer: &mut [u8],
        each: &mut dyn FnMut(u32, &[u8], bool) -> bool,
    ) -> Result<()> {
        let mut file = open(&self.data.join(path))?;
        self.files += 1;
        let size = self.control.block_bytes as usize;
        let name = self.catalogue.relations.get(base).map(|relation| format!(" of {}", relation.name)).unwrap_or_default();
        let full = self.control.segment_blocks;
        let mut left = usize::try_from((bytes / u64::from(self.control.block_bytes)).min(u64::from(full))).unwrap_or(usize::MAX);
        let Some(mut block) = segment.checked_mul(full) else { return Ok(()) };
        while left > 0 {
            self.cancel.check()?;
            let run = &mut buffer[..left.min(RUN_PAGES) * size];
            file.read_exact(run).io_context(|| format!("read {path}"))?;
            for page in run.chunks_exact(size) {
                let state = if self.control.data_checksums { check_page(page, block) } else { check_header(page) };
                match state {
                    // The server makes such a page of it anew, and may have been ended while it wrote the first one.
                    PageState::Bad(Damage::NotEmpty) if fork == Fork::FreeSpace && !self.control.data_checksums => {}
                    PageState::Bad(damage) => self.bad.add(|| format!("{path}, block {block}{name}: {damage}")),
                    state => {
                        if !each(block, page, state == PageState::New) {
                            self.bad.add(|| format!("{path}, block {block}{name}: it is a page of something else"));
                        }
                    }
                }
                block = block.saturating_add(1);
            }
            self.pages += (run.len() / size) as u64;
            left -= run.len() / size;
        }
        Ok(())
    }

    /// The pages of a table and of what belongs to it, but for its indexes.
    fn table(&mut self, base: &str, relation: &Relation, forks: &Forks) -> Result<Pages> {
        let none = Files::new();
        let main = forks.get(&Fork::Main).unwrap_or(&none);
        self.tables += 1;
        let mut table = Pages { blocks: self.blocks(base, &relation.name, main), new: Bits::default() };
        // Pages with rows that some may not see.
        let mut dim = Bits::default();
        self.read(base, Fork::Main, main, &mut |block, page, is_new| {
            if is_new {
                table.new.set(block);
            } else if special_at(page) != page.len() {
                return false;
            } else if !page::is_all_visible(page) {
                dim.set(block);
            }
            true
        })?;
        if let Some(files) = forks.get(&Fork::Visibility) {
            self.maps += 1;
            let mut lost = Lost::default();
            self.read(base, Fork::Visibility, files, &mut |block, page, _| {
                for heap_block in visible(page, block) {
                    let unsaid = || dim.has(heap_block).then(|| "says itself that some may not see them".to_owned());
                    lost.add(heap_block, table.lacks(heap_block).or_else(unsaid));
                }
                true
            })?;
            self.lost.extend(lost.finding(&relation.name, "whose rows are visible to all by the visibility map"));
        }
        for fork in [Fork::FreeSpace, Fork::Init] {
            if let Some(files) = forks.get(&fork) {
                self.read(base, fork, files, &mut |_, _, _| true)?;
            }
        }
        let Pages { blocks, .. } = table;
        if relation.pages > 0 && (blocks == 0 || (relation.pages / 2 >= blocks && relation.pages - blocks >= MANY_PAGES)) {
            self.sizes.skipped.push(format!(
                "{} has {blocks} pages, and by the catalogue {} with rows; where that is right at the source, VACUUM it there and back up again",
                relation.name, relation.pages
            ));
        }
        Ok(table)
    }

    /// The pages of an index, and the rows that they lead to.
    fn index(&mut self, base: &str, name: &str, access: Access, forks: &Forks, of: &str, table: &Pages) -> Result<()> {
        let none = Files::new();
        let main = forks.get(&Fork::Main).unwrap_or(&none);
        self.indexes += 1;
        let mut index = Pages { blocks: self.blocks(base, name, main), new: Bits::default() };
        let (blocks, mut rows, mut own) = (index.blocks, Lost::default(), vec![0]);
        self.read(base, Fork::Main, main, &mut |block, page, is_new| {
            if is_new {
                index.new.set(block);
                return true;
            }
            if special_at(page) != page.len() - access.special_bytes() {
                return false;
            }
            access.leads(page, blocks, &mut |lead| match lead {
                Lead::Row(block) => rows.add(block, table.lacks(block)),
                Lead::Own(block) => own.push(block),
            });
            true
        })?;
        self.lost.extend(rows.finding(of, &format!("which its index {name} leads to")));
        let mut pages = Lost::default();
        own.iter().for_each(|block| pages.add(*block, index.lacks(*block)));
        self.lost.extend(pages.finding(name, "which the index needs"));
        for (fork, files) in forks.iter().filter(|(fork, _)| **fork != Fork::Main) {
            self.read(base, *fork, files, &mut |_, _, _| true)?;
        }
        Ok(())
    }

    fn results(self) -> Vec<CheckResult> {
        let Self { pages, files, tables, maps, indexes, bad, unread, lost, mut sizes, catalogue, control, .. } = self;
        let name = if control.data_checksums { CHECKSUMS } else { HEADERS };
        let counted = format!("{pages} pages in {files} files");
        let (outcome, actual) = match (bad.count, unread.as_slice()) {
            (0, []) => (Outcome::Passed, counted),
            (0, unread) => (Outcome::Skipped, format!("{counted}; not read: {}", told(unread))),
            _ => (Outcome::Failed, bad.told()),
        };
        let mut leads = Found { failed: lost, skipped: catalogue.found.skipped.clone() };
        leads.failed.extend(catalogue.found.failed.iter().cloned());
        sizes.skipped.extend(catalogue.found.skipped.iter().cloned());
        vec![
            result(name, outcome, "0 bad pages", actual),
            leads.result(LEADS, "each is there".into(), format!("those of {maps} maps and {indexes} indexes")),
            sizes.result(SIZES, "no lost file".into(), format!("{tables} tables")),
        ]
    }
}

/// The path of a file in the data folder.
fn file_path(base: &str, fork: Fork, segment: u32) -> String {
    let suffix = match fork {
        Fork::Main => "",
        Fork::FreeSpace => "_fsm",
        Fork::Visibility => "_vm",
        Fork::Init => "_init",
    };
    let number = if segment == 0 { String::new() } else { format!(".{segment}") };
    format!("{base}{suffix}{number}")
}

/// The blocks of a table that a page of its visibility map calls visible to all, or frozen: two bits for each, behind the page's header.
fn visible(page: &[u8], map_block: u32) -> impl Iterator<Item = u32> {
    let map = page.get(24..).unwrap_or_default();
    let first = u64::from(map_block) * map.len() as u64 * 4;
    let set = map.iter().enumerate().filter(|(_, byte)| **byte != 0);
    let blocks = set.flat_map(|(at, byte)| (0..4).filter(move |pair| byte >> (2 * pair) & 3 != 0).map(move |pair| at as u64 * 4 + pair));
    blocks.map(move |block| u32::try_from(first + block).unwrap_or(NO_BLOCK))
}

/// An access method of PostgreSQL itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Btree,
    Hash,
    Gist,
    Gin,
    Brin,
}

/// Where a page of an index leads to: a block of its table or of itself.
enum Lead {
    Row(u32),
    Own(u32),
}

impl Access {
    /// By its number in `pg_am`. SP-GiST is none of these.
    fn of(oid: u32) -> Option<Self> {
        match oid {
            403 => Some(Self::Btree),
            405 => Some(Self::Hash),
            783 => Some(Self::Gist),
            2742 => Some(Self::Gin),
            3580 => Some(Self::Brin),
            _ => None,
        }
    }

    /// How much of each page's end is its own.
    fn special_bytes(self) -> usize {
        match self {
            Self::Btree | Self::Hash | Self::Gist => 16,
            Self::Gin | Self::Brin => 8,
        }
    }

    /// Where a page with a sound header leads to, in an index of so many blocks.
    fn leads(self, page: &[u8], blocks: u32, lead: &mut dyn FnMut(Lead)) {
        let own = &page[special_at(page)..];
        match self {
            Self::Btree => btree_leads(page, own, lead),
            Self::Hash => hash_leads(page, own, blocks, lead),
            Self::Gist => gist_leads(page, own, lead),
            Self::Gin => gin_leads(page, own, lead),
            Self::Brin => brin_leads(page, own, lead),
        }
    }
}

/// `BlockIdData`: the high half first.
fn block_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) << 16 | u32::from(u16_at(bytes, at + 2))
}

/// Entries of index pages, `IndexTupleData`: where it leads to (block, item), then length and flags.
fn entries(page: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    page::items(page).filter(|(_, entry)| entry.len() >= 8)
}

/// `BTPageOpaqueData`: both neighbours, level, flags at 12.
fn btree_leads(page: &[u8], own: &[u8], lead: &mut dyn FnMut(Lead)) {
    const LEAF: u16 = 1;
    /// `BTP_DELETED`, `BTP_META`, `BTP_HALF_DEAD`.
    const OTHERS: u16 = 4 | 8 | 16;
    /// `INDEX_ALT_TID_MASK` of the tuple's flags, then `BT_IS_POSTING` of its item number: a list of rows, as many as the rest of that number says, begins at the byte that
    /// the block number says.
    const ALTERNATIVE: u16 = 0x2000;
    const POSTING: u16 = 0x2000;
    if u16_at(own, 12) & (LEAF | OTHERS) != LEAF {
        return;
    }
    // The first one is the page's upper bound, unless there is no page to the right.
    let first = if u32_at(own, 4) == 0 { 1 } else { 2 };
    for (_, entry) in entries(page).filter(|(number, _)| *number >= first) {
        let item = u16_at(entry, 4);
        if u16_at(entry, 6) & ALTERNATIVE == 0 {
            lead(Lead::Row(block_at(entry, 0)));
        } else if item & POSTING != 0 {
            let list = entry.get(block_at(entry, 0) as usize..).unwrap_or_default();
            list.chunks_exact(6).take(usize::from(item & 0x0FFF)).for_each(|row| lead(Lead::Row(block_at(row, 0))));
        }
    }
}

/// `GISTPageOpaqueData`: position, right neighbour, flags at 12.
fn gist_leads(page: &[u8], own: &[u8], lead: &mut dyn FnMut(Lead)) {
    const LEAF: u16 = 1;
    const DELETED: u16 = 2;
    let flags = u16_at(own, 12);
    if flags & DELETED == 0 {
        let is_leaf = flags & LEAF != 0;
        let blocks = entries(page).map(|(_, entry)| block_at(entry, 0));
        blocks.for_each(|block| lead(if is_leaf { Lead::Row(block) } else { Lead::Own(block) }));
    }
}

/// `HashPageOpaqueData`: previous and next page of the bucket, bucket, flags at 12.
fn hash_leads(page: &[u8], own: &[u8], blocks: u32, lead: &mut dyn FnMut(Lead)) {
    const OVERFLOW_OR_BUCKET: u16 = 1 | 2;
    const META: u16 = 8;
    const MAGIC_AND_VERSION: (u32, u32) = (0x0644_0640, 4);
    /// Of `HashMetaPageData`, which begins behind the page's header.
    const MAX_BUCKET: usize = 24 + 24;
    const MAPS: usize = 24 + 44;
    const SPARES: usize = 24 + 52;
    const MAP: usize = 24 + 444;
    let flags = u16_at(own, 12);
    if flags & OVERFLOW_OR_BUCKET != 0 {
        entries(page).for_each(|(_, entry)| lead(Lead::Row(block_at(entry, 0))));
        let next = u32_at(own, 4);
        if next != NO_BLOCK {
            lead(Lead::Own(next));
        }
    } else if flags & META != 0 && (u32_at(page, 24), u32_at(page, 28)) == MAGIC_AND_VERSION {
        for bucket in 0..=u32_at(page, MAX_BUCKET) {
            let spare = if bucket == 0 { 0 } else { u32_at(page, SPARES + 4 * (splitpoint(bucket + 1) - 1)) };
            let block = bucket.saturating_add(spare).saturating_add(1);
            lead(Lead::Own(block));
            // They only grow.
            if block >= blocks {
                break;
            }
        }
        let places = page.get(MAP..special_at(page)).unwrap_or_default();
        places.chunks_exact(4).take(u32_at(page, MAPS) as usize).for_each(|map| lead(Lead::Own(u32_at(map, 0))));
    }
}

/// `_hash_spareindex`: which phase of growth so many buckets belong to, 1 ..= 98 for at least two.
fn splitpoint(buckets: u32) -> usize {
    let group = (buckets - 1).checked_ilog2().map_or(0, |log| log + 1);
    if group < 10 { group as usize } else { (10 + ((group - 10) << 2) + ((buckets - 1) >> (group - 3) & 3)) as usize }
}

/// `GinPageOpaqueData`: right neighbour, how many, flags at 6.
fn gin_leads(page: &[u8], own: &[u8], lead: &mut dyn FnMut(Lead)) {
    const DATA: u16 = 1;
    const LEAF: u16 = 2;
    const DELETED: u16 = 4;
    const META: u16 = 8;
    const LIST: u16 = 16;
    /// `GIN_TREE_POSTING` as item number: the rows are in a tree of their own.
    const TREE: u16 = 0xFFFF;
    let flags = u16_at(own, 6);
    if flags & (DELETED | LIST) != 0 {
        return;
    }
    if flags & META != 0 {
        // The root of the tree of entries; head and tail of the pending list.
        [1, u32_at(page, 24), u32_at(page, 28)].into_iter().filter(|block| *block != NO_BLOCK).for_each(|block| lead(Lead::Own(block)));
    } else if flags & DATA == 0 {
        let leads = entries(page).filter(|(_, entry)| flags & LEAF == 0 || u16_at(entry, 4) == TREE);
        leads.for_each(|(_, entry)| lead(Lead::Own(block_at(entry, 0))));
    } else if flags & LEAF == 0 {
        // `PostingItem`s behind the page's right bound.
        let items = page.get(32..special_at(page)).unwrap_or_default();
        items.chunks_exact(10).take(usize::from(u16_at(own, 4))).for_each(|item| lead(Lead::Own(block_at(item, 0))));
    }
}

/// `BrinSpecialSpace`: what the page is, in the last two bytes.
fn brin_leads(page: &[u8], own: &[u8], lead: &mut dyn FnMut(Lead)) {
    const META: u16 = 0xF091;
    const MAP: u16 = 0xF092;
    match u16_at(own, 6) {
        // Magic, version, pages of a range, the last page of the map.
        META => lead(Lead::Own(u32_at(page, 36))),
        MAP => {
            let places = page.get(24..special_at(page)).unwrap_or_default().chunks_exact(6).filter(|place| u16_at(place, 4) != 0);
            places.for_each(|place| lead(Lead::Own(block_at(place, 0))));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
