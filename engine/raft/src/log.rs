//! The shape of a group's log: where it starts and ends, and which term each entry has. No payloads: a log of a million
//! entries of three terms is three spans.
//!
//! ```text
//!   released            | held
//!   ........ snapshot   | first ...... last
//!                 (i,t)   [span t1][span t2][span t3]
//! ```
//!
//! Invariants: (1) spans are contiguous, ascend in index and strictly in term, and cover exactly `first..=last`;
//! (2) no span's term is below the snapshot's.

use coracle_base::{Index, Term};
use smallvec::SmallVec;

/// Terms of consecutive entries, in order: so many entries of this term, then so many of that.
pub type Spans = SmallVec<[(Term, u32); 2]>;

/// Terms in one append message at most; a log that changes its term more often takes more messages.
pub(crate) const SPANS_MAX: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Span {
    first: Index,
    term: Term,
}

#[derive(Debug)]
pub(crate) struct Log {
    snapshot: Index,
    snapshot_term: Term,
    last: Index,
    spans: SmallVec<[Span; 2]>,
}

impl Log {
    /// A log above `snapshot`; `terms` gives the first index of each term in it.
    pub(crate) fn new(snapshot: (Index, Term), last: Index, terms: &[(Index, Term)]) -> Self {
        let mut log = Self {
            snapshot: snapshot.0,
            snapshot_term: snapshot.1,
            last: snapshot.0,
            spans: SmallVec::new(),
        };
        for (at, &(first, term)) in terms.iter().enumerate() {
            let end = terms.get(at + 1).map_or(last, |next| next.0.prev());
            let count = u32::try_from(end.since(first.prev())).expect("a log holds fewer than 2^32 entries");
            assert!(first == log.last.next() && count > 0, "restored terms leave a gap at {first}");
            log.append(term, count);
        }
        assert_eq!(log.last, last, "restored terms do not reach the last entry");
        log
    }

    /// The first entry that is still held; one past `last` if none is.
    pub(crate) fn first(&self) -> Index {
        self.snapshot.next()
    }

    pub(crate) fn last(&self) -> Index {
        self.last
    }

    pub(crate) fn last_term(&self) -> Term {
        self.spans.last().map_or(self.snapshot_term, |span| span.term)
    }

    /// Index before the first entry, covered by a snapshot (0 and term 0 if nothing was released).
    pub(crate) fn snapshot(&self) -> (Index, Term) {
        (self.snapshot, self.snapshot_term)
    }

    /// The term at `index`; `None` if it was released or is not there yet.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.snapshot {
            return Some(self.snapshot_term);
        }
        self.span_of(index).map(|at| self.spans[at].term)
    }

    pub(crate) fn matches(&self, index: Index, term: Term) -> bool {
        self.term_at(index) == Some(term)
    }

    /// Which span holds `index`. The last one is by far the likeliest.
    fn span_of(&self, index: Index) -> Option<usize> {
        if index <= self.snapshot || index > self.last {
            return None;
        }
        let newest = self.spans.len().checked_sub(1)?;
        if self.spans[newest].first <= index {
            return Some(newest);
        }
        self.spans.partition_point(|span| span.first <= index).checked_sub(1)
    }

    fn span_last(&self, at: usize) -> Index {
        self.spans.get(at + 1).map_or(self.last, |next| next.first.prev())
    }

    pub(crate) fn append(&mut self, term: Term, count: u32) {
        assert!(term >= self.last_term(), "terms of a log never fall");
        if count == 0 {
            return;
        }
        if self.spans.last().is_none_or(|span| span.term != term) {
            self.spans.push(Span { first: self.last.next(), term });
        }
        self.last = self.last.plus(u64::from(count));
    }

    /// Drops every entry at or after `from`.
    pub(crate) fn truncate(&mut self, from: Index) {
        assert!(
            from > self.snapshot,
            "entries below {from} are covered by the snapshot at {}",
            self.snapshot
        );
        if from <= self.last {
            self.last = from.prev();
            while self.spans.last().is_some_and(|span| span.first >= from) {
                self.spans.pop();
            }
        }
    }

    /// A snapshot covers everything up to `index` now.
    pub(crate) fn release(&mut self, index: Index, term: Term) {
        assert!(self.matches(index, term), "the snapshot at {index} is not of this log");
        let gone = self.spans.partition_point(|span| span.first <= index);
        if gone > 0 {
            let survives = self.span_last(gone - 1) > index;
            self.spans.drain(..gone - usize::from(survives));
            if survives {
                self.spans[0].first = index.next();
            }
        }
        (self.snapshot, self.snapshot_term) = (index, term);
    }

    /// Forgets everything: the log starts anew after a snapshot from elsewhere.
    pub(crate) fn reset(&mut self, index: Index, term: Term) {
        (self.snapshot, self.snapshot_term, self.last) = (index, term, index);
        self.spans.clear();
    }

    /// The first of these entries, which follow `prev`, that the log does not hold with the same term.
    pub(crate) fn first_difference(&self, prev: Index, spans: &[(Term, u32)]) -> Option<Index> {
        let mut index = prev.next();
        for &(term, count) in spans {
            let end = index.plus(u64::from(count));
            while index < end {
                let at = self.span_of(index).filter(|&at| self.spans[at].term == term);
                let Some(at) = at else { return Some(index) };
                index = self.span_last(at).next().min(end);
            }
        }
        None
    }

    /// The terms of `first..=last`, which must be held.
    pub(crate) fn spans(&self, first: Index, last: Index) -> Spans {
        let mut spans = Spans::new();
        let mut from = first;
        while from <= last {
            let at = self.span_of(from).expect("the range is held");
            let to = self.span_last(at).min(last);
            spans.push((self.spans[at].term, to.since(from.prev()) as u32));
            from = to.next();
        }
        spans
    }

    /// Where a message that starts at `first` has to end: at most `entries_max` entries of at most [`SPANS_MAX`] terms.
    pub(crate) fn message_end(&self, first: Index, entries_max: u32) -> Index {
        let end = self.last.min(first.plus(u64::from(entries_max.max(1))).prev());
        let Some(at) = self.span_of(first) else { return end };
        end.min(self.span_last((at + SPANS_MAX - 1).min(self.spans.len() - 1)))
    }

    /// The greatest index at most `upto` whose term is at most `term`, with its term: where a log that has other terms
    /// after it can agree at the latest. Below the held entries the term is unknown, and the index one too low to serve.
    pub(crate) fn latest_at_most(&self, upto: Index, term: Term) -> (Index, Term) {
        for (at, span) in self.spans.iter().enumerate().rev() {
            if span.term <= term && span.first <= upto {
                return (self.span_last(at).min(upto), span.term);
            }
        }
        if self.snapshot <= upto && self.snapshot_term <= term {
            return self.snapshot();
        }
        (self.snapshot.prev().min(upto), Term::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use proptest::prelude::*;

    /// The same log, entry by entry.
    #[derive(Debug, Clone)]
    struct Plain {
        snapshot: (u64, u64),
        terms: Vec<u64>,
    }

    impl Plain {
        fn last(&self) -> u64 {
            self.snapshot.0 + self.terms.len() as u64
        }

        fn term_at(&self, index: u64) -> Option<u64> {
            if index == self.snapshot.0 {
                return Some(self.snapshot.1);
            }
            self.terms.get(index.checked_sub(self.snapshot.0 + 1)? as usize).copied()
        }

        fn last_term(&self) -> u64 {
            self.terms.last().copied().unwrap_or(self.snapshot.1)
        }
    }

    #[derive(Debug, Clone)]
    enum Op {
        Append { term_step: u64, count: u32 },
        Truncate { back: u64 },
        Release { forward: u64 },
        Reset { index: u64, term: u64 },
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            6 => (0u64..3, 0u32..5).prop_map(|(term_step, count)| Op::Append { term_step, count }),
            3 => (0u64..8).prop_map(|back| Op::Truncate { back }),
            2 => (1u64..6).prop_map(|forward| Op::Release { forward }),
            1 => (0u64..40, 0u64..9).prop_map(|(index, term)| Op::Reset { index, term }),
        ];
        prop::collection::vec(op, 0..40)
    }

    fn apply(ops: &[Op]) -> (Log, Plain) {
        let mut log = Log::new((Index(0), Term(0)), Index(0), &[]);
        let mut plain = Plain { snapshot: (0, 0), terms: Vec::new() };
        for op in ops {
            match *op {
                Op::Append { term_step, count } => {
                    let term = plain.last_term() + term_step;
                    log.append(Term(term), count);
                    plain.terms.extend(core::iter::repeat_n(term, count as usize));
                }
                Op::Truncate { back } => {
                    let from = (plain.last() + 2).saturating_sub(back).max(plain.snapshot.0 + 1);
                    log.truncate(Index(from));
                    plain.terms.truncate((from - plain.snapshot.0 - 1) as usize);
                }
                Op::Release { forward } => {
                    let index = (plain.snapshot.0 + forward).min(plain.last());
                    let term = plain.term_at(index).unwrap();
                    log.release(Index(index), Term(term));
                    plain.terms.drain(..(index - plain.snapshot.0) as usize);
                    plain.snapshot = (index, term);
                }
                Op::Reset { index, term } => {
                    log.reset(Index(index), Term(term));
                    plain = Plain { snapshot: (index, term), terms: Vec::new() };
                }
            }
            check(&log);
        }
        (log, plain)
    }

    fn check(log: &Log) {
        let (mut expected, mut term) = (log.first(), None);
        for (at, span) in log.spans.iter().enumerate() {
            assert!(span.first == expected && span.term >= log.snapshot_term && term < Some(span.term));
            (expected, term) = (log.span_last(at).next(), Some(span.term));
        }
        assert_eq!(expected, log.last.next());
    }

    proptest! {
        #[test]
        fn terms_are_those_of_a_plain_log(ops in ops()) {
            let (log, plain) = apply(&ops);
            prop_assert_eq!(log.last(), Index(plain.last()));
            prop_assert_eq!(log.last_term(), Term(plain.last_term()));
            for index in 0..plain.last() + 3 {
                prop_assert_eq!(log.term_at(Index(index)), plain.term_at(index).map(Term), "at {}", index);
            }
            let starts: Vec<(Index, Term)> = log.spans.iter().map(|span| (span.first, span.term)).collect();
            let again = Log::new(log.snapshot(), log.last(), &starts);
            prop_assert_eq!(again.last_term(), log.last_term());
        }

        #[test]
        fn spans_name_every_entry(ops in ops(), from in 0u64..10, count in 0u64..20) {
            let (log, plain) = apply(&ops);
            let first = plain.snapshot.0 + 1 + from.min(plain.terms.len() as u64);
            let last = (first + count).min(plain.last());
            let spans = log.spans(Index(first), Index(last));
            let told: Vec<u64> = spans.iter().flat_map(|&(t, n)| core::iter::repeat_n(t.0, n as usize)).collect();
            let held: Vec<u64> = (first..=last).map(|index| plain.term_at(index).unwrap()).collect();
            prop_assert_eq!(told, held);
        }

        #[test]
        fn the_first_difference_is_found(ops in ops(), back in 0u64..10, spans in prop::collection::vec((0u64..3, 1u32..4), 0..5)) {
            let (log, plain) = apply(&ops);
            let prev = plain.last().saturating_sub(back).max(plain.snapshot.0);
            let mut term = plain.term_at(prev).unwrap();
            let spans: Vec<(Term, u32)> = spans.into_iter().map(|(step, count)| { term += step; (Term(term), count) }).collect();
            let told = spans.iter().flat_map(|&(t, n)| core::iter::repeat_n(t.0, n as usize));
            let differs = (prev + 1..).zip(told).find(|&(index, term)| plain.term_at(index) != Some(term));
            prop_assert_eq!(log.first_difference(Index(prev), &spans), differs.map(|(index, _)| Index(index)));
        }

        #[test]
        fn the_latest_at_most_is_the_latest(ops in ops(), back in 0u64..12, term in 0u64..20) {
            let (log, plain) = apply(&ops);
            let upto = (plain.last() + 2).saturating_sub(back);
            let by_definition = (plain.snapshot.0..=upto.min(plain.last()))
                .rev()
                .find(|&index| plain.term_at(index).unwrap() <= term);
            let (found, found_term) = log.latest_at_most(Index(upto), Term(term));
            match by_definition {
                Some(index) => prop_assert_eq!((found.0, Some(found_term.0)), (index, plain.term_at(index))),
                // What is released cannot be joined to: the leader sends its snapshot then.
                None => prop_assert!(found < log.snapshot || found == Index::ZERO),
            }
        }

        #[test]
        fn a_message_ends_within_its_bounds(steps in prop::collection::vec((0u64..3, 1u32..4), 1..150), entries_max in 0u32..200) {
            let ops: Vec<Op> = steps.into_iter().map(|(term_step, count)| Op::Append { term_step, count }).collect();
            let (log, plain) = apply(&ops);
            for first in 1..=plain.last() {
                let end = log.message_end(Index(first), entries_max);
                let spans = log.spans(Index(first), end).len();
                prop_assert!(end >= Index(first) && end <= log.last() && spans <= SPANS_MAX);
                let full = end.since(Index(first - 1)) == u64::from(entries_max.max(1));
                prop_assert!(full || end == log.last() || spans == SPANS_MAX, "it could be longer");
            }
        }
    }
}
