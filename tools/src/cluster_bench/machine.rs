//! A machine that does nothing but count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coracle::{Effects, Entry, Machine, RestoreError};

/// Commands between two snapshots, as in Ra's benchmark.
const RELEASE_EVERY: u64 = 100_000;

/// Counts what it applies, and lets others see the count.
#[derive(Debug)]
pub(crate) struct Count {
    applied: u64,
    seen: Arc<AtomicU64>,
    keep_log: bool,
}

impl Count {
    /// A count that `seen` shows; it never releases its log if it is to keep it.
    pub(crate) fn new(seen: Arc<AtomicU64>, keep_log: bool) -> Self {
        Self { applied: 0, seen, keep_log }
    }
}

impl Machine for Count {
    fn apply(&mut self, _entry: Entry<'_>, effects: &mut Effects<'_>) {
        self.applied += 1;
        self.seen.store(self.applied, Ordering::Relaxed);
        if self.applied.is_multiple_of(RELEASE_EVERY) && !self.keep_log {
            effects.release();
        }
    }

    fn query(&self, _query: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(&self.applied.to_le_bytes());
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.applied.to_le_bytes());
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        let bytes =
            snapshot.try_into().map_err(|_| RestoreError(format!("{} bytes, not 8", snapshot.len())))?;
        self.applied = u64::from_le_bytes(bytes);
        self.seen.store(self.applied, Ordering::Relaxed);
        Ok(())
    }
}
