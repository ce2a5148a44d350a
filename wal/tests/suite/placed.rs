//! Entries that wait for the snapshot that they were placed for.
#![allow(clippy::unwrap_used)]

use crate::common::{Rig, config, entries, ranges, read_live};
use coracle_base::{GroupId, Index, RunHeader, Term};

/// Simulator seed 74: the group's older snapshot was carried on to a newer file meanwhile, written once more as it was; that
/// dropped them, and the snapshot that came then named entries that were nowhere.
#[test]
fn what_waits_for_its_snapshot_outlives_that_an_older_one_is_written_again() {
    for is_carried in [false, true] {
        let mut rig = Rig::fresh(48);
        let snapshot = |rig: &mut Rig, index, term, live: &[u64]| {
            rig.wal.put_snapshot(GroupId(1), Index(index), Term(term), &ranges(live), b"all");
            rig.settle();
        };
        rig.append(1, 0, 1, 1, 3, 100);
        snapshot(&mut rig, 3, 1, &[2]);
        rig.place(1, 5, &entries(1, 5, 3, 2, 500));
        if is_carried {
            snapshot(&mut rig, 3, 1, &[2]);
        }
        snapshot(&mut rig, 9, 3, &[2, 5, 6]);
        let check = |rig: &mut Rig, when: &str| {
            let read = read_live(&mut rig.wal, &mut rig.disk, 1, &[2, 5, 6].map(Index), 5000);
            let is_all = read.len() == 3 && read.iter().all(|(_, entry)| entry.is_ok());
            assert!(is_all, "{when}, carried: {is_carried}: {read:?}");
        };
        check(&mut rig, "at once");
        let (mut rig, _) = Rig::open(rig.disk.clone(), config(49)).unwrap();
        check(&mut rig, "after a start");
    }
}

/// Who tries a transfer again need not place once more what waits already.
#[test]
fn what_waits_is_known_until_its_snapshot_has_come() {
    let mut rig = Rig::fresh(50);
    let has = |rig: &Rig, first: u64, count: u32| {
        rig.wal.has_placed(&RunHeader {
            group: GroupId(1),
            accepted_term: Term(3),
            prev_index: Index(first - 1),
            prev_term: Term(0),
            count,
            body_bytes: 0,
        })
    };
    assert!(!has(&rig, 5, 1));
    rig.place(1, 8, &entries(1, 8, 3, 1, 500));
    rig.place(1, 5, &entries(1, 5, 3, 2, 500));
    assert!(has(&rig, 5, 2) && has(&rig, 6, 1) && has(&rig, 8, 1));
    assert!(!has(&rig, 4, 1) && !has(&rig, 6, 2) && !has(&rig, 8, 2));
    let (mut rig, _) = {
        rig.settle();
        Rig::open(rig.disk.clone(), config(51)).unwrap()
    };
    assert!(has(&rig, 5, 2) && has(&rig, 8, 1), "after a start");
    rig.wal.put_snapshot(GroupId(1), Index(9), Term(3), &ranges(&[5, 6]), b"all");
    assert!(!has(&rig, 5, 2) && !has(&rig, 8, 1), "its snapshot has come");
}
