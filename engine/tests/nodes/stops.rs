//! What a node leaves when it is stopped in good order, so that its next start is short.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use coracle::sim::SimNode;
use coracle::{Config, Index, NodeId, Outcome, Peer};
use coracle_io::fake::{CrashPolicy, FakeClock, FakeDisk, FakeNetwork, OpKind};
use coracle_io::{Clock, Disk};

use crate::cluster::{Cluster, GROUP};
use crate::snapshots::{Big, DIR, damage, files, start};

/// One node whose machine has done `commands` commands since it was opened with this interval, and which was stopped.
fn stopped(interval: u64, machine: &Big, commands: u64) -> Cluster {
    let mut cluster = Cluster::new(1);
    cluster.stop(0);
    cluster.recovery_interval = interval;
    again(&mut cluster, machine);
    (0..commands).for_each(|_| cluster.done(0, GROUP, b"one"));
    cluster.stop(0);
    cluster
}

/// The node is opened again, with its group.
fn again(cluster: &mut Cluster, machine: &Big) {
    cluster.open(0);
    cluster.turn_until("a running node", |cluster| cluster.node(0).is_running());
    start(cluster, 0, machine);
    cluster.turn_until("a group", |cluster| cluster.node(0).group_status(GROUP).is_some());
}

/// As [`again`], until all is applied: how many commands the machine had to run for that.
fn runs_of_a_start(cluster: &mut Cluster, machine: &Big, count: u64) -> u64 {
    let before = machine.runs.load(Ordering::Relaxed);
    again(cluster, machine);
    assert_eq!(cluster.asked(0, GROUP), Ok(count));
    machine.runs.load(Ordering::Relaxed) - before
}

fn names(cluster: &Cluster) -> Vec<String> {
    files(cluster, 0).iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn a_stop_leaves_a_checkpoint_and_the_next_start_applies_nothing_again() {
    // In the log, and in a file of several chunks.
    for padding in [1000, 700_000] {
        let machine = Big::new(padding);
        let mut cluster = stopped(20, &machine, 30);
        assert_eq!(names(&cluster).len(), 1);
        assert!(names(&cluster)[0].ends_with(".ckpt"), "{:?}", names(&cluster));
        assert_eq!(runs_of_a_start(&mut cluster, &machine, 30), 0);
        assert_eq!(cluster.status(0).first, Index(1), "it frees no log");
        // So soon it is not worth another one.
        cluster.done(0, GROUP, b"one");
        let first = names(&cluster);
        cluster.stop(0);
        assert_eq!(names(&cluster), first);
        assert_eq!(runs_of_a_start(&mut cluster, &machine, 31), 1);
        // The next one takes its place.
        (0..30).for_each(|_| cluster.done(0, GROUP, b"one"));
        cluster.stop(0);
        assert!(names(&cluster).len() == 1 && names(&cluster) != first, "{:?}", names(&cluster));
        assert_eq!(runs_of_a_start(&mut cluster, &machine, 61), 0);
        // And a snapshot makes it worthless.
        let last = names(&cluster);
        cluster.done(0, GROUP, b"release");
        cluster.turn_until("it is gone", |cluster| {
            cluster.status(0).first > Index(1) && !names(cluster).contains(&last[0])
        });
    }
}

#[test]
fn nothing_is_left_where_nothing_was_asked_for_or_too_little_was_applied() {
    for (interval, commands) in [(0, 30), (50, 30)] {
        let machine = Big::new(1000);
        let mut cluster = stopped(interval, &machine, commands);
        assert_eq!(names(&cluster), [""; 0]);
        assert_eq!(runs_of_a_start(&mut cluster, &machine, commands), commands);
    }
}

#[test]
fn a_checkpoint_of_a_stop_that_is_damaged_lost_or_never_written_costs_only_time() {
    let spoil: [fn(&Cluster); 3] = [
        |cluster| drop(damage(cluster, 0)),
        // Nobody waited for the disk: the power may fail.
        |cluster| cluster.disks[0].crash(CrashPolicy::LOSE_ALL),
        |cluster| assert!(cluster.disks[0].truncate_file(&files(cluster, 0)[0], 4096)),
    ];
    for spoil in spoil {
        let machine = Big::new(1000);
        let mut cluster = stopped(20, &machine, 30);
        spoil(&cluster);
        assert_eq!(runs_of_a_start(&mut cluster, &machine, 30), 30);
        cluster.turn_until("it is gone", |cluster| names(cluster).is_empty());
    }
    let machine = Big::new(1000);
    let mut cluster = Cluster::new(1);
    cluster.stop(0);
    cluster.recovery_interval = 1;
    again(&mut cluster, &machine);
    (0..30).for_each(|_| cluster.done(0, GROUP, b"one"));
    let path = format!("{DIR}/00000001.snap.tmp");
    cluster.disks[0].fail_next(OpKind::Write, Some(path.as_ref()), 28);
    cluster.stop(0);
    assert_eq!(names(&cluster), [""; 0]);
    assert_eq!(runs_of_a_start(&mut cluster, &machine, 30), 30);
}

/// A clock that goes on a little whenever somebody looks at it, as clocks do.
#[derive(Clone)]
struct Ticking {
    clock: FakeClock,
    step_us: Rc<Cell<u64>>,
}

impl Clock for Ticking {
    fn now_us(&self) -> u64 {
        self.clock.advance(self.step_us.get());
        self.clock.now_us()
    }
    fn wall_ms(&self) -> u64 {
        self.clock.wall_ms()
    }
}

#[test]
fn a_stop_waits_no_longer_for_checkpoints_than_it_may() {
    let (disk, network) = (FakeDisk::new(1), FakeNetwork::new(1));
    let clock = Ticking { clock: FakeClock::new(), step_us: Rc::new(Cell::new(0)) };
    let peers = vec![Peer { id: NodeId(1), address: FakeNetwork::address(1, 7101) }];
    let mut config = Config::new(1, peers, "/unused");
    (config.shards, config.wal_max_size_bytes) = (1, 1 << 20);
    config.min_recovery_checkpoint_interval = 1;
    let mut boot = 0;
    let mut opened = || {
        boot += 1;
        SimNode::open(&config, disk.clone(), network.driver(1), clock.clone(), boot).unwrap()
    };
    let turn_until = |node: &mut SimNode<_, _, Ticking>, done: &dyn Fn() -> bool| {
        for _ in 0..20_000 {
            if done() {
                return;
            }
            clock.clock.advance(500);
            node.turn().unwrap();
        }
        panic!("it does not come to that");
    };
    let mut node = opened();
    node.start_group(GROUP, Box::new(Big::new(20 << 20)));
    let mut outcome = None;
    while !matches!(outcome, Some(Outcome::Done(_))) {
        let answer = node.propose(GROUP, b"one");
        turn_until(&mut node, &|| answer.get().is_some());
        outcome = answer.get();
    }
    // Every look at the clock takes so long that there is time for a few of eighty chunks.
    clock.step_us.set(1_000_000);
    let began_us = clock.clock.true_us();
    node.stop();
    assert!((0..10).any(|_| node.turn().is_err()));
    let took_us = clock.clock.true_us() - began_us;
    assert!(took_us < 10_000_000, "{took_us}");
    drop(node);
    clock.step_us.set(0);
    let left = disk.clone().list(DIR.as_ref()).unwrap();
    assert!(left.len() == 1 && left[0].name.ends_with(".tmp"), "{left:?}");
    let mut node = opened();
    let machine = Big::new(20 << 20);
    node.start_group(GROUP, Box::new(machine.clone()));
    turn_until(&mut node, &|| machine.runs.load(Ordering::Relaxed) == 1);
    turn_until(&mut node, &|| disk.clone().list(DIR.as_ref()).unwrap().is_empty());
}
