//! The package has no code of its own: its benches are in benches/, one file per question asked.
#![forbid(unsafe_code)]
