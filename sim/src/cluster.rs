//! The simulated world: nodes, network and time, and the loop that jumps from one moment at which something happens to
//! the next. What goes wrong (`faults.rs`) and what clients do (`workload.rs`) act on it from outside.
//!
//! Invariant: everything that happens is in the trace, and is shown to the oracle before anything else happens.

use coracle::breaks::Breaks;
use coracle::{NodeId, Outcome};
use coracle_base::checksum::mix64;
use coracle_io::fake::{Completing, FakeClock, FakeNetwork};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::node::{Asked, End, Node, Process, Waiting};
use crate::oracle::{Oracle, Recovered, Violation};
use crate::plan::Plan;
use crate::tally::Tally;
use crate::watch::Rare;

/// Events of the trace.
const TURN: u64 = 1;
const APPLIED: u64 = 2;
const ANSWER: u64 = 3;
const ENDED: u64 = 4;
const BOOT: u64 = 5;

/// One simulated cluster.
pub(crate) struct Cluster {
    pub(crate) plan: Plan,
    pub(crate) clock: FakeClock,
    pub(crate) network: FakeNetwork,
    pub(crate) nodes: Vec<Node>,
    pub(crate) oracle: Oracle,
    pub(crate) tally: Tally,
    pub(crate) queries: u64,
    pub(crate) crashes: u64,
    /// Groups that changed their leader since somebody looked.
    pub(crate) elected: Vec<usize>,
    /// Nodes that confirmed a log of which a part was cut while it was written, since somebody looked.
    pub(crate) doubtful: Vec<usize>,
    breaks: Breaks,
    rng: SmallRng,
}

impl Cluster {
    /// Empty nodes that are about to start.
    pub(crate) fn new(plan: Plan, breaks: Breaks) -> Self {
        let mut rng = SmallRng::seed_from_u64(mix64(plan.seed, 0xc1));
        let network = FakeNetwork::new(rng.random());
        network.set_options(plan.net);
        let clock = FakeClock::new();
        let node = |id| Node::new(&plan, NodeId(id), clock.another(), mix64(plan.seed, id));
        Self {
            nodes: (1..=plan.nodes).map(node).collect(),
            oracle: Oracle::new(plan.groups),
            tally: Tally::default(),
            queries: 0,
            crashes: 0,
            elected: Vec::new(),
            doubtful: Vec::new(),
            clock,
            network,
            breaks,
            rng,
            plan,
        }
    }

    /// The time.
    pub(crate) fn now_us(&self) -> u64 {
        self.clock.true_us()
    }

    /// When something happens by itself.
    pub(crate) fn next_us(&self) -> u64 {
        let node =
            |node: &Node| node.due_us(&self.network).min(node.disk.next_event_us().unwrap_or(u64::MAX));
        let nodes = self.nodes.iter().map(node).min().unwrap_or(u64::MAX);
        nodes.min(self.network.next_event_us().unwrap_or(u64::MAX))
    }

    /// Moves the time, and lets everybody who has something to do then do it.
    pub(crate) fn advance(&mut self, now_us: u64) -> Result<(), Violation> {
        self.clock.advance_to(now_us);
        self.network.advance(now_us);
        for at in 0..self.nodes.len() {
            self.nodes[at].advance_disk(now_us);
            if self.nodes[at].due_us(&self.network) <= now_us {
                match self.nodes[at].process {
                    Some(_) => self.turn(at)?,
                    None => self.boot(at)?,
                }
            }
        }
        Ok(())
    }

    // ---- processes ------------------------------------------------------------------------------------------------

    fn boot(&mut self, at: usize) -> Result<(), Violation> {
        let seed = self.rng.random();
        let late_max_us = self.plan.settings.late_start_us;
        let rng = &mut self.rng;
        let late_us = || rng.random_range(0..=late_max_us);
        let up = self.nodes[at].boot(&self.plan, &self.network, self.breaks, seed, late_us)?;
        self.tally.event(&[BOOT, self.clock.true_us(), at as u64, u64::from(up)]);
        self.tally.mark(if up { "boots" } else { "boots_interrupted" });
        if !up {
            // Only a fault stops a node while it starts: a failed disk, or one that lost power.
            let end = match self.nodes[at].disk.is_crashed() {
                true => End::PowerLoss(self.plan.weather.crash),
                false => End::Killed,
            };
            self.end(at, end)?;
        }
        Ok(())
    }

    /// Ends a process; clients that wait for it learn nothing.
    pub(crate) fn end(&mut self, at: usize, end: End) -> Result<(), Violation> {
        let (low, high) = self.plan.weather.down_us;
        let now_us = self.now_us();
        let restart_us = now_us + self.rng.random_range(low..=high);
        self.count_log_work(at);
        // It comes back to a disk that works again: recovery is long enough.
        self.nodes[at].disk.set_completing(Completing::Timed(self.plan.disk));
        let waiting = self.nodes[at].stop(&self.network, end, restart_us);
        self.crashes += 1;
        self.tally.event(&[ENDED, now_us, at as u64, restart_us]);
        tracing::debug!(now_us, node = %self.nodes[at].id, ?end, restart_us, "process ended");
        for asked in waiting {
            self.settle(asked, None)?;
        }
        Ok(())
    }

    /// What the log of a process that ends has done.
    pub(crate) fn count_log_work(&mut self, at: usize) {
        let process = self.nodes[at].process.as_ref();
        if let Some(stats) = process.and_then(|process| process.sim.wal_stats()) {
            self.tally.mark_many("log_checkpoints", stats.checkpoints);
            self.tally.mark_many("log_files_reused", stats.files_reused);
        }
        if let Some(status) = process.and_then(|process| process.sim.status()) {
            self.tally.mark_many("snapshot_files_written", status.snapshot_files);
            self.tally.mark_many("machines_restored_from_files", status.groups_restored);
            self.tally.mark_many("transfers_installed", status.transfers_installed);
            self.tally.mark_many("transfers_resumed", status.transfers_resumed);
            self.tally.mark_many("transfers_restarted", status.transfers_restarted);
            self.tally.mark_many("transfers_abandoned", status.transfers_abandoned);
            self.tally.mark_many("transfers_needless", status.transfers_needless);
        }
    }

    // ---- turns ----------------------------------------------------------------------------------------------------

    fn turn(&mut self, at: usize) -> Result<(), Violation> {
        let (low, high) = self.plan.settings.turn_us;
        let turn_us = self.rng.random_range(low..=high);
        let lives = self.nodes[at].turn(&self.plan, turn_us)?;
        self.tally.event(&[TURN, self.clock.true_us(), at as u64]);
        self.look(at)?;
        if lives {
            return Ok(());
        }
        let crashed = self.nodes[at].disk.is_crashed();
        self.tally.mark(if crashed { "stopped_by_power_loss" } else { "stopped_by_disk_error" });
        self.end(at, if crashed { End::PowerLoss(self.plan.weather.crash) } else { End::Killed })
    }

    /// Shows the oracle what a node has done: first its machines, then its groups, then its answers.
    fn look(&mut self, at: usize) -> Result<(), Violation> {
        let now_us = self.clock.true_us();
        let Node { id, process: Some(process), claims, .. } = &mut self.nodes[at] else { return Ok(()) };
        for note in process.journal.take() {
            self.tally.event(&[APPLIED, at as u64, note.hash()]);
            if let Some(group) = note.restored() {
                let runs = process.views[group.0 as usize - 1].status().is_some();
                self.tally.mark(if runs { "snapshots_installed" } else { "snapshots_recovered" });
            }
            tracing::trace!(now_us, node = %id, ?note, "machine");
            self.oracle.on_note(*id, &mut process.views, note)?;
        }
        let Process { sim, views, watches, .. } = process;
        for (group, (view, watch)) in views.iter_mut().zip(watches).enumerate() {
            let Some(status) = sim.group_status(coracle::GroupId(group as u64 + 1)) else { continue };
            let id = *id;
            match watch.look(sim, &status) {
                Some(Rare::CutInFlight) => self.tally.mark("log_cut_while_written"),
                Some(Rare::ConfirmedAfterCut) => {
                    self.tally.mark("log_confirmed_after_cut");
                    self.doubtful.push(at);
                }
                None => {}
            }
            if view.status().is_none() {
                let recovered = Recovered { status: &status, suspect: sim.is_suspect(status.group) };
                self.oracle
                    .on_recovered(id, recovered, claims[group], |index| sim.term_at(status.group, index))?;
            }
            let term = status.term;
            if self.oracle.on_status(id, view, status, || sim.entries(coracle::GroupId(group as u64 + 1)))? {
                tracing::debug!(now_us, node = %id, group, %term, "leads");
                self.tally.event(&[TURN, at as u64, group as u64, term.0]);
                self.tally.mark("elections");
                self.elected.push(group);
            }
        }
        let answered = process.waiting.extract_if(.., |one| one.answer.get().is_some());
        let mut answered: Vec<(Asked, Option<Outcome>)> =
            answered.map(|one| (one.asked, one.answer.get())).collect();
        for (id, outcome) in process.sim.answers() {
            process.batched.remove(&id);
            answered.push((Asked::Command(id), Some(outcome)));
        }
        answered.iter().try_for_each(|(asked, outcome)| self.settle(*asked, outcome.as_ref()))
    }

    /// A question has ended, or its node has.
    fn settle(&mut self, asked: Asked, outcome: Option<&Outcome>) -> Result<(), Violation> {
        let (number, index) = match outcome {
            Some(Outcome::Done(done)) => (1, done.index.0),
            Some(Outcome::NotDone(why)) => (2, why.reason as u64),
            Some(Outcome::Unknown(_)) => (3, 0),
            None => (4, 0),
        };
        self.tally.event(&[ANSWER, self.clock.true_us(), number, index]);
        self.tally.mark(mark(asked, outcome));
        tracing::trace!(now_us = self.clock.true_us(), ?asked, ?outcome, "ended");
        match (asked, outcome) {
            (Asked::Command(id), outcome) => self.oracle.on_outcome(id, outcome),
            (Asked::Query(group, floor), Some(Outcome::Done(done))) => {
                self.oracle.on_answer(group, floor, done.index, &done.reply)
            }
            (Asked::Query(..), _) => Ok(()),
        }
    }

    // ---- clients --------------------------------------------------------------------------------------------------

    /// A client proposes a command through a node that is up.
    pub(crate) fn propose(&mut self, at: usize, group: usize, command: impl FnOnce(u64) -> Vec<u8>) {
        let Some(process) = &mut self.nodes[at].process else { return };
        let id = self.oracle.next_id();
        let command = command(id);
        self.oracle.on_proposed(group, &command);
        let answer = process.sim.propose(coracle::GroupId(group as u64 + 1), &command);
        tracing::trace!(now_us = self.clock.true_us(), node = at + 1, group, id, "proposed");
        process.waiting.push(Waiting { asked: Asked::Command(id), answer });
        self.nodes[at].wake();
    }

    /// A client proposes a batch of commands through a node that is up.
    pub(crate) fn propose_all(&mut self, at: usize, group: usize, commands: &[impl Fn(u64) -> Vec<u8>]) {
        let Some(process) = &mut self.nodes[at].process else { return };
        let mut batch = Vec::with_capacity(commands.len());
        for command in commands {
            let id = self.oracle.next_id();
            let command = command(id);
            self.oracle.on_proposed(group, &command);
            process.batched.insert(id);
            batch.push((id, command));
        }
        process.sim.propose_all(coracle::GroupId(group as u64 + 1), &batch);
        self.nodes[at].wake();
    }

    /// A client asks a question through a node that is up.
    pub(crate) fn query(&mut self, at: usize, group: usize) {
        let Some(process) = &mut self.nodes[at].process else { return };
        let asked = Asked::Query(group, self.oracle.acknowledged(group));
        let answer = process.sim.query(coracle::GroupId(group as u64 + 1), &[]);
        process.waiting.push(Waiting { asked, answer });
        self.queries += 1;
        self.nodes[at].wake();
    }

    /// The node that leads a group, as far as it knows itself.
    pub(crate) fn leader_of(&self, group: usize) -> Option<usize> {
        let leads = |node: &Node| {
            let status = node.process.as_ref().and_then(|process| process.views[group].status());
            status.filter(|status| status.leader == Some(node.id)).map(|status| status.term)
        };
        let leaders = self.nodes.iter().enumerate().filter_map(|(at, node)| Some((leads(node)?, at)));
        leaders.max().map(|(_, at)| at)
    }
}

/// How an ended question is counted.
fn mark(asked: Asked, outcome: Option<&Outcome>) -> &'static str {
    use coracle::Reason;
    match (asked, outcome) {
        (Asked::Command(_), Some(Outcome::Done(_))) => "commands_done",
        (Asked::Command(_), Some(Outcome::NotDone(why))) if why.reason == Reason::Overwritten => {
            "commands_overwritten"
        }
        (Asked::Command(_), Some(Outcome::NotDone(_))) => "commands_not_done",
        (Asked::Command(_), Some(Outcome::Unknown(_))) => "commands_unknown",
        (Asked::Command(_), None) => "commands_lost_with_their_node",
        (Asked::Query(..), Some(Outcome::Done(_))) => "queries_answered",
        (Asked::Query(..), _) => "queries_not_answered",
    }
}
