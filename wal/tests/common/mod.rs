//! A log under test beside a plain model of it: every record goes to both, and what comes back is compared.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod counting;
pub mod model;

use std::collections::BTreeSet;

use coracle_base::{EntryBatch, EntryKind, GroupId, Index, NodeId, RunHeader, ShardId, Term};
use coracle_io::fake::{Completing, FakeDisk};
use coracle_io::{Disk, DiskDone};
use coracle_wal::{BatchSeq, Config, Identity, IndexRange, ReadError, Recovery, SnapshotFile, Wal, WalError};
use model::Model;

pub const DIR: &str = "wal";

pub fn identity() -> Identity {
    Identity { cluster: 0xC1, node: NodeId(2), incarnation: 3, shard: ShardId(0), shards: 1 }
}

pub fn config(seed: u64) -> Config {
    Config { file_bytes: 64 * 1024, checkpoint_every_bytes: 48 * 1024, ..Config::new(DIR, seed) }
}

/// Entries with payloads of at most `bytes` (and of some bytes in any case) that say where they belong: as in Raft, the
/// same group, index and term have the same payload.
pub fn entries(group: u64, first: u64, term: u64, count: u32, bytes: usize) -> EntryBatch {
    let mut batch = EntryBatch::new();
    for i in 0..u64::from(count) {
        let mut payload = format!("g{group} i{} t{term} ", first + i).into_bytes();
        let eighths = (group + 3 * (first + i) + 5 * term) as usize % 8 + 1;
        payload.resize(payload.len().max(bytes * eighths / 8), b'.');
        batch.push(first + i, EntryKind::Command, &payload).unwrap();
    }
    batch.stamp(Term(term), 1000);
    batch
}

/// A log and its model.
pub struct Rig {
    pub disk: FakeDisk,
    pub wal: Wal,
    pub now_us: u64,
    /// The model after every record staged, from what recovery found on; with the record's batch.
    pub history: Vec<(BatchSeq, Model)>,
    /// Completions that are not the log's.
    pub others: Vec<DiskDone>,
    done: Vec<DiskDone>,
}

impl Rig {
    pub fn open(disk: FakeDisk, config: Config) -> Result<(Self, Recovery), WalError> {
        let mut handle = disk.clone();
        let (wal, recovery) = Wal::open(&mut handle, config, identity())?;
        let found = Model::of(&recovery);
        let history = vec![(BatchSeq(0), found)];
        Ok((Self { disk, wal, now_us: 0, history, others: Vec::new(), done: Vec::new() }, recovery))
    }

    pub fn fresh(seed: u64) -> Self {
        Self::open(FakeDisk::new(seed), config(seed)).unwrap().0
    }

    pub fn model(&self) -> &Model {
        &self.history.last().unwrap().1
    }

    fn note(&mut self, seq: BatchSeq, change: impl FnOnce(&mut Model)) {
        let mut model = self.model().clone();
        change(&mut model);
        self.history.push((seq, model));
    }

    /// A run after `prev`, whose term the model knows.
    pub fn append(&mut self, group: u64, prev: u64, term: u64, accepted: u64, count: u32, bytes: usize) {
        let batch = entries(group, prev + 1, term, count, bytes);
        let header = RunHeader {
            group: GroupId(group),
            accepted_term: Term(accepted),
            prev_index: Index(prev),
            prev_term: Term(self.model().term_at(group, prev).expect("the model holds the entry before")),
            count,
            body_bytes: batch.bytes().len() as u32,
        };
        let seq = self.wal.append(&header, &[batch.bytes()]);
        self.note(seq, |model| model.append(&header, &batch));
    }

    pub fn put_state(&mut self, group: u64, blob: &[u8]) {
        let seq = self.wal.put_state(GroupId(group), blob);
        self.note(seq, |model| model.group(group).state = blob.to_vec());
    }

    pub fn put_snapshot(&mut self, group: u64, index: u64, term: u64, bytes: &[u8]) {
        let seq = self.wal.put_snapshot(GroupId(group), Index(index), Term(term), &[], bytes);
        self.note(seq, |model| model.snapshot(group, index, term, bytes));
    }

    /// A snapshot of which these entries live on, each of which must be held.
    pub fn put_snapshot_live(&mut self, group: u64, index: u64, term: u64, live: &[u64], bytes: &[u8]) {
        let ranges = ranges(live);
        let seq = self.wal.put_snapshot(GroupId(group), Index(index), Term(term), &ranges, bytes);
        self.note(seq, |model| model.snapshot_live(group, index, term, live, bytes));
    }

    /// Entries of a snapshot that is still to come: nothing of them is seen before it.
    pub fn place(&mut self, group: u64, first: u64, body: &EntryBatch) {
        let term = coracle_base::run::Entries::new(Index(first), body.bytes()).next().unwrap().header.term;
        let header = RunHeader {
            group: GroupId(group),
            accepted_term: term,
            prev_index: Index(first - 1),
            // Nobody knows, and nobody asks.
            prev_term: Term(0),
            count: body.count(),
            body_bytes: body.bytes().len() as u32,
        };
        let seq = self.wal.place(&header, &[body.bytes()]);
        self.note(seq, |_| {});
    }

    /// A leader's snapshot, in a file of its own or in the log: of what lived, `held` goes on, and so does what was
    /// placed.
    pub fn install(
        &mut self,
        group: u64,
        (index, term): (u64, u64),
        held: &[u64],
        placed: &[(u64, EntryBatch)],
        in_file: bool,
    ) {
        let each = |(first, body): &(u64, EntryBatch)| *first..*first + u64::from(body.count());
        let live: BTreeSet<u64> = held.iter().copied().chain(placed.iter().flat_map(each)).collect();
        let ranges = ranges(&live.into_iter().collect::<Vec<_>>());
        let (id, at, of) = (GroupId(group), Index(index), Term(term));
        let seq = match in_file {
            true => {
                self.wal.mark_snapshot(id, at, of, &ranges, SnapshotFile { file_no: index, bytes: 1, crc: 1 })
            }
            false => self.wal.put_snapshot(id, at, of, &ranges, b"from the leader"),
        };
        self.note(seq, |model| {
            model.snapshot_live(group, index, term, held, b"from the leader");
            let group = model.group(group);
            group.snapshot.take_if(|_| in_file);
            for (first, body) in placed {
                let entries = coracle_base::run::Entries::new(Index(*first), body.bytes());
                group.live.extend(entries.map(|entry| (entry.index.0, Some(entry.payload.to_vec()))));
            }
        });
    }

    /// A group ends.
    pub fn delete(&mut self, group: u64) {
        let seq = self.wal.delete(GroupId(group));
        self.note(seq, |model| *model.group(group) = Default::default());
    }

    /// Hands out what may be written.
    pub fn submit(&mut self) -> Result<(), WalError> {
        self.wal.submit(&mut self.disk, self.now_us)?;
        Ok(self.disk.submit()?)
    }

    /// Takes what has completed.
    pub fn complete(&mut self) -> Result<(), WalError> {
        let mut done = std::mem::take(&mut self.done);
        self.disk.completions(&mut done);
        let mut result = Ok(());
        for one in done.drain(..) {
            if Wal::owns(one.token) {
                result = result.and(self.wal.on_done(&mut self.disk, one));
            } else {
                self.others.push(one);
            }
        }
        self.done = done;
        result
    }

    /// Submits and completes until everything staged is durable and nothing is going on in the background.
    pub fn settle(&mut self) {
        self.disk.set_completing(Completing::AtOnce);
        for _ in 0..10_000 {
            self.submit().unwrap();
            if self.disk.in_flight() == 0 && self.wal.backlog_bytes() == 0 {
                return;
            }
            self.complete().unwrap();
        }
        panic!("the log does not come to rest");
    }

    /// How many of the records in `history` are durable.
    pub fn acked(&self) -> usize {
        let durable = self.wal.durable();
        self.history.iter().take_while(|(seq, _)| durable.covers(*seq)).count()
    }

    /// Reads a group's log back whole.
    pub fn read_all(&mut self, group: u64) -> Result<Vec<(u64, u64, Vec<u8>)>, ReadError> {
        read_all(&mut self.wal, &mut self.disk, group)
    }

    /// The log holds exactly what the model does, entries and all.
    pub fn check(&mut self) -> Result<(), String> {
        let model = self.model().clone();
        for id in model.ids() {
            let read = self.read_all(id).map_err(|error| format!("group {id}: {error}"))?;
            model.check_entries(id, &read)?;
            check_live(&mut self.wal, &mut self.disk, id, &model)?;
        }
        Ok(())
    }
}

/// Consecutive indexes together.
pub fn ranges(indexes: &[u64]) -> Vec<IndexRange> {
    let mut ranges: Vec<IndexRange> = Vec::new();
    for index in indexes {
        match ranges.last_mut() {
            Some(last) if last.last().0 + 1 == *index => last.count += 1,
            _ => ranges.push(IndexRange { first: Index(*index), count: 1 }),
        }
    }
    ranges
}

/// Every live entry of a group is read back as the model has it.
pub fn check_live(wal: &mut Wal, disk: &mut FakeDisk, group: u64, model: &Model) -> Result<(), String> {
    let live = model.get(group).live;
    let indexes: Vec<Index> = live.keys().map(|index| Index(*index)).collect();
    let mut left = indexes.as_slice();
    while !left.is_empty() {
        let read = read_live(wal, disk, group, left, 5000);
        assert!(!read.is_empty() && read.len() <= left.len());
        for ((index, entry), expected) in read.iter().zip(left) {
            assert_eq!(index, expected);
            let payload = entry.as_ref().map_err(|error| format!("group {group}, live {index}: {error}"))?;
            if live[&index.0].as_ref().is_some_and(|bytes| bytes != payload) {
                return Err(format!("group {group}: live entry {index} is not what was written"));
            }
        }
        left = &left[read.len()..];
    }
    Ok(())
}

/// Payloads of scattered entries.
pub fn read_live(
    wal: &mut Wal,
    disk: &mut FakeDisk,
    group: u64,
    indexes: &[Index],
    max_bytes: usize,
) -> Vec<(Index, Result<Vec<u8>, ReadError>)> {
    wal.read_live(disk, 78, GroupId(group), indexes, max_bytes);
    let mut done = Vec::new();
    for _ in 0..100_000 {
        if let Some((id, out)) = wal.poll_live() {
            assert_eq!(id, 78);
            let payload = |index: Index, encoded: Vec<u8>| {
                let entry = coracle_base::run::Entries::new(index, &encoded).next();
                entry.expect("a whole entry").payload.to_vec()
            };
            let one = |(_, index, entry): (GroupId, Index, Result<Vec<u8>, ReadError>)| {
                (index, entry.map(|encoded| payload(index, encoded)))
            };
            return out.entries.into_iter().map(one).collect();
        }
        disk.submit().unwrap();
        disk.completions(&mut done);
        for one in done.drain(..) {
            let _ = wal.on_done(disk, one);
        }
    }
    panic!("a read does not end");
}

/// A group's entries (index, term, payload), read back from files.
pub fn read_all(
    wal: &mut Wal,
    disk: &mut FakeDisk,
    group: u64,
) -> Result<Vec<(u64, u64, Vec<u8>)>, ReadError> {
    let Some(log) = wal.group(GroupId(group)) else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    let mut next = log.first;
    while next <= log.last {
        let out = read_some(wal, disk, group, next, log.last, 700)?;
        assert_eq!(out.first, next, "a read begins where it was asked to");
        let entries = coracle_base::run::Entries::new(out.first, &out.body);
        let mut count = 0;
        for entry in entries {
            all.push((entry.index.0, entry.header.term.0, entry.payload.to_vec()));
            count += 1;
        }
        assert_eq!(count, out.count, "a read has as many entries as it says");
        next = next.plus(u64::from(count));
    }
    Ok(all)
}

pub fn read_some(
    wal: &mut Wal,
    disk: &mut FakeDisk,
    group: u64,
    first: Index,
    last: Index,
    max_bytes: usize,
) -> Result<coracle_wal::ReadOut, ReadError> {
    wal.read(disk, 77, GroupId(group), first, last, max_bytes);
    let mut done = Vec::new();
    for _ in 0..100_000 {
        if let Some((id, result)) = wal.poll_read() {
            assert_eq!(id, 77);
            return result;
        }
        disk.submit()?;
        disk.completions(&mut done);
        for one in done.drain(..) {
            // What the writes come to is not the question here.
            let _ = wal.on_done(disk, one);
        }
    }
    panic!("a read does not end");
}
