//! When a majority of a group's members is gone for good: a member that is left becomes the only one, by force. What keeps
//! the others from coming back is their place in the cluster, which is taken from them first (`places.rs`).
//!
//! ```text
//!   lost 2 3   every node that is left refuses the directories of 2 and 3 from now on, durable; links start over, so that
//!              all of them hear of it, and of who declared it
//!   shrink     each group, on the node that declared them lost: refused while anybody of its members is neither lost nor
//!              known to have heard just that. Who is left out hears so from the new leader, until it is added again
//! ```
//!
//! Invariant: a group shrinks on one node only, the one that declared its lost members lost; another node would have to declare
//! them anew, which it refuses without force, and all that are left would have to hear of that first.

use coracle_base::{GroupId, NodeId};
use coracle_io::{Clock, Disk, Net};
use coracle_raft::Role;

use super::Shard;
use super::replies::Asked;
use crate::Error;
use crate::cluster::Place;

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// These nodes' places as they are lost. Nothing if this node has said so before.
    pub(super) fn lost(&self, nodes: &[NodeId], force: bool) -> Result<Vec<Place>, Error> {
        let (own, cluster) = (self.settings.node, self.cluster());
        let mut places = Vec::new();
        for node in nodes.iter().copied() {
            self.require_gone(node)?;
            match cluster.places.iter().find(|place| place.node == node && place.is_lost()) {
                Some(place) if place.by == own => {}
                Some(place) if !force => {
                    let by = place.by;
                    let reason = format!(
                        "node {by} has declared it lost: shrink groups there; only if that one is gone for good, force it"
                    );
                    return Err(Error::Place { node, reason });
                }
                _ => places.push(cluster.lose(node, own)),
            }
        }
        Ok(places)
    }

    /// Makes this node the only member of a group. The answer comes when it leads it.
    pub(super) fn on_shrink(&mut self, group: GroupId, reply: Asked<()>) {
        match self.shrink(group) {
            Ok(slot) => self.slots[slot as usize].shrinking.push(reply),
            Err(error) => return reply.answer(Err(error)),
        }
        self.answer_shrunk();
    }

    /// Whoever waits for a group that shrinks hears how it is when this node leads it.
    pub(super) fn answer_shrunk(&mut self) {
        for one in self.slots.iter_mut().filter(|one| !one.shrinking.is_empty()) {
            if one.raft.role() == Role::Leader {
                one.shrinking.drain(..).for_each(|reply| reply.answer(Ok(())));
            }
        }
    }

    fn shrink(&mut self, group: GroupId) -> Result<u32, Error> {
        let slot = self.by_group.get(&group).copied().ok_or(Error::NoGroup(group))?;
        let refused = |reason: String| Err(Error::Shrink { group, reason });
        let (others, one) = (self.others_of(slot), &self.slots[slot as usize]);
        if others.is_empty() && one.raft.hard_state().recovery_epoch > 0 && !one.raft.suspect() {
            // It was done before.
            return Ok(slot);
        }
        if !one.raft.members().contains(self.settings.node) {
            return refused("this node is no member of the group".into());
        }
        if let Some(why) = &one.poisoned {
            return refused(format!("this member stands still: {why}"));
        }
        for node in others.iter().copied() {
            match self.cluster().places.iter().find(|place| place.node == node && place.is_lost()) {
                Some(place) if place.by == self.settings.node => {}
                Some(place) => {
                    return refused(format!("node {} has declared {node} lost: shrink it there", place.by));
                }
                None if !self.transport.is_up(node) => {
                    return refused(format!(
                        "member {node} is not up, and was not declared lost: start it, or declare it lost if it is gone for good"
                    ));
                }
                None if !self.has_heard_of_the_lost(node) => {
                    return refused(format!("member {node} has not heard yet who is lost: try again"));
                }
                None => {}
            }
        }
        let one = &mut self.slots[slot as usize];
        let mut outputs = Vec::new();
        if let Err(error) = one.raft.shrink(self.now_us, &mut outputs) {
            return refused(error.to_string());
        }
        let epoch = one.raft.hard_state().recovery_epoch;
        tracing::warn!(%group, epoch, ?others, last = %one.raft.last(), "by force this node is the only member now");
        outputs.into_iter().for_each(|output| self.on_output(slot, output));
        self.touch(slot);
        Ok(slot)
    }

    /// Its other members: now, and before a change that may still be undone.
    fn others_of(&self, slot: u32) -> Vec<NodeId> {
        let state = self.slots[slot as usize].raft.hard_state();
        let previous = state.previous.iter().flat_map(|previous| previous.members.iter());
        let both = state.current.members.iter().chain(previous);
        let mut others: Vec<NodeId> = both.map(|member| member.id).collect();
        others.sort_unstable();
        others.dedup();
        others.retain(|node| *node != self.settings.node);
        others
    }

    /// Whether a node has said of everybody that is lost just what is known here.
    fn has_heard_of_the_lost(&self, node: NodeId) -> bool {
        let told = self.transport.link(node).map_or(&[][..], |link| &link.places);
        self.cluster().places.iter().filter(|place| place.is_lost()).all(|place| told.contains(place))
    }
}
