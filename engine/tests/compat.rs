//! The data directory that version 1 left behind is still read, and goes on from where it stopped.
#![allow(clippy::unwrap_used)] // a test that fails may panic

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use coracle::{Config, Effects, Entry, GroupId, Node, NodeId, Outcome, Peer, TypedGroup, TypedMachine};

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

fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../compat/v1/node-1")
}

fn start(dir: &Path) -> (Node, TypedGroup<Sum>) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = Config::new(1, vec![Peer { id: NodeId(1), address }], dir);
    config.shards = 1;
    config.wal_max_size_bytes = 64 * 1024;
    let node = Node::start(config).unwrap();
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

#[test]
fn the_directory_of_version_1_is_read_and_goes_on() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if std::env::var_os("COMPAT_WRITE").is_some() {
        let (node, sum) = start(dir.path());
        for number in 1..=100 {
            add(&sum, number);
        }
        node.stop().unwrap();
        let _ = fs::remove_dir_all(kept());
        copy(dir.path(), &kept());
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    copy(&kept(), dir.path());
    let (node, sum) = start(dir.path());
    assert_eq!(add(&sum, 0), 5050);
    assert_eq!(add(&sum, 7), 5057);
    node.stop().unwrap();
    let (node, sum) = start(dir.path());
    assert_eq!(add(&sum, 0), 5057);
    node.stop().unwrap();
}
