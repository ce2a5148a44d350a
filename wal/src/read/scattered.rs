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

use coracle_base::limits::{BATCH_BYTES_MAX, BLOCK_BYTES};
use coracle_base::run::{ENTRY_HEADER_BYTES, Entries, RUN_HEADER_BYTES};
use coracle_base::{GroupId, Index, RunError, RunRef};
use coracle_io::{Disk, DiskDone, DiskError, DiskOk};

use super::{Doing, Job, Next, Want};
use crate::error::ReadError;
use crate::format::{Position, SEGMENT};
use crate::groups::Group;
use crate::wal::Wal;

/// Entries in one read at most; the result says how many of those asked for it has.
const KEYS_MAX: usize = 1024;
/// Reads of one job in flight.
const FLIGHTS_MAX: usize = 8;
/// Entries that lie no further apart are read together.
const GAP_BYTES_MAX: u64 = 64 * 1024;
/// Unless together they are more than this.
const SPAN_BYTES_MAX: u64 = 512 * 1024;

/// An entry with its header, or why it could not be read.
pub(crate) type Fetched = Result<Vec<u8>, ReadError>;

/// Scattered entries read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveOut {
    /// The first of those that were asked for, in that order: at least one, and as many as fit the bytes that were
    /// allowed. Each is encoded, with its header; its checksum was checked.
    pub entries: Vec<(GroupId, Index, Result<Vec<u8>, ReadError>)>,
}

/// Where an entry's run lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    file_no: u64,
    offset: u64,
    /// As many as the run has, about.
    bytes: u64,
}

#[derive(Debug)]
struct Key {
    group: GroupId,
    index: Index,
    /// The group's cuts when it was read.
    cuts: u64,
    place: Option<Place>,
    found: Option<Fetched>,
}

/// Bytes to be read at once, and whose they are.
#[derive(Debug)]
struct Span {
    from: Position,
    bytes: u64,
    keys: Vec<usize>,
}

/// One job's entries.
#[derive(Debug, Default)]
pub(super) struct Gather {
    keys: Vec<Key>,
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

    /// Neighbours together.
    fn plan(&mut self, is_open: impl Fn(u64) -> bool) {
        let wanted = |key: &Key| key.found.is_none() && key.place.is_some_and(|place| is_open(place.file_no));
        let mut order: Vec<(Place, usize)> = Vec::new();
        for (at, key) in self.keys.iter().enumerate().filter(|(_, key)| wanted(key)) {
            order.extend(key.place.map(|place| (place, at)));
        }
        order.sort_unstable();
        let mut spans: Vec<Span> = Vec::new();
        for (place, key) in order {
            let end = place.offset + place.bytes;
            match spans.last_mut() {
                Some(span)
                    if span.from.file_no == place.file_no
                        && place.offset <= span.from.offset + span.bytes + GAP_BYTES_MAX
                        && end <= span.from.offset + SPAN_BYTES_MAX.max(span.bytes) =>
                {
                    span.bytes = span.bytes.max(end - span.from.offset);
                    span.keys.push(key);
                }
                _ => {
                    let start = place.offset / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
                    let from = Position { file_no: place.file_no, offset: start };
                    spans.push(Span { from, bytes: end - start, keys: vec![key] });
                }
            }
        }
        spans.reverse();
        self.waiting = spans;
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
        let keys: Vec<_> = indexes.iter().take(KEYS_MAX).map(|index| (group, *index)).collect();
        self.begin_gather(disk, Want::Live { id }, &keys, max_bytes);
    }

    /// As [`read_live`](Self::read_live), of any groups, for compaction. [`poll_moving`](Self::poll_moving) has the
    /// result.
    pub fn read_moving<D: Disk>(&mut self, disk: &mut D, keys: &[(GroupId, Index)], max_bytes: usize) {
        self.begin_gather(disk, Want::Moving, keys, max_bytes);
    }

    /// The result of a [`read_live`](Self::read_live) that is finished.
    pub fn poll_live(&mut self) -> Option<(u64, LiveOut)> {
        self.reads.live.pop_front()
    }

    /// The result of a [`read_moving`](Self::read_moving) that is finished.
    pub fn poll_moving(&mut self) -> Option<LiveOut> {
        self.reads.moving.pop_front()
    }

    fn begin_gather<D: Disk>(
        &mut self,
        disk: &mut D,
        want: Want,
        keys: &[(GroupId, Index)],
        max_bytes: usize,
    ) {
        let mut gather = Gather::default();
        let mut bytes = 0;
        for (group, index) in keys.iter().take(KEYS_MAX) {
            bytes += self.entry_bytes(*group, *index);
            if bytes > max_bytes as u64 && !gather.keys.is_empty() {
                break;
            }
            gather.keys.push(Key { group: *group, index: *index, cuts: 0, place: None, found: None });
        }
        self.queue_job(want, GroupId(0), Index::ZERO, Some(Box::new(gather)));
        self.step_reads(disk);
    }

    /// What an entry takes, about.
    fn entry_bytes(&self, group: GroupId, index: Index) -> u64 {
        let extent = self.groups.find(group).and_then(|group| group.extent_of(index));
        extent.map_or(0, |extent| extent.bytes / extent.count)
    }

    // ---- what to do next -----------------------------------------------------------------------------------------

    pub(super) fn next_for_gather(&mut self, gather: &mut Gather) -> Next {
        for key in gather.keys.iter_mut().filter(|key| key.found.is_none()) {
            let extent = self.groups.find(key.group).and_then(|group| group.extent_of(key.index));
            key.place =
                key.place.filter(|place| extent.is_some_and(|extent| extent.file_no == place.file_no));
            if key.place.is_none()
                && let Some(next) = self.locate(key)
            {
                return next;
            }
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
        for key in gather.keys.iter_mut().filter(|key| matches!(key.found, Some(Ok(_)))) {
            if self.groups.find(key.group).is_some_and(|group| group.cuts != key.cuts) {
                // It may have been overwritten since it was read.
                (key.found, key.place) = (None, None);
                all_current = false;
            } else if let Err(released) = self.held(key.group, key.index) {
                key.found = Some(Err(released));
            }
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
    fn locate(&mut self, key: &mut Key) -> Option<Next> {
        let index = key.index;
        let group = match self.held(key.group, index) {
            Ok(group) => group,
            Err(error) => {
                key.found = Some(Err(error));
                return None;
            }
        };
        let extent = group.extent_of(index)?;
        key.cuts = group.cuts;
        let file_no = extent.file_no;
        let Some(file) = self.files.get(file_no) else {
            key.found = Some(Err(self.corrupt(file_no, index, "the file is missing")));
            return None;
        };
        let is_whole = self.is_whole_on_disk(file_no, file);
        let run = match group.run_of(file_no, index, self.groups.runs()) {
            Some(run) => Some((run.offset, run.count)),
            None => match self.reads.index(file_no, &self.groups, self.stage_file) {
                Some(found) => found.find(key.group, index).map(|run| (run.offset, run.count)),
                None if !is_whole => {
                    key.found = Some(Err(ReadError::NotDurable { index }));
                    return None;
                }
                None if file.handle.is_none() => return Some(Next::Open { file_no }),
                None => return Some(Next::Load(Box::new(super::load::Load::new(file_no, file)))),
            },
        };
        let Some((offset, count)) = run else {
            key.found = Some(Err(self.corrupt(file_no, index, "its run is damaged")));
            return None;
        };
        let at = Position { file_no, offset: u64::from(offset) };
        if file_no & SEGMENT == 0 && at >= self.durable_at {
            key.found = Some(Err(ReadError::NotDurable { index }));
            return None;
        }
        let entries = extent.bytes / extent.count * u64::from(count);
        let bytes = RUN_HEADER_BYTES as u64 + entries.clamp(ENTRY_HEADER_BYTES as u64, SPAN_BYTES_MAX);
        key.place = Some(Place { file_no, offset: at.offset, bytes });
        None
    }

    /// Starts as many reads as may be in flight.
    pub(super) fn start_spans<D: Disk>(&mut self, disk: &mut D, gather: &mut Gather) {
        gather.flying.resize_with(FLIGHTS_MAX, || None);
        for slot in 0..FLIGHTS_MAX {
            while gather.flying[slot].is_none()
                && let Some(mut span) = gather.waiting.pop()
            {
                span.keys.retain(|at| {
                    let key = &mut gather.keys[*at];
                    let is_there = self.groups.find(key.group).is_some_and(|group| {
                        group.cuts == key.cuts
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
                    self.start_read(disk, slot as u64, span.from, span.bytes as usize);
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
    pub(super) fn on_span<D: Disk>(&mut self, disk: &mut D, job: &mut Job, number: u64, done: &DiskDone) {
        let Some(gather) = &mut job.gather else { return };
        let Some(span) = gather.flying.get_mut(number as usize).and_then(Option::take) else { return };
        self.let_go(span.from.file_no);
        for at in &span.keys {
            let key = &mut gather.keys[*at];
            let bytes = match (&done.result, &done.buf) {
                (Ok(DiskOk::Read { bytes }), Some(buf)) => &buf[..(*bytes).min(buf.len())],
                (Err(error), _) => {
                    key.found = Some(Err(error.clone().into()));
                    continue;
                }
                _ => &[],
            };
            self.take_entry(key, &span, bytes);
        }
        self.start_spans(disk, gather);
        job.doing = if gather.is_flying() { Doing::Gathering } else { Doing::Nothing };
    }

    /// Takes a key's entry from the bytes of its span; if its run goes on beyond them, the whole run is read next time.
    fn take_entry(&self, key: &mut Key, span: &Span, bytes: &[u8]) {
        let Some(place) = key.place else { return };
        let (file_no, index) = (place.file_no, key.index);
        let at = (place.offset - span.from.offset) as usize;
        let found = match RunRef::parse(bytes.get(at..).unwrap_or_default()) {
            Ok(run) => self.entry_of(key.group, run, index, file_no),
            Err(RunError::Truncated(short)) => {
                let have = bytes.len().saturating_sub(at);
                let wanted = (have + short.missing) as u64;
                let is_short = bytes.len() < span.bytes as usize;
                if is_short || wanted <= place.bytes || wanted > (BATCH_BYTES_MAX + BLOCK_BYTES) as u64 {
                    Err(self.corrupt(file_no, index, "its run ends beyond the file"))
                } else {
                    key.place = Some(Place { bytes: wanted, ..place });
                    return;
                }
            }
            Err(error) => Err(self.corrupt(file_no, index, &error.to_string())),
        };
        key.found = Some(found);
    }

    fn entry_of(&self, group: GroupId, run: RunRef<'_>, index: Index, file_no: u64) -> Fetched {
        let mut entries = Entries::new(run.header.first(), run.body);
        let (encoded, entry) = loop {
            let encoded = entries.rest();
            match entries.next() {
                Some(entry) if run.header.group == group && entry.index == index => {
                    break (&encoded[..encoded.len() - entries.rest().len()], entry);
                }
                Some(_) => {}
                None => return Err(self.corrupt(file_no, index, "another run lies there")),
            }
        };
        let log = self.held(group, index)?;
        // Of live entries below the log the term is not kept: their place says which they are.
        let is_other = index > log.base && log.term_at(index) != Some(entry.header.term);
        if is_other && log.extent_of(index).is_some_and(|extent| extent.file_no == file_no) {
            return Err(self.corrupt(file_no, index, "it is of another term"));
        }
        if coracle_base::checksum::crc32c(entry.payload) != entry.header.payload_crc {
            return Err(self.corrupt(file_no, index, "its payload checksum does not hold"));
        }
        Ok(encoded.to_vec())
    }
}
