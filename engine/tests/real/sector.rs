//! One sector of a log goes bad, in the middle of what was acknowledged, on a node with a thousand groups: only the groups
//! with records there are concerned, and their leaders bring them up to date.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::kv::{Cluster, call, ready};
use crate::operator::metric;
use crate::process::{Process, free_addresses, wait_for};
use crate::resp::{Connection, Reply, request};

const GROUPS: u64 = 1000;
const KEYS: u64 = 5000;
/// Written one after the other: a batch has a record or two.
const SLOW: u64 = 60;
const BLOCK: usize = 4096;
const SECTOR: usize = 512;

/// The log file that is written to, and where its batches end.
fn end_of_log(shard: &Path) -> (PathBuf, usize) {
    let is_used = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.ends_with(".wal") && name.starts_with(|first: char| first.is_ascii_digit())
    };
    let files = fs::read_dir(shard).unwrap().map(|entry| entry.unwrap().path()).filter(is_used);
    let used = files.filter_map(|path| {
        let bytes = fs::read(&path).unwrap();
        let blocks = bytes.chunks(BLOCK).rposition(|block| block.iter().any(|byte| *byte != 0))? + 1;
        // Two blocks are the file's head.
        (blocks > 2).then_some((path, blocks * BLOCK))
    });
    used.max().unwrap()
}

fn set_all(connection: &mut Connection, keys: std::ops::Range<u64>) {
    let name = |key: u64| format!("key-{key}").into_bytes();
    keys.clone().for_each(|key| connection.send(&request(&[b"SET", &name(key), b"value"])).unwrap());
    for key in keys {
        if connection.reply().unwrap() != Reply::Simple("OK".into()) {
            call(connection, &["SET", &format!("key-{key}"), "value"]);
        }
    }
}

#[test]
fn a_bad_sector_concerns_only_the_groups_with_records_in_it() {
    let mut cluster = Cluster::new(3, GROUPS);
    cluster.admins = free_addresses(3);
    let (mut processes, addresses): (Vec<Process>, Vec<_>) = cluster.start_all().into_iter().unzip();
    let mut connection = Connection::open(addresses[1]).unwrap();
    (0..KEYS).step_by(250).for_each(|from| set_all(&mut connection, from..from + 250));
    let shard = cluster.dir().join("node-1/shard-0");
    let (file, begin) = end_of_log(&shard);
    for key in 0..SLOW {
        call(&mut connection, &["SET", &format!("slow-{key}"), "value"]);
    }
    let (same, end) = end_of_log(&shard);
    assert!(file == same && end > begin + 8 * BLOCK, "{file:?} {begin}, {same:?} {end}");
    // More after it, so that it cannot be taken for the end.
    set_all(&mut connection, 0..250);
    processes[0].kill();

    // A block in the middle with the name of a key: not one of those that only say that the log was quiet.
    let bytes = fs::read(&file).unwrap();
    let has_key = |at: &usize| bytes[*at..*at + SECTOR].windows(5).any(|word| word == b"slow-");
    let middle = begin + (end - begin) / 2 / BLOCK * BLOCK;
    let at = (middle..end).step_by(BLOCK).find(has_key).unwrap();
    let log = File::options().write(true).open(&file).unwrap();
    log.write_all_at(&[0xA5; SECTOR], at as u64).unwrap();
    let started = Instant::now();
    processes[0] = cluster.start(1);
    let address = ready(&mut processes[0]);
    let served = started.elapsed();
    let admin = cluster.admins[0];
    let damaged = wait_for("all groups to be whole again", || {
        let damaged = metric(admin, "groups_damaged_total")?;
        let is_whole = damaged > 0 && metric(admin, "groups_mended_total")? == damaged;
        is_whole.then_some(damaged)
    });
    eprintln!(
        "{damaged} of {GROUPS} groups were damaged; served after {served:?}, whole after {:?}",
        started.elapsed()
    );
    assert!(damaged <= 5, "{damaged} groups have records in one sector?");
    let mut connection = Connection::open(address).unwrap();
    for key in 0..SLOW {
        let reply = call(&mut connection, &["GET", &format!("slow-{key}")]);
        assert_eq!(reply, Reply::Bulk(Some(b"value".to_vec())));
    }
}
