//! How the index of a file that is not in memory is made: from a scan of a file of the log, or from a segment's own.

use coracle_base::limits::BLOCK_BYTES;
use coracle_io::{Disk, DiskDone, DiskOk};

use super::index::{FileIndex, IndexRun};
use super::scan::Scan;
use super::{Doing, Job};
use crate::files::File;
use crate::format::segment::Trailer;
use crate::format::{Position, SEGMENT, Uuid};
use crate::wal::Wal;

/// The making of one index.
#[derive(Debug)]
pub(crate) enum Load {
    Log(Scan),
    Segment(SegmentLoad),
}

impl Load {
    pub(crate) fn new(file_no: u64, file: &File) -> Self {
        if file_no & SEGMENT == 0 {
            return Self::Log(Scan::new(file_no, file));
        }
        let step = Step::Trailer;
        Self::Segment(SegmentLoad { file_no, uuid: file.uuid, bytes: file.bytes, step, index: Vec::new() })
    }

    pub(crate) fn file_no(&self) -> u64 {
        match self {
            Self::Log(scan) => scan.file_no,
            Self::Segment(load) => load.file_no,
        }
    }

    /// The next piece to read: (offset, bytes). `None`: nothing is left to read.
    pub(crate) fn wants(&self) -> Option<(u64, usize)> {
        match self {
            Self::Log(scan) => scan.wants(),
            Self::Segment(load) => load.wants(),
        }
    }

    /// The piece could not be read. Without any piece of a segment's own index there is none; a scan goes on behind it.
    fn on_error(&mut self) -> bool {
        match self {
            Self::Log(scan) => scan.on_error(),
            Self::Segment(_) => return false,
        }
        true
    }

    /// Takes the piece that was asked for.
    pub(crate) fn on_bytes(&mut self, bytes: &[u8]) {
        match self {
            Self::Log(scan) => scan.on_bytes(bytes),
            Self::Segment(load) => load.on_bytes(bytes),
        }
    }

    /// The index, when nothing is left to read: without what is damaged.
    pub(crate) fn finish(self) -> FileIndex {
        match self {
            Self::Log(scan) => scan.finish(),
            Self::Segment(load) => FileIndex::new(load.index, 0),
        }
    }
}

impl Wal {
    pub(super) fn go_on_loading<D: Disk>(&mut self, disk: &mut D, mut job: Job, load: Box<Load>) {
        match load.wants() {
            Some((offset, bytes)) => {
                self.start_read(disk, job.seat, 0, Position { file_no: load.file_no(), offset }, bytes);
                job.doing = Doing::Loading(load);
            }
            None => self.reads.keep_index(load.file_no(), load.finish()),
        }
        self.reads.put_back(job);
    }

    /// A piece was read, or could not be: what cannot be read now is not kept as something that is not there.
    pub(super) fn on_loaded<D: Disk>(
        &mut self,
        disk: &mut D,
        job: Job,
        mut load: Box<Load>,
        done: &DiskDone,
    ) {
        self.let_go(load.file_no());
        match (&done.result, &done.buf) {
            (Ok(DiskOk::Read { bytes }), Some(buf)) => load.on_bytes(&buf[..(*bytes).min(buf.len())]),
            (Err(error), _) if !load.on_error() => return self.fail_file(job, load.file_no(), error),
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
