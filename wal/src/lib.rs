//! Coracle's write-ahead log: ordered, durable batches for many groups. One [`Wal`] is one shard's log, and the log
//! *is* the storage: a full file stays where it is and entries are read back from it.
//!
//! A `Wal` is a state machine over [`coracle_io::Disk`]: records are staged ([`Wal::append`], [`Wal::put_state`],
//! [`Wal::put_snapshot`] and the rest of `records.rs`), [`Wal::submit`] hands out writes, [`Wal::on_done`] takes their completions, and
//! [`Wal::durable`] proves what may be told to others. No clock, no thread; only [`Wal::open`] and [`Wal::shutdown`]
//! block. Groups are opaque numbers, consensus state is an opaque blob.
//!
//! Reading order: `wal.rs` and `write.rs` (the write path), `stage.rs` (records into batches), `groups/` (what the records
//! mean: live and replayed alike), `files.rs` and `prepare.rs` (which file may be reused, and how it becomes a ready one),
//! `checkpoint.rs` and `pages.rs` (the one authority on what lives), `file_indexes/` (where the runs of older files lie), `segment.rs` and `remove.rs` (what compaction makes, what leaves), `recover/` (chain of files, scan, verdict, replay), `read/`
//! (entries back from files), `pin.rs` (files that readers on other threads keep), `walk.rs` (every run in the files), `inspect.rs` (what
//! lies there and what is damaged, for people), `format/` (every byte).
//!
//! Invariants: (1) a batch counts as durable only when it and every earlier one is; (2) no byte that was written is
//! rewritten while its file is in use; (3) the log is the newest complete checkpoint and every record after it, nothing
//! else; (4) a file is reused only when its records precede the older of two checkpoints and the durable log has nothing
//! in it; (5) a failed write or sync ends the `Wal`: it is never tried again.
#![forbid(unsafe_code)]

#[cfg(feature = "breaks")]
pub mod breaks;
mod checkpoint;
mod config;
mod error;
mod file_indexes;
mod files;
mod format;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod groups;
mod inspect;
mod pages;
mod pin;
mod prepare;
mod read;
mod records;
mod recover;
mod remove;
mod segment;
mod segment_walk;
mod stage;
mod token;
mod wal;
mod walk;
mod write;

pub use config::{Config, Identity};
pub use error::{ReadError, WalError};
pub use format::SEGMENT;
pub use format::page::SnapshotFile;
pub use format::record::{IndexRange, Moved};
pub use groups::GroupLog;
pub use inspect::{Damage, DamageKind, Inspection, LogFileInfo, Owner, inspect, look, owner};
pub use read::{LiveOut, ReadOut, ReadPlan, Sweep, SweepProgress, SweptRun};
pub use recover::{Hole, InlineSnapshot, RecoveredGroup, Recovery, Report};
pub use segment::{FileUse, SegmentWriter, Space};
pub use wal::{BatchSeq, Durable, Stats, Wal};
pub use walk::{Walked, walk};
