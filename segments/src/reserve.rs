//! A file that is kept so that compaction can go on when the disk is full: its blocks are there already.
//!
//! ```text
//!   looked at: large enough ──────────────────────────────────────────────→ there
//!   else       a file of the log that holds nothing: close → rename → sync the directory → there
//!              or, if the disk has room:             fill → sync → close → sync the directory → there
//!   there      a compaction that found the disk full writes its segment into it, and renames it (compact.rs) → looked at
//! ```
//!
//! What lies in it means nothing, so no crash can harm it: the next start finds it, too short or whole, and goes on from
//! there. A file of the log is written to only when its new name is durable: under its old one it would be damage.
//!
//! While it is missing on a full disk, files that become free come here first: they were freed by what it was for.

use std::path::{Path, PathBuf};

use coracle_base::limits::BLOCK_BYTES;
use coracle_io::{DiskOk, DiskOp, FileId, FileMode};
use coracle_wal::Wal;

/// Zeros are written in steps of this.
const FILL_STEP_BYTES: u64 = 512 * 1024;
/// After it could not be had, it is tried again after so long.
const RETRY_US: u64 = 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Look,
    CloseLooked { bytes: u64 },
    CloseDead,
    Rename,
    Fill { upto: u64 },
    Sync,
    CloseFilled,
    SyncDir,
    CloseFailed,
    Remove,
}

/// The reserve of one log.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    dir: PathBuf,
    /// Its size at least; 0: there is to be none.
    bytes: u64,
    is_there: bool,
    step: Step,
    file: Option<FileId>,
    dead: Option<(PathBuf, Option<FileId>)>,
    not_before_us: u64,
    /// Tries in a row that did not bring it about.
    failures: u32,
}

impl Reserve {
    pub(crate) fn new(bytes: u64) -> Self {
        Self {
            path: PathBuf::new(),
            dir: PathBuf::new(),
            bytes,
            is_there: false,
            step: Step::Look,
            file: None,
            dead: None,
            not_before_us: 0,
            failures: 0,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn is_there(&self) -> bool {
        self.is_there
    }

    /// It was used, or is not what it should be.
    pub(crate) fn is_gone(&mut self, wal: &mut Wal) {
        self.is_there = false;
        wal.keep_dead(true);
    }

    /// Begins to see to it that it is there, if it is time for that: the first operation.
    pub(crate) fn begin(&mut self, wal: &mut Wal, now_us: u64) -> Option<DiskOp> {
        if self.is_there || self.bytes == 0 || now_us < self.not_before_us {
            return None;
        }
        wal.keep_dead(true);
        (self.dir, self.path) = (wal.dir().to_owned(), wal.dir().join("compaction.reserve"));
        // Counts as failed until it is there: each try may write, and remove, as much as the reserve has.
        self.not_before_us = now_us + (RETRY_US << self.failures.min(6));
        self.failures += 1;
        self.step = Step::Look;
        Some(DiskOp::Open { path: self.path.clone(), mode: FileMode::Write })
    }

    /// An operation went well: the next one, if there is one.
    pub(crate) fn on_ok(&mut self, wal: &mut Wal, ok: DiskOk) -> Option<DiskOp> {
        let file = self.file.unwrap_or(FileId(u32::MAX));
        let (step, op) = match self.step {
            Step::Look => {
                let DiskOk::Opened { file, bytes } = ok else { return None };
                self.file = Some(file);
                let bytes = if bytes.is_multiple_of(BLOCK_BYTES as u64) { bytes } else { 0 };
                self.dead = if bytes < self.bytes { wal.take_dead(self.bytes) } else { None };
                if bytes >= self.bytes || self.dead.is_some() || wal.room().is_some() {
                    (Step::CloseLooked { bytes }, DiskOp::Close { file })
                } else {
                    self.fill(file, 0)
                }
            }
            Step::CloseLooked { bytes } => {
                self.file = None;
                match &self.dead {
                    Some((_, Some(file))) => (Step::CloseDead, DiskOp::Close { file: *file }),
                    Some((from, None)) => (Step::Rename, self.rename(from.clone())),
                    // Too short, and no room for more: it takes none.
                    None if bytes < self.bytes => (Step::Remove, DiskOp::Unlink { path: self.path.clone() }),
                    // A process that was killed may have given it its name and not made that durable.
                    None => (Step::SyncDir, DiskOp::SyncDir { path: self.dir.clone() }),
                }
            }
            Step::CloseDead => {
                let (from, _) = self.dead.as_ref()?;
                (Step::Rename, self.rename(from.clone()))
            }
            Step::Rename | Step::CloseFilled => {
                (self.dead, self.file) = (None, None);
                (Step::SyncDir, DiskOp::SyncDir { path: self.dir.clone() })
            }
            Step::Fill { upto } if upto < self.bytes => self.fill(file, upto),
            Step::Fill { .. } => (Step::Sync, DiskOp::Sync { file }),
            Step::Sync => (Step::CloseFilled, DiskOp::Close { file }),
            Step::SyncDir => return self.done(wal),
            Step::CloseFailed => {
                self.file = None;
                (Step::Remove, DiskOp::Unlink { path: self.path.clone() })
            }
            Step::Remove => return None,
        };
        self.step = step;
        Some(op)
    }

    fn done(&mut self, wal: &mut Wal) -> Option<DiskOp> {
        self.is_there = true;
        self.failures = 0;
        wal.keep_dead(false);
        None
    }

    fn fill(&self, file: FileId, from: u64) -> (Step, DiskOp) {
        let upto = (from + FILL_STEP_BYTES).min(self.bytes);
        (Step::Fill { upto }, DiskOp::Fill { file, offset: from, bytes: upto - from })
    }

    fn rename(&self, from: PathBuf) -> DiskOp {
        DiskOp::Rename { from, to: self.path.clone() }
    }

    /// An operation failed: what is still to be done. It is tried again later, and nobody waits for it.
    pub(crate) fn on_error(&mut self, wal: &mut Wal) -> Option<DiskOp> {
        // A file that was taken for it is lost to this process; the next one finds it.
        self.dead = None;
        wal.keep_dead(false);
        let file = self.file.take()?;
        self.step = Step::CloseFailed;
        Some(DiskOp::Close { file })
    }
}
