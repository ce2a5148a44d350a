//! What only some seeds have: many groups or nodes, files and caches so small that they roll and are read back all the time,
//! clocks that are never right, disks that fail in ways which not every cluster survives.
//!
//! Invariant: a large cluster has a short storm, so that seeds cost the same on average.

use coracle_base::checksum::mix64;
use rand::Rng;
use rand::rngs::SmallRng;

use super::trim::NAMES;
use super::{Fault, Harmed, Plan, Trim, pick};

const OLD: u64 = 0x01d;
/// From so many groups on a cluster is large.
const MANY_GROUPS: u64 = 16;

impl Plan {
    /// Some of what most seeds do without, a little of it at a time.
    pub(super) fn widen(&mut self, own: &mut SmallRng) {
        if self.churn.is_none() && own.random_ratio(1, 16) {
            self.nodes = pick(own, &[6, 7]);
        }
        if self.churn.is_none() && own.random_ratio(1, 16) {
            self.have_many_groups(own);
        }
        if own.random_ratio(1, 4) {
            self.settings.wal_bytes = pick(own, &[64 << 10, 64 << 10, 128 << 10]);
        }
        if own.random_ratio(1, 6) {
            self.settings.wal_entries = pick(own, &[20, 300]);
        }
        if own.random_ratio(1, 4) {
            self.settings.cache_bytes = pick(own, &[4 << 10, 64 << 10, 512 << 10]);
        }
        if own.random_ratio(1, 8) {
            self.settings.snapshot_bytes_per_s = pick(own, &[100_000, 2_000_000]);
        }
        let spread_ppm: u64 = pick(own, &[0, 0, 0, 500, 20_000, 100_000]);
        let rate = |_| own.random_range(1_000_000 - spread_ppm..=1_000_000 + spread_ppm);
        self.clock_ppm = (0..self.nodes).map(rate).collect();
        for fault in [Fault::ReadError, Fault::SyncError, Fault::DiskFull] {
            if own.random_ratio(1, 4) {
                let weight = pick(own, &[1, 1, 2, 4]);
                self.weather.faults.extend(std::iter::repeat_n(fault, weight));
            }
        }
        self.harm(own);
        self.load.sessions = pick(own, &[0, 2, 4, 8]);
    }

    /// A queue server has hundreds of groups, most of them quiet.
    fn have_many_groups(&mut self, own: &mut SmallRng) {
        self.groups = pick(own, &[MANY_GROUPS, 30, 60, 100, 200]);
        self.storm_us = own.random_range(1_500_000_000..2_000_000_000) / self.groups.max(50);
        self.load.padding = self.load.padding.min(100);
        self.settings.habits.padding = self.settings.habits.padding.min(1_000);
        self.settings.habits.live_percent = 0;
    }

    /// A few names, of groups that come and go.
    pub(super) fn have_names(&mut self, own: &mut SmallRng, trim: &Trim) {
        let is_wanted = own.random_ratio(1, 6) || trim.with.contains(NAMES);
        if is_wanted && self.groups < MANY_GROUPS {
            self.names_gap_us = Some(pick(own, &[30_000, 150_000, 500_000]));
            self.groups = self.groups.min(3);
        }
    }

    fn harm(&mut self, own: &mut SmallRng) {
        if self.churn.is_none() && self.nodes >= 3 && own.random_ratio(1, 4) {
            self.harmed = Harmed::One(own.random_range(0..self.nodes) as usize);
            self.weather.faults.extend([Fault::Damage; 3]);
            if own.random_ratio(1, 3) {
                self.weather.faults.push(Fault::DirectoryLost);
            }
            // Not of the same dice, so that the other seeds stay what they are.
            if mix64(self.seed, OLD).is_multiple_of(2) {
                self.weather.faults.extend([Fault::OldDirectory; 6]);
            }
        } else if own.random_ratio(1, 16) {
            self.harmed = Harmed::Anybody;
            self.weather.faults.extend([Fault::Damage; 4]);
        }
    }
}
