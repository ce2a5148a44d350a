//! The log under test: a real `Wal` and a real `Compactor` on a simulated disk, beside the model of what was staged. A
//! turn here is a shard's: completions, compaction, whatever is staged, one submission.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use coracle_base::run::Entries;
use coracle_base::{EntryBatch, EntryKind, GroupId, Index, NodeId, RunHeader, ShardId, Term};
use coracle_io::fake::FakeDisk;
use coracle_io::{Disk, DiskDone};
use coracle_segments::Compactor;
use coracle_wal::{
    BatchSeq, Config, Identity, IndexRange, ReadError, ReadOut, Recovery, SnapshotFile, Wal, WalError,
};

use super::model::{Model, Op, payload, snapshot, state};
use super::plan::Plan;

/// What a read came to: the entries, by index, encoded or why not.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) group: u64,
    pub(super) entries: Vec<(u64, Result<Vec<u8>, ReadError>)>,
}

/// A log that is open.
pub(super) struct Store {
    pub(super) wal: Wal,
    pub(super) compactor: Compactor,
    /// What is staged.
    pub(super) now: Model,
    /// What is durable of it.
    pub(super) durable: Model,
    /// The records in between.
    pub(super) pending: VecDeque<(BatchSeq, Op)>,
    /// Whose records each batch has.
    pub(super) batches: BTreeMap<u64, BTreeSet<u64>>,
    /// Groups being read, by the read's number.
    reading: BTreeMap<u64, u64>,
    next_read: u64,
    bytes_max: u64,
    done: Vec<DiskDone>,
}

/// Whose log it is.
pub(super) fn identity() -> Identity {
    Identity { cluster: 0xC1, node: NodeId(1), incarnation: 1, shard: ShardId(0), shards: 1 }
}

impl Store {
    /// Opens the log. The model is to be set by whoever judges what was found.
    pub(super) fn open(plan: &Plan, disk: &mut FakeDisk, seed: u64) -> Result<(Self, Recovery), WalError> {
        let config = Config { seed, ..plan.config.clone() };
        let (wal, recovery) = Wal::open(disk, config, identity())?;
        let store = Self {
            wal,
            compactor: Compactor::new(plan.bounds),
            now: Model::default(),
            durable: Model::default(),
            pending: VecDeque::new(),
            batches: BTreeMap::new(),
            reading: BTreeMap::new(),
            next_read: 0,
            bytes_max: plan.entry_bytes,
            done: Vec::new(),
        };
        Ok((store, recovery))
    }

    /// The model of what was found.
    pub(super) fn begin(&mut self, model: Model) {
        self.now = model.clone();
        self.durable = model;
    }

    // ---- staging --------------------------------------------------------------------------------------------------

    /// Stages a record.
    pub(super) fn stage(&mut self, op: Op) {
        let seq = self.put(&op);
        self.now.apply(&op);
        self.batches.entry(seq.0).or_default().insert(op.group());
        self.pending.push_back((seq, op));
    }

    fn put(&mut self, op: &Op) -> BatchSeq {
        match op {
            Op::Append { group, prev, accepted, terms } => {
                let prev_term = self.now.get(*group).term_at(*prev).unwrap_or_default();
                let body = self.encode(*group, prev + 1, terms);
                let header = header(*group, *prev, prev_term, *accepted, terms.len(), &body);
                self.wal.append(&header, &[&body])
            }
            Op::State { group, id } => self.wal.put_state(GroupId(*group), &state(*id)),
            Op::Snapshot { group, index, term, live, id, in_file } => {
                let (group, index, term, live) = (GroupId(*group), Index(*index), Term(*term), ranges(live));
                if *in_file {
                    let file = SnapshotFile { file_no: *id, bytes: 1, crc: 1 };
                    self.wal.mark_snapshot(group, index, term, &live, file)
                } else {
                    self.wal.put_snapshot(group, index, term, &live, &snapshot(*id))
                }
            }
            Op::Place { group, first, terms } => {
                let body = self.encode(*group, *first, terms);
                let accepted = terms.last().copied().unwrap_or_default();
                let header = header(*group, first - 1, 0, accepted, terms.len(), &body);
                self.wal.place(&header, &[&body])
            }
            Op::Delete { group } => self.wal.delete(GroupId(*group)),
        }
    }

    fn encode(&self, group: u64, first: u64, terms: &[u64]) -> Vec<u8> {
        let mut body = Vec::new();
        for (index, term) in (first..).zip(terms) {
            let mut entry = EntryBatch::new();
            let payload = payload(group, index, *term, self.bytes_max);
            entry.push(index, EntryKind::Command, &payload).expect("a payload of the plan's size fits");
            entry.stamp(Term(*term), 0);
            body.extend_from_slice(entry.bytes());
        }
        body
    }

    // ---- turns ----------------------------------------------------------------------------------------------------

    /// Takes what has completed.
    pub(super) fn complete(&mut self, disk: &mut FakeDisk) -> Result<(), WalError> {
        let mut done = std::mem::take(&mut self.done);
        disk.completions(&mut done);
        let mut result = Ok(());
        for one in done.drain(..) {
            if Compactor::owns(one.token) {
                self.compactor.on_done(disk, one);
            } else {
                result = result.and(self.wal.on_done(disk, one));
            }
        }
        self.done = done;
        while let Some((seq, op)) = self.pending.front()
            && self.wal.durable().covers(*seq)
        {
            self.durable.apply(op);
            self.pending.pop_front();
        }
        result
    }

    /// A step of compaction, and whatever may be written.
    pub(super) fn submit(&mut self, disk: &mut FakeDisk, now_us: u64) -> Result<(), WalError> {
        self.compactor.step(&mut self.wal, disk, now_us);
        self.wal.submit(disk, now_us)?;
        Ok(disk.submit()?)
    }

    /// Everything that was staged is durable, and could be proven to be.
    pub(super) fn is_proven(&self) -> bool {
        self.wal.backlog_bytes() == 0 && self.pending.is_empty() && self.wal.deadline_us().is_none()
    }

    // ---- reads ----------------------------------------------------------------------------------------------------

    /// Begins to read entries of the log.
    pub(super) fn read(&mut self, disk: &mut FakeDisk, group: u64, first: u64, last: u64, max_bytes: usize) {
        let id = self.begin_read(group);
        self.wal.read(disk, id, GroupId(group), Index(first), Index(last), max_bytes);
    }

    /// Begins to read scattered entries.
    pub(super) fn read_live(&mut self, disk: &mut FakeDisk, group: u64, indexes: &[u64], max_bytes: usize) {
        let indexes: Vec<Index> = indexes.iter().copied().map(Index).collect();
        let id = self.begin_read(group);
        self.wal.read_live(disk, id, GroupId(group), &indexes, max_bytes);
    }

    fn begin_read(&mut self, group: u64) -> u64 {
        self.next_read += 1;
        self.reading.insert(self.next_read, group);
        self.next_read
    }

    /// Reads under way.
    pub(super) fn reads(&self) -> usize {
        self.reading.len()
    }

    /// A read that has ended.
    pub(super) fn poll(&mut self) -> Option<Read> {
        if let Some((id, result)) = self.wal.poll_read() {
            let group = self.reading.remove(&id)?;
            return Some(Read { group, entries: read_entries(result) });
        }
        let (id, out) = self.wal.poll_live()?;
        let group = self.reading.remove(&id)?;
        let entries = out.entries.into_iter().map(|(_, index, entry)| (index.0, entry)).collect();
        Some(Read { group, entries })
    }
}

/// Entry by entry.
fn read_entries(result: Result<ReadOut, ReadError>) -> Vec<(u64, Result<Vec<u8>, ReadError>)> {
    let out = match result {
        Ok(out) => out,
        Err(error) => return vec![(index_of(&error), Err(error))],
    };
    let mut entries = Entries::new(out.first, &out.body);
    let mut all = Vec::new();
    loop {
        let encoded = entries.rest();
        let Some(entry) = entries.next() else { return all };
        let bytes = encoded.len() - entries.rest().len();
        all.push((entry.index.0, Ok(encoded[..bytes].to_vec())));
    }
}

/// The entry that an error is about.
fn index_of(error: &ReadError) -> u64 {
    match error {
        ReadError::Released { index, .. }
        | ReadError::NotDurable { index }
        | ReadError::Corrupt { index, .. } => index.0,
        ReadError::Disk(_) => 0,
    }
}

fn header(group: u64, prev: u64, prev_term: u64, accepted: u64, count: usize, body: &[u8]) -> RunHeader {
    RunHeader {
        group: GroupId(group),
        accepted_term: Term(accepted),
        prev_index: Index(prev),
        prev_term: Term(prev_term),
        count: count as u32,
        body_bytes: body.len() as u32,
    }
}

/// Consecutive indexes together.
fn ranges(indexes: &[u64]) -> Vec<IndexRange> {
    let mut ranges: Vec<IndexRange> = Vec::new();
    for index in indexes {
        match ranges.last_mut() {
            Some(last) if last.last().0 + 1 == *index => last.count += 1,
            _ => ranges.push(IndexRange { first: Index(*index), count: 1 }),
        }
    }
    ranges
}
