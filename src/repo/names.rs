//! Which names below a repository's folders are those of its objects. What has another one was put there by others (a NAS, a file manager, a mount) and is nobody's:
//! listings pass it over, and a verification tells of it.

use crate::id::{Name, SessionId};
use crate::repo::format::PackId;
use crate::repo::ledger::number_of;
use crate::repo::log::parse_name;
use crate::repo::removed::is_volume_key;

/// Whether an object of a repository may have this key. Below `keys/` whoever lists looks closer: a slot under another name is told of.
pub fn is_object(key: &str) -> bool {
    // Of all kinds of ids.
    let is_id = |name: &str| name.parse::<SessionId>().is_ok_and(|id| id.to_string() == name);
    let is_hex =
        |name: &str, len: usize| name.len() == len && name.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    // Of plans and of logs, as `Keys::chain_name` makes them.
    let is_chain = |name: &str| is_hex(name, 32);
    match key.split('/').collect::<Vec<_>>()[..] {
        ["packs", ..] => PackId::from_key(key).is_some(),
        ["index", name] => is_hex(name, 64),
        ["snapshots", chain, name] => is_chain(chain) && is_id(name),
        ["reports" | "sessions" | "key-events", name] | ["gc", "tombstones" | "waits" | "moved", name] => is_id(name),
        ["retention", ..] => number_of(key).is_some() || is_volume_key(key),
        ["logs", chain, "pieces" | "gaps", name] => is_chain(chain) && parse_name(name).is_some(),
        ["logs", chain, "history", name] => is_chain(chain) && is_side_name(name),
        ["index" | "snapshots" | "reports" | "sessions" | "key-events" | "gc" | "logs", ..] => false,
        _ => true,
    }
}

/// Whether a side file of a log may be called so.
pub fn is_side_name(name: &str) -> bool {
    name.ends_with(".history") && Name::new(name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_objects_are_told_from_others() {
        let (id, hash) = ("01m8p65917tgkw5kzr32e2pby6", "4f42b6ba9763e43ed9bfbb6999641cb9aaf369f504d290bc05670d06c72e12ac");
        let (chain, stretch) = ("1f5fd42aa07dd173ebacc3d827cc3379", "0000000000000001-0000000000000000-000000000000002a");
        let of_objects = [
            format!("snapshots/{chain}/{id}"),
            format!("reports/{id}"),
            format!("sessions/{id}"),
            format!("key-events/{id}"),
            format!("gc/moved/{id}"),
            format!("packs/4f/{hash}"),
            format!("index/{hash}"),
            "retention/0000000000000042".into(),
            "retention/ids/0000000000000042-0123456789abcdef".into(),
            format!("logs/{chain}/pieces/{stretch}"),
            format!("logs/{chain}/gaps/{stretch}"),
            format!("logs/{chain}/history/00000002.history"),
            "format".into(),
            "keys/d263acaa928418ad".into(),
            "probe/x".into(),
        ];
        for key in &of_objects {
            assert!(is_object(key), "{key}");
        }
        for key in &of_objects[..12] {
            for strange in [
                format!("{key}.bak"),
                key.rsplit_once('/').map(|(folder, name)| format!("{folder}/{}", name.to_uppercase())).unwrap(),
                format!("{key}/x"),
                format!("{key}0"),
                key.replace(chain, &format!("{chain}.bak")),
                key.replace(chain, "old"),
            ] {
                assert!(!is_object(&strange) || strange == *key, "{strange}");
            }
        }
        for key in [
            "snapshots/Thumbs.db",
            "gc/desktop.ini",
            "retention/Thumbs.db",
            "packs/Thumbs.db",
            "packs/4f/Thumbs.db",
            "index/Thumbs.db",
            "logs/Thumbs.db",
        ] {
            assert!(!is_object(key), "{key}");
        }
        for folder in ["", "pieces/", "gaps/", "history/"] {
            for name in ["Thumbs.db", "desktop.ini"] {
                assert!(!is_object(&format!("logs/{chain}/{folder}{name}")), "{folder}{name}");
            }
        }
    }
}
