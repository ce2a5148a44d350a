//! Names come and go through operators' listeners while processes are killed: in the end all nodes have the same names, what was
//! acknowledged in the groups that are left is there, and of the others nothing is left on any disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coracle::GroupId;
use coracle::identity::{Identity, log_dir};
use coracle_base::ShardId;
use coracle_io::ring::{DiskOptions, Ring, RingDisk, RingOptions};
use rand::Rng;
use serde_json::{Value, json};

use crate::kills::StopOnDrop;
use crate::kv::{Cluster, ready};
use crate::operator::ask;
use crate::process::{Process, free_addresses, number, wait_for};
use crate::resp::{Connection, Reply};

const NODES: usize = 3;
/// Each is somebody's who makes a group of it, uses that, and deletes it.
const NAMES: usize = 3;
/// The first uid of a named group.
const FIRST_NAMED: u64 = 1 << 48;
const PAUSE: Duration = Duration::from_millis(5);

struct Shared {
    admins: Vec<SocketAddr>,
    /// Where each node serves clients, if it runs.
    nodes: Mutex<[Option<SocketAddr>; NODES]>,
    stop: AtomicBool,
    rounds: AtomicU64,
}

/// What is known of a name in the end.
struct Left {
    name: String,
    group: Option<u64>,
    values: BTreeMap<String, String>,
    deleted: BTreeSet<u64>,
}

impl Shared {
    fn wish(&self, what: &str, body: &Value) -> Option<Value> {
        let at = self.admins[rand::rng().random_range(0..NODES)];
        let told = ask(at, "POST", &format!("/api/names/{what}"), &body.to_string());
        if told.as_ref().is_none_or(|told| told["outcome"] != "done") {
            thread::park_timeout(PAUSE);
        }
        told
    }

    /// Until it is there, tried again whatever happens.
    fn create(&self, name: &str) -> u64 {
        wait_for(&format!("{name} to be made"), || {
            let told = self.wish("create", &json!({ "name": name, "members": [], "argument": "" }))?;
            assert!(told["reason"] != "name_taken", "nobody else makes it: {told}");
            told["group"].as_u64().filter(|_| told["outcome"] == "done")
        })
    }

    /// Until it is gone.
    fn delete(&self, name: &str, group: u64) {
        wait_for(&format!("{name} to be deleted"), || {
            let told = self.wish("delete", &json!({ "name": name, "group": group }))?;
            assert!(told["reason"] != "other_group", "nobody else makes it: {told}");
            (told["outcome"] == "done" || told["reason"] == "no_such_name").then_some(())
        });
    }

    fn call(&self, args: &[&str]) -> Reply {
        let bytes: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
        wait_for(&format!("a reply to {args:?}"), || {
            let address = self.nodes.lock().unwrap()[rand::rng().random_range(0..NODES)]?;
            let mut connection = Connection::open(address).ok()?;
            connection.socket().set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let reply = connection.call(&bytes).ok()?;
            (!reply.is_error("TRYAGAIN") && !reply.is_error("UNKNOWN")).then_some(reply)
        })
    }

    /// One name's life.
    fn use_name(&self, name: String) -> Left {
        let mut left = Left { name, group: None, values: BTreeMap::new(), deleted: BTreeSet::new() };
        while !self.stop.load(Ordering::Relaxed) || left.group.is_none() {
            let group = self.create(&left.name);
            assert!(!left.deleted.contains(&group), "{group} was deleted before");
            left.group = Some(group);
            for nth in 0..3 {
                let (key, value) = (format!("{group}/{nth}"), format!("{group} {nth}"));
                assert_eq!(self.call(&["SET", &key, &value]), Reply::Simple("OK".into()));
                left.values.insert(key, value);
            }
            self.rounds.fetch_add(1, Ordering::Relaxed);
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            self.delete(&left.name, group);
            (left.group, left.values) = (None, BTreeMap::new());
            left.deleted.insert(group);
        }
        left
    }

    fn names_at(&self, node: usize) -> Option<BTreeMap<String, u64>> {
        let told = ask(self.admins[node], "GET", "/api/names", "")?;
        let one = |group: &Value| Some((group["name"].as_str()?.to_owned(), group["group"].as_u64()?));
        told["groups"].as_array()?.iter().map(one).collect()
    }

    /// Named groups that a node runs.
    fn running_at(&self, node: usize) -> Option<BTreeSet<u64>> {
        let told = ask(self.admins[node], "GET", "/api/overview", "")?;
        let uids = told["groups"].as_array()?.iter().filter_map(|group| group["group"].as_u64());
        Some(uids.filter(|uid| *uid >= FIRST_NAMED).collect())
    }
}

/// Groups with names in a node's logs.
fn named_on_disk(dir: &Path) -> BTreeSet<u64> {
    let ring = Ring::new(&RingOptions { queue: 8, buffers: Vec::new() }).unwrap();
    let mut disk = RingDisk::open(&ring, dir, DiskOptions { lock: false, ..DiskOptions::default() }).unwrap();
    let identity = Identity::look(&mut disk).unwrap().unwrap();
    let mut found = BTreeSet::new();
    for shard in (0..identity.shards).map(ShardId) {
        let of_log = identity.of_log(shard).unwrap();
        let (groups, _) = coracle_wal::look(&mut disk, &log_dir(shard), &of_log).unwrap();
        found.extend(
            groups.iter().map(|one| one.group).filter(|one| *one >= GroupId(FIRST_NAMED)).map(|one| one.0),
        );
    }
    found
}

#[test]
fn names_that_come_and_go_while_nodes_are_killed_are_the_same_everywhere_in_the_end() {
    let time = Duration::from_secs(number("CORACLE_NAMES_SECONDS", 6));
    let mut cluster = Cluster::new(NODES, 1);
    cluster.admins = free_addresses(NODES);
    cluster.more = vec!["--named"];
    let (mut processes, addresses): (Vec<Process>, Vec<_>) = cluster.start_all().into_iter().unzip();
    let shared = Shared {
        admins: cluster.admins.clone(),
        nodes: Mutex::new([Some(addresses[0]), Some(addresses[1]), Some(addresses[2])]),
        stop: AtomicBool::new(false),
        rounds: AtomicU64::new(0),
    };
    let begun = Instant::now();
    let mut kills = 0;
    let left: Vec<Left> = thread::scope(|scope| {
        let stop = StopOnDrop(&shared.stop);
        let users: Vec<_> = (0..NAMES)
            .map(|at| {
                scope.spawn({
                    let shared = &shared;
                    move || shared.use_name(format!("name-{at}"))
                })
            })
            .collect();
        while begun.elapsed() < time || shared.rounds.load(Ordering::Relaxed) < 20 {
            let before = shared.rounds.load(Ordering::Relaxed);
            wait_for("groups that are used", || {
                (shared.rounds.load(Ordering::Relaxed) > before + 1).then_some(())
            });
            // Now and then the power fails for all of them.
            let one = rand::rng().random_range(0..NODES);
            let killed: Vec<usize> = if kills % 4 == 3 { (0..NODES).collect() } else { vec![one] };
            for node in &killed {
                shared.nodes.lock().unwrap()[*node] = None;
                processes[*node].kill();
            }
            thread::park_timeout(Duration::from_millis(rand::rng().random_range(0..400)));
            killed.iter().for_each(|node| processes[*node] = cluster.start(node + 1));
            for node in &killed {
                let address = ready(&mut processes[*node]);
                shared.nodes.lock().unwrap()[*node] = Some(address);
            }
            kills += 1;
        }
        drop(stop);
        users.into_iter().map(|user| user.join().unwrap()).collect()
    });
    let deleted: usize = left.iter().map(|one| one.deleted.len()).sum();
    eprintln!("{} groups made, {deleted} deleted, {kills} kills", shared.rounds.load(Ordering::Relaxed));
    let names: BTreeMap<String, u64> =
        left.iter().map(|one| (one.name.clone(), one.group.unwrap())).collect();
    let uids: BTreeSet<u64> = names.values().copied().collect();
    for node in 0..NODES {
        wait_for("the same names everywhere", || (shared.names_at(node)? == names).then_some(()));
        wait_for("those groups and no other to run", || (shared.running_at(node)? == uids).then_some(()));
    }
    for (key, value) in left.iter().flat_map(|one| &one.values) {
        assert_eq!(shared.call(&["GET", key]), Reply::Bulk(Some(value.clone().into_bytes())));
    }
    for (at, process) in processes.iter_mut().enumerate() {
        assert_eq!(process.terminate(), Some(0));
        assert_eq!(named_on_disk(&cluster.dir().join(format!("node-{}", at + 1))), uids, "node {}", at + 1);
    }
    assert!(deleted >= 10 && kills >= 3, "{deleted} deleted, {kills} kills");
}
