use super::*;
use proptest::prelude::*;

const SEGMENT: u64 = 1 << 20;

fn time(seconds: u64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000 + i64::try_from(seconds).unwrap(), 0).unwrap()
}

fn base(timeline: u32, point: u64) -> Base {
    Base {
        id: SnapshotId::generate(time(point)),
        system_identifier: "7".into(),
        timeline,
        start_timeline: timeline,
        point: Lsn(point),
        restore_point: Some(format!("lifeboat {timeline} {point}")),
        moment: None,
        time: time(point >> 13),
    }
}

/// A piece in pages; its only commit is its last byte, at the second that is the number of its last page.
fn piece(timeline: u32, from: u64, to: u64) -> (PieceInfo, PieceFacts) {
    let (start, end) = (from << 13, to << 13);
    let facts = PieceFacts {
        system_identifier: "7".into(),
        timeline,
        segment_bytes: u32::try_from(SEGMENT).unwrap(),
        first_commit: Some(time(to)),
        last_commit: Some(time(to)),
        restore_points: Vec::new(),
        server_clock: None,
        valid_to: Lsn(end),
    };
    (PieceInfo { stream: u64::from(timeline), start, end, size: 1 }, facts)
}

fn view(bases: &[Base], pieces: &[(PieceInfo, PieceFacts)], histories: &[TimelineHistory]) -> View {
    View::new(bases.to_vec(), pieces.to_vec(), Vec::new(), Vec::new(), Vec::new(), histories.to_vec(), &[]).unwrap().unwrap()
}

#[test]
fn a_hole_bounds_what_can_be_recovered_and_what_is_behind_it_needs_a_snapshot() {
    let bases = [base(1, 5 << 13), base(1, 60 << 13)];
    let view = view(&bases, &[piece(1, 0, 10), piece(1, 10, 20), piece(1, 30, 70), piece(1, 70, 80)], &[]);
    let told: Vec<_> = view.ranges().iter().map(|r| (r.from_lsn.0 >> 13, r.to, r.to_lsn.0 >> 13, r.continuous)).collect();
    assert_eq!(told, [(5, time(20), 20, true), (60, time(80), 80, true)]);
    let at = |seconds: u64| view.route(&Wanted::Time(time(seconds)), None);
    let route = at(15).unwrap();
    assert_eq!((route.base, route.replay.unwrap().target), (bases[0].id, Target::Time(time(15))));
    let route = at(20).unwrap().replay.unwrap();
    assert_eq!((route.target, route.reaches, route.end), (Target::Latest, Some(Lsn(20 << 13)), Lsn(20 << 13)), "no commit is later");
    assert_eq!(at(75).unwrap().base, bases[1].id);
    for missing in [1, 21, 40, 81] {
        let error = at(missing).unwrap_err();
        assert_eq!(error.kind(), Kind::NoRecoveryPoint, "{missing}");
        assert!(error.hint_text().unwrap().contains("timeline 1"), "{error:?}");
    }
    assert!(view.route(&Wanted::Lsn(Lsn(25 << 13)), None).is_err());
    assert_eq!(view.route(&Wanted::Latest, None).unwrap().at, time(80));
}

#[test]
fn the_newest_timeline_is_followed_and_what_the_old_one_wrote_afterwards_is_not() {
    let bases = [base(1, 5 << 13)];
    let history = TimelineHistory::parse(2, &format!("1\t{}\tx\n", Lsn(15 << 13))).unwrap();
    let pieces = [piece(1, 0, 10), piece(1, 10, 15), piece(1, 15, 40), piece(2, 15, 30)];
    let view = view(&bases, &pieces, &[history]);
    let route = view.route(&Wanted::Latest, None).unwrap();
    assert_eq!((route.at, route.replay.unwrap().timeline), (time(30), Timeline::Number(2)));
    assert_eq!(view.route(&Wanted::Time(time(35)), None).unwrap_err().kind(), Kind::NoRecoveryPoint);
    let old = view.route(&Wanted::Time(time(35)), Some(1)).unwrap();
    assert_eq!(old.replay.unwrap().timeline, Timeline::Current);
    let path = view.path(&bases[0], 2).unwrap();
    let part = |stream, from: u64, to: u64| Part { stream, from: Lsn(from << 13), to: Lsn(to << 13) };
    assert_eq!(path.parts, [part(1, 0, 15), part(2, 15, 30)]);
    assert_eq!(path.parts_to(Lsn(20 << 13)).unwrap(), [part(1, 0, 15), part(2, 15, 20)]);
    assert_eq!(path.parts_to(Lsn(31 << 13)), None);
    // A snapshot of the old timeline after it was left has no way to the new one.
    assert!(view.path(&base(1, 16 << 13), 2).is_none());
}

#[test]
fn each_path_has_the_segments_of_its_own_log() {
    // `pg_resetwal --wal-segsize` leaves a hole before the first segment of the new size.
    let bases = [base(1, 5 << 13), base(1, 2100 << 13)];
    let large = |from, to| {
        let (info, facts) = piece(1, from, to);
        (info, PieceFacts { segment_bytes: 16 << 20, ..facts })
    };
    let view = view(&bases, &[piece(1, 0, 128), piece(1, 128, 200), large(2048, 2090), large(2090, 2200)], &[]);
    let size = |base: &Base| view.path(base, 1).unwrap().segment.bytes();
    assert_eq!([size(&bases[0]), size(&bases[1])], [1 << 20, 16 << 20]);
    let newest = view.path(&bases[1], 1).unwrap();
    assert_eq!(newest.parts, [Part { stream: 1, from: Lsn(2048 << 13), to: Lsn(2200 << 13) }]);
}

#[test]
fn a_name_that_two_restore_points_have_is_refused() {
    let mut pieces = [piece(1, 0, 10), piece(1, 10, 20)];
    for (at, piece) in [7_u64, 12].into_iter().zip(&mut pieces) {
        piece.1.restore_points.push(RestorePoint { name: "x".into(), lsn: Lsn(at << 13), time: time(at) });
    }
    let wanted = Wanted::RestorePoint("x".into());
    let both = view(&[base(1, 5 << 13)], &pieces, &[]);
    assert_eq!(both.route(&wanted, None).unwrap_err().kind(), Kind::Usage);
    // A snapshot between them changes nothing about which is meant.
    let between = view(&[base(1, 5 << 13), base(1, 8 << 13)], &pieces, &[]);
    let error = between.route(&wanted, None).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.hint_text().unwrap().contains("--lsn: 0/E000 at ") && error.hint_text().unwrap().contains(", 0/18000 at "), "{error:?}");
    let first = Wanted::Lsn(Lsn(7 << 13));
    assert_eq!(between.route(&first, None).unwrap().base, between.bases[0].id);
    // What lies before all snapshots cannot be recovered, so it is not meant.
    let newer = view(&[base(1, 8 << 13)], &pieces, &[]);
    assert_eq!(newer.route(&wanted, None).unwrap().at, time(12));
    // One and the same in a small piece and a whole one.
    let mut whole = piece(1, 0, 20);
    whole.1.restore_points.clone_from(&pieces[1].1.restore_points);
    pieces[0].1.restore_points.clear();
    let twice = view(&[base(1, 5 << 13)], &[pieces.as_slice(), &[whole]].concat(), &[]);
    assert_eq!(twice.route(&wanted, None).unwrap().at, time(12));
    // Somebody gave one the name of a snapshot's.
    pieces[0].1.restore_points = vec![RestorePoint { name: "lifeboat 1 65536".into(), lsn: Lsn(7 << 13), time: time(7) }];
    let taken = view(&[base(1, 5 << 13), base(1, 8 << 13)], &pieces, &[]);
    assert_eq!(taken.route(&Wanted::RestorePoint("lifeboat 1 65536".into()), None).unwrap_err().kind(), Kind::Usage);
}

#[test]
fn the_end_of_the_log_is_in_the_snapshot_whose_own_point_lies_behind_it() {
    let newest = Base { time: time(15), ..base(1, 60 << 13) };
    let bases = [base(1, 5 << 13), newest.clone()];
    let pieces = [piece(1, 0, 10), piece(1, 10, 20)];
    let behind = view(&bases, &pieces, &[]);
    let route = behind.route(&Wanted::Latest, None).unwrap();
    assert_eq!((route.base, &route.replay), (newest.id, &None), "the log ended during its backup");
    assert_eq!(route.at, time(20), "it has what the log tells of before its point");
    assert!(behind.includes(&route, &bases[0]) && behind.includes(&route, &newest));
    // Without the older snapshot as well.
    assert_eq!(view(&bases[1..], &pieces, &[]).route(&Wanted::Latest, None).unwrap().at, time(20));
    // When its backup began is in the log; what it is of is later.
    let route = behind.route(&Wanted::Time(time(15)), None).unwrap();
    assert_eq!((route.base, route.replay.unwrap().target), (bases[0].id, Target::Time(time(15))));
    // The log goes on: it leads further from either, and the newer is quicker.
    let longer = view(&bases, &[piece(1, 0, 10), piece(1, 10, 20), piece(1, 20, 70)], &[]);
    let route = longer.route(&Wanted::Latest, None).unwrap();
    assert_eq!((route.base, route.at), (newest.id, time(70)));
    // What the old primary told behind the failover is not of this way, and a snapshot of it not on it.
    let history = TimelineHistory::parse(2, &format!("1\t{}\tx\n", Lsn(15 << 13))).unwrap();
    let left = Base { time: time(19), ..base(1, 19 << 13) };
    let bases = [Base { time: time(10), ..base(2, 17 << 13) }, left.clone()];
    let view = view(&bases, &[piece(1, 0, 12), piece(1, 12, 20), piece(2, 15, 16)], &[history]);
    let route = view.route(&Wanted::Latest, None).unwrap();
    assert_eq!((route.base, route.at), (bases[0].id, time(16)));
    assert!(!view.includes(&route, &left));
}

#[test]
fn log_of_another_cluster_does_not_count() {
    let mut foreign = piece(1, 10, 20);
    foreign.1.system_identifier = "8".into();
    let view = view(&[base(1, 5 << 13)], &[piece(1, 0, 10), foreign], &[]);
    assert_eq!(view.ranges()[0].to_lsn, Lsn(10 << 13));
}

proptest! {
    /// On one timeline: a page after the snapshot can be recovered exactly when every page from the snapshot's to it is there.
    #[test]
    fn a_path_ends_at_the_first_missing_page(point in 0u64..40, pieces in proptest::collection::vec((0u64..40, 1u64..9), 1..16)) {
        let there = |page: u64| pieces.iter().any(|(from, len)| (*from..from + len).contains(&page));
        let all: Vec<_> = pieces.iter().map(|(from, len)| piece(1, *from, from + len)).collect();
        // In the middle of a page: that page is needed too.
        let base = base(1, (point << 13) + 4000);
        let path = view(std::slice::from_ref(&base), &all, &[]).path(&base, 1).unwrap();
        let end = (point..100).find(|page| !there(*page)).unwrap();
        prop_assert_eq!(path.end, if end > point { Lsn(end << 13) } else { base.point });
        let mut at = None;
        for part in &path.parts {
            prop_assert!(part.from < part.to && at.is_none_or(|at| at == part.from));
            at = Some(part.to);
        }
    }
}

#[test]
fn a_random_moment_lies_in_a_range_and_every_range_has_its_share() {
    let bases = [base(1, 5 << 13), base(1, 60 << 13)];
    let pieces = [piece(1, 0, 10), piece(1, 10, 20), piece(1, 30, 70), piece(1, 70, 80)];
    let holed = view(&bases, &pieces, &[]);
    let drawn: Vec<_> = (0..400).map(|seed| holed.random_moment(seed, None).unwrap()).collect();
    // 15 and 20 seconds, or less where a snapshot is later than it says.
    let ranges = holed.ranges();
    for range in &ranges {
        let share = drawn.iter().filter(|moment| range.from <= **moment && **moment <= range.to).count();
        let length = |range: &Range| usize::try_from((range.to - range.from).num_seconds()).unwrap();
        let expected = 400 * length(range) / ranges.iter().map(length).sum::<usize>();
        assert!(share.abs_diff(expected) < 40, "{share} {expected}");
    }
    for moment in &drawn {
        holed.route(&Wanted::Time(*moment), None).unwrap();
    }
    assert_eq!(holed.random_moment(7, None), holed.random_moment(7, None));
    let late = (0..50).map(|seed| holed.random_moment(seed, Some(time(75))).unwrap());
    assert!(late.into_iter().all(|moment| moment >= time(75) && moment <= time(80)));
    assert_eq!(holed.random_moment(7, Some(time(81))), None);
    assert_eq!(view(&bases[..1], &pieces[2..], &[]).random_moment(7, None), None, "a snapshot alone");
}

#[test]
fn a_clock_that_was_set_back_before_the_stop_is_seen() {
    let bases = [base(1, 5 << 13)];
    let mut pieces = [piece(1, 0, 10), piece(1, 10, 20), piece(1, 20, 30)];
    let seen = |pieces: &[(PieceInfo, PieceFacts)], at: DateTime<Utc>| {
        let view = view(&bases, pieces, &[]);
        view.set_back(&view.route(&Wanted::Time(at), None).unwrap(), at)
    };
    assert_eq!(seen(&pieces, time(15)), None);
    // A whole segment beside the small pieces that it was stored in before.
    let mut whole = piece(1, 0, 30);
    whole.1.first_commit = Some(time(1));
    let mut both = pieces.to_vec();
    both.push(whole);
    assert_eq!(seen(&both, time(15)), None);
    // An hour ahead for a while: what came after it has earlier times again.
    pieces[1].1.first_commit = Some(time(3600));
    pieces[1].1.last_commit = Some(time(3600));
    pieces[2].1.first_commit = Some(time(21));
    assert_eq!(seen(&pieces, time(25)), Some(time(21)));
    // As transactions that end together.
    pieces[1].1.last_commit = Some(time(25) + chrono::TimeDelta::milliseconds(200));
    pieces[1].1.first_commit = Some(time(20));
    pieces[2].1.first_commit = Some(time(25) - chrono::TimeDelta::milliseconds(200));
    assert_eq!(seen(&pieces, time(25)), None);
}

#[test]
fn what_cannot_be_had_is_answered_with_what_can() {
    let view = view(&[base(1, 5 << 13)], &[piece(1, 0, 10), piece(1, 10, 20)], &[]);
    let at = Wanted::Time(time(15));
    for (wanted, timeline) in [(Wanted::Time(time(21)), None), (at.clone(), Some(2)), (at, Some(7)), (Wanted::Latest, Some(2))] {
        let error = view.route(&wanted, timeline).unwrap_err();
        assert_eq!(error.kind(), Kind::NoRecoveryPoint);
        assert!(error.hint_text().unwrap().contains("what can be recovered: 2026-"), "{error:?}");
    }
}

#[test]
fn a_snapshot_whose_own_log_goes_through_two_timelines_names_the_second() {
    let mut base = base(2, 5 << 13);
    let replayed = |base: &Base, wanted: &Wanted| {
        view(std::slice::from_ref(base), &[piece(2, 0, 10), piece(2, 10, 20)], &[]).route(wanted, None).unwrap().replay.unwrap().timeline
    };
    let all = [Wanted::Latest, Wanted::Immediate, Wanted::Time(time(15))];
    assert!(all.iter().all(|wanted| replayed(&base, wanted) == Timeline::Current));
    base.start_timeline = 1;
    assert!(all.iter().all(|wanted| replayed(&base, wanted) == Timeline::Number(2)));
}

#[test]
fn a_commit_that_nobody_tells_of_can_only_lie_where_somebody_began_to_read() {
    let segment = SEGMENT >> 13;
    let base = base(1, 5 << 13);
    let unseen = |pieces: &[(PieceInfo, PieceFacts)], at: u64| {
        let view = view(std::slice::from_ref(&base), pieces, &[]);
        let found = view.unseen(&base, &view.path(&base, 1).unwrap(), time(at));
        found.into_iter().map(|lsn| lsn.0 / SEGMENT).collect::<Vec<_>>()
    };
    let mut pieces: Vec<_> = (0..5).map(|number| piece(1, number * segment, (number + 1) * segment)).collect();
    for (_, facts) in &mut pieces {
        // A record lies across the end of each.
        facts.valid_to = Lsn(facts.valid_to.0 - 8);
    }
    let last = 5 * segment;
    assert!(unseen(&pieces, last + 100).is_empty(), "behind the start of the last one, which has a commit");
    assert_eq!(unseen(&pieces, last), [4], "its commit may be out of order");
    for (_, facts) in &mut pieces[2..] {
        (facts.first_commit, facts.last_commit, facts.server_clock) = (None, None, Some(time(last)));
    }
    assert_eq!(unseen(&pieces, last), [2, 3, 4]);
    pieces[2].1.valid_to = Lsn(3 * SEGMENT);
    assert_eq!(unseen(&pieces, last), [2, 4], "a record is known to end where the segment does");
    // No record ends in it.
    pieces[3].1.valid_to = Lsn(3 * SEGMENT);
    pieces[2].1.valid_to = Lsn(3 * SEGMENT - 8);
    assert_eq!(unseen(&pieces, last), [2, 3, 4]);
    for (_, facts) in &mut pieces {
        (facts.first_commit, facts.last_commit) = (None, None);
    }
    assert_eq!(unseen(&pieces, last), [1, 2, 3, 4], "none before the snapshot");
}
