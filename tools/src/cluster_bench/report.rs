//! From counters to the figures that are printed. Pure, but for the printing.

use std::path::Path;

use coracle_base::limits::WRITES_IN_FLIGHT;
use serde_json::{Value, json};

use super::Shape;
use super::options::{ClusterOptions, LoadOptions};
use crate::latency::tenths;
use crate::plot::{self, Line, Panel, PlotError};
use crate::size::mib;

/// Counters of all nodes, taken at about the same time.
pub(crate) struct Sample {
    /// As the nodes told them, in their order.
    pub(crate) nodes: Vec<Value>,
    /// CPU time of the bench's own process.
    pub(crate) own_cpu_us: u64,
}

impl Sample {
    fn sum(&self, key: &str) -> u64 {
        self.nodes.iter().filter_map(|node| node[key].as_u64()).sum()
    }
}

/// The place of the node that leads most groups; nodes are numbered from 1.
pub(crate) fn most_leading(leaders: &Value) -> usize {
    let counts = leaders.as_object().into_iter().flatten();
    let most = counts.max_by_key(|(_, count)| count.as_u64());
    most.and_then(|(node, _)| node.parse().ok()).unwrap_or(1)
}

/// What was in force.
pub(crate) fn shape(
    options: &ClusterOptions,
    shape: &Shape,
    load: &LoadOptions,
    sample: &Sample,
    host: usize,
) -> Value {
    json!({
        "nodes": options.nodes(),
        "groups": options.groups(),
        "clients": shape.clients,
        "pipe": shape.pipe,
        "entry_bytes": load.entry_bytes,
        "strategy": options.strategy.to_string(),
        "shards": sample.nodes[host]["shards"],
        "batches_in_flight": WRITES_IN_FLIGHT,
        "placement": format!(
            "{} node processes on loopback and one disk; clients: {} threads in the process of node {}",
            options.nodes(), shape.clients, host + 1
        ),
    })
}

/// How fast it went.
pub(crate) fn speed(report: &mut Value, measured: &Value) {
    let (ops, seconds) = (measured["ops"].as_u64().unwrap_or(0), measured["seconds"].as_f64().unwrap_or(0.0));
    report["seconds"] = json!(seconds);
    report["ops"] = json!(ops);
    report["ops_per_s"] = json!((ops as f64 / seconds).round());
    report["latency_us"] = measured["latency_us"].clone();
}

/// What it cost, between two samples. `measured` tells how many commands were done when the second was taken.
pub(crate) fn cost(report: &mut Value, before: &Sample, after: &Sample, host: usize, measured: &Value) {
    let done =
        measured["ends"]["done"].as_u64().unwrap_or(0) - before.nodes[host]["done"].as_u64().unwrap_or(0);
    let (done, nodes) = (done as f64, after.nodes.len() as f64);
    let rise = |key: &str| after.sum(key).saturating_sub(before.sum(key)) as f64;
    let cpu_us = rise("cpu_us") + (after.own_cpu_us - before.own_cpu_us) as f64;
    let (turns, batches) = (rise("turns"), rise("batches"));
    let rss = after.nodes.iter().map(|node| tenths(mib(node["rss_bytes"].as_u64().unwrap_or(0))));
    let allocations = after.nodes.iter().zip(&before.nodes).map(|(after, before)| {
        let count = |node: &Value| node["allocations"].as_u64().unwrap_or(0);
        tenths((count(after) - count(before)) as f64 * 1000.0 / done)
    });
    report["cpu_us_per_op"] = hundredths(cpu_us / done);
    report["rss_mib"] = rss.collect();
    report["write_amplification"] = hundredths(rise("written_bytes") / rise("run_bytes"));
    report["turns_per_s"] = json!((turns / report["seconds"].as_f64().unwrap_or(1.0)).round());
    report["syscalls_per_turn"] = hundredths(rise("syscalls") / turns);
    report["batches"] = json!(batches);
    report["mean_batch_bytes"] = json!((rise("batch_bytes") / batches).round());
    report["ops_per_batch"] = json!(tenths(done * nodes / batches));
    report["frames"] = json!(rise("frames"));
    report["elections"] = json!(rise("elections_won"));
    report["allocations_per_1000_ops"] = allocations.collect();
}

/// Whether the nodes' logs are the same, and their counts what was acknowledged.
pub(crate) fn agreement(report: &mut Value, ends: &[&Value], states: &[Value]) {
    let sum = |key: &str| ends.iter().filter_map(|ends| ends[key].as_u64()).sum::<u64>();
    let (acknowledged, unknown) = (sum("done"), sum("unknown"));
    let unequal = unequal_groups(states);
    let groups = states.first().and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let counted: u64 = groups.iter().filter_map(|group| group[3].as_u64()).sum();
    let counts_hold = (acknowledged..=acknowledged + unknown).contains(&counted);
    report["acknowledged"] = json!(acknowledged);
    report["not_done"] = json!(sum("not_done"));
    report["unknown"] = json!(unknown);
    report["applied"] = json!(counted);
    report["logs_equal"] = json!(unequal.is_empty() && counts_hold);
    if !unequal.is_empty() {
        report["groups_unequal"] = unequal.into_iter().take(10).map(|at| json!(at + 1)).collect();
    }
}

/// Groups (by place, from 0) that the nodes do not have alike: last, applied, digest, count; or that have not applied
/// all.
pub(crate) fn unequal_groups(states: &[Value]) -> Vec<usize> {
    let Some(first) = states.first().and_then(Value::as_array) else { return Vec::new() };
    let differs = |at: usize| {
        let group = &first[at];
        group[0] != group[1] || states.iter().any(|state| &state[at] != group)
    };
    (0..first.len()).filter(|at| differs(*at)).collect()
}

/// Prints a report: one JSON object on one line, or a line a figure.
pub(crate) fn print(report: &Value, as_json: bool) {
    if as_json {
        return println!("{report}");
    }
    for (key, value) in report.as_object().into_iter().flatten() {
        match value.as_str() {
            Some(text) => println!("{key:<26} {text}"),
            None => println!("{key:<26} {value}"),
        }
    }
}

/// Draws commands a second over the course of a measurement: pairs of seconds and commands done by then.
pub(crate) fn draw(path: &Path, report: &Value, course: &Value) -> Result<(), PlotError> {
    let text = |key: &str| report[key].as_str().map_or_else(|| report[key].to_string(), str::to_owned);
    let title = format!(
        "cluster-bench throughput: {} nodes, {} groups, {} bytes, strategy {}",
        text("nodes"),
        text("groups"),
        text("entry_bytes"),
        text("strategy")
    );
    let line = Line { name: format!("{} in all", text("ops_per_s")), points: rates(course) };
    plot::write(path, &title, &[Panel::new("commands a second", "seconds", vec![line]).linear()])
}

/// Commands a second between each two notes.
fn rates(course: &Value) -> Vec<(f64, f64)> {
    let note = |note: &Value| Some((note[0].as_f64()?, note[1].as_f64()?));
    let notes: Vec<(f64, f64)> = course.as_array().into_iter().flatten().filter_map(note).collect();
    let begun = std::iter::once((0.0, 0.0)).chain(notes.iter().copied());
    let pairs = begun.zip(notes.iter().copied()).filter(|(a, b)| b.0 > a.0);
    pairs.map(|(a, b)| (b.0, (b.1 - a.1) / (b.0 - a.0))).collect()
}

pub(crate) fn hundredths(value: f64) -> Value {
    json!((value * 100.0).round() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_equal_only_if_all_nodes_applied_the_same_and_what_was_acknowledged() {
        let state =
            |last: u64, applied: u64, digest: u64, count: u64| json!([[last, applied, digest, count]]);
        let ends = json!({ "done": 5, "not_done": 9, "unknown": 2 });
        let equal = |states: &[Value]| {
            let mut report = json!({});
            agreement(&mut report, &[&ends], states);
            report["logs_equal"].as_bool().unwrap()
        };
        let good = state(8, 8, 77, 7);
        assert!(equal(&[good.clone(), good.clone(), good.clone()]));
        assert!(equal(&[state(8, 8, 77, 5), state(8, 8, 77, 5)]));
        assert!(!equal(&[good.clone(), state(8, 8, 78, 7)]), "another digest");
        assert!(!equal(&[good.clone(), state(8, 8, 77, 6)]), "another count");
        assert!(!equal(&[state(9, 8, 77, 7), state(9, 8, 77, 7)]), "not all applied");
        assert!(!equal(&[state(8, 8, 77, 4)]), "an acknowledged command is lost");
        assert!(!equal(&[state(8, 8, 77, 8)]), "a command was applied twice");
    }

    #[test]
    fn a_course_becomes_rates() {
        let course = json!([[0.5, 100], [1.0, 300], [1.0, 300], [2.0, 300]]);
        assert_eq!(rates(&course), [(0.5, 200.0), (1.0, 400.0), (2.0, 0.0)]);
        assert!(rates(&Value::Null).is_empty());
    }

    #[test]
    fn cost_is_per_command_done_between_the_samples() {
        let node = |scale: u64, done: u64| {
            json!({
                "cpu_us": 1000 * scale, "written_bytes": 28_800 * scale, "run_bytes": 19_200 * scale, "rss_bytes": 3 << 20, "done": done,
                "turns": 10 * scale, "syscalls": 25 * scale, "batches": 4 * scale, "batch_bytes": 4096 * scale,
                "frames": scale, "elections_won": 1, "allocations": 5 * scale, "shards": 1,
            })
        };
        let before = Sample { nodes: vec![node(1, 50), node(1, 0)], own_cpu_us: 0 };
        let after = Sample { nodes: vec![node(2, 0), node(2, 0)], own_cpu_us: 100 };
        let mut report = json!({ "seconds": 2.0 });
        cost(&mut report, &before, &after, 0, &json!({ "ends": { "done": 150 } }));
        assert_eq!(report["cpu_us_per_op"], 21.0);
        assert_eq!(report["write_amplification"], 1.5);
        assert_eq!(report["syscalls_per_turn"], 2.5);
        assert_eq!(report["allocations_per_1000_ops"], json!([50.0, 50.0]));
        assert_eq!(report["turns_per_s"], 10.0);
        assert_eq!(most_leading(&json!({ "2": 5, "3": 9, "1": 1 })), 3);
    }
}
