//! Every byte of a WAL file: heads, batches, records, checkpoints; and of a segment. Pure: bytes in, values out.
//!
//! ```text
//!   file    head (two copies, a block each), then batches one after the other, each on a block boundary
//!   batch   header, records, zeros up to the block
//! ```

pub(crate) mod batch;
pub(crate) mod file_index;
pub(crate) mod head;
pub(crate) mod outline;
pub(crate) mod page;
pub(crate) mod record;
pub(crate) mod roster;
pub(crate) mod segment;
pub(crate) mod varint;

/// Set in the number of a file that is a segment: what compaction made, not a part of the log's chain of files.
pub const SEGMENT: u64 = 1 << 63;

/// No index, batch number or count of starts is ever larger, so that sums with them do not overflow.
pub(crate) const NUMBER_MAX: u64 = u64::MAX >> 2;

/// A place in the log: which file, and the byte offset in it. Ordered as the log is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) file_no: u64,
    pub(crate) offset: u64,
}

/// The identity of one use of a file: every checksum in it starts from this.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Uuid(pub(crate) u128);

impl Uuid {
    /// The identity of file `file_no` of the boot that drew `seed`.
    pub(crate) fn of(seed: u64, file_no: u64) -> Self {
        use coracle_base::checksum::mix64;
        let (low, high) = (mix64(seed, file_no), mix64(seed ^ 0xC04A_C1E0, file_no));
        Self(u128::from(high) << 64 | u128::from(low))
    }

    /// Where checksums of this file start from.
    pub(crate) fn seed(self) -> u32 {
        coracle_base::checksum::crc32c(&self.0.to_le_bytes())
    }

    pub(crate) fn low(self) -> u64 {
        self.0 as u64
    }
}

#[cfg(test)]
mod tests;
