//! The real disk and network, on io_uring. All unsafe code and all libc calls of Coracle are in this folder.
//!
//! One thread owns one [`Ring`]; its drivers ([`RingDisk`], sockets) and its [`RingPark`] share it. Each puts its
//! operations in (ops.rs) and fetches its own completions; whoever enters the kernel submits for all of them.
#![allow(unsafe_code)]

mod buffer;
mod clock;
mod core;
mod disk;
#[cfg(feature = "faults")]
mod faults;
mod lock;
mod net;
mod ops;
mod park;
mod plain;
mod pool;
mod probe;
mod socket;
mod sys;
mod task;
mod threads;

use std::io;
use std::path::{Path, PathBuf};

pub use self::core::{Ring, RingOptions, SharedRing};
pub use buffer::Buffer;
pub use clock::RealClock;
pub use disk::{DiskOptions, RingDisk};
pub use net::RingNet;
pub use park::RingPark;
pub use plain::PlainFiles;
pub(crate) use socket::{duplicate, listener, ring_error, socket_error, watch};
pub use threads::{allowed_cores, pin_to_core};

use crate::DiskError;

/// The one translation of errno into what a caller can do about it.
fn disk_error(path: &Path, op: &'static str, code: i32) -> DiskError {
    let path = PathBuf::from(path);
    match code {
        libc::ENOENT => DiskError::NotFound { path },
        libc::ENOSPC | libc::EDQUOT => DiskError::Full { path },
        libc::EACCES | libc::EPERM | libc::EROFS => DiskError::Denied { path },
        _ => DiskError::Failed { path, op, code, reason: reason(code) },
    }
}

/// An error of std about a path.
fn path_error(path: &Path, op: &'static str, error: &io::Error) -> DiskError {
    match error.raw_os_error() {
        Some(code) => disk_error(path, op, code),
        None => DiskError::Failed { path: path.into(), op, code: 0, reason: error.to_string() },
    }
}

/// An error of the kernel that concerns no file.
pub(crate) fn system_error(op: &'static str, error: &io::Error) -> DiskError {
    let code = error.raw_os_error().unwrap_or(0);
    DiskError::Failed { path: PathBuf::from("kernel"), op, code, reason: reason(code) }
}

/// The errno's text, without the number that std appends and our errors print themselves.
fn reason(code: i32) -> String {
    let text = io::Error::from_raw_os_error(code).to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_becomes_what_the_caller_can_do() {
        let path = Path::new("wal/7");
        let error = |code| disk_error(path, "write", code);
        let path = PathBuf::from(path);
        assert_eq!(error(libc::ENOENT), DiskError::NotFound { path: path.clone() });
        assert_eq!(error(libc::ENOSPC), DiskError::Full { path: path.clone() });
        assert_eq!(error(libc::EDQUOT), DiskError::Full { path: path.clone() });
        for code in [libc::EACCES, libc::EPERM, libc::EROFS] {
            assert_eq!(error(code), DiskError::Denied { path: path.clone() });
        }
        assert_eq!(
            error(libc::EIO).to_string(),
            "wal/7: write failed: input/output error (os error 5); see the system's log, repair, and start again"
        );
    }
}
