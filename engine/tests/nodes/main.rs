//! Whole nodes, in one program (each program would compile the engine again): what they bear, what they say when their
//! disk or a peer fails them, and what they read back.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // a test that fails may panic

mod answers;
mod bounds;
mod cache;
mod cluster;
mod compat;
mod disk;
mod elections;
mod full;
mod leaving;
mod lost;
mod members;
mod names;
mod panics;
mod peers;
mod places;
mod queries;
mod reads;
mod snapshots;
mod stall;
mod stops;
mod sweep;
mod transfer;
mod versions;
