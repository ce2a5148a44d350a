//! Files as operations and completions. Paths are relative to the directory that the disk was opened on.

use std::path::{Path, PathBuf};

use crate::Buffer;

/// An open file of one [`Disk`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileMode {
    /// For reading (O_DIRECT where the file system can).
    Read,
    /// For reading and writing, created if missing. A completed write is *written*, not durable, until `Sync`.
    Write,
    /// As `Write`, and a completed write is *durable*, as the disk's [`Strategy`](crate::Strategy) says how.
    Durable,
}

/// One operation. Offsets and lengths of reads and writes are multiples of `limits::BLOCK_BYTES`.
#[derive(Debug)]
pub enum DiskOp {
    /// Opens a file; completes with [`DiskOk::Opened`].
    Open {
        /// Which.
        path: PathBuf,
        /// How.
        mode: FileMode,
    },
    /// Fills `buf` (its whole length) from `offset`; completes with [`DiskOk::Read`], fewer bytes only at the end. The
    /// buffer keeps its length; what lies beyond the bytes read is not the file's.
    Read {
        /// From where.
        file: FileId,
        /// Byte offset.
        offset: u64,
        /// Into this; `buf.len()` bytes are wanted.
        buf: Buffer,
    },
    /// Writes all of `buf`. A short write is continued by the driver; it completes only when all is there.
    Write {
        /// Where to.
        file: FileId,
        /// Byte offset.
        offset: u64,
        /// `buf.len()` bytes.
        buf: Buffer,
    },
    /// Writes zeros, so that later writes overwrite blocks that already exist. In pieces, off the hot path. In a durable
    /// file they are durable at the end.
    Fill {
        /// Where to.
        file: FileId,
        /// First byte.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// Makes what was written to the file durable, and its size (fdatasync).
    Sync {
        /// Which.
        file: FileId,
    },
    /// Makes creations, renames and removals in a directory durable. The empty path is the disk's own directory.
    SyncDir {
        /// Which.
        path: PathBuf,
    },
    /// Renames within the disk, replacing what is there.
    Rename {
        /// From.
        from: PathBuf,
        /// To.
        to: PathBuf,
    },
    /// Removes a file's name. Slow (tens of milliseconds for a large file), so never waited for on the hot path. Close
    /// the file first, or closing it is what takes the time.
    Unlink {
        /// Which.
        path: PathBuf,
    },
    /// Closes a file. Nothing else may be in flight on it.
    Close {
        /// Which.
        file: FileId,
    },
}

/// How an operation ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskOk {
    /// The file is open.
    Opened {
        /// Its handle.
        file: FileId,
        /// Its size in bytes.
        bytes: u64,
    },
    /// So many bytes were read.
    Read {
        /// Bytes.
        bytes: usize,
    },
    /// Everything else.
    Done,
}

/// Why an operation failed. What a failed write or sync left behind is unknown: never try it again in place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// There is no such file or directory.
    #[error("{path}: no such file or directory")]
    NotFound {
        /// Which.
        path: PathBuf,
    },
    /// The file system is full, or the quota is used up.
    #[error("{path}: no space left on the device; free some and start again")]
    Full {
        /// Which file was written.
        path: PathBuf,
    },
    /// This process may not.
    #[error("{path}: permission denied; check owner and mode of the directory")]
    Denied {
        /// Which.
        path: PathBuf,
    },
    /// The device or the kernel reports an error.
    #[error("{path}: {op} failed: {reason} (os error {code}); see the system's log, repair, and start again")]
    Failed {
        /// Which file.
        path: PathBuf,
        /// Which operation.
        op: &'static str,
        /// errno.
        code: i32,
        /// Its text.
        reason: String,
    },
    /// Another process has the directory locked.
    #[error("{path}: in use by another process; stop it, or use another directory")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The kernel or the file system cannot do what Coracle needs.
    #[error("{what}: {hint}")]
    Unsupported {
        /// What is missing.
        what: String,
        /// What to do.
        hint: String,
    },
    /// The (simulated) machine has crashed: nothing works any more.
    #[error("the machine has crashed")]
    Crashed,
}

/// A completion.
#[derive(Debug)]
pub struct DiskDone {
    /// The caller's word, as given to [`Disk::start`].
    pub token: u64,
    /// How it ended.
    pub result: Result<DiskOk, DiskError>,
    /// The operation's buffer, back.
    pub buf: Option<Buffer>,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// The file's name, without the directory.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// A directory of files, driven by operations and completions.
///
/// Completions come in any order. A buffer given to an operation comes back with its completion and not before.
pub trait Disk {
    /// A zero-length buffer, aligned for O_DIRECT, with room for at least `bytes`; from the registered pool if one fits.
    fn buffer(&mut self, bytes: usize) -> Buffer;

    /// Gives a buffer back for reuse.
    fn recycle(&mut self, buf: Buffer);

    /// Queues an operation. `token` comes back with its completion.
    fn start(&mut self, token: u64, op: DiskOp);

    /// Hands queued operations to the kernel without waiting, and lets it report what is finished.
    ///
    /// # Errors
    /// The ring itself failed: nothing more can be done with this disk.
    fn submit(&mut self) -> Result<(), DiskError>;

    /// Moves finished operations into `done`.
    fn completions(&mut self, done: &mut Vec<DiskDone>);

    /// Submits, then blocks until at least one operation is finished. Returns at once if none is in flight. For
    /// recovery and shutdown.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    fn wait(&mut self) -> Result<(), DiskError>;

    /// Operations started and not yet handed out by [`completions`](Self::completions).
    fn in_flight(&self) -> usize;

    /// System calls made so far by this driver and those that share its ring; 0 if it makes none.
    fn syscalls(&self) -> u64 {
        0
    }

    /// The files (not directories) in a directory, sorted by name. Blocks: for start-up. The empty path is the disk's
    /// own directory.
    ///
    /// # Errors
    /// [`DiskError::NotFound`] and the like.
    fn list(&mut self, dir: &Path) -> Result<Vec<DirEntry>, DiskError>;

    /// Creates a directory and makes its name durable, if it is missing. Blocks: for start-up.
    ///
    /// # Errors
    /// [`DiskError::Denied`], [`DiskError::Full`] and the like.
    fn make_dir(&mut self, dir: &Path) -> Result<(), DiskError>;
}

/// Files read by a thread that waits for them, by handles of its own, beside whoever owns the directory's [`Disk`].
pub trait BlockingRead {
    /// Fills `buf` (its whole length) from `offset` of a file; both are multiples of `limits::BLOCK_BYTES`. Returns how many
    /// bytes there were: fewer only at the file's end. Blocks.
    ///
    /// A file that was opened stays the one that is read under its path until another path is read, whatever becomes of
    /// its name.
    ///
    /// # Errors
    /// As an [`DiskOp::Open`] or a [`DiskOp::Read`].
    fn read(&mut self, path: &Path, offset: u64, buf: &mut Buffer) -> Result<usize, DiskError>;
}

/// Runs one operation to its end, for start-up code that goes step by step. Returns the buffer, if it had one.
///
/// # Errors
/// The operation's own.
///
/// # Panics
/// If anything else is in flight: its completion would be lost.
pub fn run<D: Disk + ?Sized>(disk: &mut D, op: DiskOp) -> Result<(DiskOk, Option<Buffer>), DiskError> {
    assert_eq!(disk.in_flight(), 0, "disk::run is for start-up: nothing else may be in flight");
    let mut done = Vec::with_capacity(1);
    disk.start(0, op);
    loop {
        disk.wait()?;
        disk.completions(&mut done);
        if let Some(one) = done.pop() {
            return one.result.map(|ok| (ok, one.buf));
        }
    }
}
