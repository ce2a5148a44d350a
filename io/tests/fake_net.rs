//! The simulated network is a `Net` like the others (the suite), and its faults do what they say and nothing else.
#![cfg(feature = "fake")]
#![allow(clippy::unwrap_used)]

mod net_suite;

use std::net::SocketAddr;

use coracle_io::fake::{FakeNet, FakeNetwork, NetOptions, NetRates, NodeStop};
use coracle_io::{ConnId, Net, NetError, NetEvent};
use net_suite::{Rig, pattern};

struct FakeRig {
    network: FakeNetwork,
    net: FakeNet,
}

impl FakeRig {
    fn new() -> Self {
        let network = FakeNetwork::new(7);
        Self { net: network.driver(1), network }
    }
}

impl Rig for FakeRig {
    type Driver = FakeNet;

    fn net(&mut self) -> &mut FakeNet {
        &mut self.net
    }

    fn turn(&mut self) {
        self.net.submit().unwrap();
        match self.network.next_event_us() {
            Some(us) => self.network.advance(us),
            None => assert!(self.net.has_events(), "nothing will ever happen"),
        }
    }
}

net_suite!(FakeRig::new());

/// Two nodes with a connection between them.
struct Two {
    network: FakeNetwork,
    now_us: u64,
    nets: [FakeNet; 2],
    conns: [ConnId; 2],
    address: SocketAddr,
}

impl Two {
    fn new(seed: u64) -> Self {
        let network = FakeNetwork::new(seed);
        network.set_options(NetOptions { timeout_us: 1_000_000, ..NetOptions::default() });
        let nets = [network.driver(1), network.driver(2)];
        let address = FakeNetwork::address(2, 7000);
        let mut two = Self { network, now_us: 0, nets, conns: [ConnId(0); 2], address };
        two.nets[1].listen(address).unwrap();
        two.conns[0] = two.nets[0].connect(address);
        two.run(1000);
        let [one, other] = [two.events(0), two.events(1)];
        assert!(matches!(one[..], [NetEvent::Connected { .. }]), "{one:?}");
        let [NetEvent::Accepted { conn, .. }] = other[..] else { panic!("{other:?}") };
        two.conns[1] = conn;
        two
    }

    /// Submits and lets so much time pass.
    fn run(&mut self, us: u64) {
        // A node that was stopped cannot.
        self.nets.iter_mut().for_each(|net| drop(net.submit()));
        self.now_us += us;
        self.network.advance(self.now_us);
    }

    fn events(&mut self, side: usize) -> Vec<NetEvent> {
        let mut events = Vec::new();
        self.nets[side].events(&mut events);
        events
    }

    fn send(&mut self, side: usize, bytes: &[u8]) {
        let conn = self.conns[side];
        self.nets[side].send(conn, bytes.to_vec());
        self.nets[side].submit().unwrap();
        assert!(matches!(self.events(side)[..], [NetEvent::Sent { .. }]));
    }

    /// What the side has received within the time, and how the connection ended if it did.
    fn receive(&mut self, side: usize, us: u64) -> (Vec<u8>, Option<NetError>) {
        let mut all = Vec::new();
        let conn = self.conns[side];
        let until_us = self.now_us + us;
        self.nets[side].receive(conn, Vec::new());
        while self.now_us < until_us {
            self.run(10);
            for event in self.events(side) {
                match event {
                    NetEvent::Received { buf, .. } => {
                        all.extend(buf);
                        self.nets[side].receive(conn, Vec::new());
                    }
                    NetEvent::Closed { error, .. } => return (all, Some(error)),
                    other => panic!("{other:?}"),
                }
            }
        }
        (all, None)
    }
}

fn code(error: Option<NetError>) -> i32 {
    match error {
        Some(NetError::Failed { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

const ECONNRESET: i32 = 104;
const ETIMEDOUT: i32 = 110;

/// Sends chunks of 100 bytes, each filled with its number, and says which arrived, in order; damaged ones as 255.
fn chunks_through(rates: NetRates, seed: u64) -> (Vec<u8>, u64) {
    let mut two = Two::new(seed);
    two.network.set_rates(rates);
    (0..200).for_each(|i| two.send(0, &[i; 100]));
    let (bytes, error) = two.receive(1, 10_000);
    assert_eq!(error, None);
    let whole = |chunk: &[u8]| if chunk.iter().all(|b| *b == chunk[0]) { chunk[0] } else { 255 };
    (bytes.chunks(100).map(whole).collect(), two.network.fault_counts().values().sum())
}

#[test]
fn without_faults_every_chunk_comes_once_and_in_order() {
    assert_eq!(chunks_through(NetRates::default(), 3), ((0..200).collect(), 0));
    let (split, count) = chunks_through(NetRates { split: 2, ..NetRates::default() }, 3);
    assert_eq!(split, (0..200).collect::<Vec<u8>>(), "split receives lose nothing");
    assert!(count > 0);
}

#[test]
fn each_chunk_fault_does_what_it_says_and_is_counted() {
    let (got, count) = chunks_through(NetRates { drop: 10, ..NetRates::default() }, 3);
    assert!(
        got.is_sorted() && got.len() as u64 == 200 - count && (5..50).contains(&count),
        "{count}: {got:?}"
    );
    let (got, count) = chunks_through(NetRates { duplicate: 10, ..NetRates::default() }, 3);
    assert!(
        got.is_sorted() && got.len() as u64 == 200 + count && (5..50).contains(&count),
        "{count}: {got:?}"
    );
    let (got, count) = chunks_through(NetRates { corrupt: 10, ..NetRates::default() }, 3);
    let damaged = got.iter().enumerate().filter(|(i, byte)| **byte as usize != *i).count() as u64;
    assert!(got.len() == 200 && damaged == count && (5..50).contains(&count), "{count}: {got:?}");
    let (mut got, count) = chunks_through(NetRates { reorder: 10, ..NetRates::default() }, 3);
    assert!(!got.is_sorted() && (5..50).contains(&count), "{count}: {got:?}");
    got.sort();
    assert_eq!(got, (0..200).collect::<Vec<u8>>());
}

#[test]
fn the_same_seed_mishandles_the_same_chunks() {
    let rates = NetRates { drop: 9, duplicate: 9, reorder: 9, corrupt: 9, split: 9, reset: 0 };
    assert_eq!(chunks_through(rates, 5), chunks_through(rates, 5));
    assert_ne!(chunks_through(rates, 5), chunks_through(rates, 6));
}

#[test]
fn a_one_way_block_holds_one_way_and_healing_delivers() {
    let mut two = Two::new(1);
    two.network.block(1, 2);
    two.send(0, b"held");
    two.send(1, b"passes");
    assert_eq!(two.receive(0, 1000), (b"passes".to_vec(), None));
    assert_eq!(two.receive(1, 1000), (vec![], None));
    two.network.unblock(1, 2);
    let conn = two.conns[1];
    two.run(1000);
    assert!(
        matches!(&two.events(1)[..], [NetEvent::Received { conn: c, buf, .. }] if *c == conn && buf == b"held")
    );
}

#[test]
fn a_block_beyond_the_timeout_breaks_the_sender_and_later_the_other() {
    let mut two = Two::new(1);
    two.network.partition(&[&[1], &[2]]);
    two.send(0, b"never seen");
    assert_eq!(code(two.receive(0, 2_000_000).1), ETIMEDOUT);
    two.network.heal();
    assert_eq!(two.receive(1, 100_000), (vec![], None), "it has heard nothing, so it knows nothing");
    let conn = two.conns[1];
    two.nets[1].send(conn, b"hello?".to_vec());
    two.run(1000);
    let events = two.events(1);
    assert!(
        matches!(
            &events[..],
            [
                NetEvent::Sent { .. },
                NetEvent::Closed { error: NetError::Failed { code: ECONNRESET, .. }, .. }
            ]
        ),
        "{events:?}"
    );
}

#[test]
fn a_killed_node_resets_its_connections_and_refuses_new_ones() {
    let mut two = Two::new(1);
    two.network.stop_node(2, NodeStop::Killed);
    assert!(two.nets[1].submit().is_err(), "a dead driver knows that it is dead");
    two.nets[1] = two.network.driver(2);
    assert_eq!(code(two.receive(0, 1000).1), ECONNRESET);
    let again = two.nets[0].connect(two.address);
    two.run(1000);
    let events = two.events(0);
    assert!(
        matches!(&events[..], [NetEvent::Closed { conn, error: NetError::Refused }] if *conn == again),
        "{events:?}"
    );
}

#[test]
fn a_node_without_power_is_silent_until_the_timeout_or_its_return() {
    let mut two = Two::new(1);
    two.network.stop_node(2, NodeStop::PowerLoss);
    two.send(0, b"anyone?");
    assert_eq!(two.receive(0, 900_000), (vec![], None));
    two.nets[1] = two.network.driver(2);
    two.run(1000);
    let events = two.events(0);
    let reset =
        NetError::Failed { op: "receive", code: ECONNRESET, reason: "connection reset by peer".into() };
    assert!(matches!(&events[..], [NetEvent::Closed { error, .. }] if *error == reset), "{events:?}");

    let mut two = Two::new(1);
    two.network.stop_node(2, NodeStop::PowerLoss);
    two.nets[1] = FakeNetwork::new(1).driver(2);
    let dialling = two.nets[0].connect(two.address);
    assert_eq!(two.nets[0].submit(), Ok(()));
    two.now_us += 5_000_000;
    two.network.advance(two.now_us);
    let events = two.events(0);
    assert!(
        matches!(&events[..], [NetEvent::Closed { conn, error }] if *conn == dialling && code(Some(error.clone())) == ETIMEDOUT),
        "the idle connection says nothing until somebody asks: {events:?}"
    );
    let conn = two.conns[0];
    two.nets[0].receive(conn, Vec::new());
    two.nets[0].submit().unwrap();
    assert!(
        matches!(&two.events(0)[..], [NetEvent::Closed { error, .. }] if code(Some(error.clone())) == ETIMEDOUT)
    );
}

#[test]
fn a_slow_reader_stops_the_sender() {
    let mut two = Two::new(1);
    two.network.set_options(NetOptions { window_bytes: 10_000, ..NetOptions::default() });
    two.send(0, &pattern(10_000, 1));
    let conn = two.conns[0];
    two.nets[0].send(conn, pattern(500, 2));
    two.run(5000);
    assert_eq!(two.events(0).len(), 0, "no room");
    let (bytes, _) = two.receive(1, 5000);
    assert_eq!(bytes, [pattern(10_000, 1), pattern(500, 2)].concat());
    assert!(matches!(two.events(0)[..], [NetEvent::Sent { .. }]));
}

#[test]
fn resets_reach_both_sides_and_connections_can_be_made_again() {
    let mut two = Two::new(1);
    two.network.reset_connections(1, 2);
    two.run(1000);
    assert_eq!([0, 1].map(|side| code(two.receive(side, 100).1)), [ECONNRESET; 2]);
    let again = two.nets[0].connect(two.address);
    two.run(1000);
    assert!(matches!(&two.events(0)[..], [NetEvent::Connected { conn }] if *conn == again));
}

#[test]
fn latency_is_within_its_range_and_the_next_event_is_known() {
    let mut two = Two::new(1);
    two.network.set_options(NetOptions { latency_us: (300, 400), ..NetOptions::default() });
    for _ in 0..50 {
        two.send(0, b"x");
        let start_us = two.now_us;
        let due_us = two.network.next_event_us().unwrap();
        assert!((300..=400).contains(&(due_us - start_us)));
        let conn = two.conns[1];
        two.nets[1].receive(conn, Vec::new());
        two.run(due_us - start_us - 1);
        assert_eq!(two.events(1).len(), 0);
        two.run(1);
        assert_eq!(two.events(1).len(), 1);
    }
}
