//! Nodes whose data directories are gone, and nodes that were not there when the cluster was formed: they take a place, and
//! are members of nothing before a change of members says so.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test that fails may panic; real nodes have real time

use std::time::{Duration, Instant};

use coracle::{Change, Error, GroupId, Node, NodeId, Outcome, Reason};
use coracle_io::fake::FakeDisk;

use crate::cluster::{Cluster, Count, Fault, GROUP};
use crate::members::{agree, done, leader, members};
use crate::peers::{config, free_address};

fn group_of_all(nodes: u64) -> Cluster {
    let mut cluster = Cluster::new(nodes);
    (0..nodes as usize).for_each(|at| cluster.start(at, GROUP, Fault::None));
    cluster.turn_until("a leader", |cluster| leader(cluster, GROUP).is_some());
    (0..20).for_each(|_| cluster.done(0, GROUP, b"count"));
    cluster
}

fn change(cluster: &mut Cluster, at: usize, change: Change) {
    let changed = done(cluster, |cluster| cluster.node(at).change_members(GROUP, &[change], false));
    assert!(changed.is_ok(), "{change:?}: {changed:?}");
}

/// What an operator is told.
fn told(cluster: &mut Cluster, answer: impl Fn() -> Option<Result<(), Error>>) -> Result<(), String> {
    for _ in 0..2000 {
        match answer() {
            None => cluster.turn(),
            Some(result) => return result.map_err(|error| error.to_string()),
        }
    }
    panic!("no answer");
}

/// What an operator is told who gives up a node's place.
fn give_up(cluster: &mut Cluster, at: usize, node: u64, force: bool) -> Result<(), String> {
    let answer = cluster.node(at).replace_node(NodeId(node), force);
    told(cluster, answer)
}

fn lose(cluster: &mut Cluster, at: usize, nodes: &[u64], force: bool) -> Result<(), String> {
    let nodes: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
    let answer = cluster.node(at).lose_nodes(&nodes, force);
    told(cluster, answer)
}

/// Until a link that is down is taken for more than a reconnection.
fn some_seconds(cluster: &mut Cluster) {
    (0..8000).for_each(|_| cluster.turn());
}

fn shrink(cluster: &mut Cluster, at: usize) -> Result<(), String> {
    let answer = cluster.node(at).force_shrink(GROUP);
    told(cluster, answer)
}

fn refused(cluster: &mut Cluster, at: usize, node: u64, what: &str) {
    let why = give_up(cluster, at, node, false).unwrap_err();
    assert!(why.contains(what), "{why} does not say {what}");
}

/// What it hears of the new one it cannot judge while it leads a group with a member of that name.
#[test]
fn a_leader_that_was_away_while_a_member_was_replaced_comes_to_know_the_new_one() {
    let mut cluster = group_of_all(5);
    let away = 1;
    cluster.kill(away);
    cluster.kill(2);
    cluster.disks[2] = FakeDisk::new(33);
    cluster.open(2);
    some_seconds(&mut cluster);
    change(&mut cluster, 0, Change::Remove(NodeId(3)));
    let all_know =
        |cluster: &Cluster, expected: &[i64]| [0, 3, 4].iter().all(|at| members(cluster, *at) == expected);
    cluster.turn_until("the others to know", |cluster| all_know(cluster, &[1, 2, 4, 5]));
    assert_eq!(give_up(&mut cluster, 0, 3, false), Ok(()));
    cluster.turn_until("a running node", |cluster| cluster.node(2).is_running());
    cluster.start(2, GROUP, Fault::None);
    cluster.turn_until("links", |cluster| links_up(cluster, 2) == 3);
    change(&mut cluster, 0, Change::Voter(NodeId(3)));
    cluster.turn_until("a member", |cluster| all_know(cluster, &[1, 2, 3, 4, 5]));

    begin(&mut cluster, away);
    // It campaigns as soon as it may: before it looks again at what it heard of the new one, and was told with the log.
    while leader(&cluster, GROUP) != Some(away) {
        cluster.node(away).trigger_election(GROUP);
        (0..20).for_each(|_| cluster.turn());
    }
    assert!(links_up(&cluster, away) < 4, "it knows the new one: this test shows nothing");
    cluster.turn_until("a link to the new one", |cluster| links_up(cluster, away) == 4);
    cluster.done(away, GROUP, b"count");
    agree(&mut cluster, &[0, 1, 2, 3, 4], 21);
}

/// Starts a node, waits until it runs, and lets it have the group.
fn begin(cluster: &mut Cluster, at: usize) {
    cluster.open(at);
    cluster.turn_until("a running node", |cluster| cluster.node(at).is_running());
    cluster.start(at, GROUP, Fault::None);
    cluster.turn_until("a group", |cluster| cluster.node(at).group_status(GROUP).is_some());
}

fn links_up(cluster: &Cluster, at: usize) -> u64 {
    cluster.node(at).status().unwrap().links_up
}

#[test]
fn a_node_that_lost_its_disk_comes_back_as_a_member_of_nothing_and_its_old_disk_never() {
    let mut cluster = group_of_all(3);
    refused(&mut cluster, 0, 3, "it is up");
    cluster.kill(2);
    let old = std::mem::replace(&mut cluster.disks[2], FakeDisk::new(33));
    // Without a place it waits, and is told why.
    cluster.open(2);
    refused(&mut cluster, 0, 3, "for a moment only");
    some_seconds(&mut cluster);
    assert!(!cluster.node(2).is_running());
    refused(&mut cluster, 0, 3, "take it out of its groups");
    refused(&mut cluster, 1, 3, "node 1's to give away");
    refused(&mut cluster, 0, 1, "this node");
    refused(&mut cluster, 0, 9, "no place here");
    change(&mut cluster, 0, Change::Remove(NodeId(3)));
    cluster.turn_until("both to know", |cluster| (0..2).all(|at| members(cluster, at) == [1, 2]));
    assert_eq!(give_up(&mut cluster, 0, 3, false), Ok(()));

    cluster.turn_until("a running node", |cluster| cluster.node(2).is_running());
    cluster.start(2, GROUP, Fault::None);
    cluster.turn_until("all links", |cluster| (0..3).all(|at| links_up(cluster, at) == 2));
    // It has the group's name and no vote in it, though it may hear who has.
    assert!(!cluster.status(2).members.contains(NodeId(3)));
    change(&mut cluster, 1, Change::Promotable(NodeId(3)));
    cluster.turn_until("a promotion", |cluster| members(cluster, 0) == [1, 2, 3]);
    cluster.done(0, GROUP, b"count");
    agree(&mut cluster, &[0, 1, 2], 21);
    // It counts: without one of the founders it is half of the majority, also after everybody's restart.
    for at in [0, 1, 2] {
        cluster.stop(at);
    }
    (1..3).for_each(|at| begin(&mut cluster, at));
    cluster.done(2, GROUP, b"count");
    begin(&mut cluster, 0);
    agree(&mut cluster, &[0, 1, 2], 22);

    // Who has its old directory is nobody.
    cluster.kill(2);
    cluster.disks[2] = old;
    begin(&mut cluster, 2);
    (0..4000).for_each(|_| cluster.turn());
    assert_eq!(links_up(&cluster, 2), 0);
    cluster.done(0, GROUP, b"count");
}

/// One of the others was away all the time that a node was replaced: it comes to know the new one, also if it was killed on
/// its way.
#[test]
fn who_was_away_while_a_node_was_replaced_learns_of_it_with_its_groups() {
    for killed in [false, true] {
        let mut cluster = group_of_all(5);
        cluster.kill(1);
        cluster.kill(2);
        some_seconds(&mut cluster);
        change(&mut cluster, 0, Change::Remove(NodeId(3)));
        assert_eq!(give_up(&mut cluster, 0, 3, false), Ok(()));
        cluster.disks[2] = FakeDisk::new(33);
        begin(&mut cluster, 2);
        change(&mut cluster, 3, Change::Promotable(NodeId(3)));
        cluster.turn_until("a promotion", |cluster| members(cluster, 2) == [1, 2, 3, 4, 5]);
        (0..20).for_each(|_| cluster.done(0, GROUP, b"count"));
        begin(&mut cluster, 1);
        if killed {
            cluster.turn_until("its log", |cluster| cluster.status(1).applied == cluster.status(0).applied);
            cluster.kill(1);
            begin(&mut cluster, 1);
        }
        cluster.turn_until("all links", |cluster| (0..5).all(|at| links_up(cluster, at) == 4));
        agree(&mut cluster, &[0, 1, 2, 3, 4], 40);
    }
}

#[test]
fn a_node_that_was_not_there_when_the_cluster_was_formed_joins_it() {
    let mut cluster = group_of_all(3);
    let fourth = cluster.add_node();
    cluster.open(fourth);
    (0..4000).for_each(|_| cluster.turn());
    assert!(!cluster.node(fourth).is_running(), "it is not among the others' peers");
    for at in 0..3 {
        cluster.stop(at);
        begin(&mut cluster, at);
    }
    cluster.turn_until("a running node", |cluster| cluster.node(fourth).is_running());
    cluster.start(fourth, GROUP, Fault::None);
    cluster.turn_until("all links", |cluster| (0..4).all(|at| links_up(cluster, at) == 3));
    change(&mut cluster, 1, Change::Promotable(NodeId(4)));
    cluster.turn_until("a promotion", |cluster| members(cluster, 0) == [1, 2, 3, 4]);
    cluster.done(fourth, GROUP, b"count");
    agree(&mut cluster, &[0, 1, 2, 3], 21);
    // Two founders may go, and it is one of the majority that is left.
    change(&mut cluster, 1, Change::Remove(NodeId(1)));
    cluster.kill(0);
    cluster.stop(fourth);
    begin(&mut cluster, fourth);
    cluster.kill(1);
    cluster.done(fourth, GROUP, b"count");
    agree(&mut cluster, &[2, 3], 22);
}

#[test]
fn a_place_that_its_giver_cannot_give_away_any_more_is_forced_elsewhere() {
    let mut cluster = group_of_all(5);
    change(&mut cluster, 2, Change::Remove(NodeId(1)));
    change(&mut cluster, 2, Change::Remove(NodeId(2)));
    (0..2).for_each(|at| cluster.kill(at));
    some_seconds(&mut cluster);
    cluster.turn_until("a leader", |cluster| leader(cluster, GROUP).is_some());
    cluster.turn_until("all to know", |cluster| (2..5).all(|at| members(cluster, at) == [3, 4, 5]));
    refused(&mut cluster, 2, 1, "node 2's to give away");
    assert_eq!(give_up(&mut cluster, 2, 1, true), Ok(()));
    // Two directories want it: the first one that came to the giver has it, and the other one gets nowhere.
    cluster.disks[0] = FakeDisk::new(91);
    begin(&mut cluster, 0);
    let first = cluster.disks[0].clone();
    cluster.kill(0);
    cluster.disks[0] = FakeDisk::new(92);
    cluster.open(0);
    (0..4000).for_each(|_| cluster.turn());
    assert!(!cluster.node(0).is_running());
    cluster.kill(0);
    cluster.disks[0] = first;
    begin(&mut cluster, 0);
    cluster.turn_until("links to all that are there", |cluster| links_up(cluster, 0) == 3);
    change(&mut cluster, 3, Change::Promotable(NodeId(1)));
    cluster.turn_until("a promotion", |cluster| members(cluster, 2) == [1, 3, 4, 5]);
}

#[test]
fn a_group_whose_majority_is_gone_for_good_goes_on_with_what_one_member_has() {
    let mut cluster = group_of_all(5);
    let says = |result: Result<(), String>, what: &str| {
        let why = result.unwrap_err();
        assert!(why.contains(what), "{why} does not say {what}");
    };
    agree(&mut cluster, &[0, 1, 2, 3, 4], 20);
    says(shrink(&mut cluster, 0), "a majority of the members can be reached");
    says(lose(&mut cluster, 0, &[5], false), "it is up");
    (2..5).for_each(|at| cluster.kill(at));
    let lost: Vec<FakeDisk> = cluster.disks[2..].to_vec();
    cluster.turn_until("no link to them", |cluster| (0..2).all(|at| links_up(cluster, at) == 1));
    some_seconds(&mut cluster);
    says(shrink(&mut cluster, 0), "was not declared lost");
    assert_eq!(lose(&mut cluster, 0, &[3, 4, 5], false), Ok(()));
    assert_eq!(lose(&mut cluster, 0, &[3, 4, 5], false), Ok(()), "it has said so");
    // The other one that is left hears of it, and then says so.
    for round in 0.. {
        match shrink(&mut cluster, 0) {
            Ok(()) => break,
            Err(why) => {
                assert!(round < 2000 && (why.contains("not heard") || why.contains("not up")), "{why}")
            }
        }
        cluster.turn();
    }
    cluster.done(0, GROUP, b"count");
    assert_eq!(members(&cluster, 0), [1]);
    assert_eq!(cluster.status(0).recovery_epoch, 1);
    assert_eq!(shrink(&mut cluster, 0), Ok(()), "it is so already");
    assert_eq!(cluster.status(0).recovery_epoch, 1);
    // The other one that is left cannot be shrunk, too: it is told where that was done, and that it is out.
    says(lose(&mut cluster, 1, &[3], false), "node 1 has declared it lost");
    says(shrink(&mut cluster, 1), "");
    cluster.turn_until("who is out to know", |cluster| members(cluster, 1) == [1]);
    assert_eq!(lose(&mut cluster, 1, &[3, 4, 5], true), Ok(()));
    cluster.turn_until("links", |cluster| links_up(cluster, 1) == 1);
    says(shrink(&mut cluster, 1), "no member of the group");
    assert_eq!(cluster.asked(0, GROUP), Ok(21));
    // Interrupted and started again it is what it was; who was left out is added.
    cluster.kill(0);
    begin(&mut cluster, 0);
    cluster.done(0, GROUP, b"count");
    change(&mut cluster, 0, Change::Promotable(NodeId(2)));
    cluster.turn_until("a promotion", |cluster| members(cluster, 1) == [1, 2]);
    agree(&mut cluster, &[0, 1], 22);

    // Those that are lost come back all the same: they have a majority of old, and get nowhere with the others.
    for (at, disk) in (2..5).zip(lost) {
        cluster.disks[at] = disk;
        begin(&mut cluster, at);
    }
    (0..4000).for_each(|_| cluster.turn());
    assert_eq!([0, 1].map(|at| links_up(&cluster, at)), [1, 1]);
    assert_eq!(members(&cluster, 1), [1, 2]);
    // With an empty directory one of them is welcome.
    cluster.kill(2);
    cluster.disks[2] = FakeDisk::new(93);
    some_seconds(&mut cluster);
    assert_eq!(give_up(&mut cluster, 0, 3, false), Ok(()));
    begin(&mut cluster, 2);
    change(&mut cluster, 1, Change::Promotable(NodeId(3)));
    cluster.turn_until("a promotion", |cluster| members(cluster, 0) == [1, 2, 3]);
    agree(&mut cluster, &[0, 1, 2], 22);
}

/// Every shard of a node has to agree: here real nodes of two, with a group on each.
#[test]
fn a_node_of_several_shards_gives_a_place_away_once_none_of_them_has_it_as_a_member() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let addresses: Vec<_> = (1..=3).map(|_| free_address()).collect();
    let start = |id: u64| {
        let peers: Vec<_> = (1..).zip(addresses.iter().copied()).collect();
        let mut config = config(id, &peers, &dir.path().join(id.to_string()));
        config.shards = 2;
        Node::start(config).unwrap()
    };
    let groups = [GroupId(1), GroupId(2), GroupId(3), GroupId(4)];
    let mut nodes: Vec<Node> = (1..=3).map(start).collect();
    let take_up = |node: &Node| groups.map(|group| node.start_group(group, Count(0, Fault::None)).unwrap());
    let mut handles: Vec<_> = nodes.iter().map(take_up).collect();
    let propose = |group: &coracle::Group| {
        until("a command", || matches!(group.propose(b"count").wait(), Outcome::Done(_)).then_some(()));
    };
    handles[0].iter().for_each(propose);

    nodes.pop().unwrap().stop().unwrap();
    handles.pop();
    std::fs::remove_dir_all(dir.path().join("3")).unwrap();
    until("the link to be down for long enough", || {
        let why = nodes[0].replace_node(NodeId(3), false).unwrap_err().to_string();
        why.contains("take it out").then_some(())
    });
    for (at, group) in handles[0].iter().enumerate() {
        let why = nodes[0].replace_node(NodeId(3), false).unwrap_err().to_string();
        assert!(why.contains("take it out"), "before group {at}: {why}");
        until("a removal", || {
            let outcome = group.remove_member(NodeId(3)).wait();
            let is_gone = matches!(&outcome, Outcome::NotDone(why) if why.reason == Reason::NotAMember);
            (is_gone || matches!(outcome, Outcome::Done(_))).then_some(())
        });
    }
    until("the place", || nodes[0].replace_node(NodeId(3), false).ok());
    nodes.push(start(3));
    handles.push(take_up(&nodes[2]));
    for group in &handles[1] {
        until("a member", || {
            matches!(group.change_members(&[Change::Voter(NodeId(3))], false).wait(), Outcome::Done(_))
                .then_some(())
        });
    }
    nodes[0].stop().unwrap();
    // With two of three it counts, on both shards.
    handles[2].iter().for_each(propose);
    nodes.iter().for_each(|node| node.stop().unwrap());
}

fn until<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "it does not come to {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
