//! Read plans and the pins that keep their files: while another thread reads, the log goes on, and files are reused and
//! removed. Whatever comes out is what the log held when the plan was made, or `Released`; never damage, never other bytes.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use crate::common::{Rig, config};
use coracle_base::run::Entries;
use coracle_base::{GroupId, Index};
use coracle_io::fake::{Damage, FakeDisk, FakeFiles};
use coracle_io::{BlockingRead, Buffer, Disk, DiskError};
use coracle_wal::{Config, ReadError, ReadPlan};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// A plan beside what it has to give: each entry's payload, as far as the model knows it.
struct Planned {
    plan: ReadPlan,
    expected: Vec<(u64, Option<Vec<u8>>)>,
    files: FakeFiles,
    made_us: u64,
}

/// Reads of a plan, while the log goes on before and after each of them.
struct Racing<'a, F: FnMut()> {
    files: &'a mut FakeFiles,
    meanwhile: F,
}

impl<F: FnMut()> BlockingRead for Racing<'_, F> {
    fn read(&mut self, path: &Path, offset: u64, buf: &mut Buffer) -> Result<usize, DiskError> {
        (self.meanwhile)();
        let result = self.files.read(path, offset, buf);
        (self.meanwhile)();
        result
    }
}

fn open(config: Config) -> Rig {
    Rig::open(FakeDisk::new(config.seed), config).unwrap().0
}

/// A plan for these entries, without going on with anything but its reads.
fn plan(rig: &mut Rig, group: u64, indexes: &[u64]) -> Option<Planned> {
    let wanted: Vec<Index> = indexes.iter().map(|index| Index(*index)).collect();
    let mut disk = rig.disk.clone();
    rig.wal.plan_read(&mut disk, 9, GroupId(group), &wanted, 200_000);
    for _ in 0..10_000 {
        if let Some((id, plan)) = rig.wal.poll_plan() {
            assert_eq!(id, 9);
            let model = rig.model().get(group);
            let payload = |index: &u64| {
                let held = model.entries.get(index).map(|(_, payload)| payload);
                held.or(model.live.get(index)).cloned().flatten()
            };
            let expected = indexes.iter().map(|index| (*index, payload(index))).collect();
            let files = rig.disk.files();
            if plan.as_ref().is_some_and(ReadPlan::is_empty) {
                // Not durable yet.
                rig.wal.plan_read(&mut disk, 9, GroupId(group), &wanted, 200_000);
                rig.submit().unwrap();
                rig.complete().unwrap();
                continue;
            }
            return plan.map(|plan| Planned { plan, expected, files, made_us: rig.now_us });
        }
        rig.disk.submit().unwrap();
        rig.complete().unwrap();
    }
    panic!("a plan does not come");
}

/// Executes a plan. How many entries it gave, and how many it said were released.
fn execute(planned: &mut Planned, meanwhile: impl FnMut()) -> Result<(usize, usize), String> {
    let mut files = Racing { files: &mut planned.files, meanwhile };
    let (mut given, mut released) = (0, 0);
    let out = planned.plan.execute(&mut files);
    assert!(!out.is_empty() && out.len() <= planned.expected.len());
    for ((index, result), (wanted, payload)) in out.into_iter().zip(&planned.expected) {
        assert_eq!(index.0, *wanted);
        match result {
            Ok(encoded) => {
                let entry = Entries::new(index, &encoded).next().expect("a whole entry");
                if payload.as_ref().is_some_and(|payload| payload != entry.payload) {
                    return Err(format!("entry {index} is not what was written"));
                }
                given += 1;
            }
            Err(ReadError::Released { .. }) => released += 1,
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok((given, released))
}

/// A turn in which the log grows, or is released.
fn go_on(rig: &mut Rig, rng: &mut SmallRng) {
    let group = rng.random_range(1..4);
    let (last, base) = (rig.model().last(group), rig.model().get(group).base.0);
    match rng.random_range(0..10) {
        0..7 => rig.append(group, last, 1, 1, rng.random_range(1..4), [300, 3000][group as usize % 2]),
        _ if last > base => {
            let index = rng.random_range(base + 1..=last);
            let model = rig.model().get(group);
            let all = model.live.keys().chain(model.entries.range(..=index).map(|(index, _)| index));
            let live: Vec<u64> = all.copied().filter(|_| rng.random_ratio(1, 20)).collect();
            rig.put_snapshot_live(group, index, 1, &live, b"a snapshot");
        }
        _ => {}
    }
    rig.now_us += 5000;
    rig.submit().unwrap();
    rig.complete().unwrap();
    // What was is not the question here.
    rig.history.drain(..rig.history.len() - 1);
}

/// Plans that are made, kept and executed while files are reused under them.
fn plans_race_with_reuse() -> Result<(usize, usize), String> {
    let (mut given, mut released) = (0, 0);
    for seed in 0..16 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut rig = open(Config { pin_us: 400_000, pin_bytes: 4 * 64 * 1024, ..config(seed) });
        let mut plans: Vec<Planned> = Vec::new();
        for _ in 0..1200 {
            go_on(&mut rig, &mut rng);
            let group = rng.random_range(1..4);
            let model = rig.model().get(group);
            let held: Vec<u64> = model.live.keys().chain(model.entries.keys()).copied().collect();
            if !held.is_empty() && rng.random_ratio(1, 8) {
                let some: Vec<u64> = (0..8).map(|_| held[rng.random_range(0..held.len())]).collect();
                plans.push(plan(&mut rig, group, &some).unwrap());
            }
            if !plans.is_empty() && rng.random_ratio(1, 9) {
                let at = rng.random_range(0..plans.len());
                let turns = rng.random_range(0..40);
                let meanwhile = || (0..turns).for_each(|_| go_on(&mut rig, &mut rng));
                let (some, gone) =
                    execute(&mut plans[at], meanwhile).map_err(|error| format!("seed {seed}: {error}"))?;
                (given, released) = (given + some, released + gone);
                if rng.random_ratio(1, 2) {
                    plans.swap_remove(at);
                }
            }
        }
        assert!(rig.wal.stats().files_reused > 20, "{:?}", rig.wal.stats());
        assert_eq!(rig.check(), Ok(()), "seed {seed}");
    }
    Ok((given, released))
}

#[test]
fn a_plan_gives_what_was_there_or_says_that_it_is_released() {
    let (given, released) = plans_race_with_reuse().unwrap();
    assert!(given > 1000 && released > 1000, "{given} given, {released} released");
}

#[cfg(feature = "breaks")]
#[test]
fn a_plan_that_races_with_reuse_is_noticed() {
    use coracle_wal::breaks::{Break, plant};
    plant(Some(Break::ReadPlanRacesReuse));
    let outcome = std::panic::catch_unwind(plans_race_with_reuse);
    plant(None);
    assert!(!matches!(outcome, Ok(Ok(_))), "read-plan-races-reuse was not noticed");
}

/// Fills files with a group's entries and releases them again, so that only pins keep them.
fn fill_and_release(rig: &mut Rig, rounds: u64) {
    for _ in 0..rounds {
        let last = rig.model().last(1);
        rig.append(1, last, 1, 1, 1, 3000);
        rig.settle();
    }
    let last = rig.model().last(1);
    rig.put_snapshot(1, last, 1, b"all of it");
    rig.settle();
}

#[test]
fn a_pin_keeps_its_file_until_its_time_is_over_or_it_is_dropped() {
    for is_dropped in [false, true] {
        let mut rig = open(Config { pin_us: 1_000_000, ..config(3) });
        rig.append(1, 0, 1, 1, 5, 3000);
        rig.settle();
        let mut planned = plan(&mut rig, 1, &[1, 2, 3, 4, 5]).unwrap();
        for _ in 0..20 {
            fill_and_release(&mut rig, 20);
        }
        assert!(rig.disk.read_file("wal/00000001.wal").is_some(), "it is pinned");
        assert!(rig.wal.stats().files_reused > 3, "others are not");
        assert_eq!(execute(&mut planned, || {}), Ok((5, 0)));
        // The marker of a quiet log comes first.
        rig.now_us += 100_000;
        rig.settle();
        assert_eq!(rig.wal.deadline_us(), Some(planned.made_us + 1_000_000), "it is looked at in time");
        let planned = if is_dropped {
            drop(planned);
            rig.now_us += 20_000;
            None
        } else {
            rig.now_us += 1_000_001;
            Some(planned)
        };
        rig.settle();
        assert_eq!(rig.wal.pins(), 0);
        if let Some(mut planned) = planned {
            assert_eq!(execute(&mut planned, || {}), Ok((0, 5)));
        }
        for _ in 0..3 {
            fill_and_release(&mut rig, 20);
        }
        assert!(rig.disk.read_file("wal/00000001.wal").is_none(), "it was used again");
    }
}

#[test]
fn files_that_only_pins_keep_are_within_the_budget_and_the_oldest_pin_goes_first() {
    let budget = 3;
    let mut rig = open(Config { pin_us: u64::MAX, pin_bytes: budget * 64 * 1024, ..config(4) });
    let mut without = open(config(4));
    let mut plans = Vec::new();
    for round in 0..40 {
        for rig in [&mut rig, &mut without] {
            let last = rig.model().last(1);
            rig.append(1, last, 1, 1, 5, 3000);
            rig.settle();
        }
        let last = rig.model().last(1);
        plans.push(plan(&mut rig, 1, &[last, last - 1]).unwrap());
        for rig in [&mut rig, &mut without] {
            fill_and_release(rig, 15);
            rig.now_us += 20_000;
            rig.settle();
        }
        let (with, without) = (rig.wal.stats().files, without.wal.stats().files);
        assert!(with <= without + budget + 1, "round {round}: {with} files, {without} without pins");
    }
    let outcomes: Vec<_> = plans.iter_mut().map(|planned| execute(planned, || {}).unwrap()).collect();
    let held = outcomes.iter().position(|outcome| *outcome == (2, 0)).unwrap();
    assert!((1..=6).contains(&(outcomes.len() - held)), "{outcomes:?}");
    assert!(outcomes[..held].iter().all(|outcome| *outcome == (0, 2)), "the oldest first: {outcomes:?}");
    assert!(outcomes[held..].iter().all(|outcome| *outcome == (2, 0)), "{outcomes:?}");
}

#[test]
fn a_full_disk_takes_the_pins_and_the_log_goes_on() {
    let mut rig = open(Config { pin_us: u64::MAX, pin_bytes: u64::MAX, ..config(5) });
    rig.append(1, 0, 1, 1, 2, 3000);
    rig.settle();
    let mut oldest = plan(&mut rig, 1, &[1, 2]).unwrap();
    let mut others = Vec::new();
    for _ in 0..6 {
        fill_and_release(&mut rig, 25);
        let last = rig.model().last(1);
        rig.append(1, last, 1, 1, 1, 3000);
        rig.settle();
        others.push(plan(&mut rig, 1, &[last + 1]).unwrap());
    }
    rig.disk.set_quota(Some(rig.wal.stats().files * 64 * 1024));
    for _ in 0..60 {
        fill_and_release(&mut rig, 20);
        rig.now_us += 1_100_000;
    }
    assert_eq!(execute(&mut oldest, || {}), Ok((0, 2)));
    assert_eq!(rig.check(), Ok(()));
}

#[test]
fn plans_are_bounded_in_number_and_bytes() {
    let mut rig = open(config(6));
    for last in 0..60 {
        rig.append(1, last, 1, 1, 1, if last % 7 == 3 { 20_000 } else { 100 });
    }
    rig.settle();
    let all: Vec<u64> = (1..=60).collect();
    let mut planned = plan(&mut rig, 1, &all).unwrap();
    let wanted: Vec<Index> = all.iter().map(|index| Index(*index)).collect();
    let mut disk = rig.disk.clone();
    rig.wal.plan_read(&mut disk, 1, GroupId(1), &wanted, 30_000);
    rig.settle();
    let (_, small) = rig.wal.poll_plan().unwrap();
    let out = small.unwrap().execute(&mut planned.files);
    let bytes: usize = out.iter().map(|(_, entry)| entry.as_ref().unwrap().len()).sum();
    assert!(bytes <= 30_000 && out.len() > 1 && out.len() < 60, "{} entries, {bytes} bytes", out.len());

    let plans: Vec<_> = std::iter::from_fn(|| plan(&mut rig, 1, &[1])).take(2000).collect();
    assert!(plans.len() < 2000 && rig.wal.pins() == plans.len() + 1, "{}", plans.len());
    drop(plans);
    assert!(plan(&mut rig, 1, &[1]).is_some(), "those that were dropped do not count");
}

#[test]
fn a_plan_names_what_is_damaged_and_outlives_the_log_as_released() {
    let mut rig = open(config(7));
    rig.append(1, 0, 1, 1, 3, 3000);
    rig.append(1, 3, 1, 1, 1, 3000);
    rig.settle();
    let mut planned = plan(&mut rig, 1, &[4, 1, 99]).unwrap();
    let bytes = rig.disk.read_file("wal/00000001.wal").unwrap();
    let at = bytes.windows(6).position(|window| window == b"g1 i4 ").unwrap();
    rig.disk.corrupt("wal/00000001.wal", at as u64, Damage::FlipBit { bit: 1 });
    let out = planned.plan.execute(&mut planned.files);
    let corrupt = |error: &ReadError| matches!(error, ReadError::Corrupt { file, index: Index(4), .. } if file.ends_with("00000001.wal"));
    assert!(out[0].1.as_ref().is_err_and(corrupt), "{:?}", out[0]);
    assert!(out[1].1.is_ok());
    assert!(matches!(out[2].1, Err(ReadError::Released { .. })), "it was never there");
    rig.disk.corrupt("wal/00000001.wal", at as u64, Damage::Unreadable);
    let out = planned.plan.execute(&mut planned.files);
    assert!(matches!(out[0].1, Err(ReadError::Disk(_))), "{:?}", out[0]);
    drop(rig);
    assert_eq!(execute(&mut planned, || {}), Ok((0, 3)), "whoever opens the directory next knows of no pins");
}

/// A file is renamed away between the look and the opening.
#[test]
fn a_file_that_is_gone_is_released_and_not_missing() {
    let mut rig = open(Config { pin_us: 100_000, ..config(8) });
    rig.append(1, 0, 1, 1, 2, 3000);
    rig.settle();
    let mut planned = plan(&mut rig, 1, &[1, 2]).unwrap();
    let mut is_first = true;
    let meanwhile = || {
        if std::mem::take(&mut is_first) {
            rig.now_us += 200_000;
            (0..4).for_each(|_| fill_and_release(&mut rig, 20));
            assert!(rig.disk.read_file("wal/00000001.wal").is_none(), "it was used again");
        }
    };
    assert_eq!(execute(&mut planned, meanwhile), Ok((0, 2)));
}
