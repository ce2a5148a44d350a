//! One shard of the bench: a thread with its ring, its disk and its log, through all phases.

use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_base::{GroupId, NodeId, ShardId};
use coracle_io::ring::{DiskOptions, RealClock, Ring, RingDisk, RingOptions, RingPark};
use coracle_io::{Clock, Disk, DiskOk, DiskOp, FileMode, disk};
use coracle_wal::{Config, Identity, Wal};

use super::Error;
use super::bare::{self, BEST_OF_BYTES, BEST_OF_DEPTH, Bare, Target};
use super::gate::Gate;
use super::load::{Load, Outcome};
use super::options::Options;
use super::pace::{Pace, Until};
use super::recorder::{Recorder, Shape};
use super::recovery;

/// Where the log lies, in the shard's own folder.
const LOG: &str = "wal";
/// Where the log lies that only warms up.
const WARM_UP: &str = "warm-up";
const WARM_UP_TIME: Duration = Duration::from_millis(400);
/// Zeros written ahead, over what the warm-up's speed asks for: the log gets faster as it goes.
const PREFILL_MARGIN: f64 = 1.3;
/// Besides an entry's own bytes: headers, records and padding, at most this much.
const ENTRY_OVERHEAD_BYTES: u64 = 120;
const BARE_TIME_SAME: Duration = Duration::from_millis(1500);
const BARE_TIME_EACH: Duration = Duration::from_millis(400);
/// How long to append if neither time nor entries are given.
const SECONDS: u64 = 5;

/// What a shard did.
pub(super) struct ShardReport {
    pub(super) outcome: Outcome,
    pub(super) recovered: u64,
    /// Batches written while appending, and their bytes on the device.
    pub(super) batches: u64,
    pub(super) batch_bytes: u64,
    /// Zeros written before, and while appending.
    pub(super) prefill_bytes: u64,
    pub(super) filled_bytes: u64,
    pub(super) recovery_ms: u64,
    pub(super) baseline: Option<BareShard>,
}

/// Bare writes of one shard.
pub(super) struct BareShard {
    pub(super) same: Bare,
    /// Bytes a write, writes in flight, and what they came to.
    pub(super) best_of: Vec<(usize, usize, Bare)>,
}

/// One shard's drivers.
struct Shard<'a> {
    options: &'a Options,
    shard: u16,
    dir: PathBuf,
    disk: Recorder<RingDisk>,
    park: RingPark,
}

/// Goes through all phases. Each `arrive` is a meeting with the other shards and the main thread.
pub(super) fn run(options: &Options, dir: &Path, shard: u16, gate: &Gate) -> Result<ShardReport, Error> {
    let dir = dir.join(format!("shard-{shard}"));
    let ring = Ring::new(&RingOptions::default())?;
    let disk_options = DiskOptions { strategy: options.strategy, ..DiskOptions::default() };
    let disk = RingDisk::open(&ring, &dir, disk_options)?;
    disk.refuse_fallback()?;
    let disk = Recorder::new(disk);
    let park = RingPark::new(&ring)?;
    let mut shard = Shard { options, shard, dir, disk, park };

    let wanted_bytes = shard.warm_up()?;
    shard.fill_ahead(wanted_bytes)?;
    let mut wal = shard.open(LOG)?;
    let mut load = shard.load();
    shard.disk.take_writes();
    let prefill_bytes = shard.disk.filled_bytes();
    gate.arrive()?;
    gate.arrive()?;
    let pace = shard.pace();
    let outcome = load.run(&mut shard.disk, &mut wal, &mut shard.park, pace)?;
    gate.arrive()?;
    let mut writes = shard.disk.take_writes();
    let filled_bytes = shard.disk.filled_bytes() - prefill_bytes;
    wal.shutdown(&mut shard.disk)?;

    let started_us = RealClock.now_us();
    let recovered = shard.read_back(&load, outcome.entries)?;
    let recovery_ms = (RealClock.now_us() - started_us) / 1000;
    gate.arrive()?;
    let baseline =
        if options.baseline { Some(shard.write_bare(writes.newest.make_contiguous())?) } else { None };
    gate.arrive()?;
    let (batches, batch_bytes) = (writes.count, writes.bytes);
    Ok(ShardReport {
        outcome,
        recovered,
        batches,
        batch_bytes,
        prefill_bytes,
        filled_bytes,
        recovery_ms,
        baseline,
    })
}

impl Shard<'_> {
    fn config(&self, dir: &str) -> Config {
        let mut config = Config::new(dir, rand::random());
        config.file_bytes = self.options.wal_file;
        config.batch_bytes = self.options.max_batch;
        config
    }

    fn open(&mut self, dir: &str) -> Result<Wal, Error> {
        let (config, identity) = (self.config(dir), self.identity());
        let (wal, _) = Wal::open(&mut self.disk, config, identity)?;
        Ok(wal)
    }

    fn identity(&self) -> Identity {
        let (shard, shards) = (ShardId(self.shard), self.options.shards);
        Identity { cluster: 1, node: NodeId(1), incarnation: 1, shard, shards }
    }

    /// The groups of this shard, all empty.
    fn load(&self) -> Load {
        let ids = (1..=u64::from(self.options.groups)).map(GroupId);
        let ours = ids.filter(|id| id.shard(self.options.shards) == ShardId(self.shard));
        let Options { entry_bytes, in_flight, max_batch, .. } = *self.options;
        Load::new(ours, entry_bytes, in_flight, max_batch, u64::from(self.shard))
    }

    /// When our part of all entries arrives, from now on.
    fn pace(&self) -> Pace {
        let shards = u64::from(self.options.shards);
        let until = match (self.options.entries, self.options.seconds) {
            (Some(entries), _) => {
                Until::Entries(entries / shards + u64::from(u64::from(self.shard) < entries % shards))
            }
            (None, seconds) => Until::Time(Duration::from_secs(seconds.unwrap_or(SECONDS))),
        };
        let rate = self.options.rate.map(|rate| rate as f64 / shards as f64);
        Pace::new(RealClock.now_us(), until, rate)
    }

    /// Appends to a log of its own for a moment; says how many bytes the real one is likely to take.
    fn warm_up(&mut self) -> Result<u64, Error> {
        self.make_spares(WARM_UP, 4)?;
        let mut wal = self.open(WARM_UP)?;
        let pace = Pace::new(RealClock.now_us(), Until::Time(WARM_UP_TIME), None);
        let outcome = self.load().run(&mut self.disk, &mut wal, &mut self.park, pace)?;
        wal.shutdown(&mut self.disk)?;
        let path = self.dir.join(WARM_UP);
        std::fs::remove_dir_all(&path).map_err(|source| Error::Path { path, source })?;

        let entry_bytes = self.options.entry_bytes as u64 + ENTRY_OVERHEAD_BYTES;
        if let Some(entries) = self.options.entries {
            return Ok(entries.div_ceil(u64::from(self.options.shards)) * entry_bytes);
        }
        let written = self.disk.take_writes().bytes as f64;
        let per_s = written / (outcome.micros.max(1) as f64 / 1e6);
        let seconds = self.options.seconds.unwrap_or(SECONDS) as f64;
        Ok((per_s * seconds * PREFILL_MARGIN) as u64)
    }

    /// Makes files of zeros for the log to take, so that none has to be made while it is measured. A real log makes its
    /// few ahead and then recycles those that hold nothing any more; here nothing may be dropped before it was counted.
    fn fill_ahead(&mut self, bytes: u64) -> Result<(), Error> {
        let files = bytes.div_ceil(self.options.wal_file) + 2;
        self.make_spares(LOG, files)
    }

    fn make_spares(&mut self, dir: &str, files: u64) -> Result<(), Error> {
        self.disk.make_dir(Path::new(dir))?;
        for number in 0..files {
            // Far from the names that the log itself gives to what it prepares.
            let path = PathBuf::from(format!("{dir}/spare-{}.wal", 1_000_000 + number));
            let open = DiskOp::Open { path, mode: FileMode::Write };
            let (DiskOk::Opened { file, .. }, _) = disk::run(&mut self.disk, open)? else { continue };
            let bytes = self.options.wal_file;
            disk::run(&mut self.disk, DiskOp::Fill { file, offset: 0, bytes })?;
            disk::run(&mut self.disk, DiskOp::Sync { file })?;
            disk::run(&mut self.disk, DiskOp::Close { file })?;
        }
        disk::run(&mut self.disk, DiskOp::SyncDir { path: dir.into() })?;
        Ok(())
    }

    /// What a restart finds.
    fn read_back(&mut self, load: &Load, expected: u64) -> Result<u64, Error> {
        let (config, identity) = (self.config(LOG), self.identity());
        let found = recovery::count(&mut self.disk, config, identity, load)?;
        if found == expected { Ok(found) } else { Err(Error::Miscounted { found, expected }) }
    }

    /// Bare writes into the log's own files, which are not needed any more.
    fn write_bare(&mut self, same: &[Shape]) -> Result<BareShard, Error> {
        let names = self.disk.list(Path::new(LOG))?;
        let paths: Vec<_> = names.into_iter().map(|entry| Path::new(LOG).join(entry.name)).collect();
        let mut target = Target::open(&mut self.disk, &paths, self.options.wal_file)?;
        let mut write = |shapes: &mut dyn Iterator<Item = Shape>, time| {
            bare::write(&mut self.disk, &RealClock, &mut target, shapes, time)
        };
        let same = write(&mut same.iter().copied().cycle(), BARE_TIME_SAME)?;
        let mut best_of = Vec::new();
        for bytes in BEST_OF_BYTES {
            for depth in BEST_OF_DEPTH {
                let all_alike = &mut std::iter::repeat(Shape { bytes, depth });
                best_of.push((bytes, depth, write(all_alike, BARE_TIME_EACH)?));
            }
        }
        Ok(BareShard { same, best_of })
    }
}
