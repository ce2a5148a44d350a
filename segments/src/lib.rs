//! Sealed WAL files and what becomes of them: the place for file indexes on disk, compaction and snapshot files.
//!
//! So far a sealed file is only read and reused, and both are the log's own business: `coracle_wal::Wal::read` brings
//! entries back, and `Wal::submit` reuses files that hold nothing. Snapshot files live here.
#![forbid(unsafe_code)]

pub mod snapshot;
