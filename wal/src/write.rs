//! The write path from a closed batch on: submitted by the in-flight rule, completed in any order, durable in order.
//!
//! ```text
//!   submit  → step_background → mark_if_quiet → write_batches          operations handed to the disk
//!   on_done → on_written → advance                                     the longest prefix that completed is durable
//! ```
//!
//! Invariants: (1) `durable` never falls and never passes a batch that has not completed; (2) a batch is submitted only
//! when at most `WRITES_IN_FLIGHT_MAX` batches, itself included, are not durable; (3) after a failed write or sync
//! nothing is submitted and nothing becomes durable any more.

use coracle_base::limits::{WRITES_IN_FLIGHT, WRITES_IN_FLIGHT_MAX};
use coracle_io::{Disk, DiskDone, DiskOp, FileId};

use crate::error::WalError;
use crate::format::batch::{BATCH_HEADER_BYTES, BATCH_VERSION, BatchHead, FLAG_MARK, RootHint};
use crate::format::page::Begin;
use crate::format::{Position, Uuid};
use crate::stage::Batch;
use crate::token::{self, Token};
use crate::wal::{BatchSeq, Durable, Flight, Wal};

impl Wal {
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
        let index = self.has_index_to_write().then_some(self.now_us);
        [mark, index, self.prepare.retry_us(), self.pins.deadline_us()].into_iter().flatten().min()
    }

    /// Whether what is appended now goes nowhere before a write completes, unless it fills a batch.
    pub fn is_gathering(&self) -> bool {
        self.in_flight >= WRITES_IN_FLIGHT
    }

    fn step_background<D: Disk>(&mut self, disk: &mut D) {
        self.step_checkpoint();
        self.step_indexes();
        self.step_pins();
        self.prepare_next(disk);
        self.step_carry(disk);
        self.step_remove(disk);
    }

    /// Nothing is on its way, and what was written last is not proven yet.
    fn is_quiet(&self) -> bool {
        let unproven = self.unproven || !self.repeats.is_empty();
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
            let Some(file) = self.files.get(at.file_no).and_then(|file| file.handle) else {
                // The disk makes it, or is full.
                self.kept_back_us.get_or_insert(self.now_us);
                return;
            };
            self.kept_back_us = None;
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

    fn write_op(&mut self, file: FileId, mut batch: Batch) -> DiskOp {
        let uuid = Uuid::of(self.config.seed, batch.at.file_no);
        let mut head = BatchHead {
            version: BATCH_VERSION,
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
            root: self
                .checkpoints
                .newest_root()
                .map_or(RootHint::default(), |at| RootHint::new(batch.at.file_no, at)),
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
        let flight = Flight { seq, end, chain: self.chain, bytes, since_us: self.now_us, done: false };
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
            Some(Token::Read(number)) => {
                self.on_read_done(disk, number, done);
                Ok(())
            }
            Some(Token::Sweep(number)) => {
                self.on_sweep_done(disk, number, done);
                Ok(())
            }
            Some(Token::Remove) => {
                self.remover.on_done(disk, done);
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
            self.refs.hold_pages(self.checkpoints.page_files());
            self.reads.carry_is_due();
        }
        Ok(())
    }

    /// Where a replay could start: after everything that is durable now.
    pub(crate) fn durable_end(&self) -> Begin {
        Begin { at: self.durable_at, seq: self.durable + 1, chain: self.durable_chain }
    }

    pub(crate) fn stop(&mut self, error: WalError) -> WalError {
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

    /// Since when the oldest batch that is not durable is being written, or waits for the file that it goes into, if the
    /// disk has room for one; `None` while nothing is and does.
    pub fn unfinished_since_us(&self) -> Option<u64> {
        let kept_back = self.kept_back_us.filter(|_| !self.prepare.is_full());
        self.flight.front().map(|oldest| oldest.since_us).into_iter().chain(kept_back).min()
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
        let swept = self.sweep.as_ref().and_then(|sweep| sweep.handle());
        for file in self.files.iter().filter_map(|(_, file)| file.handle).chain(swept) {
            disk.start(token::IGNORED, DiskOp::Close { file });
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
