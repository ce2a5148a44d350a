//! A walk over the runs of one segment, as its own index tells where they are: for people who look into a log.

use coracle_base::limits::BLOCK_BYTES;
use coracle_base::run::RUN_HEADER_BYTES;
use coracle_base::{RunError, RunRef};
use coracle_io::{Disk, DiskError};

use crate::format::Uuid;
use crate::format::segment::{SegmentRun, Trailer};
use crate::recover::reader::Readers;

/// Hands out the runs that hold, with their offsets. What does not hold is left out.
///
/// # Errors
/// The disk is gone.
pub(crate) fn walk_segment<D: Disk>(
    readers: &mut Readers<'_, D>,
    file_no: u64,
    uuid: Uuid,
    bytes: u64,
    mut on_run: impl FnMut(u64, RunRef<'_>),
) -> Result<(), DiskError> {
    for run in index_of(readers, file_no, uuid, bytes)? {
        let offset = u64::from(run.offset);
        let mut wanted = RUN_HEADER_BYTES;
        // Twice at most: the header says how long it is.
        for _ in 0..2 {
            let Some(bytes) = get(readers, file_no, offset, wanted)? else { break };
            match RunRef::parse(bytes) {
                Ok(found) if found.header.group == run.group => on_run(offset, found),
                Err(RunError::Truncated(short)) => {
                    wanted = bytes.len() + short.missing;
                    continue;
                }
                Ok(_) | Err(_) => {}
            }
            break;
        }
    }
    Ok(())
}

/// Empty if it does not hold.
fn index_of<D: Disk>(
    readers: &mut Readers<'_, D>,
    file_no: u64,
    uuid: Uuid,
    bytes: u64,
) -> Result<Vec<SegmentRun>, DiskError> {
    let seed = uuid.seed();
    let Some(at) = bytes.checked_sub(BLOCK_BYTES as u64) else { return Ok(Vec::new()) };
    let block = get(readers, file_no, at, BLOCK_BYTES)?.unwrap_or_default();
    let Some(trailer) = Trailer::decode(block, seed, file_no, bytes) else { return Ok(Vec::new()) };
    let length = trailer.index_bytes().unwrap_or(0) as usize;
    let index = get(readers, file_no, trailer.index_at, length)?.unwrap_or_default();
    Ok(trailer.decode_index(index, seed).unwrap_or_default())
}

/// `None` if it cannot be read.
fn get<'a, D: Disk>(
    readers: &'a mut Readers<'_, D>,
    file_no: u64,
    offset: u64,
    bytes: usize,
) -> Result<Option<&'a [u8]>, DiskError> {
    match readers.get(file_no, offset, bytes) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(DiskError::Crashed) => Err(DiskError::Crashed),
        Err(_) => Ok(None),
    }
}
