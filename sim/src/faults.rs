//! What goes wrong, and when: one fault after the other from the plan's list, each repaired after a while, some of them
//! in ambush for an election. Faults of single chunks come from the network's own rates.
//!
//! Nothing here looks at which bug is planted.

use std::collections::BTreeMap;

use coracle_base::checksum::mix64;
use coracle_io::fake::{Completing, CrashPolicy, Latency, NetOptions, NetRates, OpKind};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::cluster::Cluster;
use crate::node::End;
use crate::oracle::Violation;
use crate::plan::{Fault, Plan};

const EIO: i32 = 5;
const EXACT_PPM: u64 = 1_000_000;
/// Operations of a disk until a fuse blows, at most.
const FUSE_STEPS_MAX: u64 = 200;
/// While a cluster is being formed there is trouble within this time.
const EARLY_US: u64 = 400_000;
const FAULT: u64 = 6;

/// Something that happens later.
#[derive(Debug, Clone, Copy)]
enum Later {
    Strike(Fault),
    /// Lets one pass to the other again.
    Unblock(u64, u64),
    FastDisk(usize),
    /// Cuts one off until then.
    Isolate(usize, u64),
    PowerLoss(usize),
    ExactClock(usize),
}

/// Makes things go wrong in one run.
pub(crate) struct Faults {
    rng: SmallRng,
    next_us: u64,
    later: BTreeMap<(u64, u64), Later>,
    count: u64,
}

impl Faults {
    pub(crate) fn new(plan: &Plan) -> Self {
        let mut rng = SmallRng::seed_from_u64(mix64(plan.seed, 0xfa17));
        let next_us = if plan.weather.early { rng.random_range(0..EARLY_US) } else { 2 * EARLY_US };
        Self { rng, next_us, later: BTreeMap::new(), count: 0 }
    }

    /// When the next thing happens.
    pub(crate) fn next_us(&self) -> u64 {
        self.later.first_key_value().map_or(u64::MAX, |((at, _), _)| *at).min(self.next_us)
    }

    /// Whatever is due.
    pub(crate) fn act(&mut self, cluster: &mut Cluster) -> Result<(), Violation> {
        let now_us = cluster.now_us();
        self.lie_in_ambush(cluster);
        self.doubt(cluster)?;
        while let Some(first) = self.later.first_entry().filter(|first| first.key().0 <= now_us) {
            match first.remove() {
                Later::Strike(fault) => self.strike(cluster, fault)?,
                Later::Unblock(from, to) => cluster.network.unblock(from, to),
                Later::FastDisk(at) => set_disk(cluster, at, cluster.plan.disk),
                Later::Isolate(at, until_us) => {
                    cluster.isolated.push(at);
                    self.cut_until(cluster, until_us, |from, to| from == at || to == at)
                }
                Later::PowerLoss(at) => {
                    self.crash(cluster, at, End::PowerLoss(cluster.plan.weather.crash))?
                }
                Later::ExactClock(at) => cluster.nodes[at].clock.set_rate_ppm(EXACT_PPM),
            }
        }
        if self.next_us <= now_us {
            let (low, high) =
                if now_us < EARLY_US { (EARLY_US / 10, EARLY_US) } else { cluster.plan.weather.gap_us };
            self.next_us = now_us + self.rng.random_range(low..=high);
            let fault =
                *cluster.plan.weather.faults.choose(&mut self.rng).expect("a plan has at least one fault");
            self.strike(cluster, fault)?;
        }
        Ok(())
    }

    /// After an election there is much that is not durable, not known, not agreed upon yet.
    fn lie_in_ambush(&mut self, cluster: &mut Cluster) {
        let weather = &cluster.plan.weather;
        for _ in cluster.elected.drain(..) {
            if weather.ambush_one_in > 0 && self.rng.random_ratio(1, weather.ambush_one_in) {
                let fault = *weather.faults.choose(&mut self.rng).expect("a plan has at least one fault");
                let at_us = cluster.clock.true_us() + self.rng.random_range(0..=weather.ambush_us);
                self.at(at_us, Later::Strike(fault));
            }
        }
    }

    /// Takes the power of nodes that have just confirmed what only a little delay makes true.
    fn doubt(&mut self, cluster: &mut Cluster) -> Result<(), Violation> {
        let one_in = cluster.plan.weather.doubt_one_in;
        for at in std::mem::take(&mut cluster.doubtful) {
            if one_in > 0 && self.rng.random_ratio(1, one_in) {
                cluster.tally.fault("power_loss_after_cut");
                self.crash(cluster, at, End::PowerLoss(CrashPolicy::LOSE_ALL))?;
            }
        }
        Ok(())
    }

    fn at(&mut self, us: u64, later: Later) {
        self.count += 1;
        self.later.insert((us, self.count), later);
    }

    fn after_a_while(&mut self, cluster: &Cluster, later: Later) {
        let (low, high) = cluster.plan.weather.lasting_us;
        let us = cluster.now_us() + self.rng.random_range(low..=high);
        self.at(us, later);
    }

    fn any(&mut self, cluster: &Cluster) -> usize {
        self.rng.random_range(0..cluster.nodes.len())
    }

    fn leader(&mut self, cluster: &Cluster) -> usize {
        let group = self.rng.random_range(0..cluster.plan.groups) as usize;
        cluster.leader_of(group).unwrap_or_else(|| self.any(cluster))
    }

    // ---- one fault ------------------------------------------------------------------------------------------------

    fn strike(&mut self, cluster: &mut Cluster, fault: Fault) -> Result<(), Violation> {
        let now_us = cluster.now_us();
        let one = match fault {
            Fault::LeaderPowerLoss | Fault::IsolateLeader | Fault::FailingLeader => self.leader(cluster),
            _ => self.any(cluster),
        };
        cluster.tally.event(&[FAULT, now_us, fault as u64, one as u64]);
        cluster.tally.fault(fault.name());
        tracing::debug!(now_us, ?fault, node = %cluster.nodes[one].id, "fault");
        match fault {
            Fault::PowerLoss | Fault::LeaderPowerLoss => {
                self.crash(cluster, one, End::PowerLoss(cluster.plan.weather.crash))?
            }
            Fault::Kill => self.crash(cluster, one, End::Killed)?,
            Fault::Blackout => {
                for at in 0..cluster.nodes.len() {
                    self.crash(cluster, at, End::PowerLoss(cluster.plan.weather.crash))?;
                }
            }
            Fault::Fuse => {
                let steps = self.rng.random_range(0..FUSE_STEPS_MAX);
                light_fuse(cluster, one, steps);
            }
            Fault::Partition => {
                let half: Vec<bool> = cluster.nodes.iter().map(|_| self.rng.random()).collect();
                self.cut(cluster, |from, to| half[from] != half[to]);
            }
            Fault::Isolate | Fault::IsolateLeader => {
                cluster.isolated.push(one);
                self.cut(cluster, |from, to| from == one || to == one)
            }
            Fault::OneWay => {
                let other = self.any(cluster);
                self.cut(cluster, |from, to| from == one && to == other);
            }
            Fault::Reset => {
                let other = self.any(cluster);
                cluster.network.reset_connections(one as u64 + 1, other as u64 + 1);
            }
            Fault::Pause => {
                let (low, high) = cluster.plan.weather.lasting_us;
                cluster.nodes[one].paused_until_us = now_us + self.rng.random_range(low..=high);
            }
            Fault::WriteError => cluster.nodes[one].disk.fail_next(OpKind::Write, None, EIO),
            Fault::SlowDisk => {
                let slow_us = self.rng.random_range(5_000..500_000);
                // One in two is so slow that leaders hand over; few of them resign.
                let slow_us = if slow_us % 2 == 0 { 20 * slow_us } else { slow_us };
                self.slow_disk(cluster, one, slow_us);
                self.after_a_while(cluster, Later::FastDisk(one));
            }
            Fault::FailingLeader => self.fail_slowly(cluster, one),
            Fault::Drift => {
                let spread_ppm = [10_000, 200_000, 500_000][self.rng.random_range(0..3)];
                let ppm = self.rng.random_range(EXACT_PPM - spread_ppm..=EXACT_PPM + 2 * spread_ppm);
                cluster.nodes[one].clock.set_rate_ppm(ppm);
                self.after_a_while(cluster, Later::ExactClock(one));
            }
            Fault::WallJump => {
                let hour_ms = 3_600_000;
                cluster.nodes[one].clock.set_wall_offset_ms(self.rng.random_range(-hour_ms..=hour_ms));
            }
        }
        Ok(())
    }

    /// Ends a process, if there is one; what power loss takes with it is the disk's to say.
    fn crash(&mut self, cluster: &mut Cluster, at: usize, end: End) -> Result<(), Violation> {
        if cluster.nodes[at].process.is_none() {
            return Ok(());
        }
        cluster.end(at, end)?;
        let one_in = cluster.plan.weather.fuse_at_open_one_in;
        if one_in > 0 && self.rng.random_ratio(1, one_in) {
            let steps = self.rng.random_range(0..40);
            cluster.tally.fault("power_loss_at_start");
            light_fuse(cluster, at, steps);
        }
        Ok(())
    }

    fn cut(&mut self, cluster: &Cluster, which: impl Fn(usize, usize) -> bool) {
        let (low, high) = cluster.plan.weather.lasting_us;
        let until_us = cluster.now_us() + self.rng.random_range(low..=high);
        self.cut_until(cluster, until_us, which);
    }

    fn cut_until(&mut self, cluster: &Cluster, until_us: u64, which: impl Fn(usize, usize) -> bool) {
        let nodes = cluster.nodes.len();
        for (from, to) in (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to))) {
            if from != to && which(from, to) {
                let (from, to) = (from as u64 + 1, to as u64 + 1);
                cluster.network.block(from, to);
                self.at(until_us, Later::Unblock(from, to));
            }
        }
    }

    fn slow_disk(&mut self, cluster: &Cluster, at: usize, slow_us: u64) {
        if cluster.nodes[at].process.is_none() {
            return; // recovery is long enough as it is
        }
        let range_us = (slow_us / 10, slow_us);
        set_disk(cluster, at, Latency { write_us: range_us, read_us: range_us, ..cluster.plan.disk });
    }

    fn fail_slowly(&mut self, cluster: &Cluster, at: usize) {
        let election_us = cluster.plan.settings.election_us;
        let slow_us = self.rng.random_range(election_us..=8 * election_us);
        self.slow_disk(cluster, at, slow_us);
        let cut_us = cluster.now_us() + self.rng.random_range(0..=election_us);
        let back_us = cut_us + self.rng.random_range(election_us..=4 * election_us);
        let dark_us = back_us + self.rng.random_range(0..=slow_us);
        self.at(cut_us, Later::Isolate(at, back_us));
        self.at(dark_us, Later::PowerLoss(at));
        self.at(dark_us, Later::FastDisk(at));
    }

    // ---- the end --------------------------------------------------------------------------------------------------

    /// Everything is repaired, and nothing goes wrong any more. A node whose power was about to fail loses it now.
    pub(crate) fn heal(&mut self, cluster: &mut Cluster) -> Result<(), Violation> {
        self.later.clear();
        self.next_us = u64::MAX;
        cluster.network.heal();
        cluster.network.set_rates(NetRates::default());
        cluster
            .network
            .set_options(NetOptions { timeout_us: cluster.plan.net.timeout_us, ..NetOptions::default() });
        let now_us = cluster.now_us();
        for at in 0..cluster.nodes.len() {
            if cluster.nodes[at].fused {
                cluster.end(at, End::PowerLoss(cluster.plan.weather.crash))?;
            }
            set_disk(cluster, at, Latency::default());
            cluster.nodes[at].disk.fail_no_more();
            let node = &mut cluster.nodes[at];
            node.clock.set_rate_ppm(EXACT_PPM);
            node.paused_until_us = 0;
            node.restart_us = node.restart_us.min(now_us.max(node.disk.now_us()));
        }
        Ok(())
    }
}

fn set_disk(cluster: &Cluster, at: usize, latency: Latency) {
    cluster.nodes[at].disk.set_completing(Completing::Timed(latency));
}

fn light_fuse(cluster: &mut Cluster, at: usize, steps: u64) {
    cluster.nodes[at].disk.crash_after(steps);
    cluster.nodes[at].fused = true;
}
