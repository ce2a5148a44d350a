//! One seed, two worlds. One log alone (`storage/`); then a cluster: it is formed, things go wrong for a while, everything
//! is repaired, and then it has to be well again: one leader a group, equal machines, new commands done, every question
//! answered.

use std::panic::{AssertUnwindSafe, catch_unwind};

use coracle::breaks::Breaks;
use coracle::{GroupStatus, Member, Membership};

use crate::churn::{Churn, Wish};
use crate::clients::Clients;
use crate::cluster::Cluster;
use crate::faults::{Faults, Strike};
use crate::harm::Harm;
use crate::names::NameClients;
use crate::node::Node;
use crate::oracle::Violation;
use crate::panics;
use crate::plan::{Harmed, Plan, Trim};
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
/// For so long a cluster that was harmed too much may try to come back.
const AFTER_HARM_US: u64 = 10_000_000;
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
    /// Its nodes and groups.
    pub size: (u64, u64),
    /// What struck it.
    pub story: Vec<Strike>,
}

/// Runs one seed.
pub fn run_seed(seed: u64, worlds: Worlds, breaks: Breaks, trim: &Trim) -> Verdict {
    let mut verdict = Verdict { seed, ..Verdict::default() };
    if worlds != Worlds::Cluster {
        let mut yard = Yard::new(seed, trim);
        verdict.violation = told(|| yard.go(breaks));
        verdict.storage_us = yard.now_us();
        verdict.tally.add(yard.tally);
    }
    if worlds != Worlds::Storage && verdict.violation.is_none() {
        let mut run = Run::new(seed, breaks, trim);
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
    clients: Clients,
    names: NameClients,
    faults: Faults,
}

impl Run {
    fn new(seed: u64, breaks: Breaks, trim: &Trim) -> Self {
        let plan = Plan::draw(seed, trim);
        let (workload, churn, faults) = (Workload::new(&plan), Churn::new(&plan), Faults::new(&plan));
        let (clients, names) = (Clients::new(&plan), NameClients::new(&plan));
        Self { cluster: Cluster::new(plan, breaks), workload, churn, clients, names, faults }
    }

    fn end(mut self, verdict: &mut Verdict) {
        self.count_small_faults();
        (0..self.cluster.nodes.len()).for_each(|at| self.cluster.count_log_work(at));
        self.count_kind();
        let cluster = self.cluster;
        verdict.simulated_us = cluster.now_us();
        verdict.commands = cluster.oracle.proposed();
        verdict.faults = cluster.tally.faults.values().sum();
        verdict.crashes = cluster.crashes;
        verdict.size = (cluster.plan.nodes, cluster.plan.groups);
        verdict.story = std::mem::take(&mut self.faults.story);
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
            self.clients.act(&mut self.cluster);
            self.names.act(&mut self.cluster);
        }
        self.names.rest();
        self.churn.rest();
        self.clients.rest();
        // A disk that has lied is found out first.
        while self.faults.is_lying() {
            let until_us = self.cluster.now_us() + LOOK_US;
            while self.step(until_us)? {
                self.faults.act(&mut self.cluster)?;
            }
        }
        self.faults.heal(&mut self.cluster)?;
        let notice_us = self.cluster.now_us() + NOTICE_US;
        while self.step(notice_us)? {}
        if self.cluster.plan.harmed == Harmed::Anybody {
            // More than it can be asked to survive: it need not be well again, only right.
            let until_us = self.cluster.now_us() + AFTER_HARM_US;
            while self.step(until_us)? {}
            self.count_halts();
        } else {
            self.recover("after the faults every node and group is well again")?;
            self.probe()?;
            self.probe_names()?;
        }
        let Cluster { histories, tally, .. } = &mut self.cluster;
        histories.judge(tally)
    }

    /// On to the next moment at which something happens. `false` when it is `until_us`.
    fn step(&mut self, until_us: u64) -> Result<bool, Violation> {
        let clients_us =
            if until_us > self.cluster.plan.storm_us { u64::MAX } else { self.clients.next_us() };
        let people_us = self.workload_us(until_us).min(self.churn.next_us()).min(clients_us);
        let people_us = people_us.min(self.names.next_us());
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
        let give_up_us = self.cluster.now_us() + HEAL_US + self.cluster.plan.sending_us();
        loop {
            let until_us = self.cluster.now_us() + LOOK_US;
            while self.step(until_us)? {}
            self.relieve();
            self.cluster.relieve_named();
            let Some(detail) = self.ails().or_else(|| self.cluster.names_ail()) else { return Ok(()) };
            if self.cluster.now_us() >= give_up_us {
                return Err(Violation { invariant, detail });
            }
        }
    }

    /// An operator takes leadership from members that cannot read their own log any more.
    fn relieve(&mut self) {
        for at in 0..self.cluster.nodes.len() {
            for group in 0..self.cluster.plan.groups as usize {
                let stands_still = self.cluster.status(at, group).is_some_and(|one| one.poisoned.is_some());
                if stands_still
                    && self.cluster.leader_of(group) == Some(at)
                    && !self.cluster.hands_over(group)
                {
                    self.cluster.tally.mark("leadership_taken_by_operator");
                    self.cluster.wish(at, group, Wish::HandOver(None));
                }
            }
        }
    }

    /// What is not well yet.
    fn ails(&self) -> Option<String> {
        let cluster = &self.cluster;
        for node in &cluster.nodes {
            let Some(process) = &node.process else {
                if node.halted.is_some() {
                    continue;
                }
                return Some(format!("node {} is down", node.id));
            };
            if !process.sim.is_running() {
                if node.harm == Harm::Lost {
                    continue;
                }
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
        let mut all = Vec::new();
        for (at, node) in cluster.nodes.iter().enumerate() {
            match cluster.status(at, group) {
                // Its own disk does not give it what it needs.
                Some(status) if status.poisoned.is_some() && status.leader == Some(node.id) => {
                    return Some(format!("group {group} is led by node {}, which stands still", node.id));
                }
                Some(status) if status.poisoned.is_some() => {}
                Some(status) => all.push((node, status)),
                // It said that it cannot be had, and that somebody has to do something about it.
                None if node.harm > Harm::None => {}
                None => return Some(format!("group {group} is not started on node {}", node.id)),
            }
        }
        let suspect = |(node, status): &(&Node, &GroupStatus)| {
            node.process.as_ref().is_some_and(|process| process.sim.is_suspect(status.group))
        };
        if let Some((node, _)) = all.iter().copied().find(suspect) {
            return Some(format!("group {group} is suspect on node {}", node.id));
        }
        let members = cluster.members_of(group);
        let is_passing = |one: &Member| matches!(one.membership(), Membership::Promotable { .. });
        let is_settled = !members.is_joint() && !members.iter().any(is_passing);
        let inside = || all.iter().filter(|(node, _)| members.contains(node.id)).map(|(_, status)| *status);
        let outside = all.iter().copied().filter(|(node, _)| !members.contains(node.id));
        let agree = |one: &&GroupStatus| {
            inside().next().is_some_and(|first| {
                (one.term, one.leader, one.last, one.applied, one.digest)
                    == (first.term, first.leader, first.last, first.applied, first.digest)
                    && (one.members_index, &one.members) == (first.members_index, &first.members)
            })
        };
        // Who is out hears of it from the members that it asks for their votes; if it knows one of them.
        let knows = |(node, one): (&Node, &GroupStatus)| {
            !one.members.is_voter(node.id) || one.members.iter().all(|other| !members.contains(other.id))
        };
        let is_whole = |one: &GroupStatus| {
            // Who leads and is out is about to hand over.
            one.leader.is_some_and(|leader| members.contains(leader))
                && one.applied == one.last
                && one.applied >= cluster.oracle.last_applied(group)
        };
        let well = inside().all(|one| agree(&one) && is_whole(one)) && !members.is_empty();
        if well && is_settled && outside.clone().all(knows) {
            return None;
        }
        let overview = |(node, one): &(&Node, &GroupStatus)| node.process.as_ref()?.sim.overview(one.group);
        let details: Vec<_> = all.iter().map(overview).collect();
        let all: Vec<_> = all.iter().map(|(node, status)| (node.id, status)).collect();
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
                    if self.cluster.status(at, group).is_none_or(|one| one.poisoned.is_some()) {
                        continue; // harmed, or it would not be well
                    }
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

    /// Every name is looked up, every named group takes commands, and what is left is what ought to be.
    fn probe_names(&mut self) -> Result<(), Violation> {
        if self.cluster.plan.names_gap_us.is_none() {
            return Ok(());
        }
        loop {
            let crashes = self.cluster.crashes;
            self.cluster.names_refused();
            self.cluster.probe_names();
            self.recover("after the last commands every named group is well again")?;
            let refused = self.cluster.names_refused();
            // What ends a group is durable soon.
            let until_us = self.cluster.now_us() + CALM_US;
            while self.step(until_us)? {}
            if self.cluster.crashes > crashes {
                continue;
            }
            if let Some(detail) = refused {
                return Err(Violation { invariant: "new wishes are done", detail });
            }
            return self.cluster.judge_names();
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

    /// What kind of cluster it was, and what became of nodes whose disks were harmed.
    fn count_kind(&mut self) {
        let Cluster { plan, nodes, tally, .. } = &mut self.cluster;
        let kinds = [
            ("clusters_of_one", plan.nodes == 1),
            ("clusters_of_seven", plan.nodes == 7),
            ("clusters_with_many_groups", plan.groups >= 16),
            ("clusters_with_200_groups", plan.groups == 200),
            ("clusters_with_files_of_64_kib", plan.settings.wal_bytes == 64 << 10),
            ("clusters_harmed", plan.harmed != Harmed::Nobody),
            ("clusters_harmed_too_much", plan.harmed == Harmed::Anybody),
        ];
        kinds.into_iter().for_each(|(name, is_so)| tally.mark_many(name, u64::from(is_so)));
        for node in nodes.iter().filter(|node| node.harm > Harm::None) {
            let Some(process) = &node.process else {
                tally.mark_many("nodes_halted", u64::from(node.halted.is_some()));
                continue;
            };
            if process.sim.is_running() {
                let refused = process.views.iter().filter(|view| view.status().is_none()).count();
                tally.mark_many("groups_refused_after_damage", refused as u64);
            } else if node.harm == Harm::Lost {
                tally.mark("lost_directories_kept_out");
            }
        }
    }

    /// How many groups stand still in the end, and how many do not.
    fn count_halts(&mut self) {
        for group in 0..self.cluster.plan.groups as usize {
            let leads = self.cluster.leader_of(group).is_some();
            self.cluster.tally.mark(if leads { "harmed_groups_survived" } else { "harmed_groups_halted" });
            let mut each = (0..self.cluster.nodes.len()).filter_map(|at| self.cluster.status(at, group));
            let is_told = each.any(|status| status.data_loss.is_some());
            self.cluster.tally.mark_many("harmed_groups_data_loss", u64::from(is_told));
        }
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
