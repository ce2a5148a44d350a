//! `sim`: runs seeds of the simulator and tells what became of them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use coracle_sim::{BREAKS, Breaks, Report, Verdict, Worlds, campaign};
use serde_json::{Value, json};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

const EXAMPLE: &str = "Examples:
  sim                          the first 50 seeds
  sim --seeds 0..2000 --json   many seeds, and one line of JSON
  sim --seed 17                one seed again; RUST_LOG=debug tells its story
  sim --break stale-completion plants a known bug, which has to be caught";

/// Simulates whole Coracle clusters under faults. Exits with 1 if an invariant breaks, and says how to see it again.
#[derive(Parser)]
#[command(name = "sim", version, after_help = EXAMPLE)]
struct Options {
    /// Run this seed only.
    #[arg(long, conflicts_with_all = ["seeds", "minutes"])]
    seed: Option<u64>,
    /// Run the seeds from A up to, not including, B.
    #[arg(long, value_name = "A..B", value_parser = parse_range, conflicts_with = "minutes")]
    seeds: Option<Range<u64>>,
    /// Run seeds from 0 on for so long.
    #[arg(long)]
    minutes: Option<u64>,
    /// Plant this known bug, and try seeds from 0 on until it is caught: 2,000 seeds or 30 s at most.
    #[arg(long = "break", value_name = "NAME", value_parser = parse_break)]
    planted: Option<Planted>,
    /// Run only this one of a seed's two worlds.
    #[arg(long, value_name = "cluster|storage", value_parser = parse_world)]
    world: Option<Worlds>,
    /// List the bugs that can be planted.
    #[arg(long)]
    list_breaks: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Threads that run seeds; one a core by default. The result is the same with any number.
    #[arg(long)]
    threads: Option<usize>,
}

#[derive(Clone)]
struct Planted {
    name: String,
    breaks: Breaks,
}

const DEFAULT_SEEDS: Range<u64> = 0..50;
const BREAK_SEEDS: Range<u64> = 0..2000;
const BREAK_TIME: Duration = Duration::from_secs(30);

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let (start, end) =
        text.split_once("..").ok_or("two numbers with .. between them are wanted, as in 0..2000")?;
    let number = |text: &str| text.trim().parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
    let range = number(start)?..number(end)?;
    if range.is_empty() { Err(format!("there is no seed in {text}")) } else { Ok(range) }
}

fn parse_break(name: &str) -> Result<Planted, String> {
    let breaks = Breaks::named(name).ok_or_else(|| format!("there are: {}", BREAKS.join(", ")))?;
    Ok(Planted { name: name.to_owned(), breaks })
}

fn parse_world(name: &str) -> Result<Worlds, String> {
    match name {
        "cluster" => Ok(Worlds::Cluster),
        "storage" => Ok(Worlds::Storage),
        _ => Err("there are: cluster, storage".to_owned()),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::builder().with_default_directive(LevelFilter::OFF.into()).from_env_lossy(),
        )
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    if options.list_breaks {
        BREAKS.iter().for_each(|name| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    let report = run(&options);
    let planted = options.planted.as_ref();
    for failure in &report.failures {
        let plant = planted.map(|planted| format!(" --break {}", planted.name)).unwrap_or_default();
        let violation = &failure.violation;
        eprintln!("seed {}: broken: {}: {}", failure.seed, violation.invariant, violation.detail);
        eprintln!("  again: cargo xtask sim --seed {}{plant}", failure.seed);
    }
    let good = report.failures.is_empty() == planted.is_none();
    if let (Some(planted), false) = (planted, good) {
        eprintln!("{} was not caught in {} seeds: the simulator is blind to it", planted.name, report.seeds);
    }
    if options.json {
        println!("{}", as_json(&report))
    } else {
        print(&report)
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[allow(clippy::disallowed_methods, reason = "how long to go on is a person's wish; no run sees this clock")]
fn run(options: &Options) -> Report {
    let started = Instant::now();
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = options.threads.unwrap_or_else(cores);
    let limit = match (options.minutes, &options.planted, options.seed) {
        (Some(minutes), ..) => Duration::from_secs(60 * minutes),
        (None, Some(_), None) => BREAK_TIME,
        _ => Duration::MAX,
    };
    let seeds = match (options.seed, &options.seeds) {
        (Some(seed), _) => seed..seed.saturating_add(1),
        (None, Some(seeds)) => seeds.clone(),
        (None, None) if options.minutes.is_some() => 0..u64::MAX,
        (None, None) if options.planted.is_some() => BREAK_SEEDS,
        (None, None) => DEFAULT_SEEDS,
    };
    let breaks = options.planted.as_ref().map(|planted| planted.breaks).unwrap_or_default();
    // A bug of the log is looked for where logs are many and quick.
    let world = if breaks.wal.is_some() { Worlds::Storage } else { Worlds::Both };
    let until_caught = options.planted.is_some();
    campaign(seeds, options.world.unwrap_or(world), breaks, threads, |report: &Report, verdict: &Verdict| {
        if report.seeds.is_multiple_of(100) {
            eprintln!(
                "{} seeds, {} failed, {} s",
                report.seeds,
                report.failures.len(),
                started.elapsed().as_secs()
            );
        }
        let caught = until_caught && verdict.violation.is_some();
        !caught && started.elapsed() < limit
    })
}

fn hours(report: &Report) -> f64 {
    report.simulated_us as f64 / 3.6e9
}

fn as_json(report: &Report) -> Value {
    let medians = report.medians();
    let failures: Vec<Value> = report
        .failures
        .iter()
        .map(|one| json!({ "seed": one.seed, "invariant": one.violation.invariant, "detail": one.violation.detail }))
        .collect();
    json!({
        "seeds": report.seeds,
        "events": report.tally.events,
        "simulated_hours": hours(report),
        "faults": report.tally.faults,
        "marks": report.tally.marks,
        "failures": failures,
        "trace_hash": format!("{:016x}", report.tally.trace_hash),
        "median": {
            "simulated_seconds": medians.simulated_us / 1_000_000,
            "commands": medians.commands,
            "faults": medians.faults,
            "crashes": medians.crashes,
        },
    })
}

fn print(report: &Report) {
    let list = |counts: &BTreeMap<&str, u64>| {
        counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
    };
    let medians = report.medians();
    println!(
        "{} seeds, {} events, {:.2} simulated hours, {} failures, trace {:016x}",
        report.seeds,
        report.tally.events,
        hours(report),
        report.failures.len(),
        report.tally.trace_hash
    );
    println!(
        "median seed: {} simulated seconds, {} commands, {} faults, {} crashes",
        medians.simulated_us / 1_000_000,
        medians.commands,
        medians.faults,
        medians.crashes
    );
    println!("faults: {}", list(&report.tally.faults));
    println!("marks: {}", list(&report.tally.marks));
}
