//! A walk over every run that lies in the log's files, in the order in which they were written: proof that the bytes are
//! there, for benches and for tools that inspect a log.
//!
//! A recovery begins at a checkpoint and takes the checkpoint's word for older entries. The walk asks recovery only where
//! the log ends: it begins at the oldest batch and reads every byte up to there, in windows of 1 MiB. It writes nothing.

use std::path::Path;

use coracle_base::RunRef;
use coracle_base::codec::Reader;
use coracle_io::Disk;

use crate::config::{Config, Identity};
use crate::error::WalError;
use crate::files::log_path;
use crate::format::Position;
use crate::format::batch::BatchHead;
use crate::format::record::{Record, RecordError};
use crate::recover::Hole;
use crate::recover::chain::{Directory, Link};
use crate::recover::reader::Readers;
use crate::recover::reading::read_log;
use crate::recover::scan::{Scan, Sink, Tail};

/// What a walk met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Walked {
    /// Sound batches.
    pub batches: u64,
    /// Runs in them: as many as were handed out.
    pub runs: u64,
    /// Batches that are not there: damaged, or in a file that was reused since.
    pub gaps: Vec<Hole>,
    /// Durable batches may be missing at the end.
    pub tail_suspect: bool,
}

/// Reads the log in `config.dir`, which nobody has open, and hands out its runs in order; also those that a later run of
/// their group replaces, and those that were copied on because they live. Checksums of batches and run headers held; those of payloads are the caller's to check
/// ([`RunRef::check_payloads`]).
///
/// # Errors
/// [`WalError`]: the files are another's or a newer program's, or the directory cannot be read. Damage is no error: what
/// is missing is missing from the runs.
pub fn walk<D: Disk>(
    disk: &mut D,
    config: &Config,
    identity: &Identity,
    on_run: impl FnMut(RunRef<'_>),
) -> Result<Walked, WalError> {
    let directory = Directory::read(disk, config, Some(identity))?;
    let links = directory.chain();
    if links.is_empty() {
        return Ok(Walked::default());
    }
    let mut readers = Readers::new(disk, &config.dir);
    let mut walk = Walk { config, on_run, walked: Walked::default() };
    let tail = read_log(&mut readers, &config.dir, &directory, &links, identity)
        .and_then(|read| scan_links(&mut readers, &links, read.tail(), &mut walk));
    readers.close()?;
    walk.walked.tail_suspect = tail?.is_some_and(|tail| tail.suspect);
    Ok(walk.walked)
}

/// Takes every batch from the oldest to the end of the log. A scan ends where files are missing, and wherever one was
/// reused it is: then it goes on behind them.
pub(crate) fn scan_links<D: Disk>(
    readers: &mut Readers<'_, D>,
    links: &[Link],
    end: Position,
    sink: &mut impl Sink,
) -> Result<Option<Tail>, WalError> {
    let mut rest = links;
    let mut tail: Option<Tail> = None;
    while let Some(scan) = Scan::from_oldest(readers, rest)? {
        if let Some(tail) = tail {
            sink.hole(tail.at, tail.seq + 1, scan.first_seq() - 1);
        }
        let reached = scan.run(sink)?;
        tail = Some(reached);
        if reached.at.file_no >= end.file_no {
            break;
        }
        let passed = rest.iter().position(|link| link.file_no > reached.at.file_no).unwrap_or(rest.len());
        rest = &rest[passed..];
    }
    Ok(tail)
}

/// The records of a batch; `None` if they make no sense although its checksums hold.
///
/// # Errors
/// One that must be understood is of no known kind.
pub(crate) fn records_of<'a>(
    dir: &Path,
    at: Position,
    head: &BatchHead,
    payload: &'a [u8],
) -> Result<Option<Vec<Record<'a>>>, WalError> {
    let mut records = Vec::new();
    let mut reader = Reader::new(payload);
    while !reader.is_empty() {
        match Record::read(&mut reader) {
            Ok(record) => records.push(record),
            Err(RecordError::Unknown(kind)) => {
                let file = log_path(dir, at.file_no);
                return Err(WalError::UnknownRecord { file, offset: at.offset, kind });
            }
            Err(_) => return Ok(None),
        }
    }
    Ok((records.len() == head.record_count as usize).then_some(records))
}

struct Walk<'a, F> {
    config: &'a Config,
    on_run: F,
    walked: Walked,
}

impl<F: FnMut(RunRef<'_>)> Sink for Walk<'_, F> {
    fn batch(&mut self, at: Position, head: &BatchHead, payload: &[u8]) -> Result<bool, WalError> {
        let Some(records) = records_of(&self.config.dir, at, head, payload)? else { return Ok(false) };
        self.walked.batches += 1;
        for record in records {
            if let Record::Run(run) | Record::Place(run) = record {
                self.walked.runs += 1;
                (self.on_run)(run);
            }
        }
        Ok(true)
    }

    fn hole(&mut self, at: Position, first: u64, last: u64) {
        let file = log_path(&self.config.dir, at.file_no);
        self.walked.gaps.push(Hole { file, offset: at.offset, first_seq: first, last_seq: last });
    }
}
