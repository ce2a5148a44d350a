//! The real disk and network, on io_uring. All unsafe code and all libc calls of Coracle are in this folder.
#![allow(unsafe_code)]

mod buffer;

pub use buffer::Buffer;
