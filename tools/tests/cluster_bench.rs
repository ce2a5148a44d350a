//! cluster-bench as a person runs it: what it prints, how it fails, and that it leaves nothing behind.
#![forbid(unsafe_code)]
// Deadlines of real processes are in real time, and whatever is not as expected fails the test.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);

fn bench(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cluster-bench"));
    command
        .args(args)
        .arg("--dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    serde_json::from_str(stdout.lines().last().unwrap()).unwrap()
}

fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(begun.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// The node processes of a bench, once there are `count` of them.
fn nodes(bench: &Child, count: usize) -> Vec<u32> {
    let children = format!("/proc/{0}/task/{0}/children", bench.id());
    wait_for("the node processes", || {
        let text = std::fs::read_to_string(&children).unwrap();
        let pids: Vec<u32> = text.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        (pids.len() == count).then_some(pids)
    })
}

fn kill(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

fn is_empty(dir: &Path) -> bool {
    dir.read_dir().unwrap().next().is_none()
}

#[test]
fn throughput_prints_its_figures_and_equal_logs_and_cleans_up() {
    let dir = tempfile::tempdir().unwrap();
    let drawing = tempfile::tempdir().unwrap();
    let file = drawing.path().join("course.svg");
    let args = ["throughput", "--groups", "3", "--clients", "2", "--pipe", "50", "--ops", "5000", "--json"];
    let report = report(&bench(dir.path(), &args).arg("--plot").arg(&file).output().unwrap());
    assert!(std::fs::read_to_string(&file).unwrap().contains("commands a second"));
    for key in [
        "nodes",
        "groups",
        "clients",
        "pipe",
        "entry_bytes",
        "seconds",
        "ops",
        "ops_per_s",
        "cpu_us_per_op",
        "write_amplification",
        "strategy",
        "shards",
        "batches_in_flight",
        "placement",
    ] {
        assert!(!report[key].is_null(), "{key} is missing in {report}");
    }
    for key in ["p50", "p99", "p999", "max"] {
        assert!(report["latency_us"][key].as_f64().unwrap() > 0.0, "{report}");
    }
    assert_eq!((&report["logs_equal"], report["rss_mib"].as_array().unwrap().len()), (&true.into(), 3));
    assert!(report["ops"].as_u64().unwrap() >= 5000, "{report}");
    assert!(report["acknowledged"].as_u64() >= report["ops"].as_u64(), "warm-up is acknowledged, too");
    assert!(report["write_amplification"].as_f64().unwrap() >= 1.0, "{report}");
    assert!(is_empty(dir.path()), "data is left behind");
}

#[test]
fn latency_is_told_beside_its_floor() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["latency", "--ops", "200", "--strategy", "buffered", "--json"];
    let report = report(&bench(dir.path(), &args).output().unwrap());
    assert_eq!((&report["clients"], &report["pipe"]), (&1.into(), &1.into()));
    assert_eq!(report["strategy"], "buffered");
    assert!(report["floor_us"]["p50"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["floor_us"]["p99"].as_f64() >= report["floor_us"]["p50"].as_f64(), "{report}");
    assert_eq!(report["logs_equal"], true);
}

#[test]
fn a_restart_brings_back_what_was_acknowledged() {
    for nodes in ["1", "3"] {
        let dir = tempfile::tempdir().unwrap();
        let mut args = vec!["restart", "--groups", "20", "--log-bytes", "2MiB", "--json"];
        if nodes != "1" {
            args.extend(["--nodes", nodes]);
        }
        let report = report(&bench(dir.path(), &args).output().unwrap());
        let figure =
            |key: &str| report[key].as_u64().unwrap_or_else(|| panic!("{key} is missing in {report}"));
        assert_eq!((&report["logs_equal"], figure("groups")), (&true.into(), 20));
        assert_eq!(figure("nodes").to_string(), nodes);
        // Nothing was released: all that was asked for is there, and all of it is applied again.
        assert!(figure("log_bytes") > 2 << 20, "{report}");
        assert!(figure("entries") * (256 + 32) >= 2 << 20, "{report}");
        assert!(figure("applied") >= figure("entries"), "{report}");
        assert!(figure("applied_ms") >= figure("ready_ms") && figure("ready_ms") > 0, "{report}");
        assert_eq!(report["rss_mib"].as_array().unwrap().len().to_string(), nodes);
        assert!(is_empty(dir.path()), "data is left behind");
    }
}

#[test]
fn a_soak_tells_what_levels_off_and_what_one_group_costs_the_others() {
    let beside: [&[&str]; 3] =
        [&[], &["--snapshot-bytes", "4MiB"], &["--backlog-bytes", "1MiB", "--nodes", "3"]];
    for more in beside {
        let (dir, drawing) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = drawing.path().join("soak.svg");
        let args = ["soak", "--groups", "5", "--seconds", "3", "--snapshot-every", "200", "--json"];
        let mut command = bench(dir.path(), &args);
        let report = report(&command.args(more).arg("--plot").arg(&file).output().unwrap());
        assert!(std::fs::read_to_string(&file).unwrap().contains("MiB on the disk"));
        let nodes = if more.contains(&"--nodes") { 3 } else { 1 };
        assert_eq!((&report["nodes"], &report["logs_equal"]), (&nodes.into(), &true.into()), "{report}");
        let moments = report["at_seconds"].as_array().unwrap().len();
        assert!(moments >= 4 && report["levels_off"].is_boolean(), "{report}");
        for key in ["rss_mib", "files", "disk_mib"] {
            assert_eq!(report[key]["samples"].as_array().unwrap().len(), moments, "{report}");
            assert!(report[key]["second_half_max"].as_f64().unwrap() > 0.0, "{report}");
        }
        for key in ["write_amplification", "ops_per_s"] {
            assert!(report[key].as_f64().unwrap() > 0.9, "{key} in {report}");
        }
        assert!(report["compaction_share"].as_f64().unwrap() < 0.5, "{report}");
        match more {
            [] => assert!(report["others"].is_null()),
            _ => assert!(report["others"]["ratio"].as_f64().unwrap() > 0.05, "{report}"),
        }
        assert!(is_empty(dir.path()), "data is left behind");
    }
    let dir = tempfile::tempdir().unwrap();
    let refused = bench(dir.path(), &["soak", "--backlog-bytes", "1MiB"]).output().unwrap();
    assert!(String::from_utf8(refused.stderr).unwrap().contains("--nodes 3"));
}

#[test]
fn a_node_that_dies_fails_the_bench() {
    let dir = tempfile::tempdir().unwrap();
    for victim in 0..3 {
        let mut bench = bench(dir.path(), &["throughput", "--seconds", "600"]).spawn().unwrap();
        kill("-KILL", nodes(&bench, 3)[victim]);
        wait_for("the bench to fail", || bench.try_wait().unwrap());
        let output = bench.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("node {} ended", victim + 1)), "{said}");
        assert!(is_empty(dir.path()), "data is left behind");
    }
}

#[test]
fn an_interrupted_bench_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = bench(dir.path(), &["throughput", "--seconds", "600"]).spawn().unwrap();
    let nodes = nodes(&bench, 3);
    kill("-TERM", bench.id());
    let status = wait_for("the bench to end", || bench.try_wait().unwrap());
    assert_eq!(status.code(), Some(1));
    for pid in nodes {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "node process {pid} lives on");
    }
    assert!(is_empty(dir.path()), "data is left behind");
}
