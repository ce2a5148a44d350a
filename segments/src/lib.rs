//! Compaction of a shard's log: entries that live on in files that are mostly garbage are brought together in segments, so
//! that those files can be used again.
//!
//! ```text
//!   choose → read what lives → write a segment → sync it, and its name → stage moves → durable → the files are free
//! ```
//!
//! [`snapshot`] has snapshot files. `victims.rs` says whether there is anything to do and which files are worth it, `compact.rs` does it, one operation at
//! a time, `copy.rs` says in which order what lives is read and written, `reserve.rs` keeps room for it. What a segment is made of, what a move means and when a file is free is the log's own business
//! (`coracle_wal`: `segment.rs`, `records.rs`, `files.rs`); whoever owns the log calls [`Compactor::step`] once a turn.
//!
//! Invariants: (1) nothing is moved to a segment that is not durable; (2) compaction never stops the log: a full disk or a
//! bad one ends the attempt, not more; (3) where there is no garbage there is no work.
#![forbid(unsafe_code)]

mod compact;
mod copy;
mod reserve;
pub mod snapshot;
mod victims;

pub use compact::{CompactStats, Compactor};
pub use victims::Bounds;
