//! `sim`: runs seeds of the simulator and tells what became of them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use coracle_sim::{BREAKS, Breaks, Numbers, Report, Shrunk, Trim, Verdict, Worlds, campaign, shrink};
use serde_json::{Value, json};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

const EXAMPLE: &str = "\
A seed decides everything: the cluster (1 to 7 nodes, 1 to 200 groups), its settings, what clients and operators do, and which
faults there are, how often. The same seed is the same run on every machine.

Examples:
  sim                          the first 50 seeds
  sim --seeds 0..2000 --json   many seeds, and one line of JSON
  sim --seed 17                one seed again; RUST_LOG=debug tells its story
  sim --break stale-completion plants a known bug, which has to be caught

When a seed fails:
  sim --shrink 17              looks for the least of it that still fails in the same way, and prints the command for that:
  sim --seed 17 --world cluster --nodes 3 --groups 1 --storm-ms 8100 --without churn,drop --strikes 4,9..11
                               the seed without what these options leave out; strikes are numbered as they come
  RUST_LOG=debug sim --seed 17 ... 2>&1 | grep -E 'fault|leads|process ended'
                               what happened, in order; RUST_LOG=trace also has each command and each entry applied";

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
    /// Look for the least of this failing seed that still fails in the same way.
    #[arg(long, value_name = "SEED", conflicts_with_all = ["seed", "seeds", "minutes", "json"])]
    shrink: Option<u64>,
    /// Run the seed so often at most while shrinking it.
    #[arg(long, value_name = "RUNS", default_value_t = 600)]
    shrink_runs: u64,
    /// Plant this known bug, and try seeds from 0 on until it is caught: 2,000 seeds or 30 s at most.
    #[arg(long = "break", value_name = "NAME", value_parser = parse_break)]
    planted: Option<Planted>,
    /// Run only this one of a seed's two worlds.
    #[arg(long, value_name = "cluster|storage", value_parser = parse_world)]
    world: Option<Worlds>,
    /// List the bugs that can be planted.
    #[arg(long)]
    list_breaks: bool,
    /// List the kinds of trouble that --without and --with know.
    #[arg(long)]
    list_kinds: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Threads that run seeds; one a core by default. The result is the same with any number.
    #[arg(long)]
    threads: Option<usize>,
    #[command(flatten)]
    less: Less,
}

/// What is left out of seeds.
#[derive(clap::Args)]
#[command(next_help_heading = "Less of a seed")]
struct Less {
    /// No more than the first so many nodes.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    nodes: Option<u64>,
    /// No more than the first so many groups.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    groups: Option<u64>,
    /// Repair everything after so many simulated milliseconds.
    #[arg(long)]
    storm_ms: Option<u64>,
    /// None of these kinds of trouble; --list-kinds lists them.
    #[arg(long, value_name = "KIND,...", value_delimiter = ',', value_parser = parse_kind)]
    without: Vec<&'static str>,
    /// Also these kinds of faults, and often, which few seeds have by themselves.
    #[arg(long, value_name = "KIND,...", value_delimiter = ',', value_parser = parse_kind_to_add)]
    with: Vec<&'static str>,
    /// No strikes but those of these numbers.
    #[arg(long, value_name = "N,A..B,...")]
    strikes: Option<Numbers>,
    /// No more than so many records of the log alone.
    #[arg(long)]
    records: Option<u64>,
}

impl Less {
    fn trim(&self) -> Trim {
        Trim {
            nodes: self.nodes,
            groups: self.groups,
            storm_ms: self.storm_ms,
            without: self.without.iter().copied().collect(),
            strikes: self.strikes.clone(),
            records: self.records,
            with: self.with.iter().copied().collect(),
        }
    }
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

fn parse_kind(name: &str) -> Result<&'static str, String> {
    Trim::kinds().find(|kind| *kind == name).ok_or_else(|| "--list-kinds says which there are".to_owned())
}

fn parse_kind_to_add(name: &str) -> Result<&'static str, String> {
    let found = Trim::kinds_to_add().find(|kind| *kind == name);
    found.ok_or_else(|| format!("there are: {}", Trim::kinds_to_add().collect::<Vec<_>>().join(", ")))
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
    if options.list_kinds {
        Trim::kinds().for_each(|name| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    let planted = options.planted.as_ref();
    let plant = planted.map(|planted| format!(" --break {}", planted.name)).unwrap_or_default();
    if let Some(seed) = options.shrink {
        return shrink_seed(&options, seed, &plant);
    }
    let report = run(&options);
    for failure in &report.failures {
        let (seed, violation) = (failure.seed, &failure.violation);
        eprintln!("seed {seed}: broken: {}: {}", violation.invariant, violation.detail);
        eprintln!("  again: cargo xtask sim --seed {seed}{}{plant}", options.less.trim());
        eprintln!("  less:  cargo xtask sim --shrink {seed}{}{plant}", options.less.trim());
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
    let (world, trim) = (options.world.unwrap_or(world), options.less.trim());
    campaign(seeds, world, breaks, &trim, threads, |report: &Report, verdict: &Verdict| {
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

/// Prints the least of a failing seed that fails in the same way.
fn shrink_seed(options: &Options, seed: u64, plant: &str) -> ExitCode {
    let breaks = options.planted.as_ref().map(|planted| planted.breaks).unwrap_or_default();
    let world = options.world.unwrap_or_default();
    let told = &mut |found: &Shrunk| eprintln!("run {}:{}", found.runs, found.trim);
    let Some(found) = shrink(seed, world, breaks, &options.less.trim(), options.shrink_runs, told) else {
        eprintln!("seed {seed} does not fail: there is nothing to shrink");
        return ExitCode::FAILURE;
    };
    for strike in &found.story {
        let at_s = strike.at_us as f64 / 1e6;
        println!("{at_s:12.6} s  strike {}: {}, node {}", strike.number, strike.kind, strike.node);
    }
    let Shrunk { violation, trim, runs, size: (nodes, groups), .. } = &found;
    println!("broken: {}: {}", violation.invariant, violation.detail);
    let world = match found.world {
        Worlds::Storage => "storage",
        _ => "cluster",
    };
    println!("{nodes} nodes, {groups} groups, {} strikes; {runs} runs", found.story.len());
    println!("again: cargo xtask sim --seed {seed} --world {world}{trim}{plant}");
    ExitCode::SUCCESS
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
        "never_reached": report.never_reached(),
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
    println!("never reached: {}", report.never_reached().join(", "));
}
