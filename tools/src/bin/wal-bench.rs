//! wal-bench: what durable log throughput a disk gives through Coracle's write-ahead log. Its parts are in
//! `coracle_tools::wal_bench`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    coracle_tools::wal_bench::main()
}
