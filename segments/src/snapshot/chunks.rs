//! Single chunks of a snapshot file, in any order: for members that need it. No byte is handed out that its checksum does
//! not vouch for.
//!
//! Invariants: (1) one operation in flight; (2) whether all chunks together are what the log names, the receiver finds out:
//! it knows their number and their checksum.

use std::path::{Path, PathBuf};

use coracle_base::limits::BLOCK_BYTES;
use coracle_io::{Buffer, Disk, DiskDone, DiskError, DiskOk, DiskOp, FileId, FileMode};
use coracle_wal::SnapshotFile;

use super::SnapshotError;
use super::format::{self, SnapshotHead, SnapshotName};

/// What a completion brought.
#[derive(Debug, PartialEq, Eq)]
pub enum ChunkRead {
    /// Nothing yet.
    Going,
    /// It is open, or closed; see [`ChunkReader::is_idle`].
    Ready,
    /// The bytes of the chunk that was asked for.
    Chunk(Vec<u8>),
    /// The file is not to be had, or is not what it should be. It is closed.
    Failed(SnapshotError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Open,
    Head,
    Idle,
    Chunk(u64),
    Closing,
}

/// A snapshot file whose chunks are being read.
#[derive(Debug)]
pub struct ChunkReader {
    token: u64,
    path: PathBuf,
    head: SnapshotHead,
    whole: SnapshotFile,
    step: Step,
    file: Option<FileId>,
    seed: u32,
    unwanted: bool,
}

impl ChunkReader {
    /// Opens the file. Completions come with `token`.
    pub fn begin<D: Disk>(
        disk: &mut D,
        dir: &Path,
        head: SnapshotHead,
        whole: SnapshotFile,
        token: u64,
    ) -> Self {
        let path = SnapshotName::Snapshot { file_no: whole.file_no }.path(dir);
        disk.start(token, DiskOp::Open { path: path.clone(), mode: FileMode::Read });
        Self { token, path, head, whole, step: Step::Open, file: None, seed: 0, unwanted: false }
    }

    /// Whether a chunk may be asked for.
    pub fn is_idle(&self) -> bool {
        self.step == Step::Idle
    }

    /// Asks for a chunk. Does nothing unless [`is_idle`](Self::is_idle), or if there is none of this number.
    pub fn read<D: Disk>(&mut self, disk: &mut D, number: u64) {
        let bytes = format::chunk_bytes(self.whole.bytes, number);
        if let Some(file) = self.file.filter(|_| self.is_idle() && bytes > 0) {
            self.step = Step::Chunk(number);
            self.start(disk, file, format::chunk_offset(number), format::chunk_span(bytes));
        }
    }

    /// Closes it, when the disk is done with what it is at. True if that was nothing: then no completion comes any more
    /// that need be taken.
    pub fn close<D: Disk>(&mut self, disk: &mut D) -> bool {
        self.unwanted = true;
        if self.step == Step::Idle {
            self.begin_close(disk);
            return true;
        }
        false
    }

    /// Takes a completion.
    pub fn on_done<D: Disk>(&mut self, disk: &mut D, done: DiskDone) -> ChunkRead {
        let step = std::mem::replace(&mut self.step, Step::Idle);
        let read = match (step, done.result, &done.buf) {
            (Step::Closing, ..) => Ok(ChunkRead::Ready),
            (Step::Open, Ok(DiskOk::Opened { file, .. }), _) => {
                self.file = Some(file);
                if !self.unwanted {
                    self.step = Step::Head;
                    self.start(disk, file, 0, BLOCK_BYTES);
                    return ChunkRead::Going;
                }
                Ok(ChunkRead::Ready)
            }
            (step, Ok(DiskOk::Read { bytes }), Some(buf)) => match bytes == buf.len() {
                true => self.on_read(step, buf).map_err(|what| self.damaged(what)),
                false => Err(self.damaged("it is cut short")),
            },
            (_, Ok(_), _) => Err(self.damaged("the disk answered something else")),
            (_, Err(DiskError::NotFound { .. }), _) => Err(self.damaged("it is missing")),
            (_, Err(error), _) => Err(SnapshotError::Disk(error)),
        };
        if let Some(buf) = done.buf {
            disk.recycle(buf);
        }
        if self.unwanted || read.is_err() {
            self.begin_close(disk);
        }
        read.unwrap_or_else(ChunkRead::Failed)
    }

    fn on_read(&mut self, step: Step, buf: &Buffer) -> Result<ChunkRead, &'static str> {
        if let Step::Chunk(number) = step {
            let body = format::read_chunk(buf, self.seed, number as u32)?;
            let expected = format::chunk_bytes(self.whole.bytes, number);
            return match body.len() == expected {
                true => Ok(ChunkRead::Chunk(body.to_vec())),
                false => Err("a chunk of the wrong length"),
            };
        }
        let (head, seed) = format::read_head(buf, self.head.identity.shards)?;
        self.seed = seed;
        if head == self.head { Ok(ChunkRead::Ready) } else { Err("it is of something else") }
    }

    fn damaged(&self, what: &'static str) -> SnapshotError {
        SnapshotError::Damaged { path: self.path.clone(), what }
    }

    fn start<D: Disk>(&mut self, disk: &mut D, file: FileId, offset: u64, bytes: usize) {
        let mut buf = disk.buffer(bytes);
        buf.resize(bytes);
        disk.start(self.token, DiskOp::Read { file, offset, buf });
    }

    fn begin_close<D: Disk>(&mut self, disk: &mut D) {
        if let Some(file) = self.file.take() {
            self.step = Step::Closing;
            disk.start(self.token, DiskOp::Close { file });
        }
    }
}
