//! Questions to machines: answered here, by the leader, or here when the leader has said how far this machine must have
//! come (`read_index.rs`).
//!
//! | asked for | this node leads | it does not |
//! |---|---|---|
//! | linearizable | a quorum is asked, then as much is applied | sent to the leader |
//! | linearizable, here | the same | the leader is asked for the index, then as much is applied |
//! | leader | at once | sent to the leader |
//! | local, from an index on | when that is applied | the same |
//!
//! Without a leader to be reached, what needs one waits for it. Invariants: (1) a question is answered once, in time or with a
//! refusal; (2) an index that an answer waits for was confirmed after the question was asked.

use coracle_base::limits::{LINK_BYTES_HIGH, SHARD_UNCOMMITTED_BYTES};
use coracle_base::{GroupId, Index, NodeId};
use coracle_io::{Clock, Disk, Net};
use coracle_raft::Role;

use super::inbox::Origin;
use super::readings::{Reading, Wants, question_bytes};
use super::{Answers, Shard, replies};
use crate::api::query::Consistency;
use crate::outcome::{Outcome, Reason};
use crate::panics::caught;
use crate::transport::envelope::Kind;

/// What is asked, by whom, and until when.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) consistency: Consistency,
    pub(crate) query: Vec<u8>,
    pub(crate) tag: u64,
    pub(crate) origin: Origin,
    pub(crate) deadline_us: u64,
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// A question of a client or of another node.
    pub(super) fn on_query(&mut self, group: GroupId, question: Question) {
        let Some(slot) = self.by_group.get(&group).copied() else {
            let reason = self.names.why_none(group);
            return self.refuse_query(&question, reason, None);
        };
        let one = &self.slots[slot as usize];
        let leads = one.raft.role() == Role::Leader;
        let is_local = matches!(question.consistency, Consistency::Local { .. });
        let is_here = leads || is_local || question.consistency == Consistency::LinearizableHere;
        let no_room = self.waiting_bytes + question_bytes(&question.query) > SHARD_UNCOMMITTED_BYTES;
        let is_full = is_here && !one.reads.has_room(is_local);
        let refusal = if one.diverged || is_here && one.poisoned.is_some() {
            Some(Reason::Poisoned)
        } else if no_room || is_full {
            Some(Reason::Busy)
        } else {
            None
        };
        if let Some(reason) = refusal {
            return self.refuse_query(&question, reason, one.raft.leader());
        }
        match question.consistency {
            Consistency::Local { index, term } => {
                self.wait_here(slot, question, Wants::AnswerAt(term), Some(index));
            }
            Consistency::Leader if leads => {
                self.wait_here(slot, question, Wants::Answer, Some(Index::ZERO));
            }
            Consistency::Linearizable | Consistency::LinearizableHere if leads => {
                let token = self.wait_here(slot, question, Wants::Answer, None);
                self.confirm(slot, token);
            }
            Consistency::LinearizableHere => self.read_here(slot, question),
            Consistency::Leader | Consistency::Linearizable => self.forward_query(slot, question),
        }
    }

    pub(super) fn refuse_query(&mut self, question: &Question, reason: Reason, leader: Option<NodeId>) {
        let mut answers = Answers { completions: &mut self.completions, transport: &mut self.transport };
        answers.give(&question.origin, question.tag, &Outcome::not_done(reason, leader));
    }

    /// The question waits here for what its answer has to include; at once, if that is there.
    pub(super) fn wait_here(
        &mut self,
        slot: u32,
        question: Question,
        wants: Wants,
        index: Option<Index>,
    ) -> u64 {
        let token = self.token();
        let Question { query, tag, origin, deadline_us, .. } = question;
        self.waiting_bytes += question_bytes(&query);
        let one = &mut self.slots[slot as usize];
        one.reads.insert(token, Reading { query, tag, origin, deadline_us, wants, index });
        if index.is_some() {
            self.answer_reads(slot);
        }
        if wants != Wants::Index {
            self.ask_machine(slot);
        }
        self.touch(slot);
        token
    }

    /// This node leads, and asks a quorum whether it still does.
    pub(super) fn confirm(&mut self, slot: u32, token: u64) {
        if self.slots[slot as usize].raft.read(token).is_err() {
            self.fail_read(slot, token);
        }
        self.touch(slot);
    }

    /// Another node leads, and its machine is to answer.
    fn forward_query(&mut self, slot: u32, question: Question) {
        let one = &self.slots[slot as usize];
        let (group, leader) = (one.id, one.raft.leader());
        if matches!(question.origin, Origin::Peer { .. }) {
            return self.refuse_query(&question, Reason::NoLeader, leader);
        }
        let link = leader.and_then(|leader| self.transport.link(leader));
        let session = link.and_then(|link| link.session()).map(|session| session.id);
        if self.forwards.is_full() || link.is_some_and(|link| link.queued_bytes() > LINK_BYTES_HIGH) {
            return self.refuse_query(&question, Reason::Busy, leader);
        }
        if let (Some(leader), Some(session)) = (leader, session)
            && let Some(envelope) = self.transport.envelope(leader)
        {
            return self.forwards.query(envelope, session, group, question);
        }
        self.park_query(slot, question);
    }

    /// Another node leads, and is asked how far this node's machine must have come.
    fn read_here(&mut self, slot: u32, question: Question) {
        let leader = self.slots[slot as usize].raft.leader();
        let link = leader.and_then(|leader| self.transport.link(leader));
        let Some(link) = link.filter(|link| link.session().is_some()) else {
            return self.park_query(slot, question);
        };
        if !link.speaks(Kind::WantIndexes) {
            // An older version knows no such question; its own machine's answer covers as much.
            return self.forward_query(slot, question);
        }
        #[cfg(feature = "breaks")]
        if self.settings.breaks.read_here_at_once {
            self.wait_here(slot, question, Wants::Answer, Some(Index::ZERO));
            return;
        }
        let token = self.wait_here(slot, question, Wants::Answer, None);
        self.index_reads.gather(slot, token);
    }

    /// Answers the questions for which enough is applied.
    pub(super) fn answer_reads(&mut self, slot: u32) {
        let node = self.settings.node;
        let one = &mut self.slots[slot as usize];
        if one.reads.is_empty() || !one.is_ready() && one.poisoned.is_none() {
            return;
        }
        let mut answers = Answers { completions: &mut self.completions, transport: &mut self.transport };
        let (applied, poisoned) = (one.applied, one.poisoned.is_some());
        let is_ready = |read: &Reading| {
            read.wants != Wants::Index && (read.index.is_some_and(|index| index <= applied) || poisoned)
        };
        for read in one.reads.take_if(is_ready) {
            self.waiting_bytes -= question_bytes(&read.query);
            let refusal = match (read.wants, read.index) {
                _ if poisoned => Some(Reason::Poisoned),
                (Wants::AnswerAt(Some(term)), Some(index)) => match one.raft.term_at(index) {
                    Some(found) if found == term => None,
                    Some(_) => Some(Reason::Overwritten),
                    None => Some(Reason::Released),
                },
                _ => None,
            };
            if let Some(reason) = refusal {
                answers.give(&read.origin, read.tag, &Outcome::not_done(reason, Some(node)));
                continue;
            }
            self.reply_scratch.clear();
            let machine = &one.machine;
            let scratch = &mut self.reply_scratch;
            match caught(|| machine.query(&read.query, scratch)) {
                Ok(()) => {
                    answers.give(&read.origin, read.tag, &replies::done(&self.reply_scratch, applied, node))
                }
                Err(_) => {
                    answers.give(&read.origin, read.tag, &Outcome::not_done(Reason::Poisoned, Some(node)))
                }
            }
        }
        self.again = true;
    }

    /// A quorum has confirmed that this node leads, and what was committed when it was asked.
    pub(super) fn on_read_ready(&mut self, slot: u32, token: u64, index: Index) {
        let reads = &mut self.slots[slot as usize].reads;
        let Some(read) = reads.get_mut(token) else { return };
        if read.wants != Wants::Index {
            read.index = Some(index);
            return self.answer_reads(slot);
        }
        if let Some(read) = reads.remove(token) {
            self.waiting_bytes -= question_bytes(&read.query);
            let mut answers = Answers { completions: &mut self.completions, transport: &mut self.transport };
            answers.give_index(&read.origin, Ok(index));
        }
    }

    /// The leader did not hear of the question, or cannot be heard any more: it waits for the next one, or the next link.
    pub(super) fn ask_again(&mut self, slot: u32, token: u64) {
        let one = &mut self.slots[slot as usize];
        let Some(read) = one.reads.remove(token) else { return };
        self.waiting_bytes -= question_bytes(&read.query);
        let (group, Reading { query, tag, origin, deadline_us, .. }) = (one.id, read);
        let consistency = Consistency::LinearizableHere;
        self.on_query(group, Question { consistency, query, tag, origin, deadline_us });
    }

    /// The leader could not make sure that it still leads: ask again, of whoever does.
    pub(super) fn fail_read(&mut self, slot: u32, token: u64) {
        self.refuse_read(slot, token, Reason::NoLeader);
    }

    pub(super) fn refuse_read(&mut self, slot: u32, token: u64, reason: Reason) {
        let one = &mut self.slots[slot as usize];
        let Some(read) = one.reads.remove(token) else { return };
        self.waiting_bytes -= question_bytes(&read.query);
        let mut answers = Answers { completions: &mut self.completions, transport: &mut self.transport };
        answers.refuse_read(&read, reason, one.raft.leader());
    }

    /// Questions whose time is up.
    pub(super) fn give_up_reads(&mut self, slot: u32) {
        let now_us = self.now_us;
        let one = &mut self.slots[slot as usize];
        let mut answers = Answers { completions: &mut self.completions, transport: &mut self.transport };
        for late in one.reads.take_late(now_us) {
            self.waiting_bytes -= question_bytes(&late.query);
            // Other nodes know this word since version 3 only, and ask only leaders.
            let is_own = !matches!(late.origin, Origin::Peer { .. });
            let reason = if late.index.is_some() && is_own { Reason::NotApplied } else { Reason::NoLeader };
            answers.refuse_read(&late, reason, None);
        }
    }
}

impl Answers<'_> {
    /// Whoever asked hears that there is no answer.
    pub(super) fn refuse_read(&mut self, read: &Reading, reason: Reason, leader: Option<NodeId>) {
        match read.wants {
            Wants::Index => self.give_index(&read.origin, Err(reason)),
            _ => self.give(&read.origin, read.tag, &Outcome::not_done(reason, leader)),
        }
    }
}
