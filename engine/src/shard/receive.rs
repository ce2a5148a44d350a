//! Step 1: commands, frames and completions become inputs of their groups.

use coracle_base::codec::Reader;
use coracle_base::limits::{GROUP_UNCOMMITTED_BYTES, LINK_BYTES_HIGH, SHARD_UNCOMMITTED_BYTES};
use coracle_base::run::Entries;
use coracle_base::{EntryBatch, GroupId, Index, NodeId, RunRef};
use coracle_io::{Clock, Disk, Net};
use coracle_raft::{Input, Message, Role};
use coracle_segments::Compactor;

use super::inbox::{Command, Origin};
use super::parked::Parked;
use super::queries::Question;
use super::readings::question_bytes;
use super::room::Need;
use super::waiting::Waiting;
use super::{Answers, OnDurable, ReadFor, Shard, ShardError, boots, members, places, snapshots};
use crate::api::query::Consistency;
use crate::outcome::{Outcome, Reason, Unknown};
use crate::transport::LinkEvent;
use crate::transport::envelope::{EnvelopeError, Kind, Piece, Pieces};
use crate::transport::hello::Lane;

/// Commands taken from the inbox in one turn, so that a flood does not starve the peers.
const COMMANDS_PER_TURN: usize = 1024;
/// Groups that are taken up or told about in one turn, but for the rest of the last command.
const GROUPS_PER_TURN: usize = 256;

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    pub(super) fn receive(&mut self) -> Result<(), ShardError> {
        self.receive_frames();
        let mut groups = 0;
        for _ in 0..COMMANDS_PER_TURN {
            let Some(command) = self.inbox.pop() else { break };
            groups += command.groups();
            self.on_command(command)?;
            if groups >= GROUPS_PER_TURN {
                break;
            }
        }
        self.complete()?;
        self.step_places();
        self.step_boots();
        self.tell_durable();
        self.watch_disk();
        self.tick();
        Ok(())
    }

    // ---- the network ----------------------------------------------------------------------------------------------

    fn receive_frames(&mut self) {
        let mut events = std::mem::take(&mut self.net_events);
        self.net.events(&mut events);
        for event in events.drain(..) {
            self.transport.on_event(&mut self.net, event, self.now_us, &mut self.link_events);
            self.on_link_events();
        }
        self.net_events = events;
        self.transport.tick(&mut self.net, self.now_us, &mut self.link_events);
        self.on_link_events();
    }

    pub(super) fn on_link_events(&mut self) {
        while !self.link_events.is_empty() {
            let mut events = std::mem::take(&mut self.link_events);
            for event in events.drain(..) {
                self.on_link_event(event);
            }
            if self.link_events.is_empty() {
                self.link_events = events;
            }
        }
    }

    fn on_link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up { node } => {
                self.judge_directory(node);
                self.on_link(node, true);
            }
            LinkEvent::Down { node, session } => {
                self.status.links_lost += 1;
                let mut answers =
                    Answers { completions: &mut self.completions, transport: &mut self.transport };
                self.forwards.on_session_end(session, &mut answers);
                self.lose_index_wishes(session);
                self.on_link(node, false);
            }
            LinkEvent::Envelopes { node, lane, session, inbound } => {
                for (head, tail, end) in &inbound.envelopes {
                    let (head, tail) = (&inbound.buf[*head..*tail], &inbound.buf[*tail..*end]);
                    if let Err(error) = self.on_envelope(node, lane, session, head, tail) {
                        let reason = error.to_string();
                        self.transport.fail(&mut self.net, node, &reason, self.now_us, &mut self.link_events);
                        break;
                    }
                }
                self.transport.consumed(&mut self.net, node, session, inbound);
            }
            LinkEvent::HandOver { conn, shard, hello } => {
                if let (Some(sibling), Some(socket)) =
                    (self.siblings.get(usize::from(shard.0)), self.net.detach(conn))
                {
                    // A full inbox drops the connection: the other side dials again.
                    let _ = sibling.push(Command::Adopt { socket, hello });
                }
            }
            // Not while a cluster is there: a peer that is still empty will come again as a member.
            LinkEvent::News(news) => self.on_place_news(news),
            LinkEvent::Adopt(_) | LinkEvent::BothEmpty | LinkEvent::Refused { .. } => {}
        }
    }

    /// A link's session began or ended: its groups hear of it.
    fn on_link(&mut self, node: NodeId, up: bool) {
        self.forget_wants(node);
        for slot in 0..self.slots.len() as u32 {
            self.input(slot, if up { Input::LinkUp(node) } else { Input::LinkDown(node) });
            self.release_parked(slot);
        }
    }

    fn on_envelope(
        &mut self,
        node: NodeId,
        lane: Lane,
        session: u64,
        head: &[u8],
        tail: &[u8],
    ) -> Result<(), EnvelopeError> {
        let mut pieces = Pieces::new(head, tail)?;
        while let Some(piece) = pieces.next()? {
            match piece.kind {
                kind if self.transport.link(node).is_some_and(|link| !link.speaks(kind)) => {
                    return Err(EnvelopeError::Message(format!(
                        "{kind:?} of a newer version than was agreed"
                    )));
                }
                kind if lane == Lane::Bulk && !matches!(kind, Kind::Chunk | Kind::Live) => {
                    return Err(EnvelopeError::Message(format!("{kind:?} on the bulk connection")));
                }
                Kind::Raft => self.on_raft(node, piece)?,
                Kind::Forward => self.on_forward(node, session, piece)?,
                Kind::Query => self.on_forwarded_query(node, session, piece)?,
                Kind::Offer | Kind::Want | Kind::Chunk | Kind::Live => self.on_transfer(node, piece)?,
                Kind::WantSnapshot => {
                    let base = Index(Reader::new(piece.fields).u64()?);
                    if let Some(slot) = self.by_group.get(&piece.group).copied() {
                        self.on_want_snapshot(slot, node, base);
                    }
                }
                Kind::Durable => {
                    let seq = Reader::new(piece.fields).u64()?;
                    self.on_mark(node, seq);
                }
                Kind::WantIndexes => self.on_want_indexes(node, session, piece.payload)?,
                Kind::Indexes => self.on_indexes(session, piece.payload)?,
                Kind::Replies => {
                    let mut answers =
                        Answers { completions: &mut self.completions, transport: &mut self.transport };
                    self.forwards.on_replies(session, piece.payload, &mut answers)?;
                }
            }
        }
        Ok(())
    }

    fn on_raft(&mut self, node: NodeId, piece: Piece<'_>) -> Result<(), EnvelopeError> {
        let mut fields = Reader::new(piece.fields);
        let message =
            Message::decode(&mut fields).map_err(|error| EnvelopeError::Message(error.to_string()))?;
        if !fields.is_empty() {
            return Err(EnvelopeError::Message("bytes after a message's last field".into()));
        }
        let Some(slot) = self.by_group.get(&piece.group).copied() else {
            tracing::debug!(group = %piece.group, %node, "message for a group that is not started here");
            return Ok(());
        };
        let run = check_payload(&message, piece)?;
        if let Message::TimeoutNow { term } = message
            && !self.may_lead(slot)
        {
            self.slots[slot as usize].raft.decline(node, term);
            self.touch(slot);
            return Ok(());
        }
        let mut message = message;
        if let (Message::Append { changes, .. }, Some(run)) = (&mut message, run) {
            *changes = members::changes_in(run)?;
        }
        self.check_version(node, &message)?;
        let snapshot = match message {
            Message::Snapshot { index, snap_term, .. } => Some((index, snap_term)),
            _ => None,
        };
        if snapshot.is_some() && piece.payload.len() > self.wal.snapshot_bytes_max() {
            self.receive_snapshot(slot, node, message, piece.payload);
            return Ok(());
        }
        let Some((message, run)) = self.what_fits(slot, node, message, run, piece.payload.len()) else {
            return Ok(());
        };
        self.step(slot, Input::Receive { from: node, message }, run, piece.payload);
        if let Some((index, term)) = snapshot {
            self.adopt(slot, index, term, piece.payload);
        }
        Ok(())
    }

    fn on_forward(&mut self, node: NodeId, session: u64, piece: Piece<'_>) -> Result<(), EnvelopeError> {
        let mut fields = Reader::new(piece.fields);
        let (request, count) = (fields.u64()?, fields.u32()?);
        let entries = EntryBatch::decode(count, piece.payload.to_vec())
            .map_err(|error| EnvelopeError::Message(error.to_string()))?;
        members::check_forwarded(&entries)?;
        self.on_propose(piece.group, entries, Origin::Peer { node, session, request }, false);
        Ok(())
    }

    fn on_forwarded_query(
        &mut self,
        node: NodeId,
        session: u64,
        piece: Piece<'_>,
    ) -> Result<(), EnvelopeError> {
        let mut fields = Reader::new(piece.fields);
        let (request, linearizable) = (fields.u64()?, fields.u8()? != 0);
        let consistency = if linearizable { Consistency::Linearizable } else { Consistency::Leader };
        // A query's tag goes round with the request: the other side knows it.
        let tag = fields.u64()?;
        let (query, origin) = (piece.payload.to_vec(), Origin::Peer { node, session, request });
        let deadline_us = self.now_us + self.settings.command_timeout_us;
        self.on_query(piece.group, Question { consistency, query, tag, origin, deadline_us });
        Ok(())
    }

    // ---- commands -------------------------------------------------------------------------------------------------

    fn on_command(&mut self, command: Command<N::Socket>) -> Result<(), ShardError> {
        match command {
            Command::Propose { group, entries, origin } => self.on_propose(group, entries, origin, true),
            Command::Query { group, consistency, query, tag, origin } => {
                let deadline_us = self.now_us + self.settings.command_timeout_us;
                self.on_query(group, Question { consistency, query, tag, origin, deadline_us });
            }
            Command::StartGroups { groups, started } => {
                let results = groups.into_iter().map(|start| self.start_group(start));
                started.answer(Ok(results.collect()));
            }
            Command::Campaign { group, reply } => {
                reply.answer(self.trigger_election(group));
            }
            Command::Drain { reply } => {
                reply.answer(Ok(self.drain_groups()));
            }
            Command::GroupStatus { groups, reply } => {
                reply.answer(Ok(groups.into_iter().map(|group| self.group_status(group)).collect()));
            }
            #[cfg(feature = "admin")]
            Command::GroupsAfter { after, count, reply } => reply.answer(Ok(self.groups_after(after, count))),
            Command::ReadEntries { group, indexes, max_bytes, to } => {
                self.on_read_entries(group, &indexes, max_bytes, to);
            }
            Command::Compact { begun } => {
                self.compact_now();
                begun.answer(Ok(()));
            }
            Command::Status { reply } => {
                reply.answer(Ok(self.status()));
            }
            Command::Shrink { group, reply } => self.on_shrink(group, reply),
            Command::Places(word) => self.on_place_word(word),
            Command::Names(word) => self.on_name_word(word),
            Command::Wish { wish, origin } => self.on_name_wish(wish, origin),
            Command::Watch(queue) => self.on_watch(queue),
            Command::Adopt { socket, hello } => {
                let conn = self.net.adopt(socket);
                self.transport.adopt(&mut self.net, conn, &hello, self.now_us, &mut self.link_events);
                self.on_link_events();
            }
            Command::Stop => return Err(ShardError::Stopped),
        }
        Ok(())
    }

    pub(super) fn refuse(
        &mut self,
        entries: &EntryBatch,
        origin: &Origin,
        reason: Reason,
        leader: Option<NodeId>,
    ) {
        let outcome = Outcome::not_done(reason, leader);
        let mut answers = Answers { completions: &mut self.completions, transport: &mut self.transport };
        for entry in Entries::new(Index(1), entries.bytes()) {
            answers.give(origin, entry.header.tag, &outcome);
        }
    }

    /// Entries for a group: into its log if it is led here, on to the leader, or into the waiting room. What a peer
    /// forwarded goes on to another leader only if it was taken in here, by a leader that hands over.
    pub(super) fn on_propose(
        &mut self,
        group: GroupId,
        entries: EntryBatch,
        origin: Origin,
        may_forward: bool,
    ) {
        self.status.proposed += u64::from(entries.count());
        let Some(slot) = self.by_group.get(&group).copied() else {
            let reason = self.names.why_none(group);
            return self.refuse(&entries, &origin, reason, None);
        };
        if entries.is_empty() {
            return;
        }
        let one = &self.slots[slot as usize];
        if one.diverged {
            return self.refuse(&entries, &origin, Reason::Poisoned, None);
        }
        if one.raft.role() == Role::Leader {
            return self.propose_here(slot, entries, origin);
        }
        let leader = one.raft.leader();
        if !may_forward {
            return self.refuse(&entries, &origin, Reason::NoLeader, leader);
        }
        if members::is_request(&entries)
            && let Err(reason) = self.require_members_at(leader)
        {
            return self.refuse(&entries, &origin, reason, leader);
        }
        let deadline_us = self.now_us + self.settings.command_timeout_us;
        let link = leader.and_then(|leader| self.transport.link(leader));
        let session = link.and_then(|link| link.session()).map(|session| session.id);
        if self.forwards.is_full() || link.is_some_and(|link| link.queued_bytes() > LINK_BYTES_HIGH) {
            return self.refuse(&entries, &origin, Reason::Busy, leader);
        }
        if let (Some(leader), Some(session)) = (leader, session)
            && let Some(envelope) = self.transport.envelope(leader)
        {
            return self.forwards.propose(envelope, session, group, &entries, origin, deadline_us);
        }
        self.park(slot, entries, origin);
    }

    /// Entries for a group that this node leads.
    fn propose_here(&mut self, slot: u32, mut entries: EntryBatch, origin: Origin) {
        if members::is_request(&entries) {
            return self.on_request(slot, &entries, origin);
        }
        if self.slots[slot as usize].raft.takes_nothing_up() {
            return self.park(slot, entries, origin);
        }
        let is_sound = self.slots[slot as usize].poisoned.is_none();
        if is_sound && !self.all_fit(Entries::new(Index(1), entries.bytes())) {
            entries = self.only_fitting(&entries, &origin);
            if entries.is_empty() {
                return;
            }
        }
        if is_sound && !self.may_write(Need::Ordinary, entries.bytes().len()) {
            entries = self.only_freeing(slot, &entries, &origin);
            if entries.is_empty() {
                return;
            }
        }
        let disk_is_behind = self.disk_is_behind();
        let one = &mut self.slots[slot as usize];
        let bytes = entries.bytes().len();
        let refusal = if one.poisoned.is_some() {
            Some(Reason::Poisoned)
        } else if one.waiting.bytes() + bytes > GROUP_UNCOMMITTED_BYTES
            || self.waiting_bytes + bytes > SHARD_UNCOMMITTED_BYTES
            || disk_is_behind
        {
            Some(Reason::Busy)
        } else {
            None
        };
        if let Some(reason) = refusal {
            let leader = Some(self.settings.node);
            self.give_up_if_poisoned(slot);
            return self.refuse(&entries, &origin, reason, leader);
        }
        let Ok(proposed) = one.raft.propose(entries.count()) else {
            return self.refuse(&entries, &origin, Reason::NoLeader, None);
        };
        entries.stamp(proposed.term, self.clock.wall_ms());
        let before = one.log.bytes();
        one.log.store(proposed.first, entries.bytes(), entries.count());
        self.arena_bytes += one.log.bytes() - before;
        self.waiting_bytes += bytes;
        self.unstaged_bytes += bytes;
        one.waiting.push(Waiting {
            first: proposed.first,
            last: Index(proposed.first.0 + u64::from(entries.count()) - 1),
            term: proposed.term,
            bytes,
            deadline_us: self.now_us + self.settings.command_timeout_us,
            tags: entries.tags(),
            origin,
        });
        self.ask_machine(slot);
        self.touch(slot);
    }

    // ---- the disk -------------------------------------------------------------------------------------------------

    /// The disk has answered: only now do groups vote, acknowledge, and count themselves.
    fn complete(&mut self) -> Result<(), ShardError> {
        self.take_completions()?;
        self.step_snapshots();
        let durable = self.wal.durable();
        while let Some((batch, then)) = self.on_durable.pop_front_if(|(batch, _)| durable.covers(*batch)) {
            self.on_promise(batch);
            match then {
                OnDurable::Persisted { slot, seq } => {
                    self.input(slot, Input::Persisted(seq));
                    // It applies nothing, after which this would be done.
                    if self.slots[slot as usize].poisoned.is_some() {
                        self.evict(slot);
                    }
                }
                OnDurable::Released { slot, index, term } => {
                    self.on_snapshot_durable(slot, batch, index, term);
                }
            }
        }
        self.remove_files();
        while let Some((token, result)) = self.wal.poll_read() {
            match self.reads.remove(&token) {
                Some(ReadFor::Apply { slot }) => self.on_apply_read(slot, result),
                Some(ReadFor::Follower { slot, to }) => self.on_follower_read(slot, to, result),
                None => {}
            }
        }
        self.complete_readers();
        Ok(())
    }

    /// The disk's completions, each to whoever began the operation.
    pub(super) fn take_completions(&mut self) -> Result<(), ShardError> {
        let mut done = std::mem::take(&mut self.disk_done);
        self.disk.completions(&mut done);
        for one in done.drain(..) {
            if Compactor::owns(one.token) {
                self.compaction.on_done(&mut self.disk, one);
            } else if snapshots::owns(one.token) {
                self.on_snapshot_done(one);
            } else if places::owns(one.token) {
                self.on_place_done(one);
            } else if boots::owns(one.token) {
                self.on_boots_done(one);
            } else {
                self.wal.on_done(&mut self.disk, one)?;
            }
        }
        self.disk_done = done;
        Ok(())
    }

    // ---- time -----------------------------------------------------------------------------------------------------

    fn tick(&mut self) {
        while let Some((at, slot)) = self.timers.first().copied() {
            if at > self.now_us {
                break;
            }
            self.timers.pop_first();
            self.slots[slot as usize].timer_us = None;
            if self.slots[slot as usize].raft.deadline_us().is_some_and(|at| at <= self.now_us) {
                self.on_group_timer(slot);
            }
            self.give_up_late(slot);
            self.ask_for_snapshot(slot);
            self.touch(slot);
        }
        self.begin_elections();
        let mut answers = Answers { completions: &mut self.completions, transport: &mut self.transport };
        self.forwards.on_tick(self.now_us, &mut answers);
    }

    /// Answers what has waited too long.
    fn give_up_late(&mut self, slot: u32) {
        let now_us = self.now_us;
        let one = &mut self.slots[slot as usize];
        let mut answers = Answers { completions: &mut self.completions, transport: &mut self.transport };
        for late in one.waiting.take_late(now_us) {
            self.waiting_bytes -= late.bytes;
            for tag in late.open_tags() {
                answers.give(&late.origin, *tag, &Outcome::Unknown(Unknown::TimedOut));
            }
        }
        for late in one.transfer_for.extract_if(.., |late| late.deadline_us <= now_us) {
            answers.give(&late.origin, late.tag, &Outcome::Unknown(Unknown::TimedOut));
        }
        let refusal = Outcome::not_done(Reason::NoLeader, None);
        for late in one.parked.take_late(now_us) {
            match late {
                Parked::Propose { entries, origin, .. } => {
                    self.waiting_bytes -= entries.bytes().len();
                    for entry in Entries::new(Index(1), entries.bytes()) {
                        answers.give(&origin, entry.header.tag, &refusal);
                    }
                }
                Parked::Query(question) => {
                    self.waiting_bytes -= question_bytes(&question.query);
                    answers.give(&question.origin, question.tag, &refusal);
                }
            }
        }
        self.give_up_reads(slot);
    }
}

/// Checks what came with a message against what the message says. The run in it, if it is an append with entries.
pub(crate) fn check_payload<'a>(
    message: &Message,
    piece: Piece<'a>,
) -> Result<Option<RunRef<'a>>, EnvelopeError> {
    let wrong = |why: &str| Err(EnvelopeError::Message(why.to_owned()));
    match message {
        Message::Append { spans, .. } if spans.is_empty() => {
            if piece.payload.is_empty() {
                Ok(None)
            } else {
                wrong("a probe with entries")
            }
        }
        Message::Append { term, prev_index, prev_term, spans, .. } => {
            let run =
                RunRef::parse(piece.payload).map_err(|error| EnvelopeError::Message(error.to_string()))?;
            run.check_payloads().map_err(|error| EnvelopeError::Message(error.to_string()))?;
            let header = run.header;
            let same = header.group == piece.group
                && header.accepted_term == *term
                && header.prev_index == *prev_index
                && header.prev_term == *prev_term
                && header.encoded_bytes() == piece.payload.len()
                && run.term_spans().eq(spans.iter().copied());
            if same { Ok(Some(run)) } else { wrong("an append that disagrees with its run") }
        }
        Message::Snapshot { .. } if piece.payload.len() > snapshots::MESSAGE_BYTES_MAX => {
            wrong("a snapshot over the limit")
        }
        Message::Snapshot { .. } => Ok(None),
        _ if piece.payload.is_empty() => Ok(None),
        _ => wrong("bytes that belong to no message"),
    }
}
