//! A link's second connection: for what is large and may wait, so that beats and votes never stand behind it.
//!
//! It lives and dies with the link's session: the node that dials the link dials it as soon as the session is up, with the
//! same hello but for the lane, and the other side takes it if the boot epoch is the session's. Losing it costs nothing but
//! what was on it. So whatever travels here must be right in any order with the control connection, and of no effect if it
//! comes late: pieces of snapshots, each of which names what it belongs to.
//!
//! Invariants: (1) envelopes are numbered, as on the control connection; (2) whoever fills it looks for room first.

use coracle_base::NodeId;
use coracle_io::{ConnId, Net};

use super::envelope::Builder;
use super::frame::{self, Frame, FrameKind};
use super::hello::{Hello, Lane, Meeting, meet};
use super::link::Link;
use super::{HANDSHAKE_US, HELLO_BYTES_MAX, LinkEvent, RECEIVE_BYTES, REDIAL_US, REDIAL_US_MAX, Transport};

/// What waits in one before nothing more is taken.
const BYTES_HIGH: usize = 1024 * 1024;
/// A send that takes longer ends the connection: the other side does not read, or is not there.
const STALL_US: u64 = 10_000_000;

#[derive(Debug)]
enum State {
    Down { dial_at_us: u64 },
    Dialling { conn: ConnId, since_us: u64 },
    Up { conn: ConnId, id: u64, sent_seq: u64, received_seq: u64, sending_since_us: Option<u64> },
}

/// The second connection of one link.
#[derive(Debug)]
pub(crate) struct Bulk {
    state: State,
    attempts: u32,
    /// Our hello or welcome is still on its way.
    pub(super) greeting: bool,
    building: Builder,
    spare: Vec<u8>,
}

impl Bulk {
    pub(super) fn new() -> Self {
        Self {
            state: State::Down { dial_at_us: 0 },
            attempts: 0,
            greeting: false,
            building: Builder::default(),
            spare: Vec::new(),
        }
    }

    /// The link's session is up: this may follow.
    pub(super) fn allow(&mut self, now_us: u64) {
        self.attempts = 0;
        if let State::Down { dial_at_us } = &mut self.state {
            *dial_at_us = now_us;
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    pub(super) fn conn(&self) -> Option<ConnId> {
        match self.state {
            State::Down { .. } => None,
            State::Dialling { conn, .. } | State::Up { conn, .. } => Some(conn),
        }
    }

    /// Names this connection within this process; 0 if it is not up.
    pub(super) fn id(&self) -> u64 {
        match self.state {
            State::Up { id, .. } => id,
            _ => 0,
        }
    }

    fn up(&mut self, id: u64, conn: ConnId, now_us: u64) {
        self.attempts = 0;
        self.building = Builder::default();
        let sending_since_us = self.greeting.then_some(now_us);
        self.state = State::Up { conn, id, sent_seq: 0, received_seq: 0, sending_since_us };
    }

    fn down(&mut self, now_us: u64) {
        let wait_us = (REDIAL_US << self.attempts.min(6)).min(REDIAL_US_MAX);
        self.attempts += 1;
        self.greeting = false;
        self.building = Builder::default();
        self.state = State::Down { dial_at_us: now_us + wait_us };
    }

    /// Notes an envelope that arrived; false if it is out of sequence.
    pub(super) fn on_envelope(&mut self, seq: u64) -> bool {
        let State::Up { received_seq, .. } = &mut self.state else { return false };
        *received_seq += 1;
        seq == *received_seq
    }

    /// The connection took the last send.
    pub(super) fn on_sent(&mut self, mut buf: Vec<u8>) {
        self.greeting = false;
        if let State::Up { sending_since_us, .. } = &mut self.state {
            *sending_since_us = None;
        }
        buf.clear();
        buf.shrink_to(2 * BYTES_HIGH);
        self.spare = buf;
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.building.is_empty() && matches!(self.state, State::Up { sending_since_us: None, .. })
    }

    /// Sends what waits, unless a send is in flight.
    pub(super) fn flush<N: Net>(&mut self, net: &mut N, now_us: u64) {
        let State::Up { conn, sent_seq, sending_since_us, .. } = &mut self.state else { return };
        if self.building.is_empty() || sending_since_us.is_some() {
            return;
        }
        *sent_seq += 1;
        *sending_since_us = Some(now_us);
        let mut buf = std::mem::take(&mut self.spare);
        self.building
            .take(0, |head, tail| frame::encode(FrameKind::Envelope, *sent_seq, head, tail, &mut buf));
        net.send(*conn, buf);
    }

    pub(super) fn deadline_us(&self, is_dialler: bool) -> u64 {
        match self.state {
            State::Down { dial_at_us } if is_dialler => dial_at_us,
            State::Down { .. } => u64::MAX,
            State::Dialling { since_us, .. } => since_us + HANDSHAKE_US + 1,
            State::Up { sending_since_us, .. } => {
                sending_since_us.map_or(u64::MAX, |since| since + STALL_US + 1)
            }
        }
    }
}

impl Transport {
    /// The envelope on the bulk connection to `node`; `None` while there is none.
    pub(crate) fn bulk(&mut self, node: NodeId) -> Option<&mut Builder> {
        let at = self.position(node)?;
        let link = &mut self.links[at];
        (link.session().is_some() && link.bulk.is_up()).then_some(&mut link.bulk.building)
    }

    /// Whether more may go to `node` over the bulk connection.
    pub(crate) fn has_bulk_room(&self, node: NodeId) -> bool {
        let is_open = |link: &Link| {
            link.session().is_some() && link.bulk.is_up() && link.bulk.building.bytes() < BYTES_HIGH
        };
        self.link(node).is_some_and(is_open)
    }

    pub(super) fn bulk_down<N: Net>(&mut self, net: &mut N, at: usize, now_us: u64, reason: &str) {
        let link = &mut self.links[at];
        if let Some(conn) = link.bulk.conn() {
            tracing::debug!(node = %link.node, reason, "bulk connection down");
            net.close(conn);
            self.routes.remove(&conn);
            link.bulk.down(now_us);
        }
    }

    /// The listener's half: the session that it belongs to has to be up.
    pub(super) fn judge_bulk<N: Net>(&mut self, net: &mut N, conn: ConnId, hello: &Hello, now_us: u64) {
        let at = self.position(hello.node).filter(|at| self.is_of_session(*at, hello));
        let Some(at) = at else {
            tracing::debug!(node = %hello.node, "a bulk connection without its session: closed");
            return net.close(conn);
        };
        self.bulk_down(net, at, now_us, "a newer connection took its place");
        let mut welcome = Vec::new();
        let own = Hello { lane: Lane::Bulk, ..self.own.clone() };
        frame::encode(FrameKind::Welcome, 0, &own.encode(), &[], &mut welcome);
        net.send(conn, welcome);
        net.receive(conn, Vec::with_capacity(RECEIVE_BYTES));
        self.routes.insert(conn, (at, Lane::Bulk));
        self.sessions += 1;
        self.links[at].bulk.greeting = true;
        self.links[at].bulk.up(self.sessions, conn, now_us);
    }

    fn is_of_session(&self, at: usize, hello: &Hello) -> bool {
        let link = &self.links[at];
        let is_member = meet(&self.own, hello) == Ok(Meeting::Members);
        link.session().is_some() && link.boot_epoch == hello.boot_epoch && is_member
    }

    /// The dialler's half: the answer to our hello.
    pub(super) fn on_bulk_greeting<N: Net>(
        &mut self,
        net: &mut N,
        at: usize,
        conn: ConnId,
        mut buf: Vec<u8>,
        now_us: u64,
        out: &mut Vec<LinkEvent>,
    ) {
        let (hello, len) = match Frame::parse(&buf) {
            Ok(None) if buf.len() < HELLO_BYTES_MAX => return net.receive(conn, buf),
            Ok(Some((Frame { kind: FrameKind::Welcome, head, .. }, len))) => (Hello::decode(head).ok(), len),
            _ => (None, 0),
        };
        let node = self.links[at].node;
        let is_it =
            |hello: &Hello| hello.node == node && hello.lane == Lane::Bulk && self.is_of_session(at, hello);
        if !hello.as_ref().is_some_and(is_it) {
            return self.bulk_down(net, at, now_us, "no welcome");
        }
        self.sessions += 1;
        self.links[at].bulk.up(self.sessions, conn, now_us);
        buf.drain(..len);
        buf.reserve(RECEIVE_BYTES);
        match buf.is_empty() {
            true => net.receive(conn, buf),
            false => self.on_envelopes(net, at, Lane::Bulk, buf, now_us, out),
        }
    }

    pub(super) fn tick_bulk<N: Net>(&mut self, net: &mut N, at: usize, now_us: u64) {
        let link = &self.links[at];
        let is_ours = link.is_dialled_by(self.own.node) && link.speaks_transfer();
        match link.bulk.state {
            State::Down { dial_at_us } if is_ours && link.session().is_some() && now_us >= dial_at_us => {
                let conn = net.connect(link.address);
                self.routes.insert(conn, (at, Lane::Bulk));
                self.links[at].bulk.state = State::Dialling { conn, since_us: now_us };
            }
            State::Dialling { since_us, .. } if now_us > since_us + HANDSHAKE_US => {
                self.bulk_down(net, at, now_us, "the handshake took too long");
            }
            State::Up { sending_since_us: Some(since_us), .. } if now_us > since_us + STALL_US => {
                self.bulk_down(net, at, now_us, "the peer does not read");
            }
            _ => {}
        }
    }
}
