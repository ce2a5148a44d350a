//! A disk that notes what its user writes, so that the same writes can be made again without a log.

use std::collections::VecDeque;
use std::path::Path;

use coracle_io::disk::DirEntry;
use coracle_io::{Buffer, Disk, DiskDone, DiskError, DiskOp};

/// Shapes kept: the newest ones, some seconds' worth.
const SHAPES_MAX: usize = 65_536;

/// One write: how large, and with how many in flight once it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) bytes: usize,
    pub(super) depth: usize,
}

/// What was written in some time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Writes {
    pub(super) count: u64,
    pub(super) bytes: u64,
    /// The newest ones, oldest first.
    pub(super) newest: VecDeque<Shape>,
}

/// A disk and what was written to it.
pub(super) struct Recorder<D> {
    disk: D,
    noted: Writes,
    /// Tokens of writes; a handful.
    in_flight: Vec<u64>,
    filled_bytes: u64,
}

impl<D: Disk> Recorder<D> {
    pub(super) fn new(disk: D) -> Self {
        Self { disk, noted: Writes::default(), in_flight: Vec::new(), filled_bytes: 0 }
    }

    /// What was written since the last call.
    pub(super) fn take_writes(&mut self) -> Writes {
        std::mem::take(&mut self.noted)
    }

    /// Zeros written ahead so far.
    pub(super) fn filled_bytes(&self) -> u64 {
        self.filled_bytes
    }

    fn note(&mut self, token: u64, op: &DiskOp) {
        match op {
            DiskOp::Write { buf, .. } => {
                self.in_flight.push(token);
                self.noted.count += 1;
                self.noted.bytes += buf.len() as u64;
                if self.noted.newest.len() == SHAPES_MAX {
                    self.noted.newest.pop_front();
                }
                self.noted.newest.push_back(Shape { bytes: buf.len(), depth: self.in_flight.len() });
            }
            DiskOp::Fill { bytes, .. } => self.filled_bytes += bytes,
            _ => {}
        }
    }
}

impl<D: Disk> Disk for Recorder<D> {
    fn buffer(&mut self, bytes: usize) -> Buffer {
        self.disk.buffer(bytes)
    }

    fn recycle(&mut self, buf: Buffer) {
        self.disk.recycle(buf);
    }

    fn start(&mut self, token: u64, op: DiskOp) {
        self.note(token, &op);
        self.disk.start(token, op);
    }

    fn submit(&mut self) -> Result<(), DiskError> {
        self.disk.submit()
    }

    fn completions(&mut self, done: &mut Vec<DiskDone>) {
        let before = done.len();
        self.disk.completions(done);
        for one in &done[before..] {
            if let Some(at) = self.in_flight.iter().position(|token| *token == one.token) {
                self.in_flight.swap_remove(at);
            }
        }
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
