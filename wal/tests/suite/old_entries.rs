//! Figures: what it takes to read random old entries of ten thousand groups, through the indexes of their files and without.
//! `cargo test -p coracle-wal --release --features breaks --test suite old_entries -- --ignored --nocapture`
#![cfg(feature = "breaks")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::time::Instant;

use crate::common::counting::Counting;
use crate::common::{entries, identity};
use coracle_base::{GroupId, Index, RunHeader, Term};
use coracle_io::ring::{DiskOptions, Ring, RingDisk, RingOptions};
use coracle_io::{Disk, Strategy};
use coracle_wal::{Config, IndexRange, Wal};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const GROUPS: u64 = 10_000;
const ROUNDS: u64 = 200;
/// Of so many entries one lives on.
const LIVE_EVERY: u64 = 10;

fn turn(wal: &mut Wal, disk: &mut Counting<RingDisk>) {
    wal.submit(disk, 0).unwrap();
    if disk.in_flight() > 0 {
        disk.wait().unwrap();
    }
    let mut done = Vec::new();
    disk.completions(&mut done);
    done.into_iter().for_each(|one| wal.on_done(disk, one).unwrap());
}

fn fill(wal: &mut Wal, disk: &mut Counting<RingDisk>) {
    for last in 0..ROUNDS {
        for group in 1..=GROUPS {
            let batch = entries(group, last + 1, 1, 1, 256);
            let header = RunHeader {
                group: GroupId(group),
                accepted_term: Term(1),
                prev_index: Index(last),
                prev_term: Term(u64::from(last > 0)),
                count: 1,
                body_bytes: batch.bytes().len() as u32,
            };
            wal.append(&header, &[batch.bytes()]);
            if (last + group).is_multiple_of(40) {
                let live = (1..=last + 1).filter(|index| index % LIVE_EVERY == 1);
                let live: Vec<_> = live.map(|index| IndexRange { first: Index(index), count: 1 }).collect();
                wal.put_snapshot(GroupId(group), Index(last + 1), Term(1), &live, b"all");
            }
            while wal.backlog_bytes() > 1 << 20 {
                turn(wal, disk);
            }
        }
    }
    for _ in 0..200 {
        turn(wal, disk);
    }
}

/// Bytes and microseconds for one entry.
fn measure(wal: &mut Wal, disk: &mut Counting<RingDisk>, reads: u64) -> (u64, u64) {
    let mut rng = SmallRng::seed_from_u64(7);
    let (before, began) = (disk.read, Instant::now());
    for _ in 0..reads {
        let (group, index) = (rng.random_range(1..=GROUPS), 1 + LIVE_EVERY * rng.random_range(0..10u64));
        wal.read_live(disk, 3, GroupId(group), &[Index(index)], 10_000);
        let out = loop {
            if let Some((_, out)) = wal.poll_live() {
                break out;
            }
            disk.submit().unwrap();
            disk.wait().unwrap();
            let mut done = Vec::new();
            disk.completions(&mut done);
            done.into_iter().for_each(|one| wal.on_done(disk, one).unwrap());
        };
        let encoded = out.entries.into_iter().next().unwrap().2.unwrap();
        let payload = coracle_base::run::Entries::new(Index(index), &encoded).next().unwrap().payload;
        assert!(payload.starts_with(format!("g{group} i{index} ").as_bytes()));
    }
    ((disk.read - before) / reads, began.elapsed().as_micros() as u64 / reads)
}

#[test]
#[ignore = "takes a minute and 700 MiB"]
fn figures() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let ring = Ring::new(&RingOptions { queue: 64, buffers: vec![(1 << 20, 8)] }).unwrap();
    let options = DiskOptions { lock: true, strategy: Strategy::Direct };
    let mut disk = Counting::new(RingDisk::open(&ring, dir.path(), options).unwrap());
    let config = |seed| Config { batch_bytes: 256 << 10, ..Config::new("wal", seed) };
    let (mut wal, _) = Wal::open(&mut disk, config(1), identity()).unwrap();
    fill(&mut wal, &mut disk);
    println!("{:?}", wal.stats());
    wal.shutdown(&mut disk).unwrap();
    let (mut wal, _) = Wal::open(&mut disk, config(2), identity()).unwrap();
    println!(
        "with indexes, cold and then warm: (bytes, us) an entry {:?}",
        measure(&mut wal, &mut disk, 1000)
    );
    println!("{:?}, wrong {}", measure(&mut wal, &mut disk, 1000), wal.stats().indexes_wrong);
    wal.shutdown(&mut disk).unwrap();
    let (mut wal, _) = Wal::open(&mut disk, config(3), identity()).unwrap();
    coracle_wal::breaks::mislead(true);
    println!("without: {:?}", measure(&mut wal, &mut disk, 40));
    println!("given up: {}", wal.stats().indexes_wrong);
}
