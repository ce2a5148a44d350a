//! Fuzz targets for every decoder of bytes from a disk, a network or a client, and a mutating runner for the stable
//! compiler.
//!
//! Invariants: (1) a target does not panic, whatever the bytes, and what it accepts comes back from its own encoder;
//! (2) the same seed makes the same choices.
#![forbid(unsafe_code)]

mod mutate;
pub mod run;
pub mod targets;

#[path = "../../engine/examples/kv/resp.rs"]
#[allow(dead_code, missing_docs)] // what only the server uses
mod resp;

pub use targets::{TARGETS, Target};
