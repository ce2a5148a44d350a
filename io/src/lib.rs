//! The edge of the world: operations out, completions in. Knows nothing of logs.
//!
//! Three traits ([`Disk`], [`Net`], [`Clock`]) and [`Park`], which sleeps until something happens. `ring` is the real
//! one, on io_uring; `fake` (feature `fake`) is the simulated one with faults. The code above cannot tell them apart.
//!
//! Invariants: (1) starting an operation never blocks and never fails, a failure is its completion; (2) a buffer given
//! to an operation belongs to it until its completion hands it back; (3) all unsafe code and libc calls of Coracle are
//! in `ring/`.
#![deny(unsafe_code)]

pub mod clock;
pub mod disk;
#[cfg(feature = "fake")]
pub mod fake;
pub mod net;
pub mod park;
pub mod ring;
pub mod strategy;
pub mod uring_net;

pub use clock::Clock;
pub use disk::{BlockingRead, Disk, DiskDone, DiskError, DiskOk, DiskOp, FileId, FileMode};
pub use net::{ConnId, Net, NetError, NetEvent};
pub use park::{Park, Waker};
pub use ring::Buffer;
pub use strategy::Strategy;
pub use uring_net::UringNet;
