//! The programs, and what they share: how sizes are written, what latencies were, what a process has used, how
//! figures are drawn.
//!
//! Invariants: (1) load, measurement and looking on only, the code under test is reached through the crates' public faces; (2) a
//! number is taken from a clock, a counter of the kernel or the code under test, and never estimated.
#![forbid(unsafe_code)]

pub mod cluster_bench;
pub mod coracle_tool;
pub mod latency;
pub mod plot;
pub mod size;
pub mod usage;
pub mod wal_bench;
