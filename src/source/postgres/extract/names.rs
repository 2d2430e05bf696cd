//! What an operator wants of a cluster: `DATABASE`, `DATABASE/TABLE` or `DATABASE/SCHEMA.TABLE`.
//!
//! Names are taken as they are, upper case and all: nothing is folded. A name that holds `/`, `.` or `"` is put in double quotes, a double
//! quote in it doubled.

use crate::error::{Error, Kind, Result};
use crate::source::TableFingerprint;
use crate::source::postgres::fingerprint::TableName;

/// One table that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WantedTable {
    /// `None`: whichever schema has it.
    pub(super) schema: Option<String>,
    pub(super) table: String,
}

impl WantedTable {
    pub(super) fn fits(&self, schema: &str, table: &str) -> bool {
        self.table == table && self.schema.as_deref().is_none_or(|wanted| wanted == schema)
    }
}

impl std::fmt::Display for WantedTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.table),
            None => f.write_str(&self.table),
        }
    }
}

/// Everything that is wanted, of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    pub(super) database: String,
    /// Empty: the whole database.
    pub(super) tables: Vec<WantedTable>,
}

impl Selection {
    /// Reads what `--only` was given.
    ///
    /// # Errors
    /// `Usage` for what is no name, and for more than one database.
    pub fn parse(only: &[String]) -> Result<Self> {
        let mut found: Option<Self> = None;
        let mut whole = false;
        for text in only {
            let (database, table) = wanted(text)?;
            let selection = found.get_or_insert_with(|| Self { database: database.clone(), tables: Vec::new() });
            if selection.database != database {
                let what = format!("restore only {}: these are of two databases, {} and {database}", only.join(", "), selection.database);
                return Err(
                    Error::new(Kind::Usage, what).hint("one command brings back one database or tables of one: run it once for each")
                );
            }
            match table {
                Some(table) if selection.tables.contains(&table) => {}
                Some(table) => selection.tables.push(table),
                None => whole = true,
            }
        }
        let mut selection = found.ok_or_else(|| Error::new(Kind::Bug, "a part was asked for without a name"))?;
        if whole {
            selection.tables.clear();
        }
        Ok(selection)
    }

    /// What is asked for and has no fingerprint in the snapshot: perhaps mistyped. Only the recovered server knows for certain.
    #[must_use]
    pub fn doubts(&self, fingerprints: &[TableFingerprint]) -> Vec<String> {
        let known: Vec<TableName> = fingerprints.iter().filter_map(|known| TableName::parse(&known.table)).collect();
        if known.is_empty() {
            return Vec::new();
        }
        if known.iter().all(|known| known.database != self.database) {
            let databases: Vec<&str> = known.iter().map(|known| known.database.as_str()).collect();
            return vec![format!(
                "database {:?} has no fingerprinted table in this snapshot: {}",
                self.database,
                near(&self.database, &databases)
            )];
        }
        let inside: Vec<&TableName> = known.iter().filter(|known| known.database == self.database).collect();
        let unknown = self.tables.iter().filter(|wanted| inside.iter().all(|known| !wanted.fits(&known.schema, &known.table)));
        unknown
            .map(|wanted| {
                let none = "has no fingerprint in this snapshot (nor has any partitioned table, or one that was made later), and is looked for in what is recovered";
                if inside.iter().any(|known| looks_like_a_partition(wanted, known)) {
                    return format!("table {wanted} {none}");
                }
                let names: Vec<String> = inside.iter().map(|known| format!("{}.{}", known.schema, known.table)).collect();
                format!("table {wanted} {none}: {}", near_table(wanted, &names))
            })
            .collect()
    }
}

/// Whether a name is that of the other with something behind it that is no letter, as partitions are mostly called: then the other is no mistake.
fn looks_like_a_partition(wanted: &WantedTable, known: &TableName) -> bool {
    let rest = known.table.strip_prefix(&wanted.table).and_then(|rest| rest.chars().next());
    rest.is_some_and(|letter| !letter.is_alphabetic()) && wanted.schema.as_ref().is_none_or(|schema| *schema == known.schema)
}

fn wanted(text: &str) -> Result<(String, Option<WantedTable>)> {
    let refuse = |why: &str| {
        Error::new(Kind::Usage, format!("restore only {text:?}: {why}")).hint(
            "write DATABASE, DATABASE/TABLE or DATABASE/SCHEMA.TABLE; a name that holds `/`, `.` or `\"` goes in double quotes: 'crm/public.\"a.b\"'",
        )
    };
    let (database, rest) = piece(text, &['/']).ok_or_else(|| refuse("that is no name"))?;
    let Some(rest) = rest else { return Ok((database, None)) };
    let (first, rest) = piece(rest, &['.']).ok_or_else(|| refuse("the part behind the database is no name"))?;
    let Some(rest) = rest else { return Ok((database, Some(WantedTable { schema: None, table: first }))) };
    match piece(rest, &['.', '/']) {
        Some((table, None)) => Ok((database, Some(WantedTable { schema: Some(first), table }))),
        _ => Err(refuse("that is more than a schema and a table")),
    }
}

/// A name up to one of these letters, and what follows it. `None` when it is not one.
fn piece<'a>(text: &'a str, ends: &[char]) -> Option<(String, Option<&'a str>)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(ends).unwrap_or(text.len());
        let name = &text[..end];
        let valid = !name.is_empty() && !name.contains(['"', '\0']);
        return valid.then(|| (name.to_owned(), text.get(end + 1..)));
    };
    let mut name = String::new();
    let mut rest = quoted;
    loop {
        let end = rest.find('"')?;
        name.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        if let Some(more) = rest.strip_prefix('"') {
            name.push('"');
            rest = more;
            continue;
        }
        let follows = match rest.chars().next() {
            None => None,
            Some(letter) if ends.contains(&letter) => Some(&rest[letter.len_utf8()..]),
            Some(_) => return None,
        };
        return (!name.is_empty() && !name.contains('\0')).then_some((name, follows));
    }
}

/// `did you mean …?`, or what there is.
pub(super) fn near(word: &str, candidates: &[&str]) -> String {
    const TOLD: usize = 8;
    let folded = word.to_lowercase();
    let best = candidates
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(&folded, &candidate.to_lowercase()), *candidate))
        .filter(|(distance, candidate)| *distance <= 2 + candidate.len() / 5)
        .min();
    if let Some((_, best)) = best {
        return format!("did you mean {best}?");
    }
    let mut all: Vec<&str> = candidates.to_vec();
    all.sort_unstable();
    all.dedup();
    match all.as_slice() {
        [] => "there is none".to_owned(),
        all if all.len() > TOLD => format!("there are {} and {} more", all[..TOLD].join(", "), all.len() - TOLD),
        all => format!("there are {}", all.join(", ")),
    }
}

/// The same for `schema.table`: a table may be told by its name alone.
pub(super) fn near_table(wanted: &WantedTable, names: &[String]) -> String {
    let plain = |name: &str| name.split_once('.').map_or(name, |(_, table)| table).to_owned();
    let exact: Vec<&str> = names.iter().filter(|name| plain(name) == wanted.table).map(String::as_str).collect();
    if !exact.is_empty() {
        return format!("there is {}", exact.join(", "));
    }
    let word = match &wanted.schema {
        Some(_) => wanted.to_string(),
        None => format!("public.{}", wanted.table),
    };
    near(&word, &names.iter().map(String::as_str).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(only: &[&str]) -> Result<Selection> {
        Selection::parse(&only.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    fn table(schema: Option<&str>, table: &str) -> WantedTable {
        WantedTable { schema: schema.map(str::to_owned), table: table.into() }
    }

    #[test]
    fn names_are_read_as_they_are() {
        assert_eq!(parse(&["crm"]).unwrap(), Selection { database: "crm".into(), tables: Vec::new() });
        let selection = parse(&["Mein CRM/Füße.Ä b", "Mein CRM/orders", "Mein CRM/orders"]).unwrap();
        assert_eq!(selection.database, "Mein CRM");
        assert_eq!(selection.tables, [table(Some("Füße"), "Ä b"), table(None, "orders")]);
        let quoted = parse(&["\"a/b\"/\"s.x\".\"t\"\"q\""]).unwrap();
        assert_eq!((quoted.database.as_str(), quoted.tables.as_slice()), ("a/b", &[table(Some("s.x"), "t\"q")][..]));
        assert!(parse(&["crm/t", "crm"]).unwrap().tables.is_empty(), "all of it is more than a table");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["", "/t", "crm/", "crm/a.", "crm/.t", "crm/a.b.c", "crm/a/b.c/d", "\"crm", "\"crm\"x", "\"\"/t", "a\"b/t"] {
            let error = parse(&[text]).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{text}");
            assert!(error.hint_text().is_some());
        }
        assert!(parse(&["a/t", "b/t"]).unwrap_err().to_string().contains("two databases"));
    }

    #[test]
    fn doubts_name_what_is_near() {
        let known = |table: &str| TableFingerprint { table: table.into(), rows: 1, digest: String::new() };
        let all = [known("crm.public.orders"), known("crm.\"Füße\".\"a\"\"b\" [1 of 2 pages]")];
        assert_eq!(parse(&["crm/orders", "crm/Füße.\"a\"\"b\""]).unwrap().doubts(&all), Vec::<String>::new());
        let doubts = parse(&["crm/order"]).unwrap().doubts(&all);
        assert!(doubts[0].contains("did you mean public.orders?"), "{doubts:?}");
        let parted = [known("crm.sales.ev_25"), known("crm.sales.ev_26")];
        let doubts = parse(&["crm/sales.ev", "crm/ev", "crm/sales.ev_2"]).unwrap().doubts(&parted);
        assert!(doubts[..2].iter().all(|doubt| doubt.contains("is looked for") && !doubt.contains("did you mean")), "{doubts:?}");
        assert!(parse(&["crm/sales.ew_25"]).unwrap().doubts(&parted)[0].contains("did you mean sales.ev_25?"));
        assert!(parse(&["crn"]).unwrap().doubts(&all)[0].contains("did you mean crm?"));
        assert!(parse(&["crm/x.orders"]).unwrap().doubts(&all)[0].contains("there is public.orders"));
    }
}
