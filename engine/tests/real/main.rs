//! Real processes on a real disk: the examples as a person runs them, killed and started again.
//!
//! Everything waits for a condition with a deadline. Ports are free ones, data lies in a temporary directory.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods)] // deadlines of real processes are in real time

mod hostile;
mod kills;
mod kv;
mod process;
mod quick_start;
mod resp;
