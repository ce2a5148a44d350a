//! A disk that counts.

use std::path::Path;

use coracle_io::disk::DirEntry;
use coracle_io::{Buffer, Disk, DiskDone, DiskError, DiskOp};

/// A disk that counts the bytes read and written.
pub struct Counting<D> {
    pub disk: D,
    pub read: u64,
    pub written: u64,
}

impl<D> Counting<D> {
    pub fn new(disk: D) -> Self {
        Self { disk, read: 0, written: 0 }
    }
}

impl<D: Disk> Disk for Counting<D> {
    fn buffer(&mut self, bytes: usize) -> Buffer {
        self.disk.buffer(bytes)
    }
    fn recycle(&mut self, buf: Buffer) {
        self.disk.recycle(buf);
    }
    fn start(&mut self, token: u64, op: DiskOp) {
        match &op {
            DiskOp::Read { buf, .. } => self.read += buf.len() as u64,
            DiskOp::Write { buf, .. } => self.written += buf.len() as u64,
            DiskOp::Fill { bytes, .. } => self.written += bytes,
            _ => {}
        }
        self.disk.start(token, op);
    }
    fn submit(&mut self) -> Result<(), DiskError> {
        self.disk.submit()
    }
    fn completions(&mut self, done: &mut Vec<DiskDone>) {
        self.disk.completions(done);
    }
    fn wait(&mut self) -> Result<(), DiskError> {
        self.disk.wait()
    }
    fn in_flight(&self) -> usize {
        self.disk.in_flight()
    }
    fn list(&mut self, dir: &Path) -> Result<Vec<DirEntry>, DiskError> {
        self.disk.list(dir)
    }
    fn make_dir(&mut self, dir: &Path) -> Result<(), DiskError> {
        self.disk.make_dir(dir)
    }
}
