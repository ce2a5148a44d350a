//! One compaction after the other, an operation at a time.
//!
//! ```text
//!   Idle → Choosing → Listing → Opening → Reading ⇄ Ordering ⇄ Writing → Syncing → Closing → Naming → Moving → Draining → Idle
//!                               └─────────┴──────────┴──────────┴─────────┴─────────┴────────┴──→ GivingUp (close, unlink) → Idle, later
//! ```
//!
//! A crash up to the first durable move leaves a segment that nothing names: the next start removes it. A crash between
//! moves leaves a segment with some of the entries, and the others where they were. Entries that were dropped or
//! overwritten meanwhile are not moved: a move says from which file, and they are not there any more.

use std::collections::{BTreeSet, VecDeque};

use coracle_base::GroupId;
use coracle_io::{Disk, DiskDone, DiskError, DiskOk, DiskOp, FileId, FileMode};
use coracle_wal::{BatchSeq, IndexRange, LiveOut, Moved, SegmentWriter, Space, Wal};

use crate::copy::{Copied, Copying, Span};
use crate::reserve::Reserve;
use crate::victims::{Bounds, choose, sums};

const TOKEN: u64 = 0x53 << 56;
/// A segment is written in pieces of this.
const WRITE_BYTES: usize = 256 * 1024;
/// Ranges in one record of moves, and in one step.
const RANGES_MAX: usize = 512;
const STEP_RANGES_MAX: usize = 2048;
/// Files looked at in one step when files are chosen, and groups when it is listed what lives in them.
const STEP_FILES: usize = 256;
const STEP_GROUPS: usize = 256;
/// How often it is looked whether there is something to do.
const CHECK_US: u64 = 100_000;
/// After repeated failures, wait no longer than this many times the first wait.
const RETRY_FACTOR_MAX: u64 = 64;

/// Counters since the start, and how things stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompactStats {
    /// Segments that entries were moved to.
    pub segments: u64,
    /// Of these, those that were written into the reserve, because the disk was full.
    pub in_reserve: u64,
    /// Bytes of entries copied.
    pub bytes_copied: u64,
    /// Entries moved.
    pub entries_moved: u64,
    /// Files that were emptied.
    pub files_freed: u64,
    /// Attempts that were given up.
    pub failures: u64,
    /// Entries that could not be read and stay where they are.
    pub damaged_entries: u64,
    /// Bytes in sealed files and segments that live, when it was last looked.
    pub live_bytes: u64,
    /// Bytes of those files.
    pub held_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    /// Seeing to it that there is a reserve.
    Reserving,
    /// All files before this one were looked at.
    Choosing {
        from: u64,
    },
    /// All groups before this one were asked.
    Listing {
        from: usize,
    },
    Opening,
    Reading,
    Ordering,
    Writing,
    Syncing,
    Closing,
    /// The reserve becomes the segment.
    Renaming,
    Naming,
    Moving,
    Draining(BatchSeq),
    GivingUp,
}

/// One compaction.
#[derive(Debug)]
struct Run {
    victims: Vec<u64>,
    copying: Copying,
    /// What is gathered is being written.
    draining: bool,
    segment: SegmentWriter,
    file: Option<FileId>,
    /// What the segment has.
    copied: VecDeque<Span>,
    /// Nothing more is to be added.
    finished: bool,
    /// The segment is written into the reserve, which has its own name still.
    in_reserve: bool,
    /// What comes next does not fit the reserve.
    is_full: bool,
}

/// Compacts one log.
#[derive(Debug)]
pub struct Compactor {
    bounds: Bounds,
    state: State,
    /// What was found of the log's files.
    space: Space,
    victims: Vec<u64>,
    /// What lives in them.
    found: Vec<(GroupId, IndexRange, u64)>,
    run: Option<Run>,
    reserve: Reserve,
    /// The disk is full: the next compaction is to use the reserve.
    use_reserve: bool,
    now_us: u64,
    /// The operation in flight has ended.
    done: Option<Result<DiskOk, DiskError>>,
    forced: bool,
    next_check_us: u64,
    /// Not before this time, after a failure.
    retry_at_us: Option<u64>,
    failures_in_row: u32,
    /// Files with entries that cannot be read.
    damaged: BTreeSet<u64>,
    stats: CompactStats,
}

impl Compactor {
    /// A compactor that has nothing to do yet.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            state: State::Idle,
            space: Space::default(),
            victims: Vec::new(),
            found: Vec::new(),
            run: None,
            reserve: Reserve::new(bounds.reserve_bytes),
            use_reserve: false,
            now_us: 0,
            done: None,
            forced: false,
            next_check_us: 0,
            retry_at_us: None,
            failures_in_row: 0,
            damaged: BTreeSet::new(),
            stats: CompactStats::default(),
        }
    }

    /// Whether a completion with this token is to be given to [`on_done`](Self::on_done).
    pub fn owns(token: u64) -> bool {
        token == TOKEN
    }

    /// Compacts all that can be made smaller, at once, whatever the bounds say.
    pub fn run_now(&mut self) {
        self.forced = true;
        self.retry_at_us = None;
        self.damaged.clear();
    }

    /// Nothing is going on, and nothing was asked for.
    pub fn is_idle(&self) -> bool {
        self.state == State::Idle && !self.forced
    }

    /// [`step`](Self::step) has something to do at once, though no completion comes.
    pub fn is_ready(&self) -> bool {
        let goes_on = match self.state {
            State::Idle => self.forced,
            State::Choosing { .. } | State::Listing { .. } | State::Ordering | State::Moving => true,
            _ => false,
        };
        goes_on || self.done.is_some()
    }

    /// When a compaction that was given up is to be tried again.
    pub fn deadline_us(&self) -> Option<u64> {
        self.retry_at_us.filter(|_| self.state == State::Idle)
    }

    /// Counters.
    pub fn stats(&self) -> CompactStats {
        self.stats
    }

    /// Takes the completion of the operation in flight.
    pub fn on_done<D: Disk>(&mut self, disk: &mut D, done: DiskDone) {
        if let Some(buf) = done.buf {
            disk.recycle(buf);
        }
        self.done = Some(done.result);
    }

    /// A bounded piece of work. To be called once a turn; the caller then submits the disk's queue.
    pub fn step<D: Disk>(&mut self, wal: &mut Wal, disk: &mut D, now_us: u64) {
        self.now_us = now_us;
        match self.state {
            State::Idle => self.look(wal, disk, now_us),
            State::Choosing { from } => self.choose(wal, disk, from),
            State::Listing { from } => self.list(wal, disk, from),
            State::Reading => {
                if let Some(out) = wal.poll_moving() {
                    self.take(out);
                    self.go_on(wal, disk);
                }
            }
            State::Ordering => self.go_on(wal, disk),
            State::Moving => self.stage_moves(wal),
            State::Draining(seq) => {
                if wal.durable().covers(seq) {
                    self.end(now_us);
                }
            }
            _ => match self.done.take() {
                None => {}
                Some(Ok(ok)) => self.advance(wal, disk, ok),
                Some(Err(error)) => self.fail(wal, disk, &error, now_us),
            },
        }
    }

    // ---- from one operation to the next --------------------------------------------------------------------------

    /// Is there anything to do?
    fn look<D: Disk>(&mut self, wal: &mut Wal, disk: &mut D, now_us: u64) {
        let is_time = self.forced || now_us >= self.next_check_us;
        if !is_time || self.retry_at_us.is_some_and(|at| now_us < at) {
            return;
        }
        self.next_check_us = now_us + CHECK_US;
        self.retry_at_us = None;
        self.space = Space::default();
        self.choose(wal, disk, 0);
    }

    /// Looks at some more files; after the last one it is known which to compact, if any.
    fn choose<D: Disk>(&mut self, wal: &mut Wal, disk: &mut D, from: u64) {
        if let Some(from) = wal.space_of(from, STEP_FILES, &mut self.space) {
            self.state = State::Choosing { from };
            return;
        }
        let space = std::mem::take(&mut self.space);
        (self.stats.held_bytes, self.stats.live_bytes) = sums(&space.held);
        if space.dead_files > self.bounds.dead_files_max as u64 {
            wal.remove_dead(disk, self.bounds.dead_files_max);
        }
        // A log that never wrote a checkpoint is too short to need one.
        let is_begun = !space.held.is_empty() || space.dead_files > 0 || wal.stats().checkpoints > 0;
        if let Some(op) = is_begun.then(|| self.reserve.begin(wal, self.now_us)).flatten() {
            return self.start(disk, State::Reserving, op);
        }
        let least = if self.use_reserve { self.bounds.reserve_bytes } else { 0 };
        // On a full disk no garbage is so little that it could stay.
        let forced = self.forced || wal.room().is_some();
        self.victims = choose(&space, &self.bounds, &self.damaged, forced, least);
        if self.victims.is_empty() {
            if std::mem::take(&mut self.use_reserve) {
                self.wait(self.now_us);
            }
            self.forced = false;
            self.state = State::Idle;
            return;
        }
        self.list(wal, disk, 0);
    }

    /// Asks some more groups what they have in the files; after the last one it can be copied. What they drop meanwhile is
    /// found out when it is read, and nothing is added to these files any more.
    fn list<D: Disk>(&mut self, wal: &mut Wal, disk: &mut D, from: usize) {
        if let Some(from) = wal.held_in(&self.victims, from, STEP_GROUPS, &mut self.found) {
            self.state = State::Listing { from };
            return;
        }
        let span = |(group, range, from)| Span { group, range, from };
        let spans: Vec<Span> = self.found.drain(..).map(span).collect();
        if spans.is_empty() {
            self.state = State::Idle;
            return;
        }
        let segment = wal.begin_segment();
        let in_reserve = std::mem::take(&mut self.use_reserve) && self.reserve.is_there();
        let path = if in_reserve { self.reserve.path() } else { segment.path() }.to_owned();
        self.run = Some(Run {
            victims: std::mem::take(&mut self.victims),
            copying: Copying::new(spans),
            draining: false,
            segment,
            file: None,
            copied: VecDeque::new(),
            finished: false,
            in_reserve,
            is_full: false,
        });
        self.start(disk, State::Opening, DiskOp::Open { path, mode: FileMode::Write });
    }

    fn start<D: Disk>(&mut self, disk: &mut D, state: State, op: DiskOp) {
        self.state = state;
        disk.start(TOKEN, op);
    }

    fn advance<D: Disk>(&mut self, wal: &mut Wal, disk: &mut D, ok: DiskOk) {
        if self.state == State::Reserving {
            self.next_check_us = self.now_us;
            return match self.reserve.on_ok(wal, ok) {
                Some(op) => self.start(disk, State::Reserving, op),
                None => self.state = State::Idle,
            };
        }
        let Some(run) = &mut self.run else {
            self.state = State::Idle;
            return;
        };
        match self.state {
            State::Opening => {
                if let DiskOk::Opened { file, bytes } = ok {
                    run.file = Some(file);
                    if run.in_reserve {
                        run.segment.set_size(bytes);
                    }
                }
                self.go_on(wal, disk);
            }
            State::Writing => self.go_on(wal, disk),
            State::Syncing => {
                let file = run.file.take().expect("the file was written to");
                self.start(disk, State::Closing, DiskOp::Close { file });
            }
            State::Closing if run.in_reserve => {
                let (from, to) = (self.reserve.path().to_owned(), run.segment.path().to_owned());
                self.start(disk, State::Renaming, DiskOp::Rename { from, to });
            }
            State::Closing | State::Renaming => {
                if std::mem::take(&mut run.in_reserve) {
                    self.reserve.is_gone(wal);
                    self.stats.in_reserve += 1;
                }
                let path = run.segment.path().parent().map(ToOwned::to_owned).unwrap_or_default();
                self.start(disk, State::Naming, DiskOp::SyncDir { path });
            }
            State::Naming => {
                wal.adopt_segment(&run.segment);
                run.copied
                    .make_contiguous()
                    .sort_unstable_by_key(|span| (span.group, span.from, span.range.first));
                self.state = State::Moving;
                self.stage_moves(wal);
            }
            State::GivingUp => self.give_up(disk),
            State::Idle
            | State::Reserving
            | State::Choosing { .. }
            | State::Listing { .. }
            | State::Reading
            | State::Ordering
            | State::Moving
            | State::Draining(_) => {}
        }
    }

    /// Writes what is made, reads what is left, or makes the segment durable.
    fn go_on<D: Disk>(&mut self, wal: &mut Wal, disk: &mut D) {
        loop {
            let Some(run) = &mut self.run else { return };
            let Some(file) = run.file else { return };
            while run.draining && run.segment.takable_bytes() < WRITE_BYTES {
                match run.copying.next() {
                    Some(copied) if !run.segment.fits(copied.encoded.len()) => {
                        run.copying.give_back(copied);
                        (run.draining, run.is_full) = (false, true);
                    }
                    Some(copied) => self.stats.bytes_copied += run.add(copied, &mut self.damaged),
                    None => run.draining = false,
                }
            }
            let takable = run.segment.takable_bytes();
            if takable >= WRITE_BYTES || (run.finished && takable > 0) {
                let mut buf = disk.buffer(WRITE_BYTES.min(takable));
                let offset = run.segment.take_blocks(WRITE_BYTES, &mut buf);
                return self.start(disk, State::Writing, DiskOp::Write { file, offset, buf });
            }
            if run.finished {
                return self.start(disk, State::Syncing, DiskOp::Sync { file });
            }
            let (bytes, entries) = run.copying.gathered();
            let is_full = run.is_full
                || run.segment.bytes() + bytes as u64 >= self.bounds.segment_bytes
                || entries >= run.segment.runs_left();
            let is_last = is_full || run.copying.is_read();
            if entries > 0 && (is_last || run.copying.is_enough()) {
                run.copying.sort();
                run.draining = true;
            } else if is_last && run.segment.is_empty() {
                // All of it is gone meanwhile.
                return self.give_up(disk);
            } else if is_last {
                run.segment.finish();
                run.finished = true;
            } else if run.copying.order(wal) {
                self.state = State::Reading;
                return wal.read_moving(disk, &run.copying.ask(), self.bounds.read_bytes);
            } else {
                self.state = State::Ordering;
                return;
            }
        }
    }

    /// Takes the entries that were read.
    fn take(&mut self, out: LiveOut) {
        let Some(run) = &mut self.run else { return };
        run.copying.take(out, |from| {
            self.stats.damaged_entries += 1;
            self.damaged.insert(from);
        });
    }

    /// Stages some of the moves.
    fn stage_moves(&mut self, wal: &mut Wal) {
        let Some(run) = &mut self.run else { return };
        let mut staged = 0;
        let mut seq = wal.durable().seq();
        while staged < STEP_RANGES_MAX
            && let Some(Span { group, from, .. }) = run.copied.front().copied()
        {
            let to = run.segment.file_no();
            let mut moved = Moved { group, from, to, ranges: Vec::new() };
            while moved.ranges.len() < RANGES_MAX
                && let Some(span) = run.copied.pop_front_if(|span| (span.group, span.from) == (group, from))
            {
                self.stats.entries_moved += span.range.count;
                moved.ranges.push(span.range);
            }
            staged += moved.ranges.len();
            seq = wal.put_moved(&moved);
        }
        if run.copied.is_empty() {
            wal.release_segment();
            self.state = State::Draining(seq);
        }
    }

    fn end(&mut self, now_us: u64) {
        self.state = State::Idle;
        self.next_check_us = now_us;
        self.failures_in_row = 0;
        if let Some(run) = self.run.take() {
            self.stats.segments += 1;
            let emptied = |victim: &&u64| run.copying.is_read_of(**victim);
            self.stats.files_freed += run.victims.iter().filter(emptied).count() as u64;
        }
    }

    // ---- giving up -----------------------------------------------------------------------------------------------

    fn fail<D: Disk>(&mut self, wal: &mut Wal, disk: &mut D, error: &DiskError, now_us: u64) {
        if self.state == State::Reserving {
            return match self.reserve.on_error(wal) {
                Some(op) => self.start(disk, State::Reserving, op),
                None => self.state = State::Idle,
            };
        }
        let in_reserve = self.run.as_ref().is_some_and(|run| run.in_reserve);
        if in_reserve && self.state == State::Renaming {
            self.reserve.is_gone(wal);
        }
        if matches!(error, DiskError::Full { .. }) && !in_reserve && self.reserve.is_there() {
            // At once, and with what is kept for this.
            (self.use_reserve, self.next_check_us) = (true, now_us);
            self.stats.failures += 1;
        } else if self.state != State::GivingUp {
            self.stats.failures += 1;
            self.wait(now_us);
            self.forced = false;
            tracing::warn!(%error, "a compaction was given up; it is tried again later");
        }
        self.give_up(disk);
    }

    /// The next try is later, the later the more have failed in a row.
    fn wait(&mut self, now_us: u64) {
        let factor = (1 << self.failures_in_row.min(6)).min(RETRY_FACTOR_MAX);
        self.failures_in_row += 1;
        self.retry_at_us = Some(now_us + self.bounds.retry_us * factor);
    }

    /// Closes and removes the segment.
    fn give_up<D: Disk>(&mut self, disk: &mut D) {
        let Some(run) = &mut self.run else {
            self.state = State::Idle;
            return;
        };
        match run.file.take() {
            Some(file) => self.start(disk, State::GivingUp, DiskOp::Close { file }),
            None if run.in_reserve => {
                self.run = None;
                self.state = State::Idle;
            }
            None => {
                let path = run.segment.path().to_owned();
                self.run = None;
                self.start(disk, State::GivingUp, DiskOp::Unlink { path });
            }
        }
    }
}

impl Run {
    /// Puts an entry into the segment. Returns its bytes.
    fn add(&mut self, copied: Copied, damaged: &mut BTreeSet<u64>) -> u64 {
        let Copied { group, index, from, encoded } = copied;
        if !self.segment.push(group, index, &encoded) {
            damaged.insert(from);
            return 0;
        }
        match self.copied.back_mut() {
            Some(last) if (last.group, last.from) == (group, from) && last.range.last().next() == index => {
                last.range.count += 1;
            }
            _ => {
                self.copied.push_back(Span { group, range: IndexRange { first: index, count: 1 }, from });
            }
        }
        encoded.len() as u64
    }
}
