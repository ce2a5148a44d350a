//! Entries back from files: for followers that are behind what is kept in memory.
//!
//! One read at a time, each a few disk operations: find the extent, open its file, look the run up (in memory for the
//! newest file of a group, in the file's index otherwise, which a segment brings along, and which is built by one scan of a
//! file of the log; it is kept for a while), read it, check it. Scattered entries: `scattered.rs`. All of the log in one pass: `sweep.rs`. Between two operations a read holds nothing: if its entries are released or overwritten meanwhile, it says so or
//! begins again.
//!
//! Invariants: (1) no byte is handed out whose run header and payload checksums were not checked after this very read;
//! (2) a file with an operation in flight is not reused; (3) what is handed out is what the log held when it was handed out.

mod carry;
mod index;
mod load;
mod plan;
mod scan;
mod scattered;
mod spans;
mod sweep;

use std::collections::VecDeque;
use std::path::PathBuf;

use coracle_base::limits::{BATCH_BYTES_MAX, BLOCK_BYTES};
use coracle_base::run::{Entries, RUN_HEADER_BYTES};
use coracle_base::{GroupId, Index, RunError, RunRef, Term};
use coracle_io::{Buffer, Disk, DiskDone, DiskError, DiskOk, DiskOp, FileId, FileMode};

use self::index::FileIndex;
pub(crate) use self::index::IndexRun;
use self::load::Load;
pub use self::plan::ReadPlan;
use self::scattered::Gather;
pub use self::scattered::LiveOut;
pub use self::sweep::{Sweep, SweepProgress, SweptRun};
use crate::error::ReadError;
use crate::files::{File, log_path};
use crate::format::page::SnapshotPlace;
use crate::format::{Position, SEGMENT};
use crate::groups::Groups;
use crate::token;
use crate::wal::Wal;

/// Files kept open for reading only.
const HANDLES_MAX: usize = 64;
/// Bytes of indexes kept in memory, unless one alone is larger.
const INDEX_BYTES_MAX: usize = 16 << 20;
/// Reads are at least this long: a run is seldom alone.
const WINDOW_BYTES_MIN: usize = 16 * 1024;
/// And at most this long, unless one run is longer.
const WINDOW_BYTES_MAX: usize = 256 * 1024;

/// Entries read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOut {
    /// Index of the first.
    pub first: Index,
    /// How many.
    pub count: u32,
    /// Term of the entry before the first.
    pub prev_term: Term,
    /// The encoded entries; every payload's checksum was checked.
    pub body: Vec<u8>,
}

/// What a read is for.
#[derive(Debug, Clone, Copy)]
enum Want {
    /// Entries, for the caller who gave this id.
    Entries { id: u64, last: Index, max_bytes: usize },
    /// Scattered entries, for the caller who gave this id.
    Live { id: u64 },
    /// Scattered entries, for compaction.
    Moving,
    /// Where scattered entries lie, for the caller who gave this id: no more than so many bytes of them.
    Plan { id: u64, max_bytes: usize },
    /// A snapshot, to be written again because its file holds nothing else.
    Carry { slot: usize, at: Position, bytes: u32 },
}

#[derive(Debug)]
struct Job {
    want: Want,
    group: GroupId,
    out: ReadOut,
    /// The group's cuts when the read began.
    cuts: u64,
    /// The next entry would be too much.
    full: bool,
    /// The entries of one that reads scattered ones.
    gather: Option<Box<Gather>>,
    doing: Doing,
}

/// The operation in flight.
#[derive(Debug)]
enum Doing {
    Nothing,
    Opening {
        file_no: u64,
    },
    /// Bytes from this place on.
    Reading {
        from: Position,
    },
    Loading(Box<Load>),
    /// Several reads of scattered entries.
    Gathering,
}

/// What a job needs next.
enum Next {
    Open {
        file_no: u64,
    },
    Read {
        from: Position,
        bytes: usize,
    },
    Load(Box<Load>),
    /// Reads of scattered entries are planned.
    Gather,
    /// Nothing to wait for, but not done.
    Again,
    /// Done with its entries.
    Finish,
    Fail(ReadError),
}

/// All reads of one log.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    queue: VecDeque<Job>,
    current: Option<Job>,
    finished: VecDeque<(u64, Result<ReadOut, ReadError>)>,
    live: VecDeque<(u64, LiveOut)>,
    moving: VecDeque<LiveOut>,
    plans: VecDeque<(u64, Option<ReadPlan>)>,
    /// The most recently used last.
    indexes: Vec<(u64, FileIndex)>,
    /// Groups whose snapshots are to be carried to a newer file.
    carry: Vec<usize>,
    carry_due: bool,
}

impl Reads {
    /// The file is about to be reused.
    pub(crate) fn forget(&mut self, file_no: u64) {
        self.indexes.retain(|(of, _)| *of != file_no);
    }

    /// A checkpoint was completed: files that hold nothing but snapshots may be freed by carrying those.
    pub(crate) fn carry_is_due(&mut self) {
        self.carry_due = true;
    }

    /// The index of a file, if it is in memory, or can be made from what is: not of the newest file, which goes on.
    fn index(&mut self, file_no: u64, groups: &Groups, newest: u64) -> Option<&FileIndex> {
        match self.indexes.iter().position(|(of, _)| *of == file_no) {
            Some(at) => {
                let found = self.indexes.remove(at);
                self.indexes.push(found);
            }
            None if file_no == newest => return None,
            None => {
                let index = FileIndex::new(groups.runs_in(file_no)?.collect(), 0);
                self.keep_index(file_no, index);
            }
        }
        self.indexes.last().map(|(_, index)| index)
    }

    fn keep_index(&mut self, file_no: u64, index: FileIndex) {
        self.indexes.push((file_no, index));
        let bytes =
            |indexes: &[(u64, FileIndex)]| indexes.iter().map(|(_, index)| index.bytes()).sum::<usize>();
        while self.indexes.len() > 1 && bytes(&self.indexes) > INDEX_BYTES_MAX {
            self.indexes.remove(0);
        }
    }
}

impl Wal {
    /// Begins to read durable entries of `[first, last]` back from files: at least one, and no more than `max_bytes` of
    /// them unless the first alone is larger. [`poll_read`](Self::poll_read) has the result, under `id`.
    pub fn read<D: Disk>(
        &mut self,
        disk: &mut D,
        id: u64,
        group: GroupId,
        first: Index,
        last: Index,
        max_bytes: usize,
    ) {
        self.queue_job(Want::Entries { id, last, max_bytes }, group, first, None);
        self.step_reads(disk);
    }

    /// The result of a read that is finished.
    pub fn poll_read(&mut self) -> Option<(u64, Result<ReadOut, ReadError>)> {
        self.reads.finished.pop_front()
    }

    /// Whether [`poll_read`](Self::poll_read), [`poll_live`](Self::poll_live) or [`poll_plan`](Self::poll_plan) has a result.
    pub fn has_finished_read(&self) -> bool {
        !self.reads.finished.is_empty() || !self.reads.live.is_empty() || !self.reads.plans.is_empty()
    }

    /// Whether [`poll_moving`](Self::poll_moving) has a result.
    pub fn has_moving_read(&self) -> bool {
        !self.reads.moving.is_empty()
    }

    fn queue_job(&mut self, want: Want, group: GroupId, first: Index, gather: Option<Box<Gather>>) {
        let out = ReadOut { first, count: 0, prev_term: Term::ZERO, body: Vec::new() };
        let job = Job { want, group, out, cuts: 0, full: false, gather, doing: Doing::Nothing };
        self.reads.queue.push_back(job);
    }

    /// Goes on with reads until an operation is in flight or nothing is left to do.
    fn step_reads<D: Disk>(&mut self, disk: &mut D) {
        loop {
            let mut job = match self.reads.current.take() {
                Some(job) if !matches!(job.doing, Doing::Nothing) => {
                    self.reads.current = Some(job);
                    return;
                }
                Some(job) => job,
                None => match self.reads.queue.pop_front() {
                    Some(job) => self.begin_job(job),
                    None => return,
                },
            };
            match self.next_step(&mut job) {
                Next::Finish => self.finish_job(job, Ok(())),
                Next::Again => self.reads.current = Some(job),
                Next::Gather => {
                    if let Some(gather) = &mut job.gather {
                        self.start_spans(disk, gather);
                        job.doing = if gather.is_flying() { Doing::Gathering } else { Doing::Nothing };
                    }
                    self.reads.current = Some(job);
                }
                Next::Fail(error) => self.finish_job(job, Err(error)),
                Next::Open { file_no } => {
                    let op = DiskOp::Open { path: log_path(&self.config.dir, file_no), mode: FileMode::Read };
                    disk.start(token::read(0), op);
                    job.doing = Doing::Opening { file_no };
                    self.reads.current = Some(job);
                }
                Next::Read { from, bytes } => {
                    self.start_read(disk, 0, from, bytes);
                    job.doing = Doing::Reading { from };
                    self.reads.current = Some(job);
                }
                Next::Load(load) => self.go_on_loading(disk, job, load),
            }
        }
    }

    fn begin_job(&self, mut job: Job) -> Job {
        if let Some(group) = self.groups.find(job.group) {
            job.cuts = group.cuts;
            job.out.prev_term = group.term_at(job.out.first.prev()).unwrap_or_default();
        }
        job.out.count = 0;
        job.out.body.clear();
        job.full = false;
        job
    }

    fn start_read<D: Disk>(&mut self, disk: &mut D, number: u64, from: Position, bytes: usize) {
        let Some(file) = self.files.get_mut(from.file_no) else { return };
        let Some(handle) = file.handle else { return };
        file.busy += 1;
        // A file that was cut short may end anywhere, a read may not.
        let bytes = bytes.next_multiple_of(BLOCK_BYTES);
        let mut buf = disk.buffer(bytes);
        buf.resize(bytes);
        disk.start(token::read(number), DiskOp::Read { file: handle, offset: from.offset, buf });
    }

    /// What the job needs next.
    fn next_step(&mut self, job: &mut Job) -> Next {
        let (last, max_bytes) = match job.want {
            Want::Carry { slot, at, bytes } => return self.next_for_carry(slot, at, bytes),
            Want::Entries { last, max_bytes, .. } => (last, max_bytes),
            Want::Live { .. } | Want::Moving => {
                return match &mut job.gather {
                    Some(gather) => self.next_for_gather(gather),
                    None => Next::Finish,
                };
            }
            Want::Plan { .. } => {
                return match &mut job.gather {
                    Some(gather) => self.next_for_plan(gather),
                    None => Next::Finish,
                };
            }
        };
        let index = job.out.first.plus(u64::from(job.out.count));
        let Some(group) = self.groups.find(job.group) else {
            return Next::Fail(ReadError::Released { index, first: Index(1), last: Index::ZERO });
        };
        let over = index > last || job.out.body.len() >= max_bytes || job.full;
        if job.out.count > 0 && over {
            return Next::Finish;
        }
        let Some(extent) = group.extent_of(index) else {
            let log = group.log();
            return Next::Fail(ReadError::Released { index, first: log.first, last: log.last });
        };
        let file_no = extent.file_no;
        let Some(file) = self.files.get(file_no) else {
            return Next::Fail(self.missing(file_no, index));
        };
        let run = group.run_of(file_no, index, self.groups.runs()).map(|run| run.offset);
        let is_whole = self.is_whole_on_disk(file_no, file);
        let run = match run {
            Some(offset) => Some(offset),
            None => match self.reads.index(file_no, &self.groups, self.stage_file) {
                Some(found) => found.find(job.group, index, index <= group.base).map(|run| run.offset),
                // An index that is made before every batch of the file is there would miss the last ones for ever.
                None if !is_whole => {
                    return Next::Fail(ReadError::NotDurable { index });
                }
                None if file.handle.is_none() => return Next::Open { file_no },
                None => return Next::Load(Box::new(Load::new(file_no, file))),
            },
        };
        let Some(offset) = run else {
            return Next::Fail(self.corrupt(file_no, index, "its run is damaged"));
        };
        if file_no & SEGMENT == 0 && (Position { file_no, offset: u64::from(offset) }) >= self.durable_at {
            return Next::Fail(ReadError::NotDurable { index });
        }
        if file.handle.is_none() {
            return Next::Open { file_no };
        }
        let wanted = max_bytes.saturating_sub(job.out.body.len()).saturating_add(BLOCK_BYTES);
        let from = Position { file_no, offset: u64::from(offset) / BLOCK_BYTES as u64 * BLOCK_BYTES as u64 };
        let bytes = wanted.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX).next_multiple_of(BLOCK_BYTES);
        Next::Read { from, bytes: bytes.min((file.bytes.saturating_sub(from.offset)) as usize) }
    }

    /// Whether the log has gone on from this file, and all that it wrote there is durable; or it is a segment.
    fn is_whole_on_disk(&self, file_no: u64, file: &File) -> bool {
        if file_no & SEGMENT != 0 {
            return true;
        }
        file_no < self.stage_file && self.durable_at >= (Position { file_no, offset: file.end })
    }

    fn finish_job(&mut self, job: Job, result: Result<(), ReadError>) {
        let id = match job.want {
            Want::Entries { id, .. } => id,
            Want::Carry { .. } => return,
            Want::Live { id } => {
                let out = job.gather.map(|gather| gather.into_out());
                return self.reads.live.extend(out.map(|out| (id, out)));
            }
            Want::Moving => return self.reads.moving.extend(job.gather.map(|gather| gather.into_out())),
            Want::Plan { id, max_bytes } => {
                return job.gather.into_iter().for_each(|gather| self.finish_plan(id, max_bytes, *gather));
            }
        };
        let cut = self.groups.find(job.group).is_some_and(|group| group.cuts != job.cuts);
        if cut && (job.out.count > 0 || matches!(result, Err(ReadError::Corrupt { .. }))) {
            // Part of it may have been overwritten since it was read, or since it was looked for.
            self.reads.queue.push_front(job);
            return;
        }
        let result = match result {
            Err(error) if job.out.count == 0 => Err(error),
            _ => Ok(job.out),
        };
        self.reads.finished.push_back((id, result));
    }

    // ---- completions ---------------------------------------------------------------------------------------------

    pub(crate) fn on_read_done<D: Disk>(&mut self, disk: &mut D, number: u64, done: DiskDone) {
        if let Some(mut job) = self.reads.current.take() {
            match std::mem::replace(&mut job.doing, Doing::Nothing) {
                Doing::Nothing => self.reads.current = Some(job),
                Doing::Opening { file_no } => {
                    let needless = self.on_opened(job, file_no, &done.result);
                    let surplus = self.files.surplus_handle(HANDLES_MAX, file_no);
                    for file in needless.into_iter().chain(surplus) {
                        disk.start(token::IGNORED, DiskOp::Close { file });
                    }
                }
                Doing::Reading { from } => {
                    self.let_go(from.file_no);
                    match (&done.result, &done.buf) {
                        (Ok(DiskOk::Read { bytes }), Some(buf)) => {
                            self.on_bytes(disk, job, from, buf, *bytes);
                        }
                        (Err(error), _) => self.finish_job(job, Err(error.clone().into())),
                        _ => self.finish_job(job, Ok(())),
                    }
                }
                Doing::Loading(load) => self.on_loaded(disk, job, load, &done),
                Doing::Gathering => {
                    self.on_span(disk, &mut job, number, &done);
                    self.reads.current = Some(job);
                }
            }
        }
        if let Some(buf) = done.buf {
            disk.recycle(buf);
        }
        self.step_reads(disk);
    }

    fn let_go(&mut self, file_no: u64) {
        if let Some(file) = self.files.get_mut(file_no) {
            file.busy -= 1;
        }
    }

    /// Returns the handle if it is not needed: the file was reused or removed meanwhile.
    fn on_opened(&mut self, job: Job, file_no: u64, result: &Result<DiskOk, DiskError>) -> Option<FileId> {
        match result {
            Ok(DiskOk::Opened { file: handle, bytes }) => {
                self.reads.current = Some(job);
                let Some(file) = self.files.get_mut(file_no) else { return Some(*handle) };
                file.bytes = *bytes;
                return file.handle.replace(*handle);
            }
            Ok(_) => self.finish_job(job, Ok(())),
            Err(error) => self.fail_file(job, file_no, error),
        }
        None
    }

    /// A file cannot be opened: of scattered entries only those in it are lost.
    fn fail_file(&mut self, mut job: Job, file_no: u64, error: &DiskError) {
        match &mut job.gather {
            None => self.finish_job(job, Err(error.clone().into())),
            Some(gather) => {
                self.fail_keys(gather, file_no, error);
                self.reads.current = Some(job);
            }
        }
    }

    fn on_bytes<D: Disk>(&mut self, disk: &mut D, mut job: Job, from: Position, buf: &Buffer, bytes: usize) {
        let bytes = &buf[..bytes.min(buf.len())];
        if let Want::Carry { slot, at, bytes: length } = job.want {
            let place = SnapshotPlace::Inline { at, bytes: length };
            self.carry_snapshot(slot, place, &bytes[((at.offset - from.offset) as usize).min(bytes.len())..]);
            return;
        }
        match self.take_runs(&mut job, from, bytes) {
            Ok(None) => self.reads.current = Some(job),
            Ok(Some((from, bytes))) => {
                self.start_read(disk, 0, from, bytes);
                job.doing = Doing::Reading { from };
                self.reads.current = Some(job);
            }
            Err(error) => self.finish_job(job, Err(error)),
        }
    }

    /// Takes the entries wanted from all runs that lie whole in these bytes. If not even the first does, says what to
    /// read instead.
    fn take_runs(
        &mut self,
        job: &mut Job,
        from: Position,
        bytes: &[u8],
    ) -> Result<Option<(Position, usize)>, ReadError> {
        let Want::Entries { last, max_bytes, .. } = job.want else { return Ok(None) };
        let before = job.out.count;
        loop {
            let index = job.out.first.plus(u64::from(job.out.count));
            let over = index > last || job.out.body.len() >= max_bytes || job.full;
            if job.out.count > 0 && over {
                return Ok(None);
            }
            let Some(offset) = self.run_in(from.file_no, job.group, index) else { return Ok(None) };
            let at = offset.checked_sub(from.offset).map(|at| at as usize);
            let Some(run_bytes) = at.and_then(|at| bytes.get(at..)) else { return Ok(None) };
            if offset >= self.durable_at.offset && from.file_no == self.durable_at.file_no {
                return Ok(None);
            }
            match RunRef::parse(run_bytes) {
                Ok(run) => self.take_run(job, run, index, Position { offset, ..from })?,
                Err(RunError::Truncated(_)) if job.out.count > before => return Ok(None),
                Err(RunError::Truncated(short)) => {
                    let wanted = (bytes.len() + short.missing).next_multiple_of(BLOCK_BYTES);
                    let is_all = self.files.get(from.file_no).is_none_or(|file| {
                        from.offset + wanted as u64 > file.bytes.next_multiple_of(BLOCK_BYTES as u64)
                    });
                    if is_all || wanted > BATCH_BYTES_MAX + BLOCK_BYTES {
                        return Err(self.corrupt(from.file_no, index, "its run ends beyond the file"));
                    }
                    return Ok(Some((from, wanted)));
                }
                Err(error) => return Err(self.corrupt(from.file_no, index, &error.to_string())),
            }
        }
    }

    /// Where an entry's run lies in the file that has it, if that file's index is in memory.
    pub fn place_of(&mut self, group: GroupId, index: Index) -> Option<u64> {
        let file_no = self.groups.find(group)?.extent_of(index)?.file_no;
        self.run_in(file_no, group, index)
    }

    /// The offset of the run that holds an entry, if its extent is in this file.
    fn run_in(&mut self, file_no: u64, group: GroupId, index: Index) -> Option<u64> {
        let of_group = self.groups.find(group)?;
        if of_group.extent_of(index)?.file_no != file_no {
            return None;
        }
        let run = of_group.run_of(file_no, index, self.groups.runs()).map(|run| run.offset);
        let offset = match run {
            Some(offset) => offset,
            None => {
                self.reads
                    .index(file_no, &self.groups, self.stage_file)?
                    .find(group, index, index <= of_group.base)?
                    .offset
            }
        };
        Some(u64::from(offset))
    }

    /// Takes the entries of a run from `index` on, as far as the log holds them there.
    fn take_run(
        &mut self,
        job: &mut Job,
        run: RunRef<'_>,
        index: Index,
        at: Position,
    ) -> Result<(), ReadError> {
        let Want::Entries { last, max_bytes, .. } = job.want else { return Ok(()) };
        let file_no = at.file_no;
        if run.header.group != job.group || run.header.first() > index || run.header.last() < index {
            return Err(self.corrupt(file_no, index, "another run lies there"));
        }
        let mut entries = Entries::new(run.header.first(), run.body);
        loop {
            let encoded = entries.rest();
            let Some(entry) = entries.next() else { return Ok(()) };
            if entry.index < index {
                continue;
            }
            let encoded = &encoded[..encoded.len() - entries.rest().len()];
            job.full = job.out.count > 0 && job.out.body.len() + encoded.len() > max_bytes;
            if entry.index > last || job.full {
                return Ok(());
            }
            let Some(group) = self.groups.find(job.group) else { return Ok(()) };
            // Of live entries below the log the term is not kept: their place says which they are.
            let is_held = match group.term_at(entry.index).filter(|_| entry.index > group.base) {
                Some(term) => term == entry.header.term,
                None => self.run_in(file_no, job.group, entry.index) == Some(at.offset),
            };
            if !is_held {
                // Beyond what the log holds of this run.
                return if entry.index > index {
                    Ok(())
                } else {
                    Err(self.corrupt(file_no, index, "it is of another term"))
                };
            }
            if coracle_base::checksum::crc32c(entry.payload) != entry.header.payload_crc {
                return Err(self.corrupt(file_no, entry.index, "its payload checksum does not hold"));
            }
            job.out.body.extend_from_slice(encoded);
            job.out.count += 1;
        }
    }

    /// A file that is not there: still to be made, or gone.
    fn missing(&self, file_no: u64, index: Index) -> ReadError {
        if file_no & SEGMENT == 0 && file_no > self.ready_upto {
            return ReadError::NotDurable { index };
        }
        self.corrupt(file_no, index, "the file is missing")
    }

    fn corrupt(&self, file_no: u64, index: Index, why: &str) -> ReadError {
        let file: PathBuf = log_path(&self.config.dir, file_no);
        ReadError::Corrupt { file, index, why: why.to_owned() }
    }
}

const _: () = assert!(WINDOW_BYTES_MIN > RUN_HEADER_BYTES + BLOCK_BYTES);
