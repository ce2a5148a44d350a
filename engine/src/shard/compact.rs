//! Compaction of the log, a bounded piece a turn: entries that live on leave files that are mostly garbage.
//!
//! It takes at most a fifth of the shard's time: after a piece that took `t` the next one waits for `4 t`. While the disk
//! is far behind it waits altogether.

use coracle_io::{Clock, Disk, DiskDone, Net};
use coracle_segments::{Bounds, Compactor};
use coracle_wal::Wal;

use super::Shard;

/// One part in so many of the time is for compaction.
const SHARE: u64 = 5;

/// The shard's compactor, and when it may go on.
#[derive(Debug)]
pub(super) struct Compaction {
    compactor: Compactor,
    not_before_us: u64,
    /// Microseconds that it took.
    pub(super) took_us: u64,
}

impl Compaction {
    pub(super) fn new(wal: &Wal) -> Self {
        let compactor = Compactor::new(Bounds::new(wal.file_room()));
        Self { compactor, not_before_us: 0, took_us: 0 }
    }

    pub(super) fn on_done<D: Disk>(&mut self, disk: &mut D, done: DiskDone) {
        self.compactor.on_done(disk, done);
    }
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// A piece of compaction, if there is something to compact and time for it.
    pub(super) fn compact(&mut self) {
        if self.now_us < self.compaction.not_before_us || self.disk_is_behind() {
            return;
        }
        let began_us = if self.compaction.compactor.is_idle() { None } else { Some(self.clock.now_us()) };
        self.compaction.compactor.step(&mut self.wal, &mut self.disk, self.now_us);
        if let Some(began_us) = began_us {
            let took_us = self.clock.now_us().saturating_sub(began_us);
            self.compaction.took_us += took_us;
            self.compaction.not_before_us = self.now_us + SHARE * took_us;
        }
    }

    /// Somebody asked for it: all that can be made smaller is, a piece a turn as ever.
    pub(super) fn compact_now(&mut self) {
        self.compaction.compactor.run_now();
    }

    /// Compaction could go on without a completion.
    fn compaction_is_ready(&self) -> bool {
        self.compaction.compactor.is_ready() || self.wal.has_moving_read()
    }

    /// Compaction has something to do at once.
    pub(super) fn compaction_is_due(&self) -> bool {
        self.compaction_is_ready() && self.now_us >= self.compaction.not_before_us && !self.disk_is_behind()
    }

    /// When compaction wants a turn though nothing happens. While the disk is behind, its completions bring one.
    pub(super) fn compaction_deadline_us(&self) -> u64 {
        if self.disk_is_behind() {
            return u64::MAX;
        }
        if self.compaction_is_ready() {
            return self.compaction.not_before_us.max(self.now_us);
        }
        self.compaction.compactor.deadline_us().unwrap_or(u64::MAX)
    }

    /// Fills in what the status says of compaction.
    pub(super) fn tell_compaction(&self, status: &mut super::ShardStatus) {
        let stats = self.compaction.compactor.stats();
        let wal = self.wal.stats();
        status.segment_bytes = wal.segment_bytes;
        status.compacted_files = stats.files_freed;
        status.compaction_us = self.compaction.took_us;
        (status.sealed_bytes, status.sealed_live_bytes) = (stats.held_bytes, stats.live_bytes);
    }
}
