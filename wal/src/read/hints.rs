//! Reading the index of a file of the log that lies in later ones: its directory, then the block that is needed, or all of
//! them for somebody who moves what is in the file.
//!
//! Whatever is not as it should be costs the index, and the file is scanned.

use coracle_base::limits::BLOCK_BYTES;

use super::index::{FileIndex, RunsInFile, Sought};
use super::load::{Load, Makes};
use super::{Next, Part};
use crate::format::file_index::{Block, Directory, IndexPlace, IndexedFile, body_crc};
use crate::format::page::Piece;
use crate::format::record::RECORD_HEADER_BYTES;
use crate::wal::Wal;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What an index says.
pub(super) enum Hint {
    /// There is none.
    None,
    /// There is one, and it is certain that the run is not there, or not to be trusted.
    Nowhere,
    At {
        offset: u32,
        count: u32,
        by_hint: bool,
    },
    /// This is to be done before.
    Before(Next),
}

/// The reading of a directory, or of blocks.
#[derive(Debug)]
pub(crate) struct HintLoad {
    of: IndexedFile,
    pub(super) makes: Makes,
    /// What is still to be read: the low halves of the identities of the files, and the pieces, the next one last.
    left: Vec<(u64, Piece)>,
    /// The number of the next block.
    next: u32,
    runs: RunsInFile,
    directory: Option<Directory>,
    is_wrong: bool,
}

/// What was made.
pub(super) enum HintMade {
    Directory(Directory),
    Index(Part, FileIndex),
    /// It is not what it should be.
    Wrong,
}

impl HintLoad {
    /// The file that is read next, from where on, and how much.
    pub(super) fn wants(&self) -> Option<(u64, u64, usize)> {
        let (_, piece) = self.left.last().filter(|_| !self.is_wrong)?;
        let start = piece.at.offset / BLOCK * BLOCK;
        let end = piece.at.offset + (RECORD_HEADER_BYTES as u64) + u64::from(piece.bytes);
        Some((piece.at.file_no, start, (end - start) as usize))
    }

    pub(super) fn on_error(&mut self) {
        self.is_wrong = true;
    }

    pub(super) fn on_bytes(&mut self, bytes: &[u8]) {
        let Some((lies_in_low, piece)) = self.left.pop() else { return };
        let from = (piece.at.offset % BLOCK) as usize + RECORD_HEADER_BYTES;
        let body = bytes.get(from..from + piece.bytes as usize);
        let body = body.filter(|body| body_crc(lies_in_low, body) == piece.crc);
        let is_taken = body.is_some_and(|body| self.take(body));
        self.is_wrong |= !is_taken;
    }

    fn take(&mut self, body: &[u8]) -> bool {
        if let Makes::Directory(_) = self.makes {
            self.directory = Directory::decode(body).ok().filter(|directory| directory.of == self.of);
            return self.directory.is_some();
        }
        let block = Block::decode(body).ok().filter(|block| (block.of, block.number) == (self.of, self.next));
        let Some(mut block) = block else { return false };
        self.next += 1;
        self.runs.of_log.append(&mut block.runs.of_log);
        self.runs.placed.append(&mut block.runs.placed);
        true
    }

    pub(super) fn finish(self) -> HintMade {
        match (self.makes, self.directory) {
            _ if self.is_wrong => HintMade::Wrong,
            (Makes::Directory(_), Some(directory)) => HintMade::Directory(directory),
            (Makes::Directory(_), None) => HintMade::Wrong,
            (Makes::Index(_, part), _) => HintMade::Index(part, FileIndex::hint(self.runs)),
        }
    }
}

impl Wal {
    /// Looks for a run in the index of a file that lies in the log. All of it is read for somebody who is going to need it.
    pub(super) fn hint(&mut self, sought: &Sought, file_no: u64, needs_all: bool) -> Hint {
        let Some(place) = self.indexes.of(file_no) else { return Hint::None };
        let is_of = |directory: &Directory| directory.of == place.of;
        let Some(directory) = self.reads.directories.iter().find(|directory| is_of(directory)) else {
            return self.load_hint(place, Makes::Directory(file_no), 0, vec![place.directory]);
        };
        let Some(number) = directory.block_of(sought.key()) else {
            self.distrust_index(file_no);
            return Hint::None;
        };
        if needs_all {
            let pieces = directory.blocks.iter().rev().map(|(_, piece)| *piece).collect();
            return self.load_hint(place, Makes::Index(file_no, Part::Whole), 0, pieces);
        }
        let (piece, number) = (directory.blocks[number].1, number as u32);
        let Some(block) = self.reads.part(file_no, Part::Block(number)) else {
            return self.load_hint(place, Makes::Index(file_no, Part::Block(number)), number, vec![piece]);
        };
        let Some(run) = block.find(*sought) else {
            self.distrust_index(file_no);
            return Hint::None;
        };
        let offset = run.offset;
        #[cfg(feature = "breaks")]
        let offset = if crate::breaks::misleads() { offset + 8 } else { offset };
        Hint::At { offset, count: run.count, by_hint: true }
    }

    /// The offset of a run, as far as the index in the log was read already.
    pub(super) fn hint_in_memory(&mut self, sought: &Sought, file_no: u64) -> Option<u32> {
        let place = self.indexes.of(file_no)?;
        let directory = self.reads.directories.iter().find(|directory| directory.of == place.of)?;
        let number = directory.block_of(sought.key())? as u32;
        Some(self.reads.part(file_no, Part::Block(number))?.find(*sought)?.offset)
    }

    /// Begins to read these pieces, the next one last, if their files are there.
    fn load_hint(&mut self, place: IndexPlace, makes: Makes, next: u32, pieces: Vec<Piece>) -> Hint {
        let mut left = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let file_no = piece.at.file_no;
            match self.files.get(file_no) {
                Some(file) if file.handle.is_none() => {
                    return Hint::Before(Next::OpenForIndex { file_no, of: place.of.file_no });
                }
                Some(file) => left.push((file.uuid.low(), piece)),
                None => {
                    self.distrust_index(place.of.file_no);
                    return Hint::None;
                }
            }
        }
        let (runs, directory) = (RunsInFile::default(), None);
        let load = HintLoad { of: place.of, makes, left, next, runs, directory, is_wrong: false };
        Hint::Before(Next::Load(Box::new(Load::Hint(load))))
    }

    /// What was read of an index is kept, or the index is given up.
    pub(super) fn keep_hint(&mut self, file_no: u64, made: HintMade) {
        match made {
            HintMade::Directory(directory) => self.reads.keep_directory(directory),
            HintMade::Index(part, index) => self.reads.keep_index((file_no, part), index),
            HintMade::Wrong => self.distrust_index(file_no),
        }
    }
}
