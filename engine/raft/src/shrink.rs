//! The way out when a majority is gone for good: one member that is left becomes the only one, by force.
//!
//! No majority has agreed to it, so Raft's promises end here: what only the others had, committed or not, is lost, and if
//! they were to come back there would be two groups of one name. Whoever asks for this has to see to it that they do not
//! (`engine/src/shard/shrink.rs`). Afterwards everything is as usual: the member leads, and others are added to it.
//!
//! Invariants: (1) the recovery epoch rises with each time, durable together with the new members; (2) the first thing
//! that the new leader says is who the members are, also if it was interrupted: until then the state says that it has not
//! been said; (3) who was left out and is there hears of it, as whoever was removed.

use alloc::vec::Vec;

use coracle_base::NodeId;
use smallvec::SmallVec;

use crate::group::{Group, Output, Role};
use crate::member::{Configured, Members};
use crate::membership::LEAVING_TRIES;
use crate::progress::Place;

/// Why a member did not become the only one. Nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShrinkError {
    /// It is no member of the group, as far as it knows.
    #[error("this node is no member of the group")]
    NotAMember,
    /// A majority of the members can be reached: change them in the usual way.
    #[error("a majority of the members can be reached: no force is needed")]
    HasMajority,
    /// A part of its log is damaged, and a member can be reached whose log is not.
    #[error("this member's own log is damaged, and another member's is not: shrink the group to that one")]
    Suspect,
}

impl Group {
    /// Makes this member, whatever it was, the only one, and lets it campaign: it leads once that is durable.
    ///
    /// # Errors
    /// [`ShrinkError`].
    pub fn shrink(&mut self, now_us: u64, out: &mut Vec<Output>) -> Result<(), ShrinkError> {
        let own = self.config.id;
        if !self.members().contains(own) {
            return Err(ShrinkError::NotAMember);
        }
        if self.reaches_majority() && self.data_loss().is_none() {
            return Err(ShrinkError::HasMajority);
        }
        // What only the others knew is lost anyway; but a log with a hole is none to go on with while there is a better one.
        if !self.is_undamaged() && self.reaches_sound_voter() {
            return Err(ShrinkError::Suspect);
        }
        if self.suspect {
            self.trust_again(now_us, out);
        }
        if self.role == Role::Leader {
            self.become_follower(now_us, self.state.term, out);
        }
        self.state.recovery_epoch += 1;
        let before: SmallVec<[NodeId; 8]> = self.members().iter().map(|member| member.id).collect();
        self.settle(Configured { index: self.state.current.index, members: Members::of_voters([own]) });
        self.state.is_unsaid = true;
        // Those of them that are there hear that they are out.
        let left_out = self.peers.iter_mut().filter(|peer| before.contains(&peer.id));
        left_out.for_each(|peer| peer.place = Place::Leaving { tries: LEAVING_TRIES });
        self.campaign(now_us, true);
        Ok(())
    }
}
