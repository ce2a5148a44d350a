//! Blocking reads for recovery: large windows, and single blocks around a place that cannot be read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coracle_base::limits::{BATCH_BYTES_MAX, BLOCK_BYTES};
use coracle_io::disk::run;
use coracle_io::{Buffer, Disk, DiskError, DiskOk, DiskOp, FileId, FileMode};

use crate::files::log_path;

const BLOCK: u64 = BLOCK_BYTES as u64;

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
            if self.fill(file_no, start, wide).is_err() {
                self.fill(file_no, start, (end - start).next_multiple_of(BLOCK))?;
            }
        }
        let held = self.open.get(&file_no).copied().unwrap_or_default();
        let bytes = self.buf.as_deref().unwrap_or_default();
        let from = ((offset - held.start) as usize).min(held.bytes);
        Ok(&bytes[from..(from + len).min(held.bytes)])
    }

    fn fill(&mut self, file_no: u64, start: u64, bytes: u64) -> Result<(), DiskError> {
        let file = match self.open.get(&file_no).and_then(|window| window.file) {
            Some(file) => file,
            None => {
                let op = DiskOp::Open { path: log_path(&self.dir, file_no), mode: FileMode::Read };
                match run(self.disk, op)?.0 {
                    DiskOk::Opened { file, .. } => file,
                    _ => return Ok(()),
                }
            }
        };
        self.of = 0;
        self.open.insert(file_no, Window { file: Some(file), start, bytes: 0 });
        let mut buf = match self.buf.take() {
            Some(buf) if buf.capacity() as u64 >= bytes => buf,
            _ => self.disk.buffer(bytes as usize),
        };
        buf.resize(bytes as usize);
        let (ok, buf) = run(self.disk, DiskOp::Read { file, offset: start, buf })?;
        self.buf = buf;
        if let DiskOk::Read { bytes } = ok {
            self.open.insert(file_no, Window { file: Some(file), start, bytes });
            self.of = file_no;
        }
        Ok(())
    }

    /// Closes all files and gives the buffer back.
    pub(crate) fn close(self) {
        for file in self.open.values().filter_map(|window| window.file) {
            // A file that was only read: nothing depends on how this ends.
            let _ = run(self.disk, DiskOp::Close { file });
        }
        if let Some(buf) = self.buf {
            self.disk.recycle(buf);
        }
    }
}
