//! A data directory, open for looking: whose it is, whether somebody uses it, and what its logs hold.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use coracle::identity::{Identity, log_dir};
use coracle_base::{GroupId, ShardId};
use coracle_io::DiskError;
use coracle_io::ring::{DiskOptions, Ring, RingDisk, RingOptions};
use coracle_raft::HardState;
use coracle_segments::snapshot::{self, SnapshotInfo, SnapshotKind};
use coracle_wal::{Inspection, Owner, WalError};

use super::Error;

/// A data directory.
pub(super) struct Directory {
    pub(super) root: PathBuf,
    pub(super) disk: RingDisk,
    /// `Err`: why its file says nothing.
    pub(super) identity: Result<Identity, String>,
    pub(super) in_use: bool,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// Within the directory.
    pub(super) file: PathBuf,
    pub(super) offset: Option<u64>,
    pub(super) groups: Vec<GroupId>,
    pub(super) what: String,
}

/// All that lies there.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) shards: Vec<(ShardId, Inspection)>,
    /// Snapshots and checkpoints in files.
    pub(super) snapshots: Vec<SnapshotInfo>,
    pub(super) findings: Vec<Finding>,
    /// What is worth telling, though nothing depends on it.
    pub(super) notes: Vec<Finding>,
}

impl Directory {
    /// Opens a directory that is there already.
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        let no = |why: &str| Error::NoDirectory { dir: dir.to_owned(), why: why.to_owned() };
        let root = dir.canonicalize().map_err(|error| no(&error.to_string()))?;
        if !root.is_dir() {
            return Err(no("it is a file"));
        }
        let is_data = root.join("identity").exists() || root.join(log_dir(ShardId(0))).is_dir();
        if !is_data {
            return Err(no("it has neither a file `identity` nor a log `shard-0`"));
        }
        let ring = Ring::new(&RingOptions { queue: 8, buffers: Vec::new() })?;
        let mut disk = RingDisk::open(&ring, &root, DiskOptions { lock: false, ..DiskOptions::default() })?;
        let identity = match Identity::look(&mut disk) {
            Ok(Some(identity)) => Ok(identity),
            Ok(None) => Err("the file is missing".to_owned()),
            Err(coracle::Error::Directory { reason, .. }) => Err(reason),
            Err(error) => Err(error.to_string()),
        };
        let in_use = is_locked(&root.join("LOCK"));
        Ok(Self { root, disk, identity, in_use })
    }

    /// Whose the log of a shard is: as the identity says, or else as the log's own files do.
    pub(super) fn owner(&mut self, shard: ShardId) -> Result<Option<coracle_wal::Identity>, Error> {
        if let Ok(identity) = &self.identity {
            return Ok(identity.of_log(shard));
        }
        match coracle_wal::owner(&mut self.disk, &log_dir(shard)) {
            Ok(Owner::Of(identity)) => Ok(Some(identity)),
            Ok(Owner::Empty | Owner::Unknown) | Err(WalError::Disk(DiskError::NotFound { .. })) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// How many shards there are.
    pub(super) fn shards(&mut self) -> Result<u16, Error> {
        if let Ok(identity) = &self.identity {
            return Ok(identity.shards);
        }
        Ok(self.owner(ShardId(0))?.map_or(0, |identity| identity.shards))
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// The disk fails. Damage is no error.
    pub(super) fn read(&mut self) -> Result<Contents, Error> {
        let mut contents = Contents::default();
        if let Err(why) = &self.identity {
            contents.find("identity", why.clone());
        }
        for shard in (0..self.shards()?).map(ShardId) {
            let dir = log_dir(shard);
            // Not formed yet: then there is no log.
            let Some(identity) = self.owner(shard)? else { continue };
            match coracle_wal::inspect(&mut self.disk, &dir, &identity) {
                Ok(inspection) => {
                    let snapshots = dir.join("snapshots");
                    let groups = inspection.groups.iter().map(|(group, _)| group);
                    let found = snapshot::inspect(&mut self.disk, &snapshots, &identity, groups)?;
                    contents.add(shard, &dir, inspection);
                    contents.add_snapshots(found);
                }
                Err(WalError::Disk(DiskError::NotFound { path })) if path == self.root.join(&dir) => {
                    contents.find(&dir, "the shard's log is gone, or was never begun".to_owned());
                }
                Err(WalError::Disk(error @ (DiskError::Denied { .. } | DiskError::Crashed))) => {
                    return Err(error.into());
                }
                Err(error) => contents.find(&dir, error.to_string()),
            }
        }
        Ok(contents)
    }
}

impl Contents {
    fn find(&mut self, file: impl Into<PathBuf>, what: String) {
        self.findings.push(Finding { file: file.into(), offset: None, groups: Vec::new(), what });
    }

    fn add(&mut self, shard: ShardId, dir: &Path, inspection: Inspection) {
        let to_finding = |damage: &coracle_wal::Damage| Finding {
            file: damage.file.clone(),
            offset: damage.offset,
            groups: damage.groups.clone(),
            what: damage.kind.to_string(),
        };
        self.findings.extend(inspection.damage.iter().map(to_finding));
        if inspection.files.is_empty() {
            self.find(dir, "the shard's log is gone, or was never begun".to_owned());
        }
        for (group, _) in inspection.groups.iter().filter(|(group, _)| !group.state.is_empty()) {
            if let Err(error) = HardState::decode(&group.state) {
                self.findings.push(Finding {
                    file: dir.to_owned(),
                    offset: None,
                    groups: vec![group.group],
                    what: format!("the consensus state makes no sense: {error}"),
                });
            }
        }
        self.shards.push((shard, inspection));
    }
}

impl Contents {
    fn add_snapshots(&mut self, found: Vec<SnapshotInfo>) {
        for one in &found {
            let groups: Vec<GroupId> = one.of.iter().map(|(group, ..)| *group).collect();
            let told =
                |offset, what| Finding { file: one.path.clone(), offset, groups: groups.clone(), what };
            match (one.kind, &one.damage) {
                (SnapshotKind::Marked, Some((at, what))) => {
                    self.findings.push(told(Some(*at), format!("damaged snapshot: {what}")));
                }
                (SnapshotKind::Checkpoint, Some((at, what))) => self.notes.push(told(
                    Some(*at),
                    format!("damaged checkpoint, which costs its machine a longer start: {what}"),
                )),
                (SnapshotKind::Leftover | SnapshotKind::Unfinished, _) => {
                    self.notes.push(told(None, "nothing needs it; the next start removes it".to_owned()));
                }
                (SnapshotKind::Part, _) => {
                    let what = "what has come of another member's snapshot: the next start goes on with it";
                    self.notes.push(told(None, what.to_owned()));
                }
                (SnapshotKind::Marked | SnapshotKind::Checkpoint, None) => {}
            }
        }
        self.snapshots.extend(found);
    }
}

/// Whether a process holds the lock. Read from the kernel's list: taking the lock, if only for a moment, could keep a
/// node from starting.
fn is_locked(lock: &Path) -> bool {
    let (Ok(metadata), Ok(locks)) = (fs::metadata(lock), fs::read_to_string("/proc/locks")) else {
        return false;
    };
    has_lock(&locks, metadata.ino())
}

/// proc_locks(5): `1: FLOCK  ADVISORY  WRITE 708 fd:00:1234 0 EOF`. The device is not compared: some file systems show
/// another one there than stat does.
fn has_lock(locks: &str, inode: u64) -> bool {
    locks.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let is_flock = words.next() == Some("FLOCK");
        let place = words.nth(3).and_then(|place| place.rsplit(':').next());
        is_flock && place.is_some_and(|found| found == inode.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_found_in_the_kernels_list() {
        let locks =
            "1: POSIX  ADVISORY  READ  9 08:01:77 128 128\n2: FLOCK  ADVISORY  WRITE 708 fd:00:1234 0 EOF\n";
        assert!(has_lock(locks, 1234));
        assert!(!has_lock(locks, 77) && !has_lock(locks, 123) && !has_lock("", 1234));
    }
}
