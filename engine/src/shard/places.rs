//! Who belongs to the cluster, while the node runs: places are given up on an operator's word, given to nodes that come
//! with an empty directory, and learnt from other nodes' hellos. The rules are `cluster.rs`'s; here is what they need.
//!
//! ```text
//!   give up, newcomer, news ─→ first shard: one at a time ─→ every shard: has no group that node as a member?
//!                                                              │ none has
//!                        links start over  ←─ every shard ←─  the identity file is written, durable
//! ```
//!
//! Invariants: (1) a place is another's only when that is durable here; (2) and when no group here, started or only found on
//! the disk, has the node as a member, by its own configuration or the one before; (3) what cannot be now is dropped: a
//! newcomer, and whoever has news, comes again with its next connection.

use std::collections::BTreeSet;
use std::path::PathBuf;

use coracle_base::codec::Sink;
use coracle_base::limits::BLOCK_BYTES;
use coracle_base::{GroupId, Index, NodeId, ShardId};
use coracle_io::{Clock, Disk, DiskDone, DiskOk, DiskOp, FileId, FileMode, Net};
use coracle_raft::HardState;
use coracle_wal::RecoveredGroup;

use super::Shard;
use super::inbox::Command;
use super::replies::Asked;
use crate::Error;
use crate::cluster::Cluster;
use crate::identity::{FILE, Identity, NEW_FILE};
use crate::transport::hello::News;

/// The word of all operations that are ours: there is one at a time.
const TOKEN: u64 = 0x50 << 56;

/// What shards say to each other about places, and operators to them.
pub(crate) enum Word {
    /// A hello had something new, for the first shard.
    News(News),
    /// An operator's wish, for the first shard: the directory of this node is gone for good.
    GiveUp { node: NodeId, force: bool, reply: Asked<()> },
    /// And: these are gone for good, whoever is a member of what.
    Lose { nodes: Vec<NodeId>, reply: Asked<()> },
    /// Has any of your groups one of these as a member?
    Check { number: u64, nodes: Vec<NodeId> },
    /// The answer: which, if any.
    Checked { number: u64, shard: ShardId, held: Option<(GroupId, NodeId)> },
    /// It is durable.
    Are(Cluster),
}

/// The first shard's part. The others only have the identity.
pub(super) struct Places {
    identity: Identity,
    change: Option<Change>,
    number: u64,
}

/// A change that is under way.
struct Change {
    cluster: Cluster,
    /// Shards that have not answered.
    waiting: BTreeSet<ShardId>,
    reply: Option<Asked<()>>,
    step: Step,
    file: Option<FileId>,
}

/// The disk's last order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Checking,
    Open,
    Write,
    Sync,
    Close,
    Rename,
    SyncDir,
}

/// Whether a completion is ours.
pub(super) fn owns(token: u64) -> bool {
    token == TOKEN
}

impl Places {
    pub(super) fn new(identity: Identity) -> Self {
        Self { identity, change: None, number: 0 }
    }
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    pub(super) fn on_place_news(&mut self, news: News) {
        match self.transport.shard() {
            ShardId(0) => self.on_place_word(Word::News(news)),
            _ => self.tell_shard(ShardId(0), Word::News(news)),
        }
    }

    pub(super) fn on_place_word(&mut self, word: Word) {
        match word {
            Word::News(news) => self.on_news(news),
            Word::GiveUp { node, force, reply } => match self.given_up(node, force) {
                Ok(cluster) => self.begin_change(cluster, vec![node], Some(reply)),
                Err(reason) => reply.answer(Err(Error::Place { node, reason })),
            },
            Word::Lose { nodes, reply } => match self.lost(&nodes) {
                Ok(cluster) => self.begin_change(cluster, Vec::new(), Some(reply)),
                Err(error) => reply.answer(Err(error)),
            },
            Word::Check { number, nodes } => {
                let (shard, held) = (self.transport.shard(), self.held(&nodes));
                self.tell_shard(ShardId(0), Word::Checked { number, shard, held });
            }
            Word::Checked { number, shard, held } => self.on_checked(number, shard, held),
            Word::Are(cluster) => self.take_cluster(cluster),
        }
    }

    fn tell_shard(&self, shard: ShardId, word: Word) {
        if let Some(sibling) = self.siblings.get(usize::from(shard.0)) {
            // One that is too busy to take it: the change is dropped, and tried again some day.
            let _ = sibling.push(Command::Places(word));
        }
    }

    pub(super) fn cluster(&self) -> &Cluster {
        self.places.identity.cluster.as_ref().expect("a shard runs once the cluster is formed")
    }

    /// The cluster without whoever has this node's place.
    fn given_up(&self, node: NodeId, force: bool) -> Result<Cluster, String> {
        let (own, cluster) = (self.settings.node, self.cluster());
        if node == own {
            return Err("a node does not give up its own place; ask another one".into());
        }
        if self.transport.link(node).is_none() || !cluster.nodes().contains(&node) {
            return Err("it has no place here".into());
        }
        if self.transport.is_up(node) {
            return Err(
                "it is up: stop it first, or take it out of its groups if that is all you want".into()
            );
        }
        match cluster.giver(node) {
            Some(giver) if giver != own && !force => Err(format!(
                "its place is node {giver}'s to give away: ask there; only if that one is gone for good, force it here, \
                 and nowhere else"
            )),
            _ => Ok(cluster.give_up(node, own)),
        }
    }

    fn on_news(&mut self, news: News) {
        let (own, cluster) = (self.settings.node, self.cluster());
        let (next, nodes) = match news {
            News::Newcomer { node, incarnation } if cluster.is_free(node, own) => {
                (cluster.take(node, incarnation, own), Vec::new())
            }
            News::Newcomer { .. } => return,
            News::Places(places) => {
                // Of a node that nobody ever was before, no old promise can be.
                let was_somebody =
                    |node: &NodeId| cluster.nodes().contains(node) || places.iter().any(|p| p.generation > 0);
                let taken = places.iter().filter(|place| !place.is_lost());
                let nodes = taken.map(|place| place.node).filter(was_somebody).collect();
                (places.iter().fold(cluster.clone(), |cluster, place| cluster.with(*place)), nodes)
            }
        };
        self.begin_change(next, nodes, None);
    }

    /// Asks every shard whether it may be, beginning with this one.
    fn begin_change(&mut self, cluster: Cluster, nodes: Vec<NodeId>, reply: Option<Asked<()>>) {
        if self.places.change.is_some() {
            return refuse(reply, NodeId::NONE, "another change of places is under way: try again");
        }
        self.places.number += 1;
        let number = self.places.number;
        let others = if nodes.is_empty() { 0 } else { self.siblings.len() as u16 };
        let waiting: BTreeSet<ShardId> = (1..others).map(ShardId).collect();
        let asked: Vec<ShardId> = waiting.iter().copied().collect();
        let held = self.held(&nodes);
        self.places.change = Some(Change { cluster, waiting, reply, step: Step::Checking, file: None });
        for shard in asked {
            self.tell_shard(shard, Word::Check { number, nodes: nodes.clone() });
        }
        self.on_checked(number, ShardId(0), held);
    }

    fn on_checked(&mut self, number: u64, shard: ShardId, held: Option<(GroupId, NodeId)>) {
        let Some(change) = self.places.change.as_mut().filter(|change| change.step == Step::Checking) else {
            return;
        };
        if number != self.places.number {
            return;
        }
        if let Some((group, node)) = held {
            let reply = self.places.change.take().and_then(|change| change.reply);
            let reason = format!("group {group} here has it as a member: take it out of its groups first");
            tracing::warn!(%node, reason, "a node's place is not another's yet");
            return refuse(reply, node, &reason);
        }
        change.waiting.remove(&shard);
        if change.waiting.is_empty() {
            self.start_place(Step::Open, DiskOp::Open { path: NEW_FILE.into(), mode: FileMode::Write });
        }
    }

    /// Whether a node belongs to the cluster, so that it can be made a member of a group.
    pub(super) fn has_place(&self, node: NodeId) -> bool {
        self.cluster().incarnation(node).is_some()
    }

    /// A group here that has one of these nodes as a member, as far as it is known.
    fn held(&self, nodes: &[NodeId]) -> Option<(GroupId, NodeId)> {
        let founders = self.cluster().founders();
        let among = |state: Option<&HardState>, commit: Index| match state {
            Some(state) => {
                // What was before a change that is committed decides nothing any more.
                let previous = state.previous.as_deref().filter(|_| state.current.index > commit);
                let each = [Some(&state.current), previous].into_iter().flatten();
                nodes.iter().copied().find(|node| each.clone().any(|one| one.members.contains(*node)))
            }
            None => nodes.iter().copied().find(|node| founders.contains(node)),
        };
        let started = self.slots.iter();
        let started = started.map(|one| (one.id, among(Some(one.raft.hard_state()), one.raft.commit())));
        let state_of = |one: &RecoveredGroup| HardState::decode(&one.state).ok();
        let found = self.recovered.values();
        let found = found.map(|one| (one.group, among(state_of(one).as_ref(), Index::ZERO)));
        started.chain(found).find_map(|(group, node)| Some((group, node?)))
    }

    fn start_place(&mut self, step: Step, op: DiskOp) {
        if let Some(change) = &mut self.places.change {
            change.step = step;
            self.disk.start(TOKEN, op);
        }
    }

    /// A step of writing the identity is done.
    pub(super) fn on_place_done(&mut self, done: DiskDone) {
        if let Some(buf) = done.buf {
            self.disk.recycle(buf);
        }
        let Some(change) = &mut self.places.change else { return };
        if let Ok(DiskOk::Opened { file, .. }) = &done.result {
            change.file = Some(*file);
        }
        let (step, file) = (change.step, change.file);
        match (step, file, done.result) {
            (_, _, Err(error)) => self.fail_change(&error.to_string()),
            (Step::Open, Some(file), Ok(_)) => {
                let identity =
                    Identity { cluster: Some(change.cluster.clone()), ..self.places.identity.clone() };
                let mut buf = self.disk.buffer(BLOCK_BYTES);
                buf.put(&identity.encode());
                buf.resize(BLOCK_BYTES);
                self.start_place(Step::Write, DiskOp::Write { file, offset: 0, buf });
            }
            (Step::Write, Some(file), Ok(_)) => self.start_place(Step::Sync, DiskOp::Sync { file }),
            (Step::Sync, Some(file), Ok(_)) => self.start_place(Step::Close, DiskOp::Close { file }),
            (Step::Close, ..) => {
                change.file = None;
                self.start_place(Step::Rename, DiskOp::Rename { from: NEW_FILE.into(), to: FILE.into() });
            }
            (Step::Rename, ..) => self.start_place(Step::SyncDir, DiskOp::SyncDir { path: PathBuf::new() }),
            (Step::SyncDir, ..) => self.finish_change(),
            (step, ..) => self.fail_change(&format!("{step:?} did not give a file")),
        }
    }

    /// The old file is there, or the new one: both are sound.
    fn fail_change(&mut self, error: &str) {
        let Some(change) = self.places.change.take() else { return };
        tracing::error!(error, "the identity file could not be written: places stay as they were");
        if let Some(file) = change.file {
            self.disk.start(super::snapshots::NOBODY, DiskOp::Close { file });
        }
        refuse(change.reply, NodeId::NONE, &format!("the identity file could not be written: {error}"));
    }

    fn finish_change(&mut self) {
        let Some(change) = self.places.change.take() else { return };
        for shard in 1..self.siblings.len() as u16 {
            self.tell_shard(ShardId(shard), Word::Are(change.cluster.clone()));
        }
        self.take_cluster(change.cluster);
        if let Some(reply) = change.reply {
            reply.answer(Ok(()));
        }
    }

    /// From now on this is the cluster.
    fn take_cluster(&mut self, cluster: Cluster) {
        for place in cluster.places.iter().filter(|place| !self.cluster().places.contains(place)) {
            match place.incarnation {
                _ if place.is_lost() => {
                    tracing::warn!(node = %place.node, "lost: its directory is refused from now on")
                }
                0 => tracing::info!(node = %place.node, "its place is free: it waits for an empty directory"),
                incarnation => tracing::info!(node = %place.node, incarnation, "has a place in the cluster"),
            }
        }
        self.settings.founders = cluster.founders();
        self.places.identity.cluster = Some(cluster.clone());
        self.transport.set_cluster(&mut self.net, cluster, self.now_us, &mut self.link_events);
        self.on_link_events();
    }
}

fn refuse(reply: Option<Asked<()>>, node: NodeId, reason: &str) {
    if let Some(reply) = reply {
        reply.answer(Err(Error::Place { node, reason: reason.into() }));
    }
}
