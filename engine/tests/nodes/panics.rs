//! What panics ends itself and nothing else: a machine its group's applying, a shard's thread its node, and everybody
//! who waited hears of it. Members that stand still for good take no more and more memory.

use std::future::Future;
use std::net::TcpListener;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use coracle::{Config, Error, Index, Node, NodeId, Outcome, Peer, Proposal, Reason};
use coracle_io::fake::CrashPolicy;

use crate::cluster::{Cluster, Count, Fault, GROUP, OTHER};

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

/// The place of the node that leads, as all see it, once there is one.
fn leader(cluster: &mut Cluster) -> usize {
    let seen = |cluster: &Cluster| {
        let leader = cluster.status(0).leader?;
        (0..3).all(|at| cluster.status(at).leader == Some(leader)).then_some(leader.0 as usize - 1)
    };
    cluster.turn_until("a leader", |cluster| seen(cluster).is_some());
    seen(cluster).unwrap()
}

fn is_poisoned(cluster: &Cluster, at: usize) -> bool {
    cluster.node(at).group_status(GROUP).is_some_and(|status| status.poisoned.is_some())
}

#[test]
fn a_leader_whose_machine_stands_still_leaves_it_to_one_that_goes_on() {
    let mut led = 0;
    for faulty in 0..3 {
        let mut cluster = Cluster::new(3);
        let fault = |at| if at == faulty { Fault::Apply } else { Fault::None };
        (0..3).for_each(|at| cluster.start(at, GROUP, fault(at)));
        cluster.done(0, GROUP, b"one");
        led += usize::from(leader(&mut cluster) == faulty);
        cluster.node((faulty + 1) % 3).propose(GROUP, b"break");
        cluster.turn_until("a poisoned member", |cluster| is_poisoned(cluster, faulty));
        cluster.turn_until("a leader that is sound", |cluster| {
            cluster.status(faulty).leader.is_some_and(|leader| leader.0 as usize != faulty + 1)
        });
        cluster.done(faulty, GROUP, b"two");
        assert_eq!(cluster.asked((faulty + 1) % 3, GROUP), Ok(3));
    }
    assert!(led > 0, "in none of the three the leader was hit");
}

#[test]
fn members_that_all_stand_still_do_not_pass_their_group_around() {
    let mut cluster = Cluster::new(3);
    (0..3).for_each(|at| cluster.start(at, GROUP, Fault::Apply));
    cluster.done(0, GROUP, b"one");
    let at = leader(&mut cluster);
    let before = cluster.status(at).term;
    cluster.node(0).propose(GROUP, b"break");
    cluster.turn_until("poisoned members", |cluster| (0..3).all(|at| is_poisoned(cluster, at)));
    (0..20_000).for_each(|_| cluster.turn()); // ten seconds
    let at = leader(&mut cluster);
    let terms = cluster.status(at).term.0 - before.0;
    assert!(
        terms <= 1,
        "{terms} elections: whoever stands still declines, but may not do so yet when it is asked"
    );
    assert_eq!(cluster.once(0, GROUP, b"two"), Some(Reason::Poisoned));
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
    // Of a version in which nobody remembers what the others had.
    let mut cluster = Cluster::with_versions(&[256 * 1024; 3], vec![3; 3]);
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
