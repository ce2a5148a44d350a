//! The handshake of a connection: strangers, hello, welcome or refusal, and what the link is afterwards.
//!
//! Invariants: (1) a stranger is few bytes and little time; (2) who shows an older boot epoch than before, of the same
//! directory, is refused, unless it hears from us that it is an older copy, and understands (`shard/boots.rs`); (3) what a
//! hello says of the cluster is passed on, also if its sender is refused.

use coracle_io::{ConnId, Net};

use super::frame::{self, Frame, FrameKind};
use super::hello::{Hello, Lane, Meeting, PROTOCOL_MARKS, REFUSAL_BYTES_MAX, meet, news};
use super::link::{Link, State};
use super::{HELLO_BYTES_MAX, LinkEvent, RECEIVE_BYTES, Stranger, Transport};
use crate::lineage::Mark;

impl Transport {
    /// Bytes of a connection that has not said hello.
    pub(super) fn on_stranger<N: Net>(
        &mut self,
        net: &mut N,
        conn: ConnId,
        buf: Vec<u8>,
        now_us: u64,
        out: &mut Vec<LinkEvent>,
    ) {
        let hello = match Frame::parse(&buf) {
            Ok(None) if buf.len() < HELLO_BYTES_MAX => return net.receive(conn, buf),
            Ok(Some((Frame { kind: FrameKind::Hello, head, .. }, len))) if len == buf.len() => {
                Hello::decode(head).ok()
            }
            _ => None,
        };
        let Some(hello) = hello else {
            tracing::warn!(?conn, "a connection that does not begin with a hello: closed");
            self.strangers.remove(&conn);
            return net.close(conn);
        };
        self.strangers.remove(&conn);
        if hello.shard != self.own.shard && hello.shard.0 < self.own.shards {
            return out.push(LinkEvent::HandOver { conn, shard: hello.shard, hello: buf });
        }
        self.judge_hello(net, conn, &hello, now_us, out);
    }

    /// A connection that another shard's thread accepted, with the hello that named us.
    pub(crate) fn adopt<N: Net>(
        &mut self,
        net: &mut N,
        conn: ConnId,
        hello: &[u8],
        now_us: u64,
        out: &mut Vec<LinkEvent>,
    ) {
        match Frame::parse(hello).ok().flatten().and_then(|(frame, _)| Hello::decode(frame.head).ok()) {
            Some(hello) => self.judge_hello(net, conn, &hello, now_us, out),
            None => net.close(conn),
        }
    }

    /// The listener's half of the handshake.
    fn judge_hello<N: Net>(
        &mut self,
        net: &mut N,
        conn: ConnId,
        hello: &Hello,
        now_us: u64,
        out: &mut Vec<LinkEvent>,
    ) {
        if hello.lane == Lane::Bulk {
            return self.judge_bulk(net, conn, hello, now_us);
        }
        let at = self.position(hello.node);
        out.extend(at.and_then(|_| news(&self.own, hello)).map(LinkEvent::News));
        let refusal = match (at, meet(&self.own, hello)) {
            (None, Ok(_)) => Some(format!("node {} is not in this node's list of peers", hello.node)),
            (Some(at), Ok(_)) if self.is_stale(at, hello) => Some(stale(hello, self.links[at].boot_epoch)),
            (_, Err(reason)) => Some(reason),
            (Some(at), Ok(meeting)) => {
                if self.links[at].conn().is_some() {
                    self.take_down(net, at, now_us, "a newer connection took its place", out);
                }
                let mut welcome = Vec::new();
                let own = Hello { heard: self.links[at].heard, ..self.own.clone() };
                frame::encode(FrameKind::Welcome, 0, &own.encode(), &[], &mut welcome);
                net.send(conn, welcome);
                net.receive(conn, Vec::with_capacity(RECEIVE_BYTES));
                self.routes.insert(conn, (at, Lane::Control));
                self.links[at].greeting = true;
                self.begin(at, conn, hello, meeting, now_us, out);
                None
            }
        };
        if let Some(reason) = refusal {
            tracing::warn!(node = %hello.node, reason, "refused a node");
            let mut answer = Vec::new();
            if self.own.cluster.is_none() && hello.cluster.is_some() {
                // Who refuses us is us, and it has to hear who we are before it can give us a place.
                frame::encode(FrameKind::Welcome, 0, &self.own.encode(), &[], &mut answer);
            } else {
                let mut text = reason.clone().into_bytes();
                text.truncate(REFUSAL_BYTES_MAX);
                frame::encode(FrameKind::Refuse, 0, &text, &[], &mut answer);
            }
            net.send(conn, answer);
            // The stranger is kept until it closes or its time is up, so that the refusal can leave.
            self.strangers.insert(conn, Stranger { since_us: now_us });
            out.push(LinkEvent::Refused { node: hello.node, reason });
        }
    }

    /// The dialler's half: the answer to our hello.
    pub(super) fn on_greeting<N: Net>(
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
            Ok(Some((Frame { kind: FrameKind::Refuse, head, .. }, _))) => {
                let reason = String::from_utf8_lossy(head).into_owned();
                out.push(LinkEvent::Refused { node: self.links[at].node, reason: reason.clone() });
                return self.take_down(net, at, now_us, &reason, out);
            }
            _ => (None, 0),
        };
        let node = self.links[at].node;
        let told = hello.as_ref().filter(|hello| hello.node == node).and_then(|hello| news(&self.own, hello));
        out.extend(told.map(LinkEvent::News));
        let judged = match &hello {
            Some(hello) if hello.node != node => {
                Err(format!("node {} answers at the address of node {node}", hello.node))
            }
            Some(hello) if self.is_stale(at, hello) => Err(stale(hello, self.links[at].boot_epoch)),
            Some(hello) => meet(&self.own, hello),
            None => Err("the answer to our hello is not a welcome".into()),
        };
        match (judged, hello) {
            (Ok(meeting), Some(hello)) => {
                self.begin(at, conn, &hello, meeting, now_us, out);
                buf.drain(..len);
                buf.reserve(RECEIVE_BYTES);
                if buf.is_empty() {
                    net.receive(conn, buf)
                } else {
                    self.on_received(net, conn, buf, now_us, out)
                }
            }
            (Err(reason), _) => {
                out.push(LinkEvent::Refused { node, reason: reason.clone() });
                self.take_down(net, at, now_us, &reason, out);
            }
            (Ok(_), None) => self.take_down(net, at, now_us, "no welcome", out),
        }
    }

    fn is_stale(&self, at: usize, hello: &Hello) -> bool {
        is_stale(&self.links[at], hello, self.own.version_max)
    }

    /// Both sides agree: what the link is from now on.
    fn begin(
        &mut self,
        at: usize,
        conn: ConnId,
        hello: &Hello,
        meeting: Meeting,
        now_us: u64,
        out: &mut Vec<LinkEvent>,
    ) {
        let link = &mut self.links[at];
        link.boot_epoch = hello.boot_epoch;
        (link.boot, link.told) = (hello.boot, hello.heard);
        link.incarnation = Some(hello.incarnation);
        link.places = hello.cluster.as_ref().map_or(Vec::new(), |cluster| cluster.places.clone());
        link.version = self.own.version_max.min(hello.version_max);
        match meeting {
            Meeting::Members => {
                self.sessions += 1;
                link.up(self.sessions, conn, now_us);
                link.bulk.allow(now_us);
                out.push(LinkEvent::Up { node: link.node });
            }
            // The invited node will come again as a member; until then there is nothing to say to it.
            Meeting::BothEmpty | Meeting::Invite => {
                link.state = State::BothEmpty { conn };
                out.push(LinkEvent::BothEmpty);
            }
            Meeting::Adopt(cluster) => {
                link.state = State::BothEmpty { conn };
                out.push(LinkEvent::Adopt(cluster));
            }
        }
    }
}

/// Whether it is an older copy of its directory, and does not hear of it from us, or would not understand.
fn is_stale(link: &Link, hello: &Hello, version_max: u16) -> bool {
    // What was heard before the boot that it lacks, or of another directory, tells it nothing.
    let accuses = |mark: Mark| mark.incarnation == hello.incarnation && mark.epoch >= link.boot_epoch;
    let understands = hello.version_max.min(version_max) >= PROTOCOL_MARKS;
    let is_told = understands && link.heard.is_some_and(accuses);
    !is_told && link.has_seen_newer(hello.incarnation, hello.boot_epoch)
}

fn stale(hello: &Hello, known: u64) -> String {
    format!(
        "node {} shows boot epoch {}, and had {known} before: its data directory is an older copy; restore the newest, or \
         replace the node as a new member",
        hello.node, hello.boot_epoch
    )
}

#[cfg(test)]
mod tests {
    use coracle_base::{NodeId, ShardId};

    use super::*;
    use crate::identity::Identity;

    /// An older program ran in boots 4 and 5 of that directory, or a newer one that said nothing before it went.
    #[test]
    fn an_older_copy_is_let_in_only_if_it_is_told_so() {
        let identity = Identity { node: NodeId(2), incarnation: 12, shards: 1, cluster: None };
        let hello = |boot_epoch, version| Hello::of(&identity, ShardId(0), boot_epoch, version);
        let mut link = Link::new(NodeId(2), ([127, 0, 0, 1], 1).into(), 0);
        (link.incarnation, link.boot_epoch) = (Some(12), 5);
        let new = PROTOCOL_MARKS;
        let mark = |incarnation, epoch| Mark { incarnation, epoch, boot: 9, seq: 3 };
        for (heard, epoch, version, expected) in [
            (None, 4, new, true),
            (Some(mark(12, 4)), 4, new, true),
            (Some(mark(13, 5)), 4, new, true),
            (Some(mark(12, 5)), 4, new, false),
            (Some(mark(12, 5)), 4, new - 1, true),
            (None, 5, new, false),
            (None, 6, new - 1, false),
        ] {
            link.heard = heard;
            assert_eq!(is_stale(&link, &hello(epoch, version), new), expected, "{heard:?} {epoch} {version}");
        }
    }
}
