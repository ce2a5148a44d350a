//! What this kernel and this directory can do, found out at start; and if it is not enough, what to do about it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use coracle_base::limits::BLOCK_BYTES;
use io_uring::{Builder, IoUring, Probe, opcode};

use super::sys::{self, DirectAlign};
use super::{path_error, system_error};
use crate::DiskError;

/// Completions that fit into the kernel's queue, for each entry of the submission queue. Several operations stay in
/// flight for each that is queued at one time; what does not fit is kept by the kernel, at a price.
const COMPLETIONS_PER_SUBMISSION: u32 = 4;

/// The newest call needed is renameat and unlinkat by ring.
const KERNEL_MIN: &str = "Coracle needs Linux 5.11 or later, and is at its best from 6.1";

/// Ways to run an io_uring, best first: what to call it, and its flags.
type Setting = (&'static str, fn(&mut Builder));

pub(crate) const SETTINGS: [Setting; 3] = [
    ("deferred task work", |builder| {
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    }),
    ("cooperative task work", |builder| {
        builder.setup_coop_taskrun().setup_taskrun_flag();
    }),
    ("no flags", |_| {}),
];

/// Sets up an io_uring in the first of these ways that the kernel takes.
pub(crate) fn set_up(queue: u32, settings: &[Setting]) -> Result<IoUring, DiskError> {
    let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
    for (at, (name, apply)) in settings.iter().enumerate() {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_clamp().setup_cqsize(queue.saturating_mul(COMPLETIONS_PER_SUBMISSION));
        apply(&mut builder);
        match builder.build(queue) {
            Ok(uring) => {
                if at > 0 {
                    tracing::warn!(
                        "this kernel runs io_uring with {name} only, which costs more; {KERNEL_MIN}"
                    );
                }
                return check_features(uring);
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
            Err(error) => return Err(explain(&error, disabled_by_sysctl())),
        }
    }
    Err(explain(&refused, disabled_by_sysctl()))
}

fn check_features(uring: IoUring) -> Result<IoUring, DiskError> {
    let params = uring.params();
    // Without NODROP a full completion queue would lose completions; without EXT_ARG a park could not time out.
    let mut missing: Vec<&str> = Vec::new();
    missing.extend((!params.is_feature_nodrop()).then_some("NODROP"));
    missing.extend((!params.is_feature_ext_arg()).then_some("EXT_ARG"));

    let mut probe = Probe::new();
    uring
        .submitter()
        .register_probe(&mut probe)
        .map_err(|error| system_error("io_uring_register", &error))?;
    let needed = [
        ("OPENAT", opcode::OpenAt::CODE),
        ("READ", opcode::Read::CODE),
        ("WRITE", opcode::Write::CODE),
        ("FALLOCATE", opcode::Fallocate::CODE),
        ("FSYNC", opcode::Fsync::CODE),
        ("RENAMEAT", opcode::RenameAt::CODE),
        ("UNLINKAT", opcode::UnlinkAt::CODE),
        ("CLOSE", opcode::Close::CODE),
    ];
    missing.extend(needed.iter().filter(|(_, code)| !probe.is_supported(*code)).map(|(name, _)| *name));
    if missing.is_empty() {
        return Ok(uring);
    }
    let what = format!("this kernel's io_uring lacks {}", missing.join(", "));
    Err(DiskError::Unsupported { what, hint: KERNEL_MIN.into() })
}

/// The sysctl that forbids io_uring: 0 allows it, 1 forbids it to the unprivileged, 2 to all.
fn disabled_by_sysctl() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|value| value.trim() != "0")
}

fn explain(error: &io::Error, disabled: bool) -> DiskError {
    let unsupported =
        |what: &str, hint: &str| DiskError::Unsupported { what: what.into(), hint: hint.into() };
    match error.raw_os_error() {
        Some(libc::ENOSYS) => unsupported("this kernel has no io_uring", KERNEL_MIN),
        Some(libc::EINVAL) => unsupported("this kernel refuses to set up an io_uring", KERNEL_MIN),
        Some(libc::EPERM | libc::EACCES) if disabled => unsupported(
            "io_uring is disabled on this machine",
            "run `sysctl kernel.io_uring_disabled=0`, or give this process CAP_SYS_ADMIN if the value is 1",
        ),
        Some(libc::EPERM | libc::EACCES) => unsupported(
            "this process may not use io_uring",
            "in a container, allow io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile",
        ),
        Some(libc::ENOMEM) => unsupported(
            "no locked memory left for an io_uring",
            "raise RLIMIT_MEMLOCK (`ulimit -l`, or LimitMEMLOCK= of the systemd unit)",
        ),
        _ => system_error("io_uring_setup", error),
    }
}

/// What a directory's file system is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileSystem {
    pub(crate) name: String,
    /// Takes O_DIRECT in blocks of ours.
    pub(crate) direct: bool,
    /// Lives in memory: nothing on it is ever durable.
    pub(crate) volatile: bool,
}

/// Asks a nameless file in the directory, since file systems answer for files only. Where none can be made (read-only,
/// no permission, no O_TMPFILE), O_DIRECT is not used.
pub(crate) fn file_system(dir: &File, path: &Path) -> Result<FileSystem, DiskError> {
    let magic = sys::file_system_magic(dir).map_err(|error| path_error(path, "statfs", &error))?;
    let flags = libc::O_TMPFILE | libc::O_DIRECT;
    let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).mode(0o600).open(path);
    let direct = match opened {
        Ok(file) => sys::direct_align(&file).map(fits_our_blocks),
        Err(_) => Ok(false),
    };
    Ok(FileSystem {
        name: name(magic),
        direct: direct.map_err(|error| path_error(path, "statx", &error))?,
        volatile: matches!(magic, TMPFS | RAMFS),
    })
}

/// A file system that says nothing is taken at its word that it opened the file.
fn fits_our_blocks(align: Option<DirectAlign>) -> bool {
    align.is_none_or(|align| {
        let fits = |bytes: u32| bytes > 0 && BLOCK_BYTES.is_multiple_of(bytes as usize);
        fits(align.memory) && fits(align.offset)
    })
}

const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;

/// statfs(2)'s list, as far as people put data on it.
fn name(magic: u64) -> String {
    let known = match magic {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0xf2f5_2010 => "f2fs",
        0x2fc1_2fc1 => "zfs",
        0xca45_1a4e => "bcachefs",
        TMPFS => "tmpfs",
        RAMFS => "ramfs",
        0x794c_7630 => "overlayfs",
        0x6969 => "nfs",
        0x6573_5546 => "fuse",
        0x0102_1997 => "9p",
        0xff53_4d42 | 0xfe53_4d42 => "cifs",
        _ => return format!("file system 0x{magic:x}"),
    };
    known.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(code: i32, disabled: bool) -> String {
        match explain(&io::Error::from_raw_os_error(code), disabled) {
            DiskError::Unsupported { hint, .. } => hint,
            other => panic!("{other} tells nobody what to do"),
        }
    }

    #[test]
    fn a_refused_io_uring_says_what_to_do() {
        assert!(hint(libc::ENOSYS, false).contains("Linux 5.11"));
        assert!(hint(libc::EPERM, true).contains("sysctl"));
        assert!(hint(libc::EPERM, false).contains("seccomp"));
        assert!(hint(libc::ENOMEM, false).contains("RLIMIT_MEMLOCK"));
    }

    #[test]
    fn direct_io_needs_a_device_whose_blocks_fit_into_ours() {
        let fits = |memory, offset| fits_our_blocks(Some(DirectAlign { memory, offset }));
        assert!(fits_our_blocks(None) && fits(512, 512) && fits(4, 4096));
        assert!(!fits(512, 16384) && !fits(0, 0) && !fits(512, 0));
    }
}
