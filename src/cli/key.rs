//! `lifeboat key …`

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use zeroize::Zeroizing;

use crate::cli::args::{GenerateArg, KeyCommand, LockArgs, RoleArg};
use crate::cli::context::shell_word;
use crate::cli::output::{ask, can_ask, note};
use crate::cli::progress::Warnings;
use crate::cli::{App, Exit, render};
use crate::error::{Error, IoContext as _, Kind, Result};
use crate::id::Name;
use crate::ops::key_age;
use crate::ops::resolve::{self, RepositorySettings};
use crate::plan::SecretRef;
use crate::repo::{
    GenerationShare, KeyEvent, KeyFile, KeySlot, Lock, Passphrase, PlanKey, Recipient, Repository, Role, Rotation, Share, combine_shares,
};

pub(super) fn run(app: &App, command: &KeyCommand) -> Result<Exit> {
    match command {
        KeyCommand::List { repo, events } => list(app, repo, *events),
        KeyCommand::Generate { kind, out } => generate(app, *kind, out),
        KeyCommand::Add { repo, label, role, passphrase_env, lock } => add(app, repo, label, *role, passphrase_env, lock),
        KeyCommand::Remove { repo, id, confirm } => remove(app, repo, id, confirm.as_deref()),
        KeyCommand::Rotate { repo, status: true, .. } => status(app, repo),
        KeyCommand::Rotate { repo, repack: true, .. } => repack(app, repo),
        KeyCommand::Rotate { repo, without, new_ids, status: false, repack: false } => rotate(app, repo, without, *new_ids),
        KeyCommand::Export { repo, shares: Some(shares), role, label, out, .. } => {
            export_shares(app, repo, shares, *role, label, out.as_deref())
        }
        KeyCommand::Export { repo, paper: true, role, label, out, .. } => export_paper(app, repo, *role, label, out.as_deref()),
        KeyCommand::Export { repo, shares: None, paper: false, passphrase_env, lock, role, label, out } => {
            export_file(app, repo, passphrase_env.as_deref(), lock, *role, label, out.as_deref())
        }
        KeyCommand::Import { repo, file } => import(app, repo, file),
        KeyCommand::Combine { files, out } => combine(app, files, out),
        KeyCommand::Own { repo, plan } => own(app, repo, plan),
        KeyCommand::Erase { repo, plan, confirm } => erase(app, repo, plan, confirm.as_deref()),
    }
}

fn settings(app: &App, name: &str) -> Result<RepositorySettings> {
    resolve::repository(app.plans()?.repository(name)?)
}

fn open(app: &App, name: &str) -> Result<Repository> {
    settings(app, name)?.open(&app.surroundings(Arc::new(Warnings))?)
}

fn list(app: &App, repo: &str, with_events: bool) -> Result<Exit> {
    let settings = settings(app, repo)?;
    let repository = settings.open(&app.surroundings(Arc::new(Warnings))?)?;
    let slots = repository.key_slots()?;
    let plans = repository.plan_keys();
    let (held, newest) = repository.key_generations();
    // What this machine has seen is nowhere: no slot was left behind by it.
    let newest = repository.generation_seen().and_then(|_| held.first().copied()).unwrap_or(newest);
    let aged = settings.max_key_age.map_or_else(Vec::new, |most| key_age::aged(repo, &slots, most, app.clock.now()));
    let older = repository.generation_seen().map(|seen| {
        format!("this machine has seen key generation {seen}, which is nowhere: the repository was put back to an older state, or somebody deleted what is below keys/; `lifeboat repo accept` if that is meant")
    });
    let warnings: Vec<&str> = aged.iter().map(|aged| aged.message.as_str()).chain(older.as_deref()).collect();
    let mut document = json!({
        "schema": "lifeboat.keys/1", "repository": repo, "generation": newest, "keys": slots, "plans": plans, "warnings": warnings,
    });
    let mut events = Vec::new();
    let slot_damage = |(id, error): (String, Error)| format!("key slot {id}: {error}");
    let mut damaged: Vec<String> = repository.damaged_slots()?.into_iter().map(slot_damage).collect();
    if with_events {
        for event in repository.key_events()? {
            match event {
                Ok(event) => events.push(event),
                Err(error) => damaged.push(error.to_string()),
            }
        }
        document["events"] = json!(events);
    }
    document["damaged"] = json!(damaged);
    app.output.result(&document, || {
        let mut text = text(&slots, newest);
        if !plans.is_empty() {
            let _ = write!(text, "\n{}", plan_text(&plans));
        }
        if with_events {
            let _ = write!(text, "\n{}", event_text(&events));
        }
        for warning in &warnings {
            let _ = writeln!(text, "warning: {warning}");
        }
        for damage in &damaged {
            let _ = writeln!(text, "DAMAGED: {damage}");
        }
        text
    })?;
    Ok(if damaged.is_empty() { None } else { Some(Kind::Damaged) })
}

fn generate(app: &App, kind: GenerateArg, out: &Path) -> Result<Exit> {
    match kind {
        GenerateArg::KeyFile => {
            write_secret(out, &KeyFile::generate().reveal())?;
            app.output.result(&json!({ "schema": "lifeboat.key-generated/1", "kind": "key-file", "file": out }), || {
                format!(
                    "wrote a key file to {0}\nadd a slot for it: lifeboat key add REPO --label … --role … --key-file {1}\n\
                     refer to it in the plan: passphrase = {{ file = \"{0}\" }}\n",
                    out.display(),
                    shell_word(out)
                )
            })?;
        }
        GenerateArg::Recipient => {
            let recipient = Recipient::generate();
            write_secret(out, &recipient.reveal())?;
            let public = recipient.public_text();
            app.output.result(
                &json!({ "schema": "lifeboat.key-generated/1", "kind": "recipient", "file": out, "recipient": public }),
                || {
                    format!(
                        "wrote a private key to {0}\nits public key, for whoever adds the slot:\n\n    {public}\n\n\
                     lifeboat key add REPO --label … --role … --recipient {public}\n\
                     refer to the private key in the plan: passphrase = {{ file = \"{0}\" }}\n",
                        out.display()
                    )
                },
            )?;
        }
    }
    Ok(None)
}

fn add(app: &App, repo: &str, label: &str, role: RoleArg, variable: &str, lock: &LockArgs) -> Result<Exit> {
    let repository = open(app, repo)?;
    let slot = with_lock(lock, variable, |lock| repository.add_slot(label, role_of(role), lock, app.clock.now()))?;
    app.output.result(&json!({ "schema": "lifeboat.key/1", "repository": repo, "key": slot }), || {
        text(std::slice::from_ref(&slot), slot.generation)
    })?;
    Ok(None)
}

/// Reads what a new slot shall open with, and hands it on.
fn with_lock<T>(lock: &LockArgs, variable: &str, work: impl FnOnce(&Lock<'_>) -> Result<T>) -> Result<T> {
    if let Some(recipient) = &lock.recipient {
        return work(&Lock::Recipient(recipient));
    }
    if let Some(file) = &lock.key_file {
        let secret = SecretRef::File(file.clone()).resolve()?;
        let passphrase = Passphrase::new(secret.expose());
        if !passphrase.is_key_file() {
            return Err(Error::new(Kind::Usage, format!("read the key file {}: it is none", file.display()))
                .hint("`lifeboat key generate --kind key-file` makes one"));
        }
        return work(&Lock::Passphrase(&passphrase));
    }
    let passphrase = std::env::var(variable).ok().filter(|text| !text.is_empty()).ok_or_else(|| {
        Error::new(Kind::Usage, format!("read the new passphrase: the environment variable {variable} is not set"))
            .hint("set it for this command only, or name another with --passphrase-env")
    })?;
    work(&Lock::Passphrase(&Passphrase::new(passphrase)))
}

/// The one slot whose id begins so. A damaged one is found by its whole id only.
fn find<'a>(slots: &'a [KeySlot], repo: &str, id: &str) -> Result<Option<&'a KeySlot>> {
    let mut matching = slots.iter().filter(|slot| slot.id.starts_with(id));
    match (matching.next(), matching.next()) {
        (Some(_), Some(_)) => Err(Error::new(Kind::Usage, format!("find key {id}: several slots begin so")).hint("give more of the id")),
        (None, _) if id.len() < 16 => Err(Error::new(Kind::NotFound, format!("find key {id}: there is no such slot"))
            .hint(format!("`lifeboat key list {repo}` lists them"))),
        (found, _) => Ok(found),
    }
}

fn remove(app: &App, repo: &str, id: &str, confirm: Option<&str>) -> Result<Exit> {
    let repository = open(app, repo)?;
    let slots = repository.key_slots()?;
    let slot = find(&slots, repo, id)?;
    let whole = slot.map_or(id, |slot| slot.id.as_str());
    let was_there = repository.remove_key(whole, confirm, app.clock.now())?;
    app.output.result(&json!({ "schema": "lifeboat.key-removed/1", "repository": repo, "id": whole, "key": slot }), || {
        let what = match slot {
            Some(slot) => format!("removed key {whole} ({})", slot.label),
            None if was_there => format!("removed key {whole} (damaged)"),
            None => format!("key {whole} was gone already: now it is on record that it is meant to be"),
        };
        format!(
            "{what}\n\
             Whoever held it may have kept a copy of what it opened: `lifeboat key rotate {repo}` shuts that out of what is stored from now on.\n"
        )
    })?;
    Ok(None)
}

fn rotate(app: &App, repo: &str, without: &[String], new_ids: bool) -> Result<Exit> {
    let settings = settings(app, repo)?;
    let repository = settings.open(&app.surroundings(Arc::new(Warnings))?)?;
    let slots = repository.key_slots()?;
    let without: Vec<String> =
        without.iter().map(|id| Ok(find(&slots, repo, id)?.map_or_else(|| id.clone(), |slot| slot.id.clone()))).collect::<Result<_>>()?;
    let rotation = repository.rotate(&settings.passphrase, &without, new_ids, app.clock.now())?;
    app.output.result(&json!({ "schema": "lifeboat.key-rotation/1", "repository": repo, "rotation": rotation }), || {
        rotation_text(repo, &rotation)
    })?;
    Ok(None)
}

fn rotation_text(repo: &str, rotation: &Rotation) -> String {
    let mut text = format!("{repo} is at key generation {} now\n", rotation.generation);
    let mut tell = |what: &str, slots: &[KeySlot]| {
        for slot in slots {
            let _ = writeln!(text, "{what}: {} ({}, {})", slot.id, slot.label, slot.role);
        }
    };
    tell("carried along", &rotation.carried);
    tell("shut out and removed", &rotation.removed);
    tell("LEFT BEHIND, needs a new slot", &rotation.left_behind);
    for id in &rotation.unread {
        let _ = writeln!(text, "LEFT BEHIND, cannot be read, its holder needs a new slot: {id}");
    }
    for plan in &rotation.plans {
        let _ = writeln!(text, "plan {plan}: its own key was renewed");
    }
    text.push_str("Streams of logs that run take it up within a minute; a backup that runs ends under the old generation and says so.\n");
    if rotation.new_ids {
        text.push_str("Chunk ids begin anew: the next backup of each plan stores everything again.\n");
    }
    let _ = writeln!(
        text,
        "What is stored already stays under its old keys until it expires or `lifeboat key rotate {repo} --repack` stores it anew; --status shows how much that is."
    );
    text
}

fn repack(app: &App, repo: &str) -> Result<Exit> {
    let progress = app.progress("repack");
    let surroundings = app.surroundings(Arc::clone(&progress))?;
    let repository = settings(app, repo)?.open(&surroundings)?;
    let (done, unread) = repository.retire_generations(app.clock.now(), &*progress, &app.cancel)?;
    let (_, newest) = repository.key_generations();
    let shares = repository.generation_shares()?;
    let old: u64 = shares.iter().filter(|share| share.generation < newest && share.plan.is_none()).map(|share| share.bytes).sum();
    let total: u64 = shares.iter().map(|share| share.bytes).sum();
    let document = json!({
        "schema": "lifeboat.key-repack/1", "repository": repo, "generation": newest, "bytes_old": old, "bytes_stored": total,
        "shares": shares, "unread": unread, "collection": done,
    });
    app.output.result(&document, || {
        let mut text = format!("{} packs were rewritten, {} moved\n", done.packs_rewritten, render::bytes(done.bytes_moved));
        for warning in done.warnings.iter().chain(&done.blocked) {
            let _ = writeln!(text, "warning: {warning}");
        }
        text.push_str(&shares_text(&shares, newest, old, total));
        if unread > 0 {
            let _ = writeln!(
                text,
                "DAMAGED: {unread} packs cannot be read, and under which keys they are is not known: lifeboat verify {repo}"
            );
        }
        if old > 0 {
            let when = if done.waiting_for.is_empty() { "" } else { " when these have ended" };
            let _ = writeln!(text, "INCOMPLETE: run it again{when}: lifeboat key rotate {repo} --repack");
            for session in &done.waiting_for {
                let _ = writeln!(text, "  {session}");
            }
        }
        text
    })?;
    let damaged = unread > 0 || !done.blocked.is_empty();
    Ok(if damaged { Some(Kind::Damaged) } else { (old > 0).then_some(Kind::Incomplete) })
}

fn status(app: &App, repo: &str) -> Result<Exit> {
    let repository = open(app, repo)?;
    let shares = repository.generation_shares()?;
    let (_, newest) = repository.key_generations();
    let total: u64 = shares.iter().map(|share| share.bytes).sum();
    let old: u64 = shares.iter().filter(|share| share.generation < newest).map(|share| share.bytes).sum();
    let document = json!({
        "schema": "lifeboat.key-generations/1", "repository": repo, "generation": newest,
        "bytes_stored": total, "bytes_old": old, "shares": shares,
    });
    app.output.result(&document, || shares_text(&shares, newest, old, total))?;
    Ok(None)
}

fn shares_text(shares: &[GenerationShare], newest: u16, old: u64, total: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let percent = |bytes: u64| if total == 0 { "0.0%".to_owned() } else { format!("{:.1}%", bytes as f64 * 100.0 / total as f64) };
    let rows: Vec<Vec<String>> = shares
        .iter()
        .map(|share| {
            let whose = share.plan.as_ref().map_or_else(String::new, |plan| format!("own key of plan {plan}"));
            vec![share.generation.to_string(), whose, share.packs.to_string(), render::bytes(share.bytes), percent(share.bytes)]
        })
        .collect();
    format!(
        "{}{} of {} ({}) under generations before {newest}\n",
        render::table(&["generation", "", "packs", "bytes", "share"], &rows, &[2, 3, 4]),
        render::bytes(old),
        render::bytes(total),
        percent(old)
    )
}

fn parse_shares(text: &str) -> Result<(u8, u8)> {
    let parts = text.split_once("-of-").and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
    parts.ok_or_else(|| Error::new(Kind::Usage, format!("read {text:?}: it is no number of shares")).hint("for example: --shares 3-of-5"))
}

fn export_shares(app: &App, repo: &str, shares: &str, role: RoleArg, label: &str, out: Option<&Path>) -> Result<Exit> {
    let (threshold, count) = parse_shares(shares)?;
    let settings = settings(app, repo)?;
    let repository = settings.open(&app.surroundings(Arc::new(Warnings))?)?;
    if let Some(folder) = out {
        std::fs::DirBuilder::new().mode(0o700).create(folder).io_context(|| format!("make the folder {}", folder.display()))?;
    }
    let label = if label == "export" { format!("shares, {threshold} of {count}") } else { label.to_owned() };
    let (slot, shares) = repository.export_shares(&label, role_of(role), threshold, count, app.clock.now())?;
    let id = hex::encode(repository.id().0);
    let pages: Vec<Zeroizing<String>> = shares.iter().map(|share| page(share, count, repo, &settings.store.url, &id)).collect();
    let mut files: Vec<PathBuf> = Vec::new();
    if let Some(folder) = out {
        for (share, page) in shares.iter().zip(&pages) {
            let file = folder.join(format!("share-{}-of-{count}.txt", share.index()));
            write_secret(&file, page)?;
            files.push(file);
        }
    }
    let set = shares.first().map(Share::set).unwrap_or_default();
    let mut document = json!({
        "schema": "lifeboat.key-shares/1", "repository": repo, "key": slot, "set": set, "threshold": threshold, "count": count, "files": files,
    });
    if out.is_none() {
        document["shares"] = json!(shares.iter().map(|share| share.reveal().to_string()).collect::<Vec<_>>());
    }
    app.output.result(&document, || {
        let mut text = format!("key slot {} ({}), set {set}: any {threshold} of {count} shares open it\n", slot.id, slot.label);
        for file in &files {
            let _ = writeln!(text, "wrote {}", file.display());
        }
        if files.is_empty() {
            pages.iter().for_each(|page| text.push_str(page));
        } else {
            text.push_str("Print each, give it to one person, and delete the files. Try it once: lifeboat key combine FILE…\n");
        }
        text
    })?;
    Ok(None)
}

/// A share for the printer.
fn page(share: &Share, count: u8, repo: &str, url: &str, id: &str) -> Zeroizing<String> {
    let letters = share.reveal();
    let groups: Vec<&str> = letters.split('-').collect();
    let mut lines = Zeroizing::new(String::new());
    for (at, line) in groups.chunks(6).enumerate() {
        let _ = writeln!(lines, "    {}{}", line.join("-"), if (at + 1) * 6 < groups.len() { "-" } else { "" });
    }
    Zeroizing::new(format!(
        "\n{}\nSHARE {} OF {count} of the key of repository {repo}; any {} together open it\n\
         set {}   repository id {id}\naddress {url}\n\n{}\n\
         Keep it apart from the other shares, and tell nobody its letters. In an emergency, on any machine:\n\
         \x20   lifeboat key combine --out recovered.key        (asks for the shares, one after the other)\n\
         \x20   LIFEBOAT_PASSPHRASE=\"$(cat recovered.key)\" lifeboat restore PLAN --from {} --to TARGET\n\
         O is read as 0, I and L as 1; small letters, spaces and dashes do not matter.\n",
        "-".repeat(78),
        share.index(),
        share.threshold(),
        share.set(),
        *lines,
        shell_word(Path::new(url))
    ))
}

fn export_paper(app: &App, repo: &str, role: RoleArg, label: &str, out: Option<&Path>) -> Result<Exit> {
    if let Some(out) = out.filter(|out| out.exists()) {
        return Err(Error::new(Kind::Usage, format!("export a recovery key to {}: something is there already", out.display())));
    }
    let settings = settings(app, repo)?;
    let repository = settings.open(&app.surroundings(Arc::new(Warnings))?)?;
    let label = if label == "export" { "recovery key" } else { label };
    let (slot, key) = repository.export_recovery_key(label, role_of(role), app.clock.now())?;
    let url = &settings.store.url;
    let page = Zeroizing::new(format!(
        "RECOVERY KEY of repository {repo} ({})\nslot {}   repository id {}\naddress {url}\n\n    {}\n\n\
         It opens the repository like a passphrase. In an emergency, on any machine:\n\
         \x20   LIFEBOAT_PASSPHRASE='…the key…' lifeboat restore PLAN --from {} --to TARGET\n\
         O is read as 0, I and L as 1; small letters, spaces and dashes do not matter.\n",
        slot.role,
        slot.id,
        hex::encode(repository.id().0),
        key.reveal(),
        shell_word(Path::new(url))
    ));
    let mut document = json!({ "schema": "lifeboat.key-paper/1", "repository": repo, "key": slot, "file": out });
    match out {
        Some(out) => write_secret(out, &page)?,
        None => document["recovery_key"] = json!(key.reveal()),
    }
    app.output.result(&document, || match out {
        Some(out) => format!("wrote a page with a new recovery key to {}: print it, and delete the file\n", out.display()),
        None => page.to_string(),
    })?;
    Ok(None)
}

fn export_file(
    app: &App,
    repo: &str,
    variable: Option<&str>,
    lock: &LockArgs,
    role: RoleArg,
    label: &str,
    out: Option<&Path>,
) -> Result<Exit> {
    let out = out.ok_or_else(|| Error::new(Kind::Usage, "export keys: where to is not said").hint("--out FILE"))?;
    if out.exists() {
        return Err(Error::new(Kind::Usage, format!("export keys to {}: something is there already", out.display())));
    }
    let repository = open(app, repo)?;
    let (slot, bytes) =
        with_lock(lock, variable.unwrap_or_default(), |lock| repository.export_slot(label, role_of(role), lock, app.clock.now()))?;
    let text = String::from_utf8(bytes).map_err(|e| Error::new(Kind::Bug, "write a key slot as text").because(e))?;
    write_secret(out, &text)?;
    app.output.result(&json!({ "schema": "lifeboat.key-export/1", "repository": repo, "key": slot, "file": out }), || {
        format!(
            "wrote the {} keys of {repo} to {}; a {} opens it\n\
             It holds the keys themselves: removing slots does not take them back, only rotating shuts its holder out of what comes later.\n\
             It is brought back by: lifeboat key import {repo} {}\n",
            slot.role,
            out.display(),
            slot.kind,
            shell_word(out)
        )
    })?;
    Ok(None)
}

fn import(app: &App, repo: &str, file: &Path) -> Result<Exit> {
    let settings = if repo.contains("://") { App::repository_at(repo)? } else { settings(app, repo)? };
    let document = std::fs::read(file).io_context(|| format!("read {}", file.display()))?;
    let slot = Repository::import_slot(&settings.open_store()?, &app.runtime, &document, &settings.passphrase, app.clock.now())?;
    app.output.result(&json!({ "schema": "lifeboat.key-imported/1", "repository": repo, "key": slot }), || {
        format!("{} is a key slot of {repo} now ({}, {}, generation {})\n", slot.id, slot.label, slot.role, slot.generation)
    })?;
    Ok(None)
}

fn combine(app: &App, files: &[PathBuf], out: &Path) -> Result<Exit> {
    if out.exists() {
        return Err(Error::new(Kind::Usage, format!("write the key file {}: something is there already", out.display())));
    }
    let shares = if files.is_empty() { ask_for_shares()? } else { read_shares(files)? };
    let file = KeyFile::from_bytes(*combine_shares(&shares)?);
    write_secret(out, &file.reveal())?;
    let set = shares.first().map(Share::set).unwrap_or_default();
    app.output.result(&json!({ "schema": "lifeboat.key-combined/1", "set": set, "file": out }), || {
        format!(
            "wrote the key of set {set} to {0}\nuse it as a passphrase: LIFEBOAT_PASSPHRASE=\"$(cat {1})\" lifeboat restore PLAN --from URL --to TARGET\n\
             and delete it afterwards\n",
            out.display(),
            shell_word(out)
        )
    })?;
    Ok(None)
}

fn read_shares(files: &[PathBuf]) -> Result<Vec<Share>> {
    let mut shares = Vec::new();
    for file in files {
        let text = Zeroizing::new(std::fs::read_to_string(file).io_context(|| format!("read {}", file.display()))?);
        let found = Share::find(&text).map_err(|e| e.within(format!("read {}", file.display())))?;
        if found.is_empty() {
            return Err(
                Error::new(Kind::Usage, format!("read {}: there is no share in it", file.display())).hint("a share begins with LBSH1")
            );
        }
        shares.extend(found);
    }
    Ok(shares)
}

fn ask_for_shares() -> Result<Vec<Share>> {
    if !can_ask() {
        return Err(Error::new(Kind::Usage, "ask for shares: this is no terminal").hint("name the files: lifeboat key combine FILE…"));
    }
    let mut shares: Vec<Share> = Vec::new();
    loop {
        let number = shares.len() + 1;
        let text = Zeroizing::new(ask(&format!("share {number} (empty line: no more):"))?);
        if text.is_empty() {
            return Ok(shares);
        }
        match Share::read(&text) {
            Err(error) => note(&format!("not taken: {error}. Type it again")),
            Ok(share) if shares.iter().any(|other| other.set() != share.set()) => {
                note(&format!("not taken: it is of set {}, the others are of set {}", share.set(), shares[0].set()));
            }
            Ok(share) if shares.contains(&share) => note("not taken: it is there already"),
            Ok(share) => {
                let needed = usize::from(share.threshold());
                note(&format!("share {} of set {} taken", share.index(), share.set()));
                shares.push(share);
                if shares.len() >= needed {
                    return Ok(shares);
                }
            }
        }
    }
}

fn own(app: &App, repo: &str, plan: &str) -> Result<Exit> {
    let plan = plan_name(plan)?;
    let key = open(app, repo)?.make_plan_key(&plan, app.clock.now())?;
    app.output.result(&json!({ "schema": "lifeboat.plan-key/1", "repository": repo, "key": key }), || {
        format!(
            "plan {plan} has a key of its own now ({})\n\
             Its next backup stores everything again, under that key; earlier snapshots stay under the repository's until they expire.\n\
             A stream of its log that runs takes the key up within a minute; a backup that runs ends under the repository's key and says so.\n",
            key.number
        )
    })?;
    Ok(None)
}

fn erase(app: &App, repo: &str, plan: &str, confirm: Option<&str>) -> Result<Exit> {
    let plan = plan_name(plan)?;
    let repository = open(app, repo)?;
    let keys: Vec<PlanKey> = repository.plan_keys().into_iter().filter(|key| key.plan == plan.as_str()).collect();
    let typed = match confirm {
        Some(name) => name.to_owned(),
        None if !keys.is_empty() && can_ask() => {
            ask(&format!("The data of plan {plan} in {repo} can never be read again by anybody. Type the plan's name to destroy its key:"))?
        }
        None => String::new(),
    };
    if !keys.is_empty() && typed != plan.as_str() {
        return Err(Error::new(Kind::Usage, format!("destroy the key of plan {plan}: it was not confirmed; nothing was touched"))
            .hint(format!("--confirm {plan}")));
    }
    let erased = repository.erase_plan(&plan, app.clock.now())?;
    app.output.result(&json!({ "schema": "lifeboat.plan-erased/1", "repository": repo, "plan": plan, "keys": erased }), || {
        format!(
            "destroyed {} of plan {plan}: what was sealed to {} cannot be read any more\n\
             What remains: names, sizes and times of its files and snapshots (until they are removed), older versions of the key's object where\n\
             the store keeps versions, copies in other repositories, restored files, and snapshots from before the plan had its own key.\n\
             A backup of it that runs fails, and a stream of its log stops within a minute, until the plan has a new key (`lifeboat key own`).\n",
            if erased.len() == 1 { "the key".to_owned() } else { format!("{} keys", erased.len()) },
            if erased.len() == 1 { "it" } else { "them" },
        )
    })?;
    Ok(None)
}

fn plan_name(plan: &str) -> Result<Name> {
    Name::new(plan).map_err(|_| Error::new(Kind::Usage, format!("{plan:?} is no name of a plan")))
}

/// Makes a file that only its owner can read; nothing may be there.
fn write_secret(path: &Path, text: &str) -> Result<()> {
    let doing = || format!("write {}", path.display());
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).io_context(doing)?;
    file.write_all(text.as_bytes()).and_then(|()| file.write_all(if text.ends_with('\n') { b"" } else { b"\n" })).io_context(doing)?;
    file.sync_all().io_context(doing)
}

fn role_of(role: RoleArg) -> Role {
    match role {
        RoleArg::Maintainer => Role::Maintainer,
        RoleArg::Writer => Role::Writer,
        RoleArg::Reader => Role::Reader,
    }
}

fn text(slots: &[KeySlot], newest: u16) -> String {
    let rows: Vec<Vec<String>> = slots
        .iter()
        .map(|slot| {
            let generation =
                if slot.generation < newest { format!("{} (LEFT BEHIND)", slot.generation) } else { slot.generation.to_string() };
            vec![
                slot.id.clone(),
                slot.label.clone(),
                slot.role.to_string(),
                slot.kind.clone(),
                generation,
                render::time(slot.created),
                if slot.current { "this one".to_owned() } else { String::new() },
            ]
        })
        .collect();
    render::table(&["id", "label", "role", "opens with", "generation", "made", ""], &rows, &[])
}

fn plan_text(plans: &[PlanKey]) -> String {
    let rows: Vec<Vec<String>> = plans
        .iter()
        .map(|key| {
            let state = key.erased.map_or_else(String::new, |at| format!("DESTROYED {}", render::time(at)));
            let made = key.created.map_or_else(String::new, render::time);
            vec![key.number.clone(), key.plan.clone(), key.generation.to_string(), made, state]
        })
        .collect();
    render::table(&["own key", "of plan", "generation", "made", ""], &rows, &[])
}

fn event_text(events: &[KeyEvent]) -> String {
    let rows: Vec<Vec<String>> = events
        .iter()
        .map(|event| {
            let signed = match event.signed {
                Some(true) => "signed",
                Some(false) => "NOT SIGNED",
                None => "not checked",
            };
            vec![
                render::time(event.time),
                event.event.clone(),
                event.detail.clone(),
                event.host.clone(),
                event.by.clone(),
                signed.to_owned(),
            ]
        })
        .collect();
    render::table(&["time", "event", "what", "host", "by slot", ""], &rows, &[])
}
