//! `kv` as clients see it: what every command answers, through any node, alone and pipelined; how it refuses to start.

use std::net::SocketAddr;
use std::path::Path;

use tempfile::TempDir;

use crate::process::{Process, free_addresses, wait_for};
use crate::resp::{Connection, Reply, request};

/// A cluster of `kv` processes. Clients' ports change with each start.
pub(crate) struct Cluster {
    dir: TempDir,
    /// By node: where it believes that the nodes are.
    peers: Vec<Vec<SocketAddr>>,
    groups: u64,
    /// More arguments of every node.
    pub(crate) more: Vec<&'static str>,
    /// Where the nodes listen for operators, node 1's first; empty if they do not.
    pub(crate) admins: Vec<SocketAddr>,
}

impl Cluster {
    pub(crate) fn new(nodes: usize, groups: u64) -> Self {
        Self::seeing(vec![free_addresses(nodes); nodes], groups)
    }

    /// A cluster in which each node believes the others to be elsewhere: behind something that can cut them off.
    pub(crate) fn seeing(peers: Vec<Vec<SocketAddr>>, groups: u64) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), peers, groups, more: Vec::new(), admins: Vec::new() }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn args(&self, id: usize) -> Vec<String> {
        let peers = (1..)
            .zip(&self.peers[id - 1])
            .map(|(id, peer)| format!("{id}={peer}"))
            .collect::<Vec<_>>()
            .join(",");
        let dir = self.dir.path().join(format!("node-{id}")).display().to_string();
        let admin = self.admins.get(id - 1).map(|at| ["--admin".to_owned(), at.to_string()]);
        let (id, groups) = (id.to_string(), self.groups.to_string());
        let own = [
            "--id",
            &id,
            "--listen",
            "127.0.0.1:0",
            "--peers",
            &peers,
            "--data-dir",
            &dir,
            "--groups",
            &groups,
        ];
        own.iter().chain(&self.more).map(|arg| (*arg).to_owned()).chain(admin.into_iter().flatten()).collect()
    }

    /// Starts one node. It serves clients only once the cluster is formed.
    pub(crate) fn start(&self, id: usize) -> Process {
        Process::start("kv", &self.args(id))
    }

    /// Starts one node that says on standard error what an operator has to know.
    pub(crate) fn start_loud(&self, id: usize) -> Process {
        Process::start_with("kv", &self.args(id), &[("RUST_LOG", "error")])
    }

    /// Starts one node whose disk has planned faults; the program has to be built with them.
    #[cfg(feature = "faults")]
    pub(crate) fn start_faulty(&self, id: usize, faults: &str) -> Process {
        Process::start_with("kv", &self.args(id), &[("CORACLE_FAULTS", faults)])
    }

    /// Starts all nodes, and returns where each serves clients.
    pub(crate) fn start_all(&self) -> Vec<(Process, SocketAddr)> {
        let processes: Vec<Process> = (1..=self.peers.len()).map(|id| self.start(id)).collect();
        let ready = |mut process: Process| {
            let address = ready(&mut process);
            (process, address)
        };
        processes.into_iter().map(ready).collect()
    }
}

/// Waits until a node serves clients; where.
pub(crate) fn ready(process: &mut Process) -> SocketAddr {
    let line = process.line();
    line.strip_prefix("ready ").unwrap_or_else(|| panic!("{line:?}")).parse().unwrap()
}

/// Calls until the cluster takes the command.
pub(crate) fn call(connection: &mut Connection, args: &[&str]) -> Reply {
    let bytes: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
    wait_for(&format!("a reply to {args:?}"), || {
        let reply = connection.call(&bytes).unwrap();
        (!reply.is_error("TRYAGAIN")).then_some(reply)
    })
}

fn bulk(text: &str) -> Reply {
    Reply::Bulk(Some(text.as_bytes().to_vec()))
}

#[test]
fn kv_serves_every_key_through_every_node() {
    let cluster = Cluster::new(3, 4);
    let nodes = cluster.start_all();
    // Each node alone: a client that can reach only a follower needs no other.
    let mut connections: Vec<Connection> =
        nodes.iter().map(|(_, at)| Connection::open(*at).unwrap()).collect();
    for (at, connection) in connections.iter_mut().enumerate() {
        let key = format!("key-{at}");
        assert_eq!(call(connection, &["SET", &key, "one"]), Reply::Simple("OK".into()));
        assert_eq!(call(connection, &["get", &key]), bulk("one"));
        assert_eq!(call(connection, &["SETNX", &key, "two"]), Reply::Number(0));
        assert_eq!(call(connection, &["CAS", &key, "two", "three"]), Reply::Number(0));
        assert_eq!(call(connection, &["CAS", &key, "one", "three"]), Reply::Number(1));
        assert!(call(connection, &["INCR", &key]).is_error("ERR"));
        assert_eq!(call(connection, &["INCRBY", "sum", "10"]), Reply::Number(10 * (at as i64 + 1)));
    }
    // What one node acknowledged is seen through every other at once.
    for connection in &mut connections {
        assert_eq!(call(connection, &["GET", "sum"]), bulk("30"));
        assert_eq!(call(connection, &["GET", "key-0"]), bulk("three"));
        assert_eq!(call(connection, &["GET", "nothing"]), Reply::Bulk(None));
    }
    assert_eq!(call(&mut connections[1], &["DEL", "key-0"]), Reply::Number(1));
    assert_eq!(call(&mut connections[2], &["GET", "key-0"]), Reply::Bulk(None));
}

#[test]
fn kv_answers_a_pipeline_in_order() {
    let cluster = Cluster::new(1, 1);
    let nodes = cluster.start_all();
    let mut connection = Connection::open(nodes[0].1).unwrap();
    call(&mut connection, &["SET", "n", "0"]);
    let mut bytes = Vec::new();
    for round in 0..2000u32 {
        bytes.extend(request(&[b"INCR", b"n"]));
        bytes.extend(request(&[b"GET", b"n"]));
        bytes.extend_from_slice(if round % 2 == 0 { b"PING\r\n" } else { b"nonsense\r\n" });
    }
    std::thread::scope(|scope| {
        let mut writer = connection.socket().try_clone().unwrap();
        scope.spawn(move || std::io::Write::write_all(&mut writer, &bytes).unwrap());
        for round in 0..2000i64 {
            assert_eq!(connection.reply().unwrap(), Reply::Number(round + 1));
            assert_eq!(connection.reply().unwrap(), bulk(&(round + 1).to_string()));
            match round % 2 {
                0 => assert_eq!(connection.reply().unwrap(), Reply::Simple("PONG".into())),
                _ => assert!(connection.reply().unwrap().is_error("ERR")),
            }
        }
    });
}

#[test]
fn kv_without_a_majority_says_try_again_or_unknown() {
    let cluster = Cluster::new(3, 1);
    let mut nodes = cluster.start_all();
    let mut connection = Connection::open(nodes[0].1).unwrap();
    assert_eq!(call(&mut connection, &["SET", "a", "1"]), Reply::Simple("OK".into()));
    nodes.truncate(1);
    let reply = connection.call(&[b"SET", b"a", b"2"]).unwrap();
    assert!(reply.is_error("TRYAGAIN") || reply.is_error("UNKNOWN"), "{reply:?}");
    let reply = connection.call(&[b"GET", b"a"]).unwrap();
    assert!(
        reply.is_error("TRYAGAIN") || reply.is_error("UNKNOWN"),
        "a read needs a majority, too: {reply:?}"
    );
    assert_eq!(connection.call(&[b"PING"]).unwrap(), Reply::Simple("PONG".into()), "PING needs none");
    assert!(matches!(connection.call(&[b"INFO"]).unwrap(), Reply::Bulk(Some(_))));
}

#[test]
fn kv_stops_in_good_order_and_keeps_everything() {
    let cluster = Cluster::new(1, 2);
    for start in 1..=3 {
        let (mut process, address) = cluster.start_all().remove(0);
        let mut connection = Connection::open(address).unwrap();
        assert_eq!(call(&mut connection, &["INCR", "starts"]), Reply::Number(start));
        assert_eq!(process.terminate(), Some(0));
    }
}

#[test]
fn kv_refuses_bad_usage_with_2_and_a_taken_directory_with_1() {
    let cluster = Cluster::new(1, 1);
    let refused = |change: &dyn Fn(&mut Vec<String>)| {
        let mut args = cluster.args(1);
        change(&mut args);
        let output = Process::run("kv", &args);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = refused(&|args| args.extend(["--admin".to_owned(), "nowhere".to_owned()]));
    assert!(code == Some(2) && said.contains("nowhere"), "{code:?}: {said}");
    let (code, said) = refused(&|args| args.extend(["--strategy".to_owned(), "fast".to_owned()]));
    assert!(code == Some(2) && said.contains("direct"), "{code:?}: {said}");
    let (code, said) = refused(&|args| args[1] = "9".to_owned());
    assert!(code == Some(2) && said.contains("9"), "{code:?}: {said}");
    assert!(cluster.dir().read_dir().unwrap().next().is_none(), "nothing was made");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let (code, said) = refused(&|args| args.extend(["--admin".to_owned(), at.clone()]));
    assert!(code == Some(1) && said.contains("operators") && said.contains(&at), "{code:?}: {said}");

    let _running = cluster.start_all();
    let (code, said) = refused(&|_| {});
    assert!(code == Some(1) && !said.contains("panicked"), "{code:?}: {said}");
}
