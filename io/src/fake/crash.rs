//! What may be left after a power failure: one image by chance, or every legal one.
//!
//! A *unit* is one change that was not durable: a write (pending, or in flight) or a change of names. Of a write any
//! subset of its 512-byte sectors may survive, or (by chance only) be garbage; a name change survives whole or not at
//! all, and only if every earlier one that it builds on does. What is durable always survives.
//!
//! `CrashLimits` bound the enumeration. Up to `units_all` units every subset of whole units is made, up to `sectors_all`
//! sectors every subset of sectors; every write is torn after each sector and at each single sector, once with all other
//! units kept and once with none; the rest is a seeded sample.

use std::collections::BTreeSet;
use std::rc::Rc;

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use super::disk::FakeDisk;
use super::faults::one_in;
use super::image::{DiskImage, SECTOR_BYTES, SECTORS_PER_PAGE, page_bytes};
use super::pending::Effect;

/// What a power failure does to units that were not durable. Each rate is one in so many, 0 for never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashPolicy {
    /// Of 100 units, so many are kept whole.
    pub kept_percent: u32,
    /// Of 100 units, so many are lost whole. The rest is torn by sector.
    pub lost_percent: u32,
    /// One torn sector in so many becomes garbage instead of old or new.
    pub garbage: u32,
}

impl CrashPolicy {
    /// Nothing that was not durable survives.
    pub const LOSE_ALL: Self = Self { kept_percent: 0, lost_percent: 100, garbage: 0 };
    /// Everything survives, as when only the process dies.
    pub const KEEP_ALL: Self = Self { kept_percent: 100, lost_percent: 0, garbage: 0 };
}

impl Default for CrashPolicy {
    fn default() -> Self {
        Self { kept_percent: 30, lost_percent: 30, garbage: 16 }
    }
}

/// How many images [`FakeDisk::crash_images`] makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashLimits {
    /// With at most so many units, every subset of them.
    pub units_all: usize,
    /// With at most so many unsynced sectors, every subset of them.
    pub sectors_all: usize,
    /// Tears of one write at most: beyond it they are spread evenly over its sectors.
    pub tears: usize,
    /// Random images on top, half of them with garbage in torn sectors.
    pub sample: usize,
}

impl Default for CrashLimits {
    fn default() -> Self {
        Self { units_all: 10, sectors_all: 10, tears: 64, sample: 64 }
    }
}

/// How much of one unit survives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Keep {
    Nothing,
    All,
    /// Only the file's new size: its sectors keep what they held.
    Size,
    /// The first so many sectors, and a size that ends there.
    Prefix(usize),
    /// All but one sector.
    Hole(usize),
    /// The sectors whose bit is set.
    Mask(u64),
    /// Each sector by chance.
    Random {
        seed: u64,
        garbage: u32,
    },
}

type Plan = Vec<Keep>;

/// The images that a crash may leave, one by one. Made by [`FakeDisk::crash_images`].
#[derive(Debug)]
pub struct CrashImages {
    durable: DiskImage,
    units: Rc<[Effect]>,
    plans: std::vec::IntoIter<Plan>,
    seed: u64,
}

impl CrashImages {
    pub(super) fn new(durable: DiskImage, units: Vec<Effect>, limits: CrashLimits, seed: u64) -> Self {
        let plans = Planner { units: &units, limits, rng: SmallRng::seed_from_u64(seed) }.plans();
        Self { durable, units: units.into(), plans: plans.into_iter(), seed }
    }
}

impl Iterator for CrashImages {
    type Item = FakeDisk;

    fn next(&mut self) -> Option<FakeDisk> {
        let plan = self.plans.next()?;
        let image = survivors(&self.durable, &self.units, &plan);
        self.seed = self.seed.wrapping_add(1);
        Some(FakeDisk::surviving(image, self.seed, Origin { units: self.units.clone(), plan }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.plans.size_hint()
    }
}

impl ExactSizeIterator for CrashImages {}

/// How an image came about, for the message of a test that fails on it.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    units: Rc<[Effect]>,
    plan: Plan,
}

impl Origin {
    pub(super) fn story(&self) -> String {
        let tell = |(unit, keep): (&Effect, &Keep)| match unit {
            Effect::Name(change) => format!("{change:?}: {keep:?}"),
            Effect::Data { inode, pages, end } => {
                let first = pages.first().map_or(0, |(n, _)| *n);
                format!("write of file {} pages {first}..{} to {end}: {keep:?}", inode.0, first + pages.len())
            }
        };
        self.units.iter().zip(&self.plan).map(tell).collect::<Vec<_>>().join("; ")
    }
}

/// One crash by chance. `count` hears what became of each unit that did not survive whole.
pub(super) fn crash_by_chance(
    durable: &DiskImage,
    units: &[Effect],
    policy: CrashPolicy,
    rng: &mut SmallRng,
    mut count: impl FnMut(&'static str),
) -> DiskImage {
    let mut plan: Plan = Vec::with_capacity(units.len());
    for unit in units {
        let dice = rng.random_range(0..100);
        plan.push(match unit {
            _ if dice < policy.kept_percent => Keep::All,
            _ if dice < policy.kept_percent + policy.lost_percent => Keep::Nothing,
            Effect::Name(_) if rng.random() => Keep::All,
            Effect::Name(_) => Keep::Nothing,
            Effect::Data { .. } => Keep::Random { seed: rng.next_u64(), garbage: policy.garbage },
        });
    }
    make_legal(units, &mut plan);
    for (unit, keep) in units.iter().zip(&plan) {
        match (unit, keep) {
            (_, Keep::All) => {}
            (Effect::Name(_), _) => count("lost_name_change"),
            (Effect::Data { .. }, Keep::Nothing) => count("lost_unsynced_write"),
            (Effect::Data { .. }, _) => count("torn_write"),
        }
    }
    survivors(durable, units, &plan)
}

/// A name change that builds on a lost one is lost, too.
fn make_legal(units: &[Effect], plan: &mut Plan) {
    for later in 0..units.len() {
        let Effect::Name(change) = &units[later] else { continue };
        let builds_on_lost = (0..later).any(|earlier| {
            plan[earlier] == Keep::Nothing
                && matches!(&units[earlier], Effect::Name(lost) if change.depends_on(lost))
        });
        if builds_on_lost {
            plan[later] = Keep::Nothing;
        }
    }
}

fn survivors(durable: &DiskImage, units: &[Effect], plan: &Plan) -> DiskImage {
    let mut image = durable.clone();
    for (unit, keep) in units.iter().zip(plan) {
        match keep {
            Keep::Nothing => {}
            Keep::All => unit.apply_whole(&mut image),
            _ => apply_torn(unit, keep, &mut image),
        }
    }
    image
}

/// What becomes of one sector of a torn write.
enum Sector {
    Old,
    New,
    Garbage,
}

fn apply_torn(unit: &Effect, keep: &Keep, image: &mut DiskImage) {
    let Effect::Data { inode, pages, end } = unit else { return };
    let mut rng = SmallRng::seed_from_u64(if let Keep::Random { seed, .. } = keep { *seed } else { 0 });
    let content = image.content_mut(*inode);
    let mut size = *end;
    if let Keep::Prefix(sectors) = keep {
        let first = pages.first().map_or(0, |(n, _)| n * SECTORS_PER_PAGE);
        size = size.min(((first + sectors) * SECTOR_BYTES) as u64);
    }
    content.grow_to(size);
    let sectors = pages.iter().flat_map(|(n, page)| (0..SECTORS_PER_PAGE).map(move |s| (*n, page, s)));
    for (i, (n, page, s)) in sectors.enumerate() {
        let at = n * SECTORS_PER_PAGE + s;
        match fate(keep, i, &mut rng) {
            Sector::Old => {}
            Sector::New => content.set_sector(at, &page_bytes(page)[s * SECTOR_BYTES..][..SECTOR_BYTES]),
            Sector::Garbage => {
                let mut garbage = [0; SECTOR_BYTES];
                rng.fill_bytes(&mut garbage);
                content.set_sector(at, &garbage);
            }
        }
    }
    content.settle();
}

fn fate(keep: &Keep, sector: usize, rng: &mut SmallRng) -> Sector {
    let new = match keep {
        Keep::Nothing | Keep::Size => false,
        Keep::All => true,
        Keep::Prefix(sectors) => sector < *sectors,
        Keep::Hole(hole) => sector != *hole,
        Keep::Mask(mask) => mask >> sector & 1 == 1,
        Keep::Random { garbage, .. } if one_in(rng, *garbage) => return Sector::Garbage,
        Keep::Random { .. } => rng.random(),
    };
    if new { Sector::New } else { Sector::Old }
}

/// Decides which images to make, each once.
struct Planner<'a> {
    units: &'a [Effect],
    limits: CrashLimits,
    rng: SmallRng,
}

impl Planner<'_> {
    fn plans(mut self) -> Vec<Plan> {
        let mut plans = BTreeSet::new();
        self.whole_units(&mut plans);
        self.torn_writes(&mut plans);
        self.all_sectors(&mut plans);
        self.sample(&mut plans);
        plans.into_iter().collect()
    }

    fn sectors(&self, unit: usize) -> usize {
        match &self.units[unit] {
            Effect::Data { pages, .. } => pages.len() * SECTORS_PER_PAGE,
            Effect::Name(_) => 0,
        }
    }

    fn add(&self, mut plan: Plan, plans: &mut BTreeSet<Plan>) {
        make_legal(self.units, &mut plan);
        plans.insert(plan);
    }

    fn by_bits(&self, bits: u64) -> Plan {
        let keep = |unit| if bits >> (unit % 64) & 1 == 1 { Keep::All } else { Keep::Nothing };
        (0..self.units.len()).map(keep).collect()
    }

    /// All, none, and every subset of whole units if there are few.
    fn whole_units(&self, plans: &mut BTreeSet<Plan>) {
        self.add(self.by_bits(u64::MAX), plans);
        self.add(self.by_bits(0), plans);
        if self.units.len() <= self.limits.units_all.min(20) {
            for bits in 0..1u64 << self.units.len() {
                self.add(self.by_bits(bits), plans);
            }
        }
    }

    /// Each write torn in every simple way, all others kept, then all others lost (names stay: a file without a name
    /// shows nothing of its tear).
    fn torn_writes(&self, plans: &mut BTreeSet<Plan>) {
        for unit in 0..self.units.len() {
            let sectors = self.sectors(unit);
            if sectors == 0 {
                continue;
            }
            let step = sectors.div_ceil(self.limits.tears.max(1));
            let tears = (0..sectors).step_by(step).flat_map(|s| [Keep::Prefix(s.max(1)), Keep::Hole(s)]);
            for tear in tears.chain([Keep::Size]) {
                for others in [u64::MAX, 0] {
                    let mut plan = self.by_bits(others);
                    for (other, keep) in plan.iter_mut().enumerate() {
                        if self.sectors(other) == 0 {
                            *keep = Keep::All;
                        }
                    }
                    plan[unit] = tear.clone();
                    self.add(plan, plans);
                }
            }
        }
    }

    /// Every subset of all unsynced sectors, if there are few.
    fn all_sectors(&self, plans: &mut BTreeSet<Plan>) {
        let total: usize = (0..self.units.len()).map(|unit| self.sectors(unit)).sum();
        if total == 0 || total > self.limits.sectors_all.min(20) {
            return;
        }
        for bits in 0..1u64 << total {
            let mut plan = self.by_bits(u64::MAX);
            let mut left = bits;
            for (unit, keep) in plan.iter_mut().enumerate().filter(|(unit, _)| self.sectors(*unit) > 0) {
                *keep = Keep::Mask(left & ((1 << self.sectors(unit)) - 1));
                left >>= self.sectors(unit);
            }
            self.add(plan, plans);
        }
    }

    fn sample(&mut self, plans: &mut BTreeSet<Plan>) {
        if self.units.is_empty() {
            return;
        }
        for i in 0..self.limits.sample {
            let garbage = if i % 2 == 0 { 0 } else { 8 };
            let mut plan = Vec::with_capacity(self.units.len());
            for unit in 0..self.units.len() {
                let torn = self.sectors(unit) > 0 && self.rng.random_ratio(1, 2);
                plan.push(match self.rng.random() {
                    _ if torn => Keep::Random { seed: self.rng.next_u64(), garbage },
                    true => Keep::All,
                    false => Keep::Nothing,
                });
            }
            self.add(plan, plans);
        }
    }
}
