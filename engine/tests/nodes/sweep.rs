//! A node with many groups starts again: their entries are read in a sweep, not group by group. On a simulated disk that
//! counts what is read.
#![allow(clippy::unwrap_used)] // a test that fails may panic

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coracle::sim::SimNode;
use coracle::{Config, Effects, Entry, GroupId, GroupStatus, Machine, NodeId, Peer, RestoreError};
use coracle_io::disk::DirEntry;
use coracle_io::fake::{Completing, FakeClock, FakeDisk, FakeNet, FakeNetwork, Latency, OpKind};
use coracle_io::{Buffer, Clock, Disk, DiskDone, DiskError, DiskOp};

/// A disk that counts the bytes read.
#[derive(Clone)]
struct Counting(FakeDisk, Rc<Cell<u64>>);

impl Disk for Counting {
    fn buffer(&mut self, bytes: usize) -> Buffer {
        self.0.buffer(bytes)
    }
    fn recycle(&mut self, buf: Buffer) {
        self.0.recycle(buf);
    }
    fn start(&mut self, token: u64, op: DiskOp) {
        if let DiskOp::Read { buf, .. } = &op {
            self.1.set(self.1.get() + buf.len() as u64);
        }
        self.0.start(token, op);
    }
    fn submit(&mut self) -> Result<(), DiskError> {
        self.0.submit()
    }
    fn completions(&mut self, done: &mut Vec<DiskDone>) {
        self.0.completions(done);
    }
    fn wait(&mut self) -> Result<(), DiskError> {
        self.0.wait()
    }
    fn in_flight(&self) -> usize {
        self.0.in_flight()
    }
    fn list(&mut self, dir: &Path) -> Result<Vec<DirEntry>, DiskError> {
        self.0.list(dir)
    }
    fn make_dir(&mut self, dir: &Path) -> Result<(), DiskError> {
        self.0.make_dir(dir)
    }
}

/// A clock that goes on while machines work, too.
#[derive(Clone)]
struct Working {
    clock: FakeClock,
    work_us: Arc<AtomicU64>,
}

impl Clock for Working {
    fn now_us(&self) -> u64 {
        self.clock.now_us() + self.work_us.load(Ordering::Relaxed)
    }
    fn wall_ms(&self) -> u64 {
        self.clock.wall_ms()
    }
}

/// Folds all commands into a number, so that their order counts.
#[derive(Default)]
struct Fold(u64);

/// The same, but each of the commands of [`Lone::fill`] takes its time.
struct Slow {
    fold: Fold,
    work_us: Arc<AtomicU64>,
}

impl Slow {
    const COMMAND_US: u64 = 20;
}

impl Machine for Slow {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        if entry.command.len() > 100 {
            self.work_us.fetch_add(Self::COMMAND_US, Ordering::Relaxed);
        }
        self.fold.apply(entry, effects);
    }
    fn query(&self, query: &[u8], reply: &mut Vec<u8>) {
        self.fold.query(query, reply);
    }
    fn snapshot(&self, out: &mut Vec<u8>) {
        self.fold.snapshot(out);
    }
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        self.fold.restore(snapshot)
    }
}

impl Machine for Fold {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        for byte in entry.command {
            self.0 = self.0.wrapping_mul(31).wrapping_add(u64::from(*byte));
        }
        if entry.command == b"release" {
            effects.release();
        }
    }
    fn query(&self, _: &[u8], reply: &mut Vec<u8>) {
        reply.extend(self.0.to_le_bytes());
    }
    fn snapshot(&self, out: &mut Vec<u8>) {
        out.extend(self.0.to_le_bytes());
    }
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        self.0 = u64::from_le_bytes(snapshot.try_into().map_err(|_| RestoreError("not a number".into()))?);
        Ok(())
    }
}

type Sim = SimNode<Counting, FakeNet, Working>;

/// A cluster of one node whose process comes and goes.
struct Lone {
    disk: Counting,
    clock: FakeClock,
    work_us: Arc<AtomicU64>,
    network: FakeNetwork,
    config: Config,
    boots: u64,
    groups: u64,
}

impl Lone {
    fn new(groups: u64) -> Self {
        let peer = Peer { id: NodeId(1), address: FakeNetwork::address(1, 7101) };
        let mut config = Config::new(1, vec![peer], "/unused");
        config.shards = 1;
        config.wal_max_size_bytes = 256 * 1024;
        Self {
            disk: Counting(FakeDisk::new(7), Rc::default()),
            clock: FakeClock::new(),
            work_us: Arc::default(),
            network: FakeNetwork::new(7),
            config,
            boots: 0,
            groups,
        }
    }

    /// Opens the node with its groups.
    fn start(&mut self) -> Sim {
        let sim = self.open();
        (1..=self.groups).for_each(|group| sim.start_group(GroupId(group), Box::new(Fold::default())));
        sim
    }

    /// Opens the node without a group.
    fn open(&mut self) -> Sim {
        self.boots += 1;
        let net = self.network.driver(1);
        let clock = Working { clock: self.clock.clone(), work_us: self.work_us.clone() };
        SimNode::open(&self.config, self.disk.clone(), net, clock, self.boots).unwrap()
    }

    fn turn(&self, sim: &mut Sim) {
        self.clock.advance(500);
        self.disk.0.advance(self.clock.true_us());
        self.network.advance(self.clock.true_us());
        sim.turn().unwrap();
    }

    fn turn_until(&self, sim: &mut Sim, what: &str, done: impl Fn(&Sim) -> bool) {
        for _ in 0..40_000 {
            if done(sim) {
                return;
            }
            self.turn(sim);
        }
        panic!("it does not come to {what}");
    }

    fn statuses(&self, sim: &Sim) -> Vec<GroupStatus> {
        (1..=self.groups).filter_map(|group| sim.group_status(GroupId(group))).collect()
    }

    /// Waits until every group has a leader and has applied its whole log.
    fn all_applied(&self, sim: &mut Sim) -> Vec<GroupStatus> {
        let is_done = |one: &GroupStatus| one.leader.is_some() && one.applied == one.last;
        self.turn_until(sim, "all applied", |sim| {
            let statuses = self.statuses(sim);
            statuses.len() as u64 == self.groups && statuses.iter().all(is_done)
        });
        self.statuses(sim)
    }

    /// Writes commands to all groups in turn, so that their runs lie among each other.
    fn fill(&self, sim: &mut Sim, rounds: u64) {
        for round in 0..rounds {
            let last = (1..=self.groups).map(|group| {
                let command = [group.to_le_bytes(), round.to_le_bytes()].concat().repeat(20);
                sim.propose(GroupId(group), &command)
            });
            let last: Vec<_> = last.collect();
            self.turn_until(sim, "an answer", |_| last.iter().all(|answer| answer.get().is_some()));
        }
    }

    fn states(&self, sim: &mut Sim) -> Vec<Vec<u8>> {
        (1..=self.groups)
            .map(|group| {
                let answer = sim.query(GroupId(group), b"");
                self.turn_until(sim, "an answer", |_| answer.get().is_some());
                match answer.get().unwrap() {
                    coracle::Outcome::Done(done) => done.reply,
                    other => panic!("{other:?}"),
                }
            })
            .collect()
    }

    fn stop(&self, sim: &mut Sim) {
        sim.stop();
        for _ in 0..1000 {
            if sim.turn().is_err() {
                return;
            }
        }
        panic!("it does not stop");
    }
}

/// A node with groups whose logs are in files, stopped: and what their machines made of them.
fn filled(groups: u64) -> (Lone, Vec<Vec<u8>>, u64) {
    let mut lone = Lone::new(groups);
    let mut sim = lone.start();
    lone.all_applied(&mut sim);
    lone.fill(&mut sim, 60);
    // Some have a snapshot, with commands behind it.
    let released: Vec<_> =
        (1..=groups).step_by(5).map(|group| sim.propose(GroupId(group), b"release")).collect();
    lone.turn_until(&mut sim, "an answer", |_| released.iter().all(|answer| answer.get().is_some()));
    lone.fill(&mut sim, 20);
    lone.all_applied(&mut sim);
    let states = lone.states(&mut sim);
    let bytes = sim.wal_stats().unwrap().batch_bytes;
    lone.stop(&mut sim);
    (lone, states, bytes)
}

#[test]
fn many_groups_are_applied_again_by_reading_the_log_few_times() {
    let (mut lone, states, log_bytes) = filled(64);
    let mut sim = lone.start();
    let opened = lone.disk.1.get();
    lone.all_applied(&mut sim);
    let read = lone.disk.1.get() - opened;
    assert_eq!(lone.states(&mut sim), states);
    assert!(read <= 3 * log_bytes, "{read} bytes were read of a log of {log_bytes}");
    assert!(read >= log_bytes / 2, "{read} bytes cannot be all of a log of {log_bytes}");
}

#[test]
fn few_groups_are_read_one_by_one() {
    let (mut lone, states, _) = filled(3);
    let mut sim = lone.start();
    lone.all_applied(&mut sim);
    assert_eq!(lone.states(&mut sim), states);
}

/// What the sweep cannot read is read by the groups on their own, which tell the sound from the damaged.
#[test]
fn a_sweep_that_fails_leaves_its_groups_to_reads_of_their_own() {
    let (mut lone, states, log_bytes) = filled(24);
    let mut sim = lone.start();
    let opened = lone.disk.1.get();
    lone.turn_until(&mut sim, "a sweep", |_| lone.disk.1.get() > opened);
    lone.disk.0.fail_next(OpKind::Read, None, 5);
    let statuses = lone.all_applied(&mut sim);
    assert!(lone.disk.0.fault_counts().values().sum::<u64>() > 0, "the fault was met");
    assert!(statuses.iter().all(|status| status.poisoned.is_none()));
    assert_eq!(lone.states(&mut sim), states);
    assert!(lone.disk.1.get() - opened > log_bytes, "it was read again");
}

/// Consensus before machines: groups that are started in the middle of a sweep elect their leaders and commit, and the sweep
/// stands still meanwhile.
#[test]
fn groups_start_and_elect_while_a_sweep_waits() {
    let (mut lone, states, _) = filled(64);
    let mut sim = lone.open();
    let applied = |sim: &Sim| sim.status().map_or(0, |status| status.applied);
    (1..=32).for_each(|group| sim.start_group(GroupId(group), Box::new(Fold::default())));
    lone.turn_until(&mut sim, "a sweep that has begun", |sim| applied(sim) > 0);
    let (before, behind) = (applied(&sim), sim.status().unwrap().groups_behind);
    assert!(behind > 0, "the sweep is at its beginning");
    for group in 33..=64 {
        sim.start_group(GroupId(group), Box::new(Fold::default()));
        let last = |sim: &Sim| sim.group_status(GroupId(group)).filter(|status| status.leader.is_some());
        // Two writes: its vote, and its first entry.
        for _ in 0..12 {
            lone.turn(&mut sim);
        }
        let status = last(&sim).expect("it has a leader at once");
        assert_eq!(status.commit, status.last, "group {group}");
    }
    assert_eq!(applied(&sim), before, "the sweep went on while groups were started");
    lone.all_applied(&mut sim);
    let status = sim.status().unwrap();
    assert_eq!((status.groups_behind, status.sweep_bytes_done), (0, status.sweep_bytes));
    assert!(status.sweep_bytes > 0);
    assert_eq!(lone.states(&mut sim), states);
}

/// New commands are served while old ones are applied, and come after them.
#[test]
fn commands_during_a_sweep_come_after_what_was_there() {
    let (mut lone, states, _) = filled(32);
    let mut sim = lone.start();
    let leads = |sim: &Sim| lone.statuses(sim).iter().filter(|status| status.leader.is_some()).count() == 32;
    lone.turn_until(&mut sim, "leaders", leads);
    let answers: Vec<_> = (1..=32).map(|group| sim.propose(GroupId(group), &[group as u8])).collect();
    lone.turn_until(&mut sim, "answers", |_| answers.iter().all(|answer| answer.get().is_some()));
    let expected: Vec<Vec<u8>> = (1u64..)
        .zip(states)
        .map(|(group, state)| {
            let before = u64::from_le_bytes(state.try_into().unwrap());
            before.wrapping_mul(31).wrapping_add(group).to_le_bytes().to_vec()
        })
        .collect();
    assert_eq!(lone.states(&mut sim), expected);
}

/// Applies what is in files with machines that take their time, and with commands in every turn if `is_loaded`. Returns
/// which part of the time the machines took, in percent.
fn share_of_a_sweep(is_loaded: bool) -> u64 {
    let (mut lone, ..) = filled(64);
    let mut sim = lone.open();
    for group in 1..=64 {
        let slow = Slow { fold: Fold::default(), work_us: lone.work_us.clone() };
        sim.start_group(GroupId(group), Box::new(slow));
    }
    let work_us = || lone.work_us.load(Ordering::Relaxed);
    let leads = |sim: &Sim| lone.statuses(sim).iter().filter(|status| status.leader.is_some()).count() == 64;
    lone.turn_until(&mut sim, "leaders", leads);
    let write_us = Latency { write_us: (2_000, 2_000), ..Latency::default() };
    lone.disk.0.set_completing(Completing::Timed(write_us));
    lone.turn_until(&mut sim, "a sweep that has begun", |_| work_us() > 0);
    let (began_us, work_began_us) = (lone.clock.true_us() + work_us(), work_us());
    let mut answers = Vec::new();
    for turn in 0.. {
        if sim.status().unwrap().groups_behind < 8 {
            break;
        }
        assert!(turn < 40_000, "the sweep does not end");
        if is_loaded {
            answers.push(sim.propose(GroupId(1), b"new"));
        }
        lone.turn(&mut sim);
    }
    let took_us = lone.clock.true_us() + work_us() - began_us;
    let worked_us = work_us() - work_began_us;
    assert!(worked_us > 40 * Slow::COMMAND_US * 64, "most of the sweep was seen: {worked_us}");
    lone.turn_until(&mut sim, "answers", |_| answers.iter().all(|answer| answer.get().is_some()));
    lone.all_applied(&mut sim);
    100 * worked_us / took_us
}

#[test]
fn a_sweep_has_a_quarter_of_the_time_while_commands_wait_and_as_much_as_it_can_otherwise() {
    let (alone, loaded) = (share_of_a_sweep(false), share_of_a_sweep(true));
    println!("{alone}% alone, {loaded}% under load");
    assert!(alone >= 50, "{alone}%");
    assert!((15..=27).contains(&loaded), "{loaded}%");
}
