//! coracle as a person operates a running cluster of `kv` processes with it, while clients count on them.
#![forbid(unsafe_code)]
// All of it is a test, whose deadlines are in real time.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rand::Rng;
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take that should take less than a second.
const DEADLINE: Duration = Duration::from_secs(30);

/// What `coracle` said.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    /// The object of `--json`.
    fn json(&self) -> Value {
        let last = self.out.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {} {}", self.out, self.err))
    }
}

fn coracle(words: &[&str]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_coracle")).args(words).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// `coracle --node AT WORDS`, which has to be done.
fn done(at: SocketAddr, words: &[&str]) -> Said {
    let at = at.to_string();
    let said = coracle(&[&["--node", at.as_str()][..], words].concat());
    assert_eq!(said.code, Some(0), "{words:?}: {} {}", said.out, said.err);
    said
}

fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(begun.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        thread::park_timeout(Duration::from_millis(20));
    }
}

/// A loopback address that nobody uses, outside the range from which the kernel takes ports for outgoing connections.
fn free_addresses(count: usize) -> Vec<SocketAddr> {
    let mut found: Vec<TcpListener> = Vec::new();
    while found.len() < count {
        let port = rand::rng().random_range(10_000..32_000);
        found.extend(TcpListener::bind(("127.0.0.1", port)).ok());
    }
    found.iter().map(|listener| listener.local_addr().unwrap()).collect()
}

/// A running `kv`, which does not outlive its test.
struct Kv {
    child: Child,
    clients: SocketAddr,
    admin: SocketAddr,
}

impl Drop for Kv {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program as `cargo test` builds it beside the tests.
fn kv() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().and_then(Path::parent).unwrap().join("examples/kv");
    assert!(program.exists(), "{program:?} is not built: run `cargo build -p coracle --example kv` first");
    program
}

/// Three nodes with `groups` groups, all of which serve.
fn cluster(dir: &TempDir, groups: u64) -> Vec<Kv> {
    let peers: Vec<String> = (1..).zip(free_addresses(3)).map(|(id, at)| format!("{id}={at}")).collect();
    let start = |id: usize| {
        let mut child = Command::new(kv())
            .args(["--id", &id.to_string(), "--listen", "127.0.0.1:0", "--peers", &peers.join(",")])
            .args(["--admin", "127.0.0.1:0", "--groups", &groups.to_string(), "--data-dir"])
            .arg(dir.path().join(format!("node-{id}")))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            lines.map_while(|line| sender.send(line).ok()).for_each(drop);
        });
        (child, lines)
    };
    let started: Vec<_> = (1..=3).map(start).collect();
    let nodes = started.into_iter().map(|(child, lines)| {
        let address = |word: &str| {
            let line = lines.recv_timeout(DEADLINE).unwrap();
            line.strip_prefix(word).unwrap_or_else(|| panic!("{line:?}")).parse().unwrap()
        };
        Kv { child, clients: address("ready "), admin: address("admin ") }
    });
    nodes.collect()
}

/// A client of `kv`: one command at a time.
struct Client(BufReader<TcpStream>);

impl Client {
    fn open(at: SocketAddr) -> Self {
        let socket = TcpStream::connect(at).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(BufReader::new(socket))
    }

    /// The reply's first line, and for a bulk reply what it holds.
    fn call(&mut self, words: &[&str]) -> String {
        let mut request = format!("*{}\r\n", words.len());
        words.iter().for_each(|word| request.push_str(&format!("${}\r\n{word}\r\n", word.len())));
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let line = line.trim_end().to_owned();
        let Some(length) = line.strip_prefix('$').and_then(|length| length.parse::<usize>().ok()) else {
            return line;
        };
        let mut bulk = vec![0; length + 2];
        self.0.read_exact(&mut bulk).unwrap();
        String::from_utf8_lossy(&bulk[..length]).into_owned()
    }
}

/// Increments a key of its own until it is told to end.
struct Load {
    key: String,
    ends: Arc<AtomicBool>,
    counted: JoinHandle<(u64, u64)>,
}

impl Load {
    fn start(at: SocketAddr, key: &str) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let (told, name) = (ends.clone(), key.to_owned());
        let counted = thread::spawn(move || {
            let (mut client, mut acknowledged, mut unknown) = (Client::open(at), 0, 0);
            while !told.load(Ordering::Relaxed) {
                let reply = client.call(&["INCR", &name]);
                match reply.split(' ').next() {
                    Some("-TRYAGAIN") => thread::park_timeout(Duration::from_millis(5)),
                    Some("-UNKNOWN") => unknown += 1,
                    _ => {
                        let number: u64 = reply.strip_prefix(':').expect(&reply).parse().unwrap();
                        acknowledged += 1;
                        let range = acknowledged..=acknowledged + unknown;
                        assert!(range.contains(&number), "{name} is {number} and not in {range:?}");
                    }
                }
            }
            (acknowledged, unknown)
        });
        Self { key: key.to_owned(), ends, counted }
    }

    /// What was acknowledged is there, and nothing that was not asked for.
    fn check(self, client: &mut Client) -> u64 {
        self.ends.store(true, Ordering::Relaxed);
        let (acknowledged, unknown) = self.counted.join().unwrap();
        let number = wait_for("a count", || client.call(&["GET", &self.key]).parse::<u64>().ok());
        let range = acknowledged..=acknowledged + unknown;
        assert!(range.contains(&number), "{} is {number} and not in {range:?}", self.key);
        acknowledged
    }
}

/// The members of group 1 as a node tells: id and what it is; and who leads.
fn members(at: SocketAddr) -> (Vec<(u64, String)>, Option<u64>) {
    let told = done(at, &["members", "--group", "1", "--json"]).json();
    let group = &told["groups"][0];
    let member = |one: &Value| (one["node"].as_u64().unwrap(), one["is"].as_str().unwrap().to_owned());
    (group["members"].as_array().unwrap().iter().map(member).collect(), group["leader"].as_u64())
}

fn voters(ids: &[u64]) -> Vec<(u64, String)> {
    ids.iter().map(|id| (*id, "voter".to_owned())).collect()
}

#[test]
fn a_cluster_under_load_is_operated_from_outside_and_loses_nothing() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let nodes = cluster(&dir, 1);
    let admin = |id: u64| nodes[id as usize - 1].admin;
    let leader = wait_for("a leader", || members(admin(1)).1);
    let loads: Vec<Load> =
        (1..=3).map(|id| Load::start(nodes[id - 1].clients, &format!("key-{id}"))).collect();
    assert_eq!(members(admin(2)).0, voters(&[1, 2, 3]));

    // A follower goes, asked of another one as the case may be, and comes back: it catches up and votes by itself.
    let gone = leader % 3 + 1;
    let other = 6 - leader - gone;
    let id = gone.to_string();
    let said = done(admin(other), &["remove", &id]);
    assert!(said.out.contains(&format!("group 1: node {gone} is removed")), "{}", said.out);
    let mut left = [leader, other];
    left.sort_unstable();
    assert_eq!(members(admin(leader)).0, voters(&left));
    let again = coracle(&["--node", &admin(other).to_string(), "remove", &id, "--group", "1"]);
    assert!(again.code == Some(1) && again.err.contains("no member"), "{:?}: {}", again.code, again.err);
    let said = done(admin(leader), &["add", &id, "--group", "1"]);
    assert!(said.out.contains("it votes once it has caught up"), "{}", said.out);
    wait_for("a promotion", || (members(admin(leader)).0 == voters(&[1, 2, 3])).then_some(()));
    // It has the log, and knows that it is a member.
    wait_for("the node that is back", || {
        let (members, led_by) = members(admin(gone));
        (members == voters(&[1, 2, 3]) && led_by.is_some()).then_some(())
    });

    // Leadership goes to it; then away again, whoever leads by then; then its leader is removed and added.
    let to = done(admin(other), &["transfer", &id, "--json"]).json();
    assert_eq!(to["groups"][0]["leader"], gone, "{to}");
    done(admin(gone), &["drain"]);
    let led_by = wait_for("another leader", || members(admin(gone)).1.filter(|led_by| *led_by != gone));
    let id = led_by.to_string();
    done(admin(led_by), &["remove", &id]);
    wait_for("a leader among those that are left", || members(admin(gone)).1.filter(|now| *now != led_by));
    done(admin(gone), &["add", &id, "--as", "voter"]);
    wait_for("three voters", || (members(admin(gone)).0 == voters(&[1, 2, 3])).then_some(()));
    done(admin(led_by), &["elect"]);

    let said = done(admin(1), &["overview"]);
    assert!(said.out.starts_with("node 1, version") && said.out.contains("1 2 3"), "{}", said.out);
    let metrics = done(admin(1), &["metrics"]).out;
    assert!(metrics.contains("coracle_applied_total{node=\"1\",shard=\"0\"} "), "{metrics}");
    let mut client = Client::open(nodes[0].clients);
    for load in loads {
        let acknowledged = load.check(&mut client);
        assert!(acknowledged > 20, "hardly any load: {acknowledged}");
    }
}

#[test]
fn what_cannot_be_is_told_in_words_and_by_exit_code() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut nodes = cluster(&dir, 3);
    let at = nodes[0].admin.to_string();
    wait_for("leaders", || {
        let told = done(nodes[0].admin, &["overview", "--json"]).json();
        told["groups"].as_array().unwrap().iter().all(|group| group["leader"].is_u64()).then_some(())
    });
    let nobody = free_addresses(1)[0].to_string();
    let clients = nodes[0].clients.to_string();
    for (words, code, what) in [
        // Usage: nothing is asked for that would change anything.
        (&["members"][..], 2, "--node"),
        (&["--node", "nowhere", "members"], 2, "HOST:PORT"),
        (&["--node", &at, "add"], 2, "NODE"),
        (&["--node", &at, "add", "0"], 2, "0"),
        (&["--node", &at, "add", "3", "--as", "king"], 2, "promotable"),
        (&["--node", &at, "remove", "3", "--group", "1", "--all"], 2, "--all"),
        (&["--node", &at, "remove", "3"], 2, "--group UID"),
        // Refused, with what to do.
        (&["--node", &nobody, "members"], 1, "cannot reach"),
        (&["--node", &clients, "members"], 1, "no admin listener"),
        (&["--node", &at, "members", "--group", "9"], 1, "group 9"),
        (&["--node", &at, "add", "9", "--group", "1"], 1, "not built yet"),
        (&["--node", &at, "add", "9", "--group", "1", "--address", "127.0.0.1:9"], 1, "not built yet"),
        (&["--node", &at, "add", "3", "--group", "1", "--address", "127.0.0.1:9"], 1, "by its configuration"),
        (&["--node", &at, "add", "3", "--group", "1"], 1, "so already"),
        (&["--node", &at, "transfer", "9", "--group", "1"], 1, "no member"),
    ] {
        let said = coracle(words);
        assert_eq!(said.code, Some(code), "{words:?}: {} {}", said.out, said.err);
        assert!(said.err.contains(what), "{words:?} should say {what:?}: {}", said.err);
    }
    // One page of groups after another, and what is left out is said.
    let said = done(nodes[0].admin, &["overview", "--json", "--limit", "2"]);
    assert_eq!(said.json()["groups"].as_array().unwrap().len(), 2);
    assert!(said.err.contains("2 of 3 groups"), "{}", said.err);
    // Each group has its own end.
    let said = coracle(&["--node", &at, "add", "3", "--all", "--json"]);
    assert_eq!((said.code, said.json()["groups"].as_array().unwrap().len()), (Some(1), 3), "{}", said.err);
    let said = done(nodes[0].admin, &["transfer", "2", "--all", "--json"]).json();
    assert!(said["groups"].as_array().unwrap().iter().all(|group| group["leader"] == 2), "{said}");
    // Two of three nodes are gone: what is asked of the third ends in time, and does not claim that nothing happened.
    nodes.truncate(1);
    let said = coracle(&["--node", &at, "remove", "3", "--group", "1", "--timeout", "2"]);
    assert!(said.code == Some(1) && said.err.contains("unknown"), "{:?}: {}", said.code, said.err);
    assert_eq!(members(nodes[0].admin).0, voters(&[1, 2, 3]));
}
