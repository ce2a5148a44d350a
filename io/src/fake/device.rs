//! The device behind [`FakeDisk`](super::FakeDisk): operations in flight, files that are open, what is written and what
//! is durable. An operation takes effect in the moment in which it completes; until then a crash finds it in flight.
//!
//! Invariants: (1) a completed write on a `Durable` handle is in `durable`, a completed write on a `Write` handle only in
//! `written` and `pending`; (2) a sync covers the effects that had completed when it was submitted, not those in flight
//! beside it; (3) after the fuse has blown nothing takes effect any more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_base::limits::BLOCK_BYTES;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use super::crash::{CrashPolicy, Origin, crash_by_chance};
use super::disk::Completing;
use super::faults::{EIO, Faults, OpKind, one_in};
use super::image::{Content, DiskImage, Inode, Page, SECTOR_BYTES, page_from};
use super::pending::{Effect, NameChange, Pending};
use crate::{Buffer, DiskDone, DiskError, DiskOk, DiskOp, FileId, FileMode};

const EBADF: i32 = 9;
const EINVAL: i32 = 22;

/// A ring of its own on the shared device: a shard's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ring(pub(super) u32);

#[derive(Debug)]
pub(super) struct Flight {
    pub(super) ring: Ring,
    pub(super) token: u64,
    pub(super) op: DiskOp,
    /// Effects that had happened when it was submitted.
    mark: u64,
    pub(super) ready_us: u64,
}

#[derive(Debug, Clone)]
struct Handle {
    path: PathBuf,
    inode: Inode,
    mode: FileMode,
}

#[derive(Debug)]
pub(super) struct Device {
    pub(super) durable: DiskImage,
    pub(super) written: DiskImage,
    pub(super) pending: Pending,
    /// What was in flight when the fuse blew: it may have happened or not.
    limbo: Vec<Effect>,
    handles: BTreeMap<FileId, Handle>,
    /// Started, not yet submitted.
    queued: Vec<(Ring, u64, DiskOp)>,
    pub(super) flights: Vec<Flight>,
    done: VecDeque<(Ring, DiskDone)>,
    pub(super) faults: Faults,
    /// Pages whose every read fails.
    unreadable: BTreeSet<(Inode, usize)>,
    pub(super) quota_bytes: Option<u64>,
    fuse: Option<u64>,
    pub(super) crashed: bool,
    pub(super) steps: u64,
    pub(super) completing: Completing,
    pub(super) now_us: u64,
    pub(super) rng: SmallRng,
    next_file: u32,
    next_inode: u64,
    pub(super) rings: u32,
    spare: Vec<Buffer>,
    pub(super) origin: Option<Origin>,
}

impl Device {
    pub(super) fn new(image: DiskImage, seed: u64) -> Self {
        let image = image.without_orphans();
        Self {
            durable: image.clone(),
            written: image.clone(),
            pending: Pending::default(),
            limbo: Vec::new(),
            handles: BTreeMap::new(),
            queued: Vec::new(),
            flights: Vec::new(),
            done: VecDeque::new(),
            faults: Faults::default(),
            unreadable: BTreeSet::new(),
            quota_bytes: None,
            fuse: None,
            crashed: false,
            steps: 0,
            completing: Completing::AtOnce,
            now_us: 0,
            rng: SmallRng::seed_from_u64(seed),
            next_file: 0,
            next_inode: image.next_inode(),
            rings: 1,
            spare: Vec::new(),
            origin: None,
        }
    }

    // ---- operations come in -------------------------------------------------------------------------------------

    pub(super) fn start(&mut self, ring: Ring, token: u64, op: DiskOp) {
        self.queued.push((ring, token, op));
    }

    pub(super) fn submit(&mut self, ring: Ring) -> Result<(), DiskError> {
        let ours: Vec<_> = self.queued.extract_if(.., |(of, ..)| *of == ring).collect();
        for (ring, token, op) in ours {
            if self.step_burns_out() {
                self.finish(ring, token, Err(DiskError::Crashed), buffer_of(op));
            } else {
                let ready_us = self.now_us + self.latency_us(&op);
                self.flights.push(Flight { ring, token, op, mark: self.pending.mark(), ready_us });
            }
        }
        if self.crashed { Err(DiskError::Crashed) } else { Ok(()) }
    }

    fn latency_us(&mut self, op: &DiskOp) -> u64 {
        let Completing::Timed(latency) = self.completing else { return 0 };
        let (range, bytes) = match op {
            DiskOp::Read { buf, .. } => (latency.read_us, buf.len() as u64),
            DiskOp::Write { buf, .. } => (latency.write_us, buf.len() as u64),
            DiskOp::Fill { bytes, .. } => (latency.write_us, *bytes),
            DiskOp::Sync { .. } | DiskOp::SyncDir { .. } => (latency.write_us, 0),
            _ => (latency.other_us, 0),
        };
        let mut us =
            self.rng.random_range(range.0..=range.1.max(range.0)) + bytes / latency.bytes_per_us.max(1);
        if one_in(&mut self.rng, latency.stall_one_in) {
            self.faults.count("stall");
            us += self.rng.random_range(0..=latency.stall_us);
        }
        us
    }

    // ---- the fuse -----------------------------------------------------------------------------------------------

    pub(super) fn set_fuse(&mut self, steps: Option<u64>) {
        self.fuse = steps;
    }

    /// One submission or completion; true once the machine has crashed.
    fn step_burns_out(&mut self) -> bool {
        if self.crashed {
            return true;
        }
        match &mut self.fuse {
            Some(0) => self.blow(),
            Some(left) => *left -= 1,
            None => {}
        }
        self.steps += u64::from(!self.crashed);
        self.crashed
    }

    /// The machine stops here. Whoever waits for an operation learns it; what was in flight is neither done nor undone.
    fn blow(&mut self) {
        self.crashed = true;
        for flight in std::mem::take(&mut self.flights) {
            let effect = self.effect_in_flight(&flight.op);
            self.limbo.extend(effect);
            self.finish(flight.ring, flight.token, Err(DiskError::Crashed), buffer_of(flight.op));
        }
    }

    // ---- operations complete ------------------------------------------------------------------------------------

    pub(super) fn complete(&mut self, at: usize) {
        let flight = &self.flights[at];
        self.now_us = self.now_us.max(flight.ready_us);
        if self.step_burns_out() {
            return;
        }
        let Flight { ring, token, mut op, mark, .. } = self.flights.remove(at);
        let result = self.execute(&mut op, mark);
        self.finish(ring, token, result, buffer_of(op));
    }

    fn finish(&mut self, ring: Ring, token: u64, result: Result<DiskOk, DiskError>, buf: Option<Buffer>) {
        self.done.push_back((ring, DiskDone { token, result, buf }));
    }

    pub(super) fn take_done(&mut self, ring: Ring, into: &mut Vec<DiskDone>) {
        for _ in 0..self.done.len() {
            let (of, done) = self.done.pop_front().expect("the loop runs once an element");
            if of == ring {
                into.push(done);
            } else {
                self.done.push_back((of, done));
            }
        }
    }

    pub(super) fn has_done(&self, ring: Ring) -> bool {
        self.done.iter().any(|(of, _)| *of == ring)
    }

    pub(super) fn in_flight(&self, ring: Ring) -> usize {
        self.queued.iter().filter(|(of, ..)| *of == ring).count()
            + self.flights.iter().filter(|flight| flight.ring == ring).count()
            + self.done.iter().filter(|(of, _)| *of == ring).count()
    }

    /// The path that an operation is about; empty if its handle is not open.
    pub(super) fn path_of(&self, op: &DiskOp) -> PathBuf {
        match op {
            DiskOp::Open { path, .. } | DiskOp::SyncDir { path } | DiskOp::Unlink { path } => path.clone(),
            DiskOp::Rename { from, .. } => from.clone(),
            DiskOp::Read { file, .. }
            | DiskOp::Write { file, .. }
            | DiskOp::Fill { file, .. }
            | DiskOp::Sync { file }
            | DiskOp::Close { file } => self.handles.get(file).map(|h| h.path.clone()).unwrap_or_default(),
        }
    }

    fn execute(&mut self, op: &mut DiskOp, mark: u64) -> Result<DiskOk, DiskError> {
        let (kind, path) = (OpKind::of(op), self.path_of(op));
        if let Some(code) = self.faults.error(kind, &path, &mut self.rng) {
            self.leave_traces(op, mark);
            return Err(failed(&path, kind, code));
        }
        match op {
            DiskOp::Open { path, mode } => self.open(path, *mode),
            DiskOp::Read { file, offset, buf } => self.read(*file, *offset, buf),
            DiskOp::Write { .. } | DiskOp::Fill { .. } => self.write(op),
            DiskOp::Sync { file } => {
                let inode = self.handle(*file, kind)?.inode;
                self.pending.sync(inode, mark, &mut self.durable);
                Ok(DiskOk::Done)
            }
            DiskOp::SyncDir { path } => self.sync_dir(path, mark),
            DiskOp::Rename { .. } | DiskOp::Unlink { .. } => self.change_name(op, &path),
            DiskOp::Close { file } => {
                self.handles.remove(file).map(|_| DiskOk::Done).ok_or_else(|| failed(&path, kind, EBADF))
            }
        }
    }

    /// What a failed operation leaves behind: some sectors of a write; after a failed sync nothing can be trusted.
    fn leave_traces(&mut self, op: &DiskOp, mark: u64) {
        match op {
            DiskOp::Write { .. } => {
                let Some(effect) = self.effect_in_flight(op) else { return };
                let traces = CrashPolicy { kept_percent: 10, lost_percent: 30, garbage: 0 };
                let mut rng = SmallRng::seed_from_u64(self.rng.next_u64());
                let torn =
                    crash_by_chance(&self.written, std::slice::from_ref(&effect), traces, &mut rng, |_| {});
                if let Effect::Data { inode, pages, end } = effect {
                    let content = torn.shared_content(inode);
                    let pages = pages.into_iter().map(|(n, _)| (n, content.page(n).clone())).collect();
                    self.written.set_content(inode, content);
                    self.pending.push(Effect::Data { inode, pages, end });
                }
            }
            DiskOp::Sync { file } => {
                if let Some(handle) = self.handles.get(file) {
                    self.pending.forsake(handle.inode, mark);
                }
            }
            _ => {}
        }
    }

    fn handle(&self, file: FileId, kind: OpKind) -> Result<&Handle, DiskError> {
        self.handles.get(&file).ok_or_else(|| failed(Path::new(""), kind, EBADF))
    }

    fn open(&mut self, path: &Path, mode: FileMode) -> Result<DiskOk, DiskError> {
        let inode = match self.written.inode(path) {
            Some(inode) => inode,
            None if mode == FileMode::Read => return Err(not_found(path)),
            None => self.create(path)?,
        };
        let file = FileId(self.next_file);
        self.next_file += 1;
        self.handles.insert(file, Handle { path: path.to_owned(), inode, mode });
        Ok(DiskOk::Opened { file, bytes: self.written.content(inode).bytes() })
    }

    fn create(&mut self, path: &Path) -> Result<Inode, DiskError> {
        self.require_parent(path)?;
        let inode = self.new_inode();
        self.durable.set_content(inode, Arc::default());
        self.name_change(NameChange::Create { path: path.to_owned(), inode });
        Ok(inode)
    }

    fn new_inode(&mut self) -> Inode {
        let inode = Inode(self.next_inode);
        self.next_inode += 1;
        inode
    }

    fn require_parent(&self, path: &Path) -> Result<(), DiskError> {
        let dir = path.parent().unwrap_or(Path::new(""));
        if path.file_name().is_some() && self.written.has_dir(dir) { Ok(()) } else { Err(not_found(dir)) }
    }

    fn name_change(&mut self, change: NameChange) {
        change.apply(&mut self.written);
        self.pending.push(Effect::Name(change));
    }

    fn read(&mut self, file: FileId, offset: u64, buf: &mut Buffer) -> Result<DiskOk, DiskError> {
        let handle = self.handle(file, OpKind::Read)?;
        if !offset.is_multiple_of(BLOCK_BYTES as u64) || !buf.len().is_multiple_of(BLOCK_BYTES) {
            return Err(failed(&handle.path, OpKind::Read, EINVAL));
        }
        let inode = handle.inode;
        if self.is_unreadable(inode, offset, buf.len()) {
            let error = failed(&handle.path, OpKind::Read, EIO);
            self.faults.count("unreadable");
            return Err(error);
        }
        let bytes = self.written.content(inode).read(offset, buf);
        Ok(DiskOk::Read { bytes })
    }

    pub(super) fn is_unreadable(&self, inode: Inode, offset: u64, bytes: usize) -> bool {
        let first = (offset / BLOCK_BYTES as u64) as usize;
        self.unreadable.range((inode, first)..(inode, first + bytes / BLOCK_BYTES)).next().is_some()
    }

    fn write(&mut self, op: &DiskOp) -> Result<DiskOk, DiskError> {
        let (DiskOp::Write { file, .. } | DiskOp::Fill { file, .. }) = op else { return Ok(DiskOk::Done) };
        let Handle { path, mode, inode } = self.handle(*file, OpKind::Write)?.clone();
        if mode == FileMode::Read {
            return Err(failed(&path, OpKind::Write, EBADF));
        }
        let Some(mut effect) = self.effect_in_flight(op) else {
            return Err(failed(&path, OpKind::Write, EINVAL));
        };
        self.require_room(&path, inode, &effect)?;
        let is_fill = matches!(op, DiskOp::Fill { .. });
        if self.faults.loses_write(is_fill, &mut self.rng) {
            return Ok(DiskOk::Done);
        }
        if self.faults.misdirects_write(is_fill, &mut self.rng) {
            self.misdirect(&mut effect);
        }
        if let Effect::Data { inode, pages, .. } = &effect {
            for (n, _) in pages {
                self.unreadable.remove(&(*inode, *n));
            }
        }
        effect.apply_whole(&mut self.written);
        if mode == FileMode::Durable {
            effect.apply_whole(&mut self.durable);
            self.pending.replaced_by(&effect);
        } else {
            self.pending.push(effect);
        }
        Ok(DiskOk::Done)
    }

    fn require_room(&mut self, path: &Path, inode: Inode, effect: &Effect) -> Result<(), DiskError> {
        let (Some(quota), Effect::Data { end, .. }) = (self.quota_bytes, effect) else { return Ok(()) };
        let growth =
            end.saturating_sub(self.written.content(inode).bytes().next_multiple_of(BLOCK_BYTES as u64));
        if growth > 0 && self.written.used_bytes() + growth > quota {
            self.faults.count("full");
            return Err(DiskError::Full { path: path.to_owned() });
        }
        Ok(())
    }

    /// The pages land elsewhere in the same file, without changing its size.
    fn misdirect(&mut self, effect: &mut Effect) {
        let Effect::Data { inode, pages, end } = effect else { return };
        *end = self.written.content(*inode).bytes();
        let in_file = (*end / BLOCK_BYTES as u64) as usize;
        let start = self.rng.random_range(0..in_file.max(1));
        for (i, (n, _)) in pages.iter_mut().enumerate() {
            *n = start + i;
        }
        pages.retain(|(n, _)| *n < in_file);
    }

    fn sync_dir(&mut self, dir: &Path, mark: u64) -> Result<DiskOk, DiskError> {
        if !self.written.has_dir(dir) {
            return Err(not_found(dir));
        }
        self.pending.sync_dir(dir, mark, &mut self.durable);
        self.forget_unreachable();
        Ok(DiskOk::Done)
    }

    fn change_name(&mut self, op: &DiskOp, path: &Path) -> Result<DiskOk, DiskError> {
        if let DiskOp::Rename { to, .. } = op {
            self.require_parent(to)?;
        }
        let change = self.name_change_in_flight(op).ok_or_else(|| not_found(path))?;
        self.name_change(change);
        Ok(DiskOk::Done)
    }

    /// Frees files that have no name, no handle and no pending effect.
    fn forget_unreachable(&mut self) {
        let mut kept = self.written.named();
        kept.extend(self.durable.named());
        kept.extend(self.handles.values().map(|handle| handle.inode));
        kept.extend(self.pending.inodes());
        self.written.retain(&kept);
        self.durable.retain(&kept);
    }

    // ---- crashes ------------------------------------------------------------------------------------------------

    fn name_change_in_flight(&self, op: &DiskOp) -> Option<NameChange> {
        match op {
            DiskOp::Rename { from, to } => {
                let inode = self.written.inode(from)?;
                Some(NameChange::Rename { from: from.clone(), to: to.clone(), inode })
            }
            DiskOp::Unlink { path } => {
                self.written.inode(path)?;
                Some(NameChange::Unlink { path: path.clone() })
            }
            _ => None,
        }
    }

    /// What an operation would do if it took effect now; `None` if nothing that a crash could show, or if it is invalid.
    fn effect_in_flight(&mut self, op: &DiskOp) -> Option<Effect> {
        match op {
            DiskOp::Write { file, offset, buf } => {
                let pages = buf.chunks(BLOCK_BYTES).map(page_from);
                self.data_effect(*file, *offset, buf.len() as u64, pages)
            }
            DiskOp::Fill { file, offset, bytes } => {
                let zeros = std::iter::repeat_n(None, (bytes / BLOCK_BYTES as u64) as usize);
                self.data_effect(*file, *offset, *bytes, zeros)
            }
            DiskOp::Open { path, mode } if *mode != FileMode::Read && self.written.inode(path).is_none() => {
                self.require_parent(path).ok()?;
                Some(Effect::Name(NameChange::Create { path: path.clone(), inode: self.new_inode() }))
            }
            _ => self.name_change_in_flight(op).map(Effect::Name),
        }
    }

    fn data_effect(
        &self,
        file: FileId,
        offset: u64,
        bytes: u64,
        pages: impl Iterator<Item = Page>,
    ) -> Option<Effect> {
        let handle = self.handles.get(&file).filter(|handle| handle.mode != FileMode::Read)?;
        let block = BLOCK_BYTES as u64;
        if !offset.is_multiple_of(block) || !bytes.is_multiple_of(block) {
            return None;
        }
        let first = (offset / block) as usize;
        let pages = pages.enumerate().map(|(i, page)| (first + i, page)).collect();
        Some(Effect::Data { inode: handle.inode, pages, end: offset + bytes })
    }

    /// Everything that a crash at this moment may undo, in order.
    pub(super) fn units(&mut self) -> Vec<Effect> {
        let mut units: Vec<_> = self.pending.effects().cloned().collect();
        units.extend(self.limbo.iter().cloned());
        let flights = std::mem::take(&mut self.flights);
        units.extend(flights.iter().filter_map(|flight| self.effect_in_flight(&flight.op)));
        self.flights = flights;
        units
    }

    pub(super) fn crash(&mut self, policy: CrashPolicy) {
        let units = self.units();
        self.faults.count("crash");
        let count = |kind| self.faults.count(kind);
        let image = crash_by_chance(&self.durable, &units, policy, &mut self.rng, count);
        self.reboot(image);
    }

    /// Starts again with this image: nothing is open, nothing in flight, the fuse is out.
    pub(super) fn reboot(&mut self, image: DiskImage) {
        self.next_inode = self.next_inode.max(image.next_inode());
        self.durable = image.without_orphans();
        self.written = self.durable.clone();
        self.pending = Pending::default();
        self.limbo.clear();
        self.handles.clear();
        self.queued.clear();
        self.flights.clear();
        self.done.clear();
        self.fuse = None;
        self.crashed = false;
    }

    // ---- damage and buffers -------------------------------------------------------------------------------------

    /// Changes a file behind everybody's back, on the medium and in what reads see.
    pub(super) fn damage(&mut self, path: &Path, change: impl Fn(&mut Content)) -> Option<Inode> {
        let inode = self.written.inode(path)?;
        for image in [&mut self.durable, &mut self.written] {
            let content = image.content_mut(inode);
            change(content);
            content.settle();
        }
        Some(inode)
    }

    pub(super) fn make_unreadable(&mut self, path: &Path, offset: u64) -> Option<Inode> {
        let inode = self.written.inode(path)?;
        self.unreadable.insert((inode, (offset / BLOCK_BYTES as u64) as usize));
        Some(inode)
    }

    /// Puts a file under a name, durable.
    pub(super) fn install(&mut self, path: &Path, content: Arc<Content>) {
        let inode = self.new_inode();
        for image in [&mut self.durable, &mut self.written] {
            if let Some(dir) = path.parent() {
                image.add_dir(dir);
            }
            image.link(path, inode);
            image.set_content(inode, content.clone());
        }
    }

    pub(super) fn uninstall(&mut self, path: &Path) {
        self.durable.unlink(path);
        self.written.unlink(path);
    }

    pub(super) fn buffer(&mut self, bytes: usize) -> Buffer {
        match self.spare.iter().position(|buf| buf.capacity() >= bytes) {
            Some(at) => self.spare.swap_remove(at),
            None => Buffer::with_capacity(bytes),
        }
    }

    pub(super) fn recycle(&mut self, mut buf: Buffer) {
        /// More than the engine ever has in flight at once.
        const SPARE_BUFFERS_MAX: usize = 16;
        if self.spare.len() < SPARE_BUFFERS_MAX {
            buf.clear();
            self.spare.push(buf);
        }
    }

    /// The operation that is ready first; of several the one submitted first.
    pub(super) fn next_flight(&self) -> Option<usize> {
        (0..self.flights.len()).min_by_key(|i| self.flights[*i].ready_us)
    }

    /// The operation that completes next if the ring has to wait for one.
    pub(super) fn choose_flight(&mut self, ring: Ring) -> Option<usize> {
        let ours: Vec<_> = (0..self.flights.len()).filter(|i| self.flights[*i].ring == ring).collect();
        match self.completing {
            Completing::Manual => ours.first().copied(),
            Completing::AtOnce if ours.is_empty() => None,
            Completing::AtOnce => Some(ours[self.rng.random_range(0..ours.len())]),
            Completing::Timed(_) => ours.into_iter().min_by_key(|i| self.flights[*i].ready_us),
        }
    }
}

const _: () = assert!(BLOCK_BYTES.is_multiple_of(SECTOR_BYTES));

fn buffer_of(op: DiskOp) -> Option<Buffer> {
    match op {
        DiskOp::Read { buf, .. } | DiskOp::Write { buf, .. } => Some(buf),
        _ => None,
    }
}

pub(super) fn not_found(path: &Path) -> DiskError {
    DiskError::NotFound { path: path.to_owned() }
}

pub(super) fn failed(path: &Path, kind: OpKind, code: i32) -> DiskError {
    let reason = match code {
        EIO => "simulated I/O error",
        EBADF => "the file is not open (for this)",
        EINVAL => "offset or length is not a multiple of the block size",
        _ => "simulated error",
    };
    DiskError::Failed { path: path.to_owned(), op: kind.name(), code, reason: reason.to_owned() }
}
