//! What a logical snapshot says of itself: `manifest.json` in its tree, the last file of it.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Kind, Result};

/// In the root of the tree.
pub const MANIFEST: &str = "manifest.json";
/// The newest that this version writes and reads; an older program must not take a newer one for complete. Since 3 definitions say how amounts of money in them are
/// written ([`Database::lc_monetary`]).
pub const FORMAT: u32 = 3;
/// Since 2 rows may be in another encoding than UTF-8 ([`Database::rows_encoding`]).
const FORMAT_ENCODED: u32 = 2;
/// Where no rows are.
const FORMAT_UTF8: u32 = 1;
/// Longer names are cut, and told apart by a hash: a file's name has 255 bytes at most.
const LONGEST_NAME: usize = 200;

/// Everything that is needed to bring the databases back, but the rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    pub format: u32,
    /// `server_version_num`.
    pub server_version: u32,
    /// Major version of the `pg_dump` that wrote the definitions: an older `pg_restore` does not read them.
    pub dump_major: u32,
    /// The role that owns the catalogue.
    pub superuser: String,
    pub roles: Vec<Role>,
    pub memberships: Vec<Membership>,
    /// Of roles in all databases.
    pub settings: Vec<Setting>,
    pub databases: Vec<Database>,
}

impl Contents {
    /// That of a restored tree.
    ///
    /// # Errors
    /// `Damaged` when it is not there or not understood.
    pub fn read(tree: &Path) -> Result<Self> {
        let path = tree.join(MANIFEST);
        let text = fs::read(&path).map_err(|error| Error::new(Kind::Damaged, format!("read {}", path.display())).because(error))?;
        let contents: Self = serde_json::from_slice(&text).context(Kind::Damaged, || format!("understand {}", path.display()))?;
        if (FORMAT_UTF8..=FORMAT).contains(&contents.format) {
            return Ok(contents);
        }
        Err(Error::new(
            Kind::Usage,
            format!("read {}: it has format {}, this version knows up to {FORMAT}", path.display(), contents.format),
        )
        .hint("restore with the version of lifeboat that made the snapshot, or a newer one"))
    }

    /// The oldest format that says all of these.
    #[must_use]
    pub fn format_of(databases: &[Database]) -> u32 {
        if databases.iter().any(|database| database.lc_monetary.is_some()) {
            FORMAT
        } else if databases.iter().any(|database| database.rows_encoding.is_some()) {
            FORMAT_ENCODED
        } else {
            FORMAT_UTF8
        }
    }
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "as the server has them")]
pub struct Role {
    pub name: String,
    pub superuser: bool,
    pub inherit: bool,
    pub create_role: bool,
    pub create_database: bool,
    pub login: bool,
    pub replication: bool,
    pub bypass_row_security: bool,
    pub connection_limit: i64,
    pub valid_until: Option<String>,
    pub comment: Option<String>,
    /// As the server keeps it, where it may be read.
    pub password: Option<String>,
}

/// Without the password, which may be in no log.
impl std::fmt::Debug for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Role").field("name", &self.name).field("login", &self.login).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    pub role: String,
    pub member: String,
    pub admin: bool,
    /// Since version 16.
    pub inherit: Option<bool>,
    pub set: Option<bool>,
}

/// `ALTER … SET name = value`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// `None`: of the database, whoever connects.
    pub role: Option<String>,
    pub name: String,
    pub value: String,
}

/// One privilege; `None` is everybody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub grantee: Option<String>,
    pub privilege: String,
    pub grantable: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    pub name: String,
    /// Of its files, in the tree.
    pub folder: String,
    pub owner: String,
    pub encoding: String,
    /// What the files with rows are in, and what their digests are of: that of the database, because not every character has an equivalent in UTF-8. `None`:
    /// UTF-8, or bytes as they are where the database says nothing of its encoding (`SQL_ASCII`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_encoding: Option<String>,
    pub collate: String,
    pub ctype: String,
    /// `c`, `i`, `b`.
    pub provider: String,
    pub locale: Option<String>,
    pub icu_rules: Option<String>,
    pub connection_limit: i64,
    pub comment: Option<String>,
    /// Told only: the target's default is used.
    pub tablespace: String,
    /// `None`: as the server has it by default.
    pub grants: Option<Vec<Grant>>,
    pub settings: Vec<Setting>,
    /// `pg_current_snapshot()` of what was read.
    pub snapshot: String,
    /// Where the log was then, where the role may know.
    pub lsn: Option<String>,
    pub time: String,
    pub tables: Vec<Table>,
    pub sequences: Vec<Sequence>,
    pub large_objects: Vec<LargeObject>,
    /// To be filled again, schema and name.
    pub materialized_views: Vec<(String, String)>,
    /// The server's setting under which the definitions were written, and are to be loaded: amounts of money look otherwise under another one. `None`: they speak of no
    /// money; or they are from before format 3, and it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lc_monetary: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    pub schema: String,
    pub name: String,
    /// In the tree.
    pub path: String,
    /// Those that have rows of their own (generated ones have none), in order.
    pub columns: Vec<String>,
    /// Of an extension that keeps rows of the user in it: only those with this condition (maybe none). `None`: a table like any other.
    pub extension_condition: Option<String>,
    /// Rows go to this partitioned table, which finds their partition: by a hash, it may be another one on another server.
    pub root: Option<(String, String)>,
    pub rows: u64,
    pub bytes: u64,
    /// As in [`crate::source::TableFingerprint`], over `columns`.
    pub digest: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    pub schema: String,
    pub name: String,
    pub value: i64,
    pub is_called: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargeObject {
    pub oid: u32,
    pub path: String,
    pub owner: String,
    pub grants: Option<Vec<Grant>>,
    pub comment: Option<String>,
    pub bytes: u64,
    /// Keyed BLAKE3 of its bytes, hex.
    pub digest: String,
}

/// A name as the name of a file: letters, digits, `_` and `-` as they are, every other byte as `%XX`.
#[must_use]
pub fn file_name(parts: &[&str]) -> String {
    let encode = |part: &&str| {
        let mut text = String::new();
        for byte in part.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') {
                text.push(char::from(byte));
            } else {
                text.push('%');
                text.push_str(&hex::encode_upper([byte]));
            }
        }
        text
    };
    let whole = parts.iter().map(encode).collect::<Vec<_>>().join(".");
    if whole.len() <= LONGEST_NAME {
        return whole;
    }
    let hash = blake3::hash(whole.as_bytes());
    format!("{}~{}", &whole[..LONGEST_NAME - 33], hex::encode(&hash.as_bytes()[..16]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_safe_file_name_of_its_own() {
        assert_eq!(file_name(&["public", "orders"]), "public.orders");
        assert_eq!(file_name(&["a.b", "../ü"]), "a%2Eb.%2E%2E%2F%C3%BC");
        assert_ne!(file_name(&["a.b", "c"]), file_name(&["a", "b.c"]));
        let long = |last: &str| file_name(&[&"ü".repeat(31), &format!("{}{last}", "ü".repeat(31))]);
        assert_ne!(long("a"), long("b"));
        assert!(long("a").len() < 220 && long("a").is_ascii());
    }
}
