//! One pass over the files that the log had when it was opened, which hands each group its entries: after a restart with
//! many groups, whose runs lie among each other, reading them group by group would read everything once a group.
//!
//! ```text
//!   begin_sweep → open a file → 2 reads of 1 MiB in flight → lend_sweep, next .. next, return_sweep → .. → the next file
//! ```
//!
//! An entry is handed out if its group's extent for it is in this file and its term is the one that the log holds at its
//! index: an equal (index, term) is the same entry, so no index of the file is needed. Live entries below a log, and what
//! lies in segments, are left out. What is damaged is left out, with the rest of its extent: who reads it on its own hears why.
//!
//! Invariants: (1) of a group, entries come in order, each at most once, and within an extent without a gap; (2) no byte is
//! handed out whose batch, run header and payload checksums were not checked after this very read; (3) a file that is
//! being swept is not reused.

use std::collections::VecDeque;
use std::ops::Range;

use coracle_base::checksum::crc32c;
use coracle_base::limits::BLOCK_BYTES;
use coracle_base::run::Entries;
use coracle_base::{GroupId, Index, Term};
use coracle_io::{Buffer, Disk, DiskDone, DiskError, DiskOk, DiskOp, FileId, FileMode};

use crate::files::log_path;
use crate::format::SEGMENT;
use crate::format::batch::{BATCH_HEADER_BYTES, BatchHead};
use crate::format::head::HEAD_AREA_BYTES;
use crate::format::record::Runs;
use crate::token;
use crate::wal::Wal;

/// A read of a sweep: no less than the largest batch, so that a batch lies in two of them at most.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces in memory, read or being read: what is handed out at once is bounded by it, too.
const PIECES_MAX: usize = 2;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Entries of one group, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SweptRun<'a> {
    /// The group.
    pub group: GroupId,
    /// Index of the first.
    pub first: Index,
    /// How many.
    pub count: u32,
    /// The encoded entries; every payload's checksum was checked.
    pub entries: &'a [u8],
}

/// A pass over the log's files.
#[derive(Debug)]
pub struct Sweep {
    /// Files still to come.
    files: VecDeque<u64>,
    file: Option<Swept>,
    /// The newest entry of each group that was handed out, by slot.
    reached: Vec<Index>,
    pieces: VecDeque<Piece>,
    /// Number of the first of `pieces`.
    piece_no: u64,
    /// Where the next batch is to be looked for.
    at: u64,
    /// The beginning of a batch whose end is in the next piece, or all of it.
    carry: Vec<u8>,
    carried: Option<BatchHead>,
    batch: Option<Batch>,
    run: Option<Run>,
    /// Buffers of pieces that are done with.
    used: Vec<Buffer>,
}

/// The file that is being swept.
#[derive(Debug)]
struct Swept {
    file_no: u64,
    seed: u32,
    uuid_low: u64,
    handle: Option<FileId>,
    /// Where the next piece begins.
    read_at: u64,
    end: u64,
}

/// A part of the file.
#[derive(Debug)]
struct Piece {
    offset: u64,
    bytes: u64,
    /// With the bytes that are there, once it is read: none if it could not be.
    read: Option<(Option<Buffer>, usize)>,
}

/// The batch whose runs are being handed out.
#[derive(Debug)]
struct Batch {
    /// In `carry`, else in the first piece.
    is_carried: bool,
    /// Its records that are left.
    records: Range<usize>,
}

/// The run whose entries are being handed out.
#[derive(Debug)]
struct Run {
    slot: usize,
    next: Index,
    /// Its entries that are left.
    entries: Range<usize>,
}

impl Wal {
    /// Begins to sweep what the log had in its files when it was opened, if it is not doing so: from the first file on that
    /// holds one of these entries.
    pub fn begin_sweep<D: Disk>(&mut self, disk: &mut D, wanted: impl Iterator<Item = (GroupId, Index)>) {
        if self.sweep.is_some() {
            return;
        }
        let files =
            wanted.filter_map(|(group, index)| Some(self.groups.find(group)?.extent_of(index)?.file_no));
        let Some(first) = files.min() else { return };
        // What this start has opened for writing is newer.
        let old = self.files.iter().filter(|(file_no, file)| file_no & SEGMENT == 0 && !file.writable);
        let held = old.filter(|(file_no, _)| *file_no >= first && self.refs.held(*file_no).extents > 0);
        self.sweep = Some(Box::new(Sweep {
            files: held.map(|(file_no, _)| file_no).collect(),
            file: None,
            reached: vec![Index::ZERO; self.groups.len()],
            pieces: VecDeque::with_capacity(PIECES_MAX),
            piece_no: 0,
            at: 0,
            carry: Vec::new(),
            carried: None,
            batch: None,
            run: None,
            used: Vec::with_capacity(PIECES_MAX),
        }));
        self.step_sweep(disk);
    }

    /// Whether a sweep is going on.
    pub fn is_sweeping(&self) -> bool {
        self.sweep.is_some()
    }

    /// The sweep, if something was read that it has not handed out. To be given back with
    /// [`return_sweep`](Self::return_sweep) before any other completion is.
    pub fn lend_sweep(&mut self) -> Option<Box<Sweep>> {
        self.sweep.take_if(|sweep| sweep.has_read())
    }

    /// Nobody needs more of the sweep: it ends when its reads have come back.
    pub fn end_sweep(&mut self) {
        if let Some(sweep) = &mut self.sweep {
            sweep.files.clear();
            if let Some(swept) = &mut sweep.file {
                swept.end = swept.end.min(swept.read_at);
            }
        }
    }

    /// Goes on with a sweep after all that it had was taken from it. At its end it is dropped.
    pub fn return_sweep<D: Disk>(&mut self, disk: &mut D, sweep: Box<Sweep>) {
        self.sweep = Some(sweep);
        self.step_sweep(disk);
    }

    /// Keeps reads in flight, a file after the other.
    fn step_sweep<D: Disk>(&mut self, disk: &mut D) {
        let Some(mut sweep) = self.sweep.take() else { return };
        sweep.used.drain(..).for_each(|buf| disk.recycle(buf));
        loop {
            let Some(swept) = &mut sweep.file else {
                let Some(file_no) = sweep.files.pop_front() else { return };
                sweep.file = self.open_swept(disk, file_no, sweep.piece_no);
                if sweep.file.is_some() {
                    break;
                }
                continue;
            };
            let Some(file) = swept.handle else { break };
            if swept.read_at >= swept.end && sweep.pieces.is_empty() {
                disk.start(token::IGNORED, DiskOp::Close { file });
                self.leave_swept(&mut sweep);
                continue;
            }
            if swept.read_at >= swept.end || sweep.pieces.len() == PIECES_MAX {
                break;
            }
            let bytes = PIECE_BYTES.min((swept.end - swept.read_at).next_multiple_of(BLOCK));
            let mut buf = disk.buffer(bytes as usize);
            buf.resize(bytes as usize);
            let number = sweep.piece_no + sweep.pieces.len() as u64;
            disk.start(token::sweep(number), DiskOp::Read { file, offset: swept.read_at, buf });
            sweep.pieces.push_back(Piece { offset: swept.read_at, bytes, read: None });
            swept.read_at += bytes;
        }
        self.sweep = Some(sweep);
    }

    /// `None` if there is nothing in the file any more.
    fn open_swept<D: Disk>(&mut self, disk: &mut D, file_no: u64, number: u64) -> Option<Swept> {
        let file = self.files.get_mut(file_no).filter(|_| self.refs.held(file_no).extents > 0)?;
        file.busy += 1;
        let path = log_path(&self.config.dir, file_no);
        // A handle of its own: others may be closed when there are too many.
        disk.start(token::sweep(number), DiskOp::Open { path, mode: FileMode::Read });
        Some(Swept {
            file_no,
            seed: file.uuid.seed(),
            uuid_low: file.uuid.low(),
            handle: None,
            read_at: HEAD_AREA_BYTES,
            end: file.end.min(file.bytes),
        })
    }

    fn leave_swept(&mut self, sweep: &mut Sweep) {
        let left = sweep.file.take().and_then(|swept| self.files.get_mut(swept.file_no));
        if let Some(file) = left {
            file.busy -= 1;
        }
        (sweep.batch, sweep.run, sweep.carried) = (None, None, None);
    }

    pub(crate) fn on_sweep_done<D: Disk>(&mut self, disk: &mut D, number: u64, done: DiskDone) {
        let Some(mut sweep) = self.sweep.take() else { return };
        match (&mut sweep.file, done.result) {
            (Some(swept), Ok(DiskOk::Opened { file, .. })) => {
                swept.handle = Some(file);
                sweep.at = swept.read_at;
            }
            (Some(swept), result) if swept.handle.is_none() => {
                warn(swept.file_no, &result);
                self.leave_swept(&mut sweep);
            }
            (Some(swept), result) => {
                let at = number.wrapping_sub(token::low_bits(sweep.piece_no)) as usize;
                if let Some(piece) = sweep.pieces.get_mut(at) {
                    let bytes = match result {
                        Ok(DiskOk::Read { bytes }) => bytes,
                        result => {
                            warn(swept.file_no, &result);
                            0
                        }
                    };
                    piece.read = Some((done.buf, bytes));
                }
            }
            (None, _) => {}
        }
        self.sweep = Some(sweep);
        self.step_sweep(disk);
    }

    /// Whether the log holds this entry in this file, above its snapshot; and it is the next one that is to be handed out.
    fn is_next_in(&self, file_no: u64, slot: usize, index: Index, term: Term, reached: Index) -> bool {
        let group = self.groups.at(slot);
        if index <= reached || index <= group.base || group.term_at(index) != Some(term) {
            return false;
        }
        let extent = group.extent_of(index).filter(|extent| extent.file_no == file_no);
        extent.is_some_and(|extent| index == reached.next() || index == extent.first)
    }
}

fn warn(file_no: u64, result: &Result<DiskOk, DiskError>) {
    if let Err(error) = result {
        tracing::warn!(file_no, %error, "a part of the log cannot be swept: its groups are read on their own");
    }
}

impl Sweep {
    fn has_read(&self) -> bool {
        self.batch.is_some() || self.pieces.front().is_some_and(|piece| piece.read.is_some())
    }

    /// The next entries in what was read: nothing is allocated for them. `None`: all of it was handed out.
    pub fn next<'a>(&'a mut self, wal: &Wal) -> Option<SweptRun<'a>> {
        loop {
            if self.run.is_none() && !self.next_run(wal) && !self.next_batch() {
                return None;
            }
            if let Some((group, first, count, entries)) = self.next_entries(wal) {
                let bytes = self.batch.as_ref().map_or(&[][..], |batch| self.bytes(batch.is_carried));
                return Some(SweptRun { group, first, count, entries: &bytes[entries] });
            }
        }
    }

    fn bytes(&self, is_carried: bool) -> &[u8] {
        match self.pieces.front() {
            _ if is_carried => &self.carry,
            Some(Piece { read: Some((Some(buf), _)), .. }) => buf,
            _ => &[],
        }
    }

    /// Goes on to the batch's next run of a group that the sweep is about. False if there is none.
    fn next_run(&mut self, wal: &Wal) -> bool {
        let Some(batch) = &self.batch else { return false };
        let bytes = &self.bytes(batch.is_carried)[..batch.records.end];
        let mut runs = Runs::new(&bytes[batch.records.start..]);
        let mut found = None;
        while let Some(run) = runs.next() {
            // Groups that came later have nothing in these files.
            let slot = wal.groups.slot(run.header.group).filter(|slot| *slot < self.reached.len());
            let Some(slot) = slot else { continue };
            let end = bytes.len() - runs.rest().len();
            found = Some(Run { slot, next: run.header.first(), entries: end - run.body.len()..end });
            break;
        }
        let start = bytes.len() - runs.rest().len();
        if let Some(batch) = &mut self.batch {
            batch.records.start = start;
        }
        self.run = found;
        if self.run.is_none() {
            self.batch = None;
        }
        self.run.is_some()
    }

    /// The next entries of the run that are wanted: (group, first, count, where). `None`: there are no more in it.
    fn next_entries(&mut self, wal: &Wal) -> Option<(GroupId, Index, u32, Range<usize>)> {
        let (Some(run), Some(batch), Some(swept)) = (self.run.take(), &self.batch, &self.file) else {
            return None;
        };
        let bytes = &self.bytes(batch.is_carried)[..run.entries.end];
        let (mut first, mut count, mut start, mut end) = (Index::ZERO, 0, 0, run.entries.start);
        let mut reached = self.reached[run.slot];
        let mut entries = Entries::new(run.next, &bytes[run.entries.start..]);
        while let Some(entry) = entries.next() {
            let wanted = wal.is_next_in(swept.file_no, run.slot, entry.index, entry.header.term, reached)
                && crc32c(entry.payload) == entry.header.payload_crc;
            if !wanted && count > 0 {
                break;
            }
            if wanted {
                if count == 0 {
                    (first, start) = (entry.index, end);
                }
                count += 1;
                reached = entry.index;
            }
            end = bytes.len() - entries.rest().len();
        }
        let group = wal.groups.at(run.slot).id;
        self.reached[run.slot] = reached;
        if count == 0 {
            return None;
        }
        // The rest may hold more behind a gap.
        self.run = Some(Run { next: reached.next(), entries: end..run.entries.end, ..run });
        Some((group, first, count, start..end))
    }

    /// Goes on to the next batch that holds. False if more is to be read first.
    fn next_batch(&mut self) -> bool {
        (self.batch, self.run) = (None, None);
        while let Some(swept) = &self.file
            && let Some(Piece { offset, bytes, read: Some((buf, valid)) }) = self.pieces.front()
        {
            let piece_end = offset + bytes;
            let valid = buf.as_ref().map_or(&[][..], |buf| &buf[..(*valid).min(buf.len())]);
            if let Some(head) = self.carried.take() {
                // It began in the piece before.
                let missing = head.batch_bytes() as usize - self.carry.len();
                let Some(rest) = valid.get(..missing) else {
                    self.at = piece_end;
                    continue;
                };
                self.carry.extend_from_slice(rest);
                self.at += head.batch_bytes();
                if head.payload_holds(&self.carry[BATCH_HEADER_BYTES..], swept.seed) {
                    self.batch = Some(Batch { is_carried: true, records: records(&head, 0) });
                    return true;
                }
                continue;
            }
            let from = (self.at - offset) as usize;
            let Some(rest) = valid.get(from..).filter(|rest| rest.len() >= BLOCK_BYTES) else {
                // The piece is done with, or cannot be read.
                self.at = self.at.max(piece_end);
                self.drop_piece();
                continue;
            };
            let head = BatchHead::decode(rest, swept.seed, swept.uuid_low);
            let Some(head) = head.filter(|head| head.self_off == self.at) else {
                self.at += BLOCK;
                continue;
            };
            let Some(batch) = rest.get(..head.batch_bytes() as usize) else {
                if rest.len() as u64 == piece_end - self.at && self.at + head.batch_bytes() <= swept.end {
                    self.carry.clear();
                    self.carry.extend_from_slice(rest);
                    self.carried = Some(head);
                    self.drop_piece();
                } else {
                    self.at = piece_end;
                }
                continue;
            };
            self.at += batch.len() as u64;
            if head.payload_holds(&batch[BATCH_HEADER_BYTES..], swept.seed) {
                self.batch = Some(Batch { is_carried: false, records: records(&head, from) });
                return true;
            }
        }
        false
    }

    fn drop_piece(&mut self) {
        if let Some(piece) = self.pieces.pop_front() {
            self.piece_no += 1;
            self.used.extend(piece.read.and_then(|(buf, _)| buf));
        }
    }

    /// The handle of the file that is being swept.
    pub(crate) fn handle(&self) -> Option<FileId> {
        self.file.as_ref().and_then(|swept| swept.handle)
    }
}

/// Where a batch's records lie, if the batch begins at `from`.
fn records(head: &BatchHead, from: usize) -> Range<usize> {
    let start = from + BATCH_HEADER_BYTES;
    start..start + head.payload_bytes as usize
}

const _: () = assert!(PIECE_BYTES >= coracle_base::limits::BATCH_BYTES_MAX as u64);
