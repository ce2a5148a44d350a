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
