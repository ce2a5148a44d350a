//! Steps 6 and 7: committed entries run on the machines, in index order, bounded a turn; then the clients hear.

use coracle_base::run::Entries;
use coracle_base::{EntryKind, EntryRef, Index, NodeId};
use coracle_io::{Clock, Disk, Net};
use coracle_wal::{ReadError, ReadOut};

use super::groups::Slot;
use super::step::poison;
use super::waiting::Decision;
use super::{Answers, Shard, replies};
use crate::machine::{Effects, Entry, Wishes};
use crate::outcome::{Outcome, Reason};
use crate::panics::caught;

/// Entries of one group applied in one turn: a busy group does not hold up the others.
const APPLY_PER_TURN: u64 = 8192;
/// Reads of entries to apply that may fail in a row. A disk that has failed so often will fail again.
const APPLY_READ_TRIES: u32 = 3;

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    pub(super) fn apply(&mut self) {
        let mut applying = std::mem::take(&mut self.applying);
        applying.retain(|slot| {
            let more = self.apply_group(*slot);
            self.slots[*slot as usize].applying = more;
            more
        });
        debug_assert!(self.applying.is_empty(), "applying does not commit");
        self.applying = applying;
        self.step_sweep();
    }

    /// Applies what is committed and in memory. Whether there is more to do in the next turn.
    fn apply_group(&mut self, slot: u32) -> bool {
        let one = &mut self.slots[slot as usize];
        let commit = one.raft.commit();
        if one.poisoned.is_some() || one.applied >= commit || one.apply_read || !one.is_ready() {
            return false;
        }
        let next = one.applied.next();
        if next < one.log.first() {
            self.wait_for_files(slot);
            return false;
        }
        let last = commit.min(one.applied.plus(APPLY_PER_TURN));
        // The log is lent to the loop below and put back after it: applying never touches it.
        let log = std::mem::replace(&mut one.log, crate::log::MemLog::new(Index::ZERO));
        for (first, _, bytes) in log.pieces(next, last) {
            self.apply_entries(slot, first, bytes);
        }
        self.slots[slot as usize].log = log;
        self.after_apply(slot);
        self.slots[slot as usize].applied < commit
    }

    /// Entries that were read back from WAL files, to be applied.
    pub(super) fn on_apply_read(&mut self, slot: u32, result: Result<ReadOut, ReadError>) {
        let one = &mut self.slots[slot as usize];
        self.sweeping.on_read();
        match result {
            _ if one.gone => {}
            Ok(read) if read.first == one.applied.next() && one.poisoned.is_none() && one.is_ready() => {
                one.reads_failed = 0;
                self.apply_entries(slot, read.first, &read.body);
                self.after_apply(slot);
            }
            // A read that failed once may be done the next time; the group would stand still until its node is started again.
            Err(ReadError::Disk(error)) if one.reads_failed < APPLY_READ_TRIES => {
                one.reads_failed += 1;
                tracing::warn!(group = %one.id, %error, "entries to apply cannot be read: they are tried again");
            }
            // A snapshot was installed meanwhile, or what lies beside it is still being written: look again.
            Ok(_) | Err(ReadError::Released { .. } | ReadError::NotDurable { .. }) => {}
            Err(error) => poison(one, format!("its log cannot be read back: {error}")),
        }
        self.give_up_if_poisoned(slot);
        self.resume(slot);
    }

    /// Runs consecutive committed entries on the machine and answers who waits for them. The loop allocates nothing.
    pub(super) fn apply_entries(&mut self, slot: u32, first: Index, bytes: &[u8]) {
        let node = self.settings.node;
        let one = &mut self.slots[slot as usize];
        let mut answers = Answers { completions: &mut self.completions, transport: &mut self.transport };
        for entry in Entries::new(first, bytes) {
            if one.poisoned.is_some() {
                return;
            }
            assert_eq!(entry.index, one.applied.next(), "entries are applied in order, each once");
            self.reply_scratch.clear();
            if entry.header.kind == EntryKind::Command {
                run_machine(one, &entry, &mut self.reply_scratch);
                if one.poisoned.is_some() {
                    return;
                }
                self.status.applied += 1;
            }
            one.digest_entry(entry.index, &entry.header);
            one.bytes_since += entry.payload.len() as u64;
            one.applied = entry.index;
            self.waiting_bytes -= answer(one, &entry, node, &self.reply_scratch, &mut answers);
        }
    }

    pub(super) fn after_apply(&mut self, slot: u32) {
        self.answer_reads(slot);
        self.give_up_if_poisoned(slot);
        self.take_snapshots(slot);
        self.evict(slot);
    }

    /// One wake-up a client.
    pub(super) fn reply(&mut self) {
        // One by one: a client's waker that panics takes nobody else's answers with it.
        while let Some((queue, completions)) = self.completions.pop() {
            queue.push(completions);
        }
    }
}

/// Runs one command. A panic poisons the machine: its group goes on without it.
fn run_machine(slot: &mut Slot, entry: &EntryRef<'_>, reply: &mut Vec<u8>) {
    // The log's time never goes back, whatever the leaders' clocks did; the same on every member.
    slot.time_ms = slot.time_ms.max(entry.header.time_ms);
    let mut wishes = Wishes::default();
    let one =
        Entry { index: entry.index, term: entry.header.term, time_ms: slot.time_ms, command: entry.payload };
    let machine = &mut slot.machine;
    let ran = caught(|| machine.apply(one, &mut Effects::new(reply, &mut wishes)));
    slot.want_release |= !wishes.release.is_empty();
    slot.release_when.join(wishes.release);
    slot.want_checkpoint |= wishes.checkpoint;
    if let Err(panic) = ran {
        poison(slot, format!("applying entry {} panicked: {panic}", entry.index));
    }
}

/// Answers who waits for this entry, or waited for another one in its place. Returns the bytes that wait no more.
fn answer(
    slot: &mut Slot,
    entry: &EntryRef<'_>,
    node: NodeId,
    reply: &[u8],
    answers: &mut Answers<'_>,
) -> usize {
    let leader = slot.raft.leader();
    slot.waiting.decide(entry.index, entry.header.term, |origin, decision| match decision {
        Decision::Done => answers.give(origin, entry.header.tag, &replies::done(reply, entry.index, node)),
        Decision::Overwritten(tags) => {
            let outcome = Outcome::not_done(Reason::Overwritten, leader);
            tags.iter().for_each(|tag| answers.give(origin, *tag, &outcome));
        }
    })
}
