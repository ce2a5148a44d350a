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

use coracle::{
    Admin, Config, Effects, Entry, GroupId, Machine, Node, NodeId, Outcome, Peer, Reason, RestoreError,
};
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

/// Where the nodes of a cluster are, and their directories.
struct Place {
    dir: TempDir,
    peers: Vec<SocketAddr>,
    groups: u64,
}

impl Place {
    fn new(nodes: usize, groups: u64) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Self { dir, peers: free_addresses(nodes), groups }
    }

    fn data_dir(&self, id: usize) -> PathBuf {
        self.dir.path().join(format!("node-{id}"))
    }

    /// Starts a node that knows of the first `nodes` of them.
    fn start(&self, id: usize, nodes: usize) -> Starting {
        let peers: Vec<String> =
            (1..).zip(&self.peers[..nodes]).map(|(id, at)| format!("{id}={at}")).collect();
        let mut child = Command::new(kv())
            .args(["--id", &id.to_string(), "--listen", "127.0.0.1:0", "--peers", &peers.join(",")])
            .args(["--admin", "127.0.0.1:0", "--groups", &self.groups.to_string(), "--data-dir"])
            .arg(self.data_dir(id))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            lines.map_while(|line| sender.send(line).ok()).for_each(drop);
        });
        Starting { child, lines }
    }
}

/// A `kv` that does not serve yet, as far as is known.
struct Starting {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Starting {
    fn served(self) -> Kv {
        let address = |word: &str| {
            let line = self.lines.recv_timeout(DEADLINE).unwrap();
            line.strip_prefix(word).unwrap_or_else(|| panic!("{line:?}")).parse().unwrap()
        };
        let (clients, admin) = (address("ready "), address("admin "));
        Kv { child: self.child, clients, admin }
    }
}

/// Three nodes with `groups` groups, all of which serve.
fn cluster(groups: u64) -> (Place, Vec<Kv>) {
    let place = Place::new(3, groups);
    let started: Vec<Starting> = (1..=3).map(|id| place.start(id, 3)).collect();
    (place, started.into_iter().map(Starting::served).collect())
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
    let (_place, nodes) = cluster(1);
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
    let (_place, mut nodes) = cluster(3);
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
        (&["--node", &at, "add", "9", "--group", "1"], 1, "not among this node's peers"),
        (&["--node", &at, "replace", "9"], 1, "no place here"),
        (&["--node", &at, "replace", "2"], 1, "it is up"),
        (&["--node", &at, "replace"], 2, "NODE"),
        (&["--node", &at, "lost"], 2, "NODE"),
        (&["--node", &at, "lost", "2"], 1, "it is up"),
        (&["--node", &at, "lost", "2", "1"], 1, "it is up"),
        (&["--node", &at, "shrink", "--group", "1"], 1, "a majority of the members can be reached"),
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
    let mut client = Client::open(nodes[0].clients);
    wait_for("an answer", || (client.call(&["SET", "before", "all"]) == "+OK").then_some(()));
    // Two of three nodes are gone: what is asked of the third ends in time, and does not claim that nothing happened.
    nodes.truncate(1);
    let said = coracle(&["--node", &at, "remove", "3", "--group", "1", "--timeout", "2"]);
    assert!(said.code == Some(1) && said.err.contains("unknown"), "{:?}: {}", said.code, said.err);
    assert_eq!(members(nodes[0].admin).0, voters(&[1, 2, 3]));
    // They do not come back: by force the third goes on alone, with all that was acknowledged.
    let said = coracle(&["--node", &at, "shrink", "--all"]);
    assert!(said.code == Some(1) && said.err.contains("declare it lost"), "{:?}: {}", said.code, said.err);
    wait_for("their links to be down for long enough", || {
        let said = coracle(&["--node", &at, "lost", "2", "3"]);
        assert!(said.code == Some(0) || said.err.contains("for a moment only"), "{}", said.err);
        (said.code == Some(0)).then_some(())
    });
    let said = done(nodes[0].admin, &["shrink", "--all"]);
    assert!(said.out.contains("group 3: node 1 is the only member now"), "{}", said.out);
    wait_for("an answer", || (client.call(&["SET", "key", "after"]) == "+OK").then_some(()));
    assert_eq!(
        (client.call(&["GET", "before"]), client.call(&["GET", "key"])),
        ("all".into(), "after".into())
    );
    let said = done(nodes[0].admin, &["overview"]);
    assert!(said.out.contains("shrunk by force (1)"), "{}", said.out);
}

/// Node 3's disk dies; then a fourth node joins. Everything acknowledged is there, and both count.
#[test]
fn a_node_whose_disk_died_is_replaced_and_a_fourth_one_joins() {
    let place = Place::new(4, 2);
    let started: Vec<Starting> = (1..=3).map(|id| place.start(id, 3)).collect();
    let mut nodes: Vec<Kv> = started.into_iter().map(Starting::served).collect();
    let mut client = Client::open(nodes[0].clients);
    let set = |client: &mut Client, value: &str| {
        wait_for("an answer", || (client.call(&["SET", "key", value]) == "+OK").then_some(()));
    };
    set(&mut client, "before");

    drop(nodes.pop());
    std::fs::remove_dir_all(place.data_dir(3)).unwrap();
    let admin = |nodes: &[Kv], id: usize| nodes[id - 1].admin;
    let at = admin(&nodes, 1).to_string();
    wait_for("its link to be down for long enough", || {
        let refused = coracle(&["--node", &at, "replace", "3"]);
        let is_known_why =
            ["take it out", "for a moment only", "it is up"].iter().any(|why| refused.err.contains(why));
        assert!(refused.code == Some(1) && is_known_why, "{}", refused.err);
        refused.err.contains("take it out").then_some(())
    });
    done(admin(&nodes, 2), &["remove", "3", "--all"]);
    let is_left = |at: SocketAddr| {
        let told = done(at, &["members", "--json"]).json();
        let members = |group: &Value| group["members"].as_array().map_or(0, Vec::len);
        told["groups"].as_array().unwrap().iter().all(|group| members(group) == 2).then_some(())
    };
    (1..=2).for_each(|id| wait_for("all to know", || is_left(admin(&nodes, id))));
    let refused = coracle(&["--node", &admin(&nodes, 2).to_string(), "replace", "3"]);
    assert!(refused.code == Some(1) && refused.err.contains("node 1's to give"), "{}", refused.err);
    let said = done(admin(&nodes, 1), &["replace", "3"]);
    assert!(said.out.contains("the place of node 3"), "{}", said.out);
    nodes.push(place.start(3, 3).served());
    done(admin(&nodes, 1), &["add", "3", "--all"]);
    let votes = |at: SocketAddr, ids: &[u64]| (members(at).0 == voters(ids)).then_some(());
    wait_for("a promotion", || votes(admin(&nodes, 3), &[1, 2, 3]));
    set(&mut client, "after");
    assert_eq!(Client::open(nodes[2].clients).call(&["GET", "key"]), "after");

    // A fourth one: the others are started again with it among their peers, one after the other.
    for id in 1..=3 {
        nodes[id - 1].child.kill().unwrap();
        nodes[id - 1].child.wait().unwrap();
        nodes[id - 1] = place.start(id, 4).served();
        wait_for("its groups' leaders", || members(admin(&nodes, id)).1);
    }
    nodes.push(place.start(4, 4).served());
    done(admin(&nodes, 2), &["add", "4", "--all"]);
    wait_for("a promotion", || votes(admin(&nodes, 4), &[1, 2, 3, 4]));
    done(admin(&nodes, 2), &["remove", "1", "--all"]);
    wait_for("all to know", || votes(admin(&nodes, 4), &[2, 3, 4]));
    drop(nodes.remove(0));
    let mut client = Client::open(nodes[2].clients);
    set(&mut client, "with the fourth");
    assert_eq!(client.call(&["GET", "key"]), "with the fourth");
}

/// Counts its commands.
struct Count(u64);

impl Machine for Count {
    fn apply(&mut self, _: Entry<'_>, effects: &mut Effects<'_>) {
        self.0 += 1;
        effects.reply().extend(self.0.to_le_bytes());
    }
    fn query(&self, _: &[u8], _: &mut Vec<u8>) {}
    fn snapshot(&self, out: &mut Vec<u8>) {
        out.extend(self.0.to_le_bytes());
    }
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        let bytes = snapshot.try_into().map_err(|_| RestoreError("no count".into()))?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }
}

/// A node in this process that has named groups, and where it is operated.
fn named_node(place: &Place, id: usize) -> (Node, Admin) {
    let peer = |(id, address): (u64, &SocketAddr)| Peer { id: NodeId(id), address: *address };
    let mut config = Config::new(id as u64, (1..).zip(&place.peers).map(peer).collect(), place.data_dir(id));
    config.wal_max_size_bytes = 2 << 20;
    // The directory is on the first one; the groups that are made are on others.
    config.shards = 3;
    let machines = |_: &str, argument: &[u8]| {
        let machine: Box<dyn Machine> = Box::new(Count(0));
        (argument == b"count").then_some(machine)
    };
    let node = Node::start_with_groups(config, machines).unwrap();
    let admin = Admin::start(&node, ([127, 0, 0, 1], 0).into()).unwrap();
    (node, admin)
}

/// Counts once more, as soon as that is possible.
fn count(node: &Node, group: GroupId) -> u64 {
    wait_for("a count", || match node.group(group).propose(b"count").wait() {
        Outcome::Done(done) => Some(u64::from_le_bytes(done.reply.try_into().unwrap())),
        Outcome::NotDone(_) => None,
        Outcome::Unknown(why) => panic!("{why}"),
    })
}

#[test]
fn named_groups_are_made_listed_and_deleted_from_outside() {
    let place = Place::new(3, 0);
    let mut nodes: Vec<(Node, Admin)> = (1..=3).map(|id| named_node(&place, id)).collect();
    let at = |nodes: &[(Node, Admin)], at: usize| nodes[at].1.address();
    let create = ["groups", "create", "orders/a b", "--argument", "count", "--json"];
    let made = done(at(&nodes, 0), &create).json();
    assert_eq!((&made["is_new"], &made["generation"]), (&Value::Bool(true), &Value::from(1)));
    assert_eq!(made["members"].as_array().unwrap().len(), 3);
    let again = done(at(&nodes, 1), &create).json();
    assert_eq!((&again["is_new"], &again["group"]), (&Value::Bool(false), &made["group"]));
    let group = GroupId(made["group"].as_u64().unwrap());
    assert_eq!((count(&nodes[0].0, group), count(&nodes[2].0, group)), (1, 2));

    let refused = |nodes: &[(Node, Admin)], words: &[&str], why: &str| {
        let at = at(nodes, 1).to_string();
        let said = coracle(&[&["--node", at.as_str(), "groups"][..], words].concat());
        assert!(said.code == Some(1) && said.err.contains(why), "{words:?}: {:?} {}", said.code, said.err);
    };
    refused(&nodes, &["create", "orders/a b", "--argument", "other"], "already");
    refused(&nodes, &["create", "x", "--members", "1,9"], "no member");
    refused(&nodes, &["create", ""], "1 to 255 bytes");
    refused(&nodes, &["delete", "orders/a b", "--group", "5"], "nothing was changed");
    refused(&nodes, &["delete", "nothing"], "no group of the name");
    done(at(&nodes, 2), &["groups", "create", "invoices", "--members", "1,2", "--argument", "count"]);
    let listed = done(at(&nodes, 2), &["groups", "list", "--prefix", "orders/a ", "--json"]).json();
    assert_eq!(listed["groups"][0]["name"], "orders/a b");
    assert_eq!((listed["groups"].as_array().unwrap().len(), &listed["has_more"]), (1, &Value::Bool(false)));
    let both = done(at(&nodes, 0), &["groups", "list"]).out;
    assert!(both.contains("invoices") && both.contains("orders/a b"), "{both}");

    // A node that is started again takes its groups up by itself.
    let (node, admin) = nodes.remove(1);
    drop(admin);
    node.stop().unwrap();
    nodes.insert(1, named_node(&place, 2));
    assert_eq!(count(&nodes[1].0, group), 3);
    wait_for("its member", || nodes[1].0.group_status([group]).ok()?.pop()?);

    done(at(&nodes, 0), &["groups", "delete", "orders/a b"]);
    wait_for("its end", || {
        let gone = nodes.iter().all(|(node, _)| matches!(node.group_status([group]).as_deref(), Ok([None])));
        gone.then_some(())
    });
    let late = nodes[2].0.group(group).propose(b"count").wait();
    assert!(matches!(&late, Outcome::NotDone(why) if why.reason == Reason::Deleted), "{late:?}");
    let next = done(at(&nodes, 1), &create).json();
    assert_eq!(next["generation"], 3);
    assert_eq!(count(&nodes[0].0, GroupId(next["group"].as_u64().unwrap())), 1, "nothing of the old one");
    let explicit = nodes[0].0.start_group(group, Count(0)).unwrap_err();
    assert!(explicit.to_string().contains("create a group by name"), "{explicit}");
}
