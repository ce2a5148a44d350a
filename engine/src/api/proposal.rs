//! One command's outcome, as a future that needs no runtime, or waited for by a thread.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use coracle_io::Clock;
use coracle_io::ring::RealClock;

use crate::outcome::{Outcome, Reason};
use crate::shard::replies::Slot;

/// How a command (or query) will end. Dropping it does not take the command back.
#[derive(Debug)]
#[must_use = "a proposal's outcome says whether it happened"]
pub struct Proposal(State);

#[derive(Debug)]
enum State {
    Refused(Reason),
    Waiting(Arc<Slot>),
}

impl Proposal {
    pub(super) fn refused(reason: Reason) -> Self {
        Self(State::Refused(reason))
    }

    pub(super) fn waiting(slot: Arc<Slot>) -> Self {
        Self(State::Waiting(slot))
    }

    /// The outcome, if it is there.
    pub fn get(&self) -> Option<Outcome> {
        match &self.0 {
            State::Refused(reason) => Some(Outcome::not_done(*reason, None)),
            State::Waiting(slot) => slot.get(),
        }
    }

    /// Blocks this thread until the outcome is there: the node's command timeout at most.
    pub fn wait(self) -> Outcome {
        block_on(None, |waker| self.poll_with(waker))
            .expect("without a deadline only an outcome ends the wait")
    }

    /// Blocks this thread until the outcome is there or `timeout` has passed; the command goes on meanwhile, and
    /// waiting again is fine.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Outcome> {
        block_on(Some(timeout), |waker| self.poll_with(waker))
    }

    fn poll_with(&self, waker: &Waker) -> Option<Outcome> {
        if let Some(outcome) = self.get() {
            return Some(outcome);
        }
        if let State::Waiting(slot) = &self.0 {
            slot.register(waker);
        }
        // Once more: the answer may have come between the look and the registration.
        self.get()
    }
}

impl Future for Proposal {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        self.poll_with(context.waker()).map_or(Poll::Pending, Poll::Ready)
    }
}

/// Wakes a parked thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

thread_local! {
    static UNPARK: Waker = Waker::from(Arc::new(Unpark(thread::current())));
}

/// Parks this thread until `poll` has a value, or `timeout` has passed. `poll` leaves the waker where the value will
/// be announced.
pub(super) fn block_on<T>(timeout: Option<Duration>, poll: impl Fn(&Waker) -> Option<T>) -> Option<T> {
    let begun_us = RealClock.now_us();
    UNPARK.with(|waker| {
        loop {
            if let Some(value) = poll(waker) {
                return Some(value);
            }
            let waited = Duration::from_micros(RealClock.now_us() - begun_us);
            match timeout.map(|timeout| timeout.saturating_sub(waited)) {
                None => thread::park(),
                Some(Duration::ZERO) => return None,
                Some(left) => thread::park_timeout(left),
            }
        }
    })
}
