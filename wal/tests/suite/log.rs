//! The log as its user sees it: what was staged comes back, from memory, from files and after a restart.

#![allow(clippy::unwrap_used)]

use crate::common::model::Model;
use crate::common::{Rig, config, identity};
use coracle_base::limits::BATCH_BYTES_TARGET;
use coracle_base::{GroupId, Index};
use coracle_io::fake::{Completing, Damage, FakeDisk, OpKind};
use coracle_io::{Disk, DiskError};
use coracle_wal::{ReadError, Wal, WalError};
use proptest::prelude::*;

#[test]
fn what_was_durable_comes_back_after_a_restart() {
    let mut rig = Rig::fresh(1);
    rig.append(1, 0, 1, 1, 3, 100);
    rig.append(2, 0, 1, 1, 1, 4000);
    rig.put_state(1, b"term 1, vote 2");
    rig.append(1, 3, 1, 1, 2, 10);
    rig.settle();
    assert_eq!(rig.acked(), rig.history.len());
    rig.model().check_live(&rig.wal);
    rig.check().unwrap();
    let (disk, model) = (rig.disk.clone(), rig.model().clone());
    rig.wal.shutdown(&mut rig.disk).unwrap();
    let (mut again, recovery) = Rig::open(disk, config(2)).unwrap();
    assert_eq!(recovery.boot_epoch, 2);
    assert_eq!(recovery.report.entries, 6);
    assert!(!recovery.report.torn && !recovery.report.tail_suspect, "{:?}", recovery.report);
    assert!(Model::of(&recovery).same_shape(&model));
    again.history = vec![(Default::default(), model)];
    again.check().unwrap();
}

#[test]
fn many_files_are_filled_and_reused_while_snapshots_release_the_log() {
    let mut rig = Rig::fresh(3);
    for round in 1..400 {
        let group = round % 3 + 1;
        let last = rig.model().last(group);
        rig.append(group, last, 1, 1, 2, 1500);
        if round % 10 == 0 {
            rig.put_snapshot(group, last + 1, 1, format!("snapshot of {group} at {}", last + 1).as_bytes());
        }
        rig.settle();
    }
    rig.model().check_live(&rig.wal);
    rig.check().unwrap();
    let stats = rig.wal.stats();
    assert!(stats.files_reused > 10, "{stats:?}");
    assert!(stats.checkpoints > 10, "{stats:?}");
    assert!(stats.files < 16, "{stats:?}");
    let (disk, model) = (rig.disk.clone(), rig.model().clone());
    let (mut again, recovery) = Rig::open(disk, config(4)).unwrap();
    assert!(recovery.report.checkpoint.is_some());
    assert!(Model::of(&recovery).same_shape(&model));
    again.history = vec![(Default::default(), model)];
    again.check().unwrap();
}

#[test]
fn every_byte_that_is_written_is_counted_as_something() {
    let mut rig = Rig::fresh(3);
    for round in 1..200 {
        let group = round % 3 + 1;
        rig.append(group, rig.model().last(group), 1, 1, 2, 1500);
        rig.settle();
    }
    let stats = rig.wal.stats();
    assert!(stats.checkpoints > 3 && stats.padding_bytes > 0 && stats.roster_bytes > 0, "{stats:?}");
    let besides = stats.padding_bytes + stats.roster_bytes + stats.checkpoint_bytes + stats.index_bytes;
    let heads = 96 * stats.batches;
    assert_eq!(stats.batch_bytes, stats.record_bytes + heads + besides, "{stats:?}");
}

#[test]
fn a_read_says_why_it_cannot() {
    let mut rig = Rig::fresh(5);
    rig.append(1, 0, 1, 1, 8, 100);
    let (wal, disk) = (&mut rig.wal, &mut rig.disk);
    let read = crate::common::read_some(wal, disk, 1, Index(1), Index(8), 1000);
    assert_eq!(read, Err(ReadError::NotDurable { index: Index(1) }));
    rig.settle();
    rig.put_snapshot(1, 4, 1, b"four");
    rig.settle();
    let (wal, disk) = (&mut rig.wal, &mut rig.disk);
    for index in [0, 4, 9] {
        let read = crate::common::read_some(wal, disk, 1, Index(index), Index(9), 1000);
        assert_eq!(read, Err(ReadError::Released { index: Index(index), first: Index(5), last: Index(8) }));
    }
    let read = crate::common::read_some(wal, disk, 9, Index(1), Index(9), 1000);
    assert_eq!(read, Err(ReadError::Released { index: Index(1), first: Index(1), last: Index(0) }));
    let one = crate::common::read_some(wal, disk, 1, Index(5), Index(8), 1).unwrap();
    assert_eq!((one.first, one.count, one.prev_term.0), (Index(5), 1, 1), "the first one in any case");
    assert_eq!(wal.group(GroupId(1)).unwrap().last, Index(8));
}

#[test]
fn a_failed_write_ends_the_log_and_is_never_tried_again() {
    let mut rig = Rig::fresh(6);
    rig.append(1, 0, 1, 1, 1, 100);
    rig.settle();
    let durable = rig.wal.durable();
    rig.append(1, 1, 1, 1, 1, 100);
    rig.disk.fail_next(OpKind::Write, Some("wal/00000001.wal".as_ref()), 5);
    rig.submit().unwrap();
    let error = rig.complete().unwrap_err();
    assert!(matches!(&error, WalError::Disk(DiskError::Failed { code: 5, .. })), "{error}");
    rig.append(1, 2, 1, 1, 1, 100);
    assert_eq!(rig.submit(), Err(error.clone()), "it stays so");
    let flights = rig.disk.flights();
    assert!(flights.iter().all(|flight| !flight.path.ends_with("00000001.wal")), "{flights:?}");
    assert_eq!(rig.wal.durable(), durable);
    assert_eq!(rig.wal.shutdown(&mut rig.disk), Err(error));
}

#[test]
fn completions_out_of_order_make_nothing_durable_before_its_turn() {
    let mut rig = Rig::fresh(7);
    rig.disk.set_completing(Completing::Manual);
    let mut batches = Vec::new();
    for last in 0..2 {
        rig.append(1, last, 1, 1, 1, 100);
        rig.submit().unwrap();
        batches.push(rig.history.last().unwrap().0);
    }
    assert!(batches[0] < batches[1], "two writes at once");
    rig.append(1, 2, 1, 1, 1, 100);
    rig.submit().unwrap();
    let writes = |rig: &Rig| -> Vec<usize> {
        let flights = rig.disk.flights();
        (0..flights.len()).filter(|at| flights[*at].path.ends_with("00000001.wal")).collect()
    };
    assert_eq!(writes(&rig).len(), 2, "the third record gathers");
    rig.disk.complete(writes(&rig)[1]);
    rig.complete().unwrap();
    assert!(!rig.wal.durable().covers(batches[0]) && !rig.wal.durable().covers(batches[1]));
    rig.disk.complete(writes(&rig)[0]);
    rig.complete().unwrap();
    assert!(rig.wal.durable().covers(batches[1]));
}

#[test]
fn full_batches_may_be_four_in_flight_and_never_more() {
    let mut disk = FakeDisk::new(8);
    let config = coracle_wal::Config { file_bytes: 16 << 20, spares: 0, ..config(8) };
    let (mut rig, _) = Rig::open(disk.clone(), config).unwrap();
    disk.submit().unwrap();
    disk.set_completing(Completing::Manual);
    let mut last = 0;
    while rig.wal.backlog_bytes() < 7 * BATCH_BYTES_TARGET {
        rig.append(1, last, 1, 1, 1, 60_000);
        last += 1;
    }
    rig.submit().unwrap();
    assert_eq!((disk.flights().len(), rig.wal.is_gathering()), (4, true));
    assert!(rig.wal.backlog_bytes() >= 7 * BATCH_BYTES_TARGET, "what is in flight counts");
    while disk.in_flight() > 0 {
        disk.complete(0);
        rig.complete().unwrap();
        rig.submit().unwrap();
        assert!(disk.flights().len() <= 4);
    }
    assert_eq!(rig.wal.stats().in_flight_max, 4);
    assert_eq!((rig.wal.backlog_bytes(), rig.wal.is_gathering()), (0, false));
}

#[test]
fn a_marker_follows_when_the_log_has_been_quiet() {
    let mut rig = Rig::fresh(9);
    assert_eq!(rig.wal.deadline_us(), None, "nothing to prove");
    rig.append(1, 0, 1, 1, 1, 100);
    rig.settle();
    assert_eq!(rig.wal.deadline_us(), Some(75_000));
    rig.now_us = 74_999;
    rig.settle();
    assert_eq!((rig.wal.stats().batches, rig.wal.stats().marks), (1, 0));
    rig.now_us = 75_000;
    rig.settle();
    assert_eq!((rig.wal.stats().batches, rig.wal.stats().marks), (2, 1));
    assert_eq!(rig.wal.deadline_us(), None, "once is enough");
}

#[test]
fn a_state_outlives_the_loss_of_its_batch() {
    let mut rig = Rig::fresh(10);
    rig.append(1, 0, 1, 1, 1, 100);
    rig.settle();
    rig.put_state(1, b"voted");
    rig.settle();
    rig.now_us = 1_000_000;
    rig.settle();
    // The state's batch is the second one: a block after the first.
    assert!(rig.disk.corrupt("wal/00000001.wal", 8192 + 4096 + 100, Damage::FlipBit { bit: 1 }));
    let (_, recovery) = Rig::open(rig.disk.clone(), config(11)).unwrap();
    assert_eq!(recovery.report.holes.len(), 1);
    assert_eq!(recovery.groups[0].state, b"voted");
    assert!(recovery.groups[0].suspect && !recovery.groups[0].state_lost);
}

/// States are written once more in the next batch; one of a group that has ended meanwhile is not.
#[test]
fn a_deleted_group_does_not_come_back_with_its_state() {
    let groups = |disk: &FakeDisk| {
        let mut copy = FakeDisk::from_image(disk.image(), 13);
        let (_, recovery) = Wal::open(&mut copy, config(13), identity()).unwrap();
        recovery.groups.iter().map(|group| group.group.0).collect::<Vec<_>>()
    };
    // A checkpoint begins with each of the batches around the group's end.
    for (before, ends_later) in (0..60).flat_map(|before| [(before, false), (before, true)]) {
        let mut rig = Rig::fresh(12);
        (1..4).for_each(|group| rig.append(group, 0, 1, 1, 2, 1200));
        for _ in 0..before {
            let last = rig.model().last(3);
            rig.append(3, last, 1, 1, 1, 3000);
            rig.settle();
        }
        rig.settle();
        rig.put_state(1, b"voted");
        if ends_later {
            rig.settle();
        }
        rig.delete(1);
        let mut checkpoints = rig.wal.stats().checkpoints;
        let upto = checkpoints + 3;
        while checkpoints < upto {
            rig.settle();
            assert_eq!(groups(&rig.disk), [2, 3], "after checkpoint {checkpoints}");
            let last = rig.model().last(3);
            rig.append(3, last, 1, 1, 1, 3000);
            checkpoints = rig.wal.stats().checkpoints;
        }
    }
}

/// A leader knows better than recovery, which found nothing amiss.
#[test]
fn what_a_leader_says_is_lost_is_remembered() {
    let suspect = |disk: &FakeDisk| {
        let mut copy = FakeDisk::from_image(disk.image(), 13);
        let (_, recovery) = Wal::open(&mut copy, config(13), identity()).unwrap();
        assert!(recovery.report.holes.is_empty() && !recovery.report.tail_suspect);
        let groups = recovery.groups.iter().filter(|group| group.suspect);
        groups.map(|group| (group.group.0, group.state_lost)).collect::<Vec<_>>()
    };
    let mut rig = Rig::fresh(12);
    (1..4).for_each(|group| rig.append(group, 0, 1, 1, 2, 1200));
    rig.settle();
    rig.wal.mark_suspect(GroupId(2));
    let checkpoints = rig.wal.stats().checkpoints;
    rig.settle();
    assert!(rig.wal.stats().checkpoints > checkpoints, "it does not wait for others to write");
    assert_eq!(suspect(&rig.disk), [(2, true)], "its votes are doubted, too");
    rig.wal.clear_suspect(GroupId(2));
    for _ in 0..60 {
        let last = rig.model().last(3);
        rig.append(3, last, 1, 1, 1, 8000);
        rig.settle();
    }
    assert_eq!(suspect(&rig.disk), []);
}

#[test]
fn a_full_disk_is_told_before_the_last_file_and_passes_when_there_is_room_again() {
    let disk = FakeDisk::new(12);
    disk.set_quota(Some(5 * 64 * 1024 + 32 * 1024));
    let (mut rig, _) = Rig::open(disk, config(12)).unwrap();
    let mut written = 0;
    while rig.wal.room().is_none_or(|room| room > rig.wal.file_room()) {
        let last = rig.model().last(1);
        rig.append(1, last, 1, 1, 1, 4000);
        rig.settle();
        written += 1;
        assert!(written < 1000, "the disk has room for five files");
    }
    assert!(written > 20);
    assert!(rig.wal.deadline_us().is_some(), "it will try again");
    // Urgent records still pass, and a snapshot frees what it covers.
    for _ in 0..2 {
        rig.put_state(1, b"term 2");
        let last = rig.model().last(1);
        rig.put_snapshot(1, last, 1, b"all of it");
        rig.settle();
    }
    for _ in 0..40 {
        let last = rig.model().last(1);
        rig.append(1, last, 1, 1, 1, 4000);
        if last % 8 == 0 {
            rig.put_snapshot(1, last, 1, b"all of it");
        }
        rig.now_us += 2_000_000;
        rig.settle();
    }
    assert!(rig.wal.room().is_none_or(|room| room > rig.wal.file_room()));
    rig.check().unwrap();
    rig.disk.set_quota(None);
    let model = rig.model().clone();
    let (_, recovery) = Rig::open(rig.disk.clone(), config(13)).unwrap();
    assert!(Model::of(&recovery).same_shape(&model));
}

#[test]
fn a_file_takes_so_many_entries_and_a_longer_run_has_one_of_its_own() {
    let limited = |seed| coracle_wal::Config { file_entries_max: 10, ..config(seed) };
    let (mut rig, _) = Rig::open(FakeDisk::new(14), limited(14)).unwrap();
    let run = |rig: &mut Rig, count: u32| {
        let last = rig.model().last(1);
        rig.append(1, last, 1, 1, count, 20);
    };
    let ready = config(14).spares as u64;
    for written in 1..=24 {
        run(&mut rig, 3);
        if written % 2 == 0 {
            rig.settle();
        }
    }
    rig.settle();
    assert_eq!(rig.wal.stats().files, 8 + ready, "three runs of three entries in each");
    run(&mut rig, 25);
    run(&mut rig, 1);
    rig.settle();
    assert_eq!(rig.wal.stats().files, 10 + ready);
    rig.check().unwrap();
    let model = rig.model().clone();
    let (mut again, recovery) = Rig::open(rig.disk.clone(), limited(15)).unwrap();
    assert!(!recovery.report.torn && Model::of(&recovery).same_shape(&model));
    again.history = vec![(Default::default(), model)];
    again.check().unwrap();
    // On a full disk the room counts, not the entries.
    let image = again.disk.image();
    let used = image.paths().iter().map(|path| image.read(path).unwrap().len() as u64).sum();
    again.disk.set_quota(Some(used));
    for _ in 0..25 {
        run(&mut again, 3);
        again.now_us += 2_000_000;
        again.settle();
    }
    assert!(again.wal.room().is_some());
    again.check().unwrap();
}

#[test]
fn snapshots_are_carried_out_of_files_that_hold_nothing_else() {
    let mut rig = Rig::fresh(14);
    rig.append(2, 0, 1, 1, 1, 100);
    rig.put_snapshot(2, 1, 1, b"of a group that sleeps");
    for _ in 0..300 {
        let last = rig.model().last(1);
        rig.append(1, last, 1, 1, 1, 4000);
        if last % 8 == 7 {
            rig.put_snapshot(1, last, 1, b"of a busy group");
        }
        rig.settle();
    }
    assert!(rig.disk.read_file("wal/00000001.wal").is_none(), "the first file was reused");
    let model = rig.model().clone();
    let (_, recovery) = Rig::open(rig.disk.clone(), config(15)).unwrap();
    assert!(Model::of(&recovery).same_shape(&model));
    assert_eq!(recovery.groups[1].snapshot.as_ref().unwrap().bytes, b"of a group that sleeps");
}

#[test]
fn many_starts_do_not_use_up_the_disk() {
    let disk = FakeDisk::new(16);
    let mut model = Model::default();
    for start in 0..30 {
        let (mut rig, recovery) = Rig::open(disk.clone(), config(start)).unwrap();
        assert!(Model::of(&recovery).same_shape(&model));
        assert_eq!(recovery.boot_epoch, start + 1);
        let last = rig.model().last(1);
        rig.append(1, last, 1, 1, 1, 100);
        rig.put_snapshot(1, last + 1, 1, b"all");
        rig.settle();
        model = rig.model().clone();
        rig.wal.shutdown(&mut rig.disk).unwrap();
    }
    assert!(disk.image().paths().len() <= 8, "{:?}", disk.image().paths());
}

/// What a caller may do with a log.
#[derive(Debug, Clone)]
enum Act {
    Append { group: u64, count: u32, bytes: usize },
    Conflict { group: u64, back: u64 },
    State { group: u64, bytes: usize },
    Snapshot { group: u64, back: u64 },
    Settle,
    Restart { politely: bool },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let group = || 1u64..5;
    let act = prop_oneof![
        8 => (group(), 1u32..4, 0usize..3000).prop_map(|(group, count, bytes)| Act::Append { group, count, bytes }),
        2 => (group(), 0u64..4).prop_map(|(group, back)| Act::Conflict { group, back }),
        2 => (group(), 0usize..=256).prop_map(|(group, bytes)| Act::State { group, bytes }),
        2 => (group(), 0u64..4).prop_map(|(group, back)| Act::Snapshot { group, back }),
        4 => Just(Act::Settle),
        1 => any::<bool>().prop_map(|politely| Act::Restart { politely }),
    ];
    proptest::collection::vec(act, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_log_is_what_the_model_says(acts in acts()) {
        let mut rig = Rig::fresh(20);
        let mut term = 1;
        for (at, act) in acts.into_iter().enumerate() {
            match act {
                Act::Append { group, count, bytes } => {
                    let last = rig.model().last(group);
                    let of = rig.model().term_at(group, last).unwrap().max(1);
                    rig.append(group, last, of, term.max(of), count, bytes);
                }
                Act::Conflict { group, back } => {
                    term += 1;
                    let prev = rig.model().last(group).saturating_sub(back).max(rig.model().get(group).base.0);
                    let least = rig.model().term_at(group, prev).unwrap();
                    rig.append(group, prev, term.max(least), term.max(least), 1, 700);
                }
                Act::State { group, bytes } => rig.put_state(group, &vec![at as u8; bytes]),
                Act::Snapshot { group, back } => {
                    let model = rig.model();
                    let index = model.last(group).saturating_sub(back).max(model.get(group).base.0).max(1);
                    let term = model.term_at(group, index).unwrap_or(term);
                    rig.put_snapshot(group, index, term, &[at as u8; 100]);
                }
                Act::Settle => {
                    rig.now_us += 30_000;
                    rig.settle();
                    rig.model().check_live(&rig.wal);
                    prop_assert_eq!(rig.check(), Ok(()));
                }
                Act::Restart { politely } => {
                    if politely {
                        let model = rig.model().clone();
                        let disk = rig.disk.clone();
                        rig.wal.shutdown(&mut rig.disk).unwrap();
                        rig = reopen(disk, at as u64, &model);
                    } else {
                        rig.settle();
                        let model = rig.model().clone();
                        rig.disk.crash(coracle_io::fake::CrashPolicy::LOSE_ALL);
                        rig = reopen(rig.disk.clone(), at as u64, &model);
                    }
                }
            }
        }
    }
}

/// Opens the log again; it is what it was, and its payloads are still checked.
fn reopen(disk: FakeDisk, seed: u64, model: &Model) -> Rig {
    let (mut rig, recovery) = Rig::open(disk, config(100 + seed)).unwrap();
    assert!(Model::of(&recovery).same_shape(model), "{recovery:?} is not {model:?}");
    rig.history = vec![(Default::default(), model.clone())];
    rig
}

#[test]
fn a_read_that_is_overtaken_says_so_or_begins_again() {
    let mut results = std::collections::BTreeMap::new();
    for pause in 0..40 {
        for change in ["release", "overwrite"] {
            let mut rig = Rig::fresh(30);
            for _ in 0..60 {
                let last = rig.model().last(1);
                rig.append(1, last, 1, 1, 1, 3000);
                rig.settle();
            }
            // So that the file is to be opened first.
            let (mut rig, _) = Rig::open(rig.disk.clone(), config(31)).unwrap();
            rig.disk.set_completing(Completing::Manual);
            rig.wal.read(&mut rig.disk, 5, GroupId(1), Index(2), Index(60), 50_000);
            for _ in 0..pause {
                rig.disk.submit().unwrap();
                if !rig.disk.flights().is_empty() {
                    rig.disk.complete(0);
                    rig.complete().unwrap();
                }
            }
            let early = rig.wal.poll_read();
            let when = if early.is_some() { "before" } else { "after" };
            match change {
                "release" => rig.put_snapshot(1, 60, 1, b"all"),
                _ => rig.append(1, 1, 2, 2, 1, 3000),
            }
            rig.settle();
            let (id, result) = early.or_else(|| rig.wal.poll_read()).unwrap();
            assert_eq!(id, 5);
            let told = match result {
                Ok(out) => {
                    let mut entries = coracle_base::run::Entries::new(out.first, &out.body);
                    let term = entries.next().unwrap().header.term.0;
                    assert!(entries.all(|entry| entry.header.term.0 == term), "of one time or the other");
                    format!("{when} {change}: term {term}")
                }
                Err(ReadError::Released { .. }) => format!("{when} {change}: released"),
                Err(ReadError::NotDurable { .. }) => format!("{when} {change}: not durable"),
                Err(error) => panic!("{change} after {pause}: {error}"),
            };
            *results.entry(told).or_insert(0) += 1;
        }
    }
    let told: Vec<_> = results.keys().map(String::as_str).collect();
    // What was read of entries that a snapshot then covered is still what they were.
    let expected = [
        "after overwrite: term 2",
        "after release: released",
        "after release: term 1",
        "before overwrite: term 1",
        "before release: term 1",
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_batch_is_as_large_as_was_asked_and_nothing_impossible_can_be_asked() {
    let batch_bytes = 8192;
    let (mut rig, _) =
        Rig::open(FakeDisk::new(71), coracle_wal::Config { batch_bytes, ..config(71) }).unwrap();
    for group in 1..=20 {
        rig.append(group, 0, 1, 1, 1, 1500);
    }
    // One that is larger than a batch.
    rig.append(21, 0, 1, 1, 16, 1500);
    let batches: std::collections::BTreeSet<_> = rig.history[1..].iter().map(|(seq, _)| *seq).collect();
    assert!(batches.len() >= 4, "{batches:?}");
    rig.settle();
    rig.check().unwrap();
    for found in [0, 100, 5000, (1 << 20) + 4096] {
        let config = coracle_wal::Config { batch_bytes: found, ..config(72) };
        let opened = Rig::open(FakeDisk::new(72), config);
        assert_eq!(opened.err(), Some(WalError::BatchBytes { found }));
    }
}
