//! What a disk holds at one moment: names, directories and files of 4 KiB pages. Cheap to clone: everything is shared
//! until it is written to, so tens of thousands of images of one test cost little more than what differs.
//!
//! Invariants: (1) a missing page reads as zeros; (2) no byte at or beyond a file's size is anything but zero, so growing
//! shows zeros; (3) every name's inode is in `files`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_base::limits::BLOCK_BYTES;

use crate::disk::DirEntry;

/// What a disk writes whole or not at all.
pub(super) const SECTOR_BYTES: usize = 512;
pub(super) const SECTORS_PER_PAGE: usize = BLOCK_BYTES / SECTOR_BYTES;

/// 4 KiB of a file; `None` is zeros.
pub(super) type Page = Option<Arc<[u8; BLOCK_BYTES]>>;

const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// A file apart from its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Inode(pub(super) u64);

pub(super) fn page_bytes(page: &Page) -> &[u8; BLOCK_BYTES] {
    page.as_deref().unwrap_or(&ZEROS)
}

pub(super) fn page_from(bytes: &[u8]) -> Page {
    let mut page = [0; BLOCK_BYTES];
    page[..bytes.len()].copy_from_slice(bytes);
    Some(Arc::new(page))
}

/// A file's bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    pages: Vec<Page>,
    bytes: u64,
}

impl Content {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self { pages: bytes.chunks(BLOCK_BYTES).map(page_from).collect(), bytes: bytes.len() as u64 }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn page(&self, n: usize) -> &Page {
        self.pages.get(n).unwrap_or(&None)
    }

    fn page_slot(&mut self, n: usize) -> &mut Page {
        if self.pages.len() <= n {
            self.pages.resize(n + 1, None);
        }
        &mut self.pages[n]
    }

    /// Replaces a page without touching the size: see [`settle`](Self::settle).
    pub(super) fn set_page(&mut self, n: usize, page: Page) {
        *self.page_slot(n) = page;
    }

    /// Replaces one sector (counted from the start of the file) without touching the size.
    pub(super) fn set_sector(&mut self, sector: usize, bytes: &[u8]) {
        let slot = self.page_slot(sector / SECTORS_PER_PAGE);
        let page = Arc::make_mut(slot.get_or_insert_with(|| Arc::new(ZEROS)));
        let at = sector % SECTORS_PER_PAGE * SECTOR_BYTES;
        page[at..at + SECTOR_BYTES].copy_from_slice(bytes);
    }

    /// Changes bytes from `at` on, as far as the file goes: `change(i, old)` gives the new byte `at + i`.
    pub(super) fn patch(&mut self, at: usize, bytes: usize, change: impl Fn(usize, u8) -> u8) {
        for i in 0..bytes.min((self.bytes as usize).saturating_sub(at)) {
            let slot = self.page_slot((at + i) / BLOCK_BYTES);
            let page = Arc::make_mut(slot.get_or_insert_with(|| Arc::new(ZEROS)));
            let byte = &mut page[(at + i) % BLOCK_BYTES];
            *byte = change(i, *byte);
        }
    }

    /// Two sectors change places.
    pub(super) fn swap_sectors(&mut self, one: usize, two: usize) {
        let [first, second] = [one, two].map(|sector| {
            let page = page_bytes(self.page(sector / SECTORS_PER_PAGE));
            page[sector % SECTORS_PER_PAGE * SECTOR_BYTES..][..SECTOR_BYTES].to_vec()
        });
        self.set_sector(one, &second);
        self.set_sector(two, &first);
    }

    pub(super) fn grow_to(&mut self, bytes: u64) {
        self.bytes = self.bytes.max(bytes);
    }

    /// Restores invariant 2 after pages were set: what lies beyond the size does not exist.
    pub(super) fn settle(&mut self) {
        self.pages.truncate(self.bytes.div_ceil(BLOCK_BYTES as u64) as usize);
        let tail = (self.bytes % BLOCK_BYTES as u64) as usize;
        let last = (self.bytes / BLOCK_BYTES as u64) as usize;
        if tail > 0
            && let Some(Some(page)) = self.pages.get_mut(last)
            && page[tail..].iter().any(|b| *b != 0)
        {
            Arc::make_mut(page)[tail..].fill(0);
        }
    }

    pub(super) fn truncate(&mut self, bytes: u64) {
        self.bytes = bytes;
        self.settle();
    }

    /// Copies from `offset` into `into`; returns how many bytes there were.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> usize {
        let there = self.bytes.saturating_sub(offset).min(into.len() as u64) as usize;
        let mut done = 0;
        while done < there {
            let at = offset as usize + done;
            let within = at % BLOCK_BYTES;
            let part = (BLOCK_BYTES - within).min(there - done);
            let page = page_bytes(self.page(at / BLOCK_BYTES));
            into[done..done + part].copy_from_slice(&page[within..within + part]);
            done += part;
        }
        there
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut all = vec![0; self.bytes as usize];
        self.read(0, &mut all);
        all
    }
}

/// Everything that a disk holds at one moment. Clones share their bytes.
#[derive(Debug, Clone)]
pub struct DiskImage {
    files: BTreeMap<Inode, Arc<Content>>,
    names: Arc<BTreeMap<PathBuf, Inode>>,
    dirs: Arc<BTreeSet<PathBuf>>,
}

impl DiskImage {
    pub(super) fn empty() -> Self {
        Self { files: BTreeMap::new(), names: Arc::default(), dirs: Arc::new([PathBuf::new()].into()) }
    }

    /// The whole of a file, or `None` if there is none of that name.
    #[must_use]
    pub fn read(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        Some(self.content(self.inode(path.as_ref())?).to_vec())
    }

    /// Every file's path, sorted.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.names.keys().cloned().collect()
    }

    pub(super) fn inode(&self, path: &Path) -> Option<Inode> {
        self.names.get(path).copied()
    }

    pub(super) fn content(&self, inode: Inode) -> &Content {
        self.files
            .get(&inode)
            .expect("an inode lives as long as a name, a handle or a pending effect names it")
    }

    pub(super) fn content_mut(&mut self, inode: Inode) -> &mut Content {
        Arc::make_mut(self.files.entry(inode).or_default())
    }

    pub(super) fn set_content(&mut self, inode: Inode, content: Arc<Content>) {
        self.files.insert(inode, content);
    }

    pub(super) fn shared_content(&self, inode: Inode) -> Arc<Content> {
        self.files.get(&inode).cloned().unwrap_or_default()
    }

    pub(super) fn link(&mut self, path: &Path, inode: Inode) {
        self.files.entry(inode).or_default();
        Arc::make_mut(&mut self.names).insert(path.to_owned(), inode);
    }

    pub(super) fn unlink(&mut self, path: &Path) {
        Arc::make_mut(&mut self.names).remove(path);
    }

    pub(super) fn has_dir(&self, dir: &Path) -> bool {
        self.dirs.contains(dir)
    }

    pub(super) fn add_dir(&mut self, dir: &Path) {
        Arc::make_mut(&mut self.dirs).insert(dir.to_owned());
    }

    pub(super) fn list(&self, dir: &Path) -> Vec<DirEntry> {
        let within = self.names.iter().filter(|(path, _)| path.parent() == Some(dir));
        let entry = |(path, inode): (&PathBuf, &Inode)| {
            let name = path.file_name()?.to_string_lossy().into_owned();
            Some(DirEntry { name, bytes: self.content(*inode).bytes() })
        };
        let mut entries: Vec<_> = within.filter_map(entry).collect();
        entries.sort();
        entries
    }

    /// Bytes in whole pages of all named files: what a quota counts.
    pub(super) fn used_bytes(&self) -> u64 {
        let block = BLOCK_BYTES as u64;
        self.names.values().map(|inode| self.content(*inode).bytes().next_multiple_of(block)).sum()
    }

    /// The inodes that have a name.
    pub(super) fn named(&self) -> BTreeSet<Inode> {
        self.names.values().copied().collect()
    }

    /// Drops every file that is not in `kept`.
    pub(super) fn retain(&mut self, kept: &BTreeSet<Inode>) {
        self.files.retain(|inode, _| kept.contains(inode));
    }

    /// Without the files that no name leads to.
    pub(super) fn without_orphans(mut self) -> Self {
        let named = self.named();
        self.retain(&named);
        self
    }

    /// An inode number above all in use.
    pub(super) fn next_inode(&self) -> u64 {
        self.files.last_key_value().map_or(1, |(inode, _)| inode.0 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_beyond_the_size_is_zero_for_ever() {
        let mut content = Content::of(&[7; 5000]);
        content.truncate(4100);
        content.grow_to(6000);
        let mut expected = vec![7; 4100];
        expected.resize(6000, 0);
        assert_eq!(content.to_vec(), expected);
        let mut end = [9; 8];
        assert_eq!((content.read(5996, &mut end), end), (4, [0, 0, 0, 0, 9, 9, 9, 9]));
    }

    #[test]
    fn clones_do_not_see_each_others_writes() {
        let mut one = DiskImage::empty();
        one.link(Path::new("a"), Inode(1));
        *one.content_mut(Inode(1)) = Content::of(b"old");
        let mut two = one.clone();
        two.content_mut(Inode(1)).set_sector(0, &[1; SECTOR_BYTES]);
        two.link(Path::new("b"), Inode(2));
        assert_eq!(one.read("a").unwrap(), b"old");
        assert_eq!(two.read("a").unwrap(), [1, 1, 1]);
        assert_eq!((one.paths().len(), two.paths().len()), (1, 2));
    }
}
