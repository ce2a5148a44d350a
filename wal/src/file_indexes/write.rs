//! How an index is written: some of it with every submission, so that no append ever waits for it.
//!
//! ```text
//!   groups   which groups still have entries in the file, sorted: a lane for each, and one for its placed entries
//!   count    how many of the file's runs belong to each lane          from the list only: a scan has them sorted
//!   place    the numbers of the runs, lane by lane
//!   emit     lane by lane: runs without overlaps, as far as their entries are held, into blocks; then the directory
//!   wait     until the directory is durable
//! ```
//!
//! Invariant: what a group loses in the file meanwhile may be in the index all the same, what it holds there is: nothing
//! comes to a file that the log has gone on from.

use std::ops::Range;

use coracle_base::GroupId;
use coracle_base::codec::Sink;

use super::{Candidate, Source, has_list};
use crate::format::Position;
use crate::format::Uuid;
use crate::format::file_index::{BlockWriter, Directory, IndexPlace, IndexedFile, body_crc};
use crate::format::page::{Extent, Piece};
use crate::format::record::{RECORD_HEADER_BYTES, RecordKind};
use crate::groups::Group;
use crate::read::{IndexRun, without_overlaps};
use crate::wal::Wal;

/// Of an index, in one submission, about.
const STEP_BYTES: usize = 16 * 1024;
/// A block is closed beyond this: whoever looks for one entry reads one block.
const BLOCK_BYTES: usize = 8 * 1024;
/// Groups looked at in one submission.
const STEP_GROUPS: usize = 128;
/// Runs looked at in one submission.
const STEP_RUNS: usize = 4 * 1024;
/// While more than this waits to be written, nothing is added.
const BUSY_BYTES: usize = 256 * 1024;
/// No lane.
const NONE: u32 = u32::MAX;

/// A group's entries of one kind in the file.
#[derive(Debug)]
struct Lane {
    is_placed: bool,
    group: GroupId,
    slot: u32,
    /// All of them are in there.
    within: Range<u64>,
    /// Where the numbers of its runs begin among those of all lanes; while they are placed: where the next one goes.
    next: u32,
    runs: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Groups {
        next_slot: usize,
    },
    Count {
        next_run: usize,
    },
    Place {
        next_run: usize,
    },
    Emit {
        next_lane: usize,
    },
    /// The directory is staged, in this batch.
    Wait {
        seq: u64,
    },
}

/// The index that is being written.
#[derive(Debug)]
pub(crate) struct Job {
    of: IndexedFile,
    source: Source,
    in_quiet: bool,
    phase: Phase,
    lanes: Vec<Lane>,
    /// By slot: the numbers of the group's lanes, that of its placed entries last.
    lanes_of: Vec<[u32; 2]>,
    /// Numbers of runs, lane by lane.
    numbers: Vec<u32>,
    /// Of the lane that comes next: its runs, as far as their entries are held, last one first; none before it is its turn.
    emitting: Vec<IndexRun>,
    block: BlockWriter,
    directory: Directory,
    place: Option<IndexPlace>,
}

impl Job {
    fn new(of: IndexedFile, candidate: Candidate) -> Self {
        let Candidate { source, in_quiet, .. } = candidate;
        Self {
            of,
            source,
            in_quiet,
            phase: Phase::Groups { next_slot: 0 },
            lanes: Vec::new(),
            lanes_of: Vec::new(),
            numbers: Vec::new(),
            emitting: Vec::new(),
            block: BlockWriter::new(of, 0),
            directory: Directory { of, blocks: Vec::new() },
            place: None,
        }
    }

    /// The file that the index is of.
    pub(super) fn of(&self) -> u64 {
        self.of.file_no
    }

    /// Whether the index is of this file, or lies in it.
    pub(super) fn touches(&self, file_no: u64) -> bool {
        let lies_in = self.directory.blocks.iter().any(|(_, piece)| piece.at.file_no == file_no);
        lies_in || self.of() == file_no
    }

    /// The file whose list of runs is still needed.
    pub(super) fn list_needed(&self) -> Option<u64> {
        // To the very end: readers have nothing else before.
        (self.source == Source::List).then_some(self.of.file_no)
    }

    /// All of it is staged.
    fn waits(&self) -> bool {
        matches!(self.phase, Phase::Wait { .. })
    }

    /// Where the index lies, once all of it is staged.
    pub(super) fn staged(&self) -> Option<IndexPlace> {
        self.place
    }

    /// Makes the lanes of a group.
    fn add_group(&mut self, slot: usize, group: &Group) {
        self.lanes_of.push([NONE; 2]);
        for is_placed in [false, true] {
            let mut held = group.held_in(self.of.file_no).filter(|extent| extent.is_placed == is_placed);
            let Some(first) = held.next() else { continue };
            let last = held.last().unwrap_or(first);
            let within = first.first.0..last.last().next().0;
            let slot = slot as u32;
            self.lanes.push(Lane { is_placed, group: group.cold.id, slot, within, next: 0, runs: 0 });
        }
    }

    /// All groups were looked at.
    fn sort_lanes(&mut self) {
        self.lanes.sort_unstable_by_key(|lane| (lane.is_placed, lane.group));
        for (number, lane) in (0..).zip(&self.lanes) {
            self.lanes_of[lane.slot as usize][usize::from(lane.is_placed)] = number;
        }
    }

    /// The lane that a run belongs to. A group that came later has none.
    fn lane_of(&mut self, slot: usize, is_placed: bool, run: Range<u64>) -> Option<&mut Lane> {
        let number = self.lanes_of.get(slot)?[usize::from(is_placed)];
        let lane = self.lanes.get_mut(number as usize)?;
        (run.start < lane.within.end && lane.within.start < run.end).then_some(lane)
    }

    /// All runs were counted.
    fn make_room(&mut self) {
        let mut next = 0;
        for lane in &mut self.lanes {
            lane.next = next;
            next += lane.runs;
        }
        self.numbers = vec![0; next as usize];
    }
}

impl Wal {
    /// Goes on with the index that is being written, or begins the next.
    pub(crate) fn step_indexes(&mut self) {
        self.give_way();
        if let Some(at) = self.next_candidate().filter(|_| self.indexes.job.is_none()) {
            let candidate = self.indexes.waiting.remove(at);
            let of = self.files.get(candidate.file_no);
            let of = of.map(|file| IndexedFile { file_no: candidate.file_no, uuid: file.uuid });
            // What waits for its snapshot is not among what a group holds: it would be missing in the index.
            let is_settled = self.refs.held(candidate.file_no).placed == 0;
            let of = of.filter(|of| is_settled && self.indexes.of(of.file_no).is_none());
            self.indexes.job = of.map(|of| Box::new(Job::new(of, candidate)));
        }
        let Some(mut job) = self.indexes.job.take() else { return };
        if let Phase::Wait { seq } = job.phase {
            if self.durable < seq {
                self.indexes.job = Some(job);
                return;
            }
            if let Some(place) = job.place {
                self.reads.forget_hints(place.of.file_no);
                self.indexes.known.insert(place.of.file_no, place);
                self.indexes.written += 1;
            }
            return self.groups.keep_runs(self.indexes.lists_needed());
        }
        if self.refs.held(job.of()).extents == 0 || !self.has_source(&job) {
            return self.groups.keep_runs(self.indexes.lists_needed());
        }
        if self.may_index(job.in_quiet) {
            // It may go over to another file meanwhile.
            self.indexes.stepping = Some((job.of(), job.list_needed().is_some()));
            self.step_job(&mut job);
            self.indexes.stepping = None;
        }
        self.indexes.job = Some(job);
    }

    /// One that was begun while the log was quiet, and may not go on now, holds up no other: it is begun again, if
    /// its list of runs is in memory still.
    fn give_way(&mut self) {
        if self.may_index(true) || self.next_candidate().is_none() {
            return;
        }
        let held_up = |job: &mut Box<Job>| job.in_quiet && !job.waits();
        if let Some(job) = self.indexes.job.take_if(held_up) {
            let again = Candidate { file_no: job.of(), source: job.source, in_quiet: true };
            self.indexes.waiting.insert(0, again);
        }
    }

    /// The first of those that wait that may be begun: one that waits for a quiet log holds up no other.
    fn next_candidate(&self) -> Option<usize> {
        self.indexes.waiting.iter().position(|one| self.may_index(one.in_quiet))
    }

    /// Whether there is something to do for an index now, though nothing else happens.
    pub(crate) fn has_index_to_write(&self) -> bool {
        match &self.indexes.job {
            Some(job) => !job.waits() && self.may_index(job.in_quiet),
            None => self.next_candidate().is_some(),
        }
    }

    fn has_source(&self, job: &Job) -> bool {
        match job.source {
            Source::List => has_list(&self.groups, job.of()),
            Source::Scan => self.reads.scanned(job.of()).is_some(),
        }
    }

    fn may_index(&self, in_quiet: bool) -> bool {
        let is_quiet = self.stage.bytes() == 0 && self.in_flight == 0;
        !self.prepare.is_full() && self.stage.bytes() < BUSY_BYTES && (is_quiet || !in_quiet)
    }

    /// What an index's record may take.
    pub(super) fn index_record_max(&self) -> usize {
        (self.file_room() as usize / 4).min(coracle_base::limits::BATCH_BYTES_MAX / 2)
    }

    fn step_job(&mut self, job: &mut Job) {
        job.phase = match job.phase {
            Phase::Groups { next_slot } => {
                let next = (next_slot + STEP_GROUPS).min(self.groups.len());
                for (slot, group) in (next_slot..next).zip(self.groups.some(next_slot, STEP_GROUPS)) {
                    job.add_group(slot, group);
                }
                if next < self.groups.len() {
                    Phase::Groups { next_slot: next }
                } else {
                    job.sort_lanes();
                    let is_list = job.source == Source::List;
                    if is_list { Phase::Count { next_run: 0 } } else { Phase::Emit { next_lane: 0 } }
                }
            }
            Phase::Count { next_run } => {
                let mut seen = 0;
                for run in self.groups.runs().some_of(job.of(), next_run, STEP_RUNS) {
                    seen += 1;
                    if let Some(lane) = job.lane_of(run.slot(), run.is_placed(), run.range()) {
                        lane.runs += 1;
                    }
                }
                if seen == STEP_RUNS {
                    Phase::Count { next_run: next_run + seen }
                } else {
                    job.make_room();
                    Phase::Place { next_run: 0 }
                }
            }
            Phase::Place { next_run } => {
                let mut seen = 0;
                for run in self.groups.runs().some_of(job.of(), next_run, STEP_RUNS) {
                    let number = (next_run + seen) as u32;
                    seen += 1;
                    if let Some(lane) = job.lane_of(run.slot(), run.is_placed(), run.range()) {
                        let at = lane.next;
                        lane.next += 1;
                        job.numbers[at as usize] = number;
                    }
                }
                let is_all = seen < STEP_RUNS;
                if is_all { Phase::Emit { next_lane: 0 } } else { Phase::Place { next_run: next_run + seen } }
            }
            Phase::Emit { next_lane } => self.emit(job, next_lane),
            Phase::Wait { seq } => Phase::Wait { seq },
        };
    }

    /// Writes lanes from one on; of a long one, a part.
    fn emit(&mut self, job: &mut Job, mut next_lane: usize) -> Phase {
        let (mut staged, mut looked_at) = (0, 0);
        while staged < STEP_BYTES && looked_at < STEP_RUNS {
            if job.emitting.is_empty() {
                let Some(lane) = job.lanes.get(next_lane) else {
                    self.put_block(job);
                    return self.put_directory(job);
                };
                job.emitting = self.held_of_lane(job, lane);
                job.emitting.reverse();
                looked_at += 1 + job.emitting.len();
                next_lane += 1;
            }
            let is_placed = job.lanes[next_lane - 1].is_placed;
            while staged < STEP_BYTES
                && let Some(run) = job.emitting.pop()
            {
                job.block.push(is_placed, &run);
                if job.block.bytes() >= BLOCK_BYTES {
                    staged += self.put_block(job);
                }
            }
        }
        Phase::Emit { next_lane }
    }

    /// The runs of a lane, as far as their entries are held.
    fn held_of_lane(&self, job: &Job, lane: &Lane) -> Vec<IndexRun> {
        let group = self.groups.at(lane.slot as usize);
        let held = group.held_in(job.of()).filter(|extent| extent.is_placed == lane.is_placed);
        clipped(&self.runs_of_lane(job, lane), &held.collect::<Vec<_>>())
    }

    /// The runs of a lane, by index and without overlaps.
    fn runs_of_lane(&self, job: &Job, lane: &Lane) -> Vec<IndexRun> {
        if job.source == Source::Scan {
            let scanned = self.reads.scanned(job.of());
            return scanned.map_or(Vec::new(), |index| index.runs_of(lane.group, lane.is_placed).to_vec());
        }
        let numbers = &job.numbers[(lane.next - lane.runs) as usize..lane.next as usize];
        let run = |number: &u32| self.groups.runs().run_at(job.of(), *number);
        let runs = numbers.iter().filter_map(run).map(|run| run.of_group(lane.group));
        without_overlaps(runs.collect())
    }

    /// Stages the block that was begun, if there is anything in it. Returns its bytes.
    fn put_block(&mut self, job: &mut Job) -> usize {
        let next = BlockWriter::new(job.of, job.directory.blocks.len() as u32 + 1);
        let Some((first, body)) = std::mem::replace(&mut job.block, next).finish() else { return 0 };
        let piece = self.put_index_record(RecordKind::IndexBlock, &body);
        job.directory.blocks.push((first, piece));
        body.len()
    }

    fn put_directory(&mut self, job: &mut Job) -> Phase {
        let mut body = Vec::with_capacity(job.directory.encoded_bytes());
        job.directory.encode(&mut body);
        // It says nothing, or is larger than a record may be: readers scan the file.
        if job.directory.blocks.is_empty() || body.len() > self.index_record_max() {
            return Phase::Wait { seq: 0 };
        }
        let directory = self.put_index_record(RecordKind::IndexDirectory, &body);
        let first_file = job.directory.first_file(directory.at.file_no);
        job.place = Some(IndexPlace { of: job.of, first_file, directory });
        Phase::Wait { seq: self.stage.batch().seq }
    }

    fn put_index_record(&mut self, kind: RecordKind, body: &[u8]) -> Piece {
        let at = self.place_record(kind, body.len());
        self.stage.batch().buf.put(body);
        self.indexes.bytes += (RECORD_HEADER_BYTES + body.len()) as u64;
        let crc = body_crc(Uuid::of(self.config.seed, at.file_no).low(), body);
        let at = Position { offset: at.offset - RECORD_HEADER_BYTES as u64, ..at };
        Piece { at, bytes: body.len() as u32, crc }
    }
}

/// The parts of the runs whose entries are held; both are in order.
fn clipped(runs: &[IndexRun], held: &[Extent]) -> Vec<IndexRun> {
    let mut parts = Vec::with_capacity(runs.len());
    let mut from = 0;
    for extent in held {
        let (start, end) = (extent.first.0, extent.last().next().0);
        from += runs[from..].partition_point(|run| run.range().end <= start);
        let overlapping = runs[from..].iter().take_while(|run| run.first < end);
        parts.extend(overlapping.filter_map(|run| run.part(run.first.max(start), run.range().end.min(end))));
    }
    parts
}
