//! From files to a log: the newest complete checkpoint and every record after it, and nothing else.
//!
//! ```text
//!   reading.rs  all of it that writes nothing
//!   chain.rs    which files, in which order          find.rs, roots.rs   where a replay begins
//!   pages.rs    what the root only names                       replay.rs  what the records make
//!   scan.rs     which batches, and what a bad one means
//! ```
//!
//! Nothing is written before all of that is known. Then what was kept is made durable, and a new file is begun whose head
//! cuts the old tail off for ever: that head is the one atomic step, so a crash before or after it, and another
//! recovery, come to the same log. It is made of a void file, if there is one, whose head is not needed to come to the same
//! verdict again; only after it are the others reused and strays put aside.

pub(crate) mod chain;
mod find;
mod pages;
pub(crate) mod reader;
pub(crate) mod reading;
mod replay;
mod roots;
pub(crate) mod scan;
mod segments;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use coracle_base::codec::Reader;
use coracle_base::limits::WRITES_IN_FLIGHT_MAX;
use coracle_base::{GroupId, Index, Term};
use coracle_io::disk::run;
use coracle_io::{Disk, DiskError, DiskOk, DiskOp, FileMode};

use self::chain::{Directory, Link};
use self::reader::Readers;
use self::reading::{LogRead, read_log};
pub use self::replay::Hole;
use self::replay::Replay;
pub(crate) use self::replay::placed;
use self::scan::Tail;
use crate::checkpoint::{Checkpoints, Kept};
use crate::config::{Config, Identity};
use crate::error::WalError;
use crate::file_indexes::FileIndexes;
use crate::files::{File, Files, log_path, spare_path};
use crate::format::head::{Cut, Head, Prev};
use crate::format::page::{FileEntry, SnapshotFile, SnapshotPlace};
use crate::format::record::{IndexRange, RECORD_HEADER_BYTES, Record, SNAPSHOT_PREFIX_BYTES};
use crate::format::{Position, SEGMENT, Uuid};
use crate::groups::Group;
use crate::prepare::{Preparer, Ready, Source};
use crate::token::{self, Token};
use crate::wal::Start;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// Rises with every start.
    pub boot_epoch: u64,
    /// The last batch that is here, or was before its record was released; 0 for a new log.
    pub end_seq: u64,
    /// Every group that has a record, by uid.
    pub groups: Vec<RecoveredGroup>,
    /// How it went.
    pub report: Report,
}

/// A group's log as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredGroup {
    /// Which.
    pub group: GroupId,
    /// The newest consensus blob; empty if there was none.
    pub state: Vec<u8>,
    /// The snapshot, if it lies in the log and is readable.
    pub snapshot: Option<InlineSnapshot>,
    /// The snapshot, if it is a file of its own: its last entry is the one before `first`.
    pub snapshot_file: Option<SnapshotFile>,
    /// Entries that the snapshot covers and that live on.
    pub live: Vec<IndexRange>,
    /// Index of the first entry held; `last + 1` if there is none.
    pub first: Index,
    /// Index of the last entry, or of the snapshot.
    pub last: Index,
    /// First index of each span of equal terms, from the snapshot's index (if there is one) to `last`.
    pub terms: Vec<(Index, Term)>,
    /// The highest term of a leader whose run was accepted.
    pub accepted_term: Term,
    /// Acknowledged entries may be missing: the member must not vote or acknowledge as if it had them all.
    pub suspect: bool,
    /// A newer state may have been acknowledged than this one: the member may have voted without knowing.
    pub state_lost: bool,
}

/// A snapshot that lay in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InlineSnapshot {
    /// The last entry it covers.
    pub index: Index,
    /// That entry's term.
    pub term: Term,
    /// What the machine made of it.
    pub bytes: Vec<u8>,
}

/// How a recovery went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// There was no log: a new one was begun.
    pub created: bool,
    /// The checkpoint that was relied on; `None`: from the beginning of the log.
    pub checkpoint: Option<u64>,
    /// Files of the log.
    pub files: u64,
    /// Batches replayed.
    pub batches: u64,
    /// Records replayed.
    pub records: u64,
    /// Entries held by all groups.
    pub entries: u64,
    /// Where the log ended: the file, and the offset in it.
    pub tail: Option<(PathBuf, u64)>,
    /// Unfinished batches lay beyond it and were cut off, as after any crash.
    pub torn: bool,
    /// Durable batches may have been lost at the tail: groups that are not even named here may have had records.
    pub tail_suspect: bool,
    /// Durable batches that cannot be read. Which groups they were about is known if the batch after each of them says so:
    /// otherwise the same holds.
    pub holes: Vec<Hole>,
    /// This start or an earlier one found that durable records are missing.
    pub incomplete: bool,
    /// Copies of file heads that were damaged; the other copy served.
    pub damaged_heads: u32,
    /// Copies of checkpoint pages that were damaged; the other copy served.
    pub damaged_pages: u32,
    /// Files that the log needs and that are gone, or are not what they should be.
    pub missing: Vec<PathBuf>,
    /// Files that did not belong there and were renamed.
    pub strays: Vec<PathBuf>,
}

impl Report {
    /// Whether durable records may be missing: then a group that is not named may have had some, too.
    pub fn is_incomplete(&self) -> bool {
        self.incomplete
    }
}

/// The log as it was found, before anything is written.
struct Found<'a> {
    replay: Replay<'a>,
    tail: Tail,
    kept: [Option<Kept>; 2],
    last_checkpoint: u64,
    ends: Vec<FileEntry>,
}

/// Creates the log, or finds it and cuts its tail; either way a new file is ready afterwards.
pub(crate) fn recover<D: Disk>(
    disk: &mut D,
    config: Config,
    identity: Identity,
) -> Result<(Start, Recovery), WalError> {
    disk.make_dir(&config.dir)?;
    let directory = Directory::read(disk, &config, Some(&identity))?;
    if directory.is_empty() {
        if config.begun {
            let missing =
                "all of its files are gone: what was voted and acknowledged here is forgotten".to_owned();
            return Err(WalError::Lost { dir: config.dir, missing });
        }
        return create(disk, config, identity, directory);
    }
    let links = directory.chain();
    let dir = config.dir.clone();
    let mut readers = Readers::new(disk, &dir);
    let read = read_log(&mut readers, &dir, &directory, &links, &identity);
    readers.close()?;
    let LogRead { found, groups, mut report, .. } = read?;
    let end_seq = found.tail.seq;
    let (start, strays) = begin_anew(disk, config, identity, &directory, &links, found)?;
    report.strays = strays;
    log_report(&dir, &report);
    let boot_epoch = start.boot_epoch;
    Ok((start, Recovery { boot_epoch, end_seq, groups, report }))
}

fn log_report(dir: &Path, report: &Report) {
    let damage = report.holes.len() + report.missing.len() + report.strays.len();
    if damage > 0 || report.tail_suspect {
        tracing::error!(dir = %dir.display(), ?report, "the log is damaged: groups are suspect");
    } else {
        let Report { files, batches, entries, torn, .. } = report;
        tracing::info!(dir = %dir.display(), files, batches, entries, torn, "the log was recovered");
    }
}

impl Found<'_> {
    fn report(&self, directory: &Directory, dir: &Path) -> Report {
        Report {
            created: false,
            checkpoint: self.kept[0].as_ref().map(|kept| kept.id),
            files: directory.logs.len() as u64,
            batches: self.replay.batches,
            records: self.replay.records,
            entries: self.replay.groups.iter().map(Group::entries).sum(),
            tail: Some((log_path(dir, self.tail.at.file_no), self.tail.at.offset)),
            torn: self.tail.torn,
            tail_suspect: self.tail.suspect,
            holes: self.replay.holes.clone(),
            incomplete: self.replay.incomplete,
            damaged_heads: directory.bad_copies.len() as u32,
            damaged_pages: self.replay.damaged_pages,
            missing: Vec::new(),
            strays: Vec::new(),
        }
    }
}

// ---- what was found -------------------------------------------------------------------------------------------------

fn recovered<D: Disk>(readers: &mut Readers<'_, D>, group: &Group) -> Result<RecoveredGroup, WalError> {
    let (snapshot, snapshot_file) = match group.cold.snapshot {
        None => (None, None),
        Some(SnapshotPlace::Inline { at, bytes }) => (read_snapshot(readers, group, at, bytes)?, None),
        Some(SnapshotPlace::File(file)) => (None, Some(file)),
    };
    let snapshot_lost = group.cold.snapshot.is_some() && snapshot.is_none() && snapshot_file.is_none();
    let base = (group.base > Index::ZERO).then_some((group.base, group.cold.base_term));
    Ok(RecoveredGroup {
        group: group.cold.id,
        state: group.cold.state.clone(),
        suspect: group.cold.suspect || snapshot_lost,
        snapshot,
        snapshot_file,
        live: group
            .cold
            .live
            .iter()
            .map(|extent| IndexRange { first: extent.first, count: extent.count })
            .collect(),
        first: group.base.next(),
        last: group.last,
        terms: base.into_iter().chain(group.cold.terms.iter().copied()).collect(),
        accepted_term: group.accepted_term,
        state_lost: group.cold.state_lost,
    })
}

/// `None` if it is damaged.
fn read_snapshot<D: Disk>(
    readers: &mut Readers<'_, D>,
    group: &Group,
    at: Position,
    bytes: u32,
) -> Result<Option<InlineSnapshot>, WalError> {
    let bytes = RECORD_HEADER_BYTES + SNAPSHOT_PREFIX_BYTES + bytes as usize;
    let bytes = match readers.get(at.file_no, at.offset, bytes) {
        Ok(bytes) => bytes,
        Err(DiskError::Crashed) => return Err(DiskError::Crashed.into()),
        Err(_) => return Ok(None),
    };
    let whole = (group.cold.id, group.base, group.cold.base_term);
    Ok(match Record::read(&mut Reader::new(bytes)) {
        Ok(Record::Snapshot(found)) if (found.group, found.index, found.term) == whole => {
            Some(InlineSnapshot { index: found.index, term: found.term, bytes: found.bytes.to_vec() })
        }
        _ => None,
    })
}

// ---- beginning anew ----------------------------------------------------------------------------------------------

fn create<D: Disk>(
    disk: &mut D,
    config: Config,
    identity: Identity,
    directory: Directory,
) -> Result<(Start, Recovery), WalError> {
    let head = Head {
        identity,
        window: WRITES_IN_FLIGHT_MAX as u32,
        file_no: 1,
        uuid: Uuid::of(config.seed, 1),
        boot_epoch: 1,
        first_seq: 1,
        file_bytes: config.file_bytes,
        prev: None,
    };
    let mut leftovers = spares(&directory);
    let source = leftovers.pop().unwrap_or(Source::New);
    let (ready, prefill_bytes) = make_ready(disk, &config, head, source)?;
    let mut files = Files::default();
    files.insert_ready(&ready);
    let start = Start {
        identity,
        boot_epoch: 1,
        groups: crate::groups::Groups::new(identity.shards),
        refs: crate::groups::Refs::default(),
        files,
        checkpoints: Checkpoints::default(),
        indexes: FileIndexes::default(),
        leftovers,
        orphans: Vec::new(),
        segments_upto: 0,
        file_no: 1,
        first_seq: 1,
        chain: 0,
        incomplete: false,
        prefill_bytes,
        config,
    };
    let report = Report { created: true, files: 1, ..Report::default() };
    Ok((start, Recovery { boot_epoch: 1, end_seq: 0, groups: Vec::new(), report }))
}

fn spares(directory: &Directory) -> Vec<Source> {
    directory.spares.iter().map(|(path, bytes)| Source::Spare { path: path.clone(), bytes: *bytes }).collect()
}

/// Makes what was kept durable, cuts the tail off with a new file, and puts everything else in its place.
fn begin_anew<D: Disk>(
    disk: &mut D,
    config: Config,
    identity: Identity,
    directory: &Directory,
    links: &[Link],
    found: Found<'_>,
) -> Result<(Start, Vec<PathBuf>), WalError> {
    let Found { replay, tail, kept, last_checkpoint, ends } = found;
    let is_damaged = tail.suspect || !replay.holes.is_empty();
    let segments_upto = segments::highest(directory, &replay, &ends);
    sync_kept(disk, &config, links, &tail)?;
    let pages: BTreeSet<u64> =
        kept.iter().flatten().flat_map(|kept| kept.page_files.iter().copied()).collect();
    let mut files = files_in_use(directory, links, &tail, &ends, &replay, &pages);
    let checkpoints = Checkpoints::recovered(kept, last_checkpoint, replay.batches > 0);
    let mut refs = replay.refs;
    refs.hold_pages(checkpoints.page_files());
    let is_void = |no: u64| files.get(no).is_none() && directory.logs[&no].head.is_some();
    // The newest first: without it the log is a shorter chain, without another one it would have a gap.
    let void: Vec<u64> = directory.logs.keys().rev().copied().filter(|no| is_void(*no)).collect();
    let mut leftovers = spares(directory);
    // What the last start had ready and did not come to is filled already: a new file would be most of a start's time.
    let newest_void = void.first().map(|no| dead(directory, *no));
    let source = newest_void.filter(|one| one.bytes() >= config.file_bytes).or_else(|| leftovers.pop());
    let source = source.unwrap_or_else(|| match files.dead(checkpoints.needed_from(), tail.seq, &refs) {
        Some(file_no) => {
            refs.forget(file_no);
            let bytes = files.remove(file_no).map_or(0, |file| file.bytes);
            Source::Dead { file_no, handle: None, bytes }
        }
        None => Source::New,
    });
    let head = next_head(&config, identity, directory, links, &tail);
    let (ready, prefill_bytes, source) = make_ready_somehow(disk, &config, head, source, directory, &void)?;
    let reused = match source {
        Source::Dead { file_no, .. } => Some(file_no),
        Source::New | Source::Spare { .. } => None,
    };
    files.insert_ready(&ready);
    let orphans = segments::orphans(directory, &files);
    // What a damaged log does not name may be what it has lost: then nothing is thrown away.
    let (aside, orphans) = if is_damaged { (orphans, Vec::new()) } else { (Vec::new(), orphans) };
    let strays = put_strays_aside(disk, &config, directory, &files, &aside, (head.boot_epoch, reused))?;
    let orphans = orphans.into_iter().map(|file_no| log_path(&config.dir, file_no)).collect();
    // Spares first: a void file's new name must not be that of a spare that is still to be used.
    let void = void.into_iter().filter(|no| Some(*no) != reused && files.get(*no).is_none());
    let void = void.map(|no| dead(directory, no));
    // The file that was made ready may have had the name of a spare on its way, and taken its place.
    let replaced = spare_path(&config.dir, head.file_no);
    let spares =
        leftovers.into_iter().filter(|one| !matches!(one, Source::Spare { path, .. } if *path == replaced));
    let leftovers = void.chain(spares).collect();
    let start = Start {
        identity,
        boot_epoch: head.boot_epoch,
        groups: replay.groups,
        refs,
        indexes: FileIndexes::recovered(replay.indexes.into_values(), &files),
        files,
        checkpoints,
        leftovers,
        orphans,
        segments_upto,
        file_no: head.file_no,
        first_seq: head.first_seq,
        chain: tail.chain,
        incomplete: replay.incomplete,
        prefill_bytes,
        config,
    };
    Ok((start, strays))
}

/// The head of the file that this start goes on in: it cuts the one before off where the log ends.
fn next_head(
    config: &Config,
    identity: Identity,
    directory: &Directory,
    links: &[Link],
    tail: &Tail,
) -> Head {
    let file_no = directory.highest_no + 1;
    let before = links.iter().find(|link| link.file_no == tail.at.file_no);
    let cut = Cut { end: tail.at.offset, end_seq: tail.seq, end_chain: tail.chain, suspect: tail.suspect };
    Head {
        identity,
        window: WRITES_IN_FLIGHT_MAX as u32,
        file_no,
        uuid: Uuid::of(config.seed, file_no),
        boot_epoch: directory.boot_epoch + 1,
        first_seq: tail.seq_seen.max(tail.seq) + WRITES_IN_FLIGHT_MAX as u64 + 1,
        file_bytes: config.file_bytes,
        prev: Some(Prev {
            file_no: tail.at.file_no,
            uuid: before.map(|link| link.uuid).unwrap_or_default(),
            cut: Some(cut),
        }),
    }
}

/// A file that holds nothing, to be made ready anew.
fn dead(directory: &Directory, file_no: u64) -> Source {
    Source::Dead { file_no, handle: None, bytes: directory.logs[&file_no].bytes }
}

/// A batch that was read may so far be in the device's cache only: what is kept is made durable before it is relied on.
fn sync_kept<D: Disk>(disk: &mut D, config: &Config, links: &[Link], tail: &Tail) -> Result<(), WalError> {
    let upto = links.iter().position(|link| link.file_no == tail.at.file_no).map_or(0, |at| at + 1);
    // Writes in flight lie in the last file, and in the one before if the log had just gone on.
    for link in links[..upto].iter().rev().filter(|link| link.bytes > 0).take(2) {
        let path = log_path(&config.dir, link.file_no);
        let DiskOk::Opened { file, .. } = run(disk, DiskOp::Open { path, mode: FileMode::Write })?.0 else {
            continue;
        };
        run(disk, DiskOp::Sync { file })?;
        run(disk, DiskOp::Close { file })?;
    }
    Ok(())
}

/// The files of the log: those up to the tail, and whatever groups or named pages of the checkpoints lie in.
fn files_in_use(
    directory: &Directory,
    links: &[Link],
    tail: &Tail,
    ends: &[FileEntry],
    replay: &Replay<'_>,
    pages: &BTreeSet<u64>,
) -> Files {
    let mut files = Files::default();
    let known_end = |file_no: u64| ends.iter().find(|entry| entry.file_no == file_no);
    for link in links.iter().take_while(|link| link.file_no <= tail.at.file_no) {
        if link.bytes == 0 {
            continue;
        }
        let is_replayed = replay.files.is_some_and(|(first, _)| link.file_no >= first);
        let end = match known_end(link.file_no) {
            _ if link.file_no == tail.at.file_no => tail.at.offset,
            _ if link.cut.is_some() => link.cut.map_or(link.bytes, |cut| cut.end),
            Some(entry) if !is_replayed => entry.end,
            // Its batches go on in the next file.
            _ => replay.ends.get(&link.file_no).map_or(link.bytes, |end| link.bytes.min(*end)),
        };
        files.insert(link.file_no, File::closed(link.uuid, end, link.bytes));
    }
    segments::insert_held(&mut files, directory, ends, replay);
    // Pages are found by their place, whatever became of their file's head.
    let held = replay.refs.files().filter(|file_no| file_no & SEGMENT == 0);
    for file_no in held.chain(pages.iter().copied()) {
        let (Some(entry), Some(log)) = (known_end(file_no), directory.logs.get(&file_no)) else { continue };
        if files.get(file_no).is_none() {
            files.insert(file_no, File::closed(entry.uuid, entry.end, log.bytes));
        }
    }
    files
}

/// Renames files that are not what they should be, for a person to look at. Not the one that was `reused`: it has gone on.
fn put_strays_aside<D: Disk>(
    disk: &mut D,
    config: &Config,
    directory: &Directory,
    files: &Files,
    aside: &[u64],
    (boot_epoch, reused): (u64, Option<u64>),
) -> Result<Vec<PathBuf>, WalError> {
    let is_stray = |no: u64| files.get(no).is_none() && reused != Some(no);
    let headless = directory.logs.iter().filter(|(no, log)| log.head.is_none() && is_stray(**no));
    let headless = headless.map(|(no, _)| no).chain(aside).map(|no| log_path(&config.dir, *no));
    let mut strays = Vec::new();
    for from in directory.strays.iter().cloned().chain(headless) {
        let name = from.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let to = config.dir.join(format!("stray-{boot_epoch}-{name}"));
        run(disk, DiskOp::Rename { from, to: to.clone() })?;
        strays.push(to);
    }
    if !strays.is_empty() {
        run(disk, DiskOp::SyncDir { path: config.dir.clone() })?;
    }
    Ok(strays)
}

/// Prepares a file, of a void one if the disk is full: files kept ready by the last boot hold nothing, and a full disk
/// must not keep a log from being opened (etcd 2819). Their heads are not needed to come to the same verdict again.
fn make_ready_somehow<D: Disk>(
    disk: &mut D,
    config: &Config,
    head: Head,
    source: Source,
    directory: &Directory,
    void: &[u64],
) -> Result<(Ready, u64, Source), WalError> {
    let void = void.iter().map(|no| dead(directory, *no)).filter(|one| *one != source);
    let mut full = None;
    for source in std::iter::once(source.clone()).chain(void) {
        match make_ready(disk, config, head, source.clone()) {
            Err(WalError::Disk(error @ DiskError::Full { .. })) => full = full.or(Some(error)),
            other => return other.map(|(ready, prefill_bytes)| (ready, prefill_bytes, source)),
        }
    }
    Err(full.expect("the loop ran at least once, and ends here only with a full disk").into())
}

/// Prepares a file and waits for it. Returns it, and how many zeros were written for it.
fn make_ready<D: Disk>(
    disk: &mut D,
    config: &Config,
    head: Head,
    source: Source,
) -> Result<(Ready, u64), WalError> {
    let mut preparer = Preparer::new(&config.dir, config.file_bytes);
    preparer.begin(disk, head, source);
    let mut done = Vec::new();
    let mut ready = None;
    // To the very last: when the disk is full, a file that was begun is still to be closed.
    while disk.in_flight() > 0 {
        disk.wait()?;
        disk.completions(&mut done);
        for one in done.drain(..).filter(|one| token::decode(one.token) == Some(Token::Prepare)) {
            ready = preparer.on_done(disk, one, 0)?;
        }
    }
    match ready {
        Some(ready) => Ok((ready, preparer.prefill_bytes)),
        None => Err(DiskError::Full { path: log_path(&config.dir, head.file_no) }.into()),
    }
}
