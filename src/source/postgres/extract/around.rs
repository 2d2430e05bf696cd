//! What surrounds single tables at the source and is in no dump of them: what they are parts of, and what holds on to them.
//!
//! `DROP TABLE … CASCADE` takes it with the table, and a table that was renamed takes it along: a load brings back none of it.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::source::postgres::client::{Connection, Row};
use crate::source::postgres::extract::{Relation, number};

/// The tables that are taken, as `ANY` of SQL takes them.
pub(super) fn array(chosen: &[Relation]) -> String {
    let oids: Vec<String> = chosen.iter().map(|one| one.oid.to_string()).collect();
    format!("'{{{}}}'::pg_catalog.oid[]", oids.join(","))
}

/// A table that a table of the part is a child of, and that is not in the part.
pub(super) struct Parent {
    /// As SQL names it.
    pub(super) child: String,
    pub(super) schema: String,
    pub(super) name: String,
    /// As SQL names it.
    pub(super) sql: String,
    /// `FOR VALUES …` of a partition; `None`: the child inherits.
    pub(super) bound: Option<String>,
}

/// Extended statistics of a table of the part, which `pg_dump --table` leaves out.
pub(super) struct Statistics {
    /// As SQL names them.
    pub(super) name: String,
    pub(super) owner: String,
    pub(super) sql: String,
}

/// A column whose values name large objects, of which `pg_dump --table` takes none.
pub(super) struct LargeObjects {
    /// For a person: `public.letter.body`.
    column: String,
    /// Counts those that are there.
    pub(super) sql: String,
    /// At the source.
    pub(super) count: u64,
}

/// What holds on to a table: a foreign key, a publication, a subscription or a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tie {
    kind: String,
    /// What it is of, as SQL names it: a table, a publication, a subscription, the view itself.
    base: String,
    base_oid: u32,
    /// Of a foreign key.
    name: String,
    /// The table, as SQL names it.
    to: String,
    to_oid: u32,
    /// What makes it anew.
    sql: String,
}

impl Tie {
    /// What it has in common with the same one in another database.
    pub(super) fn key(&self) -> [String; 4] {
        [&self.kind, &self.base, &self.name, &self.to].map(Clone::clone)
    }

    fn is_view(&self) -> bool {
        self.kind.ends_with("view")
    }
}

/// Something else that depends on a table.
pub(super) struct Dependent {
    /// For a person.
    pub(super) what: String,
    /// As `pg_get_object_address` is asked for it.
    pub(super) address: [String; 3],
}

/// All of it. See the fields' types.
pub(super) struct Around {
    /// Schema and name of the tables' indexes and sequences.
    pub(super) names: Vec<(String, String)>,
    pub(super) parents: Vec<Parent>,
    pub(super) statistics: Vec<Statistics>,
    pub(super) large_objects: Vec<LargeObjects>,
    pub(super) ties: Vec<Tie>,
    pub(super) dependents: Vec<Dependent>,
}

impl Around {
    /// Reads it where the tables were recovered.
    pub(super) fn read(sql: &mut Connection, chosen: &[Relation]) -> Result<Self> {
        qualify(sql)?;
        let list = array(chosen);
        let text = |row: &Row, name: &str| row.required(name).map(str::to_owned);
        let names = sql.query(&format!(
            "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.oid IN (SELECT indexrelid FROM pg_catalog.pg_index WHERE indrelid = ANY ({list})) OR c.oid IN ({}) ORDER BY 1, 2",
            sequences(&list)
        ))?;
        let names = names.iter().map(|row| Ok((text(row, "nspname")?, text(row, "relname")?))).collect::<Result<_>>()?;
        let parents = sql.query(&format!(
            "SELECT pg_catalog.format('%I.%I', cn.nspname, c.relname) AS child, pn.nspname, p.relname, \
               pg_catalog.format('%I.%I', pn.nspname, p.relname) AS parent, pg_catalog.pg_get_expr(c.relpartbound, c.oid) AS bound \
             FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace \
               JOIN pg_catalog.pg_class p ON p.oid = i.inhparent JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace \
             WHERE i.inhrelid = ANY ({list}) AND NOT i.inhparent = ANY ({list}) ORDER BY 1, 4"
        ))?;
        let parents = parents.iter().map(|row| {
            let (schema, name) = (text(row, "nspname")?, text(row, "relname")?);
            Ok(Parent { child: text(row, "child")?, schema, name, sql: text(row, "parent")?, bound: row.named("bound").map(str::to_owned) })
        });
        let parents = parents.collect::<Result<_>>()?;
        let statistics = sql.query(&format!(
            "SELECT pg_catalog.format('%I.%I', n.nspname, s.stxname) AS name, pg_catalog.pg_get_userbyid(s.stxowner) AS owner, \
               pg_catalog.pg_get_statisticsobjdef(s.oid) AS sql FROM pg_catalog.pg_statistic_ext s \
               JOIN pg_catalog.pg_namespace n ON n.oid = s.stxnamespace WHERE s.stxrelid = ANY ({list}) ORDER BY 1"
        ))?;
        let statistics =
            statistics.iter().map(|row| Ok(Statistics { name: text(row, "name")?, owner: text(row, "owner")?, sql: text(row, "sql")? }));
        let statistics = statistics.collect::<Result<_>>()?;
        let ties = held(ties(sql)?, chosen);
        let dependents = sql.query(&format!(
            "SELECT DISTINCT pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) AS what, a.type, a.object_names, a.object_args \
             FROM pg_catalog.pg_depend d CROSS JOIN LATERAL pg_catalog.pg_identify_object_as_address(d.classid, d.objid, d.objsubid) a \
             WHERE d.deptype = 'n' AND (\
                 d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND (d.refobjid = ANY ({list}) OR d.refobjid IN ({})) \
                 OR d.refclassid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.refobjid IN (\
                   SELECT t.oid FROM pg_catalog.pg_type t WHERE t.typrelid = ANY ({list}) UNION SELECT t.typarray FROM pg_catalog.pg_type t WHERE t.typrelid = ANY ({list}))) \
               AND CASE d.classid::pg_catalog.regclass::pg_catalog.text \
                 WHEN 'pg_class' THEN NOT d.objid = ANY ({list}) AND EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = d.objid AND c.relkind IN ('r', 'p', 'f', 'c')) \
                 WHEN 'pg_constraint' THEN EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.oid = d.objid AND k.contype <> 'f' AND NOT k.conrelid = ANY ({list})) \
                 WHEN 'pg_rewrite' THEN EXISTS (SELECT FROM pg_catalog.pg_rewrite w WHERE w.oid = d.objid AND w.rulename <> '_RETURN' AND NOT w.ev_class = ANY ({list})) \
                 WHEN 'pg_attrdef' THEN EXISTS (SELECT FROM pg_catalog.pg_attrdef f WHERE f.oid = d.objid AND NOT f.adrelid = ANY ({list})) \
                 WHEN 'pg_policy' THEN EXISTS (SELECT FROM pg_catalog.pg_policy p WHERE p.oid = d.objid AND NOT p.polrelid = ANY ({list})) \
                 WHEN 'pg_trigger' THEN EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.oid = d.objid AND NOT t.tgisinternal AND NOT t.tgrelid = ANY ({list})) \
                 WHEN 'pg_publication_rel' THEN false WHEN 'pg_statistic_ext' THEN false ELSE true END ORDER BY 1",
            sequences(&list)
        ))?;
        let dependents = dependents.iter().map(|row| {
            let address = [text(row, "type")?, text(row, "object_names")?, text(row, "object_args")?];
            Ok(Dependent { what: text(row, "what")?, address })
        });
        let dependents = dependents.collect::<Result<_>>()?;
        Ok(Self { names, parents, statistics, large_objects: large_objects(sql, chosen)?, ties, dependents })
    }

    /// What came and is not what it was: partitions that are tables of their own now.
    pub(super) fn alone(&self) -> Vec<String> {
        let partitions = self.parents.iter().filter_map(|one| Some((one, one.bound.as_ref()?)));
        partitions
            .map(|(one, bound)| {
                format!(
                    "{0} came as a table of its own, no longer a partition of {1}, which is not among what was asked for; to attach it: \
                     ALTER TABLE {1} ATTACH PARTITION {0} {bound}",
                    one.child, one.sql
                )
            })
            .collect()
    }

    /// The tables that a child was made from, each with the child, that must be where it is loaded.
    pub(super) fn inherited(&self) -> impl Iterator<Item = &Parent> {
        self.parents.iter().filter(|one| one.bound.is_none())
    }
}

impl LargeObjects {
    /// What to say where so many of them are there.
    pub(super) fn missing(&self, there: u64) -> Option<String> {
        (there < self.count).then(|| {
            format!(
                "{} names {} large objects, of which {there} are in the target: a part of a database brings none; take the whole database, and from it what is missing \
                 (lo_export, lo_import)",
                self.column, self.count
            )
        })
    }
}

/// What must be said of a tie that is not in the target: `None` where it could not be there either.
///
/// `bases` are the relations, publications and subscriptions that are there; `own`: it is the database that the part was backed up from, so that
/// what is not there was lost.
pub(super) fn lacking(tie: &Tie, bases: &BTreeSet<String>, own: bool) -> Option<String> {
    let Tie { kind, base, name, to, sql, .. } = tie;
    match (kind.as_str(), bases.contains(base)) {
        ("foreign key", true) => Some(format!("foreign key {name} of {base} to {to} is not in the target: {sql}")),
        ("publication" | "subscription", true) => Some(format!("{kind} {base} in the target is without {to}: {sql}")),
        (_, true) if tie.is_view() => Some(format!("{kind} {base} in the target does not read {to}: drop it and make it again: {sql}")),
        (_, false) if tie.is_view() && own => Some(format!("{kind} {base}, which read what was loaded, is not in the target: {sql}")),
        _ => None,
    }
}

/// Names in the answers of this session are with their schema.
pub(super) fn qualify(sql: &mut Connection) -> Result<()> {
    sql.execute("SET search_path = pg_catalog")
}

/// The sequences that belong to columns of these tables.
pub(super) fn sequences(list: &str) -> String {
    format!(
        "SELECT d.objid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S' \
         WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
           AND d.deptype IN ('a', 'i') AND d.refobjid = ANY ({list})"
    )
}

/// All ties of a database.
pub(super) fn ties(sql: &mut Connection) -> Result<Vec<Tie>> {
    // Both since 15.
    let filtered = if sql.server_version() >= 150_000 {
        "coalesce(' (' || (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY k.n) FROM unnest(m.prattrs::int2[]) WITH ORDINALITY k(number, n) \
           JOIN pg_attribute a ON a.attrelid = m.prrelid AND a.attnum = k.number) || ')', '') || coalesce(' WHERE (' || pg_get_expr(m.prqual, m.prrelid) || ')', '')"
    } else {
        "''"
    };
    let rows = sql.query(&format!(
        "SELECT 'foreign key' AS kind, format('%I.%I', n.nspname, c.relname) AS base, c.oid AS base_oid, k.conname::text AS name, \
             format('%I.%I', rn.nspname, r.relname) AS to, r.oid AS to_oid, \
             format('ALTER TABLE %I.%I ADD CONSTRAINT %I %s', n.nspname, c.relname, k.conname, pg_get_constraintdef(k.oid)) AS sql \
           FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
             JOIN pg_class r ON r.oid = k.confrelid JOIN pg_namespace rn ON rn.oid = r.relnamespace \
           WHERE k.contype = 'f' AND k.conparentid = 0 \
         UNION ALL SELECT 'publication', quote_ident(p.pubname), 0::oid, '', format('%I.%I', rn.nspname, r.relname), r.oid, \
             format('ALTER PUBLICATION %I ADD TABLE ONLY %I.%I%s', p.pubname, rn.nspname, r.relname, {filtered}) \
           FROM pg_publication_rel m JOIN pg_publication p ON p.oid = m.prpubid JOIN pg_class r ON r.oid = m.prrelid \
             JOIN pg_namespace rn ON rn.oid = r.relnamespace \
         UNION ALL SELECT 'subscription', quote_ident(s.subname), 0::oid, '', format('%I.%I', rn.nspname, r.relname), r.oid, \
             format('ALTER SUBSCRIPTION %I REFRESH PUBLICATION WITH (copy_data = false)', s.subname) \
           FROM pg_subscription_rel m JOIN pg_subscription s ON s.oid = m.srsubid JOIN pg_class r ON r.oid = m.srrelid \
             JOIN pg_namespace rn ON rn.oid = r.relnamespace \
         UNION ALL SELECT CASE v.relkind WHEN 'm' THEN 'materialized view' ELSE 'view' END, format('%I.%I', n.nspname, v.relname), v.oid, '', \
             format('%I.%I', rn.nspname, r.relname), r.oid, \
             format('CREATE %s %I.%I%s AS %s', CASE v.relkind WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'VIEW' END, n.nspname, v.relname, \
               ' WITH (' || array_to_string(v.reloptions, ', ') || ')', btrim(pg_get_viewdef(v.oid), ' ;')) \
           FROM (SELECT DISTINCT w.ev_class, d.refobjid FROM pg_rewrite w JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid \
                   AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> w.ev_class WHERE w.rulename = '_RETURN' AND w.ev_class >= 16384) e \
             JOIN pg_class v ON v.oid = e.ev_class JOIN pg_namespace n ON n.oid = v.relnamespace \
             JOIN pg_class r ON r.oid = e.refobjid JOIN pg_namespace rn ON rn.oid = r.relnamespace \
         ORDER BY 1, 2, 4"
    ))?;
    let text = |row: &Row, name: &str| row.required(name).map(str::to_owned);
    rows.iter()
        .map(|row| {
            Ok(Tie {
                kind: text(row, "kind")?,
                base: text(row, "base")?,
                base_oid: number(row.required("base_oid")?)?,
                name: text(row, "name")?,
                to: text(row, "to")?,
                to_oid: number(row.required("to_oid")?)?,
                sql: text(row, "sql")?,
            })
        })
        .collect()
}

/// The relations, publications and subscriptions of a database, as SQL names them.
pub(super) fn bases(sql: &mut Connection) -> Result<BTreeSet<String>> {
    let rows = sql.query(
        "SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') \
         UNION ALL SELECT quote_ident(pubname) FROM pg_publication UNION ALL SELECT quote_ident(s.subname) FROM pg_subscription s \
           JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = current_database()",
    )?;
    rows.iter().map(|row| row.required("name").map(str::to_owned)).collect()
}

/// Those that hold on to these tables from outside; of views also those on such views, first what others read.
fn held(all: Vec<Tie>, chosen: &[Relation]) -> Vec<Tie> {
    let inside: BTreeSet<u32> = chosen.iter().map(|one| one.oid).collect();
    let (views, others): (Vec<Tie>, Vec<Tie>) = all.into_iter().partition(Tie::is_view);
    let mut found: Vec<Tie> = others.into_iter().filter(|tie| inside.contains(&tie.to_oid) && !inside.contains(&tie.base_oid)).collect();
    let mut reached = inside;
    let mut left = views;
    loop {
        let (next, rest): (Vec<Tie>, Vec<Tie>) = left.into_iter().partition(|tie| reached.contains(&tie.to_oid));
        if next.is_empty() {
            return found;
        }
        reached.extend(next.iter().map(|tie| tie.base_oid));
        found.extend(next);
        left = rest;
    }
}

fn large_objects(sql: &mut Connection, chosen: &[Relation]) -> Result<Vec<LargeObjects>> {
    if sql.value("SELECT EXISTS (SELECT FROM pg_largeobject_metadata)")?.as_deref() != Some("t") {
        return Ok(Vec::new());
    }
    let columns = sql.query(&format!(
        "SELECT a.attrelid, quote_ident(a.attname) AS name FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid \
         WHERE a.attrelid = ANY ({}) AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped AND (a.atttypid = 26 OR t.typbasetype = 26) \
         ORDER BY a.attrelid, a.attnum",
        array(chosen)
    ))?;
    let mut found = Vec::new();
    for row in &columns {
        let (table, name): (u32, _) = (number(row.required("attrelid")?)?, row.required("name")?);
        let Some(one) = chosen.iter().find(|one| one.oid == table) else { continue };
        let counts = format!(
            "SELECT pg_catalog.count(*) FROM pg_catalog.pg_largeobject_metadata WHERE oid IN (SELECT {name}::pg_catalog.oid FROM ONLY {})",
            one.sql()
        );
        let count = number(&sql.value(&counts)?.unwrap_or_default())?;
        if count > 0 {
            found.push(LargeObjects { column: format!("{}.{name}", one.shown()), sql: counts, count });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tie(kind: &str, base: &str, base_oid: u32, to_oid: u32) -> Tie {
        let sql = format!("make {base}");
        Tie { kind: kind.into(), base: base.into(), base_oid, name: "n".into(), to: format!("t{to_oid}"), to_oid, sql }
    }

    #[test]
    fn views_on_views_are_reached_and_keys_between_tables_that_are_taken_are_not() {
        let one = |oid| Relation { oid, schema: "s".into(), name: oid.to_string(), kind: "r".into(), unlogged: false, populated: true };
        let all = vec![
            tie("view", "b", 11, 10),
            tie("view", "a", 10, 1),
            tie("view", "x", 12, 9),
            tie("foreign key", "inside", 2, 1),
            tie("foreign key", "outside", 3, 1),
            tie("publication", "p", 0, 2),
            tie("publication", "p", 0, 3),
        ];
        let found: Vec<String> = held(all, &[one(1), one(2)]).iter().map(|tie| format!("{} {} {}", tie.kind, tie.base, tie.to)).collect();
        assert_eq!(found, ["foreign key outside t1", "publication p t2", "view a t1", "view b t10"]);
    }

    #[test]
    fn what_could_not_be_in_the_target_is_not_missed() {
        let bases = BTreeSet::from(["there".to_owned()]);
        let said = |kind: &str, base: &str, own: bool| lacking(&tie(kind, base, 1, 2), &bases, own).is_some();
        for kind in ["foreign key", "publication", "subscription"] {
            assert!(said(kind, "there", false) && !said(kind, "gone", true), "{kind}");
        }
        for kind in ["view", "materialized view"] {
            assert!(said(kind, "there", false) && said(kind, "gone", true) && !said(kind, "gone", false), "{kind}");
        }
    }
}
