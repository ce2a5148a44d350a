//! Full disks: who may still write, whom it concerns, and that it passes by itself. On simulated disks with a quota.
#![allow(clippy::unwrap_used)] // a test that fails may panic

use std::collections::VecDeque;

use coracle::sim::{Answer, SimNode};
use coracle::{
    Class, Config, Effects, Entry, GroupId, Index, IndexRange, Machine, NodeId, Outcome, Peer, Reason,
    RestoreError,
};
use coracle_io::fake::{FakeClock, FakeDisk, FakeNet, FakeNetwork};

const GROUP: GroupId = GroupId(1);
const FILE: u64 = 64 * 1024;
/// One that any record fits, also those with which a follower catches up.
const LARGE_FILE: u64 = 2 * 1024 * 1024;

/// Counts commands. One that begins with `free` gives space back, says the machine; `free all` releases the log.
#[derive(Default)]
struct Count(u64);

impl Machine for Count {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        self.0 += 1;
        if entry.command == b"free all" {
            effects.release();
        }
    }
    fn class(&self, command: &[u8]) -> Class {
        if command.starts_with(b"free") { Class::Freeing } else { Class::Ordinary }
    }
    fn query(&self, _: &[u8], reply: &mut Vec<u8>) {
        reply.extend(self.0.to_le_bytes());
    }
    fn snapshot(&self, out: &mut Vec<u8>) {
        out.extend(self.0.to_le_bytes());
    }
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        self.0 = u64::from_le_bytes(snapshot.try_into().map_err(|_| RestoreError("not a count".into()))?);
        Ok(())
    }
}

/// Counts commands, and keeps every tenth of them in the log, the last thirty of these.
#[derive(Default)]
struct Keep {
    count: Count,
    kept: VecDeque<u64>,
}

impl Machine for Keep {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        if entry.index.0.is_multiple_of(10) {
            self.kept.push_back(entry.index.0);
        }
        while self.kept.len() > 30 {
            self.kept.pop_front();
        }
        self.count.apply(entry, effects);
    }
    fn class(&self, command: &[u8]) -> Class {
        self.count.class(command)
    }
    fn live_indexes(&self) -> Vec<IndexRange> {
        self.kept.iter().map(|index| IndexRange { first: Index(*index), count: 1 }).collect()
    }
    fn query(&self, query: &[u8], reply: &mut Vec<u8>) {
        self.count.query(query, reply);
    }
    fn snapshot(&self, out: &mut Vec<u8>) {
        self.count.snapshot(out);
    }
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        self.count.restore(snapshot)
    }
}

/// A state of a size: too large for the log until it is made small.
#[derive(Default)]
struct Large(Vec<u8>);

impl Machine for Large {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        match entry.command {
            b"grow" => self.0 = vec![7; 3 * FILE as usize],
            b"free shrink" => self.0.clear(),
            b"free all" => effects.release(),
            _ => {}
        }
    }
    fn class(&self, command: &[u8]) -> Class {
        if command.starts_with(b"free") { Class::Freeing } else { Class::Ordinary }
    }
    fn query(&self, _: &[u8], reply: &mut Vec<u8>) {
        reply.extend((self.0.len() as u64).to_le_bytes());
    }
    fn snapshot(&self, out: &mut Vec<u8>) {
        out.extend(&self.0);
    }
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        self.0 = snapshot.to_vec();
        Ok(())
    }
}

struct Cluster {
    clock: FakeClock,
    network: FakeNetwork,
    disks: Vec<FakeDisk>,
    nodes: Vec<SimNode<FakeDisk, FakeNet, FakeClock>>,
}

impl Cluster {
    /// Nodes with one group, once it has a leader.
    fn new(count: u64, file_bytes: u64) -> Self {
        Self::of(count, file_bytes, || Box::new(Count::default()))
    }

    fn of(count: u64, file_bytes: u64, machine: fn() -> Box<dyn Machine>) -> Self {
        let (clock, network) = (FakeClock::new(), FakeNetwork::new(3));
        let disks: Vec<FakeDisk> = (1..=count).map(FakeDisk::new).collect();
        let address = |id| FakeNetwork::address(id, 7101);
        let peers: Vec<Peer> = (1..=count).map(|id| Peer { id: NodeId(id), address: address(id) }).collect();
        let open = |(id, disk): (u64, &FakeDisk)| {
            let mut config = Config::new(id, peers.clone(), "/unused");
            config.shards = 1;
            config.wal_max_size_bytes = file_bytes;
            let net = network.driver(id);
            let node = SimNode::open(&config, disk.clone(), net, clock.clone(), id).unwrap();
            node.start_group(GROUP, machine());
            node
        };
        let nodes = (1..).zip(&disks).map(open).collect();
        let mut cluster = Self { clock, network, disks, nodes };
        cluster.turn_until("a leader", |cluster| cluster.leader().is_some());
        cluster
    }

    /// The place of the node that leads, as all see it.
    fn leader(&self) -> Option<usize> {
        let seen = |node: &SimNode<_, _, _>| node.group_status(GROUP).and_then(|status| status.leader);
        let leader = seen(&self.nodes[0])?;
        self.nodes.iter().all(|node| seen(node) == Some(leader)).then_some(leader.0 as usize - 1)
    }

    fn turn(&mut self) {
        self.clock.advance(500);
        let now_us = self.clock.true_us();
        self.network.advance(now_us);
        self.disks.iter().for_each(|disk| disk.advance(now_us));
        for node in &mut self.nodes {
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

    /// How a command ends that is proposed at one of the nodes: `None` if done, else why not.
    fn propose(&mut self, at: usize, command: &[u8]) -> Option<Reason> {
        let answer: Answer = self.nodes[at].propose(GROUP, command);
        self.turn_until("an answer", |_| answer.get().is_some());
        match answer.get().unwrap() {
            Outcome::Done(_) => None,
            Outcome::NotDone(why) => Some(why.reason),
            Outcome::Unknown(why) => panic!("nothing may be in doubt: {why}"),
        }
    }

    /// Proposes until it is refused: how often it was done.
    fn fill(&mut self, at: usize, command: &[u8]) -> usize {
        for done in 0..1000 {
            match self.propose(at, command) {
                None => {}
                Some(Reason::DiskFull) => return done,
                Some(other) => panic!("{other}"),
            }
        }
        panic!("the disk does not become full");
    }

    fn applied(&self, at: usize) -> u64 {
        self.nodes[at].group_status(GROUP).map_or(0, |status| status.applied.0)
    }
}

#[test]
fn each_class_of_command_stops_at_its_own_reserve() {
    let mut lone = Cluster::new(1, FILE);
    lone.disks[0].set_quota(Some(6 * FILE));
    assert!(lone.fill(0, &[7; 3000]) > 20);
    lone.fill(0, b"small");
    assert!(lone.nodes[0].status().unwrap().disk_full);
    let log = |lone: &Cluster| lone.nodes[0].wal_stats().unwrap().batch_bytes;
    let before = log(&lone);
    let freed = lone.fill(0, b"free one");
    let used = log(&lone) - before;
    assert!(freed >= 3, "{freed} freeing commands found room");
    assert!(used <= FILE / 2, "{used} bytes: what is kept for votes and releases was touched");
    assert_eq!(lone.propose(0, b"ordinary"), Some(Reason::DiskFull));
    // Questions need no room.
    let answer = lone.nodes[0].query(GROUP, b"");
    lone.turn_until("an answer", |_| answer.get().is_some());
    assert!(matches!(answer.get(), Some(Outcome::Done(_))));

    lone.disks[0].set_quota(None);
    lone.turn_until("room again", |lone| !lone.nodes[0].status().unwrap().disk_full);
    assert_eq!(lone.propose(0, b"ordinary"), None);
}

#[test]
fn a_full_log_that_is_released_takes_commands_again_on_the_same_disk() {
    let mut lone = Cluster::new(1, FILE);
    lone.disks[0].set_quota(Some(6 * FILE));
    for round in 0..20 {
        let done = lone.fill(0, &[7; 3000]);
        assert!(done > 10, "{done} commands in round {round}");
        assert_eq!(lone.propose(0, b"free all"), None, "round {round}");
        lone.turn_until("room again", |lone| !lone.nodes[0].status().unwrap().disk_full);
    }
}

/// Nothing says so twice: who frees the disk may have no more to say, and other commands are refused.
#[test]
fn a_release_whose_file_found_no_room_happens_when_the_state_has_become_small() {
    let mut lone = Cluster::of(1, FILE, || Box::new(Large::default()));
    lone.disks[0].set_quota(Some(6 * FILE));
    assert_eq!(lone.propose(0, b"grow"), None);
    assert!(lone.fill(0, &[7; 3000]) > 10);
    assert_eq!(lone.propose(0, b"free all"), None);
    (0..200).for_each(|_| lone.turn());
    let st = lone.nodes[0].status().unwrap();
    eprintln!("{:?} {:?} {:?}", st, lone.nodes[0].group_status(GROUP), lone.disks[0].fault_counts());
    assert!(lone.nodes[0].status().unwrap().disk_full, "its state does not fit the disk");
    assert_eq!(lone.propose(0, b"free shrink"), None);
    lone.turn_until("a release", |lone| lone.nodes[0].group_status(GROUP).unwrap().first > Index(1));
    lone.turn_until("room again", |lone| !lone.nodes[0].status().unwrap().disk_full);
    assert_eq!(lone.propose(0, b"ordinary"), None);
}

/// A release that comes too soon after the last one waits; but not on a full disk.
#[test]
fn a_release_that_waits_for_its_interval_happens_when_the_disk_becomes_full() {
    let mut lone = Cluster::of(1, FILE, || Box::new(Large::default()));
    assert_eq!(lone.propose(0, b"grow"), None);
    assert_eq!(lone.propose(0, b"free all"), None);
    let files = |lone: &Cluster| lone.nodes[0].status().unwrap().snapshot_files;
    lone.turn_until("a snapshot file", |lone| files(lone) == 1);
    assert_eq!(lone.propose(0, b"free shrink"), None);
    assert_eq!(lone.propose(0, b"free all"), None);
    (0..200).for_each(|_| lone.turn());
    let first = |lone: &Cluster| lone.nodes[0].group_status(GROUP).unwrap().first;
    let before = first(&lone);
    assert!(before < Index(5), "released at {before} already");
    lone.disks[0].set_quota(Some(0));
    let other = GroupId(2);
    lone.nodes[0].start_group(other, Box::new(Count::default()));
    lone.turn_until("a release", |lone| {
        lone.nodes[0].propose(other, &[7; 3000]);
        first(lone) > before
    });
}

/// In every file a few entries live on, so that no file is free before they have moved; and for that the disk has no room
/// but the reserve.
#[test]
fn a_full_log_in_which_entries_live_on_is_compacted_on_the_same_disk_again_and_again() {
    let mut lone = Cluster::of(1, FILE, || Box::new(Keep::default()));
    let reserve =
        |lone: &Cluster| lone.disks[0].read_file("shard-0/compaction.reserve").map(|file| file.len());
    // While there is room, a reserve is made.
    while reserve(&lone).is_none_or(|bytes| bytes < 48 * 1024) {
        assert_eq!(lone.propose(0, &[7; 3000]), None);
        (0..20).for_each(|_| lone.turn());
    }
    // And room for the small files beside the log.
    lone.disks[0].set_quota(Some(10 * FILE + 4096));
    let mut done = Vec::new();
    for round in 0..30 {
        done.push(lone.fill(0, &[7; 3000]));
        assert_eq!(lone.propose(0, b"free all"), None, "round {round}");
        lone.turn_until("room again", |lone| !lone.nodes[0].status().unwrap().disk_full);
    }
    let status = lone.nodes[0].status().unwrap();
    assert!(done.iter().sum::<usize>() > 300, "{done:?}");
    assert!(status.compacted_files > 20, "{status:?}");
    assert!(reserve(&lone) >= Some(48 * 1024), "it is there for the next time");
}

#[test]
fn of_a_batch_only_what_takes_space_is_refused_through_any_node() {
    let mut cluster = Cluster::new(3, FILE);
    let leader = cluster.leader().unwrap();
    cluster.disks.iter().for_each(|disk| disk.set_quota(Some(6 * FILE)));
    cluster.fill(leader, &[7; 3000]);
    for at in [leader, (leader + 1) % 3] {
        let commands = [b"a".to_vec(), b"free b".to_vec(), b"c".to_vec(), b"free d".to_vec()];
        cluster.nodes[at].propose_all(GROUP, &(1..).zip(commands).collect::<Vec<_>>());
        let mut answers = Vec::new();
        while answers.len() < 4 {
            cluster.turn();
            answers.extend(cluster.nodes[at].answers());
        }
        answers.sort_by_key(|(tag, _)| *tag);
        for (tag, outcome) in answers {
            match outcome {
                Outcome::Done(_) => assert_eq!(tag % 2, 0, "{tag} takes space"),
                Outcome::NotDone(why) => assert_eq!((why.reason, tag % 2), (Reason::DiskFull, 1)),
                Outcome::Unknown(why) => panic!("{tag}: {why}"),
            }
        }
    }
}

#[test]
fn a_full_follower_holds_nobody_up_and_catches_up_when_there_is_room() {
    let mut cluster = Cluster::new(3, LARGE_FILE);
    let leader = cluster.leader().unwrap();
    let full = (leader + 1) % 3;
    cluster.disks[full].set_quota(Some(4 * LARGE_FILE));
    for round in 0..200 {
        assert_eq!(cluster.propose(leader, &[7; 100_000]), None, "round {round}");
    }
    assert!(cluster.nodes[full].status().unwrap().disk_full);
    let (ahead, behind) = (cluster.applied(leader), cluster.applied(full));
    assert!(behind + 100 < ahead, "the quota is too large to show anything: {behind} of {ahead}");
    // What the leader sends in vain is bounded: it tries again twice a second, not all the time.
    let frames = |cluster: &Cluster| cluster.nodes[leader].status().unwrap().frames;
    let before = frames(&cluster);
    (0..20_000).for_each(|_| cluster.turn()); // ten seconds
    let sent = frames(&cluster) - before;
    assert!(sent < 1000, "{sent} frames in ten seconds");
    assert_eq!(cluster.leader(), Some(leader), "it goes on voting and following");

    cluster.disks[full].set_quota(None);
    cluster.turn_until("the follower to catch up", |cluster| {
        cluster.applied(full) == cluster.applied(leader) && cluster.applied(full) >= ahead
    });
}
