//! Groups whose members change, and whose leadership is handed over, on whole nodes.

use coracle::sim::Answer;
use coracle::{Change, Drained, GroupId, Membership, NodeId, Outcome, Reason};

use crate::cluster::{Cluster, Count, Fault, GROUP};

/// Nodes of which the first `founders` make the group; the others wait to be made members.
fn group_of(nodes: u64, founders: u64) -> Cluster {
    let mut cluster = Cluster::new(nodes);
    let ids: Vec<NodeId> = (1..=founders).map(NodeId).collect();
    for at in 0..nodes as usize {
        let named = if at < founders as usize { &ids[..] } else { &[] };
        cluster.node(at).start_group_of(GROUP, named, Box::new(Count(0, Fault::None)));
    }
    cluster.turn_until("a leader", |cluster| leader(cluster, GROUP).is_some());
    cluster
}

pub(crate) fn leader(cluster: &Cluster, group: GroupId) -> Option<usize> {
    let leads = |at: &usize| {
        let node = cluster.nodes[*at].as_ref();
        let status = node.and_then(|node| node.group_status(group));
        status.is_some_and(|status| status.leader == Some(NodeId(*at as u64 + 1)))
    };
    (0..cluster.nodes.len()).find(leads)
}

/// The outcome of a wish, tried again while another one is under way.
pub(crate) fn done(cluster: &mut Cluster, ask: impl Fn(&Cluster) -> Answer) -> Result<NodeId, Reason> {
    loop {
        let answer = ask(cluster);
        cluster.turn_until("an answer", |_| answer.get().is_some());
        match answer.get().unwrap() {
            Outcome::Done(done) => return Ok(done.leader),
            Outcome::NotDone(why)
                if matches!(why.reason, Reason::ChangeUnderWay | Reason::NoLeader | Reason::NotJoined(_)) =>
            {
                cluster.turn();
            }
            Outcome::NotDone(why) => return Err(why.reason),
            Outcome::Unknown(why) => panic!("{why}"),
        }
    }
}

fn change(cluster: &mut Cluster, at: usize, changes: &[Change]) -> Result<NodeId, Reason> {
    done(cluster, |cluster| cluster.node(at).change_members(GROUP, changes, false))
}

/// Voters as a node sees them; with a minus, who is none.
pub(crate) fn members(cluster: &Cluster, at: usize) -> Vec<i64> {
    let status = cluster.status(at);
    let word = |member: &coracle::Member| match member.membership() {
        Membership::Voter => member.id.0 as i64,
        _ => -(member.id.0 as i64),
    };
    status.members.iter().map(word).collect()
}

pub(crate) fn agree(cluster: &mut Cluster, at: &[usize], count: u64) {
    cluster.turn_until("all applied", |cluster| {
        let states: Vec<_> = at.iter().map(|at| cluster.status(*at)).collect();
        states.iter().all(|one| one.applied == states[0].last && one.digest == states[0].digest)
    });
    assert_eq!(cluster.asked(at[0], GROUP), Ok(count));
}

#[test]
fn a_node_joins_by_snapshot_is_promoted_and_outlives_the_founders() {
    let mut cluster = group_of(4, 3);
    (0..20).for_each(|_| cluster.done(0, GROUP, b"one"));
    cluster.done(0, GROUP, b"release");
    let first = cluster.status(0).first;
    cluster.turn_until("a released log", |cluster| cluster.status(0).first > first);
    assert!(cluster.status(3).members.is_empty());
    // Asked of a node that does not lead, as often as not: wishes find their leader.
    assert!(change(&mut cluster, 1, &[Change::Promotable(NodeId(4))]).is_ok());
    cluster.turn_until("a promotion", |cluster| (0..4).all(|at| members(cluster, at) == [1, 2, 3, 4]));
    assert_eq!(change(&mut cluster, 2, &[Change::Promotable(NodeId(4))]), Err(Reason::NothingToChange));
    // Two of the founders go at once, the leader among them: a joint phase, which ends by itself.
    let old = leader(&cluster, GROUP).unwrap();
    let other = (0..3).find(|at| *at != old).unwrap();
    let gone = [old, other].map(|at| Change::Remove(NodeId(at as u64 + 1)));
    assert!(change(&mut cluster, 3, &gone).is_ok());
    let left: Vec<usize> = (0..4).filter(|at| ![old, other].contains(at)).collect();
    let ids: Vec<i64> = left.iter().map(|at| *at as i64 + 1).collect();
    cluster.turn_until("two members", |cluster| left.iter().all(|at| members(cluster, *at) == ids));
    cluster.turn_until("their leader", |cluster| leader(cluster, GROUP).is_some_and(|at| left.contains(&at)));
    // They go on without the others, and know after a restart who they are.
    cluster.stop(old);
    cluster.stop(other);
    cluster.done(3, GROUP, b"one");
    agree(&mut cluster, &left, 22);
    for at in &left {
        cluster.stop(*at);
        cluster.open(*at);
        cluster.turn_until("a running node", |cluster| cluster.node(*at).is_running());
        // Whatever they are told: the log knows better.
        cluster.node(*at).start_group(GROUP, Box::new(Count(0, Fault::None)));
        cluster.turn_until("a group", |cluster| cluster.node(*at).group_status(GROUP).is_some());
        assert_eq!(members(&cluster, *at), ids);
    }
    cluster.done(left[0], GROUP, b"one");
    agree(&mut cluster, &left, 23);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let mut cluster = group_of(3, 3);
    let refused = |cluster: &mut Cluster, changes: &[Change]| change(cluster, 0, changes).unwrap_err();
    let all = [1, 2, 3].map(|id| Change::Remove(NodeId(id)));
    assert_eq!(refused(&mut cluster, &all), Reason::LastVoter);
    assert_eq!(refused(&mut cluster, &[Change::Voter(NodeId(9))]), Reason::NotAMember);
    assert_eq!(refused(&mut cluster, &[Change::Remove(NodeId(9))]), Reason::NotAMember);
    assert_eq!(refused(&mut cluster, &[Change::Voter(NodeId(2))]), Reason::NothingToChange);
    cluster.stop(2);
    // Two of three are there; of the two that would be left, one.
    let up = leader(&cluster, GROUP).filter(|at| *at != 2);
    if up.is_none() {
        cluster.turn_until("a leader", |cluster| leader(cluster, GROUP).is_some_and(|at| at != 2));
    }
    cluster.turn_until("a link down", |cluster| cluster.node(0).group_status(GROUP).is_some());
    (0..2000).for_each(|_| cluster.turn());
    assert_eq!(refused(&mut cluster, &[Change::Remove(NodeId(2))]), Reason::NoLiveQuorum);
    let transfer = done(&mut cluster, |cluster| cluster.node(0).transfer_leadership(GROUP, Some(NodeId(3))));
    assert_eq!(transfer, Err(Reason::NoLiveQuorum));
}

#[test]
fn leadership_goes_where_it_is_wanted_and_no_command_is_refused_for_it() {
    let mut cluster = group_of(3, 3);
    cluster.done(0, GROUP, b"one");
    let mut count = 1;
    for round in 0..6u64 {
        let to = NodeId(round % 3 + 1);
        // Commands from all nodes while it is under way: forwarded ones, too.
        let wish = cluster.node((round % 2) as usize).transfer_leadership(GROUP, Some(to));
        let mut answers = Vec::new();
        for turn in 0..40 {
            answers.push(cluster.node(turn % 3).propose(GROUP, b"one"));
            cluster.turn();
        }
        cluster
            .turn_until("answers", |_| wish.get().is_some() && answers.iter().all(|one| one.get().is_some()));
        let Some(Outcome::Done(done)) = wish.get() else { panic!("{:?}", wish.get()) };
        assert_eq!(done.leader, to);
        for answer in &answers {
            // A leader that lost a command to another's term would say so; one on its way to it is not.
            match answer.get() {
                Some(Outcome::Done(_)) => count += 1,
                Some(Outcome::NotDone(why)) => assert_eq!(why.reason, Reason::NoLeader),
                other => panic!("{other:?}"),
            }
        }
        assert!(answers.iter().filter(|one| !matches!(one.get(), Some(Outcome::Done(_)))).count() <= 4);
    }
    agree(&mut cluster, &[0, 1, 2], count);
}

#[test]
fn a_node_is_drained_of_all_its_groups_at_once() {
    const GROUPS: u64 = 200;
    let mut cluster = Cluster::new(3);
    for group in 1..=GROUPS {
        (0..3).for_each(|at| cluster.start(at, GroupId(group), Fault::None));
    }
    let led = |cluster: &Cluster, at: usize| {
        (1..=GROUPS).filter(|one| leader(cluster, GroupId(*one)) == Some(at)).count()
    };
    let all = |cluster: &Cluster| (1..=GROUPS).all(|group| leader(cluster, GroupId(group)).is_some());
    cluster.turn_until("leaders", all);
    let node = (0..3).max_by_key(|at| led(&cluster, *at)).unwrap();
    let before = led(&cluster, node);
    assert!(before > 20, "it leads {before}");
    let batches =
        |cluster: &Cluster| (0..3).map(|at| cluster.node(at).status().unwrap().batches).sum::<u64>();
    let begun = batches(&cluster);
    let drained = cluster.node(node).drain();
    cluster.turn_until("another leader of each", |cluster| led(cluster, node) == 0 && all(cluster));
    assert_eq!(drained.wait().unwrap(), Drained { handing_over: before, kept: 0 });
    // Many elections share a batch: far fewer than one a group and voter.
    let used = batches(&cluster) - begun;
    assert!(used < before as u64 * 2, "{used} batches for {before} groups");
    // An operator wants one of them back, once it has what the new leader wrote.
    (0..200).for_each(|_| cluster.turn());
    cluster.node(node).trigger_election(GROUP);
    cluster.turn_until("leadership", |cluster| leader(cluster, GROUP) == Some(node));
}
