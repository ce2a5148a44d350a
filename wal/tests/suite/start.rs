//! How much a start reads: it counts, since whoever waits for a vote waits for it.

#![allow(clippy::unwrap_used)] // a test that fails may panic

use crate::common::counting::Counting;
use crate::common::model::Model;
use crate::common::{Rig, config, identity};
use coracle_io::fake::FakeDisk;
use coracle_wal::Wal;

const MIB: u64 = 1 << 20;

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
    let mut disk = Counting::new(rig.disk.clone());
    let (_wal, recovery) = Wal::open(&mut disk, large(6), identity()).unwrap();
    assert!(Model::of(&recovery).same_shape(rig.model()), "{:?}", recovery.report);
    assert!((100..220).contains(&recovery.report.batches), "{:?}", recovery.report);
    assert!(disk.read < 46 * MIB, "{} MiB were read", disk.read / MIB);
    assert!(disk.written < MIB, "{} bytes were written", disk.written);
}
