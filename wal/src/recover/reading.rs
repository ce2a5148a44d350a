//! The half of a recovery that only reads: what the log is, before anything is written. Tools that look into a log use it
//! alone.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;

use coracle_base::GroupId;
use coracle_io::Disk;

use super::chain::{Directory, Link};
use super::find::find_log;
use super::reader::Readers;
use super::segments::{damaged_copies, insert_held, mark_missing};
use super::{Found, RecoveredGroup, Report, recovered};
use crate::config::Identity;
use crate::error::WalError;
use crate::files::Files;
use crate::format::page::{Extent, SnapshotPlace};
use crate::format::{Position, Uuid};
use crate::groups::Group;

/// All that a recovery learns by reading.
pub(crate) struct LogRead<'a> {
    pub(super) found: Found<'a>,
    /// By uid.
    pub(crate) groups: Vec<RecoveredGroup>,
    pub(crate) report: Report,
    /// Made when somebody asks: a start does without them, and they would take more memory than all else.
    extents: OnceCell<BTreeMap<GroupId, Vec<Extent>>>,
}

impl LogRead<'_> {
    /// Where the log ends.
    pub(crate) fn tail(&self) -> Position {
        self.found.tail.at
    }

    /// A group's entries, by index: which are in which file.
    pub(crate) fn extents(&self, group: GroupId) -> &[Extent] {
        let of = |group: &Group| group.cold.live.iter().copied().chain(group.log_extents()).collect();
        let all = || self.found.replay.groups.iter().map(|group| (group.cold.id, of(group))).collect();
        self.extents.get_or_init(all).get(&group).map_or(&[], Vec::as_slice)
    }

    /// Where in the log's files a group's snapshot lies, readable or not.
    pub(crate) fn snapshot_at(&self, group: GroupId) -> Option<Position> {
        match self.found.replay.groups.find(group).and_then(|group| group.cold.snapshot)? {
            SnapshotPlace::Inline { at, .. } => Some(at),
            SnapshotPlace::File(_) => None,
        }
    }

    /// The segments that are needed and there: number, identity, size.
    pub(crate) fn segments(&self, directory: &Directory) -> Vec<(u64, Uuid, u64)> {
        let mut files = Files::default();
        insert_held(&mut files, directory, &self.found.ends, &self.found.replay);
        files.iter().map(|(file_no, file)| (file_no, file.uuid, file.bytes)).collect()
    }

    /// Where the batches of a file end, if the checkpoint knows for certain: the log had gone on before it.
    pub(crate) fn sealed_end(&self, file_no: u64) -> Option<u64> {
        let is_replayed = self.found.replay.files.is_some_and(|(first, _)| file_no >= first);
        let entry = self.found.ends.iter().find(|entry| entry.file_no == file_no);
        entry.filter(|_| !is_replayed).map(|entry| entry.end)
    }
}

/// Reads the log as it lies there, and writes nothing.
pub(crate) fn read_log<'a, D: Disk>(
    readers: &mut Readers<'_, D>,
    dir: &'a Path,
    directory: &Directory,
    links: &[Link],
    identity: &Identity,
) -> Result<LogRead<'a>, WalError> {
    let mut found = find_log(readers, dir, links, identity)?;
    // A file that may have been newer than all others, and says nothing any more.
    let newest = links.last().map_or(0, |link| link.file_no);
    let lost_newest = directory.logs.iter().any(|(no, log)| *no > newest && log.head.is_none());
    found.tail.suspect |= lost_newest;
    found.replay.finish(found.tail.suspect);
    let missing = mark_missing(&mut found, directory, dir);
    let groups: Result<Vec<_>, _> = found
        .replay
        .groups
        .iter()
        .filter(|group| !group.cold.deleted)
        .map(|group| recovered(readers, group))
        .collect();
    let mut groups = groups?;
    groups.sort_by_key(|group| group.group);
    let mut report = found.report(directory, dir);
    report.missing = missing;
    report.damaged_heads += damaged_copies(directory, &found.replay.refs) as u32;
    Ok(LogRead { found, groups, report, extents: OnceCell::new() })
}
