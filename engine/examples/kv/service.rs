//! From requests to the engine and back: commands that arrive together leave as one batch, whatever connection they
//! came from.
//!
//! Invariants: (1) every request gets exactly one reply; (2) the changes of one connection enter the log in the order
//! in which it sent them, as far as they share a group; (3) what waits to be sent is bounded: [`GATHERED_BYTES_MAX`].

use std::cell::RefCell;
use std::collections::BTreeMap;

use coracle::{Client, Consistency, Group, GroupId, NameChange, NotDone, Outcome, Reason};
use slab::Slab;
use tokio::sync::{Notify, oneshot};

use crate::resp;
use crate::store::Change;

/// Commands that wait for the end of the runtime's turn are sent before it, if they are more than this.
const GATHERED_BYTES_MAX: usize = 512 * 1024;

/// A reply that will come, in RESP2.
pub(crate) type Reply = oneshot::Receiver<Vec<u8>>;

/// All connections' way into the engine.
pub(crate) struct Service {
    groups: Vec<Group>,
    client: Client,
    /// Who answers what is read.
    reads: Consistency,
    /// Groups with names, as this node knows them, if it has any.
    named: Option<RefCell<BTreeMap<GroupId, Group>>>,
    state: RefCell<State>,
    gathered: Notify,
}

#[derive(Default)]
struct State {
    /// Who waits; a command's tag is its place here.
    waiting: Slab<oneshot::Sender<Vec<u8>>>,
    /// Commands not sent yet, by group.
    commands: Vec<Vec<(u64, Vec<u8>)>>,
    bytes: usize,
}

impl Service {
    /// A service over `groups`, at least one, among which the keys are spread; but for those of groups with names, if there are.
    pub(crate) fn new(groups: Vec<Group>, client: Client, reads: Consistency, has_names: bool) -> Self {
        let commands = vec![Vec::new(); groups.len()];
        let state = RefCell::new(State { commands, ..State::default() });
        let named = has_names.then(RefCell::default);
        Self { groups, client, reads, named, state, gathered: Notify::new() }
    }

    /// A named group is there, or is gone.
    pub(crate) fn on_name(&self, change: NameChange, group: impl Fn(GroupId) -> Group) {
        let Some(named) = &self.named else { return };
        let mut named = named.borrow_mut();
        match change {
            NameChange::Created(one) => drop(named.insert(one.id(), group(one.id()))),
            NameChange::Deleted(one) => drop(named.remove(&one.id())),
            NameChange::Restarted => named.clear(),
            NameChange::Members(_) => {}
        }
    }

    /// Whether a key is a named group's, whose uid it begins with; and the group, if this node knows it.
    fn named(&self, key: &[u8]) -> Option<Option<Group>> {
        let named = self.named.as_ref()?;
        let end = key.iter().position(|byte| *byte == b'/')?;
        let uid = std::str::from_utf8(&key[..end]).ok()?.parse().ok()?;
        Some(named.borrow().get(&GroupId(uid)).cloned())
    }

    /// Takes a change on its way.
    pub(crate) fn change(&self, change: Change<'_>) -> Reply {
        let (sender, reply) = oneshot::channel();
        let mut state = self.state.borrow_mut();
        let tag = state.waiting.insert(sender) as u64;
        let command = change.encode();
        match self.named(change.key()) {
            Some(Some(group)) => {
                if let Err(why) = self.client.propose(&group, [(tag, &command)]) {
                    state.answer(tag, &Outcome::NotDone(why));
                }
                return reply;
            }
            Some(None) => {
                state.refuse(tag);
                return reply;
            }
            None => {}
        }
        state.bytes += command.len();
        state.commands[self.place(change.key())].push((tag, command));
        if state.bytes > GATHERED_BYTES_MAX {
            self.send(&mut state);
        } else {
            self.gathered.notify_one();
        }
        reply
    }

    /// Asks for a key's value, as of now.
    pub(crate) fn get(&self, key: &[u8]) -> Reply {
        let (sender, reply) = oneshot::channel();
        let mut state = self.state.borrow_mut();
        let tag = state.waiting.insert(sender) as u64;
        let named = self.named(key);
        let group = match &named {
            Some(Some(group)) => group,
            Some(None) => {
                state.refuse(tag);
                return reply;
            }
            None => &self.groups[self.place(key)],
        };
        if let Err(why) = self.client.query_as(group, tag, self.reads, key) {
            state.answer(tag, &Outcome::NotDone(why));
        }
        reply
    }

    /// The group of a key: the same on every node, for life.
    fn place(&self, key: &[u8]) -> usize {
        let fnv1a = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        (key.iter().fold(0xcbf2_9ce4_8422_2325, fnv1a) % self.groups.len() as u64) as usize
    }

    /// Sends what was gathered while the runtime served the sockets that were ready.
    pub(crate) async fn dispatch(&self) {
        loop {
            self.gathered.notified().await;
            self.send(&mut self.state.borrow_mut());
        }
    }

    fn send(&self, state: &mut State) {
        state.bytes = 0;
        for (place, group) in self.groups.iter().enumerate() {
            let mut commands = std::mem::take(&mut state.commands[place]);
            let mut rest = commands.as_slice();
            while !rest.is_empty() {
                let refused =
                    match self.client.propose(group, rest.iter().map(|(tag, command)| (*tag, command))) {
                        Ok(taken) => {
                            rest = &rest[taken..];
                            continue;
                        }
                        Err(why) => Outcome::NotDone(why),
                    };
                state.answer(rest[0].0, &refused);
                rest = &rest[1..];
            }
            commands.clear();
            state.commands[place] = commands; // keeps its room for the next ones
        }
    }

    /// Hands out answers as they come.
    pub(crate) async fn complete(&self) {
        loop {
            let completions = self.client.next().await;
            let mut state = self.state.borrow_mut();
            for (tag, outcome) in completions.iter() {
                state.answer(tag, &outcome);
            }
        }
    }
}

impl State {
    /// There is no such named group here, or not yet.
    fn refuse(&mut self, tag: u64) {
        if let Some(waiting) = self.waiting.try_remove(tag as usize) {
            let mut out = Vec::new();
            resp::error(&mut out, "TRYAGAIN this node knows no such group");
            let _ = waiting.send(out);
        }
    }

    fn answer(&mut self, tag: u64, outcome: &Outcome<&[u8]>) {
        if let Some(waiting) = self.waiting.try_remove(tag as usize) {
            // A connection that has gone does not care.
            let _ = waiting.send(reply(outcome));
        }
    }
}

fn reply(outcome: &Outcome<&[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    match outcome {
        Outcome::Done(done) => return done.reply.to_vec(),
        Outcome::NotDone(NotDone { reason: Reason::TooLarge, .. }) => {
            resp::error(&mut out, "ERR the command is too large (keys and values of a command: 512 KiB)");
        }
        Outcome::NotDone(why) => resp::error(&mut out, &format!("TRYAGAIN {why}")),
        Outcome::Unknown(why) => resp::error(&mut out, &format!("UNKNOWN {why}")),
    }
    out
}
