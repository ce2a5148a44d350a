//! Three nodes in one process and one replicated number: add to it, stop the leader, add again.
//!
//!     cargo run --release --example quick_start [-- --data-dir DIR]
//!
//! A fresh directory gives 5, 12, 13. The same directory again gives 18, 25, 26: the number is durable.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods)] // a program may look at the clock and sleep; the engine may not

use std::error::Error;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use clap::Parser;
use coracle::{Config, Done, Effects, Entry, GroupId, Node, NodeId, Outcome, Peer, TypedGroup, TypedMachine};

/// The replicated state machine: a number to which every command adds.
struct Adder(i64);

impl TypedMachine for Adder {
    type Command = i64;
    type Reply = i64;
    type Query = ();
    type Answer = i64;
    type State = i64;

    fn apply(&mut self, number: i64, _entry: Entry<'_>, _effects: &mut Effects<'_>) -> i64 {
        self.0 = self.0.wrapping_add(number);
        self.0
    }

    fn query(&self, (): ()) -> i64 {
        self.0
    }

    fn save(&self) -> i64 {
        self.0
    }

    fn load(&mut self, number: i64) {
        self.0 = number;
    }
}

/// The uid of the group called `quick_start`, whose members are all three nodes.
const QUICK_START: GroupId = GroupId(1);

/// Starts three replicated nodes in one process, adds 5 and 7, stops the leader, adds 1.
#[derive(Parser)]
#[command(version, after_help = "Example: quick_start --data-dir ./numbers")]
struct Args {
    /// Where the nodes keep their data; without it, a temporary directory that is removed.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quick_start: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A node and its handle of the group.
struct Member {
    node: Node,
    number: TypedGroup<Adder>,
}

fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let data_dir = args.data_dir.as_deref().unwrap_or(temporary.path());
    let mut members = start(data_dir)?;

    let mut leader = NodeId::NONE;
    for number in [5, 7] {
        let done = add(&members[0], number)?;
        println!("added {number}: reply={} leader={}", done.reply, done.leader);
        leader = done.leader;
    }

    let at =
        members.iter().position(|member| member.node.id() == leader).ok_or("the leader is none of us")?;
    let stopped_at = Instant::now();
    members.swap_remove(at).node.stop()?;

    let Done { reply, leader, .. } = add(&members[0], 1)?;
    let failover_ms = stopped_at.elapsed().as_millis();
    println!("added 1: reply={reply} leader={leader} failover_ms={failover_ms}");

    members.into_iter().try_for_each(|member| Ok(member.node.stop()?))
}

/// Starts three nodes that know each other by loopback addresses, and the group on each.
fn start(data_dir: &Path) -> Result<Vec<Member>, Box<dyn Error>> {
    let ports = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0")); // all at once, so that they differ
    let mut peers = Vec::new();
    for (id, port) in (1..).zip(ports) {
        peers.push(Peer { id: NodeId(id), address: port?.local_addr()? });
    }
    let mut nodes = Vec::new();
    for peer in &peers {
        let data_dir = data_dir.join(format!("node-{}", peer.id));
        nodes.push(Node::start(Config::new(peer.id.0, peers.clone(), data_dir))?);
    }
    // Groups come afterwards: a new cluster is formed once all its nodes have met.
    let mut members = Vec::new();
    for node in nodes {
        let number = node.start_typed(QUICK_START, Adder(0))?;
        members.push(Member { node, number });
    }
    Ok(members)
}

/// Adds `number` through one member; the leader may be another. Tries again as long as nothing has happened.
fn add(member: &Member, number: i64) -> Result<Done<i64>, Box<dyn Error>> {
    loop {
        match member.number.propose(&number).wait() {
            Outcome::Done(done) => return Ok(done),
            Outcome::NotDone(why) => thread::sleep(why.retry_after),
            Outcome::Unknown(why) => return Err(why.into()),
        }
    }
}
