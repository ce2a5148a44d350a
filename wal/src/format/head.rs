//! The head of a file: whose it is, which use of the file, and what it follows.
//!
//! ```text
//!   offset  size  field        (two equal copies, at offsets 0 and 4096)
//!   0       8     magic        "CORACLEW"
//!   8       4     version      2; 1: its batches are of version 1
//!   12      4     min_reader   2: readers below it refuse the file
//!   16      16    cluster
//!   32      8     node
//!   40      8     incarnation
//!   48      2     shard
//!   50      2     shards       of the cluster
//!   52      4     window       writes in flight at most: K of the torn-tail rule
//!   56      8     file_no      rises by one; a use of a file never has the number of another one
//!   64      16    uuid         fresh for every use
//!   80      8     boot_epoch   rises with every start
//!   88      8     first_seq    of the first batch; 0 if it follows the previous file's last
//!   96      8     prev.file_no 0: this is the first file of the log
//!   104     16    prev.uuid
//!   120     8     prev.end     offset at which the previous file ends for ever; 2^64 - 1: open, its batches go on here
//!   128     8     prev.end_seq    last batch before `end`
//!   136     8     prev.end_chain  its chain value
//!   144     4     flags        bit 0: the tail that was cut off at `prev.end` is suspect
//!   148     4     block        4096
//!   152     8     file_bytes   size of the file: one that is shorter has lost its end
//!   160     ..    zeros
//!   4092    4     crc32c       of [0, 4092)
//! ```
//!
//! Invariants: (1) a closed head is the atomic cut: bytes of the previous file beyond `end` are void for ever; (2) magic,
//! version, min_reader and the checksum's place are the same in every version.

use coracle_base::checksum::crc32c;
use coracle_base::codec::{Reader, Sink, Truncated};
use coracle_base::limits::{BLOCK_BYTES, WRITES_IN_FLIGHT_MAX};
use coracle_base::{NodeId, ShardId};

use super::Uuid;
use crate::config::Identity;

const MAGIC: [u8; 8] = *b"CORACLEW";
/// The newest file format this program reads, and the one it writes.
pub(crate) const VERSION: u32 = 2;
/// Both copies: the first batch starts here.
pub(crate) const HEAD_AREA_BYTES: u64 = 2 * BLOCK_BYTES as u64;
const OPEN: u64 = u64::MAX;
const FLAG_TAIL_SUSPECT: u32 = 1;

/// Where the previous file ends for ever, said by the start that cut it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) end: u64,
    pub(crate) end_seq: u64,
    pub(crate) end_chain: u64,
    /// Acknowledged records may have been lost at the cut.
    pub(crate) suspect: bool,
}

/// The file before this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prev {
    pub(crate) file_no: u64,
    pub(crate) uuid: Uuid,
    /// `None`: same boot, the batches simply go on.
    pub(crate) cut: Option<Cut>,
}

/// A file's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) identity: Identity,
    pub(crate) window: u32,
    pub(crate) file_no: u64,
    pub(crate) uuid: Uuid,
    pub(crate) boot_epoch: u64,
    pub(crate) first_seq: u64,
    pub(crate) file_bytes: u64,
    /// `None`: the first file of the log.
    pub(crate) prev: Option<Prev>,
}

/// What one copy turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HeadCopy {
    Sound(Box<Head>),
    /// Written by a program that says we cannot read it.
    Newer {
        version: u32,
    },
    /// Not a head: unwritten, torn or damaged.
    Bad,
}

impl Head {
    /// Both copies.
    pub(crate) fn encode(&self, out: &mut impl Sink) {
        let copy = self.encode_copy();
        out.put(&copy);
        out.put(&copy);
    }

    fn encode_copy(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK_BYTES);
        out.put(&MAGIC);
        out.put_u32(VERSION);
        out.put_u32(VERSION);
        out.put_u128(self.identity.cluster);
        out.put_u64(self.identity.node.0);
        out.put_u64(self.identity.incarnation);
        out.put_u16(self.identity.shard.0);
        out.put_u16(self.identity.shards);
        out.put_u32(self.window);
        out.put_u64(self.file_no);
        out.put_u128(self.uuid.0);
        out.put_u64(self.boot_epoch);
        out.put_u64(self.first_seq);
        let none = Cut { end: 0, end_seq: 0, end_chain: 0, suspect: false };
        let (file_no, uuid, cut) = match self.prev {
            None => (0, Uuid::default(), none),
            Some(Prev { file_no, uuid, cut }) => (file_no, uuid, cut.unwrap_or(Cut { end: OPEN, ..none })),
        };
        out.put_u64(file_no);
        out.put_u128(uuid.0);
        out.put_u64(cut.end);
        out.put_u64(cut.end_seq);
        out.put_u64(cut.end_chain);
        out.put_u32(if cut.suspect { FLAG_TAIL_SUSPECT } else { 0 });
        out.put_u32(BLOCK_BYTES as u32);
        out.put_u64(self.file_bytes);
        out.resize(BLOCK_BYTES - 4, 0);
        let crc = crc32c(&out);
        out.put_u32(crc);
        out
    }

    /// Reads one copy from its block.
    pub(crate) fn decode(block: &[u8]) -> HeadCopy {
        if block.len() != BLOCK_BYTES || !block.starts_with(&MAGIC) {
            return HeadCopy::Bad;
        }
        let (body, crc) = block.split_at(BLOCK_BYTES - 4);
        if crc32c(body).to_le_bytes() != crc {
            return HeadCopy::Bad;
        }
        Self::decode_body(&body[MAGIC.len()..]).unwrap_or(HeadCopy::Bad)
    }

    fn decode_body(body: &[u8]) -> Result<HeadCopy, Truncated> {
        let mut reader = Reader::new(body);
        let (version, min_reader) = (reader.u32()?, reader.u32()?);
        if min_reader > VERSION {
            return Ok(HeadCopy::Newer { version });
        }
        let cluster = reader.u128()?;
        let node = NodeId(reader.u64()?);
        let incarnation = reader.u64()?;
        let shard = ShardId(reader.u16()?);
        let shards = reader.u16()?;
        let identity = Identity { cluster, node, incarnation, shard, shards };
        let window = reader.u32()?;
        let file_no = reader.u64()?;
        let uuid = Uuid(reader.u128()?);
        let (boot_epoch, first_seq) = (reader.u64()?, reader.u64()?);
        let (prev_no, prev_uuid) = (reader.u64()?, Uuid(reader.u128()?));
        let (end, end_seq, end_chain) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let (flags, block, file_bytes) = (reader.u32()?, reader.u32()?, reader.u64()?);
        if block as usize != BLOCK_BYTES || file_no == 0 || prev_no >= file_no {
            return Ok(HeadCopy::Bad);
        }
        let numbers = [file_no & !super::SEGMENT, boot_epoch, first_seq, end_seq];
        if numbers.iter().any(|number| *number > super::NUMBER_MAX) {
            return Ok(HeadCopy::Bad);
        }
        let suspect = flags & FLAG_TAIL_SUSPECT != 0;
        let cut = (end != OPEN).then_some(Cut { end, end_seq, end_chain, suspect });
        let prev = (prev_no != 0).then_some(Prev { file_no: prev_no, uuid: prev_uuid, cut });
        let window = window.clamp(1, 4 * WRITES_IN_FLIGHT_MAX as u32);
        let head = Self { identity, window, file_no, uuid, boot_epoch, first_seq, file_bytes, prev };
        Ok(HeadCopy::Sound(Box::new(head)))
    }
}
