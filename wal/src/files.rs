//! The files of the log: their names, identities, ends and handles, and which of them hold nothing that is needed.
//!
//! `NNNNNNNN.wal` is a file of the log, in use or ready for use; its number is the one in its head. `spare-N.wal` is on
//! its way to becoming one and holds nothing. `NNNNNNNN.seg` is a segment, numbered on its own; in memory its number has
//! the bit [`SEGMENT`], so that it comes after all files of the log. `stray-..` was found where it does not belong, and is
//! left to a person.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coracle_io::FileId;

use crate::format::head::HEAD_AREA_BYTES;
use crate::format::{Position, SEGMENT, Uuid};
use crate::groups::Refs;
use crate::prepare::Ready;

/// What a name in the log's directory means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Name {
    Log(u64),
    /// With the bit [`SEGMENT`].
    Segment(u64),
    Spare,
    Other,
}

impl Name {
    pub(crate) fn of(name: &str) -> Self {
        if let Some(stem) = name.strip_suffix(".seg") {
            let file_no = stem.parse::<u64>().ok().filter(|no| no & SEGMENT == 0).map(|no| no | SEGMENT);
            return file_no.filter(|no| log_name(*no) == name).map_or(Self::Other, Self::Segment);
        }
        let Some(stem) = name.strip_suffix(".wal") else { return Self::Other };
        match stem.parse::<u64>() {
            Ok(file_no) if file_no & SEGMENT == 0 && log_name(file_no) == name => Self::Log(file_no),
            _ if stem.starts_with("spare-") => Self::Spare,
            _ => Self::Other,
        }
    }
}

fn log_name(file_no: u64) -> String {
    if file_no & SEGMENT == 0 {
        format!("{file_no:08}.wal")
    } else {
        format!("{:08}.seg", file_no & !SEGMENT)
    }
}

/// The path of a file of the log, or of a segment.
pub(crate) fn log_path(dir: &Path, file_no: u64) -> PathBuf {
    dir.join(log_name(file_no))
}

/// The path of a file that will become file `file_no` of the log.
pub(crate) fn spare_path(dir: &Path, file_no: u64) -> PathBuf {
    dir.join(format!("spare-{file_no}.wal"))
}

/// A file of the log.
#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) uuid: Uuid,
    /// Where its batches end: exact once the log has gone on to the next file. Of a segment: what its extents said they
    /// took when all of it lived.
    pub(crate) end: u64,
    /// Its size.
    pub(crate) bytes: u64,
    pub(crate) handle: Option<FileId>,
    /// Operations in flight on it.
    pub(crate) busy: u32,
    /// Pins that hold it.
    pub(crate) pins: u32,
    /// Opened by this start, to be written to.
    pub(crate) writable: bool,
}

impl File {
    /// A file of the log that is not open.
    pub(crate) fn closed(uuid: Uuid, end: u64, bytes: u64) -> Self {
        Self { uuid, end, bytes, handle: None, busy: 0, pins: 0, writable: false }
    }
}

/// All files of the log.
#[derive(Debug, Default)]
pub(crate) struct Files {
    map: BTreeMap<u64, File>,
    /// Ends of files that the log has gone past though they are not ready yet.
    early_ends: Vec<Position>,
}

impl Files {
    /// The log has gone on to the next file: this one ends here for ever.
    pub(crate) fn seal(&mut self, end: Position) {
        match self.map.get_mut(&end.file_no) {
            Some(file) => file.end = end.offset,
            None => self.early_ends.push(end),
        }
    }

    /// A file was made ready.
    pub(crate) fn insert_ready(&mut self, ready: &Ready) {
        let file_no = ready.head.file_no;
        let early = self.early_ends.iter().position(|end| end.file_no == file_no);
        let end = early.map_or(HEAD_AREA_BYTES, |at| self.early_ends.swap_remove(at).offset);
        let file = File {
            uuid: ready.head.uuid,
            end,
            bytes: ready.bytes,
            handle: Some(ready.file),
            busy: 0,
            pins: 0,
            writable: true,
        };
        self.map.insert(file_no, file);
    }

    pub(crate) fn insert(&mut self, file_no: u64, file: File) {
        self.map.insert(file_no, file);
    }

    pub(crate) fn get(&self, file_no: u64) -> Option<&File> {
        self.map.get(&file_no)
    }

    pub(crate) fn get_mut(&mut self, file_no: u64) -> Option<&mut File> {
        self.map.get_mut(&file_no)
    }

    pub(crate) fn remove(&mut self, file_no: u64) -> Option<File> {
        self.map.remove(&file_no)
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &File)> {
        self.map.iter().map(|(file_no, file)| (*file_no, file))
    }

    /// So many files from a number on.
    pub(crate) fn some(&self, from: u64, count: usize) -> impl Iterator<Item = (u64, &File)> {
        self.map.range(from..).take(count).map(|(file_no, file)| (*file_no, file))
    }

    /// A file that may be reused: all its records precede `begin_no`'s file, in which the older of the two checkpoints
    /// begins; the log, as far as it is `durable`, has nothing in it; nobody reads it.
    pub(crate) fn dead(&self, begin_no: u64, durable: u64, refs: &Refs) -> Option<u64> {
        self.all_dead(begin_no, durable, refs).next()
    }

    fn all_dead<'a>(&'a self, begin_no: u64, durable: u64, refs: &'a Refs) -> impl Iterator<Item = u64> + 'a {
        let is_dead = move |(file_no, file): &(&u64, &File)| is_dead(**file_no, file, durable, refs);
        self.map.range(..begin_no).filter(is_dead).map(|(file_no, _)| *file_no)
    }

    /// As [`dead`](Self::dead), if there are more than `keep` of them.
    pub(crate) fn dead_beyond(&self, keep: usize, begin_no: u64, durable: u64, refs: &Refs) -> Option<u64> {
        self.all_dead(begin_no, durable, refs).nth(keep)
    }

    /// A segment that holds nothing. Not the one that is being filled.
    pub(crate) fn dead_segment(&self, filling: Option<u64>, durable: u64, refs: &Refs) -> Option<u64> {
        let mut segments = self.map.range(SEGMENT..).filter(|(file_no, _)| Some(**file_no) != filling);
        segments.find(|(file_no, file)| is_dead(**file_no, file, durable, refs)).map(|(file_no, _)| *file_no)
    }

    /// A file before `begin_no` in which nothing but snapshots keeps it from being reused.
    pub(crate) fn only_snapshots(&self, begin_no: u64, refs: &Refs) -> Option<u64> {
        self.map.range(..begin_no).map(|(file_no, _)| *file_no).find(|file_no| {
            let held = refs.held(*file_no);
            held.extents == 0 && held.snapshots > 0
        })
    }

    /// A handle that was opened for reading and may be closed, if there are more than `max` of them. Not that of file
    /// `keep`, which is about to be read: it would be opened and closed for ever.
    pub(crate) fn surplus_handle(&mut self, max: usize, keep: u64) -> Option<FileId> {
        let readable = |file: &&mut File| file.handle.is_some() && !file.writable;
        if self.map.values_mut().filter(readable).count() <= max {
            return None;
        }
        let mut files = self.map.iter_mut().filter(|(file_no, _)| **file_no != keep).map(|(_, file)| file);
        files.find(|file| readable(file) && file.busy == 0)?.handle.take()
    }
}

/// The log, as far as it is durable, has nothing in the file, and nobody reads it.
fn is_dead(file_no: u64, file: &File, durable: u64, refs: &Refs) -> bool {
    let held = refs.held(file_no);
    let (is_dropped, is_read) = (held.dropped_seq <= durable, file.busy > 0 || file.pins > 0);
    #[cfg(feature = "breaks")]
    let is_dropped = is_dropped || crate::breaks::is_on(crate::breaks::Break::RecycleBeforeMoved);
    #[cfg(feature = "breaks")]
    let is_read = is_read && !crate::breaks::is_on(crate::breaks::Break::ReadPlanRacesReuse);
    held.is_nothing() && !refs.has_pages(file_no) && is_dropped && !is_read
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_a_file_is() {
        assert_eq!(Name::of("00000012.wal"), Name::Log(12));
        assert_eq!(Name::of("123456789.wal"), Name::Log(123_456_789));
        assert_eq!(Name::of("12.wal"), Name::Other, "not how we write it");
        assert_eq!(Name::of("+0000012.wal"), Name::Other);
        assert_eq!(Name::of("spare-3.wal"), Name::Spare);
        assert_eq!(Name::of("00000012.tmp"), Name::Other);
        assert_eq!(Name::of("00000012.seg"), Name::Segment(12 | SEGMENT));
        assert_eq!(Name::of("12.seg"), Name::Other);
        assert_eq!(Name::of("9223372036854775809.seg"), Name::Other);
        assert_eq!(log_path(Path::new("d"), 7 | SEGMENT), Path::new("d/00000007.seg"));
        assert_eq!(log_path(Path::new("d"), 7), Path::new("d/00000007.wal"));
    }
}
