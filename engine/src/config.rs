//! A node's settings: names, units, defaults, bounds and reasons. Checked at [`crate::Node::start`].

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use coracle_base::NodeId;
use coracle_base::limits::{BLOCK_BYTES, MEMBERS_MAX};
use coracle_io::Strategy;

use crate::Error;

/// Another node, or this one, as the cluster is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its id, from 1.
    pub id: NodeId,
    /// Where it listens for the other nodes.
    pub address: SocketAddr,
}

/// Settings of one node.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node's id, among `peers`.
    pub id: NodeId,
    /// All nodes of the cluster, this one among them, and those that are to join it: they may from the next start on.
    pub peers: Vec<Peer>,
    /// The node's own directory; created if missing, locked while in use.
    pub data_dir: PathBuf,
    /// Shards of the cluster, fixed once it is formed. 0: as the cluster was formed; else one a core, one in all on two
    /// cores or fewer (every further WAL adds flushes to the same disk), which all nodes must agree on.
    pub shards: u16,
    /// Size of a WAL file in bytes: a multiple of 4 KiB, from 64 KiB to 4 GiB less 4 KiB; default 128 MiB. Larger files
    /// mean fewer rolls and more space held by the youngest survivor. A command must fit a file: under 1 MiB not all
    /// of those that nodes with larger files take do.
    pub wal_max_size_bytes: u64,
    /// Entries in one WAL file, at most: then the next one is begun. Default 0: only when it is full.
    pub wal_max_entries: u64,
    /// False drops the checks of entries that are read from memory, and no other: what is written, sent, received or read
    /// from a file always has checksums, and they are always checked. Entries in memory are not checked again as yet, so
    /// both mean the same. Default true.
    pub wal_compute_checksums: bool,
    /// How WAL writes become durable. Where the file system refuses O_DIRECT, `Direct` falls back to `Sync` and
    /// `DirectFsync` to `Buffered`, with a warning.
    pub wal_write_strategy: Strategy,
    /// Period of the beats between nodes, microseconds; three missed ones take a link down. Default 100,000.
    pub beat_us: u64,
    /// Shortest election timeout, microseconds; the longest is twice that. At least three beats; default 300,000.
    pub election_us: u64,
    /// A disk that has not finished a write for so long stalls: this node hands over what it leads to members that hold it
    /// all, and stops leading after twice that, microseconds. 0: never. Less than the longest election timeout means that
    /// timeout: a handing over may take so long. Default 2,000,000.
    pub disk_stall_us: u64,
    /// How long a command may take before it is answered `Unknown` (or `NotDone`, if it never reached a log),
    /// microseconds. Default 5,000,000.
    pub command_timeout_us: u64,
    /// What a shard's groups keep in memory, at most, for members that are behind; those beyond it are served from files.
    /// Default 128 MiB.
    pub entry_cache_bytes: usize,
    /// For how long a read plan keeps the files that it is to read, microseconds; executed later, it gives nothing. Default
    /// 30,000,000.
    pub pin_us: u64,
    /// Bytes of files that a shard keeps for nothing but read plans, at most; beyond it, or on a full disk, the oldest
    /// plans lose theirs. Default 512 MiB.
    pub pin_bytes: u64,
    /// Entries between two snapshots in files of one group, at least, unless as many bytes as a WAL file holds came
    /// in between. Small snapshots go into the log and are taken at once. Default 4096.
    pub min_snapshot_interval: u64,
    /// Entries between two checkpoints of one machine, or a snapshot and a checkpoint, at least. Default 16,384.
    pub min_checkpoint_interval: u64,
    /// Checkpoints kept of one machine, at most: of more, the oldest goes. Default 10.
    pub max_checkpoints: usize,
    /// A machine that has applied so many entries since its last snapshot or checkpoint leaves a checkpoint when the node is
    /// stopped, for a fast start. Stopping waits at most some seconds for that. Default 0: never.
    pub min_recovery_checkpoint_interval: u64,
    /// Bytes of snapshots that this node sends to others in a second, at most, all transfers together. Default 134,217,728
    /// (128 MiB); 0: no limit.
    pub snapshot_bytes_per_s: u64,
    /// Pin each shard's thread to a core.
    pub pin_threads: bool,
    /// A label for what tells about this node; [`Node::metrics_key`](crate::Node::metrics_key) returns it. Default none.
    pub metrics_key: String,
}

impl Config {
    /// The default settings for node `id` of `peers`, with its data under `data_dir`.
    pub fn new(id: u64, peers: Vec<Peer>, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            id: NodeId(id),
            peers,
            data_dir: data_dir.into(),
            shards: 0,
            wal_max_size_bytes: 128 * 1024 * 1024,
            wal_max_entries: 0,
            wal_compute_checksums: true,
            wal_write_strategy: Strategy::Direct,
            beat_us: 100_000,
            election_us: 300_000,
            disk_stall_us: 2_000_000,
            command_timeout_us: 5_000_000,
            entry_cache_bytes: coracle_base::limits::ARENA_BYTES,
            pin_us: 30_000_000,
            pin_bytes: 512 * 1024 * 1024,
            min_snapshot_interval: 4096,
            min_checkpoint_interval: 16_384,
            max_checkpoints: 10,
            min_recovery_checkpoint_interval: 0,
            snapshot_bytes_per_s: 128 * 1024 * 1024,
            pin_threads: false,
            metrics_key: String::new(),
        }
    }

    /// Age of a write at which the disk stalls; 0: it never does.
    pub(crate) fn stall_in_force_us(&self) -> u64 {
        if self.disk_stall_us == 0 { 0 } else { self.disk_stall_us.max(2 * self.election_us) }
    }

    /// Shards in force for this machine if the cluster is formed now.
    pub fn shards_in_force(&self) -> u16 {
        if self.shards > 0 {
            return self.shards;
        }
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if cores <= 2 { 1 } else { cores.min(64) as u16 }
    }

    /// Where this node listens.
    pub(crate) fn listen(&self) -> Option<SocketAddr> {
        self.peers.iter().find(|peer| peer.id == self.id).map(|peer| peer.address)
    }

    /// Refuses settings that cannot work, naming the key.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let bad = |key: &'static str, reason: String| Err(Error::Config { key, reason });
        let ids: BTreeSet<NodeId> = self.peers.iter().map(|peer| peer.id).collect();
        if self.id == NodeId::NONE || ids.contains(&NodeId::NONE) {
            return bad("id", "node ids start from 1".into());
        }
        if !ids.contains(&self.id) {
            return bad("peers", format!("node {} itself is not among them", self.id));
        }
        if ids.len() != self.peers.len() {
            return bad("peers", "a node is listed twice".into());
        }
        if self.peers.len() > MEMBERS_MAX {
            return bad("peers", format!("{} nodes; at most {MEMBERS_MAX} are possible", self.peers.len()));
        }
        let (least, block) = (64 * 1024, BLOCK_BYTES as u64);
        let most = u64::from(u32::MAX) / block * block;
        if !(least..=most).contains(&self.wal_max_size_bytes)
            || !self.wal_max_size_bytes.is_multiple_of(block)
        {
            let found = self.wal_max_size_bytes;
            return bad(
                "wal_max_size_bytes",
                format!("{found} is not a multiple of {block} from {least} to {most}"),
            );
        }
        if self.metrics_key.contains(char::is_control) {
            return bad("metrics_key", format!("{:?}: a label has no control characters", self.metrics_key));
        }
        if self.shards > 1024 {
            return bad("shards", format!("{}; at most 1024 are possible", self.shards));
        }
        if self.beat_us < 1000 || self.election_us < 3 * self.beat_us {
            return bad(
                "election_us",
                format!("{} is less than three beats of {} us", self.election_us, self.beat_us),
            );
        }
        Ok(())
    }
}
