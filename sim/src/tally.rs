//! What a run counts: faults by kind, marks of interesting states, and the trace, a hash over everything that happened.
//!
//! Invariant: equal traces mean equal runs, on any machine; nothing unordered and no address goes into one.

use std::collections::BTreeMap;

use coracle_base::checksum::mix64;

/// Counters of one run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Faults that happened, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Interesting states that were reached, by name.
    pub marks: BTreeMap<&'static str, u64>,
    /// Over every event.
    pub trace_hash: u64,
    /// Turns, faults, applied commands and answers.
    pub events: u64,
}

impl Tally {
    /// Notes an event with the numbers that tell it from others.
    pub(crate) fn event(&mut self, numbers: &[u64]) {
        self.events += 1;
        for number in numbers {
            self.trace_hash = mix64(self.trace_hash, *number);
        }
    }

    /// Takes in what another one has counted, after what this one has.
    pub(crate) fn add(&mut self, other: Self) {
        for (into, from) in [(&mut self.faults, other.faults), (&mut self.marks, other.marks)] {
            from.into_iter().for_each(|(name, count)| *into.entry(name).or_default() += count);
        }
        self.trace_hash = mix64(self.trace_hash, other.trace_hash);
        self.events += other.events;
    }

    /// Counts a fault.
    pub(crate) fn fault(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }

    /// Counts a state that tests should reach.
    pub(crate) fn mark(&mut self, name: &'static str) {
        self.mark_many(name, 1);
    }

    /// Counts states that were counted elsewhere.
    pub(crate) fn mark_many(&mut self, name: &'static str, count: u64) {
        *self.marks.entry(name).or_default() += count;
    }
}
