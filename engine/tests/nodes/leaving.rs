//! Named groups whose members go: a node is taken out of one, or its place is given to another directory.

use coracle::{Change, NodeId};
use coracle_io::fake::FakeDisk;

use crate::cluster::Cluster;
use crate::members::done;
use crate::names::{DIRECTORY, look_up, made, open, runs, until_runs};

/// A node's place is given to another directory while a group begins that the old one founds, too: wherever the two meet, the
/// new one never becomes a member by the old one's name.
#[test]
fn a_place_that_is_given_away_while_a_group_begins_makes_no_second_member_of_it() {
    let (mut given_away, mut held) = (0, 0);
    for turns in 0..14 {
        let mut cluster = Cluster::named(3);
        made(&mut cluster, 0, "before", &[1]);
        cluster.kill(2);
        (0..8000).for_each(|_| cluster.turn());
        let removed = done(&mut cluster, |cluster| {
            cluster.node(0).change_members(DIRECTORY, &[Change::Remove(NodeId(3))], false)
        });
        assert!(removed.is_ok());
        (0..200).for_each(|_| cluster.turn());
        // Founded by the directory that node 2 still knows.
        let (mut wish, mut given) = (None, None);
        for turn in 0..14 {
            if turn == 6 {
                wish = Some(cluster.node(1).create_group("q", &[1, 2, 3].map(NodeId), b""));
            }
            if turn == turns {
                given = Some(cluster.node(0).replace_node(NodeId(3), false));
            }
            cluster.turn();
        }
        let (wish, given) = (wish.unwrap(), given.unwrap());
        let given = (0..4000).find_map(|_| {
            cluster.turn();
            given()
        });
        if given.unwrap().is_err() {
            held += 1;
            continue;
        }
        cluster.turn_until("an end", |_| wish.get().is_some());
        let Some(group) = look_up(&mut cluster, 0, "q").map(|group| group.id()) else { continue };
        given_away += 1;
        cluster.disks[2] = FakeDisk::new(33);
        open(&mut cluster, 2);
        // Whoever knows the new directory and leads the group would call it a member.
        for _ in 0..4 {
            let _ = cluster.node(0).transfer_leadership(group, Some(NodeId(1)));
            (0..1500).for_each(|_| cluster.turn());
        }
        assert!(!runs(&cluster, 2, group), "given away after {turns} turns: an empty directory is a member");
    }
    assert!(given_away > 0 && held > 0, "{given_away} times given away, {held} times held");
}

/// Promises are kept, all else goes; and comes back when the node is a member again, also after a restart.
#[test]
fn a_member_that_is_taken_out_gives_its_state_up_and_gets_it_back_with_its_place() {
    // With the log of its own removal, or told of it after it was away.
    for is_away in [false, true] {
        let mut cluster = Cluster::named(4);
        let group = made(&mut cluster, 0, "q", &[1, 2, 3]).id();
        until_runs(&mut cluster, &[0, 1, 2], group);
        (0..30).for_each(|_| cluster.done(0, group, b"one"));
        cluster
            .turn_until("all of it", |cluster| cluster.node(2).group_status(group).unwrap().applied.0 > 30);
        if is_away {
            cluster.kill(2);
        }
        let change = |cluster: &mut Cluster, change: Change| {
            let changed = done(cluster, |cluster| cluster.node(0).change_members(group, &[change], false));
            assert!(changed.is_ok(), "{change:?}: {changed:?}");
        };
        change(&mut cluster, Change::Remove(NodeId(3)));
        if is_away {
            open(&mut cluster, 2);
        }
        let has_nothing = |cluster: &Cluster, at: usize| {
            let status = cluster.node(at).group_status(group);
            status.is_some_and(|one| one.first == one.last.next() && one.last.0 > 30)
        };
        cluster.turn_until("nothing left", |cluster| has_nothing(cluster, 2));
        assert!(!has_nothing(&cluster, 0) && !has_nothing(&cluster, 1));
        let promised = cluster.node(2).group_status(group).unwrap();
        for _ in 0..2 {
            cluster.kill(2);
            open(&mut cluster, 2);
            until_runs(&mut cluster, &[2], group);
            (0..4000).for_each(|_| cluster.turn());
        }
        let status = cluster.node(2).group_status(group).unwrap();
        assert_eq!((status.term, status.last, status.first), (promised.term, promised.last, promised.first));
        assert_eq!((status.poisoned, status.restoring, status.needs_snapshot), (None, false, None));
        assert_eq!(cluster.node(2).status().unwrap().groups_restoring, 0);

        (0..10).for_each(|_| cluster.done(0, group, b"one"));
        change(&mut cluster, Change::Promotable(NodeId(3)));
        cluster.turn_until("a voter with its state", |cluster| {
            let status = cluster.node(2).group_status(group).unwrap();
            status.members.is_voter(NodeId(3)) && status.applied == status.last && status.last.0 > 40
        });
        // It counts, and answers from its own machine.
        cluster.kill(1);
        cluster.done(2, group, b"one");
        cluster.kill(0);
        open(&mut cluster, 1);
        cluster.done(2, group, b"one");
        assert_eq!(cluster.asked(2, group), Ok(42));
    }
}
