//! Indexes of older files: which there are, and which are to be written.
//!
//! A file gets one when its list of runs is about to leave memory, if a group still has entries in it: then somebody who
//! asks for one of them reads a directory and a block instead of the file. It is written into later files a step at a time
//! (`write.rs`), like the pages of a checkpoint, and found again by its directory's record, or by the list that each
//! checkpoint brings (`format/file_index.rs`).
//!
//! Which files are worth it:
//!
//! | of the file there still lives | index |
//! |---|---|
//! | nothing | none |
//! | at most half | from the list of its runs, when the log goes on to the second file after it |
//! | more | the same, but only while the log is quiet: its entries may well be released before anybody asks |
//! | anything, and it had to be scanned for a reader | from that scan |
//!
//! Invariants: (1) an index is a hint: what it says is checked against the run that it leads to, and an index that was wrong
//! once is not used again; (2) nothing is kept for an index, neither the file that it is of nor those that it lies in: when
//! one of them goes, so does it; (3) it is used once its directory is durable.

mod write;

use std::collections::BTreeMap;

pub(crate) use self::write::Job;
use crate::files::Files;
use crate::format::file_index::{IndexPlace, IndexedFile, list_bytes, put_list};
use crate::format::record::{RECORD_HEADER_BYTES, RecordKind};
use crate::groups::{Groups, Refs};
use crate::wal::Wal;

/// Files that wait for an index.
const WAITING_MAX: usize = 16;
/// Indexes that one list names.
const LISTED_MAX: usize = 512;

/// What an index is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The list of the file's runs that is still in memory.
    List,
    /// What a scan has found, as long as it is in memory.
    Scan,
}

/// A file that is to get an index.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    file_no: u64,
    source: Source,
    /// Only while the log is quiet.
    in_quiet: bool,
}

/// The indexes of one log's files.
#[derive(Debug, Default)]
pub(crate) struct FileIndexes {
    /// By the file that they are of.
    known: BTreeMap<u64, IndexPlace>,
    waiting: Vec<Candidate>,
    job: Option<Box<Job>>,
    /// The file whose index is being gone on with just now, and whether its list is needed: the job is not at its place then.
    stepping: Option<(u64, bool)>,
    /// How many were written.
    pub(crate) written: u64,
    /// Their bytes, with those of lists.
    pub(crate) bytes: u64,
    /// How many were wrong, or could not be read.
    pub(crate) wrong: u64,
}

impl FileIndexes {
    /// Those that a recovery has found, as far as the files are there still.
    pub(crate) fn recovered(places: impl Iterator<Item = IndexPlace>, files: &Files) -> Self {
        let is_there = |of: IndexedFile| files.get(of.file_no).is_some_and(|file| file.uuid == of.uuid);
        let has = |file_no| files.get(file_no).is_some();
        let usable = |place: &IndexPlace| {
            is_there(place.of) && has(place.first_file) && has(place.directory.at.file_no)
        };
        let known = places.filter(usable).map(|place| (place.of.file_no, place)).collect();
        Self { known, ..Self::default() }
    }

    /// Whether one is being written: it has noted groups by their slots.
    pub(crate) fn is_being_written(&self) -> bool {
        self.job.is_some() || self.stepping.is_some()
    }

    /// Where the index of a file lies, if it has one.
    pub(crate) fn of(&self, file_no: u64) -> Option<IndexPlace> {
        self.known.get(&file_no).copied()
    }

    /// The file is about to be used for something else.
    pub(crate) fn forget(&mut self, file_no: u64) {
        self.known.retain(|of, place| {
            *of != file_no && !(place.first_file..=place.directory.at.file_no).contains(&file_no)
        });
        self.waiting.retain(|one| one.file_no != file_no);
        self.job.take_if(|job| job.touches(file_no));
    }

    /// The index of a file has led astray, or could not be read. False if there is none (any more).
    pub(crate) fn distrust(&mut self, file_no: u64) -> bool {
        let was_known = self.known.remove(&file_no).is_some();
        self.wrong += u64::from(was_known);
        was_known
    }

    /// A scan of a file is in memory, in which nothing was damaged.
    pub(crate) fn was_scanned(&mut self, file_no: u64, refs: &Refs) {
        let is_wanted = self.waiting.iter().any(|one| one.file_no == file_no) || self.is_doing(file_no);
        if !is_wanted && !self.known.contains_key(&file_no) && refs.held(file_no).extents > 0 {
            self.wait(Candidate { file_no, source: Source::Scan, in_quiet: false });
        }
    }

    /// Whether the index of a file is being written.
    fn is_doing(&self, file_no: u64) -> bool {
        self.job.as_ref().is_some_and(|job| job.of() == file_no)
            || self.stepping.is_some_and(|(of, _)| of == file_no)
    }

    /// The newest wait: an older one is given up.
    fn wait(&mut self, candidate: Candidate) {
        self.waiting.retain(|one| one.file_no != candidate.file_no);
        self.waiting.push(candidate);
        let excess = self.waiting.len().saturating_sub(WAITING_MAX);
        self.waiting.drain(..excess);
    }

    /// The files whose lists of runs are needed: lists of others that wait stay if they are short.
    fn lists_needed(&self) -> Vec<u64> {
        let waiting = self.waiting.iter().rev().find(|one| one.source == Source::List);
        let waiting = waiting.map(|one| one.file_no);
        let job = self.job.as_ref().and_then(|job| job.list_needed());
        let stepping = self.stepping.filter(|(_, needs_list)| *needs_list).map(|(of, _)| of);
        waiting.into_iter().chain(job).chain(stepping).collect()
    }
}

impl Wal {
    /// The log was opened: short files of earlier starts get their indexes, too.
    pub(crate) fn index_recovered(&mut self) {
        if let Some(newest) = self.groups.runs().newest() {
            self.index_before(newest);
        }
    }

    /// The log has gone on from file `sealed`: the lists of files before it are about to leave memory.
    pub(crate) fn index_before(&mut self, sealed: u64) {
        let leaving: Vec<u64> = self.groups.runs().whole_before(sealed).collect();
        for file_no in leaving {
            let (held, file) = (self.refs.held(file_no), self.files.get(file_no));
            let is_doing = self.indexes.is_doing(file_no);
            let Some(file) = file.filter(|_| held.extents > 0 && !is_doing) else { continue };
            if self.indexes.of(file_no).is_none() {
                let in_quiet = 2 * held.live_bytes > file.end;
                self.indexes.wait(Candidate { file_no, source: Source::List, in_quiet });
            }
        }
        self.groups.keep_runs(self.indexes.lists_needed());
    }

    /// Stages where all indexes lie, for the checkpoint that is about to be closed.
    pub(crate) fn put_index_list(&mut self) {
        let staged = self.indexes.job.as_ref().and_then(|job| job.staged());
        let places: Vec<IndexPlace> = self.indexes.known.values().copied().chain(staged).collect();
        let room = self.index_record_max();
        let newest = places.len().saturating_sub(LISTED_MAX);
        let places = &places[newest..];
        let bytes = list_bytes(places.len());
        if places.is_empty() || bytes > room {
            return;
        }
        self.place_record(RecordKind::IndexList, bytes);
        put_list(places, &mut self.stage.batch().buf);
        self.indexes.bytes += (RECORD_HEADER_BYTES + bytes) as u64;
    }

    /// A file is about to be used for something else, or removed.
    pub(crate) fn forget_file(&mut self, file_no: u64) {
        self.refs.forget(file_no);
        self.reads.forget(file_no);
        self.groups.forget(file_no);
        self.indexes.forget(file_no);
    }

    /// The index of a file has led astray: it is not used again. Whoever was led looks again.
    pub(crate) fn distrust_index(&mut self, file_no: u64) {
        if self.indexes.distrust(file_no) {
            tracing::warn!(file = file_no, "the index of a file of the log is wrong, or cannot be read");
        }
        self.reads.forget_hints(file_no);
    }
}

/// Whether the groups' runs of a file are known from its beginning to its end.
fn has_list(groups: &Groups, file_no: u64) -> bool {
    groups.runs().of_file(file_no).is_some()
}
