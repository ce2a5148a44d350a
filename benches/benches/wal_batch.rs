//! What does the write-ahead log cost a CPU, an entry, when the device costs nothing? Runs of many groups are appended,
//! submitted and proven durable on a disk that has done everything at once; beside it the floor: the same bytes copied
//! and checksummed.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::path::Path;

use coracle_base::checksum::crc32c;
use coracle_base::limits::BATCH_BYTES_TARGET;
use coracle_base::{EntryBatch, EntryKind, GroupId, Index, NodeId, RunHeader, ShardId, Term};
use coracle_io::disk::DirEntry;
use coracle_io::{Buffer, Disk, DiskDone, DiskError, DiskOk, DiskOp, FileId};
use coracle_wal::{Config, Identity, Wal};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const PAYLOAD_BYTES: usize = 256;
/// Groups, and entries of each run: many lone commands, a busy shard, few groups with bursts.
const SHAPES: [(u64, u32); 3] = [(1000, 1), (1000, 4), (10, 100)];
const TERM: Term = Term(1);

/// Every operation is done as soon as it is started; nothing is kept.
#[derive(Default)]
struct InstantDisk {
    free: Vec<Buffer>,
    done: Vec<DiskDone>,
    files: u32,
}

impl Disk for InstantDisk {
    fn buffer(&mut self, bytes: usize) -> Buffer {
        let at = self.free.iter().position(|buf| buf.capacity() >= bytes);
        let mut buf = at.map_or_else(|| Buffer::with_capacity(bytes), |at| self.free.swap_remove(at));
        buf.clear();
        buf
    }

    fn recycle(&mut self, buf: Buffer) {
        self.free.push(buf);
    }

    fn start(&mut self, token: u64, op: DiskOp) {
        let (result, buf) = match op {
            DiskOp::Open { .. } => {
                self.files += 1;
                (DiskOk::Opened { file: FileId(self.files), bytes: 0 }, None)
            }
            DiskOp::Write { buf, .. } => (DiskOk::Done, Some(buf)),
            DiskOp::Read { buf, .. } => (DiskOk::Read { bytes: 0 }, Some(buf)),
            _ => (DiskOk::Done, None),
        };
        self.done.push(DiskDone { token, result: Ok(result), buf });
    }

    fn submit(&mut self) -> Result<(), DiskError> {
        Ok(())
    }

    fn completions(&mut self, done: &mut Vec<DiskDone>) {
        done.append(&mut self.done);
    }

    fn wait(&mut self) -> Result<(), DiskError> {
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn list(&mut self, _dir: &Path) -> Result<Vec<DirEntry>, DiskError> {
        Ok(Vec::new())
    }

    fn make_dir(&mut self, _dir: &Path) -> Result<(), DiskError> {
        Ok(())
    }
}

/// A log on such a disk, and where its groups end.
struct Log {
    disk: InstantDisk,
    wal: Wal,
    last: Vec<Index>,
    next: usize,
    body: EntryBatch,
    run_entries: u32,
    done: Vec<DiskDone>,
}

impl Log {
    fn new(groups: u64, run_entries: u32) -> Self {
        let mut disk = InstantDisk::default();
        let identity = Identity { cluster: 1, node: NodeId(1), incarnation: 1, shard: ShardId(0), shards: 1 };
        let (wal, _) = Wal::open(&mut disk, Config::new("wal", 7), identity).expect("nothing can fail here");
        let mut body = EntryBatch::new();
        for tag in 0..u64::from(run_entries) {
            body.push(tag, EntryKind::Command, &[7; PAYLOAD_BYTES]).expect("small");
        }
        body.stamp(TERM, 1_700_000_000_000);
        let last = vec![Index::ZERO; groups as usize];
        Self { disk, wal, last, next: 0, body, run_entries, done: Vec::new() }
    }

    /// About one batch's worth of runs, each of another group; durable at the end.
    fn turn(&mut self) -> u64 {
        let runs = (BATCH_BYTES_TARGET / (self.body.bytes().len() + 64)).max(1);
        for _ in 0..runs {
            // A stride that visits all groups, as far from the last one as random ones would be.
            self.next = (self.next + 617) % self.last.len();
            let last = &mut self.last[self.next];
            let header = RunHeader {
                group: GroupId(self.next as u64 + 1),
                accepted_term: TERM,
                prev_index: *last,
                prev_term: if *last == Index::ZERO { Term::ZERO } else { TERM },
                count: self.run_entries,
                body_bytes: self.body.bytes().len() as u32,
            };
            *last = header.last();
            self.wal.append(&header, &[self.body.bytes()]);
        }
        let staged = self.wal.backlog_bytes();
        while self.wal.backlog_bytes() > 0 {
            self.wal.submit(&mut self.disk, 0).expect("nothing can fail here");
            self.disk.completions(&mut self.done);
            for one in self.done.drain(..) {
                self.wal.on_done(&mut self.disk, one).expect("nothing can fail here");
            }
        }
        assert!(staged > 0);
        runs as u64 * u64::from(self.run_entries)
    }
}

fn wal_batch(c: &mut Criterion) {
    let mut group = c.benchmark_group("durable_entry");
    for (groups, run_entries) in SHAPES {
        let mut log = Log::new(groups, run_entries);
        group.throughput(Throughput::Elements(log.turn()));
        let id = BenchmarkId::from_parameter(format!("{groups}_groups_x{run_entries}"));
        group.bench_function(id, |b| b.iter(|| log.turn()));
    }
    let entries = BATCH_BYTES_TARGET / (PAYLOAD_BYTES + 32);
    let bytes = vec![7u8; entries * (PAYLOAD_BYTES + 32)];
    let mut copy = vec![0u8; bytes.len()];
    group.throughput(Throughput::Elements(entries as u64));
    group.bench_function("floor_copy_and_crc32c", |b| {
        b.iter(|| {
            copy.copy_from_slice(black_box(&bytes));
            crc32c(&copy)
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_millis(800));
    targets = wal_batch
}
criterion_main!(benches);
