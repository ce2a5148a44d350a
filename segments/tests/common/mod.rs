//! A log with its compactor, beside a plain model of the log.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

#[path = "../../../wal/tests/common/mod.rs"]
pub mod log;

use coracle_io::Disk;
use coracle_io::fake::{Completing, FakeDisk};
use coracle_segments::{Bounds, Compactor};
use coracle_wal::{BatchSeq, Config, Recovery, WalError};
use log::Rig;
use log::model::Model;
use rand::Rng;
use rand::rngs::SmallRng;

pub const FILE_BYTES: u64 = 64 * 1024;

pub fn config(seed: u64) -> Config {
    log::config(seed)
}

pub fn bounds() -> Bounds {
    Bounds { dead_files_max: 2, read_bytes: 8 * 1024, ..Bounds::new(FILE_BYTES) }
}

/// A log, its model and its compactor.
pub struct Yard {
    pub rig: Rig,
    pub compactor: Compactor,
}

impl Yard {
    pub fn open(disk: FakeDisk, seed: u64) -> Result<(Self, Recovery), WalError> {
        let (rig, recovery) = Rig::open(disk, config(seed))?;
        Ok((Self { rig, compactor: Compactor::new(bounds()) }, recovery))
    }

    pub fn fresh(seed: u64) -> Self {
        Self::open(FakeDisk::new(seed), seed).unwrap().0
    }

    /// A turn: a step of compaction, and everything that may be written.
    pub fn submit(&mut self) {
        self.compactor.step(&mut self.rig.wal, &mut self.rig.disk, self.rig.now_us);
        self.rig.submit().unwrap();
    }

    /// Takes what has completed.
    pub fn complete(&mut self) {
        self.rig.complete().unwrap();
        for one in self.rig.others.drain(..) {
            assert!(Compactor::owns(one.token));
            self.compactor.on_done(&mut self.rig.disk, one);
        }
    }

    /// Goes on until nothing is left to do, not even after a while.
    pub fn settle(&mut self) {
        self.rig.disk.set_completing(Completing::AtOnce);
        let mut quiet = 0;
        for _ in 0..100_000 {
            self.submit();
            let idle = self.rig.disk.in_flight() == 0
                && self.rig.wal.backlog_bytes() == 0
                && self.compactor.is_idle()
                && !self.compactor.is_ready();
            quiet = if idle { quiet + 1 } else { 0 };
            if quiet == 4 {
                return;
            }
            self.rig.now_us += if idle { 200_000 } else { 10 };
            self.complete();
        }
        panic!("the log does not come to rest");
    }

    /// Stops and starts again, after everything was durable.
    pub fn restart(&mut self, seed: u64) {
        self.settle();
        let model = self.rig.model().clone();
        let disk = FakeDisk::from_image(self.rig.disk.durable_image(), seed);
        let (mut next, recovery) = Self::open(disk, seed).unwrap();
        assert!(recovery.report.missing.is_empty() && recovery.report.holes.is_empty(), "{recovery:?}");
        assert!(recovery.groups.iter().all(|group| !group.suspect), "{recovery:?}");
        assert!(Model::of(&recovery).same_shape(&model), "{:?}\n{model:?}", Model::of(&recovery));
        next.rig.history = vec![(BatchSeq(0), model)];
        next.rig.now_us = self.rig.now_us;
        *self = next;
    }

    /// Bytes of all files on the disk.
    pub fn disk_bytes(&self) -> u64 {
        let image = self.rig.disk.image();
        image.paths().iter().map(|path| image.read(path).unwrap().len() as u64).sum()
    }
}

/// A random record: runs, conflicts, snapshots of which some entries live on.
pub fn random_record(rig: &mut Rig, rng: &mut SmallRng, term: &mut u64, bytes: usize) {
    let group = rng.random_range(1..4);
    let model = rig.model();
    let (last, base) = (model.last(group), model.get(group).base.0);
    match rng.random_range(0..10) {
        0..6 => {
            let last_term = model.term_at(group, last).unwrap().max(1);
            let count = rng.random_range(1..4);
            rig.append(group, last, last_term, (*term).max(last_term), count, bytes);
        }
        6 => {
            *term += 1;
            let prev = last - rng.random_range(0..=(last - base).min(3));
            let least = model.term_at(group, prev).unwrap().max(1);
            let new = rng.random_range(least..=(*term).max(least));
            rig.append(group, prev, new, (*term).max(new), 1, bytes);
        }
        7 => rig.put_state(group, &[term.to_le_bytes()[0]; 20]),
        _ => {
            let index = rng.random_range(base..=last).max(1);
            if last == 0 {
                return;
            }
            let index_term = model.term_at(group, index).unwrap_or(*term).max(1);
            let held = model.get(group);
            let percent = rng.random_range(0..60);
            let all = held.live.keys().chain(held.entries.range(..=index).map(|(index, _)| index));
            let live: Vec<u64> = all.copied().filter(|_| rng.random_range(0..100) < percent).collect();
            rig.put_snapshot_live(group, index, index_term, &live, &[index as u8; 50]);
        }
    }
}
