//! What every `Net` driver owes its users, as tests that run on all of them. One driver talks to itself over loopback
//! (or a simulated network), since what matters is what its two connections' ends see.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::net::SocketAddr;

use coracle_io::{ConnId, Net, NetError, NetEvent};

/// A driver and the means to let time pass.
pub trait Rig {
    /// The driver under test.
    type Driver: Net;
    fn net(&mut self) -> &mut Self::Driver;
    /// Submits, and lets something happen; panics if nothing ever will.
    fn turn(&mut self);
}

/// A rig, its listener and the events that no test has asked for yet.
pub struct Peer<R> {
    pub rig: R,
    pub address: SocketAddr,
    events: Vec<NetEvent>,
}

/// An event without its bytes, which would drown the message.
fn name(event: &NetEvent) -> String {
    match event {
        NetEvent::Received { bytes, .. } => format!("received {bytes} bytes"),
        NetEvent::Sent { buf, .. } => format!("sent {} bytes", buf.len()),
        other => format!("{other:?}"),
    }
}

impl<R: Rig> Peer<R> {
    pub fn new(mut rig: R) -> Self {
        let address = rig.net().listen("127.0.0.1:0".parse().unwrap()).unwrap();
        assert_ne!(address.port(), 0);
        Self { rig, address, events: Vec::new() }
    }

    /// Turns until an event comes that `wanted` likes.
    pub fn next(&mut self, wanted: impl Fn(&NetEvent) -> bool) -> NetEvent {
        loop {
            if let Some(at) = self.events.iter().position(&wanted) {
                return self.events.remove(at);
            }
            self.rig.turn();
            self.rig.net().events(&mut self.events);
        }
    }

    /// The next event of a connection.
    pub fn next_of(&mut self, conn: ConnId) -> NetEvent {
        self.next(|event| event.conn() == conn)
    }

    /// A connection's two ends: who connected, who accepted.
    pub fn connect(&mut self) -> (ConnId, ConnId) {
        let address = self.address;
        let ours = self.rig.net().connect(address);
        let event = self.next_of(ours);
        assert!(matches!(event, NetEvent::Connected { .. }), "{}", name(&event));
        let NetEvent::Accepted { conn, from } = self.next(|e| matches!(e, NetEvent::Accepted { .. })) else {
            unreachable!("as asked for");
        };
        assert_ne!(from.port(), 0);
        (ours, conn)
    }

    pub fn send(&mut self, conn: ConnId, bytes: &[u8]) {
        self.rig.net().send(conn, bytes.to_vec());
        match self.next(|e| e.conn() == conn && !matches!(e, NetEvent::Received { .. })) {
            NetEvent::Sent { buf, .. } => assert_eq!(buf, bytes, "the buffer comes back, still filled"),
            other => panic!("{}", name(&other)),
        }
    }

    /// Receives exactly so many bytes.
    pub fn receive(&mut self, conn: ConnId, bytes: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < bytes {
            let before = all.len();
            self.rig.net().receive(conn, all);
            match self.next(|e| e.conn() == conn && !matches!(e, NetEvent::Sent { .. })) {
                NetEvent::Received { buf, bytes, .. } => {
                    assert_eq!(buf.len(), before + bytes);
                    assert_ne!(bytes, 0);
                    all = buf;
                }
                other => panic!("{}", name(&other)),
            }
        }
        assert_eq!(all.len(), bytes);
        all
    }

    /// Closes, and forgets what had been said before.
    fn close(&mut self, conn: ConnId) {
        self.rig.net().close(conn);
        self.events.retain(|event| event.conn() != conn);
    }

    fn closed(&mut self, conn: ConnId) -> NetError {
        match self.next_of(conn) {
            NetEvent::Closed { error, .. } => error,
            other => panic!("{}", name(&other)),
        }
    }
}

pub fn pattern(bytes: usize, seed: usize) -> Vec<u8> {
    (0..bytes).map(|i| ((i * 31 + seed) ^ (i >> 9)) as u8).collect()
}

pub fn echo<R: Rig>(rig: R) {
    let mut peer = Peer::new(rig);
    let (client, server) = peer.connect();
    for round in 0..100 {
        let message = pattern(1 + round * 7, round);
        peer.send(client, &message);
        assert_eq!(peer.receive(server, message.len()), message);
        peer.send(server, &message);
        assert_eq!(peer.receive(client, message.len()), message);
    }
}

/// A message far larger than any socket buffer: the send completes only as the receiver makes room.
pub fn large_messages_arrive_whole_in_pieces<R: Rig>(rig: R) {
    let mut peer = Peer::new(rig);
    let (client, server) = peer.connect();
    for round in 0..2 {
        let message = pattern((12 << 20) + round, round);
        peer.rig.net().send(client, message.clone());
        assert!(peer.receive(server, message.len()) == message);
        assert!(matches!(peer.next_of(client), NetEvent::Sent { buf, .. } if buf == message));
    }
}

/// A receive appends to what the buffer holds, into the room that it has.
pub fn a_receive_appends_into_spare_room<R: Rig>(rig: R) {
    let mut peer = Peer::new(rig);
    let (client, server) = peer.connect();
    peer.send(client, &pattern(50_000, 1));
    let mut buf = Vec::with_capacity(9_000);
    buf.extend_from_slice(b"head");
    peer.rig.net().receive(server, buf);
    let NetEvent::Received { buf, bytes, .. } = peer.next_of(server) else { panic!("received") };
    assert!(buf.starts_with(b"head") && buf.len() == 4 + bytes && bytes <= 9_000 - 4);
    assert_eq!(buf[4..], pattern(50_000, 1)[..bytes]);
    assert_eq!(peer.receive(server, 50_000 - bytes), pattern(50_000, 1)[bytes..]);
}

pub fn a_peer_that_closes_is_noticed_after_its_last_byte<R: Rig>(rig: R) {
    let mut peer = Peer::new(rig);
    let (client, server) = peer.connect();
    peer.send(client, b"last words");
    peer.rig.net().close(client);
    assert_eq!(peer.receive(server, 10), b"last words");
    peer.rig.net().receive(server, Vec::new());
    assert_eq!(peer.closed(server), NetError::Closed);
    peer.rig.net().close(server);
    peer.rig.net().close(ConnId(u64::MAX));
    assert!(peer.rig.net().detach(server).is_none() && peer.rig.net().detach(client).is_none());
}

pub fn nobody_listening_is_refused<R: Rig>(mut rig: R) {
    // A port that was free a moment ago.
    let address = {
        let std = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        std.local_addr().unwrap()
    };
    let conn = rig.net().connect(address);
    let mut peer = Peer::new(rig);
    assert_eq!(peer.closed(conn), NetError::Refused);
}

pub fn two_listeners_cannot_share_an_address<R: Rig>(rig: R) {
    let mut peer = Peer::new(rig);
    let address = peer.address;
    let error = peer.rig.net().listen(address).unwrap_err();
    assert!(matches!(error, NetError::Failed { op: "listen", code: 98, .. }), "{error:?}");
}

/// After our own close nothing more is said about a connection, whatever was in flight; the other side learns of it.
pub fn closing_with_operations_in_flight_is_silent_here_and_seen_there<R: Rig>(rig: R) {
    let mut peer = Peer::new(rig);
    for submitted in [false, true] {
        let (client, server) = peer.connect();
        peer.rig.net().receive(client, Vec::new());
        peer.rig.net().send(client, pattern(24 << 20, 0));
        peer.rig.net().receive(server, Vec::new());
        if submitted {
            let event = peer.next_of(server);
            assert!(matches!(event, NetEvent::Received { .. }));
            peer.rig.net().receive(server, Vec::new());
        }
        peer.close(client);
        // Bytes that made it, then the end.
        while let NetEvent::Received { buf, .. } = peer.next_of(server) {
            peer.rig.net().receive(server, buf);
        }
        // The driver still works, and a full round trip later the closed end has still said nothing.
        let (one, other) = peer.connect();
        peer.send(one, b"still here");
        assert_eq!(peer.receive(other, 10), b"still here");
        assert!(!peer.events.iter().any(|event| event.conn() == client));
    }
}

/// A connect that is closed before it is made disappears.
pub fn closing_while_connecting_is_silent<R: Rig>(rig: R) {
    let mut peer = Peer::new(rig);
    for submitted in [false, true] {
        let address = peer.address;
        let conn = peer.rig.net().connect(address);
        if submitted {
            peer.rig.net().submit().unwrap();
        }
        peer.rig.net().close(conn);
        let address = peer.address;
        let other = peer.rig.net().connect(address);
        assert!(matches!(peer.next_of(other), NetEvent::Connected { .. }));
        assert!(!peer.events.iter().any(|event| event.conn() == conn));
    }
}

pub fn a_hundred_connections_at_once<R: Rig>(rig: R) {
    let mut peer = Peer::new(rig);
    let pairs: Vec<_> = (0..100).map(|_| peer.connect()).collect();
    for (i, (client, server)) in pairs.iter().enumerate() {
        peer.rig.net().receive(*server, Vec::new());
        peer.rig.net().receive(*client, Vec::new());
        peer.rig.net().send(*client, pattern(3000, i));
    }
    for (i, (client, server)) in pairs.iter().enumerate() {
        let NetEvent::Received { mut buf, .. } = peer.next_of(*server) else { panic!("received") };
        buf.extend(peer.receive(*server, 3000 - buf.len()));
        assert_eq!(buf, pattern(3000, i));
        peer.rig.net().send(*server, buf);
        assert!(matches!(peer.next_of(*client), NetEvent::Sent { .. }));
    }
    for (i, (client, _)) in pairs.iter().enumerate() {
        let NetEvent::Received { mut buf, .. } = peer.next_of(*client) else { panic!("received") };
        buf.extend(peer.receive(*client, 3000 - buf.len()));
        assert_eq!(buf, pattern(3000, i));
    }
}

pub fn a_detached_connection_goes_on_where_it_was_under_a_new_name<R: Rig>(rig: R) {
    let mut peer = Peer::new(rig);
    let (client, server) = peer.connect();
    peer.send(client, b"hello, whoever you are");
    assert_eq!(peer.receive(server, 22), b"hello, whoever you are");
    peer.send(client, b"more");
    let socket = peer.rig.net().detach(server).unwrap();
    assert!(peer.rig.net().detach(server).is_none());
    let adopted = peer.rig.net().adopt(socket);
    assert_ne!(adopted, server);
    assert_eq!(peer.receive(adopted, 4), b"more");
    peer.send(adopted, b"answer");
    assert_eq!(peer.receive(client, 6), b"answer");
}

pub fn dropping_a_driver_mid_flight_frees_everything<R: Rig>(rig: R) {
    let mut peer = Peer::new(rig);
    let address = peer.address;
    for _ in 0..10 {
        let (client, server) = peer.connect();
        peer.rig.net().send(client, pattern(8 << 20, 0));
        peer.rig.net().receive(client, Vec::with_capacity(1 << 20));
        peer.rig.net().receive(server, Vec::with_capacity(1 << 20));
        peer.rig.net().connect(address);
    }
    peer.rig.turn();
    drop(peer);
}

pub fn a_send_beside_a_send_is_the_callers_mistake<R: Rig>(rig: R) {
    let mut peer = Peer::new(rig);
    let (client, _) = peer.connect();
    peer.rig.net().send(client, vec![1]);
    let twice =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| peer.rig.net().send(client, vec![2])));
    assert!(twice.is_err());
}

/// Makes a test of each of these for a rig.
#[macro_export]
macro_rules! net_suite {
    ($new:expr; $($name:ident)*) => {
        $(#[test] fn $name() { net_suite::$name($new) })*
    };
    ($new:expr) => {
        $crate::net_suite! { $new;
            echo
            large_messages_arrive_whole_in_pieces
            a_receive_appends_into_spare_room
            a_peer_that_closes_is_noticed_after_its_last_byte
            nobody_listening_is_refused
            two_listeners_cannot_share_an_address
            closing_with_operations_in_flight_is_silent_here_and_seen_there
            closing_while_connecting_is_silent
            a_hundred_connections_at_once
            a_detached_connection_goes_on_where_it_was_under_a_new_name
            dropping_a_driver_mid_flight_frees_everything
            a_send_beside_a_send_is_the_callers_mistake
        }
    };
}
