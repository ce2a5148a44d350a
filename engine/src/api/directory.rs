//! Named groups: making and deleting them, looking them up, and hearing of what becomes of them.
//!
//! ```no_run
//! # use coracle::{Config, Created, Machine, Node, Outcome, Peer};
//! # fn queue(_name: &str) -> Option<Box<dyn Machine>> { None }
//! # let config = Config::new(1, Vec::new(), "/var/lib/coracle");
//! // Every node makes the machines of its named groups by itself, now and after each restart.
//! let node = Node::start_with_groups(config, |name, argument| match argument {
//!     b"queue" => queue(name),
//!     _ => None, // a kind of machine that this program does not know
//! })?;
//! let directory = node.directory();
//! match directory.create("orders", &[], b"queue").wait() {
//!     Outcome::Done(done) => match done.reply {
//!         Created::New(group) | Created::Same(group) => {
//!             let _ = node.group(group.id()).propose(b"a command").wait();
//!         }
//!         Created::Taken(other) => println!("orders is {} already", other.id()),
//!         Created::Full | Created::Refused => {}
//!     },
//!     Outcome::NotDone(why) => println!("{why}"), // try again
//!     Outcome::Unknown(why) => println!("{why}"), // try again: what was made is `Created::Same` then
//! }
//! # Ok::<(), coracle::Error>(())
//! ```

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use coracle_base::{GroupId, NodeId};

use super::proposal::block_on;
use super::query::Consistency;
use super::{Group, Handles, Proposal, TypedProposal, push};
use crate::directory::{
    ARGUMENT_BYTES_MAX, Ask, Created, DIRECTORY, Deleted, NAME_BYTES_MAX, NamedGroup, PAGE_MAX, Page, is_name,
};
use crate::machine::Wire;
use crate::node::Node;
use crate::outcome::Reason;
use crate::shard::inbox::Command;
use crate::shard::names::{NameChange, WatchQueue, Wish};
use crate::shard::replies::Slot;

impl Handles {
    pub(crate) fn directory(&self) -> Directory {
        Directory { handles: self.clone() }
    }
}

impl Node {
    /// The cluster's named groups. On a node that was not started by
    /// [`start_with_groups`](Node::start_with_groups) everything ends as [`Reason::NoGroup`].
    pub fn directory(&self) -> Directory {
        self.handles().directory()
    }
}

/// The cluster's named groups, as this node reaches them: the directory is itself a replicated group, and wishes go to its
/// leader as commands do. Each ends as Done, NotDone or Unknown; after Unknown it is safe to try any of them again.
#[derive(Clone)]
pub struct Directory {
    handles: Handles,
}

impl Directory {
    /// Makes a group of this name, of these members (nobody: all nodes that are in the cluster now), whose machine each of
    /// them makes from the name and `argument`. Done when it is in the directory; its members take it up in a moment, and
    /// commands to it end as [`Reason::NoGroup`] or [`Reason::NoLeader`] until then.
    ///
    /// The uid is drawn: no other group of the cluster ever has it, whatever happens to the name. Asked again for the same
    /// (the same members, or nobody again, and the same argument), it answers [`Created::Same`].
    ///
    /// Refused as [`Reason::BadName`]: a name has 1 to 255 bytes and no control characters; as [`Reason::TooLarge`]: an
    /// argument has at most 4 KiB; as [`Reason::NotAMember`]: a node that is named twice, or has no place in the cluster.
    pub fn create(&self, name: &str, members: &[NodeId], argument: &[u8]) -> TypedProposal<Created> {
        let refusal = match () {
            () if !is_name(name) => Some(Reason::BadName),
            () if argument.len() > ARGUMENT_BYTES_MAX => Some(Reason::TooLarge),
            () => None,
        };
        let (argument, members) = (argument.to_vec(), members.to_vec());
        self.wish(refusal, Wish::Create { name: name.to_owned(), argument, members })
    }

    /// Deletes the group that has this name now. Its members stop it and free its storage as soon as they hear of it, those
    /// that are away when they are back; commands to it end as [`Reason::Deleted`]. A command that was done shortly before
    /// is gone with it. The name can be used again at once, and is another group's then.
    ///
    /// Tried again after Unknown, it might delete a group that somebody made of that name meanwhile: where that matters,
    /// [`delete_exactly`](Self::delete_exactly).
    pub fn delete(&self, name: &str) -> TypedProposal<Deleted> {
        self.wish(refusal(name), Wish::Delete { name: name.to_owned(), id: None })
    }

    /// Deletes the group of this name if it is the one of this uid.
    pub fn delete_exactly(&self, name: &str, id: GroupId) -> TypedProposal<Deleted> {
        self.wish(refusal(name), Wish::Delete { name: name.to_owned(), id: Some(id) })
    }

    /// The group of this name: everything acknowledged before is seen.
    pub fn look_up(&self, name: &str) -> TypedProposal<Option<NamedGroup>> {
        self.ask(Consistency::Linearizable, refusal(name), &Ask::LookUp(name.to_owned()))
    }

    /// The group of this name as this node knows it, however old that is: no other node is asked.
    pub fn look_up_here(&self, name: &str) -> TypedProposal<Option<NamedGroup>> {
        let here = Consistency::Local { index: coracle_base::Index::ZERO, term: None };
        self.ask(here, refusal(name), &Ask::LookUp(name.to_owned()))
    }

    /// Groups whose names begin with `prefix`, by name, from after `after` on (empty: from the first), at most `count` of
    /// them and never more than 256. The page says whether there are more: then its last name is where the next one goes on.
    pub fn list(&self, prefix: &str, after: &str, count: usize) -> TypedProposal<Page> {
        let is_long = prefix.len() > NAME_BYTES_MAX || after.len() > NAME_BYTES_MAX;
        let count = count.clamp(1, PAGE_MAX) as u16;
        let ask = Ask::List { prefix: prefix.to_owned(), after: after.to_owned(), count };
        self.ask(Consistency::Linearizable, is_long.then_some(Reason::BadName), &ask)
    }

    /// What becomes of named groups, as this node hears of it: in order, each once, beginning with all that are there.
    pub fn changes(&self) -> NameChanges {
        let queue = Arc::new(WatchQueue::default());
        match self.handles.inboxes.first() {
            Some(first) => {
                if let Err(refused) = first.push(Command::Watch(queue.clone())) {
                    refused.refuse(Reason::Busy);
                }
            }
            None => queue.end(),
        }
        NameChanges { queue }
    }

    /// The directory's own group: who leads it, and who its members are. Nodes become members by themselves, and again if they
    /// are removed while they run: one whose place is to be given to another data directory is stopped first, then removed.
    pub fn group(&self) -> Group {
        self.handles.group(DIRECTORY)
    }

    fn wish<R: Wire>(&self, refusal: Option<Reason>, wish: Wish) -> TypedProposal<R> {
        if let Some(reason) = refusal {
            return TypedProposal::new(Proposal::refused(reason));
        }
        let Some(first) = self.handles.inboxes.first() else {
            return TypedProposal::new(Proposal::refused(Reason::Stopping));
        };
        let slot = Arc::new(Slot::default());
        let origin = crate::shard::inbox::Origin::Slot(slot.clone());
        TypedProposal::new(match push(first, Command::Wish { wish, origin }) {
            Ok(()) => Proposal::waiting(slot),
            Err(reason) => Proposal::refused(reason),
        })
    }

    fn ask<R: Wire>(&self, consistency: Consistency, refusal: Option<Reason>, ask: &Ask) -> TypedProposal<R> {
        if let Some(reason) = refusal {
            return TypedProposal::new(Proposal::refused(reason));
        }
        let mut query = Vec::new();
        ask.encode(&mut query);
        TypedProposal::new(self.group().query_as(consistency, &query))
    }
}

fn refusal(name: &str) -> Option<Reason> {
    (!is_name(name)).then_some(Reason::BadName)
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directory").field("node", &self.handles.id).finish_non_exhaustive()
    }
}

/// What becomes of named groups, one change after the other. Dropping it ends the watch.
#[derive(Debug)]
pub struct NameChanges {
    queue: Arc<WatchQueue>,
}

impl NameChanges {
    pub(crate) fn of(queue: Arc<WatchQueue>) -> Self {
        Self { queue }
    }

    /// The next change, when there is one. `None`: there will be none, because the node has stopped, has no directory, or
    /// this watcher left more than 65,536 changes waiting; begin another watch.
    pub fn recv(&mut self) -> impl Future<Output = Option<NameChange>> + '_ {
        Next(self)
    }

    /// The next change, if there is one within `timeout`.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<NameChange> {
        block_on(Some(timeout), |waker| self.poll_with(waker)).flatten()
    }

    /// The next change, if it is there.
    pub fn try_recv(&mut self) -> Option<NameChange> {
        self.queue.pop()
    }

    /// Outer `None`: not yet.
    fn poll_with(&self, waker: &Waker) -> Option<Option<NameChange>> {
        let look = || match (self.queue.is_over(), self.queue.pop()) {
            (_, Some(change)) => Some(Some(change)),
            (true, None) => Some(None),
            (false, None) => None,
        };
        look().or_else(|| {
            self.queue.register(waker);
            look()
        })
    }
}

impl Drop for NameChanges {
    fn drop(&mut self) {
        self.queue.leave();
    }
}

struct Next<'a>(&'a mut NameChanges);

impl Future for Next<'_> {
    type Output = Option<NameChange>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_with(context.waker()).map_or(Poll::Pending, Poll::Ready)
    }
}
