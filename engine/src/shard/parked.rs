//! The waiting room of a group: for a leader to be known, or for the present one to know whether it stays one.

use coracle_base::EntryBatch;
use coracle_base::limits::SHARD_UNCOMMITTED_BYTES;
use coracle_io::{Clock, Disk, Net};
use coracle_raft::DataLoss;

use super::Shard;
use super::groups::{Parked, question_bytes};
use super::inbox::Origin;
use crate::outcome::Reason;

/// What may wait for a leader, per group.
pub(super) const PARKED_MAX: usize = 4096;

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// Entries wait for a leader, or for this one to know whether it stays one.
    pub(super) fn park(&mut self, slot: u32, entries: EntryBatch, origin: Origin) {
        let one = &self.slots[slot as usize];
        if one.raft.data_loss().is_some() {
            return self.refuse(&entries, &origin, Reason::DataLoss, None);
        }
        let deadline_us = self.now_us + self.settings.command_timeout_us;
        if one.parked.len() >= PARKED_MAX
            || self.waiting_bytes + entries.bytes().len() > SHARD_UNCOMMITTED_BYTES
        {
            return self.refuse(&entries, &origin, Reason::Busy, None);
        }
        self.waiting_bytes += entries.bytes().len();
        self.slots[slot as usize].parked.push_back(Parked::Propose { entries, origin, deadline_us });
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
        for parked in std::mem::take(&mut self.slots[slot as usize].parked) {
            match parked {
                Parked::Propose { entries, origin, .. } => {
                    self.waiting_bytes -= entries.bytes().len();
                    self.refuse(&entries, &origin, Reason::DataLoss, None);
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
        for _ in 0..one.parked.len() {
            let Some(parked) = self.slots[slot as usize].parked.pop_front() else { break };
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
