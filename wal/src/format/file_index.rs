//! The index of a file of the log, as records of later files: where in it the runs lie of which a group still had entries
//! when the index was written. For reading only: nothing is said by it that the runs themselves do not say. A reader that
//! does not know these records skips them.
//!
//! ```text
//!   blocks      which runs, some kibibytes each          directory   where the blocks lie, and what each begins with
//!   list        where the directories of several files lie: written with every checkpoint, so that a start finds them
//!
//!   block       file_no u64, uuid u128 of the file that it is about, number u32, group_count u32, then for each group, by
//!               kind (those of the log, then placed ones) and uid: group u64, 2 * run_count + (1 if placed), then for
//!               each run, by index: first (of the next one: how far behind the end of the one before), count, offset of
//!               the record's body (difference to that of the run before, zigzag); 7 bits a byte, the last one below 0x80
//!   directory   file_no u64, uuid u128, block_count u32, zeros u32, then for each block, in order: group u64 and index
//!               u64 of what it begins with (bit 63 of the index: placed), file_no u64, offset u64, bytes u32, crc u32
//!   list        index_count u32, zeros u32, then for each: file_no u64, uuid u128, first of the files that it lies in
//!               u64, then of its directory: file_no u64, offset u64, bytes u32, crc u32
//! ```
//!
//! `offset` is that of the record's header, `bytes` are its body's, and `crc` is the crc32c of the body from the crc32c of
//! the low half of the uuid of the file that it lies in. So a block counts only for the use of the file that it is about,
//! and only in the use of the file that it was written to.

use coracle_base::checksum::{crc32c, crc32c_from};
use coracle_base::codec::{Reader, Sink};
use coracle_base::limits::BATCH_BYTES_MAX;
use coracle_base::{GroupId, Index};

use super::page::Piece;
use super::record::RecordError;
use super::varint::{put, take, unzigzag, zigzag};
use super::{NUMBER_MAX, Position, Uuid};
use crate::read::{IndexRun, RunsInFile};

const BLOCK_PREFIX_BYTES: usize = 32;
const DIRECTORY_PREFIX_BYTES: usize = 32;
const DIRECTORY_ENTRY_BYTES: usize = 40;
const LIST_PREFIX_BYTES: usize = 8;
const LIST_ENTRY_BYTES: usize = 56;
/// In the index of a directory's entry.
const PLACED: u64 = 1 << 63;

/// One use of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexedFile {
    pub(crate) file_no: u64,
    pub(crate) uuid: Uuid,
}

/// What an index is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RunKey {
    pub(crate) is_placed: bool,
    pub(crate) group: GroupId,
    pub(crate) index: Index,
}

/// The checksum of a body in a file with this identity.
pub(crate) fn body_crc(lies_in_low: u64, body: &[u8]) -> u32 {
    crc32c_from(crc32c(&lies_in_low.to_le_bytes()), body)
}

/// A block while it is made.
#[derive(Debug)]
pub(crate) struct BlockWriter {
    of: IndexedFile,
    number: u32,
    groups: Vec<u8>,
    group_count: u32,
    /// Of the group that was begun last: its uid and kind, its runs, and how many they are.
    open: Option<(bool, GroupId)>,
    runs: Vec<u8>,
    run_count: u64,
    end: u64,
    offset: u64,
    first: Option<RunKey>,
}

impl BlockWriter {
    pub(crate) fn new(of: IndexedFile, number: u32) -> Self {
        Self {
            of,
            number,
            groups: Vec::new(),
            group_count: 0,
            open: None,
            runs: Vec::new(),
            run_count: 0,
            end: 0,
            offset: 0,
            first: None,
        }
    }

    /// Adds a run, behind all others in the order of their keys.
    pub(crate) fn push(&mut self, is_placed: bool, run: &IndexRun) {
        if self.open != Some((is_placed, run.group)) {
            self.close_group();
            self.open = Some((is_placed, run.group));
        }
        let key = RunKey { is_placed, group: run.group, index: Index(run.first) };
        self.first.get_or_insert(key);
        put(run.first.wrapping_sub(self.end), &mut self.runs);
        put(run.count.into(), &mut self.runs);
        put(zigzag(u64::from(run.offset).wrapping_sub(self.offset)), &mut self.runs);
        (self.end, self.offset) = (run.first + u64::from(run.count), run.offset.into());
        self.run_count += 1;
    }

    fn close_group(&mut self) {
        let Some((is_placed, group)) = self.open.take() else { return };
        self.groups.put_u64(group.0);
        put(self.run_count << 1 | u64::from(is_placed), &mut self.groups);
        self.groups.append(&mut self.runs);
        self.group_count += 1;
        (self.run_count, self.end, self.offset) = (0, 0, 0);
    }

    /// What it takes so far, about.
    pub(crate) fn bytes(&self) -> usize {
        BLOCK_PREFIX_BYTES + self.groups.len() + self.runs.len()
    }

    /// The body, and what it begins with; none if nothing was added.
    pub(crate) fn finish(mut self) -> Option<(RunKey, Vec<u8>)> {
        self.close_group();
        let mut body = Vec::with_capacity(BLOCK_PREFIX_BYTES + self.groups.len());
        put_use(self.of, &mut body);
        body.put_u32(self.number);
        body.put_u32(self.group_count);
        body.put(&self.groups);
        Some((self.first?, body))
    }
}

/// A block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) of: IndexedFile,
    pub(crate) number: u32,
    /// By group and index, without overlaps.
    pub(crate) runs: RunsInFile,
}

impl Block {
    pub(crate) fn decode(body: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::new(body);
        let of = file_use(&mut reader)?;
        let (number, group_count) = (reader.u32()?, reader.u32()?);
        let mut runs = RunsInFile::default();
        let mut before: Option<(bool, GroupId)> = None;
        for _ in 0..group_count {
            let group = GroupId(reader.u64()?);
            let mut rest = reader.rest();
            let short = RecordError::Field("index");
            let head = take(&mut rest).ok_or(short.clone())?;
            let (run_count, is_placed) = (head >> 1, head & 1 == 1);
            if run_count == 0 || before.is_some_and(|before| before >= (is_placed, group)) {
                return Err(short);
            }
            before = Some((is_placed, group));
            let (mut end, mut offset) = (0u64, 0u64);
            for _ in 0..run_count {
                let run = take_run(&mut rest, group, &mut end, &mut offset).ok_or(short.clone())?;
                runs.add(run, is_placed);
            }
            let taken = reader.rest().len() - rest.len();
            reader.bytes(taken)?;
        }
        whole(&reader)?;
        Ok(Self { of, number, runs })
    }
}

/// `None` if it is no run that could lie in a file.
fn take_run(rest: &mut &[u8], group: GroupId, end: &mut u64, offset: &mut u64) -> Option<IndexRun> {
    let first = end.checked_add(take(rest)?)?;
    let count = u32::try_from(take(rest)?).ok().filter(|count| *count > 0)?;
    *end = first.checked_add(count.into()).filter(|end| *end <= NUMBER_MAX)?;
    *offset = offset.wrapping_add(unzigzag(take(rest)?));
    Some(IndexRun { group, first, count, offset: u32::try_from(*offset).ok()? })
}

/// The directory of one file's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directory {
    pub(crate) of: IndexedFile,
    /// What each block begins with, and where it lies; in order.
    pub(crate) blocks: Vec<(RunKey, Piece)>,
}

impl Directory {
    pub(crate) fn encoded_bytes(&self) -> usize {
        DIRECTORY_PREFIX_BYTES + DIRECTORY_ENTRY_BYTES * self.blocks.len()
    }

    pub(crate) fn encode(&self, out: &mut impl Sink) {
        put_use(self.of, out);
        out.put_u32(self.blocks.len() as u32);
        out.put_u32(0);
        for (key, piece) in &self.blocks {
            out.put_u64(key.group.0);
            out.put_u64(key.index.0 | if key.is_placed { PLACED } else { 0 });
            put_piece(piece, out);
        }
    }

    pub(crate) fn decode(body: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::new(body);
        let of = file_use(&mut reader)?;
        let count = count(&mut reader)?;
        let mut blocks: Vec<(RunKey, Piece)> = Vec::new();
        for _ in 0..count {
            let (group, index) = (GroupId(reader.u64()?), reader.u64()?);
            let key = RunKey { is_placed: index & PLACED != 0, group, index: Index(index & !PLACED) };
            if key.index.0 > NUMBER_MAX || blocks.last().is_some_and(|(before, _)| *before >= key) {
                return Err(RecordError::Field("order"));
            }
            blocks.push((key, piece(&mut reader)?));
        }
        whole(&reader)?;
        Ok(Self { of, blocks })
    }

    /// The number of the block that has a run, if any has.
    pub(crate) fn block_of(&self, key: RunKey) -> Option<usize> {
        self.blocks.partition_point(|(first, _)| *first <= key).checked_sub(1)
    }

    /// The first of the files in which the index lies, if its directory lies in this one.
    pub(crate) fn first_file(&self, own: u64) -> u64 {
        self.blocks.iter().map(|(_, piece)| piece.at.file_no).min().unwrap_or(own).min(own)
    }
}

/// Where the index of a file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexPlace {
    pub(crate) of: IndexedFile,
    /// The first of the files that it lies in; the directory is in the last.
    pub(crate) first_file: u64,
    pub(crate) directory: Piece,
}

/// Appends a list's body.
pub(crate) fn put_list(places: &[IndexPlace], out: &mut impl Sink) {
    out.put_u32(places.len() as u32);
    out.put_u32(0);
    for place in places {
        put_use(place.of, out);
        out.put_u64(place.first_file);
        put_piece(&place.directory, out);
    }
}

pub(crate) fn list_bytes(places: usize) -> usize {
    LIST_PREFIX_BYTES + LIST_ENTRY_BYTES * places
}

/// Reads a list's body.
pub(crate) fn list(body: &[u8]) -> Result<Vec<IndexPlace>, RecordError> {
    let mut reader = Reader::new(body);
    let count = count(&mut reader)?;
    let mut places = Vec::new();
    for _ in 0..count {
        let of = file_use(&mut reader)?;
        let first_file = reader.u64()?;
        places.push(IndexPlace { of, first_file, directory: piece(&mut reader)? });
    }
    whole(&reader)?;
    Ok(places)
}

fn put_use(of: IndexedFile, out: &mut impl Sink) {
    out.put_u64(of.file_no);
    out.put_u128(of.uuid.0);
}

fn file_use(reader: &mut Reader<'_>) -> Result<IndexedFile, RecordError> {
    let (file_no, uuid) = (reader.u64()?, Uuid(reader.u128()?));
    if file_no > NUMBER_MAX { Err(RecordError::Field("number")) } else { Ok(IndexedFile { file_no, uuid }) }
}

fn put_piece(piece: &Piece, out: &mut impl Sink) {
    out.put_u64(piece.at.file_no);
    out.put_u64(piece.at.offset);
    out.put_u32(piece.bytes);
    out.put_u32(piece.crc);
}

fn piece(reader: &mut Reader<'_>) -> Result<Piece, RecordError> {
    let at = Position { file_no: reader.u64()?, offset: reader.u64()? };
    let piece = Piece { at, bytes: reader.u32()?, crc: reader.u32()? };
    let is_possible = at.file_no.max(at.offset) <= NUMBER_MAX && piece.bytes as usize <= BATCH_BYTES_MAX;
    if is_possible { Ok(piece) } else { Err(RecordError::Field("place")) }
}

/// A count, and the zeros behind it.
fn count(reader: &mut Reader<'_>) -> Result<u32, RecordError> {
    let (count, zeros) = (reader.u32()?, reader.u32()?);
    if zeros == 0 { Ok(count) } else { Err(RecordError::Field("padding")) }
}

fn whole(reader: &Reader<'_>) -> Result<(), RecordError> {
    if reader.is_empty() { Ok(()) } else { Err(RecordError::Field("length")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OF: IndexedFile = IndexedFile { file_no: 7, uuid: Uuid(0x77) };

    proptest! {
        #[test]
        fn a_block_has_the_runs_that_were_put_in(
            groups in proptest::collection::btree_map(
                (any::<bool>(), 0u64..1 << 40),
                proptest::collection::vec((0u64..3, 1u32..9, any::<u32>()), 1..20),
                1..12,
            ),
            start in 0u64..1 << 50,
        ) {
            let (mut writer, mut expected) = (BlockWriter::new(OF, 3), RunsInFile::default());
            for ((is_placed, group), runs) in &groups {
                let mut next = start;
                for (gap, count, offset) in runs {
                    let run = IndexRun { group: GroupId(*group), first: next + gap, count: *count, offset: *offset };
                    next = run.first + u64::from(run.count);
                    writer.push(*is_placed, &run);
                    expected.add(run, *is_placed);
                }
            }
            let thought = writer.bytes();
            let (first, body) = writer.finish().unwrap();
            prop_assert!(body.len() >= thought && body.len() <= thought + 20);
            let ((is_placed, group), runs) = groups.first_key_value().unwrap();
            let index = Index(start + runs[0].0);
            prop_assert_eq!(first, RunKey { is_placed: *is_placed, group: GroupId(*group), index });
            prop_assert_eq!(Block::decode(&body), Ok(Block { of: OF, number: 3, runs: expected }));
            for bytes in 0..body.len() {
                prop_assert!(Block::decode(&body[..bytes]).is_err());
            }
        }
    }

    #[test]
    fn the_block_that_may_have_a_run_is_found() {
        let key = |is_placed, group, index| RunKey { is_placed, group: GroupId(group), index: Index(index) };
        let piece = Piece { at: Position { file_no: 9, offset: 8288 }, bytes: 10, crc: 1 };
        let firsts = [key(false, 2, 5), key(false, 2, 50), key(false, 9, 1), key(true, 1, 3)];
        let directory = Directory { of: OF, blocks: firsts.map(|first| (first, piece)).to_vec() };
        let found = |is_placed, group, index| directory.block_of(key(is_placed, group, index));
        assert_eq!(found(false, 2, 4), None);
        assert_eq!(
            (found(false, 2, 5), found(false, 2, 49), found(false, 2, 50)),
            (Some(0), Some(0), Some(1))
        );
        assert_eq!((found(false, 8, 1), found(false, 10, 1), found(true, 7, 1)), (Some(1), Some(2), Some(3)));
    }

    #[test]
    fn a_run_takes_a_few_bytes() {
        let mut writer = BlockWriter::new(OF, 0);
        let before = writer.bytes();
        for nth in 0..100u64 {
            let offset = (8000 + nth * 344_000) as u32;
            writer.push(false, &IndexRun { group: GroupId(5), first: 1 + nth, count: 1, offset });
        }
        assert!(writer.bytes() - before <= 600, "{}", writer.bytes());
    }
}
