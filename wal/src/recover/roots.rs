//! Finds the roots of checkpoints, from the newest file back: places at which a replay may begin.

use coracle_base::codec::Reader;
use coracle_base::limits::{BATCH_BYTES_MAX, BLOCK_BYTES, WRITES_IN_FLIGHT_MAX};
use coracle_io::Disk;

use super::chain::Link;
use super::reader::Readers;
use super::scan::{Seen, look};
use crate::error::WalError;
use crate::format::batch::BATCH_HEADER_BYTES;
use crate::format::head::HEAD_AREA_BYTES;
use crate::format::page::Root;
use crate::format::record::{Record, RecordKind};

/// A root, and the batch it lies in.
#[derive(Debug, Clone)]
pub(crate) struct FoundRoot {
    pub(crate) root: Root,
    pub(crate) seq: u64,
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
            found.extend(roots_of(payload).into_iter().map(|root| FoundRoot { root, seq: head.seq }));
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
