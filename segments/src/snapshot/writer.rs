//! Writes a snapshot file a chunk at a time, one operation in flight.
//!
//! ```text
//!   open .tmp → header → chunk, chunk … → trailer → sync → close → rename → sync the directory → whole
//!      └── any failure, or no longer wanted ──→ close → remove .tmp → gone
//!   another member's: open .part → what is there already is read and checked → chunk, chunk (a sync now and then) → as above
//!      └── it waits for more, in vain ──→ close → kept: a later one goes on with it
//! ```
//!
//! Invariants: (1) a file that is `Whole` is durable under its name, unless it is a checkpoint: that is only written, and
//! its checksums tell whether it survived; (2) what failed is removed, never tried again.

use std::path::{Path, PathBuf};

use coracle_base::checksum::crc32c_from;
use coracle_base::limits::BLOCK_BYTES;
use coracle_io::{Buffer, Disk, DiskDone, DiskError, DiskOk, DiskOp, FileId, FileMode};
use coracle_wal::SnapshotFile;

use super::format::{self, CHUNK_BODY_BYTES, PartName, SnapshotHead, SnapshotName};

/// How far a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// It is being written.
    Going,
    /// It is there, whole.
    Whole(SnapshotFile),
    /// It is not, and its name is free; with what went wrong, if something did.
    Gone(Option<DiskError>),
    /// It is closed, as far as it has come.
    Kept,
}

/// What the disk is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Open,
    /// Opening what is to be promoted.
    Promote,
    Write,
    /// Reading what an earlier process wrote.
    ScanHead,
    ScanChunk,
    /// The name of a part has to last, and now and then its chunks.
    SyncPartDir,
    SyncPart,
    /// Nothing: bytes are wanted.
    Idle,
    Trailer,
    Sync,
    Close,
    Rename,
    SyncDir,
    CloseFailed,
    CloseKept,
    Remove,
}

/// Chunks of a part that a power failure may cost.
const UNSYNCED_CHUNKS_MAX: u32 = 16;

/// A snapshot file being written.
#[derive(Debug)]
pub struct SnapshotWriter {
    token: u64,
    dir: PathBuf,
    /// What it is called until it is whole.
    from: PathBuf,
    name: SnapshotName,
    head: SnapshotHead,
    step: Step,
    file: Option<FileId>,
    offset: u64,
    seed: u32,
    chunks: u32,
    whole: SnapshotFile,
    body: Vec<u8>,
    /// What it has to become, if another member sends it.
    wanted: Option<SnapshotFile>,
    /// Bytes of the file when it was opened.
    found_bytes: u64,
    unwanted: bool,
    is_kept: bool,
    error: Option<DiskError>,
}

impl SnapshotWriter {
    /// Begins a file in `dir`: a snapshot, or a checkpoint. Its completions come with `token`.
    pub fn begin<D: Disk>(
        disk: &mut D,
        dir: &Path,
        head: SnapshotHead,
        is_checkpoint: bool,
        token: u64,
    ) -> Self {
        let SnapshotHead { file_no, group, index, term, .. } = head;
        let name = match is_checkpoint {
            true => SnapshotName::Checkpoint { file_no, group, index, term },
            false => SnapshotName::Snapshot { file_no },
        };
        let from = format::unfinished(dir, file_no);
        let whole = SnapshotFile { file_no, bytes: 0, crc: 0 };
        Self::open(disk, Step::Open, (dir, from), name, head, whole, token)
    }

    /// Makes a checkpoint a snapshot: durable, and under its other name. If that fails, it is gone.
    pub fn promote<D: Disk>(
        disk: &mut D,
        dir: &Path,
        head: SnapshotHead,
        whole: SnapshotFile,
        token: u64,
    ) -> Self {
        let SnapshotHead { file_no, group, index, term, .. } = head;
        let from = SnapshotName::Checkpoint { file_no, group, index, term }.path(dir);
        let name = SnapshotName::Snapshot { file_no };
        Self::open(disk, Step::Promote, (dir, from), name, head, whole, token)
    }

    /// Begins or goes on with another member's snapshot. `head` names the file that it will be.
    pub fn receive<D: Disk>(
        disk: &mut D,
        dir: &Path,
        head: SnapshotHead,
        part: PartName,
        token: u64,
    ) -> Self {
        let file_no = part.whole.file_no;
        let (name, whole) = (SnapshotName::Snapshot { file_no }, SnapshotFile { file_no, bytes: 0, crc: 0 });
        let writer = Self::open(disk, Step::Open, (dir, part.path(dir)), name, head, whole, token);
        Self { wanted: Some(part.whole), ..writer }
    }

    fn open<D: Disk>(
        disk: &mut D,
        step: Step,
        (dir, from): (&Path, PathBuf),
        name: SnapshotName,
        head: SnapshotHead,
        whole: SnapshotFile,
        token: u64,
    ) -> Self {
        disk.start(token, DiskOp::Open { path: from.clone(), mode: FileMode::Write });
        Self {
            token,
            dir: dir.to_owned(),
            from,
            name,
            head,
            step,
            file: None,
            offset: 0,
            seed: 0,
            chunks: 0,
            whole,
            body: Vec::new(),
            wanted: None,
            found_bytes: 0,
            unwanted: false,
            is_kept: false,
            error: None,
        }
    }

    /// Which snapshot it is.
    pub fn head(&self) -> &SnapshotHead {
        &self.head
    }

    /// The file's name when it is whole.
    pub fn name(&self) -> SnapshotName {
        self.name
    }

    /// Whether it waits for bytes.
    pub fn is_idle(&self) -> bool {
        self.step == Step::Idle && !self.unwanted
    }

    /// Bytes that the next chunk still takes.
    pub fn room(&self) -> usize {
        CHUNK_BODY_BYTES.saturating_sub(self.body.len())
    }

    /// Where the snapshot's next bytes are appended.
    pub fn body(&mut self) -> &mut Vec<u8> {
        &mut self.body
    }

    /// Chunks that are written, or being written.
    pub fn chunks(&self) -> u64 {
        u64::from(self.chunks)
    }

    /// Whether another member's snapshot is complete, and what it should be.
    pub fn judge(&self) -> Option<bool> {
        let wanted = self.wanted.filter(|wanted| self.whole.bytes >= wanted.bytes)?;
        Some(self.whole == wanted)
    }

    /// Writes the next chunk of another member's snapshot. Does nothing unless [`is_idle`](Self::is_idle).
    pub fn put_chunk<D: Disk>(&mut self, disk: &mut D, chunk: &[u8]) {
        if self.is_idle() {
            self.body.extend_from_slice(chunk);
            self.write(disk, true);
        }
    }

    /// Closes another member's snapshot as far as it has come, when the disk is done with what it is at.
    pub fn keep<D: Disk>(&mut self, disk: &mut D) {
        (self.unwanted, self.is_kept) = (true, true);
        if self.step == Step::Idle {
            self.clean_up(disk);
        }
    }

    /// Writes the next chunk if it is full, or if the snapshot has `ended`; after the last one the trailer. Does nothing
    /// unless [`is_idle`](Self::is_idle).
    pub fn write<D: Disk>(&mut self, disk: &mut D, ended: bool) {
        let Some(file) = self.file.filter(|_| self.is_idle()) else { return };
        let bytes = self.body.len().min(CHUNK_BODY_BYTES);
        if bytes == CHUNK_BODY_BYTES || ended && bytes > 0 {
            let mut buf = disk.buffer(format::chunk_span(bytes));
            format::put_chunk(self.seed, self.chunks, &self.body[..bytes], &mut buf);
            let (offset, body) = (self.offset, std::mem::take(&mut self.body));
            self.count(&body[..bytes], buf.len());
            self.body = body;
            self.body.drain(..bytes);
            self.start(disk, Step::Write, DiskOp::Write { file, offset, buf });
        } else if ended {
            let mut buf = disk.buffer(BLOCK_BYTES);
            format::put_end(self.seed, self.chunks, &self.whole, &mut buf);
            self.start(disk, Step::Trailer, DiskOp::Write { file, offset: self.offset, buf });
        }
    }

    /// The file is not wanted any more: it goes when the disk is done with what it is at. One that is whole stays.
    pub fn abandon<D: Disk>(&mut self, disk: &mut D) {
        self.unwanted = true;
        if self.step == Step::Idle {
            self.clean_up(disk);
        }
    }

    /// Takes a completion.
    pub fn on_done<D: Disk>(&mut self, disk: &mut D, done: DiskDone) -> Written {
        let is_scan = matches!(self.step, Step::ScanHead | Step::ScanChunk);
        if let (true, false, Ok(DiskOk::Read { bytes }), Some(buf)) =
            (is_scan, self.unwanted, &done.result, &done.buf)
        {
            let is_sound = *bytes == buf.len() && self.is_found(buf);
            done.buf.into_iter().for_each(|buf| disk.recycle(buf));
            self.scan(disk, is_sound);
            return Written::Going;
        }
        if let Some(buf) = done.buf {
            disk.recycle(buf);
        }
        match (self.step, done.result) {
            (Step::Remove, _) => return Written::Gone(self.error.take()),
            (Step::CloseKept, _) => return Written::Kept,
            (Step::CloseFailed, _) => self.remove(disk),
            (Step::SyncDir, Ok(_)) => return Written::Whole(self.whole),
            (Step::Rename, Ok(_)) if matches!(self.name, SnapshotName::Checkpoint { .. }) => {
                return Written::Whole(self.whole);
            }
            (Step::Open, Ok(DiskOk::Opened { file, bytes })) => self.on_opened(disk, file, bytes),
            (Step::Promote, Ok(DiskOk::Opened { file, .. })) if !self.unwanted => {
                self.file = Some(file);
                self.start(disk, Step::Sync, DiskOp::Sync { file });
            }
            (Step::Promote, Ok(DiskOk::Opened { file, .. })) => {
                self.file = Some(file);
                self.clean_up(disk);
            }
            (step, Ok(_)) if !self.unwanted || matches!(step, Step::Close | Step::Rename) => {
                self.on_step(disk, step);
            }
            (step, result) => {
                if step == Step::Close {
                    self.file = None;
                }
                self.error = result.err();
                self.is_kept &= self.error.is_none();
                self.clean_up(disk);
            }
        }
        Written::Going
    }

    fn on_opened<D: Disk>(&mut self, disk: &mut D, file: FileId, bytes: u64) {
        (self.file, self.found_bytes) = (Some(file), bytes);
        if self.unwanted {
            return self.clean_up(disk);
        }
        if self.wanted.is_some() && bytes >= BLOCK_BYTES as u64 {
            return self.read(disk, Step::ScanHead, BLOCK_BYTES);
        }
        self.write_head(disk, file);
    }

    fn write_head<D: Disk>(&mut self, disk: &mut D, file: FileId) {
        let mut buf = disk.buffer(BLOCK_BYTES);
        self.seed = format::put_head(&self.head, &mut buf);
        self.offset = BLOCK_BYTES as u64;
        self.start(disk, Step::Write, DiskOp::Write { file, offset: 0, buf });
    }

    fn read<D: Disk>(&mut self, disk: &mut D, step: Step, bytes: usize) {
        let Some(file) = self.file else { return };
        let mut buf = disk.buffer(bytes);
        buf.resize(bytes);
        self.start(disk, step, DiskOp::Read { file, offset: self.offset, buf });
    }

    /// Whether what was read is what the file should have there.
    fn is_found(&mut self, buf: &Buffer) -> bool {
        let bytes = self.next_bytes();
        if self.step == Step::ScanHead {
            let found = format::read_head(buf, self.head.identity.shards);
            let Some((_, seed)) = found.ok().filter(|(head, _)| *head == self.head) else { return false };
            (self.seed, self.offset) = (seed, BLOCK_BYTES as u64);
            return true;
        }
        let Ok(body) = format::read_chunk(buf, self.seed, self.chunks) else { return false };
        if body.len() == bytes {
            self.count(body, buf.len());
        }
        body.len() == bytes
    }

    /// Looks at what comes next of a part that was found; where that ends, or is not sound, it is gone on with.
    fn scan<D: Disk>(&mut self, disk: &mut D, is_sound: bool) {
        let bytes = self.next_bytes();
        let span = format::chunk_span(bytes);
        match self.file {
            Some(file) if !is_sound && self.step == Step::ScanHead => self.write_head(disk, file),
            _ if is_sound && bytes > 0 && self.offset + span as u64 <= self.found_bytes => {
                self.read(disk, Step::ScanChunk, span);
            }
            _ => self.step = Step::Idle,
        }
    }

    /// Of the chunk that comes next.
    fn next_bytes(&self) -> usize {
        self.wanted.map_or(0, |wanted| format::chunk_bytes(wanted.bytes, self.chunks()))
    }

    fn count(&mut self, body: &[u8], span: usize) {
        self.whole.crc = crc32c_from(self.whole.crc, body);
        self.whole.bytes += body.len() as u64;
        self.chunks += 1;
        self.offset += span as u64;
    }

    /// A step went well: the next one.
    fn on_step<D: Disk>(&mut self, disk: &mut D, step: Step) {
        let is_checkpoint = matches!(self.name, SnapshotName::Checkpoint { .. });
        match (step, self.file) {
            (Step::Trailer, Some(file)) if !is_checkpoint => {
                self.start(disk, Step::Sync, DiskOp::Sync { file })
            }
            (Step::Trailer | Step::Sync, Some(file)) => self.start(disk, Step::Close, DiskOp::Close { file }),
            (Step::Close, _) => {
                self.file = None;
                let (from, to) = (self.from.clone(), self.name.path(&self.dir));
                self.start(disk, Step::Rename, DiskOp::Rename { from, to });
            }
            (Step::Rename, _) => self.start(disk, Step::SyncDir, DiskOp::SyncDir { path: self.dir.clone() }),
            (Step::Write, _) if self.wanted.is_some() && self.chunks == 0 => {
                self.start(disk, Step::SyncPartDir, DiskOp::SyncDir { path: self.dir.clone() });
            }
            (Step::Write, Some(file))
                if self.wanted.is_some() && self.chunks.is_multiple_of(UNSYNCED_CHUNKS_MAX) =>
            {
                self.start(disk, Step::SyncPart, DiskOp::Sync { file });
            }
            _ => self.step = Step::Idle,
        }
    }

    fn clean_up<D: Disk>(&mut self, disk: &mut D) {
        match self.file.take() {
            Some(file) if self.is_kept => self.start(disk, Step::CloseKept, DiskOp::Close { file }),
            Some(file) => self.start(disk, Step::CloseFailed, DiskOp::Close { file }),
            None => self.remove(disk),
        }
    }

    fn remove<D: Disk>(&mut self, disk: &mut D) {
        let path = self.from.clone();
        self.start(disk, Step::Remove, DiskOp::Unlink { path });
    }

    fn start<D: Disk>(&mut self, disk: &mut D, step: Step, op: DiskOp) {
        self.step = step;
        disk.start(self.token, op);
    }
}
