//! Latencies in a histogram of bounded size, exact to three digits.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// A minute: a longer latency counts as this long.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// How long things took.
#[derive(Debug, Clone)]
pub struct Latencies {
    ns: Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        let ns = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("these bounds are legal");
        Self { ns }
    }
}

impl Latencies {
    /// Counts `count` things that took `ns` each.
    pub fn record(&mut self, ns: u64, count: u64) {
        self.ns.saturating_record_n(ns.max(1), count);
    }

    /// Adds those of another thread.
    pub fn add(&mut self, other: &Self) {
        self.ns.add(&other.ns).expect("all have the same bounds");
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.ns.len()
    }

    /// Microseconds that `quantile` of all (0.5: half of them) did not exceed.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        tenths(self.ns.value_at_quantile(quantile) as f64 / 1e3)
    }

    /// The usual ones: p50, p99, p999 and max, in microseconds.
    pub fn to_json(&self) -> Value {
        json!({
            "p50": self.quantile_us(0.5),
            "p99": self.quantile_us(0.99),
            "p999": self.quantile_us(0.999),
            "max": tenths(self.ns.max() as f64 / 1e3),
        })
    }
}

/// `value` with one digit after the point.
pub fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// `value` with three.
pub fn thousandths(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_a_known_distribution() {
        let (mut one, mut other) = (Latencies::default(), Latencies::default());
        one.record(100_000, 98);
        other.record(2_000_000, 1);
        other.record(u64::MAX, 1);
        one.add(&other);
        assert_eq!(one.count(), 100);
        let near = |value: f64, expected: f64| (value - expected).abs() <= expected / 500.0;
        assert!(near(one.quantile_us(0.5), 100.0));
        assert!(near(one.quantile_us(0.99), 2000.0));
        assert!(near(one.to_json()["max"].as_f64().unwrap(), 60e6));
    }
}
