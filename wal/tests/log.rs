//! The log as its user sees it: what was staged comes back, from memory, from files and after a restart.

mod common;

use common::model::Model;
use common::{Rig, config};
use coracle_base::{GroupId, Index};
use coracle_wal::ReadError;

#[test]
fn what_was_durable_comes_back_after_a_restart() {
    let mut rig = Rig::fresh(1);
    rig.append(1, 0, 1, 1, 3, 100);
    rig.append(2, 0, 1, 1, 1, 4000);
    rig.put_state(1, b"term 1, vote 2");
    rig.append(1, 3, 1, 1, 2, 10);
    rig.settle();
    assert_eq!(rig.acked(), rig.history.len());
    rig.model().check_live(&rig.wal);
    rig.check().unwrap();
    let (disk, model) = (rig.disk.clone(), rig.model().clone());
    rig.wal.shutdown(&mut rig.disk).unwrap();
    let (mut again, recovery) = Rig::open(disk, config(2)).unwrap();
    assert_eq!(recovery.boot_epoch, 2);
    assert_eq!(recovery.report.entries, 6);
    assert!(!recovery.report.torn && !recovery.report.tail_suspect, "{:?}", recovery.report);
    assert!(Model::of(&recovery).same_shape(&model));
    again.history = vec![(Default::default(), model)];
    again.check().unwrap();
}

#[test]
fn many_files_are_filled_and_reused_while_snapshots_release_the_log() {
    let mut rig = Rig::fresh(3);
    for round in 1..400 {
        let group = round % 3 + 1;
        let last = rig.model().last(group);
        rig.append(group, last, 1, 1, 2, 1500);
        if round % 10 == 0 {
            rig.put_snapshot(group, last + 1, 1, format!("snapshot of {group} at {}", last + 1).as_bytes());
        }
        rig.settle();
    }
    rig.model().check_live(&rig.wal);
    rig.check().unwrap();
    let stats = rig.wal.stats();
    assert!(stats.files_reused > 10, "{stats:?}");
    assert!(stats.checkpoints > 10, "{stats:?}");
    assert!(stats.files < 16, "{stats:?}");
    let (disk, model) = (rig.disk.clone(), rig.model().clone());
    let (mut again, recovery) = Rig::open(disk, config(4)).unwrap();
    assert!(recovery.report.checkpoint.is_some());
    assert!(Model::of(&recovery).same_shape(&model));
    again.history = vec![(Default::default(), model)];
    again.check().unwrap();
}

#[test]
fn a_read_says_why_it_cannot() {
    let mut rig = Rig::fresh(5);
    rig.append(1, 0, 1, 1, 8, 100);
    let (wal, disk) = (&mut rig.wal, &mut rig.disk);
    let read = common::read_some(wal, disk, 1, Index(1), Index(8), 1000);
    assert_eq!(read, Err(ReadError::NotDurable { index: Index(1) }));
    rig.settle();
    rig.put_snapshot(1, 4, 1, b"four");
    rig.settle();
    let (wal, disk) = (&mut rig.wal, &mut rig.disk);
    for index in [0, 4, 9] {
        let read = common::read_some(wal, disk, 1, Index(index), Index(9), 1000);
        assert_eq!(read, Err(ReadError::Released { index: Index(index), first: Index(5), last: Index(8) }));
    }
    let read = common::read_some(wal, disk, 9, Index(1), Index(9), 1000);
    assert_eq!(read, Err(ReadError::Released { index: Index(1), first: Index(1), last: Index(0) }));
    let one = common::read_some(wal, disk, 1, Index(5), Index(8), 1).unwrap();
    assert_eq!((one.first, one.count, one.prev_term.0), (Index(5), 1, 1), "the first one in any case");
    assert_eq!(wal.group(GroupId(1)).unwrap().last, Index(8));
}
