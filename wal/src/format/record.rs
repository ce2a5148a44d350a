//! Records: what a batch carries.
//!
//! ```text
//!   offset  size  field
//!   0       1     kind       1 run, 2 state, 3 snapshot, 4 checkpoint page, 5 checkpoint root
//!   1       1     flags      bit 0: must be understood, else a reader that does not know the kind skips it;
//!                            bit 1: a state that was written before, once more
//!   2       2     zeros
//!   4       4     bytes      of the body
//!   8       ..    body
//!
//!   run       as `base/src/run.rs` says
//!   state     group u64, blob
//!   snapshot  group u64, index u64, term u64, crc32c of the bytes u32, zeros u32, bytes
//!   page, root: see `page.rs`
//! ```

use coracle_base::checksum::crc32c;
use coracle_base::codec::{Reader, Sink, Truncated};
use coracle_base::limits::STATE_BYTES_MAX;
use coracle_base::{GroupId, Index, RunError, RunRef, Term};

use super::page::{Page, Root};

/// Bytes before a record's body.
pub(crate) const RECORD_HEADER_BYTES: usize = 8;
/// Bytes of a state's body before the blob.
pub(crate) const STATE_PREFIX_BYTES: usize = 8;
/// Bytes of a snapshot's body before the snapshot's own.
pub(crate) const SNAPSHOT_PREFIX_BYTES: usize = 32;

const FLAG_MUST_UNDERSTAND: u8 = 1;
const FLAG_REPEATED: u8 = 2;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RecordKind {
    Run = 1,
    State = 2,
    Snapshot = 3,
    CheckpointPage = 4,
    CheckpointRoot = 5,
}

/// Appends a record's header.
pub(crate) fn put_header(kind: RecordKind, repeated: bool, body_bytes: usize, out: &mut impl Sink) {
    let flags = FLAG_MUST_UNDERSTAND | if repeated { FLAG_REPEATED } else { 0 };
    let bytes = (body_bytes as u32).to_le_bytes();
    out.put(&[kind as u8, flags, 0, 0, bytes[0], bytes[1], bytes[2], bytes[3]]);
}

/// Appends a snapshot's body.
pub(crate) fn put_snapshot(group: GroupId, index: Index, term: Term, bytes: &[u8], out: &mut impl Sink) {
    out.put_u64(group.0);
    out.put_u64(index.0);
    out.put_u64(term.0);
    out.put_u32(crc32c(bytes));
    out.put_u32(0);
    out.put(bytes);
}

/// A record in place.
#[derive(Debug)]
pub(crate) enum Record<'a> {
    Run(RunRef<'a>),
    State {
        group: GroupId,
        blob: &'a [u8],
    },
    Snapshot(SnapshotRef<'a>),
    Page(Page),
    Root(Root),
    /// Of no known kind, and need not be understood.
    Skipped,
}

/// A snapshot in place, its checksum checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SnapshotRef<'a> {
    pub(crate) group: GroupId,
    pub(crate) index: Index,
    pub(crate) term: Term,
    pub(crate) bytes: &'a [u8],
}

/// Why bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("record ends early: {0}")]
    Truncated(#[from] Truncated),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("record has an impossible {0}")]
    Field(&'static str),
    /// A newer program wrote it, and it must be understood.
    #[error("record of unknown kind {0} must be understood")]
    Unknown(u8),
}

impl<'a> Record<'a> {
    /// Takes the next record off `reader`, with the offset of its header from the start of the records.
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, RecordError> {
        let (kind, flags) = (reader.u8()?, reader.u8()?);
        let zeros = reader.u16()?;
        let bytes = reader.u32()?;
        let body = reader.bytes(bytes as usize)?;
        if zeros != 0 {
            return Err(RecordError::Field("header"));
        }
        match kind {
            1 => Ok(Self::Run(RunRef::parse(body)?)),
            2 => Self::state(body),
            3 => Ok(Self::Snapshot(snapshot(body)?)),
            4 => Ok(Self::Page(Page::decode(body)?)),
            5 => Ok(Self::Root(Root::decode(body)?)),
            kind if flags & FLAG_MUST_UNDERSTAND != 0 => Err(RecordError::Unknown(kind)),
            _ => Ok(Self::Skipped),
        }
    }

    fn state(body: &'a [u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::new(body);
        let group = GroupId(reader.u64()?);
        let blob = reader.rest();
        if blob.len() > STATE_BYTES_MAX {
            return Err(RecordError::Field("state length"));
        }
        Ok(Self::State { group, blob })
    }
}

fn snapshot(body: &[u8]) -> Result<SnapshotRef<'_>, RecordError> {
    let mut reader = Reader::new(body);
    let (group, index, term) = (GroupId(reader.u64()?), Index(reader.u64()?), Term(reader.u64()?));
    let (crc, zeros) = (reader.u32()?, reader.u32()?);
    let bytes = reader.rest();
    if crc32c(bytes) != crc || zeros != 0 {
        return Err(RecordError::Field("snapshot checksum"));
    }
    Ok(SnapshotRef { group, index, term, bytes })
}
