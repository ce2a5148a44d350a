//! The log itself: what it is made of, and how records are staged.
//!
//! ```text
//!   append, put_state, and those of `records.rs` → place_record → (open_batch)      in memory; the place in the log is known
//! ```
//!
//! What becomes of them is `write.rs`. Invariants: (1) a record's meaning is taken into the groups when it is staged, in
//! the order of the log; (2) a state that was staged in one batch is staged once more in the next.

use std::collections::VecDeque;
use std::path::PathBuf;

use coracle_base::codec::Sink;
use coracle_base::limits::{
    BATCH_BYTES_MAX, INLINE_SNAPSHOT_BYTES_MAX, RUN_BYTES_MAX, STATE_BYTES_MAX, WRITES_IN_FLIGHT_MAX,
};
use coracle_base::run::{Entries, RUN_HEADER_BYTES, first_term};
use coracle_base::{GroupId, Index, RunHeader, Term};
use coracle_io::Disk;

use crate::checkpoint::Checkpoints;
use crate::config::{Config, Identity};
use crate::error::WalError;
use crate::file_indexes::FileIndexes;
use crate::files::Files;
use crate::format::Position;
use crate::format::batch::BATCH_HEADER_BYTES;
use crate::format::head::HEAD_AREA_BYTES;
use crate::format::record::{
    self, RECORD_HEADER_BYTES, RecordKind, SNAPSHOT_PREFIX_BYTES, STATE_PREFIX_BYTES,
};
use crate::groups::{Fit, GroupLog, Groups, Refs};
use crate::pin::Pins;
use crate::prepare::{Preparer, Source};
use crate::read::{Reads, Sweep};
use crate::recover::{self, Recovery};
use crate::remove::Remover;
use crate::stage::Stage;

/// The number of a batch. A record is durable when its batch, and every earlier one, is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchSeq(pub u64);

/// Proof that batches are durable. Only a [`Wal`] makes it, and only of completed writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Durable(pub(crate) BatchSeq);

impl Durable {
    /// Whether this batch is durable, and every one before it.
    pub fn covers(self, seq: BatchSeq) -> bool {
        seq <= self.0
    }

    /// The newest batch that is durable together with all before it.
    pub fn seq(self) -> BatchSeq {
        self.0
    }
}

/// Counters since the log was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Batches submitted.
    pub batches: u64,
    /// Their bytes, with headers and padding.
    pub batch_bytes: u64,
    /// Bytes of the records staged, each encoded once: runs, states, snapshots. Not checkpoints.
    pub record_bytes: u64,
    /// Of the batches' bytes, those behind the last record, up to the block.
    pub padding_bytes: u64,
    /// Those of rosters.
    pub roster_bytes: u64,
    /// And those of checkpoints.
    pub checkpoint_bytes: u64,
    /// Marker batches among the batches.
    pub marks: u64,
    /// Zeros written to make new files.
    pub prefill_bytes: u64,
    /// Checkpoints completed.
    pub checkpoints: u64,
    /// Files of the log now, ready ones included.
    pub files: u64,
    /// Files reused.
    pub files_reused: u64,
    /// Files removed: segments that held nothing any more, and files of the log beyond need.
    pub files_removed: u64,
    /// Segments that compaction has written.
    pub segments_written: u64,
    /// Their bytes.
    pub segment_bytes: u64,
    /// Indexes of older files that were written.
    pub indexes: u64,
    /// Their bytes, and those of the lists that say where they lie.
    pub index_bytes: u64,
    /// Indexes that were wrong or could not be read: their files were scanned instead.
    pub indexes_wrong: u64,
    /// Places in the table of groups: of those that are there, and of deleted ones until there are others.
    pub group_slots: u64,
    /// Most writes that were in flight at once.
    pub in_flight_max: u64,
}

/// A batch that was submitted and is not durable.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) seq: u64,
    pub(crate) end: Position,
    pub(crate) chain: u64,
    pub(crate) bytes: usize,
    pub(crate) since_us: u64,
    pub(crate) done: bool,
}

/// States to write once more: those of the open batch, and those of earlier ones that had no chance yet.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    fresh: Vec<u32>,
    due: Vec<u32>,
    upto: u64,
}

impl Repeats {
    /// Whether no state waits to be written once more.
    pub(crate) fn is_empty(&self) -> bool {
        self.due.is_empty() && self.fresh.is_empty()
    }
}

/// One shard's write-ahead log.
#[derive(Debug)]
pub struct Wal {
    pub(crate) config: Config,
    pub(crate) identity: Identity,
    pub(crate) boot_epoch: u64,
    pub(crate) stage: Stage,
    pub(crate) groups: Groups,
    pub(crate) refs: Refs,
    pub(crate) files: Files,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) indexes: FileIndexes,
    pub(crate) reads: Reads,
    pub(crate) pins: Pins,
    /// The pass over the files that is under way.
    pub(crate) sweep: Option<Box<Sweep>>,
    pub(crate) prepare: Preparer,
    pub(crate) remover: Remover,
    /// The highest number of a segment ever used, with the bit `SEGMENT`.
    pub(crate) segments_upto: u64,
    /// The segment that entries are being moved to.
    pub(crate) moving_to: Option<u64>,
    /// Files that hold nothing are wanted for something else when the disk is full.
    pub(crate) dead_is_kept: bool,
    /// Spares that were found, not yet made ready.
    pub(crate) leftovers: Vec<Source>,
    /// The newest file that is ready.
    pub(crate) ready_upto: u64,
    /// The file that the stage is at.
    pub(crate) stage_file: u64,
    /// Entries of that file.
    pub(crate) file_entries: u64,
    pub(crate) repeats: Repeats,
    pub(crate) flight: VecDeque<Flight>,
    pub(crate) in_flight: usize,
    pub(crate) in_flight_bytes: usize,
    pub(crate) durable: u64,
    /// Where the newest durable batch ends, and its chain value.
    pub(crate) durable_at: Position,
    pub(crate) durable_chain: u64,
    /// Of the newest batch submitted.
    pub(crate) chain: u64,
    pub(crate) now_us: u64,
    /// Since when the first batch that waits has no file.
    pub(crate) kept_back_us: Option<u64>,
    pub(crate) last_submit_us: u64,
    /// The newest batch submitted is not a marker: a crash now could not prove it.
    pub(crate) unproven: bool,
    /// Records of groups that are not named may have been lost.
    pub(crate) incomplete: bool,
    pub(crate) stopped: Option<WalError>,
    pub(crate) stats: Stats,
}

/// What recovery leaves for the log to go on from.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) config: Config,
    pub(crate) identity: Identity,
    pub(crate) boot_epoch: u64,
    pub(crate) groups: Groups,
    pub(crate) refs: Refs,
    pub(crate) files: Files,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) indexes: FileIndexes,
    pub(crate) leftovers: Vec<Source>,
    pub(crate) orphans: Vec<PathBuf>,
    pub(crate) segments_upto: u64,
    /// The new file, open and ready.
    pub(crate) file_no: u64,
    pub(crate) first_seq: u64,
    pub(crate) chain: u64,
    pub(crate) incomplete: bool,
    pub(crate) prefill_bytes: u64,
}

impl Wal {
    /// Creates the log or recovers it, and begins a new file. Blocks.
    ///
    /// # Errors
    /// [`WalError`]: nothing was changed that would not be found again; the message says what to do.
    pub fn open<D: Disk>(
        disk: &mut D,
        config: Config,
        identity: Identity,
    ) -> Result<(Self, Recovery), WalError> {
        config.check()?;
        let (start, recovery) = recover::recover(disk, config, identity)?;
        let mut wal = Self::begin(disk, start);
        wal.index_recovered();
        wal.groups.vacate_deleted();
        Ok((wal, recovery))
    }

    fn begin<D: Disk>(disk: &mut D, start: Start) -> Self {
        let Start { config, first_seq, file_no, .. } = start;
        let at = Position { file_no, offset: HEAD_AREA_BYTES };
        Self {
            stage: Stage::new(disk, &config, first_seq, at),
            prepare: Preparer::new(&config.dir, config.file_bytes),
            remover: Remover::new(start.orphans),
            segments_upto: start.segments_upto,
            moving_to: None,
            dead_is_kept: false,
            reads: Reads::default(),
            pins: Pins::default(),
            sweep: None,
            identity: start.identity,
            boot_epoch: start.boot_epoch,
            groups: start.groups,
            refs: start.refs,
            files: start.files,
            checkpoints: start.checkpoints,
            indexes: start.indexes,
            leftovers: start.leftovers,
            ready_upto: file_no,
            stage_file: file_no,
            file_entries: 0,
            repeats: Repeats { upto: first_seq - 1, ..Repeats::default() },
            flight: VecDeque::with_capacity(WRITES_IN_FLIGHT_MAX),
            in_flight: 0,
            in_flight_bytes: 0,
            durable: first_seq - 1,
            durable_at: at,
            durable_chain: start.chain,
            chain: start.chain,
            now_us: 0,
            last_submit_us: 0,
            kept_back_us: None,
            unproven: false,
            incomplete: start.incomplete,
            stopped: None,
            stats: Stats { prefill_bytes: start.prefill_bytes, ..Stats::default() },
            config,
        }
    }

    // ---- staging: in memory, allocates nothing in the steady state -----------------------------------------------

    /// Says which groups runs are about to be staged of: a turn over thousands of groups then waits once for what is not in
    /// the cache, not once a group. A few dozen at a time.
    pub fn warm(&self, groups: impl Iterator<Item = GroupId>) {
        self.groups.warm(groups);
    }

    /// Stages a run. `body` is its entries, in pieces of whole entries. Returns the batch that makes it durable.
    ///
    /// # Panics
    /// If the header disagrees with the body, or the run does not continue the group's log: the caller's mistakes.
    pub fn append(&mut self, header: &RunHeader, body: &[&[u8]]) -> BatchSeq {
        self.limit_entries(header.count);
        let (at, seq) = self.put_run(RecordKind::Run, header, body);
        self.file_entries += u64::from(header.count);
        let slot = self.groups.slot_or_new(header.group);
        let (group, runs) = self.groups.with_runs(slot);
        let is_over = header.prev_index < group.last;
        let fit = match one_term(header, body) {
            Some(term) => {
                group.append(header, std::iter::once((term, header.count)), at, seq, &mut self.refs, runs)
            }
            None => group.append(header, spans(body), at, seq, &mut self.refs, runs),
        };
        assert_eq!(fit, Fit::Fits, "{header:?} does not continue the log {:?}", group.log());
        if is_over {
            self.groups.note_change(slot);
        }
        BatchSeq(seq)
    }

    /// Goes on to the next file if `count` entries more were too many for this one. On a full disk its room is worth more
    /// than the limit.
    fn limit_entries(&mut self, count: u32) {
        let (has, max) = (self.file_entries, self.config.file_entries_max);
        if max > 0 && has > 0 && has + u64::from(count) > max && !self.prepare.is_full() {
            self.stage.end_file();
        }
    }

    /// Sees to it that the state and the run that are staged next go into one batch: a crash keeps both, or neither. The
    /// run has `entries` entries and at most [`run_bytes_max`](Self::run_bytes_max) bytes of them.
    pub fn keep_together(&mut self, state_bytes: usize, entries: u32, body_bytes: usize) {
        self.limit_entries(entries);
        let run_bytes = RECORD_HEADER_BYTES + RUN_HEADER_BYTES + body_bytes;
        let bytes = RECORD_HEADER_BYTES + STATE_PREFIX_BYTES + state_bytes + run_bytes;
        while !self.stage.fits(bytes) {
            self.open_batch(bytes);
        }
    }

    /// Stages a group's consensus state; stage it before the entries that depend on it. Returns its batch.
    ///
    /// # Panics
    /// If it is larger than `STATE_BYTES_MAX`.
    pub fn put_state(&mut self, group: GroupId, blob: &[u8]) -> BatchSeq {
        assert!(blob.len() <= STATE_BYTES_MAX, "a state of {} bytes", blob.len());
        self.begin_record(group, RecordKind::State, STATE_PREFIX_BYTES + blob.len());
        let batch = self.stage.batch();
        batch.buf.put(&group.0.to_le_bytes());
        batch.buf.put(blob);
        let seq = batch.seq;
        let slot = self.groups.slot_or_new(group);
        let group = self.groups.at_mut(slot);
        group.cold.state.clear();
        group.cold.state.extend_from_slice(blob);
        if !group.cold.repeat {
            group.cold.repeat = true;
            self.repeats.fresh.push(slot as u32);
        }
        BatchSeq(seq)
    }

    /// Stages a run. Returns the place of the record's body, and its batch.
    #[inline(always)]
    pub(crate) fn put_run(
        &mut self,
        kind: RecordKind,
        header: &RunHeader,
        body: &[&[u8]],
    ) -> (Position, u64) {
        let heads = record::run_heads(kind, header, body);
        self.make_room(header.encoded_bytes());
        self.stage.note_group(header.group);
        self.stage.put_run(&heads, body)
    }

    /// As [`place_record`](Self::place_record), for a record of a group.
    pub(crate) fn begin_record(&mut self, group: GroupId, kind: RecordKind, body_bytes: usize) -> Position {
        self.make_room(body_bytes);
        self.stage.note_group(group);
        self.place_record(kind, body_bytes)
    }

    /// Makes room for a record that is not a checkpoint's, and counts its bytes.
    fn make_room(&mut self, body_bytes: usize) {
        let bytes = RECORD_HEADER_BYTES + body_bytes;
        self.stats.record_bytes += bytes as u64;
        self.checkpoints.add_bytes(bytes);
        while !self.stage.fits(bytes) {
            self.open_batch(bytes);
        }
    }

    /// Makes room for a record and stages its header; its body goes into the open batch. Returns the body's place.
    pub(crate) fn place_record(&mut self, kind: RecordKind, body_bytes: usize) -> Position {
        let bytes = RECORD_HEADER_BYTES + body_bytes;
        while !self.stage.fits(bytes) {
            self.open_batch(bytes);
        }
        let batch = self.stage.batch();
        let at = batch.body_place();
        record::put_header(kind, false, body_bytes, &mut batch.buf);
        batch.records += 1;
        batch.mark = false;
        at
    }

    pub(crate) fn open_batch(&mut self, bytes: usize) {
        let sealed = self.stage.open_next(bytes);
        if let Some(end) = sealed {
            self.files.seal(end);
            self.index_before(end.file_no);
            self.stage_file = self.stage.at().file_no;
            self.file_entries = 0;
            self.checkpoints.roll();
        }
        self.repeat_states();
    }

    /// Writes the states of earlier batches once more at the start of a new one, using at most half of its room: a vote
    /// must outlive the loss of any one batch.
    fn repeat_states(&mut self) {
        self.repeats.due.append(&mut self.repeats.fresh);
        let least_room = self.stage.room() / 2;
        while let Some(slot) = self.repeats.due.last() {
            let group = self.groups.at(*slot as usize);
            if !group.cold.repeat {
                // It was deleted since, or its slot is another group's: nothing of it is to come back.
                self.repeats.due.pop();
                continue;
            }
            let body_bytes = STATE_PREFIX_BYTES + group.cold.state.len();
            if self.stage.room() < least_room + RECORD_HEADER_BYTES + body_bytes {
                break;
            }
            let batch = self.stage.batch();
            record::put_header(RecordKind::State, true, body_bytes, &mut batch.buf);
            batch.buf.put(&group.cold.id.0.to_le_bytes());
            batch.buf.put(&group.cold.state);
            batch.records += 1;
            self.groups.was_repeated(*slot as usize);
            self.repeats.due.pop();
        }
        let batch = self.stage.batch();
        if self.repeats.due.is_empty() {
            self.repeats.upto = batch.seq - 1;
        }
        batch.repeated_upto = self.repeats.upto;
    }

    // ---- what the shard wants to know ----------------------------------------------------------------------------

    /// Bytes staged or in flight, not durable yet.
    pub fn backlog_bytes(&self) -> usize {
        self.stage.bytes() + self.in_flight_bytes
    }

    /// A group's log as it was staged, or `None` if there was never a record of it.
    pub fn group(&self, group: GroupId) -> Option<GroupLog> {
        self.groups.find(group).map(|group| group.log())
    }

    /// A leader has brought this group up to date: its records are no longer suspect.
    pub fn clear_suspect(&mut self, group: GroupId) {
        if let Some(slot) = self.groups.slot(group) {
            let group = self.groups.at_mut(slot);
            (group.cold.suspect, group.cold.state_lost) = (false, false);
        }
    }

    /// Bytes that batches can still take in the files that are ready, once the disk is too full to make all the files
    /// that should be: refuse in good time what is not urgent. `None` while files can be made.
    pub fn room(&self) -> Option<u64> {
        if !self.prepare.is_full() {
            return None;
        }
        let is_here = self.stage_file <= self.ready_upto;
        let here = if is_here { self.config.file_bytes - self.stage.end() } else { 0 };
        Some(here + self.ready_upto.saturating_sub(self.stage_file) * self.file_room())
    }

    /// Bytes that batches can take in an empty file: what [`room`](Self::room) is to be compared with.
    pub fn file_room(&self) -> u64 {
        self.config.file_bytes - HEAD_AREA_BYTES
    }

    /// Bytes of entries in the largest run that a batch can take beside a state: small files take less than other nodes'
    /// do.
    pub fn run_bytes_max(&self) -> usize {
        let state_bytes = RECORD_HEADER_BYTES + STATE_PREFIX_BYTES + STATE_BYTES_MAX;
        RUN_BYTES_MAX.min(self.body_bytes_max() - state_bytes - RUN_HEADER_BYTES)
    }

    /// Bytes of the largest snapshot that a batch can take.
    pub fn snapshot_bytes_max(&self) -> usize {
        INLINE_SNAPSHOT_BYTES_MAX.min(self.body_bytes_max() - SNAPSHOT_PREFIX_BYTES)
    }

    fn body_bytes_max(&self) -> usize {
        let batch = self.file_room().min(BATCH_BYTES_MAX as u64) as usize;
        batch - BATCH_HEADER_BYTES - RECORD_HEADER_BYTES
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        Stats {
            prefill_bytes: self.stats.prefill_bytes + self.prepare.prefill_bytes,
            files: self.files.len() as u64,
            files_removed: self.remover.removed(),
            indexes: self.indexes.written,
            index_bytes: self.indexes.bytes,
            indexes_wrong: self.indexes.wrong,
            padding_bytes: self.stage.padding_bytes,
            roster_bytes: self.stage.roster_bytes,
            checkpoint_bytes: self.checkpoints.written_bytes,
            group_slots: self.groups.len() as u64,
            ..self.stats
        }
    }
}

/// The term of all entries of a run, if the first one tells: terms do not fall along a run and do not pass the leader's.
fn one_term(header: &RunHeader, body: &[&[u8]]) -> Option<Term> {
    let first = body.iter().find_map(|piece| first_term(piece))?;
    (header.count == 1 || first == header.accepted_term).then_some(first)
}

/// The terms of a run's entries, one by one.
fn spans<'a>(body: &'a [&'a [u8]]) -> impl Iterator<Item = (Term, u32)> + 'a {
    let each = body.iter().flat_map(|piece| Entries::new(Index::ZERO, piece));
    each.map(|entry| (entry.header.term, 1))
}
