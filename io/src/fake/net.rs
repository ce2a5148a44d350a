//! The simulated network: [`Net`] for the code under test, levers for the test. A [`FakeNetwork`] joins the nodes of one
//! cluster; each node has one or more [`FakeNet`]s on it (its threads).
//!
//! What a program sends goes as one chunk. TCP would deliver every chunk once, whole and in order; with [`NetRates`] this
//! network also loses, doubles, swaps, damages and splits chunks, so that the layers above prove that they notice.
//! Nothing happens by itself: operations begin with [`Net::submit`], everything else with [`FakeNetwork::advance`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;

use super::wire::{DriverKey, EndKey, Op, Wire};
use crate::{ConnId, Net, NetError, NetEvent};

/// How often chunks are mishandled: one in so many, 0 for never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetRates {
    /// A chunk is lost, and the stream has a gap.
    pub drop: u32,
    /// A chunk comes twice.
    pub duplicate: u32,
    /// A chunk overtakes the one before it.
    pub reorder: u32,
    /// One bit of a chunk changes.
    pub corrupt: u32,
    /// A receive gets only a part of what has arrived. (TCP may do that.)
    pub split: u32,
    /// The connection is reset. (TCP may do that.)
    pub reset: u32,
}

/// How the network behaves while nothing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetOptions {
    /// One way, inclusive, drawn evenly for each chunk; chunks of one connection never overtake each other.
    pub latency_us: (u64, u64),
    /// Bytes of one direction that the network and the receiver hold before a send has to wait.
    pub window_bytes: usize,
    /// A chunk, a connect or a peer's sign of life that is missing for so long ends the connection.
    pub timeout_us: u64,
}

impl Default for NetOptions {
    fn default() -> Self {
        Self { latency_us: (20, 60), window_bytes: 4 << 20, timeout_us: 10_000_000 }
    }
}

/// How a node stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeStop {
    /// The process is killed: its kernel resets the connections, and refuses new ones.
    Killed,
    /// The machine is gone: peers hear nothing until their timeout, or until it is back and knows nothing of them.
    PowerLoss,
}

/// The network of one simulated cluster. Clones are the same network.
#[derive(Debug, Clone)]
pub struct FakeNetwork {
    wire: Rc<RefCell<Wire>>,
}

impl FakeNetwork {
    /// A network without faults.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { wire: Rc::new(RefCell::new(Wire::new(seed))) }
    }

    /// A driver on a node, for one of its threads. Brings the node up if it was stopped.
    #[must_use]
    pub fn driver(&self, node: u64) -> FakeNet {
        let driver = self.wire.borrow_mut().add_driver(node);
        FakeNet { wire: self.wire.clone(), driver }
    }

    /// An address for a node to listen on, for whoever has no better one.
    #[must_use]
    pub fn address(node: u64, port: u16) -> SocketAddr {
        let [.., a, b, c] = node.to_be_bytes();
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, a, b, c)), port)
    }

    /// Latency, window and timeout from now on.
    pub fn set_options(&self, options: NetOptions) {
        self.wire.borrow_mut().options = options;
    }

    /// How often chunks are mishandled from now on.
    pub fn set_rates(&self, rates: NetRates) {
        self.wire.borrow_mut().rates = rates;
    }

    /// Nothing passes from one node to the other any more; what is under way is held. The other direction is untouched.
    pub fn block(&self, from: u64, to: u64) {
        self.wire.borrow_mut().block(from, to);
    }

    /// Lets pass again what [`block`](Self::block) held, as far as its connection still lives.
    pub fn unblock(&self, from: u64, to: u64) {
        self.wire.borrow_mut().unblock(from, to);
    }

    /// Blocks both directions between all nodes of different sides.
    pub fn partition(&self, sides: &[&[u64]]) {
        for (i, side) in sides.iter().enumerate() {
            for (from, to) in
                side.iter().flat_map(|a| sides[i + 1..].iter().flat_map(|b| *b).map(move |b| (*a, *b)))
            {
                self.block(from, to);
                self.block(to, from);
            }
        }
    }

    /// Unblocks everything.
    pub fn heal(&self) {
        self.wire.borrow_mut().heal();
    }

    /// Resets every connection between two nodes. Both sides notice, unless the way to them is blocked.
    pub fn reset_connections(&self, one: u64, other: u64) {
        self.wire.borrow_mut().reset_between(one, other);
    }

    /// Stops a node: its drivers are dead and its connections gone. [`driver`](Self::driver) starts it again.
    pub fn stop_node(&self, node: u64, how: NodeStop) {
        self.wire.borrow_mut().stop_node(node, how);
    }

    /// Moves the network's time, and does what is due by then, in order.
    pub fn advance(&self, now_us: u64) {
        self.wire.borrow_mut().advance(now_us);
    }

    /// When the next thing happens.
    #[must_use]
    pub fn next_event_us(&self) -> Option<u64> {
        self.wire.borrow().next_event_us()
    }

    /// Whether a driver of this node has events to hand out.
    #[must_use]
    pub fn has_events(&self, node: u64) -> bool {
        self.wire.borrow().node_has_events(node)
    }

    /// Faults so far, by kind.
    #[must_use]
    pub fn fault_counts(&self) -> BTreeMap<&'static str, u64> {
        self.wire.borrow().counts.clone()
    }
}

/// A connection on its way between two drivers of one node.
#[derive(Debug)]
pub struct FakeSocket(EndKey);

/// One thread's driver on a simulated network.
#[derive(Debug)]
pub struct FakeNet {
    wire: Rc<RefCell<Wire>>,
    driver: DriverKey,
}

impl FakeNet {
    /// Whether [`Net::events`] has something to hand out.
    #[must_use]
    pub fn has_events(&self) -> bool {
        self.wire.borrow().has_events(self.driver)
    }
}

impl Net for FakeNet {
    type Socket = FakeSocket;

    fn listen(&mut self, address: SocketAddr) -> Result<SocketAddr, NetError> {
        self.wire.borrow_mut().listen(self.driver, address)
    }

    fn connect(&mut self, address: SocketAddr) -> ConnId {
        self.wire.borrow_mut().connect(self.driver, address)
    }

    fn send(&mut self, conn: ConnId, buf: Vec<u8>) {
        self.wire.borrow_mut().queue(self.driver, conn, Op::Send(buf));
    }

    fn receive(&mut self, conn: ConnId, buf: Vec<u8>) {
        self.wire.borrow_mut().queue(self.driver, conn, Op::Receive(buf));
    }

    fn close(&mut self, conn: ConnId) {
        self.wire.borrow_mut().close(self.driver, conn);
    }

    fn detach(&mut self, conn: ConnId) -> Option<FakeSocket> {
        self.wire.borrow_mut().detach(self.driver, conn).map(FakeSocket)
    }

    fn adopt(&mut self, socket: FakeSocket) -> ConnId {
        self.wire.borrow_mut().adopt(self.driver, socket.0)
    }

    fn submit(&mut self) -> Result<(), NetError> {
        self.wire.borrow_mut().submit(self.driver)
    }

    fn events(&mut self, events: &mut Vec<NetEvent>) {
        self.wire.borrow_mut().take_events(self.driver, events);
    }
}

impl Drop for FakeNet {
    /// As when the last descriptor closes: peers see their connections end.
    fn drop(&mut self) {
        // A network that is being borrowed is being torn down by a panic: nothing left to tidy.
        if let Ok(mut wire) = self.wire.try_borrow_mut() {
            wire.remove_driver(self.driver);
        }
    }
}
