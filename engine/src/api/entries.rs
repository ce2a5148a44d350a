//! Entries of a group's log, read back on this node: at once, or by a plan that another thread executes.
//!
//! What is read is this member's own log as far as it is applied, so it is committed, and the same on every member that has
//! it. It may be behind the leader's.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use coracle_base::run::Entries;
use coracle_base::{EntryKind, GroupId, Index, Term};
use coracle_io::ring::PlainFiles;
use coracle_io::{BlockingRead, DiskError};
use coracle_wal::ReadError;

use super::proposal::block_on;
use super::{Group, ask};
use crate::Error;
use crate::shard::inbox::{Command, ReadTo};
use crate::shard::replies::{Asked, Parcel};

/// Entries in one answer, at most.
pub(crate) const READ_ENTRIES_MAX: usize = 1024;
/// Bytes of them, at most, unless the first alone is larger.
pub(crate) const READ_BYTES_MAX: usize = 1024 * 1024;

/// An entry of a group's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its place in the log.
    pub index: Index,
    /// The term of the leader that made it.
    pub term: Term,
    /// The log's time, milliseconds since 1970.
    pub time_ms: u64,
    /// A command, as it was proposed. Others are the engine's own, and no machine sees them.
    pub is_command: bool,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// Why there is no entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoEntry {
    /// A snapshot has taken its place, and it is not among the live ones; or the plan came too late.
    #[error("the entry was released")]
    Released,
    /// This member has not applied it yet: it may come.
    #[error("the entry is not applied here yet")]
    NotYet,
    /// What the log has of it does not hold: other members have it.
    #[error("{file}: the entry is damaged: {why}")]
    Damaged {
        /// Where it lies.
        file: PathBuf,
        /// What does not hold.
        why: String,
    },
    /// The disk could not read it.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl From<ReadError> for NoEntry {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Released { .. } => Self::Released,
            ReadError::NotDurable { .. } => Self::NotYet,
            ReadError::Corrupt { file, why, .. } => Self::Damaged { file, why },
            ReadError::Disk(error) => Self::Disk(error),
        }
    }
}

/// An entry that was asked for, or why there is none.
pub type ReadEntry = (Index, Result<LogEntry, NoEntry>);

/// An entry as it is encoded in the log.
pub(crate) fn decoded(index: Index, encoded: &[u8]) -> Result<LogEntry, NoEntry> {
    let Some(entry) = Entries::new(index, encoded).next() else {
        return Err(NoEntry::Damaged { file: PathBuf::new(), why: "it is no whole entry".to_owned() });
    };
    Ok(LogEntry {
        index,
        term: entry.header.term,
        time_ms: entry.header.time_ms,
        is_command: entry.header.kind == EntryKind::Command,
        payload: entry.payload.to_vec(),
    })
}

/// What will be answered to a question that only this node answers. Dropping it gives up the answer.
#[must_use = "the answer comes through it"]
pub struct Pending<T>(State<T>);

enum State<T> {
    Refused(Error),
    Waiting(Arc<Parcel<Result<T, Error>>>),
}

impl<T> Pending<T> {
    pub(crate) fn refused(error: Error) -> Self {
        Self(State::Refused(error))
    }

    pub(crate) fn waiting(parcel: Arc<Parcel<Result<T, Error>>>) -> Self {
        Self(State::Waiting(parcel))
    }

    /// Takes the answer, if it is there; once.
    ///
    /// # Errors
    /// [`Error::Busy`]: try again; [`Error::NoGroup`], [`Error::Stopped`].
    pub fn take(&mut self) -> Option<Result<T, Error>> {
        match &self.0 {
            State::Refused(error) => Some(Err(error.clone())),
            State::Waiting(parcel) => parcel.take(),
        }
    }

    /// Blocks this thread until the answer is there.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn wait(self) -> Result<T, Error> {
        let answer = block_on(None, |waker| self.take_with(waker));
        answer.expect("without a deadline only an answer ends the wait")
    }

    /// Blocks this thread until the answer is there or `timeout` has passed; waiting again is fine then.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<T, Error>> {
        block_on(Some(timeout), |waker| self.take_with(waker))
    }

    fn take_with(&self, waker: &Waker) -> Option<Result<T, Error>> {
        match &self.0 {
            State::Refused(error) => Some(Err(error.clone())),
            State::Waiting(parcel) => parcel.take().or_else(|| {
                parcel.register(waker);
                // Once more: the answer may have come between the look and the registration.
                parcel.take()
            }),
        }
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.take_with(context.waker()).map_or(Poll::Pending, Poll::Ready)
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").finish_non_exhaustive()
    }
}

/// Entries to be read by whoever has the plan, on a thread of its own: the shard has only said where they lie. Until it is
/// dropped, or [`Config::pin_us`](crate::Config::pin_us) have passed, the files are kept for it, within
/// [`Config::pin_bytes`](crate::Config::pin_bytes).
#[derive(Debug)]
pub struct ReadPlan {
    pub(crate) root: Arc<Path>,
    pub(crate) entries: Vec<Part>,
    pub(crate) files: Option<coracle_wal::ReadPlan>,
}

/// An entry of a plan.
#[derive(Debug)]
pub(crate) enum Part {
    /// It was in memory, or there is none.
    Known(ReadEntry),
    /// The next one of the files' plan.
    InFiles,
}

impl ReadPlan {
    /// Reads the entries: the first of those that were asked for, in that order, and as many as fit. Blocks this thread, and
    /// no other. Those that the plan comes too late for are [`NoEntry::Released`].
    pub fn execute(&self) -> Vec<ReadEntry> {
        self.execute_on(&mut PlainFiles::new(&*self.root))
    }

    /// As [`execute`](Self::execute), by a reader of the caller's: it may keep files open from one plan to the next.
    pub fn execute_on(&self, files: &mut impl BlockingRead) -> Vec<ReadEntry> {
        let read = self.files.as_ref().map(|plan| plan.execute(files)).unwrap_or_default();
        let mut read = read.into_iter();
        let each = self.entries.iter().map_while(|part| match part {
            Part::Known(known) => Some(known.clone()),
            Part::InFiles => read.next().map(|(index, result)| (index, entry_of(index, result))),
        });
        each.collect()
    }

    /// How many entries it can give, at most.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was asked for.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// What was read, as it is told.
pub(crate) fn entry_of(index: Index, result: Result<Vec<u8>, ReadError>) -> Result<LogEntry, NoEntry> {
    decoded(index, &result?)
}

impl Group {
    /// Reads entries of the group's log on this node, in whatever order: a range is `(5..=9).map(Index)`. The answer has the
    /// first of those that were asked for, in that order: at least one; no more than 1,024, and no more than `max_bytes`
    /// (1 MiB at most) of them, about. Ask again for the rest.
    ///
    /// # Errors
    /// In the answer: [`Error::Busy`] while too many are waiting, [`Error::NoGroup`], [`Error::Stopped`].
    pub fn read_entries(
        &self,
        indexes: impl IntoIterator<Item = Index>,
        max_bytes: usize,
    ) -> Pending<Vec<ReadEntry>> {
        self.read(indexes, max_bytes, ReadTo::Entries)
    }

    /// As [`read_entries`](Self::read_entries), but nothing is read before somebody executes the plan, on any thread.
    ///
    /// # Errors
    /// As [`read_entries`](Self::read_entries); [`Error::Busy`] also while too many plans are not dropped.
    pub fn read_plan(&self, indexes: impl IntoIterator<Item = Index>, max_bytes: usize) -> Pending<ReadPlan> {
        self.read(indexes, max_bytes, ReadTo::Plan)
    }

    fn read<T>(
        &self,
        indexes: impl IntoIterator<Item = Index>,
        max_bytes: usize,
        to: impl FnOnce(Asked<T>) -> ReadTo,
    ) -> Pending<T> {
        ask(&self.inbox, |asked| read_command(self.id, indexes, max_bytes, to(asked)))
    }
}

pub(crate) fn read_command<S>(
    group: GroupId,
    indexes: impl IntoIterator<Item = Index>,
    max_bytes: usize,
    to: ReadTo,
) -> Command<S> {
    let indexes = indexes.into_iter().take(READ_ENTRIES_MAX).collect();
    Command::ReadEntries { group, indexes, max_bytes: max_bytes.min(READ_BYTES_MAX), to }
}
