//! How a file becomes ready for use, one step at a time and off the hot path, so that a full log rolls over to the next
//! one without any operation but the batch's own write.
//!
//! ```text
//!   a dead file  close, rename to spare, sync the directory ─┐
//!   any spare    open ←──────────────────────────────────────┘
//!                (fill with zeros), head, sync, close, rename to its number, sync the directory, open to be written to
//! ```
//!
//! Crash-safe because a file has its number only after its head is durable, and loses its old number, durably, before
//! its head changes: a name and a head that disagree are never our doing.

use std::path::{Path, PathBuf};

use coracle_base::limits::WRITES_IN_FLIGHT_MAX;
use coracle_io::{Disk, DiskDone, DiskError, DiskOk, DiskOp, FileId, FileMode};

use crate::error::WalError;
use crate::files::{log_path, spare_path};
use crate::format::Uuid;
use crate::format::head::{HEAD_AREA_BYTES, Head, Prev};
use crate::token;
use crate::wal::Wal;

/// Zeros are written in steps of this, so that a batch never waits behind more.
const FILL_STEP_BYTES: u64 = 512 * 1024;
/// After the disk was full, wait this long before trying again.
const FULL_RETRY_US: u64 = 1_000_000;

/// What a file is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nothing: a new one.
    New,
    /// A spare that is already called so.
    Spare { path: PathBuf, bytes: u64 },
    /// A file of the log that holds nothing any more.
    Dead { file_no: u64, handle: Option<FileId>, bytes: u64 },
}

/// What the operation in flight is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    CloseDead,
    RenameAway,
    SyncAway,
    OpenSpare,
    Fill { upto: u64 },
    Head,
    Sync,
    Close,
    RenameInto,
    SyncInto,
    Open,
}

#[derive(Debug)]
struct Job {
    head: Head,
    source: Source,
    /// The spare's path, until it gets its number.
    path: PathBuf,
    step: Step,
    file: Option<FileId>,
}

/// Prepares one file at a time.
#[derive(Debug)]
pub(crate) struct Preparer {
    dir: PathBuf,
    file_bytes: u64,
    job: Option<Job>,
    /// The disk was full: not before this time again.
    full_until_us: Option<u64>,
    /// A spare that was begun when the disk became full.
    unfinished: Option<Source>,
    pub(crate) prefill_bytes: u64,
}

/// A file that is ready.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) head: Head,
    pub(crate) file: FileId,
    pub(crate) bytes: u64,
}

impl Preparer {
    pub(crate) fn new(dir: &Path, file_bytes: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            file_bytes,
            job: None,
            full_until_us: None,
            unfinished: None,
            prefill_bytes: 0,
        }
    }

    /// A spare that was begun when the disk became full.
    pub(crate) fn take_unfinished(&mut self) -> Option<Source> {
        self.unfinished.take()
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.job.is_some()
    }

    /// Whether the disk was full, and not all files that should be ready are since.
    pub(crate) fn is_full(&self) -> bool {
        self.full_until_us.is_some()
    }

    /// All files that should be ready are.
    pub(crate) fn has_room(&mut self) {
        self.full_until_us = None;
    }

    /// Whether a preparation may begin.
    pub(crate) fn may_begin(&self, now_us: u64) -> bool {
        self.job.is_none() && self.full_until_us.is_none_or(|until| until <= now_us)
    }

    /// When to try again after the disk was full.
    pub(crate) fn retry_us(&self) -> Option<u64> {
        if self.job.is_some() { None } else { self.full_until_us }
    }

    /// Begins to make the file of this head.
    pub(crate) fn begin<D: Disk>(&mut self, disk: &mut D, head: Head, source: Source) {
        let own_path = spare_path(&self.dir, head.file_no);
        let (path, step) = match &source {
            Source::New => (own_path, Step::OpenSpare),
            Source::Spare { path, .. } => (path.clone(), Step::OpenSpare),
            Source::Dead { handle: Some(_), .. } => (own_path, Step::CloseDead),
            Source::Dead { handle: None, .. } => (own_path, Step::RenameAway),
        };
        self.job = Some(Job { head, source, path, step, file: None });
        self.start(disk);
    }

    /// Starts the operation of the job's step.
    fn start<D: Disk>(&mut self, disk: &mut D) {
        let Some(job) = &self.job else { return };
        let file = job.file.unwrap_or(FileId(u32::MAX));
        let numbered = log_path(&self.dir, job.head.file_no);
        let op = match (job.step, &job.source) {
            (Step::CloseDead, Source::Dead { handle: Some(file), .. }) => DiskOp::Close { file: *file },
            (Step::RenameAway, Source::Dead { file_no, .. }) => {
                DiskOp::Rename { from: log_path(&self.dir, *file_no), to: job.path.clone() }
            }
            (Step::CloseDead | Step::RenameAway, _) => return,
            (Step::SyncAway | Step::SyncInto, _) => DiskOp::SyncDir { path: self.dir.clone() },
            (Step::OpenSpare, _) => DiskOp::Open { path: job.path.clone(), mode: FileMode::Write },
            (Step::Fill { upto }, _) => {
                let offset = fill_start(upto);
                DiskOp::Fill { file, offset, bytes: upto - offset }
            }
            (Step::Head, _) => {
                let mut buf = disk.buffer(HEAD_AREA_BYTES as usize);
                job.head.encode(&mut buf);
                DiskOp::Write { file, offset: 0, buf }
            }
            (Step::Sync, _) => DiskOp::Sync { file },
            (Step::Close, _) => DiskOp::Close { file },
            (Step::RenameInto, _) => DiskOp::Rename { from: job.path.clone(), to: numbered },
            (Step::Open, _) => DiskOp::Open { path: numbered, mode: FileMode::Durable },
        };
        disk.start(token::PREPARE, op);
    }

    /// The operation in flight has completed. Returns the file if it is ready now.
    ///
    /// # Errors
    /// Anything but a full disk, which only puts it off.
    pub(crate) fn on_done<D: Disk>(
        &mut self,
        disk: &mut D,
        done: DiskDone,
        now_us: u64,
    ) -> Result<Option<Ready>, DiskError> {
        if let Some(buf) = done.buf {
            disk.recycle(buf);
        }
        let Some(job) = &mut self.job else { return Ok(None) };
        let ok = match done.result {
            Ok(ok) => ok,
            Err(DiskError::Full { .. }) => {
                self.put_off(disk, now_us);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if let DiskOk::Opened { file, .. } = ok {
            job.file = Some(file);
        }
        match job.step {
            Step::Fill { upto } => self.prefill_bytes += upto - fill_start(upto),
            Step::Close => job.file = None,
            _ => {}
        }
        match next_step(job, self.file_bytes) {
            Some(step) => {
                job.step = step;
                self.start(disk);
                Ok(None)
            }
            None => Ok(self.job.take().and_then(|job| {
                let bytes = self.file_bytes.max(job.source.bytes());
                job.file.map(|file| Ready { head: job.head, file, bytes })
            })),
        }
    }

    /// The disk is full: what was made so far stays as a spare, and is filled again at the next try.
    fn put_off<D: Disk>(&mut self, disk: &mut D, now_us: u64) {
        self.full_until_us = Some(now_us + FULL_RETRY_US);
        let Some(job) = self.job.take() else { return };
        self.unfinished = Some(Source::Spare { path: job.path, bytes: 0 });
        if let Some(file) = job.file {
            // Nobody waits for it: the handle is only given back.
            disk.start(token::IGNORED, DiskOp::Close { file });
        }
    }
}

impl Source {
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::New => 0,
            Self::Spare { bytes, .. } | Self::Dead { bytes, .. } => *bytes,
        }
    }
}

/// Where the step of filling that ends at `upto` starts.
fn fill_start(upto: u64) -> u64 {
    upto.saturating_sub(1) / FILL_STEP_BYTES * FILL_STEP_BYTES
}

fn next_step(job: &Job, file_bytes: u64) -> Option<Step> {
    Some(match job.step {
        Step::CloseDead => Step::RenameAway,
        Step::RenameAway => Step::SyncAway,
        Step::SyncAway => Step::OpenSpare,
        Step::OpenSpare if job.source.bytes() >= file_bytes => Step::Head,
        Step::OpenSpare => Step::Fill { upto: FILL_STEP_BYTES.min(file_bytes) },
        Step::Fill { upto } if upto < file_bytes => {
            Step::Fill { upto: (upto + FILL_STEP_BYTES).min(file_bytes) }
        }
        Step::Fill { .. } => Step::Head,
        Step::Head => Step::Sync,
        Step::Sync => Step::Close,
        Step::Close => Step::RenameInto,
        Step::RenameInto => Step::SyncInto,
        Step::SyncInto => Step::Open,
        Step::Open => return None,
    })
}

impl Wal {
    /// Begins to prepare the next file, if fewer are ready than should be.
    pub(crate) fn prepare_next<D: Disk>(&mut self, disk: &mut D) {
        let wanted = self.stage_file + self.config.spares as u64;
        if self.ready_upto >= wanted {
            return self.prepare.has_room();
        }
        if !self.prepare.may_begin(self.now_us) {
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
            file_bytes: self.config.file_bytes,
            prev: Some(Prev { file_no: self.ready_upto, uuid: prev_uuid, cut: None }),
        };
        self.prepare.begin(disk, head, source);
    }

    fn choose_source(&mut self) -> Source {
        if let Some(source) = self.leftovers.pop() {
            return source;
        }
        // A file that is there before one that is still to be filled: the disk may be full.
        let is_kept = self.dead_is_kept && self.prepare.is_full() && self.ready_upto > self.stage_file;
        let dead = self.files.dead(self.reusable_before(), self.durable, &self.refs);
        let Some(file_no) = dead.filter(|_| !is_kept) else {
            return self.prepare.take_unfinished().unwrap_or(Source::New);
        };
        self.forget_file(file_no);
        self.stats.files_reused += 1;
        let file = self.files.remove(file_no);
        let (handle, bytes) = file.map_or((None, 0), |file| (file.handle, file.bytes));
        Source::Dead { file_no, handle, bytes }
    }

    pub(crate) fn on_prepared<D: Disk>(&mut self, disk: &mut D, done: DiskDone) -> Result<(), WalError> {
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
}
