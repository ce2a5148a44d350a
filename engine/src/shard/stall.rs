//! A disk that does not answer: what this node leads goes to others. Whether their disks answer is not known here.
//!
//! Beats go on while a disk hangs, so nobody else notices: entries commit without it, but no group whose leader needs
//! another vote, another member or its own log back comes on, and its clients wait for reads of files.
//!
//! ```text
//!   oldest unfinished write:   0 ........ disk_stall_us ........ twice that ........
//!                              sound      groups are handed over  what is led still is led no longer
//! ```
//!
//! Handing over may fail (no member has the whole log), so it is tried again and again, a pass over all groups each time,
//! until the leaders resign: then the others elect, of whom one has every committed entry.
//!
//! A process that stood still itself cannot tell: what finished meanwhile it has not taken yet. So after a pause the time
//! counts from its end.
//!
//! Invariants: (1) a turn looks at a bounded number of groups; (2) a group with no other voter stays as it is.

use coracle_io::{Clock, Disk, Net};
use coracle_raft::Role;

use super::Shard;

/// Groups looked at in one turn.
const GROUPS_PER_TURN: usize = 512;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Verdict {
    #[default]
    Sound,
    HandOver,
    Resign,
}

/// How the disk is, and how far the groups have been treated accordingly.
#[derive(Debug, Default)]
pub(super) struct Stall {
    verdict: Verdict,
    /// The next group of the pass.
    next: usize,
    /// When the next pass begins.
    pass_us: u64,
    /// The last turn, and since when there were turns without a pause.
    turn_us: u64,
    awake_us: u64,
}

/// What a write that is unfinished since then means; `limit_us` 0: nothing.
fn judge(since_us: Option<u64>, now_us: u64, limit_us: u64) -> Verdict {
    match since_us.map(|since_us| now_us.saturating_sub(since_us)) {
        Some(age_us) if limit_us > 0 && age_us >= 2 * limit_us => Verdict::Resign,
        Some(age_us) if limit_us > 0 && age_us >= limit_us => Verdict::HandOver,
        _ => Verdict::Sound,
    }
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// Looks at the age of the oldest unfinished write, and treats some of the groups accordingly.
    pub(super) fn watch_disk(&mut self) {
        let limit_us = self.settings.disk_stall_us;
        if self.now_us > self.stall.turn_us + limit_us / 2 {
            self.stall.awake_us = self.now_us;
        }
        self.stall.turn_us = self.now_us;
        let since_us = self.wal.unfinished_since_us().map(|since_us| since_us.max(self.stall.awake_us));
        let verdict = judge(since_us, self.now_us, limit_us);
        if verdict != self.stall.verdict {
            self.on_verdict(verdict);
        }
        if verdict == Verdict::Sound || self.now_us < self.stall.pass_us {
            return;
        }
        let end = self.slots.len().min(self.stall.next + GROUPS_PER_TURN);
        for slot in self.stall.next..end {
            self.give_up_lead(slot as u32, verdict);
        }
        self.stall.next = end;
        match end < self.slots.len() {
            true => self.again = true,
            false => (self.stall.next, self.stall.pass_us) = (0, self.now_us + self.settings.election_us),
        }
    }

    fn on_verdict(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Sound => tracing::info!("the disk answers again"),
            Verdict::HandOver => {
                self.status.disk_stalls += u64::from(self.stall.verdict == Verdict::Sound);
                let limit_ms = self.settings.disk_stall_us / 1000;
                tracing::warn!(limit_ms, "the disk has not finished a write for so long: leaders hand over");
            }
            Verdict::Resign => {
                self.status.disk_stalls += u64::from(self.stall.verdict == Verdict::Sound);
                tracing::warn!("the disk does not answer: this node stops leading");
            }
        }
        self.status.disk_stalled = verdict != Verdict::Sound;
        (self.stall.verdict, self.stall.next, self.stall.pass_us) = (verdict, 0, self.now_us);
    }

    fn give_up_lead(&mut self, slot: u32, verdict: Verdict) {
        if self.slots[slot as usize].raft.role() != Role::Leader {
            return;
        }
        if verdict == Verdict::Resign {
            let mut outputs = std::mem::take(&mut self.outputs);
            let resigned = self.slots[slot as usize].raft.resign(self.now_us, &mut outputs);
            self.status.stall_resignations += u64::from(resigned);
            outputs.drain(..).for_each(|output| self.on_output(slot, output));
            self.outputs = outputs;
            return self.touch(slot);
        }
        let is_new = self.slots[slot as usize].raft.transferring().is_none();
        self.status.stall_transfers += u64::from(is_new && self.begin_transfer(slot));
    }

    /// Whether a group's leader may hand it to this node. Whoever would give it away at once does not take it.
    pub(super) fn may_lead(&self, slot: u32) -> bool {
        self.stall.verdict == Verdict::Sound && self.slots[slot as usize].poisoned.is_none()
    }

    /// When there is something to look at though nothing happens.
    pub(super) fn stall_deadline_us(&self) -> u64 {
        let limit_us = self.settings.disk_stall_us;
        let Some(since_us) = self.wal.unfinished_since_us().filter(|_| limit_us > 0) else {
            return if self.stall.verdict == Verdict::Sound { u64::MAX } else { 0 };
        };
        let since_us = since_us.max(self.stall.awake_us);
        // A write that takes long is looked at so often that no sleep is taken for a pause.
        let look_us = (since_us + limit_us / 4).max(self.stall.turn_us + limit_us / 4);
        let judged_us = match self.stall.verdict {
            Verdict::Sound => since_us.saturating_add(limit_us),
            Verdict::HandOver => self.stall.pass_us.min(since_us.saturating_add(2 * limit_us)),
            Verdict::Resign => self.stall.pass_us,
        };
        judged_us.min(look_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_write_is_judged_by_its_age() {
        let of = |age_us: u64| judge(Some(1_000), 1_000 + age_us, 50);
        assert_eq!(
            [0, 49, 50, 99].map(of),
            [Verdict::Sound, Verdict::Sound, Verdict::HandOver, Verdict::HandOver]
        );
        assert_eq!([100, 10_000].map(of), [Verdict::Resign; 2]);
        assert_eq!(judge(None, 1_000_000, 50), Verdict::Sound, "nothing is being written");
        assert_eq!(judge(Some(0), 1_000_000, 0), Verdict::Sound, "it is switched off");
    }
}
