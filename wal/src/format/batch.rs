//! The header of a batch. A batch is one write: whole after a crash, or not there.
//!
//! ```text
//!   offset  size  field
//!   0       4     magic          "CWB1"
//!   4       2     version        2; 1: `payload_crc` goes over every byte of the records
//!   6       2     header_bytes   96
//!   8       8     uuid           low half of the file's
//!   16      8     seq            rises by one; across files and starts it never comes again
//!   24      8     self_off       its own byte offset: a misdirected write is noticed
//!   32      4     boot_epoch     low half of the file's
//!   36      4     payload_bytes  records, without padding
//!   40      4     record_count
//!   44      4     flags          bit 0: marker (no record of its own)
//!   48      8     durable_upto   newest batch known durable when this one was submitted
//!   56      8     repeated_upto  states of batches up to here were written once more, by the end of this batch
//!   64      8     prev_chain     chain value of the batch before
//!   72      8     chain          mix(prev_chain, checksum of [0, 64), payload_crc)
//!   80      4     payload_crc    crc32c of the records' outline (`outline.rs`), from the file's seed
//!   84      4     root_back      newest durable checkpoint: its root lies so many files back, in the batch that begins
//!   88      4     root_block     at this block; 0: none is known. A hint: a search finds it, too
//!   92      4     header_crc     crc32c of [0, 92), from the file's seed
//!   96      ..    records, then zeros up to the next block
//! ```
//!
//! An intact batch `s` proves that every batch up to `max(durable_upto, s - window)` was durable.

use coracle_base::checksum::{crc32c_from, mix64};
use coracle_base::codec::{Reader, Truncated};
use coracle_base::limits::{BATCH_BYTES_MAX, BLOCK_BYTES};

use super::record::RECORD_HEADER_BYTES;
use super::{Position, outline};

const MAGIC: u32 = u32::from_le_bytes(*b"CWB1");
/// What this program writes.
pub(crate) const BATCH_VERSION: u16 = 2;
/// Every byte of the records is summed.
const FULL_SUM_VERSION: u16 = 1;
/// Bytes before the first record.
pub(crate) const BATCH_HEADER_BYTES: usize = 96;
/// Nothing but proof that earlier batches are durable (and states once more).
pub(crate) const FLAG_MARK: u32 = 1;

/// A batch's header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct BatchHead {
    pub(crate) version: u16,
    pub(crate) uuid_low: u64,
    pub(crate) seq: u64,
    pub(crate) self_off: u64,
    pub(crate) boot_epoch: u32,
    pub(crate) payload_bytes: u32,
    pub(crate) record_count: u32,
    pub(crate) flags: u32,
    pub(crate) durable_upto: u64,
    pub(crate) repeated_upto: u64,
    pub(crate) prev_chain: u64,
    /// Made by [`encode`](Self::encode).
    pub(crate) chain: u64,
    pub(crate) payload_crc: u32,
    pub(crate) root: RootHint,
}

/// Where a checkpoint's root lies, as a batch says: relative to itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RootHint {
    files_back: u32,
    /// 0: nowhere; there is the file's head.
    block: u32,
}

impl RootHint {
    /// What a batch in file `file_no` says of a root at `root`.
    pub(crate) fn new(file_no: u64, root: Position) -> Self {
        let block = u32::try_from(root.offset / BLOCK_BYTES as u64);
        let files_back = file_no.checked_sub(root.file_no).map(u32::try_from);
        match (files_back, block) {
            (Some(Ok(files_back)), Ok(block)) => Self { files_back, block },
            _ => Self::default(),
        }
    }

    /// Where the root lies, said by a batch in file `file_no`.
    pub(crate) fn at(self, file_no: u64) -> Option<Position> {
        let file_no = file_no.checked_sub(u64::from(self.files_back)).filter(|_| self.block > 0)?;
        Some(Position { file_no, offset: u64::from(self.block) * BLOCK_BYTES as u64 })
    }
}

impl BatchHead {
    /// Bytes of the whole batch on disk.
    pub(crate) fn batch_bytes(&self) -> u64 {
        (BATCH_HEADER_BYTES as u64 + u64::from(self.payload_bytes)).next_multiple_of(BLOCK_BYTES as u64)
    }

    /// Every batch up to this one was durable when this header was made, if at most `window` were in flight.
    pub(crate) fn proves_durable(&self, window: u32) -> u64 {
        self.durable_upto.max(self.seq.saturating_sub(u64::from(window)))
    }

    fn first_fields(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.version.to_le_bytes());
        bytes[6..8].copy_from_slice(&(BATCH_HEADER_BYTES as u16).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.uuid_low.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.seq.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.self_off.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.boot_epoch.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.record_count.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.flags.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.durable_upto.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.repeated_upto.to_le_bytes());
        bytes
    }

    /// Computes the chain value and makes the header's bytes.
    pub(crate) fn encode(&mut self, seed: u32) -> [u8; BATCH_HEADER_BYTES] {
        let fields = self.first_fields();
        let fields_crc = crc32c_from(seed, &fields);
        self.chain = mix64(self.prev_chain, u64::from(fields_crc) << 32 | u64::from(self.payload_crc));
        let mut bytes = [0; BATCH_HEADER_BYTES];
        bytes[..64].copy_from_slice(&fields);
        bytes[64..72].copy_from_slice(&self.prev_chain.to_le_bytes());
        bytes[72..80].copy_from_slice(&self.chain.to_le_bytes());
        bytes[80..84].copy_from_slice(&self.payload_crc.to_le_bytes());
        bytes[84..88].copy_from_slice(&self.root.files_back.to_le_bytes());
        bytes[88..92].copy_from_slice(&self.root.block.to_le_bytes());
        let crc = crc32c_from(fields_crc, &bytes[64..92]);
        bytes[92..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header at the start of `bytes`, if it is one of the file with this identity: its checksum holds and it says
    /// so itself. Its payload is not looked at.
    pub(crate) fn decode(bytes: &[u8], seed: u32, uuid_low: u64) -> Option<Self> {
        let header = bytes.get(..BATCH_HEADER_BYTES)?;
        if header[..4] != MAGIC.to_le_bytes()
            || crc32c_from(seed, &header[..92]).to_le_bytes() != header[92..]
        {
            return None;
        }
        let head = Self::decode_fields(header).ok()?;
        // Another version of the header comes only with a file whose head this program refuses.
        if head.first_fields() != header[..64] {
            return None;
        }
        let too_large = head.batch_bytes() > BATCH_BYTES_MAX as u64;
        let more_records_than_bytes = head.record_count > head.payload_bytes / RECORD_HEADER_BYTES as u32;
        let is_known = (FULL_SUM_VERSION..=BATCH_VERSION).contains(&head.version);
        let impossible = !is_known
            || more_records_than_bytes
            || head.seq == 0
            || head.seq.max(head.durable_upto) > super::NUMBER_MAX;
        (head.uuid_low == uuid_low && !too_large && !impossible).then_some(head)
    }

    pub(crate) fn decode_fields(header: &[u8]) -> Result<Self, Truncated> {
        let mut reader = Reader::new(header);
        reader.bytes(4)?;
        let version = reader.u16()?;
        reader.bytes(2)?;
        let (uuid_low, seq, self_off) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let (boot_epoch, payload_bytes) = (reader.u32()?, reader.u32()?);
        let (record_count, flags) = (reader.u32()?, reader.u32()?);
        let (durable_upto, repeated_upto) = (reader.u64()?, reader.u64()?);
        let (prev_chain, chain, payload_crc) = (reader.u64()?, reader.u64()?, reader.u32()?);
        let root = RootHint { files_back: reader.u32()?, block: reader.u32()? };
        Ok(Self {
            version,
            uuid_low,
            seq,
            self_off,
            boot_epoch,
            payload_bytes,
            record_count,
            flags,
            durable_upto,
            repeated_upto,
            prev_chain,
            chain,
            payload_crc,
            root,
        })
    }

    /// The checksum of a batch of this version with these records, if they can have one.
    pub(crate) fn sum_of(&self, records: &[u8], seed: u32) -> Option<u32> {
        if self.version == FULL_SUM_VERSION {
            Some(crc32c_from(seed, records))
        } else {
            outline::sum_of(records, seed)
        }
    }

    /// Whether `payload` (records and padding, all of the batch after the header) is what was written.
    pub(crate) fn payload_holds(&self, payload: &[u8], seed: u32) -> bool {
        let Some((records, padding)) = payload.split_at_checked(self.payload_bytes as usize) else {
            return false;
        };
        self.sum_of(records, seed) == Some(self.payload_crc) && padding.iter().all(|byte| *byte == 0)
    }
}
