//! Entries back from files, when the files are not what they were a moment ago.
#![allow(clippy::unwrap_used)]

use crate::common::Rig;
use coracle_base::{GroupId, Index};
use coracle_io::Disk;
use coracle_io::fake::{Completing, Damage, OpKind};
use coracle_wal::ReadError;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

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
    // The list of the file's runs is in memory: what is durable is read, whatever is on its way.
    assert_eq!(wal.poll_read(), None);
    rig.settle();
    let read = rig.wal.poll_read().map(|(id, read)| (id, read.map(|read| (read.first, read.count))));
    assert_eq!(read, Some((5, Ok((Index(1), 1)))));
    assert!(rig.wal.stats().files > first_file, "the log has gone on");
    assert_eq!(rig.check(), Ok(()));
}

fn payload(group: u64, index: u64, term: u64, bytes: usize) -> Vec<u8> {
    let batch = crate::common::entries(group, index, term, 1, bytes);
    coracle_base::run::Entries::new(Index(index), batch.bytes()).next().unwrap().payload.to_vec()
}

/// Storage seed 13 of the simulator: a run whose second entry was overwritten in the same file gave both when a range of
/// entries that live on was read.
#[test]
fn a_range_that_lives_on_has_nothing_that_was_overwritten() {
    let mut rig = Rig::fresh(32);
    rig.append(1, 0, 1, 1, 2, 100);
    rig.append(1, 1, 2, 2, 1, 100);
    rig.put_snapshot_live(1, 2, 2, &[1, 2], b"both live on");
    rig.settle();
    let mut next = Index(1);
    while next <= Index(2) {
        let read = crate::common::read_some(&mut rig.wal, &mut rig.disk, 1, next, Index(2), 10_000).unwrap();
        for entry in coracle_base::run::Entries::new(read.first, &read.body) {
            assert_eq!(entry.header.term.0, entry.index.0, "the first of term 1, the second of term 2");
        }
        next = next.plus(u64::from(read.count));
    }
}

/// Storage seed 134: a reader that waits for its bytes while they are overwritten looks again.
#[test]
fn what_is_overwritten_while_it_is_read_is_not_called_damaged() {
    let mut rig = Rig::fresh(33);
    rig.append(1, 0, 1, 1, 1, 100);
    rig.settle();
    rig.disk.set_completing(Completing::Manual);
    let not_durable = ReadError::NotDurable { index: Index(1) };
    rig.wal.read(&mut rig.disk, 5, GroupId(1), Index(1), Index(1), 1000);
    overwrite(&mut rig, 2);
    assert_eq!(rig.wal.poll_read(), Some((5, Err(not_durable.clone()))));
    rig.settle();

    rig.disk.set_completing(Completing::Manual);
    rig.wal.read_live(&mut rig.disk, 6, GroupId(1), &[Index(1)], 1000);
    overwrite(&mut rig, 3);
    assert_eq!(rig.wal.poll_live().unwrap().1.entries[0].2, Err(not_durable));
}

/// Overwrites entry 1 while a read of it is in flight, which then ends.
fn overwrite(rig: &mut Rig, term: u64) {
    rig.disk.submit().unwrap();
    rig.append(1, 0, term, term, 1, 100);
    let flights = rig.disk.flights();
    let read = flights.iter().position(|flight| flight.kind == OpKind::Read);
    rig.disk.complete(read.expect("a read is in flight"));
    rig.complete().unwrap();
}

/// Storage seed 3: an entry in a file that is still to be made was said to be in a file that is missing.
#[test]
fn what_has_no_file_yet_is_not_durable() {
    let mut rig = Rig::fresh(34);
    rig.disk.set_completing(Completing::Manual);
    for last in 0..200 {
        rig.append(1, last, 1, 1, 1, 3000);
    }
    let not_durable = ReadError::NotDurable { index: Index(200) };
    rig.wal.read(&mut rig.disk, 5, GroupId(1), Index(200), Index(200), 1000);
    assert_eq!(rig.wal.poll_read(), Some((5, Err(not_durable.clone()))));
    rig.wal.read_live(&mut rig.disk, 6, GroupId(1), &[Index(200)], 1000);
    assert_eq!(rig.wal.poll_live().unwrap().1.entries[0].2, Err(not_durable));
}

/// Storage seed 479: the batch with an entry's newer version cannot be read, and the older one lies before it in the file.
#[test]
fn damage_does_not_bring_back_what_was_overwritten() {
    let mut rig = Rig::fresh(35);
    rig.append(1, 0, 1, 1, 1, 100);
    rig.settle();
    rig.append(1, 0, 2, 2, 1, 100);
    rig.settle();
    rig.put_snapshot_live(1, 1, 2, &[1], b"it lives on");
    while rig.wal.stats().checkpoints < 3 {
        let last = rig.model().last(2);
        rig.append(2, last, 1, 1, 1, 3000);
        rig.settle();
    }
    // From now on its run is looked for in the file's index.
    rig.append(1, 1, 2, 2, 1, 100);
    rig.settle();
    let file = std::path::Path::new(crate::common::DIR).join("00000001.wal");
    let bytes = rig.disk.read_file(&file).unwrap();
    let newer = payload(1, 1, 2, 100);
    let at = bytes.windows(newer.len()).position(|window| window == newer).unwrap();
    rig.disk.corrupt(&file, at as u64, Damage::FlipBit { bit: 0 });
    let read = crate::common::read_live(&mut rig.wal, &mut rig.disk, 1, &[Index(1)], 1000);
    assert!(matches!(read[0].1, Err(ReadError::Corrupt { .. })), "{read:?}");
}

/// Storage seed 11: an entry that a snapshot brought along lies in the file after one of another term that the log had
/// there.
#[test]
fn what_was_placed_is_read_and_not_what_the_log_held_there() {
    let mut rig = Rig::fresh(36);
    rig.append(1, 0, 2, 2, 1, 100);
    let placed = crate::common::entries(1, 1, 3, 1, 100);
    let header = coracle_base::RunHeader {
        group: GroupId(1),
        accepted_term: coracle_base::Term(3),
        prev_index: Index::ZERO,
        prev_term: coracle_base::Term(0),
        count: 1,
        body_bytes: placed.bytes().len() as u32,
    };
    rig.wal.place(&header, &[placed.bytes()]);
    rig.put_snapshot_live(1, 5, 3, &[1], b"of the leader");
    // The log goes on in the same file, then in others.
    for last in 5..60 {
        rig.append(1, last, 3, 3, 1, 3000);
        rig.settle();
        let read = crate::common::read_live(&mut rig.wal, &mut rig.disk, 1, &[Index(1)], 1000);
        match &read[0].1 {
            Ok(found) => assert_eq!(*found, payload(1, 1, 3, 100)),
            Err(error) => assert_eq!(*error, ReadError::NotDurable { index: Index(1) }),
        }
    }
    let read = crate::common::read_live(&mut rig.wal, &mut rig.disk, 1, &[Index(1)], 1000);
    assert_eq!(read[0].1, Ok(payload(1, 1, 3, 100)));
}

/// Restarted, so that nothing is known of the files but what is read: two groups in each of several files.
fn restarted(seed: u64) -> Rig {
    let mut rig = Rig::fresh(seed);
    for last in 0..60 {
        for group in 1..5 {
            rig.append(group, last, 1, 1, 1, 700);
        }
        rig.settle();
    }
    let model = rig.model().clone();
    let (mut rig, _) = Rig::open(rig.disk.clone(), crate::common::config(seed + 100)).unwrap();
    rig.history[0].1 = model;
    rig
}

#[test]
fn a_file_that_is_slow_to_read_holds_up_nobody_else() {
    let mut rig = restarted(41);
    rig.disk.set_completing(Completing::Manual);
    for group in 1..4 {
        rig.wal.read(&mut rig.disk, group, GroupId(group), Index(1), Index(60), 500);
    }
    rig.wal.read(&mut rig.disk, 9, GroupId(1), Index(50), Index(60), 500);
    rig.wal.read(&mut rig.disk, 4, GroupId(4), Index(60), Index(60), 500);
    let mut finished = Vec::new();
    for _ in 0..200 {
        rig.disk.submit().unwrap();
        // The oldest file does not answer.
        let flights = rig.disk.flights();
        let Some(at) = flights.iter().position(|flight| !flight.path.ends_with("00000001.wal")) else {
            break;
        };
        rig.disk.complete(at);
        rig.complete().unwrap();
        finished.extend(std::iter::from_fn(|| rig.wal.poll_read()).map(|(id, out)| (id, out.unwrap().first)));
    }
    assert_eq!(
        finished,
        [(4, Index(60))],
        "another group is served, and of one group one read after the other"
    );
    rig.disk.set_completing(Completing::AtOnce);
    while finished.len() < 5 {
        rig.disk.submit().unwrap();
        rig.complete().unwrap();
        finished.extend(std::iter::from_fn(|| rig.wal.poll_read()).map(|(id, out)| (id, out.unwrap().first)));
    }
    assert!(finished.contains(&(9, Index(50))));
    assert_eq!(rig.check(), Ok(()));
}

/// Whether entries are those of this group, one after the other from `first` on.
fn are_of(group: u64, first: Index, encoded: &[u8]) -> bool {
    let mut entries = coracle_base::run::Entries::new(first, encoded).peekable();
    let is_of = |entry: coracle_base::EntryRef<'_>| {
        entry.payload.starts_with(format!("g{group} i{} ", entry.index).as_bytes())
    };
    entries.peek().is_some() && entries.all(is_of)
}

#[test]
fn reads_of_many_groups_at_once_in_any_order_are_right_while_the_log_goes_on() {
    let mut served = 0;
    for seed in 0..12 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut rig = restarted(seed + 50);
        rig.disk.set_completing(Completing::Manual);
        let mut waiting = 0_usize;
        for id in 0..2500 {
            let group = rng.random_range(1..5);
            let (last, base) = (rig.model().last(group), rig.model().get(group).base.0);
            let index = Index(rng.random_range(1..=last));
            match rng.random_range(0..20) {
                0 => rig.append(group, last, 1, 1, rng.random_range(1..4), 2000),
                1 if last > base && rng.random_ratio(1, 4) => {
                    rig.put_snapshot_live(group, rng.random_range(base + 1..=last), 1, &[], b"s");
                }
                2 | 3 if waiting < 9 => {
                    rig.wal.read(&mut rig.disk, id << 8 | group, group.into(), index, Index(last), 9000);
                    waiting += 1;
                }
                4 | 5 if waiting < 9 => {
                    let some: Vec<Index> = (0..5).map(|_| Index(rng.random_range(1..=last))).collect();
                    rig.wal.read_live(&mut rig.disk, id << 8 | group, group.into(), &some, 9000);
                    waiting += 1;
                }
                _ => {}
            }
            rig.now_us += 5000;
            rig.submit().unwrap();
            for _ in 0..rng.random_range(0..4) {
                let flights = rig.disk.flights().len();
                if flights > 0 {
                    rig.disk.complete(rng.random_range(0..flights));
                }
            }
            rig.complete().unwrap();
            rig.history.drain(..rig.history.len() - 1);
            while let Some((id, result)) = rig.wal.poll_read() {
                waiting -= 1;
                match result {
                    Ok(out) => {
                        assert!(are_of(id & 255, out.first, &out.body), "seed {seed}");
                        served += 1;
                    }
                    Err(ReadError::Released { .. } | ReadError::NotDurable { .. }) => {}
                    Err(error) => panic!("seed {seed}: {error}"),
                }
            }
            while let Some((id, out)) = rig.wal.poll_live() {
                waiting -= 1;
                for (group, index, result) in out.entries {
                    match result {
                        Ok(encoded) => assert!(id & 255 == group.0 && are_of(group.0, index, &encoded)),
                        Err(ReadError::Released { .. } | ReadError::NotDurable { .. }) => {}
                        Err(error) => panic!("seed {seed}: {error}"),
                    }
                }
            }
        }
        rig.settle();
        while waiting > 0 {
            rig.settle();
            waiting -= std::iter::from_fn(|| rig.wal.poll_read()).count();
            waiting -= std::iter::from_fn(|| rig.wal.poll_live()).count();
        }
        assert_eq!(rig.check(), Ok(()), "seed {seed}");
    }
    assert!(served > 500, "{served}");
}

#[test]
fn entries_that_are_larger_than_they_were_thought_to_be_are_fewer() {
    let mut rig = Rig::fresh(45);
    for last in 0..50 {
        rig.append(1, last, 1, 1, 1, if last % 10 == 9 { 20_000 } else { 10 });
    }
    rig.settle();
    let large: Vec<Index> = (1..=5).map(|ten| Index(10 * ten)).collect();
    let read = crate::common::read_live(&mut rig.wal, &mut rig.disk, 1, &large, 30_000);
    let bytes: usize = read.iter().map(|(_, payload)| payload.as_ref().unwrap().len()).sum();
    assert!(!read.is_empty() && read.len() < 5 && bytes <= 30_000, "{} of {bytes} bytes", read.len());
}

/// Placed entries and others of the same indexes, in one file: each is found where it is, in the newest file, once the log
/// has gone on, and after a start from a checkpoint.
#[test]
fn placed_entries_are_not_taken_for_others_of_the_same_indexes() {
    let placed = crate::common::entries(1, 1, 5, 3, 100);
    let header = coracle_base::RunHeader {
        group: GroupId(1),
        accepted_term: coracle_base::Term(5),
        prev_index: Index(0),
        prev_term: coracle_base::Term(0),
        count: 3,
        body_bytes: placed.bytes().len() as u32,
    };
    let live = crate::common::ranges(&[1, 3]);
    for placed_first in [true, false] {
        let mut rig = Rig::fresh(46);
        if placed_first {
            rig.wal.place(&header, &[placed.bytes()]);
        }
        // What an earlier leader sent, and nobody committed.
        rig.append(1, 0, 1, 1, 3, 100);
        if !placed_first {
            rig.wal.place(&header, &[placed.bytes()]);
        }
        rig.wal.put_snapshot(GroupId(1), Index(3), coracle_base::Term(5), &live, b"all");
        rig.settle();
        let check = |rig: &mut Rig, when: &str| {
            let read = crate::common::read_live(&mut rig.wal, &mut rig.disk, 1, &[Index(1), Index(3)], 5000);
            let expected = [1, 3].map(|index| (Index(index), Ok(payload(1, index, 5, 100))));
            assert_eq!(read, expected, "placed first: {placed_first}, {when}");
        };
        check(&mut rig, "in the newest file");
        for last in 0..60 {
            rig.append(2, last, 1, 1, 1, 9000);
            rig.settle();
        }
        assert!(rig.wal.stats().checkpoints > 2);
        check(&mut rig, "in an older file");
        let (mut rig, recovery) = Rig::open(rig.disk.clone(), crate::common::config(47)).unwrap();
        assert!(recovery.report.checkpoint.is_some());
        check(&mut rig, "after a start");
    }
}
