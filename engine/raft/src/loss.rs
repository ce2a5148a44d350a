//! So few members have a sound log that nobody can say any more what was committed: the group stands still, and says so.
//!
//! ```text
//!   1 suspect, asks 2 3, and again      what 1 asks is heard by 2 and 3: its log is not sure to be whole
//!   2 suspect, asks 1 3, and again      no answer of 2 counts for 1, nor one of 1 for 2: neither becomes whole by the other
//!   3 sound                             one of three elects nobody who could bring them up  ─> lost, says each of them
//! ```
//!
//! Entries may be gone that were committed: those that only the suspect ones had. That they were not cannot be proven, so none
//! is given up by itself. Nothing is decided here: no leader can come of it anyway, by the rules of votes (`recall.rs`). It
//! only becomes known, so that nobody waits for what does not come. The way out is an operator's word (`shrink.rs`).
//!
//! Who asks once may be whole a moment later; who asks again, an election timeout after that, has not heard what it needs.
//! Whoever may vote for good logs by now (`bound`) asks no more.

use alloc::vec::Vec;

use coracle_base::{Index, NodeId};

use crate::Members;
use crate::group::{Group, Output, Role};
use crate::message::Message;
use crate::progress::Peer;
use crate::recall::VOTERS_MIN;

/// Asking so often is waiting in vain.
const ASKED_IN_VAIN: u8 = 2;

/// Nobody can say what was committed, and nothing but force changes that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataLoss {
    /// What this member holds ends here: whatever was committed above it may be lost.
    pub above: Index,
    /// Who has the best log of all that were heard of, sound or not, and where it ends.
    pub best: (NodeId, Index),
}

impl Group {
    /// Whether so few members have a sound log that the group cannot go on by itself.
    pub fn data_loss(&self) -> Option<DataLoss> {
        if self.leader.is_some() {
            return None;
        }
        let is_sound = |node| match self.peer_at(node) {
            Some(at) => self.peers[at].recalls < ASKED_IN_VAIN,
            None => node != self.config.id || !self.recalls_in_vain(),
        };
        let (current, previous) = (&self.state.current, self.state.previous.as_deref());
        let told = self.recall.iter().flat_map(|recall| recall.known_members());
        let mut each = core::iter::once(current).chain(previous).chain(told).map(|one| &one.members);
        // One alone is made whole by the answers of the others, if answers are enough for it.
        let may_heal = |members: &Members| {
            let unsound = members.iter().filter(|one| members.is_voter(one.id) && !is_sound(one.id));
            unsound.count() < 2 && members.deciding() >= VOTERS_MIN
        };
        // A later configuration than one of these may have a leader yet.
        if each.any(|members| members.is_empty() || members.quorum(is_sound) || may_heal(members)) {
            return None;
        }
        let above = self.ring.durable().get();
        let own = (self.log.term_at(above).unwrap_or_default(), above, self.config.id);
        let heard = self.recall.as_ref().and_then(|recall| recall.best_heard());
        let (_, index, node) = heard.map_or(own, |heard| heard.max(own));
        Some(DataLoss { above, best: (node, index) })
    }

    /// Another member's log is not sure to be whole.
    pub(crate) fn note_recall(&mut self, now_us: u64, from: NodeId, out: &mut Vec<Output>) {
        let Some(at) = self.peer_at(from) else { return };
        self.peers[at].recalls = self.peers[at].recalls.saturating_add(1);
        if self.role == Role::Leader && self.leads_in_vain() {
            self.become_follower(now_us, self.state.term, out);
        }
        self.tell_loss(out);
    }

    /// Whether so many members have everything from us, and yet cannot rely on themselves, that nothing is committed any more:
    /// what they have forgotten, an older leader cannot make up for.
    fn leads_in_vain(&self) -> bool {
        let is_lost = |peer: &Peer| peer.recalls >= ASKED_IN_VAIN && peer.trusted();
        !self.members().quorum(|node| !self.peers.iter().any(|peer| peer.id == node && is_lost(peer)))
    }

    /// Who says this relies on its log again.
    pub(crate) fn note_sound(&mut self, at: usize, message: &Message) {
        if self.peers[at].recalls == 0 {
            return;
        }
        let is_sound = match message {
            Message::PreVote { .. } | Message::Vote { .. } | Message::PreVoteReply { granted: true, .. } => {
                true
            }
            Message::VoteReply { ballot } => ballot.get().vote == self.config.id,
            Message::AppendReply(reply) => !reply.suspect,
            Message::RecallReply(reply) => !reply.suspect,
            _ => false,
        };
        if is_sound {
            self.peers[at].recalls = 0;
        }
    }

    /// Says once that data may be lost.
    pub(crate) fn tell_loss(&mut self, out: &mut Vec<Output>) {
        let loss = self.data_loss();
        let was_told = core::mem::replace(&mut self.loss_told, loss.is_some());
        if let Some(loss) = loss.filter(|_| !was_told) {
            out.push(Output::DataLost(loss));
        }
    }

    /// Whether a member with a sound log can be reached.
    pub(crate) fn reaches_sound_voter(&self) -> bool {
        let is_sound = |peer: &Peer| peer.link_up && peer.recalls == 0;
        self.peers.iter().any(|peer| is_sound(peer) && self.members().is_voter(peer.id))
    }
}
