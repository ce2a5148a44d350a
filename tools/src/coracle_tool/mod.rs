//! coracle: looks into a data directory (`inspect` says what is there, `verify` whether all of it is sound, `dump` prints
//! a group's entries), and operates a running node through its admin listener (`operate/`).
//!
//! Invariants: (1) nothing in a directory is changed, whatever state it is in; (2) a directory in use may be looked
//! into: what is being written at that moment is not taken for damage; (3) a node is asked again only for what it said
//! was certainly not done.

mod directory;
mod dump;
mod inspect;
mod operate;
mod verify;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use coracle_io::DiskError;
use coracle_wal::WalError;

/// Looks into the data directory of a Coracle node, or operates a running one.
///
/// A directory is never changed, and its node may be running. A running node is reached at its admin address (that of
/// `kv --admin`), which has no authentication: keep it on loopback, or where only operators reach it.
#[derive(Debug, Parser)]
#[command(
    name = "coracle",
    version,
    after_help = "Examples:
  coracle verify /var/lib/coracle
  coracle dump /var/lib/coracle --group 7 --from 100 --to 120
  coracle --node 127.0.0.1:8001 overview
  coracle --node 127.0.0.1:8001 remove 3 --group 1
  coracle --node 127.0.0.1:8001 add 3 --group 1
  coracle --node 127.0.0.1:8001 transfer 2 --all
Exit codes: 0 done; 1 it failed, and stderr says what and what to do; 2 bad usage, nothing was changed."
)]
struct Options {
    /// The admin address of a running node; for the commands that operate one. Any member's node will do: what only the
    /// leader can decide finds its way to it.
    #[arg(long, global = true, value_name = "HOST:PORT")]
    node: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What is there: node, cluster, shards, files, groups.
    Inspect(Look),
    /// Checks every checksum and invariant. Exit code 0: sound; 1: damaged, and where.
    Verify(Look),
    /// Prints entries of a group, one a line: index, term, kind, tag, time, bytes, payload.
    Dump(Dump),
    #[command(flatten)]
    Operate(operate::Operation),
}

#[derive(Debug, Args)]
struct Look {
    /// The data directory of a node.
    dir: PathBuf,
    /// Print one JSON object as the last line of stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Dump {
    #[command(flatten)]
    look: Look,
    /// The group's uid.
    #[arg(long)]
    group: u64,
    /// The first index; the first that is there if nothing is said.
    #[arg(long)]
    from: Option<u64>,
    /// The last index; the last that is there if nothing is said.
    #[arg(long)]
    to: Option<u64>,
}

/// Why nothing could be told.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{dir} is not a data directory: {why}")]
    NoDirectory { dir: PathBuf, why: String },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error(transparent)]
    Engine(#[from] coracle::Error),
    #[error("the directory is damaged; `coracle verify` says where. {0}")]
    Damaged(String),
    #[error("there is no group {0}; `coracle inspect` lists those that are there")]
    NoGroup(u64),
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Node(#[from] operate::NodeError),
    #[error("stdout: {0}")]
    Output(#[from] io::Error),
}

/// The program: parses the command line, looks, prints. Exit codes: 0 done, 1 failed or damaged, 2 bad usage.
pub fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt().with_writer(io::stderr).with_max_level(tracing::Level::ERROR).init();
    let done = match &options.command {
        Command::Inspect(look) => inspect::run(&look.dir, look.json).map(|()| true),
        Command::Verify(look) => verify::run(&look.dir, look.json),
        Command::Dump(dump) => dump::run(dump),
        Command::Operate(operation) => operate::run(options.node.as_deref(), operation).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Whoever reads our output has seen enough.
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error @ (Error::NoDirectory { .. } | Error::Usage(_))) => {
            eprintln!("coracle: {error}");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("coracle: {error}");
            ExitCode::FAILURE
        }
    }
}
