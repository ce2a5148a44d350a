//! How much a start reads: it counts, since whoever waits for a vote waits for it.

#![allow(clippy::unwrap_used)] // a test that fails may panic

mod common;

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;

use common::model::Model;
use common::{Rig, config, identity};
use coracle_io::disk::DirEntry;
use coracle_io::fake::FakeDisk;
use coracle_io::{Buffer, Disk, DiskDone, DiskError, DiskOp};
use coracle_wal::Wal;

const MIB: u64 = 1 << 20;

/// A disk that counts the bytes read and written.
struct Counting {
    disk: FakeDisk,
    read: Rc<Cell<u64>>,
    written: Rc<Cell<u64>>,
}

impl Disk for Counting {
    fn buffer(&mut self, bytes: usize) -> Buffer {
        self.disk.buffer(bytes)
    }
    fn recycle(&mut self, buf: Buffer) {
        self.disk.recycle(buf);
    }
    fn start(&mut self, token: u64, op: DiskOp) {
        match &op {
            DiskOp::Read { buf, .. } => self.read.set(self.read.get() + buf.len() as u64),
            DiskOp::Write { buf, .. } => self.written.set(self.written.get() + buf.len() as u64),
            DiskOp::Fill { bytes, .. } => self.written.set(self.written.get() + bytes),
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

/// A log whose third file is three quarters full. Checkpoints were written where the second and the third began, so a replay
/// takes 12 MiB, and 12 more are looked at for what may have been in flight. Searching for the two newest roots would take
/// 30 more.
#[test]
fn a_start_reads_little_more_than_it_replays_and_writes_no_new_file() {
    let large =
        |seed| coracle_wal::Config { file_bytes: 16 * MIB, checkpoint_every_bytes: 1 << 40, ..config(seed) };
    let mut rig = Rig::open(FakeDisk::new(5), large(5)).unwrap().0;
    for round in 0..570 {
        let group = round % 3 + 1;
        rig.append(group, rig.model().last(group), 1, 1, 7, 20_000);
        // Only the last model is asked: with all of them the test would take gigabytes.
        rig.history.drain(..rig.history.len() - 1);
        rig.settle();
    }
    let (read, written) = (Rc::default(), Rc::default());
    let mut disk = Counting { disk: rig.disk.clone(), read: Rc::clone(&read), written: Rc::clone(&written) };
    let (_wal, recovery) = Wal::open(&mut disk, large(6), identity()).unwrap();
    assert!(Model::of(&recovery).same_shape(rig.model()), "{:?}", recovery.report);
    assert!((100..220).contains(&recovery.report.batches), "{:?}", recovery.report);
    assert!(read.get() < 46 * MIB, "{} MiB were read", read.get() / MIB);
    assert!(written.get() < MIB, "{} bytes were written", written.get());
}
