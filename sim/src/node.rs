//! One node of the simulation: a disk and a clock that stay, and a process that comes and goes. The process is the
//! engine's own [`SimNode`]; here is only when it gets a turn, and how it ends.
//!
//! Invariant: a process stops by itself only for a cause that was planted: anything else is a violation.

use std::collections::{BTreeMap, BTreeSet};

use coracle::breaks::Breaks;
use coracle::sim::{Answer, Glance, SimNode};
use coracle::{Config, Error, GroupId, Index, NodeId, Peer, Pending, ReadEntry, Term};
use coracle_io::fake::{
    Completing, CrashPolicy, DiskImage, FakeClock, FakeDisk, FakeNet, FakeNetwork, NodeStop,
};
use coracle_io::{Disk, DiskError};
use coracle_wal::WalError;

use crate::harm::Harm;
use crate::machine::{Journal, TestMachine};
use crate::names::{NameJournal, Named};
use crate::oracle::{Claim, View, Violation};
use crate::plan::Plan;
use crate::watch::Watch;

/// What a client waits for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Asked {
    /// A command, by its id.
    Command(u64),
    /// A query of a group, with what was acknowledged when it was asked.
    Query(usize, Index),
    /// A session's read of an object of a group, as a query, with its number.
    Read(usize, Index, u64),
    /// Other members of a group.
    Change(usize),
    /// Another leader of a group.
    HandOver(usize),
}

/// A client's question and where its answer will be.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) asked: Asked,
    pub(crate) answer: Answer,
}

/// A reader's question for entries of a group, and where they will be.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) group: usize,
    pub(crate) pending: Pending<Vec<ReadEntry>>,
}

/// A running process.
pub(crate) struct Process {
    pub(crate) sim: SimNode<FakeDisk, FakeNet, FakeClock>,
    pub(crate) journal: Journal,
    pub(crate) views: Vec<View>,
    pub(crate) watches: Vec<Watch>,
    /// What of each group was last looked at.
    pub(crate) glances: Vec<Option<Glance>>,
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) readings: Vec<Reading>,
    /// Commands of batches that have no answer.
    pub(crate) batched: BTreeSet<u64>,
    /// What it has to do with names, if the cluster has any.
    pub(crate) named: Option<Named>,
    /// Groups that are not started yet, latest first.
    starts: Vec<(u64, GroupId)>,
    /// By the node's own clock.
    deadline_us: u64,
    /// There is something to do at once.
    ready: bool,
    next_turn_us: u64,
}

/// One node.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) disk: FakeDisk,
    pub(crate) clock: FakeClock,
    pub(crate) process: Option<Process>,
    /// When a process that is gone comes back.
    pub(crate) restart_us: u64,
    pub(crate) paused_until_us: u64,
    /// What the node must not have forgotten when it comes back, by group.
    pub(crate) claims: Vec<Claim>,
    /// What of each named group was committed, and durable here.
    pub(crate) kept: BTreeMap<GroupId, Index>,
    /// Power will go at a step of the disk.
    pub(crate) fused: bool,
    /// What was done to its disk.
    pub(crate) harm: Harm,
    /// Its disk as it was some time ago.
    pub(crate) old: Option<DiskImage>,
    /// Why it does not start any more.
    pub(crate) halted: Option<String>,
    config: Config,
    boots: u64,
    errors_excused: u64,
}

/// How a process ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    /// The process is killed; what the kernel has stays.
    Killed,
    /// The machine loses power, and with it what was not durable, as the policy says.
    PowerLoss(CrashPolicy),
}

impl Node {
    pub(crate) fn new(plan: &Plan, id: NodeId, clock: FakeClock, seed: u64) -> Self {
        let disk = FakeDisk::new(seed);
        disk.set_completing(Completing::Timed(plan.disk));
        clock.set_rate_ppm(plan.clock_ppm[id.0 as usize - 1]);
        Self {
            id,
            disk,
            clock,
            process: None,
            restart_us: 0,
            paused_until_us: 0,
            claims: vec![Claim::default(); plan.groups as usize],
            kept: BTreeMap::new(),
            fused: false,
            harm: Harm::None,
            old: None,
            halted: None,
            config: config(plan, id),
            boots: 0,
            errors_excused: 0,
        }
    }

    /// Starts a process. Fails without a violation if a planted fault is the cause.
    pub(crate) fn boot(
        &mut self,
        plan: &Plan,
        network: &FakeNetwork,
        breaks: Breaks,
        seed: u64,
        mut late_us: impl FnMut() -> u64,
    ) -> Result<bool, Violation> {
        self.boots += 1;
        let now_us = self.clock.true_us();
        self.disk.advance(now_us);
        let net = network.driver(self.id.0);
        let parts = (self.disk.clone(), net, self.clock.clone());
        let names = plan.names_gap_us.map(|_| NameJournal::default());
        let opened = match names.clone() {
            Some(names) => {
                SimNode::open_broken_with_groups(&self.config, parts, seed, breaks, move |_, argument| {
                    names.make(argument)
                })
            }
            None => SimNode::open_broken(&self.config, parts.0, parts.1, parts.2, seed, breaks),
        };
        let sim = match opened {
            Ok(sim) => sim,
            Err(error) => return self.excuse_start(&error).map(|()| false),
        };
        let mut starts: Vec<_> =
            (1..=plan.groups).map(|group| (now_us + late_us(), GroupId(group))).collect();
        starts.sort_by_key(|(at, group)| std::cmp::Reverse((*at, *group)));
        self.process = Some(Process {
            named: names.map(|journal| Named::new(journal, &sim)),
            sim,
            journal: Journal::default(),
            views: vec![View::default(); plan.groups as usize],
            watches: vec![Watch::default(); plan.groups as usize],
            glances: vec![None; plan.groups as usize],
            waiting: Vec::new(),
            readings: Vec::new(),
            batched: BTreeSet::new(),
            starts,
            deadline_us: 0,
            ready: true,
            // Opening blocks: the process is not there before its disk is done with it.
            next_turn_us: self.disk.now_us(),
        });
        Ok(true)
    }

    /// When the process wants its next turn, or to be started.
    pub(crate) fn due_us(&self, network: &FakeNetwork) -> u64 {
        let Some(process) = &self.process else { return self.restart_us };
        let wanted = if process.ready || network.has_events(self.id.0) {
            0
        } else {
            let start_us = process.starts.last().map_or(u64::MAX, |(at, _)| *at);
            self.clock.true_us_at(process.deadline_us).min(start_us)
        };
        wanted.max(process.next_turn_us).max(self.paused_until_us)
    }

    /// The disk's time moves, also while nobody turns.
    pub(crate) fn advance_disk(&mut self, now_us: u64) {
        let completes = self.disk.next_event_us().is_some_and(|at| at <= now_us);
        self.disk.advance(now_us);
        if completes && let Some(process) = &mut self.process {
            process.ready = true;
        }
    }

    /// One turn; `false` if the process has stopped for a planted cause, and is still there to be looked at.
    pub(crate) fn turn(&mut self, plan: &Plan, turn_us: u64) -> Result<bool, Violation> {
        let now_us = self.clock.true_us();
        let Some(process) = &mut self.process else { return Ok(true) };
        while process.starts.pop_if(|(at, _)| *at <= now_us).is_some_and(|(_, group)| {
            let machine = Box::new(machine(plan, group, &process.journal));
            process.sim.start_group_of(group, &plan.founders(group.0 as usize - 1), machine);
            true
        }) {}
        let was_running = process.sim.is_running();
        match process.sim.turn() {
            Ok(turn) => {
                process.next_turn_us = self.disk.now_us().max(now_us + turn_us);
                process.ready = turn.busy;
                process.deadline_us = turn.deadline_us;
                Ok(true)
            }
            // When the cluster is formed, the log begins: that is a start.
            Err(error) if !was_running => self.excuse_start(&error).map(|()| false),
            Err(error) => self.excuse("turn", &error).map(|()| false),
        }
    }

    /// A client has put something into the process's inbox.
    pub(crate) fn wake(&mut self) {
        if let Some(process) = &mut self.process {
            process.ready = true;
        }
    }

    /// A node may also not start because its disk is full, or was harmed.
    fn excuse_start(&mut self, error: &Error) -> Result<(), Violation> {
        let is_full = matches!(
            error,
            Error::Disk(DiskError::Full { .. }) | Error::Wal(WalError::Disk(DiskError::Full { .. }))
        );
        let has_failed = self.disk.is_crashed() || self.disk_errors() > self.errors_excused;
        if is_full && !has_failed && self.disk.is_limited() {
            return Ok(());
        }
        if self.harm > Harm::None && !has_failed {
            tracing::debug!(node = %self.id, %error, "does not start any more");
            self.halted = Some(error.to_string());
            return Ok(());
        }
        self.excuse("start", error)
    }

    /// An error is to be expected after the machine has crashed or its disk has failed.
    fn excuse(&mut self, when: &'static str, error: &Error) -> Result<(), Violation> {
        let errors = self.disk_errors();
        if self.disk.is_crashed() || errors > self.errors_excused {
            self.errors_excused = errors;
            return Ok(());
        }
        Err(Violation {
            invariant: "a node stops only for a cause",
            detail: format!("node {} at {when}: {error}", self.id),
        })
    }

    fn disk_errors(&self) -> u64 {
        let counts = self.disk.fault_counts();
        ["write_error", "sync_error", "read_error"].iter().filter_map(|kind| counts.get(kind)).sum()
    }

    /// The last entry that the group is known to have made durable here; `None` if nothing is known.
    pub(crate) fn durable(&self, group: usize) -> Option<(Index, Term)> {
        let durable = self.process.as_ref().and_then(|one| one.sim.durable(GroupId(group as u64 + 1)));
        durable.or(self.claims[group].durable)
    }

    /// Something was done to its disk that no disk should do: it owes less from now on. How much it knows to be lost it says
    /// when it comes back.
    pub(crate) fn set_harm(&mut self, harm: Harm) {
        self.harm = self.harm.max(harm);
        for claim in &mut self.claims {
            claim.durable = None;
            if harm > Harm::Damaged {
                *claim = Claim::default();
            }
        }
    }

    /// Whether it runs, and the loss of any batch of its log that counts as durable could be noticed.
    pub(crate) fn is_at_rest(&self) -> bool {
        let rests = |process: &Process| process.sim.log_is_at_rest();
        self.process.as_ref().is_some_and(rests) && self.disk.in_flight() == 0 && !self.fused
    }

    /// What the node must not forget, as its groups see it now.
    fn claims_now(&self) -> Vec<Claim> {
        let Some(process) = &self.process else { return self.claims.clone() };
        if !process.sim.is_running() {
            // The disk crashed or failed in the middle of a turn, and there is nobody to ask any more: what was durable
            // before the turn may have been overwritten in it.
            return self.claims.iter().map(|claim| Claim { durable: None, ..*claim }).collect();
        }
        let claim = |(nth, before): (usize, &Claim)| {
            // A group that has not come up yet owes what it owed.
            let Some(status) = process.views[nth].status() else { return *before };
            let led = if status.leader == Some(self.id) { status.term } else { before.led };
            Claim { durable: process.sim.durable(status.group), led: led.max(before.led) }
        };
        self.claims.iter().enumerate().map(claim).collect()
    }

    /// The process is gone. Returns what clients waited for.
    pub(crate) fn stop(&mut self, network: &FakeNetwork, end: End, restart_us: u64) -> Vec<Asked> {
        self.claims = self.claims_now();
        let how = if matches!(end, End::Killed) { NodeStop::Killed } else { NodeStop::PowerLoss };
        network.stop_node(self.id.0, how);
        let process = self.process.take();
        match end {
            End::Killed => self.disk.crash(CrashPolicy::KEEP_ALL),
            End::PowerLoss(policy) => self.disk.crash(policy),
        }
        self.fused = false;
        self.paused_until_us = 0;
        self.restart_us = if self.halted.is_some() { u64::MAX } else { restart_us.max(self.disk.now_us()) };
        let Some(process) = process else { return Vec::new() };
        let batched = process.batched.into_iter().map(Asked::Command);
        process.waiting.into_iter().map(|one| one.asked).chain(batched).collect()
    }
}

/// A group's machine, empty.
fn machine(plan: &Plan, group: GroupId, journal: &Journal) -> TestMachine {
    TestMachine::new(group, plan.settings.habits.clone(), journal.clone())
}

const PORT: u16 = 7100;

fn config(plan: &Plan, id: NodeId) -> Config {
    let peer = |id| Peer { id: NodeId(id), address: FakeNetwork::address(id, PORT) };
    let mut config = Config::new(id.0, (1..=plan.nodes).map(peer).collect(), "data");
    config.shards = 1;
    config.wal_max_size_bytes = plan.settings.wal_bytes;
    config.wal_max_entries = plan.settings.wal_entries;
    config.entry_cache_bytes = plan.settings.cache_bytes;
    config.snapshot_bytes_per_s = plan.settings.snapshot_bytes_per_s;
    config.beat_us = plan.settings.beat_us;
    config.election_us = plan.settings.election_us;
    config.disk_stall_us = plan.settings.disk_stall_us;
    config.command_timeout_us = plan.settings.command_timeout_us;
    config.min_snapshot_interval = plan.settings.min_snapshot_interval;
    config.min_checkpoint_interval = plan.settings.min_checkpoint_interval;
    config.max_checkpoints = plan.settings.max_checkpoints;
    config
}
