//! What is written to the log: runs, conflicts of later leaders, states, snapshots of which a part lives on, entries placed
//! before a snapshot, ends of groups. Nothing that a sound shard would not write.

use rand::Rng;
use rand::rngs::SmallRng;

use super::model::{Group, Model, Op};
use super::plan::{Plan, Weights};

/// Entries that live on, at most, a group: a queue's consumers keep up.
const LIVE_MAX: usize = 60;

/// The term of entries that a leader sends with a snapshot that is beyond the log: they are committed, so they have the
/// same one whoever sends them.
const COMMITTED_TERM: u64 = 1 << 20;

/// Makes records.
#[derive(Debug)]
pub(super) struct Records {
    /// The groups in use. A group that ends is followed by one of another uid.
    pub(super) groups: Vec<u64>,
    next_group: u64,
    next_id: u64,
    term: u64,
}

impl Records {
    pub(super) fn new(plan: &Plan) -> Self {
        let groups: Vec<u64> = (1..=plan.groups).collect();
        Self { groups, next_group: plan.groups + 1, next_id: 1, term: 1 }
    }

    /// The next number of a state or a snapshot.
    pub(super) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Takes a group out of use.
    pub(super) fn replace(&mut self, group: u64) {
        for used in self.groups.iter_mut().filter(|used| **used == group) {
            *used = self.next_group;
            self.next_group += 1;
        }
    }

    /// The next records of some group, to be staged one after the other.
    pub(super) fn draw(&mut self, plan: &Plan, model: &Model, rng: &mut SmallRng) -> Vec<Op> {
        let id = self.groups[rng.random_range(0..self.groups.len())];
        let group = model.get(id);
        let Weights { append, conflict, state, snapshot, place, delete } = plan.weights;
        let mut dice = rng.random_range(0..10 * (append + conflict + state + snapshot + place) + delete);
        let mut is = |weight: u32| {
            let hit = dice < weight;
            dice = dice.wrapping_sub(weight);
            hit
        };
        let placed = group.placed.last_key_value().map(|(index, _)| *index);
        if placed.is_some_and(|placed| placed > group.last()) {
            // The end of the log is not what it is to become: only the snapshot can come now.
            self.transfer(id, &group, rng)
        } else if is(10 * append) {
            vec![self.append(id, &group, rng)]
        } else if is(10 * conflict) && placed.is_none() {
            // What was placed is committed: nobody overwrites it.
            vec![self.conflict(id, &group, rng)]
        } else if is(10 * state) {
            vec![Op::State { group: id, id: self.id() }]
        } else if is(10 * snapshot) {
            self.snapshot(id, &group, plan.live_percent, rng).into_iter().collect()
        } else if is(10 * place) {
            self.transfer(id, &group, rng)
        } else {
            self.replace(id);
            vec![Op::Delete { group: id }]
        }
    }

    fn append(&mut self, group: u64, log: &Group, rng: &mut SmallRng) -> Op {
        let prev = log.last();
        let term = log.term_at(prev).unwrap_or_default().max(1);
        let accepted = self.term.max(term);
        Op::Append { group, prev, accepted, terms: rising(term, accepted, rng.random_range(1..5), rng) }
    }

    /// A new leader overwrites: its entries may be of a lower term than those they replace, its own is higher.
    fn conflict(&mut self, group: u64, log: &Group, rng: &mut SmallRng) -> Op {
        self.term += 1;
        let prev = log.last() - rng.random_range(0..=(log.last() - log.base.0).min(12));
        let least = log.term_at(prev).unwrap_or_default().max(1);
        let accepted = self.term.max(least);
        let first = rng.random_range(least..=accepted);
        Op::Append { group, prev, accepted, terms: rising(first, accepted, rng.random_range(1..4), rng) }
    }

    /// A snapshot of something that is held.
    fn snapshot(&mut self, group: u64, log: &Group, live_percent: u32, rng: &mut SmallRng) -> Option<Op> {
        let index = rng.random_range(log.base.0..=log.last());
        if index == 0 {
            return None;
        }
        let term = log.term_at(index)?;
        let live = some_live(log, index, live_percent, rng);
        Some(Op::Snapshot { group, index, term, live, id: self.id(), in_file: rng.random_ratio(1, 4) })
    }

    /// What a leader sends to a member that is far behind: first the entries that live on, then the snapshot that names
    /// them. Some of them the member has already; if it has all of them, the snapshot may never come.
    fn transfer(&mut self, group: u64, log: &Group, rng: &mut SmallRng) -> Vec<Op> {
        let index = log.last() + rng.random_range(1..20);
        let mut ops = Vec::new();
        let mut live: Vec<u64> = log.live.keys().copied().filter(|_| rng.random()).collect();
        let mut first = rng.random_range(log.base.0 + 1..=index);
        let mut is_held = true;
        while first <= index && ops.len() < 3 {
            let end = (first + rng.random_range(1..4)).min(index + 1);
            let term = |index| log.entries.get(&index).copied().unwrap_or(COMMITTED_TERM);
            ops.push(Op::Place { group, first, terms: (first..end).map(term).collect() });
            live.extend(first..end);
            is_held &= end <= log.last() + 1;
            first = end + rng.random_range(0..10);
        }
        if !is_held || rng.random() {
            self.term += 1;
            ops.push(Op::Snapshot { group, index, term: self.term, live, id: self.id(), in_file: false });
        }
        ops
    }
}

/// Terms of a run: they do not fall, and do not pass the leader's.
fn rising(first: u64, last: u64, count: usize, rng: &mut SmallRng) -> Vec<u64> {
    let mut term = first;
    let mut terms = Vec::with_capacity(count);
    for _ in 0..count {
        terms.push(term);
        if rng.random_ratio(1, 4) {
            term = rng.random_range(term..=last);
        }
    }
    terms
}

/// Some of the entries up to `upto` that can be read.
fn some_live(log: &Group, upto: u64, percent: u32, rng: &mut SmallRng) -> Vec<u64> {
    let all = log.live.keys().chain(log.entries.range(..=upto).map(|(index, _)| index));
    let mut live: Vec<u64> = all.copied().filter(|_| rng.random_ratio(percent.min(100), 100)).collect();
    let excess = live.len().saturating_sub(LIVE_MAX);
    live.drain(..excess);
    live
}
