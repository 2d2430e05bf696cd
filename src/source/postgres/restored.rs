//! What a restored folder needs in its configuration, so that the one printed command starts it and nobody else is harmed; and what its operator has to know.
//!
//! A source may have had settings on its command line, in files outside its data folder, or in force until a restart: none of that is in a restored
//! folder. The control file and the log say what they were, as far as a recovery depends on it. `postgresql.auto.conf` is read last, so what is written there
//! holds whatever the rest says.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{IoContext, Result};
use crate::source::postgres::configuration::Said;
use crate::source::postgres::control::{Control, Room};
use crate::source::postgres::instance::{self, Tools};
use crate::source::postgres::places::Places;

const ARCHIVE_MODE: &str = "archive_mode";
const SUBSCRIPTION_WORKERS: &str = "max_logical_replication_workers";
const SYNCHRONOUS: &str = "synchronous_standby_names";
const LIBRARIES: &str = "shared_preload_libraries";
const LOCALES: [&str; 4] = ["lc_messages", "lc_monetary", "lc_numeric", "lc_time"];
const SOCKETS: &str = "unix_socket_directories";
const KEYTAB: &str = "krb_server_keyfile";
/// With what a server takes where its configuration does not name it. Empty: none.
const TLS: [(&str, &str); 6] = [
    ("ssl_cert_file", "server.crt"),
    ("ssl_key_file", "server.key"),
    ("ssl_ca_file", ""),
    ("ssl_crl_file", ""),
    ("ssl_crl_dir", ""),
    ("ssl_dh_params_file", ""),
];
/// Slots that a server has whose configuration does not say how many; origins are as many.
const USUAL_ORIGINS: u64 = 10;

/// The settings that this module wants to know ([`crate::source::postgres::configuration::said_by_the_source`]).
pub(super) fn names() -> Vec<&'static str> {
    let mut names = vec![ARCHIVE_MODE, SUBSCRIPTION_WORKERS, SYNCHRONOUS, LIBRARIES, SOCKETS, KEYTAB, "ssl", "wal_level"];
    names.extend(["max_replication_slots", "max_active_replication_origins"]);
    names.extend(Room::default().settings().map(|(name, ..)| name));
    names.extend(LOCALES);
    names.extend(TLS.map(|(name, _)| name));
    names
}

/// As much room as the log needs, which is what its server had: with less a restored one refuses to start. `ahead`: what the log raises it to. `bare`: the configuration was
/// written by lifeboat and says nothing.
///
/// # Errors
/// `Damaged` when the control file is.
pub(super) fn room(data: &Path, said: &Said, ahead: Room, bare: bool, major: u32) -> Result<Places> {
    let path = data.join("global/pg_control");
    let control = Control::parse(&fs::read(&path).io_context(|| format!("read {}", path.display()))?)?;
    let mut settings = Vec::new();
    for (name, needed, usual) in control.room.with(ahead).settings() {
        let named = said.text(name).map(|text| text.parse::<u32>().ok());
        let is_enough = named.unwrap_or(Some(usual)).is_some_and(|room| room >= needed);
        if bare || said.goes_on_outside || !is_enough {
            settings.push((name.to_owned(), named.flatten().unwrap_or(0).max(needed).to_string()));
        }
    }
    let (name, many) = instance::room_for_origins(major);
    let origins = origins(data)?;
    let named = said.text(name).map_or(Some(USUAL_ORIGINS), |text| text.parse().ok());
    // The log may name some more than there were.
    let is_enough = origins == 0 || (!said.goes_on_outside && named.is_some_and(|room| room >= origins * 2));
    if bare || !is_enough {
        settings.push((name.to_owned(), many));
    }
    // Senders are refused with it. No backup was made of a server that had it in force.
    if said.text("wal_level") == Some("minimal") {
        settings.push(("wal_level".to_owned(), "replica".to_owned()));
    }
    let mut told = Vec::new();
    if !bare && !settings.is_empty() {
        let all: Vec<String> = settings.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        let why = if said.goes_on_outside {
            "which may not be said, as its configuration includes what is not in the folder"
        } else {
            "which its configuration does not say (it was on its command line, or the log says that it was raised later)"
        };
        told.push(format!("it needs the room that the source had, {why}; so these stand in its postgresql.auto.conf: {}", all.join(", ")));
    }
    Ok(Places { settings, told })
}

/// How many replication origins were in use: those of subscriptions (`replorigin_checkpoint` in `origin.c`: a number, 16 bytes for each, a checksum).
fn origins(data: &Path) -> Result<u64> {
    let path = data.join("pg_logical/replorigin_checkpoint");
    match fs::metadata(&path) {
        Ok(found) => Ok(found.len().saturating_sub(8) / 16),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).io_context(|| format!("look at {}", path.display())),
    }
}

/// A copy that archives would write into the log of its source; one whose subscriptions run takes their rows away from the source's, for good; one that
/// waits for the source's standbys waits for ever. What is switched off is told with how it is switched on. `bare`: the configuration was written by lifeboat.
pub(super) fn quiet(said: &Said, bare: bool) -> Places {
    let off = [(ARCHIVE_MODE, "off"), (SUBSCRIPTION_WORKERS, "0"), (SYNCHRONOUS, "")];
    let settings = off.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let mode = said.text(ARCHIVE_MODE).filter(|mode| mode.eq_ignore_ascii_case("always")).map_or("on", |_| "always");
    let mut told = vec![format!(
        "it archives nothing (archive_mode = off), so that a copy does not write into the log of its source; if it is to take the place of the source, \
         once the old one is off for good: ALTER SYSTEM SET archive_mode = {mode}, restart it, then take a backup"
    )];
    // What it said may stand in the same file, where RESET would take it out too.
    let workers = match said.text(SUBSCRIPTION_WORKERS) {
        Some(number) => format!("ALTER SYSTEM SET {SUBSCRIPTION_WORKERS} = {}", quoted(number)),
        None => format!("ALTER SYSTEM RESET {SUBSCRIPTION_WORKERS}"),
    };
    told.push(format!(
        "it runs no subscriptions ({SUBSCRIPTION_WORKERS} = 0), so that a copy does not take rows away from those of its source; if it is to take the place of the source, once the old \
         one is off for good: {workers}, and restart it; in a copy that stays one, before you drop or alter a subscription: ALTER SUBSCRIPTION … DISABLE, then SET (slot_name = NONE), \
         or the slot of the source's is dropped"
    ));
    let waits = match said.text(SYNCHRONOUS) {
        Some(names) => Some((format!("the source's say {}", quoted(names)), format!("SET {SYNCHRONOUS} = {}", quoted(names)))),
        None if bare || said.goes_on_outside => {
            Some(("configuration that is not in the folder may name some".to_owned(), format!("RESET {SYNCHRONOUS}")))
        }
        None => None,
    };
    if let Some((what, how)) = waits {
        told.push(format!(
            "its commits wait for no standby ({SYNCHRONOUS} is empty; {what}): a copy would wait for ever; once it has standbys of its own: ALTER SYSTEM {how}, \
             and SELECT pg_reload_conf()"
        ));
    }
    Places { settings, told }
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// Files and folders that the configuration of a restored folder, which will be at `target` (absolute), names and that are not in it, or nowhere.
pub(super) fn outside(data: &Path, target: &Path, said: &Said) -> Option<String> {
    let tls = TLS.iter().filter(|_| said.is_on("ssl")).map(|(name, usual)| (*name, said.text(name).unwrap_or(usual).to_owned()));
    let keytab = said.text(KEYTAB).map(|place| place.strip_prefix("WRFILE:").or(place.strip_prefix("FILE:")).unwrap_or(place));
    let keytab = keytab.map(|place| (KEYTAB, place.to_owned()));
    // `@` is not in the file system.
    let sockets = said.list(SOCKETS).into_iter().filter(|place| !place.starts_with('@')).map(|place| (SOCKETS, place));
    let mut named = Vec::new();
    for (name, place) in tls.chain(keytab).chain(sockets).filter(|(_, place)| !place.is_empty()) {
        let then = target.join(&place);
        let inside = then.strip_prefix(target).ok().map(|inside| data.join(inside));
        let is_there = fs::metadata(inside.as_deref().unwrap_or(&then)).is_ok();
        match (inside, is_there) {
            (Some(_), true) => {}
            (Some(_), false) => named.push(format!("{name} = {place} (not in the backup)")),
            (None, true) if name == SOCKETS => {}
            (None, true) => named.push(format!("{name} = {place}")),
            (None, false) => named.push(format!("{name} = {place} (not on this host)")),
        }
    }
    if named.is_empty() {
        return None;
    }
    let tls = if said.is_on("ssl") { "; without TLS it starts with ssl = off in the last line of its postgresql.auto.conf" } else { "" };
    Some(format!(
        "its configuration names what is not in the folder, and without which it does not start, or lets nobody in: {}; see that all of it is there before you start it{tls}",
        named.join(", ")
    ))
}

/// What its libraries are, which run workers of their own in a copy too. `source`: those that its source had loaded.
pub(super) fn libraries(said: &Said, source: &[String], tools: Option<&Tools>) -> Vec<String> {
    let mut told = Vec::new();
    let loaded = said.list(LIBRARIES);
    if !loaded.is_empty() {
        let missing = tools.map_or_else(Vec::new, |tools| tools.libraries(&loaded).1);
        let missing = if missing.is_empty() {
            String::new()
        } else {
            format!(
                "; not on this host, and it does not start without them: {} (install them, or take them out of {LIBRARIES})",
                missing.join(", ")
            )
        };
        told.push(format!(
            "it loads {} when it starts, and their workers run: before you start a copy beside its source, look at what they do from there (jobs of pg_cron, subscriptions of \
             pglogical); to start it without them, write {LIBRARIES} = '' as the last line of its postgresql.auto.conf{missing}",
            loaded.join(", ")
        ));
    }
    let unsaid: Vec<&str> = source.iter().filter(|name| !loaded.contains(name)).map(String::as_str).collect();
    if !unsaid.is_empty() {
        told.push(format!(
            "the source had loaded {}, which the configuration in the folder does not say (it was on its command line, or in a file outside): what needs these libraries does not work without \
             them, and log that they wrote cannot be replayed; name them in {LIBRARIES} in its postgresql.auto.conf before you start it",
            unsaid.join(", ")
        ));
    }
    told
}

/// Locales of its configuration that this host does not have: the server would call its configuration wrong. `None`: it has them, or does not tell.
pub(super) fn locales(said: &Said) -> Option<String> {
    let plain = |name: &str| name.to_ascii_lowercase().replace('-', "");
    let wanted: Vec<(&str, &str)> = LOCALES.iter().filter_map(|name| Some((*name, said.text(name)?))).collect();
    let output = Command::new("locale")
        .arg("-a")
        .stdin(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success() && !wanted.is_empty())?;
    let there: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(|line| plain(line.trim())).collect();
    let missing: Vec<String> = wanted
        .iter()
        .filter(|(_, value)| !matches!(*value, "C" | "POSIX") && !there.contains(&plain(value)))
        .map(|(name, value)| format!("{name} = {value}"))
        .collect();
    (!missing.is_empty()).then(|| {
        format!(
            "its configuration names locales that are not on this host, without which it does not start: {}; install them (locale-gen, langpacks): its databases most likely need them too",
            missing.join(", ")
        )
    })
}

/// What to look at before a standby is made of a restored server, which will be at `target`.
pub(super) fn before_a_standby(target: &Path) -> String {
    format!(
        "once it is promoted it takes the settings of this recovery out of its postgresql.auto.conf; before you make a standby of it (pg_basebackup), see that they are gone: grep recovery_target {} \
         finds nothing; else ALTER SYSTEM RESET each of them, or the standby would end at the same target and promote itself",
        target.join("postgresql.auto.conf").display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::configuration::said_by_the_source;
    use crate::source::postgres::test_server::TestServer;

    fn said(data: &Path, conf: &str) -> Said {
        fs::write(data.join("postgresql.conf"), conf).unwrap();
        said_by_the_source(data, Path::new("/new"), &names())
    }

    fn text(places: &Places) -> Vec<String> {
        places.settings.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn room_is_written_where_the_configuration_says_less_or_cannot_be_known() {
        let server = TestServer::start(&[], "max_worker_processes = 12");
        let major = server.major();
        let control = fs::read(server.data().join("global/pg_control")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        fs::create_dir(data.join("global")).unwrap();
        fs::create_dir(data.join("pg_logical")).unwrap();
        fs::write(data.join("global/pg_control"), control).unwrap();
        let room = |conf: &str, ahead: Room, bare: bool| room(data, &said(data, conf), ahead, bare, major).unwrap();
        let none = Room::default();
        // The test server has 20 connections; the rest is usual.
        assert_eq!(room("max_worker_processes = 12\n", none, false), Places::default());
        assert_eq!(
            text(&room("max_connections = 19\nmax_worker_processes = '0x20'\n", none, false)),
            ["max_connections=20", "max_worker_processes=12"]
        );
        assert_eq!(
            text(&room("max_worker_processes = 99\n", Room { prepared_transactions: 3, ..none }, false)),
            ["max_prepared_transactions=3"]
        );
        let unknown = room("include '/etc/lifeboat-test/gone.conf'\nmax_connections = 300\n", none, false);
        let expected = [
            "max_connections=300",
            "max_worker_processes=12",
            "max_wal_senders=10",
            "max_prepared_transactions=0",
            "max_locks_per_transaction=64",
        ];
        assert_eq!(text(&unknown), expected);
        assert!(unknown.told[0].contains("includes what is not in the folder"), "{unknown:?}");
        let bare = room("", none, true);
        assert_eq!((text(&bare)[0].as_str(), bare.settings.len(), bare.told.len()), ("max_connections=20", 6, 0));
        let (origins, _) = instance::room_for_origins(major);
        let enough = "max_worker_processes = 12\n".to_owned();
        fs::write(data.join("pg_logical/replorigin_checkpoint"), [0; 8 + 16 * 6]).unwrap();
        assert_eq!(text(&room(&enough, none, false)), [format!("{origins}=10000")]);
        assert_eq!(room(&format!("{enough}{origins} = 12\n"), none, false), Places::default());
        assert_eq!(text(&room(&format!("{enough}{origins} = 12\nwal_level = minimal\n"), none, false)), ["wal_level=replica"]);
    }

    #[test]
    fn what_is_switched_off_is_told_with_what_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let quiet = |conf: &str| quiet(&said(folder.path(), conf), false);
        let plain = quiet("");
        assert_eq!(text(&plain), ["archive_mode=off", "max_logical_replication_workers=0", "synchronous_standby_names="]);
        assert_eq!(plain.told.len(), 2, "{plain:?}");
        assert!(plain.told[1].contains("ALTER SYSTEM RESET max_logical_replication_workers"), "{plain:?}");
        let all =
            quiet("archive_mode = always\nmax_logical_replication_workers = 6\nsynchronous_standby_names = 'ANY 1 (\"it''s\")'\n").told;
        assert!(all[0].contains("SET archive_mode = always"), "{all:?}");
        assert!(all[1].contains("ALTER SYSTEM SET max_logical_replication_workers = '6'"), "{all:?}");
        assert!(all[2].contains("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (\"it''s\")'"), "{all:?}");
        assert_eq!(quiet("synchronous_standby_names = 'x'\nsynchronous_standby_names = ''\n").told.len(), 2);
    }

    #[test]
    fn what_the_configuration_names_elsewhere_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (data, elsewhere) = (folder.path().join("data"), folder.path().join("ca.pem"));
        fs::create_dir(&data).unwrap();
        fs::write(data.join("server.crt"), "").unwrap();
        fs::write(&elsewhere, "").unwrap();
        let told = |conf: &str| outside(&data, Path::new("/new"), &said(&data, conf));
        assert_eq!(told("ssl = off\nssl_key_file = '/nowhere/key'\nunix_socket_directories = '/tmp, @x'\n"), None);
        let conf = format!(
            "ssl = yes\nssl_ca_file = '{}'\nkrb_server_keyfile = 'FILE:/nowhere/krb5'\nunix_socket_directories = '/tmp,/nowhere/s'\n",
            elsewhere.display()
        );
        let all = told(&conf).unwrap();
        let expected = format!(
            ": ssl_key_file = server.key (not in the backup), ssl_ca_file = {}, krb_server_keyfile = /nowhere/krb5 (not on this host), unix_socket_directories = /nowhere/s (not on this host);",
            elsewhere.display()
        );
        assert!(all.contains(&expected) && all.contains("ssl = off"), "{all}");
    }

    #[test]
    fn libraries_and_locales_that_are_not_here_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let said = |conf: &str| said(folder.path(), conf);
        assert_eq!(libraries(&said(""), &[], None), Vec::<String>::new());
        let two = libraries(&said("shared_preload_libraries = 'pg_cron, \"no_such\"'\n"), &["pg_cron".into(), "timescaledb".into()], None);
        assert!(two[0].contains("it loads pg_cron, no_such when") && two[1].contains("had loaded timescaledb, which"), "{two:?}");
        assert_eq!(locales(&said("lc_messages = 'C'\nlc_time = 'POSIX'\n")), None);
        let missing = locales(&said("lc_messages = 'xx_XX.UTF-8'\nlc_time = 'C'\n")).unwrap();
        assert!(missing.contains(": lc_messages = xx_XX.UTF-8;"), "{missing}");
    }
}
