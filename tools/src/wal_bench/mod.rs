//! wal-bench: what durable log throughput a disk gives through Coracle's write-ahead log.
//!
//! One thread a shard (`shard.rs`) takes its log through the same phases, and meets the others before each
//! (`gate.rs`): warm up and write zeros ahead, append (`load.rs`, at a `pace.rs`), recover and read back, make bare
//! writes for comparison (`bare.rs`). This file starts them, takes the process's counters around the append phase and
//! reports (`report.rs`);
//! `sweep.rs` does all of it for a row of settings.
//!
//! Invariant: whatever was appended is read back from the files, checked and counted before a number is printed; if any is missing, the bench
//! fails.

mod bare;
mod gate;
mod load;
pub mod options;
mod pace;
mod recorder;
mod recovery;
mod report;
mod shard;
mod sweep;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use coracle_base::{GroupId, Index, RunError};
use coracle_io::DiskError;
use coracle_wal::WalError;

use gate::{Broken, Gate};
use options::Options;
use report::Report;
use shard::ShardReport;

use crate::plot::PlotError;
use crate::usage::Usage;

/// Why the bench failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("{path}: {source}")]
    Path { path: PathBuf, source: io::Error },
    #[error("/proc: {0}")]
    Usage(#[source] io::Error),
    /// The log did not give back what it was given: a bug, or a disk that lies.
    #[error(
        "group {group} has {found} entries after recovery, {expected} were durable; its files are kept: please report this"
    )]
    Lost { group: GroupId, found: Index, expected: Index },
    #[error(
        "{found} entries after recovery, {expected} were durable; the files are kept: please report this"
    )]
    Miscounted { found: u64, expected: u64 },
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error("a shard's thread panicked")]
    Panicked,
    #[error(transparent)]
    Plot(#[from] PlotError),
}

/// The program: parses the command line, runs, prints. Exit codes: 0 done, 1 failed, 2 bad usage.
pub fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt().with_writer(io::stderr).with_max_level(tracing::Level::WARN).init();
    let done = if options.sweep {
        sweep::run_all(&options)
    } else {
        run(&options, &|phase| eprintln!("{phase}")).map(|report| report.print(options.json))
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wal-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One measurement. `tell` hears of each phase.
fn run(options: &Options, tell: &dyn Fn(&'static str)) -> Result<Report, Error> {
    let dir = fresh_dir(options.dir.as_deref())?;
    let measured = measure(options, dir.path(), tell);
    if let Err(Error::Lost { .. } | Error::Miscounted { .. }) = measured {
        // What did not come back is evidence.
        let _ = dir.keep();
    }
    let (reports, used) = measured?;
    Ok(Report::new(options, reports, used))
}

/// A folder of our own, removed when it is dropped.
fn fresh_dir(dir: Option<&Path>) -> Result<tempfile::TempDir, Error> {
    let target = Path::new("target");
    let parent = match dir {
        Some(dir) => dir.to_owned(),
        None if target.is_dir() => target.to_owned(),
        None => std::env::temp_dir(),
    };
    let failed = |source| Error::Path { path: parent.clone(), source };
    std::fs::create_dir_all(&parent).map_err(failed)?;
    tempfile::Builder::new().prefix("wal-bench-").tempdir_in(&parent).map_err(failed)
}

/// Runs the shards through their phases; what each did, and what the process used while they appended.
fn measure(
    options: &Options,
    dir: &Path,
    tell: &dyn Fn(&'static str),
) -> Result<(Vec<ShardReport>, Usage), Error> {
    let gate = Gate::new(usize::from(options.shards) + 1);
    std::thread::scope(|scope| {
        let shards: Vec<_> = (0..options.shards)
            .map(|shard| {
                let gate = &gate;
                scope.spawn(move || {
                    let report = shard::run(options, dir, shard, gate);
                    if report.is_err() {
                        gate.break_open();
                    }
                    report
                })
            })
            .collect();
        let used = accompany(&gate, tell);
        let reports: Vec<_> =
            shards.into_iter().map(|shard| shard.join().unwrap_or(Err(Error::Panicked))).collect();
        // The error that broke the gate tells more than that it was broken.
        let (mut sound, mut failed) = (Vec::new(), Vec::new());
        for report in reports {
            match report {
                Ok(report) => sound.push(report),
                Err(error) => failed.push(error),
            }
        }
        failed.sort_by_key(|error| matches!(error, Error::Broken(_)));
        failed.into_iter().next().map_or_else(|| Ok((sound, used?)), Err)
    })
}

/// Goes through the shards' phases with them, and reads the counters around the one that is measured.
fn accompany(gate: &Gate, tell: &dyn Fn(&'static str)) -> Result<Usage, Error> {
    tell("warming up and writing zeros ahead");
    gate.arrive()?;
    let before = Usage::now().map_err(Error::Usage)?;
    tell("appending");
    gate.arrive()?;
    gate.arrive()?;
    let used = Usage::now().map_err(Error::Usage)?.since(&before);
    tell("recovering and reading back");
    gate.arrive()?;
    gate.arrive()?;
    tell("done");
    Ok(used)
}
