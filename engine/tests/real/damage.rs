//! A node's directory that somebody has been at: files missing, doubled, cut short, old, or not ours. The node says what
//! is wrong and ends, or is brought up by the others; nothing acknowledged is lost or told wrong.

use std::fs;
use std::path::{Path, PathBuf};

use crate::kills::{NODES, Shared, StopOnDrop, check};
use crate::kv::{Cluster, ready};
use crate::process::{Process, wait_for};

/// The log's files, oldest first.
fn logs(shard: &Path) -> Vec<PathBuf> {
    let is_log = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.ends_with(".wal") && name.starts_with(|first: char| first.is_ascii_digit())
    };
    let mut found: Vec<PathBuf> =
        fs::read_dir(shard).unwrap().map(|entry| entry.unwrap().path()).filter(is_log).collect();
    found.sort_unstable();
    found
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// What is done to a directory, with an older copy of it at hand.
type Harm = fn(shard: &Path, older: &Path);

const HARMS: [(&str, Harm); 5] = [
    ("missing", |shard, _| fs::remove_file(&logs(shard)[0]).unwrap()),
    ("cut short", |shard, _| {
        fs::write(&logs(shard)[0], &fs::read(&logs(shard)[0]).unwrap()[..12_288]).unwrap()
    }),
    ("doubled", |shard, _| {
        fs::copy(&logs(shard)[0], shard.join("00000099.wal")).unwrap();
    }),
    ("old", |shard, older| {
        let name = logs(older)[0].file_name().unwrap().to_owned();
        fs::copy(older.join(&name), shard.join(&name)).unwrap();
    }),
    ("strange", |shard, _| {
        fs::write(shard.join("00000088.wal"), vec![0xA5; 100_000]).unwrap();
        fs::write(shard.join("notes.txt"), "mine").unwrap();
    }),
];

#[test]
fn a_directory_that_somebody_has_been_at_is_refused_or_mended() {
    for (name, harm) in HARMS {
        let mut cluster = Cluster::new(NODES, 2);
        cluster.more = vec!["--wal-file", "2MiB"];
        let (node, older) = (cluster.dir().join("node-1"), cluster.dir().join("older"));
        let shared = Shared::default();
        let (mut processes, addresses): (Vec<Process>, Vec<_>) = cluster.start_all().into_iter().unzip();
        addresses.into_iter().enumerate().for_each(|(node, address)| shared.set(node, Some(address)));
        std::thread::scope(|scope| {
            let _stop = StopOnDrop(&shared.stop);
            (0..4).for_each(|_| drop(scope.spawn(|| shared.increment())));
            shared.wait_for_progress("before the copy");
            copy(&node, &older);
            shared.wait_for_progress("after it");
            shared.set(0, None);
            processes[0].kill();
            let whole = cluster.dir().join("whole");
            copy(&node, &whole);
            harm(&node.join("shard-0"), &older.join("shard-0"));
            processes[0] = cluster.start(1);
            let is_up = wait_for("the node to serve or to end", || processes[0].serves_or_ended());
            if !is_up {
                let (code, said) = processes[0].end();
                let last = said.lines().last().unwrap_or_default();
                assert!(matches!(code, Some(1 | 2)), "{name}: {code:?}: {said}");
                assert!(last.contains("kv: ") && !said.contains("panicked"), "{name}: {said}");
                eprintln!("{name}: {code:?} {last}");
                shared.wait_for_progress("without the node");
                fs::remove_dir_all(&node).unwrap();
                copy(&whole, &node);
                processes[0] = cluster.start(1);
            }
            shared.set(0, Some(ready(&mut processes[0])));
            shared.wait_for_progress("at the end");
        });
        check(&shared);
    }
}
