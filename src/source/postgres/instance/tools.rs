//! Finding a server's own programs, and running them as somebody who is not root.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, IoContext, Kind, Result};

/// Without these a private server can neither be started nor told about.
const NEEDED: [&str; 2] = ["postgres", "pg_controldata"];
const CLIENTS: [&str; 2] = ["pg_dump", "pg_restore"];
/// `PG_CONTROL_FILE_SIZE` of PostgreSQL's `catalog/pg_control.h`: a control file is filled up to it.
const CONTROL_FILE_BYTES: u64 = 8192;

/// Who a private server runs as: never root, which PostgreSQL refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
}

impl Account {
    /// Whoever this process is, when it is not root; else the owner of `data`; and where that is root too, `postgres` as the system knows it.
    ///
    /// # Errors
    /// `Usage` when only root is left to choose.
    pub fn choose(data: &Path) -> Result<Self> {
        let own = Self::own();
        if own.uid != 0 {
            return Ok(own);
        }
        let metadata = fs::metadata(data).io_context(|| format!("look at {}", data.display()))?;
        if metadata.uid() != 0 {
            return Ok(Self { uid: metadata.uid(), gid: metadata.gid() });
        }
        let users = fs::read_to_string("/etc/passwd").io_context(|| "read /etc/passwd".into())?;
        Self::named(&users, "postgres").ok_or_else(|| {
            Error::new(Kind::Usage, format!("start PostgreSQL on {}: it may not run as root", data.display()))
                .hint("make the system user postgres (any package of PostgreSQL does), or run lifeboat as another user than root")
        })
    }

    /// Who this process is.
    #[must_use]
    pub fn own() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    /// A user in the text of passwd(5).
    fn named(users: &str, name: &str) -> Option<Self> {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut ids = line.split(':').skip(2).map(str::parse);
        let (Some(Ok(uid)), Some(Ok(gid))) = (ids.next(), ids.next()) else { return None };
        (uid != 0).then_some(Self { uid, gid })
    }

    /// Whether this is somebody else than this process, who then must be root.
    pub(crate) fn is_other(self) -> bool {
        self.uid != Self::own().uid
    }

    /// Checks that this account may enter every folder above `path`, as a server must that works in it.
    ///
    /// # Errors
    /// `Usage` names the folder that keeps it out.
    pub fn can_reach(self, path: &Path) -> Result<()> {
        if !self.is_other() {
            return Ok(());
        }
        let path = fs::canonicalize(path).io_context(|| format!("resolve {}", path.display()))?;
        for folder in path.ancestors().skip(1) {
            let metadata = fs::metadata(folder).io_context(|| format!("look at {}", folder.display()))?;
            let bit = if metadata.uid() == self.uid {
                0o100
            } else if metadata.gid() == self.gid {
                0o010
            } else {
                0o001
            };
            if metadata.mode() & bit == 0 {
                return Err(Error::new(Kind::Usage, format!("the folder {} may not be entered by user {}", folder.display(), self.uid))
                    .hint("let that user enter it (chmod o+x), or put lifeboat's work elsewhere with --state DIR"));
            }
        }
        Ok(())
    }
}

/// The programs of one major version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    bin: PathBuf,
    major: u32,
    version: String,
}

impl Tools {
    /// Finds the programs of a major version: in `bin_directory` when given and nowhere else, otherwise where packages put them, then in PATH.
    ///
    /// # Errors
    /// `Usage` says what to install.
    pub fn find(major: u32, bin_directory: Option<&Path>) -> Result<Self> {
        let places = match bin_directory {
            Some(place) => vec![place.to_owned()],
            None => usual_places(major),
        };
        let mut seen = Vec::new();
        for bin in places {
            match version_in(&bin) {
                Some((found, version)) if found == major => match NEEDED.iter().find(|name| !bin.join(name).is_file()) {
                    None => return Ok(Self { bin, major, version }),
                    Some(name) => seen.push(format!("{} has {version} without {name}", bin.display())),
                },
                Some((_, version)) => seen.push(format!("{} has {version}", bin.display())),
                None if bin_directory.is_some() => seen.push(format!("{} has none", bin.display())),
                None => {}
            }
        }
        let seen = if seen.is_empty() { String::new() } else { format!(" ({})", seen.join(", ")) };
        Err(Error::new(Kind::Usage, format!("find the programs of PostgreSQL {major}: not on this host{seen}"))
            .hint(format!("install the server of version {major} (postgresql-{major}, postgresql{major}-server); it need not run")))
    }

    /// Only the client's programs, for servers elsewhere; found like [`Tools::find`].
    ///
    /// # Errors
    /// `Usage` says what to install.
    pub fn clients(major: u32, bin_directory: Option<&Path>) -> Result<Self> {
        let places = match bin_directory {
            Some(place) => vec![place.to_owned()],
            None => usual_places(major),
        };
        let has_all = |bin: &PathBuf| CLIENTS.iter().all(|name| bin.join(name).is_file());
        let found = places.into_iter().filter(has_all).find_map(|bin| {
            let (found, version) = version_of(&bin, "pg_dump").filter(|(found, _)| *found == major)?;
            Some(Self { bin, major: found, version })
        });
        found.ok_or_else(|| {
            Error::new(Kind::Usage, format!("find pg_dump and pg_restore of PostgreSQL {major}: not on this host"))
                .hint(format!("install the client's programs of version {major} (postgresql-client-{major})"))
        })
    }

    /// The major version, such as 15.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.major
    }

    /// What `postgres --version` says after the name, such as `15.8`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The full path of a program, when it is there.
    #[must_use]
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        Some(self.bin.join(name)).filter(|path| path.is_file())
    }

    /// A program in a clean environment, without input, as this account and none of this process's groups.
    ///
    /// # Errors
    /// `Usage` when it is not installed.
    pub fn command(&self, name: &str, account: Account) -> Result<Command> {
        let path = self.program(name).ok_or_else(|| {
            Error::new(Kind::Usage, format!("find {name} of PostgreSQL {}: not in {}", self.major, self.bin.display()))
                .hint("install the server's packages completely, with contrib where it is a package of its own")
        })?;
        let mut command = Command::new(path);
        // Nothing of this process: PG… variables would be taken as settings, and there may be secrets.
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC").current_dir("/");
        command.stdin(Stdio::null()).process_group(0);
        if account.is_other() {
            // With a user set, the standard library drops all supplementary groups too.
            command.uid(account.uid).gid(account.gid);
        }
        Ok(command)
    }

    /// Runs `pg_controldata` on a data folder.
    ///
    /// # Errors
    /// `Damaged` when its control file is not one, or is not whole; `Usage` when it is whole and the program cannot read it as this account.
    pub fn control(&self, data: &Path, account: Account) -> Result<Control> {
        let context = || format!("read the control file of {}", data.display());
        let mut command = self.command("pg_controldata", account)?;
        let output = command.arg("-D").arg(data).output().io_context(|| "run pg_controldata".into())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let path = data.join("global/pg_control");
            let is_whole = match fs::metadata(&path) {
                Ok(metadata) => metadata.len() >= CONTROL_FILE_BYTES,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
                Err(error) => return Err(Error::io(format!("look at {}", path.display()), error)),
            };
            if !is_whole {
                return Err(Error::new(Kind::Damaged, format!("{}: {}", context(), said.trim())));
            }
            let why = if said.trim().is_empty() { output.status.to_string() } else { said.trim().to_owned() };
            return Err(Error::new(Kind::Usage, format!("{} as user {}: {why}", context(), account.uid)).hint(
                "that user must be able to read the folder and to run the program: look at the modes of the folders above, and at what else may keep it out (SELinux, \
                 AppArmor, mount options); or put lifeboat's work elsewhere with --state DIR",
            ));
        }
        // It only warns of a wrong checksum, and shows what it read anyway.
        if text.contains("WARNING:") || said.contains("WARNING:") || said.contains("warning:") {
            return Err(Error::new(Kind::Damaged, format!("{}: {}", context(), said.trim())));
        }
        Control::parse(&text).ok_or_else(|| Error::new(Kind::Damaged, format!("{}: it is not understood", context())))
    }

    /// Which of these libraries (as `shared_preload_libraries` names them) are installed, and which are not.
    #[must_use]
    pub fn libraries(&self, wanted: &[String]) -> (Vec<String>, Vec<String>) {
        let places = self.library_places();
        wanted.iter().cloned().partition(|name| {
            let plain = name.strip_prefix("$libdir/").unwrap_or(name);
            let file = Path::new(plain).extension().map_or_else(|| format!("{plain}.so"), |_| plain.to_owned());
            // A path would load what the source's configuration says, from wherever it says.
            !plain.contains('/') && places.iter().any(|place| place.join(&file).is_file())
        })
    }

    fn library_places(&self) -> Vec<PathBuf> {
        // Debian, PGDG and self-built; then what the system's own packages of Fedora and SUSE do.
        let mut places: Vec<PathBuf> =
            ["../lib", "../lib/postgresql", "../lib64/pgsql", "../lib64/postgresql"].map(|place| self.bin.join(place)).into();
        let asked = self.program("pg_config").and_then(|program| Command::new(program).arg("--pkglibdir").output().ok());
        if let Some(output) = asked.filter(|output| output.status.success()) {
            places.insert(0, PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
        }
        places
    }
}

fn usual_places(major: u32) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = [
        format!("/usr/lib/postgresql/{major}/bin"),
        format!("/usr/pgsql-{major}/bin"),
        format!("/usr/lib/postgresql{major}/bin"),
        format!("/usr/libexec/postgresql{major}"),
        format!("/opt/postgresql/{major}/bin"),
        format!("/usr/local/pgsql-{major}/bin"),
        "/usr/local/pgsql/bin".to_owned(),
    ]
    .map(PathBuf::from)
    .into();
    places.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths).filter(|place| place.is_absolute()));
    places
}

fn version_in(bin: &Path) -> Option<(u32, String)> {
    version_of(bin, "postgres")
}

fn version_of(bin: &Path, program: &str) -> Option<(u32, String)> {
    let output = Command::new(bin.join(program)).arg("--version").env_clear().stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.trim().strip_prefix(program)?.strip_prefix(" (PostgreSQL) ")?.split(' ').next()?.to_owned();
    // 15.8, 18beta1, 19devel
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    Some((digits.parse().ok()?, version))
}

/// The major version that wrote a data folder.
///
/// # Errors
/// `Usage` when it is not a data folder.
pub fn major_of(data: &Path) -> Result<u32> {
    let path = data.join("PG_VERSION");
    let text = fs::read_to_string(&path).io_context(|| format!("read {}", path.display()))?;
    text.trim().parse().map_err(|_| {
        Error::new(Kind::Usage, format!("read {}: it names no major version", path.display()))
            .hint("PostgreSQL 14 and later are supported; is this a data folder?")
    })
}

/// What a control file says of its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    pub system_identifier: u64,
    /// `shut down`, `in production`, `in archive recovery`, …
    pub state: String,
    pub timeline: u32,
    /// Pages carry checksums.
    pub checksums: bool,
    pub block_bytes: u32,
    pub wal_segment_bytes: u64,
    fields: BTreeMap<String, String>,
}

impl Control {
    fn parse(text: &str) -> Option<Self> {
        let fields: BTreeMap<String, String> = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
            .collect();
        let number = |name: &str| fields.get(name)?.parse::<u64>().ok();
        Some(Self {
            system_identifier: number("Database system identifier")?,
            state: fields.get("Database cluster state")?.clone(),
            timeline: u32::try_from(number("Latest checkpoint's TimeLineID")?).ok()?,
            checksums: number("Data page checksum version")? > 0,
            block_bytes: u32::try_from(number("Database block size")?).ok()?,
            wal_segment_bytes: number("Bytes per WAL segment")?,
            fields,
        })
    }

    /// A `… setting` of the control file, such as `max_connections`.
    #[must_use]
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.fields.get(&format!("{name} setting")).map(String::as_str)
    }

    /// A numeric `… setting`, 0 when it says none.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        self.setting(name).and_then(|value| value.parse().ok()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_of_this_machine_are_found() {
        let tools = Tools::find(15, None).unwrap();
        assert_eq!(tools.major(), 15);
        assert!(tools.version().starts_with("15."), "{}", tools.version());
        let missing = Tools::find(3, None).unwrap_err();
        assert_eq!(missing.kind(), Kind::Usage);
        assert!(missing.hint_text().unwrap().contains("version 3"), "{missing:?}");
        let other = Tools::find(14, Some(Path::new("/usr/lib/postgresql/15/bin"))).unwrap_err();
        assert!(other.to_string().contains("has 15."), "{other}");
    }

    #[test]
    fn libraries_are_told_apart_by_their_files() {
        let tools = Tools::find(15, None).unwrap();
        let wanted = ["pg_stat_statements", "no_such_library", "$libdir/auto_explain", "/tmp/evil", "../evil"].map(String::from);
        let (there, missing) = tools.libraries(&wanted);
        assert_eq!(there, ["pg_stat_statements", "$libdir/auto_explain"]);
        assert_eq!(missing, ["no_such_library", "/tmp/evil", "../evil"]);
    }

    #[test]
    fn a_user_is_found_by_its_name_and_never_root() {
        let users = "root:x:0:0:root:/root:/bin/sh\npostgres:x:101:104::/var/lib/postgresql:/bin/bash\ntoor:x:0:0::/:/bin/sh\n";
        assert_eq!(Account::named(users, "postgres"), Some(Account { uid: 101, gid: 104 }));
        assert_eq!(Account::named(users, "toor"), None);
        assert_eq!(Account::named(users, "nobody"), None);
    }
}
