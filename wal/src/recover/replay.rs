//! From batches to groups: a checkpoint's pages, and every record after it.
//!
//! A page says what its groups are at its own place in the log, so it replaces whatever the records before it made of
//! them; those may have made little sense without it. Records after it come on top.

use std::collections::BTreeMap;

use coracle_base::codec::Reader;
use coracle_base::{GroupId, RunHeader, RunRef};

use super::roots::FoundRoot;
use super::scan::Sink;
use crate::error::WalError;
use crate::files::log_path;
use crate::format::Position;
use crate::format::batch::{BATCH_HEADER_BYTES, BatchHead};
use crate::format::file_index::{IndexPlace, body_crc};
use crate::format::page::{Page, PageCopy, Part, Piece, Root, SnapshotPlace};
use crate::format::record::{IndexRange, RANGE_BYTES, RECORD_HEADER_BYTES, Record, RecordError};
use crate::groups::{Fit, Group, Groups, Refs};

/// Durable batches that cannot be read any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hole {
    /// The file in which it begins.
    pub file: std::path::PathBuf,
    /// Its offset there.
    pub offset: u64,
    /// The first batch lost.
    pub first_seq: u64,
    /// The last batch lost.
    pub last_seq: u64,
}

/// A replay from one checkpoint, or from the beginning of the log.
pub(crate) struct Replay<'a> {
    dir: &'a std::path::Path,
    pub(crate) groups: Groups,
    pub(crate) refs: Refs,
    /// The checkpoint to begin with.
    root: Option<Root>,
    pages_met: u32,
    /// The highest number of a checkpoint of which a page or the root was met.
    pub(crate) last_checkpoint: u64,
    /// The last two roots that were met after the one that the replay began with, the newest last.
    pub(super) later: Vec<FoundRoot>,
    /// Where the present batch begins.
    batch_at: Position,
    /// Of the identity of its file.
    uuid_low: u64,
    /// The checkpoint's root was met after all of its pages.
    pub(crate) complete: bool,
    /// Records may have been lost before here, of groups that nothing names so far.
    pub(crate) incomplete: bool,
    /// And their states for good.
    states_lost: bool,
    /// The checkpoint cannot be completed any more.
    failed: bool,
    parts: Vec<Part>,
    /// The highest number of a file that entries were moved from or to.
    pub(crate) segments_upto: u64,
    /// Where indexes of files lie, by file.
    pub(crate) indexes: BTreeMap<u64, IndexPlace>,
    /// Copies of pages that did not hold; the other copy served.
    pub(crate) damaged_pages: u32,
    pub(crate) batches: u64,
    pub(crate) records: u64,
    pub(crate) holes: Vec<Hole>,
    /// The last batch of a hole, if it is the only one: the batch after it may tell which groups it was about.
    unnamed: Option<u64>,
    /// A lost batch whose states may be written once more in later ones of the same start: (its number, that start).
    states_missing: Option<(u64, u32)>,
    /// The start that wrote the last batch.
    boot_epoch: u32,
    /// The last file of which a batch was taken, and the first.
    pub(crate) files: Option<(u64, u64)>,
    /// Where the batches of each file end, as far as they can be read.
    pub(crate) ends: BTreeMap<u64, u64>,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(dir: &'a std::path::Path, shards: u16, root: Option<Root>) -> Self {
        Self {
            dir,
            groups: Groups::new(shards),
            refs: Refs::default(),
            complete: root.is_none(),
            incomplete: root.as_ref().is_some_and(|root| root.incomplete),
            states_lost: false,
            root,
            pages_met: 0,
            last_checkpoint: 0,
            later: Vec::new(),
            batch_at: Position::default(),
            uuid_low: 0,
            failed: false,
            parts: Vec::new(),
            segments_upto: 0,
            indexes: BTreeMap::new(),
            damaged_pages: 0,
            batches: 0,
            records: 0,
            holes: Vec::new(),
            unnamed: None,
            states_missing: None,
            boot_epoch: 0,
            files: None,
            ends: BTreeMap::new(),
        }
    }

    /// What is lost for good is noted in the groups.
    pub(crate) fn finish(&mut self, tail_suspect: bool) {
        if self.unnamed.take().is_some() {
            self.suspect_all();
        }
        self.incomplete |= tail_suspect;
        if self.states_missing.take().is_some() || tail_suspect {
            self.groups.iter_mut().for_each(|group| group.cold.state_lost = true);
        }
        if tail_suspect {
            self.groups.iter_mut().for_each(|group| group.cold.suspect = true);
        }
    }

    /// Nobody knows which groups a hole was about.
    fn suspect_all(&mut self) {
        self.groups.iter_mut().for_each(|group| group.cold.suspect = true);
        self.incomplete = true;
    }

    /// The batch after a hole was read: its roster, if it has one, names the groups that lost something.
    fn explain_hole(&mut self, seq: u64, records: &[(Record<'_>, Position)]) {
        let Some(lost) = self.unnamed.take() else { return };
        let named = records.iter().find_map(|(record, _)| match record {
            Record::Roster(groups) => Some(groups),
            _ => None,
        });
        match named.filter(|_| seq == lost + 1) {
            Some(groups) => {
                for group in groups {
                    let slot = self.groups.slot_or_new(*group);
                    self.groups.at_mut(slot).cold.suspect = true;
                }
            }
            None => self.suspect_all(),
        }
    }

    /// A group's slot. One that is met only after records were lost may have had some of them.
    fn slot(&mut self, id: GroupId) -> usize {
        let known = self.groups.len();
        let slot = self.groups.slot_or_new(id);
        if self.incomplete && slot == known {
            let group = self.groups.at_mut(slot);
            (group.cold.suspect, group.cold.state_lost) = (true, self.states_lost);
        }
        slot
    }

    fn apply(&mut self, record: Record<'_>, body: Position, seq: u64) -> bool {
        match record {
            Record::Run(run) => self.apply_run(run, body, seq),
            Record::State { group, blob } => {
                let slot = self.slot(group);
                self.groups.at_mut(slot).cold.state = blob.to_vec();
            }
            Record::Snapshot(snapshot) => {
                let slot = self.slot(snapshot.group);
                let at = Position { offset: body.offset - RECORD_HEADER_BYTES as u64, ..body };
                let bytes = RANGE_BYTES * snapshot.live.len() + snapshot.bytes.len();
                let place = SnapshotPlace::Inline { at, bytes: bytes as u32 };
                let group = self.groups.at_mut(slot);
                group.install(snapshot.index, snapshot.term, place, &snapshot.live, seq, &mut self.refs);
            }
            Record::Mark(mark) => {
                let slot = self.slot(mark.group);
                let place = SnapshotPlace::File(mark.file);
                let group = self.groups.at_mut(slot);
                group.install(mark.index, mark.term, place, &mark.live, seq, &mut self.refs);
            }
            Record::Place(run) => {
                let slot = self.slot(run.header.group);
                let (range, bytes) = placed(&run.header);
                #[cfg(feature = "breaks")]
                if crate::breaks::is_on(crate::breaks::Break::PlaceTruncates) {
                    self.groups.at_mut(slot).cut(range.first, seq, &mut self.refs);
                }
                let (group, runs) = self.groups.with_runs(slot);
                group.place(range, bytes, body, &mut self.refs, runs);
            }
            Record::Moved(moved) => {
                self.segments_upto = self.segments_upto.max(moved.from).max(moved.to);
                let slot = self.slot(moved.group);
                let group = self.groups.at_mut(slot);
                group.moved(moved.from, moved.to, &moved.ranges, seq, &mut self.refs);
            }
            Record::Deleted(group) => {
                let slot = self.slot(group);
                self.groups.at_mut(slot).delete(seq, &mut self.refs);
            }
            Record::Page(page) => {
                self.last_checkpoint = self.last_checkpoint.max(page.checkpoint);
                return self.apply_page(page, seq);
            }
            Record::Root(root) => self.apply_root(root, seq),
            Record::IndexDirectory(directory, encoded) => {
                let at = Position { offset: body.offset - RECORD_HEADER_BYTES as u64, ..body };
                let crc = body_crc(self.uuid_low, encoded);
                let place = IndexPlace {
                    of: directory.of,
                    first_file: directory.first_file(at.file_no),
                    directory: Piece { at, bytes: encoded.len() as u32, crc },
                };
                self.indexes.insert(directory.of.file_no, place);
            }
            Record::IndexList(places) => {
                self.indexes.extend(places.into_iter().map(|place| (place.of.file_no, place)));
            }
            // It is about the batch before, and was looked at if that one was lost.
            Record::Roster(_) | Record::IndexBlock | Record::Skipped => {}
        }
        true
    }

    fn apply_run(&mut self, run: RunRef<'_>, at: Position, seq: u64) {
        let slot = self.slot(run.header.group);
        let (group, runs) = self.groups.with_runs(slot);
        #[cfg(feature = "breaks")]
        if crate::breaks::is_on(crate::breaks::Break::HigherTermWinsReplay)
            && run.term_spans().next().map(|(term, _)| term) < group.term_at(run.header.first())
        {
            return;
        }
        match group.append(&run.header, run.term_spans(), at, seq, &mut self.refs, runs) {
            Fit::Fits => {}
            Fit::Gap => group.cold.suspect = true,
            Fit::Mismatch => {
                group.cold.suspect = true;
                group.cut(run.header.prev_index, seq, &mut self.refs);
            }
        }
    }

    /// False if the page contradicts itself.
    fn apply_page(&mut self, page: Page, seq: u64) -> bool {
        let Some(root) = self.root.as_ref().filter(|root| root.checkpoint == page.checkpoint) else {
            return true;
        };
        if self.complete || page.page_no != self.pages_met || page.page_no >= root.page_count {
            self.failed |= !self.complete;
            return true;
        }
        self.pages_met += 1;
        for part in page.parts {
            let more = part.more;
            self.parts.push(part);
            if !more {
                let parts = std::mem::take(&mut self.parts);
                if !self.apply_parts(&parts, seq) {
                    self.failed = true;
                    return false;
                }
            }
        }
        true
    }

    /// The pages that the root only names, to be read.
    pub(super) fn take_kept(&mut self) -> Vec<[PageCopy; 2]> {
        self.root.as_mut().map_or(Vec::new(), |root| std::mem::take(&mut root.kept))
    }

    /// Takes a whole page. False if it contradicts itself.
    pub(super) fn take_parts(&mut self, parts: Vec<Part>) -> bool {
        let mut of_group = Vec::new();
        for part in parts {
            let more = part.more;
            of_group.push(part);
            if !more && !self.apply_parts(&std::mem::take(&mut of_group), 0) {
                return false;
            }
        }
        of_group.is_empty()
    }

    fn apply_parts(&mut self, parts: &[Part], seq: u64) -> bool {
        let id = parts.first().map_or(GroupId(0), |part| part.group);
        if parts.iter().any(|part| part.group != id) {
            return false;
        }
        let slot = self.slot(id);
        self.groups.at_mut(slot).become_parts(parts, seq, &mut self.refs)
    }

    fn apply_root(&mut self, root: Root, seq: u64) {
        self.last_checkpoint = self.last_checkpoint.max(root.checkpoint);
        let Some(ours) = self.root.as_ref().filter(|ours| ours.checkpoint == root.checkpoint) else {
            if self.complete {
                self.later.drain(..self.later.len().saturating_sub(1));
                self.later.push(FoundRoot { root, seq, at: self.batch_at });
            }
            return;
        };
        #[cfg(feature = "breaks")]
        if crate::breaks::is_on(crate::breaks::Break::TornCheckpointAccepted) {
            (self.pages_met, self.failed) = (ours.page_count, false);
        }
        if self.pages_met == ours.page_count && self.parts.is_empty() && !self.failed {
            self.complete = true;
        } else {
            self.failed = true;
        }
    }
}

impl Sink for Replay<'_> {
    fn batch(&mut self, at: Position, head: &BatchHead, payload: &[u8]) -> Result<bool, WalError> {
        let body_of = |reader: &Reader<'_>| {
            let within = payload.len() - reader.rest().len() + RECORD_HEADER_BYTES;
            Position { offset: at.offset + (BATCH_HEADER_BYTES + within) as u64, ..at }
        };
        (self.batch_at, self.uuid_low) = (at, head.uuid_low);
        let mut records = Vec::with_capacity(head.record_count as usize);
        let mut reader = Reader::new(payload);
        while !reader.is_empty() {
            let body = body_of(&reader);
            match Record::read(&mut reader) {
                Ok(record) => records.push((record, body)),
                Err(RecordError::Unknown(kind)) => {
                    let file = log_path(self.dir, at.file_no);
                    return Err(WalError::UnknownRecord { file, offset: at.offset, kind });
                }
                Err(_) => break,
            }
        }
        if records.len() != head.record_count as usize && !takes_anything() {
            return Ok(false);
        }
        self.batches += 1;
        self.records += records.len() as u64;
        self.explain_hole(head.seq, &records);
        for (record, body) in records {
            if !self.apply(record, body, head.seq) {
                break;
            }
        }
        let repeats = |(lost, epoch)| epoch == head.boot_epoch && head.repeated_upto >= lost;
        if self.states_missing.is_some_and(repeats) {
            self.states_missing = None;
        }
        self.boot_epoch = head.boot_epoch;
        let first = self.files.map_or(at.file_no, |(first, _)| first);
        self.files = Some((first, at.file_no));
        self.ends.insert(at.file_no, at.offset + head.batch_bytes());
        Ok(true)
    }

    fn hole(&mut self, at: Position, first: u64, last: u64) {
        let file = log_path(self.dir, at.file_no);
        self.holes.push(Hole { file, offset: at.offset, first_seq: first, last_seq: last });
        let is_one_batch = first == last && self.unnamed.is_none();
        self.unnamed = is_one_batch.then_some(last);
        if !is_one_batch {
            self.suspect_all();
        }
        // A state is written once more in the very next batch. If that is lost too, or never came, so is the state.
        let lost_before = self.states_missing.replace((last, self.boot_epoch)).is_some();
        if lost_before || last > first {
            self.groups.iter_mut().for_each(|group| group.cold.state_lost = true);
            self.states_lost = true;
        }
        self.groups.miss_runs();
        // Until a later batch says more.
        self.ends.insert(at.file_no, u64::MAX);
    }

    fn is_done(&self) -> bool {
        #[cfg(feature = "breaks")]
        if crate::breaks::is_on(crate::breaks::Break::TornCheckpointAccepted) {
            return false;
        }
        self.failed
    }
}

/// Which entries a placed run holds, and what they take.
pub(crate) fn placed(header: &RunHeader) -> (IndexRange, u64) {
    (IndexRange { first: header.first(), count: u64::from(header.count) }, header.encoded_bytes() as u64)
}

/// A planted bug takes what it can of a batch that does not hold.
fn takes_anything() -> bool {
    #[cfg(feature = "breaks")]
    return crate::breaks::is_on(crate::breaks::Break::TornTailAccepted);
    #[cfg(not(feature = "breaks"))]
    false
}

impl Group {
    /// Entries held.
    pub(crate) fn entries(&self) -> u64 {
        self.last.since(self.base)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use coracle_base::codec::Sink as _;

    use super::*;
    use crate::format::record::{RecordKind, put_header};

    /// A batch with one state, or with none.
    fn batch(replay: &mut Replay<'_>, seq: u64, boot_epoch: u32, repeated_upto: u64, state: Option<&[u8]>) {
        let mut payload = Vec::new();
        if let Some(state) = state {
            put_header(RecordKind::State, false, 8 + state.len(), &mut payload);
            payload.put_u64(5);
            payload.put(state);
        }
        let record_count = u32::from(state.is_some());
        let head = BatchHead { seq, boot_epoch, repeated_upto, record_count, ..BatchHead::default() };
        assert!(replay.batch(Position::default(), &head, &payload).unwrap());
    }

    /// What is said of the state of a group after batches 2 to `last` were lost, given who wrote the next one.
    fn after_hole(last: u64, next_epoch: u32, repeated_upto: u64) -> (bool, bool) {
        let mut replay = Replay::new(Path::new("d"), 1, None);
        batch(&mut replay, 1, 7, 0, Some(b"voted"));
        replay.hole(Position::default(), 2, last);
        batch(&mut replay, last + 1, next_epoch, repeated_upto, None);
        replay.finish(false);
        let group = replay.groups.find(GroupId(5)).unwrap();
        assert_eq!(group.cold.state, b"voted");
        (group.cold.suspect, group.cold.state_lost)
    }

    #[test]
    fn a_lost_state_is_certain_to_come_again_only_in_the_next_batch_of_the_same_start() {
        assert_eq!(after_hole(2, 7, 2), (true, false));
        assert_eq!(after_hole(2, 7, 1), (true, true), "not everything was repeated");
        assert_eq!(after_hole(2, 8, 2), (true, true), "a new start repeats nothing of the one before");
        assert_eq!(
            after_hole(3, 7, 3),
            (true, true),
            "what the first held may have been repeated in the second"
        );
    }

    /// What a group first met after a hole had before it is not known: it may have been in there.
    #[test]
    fn a_group_met_after_a_hole_is_suspect() {
        let met_after = |last| {
            let mut replay = Replay::new(Path::new("d"), 1, None);
            batch(&mut replay, 1, 7, 0, None);
            assert!(!replay.incomplete);
            replay.hole(Position::default(), 2, last);
            batch(&mut replay, last + 1, 7, last, Some(b"voted"));
            replay.finish(false);
            let group = replay.groups.find(GroupId(5)).unwrap();
            (replay.incomplete, group.cold.suspect, group.cold.state_lost)
        };
        assert_eq!(met_after(2), (true, true, false), "its state was repeated, or came later");
        assert_eq!(met_after(3), (true, true, true));
    }

    #[test]
    fn records_that_contradict_their_header_are_not_taken() {
        let mut replay = Replay::new(Path::new("d"), 1, None);
        let head = BatchHead { seq: 1, record_count: 2, ..BatchHead::default() };
        let mut payload = Vec::new();
        put_header(RecordKind::State, false, 9, &mut payload);
        payload.put_u64(5);
        payload.put_u8(1);
        assert!(!replay.batch(Position::default(), &head, &payload).unwrap());
        assert!(replay.groups.find(GroupId(5)).is_none());
    }
}
