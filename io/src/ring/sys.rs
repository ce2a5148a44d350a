//! The system calls that neither std nor the io-uring crate has, each as a small safe function.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

/// Nanoseconds on one of the kernel's clocks.
pub(crate) fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is ours and lives through the call.
    let code = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(code, 0, "clock {clock} exists since Linux 2.6.39");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A counter in the kernel that other threads add to and a ring reads: a bell that is heard even if it rang too early.
#[derive(Debug, Clone)]
pub(crate) struct EventFd(Arc<File>);

impl EventFd {
    /// Blocking, since io_uring completes a read of a non-blocking one with EAGAIN instead of waiting.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor, nobody else knows it.
        Ok(Self(Arc::new(unsafe { File::from_raw_fd(fd) })))
    }

    /// Adds one. Never blocks in practice: the counter would have to reach 2^64 - 1.
    pub(crate) fn ring(&self) {
        if let Err(error) = (&*self.0).write_all(&1u64.to_ne_bytes()) {
            tracing::error!(%error, "cannot wake a sleeping shard");
        }
    }

    pub(crate) fn file(&self) -> Arc<File> {
        self.0.clone()
    }
}

/// What a file system says about O_DIRECT on one open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DirectAlign {
    /// Alignment of memory, in bytes.
    pub(crate) memory: u32,
    /// Alignment of offsets and lengths, in bytes; 0 if the file cannot do direct I/O.
    pub(crate) offset: u32,
}

/// `None` if the kernel (before 6.1) or the file system does not say.
pub(crate) fn direct_align(file: &File) -> io::Result<Option<DirectAlign>> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    let empty: &CStr = c"";
    // SAFETY: the path is a C string and `stat` is ours; both live through the call.
    let code = unsafe {
        libc::statx(
            file.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            stat.as_mut_ptr(),
        )
    };
    if code != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeros is a valid statx, and the kernel has filled it in.
    let stat = unsafe { stat.assume_init() };
    let told = stat.stx_mask & libc::STATX_DIOALIGN != 0;
    Ok(told.then_some(DirectAlign { memory: stat.stx_dio_mem_align, offset: stat.stx_dio_offset_align }))
}

/// The magic number of the file system that a file lies on.
pub(crate) fn file_system_magic(file: &File) -> io::Result<u64> {
    let mut stat = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: `stat` is ours and lives through the call.
    if unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeros is a valid statfs, and the kernel has filled it in.
    Ok(unsafe { stat.assume_init() }.f_type as u64)
}

/// The cores that this thread may run on, in rising order.
pub(crate) fn allowed_cores() -> io::Result<Vec<usize>> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: `set` is ours, of the size that is passed, and lives through the call.
    let code = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr()) };
    if code != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeros is a valid set, and the kernel has filled it in.
    let set = unsafe { set.assume_init() };
    // SAFETY: CPU_ISSET only reads the set, and the index is within its size.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|core| unsafe { libc::CPU_ISSET(*core, &set) }).collect())
}

/// Binds this thread to one core.
pub(crate) fn pin_to_core(core: usize) -> io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: all zeros is a valid (empty) set, and `core` is within its size.
    unsafe { libc::CPU_SET(core, set.assume_init_mut()) };
    // SAFETY: `set` is ours, of the size that is passed, and lives through the call.
    let code = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set.as_ptr()) };
    if code != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Takes over a descriptor that a completed operation has opened.
pub(crate) fn adopt_descriptor(result: i32) -> OwnedFd {
    assert!(result >= 0, "a failed open has no descriptor");
    // SAFETY: only called with the result of an open operation's one completion, so nobody else has it.
    unsafe { OwnedFd::from_raw_fd(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_can_be_pinned_to_each_core_it_may_run_on() {
        // A thread of its own: the test harness may use this one again.
        let pinned = std::thread::spawn(|| {
            let cores = allowed_cores().unwrap();
            let pin = |core: &usize| {
                pin_to_core(*core).unwrap();
                allowed_cores().unwrap()
            };
            cores.iter().map(|core| (vec![*core], pin(core))).collect::<Vec<_>>()
        })
        .join()
        .unwrap();
        assert!(!pinned.is_empty());
        assert!(pinned.iter().all(|(asked, got)| asked == got));
        assert_eq!(pin_to_core(1 << 20).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn clocks_do_not_go_back() {
        let earlier = clock_ns(libc::CLOCK_BOOTTIME);
        assert!(clock_ns(libc::CLOCK_BOOTTIME) >= earlier);
        // 2020-01-01; a machine that believes to be earlier has no wall clock.
        assert!(clock_ns(libc::CLOCK_REALTIME) > 1_577_836_800_000_000_000);
    }
}
