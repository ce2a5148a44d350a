//! Where the runs of one sealed file or segment lie: for (group, index) the newest run of the file that covers it.
//!
//! That run is the right one for every entry that the group's extents place in this file: had a later record of the
//! same file overwritten it, that one would be the newest; had a record of a later file, so would the extent be there.
//!
//! Of a damaged file that cannot be said: what overwrote a run may be what cannot be read. An entry of the log shows by its
//! term which one it is. Of one that lives on below it the term is not kept: it is looked for only where nothing behind it
//! is damaged.

use std::ops::Range;

use coracle_base::{GroupId, Index};

use crate::format::file_index::RunKey;
use crate::format::page::Extent;
use crate::groups::Group;

/// A run, or what later runs of the same file left of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexRun {
    pub(crate) group: GroupId,
    pub(crate) first: u64,
    pub(crate) count: u32,
    /// Of the record's body in the file.
    pub(crate) offset: u32,
}

impl IndexRun {
    fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// The indexes of its entries.
    pub(crate) fn range(&self) -> Range<u64> {
        self.first..self.end()
    }

    /// What of it lies between these indexes, which it has.
    pub(crate) fn part(&self, first: u64, end: u64) -> Option<Self> {
        (first < end).then(|| Self { first, count: (end - first) as u32, ..*self })
    }
}

/// All runs of a file, in the order in which they lie there.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct RunsInFile {
    pub(crate) of_log: Vec<IndexRun>,
    /// Those of placed entries: another thing, even where they have the same indexes.
    pub(crate) placed: Vec<IndexRun>,
}

impl RunsInFile {
    pub(crate) fn add(&mut self, run: IndexRun, is_placed: bool) {
        if is_placed { self.placed.push(run) } else { self.of_log.push(run) }
    }
}

/// The runs of a file, by group and index, without overlaps; those of placed entries apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileIndex {
    runs: RunsInFile,
    /// Something behind a run at a lower offset could not be read.
    doubt_before: u64,
    /// It was read from the log, and may be wrong.
    is_hint: bool,
}

impl FileIndex {
    /// What lay last of what could not be read began at `doubt_before`.
    pub(crate) fn new(runs: RunsInFile, doubt_before: u64) -> Self {
        let runs =
            RunsInFile { of_log: without_overlaps(runs.of_log), placed: without_overlaps(runs.placed) };
        Self { runs, doubt_before, is_hint: false }
    }

    /// From runs by group and index, without overlaps, that an index in the log tells of. It was made when all was known.
    pub(crate) fn hint(runs: RunsInFile) -> Self {
        Self { runs, doubt_before: 0, is_hint: true }
    }

    /// It was read from the log.
    pub(crate) fn is_hint(&self) -> bool {
        self.is_hint
    }

    /// Nothing of the file was damaged.
    pub(crate) fn is_sound(&self) -> bool {
        self.doubt_before == 0
    }

    /// The runs of a group, of one kind.
    pub(crate) fn runs_of(&self, group: GroupId, is_placed: bool) -> &[IndexRun] {
        let runs = if is_placed { &self.runs.placed } else { &self.runs.of_log };
        let start = runs.partition_point(|run| run.group < group);
        let count = runs[start..].partition_point(|run| run.group == group);
        &runs[start..start + count]
    }

    /// What it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        (self.runs.of_log.capacity() + self.runs.placed.capacity()) * size_of::<IndexRun>()
    }

    /// The run that covers an entry; of one that lives on below the log, only if it is certain to be the newest.
    pub(crate) fn find(&self, sought: Sought) -> Option<IndexRun> {
        let Sought { group, index, is_placed, lives_on } = sought;
        let runs = if is_placed { &self.runs.placed } else { &self.runs.of_log };
        let after = runs.partition_point(|run| (run.group, run.first) <= (group, index.0));
        let run = runs[..after].last().filter(|run| run.group == group && index.0 < run.end());
        run.copied().filter(|run| !lives_on || u64::from(run.offset) >= self.doubt_before)
    }
}

/// What is looked for in an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sought {
    pub(crate) group: GroupId,
    pub(crate) index: Index,
    /// It was placed there.
    pub(crate) is_placed: bool,
    /// It lives on below the log: its term is not known.
    pub(crate) lives_on: bool,
}

impl Sought {
    /// As an index in the log is sorted.
    pub(crate) fn key(&self) -> RunKey {
        RunKey { is_placed: self.is_placed, group: self.group, index: self.index }
    }

    /// The same among the placed ones, if it lives on and is looked for among the log's own.
    pub(crate) fn of_the_other_kind(self) -> Option<Self> {
        (self.lives_on && !self.is_placed).then_some(Self { is_placed: true, ..self })
    }

    /// An entry of `group`, which holds it in `extent`.
    pub(crate) fn of(group: &Group, extent: &Extent, index: Index) -> Self {
        Self { group: group.cold.id, index, is_placed: extent.is_placed, lives_on: index <= group.base }
    }
}

/// From runs in the order of the file: the later wins.
pub(crate) fn without_overlaps(mut in_file_order: Vec<IndexRun>) -> Vec<IndexRun> {
    in_file_order.sort_by_key(|run| run.group);
    let mut runs: Vec<IndexRun> = Vec::with_capacity(in_file_order.len());
    let mut group_start = 0;
    for run in in_file_order {
        if runs.last().is_some_and(|last| last.group != run.group) {
            group_start = runs.len();
        }
        overlay(&mut runs, group_start, run);
    }
    runs
}

/// Lays `run` over the runs of its group, which begin at `from`: where they overlap, it wins.
fn overlay(runs: &mut Vec<IndexRun>, from: usize, run: IndexRun) {
    let start = from + runs[from..].partition_point(|old| old.end() <= run.first);
    if start == runs.len() {
        runs.push(run);
        return;
    }
    let end = from + runs[from..].partition_point(|old| old.first < run.end());
    let overlapped = &runs[start..end];
    let left = overlapped.first().and_then(|old| old.part(old.first, run.first.min(old.end())));
    let right = overlapped.last().and_then(|old| old.part(run.end().max(old.first), old.end()));
    runs.splice(start..end, left.into_iter().chain([run]).chain(right));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(group: u64, first: u64, count: u32, offset: u32) -> IndexRun {
        IndexRun { group: GroupId(group), first, count, offset }
    }

    proptest! {
        #[test]
        fn the_newest_covering_run_wins(
            runs in proptest::collection::vec((0u64..3, 1u64..30, 1u32..12), 0..40)
        ) {
            let runs: Vec<_> =
                runs.iter().enumerate().map(|(i, (group, first, count))| run(*group, *first, *count, i as u32)).collect();
            // Placed runs beside them change nothing.
            let placed = vec![run(1, 1, 100, 1000)];
            let index = FileIndex::new(RunsInFile { of_log: runs.clone(), placed }, 0);
            for group in 0..3 {
                for at in 0..45 {
                    let newest = runs.iter().rev().find(|r| r.group.0 == group && r.first <= at && at < r.end());
                    let sought = Sought { group: GroupId(group), index: Index(at), is_placed: false, lives_on: true };
                    let found = index.find(sought);
                    prop_assert_eq!(found.map(|r| r.offset), newest.map(|r| r.offset));
                }
            }
        }
    }
}
