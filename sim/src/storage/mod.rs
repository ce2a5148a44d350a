//! The second world of a seed: one log alone, which sees more of its disk's faults than a cluster could survive. A real
//! `Wal` and a real `Compactor` with tiny files on a simulated disk: random records, reads that race with reuse,
//! compaction, crashes at any step, pages that rot, writes that never land; beside it a model of plain maps.
//!
//! Reading order: this file (the story), `plan.rs` (what a seed draws), `records.rs` (what is written), `store.rs` (the
//! code under test), `model.rs` (what it should hold), `judge.rs` (what must never happen).

mod judge;
mod marks;
mod model;
mod plan;
mod records;
mod store;

use std::collections::BTreeMap;
use std::path::PathBuf;

use coracle::breaks::Breaks;
use coracle_base::checksum::mix64;
use coracle_io::Disk;
use coracle_io::fake::{Completing, CrashPolicy, Damage, DiskImage, DiskRates, FakeDisk, OpKind};
use coracle_wal::{ReadError, Recovery, WalError};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Names of the faults of the log alone.
pub(crate) const FAULTS: [&str; 7] = Fault::NAMES;

pub use self::marks::{STORAGE_MARKS, STORAGE_MARKS_RARE};

use self::judge::{Before, Harm};
use self::model::Op;
use self::plan::{Fault, Plan};
use self::records::Records;
use self::store::{Read, Store};
use crate::oracle::Violation;
use crate::plan::Trim;
use crate::tally::Tally;

const EIO: i32 = 5;
/// A turn takes so long.
const TURN_US: u64 = 20;
/// Bytes that wait to be written, at most: a shard would refuse more.
const BACKLOG_MAX: usize = 512 * 1024;
/// Reads under way, at most.
const READS_MAX: usize = 4;
/// Operations of a disk until a fuse blows, at most; and while a log is opened.
const FUSE_STEPS_MAX: u64 = 120;
const FUSE_AT_OPEN_STEPS_MAX: u64 = 60;
/// Checkpoints after which a damaged page plays no part in a recovery any more.
const CHECKPOINTS_BETWEEN_HARM: u64 = 4;
/// Compaction looks about so often whether there is something to do.
const IDLE_US: u64 = 50_000;
const PAGE_BYTES: u64 = 4096;
/// A log that has come to rest is at rest after so long.
const REST_US: u64 = 600_000_000;
/// Events of the trace.
const STAGED: u64 = 21;
const READ: u64 = 22;
const OPENED: u64 = 23;
const STRUCK: u64 = 24;

/// One log and what happens to it.
pub(crate) struct Yard {
    plan: Plan,
    rng: SmallRng,
    disk: FakeDisk,
    store: Option<Store>,
    before: Before,
    records: Records,
    harm: Harm,
    pub(crate) tally: Tally,
    now_us: u64,
    next_record_us: u64,
    records_left: u64,
    next_fault_at: u64,
    errors_excused: u64,
    /// Checkpoints written since the last harm was done.
    checkpoints: u64,
    /// The disk when the last checkpoint but one was there, and when the last one was.
    relied_on: [DiskImage; 2],
}

impl Yard {
    pub(crate) fn new(seed: u64, trim: &Trim) -> Self {
        let plan = Plan::draw(seed, trim);
        let mut rng = SmallRng::seed_from_u64(mix64(seed, 0x10c));
        let disk = FakeDisk::new(rng.random());
        disk.set_completing(Completing::Timed(plan.disk));
        Self {
            records: Records::new(&plan),
            records_left: plan.records,
            next_fault_at: plan.records.saturating_sub(plan.fault_gap),
            relied_on: [disk.image(), disk.image()],
            rng,
            disk,
            store: None,
            before: Before::default(),
            harm: Harm::default(),
            tally: Tally::default(),
            now_us: 0,
            next_record_us: 0,
            errors_excused: 0,
            checkpoints: CHECKPOINTS_BETWEEN_HARM,
            plan,
        }
    }

    /// The whole story.
    pub(crate) fn go(&mut self, breaks: Breaks) -> Result<(), Violation> {
        coracle_wal::breaks::plant(breaks.wal);
        tracing::debug!(plan = ?self.plan, "a log begins");
        self.open()?;
        while self.records_left > 0 {
            self.step(true)?;
            if self.records_left <= self.next_fault_at {
                let gap = self.rng.random_range(1..=2 * self.plan.fault_gap);
                self.next_fault_at = self.records_left.saturating_sub(gap);
                let fault = self.plan.faults[self.rng.random_range(0..self.plan.faults.len())];
                if !self.plan.without.contains(&fault) {
                    self.strike(fault)?;
                }
            }
        }
        self.stop_faults();
        self.rest()?;
        self.store.iter_mut().for_each(|store| store.compactor.run_now());
        self.rest()?;
        self.end(CrashPolicy::LOSE_ALL);
        self.open()
    }

    /// Simulated time.
    pub(crate) fn now_us(&self) -> u64 {
        self.now_us
    }

    // ---- opening --------------------------------------------------------------------------------------------------

    /// Opens the log, whatever it takes, and looks whether everything is there.
    fn open(&mut self) -> Result<(), Violation> {
        loop {
            let one_in = self.plan.fuse_at_open_one_in;
            if one_in > 0 && self.rng.random_ratio(1, one_in) {
                self.tally.fault("storage_power_loss_at_start");
                self.disk.crash_after(self.rng.random_range(0..FUSE_AT_OPEN_STEPS_MAX));
            }
            let opened = Store::open(&self.plan, &mut self.disk, self.rng.random());
            self.now_us = self.now_us.max(self.disk.now_us());
            let (mut store, recovery) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    self.after_failed_open(error)?;
                    continue;
                }
            };
            self.tally.event(&[OPENED, self.now_us, recovery.report.batches, recovery.report.entries]);
            self.note_recovery(&recovery);
            let model = judge::recovered(&self.before, &recovery, &mut self.harm)?;
            store.begin(model);
            store.batches = std::mem::take(&mut self.before.batches);
            let read = self.read_back(&mut store);
            match read {
                Ok(result) => {
                    result?;
                    self.mend(&mut store, &recovery);
                    self.store = Some(store);
                    return Ok(());
                }
                Err(error) => {
                    self.store = Some(store);
                    self.fail(&error)?;
                }
            }
        }
    }

    fn after_failed_open(&mut self, error: WalError) -> Result<(), Violation> {
        let is_full = matches!(error, WalError::Disk(coracle_io::DiskError::Full { .. }));
        if is_full {
            self.disk.set_quota(None);
        }
        if matches!(error, WalError::Lost { .. }) && self.harm.lost > 0 {
            self.tally.mark("storage_logs_refused");
            self.begin_anew();
            return Ok(());
        }
        if is_full || self.is_excused() {
            self.disk.crash(self.plan.crash);
            return Ok(());
        }
        Err(Violation { invariant: "a log can be opened", detail: error.to_string() })
    }

    /// Nothing can be had from this disk any more: another one, and a log that begins there.
    fn begin_anew(&mut self) {
        self.disk = FakeDisk::new(self.rng.random());
        self.disk.set_completing(Completing::Timed(self.plan.disk));
        self.disk.advance(self.now_us);
        (self.before, self.harm, self.errors_excused) = (Before::default(), Harm::default(), 0);
        self.checkpoints = CHECKPOINTS_BETWEEN_HARM;
    }

    fn note_recovery(&mut self, recovery: &Recovery) {
        let report = &recovery.report;
        self.tally.mark("storage_opens");
        self.tally.mark_many("storage_torn_tails", u64::from(report.torn));
        self.tally.mark_many("storage_opens_from_checkpoint", u64::from(report.checkpoint.is_some()));
        self.tally.mark_many("storage_holes_found", report.holes.len() as u64);
        self.tally.mark_many("storage_suspect_tails", u64::from(report.tail_suspect));
        self.tally.mark_many("storage_files_missed", report.missing.len() as u64);
    }

    /// What a leader would do for groups that are damaged; those that are given up end.
    fn mend(&mut self, store: &mut Store, recovery: &Recovery) {
        for found in &recovery.groups {
            let id = found.group.0;
            let group = store.now.get(id);
            if self.harm.given_up.contains(&id) {
                self.tally.mark("storage_groups_given_up");
                self.records.replace(id);
                store.stage(Op::Delete { group: id });
                continue;
            }
            if found.suspect || found.state_lost {
                self.tally.mark("storage_groups_mended");
                store.wal.clear_suspect(found.group);
            }
            if found.state_lost {
                store.stage(Op::State { group: id, id: self.records.id() });
            }
            if found.suspect
                && group.snapshot.is_some_and(|(_, in_file)| !in_file)
                && found.snapshot.is_none()
            {
                let (index, term) = group.base;
                let live = group.live.keys().copied().collect();
                let id = self.records.id();
                store.stage(Op::Snapshot { group: found.group.0, index, term, live, id, in_file: false });
            }
            // Its end was not durable.
            if !self.records.groups.contains(&id) {
                store.stage(Op::Delete { group: id });
            }
        }
    }

    /// Reads everything. The outer error is the disk's.
    fn read_back(&mut self, store: &mut Store) -> Result<Result<(), Violation>, WalError> {
        for (id, group) in store.now.groups.clone() {
            let mut next = group.base.0 + 1;
            while next <= group.last() {
                store.read(&mut self.disk, id, next, group.last(), 64 * 1024);
                match self.wait_for_read(store)? {
                    Ok(read) => next += read.max(1),
                    Err(violation) => return Ok(Err(violation)),
                }
            }
            let live: Vec<u64> = group.live.into_keys().collect();
            let mut at = 0;
            while at < live.len() {
                store.read_live(&mut self.disk, id, &live[at..], 64 * 1024);
                match self.wait_for_read(store)? {
                    Ok(read) => at += read.max(1) as usize,
                    Err(violation) => return Ok(Err(violation)),
                }
            }
        }
        Ok(Ok(()))
    }

    /// Waits for the only read under way. How many entries it had.
    fn wait_for_read(&mut self, store: &mut Store) -> Result<Result<u64, Violation>, WalError> {
        loop {
            if let Some(read) = store.poll() {
                let entries = read.entries.len() as u64;
                return Ok(self.judge(store, &read, false).map(|()| entries));
            }
            self.disk.submit()?;
            self.disk.wait()?;
            store.complete(&mut self.disk)?;
        }
    }

    fn judge(&mut self, store: &Store, read: &Read, may_wait: bool) -> Result<(), Violation> {
        let sound = read.entries.iter().filter(|(_, entry)| entry.is_ok()).count() as u64;
        self.tally.event(&[READ, self.now_us, read.group, sound]);
        self.tally.mark_many("storage_entries_read", sound);
        for (_, entry) in &read.entries {
            match entry {
                Err(ReadError::Released { .. }) => self.tally.mark("storage_reads_too_late"),
                Err(ReadError::Corrupt { .. } | ReadError::Disk(_)) => {
                    self.tally.mark("storage_reads_refused")
                }
                Ok(_) | Err(ReadError::NotDurable { .. }) => {}
            }
        }
        judge::read(read, &store.now, self.plan.entry_bytes, &self.harm, may_wait)
    }

    // ---- turns ----------------------------------------------------------------------------------------------------

    /// On to the next moment at which something happens. `writes`: records come.
    fn step(&mut self, writes: bool) -> Result<(), Violation> {
        let Some(mut store) = self.store.take() else { return self.open() };
        let wanted = [
            writes.then_some(self.next_record_us),
            self.disk.next_event_us(),
            store.wal.deadline_us(),
            store.compactor.deadline_us(),
            (store.compactor.is_ready() || store.wal.has_moving_read()).then_some(0),
            // Compaction looks now and then whether there is something to do.
            Some(self.now_us + IDLE_US),
        ];
        let next_us = wanted.into_iter().flatten().min().unwrap_or_default();
        self.now_us = next_us.max(self.now_us + TURN_US);
        self.disk.advance(self.now_us);
        let checkpoints = store.wal.stats().checkpoints;
        let result = store.complete(&mut self.disk);
        if store.wal.stats().checkpoints > checkpoints {
            self.relied_on.swap(0, 1);
            self.relied_on[1] = self.disk.image();
        }
        while let Some(read) = store.poll() {
            self.judge(&store, &read, true)?;
        }
        let result = match result {
            Ok(()) => {
                if writes && self.now_us >= self.next_record_us {
                    self.write(&mut store)?;
                }
                store.submit(&mut self.disk, self.now_us)
            }
            Err(error) => Err(error),
        };
        self.store = Some(store);
        match result {
            Ok(()) => Ok(()),
            Err(error) => {
                self.fail(&error)?;
                self.open()
            }
        }
    }

    /// The next records, and perhaps a read.
    fn write(&mut self, store: &mut Store) -> Result<(), Violation> {
        let (low, high) = self.plan.gap_us;
        self.next_record_us = self.now_us + self.rng.random_range(low..=high);
        self.records_left = self.records_left.saturating_sub(1);
        if store.wal.backlog_bytes() > BACKLOG_MAX {
            return Ok(());
        }
        for op in self.records.draw(&self.plan, &store.now, &mut self.rng) {
            let group = op.group();
            store.stage(op);
            self.tally.event(&[STAGED, self.now_us, group, store.now.get(group).last()]);
            judge::staged(store, group)?;
        }
        if self.rng.random_ratio(1, 60) {
            store.compactor.run_now();
        }
        if self.rng.random_ratio(self.plan.reads_percent, 100) && store.reads() < READS_MAX {
            self.begin_read(store);
        }
        Ok(())
    }

    fn begin_read(&mut self, store: &mut Store) {
        let id = self.records.groups[self.rng.random_range(0..self.records.groups.len())];
        let group = store.now.get(id);
        let max_bytes = [500, 5_000, 50_000][self.rng.random_range(0..3)];
        if self.rng.random() && group.last() > group.base.0 {
            let first = self.rng.random_range(group.base.0 + 1..=group.last());
            store.read(&mut self.disk, id, first, group.last(), max_bytes);
            return;
        }
        let all = group.live.keys().chain(group.entries.keys());
        let some: Vec<u64> = all.copied().filter(|_| self.rng.random_ratio(1, 3)).take(40).collect();
        if !some.is_empty() {
            store.read_live(&mut self.disk, id, &some, max_bytes);
        }
    }

    /// Goes on without records until nothing is left to do.
    fn rest(&mut self) -> Result<(), Violation> {
        let give_up_us = self.now_us + REST_US;
        loop {
            self.step(false)?;
            let rests = self.store.as_ref().is_some_and(|store| {
                store.is_proven()
                    && store.reads() == 0
                    && store.compactor.is_idle()
                    && self.disk.in_flight() == 0
            });
            if rests {
                return Ok(());
            }
            if self.now_us > give_up_us {
                let detail = "there is always something left to do".to_owned();
                return Err(Violation { invariant: "a log comes to rest", detail });
            }
        }
    }

    // ---- what goes wrong ------------------------------------------------------------------------------------------

    fn strike(&mut self, fault: Fault) -> Result<(), Violation> {
        self.disk.set_quota(None);
        self.tally.event(&[STRUCK, self.now_us, fault as u64]);
        // Harm is counted when it is done: most of the time it is too early for it.
        if !matches!(fault, Fault::Damage | Fault::LostWrite) {
            self.tally.fault(fault.name());
        }
        tracing::debug!(now_us = self.now_us, ?fault, "fault");
        match fault {
            Fault::PowerLoss => {
                self.end(self.plan.crash);
                self.open()?;
            }
            Fault::Kill => {
                self.end(CrashPolicy::KEEP_ALL);
                self.open()?;
            }
            Fault::Fuse => self.disk.crash_after(self.rng.random_range(0..FUSE_STEPS_MAX)),
            Fault::WriteError => self.disk.fail_next(OpKind::Write, None, EIO),
            Fault::DiskFull => {
                let image = self.disk.image();
                let bytes = |path: &PathBuf| image.read(path).map_or(0, |bytes| bytes.len() as u64);
                self.disk.set_quota(Some(image.paths().iter().map(bytes).sum()));
            }
            Fault::Damage | Fault::LostWrite => self.harm(fault)?,
        }
        Ok(())
    }

    /// What a sound disk never does: only to a log whose every durable batch could be proven to be durable, and that has
    /// left the last harm behind.
    fn harm(&mut self, fault: Fault) -> Result<(), Violation> {
        self.stop_faults();
        self.rest()?;
        let written = self.store.as_ref().map_or(0, |store| store.wal.stats().checkpoints);
        if self.checkpoints + written < CHECKPOINTS_BETWEEN_HARM {
            return Ok(());
        }
        self.checkpoints = 0;
        let at_once = match fault {
            Fault::LostWrite => {
                self.lose_a_write()?;
                false
            }
            // The next checkpoint would cover it up.
            _ => self.damage_a_page(),
        };
        if at_once || self.rng.random() {
            self.end(self.plan.crash);
            self.open()?;
        }
        Ok(())
    }

    /// A page of any file, one of those that a recovery relies on, or one of the newest checkpoint. Whether it is the last.
    fn damage_a_page(&mut self) -> bool {
        let image = self.disk.image();
        let mut pages = pages(&image);
        if self.rng.random() {
            let before = self::pages(&self.relied_on[0]);
            pages.retain(|place, bytes| before.get(place) != Some(bytes));
        }
        let of_checkpoint = self.rng.random_ratio(1, 3).then(|| newest_checkpoint_page(&pages)).flatten();
        let nth = self.rng.random_range(0..pages.len().max(1));
        let is_of_checkpoint = of_checkpoint.is_some();
        let Some((path, page)) = of_checkpoint.or_else(|| pages.into_keys().nth(nth)) else { return false };
        let within = self.rng.random_range(0..PAGE_BYTES);
        let bytes = self.rng.random_range(1..=PAGE_BYTES - within) as usize;
        let (offset, damage) = match self.rng.random_range(0..4) {
            0 => (page + within, Damage::FlipBit { bit: (within % 8) as u8 }),
            1 => (page + within, Damage::Zero { bytes }),
            2 => (page + within, Damage::Garbage { bytes }),
            _ => (page, Damage::Unreadable),
        };
        tracing::debug!(path = %path.display(), offset, ?damage, "damage");
        self.harm.pages += 1;
        self.tally.fault(Fault::Damage.name());
        self.disk.corrupt(&path, offset, damage);
        is_of_checkpoint
    }

    /// One write is confirmed and lands elsewhere or nowhere; then enough is written to prove that it was.
    fn lose_a_write(&mut self) -> Result<(), Violation> {
        self.harm.lost += 1;
        let lost = |disk: &FakeDisk| {
            let counts = disk.fault_counts();
            ["lost_write", "misdirected_write"].iter().filter_map(|kind| counts.get(kind)).sum::<u64>()
        };
        let before = lost(&self.disk);
        self.disk.set_rates(match self.rng.random() {
            true => DiskRates { lost_write: 1, ..DiskRates::default() },
            false => DiskRates { misdirected_write: 1, ..DiskRates::default() },
        });
        self.write_a_state();
        while lost(&self.disk) == before {
            self.step(false)?;
        }
        self.tally.fault(Fault::LostWrite.name());
        self.disk.set_rates(DiskRates::default());
        self.write_a_state();
        self.rest()
    }

    fn write_a_state(&mut self) {
        let op = Op::State { group: self.records.groups[0], id: self.records.id() };
        self.store.iter_mut().for_each(|store| store.stage(op.clone()));
    }

    /// From now on nothing goes wrong by itself.
    fn stop_faults(&mut self) {
        self.disk.set_quota(None);
        self.disk.fail_no_more();
        self.disk.crash_after(u64::MAX);
    }

    /// The process has ended by an error, which must have a cause.
    fn fail(&mut self, error: &WalError) -> Result<(), Violation> {
        if !self.is_excused() {
            let detail = error.to_string();
            return Err(Violation { invariant: "a log stops only for a cause", detail });
        }
        self.end(self.plan.crash);
        Ok(())
    }

    fn is_excused(&mut self) -> bool {
        let counts = self.disk.fault_counts();
        let errors = ["write_error", "sync_error"].iter().filter_map(|kind| counts.get(kind)).sum();
        let is_new = errors > self.errors_excused;
        self.errors_excused = errors;
        is_new || self.disk.is_crashed()
    }

    /// The process ends; what was not durable survives as the policy says.
    fn end(&mut self, policy: CrashPolicy) {
        if let Some(store) = self.store.take() {
            let (stats, compacted) = (store.wal.stats(), store.compactor.stats());
            self.checkpoints += stats.checkpoints;
            self.tally.mark_many("storage_checkpoints", stats.checkpoints);
            self.tally.mark_many("storage_files_reused", stats.files_reused);
            self.tally.mark_many("storage_files_removed", stats.files_removed);
            self.tally.mark_many("storage_entries_moved", compacted.entries_moved);
            self.tally.mark_many("storage_compactions_failed", compacted.failures);
            self.before = Before::of(store);
        }
        self.disk.crash(policy);
        self.tally.mark("storage_crashes");
    }
}

/// Where the newest batch lies that begins with a page of a checkpoint: the one place without which its root means nothing.
fn newest_checkpoint_page(pages: &BTreeMap<(PathBuf, u64), Vec<u8>>) -> Option<(PathBuf, u64)> {
    // As `docs/FORMAT.md` has it: a batch's magic and number, and the kind of its first record.
    const CHECKPOINT_PAGE: u8 = 10;
    let begins = |bytes: &[u8]| bytes.starts_with(b"CWB1") && bytes.get(96) == Some(&CHECKPOINT_PAGE);
    let number =
        |bytes: &[u8]| bytes.get(16..24).map(|number| number.iter().rev().copied().collect::<Vec<u8>>());
    let batches = pages.iter().filter(|(_, bytes)| begins(bytes));
    batches.max_by_key(|(_, bytes)| number(bytes)).map(|(place, _)| place.clone())
}

/// The pages of the log's files.
fn pages(image: &DiskImage) -> BTreeMap<(PathBuf, u64), Vec<u8>> {
    let is_log = |path: &PathBuf| path.extension().is_some_and(|ext| ext == "wal" || ext == "seg");
    let mut pages = BTreeMap::new();
    for path in image.paths().into_iter().filter(is_log) {
        let bytes = image.read(&path).unwrap_or_default();
        for (page, bytes) in (0..).step_by(PAGE_BYTES as usize).zip(bytes.chunks(PAGE_BYTES as usize)) {
            pages.insert((path.clone(), page), bytes.to_vec());
        }
    }
    pages
}
