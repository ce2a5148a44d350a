//! cluster-bench's flags, and which of them make no sense.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use coracle::Strategy;
use coracle_base::limits::{ENTRY_BYTES_MAX, MEMBERS_MAX};

use crate::size;

/// How fast does a whole Coracle cluster go on this machine? Starts its nodes as processes, on loopback.
#[derive(Debug, Parser)]
#[command(
    name = "cluster-bench",
    version,
    after_help = "Example:\n  cluster-bench throughput --preset ra --seconds 20\n  cluster-bench latency --json\n  \
                  cluster-bench restart --groups 1000 --log-bytes 1GiB\n  \
                  cluster-bench soak --seconds 600 --snapshot-bytes 1GiB --plot soak.svg"
)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What is measured.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Commands a second: clients that keep a number of commands in flight each.
    Throughput(Throughput),
    /// One client, one command at a time, beside the floor that disk and loopback set.
    Latency(Latency),
    /// How soon a node that was killed is back: fills its logs, SIGKILL, starts it again.
    Restart(Restart),
    /// Whether memory, files and disk level off under a long load with snapshots and compaction, and what one group with
    /// a large snapshot or backlog costs the others.
    Soak(Soak),
    /// One node; started by the bench itself.
    #[command(hide = true)]
    Node(NodeOptions),
}

#[derive(Debug, Args)]
pub(crate) struct Throughput {
    #[command(flatten)]
    pub(crate) cluster: ClusterOptions,
    /// Ra's own benchmark: 3 nodes, 1 group, 5 clients, pipe 500, 256 bytes, strategy direct.
    #[arg(long, conflicts_with_all = ["nodes", "groups", "clients", "pipe", "entry_bytes", "strategy"])]
    pub(crate) preset: Option<Preset>,
    /// Client threads, all in one node's process.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub(crate) clients: u64,
    /// Commands that each client keeps in flight.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub(crate) pipe: u64,
    #[command(flatten)]
    pub(crate) load: LoadOptions,
    /// Draw commands a second over the time of the measurement into this file.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Latency {
    #[command(flatten)]
    pub(crate) cluster: ClusterOptions,
    #[command(flatten)]
    pub(crate) load: LoadOptions,
}

#[derive(Debug, Args)]
pub(crate) struct Restart {
    #[command(flatten)]
    pub(crate) cluster: ClusterOptions,
    /// Bytes of entries (with their headers) that each node has in its logs, spread over all groups.
    #[arg(long, default_value = "64MiB", value_parser = size::parse)]
    pub(crate) log_bytes: u64,
    /// Bytes of a command.
    #[arg(long, default_value = "256", value_parser = entry_bytes)]
    pub(crate) entry_bytes: usize,
}

#[derive(Debug, Args)]
pub(crate) struct Soak {
    #[command(flatten)]
    pub(crate) cluster: ClusterOptions,
    /// How long the load lasts, without the phases that --snapshot-bytes and --backlog-bytes add.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) seconds: u64,
    /// Seconds between two samples; 0: a hundredth of the time, a second at least.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub(crate) sample_seconds: u64,
    /// Client threads, all in one node's process.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub(crate) clients: u64,
    /// Commands that each client keeps in flight.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub(crate) pipe: u64,
    /// Bytes of a command.
    #[arg(long, default_value = "256", value_parser = entry_bytes)]
    pub(crate) entry_bytes: usize,
    /// Of a hundred entries, so many live on below snapshots; 0: all die with the next one.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=100))]
    pub(crate) live_percent: u64,
    /// They do so until their group has applied so many more.
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) live_for: u64,
    /// Entries of a group between two of its snapshots.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) snapshot_every: u64,
    /// One more group, with a state of so many bytes: how fast are the others while it writes its snapshot?
    #[arg(long, default_value = "0", value_parser = size::parse)]
    pub(crate) snapshot_bytes: u64,
    /// One more group, of which a member is so many bytes behind: how fast are the others while it catches up? At least 3
    /// nodes.
    #[arg(long, default_value = "0", value_parser = size::parse, conflicts_with = "snapshot_bytes")]
    pub(crate) backlog_bytes: u64,
    /// Draw the samples into this file.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
}

impl Soak {
    /// What the machines do.
    pub(crate) fn machines(&self) -> Machines {
        let Self { live_percent, live_for, snapshot_every, snapshot_bytes, backlog_bytes, .. } = *self;
        let big = (snapshot_bytes > 0 || backlog_bytes > 0).then_some(snapshot_bytes);
        Machines::Soak(Soaked { live_percent, live_for, snapshot_every, big })
    }
}

/// What the machines of a node do with their logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machines {
    /// They release it now and then.
    Count,
    /// They keep all of it.
    Keep,
    /// Snapshots at an interval, of which some entries live on.
    Soak(Soaked),
}

/// Machines of a soak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Soaked {
    pub(crate) live_percent: u64,
    pub(crate) live_for: u64,
    pub(crate) snapshot_every: u64,
    /// There is one more group, with a state of so many bytes.
    pub(crate) big: Option<u64>,
}

impl fmt::Display for Machines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count => f.write_str("count"),
            Self::Keep => f.write_str("keep"),
            Self::Soak(Soaked { live_percent, live_for, snapshot_every, big }) => {
                write!(f, "soak:{live_percent}:{live_for}:{snapshot_every}")?;
                big.map_or(Ok(()), |bytes| write!(f, ":{bytes}"))
            }
        }
    }
}

impl FromStr for Machines {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("{text:?} are no machines");
        let mut words = text.split(':');
        match words.next() {
            Some("count") => Ok(Self::Count),
            Some("keep") => Ok(Self::Keep),
            Some("soak") => {
                let numbers: Vec<u64> =
                    words.map(str::parse).collect::<Result<_, _>>().map_err(|_| unknown())?;
                let (&[live_percent, live_for, snapshot_every], big) =
                    numbers.split_first_chunk().ok_or_else(unknown)?;
                Ok(Self::Soak(Soaked { live_percent, live_for, snapshot_every, big: big.first().copied() }))
            }
            _ => Err(unknown()),
        }
    }
}

/// A shape known from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Preset {
    /// `ra_bench` of Ra, RabbitMQ's Raft library. These are the defaults, and none of them may be changed.
    Ra,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ClusterOptions {
    /// Nodes, each a process of its own. 3 if nothing is said; 1 for `restart` and `soak`.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=MEMBERS_MAX as u64))]
    nodes: Option<u64>,
    /// Groups; each command goes to a random one. 1 if nothing is said; 1000 for `soak`.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    groups: Option<u64>,
    /// Shards of each node; 0: one a core, one in all on two cores or fewer.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub(crate) shards: u16,
    /// How writes become durable: direct, direct_fsync, buffered, sync, or none (for comparison only). Never falls back.
    #[arg(long, default_value_t = Strategy::Direct)]
    pub(crate) strategy: Strategy,
    /// Directory on the disk in question; the bench makes a folder of its own in it and removes it afterwards.
    /// Default: `target` of the current directory if there is one, else the system's temporary directory.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Print one JSON object as the last line of stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

impl ClusterOptions {
    /// How many nodes there are to be.
    pub(crate) fn nodes(&self) -> u64 {
        self.nodes.unwrap_or(3)
    }

    /// How many groups there are to be.
    pub(crate) fn groups(&self) -> u64 {
        self.groups.unwrap_or(1)
    }

    /// The same, of so many groups if nothing was said.
    pub(crate) fn of_groups(self, groups: u64) -> Self {
        Self { groups: self.groups.or(Some(groups)), ..self }
    }

    /// The same, of one node if nothing was said.
    pub(crate) fn single(self) -> Self {
        Self { nodes: self.nodes.or(Some(1)), ..self }
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct LoadOptions {
    /// How long to measure, after a second of warm-up; 10 if nothing is said.
    #[arg(long, conflicts_with = "ops", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) seconds: Option<u64>,
    /// Measure this many commands instead.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) ops: Option<u64>,
    /// Bytes of a command.
    #[arg(long, default_value = "256", value_parser = entry_bytes)]
    pub(crate) entry_bytes: usize,
}

/// How long a measurement goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    Time(Duration),
    Ops(u64),
}

impl LoadOptions {
    /// When to stop measuring.
    pub(crate) fn until(&self) -> Until {
        match (self.ops, self.seconds) {
            (Some(ops), _) => Until::Ops(ops),
            (None, seconds) => Until::Time(Duration::from_secs(seconds.unwrap_or(10))),
        }
    }
}

/// What a node process is told when it is started; the rest comes over its standard input.
#[derive(Debug, Args)]
pub(crate) struct NodeOptions {
    #[arg(long)]
    pub(crate) id: u64,
    /// Addresses of nodes 1, 2, 3 ...
    #[arg(long, value_delimiter = ',')]
    pub(crate) peers: Vec<std::net::SocketAddr>,
    #[arg(long)]
    pub(crate) dir: PathBuf,
    #[arg(long)]
    pub(crate) groups: u64,
    #[arg(long)]
    pub(crate) shards: u16,
    #[arg(long)]
    pub(crate) strategy: Strategy,
    #[arg(long)]
    pub(crate) machines: Machines,
}

fn entry_bytes(text: &str) -> Result<usize, String> {
    let bytes = size::parse(text)?;
    if bytes > ENTRY_BYTES_MAX as u64 {
        return Err(format!("{bytes} bytes: a command has at most {ENTRY_BYTES_MAX}"));
    }
    Ok(bytes as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Options, clap::Error> {
        Options::try_parse_from(std::iter::once("cluster-bench").chain(words.split_whitespace()))
    }

    #[test]
    fn defaults_are_the_contract_and_ras_own() {
        for words in ["throughput", "throughput --preset ra"] {
            let Command::Throughput(options) = parse(words).unwrap().command else { panic!() };
            assert_eq!((options.cluster.nodes(), options.cluster.groups()), (3, 1));
            assert_eq!((options.clients, options.pipe, options.load.entry_bytes), (5, 500, 256));
            assert_eq!(options.cluster.strategy, Strategy::Direct);
            assert_eq!(options.load.until(), Until::Time(Duration::from_secs(10)));
        }
    }

    #[test]
    fn nonsense_is_bad_usage() {
        for words in [
            "",
            "throughput --preset ra --strategy none",
            "throughput --preset ra --pipe 1000",
            "throughput --preset etcd",
            "throughput --seconds 1 --ops 5",
            "throughput --strategy fast",
            "throughput --nodes 0",
            "throughput --clients 0",
            "throughput --entry-bytes 1MiB",
            "latency --plot x.svg",
            "latency --pipe 2",
            "soak --live-percent 101",
            "soak --snapshot-bytes 1MiB --backlog-bytes 1MiB",
        ] {
            assert_eq!(parse(words).unwrap_err().exit_code(), 2, "{words:?}");
        }
        assert_eq!(parse("latency --help").unwrap_err().exit_code(), 0);
    }

    #[test]
    fn a_restart_is_of_one_node_unless_more_are_asked_for() {
        let nodes = |words| {
            let Command::Restart(options) = parse(words).unwrap().command else { panic!() };
            (options.cluster.single().nodes(), options.log_bytes)
        };
        assert_eq!(nodes("restart --groups 10 --log-bytes 1GiB"), (1, 1 << 30));
        assert_eq!(nodes("restart --nodes 3").0, 3);
    }

    #[test]
    fn machines_are_told_a_node_as_they_are() {
        let Command::Soak(options) = parse("soak --snapshot-bytes 1GiB --live-percent 3").unwrap().command
        else {
            panic!()
        };
        let soaked = Soaked { live_percent: 3, live_for: 4000, snapshot_every: 1000, big: Some(1 << 30) };
        assert_eq!((options.seconds, options.machines()), (600, Machines::Soak(soaked)));
        for machines in [
            Machines::Count,
            Machines::Keep,
            options.machines(),
            Machines::Soak(Soaked { big: None, ..soaked }),
        ] {
            assert_eq!(machines.to_string().parse(), Ok(machines));
        }
        for bad in ["", "soak", "soak:1:2", "soak:1:2:x", "other"] {
            assert!(bad.parse::<Machines>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_take_units() {
        let Command::Latency(options) = parse("latency --entry-bytes 4KiB --ops 7").unwrap().command else {
            panic!()
        };
        assert_eq!((options.load.entry_bytes, options.load.until()), (4096, Until::Ops(7)));
    }
}
