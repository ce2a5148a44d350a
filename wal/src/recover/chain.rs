//! Which files make up the log, and in which order: by what their heads say, never by what lies around.
//!
//! From the newest sound head back, each names the one before. A cut head (made by recovery) names the file whose tail it
//! cut off; whatever has a number in between is void. A file that was reused is simply missing: that matters only if the
//! checkpoint still needs it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use coracle_base::limits::BLOCK_BYTES;
use coracle_io::disk::run;
use coracle_io::{Disk, DiskError, DiskOk, DiskOp, FileMode};

use crate::config::{Config, Identity};
use crate::error::WalError;
use crate::files::Name;
use crate::format::Uuid;
use crate::format::head::{Cut, Head, HeadCopy, VERSION};
use crate::format::segment::{SEGMENT_VERSION, SegmentCopy, SegmentHead};

/// A file that has a number of the log.
#[derive(Debug, Clone)]
pub(crate) struct LogFile {
    pub(crate) bytes: u64,
    /// `None` if neither copy is sound.
    pub(crate) head: Option<Head>,
}

/// A file that has a number of a segment.
#[derive(Debug, Clone)]
pub(crate) struct SegmentFile {
    pub(crate) bytes: u64,
    /// `None` if neither copy is sound.
    pub(crate) head: Option<SegmentHead>,
    /// Offsets of copies that are not.
    pub(crate) bad_copies: Vec<u64>,
}

/// What lies in the log's directory.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    pub(crate) logs: BTreeMap<u64, LogFile>,
    /// By number, with the bit `SEGMENT`. Those that nothing refers to are what a crash has left.
    pub(crate) segments: BTreeMap<u64, SegmentFile>,
    pub(crate) spares: Vec<(PathBuf, u64)>,
    /// Files that are not what their name says.
    pub(crate) strays: Vec<PathBuf>,
    /// The highest file number ever seen, by name or head.
    pub(crate) highest_no: u64,
    pub(crate) boot_epoch: u64,
    /// Copies of heads that were not sound: file and offset.
    pub(crate) bad_copies: Vec<(PathBuf, u64)>,
}

/// A file in its place in the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) file_no: u64,
    pub(crate) uuid: Uuid,
    /// `None`: missing, or neither copy is sound.
    pub(crate) head: Option<Head>,
    /// 0 if it is missing.
    pub(crate) bytes: u64,
    /// Where the head of the next file cut it off.
    pub(crate) cut: Option<Cut>,
}

impl Directory {
    /// Looks at every file's head. With no identity, anybody's will do.
    ///
    /// # Errors
    /// A file is another node's, or newer than this program; or the directory cannot be read.
    pub(crate) fn read<D: Disk>(
        disk: &mut D,
        config: &Config,
        identity: Option<&Identity>,
    ) -> Result<Self, WalError> {
        let mut directory = Self::default();
        for entry in disk.list(&config.dir)? {
            let path = config.dir.join(&entry.name);
            match Name::of(&entry.name) {
                Name::Log(file_no) => directory.add_log(disk, path, file_no, entry.bytes, identity)?,
                Name::Segment(file_no) => {
                    directory.add_segment(disk, path, file_no, entry.bytes, identity)?;
                }
                Name::Spare => directory.spares.push((path, entry.bytes)),
                Name::Other => {}
            }
        }
        Ok(directory)
    }

    fn add_log<D: Disk>(
        &mut self,
        disk: &mut D,
        path: PathBuf,
        file_no: u64,
        bytes: u64,
        identity: Option<&Identity>,
    ) -> Result<(), WalError> {
        self.highest_no = self.highest_no.max(file_no);
        let copies = read_copies(disk, &path, Head::decode, HeadCopy::Bad)?;
        let mut sound = None;
        for (copy, offset) in copies.into_iter().zip([0, BLOCK_BYTES as u64]) {
            match copy {
                HeadCopy::Sound(head) => sound = sound.or(Some(head)),
                HeadCopy::Newer { version } => {
                    return Err(WalError::NewerFormat { file: path, version, ours: VERSION });
                }
                HeadCopy::Bad => self.bad_copies.push((path.clone(), offset)),
            }
        }
        if let Some(head) = &sound {
            if let Some(identity) = identity {
                check_identity(&path, &head.identity, identity)?;
            }
            self.highest_no = self.highest_no.max(head.file_no);
            self.boot_epoch = self.boot_epoch.max(head.boot_epoch);
            if head.file_no != file_no {
                self.strays.push(path);
                return Ok(());
            }
        }
        self.logs.insert(file_no, LogFile { bytes, head: sound.map(|head| *head) });
        Ok(())
    }

    fn add_segment<D: Disk>(
        &mut self,
        disk: &mut D,
        path: PathBuf,
        file_no: u64,
        bytes: u64,
        identity: Option<&Identity>,
    ) -> Result<(), WalError> {
        let mut segment = SegmentFile { bytes, head: None, bad_copies: Vec::new() };
        let copies = read_copies(disk, &path, SegmentHead::decode, SegmentCopy::Bad)?;
        for (copy, offset) in copies.into_iter().zip([0, BLOCK_BYTES as u64]) {
            match copy {
                SegmentCopy::Sound(head) => segment.head = segment.head.or(Some(head)),
                SegmentCopy::Newer { version } => {
                    return Err(WalError::NewerFormat { file: path, version, ours: SEGMENT_VERSION });
                }
                SegmentCopy::Bad => segment.bad_copies.push(offset),
            }
        }
        if let Some(head) = &segment.head {
            if let Some(identity) = identity {
                check_identity(&path, &head.identity, identity)?;
            }
            if head.file_no != file_no {
                self.strays.push(path);
                return Ok(());
            }
        }
        self.segments.insert(file_no, segment);
        Ok(())
    }

    /// Whether there is nothing of a log at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.logs.is_empty() && self.segments.is_empty() && self.strays.is_empty()
    }

    /// The files of the log in order, the newest last; empty if there is no sound head at all.
    pub(crate) fn chain(&self) -> Vec<Link> {
        let newest = self.logs.iter().rev().find_map(|(_, log)| log.head);
        let mut links = Vec::new();
        let mut next = newest.map(|head| (head.file_no, head.uuid, None));
        while let Some((file_no, uuid, cut)) = next {
            let log = self.logs.get(&file_no);
            let head = log.and_then(|log| log.head).filter(|head| head.uuid == uuid);
            let bytes = log.map_or(0, |log| log.bytes);
            // A sound head of another use of the file: ours is gone.
            let is_other = head.is_none() && log.is_some_and(|log| log.head.is_some());
            links.push(Link { file_no, uuid, head, bytes: if is_other { 0 } else { bytes }, cut });
            next = match head {
                Some(head) => head.prev.map(|prev| (prev.file_no, prev.uuid, prev.cut)),
                // What it followed is not known. Its neighbour is the best guess, and only damaged logs need it.
                None => self.neighbour(file_no),
            };
        }
        while links.last().is_some_and(|link| link.bytes == 0) {
            links.pop();
        }
        links.reverse();
        links
    }

    fn neighbour(&self, file_no: u64) -> Option<(u64, Uuid, Option<Cut>)> {
        let (file_no, head) =
            self.logs.range(..file_no).rev().find_map(|(no, log)| log.head.map(|head| (*no, head)))?;
        Some((file_no, head.uuid, None))
    }
}

/// Both copies of a head: `bad` is what counts as none.
fn read_copies<D: Disk, C: Clone>(
    disk: &mut D,
    path: &std::path::Path,
    decode: fn(&[u8]) -> C,
    bad: C,
) -> Result<[C; 2], WalError> {
    let op = DiskOp::Open { path: path.to_owned(), mode: FileMode::Read };
    let DiskOk::Opened { file, .. } = run(disk, op)?.0 else { return Ok([bad.clone(), bad]) };
    let first = read_copy(disk, file, 0, decode, bad.clone())?;
    let second = read_copy(disk, file, BLOCK_BYTES as u64, decode, bad)?;
    run(disk, DiskOp::Close { file })?;
    Ok([first, second])
}

fn read_copy<D: Disk, C>(
    disk: &mut D,
    file: coracle_io::FileId,
    offset: u64,
    decode: fn(&[u8]) -> C,
    bad: C,
) -> Result<C, WalError> {
    let mut buf = disk.buffer(BLOCK_BYTES);
    buf.resize(BLOCK_BYTES);
    match run(disk, DiskOp::Read { file, offset, buf }) {
        Ok((DiskOk::Read { bytes }, Some(buf))) => {
            let copy = decode(&buf[..bytes.min(buf.len())]);
            disk.recycle(buf);
            Ok(copy)
        }
        Ok(_) => Ok(bad),
        // One copy that cannot be read is what the other one is for.
        Err(DiskError::Failed { .. }) => Ok(bad),
        Err(error) => Err(error.into()),
    }
}

fn check_identity(file: &std::path::Path, found: &Identity, expected: &Identity) -> Result<(), WalError> {
    let fields = [
        ("the cluster", found.cluster, expected.cluster),
        ("the node", found.node.0.into(), expected.node.0.into()),
        ("the node's incarnation", found.incarnation.into(), expected.incarnation.into()),
        ("the shard", found.shard.0.into(), expected.shard.0.into()),
        ("the number of shards", found.shards.into(), expected.shards.into()),
    ];
    match fields.into_iter().find(|(_, found, expected)| found != expected) {
        None => Ok(()),
        Some((field, found, expected)) => {
            Err(WalError::WrongIdentity { file: file.to_owned(), field, found, expected })
        }
    }
}
