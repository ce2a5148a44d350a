//! wal-bench as a script sees it: flags, keys, exit codes.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // all of it is a test

use std::process::{Command, Output};

use serde_json::Value;

fn wal_bench(words: &[&str]) -> (Output, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_wal-bench"));
    command.args(["--strategy", "none", "--wal-file", "4MiB", "--dir"]).arg(dir.path()).args(words);
    (command.output().unwrap(), dir)
}

/// The last line of stdout, which must be the report; nothing may be left behind.
fn report(words: &[&str]) -> Value {
    let (output, dir) = wal_bench(words);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "left something in its directory");
    serde_json::from_str(out.lines().last().unwrap()).unwrap()
}

const KEYS: [&str; 17] = [
    "strategy",
    "shards",
    "groups",
    "entry_bytes",
    "seconds",
    "entries",
    "recovered",
    "entries_per_s",
    "payload_mib_per_s",
    "device_mib_per_s",
    "payload_efficiency",
    "write_amplification",
    "prefill_bytes",
    "batches",
    "mean_batch_bytes",
    "cpu_us_per_entry",
    "latency_us",
];

#[test]
fn everything_appended_comes_back() {
    let report = report(&["--entries", "30001", "--shards", "2", "--groups", "10", "--json"]);
    for key in KEYS {
        assert!(!report[key].is_null(), "no key {key} in {report}");
    }
    assert_eq!((&report["entries"], &report["recovered"]), (&30001.into(), &30001.into()));
    assert_eq!((&report["strategy"], &report["shards"]), (&"none".into(), &2.into()));
    // The log has more bytes than its payload, and never many more.
    let efficiency = report["payload_efficiency"].as_f64().unwrap();
    assert!((0.3..1.0).contains(&efficiency), "{report}");
    for quantile in ["p50", "p99", "p999", "max"] {
        assert!(report["latency_us"][quantile].as_f64().unwrap() > 0.0);
    }
    assert!(report["of_best"].is_null());
}

#[test]
fn batches_are_as_large_as_was_asked() {
    for (groups, bytes) in [("1", 16 * 1024), ("50", 65_536), ("1", 1 << 20)] {
        let max_batch = bytes.to_string();
        let words = ["--entries", "60000", "--groups", groups, "--max-batch", &max_batch, "--json"];
        let report = report(&words);
        assert_eq!(&report["recovered"], &60_000);
        // At full load batches are full; those at the end need not be, and there are markers.
        let mean = report["mean_batch_bytes"].as_f64().unwrap();
        assert!(mean <= f64::from(bytes), "{report}");
        assert!(mean >= f64::from(bytes) / 4.0, "{report}");
    }
}

/// On a file system that keeps what it was given, which the system's temporary directory need not be.
#[test]
fn every_strategy_brings_everything_back() {
    for name in ["direct", "direct_fsync", "buffered", "sync", "none", "default", "do_sync"] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_wal-bench"));
        command.args(["--entries", "5000", "--wal-file", "4MiB", "--json", "--strategy", name, "--dir"]);
        let output = command.arg(dir.path()).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}: {err}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let canonical = match name {
            "default" => "buffered",
            "do_sync" => "sync",
            ours => ours,
        };
        assert_eq!((&report["strategy"], &report["recovered"]), (&canonical.into(), &5000.into()));
        assert_eq!(err.contains("loses acknowledged data"), name == "none", "{err}");
    }
}

#[test]
fn a_sweep_reports_every_setting_and_draws_them() {
    let drawing = tempfile::tempdir().unwrap();
    let file = drawing.path().join("sweep.svg");
    let report = report(&["--sweep", "--entries", "2000", "--json", "--plot", file.to_str().unwrap()]);
    let runs = report["sweep"].as_array().unwrap();
    let best = runs.iter().map(|run| run["entries_per_s"].as_f64().unwrap()).fold(0.0, f64::max);
    assert_eq!(report["entries_per_s"].as_f64(), Some(best));
    for run in runs {
        assert!(KEYS.iter().all(|key| !run[key].is_null()), "{run}");
        assert_eq!((&run["entries"], &run["recovered"]), (&2000.into(), &2000.into()));
    }
    for (key, values) in [("entry_bytes", 4), ("in_flight", 3), ("max_batch", 4)] {
        let mut seen: Vec<u64> = runs.iter().map(|run| run[key].as_u64().unwrap()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() >= values, "{key}: {seen:?}");
    }
    let svg = std::fs::read_to_string(&file).unwrap();
    assert!(
        svg.starts_with("<svg") && svg.contains("entries in flight") && svg.contains("4096 bytes"),
        "{svg}"
    );
    assert!(svg.matches("<polyline").count() >= 3, "no lines are drawn");
}

#[test]
fn an_open_loop_appends_at_its_rate() {
    let report = report(&["--rate", "2000", "--seconds", "1", "--groups", "3", "--json"]);
    assert_eq!((&report["entries"], &report["recovered"]), (&2000.into(), &2000.into()));
    assert!(report["seconds"].as_f64().unwrap() >= 0.99);
}

#[test]
fn a_baseline_says_how_much_of_the_disk_is_used() {
    let report = report(&["--entries", "20000", "--baseline", "--json"]);
    for key in ["of_same_batches", "of_best"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{report}");
    }
    for key in ["mib_per_s", "p50_us", "p99_us"] {
        assert!(report["baseline"][key].as_f64().unwrap() > 0.0, "{report}");
    }
}

#[test]
fn bad_usage_is_told_apart_from_failure() {
    let code = |words: &[&str]| wal_bench(words).0.status.code();
    assert_eq!(code(&["--seconds", "soon"]), Some(2));
    assert_eq!(code(&["--plot", "without-a-sweep.svg"]), Some(2));
    assert_eq!(code(&["--version"]), Some(0));
    // A file where a directory should be.
    let mut command = Command::new(env!("CARGO_BIN_EXE_wal-bench"));
    let output = command.args(["--dir", "/proc/version"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/proc/version"), "{output:?}");
}
