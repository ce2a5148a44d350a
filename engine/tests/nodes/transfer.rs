//! Snapshots of many chunks from one member to another: interrupted, resumed, overtaken, and with the entries that live on
//! below them.

use std::path::Path;

use coracle::{Effects, Entry, Index, IndexRange, Machine, NodeId, Outcome, Reason, RestoreError, Unknown};
use coracle_io::Disk;
use coracle_io::fake::{Completing, Latency, OpKind};

use crate::cluster::{Cluster, GROUP, Nothing, OTHER};
use crate::snapshots::{Big, DIR, damage, files, start};

/// Chunks of the snapshot below: more than a window of them.
const CHUNKS: u64 = 24;
const PADDING: usize = CHUNKS as usize * 262_000;

fn reopen(cluster: &mut Cluster, at: usize, machine: impl Machine + 'static) {
    cluster.open(at);
    cluster.turn_until("a running node", |cluster| cluster.node(at).is_running());
    cluster.node(at).start_group(GROUP, Box::new(machine));
    cluster.turn_until("a group", |cluster| cluster.node(at).group_status(GROUP).is_some());
}

fn leader(cluster: &Cluster) -> usize {
    cluster.status(0).leader.unwrap_or(NodeId(1)).0 as usize - 1
}

fn sent(cluster: &Cluster) -> u64 {
    cluster.nodes.iter().flatten().map(|node| node.status().unwrap().transfer_bytes_sent).sum()
}

fn received(cluster: &Cluster, at: usize) -> u64 {
    cluster.node(at).status().unwrap().transfer_bytes_received
}

fn released(cluster: &Cluster, at: usize) -> bool {
    cluster.status(at).first > Index(1) && files(cluster, at).len() == 1
}

/// Two members with a released log and a large snapshot; the third one was never started.
fn two_of_three(machine: &Big) -> Cluster {
    let mut cluster = Cluster::new(3);
    (0..2).for_each(|at| start(&cluster, at, machine));
    for command in [b"one".as_slice(), b"two", b"release"] {
        cluster.done(0, GROUP, command);
    }
    cluster.turn_until("released logs", |cluster| (0..2).all(|at| released(cluster, at)));
    cluster
}

fn is_caught_up(cluster: &Cluster, at: usize) -> bool {
    let digest = cluster.status(0).digest;
    cluster.node(at).group_status(GROUP).is_some_and(|status| status.digest == digest && !status.restoring)
}

#[test]
fn a_receiver_that_is_killed_twice_midway_gets_hardly_more_than_the_snapshot() {
    let machine = Big::new(PADDING);
    let mut cluster = two_of_three(&machine);
    start(&cluster, 2, &machine);
    let mut resumed = 0;
    for third in 1..=2u64 {
        let goal = PADDING as u64 / 3;
        cluster.turn_until("a third", |cluster| received(cluster, 2) > goal * 9 / 10);
        cluster.kill(2);
        let parts = files(&cluster, 2);
        assert!(
            parts.len() == 1 && parts[0].extension().is_some_and(|end| end == "part"),
            "{third}: {parts:?}"
        );
        reopen(&mut cluster, 2, machine.clone());
    }
    cluster.turn_until("the state there", |cluster| is_caught_up(cluster, 2));
    resumed += cluster.node(2).status().unwrap().transfers_resumed;
    assert_eq!(resumed, 1, "in the last of its lives");
    cluster.turn_until("a file of its own", |cluster| released(cluster, 2));
    // A kill costs what is on its way: a window, and what had come and was not written.
    let (sent, bytes, lost) = (sent(&cluster), PADDING as u64, 2 * 10 * 262_128);
    assert!(sent >= bytes && sent <= bytes + lost, "{sent} bytes were sent for a snapshot of {bytes}");
    assert_eq!(cluster.node(2).status().unwrap().transfers_installed, 1);
    // What came is durable, and the group goes on from it.
    cluster.kill(2);
    reopen(&mut cluster, 2, machine.clone());
    cluster.done(0, GROUP, b"more");
    cluster.turn_until("the state again", |cluster| is_caught_up(cluster, 2));
    assert_eq!(received(&cluster, 2), 0);
}

#[test]
fn a_snapshot_that_a_newer_one_takes_the_place_of_is_never_mixed_with_it() {
    let machine = Big::new(PADDING);
    let mut cluster = two_of_three(&machine);
    start(&cluster, 2, &machine);
    cluster.turn_until("a third", |cluster| received(cluster, 2) > PADDING as u64 / 3);
    cluster.kill(2);
    // Meanwhile the others go on so far that what had come is of no use.
    for _ in 0..40 {
        cluster.done(0, GROUP, &[7; 10_000]);
    }
    let first = cluster.status(leader(&cluster)).first;
    cluster.done(0, GROUP, b"release");
    cluster.turn_until("a newer snapshot", |cluster| cluster.status(leader(cluster)).first > first);
    // The sender keeps the older one for some seconds only, as nobody asks for it.
    (0..14_000).for_each(|_| cluster.turn());
    reopen(&mut cluster, 2, machine.clone());
    cluster.turn_until("the state there", |cluster| is_caught_up(cluster, 2));
    let status = cluster.node(2).status().unwrap();
    assert_eq!((status.transfers_restarted, status.transfers_resumed), (1, 0));
    cluster.turn_until("one file", |cluster| released(cluster, 2));
}

#[test]
fn what_came_of_a_snapshot_is_removed_when_the_log_makes_up_for_it() {
    let machine = Big::new(PADDING);
    let mut cluster = two_of_three(&machine);
    start(&cluster, 2, &machine);
    cluster.turn_until("a third", |cluster| received(cluster, 2) > PADDING as u64 / 3);
    // Nobody sends any more.
    cluster.kill(0);
    cluster.kill(1);
    (0..14_000).for_each(|_| cluster.turn());
    let is_part = |cluster: &Cluster| {
        files(cluster, 2).iter().any(|path| path.extension().is_some_and(|end| end == "part"))
    };
    assert!(is_part(&cluster), "it is kept: {:?}", files(&cluster, 2));
    (0..2).for_each(|at| reopen(&mut cluster, at, machine.clone()));
    cluster.turn_until("the state there", |cluster| is_caught_up(cluster, 2));
    cluster.turn_until("one file", |cluster| released(cluster, 2) && !is_part(cluster));
    assert_eq!(cluster.node(2).status().unwrap().transfers_resumed, 1, "after it was put aside");
}

#[test]
fn a_leader_whose_own_snapshot_is_damaged_fetches_another_s() {
    let machine = Big::new(600_000);
    let mut cluster = two_of_three(&machine);
    // Of the two it is the one with the longer log: it has to lead.
    let damaged = leader(&cluster);
    let other = 1 - damaged;
    cluster.kill(other);
    let answer = cluster.node(damaged).propose(GROUP, b"only here");
    (0..100).for_each(|_| cluster.turn());
    drop(answer);
    cluster.kill(damaged);
    damage(&cluster, damaged);
    reopen(&mut cluster, damaged, machine.clone());
    cluster.turn_until("a cry for help", |cluster| cluster.status(damaged).needs_snapshot.is_some());
    reopen(&mut cluster, other, machine.clone());
    cluster.turn_until("a leader", |cluster| cluster.status(damaged).leader.is_some());
    cluster.turn_until("its machine", |cluster| {
        let status = cluster.status(damaged);
        status.needs_snapshot.is_none() && !status.restoring && status.applied > Index(3)
    });
    cluster.done(damaged, GROUP, b"on it goes");
}

/// Found by the simulator: who waited for its turn gave up, and much was sent twice.
#[test]
fn a_receiver_that_the_throttle_keeps_waiting_does_not_give_up() {
    let mut cluster = Cluster::new(3);
    cluster.snapshot_bytes_per_s = 47_000;
    (0..2).for_each(|at| cluster.kill(at));
    let machine = Big::new(500_000);
    (0..2).for_each(|at| reopen(&mut cluster, at, machine.clone()));
    cluster.done(0, GROUP, b"release");
    cluster.turn_until("released logs", |cluster| (0..2).all(|at| released(cluster, at)));
    start(&cluster, 2, &machine);
    cluster.turn_until("a first chunk", |cluster| sent(cluster) > 0);
    cluster.turn_until("the snapshot", |cluster| is_caught_up(cluster, 2));
    let resumed = cluster.node(2).status().unwrap().transfers_resumed;
    assert_eq!((sent(&cluster), resumed), (500_025, 0), "state and head, once");
}

/// A machine that lets its log go later than others do.
struct Late(Big);

impl Machine for Late {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        let command: &[u8] = if entry.command == b"late" { b"release" } else { b"" };
        self.0.apply(Entry { command, ..entry }, effects);
    }
    fn query(&self, query: &[u8], reply: &mut Vec<u8>) {
        self.0.query(query, reply);
    }
    fn snapshot(&self, out: &mut Vec<u8>) {
        self.0.snapshot(out);
    }
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        self.0.restore(snapshot)
    }
}

/// Found by the simulator: the machine went past what clients waited for, and the next command found that out.
#[test]
fn who_waits_for_what_a_fetched_snapshot_covers_hears_that_nobody_knows() {
    let machine = Big::new(600_000);
    let mut cluster = Cluster::new(2);
    start(&cluster, 0, &machine);
    cluster.node(1).start_group(GROUP, Box::new(Late(machine.clone())));
    cluster.done(0, GROUP, b"release");
    cluster.turn_until("a released log", |cluster| released(cluster, 0));
    // With the longer log it leads again.
    cluster.kill(1);
    drop(cluster.node(0).propose(GROUP, b"only here"));
    (0..100).for_each(|_| cluster.turn());
    cluster.kill(0);
    damage(&cluster, 0);
    reopen(&mut cluster, 0, machine.clone());
    reopen(&mut cluster, 1, Late(machine));
    let leads = |cluster: &Cluster| cluster.status(0).leader == Some(NodeId(1));
    cluster.turn_until("a leader", leads);
    assert!(cluster.status(0).needs_snapshot.is_some() && files(&cluster, 1).is_empty());
    let answers = [b"late".as_slice(), b"two"].map(|command| cluster.node(0).propose(GROUP, command));
    cluster.turn_until("its machine", |cluster| {
        let status = cluster.status(0);
        status.needs_snapshot.is_none() && !status.restoring
    });
    assert!(leads(&cluster), "it led all the time");
    let first = answers[0].get();
    assert!(matches!(first, Some(Outcome::Unknown(Unknown::Skipped))), "{first:?}");
    cluster.done(0, GROUP, b"on it goes");
}

/// Keeps the bodies of its commands in the log: its state is their indexes, and some more.
#[derive(Clone, Default)]
struct Queue {
    live: Vec<u64>,
    padding: usize,
}

impl Machine for Queue {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        match entry.command {
            b"release" => effects.release(),
            body if body.first() == Some(&b'k') => self.live.push(entry.index.0),
            _ => {}
        }
    }
    fn query(&self, _: &[u8], reply: &mut Vec<u8>) {
        reply.extend((self.live.len() as u64).to_le_bytes());
    }
    fn snapshot(&self, out: &mut Vec<u8>) {
        self.live.iter().for_each(|index| out.extend(index.to_le_bytes()));
        out.extend(vec![0; self.padding]);
    }
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        let (words, rest) = snapshot[..snapshot.len() - self.padding].as_chunks::<8>();
        self.live = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        if rest.is_empty() { Ok(()) } else { Err(RestoreError("not indexes".into())) }
    }
    fn live_indexes(&self) -> Vec<IndexRange> {
        self.live.iter().map(|index| IndexRange { first: Index(*index), count: 1 }).collect()
    }
}

fn bodies(cluster: &mut Cluster, at: usize, last: Index) -> Vec<(Index, Option<Vec<u8>>)> {
    let mut all = Vec::new();
    let mut next = 1;
    while next <= last.0 {
        let mut read = cluster.node(at).read_entries(GROUP, (next..=last.0).map(Index), 1 << 20);
        let mut got = None;
        for _ in 0..10_000 {
            got = read.take();
            if got.is_some() {
                break;
            }
            cluster.turn();
        }
        let got = got.unwrap().unwrap();
        next += got.len() as u64;
        all.extend(got.into_iter().map(|(index, entry)| (index, entry.ok().map(|entry| entry.payload))));
    }
    all
}

#[test]
fn entries_that_live_on_come_with_the_snapshot() {
    for count in [1u32, 900] {
        let mut cluster = Cluster::new(3);
        (0..2).for_each(|at| cluster.node(at).start_group(GROUP, Box::new(Queue::default())));
        for number in 0..count {
            let kept = if number % 3 == 0 { b'k' } else { b'-' };
            let command: Vec<u8> =
                [kept].into_iter().chain(number.to_le_bytes()).chain(vec![3; 2000]).collect();
            cluster.done(0, GROUP, &command);
        }
        cluster.done(0, GROUP, b"release");
        cluster.turn_until("released logs", |cluster| (0..2).all(|at| cluster.status(at).first > Index(1)));
        cluster.node(2).start_group(GROUP, Box::new(Queue::default()));
        cluster.turn_until("the state there", |cluster| is_caught_up(cluster, 2));
        let last = cluster.status(2).first.prev();
        // The leader may still have what is released in memory, for whoever was behind.
        let other = if leader(&cluster) == 0 { 1 } else { 0 };
        let (ours, theirs) = (bodies(&mut cluster, 2, last), bodies(&mut cluster, other, last));
        let living =
            ours.iter().filter(|(_, body)| body.as_ref().is_some_and(|body| body[0] == b'k')).count();
        assert_eq!(living as u32, count.div_ceil(3));
        assert!(ours == theirs, "other entries than the sender's");
        // They are the log's now, and outlive a crash.
        cluster.kill(2);
        reopen(&mut cluster, 2, Queue::default());
        cluster.turn_until("the state again", |cluster| is_caught_up(cluster, 2));
        assert!(bodies(&mut cluster, 2, last) == theirs, "other entries after a crash");
        let listed = cluster.disks[2].clone().list(Path::new(DIR)).unwrap();
        assert!(listed.iter().all(|entry| !entry.name.ends_with(".part")), "{listed:?}");
    }
}

#[test]
fn a_snapshot_that_was_offered_in_an_earlier_session_is_not_told_to_consensus() {
    let machine = Big::new(PADDING);
    let mut cluster = two_of_three(&machine);
    start(&cluster, 2, &machine);
    // All of it is there, and not all on disk, when those who offered it go.
    cluster.turn_until("all bytes", |cluster| received(cluster, 2) >= PADDING as u64);
    assert_eq!(cluster.node(2).status().unwrap().transfers_installed, 0);
    cluster.kill(0);
    cluster.kill(1);
    cluster.turn_until("links down", |cluster| cluster.node(2).status().unwrap().links_up == 0);
    assert_eq!(
        cluster.node(2).status().unwrap().transfers_installed,
        0,
        "the disk was too fast for this test"
    );
    (0..6000).for_each(|_| cluster.turn());
    let status = cluster.node(2).status().unwrap();
    assert_eq!((status.transfers_installed, cluster.status(2).last), (0, Index(0)));
    // Offered again, it is gone on with.
    (0..2).for_each(|at| reopen(&mut cluster, at, machine.clone()));
    cluster.turn_until("an install", |cluster| cluster.node(2).status().unwrap().transfers_installed == 1);
    cluster.turn_until("the state there", |cluster| is_caught_up(cluster, 2));
    assert!(received(&cluster, 2) < PADDING as u64 * 5 / 4, "little of it came twice");
}

/// Neighbours travel in runs of up to 256 KiB, which files of 64 KiB do not take whole.
#[test]
fn live_neighbours_are_placed_in_runs_as_long_as_the_receivers_files_take() {
    let mut cluster = Cluster::with_files(&[1 << 20, 1 << 20, 64 * 1024]);
    (0..2).for_each(|at| cluster.node(at).start_group(GROUP, Box::new(Queue::default())));
    for number in 0..400u32 {
        let command: Vec<u8> = [b'k'].into_iter().chain(number.to_le_bytes()).chain(vec![3; 2000]).collect();
        cluster.done(0, GROUP, &command);
    }
    cluster.done(0, GROUP, b"release");
    cluster.turn_until("released logs", |cluster| (0..2).all(|at| cluster.status(at).first > Index(1)));
    cluster.node(2).start_group(GROUP, Box::new(Queue::default()));
    cluster.turn_until("the state there", |cluster| is_caught_up(cluster, 2));
    let last = cluster.status(2).first.prev();
    let other = if leader(&cluster) == 0 { 1 } else { 0 };
    let theirs = bodies(&mut cluster, other, last);
    assert_eq!(theirs.iter().filter(|(_, body)| body.is_some()).count(), 400);
    assert!(bodies(&mut cluster, 2, last) == theirs, "other entries than the sender's");
    cluster.kill(2);
    reopen(&mut cluster, 2, Queue::default());
    cluster.turn_until("the state again", |cluster| is_caught_up(cluster, 2));
    assert!(bodies(&mut cluster, 2, last) == theirs, "other entries after a crash");
}

/// What node 3 receives is whole and durable, and is getting its name.
fn is_finishing(cluster: &Cluster) -> bool {
    // Other files get their names, too, but not that late.
    received(cluster, 2) >= PADDING as u64
        && cluster.disks[2].flights().iter().any(|one| one.kind == OpKind::Rename)
}

/// A disk on which that takes so long.
fn slow_names(cluster: &Cluster, other_us: u64) {
    let slow = Latency { other_us: (other_us, other_us), ..Latency::default() };
    cluster.disks[2].set_completing(Completing::Timed(slow));
}

/// The link breaks while the last write is under way, and is back before or after that is done.
#[test]
fn a_snapshot_whose_link_breaks_during_its_last_write_is_not_sent_again() {
    for (other_us, is_back_before) in [(200_000, true), (20_000, false)] {
        let machine = Big::new(PADDING);
        let mut cluster = two_of_three(&machine);
        start(&cluster, 2, &machine);
        slow_names(&cluster, other_us);
        cluster.turn_until("the last write", is_finishing);
        (1..=2).for_each(|one| cluster.network.reset_connections(one, 3));
        cluster.turn_until("broken links", |cluster| cluster.node(2).status().unwrap().links_up == 0);
        assert!(is_finishing(&cluster), "the disk is too fast for this test");
        if !is_back_before {
            cluster.network.partition(&[&[1, 2], &[3]]);
            (0..500).for_each(|_| cluster.turn());
            assert!(!is_finishing(&cluster), "it is done by now");
            cluster.network.heal();
        } else {
            cluster.turn_until("links", |cluster| cluster.node(2).status().unwrap().links_up == 2);
            (0..20).for_each(|_| cluster.turn());
            assert!(is_finishing(&cluster), "the disk is too fast for this test");
        }
        assert_eq!(cluster.node(2).status().unwrap().transfers_installed, 0);
        cluster
            .turn_until("an install", |cluster| cluster.node(2).status().unwrap().transfers_installed == 1);
        cluster.turn_until("the state there", |cluster| is_caught_up(cluster, 2));
        let status = cluster.node(2).status().unwrap();
        assert_eq!((status.transfers_abandoned, status.transfers_restarted), (0, 0));
        let came = received(&cluster, 2);
        assert!(came < PADDING as u64 + 300_000, "{came} bytes, back before: {is_back_before}");
        assert_eq!(files(&cluster, 2).len(), 1);
    }
}

/// A file that is whole and that nobody offers any more goes after a while, and the next one comes as ever.
#[test]
fn a_whole_snapshot_that_nobody_offers_again_is_removed() {
    let machine = Big::new(PADDING);
    let mut cluster = two_of_three(&machine);
    start(&cluster, 2, &machine);
    slow_names(&cluster, 20_000);
    cluster.turn_until("the last write", is_finishing);
    (1..=2).for_each(|one| cluster.network.reset_connections(one, 3));
    cluster.turn_until("broken links", |cluster| cluster.node(2).status().unwrap().links_up == 0);
    cluster.network.partition(&[&[1, 2], &[3]]);
    (0..500).for_each(|_| cluster.turn());
    let whole = files(&cluster, 2);
    assert!(whole.len() == 1 && whole[0].extension().is_some_and(|end| end != "part"), "{whole:?}");
    cluster.turn_until("its removal", |cluster| files(cluster, 2).is_empty());
    cluster.network.heal();
    cluster.turn_until("the state there", |cluster| is_caught_up(cluster, 2));
    assert_eq!((cluster.node(2).status().unwrap().transfers_installed, files(&cluster, 2).len()), (1, 1));
}

fn propose_bodies(cluster: &mut Cluster, count: u32, bytes: usize) {
    for number in 0..count {
        let command: Vec<u8> = [b'k'].into_iter().chain(number.to_le_bytes()).chain(vec![3; bytes]).collect();
        cluster.done(0, GROUP, &command);
    }
}

/// Its log goes on beyond the damaged snapshot, so it asks for the state alone; but it lacks more than that, as the others
/// have released what comes next.
#[test]
fn what_is_begun_for_the_state_alone_does_not_become_the_whole_without_its_live_entries() {
    let mut cluster = Cluster::new(3);
    let machine = Queue { padding: 600_000, ..Queue::default() };
    (0..3).for_each(|at| cluster.node(at).start_group(GROUP, Box::new(machine.clone())));
    propose_bodies(&mut cluster, 30, 10_000);
    cluster.done(0, GROUP, b"release");
    cluster.turn_until("released logs", |cluster| (0..3).all(|at| released(cluster, at)));
    let first = cluster.status(0).first;
    propose_bodies(&mut cluster, 5, 10_000);
    cluster.turn_until("the same log", |cluster| {
        (0..3).all(|at| cluster.status(at).applied == cluster.status(0).last)
    });
    let lags = (leader(&cluster) + 1) % 3;
    let (other, leads) = ((lags + 1) % 3, leader(&cluster));
    cluster.kill(lags);
    for number in 0..30u8 {
        cluster.done(leads, GROUP, &[&[b'k', number][..], &[3; 10_000]].concat());
    }
    cluster.done(leads, GROUP, b"release");
    cluster.turn_until("newer snapshots", |cluster| {
        [leads, other].iter().all(|at| cluster.status(*at).first.0 > first.0 + 30)
    });
    damage(&cluster, lags);
    // It reaches the follower only, which begins with what it is asked for, and then leads.
    cluster.network.partition(&[&[leads as u64 + 1], &[lags as u64 + 1]]);
    reopen(&mut cluster, lags, machine.clone());
    (0..3000).for_each(|_| cluster.turn());
    assert!(cluster.status(lags).needs_snapshot.is_some());
    cluster.node(other).trigger_election(GROUP);
    cluster.turn_until("the state there", |cluster| {
        let (ours, theirs) = (cluster.node(lags).group_status(GROUP), cluster.status(other));
        ours.is_some_and(|ours| ours.digest == theirs.digest && !ours.restoring)
    });
    let last = cluster.status(lags).first.prev();
    let theirs = bodies(&mut cluster, other, last);
    assert_eq!(theirs.iter().filter(|(_, body)| body.is_some()).count(), 65);
    assert!(bodies(&mut cluster, lags, last) == theirs, "other entries than the sender's");
}

/// The receiver's disk has no room for the entries that live on: it asks for them again and again, puts the transfer aside, and
/// begins anew, and comes no further. The log that they lie in waits for it, though not for longer than a minute.
#[test]
fn a_transfer_that_comes_no_further_holds_the_senders_release_for_a_minute() {
    let mut cluster = Cluster::new(3);
    (0..2).for_each(|at| cluster.node(at).start_group(GROUP, Box::new(Queue::default())));
    propose_bodies(&mut cluster, 300, 2_000);
    cluster.done(0, GROUP, b"release");
    cluster.turn_until("released logs", |cluster| (0..2).all(|at| cluster.status(at).first > Index(1)));
    // Another group of its own has what room there is for commands.
    cluster.disks[2].set_quota(Some(5 * 256 * 1024 + 128 * 1024));
    cluster.node(2).start_group_of(OTHER, &[NodeId(3)], Box::new(Nothing));
    while cluster.once(2, OTHER, &[7; 10_000]) != Some(Reason::DiskFull) {}
    cluster.node(2).start_group(GROUP, Box::new(Queue::default()));
    cluster.turn_until("a transfer", |cluster| received(cluster, 2) > 0);
    let leads = leader(&cluster);
    let (first, start_us) = (cluster.status(leads).first, cluster.now_us());
    cluster.done(0, GROUP, b"release");
    let held_s = |cluster: &Cluster| (cluster.now_us() - start_us) / 1_000_000;
    while cluster.status(leads).first == first && held_s(&cluster) < 80 {
        (0..100).for_each(|_| cluster.turn());
    }
    assert!((59..62).contains(&held_s(&cluster)), "{} s", held_s(&cluster));
    assert!(!is_caught_up(&cluster, 2));
    cluster.disks[2].set_quota(None);
    cluster.turn_until("the state there", |cluster| is_caught_up(cluster, 2));
    let last = cluster.status(2).first.prev();
    let other = if leads == 0 { 1 } else { 0 };
    assert!(bodies(&mut cluster, 2, last) == bodies(&mut cluster, other, last), "other entries");
}
