//! Records: what a batch carries.
//!
//! ```text
//!   offset  size  field
//!   0       1     kind       1 run, 2 state, 3 snapshot, 4 checkpoint page, 5 checkpoint root, 6 snapshot mark, 7 place,
//!                            8 moved, 9 deleted, 10 packed page, 11 root that names pages (4 and 5 are read, not
//!                            written); 12 block, 13 directory of a file's index, 14 list of indexes, 15 roster
//!                            (need not be understood)
//!   1       1     flags      bit 0: must be understood, else a reader that does not know the kind skips it;
//!                            bit 1: a state that was written before, once more
//!   2       2     zeros
//!   4       4     bytes      of the body
//!   8       ..    body
//!
//!   run       as `base/src/run.rs` says
//!   state     group u64, blob
//!   snapshot  group u64, index u64, term u64, crc32c of all that follows but live_count u32, live_count u32,
//!             live ranges (first u64, count u64), bytes
//!   page, root: see `page.rs`; block, directory, list: see `file_index.rs`; roster: see `roster.rs`
//!   mark      group u64, index u64, term u64, crc32c of the snapshot file's bytes u32, live_count u32,
//!             number u64 and bytes u64 of the snapshot file, live ranges
//!   place     as a run: entries that fill their own places only, and count once a snapshot names them as live
//!   moved     group u64, from file u64, to file u64, range_count u32, zeros u32, ranges (first u64, count u64)
//!   deleted   group u64
//! ```

use coracle_base::checksum::{crc32c, crc32c_from};
use coracle_base::codec::{Reader, Sink, Truncated};
use coracle_base::limits::STATE_BYTES_MAX;
use coracle_base::run::RUN_HEADER_BYTES;
use coracle_base::{GroupId, Index, RunError, RunHeader, RunRef, Term};

use super::NUMBER_MAX;
use super::file_index::{self, Directory, IndexPlace};
use super::page::{Page, Root, SnapshotFile};
use super::roster;

/// Bytes before a record's body.
pub(crate) const RECORD_HEADER_BYTES: usize = 8;
/// Bytes of a run's record before its entries.
pub(crate) const RUN_HEADS_BYTES: usize = RECORD_HEADER_BYTES + RUN_HEADER_BYTES;
/// Bytes of a state's body before the blob.
pub(crate) const STATE_PREFIX_BYTES: usize = 8;
/// Bytes of a snapshot's body before its live ranges and the snapshot's own.
pub(crate) const SNAPSHOT_PREFIX_BYTES: usize = 32;
/// Bytes of a snapshot mark's body before its live ranges.
pub(crate) const MARK_PREFIX_BYTES: usize = 48;
/// Bytes of a moved record's body before its ranges.
pub(crate) const MOVED_PREFIX_BYTES: usize = 32;
/// Bytes of a range of indexes.
pub(crate) const RANGE_BYTES: usize = 16;
/// Bytes of a deleted record's body.
pub(crate) const DELETED_BYTES: usize = 8;

const FLAG_MUST_UNDERSTAND: u8 = 1;
const FLAG_REPEATED: u8 = 2;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RecordKind {
    Run = 1,
    State = 2,
    Snapshot = 3,
    #[allow(dead_code, reason = "read, not written any more")]
    CheckpointPage = 4,
    CheckpointRoot = 5,
    SnapshotMark = 6,
    Place = 7,
    Moved = 8,
    Deleted = 9,
    PackedPage = 10,
    PagedRoot = 11,
    IndexBlock = 12,
    IndexDirectory = 13,
    IndexList = 14,
    Roster = 15,
}

impl RecordKind {
    /// A reader that does not know it loses nothing but time.
    fn may_be_skipped(self) -> bool {
        matches!(self, Self::IndexBlock | Self::IndexDirectory | Self::IndexList | Self::Roster)
    }
}

/// Consecutive indexes of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct IndexRange {
    /// The first.
    pub first: Index,
    /// How many, at least one.
    pub count: u64,
}

impl IndexRange {
    /// The last.
    pub fn last(&self) -> Index {
        Index(self.first.0 + self.count - 1)
    }
}

/// A record's header.
fn header(kind: RecordKind, repeated: bool, body_bytes: usize) -> [u8; RECORD_HEADER_BYTES] {
    let must = if kind.may_be_skipped() { 0 } else { FLAG_MUST_UNDERSTAND };
    let flags = must | if repeated { FLAG_REPEATED } else { 0 };
    let bytes = (body_bytes as u32).to_le_bytes();
    [kind as u8, flags, 0, 0, bytes[0], bytes[1], bytes[2], bytes[3]]
}

/// Appends a record's header.
pub(crate) fn put_header(kind: RecordKind, repeated: bool, body_bytes: usize, out: &mut impl Sink) {
    out.put(&header(kind, repeated, body_bytes));
}

/// What stands before a run's body in a batch: the record's header and the run's.
///
/// # Panics
/// If the run's header disagrees with its body.
#[inline]
pub(crate) fn run_heads(kind: RecordKind, run: &RunHeader, body: &[&[u8]]) -> [u8; RUN_HEADS_BYTES] {
    let mut heads = [0; RUN_HEADS_BYTES];
    heads[..RECORD_HEADER_BYTES].copy_from_slice(&header(kind, false, run.encoded_bytes()));
    heads[RECORD_HEADER_BYTES..].copy_from_slice(&run.encode(body));
    heads
}

/// Appends a snapshot's body.
pub(crate) fn put_snapshot(snapshot: &SnapshotRef<'_>, out: &mut impl Sink) {
    let mut ranges = Vec::with_capacity(RANGE_BYTES * snapshot.live.len());
    put_ranges(&snapshot.live, &mut ranges);
    out.put_u64(snapshot.group.0);
    out.put_u64(snapshot.index.0);
    out.put_u64(snapshot.term.0);
    out.put_u32(crc32c_from(crc32c(&ranges), snapshot.bytes));
    out.put_u32(snapshot.live.len() as u32);
    out.put(&ranges);
    out.put(snapshot.bytes);
}

/// Appends a snapshot mark's body.
pub(crate) fn put_mark(mark: &Mark, out: &mut impl Sink) {
    out.put_u64(mark.group.0);
    out.put_u64(mark.index.0);
    out.put_u64(mark.term.0);
    out.put_u32(mark.file.crc);
    out.put_u32(mark.live.len() as u32);
    out.put_u64(mark.file.file_no);
    out.put_u64(mark.file.bytes);
    put_ranges(&mark.live, out);
}

/// Appends a moved record's body.
pub(crate) fn put_moved(moved: &Moved, out: &mut impl Sink) {
    out.put_u64(moved.group.0);
    out.put_u64(moved.from);
    out.put_u64(moved.to);
    out.put_u32(moved.ranges.len() as u32);
    out.put_u32(0);
    put_ranges(&moved.ranges, out);
}

fn put_ranges(ranges: &[IndexRange], out: &mut impl Sink) {
    for range in ranges {
        out.put_u64(range.first.0);
        out.put_u64(range.count);
    }
}

/// A snapshot in a file of its own takes the place of a group's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) group: GroupId,
    pub(crate) index: Index,
    pub(crate) term: Term,
    pub(crate) file: SnapshotFile,
    pub(crate) live: Vec<IndexRange>,
}

/// Entries of a group lie in another file than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The group.
    pub group: GroupId,
    /// Where they lay.
    pub from: u64,
    /// Where they lie now.
    pub to: u64,
    /// Which: in order, without overlaps.
    pub ranges: Vec<IndexRange>,
}

/// A record in place.
#[derive(Debug)]
pub(crate) enum Record<'a> {
    Run(RunRef<'a>),
    State {
        group: GroupId,
        blob: &'a [u8],
    },
    Snapshot(SnapshotRef<'a>),
    Page(Page),
    Root(Root),
    Mark(Mark),
    Place(RunRef<'a>),
    Moved(Moved),
    Deleted(GroupId),
    /// A block of the index of an earlier file: for whoever looks for it at its place.
    IndexBlock,
    /// The directory of such an index, with its body.
    IndexDirectory(Directory, &'a [u8]),
    /// Where indexes of several files lie.
    IndexList(Vec<IndexPlace>),
    /// The groups of the batch before.
    Roster(Vec<GroupId>),
    /// Of no known kind, and need not be understood.
    Skipped,
}

/// A snapshot in place, its checksum checked.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotRef<'a> {
    pub(crate) group: GroupId,
    pub(crate) index: Index,
    pub(crate) term: Term,
    /// Entries that it covers and that live on, in order.
    pub(crate) live: Vec<IndexRange>,
    pub(crate) bytes: &'a [u8],
}

/// Why bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("record ends early: {0}")]
    Truncated(#[from] Truncated),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("record has an impossible {0}")]
    Field(&'static str),
    /// A newer program wrote it, and it must be understood.
    #[error("record of unknown kind {0} must be understood")]
    Unknown(u8),
}

/// The runs among a batch's records, with no look at the others. Ends where there is no sound record.
#[derive(Debug)]
pub(crate) struct Runs<'a>(Reader<'a>);

impl<'a> Runs<'a> {
    pub(crate) fn new(records: &'a [u8]) -> Self {
        Self(Reader::new(records))
    }

    /// What lies behind the run that came last.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0.rest()
    }
}

impl<'a> Iterator for Runs<'a> {
    type Item = RunRef<'a>;

    fn next(&mut self) -> Option<RunRef<'a>> {
        loop {
            let kind = self.0.u8().ok()?;
            self.0.bytes(3).ok()?;
            let bytes = self.0.u32().ok()?;
            let body = self.0.bytes(bytes as usize).ok()?;
            if kind == RecordKind::Run as u8 {
                return run(body).ok();
            }
        }
    }
}

impl<'a> Record<'a> {
    /// Takes the next record off `reader`, with the offset of its header from the start of the records.
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, RecordError> {
        let (kind, flags) = (reader.u8()?, reader.u8()?);
        let zeros = reader.u16()?;
        let bytes = reader.u32()?;
        let body = reader.bytes(bytes as usize)?;
        if zeros != 0 {
            return Err(RecordError::Field("header"));
        }
        match kind {
            1 => run(body).map(Self::Run),
            2 => Self::state(body),
            3 => Ok(Self::Snapshot(snapshot(body)?)),
            4 | 10 => Ok(Self::Page(Page::decode(body)?)),
            5 | 11 => Ok(Self::Root(Root::decode(body)?)),
            6 => Ok(Self::Mark(mark(body)?)),
            7 => run(body).map(Self::Place),
            8 => Ok(Self::Moved(moved(body)?)),
            9 => deleted(body).map(Self::Deleted),
            // What has its kind and is none: nobody needs it.
            12 => Ok(Self::IndexBlock),
            13 => {
                Ok(Directory::decode(body).map_or(Self::Skipped, |found| Self::IndexDirectory(found, body)))
            }
            14 => Ok(file_index::list(body).map_or(Self::Skipped, Self::IndexList)),
            15 => Ok(roster::groups(body).map_or(Self::Skipped, Self::Roster)),
            kind if flags & FLAG_MUST_UNDERSTAND != 0 => Err(RecordError::Unknown(kind)),
            _ => Ok(Self::Skipped),
        }
    }

    fn state(body: &'a [u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::new(body);
        let group = GroupId(reader.u64()?);
        let blob = reader.rest();
        if blob.len() > STATE_BYTES_MAX {
            return Err(RecordError::Field("state length"));
        }
        Ok(Self::State { group, blob })
    }
}

fn index(number: u64) -> Result<Index, RecordError> {
    if number <= NUMBER_MAX { Ok(Index(number)) } else { Err(RecordError::Field("index")) }
}

/// A run that is all of the record.
fn run(body: &[u8]) -> Result<RunRef<'_>, RecordError> {
    let run = RunRef::parse(body)?;
    if run.header.encoded_bytes() != body.len() {
        return Err(RecordError::Field("length"));
    }
    index(run.header.prev_index.0)?;
    Ok(run)
}

fn snapshot(body: &[u8]) -> Result<SnapshotRef<'_>, RecordError> {
    let mut reader = Reader::new(body);
    let (group, index, term) = (GroupId(reader.u64()?), index(reader.u64()?)?, Term(reader.u64()?));
    let (crc, live_count) = (reader.u32()?, reader.u32()?);
    if crc32c(reader.rest()) != crc {
        return Err(RecordError::Field("snapshot checksum"));
    }
    let live = ranges(&mut reader, live_count)?;
    Ok(SnapshotRef { group, index, term, live, bytes: reader.rest() })
}

fn mark(body: &[u8]) -> Result<Mark, RecordError> {
    let mut reader = Reader::new(body);
    let (group, index, term) = (GroupId(reader.u64()?), index(reader.u64()?)?, Term(reader.u64()?));
    let (crc, live_count) = (reader.u32()?, reader.u32()?);
    let file = SnapshotFile { file_no: reader.u64()?, bytes: reader.u64()?, crc };
    let live = ranges(&mut reader, live_count)?;
    whole(&reader)?;
    Ok(Mark { group, index, term, file, live })
}

fn moved(body: &[u8]) -> Result<Moved, RecordError> {
    let mut reader = Reader::new(body);
    let (group, from, to) = (GroupId(reader.u64()?), reader.u64()?, reader.u64()?);
    let (count, zeros) = (reader.u32()?, reader.u32()?);
    let ranges = ranges(&mut reader, count)?;
    whole(&reader)?;
    if zeros != 0 {
        return Err(RecordError::Field("padding"));
    }
    Ok(Moved { group, from, to, ranges })
}

fn deleted(body: &[u8]) -> Result<GroupId, RecordError> {
    let mut reader = Reader::new(body);
    let group = GroupId(reader.u64()?);
    whole(&reader)?;
    Ok(group)
}

fn whole(reader: &Reader<'_>) -> Result<(), RecordError> {
    if reader.is_empty() { Ok(()) } else { Err(RecordError::Field("length")) }
}

/// Ranges in order, without overlaps.
fn ranges(reader: &mut Reader<'_>, count: u32) -> Result<Vec<IndexRange>, RecordError> {
    let mut ranges = Vec::new();
    let mut next = Index::ZERO;
    for _ in 0..count {
        let range = IndexRange { first: Index(reader.u64()?), count: reader.u64()? };
        let end = range.first.0.checked_add(range.count).filter(|end| *end <= NUMBER_MAX);
        let (true, Some(end)) = (range.first >= next && range.count > 0, end) else {
            return Err(RecordError::Field("range"));
        };
        next = Index(end);
        ranges.push(range);
    }
    Ok(ranges)
}
