//! One link: this shard and the same shard of one other node. Its session, what waits to be sent, and its pulse.
//!
//! A session lives as long as one connection. Within it envelopes are numbered; anything lost, doubled or swapped ends
//! the session, and the groups start over with a probe. A link is up only while both directions work: we hear the
//! other side, and it tells us (by its echo) that it hears us.

use std::net::SocketAddr;

use coracle_base::codec::Sink;
use coracle_base::limits::LINK_BYTES_MAX;
use coracle_base::{GroupId, NodeId};
use coracle_io::{ConnId, Net};

use super::bulk::Bulk;
use super::envelope::{Builder, Kind};
use super::frame::{self, FrameKind};
use super::hello::PROTOCOL_MARKS;
use crate::cluster::Place;
use crate::lineage::Mark;

/// An envelope is closed when it has this much, so that the receiver can start on it.
const ENVELOPE_BYTES_TARGET: usize = 1024 * 1024;

/// A link that is down for so long is not coming up again at once.
const GONE_US: u64 = 3_000_000;

/// How a link stands.
#[derive(Debug)]
pub(crate) enum State {
    /// No connection. The dialler of the pair tries again at `dial_at_us`.
    Down { dial_at_us: u64 },
    /// Our connect is under way, or our hello waits for its welcome.
    Dialling { conn: ConnId, since_us: u64 },
    /// Both sides are empty and have said so: waiting for the cluster.
    BothEmpty { conn: ConnId },
    /// Messages flow.
    Up(Session),
}

/// One connection's worth of messages.
#[derive(Debug)]
pub(crate) struct Session {
    /// Names this session within this process: answers to an earlier one's requests are not ours.
    pub(crate) id: u64,
    pub(crate) conn: ConnId,
    /// Newest envelope sent and received.
    sent_seq: u64,
    received_seq: u64,
    last_sent_us: u64,
    last_heard_us: u64,
    /// The oldest envelope that the other side has not echoed, and when it left.
    unechoed: Option<(u64, u64)>,
    sending: bool,
    /// How far the other side was told that we are durable.
    told_durable: u64,
}

/// A link to one peer.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) node: NodeId,
    pub(crate) address: SocketAddr,
    pub(crate) state: State,
    /// Failed attempts in a row, for the back-off.
    pub(crate) attempts: u32,
    /// The newest boot epoch that this peer has shown.
    pub(crate) boot_epoch: u64,
    /// The name of its boot.
    pub(crate) boot: u64,
    /// How far it said to be durable, in this session or the last one in which it did.
    pub(crate) heard: Option<Mark>,
    /// What it said, when it said hello, that it had heard of us.
    pub(crate) told: Option<Mark>,
    /// How far we are durable, as what is being filled may rest on it.
    pub(crate) durable: u64,
    /// What this peer said its incarnation is.
    pub(crate) incarnation: Option<u64>,
    /// Since when it is down, or was for the last time.
    pub(crate) down_since_us: u64,
    /// What it said, when it said hello, of the cluster's places.
    pub(crate) places: Vec<Place>,
    /// The protocol version that both sides speak.
    pub(crate) version: u16,
    /// The second connection, while there is a session.
    pub(crate) bulk: Bulk,
    /// Our hello or welcome is still on its way into the connection: the first envelope waits for it.
    pub(crate) greeting: bool,
    building: Builder,
    /// Closed envelopes that wait for the connection.
    out: Vec<u8>,
    /// The last send's buffer, to be filled again.
    spare: Vec<u8>,
    pub(crate) frames: u64,
    pub(crate) beats: u64,
}

impl Link {
    pub(crate) fn new(node: NodeId, address: SocketAddr, dial_at_us: u64) -> Self {
        Self {
            node,
            address,
            state: State::Down { dial_at_us },
            attempts: 0,
            boot_epoch: 0,
            boot: 0,
            heard: None,
            told: None,
            durable: 0,
            incarnation: None,
            down_since_us: dial_at_us,
            places: Vec::new(),
            version: 0,
            bulk: Bulk::new(),
            greeting: false,
            building: Builder::default(),
            out: Vec::new(),
            spare: Vec::new(),
            frames: 0,
            beats: 0,
        }
    }

    /// Whether it is down for so long that it is no mere reconnection.
    pub(crate) fn is_gone(&self, now_us: u64) -> bool {
        self.session().is_none() && now_us > self.down_since_us + GONE_US
    }

    /// Whether a peer with this directory and boot epoch was further once: it is an older copy.
    pub(crate) fn has_seen_newer(&self, incarnation: u64, boot_epoch: u64) -> bool {
        self.incarnation == Some(incarnation) && boot_epoch < self.boot_epoch
    }

    pub(crate) fn conn(&self) -> Option<ConnId> {
        match &self.state {
            State::Down { .. } => None,
            State::Dialling { conn, .. } | State::BothEmpty { conn } => Some(*conn),
            State::Up(session) => Some(session.conn),
        }
    }

    pub(crate) fn session(&self) -> Option<&Session> {
        match &self.state {
            State::Up(session) => Some(session),
            _ => None,
        }
    }

    /// Whether the other side knows a bulk connection, and what goes over it.
    pub(crate) fn speaks_transfer(&self) -> bool {
        self.version >= 2
    }

    /// Whether the other side knows changes of members, and the handing over of leadership.
    pub(crate) fn speaks_members(&self) -> bool {
        self.version >= 2
    }

    /// Whether the other side knows a kind of message.
    pub(crate) fn speaks(&self, kind: Kind) -> bool {
        self.version >= kind.since()
    }

    /// Whether the other side knows what it means to be told how much it acknowledged.
    pub(crate) fn speaks_held(&self) -> bool {
        self.version >= 3
    }

    /// Whether the other side knows what may be forgotten, and can say what it remembers.
    pub(crate) fn speaks_marks(&self) -> bool {
        self.version >= PROTOCOL_MARKS
    }

    /// The other side is durable up to there, in its present boot.
    pub(super) fn hear_mark(&mut self, seq: u64) -> Option<Mark> {
        let (incarnation, epoch, boot) = (self.incarnation?, self.boot_epoch, self.boot);
        let mark = Mark { incarnation, epoch, boot, seq };
        let is_less =
            |known: Mark| (known.incarnation, known.boot) == (incarnation, boot) && seq <= known.seq;
        if self.heard.is_some_and(is_less) {
            return None;
        }
        self.heard = Some(mark);
        Some(mark)
    }

    /// Of each pair the node with the greater id dials.
    pub(super) fn is_dialled_by(&self, own: NodeId) -> bool {
        own > self.node
    }

    /// The connection, if it is still the one of this session or bulk connection.
    pub(super) fn conn_of(&self, session: u64) -> Option<ConnId> {
        let control = self.session().filter(|one| one.id == session).map(|one| one.conn);
        control.or_else(|| self.bulk.conn().filter(|_| self.bulk.is_up() && self.bulk.id() == session))
    }

    /// Begins a session on `conn`, whose handshake is done.
    pub(crate) fn up(&mut self, id: u64, conn: ConnId, now_us: u64) {
        self.attempts = 0;
        self.clear();
        self.state = State::Up(Session {
            id,
            conn,
            sent_seq: 0,
            received_seq: 0,
            last_sent_us: 0,
            last_heard_us: now_us,
            unechoed: None,
            sending: self.greeting,
            told_durable: 0,
        });
    }

    /// Ends whatever was there. What waited to be sent is dropped: the groups probe again in the next session.
    pub(crate) fn down(&mut self, dial_at_us: u64) {
        self.attempts += 1;
        self.greeting = false;
        self.clear();
        self.state = State::Down { dial_at_us };
    }

    fn clear(&mut self) {
        self.building = Builder::default();
        self.out = Vec::new();
    }

    /// The envelope that is being filled, if the link is up.
    pub(crate) fn envelope(&mut self) -> Option<&mut Builder> {
        let durable = self.durable_to_tell();
        let State::Up(session) = &mut self.state else { return None };
        if self.building.bytes() >= ENVELOPE_BYTES_TARGET {
            seal(session, durable, &mut self.building, &mut self.out);
            self.frames += 1;
        }
        Some(&mut self.building)
    }

    fn durable_to_tell(&self) -> u64 {
        if self.speaks_marks() { self.durable } else { 0 }
    }

    /// Bytes that wait to be sent.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.out.len() + self.building.bytes()
    }

    /// Whether something waits though the connection is free.
    pub(crate) fn has_unsent(&self) -> bool {
        self.queued_bytes() > 0 && self.session().is_some_and(|session| !session.sending)
    }

    /// Whether more waits than a link may hold: the peer does not read.
    pub(crate) fn overflows(&self) -> bool {
        self.queued_bytes() > LINK_BYTES_MAX
    }

    /// Sends what waits, or a beat if one is due, unless a send is still in flight.
    pub(crate) fn flush<N: Net>(&mut self, net: &mut N, now_us: u64, beat_us: u64) {
        let durable = self.durable_to_tell();
        let State::Up(session) = &mut self.state else { return };
        if session.sending {
            return;
        }
        let beat_due = now_us >= session.last_sent_us + beat_us;
        if !self.building.is_empty() || (self.out.is_empty() && beat_due) {
            match self.building.is_empty() {
                true => self.beats += 1,
                false => self.frames += 1,
            }
            seal(session, durable, &mut self.building, &mut self.out);
        }
        if self.out.is_empty() {
            return;
        }
        let buf = std::mem::replace(&mut self.out, std::mem::take(&mut self.spare));
        session.sending = true;
        session.last_sent_us = now_us;
        session.unechoed.get_or_insert((session.sent_seq, now_us));
        net.send(session.conn, buf);
    }

    /// The connection took the last send.
    pub(crate) fn on_sent(&mut self, mut buf: Vec<u8>) {
        self.greeting = false;
        if let State::Up(session) = &mut self.state {
            session.sending = false;
        }
        buf.clear();
        buf.shrink_to(2 * ENVELOPE_BYTES_TARGET);
        self.spare = buf;
    }

    /// Notes an envelope that arrived; false if it is out of sequence.
    pub(crate) fn on_envelope(&mut self, seq: u64, echo: u64, now_us: u64) -> bool {
        let State::Up(session) = &mut self.state else { return false };
        if seq != session.received_seq + 1 || echo > session.sent_seq {
            return false;
        }
        session.received_seq = seq;
        session.last_heard_us = now_us;
        if session.unechoed.is_some_and(|(oldest, _)| echo >= oldest) {
            session.unechoed = None;
        }
        true
    }

    /// Whether the pulse is gone: nothing heard, or nothing of ours echoed, for three beats and a little.
    pub(crate) fn is_silent(&self, now_us: u64, beat_us: u64) -> bool {
        let State::Up(session) = &self.state else { return false };
        let limit = 3 * beat_us;
        now_us > session.last_heard_us + limit
            || session.unechoed.is_some_and(|(_, since_us)| now_us > since_us + limit + beat_us)
    }

    /// When [`flush`](Self::flush) or [`is_silent`](Self::is_silent) wants to be asked again.
    pub(crate) fn deadline_us(&self, beat_us: u64) -> u64 {
        match &self.state {
            State::Down { dial_at_us } => *dial_at_us,
            State::Dialling { since_us, .. } => since_us + super::HANDSHAKE_US,
            State::BothEmpty { .. } => u64::MAX,
            State::Up(session) => {
                let silent = session.last_heard_us + 3 * beat_us + 1;
                let unechoed = session.unechoed.map_or(u64::MAX, |(_, since)| since + 4 * beat_us + 1);
                let beat = if session.sending { u64::MAX } else { session.last_sent_us + beat_us };
                silent.min(unechoed).min(beat)
            }
        }
    }
}

fn seal(session: &mut Session, durable: u64, building: &mut Builder, out: &mut Vec<u8>) {
    session.sent_seq += 1;
    if durable > session.told_durable {
        session.told_durable = durable;
        building.push(Kind::Durable, GroupId(0), true, |fields| fields.put_u64(durable), |_| {});
    }
    building.take(session.received_seq, |head, tail| {
        frame::encode(FrameKind::Envelope, session.sent_seq, head, tail, out);
    });
}
