//! Whether a data directory is the newest of its kind: the boots that it knows of, and how far other nodes said to be
//! durable. Pure codec and rules, and the file's reading and writing at a start.
//!
//! Batches of a shard's log count up for ever, and after a crash nothing durable is missing. So a node says to the others
//! "durable up to batch S", first where its log ended when it started, then at most once an envelope; and with the hello of
//! the next session each says back the highest S that it has heard. Whoever has less than it said itself is an older copy of
//! its directory (a machine was rolled back, a backup restored), or its disk lied. Only batches that a vote or an
//! acknowledgement rests on are told of, so that the rot of a mark which nothing rests on accuses nobody.
//!
//! A number alone would not do: a copy that runs unnoticed for a while writes batches of its own, and passes S. So each boot
//! draws a name, S is said together with it, and the directory keeps the names of its last boots and the batch that each
//! ended with. A boot that is not among them was of a copy that went another way.
//!
//! ```text
//!   file "shard-N.boots", little-endian
//!   0    8   magic          "CORACLEB"
//!   8    2   version        1
//!   10   2   min_reader     1: a reader of a lower version refuses
//!   12   4   flags          bit 0: votes of the groups here may be lost, bit 1: and there may have been others; an unknown
//!                           bit is refused
//!   16   2   boots          oldest first, the last one is the present: epoch u64, name u64, end u64 (all ones: not known)
//!   ..   2   heard          of each node: node u64, incarnation u64, epoch u64, name u64, seq u64
//!   ..   4   crc32c         of everything before, in any version; then zeros up to the block
//! ```
//!
//! The file is written at a start, when another node begins a boot, now and then while more is heard, and at a stop in good
//! order: what was heard last is lost with a crash. It is lost with all of a cluster only: an older copy is noticed as long
//! as one node that runs on, or has written since, remembers. An older program does not know the file and leaves it alone.
//!
//! Invariants: (1) what a node says to be durable it says after the name of its boot is durable; (2) what is lost stays so
//! over restarts, until all groups here are whole, and that is durable before the node says again what is.

use std::path::PathBuf;

use coracle_base::checksum::crc32c;
use coracle_base::codec::{Reader, Sink, Truncated};
use coracle_base::limits::BLOCK_BYTES;
use coracle_base::{NodeId, ShardId};
use coracle_io::disk::run;
use coracle_io::{Disk, DiskError, DiskOk, DiskOp, FileId, FileMode};

use crate::Error;

const MAGIC: &[u8; 8] = b"CORACLEB";
const VERSION: u16 = 1;
/// Boots that are remembered: whoever has not heard of a node for so long accuses it of nothing.
const BOOTS_MAX: usize = 32;
/// Nodes whose words are remembered.
pub(crate) const HEARD_MAX: usize = 60;
const BOOT_BYTES: usize = 24;
const HEARD_BYTES: usize = 40;
const OPEN: u64 = u64::MAX;
const VOTES_LOST: u32 = 1;
const UNNAMED: u32 = 2;

const _: () = assert!(24 + BOOTS_MAX * BOOT_BYTES + HEARD_MAX * HEARD_BYTES <= BLOCK_BYTES);

/// How far a node said to be durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Of whose directory.
    pub(crate) incarnation: u64,
    /// Its boot: the number, and the name.
    pub(crate) epoch: u64,
    pub(crate) boot: u64,
    /// The batch.
    pub(crate) seq: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Boot {
    epoch: u64,
    name: u64,
    end: u64,
}

/// What a directory knows of its past, and of others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Lineage {
    boots: Vec<Boot>,
    pub(crate) heard: Vec<(NodeId, Mark)>,
    /// Votes of the groups that are here may be lost.
    pub(crate) votes_lost: bool,
    /// And of groups that are not.
    pub(crate) is_unnamed: bool,
}

/// What somebody remembers and the directory does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forgotten {
    /// So many batches at the end of a boot.
    Batches(u64),
    /// A boot, up to this batch.
    Boot(u64),
}

/// Why a file says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    Damaged,
    /// What it says is not known here.
    Newer,
}

fn file(shard: ShardId) -> PathBuf {
    format!("shard-{shard}.boots").into()
}

fn new_file(shard: ShardId) -> PathBuf {
    format!("shard-{shard}.boots.new").into()
}

impl Lineage {
    /// What the directory says. A file that is damaged may have said that votes are lost; one that is not there is of an
    /// older program, or the node's first start.
    ///
    /// # Errors
    /// The disk's; or a newer program wrote it, and may have said that votes are lost.
    pub(crate) fn read<D: Disk>(disk: &mut D, shard: ShardId) -> Result<Self, Error> {
        let (file, bytes) = match run(disk, DiskOp::Open { path: file(shard), mode: FileMode::Read }) {
            Ok((DiskOk::Opened { file, bytes, .. }, _)) => (file, bytes),
            Ok(_) => return Err(unexpected(shard).into()),
            Err(DiskError::NotFound { .. }) => return Ok(Self::default()),
            Err(error) => return Err(error.into()),
        };
        let mut buf = disk.buffer(BLOCK_BYTES);
        buf.resize(BLOCK_BYTES.min(bytes as usize));
        let read = run(disk, DiskOp::Read { file, offset: 0, buf });
        close(disk, file, &read)?;
        let lineage = match read {
            Ok((_, Some(buf))) => Self::decode(&buf),
            _ => Err(Unreadable::Damaged),
        };
        match lineage {
            Ok(lineage) => Ok(lineage),
            Err(Unreadable::Newer) => {
                let reason = "a newer version of the program wrote it: start that one".into();
                Err(Error::Directory { path: self::file(shard), reason })
            }
            Err(Unreadable::Damaged) => {
                tracing::error!(file = %self::file(shard).display(), "damaged: what was voted and acknowledged here is mistrusted");
                Ok(Self { votes_lost: true, is_unnamed: true, ..Self::default() })
            }
        }
    }

    /// Whether it knows of a boot before the present one.
    pub(crate) fn has_past(&self) -> bool {
        self.boots.len() > 1
    }

    /// A boot begins: the log ended with this batch.
    pub(crate) fn begin(&mut self, epoch: u64, name: u64, end_seq: u64) {
        if let Some(last) = self.boots.last_mut().filter(|last| last.end == OPEN) {
            last.end = end_seq;
        }
        self.boots.push(Boot { epoch, name, end: OPEN });
        let excess = self.boots.len().saturating_sub(BOOTS_MAX);
        self.boots.drain(..excess);
    }

    /// What of this is not here, that we said ourselves to be durable.
    pub(crate) fn forgotten(&self, told: Mark) -> Option<Forgotten> {
        match self.boots.iter().find(|boot| boot.name == told.boot) {
            Some(boot) => told.seq.checked_sub(boot.end).filter(|by| *by > 0).map(Forgotten::Batches),
            // So long ago that nobody knows.
            None if self.boots.len() == BOOTS_MAX && told.epoch < self.boots[0].epoch => None,
            None => Some(Forgotten::Boot(told.seq)),
        }
    }

    /// Whether the other one knows as much of its own past, and of what it has lost.
    pub(crate) fn is_known_to(&self, other: &Self) -> bool {
        let lost = (self.votes_lost, self.is_unnamed);
        self.boots == other.boots && (!lost.0 || other.votes_lost) && (!lost.1 || other.is_unnamed)
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// The disk's: then what was there before is there still.
    pub(crate) fn save<D: Disk>(&self, disk: &mut D, shard: ShardId) -> Result<(), DiskError> {
        let mut buf = disk.buffer(BLOCK_BYTES);
        buf.put(&self.encode());
        buf.resize(BLOCK_BYTES);
        let opened = run(disk, Self::open_new(shard))?;
        let (DiskOk::Opened { file, .. }, _) = opened else { return Err(unexpected(shard)) };
        let written = run(disk, DiskOp::Write { file, offset: 0, buf }).map(|_| ());
        let synced = written.and_then(|()| run(disk, DiskOp::Sync { file }).map(|_| ()));
        close(disk, file, &synced)?;
        synced?;
        run(disk, Self::rename(shard))?;
        run(disk, DiskOp::SyncDir { path: PathBuf::new() })?;
        Ok(())
    }

    /// The first operation of writing it.
    pub(crate) fn open_new(shard: ShardId) -> DiskOp {
        DiskOp::Open { path: new_file(shard), mode: FileMode::Write }
    }

    /// The one that makes it count.
    pub(crate) fn rename(shard: ShardId) -> DiskOp {
        DiskOp::Rename { from: new_file(shard), to: file(shard) }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        out.put(MAGIC);
        out.put_u16(VERSION);
        out.put_u16(VERSION);
        let unnamed = if self.is_unnamed { UNNAMED } else { 0 };
        out.put_u32(if self.votes_lost { VOTES_LOST } else { 0 } | unnamed);
        out.put_u16(self.boots.len() as u16);
        for boot in &self.boots {
            [boot.epoch, boot.name, boot.end].into_iter().for_each(|number| out.put_u64(number));
        }
        let heard = &self.heard[..self.heard.len().min(HEARD_MAX)];
        out.put_u16(heard.len() as u16);
        for (node, mark) in heard {
            out.put_u64(node.0);
            mark.encode(&mut out);
        }
        let crc = crc32c(&out);
        out.put_u32(crc);
        out
    }

    /// # Errors
    /// It is damaged, or sound and of a newer version.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        match Self::decode_known(bytes) {
            Some(lineage) => Ok(lineage),
            None if bytes.starts_with(MAGIC) && is_sound(bytes) => Err(Unreadable::Newer),
            None => Err(Unreadable::Damaged),
        }
    }

    /// `None`: damaged, or of a newer version.
    fn decode_known(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let found = reader.bytes(8).ok()? == MAGIC;
        let (_, min_reader, flags) = (reader.u16().ok()?, reader.u16().ok()?, reader.u32().ok()?);
        if !found || min_reader > VERSION || flags & !(VOTES_LOST | UNNAMED) != 0 {
            return None;
        }
        let (mut boots, mut heard) = (Vec::new(), Vec::new());
        for _ in 0..reader.u16().ok().filter(|count| usize::from(*count) <= BOOTS_MAX)? {
            let (epoch, name) = (reader.u64().ok()?, reader.u64().ok()?);
            boots.push(Boot { epoch, name, end: reader.u64().ok()? });
        }
        for _ in 0..reader.u16().ok().filter(|count| usize::from(*count) <= HEARD_MAX)? {
            let node = NodeId(reader.u64().ok()?);
            heard.push((node, Mark::decode(&mut reader).ok()?));
        }
        let covered = bytes.len() - reader.rest().len();
        let is_sound = reader.u32().ok()? == crc32c(&bytes[..covered]);
        let (votes_lost, is_unnamed) = (flags & VOTES_LOST != 0, flags & UNNAMED != 0);
        is_sound.then_some(Self { boots, heard, votes_lost, is_unnamed })
    }
}

impl Mark {
    pub(crate) fn encode(&self, out: &mut impl Sink) {
        [self.incarnation, self.epoch, self.boot, self.seq]
            .into_iter()
            .for_each(|number| out.put_u64(number));
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, Truncated> {
        let (incarnation, epoch) = (reader.u64()?, reader.u64()?);
        Ok(Self { incarnation, epoch, boot: reader.u64()?, seq: reader.u64()? })
    }
}

/// Whether its checksum is right, wherever it ends: some of the zeros may be the checksum's own.
fn is_sound(bytes: &[u8]) -> bool {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    (end..=(end + 4).min(bytes.len())).any(|end| {
        let (covered, crc) = bytes[..end].split_at(end.saturating_sub(4));
        crc == crc32c(covered).to_le_bytes()
    })
}

/// Closes the file after what was done to it last; a disk that is gone does nothing any more.
fn close<D: Disk, T>(disk: &mut D, file: FileId, last: &Result<T, DiskError>) -> Result<(), DiskError> {
    if matches!(last, Err(DiskError::Crashed)) {
        return Err(DiskError::Crashed);
    }
    run(disk, DiskOp::Close { file }).map(|_| ())
}

fn unexpected(shard: ShardId) -> DiskError {
    DiskError::Failed { path: file(shard), op: "open", code: 0, reason: "unexpected completion".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(epoch: u64, boot: u64, seq: u64) -> Mark {
        Mark { incarnation: 7, epoch, boot, seq }
    }

    #[test]
    fn what_comes_back_is_what_was_written_and_every_flip_is_noticed() {
        let mut lineage = Lineage { is_unnamed: true, ..Lineage::default() };
        (1..=40).for_each(|epoch| lineage.begin(epoch, 100 + epoch, 10 * epoch));
        lineage.heard = vec![(NodeId(2), mark(3, 5, 8))];
        let bytes = lineage.encode();
        assert_eq!(Lineage::decode(&bytes), Ok(lineage));
        for at in 0..8 * bytes.len() {
            let mut bad = bytes.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert_eq!(Lineage::decode(&bad), Err(Unreadable::Damaged), "bit {at}");
        }
        assert!((0..bytes.len()).all(|cut| Lineage::decode(&bytes[..cut]) == Err(Unreadable::Damaged)));
    }

    /// It may say that votes are lost: who does not understand it neither trusts the directory nor writes over it.
    #[test]
    fn what_a_newer_program_wrote_is_not_taken_for_damage() {
        let newer = |change: fn(&mut Vec<u8>)| {
            let mut bytes = Lineage::default().encode();
            bytes.truncate(bytes.len() - 4);
            change(&mut bytes);
            bytes.extend(crc32c(&bytes).to_le_bytes());
            bytes.resize(BLOCK_BYTES, 0);
            Lineage::decode(&bytes)
        };
        assert_eq!(newer(|_| {}), Ok(Lineage::default()));
        assert_eq!(newer(|bytes| bytes[10] = 2), Err(Unreadable::Newer));
        assert_eq!(newer(|bytes| bytes[12] = 4), Err(Unreadable::Newer));
        assert_eq!(newer(|bytes| (bytes[10] = 2, bytes.extend([7; 900])).1), Err(Unreadable::Newer));
    }

    #[test]
    fn golden_lineage() {
        let lineage = Lineage {
            boots: vec![Boot { epoch: 1, name: 2, end: 3 }],
            heard: vec![(NodeId(4), mark(5, 6, 8))],
            votes_lost: true,
            is_unnamed: false,
        };
        let mut bytes = b"CORACLEB".to_vec();
        bytes.extend([1, 0, 1, 0, 1, 0, 0, 0, 1, 0]);
        [1u64, 2, 3].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        bytes.extend([1, 0]);
        [4u64, 7, 5, 6, 8].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        bytes.extend(crc32c(&bytes).to_le_bytes());
        assert_eq!(lineage.encode(), bytes);
    }

    #[test]
    fn an_older_copy_is_told_from_the_directory_that_ran_on() {
        let mut lineage = Lineage::default();
        lineage.begin(1, 11, 0);
        let copy = lineage.clone();
        // It runs on to batch 20, crashes, and runs on to 30.
        lineage.begin(2, 12, 20);
        assert_eq!([mark(1, 11, 20), mark(2, 12, 29)].map(|told| lineage.forgotten(told)), [None, None]);
        // The copy ends at 12, and runs to 99 before it meets anybody.
        let mut old = copy.clone();
        old.begin(2, 22, 12);
        old.begin(3, 23, 99);
        assert_eq!(old.forgotten(mark(1, 11, 20)), Some(Forgotten::Batches(8)));
        assert_eq!(old.forgotten(mark(2, 12, 29)), Some(Forgotten::Boot(29)));
        assert_eq!([mark(1, 11, 12), mark(2, 22, 99)].map(|told| old.forgotten(told)), [None, None]);
    }

    #[test]
    fn what_was_too_long_ago_accuses_nobody() {
        let mut lineage = Lineage::default();
        (1..=50).for_each(|epoch| lineage.begin(epoch, 100 + epoch, 10 * epoch));
        assert_eq!(lineage.forgotten(mark(2, 999, 70)), None);
        assert_eq!(lineage.forgotten(mark(45, 999, 70)), Some(Forgotten::Boot(70)));
    }
}
