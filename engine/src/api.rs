//! All that a user needs of a running node: start groups, propose, query, look.
//!
//! Every handle is `Send + Sync + Clone`, works from any thread, and needs no async runtime. A handle only puts
//! commands into a shard's bounded inbox and waits for answers; everything else happens in the shard.
//!
//! Invariants: (1) a command handed to a handle ends exactly once, as Done, NotDone or Unknown, also when it never got
//! as far as the shard; (2) a full inbox refuses at once: no handle waits for room.

mod client;
pub(crate) mod directory;
pub(crate) mod entries;
mod members;
mod proposal;
pub(crate) mod query;
#[cfg(test)]
mod tests;
pub(crate) mod typed;

use std::sync::Arc;

use coracle_base::{EntryBatch, EntryKind, GroupId, NodeId};

pub use client::Client;
pub use directory::{Directory, NameChanges};
pub use entries::{LogEntry, NoEntry, Pending, ReadEntry, ReadPlan};
pub use proposal::Proposal;
pub use query::Consistency;
pub use typed::{TypedGroup, TypedProposal};

use crate::Error;
use crate::directory::{DIRECTORY, is_drawn};
use crate::machine::{Machine, Typed, TypedMachine};
use crate::node::{Node, Socket};
use crate::outcome::{NotDone, Reason};
use crate::shard::inbox::{Command, Inbox, Origin, Start};
use crate::shard::replies::{Asked, Slot};
use crate::shard::status::{GroupStatus, ShardStatus};

/// Groups in one command: so many are taken up, or told about, in one turn of a shard.
const GROUPS_PER_COMMAND: usize = 256;

/// The ways into a node's shards.
#[derive(Clone)]
pub(crate) struct Handles {
    pub(crate) id: NodeId,
    pub(crate) inboxes: Arc<[Arc<Inbox<Socket>>]>,
}

impl Handles {
    /// The handles of node `id`, whose shards read `inboxes`, one each and at least one.
    pub(crate) fn new(id: NodeId, inboxes: Vec<Arc<Inbox<Socket>>>) -> Self {
        Self { id, inboxes: inboxes.into() }
    }

    fn shard(&self, group: GroupId) -> usize {
        usize::from(group.shard(self.inboxes.len() as u16).0)
    }

    pub(crate) fn inbox(&self, group: GroupId) -> &Arc<Inbox<Socket>> {
        &self.inboxes[self.shard(group)]
    }

    pub(crate) fn group(&self, id: GroupId) -> Group {
        Group { id, inbox: self.inbox(id).clone() }
    }

    fn start_groups(&self, groups: Vec<Start>) -> Vec<Result<Group, Error>> {
        let command = |groups, started| Command::StartGroups { groups, started };
        let ids: Vec<GroupId> = groups.iter().map(|start| start.group).collect();
        let refusal = |id: GroupId| match id {
            DIRECTORY => Some(Error::GroupZero),
            id if is_drawn(id) => Some(Error::GroupNamed(id)),
            _ => None,
        };
        let groups = groups.into_iter().filter(|start| refusal(start.group).is_none());
        let groups = groups.map(|start| (start.group, start)).collect();
        let mut started = self.ask_about(groups, command).into_iter();
        ids.into_iter()
            .map(|id| {
                if let Some(error) = refusal(id) {
                    return Err(error);
                }
                started.next().unwrap_or(Err(Error::Stopped(None)))??;
                Ok(self.group(id))
            })
            .collect()
    }

    /// Asks the shards about groups, many with each command and all shards at once. Answers come in the groups' order.
    fn ask_about<T, R>(
        &self,
        groups: Vec<(GroupId, T)>,
        command: impl Fn(Vec<T>, Asked<Vec<R>>) -> Command<Socket>,
    ) -> Vec<Result<R, Error>> {
        let mut answers: Vec<Result<R, Error>> = groups.iter().map(|_| Err(Error::Stopped(None))).collect();
        let mut of_shards: Vec<(Vec<usize>, Vec<T>)> =
            self.inboxes.iter().map(|_| (Vec::new(), Vec::new())).collect();
        let mut asked = Vec::new();
        let mut ask = |shard: usize, (places, items): (Vec<usize>, Vec<T>)| {
            asked.push((places, ask(&self.inboxes[shard], |reply| command(items, reply))));
        };
        for (place, (id, item)) in groups.into_iter().enumerate() {
            let shard = self.shard(id);
            let part = &mut of_shards[shard];
            part.0.push(place);
            part.1.push(item);
            if part.0.len() == GROUPS_PER_COMMAND {
                ask(shard, std::mem::take(part));
            }
        }
        let rest = of_shards.into_iter().enumerate().filter(|(_, (places, _))| !places.is_empty());
        rest.for_each(|(shard, part)| ask(shard, part));
        for (places, answer) in asked {
            match answer.wait() {
                Ok(results) => {
                    places.into_iter().zip(results).for_each(|(place, result)| answers[place] = Ok(result))
                }
                Err(error) => places.into_iter().for_each(|place| answers[place] = Err(error.clone())),
            }
        }
        answers
    }

    fn group_status(&self, groups: impl Iterator<Item = GroupId>) -> Result<Vec<Option<GroupStatus>>, Error> {
        let groups = groups.map(|id| (id, id)).collect();
        self.ask_about(groups, |groups, reply| Command::GroupStatus { groups, reply }).into_iter().collect()
    }

    fn compact(&self) -> Result<(), Error> {
        self.inboxes.iter().try_for_each(|inbox| ask(inbox, |begun| Command::Compact { begun }).wait())
    }

    fn status(&self) -> Result<Vec<ShardStatus>, Error> {
        self.inboxes.iter().map(|inbox| ask(inbox, |reply| Command::Status { reply }).wait()).collect()
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
        self.start_groups([(id, machine)]).pop().unwrap_or(Err(Error::Stopped(None)))
    }

    /// As [`start_group`](Self::start_group) for each of them, in a fraction of the time when they are many. Results come
    /// in the groups' order; one that fails has nothing to do with the others.
    pub fn start_groups<M: Machine>(
        &self,
        groups: impl IntoIterator<Item = (GroupId, M)>,
    ) -> Vec<Result<Group, Error>> {
        let boxed = |(group, machine)| Start {
            group,
            machine: Box::new(machine) as Box<dyn Machine>,
            founders: None,
        };
        self.handles().start_groups(groups.into_iter().map(boxed).collect())
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

    /// Groups as this node sees them, in this order; `None` for one that does not run here. Not at one moment: many are
    /// asked about in several turns.
    ///
    /// # Errors
    /// [`Error::Stopped`], [`Error::Busy`].
    pub fn group_status(
        &self,
        groups: impl IntoIterator<Item = GroupId>,
    ) -> Result<Vec<Option<GroupStatus>>, Error> {
        self.handles().group_status(groups.into_iter())
    }

    /// Asks every shard to compact its files now, whatever the bound on garbage says: a file with a quarter of garbage and
    /// more is copied and freed. Comes back when it has begun; [`ShardStatus::compacted_files`] tells how it goes on. By
    /// itself a node compacts when its sealed files take more than twice what lives in them.
    ///
    /// # Errors
    /// [`Error::Stopped`], [`Error::Busy`].
    pub fn compact(&self) -> Result<(), Error> {
        self.handles().compact()
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

    /// The group as this node sees it; `None` if it does not run here.
    ///
    /// # Errors
    /// [`Error::Stopped`], [`Error::Busy`].
    pub fn status(&self) -> Result<Option<GroupStatus>, Error> {
        let groups = vec![self.id];
        let answer = ask(&self.inbox, |reply| Command::GroupStatus { groups, reply }).wait()?;
        Ok(answer.into_iter().next().flatten())
    }

    fn send(&self, command: impl FnOnce(Origin) -> Command<Socket>) -> Proposal {
        let slot = Arc::new(Slot::default());
        match push(&self.inbox, command(Origin::Slot(slot.clone()))) {
            Ok(()) => Proposal::waiting(slot),
            Err(reason) => Proposal::refused(reason),
        }
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

/// Asks a shard something about itself. A shard that stops drops the question, which answers it.
pub(crate) fn ask<T>(inbox: &Inbox<Socket>, command: impl FnOnce(Asked<T>) -> Command<Socket>) -> Pending<T> {
    let (asked, parcel) = Asked::new();
    match push(inbox, command(asked)) {
        Ok(()) => Pending::waiting(parcel),
        Err(Reason::Busy) => Pending::refused(Error::Busy),
        Err(_) => Pending::refused(Error::Stopped(None)),
    }
}

/// A refusal that this process itself decides.
fn refusal(reason: Reason) -> NotDone {
    NotDone { reason, retry_after: reason.retry_after(), leader: None }
}
