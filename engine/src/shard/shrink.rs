//! When a majority of a group's members is gone for good: a member that is left becomes the only one, by force. What keeps
//! the others from coming back is their place in the cluster, which is taken from them first (`places.rs`).
//!
//! ```text
//!   lost 2 3   every node that is left refuses the directories of 2 and 3 from now on, durable; links start over, so that
//!              all of them hear of it
//!   shrink     each group, on the node that holds most of it: refused while anybody of its members is neither lost nor
//!              known to refuse the lost ones
//! ```
//!
//! Invariant: a group shrinks only where all of its other members are lost, or are up and refuse those that are. So the
//! members that are left out, lost or not, have no majority among whom this node can hear of, and those that are not lost
//! learn from the new leader that they are out, until they are added again.

use coracle_base::{GroupId, NodeId};
use coracle_io::{Clock, Disk, Net};

use super::Shard;
use crate::Error;
use crate::cluster::Cluster;

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// The cluster without whoever has these nodes' places, which nobody gives away for now.
    pub(super) fn lost(&self, nodes: &[NodeId]) -> Result<Cluster, Error> {
        let wrong = |node: NodeId, reason: &str| Err(Error::Place { node, reason: reason.into() });
        let mut cluster = self.cluster().clone();
        for node in nodes.iter().copied() {
            if node == self.settings.node {
                return wrong(node, "it is this node, which is not lost");
            }
            if !cluster.nodes().contains(&node) {
                return wrong(node, "it has no place here");
            }
            if self.transport.is_up(node) {
                return wrong(node, "it is up, so it is not lost");
            }
            cluster = cluster.lose(node);
        }
        Ok(cluster)
    }

    /// Makes this node the only member of a group; it leads it then.
    pub(super) fn shrink(&mut self, group: GroupId) -> Result<(), Error> {
        let slot = self.by_group.get(&group).copied().ok_or(Error::NoGroup(group))?;
        let refused = |reason: String| Error::Shrink { group, reason };
        let others = self.others_of(slot);
        for node in others.iter().copied().filter(|node| self.has_place(*node)) {
            if !self.transport.is_up(node) {
                let reason = format!(
                    "member {node} is not up, and was not declared lost: start it, or declare it lost if it is gone for good"
                );
                return Err(refused(reason));
            }
            if !self.refuses_the_lost(node) {
                let reason = format!(
                    "member {node} has not heard yet who is lost: try again, or declare it there, too"
                );
                return Err(refused(reason));
            }
        }
        let one = &mut self.slots[slot as usize];
        let mut outputs = Vec::new();
        one.raft.shrink(self.now_us, &mut outputs).map_err(|error| refused(error.to_string()))?;
        let epoch = one.raft.hard_state().recovery_epoch;
        tracing::warn!(%group, epoch, ?others, last = %one.raft.last(), "by force this node is the only member now");
        outputs.into_iter().for_each(|output| self.on_output(slot, output));
        self.touch(slot);
        Ok(())
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

    /// Whether a node has said that it has taken all those places, too, that this one has taken.
    fn refuses_the_lost(&self, node: NodeId) -> bool {
        let told = self.transport.link(node).map_or(&[][..], |link| &link.places);
        let mut lost = self.cluster().places.iter().filter(|place| place.incarnation == 0);
        lost.all(|place| {
            told.iter().any(|told| told.node == place.node && told.generation >= place.generation)
        })
    }
}
