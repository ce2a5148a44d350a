//! What a node does with connections that are not a good peer's: each is closed with a reason, and nothing else happens.
//! The bytes are written out here by hand, as docs/FORMAT.md gives them, so that the format cannot change unnoticed.
#![allow(clippy::unwrap_used)] // a test that fails may panic

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use coracle::{Config, Effects, Entry, GroupId, Node, NodeId, Outcome, Peer, TypedGroup, TypedMachine};

struct Counter(i64);

impl TypedMachine for Counter {
    type Command = i64;
    type Reply = i64;
    type Query = ();
    type Answer = i64;
    type State = i64;

    fn apply(&mut self, add: i64, _: Entry<'_>, _: &mut Effects<'_>) -> i64 {
        self.0 += add;
        self.0
    }
    fn query(&self, (): ()) -> i64 {
        self.0
    }
    fn save(&self) -> i64 {
        self.0
    }
    fn load(&mut self, state: i64) {
        self.0 = state;
    }
}

/// A node that is a cluster by itself, its counter, and where peers would connect.
struct Alone {
    node: Node,
    counter: TypedGroup<Counter>,
    address: SocketAddr,
    dir: Option<tempfile::TempDir>,
}

pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub(crate) fn config(id: u64, peers: &[(u64, SocketAddr)], dir: &Path) -> Config {
    let peers = peers.iter().map(|(id, address)| Peer { id: NodeId(*id), address: *address }).collect();
    let mut config = Config::new(id, peers, dir);
    config.wal_max_size_bytes = 1 << 20;
    config
}

fn alone() -> Alone {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let address = free_address();
    let node = Node::start(config(1, &[(1, address)], dir.path())).unwrap();
    let counter = node.start_typed(GroupId(1), Counter(0)).unwrap();
    Alone { node, counter, address, dir: Some(dir) }
}

impl Alone {
    fn add(&self, value: i64) -> i64 {
        loop {
            match self.counter.propose(&value).wait() {
                Outcome::Done(done) => return done.reply,
                Outcome::NotDone(_) => {}
                Outcome::Unknown(why) => panic!("{why}"),
            }
        }
    }

    /// Sends `bytes` on a new connection and returns everything that comes back until the node closes it.
    fn answer_to(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The node may close while we are still writing: that is an answer, too.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the node keeps the connection open: {error}"),
        }
        answer
    }
}

/// A frame as docs/FORMAT.md has it.
fn frame(kind: u8, head: &[u8]) -> Vec<u8> {
    let mut out = b"CRL1".to_vec();
    out.extend((head.len() as u32).to_le_bytes());
    out.extend((head.len() as u32).to_le_bytes());
    out.extend([kind, 0, 0, 0]);
    out.extend(0u64.to_le_bytes());
    let crc = coracle_base::checksum::crc32c_from(coracle_base::checksum::crc32c(&out), head);
    out.extend(crc.to_le_bytes());
    out.extend(head);
    out
}

fn hello(version: u16, node: u64, cluster: u128) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(version.to_le_bytes());
    out.extend(version.to_le_bytes());
    out.extend(node.to_le_bytes());
    out.extend(77u64.to_le_bytes()); // incarnation
    out.extend(1u64.to_le_bytes()); // boot epoch
    out.extend(0u16.to_le_bytes()); // shard
    out.extend(1u16.to_le_bytes()); // shards
    out.push(0); // lane
    out.extend(cluster.to_le_bytes());
    out.extend(0u16.to_le_bytes()); // members
    frame(1, &out)
}

fn refusal(answer: &[u8]) -> String {
    assert!(answer.len() > 28 && answer[12] == 3, "not a refusal: {answer:?}");
    String::from_utf8(answer[28..].to_vec()).unwrap()
}

#[test]
fn garbage_and_oversized_frames_are_closed_and_the_node_goes_on() {
    let alone = alone();
    assert_eq!(alone.add(5), 5);
    let mut flipped = hello(1, 2, 9);
    flipped[40] ^= 4;
    let mut oversized = b"CRL1".to_vec();
    oversized.extend(u32::MAX.to_le_bytes());
    oversized.extend(12u32.to_le_bytes());
    let cases: [(&str, Vec<u8>); 5] = [
        ("another protocol", b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n".to_vec()),
        ("zeros", vec![0; 5000]),
        ("a frame of 4 GiB", oversized),
        ("a hello with a flipped bit", flipped),
        ("an envelope before any hello", frame(4, &[0; 12])),
    ];
    for (what, bytes) in cases {
        assert_eq!(alone.answer_to(&bytes), b"", "{what}: closed without a word");
    }
    assert_eq!(alone.add(7), 12);
}

#[test]
fn strangers_are_told_why_they_are_refused() {
    let alone = alone();
    assert_eq!(alone.add(1), 1);
    let cases = [
        (hello(9, 2, 0), "protocol versions 9 to 9 are not spoken here"),
        (hello(1, 1, 0), "both nodes call themselves 1"),
        (hello(1, 2, 0), "node 2 is not a member"),
        (hello(1, 2, 0xABCD), "the address or the data directory is wrong"),
    ];
    for (bytes, expected) in cases {
        let reason = refusal(&alone.answer_to(&bytes));
        assert!(reason.contains(expected), "{reason:?} does not say {expected:?}");
    }
    assert_eq!(alone.add(1), 2);
}

#[test]
fn connections_that_say_nothing_are_few_and_have_little_time() {
    let alone = alone();
    let silent: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(alone.address).unwrap()).collect();
    assert_eq!(alone.add(3), 3);
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let closed = stream.read(&mut [0; 16]);
        assert!(matches!(closed, Ok(0) | Err(_)), "nothing is said to a stranger that says nothing");
        assert!(
            !matches!(closed, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock),
            "still open after 20 s"
        );
    }
}

#[test]
fn a_directory_of_another_node_or_a_taken_one_is_refused() {
    let alone = alone();
    assert_eq!(alone.add(4), 4);
    let dir = alone.dir.as_ref().unwrap().path().to_owned();
    let start = |config: Config| Node::start(config).unwrap_err().to_string();

    let taken = start(config(1, &[(1, alone.address)], &dir));
    assert!(taken.contains("in use by another process"), "{taken}");

    alone.node.stop().unwrap();
    let other = start(config(2, &[(2, alone.address)], &dir));
    assert!(other.contains("belongs to node 1, not to node 2"), "{other}");
    let mut shards = config(1, &[(1, alone.address)], &dir);
    shards.shards = 7;
    let shards = start(shards);
    assert!(shards.contains("fixed; not 7"), "{shards}");

    // Nothing of this changed anything.
    let node = Node::start(config(1, &[(1, alone.address)], &dir)).unwrap();
    let counter = node.start_typed(GroupId(1), Counter(0)).unwrap();
    let total = loop {
        if let Outcome::Done(done) = counter.propose(&0).wait() {
            break done.reply;
        }
    };
    assert_eq!(total, 4);
}

#[test]
fn a_node_keeps_the_number_of_shards_that_its_cluster_was_formed_with() {
    let (dir, address) = (tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(), free_address());
    // As if this machine had had three cores then.
    for (configured, total) in [(3, 5), (0, 10)] {
        let config = Config { shards: configured, ..config(1, &[(1, address)], dir.path()) };
        let node = Node::start(config).unwrap();
        let counter = node.start_typed(GroupId(2), Counter(0)).unwrap();
        let alone = Alone { node, counter, address, dir: None };
        assert_eq!(alone.add(5), total);
        assert_eq!(alone.node.status().unwrap().len(), 3);
        alone.node.stop().unwrap();
    }
}

#[test]
fn bad_configurations_name_the_key() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let address = free_address();
    let good = || config(1, &[(1, address)], dir.path());
    type Spoil = fn(&mut Config);
    let cases: [(&str, Spoil); 9] = [
        ("id", |c| c.id = NodeId(0)),
        ("peers", |c| c.id = NodeId(5)),
        ("wal_max_size_bytes", |c| c.wal_max_size_bytes = 10),
        ("wal_max_size_bytes", |c| c.wal_max_size_bytes = 4 << 30),
        ("wal_max_size_bytes", |c| c.wal_max_size_bytes = (1 << 20) + 512),
        ("wal_max_size_bytes", |c| c.wal_max_size_bytes = (64 << 10) - 4096),
        ("metrics_key", |c| c.metrics_key = "a\r\nb".into()),
        ("election_us", |c| c.election_us = 1),
        ("shards", |c| c.shards = 5000),
    ];
    for (key, spoil) in cases {
        let mut config = good();
        spoil(&mut config);
        let error = Node::start(config).unwrap_err().to_string();
        assert!(error.contains(&format!("bad configuration: {key}:")), "{error} does not name {key}");
    }
}
