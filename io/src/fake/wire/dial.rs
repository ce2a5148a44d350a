//! How connections come about: requests, answers, and changing hands between drivers.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::{
    ConnId, DIAL_AGAIN_US, DriverKey, ENOTCONN, ETIMEDOUT, End, EndKey, NetError, NetEvent, Op, Task, Wire,
    failed,
};
use crate::fake::FakeNetwork;

impl Wire {
    fn add_end(&mut self, node: u64, peer: Option<EndKey>) -> EndKey {
        let key = EndKey(self.number());
        let end = End {
            node,
            owner: None,
            open: true,
            peer,
            sending: None,
            reading: None,
            inbound: VecDeque::new(),
            arrived: VecDeque::new(),
            held_bytes: 0,
            finish: None,
            delivery_scheduled: false,
            stalled_since_us: None,
        };
        self.ends.insert(key, end);
        key
    }

    pub(in crate::fake) fn adopt(&mut self, driver: DriverKey, end: EndKey) -> ConnId {
        let conn = ConnId(self.number());
        // An end that died on the way, or a driver that did: the connection is closed before it is used.
        if let Some(of) = self.ends.get_mut(&end).filter(|of| of.open) {
            of.owner = Some((driver, conn));
            self.conns.insert(conn, end);
        } else if let Some(driver) = self.drivers.get_mut(&driver) {
            driver.events.push_back(NetEvent::Closed { conn, error: failed("adopt", ENOTCONN) });
        }
        conn
    }

    /// # Panics
    /// If anything is in flight on the connection: the caller's mistake.
    pub(in crate::fake) fn detach(&mut self, driver: DriverKey, conn: ConnId) -> Option<EndKey> {
        let key = self.end_of(driver, conn)?;
        let queued = self.drivers[&driver].queued.iter().any(|(c, _)| *c == conn);
        let end = self.ends.get_mut(&key).expect("end_of found it");
        assert!(
            !queued && end.sending.is_none() && end.reading.is_none(),
            "detached with operations in flight"
        );
        end.owner = None;
        self.conns.remove(&conn);
        Some(key)
    }

    pub(in crate::fake) fn connect(&mut self, driver: DriverKey, address: SocketAddr) -> ConnId {
        let node = self.drivers.get(&driver).map_or(0, |d| d.node);
        let end = self.add_end(node, None);
        let conn = self.adopt(driver, end);
        self.queue(driver, conn, Op::Connect(address));
        conn
    }

    pub(super) fn passes(&self, from: u64, to: u64) -> bool {
        !self.blocked.contains(&(from, to)) && !self.dark.contains(&from) && !self.dark.contains(&to)
    }

    pub(super) fn dial(&mut self, end: EndKey, address: SocketAddr, give_up_us: u64) {
        let Some(from) = self.ends.get(&end).filter(|end| end.open).map(|end| end.node) else { return };
        let home = self.homes.get(&address).copied();
        if home.is_some_and(|home| !self.passes(from, home)) {
            return self.again_or_give_up(end, give_up_us, Task::Dial { end, address, give_up_us });
        }
        let listener = self.listeners.get(&address).copied();
        if let (Some(driver), Some(home)) = (listener, home) {
            let theirs = self.add_end(home, Some(end));
            self.ends.get_mut(&end).expect("looked up above").peer = Some(theirs);
            let conn = self.adopt(driver, theirs);
            let from = SocketAddr::new(FakeNetwork::address(from, 0).ip(), self.free_port());
            self.emit(theirs, |_| NetEvent::Accepted { conn, from });
        }
        self.after_latency(Task::Answer { end, accepted: listener.is_some(), give_up_us });
    }

    fn again_or_give_up(&mut self, end: EndKey, give_up_us: u64, task: Task) {
        let again_us = self.now_us + DIAL_AGAIN_US;
        if again_us < give_up_us {
            return self.at(again_us, task);
        }
        self.count("connect_timeout");
        self.finish(end, failed("connect", ETIMEDOUT));
        self.end_now(end);
    }

    pub(super) fn answer(&mut self, end: EndKey, accepted: bool, give_up_us: u64) {
        let Some(of) = self.ends.get(&end).filter(|end| end.open) else { return };
        let (node, peer) = (of.node, of.peer.and_then(|peer| self.ends.get(&peer)));
        if peer.is_some_and(|peer| !self.passes(peer.node, node)) {
            return self.again_or_give_up(end, give_up_us, Task::Answer { end, accepted, give_up_us });
        }
        if accepted {
            self.emit(end, |conn| NetEvent::Connected { conn });
            self.pump(end);
        } else {
            self.finish(end, NetError::Refused);
            self.end_now(end);
        }
    }
}
