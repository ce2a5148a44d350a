//! The way out of a shard to clients: completion rings and single slots.
//!
//! A client that wants speed has a [`ClientQueue`]: the shard gathers what it answers in one turn into one
//! [`Completions`] and wakes the client once. A future per command has a [`Slot`]. Neither takes a lock.
//!
//! Invariants: (1) a command is answered once; (2) a client's queue holds at most as many completions as commands that
//! it has in flight, which the client bounds.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use atomic_waker::AtomicWaker;
use coracle_base::{Index, NodeId};
use crossbeam_queue::{ArrayQueue, SegQueue};

use crate::Error;
use crate::outcome::{Done, NotDone, Outcome, Unknown};

/// What a shard answered to one client in one turn.
#[derive(Debug, Default)]
pub struct Completions {
    bytes: Vec<u8>,
    list: Vec<Completion>,
}

#[derive(Debug)]
struct Completion {
    tag: u64,
    result: Outcome<(usize, usize)>,
}

impl Completions {
    fn with_capacity(count: usize, bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), list: Vec::with_capacity(count) }
    }

    /// Adds one answer. The reply's bytes are copied.
    pub(crate) fn push(&mut self, tag: u64, outcome: &Outcome<&[u8]>) {
        let result = match outcome {
            Outcome::Done(done) => {
                let start = self.bytes.len();
                self.bytes.extend_from_slice(done.reply);
                Outcome::Done(Done {
                    reply: (start, self.bytes.len()),
                    index: done.index,
                    leader: done.leader,
                })
            }
            Outcome::NotDone(why) => Outcome::NotDone(why.clone()),
            Outcome::Unknown(why) => Outcome::Unknown(*why),
        };
        self.list.push(Completion { tag, result });
    }

    /// How many commands ended.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether none did.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Each ended command: its tag and how it ended.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Outcome<&[u8]>)> {
        self.list.iter().map(|one| {
            let outcome = match &one.result {
                Outcome::Done(Done { reply: (start, end), index, leader }) => {
                    Outcome::Done(Done { reply: &self.bytes[*start..*end], index: *index, leader: *leader })
                }
                Outcome::NotDone(why) => Outcome::NotDone(why.clone()),
                Outcome::Unknown(why) => Outcome::Unknown(*why),
            };
            (one.tag, outcome)
        })
    }
}

/// A client's completion ring: filled by shards, emptied by the client.
#[derive(Debug, Default)]
pub(crate) struct ClientQueue {
    ready: SegQueue<Completions>,
    in_flight: AtomicUsize,
    waker: AtomicWaker,
    /// Size of the last completions: the next ones begin with it, so that they need not grow step by step.
    last_count: AtomicUsize,
    last_bytes: AtomicUsize,
}

impl ClientQueue {
    /// Notes `count` commands on their way, unless that makes more than `limit`.
    pub(crate) fn admit(&self, count: usize, limit: usize) -> bool {
        let before = self.in_flight.fetch_add(count, Ordering::Relaxed);
        if before + count > limit {
            self.in_flight.fetch_sub(count, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Takes back `count` commands that were never sent.
    pub(crate) fn withdraw(&self, count: usize) {
        self.in_flight.fetch_sub(count, Ordering::Relaxed);
    }

    /// Commands sent and not yet taken back by [`pop`](Self::pop).
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Where a shard gathers its answers of one turn.
    pub(crate) fn gather(&self) -> Completions {
        let count = self.last_count.load(Ordering::Relaxed);
        Completions::with_capacity(count, self.last_bytes.load(Ordering::Relaxed))
    }

    /// A shard's answers of one turn; wakes the client.
    pub(crate) fn push(&self, completions: Completions) {
        self.last_count.store(completions.list.len(), Ordering::Relaxed);
        self.last_bytes.store(completions.bytes.len(), Ordering::Relaxed);
        self.ready.push(completions);
        self.waker.wake();
    }

    /// The next answers.
    pub(crate) fn pop(&self) -> Option<Completions> {
        let completions = self.ready.pop()?;
        self.in_flight.fetch_sub(completions.len(), Ordering::Relaxed);
        Some(completions)
    }

    /// Who to wake when there are answers.
    pub(crate) fn register(&self, waker: &std::task::Waker) {
        self.waker.register(waker);
    }
}

/// One command's answer, for a future.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    outcome: OnceLock<Outcome>,
    waker: AtomicWaker,
}

impl Slot {
    /// Answers; a second answer is a bug and is ignored in release.
    pub(crate) fn fill(&self, outcome: Outcome) {
        let second = self.outcome.set(outcome).is_err();
        debug_assert!(!second, "a command was answered twice");
        self.waker.wake();
    }

    /// The answer, if it is there.
    pub(crate) fn get(&self) -> Option<Outcome> {
        self.outcome.get().cloned()
    }

    /// Who to wake when it is.
    pub(crate) fn register(&self, waker: &std::task::Waker) {
        self.waker.register(waker);
    }
}

/// An answer that is taken by whoever asked: of this node alone, and too large to be copied.
#[derive(Debug)]
pub(crate) struct Parcel<T> {
    answer: ArrayQueue<T>,
    waker: AtomicWaker,
}

impl<T> Parcel<T> {
    /// The answer, if it is there and was not taken.
    pub(crate) fn take(&self) -> Option<T> {
        self.answer.pop()
    }

    /// Who to wake when it is.
    pub(crate) fn register(&self, waker: &std::task::Waker) {
        self.waker.register(waker);
    }
}

/// The duty to answer: whoever drops it without doing so has stopped.
#[derive(Debug)]
pub(crate) struct Asked<T> {
    parcel: Arc<Parcel<Result<T, Error>>>,
    is_answered: bool,
}

impl<T> Asked<T> {
    /// A question, and where its answer will be.
    pub(crate) fn new() -> (Self, Arc<Parcel<Result<T, Error>>>) {
        let parcel = Arc::new(Parcel { answer: ArrayQueue::new(1), waker: AtomicWaker::new() });
        (Self { parcel: parcel.clone(), is_answered: false }, parcel)
    }

    /// Answers.
    pub(crate) fn answer(mut self, answer: Result<T, Error>) {
        self.is_answered = true;
        let _ = self.parcel.answer.push(answer);
        // Dropping it wakes.
    }
}

impl<T> Drop for Asked<T> {
    fn drop(&mut self) {
        if !self.is_answered {
            let _ = self.parcel.answer.push(Err(Error::Stopped(None)));
        }
        self.parcel.waker.wake();
    }
}

/// Borrowed form of an outcome's parts that a shard builds without copying the reply.
pub(crate) fn done(reply: &[u8], index: Index, leader: NodeId) -> Outcome<&[u8]> {
    Outcome::Done(Done { reply, index, leader })
}

impl Outcome<&[u8]> {
    /// The same with a reply of its own.
    pub fn to_owned(&self) -> Outcome {
        match self {
            Outcome::Done(Done { reply, index, leader }) => {
                Outcome::Done(Done { reply: reply.to_vec(), index: *index, leader: *leader })
            }
            Outcome::NotDone(why) => Outcome::NotDone(NotDone::clone(why)),
            Outcome::Unknown(why) => Outcome::Unknown(Unknown::clone(why)),
        }
    }
}
