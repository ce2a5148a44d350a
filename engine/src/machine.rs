//! The replicated state machine that a user writes: [`Machine`] over bytes, [`TypedMachine`] over the user's types.
//!
//! Determinism is the rule: the same entries in the same order give the same state on every member. Time comes only
//! with the entry and never goes back. A machine that panics is poisoned: its group goes on voting and replicating,
//! but does not apply any more, and says so.

use std::any::Any;

use coracle_base::{Index, Term};
use coracle_wal::IndexRange;

/// One committed command, as the machine sees it.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Its place in the log; rises by at least one from call to call.
    pub index: Index,
    /// The term in which it was proposed.
    pub term: Term,
    /// The log's time: the leader's clock when it was proposed, milliseconds since 1970, never going back.
    pub time_ms: u64,
    /// What was proposed.
    pub command: &'a [u8],
}

/// What a release waits for, besides all that it needs anyway (it never covers an entry that is not durable and applied).
/// The default: nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReleaseWhen {
    /// This entry is durable on this member: one that the machine expects, say, and that brings back what the release
    /// drops.
    pub durable: Index,
    /// No member is being sent a snapshot of the group: it would have to begin anew.
    pub no_transfer: bool,
}

/// Wishes for a release that wait: whatever one of them allows is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ReleaseWishes {
    /// The lowest index of those that do not mind transfers.
    any: Option<Index>,
    /// And of those that do.
    quiet: Option<Index>,
}

impl ReleaseWishes {
    pub(crate) fn add(&mut self, when: ReleaseWhen) {
        let least = if when.no_transfer { &mut self.quiet } else { &mut self.any };
        *least = Some(least.map_or(when.durable, |index| index.min(when.durable)));
    }

    pub(crate) fn join(&mut self, other: Self) {
        for (durable, no_transfer) in [(other.any, false), (other.quiet, true)] {
            durable.into_iter().for_each(|durable| self.add(ReleaseWhen { durable, no_transfer }));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether one of them allows a release now.
    pub(crate) fn allow(&self, durable: Index, transfers: bool) -> bool {
        let is_there = |index: Option<Index>| index.is_some_and(|index| index <= durable);
        is_there(self.any) || (is_there(self.quiet) && !transfers)
    }
}

/// What a machine asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wishes {
    pub(crate) release: ReleaseWishes,
    pub(crate) checkpoint: bool,
}

/// Where a machine puts its reply and what it asks for.
#[derive(Debug)]
pub struct Effects<'a> {
    reply: &'a mut Vec<u8>,
    wishes: &'a mut Wishes,
}

impl<'a> Effects<'a> {
    pub(crate) fn new(reply: &'a mut Vec<u8>, wishes: &'a mut Wishes) -> Self {
        Self { reply, wishes }
    }

    /// The reply to the proposer, to be appended to. Only the leader's goes out.
    pub fn reply(&mut self) -> &mut Vec<u8> {
        self.reply
    }

    /// Says that a snapshot of the machine, as it is after this command, may take the place of the log up to it. The
    /// log is released once the snapshot is durable, but for the entries of [`Machine::live_indexes`]. One over 64 KiB is
    /// written to a file, at most every [`Config::min_snapshot_interval`](crate::Config::min_snapshot_interval) entries; a
    /// wish that comes too early, or while a snapshot is being written, is kept, and the snapshot is taken later, of the
    /// state as it is then.
    pub fn release(&mut self) {
        self.release_when(ReleaseWhen::default());
    }

    /// As [`release`](Self::release), once this holds. Of several wishes that wait, whatever one of them allows is done.
    pub fn release_when(&mut self, when: ReleaseWhen) {
        self.wishes.release.add(when);
    }

    /// Says that the state after this command is worth keeping for a fast restart. It is written to a file, at most every
    /// [`Config::min_checkpoint_interval`](crate::Config::min_checkpoint_interval) entries; the log is kept, and nothing
    /// depends on the file. A later [`release`](Self::release) may use it instead of taking a snapshot.
    pub fn checkpoint(&mut self) {
        self.wishes.checkpoint = true;
    }
}

/// A snapshot that a machine cannot read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("snapshot not understood: {0}")]
pub struct RestoreError(pub String);

/// What a command does to the space that the log takes, which decides what becomes of it when the disk is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Class {
    /// Takes space: refused first.
    #[default]
    Ordinary,
    /// Leads to space being given back (a removal, an acknowledgement): taken while a reserve for such commands lasts.
    /// Room comes back only when the log is released, so a machine does well to ask for that after one of these, once the
    /// log is larger than its state: on a full disk no other command may follow.
    Freeing,
}

/// A deterministic state machine over bytes.
pub trait Machine: Any + Send {
    /// Runs one committed command.
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>);

    /// What kind of command this is. Asked on the leader, about a command that is only proposed, when the disk is full.
    fn class(&self, command: &[u8]) -> Class {
        let _ = command;
        Class::Ordinary
    }

    /// Answers a question without changing anything; appends the answer to `reply`.
    fn query(&self, query: &[u8], reply: &mut Vec<u8>);

    /// Appends the whole state to `out`.
    fn snapshot(&self, out: &mut Vec<u8>);

    /// The state as it is now, to be read piece by piece while the machine goes on applying: a consistent cut. The
    /// default takes all of [`snapshot`](Self::snapshot) at once; a machine with much state hands out something cheaper.
    fn snapshot_source(&self) -> Box<dyn SnapshotSource> {
        let mut bytes = Vec::new();
        self.snapshot(&mut bytes);
        Box::new(SnapshotBytes { bytes, at: 0 })
    }

    /// The entries that live on below a snapshot that is taken now: commands whose bodies stay in the log while the state
    /// holds only their indexes. Asked when a snapshot is taken; what it does not name is gone for good then. Ranges in
    /// any order; what lies above the last applied entry is ignored. Default: none.
    fn live_indexes(&self) -> Vec<IndexRange> {
        Vec::new()
    }

    /// Replaces the state by one that [`snapshot`](Self::snapshot) wrote.
    ///
    /// # Errors
    /// [`RestoreError`]: the group stops applying, and says so.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError>;

    /// A snapshot of so many bytes is about to come. A machine that answers `true` gets it by
    /// [`restore_chunk`](Self::restore_chunk) and [`finish_restore`](Self::finish_restore); otherwise (the default) it is
    /// gathered and given to [`restore`](Self::restore). A restore may end before its last chunk, and another one begin.
    fn begin_restore(&mut self, bytes: u64) -> bool {
        let _ = bytes;
        false
    }

    /// The next bytes of the snapshot, cut anywhere.
    ///
    /// # Errors
    /// As [`restore`](Self::restore). Called only after `begin_restore` has answered `true`; the default refuses.
    fn restore_chunk(&mut self, chunk: &[u8]) -> Result<(), RestoreError> {
        Err(RestoreError(format!("{} bytes for a machine that takes no chunks", chunk.len())))
    }

    /// There are no more chunks: the state is the snapshot's now.
    ///
    /// # Errors
    /// As [`restore`](Self::restore).
    fn finish_restore(&mut self) -> Result<(), RestoreError> {
        Ok(())
    }
}

/// A machine's state at one moment, read piece by piece; see [`Machine::snapshot_source`].
pub trait SnapshotSource: Send {
    /// Appends at most `max` more bytes to `out`. Whether there are more to come; `false` with the last ones.
    fn next_chunk(&mut self, out: &mut Vec<u8>, max: usize) -> bool;
}

/// A state that was taken all at once.
struct SnapshotBytes {
    bytes: Vec<u8>,
    at: usize,
}

impl SnapshotSource for SnapshotBytes {
    fn next_chunk(&mut self, out: &mut Vec<u8>, max: usize) -> bool {
        let end = self.bytes.len().min(self.at.saturating_add(max));
        out.extend_from_slice(&self.bytes[self.at..end]);
        self.at = end;
        end < self.bytes.len()
    }
}

/// A machine's wish list of live entries as the log wants it: in order, without overlaps, nothing above `upto`.
pub(crate) fn in_order(mut ranges: Vec<IndexRange>, upto: Index) -> Vec<IndexRange> {
    ranges.retain_mut(|range| {
        range.first = range.first.max(Index(1));
        let room = (upto.0 + 1).saturating_sub(range.first.0);
        range.count = range.count.min(room);
        range.count > 0
    });
    ranges.sort_unstable_by_key(|range| range.first);
    ranges.dedup_by(|next, before| {
        let joins = next.first <= before.last().next();
        if joins {
            before.count = before.count.max(next.last().next().since(before.first));
        }
        joins
    });
    ranges
}

/// A value with a byte form, for the typed layer.
pub trait Wire: Sized {
    /// Appends the byte form.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads it back; `None` if the bytes are not one.
    fn decode(bytes: &[u8]) -> Option<Self>;
}

/// A deterministic state machine over the user's own types. [`Typed`] makes a [`Machine`] of it.
pub trait TypedMachine: Send + 'static {
    /// What is proposed.
    type Command: Wire;
    /// What a command answers.
    type Reply: Wire;
    /// What is asked.
    type Query: Wire;
    /// What a query answers.
    type Answer: Wire;
    /// The whole state, for snapshots.
    type State: Wire;

    /// Runs one committed command; `effects` is for everything but the reply.
    fn apply(&mut self, command: Self::Command, entry: Entry<'_>, effects: &mut Effects<'_>) -> Self::Reply;
    /// What kind of command this is; see [`Machine::class`].
    fn class(&self, command: &Self::Command) -> Class {
        let _ = command;
        Class::Ordinary
    }
    /// Answers a question.
    fn query(&self, query: Self::Query) -> Self::Answer;
    /// The state now.
    fn save(&self) -> Self::State;
    /// Takes up a saved state.
    fn load(&mut self, state: Self::State);
    /// Entries that live on below a snapshot; see [`Machine::live_indexes`].
    fn live_indexes(&self) -> Vec<IndexRange> {
        Vec::new()
    }
}

/// A [`TypedMachine`] as a [`Machine`]. A command or query that does not decode gets an empty reply and changes
/// nothing: the same on every member.
#[derive(Debug, Clone, Default)]
pub struct Typed<M>(pub M);

impl<M: TypedMachine> Machine for Typed<M> {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        if let Some(command) = M::Command::decode(entry.command) {
            self.0.apply(command, entry, effects).encode(effects.reply());
        }
    }

    fn class(&self, command: &[u8]) -> Class {
        M::Command::decode(command).map_or(Class::Ordinary, |command| self.0.class(&command))
    }

    fn query(&self, query: &[u8], reply: &mut Vec<u8>) {
        if let Some(query) = M::Query::decode(query) {
            self.0.query(query).encode(reply);
        }
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        self.0.save().encode(out);
    }

    fn live_indexes(&self) -> Vec<IndexRange> {
        self.0.live_indexes()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        let state = M::State::decode(snapshot).ok_or_else(|| {
            RestoreError(format!("{} bytes that are not this machine's state", snapshot.len()))
        })?;
        self.0.load(state);
        Ok(())
    }
}

impl Wire for () {
    fn encode(&self, _out: &mut Vec<u8>) {}
    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.is_empty().then_some(())
    }
}

impl Wire for Vec<u8> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(bytes.to_vec())
    }
}

impl Wire for String {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        String::from_utf8(bytes.to_vec()).ok()
    }
}

macro_rules! wire_number {
    ($($number:ty),*) => {$(
        impl Wire for $number {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn decode(bytes: &[u8]) -> Option<Self> {
                Some(Self::from_le_bytes(bytes.try_into().ok()?))
            }
        }
    )*};
}

wire_number!(u8, u16, u32, u64, i32, i64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_allowed_by_one_wish_as_a_whole_not_by_parts_of_several() {
        let mut wishes = ReleaseWishes::default();
        assert!(wishes.is_empty() && !wishes.allow(Index(9), false));
        wishes.add(ReleaseWhen { durable: Index(100), no_transfer: false });
        wishes.add(ReleaseWhen { durable: Index(3), no_transfer: true });
        assert!(!wishes.allow(Index(50), true), "neither of them does");
        assert!(wishes.allow(Index(50), false) && wishes.allow(Index(100), true));
        let mut more = ReleaseWishes::default();
        more.add(ReleaseWhen::default());
        wishes.join(more);
        assert!(wishes.allow(Index(0), true));
    }

    #[test]
    fn live_entries_are_put_in_order() {
        let range = |first, count| IndexRange { first: Index(first), count };
        let wish =
            vec![range(9, 2), range(3, 2), range(4, 3), range(7, 0), range(20, 1), range(0, 1), range(7, 1)];
        assert_eq!(in_order(wish, Index(9)), vec![range(1, 1), range(3, 5), range(9, 1)]);
        assert_eq!(in_order(vec![range(5, 1)], Index(4)), vec![]);
        assert_eq!(in_order(vec![range(1, u64::MAX)], Index(4)), vec![range(1, 4)]);
    }

    #[test]
    fn a_state_taken_at_once_comes_in_pieces() {
        let mut source = SnapshotBytes { bytes: (0..10).collect(), at: 0 };
        let mut out = Vec::new();
        assert!(source.next_chunk(&mut out, 4));
        assert!(source.next_chunk(&mut out, 5));
        assert!(!source.next_chunk(&mut out, 5));
        assert_eq!(out, (0..10).collect::<Vec<u8>>());
    }
}
