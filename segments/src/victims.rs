//! Which files to compact, if any: those with the least that lives, and only while the garbage is over its bound.
//!
//! A file of the log takes its whole size on the disk however little is in it, so short ones (of boots that crashed) have
//! the fewest live bytes and come first by themselves. Segments are files like others.

use std::collections::BTreeSet;

use coracle_wal::{FileUse, Space};

/// Head, padding, index and trailer of a segment, at least.
const SEGMENT_OVERHEAD_BYTES: u64 = 5 * 4096;
/// Files in one compaction.
const VICTIMS_MAX: usize = 16;

/// How much garbage may be kept, and how much is done at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Files that hold something may take so many percent of the bytes in them that live; beyond it compaction begins.
    pub space_percent: u64,
    /// And so many bytes more.
    pub slack_bytes: u64,
    /// Files that hold nothing are kept for use again up to this number, and removed beyond it.
    pub dead_files_max: usize,
    /// A file of this size is kept so that compaction can go on when the disk is full; 0: none is.
    pub reserve_bytes: u64,
    /// A segment is closed at this size.
    pub segment_bytes: u64,
    /// Entries read in one step, in bytes.
    pub read_bytes: usize,
    /// After a full disk or an error, wait this long; twice as long after each further one.
    pub retry_us: u64,
}

impl Bounds {
    /// The bounds of the house for a log with files of this size: twice what lives.
    pub fn new(file_bytes: u64) -> Self {
        Self {
            space_percent: 200,
            slack_bytes: file_bytes,
            dead_files_max: 4,
            reserve_bytes: file_bytes,
            segment_bytes: file_bytes,
            read_bytes: 1 << 20,
            retry_us: 1_000_000,
        }
    }
}

/// The files to compact now, those with the least that lives first; none if it is not worth it. `forced`: whatever makes
/// the log smaller is. What comes out takes `least` bytes on the disk, if not more.
pub(crate) fn choose(
    space: &Space,
    bounds: &Bounds,
    damaged: &BTreeSet<u64>,
    forced: bool,
    least: u64,
) -> Vec<u64> {
    let (bytes, live) = sums(&space.held);
    if !forced && bytes <= live / 100 * bounds.space_percent + bounds.slack_bytes {
        return Vec::new();
    }
    let is_worth = |file: &&FileUse| {
        let mostly_garbage = file.live_bytes <= file.bytes / 2;
        let some_garbage = file.live_bytes < file.bytes / 4 * 3;
        (mostly_garbage || (forced && some_garbage)) && !damaged.contains(&file.file_no)
    };
    let mut files: Vec<FileUse> = space.held.iter().filter(is_worth).copied().collect();
    files.sort_unstable_by_key(|file| (file.live_bytes, file.file_no));
    let mut taken = 0;
    let mut room = bounds.segment_bytes;
    for file in files.iter().take(VICTIMS_MAX) {
        if taken > 0 && file.live_bytes > room {
            break;
        }
        room = room.saturating_sub(file.live_bytes);
        taken += 1;
    }
    files.truncate(taken);
    // What comes out is a file, too.
    let (bytes, live) = sums(&files);
    let result = least.max(SEGMENT_OVERHEAD_BYTES + live / 8 * 9);
    let gain_enough = if forced && least == 0 { bytes > result } else { bytes >= 2 * result };
    if gain_enough { files.iter().map(|file| file.file_no).collect() } else { Vec::new() }
}

/// Bytes of files, and of what lives in them.
pub(crate) fn sums(files: &[FileUse]) -> (u64, u64) {
    files.iter().fold((0, 0), |(bytes, live), file| (bytes + file.bytes, live + file.live_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_wal::SEGMENT;

    const MIB: u64 = 1 << 20;

    fn space(files: &[(u64, u64, u64)]) -> Space {
        let held = files.iter().map(|(no, bytes, live)| FileUse {
            file_no: *no,
            bytes: bytes * MIB,
            live_bytes: live * MIB,
        });
        Space { held: held.collect(), ..Space::default() }
    }

    fn chosen(files: &[(u64, u64, u64)], forced: bool) -> Vec<u64> {
        choose(&space(files), &Bounds::new(128 * MIB), &BTreeSet::new(), forced, 0)
    }

    #[test]
    fn the_emptiest_files_go_first_and_only_over_the_bound() {
        let files = [(1, 128, 100), (2, 128, 3), (3, 128, 1), (4, 128, 120)];
        assert_eq!(chosen(&files, false), [], "512 MiB for 224 and one file");
        let more = [(1, 128, 100), (2, 128, 3), (3, 128, 1), (4, 128, 20), (5, 128, 9)];
        assert_eq!(chosen(&more, false), [3, 2, 5, 4], "not the one that mostly lives");
        assert_eq!(chosen(&[], false), []);
    }

    #[test]
    fn where_nothing_can_be_gained_nothing_is_done() {
        let full = [(1, 128, 127), (2, 128, 126), (3 | SEGMENT, 64, 63)];
        assert_eq!(chosen(&full, true), []);
        let small = Space {
            held: vec![FileUse { file_no: SEGMENT | 1, bytes: SEGMENT_OVERHEAD_BYTES, live_bytes: 100 }],
            ..Space::default()
        };
        let bounds = Bounds { slack_bytes: 0, ..Bounds::new(128 * MIB) };
        assert_eq!(
            choose(&small, &bounds, &BTreeSet::new(), false, 0),
            [],
            "a segment is as small as it gets"
        );
        assert_eq!(choose(&small, &bounds, &BTreeSet::new(), true, 0), []);
    }

    #[test]
    fn what_is_taken_together_fits_a_segment() {
        let files: Vec<_> = (1..20).map(|no| (no, 128, 30)).collect();
        assert_eq!(chosen(&files, false), [1, 2, 3, 4]);
        let damaged = BTreeSet::from([1, 3]);
        assert_eq!(choose(&space(&files), &Bounds::new(128 * MIB), &damaged, false, 0), [2, 4, 5, 6]);
    }

    #[test]
    fn into_a_reserve_is_copied_what_frees_more_than_that_takes() {
        let bounds = Bounds::new(128 * MIB);
        let chosen = |files: &[(u64, u64, u64)], forced| {
            choose(&space(files), &bounds, &BTreeSet::new(), forced, 128 * MIB)
        };
        for forced in [false, true] {
            assert_eq!(chosen(&[(1, 128, 1), (2, 128, 127), (3, 128, 127)], forced), [], "one for another");
        }
        assert_eq!(chosen(&[(1, 128, 1), (2, 128, 1), (3, 128, 1)], false), [1, 2, 3]);
    }

    #[test]
    fn on_request_any_garbage_will_do() {
        let files = [(1, 128, 90), (2, 128, 127)];
        assert_eq!(chosen(&files, false), []);
        assert_eq!(chosen(&files, true), [1]);
    }
}
