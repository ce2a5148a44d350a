//! The leader's half: sending entries within windows, learning where logs agree, advancing the commit index.
//!
//! Entries are sent while our own write of them is still on its way; we count ourselves by our durable index only, so a
//! commit may well precede our own disk (Raft thesis 10.2.1).
//!
//! Invariants: (1) the commit index moves only to an entry of our own term that is durable on a majority (Raft paper
//! 5.4.2, figure 8); (2) each commit index is told once to each member, with its entries or in an empty append; (3) a
//! reply that claims more than our log holds is not believed.

use alloc::vec::Vec;

use coracle_base::{Index, NodeId};

use crate::group::{Fit, Group, Output, Role, Sizes};
use crate::message::{AppendReply, Message, Rejected};
use crate::progress::{Mode, Place};

impl Group {
    /// The greatest index that is durable on a majority is committed, if its entry is of our term.
    pub(crate) fn advance_commit(&mut self) {
        if !core::mem::take(&mut self.tally_due) {
            return;
        }
        let removed_counts = self.config.breaks.removed_voter_counts();
        let members = match &self.state.previous {
            Some(previous) if removed_counts => &previous.members,
            _ => &self.state.current.members,
        };
        let upto = members.committed(|node| {
            if node == self.config.id {
                return self.ring.durable().get();
            }
            let peer = self.peers.iter().find(|peer| peer.id == node);
            peer.filter(|peer| peer.doubt.is_none()).map_or(Index::ZERO, |peer| peer.match_index)
        });
        let own_term = upto >= self.term_start || self.config.breaks.old_term_commit_by_count();
        if upto > self.commit && own_term {
            self.commit = upto;
        }
    }

    pub(crate) fn on_append_reply(
        &mut self,
        now_us: u64,
        at: usize,
        reply: AppendReply,
        out: &mut Vec<Output>,
    ) {
        if reply.term.get() > self.state.term {
            return self.become_follower(now_us, reply.term.get(), out);
        }
        let (last, durable) = (self.log.last(), reply.durable.get());
        let believable = durable <= reply.matched && reply.matched <= last;
        if self.role != Role::Leader || reply.term.get() < self.state.term || !believable {
            return;
        }
        let peer = &mut self.peers[at];
        peer.waiting_since = None;
        peer.commit_acked = peer.commit_acked.max(reply.commit);
        let is_believed = self.config.breaks.match_below_hole();
        if reply.suspect && is_believed {
            peer.match_index = peer.held;
        }
        match (reply.suspect && !is_believed, peer.doubt) {
            (true, None) => {
                // What it acknowledged before may be lost. Our log holds all of it, so up to here it must come again.
                peer.doubt = Some(last);
                peer.match_index = durable;
            }
            (true, Some(_)) => {}
            (false, _) => peer.doubt = None,
        }
        peer.acknowledged(durable);
        peer.confirm |= peer.trusted();
        peer.arrived(durable);
        self.tally_due = true;
        match reply.rejected {
            Some(rejected) => self.on_rejected(at, rejected),
            None => self.on_accepted(at, reply.matched),
        }
        let peer = &mut self.peers[at];
        peer.next_index = peer.next_index.max(peer.match_index.next());
        let is_said = !self.state.is_unsaid && peer.commit_acked >= self.state.current.index;
        if matches!(peer.place, Place::Leaving { .. }) && is_said {
            // It knows that it is out.
            peer.place = Place::Stranger;
        }
    }

    fn on_accepted(&mut self, at: usize, matched: Index) {
        let snapshot = self.log.snapshot().0;
        let peer = &mut self.peers[at];
        match peer.mode {
            Mode::Stream => peer.next_index = peer.next_index.max(matched.next()),
            Mode::Snapshot { sent } if matched < snapshot => {
                // What it has by now may be a snapshot that was overtaken by a newer one.
                peer.mode = Mode::Snapshot { sent: sent.filter(|&sent| matched < sent) };
            }
            Mode::Probe { .. } | Mode::Snapshot { .. } => peer.stream_from(matched),
        }
    }

    /// The logs differ at `prev_index`. Entries of terms greater than the hint's cannot be there, so they are skipped.
    fn on_rejected(&mut self, at: usize, rejected: Rejected) {
        let peer = &mut self.peers[at];
        let stale = match peer.mode {
            Mode::Probe { .. } => rejected.prev_index.next() != peer.next_index,
            Mode::Stream => rejected.prev_index >= peer.next_index,
            Mode::Snapshot { .. } => true,
        };
        if stale || (rejected.prev_index <= peer.match_index && peer.doubt.is_none()) {
            return;
        }
        let (meet, _) = self.log.latest_at_most(rejected.hint_index, rejected.hint_term);
        let next = meet.next().min(rejected.prev_index).max(peer.match_index.next());
        peer.probe_from(next);
    }

    /// What each member is to be sent now.
    pub(crate) fn replicate(&mut self, now_us: u64, sizes: &impl Sizes, out: &mut Vec<Output>) {
        let mut waiting_since: Option<u64> = None;
        for at in 0..self.peers.len() {
            if !self.peers[at].link_up || !self.peers[at].is_fed() {
                continue;
            }
            self.replicate_to(at, sizes, out);
            self.ask_read(at, out);
            let peer = &mut self.peers[at];
            peer.waiting_since = if peer.owes_answer() { peer.waiting_since.or(Some(now_us)) } else { None };
            waiting_since = [waiting_since, peer.waiting_since].into_iter().flatten().min();
        }
        // Once armed the deadline stays as it is: moving it with every answer would cost the driver a timer each.
        if self.retry_at.is_none() {
            self.retry_at = waiting_since.map(|since| since + self.config.retry_us);
        }
    }

    fn replicate_to(&mut self, at: usize, sizes: &impl Sizes, out: &mut Vec<Output>) {
        let peer = &mut self.peers[at];
        if !matches!(peer.mode, Mode::Snapshot { .. }) && peer.next_index < self.log.first() {
            peer.probe_from(peer.next_index);
            peer.mode = Mode::Snapshot { sent: None };
        }
        match peer.mode {
            Mode::Probe { sent: true } | Mode::Snapshot { sent: Some(_) } => {}
            Mode::Probe { sent: false } => self.probe(at, sizes, out),
            Mode::Snapshot { sent: None } => {
                peer.mode = Mode::Snapshot { sent: Some(self.log.snapshot().0) };
                out.push(Output::SendSnapshot { to: peer.id });
            }
            Mode::Stream => self.stream(at, sizes, out),
        }
    }

    /// One message without entries, as they might be refused, or there already. Only a new leader's first probe brings
    /// its no-op along, and what was proposed since.
    fn probe(&mut self, at: usize, sizes: &impl Sizes, out: &mut Vec<Output>) {
        let first = self.peers[at].next_index;
        let with_entries = first == self.term_start && self.peers[at].held == Index::ZERO;
        let (last, bytes) = match self.fit(first, sizes) {
            Some(Fit::Resident { last, bytes }) if with_entries => (last, bytes),
            _ => (first.prev(), 0),
        };
        self.peers[at].mode = Mode::Probe { sent: true };
        self.send_append(at, first.prev(), last, bytes, true, out);
    }

    fn stream(&mut self, at: usize, sizes: &impl Sizes, out: &mut Vec<Output>) {
        loop {
            let peer = &self.peers[at];
            let first = peer.next_index;
            if peer.fetching() || !peer.window_open(self.config.window_bytes, self.config.window_messages) {
                break;
            }
            match self.fit(first, sizes) {
                Some(Fit::Resident { last, bytes }) => {
                    self.send_append(at, first.prev(), last, bytes, false, out);
                    self.peers[at].sent(last, bytes);
                }
                Some(Fit::OnDisk) => {
                    let last = self.log.message_end(first, self.config.append_entries_max);
                    self.peers[at].fetch(first);
                    out.push(Output::Fetch { to: self.peers[at].id, first, last });
                }
                None => break,
            }
        }
        let peer = &mut self.peers[at];
        let confirm = core::mem::take(&mut peer.confirm);
        if confirm || peer.commit_sent < self.commit {
            // What it surely holds is the best place to join, also when messages overtake each other.
            let prev = if peer.match_index < self.log.snapshot().0 {
                peer.next_index.prev()
            } else {
                peer.match_index
            };
            self.send_append(at, prev, prev, 0, confirm, out);
        }
    }

    /// What of the log from `first` on goes into one message; `None` if there is nothing.
    fn fit(&self, first: Index, sizes: &impl Sizes) -> Option<Fit> {
        if first > self.log.last() {
            return None;
        }
        let end = self.log.message_end(first, self.config.append_entries_max);
        let fit = sizes.fit(first, end, self.config.append_bytes_max);
        if let Fit::Resident { last, .. } = fit {
            assert!(first <= last && last <= end, "a fit is a prefix of the range");
        }
        Some(fit)
    }

    /// The entries after `prev` up to `last`, and our commit index.
    fn send_append(
        &mut self,
        at: usize,
        prev: Index,
        last: Index,
        bytes: u32,
        answer: bool,
        out: &mut Vec<Output>,
    ) {
        let prev_term = self.log.term_at(prev).expect("a member behind the released log gets a snapshot");
        let peer = &mut self.peers[at];
        peer.commit_sent = self.commit;
        let message = Message::Append {
            term: self.state.term,
            prev_index: prev,
            prev_term,
            spans: self.log.spans(prev.next(), last),
            bytes,
            commit: self.commit,
            answer,
            trusted: peer.trusted(),
            held: peer.claim() == Some(prev),
            changes: Default::default(),
        };
        out.push(Output::Send { to: peer.id, message });
    }

    pub(crate) fn on_fetched(
        &mut self,
        to: NodeId,
        first: Index,
        count: u32,
        bytes: u32,
        out: &mut Vec<Output>,
    ) {
        let Some(at) = self.peer_at(to) else { return };
        let last = first.plus(u64::from(count)).prev();
        let wanted = self.peers[at].fetched(first);
        let end = self.log.message_end(first, self.config.append_entries_max);
        let sendable = first >= self.log.first() && first <= last && last <= end;
        let fed = self.peers[at].link_up && self.peers[at].is_fed();
        if wanted && sendable && self.role == Role::Leader && fed {
            self.send_append(at, first.prev(), last, bytes, false, out);
            self.peers[at].sent(last, bytes);
        }
    }

    /// It is tried again after `retry_us`, or at once by snapshot if the entries are released meanwhile.
    pub(crate) fn on_fetch_failed(&mut self, now_us: u64, to: NodeId) {
        let Some(at) = self.peer_at(to) else { return };
        let peer = &mut self.peers[at];
        if peer.fetched(peer.next_index) {
            peer.probe_from(peer.next_index);
            peer.mode = Mode::Probe { sent: true };
            peer.waiting_since = Some(now_us);
        }
    }

    /// Members that owe an answer for too long are asked again.
    pub(crate) fn retry(&mut self, now_us: u64) {
        self.retry_at = None;
        for peer in &mut self.peers {
            if peer.waiting_since.is_none_or(|since| since + self.config.retry_us > now_us) {
                continue;
            }
            peer.waiting_since = None;
            peer.read_asked = false;
            peer.tire();
            match peer.mode {
                Mode::Stream if peer.inflight().0 == 0 => peer.confirm = true,
                Mode::Stream => peer.probe_from(peer.match_index.next()),
                Mode::Probe { .. } => peer.mode = Mode::Probe { sent: false },
                Mode::Snapshot { .. } => peer.mode = Mode::Snapshot { sent: None },
            }
        }
    }
}
