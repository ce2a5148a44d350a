//! What a ring can be asked to do with sockets, as ops.rs for files; and the few socket calls that std does not have.
//!
//! The invariant of ops.rs holds here too: every address in [`SocketOp::entry`] points into a heap block that the
//! operation owns (a Vec's bytes, a Box), and the operation keeps its socket open.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use io_uring::{opcode, squeue, types};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{reason, sys};
use crate::{DiskError, NetError};

/// The kernel moves at most this much at a time; more is a short result that the driver continues.
const TRANSFER_BYTES_MAX: usize = 1 << 30;

/// Tells a receive to wait for the socket at once instead of trying it first: when the driver asks for more, it has
/// mostly emptied the socket a moment before. (IORING_RECVSEND_POLL_FIRST, which the io-uring crate does not name.)
const POLL_FIRST: u16 = 1;

/// An address as the kernel wants it.
#[derive(Debug)]
pub(crate) enum RawAddress {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl RawAddress {
    fn new(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(v4) => Self::V4(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(v6) => Self::V6(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            }),
        }
    }

    fn raw(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        match self {
            Self::V4(v4) => (ptr::from_ref(v4).cast(), size_of_val(v4) as libc::socklen_t),
            Self::V6(v6) => (ptr::from_ref(v6).cast(), size_of_val(v6) as libc::socklen_t),
        }
    }
}

/// One operation on a socket.
#[derive(Debug)]
pub(crate) enum SocketOp {
    /// Completes with a descriptor.
    Accept {
        listener: Arc<TcpListener>,
    },
    Connect {
        socket: Arc<TcpStream>,
        address: Box<RawAddress>,
    },
    /// Sends from `at` on.
    Send {
        socket: Arc<TcpStream>,
        buf: Vec<u8>,
        at: usize,
    },
    /// Into the spare capacity of the buffer.
    Receive {
        socket: Arc<TcpStream>,
        buf: Vec<u8>,
    },
    /// Completes after a while.
    Rest {
        time: Box<types::Timespec>,
    },
}

impl SocketOp {
    pub(crate) fn connect(socket: Arc<TcpStream>, address: SocketAddr) -> Self {
        Self::Connect { socket, address: Box::new(RawAddress::new(address)) }
    }

    pub(crate) fn rest(time: Duration) -> Self {
        Self::Rest { time: Box::new(types::Timespec::from(time)) }
    }

    pub(super) fn entry(&mut self) -> squeue::Entry {
        match self {
            Self::Accept { listener } => {
                opcode::Accept::new(types::Fd(listener.as_raw_fd()), ptr::null_mut(), ptr::null_mut())
                    .flags(libc::SOCK_CLOEXEC)
                    .build()
            }
            Self::Connect { socket, address } => {
                let (address, bytes) = address.raw();
                opcode::Connect::new(fd(socket), address, bytes).build()
            }
            Self::Send { socket, buf, at } => {
                let rest = &buf[*at..];
                let bytes = rest.len().min(TRANSFER_BYTES_MAX) as u32;
                // With WAITALL the kernel itself continues what a full socket buffer cut short.
                opcode::Send::new(fd(socket), rest.as_ptr(), bytes)
                    .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
                    .build()
            }
            Self::Receive { socket, buf } => {
                let room = buf.spare_capacity_mut();
                let bytes = room.len().min(TRANSFER_BYTES_MAX) as u32;
                opcode::Recv::new(fd(socket), room.as_mut_ptr().cast(), bytes).ioprio(POLL_FIRST).build()
            }
            Self::Rest { time } => opcode::Timeout::new(ptr::from_ref(time.as_ref())).build(),
        }
    }

    /// Frees what the operation owns and what its completion brings, if nobody wants them any more.
    pub(super) fn discard(self, result: i32) {
        if let Self::Accept { .. } = self
            && result >= 0
        {
            drop(sys::adopt_descriptor(result));
        }
    }
}

fn fd(socket: &TcpStream) -> types::Fd {
    types::Fd(socket.as_raw_fd())
}

/// The buffer of a completed receive, with the bytes that it brought.
///
/// # Panics
/// If the kernel claims to have written beyond the buffer.
pub(super) fn received(mut buf: Vec<u8>, bytes: usize) -> Vec<u8> {
    assert!(bytes <= buf.capacity() - buf.len(), "the kernel was given the spare capacity and no more");
    // SAFETY: the receive that owned this buffer completed with `bytes`: so many bytes behind the old length are
    // initialised, and they are within the capacity.
    unsafe { buf.set_len(buf.len() + bytes) };
    buf
}

/// A TCP socket that is not connected yet.
pub(super) fn unconnected(address: &SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// A second descriptor of the same socket.
pub(crate) fn duplicate(socket: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: `socket` is borrowed, so it keeps its descriptor open through the call.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }.try_clone_to_owned()
}

/// Has the tokio runtime that runs this watch an event for edges.
pub(crate) fn watch(event: Arc<File>) -> io::Result<AsyncFd<Arc<File>>> {
    // SAFETY: the Arc always names the same descriptor, and keeps it open as long as the AsyncFd has it.
    unsafe { AsyncFd::register_with_interest(event, Interest::READABLE) }.map_err(io::Error::from)
}

/// The one translation of a socket's errno.
pub(crate) fn net_error(op: &'static str, code: i32) -> NetError {
    match code {
        libc::ECONNREFUSED => NetError::Refused,
        _ => NetError::Failed { op, code, reason: reason(code) },
    }
}

/// An error of std about a socket.
pub(crate) fn socket_error(op: &'static str, error: &io::Error) -> NetError {
    match error.raw_os_error() {
        Some(code) => net_error(op, code),
        None => NetError::Failed { op, code: 0, reason: error.to_string() },
    }
}

/// How long to wait for an address that is in use: the kernel takes a killed process's ring apart, and with it closes
/// the socket that it listened on, a moment after the process itself is gone.
const IN_USE_MAX: Duration = Duration::from_secs(2);

/// A socket that listens. std sets SO_REUSEADDR: a restarted node gets its address back at once, or, if it was killed,
/// within [`IN_USE_MAX`]. Blocks meanwhile.
pub(crate) fn listener(address: SocketAddr) -> Result<TcpListener, NetError> {
    const PAUSE: Duration = Duration::from_millis(10);
    let mut waited = Duration::ZERO;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && waited < IN_USE_MAX => {
                std::thread::park_timeout(PAUSE);
                waited += PAUSE;
            }
            bound => return bound.map_err(|error| socket_error("listen", &error)),
        }
    }
}

/// The ring itself failed, as a network driver tells it.
pub(crate) fn ring_error(error: DiskError) -> NetError {
    match error {
        DiskError::Failed { op, code, reason, .. } => NetError::Failed { op, code, reason },
        other => NetError::Failed { op: "submit", code: 0, reason: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_given_up_in_a_moment_is_waited_for() {
        let before = listener(([127, 0, 0, 1], 0).into()).unwrap();
        let address = before.local_addr().unwrap();
        std::thread::scope(|scope| {
            let after = scope.spawn(|| listener(address));
            std::thread::park_timeout(Duration::from_millis(50));
            drop(before);
            assert_eq!(after.join().unwrap().unwrap().local_addr().unwrap(), address);
        });
    }

    #[test]
    fn an_address_that_stays_taken_is_refused() {
        let taken = listener(([127, 0, 0, 1], 0).into()).unwrap();
        let refused = listener(taken.local_addr().unwrap());
        assert!(matches!(refused, Err(NetError::Failed { op: "listen", .. })), "{refused:?}");
    }
}
