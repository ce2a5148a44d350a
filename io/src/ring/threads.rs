//! Which cores there are, and keeping a shard's thread on one of them.

use super::sys;
use crate::DiskError;

/// The cores that this process may use, in rising order.
///
/// # Errors
/// The kernel refuses to say.
pub fn allowed_cores() -> Result<Vec<usize>, DiskError> {
    sys::allowed_cores().map_err(|error| super::system_error("sched_getaffinity", &error))
}

/// Binds the calling thread to one core, so that its caches stay its own.
///
/// # Errors
/// This process may not use that core, or there is none.
pub fn pin_to_core(core: usize) -> Result<(), DiskError> {
    sys::pin_to_core(core).map_err(|error| super::system_error("sched_setaffinity", &error))
}
