//! The search for an order.
//!
//! ```text
//!   known   operations with an answer, by their beginning       ██ ███ █████
//!   open    those without, by their beginning                       ████████████████ →
//! ```
//!
//! A place in the search is a set of operations taken and the state that they led to. Those that may be taken next began
//! before the first end of all known ones that are left. Known ones are tried first, the one that ended first before the
//! others: in most histories that is the order. The search is over when all known ones are taken: open ones need not be.
//!
//! Visited places are remembered by a 128-bit sum of their members' random words and of the state's hash: two different
//! ones with the same sum are less likely than a fault of the memory that they lie in.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use crate::{Model, Operation, Verdict};

/// One operation taken, and what could have been taken instead.
struct Level<S> {
    /// Numbers of operations to try here, the next one last.
    left: Vec<usize>,
    /// The one that was taken.
    taken: usize,
    /// The state before.
    before: S,
    /// Where known operations began that were not taken.
    first: usize,
}

pub(crate) struct Search<'a, M: Model> {
    model: &'a M,
    history: &'a [Operation<M::Call, M::Answer>],
    known: Vec<usize>,
    open: Vec<usize>,
    is_taken: Vec<bool>,
    /// All known ones before it are taken.
    first: usize,
    known_taken: usize,
    /// Of all that are taken.
    sum: u128,
    visited: BTreeSet<u128>,
}

impl<'a, M: Model> Search<'a, M> {
    pub(crate) fn new(model: &'a M, history: &'a [Operation<M::Call, M::Answer>]) -> Self {
        let (mut known, mut open): (Vec<usize>, Vec<usize>) =
            (0..history.len()).partition(|number| history[*number].ended.is_some());
        known.sort_by_key(|number| history[*number].begun);
        open.sort_by_key(|number| history[*number].begun);
        Self {
            model,
            history,
            known,
            open,
            is_taken: vec![false; history.len()],
            first: 0,
            known_taken: 0,
            sum: 0,
            visited: BTreeSet::new(),
        }
    }

    pub(crate) fn run(mut self, steps_max: u64) -> Result<(), Verdict> {
        let mut state = self.model.initial();
        let mut levels: Vec<Level<M::State>> = Vec::new();
        let mut left = self.candidates();
        let (mut explained, mut stuck) = (0, left.clone());
        for _ in 0..steps_max {
            if self.known_taken == self.known.len() {
                return Ok(());
            }
            let Some(number) = left.pop() else {
                // Nothing fits here: another one in the place of the last.
                let Some(level) = levels.pop() else { return Err(Verdict::Broken { explained, stuck }) };
                self.put_back(&level);
                (state, left) = (level.before, level.left);
                continue;
            };
            let Some(next) = self.step(&state, number) else { continue };
            if levels.last().is_some_and(|last| self.is_in_vain(last, number, &next)) {
                continue;
            }
            let sum = self.sum ^ word(number as u64);
            if !self.visited.insert(sum.wrapping_add(hash(&next))) {
                continue;
            }
            let before = std::mem::replace(&mut state, next);
            levels.push(Level { left, taken: number, before, first: self.first });
            self.take(number);
            left = self.candidates();
            if levels.len() > explained {
                (explained, stuck) = (levels.len(), left.clone());
            }
        }
        Err(Verdict::Undecided { steps: steps_max })
    }

    fn step(&self, state: &M::State, number: usize) -> Option<M::State> {
        let one = &self.history[number];
        let next = self.model.step(state, &one.call, one.ended.as_ref().map(|(_, answer)| answer))?;
        // What changes nothing and told nobody anything explains nothing either.
        (one.ended.is_some() || next != *state).then_some(next)
    }

    /// Whether an open operation was taken last, and this one leads to the same state without it: then that one was taken
    /// for nothing, and everything that comes now has been, or will be, tried without it.
    fn is_in_vain(&self, last: &Level<M::State>, number: usize, next: &M::State) -> bool {
        self.history[last.taken].ended.is_none() && self.step(&last.before, number).as_ref() == Some(next)
    }

    fn take(&mut self, number: usize) {
        self.is_taken[number] = true;
        self.sum ^= word(number as u64);
        self.known_taken += usize::from(self.history[number].ended.is_some());
        while self.known.get(self.first).is_some_and(|number| self.is_taken[*number]) {
            self.first += 1;
        }
    }

    fn put_back(&mut self, level: &Level<M::State>) {
        self.is_taken[level.taken] = false;
        self.sum ^= word(level.taken as u64);
        self.known_taken -= usize::from(self.history[level.taken].ended.is_some());
        self.first = level.first;
    }

    /// What may be taken next, the best last.
    fn candidates(&self) -> Vec<usize> {
        let begun = |number: &usize| self.history[*number].begun;
        let ended = |number: &usize| self.history[*number].ended.as_ref().map_or(u64::MAX, |(at, _)| *at);
        let mut limit = u64::MAX;
        let mut known = Vec::new();
        for number in &self.known[self.first..] {
            if begun(number) > limit {
                break;
            }
            if !self.is_taken[*number] {
                limit = limit.min(ended(number));
                known.push(*number);
            }
        }
        // Found before an earlier end was.
        known.retain(|number| begun(number) <= limit);
        known.sort_by_key(|number| std::cmp::Reverse(ended(number)));
        let open = self.open.iter().take_while(|number| begun(number) <= limit);
        let mut all: Vec<usize> = open.copied().filter(|number| !self.is_taken[*number]).collect();
        all.extend(known);
        all
    }
}

fn hash<T: std::hash::Hash>(value: &T) -> u128 {
    let build = BuildHasherDefault::<DefaultHasher>::default();
    let (low, high) = (build.hash_one((value, 1u8)), build.hash_one((value, 2u8)));
    u128::from(low) | u128::from(high) << 64
}

/// The random word of an operation.
fn word(number: u64) -> u128 {
    hash(&(number, "operation"))
}
