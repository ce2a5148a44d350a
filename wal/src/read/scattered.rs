//! Scattered entries back from files: the bodies that a machine left in the log, and what compaction moves.
//!
//! ```text
//!   keys → locate (open files, load their indexes) → spans (neighbours within 64 KiB) → several reads in flight → checked
//!     ↑_________________ moved, reused, or a run longer than thought _________________________________↵
//! ```
//!
//! Invariants: (1) every entry that is handed out was checked after this very read, and the log held it when it was handed
//! out; (2) between two operations nothing is held: what was released meanwhile is `Released`, what was moved is looked
//! for where it is now.

use coracle_base::run::{ENTRY_HEADER_BYTES, RUN_HEADER_BYTES};
use coracle_base::{GroupId, Index};
use coracle_io::{Disk, DiskDone, DiskError, DiskOk};

use super::lookup::Lookup;
use super::spans::{Found, Place, RunEntries, SPAN_BYTES_MAX, Span, run_at, spans};
use super::{Doing, FLIGHTS_MAX, Job, Next, Want};
use crate::error::ReadError;
use crate::groups::Group;
use crate::wal::Wal;

/// Entries in one read at most; the result says how many of those asked for it has.
pub(super) const KEYS_MAX: usize = 1024;
/// The same for compaction, which waits for a turn between two of them.
const MOVING_KEYS_MAX: usize = 4096;

/// An entry with its header, or why it could not be read.
pub(super) type Fetched = Result<Vec<u8>, ReadError>;

/// Scattered entries read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveOut {
    /// The first of those that were asked for, in that order: at least one, and as many as fit the bytes that were
    /// allowed. Each is encoded, with its header; its checksum was checked.
    pub entries: Vec<(GroupId, Index, Result<Vec<u8>, ReadError>)>,
}

#[derive(Debug)]
pub(super) struct Key {
    pub(super) group: GroupId,
    pub(super) index: Index,
    /// The group's cuts when it was read.
    cuts: u64,
    pub(super) place: Option<Place>,
    /// An index in the log said where it lies.
    by_hint: bool,
    pub(super) found: Option<Fetched>,
}

/// One job's entries.
#[derive(Debug, Default)]
pub(super) struct Gather {
    pub(super) keys: Vec<Key>,
    max_bytes: usize,
    /// For compaction, which goes through all of a file.
    needs_all: bool,
    /// By the number of the operation, as long as it is in flight.
    flying: Vec<Option<Span>>,
    waiting: Vec<Span>,
}

impl Gather {
    pub(super) fn is_flying(&self) -> bool {
        self.flying.iter().any(Option::is_some)
    }

    pub(super) fn into_out(self) -> LiveOut {
        let entry = |key: Key| {
            let none = ReadError::Released { index: key.index, first: Index(1), last: Index::ZERO };
            (key.group, key.index, key.found.unwrap_or(Err(none)))
        };
        LiveOut { entries: self.keys.into_iter().map(entry).collect() }
    }

    /// What is to be read for the entries that are not found yet, of the files that are open.
    fn plan(&mut self, is_open: impl Fn(u64) -> bool) {
        let open = self.keys.iter().enumerate().filter(|(_, key)| key.found.is_none());
        let wanted = open.filter_map(|(at, key)| Some((key.place?, key.index, at)));
        self.waiting = spans(wanted.filter(|(place, ..)| is_open(place.file_no)).collect());
        self.waiting.reverse();
    }
}

/// Of entries of which more was read than is allowed, the last ones are left out: those that are larger than they were
/// thought to be. One stays.
pub(super) fn shed<K>(keys: &mut Vec<K>, max_bytes: usize, found: impl Fn(&K) -> &Option<Fetched>) {
    let bytes = |key: &K| found(key).as_ref().and_then(|found| found.as_ref().ok()).map_or(0, Vec::len);
    let mut sum: usize = keys.iter().map(bytes).sum();
    while sum > max_bytes && keys.len() > 1 {
        sum -= keys.pop().map_or(0, |key| bytes(&key));
    }
}

impl Wal {
    /// Begins to read scattered durable entries of a group, in any order: those of the log and live ones below it. At
    /// least one, no more than `max_bytes` of them, about. [`poll_live`](Self::poll_live) has the result, under `id`.
    pub fn read_live<D: Disk>(
        &mut self,
        disk: &mut D,
        id: u64,
        group: GroupId,
        indexes: &[Index],
        max_bytes: usize,
    ) {
        let keys = indexes.iter().map(|index| (group, *index));
        self.begin_gather(disk, Want::Live { id }, group, keys, max_bytes);
    }

    /// As [`read_live`](Self::read_live), of any groups, for compaction. [`poll_moving`](Self::poll_moving) has the
    /// result.
    pub fn read_moving<D: Disk>(&mut self, disk: &mut D, keys: &[(GroupId, Index)], max_bytes: usize) {
        self.begin_gather(disk, Want::Moving, GroupId(0), keys.iter().copied(), max_bytes);
    }

    /// The result of a [`read_live`](Self::read_live) that is finished.
    pub fn poll_live(&mut self) -> Option<(u64, LiveOut)> {
        self.reads.live.pop_front()
    }

    /// The result of a [`read_moving`](Self::read_moving) that is finished.
    pub fn poll_moving(&mut self) -> Option<LiveOut> {
        self.reads.moving.pop_front()
    }

    pub(super) fn begin_gather<D: Disk>(
        &mut self,
        disk: &mut D,
        want: Want,
        of: GroupId,
        keys: impl Iterator<Item = (GroupId, Index)>,
        max_bytes: usize,
    ) {
        let needs_all = matches!(want, Want::Moving);
        let mut gather = Gather { max_bytes, needs_all, ..Gather::default() };
        let mut bytes = 0;
        let most = if needs_all { MOVING_KEYS_MAX } else { KEYS_MAX };
        for (group, index) in keys.take(most) {
            bytes += self.entry_bytes(group, index);
            if bytes > max_bytes as u64 && !gather.keys.is_empty() {
                break;
            }
            gather.keys.push(Key { group, index, cuts: 0, place: None, by_hint: false, found: None });
        }
        self.queue_job(want, of, Index::ZERO, Some(Box::new(gather)));
        self.step_reads(disk);
    }

    /// What an entry takes, about.
    fn entry_bytes(&self, group: GroupId, index: Index) -> u64 {
        let extent = self.groups.find(group).and_then(|group| group.extent_of(index));
        extent.map_or(0, |extent| extent.bytes / extent.count)
    }

    // ---- what to do next -----------------------------------------------------------------------------------------

    /// Finds out where all keys' runs lie that are not found yet. `Some`: something is to be done before.
    pub(super) fn locate_all(&mut self, gather: &mut Gather) -> Option<Next> {
        let needs_all = gather.needs_all;
        for key in gather.keys.iter_mut().filter(|key| key.found.is_none()) {
            let log = self.groups.find(key.group).filter(|log| log.cold.cuts == key.cuts);
            let extent = log.and_then(|log| log.extent_of(key.index));
            key.place =
                key.place.filter(|place| extent.is_some_and(|extent| extent.file_no == place.file_no));
            if key.place.is_none()
                && let Some(next) = self.locate(key, needs_all)
            {
                return Some(next);
            }
        }
        None
    }

    pub(super) fn next_for_gather(&mut self, gather: &mut Gather) -> Next {
        if let Some(next) = self.locate_all(gather) {
            return next;
        }
        gather.plan(|file_no| self.files.get(file_no).is_some_and(|file| file.handle.is_some()));
        if !gather.waiting.is_empty() {
            return Next::Gather;
        }
        let closed = gather.keys.iter().filter(|key| key.found.is_none()).find_map(|key| key.place);
        if let Some(place) = closed {
            return Next::Open { file_no: place.file_no };
        }
        let mut all_current = true;
        for key in &mut gather.keys {
            let held = self.held(key.group, key.index);
            match (&key.found, held) {
                // It was read, and may have been overwritten since; or it was not there, and now it is.
                (Some(Ok(_)), Ok(group)) if group.cold.cuts != key.cuts => {
                    (key.found, key.place) = (None, None)
                }
                (Some(Err(ReadError::Released { .. })), Ok(_)) => (key.found, key.place) = (None, None),
                (Some(Ok(_)), Err(released)) => key.found = Some(Err(released)),
                _ => {}
            }
            all_current &= key.found.is_some();
        }
        if all_current { Next::Finish } else { Next::Again }
    }

    fn held(&self, group: GroupId, index: Index) -> Result<&Group, ReadError> {
        let found = self.groups.find(group).filter(|group| group.extent_of(index).is_some());
        found.ok_or_else(|| {
            let log = self.groups.find(group).map(Group::log);
            let (first, last) = log.map_or((Index(1), Index::ZERO), |log| (log.first, log.last));
            ReadError::Released { index, first, last }
        })
    }

    /// Finds out where a key's run lies, or that it cannot be read. `Some`: something is to be done before.
    fn locate(&mut self, key: &mut Key, needs_all: bool) -> Option<Next> {
        let index = key.index;
        let group = match self.held(key.group, index) {
            Ok(group) => group,
            Err(error) => {
                key.found = Some(Err(error));
                return None;
            }
        };
        let extent = group.extent_of(index)?;
        key.cuts = group.cold.cuts;
        let file_no = extent.file_no;
        if self.files.get(file_no).is_none() {
            key.found = Some(Err(self.missing(file_no, index)));
            return None;
        }
        let (offset, count) = match self.look_up(key.group, &extent, index, needs_all) {
            Lookup::At { offset, count, by_hint } => {
                key.by_hint = by_hint;
                (u64::from(offset), count)
            }
            Lookup::Nowhere => {
                key.found = Some(Err(self.corrupt(file_no, index, "its run is damaged")));
                return None;
            }
            Lookup::NotDurable => {
                key.found = Some(Err(ReadError::NotDurable { index }));
                return None;
            }
            Lookup::Before(next) => return Some(next),
        };
        let entries = extent.bytes / extent.count * u64::from(count);
        let bytes = RUN_HEADER_BYTES as u64 + entries.clamp(ENTRY_HEADER_BYTES as u64, SPAN_BYTES_MAX);
        key.place = Some(Place { file_no, offset, bytes });
        None
    }

    /// Starts as many reads as may be in flight.
    pub(super) fn start_spans<D: Disk>(&mut self, disk: &mut D, seat: usize, gather: &mut Gather) {
        gather.flying.resize_with(FLIGHTS_MAX, || None);
        for slot in 0..FLIGHTS_MAX {
            while gather.flying[slot].is_none()
                && let Some(mut span) = gather.waiting.pop()
            {
                span.keys.retain(|at| {
                    let Some(key) = gather.keys.get_mut(*at) else { return false };
                    let is_there = self.groups.find(key.group).is_some_and(|group| {
                        group.cold.cuts == key.cuts
                            && group
                                .extent_of(key.index)
                                .is_some_and(|extent| extent.file_no == span.from.file_no)
                    });
                    if !is_there {
                        key.place = None;
                    }
                    is_there
                });
                let is_open = self.files.get(span.from.file_no).is_some_and(|file| file.handle.is_some());
                if !span.keys.is_empty() && is_open {
                    self.start_read(disk, seat, slot, span.from, span.bytes as usize);
                    gather.flying[slot] = Some(span);
                }
            }
        }
    }

    /// What lies in this file cannot be read.
    pub(super) fn fail_keys(&self, gather: &mut Gather, file_no: u64, error: &DiskError) {
        for key in gather.keys.iter_mut().filter(|key| key.found.is_none()) {
            let extent = self.groups.find(key.group).and_then(|group| group.extent_of(key.index));
            if extent.is_some_and(|extent| extent.file_no == file_no) {
                key.found = Some(Err(error.clone().into()));
            }
        }
    }

    /// One of the job's reads has completed.
    pub(super) fn on_span<D: Disk>(&mut self, disk: &mut D, job: &mut Job, number: usize, done: &DiskDone) {
        let Some(gather) = &mut job.gather else { return };
        let Some(span) = gather.flying.get_mut(number).and_then(Option::take) else { return };
        self.let_go(span.from.file_no);
        let mut keys = Vec::with_capacity(span.keys.len());
        for at in span.keys.iter().copied() {
            let Some(key) = gather.keys.get_mut(at) else { continue };
            if self.groups.find(key.group).is_some_and(|group| group.cold.cuts == key.cuts) {
                keys.push(at);
            } else {
                // It may have been overwritten in the same file: what was read is no longer what was looked for.
                key.place = None;
            }
        }
        match (&done.result, &done.buf) {
            (Err(error), _) => {
                keys.iter().for_each(|at| gather.keys[*at].found = Some(Err(error.clone().into())));
            }
            (Ok(DiskOk::Read { bytes }), Some(buf)) => {
                let bytes = &buf[..(*bytes).min(buf.len())];
                let runs: Vec<&[usize]> =
                    keys.chunk_by(|one, next| gather.keys[*one].place == gather.keys[*next].place).collect();
                runs.iter().for_each(|of_run| self.take_run_of(gather, &span, bytes, of_run));
                self.look_again_where_led_astray(gather, &span, &keys);
            }
            // No answer to a read.
            _ => {}
        }
        shed(&mut gather.keys, gather.max_bytes, |key| &key.found);
        self.start_spans(disk, job.seat, gather);
        job.doing = if gather.is_flying() { Doing::Gathering } else { Doing::Nothing };
    }

    /// Takes the entries of one run from the bytes of its span; if it goes on beyond them, all of it is read next time.
    fn take_run_of(&self, gather: &mut Gather, span: &Span, bytes: &[u8], of_run: &[usize]) {
        let Some(place) = of_run.first().and_then(|at| gather.keys[*at].place) else { return };
        let found = run_at(span, place, bytes);
        let mut entries = match &found {
            Found::Run(run) => Some(RunEntries::new(*run)),
            Found::Longer(_) | Found::Damaged(_) => None,
        };
        for at in of_run {
            let key = &mut gather.keys[*at];
            match (&found, &mut entries) {
                (Found::Longer(bytes), _) => key.place = Some(Place { bytes: *bytes, ..place }),
                (Found::Damaged(why), _) => {
                    key.found = Some(Err(self.corrupt(place.file_no, key.index, why)));
                }
                (Found::Run(_), Some(entries)) => {
                    key.found = Some(self.take_entry(entries, key.group, key.index, place.file_no));
                }
                (Found::Run(_), None) => {}
            }
        }
    }

    /// What was not where an index in the log said is looked for by a scan.
    fn look_again_where_led_astray(&mut self, gather: &mut Gather, span: &Span, keys: &[usize]) {
        for at in keys {
            let key = &mut gather.keys[*at];
            if matches!(key.found, Some(Err(ReadError::Corrupt { .. }))) && std::mem::take(&mut key.by_hint) {
                (key.found, key.place) = (None, None);
                self.distrust_index(span.from.file_no);
            }
        }
    }

    fn take_entry(
        &self,
        entries: &mut RunEntries<'_>,
        group: GroupId,
        index: Index,
        file_no: u64,
    ) -> Fetched {
        let log = self.held(group, index)?;
        // Of live entries below the log the term is not kept: their place says which they are.
        let lies_here = log.extent_of(index).is_some_and(|extent| extent.file_no == file_no);
        let term = if index > log.base && lies_here { log.term_at(index) } else { None };
        entries.take(group, index, term).map_err(|why| self.corrupt(file_no, index, why))
    }
}
