//! Snapshots in files: when they are taken, how they come back, where they go, and what a damaged one means.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coracle::{Effects, Entry, GroupId, Index, Machine, Reason, ReleaseWhen, RestoreError};
use coracle_io::Disk;
use coracle_io::fake::{Completing, CrashPolicy, Damage, Latency};

use crate::cluster::{Cluster, GROUP};

pub(crate) const DIR: &str = "shard-0/snapshots";

/// Counts commands, and has a state of many bytes. `release` lets the log go, `keep` asks for a checkpoint.
#[derive(Clone)]
pub(crate) struct Big {
    count: u64,
    padding: usize,
    in_chunks: bool,
    incoming: Vec<u8>,
    /// How often it was made to run a command.
    pub(crate) runs: Arc<AtomicU64>,
}

impl Big {
    pub(crate) fn new(padding: usize) -> Self {
        Self { count: 0, padding, in_chunks: false, incoming: Vec::new(), runs: Arc::default() }
    }
}

impl Machine for Big {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        self.count += 1;
        self.runs.fetch_add(1, Ordering::Relaxed);
        match entry.command {
            b"release" => effects.release(),
            b"keep" => effects.checkpoint(),
            b"release when the next but one is durable" => {
                effects.release_when(ReleaseWhen { durable: entry.index.plus(2), no_transfer: true });
            }
            _ => {}
        }
    }
    fn query(&self, _: &[u8], reply: &mut Vec<u8>) {
        reply.extend(self.count.to_le_bytes());
    }
    fn snapshot(&self, out: &mut Vec<u8>) {
        out.extend(self.count.to_le_bytes());
        out.extend((0..self.padding).map(|at| at as u8 ^ self.count as u8));
    }
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        let (count, rest) = snapshot.split_first_chunk().ok_or_else(|| RestoreError("short".into()))?;
        self.count = u64::from_le_bytes(*count);
        let sound = rest.iter().enumerate().all(|(at, byte)| *byte == at as u8 ^ self.count as u8);
        if sound && rest.len() == self.padding { Ok(()) } else { Err(RestoreError("other bytes".into())) }
    }
    fn begin_restore(&mut self, bytes: u64) -> bool {
        assert!(!self.in_chunks || bytes == self.padding as u64 + 8);
        self.incoming.clear();
        self.in_chunks
    }
    fn restore_chunk(&mut self, chunk: &[u8]) -> Result<(), RestoreError> {
        self.incoming.extend_from_slice(chunk);
        Ok(())
    }
    fn finish_restore(&mut self) -> Result<(), RestoreError> {
        let incoming = std::mem::take(&mut self.incoming);
        self.restore(&incoming)
    }
}

pub(crate) fn start(cluster: &Cluster, at: usize, machine: &Big) {
    cluster.node(at).start_group(GROUP, Box::new(machine.clone()));
}

/// The process is killed and comes back.
fn restart(cluster: &mut Cluster, at: usize, machine: &Big, meanwhile: impl FnOnce(&mut Cluster)) {
    cluster.nodes[at] = None;
    cluster.disks[at].crash(CrashPolicy::KEEP_ALL);
    cluster.network.stop_node(at as u64 + 1, coracle_io::fake::NodeStop::Killed);
    meanwhile(cluster);
    cluster.open(at);
    cluster.turn_until("a running node", |cluster| cluster.node(at).is_running());
    start(cluster, at, machine);
    cluster.turn_until("a group", |cluster| cluster.node(at).group_status(GROUP).is_some());
}

pub(crate) fn files(cluster: &Cluster, at: usize) -> Vec<PathBuf> {
    let listed = cluster.disks[at].clone().list(Path::new(DIR)).unwrap();
    listed.into_iter().map(|entry| Path::new(DIR).join(entry.name)).collect()
}

pub(crate) fn damage(cluster: &Cluster, at: usize) -> PathBuf {
    let path = files(cluster, at).pop().unwrap();
    assert!(cluster.disks[at].corrupt(&path, 5000, Damage::FlipBit { bit: 3 }));
    path
}

fn released(cluster: &Cluster, at: usize) -> bool {
    cluster.status(at).first > Index(1) && files(cluster, at).len() == 1
}

#[test]
fn a_large_snapshot_goes_to_a_file_and_comes_back_whole_or_in_chunks() {
    for in_chunks in [false, true] {
        let mut cluster = Cluster::new(1);
        let machine = Big { in_chunks, ..Big::new(700_000) };
        start(&cluster, 0, &machine);
        for command in [b"one".as_slice(), b"two", b"release"] {
            cluster.done(0, GROUP, command);
        }
        cluster.turn_until("a released log", |cluster| released(cluster, 0));
        cluster.done(0, GROUP, b"four");
        let runs = machine.runs.load(Ordering::Relaxed);
        restart(&mut cluster, 0, &machine, |_| {});
        assert!(cluster.status(0).restoring);
        assert_eq!(cluster.asked(0, GROUP), Ok(4), "asked at once, it waits for its machine");
        assert!(!cluster.status(0).restoring);
        assert_eq!(machine.runs.load(Ordering::Relaxed), runs + 1, "the snapshot stands for the rest");
    }
}

/// Consensus before machines, and the machine that somebody waits for before the others: all groups lead and commit while
/// none of their large files has been read yet, and the last one is served when most of the others' are still to come.
#[test]
fn groups_with_large_snapshots_lead_at_once_and_who_is_asked_comes_first() {
    const GROUPS: u64 = 24;
    let ids = || (1..=GROUPS).map(GroupId);
    let mut cluster = Cluster::with_files(&[16 << 20]);
    let machine = Big::new(1_500_000);
    let start_all = |cluster: &Cluster| {
        ids().for_each(|group| cluster.node(0).start_group(group, Box::new(machine.clone())));
    };
    start_all(&cluster);
    for group in ids() {
        cluster.done(0, group, b"one");
        cluster.done(0, group, b"release");
    }
    let status = |cluster: &Cluster, group| cluster.node(0).group_status(group).unwrap();
    cluster.turn_until("released logs", |cluster| {
        ids().all(|group| status(cluster, group).first > Index(1))
            && files(cluster, 0).len() == GROUPS as usize
    });
    cluster.nodes[0] = None;
    cluster.disks[0].crash(CrashPolicy::KEEP_ALL);
    cluster.network.stop_node(1, coracle_io::fake::NodeStop::Killed);
    cluster.open(0);
    cluster.turn_until("a running node", |cluster| cluster.node(0).is_running());
    // A file takes half a second.
    cluster.disks[0].set_completing(Completing::Timed(Latency { bytes_per_us: 3, ..Latency::default() }));
    start_all(&cluster);
    // Each had three entries; a leader commits one of its own.
    cluster.turn_until("leaders", |cluster| {
        let status = |group| cluster.node(0).group_status(group);
        ids().all(|group| {
            status(group).is_some_and(|status| status.leader.is_some() && status.commit == Index(4))
        })
    });
    let restoring = |cluster: &Cluster| ids().filter(|group| status(cluster, *group).restoring).count();
    let at_first = restoring(&cluster);
    assert!(at_first > GROUPS as usize / 2, "{at_first} of {GROUPS} machines are still restored");
    assert_eq!(cluster.asked(0, GroupId(GROUPS)), Ok(2));
    let left = restoring(&cluster);
    assert!(left > GROUPS as usize / 2, "{left} of {GROUPS} machines are still restored");
    cluster.turn_until("all machines", |cluster| restoring(cluster) == 0);
    for group in ids() {
        assert_eq!(cluster.asked(0, group), Ok(2));
    }
}

#[test]
fn the_next_file_waits_for_its_interval_and_takes_the_place_of_the_last() {
    let mut cluster = Cluster::new(1);
    start(&cluster, 0, &Big::new(100_000));
    cluster.done(0, GROUP, b"release");
    cluster.turn_until("a released log", |cluster| released(cluster, 0));
    let (first, file) = (cluster.status(0).first, files(&cluster, 0));
    for _ in 0..20 {
        cluster.done(0, GROUP, b"release");
    }
    assert_eq!(
        (cluster.status(0).first, files(&cluster, 0)),
        (first, file.clone()),
        "20 entries are too few"
    );
    // As many bytes as a file of the log holds: now the wish is fulfilled.
    for _ in 0..30 {
        cluster.done(0, GROUP, &[7; 10_000]);
    }
    cluster.turn_until("a newer file alone", |cluster| released(cluster, 0) && files(cluster, 0) != file);
    assert!(cluster.status(0).first > first);
    assert_eq!(cluster.node(0).status().unwrap().snapshot_files, 2);
}

#[test]
fn a_file_that_cannot_be_written_costs_the_log_s_release_and_nothing_else() {
    let mut cluster = Cluster::new(1);
    start(&cluster, 0, &Big::new(100_000));
    cluster.done(0, GROUP, b"one");
    let path = Path::new(DIR).join("00000001.snap.tmp");
    cluster.disks[0].fail_next(coracle_io::fake::OpKind::Write, Some(&path), 28);
    cluster.done(0, GROUP, b"release");
    for _ in 0..50 {
        cluster.turn();
    }
    assert_eq!((cluster.status(0).first, files(&cluster, 0)), (Index(1), vec![]));
    cluster.done(0, GROUP, b"release");
    cluster.turn_until("a released log", |cluster| released(cluster, 0));
}

#[test]
fn what_a_crash_left_of_a_file_is_removed() {
    let mut cluster = Cluster::new(1);
    let machine = Big::new(900_000);
    start(&cluster, 0, &machine);
    let answer = cluster.node(0).propose(GROUP, b"release");
    cluster.turn_until("a file that is being written", |cluster| !files(cluster, 0).is_empty());
    drop(answer);
    restart(&mut cluster, 0, &machine, |cluster| assert_eq!(files(cluster, 0).len(), 1));
    cluster.turn_until("no file", |cluster| files(cluster, 0).is_empty());
    assert_eq!(cluster.asked(0, GROUP), Ok(1));
}

#[test]
fn a_member_behind_the_released_log_is_sent_the_file() {
    let mut cluster = Cluster::new(3);
    let machine = Big { in_chunks: true, ..Big::new(300_000) };
    (0..2).for_each(|at| start(&cluster, at, &machine));
    for command in [b"one".as_slice(), b"two", b"release"] {
        cluster.done(0, GROUP, command);
    }
    cluster.turn_until("released logs", |cluster| (0..2).all(|at| released(cluster, at)));
    start(&cluster, 2, &machine);
    cluster.turn_until("the state there", |cluster| {
        cluster.node(2).group_status(GROUP).is_some_and(|status| status.digest == cluster.status(0).digest)
    });
    cluster.turn_until("a file of its own", |cluster| released(cluster, 2));
    restart(&mut cluster, 2, &machine, |_| {});
    cluster.turn_until("the state again", |cluster| cluster.status(2).digest == cluster.status(0).digest);
}

#[test]
fn a_member_whose_snapshot_is_damaged_votes_and_appends_until_another_s_has_come() {
    let mut cluster = Cluster::new(3);
    let machine = Big::new(300_000);
    (0..3).for_each(|at| start(&cluster, at, &machine));
    cluster.done(0, GROUP, b"release");
    cluster.turn_until("released logs", |cluster| (0..3).all(|at| released(cluster, at)));
    let leader = cluster.status(0).leader.unwrap().0 as usize - 1;
    let (damaged, other) = ((leader + 1) % 3, (leader + 2) % 3);
    // Without its word nothing is committed.
    cluster.nodes[other] = None;
    cluster.network.stop_node(other as u64 + 1, coracle_io::fake::NodeStop::Killed);
    restart(&mut cluster, damaged, &machine, |cluster| {
        damage(cluster, damaged);
    });
    cluster.turn_until("a cry for help", |cluster| cluster.status(damaged).needs_snapshot.is_some());
    assert!(cluster.status(damaged).needs_snapshot.unwrap().contains(".snap: damaged snapshot file"));
    cluster.done(leader, GROUP, b"two");
    cluster.turn_until("its machine", |cluster| {
        let (status, leading) = (cluster.status(damaged), cluster.status(leader));
        status.needs_snapshot.is_none() && !status.restoring && status.digest == leading.digest
    });
    cluster.turn_until("one sound file", |cluster| released(cluster, damaged));
    restart(&mut cluster, damaged, &machine, |_| {});
    cluster.turn_until("the state again", |cluster| cluster.status(damaged).applied > Index(2));
}

#[test]
fn a_lone_member_whose_snapshot_is_damaged_stands_still_and_names_the_file() {
    let mut cluster = Cluster::new(1);
    let machine = Big::new(300_000);
    start(&cluster, 0, &machine);
    cluster.done(0, GROUP, b"release");
    cluster.turn_until("a released log", |cluster| released(cluster, 0));
    let mut path = PathBuf::new();
    restart(&mut cluster, 0, &machine, |cluster| path = damage(cluster, 0));
    cluster.turn_until("the end", |cluster| !cluster.poisoned(0).is_empty());
    let said = cluster.poisoned(0);
    assert!(said.contains(path.to_str().unwrap()) && said.contains("restore the directory"), "{said}");
    cluster.turn_until("a leader", |cluster| cluster.status(0).leader.is_some());
    assert_eq!(cluster.once(0, GROUP, b"two"), Some(Reason::Poisoned));
}

#[test]
fn a_checkpoint_makes_the_start_short_and_a_damaged_one_costs_only_time() {
    let mut cluster = Cluster::new(1);
    let machine = Big::new(1000);
    start(&cluster, 0, &machine);
    let commands = [b"one".as_slice(), b"2", b"3", b"4", b"5", b"keep", b"7", b"8"];
    commands.iter().for_each(|command| cluster.done(0, GROUP, command));
    cluster.turn_until("a checkpoint", |cluster| {
        files(cluster, 0).first().is_some_and(|path| path.extension().is_some_and(|end| end == "ckpt"))
    });
    let runs_of = |cluster: &mut Cluster, meanwhile: fn(&mut Cluster)| {
        let before = machine.runs.load(Ordering::Relaxed);
        restart(cluster, 0, &machine, meanwhile);
        assert_eq!(cluster.asked(0, GROUP), Ok(8));
        machine.runs.load(Ordering::Relaxed) - before
    };
    assert_eq!(runs_of(&mut cluster, |_| {}), 2);
    assert_eq!(cluster.status(0).first, Index(1), "it frees no log");
    let all = runs_of(&mut cluster, |cluster| {
        damage(cluster, 0);
    });
    assert_eq!(all, 8);
    cluster.turn_until("the damaged one is gone", |cluster| files(cluster, 0).is_empty());
}

#[test]
fn a_release_makes_the_newest_checkpoint_the_snapshot() {
    let mut cluster = Cluster::new(1);
    let machine = Big::new(100_000);
    start(&cluster, 0, &machine);
    let commands = [b"one".as_slice(), b"2", b"3", b"4", b"5", b"keep", b"7"];
    commands.iter().for_each(|command| cluster.done(0, GROUP, command));
    cluster.turn_until("a checkpoint", |cluster| cluster.node(0).status().unwrap().snapshot_files == 1);
    cluster.done(0, GROUP, b"release");
    cluster.turn_until("a released log", |cluster| released(cluster, 0));
    assert_eq!(files(&cluster, 0), [Path::new(DIR).join("00000001.snap")], "the checkpoint's own number");
    let first = cluster.status(0).first;
    assert!(first < cluster.status(0).applied, "{first}: what came after the checkpoint is still in the log");
    let before = machine.runs.load(Ordering::Relaxed);
    restart(&mut cluster, 0, &machine, |_| {});
    assert_eq!(cluster.asked(0, GROUP), Ok(8));
    assert_eq!(machine.runs.load(Ordering::Relaxed) - before, 2);
}

#[test]
fn a_release_waits_for_what_it_was_told_to_wait_for() {
    let mut cluster = Cluster::new(1);
    start(&cluster, 0, &Big::new(100_000));
    cluster.done(0, GROUP, b"1");
    cluster.done(0, GROUP, b"release when the next but one is durable");
    for _ in 0..2 {
        (0..200).for_each(|_| cluster.turn());
        assert!(!released(&cluster, 0), "{:?}", cluster.status(0));
        cluster.done(0, GROUP, b"another");
    }
    cluster.turn_until("a released log", |cluster| released(cluster, 0));
}
