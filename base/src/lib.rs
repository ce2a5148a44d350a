//! Words that every Coracle crate shares: identities, the run format, checksums, little-endian codecs, bounds.
//!
//! Invariants: no I/O, no policy, no state that lives longer than a call; nothing here is used by one crate only.
#![deny(unsafe_code)]

pub mod checksum;
pub mod codec;
mod entry_batch;
pub mod ids;
pub mod limits;
pub mod run;

pub use entry_batch::EntryBatch;
pub use ids::{GroupId, Index, NodeId, ShardId, Term};
pub use run::{EntryHeader, EntryKind, EntryRef, RunError, RunHeader, RunRef};
