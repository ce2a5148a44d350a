//! A group's end on this node: it is gone for good, and its uid never comes again.
//!
//! ```text
//!   everybody who waits is answered → a record in the log says that nothing of it is needed → durable: its files go
//!                                   → its slot is vacant, and used again once nothing under way is of the old group
//! ```
//!
//! Invariants: (1) nothing is staged for a group after the record of its end; (2) its files go only when that is durable: what
//! a log names is there; (3) a slot is another group's only when no read, write or timer of the old one can come back to it.

use std::collections::VecDeque;

use coracle_base::run::Entries;
use coracle_base::{GroupId, Index};
use coracle_io::{Clock, Disk, Net};
use coracle_raft::{Config as RaftConfig, Group, Restored};
use coracle_segments::snapshot::SnapshotName;
use coracle_wal::BatchSeq;

use super::groups::{Held, Slot};
use super::parked::Parked;
use super::readings::question_bytes;
use super::snapshots::Checkpoint;
use super::{Answers, Shard};
use crate::machine::{Effects, Entry, Machine, RestoreError};
use crate::outcome::{Outcome, Reason, Unknown};

/// Vacant slots that are looked at for a new group.
const LOOKS: usize = 8;

/// What is left of groups that are gone.
#[derive(Default)]
pub(super) struct Removed {
    /// Files that go when this batch is durable.
    files: VecDeque<(BatchSeq, Vec<SnapshotName>)>,
    /// Slots, the one that was vacated first in front.
    vacant: VecDeque<u32>,
}

/// The machine of nobody.
struct NoMachine;

impl Machine for NoMachine {
    fn apply(&mut self, _: Entry<'_>, _: &mut Effects<'_>) {}
    fn query(&self, _: &[u8], _: &mut Vec<u8>) {}
    fn snapshot(&self, _: &mut Vec<u8>) {}
    fn restore(&mut self, _: &[u8]) -> Result<(), RestoreError> {
        Ok(())
    }
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// Removes a group from this node, whether it runs or lies on the disk only. Whether it was here.
    pub(super) fn remove_group(&mut self, group: GroupId) -> bool {
        let files = if let Some(slot) = self.by_group.remove(&group) {
            self.vacate(slot)
        } else if let Some(found) = self.recovered.remove(&group) {
            let marked = found.snapshot_file.map(|file| SnapshotName::Snapshot { file_no: file.file_no });
            let part = self.snapshots.part_of(group);
            part.into_iter().for_each(|part| self.snapshots.remove_part(&mut self.disk, part));
            let checkpoints = self.snapshots.checkpoints_of(&mut self.disk, group, |_, _| true);
            marked.into_iter().chain(checkpoints.into_iter().map(|one| one.name)).collect()
        } else {
            self.snapshots.remove_found(&mut self.disk, group);
            return false;
        };
        let batch = self.wal.delete(group);
        self.on_whole();
        self.removed.files.push_back((batch, files));
        self.status.groups_deleted += 1;
        self.again = true;
        true
    }

    /// Files whose group's end is durable.
    pub(super) fn remove_files(&mut self) {
        let durable = self.wal.durable();
        while let Some((_, files)) = self.removed.files.pop_front_if(|(batch, _)| durable.covers(*batch)) {
            files.into_iter().for_each(|name| self.snapshots.remove(&mut self.disk, name));
        }
    }

    /// Puts a group into a slot: a vacant one that nothing under way comes back to, or a new one.
    pub(super) fn place_slot(&mut self, slot: Slot) -> u32 {
        let looks = self.removed.vacant.len().min(LOOKS);
        let idle = (0..looks).find(|at| self.is_idle(self.removed.vacant[*at]));
        match idle.and_then(|at| self.removed.vacant.remove(at)) {
            Some(at) => {
                self.slots[at as usize] = slot;
                at
            }
            None => {
                // Those behind them come first the next time.
                self.removed.vacant.rotate_left(looks);
                self.slots.push(slot);
                self.slots.len() as u32 - 1
            }
        }
    }

    /// Slots, used and vacant ones.
    pub(crate) fn group_slots(&self) -> usize {
        self.slots.len()
    }

    /// Nobody waits for anything of it any more.
    fn is_idle(&self, slot: u32) -> bool {
        let one = &self.slots[slot as usize];
        let is_touched = one.dirty || one.applying || one.election_waits || one.writing.is_some();
        let waits_for_disk = || {
            let is_its = |then: &super::OnDurable| match then {
                super::OnDurable::Persisted { slot: of, .. }
                | super::OnDurable::Released { slot: of, .. } => *of == slot,
            };
            let reads = |of: &super::ReadFor| match of {
                super::ReadFor::Apply { slot: of } | super::ReadFor::Follower { slot: of, .. } => *of == slot,
            };
            self.on_durable.iter().any(|(_, then)| is_its(then)) || self.reads.values().any(reads)
        };
        !is_touched
            && !waits_for_disk()
            && !self.snapshots.is_about(slot)
            && !self.sweeping.is_about(slot)
            && !self.index_reads.is_about(slot)
    }

    /// Ends all that is under way for a group, and leaves its slot to nobody. Its files come back.
    fn vacate(&mut self, slot: u32) -> Vec<SnapshotName> {
        self.answer_for_deleted(slot);
        self.abandon_restore(slot);
        self.abandon_writing(slot);
        self.end_sends_of(slot);
        self.sweeping.forget(slot);
        let one = &mut self.slots[slot as usize];
        self.arena_bytes -= one.log.bytes();
        self.status.groups -= 1;
        self.status.groups_restoring -= u64::from(!one.is_ready());
        if let Some(at) = one.timer_us.take() {
            self.timers.remove(&(at, slot));
        }
        if let Some(part) = one.part.take() {
            self.snapshots.remove_part(&mut self.disk, part);
        }
        let mut files: Vec<SnapshotName> = one.superseded.drain(..).map(|(_, name)| name).collect();
        files.extend(one.checkpoints.drain(..).map(|Checkpoint { name, .. }| name));
        if let Some(Held::File { file, .. }) = one.snapshot.take() {
            files.push(SnapshotName::Snapshot { file_no: file.file_no });
        }
        let nobody = Group::new(RaftConfig::new(self.settings.node, []), Restored::default(), self.now_us);
        let mut vacant = Slot::new(one.id, nobody, Box::new(NoMachine), Index::ZERO);
        (vacant.dirty, vacant.applying, vacant.writing) = (one.dirty, one.applying, one.writing);
        (vacant.election_waits, vacant.apply_read) = (one.election_waits, one.apply_read);
        (vacant.gone, vacant.diverged, vacant.poisoned) = (true, true, Some("the group is deleted".into()));
        *one = vacant;
        self.removed.vacant.push_back(slot);
        files
    }

    /// What was in its log may have been applied somewhere, for what that is worth; all else was not done.
    fn answer_for_deleted(&mut self, slot: u32) {
        let one = &mut self.slots[slot as usize];
        let mut answers = Answers { completions: &mut self.completions, transport: &mut self.transport };
        let refused = Outcome::not_done(Reason::Deleted, None);
        self.waiting_bytes -= one.waiting.bytes();
        for waiting in one.waiting.take_all() {
            for tag in waiting.open_tags() {
                answers.give(&waiting.origin, *tag, &Outcome::Unknown(Unknown::Deleted));
            }
        }
        for parked in one.parked.take_all() {
            match parked {
                Parked::Propose { entries, origin, .. } => {
                    self.waiting_bytes -= entries.bytes().len();
                    for entry in Entries::new(Index(1), entries.bytes()) {
                        answers.give(&origin, entry.header.tag, &refused);
                    }
                }
                Parked::Query(question) => {
                    self.waiting_bytes -= question_bytes(&question.query);
                    answers.give(&question.origin, question.tag, &refused);
                }
            }
        }
        for one in one.transfer_for.drain(..) {
            answers.give(&one.origin, one.tag, &refused);
        }
        for reply in one.shrinking.drain(..) {
            reply.answer(Err(crate::Error::NoGroup(one.id)));
        }
        for read in one.reads.take_all() {
            self.waiting_bytes -= question_bytes(&read.query);
            answers.refuse_read(&read, Reason::Deleted, None);
        }
    }
}
