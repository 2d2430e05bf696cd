//! What a server lacks for backups, its log and drills: looked at, nothing is changed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::{fs, io};

use crate::error::{Context, Error, IoContext, Kind, Result};
use crate::event::Cancel;
use crate::source::Diagnosis;
use crate::source::postgres::backup::{Facts, OTHER_FOLDER, STATE_PAUSE, STATE_TRIES, not_captured, state_differs};
use crate::source::postgres::canary::{self, Written};
use crate::source::postgres::client::{Connection, Mode, Row, quote_literal, sqlstate};
use crate::source::postgres::configuration::{Configuration, is_outside};
use crate::source::postgres::conninfo::Settings;
use crate::source::postgres::fingerprint;
use crate::source::postgres::instance::Tools;
use crate::source::postgres::local::control_of;
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::replication;
use crate::source::postgres::{PostgresSource, diagnosis};

/// With less than this many bytes free where its log is, a busy server may stop for want of room at any moment.
const LITTLE_ROOM: u64 = 256 << 20;

/// So many tables are named.
const TOLD: usize = 5;
/// An archiver that works takes a segment within this.
const WAITED_MINUTES: u32 = 5;

/// Everything that a source needs, in the order in which an operator would set it up.
pub(super) fn diagnose(settings: &Settings, source: &PostgresSource) -> Vec<Diagnosis> {
    let cancel = Cancel::default();
    let mut sql = match Connection::connect(settings, Mode::Sql { database: None }, &cancel) {
        Ok(sql) => sql,
        Err(error) => return vec![diagnosis("server", Err(error))],
    };
    let facts = match Facts::read(&mut sql) {
        Ok(facts) => facts,
        Err(error) => return vec![diagnosis("server", Err(error))],
    };
    let major = facts.version / 10_000;
    let role = if facts.in_recovery { ", a standby" } else { "" };
    let mut found = vec![diagnosis("server", Ok(format!("PostgreSQL {major} ({}{role})", facts.version)))];
    let level = if facts.wal_level == "minimal" {
        Err(Error::new(Kind::Usage, "wal_level is minimal").hint("set wal_level = replica and restart the server"))
    } else {
        Ok(format!("wal_level = {}", facts.wal_level))
    };
    found.push(diagnosis("log", level));
    let replication = Connection::connect(settings, Mode::Replication, &cancel)
        .and_then(|mut connection| replication::identify_system(&mut connection))
        .map(|identity| format!("system {} on timeline {}", identity.system_identifier, identity.timeline))
        .map_err(|error| {
            let hint = "ALTER ROLE … REPLICATION, a `replication` line for it in pg_hba.conf, and a free max_wal_senders";
            if error.hint_text().is_some() { error } else { error.hint(hint) }
        });
    found.push(diagnosis("replication", replication));
    found.push(diagnosis("senders and slots", places(&mut sql, source)));
    found.push(diagnosis("privileges", privileges(&mut sql, source.data_directory.is_some(), &facts)));
    let checksums = if facts.checksums {
        "on".to_owned()
    } else {
        "off: damage on the server's disk is not noticed by a backup; with the server stopped, `pg_checksums --enable` switches them on"
            .to_owned()
    };
    found.push(diagnosis("page checksums", Ok(checksums)));
    if let Some(folder) = &source.data_directory {
        found.push(diagnosis("data folder", data_folder(&mut sql, folder)));
        found.push(diagnosis("room on the server", room(folder)));
    }
    found.push(diagnosis("row security", row_security(settings, &cancel)));
    found.push(diagnosis("configuration", configuration(&mut sql, source.data_directory.as_deref())));
    found.push(diagnosis("archiving", archiving(&mut sql, source.archives)));
    if let Some(slot) = &source.log_slot {
        found.push(diagnosis("continuous log", log(&mut sql, slot)));
    }
    if let Some(row) = &source.canary {
        found.push(diagnosis("canary row", canary_row(settings, row, &cancel)));
    }
    let programs = Tools::find(major, source.bin_directory.as_deref()).map(|tools| format!("PostgreSQL {}", tools.version()));
    found.push(diagnosis("programs for drills", programs));
    found.push(diagnosis("locales for drills", locales(&mut sql)));
    found.push(diagnosis("superuser for drills", superuser(facts)));
    found
}

/// Who a recovered server can be asked as.
fn superuser(facts: Facts) -> Result<String> {
    if facts.superuser_logs_in {
        return Ok(facts.superuser);
    }
    Err(Error::new(
        Kind::Usage,
        "no superuser may log in: what is recovered can be neither looked into by a drill nor taken apart by --only",
    )
    .hint("ALTER ROLE … LOGIN for one; pg_hba.conf can keep it out all the same (`local all NAME reject`)"))
}

/// Whether this host has the locales of the databases: a server opens none without.
fn locales(sql: &mut Connection) -> Result<String> {
    let rows = sql.query(
        "SELECT l.name, pg_catalog.min(d.datname) AS database FROM pg_catalog.pg_database d, LATERAL (VALUES (d.datcollate::text), (d.datctype::text)) l(name) \
         WHERE d.datallowconn AND l.name NOT IN ('C', 'POSIX') GROUP BY l.name ORDER BY l.name",
    )?;
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    for row in &rows {
        let (name, database) = (row.required("name")?, row.required("database")?);
        match is_locale(name) {
            Ok(true) => there.push(name),
            Ok(false) => missing.push(format!("{name} (of database {database})")),
            Err(error) => return Ok(format!("not looked at: the program `locale` cannot be run ({error}); a drill tells what is missing")),
        }
    }
    if missing.is_empty() {
        return Ok(if there.is_empty() { "none is needed".into() } else { there.join(", ") });
    }
    Err(Error::new(Kind::Usage, format!("not installed on this host: {}", missing.join(", ")))
        .hint("install them (locales-all, glibc-langpack-…), else drills cannot look into these databases"))
}

/// Asks the C library's own program, which complains of a locale that it does not have.
fn is_locale(name: &str) -> std::io::Result<bool> {
    let output = Command::new("locale").arg("charmap").env("LC_ALL", name).stdin(Stdio::null()).output()?;
    Ok(output.status.success() && output.stderr.is_empty())
}

fn one_row(sql: &mut Connection, query: &str) -> Result<Row> {
    sql.query(query)?.into_iter().next().ok_or_else(|| Error::new(Kind::Failed, "the server does not answer"))
}

fn number(row: &Row, index: usize) -> Result<i64> {
    row.get(index).unwrap_or_default().parse().context(Kind::Failed, || "understand a number of the server".to_owned())
}

/// Whether connections that replicate and slots are left for what the source does.
fn places(sql: &mut Connection, source: &PostgresSource) -> Result<String> {
    let row = one_row(
        sql,
        "SELECT pg_catalog.current_setting('max_replication_slots'), (SELECT count(*) FROM pg_catalog.pg_replication_slots), \
         pg_catalog.current_setting('max_wal_senders'), (SELECT count(*) FROM pg_catalog.pg_stat_get_wal_senders()), \
         NOT pg_catalog.pg_is_in_recovery() AND pg_catalog.has_function_privilege('pg_catalog.pg_create_restore_point(text)', 'EXECUTE')",
    )?;
    let (slots, senders) = (number(&row, 0)? - number(&row, 1)?, number(&row, 2)? - number(&row, 3)?);
    let own = match &source.log_slot {
        Some(slot) => replication::slot_by_sql(sql, slot)?,
        None => None,
    };
    let streams = own.as_ref().is_some_and(|slot| slot.is_active);
    // A base backup takes its log by one, and by another its files, unless they are read from the disk, and at its end which server answers, where no
    // restore point proves it; the continuous log has its own.
    let makes_restore_points = row.get(4) == Some("t");
    let need_senders =
        1 + i64::from(source.data_directory.is_none() || !makes_restore_points) + i64::from(source.log_slot.is_some() && !streams);
    let need_slots = 1 + i64::from(source.log_slot.is_some() && own.is_none());
    let parts = [("max_wal_senders", senders, need_senders), ("max_replication_slots", slots, need_slots)];
    for (name, free, need) in parts {
        if free < need {
            return Err(Error::new(Kind::Usage, format!("{free} of {name} are free, {need} are needed"))
                .hint(format!("raise {name} and restart the server, or end what does not need its own")));
        }
    }
    Ok(parts.map(|(name, free, need)| format!("{free} of {name} are free, {need} needed")).join("; "))
}

/// Whether the row can be written, and its table made: tried, and taken back.
fn canary_row(settings: &Settings, row: &str, cancel: &Cancel) -> Result<String> {
    let tried = canary::connect(settings, cancel).and_then(|mut connection| canary::try_out(&mut connection, row))?;
    Ok(match tried {
        Written::At(_) => "can be written".to_owned(),
        Written::Standby => "a standby: its primary is to write it".to_owned(),
    })
}

/// Whether a data folder can be read and is the one in which the server works.
fn data_folder(sql: &mut Connection, folder: &Path) -> Result<String> {
    let refused = |why: String| {
        let what = format!("{} is not the folder in which the server works that answers", folder.display());
        Error::new(Kind::Usage, what).because(why).hint(OTHER_FOLDER)
    };
    let mut tries = 0;
    let control = loop {
        let before = checkpoint(sql)?;
        let control = control_of(folder)?;
        let after = checkpoint(sql)?;
        let row = one_row(sql, "SELECT pg_catalog.pg_is_in_recovery(), system_identifier FROM pg_catalog.pg_control_system()")?;
        if row.get(1) != Some(control.system_identifier.to_string().as_str()) {
            return Err(refused("it belongs to another cluster".to_owned()));
        }
        if let Some((before, after)) = before.zip(after)
            && !(before..=after).contains(&control.checkpoint)
        {
            return Err(refused(format!("its last checkpoint is at {}, that of the server at {after}", control.checkpoint)));
        }
        match state_differs(&control, row.get(0) == Some("t")) {
            None => break control,
            Some(why) if tries == STATE_TRIES => return Err(refused(why)),
            Some(_) => tries += 1,
        }
        std::thread::sleep(STATE_PAUSE);
    };
    let path = folder.join("postmaster.pid");
    let running = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(refused("no server runs in it: there is no postmaster.pid".to_owned()));
        }
        Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
    };
    let port = sql.value("SELECT pg_catalog.current_setting('port')")?.unwrap_or_default();
    match running.lines().nth(3).map(str::trim) {
        Some(there) if there != port => Err(refused(format!("the server that runs in it has port {there}, the one that answers {port}"))),
        _ => Ok(format!("{}, last checkpoint at {}", folder.display(), control.checkpoint)),
    }
}

/// Where the server's last checkpoint is; `None` where the role may not ask.
fn checkpoint(sql: &mut Connection) -> Result<Option<Lsn>> {
    match sql.value("SELECT checkpoint_lsn FROM pg_catalog.pg_control_checkpoint()") {
        Ok(text) => text.unwrap_or_default().parse().map(Some),
        Err(error) if sqlstate(&error) == Some("42501") => Ok(None),
        Err(error) => Err(error),
    }
}

/// Free bytes where the server's log is.
fn room(data: &Path) -> Result<String> {
    let log = data.join("pg_wal");
    let stat = rustix::fs::statvfs(&log).map_err(std::io::Error::from).io_context(|| format!("ask for free space at {}", log.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let told = format!("{} MiB are free at {}", free >> 20, log.display());
    if free < LITTLE_ROOM {
        return Err(Error::new(Kind::NoSpace, told).hint("a server whose log fills its disk stops: free some"));
    }
    Ok(told)
}

/// Whether row security hides rows of any table from the role: then it has no fingerprint.
fn row_security(settings: &Settings, cancel: &Cancel) -> Result<String> {
    let mut hidden = Vec::new();
    for database in fingerprint::databases(settings, cancel)? {
        let mut sql = match Connection::connect(settings, Mode::Sql { database: Some(&database) }, cancel) {
            Ok(sql) => sql,
            Err(error) => return Err(error.within(format!("look at database {database}"))),
        };
        let rows = sql.query(
            "SELECT n.nspname || '.' || c.relname AS name FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND pg_catalog.row_security_active(c.oid) ORDER BY 1",
        )?;
        for row in &rows {
            hidden.push(format!("{database}.{}", row.required("name")?));
        }
    }
    if hidden.is_empty() {
        return Ok("hides nothing from the role".into());
    }
    let more = if hidden.len() > TOLD { format!(" and {} more", hidden.len() - TOLD) } else { String::new() };
    hidden.truncate(TOLD);
    Err(Error::new(Kind::Usage, format!("hides rows from the role, so that these tables have no fingerprint: {}{more}", hidden.join(", ")))
        .hint("ALTER ROLE … BYPASSRLS, as a superuser"))
}

/// Whether all of the configuration is in a backup.
fn configuration(sql: &mut Connection, data_directory: Option<&Path>) -> Result<String> {
    let configuration = Configuration::read(sql)?;
    let elsewhere = match data_directory.or(configuration.data_directory.as_deref()) {
        Some(data) => named_elsewhere(sql, data)?,
        None => Vec::new(),
    };
    let elsewhere = if elsewhere.is_empty() {
        String::new()
    } else {
        let all = elsewhere.join(", ");
        format!(
            "; it names these, which are not in a backup, and a restored server does not start without them (a `files` source takes them): {all}"
        )
    };
    let Some(folder) = data_directory else {
        let all = not_captured(&configuration).unwrap_or_else(|| "in the data folder, and backed up with it".into());
        return Ok(all + &elsewhere);
    };
    let files = configuration.with_included(folder);
    for file in &files {
        fs::File::open(file).io_context(|| format!("read the configuration file {}", file.display()))?;
    }
    let outside = files.iter().filter(|file| is_outside(file, folder)).count();
    Ok(format!("{} files are backed up, {outside} of them from outside the data folder{elsewhere}", files.len()))
}

/// What the configuration names outside the data folder, or by a link in it, and that no server starts without.
fn named_elsewhere(sql: &mut Connection, data: &Path) -> Result<Vec<String>> {
    let rows = sql.query(
        "SELECT name, setting FROM pg_catalog.pg_settings WHERE setting <> '' AND pg_catalog.current_setting('ssl') = 'on' AND name IN \
         ('ssl_cert_file', 'ssl_key_file', 'ssl_ca_file', 'ssl_crl_file', 'ssl_crl_dir', 'ssl_dh_params_file') ORDER BY name",
    )?;
    let mut found = Vec::new();
    for row in &rows {
        let (name, setting) = (row.required("name")?, row.required("setting")?);
        let place = data.join(setting);
        if is_outside(&place, data) || place.is_symlink() {
            found.push(format!("{name} = {setting}"));
        }
    }
    Ok(found)
}

/// How many segments wait to be archived for longer than that; 0 where the role may not know.
fn waiting(sql: &mut Connection) -> Result<u64> {
    let question = format!(
        "SELECT count(*) FROM pg_catalog.pg_ls_archive_statusdir() WHERE name LIKE '%.ready' AND modification < now() - interval '{WAITED_MINUTES} minutes'"
    );
    match sql.value(&question) {
        Ok(count) => Ok(count.and_then(|count| count.parse().ok()).unwrap_or(0)),
        Err(error) if sqlstate(&error) == Some("42501") => Ok(0),
        Err(error) => Err(error),
    }
}

/// Whether the server's archiver does what the plan expects of it. `ours`: it is to bring the log by `lifeboat log push`.
fn archiving(sql: &mut Connection, ours: bool) -> Result<String> {
    let row = one_row(
        sql,
        "SELECT pg_catalog.current_setting('archive_mode'), pg_catalog.current_setting('archive_command'), \
         coalesce(pg_catalog.current_setting('archive_library', true), ''), \
         coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false), coalesce(last_failed_wal, ''), failed_count, \
         pg_catalog.pg_is_in_recovery(), coalesce(last_archived_wal, '') FROM pg_catalog.pg_stat_archiver",
    )?;
    let text = |index: usize| row.get(index).unwrap_or_default();
    let (mode, command, library, standby) = (text(0), text(1), text(2), text(6) == "t");
    let runs = mode == "always" || (mode == "on" && !standby);
    let has_command = !library.is_empty() || !(command.is_empty() || command == "(disabled)");
    // The command itself may hold a password: it is not shown.
    let fails = format!(
        "the server's archiving fails ({} times, last {}): it keeps all of its log until that ends, which fills its disk",
        text(5),
        text(4)
    );
    match (ours, runs && has_command) {
        (true, false) => {
            let why = if runs { "archive_command is empty" } else { "archive_mode does not let this server archive" };
            Err(Error::new(Kind::Usage, format!("the plan has log = \"push\", but {why}"))
                .hint("archive_mode = on (a restart) and the archive_command of docs/postgresql.md; or log = \"stream\""))
        }
        (true, true) if library.is_empty() && !command.contains("log push") => {
            Err(Error::new(Kind::Usage, "the plan has log = \"push\", but archive_command does not call `lifeboat log push`")
                .hint("the archive_command of docs/postgresql.md; a script of your own around it is not seen from here: name it so that it contains the words"))
        }
        (true, true) if text(3) == "t" => Err(Error::new(Kind::Usage, fails).hint("the server's own log has what the command said")),
        // A command that ends with more than 125 ends the archiver itself, which counts as no failure.
        (true, true) if waiting(sql)? > 0 => {
            let what = format!("segments of the log wait for more than {WAITED_MINUTES} minutes for archive_command");
            Err(Error::new(Kind::Usage, what).hint("the server's own log has what the command said; is the program where the command says, and may the server's user run it?"))
        }
        (true, true) => Ok(match text(7) {
            "" => "archive_command calls lifeboat; nothing was archived yet".to_owned(),
            last => format!("archive_command calls lifeboat, last for {last}"),
        }),
        // Not lifeboat's, and yet what an operator must know.
        (false, true) if text(3) == "t" => Ok(format!("{fails}; it is not lifeboat's")),
        (false, true) => Ok("the server archives by a command that is not lifeboat's".to_owned()),
        (false, false) => Ok("off".to_owned()),
    }
}

/// What the stream of the log needs, and how its slot is.
fn log(sql: &mut Connection, slot: &str) -> Result<String> {
    let row =
        one_row(sql, "SELECT pg_catalog.current_setting('max_slot_wal_keep_size'), pg_catalog.current_setting('summarize_wal', true)")?;
    let state = match replication::slot_by_sql(sql, slot)? {
        None => format!("slot {slot} is made by the first backup or stream"),
        Some(status) if status.wal_status.as_deref() == Some("lost") => {
            return Err(Error::new(Kind::Usage, format!("replication slot {slot} lost its log")).hint(
                "run the stream: it makes the slot again and records what is missing; raise max_slot_wal_keep_size, and make a backup",
            ));
        }
        Some(status) => {
            let held = status.held_bytes.map_or_else(String::new, |bytes| format!(", it holds {} MiB on the server", bytes >> 20));
            format!("slot {slot} is {}{held}", if status.is_active { "in use" } else { "not in use now" })
        }
    };
    let limit = match row.get(0) {
        Some("-1") | None => "max_slot_wal_keep_size is not set: a stream that stands still can fill the server's disk".to_owned(),
        Some(limit) => format!("max_slot_wal_keep_size = {limit}: a stream that stands still for longer has a gap"),
    };
    // Only told: lifeboat finds what changed by itself and needs no summaries.
    let summaries = row.get(1).map_or_else(String::new, |value| format!("; summarize_wal = {value} (not needed)"));
    Ok(format!("{state}; {limit}{summaries}"))
}

/// What the role lacks.
fn privileges(sql: &mut Connection, local: bool, facts: &Facts) -> Result<String> {
    let major = facts.version / 10_000;
    let mut wanted = if facts.in_recovery {
        vec!["pg_catalog.pg_wal_replay_pause()", "pg_catalog.pg_wal_replay_resume()"]
    } else {
        vec!["pg_catalog.pg_create_restore_point(text)", "pg_catalog.pg_switch_wal()"]
    };
    if local && major >= 15 {
        wanted.extend(["pg_catalog.pg_backup_start(text,boolean)", "pg_catalog.pg_backup_stop(boolean)"]);
    } else if local {
        wanted.extend(["pg_catalog.pg_start_backup(text,boolean,boolean)", "pg_catalog.pg_stop_backup(boolean,boolean)"]);
    }
    let mut lacks = Vec::new();
    for function in wanted {
        let sql_text = format!("SELECT pg_catalog.has_function_privilege({}, 'EXECUTE')", quote_literal(function));
        if sql.value(&sql_text)?.as_deref() != Some("t") {
            lacks.push(format!("GRANT EXECUTE ON FUNCTION {} TO its role", function.trim_start_matches("pg_catalog.")));
        }
    }
    if sql.value("SELECT pg_catalog.pg_has_role('pg_read_all_data', 'USAGE')")?.as_deref() != Some("t") {
        lacks.push("GRANT pg_read_all_data TO its role (fingerprints)".into());
    }
    if sql.value("SELECT pg_catalog.pg_has_role('pg_read_all_settings', 'USAGE')")?.as_deref() != Some("t") {
        lacks.push("GRANT pg_read_all_settings TO its role (where configuration is)".into());
    }
    let (lock, grant) =
        if major >= 17 { ("UPDATE, DELETE, TRUNCATE, MAINTAIN", "pg_maintain") } else { ("UPDATE, DELETE, TRUNCATE", "pg_write_all_data") };
    let unlockable = sql.value(&format!(
        "SELECT count(*) FROM pg_catalog.pg_class c WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.oid >= 16384 \
         AND NOT pg_catalog.has_table_privilege(c.oid, '{lock}')"
    ))?;
    // On a standby replay is paused instead, and nothing is locked.
    if let Some(count) = unlockable.filter(|count| count != "0" && !facts.in_recovery) {
        lacks.push(format!("GRANT {grant} TO its role ({count} tables of this database would have no fingerprint)"));
    }
    if lacks.is_empty() {
        return Ok("all that a backup needs".into());
    }
    Err(Error::new(Kind::Usage, format!("the role lacks: {}", lacks.join("; "))))
}
