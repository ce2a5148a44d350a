//! Who belongs to the cluster, while the node runs: places are given up or lost on an operator's word, given to nodes that
//! come with an empty directory, and learnt from other nodes' hellos. The rules are `cluster.rs`'s; here is what they need.
//!
//! ```text
//!   give up, lost, newcomer, news ─→ first shard: one change at a time
//!        └─→ every shard: has a group its old directory as a member?   whose it is, its place stays as it is, for now
//!              └─→ the identity file is written, durable ─→ every shard takes it, links start over ─→ answer
//! ```
//!
//! A group here may still name the old directory because it was away: then its leader's node knows better. Once this member
//! has all that its leader said to be committed when their link came up, and that node had taken the place by then, whoever
//! is a member by that name is the new one: the leader's node took the place only when none of its groups had the old one.
//! Whoever leads such a group itself has nobody to hear that from, and leaves the lead to a voter whose node has taken the place.
//!
//! Invariants: (1) a place is another's only when that is durable here; (2) and when no group here, started or only found on
//! the disk, has its old directory as a member, by its own configuration or one before that may be in force again; nor does a
//! named one that is about to begin here, and from that answer on none begins here that has (`promised`); (3) what is heard and
//! cannot be taken yet is tried again; (4) of a place the higher rank holds, whatever order words come in.

use std::collections::BTreeSet;
use std::path::PathBuf;

use coracle_base::codec::Sink;
use coracle_base::limits::BLOCK_BYTES;
use coracle_base::{GroupId, Index, NodeId, ShardId};
use coracle_io::{Clock, Disk, DiskDone, DiskOk, DiskOp, FileId, FileMode, Net};
use coracle_raft::{HardState, Role};
use coracle_wal::RecoveredGroup;

use super::Shard;
use super::give_up;
use super::groups::Slot;
use super::inbox::Command;
use super::replies::Asked;
use crate::Error;
use crate::cluster::{Cluster, Place};
use crate::identity::{FILE, Identity, NEW_FILE};
use crate::transport::hello::News;

/// What was heard and could not be taken is tried again after so long.
const AGAIN_US: u64 = 500_000;

/// The word of all operations that are ours: there is one at a time.
const TOKEN: u64 = 0x50 << 56;

/// What shards say to each other about places, and operators to them.
pub(crate) enum Word {
    /// A hello had something new, for the first shard.
    News(News),
    /// An operator's wish, for the first shard: the directory of this node is gone for good.
    GiveUp { node: NodeId, force: bool, reply: Asked<()> },
    /// And: these are gone for good, whoever is a member of what.
    Lose { nodes: Vec<NodeId>, force: bool, reply: Asked<()> },
    /// Has any of your groups one of these nodes' old directories as a member?
    Check { number: u64, places: Vec<Place> },
    /// The answer: which.
    Checked { number: u64, shard: ShardId, held: Vec<(GroupId, NodeId)> },
    /// It is durable.
    Are { number: u64, cluster: Cluster },
    /// And this shard keeps to it.
    Taken { number: u64, shard: ShardId },
}

/// The first shard's part. The others have the identity, and words that did not fit an inbox.
pub(super) struct Places {
    identity: Identity,
    change: Option<Change>,
    number: u64,
    /// What was heard from other nodes and is not taken yet, the highest of each place.
    news: Vec<Place>,
    again_us: u64,
    /// What was told of them, so that it is told once.
    held: Vec<(GroupId, NodeId)>,
    /// Every shard's: places of which it said that no group of its has their old directories. Until they are taken, or the
    /// change is given up, no named group begins that has.
    promised: Vec<Place>,
    unsent: Vec<(ShardId, Word)>,
}

/// A change that is under way.
struct Change {
    places: Vec<Place>,
    /// Shards that have not answered.
    waiting: BTreeSet<ShardId>,
    held: Vec<(GroupId, NodeId)>,
    reply: Option<Asked<()>>,
    step: Step,
    file: Option<FileId>,
}

/// What is waited for: other shards, or the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Checking,
    Open,
    Write,
    Sync,
    Close,
    Rename,
    SyncDir,
    Telling,
}

/// Whether a completion is ours.
pub(super) fn owns(token: u64) -> bool {
    token == TOKEN
}

impl Places {
    pub(super) fn new(identity: Identity) -> Self {
        Self {
            identity,
            change: None,
            number: 0,
            news: Vec::new(),
            again_us: u64::MAX,
            held: Vec::new(),
            promised: Vec::new(),
            unsent: Vec::new(),
        }
    }

    /// This node's data directory.
    pub(super) fn incarnation(&self) -> u64 {
        self.identity.incarnation
    }

    /// When there is something to do though nothing happens.
    pub(super) fn deadline_us(&self) -> u64 {
        if self.change.is_some() { u64::MAX } else { self.again_us }
    }

    /// Words wait for room in an inbox.
    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
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
            Word::News(News::Newcomer { node, incarnation }) => {
                if self.cluster().is_free(node, self.settings.node) {
                    let place = self.cluster().take(node, incarnation, self.settings.node);
                    self.begin_change(vec![place], None);
                }
            }
            Word::News(News::Places(places)) => {
                places.into_iter().for_each(|place| self.note_news(place));
                self.take_news();
            }
            Word::GiveUp { node, force, reply } => match self.given_up(node, force) {
                Ok(place) => self.begin_change(vec![place], Some(reply)),
                Err(error) => reply.answer(Err(error)),
            },
            Word::Lose { nodes, force, reply } => match self.lost(&nodes, force) {
                Ok(places) if places.is_empty() => reply.answer(Ok(())),
                Ok(places) => self.begin_change(places, Some(reply)),
                Err(error) => reply.answer(Err(error)),
            },
            Word::Check { number, places } => {
                let (shard, held) = (self.transport.shard(), self.promise(&places));
                self.leave_lead_to_who_knows(&places, &held);
                self.tell_shard(ShardId(0), Word::Checked { number, shard, held });
            }
            Word::Checked { number, shard, held } => self.on_checked(number, shard, held),
            Word::Are { number, cluster } => {
                self.take_cluster(cluster);
                let shard = self.transport.shard();
                self.tell_shard(ShardId(0), Word::Taken { number, shard });
            }
            Word::Taken { number, shard } => self.on_taken(number, shard),
        }
    }

    /// Once a turn: words that had no room, and news whose time has come.
    pub(super) fn step_places(&mut self) {
        for (shard, word) in std::mem::take(&mut self.places.unsent) {
            self.tell_shard(shard, word);
        }
        if self.now_us >= self.places.again_us {
            self.take_news();
        }
    }

    fn tell_shard(&mut self, shard: ShardId, word: Word) {
        let Some(sibling) = self.siblings.get(usize::from(shard.0)) else { return };
        if let Err(Command::Places(word)) = sibling.push(Command::Places(word))
            && !sibling.is_closed()
        {
            self.places.unsent.push((shard, word));
        }
    }

    pub(super) fn cluster(&self) -> &Cluster {
        self.places.identity.cluster.as_ref().expect("a shard runs once the cluster is formed")
    }

    /// A node's place without whoever has it.
    fn given_up(&self, node: NodeId, force: bool) -> Result<Place, Error> {
        let (own, cluster) = (self.settings.node, self.cluster());
        self.require_gone(node)?;
        match cluster.giver(node) {
            Some(giver) if giver != own && !force => {
                let reason = format!(
                    "its place is node {giver}'s to give away: ask there; only if that one is gone for good, force it here, \
                     and nowhere else"
                );
                Err(Error::Place { node, reason })
            }
            _ => Ok(cluster.give_up(node, own)),
        }
    }

    /// Refuses to take the place of a node that may be alive.
    pub(super) fn require_gone(&self, node: NodeId) -> Result<(), Error> {
        let wrong = |reason: &str| Err(Error::Place { node, reason: reason.into() });
        let link = self.transport.link(node).filter(|_| self.cluster().nodes().contains(&node));
        match link {
            _ if node == self.settings.node => wrong("it is this node, which is there"),
            None => wrong("it has no place here"),
            Some(link) if link.session().is_some() => {
                wrong("it is up: stop it first, or take it out of its groups if that is all you want")
            }
            Some(link) if !link.is_gone(self.now_us) => {
                wrong("its link is down for a moment only: try again in some seconds")
            }
            Some(_) => Ok(()),
        }
    }

    fn note_news(&mut self, place: Place) {
        let news = &mut self.places.news;
        match news.iter_mut().find(|known| known.node == place.node) {
            Some(known) if known.rank() < place.rank() => *known = place,
            Some(_) => {}
            // As many as a cluster has nodes; a hello has no more.
            None => news.push(place),
        }
    }

    /// What was heard and is news still.
    fn take_news(&mut self) {
        if self.places.change.is_some() {
            return;
        }
        let mut news = std::mem::take(&mut self.places.news);
        news.retain(|place| self.cluster().is_news(place, self.settings.node));
        self.places.again_us = if news.is_empty() { u64::MAX } else { self.now_us + AGAIN_US };
        self.places.news = news.clone();
        if !news.is_empty() {
            self.begin_change(news, None);
        }
    }

    /// Asks every shard what of it may be, beginning with this one.
    fn begin_change(&mut self, places: Vec<Place>, reply: Option<Asked<()>>) {
        let node = places.first().map_or(NodeId::NONE, |place| place.node);
        if self.places.change.is_some() {
            return refuse(reply, node, "another change of places is under way: try again");
        }
        if !self.cluster().has_room_for(&places) {
            return refuse(reply, node, "the cluster has as many nodes as it can have");
        }
        self.places.number += 1;
        let number = self.places.number;
        let waiting: BTreeSet<ShardId> = (0..self.siblings.len().max(1) as u16).map(ShardId).collect();
        let others: Vec<ShardId> = waiting.iter().copied().skip(1).collect();
        let held = self.promise(&places);
        self.leave_lead_to_who_knows(&places, &held);
        for shard in others {
            self.tell_shard(shard, Word::Check { number, places: places.clone() });
        }
        let change = Change { places, waiting, held: Vec::new(), reply, step: Step::Checking, file: None };
        self.places.change = Some(change);
        self.on_checked(number, ShardId(0), held);
    }

    fn on_checked(&mut self, number: u64, shard: ShardId, held: Vec<(GroupId, NodeId)>) {
        let Some(change) = self.places.change.as_mut().filter(|change| change.step == Step::Checking) else {
            return;
        };
        if number != self.places.number || !change.waiting.remove(&shard) {
            return;
        }
        change.held.extend(held);
        if !change.waiting.is_empty() {
            return;
        }
        let held = std::mem::take(&mut change.held);
        change.places.retain(|place| held.iter().all(|(_, node)| *node != place.node));
        if let Some((group, node)) = held.first().filter(|_| self.places.held != held) {
            tracing::warn!(%node, %group, "a node's place is not another's yet: a group here has the old one as a member");
        }
        let is_nothing_left = change.places.is_empty();
        let first = held.first().copied();
        self.places.held = held;
        if is_nothing_left {
            let reply = self.places.change.take().and_then(|change| change.reply);
            self.tell_cluster(self.cluster().clone());
            let (group, node) = first.unwrap_or_default();
            let reason = format!("group {group} here has it as a member: take it out of its groups first");
            return refuse(reply, node, &reason);
        }
        self.start_place(Step::Open, DiskOp::Open { path: NEW_FILE.into(), mode: FileMode::Write });
    }

    /// Whether a node belongs to the cluster, so that it can be made a member of a group.
    pub(super) fn has_place(&self, node: NodeId) -> bool {
        self.cluster().incarnation(node).is_some()
    }

    /// As [`held`](Self::held), and whatever is not held stays so.
    fn promise(&mut self, places: &[Place]) -> Vec<(GroupId, NodeId)> {
        let held = self.held(places);
        let is_free = |place: &&Place| held.iter().all(|(_, node)| *node != place.node);
        self.places.promised = places.iter().filter(is_free).copied().collect();
        held
    }

    /// Whether a node's place is, or is about to be, another directory's than this one.
    pub(super) fn is_anothers(&self, node: NodeId, incarnation: u64) -> bool {
        let is_other = |place: &&Place| place.node == node && place.incarnation != incarnation;
        let mut later = self.cluster().places.iter().chain(&self.places.promised);
        // A lost one is nobody's: whoever is a member by its name can only be the one that is lost.
        later.any(|place| is_other(&place) && !place.is_lost())
    }

    /// Whether another directory is known to have a node's place, or to be about to have it, though it cannot be taken yet. The
    /// first shard knows.
    pub(super) fn is_being_replaced(&self, node: NodeId) -> bool {
        let change = self.places.change.iter().flat_map(|change| &change.places);
        self.places.news.iter().chain(change).any(|place| place.node == node)
    }

    /// Groups here that have the old directories of these places as members, as far as it is known.
    fn held(&self, places: &[Place]) -> Vec<(GroupId, NodeId)> {
        let cluster = self.cluster();
        // Of a node that nobody ever was before, no old promise can be; to refuse one is always safe. And when a place was
        // given up, nobody here had the old one: who is a member since is who takes it in that generation.
        let was_somebody = |place: &&Place| {
            let known = cluster.places.iter().find(|known| known.node == place.node);
            let is_older = match known {
                Some(known) => known.generation < place.generation,
                None => cluster.nodes().contains(&place.node) || place.generation > 0,
            };
            !place.is_lost() && is_older
        };
        let mut held = Vec::new();
        for place in places.iter().filter(was_somebody) {
            let started = self.slots.iter().filter(|one| self.names_the_old_one(one, place));
            let state_of = |one: &&RecoveredGroup| HardState::decode(&one.state).ok();
            let is_member = |one: &&RecoveredGroup| match state_of(one) {
                Some(state) => names(&state, place.node, Index::ZERO),
                None => cluster.founders().contains(&place.node),
            };
            let found = self.recovered.values().filter(is_member).map(|one| one.group);
            let old = cluster.incarnation(place.node);
            let named = old.and_then(|incarnation| self.named_with(place.node, incarnation));
            let all = started.map(|one| one.id).chain(found).chain(named);
            held.extend(all.map(|group| (group, place.node)).take(1));
        }
        held
    }

    fn names_the_old_one(&self, one: &Slot, place: &Place) -> bool {
        let raft = &one.raft;
        if !names(raft.hard_state(), place.node, raft.commit()) {
            return false;
        }
        let has_taken = |leader: NodeId| self.has_taken(leader, place);
        !(raft.knows_what_its_leader_said() && raft.leader().is_some_and(has_taken))
    }

    /// Whether another node has said that it takes the place for this one's, or a later one's.
    fn has_taken(&self, node: NodeId, place: &Place) -> bool {
        let told = self.transport.link(node).map_or(&[][..], |link| &link.places);
        told.iter().any(|told| told.node == place.node && told.rank() >= place.rank())
    }

    /// Groups that are led here and have a member by the name of one that is `held` go to leaders whose nodes know who it is.
    fn leave_lead_to_who_knows(&mut self, places: &[Place], held: &[(GroupId, NodeId)]) {
        let is_open = |place: &&Place| place.is_taken() && held.iter().any(|(_, node)| *node == place.node);
        let places: Vec<&Place> = places.iter().filter(is_open).collect();
        if places.is_empty() {
            return;
        }
        for slot in 0..self.slots.len() as u32 {
            let one = &self.slots[slot as usize];
            let raft = &one.raft;
            // Whoever does not take the lead may not be able to: it is not offered all the time.
            let is_late = self.now_us >= one.given_up_until_us;
            if raft.role() != Role::Leader || raft.transferring().is_some() || !is_late {
                continue;
            }
            let is_named = |place: &&&Place| names(raft.hard_state(), place.node, raft.commit());
            let knows = |place: &&Place| {
                let mut others = raft.members().iter().map(|member| member.id);
                others.find(|node| raft.members().is_voter(*node) && self.has_taken(*node, place))
            };
            let to = places.iter().filter(is_named).find_map(knows);
            if to.is_some() && self.require_members(slot, None).is_ok() {
                self.slots[slot as usize].given_up_until_us = self.now_us + give_up::AGAIN_US;
                let begun = self.slots[slot as usize].raft.transfer(self.now_us, to).is_ok();
                tracing::debug!(group = %self.slots[slot as usize].id, ?to, begun, "left to a node that knows the members");
                self.touch(slot);
            }
        }
    }

    fn start_place(&mut self, step: Step, op: DiskOp) {
        if let Some(change) = &mut self.places.change {
            change.step = step;
            self.disk.start(TOKEN, op);
        }
    }

    /// The cluster as it is to be; what became old meanwhile does not count.
    fn changed(&self, places: &[Place]) -> Cluster {
        let cluster = self.cluster();
        let newer = places.iter().filter(|place| cluster.is_news(place, NodeId::NONE));
        newer.fold(cluster.clone(), |cluster, place| cluster.with(*place))
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
                let places = change.places.clone();
                let cluster = Some(self.changed(&places));
                let identity = Identity { cluster, ..self.places.identity.clone() };
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
            (Step::SyncDir, ..) => self.tell_change(),
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
        self.tell_cluster(self.cluster().clone());
    }

    /// It is durable: now it holds, on every shard.
    fn tell_change(&mut self) {
        let Some(change) = &mut self.places.change else { return };
        change.step = Step::Telling;
        let places = change.places.clone();
        let cluster = self.changed(&places);
        let (number, shards) = (self.places.number, self.siblings.len().max(1) as u16);
        if let Some(change) = &mut self.places.change {
            change.waiting = (0..shards).map(ShardId).collect();
        }
        self.tell_cluster(cluster);
        self.on_taken(number, ShardId(0));
    }

    /// Every shard takes it: as it has become, or as it was, so that nobody keeps a promise for nothing.
    fn tell_cluster(&mut self, cluster: Cluster) {
        let number = self.places.number;
        for shard in 1..self.siblings.len() as u16 {
            self.tell_shard(ShardId(shard), Word::Are { number, cluster: cluster.clone() });
        }
        self.take_cluster(cluster);
    }

    fn on_taken(&mut self, number: u64, shard: ShardId) {
        let Some(change) = self.places.change.as_mut().filter(|change| change.step == Step::Telling) else {
            return;
        };
        if number != self.places.number || !change.waiting.remove(&shard) || !change.waiting.is_empty() {
            return;
        }
        if let Some(reply) = self.places.change.take().and_then(|change| change.reply) {
            reply.answer(Ok(()));
        }
        self.take_news();
    }

    /// From now on this is the cluster.
    fn take_cluster(&mut self, cluster: Cluster) {
        self.places.promised.clear();
        self.look_at_names();
        if cluster == *self.cluster() {
            return;
        }
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

/// Whether a node is a member, by the newest configuration, or by one before that may be in force again.
fn names(state: &HardState, node: NodeId, commit: Index) -> bool {
    // What was before a change that is committed decides nothing any more.
    let previous = state.previous.as_deref().filter(|_| state.current.index > commit);
    let mut each = [Some(&state.current), previous].into_iter().flatten();
    each.any(|one| one.members.contains(node))
}

fn refuse(reply: Option<Asked<()>>, node: NodeId, reason: &str) {
    if let Some(reply) = reply {
        reply.answer(Err(Error::Place { node, reason: reason.into() }));
    }
}
