//! Bare writes: what the disk gives through the same driver when there is no log above it.
//!
//! They overwrite the log's own files, once the log is done with them, so both had the same blocks of the device.

use std::path::PathBuf;
use std::time::Duration;

use coracle_base::limits::BATCH_BYTES_MAX;
use coracle_io::{Buffer, Clock, Disk, DiskDone, DiskError, DiskOk, DiskOp, FileId, FileMode, disk};

use super::recorder::Shape;
use crate::latency::Latencies;

/// Sizes and depths among which the best is sought.
pub(super) const BEST_OF_BYTES: [usize; 3] = [64 * 1024, 256 * 1024, 1024 * 1024];
pub(super) const BEST_OF_DEPTH: [usize; 3] = [1, 2, 4];

/// Files that bare writes go to, one after the other and round again.
pub(super) struct Target {
    files: Vec<FileId>,
    file_bytes: u64,
    /// Never zeros: some devices store those for free.
    pattern: Vec<u8>,
    at: (usize, u64),
}

/// What some bare writes came to.
#[derive(Debug, Clone)]
pub(super) struct Bare {
    pub(super) bytes: u64,
    pub(super) micros: u64,
    pub(super) latencies: Latencies,
}

impl Target {
    /// Opens those of `paths` that are `file_bytes` long.
    pub(super) fn open<D: Disk>(disk: &mut D, paths: &[PathBuf], file_bytes: u64) -> Result<Self, DiskError> {
        let mut files = Vec::new();
        for path in paths {
            let open = DiskOp::Open { path: path.clone(), mode: FileMode::Durable };
            if let (DiskOk::Opened { file, bytes }, _) = disk::run(disk, open)?
                && bytes == file_bytes
            {
                files.push(file);
            }
        }
        let pattern =
            (0..BATCH_BYTES_MAX as u64).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 11) as u8 | 1).collect();
        Ok(Self { files, file_bytes, pattern, at: (0, 0) })
    }

    /// Where the next `bytes` go.
    fn place(&mut self, bytes: u64) -> (FileId, u64) {
        if self.at.1 + bytes > self.file_bytes {
            self.at = ((self.at.0 + 1) % self.files.len(), 0);
        }
        let offset = self.at.1;
        self.at.1 += bytes;
        (self.files[self.at.0], offset)
    }

    /// A buffer of `bytes`, out of `free` if there is one.
    fn buffer<D: Disk>(&self, disk: &mut D, free: &mut Vec<Buffer>, bytes: usize) -> Buffer {
        let at = free.iter().position(|buf| buf.capacity() >= bytes);
        let mut buf = at.map_or_else(|| disk.buffer(bytes), |at| free.swap_remove(at));
        let old = buf.len();
        buf.resize(bytes);
        if old < bytes {
            buf[old..].copy_from_slice(&self.pattern[old..bytes]);
        }
        buf
    }
}

/// Writes `shapes`, each as soon as fewer than its depth are in flight, until `time` is up or there are no more.
pub(super) fn write<D: Disk>(
    disk: &mut D,
    clock: &impl Clock,
    target: &mut Target,
    shapes: impl IntoIterator<Item = Shape>,
    time: Duration,
) -> Result<Bare, DiskError> {
    let started_us = clock.now_us();
    let end_us = started_us + time.as_micros() as u64;
    let mut bare = Bare { bytes: 0, micros: 0, latencies: Latencies::default() };
    let (mut free, mut done) = (Vec::new(), Vec::<DiskDone>::new());
    let mut shapes = shapes.into_iter();
    let mut next = shapes.next();
    loop {
        while let Some(Shape { bytes, depth }) = next
            && disk.in_flight() < depth
            && clock.now_us() < end_us
        {
            let (file, offset) = target.place(bytes as u64);
            let buf = target.buffer(disk, &mut free, bytes);
            bare.bytes += bytes as u64;
            disk.start(clock.now_us(), DiskOp::Write { file, offset, buf });
            disk.submit()?;
            next = shapes.next();
        }
        if disk.in_flight() == 0 {
            break;
        }
        disk.wait()?;
        disk.completions(&mut done);
        let now_us = clock.now_us();
        for one in done.drain(..) {
            one.result?;
            free.extend(one.buf);
            // The token is when it was started: nothing else needs to be told apart.
            bare.latencies.record((now_us - one.token) * 1000, 1);
        }
    }
    bare.micros = clock.now_us() - started_us;
    free.into_iter().for_each(|buf| disk.recycle(buf));
    Ok(bare)
}
