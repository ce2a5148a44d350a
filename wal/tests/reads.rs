//! Entries back from files, when the files are not what they were a moment ago.
#![allow(clippy::unwrap_used)]

mod common;

use common::Rig;
use coracle_base::{GroupId, Index};
use coracle_io::fake::Completing;
use coracle_wal::ReadError;

/// Simulator seed 763: a file was indexed for a reader while its last batches were on their way; they were missing from
/// the index ever after, and their entries were taken for damaged.
#[test]
fn a_file_is_indexed_only_when_all_of_it_is_there() {
    let mut rig = Rig::fresh(31);
    rig.append(1, 0, 1, 1, 1, 100);
    rig.settle();
    rig.disk.set_completing(Completing::Manual);
    let first_file = rig.wal.stats().files;
    for last in 0..45 {
        rig.append(2, last, 1, 1, 1, 3000);
    }
    // The log has gone on to the next file, and both groups have entries there.
    rig.append(1, 1, 1, 1, 1, 100);
    rig.submit().unwrap();
    let (wal, disk) = (&mut rig.wal, &mut rig.disk);
    wal.read(disk, 5, GroupId(1), Index(1), Index(1), 1000);
    assert_eq!(wal.poll_read(), Some((5, Err(ReadError::NotDurable { index: Index(1) }))));
    rig.settle();
    assert!(rig.wal.stats().files > first_file, "the log has gone on");
    assert_eq!(rig.check(), Ok(()));
}
