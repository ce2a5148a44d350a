//! Entries that a machine takes to live on below its snapshot, and that this node does not have any more: the record that held
//! them, or said that they live on, was lost with a damaged part of the log; or the member that sent the snapshot had lost them.
//! What a leader brings a member up with is the log above the snapshot, so they do not come back by that. They must not be
//! called released, which says that nobody needs them: whoever reads them is told that they are damaged here, and reads them
//! from another member.
//!
//! Known whenever a machine has got its state from a snapshot, as only the machine knows what it needs; it is not asked again
//! before its log is released the next time.

use coracle_base::Index;
use coracle_io::{Clock, Disk, Net};
use coracle_wal::IndexRange;

use super::Shard;
use crate::machine::in_order;
use crate::panics::caught;

impl<D: Disk, N: Net, C: Clock> Shard<D, N, C> {
    /// Looks whether all that should live on below the log is there.
    pub(super) fn look_for_lost(&mut self, slot: u32) {
        let one = &mut self.slots[slot as usize];
        let base = one.raft.first().prev();
        if base == Index::ZERO || one.poisoned.is_some() {
            return one.lost.clear();
        }
        let machine = &one.machine;
        let named = in_order(caught(|| machine.live_indexes()).unwrap_or_default(), base);
        let lost = missing(&named, &self.wal.live_ranges(one.id));
        let entries: u64 = lost.iter().map(|range| range.count).sum();
        if entries > 0 && lost != one.lost {
            self.status.live_entries_lost += entries;
            let (first, last) = (lost[0].first, lost[lost.len() - 1].last());
            tracing::error!(
                group = %one.id, entries, %first, %last,
                "entries that live on below the snapshot are lost here with a damaged part of the log: other members have them"
            );
        }
        one.lost = lost;
    }
}

/// Whether an entry is among these, which are in order.
pub(super) fn has(ranges: &[IndexRange], index: Index) -> bool {
    let after = ranges.partition_point(|range| range.first <= index);
    after.checked_sub(1).is_some_and(|at| index <= ranges[at].last())
}

/// What of the named ranges the held ones do not have; all in order.
fn missing(named: &[IndexRange], held: &[IndexRange]) -> Vec<IndexRange> {
    let (mut lost, mut held) = (Vec::new(), held.iter().peekable());
    for range in named {
        let mut next = range.first;
        while next <= range.last() {
            while held.next_if(|one| one.last() < next).is_some() {}
            let end = match held.peek() {
                Some(one) if one.first <= next => {
                    next = one.last().next();
                    continue;
                }
                Some(one) if one.first <= range.last() => one.first.prev(),
                _ => range.last(),
            };
            lost.push(IndexRange { first: next, count: end.next().since(next) });
            next = end.next();
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(of: &[(u64, u64)]) -> Vec<IndexRange> {
        of.iter().map(|&(first, last)| IndexRange { first: Index(first), count: last + 1 - first }).collect()
    }

    #[test]
    fn what_is_named_and_not_held_is_lost() {
        for (named, held, lost) in [
            (vec![(1, 9)], vec![], vec![(1, 9)]),
            (vec![(1, 9)], vec![(1, 20)], vec![]),
            (vec![(3, 9)], vec![(1, 4), (6, 6), (9, 12)], vec![(5, 5), (7, 8)]),
            (vec![(3, 4), (8, 8)], vec![(5, 7)], vec![(3, 4), (8, 8)]),
            (vec![(2, 3), (5, 9)], vec![(1, 6), (8, 8)], vec![(7, 7), (9, 9)]),
        ] {
            assert_eq!(missing(&ranges(&named), &ranges(&held)), ranges(&lost), "{named:?} {held:?}");
        }
        let some = ranges(&[(3, 4), (8, 8)]);
        assert_eq!((1..10).filter(|index| has(&some, Index(*index))).collect::<Vec<_>>(), [3, 4, 8]);
    }
}
