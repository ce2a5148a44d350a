//! The tests of segments and snapshots, in one program: each program would compile the whole log again.
#![forbid(unsafe_code)]

#[path = "../common/mod.rs"]
mod common;

mod compact;
mod part;
mod real;
mod snapshot;
