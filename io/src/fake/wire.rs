//! The machinery behind [`FakeNetwork`](super::FakeNetwork): ends of connections, chunks under way, a schedule.
//!
//! A connection is two *ends*. Each end holds what is under way towards it (`inbound`), what has arrived and was not read
//! (`arrived`), and how the stream ended if it did (`finish`).
//!
//! Invariants: (1) tasks run in order of time, then of scheduling; (2) at most one delivery is scheduled an end, so
//! chunks arrive in the order of `inbound`; (3) after its `Closed` event, or after `close`, an end emits no event.

mod dial;
mod stream;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::net::{NetOptions, NetRates, NodeStop};
use crate::{ConnId, NetError, NetEvent};

const EADDRINUSE: i32 = 98;
const ECONNRESET: i32 = 104;
const ETIMEDOUT: i32 = 110;
const ENOTCONN: i32 = 107;

/// A connect whose packets are lost is tried again so often.
const DIAL_AGAIN_US: u64 = 200_000;

const FIRST_FREE_PORT: u16 = 40_000;

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EndKey(u64);

/// One driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DriverKey(u64);

/// What a program asked for and has not submitted.
#[derive(Debug)]
pub(super) enum Op {
    Connect(SocketAddr),
    Send(Vec<u8>),
    Receive(Vec<u8>),
}

#[derive(Debug)]
struct Driver {
    node: u64,
    queued: Vec<(ConnId, Op)>,
    events: VecDeque<NetEvent>,
}

#[derive(Debug)]
enum Parcel {
    Data(Vec<u8>),
    Fin,
}

#[derive(Debug)]
struct End {
    node: u64,
    /// Who has it, under which name; nobody while it is detached or after it was closed.
    owner: Option<(DriverKey, ConnId)>,
    open: bool,
    peer: Option<EndKey>,
    /// A send that waits for room in the peer's window.
    sending: Option<Vec<u8>>,
    reading: Option<Vec<u8>>,
    inbound: VecDeque<(u64, Parcel)>,
    arrived: VecDeque<u8>,
    /// Bytes of `inbound` and `arrived`.
    held_bytes: usize,
    finish: Option<NetError>,
    delivery_scheduled: bool,
    /// Since when the next parcel cannot get here.
    stalled_since_us: Option<u64>,
}

#[derive(Debug)]
enum Task {
    /// The next parcel reaches this end.
    Deliver(EndKey),
    /// A reset reaches this end.
    Reset(EndKey),
    /// This end stops waiting for its peer, if it still has reason to wait.
    Expire(EndKey),
    /// This end's request for a connection reaches the other node.
    Dial { end: EndKey, address: SocketAddr, give_up_us: u64 },
    /// The answer reaches this end.
    Answer { end: EndKey, accepted: bool, give_up_us: u64 },
}

#[derive(Debug)]
pub(super) struct Wire {
    pub(super) options: NetOptions,
    pub(super) rates: NetRates,
    pub(super) counts: BTreeMap<&'static str, u64>,
    now_us: u64,
    rng: SmallRng,
    schedule: BTreeMap<(u64, u64), Task>,
    drivers: BTreeMap<DriverKey, Driver>,
    ends: BTreeMap<EndKey, End>,
    conns: BTreeMap<ConnId, EndKey>,
    listeners: BTreeMap<SocketAddr, DriverKey>,
    /// Which node an address belongs to, also while nobody listens.
    homes: BTreeMap<SocketAddr, u64>,
    blocked: BTreeSet<(u64, u64)>,
    /// Nodes that lost power.
    dark: BTreeSet<u64>,
    next: u64,
    next_port: u16,
}

impl Wire {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            options: NetOptions::default(),
            rates: NetRates::default(),
            counts: BTreeMap::new(),
            now_us: 0,
            rng: SmallRng::seed_from_u64(seed),
            schedule: BTreeMap::new(),
            drivers: BTreeMap::new(),
            ends: BTreeMap::new(),
            conns: BTreeMap::new(),
            listeners: BTreeMap::new(),
            homes: BTreeMap::new(),
            blocked: BTreeSet::new(),
            dark: BTreeSet::new(),
            next: 1,
            next_port: FIRST_FREE_PORT,
        }
    }

    fn count(&mut self, kind: &'static str) {
        *self.counts.entry(kind).or_default() += 1;
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn free_port(&mut self) -> u16 {
        self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_FREE_PORT);
        self.next_port
    }

    // ---- time ---------------------------------------------------------------------------------------------------

    fn at(&mut self, us: u64, task: Task) {
        let number = self.number();
        self.schedule.insert((us.max(self.now_us), number), task);
    }

    fn after_latency(&mut self, task: Task) {
        let us = self.now_us + self.latency_us();
        self.at(us, task);
    }

    fn latency_us(&mut self) -> u64 {
        let (low, high) = self.options.latency_us;
        self.rng.random_range(low..=high.max(low))
    }

    pub(super) fn next_event_us(&self) -> Option<u64> {
        self.schedule.first_key_value().map(|((us, _), _)| *us)
    }

    pub(super) fn advance(&mut self, now_us: u64) {
        while let Some(entry) = self.schedule.first_entry().filter(|entry| entry.key().0 <= now_us) {
            self.now_us = self.now_us.max(entry.key().0);
            match entry.remove() {
                Task::Deliver(end) => self.deliver(end),
                Task::Reset(end) => self.arrive_reset(end),
                Task::Expire(end) => self.expire(end),
                Task::Dial { end, address, give_up_us } => self.dial(end, address, give_up_us),
                Task::Answer { end, accepted, give_up_us } => self.answer(end, accepted, give_up_us),
            }
        }
        self.now_us = self.now_us.max(now_us);
    }

    // ---- drivers ------------------------------------------------------------------------------------------------

    pub(super) fn add_driver(&mut self, node: u64) -> DriverKey {
        if self.dark.remove(&node) {
            self.release_stalled();
        }
        let key = DriverKey(self.number());
        self.drivers.insert(key, Driver { node, queued: Vec::new(), events: VecDeque::new() });
        key
    }

    pub(super) fn remove_driver(&mut self, driver: DriverKey) {
        self.listeners.retain(|_, of| *of != driver);
        for conn in self.conns_of(|end| end.owner.is_some_and(|(of, _)| of == driver)) {
            self.close(driver, conn);
        }
        self.drivers.remove(&driver);
    }

    fn conns_of(&self, which: impl Fn(&End) -> bool) -> Vec<ConnId> {
        self.conns.iter().filter(|(_, end)| which(&self.ends[end])).map(|(conn, _)| *conn).collect()
    }

    pub(super) fn listen(
        &mut self,
        driver: DriverKey,
        mut address: SocketAddr,
    ) -> Result<SocketAddr, NetError> {
        let Some(node) = self.drivers.get(&driver).map(|d| d.node) else { return Err(dead_driver()) };
        if address.port() == 0 {
            address.set_port(self.free_port());
        }
        if self.listeners.contains_key(&address) {
            return Err(failed("listen", EADDRINUSE));
        }
        self.listeners.insert(address, driver);
        self.homes.insert(address, node);
        Ok(address)
    }

    pub(super) fn has_events(&self, driver: DriverKey) -> bool {
        self.drivers.get(&driver).is_some_and(|d| !d.events.is_empty())
    }

    pub(super) fn node_has_events(&self, node: u64) -> bool {
        self.drivers.values().any(|driver| driver.node == node && !driver.events.is_empty())
    }

    pub(super) fn take_events(&mut self, driver: DriverKey, into: &mut Vec<NetEvent>) {
        if let Some(driver) = self.drivers.get_mut(&driver) {
            into.extend(driver.events.drain(..));
        }
    }

    fn emit(&mut self, end: EndKey, event: impl FnOnce(ConnId) -> NetEvent) {
        let Some((driver, conn)) = self.ends.get(&end).and_then(|end| end.owner) else { return };
        if let Some(driver) = self.drivers.get_mut(&driver) {
            driver.events.push_back(event(conn));
        }
    }

    pub(super) fn submit(&mut self, driver: DriverKey) -> Result<(), NetError> {
        let Some(of) = self.drivers.get_mut(&driver) else { return Err(dead_driver()) };
        for (conn, op) in std::mem::take(&mut of.queued) {
            let Some(end) = self.end_of(driver, conn) else { continue };
            match op {
                Op::Connect(address) => {
                    let give_up_us = self.now_us + self.options.timeout_us;
                    self.after_latency(Task::Dial { end, address, give_up_us });
                }
                Op::Send(buf) => {
                    self.ends.get_mut(&end).expect("end_of found it").sending = Some(buf);
                    self.pump(end);
                }
                Op::Receive(buf) => {
                    self.ends.get_mut(&end).expect("end_of found it").reading = Some(buf);
                    self.pump(end);
                }
            }
        }
        Ok(())
    }

    /// # Panics
    /// If an operation of the same kind is in flight on this connection: the caller's mistake.
    pub(super) fn queue(&mut self, driver: DriverKey, conn: ConnId, op: Op) {
        let Some(key) = self.end_of(driver, conn) else { return };
        let end = &self.ends[&key];
        let of = self.drivers.get_mut(&driver).expect("end_of found it");
        let mut same = of.queued.iter().filter(|(c, _)| *c == conn);
        match op {
            Op::Send(_) => {
                let busy = end.sending.is_some() || same.any(|(_, op)| matches!(op, Op::Send(_)));
                assert!(!busy, "one send at a time a connection");
            }
            Op::Receive(_) => {
                let busy = end.reading.is_some() || same.any(|(_, op)| matches!(op, Op::Receive(_)));
                assert!(!busy, "one receive at a time a connection");
            }
            Op::Connect(_) => {}
        }
        of.queued.push((conn, op));
    }

    fn end_of(&self, driver: DriverKey, conn: ConnId) -> Option<EndKey> {
        let end = *self.conns.get(&conn)?;
        let owned = self.ends[&end].owner.is_some_and(|(of, _)| of == driver);
        (owned && self.drivers.contains_key(&driver)).then_some(end)
    }

    // ---- ends ---------------------------------------------------------------------------------------------------

    fn finish(&mut self, key: EndKey, error: NetError) {
        if let Some(end) = self.ends.get_mut(&key)
            && !matches!(end.finish, Some(NetError::Failed { .. }))
        {
            end.finish = Some(error);
        }
    }

    /// The program learns that its connection is gone.
    fn end_now(&mut self, key: EndKey) {
        let error = self.ends.get(&key).and_then(|end| end.finish.clone()).unwrap_or(NetError::Closed);
        // After the peer's orderly end ours is orderly, too; after a failure there is nobody to tell.
        let orderly = error == NetError::Closed;
        self.emit(key, |conn| NetEvent::Closed { conn, error });
        self.shut(key, orderly);
    }

    /// The end is gone; the peer is told with a FIN if the stream is in order.
    fn shut(&mut self, key: EndKey, tell_peer: bool) {
        let Some(end) = self.ends.get_mut(&key).filter(|end| end.open) else { return };
        end.open = false;
        end.sending = None;
        end.reading = None;
        let unread = !end.arrived.is_empty();
        end.arrived.clear();
        end.held_bytes = 0;
        if let Some((_, conn)) = end.owner.take() {
            self.conns.remove(&conn);
        }
        let peer = end.peer;
        if let Some(peer) = peer.filter(|_| tell_peer) {
            // As Linux does: closing with unread bytes resets.
            if unread { self.after_latency(Task::Reset(peer)) } else { self.enqueue(peer, Parcel::Fin) }
        }
        if peer.and_then(|peer| self.ends.get(&peer)).is_none_or(|peer| !peer.open) {
            self.ends.remove(&key);
            peer.map(|peer| self.ends.remove(&peer));
        }
    }

    pub(super) fn close(&mut self, driver: DriverKey, conn: ConnId) {
        let Some(end) = self.end_of(driver, conn) else { return };
        let of = self.drivers.get_mut(&driver).expect("end_of found it");
        of.queued.retain(|(c, _)| *c != conn);
        of.events.retain(|event| event.conn() != conn);
        self.shut(end, true);
    }

    fn arrive_reset(&mut self, key: EndKey) {
        let Some(end) = self.ends.get(&key) else { return };
        let (node, peer) = (end.node, end.peer);
        let from = peer.and_then(|peer| self.ends.get(&peer)).map(|peer| peer.node);
        if from.is_some_and(|from| self.blocked.contains(&(from, node))) {
            // Lost; this end finds out when it sends, or when its patience ends.
            return self.at(self.now_us + self.options.timeout_us, Task::Expire(key));
        }
        if let Some(end) = self.ends.get_mut(&key) {
            end.arrived.clear();
            end.held_bytes = 0;
            end.inbound.clear();
        }
        self.finish(key, failed("receive", ECONNRESET));
        self.pump(key);
    }

    fn expire(&mut self, key: EndKey) {
        let Some(end) = self.ends.get(&key).filter(|end| end.open) else { return };
        let silent = end.finish.is_none() && end.inbound.is_empty();
        let mut peer = end.peer.and_then(|peer| self.ends.get_mut(&peer));
        let stalled = peer.as_ref().and_then(|peer| peer.stalled_since_us);
        let late = stalled.is_some_and(|since| since + self.options.timeout_us <= self.now_us);
        if late && let Some(peer) = &mut peer {
            // Nobody sends it again once the sender has given up.
            peer.inbound.clear();
            peer.held_bytes = peer.arrived.len();
            peer.stalled_since_us = None;
        }
        if late || (silent && peer.is_none_or(|peer| !peer.open)) {
            self.count("timeout");
            self.finish(key, failed("receive", ETIMEDOUT));
            self.pump(key);
        }
    }

    fn reset_pair(&mut self, one: EndKey, other: EndKey) {
        self.after_latency(Task::Reset(one));
        self.after_latency(Task::Reset(other));
    }

    pub(super) fn reset_between(&mut self, one: u64, other: u64) {
        let joins = |end: &End| {
            let peer = end.peer.and_then(|peer| self.ends.get(&peer))?;
            (end.node == one && peer.node == other).then_some(end.peer?)
        };
        let pairs: Vec<_> = self.ends.iter().filter_map(|(key, end)| Some((*key, joins(end)?))).collect();
        for (key, peer) in pairs {
            self.count("reset");
            self.reset_pair(key, peer);
        }
    }

    // ---- links and nodes ----------------------------------------------------------------------------------------

    pub(super) fn block(&mut self, from: u64, to: u64) {
        if from != to && self.blocked.insert((from, to)) {
            self.count("block");
        }
    }

    pub(super) fn unblock(&mut self, from: u64, to: u64) {
        self.blocked.remove(&(from, to));
        self.release_stalled();
    }

    pub(super) fn heal(&mut self) {
        self.blocked.clear();
        self.release_stalled();
    }

    /// Everything that waited tries again; what is still held up stalls again, from its first moment on.
    fn release_stalled(&mut self) {
        let stalled: Vec<_> =
            self.ends.iter().filter(|(_, end)| end.stalled_since_us.is_some()).map(|(key, _)| *key).collect();
        for key in stalled {
            let end = &self.ends[&key];
            let from = end.peer.and_then(|peer| self.ends.get(&peer)).map(|peer| peer.node);
            if from.is_none_or(|from| self.passes(from, end.node)) {
                let due_us = self.now_us + self.latency_us();
                let end = self.ends.get_mut(&key).expect("just listed");
                end.stalled_since_us = None;
                end.inbound.iter_mut().for_each(|(us, _)| *us = due_us.max(*us));
                self.schedule_delivery(key);
            }
        }
    }

    pub(super) fn stop_node(&mut self, node: u64, how: NodeStop) {
        self.count(if how == NodeStop::Killed { "node_killed" } else { "node_power_loss" });
        let gone: Vec<_> = self.drivers.iter().filter(|(_, d)| d.node == node).map(|(key, _)| *key).collect();
        self.listeners.retain(|_, driver| !gone.contains(driver));
        self.drivers.retain(|key, _| !gone.contains(key));
        if how == NodeStop::PowerLoss {
            self.dark.insert(node);
        }
        let ends: Vec<_> =
            self.ends.iter().filter(|(_, e)| e.node == node && e.open).map(|(key, _)| *key).collect();
        for key in ends {
            let peer = self.ends.get(&key).and_then(|end| end.peer);
            self.shut(key, false);
            match (peer, how) {
                (Some(peer), NodeStop::Killed) => self.after_latency(Task::Reset(peer)),
                (Some(peer), NodeStop::PowerLoss) => {
                    self.at(self.now_us + self.options.timeout_us, Task::Expire(peer));
                }
                (None, _) => {}
            }
        }
    }
}

fn failed(op: &'static str, code: i32) -> NetError {
    let reason = match code {
        EADDRINUSE => "address already in use",
        ECONNRESET => "connection reset by peer",
        ETIMEDOUT => "connection timed out",
        _ => "transport endpoint is not connected",
    };
    NetError::Failed { op, code, reason: reason.to_owned() }
}

fn dead_driver() -> NetError {
    failed("submit", ENOTCONN)
}
