//! Snapshots in files of their own, and machines' checkpoints: state machines over [`coracle_io::Disk`].
//!
//! ```text
//!   format.rs  every byte, and the names        writer.rs  a chunk at a time        reader.rs  back, checked
//!   inspect.rs  all of them, for tools              chunks.rs  single chunks of one, for other members
//! ```
//!
//! A snapshot file counts only if the log names it (its number, its length, its checksum), and the log names it only when
//! it is durable. What the log does not name is what a crash left of one being written, or one whose successor is named:
//! it is removed at the next start. A checkpoint is a machine's state that frees no log: no log names it, its own name
//! says what it is, and the next start takes the newest that is sound and that the log agrees with. So it needs no record,
//! and none of its bytes need be durable: losing it costs time, nothing else. The same goes for a part, what has come of
//! another member's snapshot: its name says of which one, and each of its chunks has a checksum.

mod chunks;
mod format;
mod inspect;
mod reader;
mod writer;

use std::path::{Path, PathBuf};

use coracle_io::{Disk, DiskError};

pub use chunks::{ChunkRead, ChunkReader};
pub use format::{
    CHUNK_BODY_BYTES, CHUNK_BYTES, PartName, SnapshotHead, SnapshotName, chunk_bytes, chunks_of,
};
pub use inspect::{SnapshotInfo, SnapshotKind, inspect};
pub use reader::{Progress, SnapshotReader};
pub use writer::{SnapshotWriter, Written};

/// Why a snapshot file cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The disk failed: the file may be sound.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The file is not what was written. Fetch the state from another member, or restore the directory.
    #[error("{path}: damaged snapshot file: {what}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
}

/// What lies in a shard's directory of snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Snapshots and checkpoints, by number.
    pub names: Vec<SnapshotName>,
    /// What was on its way from other members.
    pub parts: Vec<PartName>,
    /// What was being written when the process ended.
    pub unfinished: Vec<PathBuf>,
    /// The highest number in use.
    pub highest: u64,
}

/// Looks into a directory, which is made if it is missing. Blocks: for start-up.
///
/// # Errors
/// The disk's.
pub fn list<D: Disk>(disk: &mut D, dir: &Path) -> Result<Listing, DiskError> {
    disk.make_dir(dir)?;
    let mut listing = Listing::default();
    for entry in disk.list(dir)? {
        if let Some(name) = SnapshotName::parse(&entry.name) {
            listing.highest = listing.highest.max(name.file_no());
            listing.names.push(name);
        } else if let Some(part) = PartName::parse(&entry.name) {
            listing.highest = listing.highest.max(part.whole.file_no);
            listing.parts.push(part);
        } else if let Some(file_no) = format::parse_unfinished(&entry.name) {
            listing.highest = listing.highest.max(file_no);
            listing.unfinished.push(dir.join(&entry.name));
        }
    }
    listing.names.sort_unstable_by_key(|name| name.file_no());
    Ok(listing)
}
