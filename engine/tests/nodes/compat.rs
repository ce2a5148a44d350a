//! The data directories that earlier versions left behind are still read, and go on from where they stopped.
#![allow(clippy::unwrap_used)] // a test that fails may panic

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use coracle::{
    Config, Created, Deleted, Effects, Entry, Group, GroupId, Index, IndexRange, Machine, Node, NodeId,
    Outcome, Peer, RestoreError, TypedGroup, TypedMachine,
};

struct Sum(i64);

impl TypedMachine for Sum {
    type Command = i64;
    type Reply = i64;
    type Query = ();
    type Answer = i64;
    type State = i64;

    fn apply(&mut self, add: i64, _: Entry<'_>, effects: &mut Effects<'_>) -> i64 {
        self.0 += add;
        if add % 10 == 0 {
            effects.release();
        }
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

/// Adds numbers that come with ballast, every tenth of which lives on in the log; its state is larger than fits the log.
#[derive(Default)]
struct Bodies {
    sum: u64,
    live: Vec<u64>,
}

const BALLAST: usize = 400;
const STATE_BYTES: usize = 70_000;

impl Machine for Bodies {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        let number = number_of(entry.command);
        self.sum += number;
        if number > 0 && number.is_multiple_of(10) {
            self.live.push(entry.index.0);
            effects.release();
        }
        effects.reply().extend(self.sum.to_le_bytes());
    }
    fn query(&self, _: &[u8], reply: &mut Vec<u8>) {
        reply.extend(self.sum.to_le_bytes());
    }
    fn live_indexes(&self) -> Vec<IndexRange> {
        self.live.iter().map(|index| IndexRange { first: Index(*index), count: 1 }).collect()
    }
    fn snapshot(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend(self.sum.to_le_bytes());
        out.extend((self.live.len() as u64).to_le_bytes());
        self.live.iter().for_each(|index| out.extend(index.to_le_bytes()));
        out.resize(start + STATE_BYTES, 7);
    }
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        let mut words = snapshot.chunks_exact(8).map(number_of);
        let mut next = || words.next().ok_or_else(|| RestoreError("too short".into()));
        self.sum = next()?;
        self.live = (0..next()?).map(|_| next()).collect::<Result<_, _>>()?;
        Ok(())
    }
}

fn number_of(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |number| u64::from_le_bytes(*number))
}

fn kept(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../compat").join(version).join("node-1")
}

fn start_bodies(dir: &Path) -> (Node, Group) {
    let node = Node::start(config(dir)).unwrap();
    let group = node.start_group(GroupId(1), Bodies::default()).unwrap();
    (node, group)
}

fn body(number: u64) -> Vec<u8> {
    let mut command = number.to_le_bytes().to_vec();
    command.resize(8 + BALLAST, number as u8);
    command
}

fn add_body(group: &Group, number: u64) -> u64 {
    loop {
        match group.propose(&body(number)).wait() {
            Outcome::Done(done) => return number_of(&done.reply),
            Outcome::NotDone(_) => {}
            Outcome::Unknown(why) => panic!("{why}"),
        }
    }
}

fn has(dir: &Path, suffix: &str) -> bool {
    fs::read_dir(dir).unwrap().any(|entry| entry.unwrap().file_name().to_string_lossy().ends_with(suffix))
}

/// A directory with a segment, a snapshot file, and entries that outlive their log.
fn write_bodies(dir: &Path) {
    let (node, group) = start_bodies(dir);
    add_body(&group, 0);
    for first in (1..=800).step_by(40) {
        let together: Vec<_> = (first..first + 40).map(|number| group.propose(&body(number))).collect();
        assert!(together.into_iter().all(|one| matches!(one.wait(), Outcome::Done(_))));
    }
    assert_eq!(add_body(&group, 0), 800 * 801 / 2);
    while !has(&dir.join("shard-0"), ".seg") {
        add_body(&group, 0);
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
    node.stop().unwrap();
}

/// Groups that get one command and are left alone: pages of the checkpoint that are named, not written.
const QUIET: std::ops::RangeInclusive<u64> = 2..=200;

fn start_quiet(node: &Node) -> Vec<Group> {
    let groups = QUIET.map(|id| (GroupId(id), Bodies::default()));
    node.start_groups(groups).into_iter().map(|group| group.unwrap()).collect()
}

/// As version 2, and many groups besides.
fn write_many(dir: &Path) {
    let (node, _) = start_bodies(dir);
    for (id, group) in QUIET.zip(start_quiet(&node)) {
        assert_eq!(add_body(&group, 10 * id + 1), 10 * id + 1);
    }
    node.stop().unwrap();
    write_bodies(dir);
}

fn config(dir: &Path) -> Config {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = Config::new(1, vec![Peer { id: NodeId(1), address }], dir);
    config.shards = 1;
    config.wal_max_size_bytes = 64 * 1024;
    config
}

fn start(dir: &Path) -> (Node, TypedGroup<Sum>) {
    let node = Node::start(config(dir)).unwrap();
    let sum = node.start_typed(GroupId(1), Sum(0)).unwrap();
    (node, sum)
}

fn add(sum: &TypedGroup<Sum>, number: i64) -> i64 {
    loop {
        match sum.propose(&number).wait() {
            Outcome::Done(done) => return done.reply,
            Outcome::NotDone(_) => {}
            Outcome::Unknown(why) => panic!("{why}"),
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Whether this version's directory is to be written anew: `COMPAT_WRITE=v2`.
fn writes(version: &str) -> bool {
    std::env::var("COMPAT_WRITE").is_ok_and(|wanted| wanted == version)
}

#[test]
fn the_directory_of_version_2_is_read_and_goes_on() {
    if writes("v2") {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        write_bodies(dir.path());
        let _ = fs::remove_dir_all(kept("v2"));
        copy(dir.path(), &kept("v2"));
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    copy(&kept("v2"), dir.path());
    assert!(has(&dir.path().join("shard-0"), ".seg") && has(&dir.path().join("shard-0/snapshots"), ".snap"));
    for more in 1..=2 {
        let (node, group) = start_bodies(dir.path());
        assert_eq!(add_body(&group, 1), 800 * 801 / 2 + more);
        node.stop().unwrap();
    }
}

/// Versions 3 to 5 have the same in their directories.
fn is_read_and_goes_on(version: &str) {
    if writes(version) {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        write_many(dir.path());
        let _ = fs::remove_dir_all(kept(version));
        copy(dir.path(), &kept(version));
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    copy(&kept(version), dir.path());
    assert!(has(&dir.path().join("shard-0"), ".seg") && has(&dir.path().join("shard-0/snapshots"), ".snap"));
    for more in 1..=2 {
        let (node, group) = start_bodies(dir.path());
        assert_eq!(add_body(&group, 1), 800 * 801 / 2 + more);
        for (id, group) in QUIET.zip(start_quiet(&node)).filter(|(id, _)| id % 50 == 0) {
            assert_eq!(add_body(&group, 1), 10 * id + 1 + more);
        }
        node.stop().unwrap();
    }
}

#[test]
fn the_directory_of_version_3_is_read_and_goes_on() {
    is_read_and_goes_on("v3");
}

#[test]
fn the_directory_of_version_4_is_read_and_goes_on() {
    is_read_and_goes_on("v4");
}

#[test]
fn the_directory_of_version_5_is_read_and_goes_on() {
    is_read_and_goes_on("v5");
}

/// A node with named groups, once they run here.
fn start_named(dir: &Path) -> (Node, Group) {
    let machines = |_: &str, argument: &[u8]| -> Option<Box<dyn Machine>> {
        (argument == b"bodies").then(|| Box::<Bodies>::default() as Box<dyn Machine>)
    };
    let node = Node::start_with_groups(config(dir), machines).unwrap();
    let found = loop {
        match node.directory().create("numbers", &[], b"bodies").wait() {
            Outcome::Done(done) => match done.reply {
                Created::New(group) | Created::Same(group) => break group,
                other => panic!("{other:?}"),
            },
            Outcome::NotDone(_) => {}
            Outcome::Unknown(why) => panic!("{why}"),
        }
    };
    let group = node.group(found.id());
    (node, group)
}

fn write_named(dir: &Path) {
    let (node, group) = start_named(dir);
    assert_eq!(add_body(&group, 5), 5);
    let gone = node.directory().delete("numbers").wait();
    assert!(matches!(gone, Outcome::Done(done) if matches!(done.reply, Deleted::Gone(_))));
    node.stop().unwrap();
    // The next one of that name.
    let (node, group) = start_named(dir);
    for number in 1..=100 {
        add_body(&group, number);
    }
    node.stop().unwrap();
}

#[test]
fn the_directory_of_version_6_is_read_and_goes_on() {
    if writes("v6") {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        write_named(dir.path());
        let _ = fs::remove_dir_all(kept("v6"));
        copy(dir.path(), &kept("v6"));
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    copy(&kept("v6"), dir.path());
    assert!(has(dir.path(), ".boots"));
    for more in 1..=2 {
        let (node, group) = start_named(dir.path());
        assert_eq!(add_body(&group, 1), 100 * 101 / 2 + more);
        let named = node.directory().look_up("numbers").wait();
        let Outcome::Done(done) = named else { panic!("{named:?}") };
        assert_eq!(done.reply.map(|named| named.generation()), Some(2));
        node.stop().unwrap();
    }
}

#[test]
fn the_directory_of_version_1_is_read_and_goes_on() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if writes("v1") {
        let (node, sum) = start(dir.path());
        for number in 1..=100 {
            add(&sum, number);
        }
        node.stop().unwrap();
        let _ = fs::remove_dir_all(kept("v1"));
        copy(dir.path(), &kept("v1"));
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    copy(&kept("v1"), dir.path());
    let (node, sum) = start(dir.path());
    assert_eq!(add(&sum, 0), 5050);
    assert_eq!(add(&sum, 7), 5057);
    node.stop().unwrap();
    let (node, sum) = start(dir.path());
    assert_eq!(add(&sum, 0), 5057);
    node.stop().unwrap();
}
