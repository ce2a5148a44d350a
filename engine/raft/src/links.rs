//! What the beginning and the end of a link's session mean to a group.
//!
//! Invariant: what was said in an earlier session counts for nothing in a later one.

use alloc::vec::Vec;

use coracle_base::NodeId;

use crate::group::{Group, Output, Role};

impl Group {
    pub(crate) fn on_link_up(&mut self, now_us: u64, node: NodeId, out: &mut Vec<Output>) {
        if node == self.config.id || node == NodeId::NONE {
            return;
        }
        let at = self.peer_or_new(node);
        if self.peers[at].link_up {
            self.on_link_down(now_us, node);
        }
        self.peers[at].link_up = true;
        self.peers[at].ask = self.members().is_voter(node) || self.role == Role::Follower;
        self.peers[at].ask_recall = true;
        // What it asked in an earlier session it asks again, if it still has to.
        self.peers[at].recalls = self.peers[at].recalls.min(1);
        if self.role == Role::Leader {
            // The probe that follows is also how the member learns its leader again.
            self.peers[at].restart_link(self.log.last(), self.config.breaks);
            if self.reaches_majority() {
                self.quorum_at = None;
            }
        } else if !self.leader_is_live() {
            self.wait_for_all(now_us);
        }
        self.hold_less(now_us, node, out);
    }

    pub(crate) fn on_link_down(&mut self, now_us: u64, node: NodeId) {
        let Some(at) = self.peer_at(node) else { return };
        self.peers[at].link_up = false;
        self.forget_put_off(node);
        if self.role == Role::Leader {
            self.peers[at].restart_link(self.log.last(), self.config.breaks);
            if !self.reaches_majority() && self.quorum_at.is_none() {
                self.quorum_at = Some(now_us + self.config.election_us_min);
            }
        } else if self.leader == Some(node) && self.leader_live {
            self.leader_live = false;
            self.arm_succession(now_us);
        }
    }
}
