//! The half that needs a snapshot. It asks for what it lacks, and tells Raft when it has it.
//!
//! ```text
//!   offer → open the part ─→ chunks ─→ live entries ─→ trailer, sync, rename ─→ Raft: install, or not
//!              ↑ └── nothing comes ──→ kept, closed: a later offer of the same snapshot goes on with it
//!              └──── another snapshot is offered ──→ removed; the next offer begins anew
//! ```
//!
//! Invariants: (1) a chunk is taken only if it is the next one of the snapshot that is being received; (2) a file counts only
//! if all of it has the checksum that was offered; (3) it is finished in the term of the leader that offered it last, so Raft
//! does not refuse in the end what took long to come.

use std::collections::{BTreeMap, VecDeque};

use coracle_base::run::ENTRY_HEADER_BYTES;
use coracle_base::{GroupId, Index, NodeId, RunHeader, RunRef, Term};
use coracle_io::{Clock, Disk, DiskDone, Net};
use coracle_raft::{Input, Message};
use coracle_segments::snapshot::{
    PartName, SnapshotHead, SnapshotName, SnapshotWriter, Written, chunk_bytes, chunks_of,
};
use coracle_wal::{IndexRange, SnapshotFile};

use super::super::Shard;
use super::super::room::Need;
use super::super::snapshots::WRITERS_MAX;
use super::wire::{Chunk, Key, Live, Offer, Part, Want};
use super::{ASK_AGAIN_US, PATIENCE_US, WINDOW_CHUNKS, With, push_want};
use crate::transport::envelope::EnvelopeError;

/// A snapshot that came from elsewhere, in a file, while Raft decides about it.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) file: SnapshotFile,
    /// What lives on below it; `None` if nobody said.
    pub(crate) live: Option<Vec<IndexRange>>,
}

struct Receiving {
    slot: u32,
    from: NodeId,
    /// The session of the link that the offer came in.
    session: Option<u64>,
    offer: Offer,
    part: PartName,
    writer: SnapshotWriter,
    /// Chunks that wait for the disk.
    chunks: VecDeque<Vec<u8>>,
    /// Chunks before this one were asked for; none yet if it is `None`.
    end: Option<u64>,
    /// Live entries that came, and where the next ones begin. `None`: not asked for yet.
    live: Vec<IndexRange>,
    live_next: Option<Index>,
    live_done: bool,
    heard_us: u64,
    /// When it was offered last: who offers it still has it, and others have their turn, or the throttle has.
    offered_us: u64,
    asked_us: u64,
    /// It ends: whole, kept or removed.
    is_ending: bool,
    /// Its last write is under way, or done: what came of it, which waits for an offer that is current.
    is_finishing: bool,
    whole: Option<SnapshotFile>,
}

impl Receiving {
    /// The chunk that is to come next.
    fn next(&self) -> u64 {
        self.writer.chunks() + self.chunks.len() as u64
    }

    /// There is nothing to ask for any more: it waits for an offer that is current.
    fn has_all(&self) -> bool {
        self.live_done && self.chunks.is_empty() && self.writer.chunks() >= chunks_of(self.offer.key.bytes)
    }

    /// When to give up hope.
    fn late_us(&self) -> u64 {
        self.heard_us.max(self.offered_us) + PATIENCE_US
    }

    fn is_quiet(&self, now_us: u64, for_us: u64) -> bool {
        now_us > self.heard_us.max(self.asked_us) + for_us
    }
}

/// What is being received from other members.
#[derive(Default)]
pub(crate) struct Receives {
    open: BTreeMap<u64, Receiving>,
}

impl Receives {
    /// Whether anything is received for the group in this slot.
    pub(in super::super) fn is_about(&self, slot: u32) -> bool {
        self.open.values().any(|one| one.slot == slot)
    }

    /// How many.
    pub(in super::super) fn len(&self) -> usize {
        self.open.len()
    }

    /// When there is something to do though nothing happens.
    pub(in super::super) fn deadline_us(&self) -> u64 {
        let waiting = self.open.values().filter(|one| !one.is_ending);
        let again = |one: &Receiving| {
            let (ask, late) = (one.asked_us.max(one.heard_us) + ASK_AGAIN_US, one.late_us());
            if one.has_all() { late + 1 } else { ask.min(late) + 1 }
        };
        waiting.map(again).min().unwrap_or(u64::MAX)
    }
}

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// A member has a snapshot for us.
    pub(in super::super) fn on_offer(&mut self, slot: u32, from: NodeId, offer: Offer) {
        let one = &self.slots[slot as usize];
        let Key { index, term, .. } = offer.key;
        let is_known = index <= one.raft.commit() || one.raft.term_at(index) == Some(term);
        let is_late = offer.raft_term < one.raft.term();
        if one.is_deaf() || offer.state_only && (one.is_whole() || !is_known) {
            return;
        }
        if !offer.state_only && (is_late || is_known && one.is_whole()) {
            // No bytes are needed to tell it so.
            self.status.transfers_needless += u64::from(is_known && one.raft.last() > index);
            return self.tell_raft(slot, from, &offer);
        }
        if let Some(token) = one.writing {
            return self.on_offer_meanwhile(token, from, offer);
        }
        if self.snapshots.writing() + self.snapshots.receives.len() < WRITERS_MAX {
            self.begin_receive(slot, from, offer);
        }
    }

    fn tell_raft(&mut self, slot: u32, from: NodeId, offer: &Offer) {
        let Key { index, term: snap_term, .. } = offer.key;
        let configured = offer.configured.clone();
        let message = Message::Snapshot { term: offer.raft_term, index, snap_term, configured };
        self.step(slot, Input::Receive { from, message }, None, &[]);
    }

    /// Something is being written or received for this group already.
    fn on_offer_meanwhile(&mut self, token: u64, from: NodeId, offer: Offer) {
        let session = self.transport.session_of(from);
        let Some(receiving) = self.snapshots.receives.open.get_mut(&token) else {
            // Our own is of less than what comes.
            return self.snapshots.abandon_own(&mut self.disk, token);
        };
        if offer.raft_term < receiving.offer.raft_term || receiving.is_ending && !receiving.is_finishing {
            return;
        }
        let is_same = (offer.key, offer.live, offer.state_only)
            == (receiving.offer.key, receiving.offer.live, receiving.offer.state_only);
        if is_same {
            let is_new = receiving.from != from || receiving.is_quiet(self.now_us, ASK_AGAIN_US);
            (receiving.from, receiving.session, receiving.offer) = (from, session, offer);
            receiving.offered_us = self.now_us;
            self.again = true;
            if is_new && receiving.end.is_some() && !receiving.is_finishing {
                self.ask(token);
            }
            return;
        }
        if receiving.is_ending {
            return;
        }
        // Two are never mixed: the next offer begins anew.
        let key = receiving.offer.key;
        tracing::info!(index = %offer.key.index, "a {} is given up: another one is offered", With(from, key));
        self.status.transfers_restarted += 1;
        self.give_up_receiving(token);
    }

    fn begin_receive(&mut self, slot: u32, from: NodeId, offer: Offer) {
        let Key { index, term, bytes, crc } = offer.key;
        let one = &mut self.slots[slot as usize];
        let group = one.id;
        let is_it = |part: &PartName| {
            (part.index, part.term, part.whole.bytes, part.whole.crc) == (index, term, bytes, crc)
        };
        let (found, other) = match one.part.take() {
            Some(part) if is_it(&part) => (Some(part), None),
            other => (None, other),
        };
        if let Some(other) = other {
            self.status.transfers_restarted += 1;
            self.snapshots.remove_part(&mut self.disk, other);
        }
        let part = found.unwrap_or_else(|| {
            let whole = SnapshotFile { file_no: self.snapshots.next_file_no(), bytes, crc };
            PartName { group, index, term, whole }
        });
        let session = self.transport.session_of(from);
        let token = self.snapshots.token();
        let identity = self.snapshots.identity;
        let head = SnapshotHead { identity, file_no: part.whole.file_no, group, index, term };
        let writer = SnapshotWriter::receive(&mut self.disk, &self.snapshots.dir, head, part, token);
        tracing::info!(%group, is_begun = found.is_some(), "receiving a {}", With(from, offer.key));
        self.slots[slot as usize].writing = Some(token);
        let receiving = Receiving {
            slot,
            from,
            session,
            live_done: offer.live == 0,
            offer,
            part,
            writer,
            chunks: VecDeque::new(),
            end: None,
            live: Vec::new(),
            live_next: None,
            heard_us: self.now_us,
            offered_us: self.now_us,
            asked_us: self.now_us,
            is_ending: false,
            is_finishing: false,
            whole: None,
        };
        self.snapshots.receives.open.insert(token, receiving);
        self.again = true;
    }

    /// Says what is lacking.
    fn ask(&mut self, token: u64) {
        let Some(receiving) = self.snapshots.receives.open.get_mut(&token) else { return };
        let (next, count) = (receiving.next(), chunks_of(receiving.offer.key.bytes));
        let part = match receiving.live_next {
            Some(next) => Part::Live { next },
            None => Part::Chunks { next, end: count.min(next + WINDOW_CHUNKS) },
        };
        if let Part::Chunks { end, .. } = part {
            receiving.end = Some(end);
        }
        receiving.asked_us = self.now_us;
        let group = self.slots[receiving.slot as usize].id;
        let want = Want { key: receiving.offer.key, part };
        push_want(self.transport.envelope(receiving.from), group, &want);
    }

    /// The transfer that brings this snapshot to the group.
    fn receiving(&mut self, slot: u32, key: Key) -> Option<(u64, &mut Receiving)> {
        let token = self.slots[slot as usize].writing?;
        let receiving = self.snapshots.receives.open.get_mut(&token)?;
        (receiving.offer.key == key && !receiving.is_ending).then_some((token, receiving))
    }

    /// A chunk came.
    pub(in super::super) fn on_chunk(&mut self, slot: u32, chunk: Chunk, bytes: &[u8]) {
        let now_us = self.now_us;
        let Some((_, receiving)) = self.receiving(slot, chunk.key) else { return };
        // What was asked for twice comes twice.
        let is_next = receiving.end.is_some_and(|end| chunk.number < end) && chunk.number == receiving.next();
        if is_next && bytes.len() == chunk_bytes(chunk.key.bytes, chunk.number) {
            receiving.chunks.push_back(bytes.to_vec());
            receiving.heard_us = now_us;
            self.status.transfer_bytes_received += bytes.len() as u64;
            self.again = true;
        }
    }

    /// Entries came that live on below the snapshot.
    pub(in super::super) fn on_live(
        &mut self,
        slot: u32,
        live: Live,
        payload: &[u8],
    ) -> Result<(), EnvelopeError> {
        let group = self.slots[slot as usize].id;
        let runs = live_runs(group, &live, payload)?;
        let now_us = self.now_us;
        // What this disk has no room for now is asked for again; what its files can never take is not.
        if self.disk_is_behind() || !self.may_write(Need::Freeing, payload.len()) {
            return Ok(());
        }
        // Neighbours came in one run, whatever files the sender has.
        let bytes_max = self.wal.run_bytes_max();
        let runs: Option<Vec<_>> = runs.into_iter().map(|run| split_run(run, bytes_max)).collect();
        let Some((token, receiving)) = self.receiving(slot, live.key) else { return Ok(()) };
        if receiving.live_next != Some(live.from) || receiving.live_done {
            return Ok(());
        }
        receiving.heard_us = now_us;
        let Some(runs) = runs else {
            let (from, key) = (receiving.from, receiving.offer.key);
            tracing::error!(%group, bytes_max, "a {} has entries that this log's files are too small for", With(from, key));
            self.give_up_receiving(token);
            return Ok(());
        };
        for (header, _) in runs.iter().flatten() {
            receiving.live.push(IndexRange { first: header.first(), count: u64::from(header.count) });
        }
        receiving.live_next = live.next.or(receiving.live_next);
        receiving.live_done = live.next.is_none();
        let (is_done, came) =
            (receiving.live_done, receiving.live.iter().map(|range| range.count).sum::<u64>());
        let (from, key, expected) = (receiving.from, receiving.offer.key, receiving.offer.live);
        self.status.transfer_bytes_received += payload.len() as u64;
        self.again = true;
        if is_done && came != expected {
            tracing::error!(%group, came, expected, "a {} came with other entries than were offered", With(from, key));
            self.give_up_receiving(token);
            return Ok(());
        }
        for (header, body) in runs.into_iter().flatten() {
            self.status.live_entries_received += u64::from(header.count);
            // Placed for a try before this one: one copy is enough, or tries without end would fill the disk.
            if !self.wal.has_placed(&header) {
                self.slots[slot as usize].staged = self.wal.place(&header, &[body]);
            }
        }
        if !is_done {
            self.ask(token);
        }
        Ok(())
    }

    /// It goes, and what came of it.
    fn give_up_receiving(&mut self, token: u64) {
        let Some(receiving) = self.snapshots.receives.open.get_mut(&token) else { return };
        if let Some(file) = receiving.whole {
            self.slots[receiving.slot as usize].writing = None;
            self.snapshots.receives.open.remove(&token);
            return self.snapshots.remove(&mut self.disk, SnapshotName::Snapshot { file_no: file.file_no });
        }
        receiving.is_ending = true;
        receiving.writer.abandon(&mut self.disk);
    }

    /// Whether Raft would hear of it: it was offered in this term, or in a newer one that Raft hears of with it; in this
    /// session of the offering leader's link.
    fn is_current(&self, receiving: &Receiving) -> bool {
        let raft_term = self.slots[receiving.slot as usize].raft.term();
        let is_session = receiving.session == self.transport.session_of(receiving.from);
        receiving.offer.state_only || receiving.offer.raft_term >= raft_term && is_session
    }

    /// Once a turn: chunks go to the disk, what is lacking is asked for, what nobody answers is put aside.
    pub(in super::super) fn step_receives(&mut self) {
        let tokens: Vec<u64> = self.snapshots.receives.open.keys().copied().collect();
        for token in tokens {
            self.step_receive(token);
        }
    }

    fn step_receive(&mut self, token: u64) {
        let now_us = self.now_us;
        let Some(receiving) = self.snapshots.receives.open.get_mut(&token) else { return };
        if receiving.is_ending {
            return;
        }
        if receiving.whole.is_some() {
            return self.step_whole(token);
        }
        if now_us > receiving.late_us() && receiving.end.is_some() {
            receiving.is_ending = true;
            return receiving.writer.keep(&mut self.disk);
        }
        if !receiving.writer.is_idle() {
            return;
        }
        let Some(end) = receiving.end else {
            self.status.transfers_resumed += u64::from(receiving.writer.chunks() > 0);
            receiving.heard_us = now_us;
            receiving.end = Some(receiving.writer.chunks());
            if receiving.writer.judge().is_none() {
                self.ask(token);
            }
            self.again = true;
            return;
        };
        if let Some(chunk) = receiving.chunks.pop_front() {
            receiving.writer.put_chunk(&mut self.disk, &chunk);
            let count = chunks_of(receiving.offer.key.bytes);
            if end < count && end - receiving.next() <= WINDOW_CHUNKS / 2 {
                self.ask(token);
            }
            return;
        }
        match receiving.writer.judge() {
            None if receiving.is_quiet(now_us, ASK_AGAIN_US) => {
                self.status.transfers_asked_again += 1;
                self.ask(token);
            }
            None => {}
            Some(true) => self.on_all_chunks(token),
            Some(false) => {
                tracing::error!("a {} is not what was offered", With(receiving.from, receiving.offer.key));
                self.give_up_receiving(token);
            }
        }
    }

    /// Live entries are next, and then the end of the file.
    fn on_all_chunks(&mut self, token: u64) {
        let now_us = self.now_us;
        let Some(receiving) = self.snapshots.receives.open.get_mut(&token) else { return };
        if !receiving.live_done {
            let is_first = receiving.live_next.is_none();
            receiving.live_next.get_or_insert(Index(1));
            if is_first || receiving.is_quiet(now_us, ASK_AGAIN_US) {
                self.status.transfers_asked_again += u64::from(!is_first);
                self.ask(token);
            }
            return;
        }
        // Else a leader of this term will offer it, or another one.
        let Some(receiving) = self.snapshots.receives.open.get(&token) else { return };
        let is_current = self.is_current(receiving);
        if let Some(receiving) = self.snapshots.receives.open.get_mut(&token).filter(|_| is_current) {
            (receiving.is_ending, receiving.is_finishing) = (true, true);
            receiving.writer.write(&mut self.disk, true);
        }
    }

    /// The file is whole; while its last write was under way the link broke, or the term ended. The next offer of the same
    /// snapshot is all that is lacking.
    fn step_whole(&mut self, token: u64) {
        let Some(receiving) = self.snapshots.receives.open.get(&token) else { return };
        if self.is_current(receiving) {
            let Some(receiving) = self.snapshots.receives.open.remove(&token) else { return };
            self.slots[receiving.slot as usize].writing = None;
            if let Some(file) = receiving.whole {
                self.on_received(receiving, file);
            }
        } else if self.now_us > receiving.late_us() {
            self.give_up_receiving(token);
        }
    }

    /// A completion of a file that is being received. One that is of something else comes back.
    pub(in super::super) fn on_part_done(&mut self, done: DiskDone) -> Option<DiskDone> {
        let token = done.token;
        let Some(receiving) = self.snapshots.receives.open.get_mut(&token) else { return Some(done) };
        let written = receiving.writer.on_done(&mut self.disk, done);
        self.again = true;
        if written == Written::Going {
            return None;
        }
        let mut receiving = self.snapshots.receives.open.remove(&token)?;
        if let Written::Whole(file) = written
            && !self.is_current(&receiving)
        {
            (receiving.whole, receiving.is_ending, receiving.heard_us) = (Some(file), false, self.now_us);
            self.snapshots.receives.open.insert(token, receiving);
            return None;
        }
        let one = &mut self.slots[receiving.slot as usize];
        one.writing = None;
        match written {
            Written::Going | Written::Gone(None) => {}
            Written::Kept => {
                one.part = Some(receiving.part);
                self.drop_part(receiving.slot);
            }
            Written::Gone(Some(error)) => {
                tracing::warn!(group = %one.id, %error, "a {} cannot be written", With(receiving.from, receiving.offer.key));
            }
            Written::Whole(file) => self.on_received(receiving, file),
        }
        None
    }

    fn on_received(&mut self, receiving: Receiving, file: SnapshotFile) {
        let Receiving { slot, from, offer, live, .. } = receiving;
        let Key { index, term, .. } = offer.key;
        // The state alone was fetched: what lives on below it is what lives on here.
        let live = (!offer.state_only).then_some(live);
        self.status.snapshot_files += 1;
        self.slots[slot as usize].incoming = Some(Incoming { file, live });
        if !offer.state_only {
            self.tell_raft(slot, from, &offer);
        }
        self.adopt(slot, index, term, &[]);
        match self.slots[slot as usize].incoming.take() {
            None => self.status.transfers_installed += 1,
            Some(_) => {
                self.status.transfers_abandoned += 1;
                self.snapshots.remove(&mut self.disk, SnapshotName::Snapshot { file_no: file.file_no });
            }
        }
    }

    /// What is being received for a group is not wanted any more: its log, or another snapshot, has come further.
    pub(in super::super) fn abandon_receiving(&mut self, slot: u32) {
        let token = self.slots[slot as usize].writing;
        if let Some(token) = token.filter(|token| self.snapshots.receives.open.contains_key(token)) {
            self.status.transfers_abandoned += 1;
            self.give_up_receiving(token);
        }
    }

    /// Removes what is left of a snapshot that the group has no use for any more.
    pub(in super::super) fn drop_part(&mut self, slot: u32) {
        let one = &mut self.slots[slot as usize];
        let (commit, is_whole, is_gone) = (one.raft.commit(), one.is_whole(), one.gone);
        if let Some(part) = one.part.take_if(|part| is_gone || part.index <= commit && is_whole) {
            self.status.transfers_abandoned += 1;
            self.snapshots.remove_part(&mut self.disk, part);
        }
        let receiving = one.writing.and_then(|token| self.snapshots.receives.open.get(&token));
        if receiving.is_some_and(|one| !one.is_ending && one.offer.key.index <= commit && is_whole) {
            self.abandon_receiving(slot);
        }
    }
}

/// A run of live entries as runs of at most so many bytes, each as long as can be; `None` if an entry alone has more.
fn split_run(run: RunRef<'_>, bytes_max: usize) -> Option<Vec<(RunHeader, &[u8])>> {
    let mut runs = Vec::new();
    let (mut header, mut start, mut end) = (RunHeader { count: 0, body_bytes: 0, ..run.header }, 0, 0);
    for entry in run.entries() {
        let bytes = ENTRY_HEADER_BYTES + entry.payload.len();
        if bytes > bytes_max {
            return None;
        }
        if end - start + bytes > bytes_max {
            runs.push((header, &run.body[start..end]));
            let prev_index = entry.index.prev();
            header = RunHeader { prev_index, count: 0, body_bytes: 0, ..header };
            start = end;
        }
        header.count += 1;
        header.body_bytes += bytes as u32;
        end += bytes;
    }
    runs.push((header, &run.body[start..end]));
    Some(runs)
}

/// The runs of live entries, each checked, in order, and all of them below the snapshot.
///
/// # Errors
/// Why they are not.
pub(crate) fn live_runs<'a>(
    group: GroupId,
    live: &Live,
    payload: &'a [u8],
) -> Result<Vec<RunRef<'a>>, EnvelopeError> {
    let wrong = |why: &str| EnvelopeError::Message(why.to_owned());
    let (mut runs, mut rest, mut next) = (Vec::new(), payload, live.from.max(Index(1)));
    while !rest.is_empty() {
        let run = RunRef::parse(rest).map_err(|error| EnvelopeError::Message(error.to_string()))?;
        run.check_payloads().map_err(|error| EnvelopeError::Message(error.to_string()))?;
        let header = run.header;
        let last = header.prev_index.0.checked_add(u64::from(header.count)).map(Index);
        let is_below = last.is_some_and(|last| last <= live.key.index);
        if header.group != group || header.count == 0 || header.first() < next || !is_below {
            return Err(wrong("live entries out of order"));
        }
        if header.accepted_term > live.key.term || header.prev_term > Term::ZERO {
            return Err(wrong("live entries of another log"));
        }
        next = last.unwrap_or(next).next();
        rest = &rest[header.encoded_bytes()..];
        runs.push(run);
    }
    match live.next {
        _ if runs.is_empty() => Err(wrong("live entries without any")),
        Some(after) if after < next => Err(wrong("live entries that overlap")),
        _ => Ok(runs),
    }
}
