//! The groups of one shard: each with its consensus, its log, its machine and whoever waits for it.

use coracle_base::checksum::mix64;
use coracle_base::codec::{Reader, Sink};
use coracle_base::run::EntryHeader;
use coracle_base::{GroupId, Index, NodeId, Term};
use coracle_raft::Group;
use coracle_segments::snapshot::{PartName, SnapshotName};
use coracle_wal::{BatchSeq, IndexRange, SnapshotFile};

use super::inbox::Origin;
use super::parked::WaitingRoom;
use super::readings::Readings;
use super::replies::Asked;
use super::restore::MachineState;
use super::snapshots::Checkpoint;
use super::transfer::receive::Incoming;
use super::waiting::WaitingList;
use crate::log::MemLog;
use crate::machine::{Machine, ReleaseWishes, RestoreError, in_order};
use crate::panics::caught;

/// Somebody waits to hear who leads after a transfer.
#[derive(Debug)]
pub(crate) struct Successor {
    pub(crate) origin: Origin,
    pub(crate) tag: u64,
    pub(crate) deadline_us: u64,
}

/// A snapshot as it lies in the WAL and goes over the wire.
///
/// ```text
///   1 version (1), 8 time_ms, 8 digest, then the machine's own bytes
/// ```
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) index: Index,
    pub(crate) term: Term,
    pub(crate) bytes: Vec<u8>,
}

const SNAPSHOT_VERSION: u8 = 1;
/// Version, time and digest.
pub(crate) const SNAPSHOT_PREFIX_BYTES: u64 = 17;

/// Reads what stands before the machine's own bytes: time and digest.
pub(crate) fn read_prefix(reader: &mut Reader<'_>) -> Result<(u64, u64), RestoreError> {
    let fields = (reader.u8(), reader.u64(), reader.u64());
    let (Ok(SNAPSHOT_VERSION), Ok(time_ms), Ok(digest)) = fields else {
        return Err(RestoreError(format!(
            "snapshot of version {:?}, this is version {SNAPSHOT_VERSION}",
            fields.0
        )));
    };
    Ok((time_ms, digest))
}

/// The newest snapshot of a group: at least staged.
#[derive(Debug, Clone)]
pub(crate) enum Held {
    /// In the log, and in memory.
    Inline(Snapshot),
    /// In a file.
    File { index: Index, term: Term, file: SnapshotFile },
}

impl Held {
    /// The last entry that it covers.
    pub(crate) fn index(&self) -> Index {
        match self {
            Self::Inline(snapshot) => snapshot.index,
            Self::File { index, .. } => *index,
        }
    }

    /// That entry's term.
    pub(crate) fn term(&self) -> Term {
        match self {
            Self::Inline(snapshot) => snapshot.term,
            Self::File { term, .. } => *term,
        }
    }
}

/// One group on this node.
pub(crate) struct Slot {
    pub(crate) id: GroupId,
    pub(crate) raft: Group,
    pub(crate) log: MemLog,
    pub(crate) machine: Box<dyn Machine>,
    pub(crate) applied: Index,
    /// The log's time at `applied`.
    pub(crate) time_ms: u64,
    /// Over every applied entry: equal on all members at equal `applied`.
    pub(crate) digest: u64,
    /// Why the machine applies and answers nothing any more.
    pub(crate) poisoned: Option<String>,
    /// Until then it is led here in spite of that, if nobody else does.
    pub(crate) given_up_until_us: u64,
    /// Another majority contradicts what is committed here. Poisoned, too: the member hears and says nothing any more.
    pub(crate) diverged: bool,
    /// Its votes may be forgotten, and that is not durable yet: until then it hears and says nothing.
    pub(crate) unsure: bool,
    /// Entries that should live on and are not here, in order.
    pub(crate) lost: Vec<IndexRange>,
    /// It was removed from this node: the slot is nobody's.
    pub(crate) gone: bool,
    pub(crate) waiting: WaitingList,
    pub(crate) parked: WaitingRoom,
    pub(crate) reads: Readings,
    /// The newest snapshot that is at least staged.
    pub(crate) snapshot: Option<Held>,
    /// Whether the machine has its state.
    pub(crate) state: MachineState,
    /// The newest snapshot that is staged and not durable.
    pub(crate) snapshot_in_flight: Option<Index>,
    pub(crate) want_release: bool,
    /// What that waits for.
    pub(crate) release_when: ReleaseWishes,
    /// Somebody else needs the snapshot: no interval holds it up.
    pub(crate) force_release: bool,
    pub(crate) want_checkpoint: bool,
    /// Bytes of entries applied since the newest snapshot.
    pub(crate) bytes_since: u64,
    /// The file that is being written for this group.
    pub(crate) writing: Option<u64>,
    /// Another member's snapshot in a file, while Raft decides about it.
    pub(crate) incoming: Option<Incoming>,
    /// What has come of another member's snapshot, while nobody sends it.
    pub(crate) part: Option<PartName>,
    /// Files to be removed when this batch is durable, which has what takes their place; nothing does yet if there is none.
    pub(crate) superseded: Vec<(Option<BatchSeq>, SnapshotName)>,
    /// States that free no log, oldest first.
    pub(crate) checkpoints: Vec<Checkpoint>,
    /// The batch of the last record staged for this group.
    pub(crate) staged: BatchSeq,
    /// An apply waits for entries from the WAL's files.
    pub(crate) apply_read: bool,
    /// How often in a row such a read has failed.
    pub(crate) reads_failed: u32,
    /// Entries read back for followers that are behind memory: (member, first, count, bytes).
    pub(crate) fetched: Vec<(NodeId, Index, u32, Vec<u8>)>,
    pub(crate) timer_us: Option<u64>,
    /// Its time to campaign has come, and it waits to be let through.
    pub(crate) election_waits: bool,
    pub(crate) dirty: bool,
    pub(crate) applying: bool,
    /// Who wants to know how the transfer of leadership ends.
    pub(crate) transfer_for: Vec<Successor>,
    /// Who waits for it to be this node's alone.
    pub(crate) shrinking: Vec<Asked<()>>,
}

impl Slot {
    pub(crate) fn new(id: GroupId, raft: Group, machine: Box<dyn Machine>, last: Index) -> Self {
        Self {
            id,
            raft,
            log: MemLog::new(last),
            machine,
            applied: Index::ZERO,
            time_ms: 0,
            digest: 0,
            poisoned: None,
            given_up_until_us: 0,
            diverged: false,
            unsure: false,
            lost: Vec::new(),
            gone: false,
            waiting: WaitingList::default(),
            parked: WaitingRoom::default(),
            reads: Readings::default(),
            snapshot: None,
            state: MachineState::Ready,
            snapshot_in_flight: None,
            want_release: false,
            release_when: ReleaseWishes::default(),
            force_release: false,
            want_checkpoint: false,
            bytes_since: 0,
            writing: None,
            incoming: None,
            part: None,
            superseded: Vec::new(),
            checkpoints: Vec::new(),
            staged: BatchSeq(0),
            apply_read: false,
            reads_failed: 0,
            fetched: Vec::new(),
            timer_us: None,
            election_waits: false,
            dirty: false,
            applying: false,
            transfer_for: Vec::new(),
            shrinking: Vec::new(),
        }
    }

    /// Whether its consensus is left alone.
    pub(crate) fn is_deaf(&self) -> bool {
        self.diverged || self.unsure
    }

    /// What stands before the machine's own bytes.
    pub(crate) fn snapshot_prefix(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.put_u8(SNAPSHOT_VERSION);
        bytes.put_u64(self.time_ms);
        bytes.put_u64(self.digest);
        bytes
    }

    /// Takes up a snapshot's state. A panic of the machine is an error like any other.
    pub(crate) fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RestoreError> {
        let mut reader = Reader::new(&snapshot.bytes);
        let (time_ms, digest) = read_prefix(&mut reader)?;
        let machine = &mut self.machine;
        caught(|| machine.restore(reader.rest()))
            .map_err(|panic| RestoreError(format!("panic: {panic}")))??;
        (self.time_ms, self.digest, self.applied) = (time_ms, digest, snapshot.index);
        Ok(())
    }

    /// What may live on below a snapshot that comes from elsewhere: what lives now, and of that only what the new state
    /// still names will outlive the next one. All, if the machine cannot be asked.
    pub(crate) fn all_live(&self, index: Index) -> Vec<IndexRange> {
        let machine = &self.machine;
        let asked = if self.is_ready() { caught(|| machine.live_indexes()).ok() } else { None };
        in_order(asked.unwrap_or_else(|| vec![IndexRange { first: Index(1), count: index.0 }]), index)
    }

    /// Counts one more applied entry into the digest.
    pub(crate) fn digest_entry(&mut self, index: Index, header: &EntryHeader) {
        let content = u64::from(header.payload_crc) | u64::from(header.payload_bytes) << 32;
        self.digest = mix64(self.digest, mix64(index.0, mix64(header.term.0, content)));
    }

    /// When this group wants to be looked at though nothing happens.
    pub(crate) fn deadline_us(&self) -> Option<u64> {
        let parked = self.parked.due_us();
        let waiting = self.waiting.deadline_us();
        let reading = self.reads.due_us();
        let transfer = self.transfer_for.first().map(|one| one.deadline_us);
        let raft = self.raft.deadline_us().filter(|_| !self.is_deaf() && !self.election_waits);
        let ask = match self.state {
            MachineState::Needed { ask_us, .. } => Some(ask_us),
            _ => None,
        };
        [raft, parked, waiting, reading, ask, transfer].into_iter().flatten().min()
    }

    /// The index up to which a snapshot or a checkpoint is kept.
    pub(super) fn newest_kept(&self) -> Index {
        let snapshot = self.snapshot.as_ref().map_or(Index::ZERO, Held::index);
        self.checkpoints.iter().map(|one| one.index).fold(snapshot, Index::max)
    }

    /// The wish to release the log is being fulfilled.
    pub(super) fn settle_wish(&mut self) {
        (self.want_release, self.force_release) = (false, false);
        self.release_when = ReleaseWishes::default();
    }
}
