//! How the index of a file that is not in memory is made: from a scan of a file of the log, from a segment's own, or from
//! one that lies in the log (`hints.rs`).

use coracle_base::limits::BLOCK_BYTES;
use coracle_io::{Disk, DiskDone, DiskOk};

use super::hints::HintLoad;
use super::index::{FileIndex, IndexRun, RunsInFile};
use super::scan::Scan;
use super::{Doing, Job, Part};
use crate::files::File;
use crate::format::segment::Trailer;
use crate::format::{Position, SEGMENT, Uuid};
use crate::wal::Wal;

/// The making of one index.
#[derive(Debug)]
pub(crate) enum Load {
    Log(Scan),
    Segment(SegmentLoad),
    Hint(HintLoad),
}

/// What a load makes, and of which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Makes {
    Index(u64, Part),
    Directory(u64),
}

impl Load {
    pub(crate) fn new(file_no: u64, file: &File) -> Self {
        if file_no & SEGMENT == 0 {
            return Self::Log(Scan::new(file_no, file));
        }
        let step = Step::Trailer;
        Self::Segment(SegmentLoad { file_no, uuid: file.uuid, bytes: file.bytes, step, index: Vec::new() })
    }

    /// What comes of it.
    pub(crate) fn makes(&self) -> Makes {
        match self {
            Self::Log(scan) => Makes::Index(scan.file_no, Part::Whole),
            Self::Segment(load) => Makes::Index(load.file_no, Part::Whole),
            Self::Hint(load) => load.makes,
        }
    }

    /// The file that the index is of.
    pub(crate) fn file_no(&self) -> u64 {
        let (Makes::Index(file_no, _) | Makes::Directory(file_no)) = self.makes();
        file_no
    }

    /// The next piece to read: (where, bytes). `None`: nothing is left to read.
    pub(crate) fn wants(&self) -> Option<(Position, usize)> {
        let (file_no, offset, bytes) = match self {
            Self::Log(scan) => scan.wants().map(|(offset, bytes)| (scan.file_no, offset, bytes)),
            Self::Segment(load) => load.wants().map(|(offset, bytes)| (load.file_no, offset, bytes)),
            Self::Hint(load) => load.wants(),
        }?;
        Some((Position { file_no, offset }, bytes))
    }

    /// The piece could not be read. Without any piece of a segment's own index there is none; a scan goes on behind it.
    fn on_error(&mut self) -> bool {
        match self {
            Self::Log(scan) => scan.on_error(),
            Self::Segment(_) => return false,
            Self::Hint(load) => load.on_error(),
        }
        true
    }

    /// Takes the piece that was asked for.
    pub(crate) fn on_bytes(&mut self, bytes: &[u8]) {
        match self {
            Self::Log(scan) => scan.on_bytes(bytes),
            Self::Segment(load) => load.on_bytes(bytes),
            Self::Hint(load) => load.on_bytes(bytes),
        }
    }
}

impl Wal {
    pub(super) fn go_on_loading<D: Disk>(&mut self, disk: &mut D, mut job: Job, load: Box<Load>) {
        match load.wants() {
            // Its file has left, or was closed for others: whoever needs it looks again.
            Some((from, _)) if self.files.get(from.file_no).is_none_or(|file| file.handle.is_none()) => {}
            Some((from, bytes)) => {
                self.start_read(disk, job.seat, 0, from, bytes);
                job.doing = Doing::Loading(load);
            }
            None => self.keep_loaded(*load),
        }
        self.reads.put_back(job);
    }

    /// Nothing is left to read: the index is there, without what is damaged.
    fn keep_loaded(&mut self, load: Load) {
        let file_no = load.file_no();
        match load {
            Load::Log(scan) => {
                let index = scan.finish();
                if index.is_sound() {
                    self.indexes.was_scanned(file_no, &self.refs);
                }
                self.reads.keep_index((file_no, Part::Whole), index);
            }
            Load::Segment(load) => {
                let runs = RunsInFile { of_log: load.index, ..RunsInFile::default() };
                self.reads.keep_index((file_no, Part::Whole), FileIndex::new(runs, 0));
            }
            Load::Hint(load) => self.keep_hint(file_no, load.finish()),
        }
    }

    /// A piece was read, or could not be: what cannot be read now is not kept as something that is not there.
    pub(super) fn on_loaded<D: Disk>(
        &mut self,
        disk: &mut D,
        job: Job,
        mut load: Box<Load>,
        done: &DiskDone,
    ) {
        let read = load.wants().map_or(load.file_no(), |(from, _)| from.file_no);
        self.let_go(read);
        match (&done.result, &done.buf) {
            (Ok(DiskOk::Read { bytes }), Some(buf)) => load.on_bytes(&buf[..(*bytes).min(buf.len())]),
            (Err(error), _) if !load.on_error() => return self.fail_file(job, read, error),
            _ => {}
        }
        self.go_on_loading(disk, job, load);
    }
}

/// A segment's trailer, then its index. If either does not hold there is no index, and every entry counts as damaged.
#[derive(Debug)]
pub(crate) struct SegmentLoad {
    file_no: u64,
    uuid: Uuid,
    bytes: u64,
    step: Step,
    index: Vec<IndexRun>,
}

#[derive(Debug)]
enum Step {
    Trailer,
    Index(Trailer),
    Done,
}

impl SegmentLoad {
    fn wants(&self) -> Option<(u64, usize)> {
        match &self.step {
            Step::Trailer => Some((self.bytes.checked_sub(BLOCK_BYTES as u64)?, BLOCK_BYTES)),
            Step::Index(trailer) => Some((trailer.index_at, trailer.index_bytes()? as usize)),
            Step::Done => None,
        }
    }

    fn on_bytes(&mut self, bytes: &[u8]) {
        let seed = self.uuid.seed();
        match std::mem::replace(&mut self.step, Step::Done) {
            Step::Trailer => {
                let block = bytes.get(..BLOCK_BYTES).unwrap_or_default();
                let trailer = Trailer::decode(block, seed, self.file_no, self.bytes);
                let aligned = trailer.filter(|trailer| {
                    trailer.run_count > 0 && trailer.index_at.is_multiple_of(BLOCK_BYTES as u64)
                });
                self.step = aligned.map_or(Step::Done, Step::Index);
            }
            Step::Index(trailer) => {
                let index = trailer.index_bytes().and_then(|length| bytes.get(..length as usize));
                let runs = index.and_then(|index| trailer.decode_index(index, seed)).unwrap_or_default();
                let run = |run: &crate::format::segment::SegmentRun| IndexRun {
                    group: run.group,
                    first: run.first,
                    count: run.count,
                    offset: run.offset,
                };
                self.index = runs.iter().map(run).collect();
            }
            Step::Done => {}
        }
    }
}
