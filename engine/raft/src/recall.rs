//! A member that may have forgotten what it promised: what it asks, what the others answer, when its word counts again.
//!
//! Damage may have taken entries that it acknowledged; or its whole directory is an older copy, and with the entries votes,
//! terms, even changes of its members are forgotten. Either way it is *suspect*: it neither votes nor campaigns, and what it
//! acknowledges is a hint that nobody counts. Two things make it whole again.
//!
//! ```text
//!   entries lost         a leader brings it to the end of its log (`doubt`, `trusted`), or all other voters answer
//!   votes lost, too      all other voters answer, and then: a leader brings it up, unless it holds enough already
//!
//!   suspect ── Recall ──> every node with a link           voter: Answer { term, last, members }, all of it durable
//!           <── Answers of all other voters ──
//!   term := the greatest heard, with our vote in it spent       bound := the greatest log heard
//!   our log >= bound ? whole : votes for logs >= bound only, and is whole once a leader has brought it up
//! ```
//!
//! Why that is enough. A forgotten vote mattered only if it reached its candidate. It did so in an earlier session of the
//! link, for nothing of one is delivered in a later; so when the candidate answers, its term is at least that of the vote,
//! and so is ours from then on, with the vote of that term spent (we voted for ourselves: that is given to nobody). A
//! forgotten acknowledgement was counted by a leader for an entry e. Either e was committed, and then some other voter of
//! that majority has it durable and answers with a log at least as good as (term of e, index of e); any log as good as that
//! contains e, by leader completeness. Or e is not committed, and then it never will be by our old word, for a leader counts
//! only what was said in the present session of the link (`progress.rs`). What we led ourselves is no different: our
//! followers answer.
//!
//! Members. What we hold of them may be old, too. So each answer says who the members are there, and we ask all voters of
//! the newest configuration that anybody knows to be committed, and of all later ones: of three and more voters a majority
//! of the next configuration always has one of those we know beside us, so each step of a chain of changes is told by
//! somebody whom the step before made us ask. Of two voters that is so because they only change through a joint phase, to
//! which both agree (`member.rs`). Of one it is not so: we may have decided alone, and changed the members, too. There no
//! answers are enough: the group stands still until a leader is there, or an operator. Earlier configurations need not
//! answer: whoever is elected after a committed change has it, and stale terms are below the term that we take.
//!
//! The answer of a member that is suspect itself counts for nothing. If so many have forgotten that none of them hears
//! from all others, the group stands still, and says who is waited for: an operator replaces them, or shrinks the group.
//!
//! A start holds back. Whether a directory is an old copy is known to the others only, and each says so when its link
//! comes up. So for a bounded time, or until the links to all other voters were up once, a member that has a past neither
//! votes nor campaigns nor acknowledges: requests for votes are put off, not refused.
//!
//! Invariants: (1) suspect means that there is a `Recall`; (2) once votes are lost nothing that they decide leaves, until
//! all have answered and the spent ballot is durable; (3) an answer is durable where it comes from.

use alloc::boxed::Box;
use alloc::vec::Vec;

use coracle_base::{Index, NodeId, Term};
use smallvec::SmallVec;

use crate::election::Answer;
use crate::group::{Group, Output, Role};
use crate::hard_state::Ballot;
use crate::member::{Configured, Members};
use crate::message::{Message, RecallReply};
use crate::persist::Durable;

/// Whoever has not answered is asked again after so many election timeouts, and then less and less often.
const ASK_AGAIN_ELECTIONS: u64 = 1;
const ASK_AGAIN_ELECTIONS_MAX: u64 = 16;
/// A member that decided alone may have changed the members, and nobody else knows.
pub(crate) const VOTERS_MIN: usize = 2;
/// Configurations newer than the committed one that are remembered; a chain of honest leaders makes one or two.
const PENDING_MAX: usize = 8;

/// Who, its term, and the end of its durable log.
type Answered = (NodeId, Term, (Term, Index));

/// What a suspect member has to hear, and has heard.
#[derive(Debug)]
pub(crate) struct Recall {
    /// Votes and terms may be forgotten, not only entries.
    votes_lost: bool,
    /// A part of the log may be missing that lies below its end.
    is_damaged: bool,
    /// Names the question, so that answers to an earlier one are not taken for answers to this.
    round: u64,
    answers: SmallVec<[Answered; 4]>,
    /// The best log of all that were heard of, of suspect members, too: its last term and index, and whose it is.
    best: Option<(Term, Index, NodeId)>,
    /// Once was not enough.
    is_asking_again: bool,
    /// The newest members that anybody knows to be committed, and newer ones.
    committed: Configured,
    pending: Vec<Configured>,
    /// All have answered: no log below this has all that was acknowledged here.
    bound: Option<(Term, Index)>,
    again_at: Option<u64>,
    wait_us: u64,
}

/// A start holds back until the others had a chance to say that the directory is old.
#[derive(Debug)]
pub(crate) struct Hold {
    until_us: u64,
    /// Voters whose link was not up yet.
    missing: SmallVec<[NodeId; 4]>,
    /// Requests for votes, to be answered afterwards.
    put_off: SmallVec<[(NodeId, Message); 2]>,
}

impl Recall {
    /// Whom it takes, besides ourselves.
    fn voters(&self, own: NodeId) -> SmallVec<[NodeId; 8]> {
        let all = core::iter::once(&self.committed).chain(&self.pending);
        let ids = all.flat_map(|one| one.members.iter().map(move |member| (&one.members, member.id)));
        let mut voters: SmallVec<[NodeId; 8]> =
            ids.filter(|(members, id)| *id != own && members.is_voter(*id)).map(|(_, id)| id).collect();
        voters.sort_unstable();
        voters.dedup();
        voters
    }

    /// The members that others know of.
    pub(crate) fn known_members(&self) -> impl Iterator<Item = &Configured> {
        core::iter::once(&self.committed).chain(&self.pending)
    }

    pub(crate) fn best_heard(&self) -> Option<(Term, Index, NodeId)> {
        self.best
    }

    fn has(&self, node: NodeId) -> bool {
        self.answers.iter().any(|(known, ..)| *known == node)
    }

    /// Whether enough have answered. Who knows of no members does not know whom it takes.
    fn is_complete(&self, own: NodeId, one_is_enough: bool) -> bool {
        let mut each = core::iter::once(&self.committed).chain(&self.pending);
        each.all(|one| one.members.deciding() >= VOTERS_MIN)
            && (self.voters(own).iter().all(|node| self.has(*node))
                || one_is_enough && !self.answers.is_empty())
    }

    fn learn(&mut self, committed: Option<Configured>, pending: Option<Configured>) {
        let is_newer =
            |one: &Configured| one.index > self.committed.index || self.committed.members.is_empty();
        if let Some(one) = committed.filter(is_newer) {
            self.committed = one;
        }
        let known = self.committed.index;
        self.pending.retain(|one| one.index > known);
        if let Some(one) = pending.filter(|one| one.index > known && !self.pending.contains(one)) {
            self.pending.push(one);
        }
        // Beyond that somebody is lying; the newest ones decide.
        self.pending.sort_unstable_by_key(|one| one.index);
        let excess = self.pending.len().saturating_sub(PENDING_MAX);
        self.pending.drain(..excess);
    }
}

impl Group {
    /// What was recovered may be less than what was promised, or is surely so.
    pub(crate) fn begin_recall(&mut self, now_us: u64, votes_lost: bool, is_damaged: bool) {
        self.suspect = true;
        self.recalls += 1;
        let mut recall = Recall {
            votes_lost,
            is_damaged,
            round: self.recalls,
            answers: SmallVec::new(),
            best: None,
            is_asking_again: false,
            committed: self.committed_members().clone(),
            pending: Vec::new(),
            bound: None,
            again_at: None,
            wait_us: ASK_AGAIN_ELECTIONS * self.config.election_us_max,
        };
        if self.state.current.index > recall.committed.index {
            recall.pending.push(self.state.current.clone());
        }
        // Who is alone has nobody to ask, and is not whole by waiting.
        if recall.voters(self.config.id).is_empty() {
            recall.again_at = Some(now_us + recall.wait_us);
        }
        self.recall = Some(Box::new(recall));
        self.peers.iter_mut().for_each(|peer| peer.ask_recall = true);
    }

    /// The directory is an older copy of itself, or has lost what it said to be durable.
    pub(crate) fn on_votes_lost(&mut self, now_us: u64, out: &mut Vec<Output>) {
        let is_told = self.recall.as_ref().is_some_and(|recall| recall.votes_lost);
        // Who decides alone has nobody who could know better.
        if is_told || self.members().is_alone(self.config.id) {
            return;
        }
        let is_damaged = self.recall.as_ref().is_some_and(|recall| recall.is_damaged);
        self.begin_recall(now_us, true, is_damaged);
        if self.role == Role::Leader {
            self.become_follower(now_us, self.state.term, out);
        }
        self.role = Role::Follower;
        self.election_at = None;
        self.answer_due = true;
    }

    /// Whether votes may be forgotten that nobody has made up for yet.
    pub(crate) fn votes_are_lost(&self) -> bool {
        self.recall.as_ref().is_some_and(|recall| recall.votes_lost)
    }

    /// Whether no part of the log below its end can be missing.
    pub(crate) fn is_undamaged(&self) -> bool {
        self.recall.as_ref().is_none_or(|recall| !recall.is_damaged)
    }

    /// Whether our word for a candidate with this log means something.
    pub(crate) fn may_back(&self, last: (Term, Index)) -> bool {
        let is_bounded = |recall: &Recall| recall.bound.is_some_and(|bound| last >= bound);
        self.recall.as_ref().is_none_or(|recall| is_bounded(recall)) || self.config.breaks.suspect_votes()
    }

    /// The other voters who have to answer before this member's votes count again.
    pub fn waits_for(&self) -> SmallVec<[NodeId; 8]> {
        match &self.recall {
            Some(recall) if recall.bound.is_none() => {
                let mut missing = recall.voters(self.config.id);
                missing.retain(|node| !recall.has(*node));
                missing
            }
            _ => SmallVec::new(),
        }
    }

    // ---- asking and answering -------------------------------------------------------------------------------------

    /// Asks whoever has a link and has not been asked in its session.
    pub(crate) fn ask_to_recall(&mut self, now_us: u64, out: &mut Vec<Output>) {
        let Some(recall) = self.recall.as_mut().filter(|recall| recall.bound.is_none()) else { return };
        for peer in self.peers.iter_mut().filter(|peer| peer.link_up && peer.ask_recall) {
            peer.ask_recall = false;
            out.push(Output::Send { to: peer.id, message: Message::Recall { round: recall.round } });
            recall.again_at.get_or_insert(now_us + recall.wait_us);
        }
    }

    pub(crate) fn recall_at(&self) -> Option<u64> {
        self.recall.as_ref().and_then(|recall| recall.again_at)
    }

    /// The group may not have been started there, or was suspect itself; and who has answered may know by now that others are
    /// members than those who are waited for.
    pub(crate) fn ask_again(&mut self, out: &mut Vec<Output>) {
        let Some(recall) = &mut self.recall else { return };
        recall.again_at = None;
        recall.is_asking_again = true;
        recall.wait_us = (2 * recall.wait_us).min(ASK_AGAIN_ELECTIONS_MAX * self.config.election_us_max);
        self.peers.iter_mut().for_each(|peer| peer.ask_recall = true);
        self.tell_loss(out);
    }

    /// Whether we have asked more than once, and are not answered by all who it takes.
    pub(crate) fn recalls_in_vain(&self) -> bool {
        self.recall.as_ref().is_some_and(|recall| recall.is_asking_again && recall.bound.is_none())
    }

    /// While we do not know ourselves whether we forgot something, we are no help; it asks again.
    pub(crate) fn on_recall(&mut self, now_us: u64, from: NodeId, round: u64, out: &mut Vec<Output>) {
        self.note_recall(now_us, from, out);
        if self.hold.is_none() {
            self.owe(from, Answer::Recall { round });
            self.tell_removed(from);
        }
    }

    pub(crate) fn recollection(&self, round: u64, ballot: Durable<Ballot>) -> Message {
        let durable = self.ring.durable();
        let term = self.log.term_at(durable.get());
        let committed = self.committed_members().clone();
        let pending = (self.state.current.index > committed.index).then(|| self.state.current.clone());
        Message::RecallReply(Box::new(RecallReply {
            round,
            term: ballot.term(),
            last_index: durable,
            last_term: term.unwrap_or_default(),
            // The entry at its end is gone while a snapshot takes the log's place: then it is no answer.
            suspect: self.suspect || term.is_none(),
            // Who was removed may know no more than that.
            committed: Some(committed).filter(|one| !one.members.is_empty()),
            pending,
        }))
    }

    pub(crate) fn on_recall_reply(
        &mut self,
        now_us: u64,
        from: NodeId,
        reply: RecallReply,
        out: &mut Vec<Output>,
    ) {
        let own = self.config.id;
        let one_is_enough = self.config.breaks.recall_ends_early();
        let Some(recall) = &mut self.recall else { return };
        if reply.round != recall.round || recall.bound.is_some() {
            return;
        }
        recall.learn(reply.committed, reply.pending);
        recall.answers.retain(|(known, ..)| *known != from);
        let last = (reply.last_term, reply.last_index.get());
        recall.best = recall.best.max(Some((last.0, last.1, from)));
        if !reply.suspect {
            recall.answers.push((from, reply.term.get(), last));
        }
        if recall.is_complete(own, one_is_enough) {
            self.conclude(now_us, out);
        }
    }

    /// Everybody has answered: what was forgotten cannot do harm any more.
    fn conclude(&mut self, now_us: u64, out: &mut Vec<Output>) {
        let Some(recall) = &mut self.recall else { return };
        let term = recall.answers.iter().map(|(_, term, _)| *term).max().unwrap_or_default();
        // Of those who decide: what only others hold nobody counted, and a bound that no voter reaches is none to wait for.
        let voters = recall.voters(self.config.id);
        let deciding = recall.answers.iter().filter(|(node, ..)| voters.contains(node));
        let bound = deciding.map(|(.., last)| *last).max().unwrap_or_default();
        let votes_lost = core::mem::take(&mut recall.votes_lost);
        (recall.bound, recall.again_at) = (Some(bound), None);
        if votes_lost && term >= self.state.term {
            if term > self.state.term {
                self.become_follower(now_us, term, out);
            }
            // Of this term we may have voted for anybody: for ourselves is for nobody else. A vote that is known is the only one.
            if self.state.vote == NodeId::NONE {
                self.state.vote = self.config.id;
            }
        }
        // What our leader hears next is that our votes are known again; so it may trust us.
        self.answer_due = true;
        self.trust_if_enough(now_us, out);
    }

    /// What is durable here may be as good by now as the best log that was heard of. The leader that brought it may be gone
    /// before it could say so.
    pub(crate) fn trust_if_enough(&mut self, now_us: u64, out: &mut Vec<Output>) {
        let Some(bound) = self.recall.as_ref().and_then(|recall| recall.bound) else { return };
        let durable = self.ring.durable().get();
        if self.log.term_at(durable).is_some_and(|term| (term, durable) >= bound) {
            self.trust_again(now_us, out);
        }
    }

    /// Everything that it can have acknowledged is here.
    pub(crate) fn trust_again(&mut self, now_us: u64, out: &mut Vec<Output>) {
        (self.suspect, self.recall, self.loss_told) = (false, None, false);
        out.push(Output::CaughtUp);
        if !self.leader_live && self.role == Role::Follower {
            self.arm_election(now_us);
        }
    }

    // ---- the start ------------------------------------------------------------------------------------------------

    /// Holds back for at most so long, unless nobody could say anything.
    pub(crate) fn begin_hold(&mut self, now_us: u64, hold_us: u64) {
        let previous = self.state.previous.as_ref().map(|previous| &previous.members);
        let both = core::iter::once(self.members()).chain(previous);
        let is_other = |members: &Members, id| id != self.config.id && members.is_voter(id);
        let missing: SmallVec<[NodeId; 4]> = both
            .flat_map(|members| members.iter().map(|one| one.id).filter(move |id| is_other(members, *id)))
            .collect();
        if hold_us > 0 && !missing.is_empty() {
            self.hold = Some(Hold { until_us: now_us + hold_us, missing, put_off: SmallVec::new() });
        }
    }

    pub(crate) fn hold_until(&self) -> Option<u64> {
        self.hold.as_ref().map(|hold| hold.until_us)
    }

    /// Its link is up, and so it has said whether it remembers more than we do.
    pub(crate) fn hold_less(&mut self, now_us: u64, node: NodeId, out: &mut Vec<Output>) {
        let Some(hold) = &mut self.hold else { return };
        hold.missing.retain(|missing| *missing != node);
        if hold.missing.is_empty() {
            self.end_hold(now_us, out);
        }
    }

    pub(crate) fn end_hold(&mut self, now_us: u64, out: &mut Vec<Output>) {
        let put_off = self.hold.take().map_or(SmallVec::new(), |hold| hold.put_off);
        for (from, message) in put_off {
            self.on_message(now_us, from, message, out);
        }
    }

    /// Puts a request for a vote off, if it is too early for an answer. What is not put off comes back.
    pub(crate) fn put_off(&mut self, from: NodeId, message: Message) -> Option<Message> {
        let is_vote = matches!(message, Message::PreVote { .. } | Message::Vote { .. });
        let Some(hold) = self.hold.as_mut().filter(|_| is_vote) else { return Some(message) };
        hold.put_off.retain(|(known, _)| *known != from);
        hold.put_off.push((from, message));
        None
    }

    /// Whoever asked in a session that is over does not wait any more.
    pub(crate) fn forget_put_off(&mut self, node: NodeId) {
        if let Some(hold) = &mut self.hold {
            hold.put_off.retain(|(from, _)| *from != node);
        }
    }
}
