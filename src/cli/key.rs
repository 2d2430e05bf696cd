//! `lifeboat key …`

use std::sync::Arc;

use serde_json::json;

use crate::cli::args::{KeyCommand, RoleArg};
use crate::cli::{App, Exit, render};
use crate::error::{Error, Kind, Result};
use crate::event::Silent;
use crate::ops::resolve;
use crate::repo::{KeySlot, Passphrase, Repository, Role};

pub(super) fn run(app: &App, command: &KeyCommand) -> Result<Exit> {
    match command {
        KeyCommand::List { repo } => {
            let slots = open(app, repo)?.key_slots()?;
            app.output.result(&json!({ "schema": "lifeboat.keys/1", "repository": repo, "keys": slots }), || text(&slots))?;
        }
        KeyCommand::Add { repo, label, role, passphrase_env } => {
            let passphrase = std::env::var(passphrase_env).ok().filter(|text| !text.is_empty()).ok_or_else(|| {
                Error::new(Kind::Usage, format!("read the new passphrase: the environment variable {passphrase_env} is not set"))
                    .hint("set it for this command only, or name another with --passphrase-env")
            })?;
            let role = match role {
                RoleArg::Maintainer => Role::Maintainer,
                RoleArg::Writer => Role::Writer,
                RoleArg::Reader => Role::Reader,
            };
            let slot = open(app, repo)?.add_key(label, role, &Passphrase::new(passphrase), app.clock.now())?;
            app.output
                .result(&json!({ "schema": "lifeboat.key/1", "repository": repo, "key": slot }), || text(std::slice::from_ref(&slot)))?;
        }
        KeyCommand::Remove { repo, id } => {
            let repository = open(app, repo)?;
            let slots = repository.key_slots()?;
            let mut matching = slots.iter().filter(|slot| slot.id.starts_with(id.as_str()));
            let slot = match (matching.next(), matching.next()) {
                (Some(slot), None) => slot,
                (None, _) => {
                    return Err(Error::new(Kind::NotFound, format!("remove key {id}: there is no such slot"))
                        .hint(format!("`lifeboat key list {repo}` lists them")));
                }
                (Some(_), Some(_)) => {
                    return Err(Error::new(Kind::Usage, format!("remove key {id}: several slots begin so")).hint("give more of the id"));
                }
            };
            repository.remove_key(&slot.id)?;
            app.output.result(&json!({ "schema": "lifeboat.key-removed/1", "repository": repo, "key": slot }), || {
                format!("removed key {} ({})\n", slot.id, slot.label)
            })?;
        }
    }
    Ok(None)
}

fn open(app: &App, name: &str) -> Result<Repository> {
    let plans = app.plans()?;
    resolve::repository(plans.repository(name)?)?.open(&app.surroundings(Arc::new(Silent))?)
}

fn text(slots: &[KeySlot]) -> String {
    let rows: Vec<Vec<String>> = slots
        .iter()
        .map(|slot| {
            let role = match slot.role {
                Role::Maintainer => "maintainer",
                Role::Writer => "writer",
                Role::Reader => "reader",
            };
            vec![
                slot.id.clone(),
                slot.label.clone(),
                role.to_owned(),
                render::time(slot.created),
                if slot.current { "this one".to_owned() } else { String::new() },
            ]
        })
        .collect();
    render::table(&["id", "label", "role", "made", ""], &rows, &[])
}
