//! What compaction does to a log, against a plain model: every entry that lives is read back byte for byte, garbage stays
//! under its bound, and where there is none nothing is done.
#![allow(clippy::unwrap_used)]

use crate::common::log::{check_live, read_live};
use crate::common::{FILE_BYTES, Yard, bounds, random_record};
use coracle_base::Index;
use coracle_io::Disk;
use coracle_io::fake::{Completing, Damage, FakeDisk, OpKind};
use coracle_segments::{Bounds, Compactor};
use coracle_wal::{ReadError, inspect};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

#[test]
fn a_compacted_log_is_what_the_model_says() {
    let mut moved = 0;
    for seed in 0..12 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut yard = Yard::fresh(seed);
        let mut term = 1;
        for step in 0..400 {
            random_record(&mut yard.rig, &mut rng, &mut term, 3000);
            yard.submit();
            yard.complete();
            yard.rig.now_us += 50_000;
            match rng.random_range(0..60) {
                0 => yard.compactor.run_now(),
                1 => yard.settle(),
                2 => {
                    moved += yard.compactor.stats().entries_moved;
                    yard.restart(seed * 1000 + step);
                    yard.rig.check().unwrap_or_else(|error| panic!("seed {seed}, step {step}: {error}"));
                }
                _ => {}
            }
        }
        yard.settle();
        yard.rig.check().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        moved += yard.compactor.stats().entries_moved;
    }
    assert!(moved > 500, "{moved}");
}

/// A group of which one entry in a hundred lives for ever.
struct Sparse {
    yard: Yard,
    live: Vec<u64>,
    compacts: bool,
}

impl Sparse {
    fn new(seed: u64) -> Self {
        Self { yard: Yard::fresh(seed), live: Vec::new(), compacts: true }
    }

    /// A hundred entries, one of which lives on, and a snapshot.
    fn round(&mut self) {
        let last = self.yard.rig.model().last(1);
        for i in 0..10 {
            self.yard.rig.append(1, last + 10 * i, 1, 1, 10, 300);
            self.yard.rig.append(2, last + 10 * i, 1, 1, 10, 300);
            self.yard.rig.settle();
        }
        self.live.push(last + 37);
        for group in [1, 2] {
            self.yard.rig.put_snapshot_live(group, last + 100, 1, &self.live, b"snapshot");
        }
        if self.compacts {
            self.yard.settle();
        } else {
            self.yard.rig.settle();
        }
    }
}

#[test]
fn one_entry_in_a_hundred_lives_through_a_hundred_snapshots() {
    let mut sparse = Sparse::new(1);
    let mut stats = Vec::new();
    for round in 1..=100 {
        sparse.round();
        if round % 10 == 0 {
            sparse.yard.rig.check().unwrap();
        }
        if round % 25 == 0 {
            stats.push(sparse.yard.compactor.stats());
            sparse.yard.restart(round);
        }
    }
    assert_eq!(sparse.live.len(), 100);
    sparse.yard.rig.check().unwrap();
    let segments: u64 = stats.iter().map(|stats| stats.segments).sum();
    assert!(segments > 5, "{stats:?}");
    // 200 entries of about 250 bytes live; the rest is garbage.
    let mut space = coracle_wal::Space::default();
    assert_eq!(sparse.yard.rig.wal.space_of(0, 1000, &mut space), None);
    let held: u64 = space.held.iter().map(|file| file.bytes).sum();
    let live: u64 = space.held.iter().map(|file| file.live_bytes).sum();
    assert!(held <= 2 * live + FILE_BYTES, "{space:?}");
    let bound = held + space.own_bytes + (2 + bounds().dead_files_max as u64) * FILE_BYTES;
    assert!(sparse.yard.disk_bytes() <= bound, "{} of {bound}, {space:?}", sparse.yard.disk_bytes());
}

/// A tenth of the entries live on for a while: what is written stays near what was appended.
#[test]
fn write_amplification_stays_low_when_a_tenth_lives_on() {
    const FILE: u64 = 1 << 20;
    let config =
        coracle_wal::Config { file_bytes: FILE, checkpoint_every_bytes: FILE, ..crate::common::config(8) };
    let (rig, _) = crate::common::log::Rig::open(FakeDisk::new(8), config).unwrap();
    let mut yard = Yard { rig, compactor: Compactor::new(Bounds::new(FILE)) };
    let mut live: Vec<u64> = Vec::new();
    for _ in 0..40 {
        let last = yard.rig.model().last(1);
        for i in 0..40 {
            yard.rig.append(1, last + 25 * i, 1, 1, 25, 1500);
            yard.submit();
            yard.complete();
            // What was is not the question here.
            yard.rig.history.drain(..yard.rig.history.len() - 1);
        }
        live.extend((last + 1..=last + 1000).filter(|index| index % 10 == 0));
        live.retain(|index| index + 15_000 > last);
        yard.rig.put_snapshot_live(1, last + 1000, 1, &live, b"snapshot");
        yard.settle();
    }
    yard.rig.check().unwrap();
    let wal = yard.rig.wal.stats();
    let stats = yard.compactor.stats();
    let written = (wal.batch_bytes + wal.segment_bytes) as f64 / wal.record_bytes as f64;
    println!(
        "write amplification {written:.3}, segments {:.3} of it",
        wal.segment_bytes as f64 / wal.record_bytes as f64
    );
    assert!(stats.segments > 3, "{stats:?}");
    assert!(written < 1.5, "{written}: {wal:?}, {stats:?}");
    let (held, alive) = (stats.held_bytes, stats.live_bytes);
    assert!(held <= 2 * alive + FILE, "{stats:?}");
}

#[test]
fn where_there_is_no_garbage_there_is_no_work() {
    let mut sparse = Sparse::new(2);
    for _ in 0..20 {
        sparse.round();
    }
    let yard = &mut sparse.yard;
    yard.compactor.run_now();
    yard.settle();
    let before = (yard.compactor.stats(), yard.rig.wal.stats());
    assert!(before.0.segments > 0);
    for _ in 0..50 {
        yard.rig.now_us += 1_000_000;
        yard.settle();
    }
    yard.compactor.run_now();
    yard.settle();
    let after = (yard.compactor.stats(), yard.rig.wal.stats());
    assert_eq!(before.0, after.0);
    assert_eq!(before.1.segment_bytes, after.1.segment_bytes);
    assert_eq!(before.1.files_removed, after.1.files_removed);
}

/// However many groups and files there are, a step looks at few of them, and nothing but what it takes in turn.
#[test]
fn a_step_looks_at_a_bounded_number_of_groups_and_files() {
    const GROUPS: u64 = 1400;
    let config = coracle_wal::Config { file_entries_max: 4, ..crate::common::config(9) };
    let (rig, _) = crate::common::log::Rig::open(FakeDisk::new(9), config).unwrap();
    let mut yard =
        Yard { rig, compactor: Compactor::new(Bounds { slack_bytes: 0, reserve_bytes: 0, ..bounds() }) };
    let files = |yard: &Yard| yard.rig.wal.stats().files;
    for group in 1..=GROUPS {
        yard.rig.append(group, 0, 1, 1, 1, 40);
        // The model is not asked here.
        yard.rig.history.drain(..yard.rig.history.len() - 1);
        if group % 4 == 0 {
            yard.rig.settle();
        }
    }
    // A file in eight has one entry left.
    for group in (1..=GROUPS).filter(|group| group % 32 != 0) {
        yard.rig.delete(group);
        yard.rig.history.drain(..yard.rig.history.len() - 1);
    }
    // Until no recovery would read those files.
    let before = yard.rig.wal.stats().checkpoints;
    while yard.rig.wal.stats().checkpoints < before + 3 {
        yard.rig.append(32, yard.rig.model().last(32), 1, 1, 1, 2000);
        yard.rig.settle();
    }
    assert!(files(&yard) > 300, "{}", files(&yard));
    let mut steps = 0;
    let opens = |yard: &Yard| yard.rig.disk.flights().iter().any(|one| one.path.ends_with("00000001.seg"));
    loop {
        yard.compactor.step(&mut yard.rig.wal, &mut yard.rig.disk, yard.rig.now_us);
        yard.rig.disk.submit().unwrap();
        if opens(&yard) {
            break;
        }
        assert!(yard.compactor.is_ready(), "it goes on by itself");
        steps += 1;
    }
    assert!(steps >= 300 / 256 + GROUPS / 256, "{steps} steps for {GROUPS} groups in {} files", files(&yard));
    // What it found step by step is all there was; a few files have nothing but pages of the checkpoint.
    yard.settle();
    assert!(files(&yard) < 30, "{}", files(&yard));
    yard.rig.check().unwrap();
}

/// What lives of many groups is scattered over a file: it is read as it lies there, in few reads, and lies in the segment
/// by group.
#[test]
fn entries_of_many_groups_are_copied_in_few_reads() {
    const GROUPS: u64 = 60;
    const FILE: u64 = 4 << 20;
    let config = coracle_wal::Config {
        file_bytes: FILE,
        checkpoint_every_bytes: 1 << 20,
        ..crate::common::config(10)
    };
    let (rig, _) = crate::common::log::Rig::open(FakeDisk::new(10), config).unwrap();
    let bounds = Bounds { read_bytes: 16 * 1024, ..Bounds::new(FILE) };
    let mut yard = Yard { rig, compactor: Compactor::new(bounds) };
    for round in 0..40 {
        for group in 1..=GROUPS {
            let last = yard.rig.model().last(group);
            yard.rig.append(group, last, 1, 1, 1, 2400);
        }
        if round % 5 == 0 {
            yard.rig.settle();
        }
        yard.rig.history.drain(..yard.rig.history.len() - 1);
    }
    for group in 1..=GROUPS {
        let mut live = [0, 10, 20, 30].map(|at| (group * 7 + at) % 40 + 1);
        live.sort_unstable();
        yard.rig.put_snapshot_live(group, 40, 1, &live, b"snapshot");
    }
    yard.rig.settle();
    let held = |yard: &Yard| {
        let mut space = coracle_wal::Space::default();
        yard.rig.wal.space_of(0, 100, &mut space);
        space.held.len()
    };
    // Until no recovery would read the file.
    while held(&yard) == 0 {
        yard.rig.append(1, yard.rig.model().last(1), 1, 1, 1, 400_000);
        yard.rig.settle();
    }
    yard.rig.disk.set_completing(Completing::Manual);
    yard.compactor.run_now();
    let mut reads = 0;
    while !yard.compactor.is_idle() {
        yard.submit();
        let flights = yard.rig.disk.flights();
        reads += flights.iter().filter(|one| one.kind == OpKind::Read).count() as u64;
        flights.iter().for_each(|_| yard.rig.disk.complete(0));
        yard.complete();
    }
    yard.rig.disk.set_completing(Completing::AtOnce);
    let stats = yard.compactor.stats();
    println!("{reads} reads, {stats:?}");
    assert!(stats.entries_moved > GROUPS, "{stats:?}");
    // One by one they would be as many as there are entries.
    assert!(reads < stats.entries_moved / 3, "{reads} reads for {} entries", stats.entries_moved);
    yard.rig.check().unwrap();
    yard.restart(11);
    yard.rig.check().unwrap();
}

#[test]
fn what_no_longer_lives_is_released_and_its_segments_leave_the_disk() {
    let mut sparse = Sparse::new(3);
    for _ in 0..20 {
        sparse.round();
    }
    let yard = &mut sparse.yard;
    assert!(segments_of(&yard.rig.disk) > 0);
    let last = yard.rig.model().last(1);
    for group in [1, 2] {
        yard.rig.put_snapshot_live(group, last, 1, &[37], b"nearly nothing lives");
    }
    yard.settle();
    let read = read_live(&mut yard.rig.wal, &mut yard.rig.disk, 1, &[Index(37), Index(137)], 1000);
    assert!(read[0].1.is_ok());
    assert!(matches!(read[1].1, Err(ReadError::Released { .. })), "{read:?}");
    yard.rig.delete(1);
    yard.rig.delete(2);
    yard.settle();
    assert_eq!(segments_of(&yard.rig.disk), 0);
    // A crash may bring their names back; nothing needs them, so they are removed again.
    yard.restart(99);
    yard.settle();
    assert_eq!(segments_of(&yard.rig.disk), 0);
}

fn segments_of(disk: &FakeDisk) -> usize {
    disk.image().paths().iter().filter(|path| path.extension().is_some_and(|ext| ext == "seg")).count()
}

/// Whatever fails of a compaction, the log goes on, nothing of the attempt stays, and a later one succeeds.
#[test]
fn a_compaction_that_fails_is_given_up_and_tried_again() {
    for kind in [OpKind::Open, OpKind::Write, OpKind::Sync, OpKind::Close] {
        for code in [28, 5] {
            let mut sparse = Sparse::new(4);
            sparse.compacts = false;
            for _ in 0..6 {
                sparse.round();
            }
            let yard = &mut sparse.yard;
            yard.compactor = Compactor::new(Bounds { reserve_bytes: 0, ..bounds() });
            let before = segments_of(&yard.rig.disk);
            for no in 1..30 {
                let path = format!("{}/{no:08}.seg", crate::common::log::DIR);
                yard.rig.disk.fail_next(kind, Some(path.as_ref()), code);
            }
            yard.compactor.run_now();
            for _ in 0..2000 {
                yard.submit();
                yard.complete();
            }
            let stats = yard.compactor.stats();
            assert_eq!(stats.failures, 1, "{kind:?} {code}");
            yard.rig.disk.fail_no_more();
            assert!(segments_of(&yard.rig.disk) <= before, "{kind:?} {code}: its file is removed");
            yard.rig.check().unwrap();
            yard.rig.now_us += 10_000_000;
            yard.compactor.run_now();
            yard.settle();
            assert!(yard.compactor.stats().segments > stats.segments, "{kind:?} {code}");
            yard.rig.check().unwrap();
            yard.restart(7);
            yard.rig.check().unwrap();
        }
    }
}

/// Wherever the disk becomes full during a compaction, the log and its entries stay, and there is room for it later.
#[test]
fn a_disk_that_is_full_at_any_moment_of_a_compaction_does_no_harm() {
    let mut sparse = Sparse::new(7);
    sparse.compacts = false;
    for _ in 0..6 {
        sparse.round();
    }
    let (model, image) = (sparse.yard.rig.model().clone(), sparse.yard.rig.disk.durable_image());
    let used: u64 = image.paths().iter().map(|path| image.read(path).unwrap().len() as u64).sum();
    let mut given_up = 0;
    for blocks in 0..40 {
        let disk = FakeDisk::from_image(image.clone(), blocks);
        // The start itself makes a new file of an old one or another.
        let (mut yard, _) = Yard::open(disk, 60 + blocks).unwrap();
        yard.rig.settle();
        let used = used.max(yard.disk_bytes());
        yard.rig.disk.set_quota(Some(used + blocks * 4096));
        yard.compactor.run_now();
        for _ in 0..500 {
            yard.submit();
            yard.complete();
        }
        given_up += yard.compactor.stats().failures;
        yard.rig.history = vec![(coracle_wal::BatchSeq(0), model.clone())];
        yard.rig.check().unwrap_or_else(|error| panic!("{blocks} blocks: {error}"));
        yard.rig.disk.set_quota(None);
        yard.rig.now_us += 100_000_000;
        yard.compactor.run_now();
        yard.settle();
        assert!(yard.compactor.stats().segments > 0, "{blocks} blocks");
        yard.rig.check().unwrap_or_else(|error| panic!("{blocks} blocks, later: {error}"));
        yard.restart(200 + blocks);
        yard.rig.check().unwrap_or_else(|error| panic!("{blocks} blocks, after a restart: {error}"));
    }
    assert!(given_up > 2, "{given_up}");
}

/// Every byte of a segment is under a checksum, or nothing depends on it.
#[test]
fn every_flipped_byte_of_a_segment_is_noticed_or_not_used() {
    let mut sparse = Sparse::new(5);
    for _ in 0..12 {
        sparse.round();
    }
    sparse.yard.compactor.run_now();
    sparse.yard.settle();
    let model = sparse.yard.rig.model().clone();
    let image = sparse.yard.rig.disk.durable_image();
    let is_segment = |path: &&std::path::PathBuf| path.extension().is_some_and(|ext| ext == "seg");
    let path = image.paths().iter().find(is_segment).unwrap().clone();
    let bytes = image.read(&path).unwrap().len() as u64;
    let (mut noticed, mut same) = (0, 0);
    for at in 0..bytes {
        let disk = FakeDisk::from_image(image.clone(), at);
        assert!(disk.corrupt(&path, at, Damage::FlipBit { bit: (at % 8) as u8 }));
        let (mut yard, recovery) = Yard::open(disk, 50).unwrap();
        assert!(recovery.groups.iter().all(|group| !group.suspect), "only live entries lie there");
        let mut damaged = recovery.report.damaged_heads > 0;
        let inspected = at % 29 == 0;
        let mut copy = FakeDisk::from_image(yard.rig.disk.image(), at);
        let named = if inspected {
            inspect(&mut copy, crate::common::log::DIR.as_ref(), &crate::common::log::identity())
                .unwrap()
                .damage
        } else {
            Vec::new()
        };
        for group in [1, 2] {
            if let Err(error) = check_live(&mut yard.rig.wal, &mut yard.rig.disk, group, &model) {
                assert!(error.contains("damaged"), "byte {at}: {error}");
                damaged = true;
            }
        }
        assert!(!inspected || damaged == named.iter().any(|one| one.file == path), "byte {at}: {named:?}");
        if damaged { noticed += 1 } else { same += 1 }
    }
    println!("{bytes} bytes: {noticed} noticed, {same} not used");
    assert!(noticed > 8192 + 4096, "{noticed} of {bytes}");
}

#[test]
fn a_missing_segment_is_told_and_a_strange_one_is_put_aside() {
    let mut sparse = Sparse::new(6);
    for _ in 0..12 {
        sparse.round();
    }
    sparse.yard.compactor.run_now();
    sparse.yard.settle();
    let image = sparse.yard.rig.disk.durable_image();
    let is_segment = |path: &&std::path::PathBuf| path.extension().is_some_and(|ext| ext == "seg");
    let path = image.paths().iter().find(is_segment).unwrap().clone();
    let disk = FakeDisk::from_image(image, 1);
    let strange = std::path::PathBuf::from(format!("{}/00000999.seg", crate::common::log::DIR));
    disk.copy_file(&path, &strange);
    disk.remove_file(&path);
    let (mut yard, recovery) = Yard::open(disk, 51).unwrap();
    assert_eq!(recovery.report.missing, std::slice::from_ref(&path));
    assert_eq!(recovery.report.strays.len(), 1, "{:?}", recovery.report);
    assert!(recovery.groups.iter().all(|group| !group.suspect), "only live entries lay there");
    let read = read_live(&mut yard.rig.wal, &mut yard.rig.disk, 1, &[Index(37)], 1000);
    assert!(matches!(read[0].1, Err(ReadError::Corrupt { .. })), "{read:?}");
}

/// A read that fails once fails once: a segment whose index could not be read is not one without an index.
#[test]
fn a_segment_that_cannot_be_read_now_is_asked_again() {
    let mut sparse = Sparse::new(9);
    for _ in 0..12 {
        sparse.round();
    }
    sparse.yard.compactor.run_now();
    sparse.yard.restart(52);
    let yard = &mut sparse.yard;
    let image = yard.rig.disk.durable_image();
    let is_segment = |path: &&std::path::PathBuf| path.extension().is_some_and(|ext| ext == "seg");
    for path in image.paths().iter().filter(is_segment) {
        yard.rig.disk.fail_next(OpKind::Read, Some(path), 5);
    }
    let index = [Index(37)];
    let read = read_live(&mut yard.rig.wal, &mut yard.rig.disk, 1, &index, 1000);
    assert!(matches!(read[0].1, Err(ReadError::Disk(_))), "{read:?}");
    let again = read_live(&mut yard.rig.wal, &mut yard.rig.disk, 1, &index, 1000);
    assert!(again[0].1.is_ok(), "{again:?}");
}

/// What is read is not what was written there later: a file is not reused, nor removed, while somebody reads it.
fn read_while_files_are_reused() -> Result<(), String> {
    for seed in 0..12 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut yard = Yard::fresh(seed);
        let mut term = 1;
        for _ in 0..60 {
            random_record(&mut yard.rig, &mut rng, &mut term, 6000);
            yard.settle();
        }
        yard.rig.disk.set_completing(Completing::Manual);
        let mut waiting: Option<Vec<(u64, Option<Vec<u8>>)>> = None;
        for _ in 0..3000 {
            yard.rig.now_us += 20_000;
            let flights = yard.rig.disk.flights();
            // Reads wait the longest.
            let others: Vec<usize> =
                (0..flights.len()).filter(|at| flights[*at].kind != OpKind::Read).collect();
            if flights.is_empty() || rng.random_ratio(1, 3) {
                random_record(&mut yard.rig, &mut rng, &mut term, 6000);
                yard.submit();
            } else if others.is_empty() || rng.random_ratio(1, 60) {
                yard.rig.disk.complete(rng.random_range(0..flights.len()));
            } else {
                yard.rig.disk.complete(others[rng.random_range(0..others.len())]);
            }
            yard.complete();
            yard.submit();
            if let Some((id, out)) = yard.rig.wal.poll_live() {
                let expected = waiting.take().unwrap();
                assert_eq!(id, 5);
                for (_, index, entry) in out.entries {
                    let wanted = expected.iter().find(|(at, _)| *at == index.0).unwrap();
                    match entry {
                        Ok(encoded) if wanted.1.as_ref().is_none_or(|bytes| encoded.ends_with(bytes)) => {}
                        Err(ReadError::Released { .. } | ReadError::NotDurable { .. }) => {}
                        other => return Err(format!("seed {seed}, entry {index}: {other:?}")),
                    }
                }
            }
            if waiting.is_none() {
                let group = rng.random_range(1..4);
                let live: Vec<_> = yard.rig.model().get(group).live.into_iter().collect();
                if live.is_empty() {
                    continue;
                }
                let indexes: Vec<Index> = live.iter().map(|(index, _)| Index(*index)).collect();
                yard.rig.wal.read_live(&mut yard.rig.disk, 5, group.into(), &indexes, 100_000);
                yard.rig.disk.submit().unwrap();
                waiting = Some(live);
            }
        }
    }
    Ok(())
}

#[test]
fn reads_and_compaction_do_not_disturb_one_another() {
    read_while_files_are_reused().unwrap();
}

#[cfg(feature = "breaks")]
#[test]
fn a_read_that_races_with_reuse_is_noticed() {
    use coracle_wal::breaks::{Break, plant};
    plant(Some(Break::ReadPlanRacesReuse));
    let outcome = std::panic::catch_unwind(read_while_files_are_reused);
    plant(None);
    assert!(!matches!(outcome, Ok(Ok(()))), "read-plan-races-reuse was not noticed");
}
