//! Files that are not needed any more leave the disk: segments that hold nothing, and files of the log beyond those that
//! are kept for use again. One at a time, since unlinking is slow, and never on the write path.
//!
//! Invariant: a file is removed only when the durable log has nothing in it and nobody reads it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use coracle_io::{Disk, DiskDone, DiskOp, FileId};

use crate::files::log_path;
use crate::token;
use crate::wal::Wal;

/// What is to be removed.
#[derive(Debug, Default)]
pub(crate) struct Remover {
    /// Segments that a crash left behind and nothing names.
    pub(crate) orphans: VecDeque<PathBuf>,
    /// The operation in flight is the closing of this file.
    closing: Option<PathBuf>,
    busy: bool,
    removed: u64,
}

impl Remover {
    pub(crate) fn new(orphans: Vec<PathBuf>) -> Self {
        Self { orphans: orphans.into(), ..Self::default() }
    }

    pub(crate) fn removed(&self) -> u64 {
        self.removed
    }

    fn begin<D: Disk>(&mut self, disk: &mut D, path: PathBuf, handle: Option<FileId>) {
        self.busy = true;
        match handle {
            Some(file) => {
                self.closing = Some(path);
                disk.start(token::REMOVE, DiskOp::Close { file });
            }
            None => disk.start(token::REMOVE, DiskOp::Unlink { path }),
        }
    }

    /// The operation in flight has completed.
    pub(crate) fn on_done<D: Disk>(&mut self, disk: &mut D, done: DiskDone) {
        if let Some(path) = self.closing.take() {
            return disk.start(token::REMOVE, DiskOp::Unlink { path });
        }
        self.busy = false;
        self.removed += 1;
        if let Err(error) = done.result {
            // It holds nothing: the next start finds it and removes it.
            tracing::warn!(%error, "a file that is not needed any more could not be removed");
        }
    }
}

impl Wal {
    /// Begins to remove the next file, if there is one.
    pub(crate) fn step_remove<D: Disk>(&mut self, disk: &mut D) {
        if self.remover.busy {
            return;
        }
        if let Some(path) = self.remover.orphans.pop_front() {
            return self.remover.begin(disk, path, None);
        }
        let dead = self.files.dead_segment(self.moving_to, self.durable, &self.refs);
        if let Some(file_no) = dead {
            self.remove_file(disk, file_no);
        }
    }

    /// Begins to remove one file of the log that holds nothing, if more than `keep` of them wait to be used again and none
    /// is being removed. Says whether it did.
    pub fn remove_dead<D: Disk>(&mut self, disk: &mut D, keep: usize) -> bool {
        if self.remover.busy {
            return false;
        }
        let reusable_before = self.reusable_before();
        let dead = self.files.dead_beyond(keep, reusable_before, self.durable, &self.refs);
        if let Some(file_no) = dead {
            self.remove_file(disk, file_no);
        }
        dead.is_some()
    }

    /// Takes a file out of the log that holds nothing and has at least so many bytes, to be used for something else: where
    /// it lies, and its handle, which is to be closed before it is renamed.
    pub fn take_dead(&mut self, least_bytes: u64) -> Option<(PathBuf, Option<FileId>)> {
        let file_no = self.files.dead(self.checkpoints.needed_from(), self.durable, &self.refs)?;
        self.files.get(file_no).filter(|file| file.bytes >= least_bytes)?;
        self.forget_file(file_no);
        let handle = self.files.remove(file_no).and_then(|file| file.handle);
        Some((log_path(&self.config.dir, file_no), handle))
    }

    /// While the disk is full, files that hold nothing are left for [`take_dead`](Self::take_dead), as long as another one
    /// is ready.
    pub fn keep_dead(&mut self, keep: bool) {
        self.dead_is_kept = keep;
    }

    /// The log's own directory, relative to the disk's.
    pub fn dir(&self) -> &Path {
        &self.config.dir
    }

    fn remove_file<D: Disk>(&mut self, disk: &mut D, file_no: u64) {
        self.forget_file(file_no);
        let handle = self.files.remove(file_no).and_then(|file| file.handle);
        self.remover.begin(disk, log_path(&self.config.dir, file_no), handle);
    }
}
