//! The machine of a named group: a list of the commands that it was given. It notes what it is made to do, and that it was made.
//!
//! ```text
//!   argument: 8 number of the wish that made the group
//!   command:  8 id                      reply: 8 commands so far
//!   answer and snapshot: the ids of all commands, 8 each
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use coracle::{Effects, Entry, Machine, RestoreError};

/// The log is released after so many commands.
const RELEASE_EVERY: usize = 8;

/// What a machine of a named group did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NameNote {
    /// A group begins on the node, or goes on there after a start.
    Made { number: u64 },
    /// It has applied a command, as so manieth.
    Applied { number: u64, nth: usize, id: u64 },
    /// It took up another state.
    Restored { number: u64, ids: Vec<u64> },
}

/// The notes of all machines of named groups of one node's process.
#[derive(Debug, Clone, Default)]
pub(crate) struct NameJournal(Arc<Mutex<Vec<NameNote>>>);

impl NameJournal {
    fn note(&self, note: NameNote) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(note);
    }

    /// Takes the notes since the last time.
    pub(crate) fn take(&self) -> Vec<NameNote> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes the machine of a group.
    pub(crate) fn make(&self, argument: &[u8]) -> Option<Box<dyn Machine>> {
        let number = number_of(argument)?;
        self.note(NameNote::Made { number });
        Some(Box::new(NamedMachine { number, ids: Vec::new(), journal: self.clone() }))
    }
}

/// Which wish made a group, by its argument.
pub(crate) fn number_of(argument: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(argument.try_into().ok()?))
}

/// The ids in an answer.
pub(crate) fn ids_of(reply: &[u8]) -> Vec<u64> {
    reply.as_chunks().0.iter().map(|id| u64::from_le_bytes(*id)).collect()
}

struct NamedMachine {
    number: u64,
    ids: Vec<u64>,
    journal: NameJournal,
}

impl Machine for NamedMachine {
    fn apply(&mut self, entry: Entry<'_>, effects: &mut Effects<'_>) {
        let Some(id) = number_of(entry.command) else { return };
        self.ids.push(id);
        self.journal.note(NameNote::Applied { number: self.number, nth: self.ids.len(), id });
        effects.reply().extend((self.ids.len() as u64).to_le_bytes());
        if self.ids.len().is_multiple_of(RELEASE_EVERY) {
            effects.release();
        }
    }

    fn query(&self, _: &[u8], reply: &mut Vec<u8>) {
        self.snapshot(reply);
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        self.ids.iter().for_each(|id| out.extend(id.to_le_bytes()));
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        self.ids = ids_of(snapshot);
        self.journal.note(NameNote::Restored { number: self.number, ids: self.ids.clone() });
        Ok(())
    }
}
