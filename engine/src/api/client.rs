//! A completion ring: many commands in, many answers out, one wake-up a batch.
//!
//! Invariants: (1) at most [`IN_FLIGHT_MAX`] commands of a ring are on their way or waiting to be taken, so that its
//! memory is bounded; (2) every command that `propose` or `query` took is completed exactly once, under its tag;
//! (3) nothing is allocated per proposed command, only per batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use coracle_base::limits::ENTRY_BYTES_MAX;
use coracle_base::{EntryBatch, EntryKind};

use super::proposal::block_on;
use super::{Group, push, refusal};
use crate::api::query::Consistency;
use crate::outcome::{NotDone, Reason};
use crate::shard::inbox::{Command, Origin};
use crate::shard::replies::{ClientQueue, Completions};

/// Commands that one ring may have in flight.
pub(super) const IN_FLIGHT_MAX: usize = 65_536;

/// A completion ring. Clones share it; one of them at a time may wait (the last one to begin is woken).
#[derive(Debug, Clone)]
pub struct Client {
    ring: Arc<Ring>,
}

#[derive(Debug)]
struct Ring {
    /// What the shards fill.
    queue: Arc<ClientQueue>,
    in_flight_max: usize,
    /// Size of the last batch, encoded: the next one's buffer begins with it.
    batch_bytes: AtomicUsize,
}

impl Client {
    pub(super) fn with_limit(in_flight_max: usize) -> Self {
        let queue = Arc::new(ClientQueue::default());
        Self { ring: Arc::new(Ring { queue, in_flight_max, batch_bytes: AtomicUsize::new(0) }) }
    }

    /// Proposes commands to a group as one batch, each with a tag of the caller's choice under which it will be
    /// completed. Takes as many as fit one batch (768 KiB, 65,536 commands) and this ring's bound, and says how many:
    /// the caller proposes the rest again.
    ///
    /// # Errors
    /// [`NotDone`]: none was taken. [`Reason::Busy`]: take completions, or wait; [`Reason::TooLarge`]: the first
    /// command is over 512 KiB; [`Reason::Stopping`]: the node is.
    pub fn propose<C: AsRef<[u8]>>(
        &self,
        group: &Group,
        commands: impl IntoIterator<Item = (u64, C)>,
    ) -> Result<usize, NotDone> {
        let room = self.ring.in_flight_max.saturating_sub(self.in_flight());
        let mut batch = EntryBatch::with_capacity(self.ring.batch_bytes.load(Ordering::Relaxed));
        let mut stopped_by = Reason::Busy;
        for (tag, command) in commands.into_iter().take(room) {
            if batch.push(tag, EntryKind::Command, command.as_ref()).is_err() {
                stopped_by = Reason::TooLarge;
                break;
            }
        }
        let count = batch.count() as usize;
        if count == 0 && (room == 0 || stopped_by == Reason::TooLarge) {
            return Err(refusal(stopped_by));
        }
        if count > 0 {
            self.ring.batch_bytes.store(batch.bytes().len(), Ordering::Relaxed);
            let origin = Origin::Client(self.ring.queue.clone());
            self.send(count, group, Command::Propose { group: group.id, entries: batch, origin })?;
        }
        Ok(count)
    }

    /// Asks a group's machine a question; the answer covers everything acknowledged before (linearizable), and comes
    /// under `tag`.
    ///
    /// # Errors
    /// As [`propose`](Self::propose).
    pub fn query(&self, group: &Group, tag: u64, query: &[u8]) -> Result<(), NotDone> {
        self.query_as(group, tag, Consistency::Linearizable, query)
    }

    /// Asks a group's machine a question as [`Group::query_as`] does; the answer comes under `tag`.
    ///
    /// # Errors
    /// As [`propose`](Self::propose).
    pub fn query_as(
        &self,
        group: &Group,
        tag: u64,
        consistency: Consistency,
        query: &[u8],
    ) -> Result<(), NotDone> {
        if query.len() > ENTRY_BYTES_MAX {
            return Err(refusal(Reason::TooLarge));
        }
        let origin = Origin::Client(self.ring.queue.clone());
        let query = query.to_vec();
        self.send(1, group, Command::Query { group: group.id, consistency, tag, query, origin })
    }

    fn send(
        &self,
        count: usize,
        group: &Group,
        command: Command<crate::node::Socket>,
    ) -> Result<(), NotDone> {
        if !self.ring.queue.admit(count, self.ring.in_flight_max) {
            return Err(refusal(Reason::Busy));
        }
        push(&group.inbox, command).map_err(|reason| {
            self.ring.queue.withdraw(count);
            refusal(reason)
        })
    }

    /// Commands on their way, or completed and not taken yet.
    pub fn in_flight(&self) -> usize {
        self.ring.queue.in_flight()
    }

    /// Completed commands, if there are any.
    pub fn poll(&self) -> Option<Completions> {
        self.ring.queue.pop()
    }

    /// Completed commands, as soon as there are any; `None` if there were none within `timeout`. Parks the thread.
    pub fn wait(&self, timeout: Duration) -> Option<Completions> {
        block_on(Some(timeout), |waker| self.poll_with(waker))
    }

    /// Completed commands, as soon as there are any.
    pub async fn next(&self) -> Completions {
        let poll =
            |context: &mut Context<'_>| self.poll_with(context.waker()).map_or(Poll::Pending, Poll::Ready);
        std::future::poll_fn(poll).await
    }

    fn poll_with(&self, waker: &Waker) -> Option<Completions> {
        if let Some(completions) = self.poll() {
            return Some(completions);
        }
        self.ring.queue.register(waker);
        // Once more: the answers may have come between the look and the registration.
        self.poll()
    }
}
