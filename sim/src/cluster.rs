//! The simulated world: nodes, network and time, and the loop that jumps from one moment at which something happens to
//! the next. What goes wrong (`faults.rs`) and what clients do (`workload.rs`) act on it from outside.
//!
//! Invariant: everything that happens is in the trace, and is shown to the oracle before anything else happens.

use coracle::breaks::Breaks;
use coracle::sim::SimNode;
use coracle::{Consistency, GroupId, GroupStatus, Index, Members, NodeId, Outcome, Term};
use coracle_base::checksum::crc32c;
use coracle_base::checksum::mix64;
use coracle_io::fake::{Completing, FakeClock, FakeDisk, FakeNet, FakeNetwork};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::churn::Wish;
use crate::members::Log;
use crate::node::{Asked, End, Node, Process, Reading, Waiting};
use crate::oracle::{Entries, Oracle, Recovered, Violation};
use crate::plan::Plan;
use crate::tally::Tally;

/// Events of the trace.
const TURN: u64 = 1;
const APPLIED: u64 = 2;
const ANSWER: u64 = 3;
const ENDED: u64 = 4;
const BOOT: u64 = 5;
const READ: u64 = 8;

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
    /// Nodes that were cut off, since somebody looked.
    pub(crate) isolated: Vec<usize>,
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
            oracle: Oracle::new(&plan),
            tally: Tally::default(),
            queries: 0,
            crashes: 0,
            elected: Vec::new(),
            doubtful: Vec::new(),
            isolated: Vec::new(),
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
            self.tally.mark_many("transfers_asked_again", status.transfers_asked_again);
            self.tally.mark_many("stall_transfers", status.stall_transfers);
            self.tally.mark_many("stall_resignations", status.stall_resignations);
            self.tally.mark_many("live_entries_received", status.live_entries_received);
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
        let Node { id, process: Some(process), claims, disk, .. } = &mut self.nodes[at] else {
            return Ok(());
        };
        for note in process.journal.take() {
            self.tally.event(&[APPLIED, at as u64, note.hash()]);
            if let Some(group) = note.restored() {
                let runs = process.views[group.0 as usize - 1].status().is_some();
                self.tally.mark(if runs { "snapshots_installed" } else { "snapshots_recovered" });
            }
            tracing::trace!(now_us, node = %id, ?note, "machine");
            self.oracle.on_note(*id, &mut process.views, note)?;
        }
        let mut committed = Vec::new();
        let Process { sim, views, watches, .. } = &mut *process;
        for (group, (view, watch)) in views.iter_mut().zip(watches).enumerate() {
            let Some(status) = sim.group_status(GroupId(group as u64 + 1)) else { continue };
            let id = *id;
            if watch.look(id, sim, &status, &mut self.tally)? {
                self.doubtful.push(at);
            }
            if view.status().is_none() {
                let recovered = Recovered { status: &status, suspect: sim.is_suspect(status.group) };
                self.oracle
                    .on_recovered(id, recovered, claims[group], |index| sim.term_at(status.group, index))?;
            }
            let term = status.term;
            if view.status() != Some(&status) {
                let log = LogOf { sim, group: status.group };
                self.oracle.members(group).look(id, view.status(), &status, &log, &mut self.tally)?;
                let commit = view.status().map(|before| before.commit);
                if status.leader == Some(id) && commit.is_some_and(|commit| commit < status.commit) {
                    let before = view.status().map(|before| before.members.clone()).unwrap_or_default();
                    committed.push((group, before, status.clone()));
                }
            }
            if self.oracle.on_status(id, view, status, || sim.entries(GroupId(group as u64 + 1)))? {
                tracing::debug!(now_us, node = %id, group, %term, "leads");
                self.tally.event(&[TURN, at as u64, group as u64, term.0]);
                self.tally.mark("elections");
                self.elected.push(group);
            }
        }
        for mut reading in std::mem::take(&mut process.readings) {
            let Some(result) = reading.pending.take() else {
                process.readings.push(reading);
                continue;
            };
            // A node may have no time for it, or no group, or lose power while it reads.
            for entry in result.unwrap_or_default().into_iter().filter(|_| !disk.is_crashed()) {
                self.tally.event(&[READ, at as u64, reading.group as u64, entry.0.0]);
                self.oracle.on_read(
                    *id,
                    reading.group,
                    &process.views[reading.group],
                    entry,
                    &mut self.tally,
                )?;
            }
        }
        let answered = process.waiting.extract_if(.., |one| one.answer.get().is_some());
        let mut answered: Vec<(Asked, Option<Outcome>)> =
            answered.map(|one| (one.asked, one.answer.get())).collect();
        for (id, outcome) in process.sim.answers() {
            process.batched.remove(&id);
            answered.push((Asked::Command(id), Some(outcome)));
        }
        for (group, before, status) in committed {
            self.check_majority(at, group, &before, &status)?;
        }
        answered.iter().try_for_each(|(asked, outcome)| self.settle(*asked, outcome.as_ref()))
    }

    /// What a leader has committed in its own term is durable on a majority of its members. `before`: those of the look
    /// before, which may have been in force until just now.
    fn check_majority(
        &self,
        at: usize,
        group: usize,
        before: &Members,
        status: &GroupStatus,
    ) -> Result<(), Violation> {
        let term_at = |node: &Node, index| node.process.as_ref()?.sim.term_at(status.group, index);
        if term_at(&self.nodes[at], status.commit) != Some(status.term) {
            return Ok(()); // an entry of its own term is what counts
        }
        // What a node that is down may have is not known in every case.
        let holds = |id: NodeId| {
            let node = &self.nodes[id.0 as usize - 1];
            let has_it = term_at(node, status.commit).is_none_or(|term| term == status.term);
            node.durable(group).is_none_or(|(durable, _)| durable >= status.commit && has_it)
        };
        if status.members.quorum(holds) || before.quorum(holds) {
            return Ok(());
        }
        let durable: Vec<_> = self.nodes.iter().map(|node| (node.id, node.durable(group))).collect();
        Err(Violation {
            invariant: "what is committed is durable on a majority",
            detail: format!(
                "group {group}: node {} committed {} in term {} with {:?}; durable: {durable:?}",
                self.nodes[at].id, status.commit, status.term, status.members
            ),
        })
    }

    /// A question has ended, or its node has.
    fn settle(&mut self, asked: Asked, outcome: Option<&Outcome>) -> Result<(), Violation> {
        let (number, index) = match outcome {
            Some(Outcome::Done(done)) => (1, done.index.0),
            Some(Outcome::NotDone(why)) => (2, u64::from(crc32c(why.reason.to_string().as_bytes()))),
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
            (Asked::Change(group), Some(Outcome::Done(done))) => {
                self.oracle.members(group).on_done(done.index);
                Ok(())
            }
            (Asked::Query(..) | Asked::Change(_) | Asked::HandOver(_), _) => Ok(()),
        }
    }

    // ---- clients --------------------------------------------------------------------------------------------------

    /// A client proposes a command through a node that is up.
    pub(crate) fn propose(&mut self, at: usize, group: usize, command: impl FnOnce(u64) -> Vec<u8>) {
        let Some(process) = &mut self.nodes[at].process else { return };
        let id = self.oracle.next_id();
        let command = command(id);
        self.oracle.on_proposed(group, &command);
        let answer = process.sim.propose(GroupId(group as u64 + 1), &command);
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
        process.sim.propose_all(GroupId(group as u64 + 1), &batch);
        self.nodes[at].wake();
    }

    /// A client asks a question through a node that is up. Whoever answers, and however it makes sure, the answer includes
    /// what was acknowledged before.
    pub(crate) fn query(&mut self, at: usize, group: usize) {
        let Some(process) = &mut self.nodes[at].process else { return };
        let floor = self.oracle.acknowledged(group);
        let asked = Asked::Query(group, floor);
        let (consistency, name) = match self.queries % 4 {
            0 | 2 => (Consistency::Linearizable, "queries_by_the_leader"),
            1 => (Consistency::LinearizableHere, "queries_with_a_read_index"),
            _ => (Consistency::Local { index: floor, term: None }, "queries_with_a_condition"),
        };
        self.tally.mark(name);
        let answer = process.sim.query_as(GroupId(group as u64 + 1), consistency, &[]);
        process.waiting.push(Waiting { asked, answer });
        self.queries += 1;
        self.nodes[at].wake();
    }

    /// A client reads back, on a node that is up, what lives on in the log of a group there.
    pub(crate) fn read_live(&mut self, at: usize, group: usize) {
        let Some(process) = &mut self.nodes[at].process else { return };
        let live = self.oracle.live(group, &process.views[group], self.plan.settings.habits.live_percent);
        if !live.is_empty() {
            let pending = process.sim.read_entries(GroupId(group as u64 + 1), live, usize::MAX);
            process.readings.push(Reading { group, pending });
            self.nodes[at].wake();
        }
    }

    // ---- operators ------------------------------------------------------------------------------------------------

    /// An operator asks something of a group through a node that is up.
    pub(crate) fn wish(&mut self, at: usize, group: usize, wish: Wish) {
        let Some(process) = &mut self.nodes[at].process else { return };
        tracing::debug!(now_us = self.clock.true_us(), node = at + 1, group, ?wish, "asked");
        let id = GroupId(group as u64 + 1);
        let (asked, answer) = match wish {
            Wish::Change { changes, force } => {
                (Asked::Change(group), process.sim.change_members(id, &changes, force))
            }
            Wish::HandOver(to) => (Asked::HandOver(group), process.sim.transfer_leadership(id, to)),
        };
        process.waiting.push(Waiting { asked, answer });
        self.nodes[at].wake();
    }

    /// Whether somebody waits for a group to be handed over.
    pub(crate) fn hands_over(&self, group: usize) -> bool {
        let waiting = self.nodes.iter().filter_map(|node| node.process.as_ref()).flat_map(|one| &one.waiting);
        waiting.into_iter().any(|one| matches!(one.asked, Asked::HandOver(of) if of == group))
    }

    /// A node is to campaign.
    pub(crate) fn campaign(&mut self, at: usize, group: usize) {
        let Some(process) = &self.nodes[at].process else { return };
        process.sim.trigger_election(GroupId(group as u64 + 1));
        self.nodes[at].wake();
    }

    /// A node is to lead nothing any more.
    pub(crate) fn drain(&mut self, at: usize) {
        let Some(process) = &self.nodes[at].process else { return };
        drop(process.sim.drain());
        self.nodes[at].wake();
    }

    /// How a node last showed a group.
    pub(crate) fn status(&self, at: usize, group: usize) -> Option<&GroupStatus> {
        self.nodes[at].process.as_ref()?.views[group].status()
    }

    /// The members of a group, as the newest leader sees them; nobody if there is none.
    pub(crate) fn members_of(&self, group: usize) -> Members {
        let status = self.leader_of(group).and_then(|at| self.status(at, group));
        status.map(|status| status.members.clone()).unwrap_or_default()
    }

    /// Whether a node believes that it is a member of a group.
    pub(crate) fn is_member(&self, at: usize, group: usize) -> bool {
        self.status(at, group).is_some_and(|status| status.members.contains(self.nodes[at].id))
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

/// One group's log on a node.
struct LogOf<'a> {
    sim: &'a SimNode<FakeDisk, FakeNet, FakeClock>,
    group: GroupId,
}

impl Log for LogOf<'_> {
    fn term_at(&self, index: Index) -> Option<Term> {
        self.sim.term_at(self.group, index)
    }

    fn entries(&self) -> Entries {
        self.sim.entries(self.group)
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
        (Asked::Change(_), Some(Outcome::Done(_))) => "changes_done",
        (Asked::Change(_), Some(Outcome::NotDone(why))) => match why.reason {
            Reason::ChangeUnderWay => "changes_too_early",
            Reason::NoLiveQuorum => "changes_without_majority",
            Reason::NoLeader => "changes_without_leader",
            _ => "changes_refused",
        },
        (Asked::Change(_), _) => "changes_unknown",
        (Asked::HandOver(_), Some(Outcome::Done(_))) => "hand_overs_done",
        (Asked::HandOver(_), Some(Outcome::NotDone(_))) => "hand_overs_refused",
        (Asked::HandOver(_), _) => "hand_overs_unknown",
    }
}
