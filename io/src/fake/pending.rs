//! Effects that happened but would not surely survive a power failure: what lies between *written* and *durable*.
//!
//! Invariants: (1) effects stand in the order in which they happened; (2) for one page, nothing pending is older than
//! what is durable, so a crash never brings back bytes that a durable write replaced; (3) a name effect becomes durable
//! together with every earlier one that shares a name with it, as a journal would have it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::image::{DiskImage, Inode, Page};

/// One change that a crash may undo.
#[derive(Debug, Clone)]
pub(super) enum Effect {
    /// Pages of one file, sorted, and the offset at which the write ended: the file is at least so large.
    Data { inode: Inode, pages: Vec<(usize, Page)>, end: u64 },
    /// A name came, moved or went.
    Name(NameChange),
}

/// A change of a directory (or of two, which then changes both or neither).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NameChange {
    Create { path: PathBuf, inode: Inode },
    Rename { from: PathBuf, to: PathBuf, inode: Inode },
    Unlink { path: PathBuf },
}

impl NameChange {
    pub(super) fn apply(&self, image: &mut DiskImage) {
        match self {
            Self::Create { path, inode } => image.link(path, *inode),
            Self::Rename { from, to, inode } => {
                image.unlink(from);
                image.link(to, *inode);
            }
            Self::Unlink { path } => image.unlink(path),
        }
    }

    fn names(&self) -> [&Path; 2] {
        match self {
            Self::Create { path, .. } | Self::Unlink { path } => [path, path],
            Self::Rename { from, to, .. } => [from, to],
        }
    }

    fn inode(&self) -> Option<Inode> {
        match self {
            Self::Create { inode, .. } | Self::Rename { inode, .. } => Some(*inode),
            Self::Unlink { .. } => None,
        }
    }

    /// The directories that must be synced before it surely survives.
    fn dirs(&self) -> BTreeSet<PathBuf> {
        self.names().into_iter().filter_map(Path::parent).map(Path::to_owned).collect()
    }

    /// Whether the later of two changes makes sense only after the earlier one.
    pub(super) fn depends_on(&self, earlier: &NameChange) -> bool {
        self.names().iter().any(|name| earlier.names().contains(name))
    }
}

impl Effect {
    pub(super) fn apply_whole(&self, image: &mut DiskImage) {
        match self {
            Self::Name(change) => change.apply(image),
            Self::Data { inode, pages, end } => {
                let content = image.content_mut(*inode);
                for (n, page) in pages {
                    content.set_page(*n, page.clone());
                }
                content.grow_to(*end);
                content.settle();
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Entry {
    seq: u64,
    effect: Effect,
    /// Name changes: directories not synced since.
    unsynced_dirs: BTreeSet<PathBuf>,
    /// A sync of it failed: the kernel forgets such pages, so that no later sync makes them durable either.
    forsaken: bool,
}

/// The pending effects of one disk, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Pending {
    entries: Vec<Entry>,
    next_seq: u64,
}

impl Pending {
    /// Effects that have happened so far: what a sync that starts now covers.
    pub(super) fn mark(&self) -> u64 {
        self.next_seq
    }

    pub(super) fn push(&mut self, effect: Effect) {
        let unsynced_dirs = match &effect {
            Effect::Name(change) => change.dirs(),
            Effect::Data { .. } => BTreeSet::new(),
        };
        self.entries.push(Entry { seq: self.next_seq, effect, unsynced_dirs, forsaken: false });
        self.next_seq += 1;
    }

    pub(super) fn effects(&self) -> impl Iterator<Item = &Effect> {
        self.entries.iter().map(|entry| &entry.effect)
    }

    pub(super) fn inodes(&self) -> impl Iterator<Item = Inode> {
        self.effects().filter_map(|effect| match effect {
            Effect::Data { inode, .. } => Some(*inode),
            Effect::Name(change) => change.inode(),
        })
    }

    /// The file's data effects older than `mark` become durable, except those that an earlier failed sync gave up.
    pub(super) fn sync(&mut self, inode: Inode, mark: u64, durable: &mut DiskImage) {
        let covered = |entry: &Entry| {
            entry.seq < mark
                && !entry.forsaken
                && matches!(&entry.effect, Effect::Data { inode: of, .. } if *of == inode)
        };
        for i in 0..self.entries.len() {
            if covered(&self.entries[i]) {
                let effect = self.entries[i].effect.clone();
                effect.apply_whole(durable);
                forget_replaced(&mut self.entries[..i], &effect);
            }
        }
        self.entries.retain(|entry| !covered(entry));
    }

    /// A sync of the file failed.
    pub(super) fn forsake(&mut self, inode: Inode, mark: u64) {
        for entry in &mut self.entries {
            if entry.seq < mark && matches!(&entry.effect, Effect::Data { inode: of, .. } if *of == inode) {
                entry.forsaken = true;
            }
        }
    }

    /// The directory's changes older than `mark` become durable.
    pub(super) fn sync_dir(&mut self, dir: &Path, mark: u64, durable: &mut DiskImage) {
        let mut ready = vec![false; self.entries.len()];
        for (i, entry) in self.entries.iter_mut().enumerate() {
            let synced = entry.seq < mark && entry.unsynced_dirs.remove(dir);
            ready[i] = synced && entry.unsynced_dirs.is_empty();
        }
        for later in (0..self.entries.len()).rev().filter(|i| ready[*i]).collect::<Vec<_>>() {
            self.require_earlier(later, &mut ready);
        }
        for (entry, _) in self.entries.iter().zip(&ready).filter(|(_, ready)| **ready) {
            entry.effect.apply_whole(durable);
        }
        let mut ready = ready.iter();
        self.entries.retain(|_| !ready.next().expect("one flag an entry"));
    }

    /// Marks every earlier change that `later` depends on, and theirs.
    fn require_earlier(&self, later: usize, ready: &mut [bool]) {
        let Effect::Name(change) = &self.entries[later].effect else { return };
        for earlier in (0..later).rev() {
            let needed = matches!(&self.entries[earlier].effect, Effect::Name(e) if change.depends_on(e));
            if needed && !ready[earlier] {
                ready[earlier] = true;
                self.require_earlier(earlier, ready);
            }
        }
    }

    /// `effect` is durable now, so older pending writes of the same pages are history.
    pub(super) fn replaced_by(&mut self, effect: &Effect) {
        forget_replaced(&mut self.entries, effect);
        self.entries.retain(|entry| !is_empty(&entry.effect));
    }
}

fn is_empty(effect: &Effect) -> bool {
    matches!(effect, Effect::Data { pages, .. } if pages.is_empty())
}

fn forget_replaced(older: &mut [Entry], effect: &Effect) {
    let Effect::Data { inode, pages: newer, .. } = effect else { return };
    for entry in older {
        if let Effect::Data { inode: of, pages, .. } = &mut entry.effect
            && of == inode
        {
            pages.retain(|(n, _)| newer.binary_search_by_key(n, |(m, _)| *m).is_err());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::image::page_from;

    fn data(byte: u8, page: usize) -> Effect {
        let end = (page as u64 + 1) * 4096;
        Effect::Data { inode: Inode(1), pages: vec![(page, page_from(&[byte; 4096]))], end }
    }

    fn rename(from: &str, to: &str) -> Effect {
        Effect::Name(NameChange::Rename { from: from.into(), to: to.into(), inode: Inode(1) })
    }

    fn one_file() -> DiskImage {
        let mut image = DiskImage::empty();
        image.link(Path::new("a"), Inode(1));
        image
    }

    #[test]
    fn a_sync_covers_what_happened_before_it_started() {
        let (mut pending, mut durable) = (Pending::default(), one_file());
        pending.push(data(1, 0));
        let mark = pending.mark();
        pending.push(data(2, 0));
        pending.sync(Inode(1), mark, &mut durable);
        assert_eq!(durable.read("a").unwrap(), [1; 4096]);
        assert_eq!(pending.effects().count(), 1);
    }

    #[test]
    fn a_durable_write_leaves_nothing_older_that_a_crash_could_bring_back() {
        let (mut pending, durable) = (Pending::default(), one_file());
        pending.push(data(1, 0));
        pending.push(data(3, 1));
        pending.replaced_by(&data(2, 0));
        let left: Vec<_> = pending.effects().cloned().collect();
        let mut image = durable.clone();
        left.iter().for_each(|effect| effect.apply_whole(&mut image));
        assert_eq!(image.read("a").unwrap()[..4096], [0; 4096]);
        assert_eq!(image.read("a").unwrap()[4096..], [3; 4096]);
    }

    #[test]
    fn what_a_failed_sync_gave_up_no_later_sync_brings_back() {
        let (mut pending, mut durable) = (Pending::default(), one_file());
        pending.push(data(1, 0));
        pending.forsake(Inode(1), pending.mark());
        pending.sync(Inode(1), pending.mark(), &mut durable);
        assert_eq!(durable.read("a").unwrap(), b"");
    }

    #[test]
    fn a_rename_between_directories_needs_both_and_takes_its_history_along() {
        let (mut pending, mut durable) = (Pending::default(), one_file());
        pending.push(rename("a", "d/b"));
        pending.push(rename("d/b", "d/c"));
        let mark = pending.mark();
        pending.sync_dir(Path::new(""), mark, &mut durable);
        assert_eq!(durable.paths(), [PathBuf::from("a")]);
        pending.sync_dir(Path::new("d"), mark, &mut durable);
        assert_eq!(durable.paths(), [PathBuf::from("d/c")]);
        assert_eq!(pending.effects().count(), 0);

        let (mut pending, mut durable) = (Pending::default(), one_file());
        pending.push(rename("a", "d/b"));
        pending.push(rename("d/b", "d/c"));
        pending.sync_dir(Path::new("d"), pending.mark(), &mut durable);
        assert_eq!(durable.paths(), [PathBuf::from("d/c")], "the second is durable, so the first is");
    }
}
