//! Groups with names: nodes begin and end them by themselves, as the directory says, whoever was away meanwhile.

use std::collections::BTreeSet;

use coracle::sim::NameAnswer;
use coracle::{
    Change, Created, Deleted, GroupId, Index, NameChange, NamedGroup, NodeId, Outcome, Reason, Wire,
};
use coracle_io::fake::FakeDisk;

use crate::cluster::Cluster;
use crate::members::{done, leader};

pub(crate) const DIRECTORY: GroupId = GroupId(0);

/// How a wish ended, tried again while it certainly was not done.
fn ended<R: Wire>(cluster: &mut Cluster, ask: impl Fn(&Cluster) -> NameAnswer<R>) -> R {
    loop {
        let answer = ask(cluster);
        cluster.turn_until("an answer", |_| answer.get().is_some());
        match answer.get().unwrap() {
            Outcome::Done(done) => return done.reply,
            Outcome::NotDone(why) => assert!(matches!(why.reason, Reason::NoLeader | Reason::Busy), "{why}"),
            Outcome::Unknown(why) => panic!("{why}"),
        }
    }
}

fn create(cluster: &mut Cluster, at: usize, name: &str, members: &[u64], argument: &[u8]) -> Created {
    let members: Vec<NodeId> = members.iter().copied().map(NodeId).collect();
    ended(cluster, |cluster| cluster.node(at).create_group(name, &members, argument))
}

pub(crate) fn made(cluster: &mut Cluster, at: usize, name: &str, members: &[u64]) -> NamedGroup {
    match create(cluster, at, name, members, b"") {
        Created::New(group) => group,
        other => panic!("{name}: {other:?}"),
    }
}

fn delete(cluster: &mut Cluster, at: usize, name: &str) -> Deleted {
    ended(cluster, |cluster| cluster.node(at).delete_group(name, None))
}

pub(crate) fn look_up(cluster: &mut Cluster, at: usize, name: &str) -> Option<NamedGroup> {
    ended(cluster, |cluster| cluster.node(at).look_up(name, false))
}

pub(crate) fn runs(cluster: &Cluster, at: usize, group: GroupId) -> bool {
    cluster.nodes[at].as_ref().is_some_and(|node| node.group_status(group).is_some())
}

pub(crate) fn until_runs(cluster: &mut Cluster, at: &[usize], group: GroupId) {
    cluster.turn_until("a running group", |cluster| at.iter().all(|at| runs(cluster, *at, group)));
}

fn until_gone(cluster: &mut Cluster, at: &[usize], group: GroupId) {
    cluster.turn_until("a removed group", |cluster| at.iter().all(|at| !runs(cluster, *at, group)));
}

pub(crate) fn open(cluster: &mut Cluster, at: usize) {
    cluster.open(at);
    cluster.turn_until("a running node", |cluster| cluster.node(at).is_running());
}

#[test]
fn a_named_group_runs_on_its_members_and_again_after_a_restart() {
    let mut cluster = Cluster::named(4);
    let group = made(&mut cluster, 3, "orders", &[1, 2, 3]);
    until_runs(&mut cluster, &[0, 1, 2], group.id());
    cluster.done(0, group.id(), b"one");
    cluster.done(1, group.id(), b"release");
    assert!(!runs(&cluster, 3, group.id()), "it is no member");
    cluster.turn_until("members that the log knows", |cluster| {
        let status = |at: usize| cluster.node(at).group_status(group.id()).unwrap();
        (0..3).all(|at| status(at).members_index > Index(0))
    });
    assert_eq!(cluster.once(3, group.id(), b"one"), Some(Reason::NoGroup));
    assert_eq!(look_up(&mut cluster, 3, "orders"), Some(group.clone()));
    for at in 0..4 {
        match at {
            0 | 1 => cluster.kill(at),
            _ => cluster.stop(at),
        }
    }
    (0..4).for_each(|at| cluster.open(at));
    until_runs(&mut cluster, &[0, 1, 2], group.id());
    cluster.done(2, group.id(), b"one");
    assert_eq!(cluster.asked(0, group.id()), Ok(3));
    // One that this program has no machine for is there, and runs nowhere.
    let Created::New(unknown) = create(&mut cluster, 0, "unknown", &[], b"unknown") else { panic!() };
    (0..200).for_each(|_| cluster.turn());
    assert!((0..4).all(|at| !runs(&cluster, at, unknown.id())));
    assert_eq!(unknown.members().len(), 4);
}

#[test]
fn of_two_nodes_that_make_one_name_at_once_one_does() {
    let mut cluster = Cluster::named(3);
    for (round, arguments) in [[b"x", b"x"], [b"x", b"y"]].into_iter().enumerate() {
        let name = format!("name {round}");
        made(&mut cluster, 0, &format!("before {round}"), &[]);
        let answers = [0, 1].map(|at| cluster.node(at).create_group(&name, &[], arguments[at]));
        cluster.turn_until("answers", |_| answers.iter().all(|answer| answer.get().is_some()));
        let replies: Vec<Created> = answers
            .iter()
            .map(|answer| match answer.get() {
                Some(Outcome::Done(done)) => done.reply,
                other => panic!("{other:?}"),
            })
            .collect();
        let new = replies.iter().find_map(|one| match one {
            Created::New(group) => Some(group.clone()),
            _ => None,
        });
        let new = new.unwrap();
        let other = if round == 0 { Created::Same(new.clone()) } else { Created::Taken(new.clone()) };
        assert!(replies.contains(&other), "{replies:?}");
        until_runs(&mut cluster, &[0, 1, 2], new.id());
    }
}

#[test]
fn a_deleted_group_is_gone_from_every_node_and_says_so() {
    let mut cluster = Cluster::named(3);
    let old = made(&mut cluster, 0, "q", &[]);
    until_runs(&mut cluster, &[0, 1, 2], old.id());
    (0..20).for_each(|_| cluster.done(0, old.id(), b"one"));
    cluster.turn_until("a leader", |cluster| leader(cluster, old.id()).is_some());
    let leads = leader(&cluster, old.id()).unwrap();
    let late = cluster.node((leads + 1) % 3).propose(old.id(), b"late");
    assert_eq!(delete(&mut cluster, 1, "q"), Deleted::Gone(old.clone()));
    assert_eq!(delete(&mut cluster, 1, "q"), Deleted::NotThere);
    let new = made(&mut cluster, 2, "q", &[]);
    assert!(new.id() != old.id() && new.generation() > old.generation());
    until_gone(&mut cluster, &[0, 1, 2], old.id());
    until_runs(&mut cluster, &[0, 1, 2], new.id());
    cluster.turn_until("its end", |_| late.get().is_some());
    for at in 0..3 {
        assert_eq!(cluster.once(at, old.id(), b"one"), Some(Reason::Deleted));
        assert_eq!(cluster.asked(at, old.id()), Err(Reason::Deleted));
        assert_eq!(cluster.once(at, GroupId(new.id().0 + 1), b"one"), Some(Reason::NoGroup), "never drawn");
    }
    cluster.done(0, new.id(), b"one");
    assert_eq!(cluster.asked(1, new.id()), Ok(1), "nothing of the old one");
    let other = ended(&mut cluster, |cluster| cluster.node(0).delete_group("q", Some(old.id())));
    assert_eq!(other, Deleted::Other(new));
}

/// The directory's leader dies with the wish: whatever became of it, the next try says the same everywhere.
#[test]
fn a_wish_whose_end_is_unknown_is_made_once() {
    for turns in 0..12 {
        let mut cluster = Cluster::named(3);
        made(&mut cluster, 0, "before", &[]);
        cluster.turn_until("a leader", |cluster| leader(cluster, DIRECTORY).is_some());
        let leads = leader(&cluster, DIRECTORY).unwrap();
        let other = (leads + 1) % 3;
        let answer = cluster.node(other).create_group("name", &[], b"");
        (0..turns).for_each(|_| cluster.turn());
        cluster.kill(leads);
        cluster.turn_until("an end", |_| answer.get().is_some());
        let second = create(&mut cluster, other, "name", &[], b"");
        let (Created::New(group) | Created::Same(group)) = second.clone() else { panic!("{second:?}") };
        if let Some(Outcome::Done(first)) = answer.get() {
            assert_eq!(
                (&first.reply, &second),
                (&Created::New(group.clone()), &Created::Same(group.clone()))
            );
        }
        open(&mut cluster, leads);
        until_runs(&mut cluster, &[0, 1, 2], group.id());
        assert_eq!(group.generation(), 2, "after {turns} turns: drawn once");
    }
}

#[test]
fn who_was_away_for_the_end_of_a_group_and_the_next_of_that_name_runs_the_next_alone() {
    // Once with the directory's log, once with its snapshot.
    for others in [0, 700] {
        let mut cluster = Cluster::named(3);
        let kept = made(&mut cluster, 0, "kept", &[]);
        let old = made(&mut cluster, 0, "q", &[]);
        until_runs(&mut cluster, &[0, 1, 2], old.id());
        (0..10).for_each(|_| cluster.done(0, old.id(), b"old"));
        cluster.turn_until("all of it", |cluster| {
            cluster.node(2).group_status(old.id()).unwrap().applied.0 > 10
        });
        cluster.kill(2);
        delete(&mut cluster, 0, "q");
        let between = made(&mut cluster, 1, "q", &[]);
        delete(&mut cluster, 0, "q");
        let new = made(&mut cluster, 0, "q", &[]);
        for other in 0..others {
            made(&mut cluster, other % 2, "other", &[1]);
            delete(&mut cluster, other % 2, "other");
        }
        cluster.done(0, new.id(), b"new");
        open(&mut cluster, 2);
        until_gone(&mut cluster, &[2], old.id());
        until_runs(&mut cluster, &[2], new.id());
        until_runs(&mut cluster, &[2], kept.id());
        cluster.turn_until("the new entry", |cluster| {
            cluster.node(2).group_status(new.id()).unwrap().applied
                == cluster.node(0).group_status(new.id()).unwrap().last
        });
        assert!(!runs(&cluster, 2, between.id()) && !runs(&cluster, 2, old.id()));
        assert_eq!(cluster.once(2, old.id(), b"one"), Some(Reason::Deleted));
        assert_eq!(cluster.asked(2, new.id()), Ok(1));
        cluster.kill(2);
        open(&mut cluster, 2);
        until_runs(&mut cluster, &[2], new.id());
        assert!(!runs(&cluster, 2, old.id()), "its end is durable");
    }
}

/// A node that has removed a group, and whose directory is older than that after a restart, does not begin it anew: it would
/// have forgotten its votes.
#[test]
fn a_removed_group_does_not_begin_anew_while_the_directory_is_old() {
    let mut cluster = Cluster::named(3);
    let old = made(&mut cluster, 0, "q", &[]);
    // A snapshot of the directory that has it.
    for _ in 0..300 {
        made(&mut cluster, 0, "other", &[2]);
        delete(&mut cluster, 0, "other");
    }
    until_runs(&mut cluster, &[0, 1, 2], old.id());
    let first = cluster.node(0).group_status(DIRECTORY).unwrap().first;
    assert!(first.0 > 1, "the directory's log was released");
    delete(&mut cluster, 0, "q");
    until_gone(&mut cluster, &[0, 1, 2], old.id());
    (0..400).for_each(|_| cluster.turn());
    (0..3).for_each(|at| cluster.kill(at));
    // Alone it does not know that anything after the snapshot was committed.
    open(&mut cluster, 0);
    (0..4000).for_each(|_| cluster.turn());
    let here = ended_here(&mut cluster, 0, "q");
    assert_eq!(here, Some(old.clone()), "its directory is old");
    assert!(!runs(&cluster, 0, old.id()));
    (1..3).for_each(|at| cluster.open(at));
    cluster.turn_until("news", |cluster| cluster.node(0).group_status(DIRECTORY).unwrap().leader.is_some());
    assert_eq!(look_up(&mut cluster, 0, "q"), None);
    (0..400).for_each(|_| cluster.turn());
    assert!((0..3).all(|at| !runs(&cluster, at, old.id())));
}

fn ended_here(cluster: &mut Cluster, at: usize, name: &str) -> Option<NamedGroup> {
    ended(cluster, |cluster| cluster.node(at).look_up(name, true))
}

#[test]
fn a_node_that_comes_later_hears_of_names_and_takes_part_when_it_is_made_a_member() {
    let mut cluster = Cluster::named(3);
    let group = made(&mut cluster, 0, "q", &[]);
    until_runs(&mut cluster, &[0, 1, 2], group.id());
    cluster.done(0, group.id(), b"one");
    let new = cluster.add_node();
    for at in 0..3 {
        cluster.stop(at);
        open(&mut cluster, at);
    }
    open(&mut cluster, new);
    cluster.turn_until("a member of the directory", |cluster| {
        let status = cluster.node(new).group_status(DIRECTORY);
        status.is_some_and(|status| status.members.is_voter(NodeId(4)))
    });
    assert_eq!(look_up(&mut cluster, new, "q"), Some(group.clone()));
    assert!(!runs(&cluster, new, group.id()));
    let change = done(&mut cluster, |cluster| {
        cluster.node(0).change_members(group.id(), &[Change::Promotable(NodeId(4))], false)
    });
    assert!(change.is_ok());
    until_runs(&mut cluster, &[new], group.id());
    cluster.turn_until("a voter", |cluster| {
        cluster.node(new).group_status(group.id()).unwrap().members.is_voter(NodeId(4))
    });
    assert_eq!(cluster.asked(new, group.id()), Ok(1));
    let members = look_up(&mut cluster, 1, "q").unwrap().members();
    assert_eq!(members, [1, 2, 3, 4].map(NodeId));
    // It makes groups of its own, and founds them; and one that leaves is told of.
    let own = made(&mut cluster, new, "own", &[4]);
    until_runs(&mut cluster, &[new], own.id());
    cluster.done(new, own.id(), b"one");
    let change = done(&mut cluster, |cluster| {
        cluster.node(0).change_members(group.id(), &[Change::Remove(NodeId(2))], false)
    });
    assert!(change.is_ok());
    for _ in 0..20_000 {
        cluster.turn();
    }
    assert_eq!(look_up(&mut cluster, 1, "q").unwrap().members(), [1, 3, 4].map(NodeId));
}

/// An empty directory in the place of one that founded a group does not found it once more.
#[test]
fn an_empty_directory_in_a_lost_ones_place_founds_nothing() {
    let mut cluster = Cluster::named(3);
    let group = made(&mut cluster, 0, "q", &[]);
    until_runs(&mut cluster, &[0, 1, 2], group.id());
    cluster.done(0, group.id(), b"one");
    // One that nobody else knows: nothing tells the directory that its member is another one.
    let lost = made(&mut cluster, 0, "lost", &[3]);
    until_runs(&mut cluster, &[2], lost.id());
    cluster.done(2, lost.id(), b"one");
    cluster.kill(2);
    (0..8000).for_each(|_| cluster.turn());
    for id in [group.id(), DIRECTORY] {
        let removed = done(&mut cluster, |cluster| {
            cluster.node(0).change_members(id, &[Change::Remove(NodeId(3))], false)
        });
        assert!(removed.is_ok());
    }
    let given = cluster.node(0).replace_node(NodeId(3), false);
    for _ in 0..2000 {
        cluster.turn();
    }
    assert!(matches!(given(), Some(Ok(()))));
    cluster.disks[2] = FakeDisk::new(33);
    open(&mut cluster, 2);
    cluster.turn_until("a member of the directory", |cluster| {
        let status = cluster.node(2).group_status(DIRECTORY);
        status.is_some_and(|status| status.members.is_voter(NodeId(3)))
    });
    // The directory may still say that its node is a member.
    (0..2000).for_each(|_| cluster.turn());
    assert!(!runs(&cluster, 2, group.id()) && !runs(&cluster, 2, lost.id()), "they are another directory's");
    let added = done(&mut cluster, |cluster| {
        cluster.node(1).change_members(group.id(), &[Change::Promotable(NodeId(3))], false)
    });
    assert!(added.is_ok());
    until_runs(&mut cluster, &[2], group.id());
    cluster.done(2, group.id(), b"one");
    assert_eq!(cluster.asked(2, group.id()), Ok(2));
}

#[test]
fn a_watcher_hears_of_every_change_in_order() {
    let mut cluster = Cluster::named(3);
    let first = made(&mut cluster, 0, "first", &[]);
    cluster.turn_until("it", |cluster| runs(cluster, 2, first.id()));
    let mut watch = cluster.node(2).name_changes();
    let second = made(&mut cluster, 0, "second", &[]);
    delete(&mut cluster, 1, "first");
    let again = made(&mut cluster, 1, "first", &[1]);
    (0..400).for_each(|_| cluster.turn());
    let told: Vec<NameChange> = std::iter::from_fn(|| watch.try_recv()).collect();
    let expected = [
        NameChange::Created(first.clone().into()),
        NameChange::Created(second.into()),
        NameChange::Deleted(first.into()),
        NameChange::Created(again.into()),
    ];
    assert_eq!(told, expected);
    // A node without a directory says so.
    let mut plain = Cluster::new(1);
    let mut watch = plain.node(0).name_changes();
    plain.turn();
    assert_eq!(watch.wait_timeout(std::time::Duration::from_secs(5)), None);
    let answer = plain.node(0).create_group("q", &[], b"");
    plain.turn_until("an answer", |_| answer.get().is_some());
    assert!(matches!(answer.get(), Some(Outcome::NotDone(why)) if why.reason == Reason::NoGroup));
}

/// Names come and go at any rate, nodes are killed: nothing piles up, and no group has anything of the one before.
#[test]
fn names_that_come_and_go_leave_nothing_behind() {
    const CYCLES: u64 = 3000;
    let mut cluster = Cluster::named(3);
    let kept = made(&mut cluster, 0, "kept", &[]);
    until_runs(&mut cluster, &[0, 1, 2], kept.id());
    let mut uids = BTreeSet::new();
    let (mut files, mut half) = (Vec::new(), 0);
    let mut counted = 0;
    for cycle in 0..CYCLES {
        let name = format!("q{}", cycle % 3);
        let at = (cycle % 3) as usize;
        if cycle % 700 == 699 {
            cluster.kill(at);
            open(&mut cluster, at);
            until_runs(&mut cluster, &[at], kept.id());
        }
        let group = made(&mut cluster, at, &name, &[]);
        assert!(uids.insert(group.id()), "a uid comes once");
        if cycle % 10 == 0 {
            until_runs(&mut cluster, &[at], group.id());
            cluster.done(at, group.id(), b"one");
            cluster.done(at, group.id(), if cycle % 20 == 0 { b"release" } else { b"more" });
            cluster.done((at + 1) % 3, kept.id(), b"release");
            counted += 1;
            assert_eq!(cluster.asked(at, group.id()), Ok(2), "cycle {cycle}: nothing of an earlier one");
        }
        let deleted = delete(&mut cluster, (at + 1) % 3, &name);
        assert_eq!(deleted, Deleted::Gone(group.clone()));
        if cycle == CYCLES / 2 || cycle == CYCLES - 1 {
            until_gone(&mut cluster, &[0, 1, 2], group.id());
            (0..400).for_each(|_| cluster.turn());
            files.push((0..3).map(|at| cluster.disks[at].image().paths().len()).max().unwrap());
            half = half.max(cluster.node(0).status().unwrap().groups);
        }
    }
    assert_eq!(half, 2, "the directory and the group that is kept");
    assert_eq!(cluster.asked(0, kept.id()), Ok(counted));
    assert!(files[1] <= files[0] + 2, "files at half time and in the end: {files:?}");
    for at in 0..3 {
        let status = cluster.node(at).status().unwrap();
        assert!(status.arena_bytes < 1 << 20, "{} bytes of entries", status.arena_bytes);
        let (slots, of_log) = cluster.node(at).group_slots().unwrap();
        assert!(slots < 40 && of_log < 1100, "node {at}: {slots} slots, and {of_log} of the log");
    }
}

/// What the one that is left does not know of may run somewhere.
#[test]
fn a_directory_that_is_cut_down_to_one_member_draws_no_uid_again() {
    let mut cluster = Cluster::named(3);
    let known = made(&mut cluster, 0, "known", &[]);
    until_runs(&mut cluster, &[0, 1, 2], known.id());
    let leader = cluster.node(0).group_status(DIRECTORY).unwrap().leader.unwrap().0;
    let left = leader % 3 + 1;
    let lost: Vec<u64> = (1..=3).filter(|node| *node != left).collect();
    cluster.network.partition(&[&lost, &[left]]);
    let forgotten = made(&mut cluster, leader as usize - 1, "forgotten", &[leader]);
    lost.iter().for_each(|node| cluster.kill(*node as usize - 1));
    (0..8000).for_each(|_| cluster.turn());
    let at = left as usize - 1;
    let nodes: Vec<NodeId> = lost.into_iter().map(NodeId).collect();
    let told = cluster.node(at).lose_nodes(&nodes, false);
    (0..2000).for_each(|_| cluster.turn());
    assert!(matches!(told(), Some(Ok(()))));
    let shrunk = cluster.node(at).force_shrink(DIRECTORY);
    let shrunk = (0..4000).find_map(|_| {
        cluster.turn();
        shrunk()
    });
    assert!(matches!(shrunk, Some(Ok(()))), "{shrunk:?}");
    assert_eq!(look_up(&mut cluster, at, "forgotten"), None);
    let next = made(&mut cluster, at, "next", &[left]);
    assert!(next.id() > forgotten.id(), "{} was drawn before {}", next.id(), forgotten.id());
    until_runs(&mut cluster, &[at], next.id());
}

/// What it has forgotten was made before it came back; a group that is drawn after that it cannot have known.
#[test]
fn a_group_that_is_made_after_an_older_copy_came_back_is_not_doubted() {
    let mut cluster = Cluster::named(3);
    let old = made(&mut cluster, 0, "before", &[]);
    until_runs(&mut cluster, &[0, 1, 2], old.id());
    let image = cluster.disks[2].image();
    // Of this one the copy knows nothing.
    let forgotten = made(&mut cluster, 0, "forgotten", &[]);
    until_runs(&mut cluster, &[0, 1, 2], forgotten.id());
    (0..3).for_each(|_| cluster.done(2, forgotten.id(), b"one"));
    cluster.kill(2);
    cluster.disks[2] = FakeDisk::from_image(image, 77);
    open(&mut cluster, 2);
    let is_whole = |cluster: &Cluster, group: &NamedGroup| {
        cluster.node(2).group_status(group.id()).is_some_and(|one| !one.suspect)
    };
    cluster.turn_until("whole groups", |cluster| is_whole(cluster, &old) && is_whole(cluster, &forgotten));
    let status = cluster.node(2).status().unwrap();
    assert!(status.directory_old && status.new_groups_doubted);
    // Its vote is needed, and there is nobody else to be asked.
    let new = made(&mut cluster, 0, "after", &[]);
    cluster.kill(1);
    until_runs(&mut cluster, &[0, 2], new.id());
    cluster.done(0, new.id(), b"one");
    assert!(is_whole(&cluster, &new));
}
