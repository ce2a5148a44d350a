//! When a checkpoint is due, how it is written a bounded piece at a time, and which two are kept.
//!
//! A checkpoint is a series of pages, then a root, all of them ordinary records. A page tells its groups as they are at
//! its own place in the log, so nothing has to stand still while the others are written. It counts once its root is
//! durable. Two are kept: files whose records precede the older one may be reused.

use crate::files::{File, Files};
use crate::format::page::{
    Begin, FileEntry, PAGE_GROUPS_MAX, PAGE_PREFIX_BYTES, Page, Part, ROOT_PREFIX_BYTES, Root,
};
use crate::format::record::RecordKind;
use crate::format::{SEGMENT, Uuid};
use crate::groups::Groups;
use crate::wal::Wal;

/// Checkpoint bytes in one submission.
const STEP_BYTES: usize = 64 * 1024;
/// A page is closed beyond this.
const PAGE_BYTES: usize = 32 * 1024;
/// A checkpoint is not begun before other records have come to so many times the last one's bytes: with very many groups
/// it must not become most of what is written.
const SHARE: u64 = 4;
/// While more than this waits to be written, a step is taken only after as many bytes of other records: a busy log must
/// neither wait for its checkpoints nor starve them.
const BUSY_BYTES: usize = 256 * 1024;

/// A checkpoint whose root is durable (or will be, with batch `root_seq`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) id: u64,
    pub(crate) begin: Begin,
    pub(crate) root_seq: u64,
}

#[derive(Debug)]
struct Running {
    id: u64,
    begin: Begin,
    next_slot: usize,
    page_no: u32,
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
    /// Bytes of the last one, or of the running one so far.
    bytes: u64,
    /// Bytes of other records since the last one was begun.
    since_bytes: u64,
    /// And since the last step of the running one.
    since_step_bytes: usize,
    rolled: bool,
    pub(crate) written: u64,
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
        match self.closing {
            Some(kept) if kept.root_seq <= seq => {
                self.older = self.newest.replace(kept);
                self.closing = None;
                self.written += 1;
                true
            }
            _ => false,
        }
    }

    /// Files before this number hold no record that recovery could need.
    pub(crate) fn needed_from(&self) -> u64 {
        self.older.map_or(0, |kept| kept.begin.at.file_no)
    }

    fn is_due(&self, every_bytes: u64) -> bool {
        let enough = self.rolled || self.since_bytes >= every_bytes;
        let earned = self.since_bytes > SHARE * self.bytes;
        enough && earned
    }

    fn is_idle(&self) -> bool {
        self.running.is_none() && self.closing.is_none()
    }

    fn begin(&mut self, begin: Begin) {
        self.last_id += 1;
        self.running = Some(Running { id: self.last_id, begin, next_slot: 0, page_no: 0 });
        self.bytes = 0;
        self.since_bytes = 0;
        self.rolled = false;
    }
}

impl Wal {
    /// Stages the next pages of a checkpoint, if one is due or running; at most [`STEP_BYTES`] and the rest of a group.
    pub(crate) fn step_checkpoint(&mut self) {
        let is_due = self.checkpoints.is_due(self.config.checkpoint_every_bytes);
        if self.checkpoints.is_idle() && (is_due || self.checkpoint_makes_room()) {
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
            staged += self.put_groups(&mut running);
            self.checkpoints.running = Some(running);
        }
    }

    /// The disk is full, and nothing but the age of the checkpoints keeps a file from being used again.
    fn checkpoint_makes_room(&self) -> bool {
        let dead_before = |file_no| self.files.dead(file_no, self.durable, &self.refs).is_some();
        self.prepare.is_full()
            && !dead_before(self.checkpoints.needed_from())
            && dead_before(self.durable_at.file_no)
    }

    /// Stages a page of groups; several, one after the other, if the last group needs more than one.
    fn put_groups(&mut self, running: &mut Running) -> usize {
        let mut staged = 0;
        for parts in next_pages(&self.groups, &mut running.next_slot) {
            let body_bytes = PAGE_PREFIX_BYTES + parts.iter().map(Part::encoded_bytes).sum::<usize>();
            let page = Page { checkpoint: running.id, page_no: running.page_no, parts };
            self.place_record(RecordKind::CheckpointPage, body_bytes);
            let batch = self.stage.batch();
            page.encode(&mut batch.buf);
            running.page_no += 1;
            staged += body_bytes;
        }
        self.checkpoints.bytes += staged as u64;
        staged
    }

    fn put_root(&mut self, running: Running) {
        let files = file_map(&self.files, self.segments_upto);
        let body_bytes = ROOT_PREFIX_BYTES + 32 * files.len();
        self.place_record(RecordKind::CheckpointRoot, body_bytes);
        let batch = self.stage.batch();
        let Running { begin, .. } = running;
        let root = Root {
            checkpoint: running.id,
            boot_epoch: self.boot_epoch,
            begin,
            page_count: running.page_no,
            incomplete: self.incomplete,
            files,
        };
        root.encode(&mut batch.buf);
        self.checkpoints.closing = Some(Kept { id: running.id, begin, root_seq: batch.seq });
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

/// The parts of the groups from `slot` on, for one page; for several if the last group is that large.
fn next_pages(groups: &Groups, slot: &mut usize) -> Vec<Vec<Part>> {
    let (mut page, mut bytes) = (Vec::new(), 0);
    let end = (*slot + PAGE_GROUPS_MAX).min(groups.len());
    while *slot < end && bytes < PAGE_BYTES {
        let mut parts = groups.at(*slot).parts();
        if parts.len() > 1 {
            if page.is_empty() {
                *slot += 1;
                return parts.into_iter().map(|part| vec![part]).collect();
            }
            break;
        }
        bytes += parts.iter().map(Part::encoded_bytes).sum::<usize>();
        page.append(&mut parts);
        *slot += 1;
    }
    vec![page]
}
