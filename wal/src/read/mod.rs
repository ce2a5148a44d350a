//! Entries back from files: for followers that are behind what is kept in memory.
//!
//! A few reads at a time, each of another group, and each a few disk operations: find the extent, open its file, look the
//! run up (in memory for the newest files, else in the file's index: a segment brings it along; of a file of the log it lies
//! in later ones, of which a directory and a block are read (`hints.rs`), or is built by one scan; it is kept for a while),
//! read it, check it. A range: `range.rs`. Scattered entries:
//! `scattered.rs`. Where they lie, for another thread: `plan.rs`. All of the log in one pass: `sweep.rs`. Between two
//! operations a read holds nothing: if its entries are released or overwritten meanwhile, it says so or begins again.
//!
//! Invariants: (1) no byte is handed out whose run header and payload checksums were not checked after this very read;
//! (2) a file with an operation in flight is not reused; (3) what is handed out is what the log held when it was handed out.

mod carry;
mod hints;
mod index;
mod load;
mod lookup;
mod plan;
mod range;
mod scan;
mod scattered;
mod spans;
mod sweep;

use std::collections::VecDeque;
use std::path::PathBuf;

use coracle_base::limits::BLOCK_BYTES;
use coracle_base::{GroupId, Index, Term};
use coracle_io::{Disk, DiskDone, DiskError, DiskOk, DiskOp, FileId, FileMode};

use self::index::FileIndex;
pub(crate) use self::index::{IndexRun, RunsInFile, without_overlaps};
use self::load::{Load, Makes};
pub use self::plan::ReadPlan;
use self::scattered::Gather;
pub use self::scattered::LiveOut;
pub use self::sweep::{Sweep, SweepProgress, SweptRun};
use crate::error::ReadError;
use crate::files::{File, log_path};
use crate::format::file_index::Directory;
use crate::format::{Position, SEGMENT};
use crate::groups::Groups;
use crate::token;
use crate::wal::Wal;

/// Reads that are done at once. Of one group only one: a group that is far behind, or much asked for, holds up no other.
const SEATS: usize = 4;
/// Operations in flight for one of them.
const FLIGHTS_MAX: usize = 8;
/// Files kept open for reading only.
const HANDLES_MAX: usize = 64;
/// Directories of indexes kept in memory: some kilobytes each.
const DIRECTORIES_MAX: usize = 64;
/// Bytes of indexes kept in memory, unless one alone is larger.
const INDEX_BYTES_MAX: usize = 16 << 20;

/// How much of a file's index something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    /// The block of this number of the index in the log.
    Block(u32),
}

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
    /// The file whose index it needs until its read is done.
    uses: Option<u64>,
    /// An index in the log said where to read.
    by_hint: bool,
    seat: usize,
    doing: Doing,
}

impl Job {
    fn new(want: Want, group: GroupId, first: Index, gather: Option<Box<Gather>>) -> Self {
        let out = ReadOut { first, count: 0, prev_term: Term::ZERO, body: Vec::new() };
        Self {
            want,
            group,
            out,
            cuts: 0,
            full: false,
            gather,
            uses: None,
            by_hint: false,
            seat: 0,
            doing: Doing::Nothing,
        }
    }
}

/// The operation in flight.
#[derive(Debug)]
enum Doing {
    Nothing,
    Opening {
        file_no: u64,
        /// It is only for the index of this file, which lies there.
        for_index_of: Option<u64>,
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
    /// The file that has the index of another one.
    OpenForIndex {
        file_no: u64,
        of: u64,
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
    /// Those that are being done; of a group one at a time.
    seats: [Option<Job>; SEATS],
    finished: VecDeque<(u64, Result<ReadOut, ReadError>)>,
    live: VecDeque<(u64, LiveOut)>,
    moving: VecDeque<LiveOut>,
    plans: VecDeque<(u64, Option<ReadPlan>)>,
    /// The most recently used last.
    indexes: Vec<((u64, Part), FileIndex)>,
    /// Of indexes in the log, the newest last.
    directories: VecDeque<Directory>,
    /// Groups whose snapshots are to be carried to a newer file.
    carry: Vec<usize>,
    carry_due: bool,
}

impl Reads {
    /// The file is about to be reused.
    pub(crate) fn forget(&mut self, file_no: u64) {
        self.indexes.retain(|((of, _), _)| *of != file_no);
        self.directories.retain(|directory| directory.of.file_no != file_no);
    }

    /// A checkpoint was completed: files that hold nothing but snapshots may be freed by carrying those.
    pub(crate) fn carry_is_due(&mut self) {
        self.carry_due = true;
    }

    /// The index of a file, if it is in memory, or can be made from what is: not of the newest file, which goes on.
    fn index(&mut self, file_no: u64, groups: &Groups, newest: u64) -> Option<&FileIndex> {
        if self.use_again((file_no, Part::Whole)) {
            return self.indexes.last().map(|(_, index)| index);
        }
        if file_no == newest {
            return None;
        }
        let index = FileIndex::new(groups.runs_in(file_no)?, 0);
        self.keep_index((file_no, Part::Whole), index);
        self.indexes.last().map(|(_, index)| index)
    }

    /// A part of a file's index, if it is in memory.
    fn part(&mut self, file_no: u64, part: Part) -> Option<&FileIndex> {
        let is_there = self.use_again((file_no, part));
        self.indexes.last().filter(|_| is_there).map(|(_, index)| index)
    }

    /// Puts an index that is in memory last. False if it is not there.
    fn use_again(&mut self, which: (u64, Part)) -> bool {
        let Some(at) = self.indexes.iter().position(|(of, _)| *of == which) else { return false };
        self.indexes[at..].rotate_left(1);
        true
    }

    /// What a scan has found in a file in which nothing was damaged, if that is in memory.
    pub(crate) fn scanned(&self, file_no: u64) -> Option<&FileIndex> {
        let of_file = self.indexes.iter().find(|(of, _)| *of == (file_no, Part::Whole));
        of_file.map(|(_, index)| index).filter(|index| !index.is_hint() && index.is_sound())
    }

    fn keep_index(&mut self, which: (u64, Part), index: FileIndex) {
        self.indexes.push((which, index));
        let mut bytes: usize = self.indexes.iter().map(|(_, index)| index.bytes()).sum();
        while bytes > INDEX_BYTES_MAX {
            // One that somebody needs would be made again and again, in turn with another one's.
            let is_used = |of: u64| self.seats.iter().flatten().any(|job| job.uses == Some(of));
            let needless = self.indexes.iter().position(|(of, _)| *of != which && !is_used(of.0));
            let Some(at) = needless else { return };
            bytes -= self.indexes.remove(at).1.bytes();
        }
    }

    fn keep_directory(&mut self, directory: Directory) {
        self.directories.push_back(directory);
        let excess = self.directories.len().saturating_sub(DIRECTORIES_MAX);
        self.directories.drain(..excess);
    }

    /// What indexes in the log say of a file is not used any more.
    pub(crate) fn forget_hints(&mut self, file_no: u64) {
        self.indexes.retain(|((of, _), index)| *of != file_no || !index.is_hint());
        self.directories.retain(|directory| directory.of.file_no != file_no);
    }

    /// The job that is next, and its seat: the first of a group that has none.
    fn next_job(&mut self) -> Option<(usize, Job)> {
        let seat = self.seats.iter().position(Option::is_none)?;
        let is_seated = |group| self.seats.iter().flatten().any(|job| job.group == group);
        let at = self.queue.iter().position(|job| !is_seated(job.group))?;
        let job = self.queue.remove(at)?;
        Some((seat, Job { seat, ..job }))
    }

    fn put_back(&mut self, job: Job) {
        let seat = job.seat;
        self.seats[seat] = Some(job);
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.seats.iter().all(Option::is_none)
    }

    /// Somebody is waiting for this file to be opened.
    fn is_opening(&self, of: u64) -> bool {
        let mut seated = self.seats.iter().flatten();
        seated.any(|job| matches!(job.doing, Doing::Opening { file_no, .. } if file_no == of))
    }

    /// Somebody is making the same.
    fn is_loading(&self, makes: Makes) -> bool {
        let mut seated = self.seats.iter().flatten();
        seated.any(|job| matches!(&job.doing, Doing::Loading(load) if load.makes() == makes))
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
        self.reads.queue.push_back(Job::new(want, group, first, gather));
    }

    /// Goes on with reads until operations are in flight for all that are seated, or nothing is left to do.
    fn step_reads<D: Disk>(&mut self, disk: &mut D) {
        for seat in 0..SEATS {
            self.step_seat(disk, seat);
        }
        while let Some((seat, job)) = self.reads.next_job() {
            let job = self.begin_job(job);
            self.reads.put_back(job);
            self.step_seat(disk, seat);
        }
    }

    /// Goes on with a job until an operation is in flight for it, it waits for what another one has begun, or it is done.
    fn step_seat<D: Disk>(&mut self, disk: &mut D, seat: usize) {
        loop {
            let is_ready = |job: &mut Job| matches!(job.doing, Doing::Nothing);
            let Some(mut job) = self.reads.seats[seat].take_if(is_ready) else { return };
            match self.next_step(&mut job) {
                Next::Finish => self.finish_job(job, Ok(())),
                Next::Again => self.reads.put_back(job),
                Next::Gather => {
                    if let Some(gather) = &mut job.gather {
                        self.start_spans(disk, seat, gather);
                        job.doing = if gather.is_flying() { Doing::Gathering } else { Doing::Nothing };
                    }
                    self.reads.put_back(job);
                }
                Next::Fail(error) => self.finish_job(job, Err(error)),
                Next::Open { file_no } if self.reads.is_opening(file_no) => {
                    return self.reads.put_back(job);
                }
                Next::OpenForIndex { file_no, .. } if self.reads.is_opening(file_no) => {
                    return self.reads.put_back(job);
                }
                Next::Open { file_no } => self.open_file(disk, job, file_no, None),
                Next::OpenForIndex { file_no, of } => self.open_file(disk, job, file_no, Some(of)),
                Next::Read { from, bytes } => {
                    self.start_read(disk, seat, 0, from, bytes);
                    job.doing = Doing::Reading { from };
                    self.reads.put_back(job);
                }
                Next::Load(load) if self.reads.is_loading(load.makes()) => {
                    return self.reads.put_back(job);
                }
                Next::Load(load) => self.go_on_loading(disk, job, load),
            }
        }
    }

    fn open_file<D: Disk>(&mut self, disk: &mut D, mut job: Job, file_no: u64, for_index_of: Option<u64>) {
        let op = DiskOp::Open { path: log_path(&self.config.dir, file_no), mode: FileMode::Read };
        disk.start(token::read((job.seat * FLIGHTS_MAX) as u64), op);
        job.doing = Doing::Opening { file_no, for_index_of };
        self.reads.put_back(job);
    }

    fn begin_job(&self, mut job: Job) -> Job {
        if let Some(group) = self.groups.find(job.group) {
            job.cuts = group.cold.cuts;
            job.out.prev_term = group.term_at(job.out.first.prev()).unwrap_or_default();
        }
        job.out.count = 0;
        job.out.body.clear();
        (job.full, job.uses) = (false, None);
        job
    }

    /// Starts one of the reads of the job in this seat.
    fn start_read<D: Disk>(
        &mut self,
        disk: &mut D,
        seat: usize,
        number: usize,
        from: Position,
        bytes: usize,
    ) {
        let Some(file) = self.files.get_mut(from.file_no) else { return };
        let Some(handle) = file.handle else { return };
        file.busy += 1;
        // A file that was cut short may end anywhere, a read may not.
        let bytes = bytes.next_multiple_of(BLOCK_BYTES);
        let mut buf = disk.buffer(bytes);
        buf.resize(bytes);
        let token = token::read((seat * FLIGHTS_MAX + number) as u64);
        disk.start(token, DiskOp::Read { file: handle, offset: from.offset, buf });
    }

    /// What the job needs next.
    fn next_step(&mut self, job: &mut Job) -> Next {
        match (job.want, &mut job.gather) {
            (Want::Carry { slot, at, bytes }, _) => self.next_for_carry(slot, at, bytes),
            (Want::Entries { last, max_bytes, .. }, _) => self.next_for_range(job, last, max_bytes),
            (Want::Live { .. } | Want::Moving, Some(gather)) => self.next_for_gather(gather),
            (Want::Plan { .. }, Some(gather)) => self.next_for_plan(gather),
            (_, None) => Next::Finish,
        }
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
        let cut = self.groups.find(job.group).is_some_and(|group| group.cold.cuts != job.cuts);
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
        let (seat, number) = (number as usize / FLIGHTS_MAX, number as usize % FLIGHTS_MAX);
        if let Some(mut job) = self.reads.seats.get_mut(seat).and_then(Option::take) {
            match std::mem::replace(&mut job.doing, Doing::Nothing) {
                Doing::Nothing => self.reads.put_back(job),
                Doing::Opening { for_index_of: Some(of), .. } if done.result.is_err() => {
                    self.distrust_index(of);
                    self.reads.put_back(job);
                }
                Doing::Opening { file_no, .. } => {
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
                    self.reads.put_back(job);
                }
            }
        }
        if let Some(buf) = done.buf {
            disk.recycle(buf);
        }
        // This one first: what was loaded for it is there now.
        self.step_seat(disk, seat.min(SEATS - 1));
        self.step_reads(disk);
    }

    fn let_go(&mut self, file_no: u64) {
        if let Some(file) = self.files.get_mut(file_no) {
            file.busy -= 1;
        }
    }

    /// Returns the handle if it is not needed: the file was reused or removed meanwhile, or is open by now.
    fn on_opened(&mut self, job: Job, file_no: u64, result: &Result<DiskOk, DiskError>) -> Option<FileId> {
        let file = self.files.get_mut(file_no);
        match (result, file) {
            (Ok(DiskOk::Opened { file: handle, bytes }), Some(file)) => {
                self.reads.put_back(job);
                file.bytes = *bytes;
                let is_open = file.handle.is_some();
                return Some(*file.handle.get_or_insert(*handle)).filter(|_| is_open).map(|_| *handle);
            }
            (Ok(DiskOk::Opened { file: handle, .. }), None) => {
                self.reads.put_back(job);
                return Some(*handle);
            }
            (Err(error), Some(_)) => self.fail_file(job, file_no, error),
            // The file has left while it was opened: its entries are elsewhere, or released.
            (Err(_), None) => self.reads.put_back(job),
            (Ok(_), _) => self.finish_job(job, Ok(())),
        }
        None
    }

    /// A file cannot be opened: of scattered entries only those in it are lost.
    fn fail_file(&mut self, mut job: Job, file_no: u64, error: &DiskError) {
        match &mut job.gather {
            None => self.finish_job(job, Err(error.clone().into())),
            Some(gather) => {
                self.fail_keys(gather, file_no, error);
                self.reads.put_back(job);
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn job(group: u64) -> Job {
        Job::new(Want::Moving, GroupId(group), Index(1), None)
    }

    /// The order in which jobs begin, if the oldest one always ends next.
    fn order(queued: &[u64]) -> Vec<u64> {
        let mut reads = Reads { queue: queued.iter().map(|group| job(*group)).collect(), ..Reads::default() };
        let (mut begun, mut seated) = (Vec::new(), VecDeque::new());
        while begun.len() < queued.len() {
            while let Some((seat, job)) = reads.next_job() {
                begun.push(job.group.0);
                seated.push_back(seat);
                reads.seats[seat] = Some(job);
            }
            let done: usize = seated.pop_front().unwrap();
            reads.seats[done] = None;
        }
        begun
    }

    #[test]
    fn a_group_that_reads_much_does_not_hold_up_the_others() {
        assert_eq!(order(&[1, 1, 1, 1, 2, 3]), [1, 2, 3, 1, 1, 1]);
        assert_eq!(order(&[1, 2, 3, 4, 5, 1, 2]), [1, 2, 3, 4, 5, 1, 2]);
        assert_eq!(order(&[7; 9]), [7; 9]);
    }

    #[test]
    fn an_index_that_is_in_use_stays_and_others_go_when_there_is_no_room() {
        let large = || {
            let run = |first| IndexRun { group: GroupId(1), first, count: 1, offset: 0 };
            let of_log = (0..INDEX_BYTES_MAX as u64 / 2 / size_of::<IndexRun>() as u64).map(run).collect();
            FileIndex::new(RunsInFile { of_log, ..RunsInFile::default() }, 0)
        };
        let mut reads = Reads::default();
        reads.seats[2] = Some(Job { uses: Some(10), ..job(1) });
        (10..14).for_each(|file_no| reads.keep_index((file_no, Part::Whole), large()));
        assert_eq!(reads.indexes.iter().map(|((of, _), _)| *of).collect::<Vec<_>>(), [10, 13]);
        reads.seats[2] = None;
        reads.keep_index((14, Part::Whole), large());
        assert_eq!(reads.indexes.iter().map(|((of, _), _)| *of).collect::<Vec<_>>(), [13, 14]);
    }
}
