//! Where the runs of one sealed file or segment lie: for (group, index) the newest run of the file that covers it.
//!
//! That run is the right one for every entry that the group's extents place in this file: had a later record of the
//! same file overwritten it, that one would be the newest; had a record of a later file, so would the extent be there.
//!
//! Of a damaged file that cannot be said: what overwrote a run may be what cannot be read. An entry of the log shows by its
//! term which one it is. Of one that lives on below it the term is not kept: it is looked for only where nothing behind it
//! is damaged.

use coracle_base::{GroupId, Index};

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

    fn part(&self, first: u64, end: u64) -> Option<Self> {
        (first < end).then(|| Self { first, count: (end - first) as u32, ..*self })
    }
}

/// The runs of a file, by group and index, without overlaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileIndex {
    runs: Vec<IndexRun>,
    /// Something behind a run at a lower offset could not be read.
    doubt_before: u64,
}

impl FileIndex {
    /// From the runs in the order in which they lie in the file; what lay last of what could not be read began at
    /// `doubt_before`.
    pub(crate) fn new(mut in_file_order: Vec<IndexRun>, doubt_before: u64) -> Self {
        in_file_order.sort_by_key(|run| run.group);
        let mut runs: Vec<IndexRun> = Vec::with_capacity(in_file_order.len());
        let mut group_start = 0;
        for run in in_file_order {
            if runs.last().is_some_and(|last| last.group != run.group) {
                group_start = runs.len();
            }
            overlay(&mut runs, group_start, run);
        }
        Self { runs, doubt_before }
    }

    /// What it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.runs.capacity() * size_of::<IndexRun>()
    }

    /// The run that covers an entry; of one that lives on below the log, only if it is certain to be the newest.
    pub(crate) fn find(&self, group: GroupId, index: Index, lives_on: bool) -> Option<IndexRun> {
        let after = self.runs.partition_point(|run| (run.group, run.first) <= (group, index.0));
        let run = self.runs[..after].last().filter(|run| run.group == group && index.0 < run.end());
        run.copied().filter(|run| !lives_on || u64::from(run.offset) >= self.doubt_before)
    }
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
            let index = FileIndex::new(runs.clone(), 0);
            for group in 0..3 {
                for at in 0..45 {
                    let newest = runs.iter().rev().find(|r| r.group.0 == group && r.first <= at && at < r.end());
                    let found = index.find(GroupId(group), Index(at), true);
                    prop_assert_eq!(found.map(|r| r.offset), newest.map(|r| r.offset));
                }
            }
        }
    }
}
