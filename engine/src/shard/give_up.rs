//! A leader whose machine stands still answers nobody, though its group votes and replicates. Where another member's machine
//! goes on (the log could not be read back here, memory failed), that member should lead.
//!
//! Invariant: a group is handed over for this reason at most once a minute by each member, so members that all stand still
//! (a command at which every machine panics) do not pass it around without end; and who stands still declines (`stall.rs`), unless
//! it speaks an older version.

use coracle_io::{Clock, Disk, Net};
use coracle_raft::Role;

use super::Shard;

/// How long a member keeps what it could not give to one that does better.
pub(super) const AGAIN_US: u64 = 60_000_000;

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// The group may be led here by a machine that stands still: then another member is to lead.
    pub(super) fn give_up_if_poisoned(&mut self, slot: u32) {
        let one = &self.slots[slot as usize];
        if one.poisoned.is_none() || one.raft.role() != Role::Leader || self.now_us < one.given_up_until_us {
            return;
        }
        let group = one.id;
        if self.begin_transfer(slot) {
            tracing::warn!(%group, "its machine stands still here: another member is to lead");
            self.slots[slot as usize].given_up_until_us = self.now_us + AGAIN_US;
        }
    }
}
