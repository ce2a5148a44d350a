//! When a checkpoint is due, how it is written a bounded piece at a time, and which two are kept.
//!
//! A checkpoint is a series of pages, then a root, all of them ordinary records. A page tells its groups as they are at
//! its own place in the log, so nothing has to stand still while the others are written. It counts once its root is
//! durable. Two are kept: files whose records precede the older one may be reused, unless pages lie there that one of
//! the two only names (`pages.rs`).

use std::collections::BTreeSet;

use coracle_base::GroupId;
use coracle_base::checksum::crc32c;
use coracle_base::limits::BATCH_BYTES_MAX;

use crate::files::{File, Files};
use crate::format::page::{Begin, FileEntry, PAGE_PREFIX_BYTES, Page, PageCopy, Part, Piece, Root};
use crate::format::record::{RECORD_HEADER_BYTES, RecordKind};
use crate::format::{Position, SEGMENT, Uuid};
use crate::groups::{Groups, PAGE_GROUPS};
use crate::pages::{Pages, files_of};
use crate::wal::Wal;

/// Checkpoint bytes in one submission.
const STEP_BYTES: usize = 16 * 1024;
/// A piece of a page is closed beyond this.
const PIECE_BYTES: usize = 32 * 1024;
/// A checkpoint is not begun before other records have come to so many times the last one's bytes: with very many groups
/// it must not become most of what is written.
const SHARE: u64 = 4;
/// While more than this waits to be written, a step is taken only after as many bytes of other records: a busy log must
/// neither wait for its checkpoints nor starve them.
const BUSY_BYTES: usize = 256 * 1024;
/// Files that hold nothing but pages, at most, when a checkpoint is begun: room enough for both copies of all.
const PAGE_FILES_MAX: usize = 2;
/// A root, which is one record, says where pages lie in so many bytes at most: what it does not name is written again.
const KEPT_BYTES_MAX: usize = BATCH_BYTES_MAX / 4;

/// A checkpoint whose root is durable (or will be, with batch `root_seq`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) id: u64,
    pub(crate) begin: Begin,
    pub(crate) root_seq: u64,
    /// The batch that its root lies in.
    pub(crate) root_at: Position,
    /// Where the pages lie that its root names.
    pub(crate) page_files: BTreeSet<u64>,
}

#[derive(Debug)]
struct Running {
    id: u64,
    begin: Begin,
    next_slot: usize,
    page_no: u32,
    /// What was written of the page that `next_slot` is in.
    pieces: PageCopy,
    /// Pages that the root is to name.
    kept: Vec<[PageCopy; 2]>,
    kept_bytes: usize,
}

impl Running {
    /// The root is to name these copies, if it has room for them.
    fn keep(&mut self, copies: [&PageCopy; 2], bytes_max: usize) -> bool {
        let bytes = self.kept_bytes + Root::kept_bytes(copies);
        let fits = bytes <= bytes_max;
        if fits {
            self.kept_bytes = bytes;
            self.kept.push(copies.map(Clone::clone));
        }
        fits
    }
}

/// The checkpoints of one log.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints {
    last_id: u64,
    running: Option<Running>,
    /// Its root is staged and not durable.
    closing: Option<Kept>,
    newest: Option<Kept>,
    older: Option<Kept>,
    pages: Pages,
    /// Bytes of the last one, or of the running one so far.
    bytes: u64,
    /// Bytes of other records since the last one was begun.
    since_bytes: u64,
    /// And since the last step of the running one.
    since_step_bytes: usize,
    rolled: bool,
    /// Something is to be remembered that no record says: it does not wait for others to be written.
    urgent: bool,
    pub(crate) written: u64,
    /// Of all of them together, what was staged.
    pub(crate) written_bytes: u64,
}

impl Checkpoints {
    /// What recovery found: the ones it relied on, newest first, and the highest id ever seen.
    pub(crate) fn recovered(kept: [Option<Kept>; 2], last_id: u64, replayed: bool) -> Self {
        let [newest, older] = kept;
        // What was replayed need not be replayed again.
        Self { last_id, newest, older, since_bytes: u64::from(replayed), rolled: replayed, ..Self::default() }
    }

    /// Other records were staged.
    pub(crate) fn add_bytes(&mut self, bytes: usize) {
        self.since_bytes += bytes as u64;
        self.since_step_bytes += bytes;
    }

    /// The log went on to a new file.
    pub(crate) fn roll(&mut self) {
        self.rolled = true;
    }

    /// Batches up to `seq` are durable. True if a checkpoint was completed by it.
    pub(crate) fn on_durable(&mut self, seq: u64) -> bool {
        let Some(kept) = self.closing.take_if(|kept| kept.root_seq <= seq) else { return false };
        self.older = self.newest.replace(kept);
        self.written += 1;
        true
    }

    /// The files in which pages lie that the two checkpoints only name.
    pub(crate) fn page_files(&self) -> BTreeSet<u64> {
        let both = self.newest.iter().chain(&self.older);
        both.flat_map(|kept| kept.page_files.iter().copied()).collect()
    }

    /// The batch that the newest durable root lies in.
    pub(crate) fn newest_root(&self) -> Option<Position> {
        self.newest.as_ref().map(|kept| kept.root_at)
    }

    /// Files before this number hold no record that recovery could need.
    pub(crate) fn needed_from(&self) -> u64 {
        self.older.as_ref().map_or(0, |kept| kept.begin.at.file_no)
    }

    fn is_due(&self, every_bytes: u64) -> bool {
        let enough = self.rolled || self.since_bytes >= every_bytes;
        let earned = self.since_bytes > SHARE * self.bytes;
        self.urgent || enough && earned
    }

    fn is_idle(&self) -> bool {
        self.running.is_none() && self.closing.is_none()
    }

    fn begin(&mut self, begin: Begin) {
        self.last_id += 1;
        let (pieces, kept) = (PageCopy::new(), Vec::new());
        let id = self.last_id;
        self.running = Some(Running { id, begin, next_slot: 0, page_no: 0, pieces, kept, kept_bytes: 0 });
        self.bytes = 0;
        self.since_bytes = 0;
        (self.rolled, self.urgent) = (false, false);
    }
}

impl Wal {
    /// Stages the next pages of a checkpoint, if one is due or running; at most [`STEP_BYTES`] and the rest of a group.
    pub(crate) fn step_checkpoint(&mut self) {
        let is_due = self.checkpoints.is_due(self.config.checkpoint_every_bytes);
        if self.checkpoints.is_idle() && (is_due || self.checkpoint_makes_room()) {
            self.leave_files();
            self.checkpoints.begin(self.durable_end());
        }
        if self.stage.bytes() > BUSY_BYTES && self.checkpoints.since_step_bytes < BUSY_BYTES {
            return;
        }
        self.checkpoints.since_step_bytes = 0;
        let mut staged = 0;
        while staged < STEP_BYTES {
            let Some(mut running) = self.checkpoints.running.take() else { return };
            if running.next_slot == self.groups.len() {
                self.put_root(running);
                return;
            }
            staged += self.put_next(&mut running);
            self.checkpoints.running = Some(running);
        }
    }

    /// A leader knows of entries of this group that were acknowledged here, and recovery did not miss them: votes may be lost as
    /// well. It is remembered with the next checkpoint, which begins at once: a quiet log may not have another one for long, and
    /// a restart in the meantime would vote as if nothing were missing if nobody is there who knows better. After a crash
    /// before that the leader has to say so again, as after one just before it said so.
    pub fn mark_suspect(&mut self, group: GroupId) {
        let slot = self.groups.slot_or_new(group);
        let cold = &mut self.groups.at_mut(slot).cold;
        (cold.suspect, cold.state_lost) = (true, true);
        self.checkpoints.urgent = true;
    }

    /// Pages keep few files that hold nothing else: what lies in older ones is written again.
    fn leave_files(&mut self) {
        let needed_from = self.checkpoints.needed_from();
        let mut kept = self.checkpoints.pages.files();
        kept.retain(|file_no| *file_no < needed_from && self.refs.held(*file_no).is_nothing());
        let Some(excess) = kept.len().checked_sub(PAGE_FILES_MAX + 1) else { return };
        let left: BTreeSet<u64> = kept.into_iter().take(excess + 1).collect();
        self.checkpoints.pages.leave(|file_no| left.contains(&file_no));
    }

    /// Stages the next piece of a page, or passes over a page that need not be written. Returns the bytes.
    fn put_next(&mut self, running: &mut Running) -> usize {
        let page = running.next_slot / PAGE_GROUPS;
        let end = ((page + 1) * PAGE_GROUPS).min(self.groups.len());
        if running.next_slot.is_multiple_of(PAGE_GROUPS) {
            running.pieces.clear();
            if self.groups.begin_page(page) {
                self.checkpoints.pages.forget(page);
            } else if let Some(copies) = self.checkpoints.pages.both(page)
                && running.keep(copies, KEPT_BYTES_MAX.min(self.config.file_bytes as usize / 8))
            {
                running.next_slot = end;
                return 0;
            }
        }
        let staged = self.put_groups(running, end);
        if running.next_slot == end && !self.groups.is_dirty(page) {
            self.checkpoints.pages.add(page, std::mem::take(&mut running.pieces));
        }
        staged
    }

    /// Files before this number may be used for something else once nothing in them lives: no recovery reads them.
    pub(crate) fn reusable_before(&self) -> u64 {
        #[cfg(feature = "breaks")]
        if crate::breaks::is_on(crate::breaks::Break::RecycledTruncationRevives) {
            return self.durable_at.file_no;
        }
        self.checkpoints.needed_from()
    }

    /// The disk is full, and nothing but the age of the checkpoints keeps a file from being used again.
    fn checkpoint_makes_room(&self) -> bool {
        let dead_before = |file_no| self.files.dead(file_no, self.durable, &self.refs).is_some();
        self.prepare.is_full()
            && !dead_before(self.checkpoints.needed_from())
            && dead_before(self.durable_at.file_no)
    }

    /// Stages a piece of a page; several, one after the other, if the next group needs more than one.
    fn put_groups(&mut self, running: &mut Running, end: usize) -> usize {
        let mut staged = 0;
        for parts in next_pieces(&self.groups, &mut running.next_slot, end) {
            let body_bytes = PAGE_PREFIX_BYTES + parts.iter().map(Part::encoded_bytes).sum::<usize>();
            let page = Page { checkpoint: running.id, page_no: running.page_no, parts };
            let body = self.place_record(RecordKind::PackedPage, body_bytes);
            let buf = &mut self.stage.batch().buf;
            let from = buf.len();
            page.encode(buf);
            let crc = crc32c(&buf[from..]);
            let at = Position { offset: body.offset - RECORD_HEADER_BYTES as u64, ..body };
            running.pieces.push(Piece { at, bytes: body_bytes as u32, crc });
            running.page_no += 1;
            staged += body_bytes;
            self.checkpoints.written_bytes += (RECORD_HEADER_BYTES + body_bytes) as u64;
        }
        self.checkpoints.bytes += staged as u64;
        staged
    }

    fn put_root(&mut self, running: Running) {
        self.put_index_list();
        let Running { id, begin, page_no, kept, .. } = running;
        let page_files = files_of(&kept);
        let root = Root {
            checkpoint: id,
            boot_epoch: self.boot_epoch,
            begin,
            page_count: page_no,
            incomplete: self.incomplete,
            files: file_map(&self.files, self.segments_upto),
            kept,
        };
        self.checkpoints.written_bytes += (RECORD_HEADER_BYTES + root.encoded_bytes()) as u64;
        self.place_record(RecordKind::PagedRoot, root.encoded_bytes());
        let batch = self.stage.batch();
        root.encode(&mut batch.buf);
        self.checkpoints.closing =
            Some(Kept { id, begin, root_seq: batch.seq, root_at: batch.at, page_files });
    }
}

/// All files, and the highest number of a segment ever used, even if that one is gone: it must not come again.
fn file_map(files: &Files, segments_upto: u64) -> Vec<FileEntry> {
    let entry = |(file_no, file): (u64, &File)| FileEntry { file_no, uuid: file.uuid, end: file.end };
    let mut map: Vec<FileEntry> = files.iter().map(entry).collect();
    if segments_upto & SEGMENT != 0 && files.get(segments_upto).is_none() {
        map.push(FileEntry { file_no: segments_upto, uuid: Uuid::default(), end: 0 });
    }
    map
}

/// The parts of the groups from `slot` on, before `end`, for one piece; for several if the next group is that large.
fn next_pieces(groups: &Groups, slot: &mut usize, end: usize) -> Vec<Vec<Part>> {
    let (mut piece, mut bytes) = (Vec::new(), 0);
    while *slot < end && bytes < PIECE_BYTES {
        let mut parts = groups.at(*slot).parts();
        if parts.len() > 1 {
            if piece.is_empty() {
                *slot += 1;
                return parts.into_iter().map(|part| vec![part]).collect();
            }
            break;
        }
        bytes += parts.iter().map(Part::encoded_bytes).sum::<usize>();
        piece.append(&mut parts);
        *slot += 1;
    }
    vec![piece]
}
