//! The real [`Disk`]: a locked directory on a ring. Starting an operation queues its first ring operation; each
//! completion queues the next (task.rs) or becomes a [`DiskDone`].
//!
//! Invariants: (1) each operation has one ring operation in flight, which owns its buffer and its file; (2) file
//! numbers are never used again, so a stale one is an error and never another file; (3) the lock outlives every
//! operation: a disk that is dropped first waits for the kernel.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::mem::{self, ManuallyDrop};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use coracle_base::limits::BLOCK_BYTES;
use slab::Slab;

use super::core::{ClientId, Completion, SharedRing};
use super::lock::{LOCK_FILE, lock_dir};
use super::ops::{RingOp, Transfer, WriteThrough};
use super::probe::{self, FileSystem};
use super::task::{FILL_PIECE_BYTES, Next, Step, Task};
use super::{Buffer, disk_error, path_error};
use crate::disk::DirEntry;
use crate::{Disk, DiskDone, DiskError, DiskOk, DiskOp, FileId, FileMode, Strategy};

fn wants_direct(strategy: Strategy) -> bool {
    matches!(strategy, Strategy::Direct | Strategy::DirectFsync | Strategy::None)
}

/// How to write to a durable file, and whether a sync must follow.
fn write_through(strategy: Strategy) -> (WriteThrough, bool) {
    match strategy {
        Strategy::Direct => (WriteThrough::Data, false),
        Strategy::Sync => (WriteThrough::All, false),
        Strategy::DirectFsync | Strategy::Buffered => (WriteThrough::No, true),
        Strategy::None => (WriteThrough::No, false),
    }
}

/// How a directory is opened.
#[derive(Debug, Clone, Copy)]
pub struct DiskOptions {
    /// Refuse the directory if anybody else has it open, and keep others out. Tools that only look do without.
    pub lock: bool,
    /// What durable means. Where O_DIRECT is refused it falls back, with a warning; see [`RingDisk::refuse_fallback`].
    pub strategy: Strategy,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self { lock: true, strategy: Strategy::Direct }
    }
}

struct OpenFile {
    file: Arc<File>,
    path: Rc<Path>,
    mode: FileMode,
}

struct Pending {
    token: u64,
    path: Rc<Path>,
    task: Task,
    #[cfg(feature = "faults")]
    planned: super::faults::Planned,
}

impl Pending {
    fn new(token: u64, path: Rc<Path>, task: Task) -> Self {
        Self {
            token,
            path,
            task,
            #[cfg(feature = "faults")]
            planned: Default::default(),
        }
    }
}

/// How a disk operation begins: with a ring operation, or it is over at once.
enum Begin {
    Task(Rc<Path>, Step, RingOp),
    Done(DiskOk, Option<Buffer>),
}

/// A directory on a ring.
pub struct RingDisk {
    ring: SharedRing,
    client: ClientId,
    root: PathBuf,
    dir: Arc<File>,
    lock: Option<File>,
    file_system: FileSystem,
    /// As it was asked for.
    asked: Strategy,
    /// A fallback is told once.
    fallback_told: bool,
    files: BTreeMap<FileId, OpenFile>,
    next_file: u32,
    pending: Slab<Pending>,
    ready: Vec<DiskDone>,
    #[cfg(feature = "faults")]
    faults: super::faults::Faults,
}

impl RingDisk {
    /// Opens a directory, and creates it if it is missing. Blocks: for start-up.
    ///
    /// # Errors
    /// [`DiskError::InUse`] if somebody else has it; [`DiskError::Denied`] and the like.
    pub fn open(ring: &SharedRing, root: &Path, options: DiskOptions) -> Result<Self, DiskError> {
        create_root(root)?;
        let root = root.canonicalize().map_err(|error| path_error(root, "open", &error))?;
        let dir = File::open(&root).map_err(|error| path_error(&root, "open", &error))?;
        let lock = if options.lock { Some(lock_dir(&root)?) } else { None };
        let file_system = probe::file_system(&dir, &root)?;
        if !options.strategy.is_durable() {
            tracing::warn!(dir = %root.display(), "strategy `none`: a power loss loses acknowledged data");
        }
        let client = ring.borrow_mut().add_client();
        Ok(Self {
            ring: ring.clone(),
            client,
            root,
            dir: Arc::new(dir),
            lock,
            file_system,
            asked: options.strategy,
            fallback_told: false,
            files: BTreeMap::new(),
            next_file: 0,
            pending: Slab::new(),
            ready: Vec::new(),
            #[cfg(feature = "faults")]
            faults: super::faults::Faults::from_env()?,
        })
    }

    /// What durable files are written with: as asked, or its fallback where O_DIRECT is refused.
    pub fn strategy(&self) -> Strategy {
        if self.file_system.direct { self.asked } else { self.asked.without_direct() }
    }

    /// For those who must have what they asked for, such as benches.
    ///
    /// # Errors
    /// This file system refuses O_DIRECT, and the strategy would fall back to another one.
    pub fn refuse_fallback(&self) -> Result<(), DiskError> {
        let (asked, other) = (self.asked, self.strategy());
        if asked == other {
            return Ok(());
        }
        let (dir, name) = (self.root.display(), &self.file_system.name);
        Err(DiskError::Unsupported {
            what: format!("{dir} is on {name}, which cannot do O_DIRECT in blocks of {BLOCK_BYTES} bytes"),
            hint: format!("`{asked}` is not possible there; ask for `{other}`, or use another directory"),
        })
    }

    fn begin(&mut self, op: DiskOp) -> Result<Begin, (DiskError, Option<Buffer>)> {
        let begun = match op {
            DiskOp::Read { file, offset, buf } => {
                match self.check_transfer("read", file, offset, buf.len()) {
                    Ok(open) => return Ok(begin_read(open, offset, buf)),
                    Err(error) => return Err((error, Some(buf))),
                }
            }
            DiskOp::Write { file, offset, buf } => {
                match self.check_transfer("write", file, offset, buf.len()) {
                    Ok(open) => return Ok(self.begin_write(open, offset, buf)),
                    Err(error) => return Err((error, Some(buf))),
                }
            }
            DiskOp::Open { path, mode } => self.begin_open(&path, mode),
            DiskOp::Fill { file, offset, bytes } => self.begin_fill(file, offset, bytes),
            DiskOp::Sync { file } => self.begin_sync(file),
            DiskOp::SyncDir { path } => self.begin_sync_dir(&path),
            DiskOp::Rename { from, to } => self.begin_rename(&from, &to),
            DiskOp::Unlink { path } => self.begin_unlink(&path),
            DiskOp::Close { file } => self.begin_close(file),
        };
        begun.map_err(|error| (error, None))
    }

    fn begin_open(&mut self, path: &Path, mode: FileMode) -> Result<Begin, DiskError> {
        if mode == FileMode::Durable {
            self.check_durable()?;
            self.tell_fallback();
        }
        let direct = self.file_system.direct && wants_direct(self.asked);
        let access = if mode == FileMode::Read { libc::O_RDONLY } else { libc::O_RDWR | libc::O_CREAT };
        let flags = access | if direct { libc::O_DIRECT } else { 0 };
        let name = self.name("open", path)?;
        Ok(Begin::Task(path.into(), Step::Open { mode }, RingOp::Open { dir: self.dir.clone(), name, flags }))
    }

    /// Whether this file system can keep what the strategy promises.
    fn check_durable(&self) -> Result<(), DiskError> {
        let FileSystem { name, volatile, .. } = &self.file_system;
        if !*volatile || !self.asked.is_durable() {
            return Ok(());
        }
        Err(DiskError::Unsupported {
            what: format!("{} is on {name}, which keeps nothing over a power loss", self.root.display()),
            hint: "use another directory, or the strategy `none` for tests".into(),
        })
    }

    fn tell_fallback(&mut self) {
        let (asked, strategy) = (self.asked, self.strategy());
        if asked != strategy && !self.fallback_told {
            self.fallback_told = true;
            let (dir, name) = (self.root.display(), &self.file_system.name);
            tracing::warn!(%dir, "{name} cannot do O_DIRECT: strategy `{asked}` falls back to `{strategy}`");
        }
    }

    fn begin_write(&self, open: &OpenFile, offset: u64, buf: Buffer) -> Begin {
        if buf.is_empty() {
            return Begin::Done(DiskOk::Done, Some(buf));
        }
        let (through, sync_after) = match open.mode {
            FileMode::Durable => write_through(self.strategy()),
            FileMode::Read | FileMode::Write => (WriteThrough::No, false),
        };
        let transfer = Transfer { file: open.file.clone(), offset, buf, at: 0 };
        Begin::Task(open.path.clone(), Step::Write { sync_after }, RingOp::Write(transfer, through))
    }

    fn begin_fill(&mut self, file: FileId, offset: u64, bytes: u64) -> Result<Begin, DiskError> {
        let open = self.check_transfer("fill", file, offset, usize::try_from(bytes).unwrap_or(usize::MAX))?;
        if bytes == 0 {
            return Ok(Begin::Done(DiskOk::Done, None));
        }
        let reserve = RingOp::Allocate { file: open.file.clone(), offset, bytes };
        let path = open.path.clone();
        let sync_after = open.mode == FileMode::Durable && self.asked.is_durable();
        let zeros = self.buffer(FILL_PIECE_BYTES.min(bytes as usize));
        Ok(Begin::Task(path, Step::Reserve { zeros, sync_after }, reserve))
    }

    fn begin_sync(&self, file: FileId) -> Result<Begin, DiskError> {
        let open = self.file("sync", file)?;
        if !self.asked.is_durable() {
            return Ok(Begin::Done(DiskOk::Done, None));
        }
        let sync = RingOp::Sync { file: open.file.clone(), data_only: true };
        Ok(Begin::Task(open.path.clone(), Step::Sync, sync))
    }

    fn begin_sync_dir(&self, path: &Path) -> Result<Begin, DiskError> {
        if path.as_os_str().is_empty() {
            let sync = RingOp::Sync { file: self.dir.clone(), data_only: false };
            return Ok(Begin::Task(path.into(), Step::Sync, sync));
        }
        let name = self.name("sync", path)?;
        let open = RingOp::Open { dir: self.dir.clone(), name, flags: libc::O_RDONLY | libc::O_DIRECTORY };
        Ok(Begin::Task(path.into(), Step::OpenDir, open))
    }

    fn begin_rename(&self, from: &Path, to: &Path) -> Result<Begin, DiskError> {
        let names = (self.name("rename", from)?, self.name("rename", to)?);
        let rename = RingOp::Rename { dir: self.dir.clone(), from: names.0, to: names.1 };
        Ok(Begin::Task(from.into(), Step::Rename, rename))
    }

    fn begin_unlink(&self, path: &Path) -> Result<Begin, DiskError> {
        let unlink = RingOp::Unlink { dir: self.dir.clone(), name: self.name("unlink", path)? };
        Ok(Begin::Task(path.into(), Step::Unlink, unlink))
    }

    fn begin_close(&mut self, file: FileId) -> Result<Begin, DiskError> {
        self.file("close", file)?;
        let Some(open) = self.files.remove(&file) else { return Ok(Begin::Done(DiskOk::Done, None)) };
        Ok(match Arc::try_unwrap(open.file) {
            Ok(file) => {
                let file = ManuallyDrop::new(file);
                Begin::Task(open.path, Step::Close, RingOp::Close { file })
            }
            // Something is still in flight on it, against the rules: that operation's end closes it.
            Err(_) => Begin::Done(DiskOk::Done, None),
        })
    }

    fn file(&self, op: &'static str, file: FileId) -> Result<&OpenFile, DiskError> {
        let unknown = || disk_error(&self.root.join(format!("file number {}", file.0)), op, libc::EBADF);
        self.files.get(&file).ok_or_else(unknown)
    }

    /// Refuses what O_DIRECT would refuse, on every file system alike.
    fn check_transfer(
        &self,
        op: &'static str,
        file: FileId,
        offset: u64,
        bytes: usize,
    ) -> Result<&OpenFile, DiskError> {
        let open = self.file(op, file)?;
        let aligned = offset.is_multiple_of(BLOCK_BYTES as u64) && bytes.is_multiple_of(BLOCK_BYTES);
        let end = offset.checked_add(bytes as u64).filter(|end| *end <= i64::MAX as u64);
        if aligned && end.is_some() {
            return Ok(open);
        }
        let reason =
            format!("{bytes} bytes at offset {offset} are not whole blocks of {BLOCK_BYTES} in a file");
        Err(DiskError::Failed { path: self.root.join(&open.path), op, code: libc::EINVAL, reason })
    }

    /// A path for the kernel: it must stay within the disk's directory.
    fn name(&self, op: &'static str, path: &Path) -> Result<CString, DiskError> {
        let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
        let name = CString::new(path.as_os_str().as_bytes()).ok().filter(|name| inside && !name.is_empty());
        name.ok_or_else(|| disk_error(&self.root.join(path), op, libc::EINVAL))
    }

    fn push(&mut self, pending: Pending, op: RingOp) {
        #[cfg(feature = "faults")]
        let (pending, op) = {
            let (planned, op) = self.faults.plan(&pending.path, pending.task.is_fill(), op);
            (Pending { planned, ..pending }, op)
        };
        self.hand_over(pending, op);
    }

    fn hand_over(&mut self, pending: Pending, op: RingOp) {
        let key = self.pending.insert(pending);
        self.ring.borrow_mut().push(self.client, key as u64, op);
    }

    /// Takes our completions off the ring, each to its operation's next step or end.
    fn advance(&mut self) {
        loop {
            // A statement of its own: the ring must not stay borrowed while the operation goes on.
            let completion = self.ring.borrow_mut().take(self.client);
            let Some(completion) = completion else { break };
            self.on_completion(completion);
        }
        self.ring.borrow_mut().set_ready(self.client, !self.ready.is_empty());
    }

    fn on_completion(&mut self, Completion { token: key, result, op }: Completion) {
        let Some(op) = op else { return }; // more to come: no operation of ours is of that kind
        let pending = self.pending.remove(key as usize);
        #[cfg(feature = "faults")]
        let (pending, (result, op)) = {
            let mut pending = pending;
            match pending.planned.meet(result, op) {
                Ok(met) => (pending, met),
                Err(held) => return self.hand_over(pending, held),
            }
        };
        let Pending { token, path, task, .. } = pending;
        let (name, is_fill) = (task.name(), task.is_fill());
        let (result, buf) = match task.on_completion(result, op) {
            Next::Push(task, op) => return self.push(Pending::new(token, path, task), op),
            Next::Opened(file, mode) => (self.on_opened(file, mode, &path), None),
            Next::Done(ok, buf) => (Ok(ok), buf),
            Next::Failed(code, buf) => (Err(disk_error(&self.root.join(&path), name, code)), buf),
        };
        let buf = match buf {
            Some(zeros) if is_fill => {
                self.recycle(zeros);
                None
            }
            buf => buf,
        };
        self.ready.push(DiskDone { token, result, buf });
    }

    fn on_opened(&mut self, file: File, mode: FileMode, path: &Rc<Path>) -> Result<DiskOk, DiskError> {
        // A plain call: the inode is in memory, we have just opened it.
        let metadata = file.metadata().map_err(|error| path_error(&self.root.join(path), "open", &error))?;
        if metadata.is_dir() {
            return Err(disk_error(&self.root.join(path), "open", libc::EISDIR));
        }
        if mode != FileMode::Read {
            // For as long as anything is in flight on it, even if this process is killed: see lock.rs.
            file.try_lock_shared()
                .map_err(|error| path_error(&self.root.join(path), "lock", &error.into()))?;
        }
        let id = FileId(self.next_file);
        self.next_file += 1;
        self.files.insert(id, OpenFile { file: Arc::new(file), path: path.clone(), mode });
        Ok(DiskOk::Opened { file: id, bytes: metadata.len() })
    }
}

fn begin_read(open: &OpenFile, offset: u64, buf: Buffer) -> Begin {
    if buf.is_empty() {
        return Begin::Done(DiskOk::Read { bytes: 0 }, Some(buf));
    }
    let transfer = Transfer { file: open.file.clone(), offset, buf, at: 0 };
    Begin::Task(open.path.clone(), Step::Read, RingOp::Read(transfer))
}

impl Disk for RingDisk {
    fn buffer(&mut self, bytes: usize) -> Buffer {
        self.ring.borrow_mut().buffer(bytes)
    }

    fn recycle(&mut self, buf: Buffer) {
        self.ring.borrow_mut().recycle(buf);
    }

    fn start(&mut self, token: u64, op: DiskOp) {
        let (result, buf) = match self.begin(op) {
            Ok(Begin::Task(path, step, op)) => {
                return self.push(Pending::new(token, path, Task::new(step)), op);
            }
            Ok(Begin::Done(ok, buf)) => (Ok(ok), buf),
            Err((error, buf)) => (Err(error), buf),
        };
        self.ready.push(DiskDone { token, result, buf });
        self.ring.borrow_mut().set_ready(self.client, true);
    }

    fn submit(&mut self) -> Result<(), DiskError> {
        self.ring.borrow_mut().submit()
    }

    fn completions(&mut self, done: &mut Vec<DiskDone>) {
        self.advance();
        done.append(&mut self.ready);
        self.ring.borrow_mut().set_ready(self.client, false);
    }

    fn wait(&mut self) -> Result<(), DiskError> {
        loop {
            self.advance();
            if !self.ready.is_empty() || self.pending.is_empty() {
                return self.submit();
            }
            self.ring.borrow_mut().wait(None)?;
        }
    }

    fn in_flight(&self) -> usize {
        self.pending.len() + self.ready.len()
    }

    fn syscalls(&self) -> u64 {
        self.ring.borrow().enters()
    }

    fn list(&mut self, dir: &Path) -> Result<Vec<DirEntry>, DiskError> {
        let path = self.root.join(dir);
        let failed = |error| path_error(&path, "list", &error);
        let is_root = dir.as_os_str().is_empty();
        if !is_root {
            self.name("list", dir)?;
        }
        let mut entries = Vec::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let metadata = entry.metadata().map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if metadata.is_file() && !(is_root && name == LOCK_FILE) {
                entries.push(DirEntry { name, bytes: metadata.len() });
            }
        }
        entries.sort_unstable();
        Ok(entries)
    }

    fn make_dir(&mut self, dir: &Path) -> Result<(), DiskError> {
        self.name("create", dir)?;
        create_dir_durably(&self.root.join(dir))
    }
}

impl Drop for RingDisk {
    fn drop(&mut self) {
        if let Err(error) = self.ring.borrow_mut().drain_client(self.client) {
            tracing::error!(%error, dir = %self.root.display(), "operations still in flight: it stays locked");
            mem::forget(self.lock.take());
        }
    }
}

/// Creates a disk's own directory and what is missing above it.
fn create_root(path: &Path) -> Result<(), DiskError> {
    if path.is_dir() {
        return Ok(());
    }
    create_root(parent_of(path))?;
    create_dir_durably(path)
}

/// Creates a directory, if it is missing, and makes its name durable even if it was there: it may stem from a run that
/// crashed before it had done so.
fn create_dir_durably(path: &Path) -> Result<(), DiskError> {
    match fs::DirBuilder::new().mode(0o750).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(path_error(path, "create", &error));
        }
        _ => {}
    }
    let parent = parent_of(path);
    let synced = File::open(parent).and_then(|parent| parent.sync_all());
    synced.map_err(|error| path_error(parent, "sync", &error))
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flush of each strategy cannot be seen from outside; losing it would only show in a power cut.
    #[test]
    fn a_durable_write_reaches_the_device_as_its_strategy_says() {
        use Strategy::*;
        let table = [
            // strategy, O_DIRECT, the write's own flag, fdatasync after it
            (Direct, true, WriteThrough::Data, false),
            (DirectFsync, true, WriteThrough::No, true),
            (Buffered, false, WriteThrough::No, true),
            (Sync, false, WriteThrough::All, false),
            (None, true, WriteThrough::No, false),
        ];
        let dir = std::env::temp_dir();
        let ring = super::super::Ring::new(&Default::default()).unwrap();
        for (strategy, direct, through, sync_after) in table {
            let mut disk = RingDisk::open(&ring, &dir, DiskOptions { lock: false, strategy }).unwrap();
            disk.file_system = FileSystem { name: "ext4".into(), direct: true, volatile: false };
            let opened = disk.begin_open(Path::new("file"), FileMode::Durable).unwrap();
            let Begin::Task(_, _, RingOp::Open { flags, .. }) = opened else { panic!("{strategy:?}") };
            assert_eq!(flags & libc::O_DIRECT != 0, direct, "{strategy:?}");

            let written = |mode| {
                let mut buf = Buffer::with_capacity(BLOCK_BYTES);
                buf.resize(BLOCK_BYTES);
                let open = OpenFile { file: disk.dir.clone(), path: Path::new("file").into(), mode };
                match disk.begin_write(&open, 0, buf) {
                    Begin::Task(_, Step::Write { sync_after }, RingOp::Write(_, through)) => {
                        (through, sync_after)
                    }
                    _ => panic!("{strategy:?}"),
                }
            };
            assert_eq!(written(FileMode::Durable), (through, sync_after), "{strategy:?}");
            assert_eq!(written(FileMode::Write), (WriteThrough::No, false), "{strategy:?}");
        }
    }

    #[test]
    fn a_file_system_without_direct_io_falls_back_and_a_bench_refuses_that() {
        let ring = super::super::Ring::new(&Default::default()).unwrap();
        for strategy in Strategy::ALL {
            let options = DiskOptions { lock: false, strategy };
            let mut disk = RingDisk::open(&ring, &std::env::temp_dir(), options).unwrap();
            disk.file_system = FileSystem { name: "zfs".into(), direct: false, volatile: false };
            let other = strategy.without_direct();
            assert_eq!(disk.strategy(), other);
            let opened = disk.begin_open(Path::new("file"), FileMode::Durable).unwrap();
            let Begin::Task(_, _, RingOp::Open { flags, .. }) = opened else { panic!("{strategy}") };
            assert_eq!(flags & libc::O_DIRECT, 0, "{strategy}");
            assert_eq!(disk.fallback_told, other != strategy, "{strategy}");
            match disk.refuse_fallback() {
                Ok(()) => assert_eq!(other, strategy),
                Err(error) => {
                    let error = error.to_string();
                    assert!(
                        error.contains("zfs") && error.contains(&format!("ask for `{other}`")),
                        "{error}"
                    );
                }
            }
        }
    }
}
