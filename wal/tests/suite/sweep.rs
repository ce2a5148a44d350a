//! The sweep: one pass over the files after a restart, against what reads of each group on its own give.
//!
//! What must hold: every entry that the log holds above its groups' snapshots is handed out once, in order, and nothing
//! else; what is damaged is left out, never wrong; a log that is written, released and cut meanwhile, or a crash, does no
//! harm.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use crate::common::{DIR, Rig, config};
use coracle_base::run::Entries;
use coracle_base::{GroupId, Index};
use coracle_io::Disk;
use coracle_io::fake::{Completing, CrashPolicy, Damage, FakeDisk, OpKind};
use coracle_wal::WalError;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

type Entry = (u64, u64, Vec<u8>);

/// Payload bytes, the same for the same entry.
fn bytes(group: u64) -> usize {
    [40, 400, 6000][group as usize % 3]
}

/// A log with a random history: of several groups, with conflicts, releases and deletions, over many files.
fn told(seed: u64, records: usize) -> Rig {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut rig = Rig::fresh(seed);
    let mut term = 1;
    let mut next_group = 6;
    let mut groups: Vec<u64> = (1..next_group).collect();
    for _ in 0..records {
        let at = rng.random_range(0..groups.len());
        let group = groups[at];
        let (last, base) = (rig.model().last(group), rig.model().get(group).base.0);
        let last_term = rig.model().term_at(group, last).unwrap().max(1);
        match rng.random_range(0..100) {
            0..75 => {
                rig.append(group, last, last_term, term.max(last_term), rng.random_range(1..4), bytes(group));
            }
            75..87 => {
                // A new leader writes over the end; its term is new, as a leader's is.
                term += 1;
                let prev = last - rng.random_range(0..=(last - base).min(4));
                rig.append(group, prev, term, term, rng.random_range(1..3), bytes(group));
            }
            87..92 => {
                // The same entries once more: they are in the files twice.
                let prev = last - rng.random_range(0..=(last - base).min(1));
                if prev < last {
                    rig.append(group, prev, last_term, term.max(last_term), 1, bytes(group));
                }
            }
            92..98 if last > base => {
                let index = rng.random_range(base + 1..=last);
                let live: Vec<u64> = (base + 1..=index).filter(|at| at % 3 == 0).collect();
                let at_term = rig.model().term_at(group, index).unwrap();
                rig.put_snapshot_live(group, index, at_term, &live, b"a snapshot");
            }
            98 => {
                // A group that is gone never comes again.
                rig.delete(group);
                groups[at] = next_group;
                next_group += 1;
            }
            _ => rig.put_state(group, b"a state"),
        }
        if rng.random_ratio(1, 3) {
            rig.settle();
        }
    }
    rig.settle();
    rig
}

/// Takes what the sweep has.
fn take(rig: &mut Rig, swept: &mut BTreeMap<u64, Vec<Entry>>) {
    let Some(mut sweep) = rig.wal.lend_sweep() else { return };
    while let Some(run) = sweep.next(&rig.wal) {
        let entries: Vec<Entry> = Entries::new(run.first, run.entries)
            .map(|entry| (entry.index.0, entry.header.term.0, entry.payload.to_vec()))
            .collect();
        assert_eq!(entries.len() as u32, run.count, "a run has as many entries as it says");
        assert!(run.count > 0);
        swept.entry(run.group.0).or_default().extend(entries);
    }
    rig.wal.return_sweep(&mut rig.disk, sweep);
}

/// Begins a sweep for all that the log holds.
fn begin(rig: &mut Rig) {
    let wanted = rig.model().ids().into_iter().map(|id| (GroupId(id), Index(rig.model().get(id).base.0 + 1)));
    let wanted: Vec<_> = wanted.collect();
    rig.wal.begin_sweep(&mut rig.disk, wanted.into_iter());
}

/// Sweeps to the end; `meanwhile` is called between the steps.
fn sweep(rig: &mut Rig, mut meanwhile: impl FnMut(&mut Rig)) -> BTreeMap<u64, Vec<Entry>> {
    let mut swept = BTreeMap::new();
    begin(rig);
    for _ in 0..10_000 {
        if !rig.wal.is_sweeping() {
            return swept;
        }
        rig.disk.submit().unwrap();
        rig.complete().unwrap();
        take(rig, &mut swept);
        meanwhile(rig);
    }
    panic!("a sweep does not end");
}

/// What differs, in short.
fn difference(found: &BTreeMap<u64, Vec<Entry>>, expected: &BTreeMap<u64, Vec<Entry>>) -> Option<String> {
    let ids: BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    let of = |all: &BTreeMap<u64, Vec<Entry>>, id: &u64| all.get(id).cloned().unwrap_or_default();
    let bare =
        |entries: Vec<Entry>| entries.into_iter().map(|(index, term, _)| (index, term)).collect::<Vec<_>>();
    let different = ids.into_iter().find(|id| of(found, id) != of(expected, id))?;
    let (found, expected) = (bare(of(found, different)), bare(of(expected, different)));
    Some(format!("group {different}: found {found:?}, expected {expected:?}"))
}

fn reopened(disk: &FakeDisk, seed: u64) -> Rig {
    Rig::open(disk.clone(), config(seed)).unwrap().0
}

/// Every group's entries, each group read on its own.
fn read(rig: &mut Rig) -> BTreeMap<u64, Vec<Entry>> {
    let ids = rig.model().ids();
    let mut all: BTreeMap<_, _> = ids.into_iter().map(|id| (id, rig.read_all(id).unwrap())).collect();
    all.retain(|_, entries| !entries.is_empty());
    all
}

#[test]
fn a_sweep_gives_what_reads_give_each_entry_once_and_in_order() {
    for seed in 0..60 {
        let rig = told(seed, 150);
        let model = rig.model().clone();
        let mut rig = reopened(&rig.disk, seed + 1000);
        // In whatever order the disk completes: the second of two reads may come first.
        rig.disk.set_completing(Completing::AtOnce);
        let swept = sweep(&mut rig, |_| {});
        assert_eq!(difference(&swept, &read(&mut rig)), None, "seed {seed}");
        for (id, entries) in &swept {
            assert_eq!(model.check_entries(*id, entries), Ok(()), "seed {seed}");
        }
        assert!(swept.values().map(Vec::len).sum::<usize>() > 50, "seed {seed} shows little");
        assert_eq!(difference(&sweep(&mut rig, |_| {}), &swept), None, "another sweep gives the same");
    }
}

/// Batches that begin in one read and end in the next, and reads that complete in the other order.
#[test]
fn large_files_are_swept_in_pieces() {
    let large = |seed| coracle_wal::Config { file_bytes: 6 << 20, ..config(seed) };
    let mut rig = Rig::open(FakeDisk::new(5), large(5)).unwrap().0;
    for round in 0..90 {
        let group = round % 3 + 1;
        rig.append(group, rig.model().last(group), 1, 1, 7, 20_000 + 1000 * (round as usize % 5));
        rig.settle();
    }
    let mut rig = Rig::open(rig.disk.clone(), large(6)).unwrap().0;
    rig.disk.set_completing(Completing::Manual);
    let mut swept = BTreeMap::new();
    let mut swapped = 0;
    begin(&mut rig);
    while rig.wal.is_sweeping() {
        rig.disk.submit().unwrap();
        let reads = rig.disk.flights().iter().filter(|flight| flight.kind == OpKind::Read).count();
        swapped += usize::from(reads >= 2);
        rig.disk.complete(rig.disk.flights().len() - 1);
        rig.complete().unwrap();
        take(&mut rig, &mut swept);
    }
    assert!(swapped > 3, "several reads were in flight {swapped} times");
    rig.disk.set_completing(Completing::AtOnce);
    assert_eq!(difference(&swept, &read(&mut rig)), None);
    assert_eq!(swept.values().map(Vec::len).sum::<usize>(), 90 * 7);
}

#[test]
fn a_log_that_goes_on_meanwhile_is_swept_all_the_same() {
    for seed in 0..30 {
        let disk = told(seed, 150).disk;
        let mut rig = reopened(&disk, seed + 1000);
        let before = read(&mut rig);
        let mut rng = SmallRng::seed_from_u64(seed);
        let swept = sweep(&mut rig, |rig| {
            let groups = rig.model().ids();
            let group = groups[rng.random_range(0..groups.len())];
            let (last, base) = (rig.model().last(group), rig.model().get(group).base.0);
            let last_term = rig.model().term_at(group, last).unwrap().max(1);
            match rng.random_range(0..3) {
                0 if last > base => {
                    let index = rng.random_range(base + 1..=last);
                    let term = rig.model().term_at(group, index).unwrap();
                    rig.put_snapshot(group, index, term, b"released");
                }
                1 => rig.append(group, last - (last - base).min(1), 1000, 1000, 1, 3000),
                _ => rig.append(group, last, last_term, last_term, 3, 3000),
            }
            rig.submit().unwrap();
        });
        for (id, entries) in &swept {
            // Nothing but what was there, in order and once; all of what has stayed.
            assert!(entries.windows(2).all(|pair| pair[0].0 < pair[1].0), "seed {seed}: group {id}");
            assert!(entries.iter().all(|entry| before[id].contains(entry)), "seed {seed}: group {id}");
        }
        rig.settle();
        for (id, entries) in read(&mut rig) {
            let old = before.get(&id).into_iter().flatten();
            let stayed: Vec<_> = old.filter(|entry| entries.contains(entry)).collect();
            let found = swept.get(&id).map_or(&[][..], Vec::as_slice);
            assert!(stayed.iter().all(|entry| found.contains(entry)), "seed {seed}: group {id}");
        }
        assert_eq!(rig.check(), Ok(()), "seed {seed}");
    }
}

/// One damaged block: what the sweep gives is right, and every extent that it does not give whole is damaged.
#[test]
fn what_is_damaged_is_left_out() {
    let mut left_out = 0;
    for seed in 0..40 {
        let disk = told(seed, 150).disk;
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut rig = reopened(&disk, seed + 1000);
        let before = read(&mut rig);
        let mut names: Vec<String> =
            rig.disk.list(DIR.as_ref()).unwrap().into_iter().map(|e| e.name).collect();
        names.retain(|name| name.ends_with(".wal") && !name.starts_with("spare"));
        let path = format!("{DIR}/{}", names[rng.random_range(0..names.len())]);
        let offset = rng.random_range(2..16) * 4096 + rng.random_range(0..4096);
        if seed % 2 == 0 {
            rig.disk.corrupt(&path, offset, Damage::FlipBit { bit: 3 });
        } else {
            rig.disk.fail_next(OpKind::Read, Some(path.as_ref()), 5);
        }
        let swept = sweep(&mut rig, |_| {});
        for (id, expected) in &before {
            let found = swept.get(id).map_or(&[][..], Vec::as_slice);
            assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0), "seed {seed}: group {id}");
            assert!(found.iter().all(|entry| expected.contains(entry)), "seed {seed}: group {id}");
            if found.len() < expected.len() {
                left_out += 1;
            }
        }
    }
    assert!(left_out > 5, "the damage met {left_out} groups");
}

#[test]
fn a_crash_during_a_sweep_does_no_harm() {
    for steps in 0..12 {
        let seed = steps;
        let rig = told(seed, 150);
        let model = rig.model().clone();
        let mut rig = reopened(&rig.disk, seed + 1000);
        rig.disk.crash_after(steps);
        begin(&mut rig);
        let mut swept = BTreeMap::new();
        for _ in 0..100 {
            if rig.disk.submit().is_err() || !rig.wal.is_sweeping() {
                break;
            }
            let _: Result<(), WalError> = rig.complete();
            take(&mut rig, &mut swept);
        }
        rig.disk.crash(CrashPolicy::LOSE_ALL);
        let mut rig = reopened(&rig.disk, seed + 2000);
        for (id, entries) in sweep(&mut rig, |_| {}) {
            assert_eq!(model.check_entries(id, &entries), Ok(()), "{steps} steps");
        }
        assert_eq!(rig.check(), Ok(()), "{steps} steps");
    }
}

#[test]
fn an_empty_log_has_nothing_to_sweep() {
    let mut rig = Rig::fresh(1);
    assert_eq!(sweep(&mut rig, |_| {}), BTreeMap::new());
    rig.append(1, 0, 1, 1, 1, 100);
    rig.settle();
    assert_eq!(sweep(&mut rig, |_| {}), BTreeMap::new(), "what this start has written is not swept");
}

#[test]
fn a_sweep_begins_where_it_is_needed_and_ends_when_nobody_needs_more() {
    let mut rig = Rig::fresh(3);
    for round in 0..120 {
        let group = round / 40 + 1;
        rig.append(group, rig.model().last(group), 1, 1, 1, 3000);
        rig.settle();
    }
    let disk = rig.disk.clone();
    let mut rig = reopened(&disk, 4);
    let all = read(&mut rig);
    rig.wal.begin_sweep(&mut rig.disk, [(GroupId(3), Index(1))].into_iter());
    let mut swept = BTreeMap::new();
    while rig.wal.is_sweeping() {
        rig.disk.submit().unwrap();
        rig.complete().unwrap();
        take(&mut rig, &mut swept);
    }
    assert_eq!(swept[&3], all[&3]);
    assert!(!swept.contains_key(&1), "its files come before");
    begin(&mut rig);
    while rig.wal.is_sweeping() {
        rig.disk.submit().unwrap();
        rig.complete().unwrap();
        let mut part = BTreeMap::new();
        take(&mut rig, &mut part);
        if part.contains_key(&1) {
            rig.wal.end_sweep();
        }
        assert!(!part.contains_key(&3), "it goes on to the end");
    }
    assert_eq!(rig.check(), Ok(()));
    assert_eq!(difference(&sweep(&mut rig, |_| {}), &all), None, "the next one is whole again");
}
