//! A group's questions that wait here: for a quorum, or for entries to be applied.
//!
//! Invariant: nothing here is due before `due_us`. It may be too early, for what has gone since; then one look mends it.

use std::collections::BTreeMap;

use coracle_base::{Index, Term};

use super::inbox::Origin;

/// Questions of a group that may wait for a quorum, or to be applied after that.
const QUORUM_MAX: usize = 4096;
/// Those that wait for an entry that they name: a place of their own, as nobody knows whether that ever comes.
const NAMED_MAX: usize = 4096;

/// What is done for a question when its read index is known, and applied here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    /// The machine answers.
    Answer,
    /// The machine answers, once the entry that the question names is applied; if a term is named, only if it is of that.
    AnswerAt(Option<Term>),
    /// Another member's machine answers: it wants to know the index.
    Index,
}

impl Wants {
    fn is_named(self) -> bool {
        matches!(self, Self::AnswerAt(_))
    }
}

/// A query that waits for its read index, or for its read index to be applied.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) query: Vec<u8>,
    pub(crate) tag: u64,
    pub(crate) origin: Origin,
    pub(crate) deadline_us: u64,
    pub(crate) wants: Wants,
    /// Known once the quorum has answered.
    pub(crate) index: Option<Index>,
}

/// What a question that waits takes of the memory for what waits: many small ones are a burden, too.
pub(crate) fn question_bytes(query: &[u8]) -> usize {
    query.len() + size_of::<Reading>()
}

/// Those of one group, by token.
#[derive(Debug)]
pub(crate) struct Readings {
    by_token: BTreeMap<u64, Reading>,
    /// So many of them name their entry.
    named: usize,
    due_us: u64,
}

impl Default for Readings {
    fn default() -> Self {
        Self { by_token: BTreeMap::new(), named: 0, due_us: u64::MAX }
    }
}

impl Readings {
    pub(crate) fn len(&self) -> usize {
        self.by_token.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_token.is_empty()
    }

    /// Whether there is room for one more that names its entry, or does not.
    pub(crate) fn has_room(&self, is_named: bool) -> bool {
        if is_named { self.named < NAMED_MAX } else { self.len() - self.named < QUORUM_MAX }
    }

    pub(crate) fn contains(&self, token: u64) -> bool {
        self.by_token.contains_key(&token)
    }

    pub(crate) fn get_mut(&mut self, token: u64) -> Option<&mut Reading> {
        self.by_token.get_mut(&token)
    }

    pub(crate) fn insert(&mut self, token: u64, reading: Reading) {
        self.named += usize::from(reading.wants.is_named());
        self.due_us = self.due_us.min(reading.deadline_us);
        self.by_token.insert(token, reading);
    }

    pub(crate) fn remove(&mut self, token: u64) -> Option<Reading> {
        let reading = self.by_token.remove(&token)?;
        self.named -= usize::from(reading.wants.is_named());
        if self.is_empty() {
            self.due_us = u64::MAX;
        }
        Some(reading)
    }

    /// Takes out those of which this is so, in the order in which they came.
    pub(crate) fn take_if(&mut self, which: impl Fn(&Reading) -> bool) -> Vec<Reading> {
        let tokens = self.by_token.iter().filter(|(_, one)| which(one)).map(|(token, _)| *token);
        let tokens: Vec<u64> = tokens.collect();
        tokens.into_iter().filter_map(|token| self.remove(token)).collect()
    }

    /// Takes out those whose time is up. Not always the first ones: what waited for a leader was asked before it came here.
    pub(crate) fn take_late(&mut self, now_us: u64) -> Vec<Reading> {
        if self.due_us > now_us {
            return Vec::new();
        }
        let late = self.take_if(|one| one.deadline_us <= now_us);
        self.due_us = self.by_token.values().map(|one| one.deadline_us).min().unwrap_or(u64::MAX);
        late
    }

    /// When to look for those whose time is up.
    pub(crate) fn due_us(&self) -> Option<u64> {
        (!self.is_empty()).then_some(self.due_us)
    }

    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = Reading> {
        std::mem::take(self).by_token.into_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(deadline_us: u64, wants: Wants) -> Reading {
        let origin = Origin::Peer { node: coracle_base::NodeId(1), session: 0, request: 0 };
        Reading { query: Vec::new(), tag: deadline_us, origin, deadline_us, wants, index: None }
    }

    #[test]
    fn who_was_asked_first_is_given_up_first_whenever_it_came() {
        let mut readings = Readings::default();
        for (token, deadline_us) in [(1, 50), (2, 20), (3, 60)] {
            readings.insert(token, reading(deadline_us, Wants::Answer));
        }
        let mut late = |now_us| {
            let late = readings.take_late(now_us);
            (late.iter().map(|one| one.tag).collect::<Vec<_>>(), readings.due_us())
        };
        assert_eq!(late(19), (vec![], Some(20)));
        assert_eq!(late(20), (vec![20], Some(50)));
        assert_eq!(late(70), (vec![50, 60], None));
    }

    #[test]
    fn what_waits_for_a_named_entry_takes_no_room_from_others() {
        let mut readings = Readings::default();
        (0..NAMED_MAX as u64).for_each(|token| readings.insert(token, reading(1, Wants::AnswerAt(None))));
        assert_eq!((readings.has_room(true), readings.has_room(false)), (false, true));
        (0..QUORUM_MAX as u64).for_each(|token| readings.insert(1 << 20 | token, reading(1, Wants::Index)));
        assert_eq!((readings.has_room(true), readings.has_room(false)), (false, false));
        assert!(readings.remove(0).is_some() && readings.remove(1 << 20).is_some());
        assert_eq!((readings.has_room(true), readings.has_room(false)), (true, true));
    }
}
