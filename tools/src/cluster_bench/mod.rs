//! cluster-bench: what a whole cluster of Coracle nodes does on one machine.
//!
//! The nodes are separate processes, which this program starts from itself; the clients are threads in the process of
//! one of them, the leader's if there is one group. See `cluster` for the processes, `node` for what they do, `load` for
//! the clients, `floor` for what disk and loopback alone would take, `restart` for how soon killed nodes are back, `soak` for the long
//! run.

mod cluster;
mod disk;
mod floor;
mod load;
mod machine;
mod node;
mod options;
mod queue;
mod report;
mod restart;
mod soak;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Parser;
use coracle_io::Clock;
use coracle_io::ring::RealClock;
use serde_json::{Value, json};

use self::cluster::{Cluster, ClusterError};
use self::options::{ClusterOptions, Command, LoadOptions, Machines, Options, Until};
use self::report::Sample;
use crate::usage::Usage;

/// Clients run this long before the measurement: connections, histograms and spare WAL files are there then.
const WARM_UP: Duration = Duration::from_secs(1);
/// How long the floor is measured, once before and once after the load.
const FLOOR: Duration = Duration::from_secs(1);
/// How long the nodes may take to agree once nothing more is proposed.
const AGREE_WITHIN: Duration = Duration::from_secs(30);

/// Runs the program. `allocations` tells how many heap allocations the process has made.
pub fn main(allocations: fn() -> u64) -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()),
        )
        .init();
    let done = match options.command {
        Command::Node(options) => node::run(options, allocations).map_err(|error| error.to_string()),
        Command::Throughput(options) => {
            let shape = Shape { clients: options.clients, pipe: options.pipe, floor: false };
            bench(&options.cluster, &shape, &options.load, options.plot.as_deref())
        }
        Command::Restart(options) => restart::run(options),
        Command::Soak(options) => soak::run(options),
        Command::Latency(options) => {
            let shape = Shape { clients: 1, pipe: 1, floor: true };
            bench(&options.cluster, &shape, &options.load, None)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Who proposes, and whether the floor is measured, too.
struct Shape {
    clients: u64,
    pipe: u64,
    floor: bool,
}

fn bench(
    options: &ClusterOptions,
    shape: &Shape,
    load: &LoadOptions,
    plot: Option<&Path>,
) -> Result<(), String> {
    let (report, course) = run(options, shape, load).map_err(|error| error.to_string())?;
    report::print(&report, options.json);
    if let Some(path) = plot {
        report::draw(path, &report, &course).map_err(|error| error.to_string())?;
    }
    if report["logs_equal"] != true {
        return Err(
            "the nodes' logs and counts are not what was acknowledged; `groups_unequal` says where".into()
        );
    }
    Ok(())
}

/// The report, and the course of the measurement.
fn run(options: &ClusterOptions, shape: &Shape, load: &LoadOptions) -> Result<(Value, Value), ClusterError> {
    let mut cluster = Cluster::start(options, Machines::Count)?;
    let led = cluster.ask(0, &json!({ "do": "lead" }), Duration::from_secs(options.groups() / 1000))?;
    let host = report::most_leading(&led["leaders"]).saturating_sub(1).min(cluster.nodes() - 1);
    eprintln!("cluster-bench: {} nodes run; clients go to node {}", cluster.nodes(), host + 1);

    let mut floor = Value::Null;
    if shape.floor {
        floor_round(&mut cluster, host)?;
    }
    let warm_up_ms = WARM_UP.as_millis() as u64;
    let (clients, pipe, entry_bytes) = (shape.clients, shape.pipe, load.entry_bytes);
    let request = json!({
        "do": "load", "clients": clients, "pipe": pipe, "entry_bytes": entry_bytes, "warm_up_ms": warm_up_ms,
    });
    cluster.ask(host, &request, WARM_UP)?;
    let before = sample(&mut cluster)?;
    let measured = match load.until() {
        Until::Time(time) => {
            let request = json!({ "do": "measure", "micros": time.as_micros() as u64 });
            cluster.ask(host, &request, time)?
        }
        Until::Ops(ops) => {
            cluster.ask(host, &json!({ "do": "measure", "ops": ops }), Duration::from_millis(ops))?
        }
    };
    let after = sample(&mut cluster)?;
    if shape.floor {
        floor = floor_round(&mut cluster, host)?;
    }
    let states = agree(&mut cluster)?;

    let mut report = report::shape(options, shape, load, &before, host);
    report::speed(&mut report, &measured);
    report::cost(&mut report, &before, &after, host, &measured);
    report::agreement(&mut report, &[&led["ends"], &measured["ends"]], &states);
    if shape.floor {
        report["floor_us"] = floor;
    }
    Ok((report, measured["course"].clone()))
}

/// All nodes' counters, and this process's.
fn sample(cluster: &mut Cluster) -> Result<Sample, ClusterError> {
    let own = Usage::now().map_err(|source| ClusterError::System { what: "own counters".into(), source })?;
    Ok(Sample { nodes: cluster.ask_all("sample")?, own_cpu_us: own.cpu_us })
}

/// Measures the floor between the host and all other nodes.
fn floor_round(cluster: &mut Cluster, host: usize) -> Result<Value, ClusterError> {
    let mut peers = Vec::new();
    for at in (0..cluster.nodes()).filter(|at| *at != host) {
        let mut served = cluster.ask(at, &json!({ "do": "floor_serve" }), Duration::ZERO)?;
        peers.push(served["address"].take());
    }
    let request = json!({ "do": "floor", "peers": peers, "millis": FLOOR.as_millis() as u64 });
    cluster.ask(host, &request, FLOOR)
}

/// Waits until all nodes have applied the same, and returns what they say; after a while, whatever they say.
fn agree(cluster: &mut Cluster) -> Result<Vec<Value>, ClusterError> {
    let begin_us = RealClock.now_us();
    loop {
        let states = cluster.ask_all("state")?;
        let late = RealClock.now_us() - begin_us > AGREE_WITHIN.as_micros() as u64;
        if late || report::unequal_groups(&states).is_empty() {
            return Ok(states);
        }
        thread::park_timeout(Duration::from_millis(20));
    }
}
