//! The half that has the snapshot. It sends what it is asked for, as fast as the throttle and the bulk connection allow.
//!
//! Invariants: (1) a chunk a transfer and turn, and [`TURN_BYTES`] of all; (2) what is being sent is kept while it is asked
//! for, though a newer one is there; (3) any member may send: what a snapshot covers is committed, whoever leads.

use std::collections::BTreeMap;

use coracle_base::{GroupId, Index, NodeId, RunHeader, Term};
use coracle_io::{Clock, Disk, DiskDone, Net};
use coracle_raft::Role;
use coracle_segments::snapshot::{
    CHUNK_BODY_BYTES, ChunkRead, ChunkReader, SnapshotHead, SnapshotName, chunk_bytes, chunks_of,
};
use coracle_wal::{IndexRange, LiveOut, ReadError};

use super::super::Shard;
use super::super::groups::Held;
use super::wire::{Chunk, Key, Live, Offer, Part, Want};
use super::{ASK_AGAIN_US, PATIENCE_US, With, push_offer};
use crate::transport::envelope::Kind;

/// Transfers to other members at once.
const SENDS_MAX: usize = 16;
/// Bytes that all of them take in a turn, at most; the last chunk may exceed it.
const TURN_BYTES: usize = 1024 * 1024;
/// Live entries that are read and sent at once.
const LIVE_ENTRIES: usize = 512;
const LIVE_BYTES: usize = 256 * 1024;
/// For so long the log's release waits for the next step of a transfer whose live entries it would take away. Not for the
/// whole of it: one that takes longer than any such time would begin again for ever. Every step is of a chunk or of some
/// live entries that this sending was not asked for before. A member that goes begins another one when it comes back; in between
/// nothing is held. A full disk does not wait.
const HOLD_US: u64 = 60_000_000;

/// How many bytes a second may leave.
#[derive(Debug)]
pub(super) struct Throttle {
    bytes_per_s: u64,
    tokens: i64,
    filled_us: u64,
}

impl Throttle {
    /// 0 is no limit.
    fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, tokens: 0, filled_us: 0 }
    }

    /// What may be saved up for a burst: a twentieth of a second's, but one chunk at least.
    fn most(&self) -> i64 {
        (self.bytes_per_s / 20).clamp(CHUNK_BODY_BYTES as u64, 1 << 40) as i64
    }

    fn fill(&mut self, now_us: u64) {
        let most = self.most();
        let passed_us = now_us.saturating_sub(self.filled_us).min(1_000_000);
        let new = u128::from(self.bytes_per_s) * u128::from(passed_us) / 1_000_000;
        if new > 0 || self.bytes_per_s == 0 {
            self.filled_us = now_us;
            self.tokens = self.tokens.saturating_add(new.min(1 << 40) as i64).min(most);
        }
    }

    fn is_open(&self) -> bool {
        self.bytes_per_s == 0 || self.tokens > 0
    }

    fn take(&mut self, bytes: usize) {
        self.tokens -= bytes as i64;
    }

    /// When it opens.
    fn opens_us(&self) -> u64 {
        let missing = self.tokens.min(0).unsigned_abs() + 1;
        self.filled_us + (missing * 1_000_000).div_ceil(self.bytes_per_s.max(1))
    }
}

enum Source {
    Memory(Vec<u8>),
    File { reader: ChunkReader, file_no: u64 },
}

struct Sending {
    slot: u32,
    to: NodeId,
    key: Key,
    state_only: bool,
    source: Source,
    /// Entries that live on below it.
    live: Vec<IndexRange>,
    wanted: Option<Part>,
    /// Chunks below this one were sent over the present link, the last one at that time.
    sent_upto: u64,
    sent_us: u64,
    /// The chunk that is being read.
    reading: u64,
    /// Live entries are being read, from here.
    live_reading: Option<Index>,
    /// How far it has come, by what was asked for, and since when.
    reached: (bool, u64),
    reached_us: u64,
    heard_us: u64,
    /// It goes when the disk is done with it.
    is_over: bool,
}

/// What is being sent to other members.
pub(crate) struct Sends {
    open: BTreeMap<u64, Sending>,
    /// Reads of live entries, by their tokens: for which transfer.
    live_reads: BTreeMap<u64, u64>,
    throttle: Throttle,
    /// Who was served last: the others come first.
    last: u64,
}

impl Sends {
    pub(crate) fn new(bytes_per_s: u64) -> Self {
        Self {
            open: BTreeMap::new(),
            live_reads: BTreeMap::new(),
            throttle: Throttle::new(bytes_per_s),
            last: 0,
        }
    }

    /// Whether somebody is being sent this file.
    pub(in super::super) fn reads(&self, name: SnapshotName) -> bool {
        let SnapshotName::Snapshot { file_no } = name else { return false };
        self.open.values().any(|one| matches!(one.source, Source::File { file_no: no, .. } if no == file_no))
    }

    /// A member is being sent the group's snapshot.
    pub(in super::super) fn sends_any(&self, slot: u32) -> bool {
        self.open.values().any(|one| one.slot == slot)
    }

    /// What is being sent of the group in this slot.
    fn tokens_of(&self, slot: u32) -> Vec<u64> {
        self.open.iter().filter(|(_, one)| one.slot == slot).map(|(token, _)| *token).collect()
    }

    /// A release would take away live entries that a member is being sent.
    pub(in super::super) fn holds(&self, slot: u32, now_us: u64) -> bool {
        let holds = |one: &Sending| !one.live.is_empty() && now_us < one.reached_us + HOLD_US;
        self.open.values().any(|one| one.slot == slot && !one.is_over && holds(one))
    }

    /// When there is something to do though nothing happens.
    pub(in super::super) fn deadline_us(&self) -> u64 {
        let late = self.open.values().map(|one| one.heard_us + PATIENCE_US + 1).min().unwrap_or(u64::MAX);
        let waits = !self.throttle.is_open() && self.open.values().any(|one| one.wanted.is_some());
        late.min(if waits { self.throttle.opens_us() } else { u64::MAX })
    }

    fn find(&self, slot: u32, to: NodeId) -> Option<u64> {
        let is_it = |one: &Sending| one.slot == slot && one.to == to && !one.is_over;
        self.open.iter().find(|(_, one)| is_it(one)).map(|(token, _)| *token)
    }
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// Offers a snapshot to a member that is behind the released log, or to one that `state_only` needs the machine's
    /// state: the one that it is being sent, else the newest.
    pub(in super::super) fn send_snapshot(&mut self, slot: u32, to: NodeId, state_only: bool) {
        let one = &self.slots[slot as usize];
        let group = one.id;
        let Some(link) = self.transport.link(to).filter(|link| link.session().is_some()) else { return };
        let speaks = link.speaks_transfer();
        let is_alone = !self.wal.has_live(group) && !state_only;
        match &one.snapshot {
            None => return,
            Some(Held::Inline(snapshot)) if is_alone || !speaks => {
                let message = one.raft.snapshot_message(snapshot.index, snapshot.term);
                if !self.is_known_at(slot, to, &message) {
                    return;
                }
                let payload = |out: &mut Vec<u8>| out.extend_from_slice(&snapshot.bytes);
                if let Some(envelope) = self.transport.envelope(to) {
                    envelope.push(Kind::Raft, group, false, |out| message.encode(out), payload);
                }
                return;
            }
            Some(Held::File { .. }) if !speaks => {
                return tracing::error!(%group, %to, "a member that runs an older version needs a large snapshot: upgrade it");
            }
            Some(_) => {}
        }
        // What was begun for its state alone has no live entries with it, and must not become the other.
        let mut found = self.snapshots.sends.find(slot, to);
        let begun = found.and_then(|token| self.snapshots.sends.open.get(&token));
        if begun.is_some_and(|one| one.state_only != state_only)
            && let Some(other) = found.take()
        {
            self.end_send(other);
        }
        let Some(token) = found.or_else(|| self.begin_send(slot, to, state_only)) else {
            return;
        };
        self.offer(token);
    }

    /// Says what there is to be had.
    fn offer(&mut self, token: u64) {
        let Some(sending) = self.snapshots.sends.open.get(&token) else { return };
        let Sending { slot, to, key, state_only, .. } = *sending;
        let live = sending.live.iter().map(|range| range.count).sum();
        let raft = &self.slots[slot as usize].raft;
        // It is the leader's word. Another member may go on with what its group's leader had begun to send, without one.
        if !state_only && raft.role() != Role::Leader {
            return;
        }
        let configured = if state_only { None } else { raft.members_to_send() };
        let offer = Offer { raft_term: raft.term(), key, live, state_only, configured };
        push_offer(self.transport.envelope(to), self.slots[slot as usize].id, &offer);
    }

    fn begin_send(&mut self, slot: u32, to: NodeId, state_only: bool) -> Option<u64> {
        if self.snapshots.sends.open.len() >= SENDS_MAX {
            return None;
        }
        let one = &self.slots[slot as usize];
        let (group, key, held) = (one.id, one.snapshot_key()?, one.snapshot.clone()?);
        let token = self.snapshots.token();
        let source = match held {
            Held::Inline(snapshot) => Source::Memory(snapshot.bytes),
            Held::File { index, term, file } => {
                let (dir, identity) = (&self.snapshots.dir, self.snapshots.identity);
                let head = SnapshotHead { identity, file_no: file.file_no, group, index, term };
                let reader = ChunkReader::begin(&mut self.disk, dir, head, file, token);
                Source::File { reader, file_no: file.file_no }
            }
        };
        // What lives on of the state alone, the member has itself.
        let live = if state_only { Vec::new() } else { self.wal.live_ranges(group) };
        let sending = Sending {
            slot,
            to,
            key,
            state_only,
            source,
            live,
            wanted: None,
            sent_upto: 0,
            sent_us: 0,
            reading: 0,
            live_reading: None,
            reached: (false, 0),
            reached_us: self.now_us,
            heard_us: self.now_us,
            is_over: false,
        };
        tracing::info!(%group, "sending a {}", With(to, key));
        self.snapshots.sends.open.insert(token, sending);
        self.again = true;
        Some(token)
    }

    /// A member says what it lacks.
    pub(in super::super) fn on_want(&mut self, slot: u32, from: NodeId, want: Want) {
        let found = self.snapshots.sends.find(slot, from);
        let has_it = |one: &super::super::groups::Slot| one.snapshot_key() == Some(want.key);
        let token = match found {
            // We were restarted, or it waited for too long, or another member had begun.
            None if has_it(&self.slots[slot as usize]) => self.begin_send(slot, from, false),
            found => found,
        };
        let Some((token, sending)) =
            token.and_then(|token| Some((token, self.snapshots.sends.open.get_mut(&token)?)))
        else {
            return;
        };
        if sending.key != want.key {
            return;
        }
        sending.heard_us = self.now_us;
        let reached = match want.part {
            Part::Chunks { next, .. } => (false, next),
            Part::Live { next } => (true, next.0),
        };
        if reached > sending.reached {
            (sending.reached, sending.reached_us) = (reached, self.now_us);
        }
        match want.part {
            Part::Live { next } => self.read_live_for(token, next),
            Part::Chunks { next, end } => {
                // It lacks what is on its way. What it does not get it asks for again, but not so soon.
                let is_on_its_way = self.now_us < sending.sent_us + ASK_AGAIN_US / 2;
                let next = if is_on_its_way { next.max(sending.sent_upto) } else { next };
                let end = end.min(chunks_of(want.key.bytes));
                if next < end {
                    let waits = sending.wanted.is_some();
                    sending.wanted = Some(Part::Chunks { next, end });
                    self.again = true;
                    if waits {
                        // Others have their turn, or the throttle has: whoever hears nothing gives up.
                        self.offer(token);
                    }
                }
            }
        }
    }

    /// The link to a member is gone: what it had asked for is lost, and it will say anew what it lacks.
    pub(in super::super) fn forget_wants(&mut self, node: NodeId) {
        for one in self.snapshots.sends.open.values_mut().filter(|one| one.to == node) {
            (one.wanted, one.sent_upto) = (None, 0);
        }
    }

    /// The next chunk of everything that is asked for.
    pub(in super::super) fn step_sends(&mut self) {
        if self.snapshots.sends.open.is_empty() {
            return;
        }
        self.snapshots.sends.throttle.fill(self.now_us);
        let sends = &self.snapshots.sends;
        let (before, after): (Vec<u64>, Vec<u64>) =
            sends.open.keys().partition(|token| **token <= sends.last);
        let mut left = TURN_BYTES;
        for token in after.into_iter().chain(before) {
            let is_late = |one: &Sending| self.now_us > one.heard_us + PATIENCE_US;
            if self.snapshots.sends.open.get(&token).is_some_and(is_late) {
                self.end_send(token);
            } else if left > 0 && self.snapshots.sends.throttle.is_open() {
                let bytes = self.step_send(token);
                left = left.saturating_sub(bytes);
            }
        }
    }

    /// Begins to send one chunk, if one is wanted and can go; its bytes.
    fn step_send(&mut self, token: u64) -> usize {
        let Some(sending) = self.snapshots.sends.open.get_mut(&token) else { return 0 };
        let Some(Part::Chunks { next, end }) = sending.wanted else { return 0 };
        if sending.is_over || !self.transport.has_bulk_room(sending.to) {
            return 0;
        }
        let bytes = chunk_bytes(sending.key.bytes, next);
        let at = next as usize * CHUNK_BODY_BYTES;
        let chunk = match &mut sending.source {
            Source::File { reader, .. } if !reader.is_idle() => return 0,
            Source::File { reader, .. } => {
                sending.reading = next;
                reader.read(&mut self.disk, next);
                None
            }
            Source::Memory(all) => Some(all[at..at + bytes].to_vec()),
        };
        sending.wanted = Some(Part::Chunks { next: next + 1, end }).filter(|_| next + 1 < end);
        (sending.sent_upto, sending.sent_us) = (next + 1, self.now_us);
        self.snapshots.sends.last = token;
        self.snapshots.sends.throttle.take(bytes);
        if let Some(chunk) = chunk {
            self.push_chunk(token, next, &chunk);
        }
        self.again = true;
        bytes
    }

    fn push_chunk(&mut self, token: u64, number: u64, bytes: &[u8]) {
        let Some(sending) = self.snapshots.sends.open.get(&token) else { return };
        let group = self.slots[sending.slot as usize].id;
        let chunk = Chunk { key: sending.key, number };
        // Lost if the connection is: then it is asked for again.
        if let Some(envelope) = self.transport.bulk(sending.to) {
            let payload = |out: &mut Vec<u8>| out.extend_from_slice(bytes);
            envelope.push(Kind::Chunk, group, false, |out| chunk.encode(out), payload);
            self.status.transfer_bytes_sent += bytes.len() as u64;
        }
    }

    /// A completion of a file that is being sent. One that is of something else comes back.
    pub(in super::super) fn on_chunk_read(&mut self, done: DiskDone) -> Option<DiskDone> {
        let token = done.token;
        let Some(sending) = self.snapshots.sends.open.get_mut(&token) else { return Some(done) };
        let (slot, to, key, number) = (sending.slot, sending.to, sending.key, sending.reading);
        let is_over = sending.is_over;
        let Source::File { reader, file_no } = &mut sending.source else { return Some(done) };
        let name = SnapshotName::Snapshot { file_no: *file_no };
        let read = reader.on_done(&mut self.disk, done);
        self.again = true;
        match read {
            ChunkRead::Chunk(bytes) if !is_over => self.push_chunk(token, number, &bytes),
            ChunkRead::Going => return None,
            ChunkRead::Failed(error) => {
                self.snapshots.sends.open.remove(&token);
                self.snapshots.released(&mut self.disk, name);
                if !is_over {
                    let one = &mut self.slots[slot as usize];
                    tracing::error!(group = %one.id, %error, "a {} cannot be read: a new one is taken", With(to, key));
                    (one.want_release, one.force_release) = (true, true);
                    self.take_snapshots(slot);
                }
                return None;
            }
            ChunkRead::Chunk(_) | ChunkRead::Ready => {}
        }
        if is_over {
            self.snapshots.sends.open.remove(&token);
            self.snapshots.released(&mut self.disk, name);
        }
        None
    }

    /// It is not sent any more. What the file's removal waited for is over, once the disk is.
    fn end_send(&mut self, token: u64) {
        let Some(sending) = self.snapshots.sends.open.get_mut(&token) else { return };
        sending.is_over = true;
        let name = match &mut sending.source {
            Source::Memory(_) => None,
            Source::File { reader, file_no } => {
                if !reader.close(&mut self.disk) {
                    return;
                }
                Some(SnapshotName::Snapshot { file_no: *file_no })
            }
        };
        self.snapshots.sends.open.remove(&token);
        if let Some(name) = name {
            self.snapshots.released(&mut self.disk, name);
        }
    }

    // ---- entries that live on --------------------------------------------------------------------------------------

    fn read_live_for(&mut self, token: u64, next: Index) {
        let Some(sending) = self.snapshots.sends.open.get_mut(&token) else { return };
        if sending.live_reading.is_some() || sending.is_over {
            return;
        }
        let after = sending.live.iter().filter(|range| range.last() >= next);
        let all = after.flat_map(|range| (range.first.0.max(next.0)..=range.last().0).map(Index));
        let indexes: Vec<Index> = all.take(LIVE_ENTRIES).collect();
        if indexes.is_empty() {
            return;
        }
        sending.live_reading = Some(next);
        let group = self.slots[sending.slot as usize].id;
        let read = self.token();
        self.snapshots.sends.live_reads.insert(read, token);
        self.wal.read_live(&mut self.disk, read, group, &indexes, LIVE_BYTES);
        self.again = true;
    }

    /// Live entries were read. False if they are for something else.
    pub(in super::super) fn on_live_read(&mut self, read: u64, out: &LiveOut) -> bool {
        let Some(token) = self.snapshots.sends.live_reads.remove(&read) else { return false };
        let Some(sending) = self.snapshots.sends.open.get_mut(&token) else { return true };
        let Some(from) = sending.live_reading.take() else { return true };
        let (to, key) = (sending.to, sending.key);
        let group = self.slots[sending.slot as usize].id;
        let mut entries: Vec<(Index, &[u8])> = Vec::with_capacity(out.entries.len());
        for (_, index, result) in &out.entries {
            match result {
                Ok(bytes) => entries.push((*index, bytes)),
                // Its batch is on its way to the disk: it is asked for again.
                Err(ReadError::NotDurable { .. }) => break,
                Err(ReadError::Released { .. }) => {
                    tracing::info!(%group, "a {} was overtaken by a newer one", With(to, key));
                    return self.give_up(token);
                }
                Err(error) => {
                    tracing::error!(%group, %index, %error, "an entry that belongs to a {} cannot be read", With(to, key));
                    return self.give_up(token);
                }
            }
        }
        let Some((last, _)) = entries.last() else { return true };
        let after = sending.live.iter().find(|range| range.last() > *last);
        let next = after.map(|range| range.first.max(last.next()));
        let (live, mut payload) = (Live { key, from, next }, Vec::new());
        put_runs(group, key.term, &entries, &mut payload);
        let Some(envelope) = self.transport.bulk(to) else { return true };
        self.snapshots.sends.throttle.take(payload.len());
        self.status.transfer_bytes_sent += payload.len() as u64;
        envelope.push(Kind::Live, group, false, |out| live.encode(out), |out| out.append(&mut payload));
        true
    }

    /// The group in this slot is gone: nobody is sent anything of it any more.
    pub(in super::super) fn end_sends_of(&mut self, slot: u32) {
        self.snapshots.sends.tokens_of(slot).into_iter().for_each(|token| self.end_send(token));
    }

    /// The member hears of another snapshot with the next offer.
    fn give_up(&mut self, token: u64) -> bool {
        self.end_send(token);
        true
    }

    /// A member's own snapshot, which covered everything up to `base`, is damaged. Anyone who has one may help.
    pub(in super::super) fn on_want_snapshot(&mut self, slot: u32, from: NodeId, base: Index) {
        let one = &mut self.slots[slot as usize];
        if !one.is_ready() || one.poisoned.is_some() {
            return;
        }
        tracing::info!(group = %one.id, %from, %base, "a member asks for a snapshot, its own is damaged");
        if one.snapshot.as_ref().is_some_and(|held| held.index() >= base) {
            return self.send_snapshot(slot, from, true);
        }
        // It asks again when this one is there.
        // Of nothing there is no snapshot; and one that is older than what is asked for helps nobody.
        if one.raft.role() == Role::Leader && one.applied >= base.max(Index(1)) {
            (one.want_release, one.force_release) = (true, true);
            self.take_snapshots(slot);
        }
    }
}

/// Entries as runs: neighbours in one.
fn put_runs(group: GroupId, term: Term, entries: &[(Index, &[u8])], out: &mut Vec<u8>) {
    for run in entries.chunk_by(|(before, _), (next, _)| before.next() == *next) {
        let body: Vec<&[u8]> = run.iter().map(|(_, bytes)| *bytes).collect();
        let prev_index = run[0].0.prev();
        let header = RunHeader {
            group,
            accepted_term: term,
            prev_index,
            // What comes before is released: nobody knows, and nobody compares.
            prev_term: Term::ZERO,
            count: run.len() as u32,
            body_bytes: body.iter().map(|bytes| bytes.len() as u32).sum(),
        };
        header.encode_run(&body, out);
    }
}
