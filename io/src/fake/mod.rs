//! The simulated edge of the world: a disk, a network and a clock that obey a seed, with every fault we know of.
//!
//! Invariants: (1) same seed and same calls, same behaviour, on any machine: no floating point, no unordered map, no
//! address and no real clock takes part; (2) a fault happens only when asked for, by name or by a rate, and is counted.

mod clock;
mod crash;
mod device;
mod disk;
mod faults;
mod image;
mod net;
mod pending;
mod wire;

pub use clock::FakeClock;
pub use crash::{CrashImages, CrashLimits, CrashPolicy};
pub use disk::{Completing, FakeDisk, FakeFiles, InFlight, Latency};
pub use faults::{Damage, DiskRates, Lie, OpKind};
pub use image::DiskImage;
pub use net::{FakeNet, FakeNetwork, FakeSocket, NetOptions, NetRates, NodeStop};
