//! The long run: many groups under load, with snapshots of which entries live on, and with compaction. Do memory, files
//! and disk level off? And what does one group with a large snapshot, or a member far behind, cost the others?
//!
//! ```text
//!   load ── samples ── .. ── samples ──┬─ without │ with │ without       --snapshot-bytes: the load goes on
//!                                      └─ stop, kill a member, fill one group, revive: with │ without      --backlog-bytes
//! ```
//!
//! A figure levels off if its maximum in the second half of the samples is no more than a tenth above that in the first,
//! the first fifth of all samples left out.

use std::thread;
use std::time::Duration;

use coracle_base::run::ENTRY_HEADER_BYTES;
use coracle_io::Clock;
use coracle_io::ring::RealClock;
use serde_json::{Value, json};

use super::cluster::{Cluster, ClusterError};
use super::options::Soak;
use super::{agree, report};
use crate::latency::{tenths, thousandths};
use crate::plot::{self, Line, Panel, PlotError};
use crate::size::mib;

const GROUPS: u64 = 1000;
/// A rate is taken over this part of the load's time, and at least over so much.
const PHASE_PART: u64 = 6;
const PHASE_LEAST: Duration = Duration::from_secs(2);
/// How often it is looked whether the big group is done.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Time for each 10 MiB of a snapshot or a backlog: far more than it takes.
const TIME_PER_10_MIB: Duration = Duration::from_secs(10);

/// What is to level off: names and units in the report.
const SERIES: [&str; 3] = ["rss_mib", "files", "disk_mib"];

/// What is written besides the runs, and is worth telling: the nodes' name for it and the report's.
const PARTS: [(&str, &str); 5] = [
    ("padding_bytes", "padding_of_it"),
    ("roster_bytes", "rosters_of_it"),
    ("checkpoint_bytes", "checkpoints_of_it"),
    ("prefill_bytes", "zeros_of_new_files_of_it"),
    ("segment_bytes", "segments_of_it"),
];

/// A figure of all nodes at one moment of the load.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Note {
    seconds: f64,
    done: u64,
    rss_mib: f64,
    files: f64,
    log_mib: f64,
    segments_mib: f64,
    others_mib: f64,
    written_bytes: u64,
    batches: u64,
    batch_bytes: u64,
    run_bytes: u64,
    /// As `PARTS` has them.
    parts: [u64; PARTS.len()],
    compaction_us: u64,
    compacted_files: u64,
    sealed_bytes: u64,
    sealed_live_bytes: u64,
    shards: u64,
}

impl Note {
    /// The worst node's memory and files, and the sum of what was written.
    fn of(seconds: f64, nodes: &[Value], host: usize) -> Self {
        let most = |get: &dyn Fn(&Value) -> f64| nodes.iter().map(get).fold(0.0, f64::max);
        let sum = |key: &str| nodes.iter().filter_map(|node| node[key].as_u64()).sum();
        let disk = |key: &'static str| most(&|node| mib(node["disk"][key].as_u64().unwrap_or(0)));
        Self {
            seconds,
            done: nodes[host]["done"].as_u64().unwrap_or(0),
            rss_mib: most(&|node| mib(node["rss_bytes"].as_u64().unwrap_or(0))),
            files: most(&|node| node["disk"]["files"].as_f64().unwrap_or(0.0)),
            log_mib: disk("log_bytes"),
            segments_mib: disk("segment_bytes"),
            others_mib: disk("other_bytes"),
            written_bytes: sum("written_bytes"),
            batches: sum("batches"),
            batch_bytes: sum("batch_bytes"),
            run_bytes: sum("run_bytes"),
            parts: PARTS.map(|(key, _)| sum(key)),
            compaction_us: sum("compaction_us"),
            compacted_files: sum("compacted_files"),
            sealed_bytes: sum("sealed_bytes"),
            sealed_live_bytes: sum("sealed_live_bytes"),
            shards: sum("shards"),
        }
    }

    fn disk_mib(&self) -> f64 {
        self.log_mib + self.segments_mib + self.others_mib
    }

    fn series(&self, name: &str) -> f64 {
        match name {
            "rss_mib" => self.rss_mib,
            "files" => self.files,
            _ => self.disk_mib(),
        }
    }
}

/// Loads, samples, and prints.
pub(super) fn run(options: Soak) -> Result<(), String> {
    let options = Soak { cluster: options.cluster.clone().single().of_groups(GROUPS), ..options };
    if options.backlog_bytes > 0 && options.cluster.nodes() < 3 {
        return Err("--backlog-bytes needs --nodes 3: one is killed, and the others go on".into());
    }
    let (report, notes) = measure(&options).map_err(|error| error.to_string())?;
    report::print(&report, options.cluster.json);
    if let Some(path) = &options.plot {
        draw(path, &report, &notes).map_err(|error| error.to_string())?;
    }
    if report["logs_equal"] != true {
        return Err("what the nodes have is not what was acknowledged; `groups_unequal` says where".into());
    }
    Ok(())
}

fn measure(options: &Soak) -> Result<(Value, Vec<Note>), ClusterError> {
    let mut cluster = Cluster::start(&options.cluster, options.machines())?;
    let led =
        cluster.ask(0, &json!({ "do": "lead" }), Duration::from_secs(options.cluster.groups() / 1000))?;
    let host = report::most_leading(&led["leaders"]).saturating_sub(1).min(cluster.nodes() - 1);
    let mut soaking = Soaking { cluster, host, options, ends: vec![led["ends"].clone()] };
    soaking.load(false)?;
    let notes = soaking.sample_all()?;
    let beside = match (options.snapshot_bytes, options.backlog_bytes) {
        (0, 0) => None,
        (0, bytes) => Some(soaking.beside_a_backlog(bytes)?),
        (bytes, _) => Some(soaking.beside_a_snapshot(bytes)?),
    };
    soaking.stop()?;
    let states = agree(&mut soaking.cluster)?;
    let mut value = told(options, &notes);
    if let Some(beside) = beside {
        value["others"] = beside;
    }
    let ends: Vec<&Value> = soaking.ends.iter().collect();
    report::agreement(&mut value, &ends, &states);
    Ok((value, notes))
}

/// A cluster under load.
struct Soaking<'a> {
    cluster: Cluster,
    /// The clients' node.
    host: usize,
    options: &'a Soak,
    /// How commands of the groups ended, those of loads that have stopped.
    ends: Vec<Value>,
}

impl Soaking<'_> {
    fn load(&mut self, big: bool) -> Result<(), ClusterError> {
        let Soak { clients, pipe, entry_bytes, .. } = self.options;
        let request = json!({
            "do": "load", "clients": clients, "pipe": pipe, "entry_bytes": entry_bytes, "warm_up_ms": 0,
            "big": big,
        });
        self.cluster.ask(self.host, &request, Duration::ZERO).map(drop)
    }

    /// Stops the load of the groups.
    fn stop(&mut self) -> Result<(), ClusterError> {
        let measured =
            self.cluster.ask(self.host, &json!({ "do": "measure", "micros": 1 }), Duration::ZERO)?;
        self.ends.push(measured["ends"].clone());
        Ok(())
    }

    /// Samples until the time is over.
    fn sample_all(&mut self) -> Result<Vec<Note>, ClusterError> {
        let whole_us = self.options.seconds * 1_000_000;
        let every_us = match self.options.sample_seconds {
            0 => (whole_us / 100).max(1_000_000),
            seconds => seconds * 1_000_000,
        };
        let begun_us = RealClock.now_us();
        let mut notes = Vec::new();
        loop {
            let nodes = self.cluster.ask_all("sample")?;
            let now_us = RealClock.now_us() - begun_us;
            let note = Note::of(now_us as f64 / 1e6, &nodes, self.host);
            eprintln!(
                "cluster-bench: {:>5.0} s, {:>11} commands, {:>5.0} MiB resident, {:>3} files, log {:>5.0} MiB, segments {:>5.0} MiB",
                note.seconds, note.done, note.rss_mib, note.files, note.log_mib, note.segments_mib
            );
            notes.push(note);
            if now_us >= whole_us {
                return Ok(notes);
            }
            let next_us = (notes.len() as u64 * every_us).min(whole_us);
            let now_us = RealClock.now_us() - begun_us;
            thread::park_timeout(Duration::from_micros(next_us.saturating_sub(now_us)));
        }
    }

    fn done(&mut self) -> Result<u64, ClusterError> {
        let sample = self.cluster.ask(self.host, &json!({ "do": "sample" }), Duration::ZERO)?;
        Ok(sample["done"].as_u64().unwrap_or(0))
    }

    fn big(&mut self, at: usize, key: &str) -> Result<u64, ClusterError> {
        Ok(self.cluster.ask(at, &json!({ "do": "big" }), Duration::ZERO)?[key].as_u64().unwrap_or(0))
    }

    /// Commands a second of the groups from now on, until it is `over`; and for how long.
    fn rate(
        &mut self,
        mut over: impl FnMut(&mut Self) -> Result<bool, ClusterError>,
    ) -> Result<(f64, f64), ClusterError> {
        let (done, begun_us) = (self.done()?, RealClock.now_us());
        while !over(self)? {
            thread::park_timeout(LOOK_EVERY);
        }
        let seconds = (RealClock.now_us() - begun_us) as f64 / 1e6;
        Ok(((self.done()? - done) as f64 / seconds, seconds))
    }

    /// How long a rate is taken.
    fn phase(&self) -> Duration {
        PHASE_LEAST.max(Duration::from_secs(self.options.seconds) / PHASE_PART as u32)
    }

    fn rate_alone(&mut self) -> Result<f64, ClusterError> {
        let until_us = RealClock.now_us() + self.phase().as_micros() as u64;
        Ok(self.rate(|_| Ok(RealClock.now_us() >= until_us))?.0)
    }

    /// The groups' rate while another one writes snapshots of so many bytes, beside that before and after.
    fn beside_a_snapshot(&mut self, bytes: u64) -> Result<Value, ClusterError> {
        eprintln!("cluster-bench: one group more writes snapshots of {:.0} MiB", mib(bytes));
        let before = self.rate_alone()?;
        let (mut done, mut spent, mut count) = (0.0, 0.0, 0u64);
        while spent < self.phase().as_secs_f64() {
            let asked = self.cluster.ask(self.host, &json!({ "do": "big_snapshot" }), Duration::ZERO)?;
            let (first, host) = (asked["first"].as_u64().unwrap_or(0), self.host);
            let late_us = RealClock.now_us() + patience(bytes).as_micros() as u64;
            let (rate, seconds) =
                self.rate(|soaking| Ok(soaking.big(host, "first")? > first || RealClock.now_us() > late_us))?;
            (done, spent, count) = (done + rate * seconds, spent + seconds, count + 1);
        }
        let after = self.rate_alone()?;
        let mut value = beside(done / spent, (before + after) / 2.0, spent);
        value["snapshot_bytes"] = json!(bytes);
        value["snapshots"] = json!(count);
        Ok(value)
    }

    /// The groups' rate while a member that was dead meanwhile gets so many bytes of one group, beside that afterwards.
    fn beside_a_backlog(&mut self, bytes: u64) -> Result<Value, ClusterError> {
        eprintln!("cluster-bench: a member misses {:.0} MiB of one group more", mib(bytes));
        self.stop()?;
        agree(&mut self.cluster)?;
        let behind = (self.host + 1) % self.cluster.nodes();
        self.cluster.kill(behind);
        self.load(true)?;
        let ops = bytes.div_ceil((self.options.entry_bytes + ENTRY_HEADER_BYTES) as u64).max(1);
        self.cluster.ask(self.host, &json!({ "do": "measure", "ops": ops }), patience(bytes))?;
        let last = self.big(self.host, "last")?;
        self.cluster.revive()?;
        let begun = self.big(behind, "applied")?;
        self.load(false)?;
        let late_us = RealClock.now_us() + patience(bytes).as_micros() as u64;
        let (with, seconds) =
            self.rate(|soaking| Ok(soaking.big(behind, "applied")? >= last || RealClock.now_us() > late_us))?;
        let without = self.rate_alone()?;
        let mut value = beside(with, without, seconds);
        value["backlog_bytes"] = json!(bytes);
        value["backlog_entries"] = json!(last.saturating_sub(begun));
        Ok(value)
    }
}

fn patience(bytes: u64) -> Duration {
    TIME_PER_10_MIB * (bytes.div_ceil(10 << 20)) as u32
}

fn beside(with: f64, without: f64, seconds: f64) -> Value {
    json!({
        "ops_per_s_with": with.round(),
        "ops_per_s_without": without.round(),
        "ratio": report::hundredths(with / without),
        "seconds_with": tenths(seconds),
    })
}

/// The report of the samples.
fn told(options: &Soak, notes: &[Note]) -> Value {
    let Soak { clients, pipe, entry_bytes, live_percent, live_for, snapshot_every, .. } = *options;
    let settled = &notes[notes.len() / 5..];
    let (first, last) =
        (settled.first().copied().unwrap_or_default(), settled.last().copied().unwrap_or_default());
    let rise = |get: &dyn Fn(&Note) -> u64| get(&last).saturating_sub(get(&first)) as f64;
    let (done, seconds) = (rise(&|note| note.done), last.seconds - first.seconds);
    let run_bytes = rise(&|note| note.run_bytes);
    let course = |name: &str| notes.iter().map(|note| tenths(note.series(name))).collect::<Vec<_>>();
    let levels: Vec<(&str, Value)> = SERIES.iter().map(|name| (*name, level(settled, name))).collect();
    let levels_off = levels.iter().all(|(_, level)| level["levels_off"] == true);
    let mut value = json!({
        "nodes": options.cluster.nodes(),
        "groups": options.cluster.groups(),
        "clients": clients,
        "pipe": pipe,
        "entry_bytes": entry_bytes,
        "live_percent": live_percent,
        "live_for": live_for,
        "snapshot_every": snapshot_every,
        "strategy": options.cluster.strategy.to_string(),
        "shards": last.shards / options.cluster.nodes(),
        "seconds": tenths(last.seconds),
        "ops_per_s": (done / seconds).round(),
        "write_amplification": thousandths(rise(&|note| note.written_bytes) / run_bytes),
        "batch_bytes": (rise(&|note| note.batch_bytes) / rise(&|note| note.batches).max(1.0)).round(),
        "compaction_share": report::hundredths(rise(&|note| note.compaction_us) / 1e6 / seconds / last.shards.max(1) as f64),
        "compacted_files": last.compacted_files,
        "space_amplification": report::hundredths(last.sealed_bytes as f64 / last.sealed_live_bytes.max(1) as f64),
        "levels_off": levels_off,
        "at_seconds": notes.iter().map(|note| tenths(note.seconds)).collect::<Vec<_>>(),
    });
    for (at, (_, name)) in PARTS.iter().enumerate() {
        value[*name] = json!(thousandths(rise(&|note| note.parts[at]) / run_bytes));
    }
    for (name, level) in levels {
        value[name] = level;
        value[name]["samples"] = json!(course(name));
    }
    value
}

/// Both halves' maxima of one figure, its slope in the second half, and whether it levels off.
fn level(settled: &[Note], name: &str) -> Value {
    let (first, second) = settled.split_at(settled.len() / 2);
    let most = |notes: &[Note]| notes.iter().map(|note| note.series(name)).fold(0.0, f64::max);
    let points: Vec<(f64, f64)> = second.iter().map(|note| (note.seconds, note.series(name))).collect();
    json!({
        "first_half_max": tenths(most(first)),
        "second_half_max": tenths(most(second)),
        "slope_per_minute": report::hundredths(slope(&points) * 60.0),
        "levels_off": !first.is_empty() && most(second) <= most(first) * 1.1,
    })
}

/// Of the line through the points with the least squares; 0 if there is none.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |get: fn(&(f64, f64)) -> f64| points.iter().map(get).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let together: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    if spread > 0.0 { together / spread } else { 0.0 }
}

fn draw(path: &std::path::Path, report: &Value, notes: &[Note]) -> Result<(), PlotError> {
    let line = |name: &str, get: fn(&Note) -> f64| {
        let points = notes.iter().map(|note| (note.seconds, get(note))).filter(|point| point.0 > 0.0);
        Line { name: name.to_owned(), points: points.collect() }
    };
    let rates = notes.windows(2).filter(|pair| pair[1].seconds > pair[0].seconds);
    let rates = rates.map(|pair| {
        (pair[1].seconds, (pair[1].done - pair[0].done) as f64 / (pair[1].seconds - pair[0].seconds))
    });
    let rates = Line { name: format!("{} in all", report["ops_per_s"]), points: rates.collect() };
    let disk = vec![
        line("log", |note| note.log_mib),
        line("segments", |note| note.segments_mib),
        line("snapshots", |note| note.others_mib),
    ];
    let panels = [
        Panel::new("commands a second", "seconds", vec![rates]).linear(),
        Panel::new("MiB resident", "seconds", vec![line("worst node", |note| note.rss_mib)]).linear(),
        Panel::new("files", "seconds", vec![line("worst node", |note| note.files)]).linear(),
        Panel::new("MiB on the disk", "seconds", disk).linear(),
    ];
    let title = format!(
        "cluster-bench soak: {} nodes, {} groups, {}% live on, write amplification {}",
        report["nodes"], report["groups"], report["live_percent"], report["write_amplification"]
    );
    plot::write(path, &title, &panels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(rss: &[f64]) -> Vec<Note> {
        let note = |(at, rss): (usize, &f64)| Note { seconds: at as f64, rss_mib: *rss, ..Note::default() };
        rss.iter().enumerate().map(note).collect()
    }

    #[test]
    fn what_grows_does_not_level_off_and_what_swings_does() {
        let off = |rss: &[f64]| level(&notes(rss), "rss_mib")["levels_off"] == true;
        assert!(off(&[100.0, 140.0, 90.0, 130.0, 95.0, 145.0]));
        assert!(!off(&[100.0, 110.0, 120.0, 130.0, 140.0, 150.0]));
        assert!(off(&[100.0, 109.0]));
        assert!(!off(&[100.0, 111.0]));
        assert!(!off(&[100.0]), "too few to say");
    }

    #[test]
    fn a_slope_is_of_the_line_between_the_points() {
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]), 2.0);
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 2.0), (2.0, 1.0)]), 0.0);
        assert_eq!(slope(&[(1.0, 1.0)]), 0.0);
        assert_eq!(slope(&[]), 0.0);
    }
}
