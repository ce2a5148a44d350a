//! The follower's half: joining a leader's entries to our log, and saying how far the two agree.
//!
//! Invariants: (1) an append that is held already changes nothing, so that late, doubled and reordered messages neither
//! truncate nor regress (openraft 9540c904, redpanda 17895): terms are compared entry by entry, and only the first that
//! differs cuts the log; (2) nothing at or below the commit index is compared, written or cut; (3) an acknowledgement
//! says at most the lesser of what is durable and what agrees with this leader in this term (Ra 637): a durable entry of
//! an earlier leader may still conflict; (4) the commit index never passes what agrees; (5) a leader that says what we
//! acknowledged to it (`held`) accuses nobody wrongly, however late, often or out of order it is heard: it is listened to
//! in its own term only, and there what agrees with its log is never cut. (In a later term, even one in which nothing
//! was accepted yet, a snapshot may have replaced the log, and no run tells so.)

use alloc::boxed::Box;
use alloc::vec::Vec;

use coracle_base::{Index, NodeId, Term};

use crate::election::Answer;
use crate::group::{Group, Output, Role};
use crate::log::Spans;
use crate::member::Configured;
use crate::membership::Changes;
use crate::message::{AppendReply, Message, Rejected};
use crate::persist::Durable;

/// An append of the current term's leader.
pub(crate) struct Received {
    pub(crate) prev_index: Index,
    pub(crate) prev_term: Term,
    pub(crate) spans: Spans,
    pub(crate) commit: Index,
    pub(crate) answer: bool,
    pub(crate) trusted: bool,
    pub(crate) held: bool,
    pub(crate) changes: Changes,
}

impl Received {
    /// What the append says of the term at `index`, if anything.
    fn term_at(&self, index: Index) -> Option<Term> {
        let mut last = self.prev_index;
        let spans = self.spans.iter().map(|&(term, count)| {
            last = last.plus(u64::from(count));
            (last, term)
        });
        let mut known = core::iter::once((self.prev_index, self.prev_term)).chain(spans);
        known.find(|&(last, _)| index <= last).filter(|_| index >= self.prev_index).map(|(_, term)| term)
    }
}

impl Group {
    /// A message that only a leader sends: whether it comes from the leader of our term, as far as we can tell.
    pub(crate) fn accept_leader(
        &mut self,
        now_us: u64,
        from: NodeId,
        term: Term,
        out: &mut Vec<Output>,
    ) -> bool {
        if term < self.state.term {
            self.owe(from, Answer::Term);
            return false;
        }
        if term > self.state.term {
            self.become_follower(now_us, term, out);
        }
        // A second leader in one term cannot be; who claims it is not believed.
        if self.role == Role::Leader || self.leader.is_some_and(|leader| leader != from) {
            return false;
        }
        self.role = Role::Follower;
        if self.leader_gone {
            // It resigned; this message was on the way already. Its entries are good, but it leads no more.
            return true;
        }
        if !self.leader_live {
            self.told_commit = None;
        }
        self.leader = Some(from);
        self.leader_live = self.peer_at(from).is_some_and(|at| self.peers[at].link_up);
        match self.leader_live {
            true => self.election_at = None,
            false => self.arm_election(now_us),
        }
        true
    }

    pub(crate) fn on_append(&mut self, now_us: u64, append: Received, out: &mut Vec<Output>) {
        self.told_commit.get_or_insert(append.commit);
        if !self.can_hold(&append.changes) {
            return;
        }
        let count: u64 = append.spans.iter().map(|&(_, count)| u64::from(count)).sum();
        let end = append.prev_index.plus(count);
        // Where both logs are committed or covered by the append, they must be the same.
        let shared = end.min(self.commit);
        let differs = |told| self.log.term_at(shared).is_some_and(|held| held != told);
        if append.term_at(shared).is_some_and(differs) {
            return out.push(Output::Diverged { index: shared });
        }
        if append.held {
            self.check_claim(now_us, append.prev_index, append.prev_term, out);
        }
        if append.prev_index > self.commit && !self.log.matches(append.prev_index, append.prev_term) {
            return self.reject(append.prev_index, append.prev_term);
        }
        // It may begin with entries that are committed here, some of them perhaps released: those are done with.
        let prev = append.prev_index.max(self.commit);
        let spans = skip(append.spans, prev.since(append.prev_index));
        if self.config.breaks.stale_append_truncates() && count > 0 && end.max(self.commit) < self.log.last()
        {
            let from = end.max(self.commit).next();
            self.log.truncate(from);
            self.ring.lower(from.prev());
            self.matched = self.matched.min(from.prev());
        }
        match self.log.first_difference(prev, &spans) {
            Some(first) => {
                self.store(first, skip(spans, first.since(prev) - 1), out);
                self.take_changes(now_us, first, append.changes);
            }
            None => self.answer_due |= count > 0,
        }
        // A leader that trusts us before all others have answered asks in vain.
        let is_early = append.trusted && self.votes_are_lost();
        self.answer_due |= append.answer && !is_early;
        self.agree(end.max(prev), append.commit);
        if append.trusted && self.suspect && !is_early {
            self.trust_again(now_us, out);
        }
    }

    /// The leader says that we acknowledged this entry to it. If it is not here, or not durable, our disk has lost what it
    /// said to have: nothing that we hold or voted by is to be relied on until the others have answered (`recall.rs`).
    fn check_claim(&mut self, now_us: u64, index: Index, term: Term, out: &mut Vec<Output>) {
        let is_durable = index <= self.ring.durable().get() && self.log.matches(index, term);
        // What is committed was joined in this life of ours; a snapshot may have taken its place.
        let holds = index <= self.commit || is_durable || self.config.breaks.lost_tail_untold();
        if holds || self.suspect {
            return;
        }
        self.on_votes_lost(now_us, out);
        out.push(Output::LostAcknowledged { index });
    }

    /// The log goes on with these entries from `first` on, whatever it held there.
    fn store(&mut self, first: Index, spans: Spans, out: &mut Vec<Output>) {
        if first <= self.log.last() {
            assert!(first > self.commit, "committed entries are never truncated");
            self.log.truncate(first);
            self.undo_change(first);
            self.ring.lower(first.prev());
            self.matched = self.matched.min(first.prev());
        }
        for (term, count) in spans {
            self.log.append(term, count);
        }
        out.push(Output::Store { first });
    }

    /// The log agrees with the leader's up to `matched`, so its commit index holds here up to there.
    fn agree(&mut self, matched: Index, leader_commit: Index) {
        self.matched = self.matched.max(matched);
        let agreed = if self.config.breaks.commit_above_recovered() { self.log.last() } else { self.matched };
        self.commit = self.commit.max(leader_commit.min(agreed));
    }

    /// An append that does not join. Of several, the lowest is answered: the others are consequences.
    fn reject(&mut self, prev_index: Index, prev_term: Term) {
        let rejected = (prev_index, prev_term);
        self.rejected = Some(self.rejected.map_or(rejected, |earlier| earlier.min(rejected)));
    }

    pub(crate) fn on_snapshot(
        &mut self,
        now_us: u64,
        (index, snap_term): (Index, Term),
        configured: Option<Box<Configured>>,
        out: &mut Vec<Output>,
    ) {
        self.answer_due = true;
        if index <= self.commit {
            if self.log.term_at(index).is_some_and(|term| term != snap_term) {
                return out.push(Output::Diverged { index });
            }
            return self.agree(self.commit, self.commit);
        }
        if self.log.matches(index, snap_term) {
            // We hold what it covers: knowing that it is committed is all we lack.
            return self.agree(index, index);
        }
        if snap_term < self.log.term_at(self.commit).unwrap_or_default() || snap_term > self.state.term {
            return out.push(Output::Diverged { index: self.commit });
        }
        self.ring.reset(self.commit, index);
        self.log.reset(index, snap_term);
        self.agree(index, index);
        self.install_members(now_us, configured);
        self.commit_reported = self.commit;
        self.installing = true;
        out.push(Output::Install { index, term: snap_term });
    }

    pub(crate) fn on_read_probe(&mut self, from: NodeId, round: u64) {
        if !self.suspect && !self.leader_gone && self.hold.is_none() {
            self.owe(from, Answer::Read { round });
        }
    }

    /// One answer for all that the leader sent since the last one.
    pub(crate) fn acknowledge(&mut self, term: Durable<Term>, out: &mut Vec<Output>) {
        let Some(leader) = self.leader.filter(|_| self.hold.is_none()) else { return };
        let durable = self.ring.durable().at_most(self.matched);
        let rejected = self.rejected.take().map(|(prev_index, prev_term)| {
            let (hint_index, hint_term) = self.log.latest_at_most(prev_index, prev_term);
            Rejected { prev_index, hint_index, hint_term }
        });
        if !self.answer_due && rejected.is_none() && durable.get() <= self.acked {
            return;
        }
        self.answer_due = false;
        self.acked = durable.get();
        let (matched, commit, suspect) = (self.matched, self.commit, self.suspect);
        let reply = AppendReply { term, durable, matched, commit, suspect, rejected };
        out.push(Output::Send { to: leader, message: Message::AppendReply(reply) });
    }
}

/// The spans without their first `entries` entries.
fn skip(mut spans: Spans, mut entries: u64) -> Spans {
    if entries == 0 {
        return spans;
    }
    spans.retain(|span| {
        let skipped = entries.min(u64::from(span.1));
        entries -= skipped;
        span.1 -= skipped as u32;
        span.1 > 0
    });
    spans
}
