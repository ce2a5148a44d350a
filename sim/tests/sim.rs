//! The simulator is worth something only if it repeats itself, runs clean seeds clean, and notices what is broken.
#![allow(clippy::unwrap_used)]

use coracle_sim::{BREAKS, Breaks, Report, STORAGE_MARKS, STORAGE_MARKS_RARE, Worlds, campaign, run_seed};

const THREADS: usize = 2;

fn all(seeds: std::ops::Range<u64>, threads: usize) -> Report {
    campaign(seeds, Worlds::Both, Breaks::default(), threads, |_, _| true)
}

#[test]
fn twenty_seeds_hold_repeat_themselves_and_are_worth_running() {
    let report = all(0..20, THREADS);
    assert_eq!(report.failures, []);
    assert_eq!(report.seeds, 20);
    let medians = report.medians();
    println!("{medians:?}");
    assert!(medians.simulated_us >= 60_000_000, "{medians:?}");
    assert!(medians.commands >= 2_000, "{medians:?}");
    assert!(medians.faults >= 20, "{medians:?}");
    assert!(medians.crashes >= 2, "{medians:?}");

    let again = all(0..20, 1);
    assert_eq!(again.tally, report.tally, "same seeds, same run, on any number of threads");
    assert_ne!(
        run_seed(20, Worlds::Both, Breaks::default()).tally.trace_hash,
        run_seed(21, Worlds::Both, Breaks::default()).tally.trace_hash
    );
}

/// A world that does not get into the corners shows nothing of them: each mark is reached, and each that there is is known.
#[test]
fn every_mark_of_storage_is_reached_and_known() {
    let report = campaign(0..300, Worlds::Storage, Breaks::default(), THREADS, |_, _| true);
    assert_eq!(report.failures, []);
    let counts = report.tally.marks.iter().chain(&report.tally.faults);
    let reached: Vec<&str> = counts.clone().filter(|(_, count)| **count > 0).map(|(name, _)| *name).collect();
    println!("{:?}", counts.collect::<Vec<_>>());
    let missed: Vec<_> = STORAGE_MARKS.iter().filter(|name| !reached.contains(name)).collect();
    assert!(missed.is_empty(), "never reached: {missed:?}");
    let is_known = |name: &str| STORAGE_MARKS.contains(&name) || STORAGE_MARKS_RARE.contains(&name);
    let unknown: Vec<_> = reached.iter().filter(|name| !is_known(name)).collect();
    assert!(unknown.is_empty(), "not in the list: {unknown:?}");
}

/// Seeds that it takes at most, with room to spare: a simulator that needs many more has lost an eye.
fn caught_within(name: &str, worlds: Worlds, seeds_max: u64) {
    assert!(BREAKS.contains(&name));
    let breaks = Breaks::named(name).unwrap();
    let report = campaign(0..seeds_max, worlds, breaks, THREADS, |_, verdict| verdict.violation.is_none());
    assert_eq!(report.failures.len(), 1, "{name} was not caught in {seeds_max} seeds");
    println!("{name}: {:?}", report.failures);
}

#[test]
fn planted_bugs_are_noticed() {
    caught_within("ack-before-durable", Worlds::Both, 20);
    caught_within("vote-not-persisted", Worlds::Both, 60);
    caught_within("old-term-commit-by-count", Worlds::Both, 20);
    caught_within("read-without-noop", Worlds::Both, 40);
    caught_within("torn-tail-accepted", Worlds::Both, 60);
    caught_within("stale-completion", Worlds::Both, 150);
    caught_within("snapshot-match-counts-early", Worlds::Both, 120);
}

#[test]
fn planted_bugs_of_storage_are_noticed() {
    caught_within("recycled-truncation-revives", Worlds::Storage, 120);
    caught_within("recycle-before-moved", Worlds::Storage, 300);
    caught_within("place-truncates", Worlds::Storage, 120);
    caught_within("higher-term-wins-replay", Worlds::Storage, 120);
    caught_within("corrupt-tail-dropped", Worlds::Storage, 120);
    caught_within("read-plan-races-reuse", Worlds::Storage, 120);
    caught_within("torn-checkpoint-accepted", Worlds::Storage, 1000);
}
