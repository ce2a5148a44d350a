//! Mutates the inputs of fuzz targets and says how many were tried; see `README.md` here.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use coracle_fuzz::run::{Found, Pool, corpus, run};
use coracle_fuzz::{TARGETS, Target};

/// Mutates the inputs of the decoders' fuzz targets. Exits 1 if one of them panics.
#[derive(Parser)]
#[command(name = "coracle-fuzz", version, after_help = "Example: coracle-fuzz all --seconds 60 --json")]
struct Args {
    /// A target's name, or all.
    #[arg(default_value = "all")]
    target: String,
    /// How long, in all.
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Makes the choices; the same seed makes the same ones.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Keep the smallest input of each way to be judged in the corpus.
    #[arg(long)]
    save: bool,
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let chosen: Vec<&Target> =
        TARGETS.iter().filter(|target| args.target == "all" || target.name == args.target).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("no target is called {}; there are all, {}", args.target, names.join(", "));
        return ExitCode::from(2);
    }
    let time = Duration::from_secs(args.seconds) / chosen.len() as u32;
    let (mut executions, mut failures, mut rows) = (0, Vec::new(), Vec::new());
    for target in chosen {
        let found = match fuzz(target, &args, time) {
            Ok(found) => found,
            Err(error) => {
                eprintln!("{}: {error}", corpus(target).display());
                return ExitCode::FAILURE;
            }
        };
        let Found { executions: tried, accepted, ways, .. } = found;
        eprintln!("{:<14} {tried:>10} inputs, {accepted:>9} accepted, {ways:>3} ways", target.name);
        executions += tried;
        rows.push(serde_json::json!({
            "target": target.name, "executions": tried, "accepted": accepted, "ways": ways
        }));
        failures.extend(found.crash.map(|_| target.name));
    }
    if args.json {
        println!(
            "{}",
            serde_json::json!({ "executions": executions, "failures": failures, "targets": rows })
        );
    } else {
        println!("{executions} inputs, {} targets failed", failures.len());
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn fuzz(target: &Target, args: &Args, time: Duration) -> std::io::Result<Found> {
    let (found, pool) = run(target, args.seed, time)?;
    if let Some(bytes) = &found.crash {
        let path = keep(target, "crash", bytes)?;
        eprintln!("{} panics: {path}; `cargo test -p coracle-fuzz` replays it", target.name);
    }
    if args.save {
        save(target, &pool)?;
    }
    Ok(found)
}

fn save(target: &Target, pool: &Pool) -> std::io::Result<()> {
    pool.smallest().try_for_each(|bytes| keep(target, "kept", bytes).map(drop))
}

/// Writes an input to the corpus, named by its content.
fn keep(target: &Target, kind: &str, bytes: &[u8]) -> std::io::Result<String> {
    let dir = corpus(target);
    std::fs::create_dir_all(&dir)?;
    let path = dir.join(format!("{kind}-{:08x}", coracle_base::checksum::crc32c(bytes)));
    std::fs::write(&path, bytes)?;
    Ok(path.display().to_string())
}
