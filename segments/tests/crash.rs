//! Crash enumeration over compaction: a crash at every operation of a log that is being compacted while it is written to,
//! every image that it may leave (sampled where there are too many), recovery, comparison with the model, live entries and
//! all; then a crash at every operation of that very recovery and of a compaction after it.
//!
//! `CRASH_SCALE=20 cargo test -p coracle-segments --release --test crash -- --nocapture` is the long run.
#![allow(clippy::unwrap_used)]

mod common;

use common::log::model::Model;
use common::log::{Rig, check_live, entries, identity, read_all};
use common::{Yard, bounds, config, random_record};
use coracle_base::Index;
use coracle_io::Disk;
use coracle_io::fake::{Completing, CrashLimits, FakeDisk};
use coracle_segments::Compactor;
use coracle_wal::{BatchSeq, IndexRange, Wal};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const LIMITS: CrashLimits = CrashLimits { units_all: 4, sectors_all: 6, tears: 2, sample: 4 };
const LIMITS_AGAIN: CrashLimits = CrashLimits { units_all: 2, sectors_all: 4, tears: 1, sample: 2 };

/// What is told beside compaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Story {
    /// Records as they come.
    Mixed,
    /// Nothing else is written: compaction, then compaction of what it made.
    Quiet,
    /// Groups are deleted, and others begin.
    Deleting,
    /// Snapshots come with live entries that the log does not hold.
    Placing,
    /// Nothing else is written, and the disk is full: the reserve is made, used, and made again of what became free.
    Full,
}

const STORIES: [Story; 5] = [Story::Mixed, Story::Quiet, Story::Deleting, Story::Placing, Story::Full];

#[derive(Debug, Default)]
struct Tally {
    images: u64,
    again: u64,
    moved: u64,
    in_reserve: u64,
    removed: u64,
    reused: u64,
}

struct Telling {
    yard: Yard,
    rng: SmallRng,
    story: Story,
    term: u64,
    next_group: u64,
}

impl Telling {
    /// A log with sealed files, of which something lives, and some segments.
    fn new(story: Story, seed: u64) -> Self {
        let yard = Yard::fresh(seed);
        let rng = SmallRng::seed_from_u64(seed);
        let mut telling = Self { yard, rng, story, term: 1, next_group: 10 };
        for step in 0..140 {
            telling.record();
            telling.yard.rig.settle();
            if step == 90 {
                telling.yard.compactor.run_now();
                telling.yard.settle();
            }
        }
        if story == Story::Full {
            // The reserve is there, and there are files again from which it could be taken.
            telling.yard.settle();
            for _ in 0..60 {
                telling.record();
                telling.yard.rig.settle();
            }
            let used = telling.yard.disk_bytes();
            telling.yard.rig.disk.set_quota(Some(used));
        }
        telling.yard.rig.disk.set_completing(Completing::Manual);
        telling.yard.compactor.run_now();
        telling
    }

    fn record(&mut self) {
        let rig = &mut self.yard.rig;
        match self.story {
            Story::Deleting if self.rng.random_ratio(1, 12) => {
                rig.delete(self.next_group);
                self.next_group += 1;
            }
            Story::Deleting if self.rng.random_ratio(1, 3) => {
                let last = rig.model().last(self.next_group);
                rig.append(self.next_group, last, 1, 1, 1, 5000);
            }
            Story::Placing if self.rng.random_ratio(1, 8) => place(rig, &mut self.rng),
            _ => random_record(rig, &mut self.rng, &mut self.term, 5000),
        }
    }

    fn step(&mut self) {
        let flights = self.yard.rig.disk.flights().len();
        if flights == 0 || (self.rng.random_ratio(1, 3) && flights < 5) {
            let writes = !matches!(self.story, Story::Quiet | Story::Full) && self.rng.random_ratio(2, 3);
            for _ in 0..u32::from(writes) {
                self.record();
            }
            self.yard.rig.now_us += 30_000;
            if self.yard.compactor.is_idle() && self.rng.random_ratio(1, 4) {
                self.yard.compactor.run_now();
            }
            self.yard.submit();
        } else {
            self.yard.rig.disk.complete(self.rng.random_range(0..flights));
            self.yard.complete();
            self.yard.submit();
        }
    }
}

/// A follower far behind gets a snapshot, and first the entries that it lets live.
fn place(rig: &mut Rig, rng: &mut SmallRng) {
    let group = 5;
    if let Some((held, (1, Some(payload)))) = rig.model().get(group).entries.first_key_value()
        && rng.random()
    {
        // Some that the log holds already: nothing changes by that.
        let bytes = entries(group, *held, 1, 1, 2000);
        assert!(bytes.bytes().ends_with(payload));
        rig.place(group, *held, &bytes);
        return;
    }
    let index = rig.model().last(group).max(rig.model().get(group).base.0) + 10;
    let body = entries(group, index - 4, 1, 2, 900);
    rig.place(group, index - 4, &body);
    let held: Vec<u64> = rig.model().get(group).live.keys().copied().filter(|_| rng.random()).collect();
    rig.install(group, (index, 1), &held, &[(index - 4, body)], false);
    let last = rig.model().last(group);
    if rng.random() {
        rig.append(group, last, 1, 1, 3, 2000);
    }
}

/// Recovers an image and compares. Returns which point of the history it is.
fn check_image(
    disk: &FakeDisk,
    seed: u64,
    history: &[(BatchSeq, Model)],
    acked: usize,
) -> Result<usize, String> {
    let mut disk = disk.clone();
    let (mut wal, recovery) =
        Wal::open(&mut disk, config(seed), identity()).map_err(|error| error.to_string())?;
    let report = &recovery.report;
    let holes = report.tail_suspect || !report.holes.is_empty();
    let files = !report.missing.is_empty() || !report.strays.is_empty();
    if holes || files || recovery.groups.iter().any(|group| group.suspect || group.state_lost) {
        return Err(format!("a mere crash is called damage: {report:?}"));
    }
    let found = Model::of(&recovery);
    let candidates = (acked - 1..history.len()).filter(|at| history[*at].1.same_shape(&found));
    let mut why = format!("it is no state between {} and {}: {found:?}", acked - 1, history.len() - 1);
    for at in candidates {
        match check_all(&mut wal, &mut disk, &history[at].1) {
            Ok(()) => return Ok(at),
            Err(error) => why = error,
        }
    }
    Err(why)
}

fn check_all(wal: &mut Wal, disk: &mut FakeDisk, model: &Model) -> Result<(), String> {
    for id in model.ids() {
        let read = read_all(wal, disk, id).map_err(|error| format!("group {id}: {error}"))?;
        model.check_entries(id, &read)?;
        check_live(wal, disk, id, model)?;
    }
    Ok(())
}

/// Crashes at every operation of the recovery of this image and of a compaction after it, and recovers again: always to
/// the same point.
fn crash_again(
    image: &FakeDisk,
    seed: u64,
    history: &[(BatchSeq, Model)],
    at: usize,
    tally: &mut Tally,
) -> Result<(), String> {
    let before = image.image();
    for step in 0..4000 {
        let mut disk = FakeDisk::from_image(before.clone(), seed + step);
        disk.crash_after(step);
        let opened = Wal::open(&mut disk, config(seed + 1), identity());
        let ended = match opened {
            Ok((mut wal, _)) => compact_to_the_end(&mut wal, &mut disk),
            Err(_) => false,
        };
        // Of the operations of a recovery all, of a compaction every third.
        if step < 40 || step % 3 == 0 {
            for second in disk.crash_images(LIMITS_AGAIN) {
                tally.again += 1;
                check_image(&second, seed + 2, &history[..=at], at + 1)
                    .map_err(|error| format!("after a crash in step {step} of recovery: {error}"))?;
            }
        }
        if ended {
            return Ok(());
        }
    }
    Err("a compaction does not end".to_owned())
}

/// False if the disk crashed before.
fn compact_to_the_end(wal: &mut Wal, disk: &mut FakeDisk) -> bool {
    let mut compactor = Compactor::new(bounds());
    compactor.run_now();
    let mut done = Vec::new();
    for turn in 0..3000 {
        compactor.step(wal, disk, turn * 10);
        if wal.submit(disk, turn * 10).is_err() || disk.submit().is_err() {
            return false;
        }
        disk.completions(&mut done);
        for one in done.drain(..) {
            if Compactor::owns(one.token) {
                compactor.on_done(disk, one);
            } else if wal.on_done(disk, one).is_err() {
                return false;
            }
        }
        if disk.is_crashed() {
            return false;
        }
        if compactor.is_idle() && wal.backlog_bytes() == 0 && disk.in_flight() == 0 {
            return true;
        }
    }
    true
}

/// Tells a history and crashes it at every step. Returns the first thing that is wrong.
fn tell(story: Story, seed: u64, steps: usize, tally: &mut Tally) -> Result<(), String> {
    let mut telling = Telling::new(story, seed);
    for step in 0..steps {
        telling.step();
        let rig = &telling.yard.rig;
        let acked = rig.acked();
        for (n, image) in rig.disk.crash_images(LIMITS).enumerate() {
            tally.images += 1;
            let context = |error| {
                format!("story {story:?}, seed {seed}, step {step}, image {n} ({}): {error}", image.story())
            };
            let before = FakeDisk::from_image(image.image(), seed);
            let at = check_image(&image, seed + 1, &rig.history, acked).map_err(context)?;
            if (step * 31 + n) % 400 == 7 {
                crash_again(&before, seed, &rig.history, at, tally).map_err(context)?;
            }
        }
    }
    tally.moved += telling.yard.compactor.stats().entries_moved;
    tally.in_reserve += telling.yard.compactor.stats().in_reserve;
    tally.removed += telling.yard.rig.wal.stats().files_removed;
    tally.reused += telling.yard.rig.wal.stats().files_reused;
    Ok(())
}

fn scale() -> u64 {
    std::env::var("CRASH_SCALE").ok().and_then(|scale| scale.parse().ok()).unwrap_or(1)
}

#[test]
fn every_crash_of_a_compaction_leaves_a_log_that_recovery_understands() {
    let mut tally = Tally::default();
    for story in STORIES {
        for seed in 0..2 * scale() {
            if let Err(error) = tell(story, 1000 * seed + 1, 80, &mut tally) {
                panic!("{error}");
            }
        }
    }
    println!("{tally:?}");
    assert!(tally.images > 2000 && tally.again > 1000, "{tally:?}");
    assert!(tally.moved > 50 && tally.removed > 5 && tally.reused > 0, "{tally:?}");
    assert!(tally.in_reserve > 0, "{tally:?}");
}

/// The enumeration can fail: each planted bug is caught.
#[cfg(feature = "breaks")]
#[test]
fn planted_bugs_are_caught() {
    use coracle_wal::breaks::{Break, plant};
    for (name, bug) in Break::ALL {
        if !matches!(bug, Break::RecycleBeforeMoved | Break::PlaceTruncates) {
            continue;
        }
        let mut tally = Tally::default();
        let caught = (0..20).find_map(|seed| {
            let story = if bug == Break::PlaceTruncates { Story::Placing } else { Story::Mixed };
            plant(Some(bug));
            let caught = tell(story, seed, 60, &mut tally).err();
            plant(None);
            caught
        });
        let caught = caught.unwrap_or_else(|| panic!("{name} was not noticed in {} images", tally.images));
        println!("{name}, after {} images: {caught}", tally.images);
    }
}

/// Ranges are what they seem.
#[test]
fn the_rig_names_live_entries_as_ranges() {
    let range = |first, count| IndexRange { first: Index(first), count };
    assert_eq!(common::log::ranges(&[1, 2, 3, 7, 9, 10]), [range(1, 3), range(7, 1), range(9, 2)]);
}
