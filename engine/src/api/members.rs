//! Who the members of a group are, and who leads it: looking, changing, handing over.

use coracle_base::{GroupId, NodeId};
use coracle_raft::{Change, Members};

use super::{Group, Proposal, ask};
use crate::Error;
use crate::machine::Machine;
use crate::node::Node;
use crate::outcome::Reason;
use crate::shard::inbox::{Command, Start};
use crate::shard::members::{Drained, Request};
use crate::shard::places::Word;

impl Group {
    /// The members as this node's log has them, by its newest change, committed or not; `None` if the group does not run
    /// here. Nobody: this node waits to be made a member.
    ///
    /// # Errors
    /// [`Error::Stopped`], [`Error::Busy`].
    pub fn members(&self) -> Result<Option<Members>, Error> {
        Ok(self.status()?.map(|status| status.members))
    }

    /// Changes the members, all at once: in one step if at most one voter changes, else through a joint phase that ends
    /// by itself. Done when the change is committed; a joint phase may be over a moment later. It is refused if no
    /// majority of the new members can be reached, unless it is forced: for when those that cannot will come back.
    ///
    /// Refused as [`Reason::ChangeUnderWay`], it is worth another try soon; as [`Reason::NeedsUpgrade`], once that node is
    /// upgraded or stopped.
    pub fn change_members(&self, changes: &[Change], force: bool) -> Proposal {
        self.wish(Request::Change { force, changes: changes.to_vec() })
    }

    /// Takes a node up: it receives the log and does not count, and is made a voter by itself once it has what the log
    /// held when it joined. The node has to start the group ([`Node::join_group`]).
    pub fn add_member(&self, node: NodeId) -> Proposal {
        self.change_members(&[Change::Promotable(node)], false)
    }

    /// Takes a node out. It may be the leader, which hands over then.
    pub fn remove_member(&self, node: NodeId) -> Proposal {
        self.change_members(&[Change::Remove(node)], false)
    }

    /// Hands leadership to a voter, or to the one that holds most of the log. Done, with the new leader, when there is
    /// one. Commands wait meanwhile, and are not refused. Refused as [`Reason::NotHandedOver`], the old one leads on.
    pub fn transfer_leadership(&self, to: Option<NodeId>) -> Proposal {
        self.wish(Request::Transfer { to })
    }

    /// Lets this node's member campaign at once, though there may be a live leader. Whether it does: not if it leads
    /// already, is no voter, reaches no majority, or another member has to be upgraded first
    /// ([`Reason::NeedsUpgrade`]).
    ///
    /// # Errors
    /// [`Error::NoGroup`], [`Error::Stopped`], [`Error::Busy`].
    pub fn trigger_election(&self) -> Result<bool, Error> {
        ask(&self.inbox, |reply| Command::Campaign { group: self.id, reply }).wait()
    }

    /// Makes this node the only member of the group, by force, after a majority of its members is gone for good and was
    /// declared so here by [`Node::lose_nodes`]; do both on the node that holds most of the log (term, then last index, of
    /// [`status`](Group::status)). What only the others had is lost. When it returns, the node leads the group; others are
    /// added as usual, those that were left out and are not lost among them.
    /// [`recovery_epoch`](crate::GroupStatus::recovery_epoch) tells ever after. Done before, it does nothing.
    ///
    /// # Errors
    /// [`Error::Shrink`]: a majority is there, or a member is neither lost nor up; [`Error::NoGroup`], [`Error::Stopped`],
    /// [`Error::Busy`].
    pub fn force_shrink(&self) -> Result<(), Error> {
        ask(&self.inbox, |reply| Command::Shrink { group: self.id, reply }).wait()
    }

    fn wish(&self, request: Request) -> Proposal {
        if !request.is_small() {
            return Proposal::refused(Reason::TooManyMembers);
        }
        let entries = request.into_batch();
        self.send(|origin| Command::Propose { group: self.id, entries, origin })
    }
}

impl Node {
    /// As [`start_group`](Self::start_group), for a group that some of the cluster's nodes make: every one of `founders`
    /// names the same ones. A node that is not among them waits to be made a member. Once the group has begun, its own
    /// log knows better.
    ///
    /// # Errors
    /// As [`start_group`](Self::start_group).
    pub fn start_group_of(
        &self,
        id: GroupId,
        founders: &[NodeId],
        machine: impl Machine,
    ) -> Result<Group, Error> {
        let start = Start { group: id, machine: Box::new(machine), founders: Some(founders.to_vec()) };
        self.handles().start_groups(vec![start]).pop().unwrap_or(Err(Error::Stopped(None)))
    }

    /// Takes up a group that this node is to be made a member of ([`Group::add_member`], anywhere): it waits for the
    /// leader, from whom it learns everything.
    ///
    /// # Errors
    /// As [`start_group`](Self::start_group).
    pub fn join_group(&self, id: GroupId, machine: impl Machine) -> Result<Group, Error> {
        self.start_group_of(id, &[], machine)
    }

    /// Says that a node's data directory is gone for good: whoever comes next with its id and an empty directory takes its
    /// place, as a node that is a member of no group and has to be added to each ([`Group::add_member`]). Before that, stop
    /// the node, and take it out of all groups on every node ([`Group::remove_member`]). One node gives each place away, and
    /// the refusal names it; `force` is for when that one is gone for good, too, and then on one node only: two that gave
    /// away one place could let two directories be one member.
    ///
    /// # Errors
    /// [`Error::Place`]: why not; [`Error::Stopped`], [`Error::Busy`].
    pub fn replace_node(&self, node: NodeId, force: bool) -> Result<(), Error> {
        let first = self.handles().inboxes.first().ok_or(Error::Stopped(None))?;
        ask(first, |reply| Command::Places(Word::GiveUp { node, force, reply })).wait()
    }

    /// Declares nodes lost for good, though groups have them as members: their directories are refused from now on, here and
    /// on every node that hears of it, which are all that are up. For when majorities are gone: then
    /// [`Group::force_shrink`] brings each group back, on this node and no other, and [`replace_node`](Self::replace_node)
    /// lets empty directories have their places. `force`: although another node has declared them lost, which is gone for
    /// good itself.
    ///
    /// # Errors
    /// [`Error::Place`]: one of them is up or was a moment ago, is unknown, or another node declared it lost;
    /// [`Error::Stopped`], [`Error::Busy`].
    pub fn lose_nodes(&self, nodes: &[NodeId], force: bool) -> Result<(), Error> {
        let (first, nodes) = (self.handles().inboxes.first().ok_or(Error::Stopped(None))?, nodes.to_vec());
        ask(first, |reply| Command::Places(Word::Lose { nodes, force, reply })).wait()
    }

    /// Begins to hand over every group that this node leads and that another one can lead, if none of its members has to be
    /// upgraded first. Called again after a while, nothing that is being handed over says that it is done, but for what is
    /// kept. Nothing keeps the node from being elected again later.
    ///
    /// # Errors
    /// [`Error::Stopped`], [`Error::Busy`].
    pub fn drain(&self) -> Result<Drained, Error> {
        let mut all = Drained::default();
        for inbox in self.handles().inboxes.iter() {
            let one = ask(inbox, |reply| Command::Drain { reply }).wait()?;
            (all.handing_over, all.kept) = (all.handing_over + one.handing_over, all.kept + one.kept);
        }
        Ok(all)
    }
}
