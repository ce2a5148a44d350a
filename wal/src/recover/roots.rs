//! Finds the roots of checkpoints: places at which a replay may begin. A batch says where the newest one lies that was
//! durable before it, so a batch from near the log's end is enough; with none, or of a damaged log, every file is searched
//! from the newest back.

use std::ops::Range;

use coracle_base::codec::Reader;
use coracle_base::limits::{BATCH_BYTES_MAX, BLOCK_BYTES, WRITES_IN_FLIGHT_MAX};
use coracle_io::{Disk, DiskError};

use super::chain::Link;
use super::reader::Readers;
use super::scan::{Seen, look};
use crate::error::WalError;
use crate::format::Position;
use crate::format::batch::{BATCH_HEADER_BYTES, BatchHead};
use crate::format::head::HEAD_AREA_BYTES;
use crate::format::page::Root;
use crate::format::record::{Record, RecordKind};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A root, and the batch it lies in.
#[derive(Debug, Clone)]
pub(crate) struct FoundRoot {
    pub(crate) root: Root,
    pub(crate) seq: u64,
    /// Where that begins.
    pub(crate) at: Position,
}

/// So near to the log's end is near enough: what lies between is replayed in no time.
const NEAR_BYTES: u64 = 8 << 20;

/// The newest root that a late batch of the log names, and the one that was the newest before: with a few reads. None if
/// anything is not as it should be.
pub(crate) fn named<D: Disk>(
    readers: &mut Readers<'_, D>,
    links: &[Link],
) -> Result<Vec<FoundRoot>, WalError> {
    let mut found: Vec<FoundRoot> = Vec::new();
    let mut next = late_root(readers, links)?;
    while let Some(at) = next.filter(|at| found.len() < 2 && found.last().is_none_or(|last| *at < last.at)) {
        let Some(link) = links.iter().find(|link| link.file_no == at.file_no) else { break };
        let Seen::Sound(head) = look(readers, link, at.offset)? else { break };
        let payload_at = at.offset + BATCH_HEADER_BYTES as u64;
        let Ok(payload) = readers.get(at.file_no, payload_at, head.payload_bytes as usize) else { break };
        let Some(root) = roots_of(payload).pop() else { break };
        found.push(FoundRoot { root, seq: head.seq, at });
        next = head.root.at(at.file_no);
    }
    Ok(found)
}

/// What a batch near the end of the newest file that has any says of the newest root. Batches lie one after the other from
/// the file's beginning on, so their end is found by halving.
fn late_root<D: Disk>(readers: &mut Readers<'_, D>, links: &[Link]) -> Result<Option<Position>, WalError> {
    for link in links.iter().rev() {
        let end = link.cut.map_or(link.bytes, |cut| cut.end).min(link.bytes);
        let (mut low, mut high) = (HEAD_AREA_BYTES, end);
        let Some((_, mut head)) = head_in(readers, link, low..high.min(low + BLOCK))? else { continue };
        while high > low + NEAR_BYTES {
            let middle = low.midpoint(high) / BLOCK * BLOCK;
            match head_in(readers, link, middle..high.min(middle + BATCH_BYTES_MAX as u64))? {
                Some(found) => (low, head) = found,
                None => high = middle,
            }
        }
        return Ok(head.root.at(link.file_no));
    }
    Ok(None)
}

/// The first batch header within a range of a file.
fn head_in<D: Disk>(
    readers: &mut Readers<'_, D>,
    link: &Link,
    range: Range<u64>,
) -> Result<Option<(u64, BatchHead)>, WalError> {
    for offset in range.step_by(BLOCK_BYTES) {
        let bytes = match readers.get(link.file_no, offset, BLOCK_BYTES) {
            Ok(bytes) => bytes,
            Err(DiskError::Crashed) => return Err(DiskError::Crashed.into()),
            Err(_) => return Ok(None),
        };
        let head = BatchHead::decode(bytes, link.uuid.seed(), link.uuid.low());
        if let Some(head) = head.filter(|head| head.self_off == offset) {
            return Ok(Some((offset, head)));
        }
    }
    Ok(None)
}

/// The roots in one file, in order. A damaged place costs what it covers: the search goes on behind it.
pub(crate) fn in_file<D: Disk>(
    readers: &mut Readers<'_, D>,
    link: &Link,
) -> Result<Vec<FoundRoot>, WalError> {
    let mut found = Vec::new();
    let end = link.cut.map_or(link.bytes, |cut| cut.end).min(link.bytes);
    let mut offset = HEAD_AREA_BYTES;
    let mut searched = 0;
    // Beyond the end of the batches lies whatever the file held before: no need to search all of it.
    while offset < end && searched < WRITES_IN_FLIGHT_MAX * BATCH_BYTES_MAX {
        let Seen::Sound(head) = look(readers, link, offset)? else {
            offset += BLOCK_BYTES as u64;
            searched += BLOCK_BYTES;
            continue;
        };
        searched = 0;
        let payload_at = offset + BATCH_HEADER_BYTES as u64;
        if let Ok(payload) = readers.get(link.file_no, payload_at, head.payload_bytes as usize) {
            let at = Position { file_no: link.file_no, offset };
            found.extend(roots_of(payload).into_iter().map(|root| FoundRoot { root, seq: head.seq, at }));
        }
        offset += head.batch_bytes();
    }
    Ok(found)
}

/// The roots among the records of a batch; other records are only stepped over.
fn roots_of(payload: &[u8]) -> Vec<Root> {
    let mut roots = Vec::new();
    let mut reader = Reader::new(payload);
    loop {
        let mut record = reader.clone();
        let (Ok(kind), Ok(_), Ok(_), Ok(bytes)) = (reader.u8(), reader.u8(), reader.u16(), reader.u32())
        else {
            return roots;
        };
        if reader.bytes(bytes as usize).is_err() {
            return roots;
        }
        let is_root = kind == RecordKind::CheckpointRoot as u8 || kind == RecordKind::PagedRoot as u8;
        if is_root && let Ok(Record::Root(root)) = Record::read(&mut record) {
            roots.push(root);
        }
    }
}
