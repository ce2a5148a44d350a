//! The simulated world: nodes, network and time, and the loop that jumps from one moment at which something happens to
//! the next. What goes wrong (`faults.rs`) and what clients do (`workload.rs`) act on it from outside.
//!
//! Invariant: everything that happens is in the trace, and is shown to the oracle before anything else happens.

use coracle::breaks::Breaks;
use coracle::{Consistency, GroupId, GroupStatus, Members, NodeId};
use coracle_base::checksum::mix64;
use coracle_io::fake::{Completing, FakeClock, FakeNetwork};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::churn::Wish;
use crate::histories::{Histories, Ticket};
use crate::machine::encode_action;
use crate::names::NameOracle;
use crate::node::{Asked, End, Node, Reading, Waiting};
use crate::objects::Action;
use crate::oracle::{Oracle, Violation};
use crate::plan::Plan;
use crate::tally::Tally;

/// Events of the trace.
pub(crate) const TURN: u64 = 1;
const ENDED: u64 = 4;
const BOOT: u64 = 5;

/// One simulated cluster.
pub(crate) struct Cluster {
    pub(crate) plan: Plan,
    pub(crate) clock: FakeClock,
    pub(crate) network: FakeNetwork,
    pub(crate) nodes: Vec<Node>,
    pub(crate) oracle: Oracle,
    pub(crate) histories: Histories,
    pub(crate) names: NameOracle,
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
            histories: Histories::default(),
            names: NameOracle::default(),
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
        let Some(process) = &self.nodes[at].process else { return };
        if let Some(stats) = process.sim.wal_stats() {
            let counts = [
                ("log_checkpoints", stats.checkpoints),
                ("log_files_reused", stats.files_reused),
                ("log_files_removed", stats.files_removed),
                ("log_segments_written", stats.segments_written),
                ("log_indexes_written", stats.indexes),
                ("log_indexes_wrong", stats.indexes_wrong),
            ];
            counts.into_iter().for_each(|(name, count)| self.tally.mark_many(name, count));
        }
        if let Some(status) = process.sim.status() {
            let counts = [
                ("old_copies_noticed", u64::from(status.directory_old)),
                ("snapshot_files_written", status.snapshot_files),
                ("machines_restored_from_files", status.groups_restored),
                ("transfers_installed", status.transfers_installed),
                ("transfers_resumed", status.transfers_resumed),
                ("transfers_restarted", status.transfers_restarted),
                ("transfers_abandoned", status.transfers_abandoned),
                ("transfers_needless", status.transfers_needless),
                ("transfers_asked_again", status.transfers_asked_again),
                ("live_entries_received", status.live_entries_received),
                ("groups_mended", status.groups_mended),
                ("log_files_compacted", status.compacted_files),
                ("links_lost", status.links_lost),
                ("stall_transfers", status.stall_transfers),
                ("stall_resignations", status.stall_resignations),
            ];
            counts.into_iter().for_each(|(name, count)| self.tally.mark_many(name, count));
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
        self.ask(at, group, Asked::Query(group, self.oracle.acknowledged(group)), &[]);
    }

    fn ask(&mut self, at: usize, group: usize, asked: Asked, query: &[u8]) {
        let Some(process) = &mut self.nodes[at].process else { return };
        let index = self.oracle.acknowledged(group);
        let (consistency, name) = match self.queries % 4 {
            0 | 2 => (Consistency::Linearizable, "queries_by_the_leader"),
            1 => (Consistency::LinearizableHere, "queries_with_a_read_index"),
            _ => (Consistency::Local { index, term: None }, "queries_with_a_condition"),
        };
        self.tally.mark(name);
        let answer = process.sim.query_as(GroupId(group as u64 + 1), consistency, query);
        process.waiting.push(Waiting { asked, answer });
        self.queries += 1;
        self.nodes[at].wake();
    }

    /// A session does something to an object, or reads it, through a node that is up.
    pub(crate) fn session(
        &mut self,
        at: usize,
        group: usize,
        key: u64,
        action: Option<Action>,
    ) -> Option<Ticket> {
        let ticket = match action {
            Some(_) => Ticket::Command(self.oracle.next_id()),
            None => Ticket::Read(self.histories.next_read()),
        };
        self.nodes[at].process.as_ref()?;
        self.histories.begin(ticket, group, key, action);
        match (action, ticket) {
            (Some(action), _) => self.propose(at, group, |id| encode_action(id, key, action)),
            (None, Ticket::Read(number)) => {
                let asked = Asked::Read(group, self.oracle.acknowledged(group), number);
                self.ask(at, group, asked, &key.to_le_bytes());
            }
            (None, Ticket::Command(_)) => {}
        }
        Some(ticket)
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
