//! Looking into a log: what a recovery would find, every damage named at its place, and nothing written.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use crate::common::{DIR, Rig, config, identity};
use coracle_base::GroupId;
use coracle_base::run::ENTRY_HEADER_BYTES;
use coracle_io::fake::{Damage, FakeDisk};
use coracle_wal::{DamageKind, Inspection, Owner, inspect, owner, walk};

fn look(disk: &FakeDisk) -> Inspection {
    let before = disk.image();
    let found = inspect(&mut disk.clone(), Path::new(DIR), &identity()).unwrap();
    for path in before.paths() {
        assert!(disk.read_file(&path) == before.read(&path), "{} was written", path.display());
    }
    assert_eq!(disk.image().paths(), before.paths());
    found
}

fn batches(found: &Inspection) -> u64 {
    found.files.iter().map(|file| file.batches).sum()
}

fn path(file_no: u64) -> PathBuf {
    format!("{DIR}/{file_no:08}.wal").into()
}

/// Three starts, each with rolls, checkpoints, releases and reuse of files, and a marker at the end.
fn busy_log() -> Rig {
    let mut rig = Rig::fresh(41);
    for start in 0..3 {
        for round in 0..60u64 {
            // Group 2 keeps all that it has, and pauses long enough for whole files to die around it.
            let group = if round < 12 { round % 3 + 1 } else { round % 2 * 2 + 1 };
            let last = rig.model().last(group);
            rig.append(group, last, 1, 1, 2, 1500);
            rig.put_state(group, format!("state {round}").as_bytes());
            if round % 5 > 2 && group != 2 {
                rig.put_snapshot(group, last, 1, format!("snapshot {round}").as_bytes());
            }
            rig.settle();
        }
        rig.now_us += 1_000_000;
        rig.settle();
        if start < 2 {
            let history = rig.history;
            rig = Rig::open(rig.disk, config(42 + start)).unwrap().0;
            rig.history = history;
        }
    }
    assert!(rig.wal.stats().files_reused > 0, "else nothing is shown");
    rig
}

#[test]
fn a_sound_log_has_no_damage_however_often_its_files_were_reused() {
    let rig = busy_log();
    let found = look(&rig.disk);
    assert_eq!(found.damage, []);
    assert_eq!(found.groups.len(), 3);
    let mut all = 0;
    for (group, live_bytes) in &found.groups {
        let held = rig.model().get(group.group.0);
        assert_eq!((group.last.0, group.first.0), (rig.model().last(group.group.0), held.base.0 + 1));
        let entries = held.entries.iter().filter(|(index, _)| **index > held.base.0);
        let bytes: usize =
            entries.map(|(_, (_, payload))| payload.as_ref().unwrap().len() + ENTRY_HEADER_BYTES).sum();
        let snapshot = group.snapshot.as_ref().map_or(0, |snapshot| snapshot.bytes.len());
        assert_eq!(*live_bytes, (bytes + snapshot) as u64, "group {}", group.group);
        all += live_bytes;
    }
    assert_eq!(found.files.iter().map(|file| file.live_bytes).sum::<u64>(), all);
    let (groups, _) = coracle_wal::look(&mut rig.disk.clone(), Path::new(DIR), &identity()).unwrap();
    assert!(groups.iter().eq(found.groups.iter().map(|(group, _)| group)));
    let walked = walk(&mut rig.disk.clone(), &config(1), &identity(), |_| {}).unwrap();
    assert_eq!(walked.batches, batches(&found));
    assert_eq!(owner(&mut rig.disk.clone(), Path::new(DIR)), Ok(Owner::Of(identity())));
}

/// While the log is in use and a batch is on its way.
#[test]
fn a_log_in_use_has_a_torn_tail_at_most() {
    let mut rig = busy_log();
    rig.disk.set_completing(coracle_io::fake::Completing::Manual);
    let last = rig.model().last(1);
    rig.append(1, last, 1, 1, 2, 1500);
    rig.submit().unwrap();
    assert_eq!(look(&FakeDisk::from_image(rig.disk.image(), 1)).damage, []);
}

#[test]
fn every_flipped_byte_is_named_with_its_file_or_not_used() {
    let rig = busy_log();
    let (image, sound) = (rig.disk.image(), look(&rig.disk));
    let (tail_file, tail_offset) = sound.report.tail.clone().unwrap();
    let mut named = 0;
    for file in sound.files.iter().map(|file| &file.path) {
        let bytes = image.read(file).unwrap();
        let worth = (0..bytes.len()).filter(|at| at % 191 == 0 || (bytes[*at] != 0 && at % 37 == 0));
        for at in worth.map(|at| at as u64) {
            let disk = FakeDisk::from_image(image.clone(), at);
            assert!(disk.corrupt(file, at, Damage::FlipBit { bit: (at % 8) as u8 }));
            let found = look(&disk);
            let damage = &found.damage;
            let what = || format!("{}, byte {at}: {damage:?}", file.display());
            if at < 8192 {
                let copy = at / 4096 * 4096;
                let is_it = |kind: &DamageKind| *kind == DamageKind::Head;
                assert!(damage.iter().any(|one| is_it(&one.kind) && one.offset == Some(copy)), "{}", what());
                named += 1;
                continue;
            }
            let in_marker = *file == tail_file && at >= tail_offset - 4096;
            if batches(&found) == batches(&sound) || in_marker {
                assert!(damage.is_empty(), "{}", what());
                continue;
            }
            let is_it = |one: &coracle_wal::Damage| {
                one.file == *file && one.offset.is_some_and(|offset| offset <= at && at < offset + 65_536)
            };
            assert!(damage.iter().all(is_it) && !damage.is_empty(), "{}", what());
            named += 1;
        }
    }
    assert!(named > 1000, "{named}");
}

#[test]
fn damage_names_the_groups_that_lost_something() {
    let rig = busy_log();
    let image = rig.disk.image();
    // Group 2 has no snapshot: all its entries live.
    for word in ["g2 i1 t1 ", "g2 i8 t1 ", "g2 i24 t1 "] {
        let place = |file: &PathBuf| {
            let bytes = image.read(file).unwrap();
            bytes.windows(word.len()).position(|window| window == word.as_bytes())
        };
        let files = look(&rig.disk).files;
        let (file, at) =
            files.iter().find_map(|file| place(&file.path).map(|at| (file.path.clone(), at))).unwrap();
        let disk = FakeDisk::from_image(image.clone(), 1);
        assert!(disk.corrupt(&file, at as u64, Damage::FlipBit { bit: 0 }));
        let damage = look(&disk).damage;
        let here = damage.iter().find(|one| one.file == file).unwrap();
        assert!(here.groups.contains(&GroupId(2)), "{word}: {damage:?}");
    }
    // Its oldest file is gone, which nothing but the checkpoint can tell.
    let first = look(&rig.disk).files.iter().find(|file| file.live_bytes > 0).unwrap().path.clone();
    let disk = FakeDisk::from_image(image.clone(), 1);
    disk.remove_file(&first);
    let damage = look(&disk).damage;
    let here = damage.iter().find(|one| one.kind == DamageKind::FileMissing).unwrap();
    assert_eq!((&here.file, here.groups.contains(&GroupId(2))), (&first, true), "{damage:?}");
}

#[test]
fn a_file_under_another_name_and_an_empty_directory_are_told() {
    let rig = busy_log();
    assert!(rig.disk.copy_file(&look(&rig.disk).files[1].path, path(900)));
    let damage = look(&rig.disk).damage;
    assert!(damage.iter().any(|one| one.kind == DamageKind::Stray && one.file == path(900)), "{damage:?}");

    let mut empty = FakeDisk::new(1);
    coracle_io::Disk::make_dir(&mut empty, Path::new(DIR)).unwrap();
    assert_eq!(owner(&mut empty, Path::new(DIR)), Ok(Owner::Empty));
    let found = look(&empty);
    assert!(found.damage.is_empty() && found.files.is_empty() && found.groups.is_empty());
}
