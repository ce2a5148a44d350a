//! The decoders of a log's bytes, as a fuzzer calls them: only with the feature `fuzz`. Each takes any bytes, says why it
//! refuses them, and panics if what it accepts does not come back from its own encoder.

use coracle_base::GroupId;
use coracle_base::checksum::crc32c;
use coracle_base::codec::{Reader, Sink};
use coracle_base::limits::BLOCK_BYTES;

use crate::format::batch::{BATCH_HEADER_BYTES, BatchHead};
use crate::format::file_index::{self, Block, BlockWriter, Directory, IndexPlace, IndexedFile, body_crc};
use crate::format::head::{HEAD_AREA_BYTES, Head, HeadCopy};
use crate::format::page::{Page, Piece, Root};
use crate::format::record::{self, Record, RecordError};
use crate::format::{Position, Uuid};

/// The file that single batches are of.
const FILE: Uuid = Uuid(0x0123_4567_89AB_CDEF_0011_2233_4455_6677);

type Judged = Result<(), String>;

fn refused(error: &RecordError) -> String {
    error.to_string()
}

/// One copy of a file's head.
///
/// # Errors
/// Why it is none.
pub fn head(bytes: &[u8]) -> Judged {
    match Head::decode(bytes) {
        HeadCopy::Sound(head) => {
            let mut out = Vec::new();
            head.encode(&mut out);
            for copy in out.chunks(BLOCK_BYTES) {
                assert_eq!(Head::decode(copy), HeadCopy::Sound(head.clone()));
            }
            Ok(())
        }
        HeadCopy::Newer { .. } => Err("newer".into()),
        HeadCopy::Bad => Err("bad".into()),
    }
}

/// Makes the checksum of a head's copy right.
pub fn fix_head(bytes: &mut Vec<u8>) {
    bytes.resize(BLOCK_BYTES, 0);
    let crc = crc32c(&bytes[..BLOCK_BYTES - 4]);
    bytes[BLOCK_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
}

/// A whole batch: header, payload and the records in it.
///
/// # Errors
/// Why it is none.
pub fn batch(bytes: &[u8]) -> Judged {
    let Some(head) = BatchHead::decode(bytes, FILE.seed(), FILE.low()) else {
        return Err("no header".into());
    };
    let mut again = head;
    let encoded = again.encode(FILE.seed());
    assert_eq!(BatchHead::decode(&encoded, FILE.seed(), FILE.low()), Some(again));
    assert_eq!(BatchHead { chain: head.chain, ..again }, head, "only the chain is made, not copied");
    let payload = &bytes[BATCH_HEADER_BYTES..];
    if !head.payload_holds(payload, FILE.seed()) {
        return Err("payload".into());
    }
    records(&payload[..head.payload_bytes as usize])
}

/// Makes the checksums of a batch's header and payload right.
pub fn fix_batch(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().max(BATCH_HEADER_BYTES), 0);
    fix_batch_at(bytes, FILE, None);
}

/// Makes the batch at the start of `bytes` right as far as checksums go. Returns its length and chain value.
fn fix_batch_at(bytes: &mut [u8], file: Uuid, prev_chain: Option<u64>) -> Option<(usize, u64)> {
    let mut head = BatchHead::decode_fields(bytes.get(..BATCH_HEADER_BYTES)?).ok()?;
    let payload_bytes = (head.payload_bytes as usize).min(bytes.len() - BATCH_HEADER_BYTES);
    head.payload_bytes = payload_bytes as u32;
    head.uuid_low = file.low();
    head.prev_chain = prev_chain.unwrap_or(head.prev_chain);
    let (records, padding) = bytes[BATCH_HEADER_BYTES..].split_at_mut(payload_bytes);
    head.payload_crc = head.sum_of(records, file.seed()).unwrap_or(head.payload_crc);
    let padded = head.batch_bytes() as usize - BATCH_HEADER_BYTES - payload_bytes;
    let end = padding.len().min(padded);
    padding[..end].fill(0);
    let encoded = head.encode(file.seed());
    bytes[..BATCH_HEADER_BYTES].copy_from_slice(&encoded);
    Some((head.batch_bytes() as usize, head.chain))
}

/// Records one after the other, as in a batch.
///
/// # Errors
/// Why one of them is none.
pub fn records(bytes: &[u8]) -> Judged {
    let mut reader = Reader::new(bytes);
    while !reader.is_empty() {
        let before = reader.rest();
        let record = Record::read(&mut reader).map_err(|error| refused(&error))?;
        let body = &before[record::RECORD_HEADER_BYTES..before.len() - reader.rest().len()];
        let mut again = Vec::new();
        match &record {
            Record::Run(run) | Record::Place(run) => run.header.encode_run(&[run.body], &mut again),
            Record::State { group, blob } => {
                again.put_u64(group.0);
                again.put(blob);
            }
            Record::Snapshot(snapshot) => record::put_snapshot(snapshot, &mut again),
            Record::Mark(mark) => record::put_mark(mark, &mut again),
            Record::Moved(moved) => record::put_moved(moved, &mut again),
            Record::Deleted(group) => again.put_u64(group.0),
            Record::Page(_) => page(body)?,
            Record::Root(_) => root(body)?,
            Record::IndexBlock => index_block(body).unwrap_or(()),
            Record::IndexDirectory(..) => index_directory(body)?,
            Record::IndexList(_) => index_list(body)?,
            // Its numbers may be longer than they must be.
            Record::Roster(_) | Record::Skipped => {}
        }
        let is_elsewhere =
            matches!(record, Record::Page(_) | Record::Root(_) | Record::Roster(_) | Record::Skipped);
        let is_index =
            matches!(record, Record::IndexBlock | Record::IndexDirectory(..) | Record::IndexList(_));
        if !is_elsewhere && !is_index {
            assert_eq!(again, body, "{record:?}");
        }
    }
    Ok(())
}

/// Makes the checksums of runs and snapshots among the records right.
pub fn fix_records(bytes: &mut [u8]) {
    let mut at = 0;
    while at + record::RECORD_HEADER_BYTES <= bytes.len() {
        let length = [bytes[at + 4], bytes[at + 5], bytes[at + 6], bytes[at + 7]];
        let body = at + record::RECORD_HEADER_BYTES;
        let end = body.saturating_add(u32::from_le_bytes(length) as usize).min(bytes.len());
        let length = (end - body) as u32;
        bytes[at + 4..at + 8].copy_from_slice(&length.to_le_bytes());
        if bytes[at] == 3 && end - body >= record::SNAPSHOT_PREFIX_BYTES {
            let crc = crc32c(&bytes[body + record::SNAPSHOT_PREFIX_BYTES..end]);
            bytes[body + 24..body + 28].copy_from_slice(&crc.to_le_bytes());
        }
        at = end;
    }
}

/// The body of a checkpoint's page.
///
/// # Errors
/// Why it is none.
pub fn page(bytes: &[u8]) -> Judged {
    let page = Page::decode(bytes).map_err(|error| refused(&error))?;
    let mut out = Vec::new();
    page.encode(&mut out);
    assert_eq!(Page::decode(&out).as_ref(), Ok(&page));
    Ok(())
}

/// The body of a checkpoint's root.
///
/// # Errors
/// Why it is none.
pub fn root(bytes: &[u8]) -> Judged {
    let root = Root::decode(bytes).map_err(|error| refused(&error))?;
    let mut out = Vec::new();
    root.encode(&mut out);
    assert_eq!(Root::decode(&out).as_ref(), Ok(&root));
    Ok(())
}

/// The body of a block of a file's index.
///
/// # Errors
/// Why it is none.
pub fn index_block(bytes: &[u8]) -> Judged {
    let block = Block::decode(bytes).map_err(|error| refused(&error))?;
    let mut writer = BlockWriter::new(block.of, block.number);
    block.runs.of_log.iter().for_each(|run| writer.push(false, run));
    block.runs.placed.iter().for_each(|run| writer.push(true, run));
    if let Some((_, again)) = writer.finish() {
        assert_eq!(Block::decode(&again).as_ref(), Ok(&block));
    }
    Ok(())
}

/// The body of the directory of a file's index.
///
/// # Errors
/// Why it is none.
pub fn index_directory(bytes: &[u8]) -> Judged {
    let directory = Directory::decode(bytes).map_err(|error| refused(&error))?;
    let mut out = Vec::new();
    directory.encode(&mut out);
    assert_eq!(out, bytes);
    Ok(())
}

/// The body of a list of indexes.
///
/// # Errors
/// Why it is none.
pub fn index_list(bytes: &[u8]) -> Judged {
    let places = file_index::list(bytes).map_err(|error| refused(&error))?;
    let mut out = Vec::new();
    file_index::put_list(&places, &mut out);
    assert_eq!(out, bytes);
    Ok(())
}

/// Makes the checksums of a whole file right: of its head, and of its batches one after the other, with their chain.
pub fn fix_file(bytes: &mut [u8]) {
    let area = HEAD_AREA_BYTES as usize;
    if bytes.len() < area {
        return;
    }
    for copy in bytes[..area].chunks_mut(BLOCK_BYTES) {
        let crc = crc32c(&copy[..BLOCK_BYTES - 4]);
        copy[BLOCK_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    }
    let HeadCopy::Sound(head) = Head::decode(&bytes[..BLOCK_BYTES]) else { return };
    let (mut at, mut chain) = (area, None);
    while bytes.get(at..at + 4).is_some_and(|magic| magic == b"CWB1") {
        let Some((length, next)) = fix_batch_at(&mut bytes[at..], head.uuid, chain) else { return };
        (at, chain) = (at + length, Some(next));
    }
}

/// A file's records, one batch after the other, as its headers say: what to begin with.
pub fn records_of_file(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut at = HEAD_AREA_BYTES as usize;
    while let Some(head) = bytes.get(at..at + BATCH_HEADER_BYTES).filter(|head| head.starts_with(b"CWB1")) {
        let Ok(head) = BatchHead::decode_fields(head) else { break };
        let records = at + BATCH_HEADER_BYTES;
        found.extend(bytes.get(records..records + head.payload_bytes as usize).map(<[u8]>::to_vec));
        at += head.batch_bytes() as usize;
    }
    found
}

/// Bodies of a block, a directory and a list, as a log writes them.
pub fn index_samples() -> [Vec<u8>; 3] {
    let of = IndexedFile { file_no: 5, uuid: FILE };
    let run = |group, first, offset| crate::read::IndexRun { group: GroupId(group), first, count: 2, offset };
    let mut block = BlockWriter::new(of, 0);
    (1..4).for_each(|group| {
        (0..5).for_each(|nth| block.push(false, &run(group, 3 * nth + 1, 9000 * nth as u32)))
    });
    block.push(true, &run(2, 900, 70_000));
    let Some((first, block)) = block.finish() else { return Default::default() };
    let at = Position { file_no: 7, offset: 8288 };
    let piece = Piece { at, bytes: block.len() as u32, crc: body_crc(9, &block) };
    let (mut directory, mut list) = (Vec::new(), Vec::new());
    Directory { of, blocks: vec![(first, piece)] }.encode(&mut directory);
    file_index::put_list(&[IndexPlace { of, first_file: 7, directory: piece }], &mut list);
    [block, directory, list]
}
