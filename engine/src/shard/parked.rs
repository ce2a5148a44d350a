//! The waiting room of a group: for a leader to be known, or for the present one to know whether it stays one.
//!
//! Invariant: nothing in it is due before `due_us`, which may be too early for what is left.

use std::collections::VecDeque;

use coracle_base::EntryBatch;
use coracle_base::limits::SHARD_UNCOMMITTED_BYTES;
use coracle_io::{Clock, Disk, Net};
use coracle_raft::DataLoss;

use super::Shard;
use super::inbox::Origin;
use super::queries::Question;
use super::readings::question_bytes;
use crate::outcome::Reason;

/// What may wait for a leader, per group.
const PARKED_MAX: usize = 4096;

/// What waits for a leader.
#[derive(Debug)]
pub(crate) enum Parked {
    Propose { entries: EntryBatch, origin: Origin, deadline_us: u64 },
    Query(Question),
}

impl Parked {
    /// When it waits no longer.
    fn deadline_us(&self) -> u64 {
        match self {
            Self::Propose { deadline_us, .. } => *deadline_us,
            Self::Query(question) => question.deadline_us,
        }
    }
}

/// Those of one group, in the order in which they came.
#[derive(Debug)]
pub(crate) struct WaitingRoom {
    queue: VecDeque<Parked>,
    due_us: u64,
}

impl Default for WaitingRoom {
    fn default() -> Self {
        Self { queue: VecDeque::new(), due_us: u64::MAX }
    }
}

impl WaitingRoom {
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    fn is_full(&self) -> bool {
        self.queue.len() >= PARKED_MAX
    }

    fn push(&mut self, parked: Parked) {
        self.due_us = self.due_us.min(parked.deadline_us());
        self.queue.push_back(parked);
    }

    fn pop(&mut self) -> Option<Parked> {
        let first = self.queue.pop_front();
        if self.queue.is_empty() {
            self.due_us = u64::MAX;
        }
        first
    }

    /// Takes out those whose time is up. Not always the first ones: a question is asked once, and may wait here again.
    pub(crate) fn take_late(&mut self, now_us: u64) -> Vec<Parked> {
        if self.due_us > now_us {
            return Vec::new();
        }
        let is_late = |one: &Parked| one.deadline_us() <= now_us;
        let (late, rest): (Vec<Parked>, Vec<Parked>) = self.take_all().partition(is_late);
        rest.into_iter().for_each(|one| self.push(one));
        late
    }

    /// When to look for those whose time is up.
    pub(crate) fn due_us(&self) -> Option<u64> {
        (!self.is_empty()).then_some(self.due_us)
    }

    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = Parked> + use<> {
        std::mem::take(self).queue.into_iter()
    }
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// Entries wait for a leader, or for this one to know whether it stays one.
    pub(super) fn park(&mut self, slot: u32, entries: EntryBatch, origin: Origin) {
        let one = &self.slots[slot as usize];
        if one.raft.data_loss().is_some() {
            return self.refuse(&entries, &origin, Reason::DataLoss, None);
        }
        let deadline_us = self.now_us + self.settings.command_timeout_us;
        if one.parked.is_full() || self.waiting_bytes + entries.bytes().len() > SHARD_UNCOMMITTED_BYTES {
            return self.refuse(&entries, &origin, Reason::Busy, None);
        }
        self.waiting_bytes += entries.bytes().len();
        self.slots[slot as usize].parked.push(Parked::Propose { entries, origin, deadline_us });
        self.set_timer(slot);
    }

    /// The question waits for a leader.
    pub(super) fn park_query(&mut self, slot: u32, question: Question) {
        let one = &mut self.slots[slot as usize];
        if one.raft.data_loss().is_some() {
            return self.refuse_query(&question, Reason::DataLoss, None);
        }
        if one.parked.is_full() {
            return self.refuse_query(&question, Reason::Busy, None);
        }
        self.waiting_bytes += question_bytes(&question.query);
        one.parked.push(Parked::Query(question));
        self.set_timer(slot);
    }

    /// No leader can be waited for: data may be lost, and only an operator can say what is to go on.
    pub(super) fn on_data_loss(&mut self, slot: u32, loss: DataLoss) {
        let group = self.slots[slot as usize].id;
        let DataLoss { above, best: (node, last) } = loss;
        tracing::error!(
            %group, %above, best = %node, %last,
            "data may be lost: so few members have a sound log that nobody can say what was committed. The group stands still; \
             shrink it to the member with the best log, or bring back members that are away"
        );
        self.status.groups_data_loss += 1;
        for parked in self.slots[slot as usize].parked.take_all() {
            match parked {
                Parked::Propose { entries, origin, .. } => {
                    self.waiting_bytes -= entries.bytes().len();
                    // What another node forwarded may have come from an older version, which does not know the reason.
                    let is_forwarded = matches!(origin, Origin::Peer { .. });
                    let reason = if is_forwarded { Reason::NoLeader } else { Reason::DataLoss };
                    self.refuse(&entries, &origin, reason, None);
                }
                Parked::Query(question) => {
                    self.waiting_bytes -= question_bytes(&question.query);
                    self.refuse_query(&question, Reason::DataLoss, None);
                }
            }
        }
    }

    /// A leader may be known (and reachable) now: what waited for one goes its way.
    pub(super) fn release_parked(&mut self, slot: u32) {
        let one = &self.slots[slot as usize];
        let reachable = one
            .raft
            .leader()
            .is_some_and(|leader| leader == self.settings.node || self.transport.is_up(leader));
        if one.parked.is_empty() || !reachable || one.raft.takes_nothing_up() {
            return;
        }
        let group = one.id;
        // One by one, so that each is somewhere to be found; what is parked again goes behind.
        for _ in 0..one.parked.queue.len() {
            let Some(parked) = self.slots[slot as usize].parked.pop() else { break };
            match parked {
                Parked::Propose { entries, origin, .. } => {
                    self.waiting_bytes -= entries.bytes().len();
                    self.status.proposed -= u64::from(entries.count());
                    self.on_propose(group, entries, origin, true);
                }
                Parked::Query(question) => {
                    self.waiting_bytes -= question_bytes(&question.query);
                    self.on_query(group, question);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::query::Consistency;

    #[test]
    fn a_question_that_waits_again_is_given_up_before_those_that_came_after_it_was_asked() {
        let mut room = WaitingRoom::default();
        for (tag, deadline_us) in [(1, 50), (2, 20), (3, 60)] {
            let origin = Origin::Peer { node: coracle_base::NodeId(1), session: 0, request: 0 };
            let consistency = Consistency::Linearizable;
            room.push(Parked::Query(Question { consistency, query: Vec::new(), tag, origin, deadline_us }));
        }
        let tags = |late: Vec<Parked>| {
            let tag = |one: &Parked| if let Parked::Query(question) = one { question.tag } else { 0 };
            late.iter().map(tag).collect::<Vec<_>>()
        };
        assert_eq!((tags(room.take_late(19)), room.due_us()), (vec![], Some(20)));
        assert_eq!((tags(room.take_late(20)), room.due_us()), (vec![2], Some(50)));
        assert_eq!(tags(room.pop().into_iter().collect()), [1], "the order in which they came is kept");
        assert_eq!((tags(room.take_late(60)), room.due_us()), (vec![3], None));
    }
}
