//! What the bench prints: for people a few lines, for programs one JSON object with the keys that scripts rely on.

use serde_json::{Value, json};

use super::bare::Bare;
use super::options::Options;
use super::shard::ShardReport;
use crate::latency::{Latencies, tenths, thousandths};
use crate::size::mib;
use crate::usage::Usage;

/// All shards together.
pub(super) struct Report {
    options: Options,
    entries: u64,
    recovered: u64,
    run_bytes: u64,
    /// Of the slowest shard.
    micros: u64,
    device_bytes: u64,
    batches: u64,
    prefill_bytes: u64,
    filled_bytes: u64,
    recovery_ms: u64,
    used: Usage,
    latencies: Latencies,
    baseline: Option<Baseline>,
}

/// Bare writes of all shards at once.
struct Baseline {
    same: Sum,
    best: Sum,
    best_bytes: usize,
    best_depth: usize,
}

#[derive(Default)]
struct Sum {
    mib_per_s: f64,
    latencies: Latencies,
}

impl Sum {
    fn of<'a>(all: impl Iterator<Item = &'a Bare>) -> Self {
        let mut sum = Self::default();
        for bare in all {
            sum.mib_per_s += mib(bare.bytes) / seconds(bare.micros);
            sum.latencies.add(&bare.latencies);
        }
        sum
    }
}

impl Report {
    pub(super) fn new(options: &Options, shards: Vec<ShardReport>, used: Usage) -> Self {
        let sum = |of: fn(&ShardReport) -> u64| shards.iter().map(of).sum();
        let max = |of: fn(&ShardReport) -> u64| shards.iter().map(of).max().unwrap_or(0);
        let mut latencies = Latencies::default();
        shards.iter().for_each(|shard| latencies.add(&shard.outcome.latencies));
        Self {
            options: options.clone(),
            entries: sum(|shard| shard.outcome.entries),
            recovered: sum(|shard| shard.recovered),
            run_bytes: sum(|shard| shard.outcome.run_bytes),
            micros: max(|shard| shard.outcome.micros),
            device_bytes: sum(|shard| shard.batch_bytes),
            batches: sum(|shard| shard.batches),
            prefill_bytes: sum(|shard| shard.prefill_bytes),
            filled_bytes: sum(|shard| shard.filled_bytes),
            recovery_ms: max(|shard| shard.recovery_ms),
            used,
            latencies,
            baseline: Baseline::new(&shards),
        }
    }

    /// Of the log itself: zeros written for files to come are not its throughput.
    fn device_mib_per_s(&self) -> f64 {
        mib(self.used.written_bytes.saturating_sub(self.filled_bytes)) / seconds(self.micros)
    }

    pub(super) fn entries_per_s(&self) -> f64 {
        self.entries as f64 / seconds(self.micros)
    }

    pub(super) fn payload_mib_per_s(&self) -> f64 {
        mib(self.payload_bytes()) / seconds(self.micros)
    }

    pub(super) fn p99_us(&self) -> f64 {
        self.latencies.quantile_us(0.99)
    }

    fn payload_bytes(&self) -> u64 {
        self.entries * self.options.entry_bytes as u64
    }

    pub(super) fn print(&self, as_json: bool) {
        let value = self.to_json();
        if as_json {
            println!("{value}");
            return;
        }
        self.print_text(&value);
    }

    /// A few lines for people.
    pub(super) fn print_text(&self, value: &Value) {
        let latency = &value["latency_us"];
        println!(
            "{:.0} entries/s of {} bytes ({} shards, {} groups, strategy {})",
            self.entries_per_s(),
            self.options.entry_bytes,
            self.options.shards,
            self.options.groups,
            self.options.strategy.name(),
        );
        println!(
            "{:.0} MiB/s of payload, {:.0} MiB/s to the device, {} batches of {:.0} KiB, {} us CPU an entry",
            self.payload_mib_per_s(),
            self.device_mib_per_s(),
            self.batches,
            mib(self.device_bytes) * 1024.0 / self.batches.max(1) as f64,
            value["cpu_us_per_entry"],
        );
        println!(
            "durable after p50 {} us, p99 {} us, p99.9 {} us, at most {} us",
            latency["p50"], latency["p99"], latency["p999"], latency["max"]
        );
        println!("{} entries recovered and read back in {} ms", self.recovered, self.recovery_ms);
        if let Some(baseline) = &self.baseline {
            println!(
                "{} of bare writes of the same batches ({:.0} MiB/s), {} of the best bare writes ({:.0} MiB/s, {} KiB \
                 with {} in flight)",
                value["of_same_batches"],
                baseline.same.mib_per_s,
                value["of_best"],
                baseline.best.mib_per_s,
                baseline.best_bytes / 1024,
                baseline.best_depth,
            );
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let written = self.used.written_bytes as f64;
        let mut value = json!({
            "strategy": self.options.strategy.name(),
            "shards": self.options.shards,
            "groups": self.options.groups,
            "entry_bytes": self.options.entry_bytes,
            "seconds": thousandths(seconds(self.micros)),
            "entries": self.entries,
            "recovered": self.recovered,
            "entries_per_s": self.entries_per_s().round(),
            "payload_mib_per_s": tenths(self.payload_mib_per_s()),
            "device_mib_per_s": tenths(self.device_mib_per_s()),
            "payload_efficiency": thousandths(ratio(self.payload_bytes() as f64, written)),
            "write_amplification": thousandths(ratio(written, self.run_bytes as f64)),
            "prefill_bytes": self.prefill_bytes,
            "filled_bytes": self.filled_bytes,
            "batches": self.batches,
            "mean_batch_bytes": ratio(self.device_bytes as f64, self.batches as f64).round(),
            "cpu_us_per_entry": thousandths(ratio(self.used.cpu_us as f64, self.entries as f64)),
            "latency_us": self.latencies.to_json(),
            "in_flight": self.options.in_flight,
            "max_batch": self.options.max_batch,
            "rate": self.options.rate,
            "recovery_ms": self.recovery_ms,
        });
        if let Some(baseline) = &self.baseline {
            let device = self.device_mib_per_s();
            value["of_same_batches"] = json!(thousandths(ratio(device, baseline.same.mib_per_s)));
            value["of_best"] = json!(thousandths(ratio(device, baseline.best.mib_per_s)));
            value["baseline"] = json!({
                "mib_per_s": tenths(baseline.same.mib_per_s),
                "p50_us": baseline.same.latencies.quantile_us(0.5),
                "p99_us": baseline.same.latencies.quantile_us(0.99),
                "best_mib_per_s": tenths(baseline.best.mib_per_s),
                "best_write_bytes": baseline.best_bytes,
                "best_in_flight": baseline.best_depth,
            });
        }
        value
    }
}

impl Baseline {
    fn new(shards: &[ShardReport]) -> Option<Self> {
        let all: Vec<_> = shards.iter().map(|shard| shard.baseline.as_ref()).collect::<Option<_>>()?;
        let variants = all.first()?.best_of.len();
        let sums = (0..variants).map(|at| {
            let (bytes, depth, _) = all[0].best_of[at];
            (bytes, depth, Sum::of(all.iter().map(|one| &one.best_of[at].2)))
        });
        let (best_bytes, best_depth, best) = sums.max_by(|a, b| a.2.mib_per_s.total_cmp(&b.2.mib_per_s))?;
        Some(Self { same: Sum::of(all.iter().map(|one| &one.same)), best, best_bytes, best_depth })
    }
}

fn seconds(micros: u64) -> f64 {
    micros.max(1) as f64 / 1e6
}

/// 0 of nothing.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}
