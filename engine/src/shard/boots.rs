//! What the other nodes remember of this directory, and what follows when it is more than is here.
//!
//! ```text
//!   a link comes up, its hello says "I heard that you are durable up to batch S of boot b"
//!     └─ that much is here ─> nothing
//!     └─ it is not ─> an older copy: every group here may have forgotten votes (`coracle_raft::Input::VotesLost`), before it
//!                     hears that the link is up; noted durably; until then we do not say how far we are durable, or the
//!                     others would forget what they remember
//!   all groups here are whole again, and durably so ─> noted
//! ```
//!
//! Groups that are started later are told when they start; also those that are not on the disk, as the newer directory may
//! have had them. A log that is damaged so that it does not say of whom is no different. Such a group is on the disk with its
//! first record, and nothing in that says that its votes are lost: so it hears and says nothing before the file says it.
//!
//! Invariants: (1) what is told to be durable is what votes and acknowledgements rest on, and all of it leaves with or
//! before what rests on it; (2) the file is written by one operation at a time, and only while it differs; (3) no record of a
//! group whose votes are lost is staged while a restart would not know.

use std::path::PathBuf;

use coracle_base::NodeId;
use coracle_base::codec::Sink;
use coracle_base::limits::BLOCK_BYTES;
use coracle_io::{Clock, Disk, DiskDone, DiskOk, DiskOp, FileId, Net};
use coracle_raft::Input;
use coracle_wal::BatchSeq;

use super::{Shard, ShardError};
use crate::lineage::{Forgotten, HEARD_MAX, Lineage};

/// What was heard meanwhile is written after so long.
const SAVE_US: u64 = 30_000_000;
/// A file that could not be written is tried again after so long.
const AGAIN_US: u64 = 500_000;
/// The word of all operations that are ours: there is one at a time.
const TOKEN: u64 = 0x4c << 56;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Open,
    Write,
    Sync,
    Close,
    Rename,
    SyncDir,
}

struct Saving {
    step: Step,
    file: Option<FileId>,
    /// As it is being written.
    lineage: Lineage,
}

/// The shard's part of it.
pub(super) struct Boots {
    lineage: Lineage,
    /// As it is on the disk.
    saved: Lineage,
    saving: Option<Saving>,
    /// Something that others depend on is to be written at once, or what was heard in time.
    save_at_us: u64,
    /// An older copy was noticed since the start: more words of it tell nothing new.
    is_old: bool,
    /// A group became whole, or went, or came: perhaps all are whole.
    look: bool,
    /// All were, and it is durable with this batch.
    whole_with: Option<BatchSeq>,
    /// The newest durable batch that something rests on.
    promised: u64,
    /// The directory was here before this start: it may be a copy.
    has_past: bool,
}

/// Whether a completion is ours.
pub(super) fn owns(token: u64) -> bool {
    token == TOKEN
}

impl Boots {
    /// `saved`: as it is on the disk, which may have had no room for what it is now. What was promised in earlier boots is in the
    /// log that was found, up to `end_seq`: so the others know this boot before anything is promised in it.
    pub(super) fn new(lineage: Lineage, saved: Lineage, end_seq: u64, is_new: bool) -> Self {
        let save_at_us = if lineage == saved { u64::MAX } else { 0 };
        let (is_old, look) = (false, lineage.votes_lost);
        let (saving, whole_with) = (None, None);
        let has_past = !is_new || lineage.has_past();
        Self { lineage, saved, saving, save_at_us, is_old, look, whole_with, promised: end_seq, has_past }
    }

    /// Whether a group that was found here may have forgotten votes.
    pub(super) fn votes_are_lost(&self) -> bool {
        self.lineage.votes_lost
    }

    /// Whether one that was not found may have been here.
    pub(super) fn is_unnamed(&self) -> bool {
        self.lineage.is_unnamed
    }

    /// Whether a group that was not found may have been here, for all that others could say: a copy does not know its own.
    pub(super) fn has_past(&self) -> bool {
        self.has_past
    }

    /// Whether a restart would know that votes are lost, whatever of the file is under way.
    fn is_loss_durable(&self) -> bool {
        self.saved.votes_lost && self.saving.as_ref().is_none_or(|saving| saving.lineage.votes_lost)
    }

    /// A group was not found, and its votes may be lost. Whether that is durable already.
    pub(super) fn doubt(&mut self) -> bool {
        (self.lineage.votes_lost, self.whole_with) = (true, None);
        let is_durable = self.is_loss_durable();
        if !is_durable {
            self.save_at_us = 0;
        }
        is_durable
    }

    pub(super) fn deadline_us(&self) -> u64 {
        if self.saving.is_some() { u64::MAX } else { self.save_at_us }
    }

    /// How far we may say to be durable: not before it is on the disk which boot this is, and what it has lost.
    fn tells(&self) -> u64 {
        let same = self.lineage.is_known_to(&self.saved);
        if same { self.promised } else { 0 }
    }
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// A batch that a vote or an acknowledgement may rest on is durable.
    pub(super) fn on_promise(&mut self, batch: BatchSeq) {
        self.boots.promised = self.boots.promised.max(batch.0);
    }

    /// Whatever leaves from now on may rest on it.
    pub(super) fn tell_durable(&mut self) {
        let upto = self.boots.tells();
        self.transport.tell_durable(upto);
    }

    /// A link is up; its node said what it has heard of us. To be called before any group hears of it.
    pub(super) fn judge_directory(&mut self, node: NodeId) {
        let Some(told) = self.transport.link(node).and_then(|link| link.told) else { return };
        tracing::debug!(%node, ?told, "a node says what it heard of this one");
        if self.boots.is_old || told.incarnation != self.transport.incarnation() || ignores_watermark(self) {
            return;
        }
        let Some(forgotten) = self.boots.lineage.forgotten(told) else { return };
        let what = match forgotten {
            Forgotten::Batches(count) => format!("the last {count} batches of boot {}", told.epoch),
            Forgotten::Boot(seq) => format!("boot {}, up to batch {seq}", told.epoch),
        };
        tracing::error!(
            %node, what,
            "this data directory is an older copy of itself, or its disk lied: that node has heard of more than is here. \
             Votes and entries may be forgotten: no group here votes or counts before all of its other voters have answered"
        );
        self.boots.is_old = true;
        (self.boots.lineage.votes_lost, self.boots.lineage.is_unnamed) = (true, true);
        (self.boots.save_at_us, self.boots.whole_with) = (0, None);
        self.status.directory_old = true;
        for slot in 0..self.slots.len() as u32 {
            let was = self.slots[slot as usize].raft.suspect();
            self.input(slot, Input::VotesLost);
            let is = self.slots[slot as usize].raft.suspect();
            self.status.groups_damaged += u64::from(is && !was);
        }
        self.boots.look = true;
    }

    /// A node says how far it is durable.
    pub(super) fn on_mark(&mut self, node: NodeId, seq: u64) {
        let Some(mark) = self.transport.hear_mark(node, seq) else { return };
        let known = self.boots.lineage.heard.iter_mut().find(|(known, _)| *known == node);
        let is_other_boot = known.as_ref().is_none_or(|(_, known)| (known.boot) != mark.boot);
        match known {
            Some((_, known)) => *known = mark,
            None => {
                // Who left the cluster makes room for those that are in it.
                if self.boots.lineage.heard.len() >= HEARD_MAX {
                    let transport = &self.transport;
                    self.boots.lineage.heard.retain(|(known, _)| transport.link(*known).is_some());
                }
                self.boots.lineage.heard.push((node, mark));
            }
        }
        let wait_us = if is_other_boot { 0 } else { SAVE_US };
        self.boots.save_at_us = self.boots.save_at_us.min(self.now_us + wait_us);
    }

    /// A group is whole again, or gone, or was taken up.
    pub(super) fn on_whole(&mut self) {
        self.boots.look = true;
    }

    /// Once a turn.
    pub(super) fn step_boots(&mut self) {
        if self.boots.lineage.votes_lost {
            self.look_whether_whole();
        }
        if self.boots.saving.is_none() && self.now_us >= self.boots.save_at_us {
            self.boots.save_at_us = u64::MAX;
            if self.boots.lineage != self.boots.saved {
                let lineage = self.boots.lineage.clone();
                self.boots.saving = Some(Saving { step: Step::Open, file: None, lineage });
                self.disk.start(TOKEN, Lineage::open_new(self.transport.shard()));
            }
        }
    }

    fn look_whether_whole(&mut self) {
        if std::mem::take(&mut self.boots.look) {
            let is_whole = self.recovered.is_empty() && self.slots.iter().all(|one| !one.raft.suspect());
            // What they voted since is in the newest batch at the latest that something waits for, once it is staged.
            self.boots.whole_with = is_whole.then_some(BatchSeq(u64::MAX));
            return;
        }
        let Some(with) = self.boots.whole_with else { return };
        if with == BatchSeq(u64::MAX) {
            let newest = self.on_durable.back().map_or(BatchSeq(0), |(batch, _)| *batch);
            self.boots.whole_with = Some(newest);
        } else if self.wal.durable().covers(with) {
            tracing::info!(
                "all groups here are whole again: what this directory had forgotten is made up for"
            );
            self.boots.whole_with = None;
            self.boots.lineage.votes_lost = false;
            self.boots.save_at_us = 0;
        }
    }

    fn save_step(&mut self, step: Step, op: DiskOp) {
        if let Some(saving) = &mut self.boots.saving {
            saving.step = step;
            self.disk.start(TOKEN, op);
        }
    }

    /// A step of writing the file is done.
    pub(super) fn on_boots_done(&mut self, done: DiskDone) {
        if let Some(buf) = done.buf {
            self.disk.recycle(buf);
        }
        let Some(saving) = &mut self.boots.saving else { return };
        if let Ok(DiskOk::Opened { file, .. }) = &done.result {
            saving.file = Some(*file);
        }
        let shard = self.transport.shard();
        match (saving.step, saving.file, done.result) {
            (_, _, Err(error)) => self.fail_saving(&error.to_string()),
            (Step::Open, Some(file), Ok(_)) => {
                let mut buf = self.disk.buffer(BLOCK_BYTES);
                buf.put(&saving.lineage.encode());
                buf.resize(BLOCK_BYTES);
                self.save_step(Step::Write, DiskOp::Write { file, offset: 0, buf });
            }
            (Step::Write, Some(file), Ok(_)) => self.save_step(Step::Sync, DiskOp::Sync { file }),
            (Step::Sync, Some(file), Ok(_)) => {
                // Whatever comes of it, it is not closed twice: its number may be another file's then.
                saving.file = None;
                self.save_step(Step::Close, DiskOp::Close { file });
            }
            (Step::Close, ..) => self.save_step(Step::Rename, Lineage::rename(shard)),
            (Step::Rename, ..) => self.save_step(Step::SyncDir, DiskOp::SyncDir { path: PathBuf::new() }),
            (Step::SyncDir, ..) => self.saved(),
            (step, ..) => self.fail_saving(&format!("{step:?} did not give a file")),
        }
    }

    fn saved(&mut self) {
        let Some(saving) = self.boots.saving.take() else { return };
        self.boots.saved = saving.lineage;
        let is_urgent = !self.boots.lineage.is_known_to(&self.boots.saved);
        if is_urgent {
            self.boots.save_at_us = 0;
        }
        if self.boots.is_loss_durable() {
            self.let_unsure_begin();
        }
        self.again = true;
    }

    /// A restart would know what they may have forgotten: now they may write.
    fn let_unsure_begin(&mut self) {
        for slot in 0..self.slots.len() as u32 {
            if std::mem::take(&mut self.slots[slot as usize].unsure) {
                self.tell_links(slot);
                self.touch(slot);
            }
        }
    }

    /// What was there before is there still, or after the rename perhaps the new one: it counts for what both say.
    fn fail_saving(&mut self, error: &str) {
        let Some(saving) = self.boots.saving.take() else { return };
        tracing::warn!(error, "the list of boots could not be written: it is tried again");
        if let Some(file) = saving.file {
            self.disk.start(super::snapshots::NOBODY, DiskOp::Close { file });
        }
        self.boots.saved.votes_lost &= saving.lineage.votes_lost;
        self.boots.save_at_us = self.now_us + AGAIN_US;
    }

    /// At a stop in good order: what was heard last is kept.
    pub(super) fn leave_boots(&mut self) -> Result<(), ShardError> {
        for _ in 0..2 {
            // What is being written may be older than what there is.
            while self.boots.saving.is_some() {
                self.disk.wait()?;
                self.take_completions()?;
            }
            self.boots.save_at_us = 0;
            self.step_boots();
        }
        Ok(())
    }
}

#[cfg(feature = "breaks")]
fn ignores_watermark<D: Disk, N: Net, C: Clock>(shard: &Shard<D, N, C>) -> bool {
    shard.settings.breaks.watermark_ignored
}

#[cfg(not(feature = "breaks"))]
fn ignores_watermark<D: Disk, N: Net, C: Clock>(_: &Shard<D, N, C>) -> bool {
    false
}
