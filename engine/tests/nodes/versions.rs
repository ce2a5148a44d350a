//! Clusters in the middle of an upgrade: what an older version does not know is refused by name, and never said to it.

use coracle::sim::Answer;
use coracle::{Change, Drained, Membership, NodeId, Outcome, Reason};

use crate::cluster::{Cluster, Count, Fault, GROUP};

const OLD: u16 = 1;
const NEW: u16 = 2;

/// Nodes that speak these versions; the first three make the group.
fn cluster_of(protocols: &[u16]) -> Cluster {
    let files = vec![256 * 1024; protocols.len()];
    let cluster = Cluster::with_versions(&files, protocols.to_vec());
    (0..protocols.len()).for_each(|at| start(&cluster, at));
    cluster
}

fn start(cluster: &Cluster, at: usize) {
    let founders: &[NodeId] = if at < 3 { &[NodeId(1), NodeId(2), NodeId(3)] } else { &[] };
    cluster.node(at).start_group_of(GROUP, founders, Box::new(Count(0, Fault::None)));
}

/// Goes on with this version.
fn reopen(cluster: &mut Cluster, at: usize, protocol: u16) {
    cluster.protocols[at] = protocol;
    cluster.open(at);
    cluster.turn_until("a running node", |cluster| cluster.node(at).is_running());
    start(cluster, at);
    cluster.turn_until("a group", |cluster| cluster.node(at).group_status(GROUP).is_some());
}

fn leader(cluster: &Cluster) -> Option<usize> {
    let leads = |at: &usize| {
        let status = cluster.nodes[*at].as_ref().and_then(|node| node.group_status(GROUP));
        status.is_some_and(|status| status.leader == Some(NodeId(*at as u64 + 1)))
    };
    (0..cluster.nodes.len()).find(leads)
}

/// Another try while there is no leader, or a new one; else why not.
fn outcome(cluster: &mut Cluster, ask: impl Fn(&Cluster) -> Answer) -> Option<Reason> {
    loop {
        let answer = ask(cluster);
        cluster.turn_until("an answer", |_| answer.get().is_some());
        match answer.get().unwrap() {
            Outcome::Done(_) => return None,
            Outcome::NotDone(why) if matches!(why.reason, Reason::ChangeUnderWay | Reason::NoLeader) => {
                cluster.turn();
            }
            Outcome::NotDone(why) => return Some(why.reason),
            Outcome::Unknown(why) => panic!("{why}"),
        }
    }
}

fn voters(cluster: &Cluster, at: usize) -> Vec<u64> {
    let status = cluster.status(at);
    let voters = status.members.iter().filter(|member| member.membership() == Membership::Voter);
    voters.map(|member| member.id.0).collect()
}

#[test]
fn members_and_leaders_stay_while_a_member_runs_an_older_version_and_it_is_told_nothing_of_them() {
    let mut cluster = cluster_of(&[NEW, NEW, OLD, NEW]);
    // One of those that are upgraded has to lead.
    cluster.stop(2);
    cluster.done(0, GROUP, b"one");
    reopen(&mut cluster, 2, OLD);
    cluster.done(2, GROUP, b"one");
    let first = leader(&cluster).unwrap();
    let old = Some(Reason::NeedsUpgrade(NodeId(3)));
    let join = [Change::Promotable(NodeId(4))];
    let joins = |cluster: &Cluster, at: usize| cluster.node(at).change_members(GROUP, &join, false);
    // Through either of the new ones: the answer comes back whole from the other.
    for at in 0..2 {
        assert_eq!(outcome(&mut cluster, |cluster| joins(cluster, at)), old);
        let forced = [Change::Remove(NodeId(3))];
        assert_eq!(
            outcome(&mut cluster, |cluster| cluster.node(at).change_members(GROUP, &forced, true)),
            old
        );
        for to in [None, Some(NodeId(2 - first as u64)), Some(NodeId(3))] {
            assert_eq!(outcome(&mut cluster, |cluster| cluster.node(at).transfer_leadership(GROUP, to)), old);
        }
    }
    (0..2).for_each(|at| cluster.node(at).trigger_election(GROUP));
    let mut drained = cluster.node(first).drain();
    let other = cluster.node(1 - first).drain();
    (0..1000).for_each(|_| cluster.turn());
    assert_eq!(
        drained.take().unwrap().unwrap(),
        Drained { handing_over: 0, kept: 1 },
        "nobody may take it over"
    );
    assert_eq!(other.wait().unwrap(), Drained::default());
    assert_eq!(leader(&cluster), Some(first));

    // One that is down holds up nobody.
    cluster.stop(2);
    cluster.turn_until("a link down", |cluster| cluster.node(first).status().unwrap().links_up == 2);
    assert_eq!(outcome(&mut cluster, |cluster| joins(cluster, 0)), None);
    cluster.turn_until("a promotion", |cluster| voters(cluster, first) == [1, 2, 3, 4]);
    // As it was before it stands still, and its link with it: nothing that it does not know is said to it.
    reopen(&mut cluster, 2, OLD);
    let before = cluster.status(2).last;
    for _ in 0..8 {
        cluster.done(0, GROUP, b"one");
        (0..1000).for_each(|_| cluster.turn());
        assert_eq!((voters(&cluster, 2), cluster.status(2).last), (vec![1, 2, 3], before));
    }
    // Nor by a snapshot, which tells the members.
    cluster.done(0, GROUP, b"release");
    cluster.turn_until("a released log", |cluster| cluster.status(first).first > before);
    (0..8000).for_each(|_| cluster.turn());
    assert_eq!((voters(&cluster, 2), cluster.status(2).last), (vec![1, 2, 3], before));
    let status = cluster.node(2).status().unwrap();
    assert_eq!((status.links_up, status.links_lost), (3, 0), "no link is closed for what came over it");
    // Upgraded, it hears all.
    cluster.stop(2);
    reopen(&mut cluster, 2, NEW);
    cluster.turn_until("its members", |cluster| voters(cluster, 2) == [1, 2, 3, 4]);
    let to = Some(NodeId(3));
    assert_eq!(outcome(&mut cluster, |cluster| cluster.node(0).transfer_leadership(GROUP, to)), None);
}

#[test]
fn a_wish_is_not_sent_to_a_leader_that_would_take_it_for_a_command() {
    let mut cluster = cluster_of(&[OLD, OLD, NEW]);
    cluster.stop(2);
    cluster.turn_until("a leader", |cluster| leader(cluster).is_some());
    reopen(&mut cluster, 2, NEW);
    cluster.done(2, GROUP, b"one");
    let leader = leader(&cluster).unwrap();
    assert!(leader < 2);
    let last = cluster.status(leader).last;
    let change = [Change::Learner(NodeId(2))];
    let asked = outcome(&mut cluster, |cluster| cluster.node(2).change_members(GROUP, &change, false));
    assert_eq!(asked, Some(Reason::NeedsUpgrade(NodeId(leader as u64 + 1))));
    (0..200).for_each(|_| cluster.turn());
    assert_eq!(cluster.status(leader).last, last, "nothing of it is in the log");
}
