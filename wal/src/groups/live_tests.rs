//! Live entries against plain sets of indexes.

use std::collections::{BTreeMap, BTreeSet};

use coracle_base::{GroupId, Index, RunHeader, Term};
use proptest::prelude::*;

use super::*;
use crate::format::page::SnapshotPlace;

fn ranges_of(indexes: &BTreeSet<u64>) -> Vec<IndexRange> {
    let mut ranges: Vec<IndexRange> = Vec::new();
    for index in indexes {
        match ranges.last_mut() {
            Some(range) if range.last().0 + 1 == *index => range.count += 1,
            _ => ranges.push(IndexRange { first: Index(*index), count: 1 }),
        }
    }
    ranges
}

#[derive(Debug, Clone)]
enum Change {
    /// So many entries more.
    Run(u32),
    /// A snapshot so far back from the last entry; of what it covers every entry lives on whose hash says so.
    Snapshot { back: u64, salt: u64, percent: u64 },
    /// A snapshot so far ahead of the last entry, its live entries placed before it.
    Install { ahead: u64, salt: u64 },
    /// What lies in the file so far back of the newest, and whose hash says so, moves to a segment.
    Move { back: u64, salt: u64 },
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        4 => (1u32..8).prop_map(Change::Run),
        2 => (0u64..6, any::<u64>(), 0u64..100)
            .prop_map(|(back, salt, percent)| Change::Snapshot { back, salt, percent }),
        1 => (0u64..4, any::<u64>()).prop_map(|(ahead, salt)| Change::Install { ahead, salt }),
        2 => (0u64..4, any::<u64>()).prop_map(|(back, salt)| Change::Move { back, salt }),
    ];
    proptest::collection::vec(change, 1..40)
}

fn lucky(salt: u64, index: u64, percent: u64) -> bool {
    coracle_base::checksum::mix64(salt, index) % 100 < percent
}

/// Where each entry lies that is held.
#[derive(Debug, Default)]
struct Plain {
    base: u64,
    last: u64,
    files: BTreeMap<u64, u64>,
}

fn check(group: &Group, plain: &Plain, refs: &Refs) {
    assert!(group.is_whole(), "{group:?}");
    assert_eq!((group.base.0, group.last.0), (plain.base, plain.last));
    for index in 1..=plain.last + 2 {
        let found = group.extent_of(Index(index)).map(|extent| extent.file_no);
        assert_eq!(found, plain.files.get(&index).copied(), "entry {index}: {group:?}");
    }
    let held: BTreeSet<u64> = plain.files.values().copied().collect();
    assert_eq!(refs.files().collect::<BTreeSet<_>>(), held);
    for file_no in held {
        let entries: u64 = group.held_in(file_no).map(|extent| extent.count).sum();
        assert_eq!(entries, plain.files.values().filter(|file| **file == file_no).count() as u64);
        assert_eq!(refs.held(file_no).extents, group.held_in(file_no).count() as u64);
        let bytes: u64 = group.held_in(file_no).map(|extent| extent.bytes).sum();
        assert_eq!(refs.held(file_no).live_bytes, bytes);
        let placed = group.cold.placed.iter().filter(|extent| extent.file_no == file_no).count();
        assert_eq!(refs.held(file_no).placed, placed as u64);
    }
}

fn append(group: &mut Group, plain: &mut Plain, count: u32, file_no: u64, refs: &mut Refs) {
    let header = RunHeader {
        group: GroupId(1),
        accepted_term: Term(1),
        prev_index: Index(plain.last),
        prev_term: group.last_term(),
        count,
        body_bytes: 100 * count,
    };
    let at = Position { file_no, offset: 8192 };
    group.append(&header, [(Term(1), count)].into_iter(), at, 1, refs, &mut Runs::default());
    plain.files.extend((plain.last + 1..=plain.last + u64::from(count)).map(|index| (index, file_no)));
    plain.last += u64::from(count);
}

fn snapshot(group: &mut Group, plain: &mut Plain, index: u64, live: &BTreeSet<u64>, refs: &mut Refs) {
    let place = SnapshotPlace::File(crate::format::page::SnapshotFile { file_no: 1, bytes: 2, crc: 3 });
    assert!(group.install(Index(index), Term(1), place, &ranges_of(live), 1, refs));
    plain.files.retain(|at, _| *at > index || live.contains(at));
    plain.base = index;
    plain.last = plain.last.max(index);
}

proptest! {
    #[test]
    fn live_entries_stay_where_they_are_until_they_move(changes in changes()) {
        let (mut group, mut refs, mut plain) = (Group::new(GroupId(1), 0), Refs::default(), Plain::default());
        for (i, change) in changes.into_iter().enumerate() {
            let file_no = 1 + i as u64 / 3;
            match change {
                Change::Run(count) => append(&mut group, &mut plain, count, file_no, &mut refs),
                Change::Snapshot { back, salt, percent } => {
                    let index = plain.last.saturating_sub(back).max(plain.base);
                    if index == 0 {
                        continue;
                    }
                    let live = plain.files.keys().copied().filter(|at| *at <= index && lucky(salt, *at, percent));
                    let live = live.collect();
                    snapshot(&mut group, &mut plain, index, &live, &mut refs);
                }
                Change::Install { ahead, salt } => {
                    let index = plain.last + 1 + ahead;
                    // The log does not hold the entry at the snapshot's index, so it is dropped whole.
                    let base = plain.base;
                    plain.files.retain(|at, _| *at <= base);
                    let live: BTreeSet<u64> = (1..=index).filter(|at| lucky(salt, *at, 50)).collect();
                    for at in &live {
                        let range = IndexRange { first: Index(*at), count: 1 };
                        group.place(range, 100, Position { file_no, offset: 8192 }, &mut refs, &mut Runs::default());
                        plain.files.entry(*at).or_insert(file_no);
                    }
                    snapshot(&mut group, &mut plain, index, &live, &mut refs);
                    plain.last = index;
                }
                Change::Move { back, salt } => {
                    let (from, to) = (file_no.saturating_sub(back), 1000 + i as u64);
                    let moving = plain.files.iter().filter(|(at, file)| **file == from && lucky(salt, **at, 60));
                    let moving: BTreeSet<u64> = moving.map(|(at, _)| *at).collect();
                    group.moved(from, to, &ranges_of(&moving), 1, &mut refs);
                    plain.files.extend(moving.into_iter().map(|at| (at, to)));
                }
            }
            check(&group, &plain, &refs);
            let (mut again, mut counted) = (Group::new(GroupId(1), 0), Refs::default());
            prop_assert!(again.become_parts(&group.parts(), 0, &mut counted));
            check(&again, &plain, &counted);
        }
        group.delete(1, &mut refs);
        prop_assert_eq!(refs.files().count(), 0);
        prop_assert!(group.parts().is_empty());
    }
}
