//! Real processes on a real disk: the examples as a person runs them, killed and started again.
//!
//! Everything waits for a condition with a deadline. Ports are free ones, data lies in a temporary directory.
#![forbid(unsafe_code)]
// Deadlines of real processes are in real time, and whatever is not as expected fails the test.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod damage;
#[cfg(feature = "faults")]
mod faults;
mod hostile;
mod kills;
mod kv;
mod links;
mod names;
mod operator;
mod process;
mod quick_start;
mod resp;
mod rollback;
mod sector;
mod torture;
mod transfer;
