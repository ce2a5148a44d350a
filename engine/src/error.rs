//! What can go wrong with a node, by what the caller can do about it.

use std::path::PathBuf;

use coracle_base::{GroupId, NodeId};
use coracle_io::{DiskError, NetError};
use coracle_wal::WalError;

/// Why a node or a group could not start, or had to stop.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A setting cannot work: correct it.
    #[error("bad configuration: {key}: {reason}")]
    Config {
        /// The setting.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The data directory belongs to another node or cluster, or to other settings.
    #[error("{path}: {reason}")]
    Directory {
        /// The identity file.
        path: PathBuf,
        /// What does not fit, and what to do.
        reason: String,
    },
    /// The cluster refuses this node.
    #[error("node {peer} refuses this node: {reason}")]
    Refused {
        /// Who refuses.
        peer: NodeId,
        /// Why, and what to do.
        reason: String,
    },
    /// The disk.
    #[error("disk: {0}")]
    Disk(#[from] DiskError),
    /// The write-ahead log.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The network.
    #[error("network: {0}")]
    Net(#[from] NetError),
    /// The group is already running on this node.
    #[error("group {0} is already running on this node")]
    GroupRuns(GroupId),
    /// The group does not run on this node.
    #[error("group {0} does not run on this node")]
    NoGroup(GroupId),
    /// Group uids start from 1; 0 is the directory group's.
    #[error("group uid 0 is kept for the directory group; choose one from 1")]
    GroupZero,
    /// Group uids from 2^48 on are drawn by the directory: [`Directory::create`](crate::Directory::create) makes such a group.
    #[error("group uid {0} is the directory's to give; choose one below 2^48, or create a group by name")]
    GroupNamed(GroupId),
    /// A node's place in the cluster is not another's.
    #[error("node {node}: {reason}")]
    Place {
        /// Whose place.
        node: NodeId,
        /// Why, and what to do.
        reason: String,
    },
    /// A group does not become this node's alone.
    #[error("group {group}: {reason}")]
    Shrink {
        /// The group.
        group: GroupId,
        /// Why, and what to do.
        reason: String,
    },
    /// A machine could not be brought back from its snapshot.
    #[error("group {group}: {reason}")]
    Machine {
        /// The group.
        group: GroupId,
        /// What the machine said.
        reason: String,
    },
    /// The shard's inbox is full: try again.
    #[error("the shard's inbox is full; try again")]
    Busy,
    /// The node has stopped, or is stopping.
    #[error("the node has stopped{}", .0.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    Stopped(Option<String>),
    /// The system refused a thread.
    #[error("cannot start a thread: {0}")]
    Thread(String),
}
