//! Elections of many groups at once: so many a turn, and no more while the disk has enough of them to do.
//!
//! When a node dies, thousands of groups want to campaign within the same few milliseconds. Together they cost few writes,
//! since all votes of a turn are in one batch; but a turn that campaigns for all of them would hold up everybody else, and
//! their votes would wait for one another. So a group whose time has come waits here until it is let through: those that
//! commands wait for first, the others in the order in which their time came.
//!
//! Invariants: (1) a group is in the queue at most once, and wants no other timer meanwhile; (2) what waits is let through in
//! the end, whatever the disk does: only votes that are being written count.

use std::collections::VecDeque;

use coracle_io::{Clock, Disk, Net};
use coracle_raft::{Input, Role};
use coracle_wal::{BatchSeq, Durable};

use super::Shard;

/// Campaigns begun in one turn.
const CAMPAIGNS_PER_TURN: usize = 512;
/// Batches with votes that may be on their way to the disk; no campaign begins beyond that.
const BATCHES_MAX: usize = 4;

/// Groups that want to campaign.
#[derive(Debug, Default)]
pub(super) struct Elections {
    /// Those that somebody waits for.
    urgent: VecDeque<u32>,
    others: VecDeque<u32>,
    /// Batches with candidates' own votes that are not durable, oldest first.
    voting: VecDeque<BatchSeq>,
}

impl Elections {
    pub(super) fn push(&mut self, slot: u32, is_urgent: bool) {
        if is_urgent { self.urgent.push_back(slot) } else { self.others.push_back(slot) }
    }

    fn pop(&mut self) -> Option<u32> {
        self.urgent.pop_front().or_else(|| self.others.pop_front())
    }

    pub(super) fn waiting(&self) -> usize {
        self.urgent.len() + self.others.len()
    }

    /// A candidate's vote for itself is in this batch.
    pub(super) fn on_vote_staged(&mut self, batch: BatchSeq) {
        if self.voting.back() != Some(&batch) {
            self.voting.push_back(batch);
        }
    }

    /// How many may begin now.
    fn room(&mut self, durable: Durable) -> usize {
        while self.voting.pop_front_if(|batch| durable.covers(*batch)).is_some() {}
        if self.voting.len() < BATCHES_MAX { CAMPAIGNS_PER_TURN } else { 0 }
    }
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// A group's time has come. A leader's, or what is not about an election, is not held up.
    pub(super) fn on_group_timer(&mut self, slot: u32) {
        let one = &mut self.slots[slot as usize];
        if one.raft.role() == Role::Leader || one.raft.members().is_alone(self.settings.node) {
            return self.input(slot, Input::Tick);
        }
        if !one.election_waits {
            one.election_waits = true;
            let is_urgent = !one.parked.is_empty();
            self.elections.push(slot, is_urgent);
        }
    }

    /// Lets some of those that wait campaign.
    pub(super) fn begin_elections(&mut self) {
        if self.elections.waiting() == 0 {
            return;
        }
        let room = self.elections.room(self.wal.durable());
        for _ in 0..room {
            let Some(slot) = self.elections.pop() else { break };
            let one = &mut self.slots[slot as usize];
            one.election_waits = false;
            // Somebody else may lead by now, or have this member's vote.
            if one.raft.deadline_us().is_some_and(|at| at <= self.now_us) {
                self.input(slot, Input::Tick);
            }
            self.touch(slot);
        }
        // Those that wait for the disk are let through in the turn in which it answers.
        self.again |= room > 0 && self.elections.waiting() > 0;
        self.status.elections_waiting = self.elections.waiting() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_waited_for_comes_first_and_the_others_in_order() {
        let mut elections = Elections::default();
        (1..=3).for_each(|slot| elections.push(slot, false));
        elections.push(9, true);
        let order: Vec<_> = std::iter::from_fn(|| elections.pop()).collect();
        assert_eq!(order, [9, 1, 2, 3]);
    }
}
