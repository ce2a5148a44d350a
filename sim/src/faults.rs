//! What goes wrong, and when: one strike after the other from the plan's list, each repaired after a while, some of them
//! in ambush for an election. Faults of single chunks come from the network's own rates.
//!
//! Invariants: (1) what a strike does follows from its number and the cluster, so that the others stay what they are when one
//! is left out; (2) nothing here looks at which bug is planted.

use std::collections::BTreeMap;

use coracle_base::checksum::mix64;
use coracle_io::fake::{
    Completing, CrashPolicy, DiskImage, FakeDisk, Latency, Lie, NetOptions, NetRates, OpKind,
};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::cluster::Cluster;
use crate::harm::{self, Harm};
use crate::node::{End, Node};
use crate::oracle::Violation;
use crate::plan::{Fault, Harmed, Plan};

const EIO: i32 = 5;
/// A disk whose log is never at rest is spared after so many looks, so far apart.
const HARM_TRIES: u32 = 40;
const HARM_RETRY_US: u64 = 50_000;
/// Operations of a disk until a fuse blows, at most.
const FUSE_STEPS_MAX: u64 = 200;
/// A copy of a directory is older than what the others have not heard yet.
const OLD_AGE_US: u64 = 1_000_000;
/// Before it is put back somebody falls behind for so long, at most.
const BEHIND_US: u64 = 2_000_000;
/// After it is put back nothing else goes wrong until the node was told, or for so long: nobody else could.
const QUIET_US: u64 = 3_000_000;
/// After a write was lost nothing else goes wrong until later ones prove it, or for so long: with that many they do.
const LIE_US: u64 = 2_000_000;
/// While a cluster is being formed there is trouble within this time.
const EARLY_US: u64 = 400_000;
const FAULT: u64 = 6;

/// Something that happens later.
#[derive(Debug, Clone, Copy)]
enum Later {
    Strike(Fault),
    /// Harms the disk of a node as soon as its log is at rest.
    Harm {
        at: usize,
        fault: Fault,
        tries: u32,
    },
    /// The disk of a node is to have lied, which later writes are to prove.
    Lied {
        at: usize,
        until_us: u64,
    },
    /// The disk has room again.
    Room(usize),
    /// Gives a node its directory as it was, while this one leads.
    PutBack {
        at: usize,
        leader: usize,
    },
    /// Lets one pass to the other again.
    Unblock(u64, u64),
    FastDisk(usize),
    /// Cuts one off until then.
    Isolate(usize, u64),
    PowerLoss(usize),
    ExactClock(usize),
}

/// One strike, for those who read what happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strike {
    /// Its number.
    pub number: u64,
    /// When, in simulated microseconds.
    pub at_us: u64,
    /// The fault's name.
    pub kind: &'static str,
    /// The node that it was meant for.
    pub node: u64,
}

/// Makes things go wrong in one run.
pub(crate) struct Faults {
    seed: u64,
    /// When something happens, and what.
    rng: SmallRng,
    /// What becomes of the strike that is being dealt with.
    dice: SmallRng,
    next_us: u64,
    /// Nothing goes wrong until this node was told that its directory is an older copy, or until then.
    quiet: Option<(usize, u64)>,
    /// A disk lies: nothing else goes wrong before that could be noticed, which could not be if it ended now.
    is_lying: bool,
    old_since_us: u64,
    later: BTreeMap<(u64, u64), Later>,
    count: u64,
    strikes: u64,
    /// The strikes that happened.
    pub(crate) story: Vec<Strike>,
}

impl Faults {
    pub(crate) fn new(plan: &Plan) -> Self {
        let mut rng = SmallRng::seed_from_u64(mix64(plan.seed, 0xfa17));
        let next_us = if plan.weather.early { rng.random_range(0..EARLY_US) } else { 2 * EARLY_US };
        let dice = SmallRng::seed_from_u64(mix64(plan.seed, 0xd1ce));
        Self {
            seed: plan.seed,
            rng,
            dice,
            next_us,
            quiet: None,
            is_lying: false,
            old_since_us: 0,
            later: BTreeMap::new(),
            count: 0,
            strikes: 0,
            story: Vec::new(),
        }
    }

    /// Whether a disk has lied, and nothing proves it yet.
    pub(crate) fn is_lying(&self) -> bool {
        self.is_lying
    }

    /// When the next thing happens.
    pub(crate) fn next_us(&self) -> u64 {
        self.later.first_key_value().map_or(u64::MAX, |((at, _), _)| *at).min(self.next_us)
    }

    /// Whatever is due.
    pub(crate) fn act(&mut self, cluster: &mut Cluster) -> Result<(), Violation> {
        let now_us = cluster.now_us();
        let is_quiet = self.is_quiet(cluster);
        self.lie_in_ambush(cluster);
        self.doubt(cluster)?;
        while let Some(first) = self.later.first_entry().filter(|first| first.key().0 <= now_us) {
            match first.remove() {
                Later::Isolate(..) | Later::PowerLoss(_) | Later::Harm { .. } if is_quiet => {}
                Later::PutBack { at, leader } => self.put_back(cluster, at, leader)?,
                Later::Lied { at, until_us } => self.lied(cluster, at, until_us)?,
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
                Later::ExactClock(at) => cluster.nodes[at].clock.set_rate_ppm(cluster.plan.clock_ppm[at]),
                Later::Room(at) => cluster.nodes[at].disk.set_quota(None),
                Later::Harm { at, fault, tries } => self.harm(cluster, at, fault, tries)?,
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
            if one_in > 0 && self.rng.random_ratio(1, one_in) && self.quiet.is_none() && !self.is_lying {
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
        let us = cluster.now_us() + self.dice.random_range(low..=high);
        self.at(us, later);
    }

    fn any(&mut self, cluster: &Cluster) -> usize {
        self.dice.random_range(0..cluster.nodes.len())
    }

    fn leader(&mut self, cluster: &Cluster) -> usize {
        let group = self.dice.random_range(0..cluster.plan.groups) as usize;
        cluster.leader_of(group).unwrap_or_else(|| self.any(cluster))
    }

    // ---- one fault ------------------------------------------------------------------------------------------------

    fn strike(&mut self, cluster: &mut Cluster, fault: Fault) -> Result<(), Violation> {
        let (now_us, number) = (cluster.now_us(), self.strikes);
        self.strikes += 1;
        if !cluster.plan.trim.has_strike(number, fault) || self.quiet.is_some() || self.is_lying {
            return Ok(());
        }
        self.dice = SmallRng::seed_from_u64(mix64(self.seed, mix64(0xd1ce, number)));
        let one = match fault {
            Fault::LeaderPowerLoss | Fault::IsolateLeader | Fault::FailingLeader => self.leader(cluster),
            _ if fault.is_harm() => match cluster.plan.harmed {
                Harmed::Nobody => return Ok(()),
                Harmed::One(at) => at,
                Harmed::Anybody => self.any(cluster),
            },
            _ => self.any(cluster),
        };
        cluster.tally.event(&[FAULT, now_us, fault as u64, one as u64]);
        let node = cluster.nodes[one].id.0;
        self.story.push(Strike { number, at_us: now_us, kind: fault.name(), node });
        tracing::debug!(now_us, number, ?fault, node, "fault");
        if fault.is_harm() {
            // Counted when it is done: most of the time it is too early for it.
            return self.harm(cluster, one, fault, HARM_TRIES);
        }
        cluster.tally.fault(fault.name());
        self.deal(cluster, one, fault)
    }

    /// Whatever may happen to any node.
    fn deal(&mut self, cluster: &mut Cluster, one: usize, fault: Fault) -> Result<(), Violation> {
        let now_us = cluster.now_us();
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
                let steps = self.dice.random_range(0..FUSE_STEPS_MAX);
                light_fuse(cluster, one, steps);
            }
            Fault::Partition => {
                let half: Vec<bool> = cluster.nodes.iter().map(|_| self.dice.random()).collect();
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
                cluster.nodes[one].paused_until_us = now_us + self.dice.random_range(low..=high);
            }
            Fault::WriteError => cluster.nodes[one].disk.fail_next(OpKind::Write, None, EIO),
            Fault::ReadError => cluster.nodes[one].disk.fail_next(OpKind::Read, None, EIO),
            Fault::SyncError => {
                let kind = [OpKind::Sync, OpKind::SyncDir][self.dice.random_range(0..2)];
                cluster.nodes[one].disk.fail_next(kind, None, EIO);
            }
            Fault::DiskFull => {
                let left = self.dice.random_range(0..=2 * cluster.plan.settings.wal_bytes);
                let disk = &cluster.nodes[one].disk;
                disk.set_quota(Some(bytes_of(&disk.image()) + left));
                self.after_a_while(cluster, Later::Room(one));
            }
            Fault::SlowDisk => {
                let slow_us = self.dice.random_range(5_000..500_000);
                // One in two is so slow that leaders hand over; few of them resign.
                let slow_us = if slow_us % 2 == 0 { 20 * slow_us } else { slow_us };
                self.slow_disk(cluster, one, slow_us);
                self.after_a_while(cluster, Later::FastDisk(one));
            }
            Fault::FailingLeader => self.fail_slowly(cluster, one),
            Fault::Drift => {
                let spread_ppm = [10_000, 200_000, 500_000][self.dice.random_range(0..3)];
                let own_ppm = cluster.plan.clock_ppm[one];
                let ppm = self.dice.random_range(own_ppm - spread_ppm..=own_ppm + 2 * spread_ppm);
                cluster.nodes[one].clock.set_rate_ppm(ppm);
                self.after_a_while(cluster, Later::ExactClock(one));
            }
            Fault::WallJump => {
                let hour_ms = 3_600_000;
                cluster.nodes[one].clock.set_wall_offset_ms(self.dice.random_range(-hour_ms..=hour_ms));
            }
            Fault::Damage | Fault::LostWrite | Fault::DirectoryLost | Fault::OldDirectory => {}
        }
        Ok(())
    }

    /// What a sound disk never does. Only to a log at rest: there the loss of each durable batch can be noticed.
    fn harm(&mut self, cluster: &mut Cluster, at: usize, fault: Fault, tries: u32) -> Result<(), Violation> {
        let node = &cluster.nodes[at];
        // While few nodes have heard of their cluster, the directory of the one that formed it may be all there is of it.
        if node.harm == Harm::Lost || cluster.oracle.joined() < cluster.nodes.len() {
            return Ok(());
        }
        if fault == Fault::OldDirectory {
            self.roll_back(cluster, at, tries);
            return Ok(());
        }
        if !node.is_at_rest() {
            if tries > 0 {
                let us = cluster.now_us() + HARM_RETRY_US;
                self.at(us, Later::Harm { at, fault, tries: tries - 1 });
            }
            return Ok(());
        }
        match fault {
            Fault::LostWrite => {
                self.lie(cluster, at);
                return Ok(());
            }
            Fault::Damage if !harm::damage_a_page(&node.disk, &mut self.dice) => return Ok(()),
            _ => {}
        }
        cluster.tally.fault(fault.name());
        self.crash(cluster, at, End::PowerLoss(cluster.plan.weather.crash))?;
        let node = &mut cluster.nodes[at];
        match fault {
            Fault::DirectoryLost => {
                node.disk.restore(&FakeDisk::new(self.seed).image());
                node.set_harm(Harm::Lost);
            }
            _ => node.set_harm(Harm::Damaged),
        }
        Ok(())
    }

    /// The next write of a node is confirmed and lands elsewhere, or nowhere. From then on its disk owes less.
    fn lie(&mut self, cluster: &mut Cluster, at: usize) {
        let node = &mut cluster.nodes[at];
        if node.disk.is_limited() {
            return;
        }
        node.disk.fail_no_more();
        node.disk.lie_next(if self.dice.random() { Lie::Lost } else { Lie::Elsewhere });
        node.set_harm(Harm::Damaged);
        self.is_lying = true;
        let now_us = cluster.now_us();
        self.at(now_us + HARM_RETRY_US, Later::Lied { at, until_us: now_us + LIE_US });
    }

    /// Once the next mark or batch proves that something is missing the node loses power, and finds out.
    fn lied(&mut self, cluster: &mut Cluster, at: usize, until_us: u64) -> Result<(), Violation> {
        let (node, now_us) = (&cluster.nodes[at], cluster.now_us());
        let has_lied = !node.disk.is_about_to_lie();
        if now_us < until_us && !(has_lied && node.is_at_rest()) {
            self.at(now_us + HARM_RETRY_US, Later::Lied { at, until_us });
            return Ok(());
        }
        node.disk.fail_no_more();
        self.is_lying = false;
        if has_lied {
            cluster.tally.fault(Fault::LostWrite.name());
            self.crash(cluster, at, End::PowerLoss(cluster.plan.weather.crash))?;
            cluster.nodes[at].set_harm(Harm::Damaged);
        }
        Ok(())
    }

    /// A copy of the node's directory is made; or there is one, and something is about to happen that it knows nothing of.
    fn roll_back(&mut self, cluster: &mut Cluster, at: usize, tries: u32) {
        let now_us = cluster.now_us();
        // A group of one or two may have been decided by this node alone: then nobody else knows.
        if cluster.nodes.len() < 3 || cluster.plan.churn.is_some() {
            return;
        }
        let again = Later::Harm { at, fault: Fault::OldDirectory, tries: tries.saturating_sub(1) };
        if cluster.nodes[at].old.is_none() {
            if cluster.nodes[at].is_at_rest() {
                cluster.nodes[at].old = Some(cluster.nodes[at].disk.durable_image());
                self.old_since_us = now_us;
            } else if tries > 0 {
                self.at(now_us + HARM_RETRY_US, again);
            }
            return;
        }
        if now_us < self.old_since_us + OLD_AGE_US || !would_be_told(cluster, at) {
            if tries > 0 {
                self.at(now_us + HARM_RETRY_US, again);
            }
            return;
        }
        // Somebody falls behind meanwhile, whom only this node and the leader could keep from leading.
        let leader = self.leader(cluster);
        let behind = (leader + 1 + self.dice.random_range(0..cluster.nodes.len() - 1)) % cluster.nodes.len();
        let us = now_us + self.dice.random_range(0..BEHIND_US);
        if leader != at && behind != at {
            self.cut_until(cluster, us, |from, to| {
                [(leader, behind), (behind, leader)].contains(&(from, to))
            });
        }
        self.at(us, Later::PutBack { at, leader });
    }

    /// The node loses power, and comes back with its directory as it was. For a while it does not meet who led.
    fn put_back(&mut self, cluster: &mut Cluster, at: usize, leader: usize) -> Result<(), Violation> {
        if self.is_lying || !would_be_told(cluster, at) {
            return Ok(());
        }
        let Some(old) = cluster.nodes[at].old.take() else { return Ok(()) };
        cluster.tally.fault(Fault::OldDirectory.name());
        cluster.end(at, End::PowerLoss(cluster.plan.weather.crash))?;
        cluster.network.heal();
        cluster.nodes.iter().for_each(|node| node.disk.fail_no_more());
        let node = &mut cluster.nodes[at];
        node.disk.restore(&old);
        node.set_harm(Harm::Old);
        let back_us = node.restart_us;
        self.quiet = Some((at, back_us + QUIET_US));
        if leader != at {
            let until_us = back_us + self.dice.random_range(0..QUIET_US);
            self.cut_until(cluster, until_us, |from, to| from == leader || to == leader);
        }
        Ok(())
    }

    /// Nothing goes wrong until an older copy was noticed, by one of those who remember.
    fn is_quiet(&mut self, cluster: &Cluster) -> bool {
        let is_over = |(at, until_us): &(usize, u64)| {
            let process = cluster.nodes[*at].process.as_ref();
            cluster.now_us() >= *until_us || process.is_some_and(|process| process.sim.is_old_copy())
        };
        self.quiet = self.quiet.filter(|quiet| !is_over(quiet));
        self.quiet.is_some() || self.is_lying
    }

    /// Ends a process, if there is one; what power loss takes with it is the disk's to say.
    fn crash(&mut self, cluster: &mut Cluster, at: usize, end: End) -> Result<(), Violation> {
        if cluster.nodes[at].process.is_none() {
            return Ok(());
        }
        cluster.end(at, end)?;
        let one_in = cluster.plan.weather.fuse_at_open_one_in;
        if one_in > 0 && self.dice.random_ratio(1, one_in) {
            let steps = self.dice.random_range(0..40);
            cluster.tally.fault("power_loss_at_start");
            light_fuse(cluster, at, steps);
        }
        Ok(())
    }

    fn cut(&mut self, cluster: &Cluster, which: impl Fn(usize, usize) -> bool) {
        let (low, high) = cluster.plan.weather.lasting_us;
        let until_us = cluster.now_us() + self.dice.random_range(low..=high);
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
        let slow_us = self.dice.random_range(election_us..=8 * election_us);
        self.slow_disk(cluster, at, slow_us);
        let cut_us = cluster.now_us() + self.dice.random_range(0..=election_us);
        let back_us = cut_us + self.dice.random_range(election_us..=4 * election_us);
        let dark_us = back_us + self.dice.random_range(0..=slow_us);
        self.at(cut_us, Later::Isolate(at, back_us));
        self.at(dark_us, Later::PowerLoss(at));
        self.at(dark_us, Later::FastDisk(at));
    }

    // ---- the end --------------------------------------------------------------------------------------------------

    /// Everything is repaired, and nothing goes wrong any more. A node whose power was about to fail loses it now.
    pub(crate) fn heal(&mut self, cluster: &mut Cluster) -> Result<(), Violation> {
        self.later.clear();
        (self.next_us, self.quiet, self.is_lying) = (u64::MAX, None, false);
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
            node.disk.set_quota(None);
            node.clock.set_rate_ppm(cluster.plan.clock_ppm[at]);
            node.paused_until_us = 0;
            if node.halted.is_none() {
                node.restart_us = node.restart_us.min(now_us.max(node.disk.now_us()));
            }
        }
        Ok(())
    }
}

/// Whether an older copy of this node's directory would be noticed: all the others are there, and have heard from it.
fn would_be_told(cluster: &Cluster, at: usize) -> bool {
    let is_up = |node: &Node| {
        let process = node.process.as_ref().filter(|process| process.sim.is_running());
        process.is_some()
            && node.paused_until_us <= cluster.now_us()
            && !node.fused
            && node.harm != Harm::Lost
    };
    let status = cluster.nodes[at].process.as_ref().and_then(|process| process.sim.status());
    let others = cluster.nodes.len() as u64 - 1;
    status.is_some_and(|status| status.links_up == others) && cluster.nodes.iter().all(is_up)
}

fn set_disk(cluster: &Cluster, at: usize, latency: Latency) {
    cluster.nodes[at].disk.set_completing(Completing::Timed(latency));
}

/// Of all files.
fn bytes_of(image: &DiskImage) -> u64 {
    image.paths().iter().filter_map(|path| image.read(path)).map(|bytes| bytes.len() as u64).sum()
}

fn light_fuse(cluster: &mut Cluster, at: usize, steps: u64) {
    cluster.nodes[at].disk.crash_after(steps);
    cluster.nodes[at].fused = true;
}
