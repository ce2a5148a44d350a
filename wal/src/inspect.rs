//! What lies in a log's directory, and every place in it that is damaged: for people and their tools. Writes nothing, and
//! takes nobody's word.
//!
//! A recovery (the very code that opens a log) says what the log is: which entries, in which files. A walk over every
//! batch then shows whether they are there. The log may be in use meanwhile: then a place can look damaged that is
//! being written or reused, and only what looks so again a moment later is.
//!
//! A stretch without sound batches is damage unless the checkpoint, or a later file's head, says that the file ended
//! there: then what followed was reused.
//!
//! Invariant: memory is bounded by what the files really hold, whatever they claim.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use coracle_base::{GroupId, Index, RunError, RunRef, Term};
use coracle_io::Disk;

use crate::config::{Config, Identity};
use crate::error::WalError;
use crate::files::log_path;
use crate::format::batch::BatchHead;
use crate::format::head::{HEAD_AREA_BYTES, Head};
use crate::format::page::Extent;
use crate::format::record::Record;
use crate::format::{Position, Uuid};
use crate::recover::chain::{Directory, Link};
use crate::recover::reader::Readers;
use crate::recover::reading::{LogRead, read_log};
use crate::recover::scan::Sink;
use crate::recover::{RecoveredGroup, Report};
use crate::segment_walk::walk_segment;
use crate::walk::{records_of, scan_links};

/// A log as it lies there.
#[derive(Debug, Clone, Default)]
pub struct Inspection {
    /// What a recovery would find.
    pub report: Report,
    /// Its groups by uid, each with the bytes of its live entries and snapshot.
    pub groups: Vec<(RecoveredGroup, u64)>,
    /// Its files, in order.
    pub files: Vec<LogFileInfo>,
    /// Every place that is damaged.
    pub damage: Vec<Damage>,
}

/// A file of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFileInfo {
    /// Where it lies.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// The start that made it; `None` if its head is gone, or it is a segment.
    pub boot_epoch: Option<u64>,
    /// Sound batches in it.
    pub batches: u64,
    /// Bytes of the entries and snapshots in it that a group still has.
    pub live_bytes: u64,
}

/// A place that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Which file; the log's directory if it is about no file in particular.
    pub file: PathBuf,
    /// From where, in bytes; `None`: all of it.
    pub offset: Option<u64>,
    /// Groups that lost something there.
    pub groups: Vec<GroupId>,
    /// What is wrong.
    pub kind: DamageKind,
}

/// What is wrong with a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DamageKind {
    /// One of the two copies of the file's head.
    Head,
    /// Batches that were durable.
    Batches,
    /// The payload of an entry.
    Payload(Index),
    /// The file is gone.
    FileMissing,
    /// The file is not the one that its name says.
    Stray,
    /// A group's snapshot.
    Snapshot,
    /// So many entries are not where the log says they are.
    EntriesMissing(u64),
    /// The end of the log cannot be trusted: durable batches may have been lost.
    Tail,
    /// The groups may have lost acknowledged entries or votes by an earlier damage, and no leader has mended them yet.
    Suspect,
}

impl fmt::Display for DamageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => f.write_str("a copy of the file's head is damaged"),
            Self::Batches => f.write_str("durable batches are damaged"),
            Self::Payload(index) => write!(f, "the payload of entry {index} is damaged"),
            Self::FileMissing => f.write_str("the file is missing"),
            Self::Stray => f.write_str("the file is not the one that its name says"),
            Self::Snapshot => f.write_str("the snapshot is damaged"),
            Self::EntriesMissing(count) => write!(f, "{count} entries are missing"),
            Self::Tail => f.write_str("the end of the log is damaged: durable batches may be lost"),
            Self::Suspect => f.write_str("acknowledged entries or votes may be lost since an earlier damage"),
        }
    }
}

/// Whose log a directory holds, as the newest sound head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// There is no file.
    Empty,
    /// There are files, and no sound head among them.
    Unknown,
    /// This one's.
    Of(Identity),
}

/// Whose log lies in `dir`.
///
/// # Errors
/// A newer program's file, or the directory cannot be read.
pub fn owner<D: Disk>(disk: &mut D, dir: &Path) -> Result<Owner, WalError> {
    let directory = Directory::read(disk, &Config::new(dir, 0), None)?;
    let newest = directory.logs.values().rev().find_map(|log| log.head);
    Ok(match newest {
        Some(head) => Owner::Of(head.identity),
        None if directory.is_empty() => Owner::Empty,
        None => Owner::Unknown,
    })
}

/// What a recovery of the log in `dir` would find. Reads no more than that, and writes nothing.
///
/// # Errors
/// As [`inspect`].
pub fn look<D: Disk>(
    disk: &mut D,
    dir: &Path,
    identity: &Identity,
) -> Result<(Vec<RecoveredGroup>, Report), WalError> {
    let directory = Directory::read(disk, &Config::new(dir, 0), Some(identity))?;
    if directory.is_empty() {
        return Ok(Default::default());
    }
    let mut readers = Readers::new(disk, dir);
    let read = read_log(&mut readers, dir, &directory, &directory.chain(), identity);
    readers.close()?;
    read.map(|read| (read.groups, read.report))
}

/// Reads all of the log in `dir`, and writes nothing.
///
/// # Errors
/// The files are another's or a newer program's, so much is damaged that there is no log, or the disk fails.
pub fn inspect<D: Disk>(disk: &mut D, dir: &Path, identity: &Identity) -> Result<Inspection, WalError> {
    let directory = Directory::read(disk, &Config::new(dir, 0), Some(identity))?;
    if directory.is_empty() {
        return Ok(Inspection::default());
    }
    let links = directory.chain();
    let mut readers = Readers::new(disk, dir);
    let outcome = survey(&mut readers, dir, &directory, &links, identity);
    readers.close()?;
    outcome
}

fn survey<D: Disk>(
    readers: &mut Readers<'_, D>,
    dir: &Path,
    directory: &Directory,
    links: &[Link],
    identity: &Identity,
) -> Result<Inspection, WalError> {
    let read = read_log(readers, dir, directory, links, identity)?;
    let mut survey = Survey::new(dir, links, &read);
    scan_links(readers, links, read.tail(), &mut survey)?;
    if survey.gap {
        survey.judge_gap(None);
    }
    let segments = read.segments(directory);
    for (file_no, uuid, bytes) in &segments {
        let on_run = |offset, run: RunRef<'_>| survey.take_run(Position { file_no: *file_no, offset }, run);
        walk_segment(readers, *file_no, *uuid, *bytes, on_run)?;
    }
    let Survey { groups, batches, mut damage, .. } = survey;
    let live = Live { dir, read: &read, groups: &groups };
    live.name_groups(&mut damage);
    damage.extend(live.missing_files());
    damage.extend(live.missing_entries(&damage));
    damage.extend(live.snapshots());
    damage.extend(of_directory(directory, &read.report));
    damage.extend(live.suspects(&damage));
    damage.sort_by(|a, b| (&a.file, a.offset).cmp(&(&b.file, b.offset)));
    damage.extend(heads_of_segments(dir, directory, &segments));
    let info = |file_no: u64, bytes: u64, boot_epoch: Option<u64>| LogFileInfo {
        path: log_path(dir, file_no),
        bytes,
        boot_epoch,
        batches: batches.get(&file_no).copied().unwrap_or(0),
        live_bytes: live.bytes_in(file_no),
    };
    let boot_epoch = |head: Option<Head>| head.map(|head| head.boot_epoch);
    let logs = directory.logs.iter().map(|(no, log)| info(*no, log.bytes, boot_epoch(log.head)));
    let files = logs.chain(segments.iter().map(|(no, _, bytes)| info(*no, *bytes, None))).collect();
    let groups = read.groups.iter().map(|group| (group.clone(), live.bytes_of(group))).collect();
    Ok(Inspection { report: read.report, groups, files, damage })
}

/// Copies of heads that do not hold, of segments that are needed.
fn heads_of_segments(dir: &Path, directory: &Directory, needed: &[(u64, Uuid, u64)]) -> Vec<Damage> {
    let mut damage = Vec::new();
    for (file_no, ..) in needed {
        for offset in directory.segments.get(file_no).iter().flat_map(|segment| &segment.bad_copies) {
            let file = log_path(dir, *file_no);
            damage.push(Damage { file, offset: Some(*offset), groups: Vec::new(), kind: DamageKind::Head });
        }
    }
    damage
}

/// What the files' names and heads tell by themselves, and the end of the log.
fn of_directory(directory: &Directory, report: &Report) -> Vec<Damage> {
    let none = Vec::new;
    let heads = directory.bad_copies.iter().map(|(file, offset)| Damage {
        file: file.clone(),
        offset: Some(*offset),
        groups: none(),
        kind: DamageKind::Head,
    });
    let strays = directory.strays.iter().map(|file| Damage {
        file: file.clone(),
        offset: None,
        groups: none(),
        kind: DamageKind::Stray,
    });
    let tail = report.tail.iter().filter(|_| report.tail_suspect).map(|(file, offset)| Damage {
        file: file.clone(),
        offset: Some(*offset),
        groups: none(),
        kind: DamageKind::Tail,
    });
    heads.chain(strays).chain(tail).collect()
}

// ---- the walk ------------------------------------------------------------------------------------------------------

/// Entries looked up together.
const CHUNK: u64 = 1024;

/// The entries of one group that were found where the log says they are: their bytes, by index.
#[derive(Debug, Default)]
struct Seen {
    /// Bytes of each entry with its header; 0: not seen.
    chunks: BTreeMap<u64, Vec<u32>>,
}

impl Seen {
    fn note(&mut self, index: Index, bytes: u32) {
        let chunk = self.chunks.entry(index.0 / CHUNK).or_insert_with(|| vec![0; CHUNK as usize]);
        chunk[(index.0 % CHUNK) as usize] = bytes;
    }

    /// How many of an extent's entries were seen, and their bytes.
    fn of(&self, extent: &Extent) -> (u64, u64) {
        let (first, last) = (extent.first.0, extent.last().0);
        let mut sum = (0, 0);
        for (chunk, sizes) in self.chunks.range(first / CHUNK..=last / CHUNK) {
            for (at, bytes) in (chunk * CHUNK..).zip(sizes) {
                if (first..=last).contains(&at) && *bytes > 0 {
                    sum = (sum.0 + 1, sum.1 + u64::from(*bytes));
                }
            }
        }
        sum
    }
}

/// Takes every batch of the walk.
struct Survey<'a> {
    dir: &'a Path,
    links: &'a [Link],
    read: &'a LogRead<'a>,
    groups: BTreeMap<GroupId, Seen>,
    /// By file.
    batches: BTreeMap<u64, u64>,
    damage: Vec<Damage>,
    /// Where the last sound batch ended.
    at: Option<Position>,
    /// Something was left out since.
    gap: bool,
}

impl<'a> Survey<'a> {
    fn new(dir: &'a Path, links: &'a [Link], read: &'a LogRead<'a>) -> Self {
        // The walk begins wherever the first sound batch is: that, too, is a gap to be explained.
        let (groups, batches, damage) = Default::default();
        Self { dir, links, read, groups, batches, damage, at: None, gap: true }
    }

    fn take_run(&mut self, at: Position, run: RunRef<'_>) {
        let group = run.header.group;
        if let Err(RunError::Payload { index }) = run.check_payloads() {
            self.damage_at(at.file_no, at.offset, vec![group], DamageKind::Payload(index));
        }
        let Ok(place) = self.read.groups.binary_search_by_key(&group, |group| group.group) else { return };
        let (terms, extents) = (&self.read.groups[place].terms, self.read.extents(group));
        let seen = self.groups.entry(group).or_default();
        for entry in run.entries() {
            let extent = extents.partition_point(|extent| extent.first <= entry.index).checked_sub(1);
            let here = extent.map(|at| &extents[at]);
            let is_here =
                here.is_some_and(|extent| extent.file_no == at.file_no && entry.index <= extent.last());
            // An entry of another term at the same index was overwritten since.
            let term = term_of(terms, entry.index);
            if is_here && term.is_none_or(|term| term == entry.header.term) {
                seen.note(entry.index, (entry.payload.len() + ENTRY_HEADER_BYTES) as u32);
            }
        }
    }

    fn damage_at(&mut self, file_no: u64, offset: u64, groups: Vec<GroupId>, kind: DamageKind) {
        let file = log_path(self.dir, file_no);
        self.damage.push(Damage { file, offset: Some(offset), groups, kind });
    }

    /// Sound batches end at `self.at` and go on at `to` (or nowhere): what lies between is damaged, unless it is known
    /// that nothing of this log does.
    fn judge_gap(&mut self, to: Option<Position>) {
        self.gap = false;
        let place = |file_no: u64| self.links.iter().position(|link| link.file_no == file_no);
        let start = self.at.and_then(|at| place(at.file_no));
        let end = to.and_then(|to| place(to.file_no)).unwrap_or(self.links.len());
        // In the file in which it goes on, everything before is missing.
        let before = to.and_then(|to| {
            let begin = self.at.filter(|at| at.file_no == to.file_no).map_or(HEAD_AREA_BYTES, |at| at.offset);
            (begin < to.offset).then_some((to.file_no, begin))
        });
        let mut begins: Vec<(u64, u64)> = before.into_iter().collect();
        if let (Some(at), Some(link)) = (self.at, start.filter(|start| *start != end)) {
            // Where it ended is known, or else nothing behind the gap may be to blame.
            let is_short = match self.end_of(link) {
                Some(end) => at.offset < end,
                None => before.is_none() && at.offset < self.links[link].bytes,
            };
            begins.extend(is_short.then_some((at.file_no, at.offset)));
        }
        // Nothing sound at all in files between; at the end of the log they may be ready ones, not begun.
        let first = start.map_or(0, |start| start + 1);
        if to.is_some() {
            let between = (first..end).filter(|link| self.links[*link].bytes > 0);
            let is_begun = |link: &usize| self.end_of(*link).is_none_or(|end| HEAD_AREA_BYTES < end);
            begins.extend(between.filter(is_begun).map(|link| (self.links[link].file_no, HEAD_AREA_BYTES)));
        }
        for (file_no, offset) in begins {
            self.damage_at(file_no, offset, Vec::new(), DamageKind::Batches);
        }
    }

    fn end_of(&self, link: usize) -> Option<u64> {
        let link = &self.links[link];
        link.cut.map(|cut| cut.end).or_else(|| self.read.sealed_end(link.file_no))
    }
}

const ENTRY_HEADER_BYTES: usize = coracle_base::run::ENTRY_HEADER_BYTES;

/// The term that the log has at an index.
fn term_of(terms: &[(Index, Term)], index: Index) -> Option<Term> {
    let at = terms.partition_point(|(first, _)| *first <= index).checked_sub(1)?;
    Some(terms[at].1)
}

impl Sink for Survey<'_> {
    fn batch(&mut self, at: Position, head: &BatchHead, payload: &[u8]) -> Result<bool, WalError> {
        let Some(records) = records_of(self.dir, at, head, payload)? else { return Ok(false) };
        if self.gap {
            self.judge_gap(Some(at));
        }
        self.at = Some(Position { file_no: at.file_no, offset: at.offset + head.batch_bytes() });
        *self.batches.entry(at.file_no).or_default() += 1;
        for record in records {
            if let Record::Run(run) | Record::Place(run) = record {
                self.take_run(at, run);
            }
        }
        Ok(true)
    }

    fn hole(&mut self, _: Position, _: u64, _: u64) {
        self.gap = true;
    }
}

// ---- what it means for the groups ----------------------------------------------------------------------------------

/// What the log says it has, and what was seen of it.
struct Live<'a> {
    dir: &'a Path,
    read: &'a LogRead<'a>,
    groups: &'a BTreeMap<GroupId, Seen>,
}

impl Live<'_> {
    /// How many of an extent's entries were seen, and their bytes.
    fn seen(&self, group: GroupId, extent: &Extent) -> (u64, u64) {
        self.groups.get(&group).map_or((0, 0), |seen| seen.of(extent))
    }

    /// Entries of a group that are missing from a file.
    fn missing(&self, group: GroupId, file_no: u64) -> u64 {
        let here = self.read.extents(group).iter().filter(|extent| extent.file_no == file_no);
        here.map(|extent| extent.count.saturating_sub(self.seen(group, extent).0)).sum()
    }

    fn bytes_of(&self, group: &RecoveredGroup) -> u64 {
        let extents = self.read.extents(group.group).iter();
        let entries: u64 = extents.map(|extent| self.seen(group.group, extent).1).sum();
        entries + group.snapshot.as_ref().map_or(0, |snapshot| snapshot.bytes.len() as u64)
    }

    fn bytes_in(&self, file_no: u64) -> u64 {
        let of = |group: &RecoveredGroup| {
            let here = self.read.extents(group.group).iter().filter(|extent| extent.file_no == file_no);
            let entries: u64 = here.map(|extent| self.seen(group.group, extent).1).sum();
            let is_here = self.read.snapshot_at(group.group).is_some_and(|at| at.file_no == file_no);
            let snapshot = group.snapshot.as_ref().filter(|_| is_here);
            entries + snapshot.map_or(0, |snapshot| snapshot.bytes.len() as u64)
        };
        self.read.groups.iter().map(of).sum()
    }

    /// Every damaged stretch gets the groups whose entries are missing from its file.
    fn name_groups(&self, damage: &mut [Damage]) {
        let first_hole = self.read.report.holes.iter().map(|hole| &hole.file).min();
        for one in damage.iter_mut().filter(|one| one.kind == DamageKind::Batches) {
            let lost = |group: &&RecoveredGroup| {
                let mut extents = self.read.extents(group.group).iter();
                extents.any(|extent| {
                    log_path(self.dir, extent.file_no) == one.file
                        && self.missing(group.group, extent.file_no) > 0
                })
            };
            // What the checkpoint does not know of yet may have been anybody's: recovery says whose it may have been.
            let after_checkpoint = first_hole.is_some_and(|file| *file <= one.file);
            let is_named = |group: &&RecoveredGroup| (after_checkpoint && group.suspect) || lost(group);
            one.groups = self.read.groups.iter().filter(is_named).map(|group| group.group).collect();
        }
    }

    fn missing_files(&self) -> Vec<Damage> {
        let has = |group: &&RecoveredGroup, file: &PathBuf| {
            let mut extents = self.read.extents(group.group).iter();
            extents.any(|extent| log_path(self.dir, extent.file_no) == *file)
        };
        let of = |file: &PathBuf| Damage {
            file: file.clone(),
            offset: None,
            groups: self
                .read
                .groups
                .iter()
                .filter(|group| has(group, file))
                .map(|group| group.group)
                .collect(),
            kind: DamageKind::FileMissing,
        };
        self.read.report.missing.iter().map(of).collect()
    }

    /// Entries that are missing from files in which nothing else is wrong.
    fn missing_entries(&self, known: &[Damage]) -> Vec<Damage> {
        let mut found = Vec::new();
        for group in &self.read.groups {
            let mut files: Vec<u64> = self.read.extents(group.group).iter().map(|e| e.file_no).collect();
            files.dedup();
            for file_no in files {
                let file = log_path(self.dir, file_no);
                let missing = self.missing(group.group, file_no);
                if missing > 0 && !known.iter().any(|one| one.file == file) {
                    let kind = DamageKind::EntriesMissing(missing);
                    found.push(Damage { file, offset: None, groups: vec![group.group], kind });
                }
            }
        }
        found
    }

    fn snapshots(&self) -> Vec<Damage> {
        let of = |group: &RecoveredGroup| {
            let at = self.read.snapshot_at(group.group).filter(|_| group.snapshot.is_none())?;
            Some(Damage {
                file: log_path(self.dir, at.file_no),
                offset: Some(at.offset),
                groups: vec![group.group],
                kind: DamageKind::Snapshot,
            })
        };
        self.read.groups.iter().filter_map(of).collect()
    }

    /// Groups that nothing above names.
    fn suspects(&self, known: &[Damage]) -> Option<Damage> {
        let is_new = |group: &&RecoveredGroup| {
            (group.suspect || group.state_lost)
                && !known.iter().any(|damage| damage.groups.contains(&group.group))
        };
        let groups: Vec<_> = self.read.groups.iter().filter(is_new).map(|group| group.group).collect();
        let kind = DamageKind::Suspect;
        (!groups.is_empty()).then(|| Damage { file: self.dir.to_owned(), offset: None, groups, kind })
    }
}
