//! A walk over every run that lies in the log's files, in the order in which they were written: proof that the bytes are
//! there, for benches and for tools that inspect a log.
//!
//! A recovery begins at a checkpoint and takes the checkpoint's word for older entries. The walk takes nobody's word: it
//! begins at the oldest batch and reads every byte up to the end of the log, in windows of 1 MiB. It writes nothing.

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
use crate::recover::chain::Directory;
use crate::recover::reader::Readers;
use crate::recover::scan::{Scan, Sink};

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
/// their group replaces. Checksums of batches and run headers held; those of payloads are the caller's to check
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
    let links = Directory::read(disk, config, identity)?.chain();
    let mut readers = Readers::new(disk, &config.dir);
    let mut walk = Walk { config, on_run, walked: Walked::default() };
    let tail = match Scan::from_oldest(&mut readers, &links) {
        Ok(Some(scan)) => scan.run(&mut walk).map(Some),
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    };
    readers.close()?;
    walk.walked.tail_suspect = tail?.is_some_and(|tail| tail.suspect);
    Ok(walk.walked)
}

struct Walk<'a, F> {
    config: &'a Config,
    on_run: F,
    walked: Walked,
}

impl<F: FnMut(RunRef<'_>)> Sink for Walk<'_, F> {
    fn batch(&mut self, at: Position, head: &BatchHead, payload: &[u8]) -> Result<bool, WalError> {
        let mut records = Vec::with_capacity(head.record_count as usize);
        let mut reader = Reader::new(payload);
        while !reader.is_empty() {
            match Record::read(&mut reader) {
                Ok(record) => records.push(record),
                Err(RecordError::Unknown(kind)) => {
                    let file = log_path(&self.config.dir, at.file_no);
                    return Err(WalError::UnknownRecord { file, offset: at.offset, kind });
                }
                Err(_) => return Ok(false),
            }
        }
        if records.len() != head.record_count as usize {
            return Ok(false);
        }
        self.walked.batches += 1;
        for record in records {
            if let Record::Run(run) = record {
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
