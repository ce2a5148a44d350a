//! A range of entries back from files: run after run, from where the log holds each, until it is whole or as large as it may
//! be.

use coracle_base::checksum::crc32c;
use coracle_base::limits::{BATCH_BYTES_MAX, BLOCK_BYTES};
use coracle_base::run::{Entries, RUN_HEADER_BYTES};
use coracle_base::{Index, RunError, RunRef};
use coracle_io::{Buffer, Disk};

use super::lookup::Lookup;
use super::{Doing, Job, Next, Want};
use crate::error::ReadError;
use crate::format::Position;
use crate::format::page::SnapshotPlace;
use crate::wal::Wal;

/// Reads are at least this long: a run is seldom alone.
const WINDOW_BYTES_MIN: usize = 16 * 1024;
/// And at most this long, unless one run is longer.
const WINDOW_BYTES_MAX: usize = 256 * 1024;

impl Wal {
    /// What is needed for the next of the entries.
    pub(super) fn next_for_range(&mut self, job: &mut Job, last: Index, max_bytes: usize) -> Next {
        let index = job.out.first.plus(u64::from(job.out.count));
        let Some(group) = self.groups.find(job.group) else {
            return Next::Fail(ReadError::Released { index, first: Index(1), last: Index::ZERO });
        };
        let over = index > last || job.out.body.len() >= max_bytes || job.full;
        if job.out.count > 0 && over {
            return Next::Finish;
        }
        let Some(extent) = group.extent_of(index) else {
            let log = group.log();
            return Next::Fail(ReadError::Released { index, first: log.first, last: log.last });
        };
        let file_no = extent.file_no;
        let Some(file) = self.files.get(file_no) else {
            return Next::Fail(self.missing(file_no, index));
        };
        let bytes_of_file = file.bytes;
        let is_open = file.handle.is_some();
        let (offset, by_hint) = match self.look_up(job.group, &extent, index, false) {
            Lookup::At { offset, by_hint, .. } => (offset, by_hint),
            Lookup::Nowhere => return Next::Fail(self.corrupt(file_no, index, "its run is damaged")),
            Lookup::NotDurable => return Next::Fail(ReadError::NotDurable { index }),
            Lookup::Before(next) => return next,
        };
        if !is_open {
            return Next::Open { file_no };
        }
        if u64::from(offset) + RUN_HEADER_BYTES as u64 > bytes_of_file {
            // The file is shorter than what once said where the run lies.
            if by_hint {
                self.distrust_index(file_no);
                return Next::Again;
            }
            return Next::Fail(self.corrupt(file_no, index, "its run lies beyond the file"));
        }
        (job.uses, job.by_hint) = (Some(file_no), by_hint);
        let wanted = max_bytes.saturating_sub(job.out.body.len()).saturating_add(BLOCK_BYTES);
        let from = Position { file_no, offset: u64::from(offset) / BLOCK_BYTES as u64 * BLOCK_BYTES as u64 };
        let bytes = wanted.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX).next_multiple_of(BLOCK_BYTES);
        Next::Read { from, bytes: bytes.min((bytes_of_file.saturating_sub(from.offset)) as usize) }
    }

    pub(super) fn on_bytes<D: Disk>(
        &mut self,
        disk: &mut D,
        mut job: Job,
        from: Position,
        buf: &Buffer,
        bytes: usize,
    ) {
        let bytes = &buf[..bytes.min(buf.len())];
        if let Want::Carry { slot, at, bytes: length } = job.want {
            let place = SnapshotPlace::Inline { at, bytes: length };
            self.carry_snapshot(slot, place, &bytes[((at.offset - from.offset) as usize).min(bytes.len())..]);
            return;
        }
        match self.take_runs(&mut job, from, bytes) {
            Ok(None) => self.reads.put_back(job),
            Ok(Some((from, bytes))) => {
                self.start_read(disk, job.seat, 0, from, bytes);
                job.doing = Doing::Reading { from };
                self.reads.put_back(job);
            }
            Err(ReadError::Corrupt { .. }) if std::mem::take(&mut job.by_hint) => {
                self.distrust_index(from.file_no);
                self.reads.put_back(job);
            }
            Err(error) => self.finish_job(job, Err(error)),
        }
    }

    /// Takes the entries wanted from all runs that lie whole in these bytes. If not even the first does, says what to
    /// read instead.
    fn take_runs(
        &mut self,
        job: &mut Job,
        from: Position,
        bytes: &[u8],
    ) -> Result<Option<(Position, usize)>, ReadError> {
        let Want::Entries { last, max_bytes, .. } = job.want else { return Ok(None) };
        let before = job.out.count;
        loop {
            let index = job.out.first.plus(u64::from(job.out.count));
            let over = index > last || job.out.body.len() >= max_bytes || job.full;
            if job.out.count > 0 && over {
                return Ok(None);
            }
            let Some(offset) = self.run_in(from.file_no, job.group, index) else { return Ok(None) };
            let at = offset.checked_sub(from.offset).map(|at| at as usize);
            let Some(run_bytes) = at.and_then(|at| bytes.get(at..)) else { return Ok(None) };
            if offset >= self.durable_at.offset && from.file_no == self.durable_at.file_no {
                return Ok(None);
            }
            match RunRef::parse(run_bytes) {
                Ok(run) => self.take_run(job, run, index, Position { offset, ..from })?,
                Err(RunError::Truncated(_)) if job.out.count > before => return Ok(None),
                Err(RunError::Truncated(short)) => {
                    let wanted = (bytes.len() + short.missing).next_multiple_of(BLOCK_BYTES);
                    let is_all = self.files.get(from.file_no).is_none_or(|file| {
                        from.offset + wanted as u64 > file.bytes.next_multiple_of(BLOCK_BYTES as u64)
                    });
                    if is_all || wanted > BATCH_BYTES_MAX + BLOCK_BYTES {
                        return Err(self.corrupt(from.file_no, index, "its run ends beyond the file"));
                    }
                    return Ok(Some((from, wanted)));
                }
                Err(error) => return Err(self.corrupt(from.file_no, index, &error.to_string())),
            }
        }
    }

    /// Takes the entries of a run from `index` on, as far as the log holds them there.
    fn take_run(
        &mut self,
        job: &mut Job,
        run: RunRef<'_>,
        index: Index,
        at: Position,
    ) -> Result<(), ReadError> {
        let Want::Entries { last, max_bytes, .. } = job.want else { return Ok(()) };
        let file_no = at.file_no;
        if run.header.group != job.group || run.header.first() > index || run.header.last() < index {
            return Err(self.corrupt(file_no, index, "another run lies there"));
        }
        let mut entries = Entries::new(run.header.first(), run.body);
        loop {
            let encoded = entries.rest();
            let Some(entry) = entries.next() else { return Ok(()) };
            if entry.index < index {
                continue;
            }
            let encoded = &encoded[..encoded.len() - entries.rest().len()];
            job.full = job.out.count > 0 && job.out.body.len() + encoded.len() > max_bytes;
            if entry.index > last || job.full {
                return Ok(());
            }
            let Some(group) = self.groups.find(job.group) else { return Ok(()) };
            // Of live entries below the log the term is not kept: their place says which they are.
            let is_held = match group.term_at(entry.index).filter(|_| entry.index > group.base) {
                Some(term) => term == entry.header.term,
                None => self.run_in(file_no, job.group, entry.index) == Some(at.offset),
            };
            if !is_held {
                // Beyond what the log holds of this run.
                return if entry.index > index {
                    Ok(())
                } else {
                    Err(self.corrupt(file_no, index, "it is of another term"))
                };
            }
            if crc32c(entry.payload) != entry.header.payload_crc {
                return Err(self.corrupt(file_no, entry.index, "its payload checksum does not hold"));
            }
            job.out.body.extend_from_slice(encoded);
            job.out.count += 1;
        }
    }
}

const _: () = assert!(WINDOW_BYTES_MIN > RUN_HEADER_BYTES + BLOCK_BYTES);
