//! Where the runs of the newest files lie, in the order in which they were written: one list a file for all groups, so
//! that an append writes to one place whatever group it is of.
//!
//! ```text
//!   group: newest ─→ run ─before─→ run ─before─→ run      of one group, in one file
//!          marks  ────────────────────↗                   of one run in 64, about: walks are short
//! ```
//!
//! Invariants: (1) of the runs of a group in one file that cover an index, the newest is the one that counts; later files
//! are the extents' business; (2) the newest two files are always kept, older ones within [`BYTES_MAX`].

use std::collections::VecDeque;

use std::ops::Range;

use coracle_base::{GroupId, Index};

use crate::format::Position;
use crate::format::head::HEAD_AREA_BYTES;
use crate::read::IndexRun;

/// Memory of older files' runs, over that of the newest two.
const BYTES_MAX: usize = 8 << 20;
/// Runs in one allocation: lists grow without copying.
const CHUNK: usize = 4096;
/// A group notes one run in `1 << MARK_BITS`: those whose mixed number begins with so many zeros. By the number itself groups
/// that are written in turn would have every run noted, or none.
const MARK_BITS: u32 = 6;
/// No run.
pub(super) const NONE: u32 = u32::MAX;
/// Set in the slot of a run of placed entries.
const PLACED: u32 = 1 << 31;
/// The slot of runs whose group is deleted, and its slot another's.
const NOBODYS: u32 = PLACED - 1;

/// Where a run lies: its entries `[first, first + count)` are in the record body at `offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunAt {
    pub(crate) first: u64,
    pub(crate) count: u32,
    pub(crate) offset: u32,
    /// The group, and whether its entries are placed ones.
    slot: u32,
    /// The number of the group's run before it in this file, of the same kind.
    before: u32,
}

impl RunAt {
    pub(super) fn new(slot: u32, first: Index, count: u32, offset: u64) -> Self {
        Self { first: first.0, count, offset: offset as u32, slot, before: NONE }
    }

    /// The group's place in the table of groups.
    pub(crate) fn slot(&self) -> usize {
        (self.slot & !PLACED) as usize
    }

    /// Whether its group is still there.
    pub(crate) fn is_owned(&self) -> bool {
        self.slot & !PLACED != NOBODYS
    }

    /// The indexes of its entries.
    pub(crate) fn range(&self) -> Range<u64> {
        self.first..self.first + u64::from(self.count)
    }

    /// As an index has it; the group is its own.
    pub(crate) fn of_group(&self, group: GroupId) -> IndexRun {
        IndexRun { group, first: self.first, count: self.count, offset: self.offset }
    }

    /// Its entries were placed: they are none of the log's, whatever their indexes are.
    pub(crate) fn is_placed(&self) -> bool {
        self.slot & PLACED != 0
    }

    fn covers(&self, index: Index) -> bool {
        self.first <= index.0 && index.0 - self.first < u64::from(self.count)
    }
}

/// A group's place in the list of the file that it wrote to last.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Marks(Vec<(u64, u32)>);

impl Marks {
    /// The group goes on in another file.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    #[cold]
    fn add(&mut self, first: u64, run: u32) {
        self.0.push((first, run));
    }

    /// Entries from `from` on are dropped.
    pub(super) fn cut(&mut self, from: Index) {
        while self.0.pop_if(|(first, _)| *first >= from.0).is_some() {}
    }

    /// The runs, by number, among which the newest one lies that covers `index`: to be looked at from the second back to
    /// the first.
    fn around(&self, index: Index, newest: u32) -> (u32, u32) {
        let after = self.0.partition_point(|(first, _)| *first <= index.0);
        let run = |at: usize| self.0.get(at).map(|(_, run)| *run);
        (after.checked_sub(1).and_then(run).unwrap_or(0), run(after).unwrap_or(newest))
    }
}

/// A group's runs of placed entries in the list of the file that has its newest ones.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct PlacedRuns {
    file_no: u64,
    newest: u32,
    marks: Marks,
    /// The index after the highest of all.
    end: u64,
}

#[derive(Debug)]
struct FileRuns {
    file_no: u64,
    chunks: Vec<Vec<RunAt>>,
    /// From the file's beginning: a replay may begin in the middle of one.
    is_whole: bool,
    /// Some runs between those that are here could not be read.
    has_hole: bool,
}

impl FileRuns {
    fn len(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.len())
    }

    fn get(&self, number: u32) -> Option<&RunAt> {
        self.chunks.get(number as usize / CHUNK)?.get(number as usize % CHUNK)
    }

    fn bytes(&self) -> usize {
        self.chunks.len() * CHUNK * size_of::<RunAt>()
    }
}

/// Chunks kept for the next ones: what one file of single entries takes. New memory costs more than what is written to it.
const SPARE_CHUNKS_MAX: usize = 96;

/// The runs of the newest files.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    files: VecDeque<FileRuns>,
    /// What lies next may have been the beginning of a file.
    missed: bool,
    /// Memory of lists that are not kept any more, as much as the newest one may take soon.
    spare: Vec<Vec<RunAt>>,
    /// The file in the middle of which a replay began.
    begun_within: Option<u64>,
    /// Older files whose runs are needed for their indexes.
    needed: Vec<u64>,
}

impl Runs {
    /// Adds a run that lies behind all others. If it is one of the log, `newest` and `marks` are its group's. Inline so that
    /// the run goes from registers to its place: put together elsewhere, it is read back before it has reached the cache.
    #[inline(always)]
    pub(super) fn push(&mut self, file_no: u64, run: RunAt, chain: Option<(&mut u32, &mut Marks)>) {
        let newest = self.files.back_mut().filter(|newest| newest.file_no == file_no);
        let chunk = newest.and_then(|file| {
            let number = (file.chunks.len() * CHUNK) as u32;
            let last = file.chunks.last_mut().filter(|last| last.len() < CHUNK)?;
            Some((number - (CHUNK - last.len()) as u32, last))
        });
        let (number, chunk) = match chunk {
            Some(chunk) => chunk,
            None => self.begin_chunk(file_no),
        };
        let before = chain.map_or(NONE, |(newest, marks)| {
            if number.wrapping_mul(0x9E37_79B1) >> (32 - MARK_BITS) == 0 {
                marks.add(run.first, number);
            }
            std::mem::replace(newest, number)
        });
        chunk.push(RunAt { before, ..run });
    }

    /// Adds a run of placed entries.
    pub(super) fn push_placed(&mut self, file_no: u64, mut run: RunAt, of: &mut PlacedRuns) {
        if of.file_no != file_no {
            *of = PlacedRuns { file_no, newest: NONE, ..PlacedRuns::default() };
        }
        // Nothing is dropped where a newer run begins, so a mark there would lead past older ones that cover more.
        let mut unmarked = Marks::default();
        let marks = if run.first < of.end {
            of.marks.clear();
            &mut unmarked
        } else {
            &mut of.marks
        };
        of.end = of.end.max(run.first + u64::from(run.count));
        run.slot |= PLACED;
        self.push(file_no, run, Some((&mut of.newest, marks)));
    }

    /// The run that was pushed last has so many entries more: it has several terms.
    pub(super) fn grow(&mut self, count: u32) {
        let newest = self.files.back_mut().and_then(|file| file.chunks.last_mut()?.last_mut());
        newest.into_iter().for_each(|run| run.count += count);
    }

    /// An empty chunk of this file, and the number of its first run.
    #[cold]
    fn begin_chunk(&mut self, file_no: u64) -> (u32, &mut Vec<RunAt>) {
        if self.files.back().is_none_or(|newest| newest.file_no != file_no) {
            self.begin_file(file_no);
        }
        let chunk = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(CHUNK));
        let at = self.files.len() - 1;
        let chunks = &mut self.files[at].chunks;
        let number = (chunks.len() * CHUNK) as u32;
        (number, chunks.push_mut(chunk))
    }

    /// The list of this file begins.
    fn begin_file(&mut self, file_no: u64) {
        let is_whole = !std::mem::take(&mut self.missed) && self.begun_within != Some(file_no);
        self.files.push_back(FileRuns { file_no, chunks: Vec::new(), is_whole, has_hole: false });
        self.trim();
    }

    /// Drops the oldest files beyond their bytes, but for those that are needed.
    fn trim(&mut self) {
        loop {
            let may_go = |file: &&FileRuns| !self.needed.contains(&file.file_no);
            let older = || self.files.iter().rev().skip(2).filter(may_go);
            if older().map(FileRuns::bytes).sum::<usize>() <= BYTES_MAX {
                return;
            }
            let Some(oldest) = older().next_back().map(|file| file.file_no) else { return };
            let at = self.files.iter().position(|file| file.file_no == oldest);
            let dropped = at.and_then(|at| self.files.remove(at));
            let room = SPARE_CHUNKS_MAX.saturating_sub(self.spare.len());
            let chunks = dropped.into_iter().flat_map(|file| file.chunks).take(room);
            self.spare.extend(chunks.map(|mut chunk| {
                chunk.clear();
                chunk
            }));
        }
    }

    /// These files' runs are needed, and no others of older ones.
    pub(super) fn keep(&mut self, needed: Vec<u64>) {
        self.needed = needed;
        self.trim();
    }

    /// The newest file with a run.
    pub(crate) fn newest(&self) -> Option<u64> {
        self.files.back().map(|file| file.file_no)
    }

    /// The files before this one whose runs are known from their beginning.
    pub(crate) fn whole_before(&self, file_no: u64) -> impl Iterator<Item = u64> {
        let before = self.files.iter().filter(move |file| file.file_no < file_no && file.is_whole);
        before.map(|file| file.file_no)
    }

    /// A replay begins here.
    pub(super) fn begin_at(&mut self, at: Position) {
        self.begun_within = (at.offset > HEAD_AREA_BYTES).then_some(at.file_no);
    }

    /// Runs that would come next cannot be read.
    pub(super) fn miss(&mut self) {
        self.missed = true;
        let newest = self.files.iter_mut().next_back();
        newest.into_iter().for_each(|file| (file.is_whole, file.has_hole) = (false, true));
    }

    /// The newest placed run that covers an entry.
    pub(super) fn find_placed(&self, file_no: u64, of: &PlacedRuns, index: Index) -> Option<RunAt> {
        (of.file_no == file_no).then(|| self.find(file_no, of.newest, &of.marks, index, true)).flatten()
    }

    /// The newest run that covers an entry of the group whose `newest` and `marks` these are. Of an entry that lives on
    /// nothing but its place says which it is: it is not looked for where a newer run may be missing.
    pub(super) fn find(
        &self,
        file_no: u64,
        newest: u32,
        marks: &Marks,
        index: Index,
        lives_on: bool,
    ) -> Option<RunAt> {
        let file = self.files.iter().rev().find(|file| file.file_no == file_no)?;
        if lives_on && file.has_hole {
            return None;
        }
        let (oldest, mut number) = marks.around(index, newest);
        while number != NONE && number >= oldest {
            let run = file.get(number)?;
            if run.covers(index) {
                return Some(*run);
            }
            number = run.before;
        }
        None
    }

    /// So many runs of a file, in their order, from a number on.
    pub(crate) fn some_of(&self, file_no: u64, from: usize, count: usize) -> impl Iterator<Item = &RunAt> {
        let file = self.files.iter().find(|file| file.file_no == file_no);
        let upto = file.map_or(from, |file| file.len().min(from + count));
        (from..upto).filter_map(move |number| file?.get(number as u32))
    }

    /// A run of a file by its number.
    pub(crate) fn run_at(&self, file_no: u64, number: u32) -> Option<&RunAt> {
        self.files.iter().find(|file| file.file_no == file_no)?.get(number)
    }

    /// All runs of a file in their order, if they are known from its beginning.
    pub(crate) fn of_file(&self, file_no: u64) -> Option<impl Iterator<Item = &RunAt>> {
        let file = self.files.iter().find(|file| file.file_no == file_no && file.is_whole)?;
        Some(file.chunks.iter().flatten())
    }

    /// The groups in these slots are deleted: their runs are nobody's from now on.
    pub(super) fn disown(&mut self, is_gone: impl Fn(usize) -> bool) {
        let all = self.files.iter_mut().flat_map(|file| &mut file.chunks).flatten();
        for run in all.filter(|run| run.is_owned() && is_gone(run.slot())) {
            run.slot |= NOBODYS;
        }
    }

    /// The file is about to be reused.
    pub(crate) fn forget(&mut self, file_no: u64) {
        self.files.retain(|file| file.file_no != file_no);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Of one group among others: runs that overwrite what lies at and behind them.
        #[test]
        fn the_newest_covering_run_is_found(steps in proptest::collection::vec((0u64..40, 1u32..6, 0usize..30), 1..200)) {
            let (mut runs, mut newest, mut marks) = (Runs::default(), NONE, Marks::default());
            let mut next = 1;
            let mut plain: Vec<(u64, u32)> = Vec::new();
            for (nth, (back, count, others)) in (0u32..).zip(&steps) {
                for _ in 0..*others {
                    runs.push(7, RunAt::new(1, Index(1), 1, 0), None);
                }
                let first = if nth % 4 == 0 { next - (back % next) } else { next };
                let first = first.max(1);
                marks.cut(Index(first));
                plain.truncate(first as usize - 1);
                plain.extend((0..*count).map(|_| (u64::from(nth), nth * 100)));
                runs.push(7, RunAt::new(0, Index(first), *count, u64::from(nth) * 100), Some((&mut newest, &mut marks)));
                next = first + u64::from(*count);
                for (index, (_, offset)) in (1..).zip(&plain) {
                    let found = runs.find(7, newest, &marks, Index(index), false);
                    prop_assert_eq!(found.map(|run| run.offset), Some(*offset), "entry {}", index);
                }
            }
            prop_assert!(runs.find(8, newest, &marks, Index(1), false).is_none());
        }
    }

    proptest! {
        /// Placed runs come in any order, drop nothing, and have nothing to do with those of the log.
        #[test]
        fn the_newest_placed_run_is_found(
            steps in proptest::collection::vec((1u64..60, 1u32..6, 0usize..40, any::<bool>()), 1..120),
        ) {
            let mut runs = Runs::default();
            let (mut placed, mut newest, mut marks) = (PlacedRuns::default(), NONE, Marks::default());
            let mut plain = std::collections::BTreeMap::new();
            let mut next = 0;
            for (nth, (at, count, others, rises)) in (0u64..).zip(&steps) {
                for _ in 0..*others {
                    runs.push(3, RunAt::new(0, Index(1), 90, 1), Some((&mut newest, &mut marks)));
                }
                let first = if *rises { next + at % 5 } else { *at };
                runs.push_placed(3, RunAt::new(0, Index(first), *count, nth * 100), &mut placed);
                plain.extend((first..first + u64::from(*count)).map(|index| (index, nth * 100)));
                next = first + u64::from(*count);
            }
            for index in 0..next + 70 {
                let found = runs.find_placed(3, &placed, Index(index));
                prop_assert_eq!(found.map(|run| u64::from(run.offset)), plain.get(&index).copied(), "entry {}", index);
                prop_assert!(found.is_none_or(|run| run.is_placed() && run.slot() == 0));
                prop_assert!(runs.find_placed(4, &placed, Index(index)).is_none());
            }
            runs.miss();
            prop_assert!((0..next).all(|index| runs.find_placed(3, &placed, Index(index)).is_none()));
        }
    }

    /// Groups that are written one after the other, round and round: each has its marks.
    #[test]
    fn groups_that_are_written_in_turn_are_found_by_short_walks() {
        let mut runs = Runs::default();
        let mut groups: Vec<(u32, Marks)> = (0..64).map(|_| (NONE, Marks::default())).collect();
        for round in 0..2000 {
            for (slot, (newest, marks)) in (0..).zip(&mut groups) {
                runs.push(1, RunAt::new(slot, Index(round + 1), 1, 0), Some((newest, marks)));
            }
        }
        for (newest, marks) in &groups {
            let longest = marks.0.windows(2).map(|pair| pair[1].0 - pair[0].0).max();
            assert!(longest.is_some_and(|runs| runs < 1000), "{longest:?} runs between two marks");
            assert!(runs.find(1, *newest, marks, Index(700), false).is_some_and(|run| run.first == 700));
        }
    }

    #[test]
    fn the_newest_two_files_are_kept_and_older_ones_within_their_bytes() {
        let mut runs = Runs::default();
        let per_file = 2 * BYTES_MAX / size_of::<RunAt>() / 3;
        for file_no in 1..=5 {
            for _ in 0..per_file {
                runs.push(file_no, RunAt::new(0, Index(1), 1, 0), None);
            }
        }
        let kept: Vec<u64> = runs.files.iter().map(|file| file.file_no).collect();
        assert_eq!(kept, [3, 4, 5]);
        assert!(runs.of_file(2).is_none());
        assert_eq!(runs.of_file(4).map(|runs| runs.count()), Some(per_file));
        runs.forget(4);
        assert!(runs.of_file(4).is_none());
    }

    #[test]
    fn runs_of_deleted_groups_are_nobodys_and_the_others_are_found_by_the_same_numbers() {
        let mut runs = Runs::default();
        let mut groups: Vec<(u32, Marks)> = (0..3).map(|_| (NONE, Marks::default())).collect();
        for index in 1..=3000 {
            for (slot, (newest, marks)) in (0..).zip(&mut groups) {
                runs.push(1, RunAt::new(slot, Index(index), 1, index * 8), Some((newest, marks)));
            }
        }
        runs.push_placed(1, RunAt::new(1, Index(5), 1, 7), &mut PlacedRuns::default());
        runs.disown(|slot| slot == 1);
        runs.disown(|slot| slot == 1);
        let owned = runs.of_file(1).unwrap().filter(|run| run.is_owned());
        let owners: Vec<usize> = owned.map(RunAt::slot).collect();
        assert!(owners.len() == 6000 && owners.iter().all(|slot| *slot != 1));
        let (newest, marks) = &groups[2];
        let found = |index| runs.find(1, *newest, marks, Index(index), false).map(|run| run.offset);
        assert!((1..=3000).all(|index| found(index) == Some(index as u32 * 8)));
    }

    #[test]
    fn runs_that_are_needed_stay_until_they_are_not() {
        let mut runs = Runs::default();
        runs.begin_at(Position { file_no: 1, offset: HEAD_AREA_BYTES + 1 });
        let per_file = 2 * BYTES_MAX / size_of::<RunAt>() / 3;
        for file_no in 1..=6 {
            runs.keep(vec![2]);
            for _ in 0..per_file {
                runs.push(file_no, RunAt::new(0, Index(1), 1, 0), None);
            }
        }
        let kept = |runs: &Runs| runs.files.iter().map(|file| file.file_no).collect::<Vec<_>>();
        assert_eq!(kept(&runs), [2, 4, 5, 6]);
        assert_eq!(runs.whole_before(5).collect::<Vec<_>>(), [2, 4]);
        assert_eq!(runs.some_of(2, per_file - 3, 10).count(), 3);
        runs.keep(Vec::new());
        assert_eq!(kept(&runs), [4, 5, 6]);
    }

    #[test]
    fn runs_of_a_file_are_whole_from_its_beginning_on() {
        let at = |file_no, offset| Position { file_no, offset };
        for (begin, whole) in [(at(1, HEAD_AREA_BYTES), vec![1, 2]), (at(1, HEAD_AREA_BYTES + 1), vec![2])] {
            let mut runs = Runs::default();
            runs.begin_at(begin);
            runs.push(1, RunAt::new(0, Index(1), 1, 0), None);
            runs.push(2, RunAt::new(0, Index(2), 1, 0), None);
            assert_eq!(runs.whole_before(9).collect::<Vec<_>>(), whole);
            runs.miss();
            runs.push(3, RunAt::new(0, Index(3), 1, 0), None);
            assert_eq!(runs.whole_before(9).collect::<Vec<_>>(), whole[..whole.len() - 1]);
        }
    }
}
