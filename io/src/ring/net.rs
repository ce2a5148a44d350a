//! The real [`Net`] on the thread's ring: sockets and files leave and arrive with the same system call.
//!
//! Each connection has at most one operation of each kind in flight; the ring's table owns its buffer until it
//! completes. A connection that ends stays in its slot, cancelled and silent, until its last operation is back.
//!
//! Invariants: (1) a slot is not used again while an operation of its former connection is in flight, so a completion
//! never reaches the wrong connection; (2) after `Closed` or `close` a connection has no further event.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;

use super::core::{ClientId, Completion, OpKey, SharedRing};
use super::ops::RingOp;
use super::socket::{SocketOp, listener, net_error, received, ring_error, socket_error, unconnected};
use super::sys;
use crate::net::RECEIVE_BYTES_MIN;
use crate::{ConnId, Net, NetError, NetEvent};

/// A listener that cannot accept (out of descriptors, say) tries again after so long.
const REST: Duration = Duration::from_millis(100);

/// What an operation in flight is for, as its token says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Connect,
    Send,
    Receive,
    Accept,
}

const PURPOSES: [Purpose; 4] = [Purpose::Connect, Purpose::Send, Purpose::Receive, Purpose::Accept];

fn token(slot: usize, purpose: Purpose) -> u64 {
    (slot as u64) << 2 | purpose as u64
}

#[derive(Debug)]
struct Connection {
    id: ConnId,
    socket: Arc<TcpStream>,
    /// By purpose: connect, send, receive.
    in_flight: [Option<OpKey>; 3],
    /// It has ended for its user, and waits for the kernel.
    ended: bool,
}

#[derive(Debug)]
struct Listener {
    socket: Arc<TcpListener>,
    /// Its accept, or its rest.
    in_flight: OpKey,
}

/// [`Net`] on an io_uring.
pub struct RingNet {
    ring: SharedRing,
    client: ClientId,
    connections: Slab<Connection>,
    /// Rises with each connection, and makes names unique although slots are used again.
    generation: u32,
    listeners: Vec<Listener>,
    events: Vec<NetEvent>,
}

impl RingNet {
    /// A driver on the ring of this thread.
    #[must_use]
    pub fn new(ring: &SharedRing) -> Self {
        let client = ring.borrow_mut().add_client();
        Self {
            ring: ring.clone(),
            client,
            connections: Slab::new(),
            generation: 0,
            listeners: Vec::new(),
            events: Vec::new(),
        }
    }

    fn insert(&mut self, socket: Arc<TcpStream>) -> usize {
        self.generation = self.generation.wrapping_add(1);
        let entry = self.connections.vacant_entry();
        let slot = entry.key();
        let id = ConnId(u64::from(self.generation) << 32 | slot as u64);
        entry.insert(Connection { id, socket, in_flight: [None; 3], ended: false });
        slot
    }

    /// The slot of a connection that has not ended.
    fn slot(&self, conn: ConnId) -> Option<usize> {
        let slot = (conn.0 & u64::from(u32::MAX)) as usize;
        self.connections.get(slot).filter(|connection| connection.id == conn && !connection.ended)?;
        Some(slot)
    }

    fn push(&mut self, slot: usize, purpose: Purpose, op: SocketOp) {
        let key = self.ring.borrow_mut().push(self.client, token(slot, purpose), RingOp::Socket(op));
        self.connections[slot].in_flight[purpose as usize] = Some(key);
    }

    /// An event that comes from no completion, so that the ring cannot know of it.
    fn emit(&mut self, event: NetEvent) {
        self.events.push(event);
        self.ring.borrow_mut().set_ready(self.client, true);
    }

    fn accept(&self, listener: usize, op: SocketOp) -> OpKey {
        self.ring.borrow_mut().push(self.client, token(listener, Purpose::Accept), RingOp::Socket(op))
    }

    // ---- completions --------------------------------------------------------------------------------------------

    fn on_completion(&mut self, Completion { token, result, op }: Completion) {
        let (slot, purpose) = ((token >> 2) as usize, PURPOSES[(token & 3) as usize]);
        let Some(RingOp::Socket(op)) = op else {
            tracing::error!(?purpose, "a socket operation came back as something else");
            return;
        };
        if purpose == Purpose::Accept {
            return self.on_accept(slot, result, op);
        }
        self.connections[slot].in_flight[purpose as usize] = None;
        if self.connections[slot].ended {
            return self.free_if_idle(slot);
        }
        let again = matches!(-result, libc::EINTR | libc::EAGAIN);
        match op {
            _ if again => self.push(slot, purpose, op),
            _ if result < 0 => self.fail(slot, net_error(name(purpose), -result)),
            SocketOp::Send { socket, buf, at } => self.on_sent(slot, socket, buf, at + result as usize),
            SocketOp::Receive { .. } if result == 0 => self.fail(slot, NetError::Closed),
            SocketOp::Receive { buf, .. } => {
                let (conn, bytes) = (self.connections[slot].id, result as usize);
                self.events.push(NetEvent::Received { conn, buf: received(buf, bytes), bytes });
            }
            _ => self.on_connected(slot),
        }
    }

    fn on_accept(&mut self, listener: usize, result: i32, op: SocketOp) {
        if let SocketOp::Accept { .. } = op
            && result >= 0
        {
            self.on_accepted(TcpStream::from(sys::adopt_descriptor(result)));
        }
        // The client may have gone again before it was accepted; that is no reason to rest.
        let again = matches!(-result, libc::EINTR | libc::EAGAIN | libc::ECONNABORTED | libc::ETIME);
        let next = if result >= 0 || again {
            SocketOp::Accept { listener: self.listeners[listener].socket.clone() }
        } else {
            tracing::warn!(error = %net_error("accept", -result), "cannot accept connections; trying again");
            SocketOp::rest(REST)
        };
        self.listeners[listener].in_flight = self.accept(listener, next);
    }

    fn on_accepted(&mut self, socket: TcpStream) {
        // A client that has gone already has no address any more, and needs no answer.
        let Ok(from) = socket.peer_addr() else { return };
        set_nodelay(&socket);
        let slot = self.insert(Arc::new(socket));
        self.events.push(NetEvent::Accepted { conn: self.connections[slot].id, from });
    }

    fn on_connected(&mut self, slot: usize) {
        let connection = &self.connections[slot];
        set_nodelay(&connection.socket);
        self.events.push(NetEvent::Connected { conn: connection.id });
    }

    fn on_sent(&mut self, slot: usize, socket: Arc<TcpStream>, buf: Vec<u8>, at: usize) {
        if at < buf.len() {
            return self.push(slot, Purpose::Send, SocketOp::Send { socket, buf, at });
        }
        self.events.push(NetEvent::Sent { conn: self.connections[slot].id, buf });
    }

    fn fail(&mut self, slot: usize, error: NetError) {
        self.events.push(NetEvent::Closed { conn: self.connections[slot].id, error });
        self.end(slot);
    }

    /// Nothing more is said about this connection; it is freed when the kernel has let go of it.
    fn end(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        connection.ended = true;
        let mut ring = self.ring.borrow_mut();
        connection.in_flight.iter().flatten().for_each(|key| ring.cancel(*key));
        drop(ring);
        self.free_if_idle(slot);
    }

    fn free_if_idle(&mut self, slot: usize) {
        if self.connections[slot].in_flight.iter().all(Option::is_none) {
            self.connections.remove(slot);
        }
    }
}

impl Net for RingNet {
    type Socket = TcpStream;

    fn listen(&mut self, address: SocketAddr) -> Result<SocketAddr, NetError> {
        let socket = listener(address)?;
        let address = socket.local_addr().map_err(|error| socket_error("listen", &error))?;
        let socket = Arc::new(socket);
        let in_flight = self.accept(self.listeners.len(), SocketOp::Accept { listener: socket.clone() });
        self.listeners.push(Listener { socket, in_flight });
        Ok(address)
    }

    fn connect(&mut self, address: SocketAddr) -> ConnId {
        match unconnected(&address) {
            Ok(socket) => {
                let socket = Arc::new(socket);
                let slot = self.insert(socket.clone());
                self.push(slot, Purpose::Connect, SocketOp::connect(socket, address));
                self.connections[slot].id
            }
            Err(error) => {
                self.generation = self.generation.wrapping_add(1);
                // No slot has this number: the connection never was.
                let conn = ConnId(u64::from(self.generation) << 32 | u64::from(u32::MAX));
                self.emit(NetEvent::Closed { conn, error: socket_error("connect", &error) });
                conn
            }
        }
    }

    fn send(&mut self, conn: ConnId, buf: Vec<u8>) {
        let Some(slot) = self.slot(conn) else { return };
        let connection = &self.connections[slot];
        assert!(connection.in_flight[Purpose::Send as usize].is_none(), "one send at a time a connection");
        if buf.is_empty() {
            return self.emit(NetEvent::Sent { conn, buf });
        }
        let socket = connection.socket.clone();
        self.push(slot, Purpose::Send, SocketOp::Send { socket, buf, at: 0 });
    }

    fn receive(&mut self, conn: ConnId, mut buf: Vec<u8>) {
        let Some(slot) = self.slot(conn) else { return };
        let connection = &self.connections[slot];
        assert!(
            connection.in_flight[Purpose::Receive as usize].is_none(),
            "one receive at a time a connection"
        );
        if buf.capacity() - buf.len() < RECEIVE_BYTES_MIN {
            buf.reserve(RECEIVE_BYTES_MIN);
        }
        let socket = connection.socket.clone();
        self.push(slot, Purpose::Receive, SocketOp::Receive { socket, buf });
    }

    fn close(&mut self, conn: ConnId) {
        let Some(slot) = self.slot(conn) else { return };
        self.events.retain(|event| event.conn() != conn);
        self.end(slot);
    }

    fn detach(&mut self, conn: ConnId) -> Option<TcpStream> {
        let slot = self.slot(conn)?;
        let idle = self.connections[slot].in_flight.iter().all(Option::is_none);
        assert!(idle, "detached with operations in flight");
        // With nothing in flight nobody else holds it.
        Arc::into_inner(self.connections.remove(slot).socket)
    }

    fn adopt(&mut self, socket: TcpStream) -> ConnId {
        set_nodelay(&socket);
        let slot = self.insert(Arc::new(socket));
        self.connections[slot].id
    }

    fn submit(&mut self) -> Result<(), NetError> {
        self.ring.borrow_mut().submit().map_err(ring_error)
    }

    fn events(&mut self, events: &mut Vec<NetEvent>) {
        loop {
            let completion = self.ring.borrow_mut().take(self.client);
            let Some(completion) = completion else { break };
            self.on_completion(completion);
        }
        events.append(&mut self.events);
        self.ring.borrow_mut().set_ready(self.client, false);
    }
}

impl Drop for RingNet {
    /// Ends every operation and waits for the kernel to let go: its buffers, and the addresses that we listened on.
    fn drop(&mut self) {
        let connections = self.connections.iter().flat_map(|(_, c)| c.in_flight.iter().flatten());
        let keys: Vec<_> =
            connections.chain(self.listeners.iter().map(|listener| &listener.in_flight)).copied().collect();
        let mut ring = self.ring.borrow_mut();
        keys.into_iter().for_each(|key| ring.cancel(key));
        if let Err(error) = ring.drain_client(self.client) {
            tracing::error!(%error, "sockets are still in use by the kernel");
        }
    }
}

fn name(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Connect => "connect",
        Purpose::Send => "send",
        Purpose::Receive => "receive",
        Purpose::Accept => "accept",
    }
}

/// Small messages leave at once. Only a socket that is gone refuses, which the next operation reports.
fn set_nodelay(socket: &TcpStream) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
}

#[cfg(test)]
mod tests {
    use super::super::{RealClock, Ring, RingOptions, RingPark};
    use super::*;
    use crate::{Clock, Park};

    /// A failed accept (here: cancelled) makes the listener rest and then accept who has come meanwhile.
    #[test]
    fn a_listener_that_cannot_accept_tries_again() {
        let ring = Ring::new(&RingOptions::default()).unwrap();
        let (mut net, mut park) = (RingNet::new(&ring), RingPark::new(&ring).unwrap());
        let address = net.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        net.submit().unwrap();
        let start_us = RealClock.now_us();
        ring.borrow_mut().cancel(net.listeners[0].in_flight);
        net.submit().unwrap();
        let _client = TcpStream::connect(address).unwrap();
        let mut events = Vec::new();
        while events.is_empty() {
            park.park(Some(10_000_000), &|| true).unwrap();
            net.events(&mut events);
            assert!(RealClock.now_us() - start_us < 10_000_000, "deaf");
        }
        assert!(matches!(events[..], [NetEvent::Accepted { .. }]));
        assert!(RealClock.now_us() - start_us >= REST.as_micros() as u64, "it did not rest");
    }
}
