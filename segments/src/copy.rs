//! What a compaction still has to read, and what it has read and not written yet.
//!
//! ```text
//!   spans, file by file → in the order in which they lie there → read together → gathered → by group and index → segment
//! ```
//!
//! What lives of thousands of groups is scattered over a file. Read group by group, each entry would be a read of its own;
//! read in the order of the file, neighbours come together. So that a group's entries lie together in the segment all the
//! same, some mebibytes are gathered and sorted before they are written.

use std::collections::VecDeque;

use coracle_base::{GroupId, Index};
use coracle_wal::{IndexRange, LiveOut, ReadError, Wal};

/// Entries asked for at once.
const KEYS_MAX: usize = 4096;
/// Spans that are brought into order together, and looked up in one step.
const ORDER_SPANS: usize = 32 * 1024;
const STEP_SPANS: usize = 2048;
/// Gathered before it is written, about.
const GATHER_BYTES: usize = 4 << 20;

/// Consecutive entries of a group in one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) group: GroupId,
    pub(crate) range: IndexRange,
    pub(crate) from: u64,
}

/// An entry that was read.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Copied {
    pub(crate) group: GroupId,
    pub(crate) index: Index,
    pub(crate) from: u64,
    pub(crate) encoded: Vec<u8>,
}

/// What is on its way from the victims to the segment.
#[derive(Debug, Default)]
pub(crate) struct Copying {
    /// What is still to be read, file by file; the first `ordered` of them as they lie there.
    left: VecDeque<Span>,
    ordered: usize,
    /// Being brought into order: with their places.
    placing: Vec<(u64, Span)>,
    /// The entries being read, and their files.
    asked: Vec<(GroupId, Index, u64)>,
    gathered: Vec<Copied>,
    gathered_bytes: usize,
}

impl Copying {
    pub(crate) fn new(mut spans: Vec<Span>) -> Self {
        spans.sort_unstable_by_key(|span| (span.from, span.group, span.range.first));
        Self { left: spans.into(), ..Self::default() }
    }

    /// Nothing is left to be read.
    pub(crate) fn is_read(&self) -> bool {
        self.left.is_empty() && self.placing.is_empty()
    }

    /// Whether nothing is left of a file.
    pub(crate) fn is_read_of(&self, file_no: u64) -> bool {
        !self.left.iter().any(|span| span.from == file_no)
    }

    /// Bytes that are gathered, and entries.
    pub(crate) fn gathered(&self) -> (usize, usize) {
        (self.gathered_bytes, self.gathered.len())
    }

    /// Enough is gathered.
    pub(crate) fn is_enough(&self) -> bool {
        self.gathered_bytes >= GATHER_BYTES
    }

    /// Some more of what is to be read next is brought into order. Whether it can be read now.
    pub(crate) fn order(&mut self, wal: &mut Wal) -> bool {
        if self.ordered > 0 {
            return true;
        }
        let Some(from) =
            self.placing.first().map(|(_, span)| span).or(self.left.front()).map(|span| span.from)
        else {
            return true;
        };
        if let Some(first) = self.left.front().filter(|_| self.placing.is_empty())
            && wal.place_of(first.group, first.range.first).is_none()
        {
            // The file's index is not in memory; reading one entry brings it there.
            self.ordered = 1;
            return true;
        }
        for _ in 0..STEP_SPANS {
            let is_more = self.placing.len() < ORDER_SPANS;
            let Some(span) = self.left.pop_front_if(|span| is_more && span.from == from) else {
                self.placing.sort_unstable();
                self.ordered = self.placing.len();
                self.placing.drain(..).rev().for_each(|(_, span)| self.left.push_front(span));
                return true;
            };
            self.placing.push((wal.place_of(span.group, span.range.first).unwrap_or(0), span));
        }
        false
    }

    /// The entries to be read next, of those that are in order.
    pub(crate) fn ask(&mut self) -> Vec<(GroupId, Index)> {
        self.asked.clear();
        for span in self.left.iter().take(self.ordered) {
            let room = KEYS_MAX - self.asked.len();
            let indexes = (span.range.first.0..=span.range.last().0).take(room);
            self.asked.extend(indexes.map(|index| (span.group, Index(index), span.from)));
            if self.asked.len() == KEYS_MAX {
                break;
            }
        }
        self.asked.iter().map(|(group, index, _)| (*group, *index)).collect()
    }

    /// Takes the entries that were read: the first of those that were asked for. `damaged` gets the file of each that could
    /// not be.
    pub(crate) fn take(&mut self, out: LiveOut, mut damaged: impl FnMut(u64)) {
        let asked = std::mem::take(&mut self.asked);
        for ((group, index, fetched), (_, _, from)) in out.entries.into_iter().zip(asked) {
            self.pass(index);
            match fetched {
                Ok(encoded) => {
                    self.gathered_bytes += encoded.len();
                    self.gathered.push(Copied { group, index, from, encoded });
                }
                // Nobody needs it any more.
                Err(ReadError::Released { .. }) => {}
                Err(_) => damaged(from),
            }
        }
    }

    /// The entry, which is the first of those left, is read.
    fn pass(&mut self, index: Index) {
        let Some(span) = self.left.front_mut() else { return };
        if span.range.last() == index {
            self.left.pop_front();
            self.ordered = self.ordered.saturating_sub(1);
        } else {
            span.range.count -= index.next().since(span.range.first);
            span.range.first = index.next();
        }
    }

    /// What is gathered is to be written: from now on [`next`](Self::next) has it by group and index.
    pub(crate) fn sort(&mut self) {
        self.gathered.sort_unstable_by(|a, b| b.cmp(a));
    }

    /// What is gathered cannot be written: it is left, behind all else.
    pub(crate) fn give_back(&mut self, first: Copied) {
        for Copied { group, index, from, .. } in std::iter::once(first).chain(self.gathered.drain(..)) {
            self.left.push_back(Span { group, range: IndexRange { first: index, count: 1 }, from });
        }
        self.gathered_bytes = 0;
    }

    /// The next entry to be written.
    pub(crate) fn next(&mut self) -> Option<Copied> {
        let copied = self.gathered.pop()?;
        self.gathered_bytes -= copied.encoded.len();
        Some(copied)
    }
}
