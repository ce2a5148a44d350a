//! The way into a shard from other threads: a bounded queue of commands and a wake-up.
//!
//! Invariants: (1) the queue is bounded in commands and in bytes of payload; a full one refuses at once, so a client
//! that floods gets `Busy` and the shard's memory stays bounded; (2) every command that was taken is answered exactly
//! once through its [`Origin`], also when the shard stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use coracle_base::limits::INBOX_BYTES;
use coracle_base::run::Entries;
use coracle_base::{EntryBatch, GroupId, Index, NodeId};
use crossbeam_queue::ArrayQueue;

use super::names;
use super::places::Word;
use super::replies::{Asked, ClientQueue, Completions, Slot};
use crate::api::entries::{ReadEntry, ReadPlan};
use crate::api::query::Consistency;
use crate::machine::Machine;
use crate::outcome::{Outcome, Reason};
use crate::shard::members::Drained;
use crate::shard::status::{GroupStatus, ShardStatus};

/// Commands waiting in one inbox.
const INBOX_COMMANDS: usize = 8192;

/// Who waits for the answer.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    /// A client's completion ring: answers carry the entries' tags.
    Client(Arc<ClientQueue>),
    /// One command's future.
    Slot(Arc<Slot>),
    /// Another node that forwarded the command, by its request number in that link's session.
    Peer { node: NodeId, session: u64, request: u64 },
}

/// A group to be taken up.
pub(crate) struct Start {
    pub(crate) group: GroupId,
    pub(crate) machine: Box<dyn Machine>,
    /// Who makes the group, if it is new: all nodes, unless some are named.
    pub(crate) founders: Option<Vec<NodeId>>,
}

/// What other threads ask of a shard.
pub(crate) enum Command<S> {
    /// Entries for a group.
    Propose { group: GroupId, entries: EntryBatch, origin: Origin },
    /// A question to a group's machine; a client's completion ring gets the answer under `tag`.
    Query { group: GroupId, consistency: Consistency, tag: u64, query: Vec<u8>, origin: Origin },
    /// Take up groups: recover each, or begin it empty. Each has a result, in this order.
    StartGroups { groups: Vec<Start>, started: Asked<Vec<Result<(), crate::Error>>> },
    /// Let the group's member here campaign now; whether it does.
    Campaign { group: GroupId, reply: Asked<bool> },
    /// Make this node the only member of a group whose majority is gone for good.
    Shrink { group: GroupId, reply: Asked<()> },
    /// Hand over every group that is led here; how many are left.
    Drain { reply: Asked<Drained> },
    /// Tell about groups, in this order.
    GroupStatus { groups: Vec<GroupId>, reply: Asked<Vec<Option<GroupStatus>>> },
    /// Tell about the next groups in the order of their uids, so many at most.
    #[cfg(feature = "admin")]
    GroupsAfter { after: GroupId, count: usize, reply: Asked<Vec<GroupStatus>> },
    /// Read entries of a group's log, or plan to.
    ReadEntries { group: GroupId, indexes: Vec<Index>, max_bytes: usize, to: ReadTo },
    /// Compact all that can be made smaller.
    Compact { begun: Asked<()> },
    /// Tell about the shard.
    Status { reply: Asked<ShardStatus> },
    /// Who belongs to the cluster.
    Places(Word),
    /// What became of named groups.
    Names(names::Word),
    /// A client's wish about named groups.
    Wish { wish: names::Wish, origin: Origin },
    /// Somebody watches the directory from now on.
    Watch(Arc<names::WatchQueue>),
    /// A connection whose handshake named this shard.
    Adopt { socket: S, hello: Vec<u8> },
    /// Stop: make everything durable that is under way, answer everybody, and return.
    Stop,
}

/// What becomes of entries that somebody asked for.
pub(crate) enum ReadTo {
    /// They are read.
    Entries(Asked<Vec<ReadEntry>>),
    /// The reader does it himself.
    Plan(Asked<ReadPlan>),
}

impl ReadTo {
    /// Answers without reading.
    pub(crate) fn refuse(self, error: crate::Error) {
        match self {
            Self::Entries(asked) => asked.answer(Err(error)),
            Self::Plan(asked) => asked.answer(Err(error)),
        }
    }
}

/// A shard's inbox, shared with every handle. `S` is the network driver's socket.
pub(crate) struct Inbox<S> {
    queue: ArrayQueue<Command<S>>,
    bytes: AtomicUsize,
    closed: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl<S> Inbox<S> {
    /// An empty inbox; `wake` is called after each command put in.
    pub(crate) fn new(wake: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            queue: ArrayQueue::new(INBOX_COMMANDS),
            bytes: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            wake,
        }
    }

    /// Puts a command in and wakes the shard.
    ///
    /// # Errors
    /// The command, back: the inbox is full, or the shard has stopped ([`is_closed`](Self::is_closed)).
    pub(crate) fn push(&self, command: Command<S>) -> Result<(), Command<S>> {
        let bytes = command.payload_bytes();
        if self.is_closed() {
            return Err(command);
        }
        if bytes > 0 && self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > INBOX_BYTES {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(command);
        }
        if let Err(command) = self.queue.push(command) {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(command);
        }
        (self.wake)();
        if self.is_closed() {
            // The shard may have looked for the last time before this command was in.
            self.refuse_rest();
        }
        Ok(())
    }

    /// The next command, in the shard's thread.
    pub(crate) fn pop(&self) -> Option<Command<S>> {
        let command = self.queue.pop()?;
        self.bytes.fetch_sub(command.payload_bytes(), Ordering::Relaxed);
        Some(command)
    }

    /// Commands that wait.
    #[cfg(test)]
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Whether another small command would fit just now.
    pub(crate) fn has_room(&self) -> bool {
        !self.queue.is_full()
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The shard has stopped: answers everything that waits with `Stopping`, and refuses whatever comes from now on.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        // A push that raced with the line above refuses the rest itself: one of the two sees the command.
        self.refuse_rest();
    }

    /// No shard has seen what waits, and none will.
    fn refuse_rest(&self) {
        while let Some(command) = self.pop() {
            command.refuse(Reason::Stopping);
        }
    }

    /// Whether the shard has stopped.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

impl Origin {
    /// Answers one command from outside the shard's turn.
    pub(crate) fn answer(&self, tag: u64, outcome: &Outcome<&[u8]>) {
        match self {
            Origin::Client(queue) => {
                let mut completions = Completions::default();
                completions.push(tag, outcome);
                queue.push(completions);
            }
            Origin::Slot(slot) => slot.fill(outcome.to_owned()),
            // The other node finds its link down and answers its client itself.
            Origin::Peer { .. } => {}
        }
    }
}

impl<S> Command<S> {
    /// Answers without doing anything.
    pub(crate) fn refuse(self, reason: Reason) {
        match self {
            Command::Propose { entries, origin, .. } => {
                for entry in Entries::new(Index(1), entries.bytes()) {
                    origin.answer(entry.header.tag, &Outcome::not_done(reason, None));
                }
            }
            Command::Query { tag, origin, .. } => origin.answer(tag, &Outcome::not_done(reason, None)),
            Command::Wish { origin, .. } => origin.answer(0, &Outcome::not_done(reason, None)),
            Command::Watch(queue) => queue.end(),
            Command::ReadEntries { group, to, .. } => to.refuse(match reason {
                Reason::Stopping => crate::Error::Stopped(None),
                Reason::Busy => crate::Error::Busy,
                _ => crate::Error::NoGroup(group),
            }),
            // Dropping the question answers it: the shard has stopped.
            _ => {}
        }
    }

    /// Groups that are to be taken up or told about.
    pub(crate) fn groups(&self) -> usize {
        match self {
            Command::StartGroups { groups, .. } => groups.len(),
            Command::GroupStatus { groups, .. } => groups.len(),
            #[cfg(feature = "admin")]
            Command::GroupsAfter { count, .. } => *count,
            _ => 0,
        }
    }

    fn payload_bytes(&self) -> usize {
        match self {
            Command::Propose { entries, .. } => entries.bytes().len(),
            Command::Query { query, .. } => query.len(),
            Command::ReadEntries { indexes, .. } => size_of_val(indexes.as_slice()),
            _ => 0,
        }
    }
}
