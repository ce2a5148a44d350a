//! A node's process: runs the engine, and does what the bench asks on standard input, a JSON object a line. Each request
//! gets one line on standard output: `{"ok": ...}` or `{"error": "..."}`. The first line says that the node runs.
//!
//! Invariant: it ends when its standard input does, so no node outlives the bench.

use std::collections::VecDeque;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use coracle::{Client, Config, Group, GroupId, GroupStatus, Node, NodeId, Outcome, Peer, ShardStatus};
use coracle_io::ring::{DiskOptions, RealClock, Ring, RingDisk, RingOptions};
use coracle_io::{Clock, Strategy};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::disk;
use super::floor;
use super::load::{Ends, Load};
use super::machine::Count;
use super::options::{Machines, NodeOptions, Until};
use super::queue::{Big, Queue, SNAPSHOT};
use crate::latency::Latencies;
use crate::usage::{self, Usage};

/// Groups that are asked about at once.
const ASKED_AT_ONCE: usize = 1024;

/// What a request can fail of: text for the person at the bench.
type Failure = Box<dyn std::error::Error>;

/// A node that does as it is told.
struct Servant {
    node: Node,
    groups: Vec<Group>,
    counts: Vec<Arc<AtomicU64>>,
    /// The group beside the others, if there is one.
    big: Option<Group>,
    load: Option<Load>,
    /// Whose commands are to be answered.
    probes: Option<Client>,
    floor: Latencies,
    floor_dir: PathBuf,
    data_dir: PathBuf,
    strategy: Strategy,
    /// Heap allocations of this process so far.
    allocations: fn() -> u64,
}

/// Runs a node until standard input ends. `allocations` tells how many the process has made.
///
/// # Errors
/// The node did not start, or not stop in good order.
pub(crate) fn run(options: NodeOptions, allocations: fn() -> u64) -> Result<(), Failure> {
    let answer = |answer: Result<Value, Failure>| {
        let line = match answer {
            Ok(value) => json!({ "ok": value }),
            Err(error) => json!({ "error": error.to_string() }),
        };
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{line}").and_then(|()| stdout.flush())
    };
    let begun_us = RealClock.now_us();
    let (mut servant, started_us) = Servant::start(options, allocations)?;
    let ms = |upto_us: u64| (upto_us - begun_us) / 1000;
    answer(Ok(json!({ "node_ms": ms(started_us), "groups_ms": ms(RealClock.now_us()) })))?;
    for line in io::stdin().lock().lines() {
        answer(
            serde_json::from_str(&line?).map_err(Failure::from).and_then(|request| servant.serve(&request)),
        )?;
    }
    servant.node.stop()?;
    Ok(())
}

impl Servant {
    /// Also tells when the node had recovered its logs; its groups were started after that.
    fn start(options: NodeOptions, allocations: fn() -> u64) -> Result<(Self, u64), Failure> {
        let peers = (1..).zip(&options.peers).map(|(id, address)| Peer { id: NodeId(id), address: *address });
        let floor_dir = options.dir.join("floor");
        let data_dir = options.dir.join("node");
        let mut config = Config::new(options.id, peers.collect(), &data_dir);
        if let Machines::Soak(_) = options.machines {
            // One large snapshot after the other, if it is told to.
            config.min_snapshot_interval = 1;
        }
        config.shards = options.shards;
        config.wal_write_strategy = options.strategy;
        refuse_fallback(&options)?;
        let node = Node::start(config)?;
        let started_us = RealClock.now_us();
        let counts: Vec<Arc<AtomicU64>> = (0..options.groups).map(|_| Arc::default()).collect();
        let seen = (1..).map(GroupId).zip(counts.iter().cloned());
        let groups = match options.machines {
            Machines::Soak(soaked) => {
                node.start_groups(seen.map(|(group, seen)| (group, Queue::new(soaked, seen))))
            }
            other => node
                .start_groups(seen.map(|(group, seen)| (group, Count::new(seen, other == Machines::Keep)))),
        };
        let groups = groups.into_iter().collect::<Result<_, _>>();
        // If the node failed meanwhile, its end says why.
        let groups = groups.map_err(|error| node.stop().err().unwrap_or(error))?;
        let big = match options.machines {
            Machines::Soak(soaked) => soaked.big,
            _ => None,
        };
        let big =
            big.map(|bytes| node.start_group(GroupId(options.groups + 1), Big { bytes })).transpose()?;
        let strategy = options.strategy;
        let (load, probes, floor) = (None, None, Latencies::default());
        let servant = Self {
            node,
            groups,
            counts,
            big,
            load,
            probes,
            floor,
            floor_dir,
            data_dir,
            strategy,
            allocations,
        };
        Ok((servant, started_us))
    }

    fn serve(&mut self, request: &Value) -> Result<Value, Failure> {
        match request["do"].as_str() {
            Some("lead") => self.lead(),
            Some("load") => self.load(request),
            Some("measure") => self.measure(request),
            Some("sample") => self.sample(),
            Some("state") => self.state(),
            Some("ready") => self.ready(request),
            Some("answered") => self.answered(),
            Some("applied") => self.applied(request),
            Some("big") => self.big(),
            Some("big_snapshot") => self.big_snapshot(),
            Some("floor_serve") => {
                let address = floor::serve(self.floor_dir.clone(), self.strategy)?;
                Ok(json!({ "address": address.to_string() }))
            }
            Some("floor") => self.floor(request),
            _ => Err(format!("a node does not know how to do {request}").into()),
        }
    }

    /// Waits until every group has answered a command; tells how many groups each node leads.
    fn lead(&mut self) -> Result<Value, Failure> {
        let client = self.node.client();
        let mut leaders = std::collections::BTreeMap::<String, u64>::new();
        let mut ends = Ends::default();
        let mut asked: Vec<u64> = (0..self.groups.len() as u64).collect();
        while !asked.is_empty() || client.in_flight() > 0 {
            asked.retain(|tag| !self.ask(&client, *tag));
            let Some(completions) = client.wait(Duration::from_millis(20)) else { continue };
            for (tag, outcome) in completions.iter() {
                match outcome {
                    Outcome::Done(done) => {
                        *leaders.entry(done.leader.to_string()).or_default() += 1;
                        ends.done += 1;
                        continue;
                    }
                    Outcome::NotDone(_) => ends.not_done += 1,
                    Outcome::Unknown(_) => ends.unknown += 1,
                }
                asked.push(tag);
            }
        }
        Ok(json!({ "leaders": leaders, "ends": ends_to_json(ends) }))
    }

    /// Waits until every group has a leader, and a command in each of some random groups is committed. The answers to
    /// these come once they are applied, after all that the log had before: `answered` waits for them.
    fn ready(&mut self, request: &Value) -> Result<Value, Failure> {
        let begun_us = RealClock.now_us();
        self.wait_for(&self.groups, |_, status| status.leader.is_some())?;
        let leaders_us = RealClock.now_us() - begun_us;
        let probes = request["probes"].as_u64().ok_or("ready: probes is missing")?;
        let mut random = SmallRng::seed_from_u64(probes);
        let mut places: Vec<usize> = (0..probes).map(|_| random.random_range(0..self.groups.len())).collect();
        places.sort_unstable();
        places.dedup();
        let client = self.node.client();
        let asked: Vec<Group> = places.iter().map(|at| self.groups[*at].clone()).collect();
        // What each had before its command: the command is committed when more than that is.
        let before = self.statuses(&asked)?;
        for at in &places {
            while !self.ask(&client, *at as u64) {
                thread::park_timeout(Duration::from_millis(1));
            }
        }
        self.wait_for(&asked, |at, status| status.commit > before[at].last)?;
        self.probes = Some(client);
        Ok(json!({ "leaders_ms": leaders_us / 1000 }))
    }

    /// Waits for the answers to the commands of `ready`.
    fn answered(&mut self) -> Result<Value, Failure> {
        let client = self.probes.take().ok_or("answered: nothing was asked")?;
        let mut ends = Ends::default();
        while client.in_flight() > 0 {
            let Some(completions) = client.wait(Duration::from_millis(20)) else { continue };
            for (_, outcome) in completions.iter() {
                match outcome {
                    Outcome::Done(_) => ends.done += 1,
                    Outcome::NotDone(_) => ends.not_done += 1,
                    Outcome::Unknown(_) => ends.unknown += 1,
                }
            }
        }
        Ok(ends_to_json(ends))
    }

    /// Waits, for so long, until every group has applied all that it has; tells how far it is.
    fn applied(&self, request: &Value) -> Result<Value, Failure> {
        let within_ms = request["within_ms"].as_u64().ok_or("applied: within_ms is missing")?;
        let until_us = RealClock.now_us() + 1000 * within_ms;
        loop {
            let shards = self.node.status()?;
            let sum = |field: fn(&ShardStatus) -> u64| shards.iter().map(field).sum::<u64>();
            let behind = sum(|shard| shard.groups_behind) + sum(|shard| shard.groups_restoring);
            if behind == 0 {
                // What is left lies in memory.
                self.wait_for(&self.groups, |_, status| status.applied == status.last)?;
            }
            if behind == 0 || RealClock.now_us() >= until_us {
                let (done, all) = (sum(|shard| shard.sweep_bytes_done), sum(|shard| shard.sweep_bytes));
                return Ok(json!({ "groups_behind": behind, "bytes_done": done, "bytes": all }));
            }
            thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Waits until this holds for every one of these groups, once each. A few are asked about at a time, so that asking
    /// takes nothing from what is waited for.
    fn wait_for(&self, groups: &[Group], holds: impl Fn(usize, &GroupStatus) -> bool) -> Result<(), Failure> {
        let mut open: VecDeque<usize> = (0..groups.len()).collect();
        while !open.is_empty() {
            let asked: Vec<usize> = open.drain(..open.len().min(ASKED_AT_ONCE)).collect();
            let handles: Vec<Group> = asked.iter().map(|at| groups[*at].clone()).collect();
            let statuses = self.statuses(&handles)?;
            let before = open.len();
            let still = asked.iter().zip(&statuses).filter(|(at, one)| !holds(**at, one)).map(|(at, _)| *at);
            still.for_each(|at| open.push_back(at));
            if open.len() == before + asked.len() {
                thread::park_timeout(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    /// These groups as this node has them, each of them sound.
    fn statuses(&self, groups: &[Group]) -> Result<Vec<GroupStatus>, Failure> {
        let told = self.node.group_status(groups.iter().map(Group::id))?;
        let check = |(group, status): (&Group, Option<GroupStatus>)| {
            let status = status.ok_or_else(|| format!("group {} is gone", group.id()))?;
            match &status.poisoned {
                Some(why) => Err(format!("group {}: {why}", group.id()).into()),
                None => Ok(status),
            }
        };
        groups.iter().zip(told).map(check).collect()
    }

    /// Proposes an empty command to the group of this tag; `false` if there is no room now.
    fn ask(&self, client: &Client, tag: u64) -> bool {
        client.propose(&self.groups[tag as usize], [(tag, b"")]).is_ok()
    }

    /// Starts clients, and returns when they have warmed up.
    fn load(&mut self, request: &Value) -> Result<Value, Failure> {
        let number = |key: &str| request[key].as_u64().ok_or_else(|| format!("load: {key} is missing"));
        let (clients, pipe, entry_bytes) = (number("clients")?, number("pipe")?, number("entry_bytes")?);
        let groups = match (&self.big, request["big"] == true) {
            (Some(big), true) => std::slice::from_ref(big),
            (None, true) => return Err("load: there is no big group".into()),
            (_, false) => &self.groups,
        };
        let load = Load::start(&self.node, groups, clients, pipe, entry_bytes as usize);
        self.load = Some(load);
        thread::park_timeout(Duration::from_millis(number("warm_up_ms")?));
        Ok(json!({}))
    }

    /// Measures, and stops the clients.
    fn measure(&mut self, request: &Value) -> Result<Value, Failure> {
        let load = self.load.take().ok_or("measure: there is no load")?;
        let until = match (request["ops"].as_u64(), request["micros"].as_u64()) {
            (Some(ops), _) => Until::Ops(ops),
            (None, Some(micros)) => Until::Time(Duration::from_micros(micros)),
            (None, None) => return Err("measure: neither ops nor micros".into()),
        };
        let measured = load.measure(until);
        Ok(json!({
            "ops": measured.ops,
            "seconds": measured.seconds,
            "latency_us": measured.latencies.to_json(),
            "ends": ends_to_json(measured.ends),
            "course": measured.course,
        }))
    }

    /// The counters of this process, since it started.
    fn sample(&self) -> Result<Value, Failure> {
        let usage = Usage::now()?;
        let shards = self.node.status()?;
        let sum = |field: fn(&ShardStatus) -> u64| shards.iter().map(field).sum::<u64>();
        Ok(json!({
            "written_bytes": usage.written_bytes,
            "cpu_us": usage.cpu_us,
            "rss_bytes": usage::rss_bytes()?,
            "allocations": (self.allocations)(),
            "done": self.load.as_ref().map_or(0, Load::done),
            "shards": shards.len(),
            "turns": sum(|shard| shard.turns),
            "syscalls": sum(|shard| shard.syscalls),
            "batches": sum(|shard| shard.batches),
            "batch_bytes": sum(|shard| shard.batch_bytes),
            "padding_bytes": sum(|shard| shard.padding_bytes),
            "roster_bytes": sum(|shard| shard.roster_bytes),
            "checkpoint_bytes": sum(|shard| shard.checkpoint_bytes),
            "prefill_bytes": sum(|shard| shard.prefill_bytes),
            "run_bytes": sum(|shard| shard.run_bytes),
            "frames": sum(|shard| shard.frames),
            "elections_won": sum(|shard| shard.elections_won),
            "arena_bytes": sum(|shard| shard.arena_bytes),
            "segment_bytes": sum(|shard| shard.segment_bytes),
            "compacted_files": sum(|shard| shard.compacted_files),
            "compaction_us": sum(|shard| shard.compaction_us),
            "sealed_bytes": sum(|shard| shard.sealed_bytes),
            "sealed_live_bytes": sum(|shard| shard.sealed_live_bytes),
            "disk": disk::used(&self.data_dir)?,
        }))
    }

    /// The group beside the others as this node has it.
    fn big(&self) -> Result<Value, Failure> {
        let status = self.big.as_ref().ok_or("there is no big group")?.status()?.ok_or("it is gone")?;
        if let Some(why) = status.poisoned {
            return Err(why.into());
        }
        Ok(json!({ "first": status.first.0, "last": status.last.0, "applied": status.applied.0 }))
    }

    /// That group is to write a snapshot: how it is before.
    fn big_snapshot(&self) -> Result<Value, Failure> {
        let before = self.big()?;
        let (client, group) = (self.node.client(), self.big.as_ref().ok_or("there is no big group")?);
        while client.propose(group, [(0, SNAPSHOT)]).is_err() {
            thread::park_timeout(Duration::from_millis(1));
        }
        Ok(before)
    }

    /// Each group as this node has it: last, applied, digest and count.
    fn state(&self) -> Result<Value, Failure> {
        let statuses = self.statuses(&self.groups)?;
        let state = |(status, count): (GroupStatus, &Arc<AtomicU64>)| {
            json!([status.last.0, status.applied.0, status.digest, count.load(Ordering::Relaxed)])
        };
        Ok(statuses.into_iter().zip(&self.counts).map(state).collect())
    }

    /// Measures the floor once more, with the nodes that serve; tells what all measurements together say.
    fn floor(&mut self, request: &Value) -> Result<Value, Failure> {
        let peers = request["peers"].as_array().map_or(&[][..], Vec::as_slice);
        let address = |peer: &Value| peer.as_str().unwrap_or_default().parse();
        let peers = peers.iter().map(address).collect::<Result<Vec<_>, _>>()?;
        let time = Duration::from_millis(request["millis"].as_u64().ok_or("floor: millis is missing")?);
        self.floor.add(&floor::measure(&self.floor_dir, self.strategy, &peers, time)?);
        Ok(json!({ "p50": self.floor.quantile_us(0.5), "p99": self.floor.quantile_us(0.99) }))
    }
}

/// The engine would fall back with a warning; what is measured must be what was asked for.
fn refuse_fallback(options: &NodeOptions) -> Result<(), Failure> {
    let ring = Ring::new(&RingOptions { queue: 4, buffers: vec![] })?;
    let disk_options = DiskOptions { lock: false, strategy: options.strategy };
    Ok(RingDisk::open(&ring, &options.dir, disk_options)?.refuse_fallback()?)
}

fn ends_to_json(ends: Ends) -> Value {
    json!({ "done": ends.done, "not_done": ends.not_done, "unknown": ends.unknown })
}
