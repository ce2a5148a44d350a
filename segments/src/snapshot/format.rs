//! Every byte of a snapshot file, and the names of such files. Pure: bytes in, facts out.
//!
//! ```text
//!   header    one block
//!             0   8   magic        "CORSNAP1"
//!             8   4   crc32c       of [12, 4096)
//!             12  2   version      1
//!             14  2   shard
//!             16  16  cluster
//!             32  8   node
//!             40  8   incarnation
//!             48  8   file_no
//!             56  8   group
//!             64  8   index        last entry that the snapshot covers
//!             72  8   term         of that entry
//!             80  ..  zeros
//!   chunks    each padded with zeros to whole blocks; all but the last take 256 KiB
//!             0   4   magic        "CHNK"
//!             4   4   crc32c       of [8, end of the padding), seeded with the header's: of another file it never holds
//!             8   4   number       from 0
//!             12  4   bytes
//!             16  ..  the snapshot's bytes
//!   trailer   one block
//!             0   8   magic        "CORSNEND"
//!             8   4   crc32c       of [12, 4096), seeded with the header's
//!             12  4   chunks
//!             16  8   bytes        of the snapshot
//!             24  4   crc32c       of the snapshot's bytes: what the log names the file with
//!             28  ..  zeros
//! ```
//!
//! Invariants: (1) no byte of a file can change unnoticed, padding included; (2) a file without its whole trailer is none.

use std::path::{Path, PathBuf};

use coracle_base::checksum::{crc32c, crc32c_from};
use coracle_base::codec::{Reader, Sink};
use coracle_base::limits::BLOCK_BYTES;
use coracle_base::{GroupId, Index, Term};
use coracle_io::Buffer;
use coracle_wal::{Identity, SnapshotFile};

const MAGIC: &[u8; 8] = b"CORSNAP1";
const CHUNK_MAGIC: &[u8; 4] = b"CHNK";
const END_MAGIC: &[u8; 8] = b"CORSNEND";
const VERSION: u16 = 1;
/// What a full chunk takes in the file: the most that is written or read at once.
pub const CHUNK_BYTES: usize = 256 * 1024;
pub(crate) const CHUNK_HEADER_BYTES: usize = 16;
/// The snapshot's bytes in a full chunk.
pub const CHUNK_BODY_BYTES: usize = CHUNK_BYTES - CHUNK_HEADER_BYTES;

/// Which snapshot a file is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotHead {
    /// Whose file it is.
    pub identity: Identity,
    /// The file's number in its shard.
    pub file_no: u64,
    /// The group.
    pub group: GroupId,
    /// The last entry that it covers.
    pub index: Index,
    /// That entry's term.
    pub term: Term,
}

/// What a file is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotName {
    /// `NNNNNNNN.snap`: counts if the log names it.
    Snapshot {
        /// Its number.
        file_no: u64,
    },
    /// `NNNNNNNN.GROUP.INDEX.TERM.ckpt`: a machine's state that no log depends on.
    Checkpoint {
        /// Its number.
        file_no: u64,
        /// The group.
        group: GroupId,
        /// The last entry that it covers.
        index: Index,
        /// That entry's term.
        term: Term,
    },
}

impl SnapshotName {
    /// The file's number.
    pub fn file_no(self) -> u64 {
        match self {
            Self::Snapshot { file_no } | Self::Checkpoint { file_no, .. } => file_no,
        }
    }

    /// Where it lies.
    pub fn path(self, dir: &Path) -> PathBuf {
        match self {
            Self::Snapshot { file_no } => dir.join(format!("{file_no:08}.snap")),
            Self::Checkpoint { file_no, group, index, term } => {
                dir.join(format!("{file_no:08}.{}.{}.{}.ckpt", group.0, index.0, term.0))
            }
        }
    }

    /// What a file of this name is; `None` if it is none of ours.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('.');
        let mut number = || parts.next()?.parse::<u64>().ok();
        let file_no = number()?;
        let found = match name.ends_with(".ckpt") {
            true => {
                let (group, index, term) = (GroupId(number()?), Index(number()?), Term(number()?));
                Self::Checkpoint { file_no, group, index, term }
            }
            false => Self::Snapshot { file_no },
        };
        // One spelling a file: no second name leads to the same number.
        (found.path(Path::new("")) == Path::new(name)).then_some(found)
    }
}

/// A snapshot that is on its way from another member, as far as it has come: `NNNNNNNN.GROUP.INDEX.TERM.BYTES.CRC.part`.
/// The name says all that a later start has to know to go on with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartName {
    /// The group.
    pub group: GroupId,
    /// The last entry that it will cover.
    pub index: Index,
    /// That entry's term.
    pub term: Term,
    /// What it will be when it is whole.
    pub whole: SnapshotFile,
}

impl PartName {
    /// Where it lies.
    pub fn path(self, dir: &Path) -> PathBuf {
        let Self { group, index, term, whole: SnapshotFile { file_no, bytes, crc } } = self;
        dir.join(format!("{file_no:08}.{}.{}.{}.{bytes}.{crc}.part", group.0, index.0, term.0))
    }

    /// What a file of this name is; `None` if it is none of ours.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_suffix(".part")?.split('.');
        let mut number = || parts.next()?.parse::<u64>().ok();
        let file_no = number()?;
        let (group, index, term) = (GroupId(number()?), Index(number()?), Term(number()?));
        let whole = SnapshotFile { file_no, bytes: number()?, crc: u32::try_from(number()?).ok()? };
        let found = Self { group, index, term, whole };
        (found.path(Path::new("")) == Path::new(name)).then_some(found)
    }
}

/// The number of a file that was being written, by its name.
pub(crate) fn parse_unfinished(name: &str) -> Option<u64> {
    name.strip_suffix(".tmp").and_then(SnapshotName::parse).map(SnapshotName::file_no)
}

/// Chunks of a snapshot of so many bytes.
pub fn chunks_of(bytes: u64) -> u64 {
    bytes.div_ceil(CHUNK_BODY_BYTES as u64)
}

/// The snapshot's bytes in one of its chunks: all but the last are full.
pub fn chunk_bytes(bytes: u64, number: u64) -> usize {
    bytes.saturating_sub(number.saturating_mul(CHUNK_BODY_BYTES as u64)).min(CHUNK_BODY_BYTES as u64) as usize
}

/// Where a chunk lies in the file.
pub(crate) fn chunk_offset(number: u64) -> u64 {
    BLOCK_BYTES as u64 + number * CHUNK_BYTES as u64
}

/// The name of a file that is being written.
pub(crate) fn unfinished(dir: &Path, file_no: u64) -> PathBuf {
    dir.join(format!("{file_no:08}.snap.tmp"))
}

/// What a chunk of so many bytes takes in the file.
pub(crate) fn chunk_span(body_bytes: usize) -> usize {
    (CHUNK_HEADER_BYTES + body_bytes).next_multiple_of(BLOCK_BYTES)
}

/// Fills `buf` with a header; returns its checksum, the seed of all others.
pub(crate) fn put_head(head: &SnapshotHead, buf: &mut Buffer) -> u32 {
    let Identity { cluster, node, incarnation, shard, .. } = head.identity;
    buf.clear();
    buf.put(MAGIC);
    buf.put_u32(0);
    buf.put_u16(VERSION);
    buf.put_u16(shard.0);
    buf.put_u128(cluster);
    for word in [node.0, incarnation, head.file_no, head.group.0, head.index.0, head.term.0] {
        buf.put_u64(word);
    }
    seal(0, 8, BLOCK_BYTES, buf)
}

/// Fills `buf` with a chunk.
pub(crate) fn put_chunk(seed: u32, number: u32, body: &[u8], buf: &mut Buffer) {
    buf.clear();
    buf.put(CHUNK_MAGIC);
    buf.put_u32(0);
    buf.put_u32(number);
    buf.put_u32(body.len() as u32);
    buf.put(body);
    seal(seed, 4, chunk_span(body.len()), buf);
}

/// Fills `buf` with a trailer.
pub(crate) fn put_end(seed: u32, chunks: u32, file: &SnapshotFile, buf: &mut Buffer) {
    buf.clear();
    buf.put(END_MAGIC);
    buf.put_u32(0);
    buf.put_u32(chunks);
    buf.put_u64(file.bytes);
    buf.put_u32(file.crc);
    seal(seed, 8, BLOCK_BYTES, buf);
}

/// Pads to `bytes` and puts the checksum of all that follows it at `at`.
fn seal(seed: u32, at: usize, bytes: usize, buf: &mut Buffer) -> u32 {
    let filled = buf.len();
    buf.resize(bytes);
    buf[filled..].fill(0);
    let crc = crc32c_from(seed, &buf[at + 4..]);
    buf[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// Reads a header and its checksum.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read_head(block: &[u8], shards: u16) -> Result<(SnapshotHead, u32), &'static str> {
    let mut reader = opened(block, MAGIC, 0, "header")?;
    let short = |_| "short header";
    let crc = crc32c(&block[12..]);
    if reader.u16().map_err(short)? != VERSION {
        return Err("unknown version");
    }
    let shard = coracle_base::ShardId(reader.u16().map_err(short)?);
    let cluster = reader.u128().map_err(short)?;
    let mut word = || reader.u64().map_err(short);
    let (node, incarnation) = (coracle_base::NodeId(word()?), word()?);
    let identity = Identity { cluster, node, incarnation, shard, shards };
    let (file_no, group, index, term) = (word()?, GroupId(word()?), Index(word()?), Term(word()?));
    Ok((SnapshotHead { identity, file_no, group, index, term }, crc))
}

/// Reads a chunk: its bytes.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read_chunk(span: &[u8], seed: u32, number: u32) -> Result<&[u8], &'static str> {
    let mut reader = Reader::new(span);
    let short = |_| "short chunk";
    if reader.bytes(4).map_err(short)? != CHUNK_MAGIC {
        return Err("no chunk where one should be");
    }
    if reader.u32().map_err(short)? != crc32c_from(seed, &span[8..]) {
        return Err("a chunk's checksum does not hold");
    }
    if reader.u32().map_err(short)? != number {
        return Err("a chunk out of order");
    }
    let bytes = reader.u32().map_err(short)? as usize;
    let body = reader.bytes(bytes).map_err(short)?;
    if bytes > 0 && chunk_span(bytes) == span.len() { Ok(body) } else { Err("a chunk of the wrong length") }
}

/// Reads a trailer: how many chunks, how many bytes, their checksum.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read_end(block: &[u8], seed: u32) -> Result<(u32, u64, u32), &'static str> {
    let mut reader = opened(block, END_MAGIC, seed, "trailer")?;
    let short = |_| "short trailer";
    Ok((reader.u32().map_err(short)?, reader.u64().map_err(short)?, reader.u32().map_err(short)?))
}

/// What follows magic and checksum of a block, both of which hold.
fn opened<'a>(
    block: &'a [u8],
    magic: &[u8; 8],
    seed: u32,
    what: &'static str,
) -> Result<Reader<'a>, &'static str> {
    let mut reader = Reader::new(block);
    let found = reader.bytes(8).map_err(|_| what)?;
    if found != magic {
        return Err(if what == "header" { "no header" } else { "no trailer where one should be" });
    }
    let crc = reader.u32().map_err(|_| what)?;
    if crc != crc32c_from(seed, &block[12..]) {
        return Err(if what == "header" {
            "the header's checksum does not hold"
        } else {
            "the trailer's checksum does not hold"
        });
    }
    Ok(reader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_have_one_spelling() {
        let dir = Path::new("d");
        let snapshot = SnapshotName::Snapshot { file_no: 7 };
        let checkpoint = SnapshotName::Checkpoint {
            file_no: 123_456_789,
            group: GroupId(4),
            index: Index(5),
            term: Term(6),
        };
        assert_eq!(snapshot.path(dir), Path::new("d/00000007.snap"));
        assert_eq!(checkpoint.path(dir), Path::new("d/123456789.4.5.6.ckpt"));
        for one in [snapshot, checkpoint] {
            let path = one.path(dir);
            assert_eq!(SnapshotName::parse(path.file_name().unwrap().to_str().unwrap()), Some(one));
        }
        for other in
            ["7.snap", "00000007.snap.tmp", "0000007x.snap", "00000007.4.5.ckpt", "00000007.4.05.6.ckpt", ""]
        {
            assert_eq!(SnapshotName::parse(other), None, "{other}");
        }
        assert_eq!(parse_unfinished("00000007.snap.tmp"), Some(7));
        let whole = SnapshotFile { file_no: 7, bytes: 1 << 40, crc: u32::MAX };
        let part = PartName { group: GroupId(4), index: Index(5), term: Term(6), whole };
        assert_eq!(part.path(dir), Path::new("d/00000007.4.5.6.1099511627776.4294967295.part"));
        assert_eq!(PartName::parse("00000007.4.5.6.1099511627776.4294967295.part"), Some(part));
        for other in ["00000007.4.5.6.7.part", "00000007.4.5.6.07.8.part", "00000007.4.5.6.7.4294967296.part"]
        {
            assert_eq!(PartName::parse(other), None, "{other}");
        }
    }

    #[test]
    fn chunks_cover_the_bytes() {
        let full = CHUNK_BODY_BYTES as u64;
        for bytes in [0, 1, full - 1, full, full + 1, 3 * full + 5] {
            let count = chunks_of(bytes);
            let sum: u64 = (0..count).map(|number| chunk_bytes(bytes, number) as u64).sum();
            assert_eq!(sum, bytes);
            assert!((0..count).all(|number| chunk_bytes(bytes, number) > 0));
            assert_eq!(chunk_bytes(bytes, count), 0);
        }
    }
}
