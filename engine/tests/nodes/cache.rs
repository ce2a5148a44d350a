//! What is kept in memory for members that are behind is bounded, and they catch up all the same.
#![allow(clippy::unwrap_used)] // a test that fails may panic

use coracle::sim::SimNode;
use coracle::{Config, GroupId, NodeId, Peer};
use coracle_io::fake::{FakeClock, FakeDisk, FakeNet, FakeNetwork};

use crate::cluster::Nothing;

type Node = SimNode<FakeDisk, FakeNet, FakeClock>;

const GROUPS: u64 = 4;
const CACHE_BYTES: usize = 256 * 1024;

struct Cluster {
    clock: FakeClock,
    network: FakeNetwork,
    disks: Vec<FakeDisk>,
    nodes: Vec<Node>,
}

impl Cluster {
    fn new() -> Self {
        let (clock, network) = (FakeClock::new(), FakeNetwork::new(3));
        let disks: Vec<FakeDisk> = (1..=3).map(FakeDisk::new).collect();
        let peer = |id| Peer { id: NodeId(id), address: FakeNetwork::address(id, 7101) };
        let open = |(id, disk): (u64, &FakeDisk)| {
            let mut config = Config::new(id, (1..=3).map(peer).collect(), "/unused");
            config.shards = 1;
            config.entry_cache_bytes = CACHE_BYTES;
            // Links stay up while a node stands still: the third, which therefore must not lead.
            config.beat_us = 60_000_000;
            config.election_us = if id == 3 { 2_000_000_000 } else { 180_000_000 };
            let node = SimNode::open(&config, disk.clone(), network.driver(id), clock.clone(), id).unwrap();
            (1..=GROUPS).for_each(|group| node.start_group(GroupId(group), Box::new(Nothing)));
            node
        };
        let nodes = (1..).zip(&disks).map(open).collect();
        Self { clock, network, disks, nodes }
    }

    /// A step of the first `count` nodes; the others stand still.
    fn turn(&mut self, count: usize, us: u64) {
        self.clock.advance(us);
        let now_us = self.clock.true_us();
        self.network.advance(now_us);
        self.disks.iter().for_each(|disk| disk.advance(now_us));
        self.nodes.iter_mut().take(count).for_each(|node| {
            node.turn().unwrap();
        });
    }

    fn leader(&self, group: u64) -> Option<usize> {
        let seen = |node: &Node| node.group_status(GroupId(group)).and_then(|status| status.leader);
        let leader = seen(&self.nodes[0])?;
        self.nodes.iter().all(|node| seen(node) == Some(leader)).then_some(leader.0 as usize - 1)
    }
}

#[test]
fn entries_kept_for_a_slow_member_are_bounded_and_it_catches_up() {
    let mut cluster = Cluster::new();
    while !(1..=GROUPS).all(|group| cluster.leader(group).is_some()) {
        cluster.turn(3, 1_000_000);
    }
    // The third node stands still, its link up, while every group gets twice what may be kept.
    let mut kept_max = 0;
    for round in 0..2 * CACHE_BYTES / 8192 {
        for group in 1..=GROUPS {
            let leader = cluster.leader(group).unwrap();
            let answer = cluster.nodes[leader].propose(GroupId(group), &[round as u8; 8192]);
            while answer.get().is_none() {
                cluster.turn(2, 100);
            }
        }
        let kept = |node: &Node| node.status().unwrap().arena_bytes as usize;
        kept_max = kept_max.max(cluster.nodes.iter().take(2).map(kept).max().unwrap());
    }
    assert!(kept_max > CACHE_BYTES / 2, "it is kept for a while: {kept_max}");
    assert!(kept_max < 2 * CACHE_BYTES, "and not for ever: {kept_max}");
    let last = |node: &Node, group| node.group_status(GroupId(group)).unwrap().applied;
    for _ in 0..200_000 {
        let behind = (1..=GROUPS).any(|g| last(&cluster.nodes[2], g) < last(&cluster.nodes[0], g));
        if !behind {
            return;
        }
        cluster.turn(3, 100);
    }
    panic!("the third node does not catch up");
}
