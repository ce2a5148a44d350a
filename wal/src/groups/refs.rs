//! What each file still holds: extents and snapshots of the groups' logs. Says when a file has nothing in it.

use std::collections::{BTreeMap, BTreeSet};

use crate::format::page::{Extent, SnapshotPlace};

/// Per file: how many extents and snapshots lie in it, and which batch dropped the last of them.
#[derive(Debug, Default, Clone)]
pub(crate) struct Refs {
    files: BTreeMap<u64, Held>,
    /// Bytes that extents of one file grew by, not yet counted there: every append is of the same file for long.
    grown: (u64, u64),
    /// Files in which pages lie that the checkpoints only name.
    page_files: BTreeSet<u64>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) extents: u64,
    /// Of the extents, those that wait for the snapshot that names them.
    pub(crate) placed: u64,
    /// Of the entries in the extents, about.
    pub(crate) live_bytes: u64,
    pub(crate) snapshots: u64,
    /// The newest batch that dropped something here: until it is durable, a crash brings that back.
    pub(crate) dropped_seq: u64,
}

impl Held {
    /// No extent and no snapshot.
    pub(crate) fn is_nothing(&self) -> bool {
        self.extents == 0 && self.snapshots == 0
    }
}

impl Refs {
    /// Pages of the checkpoints that are kept lie in these files.
    pub(crate) fn hold_pages(&mut self, files: BTreeSet<u64>) {
        self.page_files = files;
    }

    /// Whether such pages lie in a file.
    pub(crate) fn has_pages(&self, file_no: u64) -> bool {
        self.page_files.contains(&file_no)
    }

    pub(crate) fn held(&self, file_no: u64) -> Held {
        let mut held = self.files.get(&file_no).copied().unwrap_or_default();
        held.live_bytes += if file_no == self.grown.0 { self.grown.1 } else { 0 };
        held
    }

    /// What is to be changed of a file.
    fn entry(&mut self, file_no: u64) -> &mut Held {
        if self.grown.1 > 0 {
            let (grown_no, bytes) = std::mem::take(&mut self.grown);
            self.files.entry(grown_no).or_default().live_bytes += bytes;
        }
        self.files.entry(file_no).or_default()
    }

    /// An extent has grown.
    pub(crate) fn grow_extent(&mut self, file_no: u64, bytes: u64) {
        if self.grown.0 != file_no {
            self.entry(file_no);
            self.grown = (file_no, 0);
        }
        self.grown.1 += bytes;
    }

    pub(crate) fn hold_extent(&mut self, extent: &Extent) {
        let held = self.entry(extent.file_no);
        held.extents += 1;
        held.live_bytes += extent.bytes;
    }

    pub(crate) fn drop_extent(&mut self, extent: &Extent, seq: u64) {
        let held = self.entry(extent.file_no);
        held.extents -= 1;
        held.live_bytes -= extent.bytes;
        held.dropped_seq = held.dropped_seq.max(seq);
    }

    /// An extent, held already, waits for a snapshot.
    pub(crate) fn place_extent(&mut self, extent: &Extent) {
        self.entry(extent.file_no).placed += 1;
    }

    /// An extent waits no more, whether it is dropped or not.
    pub(crate) fn unplace_extent(&mut self, extent: &Extent) {
        self.entry(extent.file_no).placed -= 1;
    }

    /// An extent that goes on is held otherwise than before.
    pub(crate) fn resize_extent(&mut self, before: &Extent, now: &Extent) {
        let held = self.entry(before.file_no);
        held.live_bytes = held.live_bytes - before.bytes + now.bytes;
    }

    pub(crate) fn hold_snapshot(&mut self, place: &SnapshotPlace) {
        if let Some(file_no) = place.log_file() {
            self.entry(file_no).snapshots += 1;
        }
    }

    pub(crate) fn drop_snapshot(&mut self, place: &SnapshotPlace, seq: u64) {
        let Some(file_no) = place.log_file() else { return };
        let held = self.entry(file_no);
        held.snapshots -= 1;
        held.dropped_seq = held.dropped_seq.max(seq);
    }

    /// The file is gone.
    pub(crate) fn forget(&mut self, file_no: u64) {
        self.entry(file_no);
        self.files.remove(&file_no);
    }

    /// Files that hold something, in order.
    pub(crate) fn files(&self) -> impl Iterator<Item = u64> {
        self.files.iter().filter(|(_, held)| held.extents + held.snapshots > 0).map(|(file_no, _)| *file_no)
    }
}
