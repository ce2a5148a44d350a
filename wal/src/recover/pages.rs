//! Pages of a checkpoint that its root only names: read from where they lie, before the replay begins. Nothing had happened
//! to their groups when the checkpoint passed over them, which was after its beginning; whatever happened since lies behind
//! its beginning, and is replayed.
//!
//! Invariant: a page is taken whole from one copy, or not; one sound copy is enough.

use coracle_base::checksum::crc32c;
use coracle_base::codec::Reader;
use coracle_io::{Disk, DiskError};

use super::reader::Readers;
use super::replay::Replay;
use crate::error::WalError;
use crate::format::page::{PageCopy, Part, Piece};
use crate::format::record::{RECORD_HEADER_BYTES, Record};

/// Takes the pages that the root names. False if one of them has no sound copy: then the checkpoint is not whole.
pub(super) fn take_kept<D: Disk>(
    readers: &mut Readers<'_, D>,
    replay: &mut Replay<'_>,
) -> Result<bool, WalError> {
    let mut kept = replay.take_kept();
    // Neighbours are read together.
    kept.sort_by_key(|[copy, _]| copy.first().map(|piece| piece.at));
    for copies in &kept {
        let mut found = None;
        for copy in copies {
            found = read_copy(readers, copy)?;
            if found.is_some() {
                break;
            }
            replay.damaged_pages += 1;
        }
        if !found.is_some_and(|parts| replay.take_parts(parts)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `None` if it is damaged.
fn read_copy<D: Disk>(readers: &mut Readers<'_, D>, copy: &PageCopy) -> Result<Option<Vec<Part>>, WalError> {
    let mut parts = Vec::new();
    for piece in copy {
        match read_piece(readers, piece) {
            Ok(Some(mut found)) => parts.append(&mut found),
            Ok(None) => return Ok(None),
            Err(DiskError::Crashed) => return Err(DiskError::Crashed.into()),
            Err(_) => return Ok(None),
        }
    }
    Ok(Some(parts))
}

fn read_piece<D: Disk>(readers: &mut Readers<'_, D>, piece: &Piece) -> Result<Option<Vec<Part>>, DiskError> {
    let length = RECORD_HEADER_BYTES + piece.bytes as usize;
    let record = readers.get(piece.at.file_no, piece.at.offset, length)?;
    let is_it = record.get(RECORD_HEADER_BYTES..).is_some_and(|body| crc32c(body) == piece.crc);
    let read = is_it.then(|| Record::read(&mut Reader::new(record)));
    Ok(match read {
        Some(Ok(Record::Page(page))) => Some(page.parts),
        _ => None,
    })
}
