//! The shard checkpoint as records: pages that say what each group's log is, and the root that makes them count.
//!
//! ```text
//!   page body: checkpoint u64, page_no u32, part_count u32, then the parts (of at most 64 groups)
//!   part       0    8   group
//!              8    4   flags          bit 0 suspect, bit 1 state may be lost, bit 2 has a snapshot, bit 3 more parts follow,
//!                                     bit 4 the snapshot is a file, bit 5 extents have their bytes, bit 6 those of the
//!                                     log are packed, bit 7 of live ones the topmost bit of their bytes says that they
//!                                     were placed
//!              12   4   state_bytes
//!              16   8   accepted_term
//!              24   8   base_index     before the first entry
//!              32   8   base_term
//!              40   8   last           index
//!              48   8   snapshot.file_no     of the log, or of the snapshot file (bit 4)
//!              56   8   snapshot.offset of its record; bytes of the snapshot file
//!              64   4   snapshot.bytes; checksum of the snapshot file
//!              68   4   term_count
//!              72   4   extent_count
//!              76   2   live_count
//!              78   2   placed_count
//!              80   ..  state, then terms (first index u64, term u64), then extents: those of the log, then live ones, then
//!                       placed ones (file_no u64, first u64, count u64, and with bit 5 bytes u64); packed ones are
//!                       first u64, length u32, then for each: count, file_no (rotated left by a bit, so that
//!                       the one for segments comes last; difference to the one before, zigzag), bytes; 7 bits a byte, the last one below 0x80
//!
//!   root body: checkpoint u64, boot_epoch u64, begin {file_no u64, offset u64, seq u64, chain u64}, page_count u32 (bit 31:
//!              records of groups that are not named may have been lost, bit 30: kept pages follow), file_count u32, then
//!              files (file_no u64, uuid u128, end u64), then with bit 30 kept_count u32, and for each kept page two copies
//!              (piece_count u16, then for each piece file_no u64, offset u64, bytes u32 of the record's body, its crc32c u32)
//! ```
//!
//! Pages of groups that nothing happened to are not written again: the root says where two copies of each lie, in older
//! places of the log. `page_count` is of those that were written for this checkpoint.
//!
//! `begin` is where the newest batch ended that was durable when the first page was staged, with that batch's chain value
//! and the number of the next. Replay starts there, not at the first page: the batches in between must be there too, or
//! the pages speak of entries that a crash has taken.
//!
//! A page says what its groups are at the very place in the log where the page lies; records after it come on top. A
//! group with very many terms or extents goes in several parts, in consecutive pages without a record between them.

use coracle_base::codec::{Reader, Sink};
use coracle_base::limits::{BATCH_BYTES_MAX, STATE_BYTES_MAX};
use coracle_base::{GroupId, Index, Term};

use super::record::RecordError;
use super::{NUMBER_MAX, Position, Uuid};
use crate::groups::Extents;

/// Bytes of a page's body before its parts.
pub(crate) const PAGE_PREFIX_BYTES: usize = 16;
/// Bytes of a root's body before its files.
const ROOT_PREFIX_BYTES: usize = 56;
const FILE_BYTES: usize = 32;
const PART_PREFIX_BYTES: usize = 80;
const EXTENT_BYTES: usize = 32;
const PACKED_PREFIX_BYTES: usize = 12;
/// What the entries of an extent take in a file, at most: sums of very many do not overflow.
const FILE_BYTES_MAX: u64 = 1 << 40;
/// Terms, and extents, in one part at most: a part always fits a page.
pub(crate) const PART_ITEMS_MAX: usize = 512;

const FLAG_SUSPECT: u32 = 1;
const FLAG_STATE_LOST: u32 = 2;
const FLAG_SNAPSHOT: u32 = 4;
const FLAG_MORE: u32 = 8;
const FLAG_SNAPSHOT_FILE: u32 = 16;
const FLAG_EXTENT_BYTES: u32 = 32;
const FLAG_PACKED: u32 = 64;
const FLAG_PLACED_LIVE: u32 = 128;
const FLAGS_KNOWN: u32 = 255;
/// In the bytes of a live extent.
const EXTENT_PLACED: u64 = 1 << 63;

/// Consecutive entries of one group that lie in one file, of the log or a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) file_no: u64,
    pub(crate) first: Index,
    pub(crate) count: u64,
    /// What they take in the file, about: for choosing what to compact, never for reading.
    pub(crate) bytes: u64,
    /// Of a snapshot, by records of their own: not to be looked for among the runs of the log.
    pub(crate) is_placed: bool,
}

impl Extent {
    /// Index of its last entry.
    pub(crate) fn last(&self) -> Index {
        Index(self.first.0 + self.count - 1)
    }

    /// The part of it within `[first, last]`, if there is one.
    pub(crate) fn within(&self, first: Index, last: Index) -> Option<Self> {
        let (first, last) = (first.max(self.first), last.min(self.last()));
        let count = (last.0 + 1).saturating_sub(first.0);
        let bytes = (u128::from(self.bytes) * u128::from(count) / u128::from(self.count.max(1))) as u64;
        (count > 0).then_some(Self { first, count, bytes, ..*self })
    }
}

/// Where a snapshot lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SnapshotPlace {
    /// In a record of the log.
    Inline { at: Position, bytes: u32 },
    /// In a file of its own.
    File(SnapshotFile),
}

impl SnapshotPlace {
    /// The file of the log that holds it.
    pub(crate) fn log_file(&self) -> Option<u64> {
        match self {
            Self::Inline { at, .. } => Some(at.file_no),
            Self::File(_) => None,
        }
    }
}

/// A snapshot in a file of its own, as the log names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotFile {
    /// The file's number.
    pub file_no: u64,
    /// Bytes of the snapshot.
    pub bytes: u64,
    /// Their CRC32C: what is in the file counts only if it has this.
    pub crc: u32,
}

/// A group as a checkpoint tells it, or a part of one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) group: GroupId,
    pub(crate) suspect: bool,
    pub(crate) state_lost: bool,
    pub(crate) state: Vec<u8>,
    pub(crate) accepted_term: Term,
    pub(crate) base_index: Index,
    pub(crate) base_term: Term,
    pub(crate) last: Index,
    pub(crate) snapshot: Option<SnapshotPlace>,
    pub(crate) terms: Vec<(Index, Term)>,
    pub(crate) extents: Extents,
    /// Entries that the snapshot covers and that live on.
    pub(crate) live: Vec<Extent>,
    /// Entries that wait for the snapshot that they belong to.
    pub(crate) placed: Vec<Extent>,
    /// The next part is of the same group.
    pub(crate) more: bool,
}

impl Part {
    pub(crate) fn encoded_bytes(&self) -> usize {
        PART_PREFIX_BYTES
            + self.state.len()
            + 16 * self.terms.len()
            + PACKED_PREFIX_BYTES
            + self.extents.packed().len()
            + EXTENT_BYTES * (self.live.len() + self.placed.len())
    }

    pub(crate) fn encode(&self, out: &mut impl Sink) {
        let flag = |on, bit| if on { bit } else { 0 };
        let is_file = matches!(self.snapshot, Some(SnapshotPlace::File(_)));
        // Only where there are any: a reader of before knows such pages only without them.
        let placed_live = self.live.iter().any(|extent| extent.is_placed);
        out.put_u64(self.group.0);
        out.put_u32(
            flag(self.suspect, FLAG_SUSPECT)
                | flag(self.state_lost, FLAG_STATE_LOST)
                | flag(self.snapshot.is_some(), FLAG_SNAPSHOT)
                | flag(self.more, FLAG_MORE)
                | flag(is_file, FLAG_SNAPSHOT_FILE)
                | flag(placed_live, FLAG_PLACED_LIVE)
                | FLAG_EXTENT_BYTES
                | FLAG_PACKED,
        );
        out.put_u32(self.state.len() as u32);
        out.put_u64(self.accepted_term.0);
        out.put_u64(self.base_index.0);
        out.put_u64(self.base_term.0);
        out.put_u64(self.last.0);
        let (file_no, offset, bytes) = match self.snapshot {
            None => (0, 0, 0),
            Some(SnapshotPlace::Inline { at, bytes }) => (at.file_no, at.offset, bytes),
            Some(SnapshotPlace::File(file)) => (file.file_no, file.bytes, file.crc),
        };
        out.put_u64(file_no);
        out.put_u64(offset);
        out.put_u32(bytes);
        out.put_u32(self.terms.len() as u32);
        out.put_u32(self.extents.len() as u32);
        out.put_u16(self.live.len() as u16);
        out.put_u16(self.placed.len() as u16);
        out.put(&self.state);
        for (first, term) in &self.terms {
            out.put_u64(first.0);
            out.put_u64(term.0);
        }
        out.put_u64(self.extents.first().0);
        out.put_u32(self.extents.packed().len() as u32);
        out.put(self.extents.packed());
        let live = self.live.iter().map(|extent| (extent, extent.is_placed));
        for (extent, tells_placed) in live.chain(self.placed.iter().map(|extent| (extent, false))) {
            out.put_u64(extent.file_no);
            out.put_u64(extent.first.0);
            out.put_u64(extent.count);
            out.put_u64(extent.bytes | if tells_placed { EXTENT_PLACED } else { 0 });
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        let group = GroupId(reader.u64()?);
        let flags = reader.u32()?;
        let state_bytes = reader.u32()? as usize;
        let accepted_term = Term(reader.u64()?);
        let (base_index, base_term) = (Index(reader.u64()?), Term(reader.u64()?));
        let last = Index(reader.u64()?);
        let snapshot = decode_place(reader, flags)?;
        let (terms, extents) = (reader.u32()? as usize, reader.u32()? as usize);
        let (live, placed) = (usize::from(reader.u16()?), usize::from(reader.u16()?));
        if flags & !FLAGS_KNOWN != 0 {
            return Err(RecordError::Field("flag"));
        }
        if base_index.max(last).0 > NUMBER_MAX {
            return Err(RecordError::Field("index"));
        }
        let items = [terms, extents, live, placed];
        if state_bytes > STATE_BYTES_MAX || items.iter().any(|count| *count > PART_ITEMS_MAX) {
            return Err(RecordError::Field("length"));
        }
        let state = reader.bytes(state_bytes)?.to_vec();
        let mut part = Self {
            group,
            suspect: flags & FLAG_SUSPECT != 0,
            state_lost: flags & FLAG_STATE_LOST != 0,
            state,
            accepted_term,
            base_index,
            base_term,
            last,
            snapshot,
            terms: Vec::with_capacity(terms),
            more: flags & FLAG_MORE != 0,
            ..Self::default()
        };
        for _ in 0..terms {
            part.terms.push((Index(reader.u64()?), Term(reader.u64()?)));
        }
        let plain = ExtentFlags { with_bytes: flags & FLAG_EXTENT_BYTES != 0, tells_placed: false };
        let list = |reader: &mut Reader<'_>, count: usize, flags: ExtentFlags| {
            (0..count).map(|_| decode_extent(reader, flags)).collect::<Result<Vec<_>, _>>()
        };
        part.extents = if flags & FLAG_PACKED != 0 {
            decode_packed(reader, extents)?
        } else {
            Extents::pack(list(reader, extents, plain)?).ok_or(RecordError::Field("list of extents"))?
        };
        let tells_placed = flags & FLAG_PLACED_LIVE != 0;
        part.live = list(reader, live, ExtentFlags { tells_placed, ..plain })?;
        part.placed = list(reader, placed, plain)?;
        part.placed.iter_mut().for_each(|extent| extent.is_placed = true);
        Ok(part)
    }
}

fn decode_place(reader: &mut Reader<'_>, flags: u32) -> Result<Option<SnapshotPlace>, RecordError> {
    let (file_no, offset, bytes) = (reader.u64()?, reader.u64()?, reader.u32()?);
    Ok(match (flags & FLAG_SNAPSHOT != 0, flags & FLAG_SNAPSHOT_FILE != 0) {
        (false, _) => None,
        (true, false) => Some(SnapshotPlace::Inline { at: Position { file_no, offset }, bytes }),
        (true, true) => Some(SnapshotPlace::File(SnapshotFile { file_no, bytes: offset, crc: bytes })),
    })
}

/// What an extent in a list says beside its place.
#[derive(Clone, Copy)]
struct ExtentFlags {
    with_bytes: bool,
    tells_placed: bool,
}

fn decode_extent(reader: &mut Reader<'_>, flags: ExtentFlags) -> Result<Extent, RecordError> {
    let (file_no, first, count) = (reader.u64()?, Index(reader.u64()?), reader.u64()?);
    let bytes = if flags.with_bytes { reader.u64()? } else { 0 };
    let is_placed = flags.tells_placed && bytes & EXTENT_PLACED != 0;
    let bytes = if is_placed { bytes & !EXTENT_PLACED } else { bytes };
    let is_long = first.0.checked_add(count).is_none_or(|end| end > NUMBER_MAX);
    if count == 0 || is_long || bytes > FILE_BYTES_MAX {
        return Err(RecordError::Field("extent"));
    }
    Ok(Extent { file_no, first, count, bytes, is_placed })
}

fn decode_packed(reader: &mut Reader<'_>, count: usize) -> Result<Extents, RecordError> {
    let (first, length) = (Index(reader.u64()?), reader.u32()?);
    let packed = reader.bytes(length as usize)?;
    let extents = Extents::unpack(first, count, packed);
    let is_possible = |extents: &Extents| {
        extents.end().0 <= NUMBER_MAX && extents.iter().all(|extent| extent.bytes <= FILE_BYTES_MAX)
    };
    extents.filter(is_possible).ok_or(RecordError::Field("packed extent"))
}

/// One page of a checkpoint, or a piece of a large one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) checkpoint: u64,
    pub(crate) page_no: u32,
    pub(crate) parts: Vec<Part>,
}

impl Page {
    pub(crate) fn encode(&self, out: &mut impl Sink) {
        out.put_u64(self.checkpoint);
        out.put_u32(self.page_no);
        out.put_u32(self.parts.len() as u32);
        for part in &self.parts {
            part.encode(out);
        }
    }

    pub(crate) fn decode(body: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::new(body);
        let (checkpoint, page_no, count) = (reader.u64()?, reader.u32()?, reader.u32()?);
        let mut parts = Vec::new();
        for _ in 0..count {
            parts.push(Part::decode(&mut reader)?);
        }
        if !reader.is_empty() {
            return Err(RecordError::Field("page length"));
        }
        Ok(Self { checkpoint, page_no, parts })
    }
}

/// A file as the file map tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileEntry {
    pub(crate) file_no: u64,
    pub(crate) uuid: Uuid,
    /// Where its batches end, as far as was known.
    pub(crate) end: u64,
}

/// Where a replay starts: everything before it was durable when the first page was staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Begin {
    pub(crate) at: Position,
    /// Of the first batch.
    pub(crate) seq: u64,
    /// Of the batch before.
    pub(crate) chain: u64,
}

/// What makes the pages of a checkpoint count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) checkpoint: u64,
    pub(crate) boot_epoch: u64,
    pub(crate) begin: Begin,
    pub(crate) page_count: u32,
    /// Records of groups that are not named here may have been lost.
    pub(crate) incomplete: bool,
    pub(crate) files: Vec<FileEntry>,
    /// Pages that were not written again: for each, where two copies of it lie.
    pub(crate) kept: Vec<[PageCopy; 2]>,
}

/// Where a record of a page lies, and what its body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Of the record's header.
    pub(crate) at: Position,
    /// Of its body.
    pub(crate) bytes: u32,
    pub(crate) crc: u32,
}

/// All of a page, once.
pub(crate) type PageCopy = Vec<Piece>;

const ROOT_INCOMPLETE: u32 = 1 << 31;
const ROOT_KEPT: u32 = 1 << 30;
/// Bytes of a piece in a root.
const PIECE_BYTES: usize = 24;

impl Root {
    pub(crate) fn encoded_bytes(&self) -> usize {
        let kept = self.kept.iter().map(|[one, other]| Self::kept_bytes([one, other]));
        ROOT_PREFIX_BYTES + FILE_BYTES * self.files.len() + 4 + kept.sum::<usize>()
    }

    /// What it takes to say where these copies lie.
    pub(crate) fn kept_bytes(copies: [&PageCopy; 2]) -> usize {
        copies.iter().map(|copy| 2 + PIECE_BYTES * copy.len()).sum()
    }

    pub(crate) fn encode(&self, out: &mut impl Sink) {
        out.put_u64(self.checkpoint);
        out.put_u64(self.boot_epoch);
        out.put_u64(self.begin.at.file_no);
        out.put_u64(self.begin.at.offset);
        out.put_u64(self.begin.seq);
        out.put_u64(self.begin.chain);
        out.put_u32(self.page_count | ROOT_KEPT | if self.incomplete { ROOT_INCOMPLETE } else { 0 });
        out.put_u32(self.files.len() as u32);
        for file in &self.files {
            out.put_u64(file.file_no);
            out.put_u128(file.uuid.0);
            out.put_u64(file.end);
        }
        out.put_u32(self.kept.len() as u32);
        for copy in self.kept.iter().flatten() {
            out.put_u16(copy.len() as u16);
            for piece in copy {
                out.put_u64(piece.at.file_no);
                out.put_u64(piece.at.offset);
                out.put_u32(piece.bytes);
                out.put_u32(piece.crc);
            }
        }
    }

    pub(crate) fn decode(body: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::new(body);
        let (checkpoint, boot_epoch) = (reader.u64()?, reader.u64()?);
        let at = Position { file_no: reader.u64()?, offset: reader.u64()? };
        let begin = Begin { at, seq: reader.u64()?, chain: reader.u64()? };
        let (page_count, count) = (reader.u32()?, reader.u32()?);
        let place = at.file_no.max(at.offset);
        if checkpoint.max(boot_epoch).max(begin.seq).max(place) > NUMBER_MAX {
            return Err(RecordError::Field("number"));
        }
        let mut files = Vec::new();
        for _ in 0..count {
            let (file_no, uuid) = (reader.u64()?, Uuid(reader.u128()?));
            files.push(FileEntry { file_no, uuid, end: reader.u64()? });
        }
        let kept_count = if page_count & ROOT_KEPT != 0 { reader.u32()? } else { 0 };
        let mut kept = Vec::new();
        for _ in 0..kept_count {
            kept.push([decode_copy(&mut reader)?, decode_copy(&mut reader)?]);
        }
        if !reader.is_empty() {
            return Err(RecordError::Field("root length"));
        }
        let incomplete = page_count & ROOT_INCOMPLETE != 0;
        Ok(Self {
            checkpoint,
            boot_epoch,
            begin,
            page_count: page_count & !(ROOT_INCOMPLETE | ROOT_KEPT),
            incomplete,
            files,
            kept,
        })
    }
}

fn decode_copy(reader: &mut Reader<'_>) -> Result<PageCopy, RecordError> {
    let count = reader.u16()?;
    let mut copy = Vec::new();
    for _ in 0..count {
        let at = Position { file_no: reader.u64()?, offset: reader.u64()? };
        copy.push(Piece { at, bytes: reader.u32()?, crc: reader.u32()? });
    }
    let is_possible = |piece: &Piece| {
        piece.at.file_no <= NUMBER_MAX
            && piece.at.offset <= NUMBER_MAX
            && piece.bytes as usize <= BATCH_BYTES_MAX
    };
    if copy.is_empty() || !copy.iter().all(is_possible) {
        return Err(RecordError::Field("kept page"));
    }
    Ok(copy)
}
