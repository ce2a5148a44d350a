//! Members come and go: what operators ask of the groups of one run, however wrong the moment is. Some of it makes sense,
//! some of it is refused.
//!
//! Nothing here looks at which bug is planted.

use coracle::{Change, Membership, NodeId};
use coracle_base::checksum::mix64;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::cluster::Cluster;
use crate::plan::{self, Operator, Plan};

const OPERATOR: u64 = 7;

/// Something that an operator asks of a group.
#[derive(Debug, Clone)]
pub(crate) enum Wish {
    /// Other members, also without a majority that could be reached.
    Change { changes: Vec<Change>, force: bool },
    /// Another leader: that node, or any.
    HandOver(Option<NodeId>),
}

/// The operators of one run.
pub(crate) struct Churn {
    rng: SmallRng,
    next_us: u64,
}

impl Churn {
    pub(crate) fn new(plan: &Plan) -> Self {
        let next_us = if plan.churn.is_some() { 0 } else { u64::MAX };
        Self { rng: SmallRng::seed_from_u64(mix64(plan.seed, 0xc4a9)), next_us }
    }

    /// When somebody asks for something.
    pub(crate) fn next_us(&self) -> u64 {
        self.next_us
    }

    /// Nobody asks for anything any more.
    pub(crate) fn rest(&mut self) {
        self.next_us = u64::MAX;
    }

    /// A wish, if its time has come.
    pub(crate) fn act(&mut self, cluster: &mut Cluster) {
        let now_us = cluster.now_us();
        self.ask_isolated(cluster);
        let Some(churn) = cluster.plan.churn.as_ref().filter(|_| self.next_us <= now_us) else { return };
        let (low, high) = churn.gap_us;
        self.next_us = now_us + self.rng.random_range(low..=high);
        let asked = *churn.asked.choose(&mut self.rng).expect("a plan has at least one");
        let force = self.rng.random_ratio(churn.force_percent, 100);
        let group = self.rng.random_range(0..cluster.plan.groups) as usize;
        let Some(at) = self.whom(cluster, group) else { return };
        cluster.tally.event(&[OPERATOR, now_us, asked as u64, at as u64, group as u64]);
        match asked {
            Operator::Change => {
                let changes = self.changes(cluster, group);
                cluster.wish(at, group, Wish::Change { changes, force });
            }
            Operator::HandOver if !cluster.hands_over(group) => {
                let to = self.any_node(cluster);
                cluster.wish(at, group, Wish::HandOver(self.rng.random_ratio(2, 3).then_some(to)));
            }
            Operator::HandOver => {}
            Operator::Campaign => cluster.campaign(at, group),
            Operator::Drain => cluster.drain(at),
        }
    }

    /// A leader that is cut off, and does not know it yet, takes up a change that comes to nothing.
    fn ask_isolated(&mut self, cluster: &mut Cluster) {
        for at in std::mem::take(&mut cluster.isolated) {
            let mut led =
                (0..cluster.plan.groups as usize).filter(|group| cluster.leader_of(*group) == Some(at));
            let Some(group) = led.next().filter(|_| cluster.plan.churn.is_some()) else { continue };
            if self.next_us < u64::MAX && self.rng.random_ratio(2, 3) {
                let changes = self.changes(cluster, group);
                cluster.wish(at, group, Wish::Change { changes, force: false });
            }
        }
    }

    /// The leader, or any node that is up.
    fn whom(&mut self, cluster: &Cluster, group: usize) -> Option<usize> {
        let leader = cluster.leader_of(group).filter(|_| self.rng.random_ratio(1, 2));
        let up = (0..cluster.nodes.len()).filter(|at| cluster.nodes[*at].process.is_some());
        leader.or_else(|| up.collect::<Vec<_>>().choose(&mut self.rng).copied())
    }

    fn any_node(&mut self, cluster: &Cluster) -> NodeId {
        NodeId(self.rng.random_range(1..=cluster.plan.nodes))
    }

    /// Changes of the members as the leader sees them.
    fn changes(&mut self, cluster: &Cluster, group: usize) -> Vec<Change> {
        let members = cluster.members_of(group);
        let all = (1..=cluster.plan.nodes).map(NodeId);
        let (inside, outside): (Vec<_>, Vec<_>) = all.clone().partition(|node| members.contains(*node));
        let is_voter =
            |node: &NodeId| members.get(*node).is_some_and(|member| member.membership() == Membership::Voter);
        let few = inside.iter().filter(|node| is_voter(node)).count() < 3;
        let comes = outside.choose(&mut self.rng).copied();
        let goes = inside.choose(&mut self.rng).copied();
        let kind = self.rng.random_range(0..if few { 6 } else { 12 });
        match (kind, comes, goes) {
            (0..2, Some(node), _) => vec![Change::Promotable(node)],
            (2, Some(node), _) => vec![Change::Voter(node)],
            (3, Some(node), _) => vec![Change::Learner(node)],
            (4, Some(node), Some(old)) => vec![Change::Voter(node), Change::Remove(old)],
            (5, ..) => self.other_set(all, &inside, is_voter),
            (6..9, _, Some(node)) => vec![Change::Remove(node)],
            (9, _, Some(node)) => vec![Change::Learner(node)],
            _ => self.whatever(cluster),
        }
    }

    /// Another set of voters at once, whoever they were.
    fn other_set(
        &mut self,
        all: impl Iterator<Item = NodeId>,
        inside: &[NodeId],
        is_voter: impl Fn(&NodeId) -> bool,
    ) -> Vec<Change> {
        let change = |node: NodeId| {
            let stays = self.rng.random_ratio(3, 5);
            match (stays, inside.contains(&node)) {
                (true, _) if !is_voter(&node) => Some(Change::Voter(node)),
                (false, true) => Some(Change::Remove(node)),
                _ => None,
            }
        };
        all.filter_map(change).collect()
    }

    /// A few changes that make sense or not.
    fn whatever(&mut self, cluster: &Cluster) -> Vec<Change> {
        let count = plan::pick(&mut self.rng, &[1, 1, 1, 2, 3]);
        let one = |_| {
            let node = self.any_node(cluster);
            match self.rng.random_range(0..8) {
                0..3 => Change::Voter(node),
                3 => Change::Learner(node),
                4 => Change::Promotable(node),
                _ => Change::Remove(node),
            }
        };
        (0..count).map(one).collect()
    }
}
