//! Entries that outlive the log around them: a machine may keep the bodies of old commands in the log and only their
//! indexes in memory. Its snapshot names them; they stay in their files, or move to a segment.
//!
//! ```text
//!   log (base, last]  --- snapshot at i, live {..} --->  live (part of [1, i])  +  log (i, last]
//!   place records ------------------- the same -------->  live (what the log does not hold itself)
//! ```
//!
//! Rules, for live records and replay alike: (1) what a snapshot does not name is dropped; (2) a placed entry counts only
//! from the snapshot on that names it, and the next snapshot drops it if it does not, but not one that is only written
//! once more: the one that it was placed for is still to come; (3) a move changes where an entry
//! lies if it lies where the move says, and nothing else.

use coracle_base::Index;

use super::Refs;
use super::group::Group;
use super::runs::{RunAt, Runs};
use crate::format::Position;
use crate::format::page::Extent;
use crate::format::record::IndexRange;

impl Group {
    /// Of what was live, what has just been released and what was placed, only `live` goes on; also the rest of what was
    /// placed if the snapshot `is_again` the one that is there already. An entry may be held twice then, as live and as placed,
    /// if the snapshot names more than lives (`coarse`): the file counts both, and is left alone while something is placed.
    pub(super) fn keep_live(
        &mut self,
        released: Vec<Extent>,
        (live, is_again): (&[IndexRange], bool),
        seq: u64,
        refs: &mut Refs,
    ) {
        let old = std::mem::take(&mut self.cold.live);
        let mut placed =
            if is_again { self.cold.placed.clone() } else { std::mem::take(&mut self.cold.placed) };
        placed.sort_by_key(|extent| extent.first);
        // Old live entries lie below the released ones, so both together are in order.
        let own: Vec<Extent> = old.into_iter().chain(released).collect();
        let (mut kept, missing) = select(&own, live);
        let (added, _) = select(&placed, &missing);
        kept.extend(added);
        kept.sort_by_key(|extent| extent.first);
        kept.iter().for_each(|extent| refs.hold_extent(extent));
        own.iter().for_each(|extent| refs.drop_extent(extent, seq));
        if !is_again {
            placed.iter().for_each(|extent| refs.drop_extent(extent, seq));
            placed.iter().for_each(|extent| refs.unplace_extent(extent));
        }
        self.cold.live = kept;
    }

    /// A run of entries of a snapshot that is still to come.
    pub(crate) fn place(
        &mut self,
        range: IndexRange,
        bytes: u64,
        at: Position,
        refs: &mut Refs,
        runs: &mut Runs,
    ) {
        let run = RunAt::new(self.slot, range.first, range.count as u32, at.offset);
        runs.push_placed(at.file_no, run, self.cold.placed_runs.get_or_insert_default());
        let IndexRange { first, count } = range;
        let extent = Extent { file_no: at.file_no, first, count, bytes, is_placed: true };
        refs.hold_extent(&extent);
        refs.place_extent(&extent);
        // In order, which most come in.
        let at = self.cold.placed.partition_point(|before| before.first <= first);
        self.cold.placed.insert(at, extent);
    }

    /// Whether one placed extent holds all of these.
    pub(crate) fn has_placed(&self, first: Index, last: Index) -> bool {
        // Those of pages of earlier versions need not be in order: then nothing may be found, and nothing wrong is.
        let at = self.cold.placed.partition_point(|extent| extent.first <= first);
        let before = at.checked_sub(1).and_then(|at| self.cold.placed.get(at));
        before.is_some_and(|extent| extent.first <= first && last <= extent.last())
    }

    /// Entries that lie in file `from` lie in file `to` now.
    pub(crate) fn moved(&mut self, from: u64, to: u64, ranges: &[IndexRange], seq: u64, refs: &mut Refs) {
        if self.log_extents().any(|extent| extent.file_no == from) {
            self.log_extents_mut().change(|extents| relocate(extents, from, to, ranges, seq, refs));
        }
        relocate(&mut self.cold.live, from, to, ranges, seq, refs);
    }

    /// What the group holds, in order: live entries, then those of the log.
    pub(crate) fn held_extents(&self) -> impl Iterator<Item = Extent> {
        self.cold.live.iter().copied().chain(self.log_extents())
    }

    /// What of that lies in a file.
    pub(crate) fn held_in(&self, file_no: u64) -> impl Iterator<Item = Extent> {
        self.held_extents().filter(move |extent| extent.file_no == file_no)
    }
}

/// The parts of `extents` within `ranges`, and what of the ranges no extent holds. Both are in order.
fn select(extents: &[Extent], ranges: &[IndexRange]) -> (Vec<Extent>, Vec<IndexRange>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    let mut at = 0;
    for range in ranges {
        let mut next = range.first;
        while let Some(extent) = extents.get(at).filter(|extent| extent.first <= range.last()) {
            if extent.last() >= next {
                if extent.first > next {
                    missing.push(IndexRange { first: next, count: extent.first.since(next) });
                }
                found.extend(extent.within(next, range.last()));
                next = extent.last().next();
            }
            if extent.last() > range.last() {
                break; // the next range may begin in it
            }
            at += 1;
        }
        if next <= range.last() {
            missing.push(IndexRange { first: next, count: range.last().next().since(next) });
        }
    }
    (found, missing)
}

fn relocate(list: &mut Vec<Extent>, from: u64, to: u64, ranges: &[IndexRange], seq: u64, refs: &mut Refs) {
    if !list.iter().any(|extent| extent.file_no == from) {
        return;
    }
    let mut moved: Vec<Extent> = Vec::with_capacity(list.len());
    for extent in list.iter() {
        if extent.file_no == from {
            split(extent, to, ranges, |piece| push_joined(&mut moved, piece));
        } else {
            push_joined(&mut moved, *extent);
        }
    }
    moved.iter().for_each(|extent| refs.hold_extent(extent));
    list.iter().for_each(|extent| refs.drop_extent(extent, seq));
    *list = moved;
}

/// The pieces of an extent, those within the ranges in file `to`.
fn split(extent: &Extent, to: u64, ranges: &[IndexRange], mut piece: impl FnMut(Extent)) {
    let start = ranges.partition_point(|range| range.last() < extent.first);
    let mut next = extent.first;
    for range in ranges[start..].iter().take_while(|range| range.first <= extent.last()) {
        let Some(moved) = extent.within(range.first, range.last()) else { continue };
        if next < moved.first {
            extent.within(next, moved.first.prev()).into_iter().for_each(&mut piece);
        }
        piece(Extent { file_no: to, is_placed: false, ..moved });
        next = moved.last().next();
    }
    if next <= extent.last() {
        extent.within(next, extent.last()).into_iter().for_each(&mut piece);
    }
}

fn push_joined(list: &mut Vec<Extent>, extent: Extent) {
    match list.last_mut() {
        Some(last)
            if (last.file_no, last.is_placed) == (extent.file_no, extent.is_placed)
                && last.last().next() == extent.first =>
        {
            last.count += extent.count;
            last.bytes += extent.bytes;
        }
        _ => list.push(extent),
    }
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
