//! The entry cache: what groups hold in memory for members that are behind, although it is on disk and applied. Bounded
//! in bytes over all groups of the shard; who holds much gives first to nobody's advantage: groups give in turn.
//!
//! Not bounded here: entries that are not durable or not applied yet. Those are bounded where they come in.

use coracle_base::Index;
use coracle_io::{Clock, Disk, Net};

use super::Shard;
use super::groups::Slot;

/// Groups that are asked to give in one turn: a turn stays short, whatever there is to free.
const GROUPS_PER_TURN: usize = 64;

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// Frees what nobody needs in memory: on disk and applied here, and held by every member that can be reached.
    pub(super) fn evict(&mut self, slot: u32) {
        let one = &self.slots[slot as usize];
        self.free(slot, settled(one).min(one.raft.acknowledged_by_reachable()));
    }

    /// While the cache is over its bound, one group after the other gives up all that it holds for others: they are served
    /// from files then.
    pub(super) fn trim_cache(&mut self) {
        for _ in 0..GROUPS_PER_TURN.min(self.slots.len()) {
            if self.arena_bytes <= self.settings.entry_cache_bytes {
                return;
            }
            self.cache_hand = (self.cache_hand + 1) % self.slots.len() as u32;
            self.free(self.cache_hand, settled(&self.slots[self.cache_hand as usize]));
        }
    }

    fn free(&mut self, slot: u32, upto: Index) {
        let log = &mut self.slots[slot as usize].log;
        let before = log.bytes();
        log.evict(upto);
        self.arena_bytes = self.arena_bytes + log.bytes() - before;
    }
}

/// The last entry that this node itself needs in memory no more. A machine that has failed will apply nothing, and one
/// that waits for its state will read back what it has to apply.
fn settled(slot: &Slot) -> Index {
    let durable = slot.raft.durable();
    if slot.poisoned.is_some() || !slot.is_ready() { durable } else { durable.min(slot.applied) }
}
