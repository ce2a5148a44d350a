//! How a command ends: exactly one of Done, NotDone and Unknown, as types from the core to the client.

use std::fmt;
use std::time::Duration;

use coracle_base::{Index, NodeId};

/// How a command (or a query) ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<R = Vec<u8>> {
    /// It was applied on a majority's durable log, and this is the machine's reply.
    Done(Done<R>),
    /// It certainly did not happen and never will: safe to try again.
    NotDone(NotDone),
    /// It may have happened, may happen yet, or never: only the application can tell.
    Unknown(Unknown),
}

/// An applied command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done<R = Vec<u8>> {
    /// What the machine answered.
    pub reply: R,
    /// Its place in the group's log; for a query, the index that was applied when it was answered.
    pub index: Index,
    /// The node that answered: the group's leader, or this one for a question that its own machine answers.
    pub leader: NodeId,
}

/// A command that did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not done: {reason}; try again in {} ms", retry_after.as_millis())]
pub struct NotDone {
    /// Why.
    pub reason: Reason,
    /// When trying again may help.
    pub retry_after: Duration,
    /// Who leads the group now, if that is known.
    pub leader: Option<NodeId>,
}

/// Why a command did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No leader could be reached in time.
    NoLeader,
    /// A buffer on the way is full: the caller is faster than the disk.
    Busy,
    /// The disk is full; commands are taken again when there is room.
    DiskFull,
    /// The command is larger than the engine takes.
    TooLarge,
    /// This node does not have the group.
    NoGroup,
    /// The node is stopping or has stopped.
    Stopping,
    /// A later leader's entry took its place in the log.
    Overwritten,
    /// The group's machine has failed on this node and does not apply any more.
    Poisoned,
    /// An earlier change of members is still under way, or the leader is too new to begin one.
    ChangeUnderWay,
    /// The members are what they would be.
    NothingToChange,
    /// The node is not a member (or not a voter, where one is needed), is named twice, or is no node of the cluster.
    NotAMember,
    /// No voter would be left.
    LastVoter,
    /// The group would have more members than it may have.
    TooManyMembers,
    /// No majority of the new members, or nobody who could lead, can be reached now.
    NoLiveQuorum,
    /// The successor did not take over in time: the leader leads on.
    NotHandedOver,
    /// This member runs a version that knows neither changes of members nor the handing over of leadership: upgrade it, or
    /// stop it, and try again.
    NeedsUpgrade(NodeId),
    /// The leader's node has no link to this node, or has not met it since it joined the cluster: start it, and try again.
    NotJoined(NodeId),
    /// This node's machine has not come so far in time.
    NotApplied,
    /// The log with the entry asked for is released: whether it was of that term, nobody knows any more.
    Released,
    /// The group was deleted from the directory. Its name may be another group's by now.
    Deleted,
    /// That is no name of a group.
    BadName,
    /// So few members have a sound log that nobody can say what was committed: the group stands still, until an operator
    /// shrinks it to one of them.
    DataLoss,
}

impl Reason {
    /// Those that say all by themselves. Their numbers between nodes are their places here, from 1 on.
    const PLAIN: [Self; 15] = [
        Self::NoLeader,
        Self::Busy,
        Self::DiskFull,
        Self::TooLarge,
        Self::NoGroup,
        Self::Stopping,
        Self::Overwritten,
        Self::Poisoned,
        Self::ChangeUnderWay,
        Self::NothingToChange,
        Self::NotAMember,
        Self::LastVoter,
        Self::TooManyMembers,
        Self::NoLiveQuorum,
        Self::NotHandedOver,
    ];
    const NEEDS_UPGRADE: u8 = 16;
    const NOT_JOINED: u8 = 17;
    /// And these from 18 on. Only what a node answers itself ends so, or one that has named groups to another: older versions
    /// never hear of them.
    const LATER: [Self; 5] = [Self::NotApplied, Self::Released, Self::Deleted, Self::BadName, Self::DataLoss];

    /// Its number between nodes, and the node that it is about.
    pub(crate) fn encode(self) -> (u8, NodeId) {
        match self {
            Self::NeedsUpgrade(node) => (Self::NEEDS_UPGRADE, node),
            Self::NotJoined(node) => (Self::NOT_JOINED, node),
            other => match Self::LATER.iter().position(|one| *one == other) {
                Some(at) => (Self::NOT_JOINED + 1 + at as u8, NodeId::NONE),
                None => {
                    let at = Self::PLAIN.iter().take_while(|one| **one != other).count();
                    (at as u8 + 1, NodeId::NONE)
                }
            },
        }
    }

    pub(crate) fn decode(number: u8, node: NodeId) -> Option<Self> {
        match number {
            Self::NEEDS_UPGRADE => Some(Self::NeedsUpgrade(node)),
            Self::NOT_JOINED => Some(Self::NotJoined(node)),
            ..Self::NEEDS_UPGRADE => Self::PLAIN.get(usize::from(number).checked_sub(1)?).copied(),
            later => Self::LATER.get(usize::from(later - Self::NOT_JOINED - 1)).copied(),
        }
    }

    /// When it makes sense to try again.
    pub(crate) fn retry_after(self) -> Duration {
        Duration::from_millis(match self {
            Reason::Busy | Reason::Overwritten => 10,
            Reason::NotApplied
            | Reason::NoLeader
            | Reason::NoGroup
            | Reason::ChangeUnderWay
            | Reason::NotHandedOver
            | Reason::NotJoined(_) => 100,
            _ => 1000,
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::NotJoined(node) => {
                return write!(
                    f,
                    "the leader's node has no link to node {node}: start it, or wait until it has joined the cluster"
                );
            }
            Reason::NeedsUpgrade(node) => {
                return write!(
                    f,
                    "node {node} runs a version that does not know of this: upgrade it, or stop it first"
                );
            }
            Reason::NotApplied => "this node's machine has not come so far",
            Reason::Released => "the log with that entry is released",
            Reason::Deleted => "the group was deleted",
            Reason::DataLoss => "data may be lost: too few members of the group have a sound log",
            Reason::BadName => "a group's name has 1 to 255 bytes and no control characters",
            Reason::NoLeader => "no leader could be reached",
            Reason::Busy => "the shard is busy",
            Reason::DiskFull => "the disk is full",
            Reason::TooLarge => "the command is too large",
            Reason::NoGroup => "the group is not on this node",
            Reason::Stopping => "the node is stopping",
            Reason::Overwritten => "a later leader's entry took its place",
            Reason::Poisoned => "the group's machine has failed",
            Reason::ChangeUnderWay => "another change of members is under way",
            Reason::NothingToChange => "the members are so already",
            Reason::NotAMember => "the node is no member for that",
            Reason::LastVoter => "no voter would be left",
            Reason::TooManyMembers => "too many members",
            Reason::NoLiveQuorum => "too few of the members can be reached",
            Reason::NotHandedOver => "the successor did not take over in time",
        })
    }
}

/// A command whose fate nobody here knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// It was in a leader's log, and no majority answered in time.
    #[error("unknown: no majority answered in time")]
    TimedOut,
    /// It was sent to the leader, and the link broke before the answer.
    #[error("unknown: the link to the leader broke before it answered")]
    LinkBroke,
    /// The node stopped before the answer.
    #[error("unknown: the node stopped before the command was applied")]
    Stopped,
    /// The machine's reply is too large to be sent from the leader to this node; the command itself was applied.
    #[error("unknown: the machine's reply is too large to be sent between nodes")]
    ReplyTooLarge,
    /// A snapshot took the place of the log in which the answer would have been.
    #[error("unknown: the log that holds the answer was replaced by a snapshot")]
    Skipped,
    /// The group was deleted before the command was applied here.
    #[error("unknown: the group was deleted before the answer")]
    Deleted,
    /// The leader's machine answered something that is not this machine's reply: their versions differ.
    #[error("unknown: the reply is not one of this machine's; the nodes run different versions of it")]
    Unreadable,
}

impl<R> Outcome<R> {
    /// Changes the reply's type; the other outcomes stay as they are.
    pub fn map<S>(self, change: impl FnOnce(R) -> S) -> Outcome<S> {
        match self {
            Outcome::Done(Done { reply, index, leader }) => {
                Outcome::Done(Done { reply: change(reply), index, leader })
            }
            Outcome::NotDone(why) => Outcome::NotDone(why),
            Outcome::Unknown(why) => Outcome::Unknown(why),
        }
    }

    /// A refusal for `reason`.
    pub(crate) fn not_done(reason: Reason, leader: Option<NodeId>) -> Self {
        Outcome::NotDone(NotDone { reason, retry_after: reason.retry_after(), leader })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_keep_their_numbers_between_nodes() {
        for (reason, number, node) in [
            (Reason::NoLeader, 1, 0),
            (Reason::Poisoned, 8, 0),
            (Reason::ChangeUnderWay, 9, 0),
            (Reason::NotHandedOver, 15, 0),
            (Reason::NeedsUpgrade(NodeId(7)), 16, 7),
            (Reason::NotJoined(NodeId(7)), 17, 7),
            (Reason::NotApplied, 18, 0),
            (Reason::Released, 19, 0),
            (Reason::Deleted, 20, 0),
            (Reason::BadName, 21, 0),
            (Reason::DataLoss, 22, 0),
        ] {
            assert_eq!(reason.encode(), (number, NodeId(node)));
            assert_eq!(Reason::decode(number, NodeId(node)), Some(reason));
        }
        assert!(Reason::PLAIN.iter().all(|one| Reason::decode(one.encode().0, NodeId::NONE) == Some(*one)));
        assert!([0, 23, 100, 255].iter().all(|number| Reason::decode(*number, NodeId(1)).is_none()));
    }
}
