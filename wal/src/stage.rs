//! Records into batches. A batch knows from the start where it will lie, so a record's place is known when it is staged,
//! even if its file is not ready yet.
//!
//! Invariants: (1) batches follow one another without a gap, in `seq` and in place; a batch that does not fit its file
//! begins the next; (2) a record lies in one batch; (3) at most one batch is open; what is closed is not changed;
//! (4) in the steady state no memory is allocated: buffers come back through [`Stage::reuse`].

use std::collections::VecDeque;

use coracle_base::GroupId;
use coracle_base::codec::Sink;
use coracle_base::limits::{BATCH_BYTES_MAX, BLOCK_BYTES};
use coracle_io::{Buffer, Disk};

use crate::config::Config;
use crate::format::batch::BATCH_HEADER_BYTES;
use crate::format::head::HEAD_AREA_BYTES;
use crate::format::outline::Outline;
use crate::format::record::{self, RECORD_HEADER_BYTES, RUN_HEADS_BYTES, RecordKind};
use crate::format::roster::Roster;
use crate::format::{Position, Uuid};

/// Buffers kept for the next batches. Beyond it they go back to the disk.
const BUFFERS_MAX: usize = 16;
/// Buffers taken from the disk at the start: four in flight, one open, one on its way.
const BUFFERS_AT_START: usize = 6;

/// Of a run, so much memory is asked for that the next one will take; what a longer one takes the CPU foresees.
const FETCH_BYTES_MAX: usize = 1024;

/// A batch that is being gathered, or waits to be written.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) seq: u64,
    pub(crate) at: Position,
    /// Room for the header, then records; once closed, padded to a block.
    pub(crate) buf: Buffer,
    /// `buf` takes no more than this: the file ends there.
    limit: usize,
    pub(crate) records: u32,
    pub(crate) payload_bytes: u32,
    /// Known once it is closed.
    pub(crate) payload_crc: u32,
    /// So much of `buf` is in the stage's outline, or need not be.
    outlined: usize,
    /// Nothing but proof that earlier batches are durable.
    pub(crate) mark: bool,
    /// Closed because the next record did not fit.
    pub(crate) full: bool,
    pub(crate) repeated_upto: u64,
}

impl Batch {
    /// Where the batch ends, once it is closed.
    pub(crate) fn end(&self) -> Position {
        Position { file_no: self.at.file_no, offset: self.at.offset + self.buf.len() as u64 }
    }

    /// Where the body of the next record will lie.
    pub(crate) fn body_place(&self) -> Position {
        let end = self.at.offset + self.buf.len() as u64;
        Position { file_no: self.at.file_no, offset: end + RECORD_HEADER_BYTES as u64 }
    }
}

/// The batches that were not submitted yet.
#[derive(Debug)]
pub(crate) struct Stage {
    open: Option<Batch>,
    /// Of the open batch, as far as it is staged.
    outline: Outline,
    /// Of the open batch, for the next one.
    roster: Roster,
    /// There was a batch before the next one, in this start.
    has_roster: bool,
    closed: VecDeque<Batch>,
    closed_bytes: usize,
    next_seq: u64,
    next_at: Position,
    /// The next batch begins a file.
    file_ends: bool,
    file_bytes: u64,
    /// Identities of files come from it.
    seed: u64,
    buffer_bytes: usize,
    free: Vec<Buffer>,
    /// Counters, for whoever asks where the bytes go.
    pub(crate) padding_bytes: u64,
    pub(crate) roster_bytes: u64,
}

impl Stage {
    pub(crate) fn new<D: Disk>(disk: &mut D, config: &Config, seq: u64, at: Position) -> Self {
        let Config { file_bytes, seed, .. } = *config;
        let buffer_bytes = config.batch_bytes.min(file_bytes as usize);
        let free = (0..BUFFERS_AT_START).map(|_| disk.buffer(buffer_bytes)).collect();
        Self {
            open: None,
            outline: Outline::default(),
            roster: Roster::default(),
            has_roster: false,
            closed: VecDeque::new(),
            closed_bytes: 0,
            next_seq: seq,
            next_at: at,
            file_ends: false,
            file_bytes,
            seed,
            buffer_bytes,
            free,
            padding_bytes: 0,
            roster_bytes: 0,
        }
    }

    /// The newest batch begun: the open one, or the last before it.
    pub(crate) fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    /// The place of the next batch, or of the open one.
    pub(crate) fn at(&self) -> Position {
        self.open.as_ref().map_or(self.next_at, |batch| batch.at)
    }

    /// Where the next batch of this file would begin.
    pub(crate) fn end(&self) -> u64 {
        let open = self.open.as_ref().map_or(0, |batch| batch.buf.len().next_multiple_of(BLOCK_BYTES));
        self.at().offset + open as u64
    }

    /// Bytes of batches that were not submitted.
    pub(crate) fn bytes(&self) -> usize {
        self.closed_bytes + self.open.as_ref().map_or(0, |batch| batch.buf.len())
    }

    /// Whether the open batch has room for so many bytes.
    pub(crate) fn fits(&self, bytes: usize) -> bool {
        self.room() >= bytes
    }

    /// Bytes that fit into the open batch.
    pub(crate) fn room(&self) -> usize {
        let Some(batch) = &self.open else { return 0 };
        batch.limit - batch.buf.len()
    }

    /// Closes the open batch; the next one begins a new file.
    pub(crate) fn end_file(&mut self) {
        self.close(true);
        self.file_ends = true;
    }

    /// Closes the open batch and opens the next one, with room for `bytes` of records. Returns where the file before ends
    /// if the new batch begins a new file.
    ///
    /// # Panics
    /// If no batch could hold them: the record is over the limits, or the files are too small for it.
    pub(crate) fn open_next(&mut self, bytes: usize) -> Option<Position> {
        self.close(true);
        let largest = (self.file_bytes - HEAD_AREA_BYTES).min(BATCH_BYTES_MAX as u64);
        let need = BATCH_HEADER_BYTES + bytes;
        assert!(need as u64 <= largest, "a record of {bytes} bytes does not fit a batch of {largest}");
        let roster_bytes = RECORD_HEADER_BYTES + self.roster.body().len();
        // Where it does not fit, nobody knows whom the batch before was about.
        let has_roster = self.has_roster && (need + roster_bytes) as u64 <= largest;
        let need = if has_roster { need + roster_bytes } else { need };
        let end = self.next_at;
        let rolls = std::mem::take(&mut self.file_ends) || end.offset + need as u64 > self.file_bytes;
        if rolls {
            self.next_at = Position { file_no: self.next_at.file_no + 1, offset: HEAD_AREA_BYTES };
        }
        let mut buf = match self.free.pop() {
            Some(buf) if buf.capacity() >= need => buf,
            unfit => {
                self.free.extend(unfit);
                Buffer::with_capacity(need.max(self.buffer_bytes))
            }
        };
        buf.resize(BATCH_HEADER_BYTES);
        let (seq, at) = (self.next_seq, self.next_at);
        self.outline.begin(Uuid::of(self.seed, at.file_no).seed());
        self.next_seq += 1;
        self.open = Some(Batch {
            seq,
            at,
            limit: buf.capacity().min((self.file_bytes - at.offset) as usize),
            buf,
            records: 0,
            payload_bytes: 0,
            payload_crc: 0,
            outlined: BATCH_HEADER_BYTES,
            mark: false,
            full: false,
            repeated_upto: 0,
        });
        if has_roster {
            self.put_roster();
        }
        self.roster.clear();
        self.has_roster = true;
        rolls.then_some(end)
    }

    /// The open batch begins with what the one before was about.
    fn put_roster(&mut self) {
        if let Some(batch) = &mut self.open {
            record::put_header(RecordKind::Roster, false, self.roster.body().len(), &mut batch.buf);
            batch.buf.put(self.roster.body());
            batch.records += 1;
            self.roster_bytes += (RECORD_HEADER_BYTES + self.roster.body().len()) as u64;
        }
    }

    /// The open batch has a record of this group.
    pub(crate) fn note_group(&mut self, group: GroupId) {
        self.roster.add(group);
    }

    /// The open batch, which must be there: a caller has just made room in it.
    pub(crate) fn batch(&mut self) -> &mut Batch {
        self.open.as_mut().expect("open_next was called before")
    }

    /// What was staged since the last run, being whole, is in the checksum.
    fn outline(&mut self) {
        let batch = self.open.as_mut().expect("open_next was called before");
        if batch.outlined < batch.buf.len() {
            self.outline.add(&batch.buf[batch.outlined..]);
            batch.outlined = batch.buf.len();
        }
    }

    /// Stages a run, for which there is room: its heads, of record and run, are in the checksum, and vouch for its body.
    /// Returns the place of the record's body, and the batch. Inline so that the heads stay in registers until they are put.
    #[inline(always)]
    pub(crate) fn put_run(&mut self, heads: &[u8; RUN_HEADS_BYTES], body: &[&[u8]]) -> (Position, u64) {
        self.outline();
        self.outline.add(heads);
        let batch = self.open.as_mut().expect("open_next was called before");
        let at = batch.body_place();
        batch.buf.put(heads);
        for piece in body {
            batch.buf.put(piece);
        }
        let bytes = batch.buf.len() - batch.outlined;
        batch.buf.fetch_ahead(bytes.min(FETCH_BYTES_MAX));
        batch.outlined = batch.buf.len();
        batch.records += 1;
        batch.mark = false;
        (at, batch.seq)
    }

    /// Closes the open batch, if there is one: pads it and ends its checksum.
    fn close(&mut self, full: bool) {
        if self.open.is_some() {
            self.outline();
        }
        let Some(mut batch) = self.open.take() else { return };
        batch.full = full;
        batch.payload_bytes = (batch.buf.len() - BATCH_HEADER_BYTES) as u32;
        batch.payload_crc = self.outline.finish();
        let end = batch.buf.len().next_multiple_of(BLOCK_BYTES);
        self.padding_bytes += (end - batch.buf.len()) as u64;
        batch.buf.resize(end);
        self.next_at = batch.end();
        self.closed_bytes += batch.buf.len();
        self.closed.push_back(batch);
    }

    /// The first batch that waits to be written; the open one if there is no other.
    pub(crate) fn first(&self) -> Option<&Batch> {
        self.closed.front().or(self.open.as_ref())
    }

    /// Takes the first batch that waits to be written, closed.
    pub(crate) fn take_first(&mut self) -> Option<Batch> {
        if self.closed.is_empty() {
            self.close(false);
        }
        let batch = self.closed.pop_front()?;
        self.closed_bytes -= batch.buf.len();
        Some(batch)
    }

    /// A buffer has come back.
    pub(crate) fn reuse<D: Disk>(&mut self, disk: &mut D, mut buf: Buffer) {
        if self.free.len() < BUFFERS_MAX && buf.capacity() == self.buffer_bytes {
            buf.clear();
            self.free.push(buf);
        } else {
            disk.recycle(buf);
        }
    }

    /// Gives all buffers back to the disk.
    pub(crate) fn give_back<D: Disk>(&mut self, disk: &mut D) {
        for buf in self.free.drain(..) {
            disk.recycle(buf);
        }
    }
}
