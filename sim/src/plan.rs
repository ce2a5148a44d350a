//! What a seed draws before anything happens: the cluster, its settings, the load, and which faults there will be, how
//! often. Each seed leaves most faults out and stresses a few (swarm testing): a fault that is always there hides what
//! only its absence would show.
//!
//! Reading order: this file, `plan/fault.rs`, `plan/swarm.rs` (what only some seeds have), `plan/trim.rs` (what is left out when
//! a failure is looked into).
//!
//! Invariant: a plan follows from its seed and its trim alone.

mod fault;
mod swarm;
mod trim;

use coracle::NodeId;
use coracle_base::checksum::mix64;
use coracle_io::fake::{CrashPolicy, Latency, NetOptions, NetRates};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

pub(crate) use self::fault::Fault;
pub(crate) use self::trim::UNCOUNTED;
pub use self::trim::{Numbers, Trim};
use crate::machine::Habits;

/// How nodes are set up.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) wal_bytes: u64,
    /// Entries of a file of the log, at most; 0 for as many as it holds.
    pub(crate) wal_entries: u64,
    pub(crate) cache_bytes: usize,
    pub(crate) snapshot_bytes_per_s: u64,
    pub(crate) habits: Habits,
    pub(crate) min_snapshot_interval: u64,
    pub(crate) min_checkpoint_interval: u64,
    pub(crate) max_checkpoints: usize,
    pub(crate) beat_us: u64,
    pub(crate) election_us: u64,
    pub(crate) command_timeout_us: u64,
    /// A write may take so long before leaders hand over; the longest election timeout, if that is more.
    pub(crate) disk_stall_us: u64,
    /// A turn takes so long.
    pub(crate) turn_us: (u64, u64),
    /// A group is started at most so long after its node.
    pub(crate) late_start_us: u64,
}

/// What clients do.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// Commands in all, about.
    pub(crate) commands: u64,
    /// Time between two bursts of them, on average.
    pub(crate) gap_us: u64,
    /// Commands proposed at once, at most.
    pub(crate) burst: u64,
    /// Of 100 bursts, so many come with queries.
    pub(crate) queries_percent: u32,
    /// Bytes of padding of a command, at most.
    pub(crate) padding: usize,
    /// Clients ask every node, not only one that leads.
    pub(crate) any_node: bool,
    /// Clients whose histories are checked.
    pub(crate) sessions: usize,
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub(crate) struct Weather {
    /// Faults that happen, each as often as it is listed.
    pub(crate) faults: Vec<Fault>,
    /// Time between two of them.
    pub(crate) gap_us: (u64, u64),
    /// How long one lasts.
    pub(crate) lasting_us: (u64, u64),
    /// How long a node is down.
    pub(crate) down_us: (u64, u64),
    /// One change of leader in so many is followed at once by a fault; 0 for none.
    pub(crate) ambush_one_in: u32,
    /// At most so long after it.
    pub(crate) ambush_us: u64,
    /// One log in so many that was cut while it was written and then confirmed is put to the test by a power loss; 0 for
    /// none.
    pub(crate) doubt_one_in: u32,
    /// One restart in so many meets a power loss before it is done; 0 for none.
    pub(crate) fuse_at_open_one_in: u32,
    /// Trouble while the cluster is being formed.
    pub(crate) early: bool,
    pub(crate) rates: NetRates,
    pub(crate) crash: CrashPolicy,
}

/// What operators ask of groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    /// Other members.
    Change,
    /// Another leader.
    HandOver,
    /// A node is to campaign, though there may be a leader.
    Campaign,
    /// A node is to lead no group any more.
    Drain,
}

/// Members that come and go.
#[derive(Debug, Clone)]
pub(crate) struct Churn {
    /// Who makes each group.
    pub(crate) founders: Vec<Vec<NodeId>>,
    /// What is asked, each as often as it is listed.
    pub(crate) asked: Vec<Operator>,
    /// Time between two wishes.
    pub(crate) gap_us: (u64, u64),
    /// Of 100 changes, so many are wanted even if no majority of the new members can be reached.
    pub(crate) force_percent: u32,
}

/// Everything that a seed decides in advance.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) nodes: u64,
    pub(crate) groups: u64,
    /// Until then things go wrong; then everything is repaired.
    pub(crate) storm_us: u64,
    pub(crate) settings: Settings,
    pub(crate) net: NetOptions,
    pub(crate) disk: Latency,
    pub(crate) load: Load,
    pub(crate) weather: Weather,
    pub(crate) churn: Option<Churn>,
    /// Clients make and delete named groups, so often on average.
    pub(crate) names_gap_us: Option<u64>,
    pub(crate) harmed: Harmed,
    /// The rate of each node's clock, in millionths.
    pub(crate) clock_ppm: Vec<u64>,
    /// What is left out of all this.
    pub(crate) trim: Trim,
}

/// Whose disks lose or change what was durable, which no disk should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Harmed {
    Nobody,
    /// One node of a cluster that can do without it: it heals, or stands still, and the others go on.
    One(usize),
    /// Any: more than a cluster can survive. It may stand still then, and must not lie.
    Anybody,
}

impl Plan {
    /// How long a node takes to send every group's snapshot to every other, as fast as it may; twice, for a newer one may
    /// take the place of the first.
    pub(crate) fn sending_us(&self) -> u64 {
        let snapshots = 2 * self.nodes * self.groups;
        snapshots * self.settings.habits.padding as u64 * 1_000_000 / self.settings.snapshot_bytes_per_s
    }

    /// The plan of `seed`, without what `trim` leaves out.
    pub(crate) fn draw(seed: u64, trim: &Trim) -> Self {
        let mut plan = Self::of_changing_members(seed);
        plan.widen(&mut SmallRng::seed_from_u64(mix64(seed, 0x5a41)));
        plan.have_names(&mut SmallRng::seed_from_u64(mix64(seed, 0x4a3e5)), trim);
        // A burst is half of the largest on average.
        let bursts = plan.load.commands / plan.load.burst.div_ceil(2);
        plan.load.gap_us = plan.storm_us / bursts.max(1);
        plan.cut(trim);
        plan
    }

    fn of_changing_members(seed: u64) -> Self {
        let mut plan = Self::of_fixed_members(seed);
        let own = &mut SmallRng::seed_from_u64(mix64(seed, 0xc4a2));
        if own.random_ratio(1, 2) {
            plan.nodes = pick(own, &[2, 3, 3, 4, 4, 5, 5, 6, 7]);
            plan.groups = plan.groups.min(pick(own, &[1, 2, 3, 4]));
            plan.churn = Some(Churn::draw(plan.nodes, plan.groups, own));
        }
        if own.random_ratio(1, 6) {
            plan.load_heavily(own);
        }
        plan
    }

    /// Of what is on its way to a member, not all fits into one message, and much of it is not confirmed when a link breaks.
    fn load_heavily(&mut self, own: &mut SmallRng) {
        self.load.padding = pick(own, &[8_000, 16_000]);
        self.load.burst = 256;
        self.disk.write_us = pick(own, &[(2_000, 20_000), (10_000, 150_000)]);
        self.weather.rates.reset = pick(own, &[0, 100, 300]);
        self.weather.faults.extend([Fault::Reset; 3]);
        if own.random_ratio(1, 2) {
            // Nodes so far apart that what is on its way is asked after before it can be answered.
            self.net.latency_us = (240_000, 300_000);
            self.net.window_bytes = 4 << 20;
            (self.settings.beat_us, self.settings.election_us) = (200_000, 1_200_000);
            self.settings.command_timeout_us = 5_000_000;
            self.weather.gap_us = (500_000, 5_000_000);
        }
    }

    fn of_fixed_members(seed: u64) -> Self {
        let rng = &mut SmallRng::seed_from_u64(mix64(seed, 0x91a7));
        let storm_us = rng.random_range(60_000_000..90_000_000);
        Self {
            seed,
            nodes: pick(rng, &[1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 5, 5, 5]),
            groups: pick(rng, &[1, 1, 2, 2, 3, 4, 6, 8]),
            storm_us,
            settings: Settings::draw(seed, rng),
            net: NetOptions {
                latency_us: pick(rng, &[(20, 60), (20, 60), (50, 1_000), (500, 5_000), (200, 30_000)]),
                window_bytes: pick(rng, &[8 << 10, 64 << 10, 4 << 20]),
                timeout_us: pick(rng, &[500_000, 2_000_000, 10_000_000]),
            },
            disk: draw_disk(rng),
            load: Load {
                commands: rng.random_range(2_200..4_500),
                gap_us: 0,
                burst: pick(rng, &[1, 4, 16, 64, 256]),
                queries_percent: pick(rng, &[0, 20, 50, 100]),
                padding: pick(rng, &[0, 16, 100, 400]),
                any_node: rng.random_ratio(2, 3),
                sessions: 0,
            },
            weather: Weather::draw(rng),
            churn: None,
            names_gap_us: None,
            harmed: Harmed::Nobody,
            clock_ppm: Vec::new(),
            trim: Trim::default(),
        }
    }

    /// Who makes a group: everybody, unless members come and go.
    pub(crate) fn founders(&self, group: usize) -> Vec<NodeId> {
        let all = || (1..=self.nodes).map(NodeId).collect();
        self.churn.as_ref().map_or_else(all, |churn| churn.founders[group].clone())
    }
}

impl Churn {
    fn draw(nodes: u64, groups: u64, own: &mut SmallRng) -> Self {
        let gap_us = pick(own, &[200_000, 1_000_000, 1_000_000, 4_000_000]);
        let mut founders = |_| {
            let count = pick(own, &[1, 2, 3, 3, 3, 5]);
            let mut nodes: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
            while nodes.len() > count {
                nodes.remove(own.random_range(0..nodes.len()));
            }
            nodes
        };
        Self {
            founders: (0..groups).map(&mut founders).collect(),
            asked: [
                (Operator::Change, pick(own, &[4, 8, 8])),
                (Operator::HandOver, pick(own, &[0, 1, 4])),
                (Operator::Campaign, pick(own, &[0, 1])),
                (Operator::Drain, pick(own, &[0, 0, 1])),
            ]
            .into_iter()
            .flat_map(|(asked, weight)| std::iter::repeat_n(asked, weight))
            .collect(),
            gap_us: (gap_us / 10, gap_us),
            force_percent: pick(own, &[0, 0, 10]),
        }
    }
}

impl Settings {
    fn draw(seed: u64, rng: &mut SmallRng) -> Self {
        let own = &mut SmallRng::seed_from_u64(mix64(seed, 0x5a9));
        let beat_us = pick(rng, &[100_000, 100_000, 100_000, 50_000, 200_000]);
        Self {
            wal_bytes: pick(rng, &[256 << 10, 512 << 10, 1 << 20, 2 << 20]),
            wal_entries: 0,
            cache_bytes: 128 << 20,
            snapshot_bytes_per_s: 128 << 20,
            habits: Habits::draw(
                pick(rng, &[0, 20, 50, 100, 300, 1_000]),
                pick(rng, &[0, 0, 100, 5_000, 40_000]),
                own,
            ),
            min_snapshot_interval: pick(own, &[1, 1, 50, 400, 4096]),
            min_checkpoint_interval: pick(own, &[1, 100]),
            max_checkpoints: pick(own, &[1, 2, 10]),
            beat_us,
            election_us: beat_us * rng.random_range(3..=6),
            command_timeout_us: pick(rng, &[500_000, 2_000_000, 5_000_000]),
            turn_us: pick(rng, &[(5, 20), (20, 100), (50, 500)]),
            late_start_us: pick(rng, &[0, 0, 0, 5_000, 500_000]),
            disk_stall_us: pick(own, &[1, 1, 2_000_000, 0]),
        }
    }
}

impl Habits {
    /// Some seeds have snapshots too large for the log: of one chunk or several. The largest are made less often.
    fn draw(release_every: u64, padding: usize, own: &mut SmallRng) -> Self {
        let sizes: &[usize] = match release_every {
            0..300 => &[70_000, 300_000, 450_000],
            _ => &[70_000, 450_000, 900_000, 1_500_000],
        };
        let (small, large) = (padding, pick(own, sizes));
        Self {
            release_every,
            checkpoint_every: pick(own, &[0, 0, 40, 300]),
            padding: if own.random_ratio(1, 3) { large } else { small },
            in_chunks: own.random_ratio(1, 2),
            live_percent: pick(own, &[0, 0, 1, 10, 30]),
        }
    }
}

impl Weather {
    fn draw(rng: &mut SmallRng) -> Self {
        let gap_us = pick(rng, &[500_000, 1_500_000, 1_500_000, 3_000_000]);
        let lasting_us = pick(rng, &[50_000, 500_000, 2_000_000, 5_000_000]);
        Self {
            faults: draw_faults(rng),
            gap_us: (gap_us / 10, gap_us),
            lasting_us: (lasting_us / 20, lasting_us),
            down_us: pick(rng, &[(1_000, 20_000), (1_000, 500_000), (10_000, 3_000_000)]),
            ambush_one_in: pick(rng, &[0, 0, 2, 6]),
            ambush_us: pick(rng, &[500, 5_000, 50_000, 500_000]),
            doubt_one_in: pick(rng, &[0, 1, 2]),
            fuse_at_open_one_in: pick(rng, &[0, 0, 3, 10]),
            early: rng.random_ratio(1, 3),
            rates: NetRates {
                drop: rarely(rng),
                duplicate: rarely(rng),
                reorder: rarely(rng),
                corrupt: rarely(rng),
                split: rarely(rng),
                reset: rarely(rng),
            },
            crash: pick(
                rng,
                &[
                    CrashPolicy::default(),
                    CrashPolicy::default(),
                    CrashPolicy::LOSE_ALL,
                    CrashPolicy { kept_percent: 5, lost_percent: 5, garbage: 0 },
                    CrashPolicy { kept_percent: 60, lost_percent: 0, garbage: 8 },
                ],
            ),
        }
    }
}

/// Half of the faults, some of them often. Nodes crash in nearly every run: that is what the log is for.
fn draw_faults(rng: &mut SmallRng) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (fault, _) in &Fault::ALL[..Fault::COMMON] {
        if rng.random_ratio(1, 2) {
            let weight = pick(rng, &[1, 1, 2, 4]);
            faults.extend(std::iter::repeat_n(*fault, weight));
        }
    }
    if faults.is_empty() || rng.random_ratio(4, 5) {
        faults.push(Fault::PowerLoss);
    }
    faults
}

/// A disk as fast as a good one, or as slow as it takes to have many writes under way when something happens.
fn draw_disk(rng: &mut SmallRng) -> Latency {
    let write_us = pick(rng, &[(75, 150), (75, 150), (200, 2_000), (2_000, 20_000), (10_000, 150_000)]);
    let (stall_one_in, stall_us) = pick(rng, &[(0, 0), (0, 0), (50, 200_000), (500, 3_000_000)]);
    Latency { write_us, stall_one_in, stall_us, ..Latency::default() }
}

/// A rate of chunks that is zero for most seeds.
fn rarely(rng: &mut SmallRng) -> u32 {
    pick(rng, &[0, 0, 0, 0, 100, 1_000, 5_000])
}

/// One of `choices`, which are not empty.
pub(crate) fn pick<T: Clone>(rng: &mut SmallRng, choices: &[T]) -> T {
    choices.choose(rng).expect("the lists above are not empty").clone()
}
