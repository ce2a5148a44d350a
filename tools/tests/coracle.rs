//! coracle as a person runs it on real data directories: sound ones, damaged ones, and one in use.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // all of it is a test

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use coracle::{Config, Effects, Entry, Group, GroupId, Machine, Node, NodeId, Outcome, Peer, RestoreError};
use serde_json::Value;
use tempfile::TempDir;

fn coracle(words: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_coracle")).args(words).arg(dir).output().unwrap()
}

fn report(output: &Output) -> Value {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    serde_json::from_str(text.lines().last().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {text} {}", String::from_utf8_lossy(&output.stderr)))
}

/// Every file below `dir` with its bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

/// A copy of the directory that version 1 left behind: one group, the numbers 1 to 100 added, released at every tenth.
fn version_1() -> TempDir {
    copy_of("v1")
}

fn copy_of(version: &str) -> TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../compat").join(version).join("node-1");
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (path, bytes) in files(&from) {
        let to = dir.path().join(path.strip_prefix(&from).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, bytes).unwrap();
    }
    dir
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn inspect_says_what_is_there() {
    let dir = version_1();
    let output = coracle(&["inspect", "--json"], dir.path());
    let report = report(&output);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        (&report["node"], &report["shards"], &report["in_use"]),
        (&1.into(), &1.into(), &false.into())
    );
    assert_eq!(report["cluster"].as_str().unwrap().len(), 32);
    assert_eq!(report["members"][0]["node"], 1);
    let group = &report["groups"][0];
    assert_eq!((&group["group"], &group["shard"]), (&1.into(), &0.into()));
    // 100 numbers and a leader's first entry; the last release leaves only what came after it.
    let (first, last) = (group["first"].as_u64().unwrap(), group["last"].as_u64().unwrap());
    assert!(last >= 101 && first > 90, "{group}");
    assert_eq!(group["snapshot"]["index"].as_u64(), Some(first - 1));
    assert_eq!(report["files"].as_array().unwrap().len(), 6);
    let text = String::from_utf8(coracle(&["inspect"], dir.path()).stdout).unwrap();
    assert!(text.contains("shard-0/00000005.wal") && text.starts_with("node 1 "), "{text}");
}

#[test]
fn a_sound_directory_is_sound_and_stays_as_it_is() {
    let dir = version_1();
    let before = files(dir.path());
    for words in [&["verify"][..], &["verify", "--json"], &["inspect"], &["dump", "--group", "1"]] {
        let output = coracle(words, dir.path());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(files(dir.path()) == before, "something was changed");
    let report = report(&coracle(&["verify", "--json"], dir.path()));
    assert_eq!((&report["sound"], report["damage"].as_array().unwrap().len()), (&true.into(), 0));
}

#[test]
fn damage_is_told_with_file_offset_and_groups() {
    // Where the newest entries lie: a file that has batches and the group's live bytes.
    let sound = report(&coracle(&["inspect", "--json"], version_1().path()));
    let live = sound["files"].as_array().unwrap().iter().find(|file| file["live_bytes"].as_u64() > Some(0));
    let file = live.unwrap()["file"].as_str().unwrap();

    let dir = version_1();
    flip(&dir.path().join(file), 8192 + 100);
    let before = files(dir.path());
    let output = coracle(&["verify", "--json"], dir.path());
    let damaged = report(&output);
    assert_eq!((output.status.code(), &damaged["sound"]), (Some(1), &false.into()));
    let damage = damaged["damage"].as_array().unwrap();
    let is_here = |one: &&Value| one["file"] == file && one["offset"] == 8192;
    assert!(damage.iter().any(|one| is_here(&one)), "{damaged}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("Copy the directory away"), "{said}");
    assert!(files(dir.path()) == before, "something was changed");

    // Everything live is gone: the group is named.
    let dir = version_1();
    fs::remove_file(dir.path().join(file)).unwrap();
    let damaged = report(&coracle(&["verify", "--json"], dir.path()));
    let names_it = |one: &&Value| one["groups"].as_array().unwrap().contains(&1.into());
    assert!(damaged["damage"].as_array().unwrap().iter().any(|one| names_it(&one)), "{damaged}");
}

/// A byte of every third sector, and the file as a whole: whatever it is, it is found where it is.
#[test]
fn a_damaged_snapshot_file_is_told_with_offset_and_group() {
    let dir = copy_of("v2");
    let name = "shard-0/snapshots/00000004.snap";
    let path = dir.path().join(name);
    let whole = fs::read(&path).unwrap();
    let verify = || {
        let output = coracle(&["verify", "--json"], dir.path());
        (output.status.code(), report(&output))
    };
    let (code, sound) = verify();
    assert_eq!(
        (code, &sound["snapshot_files"], &sound["notes"]),
        (Some(0), &1.into(), &Value::Array(vec![]))
    );
    let told = report(&coracle(&["inspect", "--json"], dir.path()))["snapshots"][0].clone();
    let wanted = (&"snapshot".into(), &1.into(), &802.into(), &1.into(), whole.len() as u64);
    let bytes = told["bytes"].as_u64().unwrap();
    assert_eq!((&told["kind"], &told["group"], &told["index"], &told["term"], bytes), wanted, "{told}");
    let text = String::from_utf8(coracle(&["inspect"], dir.path()).stdout).unwrap();
    assert!(text.contains(name), "{text}");

    let damaged = |what: &str, from: u64, to: u64| {
        let (code, found) = verify();
        let damage = found["damage"].as_array().unwrap();
        assert_eq!((code, damage.len()), (Some(1), 1), "{what}: {found}");
        let offset = damage[0]["offset"].as_u64().unwrap();
        assert!((from..=to).contains(&offset), "{what}: {found}");
        assert_eq!((&damage[0]["file"], &damage[0]["groups"][0]), (&name.into(), &1.into()), "{what}");
    };
    for sector in (0..whole.len() / 512).step_by(3) {
        let at = sector * 512 + sector * 37 % 512;
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (sector % 8);
        fs::write(&path, bytes).unwrap();
        // A chunk is checked as a whole, and all of these are in one.
        damaged(&format!("byte {at}"), at.min(4096) as u64 / 4096 * 4096, at as u64);
    }
    fs::write(&path, &whole[..whole.len() - 4096]).unwrap();
    damaged("cut short", 4096, whole.len() as u64);
    fs::remove_file(&path).unwrap();
    damaged("missing", 0, 0);
    fs::write(&path, b"").unwrap();
    damaged("empty", 0, 0);
}

#[test]
fn snapshot_files_that_nothing_needs_are_told_and_are_no_damage() {
    let dir = copy_of("v2");
    let snapshots = dir.path().join("shard-0/snapshots");
    let whole = fs::read(snapshots.join("00000004.snap")).unwrap();
    for name in ["00000009.snap", "00000010.snap.tmp", "00000011.1.700.1.ckpt", "something else"] {
        fs::write(snapshots.join(name), &whole[..20_000]).unwrap();
    }
    let before = files(dir.path());
    let output = coracle(&["verify", "--json"], dir.path());
    let found = report(&output);
    assert_eq!((output.status.code(), &found["sound"]), (Some(0), &true.into()), "{found}");
    let notes = found["notes"].as_array().unwrap();
    let told: Vec<&str> = notes.iter().map(|note| note["what"].as_str().unwrap()).collect();
    assert_eq!(told.len(), 3, "{found}");
    assert!(told[0].contains("nothing needs it") && told[1].contains("nothing needs it"), "{told:?}");
    assert!(told[2].contains("damaged checkpoint") && notes[2]["groups"][0] == 1, "{found}");
    let text = String::from_utf8(coracle(&["verify"], dir.path()).stdout).unwrap();
    assert!(text.contains("note: shard-0/snapshots/00000009.snap"), "{text}");
    let kinds = report(&coracle(&["inspect", "--json"], dir.path()))["snapshots"].clone();
    let kinds: Vec<&str> =
        kinds.as_array().unwrap().iter().map(|one| one["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["snapshot", "leftover", "unfinished", "checkpoint"]);
    assert!(files(dir.path()) == before, "something was changed");
}

#[test]
fn a_damaged_identity_does_not_hide_the_rest() {
    for spoil in [|path: &Path| flip(path, 20), |path: &Path| fs::remove_file(path).unwrap()] {
        let dir = version_1();
        spoil(&dir.path().join("identity"));
        let output = coracle(&["verify", "--json"], dir.path());
        let damaged = report(&output);
        assert_eq!(output.status.code(), Some(1));
        let damage = damaged["damage"].as_array().unwrap();
        assert_eq!((damage.len(), &damage[0]["file"]), (1, &"identity".into()), "{damaged}");
        assert_eq!(damaged["groups"], 1, "{damaged}");
        let whole = coracle(&["dump", "--group", "1"], dir.path());
        assert_eq!(whole.status.code(), Some(0));
    }
}

#[test]
fn a_log_that_is_gone_is_damage() {
    let dir = version_1();
    fs::remove_dir_all(dir.path().join("shard-0")).unwrap();
    let output = coracle(&["verify", "--json"], dir.path());
    assert_eq!((output.status.code(), &report(&output)["damage"][0]["file"]), (Some(1), &"shard-0".into()));
}

#[test]
fn dump_prints_entries_one_a_line() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (node, group) = start(dir.path());
    (0..20).for_each(|at| propose(&group, format!("command\n{at}").as_bytes()));
    node.stop().unwrap();

    let text = String::from_utf8(coracle(&["dump", "--group", "1"], dir.path()).stdout).unwrap();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
    let commands = lines.iter().filter(|words| words[2] == "command");
    let payloads: Vec<&str> = commands.map(|words| words[6]).collect();
    assert_eq!(payloads, (0..20).map(|at| format!("command\\n{at}")).collect::<Vec<_>>());
    assert!(lines.iter().zip(1..).all(|(words, index)| words[0] == format!("{index}")), "{text}");

    let dumped = report(&coracle(&["dump", "--group", "1", "--json"], dir.path()));
    let entries = dumped["entries"].as_array().unwrap();
    assert_eq!((entries.len(), &dumped["last"]), (lines.len(), &lines.len().into()));
    assert_eq!(entries[lines.len() - 1]["payload_hex"], "636f6d6d616e640a3139");
    let some = coracle(&["dump", "--group", "1", "--from", "5", "--to", "6", "--json"], dir.path());
    assert_eq!(report(&some)["entries"], Value::from(entries[4..6].to_vec()));

    let none = coracle(&["dump", "--group", "9"], dir.path());
    assert_eq!(none.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&none.stderr).contains("no group 9"));
}

#[test]
fn what_is_no_data_directory_is_bad_usage_and_stays_as_it_is() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for path in [dir.path().to_owned(), dir.path().join("missing"), PathBuf::from("/proc/version")] {
        let output = coracle(&["verify"], &path);
        assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
    assert_eq!(coracle(&["dump"], dir.path()).status.code(), Some(2));
}

struct Nothing;

impl Machine for Nothing {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        if entry.index.0.is_multiple_of(500) {
            effects.release();
        }
    }
    fn query(&self, _: &[u8], _: &mut Vec<u8>) {}
    fn snapshot(&self, _: &mut Vec<u8>) {}
    fn restore(&mut self, _: &[u8]) -> Result<(), RestoreError> {
        Ok(())
    }
}

/// A node by itself, with one group.
fn start(dir: &Path) -> (Node, Group) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = Config::new(1, vec![Peer { id: NodeId(1), address }], dir);
    config.shards = 1;
    config.wal_max_size_bytes = 4 << 20;
    let node = Node::start(config).unwrap();
    let group = node.start_group(GroupId(1), Nothing).unwrap();
    (node, group)
}

fn propose(group: &Group, command: &[u8]) {
    while !matches!(group.propose(command).wait(), Outcome::Done(_)) {}
}

/// Files roll, are released and reused under the eyes of the tool.
#[test]
fn a_directory_in_use_is_no_damaged_one() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (node, group) = start(dir.path());
    let propose = |count: u64| (0..count).for_each(|at| propose(&group, &[at as u8; 1000]));
    propose(1);
    for _ in 0..3 {
        let mut verify = Command::new(env!("CARGO_BIN_EXE_coracle"))
            .args(["verify", "--json"])
            .arg(dir.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        while verify.try_wait().unwrap().is_none() {
            propose(10);
        }
        let output = verify.wait_with_output().unwrap();
        let report = report(&output);
        assert_eq!((output.status.code(), &report["in_use"]), (Some(0), &true.into()), "{report}");
        propose(3000);
    }
    node.stop().unwrap();
}
