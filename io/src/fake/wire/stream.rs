//! How bytes move: from a send into chunks under way, from there into what has arrived, from there into a receive.

use rand::Rng;

use super::{EndKey, NetError, NetEvent, Parcel, Task, Wire};
use crate::fake::faults::one_in;
use crate::net::RECEIVE_BYTES_MIN;

impl Wire {
    /// Moves whatever can move at this end: its send, its receive, its end.
    pub(super) fn pump(&mut self, key: EndKey) {
        let Some(end) = self.ends.get(&key).filter(|end| end.open) else { return };
        let broken = matches!(end.finish, Some(NetError::Failed { .. }));
        if broken && (end.sending.is_some() || end.reading.is_some()) {
            return self.end_now(key);
        }
        self.pump_send(key);
        self.pump_receive(key);
    }

    fn pump_send(&mut self, key: EndKey) {
        let Some(peer) = self.ends[&key].peer else { return };
        let room = self.ends.get(&peer).is_none_or(|peer| peer.held_bytes < self.options.window_bytes);
        let end = self.ends.get_mut(&key).expect("pump looked it up");
        if room && let Some(buf) = end.sending.take() {
            self.transmit(key, peer, &buf);
            self.emit(key, |conn| NetEvent::Sent { conn, buf });
        }
    }

    fn pump_receive(&mut self, key: EndKey) {
        let split = one_in(&mut self.rng, self.rates.split);
        let end = self.ends.get_mut(&key).expect("pump looked it up");
        if end.arrived.is_empty() {
            if end.reading.is_some() && end.finish.is_some() {
                self.end_now(key);
            }
            return;
        }
        let Some(mut buf) = end.reading.take() else { return };
        if buf.capacity() - buf.len() < RECEIVE_BYTES_MIN {
            buf.reserve(RECEIVE_BYTES_MIN);
        }
        let mut bytes = end.arrived.len().min(buf.capacity() - buf.len());
        if split && bytes > 1 {
            bytes = self.rng.random_range(1..bytes);
            *self.counts.entry("split").or_default() += 1;
        }
        buf.extend(end.arrived.drain(..bytes));
        end.held_bytes -= bytes;
        let peer = end.peer;
        self.emit(key, |conn| NetEvent::Received { conn, buf, bytes });
        if let Some(peer) = peer.filter(|peer| self.ends.get(peer).is_some_and(|peer| peer.sending.is_some()))
        {
            self.pump(peer);
        }
    }

    /// Puts a chunk on its way, mishandled as the rates say.
    fn transmit(&mut self, from: EndKey, to: EndKey, buf: &[u8]) {
        if one_in(&mut self.rng, self.rates.reset) {
            self.count("reset");
            return self.reset_pair(from, to);
        }
        if buf.is_empty() {
            return;
        }
        if one_in(&mut self.rng, self.rates.drop) {
            return self.count("drop");
        }
        let mut bytes = buf.to_vec();
        if one_in(&mut self.rng, self.rates.corrupt) {
            self.count("corrupt");
            let at = self.rng.random_range(0..bytes.len());
            bytes[at] ^= 1 << self.rng.random_range(0..8);
        }
        if one_in(&mut self.rng, self.rates.duplicate) {
            self.count("duplicate");
            self.enqueue(to, Parcel::Data(bytes.clone()));
        }
        self.enqueue(to, Parcel::Data(bytes));
        let waiting = self.ends.get(&to).map_or(0, |end| end.inbound.len());
        if waiting > 1 && one_in(&mut self.rng, self.rates.reorder) {
            self.count("reorder");
            let inbound = &mut self.ends.get_mut(&to).expect("it has parcels").inbound;
            let (one, two) = (inbound[waiting - 2].0, inbound[waiting - 1].0);
            inbound.swap(waiting - 2, waiting - 1);
            (inbound[waiting - 2].0, inbound[waiting - 1].0) = (one, two);
        }
    }

    pub(super) fn enqueue(&mut self, to: EndKey, parcel: Parcel) {
        let due_us = self.now_us + self.latency_us();
        let Some(end) = self.ends.get_mut(&to) else { return };
        if let Parcel::Data(bytes) = &parcel {
            end.held_bytes += bytes.len();
        }
        let due_us = end.inbound.back().map_or(due_us, |(before_us, _)| due_us.max(*before_us));
        end.inbound.push_back((due_us, parcel));
        self.schedule_delivery(to);
    }

    pub(super) fn schedule_delivery(&mut self, to: EndKey) {
        let Some(end) = self.ends.get_mut(&to) else { return };
        if end.delivery_scheduled || end.stalled_since_us.is_some() {
            return;
        }
        if let Some((due_us, _)) = end.inbound.front() {
            end.delivery_scheduled = true;
            let due_us = *due_us;
            self.at(due_us, Task::Deliver(to));
        }
    }

    pub(super) fn deliver(&mut self, to: EndKey) {
        let Some(end) = self.ends.get(&to) else { return };
        let (node, peer) = (end.node, end.peer);
        let from = peer.and_then(|peer| self.ends.get(&peer)).map(|peer| peer.node);
        let passes = from.is_none_or(|from| self.passes(from, node));
        let now_us = self.now_us;
        let end = self.ends.get_mut(&to).expect("looked up above");
        end.delivery_scheduled = false;
        if !passes {
            end.stalled_since_us = Some(now_us);
            if let Some(peer) = peer {
                self.at(now_us + self.options.timeout_us, Task::Expire(peer));
            }
            return;
        }
        let parcel = end.inbound.pop_front();
        match parcel {
            // Nobody there any more: the kernel answers with a reset.
            Some((_, Parcel::Data(_))) if !end.open => {
                end.inbound.clear();
                if let Some(peer) = peer {
                    self.after_latency(Task::Reset(peer));
                }
            }
            Some((_, Parcel::Data(bytes))) => end.arrived.extend(bytes),
            Some((_, Parcel::Fin)) => end.finish = end.finish.take().or(Some(NetError::Closed)),
            None => {}
        }
        self.schedule_delivery(to);
        self.pump(to);
    }
}
