//! Lost batches: the one after each tells which groups they were about.
#![allow(clippy::unwrap_used)]

use coracle_io::fake::Damage;
use coracle_wal::Wal;

use crate::common::{Rig, config, identity};
use crate::damage::{last_file_in_use, path, tail_offset};

/// The batch after a lost one tells whose records were in it.
#[test]
fn a_lost_batch_concerns_only_its_own_groups() {
    let lost = |groups: &[u64]| {
        let mut rig = Rig::fresh(11);
        for group in 1..=60 {
            rig.append(group, 0, 1, 1, 1, 20);
            rig.put_state(group, b"voted");
        }
        rig.settle();
        let before = tail_offset(&rig.disk.image());
        groups.iter().for_each(|group| rig.append(*group, rig.model().last(*group), 1, 1, 1, 100));
        rig.settle();
        for group in 50..=60 {
            rig.append(group, rig.model().last(group), 1, 1, 1, 20);
        }
        rig.settle();
        assert_eq!(last_file_in_use(&rig.disk.image()), 1);
        assert!(rig.disk.corrupt(path(1), before + 512, Damage::FlipBit { bit: 3 }));
        let (_, recovery) = Wal::open(&mut rig.disk.clone(), config(12), identity()).unwrap();
        assert_eq!((recovery.groups.len(), recovery.report.holes.len()), (60, 1), "{:?}", recovery.report);
        let suspect = recovery.groups.iter().filter(|group| group.suspect).map(|group| group.group.0);
        (suspect.collect::<Vec<_>>(), recovery.report.is_incomplete())
    };
    let named = [3, 5, 8, 13, 21, 34, 55];
    assert_eq!(lost(&named), (named.to_vec(), false), "and no group is unknown");
    let all: Vec<u64> = (1..=60).collect();
    assert_eq!(lost(&all), (all, false));
}

#[test]
fn a_lost_mark_concerns_nobody() {
    let mut rig = Rig::fresh(11);
    (1..=5).for_each(|group| rig.append(group, 0, 1, 1, 1, 20));
    rig.settle();
    let mark = tail_offset(&rig.disk.image());
    rig.now_us += 1_000_000;
    rig.settle();
    assert_eq!(rig.wal.stats().marks, 1);
    rig.append(2, 1, 1, 1, 1, 20);
    rig.settle();
    assert!(rig.disk.corrupt(path(1), mark + 40, Damage::FlipBit { bit: 3 }));
    let (_, recovery) = Wal::open(&mut rig.disk.clone(), config(12), identity()).unwrap();
    assert_eq!(recovery.report.holes.len(), 1, "{:?}", recovery.report);
    assert!(!recovery.report.is_incomplete() && recovery.groups.iter().all(|group| !group.suspect));
}
