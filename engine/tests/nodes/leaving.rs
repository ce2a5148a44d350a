//! Named groups whose members go: the place of one is given to another directory.

use coracle::{Change, NodeId};
use coracle_io::fake::FakeDisk;

use crate::cluster::Cluster;
use crate::members::done;
use crate::names::{DIRECTORY, look_up, made, open, runs};

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
