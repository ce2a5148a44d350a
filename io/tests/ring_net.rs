//! Sockets on the raw ring: the suite of every `Net` driver, and what only a real one can do.
#![allow(clippy::unwrap_used)]

mod net_suite;

use coracle_io::ring::{RealClock, Ring, RingNet, RingOptions, RingPark};
use coracle_io::{Clock, Net, Park};
use net_suite::{Peer, Rig, pattern};

/// Far longer than anything here takes, even on a busy machine.
const DEADLINE_US: u64 = 20_000_000;

struct RingRig {
    net: RingNet,
    park: RingPark,
}

impl RingRig {
    fn new() -> Self {
        let ring = Ring::new(&RingOptions::default()).unwrap();
        Self { net: RingNet::new(&ring), park: RingPark::new(&ring).unwrap() }
    }
}

impl Rig for RingRig {
    type Driver = RingNet;

    fn net(&mut self) -> &mut RingNet {
        &mut self.net
    }

    fn turn(&mut self) {
        let start_us = RealClock.now_us();
        self.park.park(Some(DEADLINE_US), &|| true).unwrap();
        assert!(RealClock.now_us() - start_us < DEADLINE_US, "nothing happens any more");
    }
}

net_suite!(RingRig::new());

/// A socket accepted on one thread is served by another one's ring.
#[test]
fn a_socket_moves_to_another_thread() {
    let mut peer = Peer::new(RingRig::new());
    let (client, server) = peer.connect();
    peer.send(client, b"before");
    assert_eq!(peer.receive(server, 6), b"before");
    let socket = peer.rig.net.detach(server).unwrap();
    let echo = std::thread::spawn(move || {
        let mut peer = Peer::new(RingRig::new());
        let conn = peer.rig.net.adopt(socket);
        let message = peer.receive(conn, 100_000);
        peer.send(conn, &message);
    });
    let message = pattern(100_000, 3);
    peer.send(client, &message);
    assert_eq!(peer.receive(client, message.len()), message);
    echo.join().unwrap();
}

/// What was listened on can be listened on again as soon as the driver is gone, also with connections left over.
#[test]
fn a_dropped_driver_gives_its_address_back() {
    let mut peer = Peer::new(RingRig::new());
    let _ = peer.connect();
    let address = peer.address;
    drop(peer);
    let mut rig = RingRig::new();
    assert_eq!(rig.net.listen(address), Ok(address));
}
