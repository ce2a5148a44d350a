//! Groups whose next entries to apply lie in files only, as after a start: many of them are served by sweeps over the
//! whole log, few by reads of their own.
//!
//! ```text
//!   apply → wait_for_files → waiting ── 4 or more, and no more are coming ──→ a sweep: what it meets is applied
//!                               └───── fewer, or a sweep brought nothing ───→ reads, few at a time
//! ```
//!
//! Invariants: (1) every group that waits is either in a list here or has a read under way, and then only; (2) a group
//! takes part in another sweep only if the one before brought it on, so sweeps come to an end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use coracle_base::Index;
use coracle_base::run::Entries;
use coracle_io::{Clock, Disk, Net};
use coracle_wal::SweptRun;

use super::step::READ_BYTES;
use super::{ReadFor, Shard};

/// From so many groups on one pass over the log is less than reading for each: their runs lie among each other, and to find
/// them a file is read whole anyway, for its index.
const SWEEP_GROUPS_MIN: usize = 4;
/// A sweep begins when no further group has come for so long: after a start, leaders are found one by one.
const QUIET_US: u64 = 20_000;
/// And at the latest after this.
const GATHER_US_MAX: u64 = 250_000;
/// Reads of single groups under way: the log runs them one by one, so more would only be in the way of followers' reads.
const READS_MAX: usize = 2;

/// Who waits for files, and what is done about it.
#[derive(Debug, Default)]
pub(super) struct Sweeping {
    /// Groups for the next sweep or in the present one; with what was applied when that began.
    waiting: BTreeMap<u32, Option<Index>>,
    /// Groups that a sweep did not bring on.
    passed_over: BTreeSet<u32>,
    /// Those of them that wait.
    alone: VecDeque<u32>,
    /// Who of the waiting was read last.
    read_last: u32,
    reading: usize,
    /// When the first and the last of the waiting came.
    since_us: u64,
    newest_us: u64,
    is_under_way: bool,
}

impl Sweeping {
    /// A read of a single group has ended.
    pub(super) fn on_read(&mut self) {
        self.reading -= 1;
    }

    fn begins_us(&self) -> u64 {
        (self.newest_us + QUIET_US).min(self.since_us + GATHER_US_MAX)
    }

    /// The time at which a sweep is to begin.
    pub(super) fn deadline_us(&self) -> u64 {
        let gathers = !self.is_under_way && self.waiting.len() >= SWEEP_GROUPS_MIN;
        if gathers { self.begins_us() } else { u64::MAX }
    }

    fn add(&mut self, slot: u32, now_us: u64) {
        if self.passed_over.contains(&slot) {
            return self.alone.push_back(slot);
        }
        if self.waiting.is_empty() {
            self.since_us = now_us;
        }
        self.newest_us = now_us;
        self.waiting.insert(slot, None);
    }

    /// Who is to be read next on its own: one after the other.
    fn next_alone(&mut self) -> Option<u32> {
        if let Some(slot) = self.alone.pop_front() {
            return Some(slot);
        }
        let after = self.waiting.range(self.read_last + 1..).next();
        let slot = *after.or_else(|| self.waiting.first_key_value())?.0;
        self.waiting.remove(&slot);
        self.read_last = slot;
        Some(slot)
    }
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// The group's next entry to apply lies in files only.
    pub(super) fn wait_for_files(&mut self, slot: u32) {
        self.slots[slot as usize].apply_read = true;
        self.sweeping.add(slot, self.now_us);
    }

    /// The group waits for files no more.
    pub(super) fn resume(&mut self, slot: u32) {
        let one = &mut self.slots[slot as usize];
        one.apply_read = false;
        if !one.applying && one.applied < one.raft.commit() && one.poisoned.is_none() && one.is_ready() {
            one.applying = true;
            self.applying.push(slot);
        }
    }

    /// Applies what the sweep has read, at most 2 MiB, and sees to it that every group that waits is served.
    pub(super) fn step_sweep(&mut self) {
        if let Some(mut sweep) = self.wal.lend_sweep() {
            while let Some(run) = sweep.next(&self.wal) {
                self.apply_swept(&run);
            }
            self.wal.return_sweep(&mut self.disk, sweep);
            self.again = true;
        }
        if self.wal.is_sweeping() {
            if self.sweeping.waiting.is_empty() {
                self.wal.end_sweep();
            }
            return;
        }
        if self.sweeping.is_under_way {
            self.end_sweep();
        }
        if self.sweeping.waiting.len() < SWEEP_GROUPS_MIN {
            self.read_alone();
        } else if self.now_us >= self.sweeping.begins_us() {
            self.begin_sweep();
        }
    }

    fn begin_sweep(&mut self) {
        tracing::info!(groups = self.sweeping.waiting.len(), "sweeping the log for entries to apply");
        for (slot, applied) in &mut self.sweeping.waiting {
            *applied = Some(self.slots[*slot as usize].applied);
        }
        self.sweeping.is_under_way = true;
        let wanted = self.sweeping.waiting.keys().map(|slot| &self.slots[*slot as usize]);
        self.wal.begin_sweep(&mut self.disk, wanted.map(|one| (one.id, one.applied.next())));
        self.again = true;
    }

    fn end_sweep(&mut self) {
        self.sweeping.is_under_way = false;
        for (slot, before) in std::mem::take(&mut self.sweeping.waiting) {
            if !self.needs_files(slot) {
                self.resume(slot);
                continue;
            }
            if before == Some(self.slots[slot as usize].applied) {
                self.sweeping.passed_over.insert(slot);
            }
            self.sweeping.add(slot, self.now_us);
        }
    }

    /// Whether the next entry to apply is in files only.
    fn needs_files(&self, slot: u32) -> bool {
        let one = &self.slots[slot as usize];
        let next = one.applied.next();
        one.poisoned.is_none() && one.is_ready() && next <= one.raft.commit() && next < one.log.first()
    }

    /// Applies what of a run continues its group's state and is committed. The rest is left.
    fn apply_swept(&mut self, run: &SweptRun<'_>) {
        let Some(slot) = self.by_group.get(&run.group).copied() else { return };
        let one = &self.slots[slot as usize];
        let next = one.applied.next();
        let upto = run.first.plus(u64::from(run.count)).prev().min(one.raft.commit());
        if one.poisoned.is_some() || !one.is_ready() || run.first > next || next > upto {
            return;
        }
        let mut entries = Entries::new(run.first, run.entries);
        if next > run.first {
            entries.nth(next.since(run.first) as usize - 1);
        }
        let wanted = entries.rest();
        entries.nth(upto.since(next) as usize);
        let wanted = &wanted[..wanted.len() - entries.rest().len()];
        self.apply_entries(slot, next, wanted);
        self.after_apply(slot);
        if !self.needs_files(slot) && self.sweeping.waiting.remove(&slot).is_some() {
            self.resume(slot);
        }
    }

    fn read_alone(&mut self) {
        while self.sweeping.reading < READS_MAX
            && let Some(slot) = self.sweeping.next_alone()
        {
            if !self.needs_files(slot) {
                self.resume(slot);
                continue;
            }
            let one = &self.slots[slot as usize];
            let (group, next) = (one.id, one.applied.next());
            let last = one.raft.commit().min(one.log.first().prev());
            let token = self.token();
            self.reads.insert(token, ReadFor::Apply { slot });
            self.sweeping.reading += 1;
            self.wal.read(&mut self.disk, token, group, next, last, READ_BYTES);
            self.again = true;
        }
    }
}
