//! A node for simulators: the same `Server` that a shard's thread runs, over a disk, a network and a clock of the
//! caller's, turned by hand.

use std::marker::PhantomData;
use std::sync::Arc;

use coracle_base::{EntryBatch, EntryKind, GroupId, Index, NodeId, Term};
use coracle_io::{Clock, Disk, Net};
use coracle_raft::Change;

use crate::api::entries::read_command;
use crate::api::typed::decoded;
use crate::boot::{Parts, Server};
use crate::directory::{Ask, DIRECTORY};
use crate::shard::inbox::{Command, Inbox, Origin, ReadTo, Start};
use crate::shard::members::Request;
use crate::shard::names::{Machines, WatchQueue, Wish};
use crate::shard::places::Word;
use crate::shard::replies::{Asked, ClientQueue, Slot};
use crate::transport::hello::PROTOCOL;
use crate::{
    Config, Consistency, Created, Deleted, Drained, Error, GroupStatus, Machine, NameChanges, NamedGroup,
    Outcome, Pending, ReadEntry, ReadPlan, Reason, ShardStatus, Wire,
};

pub use crate::shard::Turn;
pub use crate::shard::status::Glance;
pub use coracle_raft::{Overview, Role};

/// One node with one shard, turned by hand.
pub struct SimNode<D: Disk, N: Net, C: Clock> {
    server: Server<D, N, C>,
    inbox: Arc<Inbox<N::Socket>>,
    /// Where the answers to batches go, as a client's would.
    batches: Arc<ClientQueue>,
}

/// A command's answer, when it comes.
#[derive(Debug)]
pub struct Answer(Arc<Slot>);

impl Answer {
    /// How the command ended, if it has.
    pub fn get(&self) -> Option<Outcome> {
        self.0.get()
    }
}

/// The answer to a wish about named groups, when it comes.
#[derive(Debug)]
pub struct NameAnswer<R>(Answer, PhantomData<fn() -> R>);

impl<R: Wire> NameAnswer<R> {
    /// How the wish ended, if it has.
    pub fn get(&self) -> Option<Outcome<R>> {
        self.0.get().map(decoded)
    }
}

impl<D: Disk, N: Net, C: Clock> SimNode<D, N, C> {
    /// Opens the node: reads or makes its directory, recovers, listens.
    ///
    /// # Errors
    /// What a real node would say.
    pub fn open(config: &Config, disk: D, net: N, clock: C, seed: u64) -> Result<Self, Error> {
        Self::open_speaking(config, disk, net, clock, seed, PROTOCOL)
    }

    /// As [`open`](Self::open), with a node that speaks no protocol version beyond `protocol`, as before an upgrade.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_speaking(
        config: &Config,
        disk: D,
        net: N,
        clock: C,
        seed: u64,
        protocol: u16,
    ) -> Result<Self, Error> {
        Self::open_alone(config, (disk, net, clock), seed, None, protocol.min(PROTOCOL))
    }

    /// As [`open`](Self::open), with named groups, as by [`Node::start_with_groups`](crate::Node::start_with_groups).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with_groups(
        config: &Config,
        disk: D,
        net: N,
        clock: C,
        seed: u64,
        machines: impl Fn(&str, &[u8]) -> Option<Box<dyn Machine>> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        Self::open_alone(config, (disk, net, clock), seed, Some(Arc::new(machines)), PROTOCOL)
    }

    /// A node of one shard, of which no other part is wanted.
    fn open_alone(
        config: &Config,
        (disk, net, clock): (D, N, C),
        seed: u64,
        machines: Option<Machines>,
        protocol: u16,
    ) -> Result<Self, Error> {
        let inbox = Arc::new(Inbox::new(Box::new(|| {})));
        let siblings = vec![inbox.clone()];
        #[cfg(feature = "breaks")]
        let breaks = Default::default();
        let parts = Parts {
            disk,
            net,
            clock,
            inbox,
            siblings,
            seed,
            machines,
            protocol,
            #[cfg(feature = "breaks")]
            breaks,
        };
        Self::from_parts(config, parts)
    }

    /// As [`open`](Self::open), with known bugs planted.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    #[cfg(feature = "breaks")]
    pub fn open_broken(
        config: &Config,
        disk: D,
        net: N,
        clock: C,
        seed: u64,
        breaks: crate::breaks::Breaks,
    ) -> Result<Self, Error> {
        let inbox = Arc::new(Inbox::new(Box::new(|| {})));
        let siblings = vec![inbox.clone()];
        Self::from_parts(
            config,
            Parts { disk, net, clock, inbox, siblings, seed, machines: None, protocol: PROTOCOL, breaks },
        )
    }

    /// As [`open_with_groups`](Self::open_with_groups), with known bugs planted.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    #[cfg(feature = "breaks")]
    pub fn open_broken_with_groups(
        config: &Config,
        (disk, net, clock): (D, N, C),
        seed: u64,
        breaks: crate::breaks::Breaks,
        machines: impl Fn(&str, &[u8]) -> Option<Box<dyn Machine>> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let inbox = Arc::new(Inbox::new(Box::new(|| {})));
        let siblings = vec![inbox.clone()];
        let machines: Option<Machines> = Some(Arc::new(machines));
        let protocol = PROTOCOL;
        Self::from_parts(
            config,
            Parts { disk, net, clock, inbox, siblings, seed, machines, protocol, breaks },
        )
    }

    fn from_parts(config: &Config, parts: Parts<D, N, C>) -> Result<Self, Error> {
        config.check()?;
        let inbox = parts.inbox.clone();
        let listen = config.listen().expect("checked: this node is among its peers");
        Ok(Self { server: Server::open(config, listen, parts)?, inbox, batches: Arc::default() })
    }

    /// One turn.
    ///
    /// # Errors
    /// The shard has stopped.
    pub fn turn(&mut self) -> Result<Turn, Error> {
        self.server.turn()
    }

    /// Whether the cluster is formed and groups can run.
    pub fn is_running(&self) -> bool {
        self.server.is_running()
    }

    /// Asks the node to stop, as [`Node::stop`](crate::Node::stop) does; the turn in which it has stopped says so.
    pub fn stop(&self) {
        let _ = self.inbox.push(Command::Stop);
    }

    /// Asks for a compaction, as [`Node::compact`](crate::Node::compact) does.
    pub fn compact(&self) {
        let (begun, _) = Asked::new();
        let _ = self.inbox.push(Command::Compact { begun });
    }

    /// Takes up a group; it runs after the next turns.
    pub fn start_group(&self, group: GroupId, machine: Box<dyn Machine>) {
        let (started, _) = Asked::new();
        let start = Start { group, machine, founders: None };
        let _ = self.inbox.push(Command::StartGroups { groups: vec![start], started });
    }

    /// As [`Node::start_group_of`](crate::Node::start_group_of).
    pub fn start_group_of(&self, group: GroupId, founders: &[NodeId], machine: Box<dyn Machine>) {
        let (started, _) = Asked::new();
        let start = Start { group, machine, founders: Some(founders.to_vec()) };
        let _ = self.inbox.push(Command::StartGroups { groups: vec![start], started });
    }

    /// As [`Directory::create`](crate::Directory::create).
    pub fn create_group(&self, name: &str, members: &[NodeId], argument: &[u8]) -> NameAnswer<Created> {
        let (name, argument, members) = (name.to_owned(), argument.to_vec(), members.to_vec());
        self.name_wish(Wish::Create { name, argument, members })
    }

    /// As [`Directory::delete`](crate::Directory::delete), or of this uid alone.
    pub fn delete_group(&self, name: &str, id: Option<GroupId>) -> NameAnswer<Deleted> {
        self.name_wish(Wish::Delete { name: name.to_owned(), id })
    }

    fn name_wish<R: Wire>(&self, wish: Wish) -> NameAnswer<R> {
        let slot = Arc::new(Slot::default());
        self.push(&slot, |origin| Command::Wish { wish, origin });
        NameAnswer(Answer(slot), PhantomData)
    }

    /// As [`Directory::look_up`](crate::Directory::look_up), or as `look_up_here`.
    pub fn look_up(&self, name: &str, is_here: bool) -> NameAnswer<Option<NamedGroup>> {
        let here = Consistency::Local { index: Index::ZERO, term: None };
        let consistency = if is_here { here } else { Consistency::Linearizable };
        let mut query = Vec::new();
        Ask::LookUp(name.to_owned()).encode(&mut query);
        NameAnswer(self.query_as(DIRECTORY, consistency, &query), PhantomData)
    }

    /// As [`Directory::changes`](crate::Directory::changes).
    pub fn name_changes(&self) -> NameChanges {
        let queue = Arc::new(WatchQueue::default());
        if let Err(refused) = self.inbox.push(Command::Watch(queue.clone())) {
            refused.refuse(Reason::Busy);
        }
        NameChanges::of(queue)
    }

    /// As [`Group::change_members`](crate::Group::change_members).
    pub fn change_members(&self, group: GroupId, changes: &[Change], force: bool) -> Answer {
        self.wish(group, Request::Change { force, changes: changes.to_vec() })
    }

    /// As [`Group::transfer_leadership`](crate::Group::transfer_leadership).
    pub fn transfer_leadership(&self, group: GroupId, to: Option<NodeId>) -> Answer {
        self.wish(group, Request::Transfer { to })
    }

    /// As [`Group::trigger_election`](crate::Group::trigger_election); it happens in the next turn.
    pub fn trigger_election(&self, group: GroupId) {
        let (reply, _) = Asked::new();
        let _ = self.inbox.push(Command::Campaign { group, reply });
    }

    /// As [`Node::replace_node`](crate::Node::replace_node); the closure gives the answer once it is there.
    pub fn replace_node(
        &self,
        node: NodeId,
        force: bool,
    ) -> impl Fn() -> Option<Result<(), Error>> + use<D, N, C> {
        let (reply, answer) = Asked::new();
        let _ = self.inbox.push(Command::Places(Word::GiveUp { node, force, reply }));
        move || answer.take()
    }

    /// As [`Node::lose_nodes`](crate::Node::lose_nodes).
    pub fn lose_nodes(
        &self,
        nodes: &[NodeId],
        force: bool,
    ) -> impl Fn() -> Option<Result<(), Error>> + use<D, N, C> {
        let (reply, answer) = Asked::new();
        let _ = self.inbox.push(Command::Places(Word::Lose { nodes: nodes.to_vec(), force, reply }));
        move || answer.take()
    }

    /// As [`Group::force_shrink`](crate::Group::force_shrink).
    pub fn force_shrink(&self, group: GroupId) -> impl Fn() -> Option<Result<(), Error>> + use<D, N, C> {
        let (reply, answer) = Asked::new();
        let _ = self.inbox.push(Command::Shrink { group, reply });
        move || answer.take()
    }

    /// Begins to hand over every group that the node leads.
    pub fn drain(&self) -> Pending<Drained> {
        let (reply, parcel) = Asked::new();
        let _ = self.inbox.push(Command::Drain { reply });
        Pending::waiting(parcel)
    }

    fn wish(&self, group: GroupId, request: Request) -> Answer {
        let slot = Arc::new(Slot::default());
        let entries = request.into_batch();
        self.push(&slot, |origin| Command::Propose { group, entries, origin });
        Answer(slot)
    }

    /// Proposes one command.
    pub fn propose(&self, group: GroupId, command: &[u8]) -> Answer {
        let mut entries = EntryBatch::new();
        let slot = Arc::new(Slot::default());
        if entries.push(0, EntryKind::Command, command).is_err() {
            slot.fill(Outcome::not_done(Reason::TooLarge, None));
            return Answer(slot);
        }
        self.push(&slot, |origin| Command::Propose { group, entries, origin });
        Answer(slot)
    }

    /// Proposes several commands as one batch, each with a number that comes back with its answer.
    pub fn propose_all(&self, group: GroupId, commands: &[(u64, Vec<u8>)]) {
        let mut entries = EntryBatch::new();
        let origin = Origin::Client(self.batches.clone());
        for (tag, command) in commands {
            if entries.push(*tag, EntryKind::Command, command).is_err() {
                origin.answer(*tag, &Outcome::not_done(Reason::TooLarge, None));
            }
        }
        if let Err(refused) = self.inbox.push(Command::Propose { group, entries, origin }) {
            refused.refuse(Reason::Busy);
        }
    }

    /// What became of commands of batches since the last time.
    pub fn answers(&self) -> Vec<(u64, Outcome)> {
        let mut all = Vec::new();
        while let Some(completions) = self.batches.pop() {
            all.extend(completions.iter().map(|(tag, outcome)| (tag, outcome.to_owned())));
        }
        all
    }

    /// Asks a question whose answer covers everything acknowledged before.
    pub fn query(&self, group: GroupId, query: &[u8]) -> Answer {
        self.query_as(group, Consistency::Linearizable, query)
    }

    /// As [`Group::query_as`](crate::Group::query_as).
    pub fn query_as(&self, group: GroupId, consistency: Consistency, query: &[u8]) -> Answer {
        let slot = Arc::new(Slot::default());
        let query = query.to_vec();
        self.push(&slot, |origin| Command::Query { group, consistency, query, tag: 0, origin });
        Answer(slot)
    }

    /// Reads entries, as [`Group::read_entries`](crate::Group::read_entries).
    pub fn read_entries(
        &self,
        group: GroupId,
        indexes: impl IntoIterator<Item = Index>,
        max_bytes: usize,
    ) -> Pending<Vec<ReadEntry>> {
        self.read(group, indexes, max_bytes, ReadTo::Entries)
    }

    /// Plans to read entries, as [`Group::read_plan`](crate::Group::read_plan).
    pub fn read_plan(
        &self,
        group: GroupId,
        indexes: impl IntoIterator<Item = Index>,
        max_bytes: usize,
    ) -> Pending<ReadPlan> {
        self.read(group, indexes, max_bytes, ReadTo::Plan)
    }

    fn read<T>(
        &self,
        group: GroupId,
        indexes: impl IntoIterator<Item = Index>,
        max_bytes: usize,
        to: impl FnOnce(Asked<T>) -> ReadTo,
    ) -> Pending<T> {
        let (asked, parcel) = Asked::new();
        if let Err(refused) = self.inbox.push(read_command(group, indexes, max_bytes, to(asked))) {
            refused.refuse(if self.inbox.is_closed() { Reason::Stopping } else { Reason::Busy });
        }
        Pending::waiting(parcel)
    }

    fn push(&self, slot: &Arc<Slot>, command: impl FnOnce(Origin) -> Command<N::Socket>) {
        if let Err(refused) = self.inbox.push(command(Origin::Slot(slot.clone()))) {
            refused.refuse(if self.inbox.is_closed() { Reason::Stopping } else { Reason::Busy });
        }
    }

    /// The cluster's id, once it is formed and this node belongs to it.
    pub fn cluster(&self) -> Option<u128> {
        Some(self.server.identity()?.cluster.as_ref()?.id)
    }

    /// What of the group changes, cheaply: as long as two are equal, so are its status, its overview's role and transfer, and
    /// what is durable of it.
    pub fn glance(&self, group: GroupId) -> Option<Glance> {
        self.server.shard()?.glance(group)
    }

    /// The group as this node has it.
    pub fn group_status(&self, group: GroupId) -> Option<GroupStatus> {
        self.server.shard()?.group_status(group)
    }

    /// The last entry that the group believes to be durable here, with its term: a crash must not lose it.
    pub fn durable(&self, group: GroupId) -> Option<(Index, Term)> {
        self.server.shard()?.durable(group)
    }

    /// What the group's consensus says of itself, a leader's members included.
    pub fn overview(&self, group: GroupId) -> Option<Overview> {
        self.server.shard()?.overview(group)
    }

    /// Whether recovery took the group for damaged, and nobody has brought it up since.
    pub fn is_suspect(&self, group: GroupId) -> bool {
        self.server.shard().is_some_and(|shard| shard.is_suspect(group))
    }

    /// Whether another node said that it had heard of more than is in the directory.
    pub fn is_old_copy(&self) -> bool {
        self.server.shard().is_some_and(|shard| shard.is_old_copy())
    }

    /// Whether every batch of the log is durable, and the loss of any of them could be noticed.
    pub fn log_is_at_rest(&self) -> bool {
        self.server.shard().is_some_and(|shard| shard.log_is_at_rest())
    }

    /// The counters of the write-ahead log since it was opened.
    pub fn wal_stats(&self) -> Option<coracle_wal::Stats> {
        Some(self.server.shard()?.wal_stats())
    }

    /// Places for groups in memory: those of the shard, used and vacant ones, and those of its log.
    pub fn group_slots(&self) -> Option<(usize, u64)> {
        let shard = self.server.shard()?;
        Some((shard.group_slots(), shard.wal_stats().group_slots))
    }

    /// The term of an entry of the group's log here; `None` if it is released, or not there.
    pub fn term_at(&self, group: GroupId, index: Index) -> Option<Term> {
        self.server.shard()?.term_at(group, index)
    }

    /// The entries that this node has in memory, as (index, term, payload checksum): for checking that logs match.
    pub fn entries(&self, group: GroupId) -> Vec<(u64, u64, u32)> {
        self.server.shard().map(|shard| shard.entries_in_memory(group)).unwrap_or_default()
    }

    /// The shard's counters.
    pub fn status(&self) -> Option<ShardStatus> {
        Some(self.server.shard()?.status())
    }
}
