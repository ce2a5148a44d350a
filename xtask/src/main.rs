//! The one front door for development: the same commands on a laptop and in CI.
//!
//! Invariants: (1) every command is a list of steps that a person can also type, and prints each before it runs it;
//! (2) the first step that fails ends the command with exit code 1.
#![forbid(unsafe_code)]

mod night;
mod steps;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use steps::{Error, Step};

/// Coracle's development commands. Before each commit: cargo xtask check
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Format, tidy, lints, docs, tests and 50 seeds of the simulator: before each commit.
    Check,
    /// Format, tidy, lints and docs: `check` without running anything.
    Lint,
    /// All tests, or those whose name contains NAME.
    Test {
        /// Part of a test's name.
        name: Option<String>,
    },
    /// Runs the consensus scenarios.
    Scenarios {
        /// Writes what the code does now into the scenario files; read the difference before you believe it.
        #[arg(long)]
        rewrite: bool,
    },
    /// Simulates whole clusters, optimised. Arguments go on to it: cargo xtask sim --seeds 0..2000
    Sim {
        /// Its own arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Crashes the log at every operation, on the simulated disk; then kills real processes on a real one.
    Crash,
    /// The long runs, with results in docs/results/: crashes, kills, faults, random clusters, benches, fuzzing, and what we
    /// take from others (needs cargo-deny).
    Night {
        /// How long the simulator runs.
        #[arg(long, default_value_t = 30)]
        minutes: u64,
        /// Only steps with this in their command.
        #[arg(long)]
        only: Option<String>,
    },
    /// Runs a bench program, optimised. Arguments go on to it: cargo xtask bench wal --baseline
    Bench {
        /// Which one.
        what: Bench,
        /// Its own arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// House rules that no compiler checks: dependency direction, where unsafe code may be, file length and the like.
    Tidy,
    /// Copies the layouts in the code's module headers into docs/FORMAT.md.
    Formats,
}

#[derive(Clone, Copy, ValueEnum)]
enum Bench {
    /// What durable log throughput the disk gives.
    Wal,
    /// What a cluster of three processes does.
    Cluster,
}

fn main() -> ExitCode {
    let root = workspace_root();
    let outcome = match Cli::parse().command {
        Command::Check => {
            lint(&root).and_then(|()| steps::run(&root, &[Step::test(None), Step::seeds("0..50")]))
        }
        Command::Lint => lint(&root),
        Command::Test { name } => steps::run(&root, &[Step::test(name.as_deref())]),
        Command::Scenarios { rewrite } => steps::run(&root, &[Step::scenarios(rewrite)]),
        Command::Sim { arguments } => steps::run(&root, &[Step::program("coracle-sim", "sim", &arguments)]),
        Command::Crash => steps::run(&root, &[Step::crash("5"), Step::kills("30")]),
        Command::Night { minutes, only } => night::run(&root, minutes, only.as_deref()),
        Command::Bench { what: Bench::Wal, arguments } => {
            steps::run(&root, &[Step::program("coracle-tools", "wal-bench", &arguments)])
        }
        Command::Bench { what: Bench::Cluster, arguments } => {
            steps::run(&root, &[Step::program("coracle-tools", "cluster-bench", &arguments)])
        }
        Command::Tidy => tidy::run(&root),
        Command::Formats => tidy::rewrite_layouts(&root),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The cheap steps first, so that a slip is told soon.
fn lint(root: &Path) -> Result<(), Error> {
    steps::run(root, &[Step::format()])?;
    tidy::run(root)?;
    steps::run(root, &[Step::lints(), Step::docs()])
}

/// The folder above this package's own.
fn workspace_root() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}
