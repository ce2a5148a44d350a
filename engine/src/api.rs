//! All that a user needs of a running node: start groups, propose, query, look.
//!
//! Every handle is `Send + Sync + Clone`, works from any thread, and needs no async runtime. A handle only puts
//! commands into a shard's bounded inbox and waits for answers; everything else happens in the shard.
//!
//! Invariants: (1) a command handed to a handle ends exactly once, as Done, NotDone or Unknown, also when it never got
//! as far as the shard; (2) a full inbox refuses at once: no handle waits for room.

mod client;
mod proposal;
#[cfg(test)]
mod tests;
mod typed;

use std::sync::Arc;
use std::sync::mpsc;

use coracle_base::limits::ENTRY_BYTES_MAX;
use coracle_base::{EntryBatch, EntryKind, GroupId, NodeId};

pub use client::Client;
pub use proposal::Proposal;
pub use typed::{TypedGroup, TypedProposal};

use crate::Error;
use crate::machine::{Machine, Typed, TypedMachine};
use crate::node::{Node, Socket};
use crate::outcome::{NotDone, Reason};
use crate::shard::inbox::{Command, Consistency, Inbox, Origin, Reply};
use crate::shard::replies::Slot;
use crate::shard::status::{GroupStatus, ShardStatus};

/// The ways into a node's shards.
#[derive(Clone)]
pub(crate) struct Handles {
    id: NodeId,
    inboxes: Arc<[Arc<Inbox<Socket>>]>,
}

impl Handles {
    /// The handles of node `id`, whose shards read `inboxes`, one each and at least one.
    pub(crate) fn new(id: NodeId, inboxes: Vec<Arc<Inbox<Socket>>>) -> Self {
        Self { id, inboxes: inboxes.into() }
    }

    fn inbox(&self, group: GroupId) -> &Arc<Inbox<Socket>> {
        &self.inboxes[usize::from(group.shard(self.inboxes.len() as u16).0)]
    }

    fn group(&self, id: GroupId) -> Group {
        Group { id, inbox: self.inbox(id).clone() }
    }

    fn start_group(&self, id: GroupId, machine: Box<dyn Machine>) -> Result<Group, Error> {
        if id == GroupId(0) {
            return Err(Error::GroupZero);
        }
        let group = self.group(id);
        group.ask(|started| Command::StartGroup { group: id, machine, started })??;
        Ok(group)
    }

    fn status(&self) -> Result<Vec<ShardStatus>, Error> {
        self.inboxes.iter().map(|inbox| ask(inbox, |reply| Command::Status { reply })).collect()
    }
}

impl Node {
    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.handles().id
    }

    /// Takes up a group with its machine: recovers it from this node's disk, or begins it empty. Every member's node
    /// does so, with the same uid and the same kind of machine. Waits until the group runs here, not for a leader.
    ///
    /// # Errors
    /// [`Error::GroupRuns`] if it runs already, and whatever its recovery meets.
    pub fn start_group(&self, id: GroupId, machine: impl Machine) -> Result<Group, Error> {
        self.handles().start_group(id, Box::new(machine))
    }

    /// As [`start_group`](Self::start_group), for a machine over the user's own types.
    ///
    /// # Errors
    /// As [`start_group`](Self::start_group).
    pub fn start_typed<M: TypedMachine>(&self, id: GroupId, machine: M) -> Result<TypedGroup<M>, Error> {
        self.start_group(id, Typed(machine)).map(TypedGroup::new)
    }

    /// The handle of a group. Commands to a group that this node does not have end as [`Reason::NoGroup`].
    pub fn group(&self, id: GroupId) -> Group {
        self.handles().group(id)
    }

    /// A new completion ring, for many commands at once: up to 65,536 in flight.
    pub fn client(&self) -> Client {
        Client::with_limit(client::IN_FLIGHT_MAX)
    }

    /// The counters of each shard.
    ///
    /// # Errors
    /// [`Error::Stopped`], [`Error::Busy`].
    pub fn status(&self) -> Result<Vec<ShardStatus>, Error> {
        self.handles().status()
    }
}

/// A group, as this node reaches it: here if this node leads it, else through the leader.
#[derive(Clone)]
pub struct Group {
    id: GroupId,
    inbox: Arc<Inbox<Socket>>,
}

impl Group {
    /// The group's uid.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// Proposes one command. For more than a few thousand a second, take a [`Client`].
    pub fn propose(&self, command: &[u8]) -> Proposal {
        let mut entries = EntryBatch::with_capacity(coracle_base::run::ENTRY_HEADER_BYTES + command.len());
        if entries.push(0, EntryKind::Command, command).is_err() {
            return Proposal::refused(Reason::TooLarge);
        }
        self.send(|origin| Command::Propose { group: self.id, entries, origin })
    }

    /// Asks the machine a question; the answer covers everything acknowledged before (linearizable).
    pub fn query(&self, query: &[u8]) -> Proposal {
        self.query_with(Consistency::Linearizable, query)
    }

    /// Asks the leader's machine as it is. Quicker than [`query`](Self::query), and not linearizable: for a moment, a
    /// leader may not know that it is one no longer.
    pub fn query_leader(&self, query: &[u8]) -> Proposal {
        self.query_with(Consistency::Leader, query)
    }

    fn query_with(&self, consistency: Consistency, query: &[u8]) -> Proposal {
        if query.len() > ENTRY_BYTES_MAX {
            return Proposal::refused(Reason::TooLarge);
        }
        let query = query.to_vec();
        self.send(|origin| Command::Query { group: self.id, consistency, tag: 0, query, origin })
    }

    /// The group as this node sees it; `None` if it does not run here.
    ///
    /// # Errors
    /// [`Error::Stopped`], [`Error::Busy`].
    pub fn status(&self) -> Result<Option<GroupStatus>, Error> {
        self.ask(|reply| Command::GroupStatus { group: self.id, reply })
    }

    fn send(&self, command: impl FnOnce(Origin) -> Command<Socket>) -> Proposal {
        let slot = Arc::new(Slot::default());
        match push(&self.inbox, command(Origin::Slot(slot.clone()))) {
            Ok(()) => Proposal::waiting(slot),
            Err(reason) => Proposal::refused(reason),
        }
    }

    fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command<Socket>) -> Result<T, Error> {
        ask(&self.inbox, command)
    }
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Puts a command into an inbox, or says why that is not possible. A refused command has no answer of its own.
fn push(inbox: &Inbox<Socket>, command: Command<Socket>) -> Result<(), Reason> {
    inbox.push(command).map_err(|_refused| if inbox.is_closed() { Reason::Stopping } else { Reason::Busy })
}

/// Asks a shard something about itself and waits for the answer. A shard that stops drops the question.
fn ask<T>(inbox: &Inbox<Socket>, command: impl FnOnce(Reply<T>) -> Command<Socket>) -> Result<T, Error> {
    let (reply, answer) = mpsc::sync_channel(1);
    push(inbox, command(reply)).map_err(|reason| match reason {
        Reason::Busy => Error::Busy,
        _ => Error::Stopped(None),
    })?;
    answer.recv().map_err(|_stopped| Error::Stopped(None))
}

/// A refusal that this process itself decides.
fn refusal(reason: Reason) -> NotDone {
    NotDone { reason, retry_after: reason.retry_after(), leader: None }
}
