//! One seed, two worlds. One log alone (`storage/`); then a cluster: it is formed, things go wrong for a while, everything
//! is repaired, and then it has to be well again: one leader a group, equal machines, new commands done, every question
//! answered.

use std::panic::{AssertUnwindSafe, catch_unwind};

use coracle::breaks::Breaks;
use coracle::{GroupStatus, Member, Membership};

use crate::churn::Churn;
use crate::cluster::Cluster;
use crate::faults::Faults;
use crate::node::Node;
use crate::oracle::Violation;
use crate::panics;
use crate::plan::Plan;
use crate::storage::Yard;
use crate::tally::Tally;
use crate::workload::Workload;

/// A healthy cluster is well again after so long: links are dialled again within 1.5 s, handshakes given up after 2 s,
/// elections take less than 3 s each, and commands are answered within 5 s.
const HEAL_US: u64 = 60_000_000;
/// What was lost on the wire in the last moment is noticed after so long: with the next beat.
const NOTICE_US: u64 = 2_000_000;
/// For so long nothing happens in the end.
const CALM_US: u64 = 2_000_000;
/// How often it is looked whether it is.
const LOOK_US: u64 = 50_000;

/// Which of a seed's worlds are run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Worlds {
    /// The log alone, then the cluster if nothing broke.
    #[default]
    Both,
    /// The log alone.
    Storage,
    /// The cluster.
    Cluster,
}

/// What became of one seed.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Which seed.
    pub seed: u64,
    /// The invariant that broke, if one did.
    pub violation: Option<Violation>,
    /// What happened, counted.
    pub tally: Tally,
    /// Simulated time of the log alone.
    pub storage_us: u64,
    /// Simulated time of the cluster.
    pub simulated_us: u64,
    /// Commands proposed to the cluster.
    pub commands: u64,
    /// Faults that the cluster saw.
    pub faults: u64,
    /// Its processes that ended by kill, power loss or disk error.
    pub crashes: u64,
}

/// Runs one seed.
pub fn run_seed(seed: u64, worlds: Worlds, breaks: Breaks) -> Verdict {
    let mut verdict = Verdict { seed, ..Verdict::default() };
    if worlds != Worlds::Cluster {
        let mut yard = Yard::new(seed);
        verdict.violation = told(|| yard.go(breaks));
        verdict.storage_us = yard.now_us();
        verdict.tally.add(yard.tally);
    }
    if worlds != Worlds::Storage && verdict.violation.is_none() {
        let mut run = Run::new(seed, breaks);
        verdict.violation = told(|| run.go());
        run.end(&mut verdict);
    }
    verdict
}

/// What broke; an assertion that fails is an invariant, too.
fn told(run: impl FnOnce() -> Result<(), Violation>) -> Option<Violation> {
    match panics::told(|| catch_unwind(AssertUnwindSafe(run))) {
        (Ok(result), _) => result.err(),
        (Err(_), message) => Some(Violation { invariant: "assertions hold", detail: message }),
    }
}

struct Run {
    cluster: Cluster,
    workload: Workload,
    churn: Churn,
    faults: Faults,
}

impl Run {
    fn new(seed: u64, breaks: Breaks) -> Self {
        let plan = Plan::draw(seed);
        let (workload, churn, faults) = (Workload::new(&plan), Churn::new(&plan), Faults::new(&plan));
        Self { cluster: Cluster::new(plan, breaks), workload, churn, faults }
    }

    fn end(mut self, verdict: &mut Verdict) {
        self.count_small_faults();
        (0..self.cluster.nodes.len()).for_each(|at| self.cluster.count_log_work(at));
        let cluster = self.cluster;
        verdict.simulated_us = cluster.now_us();
        verdict.commands = cluster.oracle.proposed();
        verdict.faults = cluster.tally.faults.values().sum();
        verdict.crashes = cluster.crashes;
        verdict.tally.add(cluster.tally);
    }

    fn go(&mut self) -> Result<(), Violation> {
        tracing::debug!(plan = ?self.cluster.plan, "begins");
        self.cluster.network.set_rates(self.cluster.plan.weather.rates);
        let storm_us = self.cluster.plan.storm_us;
        while self.step(storm_us)? {
            self.faults.act(&mut self.cluster)?;
            self.workload.act(&mut self.cluster);
            self.churn.act(&mut self.cluster);
        }
        self.churn.rest();
        self.faults.heal(&mut self.cluster)?;
        let notice_us = self.cluster.now_us() + NOTICE_US;
        while self.step(notice_us)? {}
        self.recover("after the faults every node and group is well again")?;
        self.probe()
    }

    /// On to the next moment at which something happens. `false` when it is `until_us`.
    fn step(&mut self, until_us: u64) -> Result<bool, Violation> {
        let people_us = self.workload_us(until_us).min(self.churn.next_us());
        let next_us = self.cluster.next_us().min(self.faults.next_us()).min(people_us);
        let now_us = next_us.max(self.cluster.now_us());
        self.cluster.advance(now_us.min(until_us))?;
        Ok(now_us < until_us)
    }

    /// Clients rest when the storm is over.
    fn workload_us(&self, until_us: u64) -> u64 {
        if until_us > self.cluster.plan.storm_us { u64::MAX } else { self.workload.next_us() }
    }

    // ---- afterwards -----------------------------------------------------------------------------------------------

    fn recover(&mut self, invariant: &'static str) -> Result<(), Violation> {
        let give_up_us = self.cluster.now_us() + HEAL_US;
        loop {
            let until_us = self.cluster.now_us() + LOOK_US;
            while self.step(until_us)? {}
            let Some(detail) = self.ails() else { return Ok(()) };
            if self.cluster.now_us() >= give_up_us {
                return Err(Violation { invariant, detail });
            }
        }
    }

    /// What is not well yet.
    fn ails(&self) -> Option<String> {
        let cluster = &self.cluster;
        for node in &cluster.nodes {
            let Some(process) = &node.process else { return Some(format!("node {} is down", node.id)) };
            if !process.sim.is_running() {
                return Some(format!("node {} waits for its cluster", node.id));
            }
            // A write that began in the storm may take its time, and whatever follows it waits.
            if node.disk.next_event_us().is_some_and(|at| at > cluster.now_us() + LOOK_US) {
                return Some(format!("the disk of node {} is busy", node.id));
            }
            if let Some(one) = process.waiting.first() {
                return Some(format!("node {} has not answered {:?}", node.id, one.asked));
            }
            if let Some(one) = process.readings.first() {
                return Some(format!("node {} has not read of group {}", node.id, one.group));
            }
            if let Some(id) = process.batched.first() {
                return Some(format!("node {} has not answered command {id} of a batch", node.id));
            }
        }
        (0..cluster.plan.groups as usize).find_map(|group| self.group_ails(group))
    }

    fn group_ails(&self, group: usize) -> Option<String> {
        let cluster = &self.cluster;
        let all: Option<Vec<&GroupStatus>> =
            (0..cluster.nodes.len()).map(|at| cluster.status(at, group)).collect();
        let Some(all) = all else { return Some(format!("group {group} is not started everywhere")) };
        let members = cluster.members_of(group);
        let is_passing = |one: &Member| matches!(one.membership(), Membership::Promotable { .. });
        let is_settled = !members.is_joint() && !members.iter().any(is_passing);
        let inside = || members.iter().map(|member| all[member.id.0 as usize - 1]);
        let outside = cluster.nodes.iter().zip(&all).filter(|(node, _)| !members.contains(node.id));
        let agree = |one: &&GroupStatus| {
            inside().next().is_some_and(|first| {
                (one.term, one.leader, one.last, one.applied, one.digest)
                    == (first.term, first.leader, first.last, first.applied, first.digest)
                    && (one.members_index, &one.members) == (first.members_index, &first.members)
            })
        };
        // Who is out hears of it from the members that it asks for their votes; if it knows one of them.
        let knows = |(node, one): (&Node, &&GroupStatus)| {
            !one.members.is_voter(node.id) || one.members.iter().all(|other| !members.contains(other.id))
        };
        let is_whole = |one: &GroupStatus| {
            one.leader.is_some()
                && one.applied == one.last
                && one.applied >= cluster.oracle.last_applied(group)
        };
        let well = inside().all(|one| agree(&one) && is_whole(one)) && !members.is_empty();
        if well && is_settled && outside.clone().all(knows) {
            return None;
        }
        let overview = |node: &Node| node.process.as_ref()?.sim.overview(all[0].group);
        let details: Vec<_> = cluster.nodes.iter().map(overview).collect();
        Some(format!("group {group} has not come together: {all:?}; {details:?}"))
    }

    /// Every group takes a command through every member, and answers a query. With everything repaired a refusal would be
    /// a violation, too: nobody has a reason for one, unless a write that was about to fail has failed just now. Then
    /// nothing happens for a while, so leaders lead on, whoever may be out and not know it.
    fn probe(&mut self) -> Result<(), Violation> {
        loop {
            let (from, crashes) = (self.cluster.oracle.proposed(), self.cluster.crashes);
            for group in 0..self.cluster.plan.groups as usize {
                for member in self.cluster.members_of(group).iter() {
                    let at = member.id.0 as usize - 1;
                    self.workload.propose(&mut self.cluster, at, group);
                    self.cluster.query(at, group);
                    self.cluster.read_live(at, group);
                }
            }
            self.recover("after the last commands every node and group is well again")?;
            let refused = self.cluster.oracle.not_done_from(from);
            let disturbed = self.disturbed()?;
            if self.cluster.crashes > crashes {
                continue;
            }
            if refused.is_some() {
                let detail = format!("a healthy cluster answered: {refused:?}");
                return Err(Violation { invariant: "new commands are done", detail });
            }
            if let Some(detail) = disturbed {
                return Err(Violation { invariant: "nobody disturbs a leader", detail });
            }
            return (0..self.cluster.plan.groups as usize)
                .try_for_each(|group| self.cluster.oracle.members(group).check_told(group));
        }
    }

    /// A group that changed its leader or its term while nothing happened.
    fn disturbed(&mut self) -> Result<Option<String>, Violation> {
        let leaders = |cluster: &Cluster| -> Vec<_> {
            let of = |group| {
                cluster.leader_of(group).map(|at| (at, cluster.status(at, group).map(|one| one.term)))
            };
            (0..cluster.plan.groups as usize).map(of).collect()
        };
        let before = leaders(&self.cluster);
        let until_us = self.cluster.now_us() + CALM_US;
        while self.step(until_us)? {}
        let after = leaders(&self.cluster);
        Ok((before != after).then(|| format!("leaders and terms were {before:?} and are {after:?}")))
    }

    /// The faults that network and disks have counted themselves.
    fn count_small_faults(&mut self) {
        let cluster = &mut self.cluster;
        for (kind, count) in cluster.network.fault_counts() {
            if ["drop", "duplicate", "reorder", "corrupt", "split", "reset"].contains(&kind) && count > 0 {
                *cluster.tally.faults.entry(kind).or_default() += count;
            }
        }
        for node in &cluster.nodes {
            if let Some(count) = node.disk.fault_counts().get("stall") {
                *cluster.tally.faults.entry("disk_stall").or_default() += count;
            }
        }
    }
}
