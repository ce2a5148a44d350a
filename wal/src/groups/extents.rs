//! The extents of one group's log, packed: a log that lies in eighty files takes a few hundred bytes for them, and with
//! thousands of groups nothing else takes more.
//!
//! ```text
//!   an extent, 4 to 6 bytes mostly:   count, file (difference to the one before, zigzag), bytes    each 7 bits a byte, LEB128
//!   a mark every MARK_EVERY extents:  where the next one begins, its first index, the file before it
//! ```
//!
//! An extent begins where the one before it ends, so its first index need not be kept. Anything but adding one at the end
//! unpacks the list, changes it and packs it again.
//!
//! Invariant: extents are contiguous and none is empty; what was put in comes out, to the byte.

use coracle_base::Index;

use crate::format::page::Extent;
use crate::format::varint::{put, take, unzigzag, zigzag};

/// Extents between two marks: a search unpacks no more.
const MARK_EVERY: u32 = 32;
/// Memory grows by so much at a time: doubling would leave half of it unused.
const GROW_BYTES: usize = 64;
/// Of a packed extent, at most.
const PACKED_MAX: usize = 30;

/// Contiguous extents of one log, in order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Extents {
    packed: Vec<u8>,
    marks: Vec<Mark>,
    len: u32,
    /// Index of the first entry of all, and the one after the last.
    first: Index,
    end: Index,
    /// File of the last extent.
    file_no: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    first: Index,
    file_before: u64,
    at: usize,
}

impl Extents {
    /// Packs a list; `None` if it is not contiguous, or one of it is empty.
    pub(crate) fn pack(list: impl IntoIterator<Item = Extent>) -> Option<Self> {
        let mut extents = Self::default();
        list.into_iter().all(|extent| extents.push(extent)).then(|| {
            extents.packed.shrink_to_fit();
            extents
        })
    }

    /// From bytes that [`packed`](Self::packed) gave; `None` if they are not so many extents.
    pub(crate) fn unpack(first: Index, count: usize, packed: &[u8]) -> Option<Self> {
        let mut unpacked = Unpacked { rest: packed, first, file_no: 0 };
        let mut extents = Self::default();
        extents.packed.reserve_exact(packed.len());
        for _ in 0..count {
            let extent = unpacked.next()?;
            let is_sound = extents.push(extent);
            is_sound.then_some(())?;
        }
        // The same numbers in more bytes than they take are not ours.
        (unpacked.rest.is_empty() && extents.packed == packed).then_some(extents)
    }

    /// All but the index of the first entry, as a checkpoint keeps it.
    pub(crate) fn packed(&self) -> &[u8] {
        &self.packed
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    /// Index of the first entry of all.
    pub(crate) fn first(&self) -> Index {
        self.first
    }

    /// The index after the last entry of all.
    pub(crate) fn end(&self) -> Index {
        self.end
    }

    /// Adds one at the end. False, and nothing is changed, if it does not begin where the last one ends, or is empty.
    pub(crate) fn push(&mut self, extent: Extent) -> bool {
        let is_next = self.len == 0 || extent.first == self.end;
        let Some(end) = extent.first.0.checked_add(extent.count).filter(|_| is_next && extent.count > 0)
        else {
            return false;
        };
        if self.len == 0 {
            self.first = extent.first;
        } else if self.len.is_multiple_of(MARK_EVERY) {
            let mark = Mark { first: extent.first, file_before: self.file_no, at: self.packed.len() };
            self.marks.push(mark);
        }
        if self.packed.capacity() - self.packed.len() < PACKED_MAX {
            self.packed.reserve_exact(GROW_BYTES);
        }
        put(extent.count, &mut self.packed);
        put(zigzag(order(extent.file_no).wrapping_sub(order(self.file_no))), &mut self.packed);
        put(extent.bytes, &mut self.packed);
        (self.len, self.end, self.file_no) = (self.len + 1, Index(end), extent.file_no);
        true
    }

    /// All of them, in order.
    pub(crate) fn iter(&self) -> Unpacked<'_> {
        Unpacked { rest: &self.packed, first: self.first, file_no: 0 }
    }

    /// The one that holds an entry.
    pub(crate) fn find(&self, index: Index) -> Option<Extent> {
        if index < self.first || index >= self.end {
            return None;
        }
        let mark = self.marks.partition_point(|mark| mark.first <= index).checked_sub(1);
        let from = mark.map_or(self.iter(), |at| {
            let Mark { first, file_before, at } = self.marks[at];
            Unpacked { rest: &self.packed[at..], first, file_no: file_before }
        });
        from.into_iter().find(|extent| index <= extent.last())
    }

    /// The file of the last one.
    pub(crate) fn last_file(&self) -> Option<u64> {
        (self.len > 0).then_some(self.file_no)
    }

    /// Changes the list.
    ///
    /// # Panics
    /// If it is not contiguous any more, or one of it is empty: the caller's mistake.
    pub(crate) fn change<T>(&mut self, change: impl FnOnce(&mut Vec<Extent>) -> T) -> T {
        let mut list: Vec<Extent> = self.iter().collect();
        let result = change(&mut list);
        let packed = Self::pack(list);
        assert!(packed.is_some(), "a change leaves no gap in a log");
        *self = packed.unwrap_or_default();
        result
    }
}

/// Extents as they are unpacked.
#[derive(Debug, Clone)]
pub(crate) struct Unpacked<'a> {
    rest: &'a [u8],
    first: Index,
    file_no: u64,
}

impl Iterator for Unpacked<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        let count = take(&mut self.rest)?;
        let file_no = order(self.file_no).wrapping_add(unzigzag(take(&mut self.rest)?));
        self.file_no = unorder(file_no);
        let bytes = take(&mut self.rest)?;
        let extent = Extent { file_no: self.file_no, first: self.first, count, bytes, ..Extent::default() };
        self.first = Index(self.first.0.checked_add(count)?);
        Some(extent)
    }
}

/// The bit that tells segments from files of the log comes last, so that either kind's differences are small.
fn order(file_no: u64) -> u64 {
    file_no.rotate_left(1)
}

fn unorder(order: u64) -> u64 {
    order.rotate_right(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::SEGMENT;

    /// Numbers of every length, small ones mostly.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![4 => 0u64..300, 1 => any::<u64>().prop_map(|number| number >> 2), 1 => Just(u64::MAX)]
    }

    fn file_no() -> impl Strategy<Value = u64> {
        (number(), any::<bool>())
            .prop_map(|(no, is_segment)| if is_segment { no | SEGMENT } else { no & !SEGMENT })
    }

    /// A list of up to five marks' length.
    fn list() -> impl Strategy<Value = Vec<Extent>> {
        let counts = prop_oneof![8 => 1u64..300, 1 => 1u64..1 << 50];
        let items = proptest::collection::vec((file_no(), counts, number()), 0..160);
        (0u64..1 << 60, items).prop_map(|(first, items)| {
            let mut first = Index(first);
            let mut extent = |(file_no, count, bytes)| {
                let extent = Extent { file_no, first, count, bytes, is_placed: false };
                first = first.plus(count);
                extent
            };
            items.into_iter().map(&mut extent).collect()
        })
    }

    proptest! {
        #[test]
        fn what_is_packed_is_what_was_put_in(list in list(), probes in proptest::collection::vec(any::<u64>(), 20)) {
            let packed = Extents::pack(list.iter().copied()).unwrap();
            prop_assert_eq!(packed.iter().collect::<Vec<_>>(), list.clone());
            prop_assert_eq!(packed.last_file(), list.last().map(|extent| extent.file_no));
            // Borders of extents, and indexes anywhere from just before the list to just after it.
            let borders = list.iter().flat_map(|extent| [extent.first, extent.last(), extent.last().next()]);
            let (from, span) = match (list.first(), list.last()) {
                (Some(first), Some(last)) => (first.first.0.saturating_sub(2), last.last().0 - first.first.0 + 4),
                _ => (0, 100),
            };
            let anywhere = probes.iter().map(|probe| Index(from + probe % span));
            for index in borders.chain(anywhere) {
                let holds = |extent: &&Extent| extent.first <= index && index <= extent.last();
                prop_assert_eq!(packed.find(index), list.iter().find(holds).copied(), "{:?}", index);
            }
        }

        #[test]
        fn a_changed_list_is_the_same_as_one_packed_anew(mut list in list(), at in any::<usize>()) {
            let mut packed = Extents::pack(list.iter().copied()).unwrap();
            let keep = at % (list.len() + 1);
            packed.change(|list| list.truncate(keep));
            list.truncate(keep);
            let next = Extent { file_no: 9, first: list.last().map_or(Index(5), |last| last.last().next()), count: 3, bytes: 1, is_placed: false };
            prop_assert!(packed.push(next));
            list.push(next);
            prop_assert_eq!(packed.iter().collect::<Vec<_>>(), list);
        }

        #[test]
        fn what_leaves_a_gap_is_refused(list in list(), by in 1u64..1000) {
            let mut packed = Extents::pack(list.iter().copied()).unwrap();
            let Some(last) = list.last().copied() else { return Ok(()) };
            let next = last.last().next();
            for (first, count) in [(next.plus(by), 1), (last.first, 1), (next, 0)] {
                let taken = packed.push(Extent { first, count, ..last });
                prop_assert!(!taken);
            }
            prop_assert_eq!(packed.iter().collect::<Vec<_>>(), list);
        }
    }

    /// The point of it: a group with entries in each of eighty files.
    #[test]
    fn eighty_files_take_less_than_half_a_kilobyte() {
        let extents = (0..80).map(|no| Extent {
            file_no: 1000 + no,
            first: Index(1 + 46 * no),
            count: 46,
            bytes: 13_248,
            is_placed: false,
        });
        let packed = Extents::pack(extents).unwrap();
        let bytes = packed.packed.capacity() + packed.marks.capacity() * size_of::<Mark>();
        assert!(bytes <= 512, "{bytes} bytes");
    }
}
