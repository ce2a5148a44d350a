//! The walk over a log's files: every run that lies there, and none that does not.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use crate::common::{DIR, Rig, config, identity};
use coracle_io::fake::{Damage, FakeDisk};
use coracle_wal::{Walked, walk};

/// The payloads of all entries in the files, by group and index; the last one written counts.
type Found = BTreeMap<(u64, u64), Vec<u8>>;

fn walk_all(disk: &mut FakeDisk) -> (Walked, Found) {
    let mut found = Found::new();
    let walked = walk(disk, &config(99), &identity(), |run| {
        run.check_payloads().unwrap();
        for entry in run.entries() {
            found.insert((run.header.group.0, entry.index.0), entry.payload.to_vec());
        }
    });
    (walked.unwrap(), found)
}

/// Two starts, each of which fills several files; nothing is released. What was written, and the disk after it.
fn two_starts() -> (FakeDisk, Found) {
    let mut rig = Rig::fresh(31);
    let mut written = Found::new();
    for start in 0..2 {
        for round in 0..100u64 {
            let group = round % 3 + 1;
            let last = rig.model().last(group);
            rig.append(group, last, 1, 1, 2, 1500);
            for index in [last + 1, last + 2] {
                let entries = crate::common::entries(group, index, 1, 1, 1500);
                let payload = coracle_base::run::Entries::new(coracle_base::Index(index), entries.bytes());
                written.insert((group, index), payload.last().unwrap().payload.to_vec());
            }
            rig.settle();
        }
        rig.wal.shutdown(&mut rig.disk).unwrap();
        // Another start cuts the tail and goes on in a new file, as after any restart.
        let history = rig.history;
        rig = Rig::open(rig.disk, config(32 + start)).unwrap().0;
        rig.history = history;
    }
    (rig.disk, written)
}

#[test]
fn a_walk_finds_every_run_of_every_start() {
    let (mut disk, written) = two_starts();
    let (walked, found) = walk_all(&mut disk);
    assert!(found == written, "{} entries of {}", found.len(), written.len());
    assert_eq!((walked.runs, walked.gaps.len(), walked.tail_suspect), (200, 0, false));
    assert!(walked.batches >= 200);
}

#[test]
fn a_walk_misses_what_is_damaged_and_nothing_else() {
    let (mut disk, written) = two_starts();
    // In the first batch that begins in the second half of the first file.
    assert!(disk.corrupt(format!("{DIR}/00000001.wal"), 32 * 1024 + 200, Damage::FlipBit { bit: 3 }));
    let (walked, found) = walk_all(&mut disk);
    assert_eq!((walked.runs, walked.gaps.len()), (199, 1), "{:?}", walked.gaps);
    assert_eq!(found.len(), written.len() - 2);
    assert!(found.iter().all(|(place, payload)| written[place] == *payload));
}

#[test]
fn a_walk_through_nothing_finds_nothing() {
    let mut disk = FakeDisk::new(1);
    coracle_io::Disk::make_dir(&mut disk, DIR.as_ref()).unwrap();
    assert_eq!(walk_all(&mut disk), (Walked::default(), Found::new()));
}
