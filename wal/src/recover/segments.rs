//! What the directory's segments mean once the groups are known: needed, missing, or left over.
//!
//! | a segment | what follows |
//! |---|---|
//! | a group has something in it | it is a file of the log like any other |
//! | a group has something in it, and it is not there | reported; groups with entries of the log in it are suspect |
//! | nobody has anything in it | a crash came before its first `moved` record, or after its last entry was dropped: removed |
//! | nobody has anything in it, and records were lost | put aside: it may be what they were about |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Found;
use super::chain::Directory;
use super::replay::Replay;
use crate::files::{File, Files, log_path};
use crate::format::page::FileEntry;
use crate::format::{SEGMENT, Uuid};
use crate::groups::Refs;

/// The identities that a checkpoint knows. One of a segment number that was only drawn says nothing.
fn identities(ends: &[FileEntry]) -> BTreeMap<u64, Uuid> {
    let known = ends.iter().filter(|entry| entry.uuid != Uuid::default());
    known.map(|entry| (entry.file_no, entry.uuid)).collect()
}

/// Files that the log needs and that are not there: their groups are suspect.
pub(super) fn mark_missing(found: &mut Found<'_>, directory: &Directory, dir: &Path) -> Vec<PathBuf> {
    let uuids = identities(&found.ends);
    let is_there = |file_no: u64| {
        let log = directory.logs.get(&file_no).map(|log| log.head.map(|head| head.uuid));
        let segment = directory.segments.get(&file_no).map(|segment| segment.head.map(|head| head.uuid));
        // A file whose head is damaged can still be read: the checkpoint knows its identity.
        let known = uuids.get(&file_no);
        match log.or(segment) {
            Some(Some(uuid)) => known.is_none_or(|known| *known == uuid),
            Some(None) => known.is_some(),
            None => false,
        }
    };
    let gone: Vec<u64> = found.replay.refs.files().filter(|file_no| !is_there(*file_no)).collect();
    for group in found.replay.groups.iter_mut() {
        let base = group.base;
        let of_log = |file_no: &u64| group.held_in(*file_no).any(|extent| extent.first > base);
        if gone.iter().any(of_log) {
            group.cold.suspect = true;
        }
    }
    gone.into_iter().map(|file_no| log_path(dir, file_no)).collect()
}

/// Copies of heads that do not hold, of segments that are needed.
pub(super) fn damaged_copies(directory: &Directory, refs: &Refs) -> usize {
    let needed = refs.files().filter_map(|file_no| directory.segments.get(&file_no));
    needed.map(|segment| segment.bad_copies.len()).sum()
}

/// Takes in the segments that the groups hold something in.
pub(super) fn insert_held(files: &mut Files, directory: &Directory, ends: &[FileEntry], replay: &Replay<'_>) {
    let uuids = identities(ends);
    for file_no in replay.refs.files() {
        let Some(segment) = directory.segments.get(&file_no) else { continue };
        let known = ends.iter().find(|entry| entry.file_no == file_no && entry.end > 0);
        let end = known.map_or(segment.bytes, |entry| entry.end);
        let uuid = segment.head.map(|head| head.uuid).or_else(|| uuids.get(&file_no).copied());
        if let Some(uuid) = uuid {
            files.insert(file_no, File::closed(uuid, end, segment.bytes));
        }
    }
}

/// Segments that nobody has anything in.
pub(super) fn orphans(directory: &Directory, files: &Files) -> Vec<u64> {
    directory.segments.keys().copied().filter(|file_no| files.get(*file_no).is_none()).collect()
}

/// The highest number of a segment that anything speaks of: a number is never used again.
pub(super) fn highest(directory: &Directory, replay: &Replay<'_>, ends: &[FileEntry]) -> u64 {
    let named = directory.segments.keys().copied().chain(ends.iter().map(|entry| entry.file_no));
    let held = replay.refs.files().chain([replay.segments_upto]);
    named.chain(held).filter(|file_no| file_no & SEGMENT != 0).max().unwrap_or(0)
}
