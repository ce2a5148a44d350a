//! The end of every run: the log is recovered as after a restart, and then every entry is read back from its files.
//!
//! Recovery itself begins at a checkpoint, which only says which entries there are. So it is followed by a walk over all
//! files: an entry counts if its run continues its group's log and every payload's checksum holds.

use coracle_base::{GroupId, Index, RunRef};
use coracle_io::Disk;
use coracle_wal::{Config, Identity, Wal};

use super::Error;
use super::load::Load;

/// Recovers the log, reads every entry back from the files and counts them.
///
/// # Errors
/// [`Error::Lost`] if what recovery or the files say of a group is not what was appended to it.
pub(super) fn count<D: Disk>(
    disk: &mut D,
    config: Config,
    identity: Identity,
    load: &Load,
) -> Result<u64, Error> {
    let (wal, recovery) = Wal::open(disk, config.clone(), identity)?;
    let restored = |id: GroupId| {
        let at = recovery.groups.binary_search_by_key(&id, |found| found.group);
        at.map_or(Index::ZERO, |at| recovery.groups[at].last)
    };
    check(load, restored)?;
    wal.shutdown(disk)?;

    let mut read = ReadBack::new(load);
    coracle_wal::walk(disk, &config, &identity, |run| read.take(run))?;
    check(load, |id| read.last(id))?;
    Ok(read.entries)
}

/// Every group must end where its last append ended.
fn check(load: &Load, found: impl Fn(GroupId) -> Index) -> Result<(), Error> {
    let mut ends = load.groups().iter().map(|&(group, expected)| (group, found(group), expected));
    match ends.find(|(_, found, expected)| found != expected) {
        None => Ok(()),
        Some((group, found, expected)) => Err(Error::Lost { group, found, expected }),
    }
}

/// What was read from the files so far.
struct ReadBack {
    /// Each group and the last entry up to which all are there; by group.
    groups: Vec<(GroupId, Index)>,
    entries: u64,
}

impl ReadBack {
    fn new(load: &Load) -> Self {
        let mut groups: Vec<_> = load.groups().iter().map(|&(group, _)| (group, Index::ZERO)).collect();
        groups.sort_unstable();
        Self { groups, entries: 0 }
    }

    /// Counts the run if it is the next one of its group and whole; after one that is not, the group's count stands still.
    fn take(&mut self, run: RunRef<'_>) {
        let Ok(at) = self.groups.binary_search_by_key(&run.header.group, |&(group, _)| group) else { return };
        let last = &mut self.groups[at].1;
        if run.header.prev_index == *last && run.check_payloads().is_ok() {
            *last = run.header.last();
            self.entries += u64::from(run.header.count);
        }
    }

    fn last(&self, group: GroupId) -> Index {
        let at = self.groups.binary_search_by_key(&group, |&(group, _)| group);
        at.map_or(Index::ZERO, |at| self.groups[at].1)
    }
}

#[cfg(test)]
mod tests {
    use coracle_base::{EntryBatch, EntryKind, RunHeader, Term};

    use super::*;

    /// A run of two entries after `prev`, as it lies in a file.
    fn run(prev: u64) -> Vec<u8> {
        let mut body = EntryBatch::new();
        body.push(1, EntryKind::Command, b"one").unwrap();
        body.push(2, EntryKind::Command, b"two").unwrap();
        body.stamp(Term(1), 1);
        let header = RunHeader {
            group: GroupId(1),
            accepted_term: Term(1),
            prev_index: Index(prev),
            prev_term: Term(u64::from(prev > 0)),
            count: 2,
            body_bytes: body.bytes().len() as u32,
        };
        let mut bytes = Vec::new();
        header.encode_run(&[body.bytes()], &mut bytes);
        bytes
    }

    #[test]
    fn only_whole_runs_in_order_count() {
        let load = Load::new([GroupId(1)].into_iter(), 3, 1, 1, 4096);
        let mut read = ReadBack::new(&load);
        read.take(RunRef::parse(&run(0)).unwrap());
        assert_eq!((read.entries, read.last(GroupId(1))), (2, Index(2)));
        // One that is missing before it, and one with a payload that does not hold.
        read.take(RunRef::parse(&run(4)).unwrap());
        let mut damaged = run(2);
        *damaged.last_mut().unwrap() ^= 1;
        read.take(RunRef::parse(&damaged).unwrap());
        assert_eq!((read.entries, read.last(GroupId(1))), (2, Index(2)));
        assert!(matches!(check(&load, |group| read.last(group)), Err(Error::Lost { .. })));
    }
}
