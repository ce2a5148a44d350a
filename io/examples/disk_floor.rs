//! What a durable write costs through [`RingDisk`]: the floor under everything above.
//!
//! `cargo run --release -p coracle-io --example disk_floor -- DIR [strategy]` fills a file of 256 MiB there, then
//! overwrites it: blocks of 4 KiB one at a time, and 256 KiB four at a time, each written through to the device.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::Path;

use coracle_base::limits::BLOCK_BYTES;
use coracle_io::disk::run;
use coracle_io::ring::{DiskOptions, RealClock, Ring, RingDisk, RingOptions};
use coracle_io::{Clock, Disk, DiskDone, DiskOk, DiskOp, FileId, FileMode, Strategy};

const FILE_BYTES: u64 = 256 * 1024 * 1024;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: disk_floor DIR [direct | direct_fsync | buffered | sync | none]")?;
    let strategy: Strategy = args.next().as_deref().unwrap_or("direct").parse()?;
    let ring = Ring::new(&RingOptions::default())?;
    let mut disk = RingDisk::open(&ring, Path::new(&dir), DiskOptions { lock: true, strategy })?;
    let path = "disk_floor";
    let (opened, _) = run(&mut disk, DiskOp::Open { path: path.into(), mode: FileMode::Durable })?;
    let DiskOk::Opened { file, .. } = opened else { return Err("not opened".into()) };

    let started_us = RealClock.now_us();
    run(&mut disk, DiskOp::Fill { file, offset: 0, bytes: FILE_BYTES })?;
    let mib = FILE_BYTES as f64 / (1024.0 * 1024.0);
    println!("{strategy}: filled {mib} MiB in {:.1} ms", (RealClock.now_us() - started_us) as f64 / 1e3);
    for (bytes, depth) in [
        (BLOCK_BYTES, 1),
        (BLOCK_BYTES, 2),
        (BLOCK_BYTES, 4),
        (64 * 1024, 1),
        (256 * 1024, 1),
        (256 * 1024, 4),
    ] {
        overwrite(&mut disk, file, bytes, depth)?;
    }
    run(&mut disk, DiskOp::Close { file })?;
    run(&mut disk, DiskOp::Unlink { path: path.into() })?;
    Ok(())
}

/// Writes front to back for a second, `depth` writes in flight, and prints what that gave.
fn overwrite(disk: &mut RingDisk, file: FileId, bytes: usize, depth: usize) -> Result<()> {
    const RUN_US: u64 = 1_000_000;
    let mut latencies_us = Vec::new();
    let mut offset = 0;
    let mut start = |disk: &mut RingDisk, buf| {
        disk.start(RealClock.now_us(), DiskOp::Write { file, offset, buf });
        offset = (offset + bytes as u64) % FILE_BYTES;
    };
    let started_us = RealClock.now_us();
    for _ in 0..depth {
        let mut buf = disk.buffer(bytes);
        buf.resize(bytes);
        start(disk, buf);
    }
    let mut done = Vec::new();
    while disk.in_flight() > 0 {
        disk.wait()?;
        disk.completions(&mut done);
        let now_us = RealClock.now_us();
        for DiskDone { token: written_us, result, buf } in done.drain(..) {
            result?;
            latencies_us.push(now_us - written_us);
            match buf {
                Some(buf) if now_us - started_us < RUN_US => start(disk, buf),
                buf => buf.into_iter().for_each(|buf| disk.recycle(buf)),
            }
        }
    }
    let seconds = (RealClock.now_us() - started_us) as f64 / 1e6;
    latencies_us.sort_unstable();
    let at = |share: f64| latencies_us[((latencies_us.len() - 1) as f64 * share) as usize];
    println!(
        "{:4} KiB x {depth}: {:6.0} writes/s, {:5.0} MB/s, p50 {} us, p99 {} us, p99.9 {} us",
        bytes / 1024,
        latencies_us.len() as f64 / seconds,
        (latencies_us.len() * bytes) as f64 / seconds / 1e6,
        at(0.5),
        at(0.99),
        at(0.999),
    );
    Ok(())
}
