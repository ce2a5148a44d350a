//! Every snapshot file of a shard, read and checked: for tools. Changes nothing, and blocks.

use std::path::{Path, PathBuf};

use coracle_base::{GroupId, Index, Term};
use coracle_io::{Disk, DiskError};
use coracle_wal::{Identity, RecoveredGroup, SnapshotFile};

use super::format::{PartName, parse_unfinished};
use super::reader::{Progress, SnapshotReader};
use super::{SnapshotError, SnapshotName};

/// What a file is to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotKind {
    /// The log names it: the group needs it.
    Marked,
    /// A machine's state that nothing depends on.
    Checkpoint,
    /// No longer, or not yet, named: the next start removes it.
    Leftover,
    /// It was being written when the process ended: the next start removes it.
    Unfinished,
    /// What has come of another member's snapshot: the next start goes on with it.
    Part,
}

/// A snapshot file as it lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Where.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// What it is to the log.
    pub kind: SnapshotKind,
    /// Of which group, up to which entry, of which term: as the log, its name or its header says.
    pub of: Option<(GroupId, Index, Term)>,
    /// Bytes of the state in it, if it is sound.
    pub state_bytes: Option<u64>,
    /// What is wrong with it, and from which byte on.
    pub damage: Option<(u64, String)>,
}

/// A file that the log names.
struct Mark {
    of: (GroupId, Index, Term),
    file: SnapshotFile,
}

/// Reads all files in `dir`, the snapshots of a shard with these groups.
///
/// # Errors
/// The disk's. Damage is no error, nor is a directory that is not there.
pub fn inspect<'a, D: Disk>(
    disk: &mut D,
    dir: &Path,
    identity: &Identity,
    groups: impl Iterator<Item = &'a RecoveredGroup>,
) -> Result<Vec<SnapshotInfo>, DiskError> {
    let mark = |group: &RecoveredGroup| {
        let (index, term) = *group.terms.first()?;
        Some(Mark { of: (group.group, index, term), file: group.snapshot_file? })
    };
    let mut marks: Vec<Mark> = groups.filter_map(mark).collect();
    let entries = match disk.list(dir) {
        Err(DiskError::NotFound { .. }) => Vec::new(),
        entries => entries?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = dir.join(&entry.name);
        let info = |kind, of| SnapshotInfo {
            path: path.clone(),
            bytes: entry.bytes,
            kind,
            of,
            state_bytes: None,
            damage: None,
        };
        if let Some(part) = PartName::parse(&entry.name) {
            all.push(info(SnapshotKind::Part, Some((part.group, part.index, part.term))));
            continue;
        }
        let Some(name) = SnapshotName::parse(&entry.name) else {
            all.extend(parse_unfinished(&entry.name).map(|_| info(SnapshotKind::Unfinished, None)));
            continue;
        };
        let at = marks.iter().position(|mark| mark.file.file_no == name.file_no());
        let (info, mark) = match (name, at) {
            (SnapshotName::Checkpoint { group, index, term, .. }, _) => {
                (info(SnapshotKind::Checkpoint, Some((group, index, term))), None)
            }
            (SnapshotName::Snapshot { .. }, Some(at)) => {
                let mark = marks.swap_remove(at);
                (info(SnapshotKind::Marked, Some(mark.of)), Some(mark))
            }
            (SnapshotName::Snapshot { .. }, None) => (info(SnapshotKind::Leftover, None), None),
        };
        all.extend(read(disk, dir, name, identity, info, mark)?);
    }
    // What the log names and is not there.
    all.extend(marks.into_iter().map(|mark| SnapshotInfo {
        path: SnapshotName::Snapshot { file_no: mark.file.file_no }.path(dir),
        bytes: 0,
        kind: SnapshotKind::Marked,
        of: Some(mark.of),
        state_bytes: None,
        damage: Some((0, "it is missing".to_owned())),
    }));
    Ok(all)
}

/// Reads one file to its end. `None`: it was removed meanwhile, and nobody needs it.
fn read<D: Disk>(
    disk: &mut D,
    dir: &Path,
    name: SnapshotName,
    identity: &Identity,
    info: SnapshotInfo,
    mark: Option<Mark>,
) -> Result<Option<SnapshotInfo>, DiskError> {
    let mut reader = SnapshotReader::begin(disk, dir, name, *identity, 0);
    let mut done = Vec::new();
    let end = loop {
        disk.wait()?;
        disk.completions(&mut done);
        let Some(one) = done.pop() else { continue };
        match reader.on_done(disk, one) {
            Progress::Going => {}
            Progress::Chunk(_) => reader.next(disk),
            Progress::Whole(head, file) => break Ok((head, file)),
            Progress::Failed(SnapshotError::Disk(
                error @ (DiskError::Crashed | DiskError::Denied { .. }),
            )) => {
                return Err(error);
            }
            Progress::Failed(SnapshotError::Damaged { what, .. }) => break Err(what.to_owned()),
            Progress::Failed(SnapshotError::Disk(error)) => break Err(error.to_string()),
        }
    };
    let is_gone = reader.is_missing() && mark.is_none();
    Ok(match end {
        Err(_) if is_gone => None,
        Err(what) => Some(SnapshotInfo { damage: Some((reader.read_at(), what)), ..info }),
        Ok((head, file)) => {
            let of = (head.group, head.index, head.term);
            let is_other = mark.is_some_and(|mark| mark.file != file || mark.of != of);
            let other = "it is sound, and not the one that the log names";
            let damage = is_other.then(|| (0, other.to_owned()));
            Some(SnapshotInfo { of: Some(of), state_bytes: Some(file.bytes), damage, ..info })
        }
    })
}
