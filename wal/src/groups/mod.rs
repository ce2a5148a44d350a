//! All groups of the shard: found by uid without hashing, each with the log that its records make.
//!
//! Invariants: (1) slots are given in the order of first appearance and never change, but that a deleted group's is another's
//! once nothing refers to it (`reclaim`); (2) live records and replayed ones go through the same functions ([`group`]), so that
//! what recovery makes is what was there; (3) [`Refs`] counts exactly the extents and snapshots that the groups hold.

mod extents;
mod group;
mod live;
mod refs;
mod runs;

use std::collections::BTreeMap;

use coracle_base::{GroupId, Index, Term};
use smallvec::SmallVec;

pub(crate) use extents::Extents;
pub(crate) use group::{Fit, Group};
pub(crate) use refs::Refs;
pub(crate) use runs::Runs;

use crate::format::Position;
use crate::read::RunsInFile;

/// Groups are found by index, their quotient (uid by shards) modulo this; where two have the same, the second one in a map.
const DENSE_MAX: u64 = 1 << 20;
const NO_SLOT: u32 = u32::MAX;
/// So many deleted groups' slots are reclaimed at once: it takes a look at every run of the newest files.
const RECLAIM_MIN: usize = 1024;

/// A group's log as it was staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupLog {
    /// Index of the first entry held; `last + 1` if there is none.
    pub first: Index,
    /// Index of the last entry, or of the snapshot if there is none.
    pub last: Index,
    /// Term at `last`.
    pub last_term: Term,
    /// Index of the snapshot, 0 if there is none.
    pub snapshot_index: Index,
}

/// The table of groups.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    shards: u64,
    dense: Vec<u32>,
    sparse: BTreeMap<GroupId, u32>,
    slots: Vec<Group>,
    /// By slot. Apart from the groups, so that one is found without a look at it.
    ids: Vec<GroupId>,
    /// By slot: rises whenever a group changes otherwise than by growing. So few bytes are always in the cache.
    versions: Vec<u32>,
    runs: Runs,
    /// Slots of groups that were deleted since the last time that slots were reclaimed.
    vacated: Vec<u32>,
    /// Slots for the next groups.
    vacant: Vec<u32>,
    /// A bit for each page of the checkpoint: some of its groups may be otherwise than when it was written.
    dirty: Vec<u64>,
}

/// So many are warmed together at best.
const WARM_GROUPS: usize = 32;
/// Groups of one page of the checkpoint.
pub(crate) const PAGE_GROUPS: usize = 64;

impl Groups {
    pub(crate) fn new(shards: u16) -> Self {
        Self { shards: u64::from(shards.max(1)), ..Self::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    #[inline]
    pub(crate) fn slot(&self, id: GroupId) -> Option<usize> {
        // Uids of other shards share a quotient with ours; they never come here in a sound cluster.
        let dense = self.dense.get(self.dense_at(id)).map(|slot| *slot as usize);
        dense.filter(|slot| self.ids.get(*slot) == Some(&id)).or_else(|| self.sparse_slot(id))
    }

    #[cold]
    fn sparse_slot(&self, id: GroupId) -> Option<usize> {
        self.sparse.get(&id).map(|slot| *slot as usize)
    }

    #[inline]
    pub(crate) fn slot_or_new(&mut self, id: GroupId) -> usize {
        self.slot(id).unwrap_or_else(|| self.add(id))
    }

    #[inline]
    fn dense_at(&self, id: GroupId) -> usize {
        (id.0 / self.shards % DENSE_MAX) as usize
    }

    #[cold]
    fn add(&mut self, id: GroupId) -> usize {
        let slot = match self.vacant.pop() {
            Some(slot) => self.give_to(slot as usize, id),
            None => {
                let slot = self.slots.len();
                self.slots.push(Group::new(id, slot as u32));
                self.ids.push(id);
                self.dirty.resize(slot / PAGE_GROUPS / 64 + 1, 0);
                self.versions.push(0);
                slot
            }
        };
        self.note(slot);
        let at = self.dense_at(id);
        if self.dense.len() <= at {
            self.dense.resize(at + 1, NO_SLOT);
        }
        if self.dense[at] == NO_SLOT {
            self.dense[at] = slot as u32;
        } else {
            self.sparse.insert(id, slot as u32);
        }
        slot
    }

    /// A deleted group's slot is another's from now on: nobody finds the old one any more.
    fn give_to(&mut self, slot: usize, id: GroupId) -> usize {
        let old = std::mem::replace(&mut self.ids[slot], id);
        let at = self.dense_at(old);
        if self.sparse.remove(&old).is_none() && self.dense.get(at) == Some(&(slot as u32)) {
            self.dense[at] = NO_SLOT;
        }
        self.slots[slot] = Group::new(id, slot as u32);
        self.note_change(slot);
        slot
    }

    /// A group is deleted, and its uid never comes again.
    pub(crate) fn vacate(&mut self, slot: usize) {
        self.vacated.push(slot as u32);
    }

    /// After a recovery: so were these.
    pub(crate) fn vacate_deleted(&mut self) {
        let deleted = self.slots.iter().filter(|group| group.cold.deleted).map(|group| group.slot);
        self.vacated.extend(deleted);
    }

    /// Makes deleted groups' slots available, when there are many: no run of theirs is known any more. Nobody who noted slots
    /// may be under way.
    pub(crate) fn reclaim(&mut self) {
        if self.vacated.len() < RECLAIM_MIN {
            return;
        }
        let mut is_vacated = vec![false; self.slots.len()];
        self.vacated.iter().for_each(|slot| is_vacated[*slot as usize] = true);
        self.runs.disown(|slot| is_vacated[slot]);
        self.vacant.append(&mut self.vacated);
    }

    /// Brings these groups into the cache: each of them misses it alone, and here they do so all at once.
    pub(crate) fn warm(&self, ids: impl Iterator<Item = GroupId>) {
        let slots: SmallVec<[usize; WARM_GROUPS]> = ids.filter_map(|id| self.slot(id)).collect();
        // Nothing but loads: as many as the CPU can have under way.
        let touched = slots.iter().fold(0, |sum, slot| sum ^ self.slots[*slot].touch());
        std::hint::black_box(touched);
    }

    pub(crate) fn find(&self, id: GroupId) -> Option<&Group> {
        self.slot(id).map(|slot| &self.slots[slot])
    }

    pub(crate) fn id(&self, slot: usize) -> GroupId {
        self.ids[slot]
    }

    pub(crate) fn at(&self, slot: usize) -> &Group {
        &self.slots[slot]
    }

    /// A group, to be changed.
    pub(crate) fn at_mut(&mut self, slot: usize) -> &mut Group {
        self.note(slot);
        &mut self.slots[slot]
    }

    /// A group that is about to change otherwise than by growing: entries are dropped, released or moved.
    pub(crate) fn change(&mut self, slot: usize) -> &mut Group {
        self.note_change(slot);
        self.at_mut(slot)
    }

    pub(crate) fn note_change(&mut self, slot: usize) {
        self.versions[slot] = self.versions[slot].wrapping_add(1);
    }

    pub(crate) fn version(&self, slot: usize) -> u32 {
        self.versions[slot]
    }

    /// So many groups from a slot on.
    pub(crate) fn some(&self, from: usize, count: usize) -> impl Iterator<Item = &Group> {
        self.slots.iter().skip(from).take(count)
    }

    /// A group, to be changed, and where the runs lie.
    pub(crate) fn with_runs(&mut self, slot: usize) -> (&mut Group, &mut Runs) {
        self.note(slot);
        (&mut self.slots[slot], &mut self.runs)
    }

    /// A group's state was written once more: no change that a checkpoint would tell.
    pub(crate) fn was_repeated(&mut self, slot: usize) {
        self.slots[slot].cold.repeat = false;
    }

    fn note(&mut self, slot: usize) {
        let page = slot / PAGE_GROUPS;
        self.dirty[page / 64] |= 1 << (page % 64);
    }

    /// Whether some group of a page may have changed since [`begin_page`](Self::begin_page).
    pub(crate) fn is_dirty(&self, page: usize) -> bool {
        self.dirty[page / 64] & 1 << (page % 64) != 0
    }

    /// A page is about to be written. Whether it was dirty.
    pub(crate) fn begin_page(&mut self, page: usize) -> bool {
        let was_dirty = self.is_dirty(page);
        self.dirty[page / 64] &= !(1 << (page % 64));
        was_dirty
    }

    /// Where the runs of the newest files lie.
    pub(crate) fn runs(&self) -> &Runs {
        &self.runs
    }

    /// These files' runs are needed for their indexes.
    pub(crate) fn keep_runs(&mut self, needed: Vec<u64>) {
        self.runs.keep(needed);
    }

    /// A replay begins here.
    pub(crate) fn begin_runs_at(&mut self, at: Position) {
        self.runs.begin_at(at);
    }

    /// In a replay: runs that would come next cannot be read.
    pub(crate) fn miss_runs(&mut self) {
        self.runs.miss();
    }

    /// The runs of a file in their order, those of placed entries apart, if they are known from its beginning.
    pub(crate) fn runs_in(&self, file_no: u64) -> Option<RunsInFile> {
        let mut runs = RunsInFile::default();
        for run in self.runs.of_file(file_no)?.filter(|run| run.is_owned()) {
            runs.add(run.of_group(self.ids[run.slot()]), run.is_placed());
        }
        Some(runs)
    }

    /// The file is about to be reused.
    pub(crate) fn forget(&mut self, file_no: u64) {
        self.runs.forget(file_no);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Group> {
        self.slots.iter()
    }

    /// All groups, to be changed.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        self.dirty.fill(u64::MAX);
        self.slots.iter_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_many_deleted_groups_are_others_in_the_end_and_nobody_finds_the_old_ones() {
        let mut groups = Groups::new(1);
        let old = |at: usize| GroupId(7 + at as u64 * (DENSE_MAX / 2));
        let slots: Vec<usize> = (0..RECLAIM_MIN).map(|at| groups.slot_or_new(old(at))).collect();
        let kept = groups.slot_or_new(GroupId(1));
        slots[1..].iter().for_each(|slot| groups.vacate(*slot));
        groups.reclaim();
        assert_eq!(groups.slot_or_new(GroupId(2)), RECLAIM_MIN + 1, "too few for a look at all runs");
        groups.vacate(slots[0]);
        let versions: Vec<u32> = slots.iter().map(|slot| groups.version(*slot)).collect();
        groups.reclaim();
        for at in 0..RECLAIM_MIN {
            let (new, count) = (GroupId(u64::MAX - at as u64), groups.len());
            let slot = groups.slot_or_new(new);
            assert_eq!((groups.len(), groups.slot(new), groups.id(slot)), (count, Some(slot), new));
            assert_eq!(groups.version(slot), versions[slot] + 1, "what was noted of the old one is void");
        }
        assert!((0..RECLAIM_MIN).all(|at| groups.slot(old(at)).is_none()));
        assert_eq!(groups.slot(GroupId(1)), Some(kept));
        assert_eq!(groups.slot_or_new(GroupId(3)), RECLAIM_MIN + 2);
    }

    #[test]
    fn every_uid_has_its_own_slot() {
        let mut groups = Groups::new(4);
        let uids = [0, 4, 8, 1, 5, u64::MAX, u64::MAX - 3, 4 * DENSE_MAX, 4].map(GroupId);
        let slots = uids.map(|uid| groups.slot_or_new(uid));
        assert_eq!(slots, [0, 1, 2, 3, 4, 5, 6, 7, 1]);
        for (uid, slot) in uids.iter().zip(slots) {
            assert_eq!(groups.slot(*uid), Some(slot));
        }
        assert_eq!(groups.slot(GroupId(12)), None);
        assert_eq!(groups.slot(GroupId(2)), None, "same quotient as 0 and 1");
    }
}
