//! What a ring can be asked to do. An operation owns the memory and the files that the kernel uses for it; the ring's
//! table keeps it until its completion, and hands it back with it.
//!
//! Invariant that makes submission sound: every address in [`RingOp::entry`] points into a heap block that the
//! operation owns (a Buffer's arena, a CString, a Box), so it stays valid while the operation moves; every
//! descriptor is of a file that the operation keeps open.

use std::ffi::CString;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{opcode, squeue, types};

use super::buffer::Buffer;
use super::socket::SocketOp;

/// When a write has to be on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteThrough {
    /// Not before somebody syncs the file.
    No,
    /// Before it completes, with what is needed to read it back (O_DSYNC).
    Data,
    /// Before it completes, with all metadata (O_SYNC).
    All,
}

impl WriteThrough {
    fn flags(self) -> i32 {
        match self {
            Self::No => 0,
            Self::Data => libc::RWF_DSYNC,
            Self::All => libc::RWF_SYNC,
        }
    }
}

/// Bytes on their way between a buffer and a file.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) file: Arc<File>,
    /// Where the buffer's first byte belongs.
    pub(crate) offset: u64,
    pub(crate) buf: Buffer,
    /// How much of the buffer has been moved.
    pub(crate) at: usize,
}

impl Transfer {
    /// What is still to be moved: descriptor, memory, length and file offset.
    fn rest(&mut self) -> (types::Fd, *mut u8, u32, u64) {
        let rest = &mut self.buf[self.at..];
        let bytes = rest.len().min(TRANSFER_BYTES_MAX) as u32;
        (fd(&self.file), rest.as_mut_ptr(), bytes, self.offset + self.at as u64)
    }
}

/// One operation. Multi-part work (open then size, write then sync) is a driver's business.
#[derive(Debug)]
pub(crate) enum RingOp {
    /// Completes with a descriptor.
    Open {
        dir: Arc<File>,
        name: CString,
        flags: i32,
    },
    Read(Transfer),
    Write(Transfer, WriteThrough),
    /// Reserves blocks and extends the file.
    Allocate {
        file: Arc<File>,
        offset: u64,
        bytes: u64,
    },
    /// fdatasync, or fsync for directories.
    Sync {
        file: Arc<File>,
        data_only: bool,
    },
    /// Both names relative to `dir`.
    Rename {
        dir: Arc<File>,
        from: CString,
        to: CString,
    },
    /// Relative to `dir`.
    Unlink {
        dir: Arc<File>,
        name: CString,
    },
    /// Gives the file up to the kernel, which closes it whatever the result is.
    Close {
        file: ManuallyDrop<File>,
    },
    /// Anything with a socket.
    Socket(SocketOp),
    /// Waits for an eventfd to be rung, and resets it.
    Hear {
        bell: Arc<File>,
        count: Box<[u8; 8]>,
    },
    /// Completes after so much time.
    #[cfg(feature = "faults")]
    Pause(Box<types::Timespec>),
}

/// The kernel moves at most this much at a time; more is a short result that the driver continues.
const TRANSFER_BYTES_MAX: usize = 1 << 30;

impl RingOp {
    /// The submission queue entry. `registered` says whether the ring has the memory of the operation's buffer
    /// registered, always as its buffer 0.
    pub(crate) fn entry(&mut self, registered: bool) -> squeue::Entry {
        match self {
            Self::Open { dir, name, flags } => opcode::OpenAt::new(fd(dir), name.as_ptr())
                .flags(*flags | libc::O_CLOEXEC)
                .mode(0o640)
                .build(),
            Self::Read(transfer) => {
                let (fd, memory, bytes, offset) = transfer.rest();
                match registered {
                    true => opcode::ReadFixed::new(fd, memory, bytes, 0).offset(offset).build(),
                    false => opcode::Read::new(fd, memory, bytes).offset(offset).build(),
                }
            }
            Self::Write(transfer, through) => {
                let (fd, memory, bytes, offset) = transfer.rest();
                let flags = through.flags();
                match registered {
                    true => {
                        opcode::WriteFixed::new(fd, memory, bytes, 0).offset(offset).rw_flags(flags).build()
                    }
                    false => opcode::Write::new(fd, memory, bytes).offset(offset).rw_flags(flags).build(),
                }
            }
            Self::Allocate { file, offset, bytes } => {
                opcode::Fallocate::new(fd(file), *bytes).offset(*offset).build()
            }
            Self::Sync { file, data_only } => {
                let what = if *data_only { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
                opcode::Fsync::new(fd(file)).flags(what).build()
            }
            Self::Rename { dir, from, to } => {
                opcode::RenameAt::new(fd(dir), from.as_ptr(), fd(dir), to.as_ptr()).build()
            }
            Self::Unlink { dir, name } => opcode::UnlinkAt::new(fd(dir), name.as_ptr()).build(),
            // Closing the last descriptor of an unlinked file frees its blocks, which takes milliseconds: not here.
            Self::Close { file } => {
                opcode::Close::new(types::Fd(file.as_raw_fd())).build().flags(squeue::Flags::ASYNC)
            }
            Self::Socket(op) => op.entry(),
            Self::Hear { bell, count } => {
                opcode::Read::new(fd(bell), count.as_mut_ptr(), count.len() as u32).build()
            }
            #[cfg(feature = "faults")]
            Self::Pause(time) => opcode::Timeout::new(&raw const **time).build(),
        }
    }

    /// The operation's buffer, if it has one.
    pub(crate) fn buffer(&self) -> Option<&Buffer> {
        match self {
            Self::Read(Transfer { buf, .. }) | Self::Write(Transfer { buf, .. }, _) => Some(buf),
            _ => None,
        }
    }

    /// Takes the buffer out, if it has one.
    pub(crate) fn into_buffer(self) -> Option<Buffer> {
        match self {
            Self::Read(Transfer { buf, .. }) | Self::Write(Transfer { buf, .. }, _) => Some(buf),
            _ => None,
        }
    }
}

fn fd(file: &File) -> types::Fd {
    types::Fd(file.as_raw_fd())
}
