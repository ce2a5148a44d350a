//! The groups of one shard: each with its consensus, its log, its machine and whoever waits for it.

use std::collections::{BTreeMap, VecDeque};

use coracle_base::checksum::mix64;
use coracle_base::codec::{Reader, Sink};
use coracle_base::run::EntryHeader;
use coracle_base::{EntryBatch, GroupId, Index, NodeId, Term};
use coracle_raft::Group;
use coracle_wal::BatchSeq;

use super::inbox::{Consistency, Origin};
use super::waiting::WaitingList;
use crate::log::MemLog;
use crate::machine::{Machine, RestoreError};
use crate::panics::caught;

/// What waits for a leader.
#[derive(Debug)]
pub(crate) enum Parked {
    Propose { entries: EntryBatch, origin: Origin, deadline_us: u64 },
    Query { consistency: Consistency, query: Vec<u8>, tag: u64, origin: Origin, deadline_us: u64 },
}

/// A query that waits for its read index, or for its read index to be applied.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) query: Vec<u8>,
    pub(crate) tag: u64,
    pub(crate) origin: Origin,
    pub(crate) deadline_us: u64,
    /// Known once the quorum has answered.
    pub(crate) index: Option<Index>,
}

/// What a question that waits takes of the memory for what waits: many small ones are a burden, too.
pub(crate) fn question_bytes(query: &[u8]) -> usize {
    query.len() + size_of::<Reading>()
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
    /// Another majority contradicts what is committed here. Poisoned, too: the member hears and says nothing any more.
    pub(crate) diverged: bool,
    pub(crate) waiting: WaitingList,
    pub(crate) parked: VecDeque<Parked>,
    pub(crate) reads: BTreeMap<u64, Reading>,
    /// The newest snapshot that is at least staged.
    pub(crate) snapshot: Option<Snapshot>,
    /// The newest snapshot that is staged and not durable.
    pub(crate) snapshot_in_flight: Option<Index>,
    pub(crate) want_release: bool,
    /// A snapshot was too large for the WAL; said once.
    pub(crate) snapshot_too_large: bool,
    /// The batch of the last record staged for this group.
    pub(crate) staged: BatchSeq,
    /// An apply waits for entries from the WAL's files.
    pub(crate) apply_read: bool,
    /// Entries read back for followers that are behind memory: (member, first, count, bytes).
    pub(crate) fetched: Vec<(NodeId, Index, u32, Vec<u8>)>,
    pub(crate) timer_us: Option<u64>,
    pub(crate) dirty: bool,
    pub(crate) applying: bool,
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
            diverged: false,
            waiting: WaitingList::default(),
            parked: VecDeque::new(),
            reads: BTreeMap::new(),
            snapshot: None,
            snapshot_in_flight: None,
            want_release: false,
            snapshot_too_large: false,
            staged: BatchSeq(0),
            apply_read: false,
            fetched: Vec::new(),
            timer_us: None,
            dirty: false,
            applying: false,
        }
    }

    /// The state now, at `applied`.
    pub(crate) fn take_snapshot(&self, term: Term) -> Snapshot {
        let mut bytes = Vec::new();
        bytes.put_u8(SNAPSHOT_VERSION);
        bytes.put_u64(self.time_ms);
        bytes.put_u64(self.digest);
        self.machine.snapshot(&mut bytes);
        Snapshot { index: self.applied, term, bytes }
    }

    /// Takes up a snapshot's state. A panic of the machine is an error like any other.
    pub(crate) fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RestoreError> {
        let mut reader = Reader::new(&snapshot.bytes);
        let fields = (reader.u8(), reader.u64(), reader.u64());
        let (Ok(SNAPSHOT_VERSION), Ok(time_ms), Ok(digest)) = fields else {
            return Err(RestoreError(format!(
                "snapshot of version {:?}, this is version {SNAPSHOT_VERSION}",
                fields.0
            )));
        };
        let machine = &mut self.machine;
        caught(|| machine.restore(reader.rest()))
            .map_err(|panic| RestoreError(format!("panic: {panic}")))??;
        self.time_ms = time_ms;
        self.digest = digest;
        self.applied = snapshot.index;
        Ok(())
    }

    /// Counts one more applied entry into the digest.
    pub(crate) fn digest_entry(&mut self, index: Index, header: &EntryHeader) {
        let content = u64::from(header.payload_crc) | u64::from(header.payload_bytes) << 32;
        self.digest = mix64(self.digest, mix64(index.0, mix64(header.term.0, content)));
    }

    /// When this group wants to be looked at though nothing happens.
    pub(crate) fn deadline_us(&self) -> Option<u64> {
        let parked = self.parked.front().map(|one| match one {
            Parked::Propose { deadline_us, .. } | Parked::Query { deadline_us, .. } => *deadline_us,
        });
        let waiting = self.waiting.deadline_us();
        let reading = self.reads.values().next().map(|one| one.deadline_us);
        let raft = self.raft.deadline_us().filter(|_| !self.diverged);
        [raft, parked, waiting, reading].into_iter().flatten().min()
    }
}
