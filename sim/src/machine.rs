//! The replicated machine of the simulation: lists, counters and registers, and a hash over everything that happened to
//! them. Nodes run it through [`TestMachine`], which notes what it is made to do; the oracle runs the bare [`State`].
//!
//! ```text
//!   command: 8 id, 1 kind (0 append, 1 add, 2 set), 8 value, then padding made from the id
//!            or 8 id, 1 kind (3), then what `objects.rs` says
//!   reply:   8 the new value (append: the list's hash; add: the sum) or the old one (set), or the object's
//!   query:   nothing, or what `objects.rs` says
//!   answer:  8 index of the last command, 8 number of commands, 8 hash, then the object's answer
//!   snapshot: the state with its objects, then 8 number of live entries, 16 each (index, last command that it lives through), then padding
//! ```
//!
//! A part of the commands live on in the log for a while, as a queue's messages do: the snapshot names them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use coracle::{Effects, Entry, GroupId, Index, IndexRange, Machine, RestoreError, SnapshotSource, Term};
use coracle_base::checksum::{crc32c, mix64};
use coracle_base::codec::{Reader, Sink, Truncated};

use crate::objects::{Action, Objects};

const KINDS: usize = 3;
const KEYS: usize = 8;
/// The kind of commands that act on objects.
const OBJECT: u8 = 3;

/// What a client asks the machine to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Append the command's id to a list; a list is kept as its hash.
    Append = 0,
    /// Add to a counter.
    Add = 1,
    /// Overwrite a register.
    Set = 2,
}

/// The bytes of a command. `value` also picks the key.
pub(crate) fn encode_command(id: u64, kind: Kind, value: u64, padding: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(17 + padding);
    out.put_u64(id);
    out.put_u8(kind as u8);
    out.put_u64(value);
    out.extend((0..padding).map(|at| mix64(id, at as u64) as u8));
    out
}

/// The bytes of a command of a session, which acts on an object.
pub(crate) fn encode_action(id: u64, key: u64, action: Action) -> Vec<u8> {
    let mut out = Vec::with_capacity(34);
    out.put_u64(id);
    out.put_u8(OBJECT);
    action.encode(key, &mut out);
    out
}

/// What the machine is after its commands up to `last`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Index of the last command.
    pub(crate) last: u64,
    /// How many commands there were.
    pub(crate) count: u64,
    /// Over all of them and what they did.
    pub(crate) hash: u64,
    keys: [[u64; KEYS]; KINDS],
    objects: Objects,
}

impl State {
    /// Runs one command; the value to reply. Bytes that are no command change only the hash.
    pub(crate) fn apply(&mut self, index: u64, command: &[u8]) -> u64 {
        let value = self.run(command).unwrap_or_default();
        self.last = index;
        self.count += 1;
        self.hash = mix64(self.hash, mix64(index, mix64(u64::from(crc32c(command)), value)));
        value
    }

    fn run(&mut self, command: &[u8]) -> Result<u64, Truncated> {
        let mut reader = Reader::new(command);
        let (id, kind) = (reader.u64()?, reader.u8()?);
        if kind == OBJECT {
            return self.objects.act(&mut reader);
        }
        let value = reader.u64()?;
        let key = &mut self.keys[usize::from(kind) % KINDS][value as usize % KEYS];
        Ok(match kind {
            0 => {
                *key = mix64(*key, id);
                *key
            }
            1 => {
                *key = key.wrapping_add(value);
                *key
            }
            _ => std::mem::replace(key, value),
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for word in [self.last, self.count, self.hash].iter().chain(self.keys.iter().flatten()) {
            out.put_u64(*word);
        }
        self.objects.encode(out);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Truncated> {
        let mut state =
            Self { last: reader.u64()?, count: reader.u64()?, hash: reader.u64()?, ..Self::default() };
        for key in state.keys.iter_mut().flatten() {
            *key = reader.u64()?;
        }
        state.objects = Objects::decode(reader)?;
        Ok(state)
    }
}

/// What a query is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) last: u64,
    pub(crate) count: u64,
    pub(crate) hash: u64,
}

impl Answered {
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let (last, count, hash) = (reader.u64().ok()?, reader.u64().ok()?, reader.u64().ok()?);
        reader.is_empty().then_some(Self { last, count, hash })
    }

    /// What of an answer is about the whole state, and what about an object.
    pub(crate) fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
        bytes.split_at(bytes.len().min(24))
    }
}

/// What a machine was made to do.
#[derive(Debug, Clone)]
pub(crate) enum Note {
    /// It ran a command.
    Applied {
        group: GroupId,
        index: Index,
        term: Term,
        time_ms: u64,
        /// The command's bytes.
        command: Vec<u8>,
        /// The state's count and hash afterwards.
        count: u64,
        hash: u64,
    },
    /// It took up a snapshot: the state's last index, count and hash.
    Restored { group: GroupId, last: u64, count: u64, hash: u64 },
}

impl Note {
    /// For the trace.
    pub(crate) fn hash(&self) -> u64 {
        match self {
            Note::Applied { group, index, hash, .. } => mix64(group.0, mix64(index.0, *hash)),
            Note::Restored { group, last, hash, .. } => mix64(group.0, mix64(*last, !*hash)),
        }
    }

    /// The group that took up a snapshot.
    pub(crate) fn restored(&self) -> Option<GroupId> {
        match self {
            Note::Restored { group, .. } => Some(*group),
            Note::Applied { .. } => None,
        }
    }
}

/// The notes of all machines of one node's process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Journal(Arc<Mutex<Vec<Note>>>);

impl Journal {
    fn note(&self, note: Note) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(note);
    }

    /// Takes the notes since the last time.
    pub(crate) fn take(&self) -> Vec<Note> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How machines keep their state.
#[derive(Debug, Clone, Default)]
pub(crate) struct Habits {
    /// The log is released after so many commands; 0 for never.
    pub(crate) release_every: u64,
    /// A checkpoint is asked for after so many commands; 0 for never.
    pub(crate) checkpoint_every: u64,
    /// Bytes that make snapshots larger.
    pub(crate) padding: usize,
    /// Snapshots come back in chunks.
    pub(crate) in_chunks: bool,
    /// Of 100 commands, so many live on in the log.
    pub(crate) live_percent: u64,
}

/// One group's machine on one node.
#[derive(Debug)]
pub(crate) struct TestMachine {
    pub(crate) group: GroupId,
    pub(crate) state: State,
    pub(crate) habits: Habits,
    pub(crate) journal: Journal,
    /// Index of each command that lives on, and the number of the command that ends it.
    live: VecDeque<(u64, u64)>,
    /// A snapshot on its way.
    incoming: Vec<u8>,
}

/// Commands that one lives through.
pub(crate) const LIFE: u64 = 200;

/// Whether the command at this index lives on, with the machine's hash after it.
pub(crate) fn lives(index: u64, hash: u64, percent: u64) -> bool {
    mix64(index, hash) % 100 < percent
}

impl TestMachine {
    pub(crate) fn new(group: GroupId, habits: Habits, journal: Journal) -> Self {
        Self { group, state: State::default(), habits, journal, live: VecDeque::new(), incoming: Vec::new() }
    }

    fn head(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.state.encode(&mut out);
        out.put_u64(self.live.len() as u64);
        for (index, until) in &self.live {
            out.put_u64(*index);
            out.put_u64(*until);
        }
        out
    }
}

/// Byte `at` of a state's padding.
fn padding_byte(hash: u64, at: usize) -> u8 {
    (hash >> (at % 8 * 8)) as u8 ^ at as u8 ^ (at >> 8) as u8
}

/// The state as it was, though the machine goes on.
struct Cut {
    head: Vec<u8>,
    hash: u64,
    at: usize,
    bytes: usize,
}

impl SnapshotSource for Cut {
    fn next_chunk(&mut self, out: &mut Vec<u8>, max: usize) -> bool {
        let end = self.bytes.min(self.at.saturating_add(max));
        let (head, hash) = (&self.head, self.hash);
        let byte = |at| head.get(at).copied().unwrap_or_else(|| padding_byte(hash, at - head.len()));
        out.extend((self.at..end).map(byte));
        self.at = end;
        end < self.bytes
    }
}

impl Machine for TestMachine {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        let value = self.state.apply(entry.index.0, entry.command);
        effects.reply().put_u64(value);
        let is_due = |every: u64| every > 0 && self.state.count.is_multiple_of(every);
        if is_due(self.habits.release_every) {
            effects.release();
        }
        if is_due(self.habits.checkpoint_every) {
            effects.checkpoint();
        }
        if lives(entry.index.0, self.state.hash, self.habits.live_percent) {
            self.live.push_back((entry.index.0, self.state.count + LIFE));
        }
        while self.live.pop_front_if(|(_, until)| *until <= self.state.count).is_some() {}
        self.journal.note(Note::Applied {
            group: self.group,
            index: entry.index,
            term: entry.term,
            time_ms: entry.time_ms,
            command: entry.command.to_vec(),
            count: self.state.count,
            hash: self.state.hash,
        });
    }

    fn query(&self, query: &[u8], reply: &mut Vec<u8>) {
        reply.put_u64(self.state.last);
        reply.put_u64(self.state.count);
        reply.put_u64(self.state.hash);
        // Without a key it is about nothing else.
        let _ = self.state.objects.read(&mut Reader::new(query), reply);
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        self.snapshot_source().next_chunk(out, usize::MAX);
    }

    fn snapshot_source(&self) -> Box<dyn SnapshotSource> {
        let head = self.head();
        let bytes = head.len() + self.habits.padding;
        Box::new(Cut { head, hash: self.state.hash, at: 0, bytes })
    }

    fn live_indexes(&self) -> Vec<IndexRange> {
        self.live.iter().map(|(index, _)| IndexRange { first: Index(*index), count: 1 }).collect()
    }

    fn begin_restore(&mut self, _: u64) -> bool {
        self.incoming.clear();
        self.habits.in_chunks
    }

    fn restore_chunk(&mut self, chunk: &[u8]) -> Result<(), RestoreError> {
        self.incoming.extend_from_slice(chunk);
        Ok(())
    }

    fn finish_restore(&mut self) -> Result<(), RestoreError> {
        let incoming = std::mem::take(&mut self.incoming);
        self.restore(&incoming)
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        let mut reader = Reader::new(snapshot);
        let short = |error: Truncated| RestoreError(error.to_string());
        let state = State::decode(&mut reader).map_err(short)?;
        let count = reader.u64().map_err(short)?;
        let mut live = VecDeque::new();
        for _ in 0..count {
            live.push_back((reader.u64().map_err(short)?, reader.u64().map_err(short)?));
        }
        let whole =
            (reader.rest().iter().enumerate()).all(|(at, byte)| padding_byte(state.hash, at) == *byte);
        if !whole || reader.rest().len() != self.habits.padding {
            return Err(RestoreError("the padding is not what was written".to_owned()));
        }
        (self.state, self.live) = (state, live);
        let State { last, count, hash, .. } = self.state;
        self.journal.note(Note::Restored { group: self.group, last, count, hash });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_does_what_it_says() {
        let mut state = State::default();
        let mut run = |index, id, kind, value| state.apply(index, &encode_command(id, kind, value, 3));
        assert_eq!(run(1, 1, Kind::Set, 5), 0);
        assert_eq!(run(2, 2, Kind::Set, 13), 5, "5 and 13 are one key");
        assert_eq!(run(3, 3, Kind::Add, 5), 5);
        assert_eq!(run(4, 4, Kind::Add, 13), 18);
        let list = run(5, 5, Kind::Append, 1);
        assert_ne!(run(7, 6, Kind::Append, 1), list);
        assert_eq!((state.last, state.count), (7, 6));
    }

    #[test]
    fn a_snapshot_brings_the_state_back_and_a_changed_one_is_refused() {
        let machine = |padding| {
            TestMachine::new(GroupId(1), Habits { padding, ..Habits::default() }, Journal::default())
        };
        let mut one = machine(100);
        one.state.apply(3, &encode_command(9, Kind::Add, 2, 0));
        let mut bytes = Vec::new();
        one.snapshot(&mut bytes);
        let mut other = machine(100);
        other.restore(&bytes).unwrap();
        assert_eq!(other.state, one.state);
        *bytes.last_mut().unwrap() ^= 1;
        assert!(machine(100).restore(&bytes).is_err());
        assert!(machine(101).restore(&bytes).is_err());
    }
}
