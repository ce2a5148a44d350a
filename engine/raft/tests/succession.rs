//! In which order members campaign when nobody leads: one after the other, by an order that differs from group to group.
#![allow(clippy::unwrap_used)] // a test that fails may panic

use std::collections::BTreeMap;

use coracle_base::{Index, NodeId, Term};
use coracle_raft::{Config, Group, Input, Message, Restored};

const NODES: u64 = 5;
const NOW_US: u64 = 1_000_000;

/// Member `id` of a group with this order, with links to everybody but these.
fn member(id: u64, order: u64, down: &[u64]) -> Group {
    let mut config = Config::new(NodeId(id), (1..=NODES).map(NodeId));
    config.order = order;
    config.seed = order * NODES + id;
    let mut group = Group::new(config, Restored::default(), NOW_US);
    for other in (1..=NODES).filter(|other| *other != id && !down.contains(other)) {
        group.step(NOW_US, Input::LinkUp(NodeId(other)), &mut Vec::new());
    }
    group
}

fn wait_ms(group: &Group) -> u64 {
    (group.deadline_us().unwrap() - NOW_US) / 1000
}

/// How long each waits, shortest first.
fn waits(members: &[(u64, Group)]) -> Vec<(u64, u64)> {
    let mut waits: Vec<_> = members.iter().map(|(id, group)| (wait_ms(group), *id)).collect();
    waits.sort_unstable();
    waits
}

fn check_order(waits: &[(u64, u64)]) {
    for (rank, range) in [(0, 50..=100), (1, 200..=250), (2, 350..=400)] {
        if let Some((wait_ms, id)) = waits.get(rank) {
            assert!(range.contains(wait_ms), "node {id} waits {wait_ms} ms: {waits:?}");
        }
    }
    assert!(waits.iter().skip(3).all(|(wait_ms, _)| (300..=600).contains(wait_ms)), "{waits:?}");
}

fn check_spread(first: &BTreeMap<u64, u32>, groups: u32) {
    let fair = groups / first.len() as u32;
    assert!(first.values().all(|count| (fair * 3 / 4..=fair * 5 / 4).contains(count)), "{first:?}");
}

#[test]
fn when_all_are_there_and_nobody_ever_led_they_campaign_in_an_order_of_the_groups_own() {
    let mut first = BTreeMap::new();
    for order in 0..2000 {
        let members: Vec<_> = (1..=NODES).map(|id| (id, member(id, order, &[]))).collect();
        let mut waits = waits(&members);
        // The last two wait as chance has it, and may come before the third.
        let late = waits.split_off(2);
        check_order(&waits);
        assert!(late.iter().all(|(wait_ms, _)| (300..=600).contains(wait_ms)), "{late:?}");
        *first.entry(waits[0].1).or_default() += 1;
    }
    assert_eq!(first.len(), NODES as usize);
    check_spread(&first, 2000);
}

#[test]
fn whoever_is_there_early_gives_the_others_some_time() {
    for order in 0..200 {
        let early = member(1, order, &[4, 5]);
        assert!((300..=600).contains(&wait_ms(&early)), "{} ms", wait_ms(&early));
    }
}

#[test]
fn the_groups_of_a_dead_leader_go_to_all_that_are_left() {
    let mut first = BTreeMap::new();
    for order in 0..2000 {
        let mut members: Vec<_> = [2, 3, 4].into_iter().map(|id| (id, member(id, order, &[5]))).collect();
        for (_, group) in &mut members {
            let append = Message::Append {
                term: Term(1),
                prev_index: Index::ZERO,
                prev_term: Term::ZERO,
                spans: Default::default(),
                bytes: 0,
                commit: Index::ZERO,
                answer: true,
                trusted: false,
                held: false,
                changes: Vec::new(),
            };
            group.step(NOW_US, Input::Receive { from: NodeId(1), message: append }, &mut Vec::new());
            assert_eq!(group.deadline_us(), None, "a live leader's follower waits for nothing");
            group.step(NOW_US, Input::LinkDown(NodeId(1)), &mut Vec::new());
        }
        let waits = waits(&members);
        check_order(&waits);
        *first.entry(waits[0].1).or_default() += 1;
    }
    assert_eq!(first.len(), 3);
    check_spread(&first, 2000);
}

#[test]
fn a_member_that_is_asked_by_one_that_is_behind_does_not_wait_any_longer() {
    let mut group = member(1, 7, &[5]);
    let ask = |last_index, last_term| {
        let message = Message::PreVote { term: Term(9), last_index, last_term, forced: false };
        Input::Receive { from: NodeId(2), message }
    };
    let before = wait_ms(&group);
    group.step(NOW_US, ask(Index(0), Term(0)), &mut Vec::new());
    assert_eq!(wait_ms(&group), before, "its log is as good as ours: it may win");
    // Of those that are ahead of it one goes on at once: all of them would split the votes.
    for order in 0..100 {
        let jumps = [1, 3, 4].into_iter().filter(|id| {
            let terms = [(Index(1), Term(1))];
            let mut config = Config::new(NodeId(*id), (1..=NODES).map(NodeId));
            config.order = order;
            let restored =
                Restored { last: Index(3), terms: &terms, accepted_term: Term(1), ..Restored::default() };
            let mut group = Group::new(config, restored, NOW_US);
            for other in (1..=4).filter(|other| other != id) {
                group.step(NOW_US, Input::LinkUp(NodeId(other)), &mut Vec::new());
            }
            assert!(wait_ms(&group) > 0);
            group.step(NOW_US, ask(Index(2), Term(1)), &mut Vec::new());
            wait_ms(&group) == 0
        });
        assert_eq!(jumps.count(), 1, "order {order}");
    }
}
