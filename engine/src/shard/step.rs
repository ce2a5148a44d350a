//! Step 2: groups step, and what they ask for is staged: runs for the WAL, messages for the envelopes.

use coracle_base::run::RUN_HEADER_BYTES;
use coracle_base::{EntryBatch, EntryKind, Index, NodeId, RunHeader, RunRef, Term};
use coracle_io::{Clock, Disk, Net};
use coracle_raft::{Fit, HardState, Input, Message, Output, PersistSeq, Role, Sizes};
use coracle_wal::{BatchSeq, ReadError, ReadOut};

use super::give_up;
use super::groups::{Held, Slot, Snapshot};
use super::restore::Try;
use super::transfer::receive::Incoming;
use super::{Answers, OnDurable, ReadFor, Shard};
use crate::transport::envelope::Kind;

/// Bytes read back from files at once, for a follower or for applying.
pub(super) const READ_BYTES: usize = 256 * 1024;

/// Groups whose place in the log is brought into the cache together.
const WARM_GROUPS: usize = 24;

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// An input that brings no bytes.
    pub(super) fn input(&mut self, slot: u32, input: Input) {
        self.step(slot, input, None, &[]);
    }

    /// Steps one group, and does at once what refers to the input's own bytes: a run's entries, or a snapshot.
    pub(super) fn step(&mut self, slot: u32, input: Input, run: Option<RunRef<'_>>, payload: &[u8]) {
        if self.slots[slot as usize].is_deaf() {
            return;
        }
        let mut outputs = std::mem::take(&mut self.outputs);
        self.slots[slot as usize].raft.step(self.now_us, input, &mut outputs);
        for output in outputs.drain(..) {
            match (output, run) {
                (Output::Store { first }, Some(run)) => self.store(slot, first, run),
                (Output::Install { index, term }, _) => self.install(slot, index, term, payload),
                (output, _) => self.on_output(slot, output),
            }
        }
        self.outputs = outputs;
        self.touch(slot);
    }

    /// Every touched group says what it wants; it is asked once a turn.
    pub(super) fn step_groups(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        let mut outputs = std::mem::take(&mut self.outputs);
        for some in dirty.chunks(WARM_GROUPS) {
            self.wal.warm(some.iter().map(|slot| self.slots[*slot as usize].id));
            some.iter().for_each(|slot| self.drain(*slot, &mut outputs));
        }
        dirty.clear();
        // What outputs touched again is for the next turn; the vector's memory is kept.
        if self.dirty.is_empty() {
            self.dirty = dirty;
        }
        self.outputs = outputs;
    }

    fn drain(&mut self, slot: u32, outputs: &mut Vec<Output>) {
        let one = &mut self.slots[slot as usize];
        one.dirty = false;
        if !one.is_deaf() {
            one.raft.drain(self.now_us, &one.log, outputs);
        }
        for output in outputs.drain(..) {
            self.on_output(slot, output);
        }
        self.set_timer(slot);
    }

    pub(super) fn on_output(&mut self, slot: u32, output: Output) {
        match output {
            Output::Persist { seq, hard_state, entries } => self.stage(slot, seq, hard_state, entries),
            Output::AppendNoop { index, term } => self.append_own(slot, index, term, EntryKind::Noop, 0, &[]),
            Output::AppendMembers { index, term, members } => {
                self.append_members(slot, index, term, &members, 0)
            }
            Output::TransferEnded => self.on_transfer_ended(slot),
            Output::Send { to, message } => self.send_message(slot, to, message),
            Output::SendSnapshot { to } => self.send_snapshot(slot, to, false),
            Output::Fetch { to, first, last } => {
                let token = self.token();
                self.reads.insert(token, ReadFor::Follower { slot, to });
                let group = self.slots[slot as usize].id;
                self.wal.read(&mut self.disk, token, group, first, last, READ_BYTES);
            }
            Output::Commit { upto } => {
                self.on_commit(slot, upto);
                let one = &mut self.slots[slot as usize];
                if upto > one.applied && !one.applying {
                    one.applying = true;
                    self.applying.push(slot);
                }
            }
            Output::ReadReady { token, index } => self.on_read_ready(slot, token, index),
            Output::ReadFailed { token } => self.fail_read(slot, token),
            Output::Role { role, leader, term } => self.on_role(slot, role, leader, term),
            Output::CaughtUp => {
                let group = self.slots[slot as usize].id;
                tracing::info!(%group, "whole again after damage");
                self.status.groups_mended += 1;
                self.wal.clear_suspect(group);
                self.on_whole();
            }
            Output::LostAcknowledged { index } => {
                let group = self.slots[slot as usize].id;
                tracing::error!(
                    %group, %index,
                    "the leader counts on entries up to this one, which were durable here and are gone: the disk lies, or \
                     an old copy of the directory was put back"
                );
                self.status.groups_damaged += 1;
                self.status.groups_lost_acknowledged += 1;
                self.wal.mark_suspect(group);
            }
            Output::DataLost(loss) => self.on_data_loss(slot, loss),
            Output::Diverged { index } => {
                let one = &mut self.slots[slot as usize];
                one.diverged = true;
                poison(
                    one,
                    format!(
                        "a leader's log contradicts entry {index}, which is committed here: this member stands still"
                    ),
                );
                self.answer_reads(slot);
            }
            Output::Store { .. } | Output::Install { .. } => {
                unreachable!("these refer to an input's bytes and come only out of step")
            }
        }
    }

    /// The received entries from `first` on take the place of the log's tail.
    fn store(&mut self, slot: u32, first: Index, run: RunRef<'_>) {
        let one = &mut self.slots[slot as usize];
        let skip = first.since(run.header.first()) as usize;
        let mut entries = run.entries();
        if skip > 0 {
            entries.nth(skip - 1);
        }
        let before = one.log.bytes();
        one.log.store(first, entries.rest(), run.header.count - skip as u32);
        self.arena_bytes = self.arena_bytes + one.log.bytes() - before;
    }

    /// An entry that consensus itself wants.
    pub(super) fn append_own(
        &mut self,
        slot: u32,
        index: Index,
        term: Term,
        kind: EntryKind,
        tag: u64,
        payload: &[u8],
    ) {
        let mut entry = EntryBatch::new();
        entry.push(tag, kind, payload).expect("a small entry is within every limit");
        entry.stamp(term, self.clock.wall_ms());
        let one = &mut self.slots[slot as usize];
        let before = one.log.bytes();
        one.log.store(index, entry.bytes(), 1);
        self.arena_bytes = self.arena_bytes + one.log.bytes() - before;
    }

    /// Puts a group's hard state and new entries into the WAL's open batch.
    fn stage(
        &mut self,
        slot: u32,
        seq: PersistSeq,
        state: Option<HardState>,
        entries: Option<(Index, Index)>,
    ) {
        let run_bytes_max = self.wal.run_bytes_max();
        let one = &mut self.slots[slot as usize];
        // With neither, it is about an installed snapshot, which was staged last.
        let mut batch = one.staged;
        if let Some(state) = state {
            let state = state.encode();
            if let Some((first, last)) = entries {
                // A change of members and the entry that made or undid it must not be parted.
                let (header, _) = run_header(one, first, last, one.raft.term(), run_bytes_max);
                self.wal.keep_together(state.len(), header.count, header.body_bytes as usize);
            }
            batch = self.wal.put_state(one.id, &state);
            if one.raft.role() == Role::Candidate {
                self.elections.on_vote_staged(batch);
            }
        }
        if let Some((first, last)) = entries {
            let mut from = first;
            while from <= last {
                let (header, upto) = run_header(one, from, last, one.raft.term(), run_bytes_max);
                let pieces: smallvec::SmallVec<[&[u8]; 8]> =
                    one.log.pieces(from, upto).map(|(_, _, bytes)| bytes).collect();
                self.status.run_bytes += header.encoded_bytes() as u64;
                batch = self.wal.append(&header, &pieces);
                from = upto.next();
            }
        }
        one.staged = batch;
        #[cfg(feature = "breaks")]
        if self.settings.breaks.ack_before_durable {
            return self.input(slot, Input::Persisted(seq));
        }
        self.on_durable.push_back((batch, OnDurable::Persisted { slot, seq }));
    }

    fn send_message(&mut self, slot: u32, to: NodeId, message: Message) {
        if !self.is_known_at(slot, to, &message) {
            // What was read for it is of no use; consensus tries again later, as if it had been lost.
            return self.slots[slot as usize].fetched.retain(|(node, ..)| *node != to);
        }
        let message = self.in_words_of(to, message);
        let Some(envelope) = self.transport.envelope(to) else { return };
        let one = &mut self.slots[slot as usize];
        let fields = |out: &mut Vec<u8>| message.encode(out);
        let Message::Append { term, prev_index, prev_term, spans, .. } = &message else {
            return envelope.push(Kind::Raft, one.id, false, fields, |_| {});
        };
        let count: u32 = spans.iter().map(|(_, count)| count).sum();
        if count == 0 {
            return envelope.push(Kind::Raft, one.id, true, fields, |_| {});
        }
        let (first, last) = (prev_index.next(), prev_index.plus(u64::from(count)));
        let header = |body_bytes: usize| RunHeader {
            group: one.id,
            accepted_term: *term,
            prev_index: *prev_index,
            prev_term: *prev_term,
            count,
            body_bytes: body_bytes as u32,
        };
        if first < one.log.first() {
            let Some(at) =
                one.fetched.iter().position(|(node, from, n, _)| (*node, *from, *n) == (to, first, count))
            else {
                return; // dropped meanwhile; the leader asks again
            };
            let (_, _, _, body) = one.fetched.swap_remove(at);
            let header = header(body.len());
            return envelope.push(Kind::Raft, one.id, true, fields, |out| header.encode_run(&[&body], out));
        }
        let pieces: smallvec::SmallVec<[&[u8]; 8]> =
            one.log.pieces(first, last).map(|(_, _, bytes)| bytes).collect();
        let header = header(pieces.iter().map(|piece| piece.len()).sum());
        envelope.push(Kind::Raft, one.id, true, fields, |out| header.encode_run(&pieces, out));
    }

    /// A snapshot from the leader takes the place of the machine's state, and of the log up to it.
    fn install(&mut self, slot: u32, index: Index, term: Term, bytes: &[u8]) {
        self.abandon_restore(slot);
        let one = &mut self.slots[slot as usize];
        // The members that came with it are committed, be they the founders again. Known without it they do no harm; it
        // without them would.
        self.wal.put_state(one.id, &one.raft.hard_state().encode());
        let before = one.log.bytes();
        if one.raft.last() > index {
            one.log.evict(index)
        } else {
            one.log.reset(index)
        }
        self.arena_bytes = self.arena_bytes + one.log.bytes() - before;
        one.fetched.clear();
        match one.incoming.take() {
            Some(Incoming { file, live }) => {
                let live = live.unwrap_or_else(|| one.all_live(index));
                let batch = self.wal.mark_snapshot(one.id, index, term, &live, file);
                self.staged_snapshot(slot, batch, Held::File { index, term, file });
                self.restore_from(slot, vec![Try::Marked { index, term, file }], true);
            }
            None => {
                let live = one.all_live(index);
                let batch = self.wal.put_snapshot(one.id, index, term, &live, bytes);
                let snapshot = Snapshot { index, term, bytes: bytes.to_vec() };
                self.staged_snapshot(slot, batch, Held::Inline(snapshot.clone()));
                self.abandon_writing(slot);
                let one = &mut self.slots[slot as usize];
                // Whatever this machine makes of it: others may ask for it.
                if let Err(error) = one.restore(&snapshot) {
                    poison(one, error.to_string());
                    one.applied = index;
                }
                self.on_ready(slot);
            }
        }
        self.skip_waiting(slot, index);
    }

    /// Answers who waits for entries up to `index`, which the machine has got with a snapshot and will not run.
    pub(super) fn skip_waiting(&mut self, slot: u32, index: Index) {
        let one = &mut self.slots[slot as usize];
        let mut answers = Answers { completions: &mut self.completions, transport: &mut self.transport };
        let skipped = crate::Outcome::Unknown(crate::Unknown::Skipped);
        self.waiting_bytes -= one.waiting.skip(index, |origin, tag| answers.give(origin, tag, &skipped));
    }

    /// Our own or an installed snapshot is durable: the log below it is gone.
    pub(super) fn on_snapshot_durable(&mut self, slot: u32, batch: BatchSeq, index: Index, term: Term) {
        let one = &mut self.slots[slot as usize];
        // Our own may have been overtaken by an installed one, which is still on its way.
        one.snapshot_in_flight = one.snapshot_in_flight.filter(|newest| *newest > index);
        self.input(slot, Input::Released { index, term });
        if !self.slots[slot as usize].lost.is_empty() {
            self.look_for_lost(slot);
        }
        self.remove_superseded(slot, batch, index);
        self.evict(slot);
    }

    /// Entries read back for a follower that is behind memory.
    pub(super) fn on_follower_read(&mut self, slot: u32, to: NodeId, result: Result<ReadOut, ReadError>) {
        let one = &mut self.slots[slot as usize];
        match result {
            _ if one.gone => {}
            Ok(read) => {
                one.fetched.retain(|(node, ..)| *node != to);
                let (first, count, bytes) = (read.first, read.count, read.body.len() as u32);
                one.fetched.push((to, first, count, read.body));
                self.input(slot, Input::Fetched { to, first, count, bytes });
            }
            Err(error) => {
                tracing::warn!(group = %one.id, %to, %error, "entries for a follower cannot be read back");
                self.input(slot, Input::FetchFailed { to });
                if matches!(error, ReadError::Corrupt { .. } | ReadError::Disk(_)) {
                    self.replace_unreadable(slot);
                }
            }
        }
    }

    /// What a follower needs cannot be read here: the state that it led to goes in its place. Where it led to none yet, another
    /// member that has it is to lead. Reads are tried again meanwhile, for the disk may have failed only once.
    fn replace_unreadable(&mut self, slot: u32) {
        let one = &mut self.slots[slot as usize];
        let newest = one.snapshot.as_ref().map_or(Index::ZERO, Held::index);
        if one.raft.role() != Role::Leader {
            return;
        }
        if one.applied > newest {
            (one.want_release, one.force_release) = (true, true);
            self.take_snapshots(slot);
        } else if self.now_us >= one.given_up_until_us {
            one.given_up_until_us = self.now_us + give_up::AGAIN_US;
            self.begin_transfer(slot);
        }
    }

    fn on_role(&mut self, slot: u32, role: Role, leader: Option<NodeId>, term: Term) {
        let group = self.slots[slot as usize].id;
        tracing::debug!(%group, ?role, ?leader, %term, "role");
        self.sweeping.on_unrest(self.now_us);
        if role == Role::Leader {
            self.status.elections_won += 1;
            self.hurry(slot);
            self.note_members(slot);
            self.answer_shrunk();
        }
        self.settle_transfer(slot, role, leader);
        self.give_up_if_poisoned(slot);
        self.release_parked(slot);
    }
}

/// The header of the longest run from `first` that is within a run's limits.
fn run_header(
    slot: &Slot,
    first: Index,
    last: Index,
    accepted_term: Term,
    bytes_max: usize,
) -> (RunHeader, Index) {
    let last = last.min(first.plus(u64::from(coracle_base::limits::RUN_ENTRIES_MAX) - 1));
    let Fit::Resident { last: upto, bytes } = slot.log.fit(first, last, bytes_max as u32) else {
        unreachable!("entries that are not durable are in memory");
    };
    let prev_index = first.prev();
    let header = RunHeader {
        group: slot.id,
        accepted_term,
        prev_index,
        prev_term: slot.raft.term_at(prev_index).unwrap_or(Term::ZERO),
        count: upto.since(prev_index) as u32,
        body_bytes: bytes,
    };
    debug_assert!(header.encoded_bytes() > RUN_HEADER_BYTES);
    (header, upto)
}

/// The machine has failed: the group votes and replicates, and applies no more.
pub(super) fn poison(slot: &mut Slot, reason: String) {
    tracing::error!(group = %slot.id, applied = %slot.applied, reason, "machine poisoned: its group does not apply any more");
    slot.poisoned = Some(reason);
}
