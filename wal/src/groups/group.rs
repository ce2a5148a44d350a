//! One group's log as its records make it: terms, extents, state, snapshot. Bytes of entries are not kept.
//!
//! The rules, for live records and replay alike:
//! - A run has overwrite meaning: the later record wins, whatever its term. From the first entry that differs from the
//!   one held at its index, everything held is dropped; entries that are held already change nothing.
//! - A snapshot releases the log up to its index if the log holds (index, term); otherwise the whole log is dropped and
//!   begins after it. An older snapshot than the present one changes nothing. What it names as live goes on living
//!   (`live.rs`).
//!
//! Invariants: (1) the log is `(base, last]`, without a gap; `terms` and `extents` cover it exactly, in order; (2) `live`
//! lies at or below `base`, in order, with gaps.

use coracle_base::{GroupId, Index, RunHeader, Term};

use super::extents::Extents;
use super::runs::{Marks, NONE, PlacedRuns, RunAt, Runs};
use super::{GroupLog, Refs};
use crate::format::Position;
use crate::format::page::{Extent, PART_ITEMS_MAX, Part, SnapshotPlace};
use crate::format::record::IndexRange;

/// Whether a run continues the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    Fits,
    /// Entries before it are missing.
    Gap,
    /// The entry before it is of another term than the run says: a record in between is missing.
    Mismatch,
}

/// The newest extent, as far as it is not told by the group's last index: it ends there.
#[derive(Debug, Clone, Copy, Default)]
struct Tail {
    /// The newest file with an entry of this group; `newest` and `marks` are about it.
    file_no: u64,
    /// None if it is 0.
    count: u32,
    bytes: u32,
}

/// A group: what an append touches, in one cache line, and behind a pointer all the rest. With thousands of groups they are
/// seldom in the cache, so they lie close together.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Group {
    pub(crate) last: Index,
    /// Term at `last`.
    last_term: Term,
    /// The entry before the first: the snapshot's last, or 0.
    pub(crate) base: Index,
    pub(crate) accepted_term: Term,
    tail: Tail,
    /// Its own place in the table of groups.
    pub(super) slot: u32,
    /// The number of its newest run in the tail's file.
    newest: u32,
    pub(crate) cold: Box<Cold>,
}

const _: () = assert!(size_of::<Group>() == 64);

/// What of a group most appends do not touch.
#[derive(Debug)]
pub(crate) struct Cold {
    pub(crate) id: GroupId,
    pub(super) marks: Marks,
    pub(crate) base_term: Term,
    pub(crate) state: Vec<u8>,
    pub(crate) snapshot: Option<SnapshotPlace>,
    /// First index of each span of equal terms.
    pub(crate) terms: Vec<(Index, Term)>,
    /// All extents of the log but the tail.
    extents: Extents,
    /// Entries that the snapshot covers and that live on.
    pub(crate) live: Vec<Extent>,
    /// Entries that came before the snapshot that names them.
    pub(crate) placed: Vec<Extent>,
    /// Where such entries lie in the newest file that has any, also once they live on.
    pub(super) placed_runs: Option<Box<PlacedRuns>>,
    /// The group is gone for good.
    pub(crate) deleted: bool,
    /// Entries that were acknowledged may be missing.
    pub(crate) suspect: bool,
    /// A newer state than this one may have been acknowledged.
    pub(crate) state_lost: bool,
    /// The state waits to be written once more.
    pub(crate) repeat: bool,
    /// Rises whenever entries are dropped otherwise than by release: what was read before may be overwritten.
    pub(crate) cuts: u64,
}

impl Group {
    pub(crate) fn new(id: GroupId, slot: u32) -> Self {
        let cold = Box::new(Cold {
            id,
            marks: Marks::default(),
            base_term: Term::ZERO,
            state: Vec::new(),
            snapshot: None,
            terms: Vec::new(),
            extents: Extents::default(),
            live: Vec::new(),
            placed: Vec::new(),
            placed_runs: None,
            deleted: false,
            suspect: false,
            state_lost: false,
            repeat: false,
            cuts: 0,
        });
        Self {
            last: Index::ZERO,
            last_term: Term::ZERO,
            base: Index::ZERO,
            accepted_term: Term::ZERO,
            tail: Tail::default(),
            slot,
            newest: NONE,
            cold,
        }
    }

    pub(crate) fn log(&self) -> GroupLog {
        GroupLog {
            first: self.base.next(),
            last: self.last,
            last_term: self.last_term(),
            snapshot_index: if self.cold.snapshot.is_some() { self.base } else { Index::ZERO },
        }
    }

    pub(crate) fn last_term(&self) -> Term {
        self.last_term
    }

    /// After anything but an append.
    fn reckon_last_term(&mut self) {
        self.last_term = self.cold.terms.last().map_or(self.cold.base_term, |(_, term)| *term);
    }

    /// Reads something of the cache line that an append touches.
    pub(super) fn touch(&self) -> u64 {
        self.last.0
    }

    /// The newest extent, which may grow.
    fn tail(&self) -> Option<Extent> {
        let Tail { file_no, count, bytes } = self.tail;
        let first = Index(self.last.0 + 1 - u64::from(count).min(self.last.0));
        let extent = Extent { file_no, first, count: count.into(), bytes: bytes.into(), ..Extent::default() };
        (count > 0).then_some(extent)
    }

    /// The extents of the log, in order.
    pub(crate) fn log_extents(&self) -> impl Iterator<Item = Extent> {
        self.cold.extents.iter().chain(self.tail())
    }

    /// The extents of the log, all in one list until the next append. To be called before `last` changes.
    pub(super) fn log_extents_mut(&mut self) -> &mut Extents {
        let fits = self.tail().is_none_or(|tail| self.cold.extents.push(tail));
        assert!(fits, "the tail begins where the other extents end");
        (self.tail.count, self.tail.bytes) = (0, 0);
        &mut self.cold.extents
    }

    /// The term of an entry that is held, or of the base.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.last {
            return Some(self.last_term());
        }
        if index < self.base || index > self.last {
            return None;
        }
        let after = self.cold.terms.partition_point(|(first, _)| *first <= index);
        Some(after.checked_sub(1).map_or(self.cold.base_term, |at| self.cold.terms[at].1))
    }

    /// The term of an entry that is held, and the last entry that follows it without another one.
    pub(crate) fn term_span(&self, index: Index) -> Option<(Term, Index)> {
        if index <= self.base || index > self.last {
            return None;
        }
        let after = self.cold.terms.partition_point(|(first, _)| *first <= index);
        let (_, term) = self.cold.terms[..after].last()?;
        Some((*term, self.cold.terms.get(after).map_or(self.last, |(next, _)| next.prev())))
    }

    /// The extent that holds an entry, live ones included.
    pub(crate) fn extent_of(&self, index: Index) -> Option<Extent> {
        if let Some(tail) = self.tail().filter(|tail| index >= tail.first) {
            return (index <= self.last).then_some(tail);
        }
        if index > self.base {
            return self.cold.extents.find(index);
        }
        let after = self.cold.live.partition_point(|extent| extent.first <= index);
        self.cold.live[..after].last().copied().filter(|extent| index <= extent.last())
    }

    /// Where the run of an entry in this extent lies, if its file is the newest with runs of this kind of this group.
    pub(crate) fn run_of(&self, extent: &Extent, index: Index, runs: &Runs) -> Option<RunAt> {
        let file_no = extent.file_no;
        if extent.is_placed {
            return runs.find_placed(file_no, self.cold.placed_runs.as_ref()?, index);
        }
        let is_known = file_no == self.tail.file_no;
        is_known
            .then(|| runs.find(file_no, self.newest, &self.cold.marks, index, index <= self.base))
            .flatten()
    }

    /// A run was written: `spans` are its (term, entries), `at` is where its body lies, in batch `seq`.
    pub(crate) fn append(
        &mut self,
        run: &RunHeader,
        spans: impl Iterator<Item = (Term, u32)>,
        at: Position,
        seq: u64,
        refs: &mut Refs,
        runs: &mut Runs,
    ) -> Fit {
        self.accepted_term = self.accepted_term.max(run.accepted_term);
        let is_next = run.prev_index == self.last && run.prev_term == self.last_term;
        if !is_next && let Some(unfit) = self.unfit(run) {
            // A checkpoint's page further on may say that it holds these entries all the same.
            runs.push(at.file_no, RunAt::new(self.slot, run.first(), run.count, at.offset), None);
            return unfit;
        }
        let (mut index, mut is_begun) = (run.first(), false);
        let entry_bytes = run.encoded_bytes() as u32 / run.count.max(1);
        for (term, count) in spans {
            let end = index.plus(u64::from(count));
            if index <= self.last {
                index = self.pass_held(index, end, term);
                if index == end {
                    continue;
                }
                self.cut(index, seq, refs);
            }
            let count = end.since(index) as u32;
            self.extend(count, term, u64::from(entry_bytes) * u64::from(count), at.file_no, refs);
            if is_begun {
                runs.grow(count);
            } else {
                let begun = RunAt::new(self.slot, index, count, at.offset);
                runs.push(at.file_no, begun, Some((&mut self.newest, &mut self.cold.marks)));
                is_begun = true;
            }
            index = end;
        }
        Fit::Fits
    }

    // What follows is apart so that an append that only goes on does not touch, or prefetch, what is cold.

    /// Why a run does not continue the log, if it does not.
    #[cold]
    fn unfit(&self, run: &RunHeader) -> Option<Fit> {
        if run.prev_index > self.last {
            return Some(Fit::Gap);
        }
        let known = (run.prev_index >= self.base).then(|| self.term_at(run.prev_index));
        known.filter(|term| *term != Some(run.prev_term)).map(|_| Fit::Mismatch)
    }

    /// The first of the entries `[index, end)` of this term that is not held already.
    #[cold]
    fn pass_held(&self, mut index: Index, end: Index, term: Term) -> Index {
        while index < end && index <= self.last && self.holds(index, term) {
            index = index.next();
        }
        index
    }

    /// Whether writing this entry again would change nothing: it is held, or a snapshot covers it.
    fn holds(&self, index: Index, term: Term) -> bool {
        index <= self.base || self.term_at(index) == Some(term)
    }

    /// Drops the entries from `from` on.
    #[cold]
    pub(crate) fn cut(&mut self, from: Index, seq: u64, refs: &mut Refs) {
        let from = from.max(self.base.next());
        if from > self.last {
            return;
        }
        self.cold.cuts += 1;
        while self.cold.terms.last().is_some_and(|(first, _)| *first >= from) {
            self.cold.terms.pop();
        }
        self.log_extents_mut().change(|extents| {
            while let Some(extent) = extents.pop() {
                if let Some(kept) = extent.within(extent.first, from.prev()) {
                    refs.resize_extent(&extent, &kept);
                    extents.push(kept);
                    break;
                }
                refs.drop_extent(&extent, seq);
            }
        });
        self.last = from.prev();
        self.cold.marks.cut(from);
        self.reckon_last_term();
    }

    /// Adds `count` entries of one term after the last, which come to about so many bytes.
    fn extend(&mut self, count: u32, term: Term, bytes: u64, file_no: u64, refs: &mut Refs) {
        if self.last_term != term || self.last == self.base {
            self.begin_term(term);
        }
        if self.tail.count == 0 || self.tail.file_no != file_no {
            self.begin_tail(file_no, refs);
        }
        self.tail.count += count;
        self.tail.bytes = self.tail.bytes.saturating_add(bytes.min(u64::from(u32::MAX)) as u32);
        refs.grow_extent(file_no, bytes);
        self.last = self.last.plus(u64::from(count));
    }

    /// The next entries are of this term.
    #[cold]
    fn begin_term(&mut self, term: Term) {
        self.cold.terms.push((self.last.next(), term));
        self.last_term = term;
    }

    /// The next entries go to this file.
    #[cold]
    fn begin_tail(&mut self, file_no: u64, refs: &mut Refs) {
        if self.tail.file_no != file_no {
            self.log_extents_mut();
            self.newest = NONE;
            self.cold.marks.clear();
        }
        let goes_on = |extent: &mut Extent| extent.count < u64::from(u32::MAX / 2);
        let is_last = self.cold.extents.last_file() == Some(file_no);
        let before = if is_last { self.cold.extents.change(|extents| extents.pop_if(goes_on)) } else { None };
        if before.is_none() {
            refs.hold_extent(&Extent { file_no, first: self.last.next(), ..Extent::default() });
        }
        let (count, bytes) = before.map_or((0, 0), |extent| (extent.count, extent.bytes));
        self.tail = Tail { file_no, count: count as u32, bytes: bytes.min(u64::from(u32::MAX)) as u32 };
    }

    /// A snapshot was written, of which the entries in `live` live on. False if it changes nothing, being older than the
    /// present one.
    pub(crate) fn install(
        &mut self,
        index: Index,
        term: Term,
        place: SnapshotPlace,
        live: &[IndexRange],
        seq: u64,
        refs: &mut Refs,
    ) -> bool {
        if index < self.base
            || (index == self.base && self.cold.snapshot.is_some() && term != self.cold.base_term)
        {
            return false;
        }
        let is_again = index == self.base && self.cold.snapshot.is_some();
        let mut released = Vec::new();
        if self.term_at(index) == Some(term) {
            released = self.release(index, refs);
        } else {
            self.cut(self.base.next(), seq, refs);
            self.last = index;
        }
        self.base = index;
        self.cold.base_term = term;
        self.reckon_last_term();
        self.keep_live(released, (live, is_again), seq, refs);
        refs.hold_snapshot(&place);
        if let Some(old) = self.cold.snapshot.replace(place) {
            refs.drop_snapshot(&old, seq);
        }
        true
    }

    /// Takes the entries up to `upto`, which is held, off the log; they stay held in their files.
    fn release(&mut self, upto: Index, refs: &mut Refs) -> Vec<Extent> {
        let released = self.log_extents_mut().change(|extents| {
            let whole = extents.partition_point(|extent| extent.last() <= upto);
            let mut released: Vec<Extent> = extents.drain(..whole).collect();
            if let Some(extent) = extents.first_mut()
                && let Some(covered) = extent.within(extent.first, upto)
            {
                let kept = Extent {
                    first: upto.next(),
                    count: extent.count - covered.count,
                    bytes: extent.bytes - covered.bytes,
                    ..*extent
                };
                refs.resize_extent(extent, &kept);
                refs.hold_extent(&covered);
                *extent = kept;
                released.push(covered);
            }
            released
        });
        let over = self.cold.terms.partition_point(|(first, _)| *first <= upto.next());
        self.cold.terms.drain(..over.saturating_sub(1));
        if self.last == upto {
            self.cold.terms.clear();
        } else if let Some((first, _)) = self.cold.terms.first_mut() {
            *first = upto.next();
        }
        released
    }

    /// The group as a checkpoint tells it: one part, or several if it has very many terms or extents; none if it is
    /// deleted.
    pub(crate) fn parts(&self) -> Vec<Part> {
        if self.cold.deleted {
            return Vec::new();
        }
        let items = [
            self.cold.terms.len(),
            self.cold.extents.len() + 1,
            self.cold.live.len(),
            self.cold.placed.len(),
        ];
        let count = items.into_iter().max().unwrap_or(0).div_ceil(PART_ITEMS_MAX).max(1);
        let chunk = |i: usize, len: usize| (i * PART_ITEMS_MAX).min(len)..((i + 1) * PART_ITEMS_MAX).min(len);
        (0..count)
            .map(|i| Part {
                group: self.cold.id,
                suspect: self.cold.suspect,
                state_lost: self.cold.state_lost,
                state: if i == 0 { self.cold.state.clone() } else { Vec::new() },
                accepted_term: self.accepted_term,
                base_index: self.base,
                base_term: self.cold.base_term,
                last: self.last,
                snapshot: self.cold.snapshot,
                terms: self.cold.terms[chunk(i, self.cold.terms.len())].to_vec(),
                extents: self.extents_of_part(i, count),
                live: self.cold.live[chunk(i, self.cold.live.len())].to_vec(),
                placed: self.cold.placed[chunk(i, self.cold.placed.len())].to_vec(),
                more: i + 1 < count,
            })
            .collect()
    }

    /// The extents of the log that part `i` of so many tells.
    fn extents_of_part(&self, i: usize, count: usize) -> Extents {
        let extents = if count == 1 {
            let mut all = self.cold.extents.clone();
            self.tail().is_none_or(|tail| all.push(tail)).then_some(all)
        } else {
            Extents::pack(self.log_extents().skip(i * PART_ITEMS_MAX).take(PART_ITEMS_MAX))
        };
        extents.expect("the extents of a log are contiguous, and so is any part of them")
    }

    /// Becomes what the parts say. False, and unchanged, if they contradict themselves.
    pub(crate) fn become_parts(&mut self, parts: &[Part], seq: u64, refs: &mut Refs) -> bool {
        let Some(first) = parts.first() else { return false };
        let mut new = Self::new(self.cold.id, self.slot);
        new.accepted_term = first.accepted_term;
        (new.base, new.last) = (first.base_index, first.last);
        let cold = &mut new.cold;
        cold.state.clone_from(&first.state);
        (cold.base_term, cold.snapshot) = (first.base_term, first.snapshot);
        cold.placed_runs.clone_from(&self.cold.placed_runs);
        (cold.suspect, cold.state_lost) = (first.suspect, first.state_lost);
        for part in parts {
            new.cold.terms.extend_from_slice(&part.terms);
            if new.cold.extents.len() == 0 {
                new.cold.extents = part.extents.clone();
            } else if !part.extents.iter().all(|extent| new.cold.extents.push(extent)) {
                return false;
            }
            new.cold.live.extend_from_slice(&part.live);
            new.cold.placed.extend_from_slice(&part.placed);
        }
        new.reckon_last_term();
        if !new.is_whole() {
            return false;
        }
        new.all_extents().for_each(|extent| refs.hold_extent(&extent));
        new.cold.placed.iter().for_each(|extent| refs.place_extent(extent));
        if let Some(place) = &new.cold.snapshot {
            refs.hold_snapshot(place);
        }
        self.drop_everything(seq, refs);
        *self = new;
        true
    }

    /// Nothing of the group is left, and nothing of it is needed in any file.
    pub(crate) fn delete(&mut self, seq: u64, refs: &mut Refs) {
        self.drop_everything(seq, refs);
        let mut nothing = Self::new(self.cold.id, self.slot);
        (nothing.cold.deleted, nothing.cold.cuts) = (true, self.cold.cuts + 1);
        *self = nothing;
    }

    fn drop_everything(&self, seq: u64, refs: &mut Refs) {
        self.all_extents().for_each(|extent| refs.drop_extent(&extent, seq));
        self.cold.placed.iter().for_each(|extent| refs.unplace_extent(extent));
        if let Some(place) = &self.cold.snapshot {
            refs.drop_snapshot(place, seq);
        }
    }

    fn all_extents(&self) -> impl Iterator<Item = Extent> {
        self.log_extents().chain(self.cold.live.iter().chain(&self.cold.placed).copied())
    }

    /// The invariants of this file's header.
    pub(crate) fn is_whole(&self) -> bool {
        let mut next = self.base.next();
        for extent in self.log_extents() {
            if extent.first != next || extent.count == 0 {
                return false;
            }
            next = extent.last().next();
        }
        let ordered = self.cold.terms.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let covered = match (self.cold.terms.first(), self.cold.terms.last()) {
            (Some((first, _)), Some((last, _))) => *first == self.base.next() && *last <= self.last,
            _ => self.last == self.base,
        };
        let mut after = Index::ZERO;
        let live = self.cold.live.iter().all(|extent| {
            let fits = extent.first > after && extent.count > 0 && extent.last() <= self.base;
            after = extent.last();
            fits
        });
        next == self.last.next() && ordered && covered && live
    }
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
