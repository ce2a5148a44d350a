//! Read indexes between members: a follower whose machine is to answer asks the leader how far it must have come.
//!
//! ```text
//!   follower   questions of this turn ──> one wish a group ──┐                         ┌──> applied so far? answered
//!                                                            ├─ one message a link ─┐  │
//!   leader                                                   └──> a quorum is asked ─┴──┘   (raft's own rounds)
//! ```
//!
//! Of a group one wish is on its way at a time, and what is asked meanwhile waits for the next one: a thousand questions
//! of a thousand groups in one turn are one message there and one back.
//!
//! Invariants: (1) a question joins only a wish that has not left yet: an index that was noted before it was asked may be
//! too low for it; (2) an answer counts only in the session in which the wish left; (3) each wish is answered once, also
//! when the leader stops leading; if not, the session's end or its time ends it. The questions of a wish whose session ended are
//! asked again in a new wish, of whoever leads then.

use std::collections::BTreeMap;

use coracle_base::codec::{Reader, Sink, Truncated};
use coracle_base::limits::SHARD_UNCOMMITTED_BYTES;
use coracle_base::{GroupId, Index, NodeId};
use coracle_io::{Clock, Disk, Net};
use coracle_raft::Role;

use super::inbox::Origin;
use super::queries::Question;
use super::readings::{Wants, question_bytes};
use super::{Answers, Shard};
use crate::api::query::Consistency;
use crate::outcome::Reason;
use crate::transport::envelope::Kind;

/// A wish that has left.
#[derive(Debug)]
struct Wish {
    slot: u32,
    session: u64,
    tokens: Vec<u64>,
    deadline_us: u64,
}

/// Questions that wait for an index.
#[derive(Debug, Default)]
pub(super) struct IndexReads {
    /// By group: those that the next wish is for.
    gathered: BTreeMap<u32, Vec<u64>>,
    open: BTreeMap<u64, Wish>,
    /// The open wish of a group.
    of_group: BTreeMap<u32, u64>,
    next: u64,
}

impl IndexReads {
    pub(super) fn gather(&mut self, slot: u32, token: u64) {
        self.gathered.entry(slot).or_default().push(token);
    }

    /// Whether a wish is for the group in this slot.
    pub(super) fn is_about(&self, slot: u32) -> bool {
        self.gathered.contains_key(&slot) || self.open.values().any(|wish| wish.slot == slot)
    }

    fn close(&mut self, request: u64) -> Option<Wish> {
        let wish = self.open.remove(&request)?;
        self.of_group.remove(&wish.slot);
        Some(wish)
    }

    /// Takes out what can leave now: the questions of groups without a wish on its way. One whose time is up holds nobody up.
    fn take_due(&mut self, now_us: u64) -> Vec<(u32, Vec<u64>)> {
        if self.gathered.is_empty() {
            return Vec::new();
        }
        let late =
            self.open.iter().filter(|(_, wish)| wish.deadline_us <= now_us).map(|(request, _)| *request);
        let late: Vec<u64> = late.collect();
        late.into_iter().for_each(|request| _ = self.close(request));
        let of_group = &self.of_group;
        self.gathered.extract_if(.., |slot, _| !of_group.contains_key(slot)).collect()
    }

    /// The wishes of a session that ended.
    fn take_session(&mut self, session: u64) -> Vec<Wish> {
        let lost = self.open.iter().filter(|(_, wish)| wish.session == session).map(|(request, _)| *request);
        let lost: Vec<u64> = lost.collect();
        lost.into_iter().filter_map(|request| self.close(request)).collect()
    }
}

/// Reads what a leader answered.
fn decode_index(reader: &mut Reader<'_>) -> Result<(u64, Result<Index, Reason>), Truncated> {
    let (request, status, index) = (reader.u64()?, reader.u8()?, Index(reader.u64()?));
    let result = match status {
        0 => Ok(index),
        // An unknown reason is a refusal all the same.
        status => Err(Reason::decode(status, NodeId::NONE).unwrap_or(Reason::NoLeader)),
    };
    Ok((request, result))
}

/// Reads both kinds of messages to their end, for a fuzzer.
#[cfg(feature = "fuzz")]
pub(crate) fn check_indexes(kind: Kind, payload: &[u8]) -> Result<(), Truncated> {
    let mut reader = Reader::new(payload);
    while !reader.is_empty() {
        match kind {
            Kind::WantIndexes => _ = (reader.u64()?, reader.u64()?),
            _ => _ = decode_index(&mut reader)?,
        }
    }
    Ok(())
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// The end of a turn's questions: what was gathered leaves, in one message a link.
    pub(super) fn send_index_wishes(&mut self) {
        for (slot, mut tokens) in self.index_reads.take_due(self.now_us) {
            let one = &self.slots[slot as usize];
            // Those that gave up have their answer.
            tokens.retain(|token| one.reads.contains(*token));
            if tokens.is_empty() {
                continue;
            }
            if one.raft.role() == Role::Leader {
                tokens.into_iter().for_each(|token| self.confirm(slot, token));
                continue;
            }
            let (group, leader) = (one.id, one.raft.leader());
            let link = leader.and_then(|leader| self.transport.link(leader));
            let link = link.filter(|link| link.speaks(Kind::WantIndexes));
            let session = link.and_then(|link| link.session()).map(|session| session.id);
            let envelope = leader.filter(|_| session.is_some()).and_then(|to| self.transport.envelope(to));
            let (Some(session), Some(envelope)) = (session, envelope) else {
                tokens.into_iter().for_each(|token| self.ask_again(slot, token));
                continue;
            };
            self.index_reads.next += 1;
            let request = self.index_reads.next;
            envelope.want_indexes().put_u64(request);
            envelope.want_indexes().put_u64(group.0);
            let deadline_us = self.now_us + self.settings.command_timeout_us;
            self.index_reads.open.insert(request, Wish { slot, session, tokens, deadline_us });
            self.index_reads.of_group.insert(slot, request);
            self.status.read_index_wishes += 1;
        }
    }

    /// Members want to know how far they must have come.
    pub(super) fn on_want_indexes(
        &mut self,
        node: NodeId,
        session: u64,
        payload: &[u8],
    ) -> Result<(), Truncated> {
        let mut reader = Reader::new(payload);
        while !reader.is_empty() {
            let (request, group) = (reader.u64()?, GroupId(reader.u64()?));
            let origin = Origin::Peer { node, session, request };
            if let Err(reason) = self.on_want_index(group, &origin) {
                let mut answers =
                    Answers { completions: &mut self.completions, transport: &mut self.transport };
                answers.give_index(&origin, Err(reason));
            }
        }
        Ok(())
    }

    fn on_want_index(&mut self, group: GroupId, origin: &Origin) -> Result<(), Reason> {
        let slot = self.by_group.get(&group).copied().ok_or_else(|| self.names.why_none(group))?;
        let one = &self.slots[slot as usize];
        if one.diverged || one.raft.role() != Role::Leader {
            return Err(Reason::NoLeader);
        }
        let no_room = self.waiting_bytes + question_bytes(&[]) > SHARD_UNCOMMITTED_BYTES;
        if no_room || !one.reads.has_room(false) {
            return Err(Reason::Busy);
        }
        let deadline_us = self.now_us + self.settings.command_timeout_us;
        let (consistency, origin) = (Consistency::LinearizableHere, origin.clone());
        let question = Question { consistency, query: Vec::new(), tag: 0, origin, deadline_us };
        let token = self.wait_here(slot, question, Wants::Index, None);
        self.confirm(slot, token);
        Ok(())
    }

    /// The leader has answered.
    pub(super) fn on_indexes(&mut self, session: u64, payload: &[u8]) -> Result<(), Truncated> {
        let mut reader = Reader::new(payload);
        while !reader.is_empty() {
            let (request, result) = decode_index(&mut reader)?;
            if self.index_reads.open.get(&request).is_none_or(|wish| wish.session != session) {
                continue;
            }
            let Some(wish) = self.index_reads.close(request) else { continue };
            match result {
                Ok(index) => {
                    let reads = &mut self.slots[wish.slot as usize].reads;
                    for token in &wish.tokens {
                        if let Some(read) = reads.get_mut(*token) {
                            read.index = Some(index);
                        }
                    }
                    self.answer_reads(wish.slot);
                }
                Err(reason) => {
                    wish.tokens.into_iter().for_each(|token| self.refuse_read(wish.slot, token, reason));
                }
            }
        }
        Ok(())
    }

    /// A session ended: its answers will not come.
    pub(super) fn lose_index_wishes(&mut self, session: u64) {
        for wish in self.index_reads.take_session(session) {
            wish.tokens.into_iter().for_each(|token| self.ask_again(wish.slot, token));
        }
    }
}

impl Answers<'_> {
    /// Tells a member how far it must have come, or that nobody here can say.
    pub(super) fn give_index(&mut self, origin: &Origin, result: Result<Index, Reason>) {
        let Origin::Peer { node, session, request } = origin else { return };
        if self.transport.session_of(*node) != Some(*session) {
            return;
        }
        let Some(envelope) = self.transport.envelope(*node) else { return };
        let out = envelope.indexes();
        out.put_u64(*request);
        out.put_u8(result.map_or_else(|reason| reason.encode().0, |_| 0));
        out.put_u64(result.unwrap_or_default().0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(reads: &mut IndexReads, slot: u32, request: u64, session: u64) {
        reads.open.insert(request, Wish { slot, session, tokens: vec![request], deadline_us: 100 });
        reads.of_group.insert(slot, request);
    }

    #[test]
    fn what_is_asked_while_a_wish_is_on_its_way_waits_for_the_next_one() {
        let mut reads = IndexReads::default();
        [(1, 10), (2, 20), (1, 11)].into_iter().for_each(|(slot, token)| reads.gather(slot, token));
        assert_eq!(reads.take_due(0), [(1, vec![10, 11]), (2, vec![20])]);
        sent(&mut reads, 1, 7, 5);
        [(1, 12), (2, 21)].into_iter().for_each(|(slot, token)| reads.gather(slot, token));
        assert_eq!(reads.take_due(99), [(2, vec![21])], "group 1 has a wish on its way");
        assert!(reads.close(7).is_some() && reads.close(7).is_none());
        assert_eq!(reads.take_due(99), [(1, vec![12])]);
    }

    #[test]
    fn a_wish_ends_with_its_session_or_its_time() {
        let mut reads = IndexReads::default();
        sent(&mut reads, 1, 7, 5);
        sent(&mut reads, 2, 8, 6);
        assert_eq!(reads.take_session(5).len(), 1);
        reads.gather(1, 10);
        reads.gather(2, 20);
        assert_eq!(reads.take_due(99), [(1, vec![10])]);
        assert_eq!(reads.take_due(100), [(2, vec![20])], "its time is up");
        assert!(reads.open.is_empty() && reads.of_group.is_empty());
    }
}
