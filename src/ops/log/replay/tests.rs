use std::time::{Duration, Instant};

use super::*;
use crate::id::SnapshotId;
use crate::repo::{OpenOptions, Passphrase, Repository};
use crate::source::postgres::wal::FactsReader;
use crate::store::faults::{Effect, Faults, Rule};
use crate::store::{Store, Verb};

const PAGE: u64 = 8192;

struct Bench {
    runtime: tokio::runtime::Runtime,
    store: Store,
    faults: Faults,
    cache: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (store, faults) = (Store::in_memory(), Faults::new());
        let bench = Self { runtime, store, faults, cache: tempfile::tempdir().unwrap() };
        let options = OpenOptions { cache: None, workers: 1 };
        Repository::init(bench.store.clone(), bench.runtime.handle().clone(), &passphrase(), &options, Utc::now()).unwrap();
        bench
    }

    fn open(&self, store: Store) -> Repository {
        let options = OpenOptions { cache: Some(self.cache.path().to_owned()), workers: 1 };
        Repository::open(store, self.runtime.handle().clone(), &passphrase(), &options).unwrap()
    }

    fn log(&self, store: Store) -> Log {
        self.open(store).log(&Name::new("crm").unwrap(), &Name::new("database").unwrap())
    }

    /// Through a line on which every request takes `delay`.
    fn far(&self, delay: Duration) -> Log {
        let log = self.log(Store::with_faults(self.store.clone(), self.faults.clone()));
        self.faults.clear();
        self.faults.add(Rule::any().always().then(Effect::Delay(delay)));
        self.faults.forget_calls();
        log
    }

    fn asked(&self) -> usize {
        let asked = self.faults.calls().iter().filter(|call| call.verb == Verb::GetRange).count();
        self.faults.forget_calls();
        asked
    }
}

fn passphrase() -> Passphrase {
    Passphrase::new("correct horse battery staple")
}

fn time(second: u64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000 + i64::try_from(second).unwrap(), 0).unwrap()
}

/// Pages `from .. to` of a stream, with a commit in each second that is the number of a page.
fn append(log: &Log, timeline: u32, from: u64, to: u64, streamed: bool) -> PieceInfo {
    let facts = PieceFacts {
        system_identifier: "7234567890123456789".into(),
        timeline,
        segment_bytes: 16 << 20,
        first_commit: Some(time(from)),
        last_commit: Some(time(to - 1)),
        restore_points: Vec::new(),
        server_clock: streamed.then(|| time(to - 1)),
        valid_to: Lsn(to * PAGE),
    };
    let bytes: Vec<u8> = (from..to).flat_map(|page| page.to_le_bytes().into_iter().cycle().take(8192)).collect();
    let facts = serde_json::to_value(facts).unwrap();
    log.append(u64::from(timeline), from * PAGE, to * PAGE, &facts, &bytes).unwrap().piece
}

fn base(page: u64) -> Base {
    Base {
        id: SnapshotId::generate(time(page)),
        system_identifier: "7234567890123456789".into(),
        timeline: 1,
        start_timeline: 1,
        point: Lsn(page * PAGE),
        restore_point: None,
        moment: None,
        time: time(page),
    }
}

fn looked_at(log: &Log, bases: &[Base]) -> View {
    let mut damaged = Vec::new();
    let (pieces, spare) = pieces_of(log, &log.listed().unwrap(), bases, true, &mut damaged).unwrap();
    let unread = damaged.into_iter().map(|(piece, _)| piece).collect();
    View::new(bases.to_vec(), pieces, spare, unread, Vec::new(), Vec::new(), &[]).unwrap().unwrap()
}

/// `LIFEBOAT_LONG_LOG=20000` measures more.
#[test]
fn a_long_log_far_away_is_looked_through_in_little_time_and_the_second_time_in_less() {
    let count: u64 = std::env::var("LIFEBOAT_LONG_LOG").ok().and_then(|count| count.parse().ok()).unwrap_or(2_000);
    let bench = Bench::new();
    let near = bench.log(bench.store.clone());
    for page in 0..count {
        append(&near, 1, page, page + 1, true);
    }
    let delay = Duration::from_millis(20);
    let bases: Vec<Base> = (0..count).step_by(usize::try_from(count / 20).unwrap()).map(base).collect();
    let far = bench.far(delay);
    let mut took = Vec::new();
    for (round, most) in [count, 0].into_iter().enumerate() {
        let began = Instant::now();
        let view = looked_at(&far, &bases);
        let ranges = view.ranges();
        let wanted = Wanted::Time(time(count / 2));
        let route = view.route(&wanted, None).unwrap();
        took.push(began.elapsed());
        assert_eq!((ranges.len(), ranges[0].continuous, ranges[0].to), (1, true, time(count - 1)));
        assert_eq!(route.at, time(count / 2));
        assert_eq!(bench.asked(), usize::try_from(most).unwrap(), "round {round}");
    }
    eprintln!("{count} pieces at {delay:?} a request: {took:?}");
    let one_by_one = delay * u32::try_from(count).unwrap();
    assert!(took[0] < one_by_one / 10, "{took:?}");
}

#[test]
fn small_pieces_inside_a_sound_whole_one_are_not_asked_for_and_serve_when_it_is_damaged() {
    let bench = Bench::new();
    let near = bench.log(bench.store.clone());
    for page in 0..8 {
        append(&near, 1, page, page + 1, true);
    }
    let whole = append(&near, 1, 0, 8, true);
    for page in 8..12 {
        append(&near, 1, page, page + 1, true);
    }
    let archived = append(&near, 1, 8, 12, false);
    let bases = [base(1)];
    let far = bench.far(Duration::ZERO);
    let view = looked_at(&far, &bases);
    assert_eq!(bench.asked(), 1 + 4 + 1, "a file that was archived does not know what streamed pieces do");
    assert_eq!(view.pieces().len(), 14, "all can be read from");
    let ranges = view.ranges();
    assert_eq!((ranges.len(), ranges[0].from, ranges[0].to, ranges[0].to_lsn), (1, time(7), time(11), Lsn(12 * PAGE)));

    // A last bit of the whole ones is wrong: the small ones tell what there is, and have it.
    for piece in [whole, archived] {
        let key = bench.runtime.block_on(bench.store.list("logs/")).unwrap();
        let name = format!("{:016x}-{:016x}-{:016x}", piece.stream, piece.start, piece.end);
        let key = key.into_iter().find(|object| object.key.ends_with(&name)).unwrap().key;
        let mut bytes = bench.runtime.block_on(bench.store.get(&key)).unwrap().to_vec();
        let at = bytes.len() - 150;
        bytes[at] ^= 1;
        bench.runtime.block_on(bench.store.delete(&key)).unwrap();
        std::thread::sleep(Duration::from_millis(2));
        bench.runtime.block_on(bench.store.create(&key, bytes.into())).unwrap();
    }
    let mut damaged = Vec::new();
    let (pieces, spare) = pieces_of(&far, &far.listed().unwrap(), &bases, true, &mut damaged).unwrap();
    assert_eq!((pieces.len(), spare.len(), damaged.len()), (12, 0, 2), "{damaged:?}");
    let unread = damaged.into_iter().map(|(piece, _)| piece).collect();
    let view = View::new(bases.to_vec(), pieces, spare, unread, Vec::new(), Vec::new(), &[]).unwrap().unwrap();
    let ranges = view.ranges();
    assert_eq!((ranges.len(), ranges[0].to, ranges[0].to_lsn), (1, time(11), Lsn(12 * PAGE)));
    assert_eq!(far.read_span(&view.pieces(), 1, PAGE..12 * PAGE).unwrap().len() as u64, 11 * PAGE);

    // Of a timeline that another one came from, the small ones tell which part of it counts.
    let other = Bench::new();
    let near = other.log(other.store.clone());
    for page in 0..8 {
        append(&near, 1, page, page + 1, true);
    }
    append(&near, 1, 0, 8, true);
    append(&near, 2, 6, 10, true);
    let far = other.far(Duration::ZERO);
    looked_at(&far, &bases);
    assert_eq!(other.asked(), 10);
}

/// Log as a server writes it, from the start of a segment of 1 MiB on.
struct Written {
    start: u64,
    bytes: Vec<u8>,
    /// Start of the last record.
    last: u64,
}

const SEGMENT: u64 = 1 << 20;
const IDENTIFIER: u64 = 7_234_567_890_123_456_789;

impl Written {
    fn at(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// At the start of a page: its header; so many bytes of a record continue there.
    fn header(&mut self, continued: usize) {
        let at = self.at();
        if !at.is_multiple_of(PAGE) {
            return;
        }
        let is_long = at.is_multiple_of(SEGMENT);
        self.bytes.extend(0xD110_u16.to_le_bytes());
        self.bytes.extend((u16::from(continued > 0) | u16::from(is_long) << 1).to_le_bytes());
        self.bytes.extend(1_u32.to_le_bytes());
        self.bytes.extend(at.to_le_bytes());
        self.bytes.extend(u32::try_from(continued).unwrap().to_le_bytes());
        self.bytes.extend([0; 4]);
        if is_long {
            self.bytes.extend(IDENTIFIER.to_le_bytes());
            self.bytes.extend(u32::try_from(SEGMENT).unwrap().to_le_bytes());
            self.bytes.extend(8192_u32.to_le_bytes());
        }
    }

    /// Where it begins and ends.
    fn record(&mut self, manager: u8, xid: u32, body: &[u8]) -> (u64, u64) {
        self.record_of(manager, 0, xid, body)
    }

    fn record_of(&mut self, manager: u8, info: u8, xid: u32, body: &[u8]) -> (u64, u64) {
        self.header(0);
        let start = self.at();
        let mut record = Vec::new();
        record.extend(u32::try_from(24 + body.len()).unwrap().to_le_bytes());
        record.extend(xid.to_le_bytes());
        record.extend(self.last.to_le_bytes());
        record.extend([info, manager, 0, 0]);
        let checked = [body, &record].concat();
        record.extend(u32::try_from(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &checked)).unwrap().to_le_bytes());
        record.extend(body);
        let mut rest = record.as_slice();
        while !rest.is_empty() {
            self.header(rest.len());
            let room = usize::try_from(PAGE - self.at() % PAGE).unwrap();
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.bytes.extend(now);
            rest = later;
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.last = start;
        (start, self.at())
    }

    fn commit(&mut self, xid: u32, second: u64) -> (u64, u64) {
        let since_2000 = time(second).timestamp_micros() - 946_684_800_000_000;
        self.record(1, xid, &[&[255, 8], &since_2000.to_le_bytes()[..]].concat())
    }

    /// The end of a segment before it is full, as `pg_switch_wal` makes it: zeros behind it.
    fn switch(&mut self) {
        self.record_of(0, 0x40, 0, &[]);
        let room = self.at().next_multiple_of(SEGMENT) - self.at();
        self.bytes.resize(self.bytes.len() + usize::try_from(room).unwrap(), 0);
    }

    /// One that says nothing, so long in all.
    fn fill(&mut self, length: u64) {
        self.record(10, 0, &vec![0; usize::try_from(length).unwrap() - 24]);
    }

    /// The next record begins there.
    fn fill_to(&mut self, to: u64) {
        while self.at() / PAGE < to / PAGE {
            self.header(0);
            self.fill(PAGE - self.at() % PAGE);
        }
        self.header(0);
        self.fill(to - self.at());
        assert_eq!(self.at(), to);
    }

    /// Stores some of it, read from its segment's start on as whoever archives or begins to stream does.
    fn store(&self, log: &Log, from: u64, to: u64, clock: Option<u64>) {
        let begin = from - from % SEGMENT;
        let bytes =
            |from: u64, to: u64| &self.bytes[usize::try_from(from - self.start).unwrap()..usize::try_from(to - self.start).unwrap()];
        let mut reader = FactsReader::new(Lsn(begin), SegmentSize::new(SEGMENT).unwrap(), IDENTIFIER).unwrap();
        reader.take(1, bytes(begin, from));
        let mut facts = reader.take(1, bytes(from, to));
        facts.server_clock = clock.map(time);
        log.append(1, from, to, &serde_json::to_value(facts).unwrap(), bytes(from, to)).unwrap();
    }
}

/// A snapshot's log, and the position where it ends.
fn written() -> (Written, Base) {
    let mut written = Written { start: SEGMENT, bytes: Vec::new(), last: 8 };
    written.fill(64);
    let point = Lsn(written.at());
    (written, Base { point, ..base(0) })
}

fn settled(log: &Log, base: &Base, wanted: &Wanted) -> (Replay, Replay) {
    let view = looked_at(log, std::slice::from_ref(base));
    let told = view.route(wanted, None).unwrap();
    let reading = Reading { log, view: &view, pieces: view.pieces(), cancel: &Cancel::default() };
    let settled = reading.settle(told.clone(), wanted).unwrap();
    assert_eq!((told.base, told.at), (settled.base, settled.at));
    (told.replay.unwrap(), settled.replay.unwrap())
}

#[test]
fn a_commit_across_two_segments_that_no_facts_tell_of_is_not_replayed_before_its_time() {
    let bench = Bench::new();
    let log = bench.log(bench.store.clone());
    let (mut written, base) = written();
    written.commit(1, 10);
    // Longer than what is read at first, over the ends of three segments.
    written.fill(3 * SEGMENT);
    written.fill_to(5 * SEGMENT - 16);
    let (start, end) = written.commit(2, 20);
    assert!(start < 5 * SEGMENT && end > 5 * SEGMENT);
    written.fill(64);
    for number in 1..5 {
        written.store(&log, number * SEGMENT, (number + 1) * SEGMENT, None);
    }
    written.store(&log, 5 * SEGMENT, end, None);
    written.store(&log, end, written.at(), Some(100));
    for second in [11, 15, 19] {
        let (told, settled) = settled(&log, &base, &Wanted::Time(time(second)));
        assert_eq!(told.target, Target::Latest, "by the facts");
        assert_eq!((settled.target, settled.end), (Target::Time(time(second)), Lsn(end)));
    }
    for second in [20, 21, 100] {
        let (told, settled) = settled(&log, &base, &Wanted::Time(time(second)));
        assert_eq!((told, &settled.target), (settled.clone(), &Target::Latest));
    }
}

#[test]
fn a_position_inside_the_last_record_of_a_piece_needs_the_next_one() {
    let bench = Bench::new();
    let log = bench.log(bench.store.clone());
    let (mut written, base) = written();
    written.commit(1, 10);
    let (start, end) = written.commit(2, 20);
    written.store(&log, SEGMENT, end, None);
    let inside = Wanted::Lsn(Lsn(start + 8));
    // All that there is was written before.
    let (told, last) = settled(&log, &base, &inside);
    assert_eq!((told.target, last.target), (Target::Lsn { lsn: Lsn(start + 8), inclusive: false }, Target::Latest));
    written.fill(3 * SEGMENT);
    let behind = written.at();
    written.commit(3, 30);
    written.store(&log, end, 2 * SEGMENT, None);
    for number in 2..4 {
        written.store(&log, number * SEGMENT, (number + 1) * SEGMENT, None);
    }
    written.store(&log, 4 * SEGMENT, behind - 1, None);
    assert_eq!(settled(&log, &base, &inside).1.target, Target::Latest, "the next record is not whole");
    written.store(&log, behind - 1, written.at(), None);
    let (told, next) = settled(&log, &base, &inside);
    assert_eq!((told.end, next.end, next.target), (Lsn(end), Lsn(written.at()), told.target));
    let (told, exact) = settled(&log, &base, &Wanted::Lsn(Lsn(start)));
    assert_eq!(told, exact, "it begins there");
}

#[test]
fn a_position_in_the_zeros_behind_a_segment_that_was_ended_is_before_the_next_one() {
    // The record that ends the segment may begin at the end of the one before.
    for across in [false, true] {
        let bench = Bench::new();
        let log = bench.log(bench.store.clone());
        let (mut written, base) = written();
        written.commit(1, 10);
        if across {
            written.fill_to(2 * SEGMENT - 16);
        } else {
            written.fill_to(2 * SEGMENT + 5 * PAGE + 80);
        }
        written.switch();
        assert_eq!(written.at(), 3 * SEGMENT);
        let (start, end) = written.commit(2, 20);
        written.fill(3 * PAGE);
        written.commit(3, 30);
        for number in 1..3 {
            written.store(&log, number * SEGMENT, (number + 1) * SEGMENT, None);
        }
        written.store(&log, 3 * SEGMENT, end, None);
        written.store(&log, end, written.at(), Some(100));
        for lsn in [2 * SEGMENT + 6 * PAGE, 2 * SEGMENT + 9 * PAGE + 100, 3 * SEGMENT - 8, 3 * SEGMENT, start] {
            let (_, settled) = settled(&log, &base, &Wanted::Lsn(Lsn(lsn)));
            assert_eq!((settled.target, settled.end), (Target::Lsn { lsn: Lsn(lsn), inclusive: false }, Lsn(end)), "{across} {lsn:x}");
        }
    }
}

#[test]
fn a_position_before_log_that_cannot_be_read_is_no_way_to_its_end() {
    let bench = Bench::new();
    let log = bench.log(bench.store.clone());
    let (mut written, base) = written();
    written.commit(1, 10);
    let (start, _) = written.commit(2, 20);
    written.fill(2 * SEGMENT);
    written.commit(3, 30);
    // Its bytes are what was stored; the server that wrote them was not well.
    let at = usize::try_from(start + 30 - SEGMENT).unwrap();
    let facts = |end: u64| PieceFacts {
        system_identifier: IDENTIFIER.to_string(),
        timeline: 1,
        segment_bytes: u32::try_from(SEGMENT).unwrap(),
        first_commit: Some(time(10)),
        last_commit: Some(time(30)),
        restore_points: Vec::new(),
        server_clock: None,
        valid_to: Lsn(end),
    };
    written.bytes[at] ^= 1;
    let end = written.at();
    log.append(1, SEGMENT, end, &serde_json::to_value(facts(end)).unwrap(), &written.bytes).unwrap();
    let view = looked_at(&log, std::slice::from_ref(&base));
    let reading = Reading { log: &log, view: &view, pieces: view.pieces(), cancel: &Cancel::default() };
    let wanted = Wanted::Lsn(Lsn(start));
    let error = reading.settle(view.route(&wanted, None).unwrap(), &wanted).unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged);
    assert!(error.to_string().contains("checksum"), "{error}");
}
