//! What a commit costs at least here: a durable 4 KiB write on every node's disk at once, and a loopback round trip.
//!
//! One node sends a byte to each other node, and all write at the same time; each other node sends the byte back once
//! its write is durable. A round ends when the own write and all answers are there. No log, no consensus, no threads to
//! wake: sockets block, and each process writes through the same driver as the engine.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use coracle_base::limits::BLOCK_BYTES;
use coracle_io::ring::{DiskOptions, RealClock, Ring, RingDisk, RingOptions};
use coracle_io::{Buffer, Clock, Disk, DiskError, DiskOk, DiskOp, FileId, FileMode, Strategy, disk};

use crate::latency::Latencies;

/// Size of the file that is overwritten from end to end, again and again.
const FILE_BYTES: u64 = 4 << 20;

/// Why the floor could not be measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FloorError {
    #[error("floor: {0}")]
    Disk(#[from] DiskError),
    #[error("floor: {0}")]
    Network(#[from] io::Error),
}

/// A zero-filled file on a node's disk.
struct FloorDisk {
    disk: RingDisk,
    file: FileId,
    next: u64,
    block: Option<Buffer>,
}

impl FloorDisk {
    fn open(dir: &Path, strategy: Strategy) -> Result<Self, FloorError> {
        let ring = Ring::new(&RingOptions::default())?;
        let mut disk = RingDisk::open(&ring, dir, DiskOptions { lock: true, strategy })?;
        disk.refuse_fallback()?;
        let open = DiskOp::Open { path: PathBuf::from("floor"), mode: FileMode::Durable };
        let (DiskOk::Opened { file, .. }, _) = disk::run(&mut disk, open)? else {
            unreachable!("an open completes as opened")
        };
        disk::run(&mut disk, DiskOp::Fill { file, offset: 0, bytes: FILE_BYTES })?;
        disk::run(&mut disk, DiskOp::Sync { file })?;
        Ok(Self { disk, file, next: 0, block: None })
    }

    /// Writes one block durably.
    fn write(&mut self) -> Result<(), FloorError> {
        let mut buf = self.block.take().unwrap_or_else(|| self.disk.buffer(BLOCK_BYTES));
        buf.resize(BLOCK_BYTES);
        let write = DiskOp::Write { file: self.file, offset: self.next, buf };
        (_, self.block) = disk::run(&mut self.disk, write)?;
        self.next = (self.next + BLOCK_BYTES as u64) % FILE_BYTES;
        Ok(())
    }
}

/// Writes whenever asked, in a thread of its own, until the asker closes the connection.
pub(crate) fn serve(dir: PathBuf, strategy: Strategy) -> Result<SocketAddr, FloorError> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        let served = || -> Result<(), FloorError> {
            let mut disk = FloorDisk::open(&dir, strategy)?;
            let (mut socket, _) = listener.accept()?;
            socket.set_nodelay(true)?;
            let mut byte = [0];
            while socket.read(&mut byte)? > 0 {
                disk.write()?;
                socket.write_all(&byte)?;
            }
            Ok(())
        };
        if let Err(error) = served() {
            tracing::error!(%error, "the floor is not measured on this node");
        }
    });
    Ok(address)
}

/// Makes rounds with the nodes that serve at `peers`, for so long.
pub(crate) fn measure(
    dir: &Path,
    strategy: Strategy,
    peers: &[SocketAddr],
    time: Duration,
) -> Result<Latencies, FloorError> {
    let mut disk = FloorDisk::open(dir, strategy)?;
    let mut sockets = Vec::new();
    for peer in peers {
        let socket = TcpStream::connect(peer)?;
        socket.set_nodelay(true)?;
        sockets.push(socket);
    }
    let mut latencies = Latencies::default();
    let begin_us = RealClock.now_us();
    loop {
        let round_us = RealClock.now_us();
        if round_us - begin_us >= time.as_micros() as u64 {
            return Ok(latencies);
        }
        sockets.iter_mut().try_for_each(|socket| socket.write_all(&[1]))?;
        disk.write()?;
        sockets.iter_mut().try_for_each(|socket| socket.read_exact(&mut [0]))?;
        latencies.record((RealClock.now_us() - round_us) * 1000, 1);
    }
}
