//! A node comes back with an older state of its disk than it acknowledged, and nothing on the disk says so.

use coracle::{GroupId, Index, NodeId, Outcome, Reason};
use coracle_io::fake::{Damage, FakeDisk};

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
    cluster.turn_until("word of the loss", |cluster| cluster.node(at).status().unwrap().directory_old);
    let is_whole = |cluster: &Cluster| {
        let (status, shard) = (cluster.status(at), cluster.node(at).status().unwrap());
        !status.suspect && status.applied == cluster.status(leader).applied && shard.groups_mended == 1
    };
    cluster.turn_until("a whole log", is_whole);
    let shard = cluster.node(at).status().unwrap();
    // The others say so before its leader could.
    assert_eq!((shard.groups_lost_acknowledged, shard.groups_damaged), (0, 1));
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
        let status = cluster.node(node).status().unwrap();
        assert_eq!((status.groups_damaged, status.directory_old), (0, false));
    }
}

/// While one of the others is away, it neither votes nor counts, whatever it starts anew; its status says whom it waits for.
#[test]
fn an_older_copy_stays_one_over_restarts_until_all_others_have_answered() {
    let (mut cluster, leader, at) = cluster_of(u16::MAX);
    let other = 3 - leader - at;
    let image = cluster.disks[at].image();
    (0..5).for_each(|_| cluster.done(leader, GROUP, b"more"));
    cluster.turn_until("rest", |cluster| cluster.status(at).applied == cluster.status(leader).applied);
    cluster.kill(other);
    cluster.kill(at);
    cluster.turn_until("no leader", |cluster| cluster.status(leader).leader.is_none());
    cluster.disks[at] = FakeDisk::from_image(image, 77);
    for _ in 0..3 {
        cluster.open(at);
        cluster.turn_until("a running node", |cluster| cluster.node(at).is_running());
        cluster.start(at, GROUP, Fault::None);
        let waits = vec![NodeId(other as u64 + 1)];
        cluster.turn_until("an answer of the one that is there", |cluster| {
            cluster.node(at).group_status(GROUP).is_some_and(|one| one.suspect && one.waits_for == waits)
        });
        (0..4_000).for_each(|_| cluster.turn());
        let [here, there] = [at, leader].map(|node| cluster.status(node).leader);
        assert_eq!((here, there), (None, None), "one of three leads");
        cluster.kill(at);
    }
    [at, other].into_iter().for_each(|node| cluster.open(node));
    cluster.turn_until("running nodes", |cluster| {
        [at, other].iter().all(|node| cluster.node(*node).is_running())
    });
    [at, other].into_iter().for_each(|node| cluster.start(node, GROUP, Fault::None));
    cluster.turn_until("a whole log", |cluster| {
        let status = cluster.node(at).group_status(GROUP);
        status.is_some_and(|one| {
            !one.suspect && one.waits_for.is_empty() && one.last >= cluster.status(leader).last
        })
    });
    cluster.done(at, GROUP, b"last");
    assert_eq!(cluster.asked(other, GROUP), Ok(7));
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

/// Its votes in that group may be forgotten, and what its leader has it store does not change that: not over a restart either.
#[test]
fn a_group_that_an_older_copy_does_not_have_is_no_more_trusted_after_a_restart() {
    const LATER: GroupId = GroupId(2);
    let (mut cluster, leader, at) = cluster_of(u16::MAX);
    let other = 3 - leader - at;
    go_back(&mut cluster, leader, at);
    cluster.turn_until("a whole log", |cluster| cluster.node(at).status().unwrap().groups_mended == 1);
    // That all are whole is durable.
    (0..2_000).for_each(|_| cluster.turn());
    [leader, other].into_iter().for_each(|node| cluster.start(node, LATER, Fault::None));
    cluster.done(leader, LATER, b"one");
    let leads = |cluster: &Cluster| cluster.node(leader).group_status(LATER).and_then(|one| one.leader);
    // Whoever does not lead it does not answer.
    let dead = if leads(&cluster) == Some(NodeId(leader as u64 + 1)) { other } else { leader };
    cluster.kill(dead);
    cluster.start(at, LATER, Fault::None);
    cluster.turn_until("an entry", |cluster| {
        cluster.node(at).group_status(LATER).is_some_and(|one| one.last > Index(0))
    });
    (0..200).for_each(|_| cluster.turn());
    cluster.kill(at);
    cluster.open(at);
    cluster.turn_until("a running node", |cluster| cluster.node(at).is_running());
    cluster.start(at, LATER, Fault::None);
    let waits = vec![NodeId(dead as u64 + 1)];
    cluster.turn_until("an answer of the one that is there", |cluster| {
        let status = cluster.node(at).group_status(LATER);
        status.is_some_and(|one| one.suspect && one.last > Index(0) && one.waits_for == waits)
    });
    cluster.open(dead);
    cluster.turn_until("a running node", |cluster| cluster.node(dead).is_running());
    cluster.start(dead, LATER, Fault::None);
    cluster.turn_until("a whole log", |cluster| {
        cluster.node(at).group_status(LATER).is_some_and(|one| !one.suspect)
    });
}

/// Puts the directories of these nodes back to what they are now, after more was acknowledged by all.
fn go_back_together(cluster: &mut Cluster, at: &[usize]) {
    let images: Vec<_> = at.iter().map(|at| cluster.disks[*at].image()).collect();
    (0..5).for_each(|_| cluster.done(at[0], GROUP, b"more"));
    let nodes = cluster.nodes.len();
    cluster.turn_until("rest", |cluster| {
        (0..nodes).all(|node| cluster.status(node).applied == cluster.status(at[0]).applied)
    });
    at.iter().for_each(|at| cluster.kill(*at));
    for (at, image) in at.iter().zip(images) {
        cluster.disks[*at] = FakeDisk::from_image(image, 77);
        cluster.open(*at);
    }
    cluster.turn_until("running nodes", |cluster| at.iter().all(|at| cluster.node(*at).is_running()));
    at.iter().for_each(|at| cluster.start(*at, GROUP, Fault::None));
}

/// Nobody can say what the two have forgotten. Nothing is answered, by anybody, until an operator says what is to go on.
#[test]
fn a_group_most_of_whose_members_went_back_stands_still_and_says_so_until_it_is_shrunk() {
    let (mut cluster, leader, at) = cluster_of(u16::MAX);
    let other = 3 - leader - at;
    go_back_together(&mut cluster, &[at, other]);
    let nodes = [leader, at, other];
    let waiting = cluster.node(leader).propose(GROUP, b"too late");
    cluster.turn_until("word of the loss", |cluster| {
        nodes
            .iter()
            .all(|at| cluster.node(*at).group_status(GROUP).is_some_and(|one| one.data_loss.is_some()))
    });
    cluster.turn_until("an answer", |_| waiting.get().is_some());
    assert!(matches!(waiting.get(), Some(Outcome::Unknown(_))), "the leader had taken it up");
    for node in nodes {
        assert_eq!(cluster.once(node, GROUP, b"more"), Some(Reason::DataLoss));
        assert_eq!(cluster.asked(node, GROUP), Err(Reason::DataLoss));
        assert_eq!(cluster.node(node).status().unwrap().groups_data_loss, 1);
        let (status, best) = (cluster.status(node), cluster.status(leader));
        let loss = status.data_loss.unwrap();
        assert_eq!(loss.above, status.last);
        assert!(node != leader || loss.best == (NodeId(leader as u64 + 1), best.last));
    }
    let shrunk = cluster.node(leader).force_shrink(GROUP);
    cluster.turn_until("an answer", |_| shrunk().is_some());
    cluster.done(at, GROUP, b"again");
    assert_eq!(cluster.asked(other, GROUP), Ok(8), "what was unknown is done after all");
    assert_eq!(cluster.status(leader).data_loss, None);
}

/// A group of two needs nobody else: what one has forgotten, the other one has.
#[test]
fn a_member_of_two_that_went_back_is_whole_when_the_other_one_has_answered() {
    for nth in 0..2 {
        let mut cluster = Cluster::new(2);
        (0..2).for_each(|at| cluster.start(at, GROUP, Fault::None));
        cluster.done(0, GROUP, b"one");
        let leader = cluster.status(0).leader.unwrap().0 as usize - 1;
        let at = (leader + nth) % 2;
        go_back_together(&mut cluster, &[at]);
        cluster.turn_until("a whole log", |cluster| {
            let status = cluster.node(at).group_status(GROUP);
            status.is_some_and(|one| !one.suspect && one.leader.is_some())
                && cluster.node(at).status().unwrap().groups_mended == 1
        });
        cluster.done(at, GROUP, b"last");
        assert_eq!(cluster.asked(1 - at, GROUP), Ok(7));
        assert_eq!(cluster.node(1 - at).status().unwrap().groups_data_loss, 0);
    }
}

/// Found by the simulator: it was read again and again, for ever.
#[test]
fn what_a_leader_cannot_read_any_more_reaches_a_follower_as_a_snapshot() {
    let (mut cluster, leader, at) = cluster_of(u16::MAX);
    cluster.kill(at);
    cluster.done(leader, GROUP, b"it will not be read again");
    cluster.done(leader, GROUP, b"more");
    // After a start nothing of the log is in memory.
    cluster.kill(leader);
    cluster.open(leader);
    cluster.turn_until("a running node", |cluster| cluster.node(leader).is_running());
    cluster.start(leader, GROUP, Fault::None);
    cluster.done(leader, GROUP, b"last");
    assert!(fail_reads_of(&cluster.disks[leader], b"it will not be read again"));
    let other = 3 - leader - at;
    if cluster.status(leader).leader == Some(NodeId(other as u64 + 1)) {
        assert!(fail_reads_of(&cluster.disks[other], b"it will not be read again"));
    }
    cluster.open(at);
    cluster.turn_until("a running node", |cluster| cluster.node(at).is_running());
    cluster.start(at, GROUP, Fault::None);
    cluster.turn_until("all there is", |cluster| {
        let status = cluster.node(at).group_status(GROUP);
        status.is_some_and(|one| one.digest == cluster.status(leader).digest && one.first > Index(2))
    });
}

/// The pages of the log that hold `needle` cannot be read any more. Whether there are any.
fn fail_reads_of(disk: &FakeDisk, needle: &[u8]) -> bool {
    let image = disk.image();
    let mut found = false;
    for path in image.paths() {
        let bytes = image.read(&path).unwrap_or_default();
        for at in (0..bytes.len().saturating_sub(needle.len())).filter(|at| bytes[*at..].starts_with(needle))
        {
            found |= disk.corrupt(&path, at as u64 / 4096 * 4096, Damage::Unreadable);
        }
    }
    found
}
