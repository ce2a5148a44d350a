//! The replicated state machine that a user writes: [`Machine`] over bytes, [`TypedMachine`] over the user's types.
//!
//! Determinism is the rule: the same entries in the same order give the same state on every member. Time comes only
//! with the entry and never goes back. A machine that panics is poisoned: its group goes on voting and replicating,
//! but does not apply any more, and says so.

use coracle_base::{Index, Term};

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

/// Where a machine puts its reply and what it asks for.
#[derive(Debug)]
pub struct Effects<'a> {
    reply: &'a mut Vec<u8>,
    release: &'a mut bool,
}

impl<'a> Effects<'a> {
    pub(crate) fn new(reply: &'a mut Vec<u8>, release: &'a mut bool) -> Self {
        Self { reply, release }
    }

    /// The reply to the proposer, to be appended to. Only the leader's goes out.
    pub fn reply(&mut self) -> &mut Vec<u8> {
        self.reply
    }

    /// Says that a snapshot of the machine, as it is after this command, may take the place of the log up to it. The
    /// log is released once the snapshot is durable. Snapshots over 64 KiB are not taken yet: the log is kept.
    pub fn release(&mut self) {
        *self.release = true;
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
    Freeing,
}

/// A deterministic state machine over bytes.
pub trait Machine: Send + 'static {
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

    /// Replaces the state by one that [`snapshot`](Self::snapshot) wrote.
    ///
    /// # Errors
    /// [`RestoreError`]: the group stops applying, and says so.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError>;
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
