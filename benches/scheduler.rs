//! The scheduler at scale, under a clock that jumps: plans loaded, a year of their slots run, no slot missed and none doubled.
//!
//! `cargo bench --bench scheduler -- [PLANS [DAYS]]` (default: 10000 plans, 365 days). Prints what start-up and a slot cost, and how much memory it takes. Ends with
//! an error when a slot was missed or doubled.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a bench prints, and ends where something is wrong")]

#[path = "../tests/support/simulation.rs"]
#[expect(dead_code, reason = "tests use more of it")]
mod simulation;

use std::time::Instant;

use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::daemon::agenda::Agenda;
use lifeboat::daemon::job::Job;
use lifeboat::daemon::journal::Journal;
use lifeboat::plan::Plans;
use simulation::Simulation;

/// Resident memory of this process (proc(5), `VmRSS`).
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

fn main() {
    // The test suite starts benchmarks too.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let (count, days) = (numbers.first().copied().unwrap_or(10_000), numbers.get(1).copied().unwrap_or(365));
    let folder = tempfile::tempdir().unwrap();
    // A few hundred plans a file, as a generator would write them: a file may have 1 MiB.
    let text = simulation::plans(count, 50, 100);
    let (head, rest) = text.split_at(text.find("[source.").unwrap());
    std::fs::write(folder.path().join("head.toml"), head).unwrap();
    let mut files: Vec<String> = Vec::new();
    for (number, part) in rest.split("[source.").skip(1).enumerate() {
        if number % 500 == 0 {
            files.push("version = 1\n".to_owned());
        }
        let file = files.last_mut().unwrap();
        file.push_str("[source.");
        file.push_str(part);
    }
    for (number, file) in files.iter().enumerate() {
        std::fs::write(folder.path().join(format!("plans-{number:03}.toml")), file).unwrap();
    }
    let before = resident_kib();
    let began = Instant::now();
    let plans = Plans::load(&[folder.path().to_owned()]).unwrap();
    let loaded = began.elapsed();
    let with_plans = resident_kib();

    // Start-up with a real journal on disk: the first start, which records every schedule, and a later one.
    let from: DateTime<Utc> = "2026-01-01T00:30:00Z".parse().unwrap();
    let plans = std::sync::Arc::new(plans);
    let journal = Journal::open(&folder.path().join("state"), from).unwrap();
    let mut starts = Vec::new();
    for _ in 0..2 {
        let began = Instant::now();
        let mut agenda = Agenda::new(std::sync::Arc::clone(&plans), from);
        agenda.advance(from);
        let (entries, keys) = agenda.to_ask();
        for (entry, known) in entries.into_iter().zip(journal.follow(&keys, from).unwrap()) {
            agenda.learn(entry, known);
        }
        starts.push((began.elapsed(), agenda.len()));
    }
    let with_agenda = resident_kib();

    let plans = std::sync::Arc::unwrap_or_clone(plans);
    let mut simulation = Simulation::new(plans, from);
    simulation.takes = |job| if job == Job::Backup { TimeDelta::minutes(3) } else { TimeDelta::minutes(20) };
    let began = Instant::now();
    simulation.run_until(from, from + TimeDelta::days(i64::try_from(days).unwrap()));
    let took = began.elapsed();
    let counts = &simulation.counts;
    println!("plans                     {count}, schedules {}", starts[0].1);
    println!("plan files read           {:.3} s", loaded.as_secs_f64());
    println!("agenda, first start       {:.3} s", starts[0].0.as_secs_f64());
    println!("agenda, later start       {:.3} s", starts[1].0.as_secs_f64());
    println!("memory of the plans       {} KiB", with_plans.saturating_sub(before));
    println!("memory of the agenda      {} KiB and what the journal takes", with_agenda.saturating_sub(with_plans));
    println!("memory at the end         {} KiB", resident_kib());
    println!("simulated                 {days} days in {:.1} s", took.as_secs_f64());
    println!("runs                      {}", counts.runs);
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let per_slot = took.as_secs_f64() * 1e6 / counts.runs.max(1) as f64;
    println!("cost of a slot            {per_slot:.1} µs, with the simulation's own part");
    println!("questions to the journal  {}", counts.questions);
    println!("most at once              {} (limit 100)", counts.most_at_once);
    println!("doubled {}, lost {}, missed {}, covered {}", counts.doubled, counts.lost, counts.missed, counts.covered);
    assert_eq!((counts.doubled, counts.lost, counts.missed), (0, 0, 0));
}
