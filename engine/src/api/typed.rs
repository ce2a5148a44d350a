//! Handles over the user's own types: [`Group`] and [`Proposal`] with commands and replies encoded and decoded.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use coracle_base::Index;

use super::{Consistency, Group, Proposal};
use crate::machine::{TypedMachine, Wire};
use crate::outcome::{Done, Outcome, Unknown};

/// A [`Group`] whose machine is an `M`.
pub struct TypedGroup<M> {
    group: Group,
    machine: PhantomData<fn() -> M>,
}

impl<M: TypedMachine> TypedGroup<M> {
    /// Sees `group` as one whose machine is an `M`, on every member.
    pub fn new(group: Group) -> Self {
        Self { group, machine: PhantomData }
    }

    /// The same group over bytes.
    pub fn bytes(&self) -> &Group {
        &self.group
    }

    /// Proposes one command.
    pub fn propose(&self, command: &M::Command) -> TypedProposal<M::Reply> {
        TypedProposal::new(self.group.propose(&encoded(command)))
    }

    /// Asks the machine a question; the answer covers everything acknowledged before (linearizable).
    pub fn query(&self, query: &M::Query) -> TypedProposal<M::Answer> {
        TypedProposal::new(self.group.query(&encoded(query)))
    }

    /// As [`query`](Self::query), answered by this node's machine, which the leader tells how far it must have come.
    pub fn query_here(&self, query: &M::Query) -> TypedProposal<M::Answer> {
        self.query_as(Consistency::LinearizableHere, query)
    }

    /// Asks this node's machine as it is, however old that may be, once it has applied the entry at `index`; 0: at once.
    pub fn query_local(&self, query: &M::Query, index: Index) -> TypedProposal<M::Answer> {
        self.query_as(Consistency::Local { index, term: None }, query)
    }

    /// Asks the machine a question, as [`Group::query_as`] does.
    pub fn query_as(&self, consistency: Consistency, query: &M::Query) -> TypedProposal<M::Answer> {
        TypedProposal::new(self.group.query_as(consistency, &encoded(query)))
    }

    /// Asks the leader's machine as it is; quicker, and not linearizable.
    pub fn query_leader(&self, query: &M::Query) -> TypedProposal<M::Answer> {
        TypedProposal::new(self.group.query_leader(&encoded(query)))
    }
}

impl<M> Clone for TypedGroup<M> {
    fn clone(&self) -> Self {
        Self { group: self.group.clone(), machine: PhantomData }
    }
}

impl<M> fmt::Debug for TypedGroup<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.group.fmt(f)
    }
}

/// A [`Proposal`] whose reply is an `R`. A reply that is none ends as [`Unknown::Unreadable`].
#[derive(Debug)]
#[must_use = "a proposal's outcome says whether it happened"]
pub struct TypedProposal<R> {
    proposal: Proposal,
    reply: PhantomData<fn() -> R>,
}

impl<R: Wire> TypedProposal<R> {
    pub(super) fn new(proposal: Proposal) -> Self {
        Self { proposal, reply: PhantomData }
    }

    /// Blocks this thread until the outcome is there.
    pub fn wait(self) -> Outcome<R> {
        decoded(self.proposal.wait())
    }

    /// Blocks this thread until the outcome is there or `timeout` has passed.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Outcome<R>> {
        self.proposal.wait_timeout(timeout).map(decoded)
    }
}

impl<R: Wire> Future for TypedProposal<R> {
    type Output = Outcome<R>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome<R>> {
        Pin::new(&mut self.proposal).poll(context).map(decoded)
    }
}

fn encoded(value: &impl Wire) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.encode(&mut bytes);
    bytes
}

pub(crate) fn decoded<R: Wire>(outcome: Outcome) -> Outcome<R> {
    match outcome {
        Outcome::Done(Done { reply, index, leader }) => match R::decode(&reply) {
            Some(reply) => Outcome::Done(Done { reply, index, leader }),
            None => Outcome::Unknown(Unknown::Unreadable),
        },
        Outcome::NotDone(why) => Outcome::NotDone(why),
        Outcome::Unknown(why) => Outcome::Unknown(why),
    }
}
