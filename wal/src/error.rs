//! What can go wrong, by what the caller can do about it.

use std::path::PathBuf;

use coracle_base::Index;
use coracle_io::DiskError;

/// The log cannot be opened, or has stopped for good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// An operation failed. After a failed write or sync nothing more becomes durable: stop the shard, start again.
    #[error("write-ahead log: {0}")]
    Disk(#[from] DiskError),
    /// The file is another cluster's, node's or shard's: use the right directory.
    #[error(
        "{file}: {field} is {found}, but this is {expected}; use the directory that belongs to this node"
    )]
    WrongIdentity {
        /// Which file.
        file: PathBuf,
        /// What differs.
        field: &'static str,
        /// What the file says.
        found: u128,
        /// What was expected.
        expected: u128,
    },
    /// A newer Coracle wrote this file: start that one. Nothing was changed.
    #[error("{file}: format version {version} needs a newer Coracle (this one reads up to {ours})")]
    NewerFormat {
        /// Which file.
        file: PathBuf,
        /// Its format version.
        version: u32,
        /// The newest that this program reads.
        ours: u32,
    },
    /// A record that must be understood is of no known kind: a newer Coracle wrote it. Nothing was changed.
    #[error("{file}: record of unknown kind {kind} at {offset} must be understood; start a newer Coracle")]
    UnknownRecord {
        /// Which file.
        file: PathBuf,
        /// Byte offset of its batch.
        offset: u64,
        /// The kind.
        kind: u8,
    },
    /// Neither a whole checkpoint nor the beginning of the log is left: this node's log is lost. Bring the node back as
    /// a new one, or restore the files named.
    #[error("{dir}: the log is damaged beyond recovery: {missing}")]
    Lost {
        /// The log's directory.
        dir: PathBuf,
        /// What is not there any more.
        missing: String,
    },
    /// The size of a file in the configuration is impossible.
    #[error("file size {found} is not a multiple of 4096 between {smallest} and 4 GiB")]
    FileBytes {
        /// The size asked for.
        found: u64,
        /// The least possible.
        smallest: u64,
    },
    /// The size of a batch in the configuration is impossible.
    #[error("batch size {found} is not a multiple of 4096 between 4 KiB and 1 MiB")]
    BatchBytes {
        /// The size asked for.
        found: usize,
    },
}

/// Why entries cannot be read back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The log does not hold the entry (any more): send the snapshot instead.
    #[error("entry {index} is not in the log, which holds {first} to {last}")]
    Released {
        /// The entry asked for.
        index: Index,
        /// The log's first.
        first: Index,
        /// The log's last; before `first` if it is empty.
        last: Index,
    },
    /// The entry is not durable yet: it is still in memory.
    #[error("entry {index} is not durable yet")]
    NotDurable {
        /// The entry.
        index: Index,
    },
    /// What should be there is damaged: fetch it from a peer.
    #[error("{file}: entry {index} is damaged: {why}")]
    Corrupt {
        /// Which file.
        file: PathBuf,
        /// The first entry that cannot be read.
        index: Index,
        /// What does not hold.
        why: String,
    },
    /// The disk failed to read.
    #[error(transparent)]
    Disk(#[from] DiskError),
}
