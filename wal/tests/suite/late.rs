//! A process is killed, and what it had in flight lands while the next one recovers, or after that. io_uring does not
//! take a write back that the device has.
#![allow(clippy::unwrap_used)] // a test that fails may panic

use std::path::Path;

use crate::common::model::Model;
use crate::common::{Rig, config, identity};
use coracle_io::disk::DirEntry;
use coracle_io::fake::{Completing, CrashPolicy, FakeDisk, OpKind};
use coracle_io::{Buffer, Disk, DiskDone, DiskError, DiskOp};
use coracle_wal::{Recovery, Wal};

/// The next process's disk, on which a write of the last one lands before the wait with this number.
struct Late {
    disk: FakeDisk,
    waits: u64,
    lands_at: u64,
    which: usize,
}

impl Late {
    fn land(&self) {
        let flights = self.disk.flights();
        let at = flights.iter().enumerate().filter(|(_, one)| one.kind == OpKind::Write).nth(self.which);
        self.disk.complete(at.expect("the old process's writes are in flight").0);
    }
}

impl Disk for Late {
    fn buffer(&mut self, bytes: usize) -> Buffer {
        self.disk.buffer(bytes)
    }
    fn recycle(&mut self, buf: Buffer) {
        self.disk.recycle(buf);
    }
    fn start(&mut self, token: u64, op: DiskOp) {
        self.disk.start(token, op);
    }
    fn submit(&mut self) -> Result<(), DiskError> {
        self.disk.submit()
    }
    fn completions(&mut self, done: &mut Vec<DiskDone>) {
        self.disk.completions(done);
    }
    fn wait(&mut self) -> Result<(), DiskError> {
        if self.waits == self.lands_at {
            self.land();
        }
        self.waits += 1;
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

/// A log with two batches in flight: nothing of them is acknowledged. What is durable, and the disk.
fn killed() -> (FakeDisk, Model) {
    let mut rig = Rig::fresh(41);
    for last in 0..6 {
        rig.append(1, last, 1, 1, 1, 900);
        rig.put_state(2, &[last as u8; 20]);
        rig.settle();
    }
    let durable = rig.model().clone();
    rig.disk.set_completing(Completing::Manual);
    for last in 6..8 {
        rig.append(1, last, 1, 1, 1, 900);
        rig.submit().unwrap();
    }
    let writes = rig.disk.flights().iter().filter(|flight| flight.kind == OpKind::Write).count();
    assert_eq!(writes, 2, "{:?}", rig.disk.flights());
    (rig.disk.clone(), durable)
}

fn open(disk: &mut impl Disk, seed: u64) -> Recovery {
    Wal::open(disk, config(seed), identity()).unwrap().1
}

#[test]
fn a_write_that_lands_during_or_after_a_recovery_changes_nothing_that_it_said() {
    let (mut seen_with, mut seen_without) = (0, 0);
    for which in 0..2 {
        for lands_at in 0.. {
            let (disk, durable) = killed();
            let mut next = Late { disk: disk.ring(), waits: 0, lands_at, which };
            let found = open(&mut next, 42);
            let is_over = next.waits <= lands_at;
            if is_over {
                next.land();
            }
            let last = found.groups[0].last.0;
            assert!((6..=8).contains(&last), "{last}");
            assert!(!found.groups[0].suspect, "write {which} at {lands_at}: a torn tail is no damage");
            if last == 6 {
                assert!(Model::of(&found).same_shape(&durable), "write {which} at {lands_at}");
            }
            (seen_with, seen_without) =
                (seen_with + u32::from(last > 6), seen_without + u32::from(last == 6));
            // What it told stays true, also after a power loss, and after the other write has landed, too.
            next.which = 0;
            next.land();
            disk.crash(CrashPolicy::default());
            let again = open(&mut disk.ring(), 43);
            assert_eq!(again.groups, found.groups, "write {which} lands at {lands_at}: {}", disk.story());
            if is_over {
                break;
            }
        }
    }
    assert!(seen_with > 0 && seen_without > 5, "{seen_with} with, {seen_without} without");
}
