//! A member that was taken out of a named group gives up what it stored of it, and gets it back when it is a member again.
//!
//! ```text
//!   the directory does not name this node, and the group's log here says so, too, committed
//!        → the log is released up to what is applied, with nothing in the snapshot's place; files go when that is durable
//!   the directory names it again → another member is asked for its snapshot, as after damage
//! ```
//!
//! Invariants: (1) its promises stay: term, vote, members, and the index and term of its last entry, so that it votes as it would
//! have; it must not come back as if it had never been there; (2) a state that was given up is never taken for one.

use coracle_base::{GroupId, Index};
use coracle_io::{Clock, Disk, Net};
use coracle_raft::Role;

use super::members::AGAIN_US;
use crate::directory::NamedGroup;
use crate::panics::caught;
use crate::shard::Shard;
use crate::shard::groups::{GAVE_UP, Held, Slot, Snapshot};
use crate::shard::restore::MachineState;

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// Whether this node is a member of a group, as the directory has it now.
    pub(super) fn look_at_membership(&mut self, group: &NamedGroup) {
        let Some(slot) = self.by_group.get(&group.id()).copied() else { return };
        if !group.seats().contains(&self.own_seat()) {
            self.names.left.insert(group.id());
            self.try_names_at(self.now_us);
            return;
        }
        self.names.left.remove(&group.id());
        let one = &mut self.slots[slot as usize];
        // An old directory may say so of a time before it was taken out.
        if matches!(one.state, MachineState::GivenUp) && self.names.is_confirmed {
            let reason = "it is a member again".to_owned();
            one.state = MachineState::Needed { reason, ask_us: self.now_us };
            self.status.groups_restoring += 1;
            self.set_timer(slot);
        }
    }

    /// Members that were taken out, and may not have known so, or have been busy.
    pub(super) fn step_left(&mut self) {
        for group in std::mem::take(&mut self.names.left) {
            let slot = self.by_group.get(&group).copied();
            if slot.is_some_and(|slot| !self.is_given_up(slot) && !self.give_state_up(slot)) {
                self.names.left.insert(group);
            }
        }
        if !self.names.left.is_empty() {
            self.try_names_at(self.now_us + AGAIN_US);
        }
    }

    fn is_given_up(&self, slot: u32) -> bool {
        let one = &self.slots[slot as usize];
        matches!(one.state, MachineState::GivenUp) || one.raft.last() == Index::ZERO
    }

    /// Whether it could.
    fn give_state_up(&mut self, slot: u32) -> bool {
        let own = self.settings.node;
        let one = &mut self.slots[slot as usize];
        if !one.is_whole() && is_out(one, own) && one.raft.first() > one.raft.last() {
            // It was a member again, and did not get anything in that time.
            one.state = MachineState::GivenUp;
            self.status.groups_restoring -= 1;
            return true;
        }
        let (group, index) = (one.id, one.applied);
        let Some(term) = one.raft.term_at(index).filter(|_| is_out(one, own) && is_at_rest(one)) else {
            return false;
        };
        if index == Index::ZERO {
            return true; // there is nothing
        }
        self.end_sends_of(slot);
        if let Some(part) = self.slots[slot as usize].part.take() {
            self.snapshots.remove_part(&mut self.disk, part);
        }
        let batch = self.wal.put_snapshot(group, index, term, &[], GAVE_UP);
        self.staged_snapshot(slot, batch, Held::Inline(Snapshot { index, term, bytes: GAVE_UP.to_vec() }));
        let empty = self.machine_of(group);
        let one = &mut self.slots[slot as usize];
        // Nobody is to get it from here.
        (one.snapshot, one.want_checkpoint) = (None, false);
        one.settle_wish();
        one.state = MachineState::GivenUp;
        if let Some(machine) = empty {
            one.machine = machine;
        }
        tracing::info!(%group, %index, "this node was taken out of the group: its state is given up, its promises are kept");
        true
    }

    fn machine_of(&self, group: GroupId) -> Option<Box<dyn crate::Machine>> {
        let (machines, named) = (self.names.machines.clone()?, self.names.known.get(&group)?);
        caught(|| machines(named.name(), named.argument())).ok()?
    }
}

/// Whether the group's own log says that a node is no member, and that can never be undone.
fn is_out(one: &Slot, node: coracle_base::NodeId) -> bool {
    let state = one.raft.hard_state();
    let is_certain = state.previous.is_none() || state.current.index <= one.raft.commit();
    is_certain && state.current.index > Index::ZERO && !state.current.members.contains(node)
}

/// Whether nothing of it is under way.
fn is_at_rest(one: &Slot) -> bool {
    let is_sound = one.is_ready() && one.poisoned.is_none() && !one.is_deaf() && !one.raft.suspect();
    let is_busy = one.writing.is_some() || one.snapshot_in_flight.is_some() || one.apply_read;
    let is_applied = one.applied == one.raft.commit() && one.applied <= one.raft.durable();
    is_sound && !is_busy && is_applied && one.raft.role() == Role::Follower
}
