//! Sockets on tokio-uring: the suite of every `Net` driver, and the bridge to the disk's ring.
#![allow(clippy::unwrap_used)]

mod net_suite;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle_io::ring::{DiskOptions, RealClock, Ring, RingDisk, RingNet, RingOptions};
use coracle_io::{Clock, Disk, DiskOp, FileMode, Net, NetEvent, Park, UringNet};
use net_suite::{Peer, Rig, pattern};

/// Far longer than anything here takes, even on a busy machine.
const DEADLINE_US: u64 = 20_000_000;

struct UringRig(UringNet);

impl UringRig {
    fn new() -> Self {
        Self(UringNet::new(None).unwrap())
    }
}

impl Rig for UringRig {
    type Driver = UringNet;

    fn net(&mut self) -> &mut UringNet {
        &mut self.0
    }

    fn turn(&mut self) {
        let start_us = RealClock.now_us();
        self.0.park(Some(DEADLINE_US), &|| true).unwrap();
        assert!(RealClock.now_us() - start_us < DEADLINE_US, "nothing happens any more");
    }
}

net_suite!(UringRig::new());

/// The disk's ring completes while the thread sleeps in the other one.
#[test]
fn a_disk_operation_wakes_a_sleeping_driver() {
    let dir = tempfile::tempdir().unwrap();
    let ring = Ring::new(&RingOptions::default()).unwrap();
    let mut disk = RingDisk::open(&ring, dir.path(), DiskOptions::default()).unwrap();
    let mut net = UringNet::new(Some(&ring)).unwrap();
    let start_us = RealClock.now_us();
    for round in 0..20u64 {
        disk.start(round, DiskOp::Open { path: PathBuf::from("a"), mode: FileMode::Write });
        let mut done = Vec::new();
        while done.is_empty() {
            net.park(Some(DEADLINE_US), &|| true).unwrap();
            disk.completions(&mut done);
        }
        assert_eq!((done[0].token, done[0].result.is_ok()), (round, true));
    }
    assert!(RealClock.now_us() - start_us < DEADLINE_US, "it woke only when the time was up");
}

#[test]
fn a_waker_ends_a_sleep_and_a_busy_thread_does_not_sleep() {
    let mut net = UringNet::new(None).unwrap();
    let start_us = RealClock.now_us();
    net.park(None, &|| false).unwrap();
    let work = Arc::new(AtomicBool::new(false));
    let waking = std::thread::spawn({
        let (waker, work) = (net.waker(), work.clone());
        move || {
            work.store(true, Ordering::SeqCst);
            waker.wake();
        }
    });
    while !work.load(Ordering::SeqCst) {
        net.park(None, &|| !work.load(Ordering::SeqCst)).unwrap();
    }
    waking.join().unwrap();
    net.park(Some(1000), &|| true).unwrap();
    assert!(RealClock.now_us() - start_us < DEADLINE_US);
}

/// A socket accepted by one driver is served by the other kind in another thread.
#[test]
fn a_socket_moves_to_the_other_driver() {
    let mut peer = Peer::new(UringRig::new());
    let (client, server) = peer.connect();
    peer.send(client, b"before");
    assert_eq!(peer.receive(server, 6), b"before");
    let socket = peer.rig.0.detach(server).unwrap();
    let echo = std::thread::spawn(move || {
        let ring = Ring::new(&RingOptions::default()).unwrap();
        let mut net = RingNet::new(&ring);
        let conn = net.adopt(socket);
        net.receive(conn, Vec::with_capacity(1 << 20));
        let mut park = coracle_io::ring::RingPark::new(&ring).unwrap();
        let mut events = Vec::new();
        while events.is_empty() {
            park.park(Some(DEADLINE_US), &|| true).unwrap();
            net.events(&mut events);
        }
        let Some(NetEvent::Received { buf, .. }) = events.pop() else { panic!("received") };
        net.send(conn, buf);
        while events.is_empty() {
            park.park(Some(DEADLINE_US), &|| true).unwrap();
            net.events(&mut events);
        }
    });
    let message = pattern(3000, 3);
    peer.send(client, &message);
    assert_eq!(peer.receive(client, message.len()), message);
    echo.join().unwrap();
}

#[test]
fn a_dropped_driver_gives_its_address_back() {
    let mut peer = Peer::new(UringRig::new());
    let _ = peer.connect();
    let address = peer.address;
    drop(peer);
    let mut rig = UringRig::new();
    assert_eq!(rig.0.listen(address), Ok(address));
}
