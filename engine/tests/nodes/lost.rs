//! A node comes back with an older state of its disk than it acknowledged, and nothing on the disk says so.

use coracle::NodeId;
use coracle_io::fake::FakeDisk;

use crate::cluster::{Cluster, Fault, GROUP};

/// Three nodes, one command applied everywhere; (the leader, one that follows).
fn cluster_of(protocol: u16) -> (Cluster, usize, usize) {
    let mut cluster = Cluster::with_versions(&[256 * 1024; 3], vec![protocol; 3]);
    (0..3).for_each(|at| cluster.start(at, GROUP, Fault::None));
    cluster.done(0, GROUP, b"one");
    let leader = cluster.status(0).leader.unwrap().0 as usize - 1;
    let follower = (leader + 1) % 3;
    cluster.turn_until("rest", |cluster| {
        (0..3).all(|at| cluster.status(at).applied == cluster.status(leader).applied)
    });
    (cluster, leader, follower)
}

/// More is acknowledged by all; then the node is gone, and back with an earlier image.
fn go_back(cluster: &mut Cluster, leader: usize, at: usize) {
    let image = cluster.disks[at].image();
    for _ in 0..5 {
        cluster.done(leader, GROUP, b"more");
    }
    cluster.turn_until("rest", |cluster| cluster.status(at).applied == cluster.status(leader).applied);
    cluster.kill(at);
    cluster.disks[at] = FakeDisk::from_image(image, 77);
    cluster.open(at);
    cluster.turn_until("a running node", |cluster| cluster.node(at).is_running());
    cluster.start(at, GROUP, Fault::None);
}

#[test]
fn a_node_that_went_back_is_told_and_counts_and_votes_again_once_it_has_everything() {
    let (mut cluster, leader, at) = cluster_of(u16::MAX);
    go_back(&mut cluster, leader, at);
    cluster.turn_until("word of the loss", |cluster| {
        cluster.node(at).status().unwrap().groups_lost_acknowledged > 0
    });
    let is_whole = |cluster: &Cluster| {
        let (status, shard) = (cluster.status(at), cluster.node(at).status().unwrap());
        !status.suspect && status.applied == cluster.status(leader).applied && shard.groups_mended == 1
    };
    cluster.turn_until("a whole log", is_whole);
    let shard = cluster.node(at).status().unwrap();
    assert_eq!((shard.groups_lost_acknowledged, shard.groups_damaged), (1, 1));
    // With the leader gone its vote is needed.
    cluster.kill(leader);
    let other = 3 - leader - at;
    cluster.done(other, GROUP, b"last");
    assert_eq!(cluster.asked(other, GROUP), Ok(7));
    // Nobody is accused for having been away.
    cluster.open(leader);
    cluster.turn_until("a running node", |cluster| cluster.node(leader).is_running());
    cluster.start(leader, GROUP, Fault::None);
    cluster.turn_until("rest", |cluster| {
        let status = cluster.node(leader).group_status(GROUP);
        status.is_some_and(|status| status.applied == cluster.status(other).applied)
    });
    for node in [leader, other] {
        assert_eq!(cluster.node(node).status().unwrap().groups_damaged, 0);
    }
}

/// Nothing of it is said to whoever would not understand: it is fed, and counts for what it says that it has.
#[test]
fn a_node_of_an_older_version_that_went_back_is_fed() {
    let (mut cluster, leader, at) = cluster_of(2);
    go_back(&mut cluster, leader, at);
    cluster.turn_until("a whole log", |cluster| {
        cluster.node(at).group_status(GROUP).is_some_and(|one| one.applied == cluster.status(leader).applied)
    });
    assert_eq!(cluster.node(at).status().unwrap().groups_lost_acknowledged, 0);
    assert_eq!(cluster.status(at).leader, Some(NodeId(leader as u64 + 1)));
    cluster.kill(3 - leader - at);
    cluster.done(leader, GROUP, b"last");
    assert_eq!(cluster.asked(leader, GROUP), Ok(7));
}
