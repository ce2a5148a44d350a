//! Builds the index of a sealed file by reading it once, a piece at a time.
//!
//! Damage costs only what it covers: after a batch that does not hold, the scan goes on at the next block at which one
//! does. What is not in the index is reported as damaged when somebody asks for it; so is what may have been overwritten by
//! what could not be read (`index.rs`).

use coracle_base::RunRef;
use coracle_base::codec::Reader;
use coracle_base::limits::{BATCH_BYTES_MAX, BLOCK_BYTES};

use super::index::{FileIndex, IndexRun, RunsInFile};
use crate::files::File;
use crate::format::batch::{BATCH_HEADER_BYTES, BatchHead};
use crate::format::head::HEAD_AREA_BYTES;
use crate::format::record::{RECORD_HEADER_BYTES, Record};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// How much to read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Window {
    /// As much as the largest batch has.
    Full,
    /// One block, because more could not be read.
    Block,
    /// Just the batch whose header was found.
    Batch(u64),
}

/// A scan of one file.
#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) file_no: u64,
    seed: u32,
    uuid_low: u64,
    offset: u64,
    end: u64,
    window: Window,
    runs: RunsInFile,
    /// Where the last block lies that holds no batch.
    hole_at: u64,
}

impl Scan {
    pub(crate) fn new(file_no: u64, file: &File) -> Self {
        Self {
            file_no,
            seed: file.uuid.seed(),
            uuid_low: file.uuid.low(),
            offset: HEAD_AREA_BYTES,
            end: file.end.min(file.bytes),
            window: Window::Full,
            runs: RunsInFile::default(),
            hole_at: 0,
        }
    }

    /// The next piece to read: (offset, bytes). `None`: the scan is at its end.
    pub(crate) fn wants(&self) -> Option<(u64, usize)> {
        let bytes = match self.window {
            Window::Full => BATCH_BYTES_MAX as u64,
            Window::Block => BLOCK,
            Window::Batch(bytes) => bytes,
        };
        (self.offset < self.end).then(|| (self.offset, bytes.min(self.end - self.offset) as usize))
    }

    /// The piece could not be read.
    pub(crate) fn on_error(&mut self) {
        match self.window {
            Window::Full => self.window = Window::Block,
            Window::Block | Window::Batch(_) => self.skip_block(),
        }
    }

    fn skip_block(&mut self) {
        self.hole_at = self.offset;
        self.offset += BLOCK;
        self.window = Window::Full;
    }

    /// Takes the piece that was asked for (shorter if the file is).
    pub(crate) fn on_bytes(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= BLOCK_BYTES) {
            let here = self.offset + at as u64;
            let head = BatchHead::decode(rest, self.seed, self.uuid_low).filter(|head| head.self_off == here);
            let taken = match head {
                None => None,
                Some(head) => match rest.get(..head.batch_bytes() as usize) {
                    Some(batch) => self.take_batch(&head, batch),
                    None if at > 0 => break,
                    None if self.window == Window::Block => {
                        self.window = Window::Batch(head.batch_bytes());
                        return;
                    }
                    None => None,
                },
            };
            if taken.is_none() {
                self.hole_at = here;
            }
            at += taken.unwrap_or(BLOCK_BYTES);
        }
        match at {
            0 => self.skip_block(),
            _ => self.offset += at as u64,
        }
        self.window = Window::Full;
    }

    /// Takes the runs of a batch if it holds. Returns its bytes.
    fn take_batch(&mut self, head: &BatchHead, batch: &[u8]) -> Option<usize> {
        let (_, payload) = batch.split_at(BATCH_HEADER_BYTES);
        if !head.payload_holds(payload, self.seed) {
            return None;
        }
        self.add_runs(&payload[..head.payload_bytes as usize], head.self_off + BATCH_HEADER_BYTES as u64);
        Some(batch.len())
    }

    fn add_runs(&mut self, payload: &[u8], payload_at: u64) {
        let mut reader = Reader::new(payload);
        while !reader.is_empty() {
            let body_at = payload_at + (payload.len() - reader.rest().len() + RECORD_HEADER_BYTES) as u64;
            match Record::read(&mut reader) {
                Ok(Record::Run(run)) => self.runs.of_log.push(index_run(&run, body_at)),
                Ok(Record::Place(run)) => self.runs.placed.push(index_run(&run, body_at)),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    /// The index, when nothing is left to read.
    pub(crate) fn finish(self) -> FileIndex {
        FileIndex::new(self.runs, self.hole_at)
    }
}

fn index_run(run: &RunRef<'_>, body_at: u64) -> IndexRun {
    let header = &run.header;
    IndexRun { group: header.group, first: header.first().0, count: header.count, offset: body_at as u32 }
}
