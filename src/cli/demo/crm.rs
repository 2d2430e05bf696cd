//! A believable CRM for the demo: a SQLite database and a folder of attachments, the same for the same seed.
//!
//! Nothing in it is anybody's: names are put together from lists, telephone numbers lie in ranges kept for fiction
//! (555-01xx), mail goes to `example` domains (RFC 2606).

use std::fmt::Write as _;
use std::fs::{self, File, FileTimes};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rusqlite::{Connection, Statement, Transaction, params};

use crate::error::{Context, IoContext, Kind, Result};

/// The demo's first day: 2026-03-02 09:00 UTC.
const EPOCH_SECS: i64 = 1_772_442_000;
const DAY_SECS: i64 = 86_400;

/// What was generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrmSummary {
    /// The database file.
    pub database: PathBuf,
    /// The folder of attachments.
    pub attachments: PathBuf,
    pub accounts: u64,
    pub contacts: u64,
    pub activities: u64,
    pub orders: u64,
    pub order_lines: u64,
    pub call_records: u64,
    /// Regular files among the attachments.
    pub files: u64,
}

/// What a day of work changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DaySummary {
    pub rows_updated: u64,
    pub rows_added: u64,
}

/// Makes `crm.sqlite` (in WAL mode, about 40 MB at scale 1) and `attachments/` in a folder, which is made if missing.
///
/// # Errors
/// When the folder cannot be written to, or holds a CRM already.
pub fn generate(folder: &Path, seed: u64, scale: f64) -> Result<CrmSummary> {
    fs::create_dir_all(folder).io_context(|| format!("create folder {}", folder.display()))?;
    let database = folder.join("crm.sqlite");
    File::create_new(&database).io_context(|| format!("create {}", database.display()))?;
    let attachments = folder.join("attachments");
    let mut random = Random(seed);
    let counts = Counts::scaled(scale);
    fill(&database, &counts, &mut random).context(Kind::Failed, || format!("fill {}", database.display()))?;
    let files = attach(&attachments, counted(300, scale), &mut random)?;
    Ok(CrmSummary {
        database,
        attachments,
        accounts: counts.accounts,
        contacts: counts.contacts,
        activities: counts.activities,
        orders: counts.orders,
        order_lines: counts.order_lines,
        call_records: counts.call_records,
        files,
    })
}

/// A day's work on a generated database: about 1% of the rows are changed here and there, about 1% are added. Another seed is another day.
///
/// # Errors
/// When it is not such a database, or is locked.
pub fn a_day_of_work(database: &Path, seed: u64) -> Result<DaySummary> {
    work(database, &mut Random(seed)).context(Kind::Failed, || format!("change {}", database.display()))
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, fast, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// 0 .. `limit`, near enough evenly.
    fn below(&mut self, limit: u64) -> u64 {
        u64::try_from((u128::from(self.next()) * u128::from(limit)) >> 64).unwrap_or(0)
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[usize::try_from(self.below(list.len() as u64)).unwrap_or(0)]
    }

    fn id(&mut self, count: u64) -> i64 {
        i64::try_from(self.below(count) + 1).unwrap_or(1)
    }
}

struct Counts {
    accounts: u64,
    contacts: u64,
    activities: u64,
    orders: u64,
    order_lines: u64,
    call_records: u64,
}

/// A share of a count, never less than one.
fn counted(count: u32, scale: f64) -> u64 {
    Duration::from_secs(1).mul_f64((f64::from(count) * scale.clamp(0.0, 1_000.0)).max(1.0)).as_secs()
}

impl Counts {
    fn scaled(scale: f64) -> Self {
        let counts = [5_000, 16_000, 110_000, 22_000, 66_000, 80_000].map(|count| counted(count, scale));
        let [accounts, contacts, activities, orders, order_lines, call_records] = counts;
        Self { accounts, contacts, activities, orders, order_lines, call_records }
    }
}

const SCHEMA: &str = "
CREATE TABLE accounts (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, country TEXT NOT NULL, city TEXT NOT NULL, industry TEXT NOT NULL,
    annual_revenue_cents INTEGER, custom TEXT NOT NULL CHECK (json_valid(custom)), created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL
) STRICT;
CREATE TABLE contacts (
    id INTEGER PRIMARY KEY, account_id INTEGER NOT NULL REFERENCES accounts (id), name TEXT NOT NULL, email TEXT NOT NULL, phone TEXT,
    title TEXT, language TEXT NOT NULL, custom TEXT NOT NULL CHECK (json_valid(custom)), created_at INTEGER NOT NULL
) STRICT;
CREATE TABLE activities (
    id INTEGER PRIMARY KEY, contact_id INTEGER NOT NULL REFERENCES contacts (id), kind TEXT NOT NULL, subject TEXT NOT NULL, body TEXT NOT NULL,
    due_at INTEGER, done INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE orders (
    id INTEGER PRIMARY KEY, account_id INTEGER NOT NULL REFERENCES accounts (id), number TEXT NOT NULL UNIQUE, status TEXT NOT NULL,
    currency TEXT NOT NULL, placed_at INTEGER NOT NULL
) STRICT;
CREATE TABLE order_lines (
    order_id INTEGER NOT NULL REFERENCES orders (id), line INTEGER NOT NULL, product TEXT NOT NULL, quantity INTEGER NOT NULL,
    unit_price_cents INTEGER NOT NULL, total_cents INTEGER GENERATED ALWAYS AS (quantity * unit_price_cents) STORED,
    PRIMARY KEY (order_id, line)
) WITHOUT ROWID, STRICT;
CREATE TABLE call_records (
    id INTEGER PRIMARY KEY, contact_id INTEGER NOT NULL REFERENCES contacts (id), direction TEXT NOT NULL, started_at INTEGER NOT NULL,
    duration_secs INTEGER NOT NULL, quality REAL, recording_hash BLOB, note TEXT
) STRICT;
";

/// Made after the rows, which is faster and leaves the trees tidy.
const INDICES: &str = "
CREATE INDEX contacts_by_account ON contacts (account_id);
CREATE INDEX contacts_by_email ON contacts (email);
CREATE INDEX activities_by_contact ON activities (contact_id, due_at);
CREATE INDEX orders_by_account ON orders (account_id, placed_at);
CREATE INDEX calls_by_contact ON call_records (contact_id, started_at);
CREATE VIEW revenue AS SELECT o.account_id, sum(l.total_cents) AS total_cents FROM orders o JOIN order_lines l ON l.order_id = o.id
    WHERE o.status <> 'cancelled' GROUP BY o.account_id;
";

const GIVEN: [&str; 24] = [
    "Anna", "Boris", "Chloé", "David", "Elif", "Farid", "Grace", "Hugo", "Ingrid", "João", "Kenji", "Lena", "Mateo", "Nadia", "Oskar",
    "Priya", "Quentin", "Rosa", "Søren", "Tomasz", "Uma", "Viktor", "Wanjiru", "Zoë",
];
const FAMILY: [&str; 24] = [
    "Almeida",
    "Berg",
    "Carter",
    "Dubois",
    "Eriksen",
    "Fischer",
    "García",
    "Hughes",
    "Ivanova",
    "Jansen",
    "Kowalska",
    "Lindqvist",
    "Müller",
    "Nakamura",
    "O'Brien",
    "Patel",
    "Quist",
    "Rossi",
    "Schmidt",
    "Tanaka",
    "Usman",
    "Vogel",
    "Weber",
    "Yılmaz",
];
const CHINESE_FAMILY: [&str; 16] = ["王", "李", "张", "刘", "陈", "杨", "赵", "黄", "周", "吴", "徐", "孙", "胡", "朱", "高", "林"];
const CHINESE_GIVEN: [&str; 16] = ["伟", "芳", "秀英", "敏", "静", "丽", "强", "磊", "军", "洋", "艳", "勇", "杰", "娟", "晓明", "志强"];
const COMPANY: [&str; 16] = [
    "Northwind",
    "Blue Harbour",
    "Cedar & Finch",
    "Delta Marine",
    "Evergreen",
    "Falcon",
    "Granite",
    "Horizon",
    "Ironbridge",
    "Juniper",
    "Kestrel",
    "Lighthouse",
    "Meridian",
    "Nimbus",
    "Orchard",
    "Pioneer",
];
const COMPANY_KIND: [&str; 8] = ["Logistics", "Foods", "Instruments", "Textiles", "Software", "Medical", "Energy", "Printing"];
const CHINESE_COMPANY: [&str; 12] = ["华兴", "东方", "远达", "金桥", "海天", "宏图", "新航", "瑞丰", "中信达", "长城", "明日", "万里"];
const CHINESE_KIND: [&str; 6] = ["科技有限公司", "物流有限公司", "贸易有限公司", "医疗器械有限公司", "食品有限公司", "电子有限公司"];
const PLACES: [(&str, &str); 12] = [
    ("DE", "Hamburg"),
    ("CN", "上海"),
    ("CN", "深圳"),
    ("CN", "杭州"),
    ("US", "Portland"),
    ("GB", "Leeds"),
    ("FR", "Lyon"),
    ("PT", "Porto"),
    ("SE", "Malmö"),
    ("PL", "Gdańsk"),
    ("JP", "大阪"),
    ("KE", "Nairobi"),
];
const TITLES: [&str; 10] = [
    "Head of Purchasing",
    "Operations Manager",
    "CFO",
    "IT Lead",
    "采购经理",
    "运营总监",
    "Assistant",
    "Founder",
    "Warehouse Manager",
    "客户经理",
];
const KINDS: [&str; 5] = ["call", "mail", "meeting", "task", "visit"];
const STATUS: [&str; 5] = ["draft", "confirmed", "shipped", "invoiced", "cancelled"];
const SUBJECTS: [&str; 12] = [
    "Follow up on the offer",
    "Renewal of the service contract",
    "Complaint about a late delivery",
    "Introduce the new price list",
    "Quarterly review",
    "Samples requested",
    "确认交货日期",
    "讨论续签合同",
    "发送最新报价单",
    "安装现场考察",
    "Invoice sent twice",
    "Change of contact person",
];
const SENTENCES: [&str; 18] = [
    "Spoke with the warehouse; they can take the pallets from Tuesday on.",
    "Customer asks for a discount of five percent when ordering for the whole year.",
    "They compare us with two other suppliers and decide before the end of the month.",
    "Sent the data sheet and the safety certificate by mail.",
    "No answer so far, try again in the afternoon.",
    "The last delivery was complete but two boxes were damaged on the way.",
    "客户对上次的服务非常满意，希望继续合作。",
    "对方要求在下周五之前收到正式报价。",
    "需要与技术部门确认产品规格和交货周期。",
    "付款条件改为收货后三十天，请更新合同。",
    "Their new plant opens in autumn and will need three more machines.",
    "Please add the purchasing department in copy from now on.",
    "Agreed on a visit, the hotel is booked already.",
    "合同已经寄出，等待对方盖章回传。",
    "The invoice address has changed, see the custom fields.",
    "Asked for references from the same industry.",
    "Credit limit raised after the check with the bank.",
    "Would like to receive the newsletter in Chinese: 请使用中文联系。",
];
const PRODUCTS: [&str; 14] = [
    "Label printer LP-200",
    "Thermal paper 80 mm",
    "Hand scanner",
    "Pallet scale 1500 kg",
    "Service contract, one year",
    "Spare battery",
    "Cold chain sensor",
    "条码打印机 LP-300",
    "热敏纸 57 毫米",
    "Conveyor belt, per metre",
    "Forklift terminal",
    "Installation, per day",
    "扫描枪支架",
    "Cable, 5 m",
];

fn person(random: &mut Random) -> (String, &'static str) {
    if random.below(3) == 0 {
        (format!("{}{}", random.pick(&CHINESE_FAMILY), random.pick(&CHINESE_GIVEN)), "zh")
    } else {
        (format!("{} {}", random.pick(&GIVEN), random.pick(&FAMILY)), "en")
    }
}

fn company(random: &mut Random) -> String {
    if random.below(3) == 0 {
        format!("{}{}", random.pick(&CHINESE_COMPANY), random.pick(&CHINESE_KIND))
    } else {
        format!("{} {} {}", random.pick(&COMPANY), random.pick(&COMPANY_KIND), random.pick(&["Ltd", "GmbH", "Inc.", "AB", "SARL"]))
    }
}

fn text(random: &mut Random, sentences: u64) -> String {
    let mut text = String::new();
    for _ in 0..=random.below(sentences) {
        if !text.is_empty() {
            text.push(' ');
        }
        text += random.pick(&SENTENCES);
        // Writing to a string cannot fail.
        let _ = write!(text, " [ref {:08x}]", random.next() >> 32);
    }
    text
}

fn custom(random: &mut Random) -> String {
    let (segment, vat, score) = (random.pick(&["A", "B", "C"]), random.below(1_000_000_000), random.below(100));
    let tag = random.pick(&["重点客户", "fair 2025", "newsletter", "partner", "at risk", "老客户"]);
    format!(
        r#"{{"segment":"{segment}","vat":"XX{vat:09}","score":{score},"tags":["{tag}"],"payment":{{"days":{},"method":"transfer"}}}}"#,
        10 + random.below(50)
    )
}

fn moment(random: &mut Random) -> i64 {
    EPOCH_SECS - i64::try_from(random.below(900)).unwrap_or(0) * DAY_SECS + i64::try_from(random.below(36_000)).unwrap_or(0)
}

/// The statements that add rows; ids are given, so that the same seed makes the same file.
struct Inserts<'a> {
    account: Statement<'a>,
    contact: Statement<'a>,
    activity: Statement<'a>,
    order: Statement<'a>,
    line: Statement<'a>,
    call: Statement<'a>,
}

impl<'a> Inserts<'a> {
    fn new(work: &'a Transaction<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            account: work.prepare("INSERT INTO accounts VALUES (NULL, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)")?,
            contact: work.prepare("INSERT INTO contacts VALUES (NULL, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?,
            activity: work.prepare("INSERT INTO activities VALUES (NULL, ?1, ?2, ?3, ?4, ?5, ?6)")?,
            order: work.prepare("INSERT INTO orders VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?,
            line: work
                .prepare("INSERT INTO order_lines (order_id, line, product, quantity, unit_price_cents) VALUES (?1, ?2, ?3, ?4, ?5)")?,
            call: work.prepare("INSERT INTO call_records VALUES (NULL, ?1, ?2, ?3, ?4, ?5, ?6, ?7)")?,
        })
    }

    fn add_account(&mut self, random: &mut Random) -> rusqlite::Result<()> {
        let (country, city) = random.pick(&PLACES);
        let revenue = (random.below(10) > 0).then(|| i64::try_from(random.below(9_000_000_000)).unwrap_or(0));
        let row = params![company(random), country, city, random.pick(&COMPANY_KIND), revenue, custom(random), moment(random)];
        self.account.execute(row).map(drop)
    }

    fn add_contact(&mut self, accounts: u64, random: &mut Random) -> rusqlite::Result<()> {
        let (name, language) = person(random);
        let mail = format!(
            "{}.{:06x}@{}.example",
            random.pick(&GIVEN).to_lowercase(),
            random.below(1 << 24),
            random.pick(&COMPANY).to_lowercase().replace([' ', '&'], "")
        );
        let phone = (random.below(8) > 0).then(|| format!("+1-{}-555-01{:02}", 200 + random.below(700), random.below(100)));
        let row = params![random.id(accounts), name, mail, phone, random.pick(&TITLES), language, custom(random), moment(random)];
        self.contact.execute(row).map(drop)
    }

    fn add_activity(&mut self, contacts: u64, random: &mut Random) -> rusqlite::Result<()> {
        let due = (random.below(4) > 0).then(|| moment(random));
        let row =
            params![random.id(contacts), random.pick(&KINDS), random.pick(&SUBJECTS), text(random, 3), due, random.below(2).cast_signed()];
        self.activity.execute(row).map(drop)
    }

    fn add_order(&mut self, id: u64, accounts: u64, random: &mut Random) -> rusqlite::Result<()> {
        let number = format!("SO-2026-{id:07}");
        let row = params![
            id.cast_signed(),
            random.id(accounts),
            number,
            random.pick(&STATUS),
            random.pick(&["EUR", "USD", "CNY"]),
            moment(random)
        ];
        self.order.execute(row).map(drop)
    }

    fn add_line(&mut self, order: u64, line: u64, random: &mut Random) -> rusqlite::Result<()> {
        let (quantity, price) = (1 + random.below(40), 99 + random.below(500_000));
        let row = params![order.cast_signed(), line.cast_signed(), random.pick(&PRODUCTS), quantity.cast_signed(), price.cast_signed()];
        self.line.execute(row).map(drop)
    }

    fn add_call(&mut self, contacts: u64, random: &mut Random) -> rusqlite::Result<()> {
        let recorded = random.below(2) == 0;
        let mut hash = [0; 32];
        for piece in hash.chunks_mut(8) {
            piece.copy_from_slice(&random.next().to_le_bytes());
        }
        let quality = f64::from(u32::try_from(random.below(5_000)).unwrap_or(0)) / 1_000.0;
        let note = (random.below(3) == 0).then(|| random.pick(&SENTENCES));
        let row = params![
            random.id(contacts),
            random.pick(&["in", "out"]),
            moment(random),
            random.below(3_600).cast_signed(),
            quality,
            recorded.then_some(&hash[..]),
            note
        ];
        self.call.execute(row).map(drop)
    }
}

fn open(database: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(database)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.execute_batch("PRAGMA foreign_keys = ON; PRAGMA cache_size = -65536; PRAGMA synchronous = NORMAL")?;
    Ok(connection)
}

fn fill(database: &Path, counts: &Counts, random: &mut Random) -> rusqlite::Result<()> {
    let mut connection = open(database)?;
    // 0x4C42_4352 is "LBCR": file(1) and a curious reader may tell what this is.
    connection.execute_batch("PRAGMA page_size = 4096; PRAGMA application_id = 0x4C424352; PRAGMA user_version = 1")?;
    // No log while filling (nobody reads it yet); WAL mode afterwards, for its life as an application's database.
    connection.execute_batch("PRAGMA journal_mode = MEMORY; PRAGMA foreign_keys = OFF")?;
    let work = connection.transaction()?;
    work.execute_batch(SCHEMA)?;
    let mut inserts = Inserts::new(&work)?;
    for _ in 0..counts.accounts {
        inserts.add_account(random)?;
    }
    for _ in 0..counts.contacts {
        inserts.add_contact(counts.accounts, random)?;
    }
    for _ in 0..counts.activities {
        inserts.add_activity(counts.contacts, random)?;
    }
    for id in 1..=counts.orders {
        inserts.add_order(id, counts.accounts, random)?;
    }
    for line in 0..counts.order_lines {
        inserts.add_line(line % counts.orders + 1, line / counts.orders + 1, random)?;
    }
    for _ in 0..counts.call_records {
        inserts.add_call(counts.contacts, random)?;
    }
    drop(inserts);
    work.execute_batch(INDICES)?;
    work.commit()?;
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
}

fn work(database: &Path, random: &mut Random) -> rusqlite::Result<DaySummary> {
    let mut connection = open(database)?;
    let work = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let count = |table: &str| -> rusqlite::Result<u64> {
        let most: i64 = work.query_row(&format!("SELECT coalesce(max(rowid), 0) FROM {table}"), [], |row| row.get(0))?;
        Ok(most.unsigned_abs().max(1))
    };
    let (accounts, contacts, activities) = (count("accounts")?, count("contacts")?, count("activities")?);
    let (orders, calls) = (count("orders")?, count("call_records")?);
    let mut day = DaySummary { rows_updated: 0, rows_added: 0 };
    {
        let mut account = work.prepare("UPDATE accounts SET updated_at = updated_at + ?2, annual_revenue_cents = ?3 WHERE id = ?1")?;
        let mut contact = work.prepare("UPDATE contacts SET title = ?2 WHERE id = ?1")?;
        let mut activity = work.prepare("UPDATE activities SET done = 1 - done, body = ?2 WHERE id = ?1")?;
        let mut order = work.prepare("UPDATE orders SET status = ?2 WHERE id = ?1")?;
        let mut call = work.prepare("UPDATE call_records SET note = ?2 WHERE id = ?1")?;
        let share = |rows: u64| rows.div_ceil(100);
        let mut updated = 0;
        for _ in 0..share(accounts) {
            updated += account.execute(params![random.id(accounts), DAY_SECS, random.below(9_000_000_000).cast_signed()])?;
        }
        for _ in 0..share(contacts) {
            updated += contact.execute(params![random.id(contacts), random.pick(&TITLES)])?;
        }
        for _ in 0..share(activities) {
            updated += activity.execute(params![random.id(activities), text(random, 3)])?;
        }
        for _ in 0..share(orders) {
            updated += order.execute(params![random.id(orders), random.pick(&STATUS)])?;
        }
        for _ in 0..share(calls) {
            updated += call.execute(params![random.id(calls), random.pick(&SENTENCES)])?;
        }
        day.rows_updated = updated as u64;

        let mut inserts = Inserts::new(&work)?;
        for _ in 0..share(contacts) {
            inserts.add_contact(accounts, random)?;
        }
        for _ in 0..share(activities) {
            inserts.add_activity(contacts, random)?;
        }
        for id in 1..=share(orders) {
            inserts.add_order(orders + id, accounts, random)?;
            for line in 1..=3 {
                inserts.add_line(orders + id, line, random)?;
            }
        }
        for _ in 0..share(calls) {
            inserts.add_call(contacts, random)?;
        }
        day.rows_added = share(contacts) + share(activities) + 4 * share(orders) + share(calls);
    }
    work.commit()?;
    Ok(day)
}

/// Fills the folder of attachments; yields how many regular files.
fn attach(folder: &Path, count: u64, random: &mut Random) -> Result<u64> {
    let make = |path: &Path| fs::create_dir_all(path).io_context(|| format!("create folder {}", path.display()));
    let write = |path: &Path, bytes: &[u8], day: u64| -> Result<()> {
        let failed = || format!("write {}", path.display());
        fs::write(path, bytes).io_context(failed)?;
        let changed = UNIX_EPOCH + Duration::from_secs(EPOCH_SECS.unsigned_abs() - day * DAY_SECS.unsigned_abs());
        let file = File::options().write(true).open(path).io_context(failed)?;
        file.set_times(FileTimes::new().set_modified(changed)).io_context(failed)
    };
    make(folder)?;
    let contract = folder.join("contracts");
    make(&contract)?;
    for number in 0..count {
        let quarter = folder.join(format!("2025-Q{}", number % 4 + 1)).join(random.pick(&["offers", "photos", "合同", "mail"]));
        make(&quarter)?;
        let size = 500 + random.below(30_000);
        // Photos do not compress, text does.
        let (name, bytes) = if random.below(3) == 0 {
            let bytes: Vec<u8> = (0..size / 8).flat_map(|_| random.next().to_le_bytes()).collect();
            (format!("IMG_{number:05}.jpg"), bytes)
        } else {
            let mut page = format!("Offer {number:05} for {}\n\n", company(random));
            while (page.len() as u64) < size {
                page += &text(random, 4);
                page.push('\n');
            }
            (format!("offer-{number:05}.txt"), page.into_bytes())
        };
        write(&quarter.join(name), &bytes, random.below(300))?;
    }
    let signed = contract.join("框架协议 2025.txt");
    write(&signed, text(random, 40).as_bytes(), 20)?;
    write(&contract.join("empty.txt"), b"", 20)?;
    write(&contract.join(std::ffi::OsStr::from_bytes(b"r\xe9sum\xe9 (latin1).txt")), text(random, 6).as_bytes(), 20)?;
    let copy = contract.join("signed copy.txt");
    fs::hard_link(&signed, &copy).io_context(|| format!("link {}", copy.display()))?;
    let latest = folder.join("latest-contract");
    std::os::unix::fs::symlink("contracts/框架协议 2025.txt", &latest).io_context(|| format!("link {}", latest.display()))?;
    Ok(count + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(database: &Path, sql: &str) -> i64 {
        Connection::open(database).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn the_same_seed_makes_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two, other] = [("a", 7), ("b", 7), ("c", 8)].map(|(name, seed)| generate(&folder.path().join(name), seed, 0.02).unwrap());
        let bytes = |summary: &CrmSummary| fs::read(&summary.database).unwrap();
        assert_eq!(bytes(&one), bytes(&two));
        assert_ne!(bytes(&one), bytes(&other));
        assert_eq!(one.files, two.files);
    }

    #[test]
    fn rows_are_whole_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let crm = generate(folder.path(), 1, 0.05).unwrap();
        let database = &crm.database;
        for (table, count) in [
            ("accounts", crm.accounts),
            ("contacts", crm.contacts),
            ("activities", crm.activities),
            ("orders", crm.orders),
            ("order_lines", crm.order_lines),
            ("call_records", crm.call_records),
        ] {
            assert_eq!(ask(database, &format!("SELECT count(*) FROM {table}")), count.cast_signed(), "{table}");
        }
        assert_eq!(ask(database, "SELECT count(*) FROM pragma_foreign_key_check"), 0);
        assert_eq!(ask(database, "SELECT count(*) FROM contacts WHERE language = 'zh'") > 0, crm.contacts > 0);
        let mode: String = Connection::open(database).unwrap().query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
        assert_eq!(mode, "wal");
        assert!(generate(folder.path(), 1, 0.05).is_err(), "never over an existing one");
    }

    #[test]
    fn a_day_changes_and_adds_about_one_percent() {
        let folder = tempfile::tempdir().unwrap();
        let crm = generate(folder.path(), 1, 0.1).unwrap();
        let before = ask(&crm.database, "SELECT count(*) FROM activities");
        let day = a_day_of_work(&crm.database, 5).unwrap();
        let rows = crm.accounts + crm.contacts + crm.activities + crm.orders + crm.order_lines + crm.call_records;
        for changed in [day.rows_updated, day.rows_added] {
            assert!(changed >= rows / 200 && changed <= rows / 50, "{changed} of {rows}");
        }
        assert_eq!(ask(&crm.database, "SELECT count(*) FROM activities"), before + before.unsigned_abs().div_ceil(100).cast_signed());
        assert_eq!(ask(&crm.database, "SELECT count(*) FROM pragma_foreign_key_check"), 0);
        a_day_of_work(&crm.database, 6).unwrap();
    }

    #[test]
    fn at_scale_one_it_is_some_forty_megabytes() {
        let folder = tempfile::tempdir().unwrap();
        let began = std::time::Instant::now();
        let crm = generate(folder.path(), 1, 1.0).unwrap();
        let took = began.elapsed();
        let bytes = fs::metadata(&crm.database).unwrap().len();
        println!("{bytes} bytes in {took:?}");
        assert!((30_000_000..55_000_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn attachments_hold_what_is_hard_to_keep() {
        let folder = tempfile::tempdir().unwrap();
        let crm = generate(folder.path(), 3, 0.02).unwrap();
        let contracts = crm.attachments.join("contracts");
        let names: Vec<_> = fs::read_dir(&contracts).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().any(|name| name.to_str().is_none()), "a name that is not UTF-8");
        assert!(fs::symlink_metadata(crm.attachments.join("latest-contract")).unwrap().is_symlink());
        assert!(fs::metadata(crm.attachments.join("latest-contract")).is_ok(), "the link leads somewhere");
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&fs::metadata(contracts.join("signed copy.txt")).unwrap()), 2);
    }
}
