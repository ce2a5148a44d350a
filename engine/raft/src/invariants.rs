//! What holds after every step and every drain, in all builds: the invariants that `group.rs` names.

use crate::group::{Group, Role};
use crate::message::NUMBER_MAX;

impl Group {
    pub(crate) fn assert_invariants(&self) {
        let (last, durable, written) = (self.log.last(), self.ring.durable().get(), self.ring.written());
        assert!(self.log.snapshot().0 <= self.commit && self.commit <= last, "snapshot <= commit <= last");
        assert!(durable <= written && written <= last, "durable <= written <= last");
        assert!(
            self.log.last_term() <= self.state.term && self.state.term.0 <= NUMBER_MAX,
            "terms stay below ours"
        );
        if self.role == Role::Leader {
            assert!(self.ring.ballot(self.ballot()).is_some(), "a leader's ballot is durable");
            assert!(
                self.leader == Some(self.config.id) && self.state.vote == self.config.id,
                "a leader knows itself"
            );
            for peer in &self.peers {
                assert!(
                    peer.match_index < peer.next_index && peer.match_index <= peer.held && peer.held <= last,
                    "a match is in the log"
                );
            }
        }
    }
}
