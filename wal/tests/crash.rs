//! Crash enumeration: histories of a log on the fake disk, a crash at every operation, every image that it may leave
//! (sampled where there are too many), recovery, comparison with the model; then a crash at every operation of that very
//! recovery, and recovery again.
//!
//! What must hold: the log is what it was after some record no older than the last acknowledged one, whole and in order,
//! entries and all; nothing is called damaged; a second recovery comes to the same.
//!
//! `CRASH_SCALE=20 cargo test -p coracle-wal --release --test crash -- --nocapture` is the long run.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::model::Model;
use common::{Rig, check_live, config, entries, read_all};
use coracle_base::EntryBatch;
use coracle_io::Disk;
use coracle_io::fake::{Completing, CrashLimits, FakeDisk, OpKind};
use coracle_wal::{BatchSeq, Config, Recovery, Wal};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// What a history is made of: how often each kind of record comes, and how large it is.
#[derive(Debug, Clone, Copy)]
struct Story {
    name: &'static str,
    append: u32,
    conflict: u32,
    state: u32,
    snapshot: u32,
    /// A leader's snapshot: entries that it lets live, placed; then its mark.
    install: u32,
    /// The end of a group; its successor begins anew.
    delete: u32,
    bytes: usize,
    /// Records before the first crash: so many that files roll, checkpoints are written and files are reused.
    warm_up: usize,
    steps: usize,
    seeds: u64,
    /// Of 100 completions, how many wait for others to gather.
    depth: u32,
    /// Entries of a file; 0: as many as fit.
    file_entries: u64,
}

const PLAIN: Story = Story {
    name: "append",
    append: 8,
    conflict: 0,
    state: 0,
    snapshot: 0,
    install: 0,
    delete: 0,
    bytes: 600,
    warm_up: 0,
    steps: 40,
    seeds: 4,
    depth: 50,
    file_entries: 0,
};

const STORIES: [Story; 8] = [
    PLAIN,
    Story { name: "deep", bytes: 3000, depth: 85, seeds: 5, ..PLAIN },
    Story { name: "state", append: 3, state: 5, bytes: 200, ..PLAIN },
    Story { name: "conflict", append: 4, conflict: 4, state: 1, ..PLAIN },
    Story { name: "roll", append: 8, state: 1, bytes: 9000, warm_up: 6, ..PLAIN },
    Story { name: "roll by entries", append: 8, state: 1, file_entries: 6, warm_up: 6, ..PLAIN },
    Story { name: "snapshot", append: 5, conflict: 1, snapshot: 3, bytes: 4000, warm_up: 20, ..PLAIN },
    Story {
        name: "reuse",
        append: 6,
        conflict: 1,
        state: 1,
        snapshot: 3,
        bytes: 9000,
        warm_up: 120,
        seeds: 8,
        ..PLAIN
    },
];

/// A snapshot that a leader sends, with what lives on; groups that end, and others in their places.
const COMING_AND_GOING: [Story; 2] = [
    Story {
        name: "install",
        append: 4,
        conflict: 1,
        install: 4,
        bytes: 2000,
        warm_up: 20,
        steps: 30,
        seeds: 2,
        ..PLAIN
    },
    Story {
        name: "delete and re-create",
        append: 6,
        state: 2,
        snapshot: 1,
        delete: 2,
        bytes: 5000,
        warm_up: 40,
        steps: 30,
        seeds: 2,
        ..PLAIN
    },
];

const LIMITS: CrashLimits = CrashLimits { units_all: 4, sectors_all: 8, tears: 4, sample: 6 };
const LIMITS_AGAIN: CrashLimits = CrashLimits { units_all: 2, sectors_all: 4, tears: 2, sample: 2 };

/// Images tried, by what they were images of.
#[derive(Debug, Default)]
struct Tally {
    images: BTreeMap<String, u64>,
    /// Recoveries that found a torn tail, or relied on a checkpoint: without them the enumeration shows little.
    torn: u64,
    from_checkpoint: u64,
    reused: u64,
    /// Indexes of files that were written.
    indexes: u64,
    /// Snapshots of a leader, and ends of groups.
    installed: u64,
    deleted: u64,
}

impl Tally {
    fn add(&mut self, name: &str) {
        *self.images.entry(name.to_owned()).or_default() += 1;
    }

    fn join(&mut self, other: Self) {
        for (name, images) in other.images {
            *self.images.entry(name).or_default() += images;
        }
        self.torn += other.torn;
        self.from_checkpoint += other.from_checkpoint;
        self.reused += other.reused;
        self.indexes += other.indexes;
        self.installed += other.installed;
        self.deleted += other.deleted;
    }

    fn total(&self) -> u64 {
        self.images.values().sum()
    }
}

/// A leader's snapshot on its way: group, index and term, and what was placed for it.
type Incoming = (u64, (u64, u64), Vec<(u64, EntryBatch)>);

/// One history being told.
struct Telling {
    rig: Rig,
    rng: SmallRng,
    story: Story,
    term: u64,
    /// The groups there are: the successor of one that ended has another number.
    groups: [u64; 3],
    incoming: Option<Incoming>,
    installed: u64,
    deleted: u64,
}

impl Telling {
    fn new(story: Story, seed: u64) -> Self {
        let config = Config { file_entries_max: story.file_entries, ..config(seed) };
        let (rig, _) = Rig::open(FakeDisk::new(seed), config).unwrap();
        let rng = SmallRng::seed_from_u64(seed);
        let mut telling =
            Self { rig, rng, story, term: 1, groups: [1, 2, 3], incoming: None, installed: 0, deleted: 0 };
        for _ in 0..story.warm_up {
            telling.record();
            telling.rig.settle();
        }
        telling.rig.disk.set_completing(Completing::Manual);
        telling
    }

    /// Stages one record of the kinds that the story has.
    fn record(&mut self) {
        let Story { append, conflict, state, snapshot, install, delete, bytes, .. } = self.story;
        let drawn = self.rng.random_range(0..3);
        // A group that a snapshot comes to gets nothing else.
        let is_taken = self.incoming.as_ref().is_some_and(|(group, ..)| *group == self.groups[drawn]);
        let nth = if is_taken { (drawn + 1) % 3 } else { drawn };
        let group = self.groups[nth];
        let model = self.rig.model();
        let (last, base) = (model.last(group), model.get(group).base.0);
        let mut dice = self.rng.random_range(0..append + conflict + state + snapshot + install + delete);
        let mut is = |weight: u32| {
            let hit = dice < weight;
            dice = dice.wrapping_sub(weight);
            hit
        };
        if is(append) {
            let count = self.rng.random_range(1..3);
            let last_term = model.term_at(group, last).unwrap().max(1);
            self.rig.append(group, last, last_term, self.term.max(last_term), count, bytes);
        } else if is(conflict) {
            // A new leader overwrites: its entries may be of a lower term than those they replace, its own is higher.
            self.term += 1;
            let prev = last - self.rng.random_range(0..=(last - base).min(3));
            let least = model.term_at(group, prev).unwrap().max(1);
            let term = self.rng.random_range(least..=self.term.max(least));
            self.rig.append(group, prev, term, self.term.max(term), 1, bytes);
        } else if is(state) {
            let blob: Vec<u8> = (0..self.rng.random_range(1..200)).map(|_| self.rng.random()).collect();
            self.rig.put_state(group, &blob);
        } else if is(install) {
            self.install(group);
        } else if is(delete) {
            self.rig.delete(group);
            self.groups[nth] += 10;
            self.deleted += 1;
        } else {
            // Mostly something that is held; sometimes one that a leader sent because we were far behind.
            let ahead = if self.rng.random_ratio(1, 8) { 5 } else { 0 };
            let index = self.rng.random_range(base..=last).max(1) + ahead;
            let term = model.term_at(group, index).unwrap_or(self.term).max(1);
            let bytes = vec![index as u8; self.rng.random_range(1..3000)];
            self.rig.put_snapshot(group, index, term, &bytes);
        }
    }

    /// A piece of a leader's snapshot: entries for their own places, now and then; at last its mark. The log may hold what
    /// it covers, or less, or others; records of other groups come in between.
    fn install(&mut self, group: u64) {
        let (group, at, mut placed) = self.incoming.take().unwrap_or_else(|| self.announce(group));
        let held = self.rig.model().get(group);
        let next = placed.last().map_or(held.base.0 + 1, |(first, body)| first + u64::from(body.count()));
        let first = next + self.rng.random_range(0..3);
        if first <= at.0 && self.rng.random_ratio(2, 3) {
            // What the log holds already is what the leader has.
            let term = held.entries.get(&first).map_or(at.1, |(term, _)| *term);
            let body = entries(group, first, term, 1, self.story.bytes);
            self.rig.place(group, first, &body);
            placed.push((first, body));
            self.incoming = Some((group, at, placed));
            return;
        }
        let live: Vec<u64> = held.live.keys().copied().filter(|_| self.rng.random()).collect();
        self.rig.install(group, at, &live, &placed, self.rng.random());
        self.installed += 1;
    }

    /// A snapshot that is on its way: of something that the log holds, with more behind it, or beyond what it holds.
    fn announce(&mut self, group: u64) -> Incoming {
        let (last, held) = (self.rig.model().last(group), self.rig.model().get(group));
        let inside = held.entries.range(..last).next_back().filter(|_| self.rng.random_ratio(1, 3));
        let at = inside
            .map_or((last + self.rng.random_range(1..8), self.term), |(index, (term, _))| (*index, *term));
        (group, at, Vec::new())
    }

    /// One step: some records and a submission, or a completion. True if the disk saw something of it.
    fn step(&mut self) -> bool {
        let flights = self.rig.disk.flights().len();
        let gather = self.rng.random_range(0..100) < self.story.depth && flights < 6;
        if flights == 0 || gather {
            for _ in 0..self.rng.random_range(1..3) {
                self.record();
            }
            if self.rng.random_ratio(1, 10) {
                self.rig.now_us += 100_000;
            }
            self.rig.submit().unwrap();
        } else {
            let at = self.rng.random_range(0..flights);
            self.rig.disk.complete(at);
            self.rig.complete().unwrap();
            // Background steps begin new operations.
            self.rig.submit().unwrap();
        }
        true
    }
}

/// Recovers an image and compares. Returns which point of the history it is.
fn check_image(
    disk: &FakeDisk,
    seed: u64,
    history: &[(BatchSeq, Model)],
    acked: usize,
    tally: &mut Tally,
) -> Result<usize, String> {
    let mut disk = disk.clone();
    let (mut wal, recovery) = open(&mut disk, seed)?;
    tally.torn += u64::from(recovery.report.torn);
    tally.from_checkpoint += u64::from(recovery.report.checkpoint.is_some());
    let found = Model::of(&recovery);
    let candidates = (acked - 1..history.len()).filter(|at| history[*at].1.same_shape(&found));
    let mut why = format!("it is no state between {} and {}: {found:?}", acked - 1, history.len() - 1);
    for at in candidates {
        match check_entries(&mut wal, &mut disk, &history[at].1) {
            Ok(()) => return Ok(at),
            Err(error) => why = error,
        }
    }
    Err(why)
}

fn open(disk: &mut FakeDisk, seed: u64) -> Result<(Wal, Recovery), String> {
    let (wal, recovery) =
        Wal::open(disk, config(seed), common::identity()).map_err(|error| error.to_string())?;
    let report = &recovery.report;
    let damaged = report.tail_suspect
        || !report.holes.is_empty()
        || !report.missing.is_empty()
        || !report.strays.is_empty()
        || recovery.groups.iter().any(|group| group.suspect || group.state_lost);
    if damaged { Err(format!("a mere crash is called damage: {report:?}")) } else { Ok((wal, recovery)) }
}

fn check_entries(wal: &mut Wal, disk: &mut FakeDisk, model: &Model) -> Result<(), String> {
    for id in model.ids() {
        let read = read_all(wal, disk, id).map_err(|error| format!("group {id}: {error}"))?;
        model.check_entries(id, &read)?;
        check_live(wal, disk, id, model)?;
    }
    Ok(())
}

/// Crashes at every operation of the recovery of this image, and recovers again: always to the same point.
fn crash_again(
    image: &FakeDisk,
    seed: u64,
    history: &[(BatchSeq, Model)],
    at: usize,
    tally: &mut Tally,
) -> Result<(), String> {
    let before = image.image();
    for step in 0.. {
        let mut disk = FakeDisk::from_image(before.clone(), seed + step);
        disk.crash_after(step);
        let opened = Wal::open(&mut disk, config(seed + 1), common::identity());
        for second in disk.crash_images(LIMITS_AGAIN) {
            tally.add("again");
            let only = &history[..=at];
            check_image(&second, seed + 2, only, at + 1, tally)
                .map_err(|error| format!("after a crash in step {step} of recovery: {error}"))?;
        }
        if opened.is_ok() {
            return Ok(());
        }
    }
    Ok(())
}

/// Tells a history and crashes it at every step. Returns the first thing that is wrong.
fn tell(story: Story, seed: u64, tally: &mut Tally) -> Result<(), String> {
    let mut telling = Telling::new(story, seed);
    for step in 0..story.steps {
        if !telling.step() {
            continue;
        }
        let acked = telling.rig.acked();
        let limits = LIMITS;
        for (n, image) in telling.rig.disk.crash_images(limits).enumerate() {
            tally.add(story.name);
            let before = FakeDisk::from_image(image.image(), seed);
            let context = |error| {
                format!(
                    "story {}, seed {seed}, step {step}, image {n} ({}): {error}",
                    story.name,
                    image.story()
                )
            };
            let at = check_image(&image, seed + 1, &telling.rig.history, acked, tally).map_err(context)?;
            if (step * 31 + n) % 160 == 7 {
                crash_again(&before, seed, &telling.rig.history, at, tally).map_err(context)?;
            }
        }
    }
    tally.reused += telling.rig.wal.stats().files_reused;
    tally.indexes += telling.rig.wal.stats().indexes;
    tally.installed += telling.installed;
    tally.deleted += telling.deleted;
    Ok(())
}

fn scale() -> u64 {
    std::env::var("CRASH_SCALE").ok().and_then(|scale| scale.parse().ok()).unwrap_or(1)
}

/// Tells them all, by two who take turns: one would be what everybody waits for.
fn tell_all(stories: &[Story]) -> Tally {
    let seeds = |story: &Story| 0..story.seeds * scale();
    let all: Vec<_> =
        stories.iter().flat_map(|story| seeds(story).map(|seed| (*story, 1000 * seed + 1))).collect();
    let next = AtomicUsize::new(0);
    let teller = || {
        let mut tally = Tally::default();
        while let Some((story, seed)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            tell(*story, *seed, &mut tally).unwrap_or_else(|error| panic!("{error}"));
        }
        tally
    };
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let tellers = [scope.spawn(teller), scope.spawn(teller)];
        for one in tellers {
            tally.join(one.join().unwrap());
        }
    });
    println!("images: {} in all, {:?}", tally.total(), tally.images);
    println!(
        "torn {}, from a checkpoint {}, files reused {}, indexes {}, installed {}, deleted {}",
        tally.torn, tally.from_checkpoint, tally.reused, tally.indexes, tally.installed, tally.deleted
    );
    tally
}

#[test]
fn every_crash_leaves_a_log_that_recovery_understands() {
    let tally = tell_all(&STORIES);
    assert!(tally.total() >= 20_000, "{tally:?}");
    assert!(tally.torn > 1000 && tally.from_checkpoint > 1000 && tally.reused > 20, "{tally:?}");
    assert!(tally.indexes > 50, "{tally:?}");
}

/// What is placed is not seen before the snapshot that it is for; what that snapshot drops, and what is deleted, never comes
/// back.
#[test]
fn every_crash_of_an_install_or_a_deletion_leaves_a_log_that_recovery_understands() {
    let tally = tell_all(&COMING_AND_GOING);
    assert!(tally.total() > 3000 && tally.images["again"] > 300, "{tally:?}");
    assert!(tally.from_checkpoint > 100 && tally.installed > 10 && tally.deleted > 10, "{tally:?}");
}

/// The log rolls over and needs a file, in the same turn in which a snapshot releases all of it: nothing of the old files
/// may be touched before that snapshot is durable.
#[test]
fn a_file_is_not_reused_before_what_released_it_is_durable() {
    let mut tally = Tally::default();
    for checkpoints in 3..9 {
        let mut rig = Rig::fresh(checkpoints);
        while rig.wal.stats().checkpoints < checkpoints {
            let last = rig.model().last(1);
            rig.append(1, last, 1, 1, 1, 6000);
            rig.settle();
        }
        rig.disk.set_completing(Completing::Manual);
        for _ in 0..24 {
            let last = rig.model().last(1);
            rig.append(1, last, 1, 1, 1, 6000);
        }
        let last = rig.model().last(1);
        rig.put_snapshot(1, last, 1, b"everything");
        rig.submit().unwrap();
        // All completes but the log's own writes.
        loop {
            let flights = rig.disk.flights();
            let other =
                flights.iter().position(|flight| flight.kind != OpKind::Write || is_spare(&flight.path));
            let Some(other) = other else { break };
            rig.disk.complete(other);
            rig.complete().unwrap();
            rig.disk.submit().unwrap();
            for image in rig.disk.crash_images(LIMITS_AGAIN) {
                tally.add("release");
                check_image(&image, 4, &rig.history, rig.acked(), &mut tally)
                    .unwrap_or_else(|error| panic!("{checkpoints} checkpoints ({}): {error}", image.story()));
            }
        }
    }
    assert!(tally.total() > 500, "{tally:?}");
}

fn is_spare(path: &std::path::Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("spare-"))
}

/// The enumeration can fail: each planted bug is caught.
#[cfg(feature = "breaks")]
#[test]
fn planted_bugs_are_caught() {
    use coracle_wal::breaks::{Break, plant};
    // The others need compaction (`segments/tests`), or damage.
    let ours = [
        Break::TornTailAccepted,
        Break::AckBeforeDurable,
        Break::HigherTermWinsReplay,
        Break::PlaceTruncates,
    ];
    for (name, bug) in Break::ALL.into_iter().filter(|(_, bug)| ours.contains(bug)) {
        plant(Some(bug));
        let mut tally = Tally::default();
        let stories = if bug == Break::PlaceTruncates { &COMING_AND_GOING[..] } else { &STORIES };
        let mut told = (0..8).flat_map(|seed| stories.iter().map(move |story| (*story, 1000 * seed + 1)));
        let caught = told.find_map(|(story, seed)| tell(story, seed, &mut tally).err());
        plant(None);
        let caught = caught.unwrap_or_else(|| panic!("{name} was not noticed in {} images", tally.total()));
        println!("{name}, after {} images: {caught}", tally.total());
    }
}

/// The disk is full when the log is opened, so that the new file is made of one that the last boot kept ready; and the
/// machine crashes at every operation of that.
#[test]
fn a_recovery_on_a_full_disk_may_crash_anywhere() {
    let mut rig = Rig::fresh(5);
    for _ in 0..12 {
        let last = rig.model().last(1);
        rig.append(1, last, 1, 1, 2, 2000);
        rig.settle();
    }
    let image = rig.disk.image();
    let used = image.paths().iter().map(|path| image.read(path).unwrap().len() as u64).sum();
    let mut tally = Tally::default();
    for step in 0.. {
        let mut disk = FakeDisk::from_image(image.clone(), step);
        disk.set_quota(Some(used));
        disk.crash_after(step);
        let opened = Wal::open(&mut disk, config(6), common::identity());
        for second in disk.crash_images(LIMITS_AGAIN) {
            tally.add("full");
            second.set_quota(Some(used));
            check_image(&second, 7, &rig.history, rig.acked(), &mut tally)
                .unwrap_or_else(|error| panic!("step {step} ({}): {error}", second.story()));
        }
        if opened.is_ok() {
            break;
        }
    }
    assert!(tally.total() > 50, "{tally:?}");
}
