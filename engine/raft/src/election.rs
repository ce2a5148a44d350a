//! Who leads: pre-votes, votes, the deadlines that start them, stepping down.
//!
//! A pre-vote asks a majority whether a campaign would succeed and changes nothing anywhere, so a node that was cut off
//! cannot raise terms. A voter whose leader is live (heard in this session of a link that is up) refuses both pre-votes
//! and votes, so one bad link cannot unseat a leader. A follower of a live leader has no deadline at all; the link
//! vouches for the leader, and its loss, or the leader's `LeaderGone`, starts the clock. Only an election that the leader
//! itself or an operator wants (`forced`) is not refused for its sake.
//!
//! ```text
//!   with election_us_min = 300 ms                             first        second       third        further ones
//!   a leader was lost, or all are there and none is known     50..100 ms   200..250 ms  350..400 ms  300..600 ms
//!   an election came to nothing, somebody else has our vote   300..600 ms, whoever it is
//! ```
//!
//! First is whoever of those that are there is first in an order that differs from group to group: so the groups of a node
//! that died spread over the others, and thousands of them neither collide nor wait longer than they must.
//!
//! Whoever asks gets an answer, member or not as far as we know: our configuration may be older than the candidate's
//! (etcd 8288, "a learner must vote"). Whose votes count is the candidate's configuration's business.
//!
//! Invariants: (1) term and vote change only here and only together; the vote is forgotten only when the term rises
//! (etcd 2461); (2) every answer shows term and vote as they are on the disk; (3) a request for a vote leaves after our
//! own vote is durable.

use alloc::vec::Vec;

use coracle_base::checksum::mix64;
use coracle_base::{Index, NodeId, Term};

use crate::group::{Group, Output, Role};
use crate::hard_state::Ballot;
use crate::message::{AppendReply, Message, NUMBER_MAX};
use crate::persist::Durable;
use crate::progress::Peer;
use crate::quorum::Tally;

/// So many members have a moment of their own after a leader was lost; the others come after them, as chance has it.
const RANKS: u64 = 3;

/// An answer that leaves as soon as the ballot in force is durable.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owed {
    to: NodeId,
    answer: Answer,
}

/// The answer is built from the proof of durability when it leaves, so it is true whatever happened in between.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    /// To a request for a vote: the ballot.
    Ballot,
    PreVote {
        asked: Term,
        granted: bool,
    },
    /// To a candidate that is no member any more.
    Removed {
        index: Index,
        commit: Index,
        commit_term: Term,
    },
    Read {
        round: u64,
    },
    /// To a member that forgot what it promised.
    Recall {
        round: u64,
    },
    /// To a leader of the past: our term.
    Term,
}

impl Answer {
    /// Whether it says something by virtue of our votes.
    fn is_a_promise(&self) -> bool {
        matches!(self, Self::Ballot | Self::Read { .. } | Self::PreVote { granted: true, .. })
    }
}

impl Group {
    /// Term and vote in force; perhaps not durable yet.
    pub(crate) fn ballot(&self) -> Ballot {
        self.state.ballot()
    }

    /// Starts the wait for an election, if one can be won from here: with links to a majority, and a log to trust.
    pub(crate) fn arm_election(&mut self, now_us: u64) {
        let spread = self.config.election_us_max.saturating_sub(self.config.election_us_min);
        let wait_us = self.config.election_us_min + self.random_below(spread + 1);
        self.arm(now_us, wait_us);
    }

    /// As [`arm_election`](Self::arm_election), after a leader was lost or while none was ever known: the members that are
    /// there campaign one after the other, in an order of the group's own. Who is first is so almost without delay, and
    /// votes are not split.
    pub(crate) fn arm_succession(&mut self, now_us: u64) {
        let (min_us, rank) = (self.config.election_us_min, self.rank_without(None));
        if rank >= RANKS {
            return self.arm_election(now_us);
        }
        // A link that breaks and is back at once must not cost an election; and not all groups begin in one moment.
        let jitter_us = self.random_below(min_us / 6 + 1);
        self.arm(now_us, min_us / 6 + rank * (min_us / 2) + jitter_us);
    }

    /// How many of the voters that are there come before us in the group's order; one of them left out.
    fn rank_without(&self, left_out: Option<NodeId>) -> u64 {
        let place = |node: NodeId| (mix64(self.config.order, node.0), node);
        let me = place(self.config.id);
        let others = self.peers.iter().filter(|peer| peer.link_up && self.members().is_voter(peer.id));
        others.filter(|peer| Some(peer.id) != left_out && place(peer.id) < me).count() as u64
    }

    /// A link is up, and nobody leads: once every voter is there it goes by rank; while some are missing they get some
    /// time, or whoever starts first would lead everything.
    pub(crate) fn wait_for_all(&mut self, now_us: u64) {
        let is_there = |id| id == self.config.id || self.peer_at(id).is_some_and(|at| self.peers[at].link_up);
        let members = self.members();
        let all_there = members.iter().all(|one| !members.is_voter(one.id) || is_there(one.id));
        let before = self.election_at;
        if all_there && self.role == Role::Follower {
            self.arm_succession(now_us);
            self.election_at = [before, self.election_at].into_iter().flatten().min();
        } else if before.is_none() {
            self.arm_election(now_us);
        }
    }

    fn arm(&mut self, now_us: u64, wait_us: u64) {
        let can = self.may_campaign() && self.trusts_its_log() && self.reaches_majority();
        // Alone there is nobody to wait for or to collide with.
        let wait_us = if self.members().is_alone(self.config.id) { 0 } else { wait_us };
        self.election_at = can.then_some(now_us + wait_us);
    }

    /// Whether we can vouch for a leader, and so refuse to help replace it.
    pub(crate) fn leader_is_live(&self) -> bool {
        match self.role {
            Role::Leader => self.reaches_majority(),
            _ => self.leader_live,
        }
    }

    /// Asks whether an election would be won.
    pub(crate) fn campaign(&mut self, now_us: u64, forced: bool) {
        (self.leader, self.leader_live) = (None, false);
        self.forced = forced;
        let in_vain = self.role == Role::PreCandidate;
        self.arm_election(now_us);
        if self.election_at.is_none() || self.hold.is_some() || self.state.term.0 >= NUMBER_MAX {
            self.role = Role::Follower;
            return;
        }
        self.role = Role::PreCandidate;
        self.ask_all(in_vain);
        self.count_pre_vote(now_us, self.config.id);
    }

    /// Asks for votes, once our own is durable.
    pub(crate) fn run(&mut self, now_us: u64) {
        self.enter_term(self.state.term.next(), self.config.id);
        self.role = Role::Candidate;
        self.arm_election(now_us);
        if self.members().is_alone(self.config.id) {
            // Our own vote decides, as soon as it is durable: asking again would only raise the term.
            self.election_at = None;
        }
        self.ask_all(false);
    }

    /// Starts a round of asking; answers to earlier rounds do not count in it. Strangers have no votes for us, but one of
    /// them may know that we are out, which all of our voters may be, too.
    fn ask_all(&mut self, strangers_too: bool) {
        self.votes = Tally::default();
        let members = &self.state.current.members;
        self.peers.iter_mut().for_each(|peer| peer.ask = strangers_too || members.is_voter(peer.id));
    }

    /// Nobody leads us, and no campaign of ours can change that: we may be out, as may be all who could have told.
    fn is_astray(&self) -> bool {
        let is_lost = self.role == Role::Follower && !self.leader_live && self.hold.is_none();
        is_lost && !self.members().is_empty() && !(self.may_campaign() && self.reaches_majority())
    }

    fn enter_term(&mut self, term: Term, vote: NodeId) {
        assert!(term > self.state.term, "a vote is forgotten only when the term rises");
        (self.state.term, self.state.vote) = (term, vote);
        (self.leader, self.leader_live, self.leader_gone) = (None, false, false);
        (self.matched, self.acked) = (Index::ZERO, Index::ZERO);
        (self.answer_due, self.rejected) = (false, None);
    }

    /// Follows in `term`, ours or a later one, without a leader yet.
    pub(crate) fn become_follower(&mut self, now_us: u64, term: Term, out: &mut Vec<Output>) {
        if self.role == Role::Leader {
            self.resigned = Some(self.state.term);
            self.leader = None;
            self.leader_gone = true;
            self.fail_reads(out);
            (self.quorum_at, self.retry_at, self.change_at, self.transfer) = (None, None, None, None);
            self.passed_over = None;
            self.peers.iter_mut().for_each(|peer| peer.probe_from(peer.match_index.next()));
        }
        self.role = Role::Follower;
        if term > self.state.term {
            self.enter_term(term, NodeId::NONE);
        }
        self.arm_election(now_us);
    }

    fn become_leader(&mut self, now_us: u64, out: &mut Vec<Output>) {
        self.role = Role::Leader;
        self.leader = Some(self.config.id);
        self.election_at = None;
        let last = self.log.last();
        self.peers.iter_mut().for_each(|peer| peer.lead(last));
        // Entries of older terms are committed through this one only (Raft paper 5.4.2), and reads wait for it.
        self.log.append(self.state.term, 1);
        self.term_start = last.next();
        out.push(Output::AppendNoop { index: self.term_start, term: self.state.term });
        self.tally_due = true;
        if !self.reaches_majority() {
            self.quorum_at = Some(now_us + self.config.election_us_min);
        }
    }

    pub(crate) fn on_pre_vote(
        &mut self,
        now_us: u64,
        at: usize,
        term: Term,
        last: (Term, Index),
        forced: bool,
    ) {
        let from = self.peers[at].id;
        if self.leader == Some(from) && term > self.state.term {
            // It asks about a later term than ours, so it does not lead ours any more.
            (self.leader, self.leader_live) = (None, false);
            self.arm_election(now_us);
        }
        let live = self.leader_is_live() && !forced;
        if live && self.role == Role::Leader {
            // It does not know that we lead: tell it.
            self.peers[at].confirm = true;
        }
        let is_behind = !self.up_to_date(last);
        let granted = term > self.state.term && !live && self.may_back(last) && !is_behind;
        if !granted {
            self.tell_removed(from);
        }
        let is_next = || self.rank_without(Some(from)) == 0 && !self.has_voted_for_another();
        if is_behind && !live && !forced && self.role == Role::Follower && is_next() {
            // It cannot win, and nobody else is before us in the order. All who are ahead of it would split the votes.
            self.election_at = self.election_at.map(|at| at.min(now_us));
        }
        self.owe(from, Answer::PreVote { asked: term, granted });
    }

    /// Somebody who has our vote of this term, and does not lead it, may yet win.
    fn has_voted_for_another(&self) -> bool {
        let vote = self.state.vote;
        vote != NodeId::NONE
            && vote != self.config.id
            && self.peers.iter().any(|one| one.id == vote && one.link_up)
    }

    pub(crate) fn on_pre_vote_reply(
        &mut self,
        now_us: u64,
        at: usize,
        asked: Term,
        granted: bool,
        term: Term,
        out: &mut Vec<Output>,
    ) {
        if term > self.state.term {
            // Even a refusal teaches the term, or a node that is behind could ask in vain for ever (etcd 8243).
            self.become_follower(now_us, term, out);
        } else if granted && self.role == Role::PreCandidate && asked == self.state.term.next() {
            self.count_pre_vote(now_us, self.peers[at].id);
        } else if !granted {
            self.on_declined(now_us, self.peers[at].id, asked, out);
        }
    }

    pub(crate) fn on_vote(
        &mut self,
        now_us: u64,
        at: usize,
        term: Term,
        last: (Term, Index),
        forced: bool,
        out: &mut Vec<Output>,
    ) {
        let from = self.peers[at].id;
        if term > self.state.term {
            if self.leader_is_live() && !forced {
                self.peers[at].confirm = self.role == Role::Leader;
                self.tell_removed(from);
                return self.owe(from, Answer::Ballot);
            }
            self.become_follower(now_us, term, out);
        }
        let free = self.state.vote == NodeId::NONE && self.leader.is_none() && self.may_back(last);
        if term == self.state.term && free && self.up_to_date(last) {
            self.state.vote = from;
            self.role = Role::Follower;
            self.arm_election(now_us);
        }
        self.owe(from, Answer::Ballot);
    }

    pub(crate) fn on_vote_reply(&mut self, now_us: u64, at: usize, ballot: Ballot, out: &mut Vec<Output>) {
        if ballot.term > self.state.term {
            self.become_follower(now_us, ballot.term, out);
        } else if self.role == Role::Candidate && ballot == self.ballot() {
            self.count_vote(now_us, self.peers[at].id, out);
        }
    }

    fn count_pre_vote(&mut self, now_us: u64, from: NodeId) {
        self.votes.grant(from);
        if self.votes.won(self.members()) {
            self.run(now_us);
        }
    }

    pub(crate) fn count_vote(&mut self, now_us: u64, from: NodeId, out: &mut Vec<Output>) {
        self.votes.grant(from);
        if self.votes.won(self.members()) {
            self.become_leader(now_us, out);
        }
    }

    /// Whether nothing that we acknowledged may be lost: otherwise we may not lead.
    pub(crate) fn trusts_its_log(&self) -> bool {
        !self.suspect || self.config.breaks.suspect_votes()
    }

    /// A log is at least as good as ours if its last term is greater, or equal and it is as long (Raft paper 5.4.1).
    fn up_to_date(&self, last: (Term, Index)) -> bool {
        last >= (self.log.last_term(), self.log.last())
    }

    pub(crate) fn on_leader_gone(&mut self, now_us: u64, from: NodeId, term: Term) {
        if term == self.state.term
            && self.role == Role::Follower
            && self.leader.is_none_or(|leader| leader == from)
        {
            self.leader_gone = true;
            (self.leader, self.leader_live) = (None, false);
            self.arm_succession(now_us);
        }
    }

    pub(crate) fn owe(&mut self, to: NodeId, answer: Answer) {
        let same = |owed: &Owed| {
            owed.to == to && core::mem::discriminant(&owed.answer) == core::mem::discriminant(&answer)
        };
        self.owed.retain(|owed| !same(owed));
        self.owed.push(Owed { to, answer });
    }

    /// Everything that claims something about our term, vote or log leaves here, built from the proof that it is
    /// durable; without the proof it waits for the next drain.
    pub(crate) fn speak(&mut self, out: &mut Vec<Output>) {
        if let Some(term) = self.resigned.take() {
            for peer in self.peers.iter().filter(|peer| peer.link_up && peer.is_fed()) {
                out.push(Output::Send { to: peer.id, message: Message::LeaderGone { term } });
            }
        }
        let Some(ballot) = self.ring.ballot(self.ballot()) else { return };
        if self.votes_are_lost() {
            // It may name somebody, whom we voted for before we knew; and a leader that we forgot may be newer than the one that
            // asks whether we still follow it.
            self.owed.retain(|owed| !owed.answer.is_a_promise());
        }
        for owed in core::mem::take(&mut self.owed) {
            out.push(Output::Send { to: owed.to, message: self.answer(owed.answer, ballot) });
        }
        if matches!(self.role, Role::PreCandidate | Role::Candidate) || self.is_astray() {
            self.ask(ballot, out);
        }
        if self.role == Role::Follower {
            self.acknowledge(ballot.term(), out);
        }
    }

    fn answer(&self, answer: Answer, ballot: Durable<Ballot>) -> Message {
        let term = ballot.term();
        match answer {
            Answer::Ballot => Message::VoteReply { ballot },
            Answer::PreVote { asked, granted } => Message::PreVoteReply { asked, granted, term },
            Answer::Removed { index, commit, commit_term: term } => Message::Removed { index, commit, term },
            Answer::Read { round } => Message::ReadAck { term, round },
            Answer::Recall { round } => self.recollection(round, ballot),
            Answer::Term => Message::AppendReply(AppendReply {
                term,
                durable: self.ring.durable().at_most(Index::ZERO),
                matched: Index::ZERO,
                commit: Index::ZERO,
                suspect: self.suspect,
                rejected: None,
            }),
        }
    }

    fn ask(&mut self, ballot: Durable<Ballot>, out: &mut Vec<Output>) {
        let (last_index, last_term) = (self.log.last(), self.log.last_term());
        let forced = self.forced && self.role != Role::Follower;
        let message = match self.role {
            Role::Candidate => Message::Vote { term: ballot.term(), last_index, last_term, forced },
            _ => Message::PreVote { term: ballot.term().get().next(), last_index, last_term, forced },
        };
        // A voter that lacks a majority hears from its voters anyway, once one more of them is there.
        let only_strangers = self.role == Role::Follower && self.may_campaign();
        let members = &self.state.current.members;
        let is_due =
            |peer: &&mut Peer| peer.link_up && peer.ask && !(only_strangers && members.is_voter(peer.id));
        for peer in self.peers.iter_mut().filter(is_due) {
            peer.ask = false;
            out.push(Output::Send { to: peer.id, message: message.clone() });
        }
    }
}
