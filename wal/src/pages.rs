//! Where the pages of the checkpoint lie. A page of groups that nothing happened to is written twice, and then not again:
//! the next roots only say where its two copies lie.
//!
//! ```text
//!   changed ──checkpoint──→ one copy ──checkpoint──→ two copies ──checkpoint──→ the root names both
//!      ↑_______________________↲_________ a change, or a copy's file is wanted back ______________↲
//! ```
//!
//! Invariants: (1) what a copy tells of its groups holds for as long as none of them changes; (2) no single damaged place
//! takes a page with it: a root names two copies, or the page is written for that root and stands in the one before.

use std::collections::BTreeSet;

use crate::format::page::PageCopy;

/// The copies of all pages, by number.
#[derive(Debug, Default)]
pub(crate) struct Pages(Vec<[Option<PageCopy>; 2]>);

impl Pages {
    /// The two copies of a page, if it has so many.
    pub(crate) fn both(&self, page: usize) -> Option<[&PageCopy; 2]> {
        match self.0.get(page) {
            Some([Some(one), Some(other)]) => Some([one, other]),
            _ => None,
        }
    }

    /// What the copies tell does not hold any more.
    pub(crate) fn forget(&mut self, page: usize) {
        if let Some(copies) = self.0.get_mut(page) {
            *copies = [None, None];
        }
    }

    /// The page was written once more.
    pub(crate) fn add(&mut self, page: usize, copy: PageCopy) {
        if self.0.len() <= page {
            self.0.resize(page + 1, [None, None]);
        }
        let [older, newer] = &mut self.0[page];
        *older = newer.replace(copy).or(older.take());
    }

    /// The files in which copies lie.
    pub(crate) fn files(&self) -> BTreeSet<u64> {
        self.0.iter().flatten().flatten().flatten().map(|piece| piece.at.file_no).collect()
    }

    /// The copies in these files do not count any more: the files are wanted back.
    pub(crate) fn leave(&mut self, is_wanted: impl Fn(u64) -> bool) {
        for copy in self.0.iter_mut().flatten() {
            if copy.iter().flatten().any(|piece| is_wanted(piece.at.file_no)) {
                *copy = None;
            }
        }
    }
}

/// The files in which pages lie that a root names.
pub(crate) fn files_of(kept: &[[PageCopy; 2]]) -> BTreeSet<u64> {
    kept.iter().flatten().flatten().map(|piece| piece.at.file_no).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Position;
    use crate::format::page::Piece;

    fn copy(file_no: u64) -> PageCopy {
        vec![Piece { at: Position { file_no, offset: 8192 }, bytes: 100, crc: 7 }]
    }

    #[test]
    fn a_page_counts_when_it_was_written_twice_and_nothing_happened() {
        let mut pages = Pages::default();
        pages.add(3, copy(1));
        assert!(pages.both(3).is_none());
        pages.add(3, copy(2));
        assert_eq!(pages.both(3), Some([&copy(1), &copy(2)]));
        pages.add(3, copy(3));
        assert_eq!(pages.both(3), Some([&copy(2), &copy(3)]), "the newest two");
        pages.leave(|file_no| file_no == 2);
        assert!(pages.both(3).is_none());
        pages.add(3, copy(4));
        assert_eq!(pages.both(3), Some([&copy(3), &copy(4)]));
        pages.forget(3);
        pages.add(3, copy(5));
        assert!(pages.both(3).is_none());
        assert!(pages.both(0).is_none() && pages.both(9).is_none());
    }
}
