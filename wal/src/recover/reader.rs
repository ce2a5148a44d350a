//! Blocking reads for recovery: large windows, and single blocks around a place that cannot be read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coracle_base::limits::{BATCH_BYTES_MAX, BLOCK_BYTES};
use coracle_io::disk::run;
use coracle_io::{Buffer, Disk, DiskError, DiskOk, DiskOp, FileId, FileMode};

use crate::files::log_path;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Files open at a time, whatever the size of the log: a process has only so many.
const OPEN_MAX: usize = 64;

/// Files of the log, opened as they are needed.
pub(crate) struct Readers<'d, D: Disk> {
    pub(crate) disk: &'d mut D,
    dir: PathBuf,
    open: BTreeMap<u64, Window>,
    buf: Option<Buffer>,
    /// The file that `buf` has bytes of.
    of: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Window {
    file: Option<FileId>,
    file_bytes: u64,
    start: u64,
    bytes: usize,
}

impl<'d, D: Disk> Readers<'d, D> {
    pub(crate) fn new(disk: &'d mut D, dir: &Path) -> Self {
        Self { disk, dir: dir.to_owned(), open: BTreeMap::new(), buf: None, of: 0 }
    }

    /// Up to `len` bytes of a file from `offset`; fewer where it ends.
    pub(crate) fn get(&mut self, file_no: u64, offset: u64, len: usize) -> Result<&[u8], DiskError> {
        let held = self.open.get(&file_no).copied().unwrap_or_default();
        let end = offset + len as u64;
        let inside = self.of == file_no && held.start <= offset && end <= held.start + held.bytes as u64;
        if !inside {
            let start = offset / BLOCK * BLOCK;
            let wide = (BATCH_BYTES_MAX as u64).max((end - start).next_multiple_of(BLOCK));
            match self.fill(file_no, start, wide) {
                Ok(()) => {}
                Err(DiskError::Crashed) => return Err(DiskError::Crashed),
                Err(_) => self.fill(file_no, start, (end - start).next_multiple_of(BLOCK))?,
            }
        }
        let held = self.open.get(&file_no).copied().unwrap_or_default();
        let bytes = self.buf.as_deref().unwrap_or_default();
        let from = ((offset - held.start) as usize).min(held.bytes);
        Ok(&bytes[from..(from + len).min(held.bytes)])
    }

    fn fill(&mut self, file_no: u64, start: u64, bytes: u64) -> Result<(), DiskError> {
        let window = match self.open.get(&file_no) {
            Some(window) => Window { start, bytes: 0, ..*window },
            None => {
                self.make_room()?;
                let op = DiskOp::Open { path: log_path(&self.dir, file_no), mode: FileMode::Read };
                let DiskOk::Opened { file, bytes } = self.run(op)?.0 else { return Ok(()) };
                Window { file: Some(file), file_bytes: bytes, start, bytes: 0 }
            }
        };
        self.of = 0;
        self.open.insert(file_no, window);
        let bytes = bytes.min(window.file_bytes.saturating_sub(start).next_multiple_of(BLOCK)) as usize;
        let Some(file) = window.file.filter(|_| bytes > 0) else { return Ok(()) };
        let mut buf = match self.buf.take() {
            Some(buf) if buf.capacity() >= bytes => buf,
            _ => self.disk.buffer(bytes),
        };
        buf.resize(bytes);
        let (ok, buf) = self.run(DiskOp::Read { file, offset: start, buf })?;
        self.buf = buf;
        if let DiskOk::Read { bytes } = ok {
            self.open.insert(file_no, Window { bytes, ..window });
            self.of = file_no;
        }
        Ok(())
    }

    /// Closes the file with the lowest number if too many are open: reading mostly goes up.
    fn make_room(&mut self) -> Result<(), DiskError> {
        if self.open.len() < OPEN_MAX {
            return Ok(());
        }
        if let Some((_, Window { file: Some(file), .. })) = self.open.pop_first() {
            self.run(DiskOp::Close { file })?;
        }
        Ok(())
    }

    /// Runs one operation; none if an earlier one never ended, for then the disk is gone.
    fn run(&mut self, op: DiskOp) -> Result<(DiskOk, Option<Buffer>), DiskError> {
        if self.disk.in_flight() > 0 {
            return Err(DiskError::Crashed);
        }
        run(self.disk, op)
    }

    /// Closes all files and gives the buffer back.
    pub(crate) fn close(mut self) -> Result<(), DiskError> {
        let files: Vec<_> = self.open.values().filter_map(|window| window.file).collect();
        for file in files {
            self.run(DiskOp::Close { file })?;
        }
        if let Some(buf) = self.buf {
            self.disk.recycle(buf);
        }
        Ok(())
    }
}
