//! The log on a real directory, through io_uring: what the fake disk promised holds there, too.

#![allow(clippy::unwrap_used)]

use crate::common::{config, entries, identity};
use coracle_base::{GroupId, Index, RunHeader, Term};
use coracle_io::ring::{DiskOptions, Ring, RingDisk, RingOptions};
use coracle_io::{Disk, DiskDone, Strategy};
use coracle_wal::{Config, ReadOut, Recovery, Wal};

const GROUPS: u64 = 20;

struct Real {
    disk: RingDisk,
    wal: Wal,
    recovery: Recovery,
}

impl Real {
    fn open(root: &std::path::Path, seed: u64, strategy: Strategy) -> Self {
        let ring = Ring::new(&RingOptions { queue: 64, buffers: vec![(256 * 1024, 8)] }).unwrap();
        let mut disk = RingDisk::open(&ring, root, DiskOptions { lock: true, strategy }).unwrap();
        let config = Config { file_bytes: 1 << 20, checkpoint_every_bytes: 1 << 20, ..config(seed) };
        let (wal, recovery) = Wal::open(&mut disk, config, identity()).unwrap();
        Self { disk, wal, recovery }
    }

    fn append(&mut self, group: u64, index: u64) {
        let batch = entries(group, index, 1, 1, 2000);
        let header = RunHeader {
            group: GroupId(group),
            accepted_term: Term(1),
            prev_index: Index(index - 1),
            prev_term: Term(u64::from(index > 1)),
            count: 1,
            body_bytes: batch.bytes().len() as u32,
        };
        self.wal.append(&header, &[batch.bytes()]);
    }

    /// One turn: hands out what may be written, waits for something to complete.
    fn turn(&mut self) {
        self.wal.submit(&mut self.disk, 0).unwrap();
        self.disk.wait().unwrap();
        let mut done: Vec<DiskDone> = Vec::new();
        self.disk.completions(&mut done);
        for one in done {
            self.wal.on_done(&mut self.disk, one).unwrap();
        }
    }

    fn read(&mut self, group: u64, first: u64, last: u64) -> ReadOut {
        self.wal.read(&mut self.disk, 1, GroupId(group), Index(first), Index(last), 100_000);
        loop {
            if let Some((_, result)) = self.wal.poll_read() {
                return result.unwrap();
            }
            self.turn();
        }
    }

    fn check(&mut self, last: u64) {
        for group in 1..=GROUPS {
            let mut next = 1;
            while next <= last {
                let out = self.read(group, next, last);
                let mut expected = Vec::new();
                for index in next..next + u64::from(out.count) {
                    expected.extend_from_slice(entries(group, index, 1, 1, 2000).bytes());
                }
                assert!(out.body == expected, "group {group} from {next}");
                next += u64::from(out.count);
            }
        }
    }

    /// Appends entries `first..=last` to every group, and waits until all are durable.
    fn fill(&mut self, first: u64, last: u64) {
        for index in first..=last {
            (1..=GROUPS).for_each(|group| self.append(group, index));
            self.turn();
        }
        while self.wal.backlog_bytes() > 0 {
            self.turn();
        }
    }

    /// As if the process were killed: nothing is said to the log.
    fn kill(mut self) {
        while self.disk.in_flight() > 0 {
            self.disk.wait().unwrap();
            self.disk.completions(&mut Vec::new());
        }
    }

    /// Nothing is lost, torn or doubtful.
    fn assert_sound(&self, entries: u64) {
        let report = &self.recovery.report;
        assert_eq!((report.entries, report.holes.len()), (entries * GROUPS, 0), "{report:?}");
        assert!(!report.tail_suspect && report.strays.is_empty(), "{report:?}");
    }
}

#[test]
fn what_was_durable_on_a_real_disk_comes_back_with_every_strategy() {
    for strategy in Strategy::ALL {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut real = Real::open(dir.path(), 1, strategy);
        assert!(real.recovery.report.created);
        real.fill(1, 150);
        assert!(real.wal.stats().files > 3, "{strategy}: {:?}", real.wal.stats());
        assert!(real.wal.stats().in_flight_max >= 2, "{strategy}");
        real.check(150);
        real.kill();

        let mut real = Real::open(dir.path(), 2, strategy);
        real.assert_sound(150);
        real.check(150);
        real.wal.shutdown(&mut real.disk).unwrap();
    }
}

/// A setting may change between two starts: each reads, through the page cache or past it, what all before it wrote.
#[test]
fn a_log_goes_on_with_another_strategy() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut last = 0;
    for round in 0..2 {
        for strategy in Strategy::ALL {
            let mut real = Real::open(dir.path(), 1 + last + round, strategy);
            if last > 0 {
                real.assert_sound(last);
            }
            real.fill(last + 1, last + 20);
            last += 20;
            real.check(last);
            real.kill();
        }
    }
}
