//! The machines of a soak: one that is used as queues are, and one that has very much state.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coracle::{Effects, Entry, Index, IndexRange, Machine, RestoreError, SnapshotSource};

use super::options::Soaked;

/// The command that makes [`Big`] take a snapshot.
pub(crate) const SNAPSHOT: &[u8] = b"snapshot";

/// Keeps a share of its entries in the log for a while, as a queue keeps the bodies of messages, and takes a snapshot now
/// and then.
#[derive(Debug)]
pub(crate) struct Queue {
    soaked: Soaked,
    applied: u64,
    /// Entries that live, each with the count of applied commands up to which it does.
    live: VecDeque<(u64, u64)>,
    seen: Arc<AtomicU64>,
}

impl Queue {
    /// A queue of which `seen` shows the count of applied commands.
    pub(crate) fn new(soaked: Soaked, seen: Arc<AtomicU64>) -> Self {
        Self { soaked, applied: 0, live: VecDeque::new(), seen }
    }
}

impl Machine for Queue {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        let Soaked { live_percent, live_for, snapshot_every, .. } = self.soaked;
        self.applied += 1;
        self.seen.store(self.applied, Ordering::Relaxed);
        // Scattered, so that hardly two neighbours live.
        if self.applied * 37 % 100 < live_percent {
            self.live.push_back((entry.index.0, self.applied + live_for));
        }
        while self.live.pop_front_if(|(_, upto)| *upto < self.applied).is_some() {}
        if self.applied.is_multiple_of(snapshot_every) {
            effects.release();
        }
    }

    fn live_indexes(&self) -> Vec<IndexRange> {
        self.live.iter().map(|(index, _)| IndexRange { first: Index(*index), count: 1 }).collect()
    }

    fn query(&self, _query: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(&self.applied.to_le_bytes());
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        let live = self.live.iter().flat_map(|(index, upto)| [*index, *upto]);
        std::iter::once(self.applied).chain(live).for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        let (words, rest) = snapshot.as_chunks();
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let Some((applied, live)) = words.split_first().filter(|(_, live)| live.len().is_multiple_of(2))
        else {
            return Err(RestoreError(format!("{} bytes are no queue", snapshot.len())));
        };
        if !rest.is_empty() {
            return Err(RestoreError(format!("{} bytes are no queue", snapshot.len())));
        }
        self.applied = *applied;
        self.live = live.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        self.seen.store(self.applied, Ordering::Relaxed);
        Ok(())
    }
}

/// Has so many bytes of state, which take no memory, and never releases its log unless it is told to.
#[derive(Debug)]
pub(crate) struct Big {
    pub(crate) bytes: u64,
}

impl Machine for Big {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        if entry.command == SNAPSHOT {
            effects.release();
        }
    }

    fn query(&self, _query: &[u8], _reply: &mut Vec<u8>) {}

    fn snapshot(&self, _out: &mut Vec<u8>) {}

    fn snapshot_source(&self) -> Box<dyn SnapshotSource> {
        Box::new(Pattern { left: self.bytes })
    }

    fn restore(&mut self, _snapshot: &[u8]) -> Result<(), RestoreError> {
        Ok(())
    }

    fn begin_restore(&mut self, _bytes: u64) -> bool {
        true
    }

    fn restore_chunk(&mut self, _chunk: &[u8]) -> Result<(), RestoreError> {
        Ok(())
    }

    fn finish_restore(&mut self) -> Result<(), RestoreError> {
        Ok(())
    }
}

struct Pattern {
    left: u64,
}

impl SnapshotSource for Pattern {
    fn next_chunk(&mut self, out: &mut Vec<u8>, max: usize) -> bool {
        let bytes = self.left.min(max as u64);
        out.resize(out.len() + bytes as usize, self.left as u8);
        self.left -= bytes;
        self.left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_comes_back_as_it_was() {
        let soaked = Soaked { live_percent: 10, live_for: 100, snapshot_every: 10, big: None };
        let (mut queue, seen) = (Queue::new(soaked, Arc::default()), Arc::<AtomicU64>::default());
        (queue.applied, queue.live) = (7, VecDeque::from([(1, 101), (5, 105)]));
        let mut bytes = Vec::new();
        queue.snapshot(&mut bytes);
        let mut again = Queue::new(soaked, seen.clone());
        again.restore(&bytes).unwrap();
        assert_eq!((again.applied, &again.live, seen.load(Ordering::Relaxed)), (7, &queue.live, 7));
        assert_eq!(again.live_indexes().len(), 2);
        for cut in [0, 7, 16, 25] {
            assert!(again.restore(&bytes[..cut]).is_err(), "{cut}");
        }
        let mut source = Big { bytes: 1000 }.snapshot_source();
        let mut out = Vec::new();
        while source.next_chunk(&mut out, 300) {}
        assert_eq!(out.len(), 1000);
    }
}
