//! What does a run cost? Gathering, encoding, parsing and checking runs of a few shapes, with the floors beside them:
//! the same bytes copied, and the same bytes checksummed.
#![forbid(unsafe_code)]

use std::hint::black_box;

use coracle_base::checksum::crc32c;
use coracle_base::limits::RUN_BYTES_MAX;
use coracle_base::run::ENTRY_HEADER_BYTES;
use coracle_base::{EntryBatch, EntryKind, GroupId, Index, RunHeader, RunRef, Term};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Bytes of a payload: a small command, the yardstick's, a block.
const PAYLOAD_BYTES: [usize; 3] = [16, 256, 4096];
/// Entries of a run: a lone command, a busy turn, a burst.
const ENTRIES: [usize; 3] = [1, 100, 1000];

fn gathered(entries: usize, payload: &[u8]) -> EntryBatch {
    let mut batch = EntryBatch::with_capacity(entries * (ENTRY_HEADER_BYTES + payload.len()));
    for tag in 0..entries {
        batch.push(tag as u64, EntryKind::Command, payload).expect("the shapes fit a run");
    }
    batch
}

fn header(batch: &EntryBatch) -> RunHeader {
    RunHeader {
        group: GroupId(7),
        accepted_term: Term(3),
        prev_index: Index(10),
        prev_term: Term(3),
        count: batch.count(),
        body_bytes: batch.bytes().len() as u32,
    }
}

fn run_codec(c: &mut Criterion) {
    for payload_bytes in PAYLOAD_BYTES {
        for entries in ENTRIES {
            if entries * (payload_bytes + ENTRY_HEADER_BYTES) <= RUN_BYTES_MAX {
                one_shape(c, payload_bytes, entries);
            }
        }
    }
}

fn one_shape(c: &mut Criterion, payload_bytes: usize, entries: usize) {
    let payload: Vec<u8> = (0..payload_bytes).map(|i| (i * 31) as u8).collect();
    let mut batch = gathered(entries, &payload);
    batch.stamp(Term(3), 1_700_000_000_000);
    let header = header(&batch);
    let mut encoded = Vec::new();
    header.encode_run(&[batch.bytes()], &mut encoded);
    let run = RunRef::parse(&encoded).expect("just encoded");

    let mut group = c.benchmark_group(format!("{entries}x{payload_bytes}B"));
    group.throughput(Throughput::Elements(entries as u64));
    let id = BenchmarkId::from_parameter;
    group.bench_function(id("gather"), |b| b.iter(|| gathered(entries, black_box(&payload))));
    group.bench_function(id("stamp"), |b| b.iter(|| batch.stamp(black_box(Term(3)), 1_700_000_000_000)));
    let mut out = Vec::with_capacity(encoded.len());
    group.bench_function(id("encode"), |b| {
        b.iter(|| {
            out.clear();
            header.encode_run(&[black_box(batch.bytes())], &mut out);
        });
    });
    group.bench_function(id("parse"), |b| b.iter(|| RunRef::parse(black_box(&encoded)).expect("sound")));
    group.bench_function(id("check_payloads"), |b| {
        b.iter(|| black_box(&run).check_payloads().expect("sound"))
    });
    group.bench_function(id("floor_crc32c"), |b| b.iter(|| crc32c(black_box(&encoded))));
    group.bench_function(id("floor_memcpy"), |b| {
        b.iter(|| {
            out.clear();
            out.extend_from_slice(black_box(&encoded));
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_millis(600));
    targets = run_codec
}
criterion_main!(benches);
