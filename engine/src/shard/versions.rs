//! What an older version of the protocol does not know is not begun while a member speaks it, and is never said to it.
//!
//! Version 1 knows neither changes of members nor the handing over of leadership. Both are refused by name while the link to
//! a member, old or new, is up and speaks it. A link that is down has no version: its member may have been upgraded, may come
//! back as it was, or never; were it waited for, a dead one could not be taken out of its group any more. So it does not
//! count, and may come back with version 1 when the members have changed. That is safe, because nothing of the change is
//! ever said to it: it stands still where the change begins, as one that is down, and without the change's entry, which a
//! majority has, it wins no election. When it is upgraded, its link is a new one, and it catches up.
//!
//! Versions 1 and 2 do not know that a leader says what it counts on (`held` of an append). To them it is not said, and they
//! find nothing out; yet they count for nothing until they have said anew what they hold, and are fed if it is less.
//!
//! Up to version 3 nobody says how far it is durable, nor what it remembers. A member that has forgotten its votes asks
//! those in vain, and waits for their upgrade.
//!
//! Invariant: no message leaves on a link, or is taken from one, that the link's version does not know.

use coracle_base::run::Entries;
use coracle_base::{EntryKind, NodeId};
use coracle_io::{Clock, Disk, Net};
use coracle_raft::Message;

use super::Shard;
use crate::outcome::Reason;
use crate::transport::envelope::EnvelopeError;

/// Whether only newer versions than 1 know the message. An append is judged by its entries besides.
fn is_of_members(message: &Message) -> bool {
    match message {
        Message::PreVote { forced, .. } | Message::Vote { forced, .. } => *forced,
        Message::Snapshot { configured, .. } => configured.is_some(),
        Message::Append { changes, .. } => !changes.is_empty(),
        Message::TimeoutNow { .. } | Message::Removed { .. } => true,
        _ => false,
    }
}

/// Whether only versions from 4 on know it.
fn is_of_memory(message: &Message) -> bool {
    matches!(message, Message::Recall { .. } | Message::RecallReply(_))
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// The message as the version of its link knows it.
    pub(super) fn in_words_of(&self, to: NodeId, mut message: Message) -> Message {
        if let Message::Append { held, .. } = &mut message {
            *held &= self.knows_held(to);
        }
        message
    }

    fn knows_marks(&self, node: NodeId) -> bool {
        self.transport.link(node).is_some_and(|link| link.speaks_marks())
    }

    fn knows_held(&self, node: NodeId) -> bool {
        self.transport.link(node).is_some_and(|link| link.speaks_held())
    }

    fn is_outdated(&self, node: NodeId) -> bool {
        self.transport.link(node).is_some_and(|link| link.session().is_some() && !link.speaks_members())
    }

    /// Refuses what one of the group's members, or of these, would not know of.
    pub(super) fn require_members(
        &self,
        slot: u32,
        more: impl IntoIterator<Item = NodeId>,
    ) -> Result<(), Reason> {
        let members = self.slots[slot as usize].raft.members().iter().map(|member| member.id);
        match members.chain(more).find(|node| self.is_outdated(*node)) {
            Some(node) => Err(Reason::NeedsUpgrade(node)),
            None => Ok(()),
        }
    }

    /// Refuses to send a wish to a leader that would take it for an entry of the log.
    pub(super) fn require_members_at(&self, leader: Option<NodeId>) -> Result<(), Reason> {
        match leader.filter(|leader| self.is_outdated(*leader)) {
            Some(node) => Err(Reason::NeedsUpgrade(node)),
            None => Ok(()),
        }
    }

    /// Whether a message, its entries included, is known to the version of its link. Entries are looked through for links
    /// of version 1 only.
    pub(super) fn is_known_at(&self, slot: u32, to: NodeId, message: &Message) -> bool {
        if is_of_memory(message) && !self.knows_marks(to) {
            return false;
        }
        if !self.is_outdated(to) {
            return true;
        }
        let one = &self.slots[slot as usize];
        let has_members =
            |first, bytes| Entries::new(first, bytes).any(|entry| entry.header.kind == EntryKind::Config);
        let entries_have = match message.entries() {
            None => false,
            Some((first, _)) if first < one.log.first() => {
                let read = one.fetched.iter().filter(|(node, from, ..)| (*node, *from) == (to, first));
                read.into_iter().any(|(.., body)| has_members(first, body))
            }
            Some((first, last)) => {
                one.log.pieces(first, last).any(|(first, _, bytes)| has_members(first, bytes))
            }
        };
        let is_known = !is_of_members(message) && !entries_have;
        if !is_known {
            // Said again with every try, which the group's consensus makes now and then.
            tracing::warn!(group = %one.id, %to, "a member runs a version that knows no changes of members, and stands still: upgrade it");
        }
        is_known
    }

    /// The other side keeps to the version that was agreed.
    pub(super) fn check_version(&self, from: NodeId, message: &Message) -> Result<(), EnvelopeError> {
        let is_held = matches!(message, Message::Append { held: true, .. });
        let is_early = is_held && !self.knows_held(from) || is_of_memory(message) && !self.knows_marks(from);
        match is_of_members(message) && self.is_outdated(from) || is_early {
            true => Err(EnvelopeError::Message("a message of a newer version than was agreed".into())),
            false => Ok(()),
        }
    }
}
