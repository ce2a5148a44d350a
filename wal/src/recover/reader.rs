//! Blocking reads for recovery: a window that slides along a file, and single blocks around a place that cannot be read.
//! Whoever goes on where the window ends has the next part read ahead, so that the disk works while records are replayed.
//!
//! Invariant: but for the part that is read ahead nothing is in flight, and [`Readers::close`] waits for that.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coracle_base::limits::{BATCH_BYTES_MAX, BLOCK_BYTES};
use coracle_io::disk::run;
use coracle_io::{Buffer, Disk, DiskDone, DiskError, DiskOk, DiskOp, FileId, FileMode};

use crate::files::log_path;
use crate::token;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// What is read at once: no less than the largest batch.
const PART_BYTES: u64 = BATCH_BYTES_MAX as u64;
/// Files open at a time, whatever the size of the log: a process has only so many.
const OPEN_MAX: usize = 64;

/// Files of the log, opened as they are needed.
pub(crate) struct Readers<'d, D: Disk> {
    pub(crate) disk: &'d mut D,
    dir: PathBuf,
    open: BTreeMap<u64, Open>,
    /// The window: bytes of file `of` from `start` on.
    held: Vec<u8>,
    of: u64,
    start: u64,
    /// The buffer that nothing is read into.
    spare: Option<Buffer>,
    ahead: Option<Ahead>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    file: FileId,
    bytes: u64,
}

/// A part that is being read, or was.
struct Ahead {
    file_no: u64,
    offset: u64,
    done: Option<DiskDone>,
}

impl<'d, D: Disk> Readers<'d, D> {
    pub(crate) fn new(disk: &'d mut D, dir: &Path) -> Self {
        let dir = dir.to_owned();
        Self { disk, dir, open: BTreeMap::new(), held: Vec::new(), of: 0, start: 0, spare: None, ahead: None }
    }

    /// Up to `len` bytes of a file from `offset`; fewer where it ends.
    pub(crate) fn get(&mut self, file_no: u64, offset: u64, len: usize) -> Result<&[u8], DiskError> {
        let end = offset + len as u64;
        if self.of != file_no || offset < self.start || end > self.held_end() {
            self.slide(file_no, offset, end).inspect_err(|_| self.of = 0)?;
        }
        let from = ((offset - self.start) as usize).min(self.held.len());
        Ok(&self.held[from..(from + len).min(self.held.len())])
    }

    fn held_end(&self) -> u64 {
        self.start + self.held.len() as u64
    }

    /// Moves the window to where it holds these bytes, as far as the file has them.
    fn slide(&mut self, file_no: u64, offset: u64, end: u64) -> Result<(), DiskError> {
        let goes_on = self.of == file_no && (self.start..=self.held_end()).contains(&offset);
        if goes_on {
            let over = (offset - self.start) / BLOCK * BLOCK;
            self.held.drain(..over as usize);
            self.start += over;
        } else {
            self.held.clear();
            (self.of, self.start) = (file_no, offset / BLOCK * BLOCK);
        }
        let Some(Open { file, bytes }) = self.opened(file_no)? else { return Ok(()) };
        let upto = end.min(bytes);
        while self.held_end() < upto {
            let at = self.held_end();
            let wide = PART_BYTES.max((upto - at).next_multiple_of(BLOCK));
            let rest = (bytes - at).next_multiple_of(BLOCK);
            let got = match self.part(file_no, file, at, wide.min(rest)) {
                Err(DiskError::Crashed) => return Err(DiskError::Crashed),
                Err(_) => self.part(file_no, file, at, (upto - at).next_multiple_of(BLOCK))?,
                Ok(got) => got,
            };
            if got == 0 || !got.is_multiple_of(BLOCK) {
                break;
            }
        }
        if goes_on && self.held_end() < bytes && self.ahead.is_none() {
            self.read_ahead(file_no, file, (bytes - self.held_end()).min(PART_BYTES));
        }
        Ok(())
    }

    /// Adds a part to the window: the one that was read ahead, if it is that. Returns its bytes.
    fn part(&mut self, file_no: u64, file: FileId, offset: u64, bytes: u64) -> Result<u64, DiskError> {
        self.settle()?;
        let ahead = self.ahead.take();
        let is_it = ahead.as_ref().is_some_and(|one| (one.file_no, one.offset) == (file_no, offset));
        let done = ahead.and_then(|one| one.done);
        let (result, buf) = match done {
            Some(DiskDone { result: Ok(ok), buf, .. }) if is_it => (ok, buf),
            other => {
                let unused = other.and_then(|done| done.buf).or(self.spare.take());
                let buf = self.buffer(unused, bytes as usize);
                self.run(DiskOp::Read { file, offset, buf })?
            }
        };
        let got = match result {
            DiskOk::Read { bytes } => bytes,
            _ => 0,
        };
        let Some(buf) = buf else { return Ok(0) };
        self.held.extend_from_slice(&buf[..got.min(buf.len())]);
        self.spare = Some(buf);
        Ok(got as u64)
    }

    fn buffer(&mut self, unused: Option<Buffer>, bytes: usize) -> Buffer {
        let mut buf = unused.filter(|buf| buf.capacity() >= bytes).unwrap_or_else(|| self.disk.buffer(bytes));
        buf.resize(bytes);
        buf
    }

    fn read_ahead(&mut self, file_no: u64, file: FileId, bytes: u64) {
        let offset = self.held_end();
        let unused = self.spare.take();
        let buf = self.buffer(unused, bytes.next_multiple_of(BLOCK) as usize);
        self.disk.start(token::IGNORED, DiskOp::Read { file, offset, buf });
        // Whoever waits for it submits it, too; an error now is that one's.
        let _ = self.disk.submit();
        self.ahead = Some(Ahead { file_no, offset, done: None });
    }

    /// Waits for what is being read ahead.
    fn settle(&mut self) -> Result<(), DiskError> {
        let Some(ahead) = &mut self.ahead else { return Ok(()) };
        let mut done = Vec::new();
        while ahead.done.is_none() {
            self.disk.wait()?;
            self.disk.completions(&mut done);
            ahead.done = done.pop();
        }
        Ok(())
    }

    fn opened(&mut self, file_no: u64) -> Result<Option<Open>, DiskError> {
        if let Some(open) = self.open.get(&file_no) {
            return Ok(Some(*open));
        }
        self.make_room()?;
        let op = DiskOp::Open { path: log_path(&self.dir, file_no), mode: FileMode::Read };
        let DiskOk::Opened { file, bytes } = self.run(op)?.0 else { return Ok(None) };
        Ok(Some(*self.open.entry(file_no).or_insert(Open { file, bytes })))
    }

    /// Closes the file with the lowest number if too many are open: reading mostly goes up.
    fn make_room(&mut self) -> Result<(), DiskError> {
        if self.open.len() < OPEN_MAX {
            return Ok(());
        }
        if let Some((_, Open { file, .. })) = self.open.pop_first() {
            self.run(DiskOp::Close { file })?;
        }
        Ok(())
    }

    /// Runs one operation; none if an earlier one never ended, for then the disk is gone.
    fn run(&mut self, op: DiskOp) -> Result<(DiskOk, Option<Buffer>), DiskError> {
        self.settle()?;
        if self.disk.in_flight() > 0 {
            return Err(DiskError::Crashed);
        }
        run(self.disk, op)
    }

    /// Closes all files and gives the buffers back.
    pub(crate) fn close(mut self) -> Result<(), DiskError> {
        let files: Vec<_> = self.open.values().map(|open| open.file).collect();
        for file in files {
            self.run(DiskOp::Close { file })?;
        }
        let ahead = self.ahead.take().and_then(|one| one.done).and_then(|done| done.buf);
        self.spare.into_iter().chain(ahead).for_each(|buf| self.disk.recycle(buf));
        Ok(())
    }
}
