//! What can go wrong with a disk while it runs: errors that were asked for, errors at a rate, damage to what lies there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand::Rng;
use rand::rngs::SmallRng;

use crate::DiskOp;

/// errno of a device that failed.
pub(super) const EIO: i32 = 5;

/// The kinds of operation, for choosing which one fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OpKind {
    /// Opening or creating a file.
    Open,
    /// Reading.
    Read,
    /// Writing, and filling with zeros.
    Write,
    /// Making a file durable.
    Sync,
    /// Making a directory durable.
    SyncDir,
    /// Renaming.
    Rename,
    /// Removing a name.
    Unlink,
    /// Closing.
    Close,
}

impl OpKind {
    /// The kind of an operation.
    #[must_use]
    pub fn of(op: &DiskOp) -> Self {
        match op {
            DiskOp::Open { .. } => Self::Open,
            DiskOp::Read { .. } => Self::Read,
            DiskOp::Write { .. } | DiskOp::Fill { .. } => Self::Write,
            DiskOp::Sync { .. } => Self::Sync,
            DiskOp::SyncDir { .. } => Self::SyncDir,
            DiskOp::Rename { .. } => Self::Rename,
            DiskOp::Unlink { .. } => Self::Unlink,
            DiskOp::Close { .. } => Self::Close,
        }
    }

    /// As errors and traces name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::SyncDir => "sync_dir",
            Self::Rename => "rename",
            Self::Unlink => "unlink",
            Self::Close => "close",
        }
    }
}

/// How often things go wrong by themselves: one operation in so many, 0 for never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskRates {
    /// A read fails with EIO.
    pub read_error: u32,
    /// A write fails with EIO; any of its sectors may have landed.
    pub write_error: u32,
    /// A sync fails with EIO; what it covered is never durable by a later sync.
    pub sync_error: u32,
    /// A write is confirmed and never lands.
    pub lost_write: u32,
    /// A write is confirmed and lands on other pages of the same file.
    pub misdirected_write: u32,
}

/// What becomes of a write that is confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// It never lands.
    Lost,
    /// It lands on other pages of the same file.
    Elsewhere,
}

/// Damage to a file that lies there, durable. Offsets are in bytes and may be anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// One bit changes.
    FlipBit {
        /// 0 to 7.
        bit: u8,
    },
    /// Bytes become zero.
    Zero {
        /// How many.
        bytes: usize,
    },
    /// Bytes become random.
    Garbage {
        /// How many.
        bytes: usize,
    },
    /// The 512-byte sector there changes places with another one of the file.
    SwapSectors {
        /// A byte offset within the other one.
        with: u64,
    },
    /// Every read that touches this 4 KiB page fails with EIO until it is written again.
    Unreadable,
}

/// Faults that were asked for, the rates of the others, and how many of each there were.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    pub(super) rates: DiskRates,
    chosen: Vec<(OpKind, Option<PathBuf>, i32)>,
    /// The next write lies.
    pub(super) lie: Option<Lie>,
    pub(super) counts: BTreeMap<&'static str, u64>,
}

impl Faults {
    pub(super) fn choose(&mut self, kind: OpKind, path: Option<PathBuf>, code: i32) {
        self.chosen.push((kind, path, code));
    }

    pub(super) fn choose_nothing(&mut self) {
        self.chosen.clear();
        self.lie = None;
    }

    pub(super) fn count(&mut self, kind: &'static str) {
        *self.counts.entry(kind).or_default() += 1;
    }

    /// Whether this operation fails, and with which errno.
    pub(super) fn error(&mut self, kind: OpKind, path: &Path, rng: &mut SmallRng) -> Option<i32> {
        let matches =
            |(k, p, _): &(OpKind, Option<PathBuf>, i32)| *k == kind && p.as_deref().is_none_or(|p| p == path);
        let (rate, name) = match kind {
            OpKind::Read => (self.rates.read_error, "read_error"),
            OpKind::Write => (self.rates.write_error, "write_error"),
            OpKind::Sync | OpKind::SyncDir => (self.rates.sync_error, "sync_error"),
            _ => (0, "other_error"),
        };
        let code = match self.chosen.iter().position(matches) {
            Some(at) => Some(self.chosen.remove(at).2),
            None => one_in(rng, rate).then_some(EIO),
        };
        if code.is_some() {
            self.count(name);
        }
        code
    }

    /// Whether this write never lands although it is confirmed.
    pub(super) fn loses_write(&mut self, is_fill: bool, rng: &mut SmallRng) -> bool {
        let is_chosen = self.lie.take_if(|lie| !is_fill && *lie == Lie::Lost).is_some();
        let lost = is_chosen || one_in(rng, self.rates.lost_write);
        if lost {
            self.count("lost_write");
        }
        lost
    }

    /// Whether this write lands elsewhere.
    pub(super) fn misdirects_write(&mut self, is_fill: bool, rng: &mut SmallRng) -> bool {
        let is_chosen = self.lie.take_if(|lie| !is_fill && *lie == Lie::Elsewhere).is_some();
        let misdirected = is_chosen || one_in(rng, self.rates.misdirected_write);
        if misdirected {
            self.count("misdirected_write");
        }
        misdirected
    }
}

/// True once in `n` times; never for 0.
pub(super) fn one_in(rng: &mut SmallRng, n: u32) -> bool {
    n > 0 && rng.random_ratio(1, n)
}
