//! Entries that were placed for a snapshot that does not come.

use crate::common::{Rig, config, entries};
use coracle_base::GroupId;

const FIRST_FILE: &str = "wal/00000001.wal";

/// Places entries in the first file, lets go of them after so many rounds, if at all, and goes on with another group.
fn run(rounds: u64, unplaced_after: Option<u64>) -> Rig {
    let mut rig = Rig::fresh(48);
    rig.place(1, 5, &entries(1, 5, 3, 2, 500));
    for last in 0..rounds {
        if unplaced_after == Some(last) {
            rig.wal.unplace(GroupId(1));
        }
        rig.append(2, last, 1, 1, 1, 9000);
        rig.put_snapshot(2, last + 1, 1, b"all");
        rig.settle();
    }
    rig
}

#[test]
fn what_was_placed_in_vain_keeps_no_file_and_no_checkpoint_misses_it() {
    const ROUNDS: u64 = 90;
    let kept = run(ROUNDS, None);
    assert!(kept.disk.read_file(FIRST_FILE).is_some(), "what waits for its snapshot is kept");
    let mut freed = 0;
    for rounds in 1..ROUNDS {
        let rig = run(rounds, Some(20));
        let is_gone = rig.disk.read_file(FIRST_FILE).is_none();
        assert!(!is_gone || rounds > 20, "let go of before it was to be");
        freed += u64::from(is_gone);
        // Neither of the checkpoints that a start may begin with names a file that is not there.
        let (_, recovery) = Rig::open(rig.disk.clone(), config(49)).unwrap();
        assert!(!recovery.report.is_incomplete(), "after {rounds} rounds: {:?}", recovery.report);
        assert!(recovery.groups.iter().all(|group| !group.suspect), "after {rounds} rounds");
    }
    assert!(freed > 20, "its file was used again in {freed} of the runs");
}
