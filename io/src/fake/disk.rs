//! The simulated disk: [`Disk`] for the code under test, levers for the test. One `FakeDisk` is one node's data
//! directory; clones are the same disk, [`FakeDisk::ring`] opens another ring on it (another shard's).
//!
//! Operations complete as [`Completing`] says. What is written but not durable is kept apart ([`super::pending`]) until
//! [`FakeDisk::crash`] or [`FakeDisk::crash_images`] decides what of it survives. A short write is not visible here, as
//! the trait's writes are whole; a crash between its pieces is a tear.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rand::RngCore;

use super::crash::{CrashImages, CrashLimits, CrashPolicy, Origin};
use super::device::{Device, Flight, Ring, failed, not_found};
use super::faults::{Damage, DiskRates, EIO, Lie, OpKind};
use super::image::{Content, DiskImage, Inode, SECTOR_BYTES};
use crate::disk::DirEntry;
use crate::{BlockingRead, Buffer, Disk, DiskDone, DiskError, DiskOp};

/// When operations that were submitted complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completing {
    /// Whenever the disk is asked for completions all are finished, in an order that the seed picks.
    AtOnce,
    /// When the test says so: [`FakeDisk::complete`]. (`wait`, which must not hang, completes the oldest.)
    Manual,
    /// When their time has come: [`FakeDisk::advance`]. (`wait` moves the disk's time to the next one.)
    Timed(Latency),
}

/// How long operations take. Ranges are inclusive, in microseconds, and drawn evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// Reads.
    pub read_us: (u64, u64),
    /// Writes and syncs.
    pub write_us: (u64, u64),
    /// Opening, closing, renaming, removing.
    pub other_us: (u64, u64),
    /// Added for the length: so many bytes take one microsecond more.
    pub bytes_per_us: u64,
    /// One operation in so many stalls; 0 for none.
    pub stall_one_in: u32,
    /// For at most so long.
    pub stall_us: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            read_us: (60, 120),
            write_us: (75, 150),
            other_us: (20, 200),
            bytes_per_us: 2000,
            stall_one_in: 0,
            stall_us: 0,
        }
    }
}

/// An operation that was submitted and has not completed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    /// As given to [`Disk::start`].
    pub token: u64,
    /// What it is.
    pub kind: OpKind,
    /// The file or directory.
    pub path: PathBuf,
    /// When it is ready, for [`Completing::Timed`].
    pub ready_us: u64,
}

/// A simulated disk. Clones are handles of the same ring of the same disk.
#[derive(Debug, Clone)]
pub struct FakeDisk {
    device: Rc<RefCell<Device>>,
    ring: Ring,
}

impl FakeDisk {
    /// An empty disk.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::from_image(DiskImage::empty(), seed)
    }

    /// A disk that holds this, all of it durable.
    #[must_use]
    pub fn from_image(image: DiskImage, seed: u64) -> Self {
        Self { device: Rc::new(RefCell::new(Device::new(image, seed))), ring: Ring(0) }
    }

    pub(super) fn surviving(image: DiskImage, seed: u64, origin: Origin) -> Self {
        let disk = Self::from_image(image, seed);
        disk.device.borrow_mut().origin = Some(origin);
        disk
    }

    /// Another ring on the same disk, with completions of its own.
    #[must_use]
    pub fn ring(&self) -> Self {
        let mut device = self.device.borrow_mut();
        let ring = Ring(device.rings);
        device.rings += 1;
        Self { device: self.device.clone(), ring }
    }

    /// Files of the same disk for a thread that waits for what it reads. Nothing of it takes part in crashes.
    #[must_use]
    pub fn files(&self) -> FakeFiles {
        FakeFiles { device: self.device.clone(), open: None }
    }

    // ---- completing ---------------------------------------------------------------------------------------------

    /// Chooses when operations complete; those in flight keep their time.
    pub fn set_completing(&self, completing: Completing) {
        self.device.borrow_mut().completing = completing;
    }

    /// What is in flight, on all rings, in order of submission.
    #[must_use]
    pub fn flights(&self) -> Vec<InFlight> {
        let device = self.device.borrow();
        let tell = |flight: &Flight| InFlight {
            token: flight.token,
            kind: OpKind::of(&flight.op),
            path: device.path_of(&flight.op),
            ready_us: flight.ready_us,
        };
        device.flights.iter().map(tell).collect()
    }

    /// Completes one operation of [`flights`](Self::flights) now.
    ///
    /// # Panics
    /// If there is no such operation: the test's mistake.
    pub fn complete(&self, at: usize) {
        self.device.borrow_mut().complete(at);
    }

    /// Moves the disk's time and completes what is ready by then, in order.
    pub fn advance(&self, now_us: u64) {
        let mut device = self.device.borrow_mut();
        while let Some(at) = device.next_flight().filter(|at| device.flights[*at].ready_us <= now_us) {
            device.complete(at);
            if device.crashed {
                break;
            }
        }
        device.now_us = device.now_us.max(now_us);
    }

    /// The disk's time. It runs ahead of the test's after a [`Disk::wait`]: whoever blocked has to catch up.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        self.device.borrow().now_us
    }

    /// When the next operation completes, for [`Completing::Timed`].
    #[must_use]
    pub fn next_event_us(&self) -> Option<u64> {
        self.device.borrow().flights.iter().map(|flight| flight.ready_us).min()
    }

    // ---- crashes ------------------------------------------------------------------------------------------------

    /// What reads see now: what a clean stop would leave.
    #[must_use]
    pub fn image(&self) -> DiskImage {
        self.device.borrow().written.clone()
    }

    /// What is durable now: the least that a crash leaves.
    #[must_use]
    pub fn durable_image(&self) -> DiskImage {
        self.device.borrow().durable.clone()
    }

    /// Starts again with this image, as after a restore from a backup: nothing is open or in flight.
    pub fn restore(&self, image: &DiskImage) {
        self.device.borrow_mut().reboot(image.clone());
    }

    /// Power fails and comes back. What was not durable survives as `policy` and the seed say; nothing is open or in
    /// flight.
    pub fn crash(&self, policy: CrashPolicy) {
        self.device.borrow_mut().crash(policy);
    }

    /// Every image that a crash at this moment may leave, within `limits`. This disk goes on as if nothing had happened.
    #[must_use]
    pub fn crash_images(&self, limits: CrashLimits) -> CrashImages {
        let mut device = self.device.borrow_mut();
        let units = device.units();
        let seed = device.rng.next_u64();
        CrashImages::new(device.durable.clone(), units, limits, seed)
    }

    /// After `steps` more submissions and completions the machine crashes: everything fails with
    /// [`DiskError::Crashed`] until [`crash`](Self::crash) or [`restore`](Self::restore).
    pub fn crash_after(&self, steps: u64) {
        self.device.borrow_mut().set_fuse(Some(steps));
    }

    /// Submissions and completions so far: the range of [`crash_after`](Self::crash_after) that a scenario has.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.device.borrow().steps
    }

    /// Whether the fuse has blown.
    #[must_use]
    pub fn is_crashed(&self) -> bool {
        self.device.borrow().crashed
    }

    /// For an image of [`crash_images`](Self::crash_images): what survived of each unit.
    #[must_use]
    pub fn story(&self) -> String {
        self.device.borrow().origin.as_ref().map(Origin::story).unwrap_or_default()
    }

    // ---- faults -------------------------------------------------------------------------------------------------

    /// The next operation of this kind (on this path, if one is given) fails with this errno.
    pub fn fail_next(&self, kind: OpKind, path: Option<&Path>, code: i32) {
        self.device.borrow_mut().faults.choose(kind, path.map(Path::to_owned), code);
    }

    /// The next write is confirmed all the same, and lands elsewhere or nowhere.
    pub fn lie_next(&self, lie: Lie) {
        self.device.borrow_mut().faults.lie = Some(lie);
    }

    /// Whether [`lie_next`](Self::lie_next) was asked for and has not happened.
    #[must_use]
    pub fn is_about_to_lie(&self) -> bool {
        self.device.borrow().faults.lie.is_some()
    }

    /// Takes back what [`fail_next`](Self::fail_next) and [`lie_next`](Self::lie_next) asked for and has not happened.
    pub fn fail_no_more(&self) {
        self.device.borrow_mut().faults.choose_nothing();
    }

    /// How often things go wrong by themselves from now on.
    pub fn set_rates(&self, rates: DiskRates) {
        self.device.borrow_mut().faults.rates = rates;
    }

    /// Files may use so many bytes in all, in whole blocks; growth beyond it is [`DiskError::Full`].
    pub fn set_quota(&self, bytes: Option<u64>) {
        self.device.borrow_mut().quota_bytes = bytes;
    }

    /// Whether there is such a bound.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.device.borrow().quota_bytes.is_some()
    }

    /// Faults so far, by kind.
    #[must_use]
    pub fn fault_counts(&self) -> BTreeMap<&'static str, u64> {
        self.device.borrow().faults.counts.clone()
    }

    // ---- hostile hands on the directory -------------------------------------------------------------------------

    /// Damages a file at a byte offset. False if there is no such file.
    pub fn corrupt(&self, path: impl AsRef<Path>, offset: u64, damage: Damage) -> bool {
        let mut device = self.device.borrow_mut();
        let path = path.as_ref();
        let at = offset as usize;
        device.faults.count("corruption");
        let mut garbage = Vec::new();
        if let Damage::Garbage { bytes } = damage {
            garbage.resize(bytes, 0);
            device.rng.fill_bytes(&mut garbage);
        }
        let hit = match damage {
            Damage::Unreadable => device.make_unreadable(path, offset),
            Damage::FlipBit { bit } => {
                device.damage(path, |content| content.patch(at, 1, |_, b| b ^ 1 << (bit & 7)))
            }
            Damage::Zero { bytes } => device.damage(path, |content| content.patch(at, bytes, |_, _| 0)),
            Damage::Garbage { bytes } => {
                device.damage(path, |content| content.patch(at, bytes, |i, _| garbage[i]))
            }
            Damage::SwapSectors { with } => device.damage(path, |content| {
                let (one, two) = (at / SECTOR_BYTES, with as usize / SECTOR_BYTES);
                content.swap_sectors(one, two);
            }),
        };
        hit.is_some()
    }

    /// A file's bytes as reads see them.
    #[must_use]
    pub fn read_file(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        self.device.borrow().written.read(path)
    }

    /// Puts a file there, durable, whatever was there before; makes its directory if that is missing.
    pub fn put_file(&self, path: impl AsRef<Path>, bytes: &[u8]) {
        self.device.borrow_mut().install(path.as_ref(), Content::of(bytes).into());
    }

    /// Puts an older copy of a file back. False if the image has none.
    pub fn put_old_file(&self, path: impl AsRef<Path>, from: &DiskImage) -> bool {
        let Some(inode) = from.inode(path.as_ref()) else { return false };
        self.device.borrow_mut().install(path.as_ref(), from.shared_content(inode));
        true
    }

    /// Copies a file under a second name. False if there is none.
    pub fn copy_file(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> bool {
        let mut device = self.device.borrow_mut();
        let Some(inode) = device.written.inode(from.as_ref()) else { return false };
        let content = device.written.shared_content(inode);
        device.install(to.as_ref(), content);
        true
    }

    /// Removes a file, durable.
    pub fn remove_file(&self, path: impl AsRef<Path>) {
        self.device.borrow_mut().uninstall(path.as_ref());
    }

    /// Cuts a file off (or extends it with zeros), durable. False if there is none.
    pub fn truncate_file(&self, path: impl AsRef<Path>, bytes: u64) -> bool {
        self.device.borrow_mut().damage(path.as_ref(), |content| content.truncate(bytes)).is_some()
    }
}

/// Reads of a [`FakeDisk`] by a thread that is no shard's: what is written now, also by whoever has overwritten it.
#[derive(Debug)]
pub struct FakeFiles {
    device: Rc<RefCell<Device>>,
    open: Option<(PathBuf, Inode)>,
}

impl BlockingRead for FakeFiles {
    fn read(&mut self, path: &Path, offset: u64, buf: &mut Buffer) -> Result<usize, DiskError> {
        let device = self.device.borrow();
        let open = self.open.take().filter(|(of, _)| of == path).map(|(_, inode)| inode);
        let inode = open.or_else(|| device.written.inode(path)).ok_or_else(|| not_found(path))?;
        self.open = Some((path.to_owned(), inode));
        if device.is_unreadable(inode, offset, buf.len()) {
            return Err(failed(path, OpKind::Read, EIO));
        }
        Ok(device.written.shared_content(inode).read(offset, buf))
    }
}

impl Disk for FakeDisk {
    fn buffer(&mut self, bytes: usize) -> Buffer {
        self.device.borrow_mut().buffer(bytes)
    }

    fn recycle(&mut self, buf: Buffer) {
        self.device.borrow_mut().recycle(buf);
    }

    fn start(&mut self, token: u64, op: DiskOp) {
        self.device.borrow_mut().start(self.ring, token, op);
    }

    fn submit(&mut self) -> Result<(), DiskError> {
        self.device.borrow_mut().submit(self.ring)
    }

    fn completions(&mut self, done: &mut Vec<DiskDone>) {
        let mut device = self.device.borrow_mut();
        if device.completing == Completing::AtOnce {
            while let Some(at) = device.choose_flight(self.ring) {
                device.complete(at);
            }
        }
        device.take_done(self.ring, done);
    }

    fn wait(&mut self) -> Result<(), DiskError> {
        let mut device = self.device.borrow_mut();
        device.submit(self.ring)?;
        if !device.has_done(self.ring)
            && let Some(at) = device.choose_flight(self.ring)
        {
            device.complete(at);
        }
        if device.crashed { Err(DiskError::Crashed) } else { Ok(()) }
    }

    fn in_flight(&self) -> usize {
        self.device.borrow().in_flight(self.ring)
    }

    fn list(&mut self, dir: &Path) -> Result<Vec<DirEntry>, DiskError> {
        let device = self.device.borrow();
        match () {
            () if device.crashed => Err(DiskError::Crashed),
            () if !device.written.has_dir(dir) => Err(DiskError::NotFound { path: dir.to_owned() }),
            () => Ok(device.written.list(dir)),
        }
    }

    fn make_dir(&mut self, dir: &Path) -> Result<(), DiskError> {
        let mut device = self.device.borrow_mut();
        if device.crashed {
            return Err(DiskError::Crashed);
        }
        let parent = dir.parent().unwrap_or(Path::new(""));
        if !device.written.has_dir(parent) {
            return Err(DiskError::NotFound { path: parent.to_owned() });
        }
        device.written.add_dir(dir);
        device.durable.add_dir(dir);
        Ok(())
    }
}
