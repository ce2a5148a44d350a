//! One disk operation on its way: a few ring operations, one at a time. Pure: a completion in, the next step out.
//!
//! ```text
//!   Open      openat                         (then the driver asks for the size)
//!   Read      read*                          again after a short one, until the end of the file
//!   Write     write* [fdatasync]             again after a short one; the sync if the strategy asks for it
//!   Fill      fallocate write* [fdatasync]   zeros in pieces, the next when the last is done, so that it never
//!                                            keeps the device busy for longer than one piece takes
//!   SyncDir   openat fsync
//! ```

use std::fs::File;
use std::sync::Arc;

use coracle_base::limits::BLOCK_BYTES;

use super::buffer::Buffer;
use super::ops::{RingOp, Transfer, WriteThrough};
use super::sys;
use crate::{DiskOk, FileMode};

/// Bytes of one zero write: large enough for the device's full speed, short enough not to be noticed (about 300 us).
pub(crate) const FILL_PIECE_BYTES: usize = 1024 * 1024;

/// Times that an interrupted or postponed ring operation is submitted again, and that a transfer may make no progress.
const RETRIES_MAX: u32 = 64;

/// Where the operation stands: what its one ring operation in flight is for.
#[derive(Debug)]
pub(crate) enum Step {
    Open { mode: FileMode },
    Read,
    Write { sync_after: bool },
    SyncAfterWrite { written: Buffer },
    Reserve { zeros: Buffer, sync_after: bool },
    Fill { end: u64, sync_after: bool },
    SyncAfterFill { zeros: Buffer },
    OpenDir,
    Sync,
    Rename,
    Unlink,
    Close,
}

/// A disk operation between two completions.
#[derive(Debug)]
pub(crate) struct Task {
    step: Step,
    retries: u32,
}

/// What a completion leads to.
#[derive(Debug)]
pub(crate) enum Next {
    /// It goes on with another ring operation.
    Push(Task, RingOp),
    /// The end: the file that was asked for, open.
    Opened(File, FileMode),
    /// The end, with the operation's buffer.
    Done(DiskOk, Option<Buffer>),
    /// The end, with an errno.
    Failed(i32, Option<Buffer>),
}

impl Task {
    pub(crate) fn new(step: Step) -> Self {
        Self { step, retries: 0 }
    }

    /// The operation, as an error calls it.
    pub(crate) fn name(&self) -> &'static str {
        match self.step {
            Step::Open { .. } => "open",
            Step::Read => "read",
            Step::Write { .. } | Step::SyncAfterWrite { .. } => "write",
            Step::Reserve { .. } | Step::Fill { .. } | Step::SyncAfterFill { .. } => "fill",
            Step::OpenDir | Step::Sync => "sync",
            Step::Rename => "rename",
            Step::Unlink => "unlink",
            Step::Close => "close",
        }
    }

    /// Whether its buffer is the driver's own (zeros), not the caller's.
    pub(crate) fn is_fill(&self) -> bool {
        matches!(self.step, Step::Reserve { .. } | Step::Fill { .. } | Step::SyncAfterFill { .. })
    }

    /// The ring operation is complete: what now?
    pub(crate) fn on_completion(self, result: i32, op: RingOp) -> Next {
        match -result {
            code @ (libc::EINTR | libc::EAGAIN) => self.retry(code, op),
            // The file system cannot reserve; writing zeros does it too.
            libc::EOPNOTSUPP if matches!(self.step, Step::Reserve { .. }) => self.on_success(0, op),
            code if code > 0 => Next::Failed(code, self.into_buffer(op)),
            _ => self.on_success(result as usize, op),
        }
    }

    fn on_success(self, result: usize, op: RingOp) -> Next {
        let Self { step, retries } = self;
        let next = |step| Self { step, retries };
        match (step, op) {
            (Step::Open { mode }, _) => Next::Opened(sys::adopt_descriptor(result as i32).into(), mode),
            (Step::OpenDir, _) => {
                let file = Arc::new(sys::adopt_descriptor(result as i32).into());
                Next::Push(next(Step::Sync), RingOp::Sync { file, data_only: false })
            }
            (Step::Reserve { zeros, sync_after }, RingOp::Allocate { file, offset, bytes }) => {
                let end = offset + bytes;
                next(Step::Fill { end, sync_after }).fill(file, offset, zeros)
            }
            (Step::SyncAfterWrite { written: buf } | Step::SyncAfterFill { zeros: buf }, _) => {
                Next::Done(DiskOk::Done, Some(buf))
            }
            (step, RingOp::Read(transfer)) => next(step).on_read(result, transfer),
            (step, RingOp::Write(transfer, through)) => next(step).on_written(result, transfer, through),
            _ => Next::Done(DiskOk::Done, None),
        }
    }

    fn on_read(self, bytes: usize, mut transfer: Transfer) -> Next {
        transfer.at += bytes;
        // Only the end of a file is reached at nothing or at part of a block; O_DIRECT could not go on from there.
        let at_end = bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES);
        if at_end || transfer.at == transfer.buf.len() {
            return Next::Done(DiskOk::Read { bytes: transfer.at }, Some(transfer.buf));
        }
        Next::Push(self, RingOp::Read(transfer))
    }

    fn on_written(self, bytes: usize, mut transfer: Transfer, through: WriteThrough) -> Next {
        if transfer.at + bytes == transfer.buf.len() {
            return self.on_all_written(transfer);
        }
        // Short. O_DIRECT goes on at a block's start, so a block that was written in part is written again.
        let progress = bytes - bytes % BLOCK_BYTES;
        transfer.at += progress;
        let rest = RingOp::Write(transfer, through);
        if progress == 0 { self.retry(libc::EIO, rest) } else { Next::Push(self, rest) }
    }

    fn on_all_written(self, Transfer { file, offset, buf, .. }: Transfer) -> Next {
        match self.step {
            Step::Write { sync_after: true } => self.sync(file, Step::SyncAfterWrite { written: buf }),
            Step::Fill { end, sync_after } => match offset + buf.len() as u64 {
                done if done < end => self.fill(file, done, buf),
                _ if sync_after => self.sync(file, Step::SyncAfterFill { zeros: buf }),
                _ => Next::Done(DiskOk::Done, Some(buf)),
            },
            _ => Next::Done(DiskOk::Done, Some(buf)),
        }
    }

    fn sync(self, file: Arc<File>, step: Step) -> Next {
        Next::Push(Self { step, ..self }, RingOp::Sync { file, data_only: true })
    }

    fn fill(self, file: Arc<File>, offset: u64, mut zeros: Buffer) -> Next {
        let Step::Fill { end, .. } = self.step else { return Next::Done(DiskOk::Done, Some(zeros)) };
        zeros.resize(FILL_PIECE_BYTES.min((end - offset) as usize));
        // Not written through, even in a durable file: one sync at the end, not one a piece.
        let piece = Transfer { file, offset, buf: zeros, at: 0 };
        Next::Push(self, RingOp::Write(piece, WriteThrough::No))
    }

    /// Submits the same again, so many times; `code` is the error to give up with.
    fn retry(mut self, code: i32, op: RingOp) -> Next {
        if self.retries == RETRIES_MAX {
            return Next::Failed(code, self.into_buffer(op));
        }
        self.retries += 1;
        Next::Push(self, op)
    }

    fn into_buffer(self, op: RingOp) -> Option<Buffer> {
        match self.step {
            Step::SyncAfterWrite { written: buf }
            | Step::SyncAfterFill { zeros: buf }
            | Step::Reserve { zeros: buf, .. } => Some(buf),
            _ => op.into_buffer(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(blocks: usize) -> Transfer {
        let mut buf = Buffer::with_capacity(blocks * BLOCK_BYTES);
        buf.resize(blocks * BLOCK_BYTES);
        // Never touched: the pure task only passes it on.
        let file = Arc::new(File::open("/dev/null").unwrap());
        Transfer { file, offset: BLOCK_BYTES as u64, buf, at: 0 }
    }

    fn write(blocks: usize) -> (Task, RingOp) {
        let write = RingOp::Write(transfer(blocks), WriteThrough::Data);
        (Task::new(Step::Write { sync_after: false }), write)
    }

    #[test]
    fn a_short_write_goes_on_at_a_block_and_completes_only_at_the_end() {
        let (task, op) = write(3);
        let Next::Push(task, op) = task.on_completion(BLOCK_BYTES as i32 + 100, op) else {
            panic!("complete")
        };
        let RingOp::Write(rest, WriteThrough::Data) = &op else { panic!("{op:?}") };
        assert_eq!((rest.offset, rest.at), (BLOCK_BYTES as u64, BLOCK_BYTES));
        let end = task.on_completion(2 * BLOCK_BYTES as i32, op);
        assert!(matches!(end, Next::Done(DiskOk::Done, Some(buf)) if buf.len() == 3 * BLOCK_BYTES));
    }

    #[test]
    fn interrupted_is_tried_again_but_not_for_ever() {
        let (mut task, mut op) = write(1);
        for _ in 0..RETRIES_MAX {
            let Next::Push(same_task, same_op) = task.on_completion(-libc::EAGAIN, op) else {
                panic!("gave up")
            };
            (task, op) = (same_task, same_op);
        }
        assert!(matches!(task.on_completion(-libc::EINTR, op), Next::Failed(libc::EINTR, Some(_))));
    }

    #[test]
    fn a_write_that_makes_no_progress_ends() {
        let (mut task, mut op) = write(1);
        for _ in 0..RETRIES_MAX {
            let Next::Push(same_task, same_op) = task.on_completion(0, op) else { panic!("gave up") };
            (task, op) = (same_task, same_op);
        }
        assert!(matches!(task.on_completion(0, op), Next::Failed(libc::EIO, Some(_))));
    }

    #[test]
    fn a_device_error_is_never_tried_again() {
        let (task, op) = write(1);
        assert!(matches!(task.on_completion(-libc::EIO, op), Next::Failed(libc::EIO, Some(_))));
    }

    #[test]
    fn a_short_read_goes_on_until_the_end_of_the_file() {
        let read = RingOp::Read(transfer(4));
        let next = Task::new(Step::Read).on_completion(2 * BLOCK_BYTES as i32, read);
        let Next::Push(task, op) = next else { panic!("complete") };
        let end = task.on_completion(100, op);
        assert!(matches!(end, Next::Done(DiskOk::Read { bytes }, Some(_)) if bytes == 2 * BLOCK_BYTES + 100));
    }

    #[test]
    fn a_write_with_a_sync_after_it_is_not_done_before_the_sync() {
        let task = Task::new(Step::Write { sync_after: true });
        let next = task.on_completion(BLOCK_BYTES as i32, RingOp::Write(transfer(1), WriteThrough::No));
        let Next::Push(task, op) = next else { panic!("complete without a sync") };
        assert!(matches!(op, RingOp::Sync { data_only: true, .. }));
        assert!(matches!(task.on_completion(-libc::EIO, op), Next::Failed(libc::EIO, Some(_))));
    }

    #[test]
    fn a_fill_writes_zeros_piece_by_piece_then_syncs_even_if_nothing_can_be_reserved() {
        let file = transfer(1).file;
        let bytes = FILL_PIECE_BYTES as u64 + BLOCK_BYTES as u64;
        let mut zeros = Buffer::with_capacity(FILL_PIECE_BYTES);
        zeros.resize(FILL_PIECE_BYTES);
        zeros.fill(7); // what an earlier user left in it
        zeros.clear();
        let reserve = RingOp::Allocate { file, offset: 0, bytes };
        let task = Task::new(Step::Reserve { zeros, sync_after: true });
        let mut next = task.on_completion(-libc::EOPNOTSUPP, reserve);
        let mut pieces = Vec::new();
        while let Next::Push(task, op) = next {
            assert!(task.is_fill());
            let RingOp::Write(piece, WriteThrough::No) = &op else {
                assert!(matches!(op, RingOp::Sync { data_only: true, .. }));
                next = task.on_completion(0, op);
                pieces.push((bytes, 0));
                continue;
            };
            assert!(piece.buf.iter().all(|byte| *byte == 0));
            pieces.push((piece.offset, piece.buf.len()));
            let written = piece.buf.len() as i32;
            next = task.on_completion(written, op);
        }
        assert!(matches!(next, Next::Done(DiskOk::Done, _)));
        assert_eq!(pieces, [(0, FILL_PIECE_BYTES), (FILL_PIECE_BYTES as u64, BLOCK_BYTES), (bytes, 0)]);
    }
}
