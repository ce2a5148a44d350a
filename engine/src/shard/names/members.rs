//! Who the members are: of a named group, as its leader tells the directory, and of the directory itself, which every node
//! with a place in the cluster becomes a member of.
//!
//! Both come to be so in the end, as long as there are leaders: what is not so yet is tried again each second. Until then the
//! group's own log is the truth.

use std::sync::Arc;

use coracle_base::{EntryBatch, EntryKind, GroupId, Index, NodeId, ShardId};
use coracle_io::{Clock, Disk, Net};
use coracle_raft::{Change, Membership, Role};

use super::Seat;
use crate::directory::{self, DIRECTORY, NamedGroup};
use crate::machine::Wire;
use crate::outcome::Reason;
use crate::shard::Shard;
use crate::shard::inbox::{Command, Origin};

/// What is not as it ought to be is tried again after so long.
pub(super) const AGAIN_US: u64 = 1_000_000;
/// Voters of the directory's group, if the cluster was formed of fewer: further nodes only listen.
const VOTERS_MAX: usize = 7;

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// This node, with its data directory.
    pub(super) fn own_seat(&self) -> Seat {
        Seat { node: self.settings.node, incarnation: self.places.incarnation() }
    }

    fn seat(&self, node: NodeId) -> Option<Seat> {
        Some(Seat { node, incarnation: self.cluster().incarnation(node)? })
    }

    /// A group of this node that has this directory as a member by the directory of names, and no word of its own here: it is
    /// about to begin, or waits for its leader.
    pub(in crate::shard) fn named_with(&self, node: NodeId, incarnation: u64) -> Option<GroupId> {
        let (own, other) = (self.own_seat(), Seat { node, incarnation });
        let is_settled = |group: &GroupId| {
            let slot = self.by_group.get(group).map(|slot| &self.slots[*slot as usize]);
            let says = |current: &coracle_raft::Configured| {
                current.index > Index::ZERO || !current.members.is_empty()
            };
            self.recovered.contains_key(group) || slot.is_some_and(|one| says(&one.raft.hard_state().current))
        };
        let mut known = self.names.known.values();
        let is_it = |group: &&Arc<NamedGroup>| {
            group.seats().contains(&own) && group.seats().contains(&other) && !is_settled(&group.id())
        };
        known.find(is_it).map(|group| group.id())
    }

    /// These nodes as founders of a new group; all there are if none is named. A directory whose place is known to be
    /// another's soon founds nothing more: who knows the other one would not begin the group.
    pub(super) fn seats_for(&self, mut nodes: Vec<NodeId>) -> Result<Vec<Seat>, Reason> {
        if nodes.is_empty() {
            nodes = self.cluster().nodes();
            nodes.retain(|node| self.has_place(*node) && !self.is_being_replaced(*node));
        }
        nodes.sort_unstable();
        let is_twice = nodes.windows(2).any(|pair| pair[0] == pair[1]);
        if let Some(node) = nodes.iter().find(|node| self.is_being_replaced(**node)) {
            return Err(Reason::NotJoined(*node));
        }
        let seats: Option<Vec<Seat>> = nodes.into_iter().map(|node| self.seat(node)).collect();
        seats.filter(|_| !is_twice).ok_or(Reason::NotAMember)
    }

    /// A group is led here from now on, or its members change.
    pub(in crate::shard) fn note_members(&mut self, slot: u32) {
        let group = self.slots[slot as usize].id;
        if directory::is_drawn(group) {
            self.names.reporting.insert(group);
        }
        if group == DIRECTORY {
            self.skip_uids(slot);
        }
        if directory::is_drawn(group) || group == DIRECTORY {
            self.try_names_at(self.now_us + AGAIN_US / 4);
        }
    }

    /// A directory that was cut down to one member by force may have forgotten what it drew. So the first that its new leader
    /// does, before any wish, is to pass over more uids than it can have drawn since.
    fn skip_uids(&mut self, slot: u32) {
        let epoch = u64::from(self.slots[slot as usize].raft.hard_state().recovery_epoch);
        if epoch > 0 {
            self.propose_name(&directory::Command::Skip { epoch }, Origin::Slot(Arc::default()));
        }
    }

    /// The leaders of named groups tell the directory who their members are, once that is committed.
    pub(super) fn report_members(&mut self) {
        let mut is_all_told = true;
        for group in std::mem::take(&mut self.names.reporting) {
            let Some(slot) = self.by_group.get(&group).copied() else { continue };
            let Some(known) = self.names.known.get(&group).cloned() else { continue };
            let raft = &self.slots[slot as usize].raft;
            let configured = &raft.hard_state().current;
            if raft.role() != Role::Leader || configured.index <= known.members_index() {
                continue;
            }
            let seats: Option<Vec<Seat>> =
                configured.members.iter().map(|member| self.seat(member.id)).collect();
            if seats.as_deref() == Some(known.seats()) {
                continue;
            }
            self.names.reporting.insert(group);
            is_all_told = false;
            let is_leaving = |one: &coracle_raft::Member| one.membership() == Membership::Leaving;
            if configured.index > raft.commit() || configured.members.iter().any(is_leaving) {
                continue;
            }
            if let Some(members) = seats {
                let index = configured.index;
                self.report(group, index, members);
            }
        }
        if !is_all_told {
            self.try_names_at(self.now_us + AGAIN_US);
        }
    }

    /// Nobody waits for the answer: what the directory has afterwards tells.
    fn report(&mut self, id: GroupId, index: Index, members: Vec<Seat>) {
        let (mut bytes, mut entries) = (Vec::new(), EntryBatch::new());
        directory::Command::Members { id, index, members }.encode(&mut bytes);
        if entries.push(0, EntryKind::Command, &bytes).is_err() {
            return;
        }
        let origin = Origin::Slot(Arc::default());
        if self.transport.shard() == ShardId(0) {
            self.on_propose(DIRECTORY, entries, origin, true);
        } else if let Some(first) = self.siblings.first() {
            let _ = first.push(Command::Propose { group: DIRECTORY, entries, origin });
        }
    }

    /// The directory's leader makes every node that is there a member.
    pub(super) fn invite_nodes(&mut self) {
        let Some(slot) = self.by_group.get(&DIRECTORY).copied() else { return };
        let raft = &self.slots[slot as usize].raft;
        if raft.role() != Role::Leader {
            return;
        }
        let members = raft.members();
        let voters = members.iter().filter(|one| one.membership() != Membership::Learner).count();
        let is_new =
            |node: &NodeId| !members.contains(*node) && self.transport.is_up(*node) && self.has_place(*node);
        if let Some(node) = self.cluster().nodes().into_iter().find(is_new) {
            let change = if voters < VOTERS_MAX { Change::Promotable(node) } else { Change::Learner(node) };
            // Refused while another change is under way; it is tried again.
            let _ = self.change(slot, false, &[change], 0, &Origin::Slot(Arc::default()));
        }
        self.try_names_at(self.now_us + AGAIN_US);
    }
}
