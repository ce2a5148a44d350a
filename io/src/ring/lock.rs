//! Whose a directory is: at most one process writes to it, and none while the writes of a killed one are on their way.
//!
//! ```text
//!   LOCK        exclusive, as long as the disk is open: a second process is refused at once
//!   every file  shared, as long as it is open for writing; exclusive for a moment before anything is read at a start
//! ```
//!
//! The locks are the kernel's (flock): they end with the process, however that ends. But a write that io_uring has handed
//! to the device goes on after a SIGKILL, and would land in a file that the next process reads, or has begun to use anew.
//! It keeps the file open in the kernel, and so that file's lock: who comes next waits for it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::clock::RealClock;
use super::{DiskError, path_error};
use crate::Clock;

/// The file whose lock says that the directory is in use. Not part of the listing.
pub(super) const LOCK_FILE: &str = "LOCK";
/// A device that takes longer for a write has failed.
const DRAIN_US_MAX: u64 = 30_000_000;

/// Locks the directory; waits for what a killed process left in flight in it.
pub(super) fn lock_dir(root: &Path) -> Result<File, DiskError> {
    let path = root.join(LOCK_FILE);
    let opened =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o640).open(&path);
    let file = opened.map_err(|error| path_error(&path, "open", &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(DiskError::InUse { path: root.into() }),
        Err(TryLockError::Error(error)) => return Err(path_error(&path, "lock", &error)),
    }
    let deadline_us = RealClock.now_us() + DRAIN_US_MAX;
    drain(root, deadline_us)?;
    Ok(file)
}

/// Waits until nobody has a file of the directory, or of those in it, open for writing.
fn drain(dir: &Path, deadline_us: u64) -> Result<(), DiskError> {
    let failed = |error| path_error(dir, "list", &error);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(failed)?);
        if kind.is_dir() {
            drain(&path, deadline_us)?;
        } else if kind.is_file() && entry.file_name() != LOCK_FILE {
            wait_for(&path, deadline_us)?;
        }
    }
    Ok(())
}

fn wait_for(path: &Path, deadline_us: u64) -> Result<(), DiskError> {
    // One that may not even be read is told about when it is needed.
    let Ok(file) = File::open(path) else { return Ok(()) };
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(path_error(path, "lock", &error)),
            Err(TryLockError::WouldBlock) if RealClock.now_us() >= deadline_us => {
                return Err(DiskError::InUse { path: path.into() });
            }
            Err(TryLockError::WouldBlock) => thread::park_timeout(Duration::from_millis(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_that_are_still_on_their_way_are_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("shard-0/00000001.wal");
        fs::create_dir(file.parent().unwrap()).unwrap();
        let in_flight = File::create(&file).unwrap();
        in_flight.lock_shared().unwrap();
        let late = drain(dir.path(), RealClock.now_us() + 20_000);
        assert_eq!(late, Err(DiskError::InUse { path: file }), "not for ever");

        let root = dir.path().to_owned();
        let waits = thread::spawn(move || lock_dir(&root).map(drop));
        thread::park_timeout(Duration::from_millis(20));
        assert!(!waits.is_finished(), "the directory is taken while its last owner writes");
        drop(in_flight);
        assert_eq!(waits.join().unwrap(), Ok(()));
    }
}
