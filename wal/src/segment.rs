//! A segment while it is made: entries in, blocks to be written out. Pure; who writes them is `coracle-segments`.
//!
//! ```text
//!   begin_segment → push .. push → finish      take_blocks in between, and until nothing is left
//!   file and directory synced → adopt_segment → put_moved .. → release_segment
//! ```

use std::path::{Path, PathBuf};

use coracle_base::checksum::crc32c_from;
use coracle_base::codec::Sink;
use coracle_base::limits::BLOCK_BYTES;
use coracle_base::run::{Entries, RUN_HEADER_BYTES};
use coracle_base::{GroupId, Index, RunHeader, Term};

use crate::files::{File, log_path};
use crate::format::head::HEAD_AREA_BYTES;
use crate::format::record::IndexRange;
use crate::format::segment::{INDEX_ENTRY_BYTES, SegmentHead, SegmentRun, Trailer, put_index};
use crate::format::{SEGMENT, Uuid};
use crate::wal::Wal;

/// A run is closed beyond this: reading one entry means reading its run.
const RUN_BYTES: usize = 32 * 1024;
/// Runs in one segment, so that its index is small enough to be kept in memory: 1 MiB.
const RUNS_MAX: usize = (1 << 20) / INDEX_ENTRY_BYTES;

/// What of a segment was made so far.
#[derive(Debug)]
pub struct SegmentWriter {
    head: SegmentHead,
    path: PathBuf,
    /// Made and not taken yet; it begins at `at` in the file.
    made: Vec<u8>,
    at: u64,
    run: Option<OpenRun>,
    index: Vec<SegmentRun>,
    /// The file's size, if it has one already and keeps it.
    size: Option<u64>,
    /// Of such a file: the trailer, until it is taken.
    tail: Option<Vec<u8>>,
    /// What it takes in the file, once it is finished.
    used: u64,
}

#[derive(Debug)]
struct OpenRun {
    group: GroupId,
    first: Index,
    count: u32,
    /// Of the last entry.
    term: Term,
    body: Vec<u8>,
}

impl SegmentWriter {
    pub(crate) fn new(head: SegmentHead, dir: &Path) -> Self {
        let mut made = Vec::new();
        head.encode(&mut made);
        let path = log_path(dir, head.file_no);
        Self { head, path, made, at: 0, run: None, index: Vec::new(), size: None, tail: None, used: 0 }
    }

    /// Its number: what `Moved` records call it.
    pub fn file_no(&self) -> u64 {
        self.head.file_no
    }

    /// Where it is to be written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds an entry, with its header. Those that follow one another by group and index lie in one run. False, and nothing
    /// was added, if it is no whole entry.
    pub fn push(&mut self, group: GroupId, index: Index, encoded: &[u8]) -> bool {
        let mut entries = Entries::new(index, encoded);
        let Some(entry) = entries.next().filter(|_| entries.rest().is_empty()) else { return false };
        let term = entry.header.term;
        let goes_on = self.run.as_ref().is_some_and(|run| {
            run.group == group
                && run.first.plus(u64::from(run.count)) == index
                && run.term <= term
                && run.body.len() + encoded.len() <= RUN_BYTES
        });
        if !goes_on {
            self.close_run();
        }
        let run =
            self.run.get_or_insert_with(|| OpenRun { group, first: index, count: 0, term, body: Vec::new() });
        run.body.extend_from_slice(encoded);
        run.count += 1;
        run.term = term;
        true
    }

    fn close_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        let header = RunHeader {
            group: run.group,
            accepted_term: run.term,
            prev_index: run.first.prev(),
            prev_term: Term::ZERO,
            count: run.count,
            body_bytes: run.body.len() as u32,
        };
        let offset = (self.at + self.made.len() as u64) as u32;
        self.index.push(SegmentRun { group: run.group, first: run.first.0, count: run.count, offset });
        header.encode_run(&[&run.body], &mut self.made);
    }

    /// Bytes of the file if it were finished now.
    pub fn bytes(&self) -> u64 {
        let run = self.run.as_ref().map_or(0, |run| RUN_HEADER_BYTES + run.body.len());
        let index = (self.index.len() + 1) * INDEX_ENTRY_BYTES;
        self.at + (self.made.len() + run + index + 3 * BLOCK_BYTES) as u64
    }

    /// It is written into a file of this size, a multiple of 4 KiB: the trailer goes to its end.
    pub fn set_size(&mut self, bytes: u64) {
        self.size = Some(bytes);
    }

    /// Whether an entry of so many bytes still fits its file, if that has a size.
    pub fn fits(&self, entry_bytes: usize) -> bool {
        let more = entry_bytes + RUN_HEADER_BYTES + 2 * INDEX_ENTRY_BYTES;
        self.size.is_none_or(|size| self.bytes() + more as u64 <= size)
    }

    /// Runs that may be added, so that the index is not too long: at worst each entry is one.
    pub fn runs_left(&self) -> usize {
        RUNS_MAX.saturating_sub(self.index.len() + 1)
    }

    /// No entry was added.
    pub fn is_empty(&self) -> bool {
        self.run.is_none() && self.index.is_empty()
    }

    /// Adds the index and the trailer.
    pub fn finish(&mut self) {
        self.close_run();
        self.pad();
        self.index.sort_unstable_by_key(|run| (run.group, run.first));
        let seed = self.head.uuid.seed();
        let index_at = self.at + self.made.len() as u64;
        let mut index = Vec::with_capacity(self.index.len() * INDEX_ENTRY_BYTES);
        put_index(&self.index, &mut index);
        let trailer = Trailer {
            file_no: self.head.file_no,
            index_at,
            run_count: self.index.len() as u64,
            index_crc: crc32c_from(seed, &index),
        };
        self.made.put(&index);
        self.pad();
        let trailer = trailer.encode(seed);
        self.used = self.at + (self.made.len() + trailer.len()) as u64;
        match self.size {
            None => self.made.put(&trailer),
            Some(_) => self.tail = Some(trailer),
        }
    }

    fn pad(&mut self) {
        self.made.resize(self.made.len().next_multiple_of(BLOCK_BYTES), 0);
    }

    /// Whole blocks that can be taken.
    pub fn takable_bytes(&self) -> usize {
        let made = self.made.len() / BLOCK_BYTES * BLOCK_BYTES;
        if made == 0 { self.tail.as_ref().map_or(0, Vec::len) } else { made }
    }

    /// Moves at most `max_bytes`, in whole blocks, to `out`. Returns their offset in the file.
    pub fn take_blocks(&mut self, max_bytes: usize, out: &mut impl Sink) -> u64 {
        if self.made.is_empty()
            && let (Some(size), Some(tail)) = (self.size, self.tail.take())
        {
            self.at = size - tail.len() as u64;
            self.made = tail;
        }
        let bytes = self.takable_bytes().min(max_bytes / BLOCK_BYTES * BLOCK_BYTES);
        out.put(&self.made[..bytes]);
        self.made.drain(..bytes);
        let offset = self.at;
        self.at += bytes as u64;
        offset
    }
}

const _: () = assert!(HEAD_AREA_BYTES == 2 * BLOCK_BYTES as u64);

/// How much of a file is still needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileUse {
    /// Its number; [`SEGMENT`] says what it is.
    pub file_no: u64,
    /// Its size.
    pub bytes: u64,
    /// Bytes of the entries in it that a group still has, about.
    pub live_bytes: u64,
}

/// What the log takes on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Space {
    /// Files in use for writing: ready ones, the current one, those that a recovery would replay.
    pub own_bytes: u64,
    /// Files that hold nothing and may be used again.
    pub dead_files: u64,
    /// Their bytes.
    pub dead_bytes: u64,
    /// Files that may be compacted: they are written, no recovery replays them, and entries in them live.
    pub held: Vec<FileUse>,
}

impl Wal {
    /// Begins a segment. Its number is never used again.
    pub fn begin_segment(&mut self) -> SegmentWriter {
        self.segments_upto = (self.segments_upto + 1) | SEGMENT;
        let file_no = self.segments_upto;
        let uuid = Uuid::of(self.config.seed, file_no);
        SegmentWriter::new(SegmentHead { identity: self.identity, file_no, uuid }, &self.config.dir)
    }

    /// A finished segment is durable, and so is its name: from now on entries may be moved to it. It is kept until
    /// [`release_segment`](Self::release_segment), and then for as long as it holds something.
    pub fn adopt_segment(&mut self, segment: &SegmentWriter) {
        let SegmentHead { file_no, uuid, .. } = segment.head;
        self.files.insert(file_no, File::closed(uuid, segment.used, segment.at));
        self.moving_to = Some(file_no);
        self.stats.segments_written += 1;
        self.stats.segment_bytes += segment.used;
    }

    /// All moves to the segment that was adopted last are staged.
    pub fn release_segment(&mut self) {
        let Some(file_no) = self.moving_to.take() else { return };
        if let Some(file) = self.files.get_mut(file_no) {
            // A file that is larger than what is in it was never full: what lives is of that part alone.
            let live = u128::from(self.refs.held(file_no).live_bytes);
            file.end = (live * u128::from(file.bytes) / u128::from(file.end.max(1))) as u64;
        }
    }

    /// What the log takes on the disk, and what of it is needed: adds what so many files from `from` on say. Returns where
    /// to go on; `None` if these were the last.
    pub fn space_of(&self, from: u64, files: usize, space: &mut Space) -> Option<u64> {
        let needed_from = self.checkpoints.needed_from();
        let mut last = None;
        for (file_no, file) in self.files.some(from, files) {
            last = Some(file_no);
            let held = self.refs.held(file_no);
            let is_segment = file_no & SEGMENT != 0;
            let is_own = file_no >= needed_from || (held.is_nothing() && self.refs.has_pages(file_no));
            if !is_segment && is_own {
                space.own_bytes += file.bytes;
            } else if held.extents > 0 {
                let live_bytes =
                    if is_segment { live_in_segment(file, held.live_bytes) } else { held.live_bytes };
                let file_use = FileUse { file_no, bytes: file.bytes, live_bytes };
                // Entries of a snapshot that is on its way: their files wait for it.
                space.held.extend(Some(file_use).filter(|_| held.placed == 0));
            } else if !is_segment && held.snapshots == 0 {
                space.dead_files += 1;
                space.dead_bytes += file.bytes;
            }
        }
        last.map(|last| last + 1).filter(|next| self.files.some(*next, 1).next().is_some())
    }

    /// What lies in these files and is still needed, of so many groups from `from` on: group, entries, file. Returns where
    /// to go on; `None` if these were the last.
    pub fn held_in(
        &self,
        files: &[u64],
        from: usize,
        groups: usize,
        out: &mut Vec<(GroupId, IndexRange, u64)>,
    ) -> Option<usize> {
        for group in self.groups.some(from, groups) {
            let held = group.held_extents().filter(|extent| files.contains(&extent.file_no));
            out.extend(held.map(|extent| {
                (group.cold.id, IndexRange { first: extent.first, count: extent.count }, extent.file_no)
            }));
        }
        Some(from + groups).filter(|next| *next < self.groups.len())
    }
}

/// What the extents say is about; when the segment was new, it was all of it.
fn live_in_segment(file: &File, said: u64) -> u64 {
    let whole = file.end.max(1);
    (u128::from(file.bytes) * u128::from(said.min(whole)) / u128::from(whole)) as u64
}
