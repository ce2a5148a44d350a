//! Reads a snapshot file back, a chunk at a time, and believes no byte that its checksum does not vouch for.
//!
//! Invariants: (1) chunks come in order, each checked; (2) only `Whole` says that they were all, and what they were; the
//! reader of a file that is named somewhere compares; (3) one operation in flight, and the next one only on request.

use std::path::{Path, PathBuf};

use coracle_base::checksum::crc32c_from;
use coracle_base::limits::BLOCK_BYTES;
use coracle_io::{Buffer, Disk, DiskDone, DiskError, DiskOk, DiskOp, FileId, FileMode};
use coracle_wal::{Identity, SnapshotFile};

use super::SnapshotError;
use super::format::{self, CHUNK_BYTES, SnapshotHead, SnapshotName};

/// What a completion brought.
#[derive(Debug)]
pub enum Progress {
    /// Nothing yet.
    Going,
    /// The snapshot's next bytes. [`SnapshotReader::next`] goes on.
    Chunk(Vec<u8>),
    /// There are no more, and this is what they were.
    Whole(SnapshotHead, SnapshotFile),
    /// The file is not to be had, or is not what it should be.
    Failed(SnapshotError),
}

#[derive(Debug)]
enum Step {
    Open,
    Head,
    Chunk,
    End,
    Close(Option<SnapshotError>),
}

/// A snapshot file being read.
#[derive(Debug)]
pub struct SnapshotReader {
    token: u64,
    path: PathBuf,
    identity: Identity,
    name: SnapshotName,
    step: Step,
    file: Option<FileId>,
    file_bytes: u64,
    offset: u64,
    /// Where the newest read began.
    read_at: u64,
    head: Option<SnapshotHead>,
    seed: u32,
    chunks: u32,
    whole: SnapshotFile,
}

impl SnapshotReader {
    /// Begins to read; the first chunk comes unasked. Completions come with `token`.
    pub fn begin<D: Disk>(
        disk: &mut D,
        dir: &Path,
        name: SnapshotName,
        identity: Identity,
        token: u64,
    ) -> Self {
        let path = name.path(dir);
        disk.start(token, DiskOp::Open { path: path.clone(), mode: FileMode::Read });
        Self {
            token,
            path,
            identity,
            name,
            step: Step::Open,
            file: None,
            file_bytes: 0,
            offset: 0,
            read_at: 0,
            head: None,
            seed: 0,
            chunks: 0,
            whole: SnapshotFile { file_no: name.file_no(), bytes: 0, crc: 0 },
        }
    }

    /// Which file.
    pub fn name(&self) -> SnapshotName {
        self.name
    }

    /// Where it read last: what is damaged begins there.
    pub(super) fn read_at(&self) -> u64 {
        self.read_at
    }

    /// It could not even be opened.
    pub(super) fn is_missing(&self) -> bool {
        self.file_bytes == 0
    }

    /// Asks for the next chunk, once the last one is done with.
    pub fn next<D: Disk>(&mut self, disk: &mut D) {
        let Some(file) = self.file else { return };
        let left = self.file_bytes.saturating_sub(self.offset) as usize;
        let is_end = left <= BLOCK_BYTES;
        let bytes = if is_end { BLOCK_BYTES } else { CHUNK_BYTES.min(left - BLOCK_BYTES) };
        self.step = if is_end { Step::End } else { Step::Chunk };
        self.read(disk, file, bytes);
    }

    /// Takes a completion.
    pub fn on_done<D: Disk>(&mut self, disk: &mut D, done: DiskDone) -> Progress {
        let step = std::mem::replace(&mut self.step, Step::Close(None));
        let (ok, buf) = match (done.result, done.buf) {
            (Ok(ok), buf) => (ok, buf),
            (Err(error), buf) => {
                if let Some(buf) = buf {
                    disk.recycle(buf);
                }
                return match step {
                    // It was read whole, or had failed already.
                    Step::Close(failed) => self.end(failed),
                    _ => self.fail(disk, self.disk_error(error)),
                };
            }
        };
        match (step, ok) {
            (Step::Close(failed), _) => self.end(failed),
            (Step::Open, DiskOk::Opened { file, bytes }) => {
                (self.file, self.file_bytes) = (Some(file), bytes);
                if bytes < 2 * BLOCK_BYTES as u64 || !bytes.is_multiple_of(BLOCK_BYTES as u64) {
                    return self.fail(disk, self.damaged("it has no trailer"));
                }
                self.step = Step::Head;
                self.read(disk, file, BLOCK_BYTES);
                Progress::Going
            }
            (step, DiskOk::Read { bytes }) => {
                let Some(buf) = buf else { return self.fail(disk, self.damaged("nothing was read")) };
                let result =
                    if bytes == buf.len() { self.on_read(disk, &step, &buf) } else { Err("it is cut short") };
                disk.recycle(buf);
                result.unwrap_or_else(|what| {
                    let error = self.damaged(what);
                    self.fail(disk, error)
                })
            }
            _ => self.fail(disk, self.damaged("the disk answered something else")),
        }
    }

    fn on_read<D: Disk>(
        &mut self,
        disk: &mut D,
        step: &Step,
        buf: &Buffer,
    ) -> Result<Progress, &'static str> {
        self.offset += buf.len() as u64;
        match step {
            Step::Head => {
                let (head, seed) = format::read_head(buf, self.identity.shards)?;
                self.check_head(&head)?;
                (self.head, self.seed) = (Some(head), seed);
                self.next(disk);
                Ok(Progress::Going)
            }
            Step::Chunk => {
                let body = format::read_chunk(buf, self.seed, self.chunks)?;
                self.chunks += 1;
                self.whole.bytes += body.len() as u64;
                self.whole.crc = crc32c_from(self.whole.crc, body);
                Ok(Progress::Chunk(body.to_vec()))
            }
            _ => {
                let end = format::read_end(buf, self.seed)?;
                if end != (self.chunks, self.whole.bytes, self.whole.crc) || self.offset != self.file_bytes {
                    return Err("the trailer speaks of other chunks");
                }
                self.close(disk, None);
                Ok(Progress::Going)
            }
        }
    }

    fn check_head(&self, head: &SnapshotHead) -> Result<(), &'static str> {
        if head.identity != self.identity {
            return Err("it is of another cluster, node, incarnation or shard");
        }
        let named = match self.name {
            SnapshotName::Snapshot { file_no } => head.file_no == file_no,
            SnapshotName::Checkpoint { file_no, group, index, term } => {
                (head.file_no, head.group, head.index, head.term) == (file_no, group, index, term)
            }
        };
        if named { Ok(()) } else { Err("its header and its name differ") }
    }

    fn read<D: Disk>(&mut self, disk: &mut D, file: FileId, bytes: usize) {
        let mut buf = disk.buffer(bytes);
        buf.resize(bytes);
        self.read_at = self.offset;
        disk.start(self.token, DiskOp::Read { file, offset: self.offset, buf });
    }

    fn damaged(&self, what: &'static str) -> SnapshotError {
        SnapshotError::Damaged { path: self.path.clone(), what }
    }

    fn disk_error(&self, error: DiskError) -> SnapshotError {
        match error {
            DiskError::NotFound { .. } => self.damaged("it is missing"),
            error => SnapshotError::Disk(error),
        }
    }

    /// Closes the file first.
    fn fail<D: Disk>(&mut self, disk: &mut D, error: SnapshotError) -> Progress {
        if self.file.is_none() {
            return Progress::Failed(error);
        }
        self.close(disk, Some(error));
        Progress::Going
    }

    fn close<D: Disk>(&mut self, disk: &mut D, failed: Option<SnapshotError>) {
        if let Some(file) = self.file.take() {
            self.step = Step::Close(failed);
            disk.start(self.token, DiskOp::Close { file });
        }
    }

    /// Stops reading: nothing may be in flight. The file is closed; no completion of it need be taken any more.
    pub fn abandon<D: Disk>(mut self, disk: &mut D) {
        self.close(disk, None);
    }

    fn end(&self, failed: Option<SnapshotError>) -> Progress {
        match (failed, self.head) {
            (None, Some(head)) => Progress::Whole(head, self.whole),
            (Some(error), _) => Progress::Failed(error),
            (None, None) => Progress::Failed(self.damaged("it has no header")),
        }
    }
}
