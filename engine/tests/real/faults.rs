//! Real processes whose disks fail as planned (`io/src/ring/faults.rs`): what they say, how they end, and that the
//! others go on without losing anything acknowledged. Only with the feature `faults`:
//! `cargo test -p coracle --features faults --tests --examples` builds what they need.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;

use crate::kills::{NODES, Shared, StopOnDrop, check};
use crate::kv::{Cluster, call, ready};
use crate::process::{Process, wait_for};
use crate::resp::{Connection, Reply};

/// Faults are there while this file is.
struct Flag(PathBuf);

impl Flag {
    fn new(cluster: &Cluster) -> Self {
        Self(cluster.dir().join("fault"))
    }

    fn raise(&self) {
        std::fs::write(&self.0, "").unwrap();
    }

    fn lower(&self) {
        std::fs::remove_file(&self.0).unwrap();
    }

    /// A plan in which this flag takes the place of `FLAG`.
    fn plan(&self, plan: &str) -> String {
        plan.replace("FLAG", &self.0.display().to_string())
    }
}

/// Starts all nodes, each with its plan, and waits until they serve.
fn start(cluster: &Cluster, plans: [&str; NODES]) -> (Vec<Process>, Vec<SocketAddr>) {
    let mut processes: Vec<Process> =
        (1..).zip(plans).map(|(id, plan)| cluster.start_faulty(id, plan)).collect();
    let addresses = processes.iter_mut().map(ready).collect();
    (processes, addresses)
}

/// Clients increment while `story` happens; then every acknowledged increment has to be there.
fn with_clients(cluster: &Cluster, plans: [&str; NODES], story: impl FnOnce(&mut Vec<Process>, &Shared)) {
    let shared = Shared::default();
    let (mut processes, addresses) = start(cluster, plans);
    addresses.into_iter().enumerate().for_each(|(node, address)| shared.set(node, Some(address)));
    thread::scope(|scope| {
        let _stop = StopOnDrop(&shared.stop);
        (0..4).for_each(|_| drop(scope.spawn(|| shared.increment())));
        shared.wait_for_progress("before the fault");
        story(&mut processes, &shared);
        shared.wait_for_progress("at the end");
    });
    check(&shared);
}

#[test]
fn a_failed_write_or_sync_ends_the_process_which_says_why_and_the_others_go_on() {
    for (strategy, plan) in [
        ("direct", "write:eio:file=shard-0/*.wal,while=FLAG"),
        ("direct_fsync", "sync:eio:file=shard-0/*.wal,while=FLAG"),
        ("buffered", "sync:eio:file=shard-0/*.wal,while=FLAG"),
    ] {
        let mut cluster = Cluster::new(NODES, 2);
        cluster.more = vec!["--strategy", strategy];
        let flag = Flag::new(&cluster);
        with_clients(&cluster, [&flag.plan(plan), "", ""], |processes, shared| {
            flag.raise();
            let (code, said) = processes[0].end();
            shared.set(0, None);
            assert_eq!(code, Some(1), "{said}");
            let last = said.lines().last().unwrap_or_default();
            for part in ["kv: ", "shard-0/", ".wal", "os error 5", "start again"] {
                assert!(last.contains(part), "{plan}: {last:?} does not say {part:?}");
            }
            shared.wait_for_progress("without the node whose disk failed");
            processes[0] = cluster.start(1);
            shared.set(0, Some(ready(&mut processes[0])));
        });
    }
}

#[test]
fn transfers_that_move_only_a_part_change_nothing() {
    let cluster = Cluster::new(NODES, 2);
    with_clients(&cluster, ["write:short;read:short"; NODES], |processes, shared| {
        for (node, process) in processes.iter_mut().enumerate() {
            shared.set(node, None);
            process.kill();
            shared.wait_for_progress("while a node is down");
            *process = cluster.start_faulty(node + 1, "write:short;read:short");
            shared.set(node, Some(ready(process)));
        }
    });
}

#[test]
fn a_stalled_disk_holds_up_nobody_else() {
    let cluster = Cluster::new(NODES, 2);
    let flags: Vec<Flag> = (0..NODES).map(|node| Flag(cluster.dir().join(format!("stall-{node}")))).collect();
    let plans: Vec<String> = flags.iter().map(|flag| flag.plan("write:stall:ms=2000,while=FLAG")).collect();
    let plans: [&str; NODES] = [&plans[0], &plans[1], &plans[2]];
    // One of them leads; its entries are durable on the two others.
    with_clients(&cluster, plans, |_, shared| {
        for (node, flag) in flags.iter().enumerate() {
            flag.raise();
            for _ in 0..5 {
                shared.wait_for_progress(&format!("while the disk of node {} stalls", node + 1));
            }
            flag.lower();
            shared.wait_for_progress("after a stall");
        }
    });
}

#[test]
fn what_cannot_be_read_for_a_follower_is_tried_again() {
    let mut cluster = Cluster::new(NODES, 1);
    cluster.more = vec!["--wal-file", "2MiB"];
    let flag = Flag::new(&cluster);
    let plan = flag.plan("read:eio:file=shard-0/*.wal,while=FLAG");
    with_clients(&cluster, [&plan, &plan, ""], |processes, shared| {
        shared.set(2, None);
        processes[2].kill();
        // What the two others hold is not kept in memory for one that is down.
        (0..20).for_each(|_| shared.wait_for_progress("while node 3 is down"));
        flag.raise();
        processes[2] = cluster.start(3);
        shared.wait_for_progress("while node 3 cannot be brought up");
        flag.lower();
        shared.set(2, Some(ready(&mut processes[2])));
    });
}

#[test]
fn what_cannot_be_read_or_reads_wrong_at_a_start_is_told_or_mended_and_never_believed() {
    for plan in ["read:eio:file=shard-0/*.wal", "read:flip:file=shard-0/*.wal", "read:flip:file=identity"] {
        let cluster = Cluster::new(NODES, 2);
        with_clients(&cluster, ["", "", ""], |processes, shared| {
            shared.set(0, None);
            processes[0].kill();
            processes[0] = cluster.start_faulty(1, plan);
            let (code, said) = processes[0].end();
            assert!(matches!(code, Some(1 | 2)), "{plan}: {code:?}: {said}");
            eprintln!("{plan}: {code:?} {:?}", said.lines().last());
            let last = said.lines().last().unwrap_or_default();
            let file = if plan.contains("identity") { "identity" } else { "shard-0" };
            assert!(last.contains("kv: ") && last.contains(file), "{plan}: {last:?}");
            shared.wait_for_progress("without the node that cannot read");
            processes[0] = cluster.start(1);
            shared.set(0, Some(ready(&mut processes[0])));
        });
    }
}

/// Sets keys to large values until that is refused; how many were set.
fn fill(connection: &mut Connection, value: &str, keys: usize) -> usize {
    for set in 0..100_000 {
        let key = format!("key-{}", set % keys);
        let reply = connection.call(&[b"SET", key.as_bytes(), value.as_bytes()]).unwrap();
        match reply {
            Reply::Simple(_) => {}
            reply if reply.is_error("TRYAGAIN") && format!("{reply:?}").contains("disk is full") => {
                return set;
            }
            reply if reply.is_error("TRYAGAIN") => {}
            reply => panic!("{reply:?}"),
        }
    }
    panic!("the disk does not become full");
}

#[test]
fn a_full_kv_refuses_set_takes_del_and_then_set_again() {
    let mut cluster = Cluster::new(NODES, 1);
    cluster.more = vec!["--wal-file", "2MiB"];
    let flag = Flag::new(&cluster);
    let plan = flag.plan("fill:enospc:while=FLAG;write:enospc:file=shard-0/*.snap*,while=FLAG");
    let (_processes, addresses) = start(&cluster, [&plan; NODES]);
    let mut connection = Connection::open(addresses[0]).unwrap();
    call(&mut connection, &["SET", "a", "1"]);
    flag.raise();
    // Too much for a snapshot in the log, and no file has room: nothing is released while it is there.
    let (value, keys) = ("v".repeat(16 * 1024), 16);
    let set = fill(&mut connection, &value, keys);
    assert!(set > keys, "{set} values fit");
    assert_eq!(call(&mut connection, &["GET", "a"]), Reply::Bulk(Some(b"1".to_vec())));
    for key in 0..keys {
        let reply = connection.call(&[b"DEL", format!("key-{key}").as_bytes()]).unwrap();
        assert_eq!(reply, Reply::Number(1), "a full disk takes what frees it");
    }
    // The log is released, its files are used again, and the disk is as full as before.
    let reply = wait_for("SET to work again", || {
        let reply = connection.call(&[b"SET", b"b", b"2"]).unwrap();
        (!reply.is_error("TRYAGAIN")).then_some(reply)
    });
    assert_eq!(reply, Reply::Simple("OK".into()));
    assert_eq!(call(&mut connection, &["GET", "a"]), Reply::Bulk(Some(b"1".to_vec())));
}

#[test]
fn a_full_follower_does_not_stop_the_majority_and_catches_up() {
    let mut cluster = Cluster::new(NODES, 1);
    cluster.more = vec!["--wal-file", "2MiB"];
    let flag = Flag::new(&cluster);
    let plan = flag.plan("fill:enospc:while=FLAG");
    // Whichever node leads, one that follows becomes full: two of three would stop a majority.
    for full in 0..NODES {
        let mut plans = [""; NODES];
        plans[full] = &plan;
        let (mut processes, addresses) = start(&cluster, plans);
        flag.raise();
        let other = (full + 1) % NODES;
        let mut connection = Connection::open(addresses[other]).unwrap();
        let value = "v".repeat(16 * 1024);
        for set in 0..1000 {
            let key = format!("key-{}", set % 16);
            let reply = connection.call(&[b"SET", key.as_bytes(), value.as_bytes()]).unwrap();
            if reply.is_error("TRYAGAIN") {
                break; // it is the leader that is full
            }
            assert_eq!(reply, Reply::Simple("OK".into()));
        }
        flag.lower();
        assert_eq!(call(&mut connection, &["SET", "last", "1"]), Reply::Simple("OK".into()));
        // With the third node gone the one that was full is needed.
        processes[(full + 2) % NODES].kill();
        wait_for("the two others to go on", || {
            let reply = connection.call(&[b"SET", b"last", b"2"]).unwrap();
            (reply == Reply::Simple("OK".into())).then_some(())
        });
    }
}

#[test]
fn a_plan_that_is_not_understood_is_refused_by_name() {
    let cluster = Cluster::new(1, 1);
    let (code, said) = cluster.start_faulty(1, "write:fire").end();
    assert!(code == Some(1) && said.contains("CORACLE_FAULTS: unknown fault `fire`"), "{code:?}: {said}");
}
