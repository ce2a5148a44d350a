//! wal-bench: what durable log throughput a disk gives through Coracle's write-ahead log.
#![forbid(unsafe_code)]
fn main() {}
