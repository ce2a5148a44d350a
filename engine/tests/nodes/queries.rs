//! Questions that a node's own machine answers: linearizable ones, for which it asks the leader how far it must have come,
//! and those that name the entry that has to be applied.

use coracle::sim::Answer;
use coracle::{Consistency, GroupId, Index, NodeId, Outcome, Reason, Term};
use coracle_io::fake::NodeStop;

use crate::cluster::{Cluster, Fault, GROUP};

const HERE: Consistency = Consistency::LinearizableHere;

fn local(index: u64) -> Consistency {
    Consistency::Local { index: Index(index), term: None }
}

fn cluster_of(protocols: &[u16]) -> Cluster {
    let mut cluster = Cluster::with_versions(&vec![256 * 1024; protocols.len()], protocols.to_vec());
    (0..protocols.len()).for_each(|at| cluster.start(at, GROUP, Fault::None));
    cluster.done(0, GROUP, b"one");
    cluster
}

fn cluster(nodes: usize) -> Cluster {
    cluster_of(&vec![u16::MAX; nodes])
}

fn leader(cluster: &Cluster) -> usize {
    cluster.status(0).leader.unwrap().0 as usize - 1
}

fn ask(cluster: &Cluster, at: usize, consistency: Consistency) -> Answer {
    cluster.node(at).query_as(GROUP, consistency, b"")
}

/// The count, and who answered; or why not.
fn ended(answer: &Answer) -> Option<Result<(u64, NodeId), Reason>> {
    Some(match answer.get()? {
        Outcome::Done(done) => Ok((u64::from_le_bytes(done.reply.try_into().unwrap()), done.leader)),
        Outcome::NotDone(why) => Err(why.reason),
        Outcome::Unknown(why) => panic!("a question changes nothing: {why}"),
    })
}

fn asked(cluster: &mut Cluster, at: usize, consistency: Consistency) -> Result<(u64, NodeId), Reason> {
    let answer = ask(cluster, at, consistency);
    cluster.turn_until("an answer", |_| answer.get().is_some());
    ended(&answer).unwrap()
}

fn wishes(cluster: &Cluster) -> u64 {
    cluster.nodes.iter().flatten().map(|node| node.status().unwrap().read_index_wishes).sum()
}

#[test]
fn every_node_answers_by_itself_and_what_was_acknowledged_is_in_it() {
    let mut cluster = cluster(3);
    for count in 2..=20 {
        cluster.done(count as usize % 3, GROUP, b"one");
        for at in 0..3 {
            assert_eq!(asked(&mut cluster, at, HERE), Ok((count, NodeId(at as u64 + 1))));
        }
    }
    // The leader asks no other.
    assert_eq!(wishes(&cluster), 19 * 2);
}

#[test]
fn the_questions_of_many_groups_in_one_turn_are_one_message_there_and_one_back() {
    const GROUPS: u64 = 200;
    let mut cluster = Cluster::new(3);
    for group in 1..=GROUPS {
        (0..3).for_each(|at| cluster.start(at, GroupId(group), Fault::None));
    }
    let led = |cluster: &Cluster| {
        (1..=GROUPS).all(|group| {
            let status = cluster.node(2).group_status(GroupId(group));
            status.is_some_and(|status| status.leader == Some(NodeId(1)) && status.commit >= Index(1))
        })
    };
    cluster.turn_until("leaders", |cluster| {
        (1..=GROUPS).all(|group| {
            (0..3).all(|at| {
                cluster.node(at).group_status(GroupId(group)).is_some_and(|one| one.leader.is_some())
            })
        })
    });
    (0..200).for_each(|_| cluster.turn());
    (1..=GROUPS).for_each(|group| cluster.node(0).trigger_election(GroupId(group)));
    cluster.turn_until("the first to lead all", led);
    (0..1000).for_each(|_| cluster.turn());
    let frames = |cluster: &Cluster| cluster.node(2).status().unwrap().frames;
    let before = frames(&cluster);
    let answers: Vec<_> =
        (0..4 * GROUPS).map(|at| cluster.node(2).query_as(GroupId(at % GROUPS + 1), HERE, b"")).collect();
    cluster.turn_until("answers", |_| answers.iter().all(|answer| answer.get().is_some()));
    assert!(answers.iter().all(|answer| ended(answer) == Some(Ok((0, NodeId(3))))));
    assert_eq!(cluster.node(2).status().unwrap().read_index_wishes, GROUPS);
    // The other one is what it says as a voter: that it still follows.
    assert_eq!(frames(&cluster) - before, 2);
}

#[test]
fn a_leader_of_an_older_version_answers_by_itself_and_hears_no_newer_word() {
    // The first two form a majority of their own, so one of them leads.
    let mut cluster = Cluster::with_versions(&[256 * 1024; 3], vec![2, 2, u16::MAX]);
    (0..2).for_each(|at| cluster.start(at, GROUP, Fault::None));
    cluster.done(0, GROUP, b"one");
    cluster.start(2, GROUP, Fault::None);
    cluster.turn_until("a follower", |cluster| {
        cluster.node(2).group_status(GROUP).is_some_and(|status| status.commit >= Index(2))
    });
    let leads = NodeId(leader(&cluster) as u64 + 1);
    assert_eq!(asked(&mut cluster, 2, HERE), Ok((1, leads)));
    assert_eq!(asked(&mut cluster, 2, local(2)), Ok((1, NodeId(3))));
    assert_eq!(wishes(&cluster), 0);
    assert_eq!(cluster.node(2).status().unwrap().links_lost, 0);
}

/// ```text
///   leader, follower | three others
///                      elect, and acknowledge
///   follower asks the old leader, which does not know yet: a wrong answer would miss what was acknowledged
/// ```
#[test]
fn a_leader_that_another_majority_has_replaced_gives_no_index() {
    let mut cluster = cluster(5);
    let old = leader(&cluster);
    let follower = (old + 1) % 5;
    let others: Vec<usize> = (0..5).filter(|at| ![old, follower].contains(at)).collect();
    let id = |at: &usize| *at as u64 + 1;
    let far: Vec<u64> = others.iter().map(id).collect();
    cluster.turn_until("everybody", |cluster| {
        (0..5).all(|at| cluster.node(at).group_status(GROUP).is_some_and(|one| one.applied >= Index(2)))
    });
    cluster.network.partition(&[&[id(&old), id(&follower)], &far]);
    // Asked at once it may not know yet; asked all the time until the others have a leader, it never says anything wrong.
    let mut early = Vec::new();
    let elected = |cluster: &Cluster| {
        cluster.node(others[0]).group_status(GROUP).is_some_and(|one| {
            one.leader.is_some_and(|leader| others.contains(&(leader.0 as usize - 1)))
                && one.commit > Index(2)
        })
    };
    while !elected(&cluster) {
        early.push(ask(&cluster, follower, HERE));
        cluster.turn();
    }
    cluster.done(others[0], GROUP, b"one");
    let late = ask(&cluster, follower, HERE);
    let of_leader = ask(&cluster, old, HERE);
    cluster.turn_until("answers", |_| early.iter().chain([&late, &of_leader]).all(|one| one.get().is_some()));
    for answer in [&late, &of_leader] {
        assert_eq!(ended(answer), Some(Err(Reason::NoLeader)));
    }
    // What was asked before the others acknowledged may have been answered with what was so then.
    assert!(early.iter().all(|answer| matches!(ended(answer), Some(Ok((1, _)) | Err(Reason::NoLeader)))));
    // A question about this node's own state is answered, and is old.
    assert_eq!(asked(&mut cluster, follower, local(0)), Ok((1, NodeId(id(&follower)))));
    cluster.network.heal();
    cluster.turn_until("one leader", |cluster| {
        cluster.status(follower).leader == cluster.status(others[0]).leader
    });
    assert_eq!(asked(&mut cluster, follower, HERE), Ok((2, NodeId(id(&follower)))));
}

/// A wish leaves the follower, and its leader is killed before it could answer.
fn ask_in_vain(cluster: &mut Cluster, old: usize, follower: usize) -> Answer {
    let answer = ask(cluster, follower, HERE);
    cluster.nodes[follower].as_mut().unwrap().turn().unwrap();
    cluster.nodes[old] = None;
    cluster.network.stop_node(old as u64 + 1, NodeStop::Killed);
    answer
}

#[test]
fn a_question_whose_link_breaks_is_asked_again_of_the_next_leader() {
    let mut cluster = cluster(3);
    let old = leader(&cluster);
    let (follower, other) = ((old + 1) % 3, (old + 2) % 3);
    let before = wishes(&cluster);
    let answer = ask_in_vain(&mut cluster, old, follower);
    // What is acknowledged before the next leader is asked is in its index.
    cluster.turn_until("an end", |_| answer.get().is_some());
    assert_eq!(ended(&answer), Some(Ok((1, NodeId(follower as u64 + 1)))));
    assert!(wishes(&cluster) > before);
    assert_eq!(asked(&mut cluster, other, HERE), Ok((1, NodeId(other as u64 + 1))));
}

#[test]
fn a_question_that_nobody_answers_ends_when_its_time_is_up_and_no_later() {
    let mut cluster = cluster(3);
    let old = leader(&cluster);
    let (follower, other) = ((old + 1) % 3, (old + 2) % 3);
    let start_us = cluster.now_us();
    let answer = ask_in_vain(&mut cluster, old, follower);
    // Nobody else can be elected.
    cluster.kill(other);
    // Asked later, and here before it: it waits for an entry.
    cluster.turn_until("some time", |cluster| cluster.now_us() > start_us + 1_000_000);
    let later = ask(&cluster, follower, local(1000));
    cluster.turn_until("an end", |_| answer.get().is_some());
    assert_eq!(ended(&answer), Some(Err(Reason::NoLeader)));
    let took_ms = (cluster.now_us() - start_us) / 1000;
    assert!((5000..5010).contains(&took_ms), "{took_ms} ms");
    assert_eq!(ended(&later), None);
}

#[test]
fn a_local_answer_waits_for_the_entry_that_it_was_told_to_wait_for() {
    let mut cluster = cluster(3);
    let follower = (leader(&cluster) + 1) % 3;
    let me = NodeId(follower as u64 + 1);
    cluster.turn_until("the first entry", |cluster| cluster.status(follower).applied >= Index(2));
    let last = cluster.status(follower).applied.0;
    let (there, next) = (ask(&cluster, follower, local(last)), ask(&cluster, follower, local(last + 1)));
    cluster.turn_until("an answer", |_| there.get().is_some());
    assert_eq!(ended(&there), Some(Ok((1, me))));
    (0..200).for_each(|_| cluster.turn());
    assert_eq!(ended(&next), None, "nobody has proposed it");
    cluster.done(follower, GROUP, b"one");
    cluster.turn_until("an answer", |_| next.get().is_some());
    assert_eq!(ended(&next), Some(Ok((2, me))));
    // What never comes ends in time.
    assert_eq!(asked(&mut cluster, follower, local(last + 1000)), Err(Reason::NotApplied));
}

#[test]
fn a_term_tells_the_entry_from_another_one_in_its_place() {
    let mut cluster = cluster(3);
    let follower = (leader(&cluster) + 1) % 3;
    cluster.turn_until("the first entry", |cluster| cluster.status(follower).applied >= Index(2));
    let status = cluster.status(follower);
    let at = |index: Index, term: u64| Consistency::Local { index, term: Some(Term(term)) };
    let (applied, term) = (status.applied, status.term.0);
    assert_eq!(asked(&mut cluster, follower, at(applied, term)).map(|(count, _)| count), Ok(1));
    assert_eq!(asked(&mut cluster, follower, at(applied, term + 1)), Err(Reason::Overwritten));
    cluster.done(follower, GROUP, b"release");
    cluster.turn_until("a released log", |cluster| cluster.status(follower).first > applied);
    assert_eq!(asked(&mut cluster, follower, at(Index(1), term)), Err(Reason::Released));
}

#[test]
fn questions_that_a_node_answers_itself_are_bounded() {
    let mut cluster = cluster(3);
    let follower = (leader(&cluster) + 1) % 3;
    let far = local(1 << 40);
    let answers: Vec<_> = (0..5000).map(|_| ask(&cluster, follower, far)).collect();
    (0..20).for_each(|_| cluster.turn());
    let refused = answers.iter().filter(|answer| ended(answer) == Some(Err(Reason::Busy))).count();
    assert_eq!(refused, 5000 - 4096);
    // Nor do they take the place of those that ask the leader.
    assert_eq!(asked(&mut cluster, follower, HERE), Ok((1, NodeId(follower as u64 + 1))));
    cluster.turn_until("the end of their time", |_| answers.iter().all(|answer| answer.get().is_some()));
    cluster.done(follower, GROUP, b"one");
}
