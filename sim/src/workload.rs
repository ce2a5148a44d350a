//! What clients do: bursts of commands to random groups through random nodes, and queries in between.
//!
//! Every command has an id of its own and is proposed once: what became of it is asked of the answer, never guessed by
//! trying again.

use coracle_base::checksum::mix64;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::cluster::Cluster;
use crate::machine::{Kind, encode_command};
use crate::plan::Plan;

/// The clients of one run.
pub(crate) struct Workload {
    rng: SmallRng,
    next_us: u64,
}

impl Workload {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self { rng: SmallRng::seed_from_u64(mix64(plan.seed, 0x10ad)), next_us: 0 }
    }

    /// When the next burst comes.
    pub(crate) fn next_us(&self) -> u64 {
        self.next_us
    }

    /// A burst, if its time has come.
    pub(crate) fn act(&mut self, cluster: &mut Cluster) {
        let now_us = cluster.now_us();
        if now_us < self.next_us {
            return;
        }
        let load = cluster.plan.load.clone();
        self.next_us = now_us + self.rng.random_range(0..=2 * load.gap_us);
        let group = self.rng.random_range(0..cluster.plan.groups) as usize;
        let Some(at) = self.choose_node(cluster, group, load.any_node) else { return };
        if self.rng.random_ratio(load.queries_percent, 100) {
            self.query(cluster, group);
        }
        if cluster.plan.settings.habits.live_percent > 0 && self.rng.random_ratio(1, 4) {
            cluster.read_live(at, group);
        }
        let burst = self.rng.random_range(1..=load.burst);
        if self.rng.random_ratio(1, 2) {
            (0..burst).for_each(|_| self.propose(cluster, at, group));
        } else {
            let commands: Vec<_> = (0..burst).map(|_| self.command(cluster)).collect();
            cluster.propose_all(at, group, &commands);
        }
        if self.rng.random_ratio(load.queries_percent, 100) {
            self.query(cluster, group);
        }
    }

    /// Proposes one command of any kind.
    pub(crate) fn propose(&mut self, cluster: &mut Cluster, at: usize, group: usize) {
        let command = self.command(cluster);
        cluster.propose(at, group, command);
    }

    /// A command, but for its id.
    fn command(&mut self, cluster: &Cluster) -> impl Fn(u64) -> Vec<u8> + use<> {
        let kind = [Kind::Append, Kind::Add, Kind::Set][self.rng.random_range(0..3)];
        let value = self.rng.random();
        let padding = self.rng.random_range(0..=cluster.plan.load.padding);
        move |id| encode_command(id, kind, value, padding)
    }

    fn query(&mut self, cluster: &mut Cluster, group: usize) {
        if let Some(at) = self.choose_node(cluster, group, true) {
            cluster.query(at, group);
        }
    }

    fn choose_node(&mut self, cluster: &Cluster, group: usize, any: bool) -> Option<usize> {
        let mut up: Vec<usize> =
            (0..cluster.nodes.len()).filter(|at| cluster.nodes[*at].process.is_some()).collect();
        // Who is no member can only let a command wait.
        if cluster.plan.churn.is_some() && self.rng.random_ratio(7, 8) {
            up.retain(|at| cluster.is_member(*at, group));
        }
        let leader = if any { None } else { cluster.leader_of(group) };
        leader.or_else(|| (!up.is_empty()).then(|| up[self.rng.random_range(0..up.len())]))
    }
}
