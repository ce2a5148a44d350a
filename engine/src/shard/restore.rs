//! Machines get their state back from files: after a start, and after a leader has sent a snapshot. Consensus does not
//! wait for it: the group votes, appends and leads meanwhile; what is to be applied or asked waits.
//!
//! ```text
//!   tries, best first:  checkpoints, newest first → the marked snapshot → (never had one) empty
//!                       each is read a chunk a turn, a few files at once, of leaders and of groups with work first
//!   none is sound:      with other members: ask the leader for its snapshot;  alone: stand still and say so
//! ```
//!
//! Invariants: (1) a machine that is not ready applies and answers nothing; (2) a state counts only when its file is known to
//! be whole and the one that the log names; (3) bytes read in one turn are bounded, whatever the number of groups.

use std::collections::{BTreeMap, VecDeque};

use coracle_base::codec::Reader;
use coracle_base::{Index, Term};
use coracle_io::{Clock, Disk, DiskDone, DiskError, Net};
use coracle_segments::snapshot::{Progress, SnapshotError, SnapshotHead, SnapshotName, SnapshotReader};
use coracle_wal::SnapshotFile;

use super::Shard;
use super::groups::{Held, SNAPSHOT_PREFIX_BYTES, Slot, Snapshot, read_prefix};
use super::step::poison;
use super::transfer::receive::Incoming;
use crate::machine::{Machine, RestoreError};
use crate::panics::caught;
use crate::transport::envelope::Kind;

/// Files being read at once: each takes a chunk a turn.
const READERS_MAX: usize = 4;

/// Where a machine's state may be found.
#[derive(Debug, Clone)]
pub(crate) enum Try {
    /// Nothing was ever released: the log makes it from nothing.
    Empty,
    /// In the log.
    Inline(Snapshot),
    /// In the file that the log names.
    Marked { index: Index, term: Term, file: SnapshotFile },
    /// In a file that nothing names.
    Checkpoint { index: Index, name: SnapshotName },
}

/// Whether a machine has its state.
#[derive(Debug)]
pub(crate) enum MachineState {
    Ready,
    /// It will be looked for in these, the last one first. One may be being read.
    Restoring {
        tries: Vec<Try>,
        is_reading: bool,
        /// Somebody waits for it.
        is_asked: bool,
    },
    /// It has its state, up to an entry that is not known to be committed again yet: a checkpoint's.
    Ahead {
        index: Index,
        prefix: (u64, u64),
    },
    /// There is none that is sound: another member is asked for one.
    Needed {
        reason: String,
        ask_us: u64,
    },
}

/// What a file is read for.
enum Purpose {
    Restore(Box<Restore>),
    /// It was overtaken.
    Nothing,
}

/// A machine's state on its way from a file.
struct Restore {
    from: Try,
    /// Time and digest, once the first chunk is there.
    prefix: Option<(u64, u64)>,
    /// For a machine that takes no chunks, or may have to do without them.
    gathered: Option<Vec<u8>>,
}

struct Reading {
    slot: u32,
    reader: SnapshotReader,
    purpose: Purpose,
}

/// Files being read, and groups that wait for theirs.
#[derive(Default)]
pub(crate) struct Restoring {
    reading: BTreeMap<u64, Reading>,
    /// Somebody waits for these.
    asked: VecDeque<u32>,
    /// Soon somebody will: led here, or behind.
    urgent: VecDeque<u32>,
    queue: VecDeque<u32>,
}

impl Restoring {
    /// Whose turn it is.
    fn pop(&mut self) -> Option<u32> {
        self.asked.pop_front().or_else(|| self.urgent.pop_front()).or_else(|| self.queue.pop_front())
    }

    /// Whether a file is read for the group in this slot, or it waits for one.
    pub(super) fn is_about(&self, slot: u32) -> bool {
        let mut waiting = self.asked.iter().chain(&self.urgent).chain(&self.queue);
        waiting.any(|one| *one == slot) || self.reading.values().any(|one| one.slot == slot)
    }

    /// Whether somebody reads this file.
    pub(super) fn reads(&self, name: SnapshotName) -> bool {
        self.reading.values().any(|one| one.reader.name() == name)
    }
}

impl Restore {
    fn new(from: Try) -> Self {
        Self { from, prefix: None, gathered: None }
    }

    /// The next bytes.
    fn take(&mut self, machine: &mut dyn Machine, chunk: &[u8]) -> Result<(), RestoreError> {
        let mut chunk = chunk;
        if self.prefix.is_none() {
            let mut reader = Reader::new(chunk);
            self.prefix = Some(read_prefix(&mut reader)?);
            chunk = reader.rest();
            let bytes = match &self.from {
                Try::Marked { file, .. } => file.bytes.saturating_sub(SNAPSHOT_PREFIX_BYTES),
                _ => 0,
            };
            // A checkpoint is not known to be whole before its end, and the machine may have to do without it.
            let in_chunks = bytes > 0 && guarded(|| Ok(machine.begin_restore(bytes)))?;
            self.gathered = (!in_chunks).then(Vec::new);
        }
        match &mut self.gathered {
            Some(gathered) => gathered.extend_from_slice(chunk),
            None => guarded(|| machine.restore_chunk(chunk))?,
        }
        Ok(())
    }

    /// There is no more, and all of it is sound.
    fn finish(&mut self, machine: &mut dyn Machine) -> Result<(u64, u64), RestoreError> {
        let prefix = self.prefix.ok_or_else(|| RestoreError("an empty snapshot".into()))?;
        match self.gathered.take() {
            Some(gathered) => guarded(|| machine.restore(&gathered))?,
            None => guarded(|| machine.finish_restore())?,
        }
        Ok(prefix)
    }
}

/// A panic of the machine is an error like any other.
fn guarded<T>(run: impl FnOnce() -> Result<T, RestoreError>) -> Result<T, RestoreError> {
    caught(run).map_err(|panic| RestoreError(format!("panic: {panic}")))?
}

impl Slot {
    /// Whether the machine has its state.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.state, MachineState::Ready)
    }

    /// Whether nobody need be asked for the state.
    pub(crate) fn is_whole(&self) -> bool {
        !matches!(self.state, MachineState::Needed { .. })
    }

    /// Why another member's snapshot is needed, if it is.
    pub(crate) fn needs_snapshot(&self) -> Option<&str> {
        match &self.state {
            MachineState::Needed { reason, .. } => Some(reason),
            _ => None,
        }
    }
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// The machine's state will be looked for in these, the last one first.
    pub(super) fn restore_from(&mut self, slot: u32, tries: Vec<Try>, is_urgent: bool) {
        let one = &mut self.slots[slot as usize];
        if one.is_ready() {
            self.status.groups_restoring += 1;
        }
        // Whoever waits already does not ask again.
        let is_asked = !one.reads.is_empty() || one.waiting.bytes() > 0;
        one.state = MachineState::Restoring { tries, is_reading: false, is_asked };
        let restoring = &mut self.snapshots.restoring;
        if is_asked {
            restoring.asked.push_back(slot)
        } else if is_urgent {
            restoring.urgent.push_back(slot)
        } else {
            restoring.queue.push_back(slot)
        }
        self.again = true;
    }

    /// This group is led here now: its machine comes before those of others.
    pub(super) fn hurry(&mut self, slot: u32) {
        if matches!(self.slots[slot as usize].state, MachineState::Restoring { is_reading: false, .. }) {
            self.snapshots.restoring.urgent.push_back(slot);
        }
    }

    /// Somebody waits for what this group's machine says: it comes before all that nobody waits for.
    pub(super) fn ask_machine(&mut self, slot: u32) {
        let MachineState::Restoring { is_reading: false, is_asked, .. } =
            &mut self.slots[slot as usize].state
        else {
            return;
        };
        if !std::mem::replace(is_asked, true) {
            self.snapshots.restoring.asked.push_back(slot);
        }
    }

    /// Begins to read as many files as may be read at once.
    pub(super) fn step_restores(&mut self) {
        while self.snapshots.restoring.reading.len() < READERS_MAX {
            let Some(slot) = self.snapshots.restoring.pop() else { return };
            if let MachineState::Restoring { is_reading: false, .. } = self.slots[slot as usize].state {
                self.next_try(slot);
            }
        }
    }

    /// The commit index rises: it may have come to where the machine is already.
    pub(super) fn on_commit(&mut self, slot: u32, upto: Index) {
        if let MachineState::Ahead { index, prefix } = self.slots[slot as usize].state
            && upto >= index
        {
            self.on_restored(slot, index, prefix);
        }
        self.drop_part(slot);
    }

    fn next_try(&mut self, slot: u32) {
        let one = &mut self.slots[slot as usize];
        let MachineState::Restoring { tries, is_reading, .. } = &mut one.state else { return };
        *is_reading = false;
        match tries.pop() {
            None => self.need_snapshot(slot, "no state of the machine is left".to_owned()),
            Some(Try::Empty) => self.on_restored(slot, Index::ZERO, (0, 0)),
            Some(Try::Inline(snapshot)) => {
                let restored = one.restore(&snapshot);
                let prefix = (one.time_ms, one.digest);
                match restored {
                    Ok(()) => self.on_restored(slot, snapshot.index, prefix),
                    Err(error) => self.on_not_understood(slot, snapshot.index, &error),
                }
            }
            Some(from @ Try::Marked { file, .. }) => {
                *is_reading = true;
                let name = SnapshotName::Snapshot { file_no: file.file_no };
                self.read_file(slot, name, Purpose::Restore(Box::new(Restore::new(from))));
            }
            Some(from @ Try::Checkpoint { name, .. }) => {
                *is_reading = true;
                self.read_file(slot, name, Purpose::Restore(Box::new(Restore::new(from))));
            }
        }
    }

    fn read_file(&mut self, slot: u32, name: SnapshotName, purpose: Purpose) {
        let token = self.snapshots.token();
        let (dir, identity) = (&self.snapshots.dir, self.snapshots.identity);
        let reader = SnapshotReader::begin(&mut self.disk, dir, name, identity, token);
        self.snapshots.restoring.reading.insert(token, Reading { slot, reader, purpose });
        self.again = true;
    }

    /// What is being read for this group's machine is not wanted any more.
    pub(super) fn abandon_restore(&mut self, slot: u32) {
        for reading in self.snapshots.restoring.reading.values_mut().filter(|one| one.slot == slot) {
            if matches!(reading.purpose, Purpose::Restore(_)) {
                reading.purpose = Purpose::Nothing;
            }
        }
    }

    /// A completion of a file that is read.
    pub(super) fn on_snapshot_read(&mut self, done: DiskDone) {
        let token = done.token;
        let Some(reading) = self.snapshots.restoring.reading.get_mut(&token) else {
            if let Some(buf) = done.buf {
                self.disk.recycle(buf);
            }
            return;
        };
        let machine = &mut self.slots[reading.slot as usize].machine;
        let end = match reading.reader.on_done(&mut self.disk, done) {
            Progress::Going => return,
            Progress::Chunk(chunk) => {
                let taken = match &mut reading.purpose {
                    Purpose::Restore(restore) => restore.take(machine.as_mut(), &chunk),
                    Purpose::Nothing => Err(RestoreError("overtaken".into())),
                };
                match taken {
                    Ok(()) => return reading.reader.next(&mut self.disk),
                    Err(error) => Err(Failure::Machine(error)),
                }
            }
            Progress::Whole(head, file) => Ok((head, file)),
            Progress::Failed(error) => Err(Failure::File(error)),
        };
        let Some(reading) = self.snapshots.restoring.reading.remove(&token) else { return };
        let Reading { slot, reader, purpose } = reading;
        let name = reader.name();
        if matches!(end, Err(Failure::Machine(_))) {
            reader.abandon(&mut self.disk);
        }
        self.snapshots.released(&mut self.disk, name);
        self.again = true;
        match purpose {
            Purpose::Nothing => {}
            Purpose::Restore(restore) => self.on_restore_end(slot, *restore, end),
        }
    }

    fn on_restore_end(&mut self, slot: u32, mut restore: Restore, end: End) {
        let end = end.and_then(|(head, file)| match check(&restore.from, &head, &file) {
            true => Ok(()),
            false => Err(Failure::Other),
        });
        let machine = &mut self.slots[slot as usize].machine;
        let end = end.and_then(|()| restore.finish(machine.as_mut()).map_err(Failure::Machine));
        let group = self.slots[slot as usize].id;
        match (end, restore.from) {
            (Ok(prefix), Try::Marked { index, .. } | Try::Checkpoint { index, .. }) => {
                self.on_restored(slot, index, prefix);
            }
            (Err(Failure::File(SnapshotError::Disk(DiskError::Crashed))), _) => {}
            (Err(error), Try::Checkpoint { index, name }) => {
                tracing::warn!(%group, %index, %error, "a checkpoint of the machine is of no use: the log makes up for it");
                self.slots[slot as usize].checkpoints.retain(|one| one.name != name);
                self.snapshots.remove(&mut self.disk, name);
                self.next_try(slot);
            }
            (Err(Failure::Machine(error)), Try::Marked { index, .. }) => {
                self.on_not_understood(slot, index, &error);
            }
            (Err(error), _) => self.need_snapshot(slot, error.to_string()),
            (Ok(_), Try::Empty | Try::Inline(_)) => {}
        }
    }

    /// The machine is there: what waited for it goes on.
    pub(super) fn on_restored(&mut self, slot: u32, index: Index, prefix: (u64, u64)) {
        let one = &mut self.slots[slot as usize];
        if index > one.raft.commit() {
            one.state = MachineState::Ahead { index, prefix };
            return;
        }
        one.applied = index;
        (one.time_ms, one.digest) = prefix;
        self.on_ready(slot);
        self.status.groups_restored += 1;
        if self.status.groups_restoring == 0 {
            tracing::info!(groups = self.status.groups_restored, "all machines are restored");
        }
    }

    /// The machine has its state, or never will.
    pub(super) fn on_ready(&mut self, slot: u32) {
        let one = &mut self.slots[slot as usize];
        self.status.groups_restoring -= u64::from(!one.is_ready());
        one.state = MachineState::Ready;
        self.look_for_lost(slot);
        let one = &mut self.slots[slot as usize];
        if one.applied < one.raft.commit() && !one.applying {
            one.applying = true;
            self.applying.push(slot);
        }
        self.answer_reads(slot);
        self.drop_part(slot);
        self.again = true;
    }

    /// Sound, and yet the machine does not take it: nobody else's would be better.
    fn on_not_understood(&mut self, slot: u32, index: Index, error: &RestoreError) {
        let one = &mut self.slots[slot as usize];
        one.applied = one.applied.max(index);
        poison(one, error.to_string());
        self.on_ready(slot);
    }

    /// No sound state is left: another member is asked for one, if there are others.
    pub(super) fn need_snapshot(&mut self, slot: u32, reason: String) {
        let now_us = self.now_us;
        let one = &mut self.slots[slot as usize];
        if one.raft.members().len() <= 1 {
            poison(
                one,
                format!("{reason}; there is no other member to fetch it from: restore the directory"),
            );
            return self.on_ready(slot);
        }
        tracing::error!(group = %one.id, reason, "the machine's snapshot is damaged: another member is asked for its own");
        one.state = MachineState::Needed { reason, ask_us: now_us };
        // Its file goes when another one is durable in its place.
        if let Some(Held::File { file, .. }) = one.snapshot.take() {
            one.superseded.push((None, SnapshotName::Snapshot { file_no: file.file_no }));
        }
        self.set_timer(slot);
    }

    /// Asks the leader for its snapshot, now and then; a leader asks the others one after the other.
    pub(super) fn ask_for_snapshot(&mut self, slot: u32) {
        let (now_us, again_us) = (self.now_us, self.now_us + self.settings.election_us);
        let one = &mut self.slots[slot as usize];
        let MachineState::Needed { ask_us, .. } = &mut one.state else { return };
        if *ask_us > now_us {
            return;
        }
        *ask_us = again_us;
        let own = self.settings.node;
        let others: Vec<_> = self.transport.links().iter().map(|link| link.node).collect();
        let turn = (now_us / self.settings.election_us.max(1)) as usize;
        let leader = one.raft.leader().filter(|leader| *leader != own);
        let (group, base) = (one.id, one.raft.first().prev());
        let asked = leader.or_else(|| others.get(turn % others.len().max(1)).copied());
        if let Some(envelope) = asked.and_then(|node| self.transport.envelope(node)) {
            envelope.push(Kind::WantSnapshot, group, false, |out| out.extend(base.0.to_le_bytes()), |_| {});
        }
    }

    /// A snapshot came for a member that has the log and needs only the state.
    pub(super) fn adopt(&mut self, slot: u32, index: Index, term: Term, bytes: &[u8]) {
        let one = &mut self.slots[slot as usize];
        let is_ours = one.raft.term_at(index) == Some(term) && index <= one.raft.commit();
        if one.is_whole() || !is_ours || index > one.raft.durable() {
            return;
        }
        tracing::info!(group = %one.id, %index, "took up another member's snapshot in the place of a damaged one");
        match one.incoming.take() {
            Some(Incoming { file, live }) => {
                let live = live.unwrap_or_else(|| one.all_live(index));
                let batch = self.wal.mark_snapshot(one.id, index, term, &live, file);
                self.staged_snapshot(slot, batch, Held::File { index, term, file });
                self.restore_from(slot, vec![Try::Marked { index, term, file }], true);
            }
            None => {
                let live = one.all_live(index);
                let batch = self.wal.put_snapshot(one.id, index, term, &live, bytes);
                let snapshot = Snapshot { index, term, bytes: bytes.to_vec() };
                self.staged_snapshot(slot, batch, Held::Inline(snapshot.clone()));
                // Its entries that live on are dropped with this.
                self.abandon_receiving(slot);
                self.restore_from(slot, vec![Try::Inline(snapshot)], true);
            }
        }
        // A leader takes commands while its machine is being restored.
        self.skip_waiting(slot, index);
    }
}

type End = Result<(SnapshotHead, SnapshotFile), Failure>;

/// Why a file could not be used.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    File(#[from] SnapshotError),
    #[error(transparent)]
    Machine(#[from] RestoreError),
    #[error("it is sound, and not the one that was written under this name")]
    Other,
}

/// Whether the file is the one that was looked for.
fn check(from: &Try, head: &SnapshotHead, found: &SnapshotFile) -> bool {
    match from {
        Try::Marked { index, term, file } => file == found && (head.index, head.term) == (*index, *term),
        // Its header agrees with its name, which was compared with the log.
        _ => true,
    }
}
