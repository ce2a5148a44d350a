//! The log itself: from records to durable batches. Read downwards; a record passes the functions in this order.
//!
//! ```text
//!   append, put_state, put_snapshot → make_room → (record staged)      in memory, place in the log known
//!   submit  → step_background → mark_if_quiet → write_batches          operations handed to the disk
//!   on_done → on_written → durable                                     the longest prefix that completed
//! ```
//!
//! Invariants: (1) `durable` never falls and never passes a batch that has not completed; (2) a batch is submitted only
//! when at most `WRITES_IN_FLIGHT_MAX` batches, itself included, are not durable; (3) after a failed write or sync
//! nothing is submitted and nothing becomes durable any more.

use std::collections::VecDeque;

use coracle_base::codec::Sink;
use coracle_base::limits::{
    INLINE_SNAPSHOT_BYTES_MAX, STATE_BYTES_MAX, WRITES_IN_FLIGHT, WRITES_IN_FLIGHT_MAX,
};
use coracle_base::run::Entries;
use coracle_base::{GroupId, Index, RunHeader, Term};
use coracle_io::{Disk, DiskDone, DiskOp};

use crate::checkpoint::Checkpoints;
use crate::config::{Config, Identity};
use crate::error::WalError;
use crate::files::Files;
use crate::format::batch::{BATCH_HEADER_BYTES, BatchHead, FLAG_MARK};
use crate::format::head::{HEAD_AREA_BYTES, Head, Prev};
use crate::format::page::{Begin, SnapshotPlace};
use crate::format::record::{
    self, RECORD_HEADER_BYTES, RecordKind, SNAPSHOT_PREFIX_BYTES, STATE_PREFIX_BYTES,
};
use crate::format::{Position, Uuid};
use crate::groups::{Fit, GroupLog, Groups, Refs};
use crate::prepare::{Preparer, Source};
use crate::read::Reads;
use crate::recover::{self, Recovery};
use crate::stage::{Batch, Stage};
use crate::token::{self, Token};

/// Files kept open for reading only.
const READ_HANDLES_MAX: usize = 64;

/// The number of a batch. A record is durable when its batch, and every earlier one, is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchSeq(pub u64);

/// Proof that batches are durable. Only a [`Wal`] makes it, and only of completed writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Durable(BatchSeq);

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

/// Whether the log has room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalState {
    /// All is well.
    Ready,
    /// The disk is full and no further file can be made: refuse what is not urgent. Votes and releases still pass.
    Low,
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
    /// Most writes that were in flight at once.
    pub in_flight_max: u64,
}

/// A batch that was submitted and is not durable.
#[derive(Debug)]
struct Flight {
    seq: u64,
    end: Position,
    chain: u64,
    bytes: usize,
    done: bool,
}

/// States to write once more: those of the open batch, and those of earlier ones that had no chance yet.
#[derive(Debug, Default)]
struct Repeats {
    fresh: Vec<u32>,
    due: Vec<u32>,
    upto: u64,
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
    pub(crate) reads: Reads,
    prepare: Preparer,
    /// Spares that were found, not yet made ready.
    leftovers: Vec<Source>,
    /// The newest file that is ready.
    ready_upto: u64,
    /// The file that the stage is at.
    stage_file: u64,
    repeats: Repeats,
    flight: VecDeque<Flight>,
    in_flight: usize,
    in_flight_bytes: usize,
    durable: u64,
    /// Where the newest durable batch ends, and its chain value.
    pub(crate) durable_at: Position,
    durable_chain: u64,
    /// Of the newest batch submitted.
    chain: u64,
    now_us: u64,
    last_submit_us: u64,
    /// The newest batch submitted is not a marker: a crash now could not prove it.
    unproven: bool,
    stopped: Option<WalError>,
    stats: Stats,
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
    pub(crate) leftovers: Vec<Source>,
    /// The new file, open and ready.
    pub(crate) file_no: u64,
    pub(crate) first_seq: u64,
    pub(crate) chain: u64,
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
        Ok((Self::begin(disk, start), recovery))
    }

    fn begin<D: Disk>(disk: &mut D, start: Start) -> Self {
        let Start { config, first_seq, file_no, .. } = start;
        let at = Position { file_no, offset: HEAD_AREA_BYTES };
        Self {
            stage: Stage::new(disk, config.file_bytes, config.seed, first_seq, at),
            prepare: Preparer::new(&config.dir, config.file_bytes, config.strategy.file_mode()),
            reads: Reads::default(),
            identity: start.identity,
            boot_epoch: start.boot_epoch,
            groups: start.groups,
            refs: start.refs,
            files: start.files,
            checkpoints: start.checkpoints,
            leftovers: start.leftovers,
            ready_upto: file_no,
            stage_file: file_no,
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
            unproven: false,
            stopped: None,
            stats: Stats { prefill_bytes: start.prefill_bytes, ..Stats::default() },
            config,
        }
    }

    // ---- staging: in memory, allocates nothing in the steady state -----------------------------------------------

    /// Stages a run. `body` is its entries, in pieces of whole entries. Returns the batch that makes it durable.
    ///
    /// # Panics
    /// If the header disagrees with the body, or the run does not continue the group's log: the caller's mistakes.
    pub fn append(&mut self, header: &RunHeader, body: &[&[u8]]) -> BatchSeq {
        let encoded = header.encode(body);
        let bytes = header.encoded_bytes();
        let at = self.begin_record(RecordKind::Run, bytes);
        let batch = self.stage.batch();
        batch.buf.put(&encoded);
        for piece in body {
            batch.buf.put(piece);
        }
        let seq = batch.seq;
        let slot = self.groups.slot_or_new(header.group);
        let group = self.groups.at_mut(slot);
        let fit = group.append(header, spans(header, body), at, seq, &mut self.refs);
        assert_eq!(fit, Fit::Fits, "{header:?} does not continue the log {:?}", group.log());
        BatchSeq(seq)
    }

    /// Stages a group's consensus state; stage it before the entries that depend on it. Returns its batch.
    ///
    /// # Panics
    /// If it is larger than `STATE_BYTES_MAX`.
    pub fn put_state(&mut self, group: GroupId, blob: &[u8]) -> BatchSeq {
        assert!(blob.len() <= STATE_BYTES_MAX, "a state of {} bytes", blob.len());
        self.begin_record(RecordKind::State, STATE_PREFIX_BYTES + blob.len());
        let batch = self.stage.batch();
        batch.buf.put(&group.0.to_le_bytes());
        batch.buf.put(blob);
        let seq = batch.seq;
        let slot = self.groups.slot_or_new(group);
        let group = self.groups.at_mut(slot);
        group.state.clear();
        group.state.extend_from_slice(blob);
        if !group.repeat {
            group.repeat = true;
            self.repeats.fresh.push(slot as u32);
        }
        BatchSeq(seq)
    }

    /// Stages a small snapshot and releases the log up to `index`: what lies above stays if the log holds (index, term),
    /// otherwise the whole log is dropped. A snapshot older than the present one is not written. Returns its batch.
    ///
    /// # Panics
    /// If it is larger than `INLINE_SNAPSHOT_BYTES_MAX`, or its index is 0.
    pub fn put_snapshot(&mut self, group: GroupId, index: Index, term: Term, bytes: &[u8]) -> BatchSeq {
        assert!(bytes.len() <= INLINE_SNAPSHOT_BYTES_MAX, "an inline snapshot of {} bytes", bytes.len());
        assert!(index > Index::ZERO, "a snapshot of nothing");
        let slot = self.groups.slot_or_new(group);
        if index < self.groups.at(slot).base {
            return BatchSeq(self.stage.last_seq());
        }
        let body = self.begin_record(RecordKind::Snapshot, SNAPSHOT_PREFIX_BYTES + bytes.len());
        let batch = self.stage.batch();
        record::put_snapshot(group, index, term, bytes, &mut batch.buf);
        let seq = batch.seq;
        let at = Position { offset: body.offset - RECORD_HEADER_BYTES as u64, ..body };
        let place = SnapshotPlace { at, bytes: bytes.len() as u32 };
        self.groups.at_mut(slot).install(index, term, place, seq, &mut self.refs);
        BatchSeq(seq)
    }

    fn begin_record(&mut self, kind: RecordKind, body_bytes: usize) -> Position {
        let bytes = RECORD_HEADER_BYTES + body_bytes;
        self.stats.record_bytes += bytes as u64;
        self.checkpoints.add_bytes(bytes);
        self.place_record(kind, body_bytes)
    }

    /// Makes room for a record and stages its header; its body goes into the open batch. Returns the body's place.
    pub(crate) fn place_record(&mut self, kind: RecordKind, body_bytes: usize) -> Position {
        let bytes = RECORD_HEADER_BYTES + body_bytes;
        while !self.stage.fits(bytes) {
            self.open_batch(bytes);
        }
        let batch = self.stage.batch();
        record::put_header(kind, false, body_bytes, &mut batch.buf);
        batch.records += 1;
        batch.mark = false;
        Position { file_no: batch.at.file_no, offset: batch.at.offset + batch.buf.len() as u64 }
    }

    fn open_batch(&mut self, bytes: usize) {
        let sealed = self.stage.open_next(bytes);
        if let Some(end) = sealed {
            self.files.seal(end);
            self.stage_file = self.stage.at().file_no;
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
            let group = self.groups.at_mut(*slot as usize);
            let body_bytes = STATE_PREFIX_BYTES + group.state.len();
            if self.stage.room() < least_room + RECORD_HEADER_BYTES + body_bytes {
                break;
            }
            let batch = self.stage.batch();
            record::put_header(RecordKind::State, true, body_bytes, &mut batch.buf);
            batch.buf.put(&group.id.0.to_le_bytes());
            batch.buf.put(&group.state);
            batch.records += 1;
            group.repeat = false;
            self.repeats.due.pop();
        }
        let batch = self.stage.batch();
        if self.repeats.due.is_empty() {
            self.repeats.upto = batch.seq - 1;
        }
        batch.repeated_upto = self.repeats.upto;
    }

    // ---- submitting ----------------------------------------------------------------------------------------------

    /// Hands out what the in-flight rule allows: at once while fewer than two writes are in flight, otherwise only full
    /// batches, up to four. Also the marker when the log has been quiet, and a bounded piece of background work. The
    /// caller then submits the disk's queue.
    ///
    /// # Errors
    /// The log has stopped for good.
    pub fn submit<D: Disk>(&mut self, disk: &mut D, now_us: u64) -> Result<(), WalError> {
        if let Some(error) = &self.stopped {
            return Err(error.clone());
        }
        self.now_us = now_us;
        self.step_background(disk);
        self.mark_if_quiet();
        self.write_batches(disk);
        Ok(())
    }

    /// The time at which [`submit`](Self::submit) wants to be called though nothing happens.
    pub fn deadline_us(&self) -> Option<u64> {
        let mark = self.is_quiet().then(|| self.last_submit_us + self.config.idle_mark_us);
        [mark, self.prepare.retry_us()].into_iter().flatten().min()
    }

    fn step_background<D: Disk>(&mut self, disk: &mut D) {
        self.step_checkpoint();
        self.prepare_next(disk);
        self.step_carry(disk);
        if let Some(file) = self.files.surplus_handle(READ_HANDLES_MAX) {
            disk.start(token::IGNORED, DiskOp::Close { file });
        }
    }

    /// Nothing is on its way, and what was written last is not proven yet.
    fn is_quiet(&self) -> bool {
        let unproven = self.unproven || !self.repeats.due.is_empty() || !self.repeats.fresh.is_empty();
        unproven && self.in_flight == 0 && self.stage.bytes() == 0
    }

    fn mark_if_quiet(&mut self) {
        if self.is_quiet() && self.now_us >= self.last_submit_us + self.config.idle_mark_us {
            self.open_mark();
        }
    }

    fn open_mark(&mut self) {
        self.open_batch(0);
        self.stage.batch().mark = true;
    }

    fn write_batches<D: Disk>(&mut self, disk: &mut D) {
        while let Some(at) = self.may_write() {
            let Some(file) = self.files.get(at.file_no).and_then(|file| file.handle) else { return };
            let Some(batch) = self.stage.take_first() else { return };
            let (token, op) = (token::write(batch.seq), self.write_op(file, batch));
            disk.start(token, op);
        }
    }

    /// Where the next batch goes, if the in-flight rule lets it be written now.
    fn may_write(&self) -> Option<Position> {
        let batch = self.stage.first()?;
        let limit = if batch.full { WRITES_IN_FLIGHT_MAX } else { WRITES_IN_FLIGHT };
        let in_window = batch.seq - self.durable <= WRITES_IN_FLIGHT_MAX as u64;
        (self.in_flight < limit && in_window).then_some(batch.at)
    }

    fn write_op(&mut self, file: coracle_io::FileId, mut batch: Batch) -> DiskOp {
        let uuid = Uuid::of(self.config.seed, batch.at.file_no);
        let mut head = BatchHead {
            uuid_low: uuid.low(),
            seq: batch.seq,
            self_off: batch.at.offset,
            boot_epoch: self.boot_epoch as u32,
            payload_bytes: batch.payload_bytes,
            record_count: batch.records,
            flags: if batch.mark { FLAG_MARK } else { 0 },
            durable_upto: self.durable,
            repeated_upto: batch.repeated_upto,
            prev_chain: self.chain,
            chain: 0,
            payload_crc: batch.payload_crc,
        };
        batch.buf[..BATCH_HEADER_BYTES].copy_from_slice(&head.encode(uuid.seed()));
        self.chain = head.chain;
        self.unproven = !batch.mark;
        self.last_submit_us = self.now_us;
        self.in_flight += 1;
        self.in_flight_bytes += batch.buf.len();
        self.stats.batches += 1;
        self.stats.marks += u64::from(batch.mark);
        self.stats.batch_bytes += batch.buf.len() as u64;
        self.stats.in_flight_max = self.stats.in_flight_max.max(self.in_flight as u64);
        if let Some(file) = self.files.get_mut(batch.at.file_no) {
            file.busy += 1;
        }
        let (seq, end, bytes) = (batch.seq, batch.end(), batch.buf.len());
        let flight = Flight { seq, end, chain: self.chain, bytes, done: false };
        self.flight.push_back(flight);
        DiskOp::Write { file, offset: batch.at.offset, buf: batch.buf }
    }

    // ---- completions ---------------------------------------------------------------------------------------------

    /// Whether a completion with this token is the log's, to be given to [`on_done`](Self::on_done).
    pub fn owns(token: u64) -> bool {
        token::decode(token).is_some()
    }

    /// Takes the completion of one of the log's operations.
    ///
    /// # Errors
    /// The log has stopped for good: a write or sync failed, and what it left behind is unknown. It is not tried again.
    pub fn on_done<D: Disk>(&mut self, disk: &mut D, done: DiskDone) -> Result<(), WalError> {
        match token::decode(done.token) {
            Some(Token::Write(low)) => self.on_written(disk, low, done),
            Some(Token::Prepare) => self.on_prepared(disk, done),
            Some(Token::Read) => {
                self.on_read_done(disk, done);
                Ok(())
            }
            Some(Token::Ignored) | None => Ok(()),
        }
    }

    fn on_written<D: Disk>(&mut self, disk: &mut D, low: u64, done: DiskDone) -> Result<(), WalError> {
        if let Some(buf) = done.buf {
            self.stage.reuse(disk, buf);
        }
        let Some(flight) = self.flight.iter_mut().find(|flight| token::low_bits(flight.seq) == low) else {
            return Ok(());
        };
        self.in_flight -= 1;
        self.in_flight_bytes -= flight.bytes;
        flight.done = true;
        let file_no = flight.end.file_no;
        if let Some(file) = self.files.get_mut(file_no) {
            file.busy -= 1;
        }
        if let Err(error) = done.result {
            return Err(self.stop(error.into()));
        }
        self.advance()
    }

    /// Moves `durable` over the writes that completed without a hole.
    fn advance(&mut self) -> Result<(), WalError> {
        if let Some(error) = &self.stopped {
            return Err(error.clone());
        }
        while let Some(flight) = self.flight.pop_front_if(|flight| flight.done) {
            self.durable = flight.seq;
            self.durable_at = flight.end;
            self.durable_chain = flight.chain;
        }
        if self.checkpoints.on_durable(self.durable) {
            self.stats.checkpoints = self.checkpoints.written;
            self.reads.carry_is_due();
        }
        Ok(())
    }

    /// Where a replay could start: after everything that is durable now.
    pub(crate) fn durable_end(&self) -> Begin {
        Begin { at: self.durable_at, seq: self.durable + 1, chain: self.durable_chain }
    }

    fn stop(&mut self, error: WalError) -> WalError {
        tracing::error!(dir = %self.config.dir.display(), %error, "the write-ahead log has stopped");
        self.stopped.get_or_insert(error).clone()
    }

    /// The newest batch that is durable with every one before it.
    pub fn durable(&self) -> Durable {
        #[cfg(feature = "breaks")]
        if crate::breaks::is_on(crate::breaks::Break::AckBeforeDurable) {
            return Durable(BatchSeq(self.flight.back().map_or(self.durable, |flight| flight.seq)));
        }
        Durable(BatchSeq(self.durable))
    }

    // ---- files ---------------------------------------------------------------------------------------------------

    /// Begins to prepare the next file, if fewer are ready than should be.
    fn prepare_next<D: Disk>(&mut self, disk: &mut D) {
        let wanted = self.stage_file + self.config.spares as u64;
        if self.ready_upto >= wanted || !self.prepare.may_begin(self.now_us) {
            return;
        }
        let source = self.choose_source();
        let file_no = self.ready_upto + 1;
        let prev_uuid = Uuid::of(self.config.seed, self.ready_upto);
        let head = Head {
            identity: self.identity,
            window: WRITES_IN_FLIGHT_MAX as u32,
            file_no,
            uuid: Uuid::of(self.config.seed, file_no),
            boot_epoch: self.boot_epoch,
            first_seq: 0,
            prev: Some(Prev { file_no: self.ready_upto, uuid: prev_uuid, cut: None }),
        };
        self.prepare.begin(disk, head, source);
    }

    fn choose_source(&mut self) -> Source {
        if let Some(source) = self.prepare.take_unfinished().or_else(|| self.leftovers.pop()) {
            return source;
        }
        let Some(file_no) = self.files.dead(self.checkpoints.needed_from(), self.durable, &self.refs) else {
            return Source::New;
        };
        self.refs.forget(file_no);
        self.reads.forget(file_no);
        self.stats.files_reused += 1;
        let file = self.files.remove(file_no);
        let (handle, bytes) = file.map_or((None, 0), |file| (file.handle, file.bytes));
        Source::Dead { file_no, handle, bytes }
    }

    fn on_prepared<D: Disk>(&mut self, disk: &mut D, done: DiskDone) -> Result<(), WalError> {
        match self.prepare.on_done(disk, done, self.now_us) {
            Ok(Some(ready)) => {
                self.files.insert_ready(&ready);
                self.ready_upto = ready.head.file_no;
                self.prepare_next(disk);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => Err(self.stop(error.into())),
        }
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
            (group.suspect, group.state_lost) = (false, false);
        }
    }

    /// Whether there is room for ordinary proposals.
    pub fn state(&self) -> WalState {
        let ready = self.ready_upto.saturating_sub(self.stage_file);
        if self.prepare.is_full() && ready < self.config.spares as u64 {
            WalState::Low
        } else {
            WalState::Ready
        }
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        Stats {
            prefill_bytes: self.stats.prefill_bytes + self.prepare.prefill_bytes,
            files: self.files.len() as u64,
            ..self.stats
        }
    }

    // ---- the end -------------------------------------------------------------------------------------------------

    /// Writes what is staged and a last marker, and waits until nothing is in flight. Blocks. Operations of others on
    /// the same disk must have completed before: their completions would be lost.
    ///
    /// # Errors
    /// What was not durable may be lost.
    pub fn shutdown<D: Disk>(mut self, disk: &mut D) -> Result<(), WalError> {
        let result = self.drain(disk).and_then(|()| {
            if self.unproven {
                self.open_mark();
            }
            self.drain(disk)
        });
        while disk.in_flight() > 0 {
            disk.wait()?;
            disk.completions(&mut Vec::new());
        }
        for (_, file) in self.files.iter() {
            if let Some(file) = file.handle {
                disk.start(token::IGNORED, DiskOp::Close { file });
            }
        }
        while disk.in_flight() > 0 {
            disk.wait()?;
            disk.completions(&mut Vec::new());
        }
        self.stage.give_back(disk);
        result
    }

    /// Writes all batches; those that have no file, because the disk is full, stay.
    fn drain<D: Disk>(&mut self, disk: &mut D) -> Result<(), WalError> {
        let mut done = Vec::new();
        loop {
            if let Some(error) = &self.stopped {
                return Err(error.clone());
            }
            self.write_batches(disk);
            let waits_for_file = self.stage.bytes() > 0 && self.prepare.is_busy();
            if self.in_flight == 0 && !waits_for_file {
                return Ok(());
            }
            disk.wait()?;
            disk.completions(&mut done);
            for one in done.drain(..) {
                self.on_done(disk, one)?;
            }
        }
    }
}

/// The spans of equal terms of a run. All entries of a run have the term of its leader if the first one has it, since
/// terms do not fall along a run and do not pass the leader's.
fn spans<'a>(header: &RunHeader, body: &'a [&'a [u8]]) -> impl Iterator<Item = (Term, u32)> + 'a {
    let first = body.iter().find_map(|piece| Entries::new(Index::ZERO, piece).next());
    let whole = first.filter(|entry| entry.header.term == header.accepted_term);
    let one_by_one = if whole.is_some() { &[] } else { body };
    let each = one_by_one.iter().flat_map(|piece| Entries::new(Index::ZERO, piece));
    let count = header.count;
    whole.map(|entry| (entry.header.term, count)).into_iter().chain(each.map(|entry| (entry.header.term, 1)))
}
