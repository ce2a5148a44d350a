//! Groups whose next entries to apply lie in files only, as after a start: many of them are served by sweeps over the
//! whole log, few by reads of their own.
//!
//! ```text
//!   apply → wait_for_files → waiting ── 4 or more, and it is calm ──→ a sweep, a slice a turn: what it meets is applied
//!                               └──── fewer, or a sweep brought nothing ──→ reads, few at a time
//! ```
//!
//! Consensus comes first. While groups are being started or elect leaders, no sweep begins or goes on; while commands wait
//! for the disk it has a quarter of the time. Then machines of groups that are led here, or that somebody waits for, come
//! before the others: if they are few, a sweep is for them alone.
//!
//! Invariants: (1) every group that waits is either in a list here or has a read under way, and then only; (2) a group
//! takes part in another sweep only if the one before brought it on, so sweeps come to an end; (3) a sweep goes on at the
//! latest [`GATHER_US_MAX`] after it was held up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use coracle_base::Index;
use coracle_base::run::Entries;
use coracle_io::{Clock, Disk, Net};
use coracle_raft::Role;
use coracle_wal::{Sweep, SweepProgress, SweptRun};

use super::groups::Slot;
use super::step::READ_BYTES;
use super::{ReadFor, Shard, ShardStatus};

/// From so many groups on one pass over the log is less than reading for each: their runs lie among each other, and to find
/// them a file is read whole anyway, for its index.
const SWEEP_GROUPS_MIN: usize = 4;
/// It is calm when no group was started, or changed its leader, for so long.
const CALM_US: u64 = 20_000;
/// And at the latest so long after it ceased to be.
const GATHER_US_MAX: u64 = 1_000_000;
/// A sweep's part of a turn; it looks at the clock after so many runs.
const SLICE_US: u64 = 1_000;
const SLICE_RUNS: usize = 32;
/// After a slice a sweep stands back for so many times its time, while others have something to do.
const STAND_BACK: u64 = 3;
/// Reads of single groups under way: the log runs them one by one, so more would only be in the way of followers' reads.
const READS_MAX: usize = 2;
/// Progress is told after each such part of a sweep.
const PARTS_TOLD: u64 = 10;

/// Who waits for files, and what is done about it.
#[derive(Debug, Default)]
pub(super) struct Sweeping {
    /// Groups for the next sweep; or in the present one, with what was applied when that began.
    waiting: BTreeMap<u32, Option<Index>>,
    /// Groups that a sweep did not bring on.
    passed_over: BTreeSet<u32>,
    /// Those of them that wait.
    alone: VecDeque<u32>,
    /// Who of the waiting was read last.
    read_last: u32,
    reading: usize,
    /// When the present unrest, or the last one, began, and its last sign.
    unrest_since_us: u64,
    unrest_us: u64,
    is_under_way: bool,
    /// Groups that the sweep was begun for, and how many of them are still behind.
    members: Vec<u32>,
    behind: usize,
    not_before_us: u64,
    progress: SweepProgress,
    parts_told: u64,
}

impl Sweeping {
    /// A read of a single group has ended.
    pub(super) fn on_read(&mut self) {
        self.reading -= 1;
    }

    /// A group was started, or got another leader.
    pub(super) fn on_unrest(&mut self, now_us: u64) {
        if now_us > self.unrest_us + CALM_US {
            self.unrest_since_us = now_us;
        }
        self.unrest_us = now_us;
    }

    fn calm_us(&self) -> u64 {
        (self.unrest_us + CALM_US).min(self.unrest_since_us + GATHER_US_MAX)
    }

    /// The time at which a sweep may begin, or go on with what it has read.
    pub(super) fn deadline_us(&self, has_read: bool) -> u64 {
        let gathers = !self.is_under_way && self.waiting.len() >= SWEEP_GROUPS_MIN;
        if gathers || has_read { self.calm_us().max(self.not_before_us) } else { u64::MAX }
    }

    fn add(&mut self, slot: u32) {
        if self.passed_over.contains(&slot) {
            return self.alone.push_back(slot);
        }
        self.waiting.insert(slot, None);
    }

    /// A group of the sweep has all that it needs from files. False if it does not wait.
    fn remove(&mut self, slot: u32) -> bool {
        let Some(before) = self.waiting.remove(&slot) else { return false };
        self.behind -= usize::from(before.is_some());
        true
    }

    /// The group in this slot is gone.
    pub(super) fn forget(&mut self, slot: u32) {
        self.remove(slot);
        self.passed_over.remove(&slot);
        self.alone.retain(|one| *one != slot);
    }

    /// Whether a sweep is, or was to be, for the group in this slot.
    pub(super) fn is_about(&self, slot: u32) -> bool {
        let is_listed = self.waiting.contains_key(&slot) || self.passed_over.contains(&slot);
        is_listed || self.alone.contains(&slot) || self.members.contains(&slot)
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

    pub(super) fn tell(&self, status: &mut ShardStatus) {
        status.groups_behind = (self.waiting.len() + self.alone.len() + self.reading) as u64;
        (status.sweep_bytes_done, status.sweep_bytes) = (self.progress.bytes_done, self.progress.bytes);
    }
}

/// Whom a sweep is for: the urgent ones alone if they are at most half of all, else everybody.
fn members(waiting: impl Iterator<Item = (u32, bool)>) -> Vec<u32> {
    let (urgent, others): (Vec<_>, Vec<_>) = waiting.partition(|(_, is_urgent)| *is_urgent);
    let is_for_few = !urgent.is_empty() && urgent.len() <= others.len();
    let others = others.into_iter().filter(|_| !is_for_few);
    urgent.into_iter().chain(others).map(|(slot, _)| slot).collect()
}

impl Slot {
    /// Whether its machine should have its state before others do.
    fn is_urgent(&self) -> bool {
        let is_asked = self.waiting.bytes() > 0 || !self.reads.is_empty() || !self.parked.is_empty();
        is_asked || self.raft.role() == Role::Leader
    }

    /// Reads something of each cache line that applying touches.
    fn touch(&self) -> u64 {
        let log = self.log.bytes() as u64 ^ self.log.first().0;
        let state = u64::from(self.is_ready()) ^ u64::from(self.poisoned.is_some());
        let wishes = u64::from(self.want_release) ^ self.bytes_since ^ self.reads.len() as u64;
        let raft = self.raft.commit().0 ^ u64::from(self.raft.leader().is_some());
        self.applied.0 ^ self.digest ^ self.waiting.bytes() as u64 ^ log ^ state ^ wishes ^ raft
    }
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// The group's next entry to apply lies in files only.
    pub(super) fn wait_for_files(&mut self, slot: u32) {
        self.slots[slot as usize].apply_read = true;
        self.sweeping.add(slot);
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

    /// Applies a slice of what the sweep has read, if it may go on, and sees to it that every group that waits is served.
    pub(super) fn step_sweep(&mut self) {
        let may_go_on = self.now_us >= self.sweeping.calm_us().max(self.sweeping.not_before_us);
        if may_go_on && let Some(sweep) = self.wal.lend_sweep() {
            self.step_slice(sweep);
        }
        if self.wal.is_sweeping() {
            if self.sweeping.behind == 0 {
                self.wal.end_sweep();
            }
            return;
        }
        if self.sweeping.is_under_way {
            self.end_sweep();
        }
        if self.sweeping.waiting.len() < SWEEP_GROUPS_MIN {
            self.read_alone();
        } else if may_go_on {
            self.begin_sweep();
        }
    }

    fn step_slice(&mut self, mut sweep: Box<Sweep>) {
        let began_us = self.clock.now_us();
        let mut took_us = 0;
        let mut has_more = true;
        while has_more && took_us < SLICE_US {
            // All that these groups miss in the cache, they miss at once.
            let upcoming = sweep
                .upcoming()
                .take(SLICE_RUNS)
                .filter_map(|number| self.sweeping.members.get(number as usize));
            std::hint::black_box(upcoming.fold(0, |sum, slot| sum ^ self.slots[*slot as usize].touch()));
            for _ in 0..SLICE_RUNS {
                let Some(run) = sweep.next(&self.wal) else {
                    has_more = false;
                    break;
                };
                self.apply_swept(&run);
            }
            took_us = self.clock.now_us().saturating_sub(began_us);
        }
        self.wal.return_sweep(&mut self.disk, sweep);
        self.again = true;
        if !self.inbox.is_empty() || self.wal.backlog_bytes() > 0 {
            self.sweeping.not_before_us = self.now_us + (1 + STAND_BACK) * took_us;
        }
        self.tell_progress();
    }

    fn tell_progress(&mut self) {
        let Some(progress) = self.wal.sweep_progress() else { return };
        self.sweeping.progress = progress;
        let parts = progress.bytes_done * PARTS_TOLD / progress.bytes.max(1);
        if parts > self.sweeping.parts_told {
            self.sweeping.parts_told = parts;
            let SweepProgress { bytes_done, bytes } = progress;
            tracing::info!(
                bytes_done,
                bytes,
                groups_behind = self.sweeping.behind,
                "the log is being applied again"
            );
        }
    }

    fn begin_sweep(&mut self) {
        let waiting =
            self.sweeping.waiting.keys().map(|slot| (*slot, self.slots[*slot as usize].is_urgent()));
        let members = members(waiting);
        for slot in &members {
            self.sweeping.waiting.insert(*slot, Some(self.slots[*slot as usize].applied));
        }
        let wanted = members.iter().map(|slot| &self.slots[*slot as usize]);
        self.wal.begin_sweep(&mut self.disk, wanted.map(|one| (one.id, one.applied.next())));
        self.sweeping.progress = self.wal.sweep_progress().unwrap_or_default();
        let (bytes, others) = (self.sweeping.progress.bytes, self.sweeping.waiting.len() - members.len());
        tracing::info!(bytes, groups = members.len(), others, "sweeping the log for entries to apply");
        (self.sweeping.behind, self.sweeping.members) = (members.len(), members);
        (self.sweeping.is_under_way, self.sweeping.parts_told) = (true, 0);
        self.again = true;
    }

    fn end_sweep(&mut self) {
        self.sweeping.is_under_way = false;
        self.sweeping.progress.bytes_done = self.sweeping.progress.bytes;
        for slot in std::mem::take(&mut self.sweeping.members) {
            let Some(before) = self.sweeping.waiting.get(&slot).copied().flatten() else { continue };
            self.sweeping.remove(slot);
            if !self.needs_files(slot) {
                self.resume(slot);
                continue;
            }
            if before == self.slots[slot as usize].applied {
                self.sweeping.passed_over.insert(slot);
            }
            self.sweeping.add(slot);
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
        let Some(slot) = self.sweeping.members.get(run.number as usize).copied() else { return };
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
        let one = &self.slots[slot as usize];
        let is_there = !self.needs_files(slot);
        if is_there || one.want_release || one.want_checkpoint || !one.reads.is_empty() {
            self.after_apply(slot);
        }
        if is_there && self.sweeping.remove(slot) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgent_groups_are_swept_alone_while_they_are_few() {
        let swept = |urgent: &[u32], others: &[u32]| {
            let all = urgent.iter().map(|slot| (*slot, true)).chain(others.iter().map(|slot| (*slot, false)));
            let mut members = members(all);
            members.sort_unstable();
            members
        };
        assert_eq!(swept(&[4], &[1, 2, 3]), [4]);
        assert_eq!(swept(&[4, 5], &[1, 2]), [4, 5], "half of all");
        assert_eq!(
            swept(&[4, 5, 6], &[1, 2]),
            [1, 2, 4, 5, 6],
            "a second pass for so few others is not worth it"
        );
        assert_eq!(swept(&[], &[1, 2]), [1, 2]);
    }

    #[test]
    fn it_is_calm_some_time_after_the_last_unrest_and_at_the_latest_after_a_second() {
        let mut sweeping = Sweeping::default();
        sweeping.on_unrest(5_000_000);
        assert_eq!(sweeping.calm_us(), 5_000_000 + CALM_US);
        for at in 1..200 {
            sweeping.on_unrest(5_000_000 + at * CALM_US);
        }
        assert_eq!(sweeping.calm_us(), 5_000_000 + GATHER_US_MAX, "unrest that never ends");
        sweeping.on_unrest(20_000_000);
        assert_eq!(sweeping.calm_us(), 20_000_000 + CALM_US, "a new one");
    }
}
