//! Checkpoints that only name the pages of groups that nothing happens to: what they cost, what they keep, and what damage
//! does to them.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use crate::common::{Rig, identity};
use coracle_base::GroupId;
use coracle_base::limits::BLOCK_BYTES;
use coracle_io::fake::{Damage, DiskImage, FakeDisk};
use coracle_wal::{Config, Recovery, Wal};

/// Groups that nothing happens to, several pages of them.
const IDLE: std::ops::Range<u64> = 10..510;

/// Files that hold several checkpoints.
fn config(seed: u64) -> Config {
    Config { file_bytes: 4 << 20, ..crate::common::config(seed) }
}

/// Group 1 goes on, its log is released now and then, until so many checkpoints were written.
fn go_on(rig: &mut Rig, checkpoints: u64) {
    let mut round = 0;
    while rig.wal.stats().checkpoints < checkpoints {
        let last = rig.model().last(1);
        rig.append(1, last, 1, 1, 1, 9000);
        if round % 4 == 0 {
            rig.put_snapshot(1, last + 1, 1, b"all");
        }
        rig.settle();
        round += 1;
    }
}

fn with_idle_groups(config: Config) -> Rig {
    let mut rig = Rig::open(FakeDisk::new(config.seed), config).unwrap().0;
    for group in IDLE {
        rig.put_state(group, &[group as u8; 200]);
    }
    rig
}

fn check(recovery: &Recovery) {
    assert_eq!(recovery.groups.len(), IDLE.count() + 1);
    for group in &recovery.groups {
        if IDLE.contains(&group.group.0) {
            assert_eq!(group.state, [group.group.0 as u8; 200], "{}", group.group);
        }
    }
}

fn open(image: &DiskImage, damaged: &[(PathBuf, u64)]) -> Recovery {
    let mut disk = FakeDisk::from_image(image.clone(), 1);
    for (file, offset) in damaged {
        disk.corrupt(file, *offset, Damage::FlipBit { bit: 3 });
    }
    Wal::open(&mut disk, config(30), identity()).unwrap().1
}

/// Where in the files a page lies that tells of this group: the places of its state, after the first (the state itself).
fn pages_of(image: &DiskImage, group: u64) -> Vec<(PathBuf, u64)> {
    let state = [&GroupId(group).0.to_le_bytes()[..], &[97, 0, 0, 0]].concat();
    let mut places = Vec::new();
    for file in image.paths() {
        let bytes = image.read(&file).unwrap();
        // In a page: group, then flags (extents with bytes, packed).
        let found = bytes.windows(state.len()).enumerate().filter(|(_, window)| window[..8] == state[..8]);
        let found = found.filter(|(_, window)| window[8] == 96 && window[9..12] == [0, 0, 0]);
        places.extend(found.map(|(at, _)| (file.clone(), at as u64)));
    }
    places
}

#[test]
fn groups_that_nothing_happens_to_cost_no_more_than_two_pages_each() {
    let mut rig = with_idle_groups(config(41));
    go_on(&mut rig, 3);
    let places = pages_of(&rig.disk.image(), 100);
    assert_eq!(places.len(), 2, "{places:?}");
    go_on(&mut rig, 5);
    let image = rig.disk.image();
    check(&open(&image, &[]));
}

/// The files in which copies lie are wanted back: they are written again, and the log does not grow for them. Here each page
/// is changed at another time, so that they lie all over the log.
#[test]
fn pages_do_not_keep_files_that_hold_nothing_else() {
    let mut rig = with_idle_groups(Config { file_bytes: 256 << 10, ..config(42) });
    go_on(&mut rig, 6);
    let files = rig.wal.stats().files;
    for round in 0..24 {
        let group = IDLE.start + 64 * (round % 8);
        rig.put_state(group, &[group as u8; 200]);
        let checkpoints = rig.wal.stats().checkpoints;
        go_on(&mut rig, checkpoints + 4);
        let now = rig.wal.stats().files;
        assert!(now <= files + 4, "{files} files, then {now}");
    }
    assert!(rig.wal.stats().files_reused > 10, "{:?}", rig.wal.stats());
    check(&open(&rig.disk.image(), &[]));
}

#[test]
fn one_sound_copy_of_a_page_is_enough_and_without_any_the_older_checkpoint_serves() {
    let mut rig = with_idle_groups(config(43));
    go_on(&mut rig, 4);
    let image = rig.disk.image();
    let sound = open(&image, &[]);
    assert_eq!(sound.report.damaged_pages, 0);
    let places = pages_of(&image, 100);
    let mut damaged = 0;
    for place in &places {
        let recovery = open(&image, std::slice::from_ref(place));
        check(&recovery);
        damaged += recovery.report.damaged_pages;
        assert_eq!(recovery.report.checkpoint, sound.report.checkpoint, "{place:?}");
    }
    assert!(damaged >= 1, "the first copy was damaged once");
    // Each sector in which a batch begins: one damage never costs more than what it covers.
    for file in image.paths() {
        let bytes = image.read(&file).unwrap();
        let batches =
            (2..bytes.len() / BLOCK_BYTES).filter(|at| bytes[at * BLOCK_BYTES..].starts_with(b"CWB1"));
        for block in batches {
            check(&open(&image, &[(file.clone(), (block * BLOCK_BYTES) as u64 + 50)]));
        }
    }
    // Both copies: no checkpoint that names them is whole. Whatever is found then, nothing is invented.
    let mut disk = FakeDisk::from_image(image.clone(), 1);
    for (file, offset) in &places {
        disk.corrupt(file, *offset, Damage::FlipBit { bit: 3 });
    }
    match Wal::open(&mut disk, config(30), identity()) {
        Ok((_, recovery)) => {
            assert_ne!(recovery.report.checkpoint, sound.report.checkpoint);
            check(&recovery);
        }
        Err(error) => assert!(error.to_string().contains("checkpoint"), "{error}"),
    }
}

/// Pages are found by their place: a file of which nothing else is needed may have lost its head, and is not put aside.
#[test]
fn a_file_with_pages_and_no_sound_head_is_kept_and_read() {
    let mut rig = with_idle_groups(Config { file_bytes: 256 << 10, ..config(45) });
    go_on(&mut rig, 9);
    let image = rig.disk.image();
    let sound = open(&image, &[]).report.checkpoint;
    let files: std::collections::BTreeSet<PathBuf> =
        pages_of(&image, 100).into_iter().map(|(file, _)| file).collect();
    let mut kept = 0;
    for file in files {
        let mut disk = FakeDisk::from_image(image.clone(), 1);
        for copy in [100, BLOCK_BYTES as u64 + 100] {
            disk.corrupt(&file, copy, Damage::FlipBit { bit: 3 });
        }
        let recovery = Wal::open(&mut disk, config(30), identity()).unwrap().1;
        check(&recovery);
        if recovery.report.checkpoint == sound && !recovery.report.is_incomplete() {
            kept += 1;
            assert_eq!(recovery.report.strays, Vec::<PathBuf>::new());
            let image = disk.image();
            check(&open(&image, &[]));
        }
    }
    assert!(kept > 0, "no file held nothing but pages");
}

/// A change to one group of a page costs its page, and no other.
#[test]
fn a_change_brings_its_page_along() {
    let mut rig = with_idle_groups(config(44));
    go_on(&mut rig, 3);
    assert_eq!(pages_of(&rig.disk.image(), 100).len(), 2);
    rig.put_state(100, &[1; 200]);
    rig.put_state(100, &[100; 200]);
    rig.settle();
    let image = rig.disk.image();
    check(&open(&image, &[]));
    go_on(&mut rig, 5);
    let image = rig.disk.image();
    check(&open(&image, &[]));
    assert_eq!((pages_of(&image, 100).len(), pages_of(&image, 400).len()), (4, 2));
}
