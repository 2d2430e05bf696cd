//! A small-scope model of collection, retention and rewriting, explored exhaustively: every order of every step of a few actors, any of
//! which may stop for ever or for any time between two steps, with commits that are applied and not heard of, and sessions that are taken
//! for dead however alive they are. Step by step the same as the code (see the letters in `collect`, and `session`).
//!
//! Safety: every snapshot that is there and not removed leads, through the records of moved packs, to a pack in the store that has its chunk.
//! Each rule that is left out must be missed: then the search finds how a snapshot is lost.

use std::collections::HashSet;

/// Chunks, as bits: `a` is needed by the first snapshot, `b` by none at first, `c` by the first snapshot of some scopes: then what a pack with
/// `a` and `c` was rewritten to may be partly dead.
const A: u8 = 1;
const B: u8 = 2;
const C: u8 = 4;
const PACKS: usize = 6;
const KEYS: usize = 4;

/// What a manifest's or record's name holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Held {
    Nothing,
    Void,
    /// A manifest: chunks at a pack.
    Snapshot(u8, u8),
    /// A record: what was kept of a pack, and where it is now.
    Moved {
        source: u8,
        kept: u8,
        target: u8,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Writer {
    New,
    Tombstones(u8),
    Index(u8, u8),
    List(u8),
    /// Chunk, pack.
    Commit(u8, u8),
    End,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    New,
    Moved,
    Mark,
    MarkRest,
    Publish,
    Sessions,
    Wait(u8),
    SecondManifests,
    SecondMoved,
    RewriteSession,
    RewritePack,
    RewriteList,
    RewriteCommit,
    RewriteEnd,
    Unlist,
    Delete,
    Tidy,
    Done,
}

/// A collector and what it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Collector {
    at: At,
    /// Packs listed.
    seen: u8,
    /// Records known when the first mark began.
    known: u8,
    /// Those by which it marks: they are read again when a pack is missing.
    table: u8,
    /// Manifests looked at.
    marked: u8,
    live: [u8; 6],
    /// Records that places led through.
    used: u8,
    dead: u8,
    rewrite: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    /// Chunks of each pack; 0: it is not there.
    packs: [u8; 6],
    listed: u8,
    tombstones: u8,
    /// Manifests: the first snapshot's, then the writers'.
    manifests: [Held; 4],
    removed: u8,
    /// Records by collector.
    records: [Held; 2],
    /// Of writers from bit 0 on, of rewriting collectors from bit 4 on.
    sessions: u8,
    writers: [Writer; 3],
    collectors: [Collector; 2],
    removals: u8,
}

/// Rules that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Fence,
    Tombstones,
    Monotone,
    Sessions,
    SecondMark,
    Ledger,
    RewriterSession,
    NewRecords,
    NewTargets,
    SettledBeforeRewrite,
}

struct Scope {
    writers: usize,
    collectors: usize,
    removals: u8,
    /// Chunks of the first snapshot.
    first: u8,
    without: Option<Rule>,
}

enum Outcome {
    Held { states: usize },
    Violated { trace: Vec<String> },
    NotFinished { states: usize },
}

impl State {
    /// Where a chunk is now, as far as these records are known; those on the way are added to `used`.
    fn resolve(&self, known: u8, chunk: u8, mut pack: u8, used: &mut u8) -> u8 {
        'hop: loop {
            for (number, record) in self.records.iter().enumerate() {
                if let Held::Moved { source, kept, target } = record
                    && known >> number & 1 == 1
                    && *source == pack
                    && kept & chunk != 0
                {
                    *used |= 1 << number;
                    pack = *target;
                    continue 'hop;
                }
            }
            return pack;
        }
    }

    fn committed_records(&self) -> u8 {
        self.records.iter().enumerate().filter(|(_, r)| matches!(r, Held::Moved { .. })).fold(0, |mask, (n, _)| mask | 1 << n)
    }

    /// Snapshots that are there: number, chunks and pack as named.
    fn snapshots(&self) -> impl Iterator<Item = (usize, u8, u8)> {
        self.manifests.iter().enumerate().filter_map(|(key, held)| match held {
            Held::Snapshot(chunks, pack) if self.removed >> key & 1 == 0 => Some((key, *chunks, *pack)),
            _ => None,
        })
    }

    fn is_safe(&self) -> bool {
        let records = self.committed_records();
        self.snapshots()
            .flat_map(|(_, chunks, pack)| each(chunks).map(move |chunk| (chunk, pack)))
            .all(|(chunk, pack)| self.packs[self.resolve(records, chunk, pack, &mut 0) as usize] & chunk != 0)
    }

    fn present(&self) -> u8 {
        self.packs.iter().enumerate().filter(|(_, chunks)| **chunks != 0).fold(0, |mask, (n, _)| mask | 1 << n)
    }

    /// Whether what a session commits is decided: something has its name, or what the ledger has removed had it.
    fn is_decided(&self, session: u8) -> bool {
        if session < 4 {
            self.manifests[session as usize + 1] != Held::Nothing || self.removed >> (session + 1) & 1 == 1
        } else {
            self.records[session as usize - 4] != Held::Nothing
        }
    }

    /// Marks the first chunks of snapshots that were not looked at before, and all others of those that were.
    fn mark(&self, collector: &mut Collector, first: bool) {
        for (key, chunks, pack) in self.snapshots() {
            let lowest = chunks & chunks.wrapping_neg();
            let marks = if first { lowest } else { chunks & !lowest };
            if (collector.marked >> key & 1 == 0) == first {
                for chunk in each(marks) {
                    let pack = self.resolve(collector.table, chunk, pack, &mut collector.used);
                    collector.live[pack as usize] |= chunk;
                }
                collector.marked |= 1 << key;
            }
        }
    }
}

fn each(chunks: u8) -> impl Iterator<Item = u8> {
    [A, B, C].into_iter().filter(move |chunk| chunks & chunk != 0)
}

fn explore(scope: &Scope, limit: usize) -> Outcome {
    let idle = Collector { at: At::New, seen: 0, known: 0, table: 0, marked: 0, live: [0; 6], used: 0, dead: 0, rewrite: None };
    let mut start = State {
        packs: [scope.first | B, 0, 0, 0, 0, 0],
        listed: 1,
        tombstones: 0,
        manifests: [Held::Snapshot(scope.first, 0), Held::Nothing, Held::Nothing, Held::Nothing],
        removed: 0,
        records: [Held::Nothing; 2],
        sessions: 0,
        writers: [Writer::Done; 3],
        collectors: [Collector { at: At::Done, ..idle }; 2],
        removals: scope.removals,
    };
    start.writers[..scope.writers].fill(Writer::New);
    start.collectors[..scope.collectors].fill(idle);
    // In the order found; each with the number of the one before it.
    let mut states = vec![(start, 0)];
    let mut seen = HashSet::from([start]);
    let mut at = 0;
    while at < states.len() {
        let state = states[at].0;
        if !state.is_safe() {
            return Outcome::Violated { trace: trace(&states, at, scope) };
        }
        if states.len() > limit {
            return Outcome::NotFinished { states: states.len() };
        }
        each_step(&state, scope, &mut |_, after| {
            if seen.insert(after) {
                states.push((after, at));
            }
        });
        at += 1;
    }
    Outcome::Held { states: states.len() }
}

fn each_step(state: &State, scope: &Scope, next: &mut impl FnMut(Label<'_>, State)) {
    (0..scope.writers).for_each(|writer| writer_steps(state, writer, scope, next));
    (0..scope.collectors).for_each(|collector| collector_steps(state, collector, scope, next));
    retention_steps(state, scope, next);
}

/// How a state was come to.
fn trace(states: &[(State, usize)], mut at: usize, scope: &Scope) -> Vec<String> {
    let mut trace = vec![format!("{:?}", states[at].0)];
    while at > 0 {
        let (state, before) = states[at];
        let mut label = None;
        each_step(&states[before].0, scope, &mut |told, after| {
            if after == state && label.is_none() {
                label = Some(told());
            }
        });
        trace.extend(label);
        at = before;
    }
    trace.reverse();
    trace
}

/// What a step does, told only when it is asked for.
type Label<'a> = &'a dyn Fn() -> String;

/// `session`: (1) to (6).
fn writer_steps(state: &State, number: usize, scope: &Scope, next: &mut impl FnMut(Label<'_>, State)) {
    let (own, key) = (1 + number as u8, 1 + number);
    let mut go = |what: &str, change: &dyn Fn(&mut State)| {
        let mut after = *state;
        change(&mut after);
        next(&|| format!("w{number} {what}"), after);
    };
    match state.writers[number] {
        Writer::New => {
            for want in [A, B] {
                go(&format!("wants {want}, publishes its session"), &|s| {
                    s.sessions |= 1 << number;
                    s.writers[number] = Writer::Tombstones(want);
                });
            }
        }
        Writer::Tombstones(want) => {
            let known = if scope.without == Some(Rule::Tombstones) { 0 } else { state.tombstones };
            go("reads tombstones", &|s| s.writers[number] = Writer::Index(want, known));
        }
        Writer::Index(want, known) => {
            let usable = state.listed & !known;
            let having = (0..PACKS as u8).filter(|pack| usable >> pack & 1 == 1 && state.packs[*pack as usize] & want != 0);
            let mut any = false;
            for pack in having {
                any = true;
                go(&format!("reuses {want} in p{pack}"), &|s| s.writers[number] = Writer::Commit(want, pack));
            }
            if !any {
                go("uploads", &|s| {
                    s.packs[own as usize] = want;
                    s.writers[number] = Writer::List(want);
                });
            }
        }
        Writer::List(want) => go("lists", &|s| {
            s.listed |= 1 << own;
            s.writers[number] = Writer::Commit(want, own);
        }),
        Writer::Commit(chunk, pack) => match state.manifests[key] {
            Held::Nothing => {
                go("commits", &|s| {
                    s.manifests[key] = Held::Snapshot(chunk, pack);
                    s.writers[number] = Writer::End;
                });
                go("commits unheard", &|s| s.manifests[key] = Held::Snapshot(chunk, pack));
            }
            Held::Void => go("is fenced", &|s| {
                s.sessions &= !(1 << number);
                s.writers[number] = Writer::Done;
            }),
            _ => go("finds its own commit", &|s| s.writers[number] = Writer::End),
        },
        Writer::End => go("ends", &|s| {
            s.sessions &= !(1 << number);
            s.writers[number] = Writer::Done;
        }),
        Writer::Done => {}
    }
}

/// The ledger, what `tidy` clears away at any time, and whoever settles a writer's run at any time (`Repository::decide`).
fn retention_steps(state: &State, scope: &Scope, next: &mut impl FnMut(Label<'_>, State)) {
    for key in 0..KEYS {
        let is_removed = state.removed >> key & 1 == 1;
        let is_snapshot = matches!(state.manifests[key], Held::Snapshot(..));
        if state.removals > 0 && is_snapshot && !is_removed {
            let mut after = *state;
            after.removals -= 1;
            if scope.without == Some(Rule::Ledger) {
                after.manifests[key] = Held::Nothing;
            } else {
                after.removed |= 1 << key;
            }
            next(&|| format!("retention removes m{key}"), after);
        }
        if is_removed && state.manifests[key] != Held::Nothing {
            let mut after = *state;
            after.manifests[key] = Held::Nothing;
            next(&|| format!("the manifest of m{key}, or the void marker there, is deleted"), after);
        }
        if (1..=scope.writers).contains(&key) && state.manifests[key] == Held::Nothing {
            let mut after = *state;
            after.manifests[key] = Held::Void;
            next(&|| format!("whoever took the run of w{} over makes a void marker", key - 1), after);
        }
    }
    for session in (0..8).filter(|session| state.sessions >> session & 1 == 1) {
        if state.is_decided(session) {
            let mut after = *state;
            after.sessions &= !(1 << session);
            next(&|| format!("the decided session {session} is cleared away"), after);
        }
    }
}

/// The letters of `collect`.
fn collector_steps(state: &State, number: usize, scope: &Scope, next: &mut impl FnMut(Label<'_>, State)) {
    let me = state.collectors[number];
    let target = 4 + number as u8;
    let session = 4 + number as u8;
    let mut go = |what: &str, at: At, change: &dyn Fn(&mut State, &mut Collector)| {
        let mut after = *state;
        let mut collector = Collector { at, ..me };
        change(&mut after, &mut collector);
        after.collectors[number] = collector;
        next(&|| format!("c{number} {what}"), after);
    };
    match me.at {
        At::New => go("lists packs", At::Moved, &|s, c| c.seen = s.present()),
        At::Moved => go("reads records", At::Mark, &|s, c| {
            c.known = s.committed_records();
            c.table = c.known;
        }),
        At::Mark if scope.first == A => go("marks", At::Publish, &|s, c| s.mark(c, true)),
        At::Mark => go("marks some", At::MarkRest, &|s, c| s.mark(c, true)),
        At::MarkRest => {
            go("marks the rest", At::Publish, &|s, c| s.mark(c, false));
            if state.committed_records() != me.table {
                go("misses a pack, reads records and marks the rest", At::Publish, &|s, c| {
                    c.table = s.committed_records();
                    s.mark(c, false);
                });
            }
        }
        At::Publish => go("publishes tombstones", At::Sessions, &|s, c| {
            let of = |filter: &dyn Fn(usize) -> bool| (0..PACKS).filter(|p| c.seen >> p & 1 == 1 && filter(*p)).fold(0, |m, p| m | 1 << p);
            c.dead = of(&|pack| c.live[pack] == 0);
            let partly: u8 = of(&|pack| c.live[pack] != 0 && c.live[pack] != s.packs[pack] && s.packs[pack] != 0);
            c.rewrite = (0..PACKS as u8).find(|pack| partly >> pack & 1 == 1);
            s.tombstones |= c.dead | c.rewrite.map_or(0, |pack| 1 << pack);
            if c.dead == 0 && c.rewrite.is_none() {
                c.at = At::Done;
            }
        }),
        At::Sessions => {
            let open = if scope.without == Some(Rule::Sessions) { 0 } else { state.sessions };
            go("lists sessions", At::Wait(open), &|_, _| {});
        }
        At::Wait(open) => {
            for other in (0..8u8).filter(|other| open >> other & 1 == 1) {
                let rest = At::Wait(open & !(1 << other));
                if state.sessions >> other & 1 == 0 {
                    go(&format!("saw session {other} end"), rest, &|_, _| {});
                } else if state.is_decided(other) {
                    go(&format!("sees session {other} decided"), rest, &|_, _| {});
                } else if scope.without == Some(Rule::Fence) {
                    go(&format!("presumes session {other} dead"), rest, &|_, _| {});
                } else {
                    go(&format!("fences session {other}"), rest, &|s, _| {
                        if other < 4 {
                            s.manifests[other as usize + 1] = Held::Void;
                        } else {
                            s.records[other as usize - 4] = Held::Void;
                        }
                    });
                }
            }
            if open == 0 {
                go("has outlived them", At::SecondManifests, &|_, _| {});
            } else if scope.without == Some(Rule::SettledBeforeRewrite) && me.rewrite.is_some() {
                // Rewrites while a writer may still lean on what it takes for dead.
                go("rewrites too early", At::RewriteSession, &|_, c| c.dead = 0);
            }
        }
        At::SecondManifests => go("marks again", At::SecondMoved, &|s, c| {
            if scope.without != Some(Rule::SecondMark) {
                s.mark(c, true);
            }
            let living = (0..PACKS).filter(|pack| c.live[*pack] != 0).fold(0u8, |mask, pack| mask | 1 << pack);
            if scope.without == Some(Rule::Monotone) {
                s.tombstones &= !(c.dead & living);
            }
            c.dead &= !living;
        }),
        At::SecondMoved => go("reads new records", At::RewriteSession, &|s, c| {
            for (number, record) in s.records.iter().enumerate() {
                if let Held::Moved { source, target, .. } = record {
                    let is_new = c.known >> number & 1 == 0;
                    if is_new && scope.without != Some(Rule::NewRecords) {
                        c.dead &= !(1 << target);
                    }
                    let is_whole = !is_new || scope.without == Some(Rule::NewTargets);
                    c.rewrite = c.rewrite.filter(|pack| pack != source && (is_whole || pack != target));
                }
            }
            if c.rewrite.is_none() {
                c.at = At::Unlist;
            }
        }),
        At::RewriteSession => go("publishes its session", At::RewritePack, &|s, _| {
            if scope.without != Some(Rule::RewriterSession) {
                s.sessions |= 1 << session;
            }
        }),
        At::RewritePack => match me.rewrite {
            Some(source) if state.packs[source as usize] != 0 => {
                go("writes what lives", At::RewriteList, &|s, c| s.packs[target as usize] = c.live[source as usize]);
            }
            _ => go("finds the pack gone", At::RewriteEnd, &|_, c| c.rewrite = None),
        },
        At::RewriteList => go("lists it", At::RewriteCommit, &|s, _| s.listed |= 1 << target),
        At::RewriteCommit => match (state.records[number], me.rewrite) {
            (Held::Nothing, Some(source)) => {
                let record = Held::Moved { source, kept: me.live[source as usize], target };
                go("commits the record", At::RewriteEnd, &|s, _| s.records[number] = record);
                go("commits the record unheard", At::RewriteCommit, &|s, _| s.records[number] = record);
            }
            (Held::Void, _) => go("is fenced", At::RewriteEnd, &|_, c| c.rewrite = None),
            _ => go("finds its own record", At::RewriteEnd, &|_, _| {}),
        },
        At::RewriteEnd => go("ends its session", At::Unlist, &|s, _| s.sessions &= !(1 << session)),
        At::Unlist => go("unlists", At::Delete, &|s, c| {
            c.dead |= c.rewrite.map_or(0, |pack| 1 << pack);
            s.listed &= !c.dead;
        }),
        At::Delete if me.dead == 0 => go("is through", At::Tidy, &|_, _| {}),
        At::Delete => {
            for pack in (0..PACKS).filter(|pack| me.dead >> pack & 1 == 1) {
                go(&format!("deletes p{pack}"), At::Delete, &|s, c| {
                    s.packs[pack] = 0;
                    c.dead &= !(1 << pack);
                });
            }
        }
        At::Tidy => go("clears records away", At::Done, &|s, c| {
            for (number, record) in s.records.iter_mut().enumerate() {
                if matches!(record, Held::Moved { .. }) && c.known & !c.used & 1 << number != 0 {
                    *record = Held::Nothing;
                }
            }
        }),
        At::Done => {}
    }
}

fn holds(writers: usize, collectors: usize, removals: u8, first: u8, limit: usize) {
    match explore(&Scope { writers, collectors, removals, first, without: None }, limit) {
        Outcome::Held { states } => {
            println!("{writers} writers, {collectors} collectors, {removals} removals, first {first}: {states} states hold");
        }
        Outcome::Violated { trace } => panic!("{}", trace.join("\n")),
        Outcome::NotFinished { states } => panic!("not finished after {states} states"),
    }
}

#[test]
fn nothing_is_lost_in_any_order() {
    holds(1, 1, 2, A, 1 << 22);
    holds(0, 2, 1, A, 1 << 22);
    holds(2, 1, 0, A, 1 << 22);
    holds(0, 2, 1, A | C, 1 << 22);
    holds(1, 2, 0, A | C, 1 << 22);
}

/// `cargo test --release --lib collect::tests::model -- --ignored --nocapture`
#[test]
#[ignore = "takes minutes and gigabytes; for docs/measurements.md"]
fn nothing_is_lost_in_larger_scopes() {
    let scopes = [(2, 1, 2, A), (1, 2, 1, A), (0, 2, 1, A), (1, 2, 2, A), (3, 1, 1, A), (2, 2, 1, A), (1, 2, 1, A | C)];
    for (writers, collectors, removals, first) in scopes {
        let told = format!("{writers} writers, {collectors} collectors, {removals} removals, first {first}");
        match explore(&Scope { writers, collectors, removals, first, without: None }, 12_000_000) {
            Outcome::Held { states } => println!("{told}: {states} states hold"),
            Outcome::Violated { trace } => panic!("{}", trace.join("\n")),
            Outcome::NotFinished { states } => println!("{told}: the first {states} states hold"),
        }
    }
    // A tombstone that is withdrawn is missed only by two writers, two collectors and two removals.
    match explore(&Scope { writers: 2, collectors: 2, removals: 2, first: A, without: Some(Rule::Monotone) }, 40_000_000) {
        Outcome::Violated { trace } => println!("without Monotone:\n  {}\n", trace.join("\n  ")),
        Outcome::Held { states } | Outcome::NotFinished { states } => panic!("without Monotone {states} states hold"),
    }
}

#[test]
fn each_rule_is_needed() {
    let all = [
        (Rule::Fence, 1, 1, 1, A),
        (Rule::Tombstones, 1, 1, 1, A),
        (Rule::Sessions, 1, 1, 1, A),
        (Rule::SecondMark, 1, 1, 1, A),
        (Rule::Ledger, 1, 1, 2, A),
        (Rule::RewriterSession, 0, 2, 0, A),
        (Rule::NewRecords, 0, 2, 0, A),
        // Once because a collector reads records while it marks, once because a backup reuses a part of what was moved.
        (Rule::NewTargets, 0, 2, 0, A | C),
        (Rule::NewTargets, 1, 2, 0, A | C),
        (Rule::SettledBeforeRewrite, 1, 1, 0, A),
    ];
    for (rule, writers, collectors, removals, first) in all {
        match explore(&Scope { writers, collectors, removals, first, without: Some(rule) }, 1 << 22) {
            Outcome::Violated { trace } => println!("without {rule:?}:\n  {}\n", trace.join("\n  ")),
            Outcome::Held { states } => panic!("without {rule:?} {states} states hold: the rule is not needed, or the scope is too small"),
            Outcome::NotFinished { states } => panic!("without {rule:?}: not finished after {states} states"),
        }
    }
}
