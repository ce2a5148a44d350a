//! What panics ends itself and nothing else: a machine its group's applying, a shard's thread its node, and everybody
//! who waited hears of it. Members that stand still for good take no more and more memory.
#![allow(clippy::unwrap_used)] // a test that fails may panic

use std::future::Future;
use std::net::TcpListener;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use coracle::sim::SimNode;
use coracle::{
    Config, Effects, Entry, Error, GroupId, GroupStatus, Index, Machine, Node, NodeId, Outcome, Peer,
    Proposal, Reason, RestoreError,
};
use coracle_io::fake::{CrashPolicy, FakeClock, FakeDisk, FakeNet, FakeNetwork};

const GROUP: GroupId = GroupId(1);
const OTHER: GroupId = GroupId(2);

/// What a machine does not survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Apply,
    Snapshot,
    Restore,
}

/// Counts commands; `release` lets the log go, `break` is what a machine with [`Fault::Apply`] breaks at.
struct Count(u64, Fault);

impl Machine for Count {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        assert!(self.1 != Fault::Apply || entry.command != b"break", "planted in apply");
        self.0 += 1;
        if entry.command == b"release" {
            effects.release();
        }
    }
    fn query(&self, _: &[u8], reply: &mut Vec<u8>) {
        reply.extend(self.0.to_le_bytes());
    }
    fn snapshot(&self, out: &mut Vec<u8>) {
        assert!(self.1 != Fault::Snapshot, "planted in snapshot");
        out.extend(self.0.to_le_bytes());
    }
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        assert!(self.1 != Fault::Restore, "planted in restore");
        self.0 = u64::from_le_bytes(snapshot.try_into().map_err(|_| RestoreError("not a count".into()))?);
        Ok(())
    }
}

// ---- machines, on simulated nodes -------------------------------------------------------------------------------------

struct Cluster {
    clock: FakeClock,
    network: FakeNetwork,
    disks: Vec<FakeDisk>,
    nodes: Vec<Option<SimNode<FakeDisk, FakeNet, FakeClock>>>,
    boots: u64,
}

impl Cluster {
    /// Nodes without groups, once they are one cluster.
    fn new(count: u64) -> Self {
        let disks: Vec<FakeDisk> = (1..=count).map(FakeDisk::new).collect();
        let nodes = disks.iter().map(|_| None).collect();
        let mut cluster =
            Self { clock: FakeClock::new(), network: FakeNetwork::new(3), disks, nodes, boots: 0 };
        (0..count as usize).for_each(|at| cluster.open(at));
        cluster.turn_until("a cluster", |cluster| cluster.nodes.iter().flatten().all(SimNode::is_running));
        cluster
    }

    fn open(&mut self, at: usize) {
        let address = |id| FakeNetwork::address(id, 7101);
        let ids = 1..=self.disks.len() as u64;
        let peers = ids.map(|id| Peer { id: NodeId(id), address: address(id) }).collect();
        let mut config = Config::new(at as u64 + 1, peers, "/unused");
        config.shards = 1;
        config.wal_max_size_bytes = 256 * 1024;
        self.boots += 1;
        let net = self.network.driver(at as u64 + 1);
        let node = SimNode::open(&config, self.disks[at].clone(), net, self.clock.clone(), self.boots);
        self.nodes[at] = Some(node.unwrap());
    }

    fn node(&self, at: usize) -> &SimNode<FakeDisk, FakeNet, FakeClock> {
        self.nodes[at].as_ref().unwrap()
    }

    fn start(&self, at: usize, group: GroupId, fault: Fault) {
        self.node(at).start_group(group, Box::new(Count(0, fault)));
    }

    fn turn(&mut self) {
        self.clock.advance(500);
        let now_us = self.clock.true_us();
        self.network.advance(now_us);
        self.disks.iter().for_each(|disk| disk.advance(now_us));
        for node in self.nodes.iter_mut().flatten() {
            node.turn().unwrap();
        }
    }

    fn turn_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..40_000 {
            if done(self) {
                return;
            }
            self.turn();
        }
        panic!("it does not come to {what}");
    }

    /// How a command ends: `None` if done, else why not.
    fn once(&mut self, at: usize, group: GroupId, command: &[u8]) -> Option<Reason> {
        let answer = self.node(at).propose(group, command);
        self.turn_until("an answer", |_| answer.get().is_some());
        match answer.get().unwrap() {
            Outcome::Done(_) => None,
            Outcome::NotDone(why) => Some(why.reason),
            Outcome::Unknown(why) => panic!("{why}"),
        }
    }

    /// Proposes until it is done, whoever leads.
    fn done(&mut self, at: usize, group: GroupId, command: &[u8]) {
        while let Some(reason) = self.once(at, group, command) {
            assert!(matches!(reason, Reason::NoLeader | Reason::Busy), "{reason}");
        }
    }

    fn asked(&mut self, at: usize, group: GroupId) -> Result<u64, Reason> {
        let answer = self.node(at).query(group, b"");
        self.turn_until("an answer", |_| answer.get().is_some());
        match answer.get().unwrap() {
            Outcome::Done(done) => Ok(u64::from_le_bytes(done.reply.try_into().unwrap())),
            Outcome::NotDone(why) => Err(why.reason),
            Outcome::Unknown(why) => panic!("{why}"),
        }
    }

    fn status(&self, at: usize) -> GroupStatus {
        self.node(at).group_status(GROUP).unwrap()
    }

    fn poisoned(&self, at: usize) -> String {
        self.status(at).poisoned.unwrap_or_default()
    }
}

#[test]
fn a_machine_that_panics_in_its_snapshot_ends_nothing_else() {
    let mut cluster = Cluster::new(1);
    cluster.start(0, GROUP, Fault::Snapshot);
    cluster.start(0, OTHER, Fault::None);
    cluster.done(0, GROUP, b"one");
    cluster.done(0, GROUP, b"release");
    assert!(cluster.poisoned(0).contains("planted in snapshot"), "{:?}", cluster.poisoned(0));
    assert_eq!(cluster.once(0, GROUP, b"two"), Some(Reason::Poisoned));
    assert_eq!(cluster.asked(0, GROUP), Err(Reason::Poisoned));
    cluster.done(0, OTHER, b"one");
    assert_eq!(cluster.asked(0, OTHER), Ok(1));
}

#[test]
fn a_machine_that_panics_when_it_is_sent_a_snapshot_ends_nothing_else() {
    let mut cluster = Cluster::new(3);
    (0..2).for_each(|at| cluster.start(at, GROUP, Fault::None));
    for command in [b"one".as_slice(), b"release"] {
        cluster.done(0, GROUP, command);
    }
    cluster.turn_until("released logs", |cluster| (0..2).all(|at| cluster.status(at).first > Index(1)));
    cluster.start(2, GROUP, Fault::Restore);
    cluster.turn_until("a poisoned member", |cluster| {
        cluster.node(2).group_status(GROUP).is_some_and(|status| status.poisoned.is_some())
    });
    assert!(cluster.poisoned(2).contains("planted in restore"), "{:?}", cluster.poisoned(2));
    cluster.done(2, GROUP, b"two");
    cluster.turn_until("replication to it", |cluster| cluster.status(2).last == cluster.status(0).last);
    assert_eq!(cluster.asked(0, GROUP), Ok(3));
}

#[test]
fn a_machine_that_has_failed_keeps_no_log_in_memory() {
    let mut cluster = Cluster::new(3);
    (0..2).for_each(|at| cluster.start(at, GROUP, Fault::None));
    cluster.done(0, GROUP, b"one");
    cluster.start(2, GROUP, Fault::Apply);
    cluster.done(0, GROUP, b"break");
    cluster.turn_until("a poisoned member", |cluster| {
        cluster.node(2).group_status(GROUP).is_some_and(|status| status.poisoned.is_some())
    });
    for _ in 0..400 {
        cluster.done(0, GROUP, &[7; 10_000]);
    }
    cluster.turn_until("replication to it", |cluster| cluster.status(2).last == cluster.status(0).last);
    assert!(cluster.status(2).applied < Index(10));
    let bytes = cluster.node(2).status().unwrap().arena_bytes;
    assert!(bytes < 1 << 20, "{bytes} bytes are kept for a machine that applies nothing");
}

#[test]
fn a_member_that_another_majority_contradicts_stands_still_and_says_so() {
    let mut cluster = Cluster::new(3);
    (0..3).for_each(|at| cluster.start(at, GROUP, Fault::None));
    cluster.done(0, GROUP, b"one");
    cluster.turn_until("replication", |cluster| {
        (0..3).all(|at| cluster.status(at).applied == cluster.status(0).last)
    });
    let images: Vec<_> = (1..3).map(|at| cluster.disks[at].image()).collect();
    for _ in 0..5 {
        cluster.done(0, GROUP, b"two");
    }
    cluster.turn_until("replication", |cluster| cluster.status(0).applied == cluster.status(0).last);
    // A majority comes back from older images, and goes its own way while the first node is cut off.
    cluster.network.partition(&[&[1], &[2, 3]]);
    for at in 1..3 {
        cluster.nodes[at] = None;
        cluster.disks[at].crash(CrashPolicy::default());
        cluster.disks[at].restore(&images[at - 1]);
        cluster.open(at);
        cluster.start(at, GROUP, Fault::None);
    }
    cluster.turn_until("groups", |cluster| (1..3).all(|at| cluster.node(at).group_status(GROUP).is_some()));
    cluster.done(1, GROUP, b"other");
    cluster.network.heal();
    cluster.turn_until("an alarm", |cluster| !cluster.poisoned(0).is_empty());
    assert!(cluster.poisoned(0).contains("committed here"), "{:?}", cluster.poisoned(0));
    assert_eq!(cluster.once(0, GROUP, b"three"), Some(Reason::Poisoned));
    assert_eq!(cluster.asked(0, GROUP), Err(Reason::Poisoned));
    let before = cluster.status(0);
    cluster.done(1, GROUP, b"more");
    assert_eq!(cluster.status(0), before, "it neither follows nor votes");
}

// ---- shards and machines, on real nodes -------------------------------------------------------------------------------

fn node(dir: &Path) -> Node {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = Config::new(1, vec![Peer { id: NodeId(1), address }], dir);
    config.shards = 1;
    config.wal_max_size_bytes = 1 << 20;
    Node::start(config).unwrap()
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn answer(proposal: &Proposal) -> Outcome {
    proposal.wait_timeout(Duration::from_secs(20)).expect("every command is answered")
}

#[test]
fn a_group_whose_machine_panics_at_its_start_can_be_started_again() {
    let dir = directory();
    let running = node(dir.path());
    let group = running.start_group(GROUP, Count(0, Fault::None)).unwrap();
    for command in ["one", "release", "two"] {
        while !matches!(answer(&group.propose(command.as_bytes())), Outcome::Done(_)) {}
    }
    while group.status().unwrap().unwrap().first == Index(1) {
        thread::yield_now();
    }
    running.stop().unwrap();

    let running = node(dir.path());
    match running.start_group(GROUP, Count(0, Fault::Restore)) {
        Err(Error::Machine { group: GROUP, reason }) => {
            assert!(reason.contains("planted in restore"), "{reason}")
        }
        other => panic!("{other:?}"),
    }
    let group = running.start_group(GROUP, Count(0, Fault::None)).unwrap();
    let count = loop {
        if let Outcome::Done(done) = answer(&group.query(b"")) {
            break u64::from_le_bytes(done.reply.try_into().unwrap());
        }
    };
    assert_eq!(count, 3);
}

/// Fails in the thread of the shard that wakes it.
struct Fragile;

impl Wake for Fragile {
    fn wake(self: Arc<Self>) {
        panic!("planted in a waker");
    }
}

#[test]
fn a_shard_that_panics_answers_everybody_and_its_node_says_so() {
    let dir = directory();
    let node = node(dir.path());
    let group = node.start_group(GROUP, Count(0, Fault::None)).unwrap();
    while !matches!(answer(&group.propose(b"one")), Outcome::Done(_)) {}

    let client = node.client();
    let waker = Waker::from(Arc::new(Fragile));
    let mut next = pin!(client.next());
    assert!(next.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    client.propose(&group, [(1, "two")]).unwrap();
    let waiting: Vec<Proposal> = (0..5000).map(|_| group.propose(b"three")).collect();
    let done = waiting.iter().filter(|one| matches!(answer(one), Outcome::Done(_))).count();
    assert!(done < waiting.len(), "the shard did not fail");
    while node.is_running() {
        thread::yield_now();
    }
    let error = node.stop().unwrap_err().to_string();
    assert!(error.contains("planted in a waker"), "{error}");
    assert!(
        matches!(answer(&group.propose(b"four")), Outcome::NotDone(why) if why.reason == Reason::Stopping)
    );
}
