//! Many seeds on a few threads, and one report of all. Seeds share nothing; their verdicts are merged in the order of the
//! seeds, so the report does not depend on the threads.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use coracle::breaks::Breaks;
use coracle_base::checksum::mix64;

use crate::marks::{CLUSTER_MARKS, CLUSTER_MARKS_RARE};
use crate::oracle::Violation;
use crate::plan::{Trim, UNCOUNTED};
use crate::run::{Verdict, Worlds, run_seed};
use crate::storage::{STORAGE_MARKS, STORAGE_MARKS_RARE};
use crate::tally::Tally;

/// A seed that broke an invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which seed.
    pub seed: u64,
    /// What broke.
    pub violation: Violation,
}

/// What the cluster of the seed in the middle had of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Medians {
    /// Simulated time.
    pub simulated_us: u64,
    /// Commands proposed.
    pub commands: u64,
    /// Faults of all kinds.
    pub faults: u64,
    /// Processes that ended by kill, power loss or disk error.
    pub crashes: u64,
}

/// What became of all seeds.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// How many were run.
    pub seeds: u64,
    /// Simulated time of all their clusters.
    pub simulated_us: u64,
    /// And of all their logs.
    pub storage_us: u64,
    /// All their counters; the trace is over the traces of all seeds, in order.
    pub tally: Tally,
    /// Those that failed, in order.
    pub failures: Vec<Failure>,
    figures: [Vec<u64>; 4],
}

impl Report {
    fn add(&mut self, verdict: Verdict) {
        self.seeds += 1;
        self.simulated_us += verdict.simulated_us;
        self.storage_us += verdict.storage_us;
        let figures = [verdict.simulated_us, verdict.commands, verdict.faults, verdict.crashes];
        self.figures.iter_mut().zip(figures).for_each(|(all, one)| all.push(one));
        let trace_hash = mix64(verdict.seed, verdict.tally.trace_hash);
        self.tally.add(Tally { trace_hash, ..verdict.tally });
        self.failures.extend(verdict.violation.map(|violation| Failure { seed: verdict.seed, violation }));
    }

    /// Faults and states that there should be some of in a night's run, and were not in this one.
    pub fn never_reached(&self) -> Vec<&'static str> {
        let Tally { marks, faults, .. } = &self.tally;
        let is_there = |name: &str| [marks, faults].iter().any(|all| all.get(name).is_some_and(|n| *n > 0));
        let on_purpose: Vec<_> = Trim::kinds_to_add().collect();
        let kinds = Trim::kinds().filter(|kind| !UNCOUNTED.contains(kind) && !on_purpose.contains(kind));
        let marks = CLUSTER_MARKS.into_iter().chain(CLUSTER_MARKS_RARE);
        let marks = marks.chain(STORAGE_MARKS).chain(STORAGE_MARKS_RARE);
        let mut missed: Vec<_> = kinds.chain(marks).filter(|name| !is_there(name)).collect();
        missed.sort_unstable();
        missed.dedup();
        missed
    }

    /// The seed in the middle, figure by figure; zeros if there was none.
    pub fn medians(&self) -> Medians {
        let median = |figures: &Vec<u64>| {
            let mut sorted = figures.clone();
            sorted.sort_unstable();
            sorted.get(sorted.len() / 2).copied().unwrap_or_default()
        };
        let [simulated_us, commands, faults, crashes] = [0, 1, 2, 3].map(|nth| median(&self.figures[nth]));
        Medians { simulated_us, commands, faults, crashes }
    }
}

/// Runs `seeds` in order, on so many threads, for as long as `go_on` says after each verdict.
pub fn campaign(
    seeds: Range<u64>,
    worlds: Worlds,
    breaks: Breaks,
    trim: &Trim,
    threads: usize,
    mut go_on: impl FnMut(&Report, &Verdict) -> bool,
) -> Report {
    let (next, stop) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let (sender, verdicts) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let (sender, next, stop) = (sender.clone(), &next, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || sender.send(run_seed(seed, worlds, breaks, trim)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut report = Report::default();
        let mut early = BTreeMap::new();
        let mut due = seeds.start;
        for verdict in verdicts {
            early.insert(verdict.seed, verdict);
            while let Some(verdict) = early.remove(&due) {
                due += 1;
                report.add(verdict.clone());
                if !go_on(&report, &verdict) {
                    stop.store(true, Ordering::Relaxed);
                    return report;
                }
            }
        }
        report
    })
}
