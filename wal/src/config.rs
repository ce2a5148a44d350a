//! What a log is told when it is opened: where, how large, and whose it is. How its writes become durable is the disk's
//! business (`coracle_io::Strategy`).

use std::path::PathBuf;

use coracle_base::limits::{BATCH_BYTES_MAX, BATCH_BYTES_TARGET, BLOCK_BYTES, WRITES_IN_FLIGHT_MAX};
use coracle_base::{NodeId, ShardId};

use crate::error::WalError;
use crate::format::head::HEAD_AREA_BYTES;

/// Settings of one log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The log's own directory, relative to the disk's.
    pub dir: PathBuf,
    /// Size of a file, a multiple of 4 KiB. A record must fit into an empty one: 2 MiB hold any, smaller files are for
    /// tests.
    pub file_bytes: u64,
    /// The next file is begun when this one has so many entries; a run with more of them has a file of its own. 0: only
    /// when it is full.
    pub file_entries_max: u64,
    /// Files kept ready beyond the one in use.
    pub spares: usize,
    /// A batch that has to wait is closed when it has gathered this much; a larger record gets a larger one of its own. A
    /// multiple of 4 KiB, at most 1 MiB.
    pub batch_bytes: usize,
    /// A checkpoint is begun after so many bytes of records, and whenever a file is full.
    pub checkpoint_every_bytes: u64,
    /// After so much quiet a marker batch makes the last batch provable, too.
    pub idle_mark_us: u64,
    /// A reader beside the log may keep files for so long.
    pub pin_us: u64,
    /// And no more bytes of files that nothing else keeps.
    pub pin_bytes: u64,
    /// File identities come from it. To be drawn fresh at every start: a number that was never used with this directory.
    pub seed: u64,
    /// There has been a log here: if nothing is left of it, that is an error, not a new log.
    pub begun: bool,
}

impl Config {
    /// The defaults of the house for a log in `dir`.
    pub fn new(dir: impl Into<PathBuf>, seed: u64) -> Self {
        Self {
            dir: dir.into(),
            file_bytes: 128 << 20,
            file_entries_max: 0,
            spares: 2,
            batch_bytes: BATCH_BYTES_TARGET,
            checkpoint_every_bytes: 64 << 20,
            idle_mark_us: 75_000,
            pin_us: 30_000_000,
            pin_bytes: 512 << 20,
            seed,
            begun: false,
        }
    }

    pub(crate) fn check(&self) -> Result<(), WalError> {
        let block = BLOCK_BYTES as u64;
        let smallest = HEAD_AREA_BYTES + WRITES_IN_FLIGHT_MAX as u64 * block;
        if self.file_bytes < smallest
            || !self.file_bytes.is_multiple_of(block)
            || self.file_bytes > u64::from(u32::MAX)
        {
            return Err(WalError::FileBytes { found: self.file_bytes, smallest });
        }
        let in_bounds = (BLOCK_BYTES..=BATCH_BYTES_MAX).contains(&self.batch_bytes);
        if !in_bounds || !self.batch_bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(WalError::BatchBytes { found: self.batch_bytes });
        }
        Ok(())
    }
}

/// Whose log it is. In the head of every file; any other's is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: u128,
    /// The node.
    pub node: NodeId,
    /// The node's incarnation, drawn with its data directory.
    pub incarnation: u64,
    /// The shard.
    pub shard: ShardId,
    /// Shards of the cluster.
    pub shards: u16,
}
