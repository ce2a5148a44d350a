//! Nodes under conditions that they must bear: panics, floods, other members.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // a test that fails may panic

mod bounds;
mod cluster;
mod members;
mod panics;
mod snapshots;
mod stops;
mod transfer;
