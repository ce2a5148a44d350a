//! Snapshots of machines: when one is taken, where it goes, and what goes with it.
//!
//! ```text
//!   release → source → up to 64 KiB: a record of the log ─────────────────────────┐
//!                    → more: a file, a chunk a turn → durable → a mark in the log ─┴→ durable → the log is released, the
//!                                                                                     older file goes
//!   checkpoint, or the node stops → source → a file that nothing depends on;  release → the newest one becomes a snapshot
//!   from another member: up to 64 KiB as above; more: into a file first (`transfer/`), and only then Raft hears of it
//! ```
//!
//! Invariants: (1) nothing is released, and no older file removed, before the new snapshot is durable; (2) a snapshot is of
//! what is applied, and its record lies behind the entries that it covers, so it never counts before them; (3) a group has
//! one under way at a time, a shard a few; (4) a file that fails costs a message in the log, and no group its life: what
//! was to be released is tried again later, for on a full disk it may be all that can make room.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

use coracle_base::{GroupId, Index, NodeId, Term};
use coracle_io::{Clock, Disk, DiskDone, DiskError, DiskOp, Net};
use coracle_raft::{Input, Message};
use coracle_segments::snapshot::{self, PartName, SnapshotHead, SnapshotName, SnapshotWriter, Written};
use coracle_wal::{Identity, IndexRange, RecoveredGroup, SnapshotFile};

use super::groups::{Held, Snapshot};
use super::restore::Restoring;
use super::room::Need;
use super::step::poison;
use super::transfer::receive::{Incoming, Receives};
use super::transfer::send::Sends;
use super::{OnDurable, Shard};
use crate::machine::{ReleaseWhen, SnapshotSource, in_order};
use crate::panics::caught;

/// Completions with these are of snapshot files.
const TOKENS: u64 = 0x54 << 56;
/// A completion that nobody waits for.
pub(super) const NOBODY: u64 = TOKENS;
/// Files being written at once: each takes a chunk's bytes a turn.
pub(super) const WRITERS_MAX: usize = 4;
/// How long a release waits whose file has failed.
const RETRY_US: u64 = 1_000_000;
/// The largest snapshot that comes from another member in one message, as those of version 1 send it.
pub(super) const MESSAGE_BYTES_MAX: usize = 512 * 1024;

/// Whether a completion is of a snapshot file.
pub(super) fn owns(token: u64) -> bool {
    token >> 56 == TOKENS >> 56
}

/// What a file is written for.
enum Purpose {
    /// The machine let its log go.
    Release { live: Vec<IndexRange> },
    /// The machine wants to be fast at its next start.
    Checkpoint {
        live: Vec<IndexRange>,
        /// Of the group's checkpoints, this one included.
        keep: usize,
    },
    /// A leader sent it: Raft hears of it when it is durable, if the session of the link is still that one.
    Received { from: NodeId, session: Option<u64>, message: Message },
}

struct Writing {
    slot: u32,
    writer: SnapshotWriter,
    source: Option<Box<dyn SnapshotSource>>,
    purpose: Purpose,
}

/// A machine's state that frees no log.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoint {
    pub(crate) name: SnapshotName,
    pub(crate) index: Index,
    pub(crate) term: Term,
    /// Known of those that this process wrote: only they can become snapshots.
    whole: Option<(SnapshotFile, Vec<IndexRange>)>,
}

/// The snapshot files of a shard, and what is being done with them.
pub(crate) struct Snapshots {
    pub(super) dir: PathBuf,
    pub(super) identity: Identity,
    highest: u64,
    last_token: u64,
    writing: BTreeMap<u64, Writing>,
    /// Groups whose wish found too much under way.
    postponed: BTreeSet<u32>,
    /// Groups whose release has failed, and when it is tried again.
    failed: BTreeSet<u32>,
    retry_us: u64,
    /// Found at the start, of groups that are not started yet.
    found: BTreeMap<GroupId, Vec<Checkpoint>>,
    /// Of groups that are not started yet: what had come of another member's snapshot.
    parts: BTreeMap<GroupId, PartName>,
    pub(super) restoring: Restoring,
    pub(super) sends: Sends,
    pub(super) receives: Receives,
    /// To be removed when nobody reads them any more.
    doomed: VecDeque<SnapshotName>,
}

impl Snapshots {
    /// Looks at the files in `dir`. What neither the log names nor is a checkpoint is what a crash left: it is removed,
    /// unless the log is damaged, in which case it may be all that there is.
    pub(crate) fn open<D: Disk>(
        disk: &mut D,
        dir: PathBuf,
        identity: Identity,
        groups: &[RecoveredGroup],
        is_damaged: bool,
        send_bytes_per_s: u64,
    ) -> Result<Self, DiskError> {
        let listing = snapshot::list(disk, &dir)?;
        let marked: BTreeSet<u64> =
            groups.iter().filter_map(|group| group.snapshot_file).map(|file| file.file_no).collect();
        let highest = marked.last().copied().unwrap_or(0).max(listing.highest);
        let mut found: BTreeMap<GroupId, Vec<Checkpoint>> = BTreeMap::new();
        for name in listing.names {
            match name {
                SnapshotName::Checkpoint { group, index, term, .. } => {
                    found.entry(group).or_default().push(Checkpoint { name, index, term, whole: None });
                }
                SnapshotName::Snapshot { file_no } if !marked.contains(&file_no) => {
                    let path = name.path(&dir);
                    if is_damaged {
                        tracing::warn!(path = %path.display(), "a snapshot that the damaged log does not name is kept");
                    } else {
                        disk.start(NOBODY, DiskOp::Unlink { path });
                    }
                }
                SnapshotName::Snapshot { .. } => {}
            }
        }
        let mut parts = BTreeMap::new();
        for part in listing.parts {
            // One a group: of two, the end of the older one was lost.
            let older: Option<PartName> = parts.insert(part.group, part);
            older.into_iter().for_each(|part| disk.start(NOBODY, DiskOp::Unlink { path: part.path(&dir) }));
        }
        for path in listing.unfinished {
            disk.start(NOBODY, DiskOp::Unlink { path });
        }
        found.values_mut().for_each(|list| list.sort_by_key(|one| one.index));
        Ok(Self {
            dir,
            identity,
            highest,
            last_token: TOKENS,
            writing: BTreeMap::new(),
            postponed: BTreeSet::new(),
            failed: BTreeSet::new(),
            retry_us: u64::MAX,
            found,
            parts,
            restoring: Restoring::default(),
            sends: Sends::new(send_bytes_per_s),
            receives: Receives::default(),
            doomed: VecDeque::new(),
        })
    }

    /// A group is started: the checkpoints that its log agrees with. The others go.
    pub(super) fn checkpoints_of<D: Disk>(
        &mut self,
        disk: &mut D,
        group: GroupId,
        is_good: impl Fn(Index, Term) -> bool,
    ) -> Vec<Checkpoint> {
        let found = self.found.remove(&group).unwrap_or_default();
        let (good, bad): (Vec<_>, Vec<_>) = found.into_iter().partition(|one| is_good(one.index, one.term));
        bad.into_iter().for_each(|one| self.remove(disk, one.name));
        good
    }

    /// Groups of which files were found that no log needs.
    pub(super) fn found_of(&self) -> impl Iterator<Item = GroupId> {
        self.found.keys().chain(self.parts.keys()).copied()
    }

    /// A group is deleted for good: a crash may have come before its files went.
    pub(super) fn remove_found<D: Disk>(&mut self, disk: &mut D, group: GroupId) {
        self.checkpoints_of(disk, group, |_, _| false);
        let part = self.part_of(group);
        part.into_iter().for_each(|part| self.remove_part(disk, part));
    }

    /// A group is started: what had come of another member's snapshot.
    pub(super) fn part_of(&mut self, group: GroupId) -> Option<PartName> {
        self.parts.remove(&group)
    }

    /// Removes what came of another member's snapshot.
    pub(super) fn remove_part<D: Disk>(&mut self, disk: &mut D, part: PartName) {
        disk.start(NOBODY, DiskOp::Unlink { path: part.path(&self.dir) });
    }

    /// The number of a new file.
    pub(super) fn next_file_no(&mut self) -> u64 {
        self.highest += 1;
        self.highest
    }

    /// A file of our own that is being written is of less than what another member offers.
    pub(super) fn abandon_own<D: Disk>(&mut self, disk: &mut D, token: u64) {
        let writing = self.writing.get_mut(&token);
        if let Some(writing) = writing.filter(|one| !matches!(one.purpose, Purpose::Received { .. })) {
            writing.writer.abandon(disk);
        }
    }

    /// Whether anything under way is of the group in this slot.
    pub(super) fn is_about(&self, slot: u32) -> bool {
        self.writing.values().any(|one| one.slot == slot)
            || self.postponed.contains(&slot)
            || self.failed.contains(&slot)
            || self.restoring.is_about(slot)
            || self.sends.sends_any(slot)
            || self.receives.is_about(slot)
    }

    /// Files being written.
    pub(super) fn writing(&self) -> usize {
        self.writing.len()
    }

    pub(super) fn token(&mut self) -> u64 {
        self.last_token += 1;
        self.last_token
    }

    /// Removes a file, if nobody reads it; else when they have done so.
    pub(super) fn remove<D: Disk>(&mut self, disk: &mut D, name: SnapshotName) {
        if self.restoring.reads(name) || self.sends.reads(name) {
            return self.doomed.push_back(name);
        }
        disk.start(NOBODY, DiskOp::Unlink { path: name.path(&self.dir) });
    }

    /// A file is read no more.
    pub(super) fn released<D: Disk>(&mut self, disk: &mut D, name: SnapshotName) {
        if let Some(at) = self.doomed.iter().position(|one| *one == name) {
            self.doomed.remove(at);
            self.remove(disk, name);
        }
    }

    /// When a release that failed wants a turn though nothing happens.
    pub(super) fn deadline_us(&self) -> u64 {
        self.retry_us.min(self.sends.deadline_us()).min(self.receives.deadline_us())
    }

    fn head(&mut self, group: GroupId, index: Index, term: Term) -> SnapshotHead {
        SnapshotHead { identity: self.identity, file_no: self.next_file_no(), group, index, term }
    }
}

/// A machine's state about to be written.
struct Cut {
    index: Index,
    term: Term,
    live: Vec<IndexRange>,
    source: Box<dyn SnapshotSource>,
    first: Vec<u8>,
    more: bool,
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// The machine may have said that its log may go, or that its state is worth keeping.
    pub(super) fn take_snapshots(&mut self, slot: u32) {
        let one = &mut self.slots[slot as usize];
        if !one.want_release && !one.want_checkpoint || one.poisoned.is_some() || !one.is_ready() {
            return;
        }
        if one.want_release && self.snapshots.failed.contains(&slot) {
            return;
        }
        let too_much = one.want_release && self.snapshots.writing.len() >= WRITERS_MAX;
        if one.snapshot_in_flight.is_some() || one.writing.is_some() || too_much {
            self.snapshots.postponed.insert(slot);
            return;
        }
        match (one.want_release, self.may_release(slot)) {
            (true, true) => self.release(slot),
            (true, false) => {
                self.snapshots.postponed.insert(slot);
            }
            (false, _) => {}
        }
        let one = &mut self.slots[slot as usize];
        if std::mem::take(&mut one.want_checkpoint)
            && one.writing.is_none()
            && self.snapshots.writing.len() < WRITERS_MAX
            && one.applied.since(one.newest_kept()) >= self.settings.min_checkpoint_interval
        {
            self.take_checkpoint(slot, self.settings.max_checkpoints);
        }
    }

    /// What the machine's wish waits for has come, or another member needs the snapshot.
    fn may_release(&self, slot: u32) -> bool {
        let one = &self.slots[slot as usize];
        let is_sent = self.snapshots.sends.sends_any(slot);
        let has_room = self.may_write(Need::Ordinary, 0);
        if self.snapshots.sends.holds(slot, self.now_us) && has_room && !one.force_release {
            return false;
        }
        one.force_release || one.release_when.allow(one.raft.durable(), is_sent)
    }

    /// The machine said that its log may go: its state goes into the log or a file, and the log when that is durable.
    fn release(&mut self, slot: u32) {
        let one = &mut self.slots[slot as usize];
        let since = one.applied.since(one.snapshot.as_ref().map_or(Index::ZERO, Held::index));
        let early = since < self.settings.min_snapshot_interval && one.bytes_since < self.wal.file_room();
        let early = early && !self.status.disk_full;
        if early && matches!(one.snapshot, Some(Held::File { .. })) && !one.force_release {
            return;
        }
        if self.promote(slot) {
            return;
        }
        let Some(cut) = self.cut(slot) else { return };
        self.slots[slot as usize].settle_wish();
        if cut.more || cut.first.len() + 16 * cut.live.len() > self.wal.snapshot_bytes_max() {
            let purpose = Purpose::Release { live: cut.live.clone() };
            return self.begin_file(slot, cut, purpose);
        }
        // Behind the entries that it covers in log order, so it is never durable before them.
        let one = &mut self.slots[slot as usize];
        let batch = self.wal.put_snapshot(one.id, cut.index, cut.term, &cut.live, &cut.first);
        let held = Held::Inline(Snapshot { index: cut.index, term: cut.term, bytes: cut.first });
        self.staged_snapshot(slot, batch, held);
    }

    /// A consistent cut of the machine as it is, with as much of it as a record of the log may have.
    fn cut(&mut self, slot: u32) -> Option<Cut> {
        let bytes_max = self.wal.snapshot_bytes_max();
        let one = &mut self.slots[slot as usize];
        let (index, term) = (one.applied, one.raft.term_at(one.applied)?);
        let mut first = one.snapshot_prefix();
        let room = bytes_max.saturating_sub(first.len());
        let machine = &one.machine;
        let taken = caught(|| {
            let mut source = machine.snapshot_source();
            let more = source.next_chunk(&mut first, room);
            (source, more, machine.live_indexes())
        });
        match taken {
            Ok((source, more, live)) => {
                Some(Cut { index, term, live: in_order(live, index), source, first, more })
            }
            Err(panic) => {
                poison(one, format!("its snapshot at entry {index} panicked: {panic}"));
                None
            }
        }
    }

    fn begin_file(&mut self, slot: u32, cut: Cut, purpose: Purpose) {
        let one = &mut self.slots[slot as usize];
        let token = self.snapshots.token();
        let head = self.snapshots.head(one.id, cut.index, cut.term);
        let is_checkpoint = matches!(purpose, Purpose::Checkpoint { .. });
        let mut writer =
            SnapshotWriter::begin(&mut self.disk, &self.snapshots.dir, head, is_checkpoint, token);
        *writer.body() = cut.first;
        one.writing = Some(token);
        let source = cut.more.then_some(cut.source);
        self.snapshots.writing.insert(token, Writing { slot, writer, source, purpose });
        self.again = true;
    }

    /// Begins a checkpoint. When it is whole, so many of the group are kept.
    pub(super) fn take_checkpoint(&mut self, slot: u32, keep: usize) {
        if let Some(cut) = self.cut(slot) {
            let purpose = Purpose::Checkpoint { live: cut.live.clone(), keep };
            self.begin_file(slot, cut, purpose);
        }
    }

    /// Makes the newest checkpoint that this process wrote the snapshot, which spares writing the state once more.
    fn promote(&mut self, slot: u32) -> bool {
        let one = &mut self.slots[slot as usize];
        let base = one.snapshot.as_ref().map_or(Index::ZERO, Held::index);
        let newest = one.checkpoints.iter().rposition(|one| one.whole.is_some() && one.index > base);
        let Some(Checkpoint { name, index, term, whole: Some((file, live)) }) =
            newest.map(|at| one.checkpoints.remove(at))
        else {
            return false;
        };
        one.settle_wish();
        let token = self.snapshots.token();
        let file_no = name.file_no();
        let head = SnapshotHead { identity: self.snapshots.identity, file_no, group: one.id, index, term };
        let writer = SnapshotWriter::promote(&mut self.disk, &self.snapshots.dir, head, file, token);
        one.writing = Some(token);
        let purpose = Purpose::Release { live };
        self.snapshots.writing.insert(token, Writing { slot, writer, source: None, purpose });
        self.again = true;
        true
    }

    /// Once a turn: sources are read, wishes looked at again.
    pub(super) fn step_snapshots(&mut self) {
        self.write_chunks();
        if self.now_us >= self.snapshots.retry_us {
            self.snapshots.retry_us = u64::MAX;
            let mut failed = std::mem::take(&mut self.snapshots.failed);
            self.snapshots.postponed.append(&mut failed);
        }
        for slot in std::mem::take(&mut self.snapshots.postponed) {
            self.take_snapshots(slot);
        }
        self.step_restores();
        self.step_receives();
        self.step_sends();
    }

    /// What no interval holds up any more is released now.
    pub(super) fn hurry_releases(&mut self) {
        let waiting = (0..).zip(&self.slots).filter(|(_, one)| one.want_release).map(|(slot, _)| slot);
        self.snapshots.postponed.extend(waiting);
        self.again |= !self.snapshots.postponed.is_empty();
    }

    /// The next chunk of every file that is being written.
    pub(super) fn write_chunks(&mut self) {
        for writing in self.snapshots.writing.values_mut() {
            if !writing.writer.is_idle() {
                continue;
            }
            if let Some(source) = &mut writing.source {
                let room = writing.writer.room();
                let body = writing.writer.body();
                let before = body.len();
                match caught(|| room > 0 && !source.next_chunk(body, room)) {
                    Ok(false) => self.again |= body.len() == before,
                    Ok(true) => writing.source = None,
                    Err(panic) => {
                        let one = &mut self.slots[writing.slot as usize];
                        poison(one, format!("the source of its snapshot panicked: {panic}"));
                        writing.writer.abandon(&mut self.disk);
                    }
                }
            }
            writing.writer.write(&mut self.disk, writing.source.is_none());
        }
    }

    /// A completion of a snapshot file.
    pub(super) fn on_snapshot_done(&mut self, done: DiskDone) {
        let token = done.token;
        let Some(writing) = self.snapshots.writing.get_mut(&token) else {
            let others = self.on_part_done(done).and_then(|done| self.on_chunk_read(done));
            return others.into_iter().for_each(|done| self.on_snapshot_read(done));
        };
        let written = writing.writer.on_done(&mut self.disk, done);
        if written == Written::Going {
            return;
        }
        let Some(writing) = self.snapshots.writing.remove(&token) else { return };
        let (slot, head) = (writing.slot, *writing.writer.head());
        self.slots[slot as usize].writing = None;
        match written {
            Written::Going | Written::Kept => {}
            Written::Whole(file) => self.on_file_whole(slot, head, file, writing.purpose),
            Written::Gone(None) => {}
            Written::Gone(Some(error)) => {
                tracing::warn!(group = %head.group, index = %head.index, %error, "a snapshot file cannot be written: the log is kept");
                if matches!(writing.purpose, Purpose::Release { .. }) {
                    self.retry_release(slot);
                }
            }
        }
        self.again = true;
    }

    /// The machine still wants it, and may have no cause to say so again.
    fn retry_release(&mut self, slot: u32) {
        let one = &mut self.slots[slot as usize];
        one.want_release = true;
        one.release_when.add(ReleaseWhen::default());
        self.snapshots.failed.insert(slot);
        self.snapshots.retry_us = self.snapshots.retry_us.min(self.now_us + RETRY_US);
    }

    fn on_file_whole(&mut self, slot: u32, head: SnapshotHead, file: SnapshotFile, purpose: Purpose) {
        let SnapshotHead { group, index, term, .. } = head;
        let name = SnapshotName::Snapshot { file_no: file.file_no };
        self.status.snapshot_files += 1;
        let one = &mut self.slots[slot as usize];
        match purpose {
            Purpose::Checkpoint { .. } if one.gone => {
                let name = SnapshotName::Checkpoint { file_no: file.file_no, group, index, term };
                self.snapshots.remove(&mut self.disk, name);
            }
            _ if one.gone => self.snapshots.remove(&mut self.disk, name),
            Purpose::Checkpoint { live, keep } => {
                let name = SnapshotName::Checkpoint { file_no: file.file_no, group, index, term };
                one.checkpoints.push(Checkpoint { name, index, term, whole: Some((file, live)) });
                while one.checkpoints.len() > keep {
                    self.snapshots.remove(&mut self.disk, one.checkpoints.remove(0).name);
                }
            }
            // An installed one was faster.
            Purpose::Release { .. } if one.snapshot.as_ref().is_some_and(|held| held.index() >= index) => {
                self.snapshots.remove(&mut self.disk, name);
            }
            Purpose::Release { live } => {
                let batch = self.wal.mark_snapshot(group, index, term, &live, file);
                self.staged_snapshot(slot, batch, Held::File { index, term, file });
            }
            Purpose::Received { from, session, message } => {
                one.incoming = Some(Incoming { file, live: None });
                if session == self.transport.session_of(from) {
                    self.step(slot, Input::Receive { from, message }, None, &[]);
                }
                self.adopt(slot, index, term, &[]);
                if self.slots[slot as usize].incoming.take().is_some() {
                    self.snapshots.remove(&mut self.disk, name);
                }
            }
        }
    }

    /// A snapshot's record lies in the open batch: when that is durable, the log before it goes.
    pub(super) fn staged_snapshot(&mut self, slot: u32, batch: coracle_wal::BatchSeq, held: Held) {
        let one = &mut self.slots[slot as usize];
        let (index, term) = (held.index(), held.term());
        one.staged = batch;
        one.snapshot_in_flight = Some(index);
        one.bytes_since = 0;
        for (by, _) in &mut one.superseded {
            by.get_or_insert(batch);
        }
        if let Some(Held::File { file, .. }) = one.snapshot.replace(held) {
            one.superseded.push((Some(batch), SnapshotName::Snapshot { file_no: file.file_no }));
        }
        self.on_durable.push_back((batch, OnDurable::Released { slot, index, term }));
        self.again = true;
    }

    /// What a snapshot has made worthless that is durable now, with its record's batch. Its index alone would not do: one that
    /// is fetched in the place of another may be of the same.
    pub(super) fn remove_superseded(&mut self, slot: u32, batch: coracle_wal::BatchSeq, index: Index) {
        let one = &mut self.slots[slot as usize];
        let is_over = |by: &Option<coracle_wal::BatchSeq>| by.is_some_and(|by| by <= batch);
        let files = one.superseded.extract_if(.., |(by, _)| is_over(by)).map(|(_, name)| name);
        let older = one.checkpoints.extract_if(.., |one| one.index <= index).map(|one| one.name);
        for name in files.chain(older) {
            self.snapshots.remove(&mut self.disk, name);
        }
    }

    /// A snapshot from a leader that is too large for the log: into a file, before Raft hears of it.
    pub(super) fn receive_snapshot(&mut self, slot: u32, from: NodeId, message: Message, bytes: &[u8]) {
        let Message::Snapshot { index, snap_term, .. } = message else { return };
        let one = &mut self.slots[slot as usize];
        if index <= one.raft.commit() && one.is_whole() {
            return self.step(slot, Input::Receive { from, message }, None, &[]);
        }
        if let Some(writing) = one.writing.and_then(|token| self.snapshots.writing.get_mut(&token)) {
            // Our own is of less than what comes; of the leader's, the first one is taken.
            if !matches!(writing.purpose, Purpose::Received { .. }) {
                writing.writer.abandon(&mut self.disk);
            }
            return;
        }
        if one.writing.is_some() {
            return self.abandon_receiving(slot);
        }
        let token = self.snapshots.token();
        let head = self.snapshots.head(one.id, index, snap_term);
        let mut writer = SnapshotWriter::begin(&mut self.disk, &self.snapshots.dir, head, false, token);
        writer.body().extend_from_slice(bytes);
        one.writing = Some(token);
        let purpose = Purpose::Received { from, session: self.transport.session_of(from), message };
        self.snapshots.writing.insert(token, Writing { slot, writer, source: None, purpose });
        self.again = true;
    }

    /// An own file that is being written is overtaken by what a leader sent.
    pub(super) fn abandon_writing(&mut self, slot: u32) {
        self.abandon_receiving(slot);
        let token = self.slots[slot as usize].writing;
        if let Some(writing) = token.and_then(|token| self.snapshots.writing.get_mut(&token)) {
            writing.writer.abandon(&mut self.disk);
        }
    }
}
