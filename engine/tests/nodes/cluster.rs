//! Nodes of one cluster on simulated disks and a simulated network, and a machine that breaks where it is told to.

use coracle::sim::SimNode;
use coracle::{
    Config, Effects, Entry, GroupId, GroupStatus, Machine, NodeId, Outcome, Peer, Reason, RestoreError,
};
use coracle_io::fake::{CrashPolicy, FakeClock, FakeDisk, FakeNet, FakeNetwork, NodeStop};

pub(crate) const GROUP: GroupId = GroupId(1);
pub(crate) const OTHER: GroupId = GroupId(2);

/// A machine that does nothing.
pub(crate) struct Nothing;

impl Machine for Nothing {
    fn apply(&mut self, _: Entry<'_>, _: &mut Effects<'_>) {}
    fn query(&self, _: &[u8], _: &mut Vec<u8>) {}
    fn snapshot(&self, _: &mut Vec<u8>) {}
    fn restore(&mut self, _: &[u8]) -> Result<(), RestoreError> {
        Ok(())
    }
}

/// What a machine does not survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Apply,
    Snapshot,
    Restore,
}

/// Counts commands; `release` lets the log go, `break` is what a machine with [`Fault::Apply`] breaks at.
pub(crate) struct Count(pub(crate) u64, pub(crate) Fault);

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

/// Simulated nodes, each there or not.
pub(crate) struct Cluster {
    clock: FakeClock,
    pub(crate) network: FakeNetwork,
    pub(crate) disks: Vec<FakeDisk>,
    pub(crate) nodes: Vec<Option<SimNode<FakeDisk, FakeNet, FakeClock>>>,
    file_bytes: Vec<u64>,
    boots: u64,
    /// The newest protocol version that a node speaks from its next start on.
    pub(crate) protocols: Vec<u16>,
    /// Entries after which a machine leaves a checkpoint when its node stops; for nodes that are opened from now on.
    pub(crate) recovery_interval: u64,
    /// Bytes of snapshots that a node sends in a second; for nodes that are opened from now on.
    pub(crate) snapshot_bytes_per_s: u64,
    /// Nodes have a directory of named groups, whose machines count.
    is_named: bool,
}

impl Cluster {
    /// Nodes without groups, once they are one cluster.
    pub(crate) fn new(count: u64) -> Self {
        Self::with_files(&vec![256 * 1024; count as usize])
    }

    /// As [`new`](Self::new), with log files of so many bytes at each node.
    pub(crate) fn with_files(file_bytes: &[u64]) -> Self {
        Self::with_versions(file_bytes, vec![u16::MAX; file_bytes.len()])
    }

    /// As [`new`](Self::new), with named groups: their machines are those that [`start`](Self::start) starts, but for an
    /// argument of `unknown`, for which there is none.
    pub(crate) fn named(count: u64) -> Self {
        Self::begin(&vec![256 * 1024; count as usize], vec![u16::MAX; count as usize], true)
    }

    /// As [`with_files`](Self::with_files), with nodes that speak older protocol versions.
    pub(crate) fn with_versions(file_bytes: &[u64], protocols: Vec<u16>) -> Self {
        Self::begin(file_bytes, protocols, false)
    }

    fn begin(file_bytes: &[u64], protocols: Vec<u16>, is_named: bool) -> Self {
        let disks: Vec<FakeDisk> = (1..).map(FakeDisk::new).take(file_bytes.len()).collect();
        let mut cluster = Self {
            clock: FakeClock::new(),
            network: FakeNetwork::new(3),
            nodes: disks.iter().map(|_| None).collect(),
            disks,
            file_bytes: file_bytes.to_vec(),
            boots: 0,
            protocols,
            recovery_interval: 0,
            snapshot_bytes_per_s: 128 << 20,
            is_named,
        };
        (0..file_bytes.len()).for_each(|at| cluster.open(at));
        cluster.turn_until("a cluster", |cluster| cluster.nodes.iter().flatten().all(SimNode::is_running));
        cluster
    }

    pub(crate) fn open(&mut self, at: usize) {
        let address = |id| FakeNetwork::address(id, 7101);
        let ids = 1..=self.disks.len() as u64;
        let peers = ids.map(|id| Peer { id: NodeId(id), address: address(id) }).collect();
        let mut config = Config::new(at as u64 + 1, peers, "/unused");
        config.shards = 1;
        config.wal_max_size_bytes = self.file_bytes[at];
        config.min_checkpoint_interval = 5;
        config.min_recovery_checkpoint_interval = self.recovery_interval;
        config.snapshot_bytes_per_s = self.snapshot_bytes_per_s;
        self.boots += 1;
        let net = self.network.driver(at as u64 + 1);
        let (disk, clock) = (self.disks[at].clone(), self.clock.clone());
        let machines = |_: &str, argument: &[u8]| {
            let machine: Box<dyn Machine> = Box::new(Count(0, Fault::None));
            (argument != b"unknown").then_some(machine)
        };
        let node = match self.is_named {
            true => SimNode::open_with_groups(&config, disk, net, clock, self.boots, machines),
            false => SimNode::open_speaking(&config, disk, net, clock, self.boots, self.protocols[at]),
        };
        self.nodes[at] = Some(node.unwrap());
    }

    /// A further node that is not there yet; the others know of it from their next start on.
    pub(crate) fn add_node(&mut self) -> usize {
        let at = self.disks.len();
        self.disks.push(FakeDisk::new(at as u64 + 1));
        self.nodes.push(None);
        self.file_bytes.push(256 * 1024);
        self.protocols.push(u16::MAX);
        at
    }

    /// Kills a node; what it wrote is there if it was durable.
    pub(crate) fn kill(&mut self, at: usize) {
        self.nodes[at] = None;
        self.disks[at].crash(CrashPolicy::KEEP_ALL);
        self.network.stop_node(at as u64 + 1, NodeStop::Killed);
    }

    /// Stops a node in good order.
    pub(crate) fn stop(&mut self, at: usize) {
        let mut node = self.nodes[at].take().unwrap();
        node.stop();
        let end = (0..1000).find_map(|_| node.turn().err());
        assert!(matches!(end, Some(coracle::Error::Stopped(None))), "{end:?}");
        self.network.stop_node(at as u64 + 1, NodeStop::Killed);
    }

    pub(crate) fn node(&self, at: usize) -> &SimNode<FakeDisk, FakeNet, FakeClock> {
        self.nodes[at].as_ref().unwrap()
    }

    pub(crate) fn start(&self, at: usize, group: GroupId, fault: Fault) {
        self.node(at).start_group(group, Box::new(Count(0, fault)));
    }

    pub(crate) fn now_us(&self) -> u64 {
        self.clock.true_us()
    }

    pub(crate) fn turn(&mut self) {
        self.clock.advance(500);
        let now_us = self.clock.true_us();
        self.network.advance(now_us);
        self.disks.iter().for_each(|disk| disk.advance(now_us));
        for node in self.nodes.iter_mut().flatten() {
            node.turn().unwrap();
        }
    }

    pub(crate) fn turn_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..40_000 {
            if done(self) {
                return;
            }
            self.turn();
        }
        panic!("it does not come to {what}");
    }

    /// How a command ends: `None` if done, else why not.
    pub(crate) fn once(&mut self, at: usize, group: GroupId, command: &[u8]) -> Option<Reason> {
        let answer = self.node(at).propose(group, command);
        self.turn_until("an answer", |_| answer.get().is_some());
        match answer.get().unwrap() {
            Outcome::Done(_) => None,
            Outcome::NotDone(why) => Some(why.reason),
            Outcome::Unknown(why) => panic!("{why}"),
        }
    }

    /// Proposes until it is done, whoever leads.
    pub(crate) fn done(&mut self, at: usize, group: GroupId, command: &[u8]) {
        while let Some(reason) = self.once(at, group, command) {
            assert!(matches!(reason, Reason::NoLeader | Reason::Busy), "{reason}");
        }
    }

    pub(crate) fn asked(&mut self, at: usize, group: GroupId) -> Result<u64, Reason> {
        let answer = self.node(at).query(group, b"");
        self.turn_until("an answer", |_| answer.get().is_some());
        match answer.get().unwrap() {
            Outcome::Done(done) => Ok(u64::from_le_bytes(done.reply.try_into().unwrap())),
            Outcome::NotDone(why) => Err(why.reason),
            Outcome::Unknown(why) => panic!("{why}"),
        }
    }

    pub(crate) fn status(&self, at: usize) -> GroupStatus {
        self.node(at).group_status(GROUP).unwrap()
    }

    pub(crate) fn poisoned(&self, at: usize) -> String {
        self.status(at).poisoned.unwrap_or_default()
    }
}
