//! Byte-stream connections as operations and completions: submit and complete, no futures.

use std::net::SocketAddr;

/// Room that a receive has at least: less would cost a system call for every few bytes.
pub const RECEIVE_BYTES_MIN: usize = 4096;

/// A connection of one [`Net`]. Never used again within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Why a connection could not be made or has ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// Nobody listens there.
    #[error("connection refused")]
    Refused,
    /// The other side closed it in good order.
    #[error("closed by the peer")]
    Closed,
    /// Reset, timed out or otherwise broken.
    #[error("{op} failed: {reason} (os error {code})")]
    Failed {
        /// Which operation.
        op: &'static str,
        /// errno; 0 if there is none.
        code: i32,
        /// Its text.
        reason: String,
    },
}

/// What happened.
#[derive(Debug)]
pub enum NetEvent {
    /// Somebody connected to the address that we listen on.
    Accepted {
        /// The new connection.
        conn: ConnId,
        /// From where.
        from: SocketAddr,
    },
    /// Our own [`Net::connect`] succeeded.
    Connected {
        /// Which.
        conn: ConnId,
    },
    /// Bytes arrived. Nothing more is read until [`Net::receive`] is called again: that is the back-pressure.
    Received {
        /// On which connection.
        conn: ConnId,
        /// The buffer given to `receive`, with the bytes appended.
        buf: Vec<u8>,
        /// How many were appended; never 0.
        bytes: usize,
    },
    /// The whole of a [`Net::send`] was taken by the kernel.
    Sent {
        /// On which connection.
        conn: ConnId,
        /// The buffer, back, still filled.
        buf: Vec<u8>,
    },
    /// The connection is gone, or was never made. Comes once, and nothing after it. Not sent after our own `close`.
    Closed {
        /// Which.
        conn: ConnId,
        /// Why.
        error: NetError,
    },
}

impl NetEvent {
    /// The connection that it is about.
    #[must_use]
    pub fn conn(&self) -> ConnId {
        match self {
            Self::Accepted { conn, .. }
            | Self::Connected { conn }
            | Self::Received { conn, .. }
            | Self::Sent { conn, .. }
            | Self::Closed { conn, .. } => *conn,
        }
    }
}

/// Connections, driven by operations and events.
pub trait Net {
    /// A connection taken out of one driver to be put into another one's thread.
    type Socket: Send + 'static;

    /// Starts to listen; `Accepted` events follow. Port 0 picks a free one. Blocks: for start-up.
    ///
    /// # Errors
    /// The address cannot be bound.
    fn listen(&mut self, address: SocketAddr) -> Result<SocketAddr, NetError>;

    /// Starts to connect: `Connected` or `Closed` follows.
    fn connect(&mut self, address: SocketAddr) -> ConnId;

    /// Sends all of `buf`; `Sent` or `Closed` follows. One at a time a connection.
    ///
    /// # Panics
    /// If a send of this connection is still in flight: the caller's mistake.
    fn send(&mut self, conn: ConnId, buf: Vec<u8>);

    /// Reads once, into the spare capacity of `buf` (at least 4 KiB is made); `Received` or `Closed` follows. One at a
    /// time a connection.
    ///
    /// # Panics
    /// If a receive of this connection is still in flight: the caller's mistake.
    fn receive(&mut self, conn: ConnId, buf: Vec<u8>);

    /// Closes at once. No event of this connection follows; its buffers are freed when the kernel lets go of them.
    /// Unknown connections are ignored.
    fn close(&mut self, conn: ConnId);

    /// Takes a connection with nothing in flight out of this driver; `None` if it is gone.
    ///
    /// # Panics
    /// If a send or a receive of it is in flight: the caller's mistake.
    fn detach(&mut self, conn: ConnId) -> Option<Self::Socket>;

    /// Takes over a connection from another driver.
    fn adopt(&mut self, socket: Self::Socket) -> ConnId;

    /// Hands what is queued to the kernel without waiting.
    ///
    /// # Errors
    /// The driver itself failed.
    fn submit(&mut self) -> Result<(), NetError>;

    /// Moves what happened into `events`.
    fn events(&mut self, events: &mut Vec<NetEvent>);
}
