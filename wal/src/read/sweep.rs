//! One pass over the files that the log had when it was opened, which hands each group its entries: after a restart with
//! many groups, whose runs lie among each other, reading them group by group would read everything once a group.
//!
//! ```text
//!   begin_sweep → open a file → 2 reads of 1 MiB in flight → lend_sweep, next .. next, return_sweep → .. → the next file
//! ```
//!
//! An entry is handed out if its group is one of those that the sweep is for, the group's extent for it is in this file and
//! its term is the one that the log holds at its index: an equal (index, term) is the same entry, so no index of the file is
//! needed. Live entries below a log, and what lies in segments, are left out. What is damaged is left out, with the rest of
//! its extent: who reads it on its own hears why.
//!
//! With thousands of groups no group is in the cache when its next entry comes. What the sweep asks of a group is therefore
//! kept in a dense table of [`Place`]s, and asked anew only where an extent or a term begins, and when the group has changed.
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
/// Pieces in memory, read or being read.
const PIECES_MAX: usize = 3;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Entries of one group, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SweptRun<'a> {
    /// The group.
    pub group: GroupId,
    /// Its number among the groups that the sweep was begun for.
    pub number: u32,
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
    /// Files begun.
    file_count: u32,
    /// By slot.
    places: Vec<Place>,
    pieces: VecDeque<Piece>,
    /// Number of the first of `pieces`.
    piece_no: u64,
    /// Where the next batch is to be looked for.
    at: u64,
    /// The beginning of a batch whose end is in the next piece, or all of it.
    carry: Vec<u8>,
    carried: Option<BatchHead>,
    batch: Option<Batch>,
    /// The batch's runs that are wanted, and how many of them are done with.
    runs: Vec<Run>,
    runs_done: usize,
    /// Bytes of all files at the beginning, and what of them is done with.
    bytes: u64,
    bytes_done: u64,
    /// Buffers of pieces that are done with.
    used: Vec<Buffer>,
}

/// A group, as far as the sweep has asked about it.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Its number among those that the sweep is for; `NOT_WANTED` if it is none of them.
    number: u32,
    /// What follows was asked when the group had this version, of the file with this number in the sweep.
    version: u32,
    file: u32,
    /// The next entry that is to be handed out.
    next: Index,
    /// From `next` up to here the log's entries lie in that file and have this term.
    upto: Index,
    term: Term,
}

const NOT_WANTED: u32 = u32::MAX;

/// How far a sweep is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SweepProgress {
    /// Bytes of the files that are passed, and of that part of the present one.
    pub bytes_done: u64,
    /// Bytes of all of them.
    pub bytes: u64,
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
    /// Where its records lie.
    records: Range<usize>,
}

/// A run whose entries are, or will be, handed out.
#[derive(Debug, Clone)]
struct Run {
    slot: usize,
    next: Index,
    /// Its entries that are left.
    entries: Range<usize>,
}

impl Wal {
    /// Begins to sweep what the log had in its files when it was opened, if it is not doing so: for these groups, of each from
    /// an entry on. The first file is the first one that holds one of these entries.
    pub fn begin_sweep<D: Disk>(&mut self, disk: &mut D, wanted: impl Iterator<Item = (GroupId, Index)>) {
        if self.sweep.is_some() {
            return;
        }
        let unwanted = Place {
            number: NOT_WANTED,
            version: 0,
            file: 0,
            next: Index(u64::MAX),
            upto: Index::ZERO,
            term: Term::ZERO,
        };
        let mut places = vec![unwanted; self.groups.len()];
        let mut first = u64::MAX;
        for (number, (group, next)) in (0..).zip(wanted) {
            let Some(slot) = self.groups.slot(group) else { continue };
            let extent = self.groups.at(slot).extent_of(next);
            first = first.min(extent.map_or(u64::MAX, |extent| extent.file_no));
            places[slot] = Place { number, next, ..places[slot] };
        }
        // What this start has opened for writing is newer.
        let old = self.files.iter().filter(|(file_no, file)| file_no & SEGMENT == 0 && !file.writable);
        let held = old.filter(|(file_no, _)| *file_no >= first && self.refs.held(*file_no).extents > 0);
        let held: Vec<(u64, u64)> = held.map(|(file_no, file)| (file_no, file.end.min(file.bytes))).collect();
        let bytes = held.iter().map(|(_, bytes)| bytes).sum();
        let files: VecDeque<u64> = held.into_iter().map(|(file_no, _)| file_no).collect();
        if files.is_empty() {
            return;
        }
        self.sweep = Some(Box::new(Sweep {
            files,
            file: None,
            file_count: 0,
            places,
            pieces: VecDeque::with_capacity(PIECES_MAX),
            piece_no: 0,
            at: 0,
            carry: Vec::new(),
            carried: None,
            batch: None,
            runs: Vec::new(),
            runs_done: 0,
            bytes,
            bytes_done: 0,
            used: Vec::with_capacity(PIECES_MAX),
        }));
        self.step_sweep(disk);
    }

    /// How far the sweep is, if one is going on and not lent.
    pub fn sweep_progress(&self) -> Option<SweepProgress> {
        let sweep = self.sweep.as_ref()?;
        let here = sweep.file.as_ref().filter(|swept| swept.handle.is_some()).map_or(0, |_| sweep.at);
        Some(SweepProgress { bytes_done: (sweep.bytes_done + here).min(sweep.bytes), bytes: sweep.bytes })
    }

    /// Whether the sweep has read something that it has not handed out.
    pub fn sweep_is_ready(&self) -> bool {
        self.sweep.as_ref().is_some_and(|sweep| sweep.has_read())
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

    /// Goes on with a sweep after some or all of what it had was taken from it. At its end it is dropped.
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
                sweep.file_count += 1;
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
            sweep.bytes_done += file.end.min(file.bytes);
        }
        (sweep.batch, sweep.carried) = (None, None);
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

    /// Asks the group about an entry that was met in a file: whether the log holds it there, above its snapshot, and it is the
    /// next one that is wanted. What holds for it and entries after it is noted.
    fn ask_about(
        &self,
        place: &mut Place,
        slot: usize,
        (file, file_no): (u32, u64),
        index: Index,
        term: Term,
    ) -> bool {
        let group = self.groups.at(slot);
        if index < place.next || index <= group.base {
            return false;
        }
        let Some(extent) = group.extent_of(index).filter(|extent| extent.file_no == file_no) else {
            return false;
        };
        let Some((found, last)) = group.term_span(index) else { return false };
        if found != term || index != place.next && index != extent.first {
            return false;
        }
        (place.version, place.file) = (self.groups.version(slot), file);
        (place.next, place.upto, place.term) = (index, extent.last().min(last), term);
        true
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

    /// Numbers of the groups whose runs come next, of those that are known already: whoever is about to do something with
    /// them can bring them into the cache.
    pub fn upcoming(&self) -> impl Iterator<Item = u32> + '_ {
        self.runs[self.runs_done..].iter().map(|run| self.places[run.slot].number)
    }

    /// The next entries in what was read: nothing is allocated for them. `None`: all of it was handed out.
    pub fn next<'a>(&'a mut self, wal: &Wal) -> Option<SweptRun<'a>> {
        loop {
            if self.runs_done == self.runs.len() && !self.next_batch(wal) {
                return None;
            }
            if let Some((slot, first, count, entries)) = self.next_entries(wal) {
                let bytes = self.batch.as_ref().map_or(&[][..], |batch| self.bytes(batch.is_carried));
                let (group, number) = (wal.groups.id(slot), self.places[slot].number);
                return Some(SweptRun { group, number, first, count, entries: &bytes[entries] });
            }
        }
    }

    fn bytes(&self, is_carried: bool) -> &[u8] {
        bytes_of(&self.pieces, &self.carry, is_carried)
    }

    /// Notes the runs of a batch that are of use.
    fn note_runs(&mut self, wal: &Wal, batch: Batch) {
        self.runs.clear();
        self.runs_done = 0;
        let bytes = &bytes_of(&self.pieces, &self.carry, batch.is_carried)[..batch.records.end];
        let mut runs = Runs::new(&bytes[batch.records.start..]);
        while let Some(run) = runs.next() {
            // Groups that came later have nothing in these files.
            let slot = wal.groups.slot(run.header.group);
            let Some(slot) = slot.filter(|slot| *slot < self.places.len()) else { continue };
            if run.header.last() < self.places[slot].next {
                continue;
            }
            let end = bytes.len() - runs.rest().len();
            self.runs.push(Run { slot, next: run.header.first(), entries: end - run.body.len()..end });
        }
        self.batch = Some(batch);
    }

    /// The next entries of the present run that are wanted: (slot, first, count, where). `None`: there are no more in it, and
    /// it is done with.
    fn next_entries(&mut self, wal: &Wal) -> Option<(usize, Index, u32, Range<usize>)> {
        let (Some(run), Some(batch), Some(swept)) =
            (self.runs.get_mut(self.runs_done), &self.batch, &self.file)
        else {
            self.runs_done = self.runs.len();
            return None;
        };
        let slot = run.slot;
        let (place, version) = (&mut self.places[slot], wal.groups.version(slot));
        let file = (self.file_count, swept.file_no);
        let bytes = &bytes_of(&self.pieces, &self.carry, batch.is_carried)[..run.entries.end];
        let (mut first, mut count, mut start, mut end) = (Index::ZERO, 0, 0, run.entries.start);
        let mut entries = Entries::new(run.next, &bytes[run.entries.start..]);
        while let Some(entry) = entries.next() {
            let (index, term) = (entry.index, entry.header.term);
            let is_known = (place.version, place.file) == (version, file.0)
                && index == place.next
                && index <= place.upto
                && term == place.term;
            let wanted = (is_known || wal.ask_about(place, slot, file, index, term))
                && crc32c(entry.payload) == entry.header.payload_crc;
            if !wanted && count > 0 {
                break;
            }
            if wanted {
                if count == 0 {
                    (first, start) = (index, end);
                }
                count += 1;
                place.next = index.next();
            }
            end = bytes.len() - entries.rest().len();
        }
        if count == 0 {
            self.runs_done += 1;
            return None;
        }
        // The rest may hold more behind a gap.
        (run.next, run.entries.start) = (place.next, end);
        if run.entries.is_empty() {
            self.runs_done += 1;
        }
        Some((slot, first, count, start..end))
    }

    /// Goes on to the next batch that holds. False if more is to be read first.
    fn next_batch(&mut self, wal: &Wal) -> bool {
        self.batch = None;
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
                    self.note_runs(wal, Batch { is_carried: true, records: records(&head, 0) });
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
                self.note_runs(wal, Batch { is_carried: false, records: records(&head, from) });
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

/// The bytes of the batch that is being handed out.
fn bytes_of<'a>(pieces: &'a VecDeque<Piece>, carry: &'a [u8], is_carried: bool) -> &'a [u8] {
    match pieces.front() {
        _ if is_carried => carry,
        Some(Piece { read: Some((Some(buf), _)), .. }) => buf,
        _ => &[],
    }
}

/// Where a batch's records lie, if the batch begins at `from`.
fn records(head: &BatchHead, from: usize) -> Range<usize> {
    let start = from + BATCH_HEADER_BYTES;
    start..start + head.payload_bytes as usize
}

const _: () = assert!(PIECE_BYTES >= coracle_base::limits::BATCH_BYTES_MAX as u64);
