//! A segment: live entries that compaction has brought together, by group and index. Written once, never changed.
//!
//! ```text
//!   head      two equal copies, at offsets 0 and 4096
//!   runs      from 8192 on, one after the other, as `base/src/run.rs` says, in stretches of some mebibytes by group and
//!             index; `prev_term` is 0, `accepted_term` that of the last entry; then zeros up to a block
//!   index     for every run, by group and index: group u64, first u64, count u32, offset u32; then zeros up to a block
//!   trailer   the last block
//!
//!   head      0    8    magic       "CORACLES"
//!             8    4    version     1
//!             12   4    min_reader  1: readers below it refuse the file
//!             16   16   cluster
//!             32   8    node
//!             40   8    incarnation
//!             48   2    shard
//!             50   2    shards
//!             52   4    zeros
//!             56   8    file_no     bit 63 is set; never used again
//!             64   16   uuid
//!             80   ..   zeros
//!             4092 4    crc32c      of [0, 4092)
//!   trailer   0    8    magic       "CORACLEE"
//!             8    8    file_no
//!             16   8    index_at    offset of the index
//!             24   8    run_count
//!             32   4    index_crc   crc32c of the index without its zeros, from the file's seed
//!             36   ..   zeros
//!             4092 4    crc32c      of [0, 4092), from the file's seed
//! ```
//!
//! Invariant: a segment counts only once a `moved` record names it, and is durable before that record is staged.

use coracle_base::checksum::{crc32c, crc32c_from};
use coracle_base::codec::{Reader, Sink, Truncated};
use coracle_base::limits::BLOCK_BYTES;
use coracle_base::{GroupId, NodeId, ShardId};

use super::{SEGMENT, Uuid};
use crate::config::Identity;

const MAGIC: [u8; 8] = *b"CORACLES";
const END_MAGIC: [u8; 8] = *b"CORACLEE";
/// The newest format of segments that this program reads, and the one it writes.
pub(crate) const SEGMENT_VERSION: u32 = 1;
/// Bytes of a run in the index.
pub(crate) const INDEX_ENTRY_BYTES: usize = 24;

/// A segment's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHead {
    pub(crate) identity: Identity,
    pub(crate) file_no: u64,
    pub(crate) uuid: Uuid,
}

/// What one copy turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SegmentCopy {
    Sound(SegmentHead),
    /// Written by a program that says we cannot read it.
    Newer {
        version: u32,
    },
    Bad,
}

impl SegmentHead {
    /// Both copies.
    pub(crate) fn encode(&self, out: &mut impl Sink) {
        let mut copy = Vec::with_capacity(BLOCK_BYTES);
        copy.put(&MAGIC);
        copy.put_u32(SEGMENT_VERSION);
        copy.put_u32(SEGMENT_VERSION);
        copy.put_u128(self.identity.cluster);
        copy.put_u64(self.identity.node.0);
        copy.put_u64(self.identity.incarnation);
        copy.put_u16(self.identity.shard.0);
        copy.put_u16(self.identity.shards);
        copy.put_u32(0);
        copy.put_u64(self.file_no);
        copy.put_u128(self.uuid.0);
        copy.resize(BLOCK_BYTES - 4, 0);
        let crc = crc32c(&copy);
        copy.put_u32(crc);
        out.put(&copy);
        out.put(&copy);
    }

    /// Reads one copy from its block.
    pub(crate) fn decode(block: &[u8]) -> SegmentCopy {
        if block.len() != BLOCK_BYTES || !block.starts_with(&MAGIC) {
            return SegmentCopy::Bad;
        }
        let (body, crc) = block.split_at(BLOCK_BYTES - 4);
        if crc32c(body).to_le_bytes() != crc {
            return SegmentCopy::Bad;
        }
        Self::decode_body(&body[MAGIC.len()..]).unwrap_or(SegmentCopy::Bad)
    }

    fn decode_body(body: &[u8]) -> Result<SegmentCopy, Truncated> {
        let mut reader = Reader::new(body);
        let (version, min_reader) = (reader.u32()?, reader.u32()?);
        if min_reader > SEGMENT_VERSION {
            return Ok(SegmentCopy::Newer { version });
        }
        let identity = Identity {
            cluster: reader.u128()?,
            node: NodeId(reader.u64()?),
            incarnation: reader.u64()?,
            shard: ShardId(reader.u16()?),
            shards: reader.u16()?,
        };
        reader.u32()?;
        let (file_no, uuid) = (reader.u64()?, Uuid(reader.u128()?));
        if file_no & SEGMENT == 0 {
            return Ok(SegmentCopy::Bad);
        }
        Ok(SegmentCopy::Sound(Self { identity, file_no, uuid }))
    }
}

/// A run as the index tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentRun {
    pub(crate) group: GroupId,
    pub(crate) first: u64,
    pub(crate) count: u32,
    /// Of the run in the file.
    pub(crate) offset: u32,
}

/// Appends the index, without zeros after it.
pub(crate) fn put_index(runs: &[SegmentRun], out: &mut impl Sink) {
    for run in runs {
        out.put_u64(run.group.0);
        out.put_u64(run.first);
        out.put_u32(run.count);
        out.put_u32(run.offset);
    }
}

/// What the last block says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) file_no: u64,
    pub(crate) index_at: u64,
    pub(crate) run_count: u64,
    pub(crate) index_crc: u32,
}

impl Trailer {
    /// The last block.
    pub(crate) fn encode(&self, seed: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK_BYTES);
        out.put(&END_MAGIC);
        out.put_u64(self.file_no);
        out.put_u64(self.index_at);
        out.put_u64(self.run_count);
        out.put_u32(self.index_crc);
        out.resize(BLOCK_BYTES - 4, 0);
        let crc = crc32c_from(seed, &out);
        out.put_u32(crc);
        out
    }

    /// The trailer of segment `file_no`, which ends at `file_bytes`: `None` if the block is not it.
    pub(crate) fn decode(block: &[u8], seed: u32, file_no: u64, file_bytes: u64) -> Option<Self> {
        if block.len() != BLOCK_BYTES || !block.starts_with(&END_MAGIC) {
            return None;
        }
        let (body, crc) = block.split_at(BLOCK_BYTES - 4);
        if crc32c_from(seed, body).to_le_bytes() != crc {
            return None;
        }
        let trailer = Self::decode_fields(&body[END_MAGIC.len()..]).ok()?;
        let index_end = trailer.index_at.checked_add(trailer.index_bytes()?)?;
        (trailer.file_no == file_no && index_end <= file_bytes).then_some(trailer)
    }

    fn decode_fields(body: &[u8]) -> Result<Self, Truncated> {
        let mut reader = Reader::new(body);
        let (file_no, index_at, run_count) = (reader.u64()?, reader.u64()?, reader.u64()?);
        Ok(Self { file_no, index_at, run_count, index_crc: reader.u32()? })
    }

    /// Bytes of the index, without zeros after it.
    pub(crate) fn index_bytes(&self) -> Option<u64> {
        self.run_count.checked_mul(INDEX_ENTRY_BYTES as u64)
    }

    /// The runs of an index; `None` if these bytes are not it.
    pub(crate) fn decode_index(&self, bytes: &[u8], seed: u32) -> Option<Vec<SegmentRun>> {
        if Some(bytes.len() as u64) != self.index_bytes() || crc32c_from(seed, bytes) != self.index_crc {
            return None;
        }
        let run = |bytes: &[u8]| -> Result<SegmentRun, Truncated> {
            let mut reader = Reader::new(bytes);
            Ok(SegmentRun {
                group: GroupId(reader.u64()?),
                first: reader.u64()?,
                count: reader.u32()?,
                offset: reader.u32()?,
            })
        };
        bytes.chunks_exact(INDEX_ENTRY_BYTES).map(|bytes| run(bytes).ok()).collect()
    }
}
