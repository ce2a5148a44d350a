//! The package's own code is in benches/: one file per question asked.
