//! What of a group is durable: the ring of writes in flight, and the type that proves durability.
//!
//! Every `Persist` that a drain returns has a number and an item here: "when this is on disk, the log is durable up to
//! `last`, and this ballot is". Truncation lowers `last` of every item, so that a write that completes later can never
//! confirm an entry that was overwritten meanwhile. Comparing (index, term) would not be enough:
//!
//! ```text
//!   write 1: (5,t3)  ->  overwritten by (5,t5)  ->  overwritten by (5,t3) again, from a later leader
//!   write 1 completes: (5,t3) is what the log says, and yet only write 3 proves it
//! ```
//!
//! Invariants: (1) a [`Durable`] is made here, or heard from a peer that made it so; (2) `durable <= written <= last`
//! of the log; (3) items are retired in order.

use alloc::collections::VecDeque;

use coracle_base::{Index, Term};

use crate::Breaks;
use crate::hard_state::Ballot;

/// The number of one `Persist` output of a group. They rise by one and complete in order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PersistSeq(pub u64);

/// Proof that a value was durable on the node that says so. It cannot be made outside of this crate: only the persist
/// ring hands it out, or the decoder of a peer's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durable<T>(T);

impl<T: Copy> Durable<T> {
    /// The value.
    pub fn get(self) -> T {
        self.0
    }

    /// A peer said so in a message, which it could only build from its own proof.
    pub(crate) fn heard(value: T) -> Self {
        Self(value)
    }
}

impl Durable<Index> {
    /// Less than what is durable is durable too.
    pub(crate) fn at_most(self, index: Index) -> Self {
        Self(self.0.min(index))
    }
}

impl Durable<Ballot> {
    /// The term of a durable ballot is durable.
    pub(crate) fn term(self) -> Durable<Term> {
        Durable(self.0.term)
    }
}

#[derive(Debug)]
struct InFlight {
    seq: PersistSeq,
    last: Index,
    ballot: Ballot,
}

/// What the next write of a group has to hold.
pub(crate) struct Write {
    pub(crate) seq: PersistSeq,
    pub(crate) with_ballot: bool,
    pub(crate) entries: Option<(Index, Index)>,
}

#[derive(Debug)]
pub(crate) struct PersistRing {
    in_flight: VecDeque<InFlight>,
    issued: PersistSeq,
    /// Entries up to here are durable or in a write that was asked for.
    written: Index,
    durable: Index,
    written_ballot: Ballot,
    durable_ballot: Ballot,
    breaks: Breaks,
}

impl PersistRing {
    /// After recovery: all of the log and `ballot` are durable.
    pub(crate) fn new(last: Index, ballot: Ballot, breaks: Breaks) -> Self {
        Self {
            in_flight: VecDeque::new(),
            issued: PersistSeq(0),
            written: last,
            durable: last,
            written_ballot: ballot,
            durable_ballot: ballot,
            breaks,
        }
    }

    /// The next write, if the log up to `last`, the ballot or something else (`forced`) needs one.
    pub(crate) fn begin(&mut self, last: Index, ballot: Ballot, forced: bool) -> Option<Write> {
        let with_ballot = ballot != self.written_ballot;
        let entries = (self.written < last).then(|| (self.written.next(), last));
        if !with_ballot && entries.is_none() && !forced {
            return None;
        }
        self.issued.0 += 1;
        self.written = last;
        self.written_ballot = ballot;
        self.in_flight.push_back(InFlight { seq: self.issued, last, ballot });
        Some(Write { seq: self.issued, with_ballot, entries })
    }

    /// Every write up to `seq` is durable.
    pub(crate) fn complete(&mut self, seq: PersistSeq) {
        while let Some(done) = self.in_flight.pop_front_if(|write| write.seq <= seq) {
            self.durable = self.durable.max(done.last.min(self.written));
            self.durable_ballot = done.ballot;
        }
    }

    /// Entries after `last` are not what they were: no write in flight says anything of them.
    pub(crate) fn lower(&mut self, last: Index) {
        self.written = self.written.min(last);
        self.durable = self.durable.min(last);
        if self.breaks.stale_completion() {
            return;
        }
        for write in &mut self.in_flight {
            write.last = write.last.min(last);
        }
    }

    /// The log starts anew after a snapshot at `index`, which the next write makes durable. What was durable of the
    /// old log stays so up to its `commit`: until then it is what a crash would bring back.
    pub(crate) fn reset(&mut self, commit: Index, index: Index) {
        self.lower(commit);
        self.written = index;
        if self.breaks.snapshot_match_counts_early() {
            self.durable = index;
        }
    }

    pub(crate) fn durable(&self) -> Durable<Index> {
        Durable(self.durable)
    }

    /// Proof that `ballot`, the one in force, is durable; `None` while its write is in flight.
    pub(crate) fn ballot(&self, ballot: Ballot) -> Option<Durable<Ballot>> {
        (ballot == self.durable_ballot || self.breaks.vote_not_persisted()).then_some(Durable(ballot))
    }

    pub(crate) fn written(&self) -> Index {
        self.written
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use coracle_base::NodeId;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Op {
        /// So many entries of a new kind, after so many of the old ones are cut.
        Change {
            cut: usize,
            add: usize,
        },
        Vote,
        Begin,
        Complete {
            writes: usize,
        },
        Install {
            forward: u64,
        },
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0usize..4, 0usize..4).prop_map(|(cut, add)| Op::Change { cut, add }),
            1 => Just(Op::Vote),
            4 => Just(Op::Begin),
            4 => (1usize..4).prop_map(|writes| Op::Complete { writes }),
            1 => (1u64..4).prop_map(|forward| Op::Install { forward }),
        ]
    }

    /// A log of distinct entries, and a disk that holds exactly what was written to it.
    #[derive(Debug, Default, Clone)]
    struct Plain {
        base: u64,
        log: Vec<u32>,
        disk_base: u64,
        disk: Vec<u32>,
        disk_ballot: Ballot,
        writes: Vec<(PersistSeq, u64, u64, Vec<u32>, Ballot)>,
    }

    impl Plain {
        fn last(&self) -> u64 {
            self.base + self.log.len() as u64
        }

        fn write_oldest(&mut self) -> Option<PersistSeq> {
            if self.writes.is_empty() {
                return None;
            }
            let (seq, base, first, entries, ballot) = self.writes.remove(0);
            if base != self.disk_base {
                (self.disk_base, self.disk) = (base, Vec::new());
            }
            if !entries.is_empty() {
                self.disk.truncate((first - 1 - self.disk_base) as usize);
                self.disk.extend(entries);
            }
            self.disk_ballot = ballot;
            Some(seq)
        }

        /// How far the disk holds what the log says.
        fn durable(&self) -> u64 {
            if self.base != self.disk_base {
                return 0;
            }
            self.base
                + self.log.iter().zip(&self.disk).take_while(|(held, written)| held == written).count() as u64
        }
    }

    proptest! {
        /// Entries are numbered through, so that none is ever equal to one that it replaced: what the ring calls durable
        /// is on the disk, and with no write in flight it is all that is.
        #[test]
        fn durable_is_what_the_disk_holds(ops in prop::collection::vec(op(), 0..60)) {
            let mut ring = PersistRing::new(Index(0), Ballot::default(), Breaks::default());
            let mut plain = Plain::default();
            let (mut ballot, mut made, mut installing) = (Ballot::default(), 0, false);
            for op in ops {
                match op {
                    Op::Change { cut, add } => {
                        let keep = plain.log.len().saturating_sub(cut);
                        if keep < plain.log.len() {
                            plain.log.truncate(keep);
                            ring.lower(Index(plain.last()));
                        }
                        plain.log.extend(made..made + add as u32);
                        made += add as u32;
                    }
                    Op::Vote => ballot = Ballot { term: ballot.term.next(), vote: NodeId(1) },
                    Op::Begin => {
                        let Some(write) = ring.begin(Index(plain.last()), ballot, installing) else {
                            prop_assert!(!installing && ballot == plain.writes.last().map_or(plain.disk_ballot, |w| w.4));
                            continue;
                        };
                        installing = false;
                        let (first, last) = write.entries.map_or((1, 0), |(first, last)| (first.0, last.0));
                        let entries = (first..=last).map(|i| plain.log[(i - 1 - plain.base) as usize]).collect();
                        plain.writes.push((write.seq, plain.base, first, entries, ballot));
                    }
                    Op::Complete { writes } => {
                        let seq = (0..writes).filter_map(|_| plain.write_oldest()).last();
                        seq.into_iter().for_each(|seq| ring.complete(seq));
                    }
                    Op::Install { forward } => {
                        // Nothing is committed here, so nothing of the old log counts any more.
                        plain.base = plain.last() + forward;
                        plain.log.clear();
                        ring.reset(Index(0), Index(plain.base));
                        installing = true;
                    }
                }
                let durable = ring.durable().get().0;
                prop_assert!(durable <= plain.durable(), "{} is called durable: {:?}", durable, plain);
                prop_assert_eq!(ring.ballot(ballot).is_some(), plain.disk_ballot == ballot);
                if plain.writes.is_empty() && !installing {
                    prop_assert_eq!(durable, plain.durable());
                }
            }
        }
    }
}
