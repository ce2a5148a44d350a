//! How soon nodes are back: fills their logs, kills them all (SIGKILL), starts them again with what they have on disk.
//!
//! `ready_ms` is from the start of the processes until every group has a leader and a command through each of 100 random
//! groups is committed; `answered_ms` until those are answered, which is after all that lay before them in their groups;
//! `applied_ms` until every machine has applied its whole log again. The machines never release
//! their logs, so that the logs hold all that was written. What was acknowledged is counted before and after.

use std::time::Duration;

use coracle_base::run::ENTRY_HEADER_BYTES;
use coracle_io::Clock;
use coracle_io::ring::RealClock;
use serde_json::{Value, json};

use super::cluster::{Cluster, ClusterError};
use super::options::{Machines, Restart};
use super::{Sample, agree, report, sample};
use crate::latency::tenths;
use crate::size::mib;

/// Clients that fill the logs, and commands that each keeps in flight.
const CLIENTS: u64 = 4;
const PIPE: u64 = 2000;
/// Groups that have to answer before the node counts as ready.
const PROBES: u64 = 100;
/// How often progress is told.
const TELL_EVERY_MS: u64 = 1000;
/// Time to fill or to apply, for each 10 MiB of log: far more than it takes.
const TIME_PER_10_MIB: Duration = Duration::from_secs(10);

/// Fills, kills, starts, measures and prints.
pub(super) fn run(options: Restart) -> Result<(), String> {
    let options = Restart { cluster: options.cluster.clone().single(), ..options };
    let report = measure(&options).map_err(|error| error.to_string())?;
    report::print(&report, options.cluster.json);
    if report["logs_equal"] != true {
        return Err("what the nodes have after the restart is not what was acknowledged before".into());
    }
    Ok(())
}

fn measure(options: &Restart) -> Result<Value, ClusterError> {
    let mut cluster = Cluster::start(&options.cluster, Machines::Keep)?;
    let patience = TIME_PER_10_MIB * (options.log_bytes / (10 << 20)) as u32;
    let led = cluster.ask(0, &json!({ "do": "lead" }), patience)?;
    let host = report::most_leading(&led["leaders"]).saturating_sub(1).min(cluster.nodes() - 1);
    eprintln!("cluster-bench: filling the logs");
    let filled = fill(&mut cluster, host, options, patience)?;
    agree(&mut cluster)?;
    let before = sample(&mut cluster)?;

    eprintln!("cluster-bench: killing the nodes and starting them again");
    let begun_us = RealClock.now_us();
    let ms = || (RealClock.now_us() - begun_us) / 1000;
    let starts = cluster.restart()?;
    let started_ms = ms();
    let ready = cluster.ask(host, &json!({ "do": "ready", "probes": PROBES }), patience)?;
    let ready_ms = ms();
    eprintln!(
        "cluster-bench: ready after {ready_ms} ms (processes {started_ms}, leaders {}); waiting until all is applied",
        ready["leaders_ms"]
    );
    let answered = cluster.ask(host, &json!({ "do": "answered" }), patience)?;
    let answered_ms = ms();
    (0..cluster.nodes()).try_for_each(|at| until_applied(&mut cluster, at, patience))?;
    let applied_ms = ms();
    let after = sample(&mut cluster)?;
    let states = agree(&mut cluster)?;

    let bytes: u64 = before.nodes.iter().filter_map(|node| node["batch_bytes"].as_u64()).sum();
    let mut value = json!({
        "nodes": options.cluster.nodes(),
        "groups": options.cluster.groups(),
        "strategy": options.cluster.strategy.to_string(),
        "shards": after.nodes[host]["shards"],
        "entry_bytes": options.entry_bytes,
        "entries": filled["ends"]["done"],
        "log_bytes": bytes / options.cluster.nodes(),
        "started_ms": started_ms,
        "start": starts,
        "leaders_ms": ready["leaders_ms"],
        "ready_ms": ready_ms,
        "answered_ms": answered_ms,
        "applied_ms": applied_ms,
        "rss_mib": rss(&after),
        "rss_mib_before": rss(&before),
    });
    report::agreement(&mut value, &[&led["ends"], &filled["ends"], &answered], &states);
    Ok(value)
}

/// As many commands as take the bytes that are wanted.
fn fill(
    cluster: &mut Cluster,
    host: usize,
    options: &Restart,
    patience: Duration,
) -> Result<Value, ClusterError> {
    let ops = options.log_bytes.div_ceil((options.entry_bytes + ENTRY_HEADER_BYTES) as u64).max(1);
    let load = json!({
        "do": "load", "clients": CLIENTS, "pipe": PIPE, "entry_bytes": options.entry_bytes, "warm_up_ms": 0,
    });
    cluster.ask(host, &load, Duration::ZERO)?;
    cluster.ask(host, &json!({ "do": "measure", "ops": ops }), patience)
}

/// Waits until a node has applied its whole log again, and says now and then how far it is.
fn until_applied(cluster: &mut Cluster, at: usize, patience: Duration) -> Result<(), ClusterError> {
    let until_us = RealClock.now_us() + patience.as_micros() as u64;
    loop {
        let told =
            cluster.ask(at, &json!({ "do": "applied", "within_ms": TELL_EVERY_MS }), Duration::ZERO)?;
        if told["groups_behind"] == 0 {
            return Ok(());
        }
        let of_all = |key: &str| told[key].as_u64().unwrap_or(0) >> 20;
        eprintln!(
            "cluster-bench: node {}: {} of {} MiB swept, {} groups are behind",
            at + 1,
            of_all("bytes_done"),
            of_all("bytes"),
            told["groups_behind"]
        );
        if RealClock.now_us() > until_us {
            let asked = format!("apply its log; {told}");
            return Err(cluster.late(at, asked, patience));
        }
    }
}

fn rss(sample: &Sample) -> Vec<f64> {
    sample.nodes.iter().map(|node| tenths(mib(node["rss_bytes"].as_u64().unwrap_or(0)))).collect()
}
