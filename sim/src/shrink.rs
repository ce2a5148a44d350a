//! The search for the least of a failing seed that still fails in the same way: fewer nodes and groups, a shorter storm, fewer
//! kinds of trouble, and of the strikes that are left only those that it takes.
//!
//! Each step leaves something out and runs the seed again: what fails in the same way is the new plan, everything else is
//! forgotten. Strikes are numbered and draw by their number (`faults.rs`), so that the others stay what they are.
//!
//! Invariant: what is handed out was run, and broke the same invariant.

use std::collections::BTreeSet;

use coracle::breaks::Breaks;

use crate::faults::Strike;
use crate::oracle::Violation;
use crate::plan::{Numbers, Trim, UNCOUNTED};
use crate::run::{Verdict, Worlds, run_seed};

/// A failure, and what it takes.
#[derive(Debug, Clone)]
pub struct Shrunk {
    /// The world that it happens in.
    pub world: Worlds,
    /// What is left out.
    pub trim: Trim,
    /// What breaks.
    pub violation: Violation,
    /// What struck the cluster before.
    pub story: Vec<Strike>,
    /// Nodes and groups of the cluster.
    pub size: (u64, u64),
    /// How often the seed was run.
    pub runs: u64,
}

/// Looks for the least of `seed` that fails, within `runs_max` runs; `None` if it does not fail. `told` hears of each success.
pub fn shrink(
    seed: u64,
    worlds: Worlds,
    breaks: Breaks,
    trim: &Trim,
    runs_max: u64,
    told: &mut dyn FnMut(&Shrunk),
) -> Option<Shrunk> {
    let verdict = run_seed(seed, worlds, breaks, trim);
    let violation = verdict.violation.clone()?;
    let world = if verdict.size == (0, 0) { Worlds::Storage } else { Worlds::Cluster };
    let found = Shrunk {
        world,
        trim: trim.clone(),
        violation,
        story: verdict.story.clone(),
        size: verdict.size,
        runs: 1,
    };
    let mut search = Search { seed, breaks, runs_max, found, verdict, told };
    match world {
        Worlds::Storage => search.shrink_log(),
        _ => search.shrink_cluster(),
    }
    Some(search.found)
}

struct Search<'a> {
    seed: u64,
    breaks: Breaks,
    runs_max: u64,
    found: Shrunk,
    verdict: Verdict,
    told: &'a mut dyn FnMut(&Shrunk),
}

impl Search<'_> {
    /// Whether the seed fails in the same way when so much is left out; then it is left out from now on.
    fn fails_with(&mut self, trim: Trim) -> bool {
        if self.found.runs >= self.runs_max || trim == self.found.trim {
            return false;
        }
        self.found.runs += 1;
        let verdict = run_seed(self.seed, self.found.world, self.breaks, &trim);
        let Some(violation) = verdict.violation.clone().filter(|one| is_same(one, &self.found.violation))
        else {
            return false;
        };
        (self.found.trim, self.found.violation) = (trim, violation);
        (self.found.story, self.found.size) = (verdict.story.clone(), verdict.size);
        self.verdict = verdict;
        (self.told)(&self.found);
        true
    }

    fn fails_but(&mut self, change: impl FnOnce(&mut Trim)) -> bool {
        let mut trim = self.found.trim.clone();
        change(&mut trim);
        self.fails_with(trim)
    }

    fn shrink_cluster(&mut self) {
        self.end_with_the_failure();
        self.shrink_size();
        self.leave_kinds_out();
        self.leave_strikes_out();
        self.shorten();
        self.shrink_size();
    }

    fn shrink_log(&mut self) {
        self.leave_kinds_out();
        for records in [10, 20, 40, 80, 120, 160, 200, 250, 300, 400] {
            if self.fails_but(|trim| trim.records = Some(records)) {
                break;
            }
        }
    }

    /// What would have come after the failure.
    fn end_with_the_failure(&mut self) {
        let ms = self.verdict.simulated_us / 1000 + 1;
        self.fails_but(|trim| trim.storm_ms = Some(ms));
    }

    fn shrink_size(&mut self) {
        let _ = (1..self.found.size.0).find(|nodes| self.fails_but(|trim| trim.nodes = Some(*nodes)));
        let sizes = [1, 2, 4, 8, 16, 32, 64, 128].into_iter().filter(|groups| *groups < self.found.size.1);
        let sizes: Vec<u64> = sizes.collect();
        let _ = sizes.iter().find(|groups| self.fails_but(|trim| trim.groups = Some(**groups)));
    }

    fn leave_kinds_out(&mut self) {
        let counted = &self.verdict.tally.faults;
        let happened = |kind: &&str| counted.get(kind).is_some_and(|count| *count > 0);
        let is_cluster = self.found.world == Worlds::Cluster;
        let kinds = Trim::kinds().filter(|kind| happened(kind) || is_cluster && UNCOUNTED.contains(kind));
        let left: Vec<&'static str> = kinds.filter(|kind| !self.found.trim.without.contains(kind)).collect();
        let (all, before) = (left.clone(), self.found.trim.without.clone());
        least(left, |kept| {
            let without = all.iter().filter(|kind| !kept.contains(kind)).copied().chain(before.clone());
            let without: BTreeSet<&'static str> = without.collect();
            self.fails_but(|trim| trim.without = without)
        });
    }

    fn leave_strikes_out(&mut self) {
        let strikes: Vec<u64> = self.found.story.iter().map(|strike| strike.number).collect();
        least(strikes, |kept| {
            let kept = Numbers(kept.iter().copied().collect());
            self.fails_but(|trim| trim.strikes = Some(kept))
        });
    }

    /// The failure may be one that shows after everything is repaired: then the storm may end earlier.
    fn shorten(&mut self) {
        self.end_with_the_failure();
        let mut step_ms = self.found.trim.storm_ms.unwrap_or_default() / 2;
        while step_ms > 100 {
            let ms = self.found.trim.storm_ms.unwrap_or_default().saturating_sub(step_ms);
            if !self.fails_but(|trim| trim.storm_ms = Some(ms)) {
                step_ms /= 2;
            }
        }
    }
}

/// Whether two failures are the same one: of assertions, those at the same place.
fn is_same(one: &Violation, other: &Violation) -> bool {
    let place = |violation: &Violation| match violation.invariant {
        "assertions hold" => violation.detail.lines().next().unwrap_or_default().to_owned(),
        _ => String::new(),
    };
    one.invariant == other.invariant && place(one) == place(other)
}

/// A subset of `items` that still fails and of which no single one can be left out, as far as `fails` says so (Zeller's ddmin).
fn least<T: Copy>(items: Vec<T>, mut fails: impl FnMut(&[T]) -> bool) -> Vec<T> {
    if items.is_empty() || fails(&[]) {
        return Vec::new();
    }
    let (mut kept, mut parts) = (items, 2);
    loop {
        let size = kept.len().div_ceil(parts);
        let without = |start: usize| {
            let end = kept.len().min(start + size);
            [&kept[..start], &kept[end..]].concat()
        };
        let smaller = (0..kept.len()).step_by(size).map(without).find(|rest| !rest.is_empty() && fails(rest));
        match smaller {
            Some(rest) => {
                kept = rest;
                parts = 2.max(parts - 1);
            }
            None if size == 1 => return kept,
            None => parts = kept.len().min(2 * parts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_is_found_whatever_it_is() {
        for wanted in [vec![], vec![0], vec![3, 17], vec![1, 2, 18, 19]] {
            let mut runs = 0;
            let found = least((0..20).collect(), |kept| {
                runs += 1;
                wanted.iter().all(|one| kept.contains(one))
            });
            assert_eq!(found, wanted);
            assert!(runs < 100, "{runs} runs for {wanted:?}");
        }
    }
}
