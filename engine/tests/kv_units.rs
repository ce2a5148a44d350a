//! The unit tests of `kv`'s parts. Cargo runs those of an example only if it does not build it as a program, too.
#![forbid(unsafe_code)]
#![allow(dead_code)] // the parts that only the program uses

#[path = "../examples/kv/resp.rs"]
mod resp;
#[path = "../examples/kv/store.rs"]
mod store;
