//! The links of one shard to the same shard of every other node: dialling, handshakes, sessions, pulse.
//!
//! Of each pair the node with the greater id dials. An accepted connection is a stranger until its hello is judged;
//! strangers are few, have little time and little memory. Anything unexpected closes the connection with a logged
//! reason and touches no group.

mod bulk;
#[cfg(test)]
mod compat;
pub(crate) mod envelope;
pub(crate) mod frame;
mod handshake;
pub(crate) mod hello;
pub(crate) mod link;

use std::collections::BTreeMap;

use coracle_base::limits::FRAME_BYTES_MAX;
use coracle_base::{NodeId, ShardId};
use coracle_io::{ConnId, Net, NetEvent};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::cluster::Cluster;
use crate::config::Peer;
use crate::lineage::Mark;
use envelope::Builder;
use frame::{Frame, FrameKind};
use hello::{Hello, Lane, News};
use link::{Link, State};

/// A handshake that takes longer is given up.
pub(crate) const HANDSHAKE_US: u64 = 2_000_000;
/// Connections that have not said hello yet.
const STRANGERS_MAX: usize = 64;
/// What a stranger may send before its hello is complete.
const HELLO_BYTES_MAX: usize = 4096;
/// First wait before dialling again; doubles up to [`REDIAL_US_MAX`].
const REDIAL_US: u64 = 20_000;
const REDIAL_US_MAX: u64 = 1_000_000;
/// Room for one receive.
const RECEIVE_BYTES: usize = 256 * 1024;

/// What the links tell the shard.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// A session began.
    Up { node: NodeId },
    /// A session ended: everything sent in it may be lost.
    Down { node: NodeId, session: u64 },
    /// Envelopes arrived; give the buffer back with [`Transport::consumed`].
    Envelopes { node: NodeId, lane: Lane, session: u64, inbound: Inbound },
    /// The hello of a connection names another shard.
    HandOver { conn: ConnId, shard: ShardId, hello: Vec<u8> },
    /// We are empty, and a peer shows the cluster that we belong to.
    Adopt(Cluster),
    /// A peer's hello says what we do not know about who belongs to our cluster.
    News(News),
    /// A peer and we are empty both.
    BothEmpty,
    /// We and a peer do not belong together; its words or ours.
    Refused { node: NodeId, reason: String },
}

/// Received bytes: whole envelopes, by (start of head, start of tail, end of tail), and perhaps the start of the next.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    pub(crate) buf: Vec<u8>,
    pub(crate) envelopes: Vec<(usize, usize, usize)>,
    end: usize,
}

#[derive(Debug)]
struct Stranger {
    since_us: u64,
}

/// All links of one shard.
pub(crate) struct Transport {
    own: Hello,
    beat_us: u64,
    links: Vec<Link>,
    strangers: BTreeMap<ConnId, Stranger>,
    /// Connections that are some link's.
    routes: BTreeMap<ConnId, (usize, Lane)>,
    sessions: u64,
    rng: SmallRng,
    envelope_lists: Vec<Vec<(usize, usize, usize)>>,
}

impl Transport {
    pub(crate) fn new(own: Hello, peers: &[Peer], beat_us: u64, now_us: u64, seed: u64) -> Self {
        let mut links: Vec<Link> = peers
            .iter()
            .filter(|peer| peer.id != own.node)
            .map(|peer| Link::new(peer.id, peer.address, now_us))
            .collect();
        links.sort_by_key(|link| link.node);
        Self {
            own,
            beat_us,
            links,
            strangers: BTreeMap::new(),
            routes: BTreeMap::new(),
            sessions: 0,
            rng: SmallRng::seed_from_u64(seed),
            envelope_lists: Vec::new(),
        }
    }

    /// The link to `node`.
    pub(crate) fn link(&self, node: NodeId) -> Option<&Link> {
        self.position(node).map(|at| &self.links[at])
    }

    /// All links, by node.
    pub(crate) fn links(&self) -> &[Link] {
        &self.links
    }

    /// The session of the link to `node`, while it is up. What was heard in an earlier one says nothing about who leads now.
    pub(crate) fn session_of(&self, node: NodeId) -> Option<u64> {
        self.link(node).and_then(Link::session).map(|session| session.id)
    }

    /// Whether messages flow to and from `node`.
    pub(crate) fn is_up(&self, node: NodeId) -> bool {
        self.link(node).is_some_and(|link| link.session().is_some())
    }

    /// The envelope to `node` that is being filled; `None` while the link is down.
    pub(crate) fn envelope(&mut self, node: NodeId) -> Option<&mut Builder> {
        let at = self.position(node)?;
        self.links[at].envelope()
    }

    /// The incarnations of all peers, if every one of them has said that it is empty.
    pub(crate) fn all_empty(&self) -> Option<Vec<(NodeId, u64)>> {
        let ready = self.links.iter().all(|link| matches!(link.state, State::BothEmpty { .. }));
        let members = self.links.iter().map(|link| link.incarnation.map(|inc| (link.node, inc)));
        if ready { members.collect() } else { None }
    }

    /// We have become a member: from now on our hello says so. Everybody is greeted anew.
    pub(crate) fn formed<N: Net>(&mut self, net: &mut N, own: Hello, now_us: u64) {
        self.own = own;
        for at in 0..self.links.len() {
            if let Some(conn) = self.links[at].conn() {
                self.routes.remove(&conn);
                net.close(conn);
                self.bulk_down(net, at, now_us, "the cluster was formed");
                self.links[at].down(now_us + REDIAL_US);
            }
        }
    }

    /// What was heard from others before this start.
    pub(crate) fn remember(&mut self, heard: &[(NodeId, Mark)]) {
        for (node, mark) in heard {
            if let Some(at) = self.position(*node) {
                self.links[at].heard = Some(*mark);
            }
        }
    }

    /// A node says how far it is durable, in its present boot. `None`: that is nothing new.
    pub(crate) fn hear_mark(&mut self, node: NodeId, seq: u64) -> Option<Mark> {
        let at = self.position(node)?;
        self.links[at].hear_mark(seq)
    }

    /// From now on this node is durable up to this batch: whatever leaves after this may rest on it.
    pub(crate) fn tell_durable(&mut self, upto: u64) {
        self.links.iter_mut().for_each(|link| link.durable = upto);
    }

    /// Which directory this is.
    pub(crate) fn incarnation(&self) -> u64 {
        self.own.incarnation
    }

    /// The shard whose links these are.
    pub(crate) fn shard(&self) -> ShardId {
        self.own.shard
    }

    /// The cluster has other places than before: the links to whoever is not who has them now start over, and if a place was
    /// taken from somebody, all of them, so that everybody hears of it.
    pub(crate) fn set_cluster<N: Net>(
        &mut self,
        net: &mut N,
        cluster: Cluster,
        now_us: u64,
        out: &mut Vec<LinkEvent>,
    ) {
        let known = self.own.cluster.as_ref().map_or(&[][..], |cluster| &cluster.places);
        let is_news = cluster.places.iter().any(|place| !place.is_taken() && !known.contains(place));
        for at in 0..self.links.len() {
            let link = &self.links[at];
            let is_other = link.incarnation.is_some() && link.incarnation != cluster.incarnation(link.node);
            if (is_other || is_news) && link.conn().is_some() {
                self.take_down(net, at, now_us, "its place in the cluster is not what it was", out);
            }
        }
        self.own.cluster = Some(cluster);
    }

    fn position(&self, node: NodeId) -> Option<usize> {
        self.links.binary_search_by_key(&node, |link| link.node).ok()
    }

    /// One network event.
    pub(crate) fn on_event<N: Net>(
        &mut self,
        net: &mut N,
        event: NetEvent,
        now_us: u64,
        out: &mut Vec<LinkEvent>,
    ) {
        match event {
            NetEvent::Accepted { conn, from } => self.on_accepted(net, conn, from, now_us),
            NetEvent::Connected { conn } => self.on_connected(net, conn),
            NetEvent::Received { conn, buf, .. } => self.on_received(net, conn, buf, now_us, out),
            NetEvent::Sent { conn, buf } => match self.routes.get(&conn) {
                Some((at, Lane::Control)) => self.links[*at].on_sent(buf),
                Some((at, Lane::Bulk)) => self.links[*at].bulk.on_sent(buf),
                None => {}
            },
            NetEvent::Closed { conn, error } => {
                self.strangers.remove(&conn);
                match self.routes.get(&conn).copied() {
                    Some((at, Lane::Control)) => self.take_down(net, at, now_us, &error.to_string(), out),
                    Some((at, Lane::Bulk)) => self.bulk_down(net, at, now_us, &error.to_string()),
                    None => {}
                }
            }
        }
    }

    fn on_accepted<N: Net>(&mut self, net: &mut N, conn: ConnId, from: std::net::SocketAddr, now_us: u64) {
        if self.strangers.len() >= STRANGERS_MAX {
            tracing::warn!(%from, "too many connections that have not said hello: closed");
            net.close(conn);
            return;
        }
        self.strangers.insert(conn, Stranger { since_us: now_us });
        net.receive(conn, Vec::with_capacity(HELLO_BYTES_MAX));
    }

    fn on_connected<N: Net>(&mut self, net: &mut N, conn: ConnId) {
        let Some((at, lane)) = self.routes.get(&conn).copied() else { return net.close(conn) };
        match lane {
            Lane::Control => self.links[at].greeting = true,
            Lane::Bulk => self.links[at].bulk.greeting = true,
        }
        let mut out = Vec::new();
        let hello = Hello { lane, heard: self.links[at].heard, ..self.own.clone() };
        frame::encode(FrameKind::Hello, 0, &hello.encode(), &[], &mut out);
        net.send(conn, out);
        net.receive(conn, Vec::with_capacity(HELLO_BYTES_MAX));
    }

    fn on_received<N: Net>(
        &mut self,
        net: &mut N,
        conn: ConnId,
        buf: Vec<u8>,
        now_us: u64,
        out: &mut Vec<LinkEvent>,
    ) {
        if self.strangers.contains_key(&conn) {
            return self.on_stranger(net, conn, buf, now_us, out);
        }
        let Some((at, lane)) = self.routes.get(&conn).copied() else { return };
        match lane {
            Lane::Control if self.links[at].session().is_none() => {
                self.on_greeting(net, at, conn, buf, now_us, out);
            }
            Lane::Bulk if !self.links[at].bulk.is_up() => {
                self.on_bulk_greeting(net, at, conn, buf, now_us, out)
            }
            lane => self.on_envelopes(net, at, lane, buf, now_us, out),
        }
    }

    /// Bytes of a session.
    fn on_envelopes<N: Net>(
        &mut self,
        net: &mut N,
        at: usize,
        lane: Lane,
        buf: Vec<u8>,
        now_us: u64,
        out: &mut Vec<LinkEvent>,
    ) {
        let mut inbound = Inbound { buf, envelopes: self.envelope_lists.pop().unwrap_or_default(), end: 0 };
        let problem = loop {
            let rest = &inbound.buf[inbound.end..];
            match Frame::parse(rest) {
                Ok(None) => break None,
                Ok(Some((Frame { kind: FrameKind::Envelope, seq, head, tail }, len))) => {
                    let echo = envelope::echo(head).unwrap_or(u64::MAX);
                    let is_next = match lane {
                        Lane::Control => self.links[at].on_envelope(seq, echo, now_us),
                        Lane::Bulk => self.links[at].bulk.on_envelope(seq),
                    };
                    if !is_next {
                        break Some(format!("envelope {seq} is out of sequence"));
                    }
                    let tail_end = inbound.end + len;
                    let tail_start = tail_end - tail.len();
                    inbound.envelopes.push((tail_start - head.len(), tail_start, tail_end));
                    inbound.end = tail_end;
                }
                Ok(Some((frame, _))) => break Some(format!("unexpected {:?}", frame.kind)),
                Err(error) => break Some(error.to_string()),
            }
        };
        if let Some(reason) = problem {
            return match lane {
                Lane::Control => self.take_down(net, at, now_us, &reason, out),
                Lane::Bulk => self.bulk_down(net, at, now_us, &reason),
            };
        }
        let link = &self.links[at];
        let session = match lane {
            Lane::Control => link.session().map_or(0, |session| session.id),
            Lane::Bulk => link.bulk.id(),
        };
        let node = link.node;
        if inbound.envelopes.is_empty() {
            self.consumed(net, node, session, inbound);
        } else {
            out.push(LinkEvent::Envelopes { node, lane, session, inbound });
        }
    }

    /// Takes back a buffer whose envelopes are dealt with, and reads on.
    pub(crate) fn consumed<N: Net>(&mut self, net: &mut N, node: NodeId, session: u64, inbound: Inbound) {
        let Inbound { mut buf, mut envelopes, end } = inbound;
        envelopes.clear();
        self.envelope_lists.push(envelopes);
        let Some(conn) = self.link(node).and_then(|link| link.conn_of(session)) else { return };
        buf.drain(..end);
        // Make room for the rest of a frame that has begun, or for whatever comes.
        let wanted = Frame::needed(&buf)
            .ok()
            .flatten()
            .map_or(RECEIVE_BYTES, |total| total.min(FRAME_BYTES_MAX) + 4096);
        if buf.is_empty() && buf.capacity() > 4 * RECEIVE_BYTES {
            buf = Vec::new();
        }
        buf.reserve(wanted.max(RECEIVE_BYTES).saturating_sub(buf.len()));
        net.receive(conn, buf);
    }

    /// A message of `node` makes no sense: its session ends.
    pub(crate) fn fail<N: Net>(
        &mut self,
        net: &mut N,
        node: NodeId,
        reason: &str,
        now_us: u64,
        out: &mut Vec<LinkEvent>,
    ) {
        if let Some(at) = self.position(node) {
            self.take_down(net, at, now_us, reason, out);
        }
    }

    fn take_down<N: Net>(
        &mut self,
        net: &mut N,
        at: usize,
        now_us: u64,
        reason: &str,
        out: &mut Vec<LinkEvent>,
    ) {
        let link = &mut self.links[at];
        let (node, session) = (link.node, link.session().map(|session| session.id));
        if session.is_some() {
            link.down_since_us = now_us;
        }
        if let Some(conn) = link.conn() {
            net.close(conn);
            self.routes.remove(&conn);
        }
        self.bulk_down(net, at, now_us, reason);
        let link = &mut self.links[at];
        let base = (REDIAL_US << link.attempts.min(6)).min(REDIAL_US_MAX);
        link.down(now_us + base / 2 + self.rng.random_range(0..base));
        if let Some(session) = session {
            tracing::info!(%node, reason, "link down");
            out.push(LinkEvent::Down { node, session });
        } else {
            tracing::debug!(%node, reason, "no link yet");
        }
    }

    /// What time brings: dialling, beats, silence, strangers whose time is up.
    pub(crate) fn tick<N: Net>(&mut self, net: &mut N, now_us: u64, out: &mut Vec<LinkEvent>) {
        let late: Vec<ConnId> = self
            .strangers
            .iter()
            .filter(|(_, s)| now_us > s.since_us + HANDSHAKE_US)
            .map(|(conn, _)| *conn)
            .collect();
        for conn in late {
            self.strangers.remove(&conn);
            net.close(conn);
        }
        for at in 0..self.links.len() {
            let link = &self.links[at];
            match &link.state {
                State::Down { dial_at_us } if now_us >= *dial_at_us && self.own.node > link.node => {
                    let conn = net.connect(link.address);
                    self.routes.insert(conn, (at, Lane::Control));
                    self.links[at].state = State::Dialling { conn, since_us: now_us };
                }
                State::Dialling { since_us, .. } if now_us > since_us + HANDSHAKE_US => {
                    self.take_down(net, at, now_us, "the handshake took too long", out);
                }
                State::Up(_) if link.is_silent(now_us, self.beat_us) => {
                    self.take_down(net, at, now_us, "no pulse", out);
                }
                State::Up(_) if link.overflows() => {
                    self.take_down(net, at, now_us, "the peer does not read fast enough", out);
                }
                _ => {}
            }
            self.tick_bulk(net, at, now_us);
        }
    }

    /// One envelope a peer: everything that was gathered for it leaves.
    pub(crate) fn flush<N: Net>(&mut self, net: &mut N, now_us: u64) {
        for link in &mut self.links {
            link.flush(net, now_us, self.beat_us);
            link.bulk.flush(net, now_us);
        }
    }

    /// Whether [`flush`](Self::flush) would send something now.
    pub(crate) fn has_unsent(&self) -> bool {
        self.links.iter().any(|link| link.has_unsent() || link.bulk.has_unsent())
    }

    /// When [`tick`](Self::tick) or [`flush`](Self::flush) has something to do though nothing happens.
    pub(crate) fn deadline_us(&self) -> u64 {
        let links = self
            .links
            .iter()
            .filter(|link| self.own.node > link.node || !matches!(link.state, State::Down { .. }))
            .map(|link| link.deadline_us(self.beat_us));
        let is_ours = |link: &&Link| link.is_dialled_by(self.own.node) && link.speaks_transfer();
        let bulk = self.links.iter().filter(|link| link.session().is_some());
        let bulk = bulk.map(|link| link.bulk.deadline_us(is_ours(&link)));
        let strangers = self.strangers.values().map(|stranger| stranger.since_us + HANDSHAKE_US + 1);
        links.chain(bulk).chain(strangers).min().unwrap_or(u64::MAX)
    }
}
