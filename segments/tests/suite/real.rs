//! Compaction on a real directory, through io_uring: alignment, unlinking and reading back are the kernel's there.
#![allow(clippy::unwrap_used)]

use coracle_base::run::Entries;
use coracle_base::{EntryBatch, EntryKind, GroupId, Index, NodeId, RunHeader, ShardId, Term};
use coracle_io::ring::{DiskOptions, Ring, RingDisk, RingOptions};
use coracle_io::{Disk, Strategy};
use coracle_segments::{Bounds, Compactor};
use coracle_wal::{Config, Identity, IndexRange, Wal};

const FILE_BYTES: u64 = 1 << 20;
const GROUPS: u64 = 30;

struct Real {
    disk: RingDisk,
    wal: Wal,
    compactor: Compactor,
    now_us: u64,
}

fn payload(group: u64, index: u64) -> Vec<u8> {
    format!("g{group} i{index} ").into_bytes().repeat(1 + (group + index) as usize % 90)
}

impl Real {
    fn open(root: &std::path::Path, seed: u64, strategy: Strategy) -> Self {
        let ring = Ring::new(&RingOptions { queue: 64, buffers: vec![(256 * 1024, 8)] }).unwrap();
        let mut disk = RingDisk::open(&ring, root, DiskOptions { lock: true, strategy }).unwrap();
        let config = Config {
            file_bytes: FILE_BYTES,
            checkpoint_every_bytes: FILE_BYTES / 2,
            ..Config::new("wal", seed)
        };
        let identity = Identity { cluster: 1, node: NodeId(2), incarnation: 3, shard: ShardId(0), shards: 1 };
        let (wal, recovery) = Wal::open(&mut disk, config, identity).unwrap();
        let report = &recovery.report;
        assert!(
            report.missing.is_empty() && report.strays.is_empty() && !report.is_incomplete(),
            "{report:?}"
        );
        Self { disk, wal, compactor: Compactor::new(Bounds::new(FILE_BYTES)), now_us: 0 }
    }

    fn turn(&mut self) {
        self.now_us += 1000;
        self.compactor.step(&mut self.wal, &mut self.disk, self.now_us);
        self.wal.submit(&mut self.disk, self.now_us).unwrap();
        self.disk.wait().unwrap();
        let mut done = Vec::new();
        self.disk.completions(&mut done);
        for one in done {
            if Compactor::owns(one.token) {
                self.compactor.on_done(&mut self.disk, one);
            } else {
                self.wal.on_done(&mut self.disk, one).unwrap();
            }
        }
    }

    /// Entries `first..=last` of every group, of which those whose index 20 divides live on.
    fn fill(&mut self, first: u64, last: u64) {
        for index in first..=last {
            for group in 1..=GROUPS {
                let mut batch = EntryBatch::new();
                batch.push(index, EntryKind::Command, &payload(group, index)).unwrap();
                batch.stamp(Term(1), 1);
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
            if index % 20 == 0 {
                let live: Vec<IndexRange> =
                    (1..=index / 20).map(|at| IndexRange { first: Index(20 * at), count: 1 }).collect();
                for group in 1..=GROUPS {
                    self.wal.put_snapshot(GroupId(group), Index(index), Term(1), &live, b"snapshot");
                }
            }
            self.turn();
        }
        self.rest();
    }

    fn rest(&mut self) {
        while self.wal.backlog_bytes() > 0 || self.disk.in_flight() > 0 || !self.compactor.is_idle() {
            self.turn();
        }
    }

    fn check(&mut self, last: u64) {
        for group in 1..=GROUPS {
            let all: Vec<Index> = (1..=last / 20).map(|at| Index(20 * at)).collect();
            let mut left = all.as_slice();
            while !left.is_empty() {
                self.wal.read_live(&mut self.disk, 1, GroupId(group), left, 64 * 1024);
                let out = loop {
                    if let Some((_, out)) = self.wal.poll_live() {
                        break out;
                    }
                    self.turn();
                };
                for (_, index, entry) in &out.entries {
                    let encoded = entry.as_ref().unwrap();
                    let entry = Entries::new(*index, encoded).next().unwrap();
                    assert_eq!(entry.payload, payload(group, index.0), "group {group}, entry {index}");
                }
                left = &left[out.entries.len()..];
            }
        }
    }
}

#[test]
fn live_entries_are_compacted_and_read_back_on_a_real_disk() {
    for strategy in [Strategy::Direct, Strategy::Buffered] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut real = Real::open(dir.path(), 1, strategy);
        real.fill(1, 400);
        real.compactor.run_now();
        real.rest();
        let stats = real.compactor.stats();
        assert!(stats.segments > 0 && stats.files_freed > 3 && stats.failures == 0, "{stats:?}");
        real.check(400);
        real.wal.shutdown(&mut real.disk).unwrap();
        drop(real.disk);

        let mut real = Real::open(dir.path(), 2, strategy);
        real.check(400);
        real.fill(401, 800);
        real.compactor.run_now();
        real.rest();
        real.check(800);
        assert!(real.wal.stats().segments_written > 0);
        for group in 1..=GROUPS {
            real.wal.put_snapshot(GroupId(group), Index(800), Term(1), &[], b"nothing lives");
        }
        (0..500).for_each(|_| real.turn());
        real.rest();
        let names = real.disk.list("wal".as_ref()).unwrap();
        assert!(!names.iter().any(|file| file.name.ends_with(".seg")), "{names:?}");
        real.wal.shutdown(&mut real.disk).unwrap();
    }
}
