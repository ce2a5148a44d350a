//! wal-bench's flags, and which of them make no sense.

use std::path::PathBuf;

use clap::Parser;
use coracle_base::limits::{BATCH_BYTES_MAX, BATCH_BYTES_TARGET, BLOCK_BYTES, ENTRY_BYTES_MAX};
use coracle_io::Strategy;

use crate::size;

/// Entries in flight of one shard if nothing is said: some nine full batches of the yardstick's entries, so that the log
/// always has the next ones to write while four are on their way.
const IN_FLIGHT: u64 = 8192;

/// What durable log throughput does a disk give through Coracle's write-ahead log?
///
/// Appends entries of many groups at random as a shard does, waits until they are durable, then recovers the log,
/// reads every entry back from its files, checks it and counts it.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "wal-bench",
    version,
    after_help = "Example:\n  wal-bench --dir /var/lib/coracle --seconds 10 --baseline\n  \
                  wal-bench --rate 200000 --json\n  wal-bench --sweep --plot sweep.svg"
)]
pub struct Options {
    /// Directory on the disk in question; the bench makes a folder of its own in it and removes it afterwards.
    /// Default: `target` of the current directory if there is one, else the system's temporary directory.
    #[arg(long)]
    pub dir: Option<PathBuf>,

    /// How a write becomes durable; never falls back to another one. `none` means not at all: for comparison only.
    #[arg(long, default_value_t = Strategy::Direct, value_name = "direct|direct_fsync|buffered|sync|none")]
    pub strategy: Strategy,

    /// Logs, each with a thread and a ring of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub shards: u16,

    /// Groups, spread over the shards.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub groups: u32,

    /// Bytes of an entry's payload.
    #[arg(long, default_value = "256", value_parser = entry_bytes)]
    pub entry_bytes: usize,

    /// How long to append; 5 if nothing is said.
    #[arg(long, conflicts_with = "entries", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: Option<u64>,

    /// Append this many entries instead.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub entries: Option<u64>,

    /// Entries a second that arrive whatever the log does, all shards together; latencies count from the intended
    /// start. Without it, as fast as it goes.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: Option<u64>,

    /// Entries appended and not yet durable, at most, of each shard.
    #[arg(long, default_value_t = IN_FLIGHT, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub in_flight: u64,

    /// A batch that has to wait is closed when it has gathered this much; a larger entry gets a larger one of its own.
    #[arg(long, default_value_t = BATCH_BYTES_TARGET, value_parser = max_batch)]
    pub max_batch: usize,

    /// Size of a file of the log.
    #[arg(long, default_value = "128MiB", value_parser = wal_file)]
    pub wal_file: u64,

    /// Also make bare writes through the same driver: of the same batches, and of the best fixed size and depth.
    #[arg(long)]
    pub baseline: bool,

    /// Runs a row of entry sizes, entries in flight and batch sizes, so many `--seconds` (1) or `--entries` each. What
    /// the fastest of them came to is reported, and all of them under `sweep`.
    #[arg(long, conflicts_with_all = ["entry_bytes", "in_flight", "max_batch", "rate", "baseline"])]
    pub sweep: bool,

    /// Draw the sweep into this file.
    #[arg(long, value_name = "FILE.svg", requires = "sweep")]
    pub plot: Option<PathBuf>,

    /// Print one JSON object as the last line of stdout.
    #[arg(long)]
    pub json: bool,
}

fn entry_bytes(text: &str) -> Result<usize, String> {
    within(text, 0, ENTRY_BYTES_MAX as u64).map(|bytes| bytes as usize)
}

fn max_batch(text: &str) -> Result<usize, String> {
    let bytes = within(text, BLOCK_BYTES as u64, BATCH_BYTES_MAX as u64)?;
    whole_blocks(bytes).map(|bytes| bytes as usize)
}

fn wal_file(text: &str) -> Result<u64, String> {
    whole_blocks(within(text, 4 << 20, 4 << 30)?)
}

fn within(text: &str, min: u64, max: u64) -> Result<u64, String> {
    let bytes = size::parse(text)?;
    if (min..=max).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(format!("{bytes} bytes are not within {min}..={max}"))
    }
}

fn whole_blocks(bytes: u64) -> Result<u64, String> {
    if bytes.is_multiple_of(BLOCK_BYTES as u64) {
        Ok(bytes)
    } else {
        Err(format!("{bytes} bytes are not whole blocks of {BLOCK_BYTES}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options, clap::Error> {
        Options::try_parse_from(std::iter::once(&"wal-bench").chain(words))
    }

    #[test]
    fn defaults_are_the_contract() {
        let options = parse(&[]).unwrap();
        assert_eq!((options.shards, options.groups, options.entry_bytes), (1, 1000, 256));
        assert_eq!((options.strategy, options.wal_file), (Strategy::Direct, 128 << 20));
        assert_eq!((options.seconds, options.entries, options.rate), (None, None, None));
    }

    #[test]
    fn nonsense_is_bad_usage() {
        for words in [
            &["--seconds", "1", "--entries", "5"][..],
            &["--seconds", "0"],
            &["--shards", "0"],
            &["--entry-bytes", "1GiB"],
            &["--max-batch", "5000"],
            &["--max-batch", "2MiB"],
            &["--wal-file", "1MiB"],
            &["--strategy", "fast"],
            &["--plot", "x.svg"],
            &["--sweep", "--entry-bytes", "5"],
            &["--sweep", "--baseline"],
        ] {
            assert_eq!(parse(words).unwrap_err().exit_code(), 2, "{words:?}");
        }
        assert_eq!(parse(&["--help"]).unwrap_err().exit_code(), 0);
    }

    #[test]
    fn sizes_take_units() {
        let options =
            parse(&["--entry-bytes", "4KiB", "--max-batch", "1MiB", "--wal-file", "64MiB"]).unwrap();
        assert_eq!((options.entry_bytes, options.max_batch, options.wal_file), (4096, 1 << 20, 64 << 20));
    }
}
