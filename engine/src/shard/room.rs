//! Who may still write when the disk is full: the room in the log's ready files is kept in three reserves.
//!
//! ```text
//!   room in the ready files:   0 ........ half a file ........ a file ........
//!   ordinary commands                                          may write
//!   freeing commands, and what a leader sends                  may write
//!                              may write
//!   votes, no-ops, snapshots and releases, checkpoints
//!   may write, down to the last byte
//! ```
//!
//! While files can be made there is no limit. Refused commands end as `NotDone`, before anything is in doubt. A follower
//! cannot tell which entries of its leader's are freeing without having those before them, so it takes all of them down
//! to the last reserve; then it takes none, and the leader, which hears nothing, tries again now and then: the others of
//! the group go on. All of it ends by itself when there is room again.
//!
//! A disk that is slow is bounded by the same rules: while too much waits to be written, commands are `Busy` and a
//! follower lets pass by what its leader sends.
//!
//! Invariant: what is admitted in one turn is counted before the log has it, so that no reserve is passed.

use coracle_base::limits::{BLOCK_BYTES, ENTRY_BYTES_MAX, SHARD_UNCOMMITTED_BYTES};
use coracle_base::run::{ENTRY_HEADER_BYTES, Entries};
use coracle_base::{EntryBatch, EntryKind, EntryRef, Index, NodeId, RunRef};
use coracle_io::{Clock, Disk, Net};
use coracle_raft::Message;
use smallvec::SmallVec;

use super::Shard;
use super::inbox::Origin;
use crate::machine::Class;
use crate::outcome::Reason;
use crate::panics::caught;

/// Who wants to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// A command that takes space.
    Ordinary,
    /// A command that gives some back; or entries from a leader, which has judged them.
    Freeing,
    /// What the group cannot do without.
    Urgent,
}

/// Whether `bytes` may be written into `room`, of which the reserves are parts of a file.
fn may_write(need: Need, bytes: usize, room: u64, file: u64) -> bool {
    let reserved = match need {
        Need::Ordinary => file,
        Need::Freeing => file / 2,
        Need::Urgent => 0,
    };
    // At worst it is a batch of its own, with headers and padding.
    room >= reserved + (bytes + BLOCK_BYTES) as u64
}

/// The entries that are to be kept, of which those before are known, and the others.
fn split(
    entries: &EntryBatch,
    mut keep: impl FnMut(&EntryBatch, &EntryRef<'_>) -> bool,
) -> (EntryBatch, EntryBatch) {
    let (mut kept, mut others) = (EntryBatch::new(), EntryBatch::new());
    for entry in Entries::new(Index(1), entries.bytes()) {
        let to = if keep(&kept, &entry) { &mut kept } else { &mut others };
        to.push(entry.header.tag, entry.header.kind, entry.payload)
            .expect("it was an entry of a batch already");
    }
    (kept, others)
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// Whether there is room for so many bytes more in this turn.
    pub(super) fn may_write(&self, need: Need, bytes: usize) -> bool {
        let room = self.wal.room().map(|room| room.saturating_sub(self.unstaged_bytes as u64));
        room.is_none_or(|room| may_write(need, bytes, room, self.wal.file_room()))
    }

    /// Whether the disk is so far behind that nothing more may be put before it. A leader needs no disk of its own to
    /// commit, and so would go on for ever.
    pub(super) fn disk_is_behind(&self) -> bool {
        self.wal.backlog_bytes() + self.unstaged_bytes > SHARD_UNCOMMITTED_BYTES
    }

    /// Of entries for which there is no ordinary room, those that give space back and for which there is still some. The
    /// others are refused.
    pub(super) fn only_freeing(&mut self, slot: u32, entries: &EntryBatch, origin: &Origin) -> EntryBatch {
        let machine = &self.slots[slot as usize].machine;
        let is_freeing = |command: &[u8]| {
            // One that panics will poison itself when it applies the command; until then it is like any other.
            caught(|| machine.class(command)).unwrap_or(Class::Ordinary) == Class::Freeing
        };
        let (kept, refused) = split(entries, |kept, entry| {
            self.may_write(Need::Freeing, kept.bytes().len() + entry.payload.len())
                && is_freeing(entry.payload)
        });
        let leader = Some(self.settings.node);
        self.refuse(&refused, origin, Reason::DiskFull, leader);
        kept
    }

    /// Whether every entry fits a file of this log. Files that hold not even the largest entry are for tests.
    pub(super) fn all_fit(&self, entries: Entries<'_>) -> bool {
        let bytes_max = self.wal.run_bytes_max();
        let one = |payload: &[u8]| ENTRY_HEADER_BYTES + payload.len();
        bytes_max >= ENTRY_HEADER_BYTES + ENTRY_BYTES_MAX
            || entries.into_iter().all(|entry| one(entry.payload) <= bytes_max)
    }

    /// Of entries not all of which fit this log's files, those that do. The others are refused.
    pub(super) fn only_fitting(&mut self, entries: &EntryBatch, origin: &Origin) -> EntryBatch {
        let bytes_max = self.wal.run_bytes_max();
        let (kept, refused) =
            split(entries, |_, entry| ENTRY_HEADER_BYTES + entry.payload.len() <= bytes_max);
        let leader = Some(self.settings.node);
        self.refuse(&refused, origin, Reason::TooLarge, leader);
        kept
    }

    /// What of a leader's message there is room for: all of it, no more than that it leads, or nothing.
    pub(super) fn what_fits<'a>(
        &mut self,
        slot: u32,
        from: NodeId,
        message: Message,
        run: Option<RunRef<'a>>,
        payload_bytes: usize,
    ) -> Option<(Message, Option<RunRef<'a>>)> {
        let fits = match (&message, run) {
            (Message::Snapshot { .. }, _) => payload_bytes <= self.wal.snapshot_bytes_max(),
            (_, run) => run.is_none_or(|run| self.all_fit(run.entries())),
        };
        if !fits {
            let group = self.slots[slot as usize].id;
            tracing::warn!(%group, %from, payload_bytes, "this node's log files are too small for what the leader sends: raise wal_max_size_bytes");
            return None;
        }
        let need = match (&message, run) {
            (Message::Snapshot { .. }, _) => Need::Urgent,
            (_, Some(run)) if run.entries().all(|entry| entry.header.kind != EntryKind::Command) => {
                Need::Urgent
            }
            (_, Some(_)) => Need::Freeing,
            (_, None) => return Some((message, None)),
        };
        if self.may_write(need, payload_bytes) && !self.disk_is_behind() {
            self.unstaged_bytes += payload_bytes;
            return Some((message, run));
        }
        let one = &self.slots[slot as usize];
        tracing::debug!(group = %one.id, %from, payload_bytes, "no room for what the leader sends");
        match message {
            Message::Append { term, prev_index, prev_term, commit, trusted, held, .. }
                if one.raft.leader() != Some(from) || one.raft.term() != term =>
            {
                let (spans, answer, changes) = (SmallVec::new(), true, Vec::new());
                let probe = Message::Append {
                    term,
                    prev_index,
                    prev_term,
                    spans,
                    bytes: 0,
                    commit,
                    answer,
                    trusted,
                    held,
                    changes,
                };
                Some((probe, None))
            }
            // An answer would only bring the same again at once.
            _ => None,
        }
    }

    /// Says when the disk becomes full, and when that has passed.
    pub(super) fn watch_room(&mut self) {
        self.unstaged_bytes = 0;
        let is_full = !self.may_write(Need::Ordinary, 1);
        if is_full != self.status.disk_full {
            self.status.disk_full = is_full;
            if is_full {
                tracing::warn!(
                    room_bytes = self.wal.room(),
                    "the disk is full: commands that take space are refused until there is room; free some"
                );
                self.hurry_releases();
            } else {
                tracing::info!("there is room on the disk again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reserve_ends_where_the_next_begins() {
        let block = BLOCK_BYTES as u64;
        let file = 64 * 1024 - block;
        let (bytes, cost) = (1000, 1000 + block);
        for (need, reserve) in [(Need::Ordinary, file), (Need::Freeing, file / 2), (Need::Urgent, 0)] {
            assert!(may_write(need, bytes, reserve + cost, file), "{need:?}");
            assert!(!may_write(need, bytes, reserve + cost - 1, file), "{need:?}");
        }
    }
}
