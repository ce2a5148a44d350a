//! raft-engine (TiKV's log) under the load of `wal-bench`: entries of 256 fresh bytes, each of a random one of 1000
//! groups, every write synced. Its callers batch for themselves, so it is run with 1, 2 and 4 writer threads and 1, 50
//! and 500 entries a write; a latency is that of an entry from the begin of its write to its end.
//!
//! ```text
//!   compare [DIR [SECONDS]]      a folder of its own in DIR (target), for so many seconds each (1.5)
//! ```
//!
//! The last line of stdout is one JSON object. Compression is off: the bytes are random, it would only cost.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use raft::eraftpb::Entry;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use serde_json::{Value, json};

const GROUPS: u64 = 1000;
const ENTRY_BYTES: usize = 256;
const WRITERS: [u64; 3] = [1, 2, 4];
const ENTRIES_A_WRITE: [u64; 3] = [1, 50, 500];
const SECONDS_EACH: f64 = 1.5;
/// Files are made and filled before counting begins.
const WARM_UP: Duration = Duration::from_millis(300);

type Failure = Box<dyn Error + Send + Sync>;

/// How raft-engine finds an entry's index.
struct Indexed;

impl MessageExt for Indexed {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

fn main() -> Result<(), Failure> {
    let mut words = std::env::args().skip(1);
    let dir = words.next().map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let seconds = words.next().map_or(Ok(SECONDS_EACH), |word| word.parse())?;
    std::fs::create_dir_all(&dir)?;
    let mut runs = Vec::new();
    for writers in WRITERS {
        for entries_a_write in ENTRIES_A_WRITE {
            let run = measure(&dir, writers, entries_a_write, Duration::from_secs_f64(seconds))?;
            eprintln!(
                "{writers} writers, {entries_a_write} entries a write: {} entries/s, p99 {} us",
                run["entries_per_s"], run["latency_us"]["p99"]
            );
            runs.push(run);
        }
    }
    let best = runs.iter().max_by(|a, b| rate(a).total_cmp(&rate(b))).cloned().unwrap_or_default();
    let report = json!({
        "engine": "raft-engine 0.4",
        "groups": GROUPS,
        "entry_bytes": ENTRY_BYTES,
        "sync": true,
        "seconds_each": seconds,
        "entries_per_s": best["entries_per_s"],
        "p99": best["latency_us"]["p99"],
        "best": best,
        "runs": runs,
    });
    println!("{report}");
    Ok(())
}

fn rate(run: &Value) -> f64 {
    run["entries_per_s"].as_f64().unwrap_or(0.0)
}

/// Writes to a log of its own, and says how fast it went.
fn measure(dir: &Path, writers: u64, entries_a_write: u64, time: Duration) -> Result<Value, Failure> {
    let dir = tempfile::Builder::new().prefix("compare-").tempdir_in(dir)?;
    let config = Config {
        dir: dir.path().to_string_lossy().into_owned(),
        batch_compression_threshold: ReadableSize(0),
        ..Config::default()
    };
    let engine = Engine::open(config)?;
    let begun = Instant::now();
    let write = |writer| write(&engine, writer, writers, entries_a_write, begun, time);
    let (entries, latencies) = thread::scope(|scope| {
        let threads: Vec<_> = (0..writers).map(|writer| scope.spawn(move || write(writer))).collect();
        let mut sum = (0, histogram()?);
        for thread in threads {
            let (entries, latencies) = thread.join().map_err(|_| "a writer panicked")??;
            sum.0 += entries;
            sum.1.add(&latencies)?;
        }
        Ok::<_, Failure>(sum)
    })?;
    let us = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
    Ok(json!({
        "writers": writers,
        "entries_a_write": entries_a_write,
        "entries": entries,
        "entries_per_s": (entries as f64 / time.as_secs_f64()).round(),
        "latency_us": { "p50": us(0.5), "p99": us(0.99), "p999": us(0.999), "max": us(1.0) },
    }))
}

fn histogram() -> Result<Histogram<u64>, Failure> {
    Ok(Histogram::new_with_bounds(1, 60_000_000_000, 3)?)
}

/// One writer with groups of its own: what it wrote after the warm-up, and how long each entry took.
fn write(
    engine: &Engine,
    writer: u64,
    writers: u64,
    entries_a_write: u64,
    begun: Instant,
    time: Duration,
) -> Result<(u64, Histogram<u64>), Failure> {
    let mut random = SmallRng::seed_from_u64(writer);
    let mut last = vec![0; GROUPS as usize];
    let (mut entries, mut latencies) = (0, histogram()?);
    while begun.elapsed() < WARM_UP + time {
        let mut batch = LogBatch::default();
        for _ in 0..entries_a_write {
            let group = random.random_range(0..GROUPS / writers) * writers + writer;
            let last = &mut last[group as usize];
            *last += 1;
            let mut data = vec![0; ENTRY_BYTES];
            random.fill_bytes(&mut data);
            let entry = Entry { term: 1, index: *last, data: data.into(), ..Entry::default() };
            batch.add_entries::<Indexed>(group + 1, &[entry])?;
        }
        let started = Instant::now();
        engine.write(&mut batch, true)?;
        if begun.elapsed() >= WARM_UP {
            entries += entries_a_write;
            latencies.saturating_record_n(started.elapsed().as_nanos() as u64, entries_a_write);
        }
    }
    Ok((entries, latencies))
}
