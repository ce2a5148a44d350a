//! Whoever watches the directory: told of every change that is applied here, in order.
//!
//! Invariant: what waits for a watcher is bounded. One that is too slow is told no more, and hears that it missed something.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Waker;

use atomic_waker::AtomicWaker;
use coracle_io::{Clock, Disk, Net};
use crossbeam_queue::SegQueue;

use crate::directory::{Event, NamedGroup};
use crate::shard::Shard;

/// Changes that may wait for one watcher, besides those that it begins with.
const WAITING_MAX: usize = 65_536;

/// A change of the directory, as it is told on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameChange {
    /// A group is there: made, or there when the watch began.
    Created(Arc<NamedGroup>),
    /// The directory has heard of other members.
    Members(Arc<NamedGroup>),
    /// It is gone.
    Deleted(Arc<NamedGroup>),
    /// This node was away for so long that it does not know what happened in between: forget all groups; those that are there
    /// come next.
    Restarted,
}

/// What waits for one watcher.
#[derive(Debug, Default)]
pub(crate) struct WatchQueue {
    changes: SegQueue<NameChange>,
    /// Of them, at most so many are groups that were there when it began, or began again.
    begins_with: AtomicUsize,
    /// Nothing will come any more: it was too slow, or the node has stopped.
    is_over: AtomicBool,
    /// Its watcher is gone.
    is_left: AtomicBool,
    waker: AtomicWaker,
}

impl WatchQueue {
    /// The next change.
    pub(crate) fn pop(&self) -> Option<NameChange> {
        self.changes.pop()
    }

    /// Whether nothing will come any more.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Who to wake when something comes.
    pub(crate) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Nobody watches any more.
    pub(crate) fn leave(&self) {
        self.is_left.store(true, Ordering::Release);
        while self.changes.pop().is_some() {}
    }

    /// It has not taken what it should have by now.
    fn is_too_full(&self) -> bool {
        self.changes.len() >= WAITING_MAX + self.begins_with.load(Ordering::Relaxed)
    }

    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn push(&self, change: NameChange) {
        self.changes.push(change);
        self.waker.wake();
    }
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// Somebody watches from now on: first all groups that are there.
    pub(in crate::shard) fn on_watch(&mut self, queue: Arc<WatchQueue>) {
        if !self.by_group.contains_key(&crate::directory::DIRECTORY) {
            return queue.end();
        }
        // What is not told yet is in what it begins with.
        self.take_directory_events();
        self.tell_groups(&queue);
        self.names.watchers.retain(|watcher| !watcher.is_left.load(Ordering::Acquire));
        self.names.watchers.push(queue);
    }

    fn tell_groups(&mut self, queue: &WatchQueue) {
        if let Some(machine) = self.directory() {
            let groups = machine.groups().map(|group| queue.push(NameChange::Created(group.clone())));
            queue.begins_with.store(groups.count(), Ordering::Relaxed);
        }
    }

    pub(super) fn tell_watchers(&mut self, event: &Event) {
        if self.names.watchers.is_empty() {
            return;
        }
        let change = match event {
            Event::Created(group) => NameChange::Created(group.clone()),
            Event::Changed(group) => NameChange::Members(group.clone()),
            Event::Deleted(group) => NameChange::Deleted(group.clone()),
            Event::All => NameChange::Restarted,
        };
        for queue in std::mem::take(&mut self.names.watchers) {
            if queue.is_left.load(Ordering::Acquire) {
                continue;
            }
            if queue.is_too_full() {
                queue.end();
                continue;
            }
            queue.push(change.clone());
            if change == NameChange::Restarted {
                self.tell_groups(&queue);
            }
            self.names.watchers.push(queue);
        }
    }

    /// The node stops: watchers wait for nothing any more.
    pub(in crate::shard) fn end_watches(&mut self) {
        self.names.watchers.drain(..).for_each(|queue| queue.end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_watch_begins_with_does_not_make_it_too_slow_and_who_leaves_keeps_nothing() {
        let queue = WatchQueue::default();
        queue.begins_with.store(10, Ordering::Relaxed);
        (0..WAITING_MAX + 9).for_each(|_| queue.push(NameChange::Restarted));
        assert!(!queue.is_too_full());
        queue.push(NameChange::Restarted);
        assert!(queue.is_too_full());
        queue.leave();
        assert_eq!((queue.pop(), queue.changes.len()), (None, 0));
    }
}
