//! SIGKILL at random while clients increment: no acknowledged increment is lost, none happens twice.
//!
//! Ten kills by default; `CORACLE_KILLS=100` for the long run.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rand::Rng;

use crate::kv::{Cluster, call, ready};
use crate::process::{Process, number, wait_for};
use crate::resp::{Connection, Reply};

pub(crate) const NODES: usize = 3;
const CLIENTS: usize = 4;
const KEYS: usize = 8;

/// What the clients know of one key.
#[derive(Default)]
struct Key {
    acknowledged: AtomicU64,
    unknown: AtomicU64,
}

#[derive(Default)]
pub(crate) struct Shared {
    keys: [Key; KEYS],
    /// Where each node serves clients, if it runs.
    nodes: Mutex<[Option<SocketAddr>; NODES]>,
    pub(crate) stop: AtomicBool,
}

impl Shared {
    fn acknowledged(&self) -> u64 {
        self.keys.iter().map(|key| key.acknowledged.load(Ordering::Relaxed)).sum()
    }

    pub(crate) fn set(&self, node: usize, address: Option<SocketAddr>) {
        self.nodes.lock().unwrap()[node] = address;
    }

    /// Increments random keys through random nodes, a connection at a time, until told to stop.
    pub(crate) fn increment(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let node = rand::rng().random_range(0..NODES);
            let address = self.nodes.lock().unwrap()[node];
            match address.and_then(|address| Connection::open(address).ok()) {
                Some(connection) => self.increment_through(connection),
                None => thread::park_timeout(Duration::from_millis(1)),
            }
        }
    }

    fn increment_through(&self, mut connection: Connection) {
        for _ in 0..200 {
            let at = rand::rng().random_range(0..KEYS);
            let key = &self.keys[at];
            match connection.call(&[b"INCR", name(at).as_bytes()]) {
                Ok(Reply::Number(_)) => drop(key.acknowledged.fetch_add(1, Ordering::Relaxed)),
                Ok(reply) if reply.is_error("TRYAGAIN") => thread::park_timeout(Duration::from_millis(2)),
                Ok(reply) if reply.is_error("UNKNOWN") => drop(key.unknown.fetch_add(1, Ordering::Relaxed)),
                Ok(reply) => panic!("INCR answered {reply:?}"),
                Err(_) => {
                    key.unknown.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    pub(crate) fn wait_for_progress(&self, when: &str) {
        let before = self.acknowledged();
        wait_for(&format!("increments {when}"), || (self.acknowledged() >= before + 20).then_some(()));
    }
}

fn name(key: usize) -> String {
    format!("key-{key}")
}

#[test]
fn no_acknowledged_increment_is_lost_and_none_happens_twice() {
    let kills = number("CORACLE_KILLS", 10);
    let cluster = Cluster::new(NODES, 2);
    let shared = Shared::default();
    let (mut processes, addresses): (Vec<Process>, Vec<_>) = cluster.start_all().into_iter().unzip();
    addresses.into_iter().enumerate().for_each(|(node, address)| shared.set(node, Some(address)));
    thread::scope(|scope| {
        let _stop = StopOnDrop(&shared.stop);
        (0..CLIENTS).for_each(|_| drop(scope.spawn(|| shared.increment())));
        for kill in 1..=kills {
            shared.wait_for_progress(&format!("before kill {kill}"));
            // Now and then the power fails for all of them.
            let node = rand::rng().random_range(0..NODES);
            let killed: Vec<usize> = if kill % 5 == 0 { (0..NODES).collect() } else { vec![node] };
            for node in &killed {
                shared.set(*node, None);
                processes[*node].kill();
            }
            if killed.len() == 1 {
                shared.wait_for_progress(&format!("while node {} is down (kill {kill})", node + 1));
            }
            killed.iter().for_each(|node| processes[*node] = cluster.start(node + 1));
            killed.iter().for_each(|node| shared.set(*node, Some(ready(&mut processes[*node]))));
        }
        shared.wait_for_progress("at the end");
    });
    check(&shared);
}

/// Ends the clients also when the test fails, so that it does not wait for them.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(crate) fn check(shared: &Shared) {
    let nodes = *shared.nodes.lock().unwrap();
    let mut unknowns = 0;
    for (at, key) in shared.keys.iter().enumerate() {
        let (acknowledged, unknown) =
            (key.acknowledged.load(Ordering::Relaxed), key.unknown.load(Ordering::Relaxed));
        unknowns += unknown;
        for address in nodes.iter().flatten() {
            let mut connection = Connection::open(*address).unwrap();
            let Reply::Bulk(value) = call(&mut connection, &["GET", &name(at)]) else { panic!("GET failed") };
            let value = value.map_or(0, |value| String::from_utf8(value).unwrap().parse().unwrap());
            assert!(
                (acknowledged..=acknowledged + unknown).contains(&value),
                "{}: {acknowledged} acknowledged, {unknown} unknown, value {value}",
                name(at)
            );
        }
    }
    eprintln!("{} increments acknowledged, {unknowns} unknown", shared.acknowledged());
}
