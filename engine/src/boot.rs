//! A shard's life from an empty directory on: forming the cluster, then running. Both stages are driven by
//! [`Server::turn`], in a thread or in the simulator.
//!
//! Forming needs no messages of its own: hellos say who is empty and show the cluster to those who are. The rule is
//! `identity.rs`'s; the cluster is durable at the lowest node before anybody else hears of it, and durable at each node
//! before that node takes up a group.

use std::net::SocketAddr;
use std::sync::Arc;

use coracle_base::checksum::mix64;
use coracle_base::{NodeId, ShardId};
use coracle_io::{Clock, Disk, DiskError, Net, NetEvent};
use coracle_wal::{Recovery, Wal};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::Error;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::identity::{Identity, log_dir};
use crate::lineage::Lineage;
use crate::shard::inbox::{Command, Inbox};
use crate::shard::names::Machines;
use crate::shard::places::Word;
use crate::shard::snapshots::Snapshots;
use crate::shard::{Settings, Shard, ShardError, ShardStatus, Turn};
use crate::transport::hello::Hello;
use crate::transport::{LinkEvent, Transport};

/// A boot's name has nothing to do with what else comes of the seed.
const BOOT_NAMES: u64 = 0x00b0_07ed;

/// The parts of the world that a shard is given.
pub(crate) struct Parts<D, N: Net, C> {
    pub(crate) disk: D,
    pub(crate) net: N,
    pub(crate) clock: C,
    pub(crate) inbox: Arc<Inbox<N::Socket>>,
    pub(crate) siblings: Vec<Arc<Inbox<N::Socket>>>,
    /// For file identities, incarnations, the cluster id and jitter: fresh at every start.
    pub(crate) seed: u64,
    /// For named groups; none: the node has no directory.
    pub(crate) machines: Option<Machines>,
    /// The newest protocol version that the node speaks; an older one is for tests of clusters in mid-upgrade.
    pub(crate) protocol: u16,
    #[cfg(feature = "breaks")]
    pub(crate) breaks: crate::breaks::Breaks,
}

/// An empty node that waits for its cluster.
struct Forming<D, N: Net, C> {
    config: Config,
    identity: Identity,
    transport: Transport,
    parts: Parts<D, N, C>,
    rng: SmallRng,
    waiting_starts: Vec<Command<N::Socket>>,
    events: Vec<NetEvent>,
    link_events: Vec<LinkEvent>,
    /// Why a peer would not have us, said once.
    refused: Option<(NodeId, String)>,
}

enum Stage<D: Disk, N: Net, C: Clock> {
    Forming(Box<Forming<D, N, C>>),
    Running(Box<Shard<D, N, C>>),
    Stopped(Error),
}

/// One shard of one node, in whatever stage it is.
pub(crate) struct Server<D: Disk, N: Net, C: Clock> {
    stage: Stage<D, N, C>,
    /// Who the directory is, once the cluster is formed.
    identity: Option<Identity>,
}

impl<D: Disk, N: Net, C: Clock> Server<D, N, C> {
    /// The first shard: knows or makes the directory's identity, listens at `listen`, and runs at once if the cluster is
    /// formed.
    ///
    /// # Errors
    /// The directory is not this node's, is damaged, or cannot be written; the address cannot be bound.
    pub(crate) fn open(
        config: &Config,
        listen: SocketAddr,
        mut parts: Parts<D, N, C>,
    ) -> Result<Self, Error> {
        let mut rng = SmallRng::seed_from_u64(parts.seed);
        #[cfg(feature = "breaks")]
        parts.breaks.plant();
        let shards = config.shards_in_force();
        let identity = Identity::open(&mut parts.disk, config.id, shards, rng.random_range(1..u64::MAX))?;
        check_members(config, &identity)?;
        parts.net.listen(listen)?;
        let now_us = parts.clock.now_us();
        let hello = Hello::of(&identity, ShardId(0), 0, parts.protocol);
        let transport = Transport::new(hello, &config.peers, config.beat_us, now_us, rng.random());
        if identity.cluster.is_some() {
            return Self::run(config, &identity, ShardId(0), transport, parts);
        }
        tracing::info!(node = %config.id, "no cluster yet: waiting for all {} nodes", config.peers.len());
        let forming = Forming {
            config: config.clone(),
            identity,
            transport,
            parts,
            rng,
            waiting_starts: Vec::new(),
            events: Vec::new(),
            link_events: Vec::new(),
            refused: None,
        };
        Ok(Self { stage: Stage::Forming(Box::new(forming)), identity: None })
    }

    /// A further shard of a node whose cluster is formed.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn open_further(
        config: &Config,
        identity: &Identity,
        shard: ShardId,
        parts: Parts<D, N, C>,
    ) -> Result<Self, Error> {
        let hello = Hello::of(identity, shard, 0, parts.protocol);
        let transport =
            Transport::new(hello, &config.peers, config.beat_us, parts.clock.now_us(), parts.seed);
        Self::run(config, identity, shard, transport, parts)
    }

    /// Recovers the WAL and begins to run.
    fn run(
        config: &Config,
        identity: &Identity,
        shard: ShardId,
        mut transport: Transport,
        mut parts: Parts<D, N, C>,
    ) -> Result<Self, Error> {
        let cluster = identity.cluster.as_ref().expect("run is called once the cluster is formed");
        let mut wal_config = coracle_wal::Config::new(log_dir(shard), parts.seed);
        wal_config.file_bytes = config.wal_max_size_bytes;
        (wal_config.pin_us, wal_config.pin_bytes) = (config.pin_us, config.pin_bytes);
        wal_config.file_entries_max = config.wal_max_entries;
        let wal_identity = identity.of_log(shard).expect("run is called once the cluster is formed");
        #[cfg(feature = "breaks")]
        parts.breaks.plant();
        wal_config.begun = Identity::has_begun(&mut parts.disk, shard)?;
        let (wal, recovery) = Wal::open(&mut parts.disk, wal_config, wal_identity)?;
        if recovery.report.created {
            Identity::begin_log(&mut parts.disk, shard)?;
        }
        let name = mix64(parts.seed, mix64(BOOT_NAMES, u64::from(shard.0)));
        let lineage = begin_boot(&mut parts.disk, shard, &recovery, name)?;
        // Of a group that has lost records nobody knows which of its files is the newest: they stay until it is whole.
        let damaged = recovery.report.is_incomplete() || recovery.groups.iter().any(|group| group.suspect);
        let dir = log_dir(shard).join("snapshots");
        let snapshots = Snapshots::open(
            &mut parts.disk,
            dir,
            wal_identity,
            &recovery.groups,
            damaged,
            config.snapshot_bytes_per_s / u64::from(identity.shards.max(1)),
        )?;
        let now_us = parts.clock.now_us();
        let hello = Hello::of(identity, shard, recovery.boot_epoch, parts.protocol);
        transport.formed(&mut parts.net, Hello { boot: name, ..hello }, now_us);
        transport.remember(&lineage.0.heard);
        let settings = Settings {
            node: identity.node,
            founders: cluster.founders(),
            election_us: config.election_us,
            disk_stall_us: config.stall_in_force_us(),
            command_timeout_us: config.command_timeout_us,
            entry_cache_bytes: config.entry_cache_bytes,
            root: std::path::absolute(&config.data_dir).unwrap_or_else(|_| config.data_dir.clone()).into(),
            min_snapshot_interval: config.min_snapshot_interval,
            min_checkpoint_interval: config.min_checkpoint_interval,
            max_checkpoints: config.max_checkpoints,
            min_recovery_checkpoint_interval: config.min_recovery_checkpoint_interval,
            seed: parts.seed,
            #[cfg(feature = "breaks")]
            breaks: parts.breaks,
        };
        let Parts { disk, net, clock, inbox, siblings, machines, .. } = parts;
        let mut shard = Shard::new(
            settings,
            identity.clone(),
            disk,
            net,
            clock,
            wal,
            recovery,
            snapshots,
            transport,
            lineage,
            inbox,
            siblings,
            machines,
        );
        shard.begin_directory();
        Ok(Self { stage: Stage::Running(Box::new(shard)), identity: Some(identity.clone()) })
    }

    /// Whether the cluster is formed and the shard runs.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Running(_))
    }

    /// Who the directory is, once the cluster is formed.
    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// The running shard.
    pub(crate) fn shard(&self) -> Option<&Shard<D, N, C>> {
        match &self.stage {
            Stage::Running(shard) => Some(shard),
            _ => None,
        }
    }

    /// One turn of whatever stage it is.
    ///
    /// # Errors
    /// The shard has stopped; every further call returns the same error.
    pub(crate) fn turn(&mut self) -> Result<Turn, Error> {
        let result = match &mut self.stage {
            Stage::Running(shard) => shard.turn().map_err(stop_error),
            Stage::Forming(forming) => match forming.turn() {
                Ok(None) => Ok(Turn { busy: false, deadline_us: forming.transport.deadline_us() }),
                Ok(Some(())) => self.form(),
                Err(error) => Err(error),
            },
            Stage::Stopped(error) => return Err(error.clone()),
        };
        if let Err(error) = &result {
            self.stop_with(error.clone());
        }
        result
    }

    /// Ends it for `error`, after a turn that did not come to its end: whoever can be found is answered.
    pub(crate) fn fail(&mut self, error: Error) {
        self.stop_with(error);
    }

    fn stop_with(&mut self, error: Error) {
        let asked = matches!(error, Error::Stopped(None));
        match std::mem::replace(&mut self.stage, Stage::Stopped(error)) {
            // Asked to stop, it leaves its files in good order; after an error nothing more is written.
            Stage::Running(shard) if asked => {
                if let Err(error) = shard.stop() {
                    tracing::warn!(%error, "stopping: the last writes failed; nothing acknowledged depends on them");
                }
            }
            Stage::Running(mut shard) => shard.answer_everybody(),
            Stage::Forming(forming) => forming.parts.inbox.close(),
            Stage::Stopped(_) => {}
        }
    }

    /// The identity is durable: from forming to running.
    fn form(&mut self) -> Result<Turn, Error> {
        let stage = std::mem::replace(&mut self.stage, Stage::Stopped(Error::Stopped(None)));
        let Stage::Forming(forming) = stage else { return Err(Error::Stopped(None)) };
        let Forming { config, identity, transport, parts, waiting_starts, .. } = *forming;
        tracing::info!(node = %identity.node, "cluster formed");
        let inbox = parts.inbox.clone();
        *self = Self::run(&config, &identity, ShardId(0), transport, parts).inspect_err(|_| inbox.close())?;
        for command in waiting_starts {
            // An inbox that is full of other things refuses: the caller sees that its channel is gone.
            let _ = inbox.push(command);
        }
        Ok(Turn { busy: true, deadline_us: 0 })
    }
}

/// The nodes that formed the cluster, and are not lost since, must be among the peers of the configuration. Further ones may
/// be: they come later. One that came later and is not named is not spoken to.
fn check_members(config: &Config, identity: &Identity) -> Result<(), Error> {
    let Some(cluster) = &identity.cluster else { return Ok(()) };
    let is_named = |node: &NodeId| config.peers.iter().any(|peer| peer.id == *node);
    for node in cluster.nodes().into_iter().filter(|node| !is_named(node)) {
        if cluster.founders().contains(&node) {
            let reason =
                format!("node {node} belongs to the cluster, and the configuration does not name it");
            return Err(Error::Config { key: "peers", reason });
        }
        tracing::warn!(%node, "it has or had a place in the cluster, and is not among this node's peers");
    }
    Ok(())
}

/// The list of boots with this one, and as it is on the disk: a full one keeps nobody from starting.
fn begin_boot<D: Disk>(
    disk: &mut D,
    shard: ShardId,
    recovery: &Recovery,
    name: u64,
) -> Result<(Lineage, Lineage), Error> {
    let saved = Lineage::read(disk, shard)?;
    let mut lineage = saved.clone();
    lineage.begin(recovery.boot_epoch, name, recovery.end_seq);
    match lineage.save(disk, shard) {
        Ok(()) => Ok((lineage.clone(), lineage)),
        Err(DiskError::Crashed) => Err(DiskError::Crashed.into()),
        Err(error) => {
            tracing::warn!(%error, "the list of boots could not be written: it is tried again");
            Ok((lineage, saved))
        }
    }
}

fn stop_error(error: ShardError) -> Error {
    match error {
        ShardError::Stopped => Error::Stopped(None),
        ShardError::Wal(error) => Error::Wal(error),
        ShardError::Disk(error) => Error::Disk(error),
        ShardError::Net(error) => Error::Net(error),
    }
}

impl<D: Disk, N: Net, C: Clock> Forming<D, N, C> {
    /// `Some` when the cluster is formed and durable here.
    fn turn(&mut self) -> Result<Option<()>, Error> {
        let now_us = self.parts.clock.now_us();
        while let Some(command) = self.parts.inbox.pop() {
            self.on_command(command)?;
        }
        let mut events = std::mem::take(&mut self.events);
        self.parts.net.events(&mut events);
        for event in events.drain(..) {
            self.transport.on_event(&mut self.parts.net, event, now_us, &mut self.link_events);
        }
        self.events = events;
        self.transport.tick(&mut self.parts.net, now_us, &mut self.link_events);
        let cluster = self.on_link_events();
        self.parts.net.submit()?;
        self.parts.disk.submit()?;
        let Some(cluster) = cluster.or_else(|| self.found()) else { return Ok(None) };
        self.identity.cluster = Some(cluster);
        self.identity.save(&mut self.parts.disk)?;
        Ok(Some(()))
    }

    fn on_link_events(&mut self) -> Option<Cluster> {
        let mut adopted = None;
        for event in std::mem::take(&mut self.link_events) {
            match event {
                LinkEvent::Adopt(cluster) => adopted = Some(cluster),
                LinkEvent::Refused { node, reason } => {
                    if self.refused.as_ref().is_none_or(|(known, why)| *known != node || *why != reason) {
                        tracing::warn!(%node, reason, "the cluster does not take this node");
                        self.refused = Some((node, reason));
                    }
                }
                LinkEvent::HandOver { conn, .. } => self.parts.net.close(conn),
                LinkEvent::Envelopes { .. }
                | LinkEvent::Up { .. }
                | LinkEvent::Down { .. }
                | LinkEvent::News(_)
                | LinkEvent::BothEmpty => {}
            }
        }
        adopted
    }

    /// The lowest node founds the cluster, once everybody has said that he is empty.
    fn found(&mut self) -> Option<Cluster> {
        let lowest = self.config.peers.iter().map(|peer| peer.id).min()?;
        #[cfg(feature = "breaks")]
        let lowest = if self.parts.breaks.double_bootstrap { self.identity.node } else { lowest };
        if self.identity.node != lowest {
            return None;
        }
        let mut members = self.transport.all_empty()?;
        members.push((self.identity.node, self.identity.incarnation));
        members.sort_unstable();
        // Zero means "none" in the identity file.
        let id = u128::from(self.rng.random::<u64>()) << 64 | u128::from(self.rng.random::<u64>().max(1));
        Some(Cluster::new(id, members))
    }

    fn on_command(&mut self, command: Command<N::Socket>) -> Result<(), Error> {
        match command {
            Command::Stop => return Err(Error::Stopped(None)),
            command @ (Command::StartGroups { .. } | Command::Watch(_)) => self.waiting_starts.push(command),
            Command::GroupStatus { groups, reply } => reply.answer(Ok(vec![None; groups.len()])),
            Command::Compact { begun } => begun.answer(Ok(())),
            Command::Status { reply } => {
                reply.answer(Ok(ShardStatus { forming: true, ..Default::default() }))
            }
            #[cfg(feature = "admin")]
            Command::GroupsAfter { reply, .. } => reply.answer(Ok(Vec::new())),
            Command::Drain { reply } => reply.answer(Ok(Default::default())),
            Command::Campaign { group, reply } => reply.answer(Err(Error::NoGroup(group))),
            Command::Shrink { group, reply } => reply.answer(Err(Error::NoGroup(group))),
            Command::Places(Word::GiveUp { reply, .. } | Word::Lose { reply, .. }) => {
                let reason = "it waits for its own cluster: ask another one".into();
                reply.answer(Err(Error::Place { node: self.identity.node, reason }));
            }
            command => command.refuse(crate::Reason::NoLeader),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Peer;

    #[test]
    fn whoever_belongs_to_the_cluster_has_to_be_named() {
        let cluster = Cluster::new(7, vec![(NodeId(1), 11), (NodeId(2), 22)]);
        let cluster = cluster.with(cluster.take(NodeId(3), 33, NodeId(1)));
        let identity = Identity { node: NodeId(1), incarnation: 11, shards: 1, cluster: Some(cluster) };
        let judge = |ids: &[u64]| {
            let peer = |id: &u64| Peer { id: NodeId(*id), address: ([127, 0, 0, 1], 7000).into() };
            check_members(&Config::new(1, ids.iter().map(peer).collect(), "/unused"), &identity)
        };
        assert!(judge(&[1, 2, 3]).is_ok() && judge(&[1, 2, 3, 4]).is_ok(), "one more may come");
        assert!(judge(&[1, 2]).is_ok(), "it was perhaps only heard of");
        assert!(judge(&[1, 3, 4]).unwrap_err().to_string().contains("belongs to the cluster"));
    }
}
