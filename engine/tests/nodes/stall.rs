//! A leader whose disk does not answer gives its groups away: first to members that hold their logs, in the end to
//! whomever the others elect.

use coracle::sim::Role;
use coracle::{GroupId, Outcome};
use coracle_io::fake::{Completing, Latency};

use crate::cluster::{Cluster, Count, Fault};

/// More than are looked at in one turn.
const GROUPS: u64 = 700;

fn groups() -> impl Iterator<Item = GroupId> {
    (1..=GROUPS).map(GroupId)
}

fn led_by(cluster: &Cluster, at: usize) -> usize {
    let leads = |group| cluster.node(at).overview(group).is_some_and(|one| one.role == Role::Leader);
    groups().filter(|group| leads(*group)).count()
}

fn ms_since(cluster: &Cluster, start_us: u64) -> u64 {
    (cluster.now_us() - start_us) / 1000
}

/// All groups led by the first of three nodes.
fn led_by_the_first() -> Cluster {
    let mut cluster = Cluster::new(3);
    for at in 0..3 {
        groups().for_each(|group| cluster.node(at).start_group(group, Box::new(Count(0, Fault::None))));
    }
    cluster.turn_until("leaders", |cluster| (0..3).map(|at| led_by(cluster, at)).sum::<usize>() == 700);
    // Only a member that has everything can be elected.
    (0..200).for_each(|_| cluster.turn());
    groups().for_each(|group| cluster.node(0).trigger_election(group));
    cluster.turn_until("the first to lead all", |cluster| led_by(cluster, 0) == 700);
    cluster
}

/// Nothing is finished from now on but what is in flight.
fn stall(cluster: &mut Cluster, at: usize) -> u64 {
    let for_ever = Latency { write_us: (1 << 40, 1 << 40), ..Latency::default() };
    cluster.disks[at].set_completing(Completing::Timed(for_ever));
    cluster.now_us()
}

fn heal(cluster: &Cluster, at: usize) {
    cluster.disks[at].set_completing(Completing::AtOnce);
}

#[test]
fn a_leader_whose_disk_stalls_hands_its_groups_over_and_takes_part_again_when_it_answers() {
    let mut cluster = led_by_the_first();
    let start_us = stall(&mut cluster, 0);
    // Its own disk is not needed for this; but with the first unfinished write the time begins.
    cluster.done(0, GroupId(1), b"one");
    cluster.turn_until("the stall to be noticed", |cluster| cluster.node(0).status().unwrap().disk_stalled);
    let noticed_ms = ms_since(&cluster, start_us);
    assert!((2_000..2_100).contains(&noticed_ms), "{noticed_ms}");
    cluster.turn_until("others to lead", |cluster| led_by(cluster, 1) + led_by(cluster, 2) == 700);
    let handed_over_ms = ms_since(&cluster, start_us);
    assert!(handed_over_ms < 3_000, "it takes {handed_over_ms} ms");
    let status = cluster.node(0).status().unwrap();
    assert_eq!((status.disk_stalls, status.stall_transfers, status.stall_resignations), (1, 700, 0));
    assert_eq!(led_by(&cluster, 0), 0);
    for group in [GroupId(1), GroupId(400), GroupId(700)] {
        cluster.done(0, group, b"two");
    }
    assert_eq!(cluster.asked(1, GroupId(1)), Ok(2), "nothing acknowledged is lost");

    heal(&cluster, 0);
    cluster.turn_until("the disk to answer", |cluster| !cluster.node(0).status().unwrap().disk_stalled);
    let digest = cluster.status(1).digest;
    cluster.turn_until("the first to have everything", |cluster| cluster.status(0).digest == digest);
    assert_eq!(cluster.node(0).status().unwrap().disk_stalls, 1);
}

/// The second node, which comes first by its id, says that its disk stalls, too: no election timeout is waited for.
#[test]
fn groups_are_not_handed_to_a_member_whose_disk_stalls_as_well() {
    let mut cluster = Cluster::new(5);
    let all = || (1..=20).map(GroupId);
    for at in 0..5 {
        all().for_each(|group| cluster.start(at, group, Fault::None));
    }
    cluster.turn_until("leaders", |cluster| (0..5).map(|at| led_by(cluster, at)).sum::<usize>() == 20);
    (0..200).for_each(|_| cluster.turn());
    all().for_each(|group| cluster.node(0).trigger_election(group));
    cluster.turn_until("the first to lead all", |cluster| led_by(cluster, 0) == 20);
    (0..200).for_each(|_| cluster.turn());
    stall(&mut cluster, 1);
    cluster.done(0, GroupId(1), b"one");
    cluster.turn_until("the second to notice", |cluster| cluster.node(1).status().unwrap().disk_stalled);
    stall(&mut cluster, 0);
    cluster.done(0, GroupId(1), b"two");
    cluster.turn_until("the first to notice", |cluster| cluster.node(0).status().unwrap().disk_stalled);
    let noticed_us = cluster.now_us();
    cluster.turn_until("others to lead", |cluster| {
        (2..5).map(|at| led_by(cluster, at)).sum::<usize>() == 20 && led_by(cluster, 0) == 0
    });
    let took_ms = ms_since(&cluster, noticed_us);
    assert!(took_ms < 50, "it takes {took_ms} ms");
    assert_eq!(cluster.node(0).status().unwrap().stall_transfers, 20);
}

#[test]
fn a_leader_that_cannot_hand_over_resigns_after_twice_the_time() {
    let mut cluster = led_by_the_first();
    // No member acknowledges anything more, so there is nobody to hand over to.
    let start_us = (0..3).map(|at| stall(&mut cluster, at)).last().unwrap();
    let answers: Vec<_> = groups().map(|group| cluster.node(0).propose(group, b"one")).collect();
    cluster.turn_until("it to lead no more", |cluster| led_by(cluster, 0) == 0);
    let resigned_ms = ms_since(&cluster, start_us);
    assert!((4_000..4_200).contains(&resigned_ms), "{resigned_ms}");
    let status = cluster.node(0).status().unwrap();
    assert_eq!((status.disk_stalls, status.stall_resignations), (1, 700));
    assert!(answers.iter().all(|answer| !matches!(answer.get(), Some(Outcome::Done(_)))));

    (1..3).for_each(|at| heal(&cluster, at));
    cluster.turn_until("the others to elect", |cluster| led_by(cluster, 1) + led_by(cluster, 2) == 700);
    cluster.done(1, GroupId(1), b"two");
    assert_eq!(cluster.asked(2, GroupId(1)), Ok(2), "what was in the others' logs is committed");
}

#[test]
fn the_only_voter_leads_on_whatever_its_disk_does() {
    let mut cluster = Cluster::new(1);
    cluster.start(0, GroupId(1), Fault::None);
    cluster.turn_until("a leader", |cluster| led_by(cluster, 0) == 1);
    stall(&mut cluster, 0);
    let answer = cluster.node(0).propose(GroupId(1), b"one");
    let until_us = cluster.now_us() + 4_500_000;
    cluster.turn_until("twice the time", |cluster| cluster.now_us() > until_us);
    assert_eq!(led_by(&cluster, 0), 1);
    assert!(cluster.node(0).status().unwrap().disk_stalled);
    heal(&cluster, 0);
    cluster.turn_until("an answer", |_| answer.get().is_some());
    assert!(matches!(answer.get(), Some(Outcome::Done(_))));
}
