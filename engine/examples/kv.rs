//! A replicated key-value server that speaks RESP2: `redis-cli`, `redis-benchmark` and Redis client libraries drive
//! the engine from outside. Every node serves every key; each command is linearizable.
//!
//!     kv --id 1 --listen 127.0.0.1:6001 --peers 1=127.0.0.1:7001,2=127.0.0.1:7002,3=127.0.0.1:7003 --data-dir DIR
//!
//! Prints `ready HOST:PORT` once clients are served, and then, with `--admin`, `admin HOST:PORT`. SIGTERM and ctrl-c stop it in good order.
#![forbid(unsafe_code)]

#[path = "kv/resp.rs"]
mod resp;
#[path = "kv/server.rs"]
mod server;
#[path = "kv/service.rs"]
mod service;
#[path = "kv/store.rs"]
mod store;

use std::cell::Cell;
use std::io::IsTerminal;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::Parser;
use coracle::{Admin, Config, Consistency, GroupId, Machine, Node, NodeId, Peer, Strategy};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use server::Server;
use service::Service;
use store::Store;

/// How often the server looks whether its node still runs.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A replicated key-value server: GET, SET, SETNX, DEL, INCR, INCRBY, CAS, PING and INFO over RESP2.
#[derive(Parser)]
#[command(
    name = "kv",
    version,
    after_help = "Example, one of three nodes:\n  \
        kv --id 1 --listen 127.0.0.1:6001 --data-dir ./kv-1 \\\n     \
        --peers 1=127.0.0.1:7001,2=127.0.0.1:7002,3=127.0.0.1:7003 \\\n     \
        --admin 127.0.0.1:8001"
)]
struct Args {
    /// This node's id, among the peers.
    #[arg(long, value_name = "N")]
    id: u64,
    /// Where clients are served.
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    listen: SocketAddr,
    /// Where the nodes listen for each other, this one among them.
    #[arg(long, value_name = "N=HOST:PORT,...", value_delimiter = ',', value_parser = peer, required = true)]
    peers: Vec<Peer>,
    /// This node's own directory; created if it is missing.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Groups over which the keys are spread; the same on every node, for life.
    #[arg(long, value_name = "G", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    groups: u64,
    /// How writes become durable: direct, direct_fsync, buffered, sync, or none (a crash of the machine loses
    /// acknowledged commands).
    #[arg(long, value_name = "S", default_value_t = Strategy::Direct)]
    strategy: Strategy,
    /// Who answers GET, linearizable either way: `leader`, the one of the key's group, or `here`, this node, which asks the
    /// leader only how far it must have come.
    #[arg(long, value_name = "WHO", default_value = "leader", value_parser = reads)]
    reads: Consistency,
    /// Size of a log file: bytes, or KiB, MiB, GiB. Small ones are for tests; 2 MiB hold any command.
    #[arg(long, value_name = "N", default_value = "128MiB", value_parser = size)]
    wal_file: u64,
    /// A label of this node, shown by INFO.
    #[arg(long, value_name = "LABEL", default_value = "")]
    metrics_key: String,
    /// Keys of the form UID/REST are those of a named group, which operators make and delete
    /// (`coracle --node HOST:PORT groups`); all others are spread over the groups without a name.
    #[arg(long)]
    named: bool,
    /// Where operators look at this node and change members (`coracle --node HOST:PORT`), and Prometheus finds /metrics.
    /// There is no authentication: keep it on loopback, or where only operators reach it.
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    admin: Option<SocketAddr>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()),
        )
        .init();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Configuration(error)) => {
            eprintln!("kv: {error}");
            ExitCode::from(2)
        }
        Err(Failure::Running(error)) => {
            eprintln!("kv: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Why the server did not start, or stopped.
enum Failure {
    /// Nothing was started or changed: exit code 2.
    Configuration(coracle::Error),
    /// Exit code 1.
    Running(String),
}

impl From<coracle::Error> for Failure {
    fn from(error: coracle::Error) -> Self {
        match error {
            coracle::Error::Config { .. } | coracle::Error::Directory { .. } => Failure::Configuration(error),
            other => Failure::Running(other.to_string()),
        }
    }
}

fn run(args: Args) -> Result<(), Failure> {
    let io = |what: &str, error: std::io::Error| Failure::Running(format!("{what}: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| io("cannot start the runtime", error))?;
    let listen = format!("cannot serve clients on {}", args.listen);
    let listener = runtime.block_on(TcpListener::bind(args.listen)).map_err(|error| io(&listen, error))?;
    let address = listener.local_addr().map_err(|error| io(&listen, error))?;

    let mut config = Config::new(args.id, args.peers, args.data_dir);
    config.wal_write_strategy = args.strategy;
    config.wal_max_size_bytes = args.wal_file;
    config.metrics_key = args.metrics_key;
    let machine = |_: &str, _: &[u8]| Some(Box::new(Store::default()) as Box<dyn Machine>);
    let node = if args.named { Node::start_with_groups(config, machine) } else { Node::start(config) }?;
    // Before the groups: an operator may want to see why they wait.
    let admin = args.admin.map(|at| {
        Admin::start(&node, at).map_err(|error| io(&format!("cannot listen for operators on {at}"), error))
    });
    let admin = admin.transpose()?;
    let info = format!(
        "# Coracle\r\nnode:{}\r\nmetrics_key:{}\r\nstrategy:{}\r\ngroups:{}\r\n",
        args.id,
        node.metrics_key(),
        args.strategy,
        args.groups
    );
    let groups = (1..=args.groups).map(|uid| node.start_group(GroupId(uid), Store::default()));
    // If the node failed meanwhile, its end says why.
    let groups = groups.collect::<Result<_, _>>().map_err(|error| node.stop().err().unwrap_or(error))?;
    let service = Service::new(groups, node.client(), args.reads, args.named);
    let server = Rc::new(Server { service, info, connections: Cell::new(0) });
    let serving = server.clone();

    let stop = async {
        tokio::select! {
            () = signalled() => {}
            () = failed(&node) => {}
            () = follow_names(&node, &server.service), if args.named => {}
        }
    };
    println!("ready {address}");
    if let Some(admin) = &admin {
        println!("admin {}", admin.address());
    }
    LocalSet::new().block_on(&runtime, server::serve(listener, serving, stop));
    node.stop()?;
    Ok(())
}

/// Ends on SIGTERM or ctrl-c.
async fn signalled() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("no signal handlers: only SIGKILL stops this server");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Ends when a shard of the node has failed; stopping it then says why.
async fn failed(node: &Node) {
    while node.is_running() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Keeps to the named groups that this node hears of.
async fn follow_names(node: &Node, service: &Service) {
    loop {
        let mut changes = node.directory().changes();
        while let Some(change) = changes.recv().await {
            service.on_name(change, |id| node.group(id));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn peer(text: &str) -> Result<Peer, String> {
    let (id, host) = text.split_once('=').ok_or("expected N=HOST:PORT")?;
    let id = id.parse().map_err(|error| format!("{id}: {error}"))?;
    Ok(Peer { id: NodeId(id), address: address(host)? })
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let mut found = text.to_socket_addrs().map_err(|error| format!("{text}: {error}"))?;
    found.next().ok_or_else(|| format!("{text} has no address"))
}

fn reads(text: &str) -> Result<Consistency, String> {
    match text {
        "leader" => Ok(Consistency::Linearizable),
        "here" => Ok(Consistency::LinearizableHere),
        other => Err(format!("{other}: there are leader and here")),
    }
}

fn size(text: &str) -> Result<u64, String> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("", 0)];
    let (digits, shift) = units
        .iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)))
        .expect("every text ends in nothing");
    let number: u64 = digits.trim().parse().map_err(|error| format!("{text}: {error}"))?;
    number.checked_shl(shift).filter(|size| *size >> shift == number).ok_or(format!("{text} is too large"))
}
