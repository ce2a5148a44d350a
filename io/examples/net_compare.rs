//! Which socket driver a shard's thread should use: the raw ring that it shares with the disk, or tokio-uring beside it.
//!
//! `cargo run --release -p coracle-io --example net_compare -- DIR [runs]` (DIR for the durable writes of the last
//! workload) runs two threads, pinned to a core each, that talk over loopback: a stream of 16 KiB and of 64 KiB messages
//! with small replies, a ping-pong of 300 bytes, and a round of replication (a durable 4 KiB write here, and 300 bytes to
//! the other side, which answers after a durable write of its own). Drivers take turns, so that both see the same noise.
#![forbid(unsafe_code)]

use std::error::Error;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use coracle_base::limits::BLOCK_BYTES;
use coracle_io::disk::run;
use coracle_io::ring::{
    DiskOptions, RealClock, Ring, RingDisk, RingNet, RingOptions, RingPark, SharedRing, allowed_cores,
    pin_to_core,
};
use coracle_io::{
    Clock, ConnId, Disk, DiskDone, DiskOk, DiskOp, FileId, FileMode, Net, NetEvent, Park, UringNet,
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const RUN_US: u64 = 1_000_000;
const PING_BYTES: usize = 300;
const REPLY_BYTES: usize = 24;
/// The receiver answers each so many bytes, as a follower acknowledges a batch.
const REPLY_EVERY_BYTES: usize = 64 * 1024;
const RECEIVE_BYTES: usize = 256 * 1024;
const FILE_BYTES: u64 = 16 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Workload {
    Stream(usize),
    PingPong,
    Replicate,
}

/// A thread's driver and its park, which for tokio-uring are one.
trait Driver: Sized {
    type Net: Net<Socket = TcpStream>;
    const NAME: &'static str;
    fn new(ring: &SharedRing) -> Result<Self>;
    fn net(&mut self) -> &mut Self::Net;
    fn park(&mut self) -> Result<()>;
}

struct Raw(RingNet, RingPark);

impl Driver for Raw {
    type Net = RingNet;
    const NAME: &'static str = "raw ring";

    fn new(ring: &SharedRing) -> Result<Self> {
        Ok(Self(RingNet::new(ring), RingPark::new(ring)?))
    }

    fn net(&mut self) -> &mut RingNet {
        &mut self.0
    }

    fn park(&mut self) -> Result<()> {
        Ok(self.1.park(None, &|| true)?)
    }
}

struct Tokio(UringNet);

impl Driver for Tokio {
    type Net = UringNet;
    const NAME: &'static str = "tokio-uring";

    fn new(ring: &SharedRing) -> Result<Self> {
        Ok(Self(UringNet::new(Some(ring))?))
    }

    fn net(&mut self) -> &mut UringNet {
        &mut self.0
    }

    fn park(&mut self) -> Result<()> {
        Ok(self.0.park(None, &|| true)?)
    }
}

/// One side: a thread with a ring, a disk and one connection.
struct Side<D> {
    driver: D,
    disk: RingDisk,
    file: FileId,
    next_block: u64,
    conn: ConnId,
    events: Vec<NetEvent>,
    done: Vec<DiskDone>,
}

impl<D: Driver> Side<D> {
    fn new(dir: &Path) -> Result<Self> {
        let ring = Ring::new(&RingOptions::default())?;
        let mut disk = RingDisk::open(&ring, dir, DiskOptions::default())?;
        let open = DiskOp::Open { path: PathBuf::from("log"), mode: FileMode::Durable };
        let (DiskOk::Opened { file, bytes }, _) = run(&mut disk, open)? else {
            return Err("not opened".into());
        };
        if bytes < FILE_BYTES {
            run(&mut disk, DiskOp::Fill { file, offset: 0, bytes: FILE_BYTES })?;
        }
        let driver = D::new(&ring)?;
        let (events, done) = (Vec::new(), Vec::new());
        Ok(Self { driver, disk, file, next_block: 0, conn: ConnId(0), events, done })
    }

    /// Sleeps until something happens, then fetches it. The order of the turn of a shard.
    fn turn(&mut self) -> Result<()> {
        self.driver.park()?;
        self.driver.net().events(&mut self.events);
        self.disk.completions(&mut self.done);
        Ok(())
    }

    fn await_conn(&mut self) -> Result<()> {
        loop {
            self.turn()?;
            match self.events.pop() {
                Some(NetEvent::Accepted { conn, .. } | NetEvent::Connected { conn }) => {
                    self.conn = conn;
                    return Ok(());
                }
                Some(other) => return Err(format!("{other:?}").into()),
                None => {}
            }
        }
    }

    fn send(&mut self, buf: Vec<u8>) {
        self.driver.net().send(self.conn, buf);
    }

    fn receive(&mut self, mut buf: Vec<u8>) {
        buf.clear();
        self.driver.net().receive(self.conn, buf);
    }

    fn write_block(&mut self) {
        let mut buf = self.disk.buffer(BLOCK_BYTES);
        buf.resize(BLOCK_BYTES);
        let offset = self.next_block * BLOCK_BYTES as u64;
        self.next_block = (self.next_block + 1) % (FILE_BYTES / BLOCK_BYTES as u64);
        self.disk.start(0, DiskOp::Write { file: self.file, offset, buf });
    }

    /// Writes that have become durable since the last call.
    fn durable(&mut self) -> Result<usize> {
        let count = self.done.len();
        for done in self.done.drain(..) {
            done.result?;
            done.buf.into_iter().for_each(|buf| self.disk.recycle(buf));
        }
        Ok(count)
    }
}

/// What the client measured.
struct Outcome {
    /// MB/s for streams, microseconds (median) for rounds.
    value: f64,
    p99_us: f64,
    /// Microseconds of CPU of both threads, a megabyte or a round.
    cpu_us: f64,
}

fn serve<D: Driver>(
    workload: Workload,
    dir: &Path,
    core: usize,
    address: &mpsc::Sender<SocketAddr>,
) -> Result<f64> {
    pin_to_core(core)?;
    let mut side = Side::<D>::new(dir)?;
    address.send(side.driver.net().listen("127.0.0.1:0".parse()?)?)?;
    side.await_conn()?;
    let start_us = cpu_us()?;
    side.receive(Vec::with_capacity(RECEIVE_BYTES));
    let mut reply =
        Some(vec![7; if matches!(workload, Workload::Stream(_)) { REPLY_BYTES } else { PING_BYTES }]);
    let mut unanswered = 0;
    loop {
        side.turn()?;
        for event in std::mem::take(&mut side.events) {
            match event {
                NetEvent::Received { buf, bytes, .. } => {
                    unanswered += bytes;
                    side.receive(buf);
                    if workload == Workload::Replicate {
                        side.write_block();
                    }
                }
                NetEvent::Sent { buf, .. } => reply = Some(buf),
                NetEvent::Closed { .. } => return Ok(cpu_us()? - start_us),
                other => return Err(format!("{other:?}").into()),
            }
        }
        let due = match workload {
            Workload::Stream(_) => unanswered >= REPLY_EVERY_BYTES,
            Workload::PingPong => unanswered >= PING_BYTES,
            Workload::Replicate => side.durable()? > 0,
        };
        if due && let Some(buf) = reply.take() {
            unanswered = 0;
            side.send(buf);
        }
    }
}

fn stream<D: Driver>(side: &mut Side<D>, bytes: usize) -> Result<f64> {
    side.receive(Vec::with_capacity(RECEIVE_BYTES));
    side.send(vec![7; bytes]);
    let (start_us, mut sent) = (RealClock.now_us(), 0);
    while RealClock.now_us() - start_us < RUN_US {
        side.turn()?;
        for event in std::mem::take(&mut side.events) {
            match event {
                NetEvent::Sent { buf, .. } => {
                    sent += bytes;
                    side.send(buf);
                }
                NetEvent::Received { buf, .. } => side.receive(buf),
                other => return Err(format!("{other:?}").into()),
            }
        }
    }
    Ok(sent as f64)
}

fn rounds<D: Driver>(side: &mut Side<D>, durable: bool) -> Result<Vec<u64>> {
    let mut latencies_us = Vec::new();
    let start_us = RealClock.now_us();
    side.receive(Vec::with_capacity(RECEIVE_BYTES));
    let mut ping = vec![7; PING_BYTES];
    while RealClock.now_us() - start_us < RUN_US {
        let round_us = RealClock.now_us();
        side.send(std::mem::take(&mut ping));
        if durable {
            side.write_block();
        }
        let (mut sent, mut answered, mut written) = (false, 0, !durable);
        while !sent || answered < PING_BYTES || !written {
            side.turn()?;
            written |= side.durable()? > 0;
            for event in std::mem::take(&mut side.events) {
                match event {
                    NetEvent::Sent { buf, .. } => (sent, ping) = (true, buf),
                    NetEvent::Received { buf, bytes, .. } => {
                        answered += bytes;
                        side.receive(buf);
                    }
                    other => return Err(format!("{other:?}").into()),
                }
            }
        }
        latencies_us.push(RealClock.now_us() - round_us);
    }
    Ok(latencies_us)
}

fn measure<D: Driver + 'static>(workload: Workload, dir: &Path, cores: [usize; 2]) -> Result<Outcome> {
    pin_to_core(cores[0])?;
    let (tell, address) = mpsc::channel();
    let server_dir = dir.join("server");
    let server = std::thread::spawn(move || serve::<D>(workload, &server_dir, cores[1], &tell));
    let mut side = Side::<D>::new(&dir.join("client"))?;
    let address = address.recv()?;
    side.driver.net().connect(address);
    side.await_conn()?;
    let start_us = cpu_us()?;
    let (value, p99_us, units) = match workload {
        Workload::Stream(bytes) => {
            let megabytes = stream(&mut side, bytes)? / 1e6;
            (megabytes * 1e6 / RUN_US as f64, 0.0, megabytes)
        }
        Workload::PingPong | Workload::Replicate => {
            let mut us = rounds(&mut side, workload == Workload::Replicate)?;
            us.sort_unstable();
            (us[us.len() / 2] as f64, us[us.len() * 99 / 100] as f64, us.len() as f64)
        }
    };
    let client_us = cpu_us()? - start_us;
    drop(side);
    let server_us = server.join().map_err(|_| "the server thread panicked")??;
    Ok(Outcome { value, p99_us, cpu_us: (client_us + server_us) / units })
}

/// CPU time of this thread.
fn cpu_us() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let ns: f64 = stat.split_whitespace().next().ok_or("empty schedstat")?.parse()?;
    Ok(ns / 1e3)
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("usage: net_compare DIR [runs]")?);
    let runs: usize = args.next().map_or(Ok(3), |runs| runs.parse())?;
    let cores = allowed_cores()?;
    let cores = [cores[0], cores[1 % cores.len()]];
    let workloads =
        [Workload::Stream(16 * 1024), Workload::Stream(64 * 1024), Workload::PingPong, Workload::Replicate];
    for workload in workloads {
        for run in 1..=runs {
            for (name, outcome) in [
                (Raw::NAME, measure::<Raw>(workload, &dir, cores)?),
                (Tokio::NAME, measure::<Tokio>(workload, &dir, cores)?),
            ] {
                let Outcome { value, p99_us, cpu_us } = outcome;
                let load = std::fs::read_to_string("/proc/loadavg")?;
                let load = load.split_whitespace().next().unwrap_or_default();
                match workload {
                    Workload::Stream(bytes) => println!(
                        "stream {:>3} KiB  run {run}  {name:<12} {value:>7.0} MB/s   cpu {cpu_us:>6.0} us/MB   load {load}",
                        bytes / 1024
                    ),
                    _ => println!(
                        "{workload:<14?}  run {run}  {name:<12} p50 {value:>5.0} us  p99 {p99_us:>6.0} us  cpu {cpu_us:>5.1} us/round  load {load}"
                    ),
                }
            }
        }
    }
    Ok(())
}
