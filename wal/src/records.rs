//! Staging of the rarer records: snapshots, placed entries, moves, deletions. Each is taken into the groups at once, by the
//! same functions that a replay uses.

use coracle_base::codec::Sink;
use coracle_base::limits::{BATCH_BYTES_MAX, INLINE_SNAPSHOT_BYTES_MAX};
use coracle_base::{GroupId, Index, RunHeader, Term};

use crate::format::Position;
use crate::format::head::HEAD_AREA_BYTES;
use crate::format::page::{SnapshotFile, SnapshotPlace};
use crate::format::record::{
    self, DELETED_BYTES, IndexRange, MARK_PREFIX_BYTES, MOVED_PREFIX_BYTES, Mark, Moved, RANGE_BYTES,
    RECORD_HEADER_BYTES, RecordKind, SNAPSHOT_PREFIX_BYTES, SnapshotRef,
};
use crate::recover::placed;
use crate::wal::{BatchSeq, Wal};

/// Live ranges in one record, at most: a quarter of the largest batch.
const RANGES_MAX: usize = BATCH_BYTES_MAX / 4 / RANGE_BYTES;

impl Wal {
    /// Stages a small snapshot and releases the log up to `index`, but for the entries in `live` (in order): what lies
    /// above stays if the log holds (index, term), otherwise the whole log is dropped. A snapshot older than the present
    /// one is not written. Returns its batch.
    ///
    /// # Panics
    /// If it is larger than `INLINE_SNAPSHOT_BYTES_MAX`, or its index is 0.
    pub fn put_snapshot(
        &mut self,
        group: GroupId,
        index: Index,
        term: Term,
        live: &[IndexRange],
        bytes: &[u8],
    ) -> BatchSeq {
        assert!(bytes.len() <= INLINE_SNAPSHOT_BYTES_MAX, "an inline snapshot of {} bytes", bytes.len());
        assert!(index > Index::ZERO, "a snapshot of nothing");
        let slot = self.groups.slot_or_new(group);
        if index < self.groups.at(slot).base {
            return BatchSeq(self.stage.last_seq());
        }
        let snapshot = SnapshotRef { group, index, term, live: self.coarse(live), bytes };
        let body_bytes = RANGE_BYTES * snapshot.live.len() + bytes.len();
        let body = self.begin_record(group, RecordKind::Snapshot, SNAPSHOT_PREFIX_BYTES + body_bytes);
        let batch = self.stage.batch();
        record::put_snapshot(&snapshot, &mut batch.buf);
        let seq = batch.seq;
        let at = Position { offset: body.offset - RECORD_HEADER_BYTES as u64, ..body };
        let place = SnapshotPlace::Inline { at, bytes: body_bytes as u32 };
        self.groups.change(slot).install(index, term, place, &snapshot.live, seq, &mut self.refs);
        BatchSeq(seq)
    }

    /// As [`put_snapshot`](Self::put_snapshot), for a snapshot in a file of its own, which must be durable.
    ///
    /// # Panics
    /// If its index is 0.
    pub fn mark_snapshot(
        &mut self,
        group: GroupId,
        index: Index,
        term: Term,
        live: &[IndexRange],
        file: SnapshotFile,
    ) -> BatchSeq {
        assert!(index > Index::ZERO, "a snapshot of nothing");
        let slot = self.groups.slot_or_new(group);
        if index < self.groups.at(slot).base {
            return BatchSeq(self.stage.last_seq());
        }
        let mark = Mark { group, index, term, file, live: self.coarse(live) };
        self.begin_record(group, RecordKind::SnapshotMark, MARK_PREFIX_BYTES + RANGE_BYTES * mark.live.len());
        let batch = self.stage.batch();
        record::put_mark(&mark, &mut batch.buf);
        let seq = batch.seq;
        let place = SnapshotPlace::File(file);
        self.groups.change(slot).install(index, term, place, &mark.live, seq, &mut self.refs);
        BatchSeq(seq)
    }

    /// Whether entries live on below the group's snapshot.
    pub fn has_live(&self, group: GroupId) -> bool {
        self.groups.slot(group).is_some_and(|slot| !self.groups.at(slot).cold.live.is_empty())
    }

    /// The entries that live on below the newest snapshot that was put or marked, in order.
    pub fn live_ranges(&self, group: GroupId) -> Vec<IndexRange> {
        let Some(slot) = self.groups.slot(group) else { return Vec::new() };
        let each = self.groups.at(slot).cold.live.iter();
        let mut ranges: Vec<IndexRange> = Vec::new();
        for extent in each {
            match ranges.last_mut().filter(|range| range.last().next() == extent.first) {
                Some(range) => range.count += extent.count,
                None => ranges.push(IndexRange { first: extent.first, count: extent.count }),
            }
        }
        ranges
    }

    /// Stages entries of a snapshot that is still to come: they fill their own places only, and are not in the log before
    /// that snapshot names them as live. Returns their batch.
    ///
    /// # Panics
    /// If the header disagrees with the body.
    pub fn place(&mut self, header: &RunHeader, body: &[&[u8]]) -> BatchSeq {
        let (at, seq) = self.put_run(RecordKind::Place, header, body);
        let slot = self.groups.slot_or_new(header.group);
        let (range, bytes) = placed(header);
        let (group, runs) = self.groups.with_runs(slot);
        group.place(range, bytes, at, &mut self.refs, runs);
        BatchSeq(seq)
    }

    /// Whether the entries of such a run wait for their snapshot already, all in one place.
    pub fn has_placed(&self, header: &RunHeader) -> bool {
        let slot = self.groups.slot(header.group);
        slot.is_some_and(|slot| self.groups.at(slot).has_placed(header.first(), header.last()))
    }

    /// Stages that entries of a group, as far as they lie in file `from`, lie in file `to` now, where they must be durable.
    /// Returns its batch.
    ///
    /// # Panics
    /// If there are so many ranges that the record does not fit a batch.
    pub fn put_moved(&mut self, moved: &Moved) -> BatchSeq {
        let Some(slot) = self.groups.slot(moved.group) else {
            // It was deleted meanwhile, and its slot is another's: a record would bring it back.
            return BatchSeq(self.stage.last_seq());
        };
        self.begin_record(
            moved.group,
            RecordKind::Moved,
            MOVED_PREFIX_BYTES + RANGE_BYTES * moved.ranges.len(),
        );
        let batch = self.stage.batch();
        record::put_moved(moved, &mut batch.buf);
        let seq = batch.seq;
        self.groups.change(slot).moved(moved.from, moved.to, &moved.ranges, seq, &mut self.refs);
        BatchSeq(seq)
    }

    /// Stages the end of a group: nothing of it is needed any more. Its uid must not be used again. Returns its batch.
    pub fn delete(&mut self, group: GroupId) -> BatchSeq {
        self.begin_record(group, RecordKind::Deleted, DELETED_BYTES);
        let batch = self.stage.batch();
        batch.buf.put(&group.0.to_le_bytes());
        let seq = batch.seq;
        let slot = self.groups.slot_or_new(group);
        if !self.groups.at(slot).cold.deleted {
            self.groups.vacate(slot);
        }
        self.groups.change(slot).delete(seq, &mut self.refs);
        // Both have noted slots; neither notes one that is vacant.
        if self.sweep.is_none() && !self.indexes.is_being_written() {
            self.groups.reclaim();
        }
        BatchSeq(seq)
    }

    /// The ranges, so few of them that they fit a record: the narrowest gaps are taken in. More entries than were asked for
    /// live on then, never fewer.
    fn coarse(&self, live: &[IndexRange]) -> Vec<IndexRange> {
        let room = (self.config.file_bytes - HEAD_AREA_BYTES) as usize / 4 / RANGE_BYTES;
        coarsened(live, RANGES_MAX.min(room))
    }
}

fn coarsened(live: &[IndexRange], max: usize) -> Vec<IndexRange> {
    let mut ranges = live.to_vec();
    let excess = ranges.len().saturating_sub(max);
    if excess == 0 {
        return ranges;
    }
    let gap = |pair: &[IndexRange]| pair[1].first.since(pair[0].last());
    let mut gaps: Vec<u64> = ranges.windows(2).map(gap).collect();
    let (_, widest, _) = gaps.select_nth_unstable(excess - 1);
    let widest = *widest;
    ranges.dedup_by(|next, before| {
        let near = next.first.since(before.last()) <= widest;
        if near {
            before.count = next.last().next().since(before.first);
        }
        near
    });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn coarser_ranges_are_fewer_and_cover_the_same(gaps in prop::collection::vec((1u64..9, 1u64..4), 0..60), max in 1usize..20) {
            let mut next = 0;
            let live: Vec<IndexRange> = gaps.iter().map(|(gap, count)| {
                let range = IndexRange { first: Index(next + gap), count: *count };
                next = range.last().0;
                range
            }).collect();
            let coarse = coarsened(&live, max);
            prop_assert!(coarse.len() <= max.max(1) || coarse == live);
            prop_assert!(coarse.windows(2).all(|pair| pair[0].last() < pair[1].first));
            for range in &live {
                prop_assert!(coarse.iter().any(|one| one.first <= range.first && range.last() <= one.last()));
            }
            if live.len() <= max {
                prop_assert_eq!(coarse, live);
            }
        }
    }
}
