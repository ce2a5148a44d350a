//! Clients of named groups: a few names, so that they are taken, free and taken again all the time.
//!
//! Nothing here looks at which bug is planted.

use coracle::{Change, NodeId};
use coracle_base::checksum::mix64;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::oracle::NAMES;
use crate::cluster::Cluster;
use crate::plan::{Harmed, Plan};

/// The clients of one run.
pub(crate) struct NameClients {
    rng: SmallRng,
    next_us: u64,
    gap_us: u64,
}

impl NameClients {
    pub(crate) fn new(plan: &Plan) -> Self {
        let next_us = if plan.names_gap_us.is_some() { 0 } else { u64::MAX };
        let rng = SmallRng::seed_from_u64(mix64(plan.seed, 0x4a3e));
        Self { rng, next_us, gap_us: plan.names_gap_us.unwrap_or_default() }
    }

    /// When somebody wishes for something.
    pub(crate) fn next_us(&self) -> u64 {
        self.next_us
    }

    /// Nobody wishes for anything any more.
    pub(crate) fn rest(&mut self) {
        self.next_us = u64::MAX;
    }

    /// A wish, if its time has come.
    pub(crate) fn act(&mut self, cluster: &mut Cluster) {
        let now_us = cluster.now_us();
        if self.next_us > now_us {
            return;
        }
        self.next_us = now_us + self.rng.random_range(1..=2 * self.gap_us);
        let up = (0..cluster.nodes.len()).filter(|at| cluster.nodes[*at].process.is_some());
        let Some(at) = up.collect::<Vec<_>>().choose(&mut self.rng).copied() else { return };
        let living = cluster.names.living();
        let name = self.rng.random_range(0..NAMES.len());
        match (self.rng.random_range(0..16), living.choose(&mut self.rng).copied()) {
            (0..4, _) | (_, None) => {
                let members = self.founders(&cluster.plan);
                cluster.create_named(at, name, &members);
            }
            (4..6, Some((number, _))) => cluster.delete_named(at, number),
            (6, _) => cluster.delete_name(at, name),
            (7, _) => cluster.look_up_name(at, name),
            (8..13, Some((number, uid))) => {
                (0..self.rng.random_range(1..4)).for_each(|_| cluster.use_named(at, number, uid));
            }
            (13, Some((_, uid))) if cluster.plan.churn.is_some() => {
                let node = NodeId(self.rng.random_range(1..=cluster.plan.nodes));
                let change = match self.rng.random_range(0..5) {
                    0 => Change::Voter(node),
                    1 => Change::Learner(node),
                    2 => Change::Promotable(node),
                    _ => Change::Remove(node),
                };
                cluster.change_named(at, uid, change);
            }
            (_, Some((number, uid))) => cluster.ask_named(at, number, uid),
        }
    }

    /// Who is to make a group: all, or some. With a node whose disk is harmed, as many as can do without it.
    fn founders(&mut self, plan: &Plan) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = (1..=plan.nodes).map(NodeId).collect();
        if plan.harmed != Harmed::Nobody || self.rng.random_ratio(1, 2) {
            return Vec::new();
        }
        let count = self.rng.random_range(1..=nodes.len());
        while nodes.len() > count {
            nodes.remove(self.rng.random_range(0..nodes.len()));
        }
        nodes
    }
}
