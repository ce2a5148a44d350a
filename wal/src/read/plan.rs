//! Read plans: where entries lie, found out by the log, and read by another thread with handles of its own.
//!
//! ```text
//!   plan_read → locate (as scattered reads do) → pin the files → poll_plan        the log's thread
//!   execute: per span: pin holds? → read → pin holds? → checked → out             any thread, when it likes
//! ```
//!
//! Entries that a plan names are what the log held when it was made, also if the log has released them since: as long as
//! the pin holds. A plan that comes too late gets `Released` for all that it has not read yet.
//!
//! Invariants: (1) no byte is handed out that was read when the pin did not hold afterwards, or whose checksums do not hold;
//! (2) what does not hold is damage only if the pin held; (3) what is in memory is bounded by the plan's bytes and a span's.

use std::collections::BTreeSet;
use std::path::PathBuf;

use coracle_base::limits::BLOCK_BYTES;
use coracle_base::{GroupId, Index, Term};
use coracle_io::{BlockingRead, Buffer, Disk};

use super::scattered::{Fetched, Gather, shed};
use super::spans::{Found, Place, RunEntries, Span, run_at, spans};
use super::{Next, Want};
use crate::error::ReadError;
use crate::files::log_path;
use crate::pin::Pin;
use crate::wal::Wal;

/// Entries to be read, not read yet. Dropping it gives its files back.
#[derive(Debug)]
pub struct ReadPlan {
    dir: PathBuf,
    group: GroupId,
    entries: Vec<Planned>,
    max_bytes: usize,
    /// None if nothing is to be read.
    pin: Option<Pin>,
}

#[derive(Debug)]
struct Planned {
    index: Index,
    /// Not known of live entries below the log.
    term: Option<Term>,
    place: Result<Place, ReadError>,
}

/// An entry while a plan is executed.
struct Key {
    place: Option<Place>,
    found: Option<Fetched>,
}

impl ReadPlan {
    /// Reads. The first of the entries that were asked for, in that order: at least one, and as many as fit the bytes that
    /// were allowed; each encoded, with its header. Blocks; may be done more than once.
    pub fn execute(&self, files: &mut impl BlockingRead) -> Vec<(Index, Result<Vec<u8>, ReadError>)> {
        let mut keys: Vec<Key> = Vec::with_capacity(self.entries.len());
        for Planned { place, .. } in &self.entries {
            let found = place.as_ref().err().map(|error| Err(error.clone()));
            keys.push(Key { place: place.as_ref().ok().copied(), found });
        }
        let mut buf = Buffer::with_capacity(0);
        loop {
            let open = keys.iter().enumerate().filter(|(_, key)| key.found.is_none());
            let wanted = open.filter_map(|(at, key)| Some((key.place?, self.entries[at].index, at)));
            let spans = spans(wanted.collect());
            if spans.is_empty() {
                break;
            }
            for mut span in spans {
                span.keys.retain(|at| *at < keys.len());
                if !span.keys.is_empty() {
                    self.read_span(files, &span, &mut buf, &mut keys);
                    shed(&mut keys, self.max_bytes, |key| &key.found);
                }
            }
        }
        let result = |(planned, key): (&Planned, Key)| {
            (planned.index, key.found.unwrap_or_else(|| Err(released(planned.index))))
        };
        self.entries.iter().zip(keys).map(result).collect()
    }

    /// How many entries it can give, at most: the first of those that were asked for, up to one that is not durable.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether not even the first is durable.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn holds(&self) -> bool {
        self.pin.as_ref().is_some_and(Pin::holds)
    }

    /// Reads a span and takes its entries; if a run goes on beyond it, says so in its entries' places.
    fn read_span(&self, files: &mut impl BlockingRead, span: &Span, buf: &mut Buffer, keys: &mut [Key]) {
        let bytes = (span.bytes as usize).next_multiple_of(BLOCK_BYTES);
        if buf.capacity() < bytes {
            *buf = Buffer::with_capacity(bytes);
        }
        buf.resize(bytes);
        let path = log_path(&self.dir, span.from.file_no);
        let read = if self.holds() { Some(files.read(&path, span.from.offset, buf)) } else { None };
        let read = match read {
            Some(read) if self.holds() => read,
            _ => {
                return span.keys.iter().for_each(|at| {
                    keys[*at].found = Some(Err(released(self.entries[*at].index)));
                });
            }
        };
        let bytes = match read {
            Ok(bytes) => &buf[..bytes.min(buf.len())],
            Err(error) => {
                return span.keys.iter().for_each(|at| keys[*at].found = Some(Err(error.clone().into())));
            }
        };
        let same_run = |one: &usize, next: &usize| keys[*one].place == keys[*next].place;
        let runs: Vec<&[usize]> = span.keys.chunk_by(same_run).collect();
        for of_run in runs {
            self.take_run(span, bytes, of_run, keys);
        }
    }

    /// Takes the entries of one run.
    fn take_run(&self, span: &Span, bytes: &[u8], of_run: &[usize], keys: &mut [Key]) {
        let Some(place) = of_run.first().and_then(|at| keys[*at].place) else { return };
        let corrupt = |index, why: &str| {
            let file = log_path(&self.dir, place.file_no);
            Err(ReadError::Corrupt { file, index, why: why.to_owned() })
        };
        let found = run_at(span, place, bytes);
        let mut entries = match &found {
            Found::Run(run) => Some(RunEntries::new(*run)),
            Found::Longer(_) | Found::Damaged(_) => None,
        };
        for at in of_run {
            let Planned { index, term, .. } = self.entries[*at];
            let key = &mut keys[*at];
            match (&found, &mut entries) {
                (Found::Longer(bytes), _) => key.place = Some(Place { bytes: *bytes, ..place }),
                (Found::Damaged(why), _) => key.found = Some(corrupt(index, why)),
                (Found::Run(_), Some(entries)) => {
                    let taken = entries.take(self.group, index, term);
                    key.found = Some(taken.or_else(|why| corrupt(index, why)));
                }
                (Found::Run(_), None) => {}
            }
        }
    }
}

fn released(index: Index) -> ReadError {
    ReadError::Released { index, first: Index(1), last: Index::ZERO }
}

impl Wal {
    /// Begins to find out where durable entries of a group lie, as [`read_live`](Self::read_live) does, without reading
    /// them. [`poll_plan`](Self::poll_plan) has the plan, under `id`.
    pub fn plan_read<D: Disk>(
        &mut self,
        disk: &mut D,
        id: u64,
        group: GroupId,
        indexes: &[Index],
        max_bytes: usize,
    ) {
        let keys = indexes.iter().map(|index| (group, *index));
        self.begin_gather(disk, Want::Plan { id, max_bytes }, group, keys, max_bytes);
    }

    /// A plan that is finished. `None` in place of a plan: too many of them are held by readers.
    pub fn poll_plan(&mut self) -> Option<(u64, Option<ReadPlan>)> {
        self.reads.plans.pop_front()
    }

    /// Plans held by readers, as far as the log knows.
    pub fn pins(&self) -> usize {
        self.pins.len()
    }

    pub(super) fn next_for_plan(&mut self, gather: &mut Gather) -> Next {
        self.locate_all(gather).unwrap_or(Next::Finish)
    }

    /// All is located: nothing has happened to the log since.
    pub(super) fn finish_plan(&mut self, id: u64, max_bytes: usize, gather: Gather) {
        let mut group = GroupId(0);
        let mut files = BTreeSet::new();
        let mut entries = Vec::with_capacity(gather.keys.len());
        for key in gather.keys {
            group = key.group;
            let place = match (key.found, key.place) {
                // It will be soon: whoever needs it asks again.
                (Some(Err(ReadError::NotDurable { .. })), _) => break,
                (Some(Err(error)), _) => Err(error),
                (_, Some(place)) => Ok(place),
                (_, None) => Err(released(key.index)),
            };
            files.extend(place.as_ref().ok().map(|place| place.file_no));
            let log = self.groups.find(group).filter(|log| key.index > log.base);
            let term = log.and_then(|log| log.term_at(key.index));
            entries.push(Planned { index: key.index, term, place });
        }
        let pin = if files.is_empty() { Some(None) } else { self.pin(files).map(Some) };
        let dir = self.config.dir.clone();
        let plan = pin.map(|pin| ReadPlan { dir, group, entries, max_bytes, pin });
        self.reads.plans.push_back((id, plan));
    }
}
