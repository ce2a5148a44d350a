//! Where an entry's run lies in the file that holds it: by the list of runs that is in memory of the newest files, else by
//! the file's index: in memory, in the log, or to be made by a scan.

use coracle_base::{GroupId, Index};

use super::Next;
use super::hints::Hint;
use super::index::Sought;
use super::load::Load;
use crate::format::page::Extent;
use crate::format::{Position, SEGMENT};
use crate::wal::Wal;

/// Where a run lies, or what is to be done before that can be said.
pub(super) enum Lookup {
    /// The offset of the run in its file, and how many entries it has.
    At {
        offset: u32,
        count: u32,
        /// An index in the log says so, which may be wrong.
        by_hint: bool,
    },
    /// The file's index does not have it, though the log has the entry there: it is damaged.
    Nowhere,
    /// It is on its way to the disk.
    NotDurable,
    /// This first.
    Before(Next),
}

impl Wal {
    /// Looks for the run of an entry that the group holds in `extent`, whose file the log has. Somebody who needs all of
    /// the file says so.
    pub(super) fn look_up(
        &mut self,
        group: GroupId,
        extent: &Extent,
        index: Index,
        needs_all: bool,
    ) -> Lookup {
        let file_no = extent.file_no;
        let (Some(group), Some(file)) = (self.groups.find(group), self.files.get(file_no)) else {
            return Lookup::Nowhere;
        };
        let (is_whole, is_open) = (self.is_whole_on_disk(file_no, file), file.handle.is_some());
        let sought = Sought::of(group, extent, index);
        let (offset, count, by_hint) = match group.run_of(extent, index, self.groups.runs()) {
            Some(run) => (run.offset, run.count, false),
            None => match self.find_in_index(&sought, file_no, needs_all) {
                Hint::At { offset, count, by_hint } => (offset, count, by_hint),
                Hint::Before(next) => return Lookup::Before(next),
                Hint::Nowhere => return Lookup::Nowhere,
                // An index that is made before every batch of the file is there would miss the last ones for ever.
                Hint::None if !is_whole => return Lookup::NotDurable,
                Hint::None if !is_open => return Lookup::Before(Next::Open { file_no }),
                Hint::None => match self.files.get(file_no) {
                    Some(file) => return Lookup::Before(Next::Load(Box::new(Load::new(file_no, file)))),
                    None => return Lookup::Nowhere,
                },
            },
        };
        if file_no & SEGMENT == 0 && (Position { file_no, offset: u64::from(offset) }) >= self.durable_at {
            return Lookup::NotDurable;
        }
        Lookup::At { offset, count, by_hint }
    }

    /// Looks into the index of a file.
    fn find_in_index(&mut self, sought: &Sought, file_no: u64, needs_all: bool) -> Hint {
        if let Some(of_file) = self.reads.index(file_no, &self.groups, self.stage_file) {
            let by_hint = of_file.is_hint();
            // Pages of earlier versions do not say which of the entries that live on were placed.
            let either = || of_file.find(*sought).or_else(|| of_file.find(sought.of_the_other_kind()?));
            match either() {
                Some(run) => return Hint::At { offset: run.offset, count: run.count, by_hint },
                None if by_hint => self.distrust_index(file_no),
                None => return Hint::Nowhere,
            }
        }
        self.hint(sought, file_no, needs_all)
    }

    /// Where an entry's run lies in the file that has it, if that can be said from memory.
    pub fn place_of(&mut self, group: GroupId, index: Index) -> Option<u64> {
        let file_no = self.groups.find(group)?.extent_of(index)?.file_no;
        self.run_in(file_no, group, index)
    }

    /// The offset of the run that holds an entry, if its extent is in this file and that can be said from memory.
    pub(super) fn run_in(&mut self, file_no: u64, group: GroupId, index: Index) -> Option<u64> {
        let group = self.groups.find(group)?;
        let extent = group.extent_of(index).filter(|extent| extent.file_no == file_no)?;
        if let Some(run) = group.run_of(&extent, index, self.groups.runs()) {
            return Some(u64::from(run.offset));
        }
        let sought = Sought::of(group, &extent, index);
        if let Some(of_file) = self.reads.index(file_no, &self.groups, self.stage_file) {
            let found = of_file.find(sought).or_else(|| of_file.find(sought.of_the_other_kind()?));
            return found.map(|run| u64::from(run.offset));
        }
        self.hint_in_memory(&sought, file_no).map(u64::from)
    }
}
