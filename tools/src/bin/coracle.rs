//! coracle: looks into a data directory, or operates a running node. Its parts are in `coracle_tools::coracle_tool`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    coracle_tools::coracle_tool::main()
}
