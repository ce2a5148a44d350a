//! The log's tests, in one program: each program would compile the whole log again.
#![forbid(unsafe_code)]

#[path = "../common/mod.rs"]
mod common;

mod damage;
mod indexes;
mod inspect;
mod late;
mod log;
mod many_files;
mod old_entries;
mod pages;
mod pins;
mod placed;
mod reads;
mod real;
mod rosters;
mod start;
mod sweep;
mod walk;
