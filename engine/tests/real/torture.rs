//! Clients read, write, count, swap and remove while processes are killed and stopped, the ways between them are cut and an
//! operator changes members and leaders; then the whole history is checked for linearizability, key by key.
//!
//! Some seconds by default; `CORACLE_TORTURE_SECONDS=600 CORACLE_TORTURE_NODES=5` for the long run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coracle_history::{Answer, Call, Operation, Register, Value, check};
use rand::Rng;

use crate::kills::StopOnDrop;
use crate::kv::{Cluster, ready};
use crate::links::Links;
use crate::operator::{Changes, Operator};
use crate::process::{DEADLINE, Process, free_addresses, number, wait_for};
use crate::resp::{Connection, Reply};

const CLIENTS: u64 = 6;
const GROUPS: u64 = 4;
/// Keys in use at one time: of these the first half count.
const KEYS: u64 = 6;
/// After so long other keys are used: what nobody knows of the old ones need not be remembered.
const KEYS_SECONDS: u64 = 5;
/// A client that hears nothing for so long asks another node.
const PATIENCE: Duration = Duration::from_secs(2);
/// Kinds of faults.
const FAULTS: u64 = 5;
/// Steps that one key's history may take to check.
const STEPS_MAX: u64 = 20_000_000;

type History = BTreeMap<String, Vec<Operation<Call, Answer>>>;

struct Shared {
    begun: Instant,
    /// Where each node serves clients, if it runs.
    nodes: Mutex<Vec<Option<SocketAddr>>>,
    stop: AtomicBool,
    answered: AtomicU64,
    /// Makes every value another one.
    fresh: AtomicU64,
    history: Mutex<History>,
}

impl Shared {
    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    fn set(&self, node: usize, address: Option<SocketAddr>) {
        self.nodes.lock().unwrap()[node] = address;
    }

    /// Asks random nodes, a connection at a time, until told to stop.
    fn ask(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let address = {
                let nodes = self.nodes.lock().unwrap();
                nodes[rand::rng().random_range(0..nodes.len())]
            };
            match address.and_then(|address| Connection::open(address).ok()) {
                Some(mut connection) => {
                    connection.socket().set_read_timeout(Some(PATIENCE)).unwrap();
                    let mut is_useful = true;
                    while is_useful && !self.stop.load(Ordering::Relaxed) {
                        is_useful = self.ask_once(&mut connection);
                    }
                }
                None => thread::park_timeout(Duration::from_millis(2)),
            }
        }
    }

    /// One operation. False if the connection is of no use any more.
    fn ask_once(&self, connection: &mut Connection) -> bool {
        let mut rng = rand::rng();
        let number = rng.random_range(0..KEYS);
        let key = format!("{}-{number}", self.begun.elapsed().as_secs() / KEYS_SECONDS);
        let fresh = || self.fresh.fetch_add(1, Ordering::Relaxed).to_string().into_bytes();
        let call = match (number < KEYS / 2, rng.random_range(0..10)) {
            (_, 0..3) => Call::Get,
            (true, _) => Call::Add(rng.random_range(1..4)),
            (false, 3..6) => Call::Set(Some(fresh())),
            (false, 6) => Call::Set(None),
            (false, _) => Call::Swap(Some(self.newest(&key).unwrap_or(b"nothing".to_vec())), fresh()),
        };
        let begun = self.now();
        let reply = send(connection, key.as_bytes(), &call);
        let ended = self.now();
        let answer = match reply {
            // It had no effect, and never will.
            Ok(reply) if reply.is_error("TRYAGAIN") => {
                thread::park_timeout(Duration::from_millis(2));
                return rng.random_range(0..50) != 0;
            }
            Ok(reply) if reply.is_error("UNKNOWN") => None,
            Ok(reply) => Some(answer(&call, reply)),
            Err(_) => None,
        };
        let is_answered = answer.is_some();
        let one = Operation { call, begun, ended: answer.map(|answer| (ended, answer)) };
        self.history.lock().unwrap().entry(key).or_default().push(one);
        self.answered.fetch_add(u64::from(is_answered), Ordering::Relaxed);
        is_answered && rng.random_range(0..100) != 0
    }

    /// What was last known to be there: a swap of anything else would hardly ever be done.
    fn newest(&self, key: &str) -> Value {
        let history = self.history.lock().unwrap();
        let known = history.get(key)?.iter().rev().find_map(|one| match (&one.call, &one.ended) {
            (Call::Get, Some((_, Answer::Value(value)))) => Some(value.clone()),
            (Call::Set(value), Some(_)) => Some(value.clone()),
            (Call::Swap(_, new), Some((_, Answer::Swapped(true)))) => Some(Some(new.clone())),
            _ => None,
        });
        known.flatten()
    }

    fn wait_for_progress(&self, when: &str) {
        let before = self.answered.load(Ordering::Relaxed);
        let is_going = || (self.answered.load(Ordering::Relaxed) >= before + 20).then_some(());
        wait_for(&format!("answers {when}"), is_going);
    }
}

fn send(connection: &mut Connection, key: &[u8], call: &Call) -> std::io::Result<Reply> {
    match call {
        Call::Get => connection.call(&[b"GET", key]),
        Call::Set(Some(value)) => connection.call(&[b"SET", key, value]),
        Call::Set(None) => connection.call(&[b"DEL", key]),
        Call::Add(more) => connection.call(&[b"INCRBY", key, more.to_string().as_bytes()]),
        Call::Swap(old, new) => connection.call(&[b"CAS", key, old.as_deref().unwrap_or_default(), new]),
    }
}

fn answer(call: &Call, reply: Reply) -> Answer {
    match (call, reply) {
        (Call::Get, Reply::Bulk(value)) => Answer::Value(value),
        (Call::Set(Some(_)), Reply::Simple(_)) | (Call::Set(None), Reply::Number(_)) => Answer::Done,
        (Call::Add(_), Reply::Number(sum)) => Answer::Number(sum),
        (Call::Swap(..), Reply::Number(done)) => Answer::Swapped(done == 1),
        (call, reply) => panic!("{call:?} was answered {reply:?}"),
    }
}

/// What happens to the nodes; how often each did.
#[derive(Debug, Default)]
struct Faults {
    kills: u64,
    kills_of_all: u64,
    stops: u64,
    one_way_cuts: u64,
    isolations: u64,
}

impl Faults {
    /// One of each, in turn.
    fn next(
        &mut self,
        round: u64,
        links: &Links,
        cluster: &Cluster,
        processes: &mut [Process],
        shared: &Shared,
    ) {
        let mut rng = rand::rng();
        let node = rng.random_range(0..processes.len());
        let pause = Duration::from_millis(rng.random_range(200..1500));
        match round % FAULTS {
            0 => {
                self.kills += 1;
                restart(&[node], pause, cluster, processes, shared);
            }
            1 => {
                self.stops += 1;
                processes[node].signal("-STOP");
                thread::park_timeout(pause);
                processes[node].signal("-CONT");
            }
            2 => {
                self.one_way_cuts += 1;
                (0..processes.len()).filter(|other| *other != node).for_each(|other| links.cut(node, other));
                thread::park_timeout(pause);
            }
            3 => {
                self.isolations += 1;
                links.isolate(node);
                shared.wait_for_progress("while a node is alone");
                thread::park_timeout(pause);
            }
            _ => {
                self.kills_of_all += 1;
                let all: Vec<usize> = (0..processes.len()).collect();
                restart(&all, Duration::ZERO, cluster, processes, shared);
            }
        }
        links.heal(rng.random());
    }
}

fn restart(nodes: &[usize], pause: Duration, cluster: &Cluster, processes: &mut [Process], shared: &Shared) {
    for node in nodes {
        shared.set(*node, None);
        processes[*node].kill();
    }
    thread::park_timeout(pause);
    nodes.iter().for_each(|node| processes[*node] = cluster.start(node + 1));
    nodes.iter().for_each(|node| shared.set(*node, Some(ready(&mut processes[*node]))));
}

#[test]
fn whatever_happens_to_nodes_and_links_the_history_is_linearizable() {
    let time = Duration::from_secs(number("CORACLE_TORTURE_SECONDS", 8));
    let nodes = number("CORACLE_TORTURE_NODES", 3) as usize;
    let links = Links::new(nodes);
    let mut cluster = Cluster::seeing(links.seen.clone(), GROUPS);
    cluster.admins = free_addresses(nodes);
    // Whoever does not lead answers by itself, with a read index.
    cluster.more = vec!["--reads", "here"];
    let (mut processes, addresses): (Vec<Process>, Vec<_>) = cluster.start_all().into_iter().unzip();
    let shared = Shared {
        begun: Instant::now(),
        nodes: Mutex::new(addresses.into_iter().map(Some).collect()),
        stop: AtomicBool::new(false),
        answered: AtomicU64::new(0),
        fresh: AtomicU64::new(1),
        history: Mutex::default(),
    };
    let mut faults = Faults::default();
    let changes = thread::scope(|scope| {
        let stop = StopOnDrop(&shared.stop);
        let operator = scope.spawn(|| Operator::new(&cluster.admins, &shared.stop).work());
        (0..CLIENTS).for_each(|_| drop(scope.spawn(|| shared.ask())));
        for round in 0.. {
            shared.wait_for_progress(&format!("before fault {round}"));
            if shared.begun.elapsed() > time && round >= FAULTS {
                break;
            }
            faults.next(round, &links, &cluster, &mut processes, &shared);
        }
        shared.wait_for_progress("at the end");
        drop(stop);
        operator.join().unwrap()
    });
    judge(&shared, &faults, &changes);
}

/// Checks every key.
fn judge(shared: &Shared, faults: &Faults, changes: &Changes) {
    let history = shared.history.lock().unwrap();
    let unknown = history.values().flatten().filter(|one| one.ended.is_none()).count();
    let swapped = |one: &&Operation<Call, Answer>| matches!(one.ended, Some((_, Answer::Swapped(true))));
    let swapped = history.values().flatten().filter(swapped).count();
    let answered = shared.answered.load(Ordering::Relaxed);
    eprintln!(
        "{answered} answers, {unknown} unknown, {swapped} swaps done, {} keys; {faults:?}; {changes:?}",
        history.len()
    );
    for (key, operations) in history.iter() {
        if let Err(verdict) = check(&Register, operations, STEPS_MAX) {
            panic!("key {key} of {} operations: {verdict:?}\n{operations:#?}", operations.len());
        }
    }
    assert!(answered > 500 && swapped > 5, "too little happened within {DEADLINE:?}");
    let Changes { removals, additions, transfers, .. } = changes;
    assert!(*removals > 0 && *additions > 0 && *transfers > 0, "{changes:?}");
}
