//! Commands on their way to a leader on another node, and its answers on their way back.
//!
//! Invariant: a forwarded command is answered exactly once: by the leader's reply, or with `Unknown` when the session in
//! which it was sent ends or its time is up. (A query changes nothing, so it ends as `NotDone`.)

use std::collections::BTreeMap;

use coracle_base::codec::{Reader, Sink, Truncated};
use coracle_base::limits::FORWARDED_REPLY_BYTES_MAX;
use coracle_base::{EntryBatch, GroupId, Index, NodeId};

use super::Answers;
use super::inbox::Origin;
use super::queries::Question;
use crate::api::query::Consistency;
use crate::outcome::{Done, NotDone, Outcome, Reason, Unknown};
use crate::transport::envelope::{Builder, Kind};

/// Commands that may wait for other nodes' answers: two megabytes of tags.
const COMMANDS_MAX: usize = 256 * 1024;

/// What one request asked.
#[derive(Debug)]
struct Forwarded {
    session: u64,
    /// First the tags that are answered, then the others in order.
    tags: Vec<u64>,
    answered: usize,
    origin: Origin,
    is_query: bool,
    deadline_us: u64,
}

/// Requests that wait for another node's answers.
#[derive(Debug, Default)]
pub(crate) struct Forwards {
    requests: BTreeMap<u64, Forwarded>,
    next: u64,
    /// Tags of all the requests.
    commands: usize,
    /// No request's time is up before; it may be too early for those that are left.
    due_us: Option<u64>,
}

/// An answer off the wire.
struct Record<'a> {
    request: u64,
    tag: u64,
    outcome: Outcome<&'a [u8]>,
}

impl Forwards {
    /// Whether no more can wait: refuse what comes.
    pub(crate) fn is_full(&self) -> bool {
        self.commands >= COMMANDS_MAX
    }

    fn insert(&mut self, request: u64, forwarded: Forwarded) {
        self.commands += forwarded.tags.len();
        self.due_us = Some(self.deadline_us().min(forwarded.deadline_us));
        self.requests.insert(request, forwarded);
    }

    fn remove(&mut self, request: u64) -> Option<Forwarded> {
        let forwarded = self.requests.remove(&request)?;
        self.commands -= forwarded.tags.len();
        self.due_us = self.due_us.filter(|_| !self.requests.is_empty());
        Some(forwarded)
    }

    /// Sends entries to the leader.
    pub(crate) fn propose(
        &mut self,
        envelope: &mut Builder,
        session: u64,
        group: GroupId,
        entries: &EntryBatch,
        origin: Origin,
        deadline_us: u64,
    ) {
        self.next += 1;
        let request = self.next;
        let fields = |out: &mut Vec<u8>| {
            out.put_u64(request);
            out.put_u32(entries.count());
        };
        envelope.push(Kind::Forward, group, false, fields, |out| out.put(entries.bytes()));
        let tags = entries.tags();
        let forwarded = Forwarded { session, tags, answered: 0, origin, is_query: false, deadline_us };
        self.insert(request, forwarded);
    }

    /// Sends a question to the leader.
    pub(crate) fn query(&mut self, envelope: &mut Builder, session: u64, group: GroupId, question: Question) {
        self.next += 1;
        let request = self.next;
        let Question { consistency, query, tag, origin, deadline_us } = question;
        let fields = |out: &mut Vec<u8>| {
            out.put_u64(request);
            out.put_u8((consistency != Consistency::Leader).into());
            out.put_u64(tag);
        };
        envelope.push(Kind::Query, group, false, fields, |out| out.put(&query));
        let forwarded =
            Forwarded { session, tags: vec![tag], answered: 0, origin, is_query: true, deadline_us };
        self.insert(request, forwarded);
    }

    /// The leader's answers.
    ///
    /// # Errors
    /// They are not understood; those before were given.
    pub(crate) fn on_replies(
        &mut self,
        session: u64,
        payload: &[u8],
        answers: &mut Answers<'_>,
    ) -> Result<(), Truncated> {
        let mut reader = Reader::new(payload);
        while !reader.is_empty() {
            let record = decode_record(&mut reader)?;
            let Some(one) = self.requests.get_mut(&record.request).filter(|one| one.session == session)
            else {
                continue;
            };
            // Only a tag that has no answer yet is believed. A leader applies, and so answers, in order; what it refuses
            // comes before that.
            let open = &mut one.tags[one.answered..];
            let Some(at) = open.iter().position(|tag| *tag == record.tag) else { continue };
            open[..=at].rotate_right(1);
            answers.give(&one.origin, record.tag, &record.outcome);
            one.answered += 1;
            if one.answered == one.tags.len() {
                self.remove(record.request);
            }
        }
        Ok(())
    }

    /// A session ended: its answers will not come.
    pub(crate) fn on_session_end(&mut self, session: u64, answers: &mut Answers<'_>) {
        self.give_up(|one| one.session == session, Unknown::LinkBroke, answers);
    }

    /// Time passed.
    pub(crate) fn on_tick(&mut self, now_us: u64, answers: &mut Answers<'_>) {
        if self.deadline_us() <= now_us {
            self.give_up(|one| one.deadline_us <= now_us, Unknown::TimedOut, answers);
            self.due_us = self.requests.values().map(|one| one.deadline_us).min();
        }
    }

    /// The shard stops.
    pub(crate) fn stop(&mut self, answers: &mut Answers<'_>) {
        self.give_up(|_| true, Unknown::Stopped, answers);
    }

    fn give_up(&mut self, which: impl Fn(&Forwarded) -> bool, why: Unknown, answers: &mut Answers<'_>) {
        let lost: Vec<u64> =
            self.requests.iter().filter(|(_, one)| which(one)).map(|(request, _)| *request).collect();
        for request in lost {
            let Some(one) = self.remove(request) else { continue };
            let outcome =
                if one.is_query { Outcome::not_done(Reason::NoLeader, None) } else { Outcome::Unknown(why) };
            for tag in &one.tags[one.answered..] {
                answers.give(&one.origin, *tag, &outcome);
            }
        }
    }

    /// When to look for requests whose time is up. Not the first one's: a question may have waited for a leader before.
    pub(crate) fn deadline_us(&self) -> u64 {
        self.due_us.unwrap_or(u64::MAX)
    }
}

/// Adds one answer to the envelope for the node that forwarded the command.
pub(crate) fn push_reply(envelope: &mut Builder, request: u64, tag: u64, outcome: &Outcome<&[u8]>) {
    let too_large = Outcome::Unknown(Unknown::ReplyTooLarge);
    let outcome = match outcome {
        Outcome::Done(done) if done.reply.len() > FORWARDED_REPLY_BYTES_MAX => &too_large,
        other => other,
    };
    let (status, index, leader, reply): (u8, Index, NodeId, &[u8]) = match outcome {
        Outcome::Done(done) => (0, done.index, done.leader, done.reply),
        // The node that a refusal is about has the place of the index, of which it has none.
        Outcome::NotDone(why) => {
            let (number, about) = why.reason.encode();
            (number, Index(about.0), why.leader.unwrap_or(NodeId::NONE), &[])
        }
        Outcome::Unknown(why) => (unknown_status(*why), Index::ZERO, NodeId::NONE, &[]),
    };
    let out = envelope.replies();
    out.put_u64(request);
    out.put_u64(tag);
    out.put_u8(status);
    out.put_u64(index.0);
    out.put_u64(leader.0);
    out.put_u32(reply.len() as u32);
    out.put(reply);
}

const UNKNOWN: [Unknown; 6] = [
    Unknown::TimedOut,
    Unknown::LinkBroke,
    Unknown::Stopped,
    Unknown::Skipped,
    Unknown::ReplyTooLarge,
    Unknown::Deleted,
];

fn unknown_status(why: Unknown) -> u8 {
    100 + UNKNOWN.iter().position(|one| *one == why).unwrap_or(0) as u8
}

/// Reads answers to their end, for a fuzzer.
#[cfg(feature = "fuzz")]
pub(crate) fn check_replies(payload: &[u8]) -> Result<(), Truncated> {
    let mut reader = Reader::new(payload);
    while !reader.is_empty() {
        decode_record(&mut reader)?;
    }
    Ok(())
}

fn decode_record<'a>(reader: &mut Reader<'a>) -> Result<Record<'a>, Truncated> {
    let (request, tag, status) = (reader.u64()?, reader.u64()?, reader.u8()?);
    let (index, leader) = (Index(reader.u64()?), NodeId(reader.u64()?));
    let bytes = reader.u32()? as usize;
    let reply = reader.bytes(bytes)?;
    let outcome = match (status, Reason::decode(status, NodeId(index.0))) {
        (0, _) => Outcome::Done(Done { reply, index, leader }),
        (_, Some(reason)) => {
            let leader = (leader != NodeId::NONE).then_some(leader);
            Outcome::NotDone(NotDone { reason, retry_after: reason.retry_after(), leader })
        }
        // An unknown word for "unknown" still means that nobody can tell.
        (other, None) => Outcome::Unknown(
            UNKNOWN.get(usize::from(other.saturating_sub(100))).copied().unwrap_or(Unknown::TimedOut),
        ),
    };
    Ok(Record { request, tag, outcome })
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_base::EntryKind;

    #[test]
    fn what_waits_for_other_nodes_is_bounded() {
        let mut batch = EntryBatch::new();
        while batch.count() < 8192 {
            batch.push(7, EntryKind::Command, b"x").expect("a small batch");
        }
        let (mut forwards, mut envelope) = (Forwards::default(), Builder::default());
        let mut requests = 0;
        while !forwards.is_full() {
            let origin = Origin::Peer { node: NodeId(1), session: 0, request: 0 };
            forwards.propose(&mut envelope, 5, GroupId(1), &batch, origin, 0);
            requests += 1;
        }
        assert_eq!(requests * 8192, COMMANDS_MAX);
        assert!(forwards.remove(1).is_some());
        assert!(!forwards.is_full(), "an answered request makes room");
    }

    #[test]
    fn a_question_that_waited_before_it_was_sent_is_given_up_before_what_was_sent_earlier() {
        let mut batch = EntryBatch::new();
        batch.push(7, EntryKind::Command, b"x").expect("a small batch");
        let (mut forwards, mut envelope) = (Forwards::default(), Builder::default());
        let origin = || Origin::Peer { node: NodeId(1), session: 0, request: 0 };
        forwards.propose(&mut envelope, 5, GroupId(1), &batch, origin(), 90);
        assert_eq!(forwards.deadline_us(), 90);
        let consistency = Consistency::Linearizable;
        let question = Question { consistency, query: Vec::new(), tag: 0, origin: origin(), deadline_us: 50 };
        forwards.query(&mut envelope, 5, GroupId(1), question);
        assert_eq!(forwards.deadline_us(), 50);
        (1..=2).for_each(|request| assert!(forwards.remove(request).is_some()));
        assert_eq!(forwards.deadline_us(), u64::MAX);
    }
}
