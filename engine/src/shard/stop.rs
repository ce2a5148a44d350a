//! Ending in good order: everybody is answered, machines that would have much to apply again leave a checkpoint, what is
//! under way becomes durable, the files are closed.
//!
//! Such a checkpoint is one as any other (`snapshots.rs`): no log depends on it, the next start takes it if it is sound and
//! the log agrees with it, and a snapshot that covers as much removes it. So an end that has no time for it, a disk that
//! is full, and a file that is damaged cost a longer start and nothing else.

use coracle_base::Index;
use coracle_base::run::Entries;
use coracle_io::{Clock, Disk, Net};

use super::parked::Parked;
use super::snapshots::WRITERS_MAX;
use super::{Answers, Shard, ShardError};
use crate::outcome::{Outcome, Reason, Unknown};

/// No stop waits longer for checkpoints, however many groups there are: what is left is applied again by the next start.
const CHECKPOINTS_US: u64 = 5_000_000;

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// Ends the shard.
    ///
    /// # Errors
    /// The last writes failed; nothing that was acknowledged depends on them.
    pub(crate) fn stop(mut self) -> Result<(), ShardError> {
        self.answer_everybody();
        self.reply();
        self.transport.flush(&mut self.net, self.now_us);
        self.net.submit()?;
        if let Err(error) = self.leave_checkpoints() {
            tracing::warn!(%error, "stopping: not all checkpoints of machines could be written; the next start takes longer");
        }
        if let Err(error) = self.leave_boots() {
            tracing::warn!(%error, "stopping: what was heard from other nodes last could not be written");
        }
        Ok(self.wal.shutdown(&mut self.disk)?)
    }

    /// Writes a checkpoint of each machine that has applied enough since its last one, those with the most first.
    fn leave_checkpoints(&mut self) -> Result<(), ShardError> {
        let interval = self.settings.min_recovery_checkpoint_interval;
        if interval == 0 {
            return Ok(());
        }
        let until_us = self.clock.now_us().saturating_add(CHECKPOINTS_US);
        let slots = (0..self.slots.len() as u32).map(|slot| (self.unkept(slot), slot));
        let mut due: Vec<(u64, u32)> = slots.filter(|(unkept, _)| *unkept >= interval).collect();
        due.sort_unstable();
        while self.clock.now_us() < until_us {
            while self.snapshots.writing() < WRITERS_MAX
                && let Some((_, slot)) = due.pop()
            {
                self.take_checkpoint(slot, 1);
            }
            if self.snapshots.writing() == 0 {
                return Ok(());
            }
            self.write_chunks();
            self.disk.wait()?;
            self.take_completions()?;
        }
        let (groups, files) = (due.len(), self.snapshots.writing());
        tracing::warn!(
            groups,
            files,
            "stopping: no time for the checkpoints of these; the next start takes longer"
        );
        Ok(())
    }

    /// Entries that a start would apply again, if a checkpoint can spare it that.
    fn unkept(&self, slot: u32) -> u64 {
        let one = &self.slots[slot as usize];
        let can =
            one.is_ready() && one.poisoned.is_none() && one.writing.is_none() && one.applied > Index::ZERO;
        if can { one.applied.since(one.newest_kept()) } else { 0 }
    }

    /// No command is left without an answer. Called once, when the shard stops or has failed.
    pub(crate) fn answer_everybody(&mut self) {
        self.inbox.close();
        let mut answers = Answers { completions: &mut self.completions, transport: &mut self.transport };
        let stopping = Outcome::not_done(Reason::Stopping, None);
        for slot in &mut self.slots {
            for waiting in slot.waiting.take_all() {
                for tag in waiting.open_tags() {
                    answers.give(&waiting.origin, *tag, &Outcome::Unknown(Unknown::Stopped));
                }
            }
            for parked in slot.parked.take_all() {
                match parked {
                    Parked::Propose { entries, origin, .. } => {
                        for entry in Entries::new(Index(1), entries.bytes()) {
                            answers.give(&origin, entry.header.tag, &stopping);
                        }
                    }
                    Parked::Query(question) => answers.give(&question.origin, question.tag, &stopping),
                }
            }
            for one in slot.transfer_for.drain(..) {
                answers.give(&one.origin, one.tag, &Outcome::Unknown(Unknown::Stopped));
            }
            for read in slot.reads.take_all() {
                answers.refuse_read(&read, Reason::Stopping, None);
            }
        }
        self.forwards.stop(&mut answers);
        self.end_watches();
        self.reply();
    }
}
