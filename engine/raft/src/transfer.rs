//! Leadership is handed over: the leader takes nothing more up, brings its successor to the end of its own log, and tells
//! it to campaign at once. A successor that cannot do so says so: a pre-vote for the next term, which nobody asked it for, is
//! refused. Then it is the next one's turn, unless one was named. If all that comes to nothing within one election timeout, the
//! leader leads on as if nothing had been.
//!
//! Invariants: (1) a leader that hands over appends nothing, so the successor can catch up, and no command is lost for
//! having come in between; (2) the successor is a voter whose durable log, as it acknowledged it to this leader, ends
//! where the leader's does (not merely what was sent to it: Ra judges by that, and its successors lose the election).

use alloc::vec::Vec;

use coracle_base::{NodeId, Term};
use smallvec::SmallVec;

use crate::election::Answer;
use crate::group::{Group, NotLeader, Output, Role};
use crate::member::Membership;
use crate::message::{Message, NUMBER_MAX};
use crate::progress::Peer;

/// Leadership on its way to another member.
#[derive(Debug, Clone)]
pub(crate) struct Transfer {
    to: NodeId,
    pub(crate) until_us: u64,
    told: bool,
    /// Nobody was named, so others may take the place of those that decline.
    is_open: bool,
    declined: SmallVec<[NodeId; 4]>,
}

/// Why leadership cannot be handed over. Nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Only a leader can do this.
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
    /// The member leads already.
    #[error("node {0} leads already")]
    Leads(NodeId),
    /// It is no voter.
    #[error("node {0} is not a voter")]
    NotAVoter(NodeId),
    /// No voter, or not this one, can be reached and trusted.
    #[error("no voter that could lead can be reached")]
    Unreachable,
    /// Leadership is on its way to another one.
    #[error("leadership is being handed to node {0} already")]
    UnderWay(NodeId),
}

impl Group {
    /// Begins to hand leadership over: to that member, or to the voter that holds most of the log. Says to whom. It ends
    /// with `Output::Role`, when another one leads, or with `Output::TransferEnded`.
    ///
    /// # Errors
    /// [`TransferError`]: nothing was done.
    pub fn transfer(&mut self, now_us: u64, to: Option<NodeId>) -> Result<NodeId, TransferError> {
        self.require_leader()?;
        if to == Some(self.config.id) {
            return Err(TransferError::Leads(self.config.id));
        }
        if let Some(transfer) = &self.transfer {
            return match to.is_none_or(|to| to == transfer.to) {
                true => Ok(transfer.to),
                false => Err(TransferError::UnderWay(transfer.to)),
            };
        }
        if let Some(to) = to.filter(|to| !self.may_succeed(*to)) {
            return Err(TransferError::NotAVoter(to));
        }
        let is_open = to.is_none();
        let to = self.successor(|node| to.is_none_or(|to| node == to)).ok_or(TransferError::Unreachable)?;
        let until_us = now_us + self.config.election_us_max;
        let declined = SmallVec::new();
        self.transfer = Some(Transfer { to, until_us, told: false, is_open, declined });
        Ok(to)
    }

    fn may_succeed(&self, node: NodeId) -> bool {
        self.members().get(node).is_some_and(|member| member.membership() == Membership::Voter)
    }

    /// The best of those that could lead as far as we know.
    fn successor(&self, is_wanted: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let can_lead = self.peers.iter().filter(|peer| peer.link_up && peer.doubt.is_none());
        let wanted = can_lead.filter(|peer| is_wanted(peer.id) && self.may_succeed(peer.id));
        // Whoever had its turn in vain may be unfit in a way that is not seen from here: others come first.
        let fitness =
            |peer: &&Peer| (self.passed_over != Some(peer.id), peer.match_index, core::cmp::Reverse(peer.id));
        wanted.max_by_key(fitness).map(|peer| peer.id)
    }

    /// To whom leadership is being handed over.
    pub fn transferring(&self) -> Option<NodeId> {
        self.transfer.as_ref().map(|transfer| transfer.to)
    }

    /// Whether we take nothing up, because leadership is on its way to another member.
    pub fn takes_nothing_up(&self) -> bool {
        self.transfer.is_some() && !self.config.breaks.transfer_keeps_serving()
    }

    /// The successor holds everything: it is its turn.
    pub(crate) fn hand_over(&mut self, out: &mut Vec<Output>) {
        let Some(transfer) = self.transfer.as_mut().filter(|transfer| !transfer.told) else { return };
        let last = self.log.last();
        let is_ready = |peer: &&Peer| peer.id == transfer.to && peer.match_index == last;
        if self.peers.iter().filter(is_ready).any(|peer| peer.link_up && peer.doubt.is_none()) {
            transfer.told = true;
            out.push(Output::Send {
                to: transfer.to,
                message: Message::TimeoutNow { term: self.state.term },
            });
        }
    }

    /// The successor had its time: we lead on, unless we are no member any more.
    pub(crate) fn end_transfer(&mut self, now_us: u64, out: &mut Vec<Output>) {
        self.passed_over = self.transferring();
        self.transfer = None;
        if self.is_out() && self.members_are_settled() {
            return self.become_follower(now_us, self.state.term, out);
        }
        out.push(Output::TransferEnded);
    }

    /// The successor cannot lead now: the next one's turn, or we lead on.
    pub(crate) fn on_declined(&mut self, now_us: u64, from: NodeId, asked: Term, out: &mut Vec<Output>) {
        let is_current = asked == self.state.term.next();
        let is_it = |transfer: &mut Transfer| is_current && transfer.told && transfer.to == from;
        let Some(mut transfer) = self.transfer.take_if(is_it) else { return };
        transfer.declined.push(from);
        let next = self.successor(|node| transfer.is_open && !transfer.declined.contains(&node));
        (transfer.to, transfer.told) = (next.unwrap_or(from), false);
        self.transfer = Some(transfer);
        if next.is_none() {
            self.end_transfer(now_us, out);
        }
    }

    pub(crate) fn on_timeout_now(&mut self, now_us: u64, from: NodeId, term: Term) {
        if !self.can_win() {
            self.decline(from, term);
        } else if self.is_handed_over_by(from, term) {
            self.forced = true;
            self.run(now_us);
        }
    }

    fn is_handed_over_by(&self, leader: NodeId, term: Term) -> bool {
        term == self.state.term && self.leader == Some(leader) && self.role == Role::Follower
    }

    /// The leader wants this member to lead, which could not do well now: says so, instead of having it wait in vain.
    pub fn decline(&mut self, leader: NodeId, term: Term) {
        if self.is_handed_over_by(leader, term) {
            self.owe(leader, Answer::PreVote { asked: term.next(), granted: false });
        }
    }

    /// An operator wants this member to lead: it campaigns now, though there may be a live leader. Whether it does; a
    /// leader does not, nor does a member that could not win.
    pub fn trigger_election(&mut self, now_us: u64) -> bool {
        let begins = self.role != Role::Leader && self.can_win();
        if begins {
            self.campaign(now_us, true);
        }
        begins
    }

    /// Stops leading at once, though the links are up: this member's own disk does not answer. Whether it did; whoever is
    /// the only voter has nobody to leave it to.
    pub fn resign(&mut self, now_us: u64, out: &mut Vec<Output>) -> bool {
        let resigns = self.role == Role::Leader && !self.members().is_alone(self.config.id);
        if resigns {
            self.become_follower(now_us, self.state.term, out);
            self.tell_role(out);
        }
        resigns
    }

    fn can_win(&self) -> bool {
        let term = self.state.term.0;
        self.hold.is_none()
            && self.may_campaign()
            && self.trusts_its_log()
            && self.reaches_majority()
            && term < NUMBER_MAX
    }
}
