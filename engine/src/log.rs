//! A group's entries in memory: the newest part of its log, from the first one that somebody still needs.
//!
//! Entries lie encoded, as they go to the WAL and over the wire, in chunks of consecutive entries. Ranges are cut on
//! entry boundaries with the help of a mark every [`MARK_EVERY`] entries, so a cut walks few headers.
//!
//! Invariants: (1) chunks are consecutive, and the last one ends at the log's last index; (2) an entry that is not
//! durable, or is still to be applied, is in memory (the shard evicts no others); (3) what is not in memory is in WAL files.

use std::collections::VecDeque;

use coracle_base::Index;
use coracle_base::run::ENTRY_HEADER_BYTES;
use coracle_raft::{Fit, Sizes};

const MARK_EVERY: u32 = 32;
/// Small runs are gathered into chunks of this size.
const CHUNK_BYTES: usize = 64 * 1024;

#[derive(Debug)]
struct Chunk {
    first: Index,
    count: u32,
    bytes: Vec<u8>,
    /// Offset of the entries `MARK_EVERY`, `2 * MARK_EVERY`, ... of this chunk.
    marks: Vec<u32>,
}

impl Chunk {
    fn last(&self) -> Index {
        Index(self.first.0 + u64::from(self.count) - 1)
    }

    /// Offset of the `nth` entry; the length of the bytes for the one after the last.
    fn offset(&self, nth: u32) -> usize {
        if nth == self.count {
            return self.bytes.len();
        }
        let mark = nth / MARK_EVERY;
        let mut at = if mark == 0 { 0 } else { self.marks[mark as usize - 1] as usize };
        for _ in mark * MARK_EVERY..nth {
            at += entry_bytes(&self.bytes[at..]);
        }
        at
    }

    /// Appends entries, noting marks.
    fn extend(&mut self, entries: &[u8], count: u32) {
        let mut at = self.bytes.len();
        self.bytes.extend_from_slice(entries);
        for nth in self.count..self.count + count {
            if nth > 0 && nth % MARK_EVERY == 0 {
                self.marks.push(at as u32);
            }
            at += entry_bytes(&self.bytes[at..]);
        }
        self.count += count;
        assert_eq!(at, self.bytes.len(), "a run's entries disagree with its bytes");
    }
}

fn entry_bytes(entry: &[u8]) -> usize {
    ENTRY_HEADER_BYTES + u32::from_le_bytes([entry[24], entry[25], entry[26], entry[27]]) as usize
}

/// The entries of one group that are in memory.
#[derive(Debug)]
pub(crate) struct MemLog {
    chunks: VecDeque<Chunk>,
    /// The index after the last entry of the log, in memory or not.
    next: Index,
    bytes: usize,
}

impl MemLog {
    /// A log whose entries up to `last` are in WAL files only.
    pub(crate) fn new(last: Index) -> Self {
        Self { chunks: VecDeque::new(), next: last.next(), bytes: 0 }
    }

    /// The first entry in memory; the index after the last if there is none.
    pub(crate) fn first(&self) -> Index {
        self.chunks.front().map_or(self.next, |chunk| chunk.first)
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts `count` encoded entries at `first`, dropping what was there and after.
    ///
    /// # Panics
    /// If that would leave a hole.
    pub(crate) fn store(&mut self, first: Index, entries: &[u8], count: u32) {
        self.truncate(first);
        assert_eq!(first, self.next, "entries must follow the log's last");
        self.next = first.plus(u64::from(count));
        self.bytes += entries.len();
        if let Some(last) = self.chunks.back_mut()
            && last.bytes.len() + entries.len() <= CHUNK_BYTES
        {
            return last.extend(entries, count);
        }
        let mut chunk =
            Chunk { first, count: 0, bytes: Vec::with_capacity(entries.len()), marks: Vec::new() };
        chunk.extend(entries, count);
        self.chunks.push_back(chunk);
    }

    /// Drops the entries at and after `from`.
    pub(crate) fn truncate(&mut self, from: Index) {
        while let Some(chunk) = self.chunks.back_mut() {
            if chunk.last() < from {
                break;
            }
            if chunk.first >= from {
                self.bytes -= chunk.bytes.len();
                self.chunks.pop_back();
                continue;
            }
            let keep = (from.0 - chunk.first.0) as u32;
            let at = chunk.offset(keep);
            self.bytes -= chunk.bytes.len() - at;
            chunk.bytes.truncate(at);
            chunk.marks.truncate((keep.saturating_sub(1) / MARK_EVERY) as usize);
            chunk.count = keep;
        }
        self.next = self.next.min(from);
    }

    /// Frees the chunks that end at or before `upto`.
    pub(crate) fn evict(&mut self, upto: Index) {
        while self.chunks.front().is_some_and(|chunk| chunk.last() <= upto) {
            let chunk = self.chunks.pop_front().expect("there is a front chunk");
            self.bytes -= chunk.bytes.len();
        }
    }

    /// Starts over after `last`: a snapshot took the log's place.
    pub(crate) fn reset(&mut self, last: Index) {
        *self = Self::new(last);
    }

    /// The encoded entries `first..=last` as the pieces that they lie in, each with its index and count.
    ///
    /// # Panics
    /// If they are not all in memory.
    pub(crate) fn pieces(&self, first: Index, last: Index) -> impl Iterator<Item = (Index, u32, &[u8])> {
        assert!(
            first >= self.first() && last < self.next && first <= last,
            "entries {first}..={last} are not in memory"
        );
        let start = self.chunks.partition_point(|chunk| chunk.last() < first);
        self.chunks.range(start..).take_while(move |chunk| chunk.first <= last).map(move |chunk| {
            let from = first.0.saturating_sub(chunk.first.0) as u32;
            let to = (last.min(chunk.last()).0 - chunk.first.0) as u32 + 1;
            let bytes = &chunk.bytes[chunk.offset(from)..chunk.offset(to)];
            (chunk.first.plus(u64::from(from)), to - from, bytes)
        })
    }
}

impl Sizes for MemLog {
    fn fit(&self, first: Index, last: Index, max_bytes: u32) -> Fit {
        if first < self.first() {
            return Fit::OnDisk;
        }
        let (mut upto, mut total) = (first.prev(), 0);
        for (at, count, bytes) in self.pieces(first, last) {
            if total + bytes.len() <= max_bytes as usize {
                upto = at.plus(u64::from(count) - 1);
                total += bytes.len();
                continue;
            }
            let mut rest = bytes;
            while !rest.is_empty() {
                let one = entry_bytes(rest);
                if total + one > max_bytes as usize && total > 0 {
                    break;
                }
                total += one;
                upto = upto.next();
                rest = &rest[one..];
            }
            break;
        }
        Fit::Resident { last: upto, bytes: total as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_base::{EntryBatch, EntryKind};
    use proptest::prelude::*;

    fn entry(tag: u64, bytes: usize) -> Vec<u8> {
        let mut batch = EntryBatch::new();
        batch.push(tag, EntryKind::Command, &vec![tag as u8; bytes]).unwrap();
        batch.into_bytes()
    }

    #[derive(Debug, Clone)]
    enum Step {
        Append(Vec<usize>),
        Overwrite(u64, usize),
        Evict(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => proptest::collection::vec(0usize..3000, 1..90).prop_map(Step::Append),
            1 => (0u64..200, 0usize..500).prop_map(|(back, bytes)| Step::Overwrite(back, bytes)),
            1 => (0u64..200).prop_map(Step::Evict),
        ]
    }

    proptest! {
        /// Against a plain list of encoded entries.
        #[test]
        fn behaves_like_a_list(steps in proptest::collection::vec(step(), 1..40), cut in any::<(u64, u64, u32)>()) {
            let mut log = MemLog::new(Index(10));
            let (mut model, mut first, mut tag) = (VecDeque::<Vec<u8>>::new(), 11u64, 0u64);
            for step in steps {
                match step {
                    Step::Append(sizes) => {
                        let at = first + model.len() as u64;
                        let entries: Vec<Vec<u8>> = sizes.iter().map(|b| { tag += 1; entry(tag, *b) }).collect();
                        log.store(Index(at), &entries.concat(), entries.len() as u32);
                        model.extend(entries);
                    }
                    Step::Overwrite(back, bytes) if !model.is_empty() => {
                        let keep = model.len() - 1 - (back as usize % model.len());
                        tag += 1;
                        model.truncate(keep);
                        log.store(Index(first + keep as u64), &entry(tag, bytes), 1);
                        model.push_back(entry(tag, bytes));
                    }
                    Step::Evict(n) => {
                        log.evict(Index(first + n));
                        while Index(first) < log.first() { model.pop_front(); first += 1; }
                    }
                    Step::Overwrite(..) => {}
                }
                prop_assert_eq!(log.bytes(), model.iter().map(Vec::len).sum::<usize>());
                prop_assert_eq!(log.next, Index(first + model.len() as u64));
            }
            if !model.is_empty() {
                let a = cut.0 % model.len() as u64;
                let b = a + cut.1 % (model.len() as u64 - a);
                let got: Vec<u8> = log.pieces(Index(first + a), Index(first + b)).flat_map(|p| p.2.to_vec()).collect();
                let want: Vec<u8> = model.range(a as usize..=b as usize).flatten().copied().collect();
                prop_assert_eq!(got, want);
                let max = cut.2 % 20_000;
                let Fit::Resident { last, bytes } = log.fit(Index(first + a), Index(first + b), max) else { panic!("resident") };
                let mut sum = 0;
                let mut n = 0;
                for e in model.range(a as usize..=b as usize) {
                    if n > 0 && sum + e.len() > max as usize { break; }
                    sum += e.len();
                    n += 1;
                }
                prop_assert_eq!((last.0, bytes as usize), (first + a + n - 1, sum));
            }
        }
    }

    #[test]
    fn what_is_not_in_memory_is_on_disk() {
        let mut log = MemLog::new(Index(5));
        assert_eq!(log.fit(Index(3), Index(5), 1000), Fit::OnDisk);
        log.store(Index(6), &entry(1, 10), 1);
        assert!(matches!(log.fit(Index(6), Index(6), 1000), Fit::Resident { .. }));
    }
}
