//! The end of every run: the log is recovered as after a restart, and must hold what was durable.

use coracle_base::Index;
use coracle_io::Disk;
use coracle_wal::{Config, Identity, Wal};

use super::Error;
use super::load::Load;

/// Recovers the log and counts what every group holds.
pub(super) fn count<D: Disk>(
    disk: &mut D,
    config: Config,
    identity: Identity,
    load: &Load,
) -> Result<u64, Error> {
    let (wal, recovery) = Wal::open(disk, config, identity)?;
    let mut count = 0;
    for (group, last) in load.groups().iter().copied().filter(|(_, last)| *last > Index::ZERO) {
        let at = recovery.groups.binary_search_by_key(&group, |found| found.group);
        let found = at.map_or(Index::ZERO, |at| recovery.groups[at].last);
        if found != last {
            return Err(Error::Lost { group, found, expected: last });
        }
        count += found.since(recovery.groups[at.unwrap_or(0)].first.prev());
    }
    wal.shutdown(disk)?;
    Ok(count)
}
