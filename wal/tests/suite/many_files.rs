//! A log that lies in more files than are kept open can be read back.

#![allow(clippy::unwrap_used)]

use crate::common::{Rig, config};
use coracle_io::fake::FakeDisk;

/// More than the log keeps open for reading.
const STARTS: u64 = 80;

#[test]
fn a_group_in_more_files_than_may_be_open_is_read_back() {
    let disk = FakeDisk::new(1);
    let mut rig = Rig::open(disk.clone(), config(1)).unwrap().0;
    rig.append(2, 0, 1, 1, 1, 10);
    rig.settle();
    for start in 1..=STARTS {
        let mut rig = Rig::open(disk.clone(), config(start + 1)).unwrap().0;
        rig.append(1, start - 1, 1, 1, 1, 10);
        rig.settle();
    }
    let mut rig = Rig::open(disk, config(STARTS + 2)).unwrap().0;
    let mut indexes =
        |group| rig.read_all(group).unwrap().into_iter().map(|(index, ..)| index).collect::<Vec<u64>>();
    assert_eq!(indexes(1), (1..=STARTS).collect::<Vec<_>>());
    // It lies in the first file of all, which is the first to be closed.
    assert_eq!(indexes(2), [1]);
}
