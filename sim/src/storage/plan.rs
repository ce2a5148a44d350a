//! What a seed draws for its log: sizes so small that files roll, are compacted and reused all the time, what is written,
//! and which faults there will be. Each seed leaves most faults out.
//!
//! Invariant: a plan follows from its seed alone.

use coracle_base::checksum::mix64;
use coracle_io::fake::{CrashPolicy, Latency};
use coracle_segments::Bounds;
use coracle_wal::Config;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::plan::{Trim, pick};

/// The log's directory.
pub(super) const DIR: &str = "wal";

/// Something that goes wrong once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Power is lost.
    PowerLoss,
    /// The process is killed.
    Kill,
    /// Power goes between two operations of the disk.
    Fuse,
    /// The next write fails.
    WriteError,
    /// The disk is full, until the next fault.
    DiskFull,
    /// A page rots, or cannot be read any more.
    Damage,
    /// A write is confirmed and never lands.
    LostWrite,
}

impl Fault {
    /// Names of all of them.
    pub(super) const NAMES: [&str; 7] = [
        "storage_power_loss",
        "storage_kill",
        "storage_power_loss_at_disk_step",
        "storage_write_error",
        "storage_disk_full",
        "storage_damaged_page",
        "storage_lost_write",
    ];

    /// As reports name it.
    pub(super) fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// How often each kind of record comes.
#[derive(Debug, Clone)]
pub(super) struct Weights {
    pub(super) append: u32,
    pub(super) conflict: u32,
    pub(super) state: u32,
    pub(super) snapshot: u32,
    pub(super) place: u32,
    pub(super) delete: u32,
}

/// Everything that a seed decides in advance.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) config: Config,
    pub(super) bounds: Bounds,
    pub(super) groups: u64,
    /// Bytes of an entry, at most.
    pub(super) entry_bytes: u64,
    /// Records in all.
    pub(super) records: u64,
    pub(super) weights: Weights,
    /// Of 100 entries that a snapshot covers, so many live on.
    pub(super) live_percent: u32,
    /// Time between two records.
    pub(super) gap_us: (u64, u64),
    /// Of 100 records, so many are followed by a read.
    pub(super) reads_percent: u32,
    pub(super) disk: Latency,
    pub(super) crash: CrashPolicy,
    pub(super) faults: Vec<Fault>,
    /// Those that are left out: their turn passes.
    pub(super) without: Vec<Fault>,
    /// Records between two faults.
    pub(super) fault_gap: u64,
    /// One start in so many meets a power loss before it is done; 0 for none.
    pub(super) fuse_at_open_one_in: u32,
}

impl Plan {
    /// The plan of `seed`, without what `trim` leaves out.
    pub(super) fn draw(seed: u64, trim: &Trim) -> Self {
        let mut plan = Self::whole(seed);
        plan.records = plan.records.min(trim.records.unwrap_or(u64::MAX)).max(1);
        plan.without = plan.faults.iter().copied().filter(|fault| trim.is_without(fault.name())).collect();
        plan
    }

    fn whole(seed: u64) -> Self {
        let rng = &mut SmallRng::seed_from_u64(mix64(seed, 0x5706));
        let file_bytes = pick(rng, &[64 << 10, 64 << 10, 128 << 10]);
        let slow = (5_000, 60_000);
        Self {
            config: Config {
                file_bytes,
                spares: pick(rng, &[1, 2]),
                batch_bytes: pick(rng, &[4 << 10, 4 << 10, 16 << 10, 64 << 10]),
                checkpoint_every_bytes: pick(rng, &[32 << 10, 96 << 10, 512 << 10]),
                ..Config::new(DIR, 0)
            },
            bounds: Bounds {
                dead_files_max: pick(rng, &[1, 4]),
                read_bytes: pick(rng, &[8 << 10, 64 << 10]),
                slack_bytes: pick(rng, &[0, file_bytes]),
                retry_us: 100_000,
                ..Bounds::new(file_bytes)
            },
            groups: pick(rng, &[1, 2, 3, 5, 100, 100]),
            entry_bytes: pick(rng, &[600, 3_000, 9_000]),
            records: pick(rng, &[300, 500]),
            weights: Weights {
                append: 8,
                conflict: pick(rng, &[0, 1, 3]),
                state: 1,
                snapshot: pick(rng, &[1, 3]),
                place: pick(rng, &[0, 0, 1]),
                delete: pick(rng, &[0, 0, 1]),
            },
            live_percent: pick(rng, &[0, 10, 40]),
            gap_us: pick(rng, &[(0, 200), (0, 3_000), (1_000, 100_000)]),
            reads_percent: pick(rng, &[0, 20, 60]),
            disk: Latency {
                read_us: pick(rng, &[(60, 120), slow]),
                write_us: pick(rng, &[(75, 150), (75, 150), slow]),
                ..Latency::default()
            },
            crash: pick(
                rng,
                &[
                    CrashPolicy::default(),
                    CrashPolicy::LOSE_ALL,
                    CrashPolicy { kept_percent: 60, lost_percent: 0, garbage: 8 },
                ],
            ),
            faults: draw_faults(rng),
            without: Vec::new(),
            fault_gap: pick(rng, &[20, 60, 150]),
            fuse_at_open_one_in: pick(rng, &[0, 2, 6]),
        }
    }
}

/// Crashes in every run; of what a disk must not do, one kind in some.
fn draw_faults(rng: &mut SmallRng) -> Vec<Fault> {
    let mut faults = pick(
        rng,
        &[
            vec![Fault::PowerLoss],
            vec![Fault::PowerLoss, Fault::Kill],
            vec![Fault::PowerLoss, Fault::Fuse],
            vec![Fault::PowerLoss, Fault::Fuse, Fault::WriteError],
            vec![Fault::PowerLoss, Fault::Kill, Fault::DiskFull],
        ],
    );
    faults.extend(pick(rng, &[None, None, Some(Fault::Damage), Some(Fault::Damage), Some(Fault::LostWrite)]));
    faults
}
