//! The handles against an inbox whose shard is the test.

use std::future::Future;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use coracle_base::limits::ENTRY_BYTES_MAX;
use coracle_base::run::Entries;
use coracle_base::{GroupId, Index, NodeId};

use super::{Client, Group, Handles, TypedGroup};
use crate::machine::{Effects, Entry, Typed, TypedMachine};
use crate::node::Socket;
use crate::outcome::{Outcome, Reason, Unknown};
use crate::shard::inbox::{Command, Inbox, Origin, Start};
use crate::shard::replies::{Completions, done};

fn group() -> Group {
    Group { id: GroupId(7), inbox: Arc::new(Inbox::new(Box::new(|| {}))) }
}

/// Takes one proposal off the inbox and answers each entry with its own payload. Returns how many there were.
fn echo(inbox: &Inbox<Socket>) -> usize {
    let Some(Command::Propose { entries, origin, .. }) = inbox.pop() else { return 0 };
    let mut completions = Completions::default();
    for entry in Entries::new(Index(1), entries.bytes()) {
        completions.push(entry.header.tag, &done(entry.payload, entry.index, NodeId(1)));
    }
    match origin {
        Origin::Client(queue) => queue.push(completions),
        Origin::Slot(slot) => completions.iter().for_each(|(_, outcome)| slot.fill(outcome.to_owned())),
        Origin::Peer { .. } => unreachable!("no handle has this origin"),
    }
    entries.count() as usize
}

fn reason<T: std::fmt::Debug>(refused: Result<T, crate::NotDone>) -> Reason {
    refused.unwrap_err().reason
}

#[test]
fn a_batch_is_one_command_and_every_tag_comes_back_with_its_reply() {
    let (group, client) = (group(), Client::with_limit(100));
    let commands = [(5, "five"), (6, "six"), (5, "five again")];
    assert_eq!(client.propose(&group, commands).unwrap(), 3);
    assert_eq!((client.in_flight(), client.poll().is_none()), (3, true));
    assert_eq!(echo(&group.inbox), 3);
    let completions = client.wait(Duration::ZERO).unwrap();
    let got: Vec<_> = completions.iter().map(|(tag, outcome)| (tag, outcome.to_owned())).collect();
    for ((tag, outcome), (sent_tag, sent)) in got.into_iter().zip(commands) {
        let Outcome::Done(done) = outcome else { panic!("{outcome:?}") };
        assert_eq!((tag, done.reply.as_slice()), (sent_tag, sent.as_bytes()));
    }
    assert_eq!((client.in_flight(), group.inbox.is_empty()), (0, true));
}

#[test]
fn a_ring_takes_what_fits_and_then_refuses() {
    let (group, client) = (group(), Client::with_limit(4));
    let commands = |count: u64| (0..count).map(|tag| (tag, "x"));
    assert_eq!(client.propose(&group, commands(6)).unwrap(), 4);
    assert_eq!(reason(client.propose(&group, commands(1))), Reason::Busy);
    assert_eq!(reason(client.query(&group, 9, b"?")), Reason::Busy);
    assert_eq!(echo(&group.inbox), 4);
    assert_eq!(reason(client.propose(&group, commands(1))), Reason::Busy, "completed is not yet taken");
    assert_eq!(client.poll().unwrap().len(), 4);
    assert_eq!(client.propose(&group, commands(1)).unwrap(), 1);
}

#[test]
fn what_is_too_large_is_refused_at_once_and_takes_nothing_with_it() {
    let (group, client) = (group(), Client::with_limit(100));
    let (small, large) = (vec![0; 10], vec![0; ENTRY_BYTES_MAX + 1]);
    assert_eq!(reason(client.propose(&group, [(1, &large), (2, &small)])), Reason::TooLarge);
    assert_eq!(client.propose(&group, [(1, &small), (2, &large)]).unwrap(), 1);
    assert_eq!(reason(client.query(&group, 3, &large)), Reason::TooLarge);
    for refused in [group.propose(&large), group.query(&large), group.query_leader(&large)] {
        let Some(Outcome::NotDone(why)) = refused.get() else { panic!() };
        assert_eq!(why.reason, Reason::TooLarge);
    }
    assert_eq!((echo(&group.inbox), group.inbox.is_empty()), (1, true));
}

#[test]
fn a_full_inbox_is_busy_and_a_closed_one_stopping() {
    let group = group();
    let mut waiting = Vec::new();
    let refused = loop {
        let proposal = group.propose(b"flood");
        match proposal.get() {
            None => waiting.push(proposal),
            Some(outcome) => break outcome,
        }
    };
    let Outcome::NotDone(why) = refused else { panic!("{refused:?}") };
    assert_eq!(why.reason, Reason::Busy);
    let client = Client::with_limit(100);
    assert_eq!(reason(client.propose(&group, [(1, "x")])), Reason::Busy);
    assert_eq!(client.in_flight(), 0, "what was refused is not in flight");

    group.inbox.close();
    assert_eq!(reason(client.propose(&group, [(1, "x")])), Reason::Stopping);
    assert!(matches!(group.status(), Err(crate::Error::Stopped(None))));
    for proposal in waiting {
        let Outcome::NotDone(why) = proposal.wait() else { panic!() };
        assert_eq!(why.reason, Reason::Stopping);
    }
}

fn start_of(id: u64) -> Start {
    Start { group: GroupId(id), machine: Box::new(Typed(Mismatched)), founders: None }
}

#[test]
fn whoever_asks_a_shard_that_stops_hears_of_it() {
    let handles = Handles::new(NodeId(1), vec![group().inbox]);
    let (heard, hears) = mpsc::channel();
    let start = {
        let (handles, heard) = (handles.clone(), heard.clone());
        thread::spawn(move || {
            let groups = vec![start_of(7)];
            heard.send(handles.start_groups(groups).remove(0).map(|_| ()))
        })
    };
    let status = {
        let handles = handles.clone();
        thread::spawn(move || heard.send(handles.status().map(|_| ())))
    };
    while handles.inboxes[0].queued() < 2 {
        thread::yield_now();
    }
    handles.inboxes[0].close();
    for _ in 0..2 {
        let answer = hears.recv_timeout(Duration::from_secs(20)).expect("nobody waits for ever");
        assert!(matches!(answer, Err(crate::Error::Stopped(None))), "{answer:?}");
    }
    start.join().unwrap().unwrap();
    status.join().unwrap().unwrap();
}

/// Three shards that answer each command when it has come: how many groups each was about. Group 5 runs already.
fn starting(inboxes: &[Arc<Inbox<Socket>>], groups: usize) -> Vec<Vec<usize>> {
    let mut commands = vec![Vec::new(); inboxes.len()];
    while commands.iter().flatten().sum::<usize>() < groups {
        for (inbox, commands) in inboxes.iter().zip(&mut commands) {
            let Some(Command::StartGroups { groups, started }) = inbox.pop() else { continue };
            let result = |id| if id == GroupId(5) { Err(crate::Error::GroupRuns(id)) } else { Ok(()) };
            started.answer(Ok(groups.iter().map(|start| result(start.group)).collect()));
            commands.push(groups.len());
        }
        thread::yield_now();
    }
    commands
}

#[test]
fn many_groups_are_started_with_few_commands_and_each_has_its_result() {
    let inboxes: Vec<_> = (0..3).map(|_| group().inbox).collect();
    let handles = Handles::new(NodeId(1), inboxes.clone());
    let shards = thread::spawn(move || starting(&inboxes, 2000));
    let started = handles.start_groups((0..=2000).map(start_of).collect());
    assert_eq!(started.len(), 2001);
    for (id, result) in (0..).zip(started) {
        match (id, result) {
            (0, result) => assert!(matches!(result, Err(crate::Error::GroupZero))),
            (5, result) => assert!(matches!(result, Err(crate::Error::GroupRuns(GroupId(5))))),
            (id, result) => assert_eq!(result.unwrap().id(), GroupId(id)),
        }
    }
    let commands = shards.join().unwrap();
    assert!(commands.iter().all(|of_shard| of_shard.len() == 3), "{commands:?}");
    assert!(commands.iter().flatten().all(|count| *count <= 256), "{commands:?}");
}

#[test]
fn a_shard_that_stops_fails_its_own_groups_only() {
    let inboxes: Vec<_> = (0..2).map(|_| group().inbox).collect();
    let handles = Handles::new(NodeId(1), inboxes.clone());
    inboxes[1].close();
    let shard = thread::spawn({
        let inboxes = inboxes.clone();
        move || starting(&inboxes[..1], 3)
    });
    let started = handles.start_groups((1..=6).map(start_of).collect());
    let ends: Vec<bool> = started.iter().map(Result::is_ok).collect();
    assert_eq!(ends, [false, true, false, true, false, true], "{started:?}");
    shard.join().unwrap();
    assert!(matches!(handles.group_status([GroupId(1)].into_iter()), Err(crate::Error::Stopped(None))));
}

#[test]
fn a_waiting_thread_is_woken_and_a_deadline_passes() {
    let group = group();
    let proposal = group.propose(b"hello");
    assert_eq!(proposal.wait_timeout(Duration::from_millis(1)), None);
    let shard = thread::spawn({
        let group = group.clone();
        move || echo(&group.inbox)
    });
    let Outcome::Done(done) = proposal.wait() else { panic!() };
    assert_eq!((done.reply.as_slice(), done.leader), (&b"hello"[..], NodeId(1)));
    assert_eq!(shard.join().unwrap(), 1);

    let client = Client::with_limit(10);
    assert!(client.wait(Duration::from_millis(1)).is_none());
    let consumer = thread::spawn({
        let client = client.clone();
        move || client.wait(Duration::from_secs(60))
    });
    client.propose(&group, [(1, "x")]).unwrap();
    assert_eq!(echo(&group.inbox), 1);
    assert_eq!(consumer.join().unwrap().map(|completions| completions.len()), Some(1));
}

#[test]
fn a_future_needs_no_runtime() {
    let group = group();
    let mut context = Context::from_waker(Waker::noop());
    let mut proposal = std::pin::pin!(group.propose(b"hi"));
    assert!(proposal.as_mut().poll(&mut context).is_pending());
    echo(&group.inbox);
    let Poll::Ready(Outcome::Done(done)) = proposal.as_mut().poll(&mut context) else { panic!() };
    assert_eq!(done.reply, b"hi");

    let client = Client::with_limit(10);
    let mut next = std::pin::pin!(client.next());
    assert!(next.as_mut().poll(&mut context).is_pending());
    client.propose(&group, [(3, "x")]).unwrap();
    echo(&group.inbox);
    assert!(next.as_mut().poll(&mut context).is_ready());
}

/// Its reply is a `u32`; the test's shard echoes the command, a `u64`.
struct Mismatched;

impl TypedMachine for Mismatched {
    type Command = u64;
    type Reply = u32;
    type Query = ();
    type Answer = ();
    type State = ();
    fn apply(&mut self, _command: u64, _entry: Entry<'_>, _effects: &mut Effects<'_>) -> u32 {
        0
    }
    fn query(&self, (): ()) {}
    fn save(&self) {}
    fn load(&mut self, (): ()) {}
}

#[test]
fn a_reply_of_another_type_is_unknown() {
    let group = TypedGroup::<Mismatched>::new(group());
    let proposal = group.propose(&77);
    echo(&group.bytes().inbox);
    assert_eq!(proposal.wait(), Outcome::Unknown(Unknown::Unreadable));
}
