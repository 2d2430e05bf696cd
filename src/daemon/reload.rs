//! Plan files that change while the daemon serves: read anew on SIGHUP and when their content changes, validated first, swapped whole.
//!
//! A thread of its own looks at the files, so that a file system that hangs holds nothing up. What it read goes to the serve loop, which alone
//! swaps. Files that cannot be read or are wrong keep the plans that are in force, and are a problem (`plans-broken`) until they are right. Since
//! what kept a file from being read may pass without a trace in it, they are read again now and then until then.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::daemon::control::{Control, Message, Signals};
use crate::daemon::status::ProblemKind;
use crate::error::{Error, Result};
use crate::event::Cancel;
use crate::plan::{Plans, show_text};

/// The kind of the problem that broken files are.
pub const BROKEN: ProblemKind = ProblemKind::PlansBroken;

/// How often the files are looked at. A change counts once two looks in a row saw the same: an editor may be at work.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Files that were wrong, or could not be read, are read again after this, whether or not they changed.
const READ_AGAIN: Duration = Duration::from_mins(1);

/// How soon a signal is noticed.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);

/// What the files were like when they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Print {
    /// Of names, sizes, times and inodes: cheap.
    stat: [u8; 32],
    /// Of names and bytes.
    content: [u8; 32],
}

impl Print {
    /// Looks at all files. What cannot be read counts as such.
    pub(super) fn of(paths: &[PathBuf]) -> Self {
        Self { stat: stat(paths), content: content(paths) }
    }

    /// The same again, reading the files only where something about them changed.
    fn again(&self, paths: &[PathBuf]) -> Self {
        let stat = stat(paths);
        Self { stat, content: if stat == self.stat { self.content } else { content(paths) } }
    }
}

/// The files as [`Plans::load`] finds them; a path that is not there stands for itself.
fn files(paths: &[PathBuf]) -> BTreeSet<PathBuf> {
    let is_plan = |path: &Path| path.extension().is_some_and(|extension| extension == "toml");
    let mut all = BTreeSet::new();
    for path in paths {
        match std::fs::read_dir(path) {
            Ok(entries) => all.extend(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_plan(path))),
            Err(_) => {
                all.insert(path.clone());
            }
        }
    }
    all
}

fn stat(paths: &[PathBuf]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for path in files(paths) {
        hasher.update(path.as_os_str().as_encoded_bytes()).update(&[0]);
        if let Ok(meta) = std::fs::metadata(&path) {
            let facts = [meta.len(), meta.ino(), meta.dev(), meta.mtime().unsigned_abs(), meta.mtime_nsec().unsigned_abs()];
            let changed = [meta.ctime().unsigned_abs(), meta.ctime_nsec().unsigned_abs()];
            for fact in facts.into_iter().chain(changed) {
                hasher.update(&fact.to_le_bytes());
            }
        }
    }
    *hasher.finalize().as_bytes()
}

fn content(paths: &[PathBuf]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for path in files(paths) {
        hasher.update(path.as_os_str().as_encoded_bytes()).update(&[0]);
        match std::fs::read(&path) {
            Ok(bytes) => hasher.update(blake3::hash(&bytes).as_bytes()),
            Err(error) => hasher.update(error.kind().to_string().as_bytes()),
        };
    }
    *hasher.finalize().as_bytes()
}

/// Starts the thread; it ends once `cancel` is set. `print` is of the files before they were read, `wrong` what was wrong with them then.
pub(super) fn watch(
    paths: Vec<PathBuf>,
    print: Print,
    wrong: Option<&Error>,
    signals: Signals,
    control: &Control,
    cancel: Cancel,
) -> Result<JoinHandle<()>> {
    let wrong = wrong.map(|error| Wrong { what: format!("{error:?}"), read: Instant::now() });
    let watch = Watch { paths, in_force: print.clone(), last: print, wrong, signals, inbox: control.sender() };
    std::thread::Builder::new()
        .name("plans".to_owned())
        .spawn(move || watch.until(&cancel))
        .map_err(|error| Error::io("start the thread that watches the plan files", error))
}

struct Watch {
    paths: Vec<PathBuf>,
    /// Of what was read last, right or wrong.
    in_force: Print,
    last: Print,
    wrong: Option<Wrong>,
    signals: Signals,
    inbox: Sender<Message>,
}

/// The files were wrong when they were last read.
struct Wrong {
    what: String,
    read: Instant,
}

impl Watch {
    fn until(mut self, cancel: &Cancel) {
        let mut hangups = self.signals.reloads();
        let mut looked = Instant::now();
        while !cancel.is_cancelled() {
            let asked = self.signals.reloads();
            if asked != hangups {
                hangups = asked;
                self.last = Print::of(&self.paths);
                self.read();
            } else if looked.elapsed() >= LOOK_INTERVAL {
                looked = Instant::now();
                self.look();
            }
            std::thread::sleep(SIGNAL_INTERVAL);
        }
    }

    fn look(&mut self) {
        let now = self.last.again(&self.paths);
        let settled = now.content == self.last.content;
        self.last = now;
        if settled && self.last.content != self.in_force.content {
            self.read();
        } else if let Some(wrong) = self.wrong.take_if(|wrong| wrong.read.elapsed() >= READ_AGAIN) {
            let read = self.load();
            // What is as wrong as before was told.
            if self.wrong.as_ref().is_none_or(|still| still.what != wrong.what) {
                self.tell(read);
            }
        }
    }

    fn read(&mut self) {
        self.in_force = self.last.clone();
        let read = self.load();
        self.tell(read);
    }

    fn load(&mut self) -> Result<Arc<Plans>> {
        let read = Plans::load(&self.paths).map(Arc::new).map_err(Error::from);
        self.wrong = read.as_ref().err().map(|error| Wrong { what: format!("{error:?}"), read: Instant::now() });
        read
    }

    fn tell(&self, read: Result<Arc<Plans>>) {
        // The loop is gone only when the daemon ends.
        let _ = self.inbox.send(Message::PlansRead(read));
    }
}

/// What another set of plans changes, a sentence a line. Names, settings and references to secrets only, as `plan show` prints them.
pub(super) fn difference(old: &Plans, new: &Plans) -> Vec<String> {
    let mut changes = Vec::new();
    changes.extend(old.plans.keys().filter(|name| !new.plans.contains_key(*name)).map(|name| format!("plan {name} is gone")));
    for (name, plan) in &new.plans {
        let Some(before) = old.plans.get(name) else {
            changes.push(format!("plan {name} is new"));
            continue;
        };
        let (before, after) = (show_text(before), show_text(plan));
        if before == after {
            continue;
        }
        let lines = |text: &str| {
            let mut table = String::new();
            let mut lines = BTreeSet::new();
            for line in text.lines().filter(|line| !line.is_empty()) {
                if line.starts_with('[') {
                    line.clone_into(&mut table);
                } else {
                    lines.insert(format!("{table} {line}"));
                }
            }
            lines
        };
        let (before, after) = (lines(&before), lines(&after));
        changes.extend(before.difference(&after).map(|line| format!("plan {name}: no more {line}")));
        changes.extend(after.difference(&before).map(|line| format!("plan {name}: now {line}")));
    }
    if old.serve != new.serve {
        changes.push(format!("serve: max_runs {}, drain {} s", new.serve.max_runs, new.serve.drain.as_secs()));
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "version = 1\n[repository.main]\nurl = \"file:///nowhere/r\"\npassphrase = { env = \"NONE\" }\n[source.a]\nkind = \"files\"\npath = \"/nowhere\"\n[plan.a]\nsource = \"a\"\nrepository = \"main\"\ntimezone = \"UTC\"\n";

    #[test]
    fn a_touched_file_is_the_same_and_other_content_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (file, paths) = (folder.path().join("a.toml"), vec![folder.path().to_owned()]);
        std::fs::write(&file, FILE).unwrap();
        let first = Print::of(&paths);
        std::fs::write(&file, FILE).unwrap();
        assert_eq!(first.again(&paths).content, first.content);
        std::fs::write(&file, format!("{FILE}# more\n")).unwrap();
        let second = first.again(&paths);
        assert_ne!(second.content, first.content);
        std::fs::remove_file(&file).unwrap();
        assert_ne!(second.again(&paths).content, second.content);
    }

    #[test]
    fn files_that_were_wrong_are_read_again_though_nothing_about_them_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, paths) = (folder.path().join("a.toml"), vec![folder.path().to_owned()]);
        let (inbox, told) = std::sync::mpsc::channel();
        let mut watch = Watch {
            paths: paths.clone(),
            in_force: Print::of(&paths),
            last: Print::of(&paths),
            wrong: None,
            signals: Signals::default(),
            inbox,
        };
        let told = || match told.try_recv() {
            Ok(Message::PlansRead(read)) => Some(read.map(|plans| plans.plans.len()).map_err(|error| error.to_string())),
            _ => None,
        };
        std::fs::write(&file, "nonsense").unwrap();
        watch.last = Print::of(&paths);
        watch.read();
        let first = told().unwrap().unwrap_err();
        let later = |watch: &mut Watch| watch.wrong.as_mut().unwrap().read = Instant::now().checked_sub(READ_AGAIN).unwrap();
        watch.look();
        assert_eq!(told(), None, "not yet");
        later(&mut watch);
        watch.look();
        assert_eq!((told(), watch.wrong.is_some()), (None, true), "as wrong as before: {first}");
        // As after a read error that passed: the files look as they did when they were read.
        std::fs::write(&file, FILE).unwrap();
        (watch.last, watch.in_force) = (Print::of(&paths), Print::of(&paths));
        later(&mut watch);
        watch.look();
        assert_eq!((told(), watch.wrong.is_none()), (Some(Ok(1)), true));
        watch.look();
        assert_eq!(told(), None);
    }

    #[test]
    fn the_difference_names_what_changed() {
        let folder = tempfile::tempdir().unwrap();
        let load = |text: &str| {
            std::fs::write(folder.path().join("a.toml"), text).unwrap();
            Plans::load(&[folder.path().to_owned()]).unwrap()
        };
        let old = load(&format!("{FILE}schedule = \"0 2 * * *\"\n"));
        let new =
            load(&format!("{FILE}schedule = \"0 3 * * *\"\n[plan.b]\nsource = \"a\"\nrepository = \"main\"\n[serve]\nmax_runs = 9\n"));
        let changes = difference(&old, &new);
        assert_eq!(changes.len(), 4, "{changes:?}");
        assert!(changes[0].starts_with("plan a: no more [plan.a] schedule = \"0 2"), "{changes:?}");
        assert!(changes[1].starts_with("plan a: now [plan.a] schedule = \"0 3"), "{changes:?}");
        assert_eq!((changes[2].as_str(), changes[3].as_str()), ("plan b is new", "serve: max_runs 9, drain 20 s"));
        assert_eq!(difference(&new, &old).len(), 4);
        assert!(difference(&new, &new).is_empty());
    }
}
