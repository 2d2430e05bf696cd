//! Reads plan files: finds them, bounds them, and says exactly where one cannot be read.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use serde::Deserialize as _;
use toml::de::DeTable;

use crate::plan::findings::{File, Finding, PlanErrors};
use crate::plan::model::Plans;
use crate::plan::raw::RawFile;
use crate::plan::schema::schema;
use crate::plan::structure;
use crate::plan::validate::{Loaded, validate};

/// Far beyond any plan file; a mistaken path must not be read into memory whole.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// After the first few syntax errors the rest is usually their echo.
const MAX_SYNTAX_ERRORS: usize = 5;

impl Plans {
    /// Reads all plan files: each path is a file, or a folder whose `*.toml` files are read (not those of its subfolders, nor
    /// hidden ones). Nothing but these files is opened: no secret is resolved, no repository asked.
    ///
    /// # Errors
    /// Everything that is wrong, at once. Turns into a [`crate::error::Error`] of kind usage.
    pub fn load(paths: &[PathBuf]) -> Result<Self, PlanErrors> {
        let mut findings = Vec::new();
        let files = find_files(paths, &mut findings);
        let schema = schema();
        let mut loaded = Vec::new();
        let mut complete = findings.is_empty();
        for (file, found) in read_all(&files, &schema) {
            findings.extend(found);
            match file {
                Some(file) => loaded.push(file),
                None => complete = false,
            }
        }
        let mut plans = validate(&loaded, complete, &mut findings);
        plans.files = files;
        if findings.is_empty() { Ok(plans) } else { Err(PlanErrors::new(findings)) }
    }

    /// Reads the text of one file, as if it were all there is.
    #[doc(hidden)]
    pub fn from_text(text: &str) -> Result<Self, PlanErrors> {
        static SCHEMA: LazyLock<serde_json::Value> = LazyLock::new(schema);
        let mut findings = Vec::new();
        let file = Arc::new(File { path: "plan.toml".into(), text: text.to_owned() });
        let loaded: Vec<Loaded> = decode(&file, &SCHEMA, &mut findings).into_iter().collect();
        let plans = validate(&loaded, !loaded.is_empty(), &mut findings);
        if findings.is_empty() { Ok(plans) } else { Err(PlanErrors::new(findings)) }
    }
}

/// What can be used of plan files some of which are wrong: in an incident nothing that is whole is to wait for the others.
#[derive(Debug, Clone)]
pub struct Sound {
    /// Of the files that are right by themselves and in what they refer to.
    pub plans: Plans,
    /// Everything that is wrong in the others; `None`: there are none.
    pub errors: Option<PlanErrors>,
    /// The text of each file that was left out; `None`: it cannot be read, and may say anything.
    left_out: Vec<Option<String>>,
}

impl Sound {
    /// Reads plan files like [`Plans::load`] and leaves out those that are wrong, and those that need what is in them.
    ///
    /// # Errors
    /// Everything that is wrong, when no plan and no repository is left.
    pub fn load(paths: &[PathBuf]) -> Result<Self, PlanErrors> {
        let mut errors = match Plans::load(paths) {
            Ok(plans) => return Ok(Self { plans, errors: None, left_out: Vec::new() }),
            Err(errors) => errors,
        };
        let mut files = find_files(paths, &mut Vec::new());
        let (all, mut found) = (files.clone(), errors.clone());
        let plans = loop {
            let before = files.len();
            let wrong: BTreeSet<PathBuf> = found.paths().map(Path::to_owned).collect();
            files.retain(|file| !wrong.contains(file));
            // What is wrong is not in a file of its own (there may be more that nobody sees), or there is nothing left.
            if files.len() == before || files.is_empty() || wrong.iter().any(|path| !all.contains(path)) {
                return Err(errors);
            }
            match Plans::load(&files) {
                Ok(plans) if plans.plans.is_empty() && plans.repositories.is_empty() => return Err(errors),
                Ok(plans) => break Plans { is_partial: true, ..plans },
                Err(more) => {
                    errors.extend(more.clone());
                    found = more;
                }
            }
        };
        let left_out = all.iter().filter(|path| !files.contains(path));
        let left_out = left_out.map(|path| std::fs::read(path).ok().and_then(|bytes| String::from_utf8(bytes).ok())).collect();
        Ok(Self { plans, errors: Some(errors), left_out })
    }

    /// A plan by name, when no file that is wrong says anything of it.
    ///
    /// # Errors
    /// Usage: what is wrong in the files, where the plan is or may be in one of them; else as [`Plans::plan`].
    pub fn plan(&self, name: &str) -> Result<&Arc<crate::plan::Plan>, crate::error::Error> {
        match (&self.errors, self.plans.plan(name)) {
            (Some(errors), _) if self.may_say(|text| speaks_of_plan(text, name)) => Err(errors.clone().into()),
            (Some(errors), Err(_)) => Err(errors.clone().into()),
            (_, plan) => plan,
        }
    }

    /// The plans, where no file that is wrong may say which journal there is.
    ///
    /// # Errors
    /// Usage: what is wrong in the files.
    pub fn with_their_journal(self) -> Result<Plans, crate::error::Error> {
        match self.errors {
            Some(ref errors) if self.may_say(|text| text.contains("journal")) => Err(errors.clone().into()),
            _ => Ok(self.plans),
        }
    }

    /// Whether one of the files that were left out says this, or cannot be read.
    fn may_say(&self, says: impl Fn(&str) -> bool) -> bool {
        self.left_out.iter().any(|text| text.as_deref().is_none_or(&says))
    }
}

/// Whether a file that cannot be relied on may define this plan, however that is written. Rather once too often.
fn speaks_of_plan(text: &str, name: &str) -> bool {
    let is_table_of_plans = |line: &str| line.split('#').next().is_some_and(|line| line.split_whitespace().collect::<String>() == "[plan]");
    text.lines().any(|line| line.contains("plan") && line.contains(name)) || (text.lines().any(is_table_of_plans) && text.contains(name))
}

/// Each file once, sorted within its folder.
fn find_files(paths: &[PathBuf], findings: &mut Vec<Finding>) -> Vec<PathBuf> {
    let mut seen = BTreeSet::new();
    let mut files = Vec::new();
    if paths.is_empty() {
        findings.push(Finding::about(".", "no plan file or folder was given").hint("name one with --plans"));
    }
    for path in paths {
        let found = if path.is_dir() {
            match list(path) {
                Ok(found) if found.is_empty() => {
                    findings.push(
                        Finding::about(path, "the plans folder has no *.toml file")
                            .hint("put a plan file there, or name another folder with --plans"),
                    );
                    found
                }
                Ok(found) => found,
                Err(error) => {
                    findings.push(Finding::about(path, format!("the plans folder cannot be read: {error}")));
                    Vec::new()
                }
            }
        } else if path.exists() {
            vec![path.clone()]
        } else {
            findings
                .push(Finding::about(path, "there is no such plan file or folder").hint("name the folder of the plan files with --plans"));
            Vec::new()
        };
        files.extend(found.into_iter().filter(|file| seen.insert(file.canonicalize().unwrap_or_else(|_| file.clone()))));
    }
    files
}

fn list(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The files with what is wrong in each, in their order: read on all processors, as there may be thousands.
fn read_all(files: &[PathBuf], schema: &serde_json::Value) -> Vec<(Option<Loaded>, Vec<Finding>)> {
    let read_some = |files: &[PathBuf]| -> Vec<_> {
        let one = |path: &PathBuf| {
            let mut findings = Vec::new();
            (read(path, schema, &mut findings), findings)
        };
        files.iter().map(one).collect()
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let share = files.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let parts: Vec<_> = files.chunks(share).map(|part| scope.spawn(move || read_some(part))).collect();
        parts.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// `None` when the file cannot be taken into account at all.
fn read(path: &Path, schema: &serde_json::Value, findings: &mut Vec<Finding>) -> Option<Loaded> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        findings.push(Finding::about(path, format!("the plan file cannot be read: {error}")));
        return None;
    }
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_FILE_BYTES {
        findings.push(Finding::about(path, "the plan file is longer than 1 MiB").hint("is this really a plan file?"));
        return None;
    }
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let file = Arc::new(File { path: path.to_owned(), text: String::from_utf8_lossy(error.as_bytes()).into_owned() });
            findings.push(Finding::at(&file, at..at + 1, "the plan file is not UTF-8 text").hint("save it as UTF-8"));
            return None;
        }
    };
    decode(&Arc::new(File { path: path.to_owned(), text }), schema, findings)
}

/// The text of a file.
fn decode(file: &Arc<File>, schema: &serde_json::Value, findings: &mut Vec<Finding>) -> Option<Loaded> {
    let (mut root, errors) = DeTable::parse_recoverable(&file.text);
    if !errors.is_empty() {
        let syntax = |error: &toml::de::Error| {
            let span = error.span().unwrap_or(file.text.len()..file.text.len());
            Finding::at(file, span, format!("not valid TOML: {}", error.message()))
        };
        findings.extend(errors.iter().take(MAX_SYNTAX_ERRORS).map(syntax));
        return None;
    }
    let before = findings.len();
    structure::check(schema, file, root.get_mut(), findings);
    let rejected = findings[before..].iter().filter_map(|finding| finding.place.as_ref().map(|(_, span)| span.start)).collect();
    match RawFile::deserialize(toml::Deserializer::from(root)) {
        Ok(raw) => Some(Loaded { file: Arc::clone(file), raw, rejected }),
        Err(error) => {
            // The schema let something through that the types do not: still an error with its place.
            findings.push(Finding::at(file, error.span().unwrap_or(0..0), error.message()).masked());
            None
        }
    }
}
