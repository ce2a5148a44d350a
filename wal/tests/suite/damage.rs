//! Damage and hostile hands: every flipped byte, unreadable blocks, files that are missing, old, swapped, foreign or newer.
//!
//! What must hold: the same log as before, or damage reported and the groups concerned suspect; never wrong entries, never
//! a panic.

#![allow(clippy::unwrap_used)]

use crate::common::model::Model;
use crate::common::{DIR, Rig, config, identity, read_all};
use coracle_base::checksum::{crc32c, crc32c_from, mix64};
use coracle_base::limits::BLOCK_BYTES;
use coracle_base::{NodeId, ShardId};
use coracle_io::Disk;
use coracle_io::fake::{Completing, Damage, DiskImage, FakeDisk, OpKind};
use coracle_wal::{Identity, Recovery, Wal, WalError};

/// What became of a damaged log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// All there, nothing noticed: the byte is not used.
    Same,
    /// All there, and the damage was noticed.
    SameAndNoticed,
    /// Noticed; some records are gone and their groups suspect.
    Suspect,
    /// Refused, with an error that says why.
    Refused,
    /// The last batch fell, as after a crash: it alone has no later proof.
    TailCut,
}

pub(crate) fn path(file_no: u64) -> String {
    format!("{DIR}/{file_no:08}.wal")
}

/// A log of some files with a checkpoint, acknowledged and marked: (its disk, what it holds).
fn sound_log(mark: bool) -> (DiskImage, Model) {
    let mut rig = Rig::fresh(11);
    for round in 0..14u64 {
        let group = round % 3 + 1;
        let last = rig.model().last(group);
        rig.append(group, last, 1, 1, 2, 1200);
        rig.put_state(group, format!("state {round}").as_bytes());
        if round == 8 {
            let last = rig.model().last(2);
            rig.put_snapshot(2, last - 1, 1, b"a snapshot of group 2");
        }
        rig.settle();
    }
    if mark {
        rig.now_us += 1_000_000;
        rig.settle();
    }
    (rig.disk.image(), rig.model().clone())
}

fn judge(disk: &mut FakeDisk, model: &Model) -> Result<Outcome, String> {
    let opened = Wal::open(disk, config(12), identity());
    let (mut wal, recovery) = match opened {
        Ok(opened) => opened,
        Err(WalError::Lost { .. }) => return Ok(Outcome::Refused),
        Err(error) => return Err(format!("an unexpected error: {error}")),
    };
    let noticed = noticed(&recovery);
    let whole = Model::of(&recovery);
    let mut same = whole.same_shape(model);
    let is_suspect = |id: &u64| recovery.groups.iter().find(|one| one.group.0 == *id).map(|one| one.suspect);
    let lost = model.ids().into_iter().filter(|id| !whole.only(*id).same_shape(&model.only(*id)));
    let mut unnoticed = lost.filter(|id| !is_suspect(id).unwrap_or(recovery.report.is_incomplete()));
    if let Some(id) = unnoticed.find(|_| !recovery.report.torn) {
        return Err(format!("group {id} has lost something, and others are blamed: {recovery:?}"));
    }
    for found in &recovery.groups {
        let id = found.group.0;
        match read_all(&mut wal, disk, id) {
            Ok(read) => {
                let all = model.check_entries(id, &read).is_ok();
                let held = model.get(id);
                let wrong = read.iter().find(|(index, term, payload)| {
                    held.entries.get(index).is_none_or(|(t, p)| t != term || p.as_ref() != Some(payload))
                });
                // A snapshot that is lost may show entries that it had released: they are right all the same.
                if let Some((index, ..)) = wrong.filter(|(index, ..)| *index > held.base.0) {
                    return Err(format!("group {id}: entry {index} is not what was written: {recovery:?}"));
                }
                same &= all;
            }
            // Noticed when it is read.
            Err(coracle_wal::ReadError::Corrupt { .. } | coracle_wal::ReadError::Disk(_)) => {
                return Ok(Outcome::Suspect);
            }
            Err(error) => return Err(format!("group {id}: {error}")),
        }
    }
    match (same, noticed) {
        (true, false) => Ok(Outcome::Same),
        (true, true) => Ok(Outcome::SameAndNoticed),
        (false, true) => Ok(Outcome::Suspect),
        (false, false) if recovery.report.torn => Ok(Outcome::TailCut),
        (false, false) => Err(format!("records are gone and nothing is noticed: {recovery:?}")),
    }
}

fn noticed(recovery: &Recovery) -> bool {
    let report = &recovery.report;
    report.damaged_heads > 0
        || report.is_incomplete()
        || !(report.missing.is_empty() && report.strays.is_empty())
        || recovery.groups.iter().any(|group| group.suspect)
}

/// Offsets of the bytes of a file that are worth a flip: all that are not zero, and every 61st of the others.
fn offsets(image: &DiskImage, file: &str) -> Vec<u64> {
    let bytes = image.read(file).unwrap();
    (0..bytes.len()).filter(|at| bytes[*at] != 0 || at % 61 == 0).map(|at| at as u64).collect()
}

#[test]
fn every_flipped_byte_is_noticed_or_not_used() {
    let (image, model) = sound_log(true);
    let mut outcomes = std::collections::BTreeMap::new();
    for file in image.paths() {
        let file = file.to_string_lossy().into_owned();
        for at in offsets(&image, &file) {
            let mut disk = FakeDisk::from_image(image.clone(), at);
            assert!(disk.corrupt(&file, at, Damage::FlipBit { bit: (at % 8) as u8 }));
            let outcome =
                judge(&mut disk, &model).unwrap_or_else(|error| panic!("{file}, byte {at}: {error}"));
            *outcomes.entry(format!("{outcome:?}")).or_insert(0u32) += 1;
        }
    }
    println!("{outcomes:?}");
    assert!(outcomes["Suspect"] > 1000 && outcomes["SameAndNoticed"] > 100, "{outcomes:?}");
    assert!(!outcomes.contains_key("TailCut"), "after a mark no data batch falls unnoticed: {outcomes:?}");
    assert!(!outcomes.contains_key("Refused"), "{outcomes:?}");
}

#[test]
fn every_lost_or_unreadable_block_is_noticed_or_not_used() {
    let (image, model) = sound_log(true);
    let mut suspect = 0;
    for file in image.paths() {
        let blocks = image.read(&file).unwrap().len() / BLOCK_BYTES;
        for block in 0..blocks as u64 {
            let at = block * BLOCK_BYTES as u64;
            let other = at.wrapping_add(5 * BLOCK_BYTES as u64) % (blocks * BLOCK_BYTES) as u64;
            let damages = [
                Damage::Unreadable,
                Damage::Zero { bytes: BLOCK_BYTES },
                Damage::Zero { bytes: 512 },
                Damage::Garbage { bytes: BLOCK_BYTES },
                Damage::SwapSectors { with: other },
            ];
            for damage in damages {
                let mut disk = FakeDisk::from_image(image.clone(), at);
                assert!(disk.corrupt(&file, at, damage));
                let outcome = judge(&mut disk, &model)
                    .unwrap_or_else(|error| panic!("{}, {damage:?} at {at}: {error}", file.display()));
                assert_ne!(outcome, Outcome::TailCut, "{}, {damage:?} at {at}", file.display());
                suspect += u32::from(outcome == Outcome::Suspect);
            }
        }
    }
    assert!(suspect > 20);
}

/// Two sectors, or two pages, exchanged: within a file, and between files.
#[test]
fn every_swapped_sector_is_noticed_or_not_used() {
    let (image, model) = sound_log(true);
    let mut outcomes = std::collections::BTreeMap::new();
    for unit in [512, BLOCK_BYTES] {
        let pairs = swaps(&image, unit);
        let (within, between): (Vec<_>, Vec<_>) = pairs.iter().partition(|(one, two)| one.0 == two.0);
        assert!(within.len() > 100 && between.len() > 100, "{} and {}", within.len(), between.len());
        for (one, two) in pairs {
            let mut disk = FakeDisk::from_image(image.clone(), 1);
            swap(&disk, &one, &two, unit);
            let outcome = judge(&mut disk, &model)
                .unwrap_or_else(|error| panic!("{unit} bytes, {one:?} with {two:?}: {error}"));
            assert_ne!(outcome, Outcome::TailCut, "{unit} bytes, {one:?} with {two:?}");
            *outcomes.entry((unit, format!("{outcome:?}"))).or_insert(0u32) += 1;
        }
    }
    println!("{outcomes:?}");
    for unit in [512, BLOCK_BYTES] {
        let count = |outcome: &str| outcomes.get(&(unit, outcome.to_owned())).copied().unwrap_or_default();
        assert!(count("Suspect") > 100 && count("Same") > 10, "{outcomes:?}");
    }
}

/// A file and an offset in it.
type Place = (String, usize);

/// Pairs of units that differ: all of them, or as many as take some seconds, evenly chosen.
fn swaps(image: &DiskImage, unit: usize) -> Vec<(Place, Place)> {
    const PAIRS_MAX: usize = 3000;
    let mut places: Vec<(Place, Vec<u8>)> = Vec::new();
    for file in image.paths() {
        let name = file.to_string_lossy().into_owned();
        let bytes = image.read(&file).unwrap();
        places.extend(
            (0..).step_by(unit).zip(bytes.chunks(unit)).map(|(at, b)| ((name.clone(), at), b.to_vec())),
        );
    }
    // Of those that were never written two are enough.
    let mut empty = 0;
    places.retain(|(_, bytes)| {
        empty += u32::from(bytes.iter().all(|byte| *byte == 0));
        empty <= 2 || bytes.iter().any(|byte| *byte != 0)
    });
    let pairs = (0..places.len()).flat_map(|one| (0..one).map(move |two| (one, two)));
    let pairs: Vec<_> = pairs.filter(|(one, two)| places[*one].1 != places[*two].1).collect();
    let step = pairs.len().div_ceil(PAIRS_MAX);
    pairs.iter().step_by(step).map(|(one, two)| (places[*one].0.clone(), places[*two].0.clone())).collect()
}

fn swap(disk: &FakeDisk, one: &Place, two: &Place, unit: usize) {
    let mut files = [one, two].map(|place| disk.read_file(&place.0).unwrap());
    let [from_one, from_two] = [(0, one), (1, two)].map(|(nth, at)| files[nth][at.1..at.1 + unit].to_vec());
    for (place, bytes) in [(one, from_two), (two, from_one)] {
        let nth = usize::from(place.0 == two.0 && one.0 != two.0);
        files[nth][place.1..place.1 + unit].copy_from_slice(&bytes);
        disk.put_file(&place.0, &files[nth]);
    }
}

#[test]
fn an_error_reading_the_tail_makes_it_suspect() {
    let (image, model) = sound_log(true);
    let file = path(last_file_in_use(&image));
    let end = tail_offset(&image);
    let disk = FakeDisk::from_image(image, 1);
    assert!(disk.corrupt(&file, end, Damage::Unreadable));
    let (_, recovery) = Wal::open(&mut disk.clone(), config(12), identity()).unwrap();
    assert!(recovery.report.tail_suspect && !recovery.report.torn);
    assert!(recovery.groups.iter().all(|group| group.suspect));
    assert!(Model::of(&recovery).same_shape(&model));
    // The tail is cut now, but what may be lost stays lost: also for the next start.
    let (_, recovery) = Wal::open(&mut disk.clone(), config(13), identity()).unwrap();
    assert!(recovery.groups.iter().all(|group| group.suspect), "{:?}", recovery.report);
}

#[test]
fn suspicion_outlives_checkpoints_until_it_is_cleared() {
    let (image, model) = sound_log(true);
    let disk = FakeDisk::from_image(image.clone(), 1);
    assert!(disk.corrupt(path(last_file_in_use(&image)), tail_offset(&image), Damage::Unreadable));
    let (mut rig, _) = Rig::open(disk, config(12)).unwrap();
    rig.wal.clear_suspect(coracle_base::GroupId(1));
    for _ in 0..60 {
        let last = rig.model().last(3);
        rig.append(3, last, 1, 1, 1, 8000);
        rig.settle();
    }
    assert!(rig.wal.stats().checkpoints > 2);
    let (_, recovery) = Wal::open(&mut rig.disk.clone(), config(13), identity()).unwrap();
    let suspect: Vec<_> = recovery.groups.iter().map(|group| (group.group.0, group.suspect)).collect();
    assert_eq!(suspect, [(1, false), (2, true), (3, true)]);
    drop(model);
}

#[test]
fn a_missing_file_is_noticed() {
    let (image, model) = sound_log(true);
    let logs: Vec<u64> =
        (1..=last_file_in_use(&image)).filter(|no| image.read(path(*no)).is_some()).collect();
    assert!(logs.len() > 1);
    for file_no in logs {
        let mut disk = FakeDisk::from_image(image.clone(), 1);
        disk.remove_file(path(file_no));
        let outcome = judge(&mut disk, &model).unwrap();
        assert!(!matches!(outcome, Outcome::Same | Outcome::TailCut), "file {file_no}: {outcome:?}");
    }
}

#[test]
fn an_older_copy_of_a_file_is_noticed() {
    let mut rig = Rig::fresh(11);
    for round in 0..3 {
        rig.append(1, round, 1, 1, 1, 3000);
        rig.settle();
    }
    let old = rig.disk.image();
    for round in 3..30 {
        rig.append(1, round, 1, 1, 1, 3000);
        rig.settle();
    }
    assert!(rig.disk.put_old_file(path(1), &old));
    let model = rig.model().clone();
    let outcome = judge(&mut FakeDisk::from_image(rig.disk.image(), 1), &model).unwrap();
    assert_eq!(outcome, Outcome::Suspect);
}

#[test]
fn swapped_files_are_noticed() {
    let (image, model) = sound_log(true);
    let mut disk = FakeDisk::from_image(image.clone(), 1);
    disk.put_file(path(1), &image.read(path(2)).unwrap());
    disk.put_file(path(2), &image.read(path(1)).unwrap());
    let outcome = judge(&mut disk, &model).unwrap();
    assert!(matches!(outcome, Outcome::Suspect | Outcome::Refused), "{outcome:?}");
}

#[test]
fn a_truncated_file_is_noticed() {
    let (image, model) = sound_log(true);
    let last = last_file_in_use(&image);
    for file_no in 1..=last {
        for bytes in [0, 100, 4096, 8192, 12_288, 20_000] {
            let mut disk = FakeDisk::from_image(image.clone(), 1);
            assert!(disk.truncate_file(path(file_no), bytes));
            let outcome =
                judge(&mut disk, &model).unwrap_or_else(|error| panic!("{file_no} to {bytes}: {error}"));
            assert!(
                !matches!(outcome, Outcome::Same | Outcome::TailCut),
                "file {file_no} to {bytes}: {outcome:?}"
            );
        }
    }
}

#[test]
fn a_log_of_another_is_refused() {
    let (image, _) = sound_log(true);
    let own = identity();
    let others = [
        ("the cluster", Identity { cluster: 7, ..own }),
        ("the node", Identity { node: NodeId(7), ..own }),
        ("the node's incarnation", Identity { incarnation: 7, ..own }),
        ("the shard", Identity { shard: ShardId(7), ..own }),
        ("the number of shards", Identity { shards: 7, ..own }),
    ];
    for (name, other) in others {
        let mut disk = FakeDisk::from_image(image.clone(), 1);
        match Wal::open(&mut disk, config(12), other) {
            Err(WalError::WrongIdentity { field, expected, .. }) => {
                assert_eq!((field, expected), (name, if field == "the cluster" { 7 } else { expected }));
            }
            other => panic!("{name}: {:?}", other.map(|(_, recovery)| recovery)),
        }
        assert_eq!(disk.image().paths(), image.paths(), "nothing was changed");
    }
}

#[test]
fn a_newer_format_is_refused() {
    let (image, _) = sound_log(true);
    let file = path(last_file_in_use(&image));
    let mut bytes = image.read(&file).unwrap();
    for copy in [0, BLOCK_BYTES] {
        bytes[copy + 8] = 9;
        bytes[copy + 12] = 8;
        let crc = crc32c(&bytes[copy..copy + BLOCK_BYTES - 4]).to_le_bytes();
        bytes[copy + BLOCK_BYTES - 4..copy + BLOCK_BYTES].copy_from_slice(&crc);
    }
    let mut disk = FakeDisk::from_image(image, 1);
    disk.put_file(&file, &bytes);
    let error = Wal::open(&mut disk, config(12), identity()).unwrap_err();
    assert_eq!(error, WalError::NewerFormat { file: file.into(), version: 9, ours: 2 });
}

/// A log of one batch with one record, whose kind and flags are replaced, all checksums made anew. It is no run, so the batch's
/// goes over every byte.
fn log_of_a_record(kind: u8, flags: u8) -> FakeDisk {
    let mut rig = Rig::fresh(17);
    rig.put_state(1, b"state");
    rig.settle();
    let mut bytes = rig.disk.read_file(path(1)).unwrap();
    let seed = crc32c(&bytes[64..80]);
    let (head, records) = (8192, 8192 + 96);
    let payload_bytes = u32::from_le_bytes(bytes[head + 36..head + 40].try_into().unwrap()) as usize;
    (bytes[records], bytes[records + 1]) = (kind, flags);
    let payload_crc = crc32c_from(seed, &bytes[records..records + payload_bytes]);
    let fields_crc = crc32c_from(seed, &bytes[head..head + 64]);
    let chain = mix64(0, u64::from(fields_crc) << 32 | u64::from(payload_crc));
    bytes[head + 72..head + 80].copy_from_slice(&chain.to_le_bytes());
    bytes[head + 80..head + 84].copy_from_slice(&payload_crc.to_le_bytes());
    let head_crc = crc32c_from(seed, &bytes[head..head + 92]);
    bytes[head + 92..head + 96].copy_from_slice(&head_crc.to_le_bytes());
    let disk = FakeDisk::from_image(rig.disk.image(), 17);
    disk.put_file(path(1), &bytes);
    disk
}

#[test]
fn an_unknown_record_is_refused_or_skipped_as_its_flag_says() {
    let known = Wal::open(&mut log_of_a_record(2, 1), config(18), identity()).unwrap().1;
    assert_eq!(known.groups[0].state, b"state", "the log was patched well");
    let error = Wal::open(&mut log_of_a_record(200, 1), config(18), identity()).unwrap_err();
    assert_eq!(error, WalError::UnknownRecord { file: path(1).into(), offset: 8192, kind: 200 });
    let skipped = Wal::open(&mut log_of_a_record(200, 0), config(18), identity()).unwrap().1;
    assert_eq!((skipped.report.batches, skipped.report.holes.len(), skipped.groups.len()), (1, 0, 0));
}

#[test]
fn a_damaged_checkpoint_falls_back_to_the_one_before() {
    let mut rig = Rig::fresh(19);
    // Files are reused all the time, and yet those that the older checkpoint needs are all there.
    for round in 0..200 {
        let last = rig.model().last(1);
        rig.append(1, last, 1, 1, 1, 4000);
        if round % 4 == 0 {
            rig.put_snapshot(1, last + 1, 1, b"all");
        }
        rig.settle();
    }
    assert!(rig.wal.stats().files_reused > 5);
    let model = rig.model().clone();
    let image = rig.disk.image();
    let newest = Wal::open(&mut FakeDisk::from_image(image.clone(), 1), config(20), identity()).unwrap().1;
    let newest = newest.report.checkpoint.unwrap();
    let mut fell_back = 0;
    for file in image.paths() {
        for block in 2..16u64 {
            let mut disk = FakeDisk::from_image(image.clone(), 1);
            disk.corrupt(&file, block * BLOCK_BYTES as u64 + 150, Damage::FlipBit { bit: 3 });
            let (_, recovery) = Wal::open(&mut disk, config(20), identity())
                .unwrap_or_else(|error| panic!("{}, block {block}: {error}", file.display()));
            if recovery.report.checkpoint == Some(newest - 1) {
                fell_back += 1;
                assert!(noticed(&recovery), "{:?}", recovery.report);
                assert!(Model::of(&recovery).last(1) <= model.last(1));
            } else {
                assert_eq!(recovery.report.checkpoint, Some(newest));
            }
        }
    }
    assert!(fell_back > 0);
}

/// A checkpoint of several batches, one of which is lost, does not count: every group is found by the one before it.
#[test]
fn a_checkpoint_that_lost_a_page_does_not_count() {
    let mut rig = Rig::fresh(29);
    for group in 10..510 {
        rig.put_state(group, &[7; 200]);
    }
    let mut round = 0;
    // The first two: later ones only name the pages of groups that nothing happens to.
    while rig.wal.stats().checkpoints < 2 {
        let last = rig.model().last(1);
        rig.append(1, last, 1, 1, 1, 9000);
        if round % 4 == 0 {
            rig.put_snapshot(1, last + 1, 1, b"all");
        }
        rig.settle();
        round += 1;
    }
    let image = rig.disk.image();
    let open = |image: &DiskImage, at: Option<(&std::path::PathBuf, usize)>| {
        let mut disk = FakeDisk::from_image(image.clone(), 1);
        if let Some((file, block)) = at {
            disk.corrupt(file, (block * BLOCK_BYTES) as u64 + 50, Damage::FlipBit { bit: 3 });
        }
        Wal::open(&mut disk, config(30), identity()).unwrap().1
    };
    let newest = open(&image, None).report.checkpoint;
    let mut fell_back = 0;
    for file in image.paths() {
        let bytes = image.read(&file).unwrap();
        for block in
            (2..bytes.len() / BLOCK_BYTES).filter(|at| bytes[at * BLOCK_BYTES..].starts_with(b"CWB1"))
        {
            let recovery = open(&image, Some((&file, block)));
            assert_eq!(recovery.groups.len(), 501, "{}, block {block}", file.display());
            fell_back += u32::from(recovery.report.checkpoint != newest);
        }
    }
    assert!(fell_back > 2, "a checkpoint has several batches");
}

/// At any moment, also while files are being reused and the next checkpoint is being written, one damaged batch leaves a
/// checkpoint to begin with.
#[test]
fn there_are_always_two_checkpoints_to_begin_with() {
    let mut rig = Rig::fresh(23);
    let step = |rig: &mut Rig, round: u64| {
        let last = rig.model().last(1);
        rig.append(1, last, 1, 1, 1, 9000);
        if round.is_multiple_of(2) {
            rig.put_snapshot(1, last + 1, 1, b"all");
        }
    };
    for round in 0..150 {
        step(&mut rig, round);
        rig.settle();
    }
    rig.disk.set_completing(Completing::Manual);
    for round in 0..40 {
        step(&mut rig, round);
        rig.submit().unwrap();
        while rig.disk.in_flight() > 0 {
            // Files are made ready while the log's own write, with the next checkpoint, is still on its way.
            let flights = rig.disk.flights();
            let other = flights.iter().position(|flight| flight.kind != OpKind::Write);
            rig.disk.complete(other.unwrap_or(flights.len() - 1));
            rig.complete().unwrap();
            rig.disk.submit().unwrap();
            survives_any_damaged_batch(&rig.disk.durable_image());
        }
    }
    assert!(rig.wal.stats().files_reused > 5);
}

fn survives_any_damaged_batch(image: &DiskImage) {
    for file in image.paths() {
        let bytes = image.read(&file).unwrap();
        let batches =
            (2..bytes.len() / BLOCK_BYTES).filter(|block| bytes[block * BLOCK_BYTES..].starts_with(b"CWB1"));
        for block in batches {
            let mut disk = FakeDisk::from_image(image.clone(), 1);
            disk.corrupt(&file, (block * BLOCK_BYTES) as u64 + 50, Damage::FlipBit { bit: 3 });
            if let Err(error) = Wal::open(&mut disk, config(24), identity()) {
                panic!("{}, block {block}: {error}", file.display());
            }
        }
    }
}

#[test]
fn a_log_without_any_sound_head_is_refused() {
    let (image, _) = sound_log(true);
    let disk = FakeDisk::from_image(image.clone(), 1);
    for file in image.paths() {
        disk.corrupt(&file, 0, Damage::Zero { bytes: 2 * BLOCK_BYTES });
    }
    let error = Wal::open(&mut disk.clone(), config(12), identity()).unwrap_err();
    assert!(matches!(error, WalError::Lost { .. }), "{error}");
}

/// The file that the newest sound batch lies in: the newest that has one.
pub(crate) fn last_file_in_use(image: &DiskImage) -> u64 {
    let used = |no: &u64| image.read(path(*no)).is_some_and(|bytes| bytes.get(8192..8196) == Some(b"CWB1"));
    (1..20).filter(used).max().unwrap()
}

/// Where the batches of that file end.
pub(crate) fn tail_offset(image: &DiskImage) -> u64 {
    let disk = FakeDisk::from_image(image.clone(), 9);
    let (_, recovery) = Wal::open(&mut disk.clone(), config(99), identity()).unwrap();
    let (file, offset) = recovery.report.tail.unwrap();
    assert_eq!(file, std::path::PathBuf::from(path(last_file_in_use(image))));
    offset
}

/// These tests can fail: each planted bug that only damage brings out is caught by one of them.
#[cfg(feature = "breaks")]
#[test]
fn planted_bugs_are_caught() {
    use coracle_wal::breaks::{Break, plant};
    let pairs: [(Break, fn()); 2] = [
        (Break::CorruptTailDropped, an_error_reading_the_tail_makes_it_suspect),
        (Break::TornCheckpointAccepted, a_checkpoint_that_lost_a_page_does_not_count),
    ];
    for (bug, test) in pairs {
        plant(Some(bug));
        let caught = std::panic::catch_unwind(test).is_err();
        plant(None);
        assert!(caught, "{bug:?} was not noticed");
    }
}
