//! Indexes of older files, in the log: what they cost, what they save, and that nobody is led astray by one.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use crate::common::counting::Counting;
use crate::common::{Rig, config, identity};
use coracle_base::limits::BLOCK_BYTES;
use coracle_base::{GroupId, Index};
use coracle_io::Disk;
use coracle_io::fake::{Damage, DiskImage, FakeDisk, OpKind};
use coracle_wal::{Config, ReadError, Wal};

const FILE_BYTES: u64 = 1 << 20;
/// Groups that take turns.
const GROUPS: u64 = 40;
/// Of each group one entry in so many lives on.
const LIVE_EVERY: u64 = 16;

fn large(seed: u64) -> Config {
    Config { file_bytes: FILE_BYTES, checkpoint_every_bytes: FILE_BYTES / 2, ..config(seed) }
}

fn live(last: u64) -> Vec<u64> {
    (1..=last).filter(|index| index % LIVE_EVERY == 1).collect()
}

/// So many rounds of one entry a group; now and then each group's log is released but for a few entries.
fn go_on(rig: &mut Rig, rounds: u64, release: bool) {
    for _ in 0..rounds {
        for group in 1..=GROUPS {
            let last = rig.model().last(group);
            rig.append(group, last, 1, 1, 1, 600);
            if release && (last + group).is_multiple_of(32) {
                rig.put_snapshot_live(group, last + 1, 1, &live(last + 1), b"all");
            }
        }
        // Only the last model is asked.
        rig.history.drain(..rig.history.len() - 1);
        rig.settle();
    }
}

/// A log of several files in which few entries live.
fn log_of_files(seed: u64) -> Rig {
    let mut rig = Rig::open(FakeDisk::new(seed), large(seed)).unwrap().0;
    go_on(&mut rig, 260, true);
    rig
}

/// Reads one entry. Returns it, and the bytes that were read from the disk for it.
fn read_one(wal: &mut Wal, disk: &FakeDisk, group: u64, index: u64) -> (Result<Vec<u8>, ReadError>, u64) {
    let mut disk = Counting::new(disk.clone());
    wal.read_live(&mut disk, 5, GroupId(group), &[Index(index)], 10_000);
    let mut done = Vec::new();
    loop {
        if let Some((_, out)) = wal.poll_live() {
            return (out.entries.into_iter().next().unwrap().2, disk.read);
        }
        disk.submit().unwrap();
        disk.completions(&mut done);
        done.drain(..).for_each(|one| wal.on_done(&mut disk, one).unwrap());
    }
}

#[test]
fn an_old_entry_is_read_through_its_files_index_and_not_by_reading_the_file() {
    let mut rig = log_of_files(61);
    let stats = rig.wal.stats();
    assert!(stats.indexes >= 2, "{stats:?}");
    assert!(stats.index_bytes < stats.record_bytes / 100, "{stats:?}");
    let check = |wal: &mut Wal, disk: &FakeDisk, model: &crate::common::model::Model, when: &str| {
        let mut most = 0;
        for group in 1..=GROUPS {
            for index in [1, 1 + LIVE_EVERY] {
                let (entry, read) = read_one(wal, disk, group, index);
                let entry = entry.unwrap();
                let payload = coracle_base::run::Entries::new(Index(index), &entry).next().unwrap().payload;
                let live = model.get(group).live[&index].clone();
                assert_eq!(live.as_deref(), Some(payload), "group {group}, entry {index}, {when}");
                most = most.max(read);
            }
        }
        assert!(most < FILE_BYTES / 20, "{most} bytes were read for one entry {when}");
        assert_eq!(wal.stats().indexes_wrong, 0);
    };
    let model = rig.model().clone();
    check(&mut rig.wal, &rig.disk, &model, "in the running log");
    // A start finds them: by the list of a checkpoint, for their own records lie before it.
    let disk = rig.disk.clone();
    let (mut wal, recovery) = Wal::open(&mut disk.clone(), large(62), identity()).unwrap();
    assert!(recovery.report.checkpoint.is_some());
    check(&mut wal, &disk, &model, "after a start");
}

/// With the bytes of all indexes damaged one after the other: every entry is there, by a scan where it must be.
#[test]
fn a_damaged_index_costs_a_scan_and_nothing_else() {
    let rig = log_of_files(63);
    let image = rig.disk.image();
    let (mut wrong, mut tried) = (0, 0);
    for (file, offset, bytes) in index_records(&image) {
        // Of each record some bytes, its first and last among them.
        for at in (0..bytes).step_by(bytes as usize / 3 + 1).chain([bytes - 1]) {
            let mut disk = FakeDisk::from_image(image.clone(), 1);
            assert!(disk.corrupt(&file, offset + at, Damage::FlipBit { bit: (at % 8) as u8 }));
            let (mut wal, recovery) = Wal::open(&mut disk, large(64), identity()).unwrap();
            for group in [1, GROUPS] {
                for index in [1, 1 + LIVE_EVERY, 1 + 2 * LIVE_EVERY] {
                    let (entry, _) = read_one(&mut wal, &disk, group, index);
                    let entry = entry.unwrap_or_else(|error| panic!("{file}, {offset} + {at}: {error}"));
                    let found = coracle_base::run::Entries::new(Index(index), &entry).next().unwrap();
                    let expected = format!("g{group} i{index} t1 ");
                    assert!(found.payload.starts_with(expected.as_bytes()), "{recovery:?}");
                }
            }
            wrong += wal.stats().indexes_wrong;
            tried += 1;
        }
    }
    assert!(tried > 20 && wrong > 4, "{wrong} of {tried}");
}

/// An index whose checksums hold and that is wrong: whoever is led astray looks again without it.
#[cfg(feature = "breaks")]
#[test]
fn an_index_that_is_wrong_is_noticed_and_not_used_again() {
    let rig = log_of_files(71);
    let model = rig.model().clone();
    let (wal, disk) =
        (&mut Wal::open(&mut rig.disk.clone(), large(72), identity()).unwrap().0, rig.disk.clone());
    coracle_wal::breaks::mislead(true);
    for group in 1..=GROUPS {
        for index in [1, 1 + LIVE_EVERY, 1 + 3 * LIVE_EVERY] {
            let (entry, _) = read_one(wal, &disk, group, index);
            let entry = entry.unwrap_or_else(|error| panic!("group {group}, entry {index}: {error}"));
            let payload = coracle_base::run::Entries::new(Index(index), &entry).next().unwrap().payload;
            assert_eq!(model.get(group).live[&index].as_deref(), Some(payload));
        }
        let read = crate::common::read_some(wal, &mut disk.clone(), group, Index(1), Index(1), 5000).unwrap();
        assert_eq!((read.first, read.count), (Index(1), 1));
    }
    coracle_wal::breaks::mislead(false);
    assert!(wal.stats().indexes_wrong >= 1, "{:?}", wal.stats());
}

/// The file in which an index lies cannot be opened: that costs the index, not the entries of the file that it is of.
#[test]
fn an_index_that_cannot_be_opened_costs_a_scan_and_nothing_else() {
    let rig = log_of_files(65);
    let places: Vec<String> = index_records(&rig.disk.image()).into_iter().map(|(file, ..)| file).collect();
    let mut wrong = 0;
    for range in [false, true] {
        let disk = rig.disk.clone();
        let (mut wal, _) = Wal::open(&mut disk.clone(), large(66), identity()).unwrap();
        let mut failing: Vec<&String> = places.iter().collect();
        failing.dedup();
        failing.iter().for_each(|file| disk.fail_next(OpKind::Open, Some(Path::new(file)), 24));
        for group in [1, GROUPS] {
            if range {
                let read =
                    crate::common::read_some(&mut wal, &mut disk.clone(), group, Index(1), Index(1), 5000);
                assert_eq!(read.map(|read| read.count), Ok(1), "group {group}");
            } else {
                read_one(&mut wal, &disk, group, 1)
                    .0
                    .unwrap_or_else(|error| panic!("group {group}: {error}"));
            }
        }
        disk.fail_no_more();
        wrong += wal.stats().indexes_wrong;
    }
    assert!(wrong > 0);
}

/// A file was cut short, its index is sound: who is led beyond its end is told so, and does not look for ever.
#[test]
fn entries_of_a_file_that_was_cut_short_are_told_apart() {
    let rig = log_of_files(67);
    let image = rig.disk.image();
    let logs: Vec<_> =
        image.paths().into_iter().filter(|path| path.to_string_lossy().ends_with("wal")).collect();
    let mut lost = 0;
    for file in logs {
        let disk = FakeDisk::from_image(image.clone(), 1);
        assert!(disk.truncate_file(&file, 16 * BLOCK_BYTES as u64));
        let Ok((mut wal, _)) = Wal::open(&mut disk.clone(), large(68), identity()) else { continue };
        for group in 1..=GROUPS {
            let one =
                crate::common::read_some(&mut wal, &mut disk.clone(), group, Index(17), Index(17), 5000);
            lost += u32::from(one.is_err());
            lost += u32::from(read_one(&mut wal, &disk, group, 33).0.is_err());
        }
    }
    assert!(lost > 0);
}

/// (file, offset of the body, its bytes) of the records of indexes: blocks and directories.
fn index_records(image: &DiskImage) -> Vec<(String, u64, u64)> {
    let mut found = Vec::new();
    for file in image.paths() {
        let bytes = image.read(&file).unwrap();
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let mut at = 2 * BLOCK_BYTES;
        while bytes.get(at..at + 4) == Some(b"CWB1") {
            let end = at + 96 + number(at + 36);
            let mut record = at + 96;
            while record < end {
                let length = number(record + 4);
                if [12, 13].contains(&bytes[record]) {
                    let file = file.to_string_lossy().into_owned();
                    found.push((file, record as u64 + 8, length as u64));
                }
                record += 8 + length;
            }
            at = end.next_multiple_of(BLOCK_BYTES);
        }
    }
    assert!(found.len() >= 4, "{found:?}");
    found
}

/// Nothing lives in the files that the log leaves behind, and nobody will read there: no byte is written for them.
#[test]
fn files_in_which_nothing_lives_get_no_index() {
    let mut rig = Rig::open(FakeDisk::new(65), large(65)).unwrap().0;
    for round in 0..1500 {
        let last = rig.model().last(1);
        rig.append(1, last, 1, 1, 1, 9000);
        if round % 8 == 0 {
            rig.put_snapshot(1, last + 1, 1, b"all");
        }
        rig.history.drain(..rig.history.len() - 1);
        rig.settle();
    }
    let stats = rig.wal.stats();
    assert!(stats.files_reused > 1, "{stats:?}");
    assert_eq!((stats.indexes, stats.index_bytes), (0, 0));
}

/// Nothing is released, so all of each file lives: while there is more to be written than the disk takes, nobody looks after
/// indexes; when it is quiet they are written.
#[test]
fn a_file_that_lives_whole_gets_its_index_when_the_log_is_quiet() {
    let mut rig = Rig::open(FakeDisk::new(66), large(66)).unwrap().0;
    let busy = |rig: &mut Rig, rounds: u64| {
        for _ in 0..rounds {
            for group in 1..=GROUPS {
                let last = rig.model().last(group);
                rig.append(group, last, 1, 1, 1, 600);
            }
            rig.history.drain(..rig.history.len() - 1);
            rig.submit().unwrap();
            rig.complete().unwrap();
        }
    };
    busy(&mut rig, 120);
    assert!(rig.wal.stats().files > 4, "{:?}", rig.wal.stats());
    assert_eq!(rig.wal.stats().index_bytes, 0);
    for _ in 0..40 {
        rig.settle();
    }
    assert!(rig.wal.stats().indexes >= 1, "{:?}", rig.wal.stats());
    assert_eq!(rig.check(), Ok(()));
}

/// A start whose replay began in the middle of a file does not know where its first runs lie: the first reader scans it, and
/// the next start finds the index that was made of that.
#[test]
fn what_was_scanned_once_is_indexed() {
    let mut rig = Rig::open(FakeDisk::new(67), large(67)).unwrap().0;
    go_on(&mut rig, 50, false);
    let disk = rig.disk.clone();
    let (mut rig, recovery) = Rig::open(disk, large(68)).unwrap();
    assert!(recovery.report.checkpoint.is_some() && rig.wal.stats().indexes == 0);
    let (entry, read) = read_one(&mut rig.wal, &rig.disk, 7, 3);
    assert!(entry.is_ok() && read > FILE_BYTES / 2, "{read} bytes");
    for _ in 0..40 {
        rig.settle();
    }
    assert_eq!(rig.wal.stats().indexes, 1);
    let (mut wal, _) = Wal::open(&mut rig.disk.clone(), large(69), identity()).unwrap();
    let (entry, read) = read_one(&mut wal, &rig.disk, 7, 3);
    assert!(entry.is_ok() && read < FILE_BYTES / 20, "{read} bytes");
}

/// Files of starts that ended soon: each has its index soon after the next start, however many there are.
#[test]
fn short_files_of_crashed_starts_get_indexes() {
    let mut disk = FakeDisk::new(70);
    for seed in 70..78 {
        let (mut rig, _) = Rig::open(disk, large(seed)).unwrap();
        go_on(&mut rig, 3, false);
        disk = FakeDisk::from_image(rig.disk.image(), seed);
    }
    let (mut rig, _) = Rig::open(disk, large(80)).unwrap();
    go_on(&mut rig, 1, false);
    for _ in 0..100 {
        rig.settle();
    }
    let (mut wal, _) = Wal::open(&mut rig.disk.clone(), large(81), identity()).unwrap();
    let by_index = (1..=15).filter(|index| {
        let (entry, read) = read_one(&mut wal, &rig.disk, 9, *index);
        assert!(entry.is_ok());
        read <= 16 * BLOCK_BYTES as u64
    });
    assert!(by_index.count() >= 14);
}
