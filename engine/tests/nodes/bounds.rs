//! Nothing that waits in a shard grows without a bound: what is over it is refused, and the rest is answered later.

use coracle::sim::Answer;
use coracle::{Outcome, Reason};

use crate::cluster::{Cluster, Fault, GROUP};

/// Three nodes with a group, and the places of its leader and of another node.
fn led() -> (Cluster, usize, usize) {
    let mut cluster = Cluster::new(3);
    (0..3).for_each(|at| cluster.start(at, GROUP, Fault::None));
    cluster.done(0, GROUP, b"one");
    let leader = cluster.status(0).leader.unwrap().0 as usize - 1;
    cluster.turn_until("quiet", |cluster| {
        (0..3).all(|at| cluster.status(at).applied == cluster.status(leader).last)
    });
    (cluster, leader, (leader + 1) % 3)
}

/// Questions of so many bytes, in parts that the inbox takes, with a turn after each.
fn ask(cluster: &mut Cluster, at: usize, parts: usize, count: usize, bytes: usize) -> Vec<Answer> {
    let mut asked = Vec::new();
    for _ in 0..parts {
        asked.extend((0..count).map(|_| cluster.node(at).query(GROUP, &vec![0; bytes])));
        cluster.turn();
    }
    asked
}

/// How many were refused as too many, and how many wait.
fn refused_and_waiting(asked: &[Answer]) -> (usize, usize) {
    let is_busy = |end: &Outcome| matches!(end, Outcome::NotDone(why) if why.reason == Reason::Busy);
    let refused = asked.iter().filter(|one| one.get().as_ref().is_some_and(is_busy)).count();
    (refused, asked.iter().filter(|one| one.get().is_none()).count())
}

#[test]
fn questions_that_wait_for_a_quorum_are_bounded() {
    for (parts, count, bytes, bound) in [(7, 1000, 1, 4096), (10, 40, 256 * 1024, 256)] {
        let (mut cluster, leader, other) = led();
        let (third, id) = (3 - leader - other, |at: usize| at as u64 + 1);
        cluster.network.partition(&[&[id(leader)], &[id(other), id(third)]]);
        let asked = ask(&mut cluster, leader, parts, count, bytes);
        let (refused, waiting) = refused_and_waiting(&asked);
        assert!(waiting > 0 && waiting <= bound, "{waiting} wait");
        assert_eq!(refused + waiting, parts * count);
        cluster.network.heal();
        cluster.turn_until("answers", |_| refused_and_waiting(&asked).1 == 0);
        // What was counted is given back: as many may wait again.
        cluster.turn_until("a leader", |cluster| cluster.status(leader).leader.is_some());
        assert!(cluster.asked(leader, GROUP).is_ok());
    }
}

#[test]
fn questions_for_a_leader_that_does_not_read_are_bounded() {
    let (mut cluster, leader, other) = led();
    cluster.network.block(other as u64 + 1, leader as u64 + 1);
    let asked = ask(&mut cluster, other, 8, 20, 256 * 1024);
    let (refused, waiting) = refused_and_waiting(&asked);
    assert!(refused > 0 && waiting > 0, "{refused} refused, {waiting} wait");
}

#[test]
fn what_no_file_holds_is_refused_and_a_run_is_as_long_as_a_file_takes() {
    let mut cluster = Cluster::with_files(&[64 * 1024]);
    cluster.start(0, GROUP, Fault::None);
    cluster.done(0, GROUP, &[1; 50_000]);
    assert_eq!(cluster.once(0, GROUP, &[2; 62_000]), Some(Reason::TooLarge));
    let batch: Vec<(u64, Vec<u8>)> =
        (0..20).map(|tag| (tag, vec![3; if tag == 7 { 90_000 } else { 10_000 }])).collect();
    cluster.node(0).propose_all(GROUP, &batch);
    let mut ends = Vec::new();
    for _ in 0..1000 {
        cluster.turn();
        ends.extend(cluster.node(0).answers());
    }
    assert_eq!(ends.len(), 20);
    for (tag, end) in ends {
        let is_too_large = matches!(&end, Outcome::NotDone(why) if why.reason == Reason::TooLarge);
        assert!(if tag == 7 { is_too_large } else { matches!(end, Outcome::Done(_)) }, "{tag}: {end:?}");
    }
    assert_eq!(cluster.asked(0, GROUP), Ok(20));
}

#[test]
fn a_member_with_smaller_files_than_its_leader_outlives_what_they_do_not_hold() {
    let mut cluster = Cluster::with_files(&[2 << 20, 2 << 20, 64 * 1024]);
    (0..2).for_each(|at| cluster.start(at, GROUP, Fault::None));
    cluster.done(0, GROUP, b"one");
    cluster.start(2, GROUP, Fault::None);
    for command in [[7; 400].as_slice(), &[8; 100_000], &[9; 400]] {
        cluster.done(0, GROUP, command);
    }
    for _ in 0..2000 {
        cluster.turn();
    }
    assert!(cluster.status(2).last < cluster.status(0).last, "the large one cannot be there");
    assert_eq!(cluster.asked(0, GROUP), Ok(4));
}
